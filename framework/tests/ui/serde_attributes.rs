//! Serde attributes that the compact encoding cannot carry.

#![allow(unused)]

use perennial::prelude::*;

#[data]
#[derive(Default)]
pub struct Line {
    qty: u32,
}

#[data]
#[serde(deny_unknown_fields)]
pub struct Cart {
    #[serde(flatten)]
    line: Line,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
    #[serde(default, skip_serializing)]
    cache: u32,
    #[serde(with = "somewhere")]
    at: u64,
    #[serde(rename(serialize = "a", deserialize = "b"))]
    renamed: u64,
    #[serde(rename = "fine", alias = "old", default)]
    fine: u64,
    #[serde(skip)]
    not_stored: Vec<fn()>,
}

#[data]
#[serde(untagged)]
pub enum Untagged {
    A(u32),
}

#[data]
#[serde(tag = "type", content = "content")]
pub enum Tagged {
    A(u32),
    #[serde(skip)]
    B,
    #[serde(other)]
    C,
}

#[data]
pub struct Pair(#[serde(skip)] u32, u32);

#[data]
#[serde(transparent)]
pub struct Id(u64);

#[data]
#[serde(from = "u64")]
pub struct Converted(u64);

#[data]
#[serde(rename_all = "CamelCase")]
pub struct Cased {
    a: u32,
}

fn main() {}
