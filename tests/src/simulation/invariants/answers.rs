//! Answers of each counter are those of one counter, called one after another in an order that keeps real
//! time (Herlihy and Wing, "Linearizability", TOPLAS 1990); the check and its argument are the nemesis's.

use crate::nemesis::history::{Op, check};

/// Checks the history of all counters.
pub fn linearizable(ops: &[Op]) -> Result<(), String> {
    let violations = check(ops);
    match violations.first() {
        None => Ok(()),
        Some(first) => Err(format!("{} violations, the first: {first}", violations.len())),
    }
}
