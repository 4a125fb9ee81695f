//! Names of things: actors, nodes, members, partitions, Raft positions.
//!
//! Owns the newtypes every other module speaks in. Never computes with them beyond order and
//! equality. Limits of user-supplied names are checked where the value is made, so that a value
//! of one of these types is always within them.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest actor key, in bytes of UTF-8.
pub const KEY_BYTES_MAX: usize = 512;
/// Longest kind name, in bytes.
pub const KIND_BYTES_MAX: usize = 64;
/// Longest node id, in bytes.
pub const NODE_ID_BYTES_MAX: usize = 63;

/// Why a user-supplied name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The kind is empty, too long or has a character outside `[A-Za-z0-9._-]`.
    #[error("kind {0:?} is not valid: use 1 to {KIND_BYTES_MAX} characters of A-Z a-z 0-9 . _ -")]
    Kind(String),
    /// There is no slash between kind and key.
    #[error("{0:?} has no key: write KIND/KEY, such as Cart/alice")]
    NoKey(String),
    /// The key is empty.
    #[error("the actor key is empty: name the actor you mean")]
    KeyEmpty,
    /// The key is longer than [`KEY_BYTES_MAX`].
    #[error("the actor key has {0} bytes, the limit is {KEY_BYTES_MAX}")]
    KeyTooLong(usize),
    /// The node id is not a DNS label.
    #[error(
        "node id {0:?} is not valid: use 1 to {NODE_ID_BYTES_MAX} characters of a-z 0-9 and - (a DNS label)"
    )]
    Node(String),
}

/// An actor: kind (a stable name, not the Rust path) and key. It always exists.
///
/// Invariant: the kind matches `[A-Za-z0-9._-]{1,64}`, the key has 1 to [`KEY_BYTES_MAX`] bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ActorId {
    /// `kind/key`; the kind never holds a slash.
    text: Arc<str>,
    kind_bytes: u8,
}

impl ActorId {
    /// Makes an id; checks both names.
    ///
    /// # Errors
    /// [`NameError`] when a name is outside its limits.
    pub fn new(kind: &str, key: &str) -> Result<Self, NameError> {
        let kind_ok = !kind.is_empty()
            && kind.len() <= KIND_BYTES_MAX
            && kind.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        if !kind_ok {
            return Err(NameError::Kind(kind.to_owned()));
        }
        if key.is_empty() {
            return Err(NameError::KeyEmpty);
        }
        if key.len() > KEY_BYTES_MAX {
            return Err(NameError::KeyTooLong(key.len()));
        }
        let mut text = String::with_capacity(kind.len() + 1 + key.len());
        text.push_str(kind);
        text.push('/');
        text.push_str(key);
        Ok(Self { text: text.into(), kind_bytes: kind.len() as u8 })
    }

    /// The stable name of the actor's type.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.text[..usize::from(self.kind_bytes)]
    }

    /// Which actor of its kind.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.text[usize::from(self.kind_bytes) + 1..]
    }

    /// `kind/key`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl std::str::FromStr for ActorId {
    type Err = NameError;
    /// Reads `kind/key`; everything after the first slash is the key.
    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.split_once('/') {
            Some((kind, key)) => Self::new(kind, key),
            None => Err(NameError::NoKey(text.to_owned())),
        }
    }
}

impl fmt::Display for ActorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
impl fmt::Debug for ActorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}
impl Serialize for ActorId {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.text)
    }
}
impl<'de> Deserialize<'de> for ActorId {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The name an operator gives a node (`n1`); a DNS label, stable across restarts.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(Arc<str>);

impl NodeId {
    /// Makes a node id.
    ///
    /// # Errors
    /// [`NameError::Node`] when it is not a DNS label in lower case.
    pub fn new(text: &str) -> Result<Self, NameError> {
        let ok = !text.is_empty()
            && text.len() <= NODE_ID_BYTES_MAX
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !text.starts_with('-')
            && !text.ends_with('-');
        if ok { Ok(Self(text.into())) } else { Err(NameError::Node(text.to_owned())) }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
impl std::str::FromStr for NodeId {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::new(text)
    }
}
impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl Serialize for NodeId {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.0)
    }
}
impl<'de> Deserialize<'de> for NodeId {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        Self::new(&text).map_err(serde::de::Error::custom)
    }
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// A member's number, given once by the system partition; the Raft id of its replicas. Never 0.
    MemberId(u64)
);
number!(
    /// A partition of the key space, `0..partitions`.
    PartitionId(u32)
);
number!(
    /// A Raft term.
    Term(u64)
);
number!(
    /// A position in a Raft log; the first entry is 1.
    LogIndex(u64)
);
number!(
    /// Version of the placement table; grows with every committed change.
    Epoch(u64)
);
number!(
    /// Position of a record within the records one leader proposed in one term, from 0.
    RecordSeq(u64)
);
number!(
    /// Identity of a cluster, drawn at random when it is formed.
    ClusterId(u128)
);

/// A Raft group: the system partition or one partition of the key space.
///
/// Invariant: a number that [`GroupId::from_raw`] takes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u64")]
pub struct GroupId(u64);

/// A number that no group has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no group has the number {0}: it is damaged or comes from another version")]
pub struct GroupIdError(u64);

impl TryFrom<u64> for GroupId {
    type Error = GroupIdError;
    fn try_from(raw: u64) -> Result<Self, GroupIdError> {
        Self::from_raw(raw).ok_or(GroupIdError(raw))
    }
}

impl GroupId {
    /// The group that decides membership and placement.
    pub const SYSTEM: Self = Self(1);
    const PARTITION_BASE: u64 = 16;

    /// The group of a partition.
    #[must_use]
    pub fn of(partition: PartitionId) -> Self {
        Self(Self::PARTITION_BASE + u64::from(partition.0))
    }

    /// The partition of this group; `None` for the system partition.
    #[must_use]
    pub fn partition(self) -> Option<PartitionId> {
        self.0.checked_sub(Self::PARTITION_BASE).map(|p| PartitionId(p as u32))
    }

    /// The number used on disk and on the wire.
    #[must_use]
    pub fn raw(self) -> u64 {
        self.0
    }

    /// Reads the number back; `None` when no group has it.
    #[must_use]
    pub fn from_raw(raw: u64) -> Option<Self> {
        let known = raw == Self::SYSTEM.0
            || (raw >= Self::PARTITION_BASE && raw - Self::PARTITION_BASE <= u64::from(u32::MAX));
        known.then_some(Self(raw))
    }
}
impl fmt::Debug for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.partition() {
            Some(p) => write!(f, "p{p}"),
            None => f.write_str("system"),
        }
    }
}
impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Who retries: a client's session, or the hash of an `Idempotency-Key`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SessionId(pub u128);
impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Identity of one call; a retry carries the same one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RequestId {
    /// Who calls.
    pub session: SessionId,
    /// Which of the session's calls, counted up by the caller.
    pub seq: u64,
}
impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}#{}", self.session, self.seq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_keep_kind_and_key_apart() {
        let id = ActorId::new("Cart", "a/b").unwrap();
        assert_eq!((id.kind(), id.key(), id.as_str()), ("Cart", "a/b", "Cart/a/b"));
        assert_eq!("Cart/a/b".parse::<ActorId>().unwrap(), id);
    }

    #[test]
    fn names_outside_their_limits_are_refused() {
        assert_eq!(ActorId::new("Cart", ""), Err(NameError::KeyEmpty));
        assert_eq!("Cart/".parse::<ActorId>(), Err(NameError::KeyEmpty));
        assert_eq!("Cart".parse::<ActorId>(), Err(NameError::NoKey("Cart".into())));
        assert_eq!(ActorId::new("Cart", &"k".repeat(513)), Err(NameError::KeyTooLong(513)));
        assert!(ActorId::new("Cart", &"k".repeat(512)).is_ok());
        assert!(matches!(ActorId::new("Ca/rt", "k"), Err(NameError::Kind(_))));
        assert!(NodeId::new("N1").is_err() && NodeId::new("-n").is_err() && NodeId::new("n1").is_ok());
    }

    #[test]
    fn group_numbers_round_trip() {
        for group in [GroupId::SYSTEM, GroupId::of(PartitionId(0)), GroupId::of(PartitionId(63))] {
            assert_eq!(GroupId::from_raw(group.raw()), Some(group));
        }
        for unknown in [0, 2, 16 + (1 << 32), u64::MAX] {
            assert_eq!(GroupId::from_raw(unknown), None);
            assert!(crate::wire::decode::<GroupId>(&crate::wire::encode(&unknown), 10).is_err(), "{unknown}");
        }
    }
}
