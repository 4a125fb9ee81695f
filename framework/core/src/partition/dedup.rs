//! Replies kept for retries of a session's calls.
//!
//! A session numbers its calls and says with each one below which number everything is acknowledged.
//! Replies below that mark are forgotten; a call below it that comes again is refused, never run.
//! Replies that are kept for a stated time instead are rows, not part of this table.
//! Source: RIFL, "Implementing Linearizability at Large Scale and Low Latency" (SOSP 2015), §4.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::id::{RequestId, SessionId};
use crate::time::Millis;

/// A session silent for longer than this, in milliseconds of record time, is forgotten. Callers give
/// up far earlier, see `call::CALL_TIMEOUT_MAX` of the framework.
pub const SESSION_SILENCE_MS_MAX: u64 = 10 * 60 * 1000;

/// What is known of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    /// Nothing: run it.
    Fresh,
    /// It ran; this was the answer.
    Answered(Bytes),
    /// It was acknowledged; its answer is gone.
    Forgotten,
}

/// Sessions and their unacknowledged replies.
///
/// Invariant: no reply has a number below its session's mark, and marks never go back.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Dedup {
    sessions: BTreeMap<SessionId, Session>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Session {
    acknowledged_below: u64,
    last_seen: Millis,
    replies: BTreeMap<u64, Bytes>,
}

impl Dedup {
    /// What is known of a request.
    #[must_use]
    pub fn look_up(&self, request: RequestId) -> Known {
        let Some(session) = self.sessions.get(&request.session) else { return Known::Fresh };
        if request.seq < session.acknowledged_below {
            return Known::Forgotten;
        }
        session.replies.get(&request.seq).map_or(Known::Fresh, |reply| Known::Answered(reply.clone()))
    }

    /// Keeps a reply and forgets those the session has acknowledged.
    pub fn keep(&mut self, request: RequestId, ack_below: u64, reply: Bytes, now: Millis) {
        let session = self.sessions.entry(request.session).or_insert_with(|| Session {
            acknowledged_below: 0,
            last_seen: now,
            replies: BTreeMap::new(),
        });
        session.last_seen = session.last_seen.max(now);
        if ack_below > session.acknowledged_below {
            session.acknowledged_below = ack_below;
            session.replies = session.replies.split_off(&ack_below);
        }
        if request.seq >= session.acknowledged_below {
            session.replies.insert(request.seq, reply);
        }
    }

    /// Sessions that have been silent for too long at `now`, at most `count` of them.
    #[must_use]
    pub fn silent(&self, now: Millis, count: usize) -> Vec<SessionId> {
        let too_long = self.sessions.iter().filter(|(_, s)| now.since(s.last_seen) > SESSION_SILENCE_MS_MAX);
        too_long.map(|(id, _)| *id).take(count).collect()
    }

    /// Forgets a session.
    pub fn forget(&mut self, session: SessionId) {
        self.sessions.remove(&session);
    }

    /// Sessions known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Whether no session is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(seq: u64) -> RequestId {
        RequestId { session: SessionId(1), seq }
    }

    #[test]
    fn a_retry_gets_the_first_answer_until_it_is_acknowledged() {
        let mut dedup = Dedup::default();
        dedup.keep(request(0), 0, Bytes::from_static(b"a"), Millis(1));
        assert_eq!(dedup.look_up(request(0)), Known::Answered(Bytes::from_static(b"a")));
        assert_eq!(dedup.look_up(request(1)), Known::Fresh);
        dedup.keep(request(1), 1, Bytes::from_static(b"b"), Millis(2));
        assert_eq!(dedup.look_up(request(0)), Known::Forgotten);
        assert_eq!(dedup.look_up(request(1)), Known::Answered(Bytes::from_static(b"b")));
    }

    #[test]
    fn marks_never_go_back() {
        let mut dedup = Dedup::default();
        dedup.keep(request(5), 5, Bytes::new(), Millis(1));
        dedup.keep(request(6), 2, Bytes::new(), Millis(1));
        assert_eq!(dedup.look_up(request(4)), Known::Forgotten);
        dedup.keep(request(3), 2, Bytes::new(), Millis(1));
        assert_eq!(dedup.look_up(request(3)), Known::Forgotten);
    }

    #[test]
    fn only_silent_sessions_are_named() {
        let mut dedup = Dedup::default();
        dedup.keep(request(0), 0, Bytes::new(), Millis(0));
        let other = RequestId { session: SessionId(2), seq: 0 };
        dedup.keep(other, 0, Bytes::new(), Millis(SESSION_SILENCE_MS_MAX));
        assert_eq!(dedup.silent(Millis(SESSION_SILENCE_MS_MAX + 1), 10), vec![SessionId(1)]);
        dedup.forget(SessionId(1));
        assert_eq!(dedup.look_up(request(0)), Known::Fresh);
    }
}
