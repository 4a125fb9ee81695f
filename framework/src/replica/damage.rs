//! Damage in the active file of the log.
//!
//! Owns a look at the file that was last appended to, before raft-engine opens it. raft-engine takes
//! the first unreadable byte there for a torn end and cuts the file off, with whatever was flushed
//! behind it. But each batch is flushed before the next one is written: a tear is the last thing in the
//! file, and a whole batch behind unreadable bytes says that the disk has lost what was durable. Never
//! writes. Damage within the last batch cannot be told from a tear. The files of the rewrite queue are
//! not looked at: batches there are flushed by the dozen, before what they replace is removed.
//!
//! The layout is that of raft-engine 0.4.2; numbers are big-endian, checksums little-endian:
//!
//! ```text
//!  file  = magic, u64 version, u64 alignment, batch*
//!  batch = u56 length, u8 compression, u64 offset of items, [entries, crc32], items, crc32 ^ file number
//! ```

use std::io;
use std::path::{Path, PathBuf};

const SUFFIX: &str = ".raftlog";
/// Digits of the file's number, with which its name begins.
const NUMBER_DIGITS: usize = 16;
const MAGIC: &[u8] = b"RAFT-LOG-FILE-HEADER-9986AB3E47F320B394C8E84916EB0ED5";
/// Version 2 without alignment, which is what our settings make.
const FORMAT: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0];
const HEAD_BYTES: usize = 16;
const CHECKSUM_BYTES: usize = 4;
/// Highest number of a compression.
const COMPRESSION_MAX: u8 = 1;
/// Longest items of a batch that is searched for, in bytes: what is read as their length may be noise.
const SEARCHED_ITEMS_BYTES_MAX: usize = 1024 * 1024;

/// Where the file that was last appended to is unreadable though more follows, if it is.
pub(crate) fn find(dir: &Path) -> io::Result<Option<(PathBuf, u64)>> {
    let Some((number, path)) = active_file(dir)? else { return Ok(None) };
    let bytes = std::fs::read(&path)?;
    // The number goes into checksums with its lower half.
    Ok(damage(&bytes, number as u32).map(|at| (path, at as u64)))
}

fn active_file(dir: &Path) -> io::Result<Option<(u64, PathBuf)>> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries?,
    };
    let mut last = None;
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).filter(|name| name.ends_with(SUFFIX));
        let number = name.and_then(|name| name.get(..NUMBER_DIGITS)?.parse::<u64>().ok());
        last = last.max(number.map(|number| (number, path)));
    }
    Ok(last)
}

fn damage(file: &[u8], number: u32) -> Option<usize> {
    let mut at = 0;
    if file.strip_prefix(MAGIC).is_some_and(|rest| rest.starts_with(&FORMAT)) {
        at = MAGIC.len() + FORMAT.len();
        while let Some(batch) = Batch::at(file, at).filter(|batch| batch.items_are_whole(number)) {
            at += batch.bytes.len();
        }
    }
    let follows = |at| {
        Batch::at(file, at).is_some_and(|batch| {
            batch.bytes.len() - batch.items <= SEARCHED_ITEMS_BYTES_MAX
                && batch.items_are_whole(number)
                && batch.entries_are_whole()
        })
    };
    // Room that was made and not used is zeros, and no batch begins there.
    let written = file.iter().rposition(|byte| *byte != 0).unwrap_or(0);
    (at + 1..written).any(follows).then_some(at)
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
        let sound = length as u8 <= COMPRESSION_MAX && (HEAD_BYTES..items_end).contains(&items);
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
