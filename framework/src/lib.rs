//! Perennial: virtual actors whose state is kept in replicated logs.
//!
//! An actor is a struct with `#[data]` and one `impl` block with `#[actor]`. It is found by its type and a
//! key, and it always exists: `Default` is the state of one that nobody has called yet. A `pub fn` with
//! `&mut self` is a write, one at a time and replicated before it is answered; with `&self` it is a
//! linearizable read. `Ok` commits state, reply, messages, reminders and events together; `Err` or a panic
//! undoes them all.
//!
//! ```
//! use perennial::prelude::*;
//! use perennial::testing::TestApp;
//!
//! /// Somebody's money; the key says whose.
//! #[data]
//! #[derive(Default)]
//! pub struct Account {
//!     cents: u64,
//! }
//!
//! #[data]
//! pub enum AccountError {
//!     NotEnough { cents: u64 },
//! }
//!
//! #[actor]
//! impl Account {
//!     /// Puts money in; returns the balance.
//!     pub fn deposit(&mut self, cents: u64) -> u64 {
//!         self.cents += cents;
//!         self.cents
//!     }
//!
//!     /// Sends money to another account; returns what is left.
//!     pub fn transfer(&mut self, ctx: &mut Ctx<Self>, to: String, cents: u64) -> Result<u64, AccountError> {
//!         let Some(left) = self.cents.checked_sub(cents) else {
//!             return Err(AccountError::NotEnough { cents: self.cents });
//!         };
//!         self.cents = left;
//!         ctx.send(ctx.get::<Account>(&to).deposit(cents)); // leaves with the commit, arrives once
//!         Ok(left)
//!     }
//!
//!     /// The balance.
//!     pub fn balance(&self) -> u64 {
//!         self.cents
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let app = TestApp::new(App::new("bank").actor::<Account>()).await;
//! let (ann, bo) = (app.get::<Account>("ann"), app.get::<Account>("bo"));
//! assert_eq!(ann.deposit(100).await, Ok(100));
//! assert_eq!(ann.transfer("bo".into(), 30).await, Ok(70));
//! let refused = CallError::App(AccountError::NotEnough { cents: 70 });
//! assert_eq!(ann.transfer("bo".into(), 300).await, Err(refused));
//! app.settle().await; // the message has arrived
//! assert_eq!(bo.balance().await, Ok(30));
//! # }
//! ```
//!
//! Where to look: [`actor`](macro@actor) and [`data`](macro@data) for the attributes, [`Ctx`] for what a turn
//! can do, [`Call`] for what can be done with a call, [`Fault`] for what can go wrong, [`testing`] for tests,
//! [`Client`] for programs outside, [`Node`] for embedding a node. The crate `perennial-runtime` gives an
//! application its `main` with all commands. `README.md` tells how to run it, `ARCHITECTURE.md` how it works.

extern crate self as perennial;

pub mod actor;
pub mod app;
pub mod arguments;
pub mod call;
pub mod client;
mod clock;
pub mod collections;
pub mod ctx;
pub mod data;
pub mod dead;
pub mod error;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod host;
pub mod limits;
pub mod link;
pub mod node;
mod operator;
pub mod options;
pub mod pool;
mod protocol;
pub mod replica;
mod router;
pub mod schema;
mod session;
pub mod status;
pub mod testing;
pub mod topic;
mod when;

pub use actor::{Actor, Format};
pub use app::{App, Asset};
pub use call::{Actors, Call, Detailed, EventId, EventsFrom};
pub use client::{Client, ClientConfig};
pub use clock::WallClock;
pub use collections::{Log, Map, MapKey};
pub use ctx::Ctx;
pub use data::Data;
pub use error::{CallError, Fault, MapApp, Reply};
pub use node::{Node, NodeConfig};
pub use perennial_core as core;
pub use perennial_macros::{actor, data};
pub use when::{Missed, When};

/// What generated code names; not for use by hand.
#[doc(hidden)]
pub mod __private {
    pub use futures_util;
    pub use serde;

    pub use crate::actor::no_such_handler;
    pub use crate::data::{replaced, upgrade_from};
}

/// Everything an application's source usually needs.
pub mod prelude {
    pub use crate::{Actor, Actors, App, Call, CallError, Ctx, Data, Fault, MapApp, Reply, actor, data};
}

/// The example of the page on time, compiled and run as a test of the documentation; here, as it needs a clock
/// that stands still.
#[cfg(doctest)]
#[doc = include_str!("../../docs/time.md")]
pub struct TimePage;
