//! The HTTP gateway: calls, event streams, pages, health and metrics for everything that is not Rust.
//!
//! Owns the HTTP port of a node: its connections, limits, error bodies and its own metrics. Never
//! knows an actor's Rust types (arguments travel as JSON by name and are decoded at the owner), never
//! decides where an actor lives and never repeats a call: that is the backend's. In: HTTP/1.1
//! requests. Out: calls and subscriptions of a [`Backend`]. Refusing at named limits with a stated
//! answer follows TigerBeetle and restate; resumable streams are Server-Sent Events (WHATWG HTML §9.2).
//!
//! ```text
//! accept ─ connection cap ─ header time-out ─ origin ─ route ─ call permit ─ body ─ Backend::call
//! stop:    drain (readyz 503) → close (no new connection, streams end) → cut (calls answered 503) → kill
//! ```

mod arguments;
mod errors;
mod metrics;
mod origin;
mod pages;
mod routes;
mod server;
mod sse;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use perennial::call::CALL_TIMEOUT_DEFAULT;
use perennial::node::Backend;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use errors::Problem;
use metrics::Metrics;

/// Calls in flight at one gateway unless configured otherwise; above it 429.
pub const CALLS_IN_FLIGHT_MAX: u32 = 1024;
/// Open event streams at one gateway unless configured otherwise; above it 429.
pub const STREAMS_OPEN_MAX: u32 = 1024;
/// Connections to one gateway unless configured otherwise; above it 503 and the connection is closed.
pub const CONNECTIONS_MAX: u32 = 4096;
/// Status requests answered at the same time (each asks every leader); above it 429.
pub const STATUS_IN_FLIGHT_MAX: usize = 16;
/// Largest request body in bytes unless configured otherwise; above it 413.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;
/// Largest request head (line and headers) in bytes; above it 431.
pub const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Longest `Idempotency-Key` in bytes; above it 400.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 256;
/// Longest time a caller may ask for with `Perennial-Timeout-Ms`; above it 400.
pub const CALL_TIMEOUT_MAX: Duration = Duration::from_secs(60);
/// How long a request's head may take, and a connection be idle, unless configured otherwise.
pub const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a request's body may take unless configured otherwise; then 408.
pub const BODY_READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Time between the comments that keep a quiet event stream open, unless configured otherwise.
pub const STREAM_KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How long answers may take to be written once the grace of a stop is over.
const STOP_FLUSH: Duration = Duration::from_secs(1);

/// Settings of a gateway.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    /// Calls in flight; 429 above.
    pub calls_in_flight_max: u32,
    /// Open event streams; 429 above.
    pub streams_open_max: u32,
    /// Open connections; 503 above.
    pub connections_max: u32,
    /// Bytes of a request body; 413 above.
    pub body_bytes_max: usize,
    /// Time for a request's head, and idle time between requests; then the connection is closed.
    pub header_read_timeout: Duration,
    /// Time for a request's body; then 408.
    pub body_read_timeout: Duration,
    /// Deadline of calls that ask for none.
    pub call_timeout: Duration,
    /// Time between keep-alive comments of an event stream.
    pub stream_keep_alive: Duration,
    /// Web origins (`https://shop.example`) whose pages may call from the browser, besides those on
    /// the gateway's own host name.
    pub origins_allowed: Vec<String>,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            calls_in_flight_max: CALLS_IN_FLIGHT_MAX,
            streams_open_max: STREAMS_OPEN_MAX,
            connections_max: CONNECTIONS_MAX,
            body_bytes_max: BODY_BYTES_MAX,
            header_read_timeout: HEADER_READ_TIMEOUT,
            body_read_timeout: BODY_READ_TIMEOUT,
            call_timeout: CALL_TIMEOUT_DEFAULT,
            stream_keep_alive: STREAM_KEEP_ALIVE,
            origins_allowed: Vec::new(),
        }
    }
}

/// Why a gateway did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GatewayError {
    /// The port cannot be bound.
    #[error("the gateway cannot listen on {address}: {source}; choose another port or stop what uses it")]
    Listen {
        /// Address.
        address: SocketAddr,
        /// Cause.
        source: std::io::Error,
    },
    /// A page of the application cannot be mounted.
    #[error("the page {mount:?} cannot be mounted: {why}")]
    Page {
        /// Its mount point.
        mount: String,
        /// Why, and what to do.
        why: &'static str,
    },
}

/// A running gateway. Dropping it ends everything at once; [`Gateway::stop`] does so in order.
pub struct Gateway {
    address: SocketAddr,
    gate: Arc<Gate>,
    _kill: DropGuard,
}

impl Gateway {
    /// Binds the address (port 0 takes a free one) and serves in the background.
    ///
    /// # Errors
    /// [`GatewayError`]; nothing is left running.
    pub async fn bind(
        address: SocketAddr,
        backend: Arc<dyn Backend>,
        config: GatewayConfig,
    ) -> Result<Self, GatewayError> {
        let gate = Gate::new(backend, config);
        let router = routes::router(&gate)?;
        let listen = |source| GatewayError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        gate.tasks.spawn(server::accept(listener, Arc::clone(&gate), router));
        let _kill = gate.stages.kill.clone().drop_guard();
        Ok(Self { address, gate, _kill })
    }

    /// The address it is bound to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `/readyz` says 503 from now on, so that load balancers look elsewhere; everything else is still
    /// served.
    pub fn drain(&self) {
        self.gate.stages.draining.cancel();
    }

    /// Stops: drains, takes no new connection, ends event streams and waits up to `grace` for the calls
    /// in flight. Those that take longer are answered with 503 (`stopping`). Returns when nothing runs
    /// any more.
    pub async fn stop(self, grace: Duration) {
        let (stages, tasks) = (&self.gate.stages, &self.gate.tasks);
        tasks.close();
        for (stage, patience) in [(&stages.closing, grace), (&stages.cut, STOP_FLUSH)] {
            stage.cancel();
            if tokio::time::timeout(patience, tasks.wait()).await.is_ok() {
                return;
            }
        }
        stages.kill.cancel();
        tasks.wait().await;
    }
}

/// The stages of a stop. A later stage includes the earlier ones.
struct Stages {
    /// `/readyz` says 503.
    draining: CancellationToken,
    /// No new connection, no kept connection, no stream.
    closing: CancellationToken,
    /// Calls in flight are answered at once.
    cut: CancellationToken,
    /// Connections are dropped.
    kill: CancellationToken,
}

/// What every part of a gateway shares.
struct Gate {
    backend: Arc<dyn Backend>,
    config: GatewayConfig,
    metrics: Metrics,
    calls: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    status: Arc<Semaphore>,
    stages: Stages,
    /// The accept loop, the connections and the calls that outlive theirs.
    tasks: TaskTracker,
}

/// A limit at which a gateway refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Limit {
    Calls,
    Streams,
    Connections,
    Status,
}

impl Limit {
    fn name(self) -> &'static str {
        match self {
            Self::Calls => "calls in flight",
            Self::Streams => "open event streams",
            Self::Connections => "connections",
            Self::Status => "status requests",
        }
    }
}

impl Gate {
    fn new(backend: Arc<dyn Backend>, config: GatewayConfig) -> Arc<Self> {
        let kill = CancellationToken::new();
        let cut = kill.child_token();
        let closing = cut.child_token();
        let draining = closing.child_token();
        Arc::new(Self {
            backend,
            metrics: Metrics::new(),
            calls: Arc::new(Semaphore::new(config.calls_in_flight_max as usize)),
            streams: Arc::new(Semaphore::new(config.streams_open_max as usize)),
            connections: Arc::new(Semaphore::new(config.connections_max as usize)),
            status: Arc::new(Semaphore::new(STATUS_IN_FLIGHT_MAX)),
            stages: Stages { draining, closing, cut, kill },
            tasks: TaskTracker::new(),
            config,
        })
    }

    fn limit(&self, limit: Limit) -> (&Arc<Semaphore>, usize) {
        match limit {
            Limit::Calls => (&self.calls, self.config.calls_in_flight_max as usize),
            Limit::Streams => (&self.streams, self.config.streams_open_max as usize),
            Limit::Connections => (&self.connections, self.config.connections_max as usize),
            Limit::Status => (&self.status, STATUS_IN_FLIGHT_MAX),
        }
    }

    /// Takes a permit or refuses; never waits.
    fn admit(&self, limit: Limit) -> Result<OwnedSemaphorePermit, Problem> {
        let (permits, max) = self.limit(limit);
        Arc::clone(permits).try_acquire_owned().map_err(|_| {
            self.metrics.refused(limit.name());
            Problem::Busy { what: limit.name(), limit: max }
        })
    }

    /// How many permits are taken.
    fn taken(&self, limit: Limit) -> usize {
        let (permits, max) = self.limit(limit);
        max - permits.available_permits()
    }
}
