//! The files of the log, and how far each of them was flushed.
//!
//! Owns the way from raft-engine to the disk. After each flush it notes in the file `flushed` how long the
//! flushed file is. The note is not flushed itself: it outlives the process at once and a power cut some
//! seconds later, and never says more than is durable. So a file that is gone or ends before its note has
//! lost what was durable, where its end alone would look like a torn write. A failed flush is final: nothing is
//! written, flushed or deleted after it, and [`LogFiles::failure`] says so. In go writes and flushes; out come
//! [`Ends`] at boot. The idea is the control file of a database.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use raft_engine::env::{FileSystem, Handle, Permission, WriteExt};
use serde::{Deserialize, Serialize};

use super::damage::FILE_HEAD_BYTES;
use super::notes;

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

/// A place to write, and to write again.
trait Place: Write + Seek + Send {}
impl<W: Write + Seek + Send> Place for W {}

/// The notes on disk.
struct Notes {
    file: Box<dyn Place>,
    /// Makes them durable.
    flush: Arc<dyn Fn() -> io::Result<()> + Send + Sync>,
    ends: Ends,
}

impl Notes {
    /// What was noted; nothing when the notes are missing, torn or damaged.
    fn open<F: FileSystem + 'static>(disk: &F, dir: &Path) -> io::Result<Self> {
        let path = dir.join(NOTES);
        let handle =
            if path.exists() { disk.open(&path, Permission::ReadWrite)? } else { disk.create(&path)? };
        let handle = Arc::new(handle);
        let mut bytes = Vec::new();
        disk.new_reader(handle.clone())?.take(NOTES_BYTES_MAX).read_to_end(&mut bytes)?;
        let ends = decode(&bytes).unwrap_or_else(|| {
            if !bytes.is_empty() {
                tracing::warn!("how far the log was flushed cannot be read; its last batch is not checked");
            }
            Ends::new()
        });
        let file = Box::new(disk.new_writer(handle.clone())?);
        Ok(Self { file, flush: Arc::new(move || handle.sync()), ends })
    }

    fn write(&mut self) -> io::Result<()> {
        let bytes = encode(&self.ends);
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&bytes)
    }
}

pub(crate) fn decode(bytes: &[u8]) -> Option<Ends> {
    notes::decode(NOTES_MAGIC, bytes)
}

pub(crate) fn encode(ends: &Ends) -> Vec<u8> {
    notes::encode(NOTES_MAGIC, ends)
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

    /// Removes a note for good. Without that the file must stay.
    fn forget(&self, file: LogFile) -> io::Result<()> {
        let flush = {
            let mut notes = lock(&self.notes);
            let end = notes.ends.remove(&file);
            if let Err(error) = notes.write() {
                notes.ends.extend(end.map(|end| (file, end)));
                return Err(error);
            }
            // Whoever notes does not wait.
            notes.flush.clone()
        };
        flush()
    }

    fn failed(&self) -> bool {
        lock(&self.failure).is_some()
    }

    fn check(&self) -> io::Result<()> {
        if self.failed() { Err(io::Error::other("an earlier flush has failed")) } else { Ok(()) }
    }
}

/// The files of a log.
pub(crate) struct LogFiles<F> {
    disk: Arc<F>,
    shared: Arc<Shared>,
}

impl<F> Clone for LogFiles<F> {
    fn clone(&self) -> Self {
        Self { disk: self.disk.clone(), shared: self.shared.clone() }
    }
}

impl<F: FileSystem + 'static> LogFiles<F> {
    /// For the log in a folder, which exists.
    pub(crate) fn open(disk: F, dir: &Path) -> io::Result<Self> {
        let notes = Notes::open(&disk, dir)?;
        let shared = Shared { notes: Mutex::new(notes), failure: Mutex::default() };
        Ok(Self { disk: Arc::new(disk), shared: Arc::new(shared) })
    }

    /// How far the files were flushed.
    pub(crate) fn ends(&self) -> Ends {
        lock(&self.shared.notes).ends.clone()
    }

    /// Forgets files that are not there, after it was judged that they need not be.
    pub(crate) fn forget_gone(&self, dir: &Path) {
        lock(&self.shared.notes).ends.retain(|file, _| dir.join(file.name()).exists());
    }

    /// Why a flush failed, if one did; what was written since the one before may be lost.
    pub(crate) fn failure(&self) -> Option<io::Error> {
        // Kept: there is no way back.
        lock(&self.shared.failure).as_ref().map(|error| match error.raw_os_error() {
            Some(code) => io::Error::from_raw_os_error(code),
            None => io::Error::new(error.kind(), error.to_string()),
        })
    }

    fn handle<P: AsRef<Path>>(&self, path: P, disk: F::Handle) -> LogHandle<F::Handle> {
        let file = LogFile::of(path.as_ref());
        LogHandle { disk: Arc::new(disk), file, written: AtomicU64::new(0), shared: self.shared.clone() }
    }
}

/// An open file.
pub(crate) struct LogHandle<H> {
    disk: Arc<H>,
    file: Option<LogFile>,
    /// Length as written, in bytes; 0 before anything was.
    written: AtomicU64,
    shared: Arc<Shared>,
}

impl<H: Handle> Handle for LogHandle<H> {
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
pub(crate) struct LogWriter<H, W> {
    disk: W,
    handle: Arc<LogHandle<H>>,
    at: u64,
}

impl<H, W: Write> Write for LogWriter<H, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.handle.shared.check()?;
        let count = self.disk.write(bytes)?;
        self.at += count as u64;
        self.handle.written.store(self.at, Ordering::Relaxed);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.disk.flush()
    }
}

impl<H, W: Seek> Seek for LogWriter<H, W> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.at = self.disk.seek(to)?;
        Ok(self.at)
    }
}

impl<H, W: WriteExt> WriteExt for LogWriter<H, W> {
    fn truncate(&mut self, offset: usize) -> io::Result<()> {
        self.handle.shared.check()?;
        self.disk.truncate(offset)?;
        self.at = offset as u64;
        self.handle.written.store(self.at, Ordering::Relaxed);
        Ok(())
    }

    fn allocate(&mut self, offset: usize, size: usize) -> io::Result<()> {
        self.disk.allocate(offset, size)
    }
}

impl<F: FileSystem + 'static> FileSystem for LogFiles<F> {
    type Handle = LogHandle<F::Handle>;
    type Reader = F::Reader;
    type Writer = LogWriter<F::Handle, F::Writer>;

    fn create<P: AsRef<Path>>(&self, path: P) -> io::Result<Self::Handle> {
        let disk = self.disk.create(&path)?;
        Ok(self.handle(path, disk))
    }

    fn open<P: AsRef<Path>>(&self, path: P, permission: Permission) -> io::Result<Self::Handle> {
        let disk = self.disk.open(&path, permission)?;
        // A process that was killed may have written what it did not flush. It can be read, and whoever reads
        // it answers for it from now on.
        disk.sync()?;
        Ok(self.handle(path, disk))
    }

    fn delete<P: AsRef<Path>>(&self, path: P) -> io::Result<()> {
        // What it holds may not be anywhere else.
        self.shared.check()?;
        if let Some(file) = LogFile::of(path.as_ref()) {
            // Not even a power cut brings a note back whose file is gone.
            self.shared.forget(file)?;
        }
        self.disk.delete(path)
    }

    fn rename<P: AsRef<Path>>(&self, from: P, to: P) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn new_reader(&self, handle: Arc<Self::Handle>) -> io::Result<Self::Reader> {
        self.disk.new_reader(handle.disk.clone())
    }

    fn new_writer(&self, handle: Arc<Self::Handle>) -> io::Result<Self::Writer> {
        let disk = self.disk.new_writer(handle.disk.clone())?;
        Ok(LogWriter { disk, handle, at: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use raft_engine::env::DefaultFileSystem;
    use std::io::ErrorKind;

    /// A disk without room.
    struct Full;

    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Seek for Full {
        fn seek(&mut self, _: SeekFrom) -> io::Result<u64> {
            Ok(0)
        }
    }

    #[test]
    fn a_file_whose_note_cannot_be_removed_stays() {
        let dir = tempfile::tempdir().unwrap();
        let file = LogFile { queue: Queue::Append, number: 7 };
        let path = dir.path().join(file.name());
        std::fs::write(&path, b"entries").unwrap();
        let ends = Ends::from([(file, 7)]);
        let notes = Notes { file: Box::new(Full), flush: Arc::new(|| Ok(())), ends: ends.clone() };
        let shared = Arc::new(Shared { notes: Mutex::new(notes), failure: Mutex::default() });
        let files = LogFiles { disk: Arc::new(DefaultFileSystem), shared };
        let failed = files.delete(&path).expect_err("the note is still there");
        assert_eq!(failed.kind(), ErrorKind::StorageFull);
        assert!(path.exists());
        assert_eq!(files.ends(), ends);
    }
    #[cfg(unix)]
    #[test]
    fn after_a_failed_flush_nothing_is_written_flushed_or_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let files = LogFiles::open(DefaultFileSystem, dir.path()).unwrap();
        let path = |number| dir.path().join(LogFile { queue: Queue::Append, number }.name());
        let sound = Arc::new(files.create(path(1)).unwrap());
        let mut writer = files.new_writer(sound.clone()).unwrap();
        writer.write_all(&[1; 100]).unwrap();
        sound.sync().unwrap();
        let flushed = files.ends();
        assert_eq!(flushed.values().collect::<Vec<_>>(), [&100]);
        writer.write_all(&[2; 100]).unwrap();

        // A device that cannot be flushed.
        std::os::unix::fs::symlink("/dev/null", path(2)).unwrap();
        files.create(path(2)).unwrap().sync().unwrap();
        assert!(files.failure().is_some(), "it is kept for whoever wrote");
        sound.sync().unwrap();
        assert_eq!(
            files.ends(),
            flushed,
            "what came before the failure does not become durable by a later flush"
        );
        assert!(writer.write_all(&[3; 100]).is_err());
        assert!(writer.truncate(0).is_err());
        assert!(files.delete(path(1)).is_err());
        assert_eq!(std::fs::read(path(1)).unwrap().len(), 200);
        assert_eq!(files.ends(), flushed);
    }
}
