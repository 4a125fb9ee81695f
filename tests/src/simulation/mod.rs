//! A whole cluster, its clients and everything that goes wrong, in one thread and from one seed.
//!
//! Owns the course of a run: faults while clients call, then everything heals and must serve, then what the
//! actors say is compared with what the clients were told. The nodes are the real ones, down to the log's
//! files, on simulated machines ([`perennial::node::Machine`]); left out are sockets, TLS, forming, the
//! control lane, fjall and the gateway, which the nemesis has. The idea is FoundationDB's.

pub mod app;
pub mod faults;
pub mod follow;
pub mod invariants;
pub mod load;
pub mod newer;
pub mod operator;
pub mod porter;
pub mod shelf;
pub mod trace;
pub mod world;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use perennial::Client;
use perennial::core::id::NodeId;
use perennial::limits::ACTIVATION_BYTES;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use self::faults::Faults;
use self::load::{Books, Shared};
pub use self::world::Control;
use self::world::{Host, Life, World, lock};
use crate::nemesis::history::{Action, Outcome};

/// One seed in so many has machines that start again with a newer build.
const MIXED_EVERY: u64 = 3;
/// Machines with clients.
const CLIENTS: usize = 3;
/// Logical clients of each.
const DRIVERS: usize = 2;
/// Time for the first election, in milliseconds.
const CALM_MS: u64 = 1500;
/// Within so long a healed cluster must take a write of every counter, in milliseconds.
const SERVES_WITHIN_MS: u64 = 30_000;
/// Within so long everything that is on its way must have arrived, in milliseconds: record time that a fast
/// clock has set stands still for a minute, and alarms with it.
const SETTLES_WITHIN_MS: u64 = 180_000;
/// Within so long all replicas must have caught up, in milliseconds.
const CATCHES_UP_WITHIN_MS: u64 = 30_000;
/// How often replicas are looked at that have to catch up, in milliseconds.
const LOOK_MS: u64 = 100;
/// Actors of the nodes of every second seed have memory for a few of them, and leave it all the time.
const SCARCE_EVERY: u64 = 2;
/// That memory, in bytes.
const SCARCE_BYTES: u64 = 4 * ACTIVATION_BYTES;
/// How often actors must have come into it at least; how often they are called follows from the seed.
const SCARCE_ACTIVATIONS_MIN: u64 = 100;
/// Within so long all nodes must have stopped, in milliseconds.
const STOPS_WITHIN_MS: u64 = 30_000;

/// A machine with clients, as the network knows it.
fn client_id(number: usize) -> NodeId {
    NodeId::new(&format!("k{number}")).expect("k1 is a node id")
}

/// What to simulate.
#[derive(Debug, Clone)]
pub struct Options {
    /// Everything follows from it.
    pub seed: u64,
    /// Length of the phase with faults, in milliseconds.
    pub faults_ms: u64,
    /// Print what happens.
    pub loud: bool,
    /// A mistake planted on purpose.
    pub control: Option<Control>,
}

/// What came of a run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    /// Of which seed.
    pub seed: u64,
    /// Milliseconds simulated.
    pub steps: u64,
    /// Nodes.
    pub nodes: usize,
    /// Faults by kind.
    pub faults: BTreeMap<String, u64>,
    /// Calls acknowledged.
    pub acknowledged: u64,
    /// Reads answered by a replica that may have been behind.
    pub stale: u64,
    /// Calls of unknown outcome.
    pub unknown: u64,
    /// Payments that were dead letters at some time.
    #[serde(default)]
    pub died: u64,
    /// How often actors came into memory.
    #[serde(default)]
    pub activations: u64,
    /// Leaders that began.
    pub epochs: u64,
    /// Entries applied, on all replicas together.
    pub applied: u64,
    /// Milliseconds from the heal to a new write of every counter.
    pub served_after: Option<u64>,
    /// The same for every run of this seed by the same build.
    pub digest: String,
    /// No majority of a partition's replicas had rows, one node being down for good.
    pub stuck: bool,
    /// Pairs of replicas that were compared, row by row.
    pub compared: u64,
    /// What did not hold.
    pub violations: Vec<String>,
    /// Faults that callers could do nothing about.
    pub unexpected: Vec<String>,
}

/// Runs one seed, with the disks' files in a folder.
///
/// # Errors
/// When the folder cannot be used.
pub fn run(options: &Options, dir: &Path) -> std::io::Result<Report> {
    let mut random = StdRng::seed_from_u64(options.seed);
    let nodes = if random.random_bool(0.25) { 5 } else { 3 };
    let partitions = [2, 4, 8][random.random_range(0..3)];
    let mut world = World::new(options.seed, nodes, partitions, dir, options.loud)?;
    world.control = options.control;
    if options.seed.is_multiple_of(SCARCE_EVERY) {
        world.actors_bytes = SCARCE_BYTES;
    }
    world.mixed = options.control == Some(Control::CarelessBuild) || options.seed.is_multiple_of(MIXED_EVERY);
    world.say(&format!("seed {}: {nodes} nodes, {partitions} partitions", options.seed));
    for at in 0..nodes {
        world.start(at);
    }
    let shared = Arc::new(Shared::default());
    let clients = Arc::new(Mutex::new(Vec::new()));
    let mut drivers = Vec::new();
    for number in 0..CLIENTS {
        let (hub, link, ids) = (world.hub.clone(), world.link.clone(), world.ids());
        let (shared, clients) = (shared.clone(), clients.clone());
        let me = client_id(number);
        let (seeds, shelves): ([u64; DRIVERS], u64) = random.random();
        drivers.push(world.clients.spawn(async move {
            let client = load::connect(&hub, &me, &ids, &link).await;
            lock(&clients).push(client.clone());
            let driving = seeds
                .into_iter()
                .map(|seed| load::drive(client.clone(), format!("{me} {seed:x}"), seed, shared.clone()));
            let following =
                seeds.into_iter().map(|seed| follow::follow(client.clone(), seed ^ 1, shared.clone()));
            tokio::join!(
                futures_util::future::join_all(driving),
                futures_util::future::join_all(following),
                follow::publish(client.clone(), seeds[0] ^ 2, shared.clone()),
                shelf::drive(client.clone(), shelves, shared.clone()),
            );
        }));
    }
    drivers.push(world.clients.spawn({
        let (hub, link, ids) = (world.hub.clone(), world.link.clone(), world.ids());
        let (shared, seed) = (shared.clone(), options.seed ^ 0xdead);
        let me = NodeId::new("operator").expect("it is a node id");
        async move { operator::operate(load::connect(&hub, &me, &ids, &link).await, seed, shared).await }
    }));
    drivers.push(world.clients.spawn({
        let (hub, link, ids) = (world.hub.clone(), world.link.clone(), world.ids());
        let (shared, seed) = (shared.clone(), options.seed ^ 0xb0a7);
        let me = NodeId::new("sender").expect("it is a node id");
        async move { porter::drive(load::connect(&hub, &me, &ids, &link).await, seed, shared).await }
    }));
    let mut faults = Faults::new(options.seed);
    if faults.splits() {
        drivers.push(world.clients.spawn({
            let (hub, link, ids) = (world.hub.clone(), world.link.clone(), world.ids());
            let (shared, seed) = (shared.clone(), options.seed ^ 0x4ead);
            let me = NodeId::new("reader").expect("it is a node id");
            async move { load::read(&load::connect(&hub, &me, &ids, &link).await, seed, &shared).await }
        }));
    }
    let end = CALM_MS + options.faults_ms;
    while world.now < end && lock(&world.watching).violations.is_empty() {
        let safety = world.now > CALM_MS;
        faults.act(&mut world, safety);
        world.step();
    }
    faults.heal_all(&mut world);
    let mut report = Report { seed: options.seed, nodes, ..Report::default() };
    if lock(&world.watching).violations.is_empty() {
        finish(&mut world, &mut faults, &shared, &clients, drivers, &mut report);
    }
    let writes: u64 = world.hosts.iter().map(|host| host.disk.writes_after_failure()).sum();
    if writes > 0 {
        world.found(Err(format!("{writes} writes came after a flush had failed")));
    }
    report.steps = world.now;
    report.faults = faults.counts.into_iter().map(|(kind, count)| (kind.to_owned(), count)).collect();
    shared.heard(|heard| {
        report.acknowledged = heard.acknowledged;
        report.unexpected = std::mem::take(&mut heard.unexpected);
        let told = heard.payments.iter().chain(&heard.alarms).chain(&heard.metronomes).chain(&heard.relays);
        let told = told.chain(&heard.changes);
        let told = told.map(|told| told.outcome);
        let outcomes = heard.ops.iter().map(|op| op.outcome).chain(told);
        report.stale = heard.stale.len() as u64;
        report.unknown = outcomes.filter(|outcome| *outcome == Outcome::Unknown).count() as u64;
    });
    let mut watching = lock(&world.watching);
    report.epochs = watching.epochs;
    report.applied = watching.applied;
    report.violations = std::mem::take(&mut watching.violations);
    report.digest = format!("{:032x}", watching.trace.digest());
    Ok(report)
}

/// Whether every replica has applied what its leader has.
fn caught_up(world: &mut World) -> bool {
    let up = |host: &Host| matches!(host.life, Life::Up(_));
    let Some(at) = world.hosts.iter().position(up) else { return false };
    let Some(status) = world.status(at) else { return false };
    let runs = |id: &NodeId| world.hosts.iter().any(|host| host.id == *id && up(host));
    let mut replicas = status.partitions.iter().flat_map(|partition| &partition.replicas);
    replicas.all(|replica| replica.lag == Some(0) || !runs(&replica.node))
}

/// Begins to call every counter until it answers.
fn count_all(
    world: &World,
    clients: &Arc<Mutex<Vec<Client>>>,
    shared: &Arc<Shared>,
    action: Action,
) -> JoinHandle<()> {
    let (shared, clients) = (shared.clone(), clients.clone());
    world.clients.spawn(async move {
        let client = loop {
            if let Some(client) = lock(&clients).first().cloned() {
                break client;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        for key in 0..load::COUNTERS {
            while !load::count(&client, "k0 at the end", key, action, &shared).await {}
        }
    })
}

/// What must hold once everything has healed.
fn finish(
    world: &mut World,
    faults: &mut Faults,
    shared: &Arc<Shared>,
    clients: &Arc<Mutex<Vec<Client>>>,
    drivers: Vec<JoinHandle<()>>,
    report: &mut Report,
) {
    // Every counter takes a new write.
    let healed = world.now;
    let serving = count_all(world, clients, shared, Action::Increment);
    if !faults.live_until(world, SERVES_WITHIN_MS, || serving.is_finished()) {
        let without_rows = world.describe();
        if faults.retired.is_some() && !without_rows.is_empty() {
            // One node stays down, and a power cut came while another one installed a snapshot: it must
            // not lead without rows, and may hold the longest log. Nothing is lost, nobody serves.
            world.say(&format!("no majority with rows: {}", without_rows.join(", ")));
            report.stuck = true;
            return;
        }
        return world.found(Err(format!("the healed cluster does not serve within {SERVES_WITHIN_MS} ms")));
    }
    report.served_after = Some(world.now - healed);
    world.say("it serves");
    shared.stop();
    // Everything on its way arrives.
    let books: Arc<Mutex<Option<Books>>> = Arc::default();
    let settling = {
        let (clients, books) = (clients.clone(), books.clone());
        let deaths = lock(&world.watching).deaths.clone();
        world.clients.spawn(async move {
            futures_util::future::join_all(drivers).await;
            let client = lock(&clients)[0].clone();
            loop {
                let read = load::read_books(&client).await;
                let dropped = lock(&deaths).dropped.len();
                let settled = read.as_ref().is_some_and(|books| books.are_settled(dropped));
                if read.is_some() {
                    *lock(&books) = read;
                }
                if settled {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        })
    };
    let settled = faults.live_until(world, SETTLES_WITHIN_MS, || settling.is_finished());
    let last = lock(&books).take().unwrap_or_default();
    if !settled {
        world.found(Err(format!("messages or alarms have not arrived within {SETTLES_WITHIN_MS} ms")));
    }
    // The counters once more, so that each history ends with a read.
    let reading = count_all(world, clients, shared, Action::Read);
    if !faults.live_until(world, SERVES_WITHIN_MS, || reading.is_finished()) {
        world.found(Err(format!("the counters cannot be read within {SERVES_WITHIN_MS} ms")));
    }
    let deaths = lock(&world.watching).deaths.clone();
    let deaths = lock(&deaths);
    report.died = deaths.ever.len() as u64;
    let published = lock(&world.watching).published.clone();
    let results = shared.heard(|heard| {
        [
            invariants::streams_have_no_gap(&heard.streams, &lock(&published)),
            invariants::linearizable(&heard.ops),
            invariants::reads_are_no_older_than_they_say(&heard.stale, &heard.sums),
            invariants::every_payment_arrives_once(&heard.payments, &last, &deaths),
            invariants::dead_letters_are_those_of_the_log(&last, &deaths),
            invariants::every_alarm_rings_once(&heard.alarms, &last),
            invariants::every_metronome_beats_in_time(&heard.metronomes, &last),
            invariants::nested_calls_run_once(&heard.relays, &last),
            invariants::collections_hold_what_was_acknowledged(&heard.changes, &heard.audits, &last),
            invariants::worker_calls_run_at_most_once(&heard.carried, &last),
        ]
    });
    drop(deaths);
    for result in results {
        world.found(result);
    }
    // All replicas catch up.
    let until = world.now + CATCHES_UP_WITHIN_MS;
    while !caught_up(world) {
        if world.now >= until {
            let _ = world.describe();
            world.found(Err(format!("replicas have not caught up within {CATCHES_UP_WITHIN_MS} ms")));
            break;
        }
        faults.live_until(world, LOOK_MS, || false);
    }
    report.activations = world.activations();
    if world.actors_bytes == SCARCE_BYTES && report.activations < SCARCE_ACTIVATIONS_MIN {
        world
            .found(Err(format!("with little memory, actors came into it {} times only", report.activations)));
    }
    if !world.stop_all(STOPS_WITHIN_MS) {
        return world.found(Err(format!("the nodes do not stop within {STOPS_WITHIN_MS} ms")));
    }
    world.say("it has stopped");
    let disks = world.hosts.iter().filter(|host| matches!(host.life, Life::Up(_)));
    let agree = invariants::replicas_agree(disks.map(|host| (host.id.as_str(), &host.disk)));
    report.compared = agree.as_ref().copied().unwrap_or(0);
    world.found(agree.map(drop));
}
