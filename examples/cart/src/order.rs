//! Orders: what a cart became, and the saga that brings it to the customer or takes it all back.

use std::collections::BTreeMap;

use perennial::prelude::*;

use crate::account::Account;
use crate::cart::Line;
use crate::depot::{DEPOT, Depot};
use crate::stock::Stock;

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
    /// How far it has come.
    pub stage: Stage,
}

/// How far an order has come.
#[data]
#[derive(Eq)]
pub enum Stage {
    /// The account is asked for the money.
    Paying,
    /// The money is there, the depot is asked to send the parcel.
    Shipping,
    /// It is on its way; the goods are sold.
    Shipped,
    /// Nothing came of it: the goods are back on their shelves, and the money in the account.
    Cancelled(Cancelled),
}

/// Why nothing came of an order.
#[data]
#[derive(Eq)]
pub enum Cancelled {
    /// The account does not have that much.
    NoCredit,
    /// The depot does not send parcels that large.
    TooLarge,
}

/// One order; its key is the number [`Cart::checkout`](crate::Cart::checkout) returned.
///
/// Its goods are held by their shelves until it is shipped or cancelled. Each step is a message that the step
/// before sent with its own commit, and so is each answer; so whatever node dies, the next step comes, once.
/// A step that is refused has the ones before it undone: that is the whole saga.
///
/// ```text
/// place ─ charge ─▶ Account ─ paid ────▶ ship ─▶ Depot ─ shipped ─▶ sell the goods
///                      └───── declined ─▶ release the goods  └ unshippable ─▶ refund, release the goods
/// ```
#[data]
#[derive(Default)]
pub struct Order {
    receipt: Option<Receipt>,
}

#[actor]
impl Order {
    /// Writes the order down and asks for the money. An order that is placed stays as it is.
    pub fn place(&mut self, ctx: &mut Ctx<Self>, cart: String, lines: BTreeMap<String, Line>) {
        if self.receipt.is_some() {
            return;
        }
        let cents = lines.values().map(Line::total_cents).fold(0, u64::saturating_add);
        ctx.send(ctx.get::<Account>(&cart).charge(ctx.key().to_owned(), cents));
        self.receipt = Some(Receipt { cart, lines, cents, at: ctx.now().0, stage: Stage::Paying });
    }

    /// The account has paid.
    pub fn paid(&mut self, ctx: &mut Ctx<Self>) {
        let Some(receipt) = self.step(&Stage::Paying, Stage::Shipping) else { return };
        let pieces = receipt.lines.values().map(|line| line.qty).fold(0, u32::saturating_add);
        ctx.send(ctx.get::<Depot>(DEPOT).ship(ctx.key().to_owned(), pieces));
    }

    /// The account has not enough: the goods go back.
    pub fn declined(&mut self, ctx: &mut Ctx<Self>) {
        let Some(receipt) = self.step(&Stage::Paying, Stage::Cancelled(Cancelled::NoCredit)) else { return };
        release(ctx, receipt);
    }

    /// The parcel is on its way: the goods are sold.
    pub fn shipped(&mut self, ctx: &mut Ctx<Self>) {
        let Some(receipt) = self.step(&Stage::Shipping, Stage::Shipped) else { return };
        for (sku, line) in &receipt.lines {
            ctx.send(ctx.get::<Stock>(sku).sell(line.qty));
        }
    }

    /// The depot does not send it: the money goes back, and the goods do.
    pub fn unshippable(&mut self, ctx: &mut Ctx<Self>) {
        let Some(receipt) = self.step(&Stage::Shipping, Stage::Cancelled(Cancelled::TooLarge)) else {
            return;
        };
        ctx.send(ctx.get::<Account>(&receipt.cart).refund(receipt.cents));
        release(ctx, receipt);
    }

    /// The order; `None` before it is placed.
    pub fn receipt(&self) -> Option<Receipt> {
        self.receipt.clone()
    }

    /// Goes from one stage to the next; nothing if it is at another one.
    fn step(&mut self, from: &Stage, to: Stage) -> Option<&Receipt> {
        let receipt = self.receipt.as_mut().filter(|receipt| receipt.stage == *from)?;
        receipt.stage = to;
        Some(receipt)
    }
}

fn release(ctx: &mut Ctx<Order>, receipt: &Receipt) {
    for (sku, line) in &receipt.lines {
        ctx.send(ctx.get::<Stock>(sku).release(line.qty));
    }
}
