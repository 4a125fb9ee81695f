//! Builds beside each other: what was written by one is lost by no other, and what cannot be read harms nobody
//! else.

use std::collections::BTreeMap;
use std::time::Duration;

use perennial::prelude::*;
use perennial::testing::TestCluster;

/// Longer than any call should take, however busy the machine is.
const LONG: Duration = Duration::from_secs(50);
/// Accounts of a test, spread over the partitions.
const ACCOUNTS: usize = 12;

/// The first build.
mod v1 {
    use super::*;

    #[data]
    #[derive(Default)]
    pub(crate) struct Account {
        cents: u32,
        lines: Vec<String>,
    }

    #[actor]
    impl Account {
        /// Puts money in.
        pub fn deposit(&mut self, cents: u32) -> u64 {
            self.cents += cents;
            self.lines.push(format!("+{cents}"));
            self.cents.into()
        }

        /// Sends money on.
        pub fn send(&mut self, ctx: &mut Ctx<Self>, to: String, cents: u32) -> u64 {
            ctx.send(ctx.get::<Self>(&to).deposit(cents));
            self.cents.into()
        }

        /// The balance.
        pub fn balance(&self) -> u64 {
            self.cents.into()
        }
    }

    /// Stays as it is in both builds.
    #[data]
    #[derive(Default)]
    pub(crate) struct Other {
        value: u32,
    }

    #[actor]
    impl Other {
        /// Adds one.
        pub fn add(&mut self) -> u32 {
            self.value += 1;
            self.value
        }
    }

    pub(crate) fn app() -> App {
        App::new("bank").actor::<Account>().actor::<Other>()
    }
}

/// The second: a wider number, a new field, and a new handler.
mod v2 {
    use super::*;

    #[data]
    #[derive(Default)]
    pub(crate) struct Account {
        cents: u64,
        #[serde(default)]
        owner: String,
        lines: Vec<String>,
    }

    #[actor]
    impl Account {
        /// Puts money in.
        pub fn deposit(&mut self, cents: u32) -> u64 {
            self.cents += u64::from(cents);
            self.lines.push(format!("+{cents}"));
            self.cents
        }

        /// Sends money on.
        pub fn send(&mut self, ctx: &mut Ctx<Self>, to: String, cents: u32) -> u64 {
            ctx.send(ctx.get::<Self>(&to).deposit(cents));
            self.cents
        }

        /// Names the owner, and has another account name it too.
        pub fn name(&mut self, ctx: &mut Ctx<Self>, owner: String, also: Option<String>) {
            if let Some(also) = also {
                ctx.send(ctx.get::<Self>(&also).name(owner.clone(), None));
            }
            self.owner = owner;
        }

        /// The owner.
        pub fn owner(&self) -> String {
            self.owner.clone()
        }

        /// The balance.
        pub fn balance(&self) -> u64 {
            self.cents
        }
    }

    pub(crate) fn app() -> App {
        App::new("bank").actor::<Account>().actor::<super::v1::Other>()
    }
}

fn key(number: usize) -> String {
    format!("a{number}")
}

async fn deposit_all(cluster: &TestCluster) {
    for number in 0..ACCOUNTS {
        let deposited = cluster.get::<v1::Account>(key(number)).deposit(1).timeout(LONG).await;
        deposited.unwrap_or_else(|fault| panic!("{}: {fault}", key(number)));
    }
}

async fn assert_all(cluster: &TestCluster, expected: u64) {
    for number in 0..ACCOUNTS {
        let balance = cluster.get::<v1::Account>(key(number)).balance().timeout(LONG).await;
        assert_eq!(balance, Ok(expected), "{}", key(number));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_newer_build_wrote_is_lost_by_no_older_one() {
    let cluster = TestCluster::builder(v1::app()).partitions(4).start().await;
    deposit_all(&cluster).await;
    cluster.drain(1).await;
    cluster.restart_as(1, v2::app()).await;
    // Handlers that only the new build has are served by it, whoever led before.
    for number in 0..ACCOUNTS {
        let account = cluster.get::<v2::Account>(key(number));
        account.name(format!("owner {number}"), Some(key(number + 100))).timeout(LONG).await.unwrap();
        assert_eq!(cluster.owner::<v2::Account>(key(number)).await, 1);
    }
    // So are states that it has written, also after leaderships had time to wander.
    deposit_all(&cluster).await;
    assert_all(&cluster, 2).await;
    cluster.settle().await;
    for node in [2, 3] {
        cluster.drain(node).await;
        cluster.restart_as(node, v2::app()).await;
        deposit_all(&cluster).await;
    }
    assert_all(&cluster, 4).await;
    for number in 0..ACCOUNTS {
        for key in [key(number), key(number + 100)] {
            let owner = cluster.get::<v2::Account>(&key).owner().timeout(LONG).await;
            assert_eq!(owner, Ok(format!("owner {number}")), "{key}");
        }
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_to_a_newer_state_wait_until_a_newer_build_is_back() {
    let cluster = TestCluster::builder(v1::app()).partitions(1).start().await;
    cluster.drain(1).await;
    cluster.restart_as(1, v2::app()).await;
    cluster.get::<v2::Account>("to").name("ann".into(), None).timeout(LONG).await.unwrap();
    cluster.kill(1);
    // Nobody there reads what the killed one wrote; a state that it has not touched is served.
    let from = cluster.get::<v1::Account>("from");
    assert_eq!(from.send("to".into(), 5).timeout(LONG).await, Ok(0));
    let refused = loop {
        let refused = cluster.get::<v1::Account>("to").balance().timeout(LONG).await.unwrap_err();
        // A leader that takes its time counts as lost, and the call as one that may have run.
        if refused.code() != "timed_out" {
            break refused;
        }
    };
    assert!(refused.retryable() && refused.to_string().contains("the newer build of n1"), "{refused}");
    assert!(refused.to_string().contains("owner: "), "the field is named: {refused}");
    cluster.restart(1).await;
    cluster.settle().await;
    assert_eq!(cluster.get::<v2::Account>("to").balance().timeout(LONG).await, Ok(5));
    assert_eq!(cluster.get::<v2::Account>("to").owner().timeout(LONG).await, Ok("ann".into()));
    cluster.stop().await;
}

/// Reads nothing that was written before.
mod broken {
    use super::*;

    #[data]
    #[derive(Default)]
    pub(crate) struct Account {
        cents: BTreeMap<String, u32>,
        lines: Vec<String>,
    }

    #[actor]
    impl Account {
        /// How many there are.
        pub fn balance(&self) -> u64 {
            self.cents.len() as u64
        }

        /// Makes one.
        pub fn deposit(&mut self, cents: u32) -> u64 {
            self.cents.insert(cents.to_string(), cents);
            self.balance()
        }
    }

    pub(crate) fn app() -> App {
        App::new("bank").actor::<Account>().actor::<super::v1::Other>()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_actor_that_cannot_be_read_is_parked_alone_until_a_build_reads_it() {
    let cluster = TestCluster::builder(v1::app()).nodes(1).partitions(1).start().await;
    let (old, other) = (cluster.get::<v1::Account>("old"), cluster.get::<v1::Other>("other"));
    assert_eq!((old.deposit(7).await, other.add().await), (Ok(7), Ok(1)));
    let parked = async || {
        let status = cluster.client().await.status().await.unwrap();
        status.partitions.iter().map(|partition| partition.parked).sum::<u64>()
    };
    assert_eq!(parked().await, 0);

    cluster.kill(1);
    cluster.restart_as(1, broken::app()).await;
    for _ in 0..3 {
        let refused = old.balance().timeout(LONG).await.unwrap_err();
        let told = refused.to_string();
        assert_eq!((refused.code(), refused.retryable()), ("unreadable", false), "{told}");
        for part in
            ["Account/old", "it was stored with schema ", "this build has ", "cents: ", "upgrade_from"]
        {
            assert!(told.contains(part), "{part} is not in: {told}");
        }
        assert_eq!(old.deposit(1).timeout(LONG).await.unwrap_err().code(), "unreadable");
    }
    assert_eq!(parked().await, 1);
    assert_eq!(cluster.get::<broken::Account>("new").deposit(1).timeout(LONG).await, Ok(1));
    assert_eq!(other.add().timeout(LONG).await, Ok(2));

    cluster.kill(1);
    cluster.restart_as(1, v2::app()).await;
    assert_eq!(old.balance().timeout(LONG).await, Ok(7));
    assert_eq!(parked().await, 0);
    cluster.stop().await;
}
