//! Messages from one partition to another are applied in their order, each once: the receiver's watermark
//! (Perennial's design, "Outbox"; the pattern is Helland's "Life beyond Distributed Transactions", 2007).

use std::collections::BTreeMap;

use perennial::core::id::{GroupId, PartitionId};
use perennial::core::partition::record::Cause;

use super::{Invariant, Seen};

/// The last message applied, by receiving group and sending partition.
#[derive(Default)]
pub struct InOrder(BTreeMap<(GroupId, PartitionId), u64>);

impl Invariant for InOrder {
    fn first(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        for turn in seen.turns() {
            let Cause::Message { from, seq } = &turn.cause else { continue };
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
