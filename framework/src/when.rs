//! When a reminder is due: once, every so often, or by a cron text.
//!
//! Owns the reading of cron texts and the arithmetic of due times, which a leader does when it makes a
//! record; the record holds the outcome. So followers know no time zones, and a due time that stands in
//! the log does not move when a build reads its text in another way. Never reads a clock. Cron texts are
//! read by croner, time zones are those of the database that is built into jiff, the same on every machine.

use std::time::Duration;

use croner::Cron;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
pub use perennial_core::partition::record::Missed;
use perennial_core::partition::record::{Repeat, Schedule};
use perennial_core::time::Millis;

use crate::actor::caught;
use crate::error::Fault;

/// Shortest time between two due times of a recurring reminder, in milliseconds.
pub const REMINDER_EVERY_MS_MIN: u64 = 10;
/// Longest cron text, and longest name of a time zone, in bytes.
pub const CRON_BYTES_MAX: usize = 256;
/// Most due times that [`Missed::All`] makes up for.
pub const MISSED_FIRINGS_MAX: u32 = 1000;
/// A due time of a recurring reminder is missed, as far as [`Missed::Skip`] goes, when it is so many
/// milliseconds past: longer than a change of leader takes.
pub const MISSED_AFTER_MS: u64 = 5000;

/// When something is due. A [`Duration`] is one as well: once, after that time.
///
/// ```
/// use std::time::Duration;
/// use perennial::{Missed, When};
///
/// let once: When = Duration::from_secs(3600).into();
/// let hourly = When::every(Duration::from_secs(3600));
/// let weekdays = When::cron("0 9 * * MON-FRI").zone("Europe/Berlin").missed(Missed::Skip);
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "nothing is scheduled until it is given to `ctx.schedule`"]
pub struct When {
    first: First,
    repeat: Option<Repeat>,
}

/// The first time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum First {
    After(u64),
    At(Millis),
    /// The next time of the schedule.
    Scheduled,
}

impl From<Duration> for When {
    fn from(after: Duration) -> Self {
        Self::after(after)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl When {
    /// Once, after this time.
    pub fn after(time: Duration) -> Self {
        Self { first: First::After(millis(time)), repeat: None }
    }

    /// Once, at this time; at once when it has passed.
    pub fn at(time: Millis) -> Self {
        Self { first: First::At(time), repeat: None }
    }

    /// Again and again, first after this time. Each due time is counted from the one before, not from when
    /// it fired: it does not drift. At least [`REMINDER_EVERY_MS_MIN`].
    pub fn every(time: Duration) -> Self {
        let ms = millis(time);
        Self {
            first: First::After(ms),
            repeat: Some(Repeat { schedule: Schedule::Every { ms }, missed: Missed::Once }),
        }
    }

    /// At the times that match a cron text, in UTC: `minute hour day month weekday`, or six fields with
    /// seconds in front; names such as `MON-FRI`, lists, ranges and steps, `L`, `#`, `W`, `@daily` and its
    /// like. In another time zone, see [`When::zone`].
    pub fn cron(text: impl Into<String>) -> Self {
        let schedule = Schedule::Cron { text: text.into(), zone: "UTC".into() };
        Self { first: First::Scheduled, repeat: Some(Repeat { schedule, missed: Missed::Once }) }
    }

    /// Has a cron text mean the time of day in this time zone, such as `Europe/Berlin`. A time that a change
    /// to summer time leaves out is due at its end; one that comes twice is due once, unless the text has
    /// every hour or minute.
    pub fn zone(mut self, name: impl Into<String>) -> Self {
        if let Some(Repeat { schedule: Schedule::Cron { zone, .. }, .. }) = &mut self.repeat {
            *zone = name.into();
        }
        self
    }

    /// The first time of one that recurs; the others are counted from there. When it has passed, the
    /// first is the next of those.
    pub fn starting(mut self, time: Millis) -> Self {
        self.first = First::At(time);
        self
    }

    /// What happens to due times that pass while nobody can fire, such as in an outage: see [`Missed`].
    /// Of no effect on one that does not recur: it fires late.
    pub fn missed(mut self, missed: Missed) -> Self {
        if let Some(repeat) = &mut self.repeat {
            repeat.missed = missed;
        }
        self
    }

    /// The first due time after `now`, and how it goes on.
    ///
    /// # Errors
    /// [`Fault::BadSchedule`].
    pub(crate) fn begin(self, now: Millis) -> Result<(Millis, Option<Repeat>), Fault> {
        if let Some(repeat) = &self.repeat {
            check(repeat).map_err(Fault::BadSchedule)?;
        }
        // Later than whatever has fired, so that a reminder set again by its own turn is another one.
        let soonest = now.plus(1);
        let due = match (self.first, &self.repeat) {
            (First::After(ms), _) => now.plus(ms.max(1)),
            (First::At(at), Some(repeat)) => match &repeat.schedule {
                Schedule::Every { .. } if at < soonest => first_after(repeat, at, now)?,
                Schedule::Every { .. } => at,
                // The first match that is not before.
                Schedule::Cron { .. } => {
                    first_after(repeat, Millis(0), now.max(Millis(at.0.saturating_sub(1))))?
                }
            },
            (First::At(at), None) => at.max(soonest),
            (First::Scheduled, repeat) => {
                first_after(repeat.as_ref().expect("only a schedule has scheduled times"), Millis(0), now)?
            }
        };
        Ok((due, self.repeat))
    }
}

fn first_after(repeat: &Repeat, from: Millis, now: Millis) -> Result<Millis, Fault> {
    let never = || Fault::BadSchedule(format!("{} is never due", text(repeat)));
    Times::of(repeat).map_err(Fault::BadSchedule)?.after(from, now).ok_or_else(never)
}

/// How a schedule is written, for people.
pub(crate) fn text(repeat: &Repeat) -> String {
    match &repeat.schedule {
        Schedule::Every { ms } => format!("every {:?}", Duration::from_millis(*ms)),
        Schedule::Cron { text, zone } => format!("cron {text:?} in {zone}"),
    }
}

fn check(repeat: &Repeat) -> Result<(), String> {
    if let Missed::All { at_most } = repeat.missed
        && !(1..=MISSED_FIRINGS_MAX).contains(&at_most)
    {
        return Err(format!(
            "it would make up for {at_most} missed times, 1 to {MISSED_FIRINGS_MAX} are possible"
        ));
    }
    if let Schedule::Every { ms } = repeat.schedule
        && ms < REMINDER_EVERY_MS_MIN
    {
        return Err(format!("every {ms} ms is too often, {REMINDER_EVERY_MS_MIN} ms is the least"));
    }
    Times::of(repeat).map(drop)
}

/// The due times of a schedule.
enum Times {
    Every(u64),
    Cron(Box<Cron>, TimeZone, u64),
}

impl Times {
    fn of(repeat: &Repeat) -> Result<Self, String> {
        match &repeat.schedule {
            Schedule::Every { ms: 0 } => Err("every 0 ms has no next time".into()),
            Schedule::Every { ms } => Ok(Self::Every(*ms)),
            Schedule::Cron { text, zone } => {
                if text.len().max(zone.len()) > CRON_BYTES_MAX {
                    return Err(format!("a cron text or time zone has more than {CRON_BYTES_MAX} bytes"));
                }
                let cron =
                    caught("when reading a cron text", || text.parse::<Cron>().map_err(|e| e.to_string()));
                let cron = cron.map_err(|why| {
                    format!(
                        "cron {text:?}: {why}; five fields are \
                     `minute hour day month weekday`, such as \"0 9 * * MON-FRI\""
                    )
                })?;
                let zone = TimeZone::get(zone).map_err(|_| {
                    format!(
                        "time zone {zone:?} is not known; names are those of the IANA \
                     database, such as Europe/Berlin"
                    )
                })?;
                // Without a field for seconds it matches a minute at most once.
                let apart_ms = if text.split_whitespace().count() == 5 { 60_000 } else { 1000 };
                Ok(Self::Cron(Box::new(cron), zone, apart_ms))
            }
        }
    }

    /// The first time after `now` of those that begin at `from`, if there is one.
    fn after(&self, from: Millis, now: Millis) -> Option<Millis> {
        match self {
            Self::Every(_) if from > now => Some(from),
            Self::Every(ms) => {
                let due = from.0.checked_add((now.since(from) / ms).checked_add(1)?.checked_mul(*ms)?)?;
                Some(Millis(due))
            }
            Self::Cron(cron, zone, _) => {
                let now = zoned(now, zone)?;
                found(|| cron.find_next_occurrence(&now, false))
            }
        }
    }

    /// The last time before `before`, of those that begin at `from`.
    fn before(&self, from: Millis, before: Millis) -> Option<Millis> {
        match self {
            Self::Every(ms) => Some(Millis(from.0 + before.since(from).checked_sub(1)? / ms * ms)),
            Self::Cron(cron, zone, _) => {
                // Its times are whole seconds, and it cuts off what is less.
                let before = zoned(Millis(before.0.checked_next_multiple_of(1000)?), zone)?;
                found(|| cron.find_previous_occurrence(&before, false)).filter(|time| *time >= from)
            }
        }
    }

    /// The newest `at_most` of the times from `due`, which is one, to `now`: the first of them.
    fn newest(&self, due: Millis, now: Millis, at_most: u32) -> Millis {
        let at_most = u64::from(at_most.clamp(1, MISSED_FIRINGS_MAX));
        let apart_ms = match self {
            Self::Every(ms) | Self::Cron(_, _, ms) => *ms,
        };
        let most = now.since(due) / apart_ms + 1;
        if most <= at_most {
            return due;
        }
        if let Self::Every(ms) = self {
            return due.plus((most - at_most) * ms);
        }
        let mut next = due;
        let behind = (0..at_most).all(|_| {
            let after = self.after(due, next).filter(|after| *after <= now);
            after.is_some_and(|after| {
                next = after;
                true
            })
        });
        if !behind {
            return due;
        }
        let mut oldest = now.plus(1);
        for _ in 0..at_most {
            match self.before(due, oldest) {
                Some(before) => oldest = before,
                None => return due,
            }
        }
        oldest
    }
}

fn zoned(at: Millis, zone: &TimeZone) -> Option<Zoned> {
    let at = Timestamp::from_millisecond(i64::try_from(at.0).ok()?).ok()?;
    Some(at.to_zoned(zone.clone()))
}

/// What a search came to; one that ends in a panic has found nothing.
fn found(search: impl FnOnce() -> Result<Zoned, croner::errors::CronError>) -> Option<Millis> {
    let found = caught("when looking for a time", || search().map_err(|error| error.to_string())).ok()?;
    u64::try_from(found.timestamp().as_millisecond()).ok().map(Millis)
}

/// When a reminder that has fired for `due` is due again, at `now`; `None` when never.
pub(crate) fn next(repeat: &Repeat, due: Millis, now: Millis) -> Option<Millis> {
    let times = Times::of(repeat).ok()?;
    match repeat.missed {
        Missed::Once | Missed::Skip => times.after(due, now.max(due)),
        Missed::All { .. } => times.after(due, due),
    }
}

/// What is to be done at `now` about a reminder that was due at `due`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// It fires.
    Fire,
    /// It passes, and is due then; `None`: never again.
    Pass(Option<Millis>),
}

/// What the policy of a reminder makes of a due time that may have been missed.
pub(crate) fn decide(repeat: &Repeat, due: Millis, now: Millis) -> Decision {
    // An unreadable schedule fires a last time: its end is told then.
    let Ok(times) = Times::of(repeat) else { return Decision::Fire };
    let newest = match repeat.missed {
        Missed::Once => due,
        Missed::All { at_most } => times.newest(due, now, at_most),
        Missed::Skip => {
            let newest = times.before(due, now.plus(1)).unwrap_or(due);
            if now.since(newest) > MISSED_AFTER_MS {
                return Decision::Pass(times.after(due, now));
            }
            newest
        }
    };
    if newest > due { Decision::Pass(Some(newest)) } else { Decision::Fire }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1000;
    const HOUR: u64 = 3600 * SECOND;

    fn at(text: &str) -> Millis {
        Millis(text.parse::<Timestamp>().unwrap().as_millisecond().try_into().unwrap())
    }

    fn every(ms: u64, missed: Missed) -> Repeat {
        Repeat { schedule: Schedule::Every { ms }, missed }
    }

    fn cron(text: &str, zone: &str, missed: Missed) -> Repeat {
        Repeat { schedule: Schedule::Cron { text: text.into(), zone: zone.into() }, missed }
    }

    #[test]
    fn the_first_due_time_is_after_now() {
        let now = Millis(10_500);
        let due = |when: When| when.begin(now).unwrap().0;
        let second = Duration::from_secs(1);
        assert_eq!(due(Duration::ZERO.into()), Millis(10_501));
        assert_eq!(due(second.into()), Millis(11_500));
        assert_eq!(due(When::at(Millis(3))), Millis(10_501));
        assert_eq!(due(When::at(Millis(20_000))), Millis(20_000));
        assert_eq!(due(When::every(second)), Millis(11_500));
        assert_eq!(due(When::every(second).starting(Millis(3100))), Millis(11_100));
        assert_eq!(due(When::every(second).starting(Millis(30_100))), Millis(30_100));
        assert_eq!(due(When::cron("* * * * *")), Millis(60_000));
        assert_eq!(due(When::cron("* * * * * *")), Millis(11_000));
        assert_eq!(due(When::cron("* * * * *").starting(Millis(120_000))), Millis(120_000));
    }

    #[test]
    fn what_cannot_be_a_schedule_is_refused_with_a_reason() {
        let refused = |when: When| match when.begin(Millis(5)) {
            Err(Fault::BadSchedule(why)) => why,
            other => panic!("{other:?}"),
        };
        assert!(refused(When::cron("0 25 * * *")).contains("0 25 * * *"));
        assert!(refused(When::cron("")).contains("five fields"));
        assert!(refused(When::cron("*".repeat(300))).contains("256"));
        assert!(refused(When::cron("0 9 * * *").zone("Mars/Olympus")).contains("Mars/Olympus"));
        assert!(refused(When::cron("0 0 30 2 *")).contains("never"));
        assert!(refused(When::every(Duration::ZERO)).contains("10 ms"));
        let all = |at_most| When::every(Duration::from_secs(1)).missed(Missed::All { at_most });
        assert!(refused(all(0)).contains("1 to 1000") && refused(all(1001)).contains("1001"));
    }

    #[test]
    fn due_times_do_not_drift() {
        let repeat = every(SECOND, Missed::Once);
        assert_eq!(next(&repeat, Millis(5000), Millis(5300)), Some(Millis(6000)));
        assert_eq!(next(&repeat, Millis(5000), Millis(6000)), Some(Millis(7000)));
        assert_eq!(next(&repeat, Millis(5000), Millis(99_999)), Some(Millis(100_000)));
        assert_eq!(next(&repeat, Millis(u64::MAX - 5), Millis(u64::MAX)), None, "there is no time then");
    }

    #[test]
    fn a_missed_time_is_fired_for_once_or_for_each_or_not_at_all() {
        let (due, now) = (Millis(10 * SECOND), Millis(20 * SECOND + 1));
        assert_eq!(decide(&every(SECOND, Missed::Once), due, now), Decision::Fire);
        assert_eq!(next(&every(SECOND, Missed::Once), due, now), Some(Millis(21 * SECOND)));

        let all = |at_most| every(SECOND, Missed::All { at_most });
        assert_eq!(decide(&all(3), due, now), Decision::Pass(Some(Millis(18 * SECOND))));
        assert_eq!(decide(&all(3), Millis(18 * SECOND), now), Decision::Fire);
        assert_eq!(decide(&all(11), due, now), Decision::Fire);
        assert_eq!(decide(&all(10), due, now), Decision::Pass(Some(Millis(11 * SECOND))));
        assert_eq!(next(&all(3), due, now), Some(Millis(11 * SECOND)));

        let skip = |ms| every(ms, Missed::Skip);
        assert_eq!(decide(&skip(SECOND), due, now), Decision::Pass(Some(Millis(20 * SECOND))));
        assert_eq!(decide(&skip(SECOND), due, due), Decision::Fire);
        assert_eq!(decide(&skip(HOUR), due, due.plus(MISSED_AFTER_MS)), Decision::Fire, "a change of leader");
        let late = due.plus(MISSED_AFTER_MS + 1);
        assert_eq!(decide(&skip(HOUR), due, late), Decision::Pass(Some(due.plus(HOUR))));
    }

    #[test]
    fn cron_times_follow_their_zone_and_its_summer_time() {
        let berlin = cron("30 9 * * MON-FRI", "Europe/Berlin", Missed::Once);
        // The last Friday of winter time, then the first Monday of summer time.
        let friday = at("2026-03-27T08:30:00Z");
        assert_eq!(next(&berlin, friday, friday), Some(at("2026-03-30T07:30:00Z")));
        let gap = cron("30 2 * * *", "Europe/Berlin", Missed::Once);
        let before = at("2026-03-28T01:30:00Z");
        assert_eq!(next(&gap, before, before), Some(at("2026-03-29T01:00:00Z")), "02:30 does not exist");
        let twice = cron("30 2 * * *", "Europe/Berlin", Missed::Once);
        let before = at("2026-10-24T00:30:00Z");
        let first = next(&twice, before, before).unwrap();
        assert_eq!(first, at("2026-10-25T00:30:00Z"));
        assert_eq!(
            next(&twice, first, first),
            Some(at("2026-10-26T01:30:00Z")),
            "02:30 comes twice, fires once"
        );
    }

    #[test]
    fn missed_cron_times_are_counted_back_from_now() {
        let (due, now) = (at("2026-05-01T00:00:00Z"), at("2026-05-02T00:30:00Z"));
        let hourly = |at_most| cron("0 * * * *", "UTC", Missed::All { at_most });
        assert_eq!(decide(&hourly(25), due, now), Decision::Fire);
        assert_eq!(decide(&hourly(24), due, now), Decision::Pass(Some(due.plus(HOUR))));
        assert_eq!(decide(&hourly(2), due, now), Decision::Pass(Some(due.plus(23 * HOUR))));
        let minutes = cron("* * * * *", "UTC", Missed::All { at_most: 3 });
        let newest = at("2026-05-02T00:28:00Z");
        assert_eq!(decide(&minutes, due, now), Decision::Pass(Some(newest)));
        assert_eq!(decide(&minutes, newest, now), Decision::Fire);
        let skip = cron("0 0 * * *", "UTC", Missed::Skip);
        assert_eq!(decide(&skip, due, now), Decision::Pass(Some(at("2026-05-03T00:00:00Z"))));
    }
}
