//! A list that grows at its end and is forgotten at its front.

use std::marker::PhantomData;
use std::ops::{Bound, RangeBounds};

use perennial_core::partition::record::CollectionId;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::pages::{LogRange, Pages};
use super::{Place, id_schema, key, stored};
use crate::data::Data;
use crate::schema::{Field, Shape, Type, Types};

/// Items forgotten one by one with the turn that does; of more only the new beginning is noted.
const FORGET_AT_ONCE_MAX: u64 = 64;

/// A list of items in an actor's state that grows at its end, each a row of its own.
///
/// Items have numbers from 0 on, which they keep when earlier ones are forgotten. Reading one costs the same
/// however many there are. See the [module](super) for the rules of collections.
pub struct Log<T> {
    place: Place,
    /// Number of the first item that is kept.
    first: u64,
    /// Number of the next item.
    next: u64,
    item: PhantomData<fn() -> T>,
}

/// A log as its actor's state has it.
#[derive(Serialize, Deserialize)]
struct Head {
    items: Option<CollectionId>,
    first: u64,
    len: u64,
}

impl<T: Data> Log<T> {
    /// How many items are kept.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.next - self.first
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of the first item that is kept, or of the next one if there is none.
    #[must_use]
    pub fn first_index(&self) -> u64 {
        self.first
    }

    /// Number that the next item will have.
    #[must_use]
    pub fn next_index(&self) -> u64 {
        self.next
    }

    /// Appends an item; returns its number.
    pub fn push(&mut self, item: T) -> u64 {
        let id = self.place.id();
        let value = stored::encode(&self.place.handle, &item);
        let index = self.next;
        self.place.handle.put(id, key::encoded(&index), Some(value));
        self.next += 1;
        index
    }

    /// The item of this number, unless it is forgotten or to come.
    #[must_use]
    pub fn get(&self, index: u64) -> Option<T> {
        let id = self.place.id.filter(|_| (self.first..self.next).contains(&index))?;
        let handle = &self.place.handle;
        let value = handle.get(id, &key::encoded(&index));
        let value = value.unwrap_or_else(|| handle.unreadable(format!("item {index} of a log is not there")));
        Some(stored::decode(handle, &value))
    }

    /// Items with their numbers, in order; those that are forgotten or to come are left out. They are read as
    /// they are asked for, so take as many as you need.
    pub fn range(&self, range: impl RangeBounds<u64>) -> LogRange<'_, T> {
        let from = match range.start_bound() {
            Bound::Included(&from) => from,
            Bound::Excluded(&before) => before.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(&last) => last.saturating_add(1),
            Bound::Excluded(&to) => to,
            Bound::Unbounded => self.next,
        };
        let (from, to) = (from.max(self.first), to.min(self.next));
        let pages = Pages::new(
            &self.place,
            key::encoded(&from),
            Some(key::encoded(&to)),
            Some(to.saturating_sub(from)),
        );
        LogRange { pages, log: PhantomData }
    }

    /// All items with their numbers, in order.
    pub fn iter(&self) -> LogRange<'_, T> {
        self.range(..)
    }

    /// The last `count` items, the oldest first.
    #[must_use]
    pub fn last(&self, count: u64) -> Vec<T> {
        self.range(self.next.saturating_sub(count)..).map(|(_, item)| item).collect()
    }

    /// Forgets the items before this number.
    pub fn truncate_front(&mut self, before: u64) {
        let before = before.min(self.next);
        if before <= self.first {
            return;
        }
        let id = self.place.id();
        if before - self.first <= FORGET_AT_ONCE_MAX {
            for index in self.first..before {
                self.place.handle.put(id, key::encoded(&index), None);
            }
        } else {
            self.place.handle.truncate(id, key::encoded(&before));
        }
        self.first = before;
    }

    /// Forgets all but the last `count` items.
    pub fn keep_last(&mut self, count: u64) {
        self.truncate_front(self.next.saturating_sub(count));
    }

    /// Forgets all items. Numbers go on where they were.
    pub fn clear(&mut self) {
        self.place = self.place.renewed();
        self.first = self.next;
    }
}

impl<T> Default for Log<T> {
    fn default() -> Self {
        Self { place: Place::default(), first: 0, next: 0, item: PhantomData }
    }
}

/// A copy to read from, which cannot be written or kept.
impl<T> Clone for Log<T> {
    fn clone(&self) -> Self {
        Self { place: self.place.clone(), first: self.first, next: self.next, item: PhantomData }
    }
}

/// Whether they are the same log with as many items; other logs are never equal unless both are empty.
impl<T> PartialEq for Log<T> {
    fn eq(&self, other: &Self) -> bool {
        let of = |log: &Self| (log.place.id, log.first, log.next);
        of(self) == of(other)
    }
}

impl<T> std::fmt::Debug for Log<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log").field("first", &self.first).field("len", &(self.next - self.first)).finish()
    }
}

impl<T> Serialize for Log<T> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let head = Head { items: self.place.id, first: self.first, len: self.next - self.first };
        self.place.encode(&head, to)
    }
}

impl<'de, T> Deserialize<'de> for Log<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let (place, head) = Place::decode(from, |head: &Head| head.items)?;
        let next = head.first.checked_add(head.len).filter(|_| head.items.is_some() || head.len == 0);
        let next = next.ok_or_else(|| D::Error::custom("the head of a log is damaged"))?;
        Ok(Self { place, first: head.first, next, item: PhantomData })
    }
}

impl<T: Data> Data for Log<T> {
    fn schema(types: &mut Types) -> Type {
        types.named::<Head>("Log", |types| {
            let field = |name: &str, ty| Field { name: name.to_owned(), ty };
            Shape::Struct(vec![
                field("items", id_schema(types)),
                field("first", Type::Uint(64)),
                field("len", Type::Uint(64)),
            ])
        })
    }
}

#[cfg(test)]
mod tests {
    use perennial_core::id::Term;
    use serde_json::json;

    use super::super::{Doing, Handle, Map, within};
    use super::*;
    use crate::schema::Schema;

    #[test]
    fn a_collection_is_shown_and_stored_as_its_head() {
        type State = (Log<u64>, Map<(u8, String), u64>);
        let handle = Handle::detached();
        let ((), _) = within(Doing::Decode, &handle, || {
            let mut state = State::default();
            for n in 0..100 {
                state.0.push(n);
            }
            state.0.truncate_front(90);
            let encode = || postcard::to_stdvec(&state).unwrap();
            let (bytes, seen) = within(Doing::Encode, &handle, encode);
            let id = CollectionId { term: Term(0), number: 0 };
            assert_eq!((seen, bytes.len()), (vec![id], 5 + 12));
            let shown = Schema::of::<State>().to_json(&bytes).unwrap();
            let log = json!({"items": [0, 0], "first": 90, "len": 10});
            assert_eq!(shown, json!([log, {"items": null, "keys": "(u8 text)", "len": 0}]));
            let (read, seen) = within(Doing::Decode, &handle, || postcard::from_bytes::<State>(&bytes));
            assert_eq!((read, seen), (Ok(state), vec![id]));
            let read = |bytes: &[u8]| postcard::from_bytes::<State>(bytes).is_ok();
            assert!(read(&bytes));
            let full =
                [&[1, 0, 0][..], &postcard::to_stdvec(&(u64::MAX, 1_u64)).unwrap(), &bytes[5..]].concat();
            assert!(!read(&full), "more items than there are numbers");
            let none = [&[0, 0, 1][..], &bytes[5..]].concat();
            assert!(!read(&none), "items of nothing");
            type Other = (Log<u64>, Map<u64, u64>);
            assert!(postcard::from_bytes::<Other>(&bytes).is_err(), "keys of another type");
        });
        assert!(postcard::to_stdvec(&State::default()).is_err(), "not in a state");
        assert!(postcard::from_bytes::<State>(&[0; 20]).is_err(), "not in a state");
    }
}
