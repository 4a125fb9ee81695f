//! An application of stateless workers, for tests on real processes.
//!
//! Owns what the binary `workers` is made of: a kind for each way of balancing that a test looks at.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use perennial::Fault;
use perennial::prelude::*;

/// How often a worker looks whether it may go on.
const LOOK_PERIOD: Duration = Duration::from_millis(10);

/// Calls that have begun in this process, of all kinds.
static BEGUN: AtomicU64 = AtomicU64::new(0);

/// Waits until there is such a file.
async fn until_there(file: &str) {
    while !Path::new(file).exists() {
        tokio::time::sleep(LOOK_PERIOD).await;
    }
}

macro_rules! workers {
    ($(#[$doc:meta])* $name:ident, $($options:tt)*) => {
        $(#[$doc])*
        #[data]
        #[derive(Default)]
        pub struct $name;

        #[actor(stateless, $($options)*)]
        impl $name {
            /// Tells how many calls this process has begun.
            pub fn work(&self) -> u64 {
                BEGUN.fetch_add(1, Ordering::Relaxed) + 1
            }

            /// Answers when a file is there.
            pub async fn hold(&self, file: String) {
                until_there(&file).await;
            }

            /// Adds to a sum.
            pub async fn add(&self, ctx: &Ctx<Self>, sum: String, n: u64) -> Result<u64, Fault> {
                ctx.get::<Sum>(&sum).add(n).await
            }
        }
    };
}

workers! {
    /// One node after the other.
    Turns, balance = "round_robin"
}
workers! {
    /// The less busy of two nodes.
    Usual, concurrency = 100
}
workers! {
    /// The same node for the same key.
    Keyed, balance = "by_key"
}
workers! {
    /// The same, and a call that may have run is made again.
    Again, balance = "by_key", idempotent
}
workers! {
    /// One at a time on each node.
    Single, concurrency = 1
}

/// A sum that workers add to.
#[data]
#[derive(Default)]
pub struct Sum {
    sum: u64,
}

#[actor]
impl Sum {
    /// Adds; returns the sum.
    pub fn add(&mut self, n: u64) -> u64 {
        self.sum += n;
        self.sum
    }

    /// The sum.
    pub fn sum(&self) -> u64 {
        self.sum
    }
}

/// The application.
#[must_use]
pub fn app() -> App {
    let app = App::new("workers").actor::<Turns>().actor::<Usual>().actor::<Keyed>();
    app.actor::<Again>().actor::<Single>().actor::<Sum>()
}
