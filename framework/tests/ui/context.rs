//! Reads have no effects.

#![allow(unused)]

use perennial::prelude::*;

#[data]
#[derive(Default)]
pub struct Cart;

#[actor]
impl Cart {
    pub fn mutable(&self, ctx: &mut Ctx<Self>) {}
    pub fn owned(&self, ctx: Ctx<Self>) {}
    pub fn last(&mut self, sku: String, ctx: &mut Ctx<Self>) {}
}

fn main() {}
