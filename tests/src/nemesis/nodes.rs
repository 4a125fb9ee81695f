//! The node processes of a run, each in its namespace.
//!
//! Owns the processes, their disks and their clocks. Nothing outlives it: processes are killed and reaped,
//! then their disks are unmounted, when it is dropped; should this process be killed, the nodes see the end
//! of their standard input and stop.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use perennial::client::ClientConfig;
use perennial::core::id::{NodeId, PartitionId};
use perennial::node::TlsFiles;
use perennial::status::ClusterStatus;
use perennial_runtime::certs::throwaway;
use perennial_runtime::harness::without_settings;
use tokio::process::{Child, ChildStdin, Command};

use super::clock::{self, Clock};
use super::disk::Disk;
use super::net::{Net, address};
use super::{Fault, NemesisError, Options};

/// Port for nodes and clients.
const NODE_PORT: u16 = 7001;
/// Port of the gateways.
const HTTP_PORT: u16 = 8080;
/// How long a killed process may take to be gone.
const REAP_MAX: Duration = Duration::from_secs(5);
/// How often readiness is asked for.
const LOOK_PERIOD: Duration = Duration::from_millis(50);
/// How long one question for readiness may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// Lines of a node's log to show when it ended.
const TAIL_LINES: usize = 10;

/// All nodes.
pub(super) struct Nodes {
    nodes: Vec<Node>,
    client: TlsFiles,
    http: reqwest::Client,
    /// Or why they have none of their own.
    disks: Result<(), String>,
    /// Or why they go by that of the machine.
    clocks: Result<(), String>,
}

impl Nodes {
    /// Makes certificates, disks and clocks and starts the processes.
    pub(super) fn start(options: &Options, net: &Net, dir: &Path) -> Result<Self, NemesisError> {
        let count = options.nodes;
        let ids: Result<Vec<_>, _> = (1..=count).map(|n| NodeId::new(&format!("n{n}"))).collect();
        let ids = ids.expect("n1 is a node id");
        let certs = throwaway(&dir.join("tls"), &ids, "nemesis")?;
        let join: Vec<_> = (0..count).map(node_address).collect();
        let mut nodes: Vec<_> = ids
            .iter()
            .enumerate()
            .map(|(at, id)| Node::new(options, net, dir, (at, id), &join.join(","), &certs.nodes[id]))
            .collect();
        for node in &nodes {
            std::fs::create_dir_all(&node.dir)
                .map_err(NemesisError::io(format!("make {}", node.dir.display())))?;
        }
        Disk::remove_leftovers();
        clock::remove_leftovers();
        let disks = nodes.iter_mut().try_for_each(|node| {
            node.disk = Some(Disk::new(&node.dir)?);
            Ok(())
        });
        if disks.is_err() {
            nodes.iter_mut().for_each(|node| node.disk = None);
        }
        // Not for runs that leave the clocks alone: it is between the nodes and every look at the time.
        let sets_clocks = options.faults.iter().any(|fault| matches!(fault, Fault::Clock | Fault::Mixed));
        let library = if sets_clocks { clock::library() } else { Err("clocks are left alone".into()) };
        if let Ok(library) = &library {
            for node in &mut nodes {
                node.clock = Some(Clock::new(library, &node.dir)?);
            }
        }
        let http = reqwest::Client::builder().no_proxy().timeout(PROBE_TIMEOUT).build();
        let http = http.expect("a client without TLS has nothing to load");
        let mut nodes = Self { nodes, client: certs.client, http, disks, clocks: library.map(drop) };
        for node in &mut nodes.nodes {
            node.spawn()?;
        }
        Ok(nodes)
    }

    /// Whether nodes have disks that can be hurt.
    pub(super) fn have_disks(&self) -> Result<(), String> {
        self.disks.clone()
    }

    /// Whether nodes have clocks that can be set.
    pub(super) fn have_clocks(&self) -> Result<(), String> {
        self.clocks.clone()
    }

    /// The nodes that lead a partition.
    pub(super) fn leaders(&self, status: &ClusterStatus) -> Vec<usize> {
        (0..self.nodes.len()).filter(|at| !self.led(*at, status).is_empty()).collect()
    }

    /// The partitions that a node leads.
    pub(super) fn led(&self, node: usize, status: &ClusterStatus) -> Vec<PartitionId> {
        let led = status.partitions.iter().filter(|p| p.leader.as_ref() == Some(&self.nodes[node].id));
        led.map(|p| p.partition).collect()
    }

    /// The disk of a node.
    ///
    /// # Panics
    /// When it has none.
    pub(super) fn disk(&mut self, node: usize) -> &mut Disk {
        self.nodes[node].disk.as_mut().expect("faults of disks are chosen only where nodes have disks")
    }

    /// Puts a node's clock so many seconds after, or before, the right time.
    pub(super) fn set_clock(&self, node: usize, seconds: i64) -> Result<(), NemesisError> {
        self.nodes[node].clock.as_ref().map_or(Ok(()), |clock| clock.set(seconds))
    }

    /// Settings of clients, each of which tries the nodes from another one on.
    pub(super) fn client_config(&self, number: usize) -> ClientConfig {
        let count = self.nodes.len();
        let addresses = (0..count).map(|at| node_address((at + number) % count)).collect();
        ClientConfig { addresses, tls: self.client.clone() }
    }

    /// Sends a signal to a node's process.
    pub(super) fn signal(&self, node: usize, signal: Signal) {
        if let Some(running) = &self.nodes[node].running {
            let _ = kill(Pid::from_raw(running.pid as i32), signal);
        }
    }

    /// Kills a node's process and reaps it.
    pub(super) async fn kill9(&mut self, node: usize) -> Result<(), NemesisError> {
        self.nodes[node].kill9().await
    }

    /// Ends what was done to nodes: their disks and clocks are right again, the paused go on, and those
    /// that are down start.
    pub(super) fn heal(&mut self) -> Result<(), NemesisError> {
        for at in 0..self.nodes.len() {
            if let Some(disk) = &mut self.nodes[at].disk {
                disk.heal()?;
            }
            self.set_clock(at, 0)?;
            self.signal(at, Signal::SIGCONT);
            let node = &mut self.nodes[at];
            if node.running.is_none() {
                node.spawn()?;
            }
        }
        Ok(())
    }

    /// The nodes that ended by themselves, with the end of their logs.
    pub(super) fn ended(&mut self) -> Result<Vec<(usize, String)>, NemesisError> {
        let mut found = Vec::new();
        for (at, node) in self.nodes.iter_mut().enumerate() {
            if let Some(status) = node.ended()? {
                found
                    .push((at, format!("node {} ended by itself ({status}):\n{}", node.id, node.log_tail())));
            }
        }
        Ok(found)
    }

    /// Waits until every node is ready; says what they wait for if they do not become so. A node that
    /// ends by itself meanwhile is started again if that `may_end`, and else is why it does not.
    pub(super) async fn ready(&mut self, patience: Duration, may_end: bool) -> Result<(), String> {
        let until = Instant::now() + patience;
        loop {
            for (at, why) in self.ended().map_err(|error| error.to_string())? {
                if !may_end {
                    return Err(why);
                }
                self.nodes[at].spawn().map_err(|error| error.to_string())?;
            }
            let answers = self.nodes.iter().enumerate().map(|(at, node)| self.waits_for(at, node));
            let waiting: Vec<_> =
                futures_util::future::join_all(answers).await.into_iter().flatten().collect();
            if waiting.is_empty() {
                return Ok(());
            }
            if Instant::now() >= until {
                return Err(waiting.join("; "));
            }
            tokio::time::sleep(LOOK_PERIOD).await;
        }
    }

    async fn waits_for(&self, at: usize, node: &Node) -> Option<String> {
        let why = match self.http.get(format!("{}/readyz", gateway(at))).send().await {
            Ok(answer) if answer.status().is_success() => return None,
            Ok(answer) => answer.text().await.unwrap_or_default(),
            Err(error) => error.to_string(),
        };
        Some(format!("{}: {}", node.id, why.trim()))
    }
}

/// URL of a node's gateway.
pub(super) fn gateway(node: usize) -> String {
    format!("http://{}:{HTTP_PORT}", address(node))
}

fn node_address(node: usize) -> String {
    format!("{}:{NODE_PORT}", address(node))
}

/// One node's process, running or down, with what is under it.
///
/// Invariant: a process that was started is reaped before this value is gone or starts another.
struct Node {
    id: NodeId,
    dir: PathBuf,
    args: Vec<String>,
    running: Option<Running>,
    disk: Option<Disk>,
    clock: Option<Clock>,
}

struct Running {
    child: Child,
    /// The node stops when this closes, whatever closes it.
    _stdin: Option<ChildStdin>,
    pid: u32,
}

impl Node {
    fn new(
        options: &Options,
        net: &Net,
        dir: &Path,
        (at, id): (usize, &NodeId),
        join: &str,
        tls: &TlsFiles,
    ) -> Self {
        let dir = dir.join(id.as_str());
        // `nsenter` becomes the program: the process id is the node's. Unlike `ip netns exec`, it takes no
        // copy of the mounts with it, which would keep a disk from being unmounted.
        let mut args = vec![format!("--net={}", net.file(at).display()), options.exe.display().to_string()];
        args.extend(["serve", "--exit-with-stdin", "--http-insecure"].map(Into::into));
        for (flag, value) in [
            ("--node-id", id.to_string()),
            ("--listen", node_address(at)),
            ("--http", format!("{}:{HTTP_PORT}", address(at))),
            ("--join", join.to_owned()),
            ("--bootstrap-expect", options.nodes.to_string()),
            ("--data", dir.join("disk").join("data").display().to_string()),
            ("--tls-ca", tls.ca.display().to_string()),
            ("--tls-cert", tls.cert.display().to_string()),
            ("--tls-key", tls.key.display().to_string()),
            ("--partitions", options.partitions.to_string()),
            ("--replication", options.replication.to_string()),
            ("--grace", "1s".to_owned()),
            ("--log", options.log.clone()),
        ] {
            args.extend([flag.to_owned(), value]);
        }
        Self { id: id.clone(), dir, args, running: None, disk: None, clock: None }
    }

    fn spawn(&mut self) -> Result<(), NemesisError> {
        assert!(self.running.is_none(), "a node's process is reaped before the next starts");
        let path = self.dir.join("log");
        let log = File::options().create(true).append(true).open(&path);
        let log = log.map_err(NemesisError::io(format!("open {}", path.display())))?;
        let mut command = Command::new("nsenter");
        without_settings(&mut command);
        if let Some(clock) = &self.clock {
            command.envs(clock.settings());
        }
        let mut child = command
            .args(&self.args)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            // Ctrl-C reaches the owner only.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(NemesisError::io(format!("start node {}", self.id)))?;
        let pid = child.id().expect("a child that was not waited for has an id");
        // Waiting for a child closes its input, so the pipe is kept apart.
        let stdin = child.stdin.take();
        self.running = Some(Running { child, _stdin: stdin, pid });
        Ok(())
    }

    async fn kill9(&mut self) -> Result<(), NemesisError> {
        // Who waits for a disk does not die.
        self.disk.as_mut().map_or(Ok(()), Disk::release)?;
        if let Some(mut running) = self.running.take() {
            let _ = running.child.start_kill();
            let _ = running.child.wait().await;
        }
        Ok(())
    }

    /// How it ended, if it did so by itself since it was last looked at.
    fn ended(&mut self) -> Result<Option<ExitStatus>, NemesisError> {
        let Some(running) = &mut self.running else { return Ok(None) };
        let status = running.child.try_wait().map_err(NemesisError::io(format!("watch node {}", self.id)))?;
        if status.is_some() {
            self.running = None;
        }
        Ok(status)
    }

    fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(disk) = &mut self.disk {
            // Told when the disk goes, if it fails again.
            let _ = disk.release();
        }
        let Some(running) = &mut self.running else { return };
        let _ = running.child.start_kill();
        let until = Instant::now() + REAP_MAX;
        // A killed process is gone within moments; there may be no runtime left to wait on.
        while matches!(running.child.try_wait(), Ok(None)) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        clock::remove_leftovers();
    }
}
