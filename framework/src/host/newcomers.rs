//! How many actors may come into being at once.
//!
//! Owns the allowance of a node for actors that have no row yet, shared by its hosts. Who makes keys up can
//! make activations without end; this bounds how fast, [`ACTIVATIONS_MAX`] how many. Calls of actors that
//! have a row or are in memory take nothing from it, and neither do messages and reminders: they were
//! promised with a commit. Source: the token bucket of RFC 2698, with one rate.

use std::sync::Mutex;

use perennial_core::time::Millis;

use crate::link::lock;

/// Actors without a row that calls may wake on a node, per second.
pub const NEW_ACTORS_PER_SECOND_MAX: u64 = 20_000;
/// Actors without a row that calls may wake at once, after a second without any.
pub const NEW_ACTORS_BURST_MAX: u64 = 2 * NEW_ACTORS_PER_SECOND_MAX;
/// Actors of a partition in memory. With as many, those that are idle leave; if none is, no other comes in.
pub const ACTIVATIONS_MAX: usize = 128 * 1024;

/// The allowance; thousandths, so that a millisecond adds a whole number.
///
/// Invariant: at most [`NEW_ACTORS_BURST_MAX`] thousandfold.
#[derive(Debug)]
pub(crate) struct Newcomers(Mutex<(Millis, u64)>);

impl Default for Newcomers {
    fn default() -> Self {
        Self(Mutex::new((Millis(0), NEW_ACTORS_BURST_MAX * 1000)))
    }
}

impl Newcomers {
    /// Takes one from the allowance at `now`; false when there is none. A clock that goes back adds nothing.
    pub(super) fn take(&self, now: Millis) -> bool {
        let mut bucket = lock(&self.0);
        let (since, left) = *bucket;
        let gained = now.since(since).saturating_mul(NEW_ACTORS_PER_SECOND_MAX);
        let left = left.saturating_add(gained).min(NEW_ACTORS_BURST_MAX * 1000);
        let taken = left.checked_sub(1000);
        *bucket = (now.max(since), taken.unwrap_or(left));
        taken.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_allowance_comes_back_with_time_up_to_a_burst() {
        let newcomers = Newcomers::default();
        let taken = |now| (0..3 * NEW_ACTORS_BURST_MAX).take_while(|_| newcomers.take(Millis(now))).count();
        let (second, burst) = (NEW_ACTORS_PER_SECOND_MAX as usize, NEW_ACTORS_BURST_MAX as usize);
        assert_eq!(taken(5_000), burst);
        assert_eq!(taken(5_000), 0);
        assert_eq!(taken(5_500), second / 2);
        assert_eq!(taken(4_000), 0, "a clock that goes back");
        assert_eq!(taken(6_000), second / 2, "does not count twice");
        assert_eq!(taken(1_000_000), burst);
    }
}
