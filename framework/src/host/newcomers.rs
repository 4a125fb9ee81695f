//! How many actors may come into being at once.
//!
//! Owns the allowance of a node for actors that have no row yet, shared by its hosts. Who makes keys up can
//! make activations without end; this bounds how fast, [`ACTIVATIONS_MAX`] how many. Calls of actors that
//! have a row or are in memory take nothing from it, and neither do messages and reminders: they were
//! promised with a commit. Source: the token bucket of RFC 2698, with one rate.

use std::sync::Mutex;
use std::time::Instant;

use crate::link::lock;

/// Actors without a row that calls may wake on a node, per second.
pub const NEW_ACTORS_PER_SECOND_MAX: u64 = 20_000;
/// Actors without a row that calls may wake at once, after a second without any.
pub const NEW_ACTORS_BURST_MAX: u64 = 2 * NEW_ACTORS_PER_SECOND_MAX;
/// Actors of a partition in memory. With as many, those that are idle leave; if none is, no other comes in.
pub const ACTIVATIONS_MAX: usize = 128 * 1024;

/// The allowance. It goes by time that only passes: record time stands still after a clock that was ahead.
#[derive(Debug, Default)]
pub(crate) struct Newcomers(Mutex<Option<Bucket>>);

/// Invariant: `left` is at most [`NEW_ACTORS_BURST_MAX`] thousandfold.
#[derive(Debug)]
struct Bucket {
    /// The first time that one was asked for.
    began: Instant,
    /// Milliseconds from then on that are counted.
    counted: u64,
    /// In thousandths, so that a millisecond adds a whole number.
    left: u64,
}

impl Newcomers {
    /// Takes one from the allowance at `now`; false when there is none.
    pub(super) fn take(&self, now: Instant) -> bool {
        let full = NEW_ACTORS_BURST_MAX * 1000;
        let mut bucket = lock(&self.0);
        let bucket = bucket.get_or_insert(Bucket { began: now, counted: 0, left: full });
        let passed = u64::try_from(now.saturating_duration_since(bucket.began).as_millis());
        // Hosts that ask at the same moment may do so in either order.
        let passed = passed.unwrap_or(u64::MAX).max(bucket.counted);
        let gained = (passed - bucket.counted).saturating_mul(NEW_ACTORS_PER_SECOND_MAX);
        bucket.counted = passed;
        bucket.left = bucket.left.saturating_add(gained).min(full);
        let taken = bucket.left.checked_sub(1000);
        bucket.left = taken.unwrap_or(bucket.left);
        taken.is_some()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_allowance_comes_back_with_time_up_to_a_burst() {
        let (newcomers, start) = (Newcomers::default(), Instant::now());
        let taken = |ms| {
            let now = start + Duration::from_millis(ms);
            (0..3 * NEW_ACTORS_BURST_MAX).take_while(|_| newcomers.take(now)).count()
        };
        let (second, burst) = (NEW_ACTORS_PER_SECOND_MAX as usize, NEW_ACTORS_BURST_MAX as usize);
        assert_eq!(taken(5_000), burst);
        assert_eq!(taken(5_000), 0);
        assert_eq!(taken(5_500), second / 2);
        assert_eq!(taken(5_400), 0, "who asks late");
        assert_eq!(taken(6_000), second / 2, "does not count twice");
        assert_eq!(taken(1_000_000), burst);
    }
}
