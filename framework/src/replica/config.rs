//! Settings of the replica.

use std::path::PathBuf;
use std::time::Duration;

use perennial_core::id::{GroupId, MemberId};
use perennial_core::replication::DriverConfig;
use serde::{Deserialize, Serialize};

/// Settings of one node's replica.
#[derive(Debug, Clone)]
pub struct ReplicaConfig {
    /// Folder for log, rows and arriving snapshots; `None` keeps everything in memory.
    pub dir: Option<PathBuf>,
    /// Length of a tick.
    pub tick: Duration,
    /// Settings of the driver, this node's member number among them.
    pub driver: DriverConfig,
    /// Longest time between checkpoints of rows that have changed.
    pub checkpoint_every: Duration,
    /// Bytes of applied entries after which a checkpoint is made at once.
    pub checkpoint_bytes: u64,
    /// Size of one file of the log, in bytes.
    pub log_file_bytes: u64,
    /// Size of the log above which old files are purged, in bytes; at least one file.
    pub log_purge_bytes: u64,
    /// Block cache of the rows, in bytes.
    pub rows_cache_bytes: u64,
    /// Rows kept in memory before they are written as a table, in bytes.
    pub rows_memtable_bytes: u64,
}

impl ReplicaConfig {
    /// The defaults for a member that keeps its data in `dir`.
    #[must_use]
    pub fn new(me: MemberId, seed: u64, dir: Option<PathBuf>) -> Self {
        Self {
            dir,
            tick: Duration::from_millis(50),
            driver: DriverConfig::new(me, seed),
            checkpoint_every: Duration::from_secs(5),
            checkpoint_bytes: 8 * 1024 * 1024,
            log_file_bytes: 16 * 1024 * 1024,
            log_purge_bytes: 64 * 1024 * 1024,
            rows_cache_bytes: 12 * 1024 * 1024,
            rows_memtable_bytes: 16 * 1024 * 1024,
        }
    }
}

/// A group and where its replicas are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupConfig {
    /// Which group.
    pub group: GroupId,
    /// All its replicas; fixed for its life.
    pub voters: Vec<MemberId>,
    /// The same in the order in which they should lead.
    pub preferred: Vec<MemberId>,
}
