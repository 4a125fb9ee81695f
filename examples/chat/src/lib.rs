//! A chat on Perennial: rooms, and a page that stays live while nodes come and go.
//!
//! Owns one actor type and its page. Shows events: what a turn publishes reaches every follower once
//! it is committed, in order and without a gap, also over a failover. [`ChatLoad`] proves it under load.

mod load;
mod room;

pub use load::ChatLoad;
use perennial::{App, Asset};
pub use room::*;

/// Adds the chat's actor and its page, which is at `/chat/`.
#[must_use]
pub fn register(app: App) -> App {
    app.actor::<Room>().page("chat", page)
}

fn page(path: &str) -> Option<Asset> {
    let (content_type, text) = match path {
        "" => ("text/html; charset=utf-8", include_str!("../page/index.html")),
        "chat.js" => ("text/javascript; charset=utf-8", include_str!("../page/chat.js")),
        "chat.css" => ("text/css; charset=utf-8", include_str!("../page/chat.css")),
        "perennial.js" => ("text/javascript; charset=utf-8", include_str!("../../web/perennial.js")),
        "perennial.css" => ("text/css; charset=utf-8", include_str!("../../web/perennial.css")),
        _ => return None,
    };
    Some(Asset { content_type: content_type.to_owned(), bytes: text.as_bytes().into() })
}
