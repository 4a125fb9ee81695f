//! A read that may be behind is no further behind than it says, and no further than it was asked to be
//! (bounded staleness, as in Terry et al., "Replicated Data Consistency Explained Through Baseball", CACM
//! 2013): everything that was acknowledged that long before it was asked is in it.

use std::time::Duration;

/// A machine's clock may be so much slow, see the fault `clock drift`: 1000 of 800.
const DRIFT_NUM: u32 = 5;
const DRIFT_DEN: u32 = 4;
/// Time passes in steps of a millisecond, on either side.
const STEPS: Duration = Duration::from_millis(3);

/// A read of a counter that may be behind, and its answer.
#[derive(Debug, Clone)]
pub struct StaleRead {
    /// Which counter.
    pub key: usize,
    /// When it was asked, since the first call.
    pub called: Duration,
    /// How old it might be.
    pub within: Duration,
    /// How old it says it is.
    pub age: Duration,
    /// The answer.
    pub value: i64,
}

/// An acknowledged sum of a counter, and when its caller had it, since the first call.
pub type Acknowledged = (usize, i64, Duration);

/// Checks all of them.
pub fn reads_are_no_older_than_they_say(reads: &[StaleRead], told: &[Acknowledged]) -> Result<(), String> {
    for read in reads {
        if read.age > read.within {
            return Err(format!("{read:?} is older than it was asked to be"));
        }
        let age = read.age * DRIFT_NUM / DRIFT_DEN + STEPS;
        let of_key = || told.iter().filter(|(key, ..)| *key == read.key);
        let before = of_key().filter(|(_, _, at)| *at + age < read.called);
        let least = before.map(|(_, sum, _)| *sum).max().unwrap_or(0);
        let most = of_key().map(|(_, sum, _)| *sum).max().unwrap_or(0);
        if !(least..=most).contains(&read.value) {
            return Err(format!("{read:?}: {least} was acknowledged before, and never more than {most}"));
        }
    }
    Ok(())
}
