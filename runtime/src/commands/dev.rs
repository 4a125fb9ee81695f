//! `dev`: a cluster on this machine, for as long as it is watched.
//!
//! One node runs in this process; more run in processes of their own, so that each can be killed for
//! real. Owns the folder: a lock, certificates made anew at each start, ports kept from the last one. The
//! authority's key is never written, and nothing started here outlives this process.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anstyle::AnsiColor;
use perennial::App;
use perennial::actor::Method;
use perennial::node::NodeConfig;
use perennial::schema::{Type, Types};
use tokio::task::JoinSet;

use super::serve::Running;
use super::{Interrupts, Launch, READY_MAX};
use crate::certs::throwaway;
use crate::cli::{CLUSTER_FILE, DEV_DATA_DEFAULT, DevArgs};
use crate::counter;
use crate::exit::{CommandError, Exit};
use crate::gateway::GatewayConfig;
use crate::harness::{
    ClusterFile, ClusterSpec, NodeEntry, Ports, ProcessCluster, free_from, free_ports, node_ids,
};
use crate::output::{self, LogFormat, Progress, paint};
use crate::settings::{PARTITIONS_DEFAULT, REPLICATION_DEFAULT, SettingsError};

/// How long nodes may take to stop.
const GRACE: Duration = Duration::from_secs(5);
/// Pause before a node that died is started again; doubled while it keeps dying.
const RESTART_PAUSE_MIN: Duration = Duration::from_millis(500);
/// Longest such pause.
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(10);
/// A node that ran for so long died of something new.
const RAN_WELL: Duration = Duration::from_secs(30);
/// How often logs and returning nodes are looked at.
const LOOK_PERIOD: Duration = Duration::from_millis(200);

pub(crate) async fn run(launch: &Launch, args: DevArgs) -> Result<Exit, CommandError> {
    // Nodes in processes of their own would each fail by it.
    output::check_filter(&args.log).map_err(|problem| SettingsError { problems: vec![problem] })?;
    let folder = Folder::open(&args)?;
    let ports = folder.ports(&args)?;
    if args.nodes == 1 {
        embedded(launch, &args, &folder, ports[0]).await
    } else {
        processes(launch, &args, &folder, ports).await
    }
}

/// The folder of a cluster, locked for as long as this value lives.
struct Folder {
    path: PathBuf,
    _lock: File,
    last: Option<ClusterFile>,
}

impl Folder {
    fn open(args: &DevArgs) -> Result<Self, CommandError> {
        let path = &args.data;
        let shown = path.display();
        let io = |doing: &str| CommandError::io(format!("{doing} {shown}"));
        if path.exists() && !path.is_dir() {
            return Err(CommandError::Failed(format!("{shown} is not a folder; name one with --data")));
        }
        std::fs::create_dir_all(path).map_err(io("make the folder"))?;
        let path = path.canonicalize().map_err(io("find the folder"))?;
        let file = path.join(CLUSTER_FILE);
        if !file.exists()
            && let Some(foreign) = foreign(&path).map_err(io("read the folder"))?
        {
            return Err(CommandError::Failed(format!(
                "{shown} holds {foreign} and no cluster of dev: give an empty folder with --data"
            )));
        }
        let lock = File::options()
            .create(true)
            .write(true)
            .truncate(false)
            .open(path.join("lock"))
            .map_err(io("lock the folder"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(CommandError::Failed(format!(
                    "another dev runs in {shown}: stop it, or give this one another folder with --data"
                )));
            }
            Err(TryLockError::Error(error)) => return Err(io("lock the folder")(error)),
        }
        let last = if file.exists() { Some(ClusterFile::read(&file)?) } else { None };
        if let Some(nodes) =
            last.as_ref().map(|last| last.nodes.len()).filter(|&n| n != usize::from(args.nodes))
        {
            return Err(CommandError::Failed(format!(
                "{shown} holds a cluster of {nodes}: start it with --nodes {nodes}, \
                 give another folder with --data, or remove this one"
            )));
        }
        Ok(Self { path, _lock: lock, last })
    }

    /// Ports for nodes as they were last time if they are free, ports for HTTP from the wanted one on.
    fn ports(&self, args: &DevArgs) -> Result<Vec<Ports>, CommandError> {
        let count = usize::from(args.nodes);
        let last = self.last.as_ref().and_then(|last| {
            let ports = last.nodes.iter().map(|node| node.address.rsplit_once(':')?.1.parse().ok());
            ports.collect::<Option<Vec<u16>>>()
        });
        let free = |ports: &Vec<u16>| ports.iter().all(|&port| free_from(port, 1).is_ok_and(|p| p == [port]));
        let nodes = match last.filter(free) {
            Some(ports) => ports,
            None => free_ports(count)?,
        };
        let http = free_from(args.http_port, count).map_err(|_| {
            let first = args.http_port;
            CommandError::Failed(format!(
                "fewer than {count} ports of 127.0.0.1 are free from {first} on; give a lower --http-port"
            ))
        })?;
        Ok(nodes.into_iter().zip(http).map(|(node, http)| Ports { node, http }).collect())
    }
}

/// The name of something in the folder that `dev` does not put there.
fn foreign(path: &Path) -> std::io::Result<Option<String>> {
    for entry in std::fs::read_dir(path)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let of_a_node = name.strip_prefix('n').is_some_and(|number| number.parse::<u8>().is_ok());
        if !of_a_node && !matches!(name.as_str(), "lock" | "tls" | "cluster.toml.next") {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// One node in this process.
async fn embedded(
    launch: &Launch,
    args: &DevArgs,
    folder: &Folder,
    ports: Ports,
) -> Result<Exit, CommandError> {
    output::start_logs(&args.log, LogFormat::Plain)
        .map_err(|problem| SettingsError { problems: vec![problem] })?;
    let mut interrupts = Interrupts::new()?;
    let ids = node_ids(1).map_err(crate::harness::HarnessError::from)?;
    let certs = throwaway(&folder.path.join("tls"), &ids, "local")?;
    let on = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let config = NodeConfig {
        node: ids[0].clone(),
        listen: on(ports.node),
        advertise: None,
        http: Some(on(ports.http).to_string()),
        join: Vec::new(),
        dns_server: None,
        bootstrap_expect: Some(1),
        data: folder.path.join(ids[0].as_str()).join("data"),
        tls: certs.nodes[&ids[0]].clone(),
        partitions: PARTITIONS_DEFAULT,
        replication: REPLICATION_DEFAULT,
        zone: None,
        weight: 100,
        actors_bytes: perennial::limits::ACTORS_BYTES_DEFAULT,
    };
    let running =
        Running::start(launch.app.clone(), config, Some(on(ports.http)), GatewayConfig::default()).await?;
    let entry = NodeEntry {
        id: ids[0].clone(),
        address: running.node.address().to_string(),
        http: on(ports.http).to_string(),
        pid: Some(std::process::id()),
    };
    let file = ClusterFile {
        app: launch.app.name().to_owned(),
        addresses: vec![entry.address.clone()],
        tls: certs.client.into(),
        nodes: vec![entry],
    };
    file.write(&folder.path)?;

    let mut progress = Some(Progress::spinner());
    tokio::select! {
        failed = running.run(|stage| match (&mut progress, stage) {
            (shown, "ready") => {
                *shown = None;
                banner(launch, args, &file);
            }
            (Some(shown), stage) => shown.state(stage),
            (None, stage) => output::say(stage),
        }) => return Err(failed),
        () = interrupts.next() => {}
    }
    drop(progress);
    output::say("stopping (Ctrl-C again stops at once)");
    tokio::select! {
        () = running.stop(GRACE) => Ok(Exit::Ok),
        () = interrupts.next() => Err(CommandError::Interrupted),
    }
}

/// Several nodes, each a process that is started again when it dies.
async fn processes(
    launch: &Launch,
    args: &DevArgs,
    folder: &Folder,
    ports: Vec<Ports>,
) -> Result<Exit, CommandError> {
    let mut interrupts = Interrupts::new()?;
    let log = if args.log == "warn" { "info".to_owned() } else { args.log.clone() };
    let spec = ClusterSpec { ports, log, ..launch.cluster(usize::from(args.nodes), &folder.path)? };
    let mut cluster = ProcessCluster::start(spec).await?;
    let tails = tail_logs(&cluster);
    tokio::select! {
        ready = until_ready(&mut cluster) => ready?,
        () = interrupts.next() => {
            cluster.stop(GRACE).await;
            return Err(CommandError::Interrupted);
        }
    }
    banner(launch, args, &cluster.file());

    let mut wards = Wards::new(usize::from(args.nodes));
    loop {
        tokio::select! {
            (at, status) = cluster.next_exit() => wards.died(&mut cluster, at, status)?,
            () = tokio::time::sleep(LOOK_PERIOD), if wards.busy() => wards.look(&mut cluster).await?,
            () = interrupts.next() => break,
        }
    }
    drop(tails);
    output::say("stopping the nodes (Ctrl-C again kills them)");
    tokio::select! {
        () = cluster.stop(GRACE) => Ok(Exit::Ok),
        // Dropping the cluster kills and reaps what is left.
        () = interrupts.next() => Err(CommandError::Interrupted),
    }
}

async fn until_ready(cluster: &mut ProcessCluster) -> Result<(), CommandError> {
    let mut progress = Progress::spinner();
    let until = Instant::now() + READY_MAX;
    loop {
        let waiting = cluster.waiting_for().await?;
        if waiting.is_empty() {
            return Ok(());
        }
        if Instant::now() > until {
            return Err(CommandError::Failed(format!(
                "not ready after {} s: {}; see {}",
                READY_MAX.as_secs(),
                waiting.join("; "),
                cluster.log(0).display()
            )));
        }
        progress.state(&waiting.join("; "));
        tokio::time::sleep(LOOK_PERIOD).await;
    }
}

/// Nodes that died and come back.
struct Wards {
    ids: Vec<perennial::core::id::NodeId>,
    started: Vec<Instant>,
    pause: Vec<Duration>,
    down: BTreeMap<usize, Instant>,
    returning: BTreeMap<usize, Instant>,
}

impl Wards {
    fn new(nodes: usize) -> Self {
        Self {
            ids: node_ids(nodes).unwrap_or_default(),
            started: vec![Instant::now(); nodes],
            pause: vec![RESTART_PAUSE_MIN; nodes],
            down: BTreeMap::new(),
            returning: BTreeMap::new(),
        }
    }

    fn busy(&self) -> bool {
        !self.down.is_empty() || !self.returning.is_empty()
    }

    fn died(
        &mut self,
        cluster: &mut ProcessCluster,
        at: usize,
        status: ExitStatus,
    ) -> Result<(), CommandError> {
        if self.started[at].elapsed() > RAN_WELL {
            self.pause[at] = RESTART_PAUSE_MIN;
        }
        let pause = self.pause[at];
        self.pause[at] = (pause * 2).min(RESTART_PAUSE_MAX);
        self.returning.remove(&at);
        self.down.insert(at, Instant::now() + pause);
        output::warn(&format!(
            "{} ended ({status}); it starts again in {:.1} s; its log: {}",
            self.ids[at],
            pause.as_secs_f64(),
            cluster.log(at).display()
        ));
        Ok(cluster.write_file()?)
    }

    async fn look(&mut self, cluster: &mut ProcessCluster) -> Result<(), CommandError> {
        let now = Instant::now();
        let due: Vec<_> = self.down.iter().filter(|(_, when)| **when <= now).map(|(at, _)| *at).collect();
        for at in due {
            self.down.remove(&at);
            cluster.restart(at).await?;
            self.started[at] = now;
            self.returning.insert(at, now);
        }
        for at in self.returning.keys().copied().collect::<Vec<_>>() {
            if cluster.is_ready(at).await {
                let since = self.returning.remove(&at).unwrap_or(now);
                let line = format!("{} is back after {:.1} s", self.ids[at], since.elapsed().as_secs_f64());
                output::say(&paint(&line, AnsiColor::Green));
            }
        }
        Ok(())
    }
}

/// Shows warnings and errors of each node's log as they are written.
fn tail_logs(cluster: &ProcessCluster) -> JoinSet<()> {
    let mut tails = JoinSet::new();
    for (at, id) in cluster.ids().into_iter().enumerate() {
        let Ok(mut file) = File::open(cluster.log(at)) else { continue };
        // What earlier starts wrote is old news.
        let _ = std::io::Seek::seek(&mut file, std::io::SeekFrom::End(0));
        let mut log = BufReader::new(file);
        tails.spawn(async move {
            let mut line = Vec::new();
            loop {
                match log.read_until(b'\n', &mut line) {
                    Ok(read) if read > 0 && line.ends_with(b"\n") => {
                        let text = String::from_utf8_lossy(&line);
                        if text.contains(" WARN ") || text.contains("ERROR ") {
                            output::say(&format!(
                                "{} {}",
                                paint(&format!("{id} |"), AnsiColor::Cyan),
                                text.trim_end()
                            ));
                        }
                        line.clear();
                    }
                    Ok(_) => tokio::time::sleep(LOOK_PERIOD).await,
                    Err(_) => return,
                }
            }
        });
    }
    tails
}

/// Says where everything is and what to try.
fn banner(launch: &Launch, args: &DevArgs, file: &ClusterFile) {
    let Some(first) = file.nodes.first() else { return };
    let row = |name: &str, text: &str| output::say(&format!("  {name:<9} {text}"));
    let title = match file.nodes.len() {
        1 => format!("{} runs on one node", launch.app.name()),
        n => format!("{} runs on {n} nodes", launch.app.name()),
    };
    output::say(&paint(&title, AnsiColor::Green));
    for node in &file.nodes {
        let pid = node.pid.map_or_else(String::new, |pid| format!("  (process {pid})"));
        row(node.id.as_str(), &format!("http://{}/{pid}", node.http));
    }
    for (mount, _) in launch.app.pages() {
        row("page", &format!("http://{}/{mount}/", first.http));
    }
    row("status", &format!("http://{}/v1/status", first.http));
    let cluster = if args.data == Path::new(DEV_DATA_DEFAULT) {
        String::new()
    } else {
        format!(" --cluster {}", args.data.join(CLUSTER_FILE).display())
    };
    row("", &format!("{} status{cluster}", launch.program));
    if let Some((kind, method)) = example(&launch.app) {
        let arguments = method.params.iter().map(|param| (param.name, sample(param.schema)));
        let words: String =
            arguments.clone().map(|(name, value)| format!(" {name}={}", value.trim_matches('"'))).collect();
        let json: Vec<_> = arguments.map(|(name, value)| format!("\"{name}\":{value}")).collect();
        row("try", &format!("{} call {kind}/alice {}{words}{cluster}", launch.program, method.name));
        let url = format!("http://{}/v1/{kind}/alice/{}", first.http, method.name);
        row("", &format!("curl -X POST {url} -d '{{{}}}'", json.join(",")));
    }
    if file.nodes.len() > 1 {
        row("", "kill -9 one of the processes: its actors come back on the others");
    }
    row("open", "no passwords: whoever can reach loopback on this machine may call everything");
    row("data", &format!("{} (stop with Ctrl-C, start again to go on)", args.data.display()));
}

/// A handler to try: the application's own before the counter, writes before reads.
fn example(app: &App) -> Option<(&'static str, &'static Method)> {
    let handlers = app.kinds().iter().flat_map(|kind| kind.methods().iter().map(|m| (kind.name(), m)));
    handlers
        .filter(|(_, method)| method.params.iter().all(|param| !sample(param.schema).is_empty()))
        .min_by_key(|(kind, method)| (*kind == counter::KIND, !method.write))
}

/// A value to try, as JSON; empty for types that have none that is short.
fn sample(schema: fn(&mut Types) -> Type) -> String {
    match schema(&mut Types::default()) {
        Type::Bool => "true".into(),
        Type::Int(_) | Type::Uint(_) | Type::F32 | Type::F64 => "1".into(),
        Type::String => "\"tea\"".into(),
        _ => String::new(),
    }
}
