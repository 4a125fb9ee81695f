//! The shop under load, with a ledger that tells every single lost or doubled turn.
//!
//! Each shopper is the only one to use its cart and puts in one piece at a time, so it knows what each
//! answer has to be; afterwards carts, orders and shelves are read back and must add up. Never decides
//! when nodes die. The method (keep a ledger outside, compare at the end) is Jepsen's bank test.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt, stream};
use perennial::actor::BoxFuture;
use perennial::call::ActorId;
use perennial::error::Applied;
use perennial::prelude::*;
use perennial_runtime::workload::{
    LoadContext, LoadReport, RunningLoad, SETTLE_MAX, SETTLE_PAUSE, Workload, insist,
};
use tokio::task::JoinHandle;

use crate::{Account, Cart, CartRef, Level, Line, OPENING_CREDIT, Order, Receipt, Stage, Stock};

/// Shelves that all shoppers share: few, so that many carts meet at each.
const SHELVES: usize = 8;
/// Pieces on each shelf; more than any run can take.
const SHELF_PIECES: u32 = 1_000_000_000;
/// A shopper checks out after this many pieces; each third time after more than fit into a parcel. As an account
/// pays for a few orders only, all ways that an order can go are gone.
const PIECES_PER_ORDER: u32 = 25;
const PIECES_TOO_MANY: u32 = 45;
/// Price of everything, in cents.
const CENTS: u64 = 250;
/// How long a shopper waits after a fault.
const FAULT_PAUSE: Duration = Duration::from_millis(20);
/// Carts read back at a time.
const READERS: usize = 32;

/// Shoppers that fill their carts and check out.
#[derive(Debug, Clone, Copy, Default)]
pub struct CartLoad;

impl Workload for CartLoad {
    fn name(&self) -> &'static str {
        "carts"
    }

    fn start(&self, ctx: LoadContext) -> Box<dyn RunningLoad> {
        Box::new(Running { ctx: ctx.clone(), shopping: tokio::spawn(shop(ctx)) })
    }
}

struct Running {
    ctx: LoadContext,
    shopping: JoinHandle<Result<Shopped, Fault>>,
}

/// What the shoppers leave for the reader.
struct Shopped {
    /// What was ever put on each shelf.
    stocked: Vec<i64>,
    ledgers: Vec<Ledger>,
}

impl RunningLoad for Running {
    fn finish(self: Box<Self>) -> BoxFuture<'static, Result<LoadReport, Fault>> {
        Box::pin(async move {
            let shopped = self.shopping.await.expect("a shopper panics only over a broken rule")?;
            read_back(&self.ctx, shopped).await
        })
    }
}

/// What one shopper knows of its cart.
struct Ledger {
    key: String,
    /// Pieces acknowledged, by shelf.
    acked: [u64; SHELVES],
    /// Pieces whose outcome is not known, by shelf.
    unknown: [u64; SHELVES],
    orders_acked: u32,
    orders_unknown: u32,
    /// What the next answer is measured by; `None` once an order of unknown outcome makes it a guess.
    expected: Option<Expected>,
    /// Turns the answers showed to be missing or doubled.
    lost: u64,
    doubled: u64,
    /// Refusals by the application; the load gives no reason for one.
    refused: u64,
}

struct Expected {
    /// Pieces in the cart by the last answer.
    count: u32,
    /// Adds of unknown outcome that no answer has shown yet.
    floating: u32,
}

impl Ledger {
    fn new(key: String) -> Self {
        Self {
            key,
            acked: [0; SHELVES],
            unknown: [0; SHELVES],
            orders_acked: 0,
            orders_unknown: 0,
            expected: Some(Expected { count: 0, floating: 0 }),
            lost: 0,
            doubled: 0,
            refused: 0,
        }
    }

    fn added(&mut self, shelf: usize, answer: Result<u32, CallError<crate::CartError>>) {
        match answer {
            Ok(count) => {
                self.acked[shelf] += 1;
                let Some(expected) = &mut self.expected else { return };
                let least = expected.count + 1;
                let beyond = count.saturating_sub(least);
                let shown = beyond.min(expected.floating);
                self.lost += u64::from(least.saturating_sub(count));
                self.doubled += u64::from(beyond - shown);
                *expected = Expected { count, floating: expected.floating - shown };
            }
            Err(CallError::App(_)) => self.refused += 1,
            Err(CallError::Fault(fault)) if fault.applied() == Applied::Unknown => {
                self.unknown[shelf] += 1;
                if let Some(expected) = &mut self.expected {
                    expected.floating += 1;
                }
            }
            Err(CallError::Fault(_)) => {}
        }
    }

    fn ordered(&mut self, answer: Result<String, CallError<crate::CartError>>) {
        match answer {
            Ok(_) => {
                self.orders_acked += 1;
                if let Some(expected) = &mut self.expected {
                    expected.count = 0;
                }
            }
            // After an order of unknown outcome the cart may well be empty.
            Err(CallError::App(_)) => self.refused += u64::from(self.expected.is_some()),
            Err(CallError::Fault(fault)) if fault.applied() == Applied::Unknown => {
                self.orders_unknown += 1;
                self.expected = None;
            }
            Err(CallError::Fault(_)) => {}
        }
    }

    /// Turns missing and turns too many, by what was read back; never less than the answers showed.
    fn judge(&self, read: &ReadBack) -> (u64, u64) {
        let counts = (0..SHELVES)
            .map(|n| (self.acked[n], self.unknown[n], read.in_cart[n] + read.in_orders[n]))
            .chain([(self.orders_acked.into(), self.orders_unknown.into(), read.orders.into())]);
        let (mut lost, mut doubled) = (0, 0);
        for (acked, unknown, found) in counts {
            lost += acked.saturating_sub(found);
            doubled += found.saturating_sub(acked + unknown);
        }
        (lost.max(self.lost), doubled.max(self.doubled))
    }
}

fn shelf_key(seed: u64, shelf: usize) -> String {
    format!("load-{seed:x}-{shelf}")
}

/// Fills the shelves, then lets everybody shop until the stop.
async fn shop(ctx: LoadContext) -> Result<Shopped, Fault> {
    let mut stocked = Vec::with_capacity(SHELVES);
    for shelf in 0..SHELVES {
        let stock = ctx.client.get::<Stock>(shelf_key(ctx.seed, shelf));
        insist(|| stock.restock(SHELF_PIECES)).await?;
        stocked.push(total(&insist(|| stock.level()).await?));
    }
    let shoppers: Vec<_> = (0..ctx.clients).map(|n| tokio::spawn(shopper(ctx.clone(), n))).collect();
    let mut ledgers = Vec::with_capacity(shoppers.len());
    for shopper in shoppers {
        ledgers.push(shopper.await.expect("a shopper panics only over a broken rule"));
    }
    Ok(Shopped { stocked, ledgers })
}

async fn shopper(ctx: LoadContext, number: usize) -> Ledger {
    let mut ledger = Ledger::new(format!("load-{:x}-{number}", ctx.seed));
    let id = ActorId::new(Cart::KIND, &ledger.key).expect("a short key is valid");
    let cart = ctx.client.get::<Cart>(&ledger.key);
    let (mut step, mut pieces, mut orders) = (number, 0, 0);
    while !ctx.stop.is_cancelled() {
        let enough = if orders % 3 == 2 { PIECES_TOO_MANY } else { PIECES_PER_ORDER };
        let failed = if pieces < enough {
            let shelf = step % SHELVES;
            step += 1;
            let answer = ctx.probe.call(&id, cart.add(shelf_key(ctx.seed, shelf), 1, CENTS)).await;
            let failed = answer.is_err();
            pieces += u32::from(!failed);
            ledger.added(shelf, answer);
            failed
        } else {
            let answer = ctx.probe.call(&id, cart.checkout()).await;
            let failed = answer.is_err();
            pieces = 0;
            orders += 1;
            ledger.ordered(answer);
            failed
        };
        if failed {
            tokio::time::sleep(FAULT_PAUSE).await;
        }
    }
    ledger
}

/// What a cart and its orders hold, in pieces by shelf.
struct ReadBack {
    in_cart: [u64; SHELVES],
    in_orders: [u64; SHELVES],
    /// Of these, in orders that were shipped.
    shipped: [u64; SHELVES],
    orders: u32,
    parcels: u32,
    /// Orders that are neither shipped nor cancelled after a long wait.
    unfinished: u32,
    /// By how many cents the account does not agree with the orders.
    cents_off: u64,
}

async fn read_back(ctx: &LoadContext, shopped: Shopped) -> Result<LoadReport, Fault> {
    let keys: Vec<_> = shopped.ledgers.iter().map(|ledger| ledger.key.clone()).collect();
    let read: Vec<ReadBack> =
        stream::iter(keys).map(|key| read_cart(ctx, key)).buffered(READERS).try_collect().await?;

    let mut report = LoadReport::default();
    let mut refused = 0;
    for (ledger, read) in shopped.ledgers.iter().zip(&read) {
        let (lost, doubled) = ledger.judge(read);
        report.acknowledged += ledger.acked.iter().sum::<u64>() + u64::from(ledger.orders_acked);
        report.unknown += ledger.unknown.iter().sum::<u64>() + u64::from(ledger.orders_unknown);
        report.lost += lost;
        report.doubled += doubled;
        refused += ledger.refused;
    }
    let mut mismatches = 0;
    for (shelf, &stocked) in shopped.stocked.iter().enumerate() {
        let held = read.iter().map(|read| read.in_cart[shelf]).sum();
        let sold = read.iter().map(|read| read.shipped[shelf]).sum();
        let (level, off) = settle_shelf(ctx, shelf, stocked, held, sold).await?;
        if off > 0 {
            let key = shelf_key(ctx.seed, shelf);
            let should = format!("{held} held, {sold} sold, {stocked} in all");
            report.notes.push(format!("Stock/{key} has {level:?} and should have {should}"));
        }
        mismatches += off;
    }
    let orders: u64 = read.iter().map(|read| u64::from(read.orders)).sum();
    let parcels: u64 = read.iter().map(|read| u64::from(read.parcels)).sum();
    let unfinished: u64 = read.iter().map(|read| u64::from(read.unfinished)).sum();
    let cents_off = read.iter().map(|read| read.cents_off).sum();
    Ok(report
        .told("orders", orders)
        .told("orders shipped", parcels)
        .told("orders cancelled", orders - parcels - unfinished)
        .zero("orders unfinished", unfinished)
        .zero("stock mismatches", mismatches)
        .zero("cents missing or too many", cents_off)
        .zero("refused", refused))
}

async fn read_cart(ctx: &LoadContext, key: String) -> Result<ReadBack, Fault> {
    let cart: CartRef = ctx.client.get::<Cart>(&key);
    let in_cart = by_shelf(ctx.seed, &insist(|| cart.lines()).await?);
    let orders = insist(|| cart.orders()).await?;
    let (mut in_orders, mut shipped) = ([0; SHELVES], [0; SHELVES]);
    let (mut parcels, mut unfinished, mut cents) = (0, 0, 0);
    let deadline = Instant::now() + SETTLE_MAX;
    for number in 1..=orders {
        let order = ctx.client.get::<Order>(format!("{key}-{number}"));
        // Messages of it may still be on their way; an order that never comes is missing.
        let receipt: Option<Receipt> = loop {
            let receipt = insist(|| order.receipt()).await?;
            let under_way = receipt
                .as_ref()
                .is_none_or(|receipt| matches!(receipt.stage, Stage::Paying | Stage::Shipping));
            if !under_way || Instant::now() >= deadline {
                break receipt;
            }
            tokio::time::sleep(SETTLE_PAUSE).await;
        };
        let lines = receipt.as_ref().map(|receipt| receipt.lines.clone()).unwrap_or_default();
        let parcel = receipt.as_ref().is_some_and(|receipt| receipt.stage == Stage::Shipped);
        parcels += u32::from(parcel);
        cents += receipt.as_ref().filter(|_| parcel).map_or(0, |receipt| receipt.cents);
        unfinished += u32::from(!matches!(
            receipt.map(|receipt| receipt.stage),
            Some(Stage::Shipped | Stage::Cancelled(_))
        ));
        for (shelf, pieces) in by_shelf(ctx.seed, &lines).into_iter().enumerate() {
            in_orders[shelf] += pieces;
            shipped[shelf] += if parcel { pieces } else { 0 };
        }
    }
    let cents_off = settle_account(ctx, &key, cents).await?;
    Ok(ReadBack { in_cart, in_orders, shipped, orders, parcels, unfinished, cents_off })
}

fn by_shelf(seed: u64, lines: &BTreeMap<String, Line>) -> [u64; SHELVES] {
    std::array::from_fn(|shelf| lines.get(&shelf_key(seed, shelf)).map_or(0, |line| line.qty.into()))
}

/// Waits until an account agrees with its orders; returns by how many cents it does not.
async fn settle_account(ctx: &LoadContext, key: &str, cents: u64) -> Result<u64, Fault> {
    let account = ctx.client.get::<Account>(key);
    let deadline = Instant::now() + SETTLE_MAX;
    loop {
        let statement = insist(|| account.statement()).await?;
        let all = statement.credit + statement.spent;
        let off = statement.spent.abs_diff(cents) + all.abs_diff(OPENING_CREDIT);
        if off == 0 || Instant::now() >= deadline {
            return Ok(off);
        }
        tokio::time::sleep(SETTLE_PAUSE).await;
    }
}

/// Waits until a shelf agrees with the carts and orders; returns how it stands in the end and by how
/// many pieces it does not agree.
async fn settle_shelf(
    ctx: &LoadContext,
    shelf: usize,
    stocked: i64,
    held: u64,
    sold: u64,
) -> Result<(Level, u64), Fault> {
    let stock = ctx.client.get::<Stock>(shelf_key(ctx.seed, shelf));
    let deadline = Instant::now() + SETTLE_MAX;
    loop {
        let level = insist(|| stock.level()).await?;
        let off = level.held.abs_diff(held) + level.sold.abs_diff(sold) + total(&level).abs_diff(stocked);
        if off == 0 || Instant::now() >= deadline {
            return Ok((level, off));
        }
        tokio::time::sleep(SETTLE_PAUSE).await;
    }
}

fn total(level: &Level) -> i64 {
    level.available + (level.pending + level.held + level.sold) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timed_out() -> Fault {
        Fault::TimedOut { actor: "Cart/a".into() }
    }

    fn read(pieces: u64, orders: u32) -> ReadBack {
        let mut in_cart = [0; SHELVES];
        in_cart[0] = pieces;
        let none = [0; SHELVES];
        ReadBack { in_cart, in_orders: none, shipped: none, orders, parcels: 0, unfinished: 0, cents_off: 0 }
    }

    #[test]
    fn a_lost_turn_shows_in_the_next_answer_and_is_counted_once() {
        let mut ledger = Ledger::new("a".into());
        ledger.added(0, Ok(1));
        ledger.added(0, Ok(2));
        ledger.added(0, Ok(2));
        assert_eq!((ledger.lost, ledger.doubled), (1, 0));
        assert_eq!(ledger.judge(&read(2, 0)), (1, 0));
    }

    #[test]
    fn a_lost_and_a_doubled_turn_do_not_hide_each_other() {
        let mut ledger = Ledger::new("a".into());
        ledger.added(0, Ok(1));
        ledger.added(0, Ok(3));
        ledger.added(0, Ok(3));
        assert_eq!(ledger.judge(&read(3, 0)), (1, 1));
    }

    #[test]
    fn a_turn_of_unknown_outcome_may_show_late_or_never() {
        let mut ledger = Ledger::new("a".into());
        ledger.added(0, Ok(1));
        ledger.added(0, Err(timed_out().into()));
        ledger.added(0, Ok(2));
        ledger.added(0, Ok(4));
        assert_eq!(ledger.judge(&read(4, 0)), (0, 0));
        assert_eq!(ledger.judge(&read(3, 0)), (0, 0));
        assert_eq!(ledger.judge(&read(5, 0)), (0, 1));
    }

    #[test]
    fn an_order_empties_the_cart_and_must_be_found() {
        let mut ledger = Ledger::new("a".into());
        ledger.added(0, Ok(1));
        ledger.ordered(Ok("a-1".into()));
        ledger.added(0, Ok(1));
        assert_eq!(ledger.judge(&read(2, 1)), (0, 0));
        assert_eq!(ledger.judge(&read(2, 0)), (1, 0));
        assert_eq!(ledger.judge(&read(2, 2)), (0, 1));
    }
}
