//! Messages from one partition to another are applied or given up in their order, each once: the receiver's watermark
//! (Perennial's design, "Outbox"; the pattern is Helland's "Life beyond Distributed Transactions", 2007).

use std::collections::BTreeMap;

use perennial::core::id::{GroupId, PartitionId};
use perennial::core::partition::Origin;
use perennial::core::partition::record::{Cause, Record};

use super::{Invariant, Seen};

/// The last message applied or given up, by receiving group and sending partition.
#[derive(Default)]
pub struct InOrder(BTreeMap<(GroupId, PartitionId), u64>);

impl Invariant for InOrder {
    fn first(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        for record in seen.records() {
            let (from, seq) = match record {
                Record::Turn(turn) => match &turn.cause {
                    Cause::Message { from, seq } => (from, seq),
                    _ => continue,
                },
                Record::Died(letter) => match &letter.origin {
                    Origin::Message { from, seq } => (from, seq),
                    Origin::Reminder { .. } => continue,
                },
                _ => continue,
            };
            let last = self.0.insert((seen.group, *from), *seq);
            if *seq != last.unwrap_or(0) + 1 {
                return Err(format!(
                    "{} {} applies message {seq} of {from}, after {}",
                    seen.group,
                    seen.index,
                    last.unwrap_or_default()
                ));
            }
        }
        Ok(())
    }
}
