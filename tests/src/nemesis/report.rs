//! What a run showed.
//!
//! Owns the figures, their tables and their JSON. Never decides what a promise is: violations and
//! problems are found elsewhere and counted here.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use comfy_table::{Table, presets};
use serde_json::{Value, json};

use super::Fault;
use super::goals::{Compared, Times, Total, compare};
use super::history::{Ledger, Op, Outcome, Violation};

/// Violations that are told in full.
const TOLD_MAX: usize = 5;
/// Makes a window of time contain what ends it.
const MOMENT: Duration = Duration::from_millis(1);

/// A fault that cannot be made here.
#[derive(Debug, Clone)]
pub struct Skipped {
    /// Which one.
    pub fault: Fault,
    /// What is missing.
    pub why: String,
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.fault.name(), self.why)
    }
}

/// One fault, from its begin to a cluster that serves again.
#[derive(Debug, Clone)]
pub struct Round {
    /// Which one.
    pub fault: Fault,
    /// What was done to whom.
    pub name: String,
    /// The counters whose leader was hit.
    pub hit: Vec<usize>,
    /// Begin, since the start of the run.
    pub began: Duration,
    /// When it was healed, since the start of the run.
    pub healed: Duration,
    /// From the heal until a new write of every counter was acknowledged; `None` if that took too long.
    pub served_after: Option<Duration>,
    /// From the heal until every node was ready; `None` if that took too long.
    pub ready_after: Option<Duration>,
}

/// What a run showed.
#[derive(Debug, Clone)]
pub struct Report {
    /// Repeats the plan of the run.
    pub seed: u64,
    /// The faults in order.
    pub rounds: Vec<Round>,
    /// Faults that could not be made here.
    pub skipped: Vec<Skipped>,
    /// Everything that was called.
    pub ops: Vec<Op>,
    /// How often what else was called, and what came of it.
    pub besides: BTreeMap<&'static str, u64>,
    /// Faults that callers got, by code.
    pub faults: BTreeMap<String, u64>,
    /// By counter.
    pub ledgers: Vec<Ledger>,
    /// Broken promises about answers; there must be none.
    pub violations: Vec<Violation>,
    /// Everything else that must not be, such as a cluster that did not come back.
    pub problems: Vec<String>,
    /// Faults told to callers that no failure of a node or of the network explains. Nothing is lost by
    /// them, but a caller was told not to try again.
    pub unexpected: Vec<String>,
    /// Folder with the nodes' logs, if it was kept.
    pub kept: Option<PathBuf>,
}

/// Figures of one window of time.
struct Figures {
    acknowledged: usize,
    refused: usize,
    unknown: usize,
    gap: Duration,
    gap_of_key: Duration,
}

impl Report {
    /// Whether every answer was right and the cluster always came back.
    #[must_use]
    pub fn kept_all(&self) -> bool {
        self.violations.is_empty() && self.problems.is_empty()
    }

    fn figures(&self, from: Duration, to: Duration) -> Figures {
        let ops: Vec<_> =
            self.ops.iter().filter(|op| from <= op.returned_at && op.returned_at < to).collect();
        let count = |what: fn(&Outcome) -> bool| ops.iter().filter(|op| what(&op.outcome)).count();
        let acknowledged: Vec<_> = ops.iter().filter(|op| matches!(op.outcome, Outcome::Value(_))).collect();
        let times = |key: Option<usize>| {
            let of_key = acknowledged.iter().filter(|op| key.is_none_or(|key| op.key == key));
            of_key.map(|op| op.returned_at).collect()
        };
        let of_keys = (0..self.ledgers.len()).map(|key| longest_gap(from, to, times(Some(key))));
        Figures {
            acknowledged: acknowledged.len(),
            refused: count(|outcome| *outcome == Outcome::NotApplied),
            unknown: count(|outcome| *outcome == Outcome::Unknown),
            gap: longest_gap(from, to, times(None)),
            gap_of_key: of_keys.max().unwrap_or_default(),
        }
    }

    /// Longest times without an acknowledged call of each counter that a round hit.
    fn gaps(&self, round: &Round) -> Vec<Duration> {
        let (from, to) = (round.began, round.until());
        let of_key = |key: usize| {
            let ops = self.ops.iter().filter(|op| op.key == key && matches!(op.outcome, Outcome::Value(_)));
            let times = ops.map(|op| op.returned_at).filter(|at| (from..to).contains(at));
            longest_gap(from, to, times.collect())
        };
        round.hit.iter().map(|key| of_key(*key)).collect()
    }

    fn totals(&self) -> Vec<Total> {
        let total = |fault: Fault| {
            let rounds: Vec<_> = self.rounds.iter().filter(|round| round.fault == fault).collect();
            let gaps = Times::of(rounds.iter().flat_map(|round| self.gaps(round)));
            let served_after = Times::of(rounds.iter().filter_map(|round| round.served_after));
            Total { fault, rounds: rounds.len(), gaps, served_after }
        };
        Fault::value_variants().iter().copied().map(total).filter(|total| total.rounds > 0).collect()
    }

    /// The whole run up to its last answer.
    fn whole(&self) -> (Duration, Figures) {
        let whole = self.ops.iter().map(|op| op.returned_at).max().unwrap_or_default();
        (whole, self.figures(Duration::ZERO, whole + MOMENT))
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED);
        table.set_header([
            "fault",
            "held",
            "acknowledged",
            "refused",
            "unknown",
            "gap",
            "gap of a key",
            "serves after",
            "ready after",
        ]);
        for round in &self.rounds {
            let figures = self.figures(round.began, round.until());
            let or_never = |time: Option<Duration>| time.map_or("NEVER".into(), seconds);
            table.add_row([
                round.name.clone(),
                seconds(round.healed - round.began),
                figures.acknowledged.to_string(),
                figures.refused.to_string(),
                figures.unknown.to_string(),
                seconds(figures.gap),
                seconds(figures.gap_of_key),
                or_never(round.served_after),
                or_never(round.ready_after),
            ]);
        }
        table
    }

    fn table_of_totals(totals: &[Total]) -> Table {
        let mut table = Table::new();
        table.load_style(presets::UTF8_FULL_CONDENSED);
        table.set_header([
            "fault",
            "times",
            "counters hit",
            "gap p50",
            "gap p99",
            "gap max",
            "serves p50",
            "serves max",
        ]);
        for total in totals {
            let or_none = |time: Option<Duration>| time.map_or("-".into(), seconds);
            table.add_row([
                total.fault.name(),
                total.rounds.to_string(),
                total.gaps.count().to_string(),
                or_none(total.gaps.percentile(50)),
                or_none(total.gaps.percentile(99)),
                or_none(total.gaps.max()),
                or_none(total.served_after.percentile(50)),
                or_none(total.served_after.max()),
            ]);
        }
        table
    }

    /// All figures, for programs.
    #[must_use]
    pub fn json(&self) -> Value {
        let (whole, all) = self.whole();
        let totals = self.totals();
        let times = |times: &Times| {
            let ms = |time: Option<Duration>| time.map(millis);
            json!({
                "samples": times.count(),
                "p50_ms": ms(times.percentile(50)),
                "p99_ms": ms(times.percentile(99)),
                "max_ms": ms(times.max()),
            })
        };
        let rounds = self.rounds.iter().map(|round| {
            let figures = self.figures(round.began, round.until());
            json!({
                "fault": round.fault.name(),
                "name": round.name,
                "began_ms": millis(round.began),
                "healed_ms": millis(round.healed),
                "acknowledged": figures.acknowledged,
                "refused": figures.refused,
                "unknown": figures.unknown,
                "gap_ms": millis(figures.gap),
                "gap_of_key_ms": millis(figures.gap_of_key),
                "counters_hit": round.hit,
                "gaps_hit_ms": self.gaps(round).into_iter().map(millis).collect::<Vec<_>>(),
                "served_after_ms": round.served_after.map(millis),
                "ready_after_ms": round.ready_after.map(millis),
            })
        });
        let faults = totals.iter().map(|total| {
            json!({
                "fault": total.fault.name(),
                "times": total.rounds,
                "gaps": times(&total.gaps),
                "served_after": times(&total.served_after),
            })
        });
        let goals = compare(&totals).into_iter().map(|goal| {
            json!({ "name": goal.name, "goal": goal.goal, "measured": times(&goal.times), "kept": goal.kept })
        });
        let skipped = self.skipped.iter();
        let ledger = self.ledger();
        json!({
            "seed": self.seed,
            "kept_all": self.kept_all(),
            "operations": self.ops.len(),
            "duration_ms": millis(whole),
            "acknowledged": all.acknowledged,
            "refused": all.refused,
            "unknown": all.unknown,
            "ledger": {
                "counters": self.ledgers.len(),
                "sum": ledger.last,
                "acknowledged": ledger.acknowledged,
                "unknown": ledger.unknown,
            },
            "faults": faults.collect::<Vec<_>>(),
            "goals": goals.collect::<Vec<_>>(),
            "rounds": rounds.collect::<Vec<_>>(),
            "skipped": skipped
                .map(|skipped| json!({ "fault": skipped.fault.name(), "why": skipped.why }))
                .collect::<Vec<_>>(),
            "besides": self.besides,
            "told_to_callers": self.faults,
            "violations": self.violations.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "problems": self.problems,
            "unexpected": self.unexpected,
            "kept_in": self.kept,
        })
    }

    /// That of all counters together.
    fn ledger(&self) -> Ledger {
        let sum = |part: fn(&Ledger) -> u64| self.ledgers.iter().map(part).sum();
        Ledger { acknowledged: sum(|l| l.acknowledged), unknown: sum(|l| l.unknown), last: sum(|l| l.last) }
    }
}

impl Round {
    /// Up to where it served again, so that the gap of the fault is seen whole.
    fn until(&self) -> Duration {
        self.healed + self.served_after.unwrap_or_default() + MOMENT
    }
}

/// Longest time without an event.
fn longest_gap(from: Duration, to: Duration, mut times: Vec<Duration>) -> Duration {
    times.extend([from, to]);
    times.sort_unstable();
    times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A time, as reports show it.
pub(super) fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.table())?;
        let totals = self.totals();
        writeln!(f, "{}", Self::table_of_totals(&totals))?;
        for Compared { name, goal, times, kept } in compare(&totals) {
            let [p50, p99, max] = [times.percentile(50), times.percentile(99), times.max()]
                .map(|time| time.map_or("-".into(), seconds));
            let verdict = if kept { "kept" } else { "MISSED" };
            let samples = times.count();
            writeln!(f, "goal {name}: {goal}: {verdict} (p50 {p50}, p99 {p99}, max {max} of {samples})")?;
        }
        for skipped in &self.skipped {
            writeln!(f, "!!! SKIPPED fault {skipped}")?;
        }
        let (whole, all) = self.whole();
        writeln!(
            f,
            "seed {}: {} operations on {} counters in {}: {} acknowledged, {} refused, {} unknown",
            self.seed,
            self.ops.len(),
            self.ledgers.len(),
            seconds(whole),
            all.acknowledged,
            all.refused,
            all.unknown,
        )?;
        let Ledger { acknowledged, unknown, last } = self.ledger();
        writeln!(
            f,
            "ledger: counters sum up to {last} = {acknowledged} acknowledged increments + {} of {unknown} unknown ones",
            last as i64 - acknowledged as i64,
        )?;
        let besides: Vec<_> = self.besides.iter().map(|(what, count)| format!("{count} {what}")).collect();
        writeln!(f, "besides: {}", besides.join(", "))?;
        let faults: Vec<_> = self.faults.iter().map(|(code, count)| format!("{code} {count}")).collect();
        writeln!(
            f,
            "faults told to callers: {}",
            if faults.is_empty() { "none".into() } else { faults.join(", ") }
        )?;
        let (violations, problems) = (self.violations.len(), self.problems.len());
        writeln!(
            f,
            "violations: {violations}; problems: {problems}; unexpected faults: {}",
            self.unexpected.len()
        )?;
        for violation in self.violations.iter().take(TOLD_MAX) {
            writeln!(f, "VIOLATION: {violation}")?;
        }
        for problem in &self.problems {
            writeln!(f, "PROBLEM: {problem}")?;
        }
        for fault in self.unexpected.iter().take(TOLD_MAX) {
            writeln!(f, "UNEXPECTED FAULT: {fault}")?;
        }
        if let Some(kept) = &self.kept {
            writeln!(f, "logs and history are kept in {}", kept.display())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_reaches_to_the_ends_of_its_window() {
        let s = Duration::from_secs;
        assert_eq!(longest_gap(s(10), s(20), vec![s(17), s(11)]), s(6));
        assert_eq!(longest_gap(s(10), s(20), vec![s(11)]), s(9));
        assert_eq!(longest_gap(s(10), s(20), Vec::new()), s(10));
    }
}
