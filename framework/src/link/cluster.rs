//! The transport of a real node: mutual TLS over TCP, one listening port.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use perennial_core::id::NodeId;
use tokio::net::TcpListener;

use super::calls::{Answer, ItemStream, LinkError};
use super::config::{ConfigError, LinkConfig};
use super::control::Control;
use super::dial::{DialError, dial};
use super::door::Door;
use super::guard::Closed;
use super::hello::{Admission, DoorLane, Hello};
use super::mesh::{Connector, Mesh, SpawnFailed};
use super::peer::Io;
use super::tls::{Peer, Tls};
use super::transport::{Handlers, Lane, NodeTransport, Transport, Unsent};

/// Why a transport cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The settings contradict each other.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The certificate is not that of this node.
    #[error("the certificate is that of {certificate}, this is node {node}: issue one for this node")]
    Certificate {
        /// Whom the certificate names.
        certificate: Peer,
        /// Who we are.
        node: NodeId,
    },
    /// The listening socket is of no use.
    #[error("cannot use the listening socket: {0}")]
    Socket(#[from] io::Error),
    /// The actors that keep the links cannot be started.
    #[error(transparent)]
    Spawn(#[from] SpawnFailed),
}

/// Links over TLS and TCP; dropping it closes them without waiting.
pub struct ClusterTransport {
    mesh: Arc<Mesh>,
    local: SocketAddr,
}

impl std::fmt::Debug for ClusterTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterTransport").field("local", &self.local).finish_non_exhaustive()
    }
}

struct Tcp {
    tls: Tls,
    config: LinkConfig,
    admission: Arc<dyn Admission>,
}

impl Connector for Tcp {
    fn connect<'a>(
        &'a self,
        to: &'a NodeId,
        address: &'a str,
        lane: DoorLane,
    ) -> BoxFuture<'a, Result<Io, DialError>> {
        Box::pin(async move {
            let hello = Hello::of_node(lane, self.admission.facts());
            dial(&self.tls, &self.config, address, Some(to), &hello).await.map(|dialed| dialed.io)
        })
    }
}

impl ClusterTransport {
    /// Opens the door on a listening socket; dials nobody before [`set_peers`](Transport::set_peers).
    ///
    /// # Errors
    /// [`StartError`]; nothing is running then.
    pub async fn start(
        listener: TcpListener,
        tls: Tls,
        admission: Arc<dyn Admission>,
        handlers: Handlers,
        config: LinkConfig,
    ) -> Result<Arc<Self>, StartError> {
        config.validate()?;
        let node = admission.facts().node;
        if *tls.me() != Peer::Node(node.clone()) {
            return Err(StartError::Certificate { certificate: tls.me().clone(), node });
        }
        let local = listener.local_addr()?;
        let tcp = Tcp { tls: tls.clone(), config: config.clone(), admission: admission.clone() };
        let mesh = Mesh::start(config, handlers, Box::new(tcp)).await?;
        mesh.spawn(Door::new(tls, admission, mesh.clone()).accept(listener));
        Ok(Arc::new(Self { mesh, local }))
    }

    /// Where the door is.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }
}

impl NodeTransport for ClusterTransport {
    fn serve_control(&self, control: Control) {
        self.mesh.set_control(control);
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.mesh.stop())
    }
}

impl Drop for ClusterTransport {
    fn drop(&mut self) {
        self.mesh.close();
    }
}

impl Transport for ClusterTransport {
    fn send(&self, to: &NodeId, lane: Lane, frame: Bytes) -> Result<(), Unsent> {
        self.mesh.send(to, lane, frame)
    }

    fn request(&self, to: &NodeId, payload: Bytes, within: Duration) -> Answer {
        self.mesh.request(to, &payload, within)
    }

    fn request_stream(&self, to: &NodeId, payload: Bytes) -> Result<ItemStream, LinkError> {
        self.mesh.request_stream(to, &payload)
    }

    fn set_peers(&self, peers: Vec<(NodeId, String)>) {
        self.mesh.set_peers(peers);
    }

    fn is_up(&self, node: &NodeId) -> bool {
        self.mesh.is_up(node)
    }

    fn closed(&self) -> Vec<(Closed, u64)> {
        self.mesh.closed().all().collect()
    }
}
