//! The commands. Each takes its arguments and the application and ends with an exit code.

pub(crate) mod bench;
pub(crate) mod call;
pub(crate) mod cert;
pub(crate) mod dead;
pub(crate) mod demo;
pub(crate) mod dev;
pub(crate) mod key;
pub(crate) mod reminder;
pub(crate) mod serve;
pub(crate) mod status;
mod target;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use perennial::App;
use perennial::core::hash::{PartitionCount, partition_of};
use perennial::status::ClusterStatus;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::CommandError;
use crate::harness::ClusterSpec;
use crate::workload::{Probe, Workload};

/// How long a freshly started cluster may take to be ready.
const READY_MAX: Duration = Duration::from_secs(60);
/// How long nodes of a throw-away cluster may take to stop.
const STOP_MAX: Duration = Duration::from_secs(3);

/// What every command knows.
pub(crate) struct Launch {
    /// The application, with the actors every application brings.
    pub(crate) app: App,
    /// What `demo` drives; never empty.
    pub(crate) workloads: Vec<Arc<dyn Workload>>,
    /// How this program was called, for hints.
    pub(crate) program: String,
}

impl Launch {
    /// A cluster of this very program in a folder.
    fn cluster(&self, nodes: usize, dir: impl Into<PathBuf>) -> Result<ClusterSpec, CommandError> {
        let exe = std::env::current_exe().map_err(CommandError::io("find the path of this program"))?;
        Ok(ClusterSpec { app: self.app.name().to_owned(), ..ClusterSpec::new(nodes, dir, exe) })
    }
}

/// Ctrl-C and its relatives.
pub(crate) struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Interrupts {
    pub(crate) fn new() -> Result<Self, CommandError> {
        let listen = |kind| signal(kind).map_err(CommandError::io("listen for signals"));
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    /// The next of them.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hang_up.recv() => {}
        }
    }
}

/// A probe that places actors as the cluster does.
fn probe_for(status: &ClusterStatus) -> Result<Probe, CommandError> {
    let partitions = PartitionCount::try_from(status.partitions.len() as u32)
        .map_err(|error| CommandError::Failed(format!("the status names no valid table: {error}")))?;
    Ok(Probe::new(move |actor| partition_of(actor, partitions)))
}
