//! The log of all groups on disk.
//!
//! Owns raft-engine: entries, hard states, truncation points and the replicas of each group, one
//! flush for everything of a loop. Read at boot only; in between, the driver serves reads from
//! memory. In go [`Persist`]s and [`Truncate`]s; out come seeds at boot. A failed flush is final.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use perennial_core::id::{GroupId, LogIndex, Term};
use perennial_core::replication::{Entry, GroupSeed, HardState, Persist, Truncate};
use raft_engine::env::{DefaultFileSystem, FileSystem};
use raft_engine::{Command, Config, Engine, LogBatch, MessageExt, ReadableSize, RecoveryMode};

use super::config::GroupConfig;
use super::damage;
use super::files::LogFiles;

const KEY_CONFIG: &[u8] = b"c";
const KEY_HARD_STATE: &[u8] = b"h";
const KEY_TRUNCATED: &[u8] = b"t";
/// Threads that read the log at boot.
const RECOVERY_THREADS: usize = 2;

/// A failure of the log. After a failed write the state on disk is unknown: the replica stops.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The disk or its content failed.
    #[error("the log failed; check the disk and its free space, then restart the node")]
    Engine(#[from] raft_engine::Error),
    /// What was written may be durable or not; nothing of it was told to anyone.
    #[error("the log could not be flushed; check the disk, then restart the node")]
    Flush(#[source] std::io::Error),
    /// The files of the log cannot be read back.
    #[error(
        "the log in {} cannot be read back: what was flushed there is damaged, a vote or an acknowledged turn \
         may be lost, so this node must stay down; check the disk, and see \"Damaged disk\" in the operations guide",
        dir.display()
    )]
    Unreadable {
        /// Its folder.
        dir: PathBuf,
        /// Why.
        #[source]
        source: raft_engine::Error,
    },
    /// A file could not be read.
    #[error("the log cannot be read; check the disk and the owner of the data folder")]
    Read(#[source] std::io::Error),
    /// The disk has lost some of what was flushed. The log is as it was found.
    #[error(
        "the log file {} is damaged at byte {offset}, with entries that were flushed: a vote or an acknowledged \
         turn may be lost, so this node must stay down; check the disk, and see \"Damaged disk\" in the operations guide",
        file.display()
    )]
    Damaged {
        /// Which file.
        file: PathBuf,
        /// Where it begins to be unreadable, in bytes.
        offset: u64,
    },
    /// What is stored beside the entries cannot be read.
    #[error(
        "the log of group {0} has unreadable state: a newer build wrote it, or it is damaged, see \"Damaged disk\" \
         in the operations guide"
    )]
    State(u64),
}

struct EntryExt;

impl MessageExt for EntryExt {
    type Entry = Entry;
    fn index(entry: &Entry) -> u64 {
        entry.index
    }
}

fn words<const N: usize>(words: [u64; N]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_be_bytes()).collect()
}

fn unwords<const N: usize>(bytes: &[u8]) -> Option<[u64; N]> {
    let mut out = [0; N];
    if bytes.len() != 8 * N {
        return None;
    }
    for (word, chunk) in out.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = u64::from_be_bytes(chunk.try_into().ok()?);
    }
    Some(out)
}

/// A group as the log gives it back.
pub(crate) struct Recovered {
    pub(crate) config: GroupConfig,
    /// Without what the rows know: `applied` is 0.
    pub(crate) seed: GroupSeed,
}

/// The log on disk.
pub(crate) struct DiskLog<F: FileSystem + 'static = DefaultFileSystem> {
    engine: Arc<Engine<LogFiles<F>>>,
    files: LogFiles<F>,
    batch: LogBatch,
}

#[cfg(test)]
impl DiskLog {
    pub(crate) fn open(dir: &Path, file_bytes: u64, purge_bytes: u64) -> Result<Self, LogError> {
        Self::open_on(DefaultFileSystem, dir, file_bytes, purge_bytes)
    }
}

impl<F: FileSystem + 'static> DiskLog<F> {
    /// Opens or makes the log in a folder of a file system.
    pub(crate) fn open_on(disk: F, dir: &Path, file_bytes: u64, purge_bytes: u64) -> Result<Self, LogError> {
        std::fs::create_dir_all(dir).map_err(LogError::Read)?;
        let files = LogFiles::open(disk, dir).map_err(LogError::Read)?;
        if let Some((file, offset)) = damage::find(dir, &files.ends()).map_err(LogError::Read)? {
            return Err(LogError::Damaged { file, offset });
        }
        files.forget_gone(dir);
        let config = Config {
            dir: dir.to_string_lossy().into_owned(),
            recovery_mode: RecoveryMode::TolerateTailCorruption,
            recovery_threads: RECOVERY_THREADS,
            batch_compression_threshold: ReadableSize(0),
            target_file_size: ReadableSize(file_bytes),
            purge_threshold: ReadableSize(purge_bytes.max(file_bytes)),
            enable_log_recycle: false,
            ..Config::default()
        };
        let engine = Engine::open_with_file_system(config, Arc::new(files.clone()));
        let engine = engine.map_err(|error| unreadable(dir, error))?;
        // raft-engine does so for its second file and all later ones.
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(LogError::Flush)?;
        Ok(Self { engine: Arc::new(engine), files, batch: LogBatch::default() })
    }

    /// Everything the log holds, group by group.
    pub(crate) fn recover(&self) -> Result<Vec<Recovered>, LogError> {
        let mut regions = self.engine.raft_groups();
        regions.sort_unstable();
        regions.into_iter().map(|region| self.recover_group(region)).collect()
    }

    fn recover_group(&self, region: u64) -> Result<Recovered, LogError> {
        let broken = || LogError::State(region);
        let config = self.engine.get(region, KEY_CONFIG).ok_or_else(broken)?;
        let config: GroupConfig = postcard::from_bytes(&config).map_err(|_| broken())?;
        let mut seed = GroupSeed::empty(config.group, config.voters.clone(), config.preferred.clone());
        if let Some(bytes) = self.engine.get(region, KEY_HARD_STATE) {
            let [term, vote, commit] = unwords(&bytes).ok_or_else(broken)?;
            seed.hard_state = HardState { term, vote, commit };
        }
        if let Some(bytes) = self.engine.get(region, KEY_TRUNCATED) {
            let [index, term] = unwords(&bytes).ok_or_else(broken)?;
            seed.truncated = (LogIndex(index), Term(term));
        }
        if let (Some(first), Some(last)) = (self.engine.first_index(region), self.engine.last_index(region)) {
            let begin = first.max(seed.truncated.0.0 + 1);
            if begin <= last {
                let fetched = self.engine.fetch_entries_to::<EntryExt>(
                    region,
                    begin,
                    last + 1,
                    None,
                    &mut seed.entries,
                );
                fetched.map_err(|error| unreadable(Path::new(self.engine.path()), error))?;
            }
        }
        Ok(Recovered { config, seed })
    }

    /// Notes that a group is hosted here; durable with the next [`DiskLog::write`].
    pub(crate) fn note(&mut self, config: &GroupConfig) -> Result<(), LogError> {
        let bytes = postcard::to_stdvec(config).map_err(|_| LogError::State(config.group.raw()))?;
        Ok(self.batch.put(config.group.raw(), KEY_CONFIG.to_vec(), bytes)?)
    }

    /// Makes everything durable with one flush; returns the bytes written.
    pub(crate) fn write<'a>(
        &mut self,
        persist: &[Persist],
        config_of: impl Fn(GroupId) -> Option<&'a GroupConfig>,
    ) -> Result<u64, LogError> {
        flushed(&self.files)?;
        for p in persist {
            let region = p.group.raw();
            if let Some((index, term)) = p.reset {
                self.batch.add_command(region, Command::Clean);
                if let Some(config) = config_of(p.group) {
                    self.note(config)?;
                }
                self.batch.put(region, KEY_TRUNCATED.to_vec(), words([index.0, term.0]))?;
            }
            let HardState { term, vote, commit } = p.hard_state;
            self.batch.put(region, KEY_HARD_STATE.to_vec(), words([term, vote, commit]))?;
            self.batch.add_entries::<EntryExt>(region, &p.entries)?;
        }
        let written = self.engine.write(&mut self.batch, true);
        flushed(&self.files)?;
        Ok(written? as u64)
    }

    pub(crate) fn is_clean(&self) -> bool {
        self.batch.is_empty()
    }

    /// Forgets entries. Flushed, because the files of forgotten entries are removed next, and a log
    /// that has lost both its head and the note of it could not be opened.
    pub(crate) fn truncate(&mut self, truncates: &[Truncate]) -> Result<(), LogError> {
        flushed(&self.files)?;
        let mut batch = LogBatch::with_capacity(truncates.len() * 2);
        for t in truncates {
            batch.put(t.group.raw(), KEY_TRUNCATED.to_vec(), words([t.index.0, t.term.0]))?;
            batch.add_command(t.group.raw(), Command::Compact { index: t.index.0 + 1 });
        }
        let written = self.engine.write(&mut batch, true);
        flushed(&self.files)?;
        written?;
        Ok(())
    }

    pub(crate) fn purger(&self) -> Purger<F> {
        Purger(self.engine.clone(), self.files.clone())
    }
}

/// What a failure to read says of the log.
fn unreadable(dir: &Path, source: raft_engine::Error) -> LogError {
    match source {
        raft_engine::Error::Io(_) | raft_engine::Error::Other(_) => LogError::Engine(source),
        source => LogError::Unreadable { dir: dir.to_owned(), source },
    }
}

/// Nothing is durable that was written before a failed flush, whatever raft-engine says.
fn flushed<F: FileSystem + 'static>(files: &LogFiles<F>) -> Result<(), LogError> {
    files.failure().map_or(Ok(()), |error| Err(LogError::Flush(error)))
}

/// Removes old files of the log, off the replica thread.
pub(crate) struct Purger<F: FileSystem + 'static = DefaultFileSystem>(Arc<Engine<LogFiles<F>>>, LogFiles<F>);

impl<F: FileSystem + 'static> Purger<F> {
    /// Returns the groups that hold old files back.
    pub(crate) fn purge(&self) -> Result<Vec<GroupId>, LogError> {
        flushed(&self.1)?;
        let behind = self.0.purge_expired_files();
        flushed(&self.1)?;
        Ok(behind?.into_iter().filter_map(GroupId::from_raw).collect())
    }

    #[cfg(test)]
    pub(crate) fn first_index(&self, group: GroupId) -> Option<u64> {
        self.0.first_index(group.raw())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use perennial_core::id::MemberId;

    fn entries(range: std::ops::Range<u64>, term: u64) -> Vec<Entry> {
        range
            .map(|index| Entry { index, term, data: vec![index as u8; 100].into(), ..Entry::default() })
            .collect()
    }

    fn persist(range: std::ops::Range<u64>, term: u64) -> Persist {
        let hard_state = HardState { term, vote: 1, commit: 0 };
        Persist { group: GroupId::SYSTEM, reset: None, hard_state, entries: entries(range, term) }
    }

    #[test]
    fn the_log_gives_back_what_was_flushed() {
        let dir = tempfile::tempdir().unwrap();
        let members = vec![MemberId(1), MemberId(2)];
        let config = GroupConfig { group: GroupId::SYSTEM, voters: members.clone(), preferred: members };
        let reopen = || DiskLog::open(dir.path(), 4096, 8192).unwrap();
        let seed = |log: &DiskLog| log.recover().unwrap().pop().unwrap().seed;
        {
            let mut log = reopen();
            assert!(log.recover().unwrap().is_empty());
            log.note(&config).unwrap();
            log.write(&[persist(1..10, 1)], |_| None).unwrap();
            log.write(&[persist(6..8, 2)], |_| None).unwrap();
        }
        let mut expected = entries(1..6, 1);
        expected.extend(entries(6..8, 2));
        {
            let mut log = reopen();
            let found = log.recover().unwrap().pop().unwrap();
            assert_eq!(found.config, config);
            assert_eq!(found.seed.entries, expected);
            assert_eq!(found.seed.hard_state, HardState { term: 2, vote: 1, commit: 0 });
            let truncate = Truncate { group: GroupId::SYSTEM, index: LogIndex(3), term: Term(1) };
            log.truncate(&[truncate]).unwrap();
            assert_eq!(log.purger().first_index(GroupId::SYSTEM), Some(4));
        }
        {
            let mut log = reopen();
            assert_eq!(seed(&log).truncated, (LogIndex(3), Term(1)));
            assert_eq!(seed(&log).entries, expected[3..]);
            let mut reset = persist(21..23, 4);
            reset.reset = Some((LogIndex(20), Term(3)));
            log.write(&[reset], |_| Some(&config)).unwrap();
            // Push the reset into an old file and purge, so that it is rewritten.
            for n in 0..60 {
                log.write(&[persist(23 + n * 3..26 + n * 3, 4)], |_| None).unwrap();
            }
            let truncate = Truncate { group: GroupId::SYSTEM, index: LogIndex(190), term: Term(4) };
            log.truncate(&[truncate]).unwrap();
            log.purger().purge().unwrap();
        }
        let log = reopen();
        assert_eq!(seed(&log).truncated, (LogIndex(190), Term(4)));
        assert_eq!(seed(&log).entries, entries(191..203, 4));
        assert_eq!(log.recover().unwrap().pop().unwrap().config, config);
    }

    #[test]
    fn a_log_reset_by_a_snapshot_forgets_all_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let members = vec![MemberId(1)];
        let config = GroupConfig { group: GroupId::SYSTEM, voters: members.clone(), preferred: members };
        {
            let mut log = DiskLog::open(dir.path(), 4096, 8192).unwrap();
            log.note(&config).unwrap();
            log.write(&[persist(1..30, 1)], |_| None).unwrap();
            let mut reset = persist(1..1, 3);
            reset.reset = Some((LogIndex(20), Term(2)));
            log.write(&[reset], |_| Some(&config)).unwrap();
            log.write(&[persist(21..22, 3)], |_| None).unwrap();
        }
        let log = DiskLog::open(dir.path(), 4096, 8192).unwrap();
        let found = log.recover().unwrap().pop().unwrap();
        assert_eq!(found.seed.truncated, (LogIndex(20), Term(2)));
        assert_eq!(found.seed.entries, entries(21..22, 3));
        assert_eq!(found.config, config);
    }
}
