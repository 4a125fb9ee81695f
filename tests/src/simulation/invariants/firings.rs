//! A reminder fires only if it stands in the log with that time, and once; and at the end every alarm that
//! was acknowledged has rung, once, and none that was refused (Perennial's design, "Timers").

use std::collections::BTreeMap;

use perennial::core::id::GroupId;
use perennial::core::partition::record::{Cause, ReminderChange};
use perennial::core::time::Millis;

use super::super::load::{Books, Told};
use super::{Invariant, Seen};
use crate::nemesis::history::Outcome;

/// Reminders that stand, by group, actor and name.
#[derive(Default)]
pub struct Firings(BTreeMap<(GroupId, String, String), Millis>);

impl Invariant for Firings {
    fn first(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        for turn in seen.turns() {
            let actor = turn.actor.to_string();
            if let Cause::Reminder { name, due } = &turn.cause {
                let stood = self.0.remove(&(seen.group, actor.clone(), name.clone()));
                if stood != Some(*due) {
                    return Err(format!(
                        "{actor}'s reminder {name} of {} fires at {} {}, where it stands as {stood:?}",
                        due.0, seen.group, seen.index
                    ));
                }
            }
            for change in &turn.reminders {
                match change {
                    ReminderChange::Set { name, due, .. } => {
                        self.0.insert((seen.group, actor.clone(), name.clone()), *due);
                    }
                    ReminderChange::Cancel { name, .. } => {
                        self.0.remove(&(seen.group, actor.clone(), name.clone()));
                    }
                }
            }
        }
        Ok(())
    }
}

/// The same as the actors tell it.
pub fn every_alarm_rings_once(asked: &[Told], books: &Books) -> Result<(), String> {
    for (alarm, set, rung) in &books.alarms {
        let sorted = |numbers: &[u64]| {
            let mut numbers = numbers.to_vec();
            numbers.sort_unstable();
            numbers
        };
        let (set, rung) = (sorted(set), sorted(rung));
        if set != rung {
            return Err(format!("{alarm} was set for {set:?} and has rung for {rung:?}"));
        }
        for Told { actor, number, outcome } in asked {
            let times = set.iter().filter(|set| *set == number).count();
            let fits = match outcome {
                _ if actor != alarm => times == 0,
                Outcome::Value(_) => times == 1,
                Outcome::NotApplied => times == 0,
                Outcome::Unknown => times <= 1,
            };
            if !fits {
                return Err(format!("{alarm}: alarm {number} ({outcome:?} at {actor}) stands {times} times"));
            }
        }
    }
    Ok(())
}
