//! The command line of every application.
//!
//! Owns flags, help and examples. Never runs anything: [`crate::launch`] does.

use std::path::PathBuf;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use perennial::call::ActorId;
use perennial::core::id::NodeId;
use perennial::core::time::Millis;
use perennial::dead::DeadId;

use crate::commands::dead::LISTED_DEFAULT;
use crate::output::Output;
use crate::settings::{ServeArgs, Span};

/// Where `dev` keeps its cluster unless told otherwise, and where other commands look for it.
pub(crate) const DEV_DATA_DEFAULT: &str = ".perennial/dev";
/// The file in which a cluster on this machine describes itself.
pub(crate) const CLUSTER_FILE: &str = "cluster.toml";

/// Virtual actors whose state is kept in replicated logs
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Without a command: dev. Exit codes: 0 done, 1 failed, 2 wrong usage, 5 no node can be reached."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run one node of a cluster
    Serve(Box<ServeArgs>),
    /// Run a cluster on this machine for development
    Dev(DevArgs),
    /// Kill nodes of a cluster under load and prove that nothing is lost or doubled
    Demo(DemoArgs),
    /// Call an actor
    Call(CallArgs),
    /// Show members, leaders and replicas
    Status(StatusArgs),
    /// Show, retry or drop messages and reminders that could not be applied
    Dead(DeadArgs),
    /// List and cancel reminders, the durable timers of actors
    #[command(visible_alias = "timer")]
    Reminder(ReminderArgs),
    /// Measure calls per second, latency, idle cost and failover
    ///
    /// Without --cluster and --address it starts nodes of its own in a temporary folder.
    Bench(BenchArgs),
    /// Make the certificates of a cluster
    Cert(CertArgs),
    /// Make an API key for the HTTP gateway
    ///
    /// The key goes to standard output and is kept nowhere; what the policy file of --auth needs to know it
    /// goes to standard error.
    Key(KeyArgs),
}

impl Command {
    /// `dev` without arguments.
    pub(crate) fn dev() -> Self {
        let cli = Cli::parse_from(["perennial", "dev"]);
        cli.command.expect("the words name a command")
    }
}

/// Which cluster to talk to.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct TargetArgs {
    /// File that describes the cluster [default: that of dev, .perennial/dev/cluster.toml]
    #[arg(long, value_name = "FILE", env = "PERENNIAL_CLUSTER", conflicts_with = "address")]
    pub(crate) cluster: Option<PathBuf>,
    /// Addresses of some nodes, instead of a file
    #[arg(long, value_name = "HOST:PORT,..", env = "PERENNIAL_ADDRESS", value_delimiter = ',', requires_all = ["tls_ca", "tls_cert", "tls_key"])]
    pub(crate) address: Vec<String>,
    /// Certificate of the cluster's authority (PEM)
    #[arg(long, value_name = "FILE", env = "PERENNIAL_TLS_CA")]
    pub(crate) tls_ca: Option<PathBuf>,
    /// Certificate of this client (PEM)
    #[arg(long, value_name = "FILE", env = "PERENNIAL_TLS_CERT")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Key of this client (PEM)
    #[arg(long, value_name = "FILE", env = "PERENNIAL_TLS_KEY")]
    pub(crate) tls_key: Option<PathBuf>,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct DevArgs {
    /// Nodes; one runs in this process, more run in processes of their own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=9))]
    pub(crate) nodes: u8,
    /// Folder for data, logs and certificates; kept for the next start
    #[arg(long, value_name = "DIR", default_value = DEV_DATA_DEFAULT)]
    pub(crate) data: PathBuf,
    /// First port for HTTP; the next free ones are taken
    #[arg(long, value_name = "PORT", default_value_t = 8080, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) http_port: u16,
    /// What to log, such as info or perennial=debug
    #[arg(long, value_name = "FILTER", env = "PERENNIAL_LOG", default_value = "warn")]
    pub(crate) log: String,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct DemoArgs {
    /// How long to drive load
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(4..=3600))]
    pub(crate) seconds: u32,
    /// Logical clients of each workload, each with one call in flight
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) clients: u32,
    /// Seed of the load; drawn and told if not given
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Keep the nodes' data and logs
    #[arg(long)]
    pub(crate) keep: bool,
    /// How to print the result
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: Output,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct CallArgs {
    /// The actor: KIND/KEY
    #[arg(value_name = "KIND/KEY")]
    pub(crate) actor: ActorId,
    /// The handler
    #[arg(value_name = "HANDLER")]
    pub(crate) method: String,
    /// name=value, name:=json, or - to read a JSON object from standard input
    #[arg(value_name = "ARGUMENT")]
    pub(crate) args: Vec<String>,
    /// Idempotency key: repeating the call with it gives the same answer and no second turn
    #[arg(long, value_name = "KEY")]
    pub(crate) key: Option<String>,
    /// When to give up
    #[arg(long, value_name = "TIME", default_value = "10s")]
    pub(crate) timeout: Span,
    /// A read that may be this much behind: any replica answers, also one that is cut off
    #[arg(long, value_name = "TIME", conflicts_with = "key")]
    pub(crate) stale: Option<Span>,
    #[command(flatten)]
    pub(crate) target: TargetArgs,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct StatusArgs {
    /// Show every partition
    #[arg(long)]
    pub(crate) partitions: bool,
    /// Show it again every second
    #[arg(long)]
    pub(crate) watch: bool,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: Output,
    #[command(flatten)]
    pub(crate) target: TargetArgs,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct DeadArgs {
    #[command(subcommand)]
    pub(crate) what: DeadCommand,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum DeadCommand {
    /// List dead letters, oldest first
    List {
        /// Only those for actors of this kind, or for this actor
        #[arg(value_name = "KIND[/KEY]")]
        which: Option<String>,
        /// Most to list
        #[arg(long, value_name = "N", default_value_t = LISTED_DEFAULT)]
        limit: usize,
        /// How to print them
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
        #[command(flatten)]
        target: TargetArgs,
    },
    /// Show a dead letter with its arguments
    Show {
        /// Its id, as the list has it
        #[arg(value_name = "ID")]
        id: DeadId,
        /// How to print it
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
        #[command(flatten)]
        target: TargetArgs,
    },
    /// Send messages again, each once, behind what is on its way to their receivers
    Retry {
        /// Ids, as the list has them; with --all a kind or an actor, KIND[/KEY], to retry only what is for it
        #[arg(value_name = "ID", required_unless_present = "all")]
        which: Vec<String>,
        /// All of them
        #[arg(long)]
        all: bool,
        /// How to print the result
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
        #[command(flatten)]
        target: TargetArgs,
    },
    /// Drop dead letters: their messages are never applied
    Drop {
        /// Ids, as the list has them
        #[arg(value_name = "ID", required = true)]
        ids: Vec<DeadId>,
        /// How to print the result
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
        #[command(flatten)]
        target: TargetArgs,
    },
}

impl DeadCommand {
    /// Which cluster is meant.
    pub(crate) fn target(&self) -> &TargetArgs {
        match self {
            Self::List { target, .. }
            | Self::Show { target, .. }
            | Self::Retry { target, .. }
            | Self::Drop { target, .. } => target,
        }
    }
}

#[derive(Debug, Clone, Args)]
pub(crate) struct ReminderArgs {
    #[command(subcommand)]
    pub(crate) what: ReminderCommand,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum ReminderCommand {
    /// List reminders that are set, earliest first
    List {
        /// Only those of this actor: KIND/KEY
        #[arg(value_name = "KIND/KEY")]
        actor: Option<ActorId>,
        /// Only those that are due before this time, such as 2026-12-24T18:00:00Z, or within this time, such as 10m
        #[arg(long, value_name = "TIME", value_parser = crate::commands::reminder::read_time)]
        due_before: Option<Millis>,
        /// How many at most
        #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
        /// How to print them
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
        #[command(flatten)]
        target: TargetArgs,
    },
    /// Cancel a reminder
    Cancel {
        /// The actor: KIND/KEY
        #[arg(value_name = "KIND/KEY")]
        actor: ActorId,
        /// The reminder's name
        #[arg(value_name = "NAME")]
        name: String,
        #[command(flatten)]
        target: TargetArgs,
    },
}

/// What a benchmark does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BenchOp {
    /// Writes: each call adds 1 to a counter
    Inc,
    /// Linearizable reads
    Get,
    /// Messages: each call has a counter send to counters that other nodes lead; messages are what counts
    Send,
    /// Writes while leaders are killed again and again
    Failover,
    /// Reminders: each actor sets some, which are due within --seconds
    Timer,
    /// Events of one topic, to --subscribers followers
    Events,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct BenchArgs {
    /// Calls in flight
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) clients: u32,
    /// Counters the calls are spread over
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) keys: u32,
    /// What to do
    #[arg(long, value_enum, default_value = "inc")]
    pub(crate) op: BenchOp,
    /// All calls go to one counter
    #[arg(long)]
    pub(crate) hot: bool,
    /// How long to measure
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub(crate) seconds: u32,
    /// How long to drive load before measuring
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub(crate) warmup: u32,
    /// Client sessions the calls are spread over
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) connections: u16,
    /// Kills of --op failover
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) kills: u16,
    /// Reminders of --op timer, over all actors
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub(crate) timers: u32,
    /// Followers of --op events, measured one number after the other
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_value = "1,100,10000", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) subscribers: Vec<u32>,
    /// Measure what idle nodes cost instead
    #[arg(long, conflicts_with_all = ["resident", "hot"])]
    pub(crate) idle: bool,
    /// Touch this many counters and measure the memory instead
    #[arg(long, value_name = "N", conflicts_with = "hot")]
    pub(crate) resident: Option<u32>,
    /// Nodes of the cluster that is started when none is named
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=9))]
    pub(crate) nodes: u8,
    /// How to print the result
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: Output,
    #[command(flatten)]
    pub(crate) target: TargetArgs,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct CertArgs {
    #[command(subcommand)]
    pub(crate) what: CertCommand,
}

#[derive(Debug, Clone, Subcommand)]
pub(crate) enum CertCommand {
    /// Make the authority of a cluster: ca.pem for everybody, ca.key for nobody but you
    Ca {
        #[command(flatten)]
        folder: CertFolder,
        /// Days it is valid
        #[arg(long, value_name = "N", default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=36_500))]
        days: u32,
    },
    /// Make certificates of nodes with the authority in the folder
    Node {
        /// Node ids
        #[arg(value_name = "NODE-ID", required = true)]
        nodes: Vec<NodeId>,
        /// A further name or address of the node, for use at the gateway or admin port; can be repeated
        #[arg(long, value_name = "NAME")]
        name: Vec<String>,
        #[command(flatten)]
        issue: CertIssue,
    },
    /// Make a certificate of a client with the authority in the folder
    Client {
        /// Its name
        #[arg(value_name = "NAME")]
        name: NodeId,
        #[command(flatten)]
        issue: CertIssue,
    },
    /// Make certificates of nodes and a client with an authority whose key is forgotten, to try things out
    Throwaway {
        /// Node ids
        #[arg(value_name = "NODE-ID", required = true)]
        nodes: Vec<NodeId>,
        /// Name of the client's certificate
        #[arg(long, value_name = "NAME", default_value = "client")]
        client: NodeId,
        #[command(flatten)]
        folder: CertFolder,
    },
}

#[derive(Debug, Clone, Args)]
pub(crate) struct CertFolder {
    /// Folder of the certificates
    #[arg(long, value_name = "DIR", default_value = "certs")]
    pub(crate) dir: PathBuf,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct CertIssue {
    #[command(flatten)]
    pub(crate) folder: CertFolder,
    /// Days they are valid, but never longer than the authority
    #[arg(long, value_name = "N", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub(crate) days: u32,
    /// Replace certificates that are there
    #[arg(long)]
    pub(crate) renew: bool,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct KeyArgs {
    /// Name of who will hold it; rules name it "key:NAME"
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// A group it is in; rules name it "group:NAME"; can be repeated
    #[arg(long, value_name = "NAME")]
    pub(crate) group: Vec<String>,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: Output,
}

/// Examples of each command; `$` stands for the program.
const EXAMPLES: &[(&str, &[&str])] = &[
    (
        "serve",
        &[
            "$ cert throwaway n1 n2 n3 --dir certs",
            "$ serve --node-id n1 --data data/n1 --listen 127.0.0.1:7001 --http 127.0.0.1:8081 \\\n    \
             --join 127.0.0.1:7001,127.0.0.1:7002,127.0.0.1:7003 --bootstrap-expect 3 \\\n    \
             --tls-ca certs/ca.pem --tls-cert certs/n1.pem --tls-key certs/n1.key",
            "$ serve --config n1.toml --http 0.0.0.0:8443 --http-tls-cert web.pem --http-tls-key web.key \\\n    \
             --auth policy.toml --admin 127.0.0.1:9001",
        ],
    ),
    ("dev", &["$ dev", "$ dev --nodes 3", "kill -9 PID   (of a node: watch its actors come back elsewhere)"]),
    ("demo", &["$ demo", "$ demo --seconds 30 --clients 256 -o json"]),
    (
        "call",
        &[
            "$ call Cart/alice add sku=tea qty=2 cents=250",
            "$ call Cart/alice total_cents",
            "$ call Cart/alice add --key order-17 sku=tea qty=2 cents=250   (safe to repeat)",
            "echo '{\"sku\":\"tea\",\"qty\":2,\"cents\":250}' | $ call Cart/alice add -",
            "name=value is text where the handler takes text, else JSON if it can be read as such",
        ],
    ),
    ("status", &["$ status", "$ status --partitions --watch", "$ status -o json | jq .members"]),
    (
        "dead",
        &[
            "$ dead list",
            "$ dead list Stock/tea --limit 10 -o json",
            "$ dead show 17-3",
            "$ dead retry 17-3",
            "$ dead retry --all Stock",
            "$ dead drop 17-3 17-4",
        ],
    ),
    (
        "reminder",
        &[
            "$ reminder list",
            "$ reminder list Cart/alice -o json",
            "$ timer list --due-before 10m --limit 1000",
            "$ reminder cancel Cart/alice abandoned",
        ],
    ),
    (
        "bench",
        &[
            "$ bench                              (starts three nodes in a temporary folder)",
            "$ bench --op get --clients 64",
            "$ bench --op send --clients 256",
            "$ bench --hot --cluster .perennial/dev/cluster.toml",
            "$ bench --op failover --kills 10",
            "$ bench --op timer --timers 1000000 --seconds 30",
            "$ bench --op events --subscribers 1,100,10000",
            "$ bench --idle --seconds 30",
            "$ bench --resident 100000",
        ],
    ),
    (
        "cert",
        &[
            "$ cert ca --dir certs",
            "$ cert node n1 n2 n3 --dir certs",
            "$ cert node n1 --dir certs --renew --name db1.example",
            "$ cert client backoffice --dir certs",
            "$ cert throwaway n1 n2 n3 --dir certs                (to try things out)",
        ],
    ),
    ("key", &["$ key shop-web --group web > shop-web.key", "$ key shop-web -o json"]),
];

/// Reads the command line of the application `name`.
///
/// # Errors
/// What clap says: also help and version.
pub(crate) fn parse(
    name: &'static str,
    args: impl IntoIterator<Item = impl Into<std::ffi::OsString> + Clone>,
) -> Result<Cli, clap::Error> {
    let mut command = Cli::command().name(name);
    for (sub, examples) in EXAMPLES {
        let text: String = examples.iter().map(|line| format!("  {}\n", line.replace('$', name))).collect();
        command = command.mut_subcommand(sub, |sub| sub.after_help(format!("Examples:\n{text}")));
    }
    Cli::from_arg_matches(&command.try_get_matches_from(args)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound_and_every_command_has_examples() {
        Cli::command().debug_assert();
        for command in Cli::command().get_subcommands() {
            assert!(EXAMPLES.iter().any(|(name, _)| *name == command.get_name()), "{}", command.get_name());
        }
    }

    #[test]
    fn no_command_at_all_is_accepted() {
        assert!(parse("shop", ["shop"]).unwrap().command.is_none());
    }
}
