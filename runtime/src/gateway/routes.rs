//! The routes: calls and reads, health, status; and what they have in common.
//!
//! Owns the reading of paths and headers and the writing of answers. Never holds a call's outcome: an
//! answer leaves as the backend gives it. A client that leaves stops its read; its write goes on to
//! its end, and keeps its permit until then.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Query, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, EXPECT};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Uri};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Extension, Json, Router};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use perennial::actor::{Answer, Args};
use perennial::call::{ActorId, Answered, Outbound};
use perennial::core::time::Millis;
use perennial::error::Applied;
use perennial::limits::REMINDERS_TOLD_MAX;
use perennial::status::ReminderQuery;
use perennial::{Fault, Format};
use serde_json::{Value, json};
use tower_http::catch_panic::CatchPanicLayer;

use super::auth::{Caller, ClientAddress, Principal};
use super::errors::Problem;
use super::quota::Share;
use super::{
    AdminConfig, CALL_TIMEOUT_MAX, Gate, GatewayError, IDEMPOTENCY_KEY_BYTES_MAX, Limit, arguments, dead,
    metrics, origin, pages, pieces, sse,
};
use crate::idempotency::keyed_request;

/// Request header: makes a write safe to repeat.
pub(super) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Request header: the last event a stream's client has seen.
pub(super) const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Request header: the call's deadline in milliseconds from now.
pub(super) const TIMEOUT_MS: HeaderName = HeaderName::from_static("perennial-timeout-ms");
/// Request header: how far behind the answer of a read may be, in milliseconds.
pub(super) const MAX_STALE_MS: HeaderName = HeaderName::from_static("perennial-max-stale-ms");
/// Answer header: what was committed longer ago than this, in milliseconds, is in the answer.
pub(super) const AGE_MS: HeaderName = HeaderName::from_static("perennial-age-ms");
/// Answer header: the node that ran the turn.
pub(super) const NODE: HeaderName = HeaderName::from_static("perennial-node");
/// Answer header: the actor's partition.
pub(super) const PARTITION: HeaderName = HeaderName::from_static("perennial-partition");
/// Answer header: how often this gateway's node tried again.
pub(super) const RETRIES: HeaderName = HeaderName::from_static("perennial-retries");

/// Path of calls and reads.
pub(super) const CALL: &str = "/v1/{kind}/{key}/{handler}";
/// Path of event streams. No handler may be named `events`.
pub(super) const EVENTS: &str = "/v1/{kind}/{key}/events";
/// Path of one reminder, at the admin port.
const REMINDER: &str = "/v1/reminders/{kind}/{key}/{name}";
/// Reminders told of unless more or fewer are asked for.
const REMINDERS_DEFAULT: u32 = 100;
/// The routes, as a caller who took a wrong one is told.
pub(super) const ROUTES: [&str; 14] = [
    "POST /v1/{kind}/{key}/{handler}",
    "GET /v1/{kind}/{key}/{handler}",
    "GET /v1/{kind}/{key}/events",
    "GET /v1/kinds",
    "GET /v1/status",
    "GET /v1/dead",
    "GET /v1/dead/{id}",
    "GET /v1/reminders",
    "DELETE /v1/reminders/{kind}/{key}/{name} (at the admin port)",
    "GET /metrics",
    "GET /startupz",
    "GET /livez",
    "GET /readyz",
    "GET /",
];

/// A backend that has not answered this long after the deadline is not waited for.
const ANSWER_SLACK: Duration = Duration::from_secs(1);
/// Bytes of a too large body that are read and thrown away, so that its sender gets to see the answer.
const BODY_DISCARD_BYTES_MAX: usize = 8 * 1024 * 1024;

/// All routes with their layers. With a policy, what tells of the cluster is at the admin port only.
pub(super) fn router(gate: &Arc<Gate>, address: SocketAddr) -> Result<Router, GatewayError> {
    let mut router = Router::new()
        .merge(probes(gate.config.policy.is_none()))
        .route(EVENTS, get(sse::events))
        .route(CALL, post(write).get(read));
    if gate.config.policy.is_none() {
        router = router.route("/", get(pages::index)).merge(telling());
    }
    let router = pages::mount(router, gate.backend.app().pages())?
        .fallback(async || Problem::NoRoute)
        .method_not_allowed_fallback(async || Problem::MethodNotAllowed)
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn_with_state(Arc::clone(gate), origin::guard))
        .layer(origin::cors(gate));
    let everybody = gate.config.policy.as_ref().is_none_or(|policy| policy.names_anonymous());
    let open = address.ip().is_loopback() && everybody;
    Ok(observed(router, gate, open))
}

/// The routes of the admin port. No page may read them from a browser, and none may do the one that changes
/// something: a browser asks before a DELETE, and is told no.
pub(super) fn admin_router(gate: &Arc<Gate>, admin: &AdminConfig) -> Router {
    let router = Router::new()
        .merge(probes(true))
        .route(REMINDER, delete(cancel_reminder))
        .merge(telling())
        .fallback(async || Problem::NoRoute)
        .method_not_allowed_fallback(async || Problem::MethodNotAllowed)
        .layer(CatchPanicLayer::custom(panicked));
    observed(router, gate, admin.tls.is_none())
}

/// What tells of the node and its cluster.
fn telling() -> Router<Arc<Gate>> {
    Router::new()
        .route("/metrics", get(metrics::page))
        .route("/v1/status", get(status))
        .route("/v1/reminders", get(reminders))
        .route("/v1/kinds", get(pages::kinds))
        .route("/v1/dead", get(dead::list))
        .route("/v1/dead/{id}", get(dead::show))
}

/// With what every port has. An `open` one is reached by every page of this machine's browsers.
fn observed(mut router: Router<Arc<Gate>>, gate: &Arc<Gate>, open: bool) -> Router {
    if open {
        router = router.layer(from_fn_with_state(Arc::clone(gate), origin::known_host));
    }
    router.layer(from_fn_with_state(Arc::clone(gate), metrics::observe)).with_state(Arc::clone(gate))
}

fn panicked(_: Box<dyn std::any::Any + Send>) -> Response {
    // The panic hook has printed the message already.
    Problem::Internal.into_response()
}

/// The value of a header that may be there once.
pub(super) fn single<'a>(
    headers: &'a HeaderMap,
    header: &HeaderName,
    name: &'static str,
) -> Result<Option<&'a HeaderValue>, Problem> {
    let mut values = headers.get_all(header).iter();
    match (values.next(), values.next()) {
        (found, None) => Ok(found),
        _ => Err(Problem::BadHeader { name, why: "is there twice".to_owned() }),
    }
}

/// The values in a path, percent-decoded.
pub(super) fn path_values<T>(path: Result<Path<T>, PathRejection>) -> Result<T, Problem> {
    let Path(values) =
        path.map_err(|error| Problem::BadPath(format!("cannot be read: {}", error.body_text())))?;
    Ok(values)
}

/// The query's names and values, in order.
pub(super) fn query_pairs(uri: &Uri) -> Result<Vec<(String, String)>, Problem> {
    let Query(pairs) = Query::try_from_uri(uri)
        .map_err(|error| Problem::BadQuery(format!("cannot be read: {}", error.body_text())))?;
    Ok(pairs)
}

/// `POST /v1/{kind}/{key}/{handler}`: any handler.
async fn write(
    State(gate): State<Arc<Gate>>,
    caller: Caller,
    path: Result<Path<(String, String, String)>, PathRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let (kind, key, method) = path_values(path)?;
    let target = ActorId::new(&kind, &key).map_err(Fault::from)?;
    caller.may(&gate, &kind, &key, &method)?;
    let idempotency_key = idempotency_key(&headers)?;
    let timeout = timeout(&gate, &headers)?;
    let call = gate.admit(&gate.calls, &caller.principal, 1)?;
    let (body, bytes) = read_body(&gate, &caller.principal, &headers, body).await?;
    let body = arguments::from_body(body)?;
    let request = match idempotency_key {
        Some(key) => {
            let who = caller.principal.to_string();
            Some(keyed_request(&who, &target, &method, key, parsed(&body)?))
        }
        None => None,
    };
    let outbound = Outbound {
        target,
        method,
        args: Args { format: Format::Json, bytes: body },
        keyed: request.is_some(),
        request,
        read_only: false,
        stale: None,
        path: Vec::new(),
        deadline: Instant::now() + timeout,
    };
    let call = run(Arc::clone(&gate), outbound, (call, Some(bytes)));
    gate.tasks.spawn(call).await.unwrap_or_else(|error| {
        tracing::error!(node = %gate.backend.node(), %error, "a call's task failed");
        Err(Problem::Internal)
    })
}

/// `GET /v1/{kind}/{key}/{handler}`: handlers that read.
async fn read(
    State(gate): State<Arc<Gate>>,
    caller: Caller,
    path: Result<Path<(String, String, String)>, PathRejection>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let (kind, key, method) = path_values(path)?;
    let target = ActorId::new(&kind, &key).map_err(Fault::from)?;
    caller.may(&gate, &kind, &key, &method)?;
    let timeout = timeout(&gate, &headers)?;
    let stale = stale(&gate, &headers, &kind, &method)?;
    let call = gate.admit(&gate.calls, &caller.principal, 1)?;
    let bytes = arguments::from_query(gate.backend.app().kinds(), &kind, &method, &query_pairs(&uri)?)?;
    let outbound = Outbound {
        target,
        method,
        args: Args { format: Format::Json, bytes },
        request: None,
        keyed: false,
        read_only: true,
        stale,
        path: Vec::new(),
        deadline: Instant::now() + timeout,
    };
    run(gate, outbound, (call, None)).await
}

/// Makes the call and words its answer; ends early when the gateway's grace is over.
/// What it holds of the gateway's limits is given back when its answer is on its way.
async fn run(
    gate: Arc<Gate>,
    outbound: Outbound,
    shares: (Share, Option<Share>),
) -> Result<Response, Problem> {
    let (target, method) = (outbound.target.clone(), outbound.method.clone());
    let applied = if outbound.read_only { Applied::No } else { Applied::Unknown };
    let patience = tokio::time::Instant::from_std(outbound.deadline + ANSWER_SLACK);
    let answered = tokio::select! {
        biased;
        answered = tokio::time::timeout_at(patience, gate.backend.call(outbound)) => answered,
        () = gate.stages.cut.cancelled() => return Err(Problem::Stopping { applied }),
    };
    let answered =
        answered.unwrap_or_else(|_| Answered::fault(Fault::TimedOut { actor: target.to_string() }));
    Ok(pieces::holding(answer(answered, &target, method), shares).await)
}

fn answer(answered: Answered, target: &ActorId, method: String) -> Response {
    let mut response = match answered.answer {
        Answer::Ok(value) => ([(CONTENT_TYPE, "application/json")], value).into_response(),
        Answer::App(error) => Problem::App { kind: target.kind().to_owned(), method, error }.into_response(),
        Answer::Fault(fault) => Problem::Fault(fault).into_response(),
    };
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(RETRIES, answered.retries.into());
    if let Some(age) = answered.age_ms {
        headers.insert(AGE_MS, age.into());
    }
    if let Some(partition) = answered.partition {
        headers.insert(PARTITION, partition.0.into());
    }
    if let Some(node) = answered.node {
        let name = HeaderValue::from_str(node.as_str()).expect("a node id is a DNS label");
        headers.insert(NODE, name);
    }
    response
}

/// How old the answer of a read may be: as asked for, else as its handler says. 0 asks for the newest.
fn stale(gate: &Gate, headers: &HeaderMap, kind: &str, method: &str) -> Result<Option<Duration>, Problem> {
    let ms = match single(headers, &MAX_STALE_MS, "Perennial-Max-Stale-Ms")? {
        Some(value) => value.to_str().ok().and_then(|text| text.parse().ok()).ok_or_else(|| {
            Problem::BadHeader { name: "Perennial-Max-Stale-Ms", why: "must be a number".into() }
        })?,
        None => {
            let kind = gate.backend.app().kinds().get(kind).ok();
            let method = kind.and_then(|kind| kind.methods().iter().find(|known| known.name == method));
            method.map_or(0, |method| method.stale_ms)
        }
    };
    Ok((ms > 0).then(|| Duration::from_millis(ms)))
}

fn timeout(gate: &Gate, headers: &HeaderMap) -> Result<Duration, Problem> {
    let Some(value) = single(headers, &TIMEOUT_MS, "Perennial-Timeout-Ms")? else {
        return Ok(gate.config.call_timeout);
    };
    let asked = value.to_str().ok().and_then(|text| text.parse().ok()).map(Duration::from_millis);
    asked.filter(|asked| (Duration::from_millis(1)..=CALL_TIMEOUT_MAX).contains(asked)).ok_or_else(|| {
        Problem::BadHeader {
            name: "Perennial-Timeout-Ms",
            why: format!("must be a number from 1 to {}", CALL_TIMEOUT_MAX.as_millis()),
        }
    })
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<&[u8]>, Problem> {
    let Some(key) = single(headers, &IDEMPOTENCY_KEY, "Idempotency-Key")? else { return Ok(None) };
    let key = key.as_bytes();
    let within = (1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&key.len());
    if within && key.iter().all(u8::is_ascii_graphic) {
        return Ok(Some(key));
    }
    Err(Problem::BadHeader {
        name: "Idempotency-Key",
        why: format!("must have 1 to {IDEMPOTENCY_KEY_BYTES_MAX} visible ASCII characters without spaces"),
    })
}

/// The arguments of a body, whichever way their names are ordered and their white space is laid out.
fn parsed(args: &[u8]) -> Result<Value, Problem> {
    if args.is_empty() {
        return Ok(Value::Object(serde_json::Map::new()));
    }
    serde_json::from_slice(args).map_err(Problem::BadJson)
}

/// The body, with the memory it takes from the caller's share.
async fn read_body(
    gate: &Gate,
    caller: &Principal,
    headers: &HeaderMap,
    body: Body,
) -> Result<(Bytes, Share), Problem> {
    let limit = gate.config.body_bytes_max;
    let declared = headers.get(CONTENT_LENGTH).and_then(|n| n.to_str().ok()?.parse::<u64>().ok());
    let waits = headers.contains_key(EXPECT) && declared.is_some_and(|declared| declared > limit as u64);
    // No need to see how much of it comes.
    let far_too_large = declared.is_some_and(|declared| declared > (limit + BODY_DISCARD_BYTES_MAX) as u64);
    let patience = gate.config.body_read_timeout;
    let read = if waits || far_too_large {
        Err(Problem::BodyTooLarge { limit })
    } else {
        tokio::time::timeout(patience, collect(gate, caller, body, limit))
            .await
            .unwrap_or(Err(Problem::BodySlow { seconds: patience.as_secs() }))
    };
    match read {
        Err(Problem::BodyTooLarge { .. }) => gate.metrics.refused(Limit::BodyBytes),
        Err(Problem::BodySlow { .. }) => gate.metrics.refused(Limit::BodyTime),
        _ => {}
    }
    read
}

async fn collect(
    gate: &Gate,
    caller: &Principal,
    body: Body,
    limit: usize,
) -> Result<(Bytes, Share), Problem> {
    let mut chunks = body.into_data_stream();
    let mut share = gate.admit(&gate.bodies, caller, 0)?;
    let mut kept = BytesMut::new();
    let mut seen = 0_usize;
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(Problem::BodyBroken)?;
        seen = seen.saturating_add(chunk.len());
        if seen <= limit {
            share.grow(chunk.len()).map_err(|full| gate.full(full))?;
            kept.extend_from_slice(&chunk);
        } else {
            kept = BytesMut::new();
            if seen - limit > BODY_DISCARD_BYTES_MAX {
                break;
            }
        }
    }
    if seen > limit { Err(Problem::BodyTooLarge { limit }) } else { Ok((kept.freeze(), share)) }
}

/// What supervisors of processes and load balancers ask. Only where it is `told` they hear why not.
fn probes(told: bool) -> Router<Arc<Gate>> {
    let answer = move |probe: fn(&Gate) -> Probe| {
        get(async move |State(gate): State<Arc<Gate>>| probe(&gate).answer(&gate, told))
    };
    Router::new()
        .route("/startupz", answer(started))
        .route("/livez", answer(live))
        .route("/readyz", answer(ready))
}

/// A question about the node's health, and for what reasons the answer is no.
struct Probe {
    asked: &'static str,
    /// How a yes is worded.
    fine: &'static str,
    /// Code of a no.
    code: &'static str,
    reasons: Vec<String>,
    /// All of them in short, if there is such a thing.
    short: Option<String>,
}

impl Probe {
    fn answer(self, gate: &Gate, told: bool) -> Result<Json<Value>, Problem> {
        let Self { asked, fine, code, reasons, short } = self;
        if reasons.is_empty() {
            let mut answer = json!({ "status": fine, asked: true, "reasons": [] });
            if told {
                answer["node"] = json!(gate.backend.node());
            }
            return Ok(Json(answer));
        }
        let (reasons, short) = match told {
            true => (reasons, short),
            false => (vec!["its admin port says what it waits for".to_owned()], None),
        };
        let why = short.unwrap_or_else(|| reasons.join("; "));
        Err(Problem::Unwell { probe: asked, code, why, reasons })
    }
}

/// `GET /startupz`: the node has found its cluster and opened its data.
fn started(gate: &Gate) -> Probe {
    let reasons = gate.backend.not_started();
    Probe { asked: "started", fine: "started", code: "not_started", reasons, short: None }
}

/// `GET /livez`: starting the process anew would change nothing.
fn live(gate: &Gate) -> Probe {
    let reasons = gate.backend.not_live();
    Probe { asked: "live", fine: "alive", code: "not_live", reasons, short: None }
}

/// `GET /readyz`: calls can be served from here.
fn ready(gate: &Gate) -> Probe {
    let (code, reasons, short) = match gate.stages.draining.is_cancelled() {
        true => ("stopping", vec!["it is stopping".to_owned()], None),
        false => ("not_ready", gate.backend.not_ready(), gate.backend.ready().err()),
    };
    Probe { asked: "ready", fine: "ready", code, reasons, short }
}

/// `GET /v1/status`: the cluster as this node sees it.
async fn status(
    State(gate): State<Arc<Gate>>,
    Extension(ClientAddress(address)): Extension<ClientAddress>,
) -> Result<Response, Problem> {
    let _share = gate.admit(&gate.status, &Principal::at(address), 1)?;
    let status = tokio::time::timeout(gate.config.call_timeout, gate.backend.status())
        .await
        .map_err(|_| Problem::StatusSlow)?;
    Ok(([(CACHE_CONTROL, "no-store")], Json(status)).into_response())
}

/// `GET /v1/reminders`: some of those that are set, earliest first.
async fn reminders(
    State(gate): State<Arc<Gate>>,
    Extension(ClientAddress(address)): Extension<ClientAddress>,
    uri: Uri,
) -> Result<Response, Problem> {
    let _share = gate.admit(&gate.status, &Principal::at(address), 1)?;
    let query = reminder_query(&query_pairs(&uri)?)?;
    let page = tokio::time::timeout(gate.config.call_timeout, gate.backend.reminders(query))
        .await
        .map_err(|_| Problem::StatusSlow)??;
    Ok(([(CACHE_CONTROL, "no-store")], Json(page)).into_response())
}

fn reminder_query(pairs: &[(String, String)]) -> Result<ReminderQuery, Problem> {
    let mut query = ReminderQuery { limit: REMINDERS_DEFAULT, ..ReminderQuery::default() };
    let (mut due, mut actor, mut name) = (None, None, None);
    for (key, value) in pairs {
        let bad = |what: &str| Problem::BadQuery(format!("has {key}={value:?}, which is no {what}"));
        let at = || value.parse().map(Millis).map_err(|_| bad("time in milliseconds since 1970"));
        let id = || value.parse::<ActorId>().map_err(|_| bad("actor, such as Cart/alice"));
        match key.as_str() {
            "actor" => query.actor = Some(id()?),
            "due_before" => query.due_before = Some(at()?),
            "limit" => {
                let limit = value.parse().ok().filter(|limit| (1..=REMINDERS_TOLD_MAX).contains(limit));
                query.limit = limit.ok_or_else(|| bad(&format!("number from 1 to {REMINDERS_TOLD_MAX}")))?;
            }
            "after_due" => due = Some(at()?),
            "after_actor" => actor = Some(id()?),
            "after_name" => name = Some(value.clone()),
            _ => {
                return Err(Problem::BadQuery(format!(
                    "has {key:?}; it takes actor, due_before, limit, and all of after_due, after_actor and after_name"
                )));
            }
        }
    }
    query.after = match (due, actor, name) {
        (Some(due), Some(actor), Some(name)) => Some((due, actor, name)),
        (None, None, None) => None,
        _ => {
            let why = "has some of after_due, after_actor and after_name; give all of them, as the last reminder has them";
            return Err(Problem::BadQuery(why.to_owned()));
        }
    };
    Ok(query)
}

/// `DELETE /v1/reminders/{kind}/{key}/{name}` of the admin port.
async fn cancel_reminder(
    State(gate): State<Arc<Gate>>,
    Extension(ClientAddress(address)): Extension<ClientAddress>,
    path: Result<Path<(String, String, String)>, PathRejection>,
) -> Result<Json<Value>, Problem> {
    let _share = gate.admit(&gate.status, &Principal::at(address), 1)?;
    let (kind, key, name) = path_values(path)?;
    let actor = ActorId::new(&kind, &key).map_err(Fault::from)?;
    let cancelled = gate.backend.cancel_reminder(actor.clone(), name.clone());
    let was_set = tokio::time::timeout(gate.config.call_timeout, cancelled)
        .await
        .map_err(|_| Fault::TimedOut { actor: actor.to_string() })??;
    if was_set { Ok(Json(json!({ "cancelled": true }))) } else { Err(Problem::NoReminder { actor, name }) }
}
