//! The transport within one process: the same links over pipes, with a hub that can cut and freeze them.
//!
//! Owns the pipes. Everything above a byte stream (frames, queues, deadlines, redials, events) is the
//! code of the real transport; TLS, hello and admission are left out. Runs in paused time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use perennial_core::id::NodeId;
use tokio::io::{DuplexStream, copy_bidirectional, duplex};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::calls::{Answer, ItemStream, LinkError};
use super::cluster::StartError;
use super::config::LinkConfig;
use super::control::Control;
use super::dial::DialError;
use super::hello::DoorLane;
use super::lock;
use super::mesh::{Connector, Mesh};
use super::peer::Io;
use super::tls::Peer;
use super::transport::{Handlers, Lane, Transport, Unsent};

/// Bytes a pipe holds, as a socket's buffer would.
const PIPE_BYTES: usize = 64 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pipe {
    Open,
    Frozen,
    Cut,
}

/// Connects the memory transports of one process, by node id; addresses are ignored.
#[derive(Clone, Default)]
pub struct MemoryHub(Arc<Mutex<Hub>>);

#[derive(Default)]
struct Hub {
    nodes: BTreeMap<NodeId, Weak<Mesh>>,
    pairs: BTreeMap<(NodeId, NodeId), Pair>,
}

/// Two nodes, and what is between them.
struct Pair {
    pipe: watch::Sender<Pipe>,
    /// Cancelled, and made anew, to break the links there are.
    links: CancellationToken,
}

impl Pair {
    fn break_links(&mut self) {
        std::mem::take(&mut self.links).cancel();
    }
}

impl std::fmt::Debug for MemoryHub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryHub").field("nodes", &lock(&self.0).nodes.keys()).finish()
    }
}

impl MemoryHub {
    /// A hub without nodes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a node, in place of an earlier one of that id.
    ///
    /// # Errors
    /// [`StartError`] when the settings contradict each other.
    pub async fn join(
        &self,
        node: NodeId,
        handlers: Handlers,
        config: LinkConfig,
    ) -> Result<Arc<MemoryTransport>, StartError> {
        config.validate()?;
        let connector = HubConnector { hub: self.clone(), me: node.clone() };
        let mesh = Mesh::start(config, handlers, Box::new(connector)).await?;
        lock(&self.0).nodes.insert(node.clone(), Arc::downgrade(&mesh));
        Ok(Arc::new(MemoryTransport { hub: self.clone(), node, mesh }))
    }

    /// Cuts two nodes off from each other: links between them break and dials get no answer.
    pub fn cut(&self, a: &NodeId, b: &NodeId) {
        self.set(a, b, Pipe::Cut);
    }

    /// Stops carrying bytes between two nodes without breaking their links, as a frozen process does.
    pub fn freeze(&self, a: &NodeId, b: &NodeId) {
        self.set(a, b, Pipe::Frozen);
    }

    /// Undoes [`cut`](Self::cut) and [`freeze`](Self::freeze).
    pub fn heal(&self, a: &NodeId, b: &NodeId) {
        self.set(a, b, Pipe::Open);
    }

    fn set(&self, a: &NodeId, b: &NodeId, state: Pipe) {
        self.with_pair(a, b, |pair| {
            pair.pipe.send_replace(state);
            if state == Pipe::Cut {
                pair.break_links();
            }
        });
    }

    fn with_pair<T>(&self, a: &NodeId, b: &NodeId, change: impl FnOnce(&mut Pair) -> T) -> T {
        let key = if a < b { (a.clone(), b.clone()) } else { (b.clone(), a.clone()) };
        let new = || Pair { pipe: watch::Sender::new(Pipe::Open), links: CancellationToken::new() };
        change(lock(&self.0).pairs.entry(key).or_insert_with(new))
    }
}

/// Carries bytes both ways while the pipe is open; ends both sides when the links are broken.
async fn carry(
    mut near: DuplexStream,
    mut far: DuplexStream,
    mut pipe: watch::Receiver<Pipe>,
    broken: CancellationToken,
) {
    let mut copying = std::pin::pin!(copy_bidirectional(&mut near, &mut far));
    loop {
        let open = *pipe.borrow_and_update() == Pipe::Open;
        tokio::select! {
            biased;
            () = broken.cancelled() => return,
            changed = pipe.changed() => if changed.is_err() { return },
            _ = &mut copying, if open => return,
        }
    }
}

struct HubConnector {
    hub: MemoryHub,
    me: NodeId,
}

impl Connector for HubConnector {
    fn connect<'a>(
        &'a self,
        to: &'a NodeId,
        _address: &'a str,
        lane: DoorLane,
    ) -> BoxFuture<'a, Result<Io, DialError>> {
        Box::pin(async move {
            let unanswered = || DialError::TimedOut(to.to_string());
            let (pipe, broken) =
                self.hub.with_pair(&self.me, to, |pair| (pair.pipe.subscribe(), pair.links.clone()));
            if *pipe.borrow() != Pipe::Open {
                return Err(unanswered());
            }
            let there = lock(&self.hub.0).nodes.get(to).and_then(Weak::upgrade);
            let Some(there) = there.filter(|mesh| !mesh.closing().is_cancelled()) else {
                return Err(DialError::Refused(to.to_string()));
            };
            if lane == DoorLane::Control && !there.has_control() {
                return Err(unanswered());
            }
            let (ours, near) = duplex(PIPE_BYTES);
            let (far, theirs) = duplex(PIPE_BYTES);
            tokio::spawn(carry(near, far, pipe, broken));
            let accepting = there.clone().accept(Box::new(theirs), Peer::Node(self.me.clone()), lane);
            there.spawn(accepting);
            Ok(Box::new(ours) as Io)
        })
    }
}

/// Links within one process; dropping it closes them without waiting.
pub struct MemoryTransport {
    hub: MemoryHub,
    node: NodeId,
    mesh: Arc<Mesh>,
}

impl std::fmt::Debug for MemoryTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryTransport").field("node", &self.node).finish_non_exhaustive()
    }
}

impl MemoryTransport {
    /// Opens the control lane, as [`ClusterTransport::serve_control`](super::ClusterTransport::serve_control).
    pub fn serve_control(&self, control: Control) {
        self.mesh.set_control(control);
    }

    /// Closes every link in good order; the hub then refuses dials to this node.
    pub async fn stop(&self) {
        self.mesh.stop().await;
    }

    /// Ends at once, as a killed process would: links break and what is queued is lost.
    pub fn kill(&self) {
        self.mesh.close();
        let mut hub = lock(&self.hub.0);
        for ((a, b), pair) in &mut hub.pairs {
            if *a == self.node || *b == self.node {
                pair.break_links();
            }
        }
    }
}

impl Drop for MemoryTransport {
    fn drop(&mut self) {
        self.mesh.close();
    }
}

impl Transport for MemoryTransport {
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
}
