//! The applied rows of all groups.
//!
//! Owns the rows and the checkpoints beside them. Never flushes by itself: a checkpoint is durable
//! after [`RowStore::sync`], together with every row written before it, because both go through
//! one journal in order. In go batches of row operations; out come rows. Two stores: fjall on
//! disk, and a sorted map for tests.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use fjall::config::PartitioningPolicy;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable};
use perennial_core::id::{GroupId, LogIndex, Term};
use perennial_core::replication::RowOp;

use super::row_files::Notes;

/// Rows deleted in one write when a group is wiped.
const WIPE_ROWS: usize = 4096;
/// First byte of a checkpoint's key; sorts before all rows.
const TAG_META: u8 = 0;
/// First byte of a row's key.
const TAG_ROW: u8 = 1;
/// First byte of a checkpoint's value.
const META_VERSION: u8 = 1;
/// Name of a file that says that damage was read.
const DAMAGED: &str = "damaged";
/// Where fjall names the format of a folder: with this, and a number.
const FORMAT: &str = "version";
const FORMAT_MAGIC: &[u8] = b"FJL";
/// The only keyspace.
const KEYSPACE: &str = "rows";

/// A change of a row or checkpoint by its whole key; `None` removes it.
pub(super) type Change = (Vec<u8>, Option<Vec<u8>>);

/// Key (relative to its group) and value.
pub type Row = (Vec<u8>, Vec<u8>);
/// Rows of a group at one point in time, in order.
pub type RowIter = Box<dyn Iterator<Item = Result<Row, RowError>> + Send>;

/// A failure of the row store. What was written before is as durable as it was; the store must
/// not be written any more.
#[derive(Debug, thiserror::Error)]
pub enum RowError {
    /// The disk or its content failed.
    #[error("the row store failed; check the disk, then restart the node")]
    Store(#[from] fjall::Error),
    /// A file was damaged on the disk. Rows can be had again: from the log and from other replicas.
    #[error(
        "the rows in {} are damaged; check the disk, then restart the node: it takes them from the other replicas",
        path.display()
    )]
    Damaged {
        /// The file, if it is known, or the folder.
        path: PathBuf,
        /// What the store says.
        #[source]
        source: Option<fjall::Error>,
    },
    /// The files have a format this build does not know.
    #[error(
        "the rows in {} have a format this build cannot read; run the build that wrote them, or, if there is no \
         such build, remove the folder (and nothing else): the other replicas have them",
        path.display()
    )]
    Format {
        /// The folder.
        path: PathBuf,
        /// What the store says.
        #[source]
        source: fjall::Error,
    },
    /// A folder could not be read or written.
    #[error("the rows in {} cannot be used; check the disk and the owner of the data folder", path.display())]
    Folder {
        /// Which folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A checkpoint has bytes this build cannot read.
    #[error(
        "the checkpoint of group {0} cannot be read; run a newer build, or remove the folder rows (and nothing \
         else) of the data folder: the other replicas have them"
    )]
    Meta(GroupId),
    /// A staged snapshot could not be read back.
    #[error("a received snapshot could not be read back; check the disk")]
    Staged(#[source] std::io::Error),
    /// The store has been closed.
    #[error("the row store is closed: the replica has stopped")]
    Closed,
}

/// The checkpoint of a group: up to where its rows are applied, and its machine's state there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupMeta {
    /// Applied index.
    pub applied: LogIndex,
    /// Its term.
    pub term: Term,
    /// What the machine wrote.
    pub machine: Vec<u8>,
}

impl GroupMeta {
    /// The change that stores it.
    pub(super) fn put(&self, group: GroupId) -> Change {
        (full_key(TAG_META, group, &[]), Some(self.encode()))
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(17 + self.machine.len());
        bytes.push(META_VERSION);
        bytes.extend(self.applied.0.to_be_bytes());
        bytes.extend(self.term.0.to_be_bytes());
        bytes.extend(&self.machine);
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (&META_VERSION, rest) = bytes.split_first()? else { return None };
        let (applied, rest) = rest.split_first_chunk()?;
        let (term, machine) = rest.split_first_chunk()?;
        Some(Self {
            applied: LogIndex(u64::from_be_bytes(*applied)),
            term: Term(u64::from_be_bytes(*term)),
            machine: machine.to_vec(),
        })
    }
}

/// Rows of all groups. Read by anyone, written by the replica only.
pub trait RowStore: Send + Sync {
    /// The value of a row.
    ///
    /// # Errors
    /// [`RowError`] when the store failed.
    fn get(&self, group: GroupId, key: &[u8]) -> Result<Option<Vec<u8>>, RowError>;
    /// Up to `limit` rows from `from` to before `to` (or the end), in order, at one point in time.
    ///
    /// # Errors
    /// [`RowError`] when the store failed.
    fn scan(
        &self,
        group: GroupId,
        from: &[u8],
        to: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Row>, RowError> {
        self.range(group, from, to).take(limit).collect()
    }
    /// The rows from `from` to before `to` (or the end) as they are now, in order. They are read from the
    /// disk only as they are asked for.
    fn range(&self, group: GroupId, from: &[u8], to: Option<&[u8]>) -> RowIter;
    /// Carries operations out in order, all or none, without a flush.
    ///
    /// # Errors
    /// [`RowError`] when the store failed.
    fn write(&self, batch: Vec<(GroupId, Vec<RowOp>)>) -> Result<(), RowError>;
    /// The last checkpoint of a group.
    ///
    /// # Errors
    /// [`RowError`] when the store failed or the checkpoint is of another version.
    fn meta(&self, group: GroupId) -> Result<Option<GroupMeta>, RowError>;
    /// Writes checkpoints behind the rows, without a flush.
    ///
    /// # Errors
    /// [`RowError`] when the store failed.
    fn put_meta(&self, metas: &[(GroupId, GroupMeta)]) -> Result<(), RowError>;
    /// Makes everything written so far durable.
    ///
    /// # Errors
    /// [`RowError`] when the flush failed; it must not be tried again.
    fn sync(&self) -> Result<(), RowError>;
    /// Removes a group's rows and its checkpoint, the checkpoint first.
    ///
    /// # Errors
    /// [`RowError`] when the store failed.
    fn wipe(&self, group: GroupId) -> Result<(), RowError>;
    /// Lets go of the folder, whoever still holds the store; what is asked later is [`RowError::Closed`].
    fn close(&self);
}

fn full_key(tag: u8, group: GroupId, key: &[u8]) -> Vec<u8> {
    let mut full = Vec::with_capacity(9 + key.len());
    full.push(tag);
    full.extend(group.raw().to_be_bytes());
    full.extend(key);
    full
}

/// First key behind all rows of a group.
fn rows_end(group: GroupId) -> Vec<u8> {
    let mut end = vec![TAG_ROW];
    end.extend((group.raw() + 1).to_be_bytes());
    end
}

fn full_range(group: GroupId, from: &[u8], to: Option<&[u8]>) -> (Vec<u8>, Vec<u8>) {
    let to = to.map_or_else(|| rows_end(group), |to| full_key(TAG_ROW, group, to));
    (full_key(TAG_ROW, group, from), to)
}

fn relative(full: &[u8]) -> Vec<u8> {
    full[9..].to_vec()
}

/// The outcome of a batch: the last operation on each key. `keys_in` lists stored keys of a range.
fn outcome(
    batch: Vec<(GroupId, Vec<RowOp>)>,
    mut keys_in: impl FnMut(&[u8], &[u8]) -> Result<Vec<Vec<u8>>, RowError>,
) -> Result<BTreeMap<Vec<u8>, Option<Vec<u8>>>, RowError> {
    let mut last = BTreeMap::new();
    for (group, ops) in batch {
        for op in ops {
            match op {
                RowOp::Put { key, value } => {
                    last.insert(full_key(TAG_ROW, group, &key), Some(value));
                }
                RowOp::Delete { key } => {
                    last.insert(full_key(TAG_ROW, group, &key), None);
                }
                RowOp::DeleteRange { from, to } if from < to => {
                    let (from, to) = (full_key(TAG_ROW, group, &from), full_key(TAG_ROW, group, &to));
                    for key in keys_in(&from, &to)? {
                        last.insert(key, None);
                    }
                    last.range_mut(from..to).for_each(|(_, value)| *value = None);
                }
                RowOp::DeleteRange { .. } => {}
            }
        }
    }
    Ok(last)
}

/// Rows on disk.
pub struct FjallRows {
    /// `None` once closed.
    opened: RwLock<Option<Opened>>,
}

struct Opened {
    db: Database,
    rows: Keyspace,
    health: Arc<Health>,
    /// How far journals are flushed.
    notes: Mutex<Notes>,
}

/// Whether all that was read was sound.
struct Health {
    dir: PathBuf,
    damaged: AtomicBool,
}

impl Health {
    /// What a failure to read says. Damage is told to whoever opens the folder next: it must not be forgotten
    /// because nobody read there again.
    fn judge(&self, error: fjall::Error) -> RowError {
        if self.is_another_format(&error) {
            return RowError::Format { path: self.dir.clone(), source: error };
        }
        if !is_damage(&error) {
            return RowError::Store(error);
        }
        if !self.damaged.swap(true, Ordering::Relaxed) {
            let marked = File::create(self.dir.join(DAMAGED)).and_then(|mark| mark.sync_all());
            if let Err(error) = marked {
                tracing::warn!(%error, "that the rows are damaged could not be noted");
            }
        }
        RowError::Damaged { path: self.dir.clone(), source: Some(error) }
    }

    /// A format that has no number yet was being written when the process died; nothing else was there then.
    fn is_another_format(&self, error: &fjall::Error) -> bool {
        match error {
            fjall::Error::InvalidVersion(_) => std::fs::read(self.dir.join(FORMAT))
                .is_ok_and(|bytes| bytes.strip_prefix(FORMAT_MAGIC).is_some_and(|number| !number.is_empty())),
            fjall::Error::Storage(fjall::LsmError::InvalidVersion(_)) => true,
            _ => false,
        }
    }

    /// Damaged rows are not written any more, which ends the replica.
    fn check(&self) -> Result<(), RowError> {
        if self.damaged.load(Ordering::Relaxed) {
            return Err(RowError::Damaged { path: self.dir.clone(), source: None });
        }
        Ok(())
    }
}

/// Whether a failure is one of what is stored, not of the system.
fn is_damage(error: &fjall::Error) -> bool {
    match error {
        fjall::Error::Storage(fjall::LsmError::Io(error)) | fjall::Error::Io(error) => {
            matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::InvalidData)
        }
        fjall::Error::Poisoned | fjall::Error::KeyspaceDeleted | fjall::Error::Locked => false,
        _ => true,
    }
}

impl FjallRows {
    /// Opens or creates the store in a folder.
    ///
    /// # Errors
    /// [`RowError`] when the folder cannot be read or written.
    pub fn open(dir: &Path, cache_bytes: u64, memtable_bytes: u64) -> Result<Self, RowError> {
        let folder = |source| RowError::Folder { path: dir.to_owned(), source };
        std::fs::create_dir_all(dir).map_err(folder)?;
        let notes = Notes::open(dir).map_err(folder)?;
        let marked = dir.join(DAMAGED);
        let damaged = if marked.exists() { Some(marked) } else { notes.prepare(dir).map_err(folder)? };
        if let Some(path) = damaged {
            return Err(RowError::Damaged { path, source: None });
        }
        let health = Arc::new(Health { dir: dir.to_owned(), damaged: AtomicBool::new(false) });
        let opened = || -> fjall::Result<(Database, Keyspace)> {
            let db = Database::builder(dir)
                .cache_size(cache_bytes)
                .worker_threads(1)
                .manual_journal_persist(true)
                .open()?;
            // In parts: the filter of a whole table has no place in the cache, and each read of a row would take
            // all of it from the disk.
            let options = || {
                KeyspaceCreateOptions::default()
                    .max_memtable_size(memtable_bytes)
                    .filter_block_partitioning_policy(PartitioningPolicy::all(true))
                    .index_block_partitioning_policy(PartitioningPolicy::all(true))
            };
            let rows = db.keyspace(KEYSPACE, options)?;
            Ok((db, rows))
        };
        let (db, rows) = opened().map_err(|error| match error {
            // A file that is not where fjall has put it, or another one in its place.
            fjall::Error::Storage(fjall::LsmError::Io(ref io)) | fjall::Error::Io(ref io)
                if matches!(io.kind(), ErrorKind::NotFound | ErrorKind::AlreadyExists) =>
            {
                RowError::Damaged { path: dir.to_owned(), source: Some(error) }
            }
            error => health.judge(error),
        })?;
        let opened = Opened { db, rows, health, notes: Mutex::new(notes) };
        Ok(Self { opened: RwLock::new(Some(opened)) })
    }

    /// Opens the store; damaged rows are set aside beside the folder, and the store begins empty.
    ///
    /// # Errors
    /// As [`FjallRows::open`].
    pub fn open_or_set_aside(dir: &Path, cache_bytes: u64, memtable_bytes: u64) -> Result<Self, RowError> {
        let damage = match Self::open(dir, cache_bytes, memtable_bytes) {
            Err(damage @ RowError::Damaged { .. }) => damage,
            opened => return opened,
        };
        let aside = dir.with_extension("damaged");
        tracing::error!(
            error = &damage as &dyn std::error::Error,
            aside = %aside.display(),
            "damaged rows are set aside; the log and the other replicas have what they held"
        );
        let moved = || {
            if aside.exists() {
                std::fs::remove_dir_all(&aside)?;
            }
            std::fs::rename(dir, &aside)
        };
        moved().map_err(|source| RowError::Folder { path: dir.to_owned(), source })?;
        Self::open(dir, cache_bytes, memtable_bytes)
    }

    /// Writes what is in memory as a table, as happens when there is much of it.
    #[cfg(test)]
    pub(crate) fn make_table(&self) {
        self.with(|at| Ok(at.rows.rotate_memtable_and_wait()?)).unwrap();
    }

    fn with<T>(&self, f: impl FnOnce(&Opened) -> Result<T, RowError>) -> Result<T, RowError> {
        let opened = self.opened.read().unwrap_or_else(PoisonError::into_inner);
        f(opened.as_ref().ok_or(RowError::Closed)?)
    }
}

impl Opened {
    fn get(&self, key: Vec<u8>) -> Result<Option<Vec<u8>>, RowError> {
        let value = self.rows.get(key).map_err(|error| self.health.judge(error))?;
        Ok(value.map(|value| value.to_vec()))
    }

    fn range(&self, from: &[u8], to: &[u8]) -> impl Iterator<Item = Result<Row, RowError>> + use<> {
        let health = self.health.clone();
        self.db.snapshot().range(&self.rows, from..to).map(move |guard| {
            let (key, value) = guard.into_inner().map_err(|error| health.judge(error))?;
            Ok((relative(&key), value.to_vec()))
        })
    }

    fn keys_in(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Vec<u8>>, RowError> {
        let keys = self.db.snapshot().range(&self.rows, from..to).take(limit);
        keys.map(|guard| Ok(guard.key().map_err(|error| self.health.judge(error))?.to_vec())).collect()
    }

    /// Flushes the journal through a file handle of our own, so that the flush under fjall's
    /// journal lock, which stops writers, finds little left to do. A failure here is one of the flush:
    /// the disk may not report it a second time.
    fn flush_ahead(&self) -> std::io::Result<()> {
        let mut journals = Vec::new();
        for entry in std::fs::read_dir(&self.health.dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "jnl") {
                journals.push(path);
            }
        }
        for journal in journals {
            match File::open(journal) {
                Ok(journal) => journal.sync_data()?,
                // fjall removes journals it needs no more.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl RowStore for FjallRows {
    fn get(&self, group: GroupId, key: &[u8]) -> Result<Option<Vec<u8>>, RowError> {
        self.with(|at| at.get(full_key(TAG_ROW, group, key)))
    }

    fn range(&self, group: GroupId, from: &[u8], to: Option<&[u8]>) -> RowIter {
        let (from, to) = full_range(group, from, to);
        match self.with(|at| Ok((from < to).then(|| at.range(&from, &to)))) {
            Ok(rows) => Box::new(rows.into_iter().flatten()),
            Err(error) => Box::new(std::iter::once(Err(error))),
        }
    }

    fn write(&self, batch: Vec<(GroupId, Vec<RowOp>)>) -> Result<(), RowError> {
        self.with(|at| {
            at.health.check()?;
            let outcome = outcome(batch, |from, to| at.keys_in(from, to, usize::MAX))?;
            let mut write = at.db.batch();
            for (key, value) in outcome {
                match value {
                    Some(value) => write.insert(&at.rows, key, value),
                    None => write.remove(&at.rows, key),
                }
            }
            Ok(write.commit()?)
        })
    }

    fn meta(&self, group: GroupId) -> Result<Option<GroupMeta>, RowError> {
        let stored = self.with(|at| at.get(full_key(TAG_META, group, &[])))?;
        let Some(bytes) = stored else { return Ok(None) };
        GroupMeta::decode(&bytes).map(Some).ok_or(RowError::Meta(group))
    }

    fn put_meta(&self, metas: &[(GroupId, GroupMeta)]) -> Result<(), RowError> {
        self.with(|at| {
            at.health.check()?;
            let mut write = at.db.batch();
            for (group, meta) in metas {
                write.insert(&at.rows, full_key(TAG_META, *group, &[]), meta.encode());
            }
            Ok(write.commit()?)
        })
    }

    fn sync(&self) -> Result<(), RowError> {
        self.with(|at| {
            at.health.check()?;
            at.db.persist(PersistMode::Buffer)?;
            let mut notes = at.notes.lock().unwrap_or_else(PoisonError::into_inner);
            let written = notes.read(&at.health.dir).map_err(fjall::Error::Io)?;
            at.flush_ahead().map_err(fjall::Error::Io)?;
            at.db.persist(PersistMode::SyncAll)?;
            Ok(notes.note(written).map_err(fjall::Error::Io)?)
        })
    }

    fn wipe(&self, group: GroupId) -> Result<(), RowError> {
        self.with(|at| {
            at.rows.remove(full_key(TAG_META, group, &[]))?;
            loop {
                let keys = at.keys_in(&full_key(TAG_ROW, group, &[]), &rows_end(group), WIPE_ROWS)?;
                let done = keys.len() < WIPE_ROWS;
                let mut write = at.db.batch();
                keys.into_iter().for_each(|key| write.remove(&at.rows, key));
                write.commit()?;
                if done {
                    return Ok(());
                }
            }
        })
    }

    fn close(&self) {
        *self.opened.write().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Rows in memory, for tests and for applications that run without a disk.
#[derive(Default)]
pub struct MemoryRows {
    rows: Mutex<BTreeMap<Vec<u8>, Vec<u8>>>,
}

impl MemoryRows {
    pub(super) fn of(rows: BTreeMap<Vec<u8>, Vec<u8>>) -> Self {
        Self { rows: Mutex::new(rows) }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Vec<u8>, Vec<u8>>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a batch changes.
    pub(super) fn changes(&self, batch: Vec<(GroupId, Vec<RowOp>)>) -> Result<Vec<Change>, RowError> {
        let rows = self.lock();
        let outcome = outcome(batch, |from, to| {
            Ok(rows.range(from.to_vec()..to.to_vec()).map(|(key, _)| key.clone()).collect())
        });
        Ok(outcome?.into_iter().collect())
    }

    /// Carries changes out.
    pub(super) fn change(&self, changes: Vec<Change>) {
        let mut rows = self.lock();
        for (key, value) in changes {
            match value {
                Some(value) => rows.insert(key, value),
                None => rows.remove(&key),
            };
        }
    }

    /// What removes a group's checkpoint, and what its rows.
    pub(super) fn removal(&self, group: GroupId) -> (Vec<Change>, Vec<Change>) {
        let rows = self.lock();
        let keys = rows.range(full_key(TAG_ROW, group, &[])..rows_end(group)).map(|(key, _)| key.clone());
        (vec![(full_key(TAG_META, group, &[]), None)], keys.map(|key| (key, None)).collect())
    }
}

impl RowStore for MemoryRows {
    fn get(&self, group: GroupId, key: &[u8]) -> Result<Option<Vec<u8>>, RowError> {
        Ok(self.lock().get(&full_key(TAG_ROW, group, key)).cloned())
    }

    fn scan(
        &self,
        group: GroupId,
        from: &[u8],
        to: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Row>, RowError> {
        let (from, to) = full_range(group, from, to);
        if from >= to {
            return Ok(Vec::new());
        }
        Ok(self.lock().range(from..to).take(limit).map(|(k, v)| (relative(k), v.clone())).collect())
    }

    fn range(&self, group: GroupId, from: &[u8], to: Option<&[u8]>) -> RowIter {
        match self.scan(group, from, to, usize::MAX) {
            Ok(rows) => Box::new(rows.into_iter().map(Ok)),
            Err(error) => Box::new(std::iter::once(Err(error))),
        }
    }

    fn write(&self, batch: Vec<(GroupId, Vec<RowOp>)>) -> Result<(), RowError> {
        let changes = self.changes(batch)?;
        self.change(changes);
        Ok(())
    }

    fn meta(&self, group: GroupId) -> Result<Option<GroupMeta>, RowError> {
        let rows = self.lock();
        let Some(bytes) = rows.get(&full_key(TAG_META, group, &[])) else { return Ok(None) };
        GroupMeta::decode(bytes).map(Some).ok_or(RowError::Meta(group))
    }

    fn put_meta(&self, metas: &[(GroupId, GroupMeta)]) -> Result<(), RowError> {
        self.change(metas.iter().map(|(group, meta)| meta.put(*group)).collect());
        Ok(())
    }

    fn sync(&self) -> Result<(), RowError> {
        Ok(())
    }

    fn wipe(&self, group: GroupId) -> Result<(), RowError> {
        let (checkpoint, rows) = self.removal(group);
        self.change(checkpoint);
        self.change(rows);
        Ok(())
    }

    fn close(&self) {}
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use perennial_core::id::PartitionId;

    /// Rows in memory; a function is told which operation comes next.
    pub(crate) struct WatchedRows<F>(pub(crate) MemoryRows, pub(crate) F);

    impl<F: Fn(&'static str) + Clone + Send + Sync + 'static> RowStore for WatchedRows<F> {
        fn get(&self, group: GroupId, key: &[u8]) -> Result<Option<Vec<u8>>, RowError> {
            self.1("get");
            self.0.get(group, key)
        }
        fn range(&self, group: GroupId, from: &[u8], to: Option<&[u8]>) -> RowIter {
            let watch = self.1.clone();
            Box::new(self.0.range(group, from, to).inspect(move |_| watch("row")))
        }
        fn write(&self, batch: Vec<(GroupId, Vec<RowOp>)>) -> Result<(), RowError> {
            self.1("write");
            self.0.write(batch)
        }
        fn meta(&self, group: GroupId) -> Result<Option<GroupMeta>, RowError> {
            self.0.meta(group)
        }
        fn put_meta(&self, metas: &[(GroupId, GroupMeta)]) -> Result<(), RowError> {
            self.0.put_meta(metas)
        }
        fn sync(&self) -> Result<(), RowError> {
            self.1("sync");
            self.0.sync()
        }
        fn wipe(&self, group: GroupId) -> Result<(), RowError> {
            self.1("wipe");
            self.0.wipe(group)
        }
        fn close(&self) {}
    }

    fn put(key: &str, value: &str) -> RowOp {
        RowOp::Put { key: key.into(), value: value.into() }
    }

    /// What every row store does.
    fn contract(store: &dyn RowStore) {
        let (g, other) = (GroupId::of(PartitionId(3)), GroupId::of(PartitionId(4)));
        let all = |g| store.scan(g, b"", None, 100).unwrap();
        let row = |k: &str, v: &str| (Vec::from(k), Vec::from(v));

        store.write(vec![(g, vec![put("a", "1"), put("b", "2")]), (other, vec![put("a", "9")])]).unwrap();
        assert_eq!(store.get(g, b"a").unwrap(), Some(b"1".to_vec()));
        assert_eq!(store.get(g, b"c").unwrap(), None);
        assert_eq!(all(other), [row("a", "9")]);

        let before = store.range(g, b"", None);
        let range = |from: &str, to: &str| RowOp::DeleteRange { from: from.into(), to: to.into() };
        let ops = vec![put("b1", "x"), range("b", "c"), put("b2", "y"), put("c", "3"), range("z", "a")];
        assert_eq!(store.range(g, b"b", Some(b"a")).count(), 0);
        store.write(vec![(g, ops)]).unwrap();
        assert_eq!(all(g), [row("a", "1"), row("b2", "y"), row("c", "3")], "operations act in order");
        let delete = vec![put("c", "4"), RowOp::Delete { key: b"c".to_vec() }];
        store.write(vec![(g, delete)]).unwrap();
        assert_eq!(store.scan(g, b"a", Some(b"c"), 1).unwrap(), [row("a", "1")], "limits hold");
        assert_eq!(store.scan(g, b"b", Some(b"c"), 9).unwrap(), [row("b2", "y")]);
        let before: Vec<Row> = before.map(Result::unwrap).collect();
        assert_eq!(before, [row("a", "1"), row("b", "2")], "a range does not move");

        let meta = GroupMeta { applied: LogIndex(7), term: Term(2), machine: b"m".to_vec() };
        assert_eq!(store.meta(g).unwrap(), None);
        store.put_meta(&[(g, meta.clone())]).unwrap();
        store.sync().unwrap();
        assert_eq!(store.meta(g).unwrap(), Some(meta));
        store.wipe(g).unwrap();
        assert_eq!((all(g), store.meta(g).unwrap()), (vec![], None));
        assert_eq!(all(other).len(), 1);
    }

    #[test]
    fn memory_rows_keep_the_contract() {
        contract(&MemoryRows::default());
    }

    #[test]
    fn fjall_rows_keep_the_contract() {
        let dir = tempfile::tempdir().unwrap();
        contract(&FjallRows::open(dir.path(), 1 << 20, 1 << 20).unwrap());
    }

    /// Bytes that this thread has read from files so far; `None` where the kernel does not count them.
    #[cfg(target_os = "linux")]
    fn bytes_read() -> Option<u64> {
        let io = std::fs::read_to_string("/proc/thread-self/io").ok()?;
        io.lines().find_map(|line| line.strip_prefix("rchar: "))?.parse().ok()
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_row_of_a_large_table_is_read_without_reading_all_of_its_filter() {
        const ROWS: u32 = 200_000;
        const READS: u32 = 200;
        let dir = tempfile::tempdir().unwrap();
        let store = FjallRows::open(dir.path(), 1 << 20, 64 << 20).unwrap();
        let g = GroupId::SYSTEM;
        let key = |n: u32| format!("row {n}");
        store.write(vec![(g, (0..ROWS).map(|n| put(&key(n), "value")).collect())]).unwrap();
        {
            let opened = store.opened.read().unwrap();
            let rows = &opened.as_ref().unwrap().rows;
            rows.rotate_memtable_and_wait().unwrap();
            rows.major_compact().unwrap();
        }
        let Some(before) = bytes_read() else { return };
        for n in 0..READS {
            let n = n * (ROWS / READS);
            assert_eq!(store.get(g, key(n).as_bytes()).unwrap(), Some(b"value".to_vec()));
        }
        let each = (bytes_read().unwrap() - before) / u64::from(READS);
        // One block each of index, filter and rows; the filter as a whole has 10 bits of every row.
        assert!(each < 32 * 1024, "{each} bytes are read for a row");
    }

    #[cfg(unix)]
    #[test]
    fn a_journal_that_cannot_be_flushed_is_an_error_and_one_that_is_gone_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let store = FjallRows::open(dir.path(), 1 << 20, 1 << 20).unwrap();
        let journal = |name: &str, at: &str| {
            std::os::unix::fs::symlink(at, dir.path().join(name)).unwrap();
        };
        journal("gone.jnl", "nowhere");
        store.sync().unwrap();
        // A device that cannot be flushed.
        journal("broken.jnl", "/dev/null");
        let failed = store.sync();
        assert!(matches!(failed, Err(RowError::Store(fjall::Error::Io(_)))), "{failed:?}");
    }

    #[test]
    fn rows_and_checkpoints_are_there_when_the_folder_of_a_closed_store_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let g = GroupId::SYSTEM;
        let meta = GroupMeta { applied: LogIndex(1), term: Term(1), machine: vec![] };
        let _closed = {
            let store = FjallRows::open(dir.path(), 1 << 20, 1 << 20).unwrap();
            store.write(vec![(g, vec![put("k", "v")])]).unwrap();
            store.put_meta(&[(g, meta.clone())]).unwrap();
            store.sync().unwrap();
            let taken = FjallRows::open(dir.path(), 1 << 20, 1 << 20).err().expect("the folder is in use");
            assert!(matches!(taken, RowError::Store(fjall::Error::Locked)), "{taken:?}");
            store.close();
            assert!(matches!(store.get(g, b"k"), Err(RowError::Closed)));
            assert!(matches!(store.range(g, b"", None).next(), Some(Err(RowError::Closed))));
            store
        };
        let store = FjallRows::open(dir.path(), 1 << 20, 1 << 20).unwrap();
        assert_eq!(store.get(g, b"k").unwrap(), Some(b"v".to_vec()));
        assert_eq!(store.meta(g).unwrap(), Some(meta));
    }
}
