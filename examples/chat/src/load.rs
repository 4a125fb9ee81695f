//! Rooms full of people under load, and a ledger of who heard what.
//!
//! Speakers say numbered messages; several listeners follow each room. Every listener must get every
//! acknowledged message exactly once and in the room's order, whatever dies meanwhile. Never decides
//! when nodes die.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use perennial::actor::BoxFuture;
use perennial::call::{ActorId, EventId, EventsFrom};
use perennial::error::Applied;
use perennial::prelude::*;
use perennial_runtime::workload::{
    LoadContext, LoadReport, RunningLoad, SETTLE_MAX, SETTLE_PAUSE, Workload, insist,
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{Room, RoomEvent};

/// Most rooms.
const ROOMS_MAX: usize = 32;
/// Speakers in a room, unless that makes too many rooms.
const SPEAKERS_PER_ROOM: usize = 4;
/// Listeners of each room.
const LISTENERS_PER_ROOM: usize = 3;
/// How long somebody waits after a fault.
const FAULT_PAUSE: Duration = Duration::from_millis(20);

/// Speakers and listeners in rooms.
#[derive(Debug, Clone, Copy, Default)]
pub struct ChatLoad;

impl Workload for ChatLoad {
    fn name(&self) -> &'static str {
        "chat"
    }

    fn start(&self, ctx: LoadContext) -> Box<dyn RunningLoad> {
        let closing = CancellationToken::new();
        let rooms = ctx.clients.div_ceil(SPEAKERS_PER_ROOM).clamp(1, ROOMS_MAX);
        let rooms = (0..rooms)
            .map(|number| {
                let key = format!("load-{:x}-{number}", ctx.seed);
                let listeners = (0..LISTENERS_PER_ROOM)
                    .map(|_| {
                        let heard = Heard::default();
                        let task = listen(ctx.clone(), key.clone(), heard.clone(), closing.clone());
                        (heard, tokio::spawn(task))
                    })
                    .collect();
                let speakers = (number..ctx.clients)
                    .step_by(rooms)
                    .map(|who| tokio::spawn(speak(ctx.clone(), key.clone(), who)))
                    .collect();
                RoomLoad { key, listeners, speakers }
            })
            .collect();
        Box::new(Running { ctx, rooms, closing })
    }
}

struct Running {
    ctx: LoadContext,
    rooms: Vec<RoomLoad>,
    /// Listeners stop at this.
    closing: CancellationToken,
}

struct RoomLoad {
    key: String,
    listeners: Vec<(Heard, JoinHandle<()>)>,
    speakers: Vec<JoinHandle<Spoken>>,
}

/// An event as a listener got it.
struct Item {
    id: EventId,
    seq: u64,
    /// What was said, if it was that.
    text: Option<String>,
}

/// What a listener got so far.
type Heard = Arc<Mutex<Vec<Item>>>;

/// What a speaker knows.
#[derive(Default)]
struct Spoken {
    /// Number and text of each acknowledged message, in the order of speaking.
    acked: Vec<(u64, String)>,
    unknown: u64,
    refused: u64,
}

async fn listen(ctx: LoadContext, key: String, heard: Heard, closing: CancellationToken) {
    let room = ctx.client.get::<Room>(key);
    let mut from = EventsFrom::Start;
    while !closing.is_cancelled() {
        let mut events = room.events_from(from);
        while let Some(Some(Ok((id, event)))) = closing.run_until_cancelled(events.next()).await {
            from = EventsFrom::After(id);
            let (seq, text) = match event {
                RoomEvent::Joined { seq, .. } | RoomEvent::Left { seq, .. } => (seq, None),
                RoomEvent::Said(said) => (said.seq, Some(said.text)),
            };
            heard.lock().unwrap_or_else(PoisonError::into_inner).push(Item { id, seq, text });
        }
        closing.run_until_cancelled(tokio::time::sleep(FAULT_PAUSE)).await;
    }
}

async fn speak(ctx: LoadContext, key: String, who: usize) -> Spoken {
    let mut spoken = Spoken::default();
    let id = ActorId::new(Room::KIND, &key).expect("a short key is valid");
    let room = ctx.client.get::<Room>(key);
    let name = format!("c{who}");
    while !ctx.stop.is_cancelled() && ctx.probe.call(&id, room.join(name.clone())).await.is_err() {
        tokio::time::sleep(FAULT_PAUSE).await;
    }
    for number in 0_u64.. {
        if ctx.stop.is_cancelled() {
            break;
        }
        let text = format!("{name}#{number}");
        match ctx.probe.call(&id, room.say(name.clone(), text.clone())).await {
            Ok(seq) => {
                spoken.acked.push((seq, text));
                continue;
            }
            Err(CallError::App(_)) => spoken.refused += 1,
            Err(CallError::Fault(fault)) => spoken.unknown += u64::from(fault.applied() == Applied::Unknown),
        }
        tokio::time::sleep(FAULT_PAUSE).await;
    }
    spoken
}

impl RunningLoad for Running {
    fn finish(self: Box<Self>) -> BoxFuture<'static, Result<LoadReport, Fault>> {
        Box::pin(async move {
            let mut judged = Judged::default();
            let (mut heard_by_room, mut tasks) = (Vec::new(), Vec::new());
            for room in self.rooms {
                let mut spoken = Vec::with_capacity(room.speakers.len());
                for speaker in room.speakers {
                    spoken.push(speaker.await.expect("a speaker panics only over a broken rule"));
                }
                let (heard, listeners): (Vec<_>, Vec<_>) = room.listeners.into_iter().unzip();
                tasks.extend(listeners);
                heard_by_room.push((room.key, spoken, heard));
            }
            for (key, spoken, heard) in &heard_by_room {
                let room = self.ctx.client.get::<Room>(key);
                let last = insist(|| room.history(1)).await?.last().map_or(0, |said| said.seq);
                wait_for(heard, last).await;
                let heard: Vec<_> = heard
                    .iter()
                    .map(|heard| std::mem::take(&mut *heard.lock().unwrap_or_else(PoisonError::into_inner)))
                    .collect();
                judged.room(spoken, &heard);
            }
            self.closing.cancel();
            for task in tasks {
                task.await.expect("a listener panics only over a broken rule");
            }
            Ok(judged.report(heard_by_room.len()))
        })
    }
}

/// Waits until every listener has got event number `last`, or [`SETTLE_MAX`].
async fn wait_for(heard: &[Heard], last: u64) {
    let deadline = Instant::now() + SETTLE_MAX;
    let behind = |heard: &Heard| {
        let heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.last().map_or(0, |item| item.seq) < last
    };
    while heard.iter().any(behind) && Instant::now() < deadline {
        tokio::time::sleep(SETTLE_PAUSE).await;
    }
}

/// Sums over all rooms.
#[derive(Default)]
struct Judged {
    acknowledged: u64,
    unknown: u64,
    refused: u64,
    /// Acknowledged messages that no listener got.
    lost: u64,
    /// Messages that stand in the room more than once.
    doubled: u64,
    /// Events that a listener did not get.
    missing: u64,
    /// Events that a listener got more than once.
    repeated: u64,
    /// Events that a listener got after a later one, and acknowledgements in the wrong order.
    disordered: u64,
    /// Events that are not the same for all listeners.
    different: u64,
}

impl Judged {
    fn room(&mut self, spoken: &[Spoken], heard: &[Vec<Item>]) {
        let mut room: BTreeMap<u64, &Item> = BTreeMap::new();
        for item in heard.iter().flatten() {
            let first = room.entry(item.seq).or_insert(item);
            self.different += u64::from((first.id, &first.text) != (item.id, &item.text));
        }
        let mut texts = BTreeSet::new();
        let said = room.values().filter_map(|item| item.text.as_deref());
        self.doubled += said.filter(|text| !texts.insert(*text)).count() as u64;

        let mut last = room.last_key_value().map_or(0, |(&seq, _)| seq);
        for speaker in spoken {
            self.acknowledged += speaker.acked.len() as u64;
            self.unknown += speaker.unknown;
            self.refused += speaker.refused;
            self.disordered += speaker.acked.windows(2).filter(|pair| pair[0].0 >= pair[1].0).count() as u64;
            for (seq, text) in &speaker.acked {
                let found = room.get(seq).is_some_and(|item| item.text.as_deref() == Some(text));
                self.lost += u64::from(!found);
                last = last.max(*seq);
            }
        }
        for items in heard {
            self.listener(items, last);
        }
    }

    /// What one listener got of a room whose last event has number `last`.
    fn listener(&mut self, items: &[Item], last: u64) {
        let mut seen = BTreeSet::new();
        let mut before: Option<&Item> = None;
        for item in items {
            if !seen.insert(item.seq) {
                self.repeated += 1;
                continue;
            }
            self.disordered += u64::from(before.is_some_and(|b| item.seq < b.seq || item.id <= b.id));
            before = Some(item);
        }
        self.missing += last - seen.len() as u64;
    }

    fn report(self, rooms: usize) -> LoadReport {
        let report = LoadReport {
            acknowledged: self.acknowledged,
            unknown: self.unknown,
            lost: self.lost,
            doubled: self.doubled,
            ..LoadReport::default()
        };
        report
            .told("rooms", rooms as u64)
            .told("listeners", (rooms * LISTENERS_PER_ROOM) as u64)
            .zero("events missing", self.missing)
            .zero("events doubled", self.repeated)
            .zero("events out of order", self.disordered)
            .zero("events differing", self.different)
            .zero("refused", self.refused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(list: &[(u64, &str)]) -> Vec<Item> {
        let item = |&(seq, text): &(u64, &str)| Item {
            id: EventId { index: seq * 10, n: 0 },
            seq,
            text: Some(text.to_owned()),
        };
        list.iter().map(item).collect()
    }

    fn judge(acked: &[(u64, &str)], heard: &[&[(u64, &str)]]) -> Judged {
        let acked = acked.iter().map(|&(seq, text)| (seq, text.to_owned())).collect();
        let heard: Vec<_> = heard.iter().map(|list| items(list)).collect();
        let mut judged = Judged::default();
        judged.room(&[Spoken { acked, ..Spoken::default() }], &heard);
        judged
    }

    #[test]
    fn a_room_that_everybody_heard_alike_is_in_order() {
        let all: &[(u64, &str)] = &[(1, "a#0"), (2, "a#1"), (3, "a#2")];
        assert!(judge(all, &[all, all]).report(1).kept());
    }

    #[test]
    fn a_message_one_listener_missed_is_missing_but_not_lost() {
        let all: &[(u64, &str)] = &[(1, "a#0"), (2, "a#1")];
        let judged = judge(all, &[all, &[(1, "a#0")]]);
        assert_eq!((judged.lost, judged.missing), (0, 1));
    }

    #[test]
    fn an_acknowledged_message_nobody_heard_is_lost() {
        let judged = judge(&[(1, "a#0"), (2, "a#1")], &[&[(1, "a#0")]]);
        assert_eq!(judged.lost, 1);
    }

    #[test]
    fn a_message_that_stands_twice_is_doubled() {
        let judged = judge(&[(1, "a#0")], &[&[(1, "a#0"), (2, "a#0")]]);
        assert_eq!((judged.doubled, judged.repeated), (1, 0));
    }

    #[test]
    fn repeats_and_disorder_at_a_listener_are_told_apart() {
        let all: &[(u64, &str)] = &[(1, "a#0"), (2, "a#1")];
        let judged = judge(all, &[&[(1, "a#0"), (1, "a#0"), (2, "a#1")], &[(2, "a#1"), (1, "a#0")]]);
        assert_eq!((judged.repeated, judged.disordered, judged.missing), (1, 1, 0));
    }

    #[test]
    fn listeners_that_heard_different_things_differ() {
        let judged = judge(&[], &[&[(1, "a#0")], &[(1, "b#0")]]);
        assert_eq!(judged.different, 1);
    }
}
