//! Stateless workers of real node processes, called over HTTP, by the command line and by clients: how calls
//! are spread, who takes over for a node that is killed, and what is made again. `docs/stateless.md` promises it.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use perennial::Actors;
use perennial_runtime::harness::{ClusterSpec, ProcessCluster};
use perennial_tests::workers::{Sum, Turns};
use perennial_tests::{PATIENCE, until};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

const EXE: &str = env!("CARGO_BIN_EXE_workers");

/// Three nodes, and who calls them.
struct Setting {
    cluster: ProcessCluster,
    http: reqwest::Client,
    folder: tempfile::TempDir,
}

/// An answer over HTTP.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    node: Option<String>,
    body: Value,
}

impl Answer {
    /// The position of the node that has run it.
    fn ran_at(&self) -> usize {
        assert_eq!(self.status, StatusCode::OK, "{self:?}");
        position(self.node.as_deref().expect("a node ran it"))
    }
}

/// 0 for `n1`.
fn position(node: &str) -> usize {
    node[1..].parse::<usize>().expect("nodes are n1, n2, n3") - 1
}

async fn start() -> Setting {
    let folder = tempfile::tempdir().unwrap();
    let spec = ClusterSpec {
        partitions: 8,
        log: "warn".into(),
        ..ClusterSpec::new(3, folder.path().join("cluster"), EXE)
    };
    let mut cluster = ProcessCluster::start(spec).await.unwrap();
    cluster.wait_ready(PATIENCE).await.unwrap();
    Setting { cluster, http: reqwest::Client::builder().no_proxy().build().unwrap(), folder }
}

async fn sent(request: reqwest::RequestBuilder) -> Answer {
    let response = request.send().await.expect("the gateway answers");
    let node = response.headers().get("perennial-node").map(|node| node.to_str().unwrap().to_owned());
    Answer { status: response.status(), node, body: response.json().await.unwrap_or_default() }
}

impl Setting {
    fn post(&self, gateway: usize, path: &str, body: &Value) -> reqwest::RequestBuilder {
        let url = format!("http://{}/v1/{path}", self.cluster.http()[gateway]);
        self.http.post(url).header("perennial-timeout-ms", "60000").body(body.to_string())
    }

    async fn call(&self, gateway: usize, path: &str) -> Answer {
        sent(self.post(gateway, path, &json!({}))).await
    }

    /// How many of so many calls each node ran.
    async fn shares(&self, gateway: usize, kind: &str, calls: usize) -> BTreeMap<usize, usize> {
        let mut shares = BTreeMap::new();
        for _ in 0..calls {
            let answer = self.call(gateway, &format!("{kind}/any/work")).await;
            *shares.entry(answer.ran_at()).or_default() += 1;
        }
        shares
    }

    /// A call that answers when there is a file.
    fn hold(&self, gateway: usize, path: &str, file: &Path) -> JoinHandle<Answer> {
        tokio::spawn(sent(self.post(gateway, path, &json!({ "file": file }))))
    }

    /// A figure of a node.
    async fn figure(&self, node: usize, series: &str) -> u64 {
        let url = format!("http://{}/metrics", self.cluster.http()[node]);
        let text = self.http.get(url).send().await.unwrap().text().await.unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map_or(0, |value| value.parse().expect("a number"))
    }

    async fn running(&self, node: usize, kind: &str) -> u64 {
        self.figure(node, &format!("perennial_workers_running{{kind=\"{kind}\"}}")).await
    }
}

/// Lets those go on who wait for a file.
fn release(file: &Path) {
    std::fs::write(file, "").unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_spread_over_nodes_and_the_share_of_a_killed_one_goes_to_the_others_and_back() {
    let mut s = start().await;
    for gateway in 0..3 {
        let even = BTreeMap::from([(0, 4), (1, 4), (2, 4)]);
        assert_eq!(s.shares(gateway, "Turns", 12).await, even, "asked at node {gateway}");
    }
    let usual = s.shares(0, "Usual", 60).await;
    assert_eq!(usual.len(), 3, "every node has a share: {usual:?}");
    let mut begun = 0;
    for node in 0..3 {
        begun += s.figure(node, "perennial_worker_calls_total{kind=\"Turns\"}").await;
    }
    assert_eq!(begun, 36);

    // By key: whoever is asked, one node has it.
    let mut homes = BTreeMap::new();
    for key in 0..12 {
        let path = format!("Keyed/{key}/work");
        let home = s.call(0, &path).await.ran_at();
        for gateway in 0..3 {
            assert_eq!(s.call(gateway, &path).await.ran_at(), home, "{key}");
        }
        homes.insert(key, home);
    }
    assert!((0..3).all(|node| homes.values().any(|&home| home == node)), "keys are spread: {homes:?}");

    s.cluster.kill9(2).await;
    // The call that finds out goes to another node as well: none is refused.
    for gateway in 0..2 {
        assert!(s.shares(gateway, "Turns", 6).await.keys().all(|&node| node < 2));
    }
    for gateway in 0..2 {
        let even = BTreeMap::from([(0, 6), (1, 6)]);
        until("the others share it evenly", async || {
            (s.shares(gateway, "Turns", 12).await == even).then_some(())
        })
        .await;
    }
    assert!(s.shares(1, "Usual", 30).await.keys().all(|&node| node < 2));
    for (key, &home) in &homes {
        let path = format!("Keyed/{key}/work");
        let now = s.call(0, &path).await.ran_at();
        assert_eq!(s.call(1, &path).await.ran_at(), now, "one node for one key");
        assert_eq!(now == home, home != 2, "only keys of the dead node move");
    }

    s.cluster.restart(2).await.unwrap();
    s.cluster.wait_node_ready(2, PATIENCE).await.unwrap();
    until("the node has its share again", async || {
        s.shares(0, "Turns", 3).await.contains_key(&2).then_some(())
    })
    .await;
    until("the node has its keys again", async || {
        let mut back = true;
        for (key, &home) in &homes {
            back &= s.call(0, &format!("Keyed/{key}/work")).await.ran_at() == home;
        }
        back.then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_on_a_node_that_is_killed_is_told_of_unless_its_kind_is_idempotent() {
    let mut s = start().await;
    let file = s.folder.path().join("go");
    // By key, so it is known who runs it; asked at another node.
    let victim = s.call(0, "Keyed/k/work").await.ran_at();
    let other = (victim + 1) % 3;
    let mut key = 0;
    while s.call(other, &format!("Again/{key}/work")).await.ran_at() != victim {
        key += 1;
    }
    let once = s.hold(other, "Keyed/k/hold", &file);
    let again = s.hold(other, &format!("Again/{key}/hold"), &file);
    until("both run", async || {
        (s.running(victim, "Keyed").await == 1 && s.running(victim, "Again").await == 1).then_some(())
    })
    .await;
    s.cluster.kill9(victim).await;
    let once = once.await.unwrap();
    assert_eq!(
        (once.status, &once.body["code"]),
        (StatusCode::SERVICE_UNAVAILABLE, &json!("outcome_unknown"))
    );
    assert_eq!(once.body["applied"], "unknown");
    release(&file);
    let again = again.await.unwrap();
    assert_ne!(again.ran_at(), victim, "another node has run it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_has_its_places_nothing_is_remembered_and_all_ways_lead_to_it() {
    let s = start().await;
    let file = s.folder.path().join("go");
    let held: Vec<_> = (0..3).map(|_| s.hold(0, "Single/any/hold", &file)).collect();
    until("each node runs one", async || {
        let mut all = true;
        for node in 0..3 {
            all &= s.running(node, "Single").await == 1;
        }
        all.then_some(())
    })
    .await;
    let full = s.call(1, "Single/any/work").await;
    assert_eq!((full.status, &full.body["code"]), (StatusCode::TOO_MANY_REQUESTS, &json!("overloaded")));
    assert_eq!((&full.body["applied"], &full.body["retryable"]), (&json!("no"), &json!(true)));
    let message = full.body["message"].as_str().unwrap();
    assert!(message.contains("the pool of workers") && message.contains("Single on node n"), "{message}");
    release(&file);
    for call in held {
        call.await.unwrap().ran_at();
    }

    // A worker remembers no call, and the actors that it calls remember theirs.
    let keyed =
        async |path, body: &Value| sent(s.post(0, path, body).header("idempotency-key", "17")).await.body;
    let first = keyed("Keyed/k/work", &json!({})).await.as_u64().unwrap();
    assert_eq!(keyed("Keyed/k/work", &json!({})).await, json!(first + 1), "it ran again");
    let add = json!({"sum": "s", "n": 5});
    assert_eq!(keyed("Usual/any/add", &add).await, json!(5));
    assert_eq!(keyed("Usual/any/add", &add).await, json!(5), "the same call of the actor");
    assert_eq!(sent(s.post(0, "Usual/any/add", &add)).await.body, json!(10), "another one");

    let url = format!("http://{}/v1/Usual/any/work", s.cluster.http()[2]);
    assert_eq!(sent(s.http.get(url)).await.status, StatusCode::OK, "workers can be called by GET too");
    let url = format!("http://{}/v1/Usual/any/add?sum=t&n=5", s.cluster.http()[2]);
    let refused = sent(s.http.get(url)).await;
    assert_eq!(
        (refused.status, &refused.body["code"]),
        (StatusCode::METHOD_NOT_ALLOWED, &json!("not_a_read"))
    );
    let add = json!({"sum": "t", "n": 5});
    assert_eq!(sent(s.post(0, "Usual/any/add", &add)).await.body, json!(5), "and nothing was added");
    let kinds = s.http.get(format!("http://{}/v1/kinds", s.cluster.http()[0]));
    let kinds = sent(kinds).await.body;
    let stateless = |kind: &str| {
        let all = kinds["kinds"].as_array().unwrap();
        all.iter().find(|info| info["kind"] == kind).unwrap()["stateless"].clone()
    };
    assert_eq!(stateless("Again"), json!({"balance": "by_key", "idempotent": true}));
    assert_eq!(stateless("Usual"), json!({"balance": "power_of_two", "idempotent": false}));
    assert_eq!(stateless("Sum"), json!(null));

    let client = s.cluster.client().await.unwrap();
    assert!(client.pool::<Turns>().work().timeout(Duration::from_secs(30)).await.unwrap() > 0);
    assert_eq!(client.pool::<Turns>().add("s".into(), 1).timeout(Duration::from_secs(30)).await, Ok(11));
    assert_eq!(client.get::<Sum>("s").sum().timeout(Duration::from_secs(30)).await, Ok(11));

    let cluster = s.folder.path().join("cluster/cluster.toml");
    // A program that knows nothing of the kind is told by the first node that it asks.
    let call = |kind: &str| {
        let kind = format!("{kind}/any");
        let mut command = Command::new(EXE);
        let words = ["call", &kind, "add", "sum=s", "n=1", "--cluster"];
        command.args(words).arg(&cluster).env_clear().output().unwrap()
    };
    let output = call("Turns");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "12\n", "{output:?}");
    let output = call("Turn");
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("Turn") && told.contains("Turns") && told.lines().count() == 1, "{told}");
}
