//! Stateless workers and their callers.
//!
//! A porter increases a counter for whoever calls it and holds nothing. A call that may have run is not made
//! again, so each increases its counter once, or not at all, or nobody knows.

use std::sync::Arc;
use std::time::Duration;

use perennial::Client;
use perennial::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::app::Counter;
use super::load::{CALL_TIMEOUT, Shared, Told, outcome};

/// Counters that porters increase.
const CARRIED: u64 = 3;
/// Longest pause between calls, in milliseconds.
const PAUSE_MS_MAX: u64 = 120;

/// Increases counters.
#[data]
#[derive(Default)]
pub struct Porter;

#[actor(stateless, concurrency = 2)]
impl Porter {
    /// Has a counter increased; returns its sum.
    pub async fn carry(&self, ctx: &Ctx<Self>, counter: String) -> Result<i64, Fault> {
        ctx.get::<Counter>(&counter).increment().await
    }
}

/// Calls porters until it is told to stop.
pub async fn drive(client: Client, seed: u64, shared: Arc<Shared>) {
    let mut random = StdRng::seed_from_u64(seed);
    while !shared.stopped() {
        let number = random.random_range(0..CARRIED);
        let call = client.pool::<Porter>().carry(format!("w{number}")).timeout(CALL_TIMEOUT).await;
        let outcome = outcome(call, |sum| sum, &shared);
        shared.heard(|heard| heard.carried.push(Told { actor: format!("w{number}"), number, outcome }));
        tokio::time::sleep(Duration::from_millis(random.random_range(0..PAUSE_MS_MAX))).await;
    }
}

/// Reads the counters of porters; `None` when one of the calls failed.
pub async fn read_books(client: &Client) -> Option<Vec<(String, i64)>> {
    let mut books = Vec::new();
    for number in 0..CARRIED {
        let counter = format!("w{number}");
        let sum = client.get::<Counter>(&counter).value().timeout(CALL_TIMEOUT).await.ok()?;
        books.push((counter, sum));
    }
    Some(books)
}
