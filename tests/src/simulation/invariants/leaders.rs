//! Election safety: at most one leader in a term (Raft, figure 3). An epoch is a term, so this is also: one
//! host of a partition whose turns can be committed.

use std::collections::BTreeMap;

use perennial::core::id::{GroupId, Term};

use super::Invariant;

/// Who led in each term.
#[derive(Default)]
pub struct OneLeader(BTreeMap<(GroupId, Term), String>);

impl Invariant for OneLeader {
    fn leads(&mut self, node: &str, group: GroupId, term: Term) -> Result<(), String> {
        let leader = self.0.entry((group, term)).or_insert_with(|| node.to_owned());
        if leader == node {
            return Ok(());
        }
        Err(format!("{node} leads {group} in term {term}, in which {leader} has led"))
    }
}
