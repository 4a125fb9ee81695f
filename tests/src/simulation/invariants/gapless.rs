//! Records of a term follow one another without a gap, in a batch of that term: what the driver's fence is
//! for (Perennial's design, "Fences"; the failure it keeps out is a turn committed on top of one that was
//! dropped). Record time never goes back.

use std::collections::BTreeMap;

use perennial::core::id::{GroupId, Term};
use perennial::core::time::Millis;

use super::{Invariant, Seen};

/// The next record's number and the last record time of each group.
#[derive(Default)]
pub struct Gapless(BTreeMap<GroupId, (Term, u64, Millis)>);

impl Invariant for Gapless {
    fn first(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        let Some(batch) = seen.batch else { return Ok(()) };
        let at = format!("{} {}", seen.group, seen.index);
        if batch.epoch != seen.term {
            return Err(format!("{at} is of term {} and holds records of {}", seen.term, batch.epoch));
        }
        let (term, next, time) = self.0.get(&seen.group).copied().unwrap_or((Term(0), 0, Millis(0)));
        let next = if term == batch.epoch { next } else { 0 };
        self.0.insert(seen.group, (batch.epoch, next + batch.records.len() as u64, batch.time));
        if batch.first_seq.0 != next {
            return Err(format!("{at} begins with record {}, the next is {next}", batch.first_seq.0));
        }
        if batch.time < time {
            return Err(format!("{at} was made at {}, after one made at {}", batch.time.0, time.0));
        }
        Ok(())
    }
}
