//! The door: one port, and who comes in through it.
//!
//! Owns the accept loop, the limits on strangers, and the handshake up to the welcome. Never parses a
//! frame of anyone whose certificate has not been verified. In: sockets; out: admitted streams, handed
//! to the mesh. A connection is one task; a stranger who says nothing is dropped at the deadline.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::frame::{self, Kind};
use super::hello::{self, Admission, DoorLane, HELLO_BYTES_MAX, Hello, Refusal};
use super::mesh::Mesh;
use super::peer::{Io, Stream};
use super::tls::{Peer, Tls};

/// Largest question and answer on the join lane.
pub(crate) const JOIN_BYTES_MAX: usize = 64 << 10;
/// Pause after a failed accept, for instance when the process has no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What the accept loop and its tasks share.
pub(crate) struct Door {
    pub(crate) tls: Tls,
    pub(crate) admission: Arc<dyn Admission>,
    pub(crate) mesh: Arc<Mesh>,
    admitted: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
}

impl Door {
    pub(crate) fn new(tls: Tls, admission: Arc<dyn Admission>, mesh: Arc<Mesh>) -> Arc<Self> {
        let config = mesh.config();
        let admitted = Arc::new(Semaphore::new(config.connections_max));
        let strangers = Arc::new(Semaphore::new(config.handshakes_max));
        Arc::new(Self { tls, admission, mesh, admitted, strangers })
    }

    /// Accepts until the mesh closes. Errors of single sockets, and a lack of file descriptors, pass.
    pub(crate) async fn accept(self: Arc<Self>, listener: TcpListener) {
        let closing = self.mesh.closing().clone();
        loop {
            let accepted = tokio::select! {
                biased;
                () = closing.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            let tcp = match accepted {
                Ok((tcp, _)) => tcp,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            // Without a permit the socket is dropped, which closes it.
            if let Ok(stranger) = self.strangers.clone().try_acquire_owned() {
                let door = self.clone();
                self.mesh.spawn(async move { door.receive(tcp, stranger).await });
            }
        }
    }

    async fn receive(self: Arc<Self>, tcp: TcpStream, stranger: OwnedSemaphorePermit) {
        let closing = self.mesh.closing().clone();
        let greeting = timeout(self.mesh.config().handshake, self.greet(tcp));
        let greeted = tokio::select! {
            () = closing.cancelled() => return,
            greeted = greeting => greeted,
        };
        let (io, peer, hello, _admitted) = match greeted {
            Ok(Ok(Some(admitted))) => admitted,
            Ok(Ok(None)) => return,
            Ok(Err(error)) => return tracing::debug!(%error, "a connection ended before it was admitted"),
            Err(_) => return tracing::debug!("a connection said nothing in time and was dropped"),
        };
        drop(stranger);
        self.mesh.clone().accept(io, peer, hello.lane).await;
    }

    /// TLS, certificate, hello, checks, welcome; on the join lane also the answer. `None`: done with.
    async fn greet(&self, tcp: TcpStream) -> io::Result<Option<(Io, Peer, Hello, OwnedSemaphorePermit)>> {
        tcp.set_nodelay(true)?;
        let mut io = TlsAcceptor::from(self.tls.server.clone()).accept(tcp).await?;
        let certificate = io.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let Some(Ok(peer)) = certificate.map(Peer::of) else {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the certificate names nobody"));
        };
        let first = frame::read_one(&mut io, HELLO_BYTES_MAX).await?;
        let hello = (first.kind == Kind::Hello).then(|| hello::read::<Hello>(&first.body)).flatten();
        let checked = match &hello {
            Some(hello) => self.check(&peer, hello),
            None => Err(Refusal::Unreadable),
        };
        match (hello, checked) {
            (Some(hello), Ok(permit)) => {
                let facts = hello::write(&self.admission.facts());
                frame::write_one(&mut io, Kind::Welcome, &facts).await?;
                if hello.lane == DoorLane::Join {
                    self.answer_join(&mut io, peer).await?;
                    return Ok(None);
                }
                Ok(Some((Box::new(io), peer, hello, permit)))
            }
            (_, Err(refusal)) => {
                tracing::info!(%peer, %refusal, "a connection was refused");
                frame::write_one(&mut io, Kind::Refuse, &hello::write(&refusal)).await?;
                close(&mut io).await?;
                Ok(None)
            }
            (None, Ok(_)) => unreachable!("a hello that cannot be read is refused"),
        }
    }

    fn check(&self, peer: &Peer, hello: &Hello) -> Result<OwnedSemaphorePermit, Refusal> {
        hello::check(&self.admission.facts(), peer, hello)?;
        self.admission.admit(peer, hello.lane, hello)?;
        if hello.lane == DoorLane::Control && !self.mesh.has_control() {
            return Err(Refusal::NotFormed);
        }
        self.admitted.clone().try_acquire_owned().map_err(|_| Refusal::Busy)
    }

    async fn answer_join(&self, io: &mut impl Stream, peer: Peer) -> io::Result<()> {
        let asked = frame::read_one(io, JOIN_BYTES_MAX).await?;
        if asked.kind != Kind::Data {
            return Err(io::Error::from(io::ErrorKind::InvalidData));
        }
        let answer = self.mesh.service().join(peer, asked.body);
        if answer.len() > JOIN_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the answer to a join is too large"));
        }
        frame::write_one(io, Kind::Data, &answer).await?;
        close(io).await
    }
}

/// Says that this was all, and waits until the other side has read it: a socket closed with unread bytes
/// is reset, and the last words would be lost.
async fn close(io: &mut impl Stream) -> io::Result<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    io.shutdown().await?;
    let mut rest = [0; 64];
    while io.read(&mut rest).await? > 0 {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use bytes::Bytes;
    use perennial_core::id::{ClusterId, NodeId};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_rustls::TlsConnector;

    use super::*;
    use crate::link::tls::Ca;
    use crate::link::{
        ClientLink, ClusterTransport, Facts, Handlers, LinkConfig, LinkError, Responder, Service, StreamSink,
    };

    struct Echo;
    impl Service for Echo {
        fn request(&self, _: Peer, payload: Bytes, reply: Responder) {
            reply.send(payload);
        }
        fn stream(&self, _: Peer, _: Bytes, sink: StreamSink) {
            sink.finish();
        }
        fn join(&self, _: Peer, payload: Bytes) -> Bytes {
            payload
        }
    }

    struct All;
    impl Admission for All {
        fn facts(&self) -> Facts {
            let node = NodeId::new("a").unwrap();
            Facts {
                node,
                cluster: Some(ClusterId(1)),
                hash_version: 1,
                address: String::new(),
                incarnation: 1,
            }
        }
        fn admit(&self, _: &Peer, _: DoorLane, _: &Hello) -> Result<(), Refusal> {
            Ok(())
        }
    }

    async fn node(ca: &Ca, config: LinkConfig) -> (Arc<ClusterTransport>, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let handlers =
            Handlers { inbound: Arc::new(|_, _, _| {}), events: Arc::new(|_| {}), service: Arc::new(Echo) };
        let tls = Tls::new(&ca.issue_node(&All.facts().node, &[]).unwrap()).unwrap();
        let node = ClusterTransport::start(listener, tls, Arc::new(All), handlers, config).await.unwrap();
        let address = node.local_addr();
        (node, address)
    }

    /// A client that does what it likes once TLS is up.
    async fn raw(tls: &Tls, address: SocketAddr) -> impl Stream + use<> {
        let (settings, name) = tls.dial(None);
        let tcp = TcpStream::connect(address).await.unwrap();
        TlsConnector::from(settings).connect(name, tcp).await.unwrap()
    }

    async fn closed(io: &mut (impl Stream + ?Sized)) {
        let mut rest = Vec::new();
        // Closed in good order or reset, but closed.
        let _ = io.read_to_end(&mut rest).await;
    }

    async fn lives(tls: &Tls, address: SocketAddr) {
        let address = address.to_string();
        let client = ClientLink::connect(&address, None, tls, None, 1, &LinkConfig::default()).await.unwrap();
        let answer = client.request(&Bytes::from_static(b"hi"), Duration::from_secs(60)).await;
        assert_eq!(answer, Ok::<_, LinkError>(Bytes::from_static(b"hi")));
    }

    #[tokio::test]
    async fn mute_strangers_are_dropped_at_the_deadline_before_and_after_tls() {
        let ca = Ca::generate().unwrap();
        let config = LinkConfig { handshake: Duration::from_millis(500), ..LinkConfig::default() };
        let (_node, address) = node(&ca, config).await;
        let tls = Tls::new(&ca.issue_client("shell").unwrap()).unwrap();
        closed(&mut TcpStream::connect(address).await.unwrap()).await;
        closed(&mut raw(&tls, address).await).await;
    }

    #[tokio::test]
    async fn noise_closes_its_connection_and_nothing_else() {
        let ca = Ca::generate().unwrap();
        let (_node, address) = node(&ca, LinkConfig::default()).await;
        let tls = Tls::new(&ca.issue_client("shell").unwrap()).unwrap();
        let mut http = TcpStream::connect(address).await.unwrap();
        http.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        closed(&mut http).await;
        let mut early = raw(&tls, address).await;
        early.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        closed(&mut early).await;
        // A hello larger than a hello may be.
        let mut large = raw(&tls, address).await;
        frame::write_one(&mut large, Kind::Hello, &[0; HELLO_BYTES_MAX + 1]).await.unwrap();
        closed(&mut large).await;
        // A hello that cannot be read is told so.
        let mut unreadable = raw(&tls, address).await;
        frame::write_one(&mut unreadable, Kind::Hello, &[99]).await.unwrap();
        let reply = frame::read_one(&mut unreadable, HELLO_BYTES_MAX).await.unwrap();
        assert_eq!(hello::read::<Refusal>(&reply.body), Some(Refusal::Unreadable));
        // After the welcome: noise, and a frame that has no place on the lane.
        for noise in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[2, 0, 0, 0, 1, Kind::Data as u8]] {
            let mut late = raw(&tls, address).await;
            let hello = Hello::of_client(None, 1);
            frame::write_one(&mut late, Kind::Hello, &hello::write(&hello)).await.unwrap();
            assert_eq!(frame::read_one(&mut late, HELLO_BYTES_MAX).await.unwrap().kind, Kind::Welcome);
            late.write_all(noise).await.unwrap();
            late.flush().await.unwrap();
            closed(&mut late).await;
        }
        lives(&tls, address).await;
    }

    #[tokio::test]
    async fn strangers_above_the_limit_are_closed_at_once_and_connections_are_refused_as_busy() {
        let ca = Ca::generate().unwrap();
        let config = LinkConfig { handshakes_max: 1, connections_max: 1, ..LinkConfig::default() };
        let (_node, address) = node(&ca, config).await;
        let tls = Tls::new(&ca.issue_client("shell").unwrap()).unwrap();
        let mute = TcpStream::connect(address).await.unwrap();
        let mut second = TcpStream::connect(address).await.unwrap();
        closed(&mut second).await;
        drop(mute);
        let text = address.to_string();
        let ours = LinkConfig::default();
        let connect = || ClientLink::connect(&text, None, &tls, None, 1, &ours);
        // The mute one's place is free once its end has been noticed.
        let first = loop {
            if let Ok(first) = connect().await {
                break first;
            }
        };
        let busy = loop {
            match connect().await {
                Err(super::super::DialError::TurnedAway { refusal, .. }) => break refusal,
                Err(_) => {}
                Ok(_) => panic!("the limit is one"),
            }
        };
        assert_eq!(busy, Refusal::Busy);
        drop(first);
    }
}
