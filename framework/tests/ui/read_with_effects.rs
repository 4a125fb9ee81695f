//! The borrow checker keeps effects out of reads.

#![allow(unused)]

use perennial::prelude::*;

#[data]
#[derive(Default)]
pub struct Cart(u32);

#[actor]
impl Cart {
    pub fn peek(&self, ctx: &Ctx<Self>) {
        ctx.send(ctx.me().clear());
    }
    pub fn clear(&mut self) {}
}

fn main() {}
