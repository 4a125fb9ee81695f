//! What several benchmarks call.

use perennial::prelude::*;

/// Counts.
#[data]
#[derive(Default)]
pub struct Tally {
    sum: i64,
}

#[actor]
impl Tally {
    /// Adds, and returns the sum.
    pub fn add(&mut self, n: i64) -> i64 {
        self.sum += n;
        self.sum
    }

    /// The sum.
    pub fn sum(&self) -> i64 {
        self.sum
    }
}
