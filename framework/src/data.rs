//! What may be stored or sent: types with `#[data]`.
//!
//! Owns the trait [`Data`] and its implementations for the types of the standard library. Never reads
//! or writes bytes itself: serde does, postcard between nodes and JSON at the edge.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, Hash};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use perennial_core::id::{ActorId, NodeId};
use perennial_core::time::Millis;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::schema::{Field, Schema, SchemaError, Shape, Type, Types};

/// A type that may be stored or sent. Derived with `#[data]`; implemented for the standard types.
///
/// It carries its schema, so that older states can be read by field name and any state can be shown.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be stored or sent",
    note = "put `#[data]` on your own types",
    note = "a handler that can fail writes `Result<T, E>` or `Reply<T, E>` out in full"
)]
pub trait Data: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Describes the type; named types are entered into `types` once.
    fn schema(types: &mut Types) -> Type;

    /// Fingerprints of the types that this one is upgraded from, the next older one first.
    #[must_use]
    fn replaces() -> Vec<u64> {
        Vec::new()
    }

    /// Reads a state that was written with another schema, without losing any of it: by field name, or as
    /// the type that `#[data(upgrade_from = ..)]` names. The latter if that type or one it replaces was
    /// written; for other states, which are of before or of between, if that type reads them, unless they
    /// say themselves that they replace it.
    ///
    /// # Errors
    /// What does not fit or would be lost; [`SchemaError::Newer`] when the state says that its type
    /// replaces this one.
    fn upgrade(bytes: &[u8], written_with: &Schema) -> Result<Self, SchemaError> {
        by_name(bytes, written_with)
    }
}

/// [`Data::upgrade`] of a type that replaces none.
fn by_name<T: Data>(bytes: &[u8], written_with: &Schema) -> Result<T, SchemaError> {
    if written_with.replaces.contains(&own_fingerprint::<T>()) {
        return Err(SchemaError::Newer);
    }
    written_with.read_whole(bytes)
}

/// [`Data::replaces`] of a type that replaces `Old` (used by generated code).
#[doc(hidden)]
#[must_use]
pub fn replaced<Old: Data>() -> Vec<u64> {
    std::iter::once(own_fingerprint::<Old>()).chain(Old::replaces()).collect()
}

/// Fingerprint of the schema of `T`.
fn own_fingerprint<T: Data>() -> u64 {
    Schema::of::<T>().fingerprint()
}

/// [`Data::upgrade`] of a type that replaces `Old` (used by generated code).
#[doc(hidden)]
pub fn upgrade_from<Old: Data, T: Data + From<Old>>(
    bytes: &[u8],
    written_with: &Schema,
) -> Result<T, SchemaError> {
    let own = own_fingerprint::<T>();
    let (fingerprint, replaced) = (written_with.fingerprint(), replaced::<Old>());
    let ours = fingerprint == own || written_with.replaces.contains(&own);
    if ours || replaced.first().is_some_and(|old| written_with.replaces.contains(old)) {
        return by_name(bytes, written_with);
    }
    let upgraded = Old::upgrade(bytes, written_with).map(T::from);
    if replaced.contains(&fingerprint) {
        upgraded
    } else {
        upgraded.or_else(|_| by_name(bytes, written_with))
    }
}

macro_rules! plain {
    ($($ty:ty => $schema:expr,)*) => {$(
        impl Data for $ty {
            fn schema(_: &mut Types) -> Type {
                $schema
            }
        }
    )*};
}

plain! {
    () => Type::Unit,
    bool => Type::Bool,
    i8 => Type::Int(8),
    i16 => Type::Int(16),
    i32 => Type::Int(32),
    i64 => Type::Int(64),
    i128 => Type::Int(128),
    isize => Type::Int(64),
    u8 => Type::Uint(8),
    u16 => Type::Uint(16),
    u32 => Type::Uint(32),
    u64 => Type::Uint(64),
    u128 => Type::Uint(128),
    usize => Type::Uint(64),
    std::num::NonZeroU32 => Type::Uint(32),
    std::num::NonZeroU64 => Type::Uint(64),
    f32 => Type::F32,
    f64 => Type::F64,
    char => Type::Char,
    String => Type::String,
    Box<str> => Type::String,
    Bytes => Type::Bytes,
    ActorId => Type::String,
    NodeId => Type::String,
    Millis => Type::Uint(64),
}

impl<T: Data> Data for Box<T> {
    fn schema(types: &mut Types) -> Type {
        T::schema(types)
    }
}

impl<T: Data> Data for Option<T> {
    fn schema(types: &mut Types) -> Type {
        Type::Option(Box::new(T::schema(types)))
    }
}

fn seq<T: Data>(types: &mut Types) -> Type {
    Type::Seq(Box::new(T::schema(types)))
}

fn map<K: Data, V: Data>(types: &mut Types) -> Type {
    let key = K::schema(types);
    Type::Map(Box::new(key), Box::new(V::schema(types)))
}

impl<T: Data> Data for Vec<T> {
    fn schema(types: &mut Types) -> Type {
        seq::<T>(types)
    }
}

impl<T: Data> Data for Box<[T]> {
    fn schema(types: &mut Types) -> Type {
        seq::<T>(types)
    }
}

impl<T: Data> Data for VecDeque<T> {
    fn schema(types: &mut Types) -> Type {
        seq::<T>(types)
    }
}

impl<T: Data + Ord> Data for BTreeSet<T> {
    fn schema(types: &mut Types) -> Type {
        seq::<T>(types)
    }
}

impl<T, S> Data for HashSet<T, S>
where
    T: Data + Eq + Hash,
    S: BuildHasher + Default + Send + Sync + 'static,
{
    fn schema(types: &mut Types) -> Type {
        seq::<T>(types)
    }
}

impl<K: Data + Ord, V: Data> Data for BTreeMap<K, V> {
    fn schema(types: &mut Types) -> Type {
        map::<K, V>(types)
    }
}

impl<K, V, S> Data for HashMap<K, V, S>
where
    K: Data + Eq + Hash,
    V: Data,
    S: BuildHasher + Default + Send + Sync + 'static,
{
    fn schema(types: &mut Types) -> Type {
        map::<K, V>(types)
    }
}

impl<T: Data, const N: usize> Data for [T; N]
where
    [T; N]: Serialize + DeserializeOwned,
{
    fn schema(types: &mut Types) -> Type {
        let element = T::schema(types);
        Type::Tuple(vec![element; N])
    }
}

macro_rules! tuples {
    ($(($($name:ident)+))+) => {$(
        impl<$($name: Data),+> Data for ($($name,)+) {
            fn schema(types: &mut Types) -> Type {
                Type::Tuple(vec![$($name::schema(types)),+])
            }
        }
    )+};
}

tuples! {
    (A) (A B) (A B C) (A B C D) (A B C D E) (A B C D E F) (A B C D E F G) (A B C D E F G H)
}

/// Serde's form of the two types of time: a number of seconds and one of nanoseconds.
fn time(types: &mut Types, seconds: &str, nanos: &str) -> Shape {
    Shape::Struct(vec![
        Field { name: seconds.to_owned(), ty: u64::schema(types) },
        Field { name: nanos.to_owned(), ty: u32::schema(types) },
    ])
}

impl Data for Duration {
    fn schema(types: &mut Types) -> Type {
        types.named::<Self>("Duration", |types| time(types, "secs", "nanos"))
    }
}

impl Data for SystemTime {
    fn schema(types: &mut Types) -> Type {
        types.named::<Self>("SystemTime", |types| time(types, "secs_since_epoch", "nanos_since_epoch"))
    }
}
