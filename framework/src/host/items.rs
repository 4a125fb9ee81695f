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
use crate::collections::{Draft, Handle};
use crate::ctx::Effects;

/// Dropped items forgotten with one record.
const ITEMS_FORGET_MAX: usize = 500;

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
        let (mut from, to) = rows::all_dropped();
        loop {
            let Ok(found) = self.shared.rows.scan(self.group, &from, Some(&to), 1) else { return false };
            let Some((noted, _)) = found.first() else { return false };
            let Some((actor, collection, below)) = rows::read_dropped(noted) else { return false };
            let items = self.activations.get(&actor).and_then(|act| act.items.as_ref());
            if items.is_some_and(Handle::is_copied) {
                // Somebody may be reading them. The next one, then.
                from = [noted, &[0][..]].concat();
                continue;
            }
            let (first, end) = rows::items(&actor, collection);
            let until = if below.is_empty() { end } else { rows::item(&actor, collection, below) };
            let Ok(found) = self.shared.rows.scan(self.group, &first, Some(&until), ITEMS_FORGET_MAX + 1)
            else {
                return false;
            };
            let own = |key: &[u8]| Bytes::copy_from_slice(&key[first.len()..]);
            let below = Bytes::copy_from_slice(below);
            let (upto, dropped) = match found.get(ITEMS_FORGET_MAX) {
                Some((key, _)) => (Some(own(key)), None),
                None => ((!below.is_empty()).then(|| below.clone()), Some(below)),
            };
            let size = 96 + actor.as_str().len() + upto.as_ref().map_or(0, Bytes::len);
            let record = Record::ItemsForgotten { actor, collection, upto, dropped };
            let seq = self.append(record, size);
            self.forgetting_items = Some(seq);
            self.owed.push_back(Owed::nothing(seq));
            return true;
        }
    }
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
