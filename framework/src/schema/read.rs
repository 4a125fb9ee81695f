//! A serde deserializer that is driven by a stored schema.
//!
//! It hands structs to serde as maps and variants by name, so that today's type decides what it takes.
//! Numbers, texts and lengths are postcard's own reading. Newtypes are transparent everywhere.

use serde::de::value::StrDeserializer;
use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, EnumAccess, Error, IntoDeserializer, MapAccess, SeqAccess,
    VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;

use super::{
    DEPTH_MAX, EMPTY_ELEMENTS_MAX, Field, Removed, SchemaError, Shape, Type, Types, VALUES_PER_BYTE_MAX,
    Variant,
};

const BYTE: &Type = &Type::Uint(8);

/// The bytes not read yet, and what their names mean.
pub(super) struct Reader<'s, 'de> {
    types: &'s Types,
    rest: &'de [u8],
    depth: usize,
    /// Values that may still be looked at.
    values: u64,
    /// What may be left out; anything when there is none of this.
    losing: Option<&'s Removed>,
}

/// A place in a schema.
#[derive(Clone, Copy)]
pub(super) enum Node<'s> {
    Type(&'s Type),
    Shape(&'s Shape),
}

/// What stands in the bytes at a place, names looked up and newtypes removed.
#[derive(Clone, Copy)]
pub(super) enum Wire<'s> {
    Scalar(&'s Type),
    Unit,
    Bytes,
    Option(&'s Type),
    Seq(&'s Type),
    Tuple(&'s [Type]),
    Map(&'s Type, &'s Type),
    Struct(&'s [Field]),
    Enum(&'s [Variant]),
}

impl<'s, 'de> Reader<'s, 'de> {
    pub(super) fn new(types: &'s Types, bytes: &'de [u8]) -> Self {
        let values = VALUES_PER_BYTE_MAX * bytes.len() as u64 + 2 * EMPTY_ELEMENTS_MAX;
        Self { types, rest: bytes, depth: 0, values, losing: None }
    }

    /// Nothing but these fields may be left out.
    pub(super) fn losing(self, removed: &'s Removed) -> Self {
        Self { losing: Some(removed), ..self }
    }

    /// Reads one value that takes all the bytes.
    pub(super) fn whole<T>(
        mut self,
        read: impl FnOnce(&mut Self) -> Result<T, SchemaError>,
    ) -> Result<T, SchemaError> {
        let value = read(&mut self)?;
        if self.rest.is_empty() { Ok(value) } else { Err(SchemaError::BytesLeft(self.rest.len())) }
    }

    pub(super) fn value<'r>(&'r mut self, ty: &'s Type) -> Value<'r, 's, 'de> {
        Value { reader: self, node: Node::Type(ty), into: Into::default() }
    }

    /// Looks through names and newtypes.
    pub(super) fn resolve(&mut self, mut node: Node<'s>) -> Result<Wire<'s>, SchemaError> {
        self.values = self.values.checked_sub(1).ok_or(SchemaError::TooMany)?;
        for _ in 0..DEPTH_MAX {
            node = match node {
                Node::Type(Type::Named(name)) => {
                    let shape = self.types.by_name.get(name);
                    Node::Shape(shape.ok_or_else(|| SchemaError::UnknownType(name.clone()))?)
                }
                Node::Shape(Shape::Newtype(ty)) => Node::Type(ty),
                Node::Type(Type::Unit) | Node::Shape(Shape::Unit) => return Ok(Wire::Unit),
                Node::Type(Type::Bytes) => return Ok(Wire::Bytes),
                Node::Type(Type::Option(ty)) => return Ok(Wire::Option(ty)),
                Node::Type(Type::Seq(ty)) => return Ok(Wire::Seq(ty)),
                Node::Type(Type::Tuple(types)) | Node::Shape(Shape::Tuple(types)) => {
                    return Ok(Wire::Tuple(types));
                }
                Node::Type(Type::Map(key, value)) => return Ok(Wire::Map(key, value)),
                Node::Type(scalar) => return Ok(Wire::Scalar(scalar)),
                Node::Shape(Shape::Struct(fields)) => return Ok(Wire::Struct(fields)),
                Node::Shape(Shape::Enum(variants)) => return Ok(Wire::Enum(variants)),
            };
        }
        Err(SchemaError::TooDeep)
    }

    /// Reads something that postcard knows.
    pub(super) fn take<T: Deserialize<'de>>(&mut self) -> Result<T, SchemaError> {
        let (value, rest) = postcard::take_from_bytes(self.rest)?;
        self.rest = rest;
        Ok(value)
    }

    /// Reads a length; the bytes behind it can hold that many elements.
    pub(super) fn length(&mut self) -> Result<u64, SchemaError> {
        let len = self.take::<u64>()?;
        let left = self.rest.len();
        if len > (left as u64).max(EMPTY_ELEMENTS_MAX) {
            return Err(SchemaError::Length { len, left });
        }
        Ok(len)
    }

    /// Reads the number of a variant.
    pub(super) fn variant(&mut self, variants: &'s [Variant]) -> Result<&'s Variant, SchemaError> {
        let number = self.take::<u32>()?;
        variants.get(number as usize).ok_or(SchemaError::UnknownVariant(number))
    }

    /// Reads something nested, within the limit.
    pub(super) fn nested<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, SchemaError>,
    ) -> Result<T, SchemaError> {
        if self.depth == DEPTH_MAX {
            return Err(SchemaError::TooDeep);
        }
        self.depth += 1;
        let value = read(self)?;
        self.depth -= 1;
        Ok(value)
    }
}

/// Which of today's types a value is read into.
#[derive(Clone, Copy, Default)]
struct Into<'s> {
    /// The struct or enum.
    ty: Option<&'static str>,
    /// The variant.
    variant: Option<&'s str>,
    /// It is a field whose content may be lost.
    removed: bool,
}

/// A value to be read, as serde sees it.
pub(super) struct Value<'r, 's, 'de> {
    reader: &'r mut Reader<'s, 'de>,
    node: Node<'s>,
    into: Into<'s>,
}

impl<'s, 'de> Value<'_, 's, 'de> {
    fn wire(&mut self) -> Result<Wire<'s>, SchemaError> {
        self.reader.resolve(self.node)
    }

    fn drive<V: Visitor<'de>>(self, wire: Wire<'s>, visitor: V) -> Result<V::Value, SchemaError> {
        let reader = self.reader;
        match wire {
            Wire::Scalar(ty) => scalar(reader, ty, visitor),
            Wire::Unit => visitor.visit_unit(),
            Wire::Bytes => visitor.visit_borrowed_bytes(reader.take()?),
            Wire::Option(ty) => {
                if reader.take::<bool>()? {
                    reader.nested(|reader| visitor.visit_some(reader.value(ty)))
                } else {
                    visitor.visit_none()
                }
            }
            Wire::Seq(ty) => {
                let len = reader.length()?;
                reader.nested(|reader| elements(reader, Elements::Same(ty, len), visitor))
            }
            Wire::Tuple(types) => reader.nested(|reader| elements(reader, Elements::Each(types), visitor)),
            Wire::Map(key, value) => {
                let left = reader.length()?;
                reader.nested(|reader| {
                    let mut entries = Entries { reader, key, value, left };
                    let map = visitor.visit_map(&mut entries)?;
                    if entries.left == 0 { Ok(map) } else { Err(SchemaError::ElementsLeft(entries.left)) }
                })
            }
            Wire::Struct(fields) => reader.nested(|reader| {
                let mut fields = Fields { reader, fields, value: None, into: self.into };
                let value = visitor.visit_map(&mut fields)?;
                let left = fields.fields.len() as u64;
                if left == 0 { Ok(value) } else { Err(SchemaError::ElementsLeft(left)) }
            }),
            Wire::Enum(variants) => {
                let into = self.into;
                reader.nested(|reader| visitor.visit_enum(Choice { reader, variants, into }))
            }
        }
    }
}

fn scalar<'de, V: Visitor<'de>>(
    reader: &mut Reader<'_, 'de>,
    ty: &Type,
    visitor: V,
) -> Result<V::Value, SchemaError> {
    match ty {
        Type::Bool => visitor.visit_bool(reader.take()?),
        Type::Int(8) => visitor.visit_i8(reader.take()?),
        Type::Int(16) => visitor.visit_i16(reader.take()?),
        Type::Int(32) => visitor.visit_i32(reader.take()?),
        Type::Int(64) => visitor.visit_i64(reader.take()?),
        Type::Int(128) => visitor.visit_i128(reader.take()?),
        Type::Uint(8) => visitor.visit_u8(reader.take()?),
        Type::Uint(16) => visitor.visit_u16(reader.take()?),
        Type::Uint(32) => visitor.visit_u32(reader.take()?),
        Type::Uint(64) => visitor.visit_u64(reader.take()?),
        Type::Uint(128) => visitor.visit_u128(reader.take()?),
        Type::F32 => visitor.visit_f32(reader.take()?),
        Type::F64 => visitor.visit_f64(reader.take()?),
        Type::Char => visitor.visit_char(reader.take()?),
        Type::String => visitor.visit_borrowed_str(reader.take()?),
        Type::Int(bits) | Type::Uint(bits) => Err(SchemaError::UnknownWidth(*bits)),
        other => unreachable!("{other:?} is no scalar"),
    }
}

impl<'de> Deserializer<'de> for Value<'_, '_, 'de> {
    type Error = SchemaError;

    fn is_human_readable(&self) -> bool {
        false
    }

    fn deserialize_any<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, SchemaError> {
        let wire = self.wire()?;
        self.drive(wire, visitor)
    }

    /// A value that was not optional yet is `Some`.
    fn deserialize_option<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, SchemaError> {
        match self.wire()? {
            wire @ Wire::Option(_) => self.drive(wire, visitor),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, SchemaError> {
        visitor.visit_newtype_struct(self)
    }

    /// A unit struct or variant may have got fields.
    fn deserialize_struct<V: Visitor<'de>>(
        mut self,
        name: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, SchemaError> {
        if self.into.variant.is_none() {
            self.into.ty = Some(name);
        }
        match self.wire()? {
            Wire::Unit => self.drive(Wire::Struct(&[]), visitor),
            wire => self.drive(wire, visitor),
        }
    }

    /// `Bytes` may have become `Vec<u8>`.
    fn deserialize_seq<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, SchemaError> {
        match self.wire()? {
            Wire::Bytes => self.drive(Wire::Seq(BYTE), visitor),
            wire => self.drive(wire, visitor),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        mut self,
        name: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, SchemaError> {
        self.into.ty = Some(name);
        self.deserialize_any(visitor)
    }

    /// What the type does not know.
    fn deserialize_ignored_any<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, SchemaError> {
        if self.reader.losing.is_some() && !self.into.removed {
            return Err(SchemaError::NoPlace);
        }
        // All that is in it is given up with it.
        let wire = self.wire()?;
        let losing = self.reader.losing.take();
        let value =
            Value { reader: &mut *self.reader, node: self.node, into: self.into }.drive(wire, visitor);
        self.reader.losing = losing;
        value
    }

    /// serde would round a wider number.
    fn deserialize_f32<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, SchemaError> {
        match self.wire()? {
            wire @ Wire::Scalar(Type::F32 | Type::Int(..=16) | Type::Uint(..=16)) => {
                self.drive(wire, visitor)
            }
            _ => Err(SchemaError::custom("an f32 is read from an f32 or an integer of up to 16 bits")),
        }
    }

    /// serde would round a wider number.
    fn deserialize_f64<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, SchemaError> {
        match self.wire()? {
            wire @ Wire::Scalar(Type::F32 | Type::F64 | Type::Int(..=32) | Type::Uint(..=32)) => {
                self.drive(wire, visitor)
            }
            _ => {
                Err(SchemaError::custom("an f64 is read from an f32, an f64 or an integer of up to 32 bits"))
            }
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 char str string bytes byte_buf unit unit_struct tuple
        tuple_struct map identifier
    }
}

/// Elements not read yet.
enum Elements<'s> {
    Same(&'s Type, u64),
    Each(&'s [Type]),
}

struct Seq<'r, 's, 'de> {
    reader: &'r mut Reader<'s, 'de>,
    elements: Elements<'s>,
    position: usize,
}

fn elements<'s, 'de, V: Visitor<'de>>(
    reader: &mut Reader<'s, 'de>,
    elements: Elements<'s>,
    visitor: V,
) -> Result<V::Value, SchemaError> {
    let mut seq = Seq { reader, elements, position: 0 };
    let value = visitor.visit_seq(&mut seq)?;
    match seq.left() {
        0 => Ok(value),
        left => Err(SchemaError::ElementsLeft(left)),
    }
}

impl Seq<'_, '_, '_> {
    fn left(&self) -> u64 {
        match &self.elements {
            Elements::Same(_, left) => *left,
            Elements::Each(types) => types.len() as u64,
        }
    }
}

impl<'de> SeqAccess<'de> for Seq<'_, '_, 'de> {
    type Error = SchemaError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, SchemaError> {
        let ty = match &mut self.elements {
            Elements::Same(_, 0) | Elements::Each([]) => return Ok(None),
            Elements::Same(ty, left) => {
                *left -= 1;
                *ty
            }
            Elements::Each(types) => {
                let (first, others) = (&types[0], &types[1..]);
                *types = others;
                first
            }
        };
        let position = self.position;
        self.position += 1;
        let element = seed.deserialize(self.reader.value(ty));
        element.map(Some).map_err(|error| error.within(format!("[{position}]")))
    }

    fn size_hint(&self) -> Option<usize> {
        usize::try_from(self.left()).ok()
    }
}

struct Entries<'r, 's, 'de> {
    reader: &'r mut Reader<'s, 'de>,
    key: &'s Type,
    value: &'s Type,
    left: u64,
}

impl<'de> MapAccess<'de> for Entries<'_, '_, 'de> {
    type Error = SchemaError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, SchemaError> {
        let Some(left) = self.left.checked_sub(1) else { return Ok(None) };
        self.left = left;
        seed.deserialize(self.reader.value(self.key)).map(Some).map_err(|error| error.within("a key"))
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, SchemaError> {
        seed.deserialize(self.reader.value(self.value)).map_err(|error| error.within("a value"))
    }

    fn size_hint(&self) -> Option<usize> {
        usize::try_from(self.left).ok()
    }
}

struct Fields<'r, 's, 'de> {
    reader: &'r mut Reader<'s, 'de>,
    fields: &'s [Field],
    /// The field whose name was given last.
    value: Option<&'s Field>,
    into: Into<'s>,
}

impl<'de> MapAccess<'de> for Fields<'_, '_, 'de> {
    type Error = SchemaError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, SchemaError> {
        let Some((field, others)) = self.fields.split_first() else { return Ok(None) };
        self.fields = others;
        self.value = Some(field);
        let name: StrDeserializer<'_, SchemaError> = field.name.as_str().into_deserializer();
        seed.deserialize(name).map(Some)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, SchemaError> {
        let field =
            self.value.take().ok_or_else(|| SchemaError::custom("a value was asked for before its key"))?;
        let removed = match (self.reader.losing, self.into.ty) {
            (Some(removed), Some(ty)) => removed.holds(ty, self.into.variant, &field.name),
            _ => false,
        };
        let mut value = self.reader.value(&field.ty);
        value.into.removed = removed;
        seed.deserialize(value).map_err(|error| error.within(&*field.name))
    }
}

/// An enum before its variant is known.
struct Choice<'r, 's, 'de> {
    reader: &'r mut Reader<'s, 'de>,
    variants: &'s [Variant],
    into: Into<'s>,
}

impl<'r, 's, 'de> EnumAccess<'de> for Choice<'r, 's, 'de> {
    type Error = SchemaError;
    type Variant = Content<'r, 's, 'de>;

    fn variant_seed<V: DeserializeSeed<'de>>(
        self,
        seed: V,
    ) -> Result<(V::Value, Self::Variant), SchemaError> {
        let variant = self.reader.variant(self.variants)?;
        let name: StrDeserializer<'_, SchemaError> = variant.name.as_str().into_deserializer();
        let into = Into { variant: Some(&variant.name), ..self.into };
        Ok((seed.deserialize(name)?, Content { reader: self.reader, variant, into }))
    }
}

/// What a variant carries.
struct Content<'r, 's, 'de> {
    reader: &'r mut Reader<'s, 'de>,
    variant: &'s Variant,
    into: Into<'s>,
}

impl<'r, 's, 'de> Content<'r, 's, 'de> {
    /// What it carries; today's type is the variant itself, or what a newtype variant holds.
    fn value(self, into: Into<'s>) -> Value<'r, 's, 'de> {
        Value { reader: self.reader, node: Node::Shape(&self.variant.shape), into }
    }
}

impl<'de> VariantAccess<'de> for Content<'_, '_, 'de> {
    type Error = SchemaError;

    fn unit_variant(self) -> Result<(), SchemaError> {
        match self.variant.shape {
            Shape::Unit => Ok(()),
            _ => Err(SchemaError::custom("was written with a content that the type has no place for")
                .within(&*self.variant.name)),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, SchemaError> {
        let variant = self.variant;
        seed.deserialize(self.value(Into::default())).map_err(|error| error.within(&*variant.name))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, SchemaError> {
        let (variant, into) = (self.variant, self.into);
        self.value(into).deserialize_any(visitor).map_err(|error| error.within(&*variant.name))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, SchemaError> {
        let (variant, into) = (self.variant, self.into);
        self.value(into).deserialize_struct("", fields, visitor).map_err(|error| error.within(&*variant.name))
    }
}
