//! The control lane: typed messages between nodes over ractor_cluster sessions, on streams of our own.
//!
//! Owns the node's `NodeServer`, its one remotable actor and the sessions. Never opens a socket: streams
//! come from the door or the dial loop, verified. In: calls and casts for other nodes; out: calls of a
//! [`ControlHandler`], up and down as hints. For low rates: every queue inside ractor is unbounded, so
//! permits and deadlines stand before them.
//!
//! What ractor_cluster needs around it, each seen to fail without: a read buffer, an idle-read and a
//! stalled-write deadline on the stream; a limit on inbound frames; a deadline on every remote call; a
//! host name that is unique per run; no name or group as a directory, since those are process-global: the
//! actor of a peer is found among the children of that peer's session. Its own listener, for which the
//! cookie is the only guard, is closed as soon as it is open.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use perennial_core::id::{ClusterId, NodeId};
use ractor::rpc::CallResult;
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, RpcReplyPort, SpawnErr, SupervisionEvent};
use ractor_cluster::node::{NodeConnectionMode, NodeServerSessionInformation};
use ractor_cluster::{
    BoxRead, BoxWrite, ClusterBidiStream, NodeEventSubscription, NodeServer, NodeServerMessage,
    NodeSessionMessage, RactorClusterMessage, RactorMessage,
};
use tokio::io::{AsyncRead, AsyncWrite, BufReader, ReadBuf, ReadHalf, WriteHalf};
use tokio::sync::Semaphore;
use tokio::time::{Instant, Sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};

use super::config::LinkConfig;
use super::lock;
use super::mesh::SpawnFailed;
use super::peer::Io;

/// Largest payload on the control lane.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 20;
/// Largest frame of a session: a payload and what ractor_cluster puts around it.
const SESSION_FRAME_BYTES_MAX: u64 = PAYLOAD_BYTES_MAX as u64 + (64 << 10);
/// Read buffer of a session; without one each frame costs many reads of 8 KiB.
const READ_BYTES: usize = 128 << 10;
/// Calls under way to all peers; beyond it a call is refused as busy.
const CALLS_MAX: usize = 64;
/// Calls of all peers being handled here; beyond it a call is answered as busy.
const HANDLED_MAX: usize = 64;
/// Pause before a failed part is started again.
const RESTART_AFTER: Duration = Duration::from_millis(100);
/// How long a replaced session may take to end, and a part to stop.
const STOP_WITHIN: Duration = Duration::from_secs(2);

/// First byte of an answer.
const ANSWERED: u8 = 0;
const BUSY: u8 = 1;

/// Why a control call has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// There is no session with the node.
    #[error("no control session with node {0}: nothing was sent, try again")]
    NoSession(NodeId),
    /// The session ended before the answer.
    #[error("the control session with node {0} was lost: the call may have been carried out")]
    Lost(NodeId),
    /// The deadline passed.
    #[error("node {0} did not answer in time: the call may have been carried out")]
    TimedOut(NodeId),
    /// Too many control calls are under way, here or there.
    #[error("too many control calls are under way: nothing was carried out, try again")]
    Busy,
    /// The payload is above [`PAYLOAD_BYTES_MAX`].
    #[error("the payload has {0} bytes, the limit is {PAYLOAD_BYTES_MAX}: nothing was sent")]
    TooLarge(usize),
}

/// What the node does with control messages. None of the plain functions may block.
///
/// `from` is the name the sender gives itself; every member of the cluster may speak.
pub trait ControlHandler: Send + Sync + 'static {
    /// What this node tells a peer when a session begins.
    fn info(&self) -> Bytes;
    /// What a peer told at the beginning of a session.
    fn hello(&self, from: NodeId, info: Bytes);
    /// A peer's placement table.
    fn table(&self, from: NodeId, table: Bytes);
    /// An administrative call; runs on a task of its own.
    fn admin(&self, from: NodeId, payload: Bytes) -> BoxFuture<'static, Bytes>;
    /// A session with the peer is ready. A hint.
    fn up(&self, node: NodeId);
    /// The session with the peer ended. A hint.
    fn down(&self, node: NodeId);
}

/// The messages between nodes. Variants are told apart by name: none is ever renamed. The sender's name is
/// bytes here: as a `String`, what is not UTF-8 would panic when it is decoded.
#[derive(RactorClusterMessage)]
enum ControlMessage {
    /// Sender, what it says about itself.
    Hello(Vec<u8>, Vec<u8>),
    /// Sender, placement table.
    TableUpdate(Vec<u8>, Vec<u8>),
    /// Sender, payload, answer.
    #[rpc]
    Admin(Vec<u8>, Vec<u8>, RpcReplyPort<Vec<u8>>),
}

/// Reads a sender's name.
fn sender(name: &[u8]) -> Option<NodeId> {
    NodeId::new(std::str::from_utf8(name).ok()?).ok()
}

/// Reads a message as a session hands it over.
#[cfg(any(test, fuzzing))]
pub(super) fn decode(message: ractor::message::SerializedMessage) {
    use ractor::Message;
    if let Ok(ControlMessage::Hello(from, _) | ControlMessage::TableUpdate(from, _)) =
        ControlMessage::deserialize(message)
    {
        let _ = sender(&from);
    }
}

/// The arguments of a message of each plain kind, behind its number.
#[cfg(any(test, fuzzing))]
pub(super) fn encoded() -> Vec<Vec<u8>> {
    use ractor::Message;
    use ractor::message::SerializedMessage;
    let hello = ControlMessage::Hello(b"n1".to_vec(), b"info".to_vec());
    let table = ControlMessage::TableUpdate(b"n1".to_vec(), b"table".to_vec());
    let bytes = |(number, message): (u8, ControlMessage)| match message.serialize() {
        Ok(SerializedMessage::Cast { args, .. }) => [vec![number], args].concat(),
        _ => unreachable!("a cast serializes as one"),
    };
    [(0, hello), (1, table)].map(bytes).into()
}

/// The control part of one node; a handle, cheap to clone.
#[derive(Clone)]
pub struct Control(Arc<Shared>);

struct Shared {
    node: NodeId,
    incarnation: u64,
    cookie: String,
    handler: Arc<dyn ControlHandler>,
    config: LinkConfig,
    sessions: Mutex<BTreeMap<NodeId, Session>>,
    server: Mutex<Option<ActorRef<NodeServerMessage>>>,
    keeper: Mutex<Option<ActorRef<KeeperMsg>>>,
    calls: Semaphore,
    handled: Arc<Semaphore>,
    last_label: AtomicU64,
    closing: CancellationToken,
}

/// A stream handed to ractor_cluster.
struct Session {
    /// Unique; how ractor_cluster's events name the session.
    label: String,
    /// Cancelled to end the stream.
    cut: CancellationToken,
    /// Cancelled once ractor_cluster has forgotten the session.
    gone: CancellationToken,
    /// Set while the session is ready.
    actor: Option<ActorRef<NodeSessionMessage>>,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("node", &self.0.node).finish_non_exhaustive()
    }
}

/// Name of a node's control actor, as its peers see it, up to the run.
fn actor_prefix(node: &NodeId) -> String {
    format!("control/{node}/")
}

impl Control {
    /// Starts the control part of a node that has a cluster.
    ///
    /// # Errors
    /// [`SpawnFailed`], for instance because this node and incarnation runs in this process already.
    pub async fn start(
        node: NodeId,
        incarnation: u64,
        cluster: ClusterId,
        handler: Arc<dyn ControlHandler>,
        config: LinkConfig,
    ) -> Result<Self, SpawnFailed> {
        let control = Self(Arc::new(Shared {
            node,
            incarnation,
            // A guard against mis-wiring only: every stream has passed the door.
            cookie: format!("{:032x}", cluster.0),
            handler,
            config,
            sessions: Mutex::default(),
            server: Mutex::default(),
            keeper: Mutex::default(),
            calls: Semaphore::new(CALLS_MAX),
            handled: Arc::new(Semaphore::new(HANDLED_MAX)),
            last_label: AtomicU64::new(0),
            closing: CancellationToken::new(),
        }));
        let (keeper, _) = Actor::spawn(None, Keeper, control.clone()).await?;
        *lock(&control.0.keeper) = Some(keeper);
        Ok(control)
    }

    /// This node.
    #[must_use]
    pub fn node(&self) -> &NodeId {
        &self.0.node
    }

    /// Whether [`stop`](Self::stop) has been called.
    pub(crate) fn is_stopped(&self) -> bool {
        self.0.closing.is_cancelled()
    }

    /// The peers with a ready session.
    #[must_use]
    pub fn peers(&self) -> Vec<NodeId> {
        let sessions = lock(&self.0.sessions);
        sessions.iter().filter(|(_, session)| session.actor.is_some()).map(|(node, _)| node.clone()).collect()
    }

    /// Calls a peer's [`ControlHandler::admin`].
    ///
    /// # Errors
    /// [`ControlError`], which says whether the call may have been carried out.
    pub async fn call(&self, node: &NodeId, payload: Bytes, within: Duration) -> Result<Bytes, ControlError> {
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(ControlError::TooLarge(payload.len()));
        }
        let _permit = self.0.calls.try_acquire().map_err(|_| ControlError::Busy)?;
        let peer = self.peer_actor(node).ok_or_else(|| ControlError::NoSession(node.clone()))?;
        let me = self.0.node.as_str().into();
        let payload = payload.to_vec();
        match peer.call(|reply| ControlMessage::Admin(me, payload, reply), Some(within)).await {
            Err(_) => Err(ControlError::NoSession(node.clone())),
            Ok(CallResult::Timeout) => Err(ControlError::TimedOut(node.clone())),
            Ok(CallResult::SenderError) => Err(ControlError::Lost(node.clone())),
            Ok(CallResult::Success(answer)) => match answer.first() {
                Some(&ANSWERED) => Ok(Bytes::from(answer).slice(1..)),
                _ => Err(ControlError::Busy),
            },
        }
    }

    /// Sends the placement table to every peer with a ready session; returns to how many. Loss is
    /// allowed: nodes also ask for the table.
    ///
    /// # Errors
    /// [`ControlError::TooLarge`]; nothing was sent.
    pub fn cast_all(&self, table: &Bytes) -> Result<usize, ControlError> {
        if table.len() > PAYLOAD_BYTES_MAX {
            return Err(ControlError::TooLarge(table.len()));
        }
        let message = || ControlMessage::TableUpdate(self.0.node.as_str().into(), table.to_vec());
        let sent = |node: &NodeId| self.peer_actor(node).is_some_and(|peer| peer.cast(message()).is_ok());
        Ok(self.peers().iter().filter(|node| sent(node)).count())
    }

    /// Ends every session and the actors, children first.
    pub async fn stop(&self) {
        self.0.closing.cancel();
        let sessions: Vec<_> =
            lock(&self.0.sessions).values().map(|s| (s.cut.clone(), s.gone.clone())).collect();
        for (cut, gone) in sessions {
            cut.cancel();
            let _ = timeout(STOP_WITHIN, gone.cancelled()).await;
        }
        let keeper = lock(&self.0.keeper).take();
        if let Some(keeper) = keeper {
            let cell = keeper.get_cell();
            cell.stop_children_and_wait(None, Some(STOP_WITHIN)).await;
            if let Err(error) = cell.stop_and_wait(None, Some(STOP_WITHIN)).await {
                tracing::warn!(%error, "the control part did not stop in time");
            }
        }
        lock(&self.0.server).take();
    }

    /// The peer's control actor, as its session knows it; the newest, should it have been restarted.
    fn peer_actor(&self, node: &NodeId) -> Option<ActorRef<ControlMessage>> {
        let session = lock(&self.0.sessions).get(node)?.actor.clone()?;
        let prefix = actor_prefix(node);
        let found = session
            .get_cell()
            .get_children()
            .into_iter()
            .filter(|child| child.get_name().is_some_and(|name| name.starts_with(&prefix)))
            .max_by_key(|child| child.get_id().pid())?;
        Some(found.into())
    }

    /// Hands a verified stream to ractor_cluster, in place of an earlier one of that peer, and returns
    /// when the session on it has ended.
    pub(crate) async fn carry(&self, peer: NodeId, io: Io, dialed_by_peer: bool, stop: &CancellationToken) {
        let number = self.0.last_label.fetch_add(1, Ordering::Relaxed);
        let label = format!("{peer}#{number}");
        let (cut, gone, ended) =
            (self.0.closing.child_token(), CancellationToken::new(), CancellationToken::new());
        let session = Session { label: label.clone(), cut: cut.clone(), gone: gone.clone(), actor: None };
        self.replace(&peer, session).await;
        let _cleared = Cleared { control: self, peer: &peer, label: &label };
        let stream = Guarded {
            io,
            label: label.clone(),
            idle: self.0.config.idle_read,
            stalled: self.0.config.stalled_write,
            cut: cut.clone(),
            held: Arc::new(ended.clone().drop_guard()),
        };
        let server = lock(&self.0.server).clone();
        let opened = server.is_some_and(|server| {
            let stream = Box::new(stream);
            server
                .cast(NodeServerMessage::ConnectionOpenedExternal { stream, is_server: dialed_by_peer })
                .is_ok()
        });
        if !opened {
            return;
        }
        tokio::select! {
            () = ended.cancelled() => {}
            () = stop.cancelled() => {
                cut.cancel();
                ended.cancelled().await;
            }
        }
        // Where ractor_cluster's own end of the session fails to be told, the stream's end counts.
        let _ = timeout(STOP_WITHIN, gone.cancelled()).await;
    }

    /// Registers a session once an earlier one of that peer is gone: of two, ractor_cluster keeps either.
    async fn replace(&self, peer: &NodeId, session: Session) {
        loop {
            let before = {
                let mut sessions = lock(&self.0.sessions);
                match sessions.get(peer) {
                    Some(before) if !before.gone.is_cancelled() => (before.cut.clone(), before.gone.clone()),
                    _ => {
                        sessions.insert(peer.clone(), session);
                        return;
                    }
                }
            };
            before.0.cancel();
            if timeout(STOP_WITHIN, before.1.cancelled()).await.is_err() {
                tracing::warn!(node = %peer, "a control session did not end in time and is replaced");
                before.1.cancel();
            }
        }
    }

    fn session_ready(&self, ready: &NodeServerSessionInformation) {
        let Some(peer) =
            self.with_session(&ready.peer_addr, |session| session.actor = Some(ready.actor.clone()))
        else {
            return;
        };
        tracing::info!(node = %peer, "control session is up");
        self.0.handler.up(peer.clone());
        if let Some(actor) = self.peer_actor(&peer) {
            let info = self.0.handler.info();
            if info.len() <= PAYLOAD_BYTES_MAX {
                let _ = actor.cast(ControlMessage::Hello(self.0.node.as_str().into(), info.to_vec()));
            }
        }
    }

    fn session_gone(&self, gone: &NodeServerSessionInformation) {
        let was_ready = |session: &mut Session| {
            session.gone.cancel();
            session.actor.take().is_some()
        };
        let mut was_up = false;
        let peer = self.with_session(&gone.peer_addr, |session| was_up = was_ready(session));
        if let (Some(peer), true) = (peer, was_up) {
            tracing::info!(node = %peer, "control session is down");
            self.0.handler.down(peer);
        }
    }

    fn with_session(&self, label: &str, change: impl FnOnce(&mut Session)) -> Option<NodeId> {
        let mut sessions = lock(&self.0.sessions);
        let (peer, session) = sessions.iter_mut().find(|(_, session)| session.label == label)?;
        change(session);
        Some(peer.clone())
    }
}

/// Forgets a session when its stream is no longer carried.
struct Cleared<'a> {
    control: &'a Control,
    peer: &'a NodeId,
    label: &'a str,
}

impl Drop for Cleared<'_> {
    fn drop(&mut self) {
        let mut sessions = lock(&self.control.0.sessions);
        if sessions.get(self.peer).is_some_and(|session| session.label == self.label) {
            let was_up = sessions.remove(self.peer).is_some_and(|session| {
                session.cut.cancel();
                session.gone.cancel();
                session.actor.is_some()
            });
            drop(sessions);
            if was_up {
                self.control.0.handler.down(self.peer.clone());
            }
        }
    }
}

/// Passes ractor_cluster's session events on; runs inside its server and only takes short locks.
struct Events(Control);

impl NodeEventSubscription for Events {
    fn node_session_opened(&self, _: NodeServerSessionInformation) {}

    fn node_session_authenticated(&self, _: NodeServerSessionInformation) {}

    fn node_session_disconnected(&self, session: NodeServerSessionInformation) {
        self.0.session_gone(&session);
    }

    fn node_session_ready(&self, session: NodeServerSessionInformation) {
        self.0.session_ready(&session);
    }
}

// ----------------------------------------------------------------------------------- supervision

#[derive(RactorMessage)]
enum KeeperMsg {
    /// Start a part that has ended.
    Restart(Part),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Server,
    Actor,
}

/// Supervises the node server and the control actor, and starts either again.
struct Keeper;

struct KeeperState {
    control: Control,
    server: Option<ractor::ActorId>,
    actor: Option<ractor::ActorId>,
}

impl KeeperState {
    async fn start(&mut self, part: Part, me: ActorCell) -> Result<(), SpawnErr> {
        match part {
            Part::Server => self.server = Some(start_server(&self.control, me).await?.get_id()),
            Part::Actor => {
                let name = format!("{}{}", actor_prefix(&self.control.0.node), self.control.0.incarnation);
                let (actor, _) =
                    Actor::spawn_linked(Some(name), ControlActor, self.control.clone(), me).await?;
                self.actor = Some(actor.get_id());
            }
        }
        Ok(())
    }

    /// Asks for a restart after a pause, without holding up the keeper.
    fn restart_later(&self, part: Part, me: ActorRef<KeeperMsg>) {
        let closing = self.control.0.closing.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = closing.cancelled() => {}
                () = tokio::time::sleep(RESTART_AFTER) => {
                    let _ = me.cast(KeeperMsg::Restart(part));
                }
            }
        });
    }
}

async fn start_server(control: &Control, me: ActorCell) -> Result<ActorRef<NodeServerMessage>, SpawnErr> {
    let shared = &control.0;
    // The host name makes the connection string unique, by which a server knows itself.
    let host = format!("{}.{}", shared.node, shared.incarnation);
    let server = NodeServer::new(
        0,
        shared.cookie.clone(),
        shared.node.to_string(),
        host,
        None,
        Some(NodeConnectionMode::Isolated),
    )
    .with_listen_addr(IpAddr::V4(Ipv4Addr::LOCALHOST))
    .with_max_inbound_frame_size(SESSION_FRAME_BYTES_MAX);
    let (server, _) = Actor::spawn_linked(None, server, (), me).await?;
    // The listener would let in, on loopback, whoever knows the cookie. Unlinked first, or the server
    // would open another.
    for listener in server.get_cell().get_children() {
        listener.unlink(server.get_cell());
        let _ = listener.kill_and_wait(Some(STOP_WITHIN)).await;
    }
    let subscription = Box::new(Events(control.clone()));
    server
        .cast(NodeServerMessage::SubscribeToEvents { id: "control".to_owned(), subscription })
        .map_err(|error| SpawnErr::StartupFailed(error.into()))?;
    *lock(&shared.server) = Some(server.clone());
    Ok(server)
}

impl Actor for Keeper {
    type Msg = KeeperMsg;
    type State = KeeperState;
    type Arguments = Control;

    async fn pre_start(
        &self,
        me: ActorRef<KeeperMsg>,
        control: Control,
    ) -> Result<KeeperState, ActorProcessingErr> {
        let mut state = KeeperState { control, server: None, actor: None };
        // The actor first: a session tells its peer which actors there are.
        state.start(Part::Actor, me.get_cell()).await?;
        state.start(Part::Server, me.get_cell()).await?;
        Ok(state)
    }

    async fn handle(
        &self,
        me: ActorRef<KeeperMsg>,
        KeeperMsg::Restart(part): KeeperMsg,
        state: &mut KeeperState,
    ) -> Result<(), ActorProcessingErr> {
        if let Err(error) = state.start(part, me.get_cell()).await {
            tracing::error!(?part, %error, "a part of the control lane cannot be started again");
            state.restart_later(part, me);
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        me: ActorRef<KeeperMsg>,
        event: SupervisionEvent,
        state: &mut KeeperState,
    ) -> Result<(), ActorProcessingErr> {
        let (who, error) = match event {
            SupervisionEvent::ActorTerminated(who, ..) => (who.get_id(), None),
            SupervisionEvent::ActorFailed(who, error) => (who.get_id(), Some(error)),
            _ => return Ok(()),
        };
        let part = if state.server == Some(who) {
            Part::Server
        } else if state.actor == Some(who) {
            Part::Actor
        } else {
            return Ok(());
        };
        if !state.control.0.closing.is_cancelled() {
            tracing::error!(?part, ?error, "a part of the control lane ended and is started again");
            state.restart_later(part, me);
        }
        Ok(())
    }
}

/// The one actor that peers can reach.
struct ControlActor;

impl Actor for ControlActor {
    type Msg = ControlMessage;
    type State = Control;
    type Arguments = Control;

    async fn pre_start(
        &self,
        _: ActorRef<ControlMessage>,
        control: Control,
    ) -> Result<Control, ActorProcessingErr> {
        Ok(control)
    }

    async fn handle(
        &self,
        _: ActorRef<ControlMessage>,
        message: ControlMessage,
        control: &mut Control,
    ) -> Result<(), ActorProcessingErr> {
        let handler = &control.0.handler;
        match message {
            ControlMessage::Hello(from, info) => {
                if let Some(from) = sender(&from) {
                    handler.hello(from, info.into());
                }
            }
            ControlMessage::TableUpdate(from, table) => {
                if let Some(from) = sender(&from) {
                    handler.table(from, table.into());
                }
            }
            ControlMessage::Admin(from, payload, reply) => {
                let permit = control.0.handled.clone().try_acquire_owned();
                let (Some(from), Ok(permit)) = (sender(&from), permit) else {
                    let _ = reply.send(vec![BUSY]);
                    return Ok(());
                };
                let answering = handler.admin(from, payload.into());
                tokio::spawn(async move {
                    let answer = answering.await;
                    let mut tagged = Vec::with_capacity(1 + answer.len());
                    tagged.push(ANSWERED);
                    tagged.extend_from_slice(&answer);
                    // The caller may have given up; a call too large for the session would end it.
                    if answer.len() <= PAYLOAD_BYTES_MAX {
                        let _ = reply.send(tagged);
                    } else {
                        tracing::warn!(bytes = answer.len(), "a control answer is too large and was dropped");
                    }
                    drop(permit);
                });
            }
        }
        Ok(())
    }
}

// --------------------------------------------------------------------------------------- streams

/// A stream with the deadlines that ractor_cluster lacks.
struct Guarded {
    io: Io,
    label: String,
    idle: Duration,
    stalled: Duration,
    cut: CancellationToken,
    /// Dropped with the stream, or with the later of its halves.
    held: Arc<DropGuard>,
}

impl ClusterBidiStream for Guarded {
    fn split(self: Box<Self>) -> (BoxRead, BoxWrite) {
        let (reader, writer) = tokio::io::split(self.io);
        let reader = IdleRead {
            io: reader,
            idle: self.idle,
            deadline: Box::pin(tokio::time::sleep(self.idle)),
            cut: Box::pin(self.cut.clone().cancelled_owned()),
            _held: self.held.clone(),
        };
        let writer = StalledWrite {
            io: writer,
            stalled: self.stalled,
            deadline: None,
            cut: Box::pin(self.cut.cancelled_owned()),
            _held: self.held,
        };
        (Box::new(BufReader::with_capacity(READ_BYTES, reader)), Box::new(writer))
    }

    fn peer_label(&self) -> Option<String> {
        Some(self.label.clone())
    }
}

/// Fails when nothing arrives for `idle`, or when cut.
struct IdleRead {
    io: ReadHalf<Io>,
    idle: Duration,
    deadline: Pin<Box<Sleep>>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    _held: Arc<DropGuard>,
}

impl AsyncRead for IdleRead {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        match Pin::new(&mut this.io).poll_read(cx, buf) {
            Poll::Ready(read) => {
                this.deadline.as_mut().reset(Instant::now() + this.idle);
                Poll::Ready(read)
            }
            Poll::Pending => this.deadline.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into())),
        }
    }
}

/// Fails when a write makes no progress for `stalled`, or when cut.
struct StalledWrite {
    io: WriteHalf<Io>,
    stalled: Duration,
    /// Runs while a write waits.
    deadline: Option<Pin<Box<Sleep>>>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    _held: Arc<DropGuard>,
}

impl StalledWrite {
    fn guard<T>(
        &mut self,
        cx: &mut Context<'_>,
        attempt: impl FnOnce(Pin<&mut WriteHalf<Io>>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if self.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        match attempt(Pin::new(&mut self.io), cx) {
            Poll::Ready(done) => {
                self.deadline = None;
                Poll::Ready(done)
            }
            Poll::Pending => {
                let stalled = self.stalled;
                let deadline = self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(stalled)));
                deadline.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }
}

impl AsyncWrite for StalledWrite {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.guard(cx, |io, cx| io.poll_write(cx, buf))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.guard(cx, AsyncWrite::poll_flush)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.guard(cx, AsyncWrite::poll_shutdown)
    }
}

#[cfg(test)]
mod tests {
    use crate::link::NodeTransport;
    use std::sync::atomic::AtomicUsize;

    use tokio::sync::mpsc;

    use super::*;
    use crate::link::{
        Handlers, MemoryHub, MemoryTransport, Peer, Responder, Service, StreamSink, Transport,
    };

    const MINUTE: Duration = Duration::from_secs(60);

    struct Nobody;
    impl Service for Nobody {
        fn request(&self, _: Peer, _: Bytes, _: Responder) {}
        fn stream(&self, _: Peer, _: Bytes, _: StreamSink) {}
        fn join(&self, _: Peer, payload: Bytes) -> Bytes {
            payload
        }
    }

    #[derive(Debug, PartialEq, Eq)]
    enum Told {
        Hello(NodeId, Bytes),
        Table(NodeId, Bytes),
        Up(NodeId),
        Down(NodeId),
    }

    struct Teller {
        me: NodeId,
        told: mpsc::UnboundedSender<Told>,
    }

    impl ControlHandler for Teller {
        fn info(&self) -> Bytes {
            Bytes::from(format!("info of {}", self.me))
        }
        fn hello(&self, from: NodeId, info: Bytes) {
            let _ = self.told.send(Told::Hello(from, info));
        }
        fn table(&self, from: NodeId, table: Bytes) {
            let _ = self.told.send(Told::Table(from, table));
        }
        fn admin(&self, from: NodeId, payload: Bytes) -> BoxFuture<'static, Bytes> {
            let me = self.me.clone();
            Box::pin(async move {
                if payload == "never" {
                    std::future::pending::<()>().await;
                }
                Bytes::from(format!("{me} to {from}: {}", String::from_utf8_lossy(&payload)))
            })
        }
        fn up(&self, node: NodeId) {
            let _ = self.told.send(Told::Up(node));
        }
        fn down(&self, node: NodeId) {
            let _ = self.told.send(Told::Down(node));
        }
    }

    struct TestNode {
        id: NodeId,
        transport: Arc<MemoryTransport>,
        control: Control,
        told: mpsc::UnboundedReceiver<Told>,
    }

    impl TestNode {
        async fn until(&mut self, wanted: Told) {
            let search = async { while self.told.recv().await.unwrap() != wanted {} };
            timeout(MINUTE, search).await.unwrap_or_else(|_| panic!("{} was never told {wanted:?}", self.id));
        }
    }

    /// Nodes of one process, with names that no other test uses.
    async fn nodes(hub: &MemoryHub, count: usize) -> Vec<TestNode> {
        static TESTS: AtomicUsize = AtomicUsize::new(0);
        let test = TESTS.fetch_add(1, Ordering::Relaxed);
        let ids: Vec<_> = (0..count).map(|n| NodeId::new(&format!("t{test}-n{n}")).unwrap()).collect();
        let mut nodes = Vec::new();
        for id in &ids {
            let handlers = Handlers {
                inbound: Arc::new(|_, _, _| {}),
                events: Arc::new(|_| {}),
                service: Arc::new(Nobody),
            };
            let config = LinkConfig {
                backoff_min: Duration::from_millis(5),
                backoff_max: Duration::from_millis(50),
                ping_every: Duration::from_millis(500),
                ..LinkConfig::default()
            };
            let transport = hub.join(id.clone(), handlers, config.clone()).await.unwrap();
            let (sender, told) = mpsc::unbounded_channel();
            let handler = Arc::new(Teller { me: id.clone(), told: sender });
            let control = Control::start(id.clone(), 1, ClusterId(9), handler, config).await.unwrap();
            transport.serve_control(control.clone());
            transport
                .set_peers(ids.iter().filter(|i| *i != id).map(|i| (i.clone(), String::new())).collect());
            nodes.push(TestNode { id: id.clone(), transport, control, told });
        }
        for n in 0..count {
            for other in ids.iter().filter(|id| **id != ids[n]) {
                // Up and hello come in either order.
                while !nodes[n].control.peers().contains(other) {
                    tokio::task::yield_now().await;
                }
            }
        }
        nodes
    }

    #[tokio::test]
    async fn every_node_calls_every_other_and_tables_reach_all() {
        let mut nodes = nodes(&MemoryHub::new(), 3).await;
        for from in &nodes {
            for to in nodes.iter().filter(|to| to.id != from.id) {
                let answer = from.control.call(&to.id, Bytes::from_static(b"x"), MINUTE).await.unwrap();
                assert_eq!(answer, format!("{} to {}: x", to.id, from.id));
            }
        }
        let first = nodes[0].id.clone();
        assert_eq!(nodes[0].control.cast_all(&Bytes::from_static(b"epoch 7")).unwrap(), 2);
        for node in &mut nodes[1..] {
            node.until(Told::Table(first.clone(), Bytes::from_static(b"epoch 7"))).await;
        }
        for node in &nodes {
            node.control.stop().await;
            node.transport.stop().await;
        }
    }

    #[tokio::test]
    async fn a_new_session_begins_with_both_sides_saying_who_they_are() {
        let hub = MemoryHub::new();
        let mut nodes = nodes(&hub, 2).await;
        let (a, b) = (nodes[0].id.clone(), nodes[1].id.clone());
        for (n, other) in [(0, &b), (1, &a)] {
            nodes[n].until(Told::Hello(other.clone(), Bytes::from(format!("info of {other}")))).await;
        }
        // A break is told, and the session comes back by itself.
        hub.cut(&a, &b);
        nodes[0].until(Told::Down(b.clone())).await;
        nodes[1].until(Told::Down(a.clone())).await;
        let refused = nodes[0].control.call(&b, Bytes::new(), MINUTE).await;
        assert_eq!(refused, Err(ControlError::NoSession(b.clone())));
        hub.heal(&a, &b);
        nodes[0].until(Told::Up(b.clone())).await;
        nodes[0].until(Told::Hello(b.clone(), Bytes::from(format!("info of {b}")))).await;
        assert!(nodes[0].control.call(&b, Bytes::from_static(b"x"), MINUTE).await.is_ok());
    }

    #[tokio::test]
    async fn calls_have_deadlines_limits_and_fail_with_their_session() {
        let hub = MemoryHub::new();
        let nodes = nodes(&hub, 2).await;
        let (a, b) = (&nodes[0].control, nodes[1].id.clone());
        let never = Bytes::from_static(b"never");
        let late = a.call(&b, never.clone(), Duration::from_millis(50)).await;
        assert_eq!(late, Err(ControlError::TimedOut(b.clone())));
        let large = Bytes::from(vec![0; PAYLOAD_BYTES_MAX + 1]);
        assert_eq!(a.call(&b, large, MINUTE).await, Err(ControlError::TooLarge(PAYLOAD_BYTES_MAX + 1)));
        let limit = Bytes::from(vec![b'x'; PAYLOAD_BYTES_MAX - 64]);
        assert!(a.call(&b, limit, MINUTE).await.is_ok());
        let nobody = NodeId::new("nobody").unwrap();
        assert_eq!(a.call(&nobody, Bytes::new(), MINUTE).await, Err(ControlError::NoSession(nobody)));
        let waiting = tokio::spawn({
            let (a, b) = (a.clone(), b.clone());
            async move { a.call(&b, never, MINUTE).await }
        });
        // The call has been handed on once a later one is answered.
        tokio::task::yield_now().await;
        assert!(a.call(&b, Bytes::from_static(b"x"), MINUTE).await.is_ok());
        hub.cut(&nodes[0].id, &b);
        assert_eq!(waiting.await.unwrap(), Err(ControlError::Lost(b)));
    }

    #[tokio::test]
    async fn a_failed_control_actor_is_started_again_and_found_again() {
        let nodes = nodes(&MemoryHub::new(), 2).await;
        let (a, b) = (&nodes[0].control, &nodes[1]);
        // What a message that cannot be decoded does to the actor.
        // The name registry is of no use here: a remote actor of that name takes it along when it ends.
        let keeper = lock(&b.control.0.keeper).clone().unwrap();
        let prefix = actor_prefix(&b.id);
        let named = |child: &ActorCell| child.get_name().is_some_and(|name| name.starts_with(&prefix));
        let before = keeper.get_cell().get_children().into_iter().find(named).unwrap();
        before.kill_and_wait(Some(MINUTE)).await.unwrap();
        let answered = async {
            loop {
                let within = Duration::from_millis(200);
                if a.call(&b.id, Bytes::from_static(b"x"), within).await.is_ok() {
                    break;
                }
                tokio::task::yield_now().await;
            }
        };
        timeout(MINUTE, answered).await.expect("it answers again");
    }

    #[tokio::test]
    async fn no_listener_of_ractor_cluster_is_left() {
        let nodes = nodes(&MemoryHub::new(), 2).await;
        for node in &nodes {
            let server = lock(&node.control.0.server).clone().unwrap();
            // Sessions are its only children.
            let sessions = ractor::call_t!(server, NodeServerMessage::GetSessions, 60_000).unwrap();
            let children = server.get_cell().get_children();
            assert_eq!(sessions.len(), 1);
            assert!(
                children.iter().all(|child| sessions.values().any(|s| s.actor.get_id() == child.get_id()))
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_frozen_stream_ends_at_its_deadlines() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (near, _far) = tokio::io::duplex(64);
        let ended = CancellationToken::new();
        let guarded = Guarded {
            io: Box::new(near),
            label: "x".to_owned(),
            idle: Duration::from_secs(11),
            stalled: Duration::from_secs(8),
            cut: CancellationToken::new(),
            held: Arc::new(ended.clone().drop_guard()),
        };
        let (mut reader, mut writer) = Box::new(guarded).split();
        let start = Instant::now();
        assert_eq!(writer.write_all(&[0; 100]).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(start.elapsed().as_secs(), 8);
        assert_eq!(reader.read_u8().await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(start.elapsed().as_secs(), 11);
        drop(reader);
        assert!(!ended.is_cancelled());
        drop(writer);
        ended.cancelled().await;
    }
}
