//! What is stored or sent has `#[data]`.

#![allow(unused)]

use perennial::prelude::*;

pub struct Line;

#[data]
#[derive(Default)]
pub struct Stock(u32);

#[actor]
impl Stock {
    pub fn put(&mut self, line: Line) {}
    pub fn get(&self) -> Line {
        Line
    }
    pub fn check(&self) -> Result<u32, std::fmt::Error> {
        Ok(0)
    }
}

fn main() {}
