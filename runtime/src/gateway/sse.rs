//! An actor's committed events as Server-Sent Events, and what all their streams have in common.
//!
//! Owns the translation of positions (`id: INDEX-N`, `Last-Event-ID`, `?from=`) and of events to JSON;
//! resuming over failovers is the backend's. A stream ends with an `event: fault` item, with the gateway
//! or with the caller's token; browsers then come back by themselves with the last id they saw.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::rejection::PathRejection;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, Uri};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};
use perennial::Fault;
use perennial::actor::Kind;
use perennial::call::{ActorId, EventId, EventItem, EventStream, EventsFrom};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Gate;
use super::auth::{Caller, EVENTS_METHOD};
use super::errors::Problem;
use super::quota::Share;
use super::routes::{LAST_EVENT_ID, path_values, query_pairs, single};
use super::ws::{self, ConnectionShare};

/// How long a browser waits before it comes back.
const RECONNECT_AFTER: Duration = Duration::from_secs(1);

/// How long an answer waits to learn whether the stream can go on where it is to.
const BEGIN_WITHIN: Duration = Duration::from_secs(1);

/// `GET /v1/{kind}/{key}/events`.
pub(super) async fn events(
    State(gate): State<Arc<Gate>>,
    caller: Caller,
    path: Result<Path<(String, String)>, PathRejection>,
    uri: Uri,
    headers: HeaderMap,
    connection: Option<Extension<ConnectionShare>>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    let (kind, key) = path_values(path)?;
    let actor = ActorId::new(&kind, &key).map_err(Fault::from)?;
    caller.may(&gate, actor.kind(), actor.key(), EVENTS_METHOD)?;
    let kind = Arc::clone(gate.backend.app().kinds().get(&kind)?);
    let from = start(&uri, &headers)?;
    let upgrade = match (ws::is_asked_for(&headers), upgrade) {
        (false, _) => None,
        (true, Ok(upgrade)) => Some(upgrade),
        (true, Err(why)) => {
            return Err(Problem::BadHeader { name: "Upgrade", why: format!("cannot be met: {why}") });
        }
    };
    let share = gate.admit(&gate.streams, &caller.principal, 1)?;
    let mut following = Following {
        events: gate.backend.subscribe(actor, from),
        first: None,
        kind,
        closing: gate.stages.closing.clone(),
        ends: caller.ends,
        _share: share,
    };
    if let Some(upgrade) = upgrade {
        return Ok(ws::open(&gate, upgrade, following, connection.map(|Extension(share)| share)));
    }
    if matches!(from, EventsFrom::After(_))
        && let Ok(first) = tokio::time::timeout(BEGIN_WITHIN, following.events.next()).await
    {
        match first {
            Some(Err(fault @ Fault::EventsGone { .. })) => return Err(fault.into()),
            first => following.first = first,
        }
    }
    // Sent at once, so that client and proxies know the stream is open.
    let opening = Event::default().retry(RECONNECT_AFTER).comment("open");
    let body = stream::once(async { opening }).chain(stream::unfold(Some(following), next));
    let sse = Sse::new(body.map(Ok::<_, Infallible>))
        .keep_alive(KeepAlive::new().interval(gate.config.stream_keep_alive).text("keep-alive"));
    // nginx would hold events back otherwise.
    Ok(([(HeaderName::from_static("x-accel-buffering"), "no")], sse).into_response())
}

/// Where to start: a browser that comes back says so in a header and repeats the address it began with.
fn start(uri: &Uri, headers: &HeaderMap) -> Result<EventsFrom, Problem> {
    let header_problem = |why: String| Problem::BadHeader { name: "Last-Event-ID", why };
    if let Some(last) = single(headers, &LAST_EVENT_ID, "Last-Event-ID")?.filter(|last| !last.is_empty()) {
        let last = last.to_str().map_err(|_| header_problem("is not visible ASCII".to_owned()))?;
        let id: EventId = last.parse().map_err(|why: Fault| header_problem(format!("has a {why}")))?;
        return Ok(EventsFrom::After(id));
    }
    let mut from = EventsFrom::Now;
    for (name, value) in query_pairs(uri)? {
        from = match (name.as_str(), value.as_str()) {
            ("from", "now") => EventsFrom::Now,
            ("from", "start") => EventsFrom::Start,
            ("from" | "after", id) => EventsFrom::After(id.parse().map_err(|_| {
                let why = format!("has {name}={id:?}; give an id such as 17-0, or from=start or from=now");
                Problem::BadQuery(why)
            })?),
            _ => return Err(Problem::BadQuery(format!("has {name:?}; events take from or after only"))),
        };
    }
    Ok(from)
}

/// A stream that is being followed for a client.
pub(super) struct Following {
    events: EventStream,
    /// What came while it was opened.
    first: Option<Result<EventItem, Fault>>,
    pub(super) kind: Arc<dyn Kind>,
    closing: CancellationToken,
    ends: Option<Instant>,
    _share: Share,
}

impl Following {
    /// The next item, until the stream, the gateway or the caller's credentials end. Cancel-safe.
    pub(super) async fn next(&mut self) -> Option<Result<EventItem, Fault>> {
        let ended = async {
            match self.ends {
                Some(ends) => tokio::time::sleep_until(ends).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.closing.cancelled() => None,
            () = ended => None,
            item = async {
                match self.first.take() {
                    Some(first) => Some(first),
                    None => self.events.next().await,
                }
            } => item,
        }
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.is_cancelled()
    }
}

async fn next(following: Option<Following>) -> Option<(Event, Option<Following>)> {
    let mut following = following?;
    let item = following.next().await?;
    match item.and_then(|item| render(&*following.kind, &item)) {
        Ok(event) => Some((event, Some(following))),
        Err(fault) => Some((Event::default().event("fault").data(Problem::Fault(fault).to_json()), None)),
    }
}

/// A mark has no data: a browser takes its id as the last one it has seen, and tells nobody.
fn render(kind: &dyn Kind, item: &EventItem) -> Result<Event, Fault> {
    let event = Event::default().id(item.id.to_string());
    if item.mark {
        return Ok(event);
    }
    Ok(event.data(json(kind, item)?))
}

/// An event as JSON.
pub(super) fn json(kind: &dyn Kind, item: &EventItem) -> Result<String, Fault> {
    let unreadable = |why| Fault::Unreadable {
        what: "event".to_owned(),
        at: format!("{} at {}", kind.name(), item.id),
        why,
    };
    let json = kind.event_json(&item.event).map_err(unreadable)?;
    String::from_utf8(json).map_err(|error| unreadable(error.to_string()))
}
