//! The simulated world: machines with a runtime each, the network between them, clients, and time.
//!
//! Owns every runtime and lets each live through one millisecond after the other, in one thread. A
//! machine's node is the real one; a crash drops its runtime. Nothing here decides what goes wrong.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use perennial::core::hash::PartitionCount;
use perennial::core::id::{ClusterId, GroupId, LogIndex, NodeId, Term};
use perennial::core::membership::MemberSpec;
use perennial::core::partition::apply::read_batch;
use perennial::core::placement::{ClusterMeta, ClusterState, form};
use perennial::limits::ACTORS_BYTES_DEFAULT;
use perennial::link::{LinkConfig, MemoryHub};
use perennial::node::{Backend, Machine, Mistake, StartError, Witness};
use perennial::replica::{Disk, DiskFault, GroupEvent, Pace};
use perennial::status::ClusterStatus;
use perennial::{Node, WallClock};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::app::app;
use super::invariants::streams::{Published, Publishing};
use super::invariants::{self, Deaths, Invariant, Seen};
use super::newer;
use super::trace::Trace;

/// Time of day when a simulation begins: 2026-01-01.
const BEGIN_MS: u64 = 1_767_225_600_000;
/// Replicas of each partition.
const REPLICATION: u8 = 3;
/// One machine in so many has the newer build from the beginning, in a run with both.
const NEWER_EVERY: u64 = 2;
/// One start in so many is the first with the newer build.
const UPGRADE_EVERY: u64 = 5;
/// How long a node has to tell what it knows, in milliseconds.
const STATUS_WITHIN_MS: u64 = 5000;
/// One step of the world.
const STEP: Duration = Duration::from_millis(1);

/// A mistake planted on purpose: the invariants must find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Control {
    /// The driver takes proposals of any epoch and in any sequence.
    FenceRemoved,
    /// Disks say that they have flushed and have not.
    FlushSkipped,
    /// A new leader knows no replies of its predecessors.
    DedupOff,
    /// Reads are answered without asking whether the node still leads.
    DirtyRead,
    /// Entries are applied in the wrong order now and then.
    OutOfOrder,
    /// Answers leave before their records are committed.
    EarlyAnswer,
    /// The older build drops what it does not know of a state.
    CarelessBuild,
}

impl Control {
    fn mistake(self) -> Option<Mistake> {
        match self {
            Self::FenceRemoved => Some(Mistake::NoFences),
            Self::FlushSkipped | Self::CarelessBuild => None,
            Self::DedupOff => Some(Mistake::RepliesForgotten),
            Self::DirtyRead => Some(Mistake::DirtyReads),
            Self::OutOfOrder => Some(Mistake::OutOfOrder),
            Self::EarlyAnswer => Some(Mistake::EarlyAnswers),
        }
    }
}

/// What looks on.
pub struct Watching {
    /// What happened.
    pub trace: Trace,
    /// What did not hold.
    pub violations: Vec<String>,
    /// Epochs begun.
    pub epochs: u64,
    /// Entries applied, on all replicas together.
    pub applied: u64,
    /// What became of messages that were not applied.
    pub deaths: Arc<Mutex<Deaths>>,
    /// What was published.
    pub published: Arc<Mutex<Published>>,
    /// Who was the last to lead each group.
    pub leaders: BTreeMap<GroupId, String>,
    invariants: Vec<Box<dyn Invariant>>,
    first: BTreeMap<GroupId, LogIndex>,
}

impl Watching {
    fn check(&mut self, check: impl Fn(&mut dyn Invariant) -> Result<(), String>) {
        for invariant in &mut self.invariants {
            if let Err(violation) = check(&mut **invariant) {
                violated(&mut self.trace, &mut self.violations, violation);
            }
        }
    }

    /// Adds something that was found otherwise.
    pub fn found(&mut self, result: Result<(), String>) {
        if let Err(violation) = result {
            violated(&mut self.trace, &mut self.violations, violation);
        }
    }
}

fn violated(trace: &mut Trace, violations: &mut Vec<String>, violation: String) {
    trace.line(&format!("VIOLATION: {violation}"));
    violations.push(violation);
}

struct NodeWitness {
    node: NodeId,
    watching: Arc<Mutex<Watching>>,
}

impl Witness for NodeWitness {
    fn applied(&self, group: GroupId, term: Term, index: LogIndex, entry: &[u8]) {
        let mut watching = lock(&self.watching);
        watching.applied += 1;
        watching.trace.note(entry);
        let batch = group.partition().and_then(|_| read_batch(entry).ok());
        if group.partition().is_some() && batch.is_none() {
            watching
                .found(Err(format!("{} applies something at {group} {index} that is no batch", self.node)));
        }
        let node = self.node.as_str();
        let seen = Seen { node, group, term, index, entry, batch: batch.as_ref() };
        let first = watching.first.entry(group).or_insert(LogIndex(0));
        if index > *first {
            *first = index;
            watching.check(|invariant| invariant.first(&seen));
        } else {
            watching.check(|invariant| invariant.again(&seen));
        }
    }

    fn event(&self, group: GroupId, event: &GroupEvent) {
        let GroupEvent::Opened { term, .. } = event else { return };
        let mut watching = lock(&self.watching);
        watching.epochs += 1;
        watching.leaders.insert(group, self.node.to_string());
        watching.trace.line(&format!("{} leads {group} in term {term}", self.node));
        watching.check(|invariant| invariant.leads(self.node.as_str(), group, *term));
    }
}

/// How long things take, changed by faults.
#[derive(Debug, Clone)]
pub struct Weather {
    /// Milliseconds from one machine to another, least and most.
    pub network_ms: (u64, u64),
    /// Milliseconds of a piece of work on the disk of each machine, least and most.
    pub disk_ms: Vec<(u64, u64)>,
    /// Milliseconds from a host to its replica on each machine, least and most.
    pub host_ms: Vec<(u64, u64)>,
    /// The same for what a replica tells its hosts.
    pub news_ms: Vec<(u64, u64)>,
    random: StdRng,
}

impl Weather {
    fn draw(&mut self, (least, most): (u64, u64)) -> Duration {
        if most == 0 {
            return Duration::ZERO;
        }
        Duration::from_millis(self.random.random_range(least..=most))
    }
}

/// What a machine does.
pub enum Life {
    /// Its node runs, or is about to.
    Up(Box<Running>),
    /// It is off.
    Down,
}

/// A running machine.
pub struct Running {
    runtime: Runtime,
    start: oneshot::Receiver<Result<Node, StartError>>,
    node: Option<Node>,
    /// It does nothing, as after SIGSTOP.
    pub paused: bool,
    /// How long it has stood still: its clock goes on meanwhile, and it finds out when it runs again.
    behind: Duration,
}

/// One machine.
pub struct Host {
    /// Name of machine and node.
    pub id: NodeId,
    /// Its disk.
    pub disk: Disk,
    /// What it does.
    pub life: Life,
    /// A bit of its log is wrong: it may refuse to start, for good.
    pub damaged: bool,
    /// Its disk has refused something since its start: it may end by itself.
    pub excused: bool,
    /// Its clock is ahead of the world's by so many milliseconds.
    pub skew_ms: i64,
    /// Thousandths of a millisecond that it lives through in each of the world's.
    pub rate: u64,
    lived: u64,
    clock: WallClock,
    starts: u64,
    /// It runs the newer build, and goes on with it.
    pub newer: bool,
}

/// Everything.
pub struct World {
    /// What looks on.
    pub watching: Arc<Mutex<Watching>>,
    /// The machines.
    pub hosts: Vec<Host>,
    weather: Arc<Mutex<Weather>>,
    /// The network.
    pub hub: MemoryHub,
    /// Settings of all links.
    pub link: LinkConfig,
    /// Simulated milliseconds since the begin.
    pub now: u64,
    /// A mistake planted on purpose.
    pub control: Option<Control>,
    /// Memory that the actors of each node may take.
    pub actors_bytes: u64,
    /// Machines may start again with the newer build.
    pub mixed: bool,
    /// How often actors came into memory on nodes that are gone.
    made: u64,
    seed: u64,
    dir: String,
    cluster: ClusterState,
    network: Runtime,
    /// Where clients live.
    pub clients: Runtime,
}

fn runtime() -> Runtime {
    Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime needs no more than memory")
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    /// Machines that are off, with empty disks in a folder.
    ///
    /// # Errors
    /// When the folder cannot be used.
    pub fn new(seed: u64, nodes: usize, partitions: u32, dir: &Path, loud: bool) -> std::io::Result<Self> {
        let ids: Vec<_> =
            (1..=nodes).map(|n| NodeId::new(&format!("n{n}")).expect("n1 is a node id")).collect();
        // The older build has formed the cluster.
        let build = app().build();
        let spec = |id: &NodeId| MemberSpec { build, ..MemberSpec::new(id.clone(), format!("{id}:1")) };
        let specs = ids.iter().map(spec).collect();
        let partitions = PartitionCount::try_from(partitions).expect("a power of two");
        let cluster = form(ClusterMeta::new(ClusterId(u128::from(seed)), partitions, REPLICATION), specs)
            .expect("these nodes form a cluster");
        let weather = Arc::new(Mutex::new(Weather {
            network_ms: (0, 2),
            disk_ms: vec![(0, 2); nodes],
            host_ms: vec![(0, 0); nodes],
            news_ms: vec![(0, 0); nodes],
            random: StdRng::seed_from_u64(seed ^ 1),
        }));
        let network = runtime();
        let delay = weather.clone();
        let hub = MemoryHub::with_delay(
            network.handle().clone(),
            Arc::new(move |_, _| {
                let mut weather = lock(&delay);
                let range = weather.network_ms;
                weather.draw(range)
            }),
        );
        let mut hosts = Vec::new();
        for (number, id) in ids.into_iter().enumerate() {
            let disk = Disk::new(&dir.join(id.as_str()), seed.wrapping_add(number as u64))?;
            let clock = WallClock::new(BEGIN_MS);
            hosts.push(Host {
                id,
                disk,
                life: Life::Down,
                damaged: false,
                excused: false,
                skew_ms: 0,
                rate: 1000,
                lived: 0,
                clock,
                starts: 0,
                newer: false,
            });
        }
        let deaths = Arc::<Mutex<Deaths>>::default();
        let published: Arc<Mutex<Published>> = Arc::default();
        let mut invariants = invariants::all(&deaths);
        invariants.push(Box::new(Publishing(published.clone())));
        let watching = Arc::new(Mutex::new(Watching {
            trace: Trace::new(loud),
            violations: Vec::new(),
            epochs: 0,
            applied: 0,
            deaths,
            published,
            leaders: BTreeMap::new(),
            invariants,
            first: BTreeMap::new(),
        }));
        let link = LinkConfig::default();
        Ok(Self {
            watching,
            hosts,
            weather,
            hub,
            link,
            now: 0,
            control: None,
            actors_bytes: ACTORS_BYTES_DEFAULT,
            mixed: false,
            made: 0,
            seed,
            dir: format!("{}/", dir.display()),
            cluster,
            network,
            clients: runtime(),
        })
    }

    /// Nothing is wrong with a machine's disk any more, but for a mistake planted on purpose.
    pub fn mend_disk(&self, at: usize) {
        let lies = self.control == Some(Control::FlushSkipped);
        self.hosts[at].disk.set_fault(if lies { DiskFault::Lies } else { DiskFault::None });
    }

    /// How long things take, to be changed.
    pub fn weather(&self) -> MutexGuard<'_, Weather> {
        lock(&self.weather)
    }

    /// Adds what was found.
    pub fn found(&self, result: Result<(), String>) {
        lock(&self.watching).found(result);
    }

    /// Lives on until something is done, for at most so long; says whether it is.
    pub fn live_until(&mut self, within_ms: u64, mut done: impl FnMut() -> bool) -> bool {
        let until = self.now + within_ms;
        while !done() && self.now < until {
            self.step();
        }
        done()
    }

    /// Writes a line of the trace.
    pub fn say(&self, text: &str) {
        lock(&self.watching).trace.line(text);
    }

    /// Names of all machines.
    #[must_use]
    pub fn ids(&self) -> Vec<NodeId> {
        self.hosts.iter().map(|host| host.id.clone()).collect()
    }

    /// Starts the node of a machine that is off.
    pub fn start(&mut self, at: usize) {
        self.mend_disk(at);
        let pace = |of: fn(&Weather, usize) -> (u64, u64)| -> Pace {
            let weather = self.weather.clone();
            Arc::new(move || {
                let mut weather = lock(&weather);
                let range = of(&weather, at);
                weather.draw(range)
            })
        };
        let disk = pace(|weather, at| weather.disk_ms[at]);
        let (to_replica, to_hosts) =
            (pace(|weather, at| weather.host_ms[at]), pace(|weather, at| weather.news_ms[at]));
        let host = &mut self.hosts[at];
        host.starts += 1;
        // Drawn apart, so that the other seeds are what they were.
        let drawn = mix(self.seed ^ 0xb1d, at as u64, host.starts);
        let every = if host.starts == 1 { NEWER_EVERY } else { UPGRADE_EVERY };
        host.newer |= self.mixed && drawn.is_multiple_of(every);
        let app = match (host.newer, self.control) {
            (true, _) => newer::app(),
            (false, Some(Control::CarelessBuild)) => newer::careless::app(),
            (false, _) => app(),
        };
        let now = (BEGIN_MS + self.now).saturating_add_signed(host.skew_ms);
        host.clock = WallClock::new(now);
        let machine = Machine {
            node: host.id.clone(),
            cluster: self.cluster.clone(),
            hub: self.hub.clone(),
            link: self.link.clone(),
            disk: host.disk.clone(),
            pace: disk,
            host_pace: to_replica,
            news_pace: to_hosts,
            clock: host.clock.clone(),
            seed: mix(self.seed, at as u64, host.starts),
            actors_bytes: self.actors_bytes,
            witness: Some(Arc::new(NodeWitness { node: host.id.clone(), watching: self.watching.clone() })),
            mistake: self.control.and_then(Control::mistake),
        };
        host.excused = false;
        let runtime = runtime();
        let (started, start) = oneshot::channel();
        runtime.spawn(async move {
            let _ = started.send(Node::start_on(machine, app).await);
        });
        host.life =
            Life::Up(Box::new(Running { runtime, start, node: None, paused: false, behind: Duration::ZERO }));
    }

    /// Ends what is left of the older build, in a run with both: the upgrade is finished.
    pub fn finish_upgrade(&mut self) {
        if !self.mixed {
            return;
        }
        for at in 0..self.hosts.len() {
            if !std::mem::replace(&mut self.hosts[at].newer, true)
                && matches!(self.hosts[at].life, Life::Up(_))
            {
                self.kill(at);
            }
        }
    }

    /// Ends a machine's node at once; what its disk took stays.
    pub fn kill(&mut self, at: usize) {
        self.made += self.activations_of(at);
        let host = &mut self.hosts[at];
        host.disk.kill();
        host.life = Life::Down;
    }

    /// Turns a machine off; what its disk has not flushed is gone, or some of it.
    ///
    /// # Errors
    /// When the files of the disk cannot be changed.
    pub fn cut_power(&mut self, at: usize) -> std::io::Result<()> {
        self.kill(at);
        self.hosts[at].disk.cut_power()
    }

    /// Sets a machine's clock.
    pub fn jump(&mut self, at: usize, skew_ms: i64) {
        let host = &mut self.hosts[at];
        host.clock.jump(skew_ms - host.skew_ms);
        host.skew_ms = skew_ms;
    }

    /// Everybody lives through one millisecond.
    pub fn step(&mut self) {
        self.now += 1;
        lock(&self.watching).trace.now = self.now;
        let step = async |time| tokio::time::sleep(time).await;
        self.network.block_on(step(STEP));
        for host in &mut self.hosts {
            let Life::Up(running) = &mut host.life else { continue };
            if running.paused {
                running.behind += STEP;
                continue;
            }
            if !running.behind.is_zero() {
                running.runtime.block_on(tokio::time::advance(std::mem::take(&mut running.behind)));
            }
            host.lived += host.rate;
            let millis = host.lived / 1000;
            host.lived %= 1000;
            if millis > 0 {
                running.runtime.block_on(step(Duration::from_millis(millis)));
            }
        }
        self.clients.block_on(step(STEP));
    }

    /// Why a machine's node has ended by itself, or could not start, if it has not.
    pub fn ended(&mut self, at: usize) -> Option<String> {
        // Where the files happen to be is no part of a run.
        self.why_ended(at).map(|why| why.replace(&self.dir, ""))
    }

    fn why_ended(&mut self, at: usize) -> Option<String> {
        let Life::Up(running) = &mut self.hosts[at].life else { return None };
        if running.node.is_none() {
            match running.start.try_recv() {
                Ok(Ok(node)) => running.node = Some(node),
                Ok(Err(error)) => return Some(error.to_string()),
                Err(oneshot::error::TryRecvError::Closed) => return Some("its start panicked".to_owned()),
                Err(oneshot::error::TryRecvError::Empty) => return None,
            }
        }
        running.node.as_ref().and_then(|node| node.failed().now_or_never())
    }

    /// The cluster as a node sees it; `None` when it runs not or does not answer within some seconds.
    pub fn status(&mut self, at: usize) -> Option<ClusterStatus> {
        let _ = self.ended(at);
        let Life::Up(running) = &self.hosts[at].life else { return None };
        let asked = running.runtime.spawn(running.node.as_ref()?.status());
        self.live_until(STATUS_WITHIN_MS, || asked.is_finished());
        asked.now_or_never()?.ok()
    }

    /// How often actors came into memory, on all nodes.
    pub fn activations(&mut self) -> u64 {
        self.made + (0..self.hosts.len()).map(|at| self.activations_of(at)).sum::<u64>()
    }

    fn activations_of(&mut self, at: usize) -> u64 {
        let _ = self.ended(at);
        match &self.hosts[at].life {
            Life::Up(running) => running.node.as_ref().map_or(0, Node::activations),
            Life::Down => 0,
        }
    }

    /// Says what the replicas of all nodes that run know of their groups; gives those without rows.
    pub fn describe(&mut self) -> Vec<String> {
        let mut without_rows = Vec::new();
        for at in 0..self.hosts.len() {
            let _ = self.ended(at);
            let Life::Up(running) = &self.hosts[at].life else { continue };
            let Some(node) = running.node.clone() else { continue };
            let asked = running.runtime.spawn(async move { node.groups().await });
            self.live_until(STATUS_WITHIN_MS, || asked.is_finished());
            for group in asked.now_or_never().and_then(Result::ok).unwrap_or_default() {
                self.say(&format!("{}: {group:?}", self.hosts[at].id));
                if group.rows_lost {
                    without_rows.push(format!("{} of {}", group.group, self.hosts[at].id));
                }
            }
        }
        without_rows
    }

    /// Stops all nodes that run, in good order; false when one does not end.
    pub fn stop_all(&mut self, within_ms: u64) -> bool {
        let mut ends = Vec::new();
        for at in 0..self.hosts.len() {
            let _ = self.ended(at);
            let Life::Up(running) = &mut self.hosts[at].life else { continue };
            let Some(node) = running.node.take() else { return false };
            ends.push(running.runtime.spawn(node.stop(Duration::from_millis(500))));
        }
        self.live_until(within_ms, || ends.iter().all(JoinHandle::is_finished))
    }
}

/// A seed for one start of a machine, which no other start has.
fn mix(seed: u64, at: u64, start: u64) -> u64 {
    let words = [seed, at, start].map(u64::to_be_bytes);
    perennial::core::hash::wide_hash(words.as_flattened()) as u64
}
