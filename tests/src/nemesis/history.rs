//! What the clients of a counter saw, and whether one counter can have answered so.
//!
//! Owns the record of operations and the check of linearizability with unknown outcomes. Never looks at
//! a clock: order comes from the ticks of one atomic counter, drawn right before a call and right after
//! its answer. In: operations; out: violations. The condition is Herlihy and Wing's (TOPLAS 1990); the
//! argument below replaces the search of Wing and Gong, against which the tests compare it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// What an operation asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Add one and return the sum.
    Increment,
    /// Return the sum.
    Read,
}

/// What its caller knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was acknowledged with this sum.
    Value(i64),
    /// It failed and its fault said that nothing was applied.
    NotApplied,
    /// It failed, and may take effect at any time after its call, or never.
    Unknown,
}

/// One operation of one client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Op {
    /// Which counter.
    pub key: usize,
    /// Who called, such as `2 (Http)`.
    pub client: String,
    /// What was asked for.
    pub action: Action,
    /// What came of it.
    pub outcome: Outcome,
    /// Tick before the call. No two ticks of a history are equal.
    pub called: u64,
    /// Tick after the answer; above `called`.
    pub returned: u64,
    /// Time of the call since the start of the run; for reports only.
    pub called_at: Duration,
    /// Time of the answer since the start of the run; for reports only.
    pub returned_at: Duration,
}

impl Op {
    fn value(&self) -> Option<i64> {
        match self.outcome {
            Outcome::Value(value) => Some(value),
            Outcome::NotApplied | Outcome::Unknown => None,
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, client, action, outcome, called_at, returned_at, .. } = self;
        let (from, to) = (called_at.as_secs_f64(), returned_at.as_secs_f64());
        write!(f, "key {key}, client {client}, {from:.4} s to {to:.4} s: {action:?} -> {outcome:?}")
    }
}

/// Why no single counter can have answered so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// No counter that starts at zero says this.
    Impossible(Op),
    /// Two acknowledged increments returned one value: one of them was lost, or one turn answered twice.
    Repeated(Op, Op),
    /// The second was called after the first had returned, and says less than the first one's value allows.
    WentBack(Op, Op),
    /// The counter passed more values without an acknowledged increment than unknown ones can explain.
    Unexplained {
        /// This operation returned.
        seen: Op,
        /// Values without an acknowledged increment that it implies.
        gaps: usize,
        /// Increments of unknown outcome that were called before it returned.
        unknown: usize,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Impossible(op) => write!(f, "impossible answer: {op}"),
            Self::Repeated(a, b) => write!(f, "one value was returned twice:\n  {a}\n  {b}"),
            Self::WentBack(a, b) => write!(f, "the counter went back:\n  {a}\n  {b}"),
            Self::Unexplained { seen, gaps, unknown } => {
                write!(
                    f,
                    "{gaps} increments beyond those acknowledged, {unknown} of unknown outcome:\n  {seen}"
                )
            }
        }
    }
}

/// The ledger of one counter: how often it was increased, as far as its clients know.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Acknowledged increments.
    pub acknowledged: u64,
    /// Increments of unknown outcome.
    pub unknown: u64,
    /// Highest value that anybody saw; the final one, if the history ends with a read.
    pub last: u64,
}

impl Ledger {
    /// Of the operations of one counter.
    pub fn of<'a>(ops: impl IntoIterator<Item = &'a Op>) -> Self {
        let mut ledger = Self::default();
        for op in ops {
            let increments = op.action == Action::Increment;
            ledger.acknowledged += u64::from(increments && op.value().is_some());
            ledger.unknown += u64::from(increments && op.outcome == Outcome::Unknown);
            ledger.last = ledger.last.max(op.value().and_then(|v| u64::try_from(v).ok()).unwrap_or(0));
        }
        ledger
    }
}

/// Checks each counter of a history on its own: linearizability is local (Herlihy and Wing, theorem 1).
#[must_use]
pub fn check(ops: &[Op]) -> Vec<Violation> {
    let mut by_key: BTreeMap<usize, Vec<&Op>> = BTreeMap::new();
    for op in ops {
        by_key.entry(op.key).or_default().push(op);
    }
    by_key.values().flat_map(|ops| check_counter(ops)).collect()
}

/// Checks one counter that starts at zero. Exact: empty if and only if the history is linearizable.
///
/// Operations that failed without effect and reads without an answer constrain nothing. Let `F` be the
/// highest value returned. The history is linearizable iff there are times `t(1) < .. < t(F)`, that at
/// which the counter becomes `v` being `t(v)`, such that
///
/// 1. an acknowledged increment that returned `v` has `called < t(v) < returned`, and is the only one,
/// 2. a read that returned `w` fits between: `t(w) < returned` and `called < t(w+1)`; its point is then
///    right after the later of `t(w)` and `called`,
/// 3. each value without an acknowledged increment has an unknown one of its own, with `called < t(v)`.
///
/// Unknown increments that are left over never take effect, so nothing above `F` is needed. By 1 and 2
/// each `t(v)` has an open interval `(low(v), high(v))` of ticks, where no two ticks are equal. If there
/// are such times at all, then `t(v)` just below `latest(v) = min { high(u) | u >= v }` are such times too: none
/// can be later, they can be told apart in order, and being late only helps the lower bounds of 1, 2 and
/// 3. So 1 and 2 hold iff `low(v) < latest(v)` for all `v`. For 3, the values without an acknowledged
/// increment in order have ascending `latest`, so an unknown increment that is early enough for one is so
/// for all after it: they can be given out iff for each `k` at least `k` of them were called before the
/// `k`-th such value's `latest` (Hall's condition on a chain).
fn check_counter(ops: &[&Op]) -> Vec<Violation> {
    let mut violations = Vec::new();
    // Returned values are kept below the number of increments, so that they can index.
    let possible =
        ops.iter().filter(|op| op.action == Action::Increment && op.outcome != Outcome::NotApplied).count();
    let mut answered: Vec<(usize, &Op)> = Vec::new();
    for op in ops {
        let Some(value) = op.value() else { continue };
        let least = i64::from(op.action == Action::Increment);
        match usize::try_from(value) {
            Ok(value) if value <= possible && value as i64 >= least => answered.push((value, op)),
            _ => violations.push(Violation::Impossible((*op).clone())),
        }
    }
    let last = answered.iter().map(|(value, _)| *value).max().unwrap_or(0);

    // By value; index 0 stays empty, as nothing has to happen for a counter to be zero.
    let mut taken: Vec<Option<&Op>> = vec![None; last + 1];
    let mut high: Vec<Option<&Op>> = vec![None; last + 1];
    let mut low: Vec<Option<&Op>> = vec![None; last + 2];
    for (value, op) in answered {
        if high[value].is_none_or(|earlier| op.returned < earlier.returned) {
            high[value] = Some(op);
        }
        let needs = match op.action {
            Action::Increment => {
                match taken[value] {
                    Some(other) => violations.push(Violation::Repeated(other.clone(), op.clone())),
                    None => taken[value] = Some(op),
                }
                value
            }
            Action::Read => value + 1,
        };
        if low[needs].is_none_or(|later| op.called > later.called) {
            low[needs] = Some(op);
        }
    }
    let mut latest = high;
    for value in (1..last).rev() {
        if let Some(above) = latest[value + 1]
            && latest[value].is_none_or(|own| above.returned < own.returned)
        {
            latest[value] = Some(above);
        }
    }
    for value in 1..=last {
        if let (Some(low), Some(latest)) = (low[value], latest[value])
            && low.called > latest.returned
        {
            violations.push(Violation::WentBack(latest.clone(), low.clone()));
        }
    }

    let mut unknown: Vec<u64> = ops
        .iter()
        .filter(|op| op.action == Action::Increment && op.outcome == Outcome::Unknown)
        .map(|op| op.called)
        .collect();
    unknown.sort_unstable();
    let gaps = (1..=last).filter(|value| taken[*value].is_none());
    for (before, value) in gaps.enumerate() {
        let seen = latest[value].expect("some operation returned the highest value");
        let early = unknown.partition_point(|called| *called < seen.returned);
        if early <= before {
            violations.push(Violation::Unexplained { seen: seen.clone(), gaps: before + 1, unknown: early });
            break;
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::seq::SliceRandom;
    use rand::{Rng, SeedableRng};

    use super::*;

    fn op(action: Action, outcome: Outcome, called: u64, returned: u64) -> Op {
        let at = Duration::from_secs;
        let (called_at, returned_at) = (at(called), at(returned));
        Op { key: 0, client: "x".into(), action, outcome, called, returned, called_at, returned_at }
    }
    fn add(value: i64, called: u64, returned: u64) -> Op {
        op(Action::Increment, Outcome::Value(value), called, returned)
    }
    fn lost(called: u64, returned: u64) -> Op {
        op(Action::Increment, Outcome::Unknown, called, returned)
    }
    fn read(value: i64, called: u64, returned: u64) -> Op {
        op(Action::Read, Outcome::Value(value), called, returned)
    }

    /// The search of Wing and Gong: takes any operation that no other one must precede.
    fn linearizable(ops: &[Op], done: u32, value: i64) -> bool {
        let open = |at: usize| done & (1 << at) == 0;
        let returns = |op: &Op| if op.outcome == Outcome::Unknown { u64::MAX } else { op.returned };
        let first_return = (0..ops.len()).filter(|at| open(*at)).map(|at| returns(&ops[at])).min();
        // What is unknown need not happen.
        if (0..ops.len()).all(|at| !open(at) || ops[at].outcome == Outcome::Unknown) {
            return true;
        }
        (0..ops.len()).any(|at| {
            let op = &ops[at];
            let next = if op.action == Action::Increment { value + 1 } else { value };
            open(at)
                && first_return.is_some_and(|first| op.called < first)
                && op.value().is_none_or(|said| said == next)
                && linearizable(ops, done | 1 << at, next)
        })
    }

    #[test]
    fn the_argument_agrees_with_the_search() {
        let mut random = StdRng::seed_from_u64(7);
        let mut verdicts = [0_u32; 2];
        for _ in 0..100_000 {
            let count = random.random_range(1..=7);
            let mut ticks: Vec<u64> = (0..2 * count).collect();
            ticks.shuffle(&mut random);
            // The order that really was, then a mistake now and then.
            let mut ops: Vec<Op> = ticks
                .chunks(2)
                .map(|pair| {
                    let action = if random.random_bool(0.6) { Action::Increment } else { Action::Read };
                    op(action, Outcome::NotApplied, pair[0].min(pair[1]), pair[0].max(pair[1]))
                })
                .collect();
            let mut order: Vec<(f64, usize)> = ops
                .iter()
                .enumerate()
                .map(|(at, op)| (random.random_range(op.called as f64..op.returned as f64), at))
                .collect();
            order.sort_by(|a, b| a.0.total_cmp(&b.0));
            let mut value = 0;
            for (_, at) in order {
                let op = &mut ops[at];
                let applied = op.action == Action::Increment && random.random_bool(0.9);
                value += i64::from(applied);
                op.outcome = match op.action {
                    Action::Increment if !applied || random.random_bool(0.2) => Outcome::Unknown,
                    _ => Outcome::Value(value + i64::from(random.random_bool(0.08))),
                };
            }
            let refs: Vec<_> = ops.iter().collect();
            let expected = linearizable(&ops, 0, 0);
            assert_eq!(check_counter(&refs).is_empty(), expected, "{ops:#?}");
            verdicts[usize::from(expected)] += 1;
        }
        assert!(verdicts.iter().all(|seen| *seen > 10_000), "{verdicts:?}");
    }

    #[test]
    fn what_must_not_be_is_named() {
        let found = |ops: &[Op]| check(ops);
        assert_eq!(found(&[add(1, 0, 1), lost(2, 3), read(1, 4, 5), read(2, 6, 7)]), []);
        assert!(matches!(found(&[add(1, 0, 1), add(1, 2, 3)])[..], [Violation::Repeated(..), ..]));
        assert!(matches!(found(&[add(1, 0, 1), read(0, 2, 3)])[..], [Violation::WentBack(..)]));
        let two = [read(1, 2, 3), read(0, 4, 5), add(1, 0, 6)];
        assert!(matches!(found(&two)[..], [Violation::WentBack(..)]));
        assert!(matches!(found(&[add(2, 0, 1), lost(2, 3)])[..], [Violation::Unexplained { .. }]));
        assert!(matches!(found(&[add(1, 0, 1), read(2, 2, 3)])[..], [Violation::Impossible(_)]));
        assert!(matches!(found(&[add(0, 0, 1)])[..], [Violation::Impossible(_)]));
        let apart = [add(1, 0, 1), Op { key: 1, ..add(1, 2, 3) }];
        assert_eq!(found(&apart), []);
    }

    #[test]
    fn the_ledger_counts_what_clients_know() {
        let failed = op(Action::Increment, Outcome::NotApplied, 8, 9);
        let ops = [add(1, 0, 1), lost(2, 3), read(2, 4, 5), failed];
        assert_eq!(Ledger::of(&ops), Ledger { acknowledged: 1, unknown: 1, last: 2 });
    }
}
