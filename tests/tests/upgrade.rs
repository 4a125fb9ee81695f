//! Nodes replaced one by one by a newer build, as real processes on their old data, under load: nothing that was
//! acknowledged is lost or doubled, and what the newer build wrote is what it reads in the end.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use perennial::error::Applied;
use perennial::{Actors, Client, Fault};
use perennial_runtime::harness::{ClusterSpec, ProcessCluster};
use perennial_tests::upgrade::{v1, v2};

/// How long anything may take that must happen.
const PATIENCE: Duration = Duration::from_secs(60);
/// Tallies, and wallets.
const ACTORS: u64 = 8;
/// Clients that call at once.
const CLIENTS: u64 = 4;

/// What the clients were told: at least and at most so much was done to each actor.
#[derive(Default)]
struct Ledger {
    done: Mutex<BTreeMap<String, (u64, u64)>>,
    calls: AtomicU64,
    refused: AtomicU64,
    stop: AtomicBool,
}

impl Ledger {
    fn told<T>(&self, actors: &[String], answer: &Result<T, Fault>) {
        let (least, most) = match answer {
            Ok(_) => (1, 1),
            Err(fault) => {
                assert!(fault.retryable(), "what happens here passes: {fault}");
                self.refused.fetch_add(1, Ordering::Relaxed);
                if fault.applied() == Applied::No { (0, 0) } else { (0, 1) }
            }
        };
        self.calls.fetch_add(least, Ordering::Relaxed);
        let mut done = self.done.lock().unwrap();
        for actor in actors {
            let bounds = done.entry(actor.clone()).or_default();
            *bounds = (bounds.0 + least, bounds.1 + most);
        }
    }

    /// Waits for so many more acknowledged calls.
    async fn more(&self, calls: u64) {
        let until = self.calls.load(Ordering::Relaxed) + calls;
        let waited = tokio::time::timeout(PATIENCE, async {
            while self.calls.load(Ordering::Relaxed) < until {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        assert!(waited.await.is_ok(), "the load goes on");
    }
}

fn tally(number: u64) -> String {
    format!("t{}", number % ACTORS)
}

fn wallet(number: u64) -> String {
    format!("w{}", number % ACTORS)
}

/// Calls what both builds have, as a client that was built with the first.
async fn drive(client: Client, mut number: u64, ledger: Arc<Ledger>) {
    while !ledger.stop.load(Ordering::Relaxed) {
        number += CLIENTS;
        let (one, other) = (tally(number / 3), tally(number / 3 + 1));
        match number % 3 {
            0 => {
                let answer = client.get::<v1::Tally>(&one).add().await;
                ledger.told(&[one], &answer);
            }
            1 => {
                let answer = client.get::<v1::Tally>(&one).add_both(other.clone()).await;
                ledger.told(&[one, other], &answer);
            }
            _ => {
                let wallet = wallet(number / 3);
                let answer = client.get::<v1::Wallet>(&wallet).put_euro().await;
                ledger.told(&[wallet], &answer);
            }
        }
    }
}

/// Tries until it is done: it may not be repeated when it may have been.
async fn name_all(client: &Client) {
    for number in 0..ACTORS {
        let (label, other) = (format!("label {number}"), format!("other {number}"));
        loop {
            let call = client.get::<v2::Tally>(tally(number)).name(label.clone(), Some(other.clone()));
            match call.timeout(PATIENCE).await {
                Ok(()) => break,
                Err(fault) => assert!(fault.retryable(), "{fault}"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_doubled_while_nodes_are_replaced_by_a_newer_build() {
    let (old, new) = (env!("CARGO_BIN_EXE_upgrade-v1"), env!("CARGO_BIN_EXE_upgrade-v2"));
    let dir = tempfile::tempdir().unwrap();
    let spec = ClusterSpec { partitions: 8, log: "warn".into(), ..ClusterSpec::new(3, dir.path(), old) };
    let mut cluster = ProcessCluster::start(spec).await.unwrap();
    cluster.wait_ready(PATIENCE).await.unwrap();

    let ledger = Arc::new(Ledger::default());
    let mut load = Vec::new();
    for number in 0..CLIENTS {
        load.push(tokio::spawn(drive(cluster.client().await.unwrap(), number, ledger.clone())));
    }
    ledger.more(200).await;
    let client = cluster.client().await.unwrap();
    let unknown = client.get::<v2::Tally>("t0").name("early".into(), None).await.unwrap_err();
    assert_eq!(unknown.code(), "unknown_method", "no build has it yet: {unknown}");

    cluster.replace(0, new).await.unwrap();
    cluster.wait_ready(PATIENCE).await.unwrap();
    ledger.more(100).await;
    let builds = client.status().await.unwrap().members.into_iter().map(|member| member.build);
    assert_eq!(builds.collect::<std::collections::BTreeSet<_>>().len(), 2, "both builds are shown");
    // What only the new build has is routed to it.
    name_all(&client).await;
    ledger.more(100).await;
    // It is gone for a moment: what it wrote waits for it, nothing is made of it by the others.
    cluster.kill9(0).await;
    cluster.restart(0).await.unwrap();
    cluster.wait_ready(PATIENCE).await.unwrap();
    ledger.more(100).await;
    for node in [1, 2] {
        cluster.replace(node, new).await.unwrap();
        cluster.wait_ready(PATIENCE).await.unwrap();
        ledger.more(100).await;
    }
    ledger.stop.store(true, Ordering::Relaxed);
    for driver in load {
        driver.await.unwrap();
    }

    let done = ledger.done.lock().unwrap().clone();
    let read = async || {
        let mut read = BTreeMap::new();
        for number in 0..ACTORS {
            let count = client.get::<v2::Tally>(tally(number)).count().timeout(PATIENCE).await.unwrap();
            read.insert(tally(number), count);
            let cents = client.get::<v2::Wallet>(wallet(number)).cents().timeout(PATIENCE).await.unwrap();
            read.insert(wallet(number), cents / 100);
        }
        read
    };
    let fits = |read: &BTreeMap<String, u64>| {
        read.iter().all(|(actor, value)| {
            done.get(actor).is_some_and(|(least, most)| (least..=most).contains(&value))
        })
    };
    // Messages may still be on their way.
    let settled = tokio::time::timeout(PATIENCE, async {
        while !fits(&read().await) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    assert!(settled.await.is_ok(), "at least and at most {done:?}, found {:?}", read().await);
    for number in 0..ACTORS {
        for key in [tally(number), format!("other {number}")] {
            let label = client.get::<v2::Tally>(&key).label().timeout(PATIENCE).await.unwrap();
            assert_eq!(label, format!("label {number}"), "{key}");
        }
    }
    let parked: u64 = client.status().await.unwrap().partitions.iter().map(|p| p.parked).sum();
    assert_eq!(parked, 0);
    let (calls, refused) = (ledger.calls.load(Ordering::Relaxed), ledger.refused.load(Ordering::Relaxed));
    println!("{calls} calls acknowledged, {refused} refused");
    cluster.stop(Duration::from_secs(1)).await;
}
