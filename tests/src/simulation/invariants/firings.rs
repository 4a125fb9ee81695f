//! A reminder fires only if it stands in the log with that time, not before it, and once; one that recurs then
//! stands with a later time of its schedule, none left out but what its policy for missed ones says. At the end
//! every alarm that was acknowledged has rung, once, and none that was refused; every metronome has beaten, in
//! time with its first beat (Perennial's design, "Timers"; misfire policies are Quartz's).

use std::collections::BTreeMap;

use perennial::core::id::GroupId;
use perennial::core::partition::Origin;
use perennial::core::partition::record::{Cause, Missed, Record, ReminderChange, Repeat, Schedule, Turn};
use perennial::core::time::Millis;

use super::super::app::{BEATS, policy};
use super::super::load::{Books, Told};
use super::{Invariant, Seen, stand_as_told};

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
        let wrong = metronomes.iter().find(|one| one.beats.len() != BEATS || !one.beats_in_time());
        if let Some(wrong) = wrong {
            return Err(format!("{alarm}: {wrong:?}, by {:?}", policy(wrong.missed)));
        }
        stand_as_told("metronome", alarm, asked, metronomes.iter().map(|metronome| metronome.number))?;
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
        stand_as_told("alarm", alarm, asked, set.iter().copied())?;
    }
    Ok(())
}

/// Reminders that stand, by actor and name, and when they are due.
pub type Standing = BTreeMap<(String, String), Millis>;

/// The same where clocks are set by an hour, so that a time may be long in coming: who has not rung or beaten to
/// the end has a reminder that stands, and no other does.
pub fn alarms_have_rung_or_stand(
    alarms: &[Told],
    metronomes: &[Told],
    books: &Books,
    standing: &Standing,
) -> Result<(), String> {
    let stands = |alarm: &str, name: String| standing.contains_key(&(alarm.to_owned(), name));
    let mut expected = 0;
    for (alarm, set, rung) in &books.alarms {
        for number in set {
            let times = rung.iter().filter(|rung| *rung == number).count();
            let stands = stands(alarm, number.to_string());
            expected += usize::from(stands);
            if times + usize::from(stands) != 1 {
                return Err(format!("{alarm}: alarm {number} has rung {times} times, and stands: {stands}"));
            }
        }
        if rung.len() > set.len() {
            return Err(format!("{alarm} was set for {set:?} and has rung for {rung:?}"));
        }
        stand_as_told("alarm", alarm, alarms, set.iter().copied())?;
    }
    for (alarm, started) in &books.metronomes {
        for metronome in started {
            let stands = stands(alarm, format!("m{}", metronome.number));
            expected += usize::from(stands);
            if stands != (metronome.beats.len() < BEATS) || !metronome.beats_in_time() {
                return Err(format!("{alarm}: {metronome:?}, and it stands: {stands}"));
            }
        }
        stand_as_told("metronome", alarm, metronomes, started.iter().map(|metronome| metronome.number))?;
    }
    if expected == standing.len() { Ok(()) } else { Err(format!("nobody has set all of {standing:?}")) }
}

#[cfg(test)]
mod tests {
    use super::super::super::app::Metronome;
    use super::*;
    use crate::nemesis::history::Outcome;

    #[test]
    fn alarms_that_ring_twice_or_never_are_found() {
        let told = |number| Told { actor: "a".into(), number, outcome: Outcome::Value(0) };
        let check = |rung: &[u64], beats: &[u64], standing: &[&str]| {
            let books = Books {
                alarms: vec![("a".into(), vec![1, 2], rung.to_vec())],
                metronomes: vec![(
                    "a".into(),
                    vec![Metronome { number: 3, every_ms: 10, missed: 0, beats: beats.to_vec() }],
                )],
                ..Books::default()
            };
            let standing = standing.iter().map(|name| (("a".into(), (*name).into()), Millis(9)));
            alarms_have_rung_or_stand(&[told(1), told(2)], &[told(3)], &books, &standing.collect()).is_ok()
        };
        assert!(check(&[2, 1], &[10, 20, 40, 50], &[]) && check(&[1], &[10, 20], &["2", "m3"]));
        assert!(!check(&[1, 2, 2], &[10, 20, 30, 40], &[]), "rings twice");
        assert!(!check(&[1], &[10, 20, 30, 40], &[]), "never rings");
        assert!(!check(&[1, 2], &[10, 20, 30, 40], &["2"]), "has rung, and stands");
        assert!(!check(&[1, 2], &[10, 20], &[]) && !check(&[1, 2], &[10, 20, 30, 40], &["m3"]));
        assert!(!check(&[1, 2], &[10, 25, 30, 40], &[]), "out of time");
        assert!(!check(&[1, 2], &[10, 20, 30, 40], &["4"]), "nobody has set it");
    }
}
