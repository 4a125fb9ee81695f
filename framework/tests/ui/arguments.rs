//! Arguments travel between nodes.

#![allow(unused)]

use perennial::prelude::*;

#[data]
#[derive(Default)]
pub struct Cart;

#[actor]
impl Cart {
    pub fn text(&self, sku: &str) {}
    pub fn slice(&self, skus: &[u32]) {}
    pub fn other(&self, cart: &Cart) {}
    pub fn nested(&self, skus: Vec<&str>) {}
    pub fn lifetime(&self, sku: std::borrow::Cow<'_, str>) {}
    pub fn abstracted(&self, sku: impl Into<String>) {}
    pub fn pattern(&self, (a, b): (u32, u32)) {}
    pub fn nameless(&self, _: u32) {}
    pub fn answer(&self) -> &str {
        ""
    }
    pub fn abstract_answer(&self) -> impl Into<String> {
        ""
    }
    pub fn one_type(&self) -> std::fmt::Result {
        Ok(())
    }
    pub fn seventeen(
        &self,
        a: u8, b: u8, c: u8, d: u8, e: u8, f: u8, g: u8, h: u8, i: u8, j: u8, k: u8, l: u8, m: u8, n: u8,
        o: u8, p: u8, q: u8,
    ) {
    }
    pub fn fine(&mut self, sku: String) {}
    fn private(&self, sku: &str) {}
    pub(crate) fn in_crate(sku: &str) {}
}

fn reference(cart: CartRef) {
    let _call = cart.fine(String::new());
}

fn main() {}
