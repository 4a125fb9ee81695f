//! The items of one actor: rows, what the log does not have yet, and what the running turn has changed.
//!
//! Owns these layers. A turn writes into its draft; with its record the draft becomes part of the overlay,
//! which holds what is recorded and not applied; from there on the rows have it. So a reader always sees the
//! items as of the last turn, however far the rows have come. A copy of the state that is read while turns go
//! on keeps what they change under it (multi-version concurrency control, with before-images).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;
use perennial_core::id::{ActorId, GroupId, RecordSeq, Term};
use perennial_core::partition::record::{CollectionId, ITEM_KEY_BYTES_MAX, ItemChange, RECORD_BYTES_MAX};
use perennial_core::partition::rows;

use super::{Doing, abort, doing_with};
use crate::error::Fault;
use crate::host::{rows_failed, stored_schema};
use crate::replica::{RowError, RowStore};
use crate::schema::Schema;

/// Largest encoded item of a collection, in bytes.
pub const ITEM_BYTES_MAX: usize = 384 * 1024;
/// What a change takes in a record beside its key and value, in bytes.
const CHANGE_BYTES: usize = 24;

type Key = (CollectionId, Bytes);
type Layer = BTreeMap<Key, Option<Bytes>>;

/// Makes ids of collections that the partition has never had.
#[derive(Clone)]
pub(crate) struct Ids {
    pub(crate) term: Term,
    pub(crate) next: Arc<AtomicU64>,
}

impl Ids {
    pub(crate) fn new(term: Term) -> Self {
        Self { term, next: Arc::default() }
    }
}

/// Where an actor's items are stored.
struct At {
    rows: Arc<dyn RowStore>,
    group: GroupId,
    actor: ActorId,
}

/// Items as a state sees them: all of them, or as they were when a copy was made.
#[derive(Clone)]
pub(crate) struct Handle {
    pub(super) items: Arc<Items>,
    pub(super) view: Option<Arc<View>>,
}

/// What has changed since a copy of the state was made.
#[derive(Default)]
pub(crate) struct View(Mutex<Before>);

#[derive(Default)]
struct Before {
    /// The items as they were; `None`: not there.
    items: Layer,
    /// What was dropped first of each collection: the items below this key, or all.
    dropped: BTreeMap<CollectionId, Bytes>,
    /// An item could not be read before it changed.
    broken: Option<String>,
}

/// The items of one actor in memory.
///
/// Invariant: rows, then overlay, then draft, the later ones winning, are the items of the running turn;
/// without the draft those of the last one.
pub(crate) struct Items {
    at: Option<At>,
    ids: Ids,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    draft: Draft,
    /// By record: the first one above those that are applied.
    overlay: BTreeMap<Key, (RecordSeq, Option<Bytes>)>,
    /// The keys of the overlay in the order of their records.
    order: VecDeque<(RecordSeq, Key)>,
    views: Vec<Weak<View>>,
    /// Collections in the state as of its last record.
    recorded: BTreeSet<CollectionId>,
    /// Schemas of items, as stored ones were read.
    schemas: BTreeMap<u64, Arc<Schema>>,
    /// Schemas of items that are in the log.
    logged: BTreeSet<u64>,
}

/// What a turn has changed.
#[derive(Default)]
pub(crate) struct Draft {
    items: Layer,
    /// Items below these keys are gone.
    truncated: BTreeMap<CollectionId, Bytes>,
    bytes: usize,
    /// Collections in the state after the turn.
    seen: BTreeSet<CollectionId>,
    /// Schemas that the log may lack.
    pub(crate) schemas: BTreeMap<u64, Bytes>,
}

impl Inner {
    /// What is dropped with a draft: the items of these collections below a key, or all.
    fn drops<'a>(&'a self, draft: &'a Draft) -> impl Iterator<Item = (CollectionId, Bytes)> + 'a {
        let below = draft.truncated.iter().map(|(id, below)| (*id, below.clone()));
        let gone = self.recorded.difference(&draft.seen).map(|id| (*id, Bytes::new()));
        below.chain(gone)
    }
}

impl Draft {
    /// Leaves out the items of collections that the turn has made and not kept.
    pub(crate) fn forget_unseen(&mut self) {
        let Self { items, truncated, seen, .. } = self;
        items.retain(|(collection, _), _| seen.contains(collection));
        truncated.retain(|collection, _| seen.contains(collection));
    }
}

impl Handle {
    /// One without an actor: its items stay in memory.
    pub(super) fn detached() -> Self {
        let items = Items { at: None, ids: Ids::new(Term(0)), inner: Mutex::default() };
        Self { items: Arc::new(items), view: None }
    }

    /// The items of an actor, as its turns see them.
    pub(crate) fn of(actor: ActorId, group: GroupId, rows: Arc<dyn RowStore>, ids: Ids) -> Self {
        let at = Some(At { rows, group, actor });
        Self { items: Arc::new(Items { at, ids, inner: Mutex::default() }), view: None }
    }

    /// The items as of the last record, for a copy of the state.
    pub(crate) fn copy(&self) -> Self {
        let view = Arc::<View>::default();
        let mut inner = self.items.lock();
        inner.views.retain(|view| view.strong_count() > 0);
        inner.views.push(Arc::downgrade(&view));
        drop(inner);
        Self { items: self.items.clone(), view: Some(view) }
    }

    /// Ends the turn: its items are not to be had.
    pub(super) fn unreadable(&self, why: impl Into<String>) -> ! {
        abort(Fault::Unreadable { what: "item".into(), at: self.items.name(), why: why.into() })
    }

    /// Ends the turn: no item is to be had here.
    fn rows_failed(&self, why: &str) -> ! {
        abort(rows_failed("an item", &self.items.name(), &why))
    }

    fn too_large(&self, what: &str, bytes: usize, limit: usize) -> ! {
        let at = self.items.name();
        abort(Fault::TooLarge { what: what.into(), at, bytes: bytes as u64, limit: limit as u64 })
    }

    fn check_readable(&self) {
        let readable = self.view.is_some() || self.items.is_detached() || doing_with(&self.items).is_some();
        assert!(readable, "a collection is read in a turn of its actor only");
    }

    /// The stored value of an item.
    pub(super) fn get(&self, collection: CollectionId, key: &[u8]) -> Option<Bytes> {
        self.check_readable();
        let key = (collection, Bytes::copy_from_slice(key));
        self.items.get(self.view.as_deref(), &key).unwrap_or_else(|why| self.rows_failed(&why))
    }

    /// Up to `limit` items in the order of their keys.
    pub(super) fn scan(
        &self,
        collection: CollectionId,
        from: &[u8],
        to: Option<&[u8]>,
        limit: usize,
    ) -> Vec<(Bytes, Bytes)> {
        self.check_readable();
        let found = self.items.scan(self.view.as_deref(), collection, from, to, limit);
        found.unwrap_or_else(|why| self.rows_failed(&why))
    }

    /// Changes an item; the collection may be written. A draft that no record could hold ends the turn.
    pub(super) fn put(&self, collection: CollectionId, key: Vec<u8>, value: Option<Bytes>) {
        if key.len() > ITEM_KEY_BYTES_MAX {
            self.too_large("the key of an item", key.len(), ITEM_KEY_BYTES_MAX);
        }
        if let Some(value) = value.as_ref().filter(|value| value.len() > ITEM_BYTES_MAX) {
            self.too_large("an item", value.len(), ITEM_BYTES_MAX);
        }
        let mut inner = self.items.lock();
        let draft = &mut inner.draft;
        let size = |value: Option<&Bytes>| value.map_or(0, Bytes::len);
        let (key_bytes, after) = (key.len(), size(value.as_ref()));
        let before = draft.items.insert((collection, key.into()), value);
        let before = before.map_or(0, |value| CHANGE_BYTES + key_bytes + size(value.as_ref()));
        draft.bytes = draft.bytes + CHANGE_BYTES + key_bytes + after - before;
        let bytes = draft.bytes;
        drop(inner);
        if bytes > RECORD_BYTES_MAX && !self.items.is_detached() {
            self.too_large("the record of a turn", bytes, RECORD_BYTES_MAX);
        }
    }

    /// The items of a collection below a key are gone, as its head says.
    pub(super) fn truncate(&self, collection: CollectionId, below: Vec<u8>) {
        let mut inner = self.items.lock();
        let below = Bytes::from(below);
        inner.draft.items.retain(|(of, key), _| *of != collection || *key >= below);
        inner.draft.truncated.insert(collection, below);
    }

    /// Puts the schema of items beside the turn's record unless the log has it.
    pub(super) fn use_schema(&self, fingerprint: u64, schema: impl FnOnce() -> Bytes) {
        let mut inner = self.items.lock();
        if !inner.logged.contains(&fingerprint) {
            inner.draft.schemas.entry(fingerprint).or_insert_with(schema);
        }
    }

    /// The schema that stored items were written with.
    pub(super) fn schema(&self, fingerprint: u64) -> Result<Arc<Schema>, String> {
        if let Some(schema) = self.items.lock().schemas.get(&fingerprint) {
            return Ok(schema.clone());
        }
        let stored = match &self.items.at {
            Some(at) => {
                let stored = at.rows.get(at.group, &rows::schema(fingerprint));
                stored.unwrap_or_else(|error| self.rows_failed(&error.to_string()))
            }
            None => None,
        };
        let stored = stored.ok_or_else(|| format!("its schema {fingerprint:016x} is not in the log"))?;
        let (_, schema) =
            stored_schema(&stored).ok_or_else(|| format!("its schema {fingerprint:016x} is cut off"))?;
        let schema = Arc::new(Schema::decode(schema).map_err(|error| error.to_string())?);
        self.items.lock().schemas.insert(fingerprint, schema.clone());
        Ok(schema)
    }

    /// The state that was decoded holds these collections. One that was lost before stays noted: after a turn
    /// that was undone the state is decoded anew.
    pub(crate) fn decoded(&self, seen: Vec<CollectionId>) {
        if self.view.is_none() {
            self.items.lock().recorded.extend(seen);
        }
    }

    /// The state that was encoded, after a turn, holds these collections.
    pub(crate) fn encoded(&self, seen: Vec<CollectionId>) {
        self.items.lock().draft.seen = seen.into_iter().collect();
    }

    /// Looks for collections that the state does not name any more, as after a field was removed: the next
    /// record drops them. Says whether there are any that it may drop.
    pub(crate) fn find_lost(&self) -> Result<bool, RowError> {
        let Some(at) = self.items.at.as_ref().filter(|_| self.view.is_none()) else { return Ok(false) };
        let mut last = None;
        loop {
            let (from, to) = rows::items_after(&at.actor, last);
            let found = at.rows.scan(at.group, &from, Some(&to), 1)?;
            let found = found.first().and_then(|(key, _)| rows::read_item(key));
            let Some((_, collection, _)) = found else { return Ok(last.is_some()) };
            self.items.lock().recorded.insert(collection);
            last = Some(collection);
        }
    }

    /// Takes what the turn has changed.
    pub(crate) fn take_draft(&self) -> Draft {
        std::mem::take(&mut self.items.lock().draft)
    }

    /// The turn's changes, for its record.
    pub(crate) fn changes(&self, draft: &Draft) -> Vec<ItemChange> {
        let items = draft.items.iter().map(|((collection, key), value)| {
            let (collection, key) = (*collection, key.clone());
            match value.clone() {
                Some(value) => ItemChange::Put { collection, key, value },
                None => ItemChange::Delete { collection, key },
            }
        });
        let inner = self.items.lock();
        let drops = inner.drops(draft).map(|(collection, below)| ItemChange::Drop { collection, below });
        items.chain(drops).collect()
    }

    /// The turn is recorded under this number. What it changes under copies of the state is kept for them.
    pub(crate) fn record(&self, seq: RecordSeq, draft: Draft) {
        let mut inner = self.items.lock();
        inner.views.retain(|view| view.strong_count() > 0);
        let views: Vec<_> = inner.views.iter().filter_map(Weak::upgrade).collect();
        for key in draft.items.keys().filter(|_| !views.is_empty()) {
            let before = match inner.overlay.get(key) {
                Some((_, value)) => Ok(value.clone()),
                None => self.items.stored(key),
            };
            for view in &views {
                let mut kept = lock(&view.0);
                match &before {
                    Ok(value) => {
                        kept.items.entry(key.clone()).or_insert_with(|| value.clone());
                    }
                    Err(why) => kept.broken = Some(why.clone()),
                }
            }
        }
        for view in &views {
            let mut kept = lock(&view.0);
            for (collection, below) in inner.drops(&draft) {
                kept.dropped.entry(collection).or_insert(below);
            }
        }
        for (key, value) in draft.items {
            inner.order.push_back((seq, key.clone()));
            inner.overlay.insert(key, (seq, value));
        }
        inner.recorded = draft.seen;
        inner.logged.extend(draft.schemas.into_keys());
    }

    /// Records below this one are applied: the rows have what they changed.
    pub(crate) fn applied(&self, applied: RecordSeq) {
        let mut inner = self.items.lock();
        while let Some((seq, key)) = inner.order.pop_front_if(|(seq, _)| *seq < applied) {
            if inner.overlay.get(&key).is_some_and(|(last, _)| *last == seq) {
                inner.overlay.remove(&key);
            }
        }
    }

    /// Whether a copy of the state may read what was dropped of a collection below a key, or all of it: it
    /// was made before.
    pub(crate) fn is_kept_for_copies(&self, collection: CollectionId, below: &[u8]) -> bool {
        let inner = self.items.lock();
        let mut copies = inner.views.iter().filter_map(Weak::upgrade);
        copies.any(|view| {
            let before = lock(&view.0);
            let first = before.dropped.get(&collection);
            first.is_some_and(|first| below.is_empty() || (!first.is_empty() && below >= first))
        })
    }

    /// Whether a copy of the state is being read.
    #[must_use]
    pub(crate) fn is_copied(&self) -> bool {
        self.items.lock().views.iter().any(|view| view.strong_count() > 0)
    }
}

impl Items {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    fn name(&self) -> String {
        self.at.as_ref().map_or_else(|| "no actor".to_owned(), |at| at.actor.to_string())
    }

    /// Whether its items are in memory only, as outside of an actor.
    pub(super) fn is_detached(&self) -> bool {
        self.at.is_none()
    }

    pub(super) fn new_id(&self) -> CollectionId {
        CollectionId { term: self.ids.term, number: self.ids.next.fetch_add(1, Ordering::Relaxed) }
    }

    fn stored(&self, (collection, key): &Key) -> Result<Option<Bytes>, String> {
        let Some(at) = &self.at else { return Ok(None) };
        let row = at.rows.get(at.group, &rows::item(&at.actor, *collection, key));
        row.map(|row| row.map(Bytes::from)).map_err(|error| error.to_string())
    }

    fn get(&self, view: Option<&View>, key: &Key) -> Result<Option<Bytes>, String> {
        loop {
            let seen = {
                let inner = self.lock();
                let mut seen = 0;
                match view.map(|view| lock(&view.0)) {
                    None => {
                        if let Some(value) = inner.draft.items.get(key) {
                            return Ok(value.clone());
                        }
                    }
                    Some(before) => {
                        before.check()?;
                        if let Some(value) = before.items.get(key) {
                            return Ok(value.clone());
                        }
                        seen = before.changes();
                    }
                }
                if let Some((_, value)) = inner.overlay.get(key) {
                    return Ok(value.clone());
                }
                seen
            };
            let found = self.stored(key)?;
            // What was recorded and applied meanwhile is not what the copy saw.
            if view.is_none_or(|view| lock(&view.0).changes() == seen) {
                return Ok(found);
            }
        }
    }

    fn scan(
        &self,
        view: Option<&View>,
        collection: CollectionId,
        from: &[u8],
        to: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, String> {
        if limit == 0 || to.is_some_and(|to| from >= to) {
            return Ok(Vec::new());
        }
        let start = (collection, Bytes::copy_from_slice(from));
        let within = |(of, key): &Key| *of == collection && to.is_none_or(|to| key.as_ref() < to);
        loop {
            // Above the rows, the later layers winning.
            let (above, seen) = {
                let inner = self.lock();
                let recorded = inner.overlay.range(&start..).take_while(|(key, _)| within(key));
                let mut above: BTreeMap<Bytes, Option<Bytes>> =
                    recorded.map(|(key, (_, value))| (key.1.clone(), value.clone())).collect();
                let mut put = |layer: &Layer| {
                    let changed = layer.range(&start..).take_while(|(key, _)| within(key));
                    above.extend(changed.map(|(key, value)| (key.1.clone(), value.clone())));
                };
                let seen = match view.map(|view| lock(&view.0)) {
                    None => {
                        put(&inner.draft.items);
                        0
                    }
                    Some(before) => {
                        before.check()?;
                        put(&before.items);
                        before.changes()
                    }
                };
                (above, seen)
            };
            let found = self.merged(collection, from, to, above, limit)?;
            if view.is_none_or(|view| lock(&view.0).changes() == seen) {
                return Ok(found);
            }
        }
    }

    /// Rows and what is above them.
    fn merged(
        &self,
        collection: CollectionId,
        from: &[u8],
        to: Option<&[u8]>,
        above: BTreeMap<Bytes, Option<Bytes>>,
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, String> {
        let mut merged = BTreeMap::new();
        let mut last = None;
        if let Some(at) = &self.at {
            let (all, end) = rows::items(&at.actor, collection);
            let until = to.map_or(end, |to| rows::item(&at.actor, collection, to));
            let start = rows::item(&at.actor, collection, from);
            // As many more as may be hidden.
            let rows = limit.saturating_add(above.len());
            let found = at.rows.scan(at.group, &start, Some(&until), rows).map_err(|e| e.to_string())?;
            let more = found.len() == rows;
            let found = found.into_iter().map(|(key, value)| (Bytes::from(key).slice(all.len()..), value));
            merged.extend(found.map(|(key, value)| (key, Some(Bytes::from(value)))));
            // Behind the last row that was read there may be others.
            last = merged.last_key_value().filter(|_| more).map(|(key, _)| key.clone());
        }
        let known = |key: &Bytes| last.as_ref().is_none_or(|last| key <= last);
        merged.extend(above.into_iter().filter(|(key, _)| known(key)));
        Ok(merged.into_iter().filter_map(|(key, value)| Some((key, value?))).take(limit).collect())
    }
}

impl Before {
    fn check(&self) -> Result<(), String> {
        self.broken.clone().map_or(Ok(()), Err)
    }

    /// Grows with each change.
    fn changes(&self) -> usize {
        self.items.len() + usize::from(self.broken.is_some())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Doing {
    /// What a handler does.
    pub(crate) fn handler(write: bool) -> Self {
        if write { Self::Write } else { Self::Read }
    }
}

#[cfg(test)]
mod tests {
    use perennial_core::hash::PartitionCount;
    use perennial_core::id::{LogIndex, PartitionId, RequestId, SessionId};
    use perennial_core::partition::Partition;
    use perennial_core::partition::record::{Batch, Cause, Keep, Record, Turn};
    use perennial_core::replication::RowOp;
    use perennial_core::time::Millis;
    use proptest::prelude::*;

    use super::*;
    use crate::collections::within;
    use crate::replica::{BufferedRows, MemoryRows};

    const TERM: Term = Term(3);
    fn group() -> GroupId {
        GroupId::of(PartitionId(0))
    }

    /// What happens to a collection.
    #[derive(Debug, Clone)]
    enum Step {
        /// A turn that puts and removes, and is recorded or undone.
        Turn(Vec<(u8, Option<u8>)>, bool),
        /// Records are applied.
        Apply(usize),
        /// The store writes what it has buffered.
        Sync,
        /// A copy of the state is made.
        Copy,
        /// The oldest copy is dropped.
        Forget,
    }

    fn step() -> impl Strategy<Value = Step> {
        let changes = prop::collection::vec((0u8..12, prop::option::weighted(0.7, any::<u8>())), 0..5);
        prop_oneof![
            6 => (changes, prop::bool::weighted(0.8)).prop_map(|(changes, kept)| Step::Turn(changes, kept)),
            3 => (1usize..4).prop_map(Step::Apply),
            1 => Just(Step::Sync),
            1 => Just(Step::Copy),
            1 => Just(Step::Forget),
        ]
    }

    /// Compares every way to read with a model.
    fn same(
        handle: &Handle,
        id: CollectionId,
        model: &BTreeMap<u8, u8>,
        from: u8,
        to: Option<u8>,
        limit: usize,
    ) {
        for key in 0..12 {
            let found = handle.get(id, &[key]).map(|value| value[0]);
            assert_eq!(found, model.get(&key).copied(), "key {key}");
        }
        let found = handle.scan(id, &[from], to.as_ref().map(std::slice::from_ref), limit);
        let found: Vec<_> = found.into_iter().map(|(key, value)| (key[0], value[0])).collect();
        let wanted = model.range(from..).filter(|(key, _)| to.is_none_or(|to| **key < to)).take(limit);
        assert_eq!(found, wanted.map(|(key, value)| (*key, *value)).collect::<Vec<_>>());
    }

    proptest! {
        #[test]
        fn readers_see_the_last_turn_and_copies_the_one_they_were_made_after(
            steps in prop::collection::vec(step(), 0..40),
            from in 0u8..12, to in prop::option::of(0u8..13), limit in 0usize..14,
        ) {
            let actor: ActorId = "Room/a".parse().unwrap();
            let rows = Arc::new(BufferedRows::new(MemoryRows::default()));
            let handle = Handle::of(actor.clone(), group(), rows.clone(), Ids::new(TERM));
            let (id, other) = (handle.items.new_id(), handle.items.new_id());
            let mut model = BTreeMap::new();
            let mut copies = VecDeque::new();
            let mut log: VecDeque<(RecordSeq, Vec<ItemChange>)> = VecDeque::new();
            let mut next = 0;
            let mut machine = Partition::new(PartitionCount::try_from(1).unwrap());
            for step in steps {
                match step {
                    Step::Turn(changes, kept) => {
                        let mut after = model.clone();
                        let turn = || {
                            for (key, value) in &changes {
                                handle.put(id, vec![*key], value.map(|value| Bytes::from(vec![value])));
                                handle.put(other, vec![*key], Some(Bytes::from_static(b"other")));
                                match value {
                                    Some(value) => after.insert(*key, *value),
                                    None => after.remove(key),
                                };
                            }
                            same(&handle, id, &after, from, to, limit);
                        };
                        within(Doing::Write, &handle, turn);
                        let draft = handle.take_draft();
                        if kept {
                            let items = handle.changes(&draft);
                            log.push_back((RecordSeq(next), items));
                            handle.record(RecordSeq(next), draft);
                            next += 1;
                            model = after;
                        }
                    }
                    Step::Apply(count) => {
                        for _ in 0..count {
                            let Some((seq, items)) = log.pop_front() else { break };
                            let request = RequestId { session: SessionId(1), seq: seq.0 };
                            let cause = Cause::Call {
                                request, ack_below: 0, keep: Keep::UntilAcknowledged, reply: Bytes::new(),
                            };
                            let turn = Turn {
                                actor: actor.clone(), cause, state: None, sends: Vec::new(), reminders: Vec::new(),
                                events: Vec::new(), items,
                            };
                            let records = vec![Record::Turn(Box::new(turn))];
                            let batch = Batch { epoch: TERM, first_seq: seq, time: Millis(1), records };
                            let mut ops: Vec<RowOp> = Vec::new();
                            machine.apply_batch(TERM, LogIndex(seq.0), &batch, &mut ops).unwrap();
                            rows.write(vec![(group(), ops)]).unwrap();
                            // Told now and then only.
                            if count > 1 {
                                handle.applied(RecordSeq(seq.0 + 1));
                            }
                        }
                    }
                    Step::Sync => rows.sync().unwrap(),
                    Step::Copy => copies.push_back((handle.copy(), model.clone())),
                    Step::Forget => drop(copies.pop_front()),
                }
                within(Doing::Read, &handle, || same(&handle, id, &model, from, to, limit));
                for (copy, model) in &copies {
                    same(copy, id, model, from, to, limit);
                }
                prop_assert_eq!(handle.is_copied(), !copies.is_empty());
            }
            handle.applied(RecordSeq(next));
            let inner = handle.items.lock();
            prop_assert!(inner.overlay.is_empty() && inner.order.is_empty());
        }
    }
}
