//! Nodes that find each other by names, records and files, whatever these say at first and later.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use perennial::App;
use perennial::node::{Backend, StartError};
use perennial::prelude::*;
use perennial_runtime::counter::Counter;
use perennial_tests::names::{Mood, Names};
use perennial_tests::{Cluster, free_ports, until};

const CALL_MAX: Duration = Duration::from_secs(30);

fn app() -> App {
    App::new("discovery").actor::<Counter>()
}

/// What a node waits for, once that has all these parts.
async fn waits_for(cluster: &Cluster, at: usize, parts: &[&str]) -> String {
    until(&format!("n{} waits for {parts:?}", at + 1), async || {
        let why = cluster.node(at).ready().err()?;
        parts.iter().all(|part| why.contains(part)).then_some(why)
    })
    .await
}

/// Adds to a counter through a client that knows one node only, and may have a table of addresses that were.
async fn add(cluster: &Cluster, through: usize) -> i64 {
    let addresses = vec![cluster.configs[through].listen.to_string()];
    let client = cluster.client_with(addresses, cluster.certs.client.clone()).await.unwrap();
    client.get::<Counter>("a").add(1).timeout(CALL_MAX).await.unwrap()
}

fn seeds_of(cluster: &Cluster, nodes: impl IntoIterator<Item = usize>) -> String {
    nodes.into_iter().map(|at| format!("{}\n", cluster.configs[at].listen)).collect()
}

/// Starts a node at another port than before.
async fn start_elsewhere(cluster: &mut Cluster, at: usize) {
    loop {
        cluster.configs[at].listen.set_port(free_ports(1)[0]);
        match cluster.try_start(at).await {
            Ok(()) => return,
            // Somebody was quicker.
            Err(StartError::Listen { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// Waits until every node that runs has it in writing where these are.
async fn written_down(cluster: &Cluster, nodes: impl IntoIterator<Item = usize> + Clone) {
    until("the new addresses are written down", async || {
        for node in cluster.nodes.iter().flatten() {
            let status = node.status().await;
            for at in nodes.clone() {
                let member = status.members.iter().find(|member| member.node == cluster.configs[at].node)?;
                if member.address != cluster.configs[at].listen.to_string() || !member.up {
                    return None;
                }
            }
        }
        Some(())
    })
    .await;
}

/// A node that nobody tells of the others: it has to be found.
fn looks_nowhere(cluster: &mut Cluster, at: usize) {
    cluster.configs[at].join = vec![format!("file:{}", cluster.beside("nowhere").display())];
    cluster.configs[at].dns_server = None;
}

fn from_file(cluster: &mut Cluster, path: &Path) {
    for config in &mut cluster.configs {
        config.join = vec![format!("file:{}", path.display())];
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_shows_some_nodes_first_and_all_later_makes_one_cluster() {
    let names = Names::start().await;
    let mut cluster = Cluster::prepared(3, app());
    let port = free_ports(1)[0];
    let hosts =
        [IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 0, 0, 2]), IpAddr::from(Ipv6Addr::LOCALHOST)];
    for (config, host) in cluster.configs.iter_mut().zip(hosts) {
        config.listen = SocketAddr::new(host, port);
        config.join = vec![format!("dns:nodes.test:{port}")];
        config.dns_server = Some(names.address());
    }
    looks_nowhere(&mut cluster, 2);
    for at in 0..3 {
        cluster.start(at).await;
    }
    for at in 0..2 {
        waits_for(&cluster, at, &["1 of 3 found", "dns:nodes.test", "the name has no records"]).await;
    }
    names.set_addresses("nodes.test", &hosts[..2]);
    for at in 0..2 {
        waits_for(&cluster, at, &["2 of 3 found: n1, n2"]).await;
    }
    // An outage of names is none of those who were found.
    for mood in [Mood::Failing, Mood::Silent] {
        names.set_mood(mood);
        waits_for(
            &cluster,
            0,
            &["n2", "dns:nodes.test", if mood == Mood::Silent { "within" } else { "looked up" }],
        )
        .await;
    }
    names.set_mood(Mood::Well);
    names.set_addresses("nodes.test", &hosts);
    cluster.ready().await;
    let status = cluster.node(0).status().await;
    assert_eq!(status.members.len(), 3);
    assert_eq!(add(&cluster, 0).await, 1);
    // With a cluster of its own a node needs no names to return.
    names.set_mood(Mood::Silent);
    cluster.stop(1).await;
    cluster.configs[1].bootstrap_expect = None;
    cluster.start(1).await;
    cluster.ready().await;
    assert_eq!(add(&cluster, 1).await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn srv_records_name_nodes_on_ports_of_their_own() {
    let names = Names::start().await;
    let mut cluster = Cluster::prepared(3, app());
    cluster.configs[2].listen.set_ip(Ipv6Addr::LOCALHOST.into());
    for config in &mut cluster.configs {
        config.join = vec!["srv:_perennial._tcp.test".into()];
        config.dns_server = Some(names.address());
    }
    looks_nowhere(&mut cluster, 2);
    let port = |at: usize| cluster.configs[at].listen.port();
    let services =
        [("four.test.", port(0)), ("four.test.", port(1)), ("six.test.", port(2)), ("gone.test.", 9)];
    names.set_services("_perennial._tcp.test", &services);
    names.set_addresses("four.test", &[Ipv4Addr::LOCALHOST.into()]);
    for at in 0..3 {
        cluster.start(at).await;
    }
    let why = waits_for(&cluster, 0, &["2 of 3 found"]).await;
    assert!(why.contains("target gone.test.: the name has no records"), "{why}");
    names.set_addresses("six.test", &[Ipv6Addr::LOCALHOST.into()]);
    cluster.ready().await;
    assert_eq!(add(&cluster, 2).await, 1);
    let asked = names.asked();
    assert!(asked > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_may_come_later_and_its_wrong_line_is_named() {
    let mut cluster = Cluster::prepared(3, app());
    let path = cluster.beside("seeds");
    from_file(&mut cluster, &path);
    looks_nowhere(&mut cluster, 2);
    for at in 0..3 {
        cluster.start(at).await;
    }
    waits_for(&cluster, 0, &["waiting for 2 more nodes", "there is no such file yet", "seeds"]).await;
    std::fs::write(&path, format!("# all of them\n{}n3\n", seeds_of(&cluster, [0, 1]))).unwrap();
    waits_for(&cluster, 0, &["2 of 3 found", "line 4: \"n3\" is not HOST:PORT"]).await;
    std::fs::write(&path, seeds_of(&cluster, [2])).unwrap();
    cluster.ready().await;
    assert_eq!(cluster.node(0).status().await.members.len(), 3);
    assert_eq!(add(&cluster, 0).await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_all_moved_find_each_other_again() {
    let mut cluster = Cluster::prepared(3, app());
    let path = cluster.beside("seeds");
    from_file(&mut cluster, &path);
    std::fs::write(&path, seeds_of(&cluster, 0..3)).unwrap();
    for at in 0..3 {
        cluster.start(at).await;
    }
    cluster.ready().await;
    assert_eq!(add(&cluster, 0).await, 1);
    // All of them are in the file; then only the last, who tells the others.
    for (round, seeds) in [vec![0, 1, 2], vec![2]].into_iter().enumerate() {
        for at in 0..3 {
            cluster.stop(at).await;
        }
        for at in 0..3 {
            start_elsewhere(&mut cluster, at).await;
        }
        // The file still has what was: nobody knows anybody.
        waits_for(&cluster, 0, &["not reached: n2, n3"]).await;
        std::fs::write(&path, seeds_of(&cluster, seeds)).unwrap();
        cluster.ready().await;
        assert_eq!(add(&cluster, 1).await, round as i64 + 2);
        written_down(&cluster, 0..3).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_moved_while_another_was_away_tells_it_by_dialing() {
    let mut cluster = Cluster::started(3, app()).await;
    assert_eq!(add(&cluster, 0).await, 1);
    cluster.stop(0).await;
    for at in [1, 2] {
        cluster.stop(at).await;
        start_elsewhere(&mut cluster, at).await;
        cluster.ready().await;
        // Else nobody would know the other one after the next move.
        written_down(&cluster, [at]).await;
    }
    // Only the first address to join is still right: that of the node itself.
    cluster.start(0).await;
    cluster.ready().await;
    assert_eq!(add(&cluster, 0).await, 2);
    cluster.stop(1).await;
    assert_eq!(add(&cluster, 0).await, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn halves_that_do_not_see_each_other_do_not_form_two_clusters() {
    let mut cluster = Cluster::prepared(4, app());
    let halves = [cluster.beside("one"), cluster.beside("other")];
    for (at, config) in cluster.configs.iter_mut().enumerate() {
        config.join = vec![format!("file:{}", halves[at / 2].display())];
        config.bootstrap_expect = Some(3);
    }
    for (half, path) in halves.iter().enumerate() {
        std::fs::write(path, seeds_of(&cluster, [half * 2, half * 2 + 1])).unwrap();
    }
    for at in 0..4 {
        cluster.start(at).await;
    }
    for at in 0..4 {
        waits_for(&cluster, at, &["2 of 3 found"]).await;
    }
    std::fs::write(&halves[1], seeds_of(&cluster, [1, 2, 3])).unwrap();
    until("all four are members of one cluster", async || {
        let mut clusters = Vec::new();
        for node in cluster.nodes.iter().flatten() {
            let status = node.status().await;
            clusters.push((status.members.len() == 4).then_some(status.cluster)?);
        }
        clusters.windows(2).all(|pair| pair[0] == pair[1]).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_may_change_needs_to_be_told_how_many_nodes_there_are() {
    let mut cluster = Cluster::prepared(1, app());
    let path = cluster.beside("seeds");
    from_file(&mut cluster, &path);
    cluster.configs[0].bootstrap_expect = None;
    let why = cluster.try_start(0).await.expect_err("it may form one cluster of many").to_string();
    assert!(why.contains("seeds") && why.contains("add --bootstrap-expect N"), "{why}");
    cluster.configs[0].bootstrap_expect = Some(1);
    cluster.start(0).await;
    cluster.ready().await;
    cluster.stop(0).await;
    cluster.configs[0].bootstrap_expect = None;
    cluster.start(0).await;
    cluster.ready().await;
    cluster.stop(0).await;
    cluster.configs[0].join = vec!["dns:seeds".into()];
    let refused = cluster.try_start(0).await.expect_err("it is no source");
    assert!(matches!(&refused, StartError::Settings(why) if why.contains("names no port")), "{refused}");
}
