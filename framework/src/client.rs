//! A client: knows the placement table and goes straight to the leaders.
//!
//! Owns one link per node, made when it is first needed, and the session whose request ids make its
//! retries safe. Learns leaders from redirects and the table from any node.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use perennial_core::hash::HASH_VERSION;
use perennial_core::id::{ClusterId, NodeId};

use crate::actor::BoxFuture;
use crate::call::{ActorId, Actors, Answered, Caller, EventStream, EventsFrom, Outbound};
use crate::dead::DeadLetters;
use crate::error::Fault;
use crate::host::Hosts;
use crate::link::tls::{self, Tls};
use crate::link::{ClientLink, ItemStream, LinkConfig, LinkError, MemoryHub};
use crate::node::TlsFiles;
use crate::options::Pool;
use crate::protocol::{Question, Response, RoutesAnswer};
use crate::router::{Network, Router, RouterCaller};
use crate::status::{ClusterStatus, ReminderPage, ReminderQuery};

/// How long a question about the cluster may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);
/// How often the table is asked for anew.
const REFRESH_PERIOD: Duration = Duration::from_secs(2);
/// How long a node is left alone after it could not be reached.
const AVOID: Duration = Duration::from_millis(500);

/// Settings of a client.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// `host:port` of some nodes; the others are learned from them.
    pub addresses: Vec<String>,
    /// The client's certificate.
    pub tls: TlsFiles,
}

/// Why a client could not connect.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// No address answered.
    #[error("no node can be reached at {}: {why}", addresses.join(", "))]
    Unreachable {
        /// What was tried.
        addresses: Vec<String>,
        /// The last reason.
        why: String,
    },
    /// The certificates cannot be used.
    #[error("cannot use the certificate files: {why}")]
    Tls {
        /// Why.
        why: String,
    },
}

/// A client of a cluster. Cheap to clone; all clones share one session.
#[derive(Clone)]
pub struct Client {
    router: Arc<Router>,
    links: Arc<Links>,
}

impl Client {
    /// Connects to the first address that answers and learns the table.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect(config: ClientConfig) -> Result<Self, ConnectError> {
        tls::install_provider();
        let unusable = |error: &dyn std::fmt::Display| ConnectError::Tls { why: error.to_string() };
        let identity = tls::Identity::read(&config.tls.ca, &config.tls.cert, &config.tls.key)
            .map_err(|error| unusable(&error))?;
        let tls = Tls::new(&identity).map_err(|error| unusable(&error))?;
        Self::over(Way::Tls(tls), LinkConfig::default(), config.addresses).await
    }

    /// Connects over a hub, in which the client has a place of its own, to the first node that answers.
    ///
    /// # Errors
    /// [`ConnectError::Unreachable`].
    pub async fn connect_in(
        hub: MemoryHub,
        me: NodeId,
        nodes: &[NodeId],
        config: LinkConfig,
    ) -> Result<Self, ConnectError> {
        let seeds = nodes.iter().map(ToString::to_string).collect();
        Self::over(Way::Hub(hub, me), config, seeds).await
    }

    async fn over(way: Way, config: LinkConfig, seeds: Vec<String>) -> Result<Self, ConnectError> {
        let links = Arc::new(Links {
            way,
            config,
            seeds: seeds.clone(),
            cluster: Mutex::new(None),
            slots: Mutex::default(),
        });
        let first =
            links.any_routes().await.map_err(|why| ConnectError::Unreachable { addresses: seeds, why })?;
        let router = Router::new(Arc::new(Hosts::default()));
        router.set_network(Arc::new(ClientNetwork { links: links.clone(), router: Arc::downgrade(&router) }));
        learn(&router, &links, first);
        tokio::spawn(refresh(Arc::downgrade(&router), links.clone()));
        Ok(Self { router, links })
    }

    /// Messages and reminders that could not be applied.
    #[must_use]
    pub fn dead_letters(&self) -> DeadLetters {
        let routes = self.router.routes();
        let partitions = routes.as_ref().map(|routes| routes.state().meta.partitions);
        DeadLetters::new(self.caller(), partitions.expect("a client has learned the table as it connected"))
    }

    /// The cluster as some reachable node sees it.
    ///
    /// # Errors
    /// [`Fault::Unavailable`] when no node answers.
    pub async fn status(&self) -> Result<ClusterStatus, Fault> {
        let mut why = "no member is known".to_owned();
        for node in self.links.nodes() {
            match self.router.ask(&node, &Question::Status, ASK_TIMEOUT).await {
                Ok(Response::Status(status)) => return Ok(*status),
                Ok(Response::Refused(fault)) => why = fault.to_string(),
                Ok(_) => why = format!("{node} answered something else"),
                Err(error) => why = format!("{node}: {error}"),
            }
        }
        Err(Fault::Unavailable { what: "the cluster's status".into(), why })
    }
}

impl Client {
    /// Reminders that are set, earliest first, of one actor or of all.
    ///
    /// # Errors
    /// [`Fault::Unavailable`] when a partition has no leader that answers.
    pub async fn reminders(&self, query: ReminderQuery) -> Result<ReminderPage, Fault> {
        self.router.reminders(query).await
    }

    /// Cancels an actor's reminder; says whether it was set, once that is committed.
    ///
    /// # Errors
    /// [`Fault::Unavailable`] when its partition has no leader that answers, [`Fault::OutcomeUnknown`] when one
    /// may have done it.
    pub async fn cancel_reminder(&self, actor: ActorId, name: impl Into<String>) -> Result<bool, Fault> {
        self.router.cancel_reminder(actor, name.into()).await
    }
}

/// Takes in what a node told about the cluster.
fn learn(router: &Router, links: &Links, routes: RoutesAnswer) {
    let addresses = routes.state.members.iter().map(|m| (m.node.clone(), m.address.clone()));
    links.set_addresses(routes.state.meta.cluster, addresses);
    router.update(routes.state);
    for (partition, term, leader) in routes.leaders {
        router.leader(partition, term, Some(leader));
    }
}

/// Asks for the table now and then, for as long as the client lives.
async fn refresh(router: Weak<Router>, links: Arc<Links>) {
    loop {
        tokio::time::sleep(REFRESH_PERIOD).await;
        let Some(router) = router.upgrade() else { return };
        let mut routes = None;
        for node in links.nodes() {
            if let Ok(Response::Routes(told)) = router.ask(&node, &Question::Routes, ASK_TIMEOUT).await {
                routes = Some(*told);
                break;
            }
        }
        // Nobody is where the table says: it is older than their moves.
        if routes.is_none() && links.may_move() {
            routes = links.any_routes().await.ok();
        }
        if let Some(routes) = routes {
            learn(&router, &links, routes);
        }
    }
}

/// How nodes are reached.
enum Way {
    Tls(Tls),
    /// As a simulated machine of this name.
    Hub(MemoryHub, NodeId),
}

/// Links to nodes.
struct Links {
    way: Way,
    config: LinkConfig,
    seeds: Vec<String>,
    cluster: Mutex<Option<ClusterId>>,
    slots: Mutex<BTreeMap<NodeId, Arc<Slot>>>,
}

/// The link to one node; made by whoever needs it first while the others wait.
struct Slot {
    address: Mutex<String>,
    link: Mutex<Option<Arc<ClientLink>>>,
    connecting: tokio::sync::Mutex<()>,
}

impl Slot {
    fn link(&self) -> Option<Arc<ClientLink>> {
        let link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        link.as_ref().filter(|link| !link.is_closed()).cloned()
    }
}

impl Links {
    fn slots(&self) -> std::sync::MutexGuard<'_, BTreeMap<NodeId, Arc<Slot>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn nodes(&self) -> Vec<NodeId> {
        let slots = self.slots();
        // Those that are linked first.
        let mut nodes: Vec<_> =
            slots.iter().map(|(node, slot)| (slot.link().is_none(), node.clone())).collect();
        nodes.sort();
        nodes.into_iter().map(|(_, node)| node).collect()
    }

    fn set_addresses(&self, cluster: ClusterId, addresses: impl Iterator<Item = (NodeId, String)>) {
        *self.cluster.lock().unwrap_or_else(PoisonError::into_inner) = Some(cluster);
        let mut slots = self.slots();
        for (node, address) in addresses {
            let slot = slots.entry(node).or_insert_with(|| {
                Arc::new(Slot {
                    address: Mutex::default(),
                    link: Mutex::default(),
                    connecting: tokio::sync::Mutex::default(),
                })
            });
            *slot.address.lock().unwrap_or_else(PoisonError::into_inner) = address;
        }
    }

    async fn connect(&self, address: &str, node: Option<&NodeId>) -> Result<ClientLink, String> {
        let cluster = *self.cluster.lock().unwrap_or_else(PoisonError::into_inner);
        let linked = match &self.way {
            Way::Tls(tls) => {
                ClientLink::connect(address, node, tls, cluster, HASH_VERSION, &self.config).await
            }
            Way::Hub(hub, me) => {
                // A hub knows nodes by their names; an address is one with a port behind it.
                let name = address.split(':').next().and_then(|name| NodeId::new(name).ok());
                let node = node.cloned().or(name).ok_or("the address is no node's name")?;
                ClientLink::connect_in(hub, me, &node, &self.config).await
            }
        };
        linked.map_err(|error| error.to_string())
    }

    /// Whether nodes can turn up elsewhere: in a hub they are known by their names.
    fn may_move(&self) -> bool {
        matches!(self.way, Way::Tls(_))
    }

    /// The table, from the first seed that has one.
    async fn any_routes(&self) -> Result<RoutesAnswer, String> {
        // What a node told says more than that another one is not there.
        let (mut why, mut told) = ("no address was given".to_owned(), None);
        for address in &self.seeds {
            let asked = async {
                let link = self.connect(address, None).await?;
                let payload = crate::protocol::encode(&Question::Routes);
                let bytes = link.request(&payload, ASK_TIMEOUT).await.map_err(|e| e.to_string())?;
                crate::protocol::decode::<Response>(&bytes).map_err(|e| e.to_string())
            };
            match asked.await {
                Ok(Response::Routes(routes)) => return Ok(*routes),
                Ok(Response::Refused(fault)) => told = Some(fault.to_string()),
                Ok(_) => why = "the answer is not a table".to_owned(),
                Err(error) => why = error,
            }
        }
        Err(told.unwrap_or(why))
    }

    /// The link to a node, made if need be.
    async fn link(&self, node: &NodeId) -> Result<Arc<ClientLink>, LinkError> {
        let slot = self.slots().get(node).cloned().ok_or(LinkError::NoLink)?;
        if let Some(link) = slot.link() {
            return Ok(link);
        }
        let _turn = slot.connecting.lock().await;
        if let Some(link) = slot.link() {
            return Ok(link);
        }
        let address = slot.address.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let link = self.connect(&address, Some(node)).await.map_err(|error| {
            tracing::debug!(%node, error, "cannot link to a node");
            LinkError::NoLink
        })?;
        let link = Arc::new(link);
        *slot.link.lock().unwrap_or_else(PoisonError::into_inner) = Some(link.clone());
        Ok(link)
    }
}

struct ClientNetwork {
    links: Arc<Links>,
    router: Weak<Router>,
}

impl ClientNetwork {
    /// Leaves a node alone for a while.
    fn avoid(router: &Weak<Router>, node: NodeId) {
        let Some(now) = router.upgrade() else { return };
        now.node_up(&node, false);
        let router = router.clone();
        tokio::spawn(async move {
            tokio::time::sleep(AVOID).await;
            if let Some(router) = router.upgrade() {
                router.node_up(&node, true);
            }
        });
    }
}

impl Network for ClientNetwork {
    fn ask(
        &self,
        node: &NodeId,
        payload: Bytes,
        within: Duration,
    ) -> BoxFuture<'static, Result<Bytes, LinkError>> {
        let (links, router, node) = (self.links.clone(), self.router.clone(), node.clone());
        Box::pin(async move {
            let link = match tokio::time::timeout(within, links.link(&node)).await {
                Ok(Ok(link)) => link,
                Ok(Err(_)) | Err(_) => {
                    Self::avoid(&router, node);
                    return Err(LinkError::NoLink);
                }
            };
            let answer = link.request(&payload, within).await;
            if matches!(answer, Err(LinkError::Lost | LinkError::NoLink)) && link.is_closed() {
                Self::avoid(&router, node);
            }
            answer
        })
    }

    fn follow(&self, node: &NodeId, payload: Bytes) -> BoxFuture<'static, Result<ItemStream, LinkError>> {
        let (links, node) = (self.links.clone(), node.clone());
        Box::pin(async move { links.link(&node).await?.request_stream(&payload) })
    }

    fn is_up(&self, node: &NodeId) -> bool {
        self.links.slots().get(node).is_some_and(|slot| slot.link().is_some())
    }
}

impl Caller for Client {
    fn call(&self, call: Outbound) -> BoxFuture<'static, Answered> {
        RouterCaller(self.router.clone()).call(call)
    }
    fn call_worker(&self, call: Outbound, pool: Pool) -> BoxFuture<'static, Answered> {
        RouterCaller(self.router.clone()).call_worker(call, pool)
    }
    fn subscribe(&self, actor: ActorId, from: EventsFrom) -> EventStream {
        RouterCaller(self.router.clone()).subscribe(actor, from)
    }
}

impl Actors for Client {
    fn caller(&self) -> Arc<dyn Caller> {
        Arc::new(self.clone())
    }
}
