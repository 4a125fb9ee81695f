//! A request is recorded once, however often it is repeated and whoever leads (exactly-once semantics of
//! Lee, Park, Kejriwal, Matsushita and Ousterhout, "Implementing Linearizability at Large Scale and Low
//! Latency", RIFL, SOSP 2015).

use std::collections::BTreeMap;

use perennial::core::id::{GroupId, LogIndex};
use perennial::core::partition::record::Cause;

use super::{Invariant, Seen};

/// Where each request was recorded.
#[derive(Default)]
pub struct Once(BTreeMap<String, (GroupId, LogIndex)>);

impl Invariant for Once {
    fn first(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        for turn in seen.turns() {
            let Cause::Call { request, .. } = &turn.cause else { continue };
            let before = self.0.insert(format!("{request:?}"), (seen.group, seen.index));
            if let Some((group, index)) = before {
                return Err(format!(
                    "{request:?} of {} is recorded at {group} {index} and at {} {}",
                    turn.actor, seen.group, seen.index
                ));
            }
        }
        Ok(())
    }
}
