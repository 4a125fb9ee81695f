//! The asking side outside the mesh: a client's link to one node, and the question of a joining node.
//!
//! Owns one connection and no retry: who asks knows which node comes next.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use perennial_core::hash::HASH_VERSION;
use perennial_core::id::{ClusterId, NodeId};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::calls::{Answer, ItemStream, LinkError, Requests};
use super::config::LinkConfig;
use super::dial::{DialError, Dialed, dial};
use super::door::JOIN_BYTES_MAX;
use super::frame::{self, Kind};
use super::hello::{DoorLane, Facts, Hello};
use super::memory::MemoryHub;
use super::mesh::run_asking;
use super::peer::{Io, Link};
use super::tls::Tls;

/// A link on the client lane; dropping it closes it. Wants a client's certificate, or a node's.
pub struct ClientLink {
    requests: Arc<Requests>,
    facts: Facts,
    running: AbortOnDropHandle<()>,
}

impl std::fmt::Debug for ClientLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientLink").field("node", &self.facts.node).finish_non_exhaustive()
    }
}

impl ClientLink {
    /// Connects to whichever node is at `address`, or to `node` when it is given.
    ///
    /// # Errors
    /// [`DialError`] with the reason; nothing was asked.
    pub async fn connect(
        address: &str,
        node: Option<&NodeId>,
        tls: &Tls,
        cluster: Option<ClusterId>,
        hash_version: u32,
        config: &LinkConfig,
    ) -> Result<Self, DialError> {
        let hello = Hello::of_client(cluster, hash_version);
        let Dialed { io, facts } = dial(tls, config, address, node, &hello).await?;
        Ok(Self::over(io, facts, config))
    }

    /// Connects to a node of a hub, as `me`.
    ///
    /// # Errors
    /// [`DialError`]; nothing was asked.
    pub async fn connect_in(
        hub: &MemoryHub,
        me: &NodeId,
        node: &NodeId,
        config: &LinkConfig,
    ) -> Result<Self, DialError> {
        let io = hub.dial_client(me, node).await?;
        let facts = Facts {
            node: node.clone(),
            cluster: None,
            hash_version: HASH_VERSION,
            address: node.to_string(),
            incarnation: 0,
        };
        Ok(Self::over(io, facts, config))
    }

    fn over(io: Io, facts: Facts, config: &LinkConfig) -> Self {
        let link = Link::new(config);
        let requests = Requests::new(link.clone(), config);
        let running = tokio::spawn({
            let (requests, config) = (requests.clone(), config.clone());
            async move {
                let close = run_asking(&link, &requests, io, &config).await;
                tracing::debug!(?close, "a client link ended");
            }
        });
        Self { requests, facts, running: AbortOnDropHandle::new(running) }
    }

    /// What the node said about itself when it let us in.
    #[must_use]
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Asks; the request is queued before this returns.
    pub fn request(&self, payload: &Bytes, within: Duration) -> Answer {
        self.requests.request(payload, within)
    }

    /// Asks for a stream of items; dropping the stream cancels it at the server.
    ///
    /// # Errors
    /// [`LinkError`] when the request could not be queued.
    pub fn request_stream(&self, payload: &Bytes) -> Result<ItemStream, LinkError> {
        self.requests.stream(payload)
    }

    /// Whether the link has ended; every request then fails at once.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.running.is_finished()
    }
}

/// The answer of a node that was asked on the join lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probed {
    /// What the node says about itself.
    pub facts: Facts,
    /// What its service answered.
    pub reply: Bytes,
}

/// Asks whichever node is at `address` one question on the join lane: neither needs to have a cluster.
///
/// # Errors
/// [`DialError`]; `TurnedAway` with `OwnNode` when the address is our own.
pub async fn probe(
    address: &str,
    tls: &Tls,
    ours: Facts,
    payload: &[u8],
    config: &LinkConfig,
) -> Result<Probed, DialError> {
    let failed = |source| DialError::Failed { address: address.to_owned(), source };
    if payload.len() > JOIN_BYTES_MAX {
        return Err(failed(std::io::Error::new(
            std::io::ErrorKind::InvalidInput,
            "the question is too large",
        )));
    }
    let hello = Hello::of_node(DoorLane::Join, ours);
    let Dialed { mut io, facts } = dial(tls, config, address, None, &hello).await?;
    let ask = async {
        frame::write_one(&mut io, Kind::Data, payload).await?;
        frame::read_one(&mut io, JOIN_BYTES_MAX).await
    };
    let reply = timeout(config.handshake, ask)
        .await
        .map_err(|_| DialError::TimedOut(address.to_owned()))?
        .map_err(failed)?;
    Ok(Probed { facts, reply: reply.body })
}
