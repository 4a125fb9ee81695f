//! Perennial: virtual actors whose state is kept in replicated logs.
//!
//! See `README.md` for a first actor and `ARCHITECTURE.md` for how it works.

extern crate self as perennial;

pub mod actor;
pub mod app;
pub mod arguments;
pub mod call;
pub mod client;
mod clock;
pub mod ctx;
pub mod data;
pub mod error;
mod host;
pub mod limits;
pub mod link;
pub mod node;
mod protocol;
pub mod replica;
mod router;
pub mod schema;
mod session;
pub mod status;
pub mod testing;

pub use actor::{Actor, Format};
pub use app::{App, Asset};
pub use call::{Actors, Call, EventId, EventsFrom};
pub use client::{Client, ClientConfig};
pub use ctx::Ctx;
pub use data::Data;
pub use error::{CallError, Fault, MapApp, Reply};
pub use node::{Node, NodeConfig};
pub use perennial_core as core;
pub use perennial_macros::{actor, data};

/// What generated code names; not for use by hand.
#[doc(hidden)]
pub mod __private {
    pub use futures_util;
    pub use serde;

    pub use crate::actor::no_such_handler;
    pub use crate::data::{own_fingerprint, upgrade_from};
}

/// Everything an application's source usually needs.
pub mod prelude {
    pub use crate::{Actor, Actors, App, Call, CallError, Ctx, Data, Fault, MapApp, Reply, actor, data};
}
