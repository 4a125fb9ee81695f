//! `call`: one call of an actor, arguments by name.

use std::collections::BTreeSet;
use std::io::Read;
use std::time::Instant;

use perennial::App;
use perennial::actor::{Answer, Args, Format, Method};
use perennial::call::{ActorId, Caller, Outbound};
use perennial::schema::{Shape, Type, Types};
use serde_json::{Map, Value};

use super::Launch;
use super::target::Target;
use crate::cli::CallArgs;
use crate::exit::{CommandError, Exit};
use crate::idempotency::keyed_request;
use crate::output;

/// Whose idempotency keys those of this command are: of all who may speak to nodes directly.
const CALLER: &str = "client";

pub(crate) async fn run(launch: &Launch, args: CallArgs) -> Result<Exit, CommandError> {
    let method = described(&launch.app, &args.actor, &args.method);
    let arguments = arguments(&args.args, method, || {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map(|_| text)
    })
    .map_err(CommandError::Usage)?;
    let client = Target::of(&args.target, &launch.program)?.connect().await?;
    let keyed =
        |key: &String| keyed_request(CALLER, &args.actor, &args.method, key.as_bytes(), arguments.clone());
    let request = args.key.as_ref().map(keyed);
    let answered = client
        .call(Outbound {
            target: args.actor.clone(),
            method: args.method.clone(),
            args: Args { format: Format::Json, bytes: arguments.to_string().into() },
            request,
            keyed: request.is_some(),
            read_only: args.stale.is_some(),
            stale: args.stale.as_ref().map(|stale| stale.0),
            path: Vec::new(),
            deadline: Instant::now() + args.timeout.0,
        })
        .await;
    match answered.answer {
        Answer::Ok(json) => {
            output::data(&String::from_utf8_lossy(&json));
            Ok(Exit::Ok)
        }
        Answer::App(json) => Err(CommandError::Failed(format!(
            "{}.{} refused: {}",
            args.actor,
            args.method,
            String::from_utf8_lossy(&json)
        ))),
        Answer::Fault(fault) => Err(fault.into()),
    }
}

/// The handler, if this program knows it; the owner of the actor checks in any case.
fn described(app: &App, actor: &ActorId, method: &str) -> Option<&'static Method> {
    app.kinds().get(actor.kind()).ok()?.methods().iter().find(|m| m.name == method)
}

/// Reads `name=value`, `name:=json` and `-` into an object.
fn arguments(
    given: &[String],
    method: Option<&Method>,
    stdin: impl FnOnce() -> std::io::Result<String>,
) -> Result<Value, String> {
    let mut object = Map::new();
    if given.iter().filter(|arg| *arg == "-").count() > 1 {
        return Err("standard input can be read once only: give - once".into());
    }
    if given.iter().any(|arg| arg == "-") {
        let text = stdin().map_err(|error| format!("cannot read standard input: {error}"))?;
        match serde_json::from_str(&text) {
            Ok(Value::Object(read)) => object = read,
            Ok(_) => return Err("standard input is JSON, but no object of arguments by name".into()),
            Err(error) => return Err(format!("standard input is no JSON: {error}")),
        }
    }
    let mut named = BTreeSet::new();
    for arg in given.iter().filter(|arg| *arg != "-") {
        let (name, value) = argument(arg, method)?;
        if !named.insert(name.clone()) {
            return Err(format!("argument {name} is given twice"));
        }
        object.insert(name, value);
    }
    Ok(Value::Object(object))
}

fn argument(arg: &str, method: Option<&Method>) -> Result<(String, Value), String> {
    let takes = || method.map_or_else(String::new, |m| format!("; {} takes {}", m.name, m.takes()));
    let (name, value) = arg
        .split_once('=')
        .ok_or_else(|| format!("argument {arg:?} is not name=value, name:=json or -{}", takes()))?;
    if let Some(name) = name.strip_suffix(':') {
        let value = serde_json::from_str(value).map_err(|why| format!("argument {name}: no JSON: {why}"))?;
        return Ok((name.to_owned(), value));
    }
    if name.is_empty() {
        return Err(format!("argument {arg:?} has no name{}", takes()));
    }
    let text = || Value::String(value.to_owned());
    let param = method.and_then(|m| m.params.iter().find(|param| param.name == name));
    let wants_text = param.is_some_and(|param| {
        let mut types = Types::default();
        let ty = (param.schema)(&mut types);
        is_text(&ty, &types, value)
    });
    let value = if wants_text { text() } else { serde_json::from_str(value).unwrap_or_else(|_| text()) };
    Ok((name.to_owned(), value))
}

/// Whether a value for this type is text as it stands.
fn is_text(ty: &Type, types: &Types, value: &str) -> bool {
    match ty {
        Type::String | Type::Char => true,
        Type::Option(inner) => value != "null" && is_text(inner, types, value),
        Type::Named(name) => match types.by_name.get(name) {
            // A newtype of itself has no value, so this ends.
            Some(Shape::Newtype(inner)) => *inner != *ty && is_text(inner, types, value),
            Some(Shape::Enum(variants)) => variants.iter().any(|variant| variant.name == value),
            _ => false,
        },
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use perennial::actor::Param;
    use serde_json::json;

    use super::*;

    const ADD: Method = Method {
        name: "add",
        write: true,
        asynchronous: false,
        stale_ms: 0,
        params: &[
            Param { name: "sku", ty: "String", schema: |_| Type::String },
            Param { name: "note", ty: "Option<String>", schema: |_| Type::Option(Box::new(Type::String)) },
            Param { name: "qty", ty: "u32", schema: |_| Type::Uint(32) },
        ],
        returns: "u32",
        returns_schema: |_| Type::Uint(32),
        doc: "",
    };

    fn read(given: &[&str], method: Option<&Method>, stdin: &str) -> Result<Value, String> {
        let given: Vec<_> = given.iter().map(|&arg| arg.to_owned()).collect();
        arguments(&given, method, || Ok(stdin.to_owned()))
    }

    #[test]
    fn a_value_is_text_where_the_handler_takes_text_and_json_elsewhere() {
        assert_eq!(
            read(&["sku=17", "note=true", "qty=2"], Some(&ADD), ""),
            Ok(json!({"sku": "17", "note": "true", "qty": 2}))
        );
        assert_eq!(read(&["note=null", "sku:=\"x\""], Some(&ADD), ""), Ok(json!({"note": null, "sku": "x"})));
    }

    #[test]
    fn an_unknown_handler_takes_json_if_it_can_be_read_as_such() {
        assert_eq!(
            read(&["a=1", "b=tea", "c=[1,2]", "d==x", "e="], None, ""),
            Ok(json!({"a": 1, "b": "tea", "c": [1, 2], "d": "=x", "e": ""}))
        );
    }

    #[test]
    fn standard_input_is_an_object_that_arguments_complete() {
        assert_eq!(
            read(&["-", "qty=3"], Some(&ADD), r#"{"sku":"tea","qty":2}"#),
            Ok(json!({"sku": "tea", "qty": 3}))
        );
        assert!(read(&["-"], None, "[1]").unwrap_err().contains("no object"));
        assert!(read(&["-", "-"], None, "{}").unwrap_err().contains("once"));
    }

    #[test]
    fn mistakes_say_what_the_handler_takes() {
        let error = read(&["tea"], Some(&ADD), "").unwrap_err();
        assert!(error.contains("\"tea\"") && error.contains("\"sku\": String"), "{error}");
        assert!(read(&["qty=1", "qty=2"], Some(&ADD), "").unwrap_err().contains("twice"));
        assert!(read(&["qty:=x"], Some(&ADD), "").unwrap_err().contains("qty"));
        assert!(read(&["=1"], Some(&ADD), "").unwrap_err().contains("no name"));
    }
}
