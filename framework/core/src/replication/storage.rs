//! The log tail of one group in memory.
//!
//! Owns the entries behind the truncation point, as raft-rs reads them. Never reads a disk: the
//! shell seeds it at boot and persists what it gains. In go entries and truncations; out come
//! slices, terms and snapshot metadata.
//!
//! ```text
//!   truncated        applied          last
//!  ─────┴────────────────┴──────────────┴──▶ index
//!  forgotten │ entries kept in memory   │
//! ```

use std::collections::VecDeque;

use raft::eraftpb::{ConfState, HardState as PbHardState, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Storage, StorageError};

use super::Entry;
use crate::id::{GroupId, LogIndex, MemberId, Term};

/// Bytes counted for an entry beside its data.
const ENTRY_OVERHEAD_BYTES: usize = 32;

/// The part of Raft's state that must survive a restart, beside the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HardState {
    /// Current term.
    pub term: u64,
    /// Raft id voted for in this term; 0 for none, as raft-rs has it.
    pub vote: u64,
    /// A lower bound of the commit index.
    pub commit: u64,
}

/// What a group starts from: what the disk gave back, or nothing.
#[derive(Debug, Clone)]
pub struct GroupSeed {
    /// Which group.
    pub group: GroupId,
    /// All its replicas, this node among them.
    pub voters: Vec<MemberId>,
    /// The same, in the order in which they should lead.
    pub preferred: Vec<MemberId>,
    /// Term, vote and commit index as persisted.
    pub hard_state: HardState,
    /// The log behind `truncated`, without a gap.
    pub entries: Vec<Entry>,
    /// Last forgotten position; `(0, 0)` when nothing was forgotten.
    pub truncated: (LogIndex, Term),
    /// Index up to which the rows have been applied, and flushed.
    pub applied: LogIndex,
    /// The rows are gone although the log is there: take a snapshot before applying anything.
    pub rows_lost: bool,
}

impl GroupSeed {
    /// A group that starts empty.
    #[must_use]
    pub fn empty(group: GroupId, voters: Vec<MemberId>, preferred: Vec<MemberId>) -> Self {
        Self {
            group,
            voters,
            preferred,
            hard_state: HardState::default(),
            entries: Vec::new(),
            truncated: (LogIndex(0), Term(0)),
            applied: LogIndex(0),
            rows_lost: false,
        }
    }
}

/// Entries of one group behind its truncation point.
///
/// Invariants: `entries` is gapless and begins at `truncated.0 + 1`; `bytes` is the sum of their
/// sizes; `applied` is within `truncated.0 ..= last`; `voters` is sorted.
pub(crate) struct LogTail {
    entries: VecDeque<Entry>,
    bytes: usize,
    truncated: (u64, u64),
    applied: (u64, u64),
    rows_lost: bool,
    hard_state: HardState,
    voters: Vec<u64>,
}

fn entry_bytes(entry: &Entry) -> usize {
    entry.data.len() + ENTRY_OVERHEAD_BYTES
}

impl LogTail {
    pub(crate) fn new(seed: GroupSeed) -> Self {
        let mut voters: Vec<u64> = seed.voters.iter().map(|m| m.0).collect();
        voters.sort_unstable();
        let mut tail = Self {
            bytes: seed.entries.iter().map(entry_bytes).sum(),
            entries: seed.entries.into(),
            truncated: (seed.truncated.0.0, seed.truncated.1.0),
            applied: (0, 0),
            rows_lost: seed.rows_lost,
            hard_state: seed.hard_state,
            voters,
        };
        let applied = seed.applied.0.max(tail.truncated.0);
        tail.set_applied(applied);
        tail.hard_state.commit = tail.hard_state.commit.max(applied).min(tail.last());
        tail
    }

    pub(crate) fn last(&self) -> u64 {
        self.truncated.0 + self.entries.len() as u64
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn truncated(&self) -> (u64, u64) {
        self.truncated
    }

    pub(crate) fn applied(&self) -> (u64, u64) {
        self.applied
    }

    pub(crate) fn voters(&self) -> &[u64] {
        &self.voters
    }

    /// Term of an index from `truncated.0` to the last.
    pub(crate) fn term_of(&self, index: u64) -> Option<u64> {
        if index == self.truncated.0 {
            return Some(self.truncated.1);
        }
        let at = index.checked_sub(self.truncated.0 + 1)?;
        self.entries.get(at as usize).map(|e| e.term)
    }

    pub(crate) fn set_applied(&mut self, index: u64) {
        let term = self.term_of(index);
        assert!(term.is_some(), "the applied index is within the log");
        self.applied = (index, term.unwrap_or_default());
    }

    pub(crate) fn rows_lost(&self) -> bool {
        self.rows_lost
    }

    pub(crate) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        assert!(
            first.index > self.truncated.0 && first.index <= self.last() + 1,
            "appended entries follow the log without a gap"
        );
        let keep = (first.index - self.truncated.0 - 1) as usize;
        for gone in self.entries.drain(keep..) {
            self.bytes -= entry_bytes(&gone);
        }
        self.bytes += entries.iter().map(entry_bytes).sum::<usize>();
        self.entries.extend(entries.iter().cloned());
    }

    /// The log is replaced by a snapshot that ends here.
    pub(crate) fn reset(&mut self, index: u64, term: u64) {
        self.entries.clear();
        self.bytes = 0;
        self.truncated = (index, term);
        self.applied = (index, term);
        self.rows_lost = false;
    }

    /// Forgets entries up to and including `index`; returns the term of that index.
    pub(crate) fn truncate(&mut self, index: u64) -> u64 {
        assert!(index <= self.applied.0, "only applied entries are forgotten");
        while self.truncated.0 < index {
            let Some(gone) = self.entries.pop_front() else { break };
            self.bytes -= entry_bytes(&gone);
            self.truncated = (gone.index, gone.term);
        }
        self.truncated.1
    }

    /// The highest index not above `upto` such that at least `keep` bytes of entries remain, or
    /// the truncation point when there is no such.
    pub(crate) fn index_keeping(&self, upto: u64, keep: usize) -> u64 {
        let mut left = self.bytes;
        let mut index = self.truncated.0;
        for entry in &self.entries {
            left -= entry_bytes(entry);
            if entry.index > upto || left < keep {
                break;
            }
            index = entry.index;
        }
        index
    }

    pub(crate) fn conf_state(&self) -> ConfState {
        ConfState { voters: self.voters.clone(), ..ConfState::default() }
    }
}

impl Storage for LogTail {
    fn initial_state(&self) -> raft::Result<RaftState> {
        let hard_state = PbHardState {
            term: self.hard_state.term,
            vote: self.hard_state.vote,
            commit: self.hard_state.commit,
            ..PbHardState::default()
        };
        Ok(RaftState::new(hard_state, self.conf_state()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.truncated.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        assert!(high <= self.last() + 1, "entries are read within the log");
        let limit = max_size.into().unwrap_or(u64::MAX);
        let from = (low - self.truncated.0 - 1) as usize;
        let to = (high - self.truncated.0 - 1) as usize;
        let mut bytes = 0u64;
        let mut out = Vec::with_capacity((to - from).min(64));
        for entry in self.entries.range(from..to) {
            bytes = bytes.saturating_add(entry_bytes(entry) as u64);
            if bytes > limit && !out.is_empty() {
                break;
            }
            out.push(entry.clone());
        }
        Ok(out)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index < self.truncated.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        self.term_of(index).ok_or(Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.truncated.0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        if self.rows_lost || self.applied.0 == 0 || self.applied.0 < request_index {
            return Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        }
        let mut snapshot = Snapshot::default();
        let meta = snapshot.mut_metadata();
        meta.index = self.applied.0;
        meta.term = self.applied.1;
        meta.set_conf_state(self.conf_state());
        Ok(snapshot)
    }
}
