//! What `#[data]` says about fields that are given up.

#![allow(unused)]

use perennial::prelude::*;

#[data(removed(kept))]
pub struct Kept {
    kept: u32,
}

#[data(removed(field))]
pub enum WithoutVariant {
    One { other: u32 },
}

#[data(removed(Variant.field))]
pub struct WithVariant {
    other: u32,
}

#[data(removed("quoted"))]
pub struct Quoted;

fn main() {}
