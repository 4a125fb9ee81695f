//! `simulate`: a whole cluster from a seed, with everything that can go wrong, in one thread.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use clap::Parser;
use perennial_tests::simulation::{Control, Options, Report, run};

/// A promise was not kept.
const BROKEN: u8 = 1;
/// There is no verdict.
const NO_VERDICT: u8 = 2;
/// Real time after which one seed is given up; it takes seconds.
const STUCK: Duration = Duration::from_secs(300);

/// Simulates clusters and checks every promise.
#[derive(Parser)]
struct Args {
    /// Runs this seed alone and prints what happens.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Runs so many seeds, each in a process of its own.
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Processes at once; as many as there are processors if not given.
    #[arg(long)]
    jobs: Option<usize>,
    /// Length of the phase with faults, in simulated milliseconds.
    #[arg(long, default_value_t = 10_000)]
    faults_ms: u64,
    /// Plants a mistake on purpose and ends well once a seed has found it.
    #[arg(long, value_enum)]
    control: Option<Control>,
    /// With --seed: what the nodes log, such as perennial=debug, among the lines of the trace.
    #[arg(long, requires = "seed")]
    log: Option<String>,
    /// With --seed: prints the result only, as JSON.
    #[arg(long, requires = "seed")]
    json: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match args.seed {
        Some(seed) => one(&args, seed),
        None => many(&args),
    }
}

fn one(args: &Args, seed: u64) -> ExitCode {
    let dir = match tempfile::tempdir() {
        Ok(dir) => dir,
        Err(error) => {
            eprintln!("error: no temporary folder for the simulated disks can be made: {error}");
            return NO_VERDICT.into();
        }
    };
    // A run that no longer gets anywhere is a finding too. The thread shares nothing with the simulation.
    std::thread::spawn(move || {
        std::thread::sleep(STUCK);
        eprintln!("seed {seed} is stuck: it has not ended in {} s", STUCK.as_secs());
        std::process::abort();
    });
    perennial_entropy::seed(seed);
    if let Some(filter) = &args.log {
        tracing_subscriber::fmt().with_env_filter(filter).without_time().with_writer(std::io::stdout).init();
    }
    let options = Options { seed, faults_ms: args.faults_ms, loud: !args.json, control: args.control };
    let report = match run(&options, dir.path()) {
        Ok(report) => report,
        Err(error) => {
            eprintln!("error: the folder for the simulated disks cannot be used: {error}");
            return NO_VERDICT.into();
        }
    };
    if args.json {
        println!("{}", serde_json::to_string(&report).expect("a report is JSON"));
    } else {
        println!("{}", text(&report));
    }
    let code = if report.violations.is_empty() && report.unexpected.is_empty() {
        ExitCode::SUCCESS
    } else {
        BROKEN.into()
    };
    // What is left of the nodes ends with the process.
    drop(dir);
    let _ = std::io::stdout().flush();
    code
}

fn text(report: &Report) -> String {
    let faults: Vec<_> = report.faults.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    let mut text = format!(
        "seed {}: {} ms, {} nodes; {}\n{} calls acknowledged, {} of them reads that may be behind, {} of unknown outcome; {} dead letters; {} activations; {} leaderships, {} entries applied; digest {}",
        report.seed,
        report.steps,
        report.nodes,
        faults.join(", "),
        report.acknowledged,
        report.stale,
        report.unknown,
        report.died,
        report.activations,
        report.epochs,
        report.applied,
        report.digest,
    );
    for violation in &report.violations {
        text.push_str("\nVIOLATION: ");
        text.push_str(violation);
    }
    for fault in &report.unexpected {
        text.push_str("\nunexpected fault: ");
        text.push_str(fault);
    }
    text
}

/// What many seeds came to.
#[derive(Default)]
struct Sum {
    seeds: u64,
    steps: u64,
    faults: BTreeMap<String, u64>,
    acknowledged: u64,
    stale: u64,
    unknown: u64,
    died: u64,
    activations: u64,
    applied: u64,
    served_after: Vec<u64>,
    stuck: u64,
    compared: u64,
    broken: Vec<(u64, String)>,
}

fn many(args: &Args) -> ExitCode {
    let next = AtomicU64::new(args.from);
    let sum = Mutex::new(Sum::default());
    let jobs = args.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    std::thread::scope(|threads| {
        for _ in 0..jobs {
            threads.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let found = || !sum.lock().unwrap_or_else(PoisonError::into_inner).broken.is_empty();
                    if seed >= args.from + args.seeds || (args.control.is_some() && found()) {
                        return;
                    }
                    let outcome = child(args, seed);
                    add(&mut sum.lock().unwrap_or_else(PoisonError::into_inner), seed, outcome);
                }
            });
        }
    });
    verdict(args, sum.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Runs a seed in a process of its own: a run uses what a process has only once.
fn child(args: &Args, seed: u64) -> Result<Report, String> {
    let exe = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new(exe);
    command.args(["--json", "--seed", &seed.to_string(), "--faults-ms", &args.faults_ms.to_string()]);
    if let Some(control) = args.control {
        let value = clap::ValueEnum::to_possible_value(&control).expect("every control has a name");
        command.args(["--control", value.get_name()]);
    }
    let output = command.stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
    serde_json::from_slice(&output.stdout)
        .map_err(|_| format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr)))
}

fn add(sum: &mut Sum, seed: u64, outcome: Result<Report, String>) {
    sum.seeds += 1;
    let report = match outcome {
        Ok(report) => report,
        Err(why) => {
            println!("seed {seed} did not end: {why}");
            return sum.broken.push((seed, why));
        }
    };
    sum.steps += report.steps;
    sum.acknowledged += report.acknowledged;
    sum.stale += report.stale;
    sum.unknown += report.unknown;
    sum.died += report.died;
    sum.activations += report.activations;
    sum.applied += report.applied;
    sum.served_after.extend(report.served_after);
    sum.stuck += u64::from(report.stuck);
    sum.compared += report.compared;
    for (kind, count) in &report.faults {
        *sum.faults.entry(kind.clone()).or_default() += count;
    }
    if let Some(violation) = report.violations.first().or(report.unexpected.first()) {
        println!("{}", text(&report));
        sum.broken.push((seed, violation.clone()));
    }
}

fn verdict(args: &Args, mut sum: Sum) -> ExitCode {
    sum.served_after.sort_unstable();
    let of = |share: usize| {
        sum.served_after
            .get((sum.served_after.len() * share / 100).min(sum.served_after.len().saturating_sub(1)))
    };
    let ms = |time: Option<&u64>| time.map_or("-".to_owned(), |ms| format!("{ms} ms"));
    println!(
        "{} seeds, {} simulated minutes, {} faults, {} calls acknowledged, {} of them reads that may be behind, {} of unknown outcome, {} dead letters, {} activations, {} entries applied",
        sum.seeds,
        sum.steps / 60_000,
        sum.faults.values().sum::<u64>(),
        sum.acknowledged,
        sum.stale,
        sum.unknown,
        sum.died,
        sum.activations,
        sum.applied
    );
    println!(
        "{} pairs of replicas compared row by row; {} runs ended without a majority that has rows",
        sum.compared, sum.stuck
    );
    println!(
        "healed clusters serve after: p50 {}, p99 {}, longest {}",
        ms(of(50)),
        ms(of(99)),
        ms(sum.served_after.last())
    );
    for (kind, count) in &sum.faults {
        println!("{count:>8} {kind}");
    }
    let again = |seed| format!("cargo run -p perennial-tests --bin simulate -- --seed {seed}");
    match (args.control, sum.broken.first()) {
        (None, None) => {
            println!("kept: no violation");
            ExitCode::SUCCESS
        }
        (None, Some((seed, _))) => {
            println!("{} seeds BROKEN; see the first with: {}", sum.broken.len(), again(*seed));
            BROKEN.into()
        }
        (Some(control), Some((seed, violation))) => {
            println!("{control:?} is found by seed {seed}: {violation}");
            ExitCode::SUCCESS
        }
        (Some(control), None) => {
            println!("{control:?} is NOT found: the simulation proves nothing");
            BROKEN.into()
        }
    }
}
