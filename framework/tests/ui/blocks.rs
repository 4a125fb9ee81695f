//! Where `#[actor]` stands and what it takes.

#![allow(unused)]

use perennial::prelude::*;

#[actor]
pub struct OnAStruct;

pub struct OnATrait;

#[actor]
impl Clone for OnATrait {
    fn clone(&self) -> Self {
        Self
    }
}

pub struct Generic<T>(T);

#[actor]
impl<T> Generic<T> {}

#[data]
#[derive(Default)]
pub struct Named;

#[actor(kind = "shop/cart")]
impl Named {}

#[data]
#[derive(Default)]
pub struct Optioned;

#[actor(name = "cart")]
impl Optioned {}

fn main() {}
