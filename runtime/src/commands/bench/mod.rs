//! `bench`: calls per second, latency, cost of idle nodes and resident actors, failover gaps.
//!
//! Owns what is measured when; [`load`] makes calls, [`cost`] reads what processes use. All calls are
//! made closed-loop from this one process: each logical client has one call in flight.

mod cost;
mod events;
mod load;
mod sends;
mod timers;

use std::collections::BTreeMap;
use std::time::Duration;

use perennial::Client;
use perennial::limits::NEW_ACTORS_PER_SECOND_MAX;
use serde::Serialize;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use self::cost::{NodeCost, Sampler};
use self::events::Delivered;
use self::load::{Call, Figures};
use self::sends::{Pairs, Sends};
use super::target::Target;
use super::{Interrupts, Launch, READY_MAX, STOP_MAX, probe_for};
use crate::cli::{BenchArgs, BenchOp, TargetArgs};
use crate::counter::{CounterLoad, Prepared};
use crate::exit::{CommandError, Exit};
use crate::harness::{ClusterFile, ProcessCluster, kill_and_return, status_of};
use crate::output::{self, Output, Progress, mebibytes, micros, table};
use crate::workload::{LoadContext, LoadReport, Workload};

/// Pause between two kills, so that leaders are spread again.
const KILL_PAUSE: Duration = Duration::from_secs(1);
/// Calls in flight that publish for --op events.
const EVENT_PUBLISHERS_MAX: u32 = 4;
/// Rounds in which counters are touched until all of them are in memory.
const TOUCH_ROUNDS_MAX: usize = 4;

/// What a benchmark showed; absent parts were not measured.
#[derive(Debug, Serialize)]
struct Report {
    mode: &'static str,
    seconds: f64,
    clients: u32,
    connections: u16,
    keys: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    calls: Option<Figures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    messages: Option<Sends>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failover: Option<Failovers>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resident: Option<Resident>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timers: Option<timers::Figures>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    events: Vec<Delivered>,
    client_cpu_percent: f64,
    nodes: Vec<NodeCost>,
}

/// Gaps over all kills.
#[derive(Debug, Serialize)]
struct Failovers {
    kills: usize,
    partitions: usize,
    unanswered: usize,
    gap_p50_ms: u64,
    gap_max_ms: u64,
    report: LoadReport,
}

/// Memory of resident actors.
#[derive(Debug, Serialize)]
struct Resident {
    actors: u32,
    /// How many of them answered the first time.
    touched: u64,
    activations: u64,
    /// Calls per second when all of them were touched again, if not all were in memory by then: as many
    /// activations, as the one that is touched next was used longest ago.
    #[serde(skip_serializing_if = "Option::is_none")]
    activations_per_s: Option<f64>,
    rss_before_bytes: Vec<Option<u64>>,
}

pub(crate) async fn run(launch: &Launch, args: BenchArgs) -> Result<Exit, CommandError> {
    let mut interrupts = Interrupts::new()?;
    let report = tokio::select! {
        report = bench(launch, &args) => report?,
        () = interrupts.next() => return Err(CommandError::Interrupted),
    };
    match args.output {
        Output::Json => output::json(&report),
        Output::Text => show(&report),
    }
    let broken = report.failover.as_ref().is_some_and(|f| f.unanswered > 0 || !f.report.kept());
    let failed = report.calls.as_ref().is_some_and(|calls| calls.calls == 0)
        || report.timers.as_ref().is_some_and(|timers| timers.fired != timers.timers);
    let missing = report.messages.as_ref().is_some_and(|sends| sends.applied < sends.sent)
        || report.resident.as_ref().is_some_and(|resident| resident.touched < u64::from(resident.actors));
    Ok(if broken || failed || missing { Exit::Failed } else { Exit::Ok })
}

/// The cluster that is measured. The processes go before their folder.
struct Subject {
    own: Option<ProcessCluster>,
    _folder: Option<TempDir>,
    file: ClusterFile,
    clients: Vec<Client>,
}

impl Subject {
    async fn of(launch: &Launch, args: &BenchArgs, progress: &mut Progress) -> Result<Self, CommandError> {
        if names_one(&args.target) {
            let target = Target::of(&args.target, &launch.program)?;
            let mut clients = Vec::new();
            for _ in 0..args.connections {
                clients.push(target.connect().await?);
            }
            return Ok(Self { own: None, _folder: None, file: target.file, clients });
        }
        let nodes = if args.nodes == 1 { "one node".to_owned() } else { format!("{} nodes", args.nodes) };
        progress.state(&format!("starting {nodes} in a temporary folder"));
        let folder = tempfile::Builder::new()
            .prefix("perennial-bench-")
            .tempdir()
            .map_err(CommandError::io("make a temporary folder"))?;
        let spec = launch.cluster(usize::from(args.nodes), folder.path())?;
        let mut cluster = ProcessCluster::start(spec).await?;
        cluster.wait_ready(READY_MAX).await?;
        let mut clients = Vec::new();
        for _ in 0..args.connections {
            clients.push(cluster.client().await?);
        }
        Ok(Self { file: cluster.file(), own: Some(cluster), _folder: Some(folder), clients })
    }

    async fn stop(self) {
        drop(self.clients);
        if let Some(cluster) = self.own {
            cluster.stop(STOP_MAX).await;
        }
    }
}

fn names_one(target: &TargetArgs) -> bool {
    target.cluster.is_some() || !target.address.is_empty()
}

async fn bench(launch: &Launch, args: &BenchArgs) -> Result<Report, CommandError> {
    let failover = args.op == BenchOp::Failover && !args.idle && args.resident.is_none();
    if failover && names_one(&args.target) {
        let why = "--op failover kills nodes, so it starts its own: leave out --cluster and --address";
        return Err(CommandError::Usage(why.into()));
    }
    let mut progress = Progress::spinner();
    let mut subject = Subject::of(launch, args, &mut progress).await?;
    let report = if args.idle {
        idle(args, &subject, &mut progress).await
    } else if let Some(actors) = args.resident {
        resident(args, actors, &subject, &mut progress).await
    } else if failover {
        failovers(args, &mut subject, &mut progress).await
    } else if args.op == BenchOp::Timer {
        timers::run(args, &subject, &mut progress).await
    } else if args.op == BenchOp::Events {
        events(args, &subject, &mut progress).await
    } else {
        calls(args, &subject, &mut progress).await
    }?;
    progress.state("stopping");
    subject.stop().await;
    Ok(report)
}

/// A report without its parts.
fn report(mode: &'static str, args: &BenchArgs, cost: cost::Cost) -> Report {
    Report {
        mode,
        seconds: cost.seconds,
        clients: args.clients,
        connections: args.connections,
        keys: if args.hot { 1 } else { args.keys },
        calls: None,
        messages: None,
        failover: None,
        resident: None,
        timers: None,
        events: Vec::new(),
        client_cpu_percent: cost.own_cpu_percent,
        nodes: cost.nodes,
    }
}

async fn calls(args: &BenchArgs, subject: &Subject, progress: &mut Progress) -> Result<Report, CommandError> {
    let (client, keys) = (&subject.clients[0], if args.hot { 1 } else { args.keys });
    let (mut pairs, mode) = match args.op {
        BenchOp::Send => (Some(Pairs::of(&status_of(client).await?, keys)?), "send"),
        BenchOp::Get => (None, "get"),
        BenchOp::Inc | BenchOp::Failover | BenchOp::Timer | BenchOp::Events => (None, "inc"),
    };
    let calls = match &mut pairs {
        Some(pairs) => std::mem::take(&mut pairs.calls),
        None if args.op == BenchOp::Get => Call::of_counters(keys, &Prepared::get()),
        None => Call::of_counters(keys, &Prepared::add(1)),
    };
    let applied = async || match &pairs {
        Some(pairs) => pairs.applied(client).await,
        None => Ok(0),
    };
    let running = load::start(&subject.clients, args.clients, calls);
    progress.state(&format!("{} calls in flight: warming up for {} s", args.clients, args.warmup));
    tokio::time::sleep(Duration::from_secs(args.warmup.into())).await;
    let mut sampler = Sampler::new(&subject.file).await;
    progress.state(&format!("measuring for {} s", args.seconds));
    let before = applied().await?;
    let counting = tokio::time::Instant::now();
    running.measure(true);
    tokio::time::sleep(Duration::from_secs(args.seconds.into())).await;
    running.measure(false);
    let cost = sampler.since_start().await;
    // Reading takes its time under load, in which messages arrive too.
    let arrived = applied().await? - before;
    let counted = counting.elapsed().as_secs_f64();
    let (figures, acknowledged) = running.stop(cost.seconds).await;
    let messages = match &pairs {
        Some(pairs) => {
            progress.state("waiting for what is on its way");
            Some(pairs.settle(client, acknowledged, arrived, counted).await?)
        }
        None => None,
    };
    Ok(Report { calls: Some(figures), messages, ..report(mode, args, cost) })
}

async fn events(
    args: &BenchArgs,
    subject: &Subject,
    progress: &mut Progress,
) -> Result<Report, CommandError> {
    let (warmup, time) = (Duration::from_secs(args.warmup.into()), Duration::from_secs(args.seconds.into()));
    let publishers = args.clients.min(EVENT_PUBLISHERS_MAX);
    let mut sampler = Sampler::new(&subject.file).await;
    let mut all = Vec::new();
    for &subscribers in &args.subscribers {
        progress.state(&format!("{subscribers} followers: measuring for {} s", args.seconds));
        all.push(events::measure(&subject.clients, subscribers, publishers, warmup, time).await);
    }
    let cost = sampler.since_start().await;
    Ok(Report { events: all, clients: publishers, keys: 1, ..report("events", args, cost) })
}

async fn idle(args: &BenchArgs, subject: &Subject, progress: &mut Progress) -> Result<Report, CommandError> {
    progress.state(&format!("letting the nodes settle for {} s", args.warmup));
    tokio::time::sleep(Duration::from_secs(args.warmup.into())).await;
    let mut sampler = Sampler::new(&subject.file).await;
    progress.state(&format!("measuring idle nodes for {} s", args.seconds));
    tokio::time::sleep(Duration::from_secs(args.seconds.into())).await;
    Ok(report("idle", args, sampler.since_start().await))
}

async fn resident(
    args: &BenchArgs,
    actors: u32,
    subject: &Subject,
    progress: &mut Progress,
) -> Result<Report, CommandError> {
    let mut sampler = Sampler::new(&subject.file).await;
    progress.state(&format!("touching {actors} counters"));
    // Each counter is a new actor, of which a node takes so many a second, and it may lead all partitions.
    let pace = Some(NEW_ACTORS_PER_SECOND_MAX);
    let figures = load::touch(&subject.clients, args.clients, actors, pace).await;
    let cost = sampler.since_start().await;
    let (mut activations, mut activations_per_s) = (0, None);
    for _ in 0..TOUCH_ROUNDS_MAX {
        let status = status_of(&subject.clients[0]).await?;
        let before = activations;
        activations = status.partitions.iter().map(|partition| partition.activations).sum();
        // No more than before: they have used up the memory they may take.
        if activations >= u64::from(actors) || activations <= before {
            break;
        }
        // Partitions that went home to their preferred leader meanwhile left their activations behind.
        progress.state(&format!("{activations} of {actors} are in memory: touching all of them again"));
        activations_per_s = Some(load::touch(&subject.clients, args.clients, actors, None).await.calls_per_s);
    }
    let cost = cost::Cost { nodes: sampler.since_start().await.nodes, ..cost };
    let activations_per_s = activations_per_s.filter(|_| activations < u64::from(actors));
    let rss_before_bytes = sampler.rss_at_start();
    let touched = figures.calls;
    let resident = Resident { actors, touched, activations, activations_per_s, rss_before_bytes };
    let calls = Some(figures.rates(cost.seconds));
    Ok(Report { resident: Some(resident), calls, keys: actors, ..report("resident", args, cost) })
}

async fn failovers(
    args: &BenchArgs,
    subject: &mut Subject,
    progress: &mut Progress,
) -> Result<Report, CommandError> {
    let client = subject.clients[0].clone();
    let cluster = subject.own.as_mut().expect("failover is measured on a cluster of its own only");
    let probe = probe_for(&status_of(&client).await?)?;
    let stop = CancellationToken::new();
    let _stop_on_failure = stop.clone().drop_guard();
    let ctx = LoadContext {
        client: client.clone(),
        clients: args.clients as usize,
        seed: rand::random(),
        probe: probe.clone(),
        stop: stop.clone(),
    };
    let running = CounterLoad.start(ctx);
    progress.state(&format!("{} calls in flight: warming up for {} s", args.clients, args.warmup));
    tokio::time::sleep(Duration::from_secs(args.warmup.into())).await;
    let mut sampler = Sampler::new(&subject.file).await;
    let (mut gaps, mut unanswered) = (Vec::new(), 0);
    for kill in 1..=args.kills {
        progress.state(&format!("kill {kill} of {}", args.kills));
        let seen = kill_and_return(cluster, &client, &probe, None, |line| progress.line(line)).await?;
        gaps.extend(seen.gaps_ms);
        unanswered += seen.unanswered;
        tokio::time::sleep(KILL_PAUSE).await;
    }
    stop.cancel();
    progress.state("reading everything back");
    let verified = running.finish().await?;
    gaps.sort_unstable();
    let failover = Failovers {
        kills: usize::from(args.kills),
        partitions: gaps.len(),
        unanswered,
        gap_p50_ms: gaps.get(gaps.len() / 2).copied().unwrap_or(0),
        gap_max_ms: gaps.last().copied().unwrap_or(0),
        report: verified,
    };
    // Killed processes took their counts with them, so the nodes' cost says nothing here.
    let cost = cost::Cost { nodes: Vec::new(), ..sampler.since_start().await };
    Ok(Report { failover: Some(failover), ..report("failover", args, cost) })
}

fn show(report: &Report) {
    let mut facts = BTreeMap::new();
    if let Some(calls) = &report.calls {
        output::data(&format!(
            "{:.0} calls/s ({} calls in {:.1} s; {} in flight over {} keys and {} connections)",
            calls.calls_per_s, calls.calls, report.seconds, report.clients, report.keys, report.connections
        ));
        output::data(&format!(
            "latency p50 {}, p99 {}, p99.9 {}, longest {}",
            micros(calls.p50_micros),
            micros(calls.p99_micros),
            micros(calls.p999_micros),
            micros(calls.max_micros)
        ));
        facts.extend(calls.errors.iter().map(|(code, count)| (format!("failed with {code}"), *count)));
    }
    if let Some(sends) = &report.messages {
        output::data(&format!(
            "{:.0} messages/s applied at actors of other nodes, {} of each call; of {} sent {} are applied in the end",
            sends.messages_per_s, sends.messages_of_a_call, sends.sent, sends.applied
        ));
    }
    if let Some(failover) = &report.failover {
        output::data(&format!(
            "{} kills, {} partitions led by the killed: gap p50 {} ms, longest {} ms",
            failover.kills, failover.partitions, failover.gap_p50_ms, failover.gap_max_ms
        ));
        facts.insert("not answered in time".into(), failover.unanswered as u64);
        facts.insert("acknowledged".into(), failover.report.acknowledged);
        facts.insert("lost".into(), failover.report.lost);
        facts.insert("doubled".into(), failover.report.doubled);
    }
    if let Some(timers) = &report.timers {
        output::data(&format!(
            "{} reminders of {} actors, set at {:.0}/s; due over {} s, {} fired at {:.0}/s",
            timers.timers, report.keys, timers.set_per_s, timers.spread_s, timers.fired, timers.fired_per_s
        ));
        output::data(&format!(
            "late by p50 {} ms, p99 {} ms, at most {} ms",
            timers.late_p50_ms, timers.late_p99_ms, timers.late_max_ms
        ));
        let shown = |bytes: &[Option<u64>]| {
            let shown = bytes.iter().map(|bytes| bytes.map_or_else(|| "-".to_owned(), mebibytes));
            shown.collect::<Vec<_>>().join(", ")
        };
        output::data(&format!(
            "memory of the nodes before: {}; with all of them waiting: {}",
            shown(&timers.rss_before_bytes),
            shown(&timers.rss_waiting_bytes)
        ));
    }
    for events in &report.events {
        output::data(&format!(
            "{} followers: {:.0} events/s delivered, {:.0}/s published; p50 {}, p99 {}, longest {}; {} resumed",
            events.subscribers,
            events.delivered_per_s,
            events.published_per_s,
            micros(events.p50_micros),
            micros(events.p99_micros),
            micros(events.max_micros),
            events.resumed
        ));
    }
    if let Some(resident) = &report.resident {
        output::data(&format!(
            "{} counters, {} of them answered, {} in memory",
            resident.actors, resident.touched, resident.activations
        ));
        if let Some(rate) = resident.activations_per_s {
            output::data(&format!("touched again: {rate:.0} activations/s"));
        }
    }
    for (name, value) in facts {
        output::data(&format!("{name}: {value}"));
    }
    output::data(&format!("this process used {:.0} % of a core", report.client_cpu_percent));
    if report.nodes.is_empty() {
        return;
    }
    let before = report.resident.as_ref().map(|resident| &resident.rss_before_bytes);
    let mut header = vec!["node", "#process", "#CPU of a core", "#flushes/s", "#memory"];
    header.extend(before.map(|_| "#before"));
    let mut nodes = table(&header);
    for (at, node) in report.nodes.iter().enumerate() {
        let dash = || "-".to_owned();
        let memory = |bytes: Option<u64>| bytes.map_or_else(dash, mebibytes);
        let mut row = vec![
            node.node.to_string(),
            node.pid.map_or_else(dash, |pid| pid.to_string()),
            node.cpu_percent.map_or_else(dash, |cpu| format!("{cpu:.1} %")),
            node.flushes_per_s.map_or_else(dash, |flushes| format!("{flushes:.0}")),
            memory(node.rss_bytes),
        ];
        row.extend(before.map(|before| memory(before.get(at).copied().flatten())));
        nodes.add_row(row);
    }
    output::data(&nodes.trim_fmt());
}
