//! A client: knows the placement table and goes straight to the leaders.

use std::sync::Arc;

use crate::actor::BoxFuture;
use crate::call::{ActorId, Actors, Answered, Caller, EventStream, EventsFrom, Outbound};
use crate::error::Fault;
use crate::node::TlsFiles;
use crate::status::ClusterStatus;

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
pub struct Client {}

impl Client {
    /// Connects to the first address that answers and learns the table.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect(config: ClientConfig) -> Result<Self, ConnectError> {
        Err(ConnectError::Unreachable { addresses: config.addresses, why: "to be written".into() })
    }

    /// The cluster as some reachable node sees it.
    ///
    /// # Errors
    /// [`Fault::Unavailable`] when no node answers.
    pub async fn status(&self) -> Result<ClusterStatus, Fault> {
        std::future::pending().await
    }
}

impl Caller for Client {
    fn call(&self, _: Outbound) -> BoxFuture<'static, Answered> {
        Box::pin(std::future::pending())
    }
    fn subscribe(&self, _: ActorId, _: EventsFrom) -> EventStream {
        Box::pin(futures_util::stream::pending())
    }
}
impl Actors for Client {
    fn caller(&self) -> Arc<dyn Caller> {
        Arc::new(self.clone())
    }
}
