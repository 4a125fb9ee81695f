//! The node's clock, in record time.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use perennial_core::time::Millis;

/// Where a node reads the time.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Clock {
    /// The machine's clock.
    System,
    /// Tokio's clock from a start on, which tests may pause and move.
    Tokio { start: tokio::time::Instant, at: Millis },
}

impl Clock {
    /// Now, in milliseconds since the Unix epoch.
    pub(crate) fn now(&self) -> Millis {
        match self {
            Self::System => {
                let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                Millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
            }
            Self::Tokio { start, at } => {
                at.plus(u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX))
            }
        }
    }

    /// Now, for deadlines.
    pub(crate) fn instant(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }
}
