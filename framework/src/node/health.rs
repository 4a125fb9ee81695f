//! Whether the node is well: its start, its replica thread, and what the application checks.
//!
//! Owns the outcomes of the application's checks and the pulse of the replica thread. A check that fails, hangs
//! or panics makes the node not ready and nothing else: it is no reason to start the process anew. A replica
//! thread that stands still is. Never checks anything itself. In: checks, and the thread's count of its loops;
//! out: reasons, for probes and for people. The three questions are those of Kubernetes.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::time::{Instant, timeout};

use super::{Inner, Replicas};
use crate::app::{App, Check};
use crate::link::lock;
use crate::status::CheckStatus;

/// How long one run of a check may take; then it has failed.
pub const CHECK_MAX: Duration = Duration::from_secs(5);
/// Pause between runs of a check.
pub const CHECK_PERIOD: Duration = Duration::from_secs(5);
/// Longest reason of a check, in bytes; the rest is cut off.
pub const CHECK_WHY_BYTES_MAX: usize = 256;
/// How long the replica thread may stand still until the node is not live.
pub const STILL_MAX: Duration = Duration::from_secs(10);
/// Time between looks at the replica thread's pulse.
const LOOK_PERIOD: Duration = Duration::from_secs(1);

/// What is known of the node's health.
pub(super) struct Health {
    checks: Vec<Checked>,
    pulse: Mutex<Pulse>,
}

/// A check of the application and how it ended last.
struct Checked {
    name: &'static str,
    check: Check,
    last: Mutex<Result<(), String>>,
}

impl Health {
    pub(super) fn new(app: &App) -> Self {
        let checked = |(name, check): &(&'static str, Check)| Checked {
            name,
            check: check.clone(),
            last: Mutex::new(Err("it has not run yet".into())),
        };
        Self {
            checks: app.checks().iter().map(checked).collect(),
            pulse: Mutex::new(Pulse::new(Instant::now())),
        }
    }

    /// The application's checks, in the order they were added.
    pub(super) fn checks(&self) -> Vec<CheckStatus> {
        let status = |checked: &Checked| {
            let why = lock(&checked.last).clone().err();
            CheckStatus { name: checked.name.to_owned(), up: why.is_none(), why }
        };
        self.checks.iter().map(status).collect()
    }

    /// Checks that failed, and why.
    pub(super) fn failing(&self) -> Vec<String> {
        let why = |check: CheckStatus| check.why.map(|why| format!("check {}: {why}", check.name));
        self.checks().into_iter().filter_map(why).collect()
    }
}

/// Starts what looks after the node's health.
pub(super) fn start(inner: &Arc<Inner>) {
    for at in 0..inner.health.checks.len() {
        inner.spawn(run(inner.clone(), at));
    }
    if !matches!(inner.replicas, Replicas::Folder) {
        return; // The replica of a simulated machine is no thread.
    }
    let one = inner.clone();
    inner.spawn(async move {
        loop {
            tokio::time::sleep(LOOK_PERIOD).await;
            still(&one);
        }
    });
}

/// Runs a check again and again.
async fn run(inner: Arc<Inner>, at: usize) {
    let checked = &inner.health.checks[at];
    loop {
        let now = outcome(&checked.check).await;
        let before = std::mem::replace(&mut *lock(&checked.last), now.clone());
        match now {
            Err(why) if before.is_ok() => tracing::warn!(check = checked.name, why, "a check fails"),
            Ok(()) if before.is_err() => tracing::info!(check = checked.name, "a check is well"),
            _ => {}
        }
        tokio::time::sleep(CHECK_PERIOD).await;
    }
}

async fn outcome(check: &Check) -> Result<(), String> {
    let asked = AssertUnwindSafe(async { check().await }).catch_unwind();
    match timeout(CHECK_MAX, asked).await {
        Ok(Ok(outcome)) => outcome.map_err(|mut why| {
            why.truncate(why.floor_char_boundary(CHECK_WHY_BYTES_MAX));
            why
        }),
        Ok(Err(_)) => Err("it panicked; the log says where".into()),
        Err(_) => Err(format!("it has not ended within {} s", CHECK_MAX.as_secs())),
    }
}

/// How long a counter has not changed.
struct Pulse {
    beats: u64,
    since: Instant,
}

impl Pulse {
    fn new(now: Instant) -> Self {
        Self { beats: 0, since: now }
    }

    fn still_for(&mut self, beats: u64, now: Instant) -> Duration {
        if self.beats != beats {
            *self = Self { beats, since: now };
        }
        now - self.since
    }
}

/// How long the replica thread has stood still; `None` while there is none.
fn still(inner: &Inner) -> Option<Duration> {
    let replica = inner.replica()?;
    let beats = replica.metrics().beats.load(Ordering::Relaxed);
    Some(lock(&inner.health.pulse).still_for(beats, Instant::now()))
}

/// Why the process should be started anew; nothing while it is well.
pub(super) fn not_live(inner: &Inner) -> Vec<String> {
    if inner.stopping.is_cancelled() {
        return Vec::new();
    }
    if let Some(why) = inner.failed.borrow().as_ref() {
        return vec![format!("stopped: {why}")];
    }
    match still(inner).filter(|still| *still > STILL_MAX) {
        Some(still) => vec![format!("the replica thread stands still since {} s", still.as_secs())],
        None => Vec::new(),
    }
}

/// What is left to be done before the node can be ready for the first time: finding its cluster, opening its
/// data.
pub(super) fn not_started(inner: &Inner) -> Vec<String> {
    super::status::joined(inner).err().into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health(app: App) -> Health {
        Health::new(&app)
    }

    #[tokio::test(start_paused = true)]
    async fn a_check_that_fails_hangs_or_panics_is_told_and_one_that_is_well_is_not() {
        let long = "ä".repeat(CHECK_WHY_BYTES_MAX);
        let app = App::new("checked")
            .health("well", async || Ok(()))
            .health("failing", async || Err("no route to the bank".into()))
            .health("hanging", std::future::pending)
            .health("panicking", async || panic!("on purpose"))
            .health("verbose", move || std::future::ready(Err(long.clone())));
        let health = health(app);
        assert_eq!(health.failing().len(), 5, "none has run yet");
        for checked in &health.checks {
            *lock(&checked.last) = outcome(&checked.check).await;
        }
        let failing = health.failing();
        assert_eq!(failing[0], "check failing: no route to the bank");
        assert_eq!(failing[1], format!("check hanging: it has not ended within {} s", CHECK_MAX.as_secs()));
        assert_eq!(failing[2], "check panicking: it panicked; the log says where");
        assert!(failing[3].len() <= "check verbose: ".len() + CHECK_WHY_BYTES_MAX);
        assert_eq!(failing.len(), 4);
        let up: Vec<_> = health.checks().into_iter().map(|check| (check.name, check.up)).collect();
        assert_eq!(up[0], ("well".to_owned(), true));
        assert_eq!(up[1], ("failing".to_owned(), false));
    }

    #[test]
    fn a_pulse_that_stands_still_is_noticed_and_one_that_beats_is_not() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut pulse = Pulse::new(start);
        assert_eq!(pulse.still_for(7, at(60)), Duration::ZERO, "nobody looked for long, but it has beaten");
        assert_eq!(pulse.still_for(7, at(65)), Duration::from_secs(5));
        assert_eq!(pulse.still_for(8, at(70)), Duration::ZERO);
        assert!(pulse.still_for(8, at(81)) > STILL_MAX);
    }
}
