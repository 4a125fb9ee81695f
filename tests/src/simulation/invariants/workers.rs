//! A call of a stateless worker that may have run is not made again, unless its kind is idempotent
//! (at-most-once, as in Birrell and Nelson, "Implementing Remote Procedure Calls", ACM TOCS 2(1), 1984).

use std::collections::BTreeSet;

use super::super::load::{Books, Told};
use crate::nemesis::history::Outcome;

/// Compares counters with the calls of the porters that alone increase them.
pub fn worker_calls_run_at_most_once(asked: &[Told], books: &Books) -> Result<(), String> {
    for (counter, sum) in &books.carried {
        let told = || asked.iter().filter(|told| told.actor == *counter);
        let mut sums = BTreeSet::new();
        for told in told() {
            if let Outcome::Value(sum) = told.outcome
                && !sums.insert(sum)
            {
                return Err(format!("two calls of porters were answered {sum} by {counter}"));
            }
        }
        let acknowledged = sums.len() as i64;
        let unknown = told().filter(|told| told.outcome == Outcome::Unknown).count() as i64;
        if *sum < acknowledged || *sum > acknowledged + unknown {
            return Err(format!(
                "{counter} is at {sum}, {acknowledged} to {} calls of porters are known",
                acknowledged + unknown
            ));
        }
    }
    Ok(())
}
