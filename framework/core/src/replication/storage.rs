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

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 68;
    /// What an entry of `SIZE` bytes of data counts.
    const COUNTED: usize = SIZE + ENTRY_OVERHEAD_BYTES;

    fn entry(index: u64, term: u64) -> Entry {
        Entry { index, term, data: vec![7; SIZE].into(), ..Entry::default() }
    }

    fn seed(truncated: (u64, u64), entries: &[(u64, u64)], applied: u64) -> GroupSeed {
        GroupSeed {
            truncated: (LogIndex(truncated.0), Term(truncated.1)),
            entries: entries.iter().map(|(index, term)| entry(*index, *term)).collect(),
            applied: LogIndex(applied),
            ..GroupSeed::empty(GroupId::SYSTEM, vec![MemberId(3), MemberId(1), MemberId(2)], Vec::new())
        }
    }

    /// Entries 11 to 15 behind a truncation at 10, applied up to 14.
    fn tail() -> LogTail {
        LogTail::new(seed((10, 2), &[(11, 2), (12, 3), (13, 3), (14, 4), (15, 4)], 14))
    }

    fn indexes(tail: &LogTail) -> Vec<(u64, u64)> {
        tail.entries.iter().map(|e| (e.index, e.term)).collect()
    }

    fn read(tail: &LogTail, low: u64, high: u64, limit: Option<u64>) -> Vec<u64> {
        let entries = tail.entries(low, high, limit, GetEntriesContext::empty(false)).unwrap();
        entries.iter().map(|e| e.index).collect()
    }

    #[test]
    fn a_tail_knows_its_positions_and_terms() {
        let tail = tail();
        assert_eq!((tail.truncated(), tail.applied(), tail.last()), ((10, 2), (14, 4), 15));
        assert_eq!((tail.first_index(), tail.last_index()), (Ok(11), Ok(15)));
        assert_eq!((tail.bytes(), tail.rows_lost()), (5 * COUNTED, false));
        assert_eq!(tail.voters(), [1, 2, 3]);
        let terms = [9, 10, 11, 12, 14, 15, 16].map(|index| tail.term_of(index));
        assert_eq!(terms, [None, Some(2), Some(2), Some(3), Some(4), Some(4), None]);
        assert_eq!(tail.term(9), Err(Error::Store(StorageError::Compacted)));
        assert_eq!((tail.term(10), tail.term(12)), (Ok(2), Ok(3)));
        assert_eq!(tail.term(16), Err(Error::Store(StorageError::Unavailable)));
    }

    #[test]
    fn what_the_disk_says_is_brought_into_the_bounds_of_the_log() {
        let state = |commit, applied| {
            let hard_state = HardState { term: 4, vote: 2, commit };
            let tail = LogTail::new(GroupSeed { hard_state, ..seed((10, 2), &[(11, 2), (12, 3)], applied) });
            let state = tail.initial_state().unwrap();
            assert_eq!((state.hard_state.term, state.hard_state.vote), (4, 2));
            assert_eq!(state.conf_state.voters, [1, 2, 3]);
            (state.hard_state.commit, tail.applied())
        };
        assert_eq!(state(0, 0), (10, (10, 2)), "what was forgotten had been applied");
        assert_eq!(state(11, 11), (11, (11, 2)));
        assert_eq!(state(11, 12), (12, (12, 3)), "what was applied had been committed");
        assert_eq!(state(99, 11), (12, (11, 2)), "nothing is committed that is not there");
    }

    #[test]
    fn appended_entries_replace_those_from_their_first_on() {
        let mut tail = tail();
        tail.append(&[]);
        tail.append(&[entry(16, 4)]);
        assert_eq!((tail.last(), tail.bytes()), (16, 6 * COUNTED));
        tail.append(&[entry(15, 5), entry(16, 5), entry(17, 5)]);
        assert_eq!(indexes(&tail)[3..], [(14, 4), (15, 5), (16, 5), (17, 5)]);
        assert_eq!(tail.bytes(), 7 * COUNTED);
        tail.append(&[entry(11, 6)]);
        assert_eq!((indexes(&tail), tail.bytes()), (vec![(11, 6)], COUNTED));
    }

    #[test]
    #[should_panic(expected = "follow the log without a gap")]
    fn entries_behind_a_gap_are_not_appended() {
        tail().append(&[entry(17, 4)]);
    }

    #[test]
    #[should_panic(expected = "follow the log without a gap")]
    fn forgotten_entries_are_not_appended_again() {
        tail().append(&[entry(10, 4)]);
    }

    #[test]
    fn entries_are_forgotten_up_to_an_index_that_was_applied() {
        let mut tail = tail();
        assert_eq!(tail.truncate(9), 2, "what is gone stays gone");
        assert_eq!(tail.truncate(12), 3);
        assert_eq!((tail.truncated(), tail.bytes()), ((12, 3), 3 * COUNTED));
        assert_eq!(indexes(&tail), [(13, 3), (14, 4), (15, 4)]);
        assert_eq!(tail.truncate(14), 4, "all that was applied may go");
        assert_eq!((tail.truncated(), tail.last()), ((14, 4), 15));
    }

    #[test]
    #[should_panic(expected = "only applied entries are forgotten")]
    fn entries_that_were_not_applied_are_not_forgotten() {
        tail().truncate(15);
    }

    #[test]
    fn as_much_is_forgotten_as_leaves_what_is_to_be_kept() {
        let tail = tail();
        assert_eq!(tail.index_keeping(14, 0), 14, "not above the given index");
        assert_eq!(tail.index_keeping(99, 0), 15);
        assert_eq!(tail.index_keeping(14, 2 * COUNTED), 13, "exactly so much is left");
        assert_eq!(tail.index_keeping(14, 2 * COUNTED + 1), 12);
        assert_eq!(tail.index_keeping(14, 5 * COUNTED), 10);
        assert_eq!(tail.index_keeping(10, 0), 10);
    }

    #[test]
    fn a_snapshot_replaces_the_log() {
        let mut tail = LogTail::new(GroupSeed { rows_lost: true, ..seed((0, 0), &[(1, 1)], 0) });
        assert!(tail.rows_lost());
        tail.reset(20, 6);
        assert_eq!((tail.truncated(), tail.applied(), tail.last()), ((20, 6), (20, 6), 20));
        assert_eq!((tail.bytes(), tail.rows_lost()), (0, false));
        tail.append(&[entry(21, 6)]);
        assert_eq!((indexes(&tail), tail.bytes()), (vec![(21, 6)], COUNTED));
    }

    #[test]
    fn entries_are_read_within_bounds_and_limits() {
        let tail = tail();
        assert_eq!(read(&tail, 11, 16, None), [11, 12, 13, 14, 15]);
        assert_eq!(read(&tail, 12, 14, None), [12, 13]);
        assert!(read(&tail, 12, 12, None).is_empty());
        assert_eq!(read(&tail, 11, 16, Some(3 * COUNTED as u64)), [11, 12, 13], "the limit itself is within");
        assert_eq!(read(&tail, 11, 16, Some(3 * COUNTED as u64 - 1)), [11, 12]);
        assert_eq!(read(&tail, 14, 16, Some(0)), [14], "one in any case");
        for low in [9, 10] {
            let forgotten = tail.entries(low, 12, None, GetEntriesContext::empty(false));
            assert_eq!(forgotten, Err(Error::Store(StorageError::Compacted)));
        }
    }

    #[test]
    #[should_panic(expected = "entries are read within the log")]
    fn entries_behind_the_log_are_not_read() {
        let _ = tail().entries(15, 17, None, GetEntriesContext::empty(false));
    }

    #[test]
    fn a_snapshot_is_of_what_was_applied() {
        let tail = tail();
        let snapshot = tail.snapshot(14, 2).unwrap();
        let meta = snapshot.get_metadata();
        assert_eq!((meta.index, meta.term, meta.get_conf_state().voters.as_slice()), (14, 4, &[1, 2, 3][..]));
        assert!(tail.snapshot(13, 2).is_ok());
        let none = Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        assert_eq!(tail.snapshot(15, 2), none, "more is asked for");
        let lost = LogTail::new(GroupSeed { rows_lost: true, ..seed((10, 2), &[(11, 2)], 11) });
        assert_eq!(lost.snapshot(0, 2), none, "without rows there is none");
        let empty = LogTail::new(seed((0, 0), &[(1, 1)], 0));
        assert_eq!(empty.snapshot(0, 2), none, "nothing was applied");
    }
}
