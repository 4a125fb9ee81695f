//! The trait above the links: bytes to a node on a lane, requests to a node.
//!
//! Owns the contract and its words; the implementations are `cluster` (TLS over TCP) and `memory`
//! (in this process), both under `tests/link_contract.rs`.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use perennial_core::id::NodeId;

use super::calls::{Answer, ItemStream, LinkError, Service};
use super::control::Control;
use super::guard::Closed;

/// A lane between two nodes: a connection of its own, so that one does not delay another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// Raft messages: small, in order, latency matters most.
    Raft,
    /// Calls and their answers.
    Calls,
    /// Snapshots and other large transfers, in chunks.
    Bulk,
}

impl Lane {
    /// All lanes.
    pub const ALL: [Self; 3] = [Self::Raft, Self::Calls, Self::Bulk];
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raft => "raft",
            Self::Calls => "calls",
            Self::Bulk => "bulk",
        })
    }
}

/// What the links tell about a node: a hint, never a decision about membership.
///
/// For one node: `Up`, then `Down` or `Gone` (or `Down` and later `Gone`), then `Up` again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkEvent {
    /// The node is linked.
    Up(NodeId),
    /// The link to the node broke; the node may be alive.
    Down(NodeId),
    /// The link broke and the node's port refuses connections: its process has ended.
    Gone(NodeId),
}

/// Why a frame was not taken; the frame comes back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unsent {
    /// There is no link to that node now.
    #[error("no link to the node: nothing was sent")]
    NoLink(Bytes),
    /// The link's queue is at its limit.
    #[error("the queue to the node is full: nothing was sent, slow down")]
    Full(Bytes),
    /// The frame is above [`FRAME_BYTES_MAX`](super::FRAME_BYTES_MAX).
    #[error("the frame has {} bytes, the limit is {}: nothing was sent, cut it into chunks", .0.len(), super::FRAME_BYTES_MAX)]
    TooLarge(Bytes),
}

impl Unsent {
    /// The frame that was refused.
    #[must_use]
    pub fn into_frame(self) -> Bytes {
        match self {
            Self::NoLink(frame) | Self::Full(frame) | Self::TooLarge(frame) => frame,
        }
    }
}

/// Where a transport delivers. None of these may block: they run on the task that reads the link.
#[derive(Clone)]
pub struct Handlers {
    /// A frame from a node on a lane; in order per (node, lane).
    pub inbound: Arc<dyn Fn(NodeId, Lane, Bytes) + Send + Sync>,
    /// A change of a node's link.
    pub events: Arc<dyn Fn(LinkEvent) + Send + Sync>,
    /// Who answers requests and streams.
    pub service: Arc<dyn Service>,
}

impl fmt::Debug for Handlers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handlers").finish_non_exhaustive()
    }
}

/// Bytes to and from nodes. Nothing here blocks; order is kept per (node, lane); loss is allowed.
pub trait Transport: Send + Sync + 'static {
    /// Queues a frame for a node.
    ///
    /// # Errors
    /// [`Unsent`] with the frame; nothing was sent. `Ok` promises order, not arrival.
    fn send(&self, to: &NodeId, lane: Lane, frame: Bytes) -> Result<(), Unsent>;

    /// Asks a node on the calls lane. The answer is a future that may be dropped at any time; the request
    /// is queued before this returns.
    fn request(&self, to: &NodeId, payload: Bytes, within: Duration) -> Answer;

    /// Asks a node for a stream of items on the calls lane. Dropping the stream cancels it there.
    ///
    /// # Errors
    /// [`LinkError`] when the request could not be queued.
    fn request_stream(&self, to: &NodeId, payload: Bytes) -> Result<ItemStream, LinkError>;

    /// Names the nodes to be linked to, with their addresses (`host:port`). Nodes not named are let go;
    /// a changed address is used from the next dial on. Idempotent.
    fn set_peers(&self, peers: Vec<(NodeId, String)>);

    /// Whether the node is linked now.
    fn is_up(&self, node: &NodeId) -> bool;

    /// Connections that this side has closed so far, by reason.
    fn closed(&self) -> Vec<(Closed, u64)>;
}

/// A transport as its node starts and stops it.
pub trait NodeTransport: Transport {
    /// Opens the control lane: from now on sessions are dialed and accepted for `control`.
    fn serve_control(&self, control: Control);

    /// Closes the door and every link in good order: what is queued is handed over, within `linger`.
    fn stop(&self) -> BoxFuture<'_, ()>;
}
