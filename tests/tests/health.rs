//! What a node says of its health, to supervisors, balancers and people.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use perennial::node::Backend;
use perennial::prelude::*;
use perennial::{App, Node};
use perennial_runtime::counter::Counter;
use perennial_tests::{Cluster, until};

const CALL_MAX: Duration = Duration::from_secs(30);

fn metrics(node: &Node) -> String {
    let (registry, mut text) = (node.metrics(), String::new());
    prometheus_client::encoding::text::encode(&mut text, &registry.lock().unwrap()).unwrap();
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_of_the_application_makes_nodes_ready_or_not_and_nothing_else() {
    let (bank, mail) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(true)));
    let check = |up: &Arc<AtomicBool>| {
        let up = up.clone();
        move || {
            let up = up.load(Ordering::Relaxed);
            async move { if up { Ok(()) } else { Err("no route".to_owned()) } }
        }
    };
    let app = App::new("health").actor::<Counter>().health("bank", check(&bank)).health("mail", check(&mail));
    let mut cluster = Cluster::prepared(1, app);
    cluster.start(0).await;
    let node = cluster.node(0);
    let fails = async |reason: &str| {
        until(reason, async || (node.not_ready() == [reason.to_owned()]).then_some(())).await;
        assert_eq!(node.ready(), Err(reason.to_owned()));
        assert_eq!((node.not_started(), node.not_live()), (Vec::new(), Vec::new()));
    };
    fails("check bank: no route").await;
    assert_eq!(
        node.get::<Counter>("a").add(1).timeout(CALL_MAX).await,
        Ok(1),
        "calls are served all the same"
    );
    let status = node.status().await;
    assert_eq!(status.waiting_for.as_deref(), Some("check bank: no route"));
    let told: Vec<_> = status.checks.iter().map(|c| (c.name.as_str(), c.up, c.why.as_deref())).collect();
    assert_eq!(told, [("bank", false, Some("no route")), ("mail", true, None)]);
    let text = metrics(node);
    assert!(text.contains("perennial_check_up{check=\"bank\"} 0"), "{text}");
    assert!(
        text.contains("perennial_check_up{check=\"mail\"} 1") && text.contains("perennial_ready 0"),
        "{text}"
    );

    bank.store(true, Ordering::Relaxed);
    cluster.ready().await;
    assert!(node.not_ready().is_empty());
    assert!(metrics(node).contains("perennial_check_up{check=\"bank\"} 1"));
    mail.store(false, Ordering::Relaxed);
    fails("check mail: no route").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_tells_what_is_missing_one_by_one() {
    let mut cluster = Cluster::prepared(3, App::new("health").actor::<Counter>());
    cluster.start(0).await;
    let waiting = |node: &Node| node.not_started().first().is_some_and(|why| why.contains("1 of 3 found"));
    until("it has no cluster", async || waiting(cluster.node(0)).then_some(())).await;
    assert_eq!(cluster.node(0).not_ready(), cluster.node(0).not_started());
    assert!(cluster.node(0).not_live().is_empty());
    for at in [1, 2] {
        cluster.start(at).await;
    }
    cluster.ready().await;
    assert!(cluster.node(0).not_started().is_empty() && cluster.node(0).not_ready().is_empty());
    for at in [1, 2] {
        cluster.stop(at).await;
    }
    // Without a majority it is started and live, and will not be ready.
    let reasons = until("all leaders are gone", async || {
        let reasons = cluster.node(0).not_ready();
        (reasons.len() == 10).then_some(reasons)
    })
    .await;
    for part in [
        "partition 0 has no leader known here",
        "partition 7 has no leader known here",
        "node n2 is not reached",
    ] {
        assert!(reasons.iter().any(|reason| reason == part), "{part} is not in {reasons:?}");
    }
    assert!(cluster.node(0).not_started().is_empty() && cluster.node(0).not_live().is_empty());
}

#[test]
#[should_panic(expected = "\"bank\" is added twice")]
fn a_check_is_added_once() {
    let _ = App::new("health").health("bank", async || Ok(())).health("bank", async || Ok(()));
}

#[test]
#[should_panic(expected = "1 to 64 of A-Z")]
fn the_name_of_a_check_is_a_label() {
    let _ = App::new("health").health("the bank", async || Ok(()));
}
