//! The files of the row store, as far as fjall takes them on trust.
//!
//! Owns a look at them before fjall opens them. fjall checks the blocks of its tables as it reads them, and
//! the items of a batch in its journals. It does not check the order of batches; it drops the rest of a
//! journal behind the first unreadable batch, and goes on with the next journal; and it believes the list of
//! tables and the contents of each file so far that a flipped bit may end the process. Never writes, but for
//! the torn end of the last journal, and the file `noted`: how far each journal was flushed, and a hash up to
//! there. As in the log's [`super::files`], the note says never more than is durable and is not flushed itself.
//!
//! Behind its note the last journal may end early: it is a prefix of what was written, in order, and the log
//! brings rows up to date from the checkpoint in it. Its room is made in advance, so a power cut may leave later
//! pages of it and not earlier ones, which fjall takes for damage: what is behind the last sound batch is cut
//! off before. Tables that no version names are not looked at: they were not finished or are not needed any
//! more, and fjall removes them.
//!
//! The layouts are those of fjall 3.1, lsm-tree 3.1 and sfa 1.0; numbers are little-endian:
//!
//! ```text
//!  journal = batch*, zeros
//!  batch   = 1, u32 items, u64 number, item*, 3, u64 hash of items, magic
//!  item    = 2, u8 type, u8 compression, u64 keyspace, u16 key, u32 value, u32 stored, key, value
//!          | 4, u64 keyspace
//!  current = u64 version, u128 hash of file v<version>, u8 0
//!  table, version = .., contents, trailer
//!  trailer = magic, u8 1, u8 0, u128 hash of contents, u64 where they begin, u64 their length
//!  contents = magic, u32 count, (u64 where it begins, u64 its length, u16 length of its name, its name)*
//!  tables of a version = u8 levels, (u8 runs, (u32 count, (u64 number, 25 bytes)*)*)*
//! ```

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{File, TryLockError};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use perennial_core::hash::wide_hash;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::notes;

/// Name of the file with the notes.
const NOTES: &str = "noted";
const NOTES_MAGIC: &[u8] = b"perennial noted 1\n";
/// What fjall locks while it has the folder open.
const LOCK: &str = "lock";
/// Journals are read in pieces of so many bytes.
const PIECE_BYTES: usize = 1024 * 1024;
const TAG_START: u8 = 1;
const TAG_ITEM: u8 = 2;
const TAG_END: u8 = 3;
const TAG_CLEAR: u8 = 4;
const START_BYTES: usize = 13;
/// Before key and value.
const ITEM_HEAD_BYTES: usize = 21;
const CLEAR_BYTES: usize = 9;
const END_MAGIC: &[u8] = b"FJL\x03";
const TRAILER_MAGIC: &[u8] = b"SFA!\x01\x00";
const TRAILER_BYTES: usize = 38;
/// In a trailer, before the place of the contents.
const TRAILER_HEAD_BYTES: usize = 22;
/// In the contents of a file, before the first entry.
const CONTENTS_HEAD_BYTES: usize = 8;
/// An entry of the contents, without its name.
const CONTENT_BYTES: usize = 18;
const TABLES: &[u8] = b"tables";
/// A table in a version.
const TABLE_BYTES: usize = 33;

/// How far a journal has been read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Walk {
    /// Where the next batch begins.
    end: u64,
    /// Hash of all batches before, one by one.
    hash: u128,
    /// Number of the last batch.
    last: Option<u64>,
}

/// How far journals are durable, by their numbers.
pub(crate) struct Notes {
    file: File,
    journals: BTreeMap<u64, Walk>,
}

impl Notes {
    /// What was noted in a folder; nothing when that is missing, torn or damaged.
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        let path = dir.join(NOTES);
        let mut file = File::options().create(true).truncate(false).read(true).write(true).open(path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let journals = notes::decode(NOTES_MAGIC, &bytes).unwrap_or_else(|| {
            if !bytes.is_empty() {
                tracing::warn!("how far rows were flushed cannot be read; the end of them is not checked");
            }
            BTreeMap::new()
        });
        Ok(Self { file, journals })
    }

    /// Reads what was written since the last time; to be called before the flush that it is noted after.
    pub(crate) fn read(&self, dir: &Path) -> io::Result<BTreeMap<u64, Walk>> {
        let mut read = BTreeMap::new();
        for (number, path) in journals(dir)? {
            match File::open(path) {
                Ok(mut file) => {
                    let mut walk = self.journals.get(&number).copied().unwrap_or_default();
                    walk.go_on(&mut file, false)?;
                    read.insert(number, walk);
                }
                // fjall removes journals it needs no more.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(read)
    }

    /// Notes what was read; it is durable.
    pub(crate) fn note(&mut self, journals: BTreeMap<u64, Walk>) -> io::Result<()> {
        self.journals = journals;
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(&notes::encode(NOTES_MAGIC, &self.journals))
    }

    /// Makes a folder ready for fjall: cuts off what is torn. Returns the first file that is damaged, if one
    /// is; then nothing is changed.
    pub(crate) fn prepare(&self, dir: &Path) -> io::Result<Option<PathBuf>> {
        let journals = journals(dir)?;
        // fjall removes a journal only when there is a later one.
        let newest = journals.keys().last().copied();
        if newest < self.journals.keys().last().copied() {
            return Ok(Some(dir.to_owned()));
        }
        let mut last = None;
        let mut torn = None;
        for (number, path) in &journals {
            let mut file = File::open(path)?;
            let noted = self.journals.get(number).copied().unwrap_or_default();
            let mut walk = Walk { last, ..Walk::default() };
            let as_noted = walk.reach(&mut file, &noted)?;
            let only_zeros = walk.go_on(&mut file, true)?;
            // All of a journal is flushed before the next one is begun, and there is something in it.
            let whole = only_zeros && walk.end > 0;
            if !as_noted || !(whole || Some(*number) == newest) {
                return Ok(Some(path.clone()));
            }
            if !only_zeros {
                torn = Some((path, walk.end));
            }
            last = walk.last;
        }
        for tree in folders(&dir.join("keyspaces"))? {
            let damaged = damaged_in_tree(&tree)?;
            if damaged.is_some() {
                return Ok(damaged);
            }
        }
        if let Some((path, end)) = torn {
            cut(dir, path, end)?;
        }
        Ok(None)
    }
}

/// Cuts a journal off, unless its folder is open.
fn cut(dir: &Path, journal: &Path, end: u64) -> io::Result<()> {
    let lock = File::options().create(true).truncate(false).write(true).open(dir.join(LOCK))?;
    match lock.try_lock() {
        // Someone writes there: fjall will say so.
        Err(TryLockError::WouldBlock) => return Ok(()),
        Err(TryLockError::Error(error)) => return Err(error),
        Ok(()) => {}
    }
    tracing::warn!(journal = %journal.display(), end, "rows that were not flushed are torn and cut off");
    let file = File::options().write(true).open(journal)?;
    file.set_len(end)?;
    file.sync_all()
}

/// Journals in a folder, by their numbers.
fn journals(dir: &Path) -> io::Result<BTreeMap<u64, PathBuf>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let number = path.file_stem().and_then(OsStr::to_str).and_then(|stem| stem.parse().ok());
        if let Some(number) = number.filter(|_| path.extension().is_some_and(|suffix| suffix == "jnl")) {
            found.insert(number, path);
        }
    }
    Ok(found)
}

fn folders(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

impl Walk {
    /// Takes all whole batches from here on. Returns whether only zeros follow; with `to_end` the file is
    /// looked at to its end for that.
    fn go_on(&mut self, file: &mut File, to_end: bool) -> io::Result<bool> {
        self.walk(file, to_end, None)
    }

    /// Goes to a place that was noted. Returns whether it looks as it did.
    fn reach(&mut self, file: &mut File, noted: &Self) -> io::Result<bool> {
        self.walk(file, true, Some(noted.end))?;
        Ok(self.end == noted.end && self.hash == noted.hash)
    }

    fn walk(&mut self, file: &mut File, to_end: bool, until: Option<u64>) -> io::Result<bool> {
        let zeros = vec![0; PIECE_BYTES];
        let mut piece = vec![0; PIECE_BYTES];
        let mut left = Vec::new();
        let mut only_zeros = true;
        file.seek(SeekFrom::Start(self.end))?;
        loop {
            if until.is_some_and(|until| self.end >= until) {
                return Ok(true);
            }
            let count = file.read(&mut piece)?;
            let blank = piece[..count] == zeros[..count];
            only_zeros &= blank;
            if !(blank && left.is_empty()) {
                left.extend_from_slice(&piece[..count]);
                let mut at = 0;
                while until.is_none_or(|until| self.end < until) {
                    let Some(batch) = Batch::at(&left[at..]) else { break };
                    if self.last.is_some_and(|last| batch.number <= last) {
                        break;
                    }
                    let hash = wide_hash(&left[at..at + batch.length]);
                    self.hash = wide_hash(&[self.hash.to_be_bytes(), hash.to_be_bytes()].concat());
                    self.last = Some(batch.number);
                    self.end += batch.length as u64;
                    at += batch.length;
                }
                left.drain(..at);
                only_zeros = left.iter().all(|byte| *byte == 0);
            }
            if count == 0 || (blank && !to_end) {
                return Ok(only_zeros);
            }
        }
    }
}

struct Batch {
    length: usize,
    number: u64,
}

fn u32_at(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    usize::try_from(u32::from_le_bytes(*bytes)).ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<usize> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?).into())
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

impl Batch {
    /// The whole batch that some bytes begin with.
    fn at(bytes: &[u8]) -> Option<Self> {
        if *bytes.first()? != TAG_START {
            return None;
        }
        let (items, number) = (u32_at(bytes, 1)?, u64_at(bytes, 5)?);
        let mut at = START_BYTES;
        for _ in 0..items {
            at += match *bytes.get(at)? {
                TAG_ITEM => ITEM_HEAD_BYTES + u16_at(bytes, at + 11)? + u32_at(bytes, at + 17)?,
                TAG_CLEAR => CLEAR_BYTES,
                _ => return None,
            };
        }
        let hash = xxh3_64(bytes.get(START_BYTES..at)?);
        let end = bytes.get(at..)?;
        let sound =
            *end.first()? == TAG_END && u64_at(end, 1)? == hash && end.get(9..)?.starts_with(END_MAGIC);
        sound.then_some(Self { length: at + 9 + END_MAGIC.len(), number })
    }
}

/// The first file of a tree that is damaged so that it must not be opened.
fn damaged_in_tree(dir: &Path) -> io::Result<Option<PathBuf>> {
    let current = dir.join("current");
    let bytes = match std::fs::read(&current) {
        // A tree that was not finished: fjall makes it anew.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        bytes => bytes?,
    };
    let Some((version, rest)) = bytes.split_first_chunk() else { return Ok(Some(current)) };
    let version = dir.join(format!("v{}", u64::from_le_bytes(*version)));
    let content = match std::fs::read(&version) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Some(current)),
        content => content?,
    };
    if rest != [&wide_hash(&content).to_le_bytes()[..], &[0]].concat() {
        return Ok(Some(version));
    }
    let Some(tables) = tables_in(&content) else { return Ok(Some(version)) };
    for number in tables {
        let path = dir.join("tables").join(number.to_string());
        match contents_are_whole(&path) {
            Ok(true) => {}
            Ok(false) => return Ok(Some(path)),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Some(path)),
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// The numbers of the tables that a version names.
fn tables_in(version: &[u8]) -> Option<Vec<u64>> {
    let place = |at| usize::try_from(u64_at(version, at)?).ok();
    let contents = place(version.len().checked_sub(TRAILER_BYTES)? + TRAILER_HEAD_BYTES)?;
    let count = u32_at(version.get(contents..)?, CONTENTS_HEAD_BYTES - 4)?;
    let mut at = contents + CONTENTS_HEAD_BYTES;
    for _ in 0..count {
        let name = u16_at(version, at + CONTENT_BYTES - 2)?;
        let next = at + CONTENT_BYTES + name;
        if version.get(at + CONTENT_BYTES..next)? == TABLES {
            return table_numbers(version.get(place(at)?..)?.get(..place(at + 8)?)?);
        }
        at = next;
    }
    None
}

fn table_numbers(levels: &[u8]) -> Option<Vec<u64>> {
    let mut numbers = Vec::new();
    let mut at = 1;
    for _ in 0..*levels.first()? {
        let runs = *levels.get(at)?;
        at += 1;
        for _ in 0..runs {
            let tables = u32_at(levels, at)?;
            at += 4;
            for _ in 0..tables {
                numbers.push(u64_at(levels, at)?);
                at += TABLE_BYTES;
            }
        }
    }
    Some(numbers)
}

/// Whether the list of contents of a table fits its hash.
fn contents_are_whole(path: &Path) -> io::Result<bool> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let Some(contents_end) = length.checked_sub(TRAILER_BYTES as u64) else { return Ok(false) };
    let mut trailer = Vec::new();
    file.seek(SeekFrom::Start(contents_end))?;
    file.read_to_end(&mut trailer)?;
    let parts = || {
        let (hash, place) = trailer.strip_prefix(TRAILER_MAGIC)?.split_first_chunk()?;
        Some((u128::from_le_bytes(*hash), u64_at(place, 0)?, u64_at(place, 8)?))
    };
    let Some((hash, begin, bytes)) = parts() else { return Ok(false) };
    if begin.checked_add(bytes) != Some(contents_end) {
        return Ok(false);
    }
    let mut contents = vec![0; usize::try_from(bytes).unwrap_or(0)];
    file.seek(SeekFrom::Start(begin))?;
    file.read_exact(&mut contents)?;
    Ok(wide_hash(&contents) == hash)
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_journal_that_cannot_be_opened_is_not_left_out_of_the_notes() {
        let dir = tempfile::tempdir().unwrap();
        let notes = Notes::open(dir.path()).unwrap();
        let journal = |name: &str, at: &str| std::os::unix::fs::symlink(at, dir.path().join(name)).unwrap();
        journal("1.jnl", "nowhere");
        assert_eq!(notes.read(dir.path()).unwrap(), BTreeMap::new(), "fjall has removed it");
        // It leads to itself.
        journal("2.jnl", "2.jnl");
        assert!(notes.read(dir.path()).is_err());
    }
}
