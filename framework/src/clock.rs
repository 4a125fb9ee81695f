//! The node's clock, in record time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use perennial_core::time::Millis;

/// Where a node reads the time.
#[derive(Debug, Clone)]
pub(crate) enum Clock {
    /// The machine's clock.
    System,
    /// Tokio's clock from a start on, which tests may pause and move, above a time that may jump.
    Tokio { start: tokio::time::Instant, at: WallClock },
}

/// The time of day of a simulated machine, apart from how long it has been running.
#[derive(Debug, Clone)]
pub struct WallClock(Arc<AtomicU64>);

impl WallClock {
    /// A clock that shows so many milliseconds since the Unix epoch when its machine starts.
    #[must_use]
    pub fn new(millis: u64) -> Self {
        Self(Arc::new(AtomicU64::new(millis)))
    }

    /// Sets the clock forward or back by so many milliseconds.
    pub fn jump(&self, millis: i64) {
        let jumped = |at: u64| Some(at.saturating_add_signed(millis));
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, jumped);
    }
}

impl Clock {
    /// Now, in milliseconds since the Unix epoch.
    pub(crate) fn now(&self) -> Millis {
        match self {
            Self::System => {
                let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                Millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
            }
            Self::Tokio { start, at } => Millis(at.0.load(Ordering::Relaxed))
                .plus(u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX)),
        }
    }

    /// Now, for deadlines.
    pub(crate) fn instant(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }
}
