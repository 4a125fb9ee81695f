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
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, duplex, split};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::calls::{Answer, ItemStream, LinkError};
use super::cluster::StartError;
use super::config::LinkConfig;
use super::control::Control;
use super::dial::DialError;
use super::guard::Closed;
use super::hello::DoorLane;
use super::lock;
use super::mesh::{Connector, Mesh};
use super::peer::Io;
use super::tls::Peer;
use super::transport::{Handlers, Lane, NodeTransport, Transport, Unsent};

/// Bytes a pipe holds, as a socket's buffer would.
const PIPE_BYTES: usize = 64 << 10;
/// Bytes that travel in one piece.
const PIECE_BYTES: usize = 16 << 10;
/// Pieces under way in one direction of a link.
const PIECES_MAX: usize = 64;

/// How long the next piece of bytes takes from one node to another.
pub type Delay = Arc<dyn Fn(&NodeId, &NodeId) -> Duration + Send + Sync>;

/// One direction between two nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pipe {
    Open,
    Frozen,
}

/// Connects the memory transports of one process, by node id; an address is a node id and a port that
/// means nothing.
#[derive(Clone, Default)]
pub struct MemoryHub(Arc<Mutex<Hub>>);

#[derive(Default)]
struct Hub {
    nodes: BTreeMap<NodeId, Weak<Mesh>>,
    pairs: BTreeMap<(NodeId, NodeId), Pair>,
    wires: Option<Wires>,
}

/// What carries the bytes of a hub whose nodes have runtimes of their own.
#[derive(Clone)]
struct Wires {
    runtime: Handle,
    delay: Delay,
}

/// Two nodes, and what is between them.
struct Pair {
    /// From the lesser node id to the greater one, and back.
    ways: [watch::Sender<Pipe>; 2],
    /// Dials get no answer.
    cut: bool,
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
    /// A hub without nodes, whose bytes arrive at once.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A hub whose bytes take time, and are carried by a runtime that no node's end takes with it.
    #[must_use]
    pub fn with_delay(runtime: Handle, delay: Delay) -> Self {
        let hub = Self::default();
        lock(&hub.0).wires = Some(Wires { runtime, delay });
        hub
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
        self.with_pair(a, b, |pair, _| {
            pair.cut = true;
            pair.break_links();
        });
    }

    /// Stops carrying bytes between two nodes without breaking their links, as a frozen process does.
    pub fn freeze(&self, a: &NodeId, b: &NodeId) {
        self.freeze_one_way(a, b);
        self.freeze_one_way(b, a);
    }

    /// The same in one direction only; dials get no answer.
    pub fn freeze_one_way(&self, from: &NodeId, to: &NodeId) {
        self.with_pair(from, to, |pair, way| {
            pair.ways[way].send_replace(Pipe::Frozen);
        });
    }

    /// Breaks the links between two nodes, which may dial again.
    pub fn reset(&self, a: &NodeId, b: &NodeId) {
        self.with_pair(a, b, |pair, _| pair.break_links());
    }

    /// Undoes [`cut`](Self::cut) and [`freeze`](Self::freeze).
    pub fn heal(&self, a: &NodeId, b: &NodeId) {
        self.with_pair(a, b, |pair, _| {
            pair.cut = false;
            for way in &pair.ways {
                way.send_replace(Pipe::Open);
            }
        });
    }

    /// Changes what is between two nodes; the number is that of the way from the first to the second.
    fn with_pair<T>(&self, a: &NodeId, b: &NodeId, change: impl FnOnce(&mut Pair, usize) -> T) -> T {
        let (key, way) = if a < b { ((a.clone(), b.clone()), 0) } else { ((b.clone(), a.clone()), 1) };
        let open = || watch::Sender::new(Pipe::Open);
        let new = || Pair { ways: [open(), open()], cut: false, links: CancellationToken::new() };
        change(lock(&self.0).pairs.entry(key).or_insert_with(new), way)
    }

    /// Connects to a node on a lane.
    async fn connect(&self, me: &NodeId, from: Peer, to: &NodeId, lane: DoorLane) -> Result<Io, DialError> {
        let unanswered = || DialError::TimedOut(to.to_string());
        let (there, back, broken, cut) = self.with_pair(me, to, |pair, way| {
            let [there, back] = [way, 1 - way].map(|way| pair.ways[way].subscribe());
            (there, back, pair.links.clone(), pair.cut)
        });
        if cut || *there.borrow() != Pipe::Open || *back.borrow() != Pipe::Open {
            return Err(unanswered());
        }
        let mesh = lock(&self.0).nodes.get(to).and_then(Weak::upgrade);
        let Some(mesh) = mesh.filter(|mesh| !mesh.closing().is_cancelled()) else {
            return Err(DialError::Refused(to.to_string()));
        };
        if lane == DoorLane::Control && !mesh.has_control() {
            return Err(unanswered());
        }
        let (ours, near) = duplex(PIPE_BYTES);
        let (far, theirs) = duplex(PIPE_BYTES);
        let wires = lock(&self.0).wires.clone();
        let (delay, runtime) = match wires {
            Some(Wires { runtime, delay }) => (Some(delay), runtime),
            None => (None, Handle::current()),
        };
        let way = |state, from: &NodeId, to: &NodeId| Way {
            state,
            delay: delay.clone().map(|delay| (delay, from.clone(), to.clone())),
        };
        let (there, back) = (way(there, me, to), way(back, to, me));
        let (near_out, near_in) = split(near);
        let (far_in, far_out) = split(far);
        runtime.spawn(async move {
            tokio::select! {
                biased;
                () = broken.cancelled() => {}
                _ = async { tokio::try_join!(carry(near_out, far_out, there), carry(far_in, near_in, back)) } => {}
            }
        });
        let accepting = mesh.clone().accept(Box::new(theirs), from, lane);
        mesh.spawn(accepting);
        Ok(Box::new(ours) as Io)
    }
}

impl MemoryHub {
    /// Connects a client, which has a place in the hub as nodes have, to a node.
    pub(crate) async fn dial_client(&self, me: &NodeId, to: &NodeId) -> Result<Io, DialError> {
        self.connect(me, Peer::Client(me.to_string()), to, DoorLane::Client).await
    }
}

/// One direction of a link.
struct Way {
    state: watch::Receiver<Pipe>,
    delay: Option<(Delay, NodeId, NodeId)>,
}

impl Way {
    async fn open(&mut self) {
        // The hub has a sender for as long as it lives; after it nothing is frozen.
        let _ = self.state.wait_for(|state| *state == Pipe::Open).await;
    }
}

/// Carries bytes one way, in order, each piece when its time has come, while the way is open.
async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut way: Way,
) -> std::io::Result<()> {
    let (sent, mut arriving) = mpsc::channel::<(Instant, Bytes)>(PIECES_MAX);
    let mut leaves = Way { state: way.state.clone(), delay: way.delay.clone() };
    let read = async move {
        let mut due = Instant::now();
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            leaves.open().await;
            let count = from.read(&mut piece).await?;
            if count == 0 {
                return Ok::<_, std::io::Error>(());
            }
            if let Some((delay, from, to)) = &leaves.delay {
                due = due.max(Instant::now() + delay(from, to));
            }
            if sent.send((due, Bytes::copy_from_slice(&piece[..count]))).await.is_err() {
                return Ok(());
            }
        }
    };
    let write = async move {
        while let Some((due, piece)) = arriving.recv().await {
            if way.delay.is_some() {
                sleep_until(due).await;
            }
            way.open().await;
            to.write_all(&piece).await?;
        }
        to.shutdown().await
    };
    tokio::try_join!(read, write).map(drop)
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
        Box::pin(self.hub.connect(&self.me, Peer::Node(self.me.clone()), to, lane))
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

impl NodeTransport for MemoryTransport {
    fn serve_control(&self, control: Control) {
        self.mesh.set_control(control);
    }

    fn stop(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.mesh.stop())
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

    fn closed(&self) -> Vec<(Closed, u64)> {
        self.mesh.closed().all().collect()
    }
}
