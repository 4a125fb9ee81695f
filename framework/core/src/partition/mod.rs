//! Partitions: what the log of one says and what applying it does.
//!
//! Owns records, the state machine that applies them, the replies kept for retries and the keys of the
//! rows. Never runs application code and never knows who leads.

pub mod apply;
pub mod dead;
pub mod dedup;
pub mod record;
pub mod rows;

#[cfg(test)]
mod tests;

pub use apply::{Line, OutboxItem, Partition};
pub use dead::{DeadLetter, KeptLetter, Origin};
pub use dedup::Known;
pub use record::{Batch, Record};
