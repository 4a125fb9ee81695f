//! Rows on their way to the store.
//!
//! Owns what was applied since the last checkpoint. A row that changes many times between two
//! checkpoints reaches the store once, which is where most of the cost of applying would go: an insert
//! into the store's memory table and journal for each turn. Nothing is lost with the buffer that is not
//! applied again from the log, because rows count as durable only below a checkpoint, and a group's
//! rows are handed on before its checkpoint is. The idea is a database's buffer pool with a redo log.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use perennial_core::id::GroupId;
use perennial_core::replication::RowOp;

use super::rows::{GroupMeta, Row, RowError, RowIter, RowStore};

/// Bytes of buffered rows above which all of them are handed on at once.
const BUFFER_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Rows read from the store at a time while a scan is merged.
const MERGE_ROWS_MIN: usize = 16;

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

    /// Hands a group's rows on; readers wait, so that they never miss one in between.
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
        let changes = self.changes(group);
        let changes = lock(&changes);
        match changes.get(key) {
            Some(value) => Ok(value.clone()),
            None => self.store.get(group, key),
        }
    }

    fn scan(
        &self,
        group: GroupId,
        from: &[u8],
        to: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Row>, RowError> {
        let mut found = Vec::new();
        if to.is_some_and(|to| from >= to) {
            return Ok(found);
        }
        let changes = self.changes(group);
        let changes = lock(&changes);
        let mut from = Bound::Included(from.to_vec());
        while found.len() < limit {
            let wanted = (limit - found.len()).max(MERGE_ROWS_MIN);
            let start = match &from {
                Bound::Excluded(last) => [last, &[0][..]].concat(),
                Bound::Included(first) => first.clone(),
                Bound::Unbounded => Vec::new(),
            };
            let stored = self.store.scan(group, &start, to, wanted)?;
            // What is buffered is merged up to the last row read, or to the end when that was all.
            let more = stored.len() == wanted;
            let last = stored.last().map(|(key, _)| key.clone()).filter(|_| more);
            let until = match (&last, to) {
                (Some(last), _) => Bound::Included(last.as_slice()),
                (None, Some(to)) => Bound::Excluded(to),
                (None, None) => Bound::Unbounded,
            };
            merge(stored, changes.range::<[u8], _>((as_slice(&from), until)), limit, &mut found);
            match last {
                Some(last) => from = Bound::Excluded(last),
                None => break,
            }
        }
        Ok(found)
    }

    fn snapshot(&self, group: GroupId) -> RowIter {
        let changes = self.changes(group);
        let mut changes = lock(&changes);
        match self.hand_on(group, &mut changes) {
            Ok(()) => self.store.snapshot(group),
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
        let changes = self.changes(group);
        let mut changes = lock(&changes);
        let bytes: usize = changes.iter().map(|(key, value)| size(key, value.as_ref())).sum();
        changes.clear();
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.store.wipe(group)
    }

    fn close(&self) {
        self.store.close();
    }
}

fn as_slice(bound: &Bound<Vec<u8>>) -> Bound<&[u8]> {
    match bound {
        Bound::Included(key) => Bound::Included(key),
        Bound::Excluded(key) => Bound::Excluded(key),
        Bound::Unbounded => Bound::Unbounded,
    }
}

/// Appends rows of both sides in order, the buffered ones winning, up to `limit` rows.
fn merge<'a>(
    stored: Vec<Row>,
    buffered: impl Iterator<Item = (&'a Vec<u8>, &'a Option<Vec<u8>>)>,
    limit: usize,
    found: &mut Vec<Row>,
) {
    let mut stored = stored.into_iter().peekable();
    let mut buffered = buffered.peekable();
    while found.len() < limit {
        let take_buffered = match (stored.peek(), buffered.peek()) {
            (None, None) => return,
            (Some(_), None) => false,
            (None, Some(_)) => true,
            (Some((stored_key, _)), Some((key, _))) => *key <= stored_key,
        };
        if !take_buffered {
            found.extend(stored.next());
            continue;
        }
        if let Some((key, value)) = buffered.next() {
            stored.next_if(|(stored_key, _)| stored_key == key);
            found.extend(value.clone().map(|value| (key.clone(), value)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::MemoryRows;
    use perennial_core::id::PartitionId;
    use proptest::prelude::*;

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
            let all: Vec<_> = buffered.snapshot(group).map(Result::unwrap).collect();
            prop_assert_eq!(all, plain.scan(group, &[], None, usize::MAX).unwrap());
            buffered.wipe(group).unwrap();
            prop_assert_eq!(buffered.scan(group, &[], None, 9).unwrap(), vec![]);
            prop_assert_eq!(buffered.bytes.load(Ordering::Relaxed), 0);
        }
    }
}
