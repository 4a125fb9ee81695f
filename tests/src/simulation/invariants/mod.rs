//! What must hold: one file each, with its source.
//!
//! Those of the log look at every entry that any replica applies, when it does; the others at the end of a
//! run compare what clients were told with what the actors say. None decides anything.

pub mod agreement;
pub mod answers;
pub mod convergence;
pub mod dead;
pub mod evolution;
pub mod firings;
pub mod gapless;
pub mod items;
pub mod leaders;
pub mod messages;
pub mod nested;
pub mod once;
pub mod payments;
pub mod stale;
pub mod streams;
pub mod watermark;
pub mod workers;

use std::sync::{Arc, Mutex};

use perennial::core::id::{GroupId, LogIndex, Term};
use perennial::core::partition::record::{Batch, Record, Turn};

use super::load::Told;

pub use answers::linearizable;
pub use convergence::replicas_agree;
pub use dead::{Deaths, dead_letters_are_those_of_the_log};
pub use firings::{alarms_have_rung_or_stand, every_alarm_rings_once, every_metronome_beats_in_time};
pub use items::collections_hold_what_was_acknowledged;
pub use nested::nested_calls_run_once;
pub use payments::every_payment_arrives_once;
pub use stale::reads_are_no_older_than_they_say;
pub use streams::{numbers_have_no_gap, streams_have_no_gap};
pub use workers::worker_calls_run_at_most_once;

/// An entry that a replica applies.
pub struct Seen<'a> {
    /// Whose replica.
    pub node: &'a str,
    /// Of which group.
    pub group: GroupId,
    /// The entry's term.
    pub term: Term,
    /// Its index.
    pub index: LogIndex,
    /// What it holds.
    pub entry: &'a [u8],
    /// The same as records; `None` for one of the system partition.
    pub batch: Option<&'a Batch>,
}

impl Seen<'_> {
    fn records(&self) -> &[Record] {
        self.batch.map(|batch| batch.records.as_slice()).unwrap_or_default()
    }

    fn turns(&self) -> impl Iterator<Item = &Turn> {
        self.records().iter().filter_map(|record| match record {
            Record::Turn(turn) => Some(&**turn),
            _ => None,
        })
    }
}

/// Something that must hold of the log.
pub trait Invariant: Send {
    /// An entry is applied for the first time by any replica; those of a group come in order.
    fn first(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        let _ = seen;
        Ok(())
    }
    /// An entry is applied, again or by another replica.
    fn again(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        let _ = seen;
        Ok(())
    }
    /// A node begins to lead a group.
    fn leads(&mut self, node: &str, group: GroupId, term: Term) -> Result<(), String> {
        let _ = (node, group, term);
        Ok(())
    }
}

/// Whether what was asked of an actor stands there: once if that was acknowledged, not if it was refused.
fn stand_as_told(
    what: &str,
    actor: &str,
    asked: &[Told],
    standing: impl Iterator<Item = u64> + Clone,
) -> Result<(), String> {
    let mut asked = asked.iter().map(|told| (told, standing.clone().filter(|n| *n == told.number).count()));
    asked.find(|(told, times)| !told.fits(actor, *times)).map_or(Ok(()), |(told, times)| {
        let Told { actor: asked, number, outcome } = told;
        Err(format!("{actor}: {what} {number} ({outcome:?} at {asked}) stands {times} times"))
    })
}

/// All of them; what became of messages that were not applied is written down.
#[must_use]
pub fn all(deaths: &Arc<Mutex<Deaths>>) -> Vec<Box<dyn Invariant>> {
    vec![
        Box::<agreement::Agreement>::default(),
        Box::<leaders::OneLeader>::default(),
        Box::<gapless::Gapless>::default(),
        Box::<once::Once>::default(),
        Box::<watermark::Watermark>::default(),
        Box::<messages::InOrder>::default(),
        Box::<firings::Firings>::default(),
        Box::new(dead::Letters(deaths.clone())),
        Box::<items::Collections>::default(),
        Box::<evolution::Evolution>::default(),
    ]
}
