//! A node on a simulated machine.
//!
//! Owns what such a node is made of instead of sockets, folders, threads and clocks: everything else is the
//! code of a real node. Forming is left out: the cluster is given. So is the control lane.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use perennial_core::id::{GroupId, LogIndex, MemberId, NodeId, PartitionId, RecordSeq, Term};
use perennial_core::membership::MemberSpec;
use perennial_core::placement::ClusterState;
use perennial_core::replication::{GroupStatus, Proposal, RestoreError, RowOp, StateMachine};
use perennial_core::time::Millis;
use tokio::time::Instant;

use super::identity::{Folder, Identity};
use super::{Ground, Node, ReplicaLog, Replicas, StartError, Unstarted, service};
use crate::app::App;
use crate::clock::{Clock, WallClock};
use crate::host::Log;
use crate::link::{LinkConfig, MemoryHub, lock};
use crate::replica::{
    Disk, GroupEvent, GroupSink, MachineFactory, Outbound, Pace, Replica, ReplicaConfig, ReplicaFault,
    ReplicaHandle, RowStore,
};

/// Sees what happens to the groups of a node, as its replica does it.
pub trait Witness: Send + Sync {
    /// An entry with records or commands is applied.
    fn applied(&self, group: GroupId, term: Term, index: LogIndex, entry: &[u8]);
    /// The node is told of something.
    fn event(&self, group: GroupId, event: &GroupEvent);
}

/// What a simulated node runs on.
#[derive(Clone)]
pub struct Machine {
    /// The node's name.
    pub node: NodeId,
    /// The cluster in its first state; the node is a member.
    pub cluster: ClusterState,
    /// The network.
    pub hub: MemoryHub,
    /// Settings of the links.
    pub link: LinkConfig,
    /// The disk.
    pub disk: Disk,
    /// How long work on the disk takes.
    pub pace: Pace,
    /// How long what a host proposes takes to its replica: longer than no time where hosts run on threads that
    /// stand still, or behind handlers that take long.
    pub host_pace: Pace,
    /// How long what the replica tells takes to its hosts; in order, whatever it is. As above.
    pub news_pace: Pace,
    /// The time of day.
    pub clock: WallClock,
    /// Seed of the election jitter.
    pub seed: u64,
    /// Memory that its actors may take, in bytes.
    pub actors_bytes: u64,
    /// Who looks on.
    pub witness: Option<Arc<dyn Witness>>,
    /// A mistake planted on purpose.
    #[cfg(feature = "controls")]
    pub mistake: Option<super::Mistake>,
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine").field("node", &self.node).finish_non_exhaustive()
    }
}

impl Machine {
    /// Starts the replica as tasks of the current runtime.
    pub(super) fn open(
        &self,
        me: MemberId,
        machines: MachineFactory,
        outbound: Arc<dyn Outbound>,
        sink: Arc<dyn GroupSink>,
    ) -> Result<ReplicaHandle, ReplicaFault> {
        let mut config = ReplicaConfig::new(me, self.seed, None);
        shrink(&mut config);
        let sink: Arc<dyn GroupSink> =
            Arc::new(LateSink { sink, pace: self.news_pace.clone(), late: Arc::default() });
        #[cfg(feature = "controls")]
        let (machines, sink) = {
            use super::controls::{Mistake, SpoiledMachine, SpoiledSink, unfence};
            unfence(&mut config, self.mistake);
            let late = self.mistake == Some(Mistake::OutOfOrder);
            let spoiled = move |group: GroupId| -> Box<dyn StateMachine> {
                let machine = machines(group);
                if late { Box::new(SpoiledMachine::new(machine)) } else { machine }
            };
            let sink: Arc<dyn GroupSink> = Arc::new(SpoiledSink(self.mistake, sink));
            (Box::new(spoiled) as MachineFactory, sink)
        };
        let stores = self.disk.open(&config)?;
        let Some(witness) = self.witness.clone() else {
            return Replica::spawn_tasks(config, stores, self.pace.clone(), machines, outbound, sink);
        };
        let sink = Arc::new(WatchedSink(witness.clone(), sink));
        let machines = Box::new(move |group| -> Box<dyn StateMachine> {
            Box::new(WatchedMachine { group, witness: witness.clone(), machine: machines(group) })
        });
        Replica::spawn_tasks(config, stores, self.pace.clone(), machines, outbound, sink)
    }

    /// The way of a host to its replica, which takes as long as the machine says.
    pub(super) fn late(&self, log: ReplicaLog) -> Arc<dyn Log> {
        Arc::new(LateLog { log: Arc::new(log), pace: self.host_pace.clone() })
    }
}

/// A proposal on this way arrives whatever becomes of its host meanwhile.
struct LateLog {
    log: Arc<ReplicaLog>,
    pace: Pace,
}

impl Log for LateLog {
    fn propose(&self, proposal: Proposal) {
        let time = (self.pace)();
        if time.is_zero() {
            return self.log.propose(proposal);
        }
        let log = self.log.clone();
        tokio::spawn(async move {
            tokio::time::sleep(time).await;
            log.propose(proposal);
        });
    }

    fn read_index(&self, group: GroupId, epoch: Term, ctx: u64) {
        self.log.read_index(group, epoch, ctx);
    }
}

/// What is on its way to the hosts, and when it is there.
type Late = VecDeque<(Instant, GroupId, GroupEvent)>;

/// What the replica tells arrives in its order.
struct LateSink {
    sink: Arc<dyn GroupSink>,
    pace: Pace,
    /// A task sees to it unless it is empty.
    late: Arc<Mutex<Late>>,
}

impl GroupSink for LateSink {
    fn event(&self, group: GroupId, event: GroupEvent) {
        let time = (self.pace)();
        let mut late = lock(&self.late);
        if time.is_zero() && late.is_empty() {
            drop(late);
            return self.sink.event(group, event);
        }
        let idle = late.is_empty();
        late.push_back((Instant::now() + time, group, event));
        if idle {
            tokio::spawn(arrive(self.sink.clone(), self.late.clone()));
        }
    }
    fn failed(&self, fault: ReplicaFault) {
        self.sink.failed(fault);
    }
}

/// Tells what is late, until nothing is.
async fn arrive(sink: Arc<dyn GroupSink>, late: Arc<Mutex<Late>>) {
    loop {
        let Some((at, group, event)) = lock(&late).front().cloned() else { return };
        tokio::time::sleep_until(at).await;
        sink.event(group, event);
        lock(&late).pop_front();
    }
}

impl Node {
    /// Starts a node on a simulated machine, as tasks of the current runtime. It ends with
    /// [`stop`](Self::stop), or with the runtime, as a killed process does.
    ///
    /// # Errors
    /// [`StartError`]; nothing is left running.
    ///
    /// # Panics
    /// When the node is no member of its cluster.
    pub async fn start_on(machine: Machine, app: App) -> Result<Self, StartError> {
        let failed = |why: String| StartError::Data { path: machine.node.as_str().into(), why };
        let member = machine.cluster.members.by_node(&machine.node).expect("the node is a member");
        let ground = Ground {
            app,
            spec: MemberSpec::new(machine.node.clone(), member.address.clone()),
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            folder: Folder::none(),
            identity: Identity {
                node: machine.node.clone(),
                promise: None,
                formed: Some(machine.cluster.clone()),
            },
            clock: Clock::Tokio { start: tokio::time::Instant::now(), at: machine.clock.clone() },
            replicas: Replicas::Machine(Box::new(machine.clone())),
            actors_bytes: machine.actors_bytes,
        };
        let unstarted = Unstarted::new(ground);
        let joined = machine.hub.join(machine.node.clone(), unstarted.handlers(), machine.link.clone()).await;
        let inner = unstarted.start(joined.map_err(|error| failed(error.to_string()))?);
        let node = Self { inner: inner.clone() };
        if let Err(why) = inner.bring_up().await {
            node.stop(Duration::ZERO).await;
            return Err(failed(why));
        }
        let announcing = inner.clone();
        inner.spawn(async move { service::announce(&announcing).await });
        Ok(node)
    }
}

/// What a test cluster asks of its nodes.
impl Node {
    /// What its replica knows of each of its groups; nothing before it is open.
    pub async fn groups(&self) -> Vec<GroupStatus> {
        match self.inner.replica().cloned() {
            Some(replica) => replica.status().await,
            None => Vec::new(),
        }
    }

    /// The epoch in which it leads a partition, once calls can be served.
    pub(crate) fn leads(&self, partition: PartitionId) -> Option<Term> {
        self.inner.hosts.get(partition).map(|host| host.epoch)
    }

    /// Actors that came into memory here so far.
    #[must_use]
    pub fn activations(&self) -> u64 {
        self.inner.counters.memory.made()
    }

    /// Whether it has links to another node.
    pub(crate) fn is_linked(&self, node: &NodeId) -> bool {
        self.inner.transport.get().is_some_and(|transport| transport.is_up(node))
    }

    /// The build that another node runs, as far as this one knows.
    pub(crate) fn build_of(&self, node: &NodeId) -> Option<u64> {
        let routes = self.inner.router.routes();
        routes.as_ref()?.state().members.by_node(node).map(|member| member.build)
    }

    /// What is applied here.
    pub(crate) fn rows(&self) -> Option<Arc<dyn RowStore>> {
        self.inner.replica().map(ReplicaHandle::rows)
    }

    /// Its time of day.
    pub(crate) fn now(&self) -> Millis {
        self.inner.clock.now()
    }

    /// Batches proposed here so far; while no node's number grows, nothing is done.
    pub(crate) fn batches(&self) -> u64 {
        self.inner.counters.batches.load(Ordering::Relaxed)
    }

    /// Has reminders looked at after the clock was set, which a node notices by itself within a minute.
    pub(crate) fn clock_set(&self) {
        self.inner.hosts.clock_set();
    }
}

/// Small files and frequent checkpoints, so that logs are cut and snapshots are sent in seconds.
fn shrink(config: &mut ReplicaConfig) {
    config.checkpoint_every = Duration::from_millis(1500);
    config.checkpoint_bytes = 64 * 1024;
    config.log_file_bytes = 32 * 1024;
    config.log_purge_bytes = 64 * 1024;
    config.driver.log_keep_bytes = 4 * 1024;
    config.driver.log_tail_bytes_max = 16 * 1024;
}

struct WatchedSink(Arc<dyn Witness>, Arc<dyn GroupSink>);

impl GroupSink for WatchedSink {
    fn event(&self, group: GroupId, event: GroupEvent) {
        self.0.event(group, &event);
        self.1.event(group, event);
    }
    fn failed(&self, fault: ReplicaFault) {
        self.1.failed(fault);
    }
}

struct WatchedMachine {
    group: GroupId,
    witness: Arc<dyn Witness>,
    machine: Box<dyn StateMachine>,
}

impl StateMachine for WatchedMachine {
    fn apply(&mut self, term: Term, index: LogIndex, entry: &[u8], rows: &mut Vec<RowOp>) {
        self.witness.applied(self.group, term, index, entry);
        self.machine.apply(term, index, entry, rows);
    }
    fn checkpoint(&self) -> Vec<u8> {
        self.machine.checkpoint()
    }
    fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        self.machine.restore(bytes)
    }
    fn installed(&mut self) {
        self.machine.installed();
    }
    fn next_seq(&self, epoch: Term) -> RecordSeq {
        self.machine.next_seq(epoch)
    }
}
