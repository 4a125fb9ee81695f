//! Virtual actors whose state is kept in replicated logs: actors that come back.
//!
//! The acting half of Perennial: the public API and the shell around `perennial-core`.

pub mod replica;
