//! An application under test in one process, on a log that commits at once.
//!
//! Owns that log, in memory, and one host for each partition; turns, messages, reminders and events are the
//! real ones. Never fails by itself: for that there is [`TestCluster`](super::TestCluster).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use perennial_core::hash::PartitionCount;
use perennial_core::id::{ClusterId, GroupId, LogIndex, MemberId, NodeId, Term};
use perennial_core::membership::MemberSpec;
use perennial_core::partition::Partition;
use perennial_core::placement::{ClusterMeta, form};
use perennial_core::replication::{Proposal, StateMachine};

use super::holds_messages;
use crate::app::App;
use crate::call::{Actors, Caller};
use crate::clock::{Clock, WallClock};
use crate::dead::DeadLetters;
use crate::host::memory::ACTORS_BYTES_DEFAULT;
use crate::host::workers::Workers;
use crate::host::{self, HostCounters, HostMessage, HostShared, Hosts, Log, Opening};
use crate::replica::{MemoryRows, RowStore};
use crate::router::{Router, RouterCaller};

/// Partitions of a test application.
const PARTITIONS: u32 = 4;
/// The only epoch there is.
const EPOCH: Term = Term(1);

/// An application under test: one node in this process, without sockets or files. Stops when dropped.
pub struct TestApp {
    router: Arc<Router>,
    hosts: Arc<Hosts>,
    rows: Arc<dyn RowStore>,
    #[cfg(test)]
    log: Arc<InstantLog>,
    supervisor: ractor::ActorRef<Quiet>,
    counters: Arc<HostCounters>,
}

impl TestApp {
    /// Starts it.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub async fn new(app: App) -> Self {
        Self::with_memory(app, ACTORS_BYTES_DEFAULT).await
    }

    /// Starts it as a node whose actors may take so many bytes of memory; with few, they leave it all the time
    /// and come back from what is stored.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub async fn with_memory(app: App, actors_bytes: u64) -> Self {
        Self::start(app, Arc::new(MemoryRows::default()), actors_bytes).await
    }

    /// The same on rows that may be there already; for benchmarks. What partitions know beside their rows,
    /// such as answers of calls, begins anew.
    #[doc(hidden)]
    pub async fn on(app: App, rows: Arc<dyn RowStore>) -> Self {
        Self::start(app, rows, ACTORS_BYTES_DEFAULT).await
    }

    pub(crate) async fn start(app: App, rows: Arc<dyn RowStore>, actors_bytes: u64) -> Self {
        let partitions = PartitionCount::try_from(PARTITIONS).expect("a power of two");
        let node = NodeId::new("test").expect("a valid node id");
        let spec = MemberSpec::new(node.clone(), "test:1");
        let state =
            form(ClusterMeta::new(ClusterId(1), partitions, 1), vec![spec]).expect("one node is enough");
        let hosts = Arc::new(Hosts::default());
        let router = Router::new(hosts.clone());
        router.set_me(MemberId(1));
        router.update(state);
        let log = Arc::new(InstantLog {
            machines: partitions
                .iter()
                .map(|p| (GroupId::of(p), Mutex::new((LogIndex(0), Partition::new(partitions)))))
                .collect(),
            rows: rows.clone(),
            hosts: hosts.clone(),
            held: Mutex::default(),
        });
        let clock =
            Clock::Tokio { start: tokio::time::Instant::now(), at: WallClock::new(Clock::System.now().0) };
        router.set_workers(Workers::new(node.clone(), app.kinds(), clock.clone()));
        let counters = Arc::new(HostCounters::within(actors_bytes));
        let caller = RouterCaller(router.clone());
        let shared = HostShared {
            node,
            kinds: app.kinds().clone(),
            rows: rows.clone(),
            log: log.clone(),
            caller: Arc::new(caller.clone()),
            courier: Arc::new(caller),
            clock,
            counters: counters.clone(),
            builds: Arc::new(host::builds::OneBuild),
        };
        let (supervisor, _) =
            ractor::Actor::spawn(None, Supervisor, ()).await.expect("an actor can be spawned");
        for partition in partitions.iter() {
            let meta = Partition::new(partitions);
            let opening =
                Opening { partition, epoch: EPOCH, meta, applied: LogIndex(0), shared: shared.clone() };
            let host = host::start(opening, supervisor.get_cell()).await.expect("a host can be spawned");
            hosts.open(host);
            router.leader(partition, EPOCH, Some(MemberId(1)));
        }
        Self {
            router,
            hosts,
            rows,
            #[cfg(test)]
            log,
            supervisor,
            counters,
        }
    }

    /// Actors in memory.
    #[must_use]
    pub fn resident(&self) -> u64 {
        self.hosts.resident()
    }

    /// Memory that they take, in bytes, by estimate.
    #[must_use]
    pub fn resident_bytes(&self) -> u64 {
        self.counters.memory.used()
    }

    /// How often an actor came into memory so far.
    #[must_use]
    pub fn activations(&self) -> u64 {
        self.counters.memory.made()
    }

    /// Moves the paused clock on; reminders that come due meanwhile fire.
    pub async fn advance(&self, by: Duration) {
        tokio::time::sleep(by).await;
        self.settle().await;
    }

    /// Messages and reminders that could not be applied.
    #[must_use]
    pub fn dead_letters(&self) -> DeadLetters {
        let partitions = PartitionCount::try_from(PARTITIONS).expect("a power of two");
        DeadLetters::new(self.caller(), partitions)
    }

    /// Has the log commit so many proposals more and keep those behind them waiting.
    #[cfg(test)]
    pub(crate) fn hold_log_after(&self, proposals: usize) {
        *self.log.held() = Some((proposals, Vec::new()));
    }

    /// Has the log commit what waits, and go on.
    #[cfg(test)]
    pub(crate) fn release_log(&self) {
        let held = self.log.held().take();
        held.into_iter().flat_map(|(_, waiting)| waiting).for_each(|proposal| self.log.commit(proposal));
    }

    /// Its router.
    #[cfg(test)]
    pub(crate) fn router(&self) -> &Arc<Router> {
        &self.router
    }

    /// The applied rows of its partitions.
    #[cfg(test)]
    pub(crate) fn rows(&self) -> Vec<crate::replica::Row> {
        let partitions = PartitionCount::try_from(PARTITIONS).expect("a power of two");
        let rows = |partition| self.rows.scan(GroupId::of(partition), &[], None, usize::MAX);
        partitions.iter().flat_map(|partition| rows(partition).expect("rows in memory can be read")).collect()
    }

    /// Waits until messages between actors that are on their way have arrived.
    pub async fn settle(&self) {
        let partitions = PartitionCount::try_from(PARTITIONS).expect("a power of two");
        while partitions.iter().any(|partition| holds_messages(&*self.rows, partition)) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

impl Actors for TestApp {
    fn caller(&self) -> Arc<dyn Caller> {
        Arc::new(RouterCaller(self.router.clone()))
    }
}

impl Drop for TestApp {
    fn drop(&mut self) {
        self.hosts.close_all();
        self.supervisor.kill();
    }
}

/// A log that commits at once.
struct InstantLog {
    machines: BTreeMap<GroupId, Mutex<(LogIndex, Partition)>>,
    rows: Arc<dyn RowStore>,
    hosts: Arc<Hosts>,
    /// How many more it commits, and what waits behind those.
    held: Mutex<Option<(usize, Vec<Proposal>)>>,
}

impl InstantLog {
    fn held(&self) -> MutexGuard<'_, Option<(usize, Vec<Proposal>)>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn commit(&self, proposal: Proposal) {
        let (Some(machine), Some(partition)) =
            (self.machines.get(&proposal.group), proposal.group.partition())
        else {
            return;
        };
        let mut machine = machine.lock().unwrap_or_else(PoisonError::into_inner);
        let (index, machine) = &mut *machine;
        index.0 += 1;
        let mut ops = Vec::new();
        machine.apply(proposal.epoch, *index, &proposal.data, &mut ops);
        if let Err(error) = self.rows.write(vec![(proposal.group, ops)]) {
            tracing::error!(%error, "rows in memory cannot be written");
            return;
        }
        let applied = HostMessage::Applied { index: *index, next_seq: machine.next_seq(proposal.epoch) };
        self.hosts.tell(partition, EPOCH, applied);
    }
}

impl Log for InstantLog {
    fn propose(&self, proposal: Proposal) {
        match &mut *self.held() {
            Some((0, waiting)) => return waiting.push(proposal),
            Some((more, _)) => *more -= 1,
            None => {}
        }
        self.commit(proposal);
    }

    fn read_index(&self, group: GroupId, epoch: Term, ctx: u64) {
        if let Some(partition) = group.partition() {
            self.hosts.tell(partition, epoch, HostMessage::ReadConfirmed { ctx });
        }
    }
}

struct Supervisor;

/// The supervisor takes no messages.
struct Quiet;
impl ractor::Message for Quiet {}

impl ractor::Actor for Supervisor {
    type Msg = Quiet;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ractor::ActorRef<Quiet>, (): ()) -> Result<(), ractor::ActorProcessingErr> {
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ractor::ActorRef<Quiet>,
        event: ractor::SupervisionEvent,
        (): &mut (),
    ) -> Result<(), ractor::ActorProcessingErr> {
        if let ractor::SupervisionEvent::ActorFailed(_, error) = event {
            panic!("a partition host failed: {error}");
        }
        Ok(())
    }
}
