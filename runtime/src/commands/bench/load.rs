//! The load generator: many logical clients in one process, each with one call in flight.
//!
//! Calls are untyped with arguments encoded once, so that the generator costs little beside the client.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use perennial::Client;
use perennial::actor::Answer;
use perennial::call::ActorId;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;
use tokio::task::JoinSet;

use crate::counter::{Prepared, counter};

/// Histograms that clients share, so that they seldom wait for each other.
const SHARES: usize = 16;
/// Longest latency told apart, in microseconds.
const LATENCY_MICROS_MAX: u64 = 120_000_000;
/// Pause of a client after a fault: a cluster that refuses at once is not asked in a tight loop.
const REFUSED_PAUSE: Duration = Duration::from_millis(20);
/// Longest stretch of time that calls held up are made up for, faster than their pace.
const CATCH_UP: Duration = Duration::from_secs(1);

/// A call to make again and again.
pub(super) struct Call {
    pub(super) target: ActorId,
    pub(super) prepared: Prepared,
}

impl Call {
    /// Calls of so many counters.
    pub(super) fn of_counters(keys: u32, prepared: &Prepared) -> Vec<Self> {
        let call = |key| Self { target: counter(&format!("bench-{key}")), prepared: prepared.clone() };
        (0..keys).map(call).collect()
    }
}

/// What the calls showed.
#[derive(Debug, Serialize)]
pub(super) struct Figures {
    pub(super) calls: u64,
    pub(super) calls_per_s: f64,
    pub(super) p50_micros: u64,
    pub(super) p99_micros: u64,
    pub(super) p999_micros: u64,
    pub(super) max_micros: u64,
    /// Faults by code.
    pub(super) errors: BTreeMap<String, u64>,
}

impl Figures {
    /// The same over another stretch of time.
    pub(super) fn rates(self, seconds: f64) -> Self {
        Self { calls_per_s: self.calls as f64 / seconds, ..self }
    }
}

/// What clients write down together.
struct Book {
    measuring: AtomicBool,
    stopped: AtomicBool,
    latencies: Vec<Mutex<Histogram<u64>>>,
    errors: Mutex<BTreeMap<String, u64>>,
    /// Calls acknowledged, whether measured or not.
    acknowledged: AtomicU64,
}

impl Book {
    fn new(measuring: bool) -> Arc<Self> {
        let histogram = || {
            Mutex::new(Histogram::new_with_bounds(1, LATENCY_MICROS_MAX, 3).expect("the bounds are in order"))
        };
        Arc::new(Self {
            measuring: AtomicBool::new(measuring),
            stopped: AtomicBool::new(false),
            latencies: std::iter::repeat_with(histogram).take(SHARES).collect(),
            errors: Mutex::default(),
            acknowledged: AtomicU64::new(0),
        })
    }

    /// One call, written down if its end falls into the measured stretch.
    async fn call(&self, share: usize, client: &Client, prepared: &Prepared, target: &ActorId) {
        let started = Instant::now();
        let answered = prepared.call(client, target).await;
        let measuring = self.measuring.load(Ordering::Relaxed);
        if matches!(answered.answer, Answer::Ok(_)) {
            self.acknowledged.fetch_add(1, Ordering::Relaxed);
        }
        match answered.answer {
            Answer::Fault(fault) => {
                if measuring {
                    *lock(&self.errors).entry(fault.code().to_owned()).or_default() += 1;
                }
                tokio::time::sleep(REFUSED_PAUSE).await;
            }
            Answer::Ok(_) | Answer::App(_) if measuring => {
                let micros = started.elapsed().as_micros() as u64;
                lock(&self.latencies[share % SHARES]).saturating_record(micros.max(1));
            }
            Answer::Ok(_) | Answer::App(_) => {}
        }
    }

    fn figures(&self, seconds: f64) -> Figures {
        let mut all = Histogram::<u64>::new(3).expect("three digits are supported");
        for share in &self.latencies {
            all.add(&*lock(share)).expect("a histogram that grows takes every other");
        }
        Figures {
            calls: all.len(),
            calls_per_s: all.len() as f64 / seconds,
            p50_micros: all.value_at_quantile(0.5),
            p99_micros: all.value_at_quantile(0.99),
            p999_micros: all.value_at_quantile(0.999),
            max_micros: all.max(),
            errors: lock(&self.errors).clone(),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A load that runs; dropping it ends it.
pub(super) struct Running {
    book: Arc<Book>,
    tasks: JoinSet<()>,
}

/// Starts the clients, spread over the connections.
pub(super) fn start(clients: &[Client], in_flight: u32, calls: Vec<Call>) -> Running {
    let book = Book::new(false);
    let calls = Arc::new(calls);
    let mut tasks = JoinSet::new();
    for number in 0..in_flight as usize {
        let (book, calls) = (Arc::clone(&book), Arc::clone(&calls));
        let client = clients[number % clients.len()].clone();
        tasks.spawn(async move {
            let mut random = SmallRng::seed_from_u64(number as u64);
            while !book.stopped.load(Ordering::Relaxed) {
                let Call { target, prepared } = &calls[random.random_range(0..calls.len())];
                book.call(number, &client, prepared, target).await;
            }
        });
    }
    Running { book, tasks }
}

impl Running {
    /// Starts or ends the measured stretch.
    pub(super) fn measure(&self, on: bool) {
        self.book.measuring.store(on, Ordering::Relaxed);
    }

    /// Waits for the calls in flight.
    /// Also gives how many calls were acknowledged since the start.
    pub(super) async fn stop(mut self, seconds: f64) -> (Figures, u64) {
        self.book.stopped.store(true, Ordering::Relaxed);
        while self.tasks.join_next().await.is_some() {}
        (self.book.figures(seconds), self.book.acknowledged.load(Ordering::Relaxed))
    }
}

/// Calls that begin no faster than so many a second.
struct Pace {
    apart: Duration,
    /// When the next one may begin.
    next: Mutex<Instant>,
}

impl Pace {
    fn new(per_second: u64) -> Self {
        Self { apart: Duration::from_secs(1) / per_second as u32, next: Mutex::new(Instant::now()) }
    }

    /// When a call that is ready at `now` may begin.
    fn take(&self, now: Instant) -> Instant {
        let mut next = lock(&self.next);
        let begins = now.checked_sub(CATCH_UP).map_or(*next, |earliest| earliest.max(*next));
        *next = begins + self.apart;
        begins
    }
}

/// Calls each of `actors` counters once, no more than so many a second if there is a pace.
pub(super) async fn touch(
    clients: &[Client],
    in_flight: u32,
    actors: u32,
    per_second: Option<u64>,
) -> Figures {
    let book = Book::new(true);
    let pace = Arc::new(per_second.map(Pace::new));
    let next = Arc::new(AtomicU32::new(0));
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for number in 0..in_flight as usize {
        let (book, next, pace) = (Arc::clone(&book), Arc::clone(&next), Arc::clone(&pace));
        let client = clients[number % clients.len()].clone();
        tasks.spawn(async move {
            let add = Prepared::add(1);
            loop {
                let actor = next.fetch_add(1, Ordering::Relaxed);
                if actor >= actors {
                    return;
                }
                if let Some(pace) = &*pace {
                    tokio::time::sleep_until(pace.take(Instant::now()).into()).await;
                }
                book.call(number, &client, &add, &counter(&format!("resident-{actor}"))).await;
            }
        });
    }
    while tasks.join_next().await.is_some() {}
    book.figures(started.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_keep_their_pace_and_make_up_for_a_second() {
        let (pace, start) = (Pace::new(1000), Instant::now());
        let first = pace.take(start);
        for n in 1..=100 {
            assert_eq!(pace.take(start), first + Duration::from_millis(n));
        }
        let held_up = start + Duration::from_secs(60);
        let begin_by_then = (0..5000).filter(|_| pace.take(held_up) <= held_up).count();
        assert_eq!(begin_by_then, 1001);
    }
}
