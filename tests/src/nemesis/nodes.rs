//! The node processes of a run, each in its namespace.
//!
//! Owns the processes, their data folders and the small file system that one of them is on. Nothing
//! outlives it: processes are killed and reaped, and the file system is unmounted, when it is dropped;
//! should this process be killed, the nodes see the end of their standard input and stop.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::sys::statvfs::statvfs;
use nix::unistd::Pid;
use perennial::client::ClientConfig;
use perennial::core::id::NodeId;
use perennial::node::TlsFiles;
use perennial::status::ClusterStatus;
use perennial_runtime::certs::throwaway;
use perennial_runtime::harness::without_settings;
use tokio::process::{Child, ChildStdin, Command};

use super::net::{Net, address};
use super::{NemesisError, Options, is_left};

/// Port for nodes and clients.
const NODE_PORT: u16 = 7001;
/// Port of the gateways.
const HTTP_PORT: u16 = 8080;
/// Size of the small file system while it is not full, in MiB. Memory is taken only as it fills.
const DISK_MIB: u64 = 1024;
/// How long a killed process may take to be gone.
const REAP_MAX: Duration = Duration::from_secs(5);
/// How often readiness is asked for.
const LOOK_PERIOD: Duration = Duration::from_millis(50);
/// How long one question for readiness may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// Lines of a node's log to show when it ended.
const TAIL_LINES: usize = 10;

/// All nodes. Fields are dropped in order: the file system goes after the processes on it.
pub(super) struct Nodes {
    nodes: Vec<Node>,
    disk: Disk,
    client: TlsFiles,
    http: reqwest::Client,
}

impl Nodes {
    /// Makes certificates and folders and starts the processes.
    pub(super) fn start(options: &Options, net: &Net, dir: &Path) -> Result<Self, NemesisError> {
        let count = options.nodes;
        let ids: Result<Vec<_>, _> = (1..=count).map(|n| NodeId::new(&format!("n{n}"))).collect();
        let ids = ids.expect("n1 is a node id");
        let certs = throwaway(&dir.join("tls"), &ids, "nemesis")?;
        let join: Vec<_> = (0..count).map(node_address).collect();
        let nodes: Vec<_> = ids
            .iter()
            .enumerate()
            .map(|(at, id)| Node::new(options, net, dir, (at, id), &join.join(","), &certs.nodes[id]))
            .collect();
        for node in &nodes {
            std::fs::create_dir_all(node.data())
                .map_err(NemesisError::io(format!("make {}", node.data().display())))?;
        }
        let disk = Disk::new(nodes.last().expect("there are nodes").data())?;
        let http = reqwest::Client::builder().no_proxy().timeout(PROBE_TIMEOUT).build();
        let http = http.expect("a client without TLS has nothing to load");
        let mut nodes = Self { nodes, disk, client: certs.client, http };
        for node in &mut nodes.nodes {
            node.spawn()?;
        }
        Ok(nodes)
    }

    /// The node whose disk can be made full.
    pub(super) fn on_small_disk(&self) -> usize {
        self.nodes.len() - 1
    }

    /// The nodes that lead a partition.
    pub(super) fn leaders(&self, status: &ClusterStatus) -> Vec<usize> {
        let leads = |node: &Node| status.partitions.iter().any(|p| p.leader.as_ref() == Some(&node.id));
        (0..self.nodes.len()).filter(|at| leads(&self.nodes[*at])).collect()
    }

    /// Leaves no room on the small file system.
    pub(super) fn fill_disk(&self) -> Result<(), NemesisError> {
        self.disk.fill()
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
    pub(super) async fn kill9(&mut self, node: usize) {
        self.nodes[node].kill9().await;
    }

    /// Ends what was done to nodes: makes room, lets the paused go on, starts those that are down.
    pub(super) fn heal(&mut self) -> Result<(), NemesisError> {
        self.disk.empty()?;
        for at in 0..self.nodes.len() {
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

/// One node's process, running or down.
///
/// Invariant: a process that was started is reaped before this value is gone or starts another.
struct Node {
    id: NodeId,
    dir: PathBuf,
    args: Vec<String>,
    running: Option<Running>,
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
        // `ip netns exec` becomes the program: the process id is the node's.
        let mut args: Vec<String> = ["netns", "exec"].map(Into::into).into();
        args.extend([net.node(at), options.exe.display().to_string()]);
        args.extend(["serve", "--exit-with-stdin", "--http-insecure"].map(Into::into));
        for (flag, value) in [
            ("--node-id", id.to_string()),
            ("--listen", node_address(at)),
            ("--http", format!("{}:{HTTP_PORT}", address(at))),
            ("--join", join.to_owned()),
            ("--bootstrap-expect", options.nodes.to_string()),
            ("--data", dir.join("data").display().to_string()),
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
        Self { id: id.clone(), dir, args, running: None }
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn spawn(&mut self) -> Result<(), NemesisError> {
        assert!(self.running.is_none(), "a node's process is reaped before the next starts");
        let path = self.dir.join("log");
        let log = File::options().create(true).append(true).open(&path);
        let log = log.map_err(NemesisError::io(format!("open {}", path.display())))?;
        let mut command = Command::new("ip");
        without_settings(&mut command);
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

    async fn kill9(&mut self) {
        if let Some(mut running) = self.running.take() {
            let _ = running.child.start_kill();
            let _ = running.child.wait().await;
        }
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
        let Some(running) = &mut self.running else { return };
        let _ = running.child.start_kill();
        let until = Instant::now() + REAP_MAX;
        // A killed process is gone within moments; there may be no runtime left to wait on.
        while matches!(running.child.try_wait(), Ok(None)) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A file system in memory.
struct Disk(PathBuf);

impl Disk {
    fn new(path: PathBuf) -> Result<Self, NemesisError> {
        Self::remove_leftovers();
        let options = format!("size={DISK_MIB}m");
        mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).map_err(
            |error| NemesisError::Unavailable {
                why: format!("cannot mount a file system at {}: {error}", path.display()),
            },
        )?;
        Ok(Self(path))
    }

    /// Unmounts those of runs that were killed.
    fn remove_leftovers() {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        for mount in mounts.lines() {
            if let [_, path, "tmpfs", ..] = mount.split(' ').collect::<Vec<_>>()[..]
                && path.split('/').any(is_left)
            {
                let _ = umount2(path, MntFlags::MNT_DETACH);
            }
        }
    }

    /// Shrinks it to what is used.
    fn fill(&self) -> Result<(), NemesisError> {
        loop {
            let used = statvfs(&self.0).map(|stat| (stat.blocks() - stat.blocks_free()) * stat.block_size());
            match used.and_then(|used| self.resize(&format!("size={used}"))) {
                Ok(()) => return Ok(()),
                // The node wrote in between.
                Err(nix::errno::Errno::EINVAL) => {}
                Err(error) => return Err(self.failed(error)),
            }
        }
    }

    fn empty(&self) -> Result<(), NemesisError> {
        self.resize(&format!("size={DISK_MIB}m")).map_err(|error| self.failed(error))
    }

    fn resize(&self, size: &str) -> nix::Result<()> {
        mount(None::<&str>, &self.0, None::<&str>, MsFlags::MS_REMOUNT, Some(size))
    }

    fn failed(&self, error: nix::errno::Errno) -> NemesisError {
        NemesisError::io(format!("resize the file system at {}", self.0.display()))(error.into())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}
