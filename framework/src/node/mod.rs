//! A node: one process's share of a cluster.
//!
//! Owns the parts and their order of start and stop: data folder, port, forming, replica, hosts,
//! router, control lane. Each part is in a module of its own; here they are only wired.

mod builds;
#[cfg(feature = "controls")]
mod controls;
mod discovery;
mod formation;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
pub(crate) mod health;
mod hosting;
mod identity;
mod metrics;
mod moved;
mod service;
mod simulated;
mod status;
mod system;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use bytes::Bytes;
use perennial_core::hash::PartitionCount;
use perennial_core::id::{MemberId, NodeId, PartitionId, Term};
use perennial_core::membership::MemberSpec;
use perennial_core::partition::Partition;
use perennial_core::placement::{ClusterState, SystemCommand};
use perennial_core::replication::{Proposal, StateMachine};
use prometheus_client::registry::Registry;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::discovery::Discovery;
use self::formation::{Formation, Plan};
use self::health::Health;
use self::identity::{Folder, Identity};
use self::moved::Moved;
use self::system::{SystemLeader, SystemMachine};
use crate::actor::BoxFuture;
use crate::app::App;
use crate::call::{ActorId, Actors, Answered, Caller, EventStream, EventsFrom, Outbound};
use crate::clock::Clock;
use crate::dead::DeadLetters;
use crate::error::Fault;
use crate::host::stale::{STALE_READS_MAX, StaleReads};
use crate::host::workers::Workers;
use crate::host::{HostCounters, Hosts};
use crate::link::tls::{self, Tls};
use crate::link::{ClusterTransport, Control, Handlers, ItemStream, LinkConfig, LinkError, NodeTransport};
use crate::options::Pool;
use crate::protocol::{Question, Response};
use crate::replica::{
    GroupConfig, MachineFactory, Refusal, Replica, ReplicaConfig, ReplicaFault, ReplicaHandle,
};
use crate::router::{Network, Router, RouterCaller};
use crate::status::{ClusterStatus, ReminderPage, ReminderQuery};

#[cfg(feature = "controls")]
pub use self::controls::Mistake;
pub use self::discovery::{Source, SourceError};
pub use self::simulated::{Machine, Witness};

/// How long a node waits for the answer of another one to a question about the cluster.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// How many nodes form a cluster where there are addresses to join and nobody said how many.
const EXPECTED_DEFAULT: usize = 3;

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
    /// Where to find the cluster, each as a [`Source`] is written; its own address may be among them.
    pub join: Vec<String>,
    /// The name server for sources in DNS; those of the system when `None`.
    pub dns_server: Option<SocketAddr>,
    /// Forms a new cluster once this many nodes have found each other. `None`: 1 without anything to join, 3
    /// with fixed addresses; with a source whose addresses may change, a node without a cluster needs a number.
    pub bootstrap_expect: Option<usize>,
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
    /// Memory that its actors may take, in bytes, by estimate; those used longest ago leave it.
    pub actors_bytes: u64,
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
    /// Everything for which calls cannot be served from here.
    fn not_ready(&self) -> Vec<String> {
        self.ready().err().into_iter().collect()
    }
    /// What is left to be done at a start, before the node can be ready for the first time: finding its cluster,
    /// opening its data.
    fn not_started(&self) -> Vec<String> {
        Vec::new()
    }
    /// Why the process should be started anew. What others can cause is no such reason.
    fn not_live(&self) -> Vec<String> {
        Vec::new()
    }
    /// Messages and reminders that could not be applied; `None` while there is no cluster.
    fn dead_letters(&self) -> Option<DeadLetters> {
        None
    }
    /// Reminders that are set, earliest first.
    fn reminders(&self, query: ReminderQuery) -> BoxFuture<'static, Result<ReminderPage, Fault>>;
    /// Cancels an actor's reminder; tells whether it was set, once that is committed.
    fn cancel_reminder(&self, actor: ActorId, name: String) -> BoxFuture<'static, Result<bool, Fault>>;
    /// The node's metrics; a gateway adds its own.
    fn metrics(&self) -> Arc<Mutex<Registry>>;
}

/// A running node. Cheap to clone; stops when told to.
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

struct Inner {
    app: App,
    node: NodeId,
    address: SocketAddr,
    folder: Arc<Folder>,
    router: Arc<Router>,
    hosts: Arc<Hosts>,
    formation: Arc<Formation>,
    transport: OnceLock<Arc<dyn NodeTransport>>,
    replica: OnceLock<ReplicaHandle>,
    control: OnceLock<Control>,
    system: SystemLeader,
    /// The member that leads the system partition, as last heard.
    system_leader: watch::Sender<Option<MemberId>>,
    /// The newest cluster state known here.
    current: watch::Sender<Option<ClusterState>>,
    names: RwLock<BTreeMap<MemberId, NodeId>>,
    moved: Moved,
    health: Health,
    lifecycle: mpsc::UnboundedSender<hosting::Lifecycle>,
    counters: Arc<HostCounters>,
    registry: Arc<Mutex<Registry>>,
    failed: watch::Sender<Option<String>>,
    stopping: CancellationToken,
    tasks: TaskTracker,
    runtime: tokio::runtime::Handle,
    clock: Clock,
    replicas: Replicas,
}

/// How a node's replica is started.
enum Replicas {
    /// On threads, in the data folder.
    Folder,
    /// As tasks, on a simulated machine.
    Machine(Box<Machine>),
}

/// What a node is before it has links.
struct Ground {
    app: App,
    spec: MemberSpec,
    address: SocketAddr,
    folder: Folder,
    identity: Identity,
    clock: Clock,
    replicas: Replicas,
    actors_bytes: u64,
}

/// What waits for its task until the links are there.
struct Unstarted {
    inner: Arc<Inner>,
    lifecycles: mpsc::UnboundedReceiver<hosting::Lifecycle>,
    admissions: mpsc::Receiver<MemberSpec>,
}

impl Unstarted {
    fn new(ground: Ground) -> Self {
        let Ground { app, mut spec, address, folder, identity, clock, replicas, actors_bytes } = ground;
        spec.build = app.build();
        let (lifecycle, lifecycles) = mpsc::unbounded_channel();
        let (admit, admissions) = mpsc::channel(16);
        let current = watch::Sender::new(identity.formed.clone());
        let hosts = Arc::new(Hosts::default());
        let (node, folder) = (spec.node.clone(), Arc::new(folder));
        let formation = Formation::new(spec, folder.clone(), identity, current.subscribe(), admit);
        let inner = Arc::new(Inner {
            health: Health::new(&app),
            app,
            node,
            address,
            folder,
            router: Router::new(hosts.clone()),
            hosts,
            formation,
            transport: OnceLock::new(),
            replica: OnceLock::new(),
            control: OnceLock::new(),
            system: SystemLeader::default(),
            system_leader: watch::Sender::new(None),
            current,
            names: RwLock::default(),
            moved: Moved::default(),
            lifecycle,
            counters: Arc::new(HostCounters::within(actors_bytes)),
            registry: Arc::default(),
            failed: watch::Sender::new(None),
            stopping: CancellationToken::new(),
            tasks: TaskTracker::new(),
            runtime: tokio::runtime::Handle::current(),
            clock,
            replicas,
        });
        Self { inner, lifecycles, admissions }
    }

    /// Where the links deliver.
    fn handlers(&self) -> Handlers {
        Handlers {
            inbound: service::inbound(&self.inner),
            events: service::link_events(&self.inner),
            service: Arc::new(service::NodeService::new(&self.inner)),
        }
    }

    /// Starts the parts that live as long as the node.
    fn start(self, transport: Arc<dyn NodeTransport>) -> Arc<Inner> {
        let Self { inner, lifecycles, admissions } = self;
        let _ = inner.transport.set(transport.clone());
        inner.router.set_network(Arc::new(MeshNetwork(transport)));
        let workers = Workers::new(inner.node.clone(), inner.app.kinds(), inner.clock.clone());
        inner.router.set_workers(workers);
        metrics::register(&inner);
        health::start(&inner);
        inner.spawn(hosting::run(inner.clone(), lifecycles));
        inner.spawn(service::admit(inner.clone(), admissions));
        inner.spawn(service::follow_state(inner.clone()));
        inner
    }
}

impl Node {
    /// Starts a node: opens its data, its port and its links, and finds or forms the cluster in the
    /// background. Returns once the port is open.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running.
    pub async fn start(config: NodeConfig, app: App) -> Result<Self, StartError> {
        tls::install_provider();
        let tls_error = |why: &dyn std::fmt::Display| StartError::Tls { why: why.to_string() };
        let identity = tls::Identity::read(&config.tls.ca, &config.tls.cert, &config.tls.key)
            .map_err(|error| tls_error(&error))?;
        let tls = Tls::new(&identity).map_err(|error| tls_error(&error))?;
        let partitions = PartitionCount::try_from(config.partitions)
            .map_err(|error| StartError::Settings(error.to_string()))?;
        let listener = tokio::net::TcpListener::bind(config.listen)
            .await
            .map_err(|source| StartError::Listen { address: config.listen, source })?;
        let address =
            listener.local_addr().map_err(|source| StartError::Listen { address: config.listen, source })?;
        let spec = spec(&config, address)?;
        let discovery = Discovery::new(&config.join, &spec.address, config.dns_server)
            .map_err(|error| StartError::Settings(error.to_string()))?;
        let folder = Folder::open(&config.data)?;
        let identity = folder.identity(&config.node)?;
        if let Some(formed) = &identity.formed {
            formed
                .meta
                .check()
                .map_err(|error| StartError::Data { path: config.data.clone(), why: error.to_string() })?;
        }
        let plan = Plan {
            expect: expected(&config, &discovery, identity.formed.is_some())?,
            discovery,
            partitions,
            replication: config.replication,
        };
        let (clock, replicas) = (Clock::System, Replicas::Folder);
        let actors_bytes = config.actors_bytes;
        let unstarted =
            Unstarted::new(Ground { app, spec, address, folder, identity, clock, replicas, actors_bytes });
        let link_config = LinkConfig::default();
        let admission = Arc::new(service::Doorkeeper::new(&unstarted.inner));
        let handlers = unstarted.handlers();
        let transport =
            ClusterTransport::start(listener, tls.clone(), admission, handlers, link_config.clone())
                .await
                .map_err(|error| tls_error(&error))?;
        let inner = unstarted.start(transport);
        let node = Self { inner: inner.clone() };
        // What the folder holds is opened here, so that trouble with it is an error of the start.
        if inner.formation.formed.borrow().is_some()
            && let Err(why) = inner.bring_up().await
        {
            node.stop(Duration::ZERO).await;
            return Err(StartError::Data { path: config.data, why });
        }
        inner.spawn(find_cluster(inner.clone(), plan, tls, link_config));
        Ok(node)
    }

    /// The address its port is bound to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.inner.address
    }

    /// Waits until the node is ready to serve calls.
    pub async fn wait_ready(&self) {
        while self.ready().is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What the node waits for, told anew whenever it changes, until it belongs to a cluster.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<String> {
        self.inner.formation.waiting.subscribe()
    }

    /// Gives leaderships away, for at most `within`; calls that still come here are forwarded.
    pub async fn drain(&self, within: Duration) {
        if !within.is_zero() {
            let _ = tokio::time::timeout(within, hosting::give_leaderships_away(&self.inner)).await;
        }
    }

    /// Gives leaderships away, flushes and stops; returns when all of it is done. `grace` bounds the
    /// time for giving leaderships away.
    pub async fn stop(self, grace: Duration) {
        self.drain(grace).await;
        let inner = self.inner;
        inner.stopping.cancel();
        if let Some(control) = inner.control.get() {
            control.stop().await;
        }
        inner.hosts.close_all();
        if let Some(transport) = inner.transport.get() {
            transport.stop().await;
        }
        // A replica that was being opened is open or given up after this.
        inner.tasks.close();
        inner.tasks.wait().await;
        if let Some(replica) = inner.replica.get().cloned() {
            replica.stop().await;
        }
        inner.folder.release();
    }

    /// Resolves when the node had to stop by itself, such as after a failed flush; says why.
    pub async fn failed(&self) -> String {
        let mut failed = self.inner.failed.subscribe();
        match failed.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            Err(_) => std::future::pending().await,
        }
    }
}

/// What this node says about itself, with its address as others can dial it.
fn spec(config: &NodeConfig, address: SocketAddr) -> Result<MemberSpec, StartError> {
    let advertised = match &config.advertise {
        Some(advertised) => advertised.clone(),
        None if address.ip().is_unspecified() => {
            return Err(StartError::Settings(format!(
                "--listen {address} is every address of this machine, which others cannot dial; add --advertise host:port"
            )));
        }
        None => address.to_string(),
    };
    let spec = MemberSpec {
        http: config.http.clone(),
        zone: config.zone.clone(),
        weight: config.weight,
        ..MemberSpec::new(config.node.clone(), advertised)
    };
    spec.validate().map_err(|error| StartError::Settings(error.to_string()))?;
    Ok(spec)
}

/// How many nodes form the cluster.
fn expected(config: &NodeConfig, discovery: &Discovery, formed: bool) -> Result<usize, StartError> {
    match (config.bootstrap_expect, discovery.changing()) {
        (Some(expected), _) => Ok(expected.max(1)),
        (None, Some(source)) if !formed => Err(StartError::Settings(format!(
            "--join {source} may name other nodes tomorrow, so this node cannot tell by it whether all are there: \
             add --bootstrap-expect N, where N is more than half of the nodes that the cluster is formed of"
        ))),
        (None, _) if discovery.sources().is_empty() => Ok(1),
        (None, _) => Ok(EXPECTED_DEFAULT),
    }
}

/// Finds or forms the cluster, opens the node's part of it and tells the members that it is up.
async fn find_cluster(inner: Arc<Inner>, plan: Plan, tls: Tls, config: LinkConfig) {
    let before = inner.replica.get().is_some();
    if let Err(why) = inner.formation.run(&plan, &tls, &config).await {
        return inner.fail(why);
    }
    if !before && let Err(why) = inner.bring_up().await {
        return inner.fail(why);
    }
    let one = inner.clone();
    inner.spawn(async move { one.fail(moved::look_around(&one, &plan, &tls, &config, before).await) });
    service::announce(&inner).await;
}

impl Inner {
    /// Runs a task until the node stops.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stopping = self.stopping.clone();
        let task = async move { stopping.run_until_cancelled(task).await };
        self.tasks.spawn_on(task, &self.runtime);
    }

    fn fail(&self, why: String) {
        if self.stopping.is_cancelled() {
            return; // What breaks off then is no failure.
        }
        tracing::error!(node = %self.node, why, "the node has to stop");
        self.failed.send_replace(Some(why));
    }

    /// The log of a partition led here.
    fn log(&self, replica: &ReplicaHandle, partition: PartitionId, epoch: Term) -> Arc<dyn crate::host::Log> {
        let log = ReplicaLog(replica.clone());
        let Replicas::Machine(machine) = &self.replicas else { return Arc::new(log) };
        let log = machine.late(log);
        #[cfg(feature = "controls")]
        return controls::spoil(log, machine.mistake, &self.hosts, partition, epoch);
        #[cfg(not(feature = "controls"))]
        {
            let _ = (partition, epoch);
            log
        }
    }

    fn replica(&self) -> Option<&ReplicaHandle> {
        self.replica.get()
    }

    fn node_of(&self, member: MemberId) -> Option<NodeId> {
        self.names.read().unwrap_or_else(PoisonError::into_inner).get(&member).cloned()
    }

    fn member_of(&self, node: &NodeId) -> Option<MemberId> {
        let names = self.names.read().unwrap_or_else(PoisonError::into_inner);
        names.iter().find(|(_, name)| *name == node).map(|(member, _)| *member)
    }

    /// Whether the members of the cluster are known here.
    fn knows_members(&self) -> bool {
        !self.names.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Opens the groups that the table gives this node, and the control lane.
    async fn bring_up(self: &Arc<Self>) -> Result<(), String> {
        let Some(formed) = self.formation.formed.borrow().clone() else {
            return Err("there is no cluster yet".into());
        };
        let me = formed.members.by_node(&self.node).map(|m| m.id).ok_or("this node is not a member")?;
        self.router.set_me(me);
        service::take_state(self, formed.clone());
        let (partitions, published, first) = (formed.meta.partitions, self.current.clone(), formed.clone());
        let machines = Box::new(move |group: perennial_core::id::GroupId| -> Box<dyn StateMachine> {
            match group.partition() {
                Some(_) => Box::new(Partition::new(partitions)),
                None => Box::new(SystemMachine::new(first.clone(), published.clone())),
            }
        });
        let replica = self.open_replica(me, machines).await.map_err(|e| chain(&e))?;
        self.router.set_stale(StaleReads {
            node: self.node.clone(),
            kinds: self.app.kinds().clone(),
            replica: replica.clone(),
            clock: self.clock.clone(),
            counters: self.counters.clone(),
            running: Semaphore::new(STALE_READS_MAX),
        });
        let groups = formed
            .groups_of(me)
            .map(|(group, replicas)| GroupConfig {
                group,
                voters: replicas.to_vec(),
                preferred: replicas.to_vec(),
            })
            .collect();
        replica.open_groups(groups).await.map_err(|e| chain(&e))?;
        if let Some(state) = &*self.current.borrow() {
            builds::keep_from_older(self, state);
        }
        match self.replicas {
            Replicas::Folder => service::open_control(self, &formed).await,
            // The hub has no place for it; the table comes with the system partition's log.
            Replicas::Machine(_) => Ok(()),
        }
    }

    /// Opens and keeps the replica in one piece, so that a stop in between finds it.
    async fn open_replica(
        self: &Arc<Self>,
        me: MemberId,
        machines: MachineFactory,
    ) -> Result<ReplicaHandle, ReplicaFault> {
        let outbound = Arc::new(service::RaftOutbound::new(self));
        let sink = Arc::new(hosting::Sink::new(self));
        if let Replicas::Machine(machine) = &self.replicas {
            let replica = machine.open(me, machines, outbound, sink)?;
            return Ok(self.replica.get_or_init(|| replica).clone());
        }
        let config = ReplicaConfig::new(me, rand::random(), Some(self.folder.path("")));
        let keep = self.clone();
        let opening = move || {
            let replica = Replica::spawn(config, machines, outbound, sink)?;
            Ok(keep.replica.get_or_init(|| replica).clone())
        };
        let opened = self.tasks.spawn_blocking_on(opening, &self.runtime).await;
        opened.unwrap_or_else(|panic| Err(ReplicaFault::Panicked(panic.to_string())))
    }

    /// Asks the leader of the system partition to carry out a command, wherever it is.
    async fn command(&self, command: SystemCommand) -> bool {
        let SystemCommand::MemberUp(spec) = &command else { return false };
        if self.system.is_open()
            && let Some(replica) = self.replica()
        {
            let applied = self.system.propose(&ReplicaLog(replica.clone()), command.clone());
            return match applied {
                Some(applied) => applied.await.is_ok(),
                None => false,
            };
        }
        let leader = *self.system_leader.borrow();
        let voters = self.current.borrow().as_ref().map(|state| state.voters.clone()).unwrap_or_default();
        for member in leader.into_iter().chain(voters) {
            let Some(node) = self.node_of(member).filter(|node| *node != self.node) else { continue };
            let question = Question::MemberUp(spec.clone());
            if let Ok(Response::Done) = self.router.ask(&node, &question, ASK_TIMEOUT).await {
                return true;
            }
        }
        false
    }
}

/// An error with its causes, without those that only repeat the next one as code.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        source = cause.source();
        let told = cause.to_string();
        if !source.is_some_and(|next| told.contains(&format!("{next:?}"))) {
            text.push_str(": ");
            text.push_str(&told);
        }
    }
    text
}

/// Pause before something is offered again to the replica's full queue.
const QUEUE_PAUSE: Duration = Duration::from_millis(5);

/// The log as hosts use it. What the replica's queue has no room for is offered again: a host has one
/// batch and one round under way at a time, so nothing can overtake it.
struct ReplicaLog(ReplicaHandle);

impl crate::host::Log for ReplicaLog {
    fn propose(&self, proposal: Proposal) {
        let Err(mut unproposed) = self.0.propose(proposal) else { return };
        let replica = self.0.clone();
        tokio::spawn(async move {
            while unproposed.reason == Refusal::Full {
                tokio::time::sleep(QUEUE_PAUSE).await;
                match replica.propose(unproposed.proposal) {
                    Ok(()) => return,
                    Err(again) => unproposed = again,
                }
            }
        });
    }

    fn read_index(&self, group: perennial_core::id::GroupId, epoch: perennial_core::id::Term, ctx: u64) {
        if self.0.read_index(group, epoch, ctx) != Err(Refusal::Full) {
            return;
        }
        let replica = self.0.clone();
        tokio::spawn(async move {
            tokio::time::sleep(QUEUE_PAUSE).await;
            while replica.read_index(group, epoch, ctx) == Err(Refusal::Full) {
                tokio::time::sleep(QUEUE_PAUSE).await;
            }
        });
    }
}

/// The mesh as the router uses it.
struct MeshNetwork(Arc<dyn NodeTransport>);

impl Network for MeshNetwork {
    fn ask(
        &self,
        node: &NodeId,
        payload: Bytes,
        within: Duration,
    ) -> BoxFuture<'static, Result<Bytes, LinkError>> {
        Box::pin(self.0.request(node, payload, within))
    }
    fn follow(&self, node: &NodeId, payload: Bytes) -> BoxFuture<'static, Result<ItemStream, LinkError>> {
        let stream = self.0.request_stream(node, payload);
        Box::pin(async move { stream })
    }
    fn is_up(&self, node: &NodeId) -> bool {
        self.0.is_up(node)
    }
}

impl Caller for Node {
    fn call(&self, call: Outbound) -> BoxFuture<'static, Answered> {
        RouterCaller(self.inner.router.clone()).call(call)
    }
    fn call_worker(&self, call: Outbound, pool: Pool) -> BoxFuture<'static, Answered> {
        RouterCaller(self.inner.router.clone()).call_worker(call, pool)
    }
    fn subscribe(&self, actor: ActorId, from: EventsFrom) -> EventStream {
        RouterCaller(self.inner.router.clone()).subscribe(actor, from)
    }
}

impl Actors for Node {
    fn caller(&self) -> Arc<dyn Caller> {
        Arc::new(self.clone())
    }
}

impl Backend for Node {
    fn app(&self) -> &App {
        &self.inner.app
    }
    fn node(&self) -> &NodeId {
        &self.inner.node
    }
    fn status(&self) -> BoxFuture<'static, ClusterStatus> {
        let inner = self.inner.clone();
        Box::pin(async move { status::cluster(&inner).await })
    }
    fn ready(&self) -> Result<(), String> {
        status::ready(&self.inner)
    }
    fn not_ready(&self) -> Vec<String> {
        status::not_ready(&self.inner)
    }
    fn not_started(&self) -> Vec<String> {
        health::not_started(&self.inner)
    }
    fn not_live(&self) -> Vec<String> {
        health::not_live(&self.inner)
    }
    fn dead_letters(&self) -> Option<DeadLetters> {
        let partitions = self.inner.router.routes().as_ref()?.state().meta.partitions;
        Some(DeadLetters::new(self.caller(), partitions))
    }
    fn reminders(&self, query: ReminderQuery) -> BoxFuture<'static, Result<ReminderPage, Fault>> {
        let router = self.inner.router.clone();
        Box::pin(async move { router.reminders(query).await })
    }
    fn cancel_reminder(&self, actor: ActorId, name: String) -> BoxFuture<'static, Result<bool, Fault>> {
        let router = self.inner.router.clone();
        Box::pin(async move { router.cancel_reminder(actor, name).await })
    }
    fn metrics(&self) -> Arc<Mutex<Registry>> {
        self.inner.registry.clone()
    }
}
