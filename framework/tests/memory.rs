//! Actors that leave memory and come back, the hooks that tell of it, and limits of a kind.

#![expect(missing_docs, reason = "actors of this test")]

use std::collections::BTreeMap;
use std::future::IntoFuture;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use perennial::Fault;
use perennial::limits::{
    ACTIVATION_BYTES, IDLE_MS_MAX, PARTITION_CALLS_MAX, RECORD_BYTES_MAX, STATE_BYTES_MAX,
};
use perennial::prelude::*;
use perennial::testing::{TestApp, TestCluster};

/// Which hooks have run, by key.
static HOOKS: Mutex<BTreeMap<String, Vec<&'static str>>> = Mutex::new(BTreeMap::new());

fn note(key: &str, hook: &'static str) {
    HOOKS.lock().unwrap().entry(key.to_owned()).or_default().push(hook);
}

fn noted(key: &str) -> Vec<&'static str> {
    HOOKS.lock().unwrap().get(key).cloned().unwrap_or_default()
}

#[data]
#[derive(Default)]
pub struct Counter {
    sum: u64,
    text: String,
}

#[actor]
impl Counter {
    pub fn add(&mut self, n: u64) -> u64 {
        self.sum += n;
        self.sum
    }

    pub fn sum(&self) -> u64 {
        self.sum
    }

    pub fn write(&mut self, bytes: u32) {
        self.text = "x".repeat(bytes as usize);
    }

    pub async fn nap(&mut self, ms: u64) -> u64 {
        tokio::time::sleep(Duration::from_millis(ms)).await;
        self.sum += 1;
        self.sum
    }

    pub fn send_add(&mut self, ctx: &mut Ctx<Self>, to: String, n: u64) {
        ctx.send(ctx.get::<Self>(&to).add(n));
    }
}

/// An actor whose words are stored and whose index is made anew.
#[data]
#[derive(Default)]
pub struct Index {
    words: Vec<String>,
    #[serde(skip)]
    by_word: BTreeMap<String, u32>,
    wakes: u32,
}

#[data]
#[derive(Eq)]
pub struct Refused;

#[actor]
impl Index {
    #[activated]
    fn build(&mut self, ctx: &Ctx<Self>) {
        note(ctx.key(), "activated");
        assert!(ctx.key() != "broken", "its index cannot be built");
        self.wakes += 1;
        for (at, word) in self.words.iter().enumerate() {
            self.by_word.insert(word.clone(), at as u32);
        }
    }

    #[passivating]
    fn goes(&self, ctx: &Ctx<Self>) {
        note(ctx.key(), "passivating");
        assert!(ctx.key() != "stuck", "it does not want to go");
    }

    pub fn put(&mut self, word: String) -> u32 {
        let at = self.words.len() as u32;
        self.by_word.insert(word.clone(), at);
        self.words.push(word);
        at
    }

    pub fn touch(&mut self) {}

    pub fn fail(&mut self) -> Result<(), Refused> {
        self.by_word.clear();
        Err(Refused)
    }

    pub fn find(&self, word: String) -> Option<u32> {
        self.by_word.get(&word).copied()
    }

    pub async fn find_later(&self, word: String) -> Option<u32> {
        tokio::task::yield_now().await;
        self.by_word.get(&word).copied()
    }

    pub fn wakes(&self) -> u32 {
        self.wakes
    }
}

#[data]
#[derive(Default)]
pub struct Small {
    text: String,
}

static RAN: AtomicUsize = AtomicUsize::new(0);

#[actor(mailbox = 2, state_bytes = "1KiB", record_bytes = "2KiB", concurrency = 3)]
impl Small {
    pub fn write(&mut self, bytes: u32) {
        self.text = "x".repeat(bytes as usize);
    }

    pub fn echo(&mut self, bytes: u32) -> String {
        self.text.push('x');
        "y".repeat(bytes as usize)
    }

    pub async fn hold(&mut self, ms: u64) {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }

    pub async fn look(&self, ms: u64) -> usize {
        tokio::time::sleep(Duration::from_millis(ms)).await;
        self.text.len()
    }

    pub async fn count(&mut self) {
        RAN.fetch_add(1, Ordering::Relaxed);
        self.text.push('z');
    }
}

async fn app_within(bytes: u64) -> TestApp {
    TestApp::with_memory(App::new("memory").actor::<Counter>().actor::<Index>().actor::<Small>(), bytes).await
}

async fn app() -> TestApp {
    app_within(1 << 20).await
}

/// Touches so many counters, in order.
async fn touch(app: &TestApp, keys: std::ops::Range<u32>) {
    for key in keys {
        app.get::<Counter>(key.to_string()).add(1).await.unwrap();
    }
}

/// Its limits are those of everybody.
#[data]
#[derive(Default)]
pub struct Unlimited;

#[actor(mailbox = 16_384, state_bytes = "384KiB", record_bytes = "512KiB", concurrency = 16_384)]
impl Unlimited {}

#[test]
fn a_limit_of_a_kind_can_be_as_high_as_that_of_everybody() {
    let limits = <Unlimited as Actor>::OPTIONS.limits;
    assert_eq!(u64::from(limits.mailbox), PARTITION_CALLS_MAX);
    assert_eq!(limits.concurrency.map(u64::from), Some(PARTITION_CALLS_MAX));
    assert_eq!(
        (limits.state_bytes as usize, limits.record_bytes as usize),
        (STATE_BYTES_MAX, RECORD_BYTES_MAX)
    );
}

#[tokio::test(start_paused = true)]
async fn a_budget_keeps_memory_bounded_and_loses_nothing() {
    let budget = 100 * ACTIVATION_BYTES;
    let app = app_within(budget).await;
    for round in 1..=3 {
        for key in 0..500 {
            assert_eq!(app.get::<Counter>(key.to_string()).add(1).await, Ok(round));
            let used = app.resident_bytes();
            assert!(used <= budget + budget / 8 + ACTIVATION_BYTES * 2, "{used} bytes of {budget}");
        }
    }
    assert!(app.resident() < 120, "{} are in memory", app.resident());
    assert!(app.activations() > 1200, "they came back {} times", app.activations());
}

#[tokio::test(start_paused = true)]
async fn those_used_longest_ago_leave_first_whatever_their_partition() {
    let app = app_within(52 * (ACTIVATION_BYTES + 100)).await;
    touch(&app, 0..40).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    touch(&app, 0..10).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    touch(&app, 100..135).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = app.activations();
    for key in 0..10 {
        assert_eq!(app.get::<Counter>(key.to_string()).sum().await, Ok(2));
    }
    assert_eq!(app.activations(), before, "what was used again has stayed");
    for key in 10..25 {
        assert_eq!(app.get::<Counter>(key.to_string()).sum().await, Ok(1));
    }
    assert!(app.activations() >= before + 10, "what was not has gone: {}", app.activations() - before);
}

#[tokio::test(start_paused = true)]
async fn an_actor_in_a_turn_or_with_one_waiting_stays() {
    let app = app_within(ACTIVATION_BYTES).await;
    let busy = app.get::<Counter>("busy");
    let napping = tokio::spawn(busy.nap(500).into_future());
    tokio::time::sleep(Duration::from_millis(1)).await;
    let waiting = tokio::spawn(busy.add(10).into_future());
    tokio::time::sleep(Duration::from_millis(1)).await;
    for key in 0..50 {
        // With nobody else who could go, new ones are refused sooner or later, and say what is full.
        if let Err(fault) = app.get::<Counter>(key.to_string()).add(1).await {
            assert!(matches!(&fault, Fault::Overloaded { what, .. } if what == "the memory for actors"));
            assert!(fault.retryable());
        }
    }
    assert_eq!(napping.await.unwrap(), Ok(1));
    assert_eq!(waiting.await.unwrap(), Ok(11));
}

#[tokio::test(start_paused = true)]
async fn messages_arrive_though_there_is_no_room_for_their_receivers() {
    let app = app_within(ACTIVATION_BYTES).await;
    for n in 0..30_u32 {
        while let Err(fault) = app.get::<Counter>("from").send_add(format!("to{}", n % 7), 1).await {
            assert!(fault.retryable(), "{fault}");
            app.advance(Duration::from_millis(10)).await;
        }
    }
    app.settle().await;
    let mut total = 0;
    for n in 0..7 {
        total += app.get::<Counter>(format!("to{n}")).sum().await.unwrap();
    }
    assert_eq!(total, 30);
}

#[tokio::test(start_paused = true)]
async fn a_state_that_grows_is_counted() {
    let app = app().await;
    let one = app.get::<Counter>("one");
    one.add(1).await.unwrap();
    let before = app.resident_bytes();
    one.write(100_000).await.unwrap();
    assert!(app.resident_bytes() >= before + 200_000);
    one.write(0).await.unwrap();
    assert_eq!(app.resident_bytes(), before);
    app.advance(Duration::from_millis(IDLE_MS_MAX + 60_000)).await;
    assert_eq!((app.resident(), app.resident_bytes()), (0, 0), "idle ones leave, and nothing is left");
    assert_eq!(one.sum().await, Ok(1));
}

#[tokio::test(start_paused = true)]
async fn hooks_run_when_a_state_comes_and_when_it_goes() {
    let app = app().await;
    let index = app.get::<Index>("words");
    assert_eq!(index.put("tea".into()).await, Ok(0));
    assert_eq!(index.put("milk".into()).await, Ok(1));
    assert_eq!(noted("words"), ["activated"]);
    app.advance(Duration::from_millis(IDLE_MS_MAX + 60_000)).await;
    assert_eq!(noted("words"), ["activated", "passivating"]);
    assert_eq!(index.find("milk".into()).await, Ok(Some(1)), "the index is there again");
    assert_eq!(noted("words"), ["activated", "passivating", "activated"]);
    assert_eq!(index.find_later("milk".into()).await, Ok(Some(1)), "on a copy for an async read too");
    assert!(index.fail().await.is_err());
    assert_eq!(index.find("tea".into()).await, Ok(Some(0)), "and after a turn that was undone");
}

#[tokio::test(start_paused = true)]
async fn what_a_hook_changes_is_stored_with_the_next_turn_and_not_by_itself() {
    let app = app().await;
    let index = app.get::<Index>("changes");
    assert_eq!(index.wakes().await, Ok(1), "a read sees it");
    app.advance(Duration::from_millis(IDLE_MS_MAX + 60_000)).await;
    assert_eq!(index.wakes().await, Ok(1), "it was not stored");
    index.touch().await.unwrap();
    app.advance(Duration::from_millis(IDLE_MS_MAX + 60_000)).await;
    assert_eq!(index.wakes().await, Ok(2), "now it was");
}

#[tokio::test(start_paused = true)]
async fn a_hook_that_panics_fails_the_call_or_nothing() {
    let app = app().await;
    for _ in 0..2 {
        let fault = app.get::<Index>("broken").put("tea".into()).await.unwrap_err();
        let Fault::Panicked { method, message, .. } = fault else { panic!("{fault}") };
        assert_eq!((method.as_str(), message.as_str()), ("activated", "its index cannot be built"));
    }
    assert_eq!(noted("broken"), ["activated"; 2], "each call tries again");
    let stuck = app.get::<Index>("stuck");
    assert_eq!(stuck.put("tea".into()).await, Ok(0));
    app.advance(Duration::from_millis(IDLE_MS_MAX + 60_000)).await;
    assert_eq!(app.resident(), 0, "it goes all the same");
    assert_eq!(stuck.find("tea".into()).await, Ok(Some(0)));
}

#[tokio::test(start_paused = true)]
async fn a_kind_has_limits_of_its_own() {
    let app = app().await;
    let small = app.get::<Small>("small");
    small.write(1000).await.unwrap();
    let fault = small.write(2000).await.unwrap_err();
    assert!(matches!(&fault, Fault::TooLarge { limit: 1024, at, .. } if at == "Small/small"), "{fault}");
    let fault = small.echo(3000).await.unwrap_err();
    assert!(matches!(&fault, Fault::TooLarge { limit: 2048, .. }), "{fault}");
    // One runs, two wait, the next is refused.
    let held: Vec<_> = (0..3).map(|_| tokio::spawn(small.hold(1000).into_future())).collect();
    tokio::time::sleep(Duration::from_millis(1)).await;
    let fault = small.hold(1).await.unwrap_err();
    assert_eq!(fault.to_string(), "the mailbox of Small/small is full (2); try again later");
    for hold in held {
        hold.await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn so_many_async_turns_of_a_kind_run_at_a_time() {
    let app = app().await;
    let run: Vec<_> = (0..5)
        .map(|n| {
            let small = app.get::<Small>(format!("s{n}"));
            tokio::spawn(async move {
                if n < 2 { small.hold(500).await } else { small.look(500).await.map(drop) }
            })
        })
        .collect();
    let ended: Vec<_> = join_all(run).await.into_iter().map(Result::unwrap).collect();
    let refused: Vec<_> = ended.iter().filter_map(|ended| ended.as_ref().err()).collect();
    assert_eq!(refused.len(), 2, "{ended:?}");
    assert_eq!(refused[0].to_string(), "the concurrency of Small on node test is full (3); try again later");
    assert_eq!(app.get::<Small>("s0").look(1).await, Ok(0), "places come back");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_waits_past_its_deadline_does_not_run() {
    let app = app().await;
    let small = app.get::<Small>("late");
    let holding = tokio::spawn(small.hold(5000).into_future());
    tokio::time::sleep(Duration::from_millis(1)).await;
    let before = RAN.load(Ordering::Relaxed);
    let late = small.count().timeout(Duration::from_millis(100)).await.unwrap_err();
    assert!(matches!(late, Fault::TimedOut { .. }), "{late}");
    // It gives its place in the mailbox to those who still wait.
    let _ = small.count().timeout(Duration::from_millis(100)).await;
    let waiting = tokio::spawn(small.count().into_future());
    holding.await.unwrap().unwrap();
    waiting.await.unwrap().unwrap();
    assert_eq!(RAN.load(Ordering::Relaxed), before + 1);
    assert_eq!(small.look(1).await, Ok(1));
}

/// Says when it is dropped.
static DROPPED: AtomicBool = AtomicBool::new(false);

struct Flag;

impl Drop for Flag {
    fn drop(&mut self) {
        DROPPED.store(true, Ordering::Relaxed);
    }
}

#[data]
#[derive(Default)]
pub struct Chain;

#[actor]
impl Chain {
    pub async fn ask(&mut self, ctx: &mut Ctx<Self>, depth: u32) -> Result<u64, Fault> {
        if depth == 0 {
            let _flag = Flag;
            tokio::time::sleep(Duration::from_secs(50)).await;
            return Ok(0);
        }
        // Its own time-out is far longer than that of whoever asks.
        let next = ctx.get::<Self>(format!("link{depth}"));
        next.ask(depth - 1).timeout(Duration::from_secs(60)).await
    }
}

#[tokio::test]
async fn a_deadline_travels_over_nodes_and_ends_the_work() {
    let cluster = TestCluster::start(3, App::new("chain").actor::<Chain>()).await;
    let chain = cluster.get::<Chain>("first");
    let fault = chain.ask(3).timeout(Duration::from_millis(1500)).await.unwrap_err();
    assert!(matches!(fault, Fault::TimedOut { .. }), "{fault}");
    // The innermost turn, three calls further, ends at the same time and not after its own 50 seconds.
    tokio::time::timeout(Duration::from_secs(20), async {
        while !DROPPED.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("the work ends");
}

#[tokio::test]
async fn a_cluster_with_little_memory_loses_nothing_when_nodes_are_killed() {
    let app = App::new("memory").actor::<Counter>();
    let cluster = TestCluster::builder(app).memory(20 * ACTIVATION_BYTES).start().await;
    let add_all = async |expected: u64| {
        for key in 0..60 {
            let counter = cluster.get::<Counter>(format!("k{key}"));
            loop {
                match counter.add(1).await {
                    Ok(sum) => break assert_eq!(sum, expected, "k{key}"),
                    Err(fault) => assert!(fault.retryable(), "{fault}"),
                }
            }
        }
    };
    add_all(1).await;
    let owner = cluster.owner::<Counter>("k0").await;
    cluster.kill(owner);
    add_all(2).await;
    cluster.restart(owner).await;
    add_all(3).await;
}
