//! Arguments of handlers: tuples that decode by position or by name.
//!
//! Between Rust programs arguments travel as a bare tuple. At the edge they are an object, and the
//! owner of the actor, which alone knows the types, matches its fields with the parameters' names.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, Error, MapAccess, Visitor};
use serde::{Serialize, forward_to_deserialize_any};

use crate::actor::Param;
use crate::data::Data;

/// A tuple of up to 16 arguments.
pub trait Arguments: Serialize + DeserializeOwned {
    /// Decodes from a map; `params` name the elements in order. A missing argument is an error unless
    /// its type is an `Option`.
    ///
    /// # Errors
    /// Unknown, repeated, missing and ill-typed arguments, named in the text.
    fn by_name<'de, D: Deserializer<'de>>(params: &'static [Param], from: D) -> Result<Self, D::Error>;
}

/// Reads a key and gives the position of the parameter.
struct Position(&'static [Param]);

impl<'de> DeserializeSeed<'de> for Position {
    type Value = usize;
    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<usize, D::Error> {
        from.deserialize_str(self)
    }
}

impl Visitor<'_> for Position {
    type Value = usize;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a parameter")
    }
    fn visit_str<E: Error>(self, name: &str) -> Result<usize, E> {
        let position = self.0.iter().position(|param| param.name == name);
        position.ok_or_else(|| E::custom(format_args!("unknown argument {name:?}")))
    }
}

/// Stands for an argument that was not given: `None` for an option, an error for anything else.
struct Missing<E>(&'static str, PhantomData<E>);

impl<'de, E: Error> Deserializer<'de> for Missing<E> {
    type Error = E;
    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, E> {
        Err(E::custom(format_args!("missing argument {:?}", self.0)))
    }
    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, E> {
        visitor.visit_none()
    }
    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

fn fill<'de, T: Data, M: MapAccess<'de>>(
    slot: &mut Option<T>,
    param: &Param,
    map: &mut M,
) -> Result<(), M::Error> {
    if slot.is_some() {
        return Err(M::Error::custom(format_args!("argument {:?} is given twice", param.name)));
    }
    let value =
        map.next_value().map_err(|error| M::Error::custom(format_args!("{}: {error}", param.name)))?;
    *slot = Some(value);
    Ok(())
}

fn given<T: Data, E: Error>(slot: Option<T>, param: &Param) -> Result<T, E> {
    slot.map_or_else(|| T::deserialize(Missing(param.name, PhantomData)), Ok)
}

macro_rules! tuple {
    ($($name:ident $at:tt)*) => {
        impl<$($name: Data),*> Arguments for ($($name,)*) {
            fn by_name<'de, D: Deserializer<'de>>(params: &'static [Param], from: D) -> Result<Self, D::Error> {
                struct ByName<$($name),*>(&'static [Param], PhantomData<($($name,)*)>);

                impl<'de, $($name: Data),*> Visitor<'de> for ByName<$($name),*> {
                    type Value = ($($name,)*);
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("an object with the arguments by name")
                    }
                    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                        let params = self.0;
                        #[allow(unused_mut, reason = "a handler without parameters has no slots")]
                        let mut slots = ($(None::<$name>,)*);
                        while let Some(position) = map.next_key_seed(Position(params))? {
                            match position {
                                $($at => fill(&mut slots.$at, &params[$at], &mut map)?,)*
                                _ => unreachable!("a handler's tuple is as long as its parameters"),
                            }
                        }
                        let _ = &slots;
                        Ok(($(given(slots.$at, &params[$at])?,)*))
                    }
                }
                from.deserialize_map(ByName(params, PhantomData))
            }
        }
    };
}

tuple!();
tuple!(A 0);
tuple!(A 0 B 1);
tuple!(A 0 B 1 C 2);
tuple!(A 0 B 1 C 2 T 3);
tuple!(A 0 B 1 C 2 T 3 E 4);
tuple!(A 0 B 1 C 2 T 3 E 4 F 5);
tuple!(A 0 B 1 C 2 T 3 E 4 F 5 G 6);
tuple!(A 0 B 1 C 2 T 3 E 4 F 5 G 6 H 7);
tuple!(A 0 B 1 C 2 T 3 E 4 F 5 G 6 H 7 I 8);
tuple!(A 0 B 1 C 2 T 3 E 4 F 5 G 6 H 7 I 8 J 9);
tuple!(A 0 B 1 C 2 T 3 E 4 F 5 G 6 H 7 I 8 J 9 K 10);
tuple!(A 0 B 1 C 2 T 3 E 4 F 5 G 6 H 7 I 8 J 9 K 10 L 11);
tuple!(A 0 B 1 C 2 T 3 E 4 F 5 G 6 H 7 I 8 J 9 K 10 L 11 N 12);
tuple!(A 0 B 1 C 2 T 3 E 4 F 5 G 6 H 7 I 8 J 9 K 10 L 11 N 12 O 13);
tuple!(A 0 B 1 C 2 T 3 E 4 F 5 G 6 H 7 I 8 J 9 K 10 L 11 N 12 O 13 P 14);
tuple!(A 0 B 1 C 2 T 3 E 4 F 5 G 6 H 7 I 8 J 9 K 10 L 11 N 12 O 13 P 14 Q 15);
