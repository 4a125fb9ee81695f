//! What nodes and clients say to each other on the calls and client lanes.
//!
//! Closed enums in postcard behind a version byte; they only grow at the end. Nothing here is recursive,
//! and a frame bounds what decoding it can ask for.

use bytes::Bytes;
use perennial_core::id::{ActorId, MemberId, PartitionId, RequestId, Term};
use perennial_core::placement::ClusterState;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::actor::Format;
use crate::call::{Answered, EventsFrom};
use crate::error::Fault;
use crate::host::Delivery;
use crate::operator::LeaderQuestion;
use crate::status::{ClusterStatus, PartitionStatus, ReminderPage};

/// Version of everything in this module.
const VERSION: u8 = 1;

/// A call on the wire.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct CallRequest {
    pub(crate) target: ActorId,
    pub(crate) method: String,
    pub(crate) format: Format,
    pub(crate) args: Bytes,
    pub(crate) request: RequestId,
    pub(crate) ack_below: u64,
    pub(crate) keyed: bool,
    pub(crate) read_only: bool,
    pub(crate) path: Vec<ActorId>,
    /// Milliseconds left until the caller gives up.
    pub(crate) timeout_ms: u32,
    /// A read that any replica may answer whose rows are no older than this, in milliseconds.
    pub(crate) stale_ms: Option<u64>,
}

/// A question to a node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Question {
    /// Run this call if you lead its partition; it has made its hop.
    Call(CallRequest),
    /// Messages of one partition's outbox.
    Deliver(Delivery),
    /// Members, table and leaders.
    Routes,
    /// The cluster as you see it.
    Status,
    /// What you know of the partitions you lead.
    Led,
    /// A member is up, at this address. For the leader of the system partition.
    MemberUp(perennial_core::membership::MemberSpec),
    /// For the leader of a partition.
    OfLeader { partition: PartitionId, question: LeaderQuestion },
    /// Run this call in your pool of stateless workers; it has made its hop.
    Work(CallRequest),
}

/// A node's answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Response {
    /// The call has ended.
    Ended(Answered),
    /// Another node leads, if it is known which; nothing ran.
    NotLeader(Option<(Term, MemberId)>),
    /// Messages are applied up to this one.
    Delivered(u64),
    /// The question could not be served.
    Refused(Fault),
    /// Members, table and, by partition, leaders.
    Routes(Box<RoutesAnswer>),
    /// The cluster.
    Status(Box<ClusterStatus>),
    /// Partitions led there.
    Led(Vec<PartitionStatus>),
    /// Done.
    Done,
    /// Reminders that are set.
    Reminders(ReminderPage),
    /// The reminder is not set any more; whether it was.
    Cancelled(bool),
    /// The kind is stateless: the call did not run, and goes to the pool of any node.
    Stateless(crate::options::Pool),
}

/// Members, table and leaders.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RoutesAnswer {
    pub(crate) state: ClusterState,
    pub(crate) leaders: Vec<(PartitionId, Term, MemberId)>,
}

/// A request for a stream.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Stream {
    /// An actor's events.
    Events { actor: ActorId, from: EventsFrom },
}

/// Bytes that are not what this build speaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unreadable {
    #[error("the message has version {0}, this build speaks {VERSION}")]
    Version(u8),
    #[error("the message cannot be decoded: {0}")]
    Malformed(String),
}

/// Encodes with the version in front.
pub(crate) fn encode<T: Serialize>(value: &T) -> Bytes {
    let mut bytes = Vec::with_capacity(128);
    bytes.push(VERSION);
    postcard::to_extend(value, bytes).expect("a message always encodes").into()
}

/// Decodes what [`encode`] made; nothing may be left over.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Unreadable> {
    match bytes.split_first() {
        Some((&VERSION, body)) => match postcard::take_from_bytes(body) {
            Ok((value, [])) => Ok(value),
            Ok((_, rest)) => Err(Unreadable::Malformed(format!("{} bytes too many", rest.len()))),
            Err(error) => Err(Unreadable::Malformed(error.to_string())),
        },
        Some((&version, _)) => Err(Unreadable::Version(version)),
        None => Err(Unreadable::Malformed("it is empty".into())),
    }
}
