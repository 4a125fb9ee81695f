//! What `#[actor(..)]` says of a kind besides its handlers.

pub use perennial_core::balance::Balance;
use perennial_core::partition::record::RECORD_BYTES_MAX;
use serde::{Deserialize, Serialize};

use crate::host::{MAILBOX_CALLS_MAX, PARTITION_CALLS_MAX, STATE_BYTES_MAX};

/// The page for users, compiled as a test of the documentation.
#[cfg(doctest)]
#[doc = include_str!("../../docs/memory.md")]
pub struct Page;

/// Calls of a stateless kind that a node runs at a time, unless the kind says otherwise.
pub const WORKERS_DEFAULT: u32 = 1024;

/// Everything that is said of a kind. Written by `#[actor]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// How much of what its actors may have.
    pub limits: Limits,
    /// Which hooks it has.
    pub hooks: Hooks,
    /// How its calls find a worker; `None` for actors, which have a state.
    pub pool: Option<Pool>,
}

impl Options {
    /// An actor type without options.
    pub const DEFAULT: Self = Self { limits: Limits::DEFAULT, hooks: Hooks::NONE, pool: None };
}

/// Limits of a kind. Above each there is the limit of everybody, in [`crate::limits`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most calls that wait for one actor, up to [`PARTITION_CALLS_MAX`].
    pub mailbox: u32,
    /// Largest encoded state, in bytes, up to [`STATE_BYTES_MAX`].
    pub state_bytes: u32,
    /// Largest record of one turn, in bytes, up to [`RECORD_BYTES_MAX`].
    pub record_bytes: u32,
    /// Most async turns and reads of the kind that a node runs at a time; for a stateless kind, most calls.
    /// `None`: [`PARTITION_CALLS_MAX`] of each partition, or [`WORKERS_DEFAULT`].
    pub concurrency: Option<u32>,
}

impl Limits {
    /// Those of a kind that says nothing.
    pub const DEFAULT: Self = Self {
        mailbox: MAILBOX_CALLS_MAX as u32,
        state_bytes: STATE_BYTES_MAX as u32,
        record_bytes: RECORD_BYTES_MAX as u32,
        concurrency: None,
    };

    /// The same; a limit out of its range does not compile.
    ///
    /// # Panics
    /// When one is out of its range.
    #[must_use]
    pub const fn checked(self) -> Self {
        assert!(
            self.mailbox > 0 && self.mailbox as u64 <= PARTITION_CALLS_MAX,
            "`mailbox` is a number of calls from 1 to 16384, the calls of a partition"
        );
        assert!(
            self.state_bytes > 0 && self.state_bytes as usize <= STATE_BYTES_MAX,
            "`state_bytes` is a size up to \"384KiB\""
        );
        assert!(
            self.record_bytes > 0 && self.record_bytes as usize <= RECORD_BYTES_MAX,
            "`record_bytes` is a size up to the largest record, `limits::RECORD_BYTES_MAX`"
        );
        if let Some(concurrency) = self.concurrency {
            assert!(
                concurrency > 0 && concurrency as u64 <= PARTITION_CALLS_MAX,
                "`concurrency` is a number of turns from 1 to 16384"
            );
        }
        self
    }
}

/// Which hooks a kind has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hooks {
    /// `#[activated]`.
    pub activated: bool,
    /// `#[passivating]`.
    pub passivating: bool,
}

impl Hooks {
    /// None of them.
    pub const NONE: Self = Self { activated: false, passivating: false };
}

/// How calls of a stateless kind find a worker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// How they are spread over nodes.
    pub balance: Balance,
    /// A call that may have run may be made again elsewhere.
    pub idempotent: bool,
}
