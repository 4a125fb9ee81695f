//! Connections: the accept loop, the quotas of connections, TLS and the time-out of a request's head.
//!
//! Owns sockets; never looks into a request. HTTP/1.1 only: one request at a time for each connection
//! makes the quota of connections one of requests, and no peer can hold a connection before its first
//! byte (hyper-util's version detection has no time-out).

use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

use super::auth::{ClientAddress, Principal};
use super::quota::{Quota, Share};
use super::stall::Stalling;
use super::ws::ConnectionShare;
use super::{Gate, Limit};

/// Pause after the system could not accept, such as without free file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What a connection above the quota is told.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\n\
content-type: application/json\r\ncontent-length: 106\r\n\r\n\
{\"code\":\"busy\",\"message\":\"connections of this gateway are at their limit\",\"applied\":\"no\",\
\"retryable\":true}";

/// What is behind a port.
pub(super) struct Entrance {
    pub(super) router: Router,
    pub(super) tls: Option<TlsAcceptor>,
    pub(super) connections: Arc<Quota>,
}

/// Takes connections until the gateway closes.
pub(super) async fn accept(listener: TcpListener, gate: Arc<Gate>, entrance: Arc<Entrance>) {
    loop {
        let accepted = tokio::select! {
            () = gate.stages.closing.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, from)) => match entrance.connections.take(&Principal::at(from.ip()), 1) {
                Ok(share) => {
                    let greeted = greet(stream, from, share, Arc::clone(&gate), Arc::clone(&entrance));
                    drop(gate.tasks.spawn(greeted));
                }
                Err(full) => {
                    gate.metrics.refused(full.limit);
                    refuse(stream, entrance.tls.is_some());
                }
            },
            Err(error) if client_left(error.kind()) => {}
            Err(error) => {
                tracing::warn!(node = %gate.backend.node(), %error, "the gateway cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn client_left(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::ConnectionRefused)
}

/// Says so and closes; without words where they would have to be encrypted first. The send buffer of a new
/// socket is empty, so that one write is enough; a client that sends at the same moment may see a reset
/// instead.
fn refuse(stream: TcpStream, tls: bool) {
    if !tls && let Ok(mut stream) = stream.into_std() {
        let _ = stream.write(FULL);
    }
}

/// Speaks TLS first where the port has it.
async fn greet(stream: TcpStream, from: SocketAddr, share: Share, gate: Arc<Gate>, entrance: Arc<Entrance>) {
    let _ = stream.set_nodelay(true);
    let share = ConnectionShare(Arc::new(share));
    let stream = Stalling::new(stream, gate.config.write_stall_timeout);
    let Some(tls) = &entrance.tls else { return serve(stream, from, share, &gate, &entrance).await };
    let handshake = tokio::time::timeout(gate.config.handshake_timeout, tls.accept(stream));
    let shaken = tokio::select! {
        () = gate.stages.closing.cancelled() => return,
        shaken = handshake => shaken,
    };
    match shaken {
        Ok(Ok(stream)) => serve(stream, from, share, &gate, &entrance).await,
        Ok(Err(error)) => {
            gate.metrics.denied("handshake failed");
            tracing::debug!(node = %gate.backend.node(), %from, %error, "handshake failed");
        }
        Err(_) => gate.metrics.refused(Limit::HandshakeTime),
    }
}

async fn serve<S>(stream: S, from: SocketAddr, share: ConnectionShare, gate: &Arc<Gate>, entrance: &Entrance)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let asked = AtomicBool::new(false);
    let service = service_fn(|mut request: Request<hyper::body::Incoming>| {
        asked.store(true, Ordering::Relaxed);
        request.extensions_mut().insert(ClientAddress(from.ip()));
        request.extensions_mut().insert(share.clone());
        entrance.router.clone().oneshot(request.map(Body::new))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(gate.config.header_read_timeout)
        .max_header_size(gate.config.head_bytes_max)
        .max_buf_size(2 * gate.config.head_bytes_max)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = gate.stages.closing.cancelled() => {
            if !asked.load(Ordering::Relaxed) {
                return; // hyper would wait for its first request
            }
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection => ended,
                () = gate.stages.kill.cancelled() => return,
            }
        }
    };
    if let Err(error) = ended {
        if let Some(limit) = limit_of(&error, asked.load(Ordering::Relaxed)) {
            gate.metrics.refused(limit);
        }
        tracing::debug!(node = %gate.backend.node(), %from, %error, "connection ended");
    }
}

/// The limit that ended a connection. One that was of use before and then idle met none.
fn limit_of(error: &hyper::Error, asked: bool) -> Option<Limit> {
    if error.is_parse_too_large() {
        return Some(Limit::HeadBytes);
    }
    if error.is_timeout() {
        return (!asked).then_some(Limit::HeadTime);
    }
    let cause = std::error::Error::source(error)?.downcast_ref::<std::io::Error>()?;
    (cause.kind() == ErrorKind::TimedOut).then_some(Limit::WriteStall)
}

#[cfg(test)]
mod tests {
    use super::FULL;

    #[test]
    fn the_refusal_states_its_own_length() {
        let text = std::str::from_utf8(FULL).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", body.len())), "body has {} bytes", body.len());
        serde_json::from_str::<serde_json::Value>(body).unwrap();
    }
}
