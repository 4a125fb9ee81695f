//! State larger than a record: collections whose items are rows of their own.
//!
//! A field of type [`Log`] or [`Map`] is, in its actor's state, a few bytes that say which rows are its
//! items and how many there are. An item is read, replicated and stored by itself, so a turn costs what it
//! changes, and an actor with a million items wakes as fast as one with ten. What a turn changes is part of
//! its record like everything else: on an error or a panic none of it has happened, and whoever reads sees
//! the items of the last turn.
//!
//! ```
//! use perennial::prelude::*;
//! use perennial::testing::TestApp;
//! use perennial::{Log, Map};
//!
//! #[data]
//! #[derive(Default)]
//! pub struct Room {
//!     messages: Log<String>,
//!     topics: Map<String, u64>,
//! }
//!
//! #[actor]
//! impl Room {
//!     /// Says something; returns the message's number.
//!     pub fn say(&mut self, topic: String, text: String) -> u64 {
//!         let number = self.messages.push(text);
//!         self.topics.insert(topic, number);
//!         number
//!     }
//!
//!     /// A page of messages, from a number on.
//!     pub fn page(&self, from: u64, count: u32) -> Vec<String> {
//!         self.messages.range(from..).take(count as usize).map(|(_, text)| text).collect()
//!     }
//!
//!     /// The last message of a topic.
//!     pub fn last_of(&self, topic: String) -> Option<String> {
//!         self.topics.get(&topic).and_then(|number| self.messages.get(number))
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let app = TestApp::new(App::new("rooms").actor::<Room>()).await;
//! let room = app.get::<Room>("lobby");
//! assert_eq!(room.say("tea".into(), "green or black?".into()).await, Ok(0));
//! assert_eq!(room.say("cake".into(), "yes".into()).await, Ok(1));
//! assert_eq!(room.page(1, 10).await, Ok(vec!["yes".to_owned()]));
//! assert_eq!(room.last_of("tea".into()).await, Ok(Some("green or black?".to_owned())));
//! # }
//! ```
//!
//! # Rules
//! - A collection may stand anywhere in the state, also in other values: in a struct, a `BTreeMap`, an
//!   `Option`. It may be moved there (`std::mem::take`), and its items stay with it. Not in an item of another
//!   collection.
//! - It belongs to its actor: it cannot be an argument, an answer or an event. Items can.
//! - `clone` makes a copy to read from. A copy cannot be written, and a turn that leaves one in the state fails.
//! - Outside of a turn, as in a unit test of the struct, one made by `Default` keeps its items in memory.
//! - An item that cannot be read or kept ends the turn with a [`Fault`], and undoes it.
//! - Items are found by their keys and read as data is: fields may be added and removed over time as in a
//!   state. The type of a [`Map`]'s keys cannot change.
//! - What a collection has lost, by `clear` or by being dropped, is forgotten little by little afterwards.

mod items;
mod key;
mod log;
mod map;
mod pages;
mod stored;

use std::cell::RefCell;
use std::sync::Arc;

use perennial_core::partition::record::CollectionId;
use serde::de::{Deserialize, Deserializer, Error as _};
use serde::ser::{Error as _, Serialize, Serializer};

pub use self::items::ITEM_BYTES_MAX;
pub(crate) use self::items::{Draft, Handle, Ids, Items};
pub use self::key::MapKey;
pub use self::log::Log;
pub use self::map::Map;
pub use self::pages::{LogRange, MapRange};
use crate::error::Fault;
use crate::schema::{Type, Types};

/// The page for users, compiled as a test of the documentation.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/collections.md")]
pub struct Page;

/// What is being done with an actor's state on this thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Doing {
    /// Makes it, from bytes or by default.
    Decode,
    /// Runs a handler that reads.
    Read,
    /// Runs a handler that writes.
    Write,
    /// Writes it into a record.
    Encode,
}

struct Scope {
    doing: Doing,
    handle: Handle,
    /// Collections that were decoded or encoded.
    seen: Vec<CollectionId>,
}

thread_local! {
    static SCOPE: RefCell<Option<Scope>> = const { RefCell::new(None) };
}

/// Does something with the state of an actor; tells which collections were decoded or encoded meanwhile.
pub(crate) fn within<T>(doing: Doing, handle: &Handle, run: impl FnOnce() -> T) -> (T, Vec<CollectionId>) {
    struct Restore(Option<Scope>);
    impl Drop for Restore {
        fn drop(&mut self) {
            SCOPE.replace(self.0.take());
        }
    }
    let scope = Scope { doing, handle: handle.clone(), seen: Vec::new() };
    let _restore = Restore(SCOPE.replace(Some(scope)));
    let result = run();
    let seen = SCOPE.with_borrow_mut(|scope| scope.as_mut().map(|scope| std::mem::take(&mut scope.seen)));
    (result, seen.unwrap_or_default())
}

/// Where a state that is being made keeps its items.
pub(crate) fn current() -> Option<Handle> {
    SCOPE.with_borrow(|scope| scope.as_ref().map(|scope| scope.handle.clone()))
}

/// What is being done with the state that these items belong to.
fn doing_with(items: &Arc<Items>) -> Option<Doing> {
    SCOPE.with_borrow(|scope| {
        let scope = scope.as_ref().filter(|scope| Arc::ptr_eq(&scope.handle.items, items));
        scope.map(|scope| scope.doing)
    })
}

/// Ends a turn with a fault, whatever it is doing: caught where panics are.
pub(crate) struct Abort(pub(crate) Fault);

fn abort(fault: Fault) -> ! {
    std::panic::resume_unwind(Box::new(Abort(fault)))
}

/// Where the items of one collection are.
///
/// Invariant: `id` is there once it has had an item.
struct Place {
    handle: Handle,
    id: Option<CollectionId>,
    /// A clone: may be read only.
    copied: bool,
}

impl Default for Place {
    fn default() -> Self {
        let handle = SCOPE.with_borrow(|scope| {
            let scope = scope.as_ref().filter(|scope| matches!(scope.doing, Doing::Decode | Doing::Write));
            scope.map(|scope| scope.handle.clone())
        });
        Self { handle: handle.unwrap_or_else(Handle::detached), id: None, copied: false }
    }
}

impl Clone for Place {
    fn clone(&self) -> Self {
        Self { handle: self.handle.clone(), id: self.id, copied: true }
    }
}

impl Place {
    /// A collection of nothing in the place of this one, which loses its items.
    fn renewed(&self) -> Self {
        self.check_writable();
        Self { handle: self.handle.clone(), id: None, copied: false }
    }

    /// The collection's id, as something is to be written.
    fn id(&mut self) -> CollectionId {
        self.check_writable();
        *self.id.get_or_insert_with(|| self.handle.items.new_id())
    }

    fn check_writable(&self) {
        assert!(!self.copied, "a clone of a collection is a copy to read from, it cannot be written");
        let items = &self.handle.items;
        let writable = items.is_detached() || doing_with(items) == Some(Doing::Write);
        assert!(writable, "a collection is written in a turn of its actor only");
    }

    /// Writes the head of a collection into its actor's state.
    fn encode<S: Serializer>(&self, head: &impl Serialize, to: S) -> Result<S::Ok, S::Error> {
        if doing_with(&self.handle.items) != Some(Doing::Encode) {
            return refuse::<S>(
                "a collection belongs to the state of its actor: it cannot be sent, answered, published or put into another \
                 collection",
            );
        }
        if self.copied {
            return refuse::<S>(
                "a clone of a collection is a copy to read from, it cannot be kept in the state",
            );
        }
        SCOPE.with_borrow_mut(|scope| {
            if let (Some(scope), Some(id)) = (scope, self.id) {
                scope.seen.push(id);
            }
        });
        head.serialize(to)
    }

    /// Reads the head of a collection out of its actor's state.
    fn decode<'de, D: Deserializer<'de>, H: Deserialize<'de>>(
        from: D,
        id: impl FnOnce(&H) -> Option<CollectionId>,
    ) -> Result<(Self, H), D::Error> {
        let head = H::deserialize(from)?;
        let id = id(&head);
        let handle = SCOPE.with_borrow_mut(|scope| {
            let scope = scope.as_mut().filter(|scope| scope.doing == Doing::Decode)?;
            scope.seen.extend(id);
            Some(scope.handle.clone())
        });
        let handle = handle.ok_or_else(|| {
            D::Error::custom("a collection belongs to the state of its actor: it cannot be received")
        })?;
        Ok((Self { handle, id, copied: false }, head))
    }
}

/// Refuses to encode a collection. Encoders keep to themselves what a value has to say, so a turn is ended.
fn refuse<S: Serializer>(why: &str) -> Result<S::Ok, S::Error> {
    assert!(current().is_none(), "{why}");
    Err(S::Error::custom(why))
}

/// Shape of an id that may be missing.
fn id_schema(types: &mut Types) -> Type {
    types.holds_collections();
    Type::Option(Box::new(Type::Tuple(vec![Type::Uint(64), Type::Uint(64)])))
}
