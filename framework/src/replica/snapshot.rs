//! Snapshots on their way between nodes.
//!
//! Owns the chunks a snapshot is cut into, streaming them to a peer and staging them as they
//! arrive. Never touches rows in place: what arrives is staged, complete and checked before Raft
//! hears of it. A chunk out of order drops the whole snapshot; the leader sends it again.
//!
//! ```text
//!  chunk = version, header (group, index, term, number, part), payload
//!  snapshot = Rows* Meta* End(raft message)
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use perennial_core::id::{GroupId, LogIndex, MemberId, Term};
use perennial_core::replication::{FRAME_BYTES_MAX, Install, Outgoing, RaftMessage, RowOp};
use serde::{Deserialize, Serialize};

use super::handle::{BulkRefused, Outbound};
use super::rows::{GroupMeta, Row, RowError, RowIter, RowStore};

/// Payload of a chunk, in bytes; only a single large row makes a longer one.
const CHUNK_BYTES: usize = 256 * 1024;
/// Rows of a snapshot that is staged here, in bytes.
const STAGED_BYTES_MAX: u64 = 4 * 1024 * 1024 * 1024;
/// A machine's state in a snapshot, in bytes.
const META_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Rows written at once while a snapshot is installed, in bytes.
const INSTALL_BYTES: usize = 1024 * 1024;
/// Wait before a chunk is offered again to a link that is full.
pub(super) const RETRY: Duration = Duration::from_millis(5);
/// Refusals in a row after which a snapshot is given up: 10 s.
const RETRIES_MAX: u32 = 2000;
const CHUNK_VERSION: u8 = 1;
/// Lengths of key and value before each row.
const ROW_HEAD_BYTES: usize = 8;
/// Longest key of a row; ours are far shorter and the store takes none beyond 64 KiB.
const ROW_KEY_BYTES_MAX: usize = 16 * 1024;

/// Bytes that are not a chunk of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// Too long, of another version, or not decodable.
    #[error("the bytes are not a snapshot chunk of this version; close the link")]
    Malformed,
}

/// Why an arriving snapshot was given up. What had been staged of it is gone; its sender will try again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StageError {
    #[error("the rows cannot be staged; check the disk and its free space")]
    Folder(#[from] std::io::Error),
    #[error(
        "it has more than {STAGED_BYTES_MAX} bytes of rows or {META_BYTES_MAX} of state; spread the data over more partitions"
    )]
    TooLarge,
    #[error("a chunk is not made of whole rows; update the older node")]
    Malformed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Part {
    Rows,
    Meta,
    End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Header {
    group: GroupId,
    index: LogIndex,
    term: Term,
    number: u32,
    part: Part,
}

/// One piece of a snapshot.
#[derive(Debug)]
pub(crate) struct Chunk {
    header: Header,
    payload: Bytes,
}

impl Chunk {
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, ChunkError> {
        let (&CHUNK_VERSION, rest) = bytes.split_first().ok_or(ChunkError::Malformed)? else {
            return Err(ChunkError::Malformed);
        };
        if bytes.len() > FRAME_BYTES_MAX {
            return Err(ChunkError::Malformed);
        }
        let (header, payload) = postcard::take_from_bytes(rest).map_err(|_| ChunkError::Malformed)?;
        Ok(Self { header, payload: Bytes::copy_from_slice(payload) })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.payload.len()
    }

    pub(crate) fn group(&self) -> GroupId {
        self.header.group
    }
}

fn encode(header: Header, payload: &[u8]) -> Bytes {
    let mut bytes = Vec::with_capacity(40 + payload.len());
    bytes.push(CHUNK_VERSION);
    let written = postcard::to_io(&header, &mut bytes);
    assert!(written.is_ok(), "a header encodes into memory");
    bytes.extend_from_slice(payload);
    bytes.into()
}

fn push_row(rows: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    rows.extend((key.len() as u32).to_le_bytes());
    rows.extend((value.len() as u32).to_le_bytes());
    rows.extend(key);
    rows.extend(value);
}

/// A snapshot to be streamed.
pub(crate) struct SendJob {
    pub(crate) snapshot: Outgoing,
    pub(crate) rows: RowIter,
    pub(crate) machine: Vec<u8>,
}

/// The chunks of a snapshot, made one by one; `None` for a message without one.
pub(super) fn chunks(job: SendJob) -> Option<impl Iterator<Item = Result<Bytes, RowError>>> {
    let SendJob { snapshot: Outgoing { group, message, .. }, rows, machine } = job;
    let (index, term) = message.snapshot.as_ref().map(|meta| (meta.index, meta.term))?;
    let mut rows = rows.peekable();
    let row_chunks = std::iter::from_fn(move || {
        let mut payload = Vec::new();
        while let Some(row) = rows.next_if(|row| {
            row.as_ref().map_or(true, |(key, value)| {
                payload.is_empty() || payload.len() + key.len() + value.len() <= CHUNK_BYTES
            })
        }) {
            match row {
                Ok((key, value)) => push_row(&mut payload, &key, &value),
                Err(error) => return Some(Err(error)),
            }
        }
        (!payload.is_empty()).then_some(Ok((Part::Rows, payload)))
    });
    let metas: Vec<_> = machine.chunks(CHUNK_BYTES).map(|piece| Ok((Part::Meta, piece.to_vec()))).collect();
    let end = postcard::to_stdvec(&message).map_err(|_| RowError::Meta(group));
    let pieces = row_chunks.chain(metas).chain(std::iter::once(end.map(|end| (Part::End, end))));
    Some(pieces.zip(0..).map(move |(piece, number)| {
        piece.map(|(part, payload)| encode(Header { group, index, term, number, part }, &payload))
    }))
}

/// Streams a snapshot; returns whether every chunk was handed over. `pause` waits for [`RETRY`].
pub(crate) async fn stream(
    job: SendJob,
    outbound: &dyn Outbound,
    stopping: impl Fn() -> bool,
    pause: impl AsyncFn(),
) -> bool {
    let to = job.snapshot.to;
    let Some(chunks) = chunks(job) else { return false };
    for chunk in chunks {
        let Ok(chunk) = chunk else { return false };
        let mut retries = 0;
        loop {
            match outbound.bulk(to, chunk.clone()) {
                Ok(()) => break,
                Err(BulkRefused::NoLink) => return false,
                Err(BulkRefused::Full) if stopping() || retries == RETRIES_MAX => return false,
                Err(BulkRefused::Full) => pause().await,
            }
            retries += 1;
        }
    }
    true
}

/// A file in the staging folder, which nobody else has and which goes away with this.
pub(crate) struct StagedFile(PathBuf);

impl Drop for StagedFile {
    fn drop(&mut self) {
        // A file left over is removed when the folder is opened the next time.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Where arriving rows are kept.
enum Stage {
    File(StagedFile, BufWriter<File>),
    Memory(Vec<u8>),
}

struct Arriving {
    header: Header,
    stage: Stage,
    bytes: u64,
    machine: Vec<u8>,
}

/// A snapshot that has arrived whole.
pub(crate) struct Arrived {
    pub(crate) index: LogIndex,
    pub(crate) message: RaftMessage,
    pub(crate) machine: Vec<u8>,
    pub(crate) rows: StagedRows,
}

/// The rows of a snapshot that has arrived.
pub(crate) enum StagedRows {
    File { file: StagedFile, bytes: u64 },
    Memory(Vec<u8>),
}

/// Snapshots that are arriving, one for each group and sender.
pub(crate) struct Staging {
    dir: Option<PathBuf>,
    /// Files staged so far; no two have the same name, because one may be installed while the next arrives.
    files: u64,
    arriving: BTreeMap<(GroupId, MemberId), Arriving>,
}

impl Staging {
    /// With a folder, rows are staged there; it is emptied first.
    pub(crate) fn open(dir: Option<&Path>) -> std::io::Result<Self> {
        if let Some(dir) = dir {
            std::fs::create_dir_all(dir)?;
            for left_over in std::fs::read_dir(dir)? {
                std::fs::remove_file(left_over?.path())?;
            }
        }
        Ok(Self { dir: dir.map(Path::to_owned), files: 0, arriving: BTreeMap::new() })
    }

    fn begin(&mut self, header: Header) -> std::io::Result<Arriving> {
        let stage = match &self.dir {
            Some(dir) => {
                self.files += 1;
                let path = dir.join(format!("{}-{}.rows", header.group, self.files));
                let file = File::create_new(&path)?;
                Stage::File(StagedFile(path), BufWriter::new(file))
            }
            None => Stage::Memory(Vec::new()),
        };
        Ok(Arriving { header, stage, bytes: 0, machine: Vec::new() })
    }

    /// Takes a chunk; returns the snapshot with its last one.
    ///
    /// # Errors
    /// [`StageError`] when the snapshot was given up; its other chunks are ignored.
    pub(crate) fn take(&mut self, from: MemberId, chunk: Chunk) -> Result<Option<Arrived>, StageError> {
        let Chunk { header, payload } = chunk;
        let key = (header.group, from);
        let before = self.arriving.remove(&key);
        let mut arriving = if header.number == 0 {
            drop(before);
            self.begin(header)?
        } else {
            let next = before.filter(|a| {
                Header { part: header.part, number: header.number - 1, ..header }
                    == Header { part: header.part, ..a.header }
            });
            let Some(arriving) = next else { return Ok(None) };
            arriving
        };
        arriving.header = header;
        match header.part {
            // Checked here: once rows are being replaced there is no way back.
            Part::Rows if !is_whole_rows(&payload) => return Err(StageError::Malformed),
            Part::Rows => {
                arriving.bytes += payload.len() as u64;
                if arriving.bytes > STAGED_BYTES_MAX {
                    return Err(StageError::TooLarge);
                }
                match &mut arriving.stage {
                    Stage::File(_, file) => file.write_all(&payload)?,
                    Stage::Memory(rows) => rows.extend_from_slice(&payload),
                }
            }
            Part::Meta if arriving.machine.len() + payload.len() > META_BYTES_MAX => {
                return Err(StageError::TooLarge);
            }
            Part::Meta => arriving.machine.extend_from_slice(&payload),
            Part::End => return Ok(arriving.end(&payload)?),
        }
        self.arriving.insert(key, arriving);
        Ok(None)
    }
}

impl Arriving {
    fn end(self, payload: &[u8]) -> std::io::Result<Option<Arrived>> {
        let rows = match self.stage {
            Stage::Memory(rows) => StagedRows::Memory(rows),
            Stage::File(staged, mut file) => {
                file.flush()?;
                StagedRows::File { file: staged, bytes: self.bytes }
            }
        };
        let Header { index, term, .. } = self.header;
        let message: Option<RaftMessage> =
            postcard::take_from_bytes(payload).ok().filter(|(_, rest)| rest.is_empty()).map(|(m, _)| m);
        let message =
            message.filter(|m| m.snapshot.as_ref().is_some_and(|s| s.index == index && s.term == term));
        Ok(message.map(|message| Arrived { index, message, machine: self.machine, rows }))
    }
}

/// Whether bytes are rows as [`push_row`] writes them, each with a key.
fn is_whole_rows(mut bytes: &[u8]) -> bool {
    while let Some((key, rest)) = bytes.split_first_chunk::<4>() {
        let Some((value, rest)) = rest.split_first_chunk::<4>() else { return false };
        let (key, value) = (u32::from_le_bytes(*key) as usize, u32::from_le_bytes(*value) as usize);
        if !(1..=ROW_KEY_BYTES_MAX).contains(&key) || value > FRAME_BYTES_MAX {
            return false;
        }
        let Some(next) = rest.get(key + value..) else { return false };
        bytes = next;
    }
    bytes.is_empty()
}

/// Rows as they are staged in memory; `None` when they are not taken.
#[cfg(any(test, fuzzing))]
pub(super) fn stage_rows(bytes: &[u8]) -> Option<StagedRows> {
    is_whole_rows(bytes).then(|| StagedRows::Memory(bytes.to_vec()))
}

/// Reads one staged row; `None` at the end.
fn read_row(from: &mut impl Read) -> std::io::Result<Option<Row>> {
    let mut word = [0; 4];
    match from.read(&mut word[..1])? {
        0 => return Ok(None),
        _ => from.read_exact(&mut word[1..])?,
    }
    let key_bytes = u32::from_le_bytes(word) as usize;
    from.read_exact(&mut word)?;
    let value_bytes = u32::from_le_bytes(word) as usize;
    if key_bytes.max(value_bytes) > FRAME_BYTES_MAX {
        return Err(std::io::Error::from(std::io::ErrorKind::InvalidData));
    }
    let (mut key, mut value) = (vec![0; key_bytes], vec![0; value_bytes]);
    from.read_exact(&mut key)?;
    from.read_exact(&mut value)?;
    Ok(Some((key, value)))
}

/// Replaces a group's rows by a snapshot and makes that durable. Should it be interrupted, the
/// group has no checkpoint while its log begins behind one, and so takes a snapshot again.
pub(crate) fn install(
    rows: &dyn RowStore,
    install: Install,
    staged: &StagedRows,
    machine: Vec<u8>,
) -> Result<(), RowError> {
    match staged {
        StagedRows::Memory(rows_staged) => {
            let bytes = rows_staged.len() as u64;
            install_from(rows, install, &mut rows_staged.as_slice(), bytes, machine)
        }
        StagedRows::File { file, bytes } => {
            let file = File::open(&file.0).map_err(RowError::Staged)?;
            install_from(rows, install, &mut BufReader::new(file), *bytes, machine)
        }
    }
}

fn install_from(
    rows: &dyn RowStore,
    install: Install,
    staged: &mut impl Read,
    staged_bytes: u64,
    machine: Vec<u8>,
) -> Result<(), RowError> {
    let Install { group, index, term } = install;
    rows.wipe(group)?;
    let mut ops = Vec::new();
    let mut bytes = 0;
    let mut read = 0;
    while let Some((key, value)) = read_row(staged).map_err(RowError::Staged)? {
        read += (ROW_HEAD_BYTES + key.len() + value.len()) as u64;
        bytes += key.len() + value.len();
        ops.push(RowOp::Put { key, value });
        if bytes >= INSTALL_BYTES {
            rows.write(vec![(group, std::mem::take(&mut ops))])?;
            bytes = 0;
        }
    }
    // Rows that are missing would be missed by nobody: they must not get a checkpoint.
    if read != staged_bytes {
        return Err(RowError::Staged(ErrorKind::UnexpectedEof.into()));
    }
    rows.write(vec![(group, ops)])?;
    rows.put_meta(&[(group, GroupMeta { applied: index, term, machine })])?;
    rows.sync()
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::rows::MemoryRows;
    use super::*;
    use futures_util::FutureExt;
    use perennial_core::replication::{MessageKind, SnapshotMeta};
    use std::io::ErrorKind;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Lane {
        chunks: Mutex<Vec<Bytes>>,
        full_first: Mutex<u32>,
    }
    impl Outbound for Lane {
        fn raft(&self, _: MemberId, _: Bytes) {}
        fn bulk(&self, _: MemberId, chunk: Bytes) -> Result<(), BulkRefused> {
            let mut full = self.full_first.lock().unwrap();
            if *full > 0 {
                *full -= 1;
                return Err(BulkRefused::Full);
            }
            self.chunks.lock().unwrap().push(chunk);
            Ok(())
        }
    }

    fn message() -> RaftMessage {
        RaftMessage {
            kind: MessageKind::Snapshot,
            term: Term(3),
            log_term: Term(0),
            index: LogIndex(0),
            commit: LogIndex(0),
            commit_term: Term(0),
            reject: false,
            reject_hint: LogIndex(0),
            request_snapshot: LogIndex(0),
            priority: 0,
            context: Bytes::new(),
            entries: vec![],
            snapshot: Some(SnapshotMeta { index: LogIndex(9), term: Term(2), voters: vec![MemberId(1)] }),
        }
    }

    fn chunks(store: &MemoryRows) -> Vec<Bytes> {
        chunks_of(GroupId::SYSTEM, store)
    }

    #[test]
    fn a_staged_row_that_says_it_is_longer_than_any_is_not_read() {
        let read = |key: &[u8], key_bytes: usize, value_bytes: usize| {
            let lengths = [key_bytes, value_bytes].map(|bytes| u32::try_from(bytes).unwrap().to_le_bytes());
            let bytes = [lengths.concat(), key.to_vec(), vec![7; 10]].concat();
            read_row(&mut bytes.as_slice()).map_err(|error| error.kind())
        };
        assert_eq!(read(b"key", 3, 10), Ok(Some((b"key".to_vec(), vec![7; 10]))));
        let (damaged, torn) = (Err(ErrorKind::InvalidData), Err(ErrorKind::UnexpectedEof));
        assert_eq!(read(b"key", FRAME_BYTES_MAX + 1, 10), damaged);
        assert_eq!(read(b"key", 3, u32::MAX as usize), damaged);
        assert_eq!(read(b"key", 3, FRAME_BYTES_MAX), torn);
    }

    /// The chunks of a snapshot; the rows are those of the system partition.
    pub(crate) fn chunks_of(group: GroupId, store: &MemoryRows) -> Vec<Bytes> {
        let lane = Lane { full_first: Mutex::new(3), ..Lane::default() };
        let snapshot = Outgoing { to: MemberId(2), group, message: message() };
        let job = SendJob {
            snapshot,
            rows: store.range(GroupId::SYSTEM, b"", None),
            machine: vec![7; CHUNK_BYTES + 1],
        };
        assert!(stream(job, &lane, || false, async || ()).now_or_never().unwrap());
        lane.chunks.into_inner().unwrap()
    }

    pub(crate) fn store(rows: usize, size: usize) -> MemoryRows {
        let store = MemoryRows::default();
        let put = |n: usize| RowOp::Put { key: n.to_be_bytes().to_vec(), value: vec![n as u8; size] };
        store.write(vec![(GroupId::SYSTEM, (0..rows).map(put).collect())]).unwrap();
        store
    }

    #[test]
    fn a_streamed_snapshot_installs_the_same_rows() {
        let dir = tempfile::tempdir().unwrap();
        for staging in [None, Some(dir.path())] {
            let source = store(500, 2000);
            let mut staging = Staging::open(staging).unwrap();
            let mut arrived = None;
            let all = chunks(&source);
            assert!(all.len() > 5 && all.iter().all(|c| c.len() < CHUNK_BYTES + 4096));
            for chunk in all {
                assert!(arrived.is_none());
                arrived = staging.take(MemberId(1), Chunk::decode(&chunk).unwrap()).unwrap();
            }
            let arrived = arrived.unwrap();
            assert_eq!(arrived.message, message());
            let target = store(600, 10);
            let order = Install { group: GroupId::SYSTEM, index: LogIndex(9), term: Term(2) };
            install(&target, order, &arrived.rows, arrived.machine.clone()).unwrap();
            let all = |s: &MemoryRows| s.scan(GroupId::SYSTEM, b"", None, 9999).unwrap();
            assert_eq!(all(&source), all(&target));
            let meta = target.meta(GroupId::SYSTEM).unwrap().unwrap();
            assert_eq!(
                (meta.applied, meta.term, meta.machine.len()),
                (LogIndex(9), Term(2), CHUNK_BYTES + 1)
            );
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "staged files are removed");
    }

    #[test]
    fn rows_that_are_cut_or_have_impossible_keys_give_the_snapshot_up() {
        let mut whole = Vec::new();
        push_row(&mut whole, b"key", b"value");
        let long = |key: usize| {
            let mut rows = Vec::new();
            push_row(&mut rows, &vec![1; key], b"");
            rows
        };
        for (rows, sound) in [
            (whole.clone(), true),
            (whole[..whole.len() - 1].to_vec(), false),
            (vec![0; 7], false),
            (long(0), false),
            (long(ROW_KEY_BYTES_MAX), true),
            (long(ROW_KEY_BYTES_MAX + 1), false),
        ] {
            let (index, term) = (LogIndex(9), Term(2));
            let header = Header { group: GroupId::SYSTEM, index, term, number: 0, part: Part::Rows };
            let mut staging = Staging::open(None).unwrap();
            let taken = staging.take(MemberId(1), Chunk::decode(&encode(header, &rows)).unwrap());
            assert_eq!(taken.is_ok(), sound);
            assert_eq!(staging.arriving.len(), usize::from(sound));
        }
    }

    fn files(dir: &Path) -> usize {
        std::fs::read_dir(dir).unwrap().count()
    }

    #[test]
    fn a_snapshot_that_arrives_again_leaves_the_one_being_installed_alone() {
        let dir = tempfile::tempdir().unwrap();
        let source = store(500, 2000);
        let all = chunks(&source);
        let mut staging = Staging::open(Some(dir.path())).unwrap();
        let mut take = |chunk: &Bytes| staging.take(MemberId(1), Chunk::decode(chunk).unwrap()).unwrap();
        let arrived = all.iter().find_map(&mut take).unwrap();
        assert!(take(&all[0]).is_none(), "the same one begins anew");
        let target = MemoryRows::default();
        let order = Install { group: GroupId::SYSTEM, index: LogIndex(9), term: Term(2) };
        install(&target, order, &arrived.rows, vec![]).unwrap();
        assert_eq!(target.scan(GroupId::SYSTEM, b"", None, 9999).unwrap().len(), 500);
        drop(arrived);
        let again = all[1..].iter().find_map(take).unwrap();
        install(&target, order, &again.rows, vec![]).unwrap();
        assert_eq!(target.scan(GroupId::SYSTEM, b"", None, 9999).unwrap().len(), 500);
    }

    #[test]
    fn rows_missing_at_the_end_of_a_staged_file_are_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let mut staging = Staging::open(Some(dir.path())).unwrap();
        let take = |chunk: &Bytes| staging.take(MemberId(1), Chunk::decode(chunk).unwrap()).unwrap();
        let arrived = chunks(&store(500, 2000)).iter().find_map(take).unwrap();
        let StagedRows::File { file, bytes } = &arrived.rows else { panic!("rows are staged in a file") };
        let short = bytes - (ROW_HEAD_BYTES + 8 + 2000) as u64;
        File::options().write(true).open(&file.0).unwrap().set_len(short).unwrap();
        let target = MemoryRows::default();
        let order = Install { group: GroupId::SYSTEM, index: LogIndex(9), term: Term(2) };
        let refused = install(&target, order, &arrived.rows, vec![]);
        assert!(matches!(refused, Err(RowError::Staged(_))), "{refused:?}");
        assert_eq!(target.meta(GroupId::SYSTEM).unwrap(), None, "no checkpoint covers such rows");
    }

    #[test]
    fn a_snapshot_given_up_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let all = chunks(&store(500, 2000));
        let mut staging = Staging::open(Some(dir.path())).unwrap();
        let mut take = |n: usize| staging.take(MemberId(1), Chunk::decode(&all[n]).unwrap());
        assert!(take(0).unwrap().is_none());
        assert_eq!(files(dir.path()), 1);
        assert!(take(2).unwrap().is_none(), "a chunk is missing");
        assert_eq!(files(dir.path()), 0);
        std::fs::remove_dir(dir.path()).unwrap();
        assert!(matches!(take(0), Err(StageError::Folder(_))));
        assert!(take(1).unwrap().is_none(), "the rest is ignored");
        std::fs::create_dir(dir.path()).unwrap();
        assert!(take(0).unwrap().is_none() && take(1).unwrap().is_none());
        assert_eq!(files(dir.path()), 1, "the next attempt is taken");
    }

    #[test]
    fn a_missing_or_foreign_chunk_drops_the_snapshot() {
        let all = chunks(&store(500, 2000));
        let mut staging = Staging::open(None).unwrap();
        for (n, chunk) in all.iter().enumerate().filter(|(n, _)| *n != 2) {
            let from = MemberId(1);
            assert!(staging.take(from, Chunk::decode(chunk).unwrap()).unwrap().is_none(), "chunk {n}");
        }
        let (last, first) = all.split_last().unwrap();
        for chunk in first {
            staging.take(MemberId(1), Chunk::decode(chunk).unwrap()).unwrap();
        }
        assert!(staging.take(MemberId(3), Chunk::decode(last).unwrap()).unwrap().is_none());
        assert!(staging.take(MemberId(1), Chunk::decode(last).unwrap()).unwrap().is_some());
        assert!(Chunk::decode(b"").is_err() && Chunk::decode(b"\x02abc").is_err());
    }
}
