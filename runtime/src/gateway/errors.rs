//! Everything a gateway answers that is not a value, in one JSON shape.
//!
//! Owns the mapping from faults, application errors and the gateway's own refusals to a status and a
//! body `{"code","message","applied","retryable","error"?}`. Never decides whether something failed.

use axum::http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use perennial::Fault;
use perennial::call::ActorId;
use perennial::error::Applied;
use serde::Serialize;

use super::auth::BadCredentials;
use super::routes::ROUTES;

/// Seconds after which a refused or unavailable call is worth another try.
const RETRY_AFTER_SECONDS: u64 = 1;

/// Why a request got no value.
#[derive(Debug, thiserror::Error)]
pub(super) enum Problem {
    /// A fault of the cluster or of the call.
    #[error("{0}")]
    Fault(#[from] Fault),
    /// The handler returned its error, which is JSON.
    #[error("{kind}.{method} returned an error, nothing was changed; the field \"error\" holds it")]
    App { kind: String, method: String, error: Bytes },
    #[error("the path {0}")]
    BadPath(String),
    #[error("the query {0}")]
    BadQuery(String),
    #[error("the header {name} {why}")]
    BadHeader { name: &'static str, why: String },
    #[error("the body is not UTF-8 from byte {at} on; send JSON in UTF-8")]
    NotUtf8 { at: usize },
    #[error("the body is not JSON: {0}")]
    BadJson(serde_json::Error),
    #[error("the body is JSON but no object; send the arguments by name, such as {{\"qty\": 2}}")]
    NotAnObject,
    #[error("the body is larger than {limit} bytes")]
    BodyTooLarge { limit: usize },
    #[error("the body did not arrive within {seconds} s")]
    BodySlow { seconds: u64 },
    #[error("the body broke off: {0}")]
    BodyBroken(axum::Error),
    #[error("this needs credentials: send an API key or a token as Authorization: Bearer CREDENTIAL")]
    NotAuthenticated,
    #[error("{0}")]
    BadCredentials(BadCredentials),
    #[error("{who} may not do this: {what}; the operator's policy has no rule that allows it")]
    Forbidden { who: String, what: String },
    #[error("pages of {origin} may not call this gateway; its operator can allow that origin")]
    ForeignOrigin { origin: String },
    #[error("{host:?} is no name of this port; its operator can allow an origin of that host")]
    ForeignHost { host: String },
    #[error("{actor} has no reminder {name:?}")]
    NoReminder { actor: ActorId, name: String },
    #[error("nothing is here; there are: {}", ROUTES.join(", "))]
    NoRoute,
    #[error("the page {mount:?} has no file {file:?}")]
    NoFile { mount: &'static str, file: String },
    #[error("the method is not allowed here; the header Allow names those that are")]
    MethodNotAllowed,
    #[error("{what} of this gateway are at their limit of {limit}; try again later or at another node")]
    Busy { what: &'static str, limit: usize },
    #[error("{what} are at your limit of {limit}; wait for some to end")]
    YourShare { what: &'static str, limit: usize },
    #[error("this node is not ready: {0}")]
    NotReady(String),
    /// A probe's answer: what it asked for, the code, and why not.
    #[error("this node is not {probe}: {why}")]
    Unwell { probe: &'static str, code: &'static str, why: String, reasons: Vec<String> },
    #[error("this node is stopping; try again at another node, with the same idempotency key if it writes")]
    Stopping { applied: Applied },
    #[error("the cluster's status did not arrive in time")]
    StatusSlow,
    #[error("the gateway failed to handle this request; its log says why")]
    Internal,
}

impl Problem {
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::Fault(fault) => {
                StatusCode::from_u16(fault.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
            }
            Self::App { .. } => StatusCode::CONFLICT,
            Self::BadPath(_)
            | Self::BadQuery(_)
            | Self::BadHeader { .. }
            | Self::NotUtf8 { .. }
            | Self::BadJson(_)
            | Self::NotAnObject
            | Self::BodyBroken(_) => StatusCode::BAD_REQUEST,
            Self::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodySlow { .. } => StatusCode::REQUEST_TIMEOUT,
            Self::NotAuthenticated | Self::BadCredentials(_) => StatusCode::UNAUTHORIZED,
            Self::Forbidden { .. } | Self::ForeignOrigin { .. } => StatusCode::FORBIDDEN,
            Self::ForeignHost { .. } => StatusCode::MISDIRECTED_REQUEST,
            Self::NoRoute | Self::NoFile { .. } | Self::NoReminder { .. } => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Busy { .. } | Self::YourShare { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::NotReady(_) | Self::Unwell { .. } | Self::Stopping { .. } => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::StatusSlow => StatusCode::GATEWAY_TIMEOUT,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Fault(fault) => fault.code(),
            Self::App { .. } => "app",
            Self::BadPath(_) => "bad_path",
            Self::BadQuery(_) => "bad_query",
            Self::BadHeader { .. } => "bad_header",
            Self::NotUtf8 { .. } => "not_utf8",
            Self::BadJson(_) => "bad_json",
            Self::NotAnObject => "not_an_object",
            Self::BodyTooLarge { .. } => "body_too_large",
            Self::BodySlow { .. } => "body_slow",
            Self::BodyBroken(_) => "body_broken",
            Self::NotAuthenticated => "not_authenticated",
            Self::BadCredentials(_) => "bad_credentials",
            Self::Forbidden { .. } => "forbidden",
            Self::ForeignOrigin { .. } => "foreign_origin",
            Self::ForeignHost { .. } => "foreign_host",
            Self::NoRoute => "no_route",
            Self::NoFile { .. } => "no_file",
            Self::NoReminder { .. } => "no_reminder",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::Busy { .. } => "busy",
            Self::YourShare { .. } => "your_share",
            Self::NotReady(_) => "not_ready",
            Self::Unwell { code, .. } => code,
            Self::Stopping { .. } => "stopping",
            Self::StatusSlow => "status_slow",
            Self::Internal => "internal",
        }
    }

    fn applied(&self) -> Applied {
        match self {
            Self::Fault(fault) => fault.applied(),
            Self::Stopping { applied } => *applied,
            Self::Internal => Applied::Unknown,
            _ => Applied::No,
        }
    }

    fn retryable(&self) -> bool {
        match self {
            Self::Fault(fault) => fault.retryable(),
            Self::Busy { .. }
            | Self::YourShare { .. }
            | Self::NotReady(_)
            | Self::Unwell { .. }
            | Self::Stopping { .. }
            | Self::StatusSlow
            | Self::BodySlow { .. } => true,
            _ => false,
        }
    }

    /// The body: one line of JSON.
    pub(super) fn to_json(&self) -> String {
        #[derive(Serialize)]
        struct Body<'a> {
            code: &'a str,
            message: String,
            applied: Applied,
            retryable: bool,
        }
        let body = Body {
            code: self.code(),
            message: self.to_string(),
            applied: self.applied(),
            retryable: self.retryable(),
        };
        let mut json = serde_json::to_string(&body).expect("strings and booleans are JSON");
        if let Self::App { error, .. } = self {
            // The owner's bytes go through untouched: reading them here could round their numbers.
            json.pop();
            json.push_str(",\"error\":");
            json.push_str(&String::from_utf8_lossy(error));
            json.push('}');
        }
        if let Self::Unwell { probe, reasons, .. } = self {
            json.pop();
            let reasons = serde_json::to_string(reasons).expect("strings are JSON");
            json.push_str(&format!(",\"{probe}\":false,\"reasons\":{reasons}}}"));
        }
        json
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.status();
        let mut response = (status, [(CONTENT_TYPE, "application/json")], self.to_json()).into_response();
        let headers = response.headers_mut();
        if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            headers.insert(RETRY_AFTER, RETRY_AFTER_SECONDS.into());
        }
        if status == StatusCode::UNAUTHORIZED {
            let challenge = match self {
                Self::BadCredentials(_) => "Bearer realm=\"perennial\", error=\"invalid_token\"",
                _ => "Bearer realm=\"perennial\"",
            };
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        if matches!(self, Self::Fault(Fault::NotARead { .. })) {
            headers.insert(ALLOW, HeaderValue::from_static("POST"));
        }
        response
    }
}
