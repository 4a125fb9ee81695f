//! What a gateway has to give: so much in all, and so much for each caller.
//!
//! Owns the counts. Never waits: who finds nothing left is refused at once, so that a caller who takes
//! all of its share leaves the others theirs. In: who asks for how much. Out: a [`Share`] that gives
//! itself back, or the limit that was met.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::Limit;
use super::auth::Principal;

/// A bounded amount that callers share.
///
/// Invariant: what is taken in all is the sum of what callers have, and a caller who has nothing is not
/// remembered, so there are never more entries than units.
pub(super) struct Quota {
    all: Limit,
    all_max: usize,
    each: Limit,
    each_max: usize,
    taken: Mutex<Taken>,
}

#[derive(Default)]
struct Taken {
    all: usize,
    by: HashMap<Principal, usize>,
}

/// The limit that was met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Full {
    pub(super) limit: Limit,
    pub(super) max: usize,
}

/// A part of a quota, given back when dropped.
pub(super) struct Share {
    quota: Arc<Quota>,
    holder: Principal,
    amount: usize,
}

impl Quota {
    pub(super) fn new((all, all_max): (Limit, usize), (each, each_max): (Limit, usize)) -> Arc<Self> {
        Arc::new(Self { all, all_max, each, each_max, taken: Mutex::default() })
    }

    /// Takes so much for `holder`, or nothing.
    pub(super) fn take(self: &Arc<Self>, holder: &Principal, amount: usize) -> Result<Share, Full> {
        self.add(holder, amount)?;
        Ok(Share { quota: Arc::clone(self), holder: holder.clone(), amount })
    }

    /// How much is taken in all.
    pub(super) fn taken(&self) -> usize {
        self.counts().all
    }

    fn add(&self, holder: &Principal, amount: usize) -> Result<(), Full> {
        let mut taken = self.counts();
        if taken.all.saturating_add(amount) > self.all_max {
            return Err(Full { limit: self.all, max: self.all_max });
        }
        let has = taken.by.get(holder).copied().unwrap_or(0);
        if has.saturating_add(amount) > self.each_max {
            return Err(Full { limit: self.each, max: self.each_max });
        }
        taken.all += amount;
        if amount > 0 {
            *taken.by.entry(holder.clone()).or_default() += amount;
        }
        Ok(())
    }

    fn counts(&self) -> std::sync::MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    /// Takes more for the same holder, or nothing more.
    pub(super) fn grow(&mut self, more: usize) -> Result<(), Full> {
        self.quota.add(&self.holder, more)?;
        self.amount += more;
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if self.amount == 0 {
            return;
        }
        let mut taken = self.quota.counts();
        taken.all -= self.amount;
        if let Some(has) = taken.by.get_mut(&self.holder) {
            *has -= self.amount;
            if *has == 0 {
                taken.by.remove(&self.holder);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Principal {
        Principal::Key(name.into())
    }

    #[test]
    fn a_caller_is_stopped_at_its_share_and_all_at_the_whole() {
        let quota = Quota::new((Limit::Calls, 3), (Limit::CallsOfOne, 2));
        let full = |limit, max| Some(Full { limit, max });
        let (_a1, a2) = (quota.take(&key("a"), 1).unwrap(), quota.take(&key("a"), 1).unwrap());
        assert_eq!(quota.take(&key("a"), 1).err(), full(Limit::CallsOfOne, 2));
        let mut b = quota.take(&key("b"), 0).unwrap();
        b.grow(1).unwrap();
        assert_eq!(b.grow(1), Err(Full { limit: Limit::Calls, max: 3 }));
        assert_eq!(quota.take(&key("c"), 1).err(), full(Limit::Calls, 3));
        drop(a2);
        assert_eq!(quota.taken(), 2);
        drop(b);
        assert_eq!((quota.taken(), quota.counts().by.len()), (1, 1), "who has nothing is forgotten");
    }
}
