//! Following events: one stream from the leader for all who follow an actor here.
//!
//! Owns the fan-outs: for each actor that is followed here, the stream from its leader, the events that came
//! last, and the lines of those who have everything up to there. Who begins further back, and is not helped
//! by what came last, catches up over a stream of its own and joins then. A fan-out waits for nobody: whose
//! line is full is cut off and told so. Never reads rows.
//!
//! ```text
//! leader ─ one stream ─▶ fan-out ─▶ line ─▶ follower       After(id): covered by what came last? join
//!        ─ own stream ─▶ catching up ─▶ line ─▶ follower       else, and Start: catch up, then join
//!                                                          Now: ask the leader where it stands, then join
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::task::Poll;
use std::time::Duration;

use perennial_core::id::ActorId;
use perennial_core::routing::Decision;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc};

use super::{RETRY_MAX, RETRY_MIN, Router};
use crate::call::{EventId, EventItem, EventStream, EventsFrom};
use crate::error::Fault;
use crate::host::HostMessage;
use crate::link::ItemStream;
use crate::protocol::{Stream, decode, encode};

/// Events that wait for one follower; one that is further behind is cut off with [`Fault::TooSlow`].
pub const FOLLOWER_EVENTS_MAX: usize = 1024;
/// How long a follower that catches up may take none of its events; then it is cut off likewise.
pub const FOLLOWER_STALL_MAX: Duration = Duration::from_secs(30);
/// Events that a fan-out remembers for those who come back.
const RECENT_EVENTS_MAX: usize = 1024;
/// Most bytes of these.
const RECENT_BYTES_MAX: usize = 1 << 20;

/// The fan-outs of a router.
#[derive(Default)]
pub(crate) struct FanOuts(Mutex<BTreeMap<ActorId, Arc<FanOut>>>);

/// All who follow one actor here.
struct FanOut {
    actor: ActorId,
    state: Mutex<State>,
    /// A follower has left.
    left: Notify,
}

/// Invariant: `recent` are all events after `since` up to `position`.
#[derive(Default)]
struct State {
    /// Where the stream stands; `None` before it has begun.
    position: Option<EventId>,
    since: EventId,
    recent: VecDeque<EventItem>,
    recent_bytes: usize,
    lines: Vec<Line>,
    /// Those who begin now, until it is known where that is.
    asking: Vec<Line>,
    asks: bool,
    /// It is over; whoever comes makes another.
    closed: bool,
}

/// The way to one follower.
struct Line {
    items: mpsc::Sender<EventItem>,
    shared: Arc<LineShared>,
    /// Up to where it has everything.
    last: EventId,
}

#[derive(Default)]
struct LineShared {
    /// Why there is no more.
    end: OnceLock<Fault>,
    /// Whom to tell that the follower has left.
    fan_out: OnceLock<Weak<FanOut>>,
}

impl Line {
    /// Why there is no more; told once the line is dropped.
    fn end(&self, fault: Fault) {
        let _ = self.shared.end.set(fault);
    }
}

/// The follower's end of a line.
struct Followed {
    items: mpsc::Receiver<EventItem>,
    shared: Arc<LineShared>,
    ended: bool,
}

impl Followed {
    fn poll_next(&mut self, cx: &mut std::task::Context<'_>) -> Poll<Option<Result<EventItem, Fault>>> {
        self.items.poll_recv(cx).map(|item| match item {
            Some(item) => Some(Ok(item)),
            None if self.ended => None,
            None => {
                self.ended = true;
                self.shared.end.get().cloned().map(Err)
            }
        })
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.items.close();
        if let Some(fan_out) = self.shared.fan_out.get().and_then(Weak::upgrade) {
            fan_out.left.notify_one();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FanOut {
    /// Hands an item of the stream to all lines.
    fn hand(&self, item: EventItem) {
        let mut state = lock(&self.state);
        if state.position.is_some_and(|position| item.id <= position) {
            return;
        }
        state.position = Some(item.id);
        if item.mark {
            return;
        }
        state.lines.retain_mut(|line| {
            if line.last >= item.id {
                return !line.items.is_closed();
            }
            line.last = item.id;
            match line.items.try_send(item.clone()) {
                Ok(()) => true,
                Err(TrySendError::Closed(_)) => false,
                Err(TrySendError::Full(_)) => {
                    let limit = format!("{FOLLOWER_EVENTS_MAX} events");
                    line.end(Fault::TooSlow { actor: self.actor.to_string(), limit });
                    false
                }
            }
        });
        state.recent_bytes += item.event.len();
        state.recent.push_back(item);
        while state.recent.len() > RECENT_EVENTS_MAX || state.recent_bytes > RECENT_BYTES_MAX {
            let Some(oldest) = state.recent.pop_front() else { break };
            state.recent_bytes -= oldest.event.len();
            state.since = oldest.id;
        }
    }
}

impl State {
    /// Takes a line in that has everything up to its `last`, if what came last is enough to go on from
    /// there; else gives it back.
    fn join(&mut self, fan_out: &Arc<FanOut>, line: Line) -> Result<(), Line> {
        let missing = self.recent.iter().filter(|item| item.id > line.last);
        // Half of the line is left for what comes next.
        let room = line.items.capacity() / 2;
        if self.closed || line.last < self.since || missing.clone().count() > room {
            return Err(line);
        }
        for item in missing {
            let _ = line.items.try_send(item.clone());
        }
        let _ = line.shared.fan_out.set(Arc::downgrade(fan_out));
        if line.items.is_closed() {
            fan_out.left.notify_one();
        }
        let last = line.last.max(self.recent.back().map_or(line.last, |item| item.id));
        self.lines.push(Line { last, ..line });
        Ok(())
    }
}

impl Router {
    /// Follows an actor's events wherever its leader is.
    pub(super) fn subscribe(self: &Arc<Self>, actor: ActorId, from: EventsFrom) -> EventStream {
        let (items, followed) = mpsc::channel(FOLLOWER_EVENTS_MAX);
        let shared = Arc::new(LineShared::default());
        let line = Line { items, shared: shared.clone(), last: EventId::default() };
        match from {
            EventsFrom::Now => self.begin_now(&actor, line),
            EventsFrom::Start => drop(tokio::spawn(self.clone().catch_up(actor, None, line))),
            EventsFrom::After(last) => {
                let line = Line { last, ..line };
                // The mark comes first: it says that the stream has begun.
                let mark = EventItem::position(last);
                if let Err(line) = self.join(&actor, line, Some(mark), false) {
                    tokio::spawn(self.clone().catch_up(actor, Some(last), line));
                }
            }
        }
        let mut followed = Followed { items: followed, shared, ended: false };
        Box::pin(futures_util::stream::poll_fn(move |cx| followed.poll_next(cx)))
    }

    /// The fan-out of an actor, if there is one; `make` one otherwise.
    fn fan_out(&self, actor: &ActorId, make: bool) -> Option<Arc<FanOut>> {
        let mut all = lock(&self.fan_outs.0);
        if let Some(fan_out) = all.get(actor) {
            return Some(fan_out.clone());
        }
        if !make {
            return None;
        }
        let fan_out = Arc::new(FanOut { actor: actor.clone(), state: Mutex::default(), left: Notify::new() });
        all.insert(actor.clone(), fan_out.clone());
        Some(fan_out)
    }

    /// Takes a line into the actor's fan-out, if it can go on there. One that has everything, `at_head`,
    /// may begin it.
    fn join(
        self: &Arc<Self>,
        actor: &ActorId,
        line: Line,
        mark: Option<EventItem>,
        at_head: bool,
    ) -> Result<(), Line> {
        let Some(fan_out) = self.fan_out(actor, at_head) else { return Err(line) };
        let mut state = lock(&fan_out.state);
        let begins = state.position.is_none();
        if !at_head && state.position.is_some_and(|position| position < line.last) {
            // Only the leader knows whether there is such a place.
            return Err(line);
        }
        if begins {
            if !at_head || state.closed {
                return Err(line);
            }
            (state.position, state.since) = (Some(line.last), line.last);
        }
        if let Some(mark) = mark.filter(|_| line.last >= state.since && !state.closed) {
            let _ = line.items.try_send(mark);
        }
        let joined = state.join(&fan_out, line);
        drop(state);
        if begins {
            tokio::spawn(self.clone().pump(fan_out));
        }
        joined
    }

    /// Reads an actor's stream for all who follow it here, from where it stands and for as long as anybody
    /// does.
    async fn pump(self: Arc<Self>, fan_out: Arc<FanOut>) {
        let mut pause = RETRY_MIN;
        loop {
            let position = lock(&fan_out.state).position.unwrap_or_default();
            let changed = self.changed.notified();
            let source = tokio::select! {
                source = self.source(&fan_out.actor, EventsFrom::After(position)) => source,
                () = self.all_left(&fan_out) => return,
            };
            if let Some(mut source) = source {
                loop {
                    let item = tokio::select! {
                        biased;
                        item = source.next() => item,
                        () = self.all_left(&fan_out) => return,
                    };
                    match item {
                        Some(Ok(item)) => {
                            pause = RETRY_MIN;
                            fan_out.hand(item);
                        }
                        Some(Err(fault)) => return self.close(&fan_out, &fault),
                        None => break,
                    }
                }
            }
            tokio::select! {
                _ = tokio::time::timeout(pause, changed) => {}
                () = self.all_left(&fan_out) => return,
            }
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    /// Returns when nobody follows any more; the fan-out is over then.
    async fn all_left(&self, fan_out: &Arc<FanOut>) {
        loop {
            fan_out.left.notified().await;
            if self.retire(fan_out) {
                return;
            }
        }
    }

    /// Ends a fan-out that nobody is in.
    fn retire(&self, fan_out: &Arc<FanOut>) -> bool {
        let mut all = lock(&self.fan_outs.0);
        let mut state = lock(&fan_out.state);
        state.lines.retain(|line| !line.items.is_closed());
        let over = state.lines.is_empty() && state.asking.is_empty() && !state.asks;
        if over && !state.closed {
            state.closed = true;
            all.remove(&fan_out.actor);
        }
        over
    }

    /// Ends a fan-out and tells all who are in it.
    fn close(&self, fan_out: &Arc<FanOut>, fault: &Fault) {
        let mut all = lock(&self.fan_outs.0);
        let mut state = lock(&fan_out.state);
        if !state.closed {
            state.closed = true;
            all.remove(&fan_out.actor);
        }
        let lines = std::mem::take(&mut state.lines);
        drop((state, all));
        lines.into_iter().for_each(|line| line.end(fault.clone()));
    }

    /// Lets a line begin where the leader stands by now. Those who come while it is being asked are in
    /// the next question together.
    fn begin_now(self: &Arc<Self>, actor: &ActorId, line: Line) {
        let mut line = Some(line);
        while line.is_some() {
            let Some(fan_out) = self.fan_out(actor, true) else { return };
            let mut state = lock(&fan_out.state);
            if state.closed {
                continue;
            }
            state.asking.extend(line.take());
            if !std::mem::replace(&mut state.asks, true) {
                drop(state);
                tokio::spawn(self.clone().ask_position(fan_out));
            }
        }
    }

    async fn ask_position(self: Arc<Self>, fan_out: Arc<FanOut>) {
        let mut pause = RETRY_MIN;
        loop {
            let mut lines = {
                let mut state = lock(&fan_out.state);
                state.asking.retain(|line| !line.items.is_closed());
                if state.asking.is_empty() {
                    state.asks = false;
                    drop(state);
                    // If nobody is left, there may be no other who sees it.
                    self.retire(&fan_out);
                    return;
                }
                std::mem::take(&mut state.asking)
            };
            let changed = self.changed.notified();
            let item = match self.source(&fan_out.actor, EventsFrom::Now).await {
                Some(mut source) => source.next().await,
                None => None,
            };
            match item {
                Some(Ok(EventItem { id, .. })) => {
                    pause = RETRY_MIN;
                    lines.retain_mut(|line| {
                        let at = Line { items: line.items.clone(), shared: line.shared.clone(), last: id };
                        self.join(&fan_out.actor, at, Some(EventItem::position(id)), true).is_err()
                    });
                }
                Some(Err(fault)) => lines.drain(..).for_each(|line| line.end(fault.clone())),
                None => {}
            }
            if !lines.is_empty() {
                lock(&fan_out.state).asking.append(&mut lines);
                let _ = tokio::time::timeout(pause, changed).await;
                pause = (pause * 2).min(RETRY_MAX);
            }
        }
    }

    /// Brings a line up to date over a stream of its own, at its own speed, until it can join the others.
    async fn catch_up(self: Arc<Self>, actor: ActorId, mut last: Option<EventId>, mut line: Line) {
        let mut pause = RETRY_MIN;
        loop {
            let changed = self.changed.notified();
            let from = last.map_or(EventsFrom::Start, EventsFrom::After);
            let source = tokio::select! {
                source = self.source(&actor, from) => source,
                () = line.items.closed() => return,
            };
            if let Some(mut source) = source {
                loop {
                    let item = tokio::select! {
                        item = source.next() => item,
                        () = line.items.closed() => return,
                    };
                    let item = match item {
                        Some(Ok(item)) => item,
                        Some(Err(fault)) => return line.end(fault),
                        None => break,
                    };
                    pause = RETRY_MIN;
                    let (id, mark) = (item.id, item.mark);
                    match tokio::time::timeout(FOLLOWER_STALL_MAX, line.items.send(item)).await {
                        Ok(Ok(())) => last = Some(id),
                        Ok(Err(_)) => return,
                        Err(_) => {
                            let limit = format!("an event, for {} s,", FOLLOWER_STALL_MAX.as_secs());
                            return line.end(Fault::TooSlow { actor: actor.to_string(), limit });
                        }
                    }
                    if mark {
                        match self.join(&actor, Line { last: id, ..line }, None, true) {
                            Ok(()) => return,
                            Err(back) => line = back,
                        }
                        // The others have gone on too far meanwhile: once more.
                        break;
                    }
                }
            }
            tokio::select! {
                _ = tokio::time::timeout(pause, changed) => {}
                () = line.items.closed() => return,
            }
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    /// The stream of an actor's leader; `None` when none is known or it cannot be asked.
    async fn source(&self, actor: &ActorId, from: EventsFrom) -> Option<Source> {
        match self.decide(actor)? {
            Decision::Local(partition) => {
                let host = self.hosts.get(partition)?;
                let (sink, events) = mpsc::channel(FOLLOWER_EVENTS_MAX);
                host.tell(HostMessage::Subscribe { actor: actor.clone(), from, sink });
                Some(Source::Local(events))
            }
            Decision::Forward(member) | Decision::Redirect(member) => {
                let node = self.node_of(member)?;
                let network = self.network.get()?.clone();
                let payload = encode(&Stream::Events { actor: actor.clone(), from });
                Some(Source::Remote(network.follow(&node, payload).await.ok()?))
            }
            Decision::NoLeader { .. } => None,
        }
    }
}

/// Items of a leader.
enum Source {
    Local(mpsc::Receiver<Result<EventItem, Fault>>),
    Remote(ItemStream),
}

impl Source {
    /// The next item; `None` when the source has ended. Cancel-safe.
    async fn next(&mut self) -> Option<Result<EventItem, Fault>> {
        match self {
            Self::Local(events) => events.recv().await,
            Self::Remote(items) => decode(&items.next().await.ok()?).ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use bytes::Bytes;
    use futures_util::StreamExt;
    use perennial_core::hash::PartitionCount;
    use perennial_core::id::{ClusterId, MemberId, NodeId, Term};
    use perennial_core::membership::MemberSpec;
    use perennial_core::placement::{ClusterMeta, form};

    use super::*;
    use crate::actor::BoxFuture;
    use crate::host::Hosts;
    use crate::link::{LinkConfig, LinkError, StreamSink};
    use crate::router::Network;

    /// A leader behind a link, on which every frame is counted.
    #[derive(Default)]
    struct Leader {
        log: Mutex<Vec<EventItem>>,
        open: Mutex<Vec<StreamSink>>,
        opened: AtomicU64,
        frames: AtomicU64,
    }

    impl Leader {
        fn push(&self, sink: &StreamSink, item: EventItem) {
            self.frames.fetch_add(1, Ordering::Relaxed);
            let _ = sink.push(encode(&Ok::<_, Fault>(item)));
        }

        fn publish(&self, index: u64) {
            let item =
                EventItem { id: EventId { index, n: 0 }, event: Bytes::from_static(b"e"), mark: false };
            lock(&self.log).push(item.clone());
            let mut open = lock(&self.open);
            open.retain(|sink| !sink.is_closed());
            open.iter().for_each(|sink| self.push(sink, item.clone()));
        }

        fn streams(&self) -> usize {
            lock(&self.open).iter().filter(|sink| !sink.is_closed()).count()
        }
    }

    struct Link(Arc<Leader>);

    impl Network for Link {
        fn ask(&self, _: &NodeId, _: Bytes, _: Duration) -> BoxFuture<'static, Result<Bytes, LinkError>> {
            Box::pin(async { Err(LinkError::NoLink) })
        }

        fn follow(&self, _: &NodeId, payload: Bytes) -> BoxFuture<'static, Result<ItemStream, LinkError>> {
            let leader = self.0.clone();
            Box::pin(async move {
                let Stream::Events { from, .. } = decode(&payload).map_err(|_| LinkError::Closed)?;
                let (sink, items) = StreamSink::local(&LinkConfig::default());
                leader.opened.fetch_add(1, Ordering::Relaxed);
                let log = lock(&leader.log).clone();
                let head = log.last().map_or(0, |item| item.id.index);
                let after = match from {
                    EventsFrom::Start => EventId::default(),
                    EventsFrom::After(id) => id,
                    EventsFrom::Now => EventId { index: head, n: u32::MAX },
                };
                log.into_iter().filter(|item| item.id > after).for_each(|item| leader.push(&sink, item));
                leader.push(&sink, EventItem::position(EventId { index: head, n: u32::MAX }));
                lock(&leader.open).push(sink);
                Ok(items)
            })
        }

        fn is_up(&self, _: &NodeId) -> bool {
            true
        }
    }

    fn setting() -> (Arc<Leader>, Arc<Router>, ActorId) {
        let leader = Arc::new(Leader::default());
        let router = Router::new(Arc::new(Hosts::default()));
        router.set_network(Arc::new(Link(leader.clone())));
        let one = PartitionCount::try_from(1).unwrap();
        let spec = MemberSpec::new(NodeId::new("n1").unwrap(), "n1:1");
        router.update(form(ClusterMeta::new(ClusterId(1), one, 1), vec![spec]).unwrap());
        router.leader(one.iter().next().unwrap(), Term(1), Some(MemberId(1)));
        (leader, router, "Room/a".parse().unwrap())
    }

    /// The next event of a stream.
    async fn next(stream: &mut EventStream) -> u64 {
        loop {
            let item = stream.next().await.unwrap().unwrap();
            if !item.mark {
                return item.id.index;
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn frames_on_a_link_do_not_grow_with_the_followers_behind_it() {
        let mut frames = Vec::new();
        for followers in [1, 10, 1000] {
            let (leader, router, room) = setting();
            let mut streams: Vec<_> =
                (0..followers).map(|_| router.subscribe(room.clone(), EventsFrom::Now)).collect();
            for stream in &mut streams {
                assert!(stream.next().await.unwrap().unwrap().mark, "it has begun");
            }
            for index in 1..=50 {
                leader.publish(index);
            }
            for stream in &mut streams {
                for index in 1..=50 {
                    assert_eq!(next(stream).await, index);
                }
            }
            frames.push(leader.frames.load(Ordering::Relaxed));
            assert_eq!(leader.streams(), 1);
            drop(streams);
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(leader.streams(), 0, "nobody is followed for nobody");
            assert!(lock(&router.fan_outs.0).is_empty());
        }
        assert!(frames.iter().all(|&n| n == frames[0]), "{frames:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_late_catches_up_and_joins_the_others() {
        let (leader, router, room) = setting();
        (1..=5).for_each(|index| leader.publish(index));
        let mut first = router.subscribe(room.clone(), EventsFrom::Start);
        for index in 1..=5 {
            assert_eq!(next(&mut first).await, index);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        (6..=9).for_each(|index| leader.publish(index));
        assert_eq!(next(&mut first).await, 6);
        // What came last is here, what came before is not.
        let opened = leader.opened.load(Ordering::Relaxed);
        let mut back = router.subscribe(room.clone(), EventsFrom::After(EventId { index: 7, n: 0 }));
        assert_eq!(next(&mut back).await, 8);
        assert_eq!(leader.opened.load(Ordering::Relaxed), opened, "nobody was asked");
        let mut late = router.subscribe(room.clone(), EventsFrom::After(EventId { index: 2, n: 0 }));
        for index in 3..=9 {
            assert_eq!(next(&mut late).await, index);
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(leader.streams(), 1, "all are in one");
        leader.publish(10);
        assert_eq!(next(&mut back).await, 9);
        for stream in [&mut back, &mut late] {
            assert_eq!(next(stream).await, 10);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_broke_goes_on_for_all_without_gap_or_double() {
        let (leader, router, room) = setting();
        let mut streams: Vec<_> =
            (0..10).map(|_| router.subscribe(room.clone(), EventsFrom::Start)).collect();
        leader.publish(1);
        for stream in &mut streams {
            assert_eq!(next(stream).await, 1);
        }
        for index in 2..=20 {
            lock(&leader.open).clear();
            leader.publish(index);
            for stream in &mut streams {
                assert_eq!(next(stream).await, index);
            }
        }
    }
}
