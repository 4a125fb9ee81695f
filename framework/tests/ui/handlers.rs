//! What a `pub fn` of an actor must be.

#![allow(unused)]

use perennial::prelude::*;

#[data]
#[derive(Default)]
pub struct Cart;

#[actor]
impl Cart {
    pub fn new() -> Self {
        Self
    }
    pub fn take(self) {}
    pub fn boxed(self: Box<Self>) {}
    pub fn generic<T>(&self, sku: T) {}
    pub fn by_lifetime<'a>(&'a self) {}
    pub const fn constant(&self) {}
    pub unsafe fn dangerous(&self) {}
    pub extern "C" fn foreign(&self) {}
    #[cfg(unix)]
    pub fn sometimes(&self) {}
    pub fn events(&self) {}
    pub fn id(&self) {}
    #[read(stale = "soon")]
    pub fn soon(&self) {}
    #[read(fresh)]
    pub fn fresh(&self) {}
    #[read(stale = "1s")]
    pub fn late(&mut self) {}
}

fn main() {}
