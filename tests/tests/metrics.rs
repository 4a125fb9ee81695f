//! The page about metrics and what a node exposes are the same.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use perennial::App;
use perennial::node::Backend;
use perennial::prelude::*;
use perennial_runtime::counter::Counter;
use perennial_runtime::gateway::{AdminConfig, Gateway, GatewayConfig, Policy};
use perennial_tests::Cluster;

const PAGE: &str = include_str!("../../docs/metrics.md");

/// Counts letters.
#[data]
#[derive(Default)]
pub struct Letters;

#[actor(stateless)]
impl Letters {
    /// How many there are.
    pub fn count(&self, text: String) -> u64 {
        text.chars().count() as u64
    }
}

/// Names and types of the rows of the page's tables.
fn described() -> BTreeMap<&'static str, &'static str> {
    let mut described = BTreeMap::new();
    for row in PAGE.lines().filter(|line| line.starts_with("| `perennial_")) {
        let mut cells = row.split('|').map(str::trim).skip(1);
        let (name, kind, means) = (cells.next().unwrap(), cells.next().unwrap(), cells.next().unwrap());
        let name = name.trim_matches('`').split('{').next().unwrap();
        assert!(!means.is_empty(), "{name} has no meaning");
        assert!(described.insert(name, kind).is_none(), "{name} is described twice");
    }
    described
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_metric_is_described_and_every_description_is_of_a_metric() {
    let app = App::new("metrics").actor::<Counter>().actor::<Letters>().health("well", async || Ok(()));
    let mut cluster = Cluster::prepared(1, app);
    cluster.start(0).await;
    cluster.ready().await;
    let node = cluster.node(0);
    assert_eq!(node.get::<Counter>("a").add(1).await, Ok(1));
    assert_eq!(node.get::<Letters>("a").count("four".into()).await, Ok(4));
    // Of what was refused there is nothing to see before something is.
    let policy = cluster.beside("policy.toml");
    std::fs::write(&policy, "[[allow]]\nwho = \"anonymous\"\nkind = \"Letters\"\nmethods = \"*\"\n").unwrap();
    let policy = Policy::read(&policy, node.app().kinds()).unwrap();
    let any: SocketAddr = ([127, 0, 0, 1], 0).into();
    let config = GatewayConfig {
        body_bytes_max: 10,
        policy: Some(policy.into()),
        admin: Some(AdminConfig { address: any, tls: None }),
        ..GatewayConfig::default()
    };
    let gateway = Gateway::bind(any, Arc::new(node.clone()), config).await.unwrap();
    let calls = format!("http://{}/v1", gateway.address().unwrap());
    let http = reqwest::Client::new();
    let status = async |path: &str| {
        let asked = http.post(format!("{calls}/{path}")).body("{\"text\":\"four\"}");
        asked.send().await.unwrap().status().as_u16()
    };
    assert_eq!((status("Counter/a/add").await, status("Letters/any/count").await), (401, 413));
    let url = format!("http://{}/metrics", gateway.admin().unwrap());
    let text = reqwest::get(url).await.unwrap().text().await.unwrap();

    let described = described();
    let mut exposed = BTreeSet::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (family, kind) = line.split_once(' ').unwrap();
        let name = if kind == "counter" { format!("{family}_total") } else { family.to_owned() };
        assert_eq!(described.get(name.as_str()), Some(&kind), "{name} in docs/metrics.md");
        exposed.insert(name);
    }
    let left: Vec<_> = described.keys().filter(|name| !exposed.contains(**name)).collect();
    assert!(left.is_empty(), "no metrics of a node: {left:?}");
    assert!(exposed.len() > 50, "{exposed:?}");
    // What the text names is in the tables too.
    for word in
        PAGE.split(|c: char| !c.is_ascii_lowercase() && c != '_').filter(|w| w.starts_with("perennial_"))
    {
        assert!(described.contains_key(word), "{word} is in the text only");
    }
}
