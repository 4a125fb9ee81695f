//! How long callers may wait, and whether they waited longer.
//!
//! Owns the goals and their comparison with what was measured. Never judges a run: a missed goal is shown,
//! as callers here pause and give up early, and the machine may have more to do.

use std::time::Duration;

use super::Fault;
use super::report::seconds;

/// What a healed cluster needs at most until it serves everything.
const SERVES_GOAL: Duration = Duration::from_secs(5);

/// How long a counter may be out of reach while its leader is hit.
struct Goal {
    name: &'static str,
    faults: &'static [Fault],
    p50: Option<Duration>,
    p99: Duration,
}

/// The goals for what leaders go through. Other faults have none: there is no majority, or a leader that
/// works slowly is still one.
const GOALS: [Goal; 2] = [
    Goal {
        name: "process killed",
        faults: &[Fault::Kill, Fault::PowerCut],
        p50: Some(Duration::from_millis(250)),
        p99: Duration::from_secs(1),
    },
    Goal {
        name: "partitioned",
        faults: &[Fault::Pause, Fault::Unplug, Fault::Isolate, Fault::Deaf, Fault::Mute],
        p50: None,
        p99: Duration::from_secs(3),
    },
];

/// Sorted times.
pub(super) struct Times(Vec<Duration>);

impl Times {
    pub(super) fn of(times: impl Iterator<Item = Duration>) -> Self {
        let mut times: Vec<_> = times.collect();
        times.sort_unstable();
        Self(times)
    }

    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// The smallest that so many of a hundred do not exceed; `None` if there are none.
    pub(super) fn percentile(&self, percent: usize) -> Option<Duration> {
        let rank = (self.0.len() * percent).div_ceil(100);
        self.0.get(rank.saturating_sub(1)).copied()
    }

    pub(super) fn max(&self) -> Option<Duration> {
        self.0.last().copied()
    }
}

/// Figures of all rounds of a fault.
pub(super) struct Total {
    pub(super) fault: Fault,
    pub(super) rounds: usize,
    /// Longest times without an acknowledged call of each counter that was hit, in each round.
    pub(super) gaps: Times,
    /// Of the rounds after which it served; the others have none.
    pub(super) served_after: Times,
}

/// A goal, and what was measured.
pub(super) struct Compared {
    pub(super) name: &'static str,
    pub(super) goal: String,
    pub(super) times: Times,
    pub(super) kept: bool,
}

/// Compares what was measured with the goals that say something about it.
pub(super) fn compare(totals: &[Total]) -> Vec<Compared> {
    let gap = |goal: &Goal| {
        let of_faults = totals.iter().filter(|total| goal.faults.contains(&total.fault));
        let times = Times::of(of_faults.flat_map(|total| total.gaps.0.iter().copied()));
        let keeps = |percent, most: Duration| times.percentile(percent).is_some_and(|time| time < most);
        let p50 = goal.p50.map_or(String::new(), |most| format!("p50 < {}, ", seconds(most)));
        let compared = Compared {
            name: goal.name,
            goal: format!("{p50}p99 < {}", seconds(goal.p99)),
            kept: goal.p50.is_none_or(|most| keeps(50, most)) && keeps(99, goal.p99),
            times,
        };
        (compared.times.count() > 0).then_some(compared)
    };
    let mut all: Vec<_> = GOALS.iter().filter_map(gap).collect();
    let times = Times::of(totals.iter().flat_map(|total| total.served_after.0.iter().copied()));
    let rounds: usize = totals.iter().map(|total| total.rounds).sum();
    if rounds > 0 {
        all.push(Compared {
            name: "healed serves everything",
            goal: format!("all <= {}", seconds(SERVES_GOAL)),
            kept: times.count() == rounds && times.max().is_some_and(|time| time <= SERVES_GOAL),
            times,
        });
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let s = Duration::from_secs;
        let times = Times::of([4, 1, 3, 2].map(s).into_iter());
        let some = [50, 51, 99].map(|percent| times.percentile(percent));
        assert_eq!(some, [2, 3, 4].map(|time| Some(s(time))));
        assert_eq!(Times::of([].into_iter()).percentile(50), None);
    }

    #[test]
    fn a_round_that_never_served_misses_the_goal() {
        let total = |served: &[u64]| Total {
            fault: Fault::KillAll,
            rounds: 2,
            gaps: Times::of([].into_iter()),
            served_after: Times::of(served.iter().map(|s| Duration::from_secs(*s))),
        };
        let kept =
            |served| compare(&[total(served)]).iter().map(|compared| compared.kept).collect::<Vec<_>>();
        assert_eq!(
            [kept(&[1, 5]), kept(&[1, 6]), kept(&[1]), kept(&[])],
            [[true], [false], [false], [false]]
        );
    }
}
