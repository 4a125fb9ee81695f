//! Counters of the replica thread.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What the replica thread has done since it started. Counters only grow.
#[derive(Debug, Default)]
pub struct ReplicaMetrics {
    /// Flushes of the log.
    pub flushes: AtomicU64,
    /// Time spent in them, in nanoseconds.
    pub flush_nanos: AtomicU64,
    /// The longest one, in nanoseconds.
    pub flush_nanos_max: AtomicU64,
    /// Entries appended to the log.
    pub entries: AtomicU64,
    /// Bytes written to the log.
    pub log_bytes: AtomicU64,
    /// Entries applied.
    pub applied: AtomicU64,
    /// Row operations that came of them.
    pub row_ops: AtomicU64,
    /// Messages sent to peers.
    pub messages_sent: AtomicU64,
    /// Messages taken from peers.
    pub messages_received: AtomicU64,
    /// Messages of peers dropped: queue full, or not plausible.
    pub messages_dropped: AtomicU64,
    /// Snapshots streamed to peers.
    pub snapshots_sent: AtomicU64,
    /// Snapshots that could not be streamed.
    pub snapshots_failed: AtomicU64,
    /// Snapshots of peers given up because they could not be staged here.
    pub snapshots_unstaged: AtomicU64,
    /// Snapshots installed.
    pub snapshots_installed: AtomicU64,
    /// Proposals refused, counted by their events.
    pub proposals_refused: AtomicU64,
    /// Checkpoints completed.
    pub checkpoints: AtomicU64,
    /// Loops of the thread, idle ones too: its pulse.
    pub beats: AtomicU64,
    /// Loops of the thread that had something to do.
    pub loops: AtomicU64,
}

impl ReplicaMetrics {
    pub(crate) fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn flushed(&self, took: Duration, bytes: u64) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        Self::add(&self.flushes, 1);
        Self::add(&self.flush_nanos, nanos);
        Self::add(&self.log_bytes, bytes);
        self.flush_nanos_max.fetch_max(nanos, Ordering::Relaxed);
    }
}
