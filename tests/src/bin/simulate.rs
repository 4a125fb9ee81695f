//! `simulate`: a whole cluster from a seed, with everything that can go wrong, in one thread.

use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use clap::Parser;
use perennial_tests::simulation::{Options, run};

/// A promise was not kept.
const BROKEN: u8 = 1;

/// Real time after which one seed is given up; it takes seconds.
const STUCK: Duration = Duration::from_secs(120);

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
    /// Processes at once.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Length of the phase with faults, in simulated milliseconds.
    #[arg(long, default_value_t = 10_000)]
    faults_ms: u64,
    /// With --seed: prints the result only.
    #[arg(long)]
    quiet: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match args.seed {
        Some(seed) => one(&args, seed),
        None => many(&args),
    }
}

fn one(args: &Args, seed: u64) -> ExitCode {
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    // A run that no longer gets anywhere is a finding too. The thread shares nothing with the simulation.
    std::thread::spawn(move || {
        std::thread::sleep(STUCK);
        eprintln!("seed {seed} is stuck: it has not ended in {} s", STUCK.as_secs());
        std::process::abort();
    });
    perennial_entropy::seed(seed);
    let options = Options { seed, faults_ms: args.faults_ms, loud: !args.quiet };
    let report = match run(&options, dir.path()) {
        Ok(report) => report,
        Err(error) => {
            eprintln!("error: the folder for simulated disks cannot be used: {error}");
            return 2.into();
        }
    };
    println!("{report:#?}");
    if report.violations.is_empty() { ExitCode::SUCCESS } else { BROKEN.into() }
}

fn many(args: &Args) -> ExitCode {
    let next = AtomicU64::new(args.from);
    let failed = Mutex::new(Vec::new());
    let exe = std::env::current_exe().expect("this program has a path");
    std::thread::scope(|threads| {
        for _ in 0..args.jobs {
            threads.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= args.from + args.seeds {
                        return;
                    }
                    let output = Command::new(&exe)
                        .args(["--seed", &seed.to_string(), "--quiet", "--faults-ms", &args.faults_ms.to_string()])
                        .stdin(Stdio::null())
                        .output()
                        .expect("this program can be started");
                    if !output.status.success() {
                        println!("seed {seed} FAILED\n{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
                        failed.lock().unwrap_or_else(PoisonError::into_inner).push(seed);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    println!("{} seeds, {} failed: {failed:?}", args.seeds, failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { BROKEN.into() }
}
