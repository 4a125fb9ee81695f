//! A caller's session: numbers for its calls and the mark below which all are over.
//!
//! Source: RIFL (SOSP 2015), §4.2.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use perennial_core::id::{RequestId, SessionId};

/// A session. Lives as long as its caller.
pub(crate) struct Session {
    id: SessionId,
    calls: Mutex<Calls>,
}

#[derive(Default)]
struct Calls {
    next: u64,
    open: BTreeSet<u64>,
}

/// One call of a session, over when dropped.
pub(crate) struct Ticket {
    session: Arc<Session>,
    seq: u64,
}

impl Session {
    /// A session under a new random id.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { id: SessionId(rand::random()), calls: Mutex::default() })
    }

    /// Begins a call.
    pub(crate) fn begin(self: &Arc<Self>) -> Ticket {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let seq = calls.next;
        calls.next += 1;
        calls.open.insert(seq);
        Ticket { session: self.clone(), seq }
    }

    /// The id whose retries this session's owner may make.
    pub(crate) fn id(&self) -> SessionId {
        self.id
    }

    /// Every call below this number is over.
    pub(crate) fn ack_below(&self) -> u64 {
        let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.open.first().copied().unwrap_or(calls.next)
    }
}

impl Ticket {
    /// The call's id.
    pub(crate) fn request(&self) -> RequestId {
        RequestId { session: self.session.id(), seq: self.seq }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut calls = self.session.calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.open.remove(&self.seq);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_waits_for_the_oldest_open_call() {
        let session = Session::new();
        let (first, second) = (session.begin(), session.begin());
        drop(second);
        assert_eq!(session.ack_below(), 0);
        drop(first);
        assert_eq!(session.ack_below(), 2);
    }
}
