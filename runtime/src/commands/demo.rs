//! `demo`: kill nodes under load, then read everything back.
//!
//! Owns the schedule: three nodes, load, a kill at about a third, its return, another at about two
//! thirds, its return, the end of the load, the reading back. What must not happen is decided by the
//! workloads' reports. Nothing is left behind, whichever way it ends.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anstyle::AnsiColor;
use comfy_table::{Cell, Color};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::{Interrupts, Launch, READY_MAX, STOP_MAX, probe_for};
use crate::cli::DemoArgs;
use crate::exit::{CommandError, Exit};
use crate::harness::{FailOver, ProcessCluster, kill_and_return, status_of};
use crate::output::{self, Output, Progress, micros, paint, table};
use crate::workload::{LoadContext, LoadReport, Probe, RunningLoad, Tally};

/// Nodes of the demo.
const NODES: usize = 3;
/// When the kills happen, in hundredths of the load's time.
const KILLS_AT: [u32; 2] = [30, 65];
/// How often the bar moves.
const DRAW_PERIOD: Duration = Duration::from_millis(100);

/// What a demo showed.
#[derive(Debug, Serialize)]
struct Outcome {
    kept: bool,
    seed: u64,
    seconds: f64,
    calls: Tally,
    kills: Vec<FailOver>,
    workloads: Vec<Verified>,
}

/// A workload's report.
#[derive(Debug, Serialize)]
struct Verified {
    workload: &'static str,
    #[serde(flatten)]
    report: LoadReport,
}

pub(crate) async fn run(launch: &Launch, args: DemoArgs) -> Result<Exit, CommandError> {
    let mut interrupts = Interrupts::new()?;
    let mut folder = tempfile::Builder::new()
        .prefix("perennial-demo-")
        .tempdir()
        .map_err(CommandError::io("make a temporary folder"))?;
    folder.disable_cleanup(args.keep);
    let path = folder.path().to_owned();
    if args.keep {
        output::say(&format!("data and logs stay in {}", path.display()));
    }
    // Whichever ends first, the other is dropped: the nodes are killed before the folder goes.
    let outcome = tokio::select! {
        outcome = demo(launch, &args, path) => outcome?,
        () = interrupts.next() => return Err(CommandError::Interrupted),
    };
    match args.output {
        Output::Json => output::json(&outcome),
        Output::Text => show(&outcome),
    }
    Ok(if outcome.kept { Exit::Ok } else { Exit::Failed })
}

async fn demo(launch: &Launch, args: &DemoArgs, path: PathBuf) -> Result<Outcome, CommandError> {
    let seed = args.seed.unwrap_or_else(rand::random);
    let mut progress = Progress::bar(u64::from(args.seconds) * 1000);
    progress.state(&format!("starting {NODES} nodes"));
    let mut cluster = ProcessCluster::start(launch.cluster(NODES, path)?).await?;
    cluster.wait_ready(READY_MAX).await?;
    let client = cluster.client().await?;
    let probe = probe_for(&status_of(&client).await?)?;
    let stop = CancellationToken::new();

    progress.line(&format!(
        "{NODES} nodes are up; {} clients drive {} for {} s (seed {seed})",
        args.clients as usize * launch.workloads.len(),
        launch.workloads.iter().map(|w| w.name()).collect::<Vec<_>>().join(" and "),
        args.seconds
    ));
    let begun = Instant::now();
    let running: Vec<_> = launch
        .workloads
        .iter()
        .map(|workload| {
            let (client, probe, stop) = (client.clone(), probe.clone(), stop.clone());
            let ctx = LoadContext { client, clients: args.clients as usize, seed, probe, stop };
            (workload.name(), workload.start(ctx))
        })
        .collect();

    // Load that is still running when this function fails must not outlive it.
    let _stop_on_failure = stop.clone().drop_guard();
    let progress = Arc::new(progress);
    let drawing = tokio::spawn(draw(Arc::clone(&progress), probe.clone(), begun, args.seconds, stop.clone()));
    let mut kills: Vec<FailOver> = Vec::new();
    for at in KILLS_AT {
        let due = begun + Duration::from_secs(u64::from(args.seconds)) * at / 100;
        tokio::time::sleep_until(due.into()).await;
        let spare = kills.last().map(|kill| kill.node.clone());
        let killed =
            kill_and_return(&mut cluster, &client, &probe, spare.as_ref(), |line| progress.line(line))
                .await?;
        kills.push(killed);
    }
    tokio::time::sleep_until((begun + Duration::from_secs(args.seconds.into())).into()).await;
    stop.cancel();
    let seconds = begun.elapsed().as_secs_f64();
    let _ = drawing.await;

    progress.line("the load has ended; reading everything back");
    let workloads = verify(running).await?;
    drop(progress);
    let calls = probe.tally();
    cluster.stop(STOP_MAX).await;
    let kept = workloads.iter().all(|w| w.report.kept() && w.report.acknowledged > 0)
        && kills.iter().all(|kill| kill.unanswered == 0 && kill.measured > 0);
    Ok(Outcome { kept, seed, seconds, calls, kills, workloads })
}

async fn draw(progress: Arc<Progress>, probe: Probe, begun: Instant, seconds: u32, stop: CancellationToken) {
    let mut last = (Instant::now(), 0);
    while !stop.is_cancelled() {
        tokio::time::sleep(DRAW_PERIOD).await;
        let done = probe.tally().acknowledged;
        let (since, before) = last;
        let rate = (done - before) as f64 / since.elapsed().as_secs_f64();
        last = (Instant::now(), done);
        let left = f64::from(seconds) - begun.elapsed().as_secs_f64();
        let text = format!("{done} calls acknowledged, {rate:.0}/s, {:.0} s left", left.max(0.0));
        progress.detail(begun.elapsed().as_millis() as u64, &text);
    }
}

async fn verify(running: Vec<(&'static str, Box<dyn RunningLoad>)>) -> Result<Vec<Verified>, CommandError> {
    let mut verified = Vec::new();
    for (workload, load) in running {
        verified.push(Verified { workload, report: load.finish().await? });
    }
    Ok(verified)
}

fn show(outcome: &Outcome) {
    let mut kills = table(&["killed", "#led", "#gap p50", "#gap max", "#caught up after"]);
    for kill in &outcome.kills {
        kills.add_row([
            kill.node.to_string(),
            kill.led.to_string(),
            format!("{} ms", kill.gap_p50_ms),
            format!("{} ms", kill.gap_max_ms),
            format!("{} ms", kill.caught_up_ms),
        ]);
    }
    let mut loads = table(&["workload", "what", "#found", "promised"]);
    for Verified { workload, report } in &outcome.workloads {
        let fixed = [
            ("turns acknowledged", report.acknowledged, false),
            ("outcomes never learned", report.unknown, false),
            ("acknowledged turns lost", report.lost, true),
            ("turns doubled", report.doubled, true),
        ];
        let checks = report.checks.iter().map(|c| (c.label.as_str(), c.value, c.must_be_zero));
        for (what, found, must_be_zero) in fixed.into_iter().chain(checks) {
            let broken = must_be_zero && found > 0;
            let count = Cell::new(found);
            loads.add_row([
                Cell::new(workload),
                Cell::new(what),
                if broken { count.fg(Color::Red) } else { count },
                Cell::new(if must_be_zero { "0" } else { "" }),
            ]);
        }
    }
    let calls = &outcome.calls;
    output::data(&format!(
        "{} calls acknowledged in {:.1} s, {} of them retried; {} failed; p50 {}, p99 {}, longest {}",
        calls.acknowledged,
        outcome.seconds,
        calls.retried,
        calls.failed,
        micros(calls.p50_micros),
        micros(calls.p99_micros),
        micros(calls.max_micros)
    ));
    output::data(&kills.trim_fmt());
    output::data(&loads.trim_fmt());
    for note in outcome.workloads.iter().flat_map(|w| &w.report.notes) {
        output::data(note);
    }
    for kill in outcome.kills.iter().filter(|kill| kill.unanswered > 0) {
        output::data(&format!(
            "{} partitions of {} did not answer again in time",
            kill.unanswered, kill.node
        ));
    }
    let (text, color) = if outcome.kept {
        ("kept: every acknowledged turn is there, once", AnsiColor::Green)
    } else {
        ("BROKEN: not everything is as promised", AnsiColor::Red)
    };
    output::data(&paint(text, color));
}
