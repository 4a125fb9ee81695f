//! Who shuts purses, and looks after the dead letters that come of it.
//!
//! Owns one client's calls, which follow from a seed of their own.

use std::sync::Arc;
use std::time::Duration;

use perennial::dead::DeadFilter;
use perennial::{Actors, Client, Fault};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::app::Purse;
use super::load::{CALL_TIMEOUT, OTHERS, Shared, outcome};

/// Longest pause between two things done, in milliseconds.
const PAUSE_MS_MAX: u64 = 300;
/// Dead letters looked at.
const LETTERS: usize = 20;

/// Shuts and opens purses, sends dead letters again and drops some, until it is told to stop.
pub async fn operate(client: Client, seed: u64, shared: Arc<Shared>) {
    let mut random = StdRng::seed_from_u64(seed);
    let dead = client.dead_letters();
    while !shared.stopped() {
        if random.random_bool(0.5) {
            let purse = client.get::<Purse>(format!("p{}", random.random_range(0..OTHERS)));
            let told = purse.set_shut(random.random_bool(0.4)).timeout(CALL_TIMEOUT).await;
            outcome(told, |()| 0, &shared);
        } else {
            let list = dead.list(&DeadFilter::default(), LETTERS).await.letters;
            let drops = random.random_bool(0.2);
            if !list.is_empty() {
                let id = list[random.random_range(0..list.len())].id;
                let told = if drops { dead.drop(id).await } else { dead.retry(id).await };
                // One that is gone was taken by an attempt before, whose outcome was not known.
                if !matches!(told, Err(Fault::NoDeadLetter { .. })) {
                    outcome(told, |()| 0, &shared);
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(0..PAUSE_MS_MAX))).await;
    }
}
