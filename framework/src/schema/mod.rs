//! Shapes of data: what postcard bytes mean.
//!
//! Owns the description of types and everything that reads bytes by a description instead of by a Rust
//! type. postcard is compact because it does not describe itself; a [`Schema`] kept beside the bytes
//! does. Never writes states. In: a stored schema and postcard bytes. Out: today's type, filled by field
//! name, or JSON. Types refer to each other by name, so that recursive types end.

mod json;
mod read;

use std::any::TypeId;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::data::Data;

/// Deepest nesting of values that is read by schema.
pub const DEPTH_MAX: usize = 128;
/// Most elements of a sequence whose elements take no bytes, such as `Vec<()>`.
pub const EMPTY_ELEMENTS_MAX: u64 = 4096;

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
    Option(Box<Type>),
    /// Sequence of unknown length.
    Seq(Box<Type>),
    /// Tuple or array: elements in order, no length on the wire.
    Tuple(Vec<Type>),
    /// Map.
    Map(Box<Type>, Box<Type>),
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
    pub shape: Shape,
}

/// Named types, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Types {
    /// The types.
    pub by_name: BTreeMap<String, Shape>,
    /// Which Rust type took which name; empty in stored schemas.
    #[serde(skip)]
    entered: Entered,
}

/// Not part of a schema's identity.
#[derive(Debug, Clone, Default)]
struct Entered(BTreeMap<TypeId, String>);

impl PartialEq for Entered {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
impl Eq for Entered {}

impl Types {
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
}

/// A root type with the named types it needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schema {
    /// The type.
    pub root: Type,
    /// What it refers to.
    pub types: Types,
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
        Self { root: T::schema(&mut types), types }
    }

    /// A number that differs between schemas of different meaning: the low half of the frozen 128-bit
    /// hash over the shapes, in the order in which they are met. Names of fields and variants count,
    /// names of types do not, so that renaming a type changes nothing. Frozen by a test.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        let mut canonical = Canonical { types: &self.types, numbers: BTreeMap::new(), shapes: Vec::new() };
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
}

impl<'s> Canonical<'s> {
    fn ty(&mut self, ty: &'s Type) -> Type {
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
