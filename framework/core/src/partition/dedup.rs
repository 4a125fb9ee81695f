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

/// Bytes of replies that a partition keeps for all sessions, each with what it costs beside its bytes. With
/// more, new calls are refused: the table is in memory on every replica and travels whole in a snapshot.
pub const KEPT_BYTES_MAX: usize = 32 * 1024 * 1024;
/// The same for one session, so that one that acknowledges nothing does not take it all.
pub const SESSION_KEPT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Cost of a session and of a reply beside its bytes.
const SESSION_BYTES: usize = 64;
const REPLY_BYTES: usize = 32;

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
/// Invariants: no reply has a number below its session's mark, and marks never go back. `bytes` is the sum
/// of the sessions' costs, a session's `bytes` that of its own.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "Stored")]
pub struct Dedup {
    sessions: BTreeMap<SessionId, Session>,
    #[serde(skip)]
    bytes: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Session {
    acknowledged_below: u64,
    last_seen: Millis,
    replies: BTreeMap<u64, Bytes>,
    #[serde(skip)]
    bytes: usize,
}

/// As it stands in a checkpoint.
#[derive(Deserialize)]
struct Stored {
    sessions: BTreeMap<SessionId, Session>,
}

impl From<Stored> for Dedup {
    fn from(Stored { mut sessions }: Stored) -> Self {
        for session in sessions.values_mut() {
            session.bytes = SESSION_BYTES + cost(session.replies.values());
        }
        let bytes = sessions.values().map(|session| session.bytes).sum();
        Self { sessions, bytes }
    }
}

fn cost<'a>(replies: impl Iterator<Item = &'a Bytes>) -> usize {
    replies.map(|reply| REPLY_BYTES + reply.len()).sum()
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

    /// Whether there is room for the reply to another call of a session that has acknowledged everything
    /// below `ack_below`.
    #[must_use]
    pub fn has_room(&self, session: SessionId, ack_below: u64) -> bool {
        let known = self.sessions.get(&session);
        let own = known.map_or(0, |session| session.bytes);
        if self.bytes < KEPT_BYTES_MAX && own < SESSION_KEPT_BYTES_MAX {
            return true;
        }
        // What it acknowledges with this call is about to go.
        let freed = known.map_or(0, |session| cost(session.replies.range(..ack_below).map(|(_, r)| r)));
        self.bytes - freed < KEPT_BYTES_MAX && own - freed < SESSION_KEPT_BYTES_MAX
    }

    /// Keeps a reply and forgets those the session has acknowledged.
    pub fn keep(&mut self, request: RequestId, ack_below: u64, reply: Bytes, now: Millis) {
        let session = self.sessions.entry(request.session).or_insert_with(|| {
            self.bytes += SESSION_BYTES;
            Session { acknowledged_below: 0, last_seen: now, replies: BTreeMap::new(), bytes: SESSION_BYTES }
        });
        let before = session.bytes;
        session.last_seen = session.last_seen.max(now);
        if ack_below > session.acknowledged_below {
            session.acknowledged_below = ack_below;
            let kept = session.replies.split_off(&ack_below);
            session.bytes -= cost(session.replies.values());
            session.replies = kept;
        }
        if request.seq >= session.acknowledged_below {
            session.bytes += cost(std::iter::once(&reply));
            let replaced = session.replies.insert(request.seq, reply);
            session.bytes -= cost(replaced.iter());
        }
        self.bytes = self.bytes + session.bytes - before;
    }

    /// Sessions that have been silent for too long at `now`, at most `count` of them.
    #[must_use]
    pub fn silent(&self, now: Millis, count: usize) -> Vec<SessionId> {
        let too_long = self.sessions.iter().filter(|(_, s)| now.since(s.last_seen) > SESSION_SILENCE_MS_MAX);
        too_long.map(|(id, _)| *id).take(count).collect()
    }

    /// Forgets a session.
    pub fn forget(&mut self, session: SessionId) {
        if let Some(session) = self.sessions.remove(&session) {
            self.bytes -= session.bytes;
        }
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
    fn a_session_that_acknowledges_nothing_runs_out_of_room_and_others_do_not() {
        let mut dedup = Dedup::default();
        let large = Bytes::from(vec![7; 1 << 20]);
        let hog = |dedup: &mut Dedup, session| {
            let mut seq = 0;
            while seq < 100 && dedup.has_room(SessionId(session), 0) {
                dedup.keep(RequestId { session: SessionId(session), seq }, 0, large.clone(), Millis(seq));
                seq += 1;
            }
            seq
        };
        assert_eq!(hog(&mut dedup, 1), 16);
        assert!(dedup.has_room(SessionId(2), 0), "another session has room");
        assert!(dedup.has_room(SessionId(1), 1), "what it acknowledges makes room");
        dedup.keep(RequestId { session: SessionId(1), seq: 15 }, 1, large.clone(), Millis(9));
        assert!(dedup.has_room(SessionId(1), 1), "a reply that is kept again counts once");
        assert_eq!(hog(&mut dedup, 2), 16);
        assert_eq!(hog(&mut dedup, 3), 1);
        assert!(!dedup.has_room(SessionId(4), 0), "all room is taken");
        let stored = postcard::to_stdvec(&dedup).unwrap();
        assert_eq!(postcard::from_bytes::<Dedup>(&stored).unwrap(), dedup);
        for session in 1..=3 {
            dedup.forget(SessionId(session));
        }
        assert_eq!((dedup.bytes, dedup.has_room(SessionId(4), 0)), (0, true));
    }

    #[test]
    fn only_silent_sessions_are_named() {
        let mut dedup = Dedup::default();
        dedup.keep(request(0), 0, Bytes::new(), Millis(0));
        let other = RequestId { session: SessionId(2), seq: 0 };
        dedup.keep(other, 0, Bytes::new(), Millis(SESSION_SILENCE_MS_MAX));
        assert_eq!(dedup.silent(Millis(SESSION_SILENCE_MS_MAX + 1), 10), vec![SessionId(1)]);
        assert_eq!(
            dedup.silent(Millis(SESSION_SILENCE_MS_MAX), 10),
            vec![],
            "the limit itself is not too long"
        );
        let all = Millis(3 * SESSION_SILENCE_MS_MAX);
        assert_eq!(dedup.silent(all, 10), vec![SessionId(1), SessionId(2)]);
        assert_eq!(dedup.silent(all, 1), vec![SessionId(1)]);
        assert!(dedup.len() == 2 && !dedup.is_empty());
        dedup.forget(SessionId(1));
        assert_eq!(dedup.look_up(request(0)), Known::Fresh);
        dedup.forget(SessionId(2));
        assert_eq!((dedup.len(), dedup.is_empty()), (0, true));
    }

    #[test]
    fn a_session_is_heard_of_with_each_call_and_never_earlier_than_before() {
        let mut dedup = Dedup::default();
        dedup.keep(request(0), 0, Bytes::new(), Millis(5));
        dedup.keep(request(1), 0, Bytes::new(), Millis(9));
        dedup.keep(request(2), 0, Bytes::new(), Millis(7));
        assert_eq!(dedup.silent(Millis(9 + SESSION_SILENCE_MS_MAX), 1), vec![]);
        assert_eq!(dedup.silent(Millis(10 + SESSION_SILENCE_MS_MAX), 1), vec![SessionId(1)]);
    }

    #[test]
    fn room_ends_at_the_limits_exactly() {
        let mut dedup = Dedup::default();
        let full = SESSION_KEPT_BYTES_MAX - SESSION_BYTES - REPLY_BYTES;
        let mut fill = |session, seq, size| {
            let reply = Bytes::from(vec![0; size]);
            dedup.keep(RequestId { session: SessionId(session), seq }, 0, reply, Millis(1));
            dedup.clone()
        };
        assert!(fill(1, 0, full - 1).has_room(SessionId(1), 0), "a byte is left");
        assert!(!fill(1, 0, full).has_room(SessionId(1), 0));
        let all_taken = fill(2, 3, full);
        assert_eq!(all_taken.bytes, KEPT_BYTES_MAX);
        assert!(!all_taken.has_room(SessionId(3), 0));
        for (session, ack_below, room) in [(1, 0, false), (1, 1, true), (2, 3, false), (2, 4, true)] {
            assert_eq!(all_taken.has_room(SessionId(session), ack_below), room, "{session} {ack_below}");
        }
        let mut dedup = fill(2, 3, full - 1);
        assert!(dedup.has_room(SessionId(3), 0), "a byte is left");
        dedup.forget(SessionId(1));
        assert_eq!(dedup.bytes, SESSION_KEPT_BYTES_MAX - 1, "what is forgotten takes no room");
    }
}
