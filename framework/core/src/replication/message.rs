//! Raft messages on the wire.
//!
//! Owns [`RaftMessage`], our own postcard mirror of raft-rs' protobuf messages, and the frames
//! that carry many of them. Protobuf is never parsed from the network; messages a node must not
//! take from another (proposals, local ticks) cannot even be spelled. In go and out come bytes.

use bytes::Bytes;
use raft::eraftpb as pb;
use serde::{Deserialize, Serialize};

use crate::id::{GroupId, LogIndex, MemberId, Term};

/// Largest entry, in bytes of data; leaves room for the message around it in one frame.
pub const ENTRY_BYTES_MAX: usize = 900 * 1024;
/// Largest frame, in bytes.
pub const FRAME_BYTES_MAX: usize = 1024 * 1024;
/// First byte of every frame.
const FRAME_VERSION: u8 = 1;

/// Kind of a Raft message. Grows at the end only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MessageKind {
    /// Entries, or an empty probe.
    Append,
    /// Answer to an append.
    AppendResponse,
    /// Asks for a vote.
    RequestVote,
    /// Grants or refuses it.
    RequestVoteResponse,
    /// Metadata of a snapshot; the rows travel apart from it.
    Snapshot,
    /// Leader is alive; carries the context of a read.
    Heartbeat,
    /// Answer, with the same context.
    HeartbeatResponse,
    /// Asks the leader to hand over.
    TransferLeader,
    /// Campaign now.
    TimeoutNow,
    /// Asks the leader for a read index.
    ReadIndex,
    /// Answer to it.
    ReadIndexResponse,
    /// Asks whether a vote would be granted.
    RequestPreVote,
    /// Answer to it.
    RequestPreVoteResponse,
}

/// Kind of an entry. Grows at the end only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EntryKind {
    /// Records, or the empty entry of a new leader.
    Normal,
    /// A change of the replica set.
    Change,
    /// A change of the replica set in joint consensus.
    JointChange,
}

/// An entry on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireEntry {
    /// Term it was proposed in.
    pub term: Term,
    /// Its index.
    pub index: LogIndex,
    /// What it holds.
    pub kind: EntryKind,
    /// Its content.
    #[serde(with = "blob")]
    pub data: Bytes,
}

/// What a snapshot covers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotMeta {
    /// Last index included.
    pub index: LogIndex,
    /// Its term.
    pub term: Term,
    /// Replicas of the group.
    pub voters: Vec<MemberId>,
}

/// A Raft message; fields a kind does not use are zero or empty, as in raft-rs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RaftMessage {
    /// What it is.
    pub kind: MessageKind,
    /// Sender's term, or the term campaigned for; never 0.
    pub term: Term,
    /// Term of `index`.
    pub log_term: Term,
    /// Position the message is about.
    pub index: LogIndex,
    /// Sender's commit index, as far as the receiver may know it.
    pub commit: LogIndex,
    /// Its term, in votes.
    pub commit_term: Term,
    /// A refusal.
    pub reject: bool,
    /// Where to try instead.
    pub reject_hint: LogIndex,
    /// Asks for a snapshot that includes this index.
    pub request_snapshot: LogIndex,
    /// Election priority.
    pub priority: i64,
    /// Context of a read round, or the mark of a hand-over.
    #[serde(with = "blob")]
    pub context: Bytes,
    /// Entries, gapless from `index + 1`.
    pub entries: Vec<WireEntry>,
    /// Of a snapshot message.
    pub snapshot: Option<SnapshotMeta>,
}

/// Why a message was not taken; nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Dropped {
    /// No such group here.
    #[error("the group is not hosted here")]
    NoGroup,
    /// The sender is not a replica of the group.
    #[error("the sender is not a replica of the group")]
    Stranger,
    /// A kind that is not taken from the network.
    #[error("messages of this kind are not taken from the network")]
    Kind,
    /// Fields contradict each other or our log.
    #[error("the message contradicts itself or the log")]
    Implausible,
    /// The group is installing a snapshot.
    #[error("the group is installing a snapshot")]
    Installing,
}

mod blob {
    //! `Bytes` as serde bytes.
    use bytes::Bytes;
    use serde::{Deserializer, Serializer, de::Visitor};

    pub(super) fn serialize<S: Serializer>(bytes: &Bytes, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_bytes(bytes)
    }

    struct Copied;
    impl Visitor<'_> for Copied {
        type Value = Bytes;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("bytes")
        }
        fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Bytes, E> {
            Ok(Bytes::copy_from_slice(bytes))
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Bytes, D::Error> {
        d.deserialize_bytes(Copied)
    }
}

impl MessageKind {
    fn of(kind: pb::MessageType) -> Option<Self> {
        use pb::MessageType as T;
        Some(match kind {
            T::MsgAppend => Self::Append,
            T::MsgAppendResponse => Self::AppendResponse,
            T::MsgRequestVote => Self::RequestVote,
            T::MsgRequestVoteResponse => Self::RequestVoteResponse,
            T::MsgSnapshot => Self::Snapshot,
            T::MsgHeartbeat => Self::Heartbeat,
            T::MsgHeartbeatResponse => Self::HeartbeatResponse,
            T::MsgTransferLeader => Self::TransferLeader,
            T::MsgTimeoutNow => Self::TimeoutNow,
            T::MsgReadIndex => Self::ReadIndex,
            T::MsgReadIndexResp => Self::ReadIndexResponse,
            T::MsgRequestPreVote => Self::RequestPreVote,
            T::MsgRequestPreVoteResponse => Self::RequestPreVoteResponse,
            T::MsgHup
            | T::MsgBeat
            | T::MsgPropose
            | T::MsgUnreachable
            | T::MsgSnapStatus
            | T::MsgCheckQuorum => return None,
        })
    }

    fn raft(self) -> pb::MessageType {
        use pb::MessageType as T;
        match self {
            Self::Append => T::MsgAppend,
            Self::AppendResponse => T::MsgAppendResponse,
            Self::RequestVote => T::MsgRequestVote,
            Self::RequestVoteResponse => T::MsgRequestVoteResponse,
            Self::Snapshot => T::MsgSnapshot,
            Self::Heartbeat => T::MsgHeartbeat,
            Self::HeartbeatResponse => T::MsgHeartbeatResponse,
            Self::TransferLeader => T::MsgTransferLeader,
            Self::TimeoutNow => T::MsgTimeoutNow,
            Self::ReadIndex => T::MsgReadIndex,
            Self::ReadIndexResponse => T::MsgReadIndexResp,
            Self::RequestPreVote => T::MsgRequestPreVote,
            Self::RequestPreVoteResponse => T::MsgRequestPreVoteResponse,
        }
    }
}

impl RaftMessage {
    /// Mirrors a message of raft-rs; `None` for kinds that never leave a node.
    #[must_use]
    pub fn from_raft(mut m: pb::Message) -> Option<Self> {
        let kind = MessageKind::of(m.get_msg_type())?;
        let entries = m.take_entries().into_iter().map(WireEntry::from_raft).collect();
        let snapshot = m.snapshot.take().map(|s| SnapshotMeta {
            index: LogIndex(s.get_metadata().index),
            term: Term(s.get_metadata().term),
            voters: s.get_metadata().get_conf_state().voters.iter().map(|v| MemberId(*v)).collect(),
        });
        Some(Self {
            kind,
            term: Term(m.term),
            log_term: Term(m.log_term),
            index: LogIndex(m.index),
            commit: LogIndex(m.commit),
            commit_term: Term(m.commit_term),
            reject: m.reject,
            reject_hint: LogIndex(m.reject_hint),
            request_snapshot: LogIndex(m.request_snapshot),
            priority: m.priority,
            context: std::mem::take(&mut m.context),
            entries,
            snapshot,
        })
    }

    /// The message as raft-rs takes it.
    #[must_use]
    pub fn into_raft(self, from: MemberId, to: MemberId) -> pb::Message {
        let mut m = pb::Message::default();
        m.set_msg_type(self.kind.raft());
        m.from = from.0;
        m.to = to.0;
        m.term = self.term.0;
        m.log_term = self.log_term.0;
        m.index = self.index.0;
        m.commit = self.commit.0;
        m.commit_term = self.commit_term.0;
        m.reject = self.reject;
        m.reject_hint = self.reject_hint.0;
        m.request_snapshot = self.request_snapshot.0;
        m.priority = self.priority;
        m.context = self.context;
        m.entries = self.entries.into_iter().map(WireEntry::into_raft).collect();
        if let Some(meta) = self.snapshot {
            let target = m.mut_snapshot().mut_metadata();
            target.index = meta.index.0;
            target.term = meta.term.0;
            target.mut_conf_state().voters = meta.voters.iter().map(|v| v.0).collect();
        }
        m
    }
}

impl WireEntry {
    fn from_raft(entry: pb::Entry) -> Self {
        let kind = match entry.get_entry_type() {
            pb::EntryType::EntryNormal => EntryKind::Normal,
            pb::EntryType::EntryConfChange => EntryKind::Change,
            pb::EntryType::EntryConfChangeV2 => EntryKind::JointChange,
        };
        Self { term: Term(entry.term), index: LogIndex(entry.index), kind, data: entry.data }
    }

    fn into_raft(self) -> pb::Entry {
        let mut entry = pb::Entry::default();
        entry.set_entry_type(match self.kind {
            EntryKind::Normal => pb::EntryType::EntryNormal,
            EntryKind::Change => pb::EntryType::EntryConfChange,
            EntryKind::JointChange => pb::EntryType::EntryConfChangeV2,
        });
        entry.term = self.term.0;
        entry.index = self.index.0;
        entry.data = self.data;
        entry
    }
}

/// Bytes that are not a frame of this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Larger than [`FRAME_BYTES_MAX`].
    #[error("the frame has {0} bytes, the limit is {FRAME_BYTES_MAX}; close the link")]
    TooLong(usize),
    /// Another version, or empty.
    #[error("the frame is of another version; update the older node")]
    Version,
    /// Not what this version writes.
    #[error("the frame cannot be decoded; close the link")]
    Malformed,
}

/// Appends a value's postcard bytes to a vector.
struct Tail<'a>(&'a mut Vec<u8>);

impl postcard::ser_flavors::Flavor for Tail<'_> {
    type Output = ();
    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }
    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

/// Packs messages for one peer into frames: `version, (group, message)*`.
#[derive(Debug, Default)]
pub struct FrameWriter {
    frame: Vec<u8>,
}

impl FrameWriter {
    /// Adds a message; returns a full frame when it did not fit behind the others.
    pub fn push(&mut self, group: GroupId, message: &RaftMessage) -> Option<Bytes> {
        if self.frame.is_empty() {
            self.frame.push(FRAME_VERSION);
        }
        let start = self.frame.len();
        let written = postcard::serialize_with_flavor(&(group, message), Tail(&mut self.frame));
        assert!(written.is_ok(), "a message encodes into memory");
        if self.frame.len() <= FRAME_BYTES_MAX || start == 1 {
            return None;
        }
        let mut next = Vec::with_capacity(self.frame.len() - start + 1);
        next.push(FRAME_VERSION);
        next.extend_from_slice(&self.frame[start..]);
        self.frame.truncate(start);
        Some(std::mem::replace(&mut self.frame, next).into())
    }

    /// Takes what is packed so far.
    pub fn finish(&mut self) -> Option<Bytes> {
        let size = self.frame.len();
        (size > 0).then(|| std::mem::replace(&mut self.frame, Vec::with_capacity(size.min(4096))).into())
    }
}

/// Reads a frame. The memory it asks for is bounded by a small multiple of the frame.
///
/// # Errors
/// [`FrameError`] when the bytes are not a frame; none of its messages is returned then.
pub fn decode_frame(frame: &[u8]) -> Result<Vec<(GroupId, RaftMessage)>, FrameError> {
    if frame.len() > FRAME_BYTES_MAX {
        return Err(FrameError::TooLong(frame.len()));
    }
    let Some((&FRAME_VERSION, mut rest)) = frame.split_first() else { return Err(FrameError::Version) };
    let mut messages = Vec::new();
    while !rest.is_empty() {
        let (message, left) = postcard::take_from_bytes(rest).map_err(|_| FrameError::Malformed)?;
        messages.push(message);
        rest = left;
    }
    Ok(messages)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::PartitionId;
    use proptest::prelude::*;

    fn sample(kind: MessageKind) -> RaftMessage {
        RaftMessage {
            kind,
            term: Term(7),
            log_term: Term(6),
            index: LogIndex(300),
            commit: LogIndex(299),
            commit_term: Term(6),
            reject: true,
            reject_hint: LogIndex(5),
            request_snapshot: LogIndex(4),
            priority: -1,
            context: Bytes::from_static(b"ctx"),
            entries: vec![WireEntry {
                term: Term(7),
                index: LogIndex(301),
                kind: EntryKind::Normal,
                data: Bytes::from_static(b"abc"),
            }],
            snapshot: Some(SnapshotMeta {
                index: LogIndex(2),
                term: Term(1),
                voters: vec![MemberId(1), MemberId(300)],
            }),
        }
    }

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

    #[test]
    fn bytes_of_every_kind_are_frozen() {
        for (number, kind) in KINDS.into_iter().enumerate() {
            let mut writer = FrameWriter::default();
            assert!(writer.push(GroupId::of(PartitionId(1)), &sample(kind)).is_none());
            let frame = writer.finish().unwrap();
            let mut frozen = vec![1, 17, number as u8];
            frozen.extend([7, 6, 0xac, 2, 0xab, 2, 6, 1, 5, 4, 1, 3, b'c', b't', b'x']);
            frozen.extend([1, 7, 0xad, 2, 0, 3, b'a', b'b', b'c']);
            frozen.extend([1, 2, 1, 2, 1, 0xac, 2]);
            assert_eq!(&frame[..], &frozen[..], "{kind:?}");
        }
    }

    #[test]
    fn raft_messages_survive_the_mirror() {
        for kind in KINDS {
            let message = sample(kind);
            let raft = message.clone().into_raft(MemberId(1), MemberId(2));
            assert_eq!((raft.from, raft.to), (1, 2));
            assert_eq!(RaftMessage::from_raft(raft).unwrap(), message);
        }
        let mut propose = pb::Message::default();
        propose.set_msg_type(pb::MessageType::MsgPropose);
        assert!(RaftMessage::from_raft(propose).is_none());
    }

    #[test]
    fn frames_split_at_the_limit_and_keep_order() {
        let mut writer = FrameWriter::default();
        let mut big = sample(MessageKind::Append);
        big.entries[0].data = Bytes::from(vec![1; ENTRY_BYTES_MAX]);
        let mut frames = Vec::new();
        for n in 0..3 {
            big.index = LogIndex(n);
            frames.extend(writer.push(GroupId::SYSTEM, &big));
        }
        frames.extend(writer.finish());
        assert!(writer.finish().is_none());
        assert_eq!(frames.len(), 3);
        let indexes: Vec<_> =
            frames.iter().flat_map(|f| decode_frame(f).unwrap()).map(|m| m.1.index).collect();
        assert_eq!(indexes, [LogIndex(0), LogIndex(1), LogIndex(2)]);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode_frame(&bytes);
            bytes.insert(0, FRAME_VERSION);
            let _ = decode_frame(&bytes);
        }
    }
}
