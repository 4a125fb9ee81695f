//! A sorted map.

use std::borrow::Borrow;
use std::marker::PhantomData;
use std::ops::{Bound, RangeBounds};

use perennial_core::partition::record::CollectionId;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::key::{self, MapKey};
use super::pages::{MapRange, Pages};
use super::{Place, id_schema, stored};
use crate::data::Data;
use crate::schema::{Field, Shape, Type, Types};

/// A sorted map in an actor's state, each item a row of its own.
///
/// Looking one up costs the same however many there are. See the [module](super) for the rules of
/// collections.
pub struct Map<K, V> {
    place: Place,
    len: u64,
    item: PhantomData<fn() -> (K, V)>,
}

/// A map as its actor's state has it.
#[derive(Serialize, Deserialize)]
struct Head {
    items: Option<CollectionId>,
    /// The type of the keys: rows would be misread as another one.
    keys: String,
    len: u64,
}

impl<K: MapKey, V: Data> Map<K, V> {
    /// How many items there are.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The item of this key.
    #[must_use]
    pub fn get<Q: MapKey + ?Sized>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let value = self.place.handle.get(self.place.id?, &key::encoded(key))?;
        Some(stored::decode(&self.place.handle, &value))
    }

    /// Whether there is an item of this key.
    #[must_use]
    pub fn contains_key<Q: MapKey + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.place.id.is_some_and(|id| self.place.handle.get(id, &key::encoded(key)).is_some())
    }

    /// Sets the item of a key; returns the one before.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let before = self.get(&key);
        let id = self.place.id();
        let value = stored::encode(&self.place.handle, &value);
        self.place.handle.put(id, key::encoded(&key), Some(value));
        self.len += u64::from(before.is_none());
        before
    }

    /// Removes the item of a key; returns it.
    pub fn remove<Q: MapKey + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let before = self.get(key)?;
        let id = self.place.id();
        self.place.handle.put(id, key::encoded(key), None);
        self.len -= 1;
        Some(before)
    }

    /// Items with their keys, in the order of the keys. They are read as they are asked for, so take as many as
    /// you need.
    pub fn range<Q: MapKey + ?Sized>(&self, range: impl RangeBounds<Q>) -> MapRange<'_, K, V>
    where
        K: Borrow<Q>,
    {
        // No key is the beginning of another: the next one is behind this with any byte more.
        let behind = |key: &Q| [&key::encoded(key)[..], &[0]].concat();
        let from = match range.start_bound() {
            Bound::Included(key) => key::encoded(key),
            Bound::Excluded(key) => behind(key),
            Bound::Unbounded => Vec::new(),
        };
        let to = match range.end_bound() {
            Bound::Included(key) => Some(behind(key)),
            Bound::Excluded(key) => Some(key::encoded(key)),
            Bound::Unbounded => None,
        };
        MapRange { pages: Pages::new(&self.place, from, to, None), map: PhantomData }
    }

    /// All items with their keys, in order.
    pub fn iter(&self) -> MapRange<'_, K, V> {
        self.range::<K>(..)
    }

    /// Removes all items.
    pub fn clear(&mut self) {
        self.place = self.place.renewed();
        self.len = 0;
    }
}

impl<K, V> Default for Map<K, V> {
    fn default() -> Self {
        Self { place: Place::default(), len: 0, item: PhantomData }
    }
}

/// A copy to read from, which cannot be written or kept.
impl<K, V> Clone for Map<K, V> {
    fn clone(&self) -> Self {
        Self { place: self.place.clone(), len: self.len, item: PhantomData }
    }
}

/// Whether they are the same map with as many items; other maps are never equal unless both are empty.
impl<K, V> PartialEq for Map<K, V> {
    fn eq(&self, other: &Self) -> bool {
        (self.place.id, self.len) == (other.place.id, other.len)
    }
}

impl<K, V> std::fmt::Debug for Map<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Map").field("len", &self.len).finish()
    }
}

impl<K: MapKey, V> Serialize for Map<K, V> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.place.encode(&Head { items: self.place.id, keys: K::name(), len: self.len }, to)
    }
}

impl<'de, K: MapKey, V> Deserialize<'de> for Map<K, V> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let (place, head) = Place::decode(from, |head: &Head| head.items)?;
        if head.keys != K::name() {
            let text = format!("the keys of a map are {}, not {}", head.keys, K::name());
            return Err(D::Error::custom(text));
        }
        if head.items.is_none() && head.len > 0 {
            return Err(D::Error::custom("the head of a map is damaged"));
        }
        Ok(Self { place, len: head.len, item: PhantomData })
    }
}

impl<K: MapKey + 'static, V: Data> Data for Map<K, V> {
    fn schema(types: &mut Types) -> Type {
        types.named::<Head>("Map", |types| {
            let field = |name: &str, ty| Field { name: name.to_owned(), ty };
            Shape::Struct(vec![
                field("items", id_schema(types)),
                field("keys", Type::String),
                field("len", Type::Uint(64)),
            ])
        })
    }
}
