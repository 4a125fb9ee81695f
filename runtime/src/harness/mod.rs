//! A cluster of node processes on this machine.
//!
//! Owns child processes from start to reaping: whatever ends the owner, no node outlives it. Used by
//! `dev`, `demo`, `bench` and by tests that need real processes to kill. Never runs a node in this
//! process. In: a [`ClusterSpec`]; out: running nodes, their addresses and a client.

mod failover;
mod file;
mod ports;
mod process;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use futures_util::future::{join_all, select_all};
use perennial::client::{ClientConfig, ConnectError};
use perennial::core::id::{NameError, NodeId};
use perennial::{Client, Fault};

pub(crate) use self::failover::{FailOver, counts_of, kill_and_return, status_of};
pub use self::file::{ClusterFile, NodeEntry, TlsEntry};
pub(crate) use self::ports::{free_from, free_ports};
use self::process::NodeProcess;
pub use self::process::{Ports, without_settings};
use crate::certs::{self, CertsError, Throwaway};
use crate::settings::{PARTITIONS_DEFAULT, REPLICATION_DEFAULT};

/// Grace of the nodes unless told otherwise: they are mostly stopped together, with nobody to take over.
const GRACE_DEFAULT: Duration = Duration::from_secs(1);
/// How long a node that is replaced may take to stop, besides its grace.
const STOP_MAX: Duration = Duration::from_secs(10);
/// Name of the client certificate.
const CLIENT_NAME: &str = "local";
/// How often readiness is asked for.
const POLL: Duration = Duration::from_millis(25);
/// How long one question for readiness may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a cluster of processes does not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HarnessError {
    /// A file or a process.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What was tried.
        doing: String,
        /// Cause.
        source: std::io::Error,
    },
    /// Too few ports are free.
    #[error("cannot find a free port on 127.0.0.1")]
    NoPort,
    /// Certificates.
    #[error(transparent)]
    Certs(#[from] CertsError),
    /// A node's name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A node ended by itself.
    #[error("node {node} ended ({status}); the end of its log {}:\n{tail}", log.display())]
    Died {
        /// Which.
        node: NodeId,
        /// How.
        status: ExitStatus,
        /// Its log.
        log: PathBuf,
        /// Last lines of it.
        tail: String,
    },
    /// Time is up.
    #[error("not ready after {seconds} s: {}", waiting.join("; "))]
    NotReady {
        /// How long it was waited.
        seconds: u64,
        /// What each node waits for.
        waiting: Vec<String>,
    },
    /// No client can connect.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The cluster does not tell its status.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The description of a cluster cannot be read.
    #[error("cannot read {}: {why}", path.display())]
    File {
        /// File.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

impl HarnessError {
    fn io(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }
}

/// What to start.
#[derive(Debug, Clone)]
pub struct ClusterSpec {
    /// How many nodes: `n1`, `n2`, ..
    pub nodes: usize,
    /// Folder for certificates, data and logs.
    pub dir: PathBuf,
    /// Executable of an application, called with `serve`.
    pub exe: PathBuf,
    /// Application's name, for the file that describes the cluster.
    pub app: String,
    /// Log filter of the nodes.
    pub log: String,
    /// Partitions of a new cluster.
    pub partitions: u32,
    /// Replicas of each partition of a new cluster.
    pub replication: u8,
    /// Ports of each node; empty: free ones are taken.
    pub ports: Vec<Ports>,
    /// How long a node that is told to stop may give its leaderships away.
    pub grace: Duration,
    /// Further arguments of `serve`.
    pub serve_args: Vec<String>,
}

impl ClusterSpec {
    /// A cluster with the usual settings.
    #[must_use]
    pub fn new(nodes: usize, dir: impl Into<PathBuf>, exe: impl Into<PathBuf>) -> Self {
        Self {
            nodes,
            dir: dir.into(),
            exe: exe.into(),
            app: "perennial".into(),
            log: "info".into(),
            partitions: PARTITIONS_DEFAULT,
            replication: REPLICATION_DEFAULT,
            ports: Vec::new(),
            grace: GRACE_DEFAULT,
            serve_args: Vec::new(),
        }
    }
}

/// Running node processes. Dropping it kills and reaps every one of them; should this process be
/// killed instead, the nodes see the end of their standard input and stop.
pub struct ProcessCluster {
    spec: ClusterSpec,
    certs: Throwaway,
    nodes: Vec<NodeProcess>,
    http: reqwest::Client,
}

impl ProcessCluster {
    /// Makes certificates and starts the nodes; they may not be ready yet.
    ///
    /// # Errors
    /// [`HarnessError`]; nothing is left running.
    pub async fn start(mut spec: ClusterSpec) -> Result<Self, HarnessError> {
        std::fs::create_dir_all(&spec.dir)
            .map_err(HarnessError::io(format!("make {}", spec.dir.display())))?;
        spec.dir =
            spec.dir.canonicalize().map_err(HarnessError::io(format!("find {}", spec.dir.display())))?;
        if spec.ports.is_empty() {
            let free = free_ports(spec.nodes * 2)?;
            spec.ports = free.chunks(2).map(|pair| Ports { node: pair[0], http: pair[1] }).collect();
        }
        let ids = node_ids(spec.nodes)?;
        let certs = certs::throwaway(&spec.dir.join("tls"), &ids, CLIENT_NAME)?;
        let join: Vec<_> = spec.ports.iter().map(|ports| format!("127.0.0.1:{}", ports.node)).collect();
        let nodes = ids
            .into_iter()
            .zip(&spec.ports)
            .map(|(id, ports)| NodeProcess::new(&spec, id.clone(), *ports, &join, &certs.nodes[&id]))
            .collect();
        let http = reqwest::Client::builder()
            .no_proxy()
            .timeout(PROBE_TIMEOUT)
            .build()
            .expect("a client without TLS has nothing to load");
        let mut cluster = Self { spec, certs, nodes, http };
        for node in &mut cluster.nodes {
            node.spawn()?;
        }
        cluster.write_file()?;
        Ok(cluster)
    }

    /// Names of the nodes, in order.
    #[must_use]
    pub fn ids(&self) -> Vec<NodeId> {
        self.nodes.iter().map(|node| node.id.clone()).collect()
    }

    /// `host:port` of each node's gateway.
    #[must_use]
    pub fn http(&self) -> Vec<String> {
        self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.ports.http)).collect()
    }

    /// Process ids of the nodes; `None` for one that is down.
    #[must_use]
    pub fn pids(&self) -> Vec<Option<u32>> {
        self.nodes.iter().map(NodeProcess::pid).collect()
    }

    /// Log file of a node.
    #[must_use]
    pub fn log(&self, node: usize) -> &Path {
        &self.nodes[node].log
    }

    /// Position of a node by its name.
    #[must_use]
    pub fn position(&self, id: &NodeId) -> Option<usize> {
        self.nodes.iter().position(|node| node.id == *id)
    }

    /// Describes the cluster for clients.
    #[must_use]
    pub fn file(&self) -> ClusterFile {
        ClusterFile {
            app: self.spec.app.clone(),
            addresses: self.nodes.iter().map(NodeProcess::address).collect(),
            tls: self.certs.client.clone().into(),
            nodes: self
                .nodes
                .iter()
                .map(|node| NodeEntry {
                    id: node.id.clone(),
                    address: node.address(),
                    http: format!("127.0.0.1:{}", node.ports.http),
                    pid: node.pid(),
                })
                .collect(),
        }
    }

    /// Writes [`Self::file`] into the cluster's folder.
    ///
    /// # Errors
    /// [`HarnessError::Io`].
    pub fn write_file(&self) -> Result<(), HarnessError> {
        self.file().write(&self.spec.dir)
    }

    /// A new client of the cluster.
    ///
    /// # Errors
    /// [`HarnessError::Connect`].
    pub async fn client(&self) -> Result<Client, HarnessError> {
        let file = self.file();
        Ok(Client::connect(ClientConfig { addresses: file.addresses, tls: file.tls.into() }).await?)
    }

    /// What the nodes that run and are not ready wait for; empty once all are ready.
    ///
    /// # Errors
    /// [`HarnessError::Died`] when a node ended by itself.
    pub async fn waiting_for(&mut self) -> Result<Vec<String>, HarnessError> {
        self.who_waits(|_| true).await
    }

    async fn who_waits(&mut self, which: impl Fn(usize) -> bool) -> Result<Vec<String>, HarnessError> {
        for node in &mut self.nodes {
            node.check_alive()?;
        }
        let asked = self.nodes.iter().enumerate().filter(|(at, node)| which(*at) && node.pid().is_some());
        let answers = join_all(asked.map(|(_, node)| self.waits_for(node))).await;
        Ok(answers.into_iter().flatten().collect())
    }

    /// Whether a node is up and ready.
    pub async fn is_ready(&self, node: usize) -> bool {
        let node = &self.nodes[node];
        node.pid().is_some() && self.waits_for(node).await.is_none()
    }

    async fn waits_for(&self, node: &NodeProcess) -> Option<String> {
        let url = format!("http://127.0.0.1:{}/readyz", node.ports.http);
        let why = match self.http.get(url).send().await {
            Ok(answer) if answer.status().is_success() => return None,
            Ok(answer) => reason(&answer.text().await.unwrap_or_default()),
            Err(_) => "starting".into(),
        };
        Some(format!("{}: {why}", node.id))
    }

    /// Waits until every running node is ready.
    ///
    /// # Errors
    /// [`HarnessError::Died`], [`HarnessError::NotReady`].
    pub async fn wait_ready(&mut self, patience: Duration) -> Result<(), HarnessError> {
        self.wait(patience, |_| true).await
    }

    /// Waits until one node is ready.
    ///
    /// # Errors
    /// [`HarnessError::Died`], [`HarnessError::NotReady`].
    pub async fn wait_node_ready(&mut self, node: usize, patience: Duration) -> Result<(), HarnessError> {
        self.wait(patience, |at| at == node).await
    }

    async fn wait(&mut self, patience: Duration, which: impl Fn(usize) -> bool) -> Result<(), HarnessError> {
        let until = Instant::now() + patience;
        loop {
            let waiting = self.who_waits(&which).await?;
            if waiting.is_empty() {
                return Ok(());
            }
            if Instant::now() >= until {
                return Err(HarnessError::NotReady { seconds: patience.as_secs(), waiting });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Kills a node's process with SIGKILL and reaps it. Returns the moment of the kill.
    pub async fn kill9(&mut self, node: usize) -> Instant {
        self.nodes[node].kill9().await
    }

    /// Starts a node that is down, on its old data and ports.
    ///
    /// # Errors
    /// [`HarnessError::Io`].
    pub async fn restart(&mut self, node: usize) -> Result<(), HarnessError> {
        self.nodes[node].kill9().await;
        self.nodes[node].spawn()?;
        self.write_file()
    }

    /// Stops a node in good order and starts it with another executable, on its old data and ports. It starts
    /// with that one from now on.
    ///
    /// # Errors
    /// [`HarnessError::Io`].
    pub async fn replace(&mut self, node: usize, exe: impl Into<PathBuf>) -> Result<(), HarnessError> {
        let grace = self.spec.grace + STOP_MAX;
        self.nodes[node].stop(grace).await;
        self.nodes[node].set_exe(exe.into());
        self.restart(node).await
    }

    /// Waits until some node ends by itself; which and how.
    pub async fn next_exit(&mut self) -> (usize, ExitStatus) {
        let running: Vec<_> = self
            .nodes
            .iter_mut()
            .enumerate()
            .filter(|(_, node)| node.pid().is_some())
            .map(|(at, node)| Box::pin(async move { (at, node.exited().await) }))
            .collect();
        if running.is_empty() {
            return std::future::pending().await;
        }
        select_all(running).await.0
    }

    /// How many partitions each node leads, as the cluster tells it.
    ///
    /// # Errors
    /// [`HarnessError::Connect`], [`HarnessError::Fault`].
    pub async fn leader_counts(&self) -> Result<BTreeMap<NodeId, u32>, HarnessError> {
        Ok(counts_of(&self.client().await?.status().await?))
    }

    /// Asks every node to stop, waits, and kills what is left after `grace`.
    pub async fn stop(mut self, grace: Duration) {
        join_all(self.nodes.iter_mut().map(|node| node.stop(grace))).await;
    }
}

/// What a gateway that is not ready says: the message of its JSON answer, without what all of them say.
fn reason(answer: &str) -> String {
    let json: serde_json::Value = serde_json::from_str(answer).unwrap_or_default();
    let message = json["message"].as_str().unwrap_or(answer).trim();
    message.strip_prefix("this node is not ready: ").unwrap_or(message).to_owned()
}

/// `n1`, `n2`, ..
pub(crate) fn node_ids(nodes: usize) -> Result<Vec<NodeId>, NameError> {
    (1..=nodes).map(|number| NodeId::new(&format!("n{number}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_of_a_node_is_taken_from_its_answer() {
        let answer = r#"{"code":"not_ready","message":"this node is not ready: waiting for n1"}"#;
        assert_eq!(reason(answer), "waiting for n1");
        assert_eq!(reason("no JSON\n"), "no JSON");
    }
}
