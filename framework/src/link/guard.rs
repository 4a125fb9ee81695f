//! Who has how much of the door, and what it has turned away.
//!
//! Owns the places of connections, of which no one holder gets all, and the counts of connections that
//! were closed, by reason. Never closes anything itself. In: holders, reasons; out: places, numbers for
//! the metrics and a line in the log that a flood cannot flood.

use std::collections::HashMap;
use std::fmt::Display;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use foldhash::fast::RandomState;

use super::hello::Refusal;
use super::lock;
use super::peer::Close;

/// Places of which one holder gets at most a share.
///
/// Invariant: the values of `held` are not 0 and their sum is the first number.
#[derive(Debug)]
pub(crate) struct Places<K> {
    all_max: usize,
    each_max: usize,
    held: Mutex<(usize, HashMap<K, usize, RandomState>)>,
}

impl<K: Hash + Eq + Clone> Places<K> {
    pub(crate) fn new(all_max: usize, each_max: usize) -> Arc<Self> {
        Arc::new(Self { all_max, each_max, held: Mutex::default() })
    }

    /// A place, unless all or those of this holder are taken.
    pub(crate) fn take(self: &Arc<Self>, holder: K) -> Option<Place<K>> {
        let mut held = lock(&self.held);
        let (all, by_holder) = &mut *held;
        if *all >= self.all_max || by_holder.get(&holder).copied().unwrap_or(0) >= self.each_max {
            return None;
        }
        *all += 1;
        *by_holder.entry(holder.clone()).or_default() += 1;
        Some(Place { places: self.clone(), holder })
    }
}

/// A place, given back when dropped.
pub(crate) struct Place<K: Hash + Eq> {
    places: Arc<Places<K>>,
    holder: K,
}

impl<K: Hash + Eq> Drop for Place<K> {
    fn drop(&mut self) {
        let mut held = lock(&self.places.held);
        let (all, by_holder) = &mut *held;
        *all -= 1;
        if let Some(count) = by_holder.get_mut(&self.holder) {
            *count -= 1;
            if *count == 0 {
                by_holder.remove(&self.holder);
            }
        }
    }
}

/// Why a connection was closed from this side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    /// Too many sockets that are not admitted yet, of all or of one address.
    Flood,
    /// Not admitted within the time for the handshake.
    Silent,
    /// No TLS, or a certificate that is missing, expired, not valid yet or of another authority.
    Tls,
    /// The certificate names nobody.
    Nameless,
    /// The first frame or the hello cannot be read.
    Unreadable,
    /// Of another cluster.
    Cluster,
    /// Of a node that is not a member.
    Stranger,
    /// The certificate proves another name than the one given, or a name that is our own.
    Name,
    /// The certificate has no access to the lane.
    Lane,
    /// Too many connections, of all or of one name.
    Busy,
    /// Refused for another reason.
    Other,
    /// An admitted link sent what is no frame, or one that has no place on its lane.
    Garbage,
    /// Nothing came from an admitted link for too long.
    Idle,
    /// An admitted link took nothing for too long.
    Stalled,
}

impl Closed {
    /// All reasons.
    pub const ALL: [Self; 14] = [
        Self::Flood,
        Self::Silent,
        Self::Tls,
        Self::Nameless,
        Self::Unreadable,
        Self::Cluster,
        Self::Stranger,
        Self::Name,
        Self::Lane,
        Self::Busy,
        Self::Other,
        Self::Garbage,
        Self::Idle,
        Self::Stalled,
    ];

    /// The reason as a metric's label has it.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Flood => "flood",
            Self::Silent => "silent",
            Self::Tls => "tls",
            Self::Nameless => "nameless",
            Self::Unreadable => "unreadable",
            Self::Cluster => "cluster",
            Self::Stranger => "stranger",
            Self::Name => "name",
            Self::Lane => "lane",
            Self::Busy => "busy",
            Self::Other => "other",
            Self::Garbage => "garbage",
            Self::Idle => "idle",
            Self::Stalled => "stalled",
        }
    }

    /// `None` for members of a cluster that forms, who dial before all of them know it.
    pub(crate) fn of_refusal(refusal: &Refusal) -> Option<Self> {
        Some(match refusal {
            Refusal::NotFormed => return None,
            Refusal::WrongCluster { .. } | Refusal::HashVersion { .. } => Self::Cluster,
            Refusal::UnknownMember(_) => Self::Stranger,
            Refusal::OwnNode(_) | Refusal::Certificate { .. } => Self::Name,
            Refusal::Lane { .. } => Self::Lane,
            Refusal::Busy => Self::Busy,
            Refusal::Unreadable => Self::Unreadable,
            Refusal::Other(_) => Self::Other,
        })
    }

    /// `None` for ends that are nobody's fault.
    pub(crate) fn of_close(close: Close) -> Option<Self> {
        match close {
            Close::Garbage(_) => Some(Self::Garbage),
            Close::Idle => Some(Self::Idle),
            Close::Stalled => Some(Self::Stalled),
            Close::Broken(_) | Close::Local => None,
        }
    }
}

/// Connections closed so far, by reason.
#[derive(Debug, Default)]
pub(crate) struct ClosedCounts([AtomicU64; Closed::ALL.len()]);

impl ClosedCounts {
    /// Counts one. It is logged when it is the first of its reason and whenever their number has doubled,
    /// so that whoever closes connections all day does not fill the log with it.
    pub(crate) fn note(&self, reason: Closed, whose: &dyn Display, why: &dyn Display) {
        let times = self.0[reason as usize].fetch_add(1, Ordering::Relaxed) + 1;
        let reason = reason.label();
        if times.is_power_of_two() {
            tracing::warn!(reason, times, from = %whose, "a connection was closed: {why}");
        } else {
            tracing::debug!(reason, times, from = %whose, "a connection was closed: {why}");
        }
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (Closed, u64)> {
        Closed::ALL.into_iter().map(|reason| (reason, self.0[reason as usize].load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_holder_gets_all_places_and_places_come_back() {
        let places = Places::new(3, 2);
        let two = [places.take("a").unwrap(), places.take("a").unwrap()];
        assert!(places.take("a").is_none(), "its share is taken");
        let third = places.take("b").unwrap();
        assert!(places.take("c").is_none(), "all are taken");
        drop(two);
        assert!(places.take("c").is_some());
        drop(third);
        assert_eq!(*lock(&places.held), (0, HashMap::default()));
    }

    #[test]
    fn every_reason_has_its_own_count() {
        let counts = ClosedCounts::default();
        for (position, reason) in Closed::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, position);
            for _ in 0..=position {
                counts.note(reason, &"somebody", &"a reason");
            }
        }
        assert!(counts.all().zip(1..).all(|((_, count), wanted)| count == wanted));
    }
}
