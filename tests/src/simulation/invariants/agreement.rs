//! State machine safety: replicas apply the same entry at the same index (Ongaro and Ousterhout, "In Search
//! of an Understandable Consensus Algorithm", 2014, figure 3). A replica that applies anew after a restart
//! is held to it too, so nothing that was ever applied anywhere is taken back.

use std::collections::BTreeMap;

use perennial::core::hash::wide_hash;
use perennial::core::id::{GroupId, LogIndex, Term};

use super::{Invariant, Seen};

/// Each index as it was applied first.
#[derive(Default)]
pub struct Agreement(BTreeMap<(GroupId, LogIndex), (Term, u128, String)>);

impl Invariant for Agreement {
    fn first(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        let entry = (seen.term, wide_hash(seen.entry), seen.node.to_owned());
        self.0.insert((seen.group, seen.index), entry);
        Ok(())
    }

    fn again(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        match self.0.get(&(seen.group, seen.index)) {
            Some((term, hash, _)) if *term == seen.term && *hash == wide_hash(seen.entry) => Ok(()),
            Some((term, _, node)) => Err(format!(
                "{} applies an entry of term {} at {} {}, where {node} has applied one of term {term}",
                seen.node, seen.term, seen.group, seen.index
            )),
            None => Err(format!(
                "{} applies {} {} anew, which nobody has applied",
                seen.node, seen.group, seen.index
            )),
        }
    }
}
