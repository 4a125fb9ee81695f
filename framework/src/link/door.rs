//! The door: one port, and who comes in through it.
//!
//! Owns the accept loop, the limits on strangers, and the handshake up to the welcome. Never parses a
//! frame of anyone whose certificate has not been verified. In: sockets; out: admitted streams, handed
//! to the mesh. A connection is one task; a stranger who says nothing is dropped at the deadline.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use super::frame::{self, Kind};
use super::guard::{Closed, Place, Places};
use super::hello::{self, Admission, DoorLane, HELLO_BYTES_MAX, Hello, Refusal};
use super::mesh::Mesh;
use super::peer::{Io, Stream};
use super::tls::{Peer, Tls};

/// Largest question and answer on the join lane.
pub(crate) const JOIN_BYTES_MAX: usize = 64 << 10;
/// Whom the door has let in: its stream, its name, its lane and its place.
type Admitted = (Io, Peer, DoorLane, Place<Peer>);

/// Pause after a failed accept, for instance when the process has no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What the accept loop and its tasks share.
pub(crate) struct Door {
    pub(crate) tls: Tls,
    pub(crate) admission: Arc<dyn Admission>,
    pub(crate) mesh: Arc<Mesh>,
    clients: Arc<Places<Peer>>,
    nodes: Arc<Places<Peer>>,
    strangers: Arc<Places<IpAddr>>,
}

impl Door {
    pub(crate) fn new(tls: Tls, admission: Arc<dyn Admission>, mesh: Arc<Mesh>) -> Arc<Self> {
        let config = mesh.config();
        let clients = Places::new(config.connections_max, config.connections_per_client_max);
        let nodes = Places::new(config.node_connections_max, config.connections_per_node_max);
        let strangers = Places::new(config.handshakes_max, config.handshakes_per_address_max);
        Arc::new(Self { tls, admission, mesh, clients, nodes, strangers })
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
            let (tcp, from) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            match self.strangers.take(from.ip()) {
                Some(stranger) => {
                    let door = self.clone();
                    self.mesh.spawn(async move { door.receive(tcp, from, stranger).await });
                }
                // Dropping the socket closes it.
                None => {
                    self.mesh.closed().note(Closed::Flood, &from, &"too many that are not admitted yet");
                }
            }
        }
    }

    async fn receive(self: Arc<Self>, tcp: TcpStream, from: SocketAddr, stranger: Place<IpAddr>) {
        let closing = self.mesh.closing().clone();
        let greeting = timeout(self.mesh.config().handshake, self.greet(tcp, from));
        let greeted = tokio::select! {
            () = closing.cancelled() => return,
            greeted = greeting => greeted,
        };
        let (io, peer, lane, _place) = match greeted {
            Ok(Ok(Some(admitted))) => admitted,
            Ok(Ok(None)) => return,
            Ok(Err(error)) => {
                return tracing::debug!(%from, %error, "a connection ended before it was admitted");
            }
            Err(_) => return self.mesh.closed().note(Closed::Silent, &from, &"it was not admitted in time"),
        };
        drop(stranger);
        self.mesh.clone().accept(io, peer, lane).await;
    }

    /// TLS, certificate, hello, checks, welcome; on the join lane also the answer. `None`: done with.
    async fn greet(&self, tcp: TcpStream, from: SocketAddr) -> io::Result<Option<Admitted>> {
        let closed = |reason, why: &dyn std::fmt::Display| {
            self.mesh.closed().note(reason, &from, why);
            Ok(None)
        };
        tcp.set_nodelay(true)?;
        let mut io = match TlsAcceptor::from(self.tls.server.clone()).accept(tcp).await {
            Ok(io) => io,
            Err(error) => return closed(Closed::Tls, &error),
        };
        let certificate = io.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let Some(Ok(peer)) = certificate.map(Peer::of) else {
            return closed(Closed::Nameless, &"its certificate names nobody");
        };
        let first = match frame::read_one(&mut io, HELLO_BYTES_MAX).await {
            Ok(first) => first,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return closed(Closed::Unreadable, &error);
            }
            Err(error) => return Err(error),
        };
        let hello = (first.kind == Kind::Hello).then(|| hello::read::<Hello>(&first.body)).flatten();
        let checked = match hello {
            Some(hello) => self.check(&peer, &hello).map(|place| (hello.lane, place)),
            None => Err(Refusal::Unreadable),
        };
        match checked {
            Ok((lane, place)) => {
                let facts = hello::write(&self.admission.facts());
                frame::write_one(&mut io, Kind::Welcome, &facts).await?;
                if lane == DoorLane::Join {
                    self.answer_join(&mut io, peer).await?;
                    return Ok(None);
                }
                Ok(Some((Box::new(io), peer, lane, place)))
            }
            Err(refusal) => {
                if let Some(reason) = Closed::of_refusal(&refusal) {
                    self.mesh.closed().note(reason, &peer, &refusal);
                }
                frame::write_one(&mut io, Kind::Refuse, &hello::write(&refusal)).await?;
                close(&mut io).await?;
                Ok(None)
            }
        }
    }

    fn check(&self, peer: &Peer, hello: &Hello) -> Result<Place<Peer>, Refusal> {
        hello::check(&self.admission.facts(), peer, hello)?;
        self.admission.admit(peer, hello.lane, hello)?;
        if hello.lane == DoorLane::Control && !self.mesh.has_control() {
            return Err(Refusal::NotFormed);
        }
        // On the client lane a node is one client among others.
        let places = if hello.lane == DoorLane::Client { &self.clients } else { &self.nodes };
        places.take(peer.clone()).ok_or(Refusal::Busy)
    }

    async fn answer_join(&self, io: &mut impl Stream, peer: Peer) -> io::Result<()> {
        let asked = frame::read_one(io, JOIN_BYTES_MAX).await?;
        if asked.kind != Kind::Data {
            self.mesh.closed().note(Closed::Unreadable, &peer, &"its question is no question");
            return Ok(());
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
        ClientLink, ClusterTransport, DialError, Facts, Handlers, LinkConfig, LinkError, Responder, Service,
        StreamSink, Transport, dial,
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
        fn admit(&self, peer: &Peer, _: DoorLane, _: &Hello) -> Result<(), Refusal> {
            if matches!(peer, Peer::Client(name) if name == "early") {
                Err(Refusal::NotFormed)
            } else {
                Ok(())
            }
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

    #[tokio::test]
    async fn who_comes_before_the_cluster_is_told_so_and_raises_no_alarm() {
        let ca = Ca::generate().unwrap();
        let (node, address) = node(&ca, LinkConfig::default()).await;
        let (text, ours) = (address.to_string(), LinkConfig::default());
        let tls = Tls::new(&ca.issue_client("early").unwrap()).unwrap();
        let refused = ClientLink::connect(&text, None, &tls, None, 1, &ours).await.unwrap_err();
        assert!(matches!(&refused, DialError::TurnedAway { refusal: Refusal::NotFormed, .. }), "{refused:?}");
        assert!(node.closed().iter().all(|(_, count)| *count == 0), "{:?}", node.closed());
    }

    #[tokio::test]
    async fn one_client_does_not_take_all_places_nor_clients_those_of_nodes() {
        let ca = Ca::generate().unwrap();
        let config =
            LinkConfig { connections_max: 2, connections_per_client_max: 1, ..LinkConfig::default() };
        let (node, address) = node(&ca, config).await;
        let client = |name: &str| Tls::new(&ca.issue_client(name).unwrap()).unwrap();
        let (text, ours) = (address.to_string(), LinkConfig::default());
        let connect = async |tls: &Tls| ClientLink::connect(&text, None, tls, None, 1, &ours).await;
        let greedy = client("greedy");
        let _held = connect(&greedy).await.unwrap();
        let refused = connect(&greedy).await.unwrap_err();
        assert!(matches!(&refused, DialError::TurnedAway { refusal: Refusal::Busy, .. }), "{refused:?}");
        let _other = connect(&client("other")).await.unwrap();
        let refused = connect(&client("third")).await.unwrap_err();
        assert!(matches!(&refused, DialError::TurnedAway { refusal: Refusal::Busy, .. }), "{refused:?}");
        let b = NodeId::new("b").unwrap();
        let tls = Tls::new(&ca.issue_node(&b, &[]).unwrap()).unwrap();
        let hello = Hello::of_node(DoorLane::Raft, Facts { node: b, ..All.facts() });
        dial::dial(&tls, &ours, &text, None, &hello).await.unwrap();
        let busy = node.closed().into_iter().find(|(reason, _)| *reason == Closed::Busy);
        assert_eq!(busy, Some((Closed::Busy, 2)));
    }
}
