//! While builds are mixed, a state that a build has written which knows more of it is never written by one that
//! knows less: that would lose what the latter does not know (the rolling upgrades of Protocol Buffers' guide,
//! where unknown fields are kept instead).

use std::collections::BTreeSet;

use perennial::core::id::ActorId;
use perennial::schema::Schema;

use super::{Invariant, Seen};
use crate::simulation::{app, newer};

/// Actors whose state the newer build has written.
pub struct Evolution {
    newer: BTreeSet<ActorId>,
    newer_states: [u64; 2],
    older_states: [u64; 2],
}

impl Default for Evolution {
    fn default() -> Self {
        Self {
            newer: BTreeSet::new(),
            newer_states: [
                Schema::of::<newer::Counter>().fingerprint(),
                Schema::of::<newer::Purse>().fingerprint(),
            ],
            older_states: [
                Schema::of::<app::Counter>().fingerprint(),
                Schema::of::<app::Purse>().fingerprint(),
            ],
        }
    }
}

impl Invariant for Evolution {
    fn first(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        for turn in seen.turns() {
            let Some((fingerprint, _)) =
                turn.state.as_deref().and_then(|state| state.split_first_chunk::<8>())
            else {
                continue;
            };
            let fingerprint = u64::from_be_bytes(*fingerprint);
            if self.newer_states.contains(&fingerprint) {
                self.newer.insert(turn.actor.clone());
            } else if self.older_states.contains(&fingerprint) && self.newer.contains(&turn.actor) {
                return Err(format!(
                    "{} was written by the newer build, and by the older one at {} {}",
                    turn.actor, seen.group, seen.index
                ));
            }
        }
        Ok(())
    }
}
