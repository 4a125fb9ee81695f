//! Dialing: from an address to an admitted connection.
//!
//! Owns one attempt: name, TCP, TLS, certificate, hello, welcome, each under a deadline. Never retries;
//! `mesh` does. In: an address and a hello; out: a stream that carries the lane, or why not.

use std::io;

use perennial_core::id::NodeId;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::config::LinkConfig;
use super::frame::{self, Kind};
use super::hello::{self, DoorLane, Facts, HELLO_BYTES_MAX, Hello, Refusal};
use super::peer::Io;
use super::tls::{Peer, Tls};

/// Why an address cannot be reached on a lane. Nothing was sent beyond the hello.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Nothing listens there: the process has ended, or never was.
    #[error("{0} refuses connections: is the node running?")]
    Refused(String),
    /// No answer within the deadline.
    #[error("{0} does not answer: check the address and the network")]
    TimedOut(String),
    /// The network, the name or the TLS handshake failed.
    #[error("cannot link to {address}: {source}")]
    Failed {
        /// Where to.
        address: String,
        /// Why.
        source: io::Error,
    },
    /// The node there does not let us in.
    #[error("{address} refuses the link: {refusal}")]
    TurnedAway {
        /// Where to.
        address: String,
        /// Why.
        refusal: Refusal,
    },
    /// The node there is not the one we meant.
    #[error("node {found} is at {address}, not node {meant}: correct the address")]
    OtherNode {
        /// Where to.
        address: String,
        /// Whom we meant.
        meant: NodeId,
        /// Who is there.
        found: NodeId,
    },
}

/// An admitted connection, and what the node there says about itself.
pub(crate) struct Dialed {
    pub(crate) io: Io,
    pub(crate) facts: Facts,
}

/// Dials an address for a lane; `meant` is the node to be found there, if known.
pub(crate) async fn dial(
    tls: &Tls,
    config: &LinkConfig,
    address: &str,
    meant: Option<&NodeId>,
    hello: &Hello,
) -> Result<Dialed, DialError> {
    let failed = |source| DialError::Failed { address: address.to_owned(), source };
    let late = |_| DialError::TimedOut(address.to_owned());
    let tcp = match timeout(config.connect, TcpStream::connect(address)).await.map_err(late)? {
        Ok(tcp) => tcp,
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            return Err(DialError::Refused(address.to_owned()));
        }
        Err(error) => return Err(failed(error)),
    };
    tcp.set_nodelay(true).map_err(failed)?;
    timeout(config.handshake, greet(tls, tcp, address, meant, hello)).await.map_err(late)?
}

async fn greet(
    tls: &Tls,
    tcp: TcpStream,
    address: &str,
    meant: Option<&NodeId>,
    hello: &Hello,
) -> Result<Dialed, DialError> {
    let failed = |source| DialError::Failed { address: address.to_owned(), source };
    let noise = |what: &str| failed(io::Error::new(io::ErrorKind::InvalidData, what));
    let (settings, name) = tls.dial(meant);
    let mut io =
        TlsConnector::from(settings).connect(name, tcp).await.map_err(|error| failed(explain(error)))?;
    let certificate = io.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let Some(Ok(Peer::Node(found))) = certificate.map(Peer::of) else {
        return Err(noise("the certificate there is not that of a node"));
    };
    frame::write_one(&mut io, Kind::Hello, &hello::write(hello)).await.map_err(failed)?;
    // A certificate of ours that is not accepted is told here first.
    let reply = frame::read_one(&mut io, HELLO_BYTES_MAX).await.map_err(|error| failed(explain(error)))?;
    let facts: Facts = match reply.kind {
        Kind::Welcome => hello::read(&reply.body).ok_or_else(|| noise("the welcome cannot be read"))?,
        Kind::Refuse => {
            let refusal = hello::read(&reply.body).unwrap_or(Refusal::Unreadable);
            return Err(DialError::TurnedAway { address: address.to_owned(), refusal });
        }
        _ => return Err(noise("the reply is neither a welcome nor a refusal")),
    };
    // The door has checked us; we check it by the same facts.
    if facts.node != found || meant.is_some_and(|meant| *meant != found) {
        let meant = meant.cloned().unwrap_or(facts.node);
        return Err(DialError::OtherNode { address: address.to_owned(), meant, found });
    }
    if let (Some(ours), Some(theirs), true) = (hello.cluster, facts.cluster, hello.lane != DoorLane::Join)
        && ours != theirs
    {
        let refusal = Refusal::WrongCluster { ours, theirs };
        return Err(DialError::TurnedAway { address: address.to_owned(), refusal });
    }
    Ok(Dialed { io: Box::new(io), facts })
}

/// Says what a failed handshake means.
fn explain(error: io::Error) -> io::Error {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
    let meaning = match cause {
        Some(rustls::Error::InvalidCertificate(_)) => "the certificate there is not of our authority",
        Some(rustls::Error::AlertReceived(_)) => "our certificate is not accepted there",
        _ => return error,
    };
    io::Error::new(error.kind(), format!("{meaning}: use certificates of one cluster ({error})"))
}
