//! Replicated logs: many Raft groups in one step machine.
//!
//! Owns the [`Driver`] (all groups of a node), the wire form of Raft messages and the contract of
//! the state machines that entries are applied to. Never touches a disk, a socket or a clock: the
//! shell persists, sends and applies what [`Effects`] says, in the order of its fields. In go
//! messages, ticks and proposals; out come effects and epoch events. Raft itself is TiKV's raft-rs;
//! the split into decide and act follows etcd/raft's `Ready` and the thesis' §10.2.1 (a leader may
//! send before its own flush).

mod driver;
mod effects;
mod group;
mod machine;
mod message;
mod storage;

pub use driver::{Driver, DriverConfig, OpenError, UNCOMMITTED_BYTES_MAX};
pub use effects::{
    Committed, Effects, EpochEvent, FollowerStatus, GroupStatus, Install, Outgoing, Persist, Proposal, Role,
    Truncate,
};
#[cfg(feature = "controls")]
pub use group::Fence;
pub use machine::{RestoreError, RowOp, StateMachine};
pub use message::{
    Dropped, ENTRY_BYTES_MAX, EntryKind, FRAME_BYTES_MAX, FrameError, FrameWriter, MessageKind, RaftMessage,
    SnapshotMeta, WireEntry, decode_frame,
};
pub use storage::{GroupSeed, HardState};

/// An entry as raft-rs keeps it and as the log on disk stores it.
pub use raft::eraftpb::Entry;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
