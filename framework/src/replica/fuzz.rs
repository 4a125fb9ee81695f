//! What fuzzing needs of the replica's insides.

use bytes::Bytes;
use perennial_core::id::{GroupId, LogIndex, MemberId, Term};
use perennial_core::replication::{Install, MessageKind, Outgoing, RaftMessage, SnapshotMeta};

use super::rows::{MemoryRows, RowStore};
use super::snapshot::{Chunk, SendJob, Staging, chunks, install, stage_rows};

const GROUP: GroupId = GroupId::SYSTEM;

/// Installs rows as they would be staged, if they are taken at all.
pub(crate) fn read_rows(bytes: &[u8]) {
    let Some(staged) = stage_rows(bytes) else { return };
    let order = Install { group: GROUP, index: LogIndex(1), term: Term(1) };
    install(&MemoryRows::default(), order, &staged, Vec::new()).expect("what is staged can be installed");
}

pub(crate) fn row_seed() -> Vec<u8> {
    let mut row = 3u32.to_le_bytes().to_vec();
    row.extend(5u32.to_le_bytes());
    row.extend(b"keyvalue");
    row
}

/// Takes chunks, each behind two bytes of length, and installs the snapshot they make.
pub(crate) fn stage(mut bytes: &[u8]) {
    let mut staging = Staging::open(None).expect("memory needs no folder");
    while let Some((len, rest)) = bytes.split_first_chunk::<2>() {
        let (chunk, rest) = rest.split_at(usize::from(u16::from_le_bytes(*len)).min(rest.len()));
        bytes = rest;
        let Ok(chunk) = Chunk::decode(chunk) else { continue };
        let group = chunk.group();
        if let Ok(Some(arrived)) = staging.take(MemberId(2), chunk) {
            let meta = arrived.message.snapshot.as_ref().expect("a snapshot arrives with its position");
            let order = Install { group, index: meta.index, term: meta.term };
            install(&MemoryRows::default(), order, &arrived.rows, arrived.machine)
                .expect("what has arrived can be installed");
        }
    }
}

pub(crate) fn chunk_seeds() -> Vec<Vec<u8>> {
    let snapshot = SnapshotMeta { index: LogIndex(9), term: Term(2), voters: [1, 2].map(MemberId).into() };
    let position = LogIndex(0);
    let message = RaftMessage {
        kind: MessageKind::Snapshot,
        term: Term(2),
        log_term: Term(0),
        index: position,
        commit: position,
        commit_term: Term(0),
        reject: false,
        reject_hint: position,
        request_snapshot: position,
        priority: 0,
        context: Bytes::new(),
        entries: Vec::new(),
        snapshot: Some(snapshot),
    };
    let store = MemoryRows::default();
    let put = |n: u8| perennial_core::replication::RowOp::Put { key: vec![n], value: vec![n; 20] };
    store.write(vec![(GROUP, (1..5).map(put).collect())]).expect("memory takes rows");
    let snapshot = Outgoing { to: MemberId(2), group: GROUP, message };
    let job = SendJob { snapshot, rows: store.range(GROUP, b"", None), machine: b"machine".to_vec() };
    let mut all = Vec::new();
    for chunk in chunks(job).expect("a snapshot has its position") {
        let chunk = chunk.expect("memory gives its rows");
        all.extend((chunk.len() as u16).to_le_bytes());
        all.extend(&chunk);
    }
    vec![all]
}
