//! Shapes of data: what postcard bytes mean.
//!
//! Owns the description of types and everything that reads bytes by a description instead of by a Rust
//! type. postcard is compact because it does not describe itself; a [`Schema`] kept beside the bytes
//! does. Never writes states. In: a stored schema and postcard bytes. Out: today's type, filled by field
//! name, or JSON. Types refer to each other by name, so that recursive types end.

mod json;
mod read;
pub(crate) mod text;
pub(crate) mod witness;

use std::any::TypeId;
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use serde::de::{Deserializer, IgnoredAny};
use serde::{Deserialize, Serialize};

use crate::data::Data;

/// Deepest nesting of values that is read by schema, and of types in a stored schema.
pub const DEPTH_MAX: usize = 128;
/// Most elements of a sequence whose elements take no bytes, such as `Vec<()>`.
pub const EMPTY_ELEMENTS_MAX: u64 = 4096;
/// Values read for each byte, beside those of [`EMPTY_ELEMENTS_MAX`]: a schema can ask for any number of
/// values that take no bytes.
const VALUES_PER_BYTE_MAX: u64 = 16;
/// Nesting of types, through their names, that tells schemas apart; deeper values cannot be read.
const FINGERPRINT_DEPTH_MAX: usize = 4 * DEPTH_MAX;

/// A type's shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Type {
    /// `()` or a unit struct.
    Unit,
    /// `bool`.
    Bool,
    /// Signed integer of this many bits (8 to 128).
    Int(u8),
    /// Unsigned integer of this many bits.
    Uint(u8),
    /// `f32`.
    F32,
    /// `f64`.
    F64,
    /// `char`.
    Char,
    /// `String`.
    String,
    /// Byte string (`bytes::Bytes`).
    Bytes,
    /// `Option<T>`.
    Option(#[serde(deserialize_with = "nested")] Box<Type>),
    /// Sequence of unknown length.
    Seq(#[serde(deserialize_with = "nested")] Box<Type>),
    /// Tuple or array: elements in order, no length on the wire.
    Tuple(#[serde(deserialize_with = "nested")] Vec<Type>),
    /// Map.
    Map(#[serde(deserialize_with = "nested")] Box<Type>, #[serde(deserialize_with = "nested")] Box<Type>),
    /// A named type, to be looked up in [`Types`].
    Named(String),
}

/// The shape of a named type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Shape {
    /// Struct with named fields, in order of declaration.
    Struct(Vec<Field>),
    /// Newtype struct.
    Newtype(Type),
    /// Tuple struct.
    Tuple(Vec<Type>),
    /// Unit struct.
    Unit,
    /// Enum; the position is the number on the wire.
    Enum(Vec<Variant>),
}

/// A named field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Field {
    /// Name as serde sees it.
    pub name: String,
    /// Type.
    pub ty: Type,
}

/// A variant of an enum.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Variant {
    /// Name as serde sees it.
    pub name: String,
    /// What it carries.
    #[serde(deserialize_with = "nested")]
    pub shape: Shape,
}

/// Decodes a part of a type, at most [`DEPTH_MAX`] deep: a stored schema is not believed.
fn nested<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    thread_local! {
        static DEPTH: Cell<usize> = const { Cell::new(0) };
    }
    struct Up(usize);
    impl Drop for Up {
        fn drop(&mut self) {
            DEPTH.set(self.0);
        }
    }
    let depth = DEPTH.get();
    if depth == DEPTH_MAX {
        return Err(serde::de::Error::custom(SchemaError::TooDeep));
    }
    DEPTH.set(depth + 1);
    let _up = Up(depth);
    T::deserialize(from)
}

/// Named types, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Types {
    /// The types.
    pub by_name: BTreeMap<String, Shape>,
    /// Which Rust type took which name, and whether one is a collection; empty in stored schemas.
    #[serde(skip)]
    entered: Entered,
    /// What types have given up; empty in stored schemas.
    #[serde(skip)]
    removed: Removed,
}

/// Fields that types have given up, by the type's name and `field` or `Variant.field`. Not part of a
/// schema's identity.
#[derive(Debug, Clone, Default)]
struct Removed(BTreeMap<&'static str, BTreeSet<&'static str>>);

impl PartialEq for Removed {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
impl Eq for Removed {}

impl Removed {
    fn holds(&self, ty: &str, variant: Option<&str>, field: &str) -> bool {
        self.0.get(ty).is_some_and(|fields| match variant {
            None => fields.contains(field),
            Some(variant) => fields.iter().any(|removed| removed.split_once('.') == Some((variant, field))),
        })
    }
}

/// Not part of a schema's identity.
#[derive(Debug, Clone, Default)]
struct Entered(BTreeMap<TypeId, String>, bool);

impl PartialEq for Entered {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
impl Eq for Entered {}

impl Types {
    /// Takes note that there is a collection among the types: values of them belong to an actor's state.
    pub(crate) fn holds_collections(&mut self) {
        self.entered.1 = true;
    }

    /// Whether there is a collection among the types, as far as they were described by Rust types.
    pub(crate) fn has_collections(&self) -> bool {
        self.entered.1
    }

    /// Enters the type `T` unless it is there, and refers to it. A second Rust type of the same name is
    /// entered as `Name#2`, and so on. A recursive type finds itself entered.
    pub fn named<T: 'static>(&mut self, name: &str, shape: impl FnOnce(&mut Self) -> Shape) -> Type {
        let id = TypeId::of::<T>();
        if let Some(name) = self.entered.0.get(&id) {
            return Type::Named(name.clone());
        }
        let numbered = (2..).map(|n| format!("{name}#{n}"));
        let free = std::iter::once(name.to_owned()).chain(numbered).find(|n| !self.by_name.contains_key(n));
        let name = free.unwrap_or_else(|| unreachable!("numbers do not run out"));
        self.entered.0.insert(id, name.clone());
        self.by_name.insert(name.clone(), Shape::Unit);
        let shape = shape(self);
        self.by_name.insert(name.clone(), shape);
        Type::Named(name)
    }

    /// Says that what states hold in these fields of a type may be lost (used by generated code).
    #[doc(hidden)]
    pub fn removed(&mut self, ty: &'static str, fields: &[&'static str]) {
        self.removed.0.entry(ty).or_default().extend(fields);
    }
}

/// A root type with the named types it needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schema {
    /// The type.
    pub root: Type,
    /// What it refers to.
    pub types: Types,
    /// Fingerprints of the types that this one is upgraded from: a build of one of them is older than
    /// a state with this schema. Not part of the fingerprint.
    pub replaces: Vec<u64>,
}

/// Why bytes could not be read by a schema; nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SchemaError {
    /// The bytes are not what the schema says.
    #[error("the bytes end early or are damaged")]
    Bytes(#[from] postcard::Error),
    /// Bytes are left after the value.
    #[error("{0} bytes too many")]
    BytesLeft(usize),
    /// A length that the bytes cannot hold.
    #[error("a length of {len} with {left} bytes left")]
    Length {
        /// The stored length.
        len: u64,
        /// The bytes behind it.
        left: usize,
    },
    /// Values are nested deeper than [`DEPTH_MAX`].
    #[error("values are nested deeper than {DEPTH_MAX}")]
    TooDeep,
    /// There are more values than bytes for them.
    #[error("there are far more values than bytes")]
    TooMany,
    /// The schema names a type that it does not hold.
    #[error("the schema lacks the type {0:?}")]
    UnknownType(String),
    /// The schema holds a number of a width there is not.
    #[error("the schema has a number of {0} bits")]
    UnknownWidth(u8),
    /// The enum has no variant of this number.
    #[error("the schema has no variant {0}")]
    UnknownVariant(u32),
    /// Elements are left that the type has no place for.
    #[error("{0} elements too many for the type")]
    ElementsLeft(u64),
    /// A build with a newer type wrote it, which says that it replaces this one.
    #[error("a newer build wrote it, whose type is upgraded from the one of this build")]
    Newer,
    /// The type has no place for something that is stored.
    #[error(
        "it is stored, and the type has no place for it: keep the field, name the one that has taken its place \
         with #[serde(alias)], or give it up with #[data(removed(..))]"
    )]
    NoPlace,
    /// The value does not fit the type; the text is serde's.
    #[error("{0}")]
    Mismatch(String),
    /// What is wrong with a part of the value.
    #[error("{part}: {source}")]
    Within {
        /// A field or the position of an element.
        part: String,
        /// What is wrong with it.
        source: Box<SchemaError>,
    },
}

impl serde::de::Error for SchemaError {
    fn custom<T: std::fmt::Display>(text: T) -> Self {
        Self::Mismatch(text.to_string())
    }
}

impl SchemaError {
    fn within(self, part: impl Into<String>) -> Self {
        Self::Within { part: part.into(), source: Box::new(self) }
    }
}

impl Schema {
    /// The schema of `T`.
    #[must_use]
    pub fn of<T: Data>() -> Self {
        let mut types = Types::default();
        Self { root: T::schema(&mut types), types, replaces: T::replaces() }
    }

    /// Decodes a stored schema that takes all the bytes.
    ///
    /// # Errors
    /// [`SchemaError::Bytes`], also for types nested deeper than [`DEPTH_MAX`], or
    /// [`SchemaError::BytesLeft`].
    pub fn decode(bytes: &[u8]) -> Result<Self, SchemaError> {
        match postcard::take_from_bytes(bytes)? {
            (schema, []) => Ok(schema),
            (_, rest) => Err(SchemaError::BytesLeft(rest.len())),
        }
    }

    /// Whether few bytes can make a decoder that does not know of it nest without end or run for ever:
    /// a type contains itself, or a sequence has elements that take no bytes.
    #[must_use]
    pub fn is_explosive(&self) -> bool {
        let mut walk = Walk { types: &self.types, open: Vec::new(), explosive: false };
        walk.takes_bytes(&self.root);
        walk.explosive
    }

    /// Checks postcard bytes written with this schema without making a value of them.
    ///
    /// # Errors
    /// What does not fit; [`SchemaError::TooDeep`] for what could not be read back.
    pub fn check(&self, bytes: &[u8]) -> Result<(), SchemaError> {
        self.read::<IgnoredAny>(bytes).map(drop)
    }

    /// A number that differs between schemas of different meaning: the low half of the frozen 128-bit
    /// hash over the shapes, in the order in which they are met. Names of fields and variants count,
    /// names of types do not, so that renaming a type changes nothing. Frozen by a test.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        let (numbers, shapes) = (BTreeMap::new(), Vec::new());
        let mut canonical = Canonical { types: &self.types, numbers, shapes, depth: 0 };
        let root = canonical.ty(&self.root);
        let bytes = postcard::to_stdvec(&(root, canonical.shapes))
            .unwrap_or_else(|error| unreachable!("a schema always encodes: {error}"));
        perennial_core::hash::wide_hash(&bytes) as u64
    }

    /// Decodes postcard bytes written with this schema into today's `T`, by the names of fields and
    /// variants. Fields may have been added with `#[serde(default)]`, removed, reordered, renamed with
    /// `#[serde(alias)]`, made optional or widened.
    ///
    /// # Errors
    /// What does not fit.
    pub fn read<T: serde::de::DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, SchemaError> {
        read::Reader::new(&self.types, bytes).whole(|reader| T::deserialize(reader.value(&self.root)))
    }

    /// As [`read`](Self::read), but nothing that is stored is left out unless `T` has given it up with
    /// `#[data(removed(..))]`: what is written back then has lost nothing.
    ///
    /// # Errors
    /// What does not fit; [`SchemaError::NoPlace`] for what would be lost.
    pub fn read_whole<T: Data>(&self, bytes: &[u8]) -> Result<T, SchemaError> {
        let mut types = Types::default();
        T::schema(&mut types);
        let reader = read::Reader::new(&self.types, bytes).losing(&types.removed);
        reader.whole(|reader| T::deserialize(reader.value(&self.root)))
    }

    /// Renders postcard bytes written with this schema as JSON. A map whose keys are not plain becomes a
    /// list of pairs, an integer beyond 64 bits a string.
    ///
    /// # Errors
    /// What does not fit.
    pub fn to_json(&self, bytes: &[u8]) -> Result<serde_json::Value, SchemaError> {
        read::Reader::new(&self.types, bytes)
            .whole(|reader| json::render(reader, read::Node::Type(&self.root)))
    }
}

/// A schema with its named types numbered as they are met.
struct Canonical<'s> {
    types: &'s Types,
    numbers: BTreeMap<&'s str, usize>,
    shapes: Vec<Shape>,
    depth: usize,
}

impl<'s> Canonical<'s> {
    fn ty(&mut self, ty: &'s Type) -> Type {
        if self.depth == FINGERPRINT_DEPTH_MAX {
            return Type::Unit;
        }
        self.depth += 1;
        let numbered = self.numbered(ty);
        self.depth -= 1;
        numbered
    }

    fn numbered(&mut self, ty: &'s Type) -> Type {
        match ty {
            Type::Named(name) => {
                if let Some(number) = self.numbers.get(name.as_str()) {
                    return Type::Named(number.to_string());
                }
                let Some(shape) = self.types.by_name.get(name) else { return ty.clone() };
                let number = self.shapes.len();
                self.numbers.insert(name, number);
                self.shapes.push(Shape::Unit);
                self.shapes[number] = self.shape(shape);
                Type::Named(number.to_string())
            }
            Type::Option(inner) => Type::Option(Box::new(self.ty(inner))),
            Type::Seq(inner) => Type::Seq(Box::new(self.ty(inner))),
            Type::Tuple(inner) => Type::Tuple(self.tys(inner)),
            Type::Map(key, value) => {
                let key = self.ty(key);
                Type::Map(Box::new(key), Box::new(self.ty(value)))
            }
            scalar => scalar.clone(),
        }
    }

    fn tys(&mut self, types: &'s [Type]) -> Vec<Type> {
        types.iter().map(|ty| self.ty(ty)).collect()
    }

    fn shape(&mut self, shape: &'s Shape) -> Shape {
        match shape {
            Shape::Struct(fields) => {
                let field = |field: &'s Field| Field { name: field.name.clone(), ty: self.ty(&field.ty) };
                Shape::Struct(fields.iter().map(field).collect())
            }
            Shape::Newtype(inner) => Shape::Newtype(self.ty(inner)),
            Shape::Tuple(inner) => Shape::Tuple(self.tys(inner)),
            Shape::Unit => Shape::Unit,
            Shape::Enum(variants) => {
                let variant = |v: &'s Variant| Variant { name: v.name.clone(), shape: self.shape(&v.shape) };
                Shape::Enum(variants.iter().map(variant).collect())
            }
        }
    }
}

/// Looks for what [`Schema::is_explosive`] tells.
struct Walk<'s> {
    types: &'s Types,
    /// Named types that are being looked at.
    open: Vec<&'s str>,
    explosive: bool,
}

impl<'s> Walk<'s> {
    /// Whether every value of the type takes at least one byte.
    fn takes_bytes(&mut self, ty: &'s Type) -> bool {
        match ty {
            Type::Unit => false,
            Type::Option(inner) => {
                self.takes_bytes(inner);
                true
            }
            Type::Seq(inner) => {
                self.explosive |= !self.takes_bytes(inner);
                true
            }
            Type::Map(key, value) => {
                let (key, value) = (self.takes_bytes(key), self.takes_bytes(value));
                self.explosive |= !key && !value;
                true
            }
            Type::Tuple(inner) => self.any(inner),
            Type::Named(name) if self.open.contains(&name.as_str()) => {
                self.explosive = true;
                true
            }
            Type::Named(name) => {
                let Some(shape) = self.types.by_name.get(name) else { return true };
                self.open.push(name);
                let takes = self.shape(shape);
                self.open.pop();
                takes
            }
            _ => true,
        }
    }

    /// Looks at all of them.
    fn any(&mut self, types: impl IntoIterator<Item = &'s Type>) -> bool {
        types.into_iter().fold(false, |any, ty| self.takes_bytes(ty) | any)
    }

    fn shape(&mut self, shape: &'s Shape) -> bool {
        match shape {
            Shape::Unit => false,
            Shape::Newtype(inner) => self.takes_bytes(inner),
            Shape::Tuple(inner) => self.any(inner),
            Shape::Struct(fields) => self.any(fields.iter().map(|field| &field.ty)),
            Shape::Enum(variants) => {
                for variant in variants {
                    self.shape(&variant.shape);
                }
                true
            }
        }
    }
}
