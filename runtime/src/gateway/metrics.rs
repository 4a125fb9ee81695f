//! A gateway's own metrics, and the page that shows them beside the node's.
//!
//! Owns one registry for each gateway, so that several nodes of one process do not mix. Labels take
//! values from closed sets only (routes, registered kinds): a caller cannot make new series.

use std::sync::Arc;
use std::sync::PoisonError;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use super::errors::Problem;
use super::routes::{CALL, EVENTS};
use super::{Gate, Limit};

/// Lower bound of the latency histogram, in seconds; each of the buckets doubles it.
const LATENCY_SECONDS_MIN: f64 = 0.0005;
/// Buckets of the latency histogram: 0.5 ms to 16 s.
const LATENCY_BUCKETS: u16 = 16;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: &'static str,
    kind: &'static str,
    status: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabel {
    route: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LimitLabel {
    limit: &'static str,
}

/// What a gateway counts.
pub(super) struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    latency: Family<RouteLabel, Histogram>,
    refused: Family<LimitLabel, Counter>,
    denied: Family<ReasonLabel, Counter>,
    calls_in_flight: Gauge,
    streams_open: Gauge,
    connections_open: Gauge,
    body_bytes_in_flight: Gauge,
}

impl Metrics {
    pub(super) fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            requests: Family::default(),
            latency: Family::new_with_constructor(latency_histogram as fn() -> Histogram),
            refused: Family::default(),
            denied: Family::default(),
            calls_in_flight: Gauge::default(),
            streams_open: Gauge::default(),
            connections_open: Gauge::default(),
            body_bytes_in_flight: Gauge::default(),
        };
        let registry = metrics.registry.sub_registry_with_prefix("perennial_gateway");
        registry.register(
            "requests",
            "Requests by route, kind and class of their status; \"gone\" when the client left first",
            metrics.requests.clone(),
        );
        registry.register_with_unit(
            "request_duration",
            "Time from a request's head to its answer's head",
            Unit::Seconds,
            metrics.latency.clone(),
        );
        registry.register("refused", "Requests and connections refused at a limit", metrics.refused.clone());
        registry.register("denied", "Requests refused because of who sent them", metrics.denied.clone());
        registry.register("calls_in_flight", "Calls in flight", metrics.calls_in_flight.clone());
        registry.register("streams_open", "Open event streams", metrics.streams_open.clone());
        registry.register("connections_open", "Open connections", metrics.connections_open.clone());
        registry.register(
            "body_bytes_in_flight",
            "Bytes of request bodies in memory",
            metrics.body_bytes_in_flight.clone(),
        );
        metrics
    }

    pub(super) fn refused(&self, limit: Limit) {
        self.refused.get_or_create(&LimitLabel { limit: limit.name() }).inc();
    }

    pub(super) fn denied(&self, reason: &'static str) {
        self.denied.get_or_create(&ReasonLabel { reason }).inc();
    }
}

fn latency_histogram() -> Histogram {
    Histogram::new(exponential_buckets(LATENCY_SECONDS_MIN, 2.0, LATENCY_BUCKETS))
}

/// Counts and times every request, also those whose client leaves before the answer.
pub(super) async fn observe(State(gate): State<Arc<Gate>>, request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let mut observed = Observed {
        route: route_label(path, request.method()),
        kind: path.map_or("", |path| kind_label(&gate, path, request.uri().path())),
        started: Instant::now(),
        status: "gone",
        gate: Arc::clone(&gate),
    };
    let response = next.run(request).await;
    observed.status = class(response.status());
    response
}

/// Records itself when dropped.
struct Observed {
    route: &'static str,
    kind: &'static str,
    started: Instant,
    status: &'static str,
    gate: Arc<Gate>,
}

impl Drop for Observed {
    fn drop(&mut self) {
        let Self { route, kind, status, .. } = *self;
        let metrics = &self.gate.metrics;
        let took = self.started.elapsed();
        metrics.requests.get_or_create(&RequestLabels { route, kind, status }).inc();
        metrics.latency.get_or_create(&RouteLabel { route }).observe(took.as_secs_f64());
        tracing::debug!(node = %self.gate.backend.node(), route, kind, status, ?took, "request");
    }
}

fn route_label(path: Option<&str>, method: &Method) -> &'static str {
    match path {
        Some(CALL) if method == Method::POST => "call",
        Some(CALL) if matches!(*method, Method::GET | Method::HEAD) => "read",
        Some(CALL) => "other",
        Some(EVENTS) => "events",
        Some("/v1/status") => "status",
        Some("/v1/kinds") => "kinds",
        Some("/startupz") => "startupz",
        Some("/livez") => "livez",
        Some("/readyz") => "readyz",
        Some("/metrics") => "metrics",
        Some("/") => "index",
        Some(_) => "page",
        None => "other",
    }
}

/// The registered kind a path names, or nothing.
fn kind_label(gate: &Gate, matched: &str, path: &str) -> &'static str {
    let named = path.split('/').nth(2).filter(|_| matches!(matched, CALL | EVENTS));
    let kind = named.and_then(|name| gate.backend.app().kinds().get(name).ok());
    kind.map_or("", |kind| kind.name())
}

fn class(status: StatusCode) -> &'static str {
    match status.as_u16() / 100 {
        1 => "1xx",
        2 => "2xx",
        3 => "3xx",
        4 => "4xx",
        _ => "5xx",
    }
}

/// `GET /metrics`: the node's metrics, then the gateway's, as OpenMetrics text.
pub(super) async fn page(State(gate): State<Arc<Gate>>) -> Result<Response, Problem> {
    let metrics = &gate.metrics;
    for (gauge, quota) in [
        (&metrics.calls_in_flight, &gate.calls),
        (&metrics.streams_open, &gate.streams),
        (&metrics.connections_open, &gate.connections),
        (&metrics.body_bytes_in_flight, &gate.bodies),
    ] {
        gauge.set(quota.taken() as i64);
    }
    let text = encode(&gate).map_err(|error| {
        tracing::error!(node = %gate.backend.node(), %error, "metrics cannot be encoded");
        Problem::Internal
    })?;
    Ok(([(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text).into_response())
}

fn encode(gate: &Gate) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    {
        let node = gate.backend.metrics();
        encode_registry(&mut text, &node.lock().unwrap_or_else(PoisonError::into_inner))?;
    }
    encode_registry(&mut text, &gate.metrics.registry)?;
    encode_eof(&mut text)?;
    Ok(text)
}
