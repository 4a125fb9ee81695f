//! The deciding half of Perennial: pure, deterministic, without I/O.
//!
//! Everything here is a function of its inputs: no clock, no randomness, no thread, no channel, no
//! hash-ordered map and no log line. The async shell around it is the crate `perennial`.
//!
//! Layers: `id time wire` ← `hash membership` ← `ring replication` ← `placement partition` ← `routing`.

pub mod balance;
pub mod hash;
pub mod id;
pub mod membership;
pub mod partition;
pub mod placement;
pub mod replication;
pub mod ring;
pub mod routing;
pub mod time;
pub mod wire;
