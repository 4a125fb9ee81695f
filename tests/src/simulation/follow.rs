//! Followers of events in a simulation, those who publish for them, and what they saw.
//!
//! Owns the streams: each is followed for a while, left and resumed where it stood, or begun anew. Never
//! looks at a node.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use perennial::{Actors, Client, EventId, EventsFrom, Fault};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::{sleep, timeout};

use super::app::Feed;
use super::load::Shared;

/// Feeds that are followed.
const FEEDS: u64 = 2;
/// Deadline of a call.
const CALL_TIMEOUT: Duration = Duration::from_secs(4);
/// Longest pause of a publisher between calls, in milliseconds.
const PAUSE_MS_MAX: u64 = 150;
/// Most events of one call.
const BURST_MAX: u64 = 5;
/// Longest time that one stream is followed before it is left, in milliseconds.
const FOLLOW_MS_MAX: u64 = 3000;
/// Longest time until it is resumed, in milliseconds.
const AWAY_MS_MAX: u64 = 1500;

/// What one stream gave.
#[derive(Debug, Clone)]
pub struct Stretch {
    /// Whose events.
    pub actor: String,
    /// Where it began; `None` for what is kept, or from then on.
    pub after: Option<EventId>,
    /// Events and their numbers.
    pub events: Vec<(EventId, u64)>,
    /// It ended because what came after this was no longer kept.
    pub gone_after: Option<EventId>,
}

/// Publishes until it is told to stop.
pub async fn publish(client: Client, seed: u64, shared: Arc<Shared>) {
    let mut random = StdRng::seed_from_u64(seed);
    while !shared.stopped() {
        let feed = client.get::<Feed>(format!("f{}", random.random_range(0..FEEDS)));
        let count = random.random_range(1..=BURST_MAX);
        let published = feed.publish(count).timeout(CALL_TIMEOUT).await;
        shared.answered(&published);
        sleep(Duration::from_millis(random.random_range(0..PAUSE_MS_MAX))).await;
    }
}

/// Follows one feed after the other, until it is told to stop and has seen what was last.
pub async fn follow(client: Client, seed: u64, shared: Arc<Shared>) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut key = format!("f{}", random.random_range(0..FEEDS));
    let mut from = EventsFrom::Start;
    let mut seen = None;
    while !shared.stopped() {
        let patience = Duration::from_millis(random.random_range(1..FOLLOW_MS_MAX));
        let (position, number, fault) = stretch(&client, &key, from, patience, None, &shared).await;
        seen = number.or(seen);
        sleep(Duration::from_millis(random.random_range(0..AWAY_MS_MAX))).await;
        from = match position {
            Some(position) if fault.is_none() && random.random_bool(0.8) => EventsFrom::After(position),
            _ => {
                seen = None;
                key = format!("f{}", random.random_range(0..FEEDS));
                if random.random_bool(0.5) { EventsFrom::Start } else { EventsFrom::Now }
            }
        };
    }
    let (EventsFrom::After(_), Some(seen)) = (from, seen) else { return };
    let last = loop {
        match client.get::<Feed>(&key).last().timeout(CALL_TIMEOUT).await {
            Ok(last) => break last,
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
    };
    if seen < last {
        stretch(&client, &key, from, Duration::MAX, Some(last), &shared).await;
    }
}

/// Follows one stream for some time, or until a number came; gives where it stands, the last number and why
/// it ended.
async fn stretch(
    client: &Client,
    key: &str,
    from: EventsFrom,
    patience: Duration,
    until: Option<u64>,
    shared: &Shared,
) -> (Option<EventId>, Option<u64>, Option<Fault>) {
    let mut events = client.get::<Feed>(key).events_from(from);
    let after = match from {
        EventsFrom::After(id) => Some(id),
        EventsFrom::Start | EventsFrom::Now => None,
    };
    let actor = format!("Feed/{key}");
    let mut stretch = Stretch { actor, after, events: Vec::new(), gone_after: None };
    let reading = async {
        while let Some(event) = events.next().await {
            match event {
                Ok((id, number)) => {
                    stretch.events.push((id, number));
                    if until.is_some_and(|until| number >= until) {
                        return None;
                    }
                }
                Err(fault) => return Some(fault),
            }
        }
        None
    };
    let fault = timeout(patience, reading).await.ok().flatten();
    if let Some(Fault::EventsGone { after, .. }) = &fault {
        stretch.gone_after = Some(*after);
    }
    let last = stretch.events.last().map(|(_, number)| *number);
    shared.heard(|heard| {
        if let Some(fault) = fault.as_ref().filter(|f| stretch.gone_after.is_none() && !f.retryable()) {
            heard.unexpected.push(fault.to_string());
        }
        heard.streams.push(stretch);
    });
    (events.position(), last, fault)
}
