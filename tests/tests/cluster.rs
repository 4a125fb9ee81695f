//! Three nodes in one process: what must hold when leaders go, and what a minority does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use perennial::error::Applied;
use perennial::node::Backend;
use perennial::prelude::*;
use perennial::status::ReminderQuery;
use perennial::{App, Client, Detailed, EventsFrom, Fault, Missed, When};
use perennial_tests::{Cluster, PATIENCE, until};

/// Sums up what it is given.
#[data]
#[derive(Default)]
pub struct Ledger {
    sum: u64,
    rung: u32,
    over: bool,
}

/// What a ledger publishes.
#[data]
pub enum Noted {
    /// The new sum.
    Sum(u64),
}

#[actor(event = Noted)]
impl Ledger {
    /// Adds; returns the sum.
    pub fn add(&mut self, ctx: &mut Ctx<Self>, n: u64) -> u64 {
        self.sum += n;
        ctx.publish(Noted::Sum(self.sum));
        self.sum
    }

    /// Has the next one of these ask the one behind it.
    pub async fn ask(&mut self, ctx: &mut Ctx<Self>, mut round: Vec<String>) -> Result<(), Fault> {
        if round.is_empty() {
            return Ok(());
        }
        let next = round.remove(0);
        ctx.get::<Self>(&next).ask(round).await
    }

    /// The sum.
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// Rings once after a while; then, later, it is over.
    pub fn set_bell(&mut self, ctx: &mut Ctx<Self>, after_ms: u64) {
        ctx.schedule("bell", Duration::from_millis(after_ms), ctx.me().ring());
        ctx.schedule("over", Duration::from_millis(2 * after_ms), ctx.me().end());
    }

    /// Sets reminders that are due in hours, `hour-0` first.
    pub fn plan(&mut self, ctx: &mut Ctx<Self>, hours: u64) {
        for hour in 0..hours {
            let time = Duration::from_secs((hour + 1) * 3600);
            ctx.schedule(format!("hour-{hour}"), time, ctx.me().ring());
        }
        ctx.schedule(
            "always",
            When::every(Duration::from_secs(86_400)).missed(Missed::Skip),
            ctx.me().ring(),
        );
    }

    /// The bell.
    pub fn ring(&mut self) {
        self.rung += 1;
    }

    /// The end.
    pub fn end(&mut self) {
        self.over = true;
    }

    /// How often the bell rang, once it is over.
    pub fn rung(&self) -> Option<u32> {
        self.over.then_some(self.rung)
    }
}

/// Ledgers of a test; spread over the partitions.
const LEDGERS: usize = 16;
/// How long one call may take while nodes come and go.
const CALL_MAX: Duration = Duration::from_secs(30);

fn app() -> App {
    App::new("ledgers").actor::<Ledger>()
}

fn key(number: usize) -> String {
    format!("ledger-{number}")
}

/// Where an actor's leader is, as a call tells it.
/// Fails to come to life the first time.
#[data]
pub struct Fragile {
    pings: u64,
}

static BROKEN: AtomicBool = AtomicBool::new(true);

impl Default for Fragile {
    fn default() -> Self {
        assert!(!BROKEN.swap(false, Ordering::SeqCst), "not this time");
        Self { pings: 0 }
    }
}

#[actor]
impl Fragile {
    /// Counts.
    pub fn ping(&mut self) -> u64 {
        self.pings += 1;
        self.pings
    }
}

async fn leader_of(cluster: &Cluster, client: &Client, key: &str) -> usize {
    let Detailed { result: sum, node, .. } =
        client.get::<Ledger>(key).sum().timeout(CALL_MAX).detailed().await;
    sum.unwrap();
    cluster.position(&node.expect("an answer tells its node"))
}

/// Adds 1 to a ledger until told to stop; gives what was acknowledged and what may have been applied.
async fn add_until(client: Client, key: String, stop: Arc<AtomicBool>) -> (u64, u64) {
    let (mut acknowledged, mut unknown) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        match client.get::<Ledger>(&key).add(1).timeout(CALL_MAX).await {
            Ok(_) => acknowledged += 1,
            Err(fault) => unknown += u64::from(fault.applied() == Applied::Unknown),
        }
    }
    (acknowledged, unknown)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acknowledged_call_has_run_once_while_every_node_goes_and_returns() {
    let mut cluster = Cluster::started(3, app()).await;
    let client = cluster.client().await;
    let stop = Arc::new(AtomicBool::new(false));
    let adders: Vec<_> =
        (0..LEDGERS).map(|n| tokio::spawn(add_until(client.clone(), key(n), stop.clone()))).collect();
    let other = cluster.client().await;
    let moved = async |client: &Client| {
        // Every ledger answers a write, so nothing waits for a leader any more.
        for n in 0..LEDGERS {
            client.get::<Ledger>(key(n)).sum().timeout(CALL_MAX).await.unwrap();
        }
    };
    for at in [0, 1, 2, 0] {
        moved(&other).await;
        cluster.stop(at).await;
        moved(&other).await;
        cluster.start(at).await;
        cluster.ready().await;
    }
    stop.store(true, Ordering::Relaxed);
    for (n, adder) in adders.into_iter().enumerate() {
        let (acknowledged, unknown) = adder.await.unwrap();
        let sum = other.get::<Ledger>(key(n)).sum().timeout(CALL_MAX).await.unwrap();
        assert!(acknowledged > 0, "{} made no progress", key(n));
        assert!(
            (acknowledged..=acknowledged + unknown).contains(&sum),
            "{}: {acknowledged} acknowledged, {unknown} unknown, sum {sum}",
            key(n)
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_sees_what_was_acknowledged_before_it_also_after_a_failover() {
    let mut cluster = Cluster::started(3, app()).await;
    let writer = cluster.client().await;
    let reader = cluster.client().await;
    let mut sum = 0;
    for _ in 0..3 {
        for _ in 0..5 {
            sum = writer.get::<Ledger>("one").add(1).timeout(CALL_MAX).await.unwrap();
            assert_eq!(reader.get::<Ledger>("one").sum().timeout(CALL_MAX).await, Ok(sum));
        }
        let leader = leader_of(&cluster, &reader, "one").await;
        cluster.stop(leader).await;
        assert_eq!(reader.get::<Ledger>("one").sum().timeout(CALL_MAX).await, Ok(sum));
        for node in cluster.nodes.iter().flatten() {
            assert_eq!(node.get::<Ledger>("one").sum().timeout(CALL_MAX).await, Ok(sum));
        }
        cluster.start(leader).await;
        cluster.ready().await;
    }
    assert_eq!(sum, 15);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_cycle_over_three_nodes_is_answered_at_once_with_its_path() {
    let cluster = Cluster::started(3, app()).await;
    let client = cluster.client().await;
    let mut round = Vec::new();
    let mut nodes = Vec::new();
    for n in 0.. {
        let node = leader_of(&cluster, &client, &key(n)).await;
        if !nodes.contains(&node) {
            nodes.push(node);
            round.push(key(n));
        }
        if round.len() == 3 {
            break;
        }
    }
    let path: Vec<_> = round.iter().chain(&round[..1]).map(|key| format!("Ledger/{key}")).collect();
    let first = client.get::<Ledger>(&round[0]);
    round.rotate_left(1);
    assert_eq!(first.ask(round.clone()).timeout(CALL_MAX).await, Err(Fault::Cycle { path }));
    round.pop();
    assert_eq!(first.ask(round).timeout(CALL_MAX).await, Ok(()), "without coming back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_come_each_once_and_in_order_over_a_failover() {
    let mut cluster = Cluster::started(3, app()).await;
    let client = cluster.client().await;
    let room = client.get::<Ledger>("room");
    let mut events = client.get::<Ledger>("room").events_from(EventsFrom::Start);
    let mut last = 0;
    for round in 0..3 {
        for _ in 0..10 {
            room.add(1).timeout(CALL_MAX).await.unwrap();
        }
        if round < 2 {
            let leader = leader_of(&cluster, &client, "room").await;
            cluster.stop(leader).await;
            // What comes while nobody is there is committed by the next leader.
            room.add(1).timeout(CALL_MAX).await.unwrap();
            cluster.start(leader).await;
            cluster.ready().await;
        }
        let target = (round + 1) * 10 + (round + 1).min(2);
        while last < target {
            let item = tokio::time::timeout(PATIENCE, events.next()).await.expect("the stream goes on");
            let (_, Noted::Sum(sum)) = item.expect("the stream does not end").unwrap();
            assert_eq!(sum, last + 1);
            last = sum;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reminder_fires_once_although_its_leader_has_gone() {
    let mut cluster = Cluster::started(3, app()).await;
    let client = cluster.client().await;
    client.get::<Ledger>("bell").set_bell(1_500).timeout(CALL_MAX).await.unwrap();
    let leader = leader_of(&cluster, &client, "bell").await;
    cluster.stop(leader).await;
    let ledger = client.get::<Ledger>("bell");
    let rung = until("the reminders fire", async || ledger.rung().timeout(CALL_MAX).await.unwrap()).await;
    assert_eq!(rung, 1);
    cluster.start(leader).await;
    cluster.ready().await;
    assert_eq!(ledger.rung().timeout(CALL_MAX).await, Ok(Some(1)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reminders_of_all_nodes_are_listed_in_order_page_by_page_and_cancelled() {
    const HOURS: u64 = 5;
    let mut cluster = Cluster::started(3, app()).await;
    let client = cluster.client().await;
    for n in 0..LEDGERS {
        client.get::<Ledger>(key(n)).plan(HOURS).timeout(CALL_MAX).await.unwrap();
    }
    let all = LEDGERS * (HOURS as usize + 1);
    let listed = async || {
        let mut query = ReminderQuery { limit: 7, ..ReminderQuery::default() };
        let mut listed = Vec::new();
        loop {
            let page = client.reminders(query.clone()).await.unwrap();
            assert!(page.reminders.len() <= 7);
            listed.extend(page.reminders);
            if !page.more {
                return listed;
            }
            query.after = listed.last().map(|last| (last.due, last.actor.clone(), last.name.clone()));
        }
    };
    let found = listed().await;
    assert_eq!(found.len(), all);
    let keys: Vec<_> = found.iter().map(|r| (r.due, r.actor.clone(), r.name.clone())).collect();
    assert!(keys.is_sorted() && keys.windows(2).all(|two| two[0] != two[1]));

    let actor = found[0].actor.clone();
    assert_eq!(client.cancel_reminder(actor.clone(), "hour-3").await, Ok(true));
    assert_eq!(client.cancel_reminder(actor.clone(), "hour-3").await, Ok(false));
    let leader = leader_of(&cluster, &client, actor.key()).await;
    cluster.stop(leader).await;
    assert_eq!(client.cancel_reminder(actor.clone(), "hour-4").await, Ok(true));
    let own = ReminderQuery { actor: Some(actor.clone()), limit: 100, ..ReminderQuery::default() };
    let names = |reminders: Vec<perennial::status::Reminder>| {
        reminders.into_iter().map(|r| r.name).collect::<Vec<_>>()
    };
    let page = client.reminders(own.clone()).await.unwrap();
    assert_eq!(names(page.reminders), ["hour-0", "hour-1", "hour-2", "always"]);
    let soon = ReminderQuery { due_before: Some(found[0].due.plus(1)), ..own };
    assert_eq!(names(client.reminders(soon).await.unwrap().reminders), ["hour-0"]);
    // A node answers as well, for all of them.
    let rest =
        cluster.node((leader + 1) % 3).reminders(ReminderQuery { limit: 1000, ..ReminderQuery::default() });
    assert_eq!(rest.await.unwrap().reminders.len(), all - 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minority_refuses_writes_and_reads_and_serves_again_when_the_others_are_back() {
    /// Long, so that an answer that comes is not that of the deadline.
    const DEADLINE: Duration = Duration::from_secs(50);
    let mut cluster = Cluster::started(3, app()).await;
    let client = cluster.client().await;
    for n in 0..LEDGERS {
        client.get::<Ledger>(key(n)).add(1).timeout(CALL_MAX).await.unwrap();
    }
    cluster.stop(1).await;
    cluster.stop(2).await;
    // Before, it may take a write as the leader it was: the outcome of that is not known.
    until("the node leads nothing", async || {
        cluster.node(0).ready().err().filter(|why| why.starts_with("8 of 8 partitions have no leader"))
    })
    .await;
    let late = cluster.client().await;
    let refused = |fault: Fault| {
        let text = fault.to_string();
        assert!(matches!(fault, Fault::Unavailable { .. }), "{text}");
        assert!(text.contains("a majority is needed") && text.contains("n2 and n3"), "{text}");
        assert_eq!(fault.applied(), Applied::No);
    };
    for n in 0..LEDGERS {
        let here = cluster.node(0).get::<Ledger>(key(n));
        refused(here.add(1).timeout(DEADLINE).await.unwrap_err());
        refused(here.sum().timeout(DEADLINE).await.unwrap_err());
        for client in [&client, &late] {
            refused(client.get::<Ledger>(key(n)).add(1).timeout(DEADLINE).await.unwrap_err());
            refused(client.get::<Ledger>(key(n)).sum().timeout(DEADLINE).await.unwrap_err());
        }
    }
    let why = cluster.node(0).ready().unwrap_err();
    assert!(why.contains("not reached: n2, n3"), "{why}");
    cluster.start(1).await;
    cluster.ready().await;
    for n in 0..LEDGERS {
        assert_eq!(
            client.get::<Ledger>(key(n)).add(1).timeout(CALL_MAX).await,
            Ok(2),
            "refused is not applied"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_outside_a_handler_does_not_take_the_partition_away() {
    let cluster = Cluster::started(3, app().actor::<Fragile>()).await;
    let client = cluster.client().await;
    let fragile = client.get::<Fragile>("f");
    // Whether this call is told of it or not, it has not run.
    let first = fragile.ping().timeout(PATIENCE).await;
    let second = fragile.ping().timeout(PATIENCE).await;
    let expected = if first.is_ok() { (Ok(1), Ok(2)) } else { (first.clone(), Ok(1)) };
    assert_eq!((first, second), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_link_can_carry_is_refused_at_once_and_named() {
    /// More than a frame.
    const TOO_MUCH: usize = 2 << 20;
    let cluster = Cluster::started(3, App::new("notes").actor::<Note>()).await;
    let client = cluster.client().await;
    let fault = client.get::<Note>("big").write("x".repeat(TOO_MUCH)).timeout(CALL_MAX).await.unwrap_err();
    assert!(matches!(fault, Fault::TooLarge { .. }), "{fault}");
    let fault = client.get::<Note>("big").repeated(TOO_MUCH as u32).timeout(CALL_MAX).await.unwrap_err();
    assert!(matches!(fault, Fault::TooLarge { .. }) && fault.to_string().contains("the answer"), "{fault}");
    assert_eq!(client.get::<Note>("big").repeated(3).timeout(CALL_MAX).await, Ok("xxx".to_owned()));
}

/// A text.
#[data]
#[derive(Default)]
pub struct Note {
    text: String,
}

#[actor]
impl Note {
    /// Replaces it.
    pub fn write(&mut self, text: String) {
        self.text = text;
    }

    /// As many x.
    pub fn repeated(&self, count: u32) -> String {
        "x".repeat(count as usize)
    }
}
