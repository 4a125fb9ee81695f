//! Real node processes in network namespaces of their own, real faults, and clients that remember.
//!
//! Owns one run: start, faults one after another and mixed, heal, verdict. Never touches the network this
//! process lives in, and leaves nothing behind, also after a panic or Ctrl-C. In: [`Options`]; out: a
//! [`Report`]. The method (clients, nemesis, checker) is Jepsen's.

mod actors;
mod clock;
mod delay;
mod disk;
mod faults;
mod goals;
pub mod history;
mod load;
mod net;
mod nodes;
mod report;
mod tools;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use futures_util::future::join_all;
use perennial::Client;
use perennial::client::ConnectError;
use perennial_runtime::certs::CertsError;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

use self::actors::Actors;
pub use self::faults::Fault;
use self::history::{Action, Ledger, Op};
use self::load::{Load, Seen};
use self::net::Net;
use self::nodes::Nodes;
pub use self::report::{Report, Round, Skipped};

/// Beginning of the names of all runs' namespaces and folders; the process's id comes next.
const PREFIX: &str = "perennial-nem-";
/// How long nodes may take until they are ready, at first and after each fault.
const READY_MAX: Duration = Duration::from_secs(60);
/// How long followers may take to have everything once the load is over.
const CONVERGED_MAX: Duration = Duration::from_secs(60);
/// How often it is looked for.
const LOOK_PERIOD: Duration = Duration::from_millis(100);
/// Native clients, each with links and sessions of its own.
const LINKS: usize = 4;
/// How long a fault is held, in milliseconds: around and above the time in which leaders are replaced.
const HOLD_MS: std::ops::Range<u64> = 1500..5000;
/// Quiet time between faults, in milliseconds.
const QUIET_MS: std::ops::Range<u64> = 300..1200;
/// What the log of a node says last that ended on a full disk. When a write in the background of its rows failed, it
/// notices with the next one, and hears no more than the latter.
const NO_SPACE: [&str; 2] = ["No space left on device", "FjallError: Poisoned"];
/// How long tasks may take to end after the run.
const LEFTOVERS_MAX: Duration = Duration::from_secs(1);

/// Why a run has no verdict.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NemesisError {
    /// This machine, or this user, cannot make namespaces.
    #[error("network namespaces cannot be used here (they need root, `ip`, `nft` and `tc`): {why}")]
    Unavailable {
        /// What failed.
        why: String,
    },
    /// A fault could not be made or healed.
    #[error("cannot change the network: {why}")]
    Network {
        /// What failed.
        why: String,
    },
    /// A fault of a disk could not be made or healed.
    #[error("cannot change a disk: {why}")]
    Disk {
        /// What failed.
        why: String,
    },
    /// All faults that were asked for need something that is not here.
    #[error("none of these faults can be made here: {}", skipped.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    NothingToDo {
        /// The faults, and what they need.
        skipped: Vec<Skipped>,
    },
    /// A file or a process.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What was tried.
        doing: String,
        /// Cause.
        source: std::io::Error,
    },
    /// Certificates.
    #[error(transparent)]
    Certs(#[from] CertsError),
    /// No client can connect.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The nodes do not become a cluster.
    #[error("the cluster is not ready after {} s: {why}; logs are in {}", READY_MAX.as_secs(), dir.display())]
    NotFormed {
        /// What they wait for.
        why: String,
        /// Folder with their logs.
        dir: PathBuf,
    },
    /// A signal.
    #[error("interrupted")]
    Interrupted,
}

impl NemesisError {
    fn io(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }
}

/// A run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Executable of an application, called with `serve`.
    pub exe: PathBuf,
    /// How many nodes.
    pub nodes: usize,
    /// Partitions.
    pub partitions: u32,
    /// Replicas of each partition.
    pub replication: u8,
    /// Counters.
    pub keys: usize,
    /// Clients of each counter: in turn one over links, one that mostly reads, one over HTTP.
    pub clients_per_key: usize,
    /// No new fault is begun after this time; each of them is begun once at least.
    pub length: Duration,
    /// For the order of the faults, their lengths and, among the nodes that lead, their victims.
    pub seed: u64,
    /// The faults to choose from.
    pub faults: Vec<Fault>,
    /// How long each fault is held; `None`: random lengths, around the time in which leaders are replaced.
    pub hold: Option<Duration>,
    /// Within this time after a heal, every counter must be writable.
    pub serves_within: Duration,
    /// Log filter of the nodes.
    pub log: String,
    /// Keep the folder with logs and history also of a run without violations.
    pub keep: bool,
}

impl Options {
    /// A run with the usual settings.
    #[must_use]
    pub fn new(exe: impl Into<PathBuf>) -> Self {
        Self {
            exe: exe.into(),
            nodes: 3,
            partitions: 32,
            replication: 3,
            keys: 12,
            clients_per_key: 3,
            length: Duration::from_secs(60),
            seed: 1,
            faults: Fault::value_variants().to_vec(),
            hold: None,
            serves_within: Duration::from_secs(10),
            log: "info".into(),
            keep: false,
        }
    }
}

/// Runs to a verdict.
///
/// # Errors
/// [`NemesisError`], when there is none.
///
/// # Panics
/// When there are fewer than two nodes, no counters or no faults to choose from.
pub fn run(options: &Options) -> Result<Report, NemesisError> {
    assert!(options.nodes > 1 && options.keys > 0 && !options.faults.is_empty(), "a run has something to do");
    let folder = tempfile::Builder::new().prefix(&prefix()).tempdir();
    let mut folder = folder.map_err(NemesisError::io("make a temporary folder"))?;
    let net = Arc::new(Net::new(options.nodes)?);
    let entrance = net.entrance()?;
    // Threads of the runtime live in the clients' namespace, and so do their sockets.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .on_thread_start(move || entrance.enter())
        .build()
        .map_err(NemesisError::io("start the async runtime"))?;
    let (task_options, task_net, dir) = (options.clone(), net.clone(), folder.path().to_owned());
    let done = runtime.block_on(async move {
        let mut driven =
            tokio::spawn(async move { Run::start(task_options, task_net, dir).await?.drive().await });
        let joined = tokio::select! {
            joined = &mut driven => joined,
            interrupted = interrupt() => {
                driven.abort();
                // Processes are reaped before the namespaces go.
                let _ = driven.await;
                return Err(interrupted);
            }
        };
        joined.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    });
    runtime.shutdown_timeout(LEFTOVERS_MAX);
    match done {
        Ok(mut report) => {
            if options.keep || !report.kept_all() || !report.unexpected.is_empty() {
                folder.disable_cleanup(true);
                write_history(folder.path(), &report.ops)?;
                report.kept = Some(folder.path().to_owned());
            }
            Ok(report)
        }
        Err(error) => {
            folder.disable_cleanup(options.keep || matches!(error, NemesisError::NotFormed { .. }));
            Err(error)
        }
    }
}

/// Beginning of the names of this run.
fn prefix() -> String {
    format!("{PREFIX}{}-", std::process::id())
}

/// Whether a name is of a run whose process is gone.
fn is_left(name: &str) -> bool {
    let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
    owner.is_some_and(|owner| !Path::new("/proc").join(owner.to_string()).exists())
}

async fn interrupt() -> NemesisError {
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let listening: Result<Vec<_>, _> = kinds.into_iter().map(signal).collect();
    match listening {
        Err(error) => NemesisError::io("listen to signals")(error),
        Ok(mut signals) => {
            futures_util::future::select_all(signals.iter_mut().map(|signal| Box::pin(signal.recv()))).await;
            NemesisError::Interrupted
        }
    }
}

fn write_history(dir: &Path, ops: &[Op]) -> Result<(), NemesisError> {
    let mut ops: Vec<_> = ops.iter().collect();
    ops.sort_by_key(|op| (op.key, op.called));
    let lines: Vec<_> =
        ops.iter().map(|op| format!("{op} (ticks {} to {})\n", op.called, op.returned)).collect();
    let path = dir.join("history");
    std::fs::write(&path, lines.concat()).map_err(NemesisError::io(format!("write {}", path.display())))
}

/// A run on its way. Fields are dropped in order: clients, then nodes, then the network.
struct Run {
    clients: JoinSet<Seen>,
    actors: Actors,
    load: Arc<Load>,
    nodes: Nodes,
    net: Arc<Net>,
    options: Options,
    random: StdRng,
    start: Instant,
    seen: Seen,
    rounds: Vec<Round>,
    skipped: Vec<Skipped>,
    /// Whether a disk was full in the round before.
    was_full: bool,
    problems: Vec<String>,
    status_client: Client,
}

impl Run {
    async fn start(mut options: Options, net: Arc<Net>, dir: PathBuf) -> Result<Self, NemesisError> {
        let mut nodes = Nodes::start(&options, &net, &dir)?;
        let mut skipped = Vec::new();
        options.faults.retain(|fault| match fault.possible(&nodes, &net) {
            Ok(()) => true,
            Err(why) => {
                skipped.push(Skipped { fault: *fault, why });
                false
            }
        });
        if options.faults.is_empty() {
            return Err(NemesisError::NothingToDo { skipped });
        }
        nodes.ready(READY_MAX, false).await.map_err(|why| NemesisError::NotFormed { why, dir })?;
        let mut links = Vec::new();
        for number in 0..LINKS {
            links.push(Client::connect(nodes.client_config(number)).await?);
        }
        let start = Instant::now();
        let status_client = links[0].clone();
        let load = Arc::new(Load::new(start, options.nodes, links));
        let mut clients = JoinSet::new();
        for key in 0..options.keys {
            for number in 0..options.clients_per_key {
                let (load, seed) = (load.clone(), options.seed);
                clients.spawn(async move { load.drive(seed, key, number).await });
            }
        }
        let random = StdRng::seed_from_u64(options.seed);
        Ok(Self {
            clients,
            actors: Actors::start(options.seed, &status_client),
            load,
            nodes,
            net,
            options,
            random,
            start,
            seen: Seen::default(),
            rounds: Vec::new(),
            skipped,
            was_full: false,
            problems: Vec::new(),
            status_client,
        })
    }

    async fn drive(mut self) -> Result<Report, NemesisError> {
        loop {
            let mut faults = self.options.faults.clone();
            faults.shuffle(&mut self.random);
            for fault in faults {
                self.round(fault).await?;
                // What does not come back cannot be hurt in a way that teaches something.
                if !self.problems.is_empty() {
                    return self.verdict().await;
                }
            }
            if self.start.elapsed() >= self.options.length {
                return self.verdict().await;
            }
        }
    }

    /// One fault from begin to a cluster that is whole again.
    async fn round(&mut self, fault: Fault) -> Result<(), NemesisError> {
        self.rest(QUIET_MS).await;
        let began = self.start.elapsed();
        let (begun, may_end) = match fault {
            Fault::Mixed => self.mixed().await?,
            fault => {
                let begun = self.begin(fault).await?;
                self.hold().await;
                (begun, fault == Fault::FullDisk)
            }
        };
        let name = begun.name;
        let late = std::mem::replace(&mut self.was_full, may_end);
        for (_, why) in self.nodes.ended()? {
            // What was refused while the disk was full may be told only now.
            if !(may_end || late && NO_SPACE.iter().any(|last| why.contains(last))) {
                self.problems.push(format!("during {name}: {why}"));
            }
        }
        let healed = self.start.elapsed();
        self.net.heal()?;
        self.nodes.heal()?;

        let since = Instant::now();
        let serves = serves(&self.load, self.options.keys, Action::Increment, self.options.serves_within);
        let ready = async {
            let ready = self.nodes.ready(READY_MAX, may_end).await;
            ready.map(|()| since.elapsed())
        };
        let ((served, seen), ready) = tokio::join!(serves, ready);
        self.seen.add(seen);
        let served_after =
            served.iter().copied().collect::<Option<Vec<_>>>().and_then(|all| all.into_iter().max());
        if served_after.is_none() {
            let keys: Vec<_> =
                (0..served.len()).filter(|key| served[*key].is_none()).map(|key| key.to_string()).collect();
            let within = self.options.serves_within.as_secs();
            self.problems.push(format!(
                "after {name} the healed cluster does not serve within {within} s: keys {}",
                keys.join(", ")
            ));
        }
        if let Err(why) = &ready {
            self.problems.push(format!("after {name} not ready within {} s: {why}", READY_MAX.as_secs()));
        }
        let hit = begun.hit;
        self.rounds.push(Round { fault, name, hit, began, healed, served_after, ready_after: ready.ok() });
        Ok(())
    }

    async fn hold(&mut self) {
        match self.options.hold {
            Some(time) => tokio::time::sleep(time).await,
            None => self.rest(HOLD_MS).await,
        }
    }

    async fn rest(&mut self, millis: std::ops::Range<u64>) {
        let time = Duration::from_millis(self.random.random_range(millis));
        tokio::time::sleep(time).await;
    }

    /// Ends the load, reads every counter, waits for the followers and judges.
    async fn verdict(mut self) -> Result<Report, NemesisError> {
        self.load.stop.cancel();
        while let Some(seen) = self.clients.join_next().await {
            self.seen.add(seen.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())));
        }
        let (read, seen) =
            serves(&self.load, self.options.keys, Action::Read, self.options.serves_within).await;
        self.seen.add(seen);
        if read.iter().any(Option::is_none) {
            self.problems.push("not every counter can be read in the end".into());
        }
        if let Err(why) = converged(&self.status_client).await {
            let within = CONVERGED_MAX.as_secs();
            self.problems.push(format!("replicas are not alike {within} s after the load: {why}"));
        }
        // Of a cluster that has not come back nobody asks more.
        if self.problems.is_empty()
            && let Err(why) = self.actors.judge(&self.status_client).await
        {
            self.problems.push(format!("in the end: {why}"));
        }
        self.seen.unexpected.extend(self.actors.unexpected());
        for (_, why) in self.nodes.ended()? {
            self.problems.push(why);
        }
        let ops = std::mem::take(&mut self.seen.ops);
        let ledger = |key| Ledger::of(ops.iter().filter(|op| op.key == key));
        Ok(Report {
            seed: self.options.seed,
            rounds: std::mem::take(&mut self.rounds),
            skipped: std::mem::take(&mut self.skipped),
            ledgers: (0..self.options.keys).map(ledger).collect(),
            violations: history::check(&ops),
            ops,
            besides: self.actors.counts(),
            faults: std::mem::take(&mut self.seen.faults),
            problems: std::mem::take(&mut self.problems),
            unexpected: std::mem::take(&mut self.seen.unexpected),
            kept: None,
        })
    }
}

/// For each counter, how long it takes until a new call of it is acknowledged; `None` if too long.
async fn serves(load: &Load, keys: usize, action: Action, within: Duration) -> (Vec<Option<Duration>>, Seen) {
    let since = Instant::now();
    let calls = (0..keys).map(|key| async move {
        let (served, seen) = load.insist(key, action, within).await;
        (served.then(|| since.elapsed()), seen)
    });
    let mut all = Seen::default();
    let mut times = Vec::new();
    for (time, seen) in join_all(calls).await {
        times.push(time);
        all.add(seen);
    }
    (times, all)
}

/// Waits until every follower has its leader's whole log.
async fn converged(client: &Client) -> Result<(), String> {
    let until = Instant::now() + CONVERGED_MAX;
    loop {
        let why = match client.status().await {
            Err(fault) => fault.to_string(),
            Ok(status) => {
                let behind = status.partitions.iter().flat_map(|partition| {
                    let late = partition.replicas.iter().filter(|replica| replica.lag != Some(0));
                    late.map(|replica| {
                        format!("partition {} on {}: {:?}", partition.partition, replica.node, replica.lag)
                    })
                });
                let behind: Vec<_> = behind.collect();
                if behind.is_empty() {
                    return Ok(());
                }
                behind.join(", ")
            }
        };
        if Instant::now() >= until {
            return Err(why);
        }
        tokio::time::sleep(LOOK_PERIOD).await;
    }
}
