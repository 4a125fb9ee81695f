//! Nodes that cannot or must not start: each says why, and the cluster is none the worse for it.

use std::time::Duration;

use perennial::core::id::NodeId;
use perennial::node::{Backend, StartError};
use perennial::prelude::*;
use perennial::{App, Node};
use perennial_runtime::certs::throwaway;
use perennial_runtime::counter::Counter;
use perennial_tests::{Cluster, PATIENCE, free_ports, until};

const CALL_MAX: Duration = Duration::from_secs(30);

fn app() -> App {
    App::new("start").actor::<Counter>()
}

/// Why a node stopped by itself.
async fn failure(node: &Node) -> String {
    tokio::time::timeout(PATIENCE, node.failed()).await.expect("the node stops by itself")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_waits_for_its_third_node_says_so_and_forms_when_it_comes() {
    let mut cluster = Cluster::prepared(3, app());
    cluster.start(0).await;
    cluster.start(1).await;
    let why = until("both wait for one more", async || {
        let missing = |at: usize| cluster.node(at).ready().err().filter(|why| why.contains("1 more node"));
        missing(0).and(missing(1))
    })
    .await;
    let third = cluster.configs[2].listen.to_string();
    assert!(why.contains("2 of 3 found") && why.contains(&third), "{why}");
    let addresses = cluster.configs[0].join.clone();
    let refused = cluster.client_with(addresses, cluster.certs.client.clone()).await;
    let text = refused.err().expect("there is no cluster yet").to_string();
    assert!(text.contains("no node can be reached") && text.contains("waiting for 1 more"), "{text}");
    let fault =
        cluster.node(0).get::<Counter>("a").add(1).timeout(Duration::from_millis(50)).await.unwrap_err();
    assert!(fault.to_string().contains("not joined a cluster"), "{fault}");
    cluster.start(2).await;
    cluster.ready().await;
    assert_eq!(cluster.client().await.get::<Counter>("a").add(1).timeout(CALL_MAX).await, Ok(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_halves_that_expect_too_few_do_not_form_two_clusters() {
    let mut cluster = Cluster::prepared(4, app());
    for config in &mut cluster.configs {
        config.bootstrap_expect = Some(2);
    }
    cluster.start(2).await;
    cluster.start(3).await;
    until("two of four addresses are no majority", async || {
        let missing = |at: usize| cluster.node(at).ready().err().filter(|why| why.contains("2 of 3 found"));
        missing(2).and(missing(3))
    })
    .await;
    cluster.start(0).await;
    cluster.start(1).await;
    until("all four are members of one cluster", async || {
        let mut clusters = Vec::new();
        for node in cluster.nodes.iter().flatten() {
            let status = node.status().await;
            clusters.push((status.members.len() == 4).then_some(status.cluster)?);
        }
        clusters.windows(2).all(|pair| pair[0] == pair[1]).then_some(())
    })
    .await;
    assert_eq!(cluster.client().await.get::<Counter>("a").add(1).timeout(CALL_MAX).await, Ok(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_returns_at_another_address_is_found_there() {
    let mut cluster = Cluster::started(3, app()).await;
    let client = cluster.client().await;
    assert_eq!(client.get::<Counter>("a").add(1).timeout(CALL_MAX).await, Ok(1));
    cluster.stop(2).await;
    cluster.configs[2].listen.set_port(free_ports(1)[0]);
    cluster.start(2).await;
    cluster.ready().await;
    let address = cluster.configs[2].listen.to_string();
    until("every node knows the new address", async || {
        for node in cluster.nodes.iter().flatten() {
            let status = node.status().await;
            let found = status.members.iter().find(|member| member.node == cluster.configs[2].node)?;
            if found.address != address || !found.up {
                return None;
            }
        }
        Some(())
    })
    .await;
    // It counts as a replica there: with it, another one can go.
    cluster.stop(0).await;
    let only = vec![address];
    let client = cluster.client_with(only, cluster.certs.client.clone()).await.unwrap();
    assert_eq!(client.get::<Counter>("a").add(1).timeout(CALL_MAX).await, Ok(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_lost_its_data_does_not_come_back_empty() {
    let mut cluster = Cluster::started(3, app()).await;
    let client = cluster.client().await;
    assert_eq!(client.get::<Counter>("a").add(1).timeout(CALL_MAX).await, Ok(1));
    cluster.stop(2).await;
    let empty = cluster.beside("empty");
    let own = std::mem::replace(&mut cluster.configs[2].data, empty);
    cluster.start(2).await;
    let why = failure(cluster.node(2)).await;
    assert!(
        why.contains("node n3 is a member") && why.contains("folder is empty") && why.contains("--data"),
        "{why}"
    );
    cluster.stop(2).await;
    cluster.configs[2].data = own;
    cluster.start(2).await;
    cluster.ready().await;
    assert_eq!(client.get::<Counter>("a").add(1).timeout(CALL_MAX).await, Ok(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_node_of_one_name_goes_and_the_first_stays() {
    let mut cluster = Cluster::started(3, app()).await;
    let mut twin = cluster.configs[0].clone();
    twin.data = cluster.beside("twin");
    twin.listen.set_port(free_ports(1)[0]);
    let node = Node::start(twin, app()).await.unwrap();
    let why = failure(&node).await;
    assert!(why.contains("node n1 is a member") && why.contains("an id of its own"), "{why}");
    node.stop(Duration::ZERO).await;
    let status = cluster.node(1).status().await;
    assert_eq!(status.members[0].address, cluster.configs[0].listen.to_string());
    let twice = Node::start(cluster.configs[0].clone(), app()).await;
    assert!(matches!(twice, Err(StartError::Listen { .. })));
    let mut same = cluster.configs[0].clone();
    same.listen.set_port(0);
    let text = Node::start(same, app()).await.err().expect("the folder is in use").to_string();
    assert!(text.contains("another process uses it"), "{text}");
    assert_eq!(cluster.node(0).get::<Counter>("a").add(1).timeout(CALL_MAX).await, Ok(1));
    cluster.stop(0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_of_another_cluster_is_noticed() {
    let mut cluster = Cluster::started(3, app()).await;
    cluster.stop(2).await;
    // A cluster of its own with the same name, certificates and address.
    let mut alone = cluster.configs[2].clone();
    alone.data = cluster.beside("foreign");
    alone.join = Vec::new();
    alone.bootstrap_expect = Some(1);
    let node = Node::start(alone.clone(), app()).await.unwrap();
    until("it is a cluster of one", async || node.ready().ok()).await;
    node.stop(Duration::ZERO).await;

    let own = std::mem::replace(&mut cluster.configs[2].data, alone.data);
    cluster.start(2).await;
    let why = failure(cluster.node(2)).await;
    assert!(why.contains("its data folder is of cluster") && why.contains("--data"), "{why}");
    cluster.stop(2).await;
    cluster.configs[2].data = own;
    cluster.start(2).await;
    cluster.ready().await;
    assert_eq!(cluster.client().await.get::<Counter>("a").add(1).timeout(CALL_MAX).await, Ok(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_of_others_are_refused_on_both_sides() {
    let cluster = Cluster::started(3, app()).await;
    let ids = [NodeId::new("n1").unwrap(), NodeId::new("n2").unwrap()];
    let foreign = throwaway(&cluster.beside("foreign-tls"), &ids, "test").unwrap();
    let start = async |change: &dyn Fn(&mut perennial::node::NodeConfig)| {
        let mut config = cluster.configs[0].clone();
        config.data = cluster.beside("elsewhere");
        config.listen.set_port(0);
        change(&mut config);
        Node::start(config, app()).await
    };
    let text = |started: Result<Node, StartError>| match started {
        Err(error @ StartError::Tls { .. }) => error.to_string(),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it started"),
    };
    // Its own name, its own authority.
    let why = text(start(&|config| config.tls = cluster.certs.nodes[&ids[1]].clone()).await);
    assert!(why.contains("node n2") && why.contains("this is node n1"), "{why}");
    let why = text(start(&|config| config.tls = cluster.certs.client.clone()).await);
    assert!(why.contains("client test"), "{why}");
    let why = text(start(&|config| config.tls.ca = foreign.client.ca.clone()).await);
    assert!(why.contains("not valid under the authority"), "{why}");
    let why = text(start(&|config| config.tls.key = cluster.certs.client.key.clone()).await);
    assert!(why.contains("cannot be used together"), "{why}");
    // A node of another authority finds nobody, and says why.
    let stranger = start(&|config| config.tls = foreign.nodes[&ids[0]].clone()).await.unwrap();
    let why = until("the stranger is turned away", async || {
        stranger.ready().err().filter(|why| why.contains("last failure"))
    })
    .await;
    assert!(why.contains("not of our authority") || why.contains("not accepted there"), "{why}");
    stranger.stop(Duration::ZERO).await;
    // So does a client.
    let addresses = cluster.configs[0].join.clone();
    let refused = cluster.client_with(addresses, foreign.client.clone()).await;
    let why = refused.err().expect("another authority's client stays outside").to_string();
    assert!(why.contains("not of our authority") || why.contains("not accepted there"), "{why}");
    assert_eq!(cluster.client().await.get::<Counter>("a").add(1).timeout(CALL_MAX).await, Ok(1));
}

/// Flips a bit in the midst of what was written to the last file of a folder whose name ends like this.
fn flip(folder: &std::path::Path, suffix: &str) {
    let paths = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    let path = paths.filter(|path| path.to_string_lossy().ends_with(suffix)).max().unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let written = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    bytes[written / 2] ^= 4;
    std::fs::write(path, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_heals_from_damaged_rows_and_stays_down_with_a_damaged_log() {
    let mut cluster = Cluster::started(3, app()).await;
    let client = cluster.client().await;
    let keys: Vec<_> = (0..20).map(|n| format!("k{n}")).collect();
    let all_count_to = async |client: &perennial::Client, count: i64| {
        for key in &keys {
            assert_eq!(client.get::<Counter>(key).add(1).timeout(CALL_MAX).await, Ok(count), "{key}");
        }
    };
    all_count_to(&client, 1).await;
    cluster.stop(2).await;
    flip(&cluster.configs[2].data.join("rows"), ".jnl");
    all_count_to(&client, 2).await;
    cluster.start(2).await;
    cluster.ready().await;
    assert!(cluster.configs[2].data.join("rows.damaged").is_dir());
    // Its rows count: with them, another node can go.
    cluster.stop(0).await;
    all_count_to(&client, 3).await;
    cluster.start(0).await;
    cluster.ready().await;

    cluster.stop(2).await;
    flip(&cluster.configs[2].data.join("log"), ".raftlog");
    let why = match cluster.try_start(2).await {
        Err(error) => error.to_string(),
        Ok(()) => failure(cluster.node(2)).await,
    };
    assert!(why.contains("damaged") && why.contains("must stay down"), "{why}");
    all_count_to(&client, 4).await;
}
