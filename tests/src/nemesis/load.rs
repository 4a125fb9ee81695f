//! Clients that increase and read counters, and write down what they saw.
//!
//! Owns the calls and their outcomes, told as carefully as a caller can: a fault that says *applied: no*
//! is taken at its word, everything else is unknown. Never judges; [`super::history`] does. Clients over
//! links go to the leaders; those over HTTP to any node, and repeat under the same idempotency key.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use perennial::error::Applied;
use perennial::{Actors, Client, Fault};
use perennial_runtime::counter::{Counter, KIND};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio_util::sync::CancellationToken;

use super::history::{Action, Op, Outcome};
use super::nodes::gateway;

/// How long most calls may take.
const CALL_MAX: Duration = Duration::from_secs(5);
/// How long the impatient ones may take: their callers give up in the middle of a failover.
const CALL_MAX_SHORT: Duration = Duration::from_millis(400);
/// Share of the impatient calls.
const SHORT_SHARE: f64 = 0.25;
/// Share of reads.
const READ_SHARE: f64 = 0.4;
/// Share of reads of the readers.
const READ_SHARE_READERS: f64 = 0.95;
/// How long one gateway is waited for, in milliseconds: short enough to find a new leader while the one
/// it replaced does not know yet.
const HTTP_ATTEMPT_MS: std::ops::Range<u64> = 80..700;
/// Pause of a client after each call, in milliseconds; the load is to leave time to others.
const PAUSE_MS: std::ops::Range<u64> = 40..160;
/// Pause before a call is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// What a client is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Over links, reads and writes.
    Links,
    /// Over links, mostly reads and always impatient: never held up by a write that gets no answer, it
    /// is there to ask a leader that was replaced and does not know.
    Reader,
    /// Over HTTP, reads and writes.
    Http,
}

/// Every so many counters, those over links only read: no write that waits for its commit at a leader
/// that was replaced keeps that leader from answering reads.
const READ_ONLY_EVERY: usize = 2;

/// The roles of the clients of a counter, in turn.
const ROLES: [Role; 3] = [Role::Links, Role::Reader, Role::Http];

/// What all clients of a run share.
pub(super) struct Load {
    start: Instant,
    ticks: AtomicU64,
    nodes: usize,
    links: Vec<Client>,
    http: reqwest::Client,
    /// No new call is made once this is cancelled.
    pub(super) stop: CancellationToken,
}

/// What one client saw.
#[derive(Default)]
pub(super) struct Seen {
    /// In order.
    pub(super) ops: Vec<Op>,
    /// Faults by code.
    pub(super) faults: BTreeMap<String, u64>,
    /// Faults that no failure of a node or of the network explains.
    pub(super) unexpected: Vec<String>,
}

impl Seen {
    /// Adds what another one saw.
    pub(super) fn add(&mut self, other: Self) {
        self.ops.extend(other.ops);
        for (code, count) in other.faults {
            *self.faults.entry(code).or_default() += count;
        }
        self.unexpected.extend(other.unexpected);
    }

    fn fault(&mut self, code: &str, retryable: bool, text: &str) {
        *self.faults.entry(code.to_owned()).or_default() += 1;
        if !retryable {
            self.unexpected.push(format!("{code}: {text}"));
        }
    }
}

impl Load {
    pub(super) fn new(start: Instant, nodes: usize, links: Vec<Client>) -> Self {
        let http = reqwest::Client::builder().no_proxy().build();
        Self {
            start,
            ticks: AtomicU64::new(0),
            nodes,
            links,
            http: http.expect("a client without TLS has nothing to load"),
            stop: CancellationToken::new(),
        }
    }

    /// One client of one counter, until the stop.
    pub(super) async fn drive(&self, seed: u64, key: usize, number: usize) -> Seen {
        let mut random = StdRng::seed_from_u64(seed ^ ((key as u64) << 32 | number as u64));
        let mut seen = Seen::default();
        let role = ROLES[number % ROLES.len()];
        let client = format!("{number} ({role:?})");
        let read_only = key % READ_ONLY_EVERY == READ_ONLY_EVERY - 1 && role != Role::Http;
        let (reads, short) = match role {
            _ if read_only => (1.0, 1.0),
            Role::Reader => (READ_SHARE_READERS, 1.0),
            Role::Links | Role::Http => (READ_SHARE, SHORT_SHARE),
        };
        let mut at = (key + number) % self.nodes;
        let mut count = 0_u64;
        while !self.stop.is_cancelled() {
            let action = if random.random_bool(reads) { Action::Read } else { Action::Increment };
            let within = if random.random_bool(short) { CALL_MAX_SHORT } else { CALL_MAX };
            if role == Role::Http {
                count += 1;
                let name = format!("{key}-{number}-{count}");
                let attempt = Duration::from_millis(random.random_range(HTTP_ATTEMPT_MS));
                self.over_http(&mut seen, &client, key, action, (within, attempt), (&name, &mut at)).await;
            } else {
                self.over_links(&mut seen, &client, key, action, within, number).await;
            }
            let pause = Duration::from_millis(random.random_range(PAUSE_MS));
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.stop.cancelled() => {}
            }
        }
        seen
    }

    /// Makes calls of a counter until one is acknowledged. Gives `false` if none is in time.
    pub(super) async fn insist(&self, key: usize, action: Action, within: Duration) -> (bool, Seen) {
        let until = Instant::now() + within;
        let mut seen = Seen::default();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return (false, seen);
            }
            let outcome =
                self.over_links(&mut seen, "after a heal", key, action, left.min(CALL_MAX), key).await;
            if matches!(outcome, Outcome::Value(_)) {
                return (true, seen);
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    async fn over_links(
        &self,
        seen: &mut Seen,
        client: &str,
        key: usize,
        action: Action,
        within: Duration,
        link: usize,
    ) -> Outcome {
        let began = self.begin();
        let counter = self.links[link % self.links.len()].get::<Counter>(name_of(key));
        let answer = match action {
            Action::Increment => counter.add(1).timeout(within).await,
            Action::Read => counter.get().timeout(within).await,
        };
        let outcome = match answer {
            Ok(value) => Outcome::Value(value),
            Err(fault) => {
                seen.fault(fault.code(), fault.retryable(), &fault.to_string());
                outcome_of(&fault)
            }
        };
        seen.ops.push(self.end(began, key, client, action, outcome));
        outcome
    }

    async fn over_http(
        &self,
        seen: &mut Seen,
        client: &str,
        key: usize,
        action: Action,
        (within, attempt): (Duration, Duration),
        (name, at): (&str, &mut usize),
    ) {
        let began = self.begin();
        let until = Instant::now() + within;
        let mut maybe_applied = false;
        let outcome = loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break if maybe_applied { Outcome::Unknown } else { Outcome::NotApplied };
            }
            match self.attempt(seen, *at, key, action, left.min(attempt), name).await {
                Attempt::Value(value) => break Outcome::Value(value),
                Attempt::Failed { maybe } => maybe_applied |= maybe,
            }
            *at = (*at + 1) % self.nodes;
            tokio::time::sleep(RETRY_PAUSE).await;
        };
        seen.ops.push(self.end(began, key, client, action, outcome));
    }

    async fn attempt(
        &self,
        seen: &mut Seen,
        node: usize,
        key: usize,
        action: Action,
        within: Duration,
        name: &str,
    ) -> Attempt {
        let url = format!("{}/v1/{KIND}/{}", gateway(node), name_of(key));
        let request = match action {
            Action::Increment => {
                self.http.post(format!("{url}/add")).header("Idempotency-Key", name).body(r#"{"n":1}"#)
            }
            Action::Read => self.http.get(format!("{url}/get")),
        };
        let millis = within.as_millis().max(1).to_string();
        let answer = request.header("Perennial-Timeout-Ms", millis).timeout(within).send().await;
        let (status, body) = match answer {
            Ok(answer) => (answer.status(), answer.text().await),
            Err(error) => {
                seen.fault(if error.is_connect() { "http: no connection" } else { "http: lost" }, true, "");
                return Attempt::Failed { maybe: !error.is_connect() };
            }
        };
        let Ok(body) = body else {
            seen.fault("http: lost", true, "");
            return Attempt::Failed { maybe: true };
        };
        if status.is_success() {
            if let Ok(value) = body.parse() {
                return Attempt::Value(value);
            }
            seen.fault("http: unreadable", false, &body);
            return Attempt::Failed { maybe: true };
        }
        let fault: serde_json::Value = serde_json::from_str(&body).unwrap_or_default();
        let code = format!("http: {}", fault["code"].as_str().unwrap_or("without code"));
        seen.fault(&code, fault["retryable"] == true, &body);
        Attempt::Failed { maybe: fault["applied"] != "no" }
    }

    fn begin(&self) -> (u64, Duration) {
        let at = self.start.elapsed();
        (self.ticks.fetch_add(1, Ordering::SeqCst), at)
    }

    fn end(
        &self,
        (called, called_at): (u64, Duration),
        key: usize,
        client: &str,
        action: Action,
        outcome: Outcome,
    ) -> Op {
        let returned = self.ticks.fetch_add(1, Ordering::SeqCst);
        let client = client.to_owned();
        Op { key, client, action, outcome, called, returned, called_at, returned_at: self.start.elapsed() }
    }
}

enum Attempt {
    Value(i64),
    Failed { maybe: bool },
}

/// Key of a counter.
pub(super) fn name_of(key: usize) -> String {
    format!("k{key}")
}

/// A repeat that is refused because the first answer is forgotten says nothing about the first.
fn outcome_of(fault: &Fault) -> Outcome {
    match fault {
        Fault::Forgotten { .. } => Outcome::Unknown,
        fault if fault.applied() == Applied::No => Outcome::NotApplied,
        _ => Outcome::Unknown,
    }
}
