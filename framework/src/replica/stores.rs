//! What a replica keeps its state in: the log and the rows.
//!
//! Owns how they are opened. A node's are raft-engine and fjall in its data folder; a simulation brings
//! a file system and a row store of its own.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use perennial_core::id::GroupId;
use perennial_core::replication::{Persist, Truncate};
use raft_engine::env::{DefaultFileSystem, FileSystem};

use super::buffer::BufferedRows;
use super::config::{GroupConfig, ReplicaConfig};
use super::handle::ReplicaFault;
use super::log::{DiskLog, LogError, Purger, Recovered};
use super::rows::{FjallRows, MemoryRows, RowStore};

/// Where a group's replicas are, of those hosted here.
pub(super) type ConfigOf<'a> = dyn Fn(GroupId) -> Option<&'a GroupConfig> + 'a;

/// The log on whichever file system; see [`DiskLog`].
pub(super) trait LogStore: Send {
    fn recover(&self) -> Result<Vec<Recovered>, LogError>;
    fn note(&mut self, config: &GroupConfig) -> Result<(), LogError>;
    fn write<'a>(&mut self, persist: &[Persist], config_of: &ConfigOf<'a>) -> Result<u64, LogError>;
    fn is_clean(&self) -> bool;
    fn truncate(&mut self, truncates: &[Truncate]) -> Result<(), LogError>;
    fn purger(&self) -> Box<dyn Purge>;
}

/// Removes old files of the log; see [`Purger`].
pub(super) trait Purge: Send {
    fn purge(&self) -> Result<Vec<GroupId>, LogError>;
}

impl<F: FileSystem + 'static> LogStore for DiskLog<F> {
    fn recover(&self) -> Result<Vec<Recovered>, LogError> {
        self.recover()
    }
    fn note(&mut self, config: &GroupConfig) -> Result<(), LogError> {
        self.note(config)
    }
    fn write<'a>(&mut self, persist: &[Persist], config_of: &ConfigOf<'a>) -> Result<u64, LogError> {
        self.write(persist, config_of)
    }
    fn is_clean(&self) -> bool {
        self.is_clean()
    }
    fn truncate(&mut self, truncates: &[Truncate]) -> Result<(), LogError> {
        self.truncate(truncates)
    }
    fn purger(&self) -> Box<dyn Purge> {
        Box::new(self.purger())
    }
}

impl<F: FileSystem + 'static> Purge for Purger<F> {
    fn purge(&self) -> Result<Vec<GroupId>, LogError> {
        self.purge()
    }
}

/// Log and rows of one node, open.
pub struct Stores {
    /// `None` for a replica that keeps its log in memory only.
    pub(super) log: Option<Box<dyn LogStore>>,
    pub(super) rows: Arc<dyn RowStore>,
}

impl Stores {
    /// Opens those of a data folder; in memory when the settings name none.
    pub(super) fn open(config: &ReplicaConfig) -> Result<Self, ReplicaFault> {
        let Some(dir) = &config.dir else {
            return Ok(Self { log: None, rows: Arc::new(MemoryRows::default()) });
        };
        std::fs::create_dir_all(dir).map_err(ReplicaFault::Folder)?;
        let folder = dir.join("log");
        let log =
            DiskLog::open_on(DefaultFileSystem, &folder, config.log_file_bytes, config.log_purge_bytes)?;
        let rows = dir.join("rows");
        let rows = FjallRows::open_or_set_aside(&rows, config.rows_cache_bytes, config.rows_memtable_bytes)?;
        // A power cut must not take the folders of the stores with it, after they were written to.
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(ReplicaFault::Folder)?;
        Ok(Self { log: Some(Box::new(log)), rows: Arc::new(BufferedRows::new(rows)) })
    }

    /// Opens a log in a folder of a file system, and puts the buffer in front of a row store.
    ///
    /// # Errors
    /// [`ReplicaFault`] when the log cannot be opened.
    pub fn open_on<F: FileSystem + 'static>(
        files: F,
        dir: &Path,
        rows: impl RowStore + 'static,
        config: &ReplicaConfig,
    ) -> Result<Self, ReplicaFault> {
        let log = DiskLog::open_on(files, dir, config.log_file_bytes, config.log_purge_bytes)?;
        Ok(Self { log: Some(Box::new(log)), rows: Arc::new(BufferedRows::new(rows)) })
    }
}
