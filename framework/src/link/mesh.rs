//! The mesh: every link of one node, dialed and accepted.
//!
//! Owns which links exist, who redials them and when, and what the node is told about its peers. Never
//! touches sockets or TLS: a [`Connector`] brings streams, so that TCP and memory run the same code. In:
//! peers and addresses, admitted streams, frames to send; out: frames, events, requests for the service.
//!
//! Supervision (ractor): one overseer, one link actor per (peer, lane). A link actor's only message runs
//! its dial loop until it is told to stop; a panic in it ends that actor and the overseer starts another.
//!
//! Events of a peer come from its raft lane alone, so that a peer is up or down once, not three times.
//! When that link breaks and the very next dials are refused, the peer's process has ended: `Gone` goes
//! out at once, without waiting for any time-out.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use perennial_core::id::NodeId;
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent};
use ractor_cluster::RactorMessage;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::calls::{Answer, ItemStream, LinkError, Requests, Served, Service};
use super::config::LinkConfig;
use super::control::Control;
use super::dial::DialError;
use super::frame::{FRAME_BYTES_MAX, FrameError, Kind};
use super::guard::{Closed, ClosedCounts};
use super::hello::DoorLane;
use super::lock;
use super::peer::{Close, Io, Link, Refused};
use super::tls::Peer;
use super::transport::{Handlers, Lane, LinkEvent, Unsent};

/// Failed dials in a row after which a refusal is told: nodes that start together refuse each other until
/// each of them has heard of the cluster.
const REPORT_AFTER_FAILURES: u32 = 6;

/// Pauses before the dials that tell a dead process from a broken connection. A process that is being
/// killed may close its connections before its listening socket, hence more than one.
const QUICK_REDIALS: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(1), Duration::from_millis(4), Duration::from_millis(15)];
/// A quick redial that takes longer says nothing about the process.
const QUICK_REDIAL_WITHIN: Duration = Duration::from_millis(300);
/// A link that ended sooner than this was of no use: its redial waits its turn.
const USEFUL_LINK: Duration = Duration::from_millis(200);
/// How long stopping waits for link actors beyond the linger of their links.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// Brings an admitted stream to a peer's lane.
pub(crate) trait Connector: Send + Sync + 'static {
    /// One attempt.
    fn connect<'a>(
        &'a self,
        to: &'a NodeId,
        address: &'a str,
        lane: DoorLane,
    ) -> BoxFuture<'a, Result<Io, DialError>>;
}

/// A peer we dial.
///
/// Invariant: `slots[lane]` holds a link exactly while its link actor runs it.
struct PeerLinks {
    node: NodeId,
    address: watch::Sender<String>,
    slots: [RwLock<Option<Outgoing>>; 3],
    presence: Mutex<Presence>,
    /// Mirror of `presence == Up`, readable while an event is being told.
    up: AtomicBool,
    stop: CancellationToken,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Presence {
    Unseen,
    Up,
    Down,
    Gone,
}

#[derive(Clone)]
struct Outgoing {
    link: Arc<Link>,
    requests: Arc<Requests>,
}

impl PeerLinks {
    fn outgoing(&self, lane: Lane) -> Option<Outgoing> {
        self.slots[lane as usize].read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_outgoing(&self, lane: Lane, outgoing: Option<Outgoing>) {
        *self.slots[lane as usize].write().unwrap_or_else(PoisonError::into_inner) = outgoing;
    }
}

/// All links of one node.
pub(crate) struct Mesh {
    config: LinkConfig,
    handlers: Handlers,
    connector: Box<dyn Connector>,
    peers: RwLock<BTreeMap<NodeId, Arc<PeerLinks>>>,
    /// Links that peers have dialed: at most one per (peer, lane), or order would be lost.
    accepted: Mutex<HashMap<(NodeId, Lane), Arc<Link>>>,
    control: watch::Sender<Option<Control>>,
    closed: ClosedCounts,
    /// Bytes of clients' requests in flight, see [`LinkConfig::client_request_bytes_max`].
    client_bytes: Arc<AtomicUsize>,
    overseer: OnceLock<ActorRef<OverseerMsg>>,
    closing: CancellationToken,
    tasks: TaskTracker,
    /// Where its tasks run, whoever starts them.
    runtime: Handle,
}

impl Mesh {
    pub(crate) async fn start(
        config: LinkConfig,
        handlers: Handlers,
        connector: Box<dyn Connector>,
    ) -> Result<Arc<Self>, SpawnFailed> {
        let mesh = Arc::new(Self {
            config,
            handlers,
            connector,
            peers: RwLock::default(),
            accepted: Mutex::default(),
            control: watch::Sender::new(None),
            closed: ClosedCounts::default(),
            client_bytes: Arc::default(),
            overseer: OnceLock::new(),
            closing: CancellationToken::new(),
            tasks: TaskTracker::new(),
            runtime: Handle::current(),
        });
        let (overseer, _) = Actor::spawn(None, Overseer, mesh.clone()).await?;
        mesh.overseer.set(overseer).expect("the overseer is set once");
        Ok(mesh)
    }

    pub(crate) fn config(&self) -> &LinkConfig {
        &self.config
    }

    pub(crate) fn service(&self) -> &Arc<dyn Service> {
        &self.handlers.service
    }

    /// What was turned away and closed.
    pub(crate) fn closed(&self) -> &ClosedCounts {
        &self.closed
    }

    /// Counts a link that this side closed.
    fn note_close(&self, close: Close, whose: &dyn std::fmt::Display) {
        if let Some(reason) = Closed::of_close(close) {
            match close {
                Close::Garbage(error) => self.closed.note(reason, whose, &error),
                _ => self.closed.note(reason, whose, &reason.label()),
            }
        }
    }

    /// Set once the node stops: links hand over what is queued and close.
    pub(crate) fn closing(&self) -> &CancellationToken {
        &self.closing
    }

    /// Runs a task that `stop` waits for.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn_on(task, &self.runtime);
    }

    pub(crate) fn set_control(&self, control: Control) {
        self.control.send_replace(Some(control));
    }

    pub(crate) fn has_control(&self) -> bool {
        self.control.borrow().is_some()
    }

    /// Begins to close; does not wait.
    pub(crate) fn close(&self) {
        self.closing.cancel();
        self.tasks.close();
        if let Some(overseer) = self.overseer.get() {
            overseer.stop(None);
        }
    }

    /// Closes every link in good order: links first, then their actors, then the overseer.
    pub(crate) async fn stop(&self) {
        self.closing.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        if let Some(overseer) = self.overseer.get() {
            let cell = overseer.get_cell();
            cell.stop_children_and_wait(None, Some(self.config.linger + STOP_WITHIN)).await;
            if let Err(error) = cell.stop_and_wait(None, Some(STOP_WITHIN)).await {
                tracing::warn!(%error, "the overseer of the links did not stop in time");
            }
        }
    }

    fn peer(&self, node: &NodeId) -> Option<Arc<PeerLinks>> {
        self.peers.read().unwrap_or_else(PoisonError::into_inner).get(node).cloned()
    }

    fn outgoing(&self, node: &NodeId, lane: Lane) -> Option<Outgoing> {
        self.peers.read().unwrap_or_else(PoisonError::into_inner).get(node)?.outgoing(lane)
    }

    pub(crate) fn send(&self, to: &NodeId, lane: Lane, frame: Bytes) -> Result<(), Unsent> {
        if frame.len() > FRAME_BYTES_MAX {
            return Err(Unsent::TooLarge(frame));
        }
        let Some(outgoing) = self.outgoing(to, lane) else {
            return Err(Unsent::NoLink(frame));
        };
        outgoing.link.outbox.push(Kind::Data, 0, &frame).map_err(|refused| match refused {
            Refused::Full => Unsent::Full(frame),
            Refused::Closed => Unsent::NoLink(frame),
        })
    }

    pub(crate) fn request(&self, to: &NodeId, payload: &Bytes, within: Duration) -> Answer {
        match self.outgoing(to, Lane::Calls) {
            Some(outgoing) => outgoing.requests.request(payload, within),
            None => Answer::failed(LinkError::NoLink),
        }
    }

    pub(crate) fn request_stream(&self, to: &NodeId, payload: &Bytes) -> Result<ItemStream, LinkError> {
        self.outgoing(to, Lane::Calls).ok_or(LinkError::NoLink)?.requests.stream(payload)
    }

    pub(crate) fn is_up(&self, node: &NodeId) -> bool {
        self.peer(node).is_some_and(|peer| peer.up.load(Ordering::Acquire))
    }

    pub(crate) fn set_peers(&self, wanted: Vec<(NodeId, String)>) {
        let wanted: BTreeMap<_, _> = wanted.into_iter().collect();
        let mut peers = self.peers.write().unwrap_or_else(PoisonError::into_inner);
        peers.retain(|node, peer| {
            let keep = wanted.contains_key(node);
            if !keep {
                peer.stop.cancel();
            }
            keep
        });
        for (node, address) in wanted {
            if let Some(peer) = peers.get(&node) {
                peer.address.send_if_modified(|known| {
                    let changed = *known != address;
                    *known = address;
                    changed
                });
                continue;
            }
            let peer = Arc::new(PeerLinks {
                node: node.clone(),
                address: watch::Sender::new(address),
                slots: Default::default(),
                presence: Mutex::new(Presence::Unseen),
                up: AtomicBool::new(false),
                stop: self.closing.child_token(),
            });
            peers.insert(node, peer.clone());
            // A message per new peer: the mailbox is as bounded as the list of members.
            if let Some(overseer) = self.overseer.get()
                && let Err(error) = overseer.cast(OverseerMsg::Link(peer))
            {
                tracing::warn!(%error, "a peer was named after the links were closed");
            }
        }
    }

    /// Records and tells a change of a peer's presence, if it is one.
    fn note(&self, peer: &PeerLinks, now: Presence) {
        let mut presence = lock(&peer.presence);
        let event = match (*presence, now) {
            (before, Presence::Up) if before != Presence::Up => LinkEvent::Up(peer.node.clone()),
            (Presence::Up, Presence::Down) => LinkEvent::Down(peer.node.clone()),
            (Presence::Up | Presence::Down, Presence::Gone) => LinkEvent::Gone(peer.node.clone()),
            _ => return,
        };
        *presence = now;
        peer.up.store(now == Presence::Up, Ordering::Release);
        // Told under the lock, so that events of one peer keep their order.
        tracing::info!(?event, "link");
        (self.handlers.events)(event);
    }

    /// Runs an admitted connection that the other side dialed, until it ends.
    pub(crate) async fn accept(self: Arc<Self>, io: Io, peer: Peer, lane: DoorLane) {
        match (lane.transport(), &peer, lane) {
            (Some(lane), Peer::Node(node), _) => self.accept_lane(io, node.clone(), lane).await,
            (None, Peer::Node(node), DoorLane::Control) => {
                let control = self.control.borrow().clone();
                if let Some(control) = control {
                    control.carry(node.clone(), io, true, &self.closing).await;
                }
            }
            (None, _, DoorLane::Client) => {
                let link = Link::new(&self.config);
                let bytes = Some(self.client_bytes.clone());
                let served =
                    Served::new(link.clone(), self.service().clone(), peer.clone(), bytes, &self.config);
                let close = self.run(&link, io, &mut |frame| served.on_frame(frame)).await;
                self.note_close(close, &peer);
                tracing::debug!(?close, "a client link ended");
            }
            _ => tracing::warn!(%peer, %lane, "a connection was admitted to a lane it has no place on"),
        }
    }

    async fn accept_lane(&self, io: Io, node: NodeId, lane: Lane) {
        let link = Link::new(&self.config);
        let key = (node.clone(), lane);
        let before = lock(&self.accepted).insert(key.clone(), link.clone());
        if let Some(before) = before {
            // The peer has dialed anew: nothing of the old connection may come after the new one.
            before.cut().await;
        }
        let served = (lane == Lane::Calls).then(|| {
            let from = Peer::Node(node.clone());
            Served::new(link.clone(), self.service().clone(), from, None, &self.config)
        });
        let mut on_frame = |frame: super::frame::Frame| match (frame.kind, &served) {
            (Kind::Data, _) => {
                (self.handlers.inbound)(node.clone(), lane, frame.body);
                Ok(())
            }
            (_, Some(served)) => served.on_frame(frame),
            (kind, None) => Err(FrameError::unexpected(kind)),
        };
        let close = self.run(&link, io, &mut on_frame).await;
        self.note_close(close, &format_args!("node {node}, lane {lane}"));
        let mut accepted = lock(&self.accepted);
        if accepted.get(&key).is_some_and(|current| Arc::ptr_eq(current, &link)) {
            accepted.remove(&key);
        }
    }

    /// Hands over what is queued and ends a link, within the time a link may linger.
    async fn finish(&self, link: &Link, running: impl Future<Output = Close>) -> Close {
        link.outbox.close();
        timeout(self.config.linger * 2, running).await.unwrap_or(Close::Local)
    }

    /// Runs a link until it ends by itself or the mesh closes, then in good order.
    async fn run(&self, link: &Arc<Link>, io: Io, on_frame: super::peer::OnFrame<'_>) -> Close {
        let mut running = std::pin::pin!(link.run(io, &self.config, on_frame));
        tokio::select! {
            biased;
            close = &mut running => close,
            () = self.closing.cancelled() => self.finish(link, running).await,
        }
    }
}

/// The actors that keep links cannot be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start the actors that keep links: {0}")]
pub struct SpawnFailed(#[from] SpawnErr);

/// Runs a link on which this side asks, until it ends; then nothing is left waiting.
pub(crate) async fn run_asking(
    link: &Arc<Link>,
    requests: &Arc<Requests>,
    io: Io,
    config: &LinkConfig,
) -> Close {
    struct FailAll<'a>(&'a Requests);
    impl Drop for FailAll<'_> {
        fn drop(&mut self) {
            self.0.fail_all();
        }
    }
    let _fail_all = FailAll(requests);
    let mut on_frame = |frame| requests.on_frame(frame);
    tokio::select! {
        biased;
        close = link.run(io, config, &mut on_frame) => close,
        () = requests.sweep() => unreachable!("the sweep runs as long as the link"),
    }
}

// ----------------------------------------------------------------------------------- supervision

#[derive(RactorMessage)]
enum OverseerMsg {
    /// A new peer: start its link actors.
    Link(Arc<PeerLinks>),
}

/// Starts link actors and starts those again that panicked.
struct Overseer;

struct OverseerState {
    mesh: Arc<Mesh>,
    children: HashMap<ractor::ActorId, (Arc<PeerLinks>, DoorLane)>,
}

impl OverseerState {
    async fn start(&mut self, me: ActorCell, peer: Arc<PeerLinks>, lane: DoorLane, again: bool) {
        let dialer = Dialer {
            mesh: self.mesh.clone(),
            peer: peer.clone(),
            lane,
            failures: u32::from(again),
            reported: None,
        };
        match Actor::spawn_linked(None, LinkActor, dialer, me).await {
            Ok((actor, _)) => {
                self.children.insert(actor.get_id(), (peer, lane));
            }
            Err(error) => tracing::error!(node = %peer.node, %lane, %error, "a link actor cannot be started"),
        }
    }
}

impl Actor for Overseer {
    type Msg = OverseerMsg;
    type State = OverseerState;
    type Arguments = Arc<Mesh>;

    async fn pre_start(
        &self,
        _: ActorRef<OverseerMsg>,
        mesh: Arc<Mesh>,
    ) -> Result<OverseerState, ActorProcessingErr> {
        Ok(OverseerState { mesh, children: HashMap::new() })
    }

    async fn handle(
        &self,
        me: ActorRef<OverseerMsg>,
        OverseerMsg::Link(peer): OverseerMsg,
        state: &mut OverseerState,
    ) -> Result<(), ActorProcessingErr> {
        for lane in Lane::ALL.map(DoorLane::from).into_iter().chain([DoorLane::Control]) {
            state.start(me.get_cell(), peer.clone(), lane, false).await;
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        me: ActorRef<OverseerMsg>,
        event: SupervisionEvent,
        state: &mut OverseerState,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorTerminated(who, ..) => {
                state.children.remove(&who.get_id());
            }
            SupervisionEvent::ActorFailed(who, error) => {
                if let Some((peer, lane)) = state.children.remove(&who.get_id()) {
                    tracing::error!(node = %peer.node, %lane, %error, "a link actor failed and is started again");
                    if !peer.stop.is_cancelled() {
                        if lane == DoorLane::Raft {
                            state.mesh.note(&peer, Presence::Down);
                        }
                        state.start(me.get_cell(), peer, lane, true).await;
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// The one message of a link actor: dial, carry, redial, until told to stop.
#[derive(RactorMessage)]
struct Run;

/// Owns one lane to one peer.
struct LinkActor;

impl Actor for LinkActor {
    type Msg = Run;
    type State = Dialer;
    type Arguments = Dialer;

    async fn pre_start(&self, me: ActorRef<Run>, dialer: Dialer) -> Result<Dialer, ActorProcessingErr> {
        me.cast(Run)?;
        Ok(dialer)
    }

    async fn handle(
        &self,
        me: ActorRef<Run>,
        Run: Run,
        dialer: &mut Dialer,
    ) -> Result<(), ActorProcessingErr> {
        let stop = dialer.peer.stop.clone();
        match dialer.lane.transport() {
            Some(lane) => dialer.keep_lane(lane, &stop).await,
            None => dialer.keep_control(&stop).await,
        }
        me.stop(None);
        Ok(())
    }
}

struct Dialer {
    mesh: Arc<Mesh>,
    peer: Arc<PeerLinks>,
    lane: DoorLane,
    /// Dials since the last useful link.
    failures: u32,
    /// The last reason written to the log as a warning; forgotten once linked.
    reported: Option<String>,
}

impl Dialer {
    /// Whether this lane tells the peer's events.
    fn is_witness(&self) -> bool {
        self.lane == DoorLane::Raft
    }

    async fn connect(&self) -> Result<Io, DialError> {
        let address = self.peer.address.borrow().clone();
        self.mesh.connector.connect(&self.peer.node, &address, self.lane).await
    }

    /// Keeps a lane linked until `stop`.
    async fn keep_lane(&mut self, lane: Lane, stop: &CancellationToken) {
        let mut next = None;
        loop {
            let io = match next.take() {
                Some(io) => io,
                None => match self.dial_until_linked(stop).await {
                    Some(io) => io,
                    None => return,
                },
            };
            let began = Instant::now();
            let close = self.carry(io, lane, stop).await;
            tracing::debug!(node = %self.peer.node, %lane, ?close, "a link ended");
            if stop.is_cancelled() {
                return;
            }
            self.failures = if began.elapsed() < USEFUL_LINK { self.failures + 1 } else { 0 };
            if matches!(close, Close::Broken(_)) && self.failures < 2 {
                next = tokio::select! {
                    () = stop.cancelled() => return,
                    io = self.redial_quickly() => io,
                };
            } else if self.is_witness() {
                self.mesh.note(&self.peer, Presence::Down);
            }
        }
    }

    /// Runs a link to its end. The slot is filled before the peer is told to be up, and empty after.
    async fn carry(&self, io: Io, lane: Lane, stop: &CancellationToken) -> Close {
        struct Slot<'a>(&'a PeerLinks, Lane);
        impl Drop for Slot<'_> {
            fn drop(&mut self) {
                self.0.set_outgoing(self.1, None);
            }
        }
        let config = &self.mesh.config;
        let link = Link::new(config);
        let requests = Requests::new(link.clone(), config);
        self.peer.set_outgoing(lane, Some(Outgoing { link: link.clone(), requests: requests.clone() }));
        let _slot = Slot(&self.peer, lane);
        if self.is_witness() {
            self.mesh.note(&self.peer, Presence::Up);
        }
        let mut running = std::pin::pin!(run_asking(&link, &requests, io, config));
        tokio::select! {
            biased;
            close = &mut running => close,
            () = stop.cancelled() => self.mesh.finish(&link, running).await,
        }
    }

    /// Tells a dead process from a broken connection, and the node about it.
    async fn redial_quickly(&self) -> Option<Io> {
        let mut found = None;
        let mut presence = Presence::Down;
        for pause in QUICK_REDIALS {
            if !pause.is_zero() {
                sleep(pause).await;
            }
            match timeout(QUICK_REDIAL_WITHIN, self.connect()).await {
                Ok(Ok(io)) => found = Some(io),
                Ok(Err(DialError::Refused(_))) => presence = Presence::Gone,
                // Reset while greeting: perhaps the process is just ending. Look again.
                Ok(Err(DialError::Failed { .. })) => continue,
                Ok(Err(_)) | Err(_) => {}
            }
            break;
        }
        if self.is_witness() {
            self.mesh.note(&self.peer, presence);
        }
        found
    }

    /// Dials with growing, jittered pauses; `None` when told to stop. A new address is tried at once.
    async fn dial_until_linked(&mut self, stop: &CancellationToken) -> Option<Io> {
        let mut address = self.peer.address.subscribe();
        loop {
            tokio::select! {
                () = stop.cancelled() => return None,
                () = sleep(self.pause()) => {}
                _ = address.changed() => {}
            }
            let connected = tokio::select! {
                () = stop.cancelled() => return None,
                connected = self.connect() => connected,
            };
            let error = match connected {
                Ok(io) => {
                    self.reported = None;
                    return Some(io);
                }
                Err(error) => error,
            };
            self.report(&error);
            if self.is_witness() && matches!(error, DialError::Refused(_)) {
                self.mesh.note(&self.peer, Presence::Gone);
            }
            self.failures = self.failures.saturating_add(1);
        }
    }

    /// An operator reads each reason once, not at every dial, and only if it does not pass by itself.
    fn report(&mut self, error: &DialError) {
        let text = error.to_string();
        let stays = self.failures >= REPORT_AFTER_FAILURES;
        if stays
            && self.is_witness()
            && matches!(error, DialError::TurnedAway { .. } | DialError::OtherNode { .. })
        {
            if self.reported.as_ref() != Some(&text) {
                tracing::warn!(node = %self.peer.node, %error, "a node cannot be linked to");
                self.reported = Some(text);
            }
        } else {
            tracing::debug!(node = %self.peer.node, lane = %self.lane, %error, "a dial failed");
        }
    }

    fn pause(&self) -> Duration {
        let config = &self.mesh.config;
        let Some(doublings) = self.failures.checked_sub(1) else {
            return Duration::ZERO;
        };
        let full = config.backoff_min.saturating_mul(1 << doublings.min(16)).min(config.backoff_max);
        full.mul_f64(rand::random_range(0.5..1.0))
    }

    /// Keeps the control session up, once there is a control part; the smaller node id dials.
    async fn keep_control(&mut self, stop: &CancellationToken) {
        let mut control = self.mesh.control.subscribe();
        let control = tokio::select! {
            () = stop.cancelled() => return,
            found = control.wait_for(Option::is_some) => match found.ok().and_then(|found| found.clone()) {
                Some(control) => control,
                None => return,
            },
        };
        if *control.node() > self.peer.node {
            return;
        }
        while let Some(io) = self.dial_until_linked(stop).await {
            let began = Instant::now();
            control.carry(self.peer.node.clone(), io, false, stop).await;
            if stop.is_cancelled() || control.is_stopped() {
                return;
            }
            self.failures = if began.elapsed() < USEFUL_LINK { self.failures + 1 } else { 1 };
        }
    }
}
