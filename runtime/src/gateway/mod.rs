//! The HTTP gateway: calls, event streams, pages, health and metrics for everything that is not Rust.
//!
//! Owns the HTTP port of a node and its admin port: their connections, limits, error bodies, who may do
//! what, and metrics of their own. Never knows an actor's Rust types (arguments travel as JSON by name
//! and are decoded at the owner), never decides where an actor lives and never repeats a call: that is
//! the backend's. In: HTTP/1.1 requests. Out: calls and subscriptions of a [`Backend`]. Refusing at named
//! limits with a stated answer follows TigerBeetle and restate; resumable streams are Server-Sent Events
//! (WHATWG HTML §9.2).
//!
//! ```text
//! accept ─ connection quotas ─ TLS ─ head ─ origin ─ route ─ who ─ may ─ call quotas ─ body ─ Backend::call
//! stop:    drain (readyz 503) → close (no new connection, streams end) → cut (calls answered 503) → kill
//! ```

mod arguments;
mod auth;
mod dead;
mod errors;
mod metrics;
mod origin;
mod pages;
mod pieces;
mod quota;
mod routes;
mod server;
mod sse;
mod stall;
pub mod tls;
mod ws;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use perennial::call::CALL_TIMEOUT_DEFAULT;
use perennial::node::Backend;
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

use auth::Principal;
pub use auth::{EVENTS_METHOD, KeyNameError, NewKey, Policy, PolicyError};
use errors::Problem;
use metrics::Metrics;
use quota::{Full, Quota, Share};
use server::Entrance;
pub use ws::EVENTS_PROTOCOL;

/// Calls in flight at one gateway unless configured otherwise; above it 429.
pub const CALLS_IN_FLIGHT_MAX: u32 = 1024;
/// Calls in flight of one caller unless configured otherwise; above it 429.
pub const CALLS_OF_ONE_MAX: u32 = 512;
/// Open event streams at one gateway unless configured otherwise; above it 429.
pub const STREAMS_OPEN_MAX: u32 = 1024;
/// Open event streams of one caller unless configured otherwise; above it 429.
pub const STREAMS_OF_ONE_MAX: u32 = 512;
/// Connections to one gateway unless configured otherwise; above it 503 and the connection is closed.
pub const CONNECTIONS_MAX: u32 = 4096;
/// Connections from one address (IPv6: network) unless configured otherwise; above it 503 and closed.
pub const CONNECTIONS_OF_ONE_MAX: u32 = 2048;
/// Connections to the admin port; above it 503 and the connection is closed.
pub const ADMIN_CONNECTIONS_MAX: usize = 64;
/// Connections to the admin port from one address (IPv6: network); above it 503 and closed.
pub const ADMIN_CONNECTIONS_OF_ONE_MAX: usize = ADMIN_CONNECTIONS_MAX / 2;
/// Status requests answered at the same time (each asks every leader); above it 429.
pub const STATUS_IN_FLIGHT_MAX: usize = 16;
/// Largest request body in bytes, also the default; above it 413. What is larger fits no frame between nodes.
pub const BODY_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of all bodies that are in memory unless configured otherwise, one caller having at most half of
/// them; above it 429.
pub const BODY_BYTES_IN_FLIGHT_MAX: usize = 64 * 1024 * 1024;
/// Largest request head (line and headers) in bytes unless configured otherwise; above it 431.
pub const HEAD_BYTES_MAX: usize = 32 * 1024;
/// Smallest such limit: hyper reads in pieces of this size.
pub const HEAD_BYTES_MAX_MIN: usize = 8 * 1024;
/// Names in the query of a read; above it 400.
pub const QUERY_PAIRS_MAX: usize = 64;
/// Longest `Idempotency-Key` in bytes; above it 400.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 256;
/// Longest time a caller may ask for with `Perennial-Timeout-Ms`; above it 400.
pub const CALL_TIMEOUT_MAX: Duration = Duration::from_secs(60);
/// How long a TLS handshake may take unless configured otherwise; then the connection is closed.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a request's head may take, and a connection be idle, unless configured otherwise.
pub const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a request's body may take unless configured otherwise; then 408.
pub const BODY_READ_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take none of an answer unless configured otherwise; then the connection is closed.
pub const WRITE_STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Time between the comments that keep a quiet event stream open, unless configured otherwise.
pub const STREAM_KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How long answers may take to be written once the grace of a stop is over.
const STOP_FLUSH: Duration = Duration::from_secs(1);

/// Settings of a gateway.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    /// Calls in flight; 429 above.
    pub calls_in_flight_max: u32,
    /// Calls in flight of one caller: a key, a user, or an address nobody vouches for; 429 above.
    pub calls_of_one_max: u32,
    /// Open event streams; 429 above.
    pub streams_open_max: u32,
    /// Open event streams of one caller; 429 above.
    pub streams_of_one_max: u32,
    /// Open connections; 503 above.
    pub connections_max: u32,
    /// Open connections from one address; 503 above.
    pub connections_of_one_max: u32,
    /// Bytes of a request head, at least [`HEAD_BYTES_MAX_MIN`]; 431 above.
    pub head_bytes_max: usize,
    /// Bytes of a request body; 413 above.
    pub body_bytes_max: usize,
    /// Bytes of all bodies in memory; 429 above.
    pub body_bytes_in_flight_max: usize,
    /// Time for a TLS handshake; then the connection is closed.
    pub handshake_timeout: Duration,
    /// Time for a request's head, and idle time between requests; then the connection is closed.
    pub header_read_timeout: Duration,
    /// Time for a request's body; then 408.
    pub body_read_timeout: Duration,
    /// Time in which a client takes none of its answer; then the connection is closed.
    pub write_stall_timeout: Duration,
    /// Deadline of calls that ask for none.
    pub call_timeout: Duration,
    /// Time between keep-alive comments of an event stream.
    pub stream_keep_alive: Duration,
    /// Web origins (`https://shop.example`) whose pages may call from the browser, besides those on
    /// the gateway's own host name.
    pub origins_allowed: Vec<String>,
    /// TLS of the HTTP port; `None`: plain HTTP.
    pub tls: Option<Arc<ServerConfig>>,
    /// Who may do what; `None`: everybody may do everything.
    pub policy: Option<Arc<Policy>>,
    /// The admin port. With a policy, metrics, status and kinds are there only.
    pub admin: Option<AdminConfig>,
}

/// Settings of the admin port.
#[derive(Debug, Clone)]
pub struct AdminConfig {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its TLS, which decides who comes in; `None`: plain HTTP for everybody who reaches it.
    pub tls: Option<Arc<ServerConfig>>,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        Self {
            calls_in_flight_max: CALLS_IN_FLIGHT_MAX,
            calls_of_one_max: CALLS_OF_ONE_MAX,
            streams_open_max: STREAMS_OPEN_MAX,
            streams_of_one_max: STREAMS_OF_ONE_MAX,
            connections_max: CONNECTIONS_MAX,
            connections_of_one_max: CONNECTIONS_OF_ONE_MAX,
            head_bytes_max: HEAD_BYTES_MAX,
            body_bytes_max: BODY_BYTES_MAX,
            body_bytes_in_flight_max: BODY_BYTES_IN_FLIGHT_MAX,
            handshake_timeout: HANDSHAKE_TIMEOUT,
            header_read_timeout: HEADER_READ_TIMEOUT,
            body_read_timeout: BODY_READ_TIMEOUT,
            write_stall_timeout: WRITE_STALL_TIMEOUT,
            call_timeout: CALL_TIMEOUT_DEFAULT,
            stream_keep_alive: STREAM_KEEP_ALIVE,
            origins_allowed: Vec::new(),
            tls: None,
            policy: None,
            admin: None,
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
    address: Option<SocketAddr>,
    admin: Option<SocketAddr>,
    gate: Arc<Gate>,
    _kill: DropGuard,
}

impl Gateway {
    /// Binds the address (port 0 takes a free one) and that of the admin port, and serves in the
    /// background. Without an address there is the admin port only.
    ///
    /// # Errors
    /// [`GatewayError`]; nothing is left running.
    pub async fn bind(
        address: impl Into<Option<SocketAddr>>,
        backend: Arc<dyn Backend>,
        config: GatewayConfig,
    ) -> Result<Self, GatewayError> {
        let gate = Gate::new(backend, config);
        let mut gateway =
            Self { address: None, admin: None, _kill: gate.stages.kill.clone().drop_guard(), gate };
        let gate = &gateway.gate;
        let mut entrances = Vec::new();
        if let Some(address) = address.into() {
            let entrance = Entrance {
                router: routes::router(gate, address)?,
                tls: gate.config.tls.clone().map(Into::into),
                connections: Arc::clone(&gate.connections),
            };
            let (listener, bound) = listen(address).await?;
            gateway.address = Some(bound);
            entrances.push((listener, entrance));
        }
        if let Some(admin) = &gate.config.admin {
            let connections = (Limit::AdminConnections, ADMIN_CONNECTIONS_MAX);
            let of_one = (Limit::ConnectionsOfOne, ADMIN_CONNECTIONS_OF_ONE_MAX);
            let entrance = Entrance {
                router: routes::admin_router(gate, admin),
                tls: admin.tls.clone().map(Into::into),
                connections: Quota::new(connections, of_one),
            };
            let (listener, bound) = listen(admin.address).await?;
            gateway.admin = Some(bound);
            entrances.push((listener, entrance));
        }
        for (listener, entrance) in entrances {
            gate.tasks.spawn(server::accept(listener, Arc::clone(gate), Arc::new(entrance)));
        }
        Ok(gateway)
    }

    /// The address it is bound to, if it has one beside the admin port.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// The address of the admin port.
    #[must_use]
    pub fn admin(&self) -> Option<SocketAddr> {
        self.admin
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

async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), GatewayError> {
    let failed = |source| GatewayError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
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
    calls: Arc<Quota>,
    streams: Arc<Quota>,
    bodies: Arc<Quota>,
    connections: Arc<Quota>,
    status: Arc<Quota>,
    stages: Stages,
    /// The accept loop, the connections and the calls that outlive theirs.
    tasks: TaskTracker,
}

/// A limit at which a gateway refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Limit {
    Calls,
    CallsOfOne,
    Streams,
    StreamsOfOne,
    Bodies,
    BodiesOfOne,
    Connections,
    ConnectionsOfOne,
    AdminConnections,
    Status,
    HandshakeTime,
    HeadTime,
    HeadBytes,
    BodyTime,
    BodyBytes,
    WriteStall,
}

impl Limit {
    fn name(self) -> &'static str {
        match self {
            Self::Calls => "calls in flight",
            Self::CallsOfOne => "calls in flight of one caller",
            Self::Streams => "open event streams",
            Self::StreamsOfOne => "open event streams of one caller",
            Self::Bodies => "bytes of bodies in memory",
            Self::BodiesOfOne => "bytes of bodies in memory of one caller",
            Self::Connections => "connections",
            Self::ConnectionsOfOne => "connections of one address",
            Self::AdminConnections => "connections of the admin port",
            Self::Status => "status requests",
            Self::HandshakeTime => "time for a handshake",
            Self::HeadTime => "time for a head",
            Self::HeadBytes => "bytes of a head",
            Self::BodyTime => "time for a body",
            Self::BodyBytes => "bytes of a body",
            Self::WriteStall => "time without taking an answer",
        }
    }

    /// Whether it is the caller who has too much, and not the gateway.
    fn is_callers(self) -> bool {
        matches!(self, Self::CallsOfOne | Self::StreamsOfOne | Self::BodiesOfOne | Self::ConnectionsOfOne)
    }
}

impl Gate {
    fn new(backend: Arc<dyn Backend>, config: GatewayConfig) -> Arc<Self> {
        let kill = CancellationToken::new();
        let cut = kill.child_token();
        let closing = cut.child_token();
        let draining = closing.child_token();
        let status = (Limit::Status, STATUS_IN_FLIGHT_MAX);
        Arc::new(Self {
            backend,
            metrics: Metrics::new(),
            calls: Quota::new(
                (Limit::Calls, config.calls_in_flight_max as usize),
                (Limit::CallsOfOne, config.calls_of_one_max as usize),
            ),
            streams: Quota::new(
                (Limit::Streams, config.streams_open_max as usize),
                (Limit::StreamsOfOne, config.streams_of_one_max as usize),
            ),
            bodies: Quota::new(
                (Limit::Bodies, config.body_bytes_in_flight_max),
                // One body of the largest size always fits.
                (Limit::BodiesOfOne, (config.body_bytes_in_flight_max / 2).max(config.body_bytes_max)),
            ),
            connections: Quota::new(
                (Limit::Connections, config.connections_max as usize),
                (Limit::ConnectionsOfOne, config.connections_of_one_max as usize),
            ),
            status: Quota::new(status, status),
            stages: Stages { draining, closing, cut, kill },
            tasks: TaskTracker::new(),
            config,
        })
    }

    /// Takes so much for the caller or refuses; never waits.
    fn admit(&self, quota: &Arc<Quota>, caller: &Principal, amount: usize) -> Result<Share, Problem> {
        quota.take(caller, amount).map_err(|full| self.full(full))
    }

    /// Counts and words a refusal.
    fn full(&self, full: Full) -> Problem {
        self.metrics.refused(full.limit);
        let (what, limit) = (full.limit.name(), full.max);
        if full.limit.is_callers() {
            Problem::YourShare { what, limit }
        } else {
            Problem::Busy { what, limit }
        }
    }
}
