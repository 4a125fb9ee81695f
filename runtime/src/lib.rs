//! The Perennial node as a library: an application's main, its commands and its gateway.

pub mod workload;

pub use workload::{LoadContext, LoadReport, Probe, RunningLoad, Workload};
