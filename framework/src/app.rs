//! An application: its name, its actor types and the files of its pages.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::actor::{Actor, BoxFuture, Kind, KindOf};
use crate::error::Fault;

/// A file of a page.
#[derive(Debug, Clone)]
pub struct Asset {
    /// Its media type, such as `text/html; charset=utf-8`.
    pub content_type: String,
    /// Its bytes.
    pub bytes: Cow<'static, [u8]>,
}

/// Finds a file by its path below the mount point; the empty path is the page itself.
pub type AssetSource = fn(&str) -> Option<Asset>;

/// A check of an application: what it waits for is over, or why not.
pub(crate) type Check = Arc<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// The actor types of an application, by name.
#[derive(Clone, Default)]
pub struct Kinds {
    by_name: BTreeMap<&'static str, Arc<dyn Kind>>,
    /// See [`App::build`].
    build: u64,
}

impl Kinds {
    /// The type of this name.
    ///
    /// # Errors
    /// [`Fault::UnknownKind`], which lists the known ones.
    pub fn get(&self, kind: &str) -> Result<&Arc<dyn Kind>, Fault> {
        self.by_name.get(kind).ok_or_else(|| self.unknown(kind))
    }

    pub(crate) fn unknown(&self, kind: &str) -> Fault {
        let known = self.by_name.keys().map(|&k| k.to_owned()).collect();
        Fault::UnknownKind { kind: kind.to_owned(), known }
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<dyn Kind>> {
        self.by_name.values()
    }
}

/// An application.
#[derive(Clone)]
pub struct App {
    name: &'static str,
    kinds: Kinds,
    pages: Vec<(&'static str, AssetSource)>,
    checks: Vec<(&'static str, Check)>,
}

impl App {
    /// An application without actors; the name stands in its help and its status.
    #[must_use]
    pub fn new(name: &'static str) -> Self {
        Self { name, kinds: Kinds::default(), pages: Vec::new(), checks: Vec::new() }
    }

    /// Adds an actor type.
    ///
    /// # Panics
    /// When two types share a kind, or one has that of the framework's dead letters: calls could not be told
    /// apart.
    #[must_use]
    pub fn actor<A: Actor>(mut self) -> Self {
        assert!(A::KIND != crate::dead::KIND, "the kind {:?} is the framework's", A::KIND);
        let twice = self.kinds.by_name.insert(A::KIND, KindOf::<A>::shared()).is_some();
        assert!(!twice, "each kind is registered once, but {:?} is registered twice", A::KIND);
        self.kinds.build = build(&self.kinds);
        self
    }

    /// Serves files below `/mount/` on every node's gateway.
    #[must_use]
    pub fn page(mut self, mount: &'static str, files: AssetSource) -> Self {
        self.pages.push((mount, files));
        self
    }

    /// Adds a check of what the application needs on every node, such as a service that its actors call.
    ///
    /// Each node runs it every [`CHECK_PERIOD`](crate::limits::CHECK_PERIOD), one run at a time, as a task that
    /// must not block its thread. While it gives an error, or has not ended after
    /// [`CHECK_MAX`](crate::limits::CHECK_MAX), or panics, and until it has run once, the node is not ready and
    /// says why; calls that come all the same are served. A failing check never has a node started anew.
    ///
    /// # Panics
    /// When two checks share a name, or one is not made of 1 to 64 letters, digits, `_` and `-`: it is a label
    /// of a metric.
    #[must_use]
    pub fn health<F, R>(mut self, name: &'static str, check: F) -> Self
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), String>> + Send + 'static,
    {
        let plain = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
        let fits = (1..=64).contains(&name.len()) && name.chars().all(plain);
        assert!(fits, "name the check {name:?} with 1 to 64 of A-Z a-z 0-9 _ -");
        let twice = self.checks.iter().any(|(other, _)| *other == name);
        assert!(!twice, "each check is added once, but {name:?} is added twice");
        self.checks.push((name, Arc::new(move || Box::pin(check()))));
        self
    }

    /// Its checks.
    pub(crate) fn checks(&self) -> &[(&'static str, Check)] {
        &self.checks
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// What it stores and understands, as one number: of the shapes of all states, and of the handlers with
    /// their arguments. Nodes whose numbers differ are of different builds.
    #[must_use]
    pub fn build(&self) -> u64 {
        self.kinds.build
    }

    /// Its actor types.
    #[must_use]
    pub fn kinds(&self) -> &Kinds {
        &self.kinds
    }

    /// Its pages: mount point and files.
    #[must_use]
    pub fn pages(&self) -> &[(&'static str, AssetSource)] {
        &self.pages
    }
}

fn build(kinds: &Kinds) -> u64 {
    let described = kinds.iter().map(|kind| {
        let handlers = kind.methods().iter().map(|method| (method.name, method.write, method.arguments()));
        let handlers: Vec<_> =
            handlers.map(|(name, write, takes)| (name, write, takes.fingerprint())).collect();
        (kind.name(), kind.fingerprint(), handlers)
    });
    let described: Vec<_> = described.collect();
    let bytes = postcard::to_stdvec(&described).expect("names and numbers always encode");
    perennial_core::hash::wide_hash(&bytes) as u64
}
