//! Links between nodes: one port, one door, lanes behind it.
//!
//! Owns every socket of the cluster port: TLS identities, the accept and dial loops, the framed
//! connections, requests and streams on them, and the control lane. Never looks into a payload and
//! never decides who is a member ([`Admission`] does).
//!
//! In: bytes for a node on a [`Lane`], requests. Out: bytes from nodes, [`LinkEvent`]s, requests for a
//! [`Service`]. Every queue here is bounded and gives a refused message back.
//!
//! ```text
//! accept ─ TLS ─ certificate ─ hello ─ admission ─┬─ raft, calls, bulk, client ─ Link (frames)
//! dial   ─ TLS ─ certificate ─ hello ─ welcome  ──┴─ control ─ ractor_cluster session
//! ```
//!
//! A link is one TCP connection for one (peer, lane): bulk never delays raft. The sender dials; answers
//! and stream items come back on the connection that asked. Loss of a link loses what was queued.

mod calls;
mod client;
mod cluster;
mod config;
mod control;
mod dial;
mod door;
mod frame;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod guard;
mod hello;
mod memory;
mod mesh;
mod peer;
pub mod tls;
mod transport;

pub use calls::{Answer, ItemStream, LinkError, PushError, Responder, Service, StreamEnd, StreamSink};
pub use client::{ClientLink, Probed, probe};
pub use cluster::{ClusterTransport, StartError};
pub use config::{ConfigError, LinkConfig};
pub use control::{Control, ControlError, ControlHandler, PAYLOAD_BYTES_MAX as CONTROL_BYTES_MAX};
pub use dial::DialError;
pub use frame::{FRAME_BYTES_MAX, FrameError};
pub use guard::Closed;
pub use hello::{Admission, DoorLane, Facts, Hello, Refusal};
pub use memory::{Delay, MemoryHub, MemoryTransport};
pub use mesh::SpawnFailed;
pub use tls::Peer;
pub use transport::{Handlers, Lane, LinkEvent, NodeTransport, Transport, Unsent};

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks; a panic of another holder does not matter, since no lock here is held across a call that
/// leaves its data half changed.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
