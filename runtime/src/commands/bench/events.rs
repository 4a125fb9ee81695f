//! Events delivered to many who follow one topic.
//!
//! Publishers keep a bounded number of events ahead of what the followers have had on average, so that the
//! figures are what is sustained, with nobody cut off. Publisher and followers are in this process, so one
//! clock tells how long an event took.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use hdrhistogram::Histogram;
use perennial::{Actors, Client, EventsFrom};
use serde::Serialize;
use tokio::task::JoinSet;

use crate::counter::{Tick, Ticks};

/// Events under way at most; well below what waits for a follower before it is cut off.
const AHEAD_MAX: u64 = 256;
/// Events of one call at most.
const BATCH_MAX: u64 = 16;
/// How often a publisher looks whether there is room again.
const LOOK: Duration = Duration::from_micros(200);
/// One delivery of so many is timed.
const TIMED_EVERY: u64 = 16;
/// Longest latency told apart, in microseconds.
const LATENCY_MICROS_MAX: u64 = 120_000_000;

/// What so many followers got.
#[derive(Debug, Serialize)]
pub(super) struct Delivered {
    pub(super) subscribers: u32,
    pub(super) published: u64,
    pub(super) published_per_s: f64,
    pub(super) delivered: u64,
    pub(super) delivered_per_s: f64,
    pub(super) p50_micros: u64,
    pub(super) p99_micros: u64,
    pub(super) max_micros: u64,
    /// Streams that ended and were resumed.
    pub(super) resumed: u64,
}

#[derive(Default)]
struct Book {
    stopped: AtomicBool,
    measuring: AtomicBool,
    published: AtomicU64,
    published_measured: AtomicU64,
    delivered: AtomicU64,
    delivered_measured: AtomicU64,
    resumed: AtomicU64,
    begun: AtomicU64,
    latencies: Mutex<Vec<u64>>,
}

/// Has so many followers, spread over the clients, follow one topic for some time.
pub(super) async fn measure(
    clients: &[Client],
    subscribers: u32,
    publishers: u32,
    warmup: Duration,
    time: Duration,
) -> Delivered {
    let book = Arc::new(Book::default());
    let start = Instant::now();
    let topic = format!("bench-{subscribers}-{:x}", rand::random::<u32>());
    let mut tasks = JoinSet::new();
    for number in 0..subscribers as usize {
        let client = clients[number % clients.len()].clone();
        tasks.spawn(follow(client, topic.clone(), Arc::clone(&book), start));
    }
    // A first event, over and over until everybody has had one, says that all streams have begun.
    while book.begun.load(Ordering::Relaxed) < u64::from(subscribers) {
        publish_some(&clients[0], &topic, &book, u64::from(subscribers), start, 1).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Those that came before some had begun do not reach all.
    book.published.store(0, Ordering::Relaxed);
    book.delivered.store(0, Ordering::Relaxed);
    for number in 0..publishers as usize {
        let (client, topic, book) =
            (clients[number % clients.len()].clone(), topic.clone(), Arc::clone(&book));
        tasks.spawn(async move {
            while !book.stopped.load(Ordering::Relaxed) {
                publish_some(&client, &topic, &book, u64::from(subscribers), start, BATCH_MAX).await;
            }
        });
    }
    tokio::time::sleep(warmup).await;
    let began = Instant::now();
    book.measuring.store(true, Ordering::Relaxed);
    tokio::time::sleep(time).await;
    book.measuring.store(false, Ordering::Relaxed);
    let seconds = began.elapsed().as_secs_f64();
    book.stopped.store(true, Ordering::Relaxed);
    tasks.shutdown().await;
    let mut all =
        Histogram::<u64>::new_with_bounds(1, LATENCY_MICROS_MAX, 3).expect("the bounds are in order");
    for micros in book.latencies.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        all.saturating_record(*micros);
    }
    let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let (published, delivered) = (of(&book.published_measured), of(&book.delivered_measured));
    Delivered {
        subscribers,
        published,
        published_per_s: published as f64 / seconds,
        delivered,
        delivered_per_s: delivered as f64 / seconds,
        p50_micros: all.value_at_quantile(0.5),
        p99_micros: all.value_at_quantile(0.99),
        max_micros: all.max(),
        resumed: of(&book.resumed),
    }
}

/// Publishes some events as soon as there is room for them.
async fn publish_some(
    client: &Client,
    topic: &str,
    book: &Book,
    subscribers: u64,
    start: Instant,
    most: u64,
) {
    loop {
        let had = book.delivered.load(Ordering::Relaxed) / subscribers;
        let ahead = book.published.load(Ordering::Relaxed).saturating_sub(had);
        if ahead + most <= AHEAD_MAX {
            break;
        }
        tokio::time::sleep(LOOK).await;
        if book.stopped.load(Ordering::Relaxed) {
            return;
        }
    }
    book.published.fetch_add(most, Ordering::Relaxed);
    let at = start.elapsed().as_micros() as u64;
    let events = (0..most).map(|_| Tick { at }).collect();
    let done = client.get::<Ticks>(topic).publish_all(events).await.is_ok();
    if done && book.measuring.load(Ordering::Relaxed) {
        book.published_measured.fetch_add(most, Ordering::Relaxed);
    }
}

async fn follow(client: Client, topic: String, book: Arc<Book>, start: Instant) {
    let mut from = EventsFrom::Start;
    let (mut begun, mut count) = (false, 0_u64);
    while !book.stopped.load(Ordering::Relaxed) {
        let mut events = client.get::<Ticks>(&topic).events_from(from);
        while let Some(Ok((id, tick))) = events.next().await {
            from = EventsFrom::After(id);
            if !begun {
                begun = true;
                book.begun.fetch_add(1, Ordering::Relaxed);
            }
            book.delivered.fetch_add(1, Ordering::Relaxed);
            if !book.measuring.load(Ordering::Relaxed) {
                continue;
            }
            book.delivered_measured.fetch_add(1, Ordering::Relaxed);
            count += 1;
            if count % TIMED_EVERY == 0 {
                let micros = (start.elapsed().as_micros() as u64).saturating_sub(tick.at);
                book.latencies.lock().unwrap_or_else(PoisonError::into_inner).push(micros.max(1));
            }
        }
        book.resumed.fetch_add(1, Ordering::Relaxed);
    }
}
