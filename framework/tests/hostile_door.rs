//! Bad input at the one port of a real node: real sockets, real TLS, every reason to be turned away.
//!
//! What is sent is spelled here byte by byte, not with the product's own encoders. Whatever comes, the node
//! answers as documented, counts it under its reason and goes on serving a client of good faith.

#![expect(missing_docs, reason = "the actor of this test")]

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use perennial::call::Answered;
use perennial::core::id::{ClusterId, NodeId};
use perennial::core::membership::MemberSpec;
use perennial::link::tls::Ca;
use perennial::link::{DoorLane, Facts, Hello, Refusal};
use perennial::node::{Backend, TlsFiles};
use perennial::prelude::*;
use perennial::{Client, ClientConfig, Node, NodeConfig};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

#[data]
#[derive(Default)]
pub struct Counter {
    value: u64,
}

#[actor]
impl Counter {
    pub fn add(&mut self, n: u64) -> u64 {
        self.value += n;
        self.value
    }

    pub fn value(&self) -> u64 {
        self.value
    }
}

/// Longest that anything here may take.
const MINUTE: Duration = Duration::from_secs(60);
/// Memory that all the abuse may cost the process (the node, its clients and this test), in bytes.
const MEMORY_MAX: u64 = 400 << 20;

const HELLO: u8 = 1;
const WELCOME: u8 = 2;
const REFUSE: u8 = 3;
const DATA: u8 = 5;
const REQUEST: u8 = 6;
const RESPONSE: u8 = 7;

/// A frame: length, version, kind, id for requests and what follows them, body.
fn frame(kind: u8, id: u64, body: &[u8]) -> Vec<u8> {
    let id = if kind >= REQUEST { id.to_le_bytes().to_vec() } else { Vec::new() };
    let len = (2 + id.len() + body.len()) as u32;
    [&len.to_le_bytes()[..], &[1, kind], &id, body].concat()
}

struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

/// A node of a cluster of its own, the authority, and the folders of certificates.
struct World {
    node: Node,
    address: SocketAddr,
    folder: tempfile::TempDir,
    ca: Ca,
    cluster: ClusterId,
}

impl World {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ca = Ca::generate().unwrap();
        ca.save(&folder.path().join("ca")).unwrap();
        ca.issue_node(&id("n1"), &[]).unwrap().save(&folder.path().join("n1")).unwrap();
        let tls = files(&folder.path().join("n1"), "node");
        let config = NodeConfig {
            node: id("n1"),
            listen: "127.0.0.1:0".parse().unwrap(),
            advertise: None,
            http: None,
            join: Vec::new(),
            dns_server: None,
            bootstrap_expect: Some(1),
            data: folder.path().join("data"),
            tls,
            partitions: 4,
            replication: 1,
            zone: None,
            weight: 100,
            actors_bytes: perennial::limits::ACTORS_BYTES_DEFAULT,
        };
        let node = Node::start(config, App::new("door").actor::<Counter>()).await.unwrap();
        node.wait_ready().await;
        let address = node.address();
        let mut world = Self { node, address, folder, ca, cluster: ClusterId(0) };
        let shell = world.client("shell");
        let mut io = world.tls(&shell).await.unwrap();
        let welcome = say_hello(&mut io, &Hello::of_client(None, 1)).await.unwrap();
        world.cluster = welcome.cluster.unwrap();
        world
    }

    fn client(&self, name: &str) -> Identity {
        let folder = self.folder.path().join(name);
        self.ca.issue_client(name).unwrap().save(&folder).unwrap();
        load(&folder, "client")
    }

    fn member(&self, name: &str) -> Identity {
        let folder = self.folder.path().join(name);
        self.ca.issue_node(&id(name), &[]).unwrap().save(&folder).unwrap();
        load(&folder, "node")
    }

    /// A certificate of the cluster's authority that the product would not issue.
    fn odd(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Identity {
        let folder = self.folder.path().join("ca");
        let read = |file| std::fs::read_to_string(folder.join(file)).unwrap();
        let issuer =
            Issuer::from_ca_cert_pem(&read("ca.pem"), KeyPair::from_pem(&read("ca.key")).unwrap()).unwrap();
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        Identity { chain: vec![certificate.der().clone()], key }
    }

    fn facts(&self, name: &str) -> Facts {
        Facts {
            node: id(name),
            cluster: Some(self.cluster),
            hash_version: 1,
            address: "127.0.0.1:9".to_owned(),
            incarnation: 1,
        }
    }

    async fn tls(&self, identity: &Identity) -> std::io::Result<TlsStream<TcpStream>> {
        self.tls_over(TcpStream::connect(self.address).await?, Some(identity)).await
    }

    async fn tls_over(
        &self,
        tcp: TcpStream,
        identity: Option<&Identity>,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = rustls::RootCertStore::empty();
        let ca = self.folder.path().join("ca/ca.pem");
        roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
        let config = rustls::ClientConfig::builder().with_root_certificates(roots);
        let config = match identity {
            Some(Identity { chain, key }) => {
                config.with_client_auth_cert(chain.clone(), key.clone_key()).unwrap()
            }
            None => config.with_no_client_auth(),
        };
        let name = ServerName::try_from("n1.node.perennial").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, tcp).await
    }

    /// An admitted connection.
    async fn admitted(&self, identity: &Identity, hello: &Hello) -> TlsStream<TcpStream> {
        let mut io = self.tls(identity).await.unwrap();
        say_hello(&mut io, hello).await.unwrap();
        io
    }

    fn metric(&self, name: &str) -> u64 {
        let registry = self.node.metrics();
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry.lock().unwrap()).unwrap();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name}"));
        line.rsplit_once(' ').unwrap().1.parse().unwrap()
    }

    fn closed(&self, reason: &str) -> u64 {
        self.metric(&format!("perennial_connections_closed_total{{reason=\"{reason}\"}}"))
    }

    /// Waits until this many more connections are counted under a reason.
    async fn until_closed(&self, reason: &str, count: u64) {
        let wait = async {
            while self.closed(reason) < count {
                tokio::task::yield_now().await;
            }
        };
        let waited = tokio::time::timeout(MINUTE, wait).await;
        waited.unwrap_or_else(|_| panic!("{} of {count} counted as {reason}", self.closed(reason)));
    }

    /// Runs something that the node must close, under exactly this reason.
    async fn expect(&self, reason: &str, what: &str, abuse: impl Future<Output = ()>) {
        let before = self.closed(reason);
        let done = tokio::time::timeout(MINUTE, abuse).await;
        done.unwrap_or_else(|_| panic!("{what}: the connection was not closed"));
        self.until_closed(reason, before + 1).await;
        assert_eq!(self.closed(reason), before + 1, "{what}");
    }
}

fn id(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn files(folder: &Path, stem: &str) -> TlsFiles {
    let file = |name: String| -> PathBuf { folder.join(name) };
    TlsFiles {
        ca: file("ca.pem".into()),
        cert: file(format!("{stem}.pem")),
        key: file(format!("{stem}.key")),
    }
}

fn load(folder: &Path, stem: &str) -> Identity {
    let TlsFiles { cert, key, .. } = files(folder, stem);
    let chain = CertificateDer::pem_file_iter(cert).unwrap().collect::<Result<_, _>>().unwrap();
    Identity { chain, key: PrivateKeyDer::from_pem_file(key).unwrap() }
}

/// The next frame's kind, id and body; pings are left out.
async fn next(io: &mut TlsStream<TcpStream>) -> std::io::Result<(u8, u64, Vec<u8>)> {
    loop {
        let len = io.read_u32_le().await? as usize;
        let mut rest = vec![0; len];
        io.read_exact(&mut rest).await?;
        let kind = rest[1];
        match kind {
            4 => {}
            REQUEST.. => {
                let id = u64::from_le_bytes(rest[2..10].try_into().unwrap());
                return Ok((kind, id, rest[10..].to_vec()));
            }
            _ => return Ok((kind, 0, rest[2..].to_vec())),
        }
    }
}

/// Waits until the other side has closed, in good order or not.
async fn closed(io: &mut (impl AsyncReadExt + Unpin)) {
    let _ = io.read_to_end(&mut Vec::new()).await;
}

async fn say_hello(io: &mut TlsStream<TcpStream>, hello: &Hello) -> Result<Facts, Refusal> {
    io.write_all(&frame(HELLO, 0, &postcard::to_stdvec(hello).unwrap())).await.unwrap();
    io.flush().await.unwrap();
    let (kind, _, body) = next(io).await.unwrap();
    match kind {
        WELCOME => Ok(postcard::from_bytes(&body).unwrap()),
        REFUSE => Err(postcard::from_bytes(&body).unwrap()),
        other => panic!("frame kind {other} after a hello"),
    }
}

/// A call of `Counter/KEY` by one of a session's numbers, as a client puts it on the wire.
fn call(key: &str, method: &str, args: &[u8], session: u128, seq: u64) -> Vec<u8> {
    let target = format!("Counter/{key}");
    let request = (session, seq);
    let flags = (0u64, false, false);
    let path: [&str; 0] = [];
    let (timeout, stale) = (10_000u32, None::<u64>);
    let bytes =
        postcard::to_stdvec(&((0u8, target, method, 0u8, args), request, flags, &path[..], timeout, stale));
    [vec![1], bytes.unwrap()].concat()
}

/// The value in the answer to a call.
fn value(body: &[u8]) -> u64 {
    assert_eq!(body[..2], [1, 0], "version 1, an answer: {body:?}");
    let answered: Answered = postcard::from_bytes(&body[2..]).unwrap();
    match answered.answer {
        perennial::actor::Answer::Ok(bytes) => postcard::from_bytes(&bytes).unwrap(),
        other => panic!("{other:?}"),
    }
}

async fn ask(io: &mut TlsStream<TcpStream>, id: u64, body: &[u8]) -> Vec<u8> {
    io.write_all(&frame(REQUEST, id, body)).await.unwrap();
    io.flush().await.unwrap();
    let (kind, answered, body) = next(io).await.unwrap();
    assert_eq!((kind, answered), (RESPONSE, id));
    body
}

/// Bytes of memory this process has in use.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// A client of good faith that calls without pause.
struct Faithful {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Faithful {
    async fn start(world: &World) -> Self {
        let folder = world.folder.path().join("faithful");
        world.ca.issue_client("faithful").unwrap().save(&folder).unwrap();
        let addresses = vec![world.address.to_string()];
        let tls = files(&folder, "client");
        let client = Client::connect(ClientConfig { addresses, tls }).await.unwrap();
        let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let task = tokio::spawn({
            let (stop, served) = (stop.clone(), served.clone());
            async move {
                let counter = client.get::<Counter>("faithful");
                while !stop.load(Ordering::Relaxed) {
                    let sum = counter.add(1).await.expect("a call of good faith is served");
                    assert_eq!(sum, served.fetch_add(1, Ordering::Relaxed) + 1);
                }
            }
        });
        Self { stop, served, task }
    }

    /// Waits until it has been served again.
    async fn goes_on(&self) {
        let before = self.served.load(Ordering::Relaxed);
        let wait = async {
            while self.served.load(Ordering::Relaxed) <= before + 1 && !self.task.is_finished() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(MINUTE, wait).await.expect("the client of good faith is served");
        assert!(!self.task.is_finished(), "the client of good faith met an error");
    }

    async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_and_impostors_are_turned_away_under_their_reason() {
    let world = World::start().await;
    let faithful = Faithful::start(&world).await;

    // ---- before any frame: who is there?
    let foreign = Ca::generate().unwrap();
    let folder = world.folder.path().join("foreign");
    foreign.issue_client("shell").unwrap().save(&folder).unwrap();
    let foreign = load(&folder, "client");
    let own = ["shell.client.perennial"];
    let expired = world.odd(&own, |p| p.not_after = rcgen::date_time_ymd(2020, 1, 1));
    let early = world.odd(&own, |p| p.not_before = rcgen::date_time_ymd(2500, 1, 1));
    let server_only = world.odd(&own, |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    for (what, identity) in [
        ("no certificate", None),
        ("a foreign authority", Some(&foreign)),
        ("an expired certificate", Some(&expired)),
        ("a certificate that is not valid yet", Some(&early)),
        ("a certificate that is not for clients", Some(&server_only)),
    ] {
        let abuse = async {
            let tcp = TcpStream::connect(world.address).await.unwrap();
            // In TLS 1.3 the dialing side learns of it with its first read.
            if let Ok(mut io) = world.tls_over(tcp, identity).await {
                closed(&mut io).await;
            }
        };
        world.expect("tls", what, abuse).await;
    }
    let no_tls = async {
        let mut tcp = TcpStream::connect(world.address).await.unwrap();
        tcp.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        closed(&mut tcp).await;
    };
    world.expect("tls", "no TLS at all", no_tls).await;
    for (what, names) in [
        ("a name of somebody else", &["example.org"][..]),
        ("two names", &["n2.node.perennial", "n3.node.perennial"]),
        ("a name that only looks like one", &["n2.node.perennial.example.org"]),
        ("a name that is no label", &["a.b.client.perennial"]),
    ] {
        let identity = world.odd(names, |_| {});
        let abuse = async { closed(&mut world.tls(&identity).await.unwrap()).await };
        world.expect("nameless", what, abuse).await;
    }

    // ---- the hello: who is it, and for what?
    let shell = world.client("shell");
    let (stranger, own_name) = (world.member("stranger"), world.member("n1"));
    let of_node = |lane, name: &str| Hello::of_node(lane, world.facts(name));
    let of_client = Hello::of_client(None, 1);
    let other_cluster = Hello { cluster: Some(ClusterId(1)), ..of_client.clone() };
    let other_hash = Hello { hash_version: 9, ..of_client.clone() };
    let nameless = |lane| Hello { lane, ..of_client.clone() };
    let node_lanes = [DoorLane::Control, DoorLane::Raft, DoorLane::Calls, DoorLane::Bulk, DoorLane::Join];
    let mut refused = vec![
        ("stranger", &stranger, of_node(DoorLane::Raft, "stranger")),
        ("stranger", &stranger, of_node(DoorLane::Control, "stranger")),
        ("name", &stranger, of_node(DoorLane::Raft, "n1")),
        ("name", &stranger, of_node(DoorLane::Join, "n2")),
        ("name", &own_name, of_node(DoorLane::Raft, "n1")),
        ("cluster", &shell, other_cluster),
        ("cluster", &shell, other_hash),
        ("lane", &stranger, nameless(DoorLane::Raft)),
        ("name", &stranger, of_node(DoorLane::Client, "stranger")),
    ];
    for lane in node_lanes {
        refused.push(("lane", &shell, of_node(lane, "n1")));
        refused.push(("lane", &shell, nameless(lane)));
    }
    for (reason, identity, hello) in refused {
        let abuse = async {
            let mut io = world.tls(identity).await.unwrap();
            let refusal = say_hello(&mut io, &hello).await.expect_err("nobody comes in like that");
            assert!(!refusal.to_string().is_empty());
            closed(&mut io).await;
        };
        world.expect(reason, &format!("{hello:?}"), abuse).await;
    }
    let mut trailing = postcard::to_stdvec(&of_client).unwrap();
    trailing.push(0);
    let far_lane = [6, 0, 1, 0];
    for (what, bytes) in [
        ("no hello", frame(HELLO, 0, &[99])),
        ("a hello with bytes behind it", frame(HELLO, 0, &trailing)),
        ("a lane that there is not", frame(HELLO, 0, &far_lane)),
        ("an empty hello", frame(HELLO, 0, &[])),
        ("a request for a hello", frame(REQUEST, 1, &postcard::to_stdvec(&of_client).unwrap())),
        ("a hello that is too large", frame(HELLO, 0, &[0; 5000])),
        ("a frame of 4 GB", vec![0xff, 0xff, 0xff, 0xff, 1, HELLO]),
        ("a frame of another version", vec![2, 0, 0, 0, 9, HELLO]),
        ("no frame", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
    ] {
        let abuse = async {
            let mut io = world.tls(&shell).await.unwrap();
            io.write_all(&bytes).await.unwrap();
            io.flush().await.unwrap();
            closed(&mut io).await;
        };
        world.expect("unreadable", what, abuse).await;
    }
    faithful.goes_on().await;
    faithful.stop().await;
    world.node.stop(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_mute_and_the_many_are_closed_and_others_are_served() {
    let world = World::start().await;
    let faithful = Faithful::start(&world).await;
    let shell = world.client("shell");
    let memory = resident();

    // Mute at every stage, side by side: the deadlines are those of the product.
    let mute_tcp = async { closed(&mut TcpStream::connect(world.address).await.unwrap()).await };
    let mute_tls = async { closed(&mut world.tls(&shell).await.unwrap()).await };
    let half_hello = async {
        let mut io = world.tls(&shell).await.unwrap();
        io.write_all(&[200, 0, 0, 0, 1, HELLO, 1]).await.unwrap();
        io.flush().await.unwrap();
        closed(&mut io).await;
    };
    let mute_link = async {
        let mut io = world.admitted(&shell, &Hello::of_client(None, 1)).await;
        closed(&mut io).await;
    };
    let half_frame = async {
        let mut io = world.admitted(&shell, &Hello::of_client(None, 1)).await;
        io.write_all(&[0, 0, 8, 0, 1, REQUEST, 1]).await.unwrap();
        io.flush().await.unwrap();
        closed(&mut io).await;
    };
    // Sockets that say nothing, from one address: its share is taken, not everybody's.
    let flood = async {
        let mut sockets = Vec::new();
        while world.closed("flood") < 100 {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
            sockets.push(socket.connect(world.address).await);
        }
        for _ in 0..10 {
            world.admitted(&shell, &Hello::of_client(None, 1)).await;
        }
        faithful.goes_on().await;
        sockets
    };
    let all = async { tokio::join!(mute_tcp, mute_tls, half_hello, mute_link, half_frame, flood) };
    let (.., sockets) = tokio::time::timeout(2 * MINUTE, all).await.expect("all of them are closed");
    world.until_closed("silent", 3 + 100).await;
    world.until_closed("idle", 2).await;
    drop(sockets);

    faithful.goes_on().await;
    faithful.stop().await;
    let grown = resident().saturating_sub(memory);
    assert!(grown < MEMORY_MAX, "{grown} bytes of memory");
    world.node.stop(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_valid_client_sends_harms_nobody_and_runs_once() {
    let world = World::start().await;
    let faithful = Faithful::start(&world).await;
    let shell = world.client("shell");
    let hello = Hello::of_client(None, 1);

    // ---- frames that have no place
    let too_large = [&(2u32 << 20).to_le_bytes()[..], &[1, REQUEST]].concat();
    for (what, bytes) in [
        ("no frame", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("a kind that there is not", frame(99, 0, b"")),
        ("a frame shorter than its head", vec![3, 0, 0, 0, 1, REQUEST, 0]),
        ("a frame that is too large", too_large),
        ("a frame for another lane", frame(DATA, 0, b"x")),
        ("an answer that nobody asked for", frame(RESPONSE, 1, b"x")),
        ("a second hello", frame(HELLO, 0, &postcard::to_stdvec(&hello).unwrap())),
    ] {
        let abuse = async {
            let mut io = world.admitted(&shell, &hello).await;
            io.write_all(&bytes).await.unwrap();
            io.flush().await.unwrap();
            closed(&mut io).await;
        };
        world.expect("garbage", what, abuse).await;
    }

    // ---- requests that cannot be read: each is answered, the link lives
    let mut io = world.admitted(&shell, &hello).await;
    let good = call("a", "add", &[5], 77, 0);
    let mut trailing = good.clone();
    trailing.push(0);
    let mut endless_path = good.clone();
    endless_path.truncate(good.len() - 4);
    endless_path.extend([0xff, 0xff, 0xff, 0xff, 0x0f]);
    let large = [vec![1, 0, 0xff, 0xff, 0x3f], vec![0; (1 << 20) - 20]].concat();
    let node_only = [[1, 4].to_vec(), [1, 1, 0, 0, 0, 0].to_vec()];
    for (id, body) in (10..).zip([
        Vec::new(),
        vec![9],
        vec![1, 99],
        good[..good.len() / 2].to_vec(),
        trailing,
        endless_path,
        large,
        node_only[0].clone(),
        node_only[1].clone(),
        call("a", "add", &[5, 5], 77, 90),
        call("a", "add", &[0xff; 11], 77, 91),
        call("a", "no such handler", &[], 77, 92),
    ]) {
        let answer = ask(&mut io, id, &body).await;
        let refused = answer[1] == 3 || (answer[1] == 0 && answer[2] == 2);
        assert!(refused, "{body:?} was answered with {answer:?}");
    }

    // ---- the same request again: on its link, on another one, from another client
    assert_eq!(value(&ask(&mut io, 1, &good).await), 5);
    assert_eq!(value(&ask(&mut io, 1, &good).await), 5, "the same frame");
    assert_eq!(value(&ask(&mut io, 2, &good).await), 5, "under another number");
    let twice = frame(REQUEST, 3, &call("a", "add", &[1], 77, 1)).repeat(2);
    io.write_all(&twice).await.unwrap();
    io.flush().await.unwrap();
    for _ in 0..2 {
        let (_, _, body) = next(&mut io).await.unwrap();
        assert_eq!(value(&body), 6, "two at a time");
    }
    let other = world.client("other");
    let mut other = world.admitted(&other, &hello).await;
    assert_eq!(value(&ask(&mut other, 1, &good).await), 5, "recorded and sent by another");
    assert_eq!(value(&ask(&mut other, 2, &call("a", "value", &[], 78, 0)).await), 6);
    faithful.goes_on().await;
    faithful.stop().await;
    world.node.stop(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_valid_member_sends_harms_nobody() {
    let world = World::start().await;
    let faithful = Faithful::start(&world).await;
    let member = world.member("n2");

    // It joins as every node does, by asking.
    let join = Hello::of_node(DoorLane::Join, Facts { cluster: None, ..world.facts("n2") });
    let spec = postcard::to_stdvec(&(0u8, MemberSpec::new(id("n2"), "127.0.0.1:9"))).unwrap();
    let raft = Hello::of_node(DoorLane::Raft, world.facts("n2"));
    let joined = async {
        loop {
            let mut io = world.admitted(&member, &join).await;
            io.write_all(&frame(DATA, 0, &[vec![1], spec.clone()].concat())).await.unwrap();
            let (kind, ..) = next(&mut io).await.unwrap();
            assert_eq!(kind, DATA);
            closed(&mut io).await;
            let mut io = world.tls(&member).await.unwrap();
            if say_hello(&mut io, &raft).await.is_ok() {
                return;
            }
        }
    };
    tokio::time::timeout(MINUTE, joined).await.expect("it is admitted");

    // ---- questions on the join lane that are none
    for body in [vec![], vec![9, 9], vec![1, 99], vec![0xff; 60_000], [vec![1, 2], vec![0xff; 100]].concat()]
    {
        let mut io = world.admitted(&member, &join).await;
        io.write_all(&frame(DATA, 0, &body)).await.unwrap();
        assert_eq!(next(&mut io).await.unwrap().0, DATA, "it is told what is wrong");
    }
    let no_question = async {
        let mut io = world.admitted(&member, &join).await;
        io.write_all(&frame(REQUEST, 1, b"x")).await.unwrap();
        closed(&mut io).await;
    };
    world.expect("unreadable", "a request on the join lane", no_question).await;

    // ---- frames with no place on their lane
    let hello = |lane| Hello::of_node(lane, world.facts("n2"));
    for lane in [DoorLane::Raft, DoorLane::Bulk] {
        for kind in [HELLO, REQUEST, RESPONSE, 12] {
            let abuse = async {
                let mut io = world.admitted(&member, &hello(lane)).await;
                io.write_all(&frame(kind, 1, b"x")).await.unwrap();
                closed(&mut io).await;
            };
            world.expect("garbage", &format!("kind {kind} on the {lane} lane"), abuse).await;
        }
    }
    // ---- bodies that are none: dropped, the link lives; every one twice
    for lane in [DoorLane::Raft, DoorLane::Bulk] {
        let mut io = world.admitted(&member, &hello(lane)).await;
        for body in [
            vec![],
            vec![9; 100],
            vec![1, 1, 0],
            // An append to the system partition by one who is no replica of it.
            vec![1, 1, 0, 9, 9, 9, 9, 0, 0, 0, 0, 0, 0, 0, 0],
            [vec![1, 16, 0], vec![0; (1 << 20) - 10]].concat(),
            [vec![1], vec![0xff; 1 << 19]].concat(),
        ] {
            for _ in 0..2 {
                io.write_all(&frame(DATA, 0, &body)).await.unwrap();
            }
        }
        io.flush().await.unwrap();
        faithful.goes_on().await;
    }
    // ---- deliveries that cannot be
    let mut io = world.admitted(&member, &hello(DoorLane::Calls)).await;
    let message = ("Counter/alice", ("Counter/alice", "add", &[1u8][..]));
    for (number, (from, to, first)) in
        (1..).zip([(0u32, 0u32, 0u64), (1, 0, u64::MAX), (u32::MAX, 0, 1), (0, u32::MAX, 1), (1, 3, 7)])
    {
        for items in [vec![], vec![&message; 3]] {
            let body = postcard::to_stdvec(&(1u8, 1u8, from, to, first, items)).unwrap();
            let answer = ask(&mut io, number, &body).await;
            assert!(matches!(answer[1], 1..=3), "from {from} to {to} at {first}: {answer:?}");
            if answer[1] == 2 {
                assert_eq!(answer[2], 0, "nothing is applied");
            }
        }
    }
    // ---- noise on the control lane
    for noise in [vec![0; 64], vec![0xff; 4096], b"GET / HTTP/1.1\r\n\r\n".to_vec()] {
        let mut io = world.admitted(&member, &hello(DoorLane::Control)).await;
        io.write_all(&noise).await.unwrap();
        io.flush().await.unwrap();
        tokio::time::timeout(MINUTE, closed(&mut io)).await.expect("the session is closed");
    }
    assert_eq!(world.metric("perennial_ready"), 1);
    faithful.goes_on().await;
    faithful.stop().await;
    world.node.stop(Duration::ZERO).await;
}
