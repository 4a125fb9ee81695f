//! Orders: what a cart became. Written once, by the message its checkout sent.

use std::collections::BTreeMap;

use perennial::prelude::*;

use crate::cart::Line;

/// What was ordered.
#[data]
pub struct Receipt {
    /// The cart it was.
    pub cart: String,
    /// Lines by article.
    pub lines: BTreeMap<String, Line>,
    /// Price in cents.
    pub cents: u64,
    /// When, in milliseconds since the Unix epoch.
    pub at: u64,
}

/// One order; its key is the number [`Cart::checkout`](crate::Cart::checkout) returned.
#[data]
#[derive(Default)]
pub struct Order {
    receipt: Option<Receipt>,
}

#[actor]
impl Order {
    /// Writes the order down. An order that is placed stays as it is.
    pub fn place(&mut self, ctx: &mut Ctx<Self>, cart: String, lines: BTreeMap<String, Line>) {
        let cents = lines.values().map(Line::total_cents).sum();
        self.receipt.get_or_insert(Receipt { cart, lines, cents, at: ctx.now().0 });
    }

    /// The order; `None` before it is placed.
    pub fn receipt(&self) -> Option<Receipt> {
        self.receipt.clone()
    }
}
