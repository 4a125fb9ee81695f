//! What goes into the driver and what it wants done.
//!
//! Owns the plain values at the driver's border. Never acts. The order of the fields of
//! [`Effects`] is the order of execution.

use bytes::Bytes;

use super::Entry;
use super::message::RaftMessage;
use super::storage::HardState;
use crate::id::{GroupId, LogIndex, MemberId, RecordSeq, Term};

/// Some records to append, packed into one entry.
#[derive(Debug, Clone)]
pub struct Proposal {
    /// Where to.
    pub group: GroupId,
    /// The epoch they were made in; another epoch refuses them.
    pub epoch: Term,
    /// Sequence number of the first record within the epoch.
    pub first_seq: RecordSeq,
    /// How many records `data` holds.
    pub records: u32,
    /// The entry, at most [`ENTRY_BYTES_MAX`](super::ENTRY_BYTES_MAX).
    pub data: Bytes,
}

/// A message to a peer.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// To whom.
    pub to: MemberId,
    /// Of which group.
    pub group: GroupId,
    /// What.
    pub message: RaftMessage,
}

/// State of one group that must be durable before [`Driver::persisted`](super::Driver::persisted).
#[derive(Debug, Clone)]
pub struct Persist {
    /// Which group.
    pub group: GroupId,
    /// The whole log is replaced by a snapshot that ends at this position.
    pub reset: Option<(LogIndex, Term)>,
    /// The hard state that goes with the entries.
    pub hard_state: HardState,
    /// Entries to append; the first replaces whatever stands at its index or behind it.
    pub entries: Vec<Entry>,
}

/// A received snapshot that the group waits for: the shell replaces the group's rows, flushes
/// them and calls [`Driver::installed`](super::Driver::installed). Until then the group rests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Install {
    /// Which group.
    pub group: GroupId,
    /// The last index the snapshot includes.
    pub index: LogIndex,
    /// Its term.
    pub term: Term,
}

/// Entries to apply, in order. Entries without data only move the applied index.
#[derive(Debug, Clone)]
pub struct Committed {
    /// Which group.
    pub group: GroupId,
    /// The entries, without a gap.
    pub entries: Vec<Entry>,
}

/// What the driver wants done. The order of the fields is the order of execution.
#[derive(Debug, Default)]
#[must_use = "effects that are not carried out break Raft's promises"]
pub struct Effects {
    /// Messages that promise nothing about our disk and may leave before the flush.
    pub send_early: Vec<Outgoing>,
    /// To be made durable with one flush; then call `persisted`.
    pub persist: Vec<Persist>,
    /// Snapshots to install, after the flush, at leisure.
    pub install: Vec<Install>,
    /// Messages that promise what has just been flushed.
    pub send: Vec<Outgoing>,
    /// Snapshots to stream; to be captured before `apply`, at the applied index they name.
    pub snapshots: Vec<Outgoing>,
    /// Entries to apply; then call `applied` for each group.
    pub apply: Vec<Committed>,
    /// What hosts are told, after all of the above.
    pub events: Vec<(GroupId, EpochEvent)>,
}

impl Effects {
    /// Whether nothing is to be done.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.send_early.is_empty()
            && self.persist.is_empty()
            && self.install.is_empty()
            && self.send.is_empty()
            && self.snapshots.is_empty()
            && self.apply.is_empty()
            && self.events.is_empty()
    }
}

/// What happens to the leadership of a group. An epoch is the time in which this node leads, named
/// by its term.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EpochEvent {
    /// The leader known here, or none, and the term.
    LeaderIs {
        /// Who leads.
        leader: Option<MemberId>,
        /// In which term.
        term: Term,
    },
    /// This node leads and has applied an entry of its own term: the epoch takes proposals.
    Opened {
        /// The epoch.
        term: Term,
    },
    /// The epoch is over; what is not applied by now has an unknown outcome.
    Closed {
        /// The epoch.
        term: Term,
    },
    /// Leadership is being handed over; proposals are refused from here on.
    Transferring {
        /// The epoch.
        epoch: Term,
        /// Who takes over.
        to: MemberId,
    },
    /// Leadership was confirmed by a majority after the read was asked for.
    ReadConfirmed {
        /// The epoch it was asked in.
        epoch: Term,
        /// As given.
        ctx: u64,
    },
    /// Everything committed before [`Driver::ask_commit`](super::Driver::ask_commit) was called is in the log up
    /// to here.
    CommitIs {
        /// The commit index of a leader that was confirmed after the call.
        index: LogIndex,
        /// As given.
        round: u64,
    },
    /// A proposal was refused and the epoch is poisoned: no later proposal of it is accepted.
    Refused {
        /// The epoch of the proposal.
        epoch: Term,
        /// Records of the epoch from here on were never appended anywhere.
        first_seq: RecordSeq,
    },
}

/// An order to forget log entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Truncate {
    /// Which group.
    pub group: GroupId,
    /// The last index that is forgotten.
    pub index: LogIndex,
    /// Its term, kept.
    pub term: Term,
}

/// Role of a replica in its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Follows a leader or waits for one.
    Follower,
    /// Asks for votes.
    Candidate,
    /// Leads.
    Leader,
}

/// State of one group, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupStatus {
    /// Which group.
    pub group: GroupId,
    /// Our role.
    pub role: Role,
    /// The leader known here.
    pub leader: Option<MemberId>,
    /// Current term.
    pub term: Term,
    /// Whether our epoch takes proposals.
    pub open: bool,
    /// First index still in the log.
    pub first: LogIndex,
    /// Last index of the log.
    pub last: LogIndex,
    /// Commit index.
    pub commit: LogIndex,
    /// Applied index.
    pub applied: LogIndex,
    /// Bytes of the log tail.
    pub log_bytes: u64,
    /// Whether the rows are not there: a snapshot is awaited or being installed.
    pub rows_lost: bool,
    /// As leader: the other replicas.
    pub followers: Vec<FollowerStatus>,
}

/// State of one follower as its leader sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FollowerStatus {
    /// Who.
    pub member: MemberId,
    /// Up to where its log is known to match.
    pub matched: LogIndex,
    /// Entries it is behind.
    pub lag: u64,
    /// Heard from lately.
    pub active: bool,
    /// Receiving a snapshot, or has asked for one: it has no rows to lead with.
    pub snapshot: bool,
}
