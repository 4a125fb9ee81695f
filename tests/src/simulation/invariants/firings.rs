//! A reminder fires only if it stands in the log with that time, not before it, and once; one that recurs then
//! stands with a later time of its schedule, none left out but what its policy for missed ones says. At the end
//! every alarm that was acknowledged has rung, once, and none that was refused; every metronome has beaten, in
//! time with its first beat (Perennial's design, "Timers"; misfire policies are Quartz's).

use std::collections::BTreeMap;

use perennial::core::id::GroupId;
use perennial::core::partition::Origin;
use perennial::core::partition::record::{Cause, Missed, Record, ReminderChange, Repeat, Schedule, Turn};
use perennial::core::time::Millis;

use super::super::app::{BEATS, Metronome, policy};
use super::super::load::{Books, Told};
use super::{Invariant, Seen};
use crate::nemesis::history::Outcome;

/// Reminders that stand, by group, actor and name.
#[derive(Default)]
pub struct Firings(BTreeMap<(GroupId, String, String), (Millis, Option<Repeat>)>);

impl Invariant for Firings {
    fn first(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        let time = seen.batch.map_or(Millis(0), |batch| batch.time);
        let records = seen.batch.map(|batch| batch.records.as_slice()).unwrap_or_default();
        for record in records {
            match record {
                Record::Turn(turn) => self.turn(seen, turn, time)?,
                Record::Died(letter) => {
                    if let Origin::Reminder { name, due, next } = &letter.origin {
                        let next = next.as_ref().map(|next| (next.due, Some(next.repeat.clone())));
                        let actor = letter.from.to_string();
                        self.used_up(seen, &actor, name, *due, time, (false, next.as_ref()))?;
                        if let Some(next) = next {
                            self.0.insert((seen.group, actor, name.clone()), next);
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// When a reminder stands, and how it goes on.
type Stands = (Millis, Option<Repeat>);

impl Firings {
    fn turn(&mut self, seen: &Seen<'_>, turn: &Turn, time: Millis) -> Result<(), String> {
        let actor = turn.actor.to_string();
        if let Cause::Reminder { name, due } | Cause::ReminderPassed { name, due } = &turn.cause {
            let passed = matches!(turn.cause, Cause::ReminderPassed { .. });
            let next = turn.reminders.first().and_then(|change| match change {
                ReminderChange::Set { name: set, due, repeat, .. } if set == name => {
                    Some((*due, repeat.clone()))
                }
                _ => None,
            });
            self.used_up(seen, &actor, name, *due, time, (passed, next.as_ref()))?;
        }
        for change in &turn.reminders {
            match change {
                ReminderChange::Set { name, due, repeat, .. } => {
                    self.0.insert((seen.group, actor.clone(), name.clone()), (*due, repeat.clone()));
                }
                ReminderChange::Cancel { name, .. } => {
                    self.0.remove(&(seen.group, actor.clone(), name.clone()));
                }
            }
        }
        Ok(())
    }

    /// A due time is used up at `time` or before: it must have stood, and go on rightly.
    fn used_up(
        &mut self,
        seen: &Seen<'_>,
        actor: &str,
        name: &str,
        due: Millis,
        time: Millis,
        (passed, next): (bool, Option<&Stands>),
    ) -> Result<(), String> {
        let at = format!("{actor}'s reminder {name} of {} at {} {}", due.0, seen.group, seen.index);
        let stood = self.0.remove(&(seen.group, actor.to_owned(), name.to_owned()));
        let Some((_, repeat)) = stood.clone().filter(|(stood, _)| *stood == due) else {
            return Err(format!("{at} fires where it stands as {stood:?}"));
        };
        if due > time {
            return Err(format!("{at} fires before its time, at {}", time.0));
        }
        goes_on(due, passed, repeat.as_ref(), next, time).map_err(|why| format!("{at} {why}"))
    }
}

/// Whether the record of a due time sets the right next one. It was made at `time` or before.
fn goes_on(
    due: Millis,
    passed: bool,
    repeat: Option<&Repeat>,
    next: Option<&Stands>,
    time: Millis,
) -> Result<(), String> {
    let Some(repeat @ Repeat { schedule: Schedule::Every { ms }, missed }) = repeat else {
        return if passed { Err("passes, and would not recur".into()) } else { Ok(()) };
    };
    let Some((next, _)) = next.filter(|(_, goes_on)| goes_on.as_ref() == Some(repeat)) else {
        return Err(format!("does not go on as it did, but with {next:?}"));
    };
    let next = *next;
    if next <= due || !next.since(due).is_multiple_of(*ms) {
        return Err(format!("goes on at {}, which is none of its times", next.0));
    }
    let late = |from: Millis| time.since(from) / ms + 1;
    let right = match (missed, passed) {
        (Missed::Once, true) => false,
        (Missed::All { .. }, false) => next == due.plus(*ms),
        // Only what is more than the newest so many, and no more of it.
        (Missed::All { at_most }, true) => {
            late(due) > u64::from(*at_most) && late(next) >= u64::from(*at_most)
        }
        // The first that was still to come, or (passing) the newest that has.
        (Missed::Once | Missed::Skip, _) => next <= time.plus(*ms),
    };
    if right { Ok(()) } else { Err(format!("goes on at {}, by {missed:?}, passed: {passed}", next.0)) }
}

/// The metronomes as the actors tell of them.
pub fn every_metronome_beats_in_time(asked: &[Told], books: &Books) -> Result<(), String> {
    for (alarm, metronomes) in &books.metronomes {
        for Metronome { number, every_ms, missed, beats } in metronomes {
            let apart: Vec<_> = beats.windows(2).map(|two| two[1].saturating_sub(two[0])).collect();
            let in_time = apart.iter().all(|apart| *apart > 0 && apart.is_multiple_of(*every_ms));
            if beats.len() != BEATS || !in_time {
                let policy = policy(*missed);
                return Err(format!(
                    "{alarm}: metronome {number}, every {every_ms} ms, {policy:?}, beat at {beats:?}"
                ));
            }
        }
        for Told { actor, number, outcome } in asked {
            let times = metronomes.iter().filter(|metronome| metronome.number == *number).count();
            let fits = match outcome {
                _ if actor != alarm => times == 0,
                Outcome::Value(_) => times == 1,
                Outcome::NotApplied => times == 0,
                Outcome::Unknown => times <= 1,
            };
            if !fits {
                return Err(format!(
                    "{alarm}: metronome {number} ({outcome:?} at {actor}) stands {times} times"
                ));
            }
        }
    }
    Ok(())
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
