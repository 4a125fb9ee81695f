//! What `#[data]` stands on.

#![allow(unused)]

use perennial::prelude::*;

#[data]
pub union Either {
    a: u32,
    b: f32,
}

#[data]
pub struct Generic<T> {
    a: T,
}

#[data]
pub struct Borrowed<'a> {
    a: &'a str,
}

#[data(version = 2)]
pub struct Optioned;

#[data]
pub struct Conditional {
    a: u32,
    #[cfg(unix)]
    b: u32,
}

fn main() {}
