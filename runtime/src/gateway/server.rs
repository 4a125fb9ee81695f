//! Connections: the accept loop, the cap on connections and the time-out of a request's head.
//!
//! Owns sockets; never looks into a request. HTTP/1.1 only: one request at a time for each connection
//! makes the connection cap a cap on requests, and no peer can hold a connection before its first
//! byte (hyper-util's version detection has no time-out).

use std::io::{ErrorKind, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::OwnedSemaphorePermit;
use tower::ServiceExt;

use super::{Gate, HEAD_BYTES_MAX, Limit};

/// Pause after the system could not accept, such as without free file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What a connection above the cap is told.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\n\
content-type: application/json\r\ncontent-length: 106\r\n\r\n\
{\"code\":\"busy\",\"message\":\"connections of this gateway are at their limit\",\"applied\":\"no\",\
\"retryable\":true}";

/// Takes connections until the gateway closes.
pub(super) async fn accept(listener: TcpListener, gate: Arc<Gate>, router: Router) {
    loop {
        let accepted = tokio::select! {
            () = gate.stages.closing.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => match gate.admit(Limit::Connections) {
                Ok(permit) => {
                    drop(gate.tasks.spawn(serve(stream, permit, Arc::clone(&gate), router.clone())))
                }
                Err(_) => refuse(stream),
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

/// Says so and closes. The send buffer of a new socket is empty, so that one write is enough; a client
/// that sends at the same moment may see a reset instead.
fn refuse(stream: TcpStream) {
    if let Ok(mut stream) = stream.into_std() {
        let _ = stream.write(FULL);
    }
}

async fn serve(stream: TcpStream, _permit: OwnedSemaphorePermit, gate: Arc<Gate>, router: Router) {
    let _ = stream.set_nodelay(true);
    let asked = AtomicBool::new(false);
    let service = service_fn(|request| {
        asked.store(true, Ordering::Relaxed);
        router.clone().oneshot(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(gate.config.header_read_timeout)
        .max_header_size(HEAD_BYTES_MAX)
        .max_buf_size(2 * HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
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
        tracing::debug!(node = %gate.backend.node(), %error, "connection ended");
    }
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
