//! Testing an application in plain `cargo test`.
//!
//! Owns the two grounds to test actors on. [`TestApp`] is quick and in virtual time: the real turns on a log
//! that commits at once, without sockets or files. [`TestCluster`] is several real nodes with a network, disks
//! and clocks that the test breaks: what an application promises when a node dies is tested there.
//!
//! With `#[tokio::test(start_paused = true)]` reminders of a [`TestApp`] come due when the test moves the time:
//!
//! ```
//! use perennial::prelude::*;
//! use perennial::testing::TestApp;
//!
//! #[data]
//! #[derive(Default)]
//! pub struct Counter {
//!     value: i64,
//! }
//!
//! #[actor]
//! impl Counter {
//!     /// Adds, and returns the sum.
//!     pub fn add(&mut self, n: i64) -> i64 {
//!         self.value += n;
//!         self.value
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let app = TestApp::new(App::new("test").actor::<Counter>()).await;
//! assert_eq!(app.get::<Counter>("a").add(2).await, Ok(2));
//! assert_eq!(app.get::<Counter>("a").add(3).await, Ok(5));
//! # }
//! ```
//!
//! A [`TestCluster`] runs in real time, in any `#[tokio::test]`:
//!
//! ```
//! use perennial::prelude::*;
//! use perennial::testing::TestCluster;
//!
//! # #[data]
//! # #[derive(Default)]
//! # pub struct Counter {
//! #     value: i64,
//! # }
//! #
//! # #[actor]
//! # impl Counter {
//! #     /// Adds, and returns the sum.
//! #     pub fn add(&mut self, n: i64) -> i64 {
//! #         self.value += n;
//! #         self.value
//! #     }
//! # }
//! #
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let cluster = TestCluster::start(3, App::new("test").actor::<Counter>()).await;
//! let counter = cluster.get::<Counter>("a");
//! assert_eq!(counter.add(2).await, Ok(2));
//!
//! let owner = cluster.owner::<Counter>("a").await;
//! cluster.kill(owner); // kill -9
//! assert_eq!(counter.add(3).await, Ok(5)); // another node has the actor, and everything that was answered
//! assert_ne!(cluster.owner::<Counter>("a").await, owner);
//!
//! cluster.restart(owner).await;
//! cluster.partition(&[1], &[2, 3]); // the majority goes on
//! assert_eq!(counter.add(1).await, Ok(6));
//! cluster.heal().await;
//! # }
//! ```

mod app;
mod cluster;
mod lock;
mod process;

use perennial_core::id::{GroupId, PartitionId};
use perennial_core::partition::rows;

pub use self::app::TestApp;
pub use self::cluster::{TestCluster, TestClusterBuilder};
pub use self::lock::schema_lock;
use crate::replica::RowStore;

/// Whether messages of a partition's actors are on their way.
fn holds_messages(store: &dyn RowStore, partition: PartitionId) -> bool {
    let from = rows::outbox(PartitionId(0), 0);
    let to = rows::outbox(PartitionId(u32::MAX), u64::MAX);
    holds(store, partition, &from, &to)
}

/// Whether there are rows in a range; what cannot be read counts as none.
fn holds(store: &dyn RowStore, partition: PartitionId, from: &[u8], to: &[u8]) -> bool {
    store.scan(GroupId::of(partition), from, Some(to), 1).is_ok_and(|found| !found.is_empty())
}
