//! An actor's state is stored.

#![allow(unused)]

use perennial::prelude::*;

#[derive(Default)]
pub struct Cart(u32);

#[actor]
impl Cart {
    pub fn get(&self) -> u32 {
        self.0
    }
}

fn main() {
    let _app = App::new("shop").actor::<Cart>().actor::<u32>();
}
