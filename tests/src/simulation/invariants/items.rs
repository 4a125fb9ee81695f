//! Collections: what was acknowledged stands in the log of its actor, once, at the place that was answered;
//! what was refused does not; and what follows from it stands in the map, at the end and whenever somebody
//! looked (Perennial's contract, "All or nothing" and "Exactly once"; the append workload of Jepsen's Elle asks
//! the same of lists). A collection belongs to one actor, and is never written again once it was dropped.

use std::collections::{BTreeMap, BTreeSet};

use perennial::core::id::GroupId;
use perennial::core::partition::record::{CollectionId, ItemChange};

use super::super::load::{Books, Told};
use super::super::shelf::follows;
use super::{Invariant, Seen};
use crate::nemesis::history::Outcome;

/// Whose each collection is, and those that are gone.
#[derive(Default)]
pub struct Collections {
    owners: BTreeMap<(GroupId, CollectionId), String>,
    dropped: BTreeSet<(GroupId, CollectionId)>,
}

impl Invariant for Collections {
    fn first(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        for turn in seen.turns() {
            let actor = turn.actor.to_string();
            for change in &turn.items {
                let (ItemChange::Put { collection, .. }
                | ItemChange::Delete { collection, .. }
                | ItemChange::Drop { collection, .. }) = change;
                let id = (seen.group, *collection);
                let owner = self.owners.entry(id).or_insert_with(|| actor.clone());
                let at = || format!("{collection:?} of {actor} at {} {}", seen.group, seen.index);
                if *owner != actor {
                    return Err(format!("{} belongs to {owner}", at()));
                }
                match change {
                    ItemChange::Drop { below, .. } if below.is_empty() => {}
                    _ if self.dropped.contains(&id) => return Err(format!("{} was dropped", at())),
                    _ => {}
                }
            }
            for change in &turn.items {
                if let ItemChange::Drop { collection, below } = change
                    && below.is_empty()
                {
                    self.dropped.insert((seen.group, *collection));
                }
            }
        }
        Ok(())
    }
}

/// Compares shelves with what callers were told, and with themselves.
pub fn collections_hold_what_was_acknowledged(
    asked: &[Told],
    audits: &[String],
    books: &Books,
) -> Result<(), String> {
    if let Some(audit) = audits.first() {
        return Err(format!("a shelf was read: {audit}"));
    }
    for (shelf, (entries, latest, recent)) in &books.shelves {
        for Told { actor, number, outcome } in asked {
            let mut places = (0_i64..).zip(entries).filter(|(_, entry)| entry.number == *number);
            let (first, second) = (places.next().map(|(place, _)| place), places.next());
            let fits = match outcome {
                _ if actor != shelf => first.is_none(),
                Outcome::Value(place) => first == Some(*place),
                Outcome::NotApplied => first.is_none(),
                Outcome::Unknown => true,
            };
            if !fits || second.is_some() {
                return Err(format!("{shelf}: change {number} ({outcome:?} at {actor}) stands at {first:?}"));
            }
        }
        let wanted = follows(entries);
        if (latest, recent) != (&wanted.0, &wanted.1) {
            return Err(format!("{shelf} has {latest:?} and {recent:?}, where {wanted:?} follow"));
        }
    }
    Ok(())
}
