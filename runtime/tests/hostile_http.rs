//! What hostile clients send, against a node with a policy, on real sockets with TLS.
//!
//! One catalogue, one process: each attack is answered as documented, a well-behaved client from another
//! address is served throughout, and the memory of the process stays within a stated bound.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use perennial::core::id::NodeId;
use perennial::node::{Backend, NodeConfig, TlsFiles};
use perennial::prelude::*;
use perennial::{Asset, Node};
use perennial_runtime::certs::{Throwaway, throwaway};
use perennial_runtime::gateway::{AdminConfig, Gateway, GatewayConfig, NewKey, Policy, tls};
use rcgen::KeyPair;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Where attacks come from.
const ATTACKER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 1));
/// Where the client comes from that must not notice.
const BYSTANDER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

const CONNECTIONS_OF_ONE: u32 = 96;
const CALLS_OF_ONE: u32 = 4;
const STREAMS_OF_ONE: u32 = 2;
const HEAD_BYTES: usize = 16 * 1024;
const BODY_BYTES: usize = 64 * 1024;
const BODIES_IN_FLIGHT: usize = 4 * BODY_BYTES;
/// A page's file that fits no socket's buffers.
const LARGE_BYTES: usize = 8 * 1024 * 1024;
/// An answer of a call that fits none either.
const LONG_BYTES: usize = 4 * 1024 * 1024;
/// Clients that ask for it and take nothing.
const STALLED: usize = 24;
/// Clients that begin and do not go on.
const SLOW: usize = 10;
/// What such a client lets the system keep for it.
const RECEIVE_BYTES: u32 = 128 * 1024;
/// What the process may grow by while it is attacked: heads, bodies and TLS of all connections are below
/// 16 MiB, the activations of the flood of keys below 32 MiB, and the allocator keeps some of what it had.
const GROWTH_BYTES_MAX: u64 = 128 * 1024 * 1024;
/// Actors that one flood names.
const FLOOD_ACTORS: usize = 4000;
/// Wrong API keys that one flood shows.
const FLOOD_KEYS: usize = 1000;

/// Calls of `Note.hold` wait here.
static HELD: Semaphore = Semaphore::const_new(0);
/// Calls of `Note.hold` that wait.
static HOLDING: Semaphore = Semaphore::const_new(0);
static LARGE: [u8; LARGE_BYTES] = [b'x'; LARGE_BYTES];

/// A text.
#[data]
#[derive(Default)]
pub struct Note {
    text: String,
}

#[actor(event = String)]
impl Note {
    /// Writes it.
    pub fn write(&mut self, text: String) -> u32 {
        self.text = text;
        self.text.len() as u32
    }
    /// Reads it.
    pub fn text(&self) -> String {
        self.text.clone()
    }
    /// Reads more than a socket's buffers take.
    pub fn long(&self) -> String {
        "x".repeat(LONG_BYTES)
    }
    /// Waits.
    pub async fn hold(&mut self) -> u32 {
        HOLDING.add_permits(1);
        HELD.acquire().await.expect("it is never closed").forget();
        1
    }
}

fn large(path: &str) -> Option<Asset> {
    path.is_empty().then_some(Asset { content_type: "text/plain".into(), bytes: Cow::Borrowed(&LARGE) })
}

fn app() -> App {
    App::new("notes").actor::<Note>().page("large", large)
}

struct World {
    node: Node,
    gateway: Gateway,
    certs: Throwaway,
    dir: tempfile::TempDir,
    /// Of the bystander, who may do everything with notes.
    key: String,
    /// Of the issuer.
    signer: EncodingKey,
    issuer_public: String,
}

/// An answer, or what was left of one.
#[derive(Debug)]
struct Told {
    status: u16,
    head: String,
    body: String,
}

impl Told {
    fn code(&self) -> String {
        let body: Value = serde_json::from_str(&self.body).unwrap_or_default();
        body["code"].as_str().unwrap_or_default().to_owned()
    }

    #[track_caller]
    fn is(&self, case: &str, status: u16, code: &str) {
        assert_eq!((self.status, self.code().as_str()), (status, code), "{case}: {self:?}");
        if status == 401 {
            assert!(self.head.contains("www-authenticate: Bearer"), "{case}: {self:?}");
        }
        if matches!(status, 429 | 503) {
            assert!(self.head.contains("retry-after: 1"), "{case}: {self:?}");
        }
    }
}

fn request(line: &str, headers: &[(&str, &str)], body: &str) -> String {
    let mut text = format!("{line} HTTP/1.1\r\nhost: localhost\r\n");
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    if line.starts_with("POST") && !headers.iter().any(|(name, _)| *name == "content-length") {
        text += &format!("content-length: {}\r\n", body.len());
    }
    text + "\r\n" + body
}

/// Reads one answer, or what comes of it before the end.
async fn read_one(stream: &mut (impl AsyncReadExt + Unpin)) -> Told {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let head = head.to_ascii_lowercase().replace("bearer", "Bearer");
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            let length = length.map_or(0, |length| length.parse().unwrap());
            if body.len() >= length {
                let status = head.split(' ').nth(1).unwrap().parse().unwrap();
                return Told { status, head, body: body[..length].to_owned() };
            }
        }
        match stream.read(&mut chunk).await {
            Ok(read) if read > 0 => bytes.extend_from_slice(&chunk[..read]),
            // A reset is an end as well.
            _ => return Told { status: 0, head: text, body: String::new() },
        }
    }
}

async fn to_the_end(stream: &mut (impl AsyncReadExt + Unpin)) {
    let mut chunk = [0; 4096];
    while matches!(stream.read(&mut chunk).await, Ok(read) if read > 0) {}
}

async fn tcp(from: IpAddr, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(SocketAddr::new(from, 0)).unwrap();
    socket.connect(to).await.unwrap()
}

fn connector(ca: &Path, client: Option<&TlsFiles>) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match client {
        None => builder.with_no_client_auth(),
        Some(files) => {
            let chain = vec![CertificateDer::from_pem_file(&files.cert).unwrap()];
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(&files.key).unwrap()).unwrap()
        }
    };
    TlsConnector::from(Arc::new(config))
}

fn localhost() -> ServerName<'static> {
    ServerName::try_from("localhost").unwrap()
}

impl World {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let id = NodeId::new("n1").unwrap();
        let certs = throwaway(&dir.path().join("tls"), std::slice::from_ref(&id), "monitor").unwrap();
        let files = certs.nodes[&id].clone();
        let config = NodeConfig {
            node: id,
            listen: SocketAddr::new(ATTACKER, 0),
            advertise: None,
            http: None,
            join: Vec::new(),
            dns_server: None,
            bootstrap_expect: Some(1),
            data: dir.path().join("data"),
            tls: files.clone(),
            partitions: 4,
            replication: 1,
            zone: None,
            weight: 100,
            actors_bytes: perennial::limits::ACTORS_BYTES_DEFAULT,
        };
        let node = Node::start(config, app()).await.unwrap();
        node.wait_ready().await;

        let issuer = KeyPair::generate().unwrap();
        let key = NewKey::make("shop-web").unwrap();
        let policy = policy(dir.path(), &key, &issuer.public_key_pem());
        let gateway = GatewayConfig {
            connections_of_one_max: CONNECTIONS_OF_ONE,
            calls_of_one_max: CALLS_OF_ONE,
            streams_of_one_max: STREAMS_OF_ONE,
            head_bytes_max: HEAD_BYTES,
            body_bytes_max: BODY_BYTES,
            body_bytes_in_flight_max: BODIES_IN_FLIGHT,
            handshake_timeout: Duration::from_secs(10),
            header_read_timeout: Duration::from_secs(10),
            body_read_timeout: Duration::from_secs(10),
            write_stall_timeout: Duration::from_secs(10),
            tls: Some(tls::server(&files.cert, &files.key).unwrap()),
            policy: Some(Arc::new(policy)),
            admin: Some(AdminConfig {
                address: SocketAddr::new(ATTACKER, 0),
                tls: Some(tls::mutual(&files.cert, &files.key, &files.ca).unwrap()),
            }),
            ..GatewayConfig::default()
        };
        let backend: Arc<dyn Backend> = Arc::new(node.clone());
        let gateway = Gateway::bind(SocketAddr::from(([0, 0, 0, 0], 0)), backend, gateway).await.unwrap();
        Self {
            node,
            gateway,
            dir,
            certs,
            key: format!("Bearer {}", key.key),
            signer: EncodingKey::from_ec_pem(issuer.serialize_pem().as_bytes()).unwrap(),
            issuer_public: issuer.public_key_pem(),
        }
    }

    fn address(&self) -> SocketAddr {
        SocketAddr::new(ATTACKER, self.gateway.address().unwrap().port())
    }

    async fn connect(&self, from: IpAddr) -> TlsStream<TcpStream> {
        let connector = connector(&self.certs.client.ca, None);
        connector.connect(localhost(), tcp(from, self.address()).await).await.unwrap()
    }

    /// A connection on which this was sent.
    async fn sent(&self, text: &str) -> TlsStream<TcpStream> {
        let mut stream = self.connect(ATTACKER).await;
        // The gateway may have answered and closed before it has taken everything.
        let _ = stream.write_all(text.as_bytes()).await;
        let _ = stream.flush().await;
        stream
    }

    async fn told(&self, text: &str) -> Told {
        read_one(&mut self.sent(text).await).await
    }

    /// Writes with the bystander's key and further headers.
    async fn post(&self, headers: &[(&str, &str)], body: &str) -> Told {
        let all = [&[("authorization", self.key.as_str())][..], headers].concat();
        self.told(&request("POST /v1/Note/a/write", &all, body)).await
    }

    async fn get_as(&self, credential: &str, path: &str) -> Told {
        self.told(&request(&format!("GET {path}"), &[("authorization", credential)], "")).await
    }

    /// A token, good but for what `change` does to it.
    fn token(&self, change: impl FnOnce(&mut Header, &mut Value)) -> String {
        self.token_by(&self.signer, change)
    }

    fn token_by(&self, signer: &EncodingKey, change: impl FnOnce(&mut Header, &mut Value)) -> String {
        let now = jsonwebtoken::get_current_timestamp();
        let mut claims = json!({
            "iss": "https://login.example", "aud": "notes", "sub": "ann", "exp": now + 3600,
            "groups": ["staff"],
        });
        let mut header = Header::new(Algorithm::ES256);
        change(&mut header, &mut claims);
        format!("Bearer {}", encode(&header, &claims, signer).unwrap())
    }

    /// What the admin port tells to whom it knows.
    async fn admin(&self, path: &str) -> Told {
        let connector = connector(&self.certs.client.ca, Some(&self.certs.client));
        let stream = tcp(BYSTANDER, self.gateway.admin().unwrap()).await;
        let mut stream = connector.connect(localhost(), stream).await.unwrap();
        stream.write_all(request(&format!("GET {path}"), &[], "").as_bytes()).await.unwrap();
        read_one(&mut stream).await
    }

    async fn metric(&self, line: &str) -> u64 {
        let text = self.admin("/metrics").await.body;
        let found = text.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(' '));
        found.map_or(0, |value| value.parse().unwrap())
    }

    async fn refused(&self, limit: &str) -> u64 {
        self.metric(&format!("perennial_gateway_refused_total{{limit=\"{limit}\"}}")).await
    }
}

fn policy(dir: &Path, key: &NewKey, issuer_public: &str) -> Policy {
    std::fs::write(dir.join("issuer.pem"), issuer_public).unwrap();
    let text = format!(
        r#"
[[key]]
name = "shop-web"
sha256 = "{}"

[jwt]
algorithm = "ES256"
issuer = "https://login.example"
audience = ["notes", "others"]
key_file = "issuer.pem"
groups_claim = "groups"

[[allow]]
who = "key:shop-web"
kind = "Note"
methods = "*"

[[allow]]
who = "user:*"
kind = "Note"
methods = ["text", "long", "write", "hold", "events"]
key_prefix = "own/{{sub}}/"

[[allow]]
who = "group:staff"
kind = "Note"
methods = "text"
key = "board"
"#,
        key.sha256
    );
    let path = dir.join("policy.toml");
    std::fs::write(&path, text).unwrap();
    Policy::read(&path, app().kinds()).unwrap_or_else(|error| panic!("{error}"))
}

/// A client that writes and reads its own note all the time, each time on a new connection.
struct Bystander {
    served: watch::Receiver<u64>,
    task: tokio::task::JoinHandle<()>,
}

impl Bystander {
    fn start(world: &Arc<World>) -> Self {
        let (count, served) = watch::channel(0);
        let world = Arc::clone(world);
        let task = tokio::spawn(async move {
            for n in 0_u64.. {
                let mut stream = world.connect(BYSTANDER).await;
                let headers = [("authorization", world.key.as_str())];
                let body = format!("{{\"text\":\"{n}\"}}");
                let write = request("POST /v1/Note/bystander/write", &headers, &body);
                stream.write_all(write.as_bytes()).await.unwrap();
                let told = read_one(&mut stream).await;
                assert_eq!(told.status, 200, "the bystander is served: {told:?}");
                stream
                    .write_all(request("GET /v1/Note/bystander/text", &headers, "").as_bytes())
                    .await
                    .unwrap();
                let told = read_one(&mut stream).await;
                assert_eq!((told.status, told.body), (200, format!("\"{n}\"")));
                count.send_replace(n + 1);
            }
        });
        Self { served, task }
    }

    /// Waits until it was served twice more: the second of them began after now.
    async fn is_served(&mut self) {
        let now = *self.served.borrow();
        self.served.wait_for(|served| *served >= now + 2).await.expect("the bystander is served");
    }
}

fn resident() -> u64 {
    procfs::process::Process::myself().unwrap().statm().unwrap().resident * procfs::page_size()
}

#[track_caller]
fn is_within(before: u64) {
    let grown = resident().saturating_sub(before);
    assert!(grown <= GROWTH_BYTES_MAX, "the process has grown by {grown} bytes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn hostile_clients_are_answered_as_documented_and_nobody_else_notices() {
    let world = Arc::new(World::start().await);
    let mut bystander = Bystander::start(&world);
    bystander.is_served().await;
    let before = resident();

    broken_requests(&world).await;
    bystander.is_served().await;
    wrong_credentials(&world).await;
    bystander.is_served().await;
    forbidden_calls(&world).await;
    strangers_at_the_admin_port(&world).await;
    bystander.is_served().await;
    slow_clients(&world, &mut bystander, before).await;
    floods(&world, &mut bystander, before).await;
    greedy_callers(&world, &mut bystander).await;

    bystander.is_served().await;
    assert!(!bystander.task.is_finished());
    bystander.task.abort();
    // What connections and calls held is given back; the bystander's last call may still be on its way.
    while world.metric("perennial_gateway_body_bytes_in_flight").await > 0 {}
    is_within(before);
    world.node.clone().stop(Duration::ZERO).await;
}

async fn broken_requests(world: &World) {
    let nested = format!("{{\"text\":{}", "[".repeat(BODY_BYTES / 2));
    let too_large = "x".repeat(BODY_BYTES + 1);
    for (case, body, status, code) in [
        ("nested a thousand times", nested.as_str(), 400, "bad_json"),
        ("trailing bytes", "{\"text\":\"x\"} {}", 400, "bad_json"),
        ("no object", "[1]", 400, "not_an_object"),
        ("cut off", "{\"text\":", 400, "bad_json"),
        ("of another type", "{\"text\":7}", 400, "bad_arguments"),
        ("too much", "{\"text\":\"x\",\"more\":1}", 400, "bad_arguments"),
        ("a name twice", "{\"text\":\"x\",\"text\":\"y\"}", 400, "bad_arguments"),
        ("too large", too_large.as_str(), 413, "body_too_large"),
    ] {
        world.post(&[], body).await.is(case, status, code);
    }
    let chunked = [("transfer-encoding", "chunked"), ("content-length", "0")];
    let both = world.post(&chunked, "c\r\n{\"text\":\"x\"}\r\n0\r\n\r\n").await;
    assert!(both.status == 400 || both.head.contains("connection: close"), "framed twice: {both:?}");

    let text = "{\"text\":\"x\"}";
    let key = ("authorization", world.key.as_str());
    for (case, headers, status, code) in [
        ("two keys", vec![key, key], 400, "bad_header"),
        (
            "two idempotency keys",
            vec![key, ("idempotency-key", "a"), ("idempotency-key", "b")],
            400,
            "bad_header",
        ),
        (
            "two deadlines",
            vec![key, ("perennial-timeout-ms", "1"), ("perennial-timeout-ms", "2")],
            400,
            "bad_header",
        ),
        ("two hosts", vec![key, ("host", "other")], 400, "bad_header"),
        ("two origins", vec![key, ("origin", "https://a"), ("origin", "https://b")], 400, "bad_header"),
        ("two lengths", vec![key, ("content-length", "12"), ("content-length", "13")], 400, ""),
        ("a length that is none", vec![key, ("content-length", "1e3")], 400, ""),
    ] {
        world.told(&request("POST /v1/Note/a/write", &headers, text)).await.is(case, status, code);
    }
    let two = world
        .told(&request(
            "GET /v1/Note/a/events",
            &[key, ("last-event-id", "1-0"), ("last-event-id", "2-0")],
            "",
        ))
        .await;
    two.is("two last events", 400, "bad_header");
    let large = "x".repeat(2 * HEAD_BYTES);
    world.post(&[("x-large", &large)], text).await.is("a large head", 431, "");
    let many: Vec<_> = (0..200).map(|_| ("x", "y")).collect();
    world.post(&many, text).await.is("many headers", 431, "");
    for line in
        ["GET /v1/Note/\u{0}/text", "GET  /", "\u{1}\u{2}", "GET /v1/Note/%ff/text", "POST /v1/Note//write"]
    {
        let told = world.told(&request(line, &[key], "")).await;
        assert_eq!(told.status, 400, "{line:?}: {told:?}");
    }
    // A body that breaks off.
    let length = BODY_BYTES.to_string();
    let mut stream =
        world.sent(&request("POST /v1/Note/a/write", &[key, ("content-length", &length)], "{")).await;
    stream.shutdown().await.unwrap();
    let told = read_one(&mut stream).await;
    assert!(told.status == 400 || told.status == 0, "{told:?}");
    assert_ne!(world.get_as(&world.key, "/v1/Note/a/text").await.body, "\"y\"");
}

async fn wrong_credentials(world: &World) {
    let path = "/v1/Note/own/ann/todo/text".replace("own/ann/todo", "own%2Fann%2Ftodo");
    let now = jsonwebtoken::get_current_timestamp();
    world.get_as(&world.token(|_, _| {}), &path).await.is("a good token", 200, "");
    let leeway = world.token(|_, claims| claims["exp"] = json!(now - 5));
    world.get_as(&leeway, &path).await.is("clocks apart a little", 200, "");

    let good = world.token(|_, _| {});
    let [_, claims, signature] = <[&str; 3]>::try_from(good.split('.').collect::<Vec<_>>()).unwrap();
    // {"alg":"none","typ":"JWT"}, {"alg":"ES256","typ":"JWT"}
    let none = format!("Bearer eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{claims}.");
    let spliced = {
        let bo = world.token(|_, claims| claims["sub"] = json!("bo"));
        let [head, claims, _] = <[&str; 3]>::try_from(bo.split('.').collect::<Vec<_>>()).unwrap();
        format!("{head}.{claims}.{signature}")
    };
    let hs256 = |secret: &[u8]| {
        let secret = EncodingKey::from_secret(secret);
        world.token_by(&secret, |header, _| header.alg = Algorithm::HS256)
    };
    let other = EncodingKey::from_ec_pem(KeyPair::generate().unwrap().serialize_pem().as_bytes()).unwrap();
    let other_key = NewKey::make("shop-web").unwrap().key;
    let set = |name: &'static str, value: Value| world.token(move |_, claims| claims[name] = value);
    let without = |name: &'static str| {
        world.token(|_, claims| {
            claims.as_object_mut().unwrap().remove(name);
        })
    };
    for (case, credential) in [
        ("unsigned", none),
        ("signed by itself with the public key", hs256(world.issuer_public.as_bytes())),
        ("signed by itself with the public key, trimmed", hs256(world.issuer_public.trim().as_bytes())),
        ("of another's signature", spliced),
        ("of another key", world.token_by(&other, |_, _| {})),
        ("expired", set("exp", json!(now - 3600))),
        ("not valid yet", set("nbf", json!(now + 3600))),
        ("of another issuer", set("iss", json!("https://evil.example"))),
        ("for another audience", set("aud", json!("bank"))),
        ("for ever", without("exp")),
        ("of nobody", without("sub")),
        ("of no issuer", without("iss")),
        ("for no audience", without("aud")),
        ("of an empty subject", set("sub", json!(""))),
        ("of a number", set("sub", json!(7))),
        ("of a long subject", set("sub", json!("x".repeat(300)))),
        ("with demands", world.token(|header, _| header.crit = Some(vec!["exp".into()]))),
        ("no token", "Bearer a.b.c".to_owned()),
        ("a foreign scheme", "Basic c2hvcC13ZWI6eA==".to_owned()),
        ("nothing", "Bearer ".to_owned()),
        ("no scheme", world.key["Bearer ".len()..].to_owned()),
        ("a key of the same name", format!("Bearer {other_key}")),
        ("a key cut short", world.key[..world.key.len() - 1].to_owned()),
        ("a key and more", format!("{}0", world.key)),
        ("a prefix", "Bearer perennial_".to_owned()),
        ("very long", format!("Bearer {}", "x".repeat(9 * 1024))),
    ] {
        world.get_as(&credential, &path).await.is(case, 401, "bad_credentials");
    }
    // Claims of who one is, in headers, are not looked at.
    let claims =
        [("x-forwarded-user", "shop-web"), ("x-forwarded-for", "127.0.0.1"), ("remote-user", "key:shop-web")];
    world.told(&request("GET /v1/Note/a/text", &claims, "")).await.is(
        "named by a header",
        401,
        "not_authenticated",
    );
}

async fn forbidden_calls(world: &World) {
    assert_eq!(world.post(&[], "{\"text\":\"secret\"}").await.status, 200);
    let ann = world.token(|_, _| {});
    let bystander = &world.key;
    for (case, credential, path, status) in [
        ("own", &ann, "own%2Fann%2Fa/text", 200),
        ("of a group", &ann, "board/text", 200),
        ("of another", &ann, "own%2Fbo%2Fa/text", 403),
        ("of a longer name", &ann, "own%2Fanna%2Fa/text", 403),
        ("the folder itself", &ann, "own%2Fann/text", 403),
        ("climbing", &ann, "own%2Fann%2F..%2Fbo%2Fa/text", 200), // a key is text: nothing climbs
        ("there", &ann, "a/text", 403),
        ("not there", &ann, "never-written/text", 403),
        ("no such handler", &ann, "a/nothing", 403),
        ("a handler beyond the rule", &ann, "board/hold", 403),
        ("events beyond the rule", &ann, "board/events", 403),
        ("all notes", bystander, "a/text", 200),
    ] {
        let told = world.get_as(credential, &format!("/v1/Note/{path}")).await;
        let code = if status == 403 { "forbidden" } else { "" };
        told.is(case, status, code);
    }
    world.get_as(&ann, "/v1/Nothing/a/text").await.is("an unknown kind", 403, "forbidden");
    let there = world.get_as(&ann, "/v1/Note/a/text").await.body.replace("Note/a", "");
    let not_there = world.get_as(&ann, "/v1/Note/b/text").await.body.replace("Note/b", "");
    assert_eq!(there, not_there, "a refusal does not tell whether an actor exists");
    let slash = world.token(|_, claims| claims["sub"] = json!("ann/b"));
    world.get_as(&slash, "/v1/Note/own%2Fann%2Fb%2Fa/text").await.is(
        "a subject with a separator",
        403,
        "forbidden",
    );
    for path in ["/metrics", "/v1/status", "/v1/kinds", "/"] {
        world.get_as(bystander, path).await.is("told at the admin port only", 404, "no_route");
    }
    let ready = world.told(&request("GET /readyz", &[], "")).await;
    assert_eq!(
        (ready.status, ready.body.as_str()),
        (200, "{\"ready\":true,\"reasons\":[],\"status\":\"ready\"}"),
        "without names of nodes"
    );
    world.told(&request("GET /livez", &[], "")).await.is("alive", 200, "");
    let denied = async |reason: &str| {
        world.metric(&format!("perennial_gateway_denied_total{{reason=\"{reason}\"}}")).await
    };
    assert!(denied("bad credentials").await > 20 && denied("forbidden").await > 5);
}

async fn strangers_at_the_admin_port(world: &World) {
    let foreign_dir = world.dir.path().join("foreign");
    let foreign = throwaway(&foreign_dir, &[], "monitor").unwrap();
    let at = world.gateway.admin().unwrap();
    for (case, client) in [("nobody", None), ("of a foreign authority", Some(&foreign.client))] {
        let stream = tcp(ATTACKER, at).await;
        let shaken = connector(&world.certs.client.ca, client).connect(localhost(), stream).await;
        // With TLS 1.3 the client is done before the server has looked at its certificate.
        if let Ok(mut stream) = shaken {
            let _ = stream.write_all(request("GET /metrics", &[], "").as_bytes()).await;
            assert_eq!(read_one(&mut stream).await.status, 0, "{case}");
        }
    }
    for path in ["/metrics", "/v1/status", "/v1/kinds", "/livez", "/readyz"] {
        assert_eq!(world.admin(path).await.status, 200, "{path}");
    }
    world.admin("/v1/Note/a/text").await.is("actors are not at the admin port", 404, "no_route");
    // Without TLS.
    for address in [at, world.address()] {
        let mut plain = tcp(ATTACKER, address).await;
        let _ = plain.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert_eq!(read_one(&mut plain).await.status, 0);
    }
}

/// All at a time, as each lasts as long as the gateway's patience.
async fn slow_clients(world: &World, bystander: &mut Bystander, before: u64) {
    let key = ("authorization", world.key.as_str());
    let head = request("GET /v1/Note/a/text", &[key], "");
    let mut silent = join_all((0..SLOW).map(|_| tcp(ATTACKER, world.address()))).await;
    let mut slow = join_all((0..SLOW).map(|_| world.sent(&head[..head.len() - 2]))).await;

    let ann = world.token(|_, _| {});
    let headers = [("authorization", ann.as_str()), ("content-length", "100")];
    let body = request("POST /v1/Note/own%2Fann%2Fa/write", &headers, "{");
    let mut bodies = join_all((0..CALLS_OF_ONE).map(|_| world.sent(&body))).await;

    let large = request("GET /large/", &[], "");
    let mut stalled = join_all((0..STALLED).map(|_| taking_nothing(world, &large))).await;
    let cleo = world.token(|_, claims| claims["sub"] = json!("cleo"));
    let long = request("GET /v1/Note/own%2Fcleo%2Fa/long", &[("authorization", &cleo)], "");
    let mut calls = join_all((0..CALLS_OF_ONE).map(|_| taking_nothing(world, &long))).await;
    for call in &mut calls {
        let mut begun = [0; 12];
        call.read_exact(&mut begun).await.unwrap();
        assert_eq!(&begun, b"HTTP/1.1 200");
    }
    let next = world.get_as(&cleo, "/v1/Note/own%2Fcleo%2Fa/text").await;
    next.is("answers that one caller does not take", 429, "your_share");

    // The clocks may be 30 s apart, so this token is good for some seconds more.
    let now = jsonwebtoken::get_current_timestamp();
    let ending = world.token(|_, claims| claims["exp"] = json!(now - 18));
    let follow = request("GET /v1/Note/own%2Fann%2Fa/events", &[("authorization", &ending)], "");
    let mut outlived = world.sent(&follow).await;
    assert_eq!(read_one(&mut outlived).await.status, 200);

    bystander.is_served().await;
    for told in join_all(bodies.iter_mut().map(read_one)).await {
        told.is("a slow body", 408, "body_slow");
    }
    join_all(silent.iter_mut().map(to_the_end)).await;
    join_all(slow.iter_mut().map(to_the_end)).await;
    to_the_end(&mut outlived).await; // a stream does not outlive its token
    while world.refused("time without taking an answer").await < STALLED as u64 + u64::from(CALLS_OF_ONE) {
        bystander.is_served().await;
        is_within(before);
    }
    join_all(stalled.iter_mut().chain(&mut calls).map(to_the_end)).await;
    assert_eq!(world.refused("time for a handshake").await, SLOW as u64);
    assert_eq!(world.refused("time for a head").await, SLOW as u64);
    assert_eq!(world.refused("time for a body").await, u64::from(CALLS_OF_ONE));
}

/// Asks and takes nothing of the answer.
async fn taking_nothing(world: &World, text: &str) -> TlsStream<TcpStream> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(RECEIVE_BYTES).unwrap();
    let stream = socket.connect(world.address()).await.unwrap();
    let mut stream = connector(&world.certs.client.ca, None).connect(localhost(), stream).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    stream
}

async fn floods(world: &World, bystander: &mut Bystander, before: u64) {
    let flood = join_all((0..3 * CONNECTIONS_OF_ONE).map(|_| tcp(ATTACKER, world.address()))).await;
    while world.refused("connections of one address").await < u64::from(2 * CONNECTIONS_OF_ONE) {}
    bystander.is_served().await;
    drop(flood);
    while world.metric("perennial_gateway_connections_open").await > u64::from(CONNECTIONS_OF_ONE / 2) {}

    let wrong = NewKey::make("shop-web").unwrap().key;
    let bad = request("GET /v1/Note/a/text", &[("authorization", &format!("Bearer {wrong}"))], "");
    let mut stream = world.connect(ATTACKER).await;
    for _ in 0..FLOOD_KEYS {
        stream.write_all(bad.as_bytes()).await.unwrap();
        read_one(&mut stream).await.is("a wrong key", 401, "bad_credentials");
    }
    bystander.is_served().await;

    let readers = (0..4).map(|at| async move {
        let ann = world.token(|_, _| {});
        let mut stream = world.connect(ATTACKER).await;
        for n in 0..FLOOD_ACTORS / 4 {
            let line = format!("GET /v1/Note/own%2Fann%2F{at}-{n}/text");
            stream.write_all(request(&line, &[("authorization", &ann)], "").as_bytes()).await.unwrap();
            read_one(&mut stream).await.is("one of many actors", 200, "");
        }
    });
    join_all(readers).await;
    bystander.is_served().await;
    is_within(before);
}

async fn greedy_callers(world: &World, bystander: &mut Bystander) {
    let ann = world.token(|_, _| {});
    let ann = ("authorization", ann.as_str());
    let bo = world.token(|_, claims| claims["sub"] = json!("bo"));
    let hold = |n: u32| request(&format!("POST /v1/Note/own%2Fann%2F{n}/hold"), &[ann], "");
    let holds: Vec<_> = (0..CALLS_OF_ONE).map(hold).collect();
    let mut held = join_all(holds.iter().map(|text| world.sent(text))).await;
    HOLDING.acquire_many(CALLS_OF_ONE).await.unwrap().forget();
    world.told(&hold(99)).await.is("calls of one caller", 429, "your_share");
    world.get_as(&bo, "/v1/Note/own%2Fbo%2Fa/text").await.is("calls of another", 200, "");
    bystander.is_served().await;
    HELD.add_permits(CALLS_OF_ONE as usize);
    for told in join_all(held.iter_mut().map(read_one)).await {
        told.is("what was held", 200, "");
    }

    // Half of the memory for bodies is one caller's: two bodies that lack their last byte.
    let length = BODY_BYTES.to_string();
    let body = "x".repeat(BODY_BYTES - 1);
    let fat = request("POST /v1/Note/own%2Fann%2Fa/write", &[ann, ("content-length", &length)], &body);
    let fats = join_all((0..2).map(|_| world.sent(&fat))).await;
    while world.metric("perennial_gateway_body_bytes_in_flight").await < 2 * (BODY_BYTES as u64 - 1) {}
    world.told(&fat).await.is("bodies of one caller", 429, "your_share");
    bystander.is_served().await;
    drop(fats);

    let follow = request("GET /v1/Note/own%2Fann%2Fa/events", &[ann], "");
    let mut streams = join_all((0..STREAMS_OF_ONE).map(|_| world.sent(&follow))).await;
    for stream in &mut streams {
        assert_eq!(read_one(stream).await.status, 200);
    }
    world.told(&follow).await.is("streams of one caller", 429, "your_share");
    let text = request("GET /v1/Note/own%2Fbo%2Fa/events", &[("authorization", &bo)], "");
    assert_eq!(world.told(&text).await.status, 200, "a stream of another");
    bystander.is_served().await;
}

/// So that nobody wonders which files a policy may name.
#[test]
fn the_files_of_an_issuer_are_checked_before_anybody_comes() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| -> PathBuf {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let pair = KeyPair::generate().unwrap();
    write("public.pem", &pair.public_key_pem());
    write("private.pem", &pair.serialize_pem());
    write("secret", &"s".repeat(32));
    write("short", "secret\n");
    write("none.json", "{\"keys\":[]}");
    let jwk = jsonwebtoken::jwk::Jwk::from_encoding_key(
        &EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap(),
        Algorithm::ES256,
    )
    .unwrap();
    write(
        "set.json",
        &json!({"keys": [jwk, {"kty": "OKP", "crv": "X25519", "x": "AA", "use": "enc"}]}).to_string(),
    );
    for (algorithm, file, wrong) in [
        ("ES256", "public.pem", ""),
        ("ES256", "set.json", ""),
        ("HS256", "secret", ""),
        ("HS256", "public.pem", "wants a shared secret"),
        ("HS256", "short", "has 6 bytes"),
        ("ES256", "private.pem", "holds a private key"),
        ("RS256", "public.pem", "no public key in PEM or JWKS that fits RS256"),
        ("RS256", "set.json", "has no key for signatures with RS256"),
        ("ES256", "none.json", "has no key"),
        ("ES256", "nowhere.pem", "No such file"),
        ("none", "public.pem", "there is no algorithm \"none\""),
    ] {
        let text = format!(
            "[jwt]\nalgorithm = {algorithm:?}\nissuer = \"i\"\naudience = \"a\"\nkey_file = {file:?}\n\n\
             [[allow]]\nwho = \"user:*\"\nkind = \"Note\"\nmethods = \"*\"\nkey = \"{{sub}}\"\n"
        );
        let path = write("policy.toml", &text);
        match Policy::read(&path, app().kinds()) {
            Ok(_) => assert_eq!(wrong, "", "{algorithm} {file}"),
            Err(error) => {
                assert!(
                    !wrong.is_empty() && error.to_string().contains(wrong),
                    "{algorithm} {file}: {error}"
                );
                assert!(error.to_string().contains("policy.toml line "), "{error}");
            }
        }
    }
}
