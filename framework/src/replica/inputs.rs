//! The queue in front of the replica thread.
//!
//! Owns the inputs between their senders and the thread, with a limit in bytes for messages of
//! peers (dropped when full: Raft sends again) and one for proposals (given back when full).

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use perennial_core::id::{GroupId, LogIndex, MemberId, Term};
use perennial_core::replication::{GroupStatus, Proposal, RaftMessage};
use tokio::sync::{Notify, oneshot};

use super::config::GroupConfig;
use super::handle::{Refusal, ReplicaFault};
use super::log::LogError;
use super::rows::RowError;
use super::snapshot::Chunk;

/// Bytes of peers' frames waiting for the thread.
pub(crate) const FRAME_QUEUE_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Bytes of proposals waiting for the thread.
pub(crate) const PROPOSAL_QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Inputs of any kind waiting for the thread; beyond it, new work is refused.
pub(crate) const QUEUE_LENGTH_MAX: usize = 256 * 1024;

/// A checkpoint of a group.
pub(crate) struct Checkpointed {
    pub(crate) group: GroupId,
    pub(crate) applied: LogIndex,
    /// The group holds old files of the log back.
    pub(crate) force: bool,
}

/// What the replica thread is told.
pub(crate) enum Input {
    Frame {
        from: MemberId,
        messages: Vec<(GroupId, RaftMessage)>,
    },
    Chunk {
        from: MemberId,
        chunk: Chunk,
    },
    Propose(Proposal),
    ReadIndex {
        group: GroupId,
        epoch: Term,
        ctx: u64,
    },
    Transfer {
        group: GroupId,
        to: MemberId,
    },
    Stays {
        group: GroupId,
        stays: bool,
    },
    MemberDown(MemberId),
    Unreachable(MemberId),
    Open {
        groups: Vec<GroupConfig>,
        reply: oneshot::Sender<Result<(), ReplicaFault>>,
    },
    Status(oneshot::Sender<Vec<GroupStatus>>),
    Synced {
        groups: Vec<Checkpointed>,
        result: Result<(), RowError>,
    },
    Installed {
        group: GroupId,
        index: LogIndex,
        result: Result<(), RowError>,
    },
    Purged(Result<Vec<GroupId>, LogError>),
    SnapshotSent {
        group: GroupId,
        to: MemberId,
        ok: bool,
    },
    /// A helper broke a rule and does nothing any more.
    HelperPanicked(String),
    Checkpoint,
    Stop,
    #[cfg(test)]
    Die,
}

#[derive(Default)]
struct Queue {
    inputs: Vec<Input>,
    frame_bytes: usize,
    proposal_bytes: usize,
    waiting: bool,
    closed: bool,
}

impl Queue {
    fn give(&mut self, taken: &mut Vec<Input>) {
        std::mem::swap(&mut self.inputs, taken);
        self.frame_bytes = 0;
        self.proposal_bytes = 0;
    }
}

/// The queue itself.
#[derive(Default)]
pub(crate) struct Inputs {
    queue: Mutex<Queue>,
    filled: Condvar,
    /// The same for a task.
    woken: Notify,
}

impl Inputs {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // The queue is consistent after every statement that can panic.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, mut queue: MutexGuard<'_, Queue>, input: Input) {
        queue.inputs.push(input);
        if std::mem::take(&mut queue.waiting) {
            drop(queue);
            self.filled.notify_one();
            self.woken.notify_one();
        }
    }

    /// Adds bytes of a peer; false when they were dropped.
    pub(crate) fn push_frame(&self, input: Input, bytes: usize) -> bool {
        let mut queue = self.lock();
        if queue.closed
            || queue.frame_bytes + bytes > FRAME_QUEUE_BYTES_MAX
            || queue.inputs.len() > QUEUE_LENGTH_MAX
        {
            return false;
        }
        queue.frame_bytes += bytes;
        self.put(queue, input);
        true
    }

    /// Adds a proposal, or gives it back.
    pub(crate) fn push_proposal(&self, proposal: Proposal) -> Result<(), (Proposal, Refusal)> {
        let mut queue = self.lock();
        let bytes = proposal.data.len();
        if queue.closed {
            return Err((proposal, Refusal::Stopped));
        }
        if queue.proposal_bytes + bytes > PROPOSAL_QUEUE_BYTES_MAX || queue.inputs.len() > QUEUE_LENGTH_MAX {
            return Err((proposal, Refusal::Full));
        }
        queue.proposal_bytes += bytes;
        self.put(queue, Input::Propose(proposal));
        Ok(())
    }

    /// Adds a request of this node.
    pub(crate) fn push_request(&self, input: Input) -> Result<(), Refusal> {
        let queue = self.lock();
        if queue.closed {
            return Err(Refusal::Stopped);
        }
        if queue.inputs.len() > QUEUE_LENGTH_MAX {
            return Err(Refusal::Full);
        }
        self.put(queue, input);
        Ok(())
    }

    /// Adds what must not be lost and is few: hints, completions, the order to stop.
    pub(crate) fn push_always(&self, input: Input) {
        let queue = self.lock();
        if !queue.closed {
            self.put(queue, input);
        }
    }

    /// Takes everything, waiting up to `wait` for something to come; `taken` is emptied first and
    /// its memory used for the next inputs.
    pub(crate) fn take(&self, taken: &mut Vec<Input>, wait: Duration) {
        taken.clear();
        let mut queue = self.lock();
        if queue.inputs.is_empty() && !wait.is_zero() {
            queue.waiting = true;
            (queue, _) = self
                .filled
                .wait_timeout_while(queue, wait, |q| q.inputs.is_empty())
                .unwrap_or_else(PoisonError::into_inner);
            queue.waiting = false;
        }
        queue.give(taken);
    }

    /// The same as [`take`](Self::take), for a task.
    pub(crate) async fn taken(&self, taken: &mut Vec<Input>, wait: Duration) {
        taken.clear();
        let empty = {
            let mut queue = self.lock();
            queue.waiting = queue.inputs.is_empty();
            queue.waiting
        };
        if empty {
            // A permit of an earlier wait may be left: it costs one turn of the loop.
            let _ = tokio::time::timeout(wait, self.woken.notified()).await;
        }
        let mut queue = self.lock();
        queue.waiting = false;
        queue.give(taken);
    }

    /// Takes nothing more; what waits is dropped, and whoever waits for an answer learns it.
    pub(crate) fn close(&self) {
        let mut queue = self.lock();
        queue.closed = true;
        let waiting = std::mem::take(&mut queue.inputs);
        drop(queue);
        drop(waiting);
    }
}
