//! What `#[data]` says about states that were something else before.

#![allow(unused)]

use perennial::prelude::*;

#[data]
pub struct CartV1 {
    total: u32,
}

#[data(upgrade_from = CartV1)]
pub struct Unconverted {
    total: u64,
}

pub struct NoData;

#[data(upgrade_from = NoData)]
pub struct FromNoData;

impl From<NoData> for FromNoData {
    fn from(_: NoData) -> Self {
        Self
    }
}

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
