//! Stateless workers: where their calls run, how many, and what is repeated.

#![expect(missing_docs, reason = "actors of this test")]

use std::collections::BTreeMap;
use std::future::IntoFuture;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use perennial::actor::{Answer, Args};
use perennial::call::Outbound;
use perennial::options::Balance;
use perennial::prelude::*;
use perennial::testing::{TestApp, TestCluster};
use perennial::{Fault, Format};

static MADE: AtomicUsize = AtomicUsize::new(0);

/// A worker. What it holds lives as long as it.
#[data]
#[derive(Default)]
pub struct Resizer {
    #[serde(skip)]
    prefix: String,
}

#[data]
#[derive(Eq)]
pub struct TooWide(u32);

#[actor(stateless, concurrency = 4)]
impl Resizer {
    #[activated]
    fn load(&mut self) {
        MADE.fetch_add(1, Ordering::Relaxed);
        self.prefix = "resized".into();
    }

    pub async fn resize(&self, name: String, width: u32) -> Result<String, TooWide> {
        tokio::task::yield_now().await;
        if width > 1000 { Err(TooWide(width)) } else { Ok(format!("{} {name} to {width}", self.prefix)) }
    }

    pub fn name(&self, ctx: &Ctx<Self>) -> String {
        ctx.key().to_owned()
    }

    pub async fn nap(&self, ms: u64) {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }

    pub async fn count(&self, ctx: &Ctx<Self>, counter: String) -> Result<u64, Fault> {
        ctx.get::<Counter>(&counter).add().await
    }

    pub fn blow_up(&self) {
        panic!("it tore");
    }
}

#[data]
#[derive(Default)]
pub struct Counter(u64);

#[actor]
impl Counter {
    pub fn add(&mut self) -> u64 {
        self.0 += 1;
        self.0
    }

    pub async fn ask(&mut self, ctx: &mut Ctx<Self>) -> Result<String, Fault> {
        self.0 += 1;
        ctx.pool::<Resizer>().name().await
    }

    pub async fn add_there(&self, ctx: &Ctx<Self>, other: String) -> Result<u64, Fault> {
        ctx.get::<Self>(&other).add().await
    }

    pub async fn have_it_added(&self, ctx: &Ctx<Self>, other: String) -> Result<u64, Fault> {
        ctx.pool::<Resizer>().count(other).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_read_changes_nothing_anywhere() {
    let app = TestApp::new(app()).await;
    let (one, two) = (app.get::<Counter>("one"), app.get::<Counter>("two"));
    for refused in [one.add_there("two".into()).await, one.have_it_added("two".into()).await] {
        let fault = refused.unwrap_err();
        assert!(
            matches!(&fault, Fault::NotARead { kind, method } if kind == "Counter" && method == "add"),
            "{fault}"
        );
    }
    assert_eq!(two.add().await, Ok(1), "neither came there");
}

/// Runs by key of the call that held them.
static RUNS: Mutex<BTreeMap<String, usize>> = Mutex::new(BTreeMap::new());

macro_rules! worker {
    ($name:ident, $($options:tt)*) => {
        #[data]
        #[derive(Default)]
        pub struct $name;

        #[actor(stateless, $($options)*)]
        impl $name {
            pub async fn work(&self, ctx: &Ctx<Self>, ms: u64) {
                *RUNS.lock().unwrap().entry(ctx.id().to_string()).or_default() += 1;
                tokio::time::sleep(Duration::from_millis(ms)).await;
            }
        }
    };
}

worker!(Turns, balance = "round_robin");
worker!(Keyed, balance = "by_key");
worker!(Least, balance = "least_in_flight");
worker!(Heavy, balance = "weighted");
worker!(Again, balance = "by_key", idempotent);
worker!(One, balance = "by_key", concurrency = 1);

fn app() -> App {
    let app = App::new("workers").actor::<Resizer>().actor::<Counter>().actor::<Turns>();
    app.actor::<Keyed>().actor::<Least>().actor::<Heavy>().actor::<Again>().actor::<One>()
}

fn runs(id: &str) -> usize {
    RUNS.lock().unwrap().get(id).copied().unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn workers_answer_fail_and_call_actors() {
    let app = TestApp::new(app()).await;
    let resizer = app.pool::<Resizer>();
    assert_eq!(resizer.resize("cat.png".into(), 80).await, Ok("resized cat.png to 80".into()));
    assert_eq!(resizer.resize("cat.png".into(), 8000).await, Err(CallError::App(TooWide(8000))));
    assert_eq!(app.get::<Resizer>("mine").name().await, Ok("mine".into()));
    assert_eq!(resizer.count("c".into()).await, Ok(1));
    assert_eq!(resizer.count("c".into()).await, Ok(2), "each call is one of its own");
    assert_eq!(app.get::<Counter>("c").ask().await, Ok("any".into()), "actors call workers");
    let fault = resizer.blow_up().await.unwrap_err();
    assert!(matches!(fault, Fault::Panicked { .. }), "{fault}");
    assert_eq!(resizer.name().await, Ok("any".into()));
    assert_eq!(app.activations(), 1, "a worker is no activation: {}", app.activations());
}

#[tokio::test(start_paused = true)]
async fn a_pool_has_so_many_places_and_uses_its_workers_again() {
    let app = TestApp::new(app()).await;
    let before = MADE.load(Ordering::Relaxed);
    let nap = || tokio::spawn(app.pool::<Resizer>().nap(500).into_future());
    let naps: Vec<_> = (0..6).map(|_| nap()).collect();
    let ended: Vec<_> = join_all(naps).await.into_iter().map(Result::unwrap).collect();
    let refused: Vec<_> = ended.iter().filter_map(|ended| ended.as_ref().err()).collect();
    assert_eq!(refused.len(), 2, "{ended:?}");
    let text = "the pool of workers of Resizer on node test is full (4); try again later";
    assert_eq!(refused[0].to_string(), text);
    join_all((0..4).map(|_| nap())).await;
    assert!(MADE.load(Ordering::Relaxed) - before <= 4 + 4, "workers are used again");
}

#[tokio::test(start_paused = true)]
async fn a_deadline_ends_the_work_and_frees_its_place() {
    let app = TestApp::new(app()).await;
    for _ in 0..8 {
        let late = app.pool::<Resizer>().nap(60_000).timeout(Duration::from_millis(50)).await.unwrap_err();
        assert!(matches!(late, Fault::TimedOut { .. }), "{late}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_untyped_call_finds_the_pool_too_and_the_handler_is_checked() {
    let app = TestApp::new(app()).await;
    let call = |method: &str, args: &str| {
        let call = Outbound {
            target: "Resizer/x".parse().unwrap(),
            method: method.to_owned(),
            args: Args { format: Format::Json, bytes: args.to_owned().into() },
            request: None,
            keyed: false,
            read_only: true,
            stale: None,
            path: Vec::new(),
            deadline: tokio::time::Instant::now().into_std() + Duration::from_secs(5),
        };
        app.caller().call(call)
    };
    let answered = call("resize", r#"{"name": "a", "width": 3}"#).await;
    assert_eq!(answered.answer, Answer::Ok("\"resized a to 3\"".into()));
    assert!(matches!(call("squeeze", "{}").await.answer, Answer::Fault(Fault::UnknownMethod { .. })));
    assert!(matches!(call("nap", "{}").await.answer, Answer::Fault(Fault::BadArguments { .. })));
}

/// Which nodes answer so many calls, one after the other.
async fn nodes<F, T, X>(count: usize, call: impl Fn() -> F) -> BTreeMap<String, usize>
where
    F: Future<Output = perennial::Detailed<T, X>>,
    T: std::fmt::Debug,
    X: std::fmt::Debug,
{
    let mut nodes = BTreeMap::new();
    for _ in 0..count {
        let detailed = call().await;
        detailed.result.expect("an answer");
        *nodes.entry(detailed.node.expect("a node ran it").to_string()).or_default() += 1;
    }
    nodes
}

#[tokio::test]
async fn calls_are_spread_as_the_kind_says() {
    let cluster = TestCluster::start(3, app()).await;
    let each = |n: usize| BTreeMap::from(["n1", "n2", "n3"].map(|node| (node.to_owned(), n)));
    assert_eq!(nodes(9, || cluster.pool::<Turns>().work(0).detailed()).await, each(3));
    assert_eq!(nodes(9, || cluster.pool::<Heavy>().work(0).detailed()).await, each(3), "weights are equal");
    assert_eq!(nodes(9, || cluster.pool::<Least>().work(0).detailed()).await, each(3), "ties go round");
    for key in ["a", "b", "c"] {
        let answered = nodes(5, || cluster.get::<Keyed>(key).work(0).detailed()).await;
        assert_eq!(answered.len(), 1, "one key, one node");
    }
}

#[tokio::test]
async fn a_node_that_is_gone_is_left_out() {
    let cluster = TestCluster::start(3, app()).await;
    cluster.kill(2);
    let answered = nodes(12, || cluster.pool::<Turns>().work(0).detailed()).await;
    assert_eq!(answered.get("n2"), None);
    assert_eq!(answered.values().sum::<usize>(), 12);
    cluster.restart(2).await;
}

#[tokio::test]
async fn a_full_pool_is_no_end_while_another_node_has_room() {
    let cluster = TestCluster::start(3, app()).await;
    let calls = (0..3).map(|_| tokio::spawn(cluster.get::<One>("same").work(300).detailed()));
    let ended = join_all(calls.collect::<Vec<_>>()).await;
    let mut nodes: Vec<_> = ended
        .into_iter()
        .map(|ended| {
            let detailed = ended.unwrap();
            detailed.result.expect("one of the three has room");
            detailed.node.unwrap().to_string()
        })
        .collect();
    nodes.sort();
    assert_eq!(nodes, ["n1", "n2", "n3"]);
}

/// The node that runs a call right now, whose work is long.
async fn begun(id: &str, times: usize) {
    while runs(id) < times {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn a_call_that_may_have_run_is_made_again_only_if_its_kind_is_idempotent() {
    let cluster = TestCluster::start(3, app()).await;
    let first = |answered: BTreeMap<String, usize>| -> usize {
        answered.keys().next().and_then(|node| node[1..].parse().ok()).expect("n1 to n3")
    };
    // By key, so it is known who runs it.
    let node = first(nodes(1, || cluster.get::<Keyed>("once").work(0).detailed()).await);
    let call = tokio::spawn(
        cluster.get::<Keyed>("once").work(20_000).timeout(Duration::from_secs(30)).into_future(),
    );
    begun("Keyed/once", 2).await;
    cluster.kill(node);
    let fault = call.await.unwrap().unwrap_err();
    assert!(matches!(fault, Fault::OutcomeUnknown { .. }), "{fault}");
    assert_eq!(runs("Keyed/once"), 2, "it was not made again");
    cluster.restart(node).await;

    let node = first(nodes(1, || cluster.get::<Again>("twice").work(0).detailed()).await);
    let call =
        tokio::spawn(cluster.get::<Again>("twice").work(1000).timeout(Duration::from_secs(30)).into_future());
    begun("Again/twice", 2).await;
    cluster.kill(node);
    assert_eq!(call.await.unwrap(), Ok(()));
    assert_eq!(runs("Again/twice"), 3, "another node has run it");
    assert_eq!(<Again as Actor>::OPTIONS.pool.map(|pool| pool.balance), Some(Balance::ByKey));
}
