//! Load that an application brings for `demo`: calls under failures, with a ledger to check afterwards.
//!
//! Owns the [`Workload`] contract and the [`Probe`] that counts what its calls experienced. Never decides
//! whether a cluster kept its promises: the report of the workload does. In go a client and a stop
//! signal, out comes a [`LoadReport`]. The method (drive, break, read everything back) is Jepsen's.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use perennial::actor::BoxFuture;
use perennial::call::{ActorId, Failure};
use perennial::core::id::{NodeId, PartitionId};
use perennial::{Call, CallError, Client, Data, Detailed, Fault};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

/// Longest latency told apart, in microseconds.
const LATENCY_MICROS_MAX: u64 = 120_000_000;
/// Most partitions that gaps are measured of.
const PARTITIONS_MAX: usize = 4096;

/// How long reading back keeps trying, and waits for what is still on its way.
pub const SETTLE_MAX: Duration = Duration::from_secs(30);
/// How often it looks.
pub const SETTLE_PAUSE: Duration = Duration::from_millis(100);

/// A load of an application, able to check afterwards that no acknowledged call was lost or doubled.
pub trait Workload: Send + Sync + 'static {
    /// Short name, such as `carts`.
    fn name(&self) -> &'static str;
    /// Starts the load in tasks of its own; returns at once.
    fn start(&self, ctx: LoadContext) -> Box<dyn RunningLoad>;
}

/// What a workload is given.
#[derive(Clone)]
pub struct LoadContext {
    /// The cluster.
    pub client: Client,
    /// How many logical clients to run; each has at most one call in flight.
    pub clients: usize,
    /// Seed for everything random; also fit to make keys of this run unlike those of others.
    pub seed: u64,
    /// Where each call's outcome is told.
    pub probe: Probe,
    /// No new call is made once this is cancelled; calls in flight are awaited.
    pub stop: CancellationToken,
}

/// A workload that runs.
pub trait RunningLoad: Send {
    /// After the stop: waits for its tasks, reads everything back and reports.
    ///
    /// # Errors
    /// The fault that kept it from reading back.
    fn finish(self: Box<Self>) -> BoxFuture<'static, Result<LoadReport, Fault>>;
}

/// What reading everything back showed.
#[derive(Debug, Clone, Default, Serialize)]
pub struct LoadReport {
    /// Turns that were acknowledged.
    pub acknowledged: u64,
    /// Turns whose outcome the caller never learned; each may or may not have been applied.
    pub unknown: u64,
    /// Acknowledged turns that are missing.
    pub lost: u64,
    /// Turns that were applied more than once.
    pub doubled: u64,
    /// Further numbers, such as chat messages out of order.
    pub checks: Vec<Check>,
    /// Remarks for the reader.
    pub notes: Vec<String>,
}

impl LoadReport {
    /// Adds a number that must be zero.
    #[must_use]
    pub fn zero(mut self, label: impl Into<String>, value: u64) -> Self {
        self.checks.push(Check { label: label.into(), value, must_be_zero: true });
        self
    }

    /// Adds a number that is only told.
    #[must_use]
    pub fn told(mut self, label: impl Into<String>, value: u64) -> Self {
        self.checks.push(Check { label: label.into(), value, must_be_zero: false });
        self
    }

    /// Whether every promise was kept.
    #[must_use]
    pub fn kept(&self) -> bool {
        self.lost == 0 && self.doubled == 0 && self.checks.iter().all(|c| !c.must_be_zero || c.value == 0)
    }
}

/// One number of a report.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// What was counted.
    pub label: String,
    /// How many.
    pub value: u64,
    /// Whether anything but zero breaks a promise.
    pub must_be_zero: bool,
}

/// Tells a fault of the cluster from an answer of the application.
pub trait FaultOf {
    /// The fault, if it is one.
    fn fault_of(&self) -> Option<&Fault>;
}
impl FaultOf for Fault {
    fn fault_of(&self) -> Option<&Fault> {
        Some(self)
    }
}
impl<E> FaultOf for CallError<E> {
    fn fault_of(&self) -> Option<&Fault> {
        match self {
            Self::App(_) => None,
            Self::Fault(fault) => Some(fault),
        }
    }
}

/// Makes a call again while that can help, for [`SETTLE_MAX`].
///
/// # Errors
/// The last call's error.
pub async fn insist<T: Data, X: Failure + FaultOf>(call: impl Fn() -> Call<T, X>) -> Result<T, X> {
    let deadline = Instant::now() + SETTLE_MAX;
    loop {
        match call().await {
            Err(error) if error.fault_of().is_some_and(Fault::retryable) && Instant::now() < deadline => {
                tokio::time::sleep(SETTLE_PAUSE).await;
            }
            answer => return answer,
        }
    }
}

/// Counts of calls and the failover gaps seen through them. Cheap to clone; all clones count together.
#[derive(Clone)]
pub struct Probe(Arc<Counts>);

struct Counts {
    partition_of: Box<dyn Fn(&ActorId) -> PartitionId + Send + Sync>,
    acknowledged: AtomicU64,
    retried: AtomicU64,
    failed: AtomicU64,
    latency: Mutex<Histogram<u64>>,
    /// Partitions that answered at least once.
    seen: Vec<AtomicBool>,
    watching: AtomicBool,
    watch: Mutex<Option<Watch>>,
}

/// A death that is being watched.
struct Watch {
    dead: NodeId,
    /// `None` while it is about to be killed.
    died: Option<Instant>,
    waiting: BTreeSet<PartitionId>,
    gaps: BTreeMap<PartitionId, Duration>,
}

/// The totals of a probe.
#[derive(Debug, Clone, Serialize)]
pub struct Tally {
    /// Calls that were answered.
    pub acknowledged: u64,
    /// Of these, calls that were sent more than once.
    pub retried: u64,
    /// Calls that ended in a fault.
    pub failed: u64,
    /// Median latency in microseconds.
    pub p50_micros: u64,
    /// 99th percentile of latency in microseconds.
    pub p99_micros: u64,
    /// Longest latency in microseconds.
    pub max_micros: u64,
}

/// How long the partitions of a dead node were without an answered call.
#[derive(Debug, Clone)]
pub(crate) struct Gaps {
    /// By partition, from the death to the first success.
    pub(crate) by_partition: BTreeMap<PartitionId, Duration>,
    /// Partitions without a success so far.
    pub(crate) waiting: usize,
}

impl Probe {
    /// A probe for a cluster that places its actors so.
    #[must_use]
    pub fn new(partition_of: impl Fn(&ActorId) -> PartitionId + Send + Sync + 'static) -> Self {
        Self(Arc::new(Counts {
            partition_of: Box::new(partition_of),
            acknowledged: AtomicU64::new(0),
            retried: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            latency: Mutex::new(
                Histogram::new_with_bounds(1, LATENCY_MICROS_MAX, 3).expect("the bounds are in order"),
            ),
            seen: std::iter::repeat_with(|| AtomicBool::new(false)).take(PARTITIONS_MAX).collect(),
            watching: AtomicBool::new(false),
            watch: Mutex::new(None),
        }))
    }

    /// Makes a call and tells its outcome to the probe. An application's error is an answer.
    ///
    /// # Errors
    /// Those of the call.
    pub async fn call<T, X>(&self, actor: &ActorId, call: Call<T, X>) -> Result<T, X>
    where
        T: Data,
        X: Failure + FaultOf,
    {
        let started = Instant::now();
        let Detailed { result, node, retries, .. } = call.detailed().await;
        match &result {
            Err(error) if error.fault_of().is_some() => self.failed(),
            _ => self.answered(actor, started, node.as_ref(), retries),
        }
        result
    }

    /// Tells that a call of `actor` was answered.
    pub fn answered(&self, actor: &ActorId, started: Instant, node: Option<&NodeId>, retries: u32) {
        let counts = &*self.0;
        counts.acknowledged.fetch_add(1, Ordering::Relaxed);
        if retries > 0 {
            counts.retried.fetch_add(1, Ordering::Relaxed);
        }
        let micros = started.elapsed().as_micros() as u64;
        lock(&counts.latency).saturating_record(micros.max(1));
        let partition = (counts.partition_of)(actor);
        if let Some(seen) = counts.seen.get(partition.0 as usize) {
            seen.store(true, Ordering::Relaxed);
        }
        if counts.watching.load(Ordering::Acquire) {
            self.look_for_gap(partition, started, node);
        }
    }

    /// Tells that a call ended in a fault.
    pub fn failed(&self) {
        self.0.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// The totals so far.
    #[must_use]
    pub fn tally(&self) -> Tally {
        let latency = lock(&self.0.latency);
        Tally {
            acknowledged: self.0.acknowledged.load(Ordering::Relaxed),
            retried: self.0.retried.load(Ordering::Relaxed),
            failed: self.0.failed.load(Ordering::Relaxed),
            p50_micros: latency.value_at_quantile(0.5),
            p99_micros: latency.value_at_quantile(0.99),
            max_micros: latency.max(),
        }
    }

    /// Prepares to watch the death of `dead`: those of the partitions it led that had answers before.
    /// Returns how many these are.
    pub(crate) fn watch_next(&self, dead: NodeId, mut led: BTreeSet<PartitionId>) -> usize {
        led.retain(|p| self.0.seen.get(p.0 as usize).is_some_and(|seen| seen.load(Ordering::Relaxed)));
        let watched = led.len();
        *lock(&self.0.watch) = Some(Watch { dead, died: None, waiting: led, gaps: BTreeMap::new() });
        watched
    }

    /// Starts the watch: the node was killed at `died`.
    pub(crate) fn watch_from(&self, died: Instant) {
        if let Some(watch) = lock(&self.0.watch).as_mut() {
            watch.died = Some(died);
        }
        self.0.watching.store(true, Ordering::Release);
    }

    /// The gaps of the watched death.
    pub(crate) fn gaps(&self) -> Gaps {
        lock(&self.0.watch).as_ref().map_or(Gaps { by_partition: BTreeMap::new(), waiting: 0 }, |watch| {
            Gaps { by_partition: watch.gaps.clone(), waiting: watch.waiting.len() }
        })
    }

    fn look_for_gap(&self, partition: PartitionId, started: Instant, node: Option<&NodeId>) {
        let mut watch = lock(&self.0.watch);
        let Some(watch) = watch.as_mut() else { return };
        let Some(died) = watch.died else { return };
        // An answer that the dead node gave before it died may arrive after it.
        if node == Some(&watch.dead) && started < died {
            return;
        }
        if watch.waiting.remove(&partition) {
            watch.gaps.insert(partition, died.elapsed());
        }
        if watch.waiting.is_empty() {
            self.0.watching.store(false, Ordering::Release);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    #[test]
    fn a_gap_ends_with_the_first_answer_that_is_not_of_the_dead() {
        let probe = Probe::new(|_| PartitionId(0));
        let actor = ActorId::new("Cart", "a").unwrap();
        let before = Instant::now();
        probe.answered(&actor, before, Some(&node("n1")), 0);
        let led = BTreeSet::from([PartitionId(0), PartitionId(1)]);
        assert_eq!(probe.watch_next(node("n1"), led), 1, "one partition had calls");
        probe.watch_from(Instant::now());
        probe.answered(&actor, before, Some(&node("n1")), 0);
        assert_eq!(probe.gaps().waiting, 1, "an answer from before the death");
        probe.answered(&actor, before, Some(&node("n2")), 1);
        let gaps = probe.gaps();
        assert_eq!((gaps.waiting, gaps.by_partition.len()), (0, 1));
        let tally = probe.tally();
        assert_eq!((tally.acknowledged, tally.retried, tally.failed), (3, 1, 0));
    }

    #[test]
    fn a_report_is_kept_only_if_what_must_be_zero_is() {
        let report = LoadReport::default().told("rooms", 3).zero("out of order", 0);
        assert!(report.kept());
        assert!(!report.clone().zero("missing", 1).kept());
        assert!(!LoadReport { lost: 1, ..report }.kept());
    }
}
