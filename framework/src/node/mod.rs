//! A node: one process's share of a cluster.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use perennial_core::id::NodeId;
use prometheus_client::registry::Registry;

use crate::actor::BoxFuture;
use crate::app::App;
use crate::call::{ActorId, Actors, Answered, Caller, EventStream, EventsFrom, Outbound};
use crate::status::ClusterStatus;

/// PEM files of a certificate, its key and the cluster's authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The authority's certificate.
    pub ca: PathBuf,
    /// Own certificate.
    pub cert: PathBuf,
    /// Own key.
    pub key: PathBuf,
}

/// Settings of a node.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Its name, stable across restarts.
    pub node: NodeId,
    /// Where its one port for nodes and clients listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// What others dial, `host:port`; the bound address when `None`.
    pub advertise: Option<String>,
    /// Where its gateway can be reached, for the members' list.
    pub http: Option<String>,
    /// `host:port` of nodes to find the cluster by; its own address may be among them.
    pub join: Vec<String>,
    /// Forms a new cluster once this many nodes have found each other.
    pub bootstrap_expect: usize,
    /// Data folder; used by one process at a time.
    pub data: PathBuf,
    /// Certificates.
    pub tls: TlsFiles,
    /// Partitions of a new cluster, a power of two.
    pub partitions: u32,
    /// Replicas of each partition in a new cluster.
    pub replication: u8,
    /// Failure zone.
    pub zone: Option<String>,
    /// Share of the load, 100 being usual.
    pub weight: u32,
}

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The port cannot be bound.
    #[error("cannot listen on {address}: {source}; choose another port with --listen or stop what uses it")]
    Listen {
        /// Address.
        address: SocketAddr,
        /// Cause.
        source: std::io::Error,
    },
    /// The data folder cannot be used.
    #[error("cannot use the data folder {}: {why}", path.display())]
    Data {
        /// Folder.
        path: PathBuf,
        /// Why, and what to do.
        why: String,
    },
    /// The certificates cannot be used.
    #[error("cannot use the certificate files: {why}")]
    Tls {
        /// Why, and what to do.
        why: String,
    },
    /// Settings contradict each other.
    #[error("settings: {0}")]
    Settings(String),
}

/// What a gateway needs of a node.
pub trait Backend: Caller {
    /// The application.
    fn app(&self) -> &App;
    /// The node's name.
    fn node(&self) -> &NodeId;
    /// The cluster as this node sees it, leaders asked for their partitions.
    fn status(&self) -> BoxFuture<'static, ClusterStatus>;
    /// Whether calls can be served from here.
    ///
    /// # Errors
    /// What it is waiting for.
    fn ready(&self) -> Result<(), String>;
    /// The node's metrics; a gateway adds its own.
    fn metrics(&self) -> Arc<Mutex<Registry>>;
}

/// A running node. Cheap to clone; stops when told to.
#[derive(Clone)]
pub struct Node {
    _nothing: Arc<App>,
}

impl Node {
    /// Starts a node: opens its data, its port and its links, and finds or forms the cluster in the
    /// background. Returns once the port is open.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running.
    pub async fn start(config: NodeConfig, app: App) -> Result<Self, StartError> {
        let _ = (config, app);
        Err(StartError::Settings("to be written".into()))
    }

    /// The address its port is bound to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    /// Waits until the node is ready to serve calls.
    pub async fn wait_ready(&self) {}

    /// Gives leaderships away, flushes and stops; returns when all of it is done.
    pub async fn stop(self, grace: Duration) {
        let _ = grace;
    }

    /// Resolves when the node had to stop by itself, such as after a failed flush; says why.
    pub async fn failed(&self) -> String {
        std::future::pending().await
    }
}

impl Caller for Node {
    fn call(&self, _: Outbound) -> BoxFuture<'static, Answered> {
        Box::pin(std::future::pending())
    }
    fn subscribe(&self, _: ActorId, _: EventsFrom) -> EventStream {
        Box::pin(futures_util::stream::pending())
    }
}
impl Actors for Node {
    fn caller(&self) -> Arc<dyn Caller> {
        Arc::new(self.clone())
    }
}
impl Backend for Node {
    fn app(&self) -> &App {
        &self._nothing
    }
    fn node(&self) -> &NodeId {
        unreachable!("to be written")
    }
    fn status(&self) -> BoxFuture<'static, ClusterStatus> {
        Box::pin(std::future::pending())
    }
    fn ready(&self) -> Result<(), String> {
        Ok(())
    }
    fn metrics(&self) -> Arc<Mutex<Registry>> {
        Arc::default()
    }
}
