//! Partitions: what the log of one says and what applying it does.

pub mod record;
