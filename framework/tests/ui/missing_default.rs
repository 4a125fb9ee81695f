//! The state of an actor that nobody has called yet.

#![allow(unused)]

use perennial::prelude::*;

#[data]
pub struct Cart(u32);

#[actor]
impl Cart {
    pub fn get(&self) -> u32 {
        self.0
    }
}

fn main() {}
