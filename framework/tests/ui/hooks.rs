//! What a hook must be.

#![allow(unused)]

use perennial::prelude::*;

#[data]
#[derive(Default)]
pub struct Remote;

#[actor]
impl Remote {
    #[activated]
    pub fn load(&mut self) {}
}

#[data]
#[derive(Default)]
pub struct Asynchronous;

#[actor]
impl Asynchronous {
    #[activated]
    async fn load(&mut self) {}
}

#[data]
#[derive(Default)]
pub struct Answers;

#[actor]
impl Answers {
    #[activated]
    fn load(&mut self) -> Result<(), String> {
        Ok(())
    }
}

#[data]
#[derive(Default)]
pub struct Static;

#[actor]
impl Static {
    #[passivating]
    fn leave() {}
}

#[data]
#[derive(Default)]
pub struct Owned;

#[actor]
impl Owned {
    #[passivating]
    fn leave(self) {}
}

#[data]
#[derive(Default)]
pub struct Effects;

#[actor]
impl Effects {
    #[activated]
    fn load(&mut self, ctx: &mut Ctx<Self>) {}
}

#[data]
#[derive(Default)]
pub struct OwnContext;

#[actor]
impl OwnContext {
    #[activated]
    fn load(&mut self, ctx: Ctx<Self>) {}
}

#[data]
#[derive(Default)]
pub struct Takes;

#[actor]
impl Takes {
    #[activated]
    fn load(&mut self, words: Vec<String>) {}
}

#[data]
#[derive(Default)]
pub struct Generic;

#[actor]
impl Generic {
    #[activated]
    fn load<T>(&mut self) {}
}

#[data]
#[derive(Default)]
pub struct Unsafe;

#[actor]
impl Unsafe {
    #[activated]
    unsafe fn load(&mut self) {}
}

#[data]
#[derive(Default)]
pub struct Conditional;

#[actor]
impl Conditional {
    #[activated]
    #[cfg(unix)]
    fn load(&mut self) {}
}

#[data]
#[derive(Default)]
pub struct Optioned;

#[actor]
impl Optioned {
    #[passivating(quickly)]
    fn leave(&mut self) {}
}

#[data]
#[derive(Default)]
pub struct Twice;

#[actor]
impl Twice {
    #[activated]
    fn load(&mut self) {}
    #[activated]
    fn load_more(&mut self) {}
}

fn main() {}
