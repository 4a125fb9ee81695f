//! Activations: an actor's presence in memory.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use perennial_core::id::RecordSeq;
use perennial_core::time::Millis;

use super::turns::Work;
use crate::actor::{Kind, State, caught};

/// Bytes in front of a stored state: the fingerprint of its schema.
pub(super) const FINGERPRINT_BYTES: usize = 8;

/// An actor in memory.
///
/// Invariant: `state` is `None` exactly while an async write runs; `bytes` is what the last record
/// says, or empty when there is none yet.
pub(super) struct Activation {
    pub(super) kind: Arc<dyn Kind>,
    pub(super) state: Option<Box<dyn State>>,
    pub(super) bytes: Bytes,
    /// The first record after its last one; it may leave memory once that many are applied.
    pub(super) settled_at: RecordSeq,
    pub(super) last_used: Millis,
    /// Calls that wait while an async write runs.
    pub(super) waiting: VecDeque<Work>,
    /// Due times of its reminders as of the last turn, as far as they were looked up.
    pub(super) reminders: HashMap<String, Option<Millis>, foldhash::fast::FixedState>,
    /// Events published since it was last looked whether there are too many; as many as are kept on
    /// activation.
    pub(super) events: u32,
}

impl Activation {
    /// The state as of the last record, decoded anew.
    pub(super) fn reload(&self) -> Result<Box<dyn State>, String> {
        if self.bytes.is_empty() {
            return fresh(&*self.kind);
        }
        self.kind.decode(&self.bytes[FINGERPRINT_BYTES..])
    }

    /// Whether it may leave memory.
    pub(super) fn idle(&self, applied: RecordSeq) -> bool {
        self.state.is_some() && self.waiting.is_empty() && self.settled_at <= applied
    }
}

/// The state of an actor that has no record.
pub(super) fn fresh(kind: &dyn Kind) -> Result<Box<dyn State>, String> {
    caught("when made by default", || Ok(kind.fresh()))
}
