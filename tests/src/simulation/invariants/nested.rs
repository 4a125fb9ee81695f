//! A call made by a turn runs once, though the turn may run again: its id derives from the turn's
//! (Perennial's design, "Dedup"). A turn that is lost after its call leaves the call done, which is
//! promised nowhere to be undone.

use std::collections::BTreeSet;

use super::super::load::{Books, Told};
use crate::nemesis::history::Outcome;

/// Compares agents with the counters that they alone call.
pub fn nested_calls_run_once(asked: &[Told], books: &Books) -> Result<(), String> {
    for (agent, done, sum) in &books.agents {
        let told: Vec<_> = asked.iter().filter(|told| told.number == *agent).collect();
        let mut sums = BTreeSet::new();
        for told in &told {
            if let Outcome::Value(sum) = told.outcome
                && !sums.insert(sum)
            {
                return Err(format!("two calls of agent {agent} were answered {sum}"));
            }
        }
        let (acknowledged, attempts) = (sums.len() as i64, told.len() as i64);
        let unknown = told.iter().filter(|told| told.outcome == Outcome::Unknown).count() as i64;
        if *done < acknowledged || *done > acknowledged + unknown {
            return Err(format!(
                "agent {agent} has {done} turns, {acknowledged} to {} are known",
                acknowledged + unknown
            ));
        }
        if sum < done || *sum > attempts {
            return Err(format!(
                "the counter of agent {agent} is at {sum} after {done} turns, {attempts} attempts"
            ));
        }
    }
    Ok(())
}
