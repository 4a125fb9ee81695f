//! Several nodes in one process, for tests of what only a cluster can show.
//!
//! Owns folders, throw-away certificates and ports of the nodes, and starts and stops them. Never looks
//! inside a node: what is tested is what users see. In: an application; out: nodes and clients on loopback.

pub mod names;
pub mod nemesis;
pub mod simulation;
pub mod upgrade;
pub mod workers;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use perennial::client::ClientConfig;
use perennial::core::id::NodeId;
use perennial::node::{Backend, NodeConfig, StartError, TlsFiles};
use perennial::{App, Client, Node};
use perennial_runtime::certs::{Throwaway, throwaway};

/// How long anything may take that must happen; far above what it takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between looks at something that must happen.
const LOOK_PERIOD: Duration = Duration::from_millis(10);
/// Partitions of the clusters: enough that every node leads some.
const PARTITIONS: u32 = 8;

/// Looks again and again until something is there.
///
/// # Panics
/// After [`PATIENCE`].
pub async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let give_up = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < give_up, "not within {} s: {what}", PATIENCE.as_secs());
        tokio::time::sleep(LOOK_PERIOD).await;
    }
}

/// Free ports of loopback.
#[must_use]
pub fn free_ports(count: usize) -> Vec<u16> {
    // Held together, so that none is given twice.
    let held: Vec<_> = (0..count)
        .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has free ports"))
        .collect();
    held.iter().map(|port| port.local_addr().expect("a bound port has an address").port()).collect()
}

/// Nodes `n1`, `n2`, .. in this process. They stop when it is dropped.
pub struct Cluster {
    app: App,
    folder: tempfile::TempDir,
    /// Certificates of the nodes and of a client.
    pub certs: Throwaway,
    /// Settings of each node; what is changed here counts from its next start on.
    pub configs: Vec<NodeConfig>,
    /// The nodes; `None` for one that is down.
    pub nodes: Vec<Option<Node>>,
}

impl Cluster {
    /// Settings, certificates and folders for so many nodes, none of which runs.
    ///
    /// # Panics
    /// When this machine has no room for them.
    #[must_use]
    pub fn prepared(count: usize, app: App) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let ids: Vec<_> =
            (1..=count).map(|number| NodeId::new(&format!("n{number}")).expect("n1 is a node id")).collect();
        let certs = throwaway(&folder.path().join("tls"), &ids, "test").expect("certificates can be made");
        let ports = free_ports(count);
        let join: Vec<_> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        let config = |(id, port): (NodeId, &u16)| NodeConfig {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, *port)),
            advertise: None,
            http: None,
            join: join.clone(),
            dns_server: None,
            bootstrap_expect: Some(count),
            data: folder.path().join(id.as_str()),
            tls: certs.nodes[&id].clone(),
            partitions: PARTITIONS,
            replication: 3,
            zone: None,
            weight: 100,
            actors_bytes: perennial::limits::ACTORS_BYTES_DEFAULT,
            node: id,
        };
        let configs = ids.into_iter().zip(&ports).map(config).collect();
        let nodes = (0..count).map(|_| None).collect();
        Self { app, folder, certs, configs, nodes }
    }

    /// Nodes that run and are ready.
    ///
    /// # Panics
    /// When they do not start.
    pub async fn started(count: usize, app: App) -> Self {
        let mut cluster = Self::prepared(count, app);
        for at in 0..count {
            cluster.start(at).await;
        }
        cluster.ready().await;
        cluster
    }

    /// Where everything is kept.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts a node that is down.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn try_start(&mut self, at: usize) -> Result<(), StartError> {
        self.nodes[at] = Some(Node::start(self.configs[at].clone(), self.app.clone()).await?);
        Ok(())
    }

    /// Starts a node that is down.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start(&mut self, at: usize) {
        if let Err(error) = self.try_start(at).await {
            panic!("node {} does not start: {error}", self.configs[at].node);
        }
    }

    /// Stops a node at once: it gives none of its leaderships away.
    pub async fn stop(&mut self, at: usize) {
        if let Some(node) = self.nodes[at].take() {
            node.stop(Duration::ZERO).await;
        }
    }

    /// A node that runs.
    ///
    /// # Panics
    /// When it is down.
    #[must_use]
    pub fn node(&self, at: usize) -> &Node {
        self.nodes[at].as_ref().expect("the node runs")
    }

    /// Waits until every node that runs is ready.
    ///
    /// # Panics
    /// When they do not become so.
    pub async fn ready(&self) {
        for node in self.nodes.iter().flatten() {
            until("a node is ready", async || node.ready().ok()).await;
        }
    }

    /// A new client that knows every address.
    ///
    /// # Panics
    /// When it cannot connect.
    pub async fn client(&self) -> Client {
        let addresses = self.configs[0].join.clone();
        self.client_with(addresses, self.certs.client.clone()).await.expect("a node can be reached")
    }

    /// A new client, if it can connect.
    ///
    /// # Errors
    /// [`perennial::client::ConnectError`].
    pub async fn client_with(
        &self,
        addresses: Vec<String>,
        tls: TlsFiles,
    ) -> Result<Client, perennial::client::ConnectError> {
        Client::connect(ClientConfig { addresses, tls }).await
    }

    /// Position of a node by its name.
    ///
    /// # Panics
    /// When there is no such node.
    #[must_use]
    pub fn position(&self, node: &NodeId) -> usize {
        self.configs.iter().position(|config| config.node == *node).expect("a node of the cluster")
    }

    /// A folder for something beside the nodes.
    #[must_use]
    pub fn beside(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}
