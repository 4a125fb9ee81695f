//! Requests over one link: mutual TLS on loopback TCP, the same code as between two nodes.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures_util::stream::{FuturesUnordered, StreamExt};
use perennial::link::tls::{Ca, Tls};
use perennial::link::{
    Admission, ClientLink, ClusterTransport, DoorLane, Facts, Handlers, Hello, LinkConfig, Peer, Refusal,
    Responder, Service, StreamSink,
};
use perennial_core::id::{ClusterId, NodeId};
use tokio::net::TcpListener;
use tokio::runtime::Builder;

/// Requests on their way at any time.
const IN_FLIGHT: usize = 512;
/// Size of a request and of its answer.
const PAYLOAD_BYTES: usize = 64;

struct Echo;
impl Service for Echo {
    fn request(&self, _: Peer, payload: Bytes, reply: Responder) {
        reply.send(payload);
    }
    fn stream(&self, _: Peer, _: Bytes, sink: StreamSink) {
        sink.finish();
    }
    fn join(&self, _: Peer, payload: Bytes) -> Bytes {
        payload
    }
}

struct All;
impl Admission for All {
    fn facts(&self) -> Facts {
        Facts {
            node: NodeId::new("a").expect("a label"),
            cluster: Some(ClusterId(1)),
            hash_version: 1,
            address: String::new(),
            incarnation: 1,
        }
    }
    fn admit(&self, _: &Peer, _: DoorLane, _: &Hello) -> Result<(), Refusal> {
        Ok(())
    }
}

async fn start() -> (Arc<ClusterTransport>, ClientLink) {
    let ca = Ca::generate().expect("an authority");
    let tls = Tls::new(&ca.issue_node(&All.facts().node, &[]).expect("a certificate")).expect("an identity");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let handlers =
        Handlers { inbound: Arc::new(|_, _, _| {}), events: Arc::new(|_| {}), service: Arc::new(Echo) };
    let config = LinkConfig::default();
    let node = ClusterTransport::start(listener, tls, Arc::new(All), handlers, config.clone())
        .await
        .expect("a node");
    let tls = Tls::new(&ca.issue_client("bench").expect("a certificate")).expect("an identity");
    let address = node.local_addr().to_string();
    let client = ClientLink::connect(&address, None, &tls, None, 1, &config).await.expect("a link");
    (node, client)
}

/// Time that `total` requests take, `in_flight` of them at a time, all from one task.
async fn ask(client: &ClientLink, total: u64, in_flight: usize) -> Duration {
    let payload = Bytes::from(vec![7; PAYLOAD_BYTES]);
    let within = Duration::from_secs(10);
    let start = Instant::now();
    let mut asked = 0;
    let mut waiting = FuturesUnordered::new();
    while asked < total || !waiting.is_empty() {
        while asked < total && waiting.len() < in_flight {
            waiting.push(client.request(&payload, within));
            asked += 1;
        }
        if let Some(answer) = waiting.next().await {
            black_box(answer.expect("an answer"));
        }
    }
    start.elapsed()
}

fn requests(c: &mut Criterion) {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let (_node, client) = runtime.block_on(start());
    let client = Arc::new(client);
    let mut group = c.benchmark_group("link");
    group.throughput(Throughput::Elements(1));
    for in_flight in [1, IN_FLIGHT] {
        group.bench_function(format!("requests of 64 B, {in_flight} in flight"), |b| {
            b.iter_custom(|total| {
                let client = client.clone();
                runtime.block_on(async move {
                    tokio::spawn(async move { ask(&client, total, in_flight).await }).await.expect("no panic")
                })
            });
        });
    }
    group.finish();
}

criterion_group!(benches, requests);
criterion_main!(benches);
