//! A simulated disk: it loses what was not flushed.
//!
//! Owns the files of a machine's log and its rows, and what of them is durable. The log is the real one, on
//! a file system whose writes can be undone; the rows are in memory with a journal. A power cut keeps a
//! prefix of what was written since the last flush, the last write of it perhaps torn. Never decides by
//! itself when something fails.
//!
//! Left out: a folder's entries count as durable with the first flush of their file, and a removed file
//! does not come back.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use perennial_core::id::GroupId;
use perennial_core::replication::RowOp;
use raft_engine::env::{FileSystem, Handle, Permission, WriteExt};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::config::ReplicaConfig;
use super::handle::ReplicaFault;
use super::rows::{Change, GroupMeta, MemoryRows, RowError, RowIter, RowStore};
use super::stores::Stores;

/// What goes wrong with a disk from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DiskFault {
    /// Nothing.
    #[default]
    None,
    /// Writes fail: there is no room.
    Full,
    /// Flushes fail; what was written before may be durable or not.
    Flush,
    /// Flushes do nothing and say that they were done: a disk that lies, and a control of simulations.
    Lies,
}

/// The disk of a simulated machine; it outlives the machine's nodes. Cheap to clone.
#[derive(Clone)]
pub struct Disk(Arc<Mutex<Content>>);

struct Content {
    /// Where the files of the log are.
    dir: PathBuf,
    random: StdRng,
    fault: DiskFault,
    /// How often the machine was started: what an earlier node of it still holds is dead.
    start: u64,
    /// Writes since the last flush, by file.
    files: BTreeMap<PathBuf, Unflushed>,
    /// Rows that are durable.
    rows: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Changes of rows since then, in order.
    journal: Vec<Vec<Change>>,
    /// Whose flush failed since the machine's start.
    failed: Option<Store>,
    /// Writes to a store after its flush failed: there must be none.
    writes_after_failure: u64,
    flushes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Store {
    Log,
    Rows,
}

#[derive(Default)]
struct Unflushed {
    /// Never flushed: the file may be gone.
    new: bool,
    writes: Vec<Undo>,
}

/// How to undo a write.
struct Undo {
    offset: u64,
    /// What was there.
    before: Vec<u8>,
    /// The file's length then.
    length: u64,
    /// What was written; a tear keeps the begin of it.
    after: Vec<u8>,
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk").field("dir", &self.lock().dir).finish_non_exhaustive()
    }
}

impl Disk {
    /// An empty disk. Files are kept in `dir`, which is made; the seed decides what a power cut keeps.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn new(dir: &Path, seed: u64) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        Ok(Self(Arc::new(Mutex::new(Content {
            dir: dir.to_owned(),
            random: StdRng::seed_from_u64(seed),
            fault: DiskFault::None,
            start: 0,
            files: BTreeMap::new(),
            rows: BTreeMap::new(),
            journal: Vec::new(),
            failed: None,
            writes_after_failure: 0,
            flushes: 0,
        }))))
    }

    fn lock(&self) -> MutexGuard<'_, Content> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets what goes wrong from now on.
    pub fn set_fault(&self, fault: DiskFault) {
        self.lock().fault = fault;
    }

    /// The rows that are durable, and checkpoints, by their whole keys.
    #[must_use]
    pub fn rows(&self) -> BTreeMap<Vec<u8>, Vec<u8>> {
        self.lock().rows.clone()
    }

    /// Flushes that were carried out.
    #[must_use]
    pub fn flushes(&self) -> u64 {
        self.lock().flushes
    }

    /// Writes to a store whose flush had failed, of all starts: a replica must make none.
    #[must_use]
    pub fn writes_after_failure(&self) -> u64 {
        self.lock().writes_after_failure
    }

    /// Opens the stores for the next start of the machine.
    ///
    /// # Errors
    /// [`ReplicaFault`] when the log is damaged.
    pub fn open(&self, config: &ReplicaConfig) -> Result<Stores, ReplicaFault> {
        let (dir, start, rows) = {
            let mut content = self.lock();
            content.start += 1;
            content.failed = None;
            let mut rows = content.rows.clone();
            content.journal.iter().flatten().cloned().for_each(|change| apply(&mut rows, change));
            (content.dir.join("log"), content.start, rows)
        };
        let rows = DiskRows { disk: self.clone(), start, rows: MemoryRows::of(rows) };
        Stores::open_on(Files { disk: self.clone(), start }, &dir, rows, config)
    }

    /// The node on it is killed: what it wrote stays, flushed or not. Nothing of it writes any more.
    pub fn kill(&self) {
        self.lock().start += 1;
    }

    /// The power goes: what was not flushed stays in part, up to a moment, or not at all.
    ///
    /// # Errors
    /// When a file cannot be changed.
    pub fn cut_power(&self) -> io::Result<()> {
        let mut content = self.lock();
        content.start += 1;
        for (path, Unflushed { new, writes }) in std::mem::take(&mut content.files) {
            let kept = content.random.random_range(0..=writes.len());
            let torn = content.random.random_bool(0.5);
            if new && kept == 0 {
                match std::fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => continue,
                }
            }
            let file = File::options().write(true).open(&path)?;
            for (number, undo) in writes.iter().enumerate().skip(kept).rev() {
                file.write_all_at(&undo.before, undo.offset)?;
                file.set_len(undo.length)?;
                if number == kept && torn && !undo.after.is_empty() {
                    let part = content.random.random_range(0..undo.after.len());
                    file.write_all_at(&undo.after[..part], undo.offset)?;
                }
            }
        }
        let kept = content.journal.len();
        let kept = content.random.random_range(0..=kept);
        let journal = std::mem::take(&mut content.journal);
        for change in journal.into_iter().take(kept).flatten() {
            apply(&mut content.rows, change);
        }
        Ok(())
    }

    /// Loses all rows and their checkpoints, as a disk does that lost one of two folders.
    pub fn lose_rows(&self) {
        let mut content = self.lock();
        content.rows.clear();
        content.journal.clear();
    }

    /// Flips a bit of the log, somewhere in what is there; says where.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn flip_a_bit(&self) -> io::Result<Option<(PathBuf, u64)>> {
        let mut content = self.lock();
        let mut files = Vec::new();
        for entry in std::fs::read_dir(content.dir.join("log"))? {
            let entry = entry?;
            if entry.metadata()?.len() > 0 {
                files.push((entry.path(), entry.metadata()?.len()));
            }
        }
        files.sort();
        if files.is_empty() {
            return Ok(None);
        }
        let (path, length) = files.swap_remove(content.random.random_range(0..files.len()));
        let offset = content.random.random_range(0..length);
        let mut bytes = std::fs::read(&path)?;
        bytes[usize::try_from(offset).unwrap_or(0)] ^= 1 << content.random.random_range(0..8);
        std::fs::write(&path, bytes)?;
        Ok(Some((path, offset)))
    }
}

fn apply(rows: &mut BTreeMap<Vec<u8>, Vec<u8>>, (key, value): Change) {
    match value {
        Some(value) => drop(rows.insert(key, value)),
        None => drop(rows.remove(&key)),
    }
}

impl Content {
    /// Whether what a node of this start writes gets to the disk. After a power cut or a failed flush
    /// nothing does any more, and nobody is told: raft-engine panics when a flush fails, and flushes once
    /// more when it is dropped.
    fn takes(&mut self, start: u64) -> io::Result<bool> {
        if start != self.start || self.failed.is_some() {
            return Ok(false);
        }
        match self.fault {
            DiskFault::Full => Err(io::Error::from(io::ErrorKind::StorageFull)),
            DiskFault::None | DiskFault::Flush | DiskFault::Lies => Ok(true),
        }
    }

    /// Whether a flush of a node of this start is carried out.
    fn flush(&mut self, start: u64, store: Store) -> io::Result<bool> {
        if start != self.start || self.failed.is_some() {
            return Ok(false);
        }
        match self.fault {
            DiskFault::Flush => {
                self.failed = Some(store);
                Err(io::Error::other("the disk cannot flush"))
            }
            DiskFault::Lies => Ok(false),
            DiskFault::None | DiskFault::Full => {
                self.flushes += 1;
                Ok(true)
            }
        }
    }
}

/// The files of one start.
struct Files {
    disk: Disk,
    start: u64,
}

/// An open file of the log.
struct OpenFile {
    disk: Disk,
    start: u64,
    path: PathBuf,
    file: File,
}

impl FileSystem for Files {
    type Handle = OpenFile;
    type Reader = Cursor;
    type Writer = Cursor;

    fn create<P: AsRef<Path>>(&self, path: P) -> io::Result<OpenFile> {
        let path = path.as_ref().to_owned();
        let mut content = self.disk.lock();
        if !content.takes(self.start)? {
            return Err(io::Error::other("the machine is down"));
        }
        let file = File::options().create(true).truncate(true).read(true).write(true).open(&path)?;
        content.files.insert(path.clone(), Unflushed { new: true, writes: Vec::new() });
        drop(content);
        Ok(OpenFile { disk: self.disk.clone(), start: self.start, path, file })
    }

    fn open<P: AsRef<Path>>(&self, path: P, _: Permission) -> io::Result<OpenFile> {
        let path = path.as_ref().to_owned();
        let file = File::options().read(true).write(true).open(&path)?;
        Ok(OpenFile { disk: self.disk.clone(), start: self.start, path, file })
    }

    fn delete<P: AsRef<Path>>(&self, path: P) -> io::Result<()> {
        let mut content = self.disk.lock();
        if !content.takes(self.start)? {
            return Ok(());
        }
        content.files.remove(path.as_ref());
        std::fs::remove_file(path)
    }

    fn rename<P: AsRef<Path>>(&self, from: P, to: P) -> io::Result<()> {
        let mut content = self.disk.lock();
        if !content.takes(self.start)? {
            return Ok(());
        }
        if let Some(unflushed) = content.files.remove(from.as_ref()) {
            content.files.insert(to.as_ref().to_owned(), unflushed);
        }
        std::fs::rename(from, to)
    }

    fn new_reader(&self, file: Arc<OpenFile>) -> io::Result<Cursor> {
        Ok(Cursor { file, offset: 0 })
    }

    fn new_writer(&self, file: Arc<OpenFile>) -> io::Result<Cursor> {
        Ok(Cursor { file, offset: 0 })
    }
}

impl OpenFile {
    /// Changes the file and remembers how to undo it. `after` is `None` for a change of the length alone.
    fn change(&self, offset: u64, after: &[u8], length: Option<u64>) -> io::Result<()> {
        let mut content = self.disk.lock();
        if length.is_none() && content.failed == Some(Store::Log) && self.start == content.start {
            content.writes_after_failure += 1;
        }
        if !content.takes(self.start)? {
            return Ok(());
        }
        let now = self.file.metadata()?.len();
        let end = length.map_or(offset + after.len() as u64, |_| now);
        let mut before = vec![0; usize::try_from(end.min(now).saturating_sub(offset)).unwrap_or(0)];
        self.file.read_exact_at(&mut before, offset)?;
        let undo = Undo { offset, before, length: now, after: after.to_vec() };
        content.files.entry(self.path.clone()).or_default().writes.push(undo);
        match length {
            Some(length) => self.file.set_len(length),
            None => self.file.write_all_at(after, offset),
        }
    }
}

impl Handle for OpenFile {
    fn truncate(&self, offset: usize) -> io::Result<()> {
        self.change(offset as u64, &[], Some(offset as u64))
    }

    fn file_size(&self) -> io::Result<usize> {
        Ok(usize::try_from(self.file.metadata()?.len()).unwrap_or(usize::MAX))
    }

    fn sync(&self) -> io::Result<()> {
        let mut content = self.disk.lock();
        if content.flush(self.start, Store::Log)? {
            content.files.remove(&self.path);
        }
        Ok(())
    }
}

/// A place in an open file.
struct Cursor {
    file: Arc<OpenFile>,
    offset: u64,
}

impl Read for Cursor {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.file.read_at(buffer, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}

impl Write for Cursor {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.change(self.offset, bytes, None)?;
        self.offset += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Cursor {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let moved = |from: u64, by: i64| {
            from.checked_add_signed(by).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
        };
        self.offset = match to {
            SeekFrom::Start(offset) => offset,
            SeekFrom::Current(by) => moved(self.offset, by)?,
            SeekFrom::End(by) => moved(self.file.file.metadata()?.len(), by)?,
        };
        Ok(self.offset)
    }
}

impl WriteExt for Cursor {
    fn truncate(&mut self, offset: usize) -> io::Result<()> {
        self.file.truncate(offset)?;
        self.offset = offset as u64;
        Ok(())
    }

    fn allocate(&mut self, _: usize, _: usize) -> io::Result<()> {
        Ok(()) // Room is made as it is needed.
    }
}

/// The rows of one start.
struct DiskRows {
    disk: Disk,
    start: u64,
    rows: MemoryRows,
}

impl DiskRows {
    fn commit(&self, changes: Vec<Change>) -> Result<(), RowError> {
        let mut content = self.disk.lock();
        if content.failed == Some(Store::Rows) && self.start == content.start {
            content.writes_after_failure += 1;
        }
        if content.takes(self.start).map_err(fjall::Error::Io)? {
            content.journal.push(changes.clone());
        }
        drop(content);
        self.rows.change(changes);
        Ok(())
    }
}

impl RowStore for DiskRows {
    fn get(&self, group: GroupId, key: &[u8]) -> Result<Option<Vec<u8>>, RowError> {
        self.rows.get(group, key)
    }
    fn range(&self, group: GroupId, from: &[u8], to: Option<&[u8]>) -> RowIter {
        self.rows.range(group, from, to)
    }
    fn write(&self, batch: Vec<(GroupId, Vec<RowOp>)>) -> Result<(), RowError> {
        self.commit(self.rows.changes(batch)?)
    }
    fn meta(&self, group: GroupId) -> Result<Option<GroupMeta>, RowError> {
        self.rows.meta(group)
    }
    fn put_meta(&self, metas: &[(GroupId, GroupMeta)]) -> Result<(), RowError> {
        self.commit(metas.iter().map(|(group, meta)| meta.put(*group)).collect())
    }
    fn sync(&self) -> Result<(), RowError> {
        let mut content = self.disk.lock();
        if content.flush(self.start, Store::Rows).map_err(fjall::Error::Io)? {
            let journal = std::mem::take(&mut content.journal);
            journal.into_iter().flatten().for_each(|change| apply(&mut content.rows, change));
        }
        Ok(())
    }
    fn wipe(&self, group: GroupId) -> Result<(), RowError> {
        // The checkpoint first, as the other stores do.
        let (checkpoint, rows) = self.rows.removal(group);
        self.commit(checkpoint)?;
        self.commit(rows)
    }
    fn close(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::GroupConfig;
    use perennial_core::id::{LogIndex, MemberId, Term};
    use perennial_core::replication::{Entry, HardState, Persist};

    fn config() -> ReplicaConfig {
        let mut config = ReplicaConfig::new(MemberId(1), 1, None);
        config.log_file_bytes = 4096;
        config.log_purge_bytes = 8192;
        config
    }

    fn persist(index: u64) -> Persist {
        let entry = Entry { index, term: 1, data: vec![7; 100].into(), ..Entry::default() };
        let hard_state = HardState { term: 1, vote: 1, commit: 0 };
        Persist { group: GroupId::SYSTEM, reset: None, hard_state, entries: vec![entry] }
    }

    fn entries(disk: &Disk) -> u64 {
        let stores = disk.open(&config()).unwrap();
        let found = stores.log.unwrap().recover().unwrap();
        found.first().map_or(0, |found| found.seed.entries.len() as u64)
    }

    #[test]
    fn a_power_cut_takes_what_was_not_flushed_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let members = vec![MemberId(1)];
        let group = GroupConfig { group: GroupId::SYSTEM, voters: members.clone(), preferred: members };
        let mut lost = 0;
        for seed in 0..40 {
            let disk = Disk::new(&dir.path().join(seed.to_string()), seed).unwrap();
            let Stores { log, rows } = disk.open(&config()).unwrap();
            let mut log = log.unwrap();
            log.note(&group).unwrap();
            for index in 1..=60 {
                log.write(&[persist(index)], &|_| None).unwrap();
                rows.write(vec![(GroupId::SYSTEM, vec![RowOp::Put { key: b"k".to_vec(), value: vec![1] }])])
                    .unwrap();
            }
            let meta = GroupMeta { applied: LogIndex(60), term: Term(1), machine: vec![] };
            rows.put_meta(&[(GroupId::SYSTEM, meta.clone())]).unwrap();
            rows.sync().unwrap();
            disk.set_fault(DiskFault::Lies);
            for index in 61..=70 {
                log.write(&[persist(index)], &|_| None).unwrap();
            }
            rows.wipe(GroupId::SYSTEM).unwrap();
            disk.cut_power().unwrap();
            let _ = log.write(&[persist(71)], &|_| None);
            drop((log, rows));
            disk.set_fault(DiskFault::None);
            let found = entries(&disk);
            assert!((60..=70).contains(&found), "seed {seed}: {found}");
            lost += 70 - found;
            let rows = disk.open(&config()).unwrap().rows;
            let checkpoint = rows.meta(GroupId::SYSTEM).unwrap();
            assert!(checkpoint.is_none_or(|found| found == meta));
        }
        assert!(lost > 0, "cuts take something");
    }

    #[test]
    fn a_killed_node_loses_nothing_and_writes_nothing_more() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::new(dir.path(), 1).unwrap();
        let members = vec![MemberId(1)];
        let group = GroupConfig { group: GroupId::SYSTEM, voters: members.clone(), preferred: members };
        let mut log = disk.open(&config()).unwrap().log.unwrap();
        log.note(&group).unwrap();
        disk.set_fault(DiskFault::Lies);
        log.write(&[persist(1)], &|_| None).unwrap();
        disk.kill();
        log.write(&[persist(2)], &|_| None).unwrap();
        drop(log);
        assert_eq!(entries(&disk), 1);
    }

    #[test]
    fn writes_after_a_failed_flush_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::new(dir.path(), 1).unwrap();
        let rows = disk.open(&config()).unwrap().rows;
        disk.set_fault(DiskFault::Flush);
        assert!(rows.sync().is_err());
        assert_eq!(disk.writes_after_failure(), 0);
        let _ = rows.wipe(GroupId::SYSTEM);
        assert!(disk.writes_after_failure() > 0);
    }
}
