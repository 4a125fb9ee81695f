//! Followers of events, and how long events are kept.
//!
//! Events are rows, so a stream is always served from what is committed: after each commit that
//! published something the new rows are read and handed on, in order. A follower that does not keep up
//! is simply behind; it gets the rest when half of its line is free, and is told if by then the rest is
//! no longer kept. Once it has everything, it gets a mark that says where the stream stands.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use perennial_core::id::{ActorId, LogIndex, RecordSeq};
use perennial_core::partition::record::Record;
use perennial_core::partition::rows;
use perennial_core::time::Millis;
use tokio::sync::mpsc;

use super::owed::Owed;
use super::turns::{Host, rows_failed};
use super::{Ended, HostCounters, HostMessage, ReplyTo};
use crate::actor::{Answer, Retention};
use crate::call::{Answered, EventId, EventItem, EventsFrom};
use crate::error::Fault;

/// Most followers of one partition's actors. A node follows an actor once for all who do there.
pub const FOLLOWERS_MAX: usize = 10_000;
/// Most events of one actor that go at a time, and may be there beyond those that are kept.
pub const EVENTS_SURPLUS_MAX: u32 = 256;
/// Actors whose oldest event is looked at in one round of housekeeping.
const EVENTS_SWEPT_MAX: usize = 1000;
/// Actors that are not in memory whose number of events is known; with more, all of those are forgotten.
const EVENTS_COUNTED_MAX: usize = 16 * 1024;
/// Events read at a time.
const EVENTS_READ_MAX: usize = 256;

pub(super) struct Follower {
    actor: ActorId,
    last: Option<EventId>,
    sink: mpsc::Sender<Result<EventItem, Fault>>,
    /// It had no room for everything; a task waits until it has some.
    waits: bool,
    /// It has had everything once and was told so.
    marked: bool,
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

/// Events of an actor as they were read, for all who stand at the same place.
struct Page {
    actor: ActorId,
    after: Option<EventId>,
    items: Vec<EventItem>,
    /// Events up to this one are no longer kept.
    gone: Option<EventId>,
}

/// How many events of an actor there are, as far as that is known.
///
/// It outlives the activation: counting reads all of them, and rows still show what a record on its way takes.
#[derive(Default)]
pub(super) struct Kept {
    /// Not known until the first ones are published in this epoch.
    count: Option<u32>,
    /// Up to which they are to go, and the record that says so.
    trimmed: Option<(EventId, RecordSeq)>,
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
            EventsFrom::Now => Some(self.position()),
        };
        if let Some(id) = last.filter(|id| id.index > self.applied_index.0) {
            return self.refuse_ahead(actor, id, sink);
        }
        let mut follower = Follower { actor, last, sink, waits: false, marked: false };
        if self.hand_events(&mut follower, &mut None) {
            self.followers.push(follower);
        }
    }

    /// Refuses a follower who is ahead of the log, once it is confirmed that this is the newest: another node
    /// may lead by now. If it does, the follower looks for it.
    fn refuse_ahead(&mut self, actor: ActorId, after: EventId, sink: mpsc::Sender<Result<EventItem, Fault>>) {
        let why = "the log of its partition has not come so far; the id is not of this cluster";
        let answered = Answered::fault(gone(&actor, after, None, why));
        let refuse = Box::new(move |ended| {
            if let Ended::Answered(Answered {
                answer: Answer::Fault(fault @ Fault::EventsGone { .. }), ..
            }) = ended
            {
                let _ = sink.try_send(Err(fault));
            }
        });
        let calls = Arc::new(AtomicU64::new(1));
        self.answer_as_read(ReplyTo { target: actor, answer: Some(refuse), calls }, answered);
    }

    /// Behind everything that is applied.
    fn position(&self) -> EventId {
        EventId { index: self.applied_index.0, n: u32::MAX }
    }

    /// Hands new events of these actors to their followers, and what is left to those who have waited
    /// and have room now.
    pub(super) fn hand_events_of(&mut self, actors: &[ActorId]) {
        let mut followers = std::mem::take(&mut self.followers);
        let mut page = None;
        followers.retain_mut(|follower| {
            if follower.sink.is_closed() {
                return false;
            }
            if follower.waits && follower.has_room() {
                follower.waits = false;
            } else if follower.waits || !actors.contains(&follower.actor) {
                return true;
            }
            self.hand_events(follower, &mut page)
        });
        self.followers = followers;
    }

    /// Hands on what a follower has not had, as far as it has room; whether it goes on.
    fn hand_events(&mut self, follower: &mut Follower, page: &mut Option<Page>) -> bool {
        loop {
            let Page { items, gone: lost, .. } = match self.read_events(follower, page) {
                Ok(page) => page,
                Err(fault) if fault.retryable() => {
                    // Its line ends without a word, so it looks for the leader again.
                    tracing::error!(actor = %follower.actor, %fault, "cannot read events");
                    return false;
                }
                Err(fault) => {
                    let _ = follower.sink.try_send(Err(fault));
                    return false;
                }
            };
            if let Some(last) = follower.last
                && lost.is_some_and(|lost| last < lost)
            {
                let oldest = items.first().map(|item| item.id);
                let why = "what it published next is no longer kept";
                if follower.sink.try_send(Err(gone(&follower.actor, last, oldest, why))).is_err() {
                    self.wait_for_room(follower);
                    return true;
                }
                return false;
            }
            let full = items.len() < EVENTS_READ_MAX;
            let mut handed = 0;
            for item in items {
                if follower.sink.try_send(Ok(item.clone())).is_err() {
                    break;
                }
                handed += 1;
                follower.last = Some(item.id);
            }
            let all = handed == items.len();
            HostCounters::add(&self.shared.counters.events_handed, handed as u64);
            if all && full && !follower.marked {
                let mark = EventItem::position(self.position());
                follower.marked = follower.sink.try_send(Ok(mark.clone())).is_ok();
                follower.last = follower.marked.then_some(mark.id).or(follower.last);
            }
            if !all || (full && !follower.marked) {
                self.wait_for_room(follower);
                return true;
            }
            if full {
                return true;
            }
        }
    }

    /// The events after the last one that a follower has had. Those who stand where the one before stood
    /// get the same page.
    fn read_events<'a>(&self, follower: &Follower, page: &'a mut Option<Page>) -> Result<&'a Page, Fault> {
        let known = page.as_ref().is_some_and(|p| p.after == follower.last && p.actor == follower.actor);
        if !known {
            *page = None;
        }
        if page.is_none() {
            let actor = &follower.actor;
            let failed = |error| rows_failed("its events", actor, &error);
            let after = follower.last.map(|id| (id.index, id.n));
            let (from, to) = rows::events_after(actor, after, self.applied_index);
            let found = self.shared.rows.scan(self.group, &from, Some(&to), EVENTS_READ_MAX);
            // Read behind the events: what it says of them was true before.
            let gone = self.shared.rows.get(self.group, &rows::events_gone(actor));
            let gone = gone.map_err(failed)?;
            let gone = gone.and_then(|value| rows::read_position(&value));
            let mut items = Vec::new();
            for (key, value) in found.map_err(failed)? {
                let (Some((index, n)), Some((_, event))) =
                    (rows::read_event(&key), rows::read_event_value(&value))
                else {
                    return Err(self.storage_fault("events", actor, &"a row holds no event"));
                };
                let event = event.to_vec().into();
                items.push(EventItem { id: EventId { index, n }, event, mark: false });
            }
            *page = Some(Page {
                actor: actor.clone(),
                after: follower.last,
                items,
                gone: gone.map(|(index, n)| EventId { index, n }),
            });
        }
        Ok(page.as_ref().expect("the page was read just now"))
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

    /// Takes note of events that were published, and proposes to forget old ones if there are too many.
    pub(super) fn events_published(&mut self, actor: &ActorId, published: u32) {
        let Some(act) = self.activations.get(actor) else { return };
        let kept = act.kind.retention();
        let known = self.events_kept.get(actor);
        let count = match known.and_then(|known| known.count) {
            Some(count) => count.saturating_add(published),
            None => {
                let trimmed = known.and_then(|known| known.trimmed).map(|(id, _)| (id.index, id.n));
                let (from, to) = rows::events_after(actor, trimmed, self.applied_index);
                let there = self.shared.rows.range(self.group, &from, Some(&to));
                let most = kept.count as usize + 2 * EVENTS_SURPLUS_MAX as usize;
                (there.take(most).count() as u32).saturating_add(published)
            }
        };
        self.events_kept.entry(actor.clone()).or_default().count = Some(count);
        let surplus = count.saturating_sub(kept.count);
        if surplus >= EVENTS_SURPLUS_MAX.min(kept.count.max(1)) {
            self.trim_events(actor, kept, surplus);
        }
    }

    /// Proposes to forget an actor's oldest events: so many, and those beyond their time.
    fn trim_events(&mut self, actor: &ActorId, kept: Retention, surplus: u32) {
        let now = self.now();
        let trimmed = self.events_kept.get(actor).and_then(|known| known.trimmed);
        let (from, to) =
            rows::events_after(actor, trimmed.map(|(id, _)| (id.index, id.n)), self.applied_index);
        let mut upto = None;
        let mut gone = 0;
        for found in self.shared.rows.range(self.group, &from, Some(&to)) {
            let Ok((key, value)) = found else { break };
            let (Some((index, n)), Some((time, _))) =
                (rows::read_event(&key), rows::read_event_value(&value))
            else {
                break;
            };
            if gone >= surplus.max(EVENTS_SURPLUS_MAX) || (gone >= surplus && !is_over(kept, time, now)) {
                break;
            }
            gone += 1;
            upto = Some(EventId { index, n });
        }
        let Some(upto) = upto else { return };
        let record = Record::EventsTrimmed { actor: actor.clone(), index: LogIndex(upto.index), n: upto.n };
        let seq = self.append(record, actor.as_str().len() + 32);
        self.owed.push_back(Owed::nothing(seq));
        let known = self.events_kept.entry(actor.clone()).or_default();
        known.count = known.count.map(|count| count.saturating_sub(gone));
        known.trimmed = Some((upto, seq));
    }

    /// Forgets what is known of actors that are not in memory, when that is much: who publishes next is counted
    /// anew.
    fn forget_counts(&mut self) {
        if self.events_kept.len() > EVENTS_COUNTED_MAX {
            self.events_kept.retain(|actor, known| {
                self.activations.contains_key(actor)
                    || known.trimmed.is_some_and(|(_, seq)| seq >= self.applied)
            });
            self.events_kept.shrink_to(EVENTS_COUNTED_MAX);
        }
    }

    /// Forgets events beyond their time, of some actors after those of the last round.
    pub(super) fn sweep_events(&mut self) {
        self.forget_counts();
        let now = self.now();
        let mut last = self.events_swept.take();
        for _ in 0..EVENTS_SWEPT_MAX {
            let (from, to) = rows::events_behind(last.as_ref());
            let Ok(mut found) = self.shared.rows.scan(self.group, &from, Some(&to), 1) else { return };
            let Some((key, value)) = found.pop() else { return };
            let (Some(actor), Some((time, _))) = (rows::event_actor(&key), rows::read_event_value(&value))
            else {
                return;
            };
            let kept = self.shared.kinds.get(actor.kind()).map(|kind| kind.retention());
            if let Ok(kept) = kept
                && is_over(kept, time, now)
            {
                self.trim_events(&actor, kept, 0);
            }
            last = Some(actor);
        }
        self.events_swept = last;
    }
}

fn is_over(kept: Retention, time: Millis, now: Millis) -> bool {
    time.plus(kept.millis) <= now
}

fn gone(actor: &ActorId, after: EventId, oldest: Option<EventId>, why: &str) -> Fault {
    Fault::EventsGone { actor: actor.to_string(), after, oldest, why: why.to_owned() }
}
