//! Messages and reminders promise exactly once, which needs a log.

#![allow(unused)]

use perennial::prelude::*;

#[data]
#[derive(Default)]
pub struct Resizer;

#[actor(stateless)]
impl Resizer {
    pub fn resize(&self) {}
}

#[data]
#[derive(Default)]
pub struct Album;

#[actor]
impl Album {
    pub fn add(&mut self, ctx: &mut Ctx<Self>) {
        ctx.send(ctx.pool::<Resizer>().resize());
        ctx.schedule("resize", std::time::Duration::from_secs(1), ctx.pool::<Resizer>().resize());
    }
}

fn main() {}
