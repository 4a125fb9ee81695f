//! Dead letters, to be looked at. What changes them is a command's, with a client's certificate.

use std::sync::Arc;

use axum::Extension;
use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::header::CACHE_CONTROL;
use axum::http::{HeaderValue, Uri};
use axum::response::{IntoResponse, Response};
use perennial::dead::{DeadFilter, DeadId, DeadLetters};

use super::Gate;
use super::auth::{ClientAddress, Principal};
use super::errors::Problem;
use super::routes::{path_values, query_pairs};

/// Dead letters in one answer, unless fewer are asked for.
pub(super) const DEAD_LISTED_MAX: usize = 1000;

fn of(gate: &Gate) -> Result<DeadLetters, Problem> {
    let waits = || gate.backend.ready().err().unwrap_or_else(|| "it has joined no cluster".to_owned());
    gate.backend.dead_letters().ok_or_else(|| Problem::NotReady(waits()))
}

fn fresh(json: impl IntoResponse) -> Response {
    ([(CACHE_CONTROL, HeaderValue::from_static("no-store"))], json).into_response()
}

/// `GET /v1/dead?kind=&key=&limit=`: those that are kept, oldest first.
pub(super) async fn list(
    State(gate): State<Arc<Gate>>,
    Extension(ClientAddress(address)): Extension<ClientAddress>,
    uri: Uri,
) -> Result<Response, Problem> {
    let (mut filter, mut limit) = (DeadFilter::default(), DEAD_LISTED_MAX);
    for (name, value) in query_pairs(&uri)? {
        match name.as_str() {
            "kind" => filter.kind = Some(value),
            "key" => filter.key = Some(value),
            "limit" => {
                let parsed = value.parse().ok().filter(|limit| (1..=DEAD_LISTED_MAX).contains(limit));
                let wrong = || Problem::BadQuery(format!("has a limit that is not 1 to {DEAD_LISTED_MAX}"));
                limit = parsed.ok_or_else(wrong)?;
            }
            _ => return Err(Problem::BadQuery(format!("has {name:?}; it takes kind, key and limit"))),
        }
    }
    // Every leader is asked, as for the status.
    let _share = gate.admit(&gate.status, &Principal::at(address), 1)?;
    Ok(fresh(Json(of(&gate)?.list(&filter, limit).await)))
}

/// `GET /v1/dead/{id}`: one of them, with its arguments.
pub(super) async fn show(
    State(gate): State<Arc<Gate>>,
    Extension(ClientAddress(address)): Extension<ClientAddress>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Response, Problem> {
    let text = path_values(path)?;
    let id: DeadId = text.parse().map_err(|_| perennial::Fault::NoDeadLetter { id: text.clone() })?;
    let _share = gate.admit(&gate.status, &Principal::at(address), 1)?;
    Ok(fresh(Json(of(&gate)?.show(id).await?)))
}
