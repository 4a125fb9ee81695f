//! An async handler moves between threads.

#![allow(unused)]

use std::rc::Rc;

use perennial::prelude::*;

#[data]
#[derive(Default)]
pub struct Cart(u32);

#[actor]
impl Cart {
    pub async fn get(&mut self, ctx: &mut Ctx<Self>) -> Result<u32, Fault> {
        let shared = Rc::new(1);
        let other = ctx.get::<Cart>("other").peek().await?;
        Ok(other + *shared)
    }
    pub fn peek(&self) -> u32 {
        self.0
    }
}

fn main() {}
