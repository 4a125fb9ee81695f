//! The form of a stored item: the fingerprint of its type's schema, then its encoding.

use std::any::TypeId;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use bytes::Bytes;
use foldhash::fast::FixedState;

use super::items::Handle;
use crate::data::Data;
use crate::schema::Schema;

/// Bytes in front of a stored item.
const FINGERPRINT_BYTES: usize = 8;

/// What is known of a type of items.
struct ItemType {
    fingerprint: u64,
    schema: Schema,
    /// Values may nest without end: they are read by the schema.
    explosive: bool,
}

fn item_type<T: Data>() -> Rc<ItemType> {
    thread_local! {
        static TYPES: RefCell<HashMap<TypeId, Rc<ItemType>, FixedState>> = RefCell::default();
    }
    if let Some(known) = TYPES.with_borrow(|types| types.get(&TypeId::of::<T>()).cloned()) {
        return known;
    }
    let schema = Schema::of::<T>();
    let (fingerprint, explosive) = (schema.fingerprint(), schema.is_explosive());
    let made = Rc::new(ItemType { fingerprint, schema, explosive });
    TYPES.with_borrow_mut(|types| types.insert(TypeId::of::<T>(), made.clone()));
    made
}

/// Encodes an item; its schema goes into the log with it. Ends the turn when it cannot be kept.
pub(super) fn encode<T: Data>(handle: &Handle, item: &T) -> Bytes {
    let of = item_type::<T>();
    let bytes = of.fingerprint.to_be_bytes().to_vec();
    let bytes = match postcard::to_extend(item, bytes) {
        Ok(bytes) => bytes,
        Err(error) => handle.unreadable(format!("{}: {error}", std::any::type_name::<T>())),
    };
    if of.explosive
        && let Err(error) = of.schema.check(&bytes[FINGERPRINT_BYTES..])
    {
        handle.unreadable(error.to_string());
    }
    let schema = || Bytes::from(postcard::to_stdvec(&of.schema).expect("a schema always encodes"));
    handle.use_schema(of.fingerprint, schema);
    bytes.into()
}

/// Decodes a stored item, whatever its type was when it was stored. Ends the turn when that cannot be done.
pub(super) fn decode<T: Data>(handle: &Handle, stored: &[u8]) -> T {
    read(handle, stored).unwrap_or_else(|why| handle.unreadable(why))
}

fn read<T: Data>(handle: &Handle, stored: &[u8]) -> Result<T, String> {
    let (fingerprint, bytes) =
        stored.split_first_chunk::<FINGERPRINT_BYTES>().ok_or("it is shorter than its fingerprint")?;
    let fingerprint = u64::from_be_bytes(*fingerprint);
    let of = item_type::<T>();
    if fingerprint != of.fingerprint {
        let schema = handle.schema(fingerprint)?;
        return T::upgrade(bytes, &schema).map_err(|error| error.to_string());
    }
    if of.explosive {
        return of.schema.read(bytes).map_err(|error| error.to_string());
    }
    match postcard::take_from_bytes(bytes) {
        Ok((item, [])) => Ok(item),
        Ok((_, rest)) => Err(format!("{} bytes too many", rest.len())),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use perennial_core::id::{GroupId, PartitionId, Term};
    use perennial_core::partition::rows;
    use perennial_core::replication::RowOp;
    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::collections::{Abort, Doing, Ids, within};
    use crate::prelude::*;
    use crate::replica::{MemoryRows, RowStore};

    /// A line as it was.
    #[data]
    struct Old {
        who: String,
        at: u32,
    }

    /// And as it is.
    #[data]
    struct New {
        at: u64,
        #[serde(default)]
        edited: bool,
        who: String,
    }

    /// Contains itself.
    #[data]
    struct Nested(Option<Box<Nested>>);

    /// Says no.
    #[derive(Debug, Clone, PartialEq, Deserialize)]
    struct Refuses;

    impl Serialize for Refuses {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("no"))
        }
    }

    impl Data for Refuses {
        fn schema(_: &mut crate::schema::Types) -> crate::schema::Type {
            crate::schema::Type::Unit
        }
    }

    fn group() -> GroupId {
        GroupId::of(PartitionId(0))
    }

    fn handle(rows: &Arc<MemoryRows>) -> Handle {
        Handle::of("Room/a".parse().unwrap(), group(), rows.clone(), Ids::new(Term(1)))
    }

    /// The fault that a turn ends with.
    fn fault<T>(handle: &Handle, run: impl FnOnce() -> T) -> String {
        let run = || within(Doing::Write, handle, run).0;
        let end = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
        let panic = end.err().expect("it is refused");
        panic.downcast_ref::<Abort>().expect("a fault").0.to_string()
    }

    #[test]
    fn items_of_an_older_type_are_read_by_field_name() {
        let rows = Arc::new(MemoryRows::default());
        let handle = handle(&rows);
        let stored = encode(&handle, &Old { who: "ann".into(), at: 5 });
        let unknown = fault(&handle, || decode::<New>(&handle, &stored));
        assert!(unknown.contains("item of Room/a") && unknown.contains("is not in the log"), "{unknown}");
        let schemas = handle.take_draft().schemas;
        let put = |(fingerprint, schema): (u64, Bytes)| RowOp::Put {
            key: rows::schema(fingerprint),
            value: [&[0; 8], &schema[..]].concat(),
        };
        rows.write(vec![(group(), schemas.into_iter().map(put).collect())]).unwrap();
        let new = New { who: "ann".into(), at: 5, edited: false };
        assert_eq!(decode::<New>(&handle, &stored), new);
        assert_eq!(decode::<Old>(&handle, &stored), Old { who: "ann".into(), at: 5 });
        let mismatch = fault(&handle, || decode::<u64>(&handle, &stored));
        assert!(mismatch.contains("item of Room/a"), "{mismatch}");
    }

    #[test]
    fn damaged_items_and_those_that_cannot_be_kept_end_the_turn() {
        let handle = handle(&Arc::default());
        let whole = encode(&handle, &7_u64);
        assert_eq!(decode::<u64>(&handle, &whole), 7);
        for damaged in [&whole[..7], &whole[..8], &[&whole[..], &[0]].concat()] {
            fault(&handle, || decode::<u64>(&handle, damaged));
        }
        fault(&handle, || encode(&handle, &Refuses));
        let mut deep = Nested(None);
        for _ in 0..2 {
            deep = Nested(Some(Box::new(deep)));
        }
        assert_eq!(decode::<Nested>(&handle, &encode(&handle, &deep)), deep);
        for _ in 0..2 * crate::schema::DEPTH_MAX {
            deep = Nested(Some(Box::new(deep)));
        }
        fault(&handle, || encode(&handle, &deep));
    }

    #[test]
    fn collections_that_the_state_does_not_name_any_more_are_dropped() {
        use perennial_core::partition::record::{CollectionId, ItemChange};
        let rows = Arc::new(MemoryRows::default());
        let handle = handle(&rows);
        let id = |number| CollectionId { term: Term(1), number };
        let actor = "Room/a".parse().unwrap();
        let item =
            |number, key: u8| RowOp::Put { key: rows::item(&actor, id(number), &[key]), value: vec![] };
        let items = [(1, 1), (1, 2), (2, 0), (7, 255)].map(|(number, key)| item(number, key));
        rows.write(vec![(group(), items.to_vec())]).unwrap();
        handle.decoded(vec![id(2)]);
        assert!(handle.find_lost().unwrap());
        handle.encoded(vec![id(2)]);
        let changes = handle.changes(&handle.take_draft());
        let drop = |number| ItemChange::Drop { collection: id(number), below: Bytes::new() };
        assert_eq!(changes, [drop(1), drop(7)]);
    }
}
