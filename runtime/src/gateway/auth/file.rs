//! The policy file.
//!
//! Owns its reading: TOML with `[[key]]`, `[jwt]` and `[[allow]]`. Every mistake is told at once, with
//! its line, and a file with a mistake is no policy: half of one might let in whom the other half keeps
//! out. Names of kinds and handlers are checked against the application, so that a misspelled one is
//! found at the start and not by a refused user.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};

use perennial::app::Kinds;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{KeyRing, check_name, digest_of};
use super::tokens::{ALGORITHMS, TokenSettings, Tokens, algorithm};
use super::{EVENTS_METHOD, Keys, Policy, Rule, Template, Who};

/// Stands in a key for the caller's own subject.
const SUBJECT: &str = "{sub}";
/// Every kind, every handler.
const ALL: &str = "*";
/// Clock difference to the issuer that is let pass unless told otherwise.
const LEEWAY_SECONDS_DEFAULT: u64 = 30;
/// Longest such difference.
const LEEWAY_SECONDS_MAX: u64 = 300;
/// Most rules of a policy: all are looked at for each call.
const RULES_MAX: usize = 1000;

/// Why a policy cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}", .problems.join("\n"))]
pub struct PolicyError {
    /// One line each: file, line, what is wrong and what to do.
    pub problems: Vec<String>,
}

impl Policy {
    /// Reads a policy for an application with these kinds. Files it names lie beside it.
    ///
    /// # Errors
    /// [`PolicyError`] with every mistake.
    pub fn read(path: &Path, kinds: &Kinds) -> Result<Self, PolicyError> {
        match std::fs::read_to_string(path) {
            Ok(text) => Reader { path, text: &text, kinds, problems: Vec::new() }.policy(),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Err(PolicyError { problems: vec![format!("auth {}: there is no such file", path.display())] })
            }
            Err(error) => Err(PolicyError { problems: vec![format!("auth {}: {error}", path.display())] }),
        }
    }
}

struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
    kinds: &'a Kinds,
    /// With the byte each is about.
    problems: Vec<(usize, String)>,
}

/// A table of the file; what is taken from it is struck off.
struct Entries<'a> {
    at: Range<usize>,
    what: &'static str,
    rest: Vec<(&'a Spanned<std::borrow::Cow<'a, str>>, &'a Spanned<DeValue<'a>>)>,
}

impl<'a> Entries<'a> {
    fn of(table: &'a DeTable<'a>, at: Range<usize>, what: &'static str) -> Self {
        Self { at, what, rest: table.iter().collect() }
    }

    fn take(&mut self, name: &str) -> Option<&'a Spanned<DeValue<'a>>> {
        let at = self.rest.iter().position(|(key, _)| *key.get_ref() == name)?;
        Some(self.rest.swap_remove(at).1)
    }
}

/// A text of the file and where it stands.
type Text = (String, Range<usize>);

impl Reader<'_> {
    fn policy(mut self) -> Result<Policy, PolicyError> {
        let text = self.text;
        let (document, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            self.wrong(&error.span().unwrap_or(0..0), error.message().to_owned());
        }
        let mut file = Entries::of(document.get_ref(), 0..0, "the file");
        let mut keys = KeyRing::default();
        for (table, at) in self.tables(&mut file, "key") {
            self.key(Entries::of(table, at, "[[key]]"), &mut keys);
        }
        let jwt = file.take("jwt");
        let (tokens, groups_of_tokens) = match jwt.map(|jwt| (jwt.get_ref(), jwt.span())) {
            None => (None, false),
            Some((DeValue::Table(table), at)) => {
                let mut entries = Entries::of(table, at, "[jwt]");
                let groups = entries.rest.iter().any(|(key, _)| key.get_ref() == "groups_claim");
                (self.tokens(&mut entries), groups)
            }
            Some((_, at)) => {
                self.wrong(&at, "jwt is a table: write [jwt]".into());
                (None, false)
            }
        };
        let known = Known { keys: &keys, tokens: jwt.is_some(), groups_of_tokens };
        let allowed = self.tables(&mut file, "allow");
        if allowed.is_empty() {
            self.wrong(&(0..0), "has no [[allow]]: nobody may do anything".into());
        }
        if allowed.len() > RULES_MAX {
            self.wrong(&allowed[RULES_MAX].1.clone(), format!("a policy has at most {RULES_MAX} [[allow]]"));
        }
        let rules: Vec<_> = allowed
            .into_iter()
            .filter_map(|(table, at)| self.rule(Entries::of(table, at, "[[allow]]"), &known))
            .collect();
        self.refuse_rest(&file);
        if !self.problems.is_empty() {
            return Err(self.failed());
        }
        Ok(Policy { keys, tokens, rules })
    }

    fn failed(mut self) -> PolicyError {
        self.problems.sort_by_key(|(at, _)| *at);
        self.problems.dedup();
        let line = |at: usize| self.text[..at.min(self.text.len())].matches('\n').count() + 1;
        let path = self.path.display();
        let problems =
            self.problems.iter().map(|(at, problem)| format!("{path} line {}: {problem}", line(*at)));
        PolicyError { problems: problems.collect() }
    }

    fn wrong(&mut self, at: &Range<usize>, problem: String) {
        let mut start = at.start.min(self.text.len());
        while !self.text.is_char_boundary(start) {
            start -= 1;
        }
        self.problems.push((start, problem));
    }

    fn refuse_rest(&mut self, entries: &Entries<'_>) {
        for (name, _) in &entries.rest {
            self.wrong(&name.span(), format!("{} has no setting {:?}", entries.what, name.get_ref()));
        }
    }

    /// The tables of `[[name]]`.
    fn tables<'d>(&mut self, file: &mut Entries<'d>, name: &str) -> Vec<(&'d DeTable<'d>, Range<usize>)> {
        let Some(value) = file.take(name) else { return Vec::new() };
        let mut tables = Vec::new();
        let DeValue::Array(values) = value.get_ref() else {
            self.wrong(&value.span(), format!("{name} is a list of tables: write [[{name}]]"));
            return tables;
        };
        for value in values.iter() {
            match value.get_ref() {
                DeValue::Table(table) => tables.push((table, value.span())),
                _ => self.wrong(&value.span(), format!("{name} is a list of tables: write [[{name}]]")),
            }
        }
        tables
    }

    fn text(&mut self, entries: &mut Entries<'_>, name: &str) -> Option<Text> {
        let value = entries.take(name)?;
        match value.get_ref() {
            DeValue::String(text) if !text.is_empty() => Some((text.to_string(), value.span())),
            _ => {
                self.wrong(&value.span(), format!("{name} must be a text that is not empty"));
                None
            }
        }
    }

    fn required(&mut self, entries: &mut Entries<'_>, name: &str) -> Option<Text> {
        let there = entries.rest.iter().any(|(key, _)| *key.get_ref() == name);
        if !there {
            self.wrong(&entries.at.clone(), format!("{} lacks {name}", entries.what));
        }
        self.text(entries, name)
    }

    /// A list of texts, or one text.
    fn texts(&mut self, entries: &mut Entries<'_>, name: &str) -> Option<Vec<Text>> {
        let value = entries.take(name)?;
        let mut texts = Vec::new();
        let one = std::slice::from_ref(value);
        let values: Vec<_> = match value.get_ref() {
            DeValue::Array(values) => values.iter().collect(),
            _ => one.iter().collect(),
        };
        for value in &values {
            match value.get_ref() {
                DeValue::String(text) if !text.is_empty() => texts.push((text.to_string(), value.span())),
                _ => self.wrong(&value.span(), format!("{name} must hold texts that are not empty")),
            }
        }
        if values.is_empty() {
            self.wrong(&value.span(), format!("{name} is empty"));
        }
        Some(texts)
    }

    fn required_texts(&mut self, entries: &mut Entries<'_>, name: &str) -> Option<Vec<Text>> {
        let found = self.texts(entries, name);
        if found.is_none() {
            self.wrong(&entries.at.clone(), format!("{} lacks {name}", entries.what));
        }
        found
    }

    fn key(&mut self, mut entries: Entries<'_>, keys: &mut KeyRing) {
        let name = self.required(&mut entries, "name");
        let sha256 = self.required(&mut entries, "sha256");
        let groups = self.texts(&mut entries, "groups").unwrap_or_default();
        self.refuse_rest(&entries);
        let digest = sha256.and_then(|(text, at)| {
            let digest = digest_of(&text);
            if digest.is_none() {
                self.wrong(
                    &at,
                    "sha256 is not 64 hexadecimal digits: `key` makes keys with their hash".into(),
                );
            }
            digest
        });
        let Some((name, at)) = name else { return };
        if let Err(error) = check_name(&name) {
            return self.wrong(&at, error.to_string());
        }
        // Known even without a good hash, so that rules about it are not wrong as well.
        let groups = groups.into_iter().map(|(group, _)| group).collect();
        if !keys.add(&name, digest.unwrap_or_default(), groups) {
            self.wrong(&at, format!("two keys are named {name:?}"));
        }
    }

    fn tokens(&mut self, entries: &mut Entries<'_>) -> Option<Tokens> {
        let named = self.required(entries, "algorithm");
        let issuer = self.required(entries, "issuer");
        let audiences = self.required_texts(entries, "audience");
        let key_file = self.required(entries, "key_file");
        let groups_claim = self.text(entries, "groups_claim").map(|(name, _)| name);
        let leeway_seconds = self.leeway(entries);
        self.refuse_rest(entries);
        let (named, at) = named?;
        let Some(algorithm) = algorithm(&named) else {
            self.wrong(&at, format!("there is no algorithm {named:?}: name one of {ALGORITHMS}"));
            return None;
        };
        let (file, at) = key_file?;
        let settings = TokenSettings {
            algorithm,
            issuer: issuer?.0,
            audiences: audiences?.into_iter().map(|(audience, _)| audience).collect(),
            groups_claim,
            leeway_seconds,
        };
        let file: PathBuf = self.path.parent().unwrap_or(Path::new("")).join(file);
        match Tokens::open(settings, &file) {
            Ok(tokens) => Some(tokens),
            Err(why) => {
                self.wrong(&at, format!("key_file {} {why}", file.display()));
                None
            }
        }
    }

    fn leeway(&mut self, entries: &mut Entries<'_>) -> u64 {
        let Some(value) = entries.take("leeway_seconds") else { return LEEWAY_SECONDS_DEFAULT };
        let number = value.get_ref().as_integer().and_then(|number| number.as_str().parse().ok());
        number.filter(|seconds| *seconds <= LEEWAY_SECONDS_MAX).unwrap_or_else(|| {
            self.wrong(
                &value.span(),
                format!("leeway_seconds must be a number from 0 to {LEEWAY_SECONDS_MAX}"),
            );
            LEEWAY_SECONDS_DEFAULT
        })
    }

    fn rule(&mut self, mut entries: Entries<'_>, known: &Known<'_>) -> Option<Rule> {
        let who = self.required_texts(&mut entries, "who");
        let kind = self.required(&mut entries, "kind");
        let methods = self.required_texts(&mut entries, "methods");
        let exactly = self.text(&mut entries, "key");
        let prefix = self.text(&mut entries, "key_prefix");
        self.refuse_rest(&entries);

        let who: Vec<Who> = who?.into_iter().filter_map(|(name, at)| self.who(&name, &at, known)).collect();
        let (kind, at) = kind?;
        if kind != ALL
            && let Err(unknown) = self.kinds.get(&kind)
        {
            self.wrong(&at, unknown.to_string());
        }
        let methods = self.methods(&kind, methods?);
        if let (Some(_), Some((_, at))) = (&exactly, &prefix) {
            self.wrong(at, "key and key_prefix exclude each other: write two [[allow]]".into());
        }
        let keys = match (exactly, prefix) {
            (Some((text, at)), _) => Keys::Exactly(self.template(&text, &at, &who)?),
            (None, Some((text, at))) => {
                if text.ends_with(SUBJECT) {
                    self.wrong(
                        &at,
                        format!(
                            "key_prefix {text:?} would let al reach alice: end it with a separator such as \
                             \"{text}/\", or write key = {text:?}"
                        ),
                    );
                }
                Keys::Prefix(self.template(&text, &at, &who)?)
            }
            (None, None) => Keys::Any,
        };
        Some(Rule { who, kind: (kind != ALL).then_some(kind), methods, keys })
    }

    fn who(&mut self, name: &str, at: &Range<usize>, known: &Known<'_>) -> Option<Who> {
        let problem = match name.split_once(':') {
            None if name == "anonymous" => return Some(Who::Anonymous),
            Some(("key", key)) if known.keys.has(key) => return Some(Who::Key(key.to_owned())),
            Some(("key", key)) => format!("no [[key]] is named {key:?}"),
            Some(("user", user)) if known.tokens && !user.is_empty() => {
                return Some(if user == ALL { Who::Users } else { Who::User(user.to_owned()) });
            }
            Some(("user", user)) if !user.is_empty() => {
                format!("{name:?} is the subject of tokens, but there is no [jwt]")
            }
            Some(("group", group)) if known.groups_of_tokens || known.keys.has_group(group) => {
                return Some(Who::Group(group.to_owned()));
            }
            Some(("group", group)) => {
                format!("nobody can be in group {group:?}: no [[key]] has it and [jwt] has no groups_claim")
            }
            _ => format!(
                "who has {name:?}: write \"key:NAME\", \"user:SUBJECT\", \"user:*\", \"group:NAME\" or \"anonymous\""
            ),
        };
        self.wrong(at, problem);
        None
    }

    fn methods(&mut self, kind: &str, names: Vec<Text>) -> Option<BTreeSet<String>> {
        if names.iter().any(|(name, _)| name == ALL) {
            return None;
        }
        for (name, at) in &names {
            let concerned: Vec<_> =
                self.kinds.iter().filter(|known| kind == ALL || known.name() == kind).collect();
            let there = name == EVENTS_METHOD
                || concerned.iter().any(|known| known.methods().iter().any(|method| method.name == name));
            if !there && !concerned.is_empty() {
                let mut all: Vec<_> =
                    concerned.iter().flat_map(|known| known.methods()).map(|method| method.name).collect();
                all.push(EVENTS_METHOD);
                let all = all.join(", ");
                self.wrong(at, format!("{kind} has no handler {name:?}; there are: {all}"));
            }
        }
        Some(names.into_iter().map(|(name, _)| name).collect())
    }

    fn template(&mut self, text: &str, at: &Range<usize>, who: &[Who]) -> Option<Template> {
        let (before, after) = match text.split_once(SUBJECT) {
            None => (text, None),
            Some((before, after)) => (before, Some(after)),
        };
        let twice = after.is_some_and(|after| after.contains(SUBJECT));
        if twice || [before, after.unwrap_or_default()].iter().any(|part| part.contains(['{', '}'])) {
            self.wrong(at, format!("{text:?} may hold {SUBJECT} once and no other brace"));
            return None;
        }
        let subjectless = |who: &Who| matches!(who, Who::Anonymous | Who::Key(_));
        if after.is_some() && who.iter().any(subjectless) {
            self.wrong(at, format!("{text:?} is for holders of tokens: anonymous and keys have no subject"));
            return None;
        }
        Some(Template { before: before.to_owned(), after: after.map(str::to_owned) })
    }
}

/// Who a rule can be about.
struct Known<'a> {
    keys: &'a KeyRing,
    tokens: bool,
    groups_of_tokens: bool,
}
