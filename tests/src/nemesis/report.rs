//! What a run showed.
//!
//! Owns the figures and their table. Never decides what a promise is: violations and problems are found
//! elsewhere and counted here.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use comfy_table::{Table, presets};

use super::history::{Ledger, Op, Outcome, Violation};

/// Violations that are told in full.
const TOLD_MAX: usize = 5;

/// One fault, from its begin to a cluster that serves again.
#[derive(Debug, Clone)]
pub struct Round {
    /// What was done to whom.
    pub name: String,
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
    /// Everything that was called.
    pub ops: Vec<Op>,
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
            // Up to where it served again, so that the gap of the fault is seen whole.
            let until = round.healed + round.served_after.unwrap_or_default() + Duration::from_millis(1);
            let figures = self.figures(round.began, until);
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
}

/// Longest time without an event.
fn longest_gap(from: Duration, to: Duration, mut times: Vec<Duration>) -> Duration {
    times.extend([from, to]);
    times.sort_unstable();
    times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.table())?;
        let whole = self.ops.iter().map(|op| op.returned_at).max().unwrap_or_default();
        let all = self.figures(Duration::ZERO, whole + Duration::from_millis(1));
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
        let sum = |part: fn(&Ledger) -> u64| self.ledgers.iter().map(part).sum::<u64>();
        let (acknowledged, unknown, last) = (sum(|l| l.acknowledged), sum(|l| l.unknown), sum(|l| l.last));
        writeln!(
            f,
            "ledger: counters sum up to {last} = {acknowledged} acknowledged increments + {} of {unknown} unknown ones",
            last as i64 - acknowledged as i64,
        )?;
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
