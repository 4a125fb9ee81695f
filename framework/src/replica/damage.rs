//! Damage in the files of the log that raft-engine would take for a torn end.
//!
//! Owns a look at the last file of each queue, before raft-engine opens it and cuts it off at the first
//! unreadable byte, with whatever was flushed behind it. Two things tell damage from a tear:
//!
//! - The file ends before the length up to which it is noted to be durable ([`super::files`]), or is gone. The
//!   first files of a queue may be gone when the log went on to files without a note: a build that makes no
//!   notes has written there, and removed what was not needed any more.
//! - In the append queue, a whole batch follows the unreadable bytes: each batch there is flushed before
//!   the next one is written, so a tear is the last thing in the file. Within the torn batch nothing is
//!   searched for: the bytes there are those of callers. Batches of the rewrite queue are flushed by the dozen,
//!   before what they replace is removed.
//!
//! Of the other files only the length is looked at, as raft-engine refuses to open what is unreadable in
//! their midst but not a file that ends early between two batches. Never writes.
//!
//! The layout is that of raft-engine 0.4.2; numbers are big-endian, checksums little-endian:
//!
//! ```text
//!  file  = magic, u64 version, u64 alignment, batch*
//!  batch = u56 length, u8 compression, u64 offset of items, [entries, crc32], items, crc32 ^ file number
//! ```

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::files::{Ends, LogFile, Queue};

const MAGIC: &[u8] = b"RAFT-LOG-FILE-HEADER-9986AB3E47F320B394C8E84916EB0ED5";
/// Version 2 without alignment, which is what our settings make.
const FORMAT: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0];
/// Before the first batch of a file.
pub(crate) const FILE_HEAD_BYTES: u64 = (MAGIC.len() + FORMAT.len()) as u64;
const HEAD_BYTES: usize = 16;
const CHECKSUM_BYTES: usize = 4;
/// What our settings make.
const NO_COMPRESSION: u8 = 0;
/// Longest items of a batch that is searched for, in bytes: what is read as their length may be noise.
const SEARCHED_ITEMS_BYTES_MAX: usize = 1024 * 1024;

/// Where a file has lost some of what was flushed, if one has.
pub(crate) fn find(dir: &Path, ends: &Ends) -> io::Result<Option<(PathBuf, u64)>> {
    let files = files(dir)?;
    for (file, end) in ends {
        let length = files.get(file).copied().unwrap_or(0);
        let first = files.keys().find(|found| found.queue == file.queue);
        let removed = || Ok::<_, io::Error>(first > Some(file) && went_on_without_notes(dir, &files, ends)?);
        if length < *end && !removed()? {
            return Ok(Some((dir.join(file.name()), length)));
        }
    }
    for queue in [Queue::Append, Queue::Rewrite] {
        let Some(last) = files.keys().rfind(|file| file.queue == queue) else { continue };
        let path = dir.join(last.name());
        let bytes = std::fs::read(&path)?;
        // The number goes into checksums with its lower half.
        let number = last.number as u32;
        let end = readable(&bytes, number);
        let flushed = ends.get(last).is_some_and(|flushed| (end as u64) < *flushed);
        if flushed || (queue == Queue::Append && a_batch_follows(&bytes, end, number)) {
            return Ok(Some((path, end as u64)));
        }
    }
    Ok(None)
}

/// Whether batches were written to files behind all that were ever noted.
fn went_on_without_notes(dir: &Path, files: &BTreeMap<LogFile, u64>, ends: &Ends) -> io::Result<bool> {
    let append = |file: &&LogFile| file.queue == Queue::Append;
    let noted = ends.keys().rfind(append);
    for file in files.keys().filter(append).filter(|file| Some(*file) > noted) {
        if readable(&std::fs::read(dir.join(file.name()))?, file.number as u32) as u64 > FILE_HEAD_BYTES {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The files of the log and their lengths.
fn files(dir: &Path) -> io::Result<BTreeMap<LogFile, u64>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if let Some(file) = LogFile::of(&entry.path()) {
            files.insert(file, entry.metadata()?.len());
        }
    }
    Ok(files)
}

/// Up to where raft-engine reads a file.
fn readable(file: &[u8], number: u32) -> usize {
    if !file.strip_prefix(MAGIC).is_some_and(|rest| rest.starts_with(&FORMAT)) {
        return 0;
    }
    let mut at = FILE_HEAD_BYTES as usize;
    let mut last = None;
    while let Some(batch) = Batch::at(file, at).filter(|batch| batch.items_are_whole(number)) {
        at += batch.bytes.len();
        last = Some(batch);
    }
    // The entries of the last one only: those of others are looked at when they are read.
    match last.filter(|last| !last.entries_are_whole()) {
        Some(last) => at - last.bytes.len(),
        None => at,
    }
}

fn a_batch_follows(file: &[u8], at: usize, number: u32) -> bool {
    let follows = |at| {
        Batch::at(file, at).is_some_and(|batch| {
            batch.bytes.len() - batch.items <= SEARCHED_ITEMS_BYTES_MAX
                && batch.items_are_whole(number)
                && batch.entries_are_whole()
        })
    };
    // Room that was made and not used is zeros, and no batch begins there.
    let written = file.iter().rposition(|byte| *byte != 0).unwrap_or(0);
    let begin = Batch::at(file, at).map_or(at + 1, |torn| at + torn.bytes.len());
    (begin..written).any(follows)
}

struct Batch<'a> {
    bytes: &'a [u8],
    /// Where its items begin.
    items: usize,
}

impl<'a> Batch<'a> {
    /// What a head at this position says, if it can be one.
    fn at(file: &'a [u8], at: usize) -> Option<Self> {
        let rest = file.get(at..)?;
        let (length, offset) = rest.get(..HEAD_BYTES)?.split_first_chunk::<8>()?;
        let length = u64::from_be_bytes(*length);
        let items = usize::try_from(u64::from_be_bytes(*offset.first_chunk()?)).ok()?;
        let bytes = rest.get(..usize::try_from(length >> 8).ok()?)?;
        let items_end = bytes.len().saturating_sub(CHECKSUM_BYTES);
        let sound = length as u8 == NO_COMPRESSION && (HEAD_BYTES..items_end).contains(&items);
        sound.then_some(Self { bytes, items })
    }

    fn items_are_whole(&self, number: u32) -> bool {
        is_whole(&self.bytes[self.items..], number)
    }

    fn entries_are_whole(&self) -> bool {
        self.items == HEAD_BYTES || is_whole(&self.bytes[HEAD_BYTES..self.items], 0)
    }
}

/// Whether a block fits the checksum at its end.
fn is_whole(block: &[u8], signature: u32) -> bool {
    block.split_last_chunk::<CHECKSUM_BYTES>().is_some_and(|(content, checksum)| {
        crc32fast::hash(content) == u32::from_le_bytes(*checksum) ^ signature
    })
}
