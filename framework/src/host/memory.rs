//! The memory that actors take on a node, and who has to leave when it is too much.
//!
//! Owns the budget and the estimate, shared by all hosts of a node. A host knows which of its actors was
//! used longest ago, and says so here; the host that has the one used longest ago on the whole node lets a
//! batch of its actors leave, then the next host is looked for. So least recently used goes first, on the
//! node and not only in a partition, without a list that all hosts would share. Never touches an actor.
//! Source: least recently used with lazily corrected times, as in the clock algorithm (Corbató, 1968).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use perennial_core::id::{ActorId, PartitionId};
use ractor::ActorRef;

use super::HostMessage;
use super::activation::Activation;
use crate::link::lock;

/// Memory that a node's actors may take unless told otherwise, in bytes.
pub const ACTORS_BYTES_DEFAULT: u64 = 256 * 1024 * 1024;
/// Least that a node may be told, in bytes.
pub const ACTORS_BYTES_MIN: u64 = 1024 * 1024;
/// What an actor in memory takes besides its key and its state, in bytes: its place in a table that is
/// half to nearly full, its place in the line of those that may leave, and what four allocations cost.
pub const ACTIVATION_BYTES: u64 =
    ((size_of::<(ActorId, Activation)>() + 1) * 3 / 2 + size_of::<(u64, ActorId)>() * 3 / 2 + 4 * 16) as u64;
/// A host lets actors leave together with its oldest that were used so much later than the oldest of another
/// host, in milliseconds: it is asked less often, and the order is right to so much.
pub(super) const TOGETHER_MS: u64 = 100;
/// Actors that leave at a time.
pub(super) const BATCH: usize = 256;

/// Why an actor left memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Nobody has called it for long.
    Idle,
    /// The node's budget for actors is used up.
    Memory,
    /// Its partition has as many in memory as it may have.
    Number,
}

impl Reason {
    pub(crate) const ALL: [Self; 3] = [Self::Idle, Self::Memory, Self::Number];

    /// As metrics name it.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Memory => "memory",
            Self::Number => "number",
        }
    }
}

/// The budget of a node and what is used of it.
pub(crate) struct Memory {
    budget: u64,
    used: AtomicU64,
    /// Actors that came into memory.
    made: AtomicU64,
    /// Actors that left it, by reason.
    left: [AtomicU64; Reason::ALL.len()],
    began: OnceLock<Instant>,
    hosts: Mutex<BTreeMap<PartitionId, Entry>>,
}

/// A host as the others see it.
struct Entry {
    shown: Arc<Shown>,
    mailbox: ActorRef<HostMessage>,
}

/// What a host shows the others.
#[derive(Debug)]
pub(super) struct Shown {
    /// When the one of its actors was used that was used longest ago, or earlier; `u64::MAX` without any.
    pub(super) oldest: AtomicU64,
    /// It was told to let actors leave and has not come to it yet.
    asked: AtomicBool,
}

impl Default for Memory {
    fn default() -> Self {
        Self::new(ACTORS_BYTES_DEFAULT)
    }
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Memory")
            .field("budget", &self.budget)
            .field("used", &self.used)
            .finish_non_exhaustive()
    }
}

impl Memory {
    pub(crate) fn new(budget: u64) -> Self {
        Self {
            budget,
            used: AtomicU64::new(0),
            made: AtomicU64::new(0),
            left: Default::default(),
            began: OnceLock::new(),
            hosts: Mutex::default(),
        }
    }

    /// Milliseconds since somebody asked first. By time that only passes: record time may stand still.
    pub(super) fn millis(&self, now: Instant) -> u64 {
        let began = *self.began.get_or_init(|| now);
        u64::try_from(now.saturating_duration_since(began).as_millis()).unwrap_or(u64::MAX)
    }

    /// A host has begun; says what it shows.
    pub(super) fn enter(&self, partition: PartitionId, mailbox: ActorRef<HostMessage>) -> Arc<Shown> {
        let shown = Arc::new(Shown { oldest: AtomicU64::new(u64::MAX), asked: AtomicBool::new(false) });
        lock(&self.hosts).insert(partition, Entry { shown: shown.clone(), mailbox });
        shown
    }

    /// A host has ended; another one of its partition may have begun.
    pub(super) fn leave(&self, partition: PartitionId, shown: &Arc<Shown>) {
        let mut hosts = lock(&self.hosts);
        if hosts.get(&partition).is_some_and(|entry| Arc::ptr_eq(&entry.shown, shown)) {
            hosts.remove(&partition);
        }
    }

    /// When the actor was used that was used longest ago of those of all other hosts.
    pub(super) fn oldest_elsewhere(&self, partition: PartitionId) -> u64 {
        let hosts = lock(&self.hosts);
        let others = hosts.iter().filter(|(of, _)| **of != partition);
        others.map(|(_, entry)| entry.shown.oldest.load(Ordering::Relaxed)).min().unwrap_or(u64::MAX)
    }

    /// Tells the host to let actors leave that has the one used longest ago; true if that is the asker's own.
    pub(super) fn oldest_is_of(&self, partition: PartitionId) -> bool {
        let hosts = lock(&self.hosts);
        let oldest = hosts
            .iter()
            .min_by_key(|(of, entry)| (entry.shown.oldest.load(Ordering::Relaxed), **of != partition, **of));
        let Some((of, entry)) = oldest else { return true };
        if *of == partition {
            return true;
        }
        if !entry.shown.asked.swap(true, Ordering::Relaxed) {
            // One that is gone takes its entry along when it is dropped.
            let _ = entry.mailbox.cast(HostMessage::Relieve);
        }
        false
    }

    pub(super) fn charge(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn release(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(super) fn note_made(&self) {
        self.made.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn note_left(&self, reason: Reason) {
        self.left[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Whether more is used than the budget.
    pub(super) fn is_above(&self) -> bool {
        self.used() > self.budget
    }

    /// Whether so much is used that no call brings another actor in: an eighth more than the budget.
    pub(super) fn is_full(&self) -> bool {
        self.used() > self.budget + self.budget / 8
    }

    /// Whether enough has left: a little below the budget, so that not every call asks somebody to leave.
    pub(super) fn is_relieved(&self) -> bool {
        self.used() <= self.budget - self.budget / 64
    }

    /// The budget, in bytes.
    pub(crate) fn budget(&self) -> u64 {
        self.budget
    }

    /// Bytes that actors take, by estimate.
    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Actors that came into memory so far.
    pub(crate) fn made(&self) -> u64 {
        self.made.load(Ordering::Relaxed)
    }

    /// Actors that left it so far.
    pub(crate) fn left(&self, reason: Reason) -> u64 {
        self.left[reason as usize].load(Ordering::Relaxed)
    }
}

impl Shown {
    /// The host comes to what it was told.
    pub(super) fn take_asked(&self) {
        self.asked.store(false, Ordering::Relaxed);
    }
}
