//! The cart: what somebody wants to buy, and how it comes from the shelf into an order.

use std::collections::BTreeMap;
use std::time::Duration;

use perennial::prelude::*;

use crate::order::Order;
use crate::stock::{Stock, StockError};

/// Most different articles in a cart: its state is one record of each turn and has to stay small.
pub const LINES_MAX: usize = 64;
/// Most pieces of one article in a cart.
pub const QTY_MAX: u32 = 10_000;
/// A cart nobody touched for this long gives its goods back.
pub const ABANDONED_AFTER: Duration = Duration::from_secs(3600);

/// A line of a cart or an order.
#[data]
pub struct Line {
    /// Pieces, at least one.
    pub qty: u32,
    /// Price of one piece in cents.
    pub cents: u64,
}

impl Line {
    /// Price of the whole line in cents.
    #[must_use]
    pub fn total_cents(&self) -> u64 {
        self.cents.saturating_mul(u64::from(self.qty))
    }
}

/// Why a cart refused. Nothing was changed.
#[data]
#[derive(thiserror::Error)]
pub enum CartError {
    /// The shelf does not have that many.
    #[error("only {left} of {sku} are left")]
    OutOfStock {
        /// Article.
        sku: String,
        /// Pieces that can still be had.
        left: u32,
    },
    /// Zero pieces, or more than [`QTY_MAX`].
    #[error("a line has 1 to {max} pieces")]
    BadQuantity {
        /// The limit.
        max: u32,
    },
    /// The cart has [`LINES_MAX`] different articles already.
    #[error("a cart holds at most {max} different articles")]
    TooManyLines {
        /// The limit.
        max: u32,
    },
    /// The article is not in the cart.
    #[error("{sku} is not in the cart")]
    NotInCart {
        /// Article.
        sku: String,
    },
    /// Nothing to check out.
    #[error("the cart is empty")]
    Empty,
}

/// What a cart tells those who follow it.
#[data]
pub enum CartEvent {
    /// Its lines are different now.
    Changed {
        /// Pieces in it.
        items: u32,
        /// Their price.
        cents: u64,
    },
    /// It became an order and is empty again.
    Ordered {
        /// The order's key.
        order: String,
        /// Its price.
        cents: u64,
    },
}

/// Somebody's cart; its key is who.
///
/// Every piece in it is held by the article's [`Stock`], except for the moment between the two
/// commits of [`Cart::add`]; see there.
#[data]
#[derive(Default)]
pub struct Cart {
    lines: BTreeMap<String, Line>,
    /// Orders made of this cart so far; they are called `KEY-1` to `KEY-n`.
    orders: u32,
}

#[actor(event = CartEvent)]
impl Cart {
    /// Puts pieces of an article into the cart; returns the number of pieces in it.
    ///
    /// Two actors change and no commit spans both, so this is a saga. The stock sets the pieces
    /// aside under a ticket (a nested call: run again after a failover it carries the same request
    /// id and gets the same ticket). The confirmation leaves with the commit of this turn and only
    /// with it. If this turn never commits, nobody confirms and the ticket runs out.
    pub async fn add(
        &mut self,
        ctx: &mut Ctx<Self>,
        sku: String,
        qty: u32,
        cents: u64,
    ) -> Reply<u32, CartError> {
        let full = self.lines.len() >= LINES_MAX && !self.lines.contains_key(&sku);
        if full {
            return Err(CartError::TooManyLines { max: LINES_MAX as u32 }.into());
        }
        checked_qty(qty)?;
        let line = self.lines.entry(sku.clone()).or_insert(Line { qty: 0, cents });
        line.qty = checked_qty(line.qty + qty)?;
        line.cents = cents;
        reserve(ctx, &sku, qty).await?;
        Ok(self.changed(ctx))
    }

    /// Sets how many pieces of an article the cart holds, 0 takes the article out; returns the number
    /// of pieces in the cart.
    pub async fn set_qty(&mut self, ctx: &mut Ctx<Self>, sku: String, qty: u32) -> Reply<u32, CartError> {
        let Some(line) = self.lines.get_mut(&sku) else { return Err(CartError::NotInCart { sku }.into()) };
        let before = line.qty;
        if qty == 0 {
            self.lines.remove(&sku);
        } else {
            line.qty = checked_qty(qty)?;
        }
        if qty > before {
            reserve(ctx, &sku, qty - before).await?;
        } else if qty < before {
            ctx.send(ctx.get::<Stock>(&sku).release(before - qty));
        }
        Ok(self.changed(ctx))
    }

    /// Takes an article out of the cart; returns the number of pieces in it.
    pub fn remove(&mut self, ctx: &mut Ctx<Self>, sku: String) -> Result<u32, CartError> {
        let Some(line) = self.lines.remove(&sku) else { return Err(CartError::NotInCart { sku }) };
        ctx.send(ctx.get::<Stock>(&sku).release(line.qty));
        Ok(self.changed(ctx))
    }

    /// Turns the cart into an order and returns the order's key. Its goods stay held until the order is
    /// shipped or cancelled; see [`Order`].
    pub fn checkout(&mut self, ctx: &mut Ctx<Self>) -> Result<String, CartError> {
        if self.lines.is_empty() {
            return Err(CartError::Empty);
        }
        let cents = self.total_cents();
        let lines = std::mem::take(&mut self.lines);
        self.orders += 1;
        let order = format!("{}-{}", ctx.key(), self.orders);
        ctx.send(ctx.get::<Order>(&order).place(ctx.key().to_owned(), lines));
        ctx.cancel("abandoned");
        ctx.publish(CartEvent::Ordered { order: order.clone(), cents });
        Ok(order)
    }

    /// Empties the cart and gives its goods back. Its own reminder calls this after
    /// [`ABANDONED_AFTER`] without a change.
    pub fn clear(&mut self, ctx: &mut Ctx<Self>) {
        for (sku, line) in std::mem::take(&mut self.lines) {
            ctx.send(ctx.get::<Stock>(&sku).release(line.qty));
        }
        self.changed(ctx);
    }

    /// What is in the cart, by article.
    pub fn lines(&self) -> BTreeMap<String, Line> {
        self.lines.clone()
    }

    /// Price of everything in the cart in cents.
    pub fn total_cents(&self) -> u64 {
        self.lines.values().map(Line::total_cents).sum()
    }

    /// Pieces in the cart.
    pub fn count(&self) -> u32 {
        self.lines.values().map(|line| line.qty).sum()
    }

    /// How many orders were made of this cart.
    pub fn orders(&self) -> u32 {
        self.orders
    }

    /// Starts the hour anew and tells those who follow.
    fn changed(&self, ctx: &mut Ctx<Self>) -> u32 {
        if self.lines.is_empty() {
            ctx.cancel("abandoned");
        } else {
            ctx.schedule("abandoned", ABANDONED_AFTER, ctx.me().clear());
        }
        let items = self.count();
        ctx.publish(CartEvent::Changed { items, cents: self.total_cents() });
        items
    }
}

/// Sets pieces aside and, if this turn commits, confirms them.
async fn reserve(ctx: &mut Ctx<Cart>, sku: &str, qty: u32) -> Reply<(), CartError> {
    let stock = ctx.get::<Stock>(sku);
    let ticket = stock.reserve(qty).await.map_app(|error| match error {
        StockError::OutOfStock { left } => CartError::OutOfStock { sku: sku.to_owned(), left },
        StockError::NotHeld { .. } => CartError::NotInCart { sku: sku.to_owned() },
    })?;
    ctx.send(stock.confirm(ticket, qty));
    Ok(())
}

fn checked_qty(qty: u32) -> Result<u32, CartError> {
    if (1..=QTY_MAX).contains(&qty) { Ok(qty) } else { Err(CartError::BadQuantity { max: QTY_MAX }) }
}
