//! The Perennial node as a library: an application's main, its commands and its gateway.
//!
//! ```no_run
//! use perennial_runtime::{App, Run};
//!
//! fn main() -> std::process::ExitCode {
//!     App::new("shop").run()
//! }
//! ```

pub mod certs;
mod cli;
pub mod clocks;
mod commands;
pub mod counter;
mod exit;
pub mod gateway;
pub mod harness;
mod idempotency;
mod launch;
mod output;
mod settings;
pub mod workload;

pub use launch::{Launcher, Run};
pub use perennial::App;
pub use workload::{LoadContext, LoadReport, Probe, RunningLoad, Workload};

/// The examples of the README, compiled as tests of the documentation.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;

/// The same of the page about messages.
#[cfg(doctest)]
#[doc = include_str!("../../docs/messages.md")]
pub struct MessagesPage;

/// The examples of the page on changing states.
#[cfg(doctest)]
#[doc = include_str!("../../docs/evolution.md")]
pub struct Evolution;

/// The examples of the page on events, likewise.
#[cfg(doctest)]
#[doc = include_str!("../../docs/events.md")]
pub struct EventsPage;

/// Turns and messages are many small allocations on several threads; measured on three nodes and a
/// client on two cores, glibc's allocator took a tenth of the CPU.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
