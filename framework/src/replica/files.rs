//! The files of the log, and how far each of them was flushed.
//!
//! Owns the way from raft-engine to the disk. After each flush it notes in the file `flushed` how long the
//! flushed file is. The note is not flushed itself: it outlives the process at once and a power cut some
//! seconds later, and never says more than is durable. So a file that is gone or ends before its note has
//! lost what was durable, where its end alone would look like a torn write. A failed flush is final: nothing is
//! flushed or deleted after it, and [`LogFiles::failure`] says so. In go writes and flushes; out come
//! [`Ends`] at boot. The idea is the control file of a database.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use perennial_core::hash::wide_hash;
use raft_engine::env::{DefaultFileSystem, FileSystem, Handle, Permission, WriteExt};
use serde::{Deserialize, Serialize};

use super::damage::FILE_HEAD_BYTES;

/// Name of the file with the notes.
const NOTES: &str = "flushed";
const NOTES_MAGIC: &[u8] = b"perennial flushed 1\n";
/// Longest notes that are read, in bytes: thousands of files.
const NOTES_BYTES_MAX: u64 = 1024 * 1024;
/// Digits of a file's number, with which its name begins.
const NUMBER_DIGITS: usize = 16;

/// Which of raft-engine's two queues a file belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) enum Queue {
    /// What is written.
    Append,
    /// What was still needed of old files of the other one.
    Rewrite,
}

/// A file of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct LogFile {
    pub(crate) queue: Queue,
    pub(crate) number: u64,
}

impl LogFile {
    /// What a path names, if that is a file of the log.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        let (number, suffix) = name.split_at_checked(NUMBER_DIGITS)?;
        let queue = match suffix {
            ".raftlog" => Queue::Append,
            ".rewrite" => Queue::Rewrite,
            _ => return None,
        };
        Some(Self { queue, number: number.parse().ok()? })
    }

    pub(crate) fn name(self) -> String {
        let suffix = match self.queue {
            Queue::Append => "raftlog",
            Queue::Rewrite => "rewrite",
        };
        format!("{:0NUMBER_DIGITS$}.{suffix}", self.number)
    }
}

/// Lengths up to which files are durable, in bytes; at least.
pub(crate) type Ends = BTreeMap<LogFile, u64>;

/// The notes on disk.
struct Notes {
    file: File,
    ends: Ends,
}

impl Notes {
    /// What was noted; nothing when the notes are missing, torn or damaged.
    fn open(dir: &Path) -> io::Result<Self> {
        let mut file =
            File::options().create(true).truncate(false).read(true).write(true).open(dir.join(NOTES))?;
        let mut bytes = Vec::new();
        (&mut file).take(NOTES_BYTES_MAX).read_to_end(&mut bytes)?;
        let ends = Self::decode(&bytes).unwrap_or_else(|| {
            if !bytes.is_empty() {
                tracing::warn!("how far the log was flushed cannot be read; its last batch is not checked");
            }
            Ends::new()
        });
        Ok(Self { file, ends })
    }

    fn decode(bytes: &[u8]) -> Option<Ends> {
        let (sum, rest) = bytes.strip_prefix(NOTES_MAGIC)?.split_first_chunk()?;
        // What follows may be the end of longer notes.
        let (ends, tail) = postcard::take_from_bytes(rest).ok()?;
        let body = &rest[..rest.len() - tail.len()];
        (u128::from_be_bytes(*sum) == wide_hash(body)).then_some(ends)
    }

    fn encode(&self) -> Vec<u8> {
        let body = postcard::to_stdvec(&self.ends).expect("numbers always encode");
        [NOTES_MAGIC, &wide_hash(&body).to_be_bytes(), &body].concat()
    }

    fn write(&mut self) -> io::Result<()> {
        let bytes = self.encode();
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&bytes)
    }
}

/// What all handles share.
struct Shared {
    notes: Mutex<Notes>,
    failure: Mutex<Option<io::Error>>,
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn note(&self, change: impl FnOnce(&mut Ends)) {
        let mut notes = lock(&self.notes);
        change(&mut notes.ends);
        // Notes that are behind say less than they could, and nothing wrong.
        if let Err(error) = notes.write() {
            tracing::warn!(%error, "how far the log was flushed could not be noted");
        }
    }

    fn failed(&self) -> bool {
        lock(&self.failure).is_some()
    }
}

/// The files of a log.
#[derive(Clone)]
pub(crate) struct LogFiles(Arc<Shared>);

impl LogFiles {
    /// For the log in a folder, which exists.
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        let notes = Notes::open(dir)?;
        Ok(Self(Arc::new(Shared { notes: Mutex::new(notes), failure: Mutex::default() })))
    }

    /// How far the files were flushed.
    pub(crate) fn ends(&self) -> Ends {
        lock(&self.0.notes).ends.clone()
    }

    /// Why a flush failed, if one did; what was written since the one before may be lost.
    pub(crate) fn failure(&self) -> Option<io::Error> {
        // Kept: there is no way back.
        lock(&self.0.failure).as_ref().map(|error| match error.raw_os_error() {
            Some(code) => io::Error::from_raw_os_error(code),
            None => io::Error::new(error.kind(), error.to_string()),
        })
    }

    fn handle<P: AsRef<Path>>(&self, path: P, disk: DiskHandle) -> LogHandle {
        let file = LogFile::of(path.as_ref());
        LogHandle { disk: Arc::new(disk), file, written: AtomicU64::new(0), shared: self.0.clone() }
    }
}

type DiskHandle = <DefaultFileSystem as FileSystem>::Handle;
type DiskReader = <DefaultFileSystem as FileSystem>::Reader;
type DiskWriter = <DefaultFileSystem as FileSystem>::Writer;

/// An open file.
pub(crate) struct LogHandle {
    disk: Arc<DiskHandle>,
    file: Option<LogFile>,
    /// Length as written, in bytes; 0 before anything was.
    written: AtomicU64,
    shared: Arc<Shared>,
}

impl Handle for LogHandle {
    fn truncate(&self, offset: usize) -> io::Result<()> {
        self.disk.truncate(offset)?;
        self.written.store(offset as u64, Ordering::Relaxed);
        Ok(())
    }

    fn file_size(&self) -> io::Result<usize> {
        self.disk.file_size()
    }

    /// Does not tell raft-engine of a failure, which would panic with its locks held: the failure is kept,
    /// and whoever wrote must look at it before anything depends on the flush.
    fn sync(&self) -> io::Result<()> {
        if self.shared.failed() {
            return Ok(());
        }
        let written = self.written.load(Ordering::Relaxed);
        match self.disk.sync() {
            // A file is in its folder for good before anything is written behind its head.
            Ok(()) if written > FILE_HEAD_BYTES => {
                if let Some(file) = self.file {
                    self.shared.note(|ends| {
                        ends.insert(file, written);
                    });
                }
            }
            Ok(()) => {}
            Err(error) => *lock(&self.shared.failure) = Some(error),
        }
        Ok(())
    }
}

/// A place in a file that is written.
pub(crate) struct LogWriter {
    disk: DiskWriter,
    handle: Arc<LogHandle>,
    at: u64,
}

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.disk.write(bytes)?;
        self.at += count as u64;
        self.handle.written.store(self.at, Ordering::Relaxed);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.disk.flush()
    }
}

impl Seek for LogWriter {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.at = self.disk.seek(to)?;
        Ok(self.at)
    }
}

impl WriteExt for LogWriter {
    fn truncate(&mut self, offset: usize) -> io::Result<()> {
        self.disk.truncate(offset)?;
        self.at = offset as u64;
        self.handle.written.store(self.at, Ordering::Relaxed);
        Ok(())
    }

    fn allocate(&mut self, offset: usize, size: usize) -> io::Result<()> {
        self.disk.allocate(offset, size)
    }
}

impl FileSystem for LogFiles {
    type Handle = LogHandle;
    type Reader = DiskReader;
    type Writer = LogWriter;

    fn create<P: AsRef<Path>>(&self, path: P) -> io::Result<LogHandle> {
        let disk = DefaultFileSystem.create(&path)?;
        Ok(self.handle(path, disk))
    }

    fn open<P: AsRef<Path>>(&self, path: P, permission: Permission) -> io::Result<LogHandle> {
        let disk = DefaultFileSystem.open(&path, permission)?;
        Ok(self.handle(path, disk))
    }

    fn delete<P: AsRef<Path>>(&self, path: P) -> io::Result<()> {
        if self.0.failed() {
            return Err(io::Error::other("a flush has failed: what the file holds may not be anywhere else"));
        }
        if let Some(file) = LogFile::of(path.as_ref()) {
            self.0.note(|ends| {
                ends.remove(&file);
            });
            // Not even a power cut brings a note back whose file is gone. Whoever notes does not wait.
            let notes = lock(&self.0.notes).file.try_clone()?;
            notes.sync_data()?;
        }
        DefaultFileSystem.delete(path)
    }

    fn rename<P: AsRef<Path>>(&self, from: P, to: P) -> io::Result<()> {
        DefaultFileSystem.rename(from, to)
    }

    fn new_reader(&self, handle: Arc<LogHandle>) -> io::Result<DiskReader> {
        DefaultFileSystem.new_reader(handle.disk.clone())
    }

    fn new_writer(&self, handle: Arc<LogHandle>) -> io::Result<LogWriter> {
        let disk = DefaultFileSystem.new_writer(handle.disk.clone())?;
        Ok(LogWriter { disk, handle, at: 0 })
    }
}
