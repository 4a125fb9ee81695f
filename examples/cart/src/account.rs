//! Accounts: what a customer can spend.

use perennial::prelude::*;

use crate::order::Order;

/// What an account that nobody has paid into can spend, in cents, so that the example can be tried at once.
pub const OPENING_CREDIT: u64 = 40_000;

/// How an account stands.
#[data]
#[derive(Eq)]
pub struct Statement {
    /// What can be spent, in cents.
    pub credit: u64,
    /// What orders have cost so far, in cents.
    pub spent: u64,
}

/// A customer's account; its key is that of the cart.
///
/// Invariant: `credit + spent` is what was ever put in.
#[data]
pub struct Account {
    credit: u64,
    spent: u64,
}

impl Default for Account {
    fn default() -> Self {
        Self { credit: OPENING_CREDIT, spent: 0 }
    }
}

#[actor]
impl Account {
    /// Puts money in; returns what can be spent now.
    pub fn deposit(&mut self, cents: u64) -> u64 {
        self.credit = self.credit.saturating_add(cents);
        self.credit
    }

    /// Pays for an order if there is enough, and tells it. To have too little is an answer and no error: an
    /// error of a message is for an operator to look at.
    pub fn charge(&mut self, ctx: &mut Ctx<Self>, order: String, cents: u64) {
        let order = ctx.get::<Order>(&order);
        match self.credit.checked_sub(cents) {
            Some(left) => {
                self.credit = left;
                self.spent += cents;
                ctx.send(order.paid());
            }
            None => ctx.send(order.declined()),
        }
    }

    /// Takes back what was paid for an order.
    pub fn refund(&mut self, cents: u64) {
        self.spent = self.spent.saturating_sub(cents);
        self.credit = self.credit.saturating_add(cents);
    }

    /// How it stands.
    pub fn statement(&self) -> Statement {
        Statement { credit: self.credit, spent: self.spent }
    }
}
