//! The contract of `link::Transport`, run by every implementation: memory (in paused time) and cluster
//! (mutual TLS over loopback TCP, through proxies that cut and freeze).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use perennial::link::tls::{Ca, Tls};
use perennial::link::{
    Admission, ClientLink, ClusterTransport, Control, ControlHandler, DialError, DoorLane, FRAME_BYTES_MAX,
    Facts, Handlers, Hello, Lane, LinkConfig, LinkError, LinkEvent, MemoryHub, MemoryTransport,
    NodeTransport, Peer, PushError, Refusal, Responder, Service, StreamEnd, StreamSink, Transport, Unsent,
    probe,
};
use perennial_core::id::{ClusterId, NodeId};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

const MINUTE: Duration = Duration::from_secs(60);

fn id(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

/// What a node was told.
#[derive(Debug, PartialEq, Eq)]
enum Seen {
    Frame(NodeId, Lane, Bytes),
    Event(LinkEvent),
    Held,
    StreamClosed(PushError),
}

/// Answers requests with their payload, except those that say otherwise.
struct Echo {
    seen: mpsc::UnboundedSender<Seen>,
    held: Mutex<Vec<Responder>>,
}

impl Service for Echo {
    fn request(&self, _: Peer, payload: Bytes, reply: Responder) {
        match &payload[..] {
            b"hold" => {
                self.held.lock().unwrap().push(reply);
                let _ = self.seen.send(Seen::Held);
            }
            b"drop" => drop(reply),
            _ => reply.send(payload),
        }
    }

    fn stream(&self, from: Peer, payload: Bytes, sink: StreamSink) {
        match &payload[..] {
            b"three" => {
                for item in ["a", "b", "c"] {
                    sink.push(Bytes::from_static(item.as_bytes())).unwrap();
                }
                sink.finish();
            }
            b"who" => sink.fail(&from.to_string()),
            // Until the reader leaves or is found too slow.
            _ => {
                let seen = self.seen.clone();
                tokio::spawn(async move {
                    let error = loop {
                        if let Err(error) = sink.push(Bytes::from_static(&[7; 1024])) {
                            break error;
                        }
                        tokio::task::yield_now().await;
                    };
                    let _ = seen.send(Seen::StreamClosed(error));
                });
            }
        }
    }

    fn join(&self, from: Peer, payload: Bytes) -> Bytes {
        Bytes::from(format!("{from} asked {}", String::from_utf8_lossy(&payload)))
    }
}

struct Received(mpsc::UnboundedReceiver<Seen>);

impl Received {
    fn new() -> (Handlers, Self) {
        let (seen, received) = mpsc::unbounded_channel();
        let (frames, events) = (seen.clone(), seen.clone());
        let handlers = Handlers {
            inbound: Arc::new(move |from, lane, frame| drop(frames.send(Seen::Frame(from, lane, frame)))),
            events: Arc::new(move |event| drop(events.send(Seen::Event(event)))),
            service: Arc::new(Echo { seen, held: Mutex::default() }),
        };
        (handlers, Self(received))
    }

    /// Waits until something is seen; what comes before is dropped.
    async fn until(&mut self, wanted: &Seen) {
        self.until_any(std::slice::from_ref(wanted)).await;
    }

    async fn until_any(&mut self, wanted: &[Seen]) {
        let search = async { while !wanted.contains(&self.0.recv().await.expect("the node lives")) {} };
        tokio::time::timeout(MINUTE, search).await.unwrap_or_else(|_| panic!("never saw any of {wanted:?}"));
    }

    async fn until_event(&mut self, event: LinkEvent) {
        self.until(&Seen::Event(event)).await;
    }

    async fn next_frame(&mut self) -> (NodeId, Lane, Bytes) {
        loop {
            match tokio::time::timeout(MINUTE, self.0.recv()).await.expect("a frame").unwrap() {
                Seen::Frame(from, lane, frame) => return (from, lane, frame),
                _ => continue,
            }
        }
    }
}

/// Several nodes and what is between them.
trait World {
    type Node: Transport;
    async fn new(config: LinkConfig) -> Self;
    async fn node(&mut self, name: &str) -> (Arc<Self::Node>, Received);
    fn link(&self, node: &Self::Node, from: &str, to: &[&str]);
    fn cut(&self, a: &str, b: &str);
    fn freeze(&self, a: &str, b: &str);
    fn heal(&self, a: &str, b: &str);
    /// Ends the process: stops the node, whose port then refuses connections.
    async fn stop(&self, name: &str, node: &Self::Node);
    /// Stops the node while its peers' way to it stays open.
    async fn stop_alone(node: &Self::Node);
}

// ------------------------------------------------------------------------------------- in memory

struct Memory {
    hub: MemoryHub,
    config: LinkConfig,
}

impl World for Memory {
    type Node = MemoryTransport;

    async fn new(config: LinkConfig) -> Self {
        Self { hub: MemoryHub::new(), config }
    }

    async fn node(&mut self, name: &str) -> (Arc<MemoryTransport>, Received) {
        let (handlers, received) = Received::new();
        (self.hub.join(id(name), handlers, self.config.clone()).await.unwrap(), received)
    }

    fn link(&self, node: &MemoryTransport, _: &str, to: &[&str]) {
        node.set_peers(to.iter().map(|to| (id(to), String::new())).collect());
    }

    fn cut(&self, a: &str, b: &str) {
        self.hub.cut(&id(a), &id(b));
    }

    fn freeze(&self, a: &str, b: &str) {
        self.hub.freeze(&id(a), &id(b));
    }

    fn heal(&self, a: &str, b: &str) {
        self.hub.heal(&id(a), &id(b));
    }

    async fn stop(&self, _: &str, node: &MemoryTransport) {
        node.stop().await;
    }

    async fn stop_alone(node: &MemoryTransport) {
        node.stop().await;
    }
}

// ---------------------------------------------------------------------------------------- on TCP

const CLUSTER: ClusterId = ClusterId(77);

/// Admits every node but `stranger`.
struct Members(Facts);

impl Admission for Members {
    fn facts(&self) -> Facts {
        self.0.clone()
    }

    fn admit(&self, peer: &Peer, lane: DoorLane, _: &Hello) -> Result<(), Refusal> {
        match peer {
            Peer::Node(node) if node.as_str() == "stranger" && lane != DoorLane::Join => {
                Err(Refusal::UnknownMember(node.clone()))
            }
            _ => Ok(()),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Open,
    Frozen,
    Cut,
}

/// Carries TCP connections to a node, or does not.
struct Proxy {
    address: String,
    way: watch::Sender<Way>,
    /// Cancelled when the node has ended: the port then refuses connections.
    dead: CancellationToken,
}

impl Proxy {
    async fn to(target: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (way, dead) = (watch::Sender::new(Way::Open), CancellationToken::new());
        let (state, ended) = (way.clone(), dead.clone());
        tokio::spawn(async move {
            while let Some(Ok((near, _))) = ended.run_until_cancelled(listener.accept()).await {
                tokio::spawn(carry(near, target.clone(), state.subscribe(), ended.clone()));
            }
        });
        Self { address, way, dead }
    }
}

async fn carry(mut near: TcpStream, target: String, mut way: watch::Receiver<Way>, ended: CancellationToken) {
    if *way.borrow_and_update() == Way::Cut {
        return;
    }
    let Ok(mut far) = TcpStream::connect(target).await else {
        return;
    };
    let mut copying = std::pin::pin!(tokio::io::copy_bidirectional(&mut near, &mut far));
    loop {
        let now = *way.borrow_and_update();
        if now == Way::Cut {
            return;
        }
        tokio::select! {
            biased;
            () = ended.cancelled() => return,
            changed = way.changed() => if changed.is_err() { return },
            _ = &mut copying, if now == Way::Open => return,
        }
    }
}

struct Cluster {
    ca: Ca,
    config: LinkConfig,
    addresses: BTreeMap<String, String>,
    proxies: BTreeMap<(String, String), Proxy>,
}

impl Cluster {
    fn pass(&self, a: &str, b: &str, way: Way) {
        for pair in [(a.to_owned(), b.to_owned()), (b.to_owned(), a.to_owned())] {
            self.proxies[&pair].way.send_replace(way);
        }
    }
}

impl World for Cluster {
    type Node = ClusterTransport;

    async fn new(config: LinkConfig) -> Self {
        Self { ca: Ca::generate().unwrap(), config, addresses: BTreeMap::new(), proxies: BTreeMap::new() }
    }

    async fn node(&mut self, name: &str) -> (Arc<ClusterTransport>, Received) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (handlers, received) = Received::new();
        let tls = Tls::new(&self.ca.issue_node(&id(name), &[]).unwrap()).unwrap();
        let facts = Facts {
            node: id(name),
            cluster: Some(CLUSTER),
            hash_version: 1,
            address: address.clone(),
            incarnation: 1,
        };
        let members = Arc::new(Members(facts));
        let node =
            ClusterTransport::start(listener, tls, members, handlers, self.config.clone()).await.unwrap();
        for (other, theirs) in &self.addresses {
            self.proxies.insert((name.to_owned(), other.clone()), Proxy::to(theirs.clone()).await);
            self.proxies.insert((other.clone(), name.to_owned()), Proxy::to(address.clone()).await);
        }
        self.addresses.insert(name.to_owned(), address);
        (node, received)
    }

    fn link(&self, node: &ClusterTransport, from: &str, to: &[&str]) {
        let address = |to: &str| self.proxies[&(from.to_owned(), to.to_owned())].address.clone();
        node.set_peers(to.iter().map(|to| (id(to), address(to))).collect());
    }

    fn cut(&self, a: &str, b: &str) {
        self.pass(a, b, Way::Cut);
    }

    fn freeze(&self, a: &str, b: &str) {
        self.pass(a, b, Way::Frozen);
    }

    fn heal(&self, a: &str, b: &str) {
        self.pass(a, b, Way::Open);
    }

    async fn stop(&self, name: &str, node: &ClusterTransport) {
        // First the ports: a process that ends has none before anyone notices.
        for ((_, to), proxy) in &self.proxies {
            if to == name {
                proxy.dead.cancel();
            }
        }
        node.stop().await;
    }

    async fn stop_alone(node: &ClusterTransport) {
        node.stop().await;
    }
}

// ---------------------------------------------------------------------------------- the contract

fn patient() -> LinkConfig {
    LinkConfig {
        backoff_min: Duration::from_millis(5),
        backoff_max: Duration::from_millis(50),
        ..LinkConfig::default()
    }
}

/// Two nodes that dial each other and are up.
async fn pair<W: World>(config: LinkConfig) -> (W, (Arc<W::Node>, Received), (Arc<W::Node>, Received)) {
    let mut world = W::new(config).await;
    let (a, mut seen_a) = world.node("a").await;
    let (b, mut seen_b) = world.node("b").await;
    world.link(&a, "a", &["b"]);
    world.link(&b, "b", &["a"]);
    seen_a.until_event(LinkEvent::Up(id("b"))).await;
    seen_b.until_event(LinkEvent::Up(id("a"))).await;
    (world, (a, seen_a), (b, seen_b))
}

/// Sends, also while the lane's own link is still being dialed or its queue is full.
async fn send(node: &impl Transport, to: &str, lane: Lane, mut frame: Bytes) {
    let sending = async {
        while let Err(unsent) = node.send(&id(to), lane, frame) {
            frame = unsent.into_frame();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(MINUTE, sending).await.expect("the frame is taken");
}

/// Asks, also while the calls lane is still being dialed.
async fn ask(node: &impl Transport, payload: &'static str) -> Result<Bytes, LinkError> {
    let asking = async {
        loop {
            match node.request(&id("b"), Bytes::from_static(payload.as_bytes()), MINUTE).await {
                Err(LinkError::NoLink) => tokio::time::sleep(Duration::from_millis(1)).await,
                answer => return answer,
            }
        }
    };
    tokio::time::timeout(MINUTE, asking).await.expect("an answer")
}

async fn frames_arrive_in_order_on_every_lane<W: World>() {
    const FRAMES: u32 = 2000;
    let (_world, (a, _seen_a), (_b, mut seen)) = pair::<W>(patient()).await;
    for n in 0..FRAMES {
        for lane in Lane::ALL {
            send(&*a, "b", lane, Bytes::from(n.to_le_bytes().to_vec())).await;
        }
    }
    let mut next = BTreeMap::from(Lane::ALL.map(|lane| (lane, 0u32)));
    while next.values().any(|&n| n < FRAMES) {
        let (from, lane, frame) = seen.next_frame().await;
        let next = next.get_mut(&lane).unwrap();
        assert_eq!((from, &frame[..]), (id("a"), &next.to_le_bytes()[..]));
        *next += 1;
    }
}

async fn a_frame_at_the_limit_arrives_and_one_above_comes_back<W: World>() {
    let (_world, (a, _seen_a), (_b, mut seen)) = pair::<W>(patient()).await;
    let above = Bytes::from(vec![1; FRAME_BYTES_MAX + 1]);
    assert_eq!(a.send(&id("b"), Lane::Bulk, above.clone()), Err(Unsent::TooLarge(above.clone())));
    ask(&*a, "warm").await.unwrap();
    let refused = a.request(&id("b"), above, MINUTE).await;
    assert_eq!(refused, Err(LinkError::TooLarge(FRAME_BYTES_MAX + 1)));
    let limit = Bytes::from(vec![2; FRAME_BYTES_MAX]);
    send(&*a, "b", Lane::Bulk, limit.clone()).await;
    assert_eq!(seen.next_frame().await, (id("a"), Lane::Bulk, limit));
}

async fn without_a_link_the_frame_comes_back<W: World>() {
    let mut world = W::new(patient()).await;
    let (a, _seen) = world.node("a").await;
    let frame = Bytes::from_static(b"x");
    assert_eq!(a.send(&id("b"), Lane::Raft, frame.clone()), Err(Unsent::NoLink(frame.clone())));
    assert_eq!(a.request(&id("b"), frame.clone(), MINUTE).await, Err(LinkError::NoLink));
    assert!(matches!(a.request_stream(&id("b"), frame), Err(LinkError::NoLink)));
    assert!(!a.is_up(&id("b")));
}

async fn a_cut_is_told_and_loses_and_healing_restores<W: World>() {
    let (world, (a, mut seen_a), (_b, mut seen_b)) = pair::<W>(patient()).await;
    ask(&*a, "warm").await.unwrap();
    let held = a.request(&id("b"), Bytes::from_static(b"hold"), MINUTE);
    seen_b.until(&Seen::Held).await;
    world.cut("a", "b");
    assert_eq!(held.await, Err(LinkError::Lost));
    seen_a.until_event(LinkEvent::Down(id("b"))).await;
    seen_b.until_event(LinkEvent::Down(id("a"))).await;
    assert!(!a.is_up(&id("b")));
    let lost = Bytes::from_static(b"lost");
    assert_eq!(a.send(&id("b"), Lane::Raft, lost.clone()), Err(Unsent::NoLink(lost)));
    world.heal("a", "b");
    seen_a.until_event(LinkEvent::Up(id("b"))).await;
    send(&*a, "b", Lane::Raft, Bytes::from_static(b"after")).await;
    assert_eq!(seen_b.next_frame().await, (id("a"), Lane::Raft, Bytes::from_static(b"after")));
}

async fn the_end_of_a_process_is_told_as_gone<W: World>() {
    let (world, (_a, mut seen_a), (b, _seen_b)) = pair::<W>(patient()).await;
    world.stop("b", &b).await;
    seen_a.until_event(LinkEvent::Gone(id("b"))).await;
}

async fn a_frozen_peer_costs_one_queue_and_holds_up_nobody<W: World>() {
    let config = LinkConfig {
        ping_every: Duration::from_millis(300),
        idle_read: Duration::from_millis(2500),
        stalled_write: Duration::from_millis(2500),
        ..patient()
    };
    let queue = config.queue_bytes_max;
    let mut world = W::new(config).await;
    let (a, mut seen_a) = world.node("a").await;
    let (_b, _seen_b) = world.node("b").await;
    let (_c, mut seen_c) = world.node("c").await;
    world.link(&a, "a", &["b", "c"]);
    seen_a.until_event(LinkEvent::Up(id("b"))).await;
    send(&*a, "b", Lane::Bulk, Bytes::new()).await;
    send(&*a, "c", Lane::Bulk, Bytes::new()).await;
    world.freeze("a", "b");
    let chunk = Bytes::from(vec![0; 256 << 10]);
    let mut taken = 0;
    let full = loop {
        match a.send(&id("b"), Lane::Bulk, chunk.clone()) {
            Ok(()) => taken += chunk.len(),
            Err(unsent) => break unsent,
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(full, Unsent::Full(chunk.clone()));
    assert!(taken < queue + (64 << 20), "what a frozen peer costs is bounded, {taken} bytes were taken");
    // Other lanes and other peers go on.
    assert_eq!(a.send(&id("b"), Lane::Raft, Bytes::from_static(b"x")), Ok(()));
    send(&*a, "c", Lane::Bulk, Bytes::from_static(b"y")).await;
    while seen_c.next_frame().await != (id("a"), Lane::Bulk, Bytes::from_static(b"y")) {}
    seen_a.until_event(LinkEvent::Down(id("b"))).await;
    world.heal("a", "b");
    seen_a.until_event(LinkEvent::Up(id("b"))).await;
}

async fn requests_are_answered_or_say_what_became_of_them<W: World>() {
    let (_world, (a, _seen_a), (_b, mut seen_b)) = pair::<W>(patient()).await;
    assert_eq!(ask(&*a, "hello").await.unwrap(), "hello");
    assert_eq!(ask(&*a, "drop").await, Err(LinkError::Closed));
    let hold = a.request(&id("b"), Bytes::from_static(b"hold"), Duration::from_millis(50));
    assert_eq!(hold.await, Err(LinkError::TimedOut));
    let forgotten = a.request(&id("b"), Bytes::from_static(b"hold"), MINUTE);
    seen_b.until(&Seen::Held).await;
    drop(forgotten);
    let many: Vec<_> = (0..2000u32)
        .map(|n| (n, a.request(&id("b"), Bytes::from(n.to_le_bytes().to_vec()), MINUTE)))
        .collect();
    for (n, answer) in many {
        assert_eq!(answer.await.unwrap(), n.to_le_bytes()[..]);
    }
}

async fn requests_beyond_the_limit_are_refused<W: World>() {
    let (_world, (a, _seen_a), (_b, mut seen_b)) =
        pair::<W>(LinkConfig { requests_max: 2, ..patient() }).await;
    ask(&*a, "warm").await.unwrap();
    let hold = || a.request(&id("b"), Bytes::from_static(b"hold"), MINUTE);
    let held = [hold(), hold()];
    for _ in &held {
        seen_b.until(&Seen::Held).await;
    }
    assert_eq!(hold().await, Err(LinkError::Full));
    // Forgotten here, they still count there until they are answered.
    drop(held);
    assert_eq!(hold().await, Err(LinkError::Full));
}

async fn streams_end_with_a_reason_and_leaving_is_noticed<W: World>() {
    let config = LinkConfig { stream_items_max: 8, ..patient() };
    let (_world, (a, _seen_a), (_b, mut seen_b)) = pair::<W>(config).await;
    ask(&*a, "warm").await.unwrap();
    let mut three = a.request_stream(&id("b"), Bytes::from_static(b"three")).unwrap();
    for item in ["a", "b", "c"] {
        assert_eq!(three.next().await.unwrap(), item);
    }
    assert_eq!(three.next().await, Err(StreamEnd::Finished));
    let mut who = a.request_stream(&id("b"), Bytes::from_static(b"who")).unwrap();
    assert_eq!(who.next().await, Err(StreamEnd::Failed("node a".to_owned())));

    // A reader that does not read keeps what was buffered and is told why there is no more. The server
    // learns it from the reader, or from its own queue.
    let left = [Seen::StreamClosed(PushError::Closed), Seen::StreamClosed(PushError::Slow)];
    let mut slow = a.request_stream(&id("b"), Bytes::from_static(b"for ever")).unwrap();
    seen_b.until_any(&left).await;
    for _ in 0..8 {
        slow.next().await.unwrap();
    }
    assert_eq!(slow.next().await, Err(StreamEnd::Slow));

    let mut leaving = a.request_stream(&id("b"), Bytes::from_static(b"for ever")).unwrap();
    let _ = leaving.next().await;
    drop(leaving);
    seen_b.until_any(&left).await;
}

async fn a_lost_link_ends_its_streams_on_both_sides<W: World>() {
    let (world, (a, _seen_a), (_b, mut seen_b)) = pair::<W>(patient()).await;
    ask(&*a, "warm").await.unwrap();
    let mut stream = a.request_stream(&id("b"), Bytes::from_static(b"for ever")).unwrap();
    stream.next().await.unwrap();
    let reading = tokio::spawn(async move {
        loop {
            if let Err(end) = stream.next().await {
                break end;
            }
        }
    });
    world.cut("a", "b");
    let end = reading.await.unwrap();
    assert!(matches!(end, StreamEnd::Lost | StreamEnd::Slow), "{end:?}");
    seen_b.until_any(&[Seen::StreamClosed(PushError::Closed), Seen::StreamClosed(PushError::Slow)]).await;
}

async fn a_peer_that_is_no_longer_named_is_let_go<W: World>() {
    let (world, (a, _seen_a), (_b, _seen_b)) = pair::<W>(patient()).await;
    ask(&*a, "warm").await.unwrap();
    world.link(&a, "a", &["b"]);
    assert_eq!(ask(&*a, "still there").await.unwrap(), "still there");
    world.link(&a, "a", &[]);
    let frame = Bytes::from_static(b"x");
    assert_eq!(a.send(&id("b"), Lane::Calls, frame.clone()), Err(Unsent::NoLink(frame)));
}

async fn stopping_hands_over_what_is_queued<W: World>() {
    let (_world, (a, _seen_a), (b, mut seen_b)) = pair::<W>(patient()).await;
    ask(&*a, "warm").await.unwrap();
    for n in 0..500u32 {
        assert_eq!(a.send(&id("b"), Lane::Calls, Bytes::from(n.to_le_bytes().to_vec())), Ok(()));
    }
    // The node is stopped by its own hand here: its ports play no part.
    W::stop_alone(&a).await;
    for n in 0..500u32 {
        assert_eq!(seen_b.next_frame().await.2, n.to_le_bytes()[..]);
    }
    drop(b);
}

macro_rules! contract {
    ($($name:ident)*) => {
        mod memory {
            $(#[tokio::test(start_paused = true)]
            async fn $name() {
                super::$name::<super::Memory>().await;
            })*
        }
        mod cluster {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name::<super::Cluster>().await;
            })*
        }
    };
}

contract! {
    frames_arrive_in_order_on_every_lane
    a_frame_at_the_limit_arrives_and_one_above_comes_back
    without_a_link_the_frame_comes_back
    a_cut_is_told_and_loses_and_healing_restores
    the_end_of_a_process_is_told_as_gone
    a_frozen_peer_costs_one_queue_and_holds_up_nobody
    requests_are_answered_or_say_what_became_of_them
    requests_beyond_the_limit_are_refused
    streams_end_with_a_reason_and_leaving_is_noticed
    a_lost_link_ends_its_streams_on_both_sides
    a_peer_that_is_no_longer_named_is_let_go
    stopping_hands_over_what_is_queued
}

// --------------------------------------------------------------------- clients and joining nodes

#[tokio::test]
async fn a_client_asks_and_loses_its_link_when_the_node_stops() {
    let mut world = Cluster::new(patient()).await;
    let (a, mut seen_a) = world.node("a").await;
    let tls = Tls::new(&world.ca.issue_client("shell").unwrap()).unwrap();
    let address = a.local_addr().to_string();
    let connect = |cluster, hash| ClientLink::connect(&address, None, &tls, cluster, hash, &world.config);
    let refused = |refused: Result<ClientLink, DialError>| match refused {
        Err(DialError::TurnedAway { refusal, .. }) => refusal,
        other => panic!("{other:?}"),
    };
    assert!(matches!(refused(connect(Some(ClusterId(1)), 1).await), Refusal::WrongCluster { .. }));
    assert!(matches!(refused(connect(None, 2).await), Refusal::HashVersion { .. }));

    let client = connect(None, 1).await.unwrap();
    assert_eq!(client.facts().node, id("a"));
    assert_eq!(client.request(&Bytes::from_static(b"hi"), MINUTE).await.unwrap(), "hi");
    let mut who = client.request_stream(&Bytes::from_static(b"who")).unwrap();
    assert_eq!(who.next().await, Err(StreamEnd::Failed("client shell".to_owned())));
    let held = client.request(&Bytes::from_static(b"hold"), MINUTE);
    seen_a.until(&Seen::Held).await;
    a.stop().await;
    assert_eq!(held.await, Err(LinkError::Lost));
    assert_eq!(client.request(&Bytes::from_static(b"hi"), MINUTE).await, Err(LinkError::NoLink));
    assert!(matches!(connect(None, 1).await, Err(DialError::Refused(_))));
}

#[tokio::test]
async fn a_joining_node_learns_who_is_there_and_knows_its_own_address() {
    let mut world = Cluster::new(patient()).await;
    let (a, _seen) = world.node("a").await;
    let address = a.local_addr().to_string();
    let facts = |name: &str| Facts {
        node: id(name),
        cluster: None,
        hash_version: 1,
        address: "new:1".to_owned(),
        incarnation: 1,
    };
    let tls = |name: &str| Tls::new(&world.ca.issue_node(&id(name), &[]).unwrap()).unwrap();
    let probed = probe(&address, &tls("stranger"), facts("stranger"), b"who", &world.config).await.unwrap();
    assert_eq!((probed.facts.node, probed.facts.cluster), (id("a"), Some(CLUSTER)));
    assert_eq!(probed.reply, "node stranger asked who");
    let own = probe(&address, &tls("a"), facts("a"), b"who", &world.config).await;
    assert!(matches!(own, Err(DialError::TurnedAway { refusal: Refusal::OwnNode(_), .. })), "{own:?}");
    let other_name = probe(&address, &tls("stranger"), facts("b"), b"who", &world.config).await;
    let Err(DialError::TurnedAway { refusal: Refusal::Certificate { .. }, .. }) = other_name else {
        panic!("{other_name:?}");
    };
}

#[tokio::test]
async fn a_certificate_of_another_authority_opens_nothing() {
    let mut world = Cluster::new(patient()).await;
    let (a, _seen) = world.node("a").await;
    let foreign = Tls::new(&Ca::generate().unwrap().issue_client("shell").unwrap()).unwrap();
    let address = a.local_addr().to_string();
    let refused = ClientLink::connect(&address, None, &foreign, None, 1, &world.config).await;
    assert!(matches!(refused, Err(DialError::Failed { .. })), "{refused:?}");
    // A node found at another's address is not taken for it.
    let tls = Tls::new(&world.ca.issue_client("shell").unwrap()).unwrap();
    let other = ClientLink::connect(&address, Some(&id("b")), &tls, None, 1, &world.config).await;
    assert!(matches!(other, Err(DialError::Failed { .. })), "{other:?}");
    assert!(ClientLink::connect(&address, Some(&id("a")), &tls, None, 1, &world.config).await.is_ok());
}

#[tokio::test]
async fn a_node_that_is_not_a_member_gets_no_link() {
    let mut world = Cluster::new(patient()).await;
    let (a, mut seen_a) = world.node("a").await;
    let (stranger, _seen) = world.node("stranger").await;
    let (_b, _seen_b) = world.node("b").await;
    world.link(&stranger, "stranger", &["a"]);
    world.link(&a, "a", &["b"]);
    seen_a.until_event(LinkEvent::Up(id("b"))).await;
    let frame = Bytes::from_static(b"x");
    assert_eq!(stranger.send(&id("a"), Lane::Raft, frame.clone()), Err(Unsent::NoLink(frame)));
    assert!(!stranger.is_up(&id("a")));
}

/// Echoes administrative calls.
struct Admin(mpsc::UnboundedSender<NodeId>);

impl ControlHandler for Admin {
    fn info(&self) -> Bytes {
        Bytes::new()
    }
    fn hello(&self, _: NodeId, _: Bytes) {}
    fn table(&self, _: NodeId, _: Bytes) {}
    fn admin(&self, _: NodeId, payload: Bytes) -> BoxFuture<'static, Bytes> {
        Box::pin(std::future::ready(payload))
    }
    fn up(&self, node: NodeId) {
        let _ = self.0.send(node);
    }
    fn down(&self, _: NodeId) {}
}

#[tokio::test]
async fn control_sessions_run_over_the_same_door() {
    let mut world = Cluster::new(patient()).await;
    let (a, _seen_a) = world.node("a").await;
    let (b, _seen_b) = world.node("b").await;
    let mut controls = Vec::new();
    for (name, node) in [("a", &a), ("b", &b)] {
        let (up, ups) = mpsc::unbounded_channel();
        let handler = Arc::new(Admin(up));
        let control = Control::start(id(name), 1, CLUSTER, handler, world.config.clone()).await.unwrap();
        node.serve_control(control.clone());
        controls.push((control, ups));
    }
    world.link(&a, "a", &["b"]);
    world.link(&b, "b", &["a"]);
    for ((control, ups), other) in controls.iter_mut().zip(["b", "a"]) {
        let up = tokio::time::timeout(MINUTE, ups.recv()).await.expect("a session");
        assert_eq!(up, Some(id(other)));
        let payload = Bytes::from(vec![7; 300 << 10]);
        assert_eq!(control.call(&id(other), payload.clone(), MINUTE).await.unwrap(), payload);
    }
    for (control, _) in &controls {
        control.stop().await;
    }
    a.stop().await;
    b.stop().await;
}
