//! Rows on their way to the store.
//!
//! Owns what was applied since the last checkpoint. A row that changes many times between two
//! checkpoints reaches the store once, which is where most of the cost of applying would go: an insert
//! into the store's memory table and journal for each turn. Nothing is lost with the buffer that is not
//! applied again from the log, because rows count as durable only below a checkpoint, and a group's
//! rows are handed on before its checkpoint is. The idea is a database's buffer pool with a redo log.
//!
//! Nobody reads from the disk while holding a group's changes: the replica thread would wait with it.
//! A row is in the store before it leaves the buffer, so a reader who has not found it here finds it
//! there, or a later one; a range of the store is taken, though not read, under the lock.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use perennial_core::id::GroupId;
use perennial_core::replication::RowOp;

use super::rows::{GroupMeta, Row, RowError, RowIter, RowStore};

/// Bytes of buffered rows above which all of them are handed on at once.
const BUFFER_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Changed rows of a group; `None`: deleted.
type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// A store behind a buffer.
pub struct BufferedRows<S> {
    store: S,
    groups: RwLock<BTreeMap<GroupId, Arc<Mutex<Changes>>>>,
    bytes: AtomicUsize,
}

impl<S: RowStore> BufferedRows<S> {
    /// Puts a buffer in front of a store.
    #[must_use]
    pub fn new(store: S) -> Self {
        Self { store, groups: RwLock::default(), bytes: AtomicUsize::new(0) }
    }

    fn changes(&self, group: GroupId) -> Arc<Mutex<Changes>> {
        let groups = self.groups.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(changes) = groups.get(&group) {
            return changes.clone();
        }
        drop(groups);
        self.groups.write().unwrap_or_else(PoisonError::into_inner).entry(group).or_default().clone()
    }

    /// Hands a group's rows on; the lock is held, so that no reader misses one in between.
    fn hand_on(&self, group: GroupId, changes: &mut Changes) -> Result<(), RowError> {
        if changes.is_empty() {
            return Ok(());
        }
        let mut bytes = 0;
        let ops = changes.iter().map(|(key, value)| {
            bytes += size(key, value.as_ref());
            match value {
                Some(value) => RowOp::Put { key: key.clone(), value: value.clone() },
                None => RowOp::Delete { key: key.clone() },
            }
        });
        let ops = ops.collect();
        self.store.write(vec![(group, ops)])?;
        changes.clear();
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        Ok(())
    }

    fn hand_on_all(&self) -> Result<(), RowError> {
        let groups: Vec<_> = {
            let groups = self.groups.read().unwrap_or_else(PoisonError::into_inner);
            groups.iter().map(|(group, changes)| (*group, changes.clone())).collect()
        };
        groups.into_iter().try_for_each(|(group, changes)| self.hand_on(group, &mut lock(&changes)))
    }

    fn set(&self, changes: &mut Changes, key: Vec<u8>, value: Option<Vec<u8>>) {
        let key_bytes = key.len();
        let after = size(&key, value.as_ref());
        let before = changes.insert(key, value).map_or(0, |old| key_bytes + old.map_or(0, |v| v.len()));
        self.bytes.fetch_add(after, Ordering::Relaxed);
        self.bytes.fetch_sub(before, Ordering::Relaxed);
    }

    fn carry_out(&self, group: GroupId, changes: &mut Changes, op: RowOp) -> Result<(), RowError> {
        match op {
            RowOp::Put { key, value } => self.set(changes, key, Some(value)),
            RowOp::Delete { key } => self.set(changes, key, None),
            RowOp::DeleteRange { from, to } if from < to => {
                let buffered: Vec<_> =
                    changes.range(from.clone()..to.clone()).map(|(k, _)| k.clone()).collect();
                for key in buffered {
                    if let Some(value) = changes.remove(&key) {
                        self.bytes.fetch_sub(size(&key, value.as_ref()), Ordering::Relaxed);
                    }
                }
                for (key, _) in self.store.scan(group, &from, Some(&to), usize::MAX)? {
                    self.set(changes, key, None);
                }
            }
            RowOp::DeleteRange { .. } => {}
        }
        Ok(())
    }
}

fn lock(changes: &Mutex<Changes>) -> MutexGuard<'_, Changes> {
    changes.lock().unwrap_or_else(PoisonError::into_inner)
}

fn size(key: &[u8], value: Option<&Vec<u8>>) -> usize {
    key.len() + value.map_or(0, Vec::len)
}

impl<S: RowStore> RowStore for BufferedRows<S> {
    fn get(&self, group: GroupId, key: &[u8]) -> Result<Option<Vec<u8>>, RowError> {
        let buffered = lock(&self.changes(group)).get(key).cloned();
        buffered.map_or_else(|| self.store.get(group, key), Ok)
    }

    fn scan(
        &self,
        group: GroupId,
        from: &[u8],
        to: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Row>, RowError> {
        if limit == 0 || to.is_some_and(|to| from >= to) {
            return Ok(Vec::new());
        }
        let changes = self.changes(group);
        let (stored, buffered) = {
            let changes = lock(&changes);
            let until = to.map_or(Bound::Unbounded, Bound::Excluded);
            let mut buffered = Vec::new();
            let mut rows = 0;
            for (key, value) in changes.range::<[u8], _>((Bound::Included(from), until)) {
                rows += usize::from(value.is_some());
                buffered.push((key.clone(), value.clone()));
                if rows == limit {
                    // What comes later is beyond the limit, whatever the store has.
                    break;
                }
            }
            (self.store.range(group, from, to), buffered)
        };
        merge(stored, buffered, limit)
    }

    fn range(&self, group: GroupId, from: &[u8], to: Option<&[u8]>) -> RowIter {
        let changes = self.changes(group);
        let mut changes = lock(&changes);
        match self.hand_on(group, &mut changes) {
            Ok(()) => self.store.range(group, from, to),
            Err(error) => Box::new(std::iter::once(Err(error))),
        }
    }

    fn write(&self, batch: Vec<(GroupId, Vec<RowOp>)>) -> Result<(), RowError> {
        for (group, ops) in batch {
            let changes = self.changes(group);
            let mut changes = lock(&changes);
            ops.into_iter().try_for_each(|op| self.carry_out(group, &mut changes, op))?;
        }
        if self.bytes.load(Ordering::Relaxed) > BUFFER_BYTES_MAX { self.hand_on_all() } else { Ok(()) }
    }

    fn meta(&self, group: GroupId) -> Result<Option<GroupMeta>, RowError> {
        self.store.meta(group)
    }

    fn put_meta(&self, metas: &[(GroupId, GroupMeta)]) -> Result<(), RowError> {
        for (group, _) in metas {
            let changes = self.changes(*group);
            self.hand_on(*group, &mut lock(&changes))?;
        }
        self.store.put_meta(metas)
    }

    fn sync(&self) -> Result<(), RowError> {
        self.hand_on_all()?;
        self.store.sync()
    }

    fn wipe(&self, group: GroupId) -> Result<(), RowError> {
        // Taken out first: nothing is handed on to the store any more, and nobody waits for its disk.
        let changes = std::mem::take(&mut *lock(&self.changes(group)));
        let bytes: usize = changes.iter().map(|(key, value)| size(key, value.as_ref())).sum();
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.store.wipe(group)
    }

    fn close(&self) {
        self.store.close();
    }
}

/// Up to `limit` rows of both sides in order, the buffered ones winning.
fn merge(
    stored: RowIter,
    buffered: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    limit: usize,
) -> Result<Vec<Row>, RowError> {
    let mut found = Vec::new();
    let mut buffered = buffered.into_iter().peekable();
    for row in stored {
        let (key, value) = row?;
        let mut changed = false;
        while let Some((at, value)) = buffered.next_if(|(at, _)| *at <= key) {
            changed = at == key;
            found.extend(value.map(|value| (at, value)));
        }
        if !changed {
            found.push((key, value));
        }
        if found.len() >= limit {
            break;
        }
    }
    found.extend(buffered.filter_map(|(key, value)| Some((key, value?))));
    found.truncate(limit);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::rows::tests::WatchedRows;
    use crate::replica::{FjallRows, MemoryRows};
    use perennial_core::id::PartitionId;
    use proptest::prelude::*;
    use std::sync::mpsc;
    use std::time::Duration;

    fn op() -> impl Strategy<Value = RowOp> {
        let key = || prop::collection::vec(0u8..4, 1..4);
        prop_oneof![
            4 => (key(), prop::collection::vec(any::<u8>(), 0..3)).prop_map(|(key, value)| RowOp::Put { key, value }),
            2 => key().prop_map(|key| RowOp::Delete { key }),
            1 => (key(), key()).prop_map(|(from, to)| RowOp::DeleteRange { from, to }),
        ]
    }

    proptest! {
        #[test]
        fn a_buffer_is_not_noticed_by_readers(
            steps in prop::collection::vec((op(), any::<bool>()), 0..60),
            from in prop::collection::vec(0u8..4, 0..3),
            to in prop::option::of(prop::collection::vec(0u8..4, 0..3)),
            limit in 0usize..40,
        ) {
            let group = GroupId::of(PartitionId(0));
            let plain = MemoryRows::default();
            let buffered = BufferedRows::new(MemoryRows::default());
            for (op, sync) in steps {
                plain.write(vec![(group, vec![op.clone()])]).unwrap();
                buffered.write(vec![(group, vec![op])]).unwrap();
                if sync {
                    buffered.sync().unwrap();
                }
            }
            let wanted = plain.scan(group, &from, to.as_deref(), limit).unwrap();
            prop_assert_eq!(buffered.scan(group, &from, to.as_deref(), limit).unwrap(), wanted);
            for (key, value) in plain.scan(group, &[], None, usize::MAX).unwrap() {
                prop_assert_eq!(buffered.get(group, &key).unwrap(), Some(value));
            }
            let all: Vec<_> = buffered.range(group, &[], None).map(Result::unwrap).collect();
            prop_assert_eq!(all, plain.scan(group, &[], None, usize::MAX).unwrap());
            buffered.wipe(group).unwrap();
            prop_assert_eq!(buffered.scan(group, &[], None, 9).unwrap(), vec![]);
            prop_assert_eq!(buffered.bytes.load(Ordering::Relaxed), 0);
        }
    }
    const G: GroupId = GroupId::SYSTEM;

    fn key(n: u64) -> Vec<u8> {
        n.to_be_bytes().to_vec()
    }

    /// The rows of a version: some come and go from version to version.
    fn rows_of(version: u64) -> Vec<Row> {
        let there = |n: &u64| *n == 0 || !(version + n).is_multiple_of(3);
        (0..20).filter(there).map(|n| (key(n), key(version))).collect()
    }

    fn put(key: Vec<u8>, value: Vec<u8>) -> RowOp {
        RowOp::Put { key, value }
    }

    /// One version after the other is written while it is handed on and read by others.
    fn readers_see_one_version_at_a_time(store: impl RowStore) {
        let store = BufferedRows::new(store);
        let write = |version| {
            let gone = RowOp::DeleteRange { from: key(1), to: key(12) };
            let mut ops = vec![gone];
            ops.extend((12..20).map(|n| RowOp::Delete { key: key(n) }));
            ops.extend(rows_of(version).into_iter().map(|(key, value)| put(key, value)));
            store.write(vec![(G, ops)]).unwrap();
        };
        write(0);
        let written = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|threads| {
            threads.spawn(|| {
                (1..400).for_each(write);
                written.store(true, Ordering::Relaxed);
            });
            threads.spawn(|| {
                while !written.load(Ordering::Relaxed) {
                    store.sync().unwrap();
                    std::thread::yield_now();
                }
            });
            for limit in [7, usize::MAX] {
                let (store, written) = (&store, &written);
                threads.spawn(move || {
                    let mut last = 0;
                    while !written.load(Ordering::Relaxed) {
                        let found = store.scan(G, &[], None, limit).unwrap();
                        let version = u64::from_be_bytes(found[0].1.as_slice().try_into().unwrap());
                        assert!(version >= last, "time does not go back");
                        assert!(found.iter().eq(rows_of(version).iter().take(limit)), "{found:?}");
                        let row = store.get(G, &key(0)).unwrap().expect("it is always there");
                        last = u64::from_be_bytes(row.try_into().unwrap());
                        assert!(last >= version, "time does not go back");
                    }
                });
            }
        });
        assert_eq!(store.scan(G, &[], None, usize::MAX).unwrap(), rows_of(399));
    }

    #[test]
    fn readers_see_one_version_at_a_time_in_memory() {
        readers_see_one_version_at_a_time(MemoryRows::default());
    }

    #[test]
    fn readers_see_one_version_at_a_time_on_disk() {
        let dir = tempfile::tempdir().unwrap();
        readers_see_one_version_at_a_time(FjallRows::open(dir.path(), 1 << 20, 1 << 20).unwrap());
    }

    #[test]
    fn a_reader_who_waits_for_the_disk_keeps_no_writer_waiting() {
        for slow in ["get", "row"] {
            let (enter, entered) = mpsc::sync_channel(1);
            let (leave, left) = mpsc::sync_channel::<()>(1);
            let left = Arc::new(Mutex::new(left));
            let rows = WatchedRows(MemoryRows::default(), move |operation| {
                if operation == slow {
                    enter.send(()).unwrap();
                    // Ends when the other side is dropped, too.
                    let _ = left.lock().unwrap().recv();
                }
            });
            let store = Arc::new(BufferedRows::new(rows));
            store.write(vec![(G, vec![put(key(1), key(1))])]).unwrap();
            store.sync().unwrap();
            let reader = std::thread::spawn({
                let store = store.clone();
                move || match slow {
                    "get" => store.get(G, &key(1)).unwrap(),
                    _ => store.scan(G, &[], None, 1).unwrap().pop().map(|(_, value)| value),
                }
            });
            entered.recv().unwrap();
            let (done, written) = mpsc::channel();
            std::thread::spawn(move || {
                store.write(vec![(G, vec![put(key(1), key(2))])]).unwrap();
                done.send(store.sync()).unwrap();
            });
            // Never reached unless the writer waits for the reader.
            written.recv_timeout(Duration::from_secs(60)).unwrap().unwrap();
            leave.send(()).unwrap();
            let read = reader.join().unwrap().unwrap();
            assert!(read == key(1) || (slow == "get" && read == key(2)), "{slow}: {read:?}");
        }
    }
}
