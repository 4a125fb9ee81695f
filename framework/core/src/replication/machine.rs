//! What committed entries are applied to.
//!
//! Owns the contract between the log and everything replicated: [`StateMachine`] turns an entry
//! into operations on rows and keeps a small state of its own. Never writes rows itself; the shell
//! does, and every operation is an after-image, so applying an entry twice changes nothing.

use crate::id::{LogIndex, RecordSeq, Term};

/// One change of a group's rows; keys are relative to the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowOp {
    /// The row has this value from now on.
    Put {
        /// Which row.
        key: Vec<u8>,
        /// Its whole new value.
        value: Vec<u8>,
    },
    /// The row is gone.
    Delete {
        /// Which row.
        key: Vec<u8>,
    },
    /// All rows of a range are gone.
    DeleteRange {
        /// First key of the range.
        from: Vec<u8>,
        /// End of the range, itself not part of it.
        to: Vec<u8>,
    },
}

/// Bytes of a checkpoint that a machine cannot read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// The bytes are not what [`StateMachine::checkpoint`] wrote.
    #[error("the checkpoint of the state machine cannot be decoded; wipe the replica and take a snapshot")]
    Malformed,
    /// A newer build wrote the bytes.
    #[error("the checkpoint has version {found}, this build reads up to {known}; run a newer build")]
    Version {
        /// Version found.
        found: u32,
        /// Highest version known here.
        known: u32,
    },
}

/// The replicated half of a group: a pure function of the entries applied so far.
///
/// Invariants: the same entries in the same order give the same rows and the same checkpoint on
/// every replica; `restore(checkpoint())` is the identity.
pub trait StateMachine: Send {
    /// Applies one entry. Total: an entry that breaks the machine's rules is refused by those
    /// rules, alike on every replica, and never panics.
    fn apply(&mut self, term: Term, index: LogIndex, entry: &[u8], rows: &mut Vec<RowOp>);
    /// The machine's own state, without the applied index (the shell stores that beside it).
    fn checkpoint(&self) -> Vec<u8>;
    /// Takes the state that [`StateMachine::checkpoint`] wrote.
    ///
    /// # Errors
    /// [`RestoreError`] when the bytes are not a checkpoint of this machine; the machine is then
    /// unspecified and must be dropped.
    fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError>;
    /// The state taken by [`StateMachine::restore`] is the group's from here on. Until then it may yet
    /// be thrown away (a snapshot that Raft does not accept), so whatever others are told about it is
    /// told here and in `apply`, never in `restore`.
    fn installed(&mut self) {}
    /// How many records of this epoch have been applied: the sequence number of the next.
    fn next_seq(&self, epoch: Term) -> RecordSeq;
}
