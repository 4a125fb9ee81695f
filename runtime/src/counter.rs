//! The actor every application brings: a counter to measure with and to prove the promises on.
//!
//! Owns the actor and a workload on it, so that `demo` and `bench` work for any application.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use perennial::actor::{Answer, Args, BoxFuture, Format};
use perennial::call::{ActorId, Answered, Caller, Outbound};
use perennial::error::Applied;
use perennial::prelude::*;
use perennial::topic::{Topic, TopicEvent};

use crate::workload::{LoadContext, LoadReport, RunningLoad, Workload};

/// Stable name of the counter's type.
pub const KIND: &str = "perennial.Counter";
/// How long one call of a load may take, failover included.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// Pause of a client after a fault.
const REFUSED_PAUSE: Duration = Duration::from_millis(20);

/// A number.
#[data]
#[derive(Default)]
pub struct Counter {
    value: i64,
}

#[actor(kind = "perennial.Counter")]
impl Counter {
    /// Adds to the number; returns the sum.
    pub fn add(&mut self, n: i64) -> i64 {
        self.value = self.value.wrapping_add(n);
        self.value
    }

    /// Has another counter add 1 so many times, by messages.
    pub fn send(&mut self, ctx: &mut Ctx<Self>, to: String, count: u32) {
        for _ in 0..count {
            ctx.send(ctx.get::<Self>(&to).add(1));
        }
    }

    /// The number.
    pub fn get(&self) -> i64 {
        self.value
    }
}

/// What `bench --op events` publishes.
#[data]
pub(crate) struct Tick {
    /// When, in microseconds of the publisher's own count.
    pub(crate) at: u64,
}

impl TopicEvent for Tick {
    const TOPIC: &'static str = "perennial.Ticks";
}

/// The topic to measure with.
pub(crate) type Ticks = Topic<Tick>;

/// Adds the counter, and the topic, to an application.
pub(crate) fn register(app: App) -> App {
    app.actor::<Counter>().actor::<crate::clocks::Clock>().actor::<Ticks>()
}

/// An untyped call of a counter, ready to be made many times.
#[derive(Clone)]
pub(crate) struct Prepared {
    method: &'static str,
    args: Bytes,
}

impl Prepared {
    /// `add(n)`.
    pub(crate) fn add(n: i64) -> Self {
        Self { method: "add", args: encoded(&(n,)) }
    }

    /// `get()`.
    pub(crate) fn get() -> Self {
        Self { method: "get", args: encoded(&()) }
    }

    /// `send(to, count)`.
    pub(crate) fn send(to: &str, count: u32) -> Self {
        Self { method: "send", args: encoded(&(to, count)) }
    }

    /// Makes the call.
    pub(crate) fn call(&self, caller: &impl Caller, target: &ActorId) -> BoxFuture<'static, Answered> {
        caller.call(Outbound {
            target: target.clone(),
            method: self.method.to_owned(),
            args: Args { format: Format::Postcard, bytes: self.args.clone() },
            request: None,
            keyed: false,
            read_only: false,
            stale: None,
            path: Vec::new(),
            deadline: Instant::now() + CALL_TIMEOUT,
        })
    }
}

fn encoded<T: serde::Serialize>(value: &T) -> Bytes {
    postcard::to_stdvec(value).expect("numbers can be encoded").into()
}

/// A counter with a key of its own.
pub(crate) fn counter(key: &str) -> ActorId {
    ActorId::new(KIND, key).expect("keys made here are short")
}

/// Each client adds 1 to a few counters of its own; afterwards each holds exactly what was acknowledged.
pub(crate) struct CounterLoad;

/// Counters of each client.
const COUNTERS_PER_CLIENT: usize = 4;

/// What one client knows of one of its counters.
struct Ledger {
    actor: ActorId,
    acknowledged: u64,
    unknown: u64,
}

struct RunningCounters {
    ctx: LoadContext,
    clients: Vec<tokio::task::JoinHandle<Vec<Ledger>>>,
}

impl Workload for CounterLoad {
    fn name(&self) -> &'static str {
        "counters"
    }

    fn start(&self, ctx: LoadContext) -> Box<dyn RunningLoad> {
        let clients = (0..ctx.clients).map(|number| tokio::spawn(drive(ctx.clone(), number))).collect();
        Box::new(RunningCounters { ctx, clients })
    }
}

async fn drive(ctx: LoadContext, number: usize) -> Vec<Ledger> {
    let add = Prepared::add(1);
    let mut ledgers: Vec<_> = (0..COUNTERS_PER_CLIENT)
        .map(|n| Ledger {
            actor: counter(&format!("load-{:x}-{number}-{n}", ctx.seed)),
            acknowledged: 0,
            unknown: 0,
        })
        .collect();
    for at in (0..COUNTERS_PER_CLIENT).cycle() {
        if ctx.stop.is_cancelled() {
            break;
        }
        let ledger = &mut ledgers[at];
        let started = Instant::now();
        let answered = add.call(&ctx.client, &ledger.actor).await;
        match answered.answer {
            Answer::Fault(fault) => {
                ctx.probe.failed();
                ledger.unknown += u64::from(fault.applied() == Applied::Unknown);
                // A cluster that refuses at once is not asked in a tight loop.
                tokio::time::sleep(REFUSED_PAUSE).await;
            }
            Answer::Ok(_) | Answer::App(_) => {
                ctx.probe.answered(&ledger.actor, started, answered.node.as_ref(), answered.retries);
                ledger.acknowledged += 1;
            }
        }
    }
    ledgers
}

impl RunningLoad for RunningCounters {
    fn finish(self: Box<Self>) -> BoxFuture<'static, Result<LoadReport, Fault>> {
        Box::pin(async move {
            let client = Arc::new(self.ctx.client);
            let mut report = LoadReport::default();
            for task in self.clients {
                for ledger in task.await.expect("a client of the load does not panic") {
                    let value = read(&*client, &ledger.actor).await?;
                    report.acknowledged += ledger.acknowledged;
                    report.unknown += ledger.unknown;
                    report.lost += ledger.acknowledged.saturating_sub(value);
                    report.doubled += value.saturating_sub(ledger.acknowledged + ledger.unknown);
                }
            }
            Ok(report)
        })
    }
}

/// The number of a counter that nobody lets sink below zero.
pub(crate) async fn read(client: &impl Caller, actor: &ActorId) -> Result<u64, Fault> {
    let unreadable = |why: String| Fault::Unreadable { what: "the value".into(), at: actor.to_string(), why };
    match Prepared::get().call(client, actor).await.answer {
        Answer::Ok(bytes) => {
            let value: i64 = postcard::from_bytes(&bytes).map_err(|e| unreadable(e.to_string()))?;
            u64::try_from(value).map_err(|e| unreadable(e.to_string()))
        }
        Answer::App(_) => Err(unreadable("an application error".into())),
        Answer::Fault(fault) => Err(fault),
    }
}
