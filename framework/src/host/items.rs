//! Items of collections: from a turn's draft into its record, and out of the rows when nobody needs them.
//!
//! What a collection has dropped is noted in a row with the turn that does; the items go later, a bounded number
//! with each record, so that clearing a million of them holds nobody up.

use bytes::Bytes;
use perennial_core::id::ActorId;
use perennial_core::partition::record::{ItemChange, Record};
use perennial_core::partition::rows;

use super::Host;
use super::owed::Owed;
use crate::collections::Draft;
use crate::ctx::Effects;
use crate::replica::RowError;

/// Dropped items forgotten in one go.
const ITEMS_FORGET_MAX: usize = 500;
/// Bytes of them, with one more item.
const BYTES_FORGET_MAX: usize = 1024 * 1024;
/// Notes of what was dropped that are looked at in one go.
const NOTES_MAX: usize = 128;
/// Items read at a time.
const PAGE_ITEMS: usize = 32;

/// What a change takes in a record, in bytes.
pub(super) fn change_size(change: &ItemChange) -> usize {
    let value = match change {
        ItemChange::Put { value, .. } => value.len(),
        ItemChange::Delete { .. } | ItemChange::Drop { .. } => 0,
    };
    24 + change.key().len() + value
}

impl Host {
    /// Takes what a turn has done to its actor's collections and puts it among the effects.
    pub(super) fn take_items(&self, actor: &ActorId, effects: &mut Effects) -> Option<Draft> {
        let items = self.activations.get(actor)?.items.as_ref()?;
        let mut draft = items.take_draft();
        draft.forget_unseen();
        effects.items = items.changes(&draft);
        Some(draft)
    }

    /// The turn is recorded next: from there on its draft is how things are.
    pub(super) fn record_items(&mut self, actor: &ActorId, draft: Draft) {
        for (&fingerprint, schema) in &draft.schemas {
            if self.schemas.insert(fingerprint) {
                self.append_schema(fingerprint, schema.clone());
            }
        }
        let seq = self.spec.next_record();
        if let Some(items) = self.activations.get(actor).and_then(|act| act.items.as_ref()) {
            items.record(seq, draft);
        }
    }

    /// The rows have an actor's items up to the last applied record.
    pub(super) fn items_applied(&self, actor: &ActorId) {
        if let Some(items) = self.activations.get(actor).and_then(|act| act.items.as_ref()) {
            items.applied(self.applied);
        }
    }

    /// Forgets some of the items that were dropped; says whether there may be more of them.
    pub(super) fn forget_items(&mut self) -> bool {
        if self.forgetting_items.is_some_and(|seq| seq >= self.applied) {
            // The rows still show what that record takes away.
            return true;
        }
        self.forget_noted().unwrap_or_else(|error| {
            tracing::error!(partition = %self.partition, %error, "cannot read dropped items");
            false
        })
    }

    fn forget_noted(&mut self) -> Result<bool, RowError> {
        let (all, to) = rows::all_dropped();
        let from = self.forget_from.take().unwrap_or(all);
        let found = self.shared.rows.scan(self.group, &from, Some(&to), NOTES_MAX)?;
        let mut room = Room { items: ITEMS_FORGET_MAX, bytes: BYTES_FORGET_MAX };
        // What the notes before it take away the rows still show.
        let mut begin = Vec::new();
        for (noted, _) in &found {
            if room.is_used_up() {
                self.forget_from = Some(noted.clone());
                return Ok(true);
            }
            let Some((actor, collection, below)) = rows::read_dropped(noted) else { continue };
            let items = self.activations.get(&actor).and_then(|act| act.items.as_ref());
            if items.is_some_and(|items| items.is_kept_for_copies(collection, below)) {
                // Its turn comes with another sweep.
                continue;
            }
            let (first, end) = rows::items(&actor, collection);
            let until = if below.is_empty() { end } else { rows::item(&actor, collection, below) };
            let next = self.reach(first.clone().max(begin.clone()), &until, &mut room)?;
            let own = |key: &[u8]| Bytes::copy_from_slice(&key[first.len()..]);
            let below = Bytes::copy_from_slice(below);
            let (upto, dropped) = match &next {
                Some(key) => (Some(own(key)), None),
                None => ((!below.is_empty()).then(|| below.clone()), Some(below)),
            };
            let size = 96 + actor.as_str().len() + 2 * upto.as_ref().map_or(0, Bytes::len);
            let seq = self.append(Record::ItemsForgotten { actor, collection, upto, dropped }, size);
            self.forgetting_items = Some(seq);
            self.owed.push_back(Owed::nothing(seq));
            if next.is_some() {
                self.forget_from = Some(noted.clone());
                return Ok(true);
            }
            begin = until.max(begin);
        }
        self.forget_from = found.last().filter(|_| found.len() == NOTES_MAX).map(|(last, _)| after(last));
        Ok(self.forget_from.is_some())
    }

    /// The first of these items that there is no room for; the others take their part of it.
    fn reach(&self, mut from: Vec<u8>, until: &[u8], room: &mut Room) -> Result<Option<Vec<u8>>, RowError> {
        loop {
            let found = self.shared.rows.scan(self.group, &from, Some(until), PAGE_ITEMS)?;
            for (key, value) in &found {
                if room.is_used_up() {
                    return Ok(Some(key.clone()));
                }
                room.items -= 1;
                room.bytes = room.bytes.saturating_sub(key.len() + value.len());
            }
            match found.last() {
                Some((last, _)) if found.len() == PAGE_ITEMS => from = after(last),
                _ => return Ok(None),
            }
        }
    }
}

/// What may still be forgotten in one go.
struct Room {
    items: usize,
    bytes: usize,
}

impl Room {
    fn is_used_up(&self) -> bool {
        self.items == 0 || self.bytes == 0
    }
}

/// The first key behind this one.
fn after(key: &[u8]) -> Vec<u8> {
    [key, &[0]].concat()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::collections::{Log, Map};
    use crate::prelude::*;
    use crate::testing::TestApp;

    /// Keeps numbers.
    #[data]
    #[derive(Default)]
    struct Keeper {
        log: Log<u64>,
        map: Map<u64, u64>,
    }

    #[actor]
    impl Keeper {
        /// Adds numbers to both.
        pub fn add(&mut self, count: u64) {
            for n in 0..count {
                self.log.push(n);
                self.map.insert(n, n);
            }
        }
        /// Keeps some of the log and nothing of the map.
        pub fn forget(&mut self, keep: u64) {
            self.log.keep_last(keep);
            self.map.clear();
        }
    }

    fn items(app: &TestApp) -> (usize, usize) {
        let count = |tag| app.rows().iter().filter(|(key, _)| key.first() == Some(&tag)).count();
        (count(b'I'), count(b'G'))
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_dropped_is_forgotten_little_by_little() {
        let app = TestApp::new(App::new("test").actor::<Keeper>()).await;
        let keeper = app.get::<Keeper>("a");
        app.get::<Keeper>("b").add(7).await.unwrap();
        for _ in 0..3 {
            keeper.add(700).await.unwrap();
        }
        assert_eq!(items(&app), (14 + 2100 + 700, 0));
        keeper.forget(30).await.unwrap();
        keeper.add(1).await.unwrap();
        assert_eq!(items(&app), (14 + 2100 + 700 + 2, 2));
        app.advance(super::super::sweep::SWEEP_PERIOD + Duration::from_millis(10)).await;
        let (left, noted) = items(&app);
        assert!(left < 2816 && noted > 0, "not all at once: {left}, {noted}");
        app.advance(Duration::from_secs(5)).await;
        assert_eq!(items(&app), (14 + 30 + 1 + 1, 0));
    }
}
