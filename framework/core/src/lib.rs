//! The deciding half of Perennial: pure, deterministic, without I/O.
//!
//! Everything here is a function of its inputs: no clock, no randomness, no thread, no channel, no
//! hash-ordered map and no log line. The async shell around it is the crate `perennial`.
//!
//! Layers: `id time hash wire` ← `ring membership replication` ← `placement partition` ← `routing`.

pub mod id;
pub mod replication;
pub mod time;
