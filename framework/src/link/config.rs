//! Limits and deadlines of the links of one node, their defaults in one place.

use std::time::Duration;

use super::frame::{FRAME_BYTES_MAX, HEAD_BYTES_MAX};

/// Limits and deadlines of one node's links. Every limit has a defined answer when reached.
#[derive(Debug, Clone)]
pub struct LinkConfig {
    /// From accepting (or dialing) a socket to an admitted link: TLS and hello together. A stranger who
    /// says nothing is dropped then.
    pub handshake: Duration,
    /// Resolving a name and opening a TCP connection.
    pub connect: Duration,
    /// How often each side of a link says that it lives.
    pub ping_every: Duration,
    /// A link on which nothing arrives for so long is closed. More than two pings.
    pub idle_read: Duration,
    /// A link whose writes make no progress for so long is closed.
    pub stalled_write: Duration,
    /// How long a link that closes in good order may take to hand over what is queued.
    pub linger: Duration,
    /// First pause between dials; doubles with each failure, with jitter.
    pub backoff_min: Duration,
    /// Longest pause between dials.
    pub backoff_max: Duration,
    /// Bytes queued on one link; beyond it a send is refused as full.
    pub queue_bytes_max: usize,
    /// Admitted connections of clients; beyond it a new one is refused as busy.
    pub connections_max: usize,
    /// Admitted connections of clients with one name; likewise.
    pub connections_per_client_max: usize,
    /// Admitted connections of nodes; likewise. Clients cannot take them away.
    pub node_connections_max: usize,
    /// Admitted connections of one node, which has one for each lane; likewise.
    pub connections_per_node_max: usize,
    /// Connections that have not been admitted yet; beyond it a new socket is closed at once.
    pub handshakes_max: usize,
    /// Connections from one address that have not been admitted yet; likewise.
    pub handshakes_per_address_max: usize,
    /// Bytes of clients' requests in flight, on all their links together; beyond it a request is refused
    /// as full.
    pub client_request_bytes_max: usize,
    /// Requests in flight on one link, counted on both sides; beyond it a request is refused as full.
    pub requests_max: usize,
    /// Open streams on one link, counted on both sides; beyond it a stream is refused as full.
    pub streams_max: usize,
    /// Items a stream holds for a reader that does not take them; beyond it the stream ends as slow.
    pub stream_items_max: usize,
    /// Bytes a stream holds for a reader that does not take them; beyond it the stream ends as slow.
    pub stream_bytes_max: usize,
}

impl Default for LinkConfig {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(5),
            connect: Duration::from_secs(2),
            ping_every: Duration::from_millis(2500),
            idle_read: Duration::from_secs(11),
            stalled_write: Duration::from_secs(8),
            linger: Duration::from_secs(1),
            backoff_min: Duration::from_millis(20),
            backoff_max: Duration::from_secs(1),
            queue_bytes_max: 8 << 20,
            connections_max: 4096,
            connections_per_client_max: 1024,
            node_connections_max: 2048,
            connections_per_node_max: 16,
            handshakes_max: 256,
            handshakes_per_address_max: 128,
            client_request_bytes_max: 512 << 20,
            requests_max: 16_384,
            streams_max: 4096,
            stream_items_max: 1024,
            stream_bytes_max: 4 << 20,
        }
    }
}

/// Contradictions in a [`LinkConfig`], all of them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("link settings contradict each other: {}", .0.join("; "))]
pub struct ConfigError(pub Vec<&'static str>);

impl LinkConfig {
    /// Checks the settings against each other.
    ///
    /// # Errors
    /// [`ConfigError`] with every contradiction found.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let rules = [
            (
                self.idle_read > self.ping_every.saturating_mul(2),
                "idle_read must be more than two ping_every, or a healthy link is closed",
            ),
            (self.backoff_min <= self.backoff_max, "backoff_min must not exceed backoff_max"),
            (!self.backoff_min.is_zero(), "backoff_min must not be zero"),
            (
                self.queue_bytes_max >= FRAME_BYTES_MAX + HEAD_BYTES_MAX,
                "queue_bytes_max must hold at least one frame of the largest size",
            ),
            (
                self.stream_bytes_max >= FRAME_BYTES_MAX,
                "stream_bytes_max must hold at least one frame of the largest size",
            ),
            (
                [
                    self.connections_max,
                    self.connections_per_client_max,
                    self.node_connections_max,
                    self.connections_per_node_max,
                    self.handshakes_max,
                    self.handshakes_per_address_max,
                    self.client_request_bytes_max,
                    self.requests_max,
                    self.streams_max,
                    self.stream_items_max,
                ]
                .iter()
                .all(|&limit| limit > 0),
                "no limit may be zero",
            ),
            (
                [self.handshake, self.connect, self.stalled_write, self.ping_every]
                    .iter()
                    .all(|deadline| !deadline.is_zero()),
                "no deadline may be zero",
            ),
        ];
        let broken: Vec<_> = rules.into_iter().filter(|(ok, _)| !ok).map(|(_, rule)| rule).collect();
        if broken.is_empty() { Ok(()) } else { Err(ConfigError(broken)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_consistent_and_contradictions_are_all_named() {
        assert_eq!(LinkConfig::default().validate(), Ok(()));
        let broken = LinkConfig { queue_bytes_max: 1, requests_max: 0, ..LinkConfig::default() };
        assert_eq!(broken.validate().unwrap_err().0.len(), 2);
    }
}
