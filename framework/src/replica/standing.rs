//! How far behind the rows of a replica are.
//!
//! Owns what a read needs that is answered without the leader: when everything that was committed by then
//! had reached the rows here, and whether the rows are being changed right now. The replica's worker
//! writes it, everybody else reads. Time is that of this machine's monotonic clock alone, so no two
//! clocks are compared.
//! Source: for the version, the sequence locks of Linux (`seqlock_t`).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use perennial_core::id::GroupId;

/// Where the rows of one group stand.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    /// Odd while the rows are being changed.
    version: AtomicU64,
    /// What was committed before this is in the rows.
    as_of: Mutex<Option<Instant>>,
}

/// The rows of a group at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct View {
    version: u64,
    /// What was committed before this is in the rows.
    pub(crate) as_of: Instant,
}

impl Standing {
    /// The rows as they are; `None` while they change, and before it is known how old they are.
    pub(crate) fn view(&self) -> Option<View> {
        let as_of = (*self.as_of.lock().unwrap_or_else(PoisonError::into_inner))?;
        let version = self.version.load(Ordering::SeqCst);
        version.is_multiple_of(2).then_some(View { version, as_of })
    }

    /// Whether the rows have not changed since; if so, what was read meanwhile belongs together.
    pub(crate) fn is_still(&self, view: View) -> bool {
        self.version.load(Ordering::SeqCst) == view.version
    }

    /// The rows are about to change.
    pub(super) fn begin_change(&self) {
        let before = self.version.fetch_add(1, Ordering::SeqCst);
        debug_assert!(before.is_multiple_of(2), "changes of a group come one after the other");
    }

    /// The rows have changed.
    pub(super) fn end_change(&self) {
        self.version.fetch_add(1, Ordering::SeqCst);
    }

    /// What was committed before `at` is in the rows.
    pub(super) fn confirm(&self, at: Instant) {
        let mut as_of = self.as_of.lock().unwrap_or_else(PoisonError::into_inner);
        *as_of = Some(as_of.map_or(at, |known| known.max(at)));
    }
}

/// Where the rows of all groups of a replica stand.
#[derive(Debug, Default)]
pub(crate) struct Standings(RwLock<BTreeMap<GroupId, Arc<Standing>>>);

impl Standings {
    /// Of a group that is hosted here.
    pub(crate) fn of(&self, group: GroupId) -> Option<Arc<Standing>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&group).cloned()
    }

    /// A group is hosted here from now on.
    pub(super) fn add(&self, group: GroupId) -> Arc<Standing> {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        all.entry(group).or_default().clone()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn rows_that_change_are_not_looked_at() {
        let standing = Standing::default();
        assert_eq!(standing.view(), None, "nobody knows how old they are");
        let now = Instant::now();
        standing.confirm(now);
        let view = standing.view().unwrap();
        assert!(view.as_of == now && standing.is_still(view));
        standing.begin_change();
        assert!(standing.view().is_none() && !standing.is_still(view));
        standing.end_change();
        assert!(standing.view().is_some() && !standing.is_still(view));
    }

    #[test]
    fn a_late_confirmation_makes_nothing_older() {
        let standing = Standing::default();
        let now = Instant::now();
        standing.confirm(now + Duration::from_secs(1));
        standing.confirm(now);
        assert_eq!(standing.view().unwrap().as_of, now + Duration::from_secs(1));
    }
}
