//! The shelf of one article: what is there, set aside, held by carts, and sold.

use std::collections::BTreeMap;
use std::time::Duration;

use perennial::prelude::*;

/// What lies on a shelf that nobody has filled yet, so that the example can be tried at once.
pub const OPENING_STOCK: u32 = 100;
/// A ticket that no cart has confirmed by then is void and its goods go back on the shelf. Longer than
/// any caller keeps retrying.
pub const TICKET_VALID: Duration = Duration::from_secs(120);

/// Why a shelf refused. Nothing was changed.
#[data]
#[derive(thiserror::Error)]
pub enum StockError {
    /// Fewer pieces are left than were asked for.
    #[error("only {left} are left")]
    OutOfStock {
        /// Pieces that can still be had.
        left: u32,
    },
    /// Fewer pieces are held by carts than were to be given back or sold.
    #[error("only {held} are held by carts")]
    NotHeld {
        /// Pieces held by carts.
        held: u64,
    },
}

/// How an article stands.
#[data]
#[derive(Default, Eq)]
pub struct Level {
    /// Pieces on the shelf; negative: promised beyond what there is, see [`Stock::confirm`].
    pub available: i64,
    /// Pieces under a ticket.
    pub pending: u64,
    /// Pieces in carts, and in orders that are not shipped yet.
    pub held: u64,
    /// Pieces in orders that were shipped.
    pub sold: u64,
}

/// The shelf of one article; its key is the article.
///
/// Invariant: `available + pending + held + sold` is what was ever put on the shelf.
#[data]
pub struct Stock {
    available: i64,
    pending: BTreeMap<u64, u32>,
    held: u64,
    sold: u64,
    /// Number of the last ticket.
    tickets: u64,
}

impl Default for Stock {
    fn default() -> Self {
        Self { available: OPENING_STOCK.into(), pending: BTreeMap::new(), held: 0, sold: 0, tickets: 0 }
    }
}

#[actor]
impl Stock {
    /// Puts pieces on the shelf; returns what can be had now.
    pub fn restock(&mut self, qty: u32) -> i64 {
        self.available += i64::from(qty);
        self.available
    }

    /// Sets pieces aside and returns the number of the ticket, which [`Stock::confirm`] wants within
    /// [`TICKET_VALID`].
    pub fn reserve(&mut self, ctx: &mut Ctx<Self>, qty: u32) -> Result<u64, StockError> {
        if self.available < i64::from(qty) {
            let left = u32::try_from(self.available.max(0)).unwrap_or(u32::MAX);
            return Err(StockError::OutOfStock { left });
        }
        self.available -= i64::from(qty);
        self.tickets += 1;
        let ticket = self.tickets;
        self.pending.insert(ticket, qty);
        ctx.schedule(reminder(ticket), TICKET_VALID, ctx.me().expire(ticket));
        Ok(ticket)
    }

    /// The cart that asked has committed: the goods under the ticket are held by it now.
    ///
    /// A ticket that ran out before is honoured as well, for the customer has seen the goods in the
    /// cart: the shelf may go below zero then, and nothing can be reserved until it is filled.
    pub fn confirm(&mut self, ctx: &mut Ctx<Self>, ticket: u64, qty: u32) {
        if self.pending.remove(&ticket).is_some() {
            ctx.cancel(reminder(ticket));
        } else {
            self.available -= i64::from(qty);
        }
        self.held += u64::from(qty);
    }

    /// Puts the goods of an unconfirmed ticket back on the shelf.
    pub fn expire(&mut self, ticket: u64) {
        if let Some(qty) = self.pending.remove(&ticket) {
            self.available += i64::from(qty);
        }
    }

    /// A cart or an order gives goods back.
    pub fn release(&mut self, qty: u32) -> Result<(), StockError> {
        self.take_held(qty)?;
        self.available += i64::from(qty);
        Ok(())
    }

    /// An order was shipped.
    pub fn sell(&mut self, qty: u32) -> Result<(), StockError> {
        self.take_held(qty)?;
        self.sold += u64::from(qty);
        Ok(())
    }

    /// Pieces that can be had.
    pub fn available(&self) -> i64 {
        self.available
    }

    /// Everything about the article.
    pub fn level(&self) -> Level {
        Level {
            available: self.available,
            pending: self.pending.values().map(|&qty| u64::from(qty)).sum(),
            held: self.held,
            sold: self.sold,
        }
    }

    fn take_held(&mut self, qty: u32) -> Result<(), StockError> {
        let held = self.held;
        self.held = held.checked_sub(qty.into()).ok_or(StockError::NotHeld { held })?;
        Ok(())
    }
}

fn reminder(ticket: u64) -> String {
    format!("ticket {ticket}")
}
