//! Which web pages may call this gateway from a browser.
//!
//! A gateway on a developer's machine can be reached by every page that developer has open. So a page
//! may write, and read answers, only if it comes from the gateway's own host name (any port: that of
//! another node's gateway; the loopback names count as one) or from an origin the operator allows.
//! Requests without `Origin` (programs, the address bar) are not concerned.
//!
//! A page can also make its own name point to this machine (DNS rebinding), and then is of the gateway's own
//! host name. A port on loopback that lets everybody do something therefore answers only to names that cannot
//! be pointed elsewhere: those of loopback, addresses, and the hosts of allowed origins.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, ORIGIN, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use axum::middleware::Next;
use axum::response::Response;
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::errors::Problem;
use super::routes::{
    AGE_MS, IDEMPOTENCY_KEY, LAST_EVENT_ID, MAX_STALE_MS, NODE, PARTITION, RETRIES, TIMEOUT_MS, single,
};
use super::{Gate, ws};

/// How long a browser may remember that it may call.
const PREFLIGHT_AGE_MAX: Duration = Duration::from_secs(600);
/// What browsers say about the relation of a page to the address it calls; pages cannot set it.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Tells browsers which pages may read answers.
pub(super) fn cors(gate: &Arc<Gate>) -> CorsLayer {
    let gate = Arc::clone(gate);
    CorsLayer::new()
        .allow_origin(AllowOrigin::predicate(move |origin, request| {
            allowed(&gate.config.origins_allowed, origin, &request.headers)
        }))
        .allow_methods([Method::GET, Method::POST])
        .allow_headers([
            AUTHORIZATION,
            CONTENT_TYPE,
            IDEMPOTENCY_KEY,
            LAST_EVENT_ID,
            MAX_STALE_MS,
            TIMEOUT_MS,
        ])
        .expose_headers([AGE_MS, NODE, PARTITION, RETRIES, RETRY_AFTER])
        .max_age(PREFLIGHT_AGE_MAX)
}

/// Refuses requests for a host name that anybody may have pointed here. Health checks may use any.
pub(super) async fn known_host(
    State(gate): State<Arc<Gate>>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let asked = single(request.headers(), &HOST, "Host")?.map(HeaderValue::as_bytes).unwrap_or_default();
    let asked = String::from_utf8_lossy(asked);
    let health = matches!(request.uri().path(), "/startupz" | "/livez" | "/readyz");
    if health || asked.is_empty() || is_known(&gate.config.origins_allowed, &asked) {
        return Ok(next.run(request).await);
    }
    Err(Problem::ForeignHost { host: asked.into_owned() })
}

fn is_known(listed: &[String], asked: &str) -> bool {
    let Some(asked) = asked.parse::<Uri>().ok().and_then(|uri| uri.host().map(str::to_ascii_lowercase))
    else {
        return false;
    };
    let address = asked.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok();
    let listed = || listed.iter().filter_map(|origin| origin.parse::<Uri>().ok());
    address
        || loopback(&asked)
        || asked.ends_with(".localhost")
        || listed().any(|known| known.host().is_some_and(|known| known.eq_ignore_ascii_case(&asked)))
}

/// Refuses writes, and WebSockets, that a foreign page makes its visitor's browser send. (Reads need no
/// refusal: the browser does not hand the answer to the page.)
pub(super) async fn guard(
    State(gate): State<Arc<Gate>>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let headers = request.headers();
    single(headers, &HOST, "Host")?;
    if let Some(origin) = single(headers, &ORIGIN, "Origin")?.filter(|_| concerns(&request)) {
        let same = headers.get(SEC_FETCH_SITE).is_some_and(|site| site == "same-origin");
        if !same && !allowed(&gate.config.origins_allowed, origin, headers) {
            return Err(Problem::ForeignOrigin {
                origin: String::from_utf8_lossy(origin.as_bytes()).into_owned(),
            });
        }
    }
    Ok(next.run(request).await)
}

/// What a browser lets any page do. An answer to a read it hands only to those that may have it, but it does
/// not ask who may have a WebSocket.
fn concerns(request: &Request) -> bool {
    !request.method().is_safe() || ws::is_asked_for(request.headers())
}

fn allowed(listed: &[String], origin: &HeaderValue, headers: &HeaderMap) -> bool {
    let Ok(origin) = origin.to_str() else { return false };
    if listed.iter().any(|known| known.trim_end_matches('/') == origin) {
        return true;
    }
    let own = headers.get(HOST).and_then(|host| host.to_str().ok()?.parse::<Uri>().ok());
    let theirs = origin.parse::<Uri>().ok();
    match (own.as_ref().and_then(Uri::host), theirs.as_ref().and_then(Uri::host)) {
        (Some(own), Some(theirs)) => own == theirs || (loopback(own) && loopback(theirs)),
        _ => false,
    }
}

fn loopback(host: &str) -> bool {
    matches!(host, "localhost" | "127.0.0.1" | "[::1]")
}
