//! `schema.lock`: what an application stores and sends, in a file that is committed.
//!
//! Owns the file's form and the comparison with today's code. States are compared by reading: values made up
//! from the file's schema are read as a new build would read them, so that defaults, aliases, `removed` and
//! `upgrade_from` count. Arguments, answers and events are kept without their schema and read by position, so
//! they must stay as they are. In: an [`App`] and a path; out: nothing, or a panic that names each place.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use crate::actor::Kind;
use crate::app::App;
use crate::schema::text::{self, Parser, TextError, Token};
use crate::schema::witness::witness;
use crate::schema::{Field, Schema, SchemaError, Shape, Type, Types};

/// The variable that has the file written: `1` for compatible changes, `force` for all.
const UPDATE: &str = "UPDATE_SCHEMA_LOCK";
/// Values made up for each state.
const WITNESSES: u64 = 512;
/// Most problems told of one state.
const PROBLEMS_MAX: usize = 16;

/// Compares the actors of an application with a file in which their states, events and handlers are written
/// down, so that `cargo test` finds a change that a running cluster could not live with:
///
/// ```no_run
/// # fn app() -> perennial::App { perennial::App::new("shop") }
/// // in tests/schema.rs, with `#[test]` above it
/// fn what_is_stored_can_still_be_read() {
///     perennial::testing::schema_lock(&app(), "schema.lock");
/// }
/// ```
///
/// The path is relative to the package. The file is written with `UPDATE_SCHEMA_LOCK=1 cargo test`, and committed.
/// After a compatible change the test passes and says that the file should be written anew. An incompatible one
/// is written down only with `UPDATE_SCHEMA_LOCK=force`, for changes that no state, message or reminder can meet.
///
/// # Panics
/// When something that was stored or is on its way could not be read, with its kind, its place, the old and the
/// new type and what to do; when the file is not there or cannot be read.
#[track_caller]
pub fn schema_lock(app: &App, path: impl AsRef<Path>) {
    let update = match std::env::var(UPDATE).as_deref() {
        Err(_) | Ok("" | "0") => Update::Never,
        Ok("force") => Update::Always,
        Ok(_) => Update::Compatible,
    };
    match check(app, path.as_ref(), update) {
        Ok(None) => {}
        // Not by way of `eprintln`, which a test that passes keeps to itself.
        Ok(Some(told)) => drop(std::io::stderr().write_all(told.as_bytes())),
        Err(why) => panic!("{why}"),
    }
}

/// When the file is written.
#[derive(Clone, Copy, PartialEq)]
enum Update {
    Never,
    Compatible,
    Always,
}

/// Compares and writes; gives what people should be told.
fn check(app: &App, path: &Path, update: Update) -> Result<Option<String>, String> {
    let at = path.display();
    let today = Lock::of(app);
    let write = |told: String| match std::fs::write(path, today.to_text()) {
        Ok(()) => Ok(Some(told)),
        Err(error) => Err(format!("cannot write {at}: {error}")),
    };
    let before = match std::fs::read_to_string(path) {
        Ok(before) => before,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return match update {
                Update::Never => Err(format!("there is no {at} yet: write it with {UPDATE}=1 and commit it")),
                _ => write(format!("{at} is written: commit it\n")),
            };
        }
        Err(error) => return Err(format!("cannot read {at}: {error}")),
    };
    let locked = Lock::parse(&before).map_err(|error| format!("cannot read {at}: {error}"))?;
    let problems = locked.problems(app, &today);
    if !problems.is_empty() && update != Update::Always {
        let mut told = format!("{} changes break what was stored or sent, by {at}:\n", problems.len());
        for problem in &problems {
            let _ = writeln!(told, "\n- {problem}");
        }
        let _ = write!(
            told,
            "\nOnce nothing of the old form can be left anywhere, {UPDATE}=force writes the new form down."
        );
        return Err(told);
    }
    if locked == today {
        return Ok(None);
    }
    match update {
        Update::Never => {
            Ok(Some(format!("{at} is out of date: write it anew with {UPDATE}=1 and commit it\n")))
        }
        _ => write(format!("{at} is written anew: commit it\n")),
    }
}

/// What stands in the file.
#[derive(Debug, Default, PartialEq)]
struct Lock {
    kinds: BTreeMap<String, KindLock>,
}

#[derive(Debug, PartialEq)]
struct KindLock {
    state: Type,
    event: Type,
    handlers: BTreeMap<String, Handler>,
    types: Types,
}

#[derive(Debug, PartialEq)]
struct Handler {
    write: bool,
    params: Vec<Field>,
    returns: Type,
}

impl Lock {
    fn of(app: &App) -> Self {
        let kinds = app.kinds().iter().map(|kind| (kind.name().to_owned(), KindLock::of(&**kind)));
        Self { kinds: kinds.collect() }
    }

    fn to_text(&self) -> String {
        let mut text = "# What this application stores and sends. Compared with the code by `cargo test`;\n\
                        # written anew by `UPDATE_SCHEMA_LOCK=1 cargo test`.\n"
            .to_owned();
        for (name, kind) in &self.kinds {
            let _ = writeln!(text, "\nkind {}", text::name(name));
            let _ = writeln!(text, "  state {}", text::ty(&kind.state));
            let _ = writeln!(text, "  event {}", text::ty(&kind.event));
            for (name, handler) in &kind.handlers {
                let nature = if handler.write { "write" } else { "read" };
                let _ = writeln!(text, "  {nature} {}{}", text::name(name), handler.to_text());
            }
            text += &text::types(&kind.types, "  ");
        }
        text
    }

    fn parse(text: &str) -> Result<Self, TextError> {
        let mut parser = Parser::new(text)?;
        let mut lock = Self::default();
        while *parser.peek() != Token::End {
            if parser.name()? != "kind" {
                return parser.error("\"kind\" before it");
            }
            let name = parser.name()?;
            lock.kinds.insert(name, KindLock::parse(&mut parser)?);
        }
        Ok(lock)
    }

    fn problems(&self, app: &App, today: &Self) -> Vec<String> {
        let mut problems = Vec::new();
        for (name, old) in &self.kinds {
            match (today.kinds.get(name), app.kinds().get(name)) {
                (Some(new), Ok(kind)) => old.problems(&**kind, new, &mut problems),
                _ => problems.push(format!(
                    "kind {name} is gone: its states stay without a reader, its messages and reminders without a \
                     receiver; keep it, or its name with #[actor(kind = {name:?})]"
                )),
            }
        }
        problems
    }
}

impl KindLock {
    fn of(kind: &dyn Kind) -> Self {
        let mut types = Types::default();
        let (state, event) = kind.describe(&mut types);
        let mut handlers = BTreeMap::new();
        for method in kind.methods() {
            let param = |types: &mut Types, param: &crate::actor::Param| Field {
                name: param.name.to_owned(),
                ty: (param.schema)(types),
            };
            let params = method.params.iter().map(|one| param(&mut types, one)).collect();
            let returns = (method.returns_schema)(&mut types);
            handlers.insert(method.name.to_owned(), Handler { write: method.write, params, returns });
        }
        Self { state, event, handlers, types }
    }

    fn parse(parser: &mut Parser<'_>) -> Result<Self, TextError> {
        let mut kind =
            Self { state: Type::Unit, event: Type::Unit, handlers: BTreeMap::new(), types: Types::default() };
        loop {
            let word = match parser.peek() {
                Token::Word(word) if word != "kind" => word.clone(),
                _ => return Ok(kind),
            };
            parser.advance()?;
            match &*word {
                "state" => kind.state = parser.ty()?,
                "event" => kind.event = parser.ty()?,
                "write" | "read" => {
                    let name = parser.name()?;
                    kind.handlers.insert(name, Handler::parse(parser, word == "write")?);
                }
                "type" | "enum" => {
                    let name = parser.name()?;
                    let shape = if word == "enum" { parser.variants()? } else { parser.shape()? };
                    kind.types.by_name.insert(name, shape);
                }
                _ => {
                    return parser
                        .error("\"state\", \"event\", \"write\", \"read\", \"type\" or \"enum\" before it");
                }
            }
        }
    }

    fn problems(&self, kind: &dyn Kind, new: &Self, problems: &mut Vec<String>) {
        let name = kind.name();
        for problem in self.state_problems(kind, new) {
            problems.push(format!("{name}, state: {problem}"));
        }
        let same = |old: &Type, new_ty: &Type| {
            let mut same =
                Same { old: &self.types, new: &new.types, seen: BTreeSet::new(), found: Vec::new() };
            same.ty(old, new_ty, "");
            same.found
        };
        for found in same(&self.event, &new.event) {
            problems.push(format!(
                "{name}, event{found}; published events are kept and read by position: publish a new variant, \
                 added at the end of an enum"
            ));
        }
        for (handler, old) in &self.handlers {
            let Some(new) = new.handlers.get(handler) else {
                problems.push(format!(
                    "{name}, handler {handler}{} is gone; messages and reminders on their way call it: keep it \
                     until none can be left",
                    old.to_text()
                ));
                continue;
            };
            let advice =
                "messages and reminders on their way carry the old arguments: add another handler instead";
            if old.params.len() != new.params.len() {
                problems.push(format!(
                    "{name}, handler {handler}: takes {}, took {}; {advice}",
                    new.to_text(),
                    old.to_text()
                ));
                continue;
            }
            for (was, is) in old.params.iter().zip(&new.params) {
                let at = format!("{name}, handler {handler}, argument {}", was.name);
                if was.name != is.name {
                    problems.push(format!("{at}: is named {} now; callers over HTTP use the name", is.name));
                }
                problems
                    .extend(same(&was.ty, &is.ty).into_iter().map(|found| format!("{at}{found}; {advice}")));
            }
            for found in same(&old.returns, &new.returns) {
                problems.push(format!(
                    "{name}, handler {handler}, answer{found}; answers are kept for repeated calls, and read by \
                     position: add another handler instead"
                ));
            }
        }
    }

    /// What a new build could not read of a state, each place once.
    fn state_problems(&self, kind: &dyn Kind, new: &Self) -> Vec<String> {
        let schema = Schema { root: self.state.clone(), types: self.types.clone(), replaces: Vec::new() };
        let mut found = BTreeMap::new();
        if schema.fingerprint() == kind.fingerprint() {
            return Vec::new();
        }
        for number in 0..WITNESSES {
            if found.len() == PROBLEMS_MAX {
                break;
            }
            let Some(bytes) = witness(&schema, number) else { continue };
            if let Err(error) = kind.upgrade(&bytes, &schema)
                && let Some((place, told)) = self.told(new, &error)
            {
                found.entry(place).or_insert(told);
            }
        }
        found.into_values().collect()
    }

    /// Where something does not fit, and the words for it; `None` when the place is as it was, so that only the
    /// made-up value is to blame.
    fn told(&self, new: &Self, error: &SchemaError) -> Option<(String, String)> {
        let (mut parts, mut inner) = (Vec::new(), error);
        while let SchemaError::Within { part, source } = inner {
            parts.push(if part.starts_with('[') { "[..]" } else { part });
            inner = source;
        }
        let place = if parts.is_empty() { text::ty(&self.state) } else { parts.join(".") };
        let was = Place { types: &self.types, at: At::Type(&self.state) }.walk(&parts);
        let is = Place { types: &new.types, at: At::Type(&new.state) }.walk(&parts);
        if let (Some(was), Some(is)) = (&was, &is) {
            let mut same =
                Same { old: &self.types, new: &new.types, seen: BTreeSet::new(), found: Vec::new() };
            match (was.at, is.at) {
                (At::Type(was), At::Type(is)) => same.ty(was, is, ""),
                (At::Shape(was), At::Shape(is)) => same.shape(was, is, ""),
                _ => same.found.push(String::new()),
            }
            if same.found.is_empty() {
                return None;
            }
        }
        let text = |place: Option<Place<'_>>| place.map_or_else(|| "absent".to_owned(), |place| place.text());
        let advice = match inner {
            SchemaError::NoPlace => "",
            SchemaError::Mismatch(text) if text.starts_with("missing field") => {
                "; give the field #[serde(default)], or name the one whose place it takes with #[serde(alias)]"
            }
            SchemaError::Mismatch(text) if text.starts_with("unknown variant") => {
                "; keep the variant, name the one whose place it takes with #[serde(alias)], or convert with \
                 #[data(upgrade_from = ..)]"
            }
            _ => {
                "; keep the type or a wider one, or keep the old struct under another name and convert it with \
                 #[data(upgrade_from = ..)]"
            }
        };
        let told = format!("{place}: was {}, is {}: {inner}{advice}", text(was), text(is));
        // Numbers that do not fit are many, names that are missing are each one thing to mend.
        let named =
            ["missing field", "unknown variant"].iter().any(|said| inner.to_string().starts_with(said));
        Some((if named { told.clone() } else { place }, told))
    }
}

impl Handler {
    fn to_text(&self) -> String {
        let params = self.params.iter().map(|p| format!("{}: {}", text::name(&p.name), text::ty(&p.ty)));
        let params = params.collect::<Vec<_>>().join(", ");
        format!("({params}): {}", text::ty(&self.returns))
    }

    fn parse(parser: &mut Parser<'_>, write: bool) -> Result<Self, TextError> {
        parser.expect('(')?;
        let params = parser.until(')', |parser| {
            let name = parser.name()?;
            parser.expect(':')?;
            Ok(Field { name, ty: parser.ty()? })
        })?;
        parser.expect(':')?;
        Ok(Self { write, params, returns: parser.ty()? })
    }
}

/// A place in a state.
#[derive(Clone, Copy)]
struct Place<'t> {
    types: &'t Types,
    at: At<'t>,
}

#[derive(Clone, Copy)]
enum At<'t> {
    Type(&'t Type),
    Shape(&'t Shape),
}

impl<'t> Place<'t> {
    /// Follows the parts of an error.
    fn walk(mut self, parts: &[&str]) -> Option<Self> {
        for part in parts {
            self = self.step(part)?;
        }
        Some(self)
    }

    fn step(self, part: &str) -> Option<Self> {
        let to = |at| Some(Self { at, ..self });
        match self.resolved() {
            At::Type(Type::Option(inner)) => Self { at: At::Type(inner), ..self }.step(part),
            At::Type(Type::Seq(inner)) if part == "[..]" => to(At::Type(inner)),
            At::Type(Type::Tuple(types)) | At::Shape(Shape::Tuple(types)) if part == "[..]" => {
                to(At::Type(types.first()?))
            }
            At::Type(Type::Map(key, _)) if part == "a key" => to(At::Type(key)),
            At::Type(Type::Map(_, value)) if part == "a value" => to(At::Type(value)),
            At::Shape(Shape::Struct(fields)) => {
                to(At::Type(&fields.iter().find(|field| field.name == part)?.ty))
            }
            At::Shape(Shape::Enum(variants)) => {
                to(At::Shape(&variants.iter().find(|variant| variant.name == part)?.shape))
            }
            _ => None,
        }
    }

    /// Looks through names and newtypes.
    fn resolved(self) -> At<'t> {
        let mut at = self.at;
        for _ in 0..crate::schema::DEPTH_MAX {
            at = match at {
                At::Type(Type::Named(name)) => match self.types.by_name.get(name) {
                    Some(shape) => At::Shape(shape),
                    None => return at,
                },
                At::Shape(Shape::Newtype(ty)) => At::Type(ty),
                at => return at,
            };
        }
        at
    }

    fn text(self) -> String {
        match self.at {
            At::Type(ty) => text::ty(ty),
            At::Shape(shape) => match text::shape(shape).trim() {
                "" => "nothing".to_owned(),
                shape => shape.to_owned(),
            },
        }
    }
}

/// Looks for what differs between two types that are read by position. Enums may grow at their end.
struct Same<'t> {
    old: &'t Types,
    new: &'t Types,
    seen: BTreeSet<(String, String)>,
    found: Vec<String>,
}

impl<'t> Same<'t> {
    fn differs(&mut self, path: &str, was: &str, is: &str) {
        self.found.push(format!("{path}: was {was}, is {is}"));
    }

    fn ty(&mut self, was: &'t Type, is: &'t Type, path: &str) {
        if let (Type::Named(was), Type::Named(is)) = (was, is)
            && !self.seen.insert((was.clone(), is.clone()))
        {
            return;
        }
        let (old, new) =
            (Place { types: self.old, at: At::Type(was) }, Place { types: self.new, at: At::Type(is) });
        match (old.resolved(), new.resolved()) {
            (At::Type(Type::Option(was)), At::Type(Type::Option(is))) => self.ty(was, is, path),
            (At::Type(Type::Seq(was)), At::Type(Type::Seq(is))) => self.ty(was, is, &format!("{path}[..]")),
            (At::Type(Type::Map(key, value)), At::Type(Type::Map(new_key, new_value))) => {
                self.ty(key, new_key, &format!("{path}.a key"));
                self.ty(value, new_value, &format!("{path}.a value"));
            }
            (At::Shape(was), At::Shape(is)) => self.shape(was, is, path),
            (At::Type(Type::Tuple(was)), At::Type(Type::Tuple(is))) if was.len() == is.len() => {
                for (was, is) in was.iter().zip(is) {
                    self.ty(was, is, &format!("{path}[..]"));
                }
            }
            (At::Type(one), At::Type(other)) if one == other => {}
            _ => self.differs(path, &text::ty(was), &text::ty(is)),
        }
    }

    fn shape(&mut self, was: &'t Shape, is: &'t Shape, path: &str) {
        match (was, is) {
            (Shape::Unit, Shape::Unit) => {}
            (Shape::Newtype(was), Shape::Newtype(is)) => self.ty(was, is, path),
            (Shape::Tuple(was), Shape::Tuple(is)) if was.len() == is.len() => {
                for (was, is) in was.iter().zip(is) {
                    self.ty(was, is, &format!("{path}[..]"));
                }
            }
            (Shape::Struct(was), Shape::Struct(is))
                if was.len() == is.len() && was.iter().zip(is).all(|(was, is)| was.name == is.name) =>
            {
                for (was, is) in was.iter().zip(is) {
                    self.ty(&was.ty, &is.ty, &format!("{path}.{}", was.name));
                }
            }
            (Shape::Enum(was), Shape::Enum(is)) => {
                for (number, was) in was.iter().enumerate() {
                    match is.get(number).filter(|is| is.name == was.name) {
                        Some(is) => self.shape(&was.shape, &is.shape, &format!("{path}.{}", was.name)),
                        None => self.differs(
                            &format!("{path}.{}", was.name),
                            &format!("variant {number}"),
                            "no longer",
                        ),
                    }
                }
            }
            _ => self.differs(path, text::shape(was).trim(), text::shape(is).trim()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(unreachable_pub, reason = "generated references are public")]

    use super::*;
    use crate::prelude::*;

    mod v1 {
        use super::*;

        #[data]
        #[derive(Default)]
        pub struct Cart {
            pub lines: BTreeMap<String, Line>,
            pub status: Status,
            pub owner: Option<perennial_core::id::ActorId>,
            pub note: String,
            pub tree: Vec<Tree>,
        }
        #[data]
        #[derive(Default)]
        pub struct Line {
            pub qty: u32,
            pub cents: (u64, u8),
        }
        #[data]
        #[derive(Default)]
        pub enum Status {
            #[default]
            Open,
            Paid(u32),
            Sent {
                by: String,
            },
            #[serde(rename = "lost and found")]
            Lost(u8, u8),
        }
        #[data]
        pub struct Tree(Vec<Tree>, Option<Box<Tree>>);
        #[data]
        pub enum CartEvent {
            Added { sku: String },
        }

        #[actor(event = CartEvent)]
        impl Cart {
            /// Adds.
            pub fn add(&mut self, sku: String, qty: u32) -> Line {
                let _ = (sku, qty);
                Line::default()
            }
            /// Removes.
            pub fn remove(&mut self, sku: String) {
                let _ = sku;
            }
            /// Looks.
            pub fn status(&self) -> Status {
                self.status.clone()
            }
        }

        pub fn app() -> App {
            App::new("shop").actor::<Cart>()
        }
    }

    /// All of it compatible.
    mod v2 {
        use super::*;

        #[data(removed(note))]
        #[derive(Default)]
        pub struct Cart {
            #[serde(default)]
            pub added: Vec<u8>,
            pub status: Option<Status>,
            pub owner: Option<perennial_core::id::ActorId>,
            #[serde(alias = "lines")]
            pub items: BTreeMap<String, Line>,
            pub tree: Vec<super::v1::Tree>,
        }
        #[data]
        #[derive(Default)]
        pub struct Line {
            pub cents: (u128, u16),
            pub qty: u64,
        }
        #[data]
        #[derive(Default)]
        pub enum Status {
            Sent {
                by: Option<String>,
            },
            Paid(u64),
            #[serde(rename = "lost and found")]
            Lost(u8, u8),
            #[default]
            Open,
        }
        #[data]
        pub enum CartEvent {
            Added { sku: String },
            Gone,
        }

        #[actor(event = CartEvent)]
        impl Cart {
            /// Adds.
            pub fn add(&mut self, sku: String, qty: u32) -> super::v1::Line {
                let _ = (sku, qty);
                super::v1::Line::default()
            }
            /// Removes.
            pub fn remove(&mut self, sku: String) {
                let _ = sku;
            }
            /// Looks.
            pub fn status(&self) -> super::v1::Status {
                super::v1::Status::Open
            }
            /// Is new.
            pub fn fresh(&self) {}
        }

        pub fn app() -> App {
            App::new("shop").actor::<Cart>()
        }
    }

    /// Much of it incompatible.
    mod v3 {
        use super::*;

        #[data]
        #[derive(Default)]
        pub struct Cart {
            pub added: Vec<u8>,
            pub lines: BTreeMap<String, Line>,
            #[serde(default)]
            pub status: Status,
            pub owner: Option<perennial_core::id::ActorId>,
            #[serde(default)]
            pub remark: String,
            pub tree: Vec<super::v1::Tree>,
        }
        #[data]
        #[derive(Default)]
        pub struct Line {
            pub cents: (u64, u8),
            pub qty: u16,
        }
        #[data]
        #[derive(Default)]
        pub enum Status {
            #[default]
            Open,
            Sent {
                by: u32,
            },
        }
        #[data]
        pub enum CartEvent {
            Gone,
            Added { sku: String },
        }

        #[actor(event = CartEvent)]
        impl Cart {
            /// Adds.
            pub fn add(&mut self, name: String, qty: u64) -> Line {
                let _ = (name, qty);
                Line::default()
            }
            /// Looks.
            pub fn status(&self, deep: bool) -> Status {
                let _ = deep;
                Status::Open
            }
        }

        pub fn app() -> App {
            App::new("shop").actor::<Cart>()
        }
    }

    fn told(before: &App, after: &App) -> String {
        Lock::of(before).problems(after, &Lock::of(after)).join("\n")
    }

    #[test]
    fn the_file_reads_back_and_is_read_by_people() {
        let lock = Lock::of(&v1::app());
        let text = lock.to_text();
        assert_eq!(Lock::parse(&text).as_ref(), Ok(&lock), "{text}");
        for part in [
            "kind Cart\n  state Cart\n  event CartEvent\n  write add(sku: text, qty: u32): Line\n",
            "  read status(): Status\n",
            "  type Cart {\n    lines: map<text, Line>,\n    status: Status,\n    owner: option<text>,\n",
            "    Open,\n    Paid = u32,\n    Sent { by: text },\n    \"lost and found\"(u8, u8),\n",
            "  type Tree(list<Tree>, option<Tree>)\n",
        ] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
        let error = Lock::parse("kind Cart\n  state map<text>\n").unwrap_err();
        assert_eq!(error.to_string(), "line 3: expected another number of types before it, found the end");
        assert!(Lock::parse(&format!("kind C state {}", "list<".repeat(10_000))).is_err());
    }

    #[test]
    fn compatible_changes_pass() {
        assert_eq!(told(&v1::app(), &v1::app()), "");
        assert_eq!(told(&v1::app(), &v2::app()), "");
    }

    #[test]
    fn each_incompatible_change_is_named_with_its_place_its_types_and_what_to_do() {
        let told = told(&v1::app(), &v3::app());
        for part in [
            "Cart, state: note: was text, is absent: it is stored, and the type has no place for it: keep the field",
            "Cart, state: lines.a value.qty: was u32, is u16: invalid value: integer `4294967295`, expected u16; \
             keep the type or a wider one",
            "Cart, state: status: was Status, is Status: unknown variant `Paid`",
            "Cart, state: status.Sent.by: was text, is u32",
            "Cart, event.Added: was variant 0, is no longer; published events are kept",
            "Cart, handler remove(sku: text): () is gone; messages and reminders",
            "Cart, handler add, argument sku: is named name now; callers over HTTP",
            "Cart, handler add, argument qty: was u32, is u64; messages and reminders",
            "Cart, handler add, answer: was { qty: u32, cents: tuple<u64, u8> }, is",
            "Cart, handler status: takes (deep: bool): Status, took (): Status",
        ] {
            assert!(told.contains(part), "{part} is not in:\n{told}");
        }
        let gone = super::tests::told(&v1::app(), &App::new("shop"));
        assert!(gone.starts_with("kind Cart is gone"), "{gone}");
    }

    #[test]
    fn the_file_is_written_when_asked_and_never_over_what_breaks() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("schema.lock");
        let missing = check(&v1::app(), &path, Update::Never).unwrap_err();
        assert!(missing.contains("UPDATE_SCHEMA_LOCK=1"), "{missing}");
        check(&v1::app(), &path, Update::Compatible).unwrap();
        assert_eq!(check(&v1::app(), &path, Update::Never), Ok(None));
        let before = std::fs::read_to_string(&path).unwrap();
        assert!(check(&v2::app(), &path, Update::Never).unwrap().unwrap().contains("out of date"));
        for update in [Update::Never, Update::Compatible] {
            assert!(check(&v3::app(), &path, update).unwrap_err().contains("UPDATE_SCHEMA_LOCK=force"));
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), before);
        check(&v2::app(), &path, Update::Compatible).unwrap();
        assert_eq!(check(&v2::app(), &path, Update::Never), Ok(None));
        check(&v3::app(), &path, Update::Always).unwrap();
        assert_eq!(check(&v3::app(), &path, Update::Never), Ok(None));
        std::fs::write(&path, "kind").unwrap();
        assert!(check(&v3::app(), &path, Update::Never).unwrap_err().contains("line 1: expected a name"));
    }
}
