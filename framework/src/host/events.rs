//! Followers of events.
//!
//! Events are rows, so a stream is always served from what is committed: after each commit that
//! published something the new rows are read and handed on, in order. A follower that does not keep up
//! is simply behind; it gets the rest when half of its line is free.

use perennial_core::id::{ActorId, LogIndex};
use perennial_core::partition::record::Record;
use perennial_core::partition::rows;
use tokio::sync::mpsc;

use super::HostMessage;
use super::owed::Owed;
use super::turns::Host;
use crate::call::{EventId, EventItem, EventsFrom};
use crate::error::Fault;

/// Events of one actor that are kept at least; up to twice as many may be there.
pub const EVENTS_KEPT_MIN: u32 = 1000;
/// Most followers of one partition's actors.
pub const FOLLOWERS_MAX: usize = 10_000;
/// Events read at a time.
const EVENTS_READ_MAX: usize = 256;

pub(super) struct Follower {
    actor: ActorId,
    last: Option<EventId>,
    sink: mpsc::Sender<Result<EventItem, Fault>>,
    /// It had no room for everything; a task waits until it has some.
    waits: bool,
}

impl Follower {
    /// How much room one that was behind must have before it gets more.
    fn room(&self) -> usize {
        (self.sink.max_capacity() / 2).max(1)
    }

    fn has_room(&self) -> bool {
        self.sink.capacity() >= self.room() || self.sink.is_closed()
    }
}

impl Host {
    pub(super) fn on_subscribe(
        &mut self,
        actor: ActorId,
        from: EventsFrom,
        sink: mpsc::Sender<Result<EventItem, Fault>>,
    ) {
        self.followers.retain(|follower| !follower.sink.is_closed());
        if self.followers.len() >= FOLLOWERS_MAX {
            let fault = Fault::Overloaded {
                what: "the list of followers".into(),
                at: format!("partition {}", self.partition),
                limit: FOLLOWERS_MAX as u64,
            };
            let _ = sink.try_send(Err(fault));
            return;
        }
        let last = match from {
            EventsFrom::Start => None,
            EventsFrom::After(id) => Some(id),
            EventsFrom::Now => Some(EventId { index: self.applied_index.0, n: u32::MAX }),
        };
        if from == EventsFrom::Now
            && let Some(id) = last
        {
            // Tells where the stream stands, so that it resumes here even if nothing comes for long.
            let _ = sink.try_send(Ok(EventItem::position(id)));
        }
        let mut follower = Follower { actor, last, sink, waits: false };
        self.hand_events(&mut follower);
        self.followers.push(follower);
    }

    /// Hands new events of these actors to their followers, and what is left to those who have waited
    /// and have room now.
    pub(super) fn hand_events_of(&mut self, actors: &[ActorId]) {
        let mut followers = std::mem::take(&mut self.followers);
        followers.retain_mut(|follower| {
            if follower.waits && follower.has_room() {
                follower.waits = false;
                self.hand_events(follower);
            } else if !follower.waits && actors.contains(&follower.actor) {
                self.hand_events(follower);
            }
            !follower.sink.is_closed()
        });
        self.followers = followers;
    }

    fn hand_events(&mut self, follower: &mut Follower) {
        loop {
            let after = follower.last.map(|id| (id.index, id.n));
            let (from, to) = rows::events_after(&follower.actor, after, self.applied_index);
            let found = match self.shared.rows.scan(self.group, &from, Some(&to), EVENTS_READ_MAX) {
                Ok(found) => found,
                Err(error) => {
                    let fault = self.storage_fault("events", &follower.actor, &error);
                    let _ = follower.sink.try_send(Err(fault));
                    return;
                }
            };
            let count = found.len();
            for (key, event) in found {
                let Some((index, n)) = rows::read_event(&key) else { continue };
                let id = EventId { index, n };
                if follower.sink.try_send(Ok(EventItem { id, event: event.into() })).is_err() {
                    return self.wait_for_room(follower);
                }
                follower.last = Some(id);
            }
            if count < EVENTS_READ_MAX {
                return;
            }
        }
    }

    /// Goes on once a follower has room for half of what its line holds, or is gone.
    fn wait_for_room(&mut self, follower: &mut Follower) {
        follower.waits = true;
        let (sink, mailbox) = (follower.sink.clone(), self.mailbox.clone());
        let room = follower.room();
        self.spawn_task(async move {
            drop(sink.reserve_many(room).await);
            let _ = mailbox.cast(HostMessage::FollowerReady);
        });
    }

    /// Proposes to forget old events of an actor that has published many.
    pub(super) fn trim_events(&mut self, actor: &ActorId) {
        let (from, to) = rows::events_after(actor, None, self.applied_index);
        let many = 2 * EVENTS_KEPT_MIN as usize + EVENTS_READ_MAX;
        let Ok(found) = self.shared.rows.scan(self.group, &from, Some(&to), many) else { return };
        let Some(surplus) = found.len().checked_sub(EVENTS_KEPT_MIN as usize).filter(|&n| n > 0) else {
            return;
        };
        if let Some((index, _)) = rows::read_event(&found[surplus].0) {
            let record = Record::EventsTrimmed { actor: actor.clone(), below: LogIndex(index) };
            let seq = self.append(record, 0);
            self.owed.push_back(Owed::nothing(seq));
        }
    }
}
