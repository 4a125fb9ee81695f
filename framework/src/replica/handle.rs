//! The replica as others see it.
//!
//! Owns the handle, the traits through which the replica thread reaches links and hosts, and what
//! it tells them.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use bytes::Bytes;
use perennial_core::id::{GroupId, LogIndex, MemberId, RecordSeq, Term};
use perennial_core::replication::{FrameError, GroupStatus, OpenError, Proposal, RestoreError, decode_frame};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::config::GroupConfig;
use super::inputs::{Input, Inputs};
use super::log::LogError;
use super::metrics::ReplicaMetrics;
use super::rows::{RowError, RowStore};
use super::snapshot::{Chunk, ChunkError};
use super::standing::{Standing, Standings};

/// Why a chunk was not taken by a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BulkRefused {
    /// Its queue is full: offer the chunk again later.
    #[error("the bulk lane is full")]
    Full,
    /// There is no link to the member.
    #[error("there is no link to the member")]
    NoLink,
}

/// The way to other members. Called from the replica's threads; must not block.
pub trait Outbound: Send + Sync + 'static {
    /// Sends a frame on the raft lane, in order; may be lost.
    fn raft(&self, to: MemberId, frame: Bytes);
    /// Sends a chunk on the bulk lane, in order.
    ///
    /// # Errors
    /// [`BulkRefused`] when the chunk was not taken.
    fn bulk(&self, to: MemberId, chunk: Bytes) -> Result<(), BulkRefused>;
}

/// What happens to a group. Called on the replica thread; must not block.
pub trait GroupSink: Send + Sync + 'static {
    /// Something happened to a group.
    fn event(&self, group: GroupId, event: GroupEvent);
    /// The replica has stopped by itself and must not be started again without a look at why.
    fn failed(&self, fault: ReplicaFault);
}

/// What happens to a group, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupEvent {
    /// The leader known here, or none, and the term.
    LeaderIs {
        /// Who leads.
        leader: Option<MemberId>,
        /// In which term.
        term: Term,
    },
    /// This node leads and takes proposals of this epoch. All rows before it are in the store.
    Opened {
        /// The epoch.
        term: Term,
        /// The machine's state, as its `checkpoint` writes it.
        meta: Vec<u8>,
        /// Index applied at that moment.
        applied: LogIndex,
    },
    /// The epoch is over; records of it that are not applied by now have an unknown outcome.
    Closed {
        /// The epoch.
        term: Term,
    },
    /// Entries were applied here, as on every replica, and their rows can be read.
    Applied {
        /// Up to this index.
        index: LogIndex,
        /// Its term.
        term: Term,
        /// How many records of the epoch `term` are applied: the next one's sequence number.
        next_seq: RecordSeq,
    },
    /// Leadership is being handed over; proposals are refused from here on.
    Transferring {
        /// The epoch.
        epoch: Term,
        /// Who takes over.
        to: MemberId,
    },
    /// A majority confirmed our leadership after the read was asked for.
    ReadConfirmed {
        /// The epoch it was asked in.
        epoch: Term,
        /// As given.
        ctx: u64,
    },
    /// A proposal was refused; its epoch takes nothing more.
    Refused {
        /// The epoch of the proposal.
        epoch: Term,
        /// Records of the epoch from here on were never appended: they may be tried elsewhere.
        first_seq: RecordSeq,
    },
}

/// Why the replica stopped or could not start.
#[derive(Debug, thiserror::Error)]
pub enum ReplicaFault {
    /// The log failed.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The rows failed.
    #[error(transparent)]
    Rows(#[from] RowError),
    /// A group could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A machine cannot read its own checkpoint.
    #[error("group {group} cannot be restored")]
    Restore {
        /// Which group.
        group: GroupId,
        /// Why.
        #[source]
        source: RestoreError,
    },
    /// Rows of a group whose log is gone.
    #[error(
        "group {0} has rows but no log: the log was lost; restore the whole data folder from one copy of it"
    )]
    LogMissing(GroupId),
    /// Rows that are nowhere else.
    #[error(
        "the rows of group {0} are lost or damaged, its log begins behind them, and there is no other replica; \
         restore the whole data folder from one copy of it (what was damaged is in rows.damaged)"
    )]
    RowsLost(GroupId),
    /// A group is to be opened with other replicas than it has.
    #[error(
        "group {0} is hosted here with other replicas; the placement table does not fit this data folder"
    )]
    OtherVoters(GroupId),
    /// A folder could not be used.
    #[error("the data folder cannot be used; check its owner and free space")]
    Folder(#[source] std::io::Error),
    /// A rule of our own was broken.
    #[error("the replica broke a rule of its own: {0}")]
    Panicked(String),
    /// It was stopped.
    #[error("the replica is stopped")]
    Stopped,
}

/// Why a request was not taken; nothing has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The queue is full.
    #[error("the replica's queue is full; try again in a moment")]
    Full,
    /// The replica has stopped.
    #[error("the replica has stopped")]
    Stopped,
}

/// A proposal that was not taken, given back; it was appended nowhere.
#[derive(Debug, thiserror::Error)]
#[error("the proposal was not taken: {reason}")]
pub struct Unproposed {
    /// The proposal.
    pub proposal: Proposal,
    /// Why.
    pub reason: Refusal,
}

pub(crate) struct Shared {
    pub(crate) inputs: Arc<Inputs>,
    pub(crate) rows: Arc<dyn RowStore>,
    pub(crate) metrics: Arc<ReplicaMetrics>,
    pub(crate) standings: Arc<Standings>,
    /// Cancelled at the very end.
    pub(crate) ended: CancellationToken,
    /// `None` for one that runs as tasks.
    pub(crate) thread: Mutex<Option<JoinHandle<()>>>,
}

/// A handle to the replica thread; cheap to clone.
#[derive(Clone)]
pub struct ReplicaHandle {
    pub(crate) shared: Arc<Shared>,
}

impl ReplicaHandle {
    /// The applied rows; read-only by convention: only the replica thread writes.
    #[must_use]
    pub fn rows(&self) -> Arc<dyn RowStore> {
        self.shared.rows.clone()
    }

    /// Where the rows of a group stand, if it is hosted here.
    pub(crate) fn standing(&self, group: GroupId) -> Option<Arc<Standing>> {
        self.shared.standings.of(group)
    }

    /// Counters of the replica.
    #[must_use]
    pub fn metrics(&self) -> Arc<ReplicaMetrics> {
        self.shared.metrics.clone()
    }

    /// Proposes records; what becomes of them is told by events.
    ///
    /// # Errors
    /// [`Unproposed`] gives the proposal back.
    pub fn propose(&self, proposal: Proposal) -> Result<(), Unproposed> {
        let pushed = self.shared.inputs.push_proposal(proposal);
        pushed.map_err(|(proposal, reason)| Unproposed { proposal, reason })
    }

    /// Asks for a confirmation that this node still leads; it comes as
    /// [`GroupEvent::ReadConfirmed`], or not at all when the epoch is over.
    ///
    /// # Errors
    /// [`Refusal`] when it was not taken.
    pub fn read_index(&self, group: GroupId, epoch: Term, ctx: u64) -> Result<(), Refusal> {
        self.shared.inputs.push_request(Input::ReadIndex { group, epoch, ctx })
    }

    /// Hands a led group over to another replica.
    pub fn transfer(&self, group: GroupId, to: MemberId) {
        self.shared.inputs.push_always(Input::Transfer { group, to });
    }

    /// Whether leadership of a group stays where it is instead of going back to the preferred replica.
    pub fn set_stays(&self, group: GroupId, stays: bool) {
        self.shared.inputs.push_always(Input::Stays { group, stays });
    }

    /// A hint that a member's process is gone: its leaderships are taken over at once.
    pub fn member_down(&self, member: MemberId) {
        self.shared.inputs.push_always(Input::MemberDown(member));
    }

    /// Messages to a member were lost.
    pub fn unreachable(&self, member: MemberId) {
        self.shared.inputs.push_always(Input::Unreachable(member));
    }

    /// Takes a frame of the raft lane; dropped when the queue is full.
    ///
    /// # Errors
    /// [`FrameError`] when the bytes are no frame: close the link.
    pub fn deliver(&self, from: MemberId, frame: &[u8]) -> Result<(), FrameError> {
        let messages = decode_frame(frame)?;
        let count = messages.len() as u64;
        let metrics = &self.shared.metrics;
        let taken = self.shared.inputs.push_frame(Input::Frame { from, messages }, frame.len());
        ReplicaMetrics::add(
            if taken { &metrics.messages_received } else { &metrics.messages_dropped },
            count,
        );
        Ok(())
    }

    /// Takes a chunk of the bulk lane; dropped when the queue is full.
    ///
    /// # Errors
    /// [`ChunkError`] when the bytes are no chunk: close the link.
    pub fn deliver_chunk(&self, from: MemberId, chunk: &[u8]) -> Result<(), ChunkError> {
        let chunk = Chunk::decode(chunk)?;
        let bytes = chunk.bytes();
        self.shared.inputs.push_frame(Input::Chunk { from, chunk }, bytes);
        Ok(())
    }

    /// Opens groups, and gives those that are open their new order of preference. Returns once
    /// that is durable.
    ///
    /// # Errors
    /// [`ReplicaFault`] of the first group that cannot be opened; those before it are open.
    pub async fn open_groups(&self, groups: Vec<GroupConfig>) -> Result<(), ReplicaFault> {
        let (reply, answer) = oneshot::channel();
        self.shared.inputs.push_always(Input::Open { groups, reply });
        answer.await.unwrap_or(Err(ReplicaFault::Stopped))
    }

    /// State of every group; none when the replica has stopped.
    pub async fn status(&self) -> Vec<GroupStatus> {
        let (reply, answer) = oneshot::channel();
        self.shared.inputs.push_always(Input::Status(reply));
        answer.await.unwrap_or_default()
    }

    /// Begins a checkpoint now.
    pub fn checkpoint(&self) {
        self.shared.inputs.push_always(Input::Checkpoint);
    }

    /// Makes a last checkpoint and ends; returns when that is done and the stores are closed.
    pub async fn stop(&self) {
        self.shared.inputs.push_always(Input::Stop);
        self.shared.ended.cancelled().await;
        self.join();
    }

    /// Waits for the thread, which has ended or ends now.
    fn join(&self) {
        let thread = self.shared.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // The thread reports its own panics.
            let _ = thread.join();
        }
    }

    /// The same as [`stop`](Self::stop), without a runtime.
    #[cfg(test)]
    pub(crate) fn end(&self) {
        self.shared.inputs.push_always(Input::Stop);
        self.join();
    }

    #[cfg(test)]
    pub(crate) fn die(&self) {
        self.shared.inputs.push_always(Input::Die);
        self.join();
    }
}
