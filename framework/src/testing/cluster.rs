//! Several real nodes in one process, and what a test can do to them.
//!
//! Owns the machines of a cluster: a thread for each node's process, a disk that loses what was not flushed
//! when its power is cut, a clock that can be set, and the network between them. Everything above these is
//! the code of a real node, in real time. Breaks nothing by itself.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use perennial_core::hash::{PartitionCount, partition_of};
use perennial_core::id::{ClusterId, NodeId, PartitionId, Term};
use perennial_core::membership::MemberSpec;
use perennial_core::partition::rows;
use perennial_core::placement::{ClusterMeta, ClusterState, form};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;
use tokio::sync::oneshot;

use super::process::{Ended, Life, Process, thread};
use super::{holds, holds_messages};
use crate::actor::{Actor, actor_id};
use crate::app::App;
use crate::call::{Actors, Caller};
use crate::client::Client;
use crate::clock::{Clock, WallClock};
use crate::dead::DeadLetters;
use crate::host::memory::ACTORS_BYTES_DEFAULT;
use crate::link::{LinkConfig, MemoryHub};
use crate::node::{Backend, Machine, Node};
use crate::replica::Disk;

/// Nodes unless told otherwise, and replicas of each partition if there are as many nodes.
const NODES: usize = 3;
/// Most nodes of a cluster.
const NODES_MAX: usize = 9;
/// Partitions unless told otherwise.
const PARTITIONS: u32 = 8;
/// Longest way of a piece of bytes from one node to another, in microseconds.
const NETWORK_MICROS_MAX: u64 = 2000;
/// Longest piece of work on a disk, in microseconds.
const DISK_MICROS_MAX: u64 = 1000;
/// Longest pause between two attempts to link to a node.
const BACKOFF_MAX: Duration = Duration::from_millis(100);
/// How long the kit waits for what should take a second, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it looks meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// How long a node that is drained may take to give its leaderships away.
const DRAIN_WITHIN: Duration = Duration::from_secs(5);
/// How long the end of a test waits for threads.
const DROP_WITHIN: Duration = Duration::from_secs(2);

/// Settings of a [`TestCluster`].
#[derive(Clone)]
#[must_use = "nothing runs until it is started"]
pub struct TestClusterBuilder {
    app: App,
    nodes: usize,
    partitions: u32,
    seed: Option<u64>,
    actors_bytes: u64,
}

impl TestClusterBuilder {
    /// How many nodes, 1 to 9; three unless told otherwise.
    pub fn nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes;
        self
    }

    /// How many partitions, a power of two; eight unless told otherwise.
    pub fn partitions(mut self, partitions: u32) -> Self {
        self.partitions = partitions;
        self
    }

    /// How many bytes of memory the actors of each node may take; those used longest ago leave it. With few,
    /// they leave it all the time and come back from what is stored.
    pub fn memory(mut self, actors_bytes: u64) -> Self {
        self.actors_bytes = actors_bytes;
        self
    }

    /// What chance decides follows from this: delays of network and disks, elections, what a power cut
    /// keeps, [`TestCluster::pick`]. Drawn unless told; a test that fails prints it.
    ///
    /// Threads run side by side and in real time, so a seed makes a failure likely to come back, not certain.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// Starts the nodes and waits until each of them is ready.
    ///
    /// # Panics
    /// When the settings are out of range, when Tokio's time is paused, or when the nodes do not get ready.
    pub async fn start(self) -> TestCluster {
        assert!(
            (1..=NODES_MAX).contains(&self.nodes),
            "a test cluster has 1 to {NODES_MAX} nodes, not {}",
            self.nodes
        );
        let partitions = PartitionCount::try_from(self.partitions)
            .unwrap_or_else(|error| panic!("a test cluster of {} partitions: {error}", self.partitions));
        assert!(
            time_passes(),
            "a test cluster runs in real time: write #[tokio::test] without start_paused, or use a TestApp"
        );
        let seed = self.seed.unwrap_or_else(rand::random);
        let ids: Vec<_> = (1..=self.nodes).map(node_id).collect();
        let build = self.app.build();
        let spec = |id: &NodeId| MemberSpec { build, ..MemberSpec::new(id.clone(), format!("{id}:1")) };
        let specs = ids.iter().map(spec).collect();
        let replication = self.nodes.min(NODES) as u8;
        let state = form(ClusterMeta::new(ClusterId(seed.into()), partitions, replication), specs)
            .expect("these nodes form a cluster");
        let folder = tempfile::Builder::new().prefix("perennial-test-").tempdir();
        let folder = Arc::new(folder.expect("the folder for temporary files can be written to"));
        let delays = Arc::new(Mutex::new(StdRng::seed_from_u64(seed)));
        let drawn = delays.clone();
        let (end_network, ending) = oneshot::channel();
        let (network, ended) = thread("network".into(), async move || drop(ending.await));
        let hub = MemoryHub::with_delay(network, Arc::new(move |_, _| draw(&drawn, NETWORK_MICROS_MAX)));
        let machines = ids.iter().enumerate().map(|(at, id)| {
            let disk = Disk::new(&folder.path().join(id.as_str()), seed.wrapping_add(at as u64));
            let disk = disk.expect("the folder for temporary files can be written to");
            let app = Mutex::new(self.app.clone());
            Slot { id: id.clone(), app, disk, process: Mutex::default(), starts: AtomicU64::new(0) }
        });
        let machines: Vec<_> = machines.collect();
        let link = LinkConfig { backoff_max: BACKOFF_MAX, ..LinkConfig::default() };
        let world = World {
            actors_bytes: self.actors_bytes,
            seed,
            state,
            machines,
            hub,
            link,
            delays,
            picks: Mutex::new(StdRng::seed_from_u64(!seed)),
            cuts: Mutex::default(),
            clients: Mutex::default(),
            ahead_ms: Mutex::default(),
            network: Mutex::new(Some((end_network, ended))),
            folder,
        };
        for node in world.nodes() {
            world.start(node);
        }
        for node in world.nodes() {
            world.until(|| format!("{} is not ready", world.name(node)), || world.ready(node)).await;
        }
        let client = world.connect(&world.nodes()).await;
        TestCluster { world, client }
    }
}

/// A cluster of real nodes under test, in one process: their processes can be killed and paused, the power of
/// their machines cut, the network between them divided and their clocks set. Calls are made as by a client
/// outside, whose retries are those of every client.
///
/// Nodes have numbers from 1, as in their names `n1`, `n2`. What is done to one that does not exist, or that is
/// not in a state for it, panics: the test is wrong then. Everything ends when the cluster is dropped, and a
/// test that fails prints the seed.
///
/// A disk takes what is written and loses what was not flushed when its power is cut; it is made of memory and
/// files in the folder for temporary files. The nodes form no cluster themselves, and no TLS is between them.
pub struct TestCluster {
    world: World,
    client: Client,
}

impl TestCluster {
    /// Starts a cluster of so many nodes and waits until each of them is ready.
    ///
    /// # Panics
    /// As [`TestClusterBuilder::start`].
    pub async fn start(nodes: usize, app: App) -> Self {
        Self::builder(app).nodes(nodes).start().await
    }

    /// A cluster with settings of its own.
    pub fn builder(app: App) -> TestClusterBuilder {
        let actors_bytes = ACTORS_BYTES_DEFAULT;
        TestClusterBuilder { app, nodes: NODES, partitions: PARTITIONS, seed: None, actors_bytes }
    }

    /// Numbers of all nodes, of those that are down too.
    #[must_use]
    pub fn nodes(&self) -> Vec<usize> {
        self.world.nodes()
    }

    /// All nodes but these.
    #[must_use]
    #[track_caller]
    pub fn others(&self, nodes: &[usize]) -> Vec<usize> {
        self.world.check(nodes);
        self.nodes().into_iter().filter(|node| !nodes.contains(node)).collect()
    }

    /// One of these nodes, as the seed has it.
    ///
    /// # Panics
    /// When there are none.
    #[must_use]
    #[track_caller]
    pub fn pick(&self, nodes: &[usize]) -> usize {
        assert!(!nodes.is_empty(), "there is nothing to pick from");
        nodes[lock(&self.world.picks).random_range(0..nodes.len())]
    }

    /// What chance follows from; see [`TestClusterBuilder::seed`].
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.world.seed
    }

    /// The node that has an actor, or would have it if it was called: the leader of its partition. Waits for
    /// one while there is none.
    ///
    /// # Panics
    /// When there can be none: too few replicas of the partition run and reach each other.
    pub async fn owner<A: Actor>(&self, key: impl AsRef<str>) -> usize {
        let actor = actor_id(A::KIND, key.as_ref()).unwrap_or_else(|fault| panic!("{fault}"));
        let partition = partition_of(&actor, self.world.state.meta.partitions);
        let look = || self.world.owner(partition).map(|(node, _)| node);
        self.world.until(|| format!("no node leads partition {partition} of {actor}"), look).await
    }

    /// Ends a node's process at once, as `kill -9` does. Its disk keeps what was written.
    ///
    /// # Panics
    /// When it does not run.
    #[track_caller]
    pub fn kill(&self, node: usize) {
        self.world.take(node).kill().expect();
        self.world.slot(node).disk.kill();
    }

    /// Cuts the power of a node's machine: its process ends, and of what its disk has not flushed some or all
    /// is gone, the last write perhaps in part.
    ///
    /// # Panics
    /// When it does not run.
    #[track_caller]
    pub fn cut_power(&self, node: usize) {
        self.kill(node);
        self.world.slot(node).disk.cut_power().expect("the files of the disk can be changed");
    }

    /// Stops a node in good order, as an operator does before an upgrade: it gives its leaderships away first.
    ///
    /// # Panics
    /// When it does not run, or is paused.
    pub async fn drain(&self, node: usize) {
        let paused = lock(&self.world.slot(node).process).as_ref().is_some_and(Process::is_paused);
        assert!(!paused, "{} is paused; resume it before it is drained", self.world.name(node));
        let process = self.world.take(node);
        finish(process.stop(DRAIN_WITHIN)).await;
        self.world.slot(node).disk.kill();
    }

    /// Starts a node that was killed, drained or has lost its power, on its disk as it is. Returns when it
    /// runs and is linked to the nodes it can reach.
    ///
    /// # Panics
    /// When it runs already, or cannot use its disk.
    pub async fn restart(&self, node: usize) {
        self.world.start(node);
        let runs = || self.world.up(node).and_then(|_| self.world.linked(node));
        self.world.until(|| format!("{} does not start", self.world.name(node)), runs).await;
    }

    /// As [`restart`](Self::restart), with another build of the application: its actors may have other states
    /// and other handlers under the same kinds. Returns once the cluster knows of the build. The node keeps the
    /// build when it is started again.
    ///
    /// # Panics
    /// When it runs already, or cannot use its disk.
    pub async fn restart_as(&self, node: usize, app: App) {
        let build = app.build();
        *lock(&self.world.slot(node).app) = app;
        self.restart(node).await;
        let id = &self.world.slot(node).id;
        let runs = |other| self.world.up(other).and_then(|other| other.build_of(id)) == Some(build);
        let known = || {
            let mut reached =
                self.nodes().into_iter().filter(|&other| other == node || self.world.reach(node, other));
            reached.all(runs).then_some(())
        };
        self.world.until(|| format!("{} does not tell its build", self.world.name(node)), known).await;
    }

    /// Starts all nodes that are down and waits until every node is ready.
    ///
    /// # Panics
    /// When they do not get ready, as long as the network is divided or a node is paused.
    pub async fn restart_all(&self) {
        for node in self.nodes() {
            if lock(&self.world.slot(node).process).is_none() {
                self.world.start(node);
            }
        }
        for node in self.nodes() {
            let ready = || self.world.ready(node);
            self.world.until(|| format!("{} is not ready", self.world.name(node)), ready).await;
        }
    }

    /// Holds a node's process, as SIGSTOP does: others see it silent, not gone. Returns once it stands still.
    ///
    /// # Panics
    /// When it does not run, or is paused already.
    #[track_caller]
    pub fn pause(&self, node: usize) {
        let mut process = lock(&self.world.slot(node).process);
        let Some(process) = process.as_mut() else { panic!("{}", self.world.is_down(node)) };
        assert!(!process.is_paused(), "{} is paused already", self.world.name(node));
        process.pause();
    }

    /// Lets a node that was paused go on.
    ///
    /// # Panics
    /// When it is not paused.
    #[track_caller]
    pub fn resume(&self, node: usize) {
        let mut process = lock(&self.world.slot(node).process);
        let Some(process) = process.as_mut() else { panic!("{}", self.world.is_down(node)) };
        assert!(process.is_paused(), "{} is not paused", self.world.name(node));
        process.resume();
    }

    /// Cuts every node of one side off from every node of the other: links break, new ones get no answer. Nodes
    /// on no side reach both, and so do clients, but for those of [`client_on`](Self::client_on).
    ///
    /// # Panics
    /// When a node is on both sides.
    #[track_caller]
    pub fn partition(&self, side: &[usize], other: &[usize]) {
        self.world.check(side);
        self.world.check(other);
        for (&a, &b) in side.iter().flat_map(|a| other.iter().map(move |b| (a, b))) {
            assert!(a != b, "{} cannot be on both sides", self.world.name(a));
            let (one, two) = (self.world.slot(a), self.world.slot(b));
            lock(&self.world.cuts).insert((a.min(b), a.max(b)));
            self.world.hub.cut(&one.id, &two.id);
        }
    }

    /// Cuts a node off from all others; clients still reach it.
    #[track_caller]
    pub fn isolate(&self, node: usize) {
        self.partition(&[node], &self.others(&[node]));
    }

    /// Makes the network whole again, for nodes and for clients. Returns when the nodes that run are linked;
    /// what is down or paused stays so.
    pub async fn heal(&self) {
        let world = &self.world;
        for (a, b) in std::mem::take(&mut *lock(&world.cuts)) {
            world.hub.heal(&world.slot(a).id, &world.slot(b).id);
        }
        for client in lock(&world.clients).iter() {
            world.machines.iter().for_each(|slot| world.hub.heal(client, &slot.id));
        }
        for node in self.nodes() {
            world.until(|| format!("{} has no links", world.name(node)), || world.linked(node)).await;
        }
    }

    /// Sets the clocks of all machines forward; reminders that come due by that fire, each once, as after an
    /// outage so long. Returns when they have, and messages have arrived.
    ///
    /// # Panics
    /// As [`settle`](Self::settle).
    pub async fn advance(&self, by: Duration) {
        let millis = i64::try_from(by.as_millis()).expect("a clock goes some millions of years");
        self.world.set_clocks(millis);
        self.settle().await;
    }

    /// Waits until messages that answered calls have sent, and those that these have sent in turn, have arrived,
    /// and reminders that are due have fired.
    ///
    /// # Panics
    /// When a partition has no leader and can get none, or when there is no end to it: calls are made meanwhile,
    /// or a message's receiver waits for something.
    pub async fn settle(&self) {
        let world = &self.world;
        world.until(|| "messages are still on their way".to_owned(), || world.settled().then_some(())).await;
    }

    /// Messages and reminders that could not be applied.
    #[must_use]
    pub fn dead_letters(&self) -> DeadLetters {
        DeadLetters::new(self.caller(), self.world.state.meta.partitions)
    }

    /// Another client, with a session of its own.
    ///
    /// # Panics
    /// When no node answers.
    pub async fn client(&self) -> Client {
        self.world.connect(&self.nodes()).await
    }

    /// A client on the side of these nodes: it reaches no others until the network is [healed](Self::heal).
    ///
    /// # Panics
    /// When none of them answers.
    pub async fn client_on(&self, nodes: &[usize]) -> Client {
        self.world.check(nodes);
        self.world.connect(nodes).await
    }

    /// Stops all nodes in good order and ends the cluster.
    ///
    /// # Panics
    /// When a node does not stop.
    pub async fn stop(self) {
        let processes: Vec<_> =
            self.world.machines.iter().filter_map(|slot| lock(&slot.process).take()).collect();
        let ends: Vec<_> = processes.into_iter().map(|process| process.stop(Duration::ZERO)).collect();
        for end in ends {
            finish(end).await;
        }
    }
}

impl Actors for TestCluster {
    fn caller(&self) -> Arc<dyn Caller> {
        Arc::new(self.client.clone())
    }
}

impl std::fmt::Debug for TestCluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TestCluster").field("seed", &self.world.seed).finish_non_exhaustive()
    }
}

/// The machines and what is between them. Its own type, so that a start that panics ends it too.
struct World {
    actors_bytes: u64,
    seed: u64,
    /// As it was formed; replicas stay where they are.
    state: ClusterState,
    machines: Vec<Slot>,
    hub: MemoryHub,
    link: LinkConfig,
    delays: Arc<Mutex<StdRng>>,
    picks: Mutex<StdRng>,
    /// Nodes that do not reach each other, the lesser number first.
    cuts: Mutex<BTreeSet<(usize, usize)>>,
    clients: Mutex<Vec<NodeId>>,
    /// How far clocks were set forward.
    ahead_ms: Mutex<i64>,
    network: Mutex<Option<(oneshot::Sender<()>, Ended)>>,
    folder: Arc<TempDir>,
}

/// One machine.
struct Slot {
    id: NodeId,
    /// The build that its node runs from the next start on.
    app: Mutex<App>,
    disk: Disk,
    /// `None` while it is down.
    process: Mutex<Option<Process>>,
    starts: AtomicU64,
}

impl World {
    fn nodes(&self) -> Vec<usize> {
        (1..=self.machines.len()).collect()
    }

    fn name(&self, node: usize) -> &str {
        self.slot(node).id.as_str()
    }

    #[track_caller]
    fn slot(&self, node: usize) -> &Slot {
        let found = node.checked_sub(1).and_then(|at| self.machines.get(at));
        found.unwrap_or_else(|| panic!("there is no node {node}: they are 1 to {}", self.machines.len()))
    }

    #[track_caller]
    fn check(&self, nodes: &[usize]) {
        for &node in nodes {
            self.slot(node);
        }
    }

    fn is_down(&self, node: usize) -> String {
        format!("{} is down; restart it first", self.name(node))
    }

    /// A process that is to end.
    #[track_caller]
    fn take(&self, node: usize) -> Process {
        let process = lock(&self.slot(node).process).take();
        process.unwrap_or_else(|| panic!("{}", self.is_down(node)))
    }

    /// Starts a node's process.
    #[track_caller]
    fn start(&self, node: usize) {
        let slot = self.slot(node);
        let ahead = lock(&self.ahead_ms);
        let mut process = lock(&slot.process);
        assert!(process.is_none(), "{} runs already", slot.id);
        let start = slot.starts.fetch_add(1, Ordering::Relaxed);
        let now = Clock::System.now().0.saturating_add_signed(*ahead);
        let delays = self.delays.clone();
        // Drawn, as nodes with related seeds could stand for the same elections at the same moments for ever.
        let seed = StdRng::seed_from_u64(self.seed ^ start << 8 ^ node as u64).random();
        let machine = Machine {
            node: slot.id.clone(),
            cluster: self.state.clone(),
            hub: self.hub.clone(),
            link: self.link.clone(),
            disk: slot.disk.clone(),
            pace: Arc::new(move || draw(&delays, DISK_MICROS_MAX)),
            host_pace: Arc::new(|| Duration::ZERO),
            news_pace: Arc::new(|| Duration::ZERO),
            clock: WallClock::new(now),
            seed,
            actors_bytes: self.actors_bytes,
            witness: None,
            #[cfg(feature = "controls")]
            mistake: None,
        };
        *process = Some(Process::start(machine, lock(&slot.app).clone(), self.folder.clone()));
    }

    fn set_clocks(&self, millis: i64) {
        // Held meanwhile, so that a node that starts is neither left out nor set twice.
        let mut ahead = lock(&self.ahead_ms);
        *ahead = ahead.saturating_add(millis);
        for slot in &self.machines {
            if let Some(process) = &*lock(&slot.process) {
                process.set_clock(millis);
            }
        }
    }

    /// The node, if it runs and is not paused.
    fn up(&self, node: usize) -> Option<Node> {
        let process = lock(&self.slot(node).process);
        match process.as_ref().filter(|process| !process.is_paused())?.life() {
            Life::Up(node) => Some(node),
            Life::Busy | Life::Failed(_) => None,
        }
    }

    fn ready(&self, node: usize) -> Option<()> {
        self.up(node)?.ready().ok()
    }

    /// A node is linked to all that it can reach, and they to it; or it cannot be.
    fn linked(&self, node: usize) -> Option<()> {
        for other in self.nodes() {
            if node != other && self.reach(node, other) {
                let (one, two) = (self.up(node)?, self.up(other)?);
                if !one.is_linked(two.node()) || !two.is_linked(one.node()) {
                    return None;
                }
            }
        }
        Some(())
    }

    /// Whether two nodes may hear of each other, now or when they have started.
    fn reach(&self, a: usize, b: usize) -> bool {
        let runs = |node| lock(&self.slot(node).process).as_ref().is_some_and(|process| !process.is_paused());
        runs(a) && runs(b) && !lock(&self.cuts).contains(&(a.min(b), a.max(b)))
    }

    /// The node that leads a partition, and since when. One that is cut off from the majority of the replicas
    /// does not, though it may not know yet.
    ///
    /// # Panics
    /// When all replicas are cut off from the majority.
    fn owner(&self, partition: PartitionId) -> Option<(usize, Term)> {
        let members = self.state.table.replicas_of(partition).iter();
        let replicas: Vec<_> = members.filter_map(|member| usize::try_from(member.0).ok()).collect();
        let reached = |&&node: &&usize| {
            let reached = replicas.iter().filter(|&&other| self.reach(node, other)).count();
            reached * 2 > replicas.len()
        };
        let able: Vec<_> = replicas.iter().filter(reached).copied().collect();
        assert!(
            !able.is_empty(),
            "partition {partition} has no majority: of its replicas on {} too few run and reach each other; \
             restart, resume or heal first",
            replicas.iter().map(|&node| self.name(node)).collect::<Vec<_>>().join(", ")
        );
        let leads = |&node: &usize| Some((node, self.up(node)?.leads(partition)?));
        able.iter().filter_map(leads).max_by_key(|&(_, term)| term)
    }

    /// Whether nothing is owed between actors at this moment.
    fn settled(&self) -> bool {
        // A message has a row until its receiver's turn is applied, and takes a batch to lose it. So while
        // no batch is proposed, looking at one partition after the other sees them all at one moment.
        let batches =
            || self.nodes().into_iter().map(|node| Some(self.up(node)?.batches())).collect::<Vec<_>>();
        let before = batches();
        let all = self.state.meta.partitions.iter();
        let clear = |partition| {
            let owner = self.owner(partition)?;
            let node = self.up(owner.0)?;
            let store = node.rows()?;
            let (from, due) = (rows::reminders().0, rows::reminders_after(node.now()));
            let owes = holds_messages(&*store, partition) || holds(&*store, partition, &from, &due);
            (!owes).then_some(owner)
        };
        let look = || all.clone().map(clear).collect::<Option<Vec<_>>>();
        look().is_some_and(|owners| look() == Some(owners)) && batches() == before
    }

    /// Looks again and again until there is something.
    ///
    /// # Panics
    /// When there is nothing for too long, or a node stops by itself.
    async fn until<T>(&self, what: impl Fn() -> String, look: impl Fn() -> Option<T>) -> T {
        let begun = Instant::now();
        loop {
            for slot in &self.machines {
                let life = lock(&slot.process).as_ref().map(Process::life);
                if let Some(Life::Failed(why)) = life {
                    panic!("{} has stopped by itself: {why}", slot.id);
                }
            }
            if let Some(found) = look() {
                return found;
            }
            assert!(begun.elapsed() < PATIENCE, "{} after {PATIENCE:?}; {}", what(), self.waiting_for());
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// How the nodes are.
    fn waiting_for(&self) -> String {
        let of = |node| match lock(&self.slot(node).process).as_ref() {
            None => "down".to_owned(),
            Some(process) if process.is_paused() => "paused".to_owned(),
            Some(process) => match process.life() {
                Life::Busy => "starting".to_owned(),
                Life::Failed(why) => why,
                Life::Up(node) => node.ready().err().unwrap_or_else(|| "ready".to_owned()),
            },
        };
        self.nodes()
            .into_iter()
            .map(|node| format!("{}: {}", self.name(node), of(node)))
            .collect::<Vec<_>>()
            .join("; ")
    }

    /// A client that reaches these nodes.
    async fn connect(&self, nodes: &[usize]) -> Client {
        let me = {
            let mut clients = lock(&self.clients);
            let me = NodeId::new(&format!("client-{}", clients.len() + 1)).expect("a valid name");
            clients.push(me.clone());
            me
        };
        for node in self.nodes().into_iter().filter(|node| !nodes.contains(node)) {
            self.hub.cut(&me, &self.slot(node).id);
        }
        let ids: Vec<_> = nodes.iter().map(|&node| self.slot(node).id.clone()).collect();
        let client = Client::connect_in(self.hub.clone(), me, &ids, self.link.clone()).await;
        client.unwrap_or_else(|error| panic!("a client cannot connect: {error}"))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let processes = self.machines.iter().filter_map(|slot| lock(&slot.process).take());
        let mut ends: Vec<_> = processes.map(Process::kill).collect();
        if let Some((end, ended)) = lock(&self.network).take() {
            let _ = end.send(());
            ends.push(ended);
        }
        let until = Instant::now() + DROP_WITHIN;
        for end in ends {
            end.wait(until.saturating_duration_since(Instant::now()));
        }
        if std::thread::panicking() {
            eprintln!("the test cluster had {} nodes and seed {}", self.machines.len(), self.seed);
        }
    }
}

fn node_id(node: usize) -> NodeId {
    NodeId::new(&format!("n{node}")).expect("a valid name")
}

fn draw(random: &Mutex<StdRng>, micros_max: u64) -> Duration {
    Duration::from_micros(lock(random).random_range(0..=micros_max))
}

/// Whether Tokio's clock goes; a paused one stands still while the thread sleeps.
fn time_passes() -> bool {
    let before = tokio::time::Instant::now();
    std::thread::sleep(Duration::from_millis(2));
    tokio::time::Instant::now() > before
}

/// Waits for the end of a thread without holding up the runtime.
async fn finish(end: Ended) {
    let waited = tokio::task::spawn_blocking(move || end.expect()).await;
    if let Err(error) = waited
        && let Ok(panic) = error.try_into_panic()
    {
        std::panic::resume_unwind(panic);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_of_a_cluster_outlives_it() {
        let cluster = TestCluster::start(3, App::new("test")).await;
        cluster.pause(1);
        cluster.kill(2);
        let (path, folder) = (cluster.world.folder.path().to_owned(), Arc::downgrade(&cluster.world.folder));
        assert!(path.exists());
        drop(cluster);
        // Each thread held it until its end.
        assert!(folder.upgrade().is_none());
        assert!(!path.exists());
    }
}
