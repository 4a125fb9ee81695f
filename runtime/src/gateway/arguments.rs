//! Arguments of a call, as they come over HTTP.
//!
//! Owns the checks of a body and the reading of a query; never decodes a value for good: the owner of
//! the actor does that and has the last word. Out: a JSON object as bytes.

use std::collections::BTreeSet;

use bytes::Bytes;
use perennial::Fault;
use perennial::actor::Method;
use perennial::app::Kinds;
use perennial::schema::{Shape, Type, Types};
use serde::de::IgnoredAny;

use super::QUERY_PAIRS_MAX;
use super::errors::Problem;

/// How far newtypes and options are followed when a query's value is read.
const TYPE_DEPTH_MAX: usize = 8;

/// Checks that a body is a JSON object in UTF-8; an empty body stands for `{}`.
pub(super) fn from_body(body: Bytes) -> Result<Bytes, Problem> {
    let text =
        std::str::from_utf8(&body).map_err(|error| Problem::NotUtf8 { at: error.valid_up_to() })?.trim();
    if text.is_empty() {
        return Ok(Bytes::new());
    }
    // From the body's first byte, so that line and column are those of the sender's file.
    serde_json::from_slice::<IgnoredAny>(&body).map_err(Problem::BadJson)?;
    if text.starts_with('{') { Ok(body) } else { Err(Problem::NotAnObject) }
}

/// Turns `a=1&b=x` into a JSON object, by the handler's parameter types if it is known here.
pub(super) fn from_query(
    kinds: &Kinds,
    kind: &str,
    method: &str,
    pairs: &[(String, String)],
) -> Result<Bytes, Problem> {
    let known =
        kinds.get(kind).ok().and_then(|k| k.methods().iter().find(|described| described.name == method));
    if pairs.len() > QUERY_PAIRS_MAX {
        return Err(Problem::BadQuery(format!(
            "has {} names, the limit is {QUERY_PAIRS_MAX}; give large values as JSON",
            pairs.len()
        )));
    }
    let mut names = BTreeSet::new();
    let mut json = String::from("{");
    for (position, (name, text)) in pairs.iter().enumerate() {
        // Percent-encoding that is not UTF-8 was replaced on the way here.
        if name.contains(char::REPLACEMENT_CHARACTER) || text.contains(char::REPLACEMENT_CHARACTER) {
            return Err(Problem::BadQuery("is not percent-encoded UTF-8".to_owned()));
        }
        if !names.insert(name) {
            return Err(Problem::BadQuery(format!(
                "names {name:?} twice; give a sequence as JSON, such as {name}=[1,2]"
            )));
        }
        if position > 0 {
            json.push(',');
        }
        json.push_str(&quoted(name));
        json.push(':');
        json.push_str(&value(known, kind, name, text)?);
    }
    json.push('}');
    Ok(json.into())
}

fn value(method: Option<&Method>, kind: &str, name: &str, text: &str) -> Result<String, Problem> {
    let Some((method, param)) =
        method.and_then(|m| m.params.iter().find(|param| param.name == name).map(|param| (m, param)))
    else {
        return Ok(as_json(text).unwrap_or_else(|| quoted(text)));
    };
    let mut types = Types::default();
    let ty = (param.schema)(&mut types);
    typed(&ty, &types, text, TYPE_DEPTH_MAX).ok_or_else(|| {
        Problem::Fault(Fault::BadArguments {
            kind: kind.to_owned(),
            method: method.name.to_owned(),
            problem: format!("{name} is {}, which cannot be read from {text:?}", param.ty),
            takes: method.takes(),
        })
    })
}

/// The value as JSON text (not as a number type, which would round 128-bit integers).
fn typed(ty: &Type, types: &Types, text: &str, depth: usize) -> Option<String> {
    let Some(depth) = depth.checked_sub(1) else { return as_json(text) };
    match ty {
        Type::String | Type::Char => Some(quoted(text)),
        Type::Bool => text.parse::<bool>().ok().map(|value| value.to_string()),
        Type::Int(_) => text.parse::<i128>().ok().map(|value| value.to_string()),
        Type::Uint(_) => text.parse::<u128>().ok().map(|value| value.to_string()),
        Type::F32 | Type::F64 => {
            let value = text.parse::<f64>().ok().filter(|value| value.is_finite())?;
            serde_json::to_string(&value).ok()
        }
        Type::Option(inner) if text == "null" && !matches!(**inner, Type::String | Type::Char) => {
            Some("null".to_owned())
        }
        Type::Option(inner) => typed(inner, types, text, depth),
        Type::Named(name) => match types.by_name.get(name) {
            Some(Shape::Newtype(inner)) => typed(inner, types, text, depth),
            Some(Shape::Enum(variants))
                if variants.iter().any(|v| v.name == text && v.shape == Shape::Unit) =>
            {
                Some(quoted(text))
            }
            _ => as_json(text),
        },
        Type::Unit | Type::Bytes | Type::Seq(_) | Type::Tuple(_) | Type::Map(..) => as_json(text),
    }
}

fn as_json(text: &str) -> Option<String> {
    serde_json::from_str::<IgnoredAny>(text).ok().map(|_| text.to_owned())
}

fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("a string is JSON")
}

#[cfg(test)]
mod tests {
    use perennial::schema::Variant;

    use super::*;

    const U128_MAX: &str = "340282366920938463463374607431768211455";

    #[test]
    fn query_values_follow_the_parameter_type() {
        let mut types = Types::default();
        types.by_name.insert("Cents".into(), Shape::Newtype(Type::Uint(64)));
        let red = Variant { name: "Red".into(), shape: Shape::Unit };
        types.by_name.insert("Colour".into(), Shape::Enum(vec![red]));
        types.by_name.insert("Loop".into(), Shape::Newtype(Type::Option(Box::new(named("Loop")))));
        let read = |ty: &Type, text: &str| typed(ty, &types, text, TYPE_DEPTH_MAX);
        let optional = |ty: Type| Type::Option(Box::new(ty));
        for (ty, text, json) in [
            (Type::String, "12", Some("\"12\"")),
            (Type::String, "null", Some("\"null\"")),
            (Type::Uint(128), U128_MAX, Some(U128_MAX)),
            (Type::Int(32), "-7", Some("-7")),
            (Type::Uint(32), "-7", None),
            (Type::Bool, "true", Some("true")),
            (Type::Bool, "yes", None),
            (Type::F64, "1.5", Some("1.5")),
            (Type::F64, "NaN", None),
            (optional(Type::Uint(8)), "null", Some("null")),
            (optional(Type::Uint(8)), "3", Some("3")),
            (optional(Type::String), "null", Some("\"null\"")),
            (named("Cents"), "250", Some("250")),
            (named("Colour"), "Red", Some("\"Red\"")),
            (named("Colour"), "Blue", None),
            (named("Loop"), "1", Some("1")),
            (Type::Seq(Box::new(Type::Uint(8))), "[1,2]", Some("[1,2]")),
            (Type::Seq(Box::new(Type::Uint(8))), "1,2", None),
        ] {
            assert_eq!(read(&ty, text).as_deref(), json, "{ty:?} from {text:?}");
        }
    }

    #[test]
    fn a_query_names_so_many_parameters_and_each_once() {
        let kinds = Kinds::default();
        let read = |pairs: &[(String, String)]| from_query(&kinds, "Cart", "find", pairs);
        let mut pairs: Vec<_> = (0..QUERY_PAIRS_MAX).map(|n| (format!("p{n}"), "1".to_owned())).collect();
        assert!(read(&pairs).is_ok());
        let last = pairs.pop().unwrap();
        pairs.push(pairs[0].clone());
        assert!(matches!(read(&pairs), Err(Problem::BadQuery(why)) if why.contains("\"p0\" twice")));
        pairs.push(last);
        assert!(matches!(read(&pairs), Err(Problem::BadQuery(why)) if why.contains("the limit is")));
    }

    fn named(name: &str) -> Type {
        Type::Named(name.into())
    }
}
