//! The clients of a simulation, and what they were told.
//!
//! Owns their calls and the record of each: what was asked, what came of it, in which order. Never looks at
//! a node. Calls follow from the seed and the answers.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use perennial::core::id::NodeId;
use perennial::dead::{DeadFilter, DeadLetter};
use perennial::error::Applied;
use perennial::link::{LinkConfig, MemoryHub};
use perennial::{Actors, CallError, Client, Detailed, Fault};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;

use super::app::{Agent, Alarm, BEATS, Counter, Metronome, Payment, Purse};
use super::follow::Stretch;
use super::invariants::stale::{Acknowledged, StaleRead};
use super::porter;
use super::shelf::{self, Book};
use crate::nemesis::history::{Action, Op, Outcome};

/// Counters that clients call.
pub const COUNTERS: usize = 4;
/// Purses, and alarms, and agents.
pub const OTHERS: u64 = 4;
/// Deadline of a call.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(4);
/// Longest pause of a client between calls, in milliseconds.
const PAUSE_MS_MAX: u64 = 60;
/// Longest time that a read may be behind, in milliseconds.
const STALE_MS_MAX: u64 = 8000;
/// Longest time until an alarm rings, in milliseconds.
const ALARM_MS_MAX: u64 = 3000;
/// Times between two beats of a metronome, in milliseconds.
const EVERY_MS: std::ops::Range<u64> = 20..1500;

/// A call that is no counter's: its number and what came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Who was called.
    pub actor: String,
    /// The number that the call gave.
    pub number: u64,
    /// What came of it.
    pub outcome: Outcome,
}

impl Told {
    /// What was answered.
    #[must_use]
    pub fn value(&self) -> Option<i64> {
        match self.outcome {
            Outcome::Value(value) => Some(value),
            Outcome::NotApplied | Outcome::Unknown => None,
        }
    }

    /// Whether what it asked for may stand so many times at an actor.
    pub(super) fn fits(&self, actor: &str, times: usize) -> bool {
        match self.outcome {
            _ if self.actor != actor => times == 0,
            Outcome::Value(_) => times == 1,
            Outcome::NotApplied => times == 0,
            Outcome::Unknown => times <= 1,
        }
    }
}

/// What all clients were told.
#[derive(Debug, Default)]
pub struct Heard {
    /// Calls of counters.
    pub ops: Vec<Op>,
    /// Sums of counters, in the order in which they were told.
    pub sums: Vec<Acknowledged>,
    /// Reads of counters that may be behind.
    pub stale: Vec<StaleRead>,
    /// Payments asked of a purse.
    pub payments: Vec<Told>,
    /// Alarms asked for.
    pub alarms: Vec<Told>,
    /// Metronomes asked for.
    pub metronomes: Vec<Told>,
    /// Calls of agents; the number is that of the agent.
    pub relays: Vec<Told>,
    /// Changes of shelves; the value is the place.
    pub changes: Vec<Told>,
    /// Shelves that did not fit together when they were read.
    pub audits: Vec<String>,
    /// Streams of events.
    pub streams: Vec<Stretch>,
    /// Calls of porters; the actor is the counter.
    pub carried: Vec<Told>,
    /// Acknowledged calls.
    pub acknowledged: u64,
    /// Faults that a caller cannot do anything about, which none of the faults here should cause.
    pub unexpected: Vec<String>,
}

/// What the clients of a run share.
#[derive(Debug, Default)]
pub struct Shared {
    ticks: AtomicU64,
    numbers: AtomicU64,
    stop: AtomicBool,
    heard: Mutex<Heard>,
    begin: OnceLock<Instant>,
}

impl Shared {
    /// Lets the clients end after the call each is at.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Looks at what was heard.
    pub fn heard<T>(&self, look: impl FnOnce(&mut Heard) -> T) -> T {
        look(&mut self.heard.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes note of the answer to a call of which nothing else is looked at.
    pub(crate) fn answered<T>(&self, answer: &Result<T, Fault>) {
        self.heard(|heard| match answer {
            Ok(_) => heard.acknowledged += 1,
            Err(fault) if !fault.retryable() && !matches!(fault, Fault::Forgotten { .. }) => {
                heard.unexpected.push(fault.to_string());
            }
            Err(_) => {}
        });
    }

    /// Time since this was asked for the first time.
    fn now(&self) -> Duration {
        self.begin.get_or_init(Instant::now).elapsed()
    }

    /// Whether the clients are to end.
    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn tick(&self) -> u64 {
        self.ticks.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }
}

/// Connects, however long that takes.
pub async fn connect(hub: &MemoryHub, me: &NodeId, nodes: &[NodeId], link: &LinkConfig) -> Client {
    loop {
        match Client::connect_in(hub.clone(), me.clone(), nodes, link.clone()).await {
            Ok(client) => return client,
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

pub(super) fn outcome<T>(answer: Result<T, Fault>, value: impl FnOnce(T) -> i64, shared: &Shared) -> Outcome {
    match answer {
        Ok(answer) => {
            shared.heard(|heard| heard.acknowledged += 1);
            Outcome::Value(value(answer))
        }
        // Refused because the first answer is forgotten: says nothing about the first.
        Err(Fault::Forgotten { .. }) => Outcome::Unknown,
        Err(fault) => {
            if !fault.retryable() {
                shared.heard(|heard| heard.unexpected.push(fault.to_string()));
            }
            if fault.applied() == Applied::No { Outcome::NotApplied } else { Outcome::Unknown }
        }
    }
}

/// Calls until it is told to stop.
pub async fn drive(client: Client, name: String, seed: u64, shared: Arc<Shared>) {
    let mut random = StdRng::seed_from_u64(seed);
    while !shared.stopped() {
        match random.random_range(0..10) {
            0..6 => {
                let key = random.random_range(0..COUNTERS);
                if random.random_bool(0.3) {
                    let within = Duration::from_millis(random.random_range(1..STALE_MS_MAX));
                    read_stale(&client, key, within, &shared).await;
                } else {
                    let action = if random.random_bool(0.4) { Action::Read } else { Action::Increment };
                    count(&client, &name, key, action, &shared).await;
                }
            }
            6..8 => {
                let from = format!("p{}", random.random_range(0..OTHERS));
                let to = format!("p{}", random.random_range(0..OTHERS));
                let number = shared.number();
                let answer = client.get::<Purse>(&from).pay(to, number).timeout(CALL_TIMEOUT).await;
                let outcome = outcome(answer, |_| 0, &shared);
                shared.heard(|heard| heard.payments.push(Told { actor: from, number, outcome }));
            }
            8 if random.random_bool(0.4) => {
                let actor = format!("a{}", random.random_range(0..OTHERS));
                let (number, every) = (shared.number(), random.random_range(EVERY_MS));
                let missed = random.random_range(0..6);
                let start = client.get::<Alarm>(&actor).start(number, every, missed);
                let outcome = outcome(start.timeout(CALL_TIMEOUT).await, |_| 0, &shared);
                shared.heard(|heard| heard.metronomes.push(Told { actor, number, outcome }));
            }
            8 => {
                let actor = format!("a{}", random.random_range(0..OTHERS));
                let (number, after) = (shared.number(), random.random_range(1..ALARM_MS_MAX));
                let answer = client.get::<Alarm>(&actor).set(number, after).timeout(CALL_TIMEOUT).await;
                let outcome = outcome(answer, |_| 0, &shared);
                shared.heard(|heard| heard.alarms.push(Told { actor, number, outcome }));
            }
            _ => {
                let number = random.random_range(0..OTHERS);
                let (agent, counter) = (format!("g{number}"), format!("n{number}"));
                let answer = client.get::<Agent>(&agent).relay(counter).timeout(CALL_TIMEOUT).await;
                let answer = answer.map_err(|error| match error {
                    CallError::Fault(fault) => fault,
                    CallError::App(never) => unreachable!("an agent has no error of its own: {never}"),
                });
                let outcome = outcome(answer, |sum| sum, &shared);
                shared.heard(|heard| heard.relays.push(Told { actor: agent, number, outcome }));
            }
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(0..PAUSE_MS_MAX))).await;
    }
}

/// Reads all counters until it is told to stop: there to ask a leader that was replaced and does not know.
pub async fn read(client: &Client, seed: u64, shared: &Shared) {
    let each = (0..COUNTERS).map(|key| async move {
        let mut random = StdRng::seed_from_u64(seed ^ key as u64);
        let name = format!("reader {key}");
        while !shared.stopped() {
            count(client, &name, key, Action::Read, shared).await;
            tokio::time::sleep(Duration::from_millis(random.random_range(0..PAUSE_MS_MAX))).await;
        }
    });
    futures_util::future::join_all(each).await;
}

/// Calls one counter and records it; whether it was acknowledged.
pub async fn count(client: &Client, name: &str, key: usize, action: Action, shared: &Shared) -> bool {
    let counter = client.get::<Counter>(format!("c{key}"));
    let called = shared.tick();
    let answer = match action {
        Action::Increment => counter.increment().timeout(CALL_TIMEOUT).await,
        Action::Read => counter.value().timeout(CALL_TIMEOUT).await,
    };
    let outcome = outcome(answer, |sum| sum, shared);
    if let Outcome::Value(sum) = outcome {
        shared.heard(|heard| heard.sums.push((key, sum, shared.now())));
    }
    let op = Op {
        key,
        client: name.to_owned(),
        action,
        outcome,
        called,
        returned: shared.tick(),
        called_at: Duration::ZERO,
        returned_at: Duration::ZERO,
    };
    shared.heard(|heard| heard.ops.push(op));
    matches!(outcome, Outcome::Value(_))
}

/// Reads one counter as any node knows it, and records the answer of one that may be behind.
async fn read_stale(client: &Client, key: usize, within: Duration, shared: &Shared) {
    let called = shared.now();
    let read = client.get::<Counter>(format!("c{key}")).value().stale(within).timeout(CALL_TIMEOUT);
    let Detailed { result, age, .. } = read.detailed().await;
    let outcome = outcome(result, |sum| sum, shared);
    if let (Outcome::Value(value), Some(age)) = (outcome, age) {
        shared.heard(|heard| heard.stale.push(StaleRead { key, called, within, age, value }));
    }
}

/// What the actors say at the end.
#[derive(Debug, Default, PartialEq)]
pub struct Books {
    /// Paid and got, by purse.
    pub purses: Vec<(String, Vec<Payment>, Vec<Payment>)>,
    /// Set and rung, by alarm.
    pub alarms: Vec<(String, Vec<u64>, Vec<u64>)>,
    /// What is on each shelf.
    pub shelves: Vec<(String, Book)>,
    /// Metronomes, by alarm.
    pub metronomes: Vec<(String, Vec<Metronome>)>,
    /// What an agent has done, and the sum of its counter.
    pub agents: Vec<(u64, i64, i64)>,
    /// Dead letters.
    pub dead: Vec<DeadLetter>,
    /// The sums of the counters of porters.
    pub carried: Vec<(String, i64)>,
}

/// Reads everything; `None` when one of the calls failed.
pub async fn read_books(client: &Client) -> Option<Books> {
    let mut books = Books::default();
    for number in 0..OTHERS {
        let purse = format!("p{number}");
        let (paid, got) = client.get::<Purse>(&purse).book().timeout(CALL_TIMEOUT).await.ok()?;
        books.purses.push((purse, paid, got));
        let alarm = format!("a{number}");
        let (set, rung) = client.get::<Alarm>(&alarm).book().timeout(CALL_TIMEOUT).await.ok()?;
        let metronomes = client.get::<Alarm>(&alarm).metronomes().timeout(CALL_TIMEOUT).await.ok()?;
        books.metronomes.push((alarm.clone(), metronomes));
        books.alarms.push((alarm, set, rung));
        let done = client.get::<Agent>(format!("g{number}")).done().timeout(CALL_TIMEOUT).await.ok()?;
        let sum = client.get::<Counter>(format!("n{number}")).value().timeout(CALL_TIMEOUT).await.ok()?;
        books.agents.push((number, done, sum));
    }
    let dead = client.dead_letters().list(&DeadFilter::default(), usize::MAX).await;
    books.dead = dead.letters;
    books.shelves = shelf::read_books(client).await?;
    books.carried = porter::read_books(client).await?;
    dead.unanswered.is_empty().then_some(books)
}

impl Books {
    /// Whether nothing is on its way any more, so many payments having been dropped.
    #[must_use]
    pub fn are_settled(&self, dropped: usize) -> bool {
        let paid: usize = self.purses.iter().map(|(_, paid, _)| paid.len()).sum();
        let got: usize = self.purses.iter().map(|(_, _, got)| got.len()).sum();
        let set: usize = self.alarms.iter().map(|(_, set, _)| set.len()).sum();
        let rung: usize = self.alarms.iter().map(|(_, _, rung)| rung.len()).sum();
        let all = |metronomes: &[Metronome]| metronomes.iter().all(|one| one.beats.len() >= BEATS);
        let beaten = self.metronomes.iter().all(|(_, metronomes)| all(metronomes));
        paid == got + self.dead.len() + dropped && set == rung && beaten
    }
}
