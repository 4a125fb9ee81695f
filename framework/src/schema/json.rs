//! Renders bytes as JSON by their schema, in the form serde_json gives the Rust type.

use serde_json::{Map, Value};

use super::read::{Node, Reader, Wire};
use super::{SchemaError, Shape, Type};

pub(super) fn render<'s>(reader: &mut Reader<'s, '_>, node: Node<'s>) -> Result<Value, SchemaError> {
    match reader.resolve(node)? {
        Wire::Scalar(ty) => scalar(reader, ty),
        Wire::Unit => Ok(Value::Null),
        Wire::Bytes => Ok(Value::from(reader.take::<&[u8]>()?)),
        Wire::Option(ty) => match reader.take::<bool>()? {
            true => reader.nested(|reader| render(reader, Node::Type(ty))),
            false => Ok(Value::Null),
        },
        Wire::Seq(ty) => {
            let len = reader.length()?;
            reader.nested(|reader| (0..len).map(|_| render(reader, Node::Type(ty))).collect())
        }
        Wire::Tuple(types) => {
            reader.nested(|reader| types.iter().map(|ty| render(reader, Node::Type(ty))).collect())
        }
        Wire::Map(key, value) => {
            let len = reader.length()?;
            let entries = reader.nested(|reader| {
                let entry = |_| Ok((render(reader, Node::Type(key))?, render(reader, Node::Type(value))?));
                (0..len).map(entry).collect::<Result<Vec<_>, SchemaError>>()
            })?;
            Ok(object_or_pairs(entries))
        }
        Wire::Struct(fields) => {
            let mut object = Map::new();
            reader.nested(|reader| {
                for field in fields {
                    object.insert(field.name.clone(), render(reader, Node::Type(&field.ty))?);
                }
                Ok(Value::Object(object))
            })
        }
        Wire::Enum(variants) => {
            let variant = reader.variant(variants)?;
            if variant.shape == Shape::Unit {
                return Ok(Value::from(variant.name.as_str()));
            }
            let content = reader.nested(|reader| render(reader, Node::Shape(&variant.shape)))?;
            Ok(Value::Object(Map::from_iter([(variant.name.clone(), content)])))
        }
    }
}

fn scalar(reader: &mut Reader<'_, '_>, ty: &Type) -> Result<Value, SchemaError> {
    Ok(match ty {
        Type::Bool => Value::from(reader.take::<bool>()?),
        Type::Int(8) => Value::from(reader.take::<i8>()?),
        Type::Int(16) => Value::from(reader.take::<i16>()?),
        Type::Int(32) => Value::from(reader.take::<i32>()?),
        Type::Int(64) => Value::from(reader.take::<i64>()?),
        Type::Int(128) => {
            let wide = reader.take::<i128>()?;
            i64::try_from(wide).map_or_else(|_| Value::from(wide.to_string()), Value::from)
        }
        Type::Uint(8) => Value::from(reader.take::<u8>()?),
        Type::Uint(16) => Value::from(reader.take::<u16>()?),
        Type::Uint(32) => Value::from(reader.take::<u32>()?),
        Type::Uint(64) => Value::from(reader.take::<u64>()?),
        Type::Uint(128) => {
            let wide = reader.take::<u128>()?;
            u64::try_from(wide).map_or_else(|_| Value::from(wide.to_string()), Value::from)
        }
        Type::F32 => Value::from(reader.take::<f32>()?),
        Type::F64 => Value::from(reader.take::<f64>()?),
        Type::Char => Value::from(reader.take::<char>()?.to_string()),
        Type::String => Value::from(reader.take::<&str>()?),
        Type::Int(bits) | Type::Uint(bits) => return Err(SchemaError::UnknownWidth(*bits)),
        other => unreachable!("{other:?} is no scalar"),
    })
}

/// An object when every key is plain; else, as JSON has no such maps, a list of pairs.
fn object_or_pairs(entries: Vec<(Value, Value)>) -> Value {
    if entries.iter().all(|(key, _)| matches!(key, Value::String(_) | Value::Number(_) | Value::Bool(_))) {
        let text = |key| match key {
            Value::String(text) => text,
            other => other.to_string(),
        };
        Value::Object(entries.into_iter().map(|(key, value)| (text(key), value)).collect())
    } else {
        Value::Array(entries.into_iter().map(|(key, value)| Value::from(vec![key, value])).collect())
    }
}
