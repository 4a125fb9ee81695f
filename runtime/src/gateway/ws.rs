//! An actor's committed events over a WebSocket (RFC 6455).
//!
//! Owns the frames: text in JSON, one for each event, and how such a socket ends. What is followed, and by
//! whom, is decided as for Server-Sent Events. A socket takes nothing but pings, pongs and its closing. Its
//! place among connections and streams is kept until it ends.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::http::header::{SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{FutureExt, SinkExt, StreamExt};
use perennial::Fault;
use perennial::call::EventItem;
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::time::{Instant, MissedTickBehavior};

use super::Gate;
use super::errors::Problem;
use super::quota::Share;
use super::sse::{Following, json};

/// Subprotocol of these frames, for clients that have to name one.
pub const EVENTS_PROTOCOL: &str = "perennial.events.v1";
/// Subprotocol that carries the credential of browsers, which cannot send `Authorization`.
pub(super) const BEARER_PROTOCOL: &str = "bearer.";
/// Largest frame that is taken from a client, in bytes; none that makes sense is larger.
const FRAME_BYTES_MAX: usize = 4096;
/// A client that has not answered so many pings in a row is gone.
const PINGS_UNANSWERED_MAX: u32 = 3;
/// Longest reason of a closing, in bytes.
const REASON_BYTES_MAX: usize = 123;
/// Codes of a closing: the gateway stops; a frame of the client has no meaning; the HTTP status of a fault
/// stands behind this number.
const GOING_AWAY: u16 = 1001;
const UNSUPPORTED: u16 = 1003;
const OF_STATUS: u16 = 4000;

/// The place of a connection, for what goes on after its last request.
#[derive(Clone)]
pub(super) struct ConnectionShare(
    #[expect(dead_code, reason = "held until it is dropped")] pub(super) Arc<Share>,
);

/// Whether a request asks for a WebSocket.
pub(super) fn is_asked_for(headers: &HeaderMap) -> bool {
    headers.get(UPGRADE).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// The credential that stands among the subprotocols.
pub(super) fn credential(headers: &HeaderMap) -> Option<&str> {
    if !is_asked_for(headers) {
        return None;
    }
    let named = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    named.flat_map(|names| names.split(',')).find_map(|name| name.trim().strip_prefix(BEARER_PROTOCOL))
}

/// Answers with the switch of protocols; events follow.
pub(super) fn open(
    gate: &Arc<Gate>,
    upgrade: WebSocketUpgrade,
    following: Following,
    connection: Option<ConnectionShare>,
) -> Response {
    let token = gate.tasks.token();
    let gate = Arc::clone(gate);
    let upgrade = upgrade
        .protocols([EVENTS_PROTOCOL])
        .max_frame_size(FRAME_BYTES_MAX)
        .max_message_size(FRAME_BYTES_MAX);
    upgrade.on_upgrade(move |socket| async move {
        let keep_alive = gate.config.stream_keep_alive;
        tokio::select! {
            () = serve(socket, following, keep_alive) => {}
            // One that takes nothing would not see its closing.
            () = gate.stages.cut.cancelled() => {}
        }
        drop((token, connection));
    })
}

async fn serve(socket: WebSocket, mut following: Following, keep_alive: Duration) {
    let (mut sink, mut source) = socket.split();
    let mut pings = tokio::time::interval_at(Instant::now() + keep_alive, keep_alive);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut unanswered = 0;
    let (code, reason) = loop {
        tokio::select! {
            biased;
            heard = source.next() => match heard {
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => unanswered = 0,
                Some(Ok(Message::Text(_) | Message::Binary(_))) => {
                    break (UNSUPPORTED, "this socket only sends events".to_owned());
                }
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
            },
            _ = pings.tick() => {
                if unanswered >= PINGS_UNANSWERED_MAX {
                    return;
                }
                unanswered += 1;
                if sink.send(Message::Ping(Default::default())).await.is_err() {
                    return;
                }
            }
            item = following.next() => {
                let Some(item) = item else { break following.why_ended() };
                match send(&mut sink, &mut following, item).await {
                    Ok(None) => {}
                    Ok(Some(fault)) => break (OF_STATUS + fault.http_status(), reason(&fault)),
                    Err(_) => return,
                }
            }
        }
    };
    close(sink, source, code, reason).await;
}

/// Sends an item and those that are there already, with one flush; gives the fault that ends the stream.
async fn send(
    sink: &mut SplitSink<WebSocket, Message>,
    following: &mut Following,
    first: Result<EventItem, Fault>,
) -> Result<Option<Fault>, axum::Error> {
    let mut next = Some(first);
    while let Some(item) = next {
        match item.and_then(|item| frame(following, &item)) {
            Ok(text) => sink.feed(Message::Text(text.into())).await?,
            Err(fault) => {
                let body = Problem::Fault(fault.clone()).to_json();
                sink.send(Message::Text(format!("{{\"fault\":{body}}}").into())).await?;
                return Ok(Some(fault));
            }
        }
        next = following.next().now_or_never().flatten();
    }
    sink.flush().await?;
    Ok(None)
}

/// `{"id":"17-0","event":..}`; without an event it only says where the stream stands.
fn frame(following: &Following, item: &EventItem) -> Result<String, Fault> {
    #[derive(Serialize)]
    struct Frame<'a> {
        id: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        event: Option<&'a RawValue>,
    }
    let event = if item.mark { None } else { Some(json(&*following.kind, item)?) };
    let raw = event.as_deref().map(serde_json::from_str::<&RawValue>).transpose();
    let event = raw.map_err(|error| Fault::Unreadable {
        what: "event".to_owned(),
        at: format!("{} at {}", following.kind.name(), item.id),
        why: error.to_string(),
    })?;
    Ok(serde_json::to_string(&Frame { id: item.id.to_string(), event }).expect("JSON in JSON is JSON"))
}

fn reason(fault: &Fault) -> String {
    let mut text = format!("{}: {fault}", fault.code());
    text.truncate(text.floor_char_boundary(REASON_BYTES_MAX));
    text
}

async fn close(
    mut sink: SplitSink<WebSocket, Message>,
    mut source: SplitStream<WebSocket>,
    code: u16,
    reason: String,
) {
    let frame = CloseFrame { code, reason: reason.into() };
    let closing = async {
        if sink.send(Message::Close(Some(frame))).await.is_ok() {
            // Until the client has closed its side, so that it sees why.
            while let Some(Ok(_)) = source.next().await {}
        }
    };
    let _ = tokio::time::timeout(super::STOP_FLUSH, closing).await;
}

impl Following {
    /// Why there is no more, when no fault said so.
    fn why_ended(&self) -> (u16, String) {
        if self.is_closing() {
            return (GOING_AWAY, "the gateway stops; resume at another node".to_owned());
        }
        (OF_STATUS + StatusCode::UNAUTHORIZED.as_u16(), "the credentials are over".to_owned())
    }
}
