//! `nemesis`: real faults on real node processes, as long as one likes. Needs root, `ip`, `nft` and `tc`;
//! faults that need more say so when they are skipped.
//!
//! With `serve` as its first argument it is itself the node that is tormented.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use perennial_runtime::{App, Run};
use perennial_tests::nemesis::{Fault, Options, run};
use perennial_tests::simulation::app::register;

/// A promise was not kept.
const BROKEN: u8 = 1;
/// There is no verdict.
const NO_VERDICT: u8 = 2;

/// How the report is printed.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// Torments a cluster of node processes and checks every answer.
#[derive(Parser)]
struct Args {
    /// No new round of faults is begun after this time; each fault is begun once at least.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// For the order of the faults, their lengths and, among the nodes that lead, their victims.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(2..=9))]
    nodes: u8,
    /// Replicas of each partition.
    #[arg(long, default_value_t = 3)]
    replication: u8,
    /// Partitions.
    #[arg(long, default_value_t = 32)]
    partitions: u32,
    /// Counters.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u16).range(1..))]
    keys: u16,
    /// Clients of each counter: in turn one over links, one that mostly reads, one over HTTP.
    #[arg(long, default_value_t = 3)]
    clients: usize,
    /// Only these faults.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Fault>,
    /// How many seconds each fault is held; without it, random lengths.
    #[arg(long)]
    hold: Option<u64>,
    /// Within so many seconds after a heal, every counter must be writable.
    #[arg(long, default_value_t = 10)]
    serves_within: u64,
    /// Executable of an application, called with `serve`; without it, this one.
    #[arg(long)]
    exe: Option<PathBuf>,
    /// Log filter of the nodes.
    #[arg(long, default_value = "info")]
    log: String,
    /// Keep logs and history also of a run that shows nothing.
    #[arg(long)]
    keep: bool,
    /// How the report is printed.
    #[arg(long, short, value_enum, default_value = "table")]
    output: Output,
}

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some("serve") {
        return register(App::new("nemesis")).run();
    }
    let args = Args::parse();
    let exe = match args.exe.map_or_else(std::env::current_exe, Ok) {
        Ok(exe) => exe,
        Err(error) => {
            eprintln!("error: cannot find this program: {error}");
            return NO_VERDICT.into();
        }
    };
    let mut options = Options {
        nodes: args.nodes.into(),
        replication: args.replication,
        partitions: args.partitions,
        keys: args.keys.into(),
        clients_per_key: args.clients,
        length: Duration::from_secs(args.seconds),
        seed: args.seed,
        hold: args.hold.map(Duration::from_secs),
        serves_within: Duration::from_secs(args.serves_within),
        log: args.log,
        keep: args.keep,
        ..Options::new(exe)
    };
    if !args.only.is_empty() {
        options.faults = args.only;
    }
    match run(&options) {
        Ok(report) => {
            for skipped in &report.skipped {
                eprintln!("!!! SKIPPED fault {skipped}");
            }
            match args.output {
                Output::Table => println!("{report}"),
                Output::Json => println!("{:#}", report.json()),
            }
            if report.kept_all() && report.unexpected.is_empty() { ExitCode::SUCCESS } else { BROKEN.into() }
        }
        Err(error) => {
            eprintln!("error: {error}");
            NO_VERDICT.into()
        }
    }
}
