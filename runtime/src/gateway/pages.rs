//! What people look at: the index, the kinds, the application's pages.
//!
//! Owns nothing but their rendering. Pages are files of the application, found by the function it
//! gave; their `ETag` is a hash of their bytes, so that a new build is seen at the next visit.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH, LOCATION, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use perennial::app::AssetSource;
use perennial::core::hash::wide_hash;
use perennial::options::{Balance, Pool};
use perennial::schema::Type;
use serde::Serialize;

use super::errors::Problem;
use super::routes::path_values;
use super::{Gate, GatewayError, pieces};

/// First path segments that belong to the gateway.
const RESERVED: [&str; 5] = ["v1", "startupz", "livez", "readyz", "metrics"];

/// Adds the application's pages, each below its mount point.
pub(super) fn mount(
    mut router: Router<Arc<Gate>>,
    pages: &[(&'static str, AssetSource)],
) -> Result<Router<Arc<Gate>>, GatewayError> {
    let mut mounted = BTreeSet::new();
    for &(given, files) in pages {
        let mount = given.trim_matches('/');
        let refused = |why| GatewayError::Page { mount: given.to_owned(), why };
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if mount.split('/').any(|segment| segment.is_empty() || !segment.chars().all(plain)) {
            return Err(refused("name it with A-Z a-z 0-9 . _ -"));
        }
        if mount.split('/').next().is_some_and(|first| RESERVED.contains(&first)) {
            return Err(refused("v1, startupz, livez, readyz and metrics belong to the gateway"));
        }
        if !mounted.insert(mount) {
            return Err(refused("another page is mounted there"));
        }
        let page = move |headers: HeaderMap| async move { file(mount, files, "", &headers) };
        let below = move |path: Result<Path<String>, PathRejection>, headers: HeaderMap| async move {
            file(mount, files, &path_values(path)?, &headers)
        };
        router = router
            .route(&format!("/{mount}"), get(move |uri: Uri| async move { into_folder(mount, &uri) }))
            .route(&format!("/{mount}/"), get(page))
            .route(&format!("/{mount}/{{*path}}"), get(below));
    }
    Ok(router)
}

/// Sends `/chat` to `/chat/`, so that the page's relative links work. The target is relative, which
/// holds behind a proxy with a prefix too.
fn into_folder(mount: &str, uri: &Uri) -> Response {
    let last = mount.rsplit('/').next().unwrap_or(mount);
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    (StatusCode::TEMPORARY_REDIRECT, [(LOCATION, format!("{last}/{query}"))]).into_response()
}

fn file(
    mount: &'static str,
    files: AssetSource,
    path: &str,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let asset = files(path).ok_or_else(|| Problem::NoFile { mount, file: path.to_owned() })?;
    let etag = format!("\"{:032x}\"", wide_hash(&asset.bytes));
    let caching = [(CACHE_CONTROL, "no-cache".to_owned()), (ETAG, etag.clone())];
    if known(headers, &etag) {
        return Ok((StatusCode::NOT_MODIFIED, caching).into_response());
    }
    let content_type = HeaderValue::from_str(&asset.content_type)
        .unwrap_or_else(|_| HeaderValue::from_static("application/octet-stream"));
    let typed = [(CONTENT_TYPE, content_type), (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"))];
    Ok((caching, typed, pieces::file(asset.bytes)).into_response())
}

fn known(headers: &HeaderMap, etag: &str) -> bool {
    headers
        .get_all(IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|tag| matches!(tag.trim(), "*") || tag.trim().trim_start_matches("W/") == etag)
}

#[derive(Serialize)]
struct KindsPage {
    app: &'static str,
    kinds: Vec<KindInfo>,
}

#[derive(Serialize)]
struct KindInfo {
    kind: &'static str,
    /// How its calls find a worker; `None` for actors, which have a state.
    stateless: Option<Pool>,
    /// `None` when the kind publishes nothing.
    events: Option<String>,
    handlers: Vec<HandlerInfo>,
}

#[derive(Serialize)]
struct HandlerInfo {
    name: &'static str,
    signature: String,
    writes: bool,
    /// How to call it, such as `POST /v1/Cart/{key}/add`.
    call: String,
    params: Vec<ParamInfo>,
    returns: &'static str,
    doc: &'static str,
}

#[derive(Serialize)]
struct ParamInfo {
    name: &'static str,
    #[serde(rename = "type")]
    ty: &'static str,
}

/// `GET /v1/kinds`: what can be called, for people who explore.
pub(super) async fn kinds(State(gate): State<Arc<Gate>>) -> Response {
    Json(described(&gate)).into_response()
}

fn described(gate: &Gate) -> KindsPage {
    let app = gate.backend.app();
    let kinds = app
        .kinds()
        .iter()
        .map(|kind| {
            let name = kind.name();
            let stateless = kind.options().pool;
            // Workers are called by POST whatever their handlers do, and mostly under no key of their own.
            let key = match stateless {
                Some(pool) if pool.balance != Balance::ByKey => "any",
                _ => "{key}",
            };
            let verb = |writes| if writes || stateless.is_some() { "POST" } else { "GET" };
            let handlers = kind.methods().iter().map(|method| HandlerInfo {
                name: method.name,
                signature: method.signature(),
                writes: method.write,
                call: format!("{} /v1/{name}/{key}/{}", verb(method.write), method.name),
                params: method.params.iter().map(|p| ParamInfo { name: p.name, ty: p.ty }).collect(),
                returns: method.returns,
                doc: method.doc,
            });
            let publishes = kind.event_schema().0 != Type::Unit;
            KindInfo {
                kind: name,
                stateless,
                events: publishes.then(|| format!("GET /v1/{name}/{{key}}/events")),
                handlers: handlers.collect(),
            }
        })
        .collect();
    KindsPage { app: app.name(), kinds }
}

/// `GET /`: where everything is.
pub(super) async fn index(State(gate): State<Arc<Gate>>) -> Html<String> {
    let KindsPage { app, kinds } = described(&gate);
    let app = escaped(app);
    let node = gate.backend.node();
    let mut html = format!(
        "<!doctype html><html lang=en><meta charset=utf-8>\
         <meta name=viewport content=\"width=device-width,initial-scale=1\"><title>{app}</title>\
         <style>:root{{color-scheme:light dark}}body{{font:16px/1.5 system-ui;max-width:60rem;\
         margin:2rem auto;padding:0 1rem}}code{{font-size:.9em}}dd{{margin:0 0 .5rem 1.5rem}}</style>\
         <h1>{app}</h1><p>Node <b>{node}</b> of a Perennial cluster: \
         <a href=v1/status>status</a>, <a href=v1/kinds>kinds</a>, <a href=metrics>metrics</a>, \
         <a href=readyz>readiness</a>.</p>"
    );
    let pages = gate.backend.app().pages();
    if !pages.is_empty() {
        html.push_str("<h2>Pages</h2><ul>");
        for (mount, _) in pages {
            let mount = escaped(mount.trim_matches('/'));
            let _ = write!(html, "<li><a href=\"{mount}/\">{mount}</a>");
        }
        html.push_str("</ul>");
    }
    html.push_str("<h2>Kinds</h2>");
    for kind in kinds {
        let workers = if kind.stateless.is_some() { " (stateless workers)" } else { "" };
        let _ = write!(html, "<h3>{}{workers}</h3><dl>", escaped(kind.kind));
        for handler in kind.handlers {
            let (call, signature) = (escaped(&handler.call), escaped(&handler.signature));
            let (returns, doc) = (escaped(handler.returns), escaped(handler.doc));
            let _ =
                write!(html, "<dt><code>{call}</code><dd><code>{signature} -&gt; {returns}</code><br>{doc}");
        }
        if let Some(events) = kind.events {
            let _ = write!(html, "<dt><code>{}</code><dd>its events as a stream", escaped(&events));
        }
        html.push_str("</dl>");
    }
    Html(html)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
