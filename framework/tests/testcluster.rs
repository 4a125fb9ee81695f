//! The test cluster: what it does to nodes, and that these keep what they promise meanwhile.

use std::future::IntoFuture;
use std::time::Duration;

use futures_util::future::join_all;
use perennial::prelude::*;
use perennial::testing::TestCluster;
use perennial::{Detailed, Map};

/// Counts, also for others.
#[data]
#[derive(Default)]
pub struct Counter {
    value: i64,
    fired: u32,
}

#[actor]
impl Counter {
    /// Adds, and returns the sum.
    pub fn add(&mut self, n: i64) -> i64 {
        self.value += n;
        self.value
    }

    /// Adds, and has the next one in a row of `more` add as well.
    pub fn pass(&mut self, ctx: &mut Ctx<Self>, n: i64, more: u32) {
        self.value += n;
        if more > 0 {
            ctx.send(ctx.get::<Self>(format!("{}-", ctx.key())).pass(n, more - 1));
        }
    }

    /// Has it fire once after some time, and after the same time again.
    pub fn remind(&mut self, ctx: &mut Ctx<Self>, seconds: u64) {
        ctx.schedule("fire", Duration::from_secs(seconds), ctx.me().fire(seconds));
    }

    /// Fires.
    pub fn fire(&mut self, ctx: &mut Ctx<Self>, seconds: u64) {
        self.fired += 1;
        ctx.schedule("fire", Duration::from_secs(seconds), ctx.me().fire(seconds));
    }

    /// How often it has fired.
    pub fn fired(&self) -> u32 {
        self.fired
    }

    /// The sum.
    pub fn value(&self) -> i64 {
        self.value
    }

    /// The sum, as any node knows it.
    #[read(stale = "1h")]
    pub fn about(&self) -> i64 {
        self.value
    }

    /// The sum, and what the other one is about.
    pub async fn both(&self, ctx: &Ctx<Self>, other: String) -> Reply<(i64, i64), String> {
        Ok((self.value, ctx.get::<Self>(&other).value().await?))
    }
}

fn app() -> App {
    App::new("test").actor::<Counter>()
}

/// Longer than any call should take, however busy the machine is.
const LONG: Duration = Duration::from_secs(50);

#[tokio::test]
async fn calls_reach_the_owner_in_clusters_of_any_size() {
    for nodes in [1, 3, 5] {
        let cluster = TestCluster::start(nodes, app()).await;
        assert_eq!(cluster.nodes().len(), nodes);
        let owner = cluster.owner::<Counter>("a").await;
        let Detailed { result: added, node, .. } = cluster.get::<Counter>("a").add(2).detailed().await;
        assert_eq!(added, Ok(2));
        assert_eq!(node.unwrap().as_str(), format!("n{owner}"));
        cluster.kill(owner);
        cluster.restart(owner).await;
        assert_eq!(cluster.get::<Counter>("a").add(2).timeout(LONG).await, Ok(4));
        cluster.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_answered_outlives_every_node() {
    let cluster = TestCluster::builder(app()).partitions(2).seed(1).start().await;
    let counter = cluster.get::<Counter>("a");
    for n in 1..=6 {
        let owner = cluster.owner::<Counter>("a").await;
        if n % 2 == 0 {
            cluster.kill(owner)
        } else {
            cluster.cut_power(owner)
        }
        assert_eq!(counter.add(1).timeout(LONG).await, Ok(n));
        assert_ne!(cluster.owner::<Counter>("a").await, owner);
        cluster.restart(owner).await;
    }
    cluster.nodes().into_iter().for_each(|node| cluster.cut_power(node));
    cluster.restart_all().await;
    assert_eq!(counter.value().timeout(LONG).await, Ok(6));
    assert_eq!(cluster.client().await.get::<Counter>("a").add(1).timeout(LONG).await, Ok(7));
}

#[tokio::test]
async fn calls_under_way_are_carried_out_once_when_the_owner_ends() {
    let cluster = TestCluster::start(3, app()).await;
    for end in [TestCluster::kill, TestCluster::cut_power] {
        let owner = cluster.owner::<Counter>("a").await;
        let before = cluster.get::<Counter>("a").value().timeout(LONG).await.unwrap();
        let calls = join_all((0..50).map(|_| cluster.get::<Counter>("a").add(1).timeout(LONG).into_future()));
        let first = cluster.client().await;
        let ends = async {
            first.get::<Counter>("a").add(1).timeout(LONG).await.unwrap();
            end(&cluster, owner);
        };
        let (answers, ()) = tokio::join!(calls, ends);
        let mut answers: Vec<_> = answers.into_iter().map(Result::unwrap).collect();
        answers.sort_unstable();
        answers.dedup();
        assert_eq!(answers.len(), 50, "no two calls have the same answer");
        assert_eq!(cluster.get::<Counter>("a").value().timeout(LONG).await, Ok(before + 51));
        cluster.restart(owner).await;
    }
}

#[tokio::test]
async fn a_minority_refuses_while_the_majority_serves() {
    let cluster = TestCluster::start(3, app()).await;
    let owner = cluster.owner::<Counter>("a").await;
    let apart = cluster.pick(&cluster.others(&[owner]));
    let beside = cluster.client_on(&[apart]).await;
    cluster.isolate(apart);
    let refused = beside.get::<Counter>("a").add(1).timeout(LONG).await;
    assert!(matches!(&refused, Err(Fault::Unavailable { .. })), "{refused:?}");
    assert_eq!(cluster.get::<Counter>("a").add(1).timeout(LONG).await, Ok(1));
    cluster.heal().await;
    assert_eq!(beside.get::<Counter>("a").add(1).timeout(LONG).await, Ok(2));
}

/// Longer than any test takes.
const HOUR: Duration = Duration::from_secs(3600);

/// Reads until a certain node has answered, or any other than that one; it takes a second until a node
/// knows how old its rows are.
async fn read_at(counter: &CounterRef, node: usize, is: bool) -> Detailed<i64, Fault> {
    loop {
        let read = counter.value().stale(HOUR).timeout(LONG).detailed().await;
        let there = read.node.as_ref().is_some_and(|at| at.as_str() == format!("n{node}"));
        if read.age.is_some() && there == is {
            return read;
        }
    }
}

#[tokio::test]
async fn a_read_that_may_be_behind_is_answered_by_any_replica() {
    let cluster = TestCluster::start(3, app()).await;
    let counter = cluster.get::<Counter>("a");
    counter.add(1).await.unwrap();
    let owner = cluster.owner::<Counter>("a").await;
    let others = cluster.others(&[owner]);
    for node in others {
        let read = read_at(&counter, node, true).await;
        assert!(matches!(read.result, Ok(0 | 1)), "{read:?}");
    }
    let both = counter.both("b".into()).stale(HOUR).timeout(LONG).detailed().await;
    assert!(both.age.is_some() && matches!(both.result, Ok((0 | 1, 0))), "{both:?}");
    let newest = counter.about().stale(Duration::ZERO).detailed().await;
    assert_eq!((newest.result, newest.age), (Ok(1), None), "asked for the newest");
    assert!(counter.about().detailed().await.age.is_some(), "stale unless asked otherwise");
}

/// Looks at its own items when it comes into memory.
#[data]
#[derive(Default)]
pub struct Index {
    entries: Map<u64, u64>,
}

#[actor]
impl Index {
    #[activated]
    fn check(&mut self) {
        for _ in 0..10 {
            assert_eq!(
                self.entries.iter().count() as u64,
                self.entries.len(),
                "its rows do not fit together"
            );
        }
    }

    /// Enters some.
    pub fn enter(&mut self, from: u64, to: u64) {
        (from..to).for_each(|n| {
            let _ = self.entries.insert(n, n);
        });
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.entries.len()
    }
}

#[tokio::test]
async fn rows_that_change_under_a_read_are_no_fault_of_the_actor() {
    let cluster = TestCluster::builder(App::new("test").actor::<Index>()).nodes(1).start().await;
    let index = cluster.get::<Index>("a");
    index.enter(0, 200).await.unwrap();
    while index.count().stale(HOUR).timeout(LONG).detailed().await.age.is_none() {}
    for n in 200..400 {
        let (entered, read) = tokio::join!(
            index.enter(n, n + 1).timeout(LONG).into_future(),
            index.count().stale(HOUR).timeout(LONG).into_future()
        );
        entered.unwrap();
        assert!(matches!(read, Ok(count) if (n..=n + 1).contains(&count)), "{read:?}");
    }
}

#[tokio::test]
async fn a_read_is_no_older_than_it_says() {
    let cluster = TestCluster::start(3, app()).await;
    let counter = cluster.get::<Counter>("a");
    let mut written = Vec::new();
    for n in 1..=200 {
        counter.add(1).timeout(LONG).await.unwrap();
        written.push((tokio::time::Instant::now(), n));
        let asked = tokio::time::Instant::now();
        let within = Duration::from_millis(1500);
        let read = counter.value().stale(within).timeout(LONG).detailed().await;
        let (value, age) = (read.result.unwrap(), read.age.unwrap_or_default());
        assert!(age <= within, "{age:?}");
        let least = written.iter().rev().find(|(at, _)| *at + age < asked).map_or(0, |(_, n)| *n);
        assert!(value >= least, "{value} is {age:?} old, but {least} was answered before");
    }
}

#[tokio::test]
async fn a_node_that_is_cut_off_answers_reads_that_may_be_behind() {
    let cluster = TestCluster::start(3, app()).await;
    assert_eq!(cluster.get::<Counter>("a").add(5).await, Ok(5));
    for kind in ["follower", "owner"] {
        let owner = cluster.owner::<Counter>("a").await;
        let before = cluster.get::<Counter>("a").value().timeout(LONG).await.unwrap();
        let apart = if kind == "owner" { owner } else { cluster.pick(&cluster.others(&[owner])) };
        let beside = cluster.client_on(&[apart]).await.get::<Counter>("a");
        while read_at(&beside, apart, true).await.result != Ok(before) {}
        cluster.isolate(apart);
        assert_eq!(cluster.get::<Counter>("a").add(1).timeout(LONG).await, Ok(before + 1));
        let read = read_at(&beside, apart, true).await;
        assert_eq!(read.result, Ok(before), "{kind}");
        // What it has is older than this.
        let refused = beside.value().stale(Duration::from_nanos(1)).timeout(LONG).await;
        assert!(matches!(refused, Err(Fault::Unavailable { .. })), "{kind}: {refused:?}");
        cluster.heal().await;
        assert_eq!(beside.value().timeout(LONG).await, Ok(before + 1));
    }
}

#[tokio::test]
async fn a_write_cannot_be_stale() {
    let cluster = TestCluster::start(3, app()).await;
    let counter = cluster.get::<Counter>("a");
    let refused = counter.add(1).stale(HOUR).await;
    assert!(matches!(&refused, Err(Fault::NotARead { .. })), "{refused:?}");
    assert_eq!(counter.value().await, Ok(0));
}

#[tokio::test]
async fn an_owner_that_is_cut_off_is_one_no_more() {
    let cluster = TestCluster::start(3, app()).await;
    let counter = cluster.get::<Counter>("a");
    let owner = cluster.owner::<Counter>("a").await;
    let beside = cluster.client_on(&[owner]).await;
    cluster.partition(&[owner], &cluster.others(&[owner]));
    // It may still think that it leads, but nobody confirms that.
    let read = beside.get::<Counter>("a").value().timeout(Duration::from_secs(1)).await;
    assert!(read.is_err(), "{read:?}");
    let next = cluster.owner::<Counter>("a").await;
    assert_ne!(next, owner);
    // The client still reaches the owner of before, which must not answer from what it has.
    assert_eq!(counter.add(1).timeout(LONG).await, Ok(1));
    assert_eq!(counter.value().timeout(LONG).await, Ok(1));
    cluster.heal().await;
    assert_eq!(counter.add(1).timeout(LONG).await, Ok(2));
}

#[tokio::test]
async fn a_paused_owner_is_replaced_and_does_no_harm_when_it_goes_on() {
    let cluster = TestCluster::start(3, app()).await;
    let counter = cluster.get::<Counter>("a");
    assert_eq!(counter.add(1).await, Ok(1));
    let owner = cluster.owner::<Counter>("a").await;
    cluster.pause(owner);
    assert_eq!(counter.add(1).timeout(LONG).await, Ok(2));
    assert_ne!(cluster.owner::<Counter>("a").await, owner);
    cluster.resume(owner);
    assert_eq!(counter.value().timeout(LONG).await, Ok(2));
    cluster.pause(owner);
    cluster.kill(owner);
    cluster.restart_all().await;
    assert_eq!(counter.add(1).timeout(LONG).await, Ok(3));
}

#[tokio::test]
async fn a_drained_node_fails_no_call() {
    let cluster = TestCluster::start(3, app()).await;
    let counter = cluster.get::<Counter>("a");
    for n in 1..=3 {
        let owner = cluster.owner::<Counter>("a").await;
        let (added, ()) = tokio::join!(counter.add(1).timeout(LONG).into_future(), cluster.drain(owner));
        assert_eq!(added, Ok(n));
        cluster.restart(owner).await;
    }
}

#[tokio::test]
async fn messages_arrive_once_though_nodes_are_killed() {
    let cluster = TestCluster::start(3, app()).await;
    for chain in 0..8 {
        cluster.get::<Counter>(format!("{chain}")).pass(1, 9).timeout(LONG).await.unwrap();
    }
    let owner = cluster.owner::<Counter>("0").await;
    cluster.kill(owner);
    cluster.settle().await;
    cluster.restart(owner).await;
    cluster.settle().await;
    for chain in 0..8 {
        for link in 0..10 {
            let key = format!("{chain}{}", "-".repeat(link));
            let value = cluster.get::<Counter>(&key).value().timeout(LONG).await;
            assert_eq!(value, Ok(1), "{key}");
        }
    }
}

#[tokio::test]
async fn reminders_come_due_when_clocks_are_set_forward() {
    let cluster = TestCluster::start(3, app()).await;
    let counter = cluster.get::<Counter>("a");
    counter.remind(3600).await.unwrap();
    cluster.advance(Duration::from_secs(1800)).await;
    assert_eq!(counter.fired().await, Ok(0));
    cluster.advance(Duration::from_secs(1801)).await;
    assert_eq!(counter.fired().await, Ok(1));
    // As after an outage: once, however late; and clocks stay where they are over a restart.
    cluster.advance(Duration::from_secs(3 * 3600)).await;
    assert_eq!(counter.fired().await, Ok(2));
    let owner = cluster.owner::<Counter>("a").await;
    cluster.kill(owner);
    cluster.advance(Duration::from_secs(3601)).await;
    cluster.restart_all().await;
    cluster.advance(Duration::from_secs(3601)).await;
    assert_eq!(counter.fired().timeout(LONG).await, Ok(4));
}

#[tokio::test]
async fn clusters_do_not_see_each_other() {
    let (one, two) = tokio::join!(TestCluster::start(3, app()), TestCluster::start(3, app()));
    assert_eq!(one.get::<Counter>("a").add(1).await, Ok(1));
    assert_eq!(two.get::<Counter>("a").add(1).await, Ok(1));
    drop(one);
    assert_eq!(two.get::<Counter>("a").add(1).await, Ok(2));
}

#[tokio::test]
async fn a_seed_picks_the_same_nodes_again() {
    let mut picks = Vec::new();
    for _ in 0..2 {
        let cluster = TestCluster::builder(app()).seed(7).partitions(1).start().await;
        assert_eq!(cluster.seed(), 7);
        picks.push((0..20).map(|_| cluster.pick(&cluster.nodes())).collect::<Vec<_>>());
    }
    assert_eq!(picks[0], picks[1]);
    assert!(picks[0].iter().any(|node| *node != picks[0][0]));
}

/// What a test is told that is wrong.
async fn told(test: impl AsyncFnOnce(&TestCluster) + Send + 'static) -> String {
    let run = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { test(&TestCluster::builder(app()).partitions(1).start().await).await });
    };
    let panic = tokio::task::spawn_blocking(run).await.unwrap_err().into_panic();
    *panic.downcast::<String>().unwrap()
}

#[tokio::test]
async fn mistakes_in_a_test_are_named() {
    assert_eq!(told(async |c| c.kill(4)).await, "there is no node 4: they are 1 to 3");
    assert_eq!(told(async |c| c.partition(&[0], &[1])).await, "there is no node 0: they are 1 to 3");
    assert_eq!(told(async |c| c.partition(&[1, 2], &[2, 3])).await, "n2 cannot be on both sides");
    let twice = async |c: &TestCluster| {
        c.kill(1);
        c.cut_power(1);
    };
    assert_eq!(told(twice).await, "n1 is down; restart it first");
    assert_eq!(told(async |c| c.restart(2).await).await, "n2 runs already");
    assert_eq!(told(async |c| c.resume(2)).await, "n2 is not paused");
    let no_majority = async |c: &TestCluster| {
        c.kill(1);
        c.isolate(2);
        c.owner::<Counter>("a").await;
    };
    let told = told(no_majority).await;
    assert!(told.starts_with("partition 0 has no majority: of its replicas on "), "{told}");
}

#[tokio::test]
#[should_panic(expected = "a test cluster has 1 to 9 nodes, not 0")]
async fn a_cluster_without_nodes_is_refused() {
    TestCluster::start(0, app()).await;
}

#[tokio::test]
#[should_panic(expected = "a test cluster of 3 partitions: ")]
async fn partitions_are_a_power_of_two() {
    TestCluster::builder(app()).partitions(3).start().await;
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "a test cluster runs in real time")]
async fn paused_time_is_refused() {
    TestCluster::start(3, app()).await;
}
