//! What a member may send on the raft lane: frames, and messages with every kind of forged position.

use std::collections::BTreeMap;

use bytes::Bytes;
use perennial_core::id::{GroupId, LogIndex, MemberId, PartitionId, RecordSeq, Term};
use perennial_core::replication::{
    Driver, DriverConfig, Effects, EntryKind, FrameWriter, GroupSeed, GroupStatus, MessageKind, Proposal,
    RaftMessage, SnapshotMeta, WireEntry, decode_frame,
};

const KINDS: [MessageKind; 13] = [
    MessageKind::Append,
    MessageKind::AppendResponse,
    MessageKind::RequestVote,
    MessageKind::RequestVoteResponse,
    MessageKind::Snapshot,
    MessageKind::Heartbeat,
    MessageKind::HeartbeatResponse,
    MessageKind::TransferLeader,
    MessageKind::TimeoutNow,
    MessageKind::ReadIndex,
    MessageKind::ReadIndexResponse,
    MessageKind::RequestPreVote,
    MessageKind::RequestPreVoteResponse,
];

/// A frame of the raft lane.
pub(super) fn frames(bytes: &[u8]) {
    let Ok(messages) = decode_frame(bytes) else { return };
    let pack = |messages: &[(GroupId, RaftMessage)]| {
        let mut writer = FrameWriter::default();
        let mut frames = Vec::new();
        for (group, message) in messages {
            frames.extend(writer.push(*group, message));
        }
        frames.extend(writer.finish());
        frames
    };
    let mut read = Vec::new();
    for frame in pack(&messages) {
        read.extend(decode_frame(&frame).expect("a frame that was written can be read"));
    }
    assert_eq!(read, messages, "a message changed");
    for (_, message) in messages {
        let mirrored = RaftMessage::from_raft(message.clone().into_raft(MemberId(1), MemberId(2)));
        assert_eq!(mirrored, Some(message), "the mirror changed a message");
    }
}

fn sample(kind: MessageKind) -> RaftMessage {
    let entry = |index| WireEntry {
        term: Term(1),
        index: LogIndex(index),
        kind: EntryKind::Normal,
        data: Bytes::from_static(b"entry"),
    };
    RaftMessage {
        kind,
        term: Term(2),
        log_term: Term(1),
        index: LogIndex(1),
        commit: LogIndex(1),
        commit_term: Term(1),
        reject: false,
        reject_hint: LogIndex(0),
        request_snapshot: LogIndex(0),
        priority: 0,
        context: Bytes::from_static(b"context"),
        entries: vec![entry(2), entry(3)],
        snapshot: Some(SnapshotMeta {
            index: LogIndex(9),
            term: Term(2),
            voters: [1, 2, 3].map(MemberId).into(),
        }),
    }
}

pub(super) fn frame_seeds() -> Vec<Vec<u8>> {
    let frame = |kinds: &[MessageKind]| {
        let mut writer = FrameWriter::default();
        for (number, kind) in (0..).zip(kinds) {
            assert!(writer.push(GroupId::of(PartitionId(number)), &sample(*kind)).is_none());
        }
        writer.finish().expect("something was written").to_vec()
    };
    KINDS.iter().map(|kind| frame(&[*kind])).chain([frame(&KINDS)]).collect()
}

/// Bytes as a source of choices; zeros when they run out.
struct Feed<'a>(&'a [u8]);

impl Feed<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// A number near one that matters: which one, and how far from it.
    fn near(&mut self, marks: &[u64]) -> u64 {
        let choice = self.byte();
        let by = i64::from(choice >> 4) - 4;
        let marks_and_ends = marks.len() + 3;
        match usize::from(choice & 15) % marks_and_ends {
            n if n < marks.len() => marks[n].saturating_add_signed(by),
            n if n == marks.len() => u64::from(self.byte()),
            n if n == marks.len() + 1 => u64::MAX.saturating_add_signed(by),
            _ => (1u64 << 62).saturating_add_signed(by),
        }
    }
}

const GROUP: GroupId = GroupId::SYSTEM;

/// One node of three, with a disk in memory; the bytes are its peers and its clock.
struct Node {
    driver: Driver,
    applied: u64,
    /// What was applied, by index: (term, data).
    log: BTreeMap<u64, (u64, Bytes)>,
}

impl Node {
    fn new() -> Self {
        let voters: Vec<_> = [1, 2, 3].map(MemberId).into();
        let mut driver = Driver::new(DriverConfig::new(MemberId(1), 7));
        driver.open_group(GroupSeed::empty(GROUP, voters.clone(), voters)).expect("an empty group opens");
        Self { driver, applied: 0, log: BTreeMap::new() }
    }

    fn status(&self) -> GroupStatus {
        self.driver.status().swap_remove(0)
    }

    /// Carries effects out, as the shell does, until there are none.
    fn pump(&mut self) {
        for _ in 0..1000 {
            if !self.driver.has_work() {
                return;
            }
            let mut effects = Effects::default();
            self.driver.ready(&mut effects);
            self.driver.persisted(&mut effects);
            for install in std::mem::take(&mut effects.install) {
                assert!(install.index.0 >= self.applied, "a snapshot takes back what was applied");
                self.applied = install.index.0;
                self.driver.installed(install.group, &mut effects);
            }
            for snapshot in std::mem::take(&mut effects.snapshots) {
                self.driver.snapshot_sent(snapshot.group, snapshot.to, true);
            }
            for committed in std::mem::take(&mut effects.apply) {
                for entry in &committed.entries {
                    assert_eq!(entry.index, self.applied + 1, "entries are applied in order, once");
                    self.applied = entry.index;
                    let applied = (entry.term, entry.data.clone());
                    let before = self.log.insert(entry.index, applied.clone());
                    assert!(before.is_none_or(|before| before == applied), "an applied entry changed");
                }
                self.driver.applied(committed.group, LogIndex(self.applied), &mut effects);
            }
        }
        panic!("effects without end");
    }

    fn message(&self, feed: &mut Feed<'_>) -> RaftMessage {
        let status = self.status();
        let (term, last, commit) = (status.term.0, status.last.0, status.commit.0);
        let kind = KINDS[usize::from(feed.byte()) % KINDS.len()];
        let flags = feed.byte();
        let index = feed.near(&[last, commit, status.first.0]);
        let mut message = RaftMessage {
            kind,
            term: Term(feed.near(&[term, term, term + 1])),
            log_term: Term(feed.near(&[term, term.saturating_sub(1)])),
            index: LogIndex(index),
            commit: LogIndex(feed.near(&[last, commit, index])),
            commit_term: Term(feed.near(&[term])),
            reject: flags & 1 == 1,
            reject_hint: LogIndex(if flags & 2 == 2 { feed.near(&[last, commit]) } else { 0 }),
            request_snapshot: LogIndex(if flags & 4 == 4 { feed.near(&[last, commit]) } else { 0 }),
            priority: i64::from(feed.byte() as i8),
            context: Bytes::copy_from_slice(&[feed.byte()][..usize::from(flags >> 7)]),
            entries: Vec::new(),
            snapshot: None,
        };
        for n in 0..(flags >> 4) & 3 {
            let follows = feed.byte();
            let next = index.saturating_add(1 + u64::from(n));
            message.entries.push(WireEntry {
                term: if follows & 1 == 0 { message.term } else { Term(feed.near(&[term])) },
                index: LogIndex(if follows & 2 == 0 { next } else { feed.near(&[last]) }),
                kind: if follows & 12 == 12 { EntryKind::Change } else { EntryKind::Normal },
                data: Bytes::copy_from_slice(&[follows]),
            });
        }
        if kind == MessageKind::Snapshot || flags & 8 == 8 {
            let voters: &[u64] = if feed.byte() & 7 == 7 { &[1, 2] } else { &[3, 2, 1] };
            message.snapshot = Some(SnapshotMeta {
                index: LogIndex(index),
                term: message.log_term,
                voters: voters.iter().copied().map(MemberId).collect(),
            });
        }
        message
    }
}

/// Messages, ticks and proposals in any order; some messages come twice. Whatever peers send, nothing
/// panics, and what is applied is applied once and in order.
pub(super) fn steps(bytes: &[u8]) {
    let mut node = Node::new();
    node.pump();
    let mut feed = Feed(&bytes[..bytes.len().min(4096)]);
    let mut sent: Vec<(MemberId, RaftMessage)> = Vec::new();
    while !feed.0.is_empty() {
        let op = feed.byte();
        let from = MemberId(u64::from(op >> 4) % 4);
        match op & 15 {
            0..=8 => {
                let message = node.message(&mut feed);
                sent.push((from, message.clone()));
                step(&mut node.driver, from, message);
            }
            9 | 10 => {
                // An old message again.
                let at = usize::from(feed.byte());
                if let Some((from, message)) = sent.get(at % sent.len().max(1)).cloned() {
                    step(&mut node.driver, from, message);
                }
            }
            11 => (0..=op >> 4).for_each(|_| node.driver.tick()),
            12 => {
                let status = node.status();
                let first_seq = RecordSeq(u64::from(feed.byte()));
                let (epoch, data) = (status.term, Bytes::from_static(b"proposal"));
                node.driver.propose(Proposal { group: GROUP, epoch, first_seq, records: 1, data });
            }
            13 => node.driver.member_down(from),
            14 => node.driver.read_index(GROUP, node.status().term, u64::from(feed.byte())),
            _ => drop(node.driver.truncate(GROUP, LogIndex(node.applied), op & 16 == 16)),
        }
        node.pump();
    }
}

fn step(driver: &mut Driver, from: MemberId, message: RaftMessage) {
    let _ = match message.kind {
        MessageKind::Snapshot => driver.step_snapshot(from, GROUP, message),
        _ => driver.step(from, GROUP, message),
    };
}

pub(super) fn step_seeds() -> Vec<Vec<u8>> {
    // Elected by the preferred, then by time; led by another; overtaken by a snapshot.
    let every_kind =
        (0..13u8).flat_map(|kind| [0x20, kind, 0x30, 0x42, 0x42, 0x42, 0x42, 0x42, 0, 0, 0, 0, 0]);
    vec![
        vec![0xfb, 0xfb, 0xfb, 0x20, 3, 0, 0x40, 0x40, 0x40, 0x40, 0x40, 0, 0x2c, 0, 0x2c, 1, 0x2e, 0],
        every_kind.collect(),
        vec![0x20, 0, 0x30, 0x40, 0x41, 0x41, 0x40, 0x40, 0, 0, 0, 0, 0x29, 0, 0x2a, 0, 0xfb],
        vec![0x20, 4, 0x08, 0x90, 0x42, 0x40, 0x41, 0x40, 0, 0, 0xfb, 0x29, 0],
    ]
}
