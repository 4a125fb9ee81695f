//! Values of a schema, made up.
//!
//! Owns what a test of an upgrade is fed with: postcard bytes that a schema allows, small and large numbers,
//! every variant, present and absent options. The same number gives the same bytes. Never for production.

use super::{Schema, Shape, Type};

/// Below this depth options are absent, sequences empty and variants plain, so that recursive types end.
const DEPTH_FULL: usize = 8;
/// Deeper values are given up.
const DEPTH_MAX: usize = 64;

/// The bytes of one value; `None` for types without an end, or that the schema lacks.
pub(crate) fn witness(schema: &Schema, number: u64) -> Option<Vec<u8>> {
    let mut maker = Maker { schema, state: number, plain: number == 0, bytes: Vec::new() };
    maker.ty(&schema.root, 0)?;
    Some(maker.bytes)
}

struct Maker<'s> {
    schema: &'s Schema,
    state: u64,
    /// Everything is absent, empty, or the first.
    plain: bool,
    bytes: Vec<u8>,
}

impl Maker<'_> {
    /// One of so many choices (Steele, Lea and Flood: SplitMix).
    fn draw(&mut self, choices: usize) -> usize {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) as usize % choices
    }

    fn put<T: serde::Serialize>(&mut self, value: T) {
        let bytes = std::mem::take(&mut self.bytes);
        self.bytes = postcard::to_extend(&value, bytes).expect("a plain value always encodes");
    }

    fn number<T: serde::Serialize>(&mut self, least: T, most: T, one: T, none: T) {
        match if self.plain { 3 } else { self.draw(4) } {
            0 => self.put(least),
            1 => self.put(most),
            2 => self.put(one),
            _ => self.put(none),
        }
    }

    fn length(&mut self, depth: usize) -> u64 {
        let length = if self.plain || depth >= DEPTH_FULL { 0 } else { self.draw(3) as u64 };
        self.put(length);
        length
    }

    fn ty(&mut self, ty: &Type, depth: usize) -> Option<()> {
        if depth >= DEPTH_MAX {
            return None;
        }
        match ty {
            Type::Unit => {}
            Type::Bool => {
                let value = self.draw(2) == 1;
                self.put(value);
            }
            Type::Int(8) => self.number(i8::MIN, i8::MAX, 1, 0),
            Type::Int(16) => self.number(i16::MIN, i16::MAX, 1, 0),
            Type::Int(32) => self.number(i32::MIN, i32::MAX, 1, 0),
            Type::Int(64) => self.number(i64::MIN, i64::MAX, 1, 0),
            Type::Int(128) => self.number(i128::MIN, i128::MAX, 1, 0),
            Type::Uint(8) => self.number(2, u8::MAX, 1, 0),
            Type::Uint(16) => self.number(2, u16::MAX, 1, 0),
            Type::Uint(32) => self.number(2, u32::MAX, 1, 0),
            Type::Uint(64) => self.number(2, u64::MAX, 1, 0),
            Type::Uint(128) => self.number(2, u128::MAX, 1, 0),
            Type::Int(_) | Type::Uint(_) => return None,
            Type::F32 => self.number(f32::MIN, f32::MAX, 1.0, 0.0),
            Type::F64 => self.number(f64::MIN, f64::MAX, 1.0, 0.0),
            Type::Char => self.number('a', char::MAX, '1', ' '),
            // Names of actors and of nodes are texts that not every text is.
            Type::String => self.number("A/a", "ä", "n1", ""),
            Type::Bytes => {
                let length = self.length(depth);
                (0..length).for_each(|byte| self.put(byte as u8));
            }
            Type::Option(inner) => {
                let some = !self.plain && depth < DEPTH_FULL && self.draw(4) > 0;
                self.put(some);
                if some {
                    self.ty(inner, depth + 1)?;
                }
            }
            Type::Seq(inner) => {
                for _ in 0..self.length(depth) {
                    self.ty(inner, depth + 1)?;
                }
            }
            Type::Map(key, value) => {
                for _ in 0..self.length(depth) {
                    self.ty(key, depth + 1)?;
                    self.ty(value, depth + 1)?;
                }
            }
            Type::Tuple(types) => self.all(types, depth)?,
            Type::Named(name) => {
                let shape = self.schema.types.by_name.get(name)?;
                self.shape(shape, depth + 1)?;
            }
        }
        Some(())
    }

    fn all<'t>(&mut self, types: impl IntoIterator<Item = &'t Type>, depth: usize) -> Option<()> {
        types.into_iter().try_for_each(|ty| self.ty(ty, depth + 1))
    }

    fn shape(&mut self, shape: &Shape, depth: usize) -> Option<()> {
        match shape {
            Shape::Unit => Some(()),
            Shape::Newtype(ty) => self.ty(ty, depth),
            Shape::Tuple(types) => self.all(types, depth),
            Shape::Struct(fields) => self.all(fields.iter().map(|field| &field.ty), depth),
            Shape::Enum(variants) => {
                let plain = variants.iter().position(|variant| variant.shape == Shape::Unit).unwrap_or(0);
                let first = self.plain || depth >= DEPTH_FULL;
                let number = if first { plain } else { self.draw(variants.len().max(1)) };
                self.put(u32::try_from(number).ok()?);
                self.shape(&variants.get(number)?.shape, depth)
            }
        }
    }
}
