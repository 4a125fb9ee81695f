//! One application in two builds, for upgrades of real processes.
//!
//! Owns what the binaries `upgrade-v1` and `upgrade-v2` are made of. The kinds have the same names; states and
//! handlers differ in each way that is promised to work.

pub mod v1;
pub mod v2;
