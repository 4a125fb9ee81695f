//! The HTTP gateway over real sockets, in front of a backend that does what a test tells it.

use std::borrow::Cow;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, stream};
use perennial::actor::{Actor, Answer, Args, BoxFuture, Method, Param, Run};
use perennial::call::{
    ActorHandle, ActorId, Answered, Caller, EventId, EventItem, EventStream, EventsFrom, Outbound,
};
use perennial::core::id::{Epoch, NodeId, PartitionId};
use perennial::core::time::Millis;
use perennial::node::Backend;
use perennial::options::{Balance, Options, Pool};
use perennial::schema::{Type, Types};
use perennial::status::{ClusterStatus, Reminder, ReminderPage, ReminderQuery};
use perennial::{App, Asset, Ctx, Data, Fault, Format};
use perennial_runtime::gateway::{
    ADMIN_CONNECTIONS_OF_ONE_MAX, AdminConfig, Gateway, GatewayConfig, GatewayError, NewKey, Policy,
    STATUS_IN_FLIGHT_MAX,
};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Client, Response, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{self, Message};

/// Longer than any grace a test needs.
const GRACE: Duration = Duration::from_secs(3600);

// ---- an actor type, as the macro would describe it ----

#[derive(Default, Serialize, Deserialize)]
struct Cart {}

#[derive(Serialize, Deserialize)]
struct Added {
    sku: String,
    qty: u32,
}

impl Data for Cart {
    fn schema(_: &mut Types) -> Type {
        Type::Named("Cart".into())
    }
}
impl Data for Added {
    fn schema(_: &mut Types) -> Type {
        Type::Named("Added".into())
    }
}

const SKU: Param = Param { name: "sku", ty: "String", schema: |_| Type::String };
const QTY: Param = Param { name: "qty", ty: "u32", schema: |_| Type::Uint(32) };
const SOLD: Param = Param { name: "sold", ty: "bool", schema: |_| Type::Bool };
const TAGS: Param = Param { name: "tags", ty: "Vec<String>", schema: |_| Type::Seq(Box::new(Type::String)) };

impl Actor for Cart {
    const KIND: &'static str = "Cart";
    type Event = Added;
    type Ref = ActorHandle;
    const METHODS: &'static [Method] = &[
        Method {
            name: "add",
            write: true,
            asynchronous: false,
            stale_ms: 0,
            params: &[SKU, QTY],
            returns: "u32",
            returns_schema: |_| Type::Uint(32),
            doc: "Adds <to> the cart.",
        },
        Method {
            name: "find",
            write: false,
            asynchronous: false,
            stale_ms: 0,
            params: &[SKU, QTY, SOLD, TAGS],
            returns: "u32",
            returns_schema: |_| Type::Uint(32),
            doc: "Finds lines.",
        },
    ];
    fn make_ref(handle: ActorHandle) -> Self::Ref {
        handle
    }
    fn read<'a>(&'a self, _: &'a Ctx<Self>, _: usize, args: Args) -> Run<'a> {
        Run::Done(Answer::Ok(args.bytes))
    }
    fn write<'a>(&'a mut self, _: &'a mut Ctx<Self>, _: usize, args: Args) -> Run<'a> {
        Run::Done(Answer::Ok(args.bytes))
    }
}

/// The same handlers, as a stateless kind.
#[derive(Default, Serialize, Deserialize)]
struct Worker {}

impl Data for Worker {
    fn schema(_: &mut Types) -> Type {
        Type::Named("Worker".into())
    }
}

impl Actor for Worker {
    const KIND: &'static str = "Worker";
    type Event = ();
    type Ref = ActorHandle;
    const METHODS: &'static [Method] = &[Method { write: false, ..Cart::METHODS[0] }];
    const OPTIONS: Options =
        Options { pool: Some(Pool { balance: Balance::RoundRobin, idempotent: true }), ..Options::DEFAULT };
    fn make_ref(handle: ActorHandle) -> Self::Ref {
        handle
    }
    fn read<'a>(&'a self, _: &'a Ctx<Self>, _: usize, args: Args) -> Run<'a> {
        Run::Done(Answer::Ok(args.bytes))
    }
    fn write<'a>(&'a mut self, _: &'a mut Ctx<Self>, _: usize, args: Args) -> Run<'a> {
        Run::Done(Answer::Ok(args.bytes))
    }
}

fn files(path: &str) -> Option<Asset> {
    let (content_type, bytes) = match path {
        "" => ("text/html; charset=utf-8", "<h1>shop</h1>"),
        "js/app.js" => ("text/javascript", "go()"),
        _ => return None,
    };
    Some(Asset { content_type: content_type.into(), bytes: Cow::Borrowed(bytes.as_bytes()) })
}

// ---- the backend ----

/// Answers what `answers` holds for the handler, else the arguments. The handler `hold` waits for a
/// permit of `release`, `panic` panics, `never` does not answer.
struct Fake {
    app: App,
    node: NodeId,
    ready: Mutex<Result<(), String>>,
    /// Why it is not started, and why not live.
    unwell: Mutex<(Vec<String>, Vec<String>)>,
    answers: Mutex<HashMap<String, Answer>>,
    calls: Mutex<Vec<Outbound>>,
    subscriptions: Mutex<Vec<(ActorId, EventsFrom)>>,
    registry: Arc<Mutex<Registry>>,
    status_hangs: AtomicBool,
    held: Arc<Held>,
}

#[derive(Debug)]
struct Held {
    entered: Semaphore,
    release: Semaphore,
    finished: Semaphore,
    dropped: Semaphore,
}

impl Held {
    async fn seen(permits: &Semaphore) {
        permits.acquire().await.unwrap().forget();
    }
}

struct DropGuard(Arc<Held>, bool);
impl Drop for DropGuard {
    fn drop(&mut self) {
        let which = if self.1 { &self.0.finished } else { &self.0.dropped };
        which.add_permits(1);
    }
}

impl Fake {
    fn new(app: App) -> Arc<Self> {
        let mut registry = Registry::default();
        let turns: Counter = Counter::default();
        turns.inc_by(7);
        registry.register("perennial_turns", "Turns", turns);
        Arc::new(Self {
            app,
            node: NodeId::new("n1").unwrap(),
            ready: Mutex::new(Ok(())),
            unwell: Mutex::default(),
            answers: Mutex::default(),
            calls: Mutex::default(),
            subscriptions: Mutex::default(),
            registry: Arc::new(Mutex::new(registry)),
            status_hangs: AtomicBool::new(false),
            held: Arc::new(Held {
                entered: Semaphore::new(0),
                release: Semaphore::new(0),
                finished: Semaphore::new(0),
                dropped: Semaphore::new(0),
            }),
        })
    }

    fn answers(&self, method: &str, answer: Answer) {
        self.answers.lock().unwrap().insert(method.into(), answer);
    }

    fn last_call(&self) -> Outbound {
        self.calls.lock().unwrap().last().expect("a call arrived").clone()
    }
}

impl Caller for Fake {
    fn call(&self, call: Outbound) -> BoxFuture<'static, Answered> {
        self.calls.lock().unwrap().push(call.clone());
        let answer = self.answers.lock().unwrap().get(&call.method).cloned();
        let node = NodeId::new("n2").unwrap();
        let held = Arc::clone(&self.held);
        Box::pin(async move {
            match call.method.as_str() {
                "hold" => {
                    let mut guard = DropGuard(Arc::clone(&held), false);
                    held.entered.add_permits(1);
                    Held::seen(&held.release).await;
                    guard.1 = true;
                }
                "panic" => panic!("the backend panics, as this test wants"),
                "never" => std::future::pending().await,
                _ => {}
            }
            let answer = answer.unwrap_or(Answer::Ok(call.args.bytes));
            Answered {
                answer,
                node: Some(node),
                partition: Some(PartitionId(17)),
                retries: 2,
                age_ms: call.stale.map(|_| 250),
            }
        })
    }

    fn subscribe(&self, actor: ActorId, from: EventsFrom) -> EventStream {
        let key = actor.key().to_owned();
        self.subscriptions.lock().unwrap().push((actor, from));
        let after = match from {
            EventsFrom::Start => EventId::default(),
            EventsFrom::After(id) => id,
            EventsFrom::Now => EventId { index: u64::MAX, n: 0 },
        };
        let kept = (1..=3_u32).map(|n| {
            let event = Added { sku: format!("tea\n{n}"), qty: n };
            let event = Bytes::from(postcard::to_stdvec(&event).unwrap());
            Ok(EventItem { id: EventId { index: 10 + u64::from(n), n: 0 }, event, mark: false })
        });
        let kept: Vec<_> =
            kept.filter(|item: &Result<EventItem, Fault>| item.as_ref().unwrap().id > after).collect();
        let kept = stream::iter(kept);
        let id = EventId { index: 20, n: 1 };
        match key.as_str() {
            "ended" => {
                let fault = Fault::Unavailable { what: "partition 3".into(), why: "no leader".into() };
                Box::pin(kept.chain(stream::iter([Err(fault)])))
            }
            "gone" => {
                let (after, oldest) = (EventId { index: 12, n: 0 }, Some(EventId { index: 17, n: 0 }));
                let (actor, why) = ("Cart/gone".to_owned(), "it is too late".to_owned());
                Box::pin(stream::iter([Err(Fault::EventsGone { actor, after, oldest, why })]))
            }
            "marked" => {
                let id = EventId { index: 16, n: u32::MAX };
                let mark = EventItem { id, event: Bytes::new(), mark: true };
                Box::pin(stream::iter([Ok(mark)]).chain(stream::pending()))
            }
            "garbled" => {
                let event = Bytes::from_static(&[0xff; 3]);
                Box::pin(
                    kept.chain(stream::iter([Ok(EventItem { id, event, mark: false })]))
                        .chain(stream::pending()),
                )
            }
            _ => Box::pin(kept.chain(stream::pending())),
        }
    }
}

impl Backend for Fake {
    fn app(&self) -> &App {
        &self.app
    }
    fn node(&self) -> &NodeId {
        &self.node
    }
    fn status(&self) -> BoxFuture<'static, ClusterStatus> {
        let status = ClusterStatus {
            node: self.node.clone(),
            app: self.app.name().into(),
            cluster: Some("c0ffee".into()),
            epoch: Some(Epoch(4)),
            waiting_for: None,
            members: Vec::new(),
            partitions: Vec::new(),
            checks: Vec::new(),
        };
        let (held, hangs) = (Arc::clone(&self.held), self.status_hangs.load(Ordering::Relaxed));
        Box::pin(async move {
            if hangs {
                held.entered.add_permits(1);
                std::future::pending::<()>().await;
            }
            status
        })
    }
    fn not_started(&self) -> Vec<String> {
        self.unwell.lock().unwrap().0.clone()
    }
    fn not_live(&self) -> Vec<String> {
        self.unwell.lock().unwrap().1.clone()
    }
    fn reminders(&self, query: ReminderQuery) -> BoxFuture<'static, Result<ReminderPage, Fault>> {
        let page = ReminderPage {
            reminders: vec![Reminder {
                actor: query.actor.unwrap_or_else(|| "Cart/alice".parse().unwrap()),
                name: query.after.map_or_else(|| "abandoned".into(), |(_, _, name)| format!("behind {name}")),
                due: query.due_before.unwrap_or(Millis(7)),
                target: "Cart/alice".parse().unwrap(),
                handler: "clear".into(),
                repeats: None,
                missed: None,
            }],
            more: query.limit == 1,
        };
        Box::pin(async move { Ok(page) })
    }
    fn cancel_reminder(&self, _: ActorId, name: String) -> BoxFuture<'static, Result<bool, Fault>> {
        Box::pin(async move {
            match name.as_str() {
                "lost" => Err(Fault::OutcomeUnknown { actor: "Cart/alice".into() }),
                name => Ok(name == "aban/doned"),
            }
        })
    }
    fn ready(&self) -> Result<(), String> {
        self.ready.lock().unwrap().clone()
    }
    fn metrics(&self) -> Arc<Mutex<Registry>> {
        Arc::clone(&self.registry)
    }
}

// ---- the setting ----

struct Setting {
    fake: Arc<Fake>,
    gateway: Gateway,
    http: Client,
    base: String,
}

fn shop() -> App {
    App::new("shop").actor::<Cart>().page("shop", files)
}

async fn start() -> Setting {
    start_with(GatewayConfig::default()).await
}

async fn start_with(config: GatewayConfig) -> Setting {
    start_app(shop(), config).await
}

async fn start_app(app: App, config: GatewayConfig) -> Setting {
    let fake = Fake::new(app);
    let gateway = Gateway::bind(loopback(), fake.clone(), config).await.unwrap();
    let base = format!("http://{}", gateway.address().unwrap());
    let http = Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy().build().unwrap();
    Setting { fake, gateway, http, base }
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

impl Setting {
    async fn get(&self, path: &str) -> Response {
        self.http.get(format!("{}{path}", self.base)).send().await.unwrap()
    }

    async fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> Response {
        self.http.post(format!("{}{path}", self.base)).body(body).send().await.unwrap()
    }

    async fn post_with(&self, path: &str, body: &'static str, name: &'static str, value: &str) -> Response {
        let value = HeaderValue::from_str(value).unwrap();
        let request = self.http.post(format!("{}{path}", self.base)).header(name, value).body(body);
        request.send().await.unwrap()
    }

    /// A call that waits in the backend.
    async fn hold(&self, post: bool) -> tokio::task::JoinHandle<Response> {
        let url = format!("{}/v1/Cart/a/hold", self.base);
        let request = if post { self.http.post(url) } else { self.http.get(url) };
        let call = tokio::spawn(async move { request.send().await.unwrap() });
        Held::seen(&self.fake.held.entered).await;
        call
    }

    async fn raw(&self, bytes: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(self.gateway.address().unwrap()).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream
    }

    /// The value of a metric's line, 0 when it is not there.
    async fn metric(&self, line: &str) -> u64 {
        let text = self.get("/metrics").await.text().await.unwrap();
        let found = text.lines().find_map(|l| l.strip_prefix(line)?.strip_prefix(' '));
        found.map_or(0, |value| value.parse().unwrap())
    }
}

async fn read_all(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset is an end as well.
    let _ = stream.read_to_end(&mut bytes).await;
    String::from_utf8(bytes).unwrap()
}

/// Checks status and code of a refusal and that its body has the one shape; gives the body.
async fn refused(response: Response, status: u16, code: &str) -> Value {
    assert_eq!(response.headers()["content-type"], "application/json");
    let again = matches!(status, 429 | 503);
    assert_eq!(response.headers().get("retry-after").is_some(), again, "retry-after of {status}");
    let got = response.status().as_u16();
    let body: Value = response.json().await.unwrap();
    assert_eq!((got, body["code"].as_str().unwrap()), (status, code), "{body}");
    assert!(body["message"].as_str().is_some_and(|m| !m.is_empty()), "{body}");
    assert!(matches!(body["applied"].as_str(), Some("no" | "unknown")), "{body}");
    assert!(body["retryable"].is_boolean(), "{body}");
    body
}

// ---- calls ----

#[tokio::test]
async fn a_call_reaches_the_actor_and_the_answer_says_who_gave_it() {
    let s = start().await;
    let response = s.post("/v1/Cart/alice/add", r#"{"sku":"tea","qty":2}"#).await;
    assert_eq!(response.status(), StatusCode::OK);
    let header = |headers: &HeaderMap, name: &str| headers[name].to_str().unwrap().to_owned();
    for (name, value) in [
        ("content-type", "application/json"),
        ("cache-control", "no-store"),
        ("perennial-node", "n2"),
        ("perennial-partition", "17"),
        ("perennial-retries", "2"),
    ] {
        assert_eq!(header(response.headers(), name), value, "{name}");
    }
    assert_eq!(response.json::<Value>().await.unwrap(), json!({"sku": "tea", "qty": 2}));
    let call = s.fake.last_call();
    assert_eq!((call.target.as_str(), call.method.as_str()), ("Cart/alice", "add"));
    assert_eq!((call.args.format, call.read_only, call.keyed), (Format::Json, false, false));
    assert!(call.request.is_none() && call.path.is_empty());
}

#[tokio::test]
async fn empty_bodies_unit_values_and_encoded_keys_work() {
    let s = start().await;
    s.fake.answers("clear", Answer::Ok(Bytes::from_static(b"null")));
    for body in ["", "  \n"] {
        let response = s.post("/v1/Cart/a%2Fb%20%C3%BC/clear", body).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.text().await.unwrap(), "null");
        let call = s.fake.last_call();
        assert_eq!((call.target.key(), call.args.bytes.len()), ("a/b ü", 0));
    }
    // curl -d names a form; the bytes are what counts
    let form = "application/x-www-form-urlencoded";
    let response = s.post_with("/v1/Cart/a/add", "{}", "content-type", form).await;
    assert_eq!(response.status(), StatusCode::OK);
}

#[tokio::test]
async fn an_application_error_is_409_with_its_own_json() {
    let s = start().await;
    let error = r#"{"OutOfStock":{"left":340282366920938463463374607431768211455}}"#;
    s.fake.answers("add", Answer::App(Bytes::from_static(error.as_bytes())));
    let response = s.post("/v1/Cart/a/add", "{}").await;
    assert_eq!(response.headers()["perennial-node"], "n2");
    assert_eq!(response.status(), StatusCode::CONFLICT);
    let text = response.text().await.unwrap();
    assert!(text.contains(error), "the error's bytes pass untouched: {text}");
    let body: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (&body["code"], &body["applied"], &body["retryable"]),
        (&json!("app"), &json!("no"), &json!(false))
    );
}

#[tokio::test]
async fn every_fault_has_its_status_code_and_body() {
    let s = start().await;
    let text = |t: &str| t.to_owned();
    let known = || vec![text("Cart"), text("Stock")];
    let (kind, method) = (|| text("Cart"), || text("add"));
    let cases = [
        (Fault::UnknownKind { kind: text("Crt"), known: known() }, 404, "no", false),
        (Fault::UnknownMethod { kind: kind(), method: text("ad"), known: known() }, 404, "no", false),
        (
            Fault::BadArguments { kind: kind(), method: method(), problem: text("p"), takes: text("{}") },
            400,
            "no",
            false,
        ),
        (Fault::BadName(text("no")), 400, "no", false),
        (Fault::NotARead { kind: kind(), method: method() }, 405, "no", false),
        (Fault::Cycle { path: known() }, 508, "no", false),
        (Fault::Overloaded { what: text("mailbox"), at: text("Cart/a"), limit: 8 }, 429, "no", true),
        (Fault::TimedOut { actor: text("Cart/a") }, 504, "unknown", true),
        (Fault::OutcomeUnknown { actor: text("Cart/a") }, 503, "unknown", true),
        (Fault::Unavailable { what: text("p3"), why: text("no majority") }, 503, "no", true),
        (Fault::TooLarge { what: text("state"), at: text("Cart/a"), bytes: 9, limit: 8 }, 413, "no", false),
        (Fault::Panicked { kind: kind(), method: method(), message: text("oh") }, 500, "no", false),
        (Fault::Unreadable { what: text("state"), at: text("Cart/a"), why: text("old") }, 500, "no", false),
        (Fault::Forgotten { actor: text("Cart/a") }, 410, "no", false),
    ];
    for (fault, status, applied, retryable) in cases {
        s.fake.answers("add", Answer::Fault(fault.clone()));
        let response = s.post("/v1/Cart/a/add", "{}").await;
        let body = refused(response, status, fault.code()).await;
        assert_eq!(body["message"], fault.to_string());
        assert_eq!((&body["applied"], &body["retryable"]), (&json!(applied), &json!(retryable)), "{body}");
        assert!(body.get("error").is_none());
    }
}

#[tokio::test]
async fn bad_bodies_are_refused_with_the_reason_and_never_reach_an_actor() {
    let s = start_with(GatewayConfig { body_bytes_max: 64, ..GatewayConfig::default() }).await;
    let add = "/v1/Cart/a/add";
    let body = refused(s.post(add, "{\n  \"qty\": ]").await, 400, "bad_json").await;
    assert!(body["message"].as_str().unwrap().contains("line 2 column 10"), "{body}");
    refused(s.post(add, "[1, 2]").await, 400, "not_an_object").await;
    refused(s.post(add, "{} {}").await, 400, "bad_json").await;
    let body = refused(s.post(add, vec![b'{', b'"', 0xff, b'"']).await, 400, "not_utf8").await;
    assert!(body["message"].as_str().unwrap().contains("byte 2"), "{body}");
    let body = refused(s.post(add, "x".repeat(65)).await, 413, "body_too_large").await;
    assert!(body["message"].as_str().unwrap().contains("64 bytes"), "{body}");
    let chunks = stream::iter((0..100).map(|_| Ok::<_, std::io::Error>("0123456789")));
    refused(s.post(add, reqwest::Body::wrap_stream(chunks)).await, 413, "body_too_large").await;
    let waits =
        b"POST /v1/Cart/a/add HTTP/1.1\r\nhost: localhost\r\ncontent-length: 65\r\nexpect: 100-continue\r\n\r\n";
    let told = read_all(s.raw(waits).await).await;
    assert!(told.starts_with("HTTP/1.1 413"), "{told}");
    assert!(s.fake.calls.lock().unwrap().is_empty());
    let at_limit = format!("{{\"sku\":\"{}\"}}", "x".repeat(54));
    assert_eq!(at_limit.len(), 64);
    assert_eq!(s.post(add, at_limit).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn bad_names_and_headers_are_refused() {
    let s = start().await;
    assert_eq!(s.post(&format!("/v1/Cart/{}/add", "k".repeat(512)), "{}").await.status(), StatusCode::OK);
    refused(s.post(&format!("/v1/Cart/{}/add", "k".repeat(513)), "{}").await, 400, "bad_name").await;
    refused(s.post("/v1/Cart//add", "{}").await, 400, "bad_name").await;
    refused(s.post("/v1/Ca%20rt/a/add", "{}").await, 400, "bad_name").await;
    refused(s.post("/v1/Cart/%ff/add", "{}").await, 400, "bad_path").await;
    for key in ["", "two words", "umlaut-\u{fc}", &"k".repeat(257)] {
        let response = s.post_with("/v1/Cart/a/add", "{}", "idempotency-key", key).await;
        refused(response, 400, "bad_header").await;
    }
    for timeout in ["0", "60001", "1s", "-1", ""] {
        let response = s.post_with("/v1/Cart/a/add", "{}", "perennial-timeout-ms", timeout).await;
        let body = refused(response, 400, "bad_header").await;
        assert!(body["message"].as_str().unwrap().contains("1 to 60000"), "{body}");
    }
}

#[tokio::test]
async fn an_idempotency_key_names_one_request_of_one_handler_of_one_actor() {
    let s = start().await;
    let mut ids = Vec::new();
    for (path, body, key) in [
        ("/v1/Cart/a/add", r#"{"sku":"tea","qty":1}"#, "k1"),
        ("/v1/Cart/a/add", r#" {"qty": 1, "sku": "tea"} "#, "k1"),
        ("/v1/Cart/a/add", r#"{"sku":"tea","qty":2}"#, "k1"),
        ("/v1/Cart/a/add", r#"{"sku":"tea","qty":1}"#, "k2"),
        ("/v1/Cart/b/add", r#"{"sku":"tea","qty":1}"#, "k1"),
        ("/v1/Cart/a/set", r#"{"sku":"tea","qty":1}"#, "k1"),
        ("/v1/Cart/a/clear", "", "k1"),
        ("/v1/Cart/a/clear", "{}", "k1"),
    ] {
        assert_eq!(s.post_with(path, body, "idempotency-key", key).await.status(), StatusCode::OK);
        let call = s.fake.last_call();
        assert!(call.keyed);
        let request = call.request.expect("a keyed call has its id");
        assert_eq!(request.seq, 0);
        ids.push(request.session);
    }
    assert_eq!(ids[0], ids[1], "a repeated request is the same request");
    assert_eq!(ids[6], ids[7], "an empty body is the empty object");
    let distinct = [ids[0], ids[2], ids[3], ids[4], ids[5], ids[6]];
    for (i, a) in distinct.iter().enumerate() {
        assert!(distinct[..i].iter().all(|b| a != b), "request {i} is one of its own");
    }
}

#[tokio::test]
async fn a_read_may_be_behind_as_far_as_its_caller_says() {
    let s = start().await;
    for (value, asked) in [("1500", Some(Duration::from_millis(1500))), ("0", None)] {
        let url = format!("{}/v1/Cart/a/find?sku=tea", s.base);
        let response = s.http.get(url).header("perennial-max-stale-ms", value).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let call = s.fake.last_call();
        assert_eq!((call.stale, call.read_only), (asked, true));
        let age = response.headers().get("perennial-age-ms").map(|age| age.to_str().unwrap().to_owned());
        assert_eq!(age, asked.map(|_| "250".to_owned()));
    }
    let url = format!("{}/v1/Cart/a/find?sku=tea", s.base);
    let response = s.http.get(url).header("perennial-max-stale-ms", "soon").send().await.unwrap();
    refused(response, 400, "bad_header").await;
}

#[tokio::test]
async fn the_caller_sets_the_deadline_and_a_silent_backend_is_not_waited_for() {
    let s = start().await;
    let before = Instant::now();
    s.post_with("/v1/Cart/a/add", "{}", "perennial-timeout-ms", "60000").await;
    let after = Instant::now();
    let deadline = s.fake.last_call().deadline;
    assert!((before + Duration::from_secs(60)..=after + Duration::from_secs(60)).contains(&deadline));
    let response = s.post_with("/v1/Cart/a/never", "{}", "perennial-timeout-ms", "1").await;
    let body = refused(response, 504, "timed_out").await;
    assert_eq!(body["applied"], "unknown");
}

#[tokio::test]
async fn a_panic_behind_the_gateway_is_an_answer() {
    let s = start().await;
    for response in [s.post("/v1/Cart/a/panic", "").await, s.get("/v1/Cart/a/panic").await] {
        let body = refused(response, 500, "internal").await;
        assert_eq!(body["applied"], "unknown");
    }
    assert_eq!(s.get("/livez").await.status(), StatusCode::OK);
}

// ---- reads ----

#[tokio::test]
async fn a_query_becomes_arguments_by_the_parameters_types() {
    let s = start().await;
    let response = s.get("/v1/Cart/a/find?sku=12&qty=3&sold=true&tags=%5B%22x%22%5D").await;
    let expected = json!({"sku": "12", "qty": 3, "sold": true, "tags": ["x"]});
    assert_eq!(response.json::<Value>().await.unwrap(), expected);
    assert!(s.fake.last_call().read_only);
    let response = s.get("/v1/Other/a/get?n=3&name=tea+time&flag=true").await;
    let expected = json!({"n": 3, "name": "tea time", "flag": true});
    assert_eq!(response.json::<Value>().await.unwrap(), expected, "best effort for an unknown kind");
    assert_eq!(s.get("/v1/Cart/a/find").await.text().await.unwrap(), "{}");
    let body = refused(s.get("/v1/Cart/a/find?qty=many").await, 400, "bad_arguments").await;
    assert!(body["message"].as_str().unwrap().contains("qty is u32"), "{body}");
    refused(s.get("/v1/Cart/a/find?sku=a&sku=b").await, 400, "bad_query").await;
    refused(s.get("/v1/Cart/a/find?sku=%ff").await, 400, "bad_query").await;
}

#[tokio::test]
async fn a_get_never_writes_and_says_what_would() {
    let s = start().await;
    let fault = Fault::NotARead { kind: "Cart".into(), method: "add".into() };
    s.fake.answers("add", Answer::Fault(fault));
    let response = s.get("/v1/Cart/a/add").await;
    assert_eq!(response.headers()["allow"], "POST");
    refused(response, 405, "not_a_read").await;
}

#[tokio::test]
async fn wrong_routes_and_methods_are_told_the_right_ones() {
    let s = start().await;
    for path in ["/v2/Cart/a/add", "/v1/Cart", "/v1/Cart/a/add/more"] {
        let body = refused(s.get(path).await, 404, "no_route").await;
        assert!(body["message"].as_str().unwrap().contains("POST /v1/{kind}/{key}/{handler}"), "{body}");
    }
    for (path, method, allow) in [
        ("/v1/Cart/a/add", reqwest::Method::DELETE, "POST,GET,HEAD"),
        ("/v1/Cart/a/events", reqwest::Method::POST, "GET,HEAD"),
        ("/readyz", reqwest::Method::PUT, "GET,HEAD"),
    ] {
        let response = s.http.request(method, format!("{}{path}", s.base)).send().await.unwrap();
        let mut allowed: Vec<_> = response.headers()["allow"].to_str().unwrap().split(',').collect();
        let mut expected: Vec<_> = allow.split(',').collect();
        allowed.sort_unstable();
        expected.sort_unstable();
        assert_eq!(allowed, expected, "{path}");
        refused(response, 405, "method_not_allowed").await;
    }
}

// ---- limits ----

#[tokio::test]
async fn calls_above_the_limit_are_refused_at_once() {
    let s = start_with(GatewayConfig { calls_in_flight_max: 1, ..GatewayConfig::default() }).await;
    let held = s.hold(true).await;
    assert_eq!(s.metric("perennial_gateway_calls_in_flight").await, 1);
    let body = refused(s.post("/v1/Cart/a/add", "{}").await, 429, "busy").await;
    assert!(body["message"].as_str().unwrap().contains("limit of 1"), "{body}");
    assert_eq!((&body["applied"], &body["retryable"]), (&json!("no"), &json!(true)));
    refused(s.get("/v1/Cart/a/find").await, 429, "busy").await;
    assert_eq!(s.metric("perennial_gateway_refused_total{limit=\"calls in flight\"}").await, 2);
    s.fake.held.release.add_permits(1);
    assert_eq!(held.await.unwrap().status(), StatusCode::OK);
    assert_eq!(s.post("/v1/Cart/a/add", "{}").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn connections_above_the_cap_are_told_so_and_closed() {
    let s = start_with(GatewayConfig { connections_max: 1, ..GatewayConfig::default() }).await;
    let held = s.hold(true).await;
    let told = read_all(TcpStream::connect(s.gateway.address().unwrap()).await.unwrap()).await;
    assert!(told.starts_with("HTTP/1.1 503") && told.contains("retry-after: 1"), "{told}");
    s.fake.held.release.add_permits(1);
    assert_eq!(held.await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn a_head_that_does_not_come_or_is_too_large_ends_the_connection() {
    let config = GatewayConfig { header_read_timeout: Duration::from_millis(20), ..GatewayConfig::default() };
    let s = start_with(config).await;
    for sent in ["", "POST /v1/Cart/a/add HTTP/1.1\r\nhost: localhost\r\nslow: "] {
        let told = read_all(s.raw(sent.as_bytes()).await).await;
        assert!(!told.starts_with("HTTP/1.1 2"), "{told}");
    }
    assert!(s.fake.calls.lock().unwrap().is_empty());
    let s = start().await;
    let response = s.post_with("/v1/Cart/a/add", "{}", "x-large", &"x".repeat(70 * 1024)).await;
    assert_eq!(response.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
}

#[tokio::test]
async fn a_body_that_does_not_come_is_408_and_gives_its_permit_back() {
    let config = GatewayConfig {
        body_read_timeout: Duration::from_millis(20),
        calls_in_flight_max: 1,
        ..GatewayConfig::default()
    };
    let s = start_with(config).await;
    let slow =
        "POST /v1/Cart/a/add HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\nconnection: close\r\n\r\n{";
    let told = read_all(s.raw(slow.as_bytes()).await).await;
    assert!(told.starts_with("HTTP/1.1 408") && told.contains("\"body_slow\""), "{told}");
    assert_eq!(s.post("/v1/Cart/a/add", "{}").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn status_requests_are_limited_in_number_and_time() {
    let s = start().await;
    s.fake.status_hangs.store(true, Ordering::Relaxed);
    let mut waiting = Vec::new();
    for _ in 0..STATUS_IN_FLIGHT_MAX {
        waiting.push(s.raw(b"GET /v1/status HTTP/1.1\r\nhost: localhost\r\n\r\n").await);
        Held::seen(&s.fake.held.entered).await;
    }
    refused(s.get("/v1/status").await, 429, "busy").await;
    let s = start_with(GatewayConfig { call_timeout: Duration::ZERO, ..GatewayConfig::default() }).await;
    s.fake.status_hangs.store(true, Ordering::Relaxed);
    refused(s.get("/v1/status").await, 504, "status_slow").await;
}

// ---- clients that leave ----

#[tokio::test]
async fn a_write_goes_on_when_its_client_leaves() {
    let s = start().await;
    let client =
        s.raw(b"POST /v1/Cart/a/hold HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n").await;
    Held::seen(&s.fake.held.entered).await;
    drop(client);
    let gone = "perennial_gateway_requests_total{route=\"call\",kind=\"Cart\",status=\"gone\"}";
    while s.metric(gone).await == 0 {}
    assert_eq!(s.metric("perennial_gateway_calls_in_flight").await, 1, "it keeps its permit");
    s.fake.held.release.add_permits(1);
    Held::seen(&s.fake.held.finished).await;
    assert_eq!(s.fake.held.dropped.available_permits(), 0);
}

#[tokio::test]
async fn a_read_ends_when_its_client_leaves() {
    let s = start().await;
    let client = s.raw(b"GET /v1/Cart/a/hold HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    Held::seen(&s.fake.held.entered).await;
    drop(client);
    Held::seen(&s.fake.held.dropped).await;
}

// ---- events ----

/// Reads a stream until its text holds `until`, or to its end.
async fn events(response: Response, until: &str) -> String {
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut text = String::new();
    let mut chunks = response.bytes_stream();
    while let Some(chunk) = chunks.next().await {
        text.push_str(std::str::from_utf8(&chunk.unwrap()).unwrap());
        if !until.is_empty() && text.contains(until) {
            break;
        }
    }
    text
}

#[tokio::test]
async fn events_carry_ids_and_resume_after_the_last_one_seen() {
    let s = start().await;
    let text = events(s.get("/v1/Cart/a/events?from=start").await, "\"qty\":3}").await;
    assert!(text.starts_with("retry: 1000\n: open\n\n"), "{text}");
    let first = text.split("\n\n").nth(1).unwrap();
    let mut lines: Vec<_> = first.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, [r#"data: {"sku":"tea\n1","qty":1}"#, "id: 11-0"]);

    let url = format!("{}/v1/Cart/a/events?from=start", s.base);
    let response = s.http.get(url).header("last-event-id", "12-0").send().await.unwrap();
    let text = events(response, "\"qty\":3}").await;
    assert!(!text.contains("12-0"), "the header wins over the query: {text}");
    events(s.get("/v1/Cart/a/events?from=12-0").await, "\"qty\":3}").await;
    events(s.get("/v1/Cart/a/events").await, ": open\n\n").await;
    let after = EventsFrom::After(EventId { index: 12, n: 0 });
    let froms: Vec<_> = s.fake.subscriptions.lock().unwrap().iter().map(|(_, from)| *from).collect();
    assert_eq!(froms, [EventsFrom::Start, after, after, EventsFrom::Now]);
}

#[tokio::test]
async fn a_fault_is_the_last_item_of_a_stream() {
    let s = start().await;
    for (key, code) in [("ended", "unavailable"), ("garbled", "unreadable")] {
        let text = events(s.get(&format!("/v1/Cart/{key}/events?from=start")).await, "").await;
        let last = text.trim_end().split("\n\n").last().unwrap();
        assert!(last.contains("event: fault\n") && last.contains(&format!("\"code\":\"{code}\"")), "{last}");
        assert!(!last.contains("id:"), "a fault moves nobody's position: {last}");
        assert!(text.contains("id: 13-0\n"));
    }
}

#[tokio::test]
async fn bad_subscriptions_are_refused() {
    let s = start().await;
    let body = refused(s.get("/v1/Crt/a/events").await, 404, "unknown_kind").await;
    assert!(body["message"].as_str().unwrap().contains("Cart"), "{body}");
    refused(s.get("/v1/Cart/a/events?from=yesterday").await, 400, "bad_query").await;
    refused(s.get("/v1/Cart/a/events?since=1-0").await, 400, "bad_query").await;
    let url = format!("{}/v1/Cart/a/events", s.base);
    let response = s.http.get(url).header("last-event-id", "x").send().await.unwrap();
    refused(response, 400, "bad_header").await;
    assert!(s.fake.subscriptions.lock().unwrap().is_empty());
}

#[tokio::test]
async fn streams_are_limited_and_kept_alive() {
    let config = GatewayConfig {
        streams_open_max: 1,
        stream_keep_alive: Duration::from_millis(10),
        ..GatewayConfig::default()
    };
    let s = start_with(config).await;
    let open = s.get("/v1/Cart/a/events").await;
    refused(s.get("/v1/Cart/a/events").await, 429, "busy").await;
    assert_eq!(s.metric("perennial_gateway_streams_open").await, 1);
    events(open, ": keep-alive\n\n").await;
    while s.metric("perennial_gateway_streams_open").await == 1 {}
    events(s.get("/v1/Cart/a/events").await, ": open\n\n").await;
}

// ---- health, stop ----

#[tokio::test]
async fn readiness_follows_the_backend_and_flips_when_draining() {
    let s = start().await;
    assert_eq!(s.get("/livez").await.status(), StatusCode::OK);
    let body: Value = s.get("/readyz").await.json().await.unwrap();
    assert_eq!(body, json!({"status": "ready", "ready": true, "reasons": [], "node": "n1"}));
    *s.fake.ready.lock().unwrap() = Err("waiting for 1 more node (2 of 3 found)".into());
    let body = refused(s.get("/readyz").await, 503, "not_ready").await;
    assert!(body["message"].as_str().unwrap().contains("2 of 3 found"), "{body}");
    assert_eq!(
        (&body["ready"], &body["reasons"]),
        (&json!(false), &json!(["waiting for 1 more node (2 of 3 found)"]))
    );
    *s.fake.ready.lock().unwrap() = Ok(());
    s.gateway.drain();
    refused(s.get("/readyz").await, 503, "stopping").await;
    assert_eq!(s.get("/livez").await.status(), StatusCode::OK);
    assert_eq!(s.post("/v1/Cart/a/add", "{}").await.status(), StatusCode::OK, "calls are still served");
}

#[tokio::test]
async fn each_probe_says_no_for_its_own_reasons() {
    let s = start().await;
    let fine = async |path: &str, asked: &str| {
        let answer = s.get(path).await;
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        let body: Value = answer.json().await.unwrap();
        assert_eq!((&body[asked], &body["reasons"]), (&json!(true), &json!([])), "{path}");
    };
    let probes = [("/startupz", "started"), ("/livez", "live"), ("/readyz", "ready")];
    for (path, asked) in probes {
        fine(path, asked).await;
    }
    let why = vec!["it has no cluster".to_owned(), "its data is not open".to_owned()];
    s.fake.unwell.lock().unwrap().0 = why.clone();
    let body = refused(s.get("/startupz").await, 503, "not_started").await;
    assert_eq!((&body["started"], &body["reasons"]), (&json!(false), &json!(why)));
    fine("/livez", "live").await;
    fine("/readyz", "ready").await;
    *s.fake.unwell.lock().unwrap() = (Vec::new(), vec!["the replica thread stands still".into()]);
    let body = refused(s.get("/livez").await, 503, "not_live").await;
    assert_eq!(
        (&body["live"], &body["reasons"]),
        (&json!(false), &json!(["the replica thread stands still"]))
    );
    assert!(body["message"].as_str().unwrap().contains("not live: the replica thread"), "{body}");
    fine("/startupz", "started").await;
    fine("/readyz", "ready").await;
}

#[tokio::test]
async fn a_stop_lets_calls_finish_and_ends_streams() {
    let s = start_with(GatewayConfig { header_read_timeout: GRACE, ..GatewayConfig::default() }).await;
    let stream = s.get("/v1/Cart/a/events").await;
    let held = s.hold(true).await;
    let (address, release) = (s.gateway.address().unwrap(), Arc::clone(&s.fake.held));
    let idle = s.raw(b"").await;
    let stop = tokio::spawn(s.gateway.stop(GRACE));
    events(stream, "").await;
    assert!(!stop.is_finished(), "the call is waited for");
    release.release.add_permits(1);
    assert_eq!(held.await.unwrap().status(), StatusCode::OK);
    stop.await.unwrap();
    assert_eq!(read_all(idle).await, "", "a connection without a request holds nobody up");
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn calls_beyond_the_grace_of_a_stop_are_answered() {
    let s = start().await;
    let (write, read) = (s.hold(true).await, s.hold(false).await);
    s.gateway.stop(Duration::ZERO).await;
    let body = refused(write.await.unwrap(), 503, "stopping").await;
    assert_eq!((&body["applied"], &body["retryable"]), (&json!("unknown"), &json!(true)));
    let body = refused(read.await.unwrap(), 503, "stopping").await;
    assert_eq!(body["applied"], "no");
    Held::seen(&s.fake.held.dropped).await;
}

#[tokio::test]
async fn a_dropped_gateway_leaves_nothing_behind() {
    let s = start().await;
    let stream = s.raw(b"GET /v1/Cart/a/hold HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    Held::seen(&s.fake.held.entered).await;
    drop(s.gateway);
    Held::seen(&s.fake.held.dropped).await;
    read_all(stream).await;
}

#[tokio::test]
async fn what_cannot_start_says_why() {
    let s = start().await;
    let taken = s.gateway.address().unwrap();
    let error = Gateway::bind(taken, s.fake.clone(), GatewayConfig::default()).await.err().unwrap();
    assert!(matches!(error, GatewayError::Listen { address, .. } if address == taken), "{error}");
    for app in [
        shop().page("v1", files),
        shop().page("", files),
        shop().page("a b", files),
        shop().page("/shop/", files),
    ] {
        let error = Gateway::bind(loopback(), Fake::new(app), GatewayConfig::default()).await.err().unwrap();
        assert!(matches!(error, GatewayError::Page { .. }), "{error}");
    }
}

// ---- pages and what people look at ----

#[tokio::test]
async fn pages_are_served_with_types_and_validated_caching() {
    let s = start().await;
    let response = s.get("/shop?room=1").await;
    assert_eq!(response.status(), StatusCode::TEMPORARY_REDIRECT);
    assert_eq!(response.headers()["location"], "shop/?room=1");
    let response = s.get("/shop/").await;
    assert_eq!(response.headers()["content-type"], "text/html; charset=utf-8");
    assert_eq!(response.headers()["cache-control"], "no-cache");
    assert_eq!(response.text().await.unwrap(), "<h1>shop</h1>");
    let response = s.get("/shop/js/app.js").await;
    assert_eq!(response.headers()["content-type"], "text/javascript");
    let etag = response.headers()["etag"].clone();
    let url = format!("{}/shop/js/app.js", s.base);
    let again = s.http.get(&url).header("if-none-match", &etag).send().await.unwrap();
    assert_eq!((again.status(), again.headers().get("etag")), (StatusCode::NOT_MODIFIED, Some(&etag)));
    let other = s.http.get(&url).header("if-none-match", "\"other\"").send().await.unwrap();
    assert_eq!(other.status(), StatusCode::OK);
    refused(s.get("/shop/nothing.js").await, 404, "no_file").await;
}

#[tokio::test]
async fn index_kinds_and_status_tell_what_is_there() {
    let s = start().await;
    let index = s.get("/").await.text().await.unwrap();
    assert!(index.contains("href=\"shop/\"") && index.contains("POST /v1/Cart/{key}/add"), "{index}");
    assert!(index.contains("Adds &lt;to&gt; the cart."), "texts are escaped");
    let kinds: Value = s.get("/v1/kinds").await.json().await.unwrap();
    let cart = &kinds["kinds"][0];
    assert_eq!((&kinds["app"], &cart["kind"]), (&json!("shop"), &json!("Cart")));
    assert_eq!(cart["events"], "GET /v1/Cart/{key}/events");
    assert_eq!(cart["stateless"], json!(null));
    assert_eq!(
        cart["handlers"][0],
        json!({
            "name": "add", "signature": "add(sku: String, qty: u32)", "writes": true,
            "call": "POST /v1/Cart/{key}/add", "returns": "u32", "doc": "Adds <to> the cart.",
            "params": [{"name": "sku", "type": "String"}, {"name": "qty", "type": "u32"}],
        })
    );
    assert_eq!(cart["handlers"][1]["call"], "GET /v1/Cart/{key}/find");
    let status: ClusterStatus = s.get("/v1/status").await.json().await.unwrap();
    assert_eq!((status.node.as_str(), status.epoch), ("n1", Some(Epoch(4))));
}

#[tokio::test]
async fn kinds_that_are_stateless_are_told_from_actors() {
    let s = start_app(shop().actor::<Worker>(), GatewayConfig::default()).await;
    let kinds: Value = s.get("/v1/kinds").await.json().await.unwrap();
    let (cart, worker) = (&kinds["kinds"][0], &kinds["kinds"][1]);
    assert_eq!((&cart["stateless"], &worker["kind"]), (&json!(null), &json!("Worker")));
    assert_eq!(worker["stateless"], json!({"balance": "round_robin", "idempotent": true}));
    assert_eq!(worker["events"], json!(null));
    assert_eq!(worker["handlers"][0]["call"], "POST /v1/Worker/any/add");
    let index = s.get("/").await.text().await.unwrap();
    assert!(
        index.contains("<h3>Worker (stateless workers)</h3>") && index.contains("<h3>Cart</h3>"),
        "{index}"
    );
}

#[tokio::test]
async fn metrics_are_open_metrics_of_node_and_gateway() {
    let s = start().await;
    s.post("/v1/Cart/a/add", "{}").await;
    s.post("/v1/Made.Up/a/add", "{}").await;
    s.post("/v1/Cart/a/add", "[]").await;
    s.get("/nowhere").await;
    let response = s.get("/metrics").await;
    let content_type = response.headers()["content-type"].to_str().unwrap().to_owned();
    assert!(content_type.starts_with("application/openmetrics-text"), "{content_type}");
    let text = response.text().await.unwrap();
    assert!(text.ends_with("# EOF\n") && text.matches("# EOF").count() == 1);
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (series, value) = line.rsplit_once(' ').unwrap();
        value.parse::<f64>().unwrap();
        assert!(series.starts_with("perennial_"), "{line}");
    }
    for line in [
        "perennial_turns_total 7",
        "perennial_gateway_requests_total{route=\"call\",kind=\"Cart\",status=\"2xx\"} 1",
        "perennial_gateway_requests_total{route=\"call\",kind=\"Cart\",status=\"4xx\"} 1",
        "perennial_gateway_requests_total{route=\"call\",kind=\"\",status=\"2xx\"} 1",
        "perennial_gateway_requests_total{route=\"other\",kind=\"\",status=\"4xx\"} 1",
        "perennial_gateway_request_duration_seconds_count{route=\"call\"} 3",
        "perennial_gateway_connections_open 1",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
    }
}

// ---- browsers ----

#[tokio::test]
async fn pages_of_this_host_may_call_and_foreign_ones_may_not_write() {
    let config =
        GatewayConfig { origins_allowed: vec!["https://shop.example".into()], ..GatewayConfig::default() };
    let s = start_with(config).await;
    let add = "/v1/Cart/a/add";
    for origin in ["http://127.0.0.1:8081", "http://localhost:3000", "https://shop.example"] {
        let response = s.post_with(add, "{}", "origin", origin).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["access-control-allow-origin"], origin);
        let exposed = response.headers()["access-control-expose-headers"].to_str().unwrap();
        assert!(exposed.contains("perennial-node"), "{exposed}");
    }
    for origin in ["https://evil.example", "null", "http://127.0.0.1.evil.example"] {
        let calls = s.fake.calls.lock().unwrap().len();
        let response = s.post_with(add, "{}", "origin", origin).await;
        assert!(response.headers().get("access-control-allow-origin").is_none());
        refused(response, 403, "foreign_origin").await;
        assert_eq!(s.fake.calls.lock().unwrap().len(), calls);
    }
    // behind a proxy that names another host, the browser's own word counts
    let proxied = s.http.post(format!("{}{add}", s.base)).header("origin", "https://front.example");
    let response = proxied.header("sec-fetch-site", "same-origin").body("{}").send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let preflight = |origin: &'static str| {
        s.http
            .request(reqwest::Method::OPTIONS, format!("{}{add}", s.base))
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "idempotency-key")
            .send()
    };
    let response = preflight("http://127.0.0.1:8081").await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let headers = response.headers()["access-control-allow-headers"].to_str().unwrap();
    assert!(headers.contains("idempotency-key"), "{headers}");
    let response = preflight("https://evil.example").await.unwrap();
    assert!(response.headers().get("access-control-allow-origin").is_none());
}

// ---- who may do what ----

/// A gateway with a policy: `reader` may find and follow in carts whose key begins with `eu/`, everybody
/// may add to the cart `open`. Gives the reader's key.
async fn start_guarded() -> (Setting, String) {
    start_guarded_for("anonymous").await
}

/// Instead of everybody, `who` may add to the cart `open`.
async fn start_guarded_for(who: &str) -> (Setting, String) {
    let key = NewKey::make("reader").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("policy.toml");
    let text = format!(
        "[[key]]\nname = \"reader\"\nsha256 = \"{}\"\ngroups = [\"eu\"]\n\n\
         [[allow]]\nwho = [\"group:eu\"]\nkind = \"Cart\"\nmethods = [\"find\", \"events\"]\nkey_prefix = \"eu/\"\n\n\
         [[allow]]\nwho = \"{who}\"\nkind = \"*\"\nmethods = \"add\"\nkey = \"open\"\n",
        key.sha256
    );
    std::fs::write(&path, text).unwrap();
    let policy = Policy::read(&path, shop().kinds()).unwrap();
    let config = GatewayConfig {
        policy: Some(Arc::new(policy)),
        admin: Some(AdminConfig { address: loopback(), tls: None }),
        calls_of_one_max: 1,
        ..GatewayConfig::default()
    };
    (start_with(config).await, format!("Bearer {}", key.key))
}

impl Setting {
    async fn get_as(&self, key: &str, path: &str) -> Response {
        self.http.get(format!("{}{path}", self.base)).header("authorization", key).send().await.unwrap()
    }
}

#[tokio::test]
async fn what_no_rule_allows_never_reaches_the_backend() {
    let (s, key) = start_guarded().await;
    for path in
        ["/v1/Cart/eu%2Fa/find", "/v1/Nothing/open/find", "/v1/Cart/open/events", "/v1/Cart/open/nothing"]
    {
        let response = s.get(path).await;
        assert_eq!(response.headers()["www-authenticate"], "Bearer realm=\"perennial\"");
        refused(response, 401, "not_authenticated").await;
    }
    refused(s.post("/v1/Cart/eu%2Fa/add", "not even JSON").await, 401, "not_authenticated").await;
    for path in ["/v1/Cart/us%2Fa/find", "/v1/Cart/eu/find", "/v1/Cart/eu%2Fa/add", "/v1/Cart/us%2Fa/events"]
    {
        let body = refused(s.get_as(&key, path).await, 403, "forbidden").await;
        assert!(body["message"].as_str().unwrap().starts_with("key:reader may not"), "{body}");
    }
    let response = s.get_as("Bearer perennial_reader_0", "/v1/Cart/open/add").await;
    let challenge = response.headers()["www-authenticate"].to_str().unwrap().to_owned();
    assert!(challenge.contains("error=\"invalid_token\""), "{challenge}");
    refused(response, 401, "bad_credentials").await;
    assert!(s.fake.calls.lock().unwrap().is_empty() && s.fake.subscriptions.lock().unwrap().is_empty());

    assert_eq!(s.get_as(&key, "/v1/Cart/eu%2Fa/find").await.status(), StatusCode::OK);
    assert_eq!(s.get_as(&key, "/v1/Cart/eu%2Fa/events").await.status(), StatusCode::OK);
    assert_eq!(s.post("/v1/Cart/open/add", "{}").await.status(), StatusCode::OK, "anonymous may");
    assert_eq!(s.get_as(&key, "/v1/Cart/open/add").await.status(), StatusCode::OK, "so everybody may");
}

#[tokio::test]
async fn an_idempotency_key_is_its_callers_own() {
    let (s, key) = start_guarded().await;
    let add = |who: Option<&str>| {
        let request = s.http.post(format!("{}/v1/Cart/open/add", s.base)).header("idempotency-key", "1");
        who.into_iter().fold(request, |request, who| request.header("authorization", who)).body("{}").send()
    };
    let mut ids = Vec::new();
    for who in [None, Some(&*key), None] {
        assert_eq!(add(who).await.unwrap().status(), StatusCode::OK);
        ids.push(s.fake.last_call().request.expect("a keyed call has its id"));
    }
    assert_ne!(ids[0], ids[1], "somebody else's reply is nobody's business");
    assert_eq!(ids[0], ids[2]);
}

#[tokio::test]
async fn reminders_are_listed_in_pages_and_cancelled_at_the_admin_port() {
    let s = start_with(GatewayConfig {
        admin: Some(AdminConfig { address: loopback(), tls: None }),
        ..GatewayConfig::default()
    })
    .await;
    let told: Value = s.get("/v1/reminders?limit=1").await.json().await.unwrap();
    assert_eq!((&told["more"], &told["reminders"][0]["name"]), (&json!(true), &json!("abandoned")));
    let path = "/v1/reminders?actor=Cart/bo&due_before=99&after_due=7&after_actor=Cart/bo&after_name=a%20b";
    let told: Value = s.get(path).await.json().await.unwrap();
    let reminder = &told["reminders"][0];
    assert_eq!((&reminder["actor"], &reminder["due"]), (&json!("Cart/bo"), &json!(99)));
    assert_eq!(reminder["name"], "behind a b");
    for query in ["limit=0", "limit=1001", "actor=Cart", "due_before=soon", "after_due=7", "who=me"] {
        refused(s.get(&format!("/v1/reminders?{query}")).await, 400, "bad_query").await;
    }
    let admin = format!("http://{}", s.gateway.admin().unwrap());
    let delete =
        |base: &str, name: &str| s.http.delete(format!("{base}/v1/reminders/Cart/alice/{name}")).send();
    let done = delete(&admin, "aban%2Fdoned").await.unwrap();
    assert_eq!(done.json::<Value>().await.unwrap(), json!({ "cancelled": true }));
    refused(delete(&admin, "other").await.unwrap(), 404, "no_reminder").await;
    let lost = refused(delete(&admin, "lost").await.unwrap(), 503, "outcome_unknown").await;
    assert_eq!(lost["applied"], "unknown");
    refused(delete(&s.base, "aban%2Fdoned").await.unwrap(), 404, "no_route").await;
    assert_eq!(s.http.get(format!("{admin}/v1/reminders")).send().await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn with_a_policy_the_cluster_is_told_of_at_the_admin_port_only() {
    let (s, key) = start_guarded().await;
    for path in ["/", "/metrics", "/v1/status", "/v1/kinds", "/v1/reminders", "/v1/dead", "/v1/dead/1-1"] {
        refused(s.get_as(&key, path).await, 404, "no_route").await;
    }
    assert_eq!(s.get("/shop/").await.status(), StatusCode::OK, "pages are for everybody");
    let body: Value = s.get("/readyz").await.json().await.unwrap();
    assert_eq!(body, json!({"status": "ready", "ready": true, "reasons": []}));
    *s.fake.ready.lock().unwrap() = Err("partition 3 has no leader".into());
    let told = refused(s.get("/readyz").await, 503, "not_ready").await;
    assert!(!told.to_string().contains("partition 3"), "{told}");

    let admin = format!("http://{}", s.gateway.admin().unwrap());
    let get = |path: &str| s.http.get(format!("{admin}{path}")).send();
    let told = refused(get("/readyz").await.unwrap(), 503, "not_ready").await;
    assert!(told.to_string().contains("partition 3"), "{told}");
    for path in ["/startupz", "/livez", "/metrics", "/v1/status", "/v1/kinds"] {
        assert_eq!(get(path).await.unwrap().status(), StatusCode::OK, "{path}");
    }
    // This backend belongs to no cluster; a real one is in the tests of the binary.
    for path in ["/v1/dead?kind=Cart&key=a&limit=5", "/v1/dead/1-1"] {
        refused(get(path).await.unwrap(), 503, "not_ready").await;
    }
    for path in ["/v1/dead?limit=0", "/v1/dead?limit=1001", "/v1/dead?kinds=Cart"] {
        refused(get(path).await.unwrap(), 400, "bad_query").await;
    }
    refused(get("/v1/dead/none").await.unwrap(), 404, "no_dead_letter").await;
    for path in ["/", "/shop/", "/v1/Cart/open/add"] {
        refused(get(path).await.unwrap(), 404, "no_route").await;
    }
}

#[tokio::test]
async fn a_browser_may_send_credentials_from_an_origin_that_may_call() {
    let (s, _) = start_guarded().await;
    let preflight = s
        .http
        .request(reqwest::Method::OPTIONS, format!("{}/v1/Cart/eu%2Fa/find", s.base))
        .header("origin", "http://127.0.0.1:8081")
        .header("access-control-request-method", "GET")
        .header("access-control-request-headers", "authorization");
    let response = preflight.send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK, "a preflight has no credentials");
    let headers = response.headers()["access-control-allow-headers"].to_str().unwrap();
    assert!(headers.contains("authorization"), "{headers}");
}

#[tokio::test]
async fn a_caller_at_its_share_leaves_others_theirs() {
    let (s, key) = start_guarded().await;
    s.fake.answers("find", Answer::Ok(Bytes::from_static(b"1")));
    let url = format!("{}/v1/Cart/open/add", s.base);
    let body = stream::pending::<Result<&'static str, std::io::Error>>();
    let request = s.http.post(url).body(reqwest::Body::wrap_stream(body));
    let slow = tokio::spawn(request.send());
    let admin = format!("http://{}/metrics", s.gateway.admin().unwrap());
    let in_flight = async || {
        let text = s.http.get(&admin).send().await.unwrap().text().await.unwrap();
        text.lines().any(|line| line == "perennial_gateway_calls_in_flight 1")
    };
    while !in_flight().await {}
    let body = refused(s.post("/v1/Cart/open/add", "{}").await, 429, "your_share").await;
    assert_eq!((&body["applied"], &body["retryable"]), (&json!("no"), &json!(true)));
    assert_eq!(s.get_as(&key, "/v1/Cart/eu%2Fa/find").await.status(), StatusCode::OK);
    slow.abort();
}

#[tokio::test]
async fn an_address_leaves_others_half_of_the_admin_port() {
    let (s, _) = start_guarded().await;
    let admin = s.gateway.admin().unwrap();
    let mut held = Vec::new();
    for _ in 0..ADMIN_CONNECTIONS_OF_ONE_MAX {
        let mut stream = TcpStream::connect(admin).await.unwrap();
        stream.write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        let mut head = [0; 12];
        stream.read_exact(&mut head).await.unwrap();
        assert_eq!(&head, b"HTTP/1.1 200");
        held.push(stream);
    }
    let mut told = String::new();
    TcpStream::connect(admin).await.unwrap().read_to_string(&mut told).await.unwrap();
    assert!(told.starts_with("HTTP/1.1 503"), "{told}");
}

#[tokio::test]
async fn a_name_that_was_pointed_to_loopback_is_not_this_gateways() {
    let config =
        GatewayConfig { origins_allowed: vec!["https://shop.example".into()], ..GatewayConfig::default() };
    let s = start_with(config).await;
    let as_host = |host: &'static str, post: bool| {
        let url = format!("{}/v1/Cart/a/find", s.base);
        let request =
            if post { s.http.post(url).header("origin", format!("http://{host}")) } else { s.http.get(url) };
        request.header("host", host).send()
    };
    for host in ["evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example"] {
        for post in [true, false] {
            refused(as_host(host, post).await.unwrap(), 421, "foreign_host").await;
        }
    }
    assert!(s.fake.calls.lock().unwrap().is_empty());
    for host in ["localhost:8080", "127.0.0.1", "[::1]:8080", "10.0.0.1", "shop.localhost", "SHOP.example"] {
        assert_eq!(as_host(host, false).await.unwrap().status(), StatusCode::OK, "{host}");
    }
    let health = s.http.get(format!("{}/readyz", s.base)).header("host", "balancer").send().await.unwrap();
    assert_eq!(health.status(), StatusCode::OK);
    let (s, _) = start_guarded().await;
    s.fake.answers("add", Answer::Ok(Bytes::from_static(b"1")));
    for (host, status) in [("evil.example", StatusCode::MISDIRECTED_REQUEST), ("localhost", StatusCode::OK)] {
        let named = s.http.post(format!("{}/v1/Cart/open/add", s.base)).header("host", host);
        let origin = format!("http://{host}");
        assert_eq!(named.header("origin", origin).send().await.unwrap().status(), status, "{host}");
    }
    let (s, key) = start_guarded_for("key:reader").await;
    let url = format!("{}/v1/Cart/eu%2Fa/find", s.base);
    let named = s.http.get(url).header("host", "shop.example").header("authorization", key);
    assert_eq!(named.send().await.unwrap().status(), StatusCode::OK, "a page has no credentials");
}

// ---- WebSockets ----

type Socket = tokio_tungstenite::WebSocketStream<tokio_tungstenite::MaybeTlsStream<TcpStream>>;

impl Setting {
    /// Opens a socket, or gives the status of the refusal.
    async fn socket(&self, path: &str, headers: &[(&'static str, &str)]) -> Result<Socket, u16> {
        let url = format!("ws://{}{path}", self.gateway.address().unwrap());
        let mut request = url.into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(*name, HeaderValue::from_str(value).unwrap());
        }
        match tokio_tungstenite::connect_async(request).await {
            Ok((socket, _)) => Ok(socket),
            Err(tungstenite::Error::Http(response)) => Err(response.status().as_u16()),
            Err(error) => panic!("{error}"),
        }
    }
}

/// The next text of a socket, as JSON.
async fn told(socket: &mut Socket) -> Value {
    loop {
        match socket.next().await.unwrap().unwrap() {
            Message::Text(text) => return serde_json::from_str(&text).unwrap(),
            Message::Ping(_) | Message::Pong(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// How a socket is closed.
async fn closed(mut socket: Socket) -> (u16, String) {
    loop {
        match socket.next().await.unwrap().unwrap() {
            Message::Close(Some(frame)) => return (frame.code.into(), frame.reason.to_string()),
            Message::Close(None) => panic!("a closing says why"),
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_socket_gives_events_with_ids_and_resumes_after_one() {
    let s = start().await;
    let mut socket = s.socket("/v1/Cart/a/events?after=12-0", &[]).await.unwrap();
    assert_eq!(told(&mut socket).await, json!({"id": "13-0", "event": {"sku": "tea\n3", "qty": 3}}));
    let after = EventsFrom::After(EventId { index: 12, n: 0 });
    assert_eq!(s.fake.subscriptions.lock().unwrap()[0].1, after);
    assert_eq!(s.metric("perennial_gateway_streams_open").await, 1);
    socket.send(Message::text("hello")).await.unwrap();
    assert_eq!(closed(socket).await.0, 1003);
    while s.metric("perennial_gateway_streams_open").await == 1 {}
    for (key, code, status) in [("ended", "unavailable", 4503), ("garbled", "unreadable", 4500)] {
        let mut socket = s.socket(&format!("/v1/Cart/{key}/events?from=start"), &[]).await.unwrap();
        for _ in 0..3 {
            told(&mut socket).await;
        }
        assert_eq!(told(&mut socket).await["fault"]["code"], code);
        let (closed, reason) = closed(socket).await;
        assert!(closed == status && reason.starts_with(code), "{closed} {reason}");
    }
}

#[tokio::test]
async fn events_that_are_gone_are_said_to_be() {
    let s = start().await;
    let body = refused(s.get("/v1/Cart/gone/events?after=12-0").await, 410, "events_gone").await;
    assert!(body["message"].as_str().unwrap().contains("oldest one kept is 17-0"), "{body}");
    let mut socket = s.socket("/v1/Cart/gone/events?after=12-0", &[]).await.unwrap();
    assert_eq!(told(&mut socket).await["fault"]["code"], "events_gone");
    assert_eq!(closed(socket).await.0, 4410);
}

#[tokio::test]
async fn a_mark_moves_the_position_of_a_stream_and_is_no_event() {
    let s = start().await;
    let text = events(s.get("/v1/Cart/marked/events").await, "id: 16-4294967295\n\n").await;
    assert!(!text.contains("data:"), "{text}");
    let mut socket = s.socket("/v1/Cart/marked/events", &[]).await.unwrap();
    assert_eq!(told(&mut socket).await, json!({"id": "16-4294967295"}));
}

#[tokio::test]
async fn a_socket_is_limited_pinged_and_closed_with_the_gateway() {
    let config = GatewayConfig {
        streams_open_max: 1,
        stream_keep_alive: Duration::from_millis(10),
        ..GatewayConfig::default()
    };
    let s = start_with(config).await;
    let mut socket = s.socket("/v1/Cart/a/events", &[]).await.unwrap();
    assert_eq!(s.socket("/v1/Cart/a/events", &[]).await.err(), Some(429));
    while !matches!(socket.next().await.unwrap().unwrap(), Message::Ping(_)) {}
    let stop = tokio::spawn(s.gateway.stop(Duration::from_secs(60)));
    assert_eq!(closed(socket).await.0, 1001);
    stop.await.unwrap();
}

#[tokio::test]
async fn a_socket_that_answers_no_ping_is_given_up() {
    let config = GatewayConfig { stream_keep_alive: Duration::from_millis(10), ..GatewayConfig::default() };
    let s = start_with(config).await;
    let socket = s.socket("/v1/Cart/a/events", &[]).await.unwrap();
    // It is not read, so nothing answers.
    while s.metric("perennial_gateway_streams_open").await == 1 {}
    drop(socket);
}

#[tokio::test]
async fn foreign_pages_and_strangers_get_no_socket() {
    let (s, key) = start_guarded().await;
    let key = key.strip_prefix("Bearer ").unwrap();
    let path = "/v1/Cart/eu%2Fa/events?from=start";
    let protocols = format!("perennial.events.v1, bearer.{key}");
    assert_eq!(s.socket(path, &[]).await.err(), Some(401));
    let wrong = ("sec-websocket-protocol", "perennial.events.v1, bearer.perennial_reader_0");
    assert_eq!(s.socket(path, &[wrong]).await.err(), Some(401));
    let right = ("sec-websocket-protocol", protocols.as_str());
    assert_eq!(s.socket("/v1/Cart/us%2Fa/events", &[right]).await.err(), Some(403));
    assert_eq!(s.socket(path, &[right, ("origin", "https://evil.example")]).await.err(), Some(403));
    assert!(s.fake.subscriptions.lock().unwrap().is_empty());
    for headers in [vec![right], vec![right, ("origin", "http://localhost:8081")]] {
        let mut socket = s.socket(path, &headers).await.unwrap();
        assert_eq!(told(&mut socket).await["id"], "11-0");
    }
}
