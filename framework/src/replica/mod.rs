//! The replica: what makes a node's Raft groups durable and talks to their peers.
//!
//! Owns the replica thread, the log on disk, the applied rows, snapshots and checkpoints. Never
//! decides anything about Raft ([`perennial_core::replication::Driver`] does) and never runs
//! application code. In go frames of peers, proposals and hints through a [`ReplicaHandle`]; out
//! come frames through [`Outbound`] and events through [`GroupSink`].
//!
//! One thread runs all groups, with one flush for everything a loop has gathered:
//!
//! ```text
//!  inputs ─▶ driver ─▶ early messages ─▶ log: one flush ─▶ late messages ─▶ rows: one write ─▶ events
//!                                                                              │ every 5 s
//!                                        log forgets ◀─ rows flushed ◀─ checkpoint
//! ```
//!
//! Recovery is the checkpoint plus the log behind it. Rows are after-images, so those that got to
//! disk ahead of their checkpoint do no harm. A failed flush ends the thread: it is never retried.

mod buffer;
mod config;
mod damage;
mod disk;
mod files;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod handle;
mod inputs;
mod log;
mod metrics;
mod notes;
mod row_files;
mod rows;
mod snapshot;
pub(crate) mod standing;
mod stores;
mod tasks;
mod thread;
mod worker;

pub use buffer::BufferedRows;
pub use config::{GroupConfig, ReplicaConfig};
pub use disk::{Disk, DiskFault};
pub use handle::{
    BulkRefused, GroupEvent, GroupSink, Outbound, Refusal, ReplicaFault, ReplicaHandle, Unproposed,
};
pub use log::LogError;
pub use metrics::ReplicaMetrics;
pub use rows::{FjallRows, GroupMeta, MemoryRows, Row, RowError, RowIter, RowStore};
pub use snapshot::ChunkError;
pub use stores::Stores;
pub use tasks::Pace;
pub use thread::Replica;
pub use worker::MachineFactory;

#[cfg(test)]
mod damage_tests;
#[cfg(test)]
mod tests;
