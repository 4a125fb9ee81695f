//! Actors as the runtime sees them: the trait that `#[actor]` implements and its type-erased form.
//!
//! Users never write these impls. A handler gets its arguments decoded by name or position, gives its
//! answer encoded in the caller's format, and leaves its effects in the [`Ctx`].

use std::any::Any;
use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use foldhash::fast::FixedState;
use perennial_core::id::ActorId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::arguments::Arguments;
use crate::call::ActorHandle;
use crate::collections::{self, Abort, Doing, Handle};
use crate::ctx::{Ctx, Effects, TurnEnv};
use crate::data::Data;
use crate::error::{CallError, Fault, Reply};
use crate::options::Options;
use crate::schema::{Schema, SchemaError, Type, Types};

/// How arguments and answers are encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Format {
    /// postcard, by position: between Rust programs.
    Postcard,
    /// JSON, by name: at the edge.
    Json,
    /// Of a message, within a node: arguments as postcard; of the answer only an error matters, which people
    /// may have to read: JSON.
    #[serde(skip)]
    Message,
}

/// A handler's name, parameters and nature, known at compile time.
#[derive(Debug)]
pub struct Method {
    /// Name.
    pub name: &'static str,
    /// `&mut self`.
    pub write: bool,
    /// `async fn`.
    pub asynchronous: bool,
    /// How old the answer of a read may be unless its caller says otherwise, in milliseconds; 0: it is
    /// linearizable.
    pub stale_ms: u64,
    /// Parameters besides `self` and the context.
    pub params: &'static [Param],
    /// The type of the value in Rust's words, such as `u32`.
    pub returns: &'static str,
    /// Describes the value's type.
    pub returns_schema: fn(&mut Types) -> Type,
    /// First paragraph of its documentation.
    pub doc: &'static str,
}

/// One parameter.
#[derive(Debug)]
pub struct Param {
    /// Name.
    pub name: &'static str,
    /// Its type in Rust's words, such as `Vec<String>`.
    pub ty: &'static str,
    /// Describes the type.
    pub schema: fn(&mut Types) -> Type,
}

impl Method {
    /// `add(sku: String, qty: u32)`.
    #[must_use]
    pub fn signature(&self) -> String {
        let params: Vec<_> = self.params.iter().map(|p| format!("{}: {}", p.name, p.ty)).collect();
        format!("{}({})", self.name, params.join(", "))
    }

    /// `{"sku": String, "qty": u32}`.
    #[must_use]
    pub fn takes(&self) -> String {
        let params: Vec<_> = self.params.iter().map(|p| format!("{:?}: {}", p.name, p.ty)).collect();
        format!("{{{}}}", params.join(", "))
    }
}

impl Method {
    /// The schema of its arguments: a tuple.
    #[must_use]
    pub fn arguments(&self) -> Schema {
        let mut types = Types::default();
        let root = Type::Tuple(self.params.iter().map(|param| (param.schema)(&mut types)).collect());
        Schema { root, types, replaces: Vec::new() }
    }

    /// The schema to decode arguments by, if postcard alone could be made to nest without end or to run
    /// for ever by a few bytes; see [`Schema::is_explosive`].
    fn guard(&'static self) -> Option<Rc<Schema>> {
        thread_local! {
            /// By the address of the method, since they are static.
            static GUARDS: RefCell<HashMap<usize, Option<Rc<Schema>>, FixedState>> = RefCell::default();
        }
        if self.params.is_empty() {
            return None;
        }
        let guard = || {
            let schema = self.arguments();
            schema.is_explosive().then(|| Rc::new(schema))
        };
        let address = std::ptr::from_ref(self) as usize;
        GUARDS.with_borrow_mut(|guards| guards.entry(address).or_insert_with(guard).clone())
    }
}

/// Decodes postcard bytes of which none may be left.
fn plain<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        Ok((_, rest)) => Err(format!("{} bytes too many", rest.len())),
        Err(error) => Err(error.to_string()),
    }
}

/// Encoded arguments of a call.
#[derive(Debug, Clone)]
pub struct Args {
    /// Their encoding, and that of the answer.
    pub format: Format,
    /// The bytes; JSON: an object by parameter name (empty bytes stand for `{}`).
    pub bytes: Bytes,
}

impl Args {
    /// Decodes into a tuple: postcard by position, JSON by the names of the parameters.
    ///
    /// # Errors
    /// [`Fault::BadArguments`] that says what the handler takes.
    pub fn decode<T: Arguments>(&self, kind: &str, method: &'static Method) -> Result<T, Fault> {
        let problem = match self.format {
            Format::Postcard | Format::Message => {
                let read = match method.guard() {
                    None => plain::<T>(&self.bytes),
                    Some(schema) => schema.read(&self.bytes).map_err(|error| error.to_string()),
                };
                match read {
                    Ok(args) => return Ok(args),
                    Err(problem) => problem,
                }
            }
            Format::Json => {
                let text: &[u8] = if self.bytes.is_empty() { b"{}" } else { &self.bytes };
                let mut json = serde_json::Deserializer::from_slice(text);
                match T::by_name(method.params, &mut json).and_then(|args| json.end().map(|()| args)) {
                    Ok(args) => return Ok(args),
                    Err(error) => error.to_string(),
                }
            }
        };
        Err(Fault::BadArguments {
            kind: kind.to_owned(),
            method: method.name.to_owned(),
            problem,
            takes: method.takes(),
        })
    }
}

/// A handler's answer, encoded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The value.
    Ok(Bytes),
    /// The application's error.
    App(Bytes),
    /// A fault.
    Fault(Fault),
}

impl Answer {
    /// Encodes a value (used by generated code).
    pub fn of_value<T: Data>(format: Format, value: T) -> Self {
        if format == Format::Message {
            return Self::Ok(Bytes::new());
        }
        encode(format, &value).map_or_else(Self::Fault, Self::Ok)
    }

    /// Encodes the outcome of a handler with errors of its own (used by generated code).
    pub fn of_result<T: Data, E: Data>(format: Format, result: Result<T, E>) -> Self {
        match result {
            Ok(value) => Self::of_value(format, value),
            Err(error) => match encode(format, &error) {
                Ok(bytes) => Self::App(bytes),
                Err(_) if format == Format::Message => {
                    Self::App(Bytes::from_static(b"an error that has no form in JSON"))
                }
                Err(fault) => Self::Fault(fault),
            },
        }
    }

    /// Encodes the outcome of a handler that passes faults on (used by generated code).
    pub fn of_fallible<T: Data>(format: Format, result: Result<T, Fault>) -> Self {
        match result {
            Ok(value) => Self::of_value(format, value),
            Err(fault) => Self::Fault(fault),
        }
    }

    /// Encodes the outcome of a handler with both (used by generated code).
    pub fn of_reply<T: Data, E: Data>(format: Format, reply: Reply<T, E>) -> Self {
        match reply {
            Ok(value) => Self::of_value(format, value),
            Err(CallError::App(error)) => Self::of_result::<T, E>(format, Err(error)),
            Err(CallError::Fault(fault)) => Self::Fault(fault),
        }
    }
}

pub(crate) fn encode<T: Serialize>(format: Format, value: &T) -> Result<Bytes, Fault> {
    let encoded = match format {
        Format::Postcard => postcard::to_stdvec(value).map_err(|e| e.to_string()),
        Format::Json | Format::Message => serde_json::to_vec(value).map_err(|e| e.to_string()),
    };
    encoded.map(Bytes::from).map_err(|why| Fault::Unreadable {
        what: "value".into(),
        at: std::any::type_name::<T>().into(),
        why,
    })
}

/// A boxed future that may move between threads.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A handler that has answered or still runs.
pub enum Run<'a> {
    /// A plain `fn`.
    Done(Answer),
    /// An `async fn`.
    Later(BoxFuture<'a, Answer>),
}

/// Events of an actor that are kept at least, unless `#[actor(keep_events = ..)]` says otherwise.
pub const EVENTS_KEPT_DEFAULT: u32 = 1000;
/// Most events of an actor that can be kept.
pub const EVENTS_KEPT_MAX: u32 = 100_000;
/// How long events are kept at most, unless `#[actor(keep_events_for = "..")]` says otherwise.
pub const EVENTS_KEPT_FOR_DEFAULT: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Which events of an actor are kept for those who come back to its stream: the last `count` of them, unless
/// they are older than `millis`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// So many are kept at least; somewhat more may be there. At most [`EVENTS_KEPT_MAX`].
    pub count: u32,
    /// Those that were published longer ago go, in milliseconds of record time.
    pub millis: u64,
}

impl Retention {
    /// What holds where nothing is said.
    pub const DEFAULT: Self =
        Self { count: EVENTS_KEPT_DEFAULT, millis: EVENTS_KEPT_FOR_DEFAULT.as_millis() as u64 };
}

/// An actor type. Implemented by `#[actor]`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an actor",
    note = "put `#[actor]` on the impl block with its handlers"
)]
pub trait Actor: Data + Default {
    /// Stable name of the type: the struct's name unless `#[actor(kind = "..")]` says otherwise.
    const KIND: &'static str;
    /// What it publishes; `()` when nothing.
    type Event: Data;
    /// Which of its events are kept.
    const RETENTION: Retention = Retention::DEFAULT;
    /// Typed reference with one method for each handler.
    type Ref: Send + Sync + Clone + 'static;
    /// The handlers; their positions are the numbers given to [`Actor::read`] and [`Actor::write`].
    const METHODS: &'static [Method];
    /// What else is said of the kind.
    const OPTIONS: Options = Options::DEFAULT;

    /// Wraps a handle in the typed reference.
    fn make_ref(handle: ActorHandle) -> Self::Ref;

    /// Runs a handler that reads.
    fn read<'a>(&'a self, ctx: &'a Ctx<Self>, method: usize, args: Args) -> Run<'a>;

    /// Runs a handler that writes. On anything but `Answer::Ok` the caller throws the state away.
    fn write<'a>(&'a mut self, ctx: &'a mut Ctx<Self>, method: usize, args: Args) -> Run<'a>;

    /// The state has come into memory: the hook `#[activated]`, if there is one.
    fn on_activated(&mut self, ctx: &Ctx<Self>) {
        let _ = ctx;
    }

    /// The state leaves memory: the hook `#[passivating]`, if there is one.
    fn on_passivating(&mut self, ctx: &Ctx<Self>) {
        let _ = ctx;
    }
}

/// What a turn left behind.
pub struct Finished {
    /// The answer.
    pub answer: Answer,
    /// Messages, reminders and events; meaningless unless the answer is `Ok`.
    pub effects: Effects,
}

/// An actor type with its Rust type erased.
pub trait Kind: Send + Sync {
    /// Stable name.
    fn name(&self) -> &'static str;
    /// Handlers.
    fn methods(&self) -> &'static [Method];
    /// Shape of the state, with its named types.
    fn state_schema(&self) -> (Type, Types);
    /// Fingerprint of the state's schema.
    fn fingerprint(&self) -> u64;
    /// Whether there are collections in the state.
    fn has_collections(&self) -> bool;
    /// Shape of the events.
    fn event_schema(&self) -> (Type, Types);
    /// Which of the events are kept.
    fn retention(&self) -> Retention;
    /// The state of an actor that nobody has called yet.
    fn fresh(&self) -> Box<dyn State>;
    /// Decodes a state.
    ///
    /// # Errors
    /// What the decoder said.
    fn decode(&self, bytes: &[u8]) -> Result<Box<dyn State>, String>;
    /// Whether an encoded state can be read back: one that nests too deeply must not be kept.
    ///
    /// # Errors
    /// What is wrong with it.
    fn check(&self, encoded: &[u8]) -> Result<(), String>;
    /// Enters the state's type and the events' type where other types may stand already.
    fn describe(&self, types: &mut Types) -> (Type, Type);
    /// The state's schema, with what it replaces.
    fn schema(&self) -> Schema;
    /// Decodes a state that was written with another schema; see [`Data::upgrade`].
    ///
    /// # Errors
    /// What does not fit or would be lost.
    fn upgrade(&self, bytes: &[u8], written_with: &Schema) -> Result<Box<dyn State>, SchemaError>;
    /// Renders an event, given as postcard, as JSON.
    ///
    /// # Errors
    /// What the decoder said.
    fn event_json(&self, bytes: &[u8]) -> Result<Vec<u8>, String>;
    /// What is said of it besides its handlers.
    fn options(&self) -> Options;
}

/// A state with its Rust type erased.
pub trait State: Send + Sync + 'static {
    /// Runs a plain handler in place. A panic is caught and becomes [`Fault::Panicked`].
    fn run(&mut self, method: usize, args: Args, env: TurnEnv) -> Finished;
    /// Runs an async handler; gives the state back with the answer, or nothing if the handler
    /// panicked in a way that lost it.
    fn run_async(
        self: Box<Self>,
        method: usize,
        args: Args,
        env: TurnEnv,
    ) -> BoxFuture<'static, (Option<Box<dyn State>>, Finished)>;
    /// Encodes with postcard behind what `bytes` holds already.
    ///
    /// # Errors
    /// What the encoder said.
    fn encode_into(&self, bytes: Vec<u8>) -> Result<Vec<u8>, String>;
    /// For tests that look inside.
    fn as_any(&self) -> &dyn Any;
    /// Runs the hook of a state that has come into memory.
    ///
    /// # Errors
    /// [`Fault::Panicked`].
    fn activated(&mut self, env: TurnEnv) -> Result<(), Fault> {
        let _ = env;
        Ok(())
    }
    /// Runs the hook of a state that leaves memory.
    ///
    /// # Errors
    /// [`Fault::Panicked`].
    fn passivating(&mut self, env: TurnEnv) -> Result<(), Fault> {
        let _ = env;
        Ok(())
    }
}

/// The erased form of `A`.
pub(crate) struct KindOf<A> {
    fingerprint: u64,
    collections: bool,
    /// The state's schema, to decode by if values may nest without end; see [`Schema::is_explosive`].
    guard: Option<Schema>,
    actor: std::marker::PhantomData<fn() -> A>,
}

impl<A: Actor> KindOf<A> {
    /// # Panics
    /// When a handler takes or returns a collection, or an event holds one.
    pub(crate) fn shared() -> Arc<dyn Kind> {
        let schema = Schema::of::<A>();
        let fingerprint = schema.fingerprint();
        let collections = schema.types.has_collections();
        let mut travels = Types::default();
        A::Event::schema(&mut travels);
        for method in A::METHODS {
            method.params.iter().for_each(|param| drop((param.schema)(&mut travels)));
            (method.returns_schema)(&mut travels);
            assert!(
                !travels.has_collections(),
                "{}.{} takes, returns or publishes a collection, which belongs to the state of its actor: use its \
                 items",
                A::KIND,
                method.name
            );
        }
        let guard = schema.is_explosive().then_some(schema);
        Arc::new(Self { fingerprint, collections, guard, actor: std::marker::PhantomData })
    }
}

impl<A: Actor> Kind for KindOf<A> {
    fn name(&self) -> &'static str {
        A::KIND
    }
    fn methods(&self) -> &'static [Method] {
        A::METHODS
    }
    fn state_schema(&self) -> (Type, Types) {
        let mut types = Types::default();
        (A::schema(&mut types), types)
    }
    fn fingerprint(&self) -> u64 {
        self.fingerprint
    }
    fn has_collections(&self) -> bool {
        self.collections
    }
    fn event_schema(&self) -> (Type, Types) {
        let mut types = Types::default();
        (A::Event::schema(&mut types), types)
    }
    fn retention(&self) -> Retention {
        A::RETENTION
    }
    fn fresh(&self) -> Box<dyn State> {
        Box::new(StateOf::new(A::default()))
    }
    fn decode(&self, bytes: &[u8]) -> Result<Box<dyn State>, String> {
        caught("when decoded", || {
            let state: A = match &self.guard {
                None => plain(bytes)?,
                Some(schema) => schema.read(bytes).map_err(|e| e.to_string())?,
            };
            Ok(Box::new(StateOf::new(state)) as Box<dyn State>)
        })
    }
    fn check(&self, encoded: &[u8]) -> Result<(), String> {
        self.guard.as_ref().map_or(Ok(()), |schema| schema.check(encoded).map_err(|e| e.to_string()))
    }
    fn describe(&self, types: &mut Types) -> (Type, Type) {
        let state = A::schema(types);
        (state, A::Event::schema(types))
    }
    fn schema(&self) -> Schema {
        Schema::of::<A>()
    }
    fn upgrade(&self, bytes: &[u8], written_with: &Schema) -> Result<Box<dyn State>, SchemaError> {
        let read = caught("when decoded", || Ok(A::upgrade(bytes, written_with)));
        let state = read.unwrap_or_else(|panic| Err(SchemaError::Mismatch(panic)))?;
        Ok(Box::new(StateOf::new(state)))
    }
    fn event_json(&self, bytes: &[u8]) -> Result<Vec<u8>, String> {
        let event: A::Event = postcard::from_bytes(bytes).map_err(|e| e.to_string())?;
        serde_json::to_vec(&event).map_err(|e| e.to_string())
    }
    fn options(&self) -> Options {
        A::OPTIONS
    }
}

/// Invariant: holds a state until it is dropped.
struct StateOf<A> {
    state: Option<A>,
    /// The items of its collections.
    items: Option<Handle>,
}

impl<A> StateOf<A> {
    fn new(state: A) -> Self {
        Self { state: Some(state), items: collections::current() }
    }

    fn get(&self) -> &A {
        self.state.as_ref().expect("a state is there until it is dropped")
    }

    fn get_mut(&mut self) -> &mut A {
        self.state.as_mut().expect("a state is there until it is dropped")
    }
}

impl<A: Actor> StateOf<A> {
    /// Begins a handler, by its nature.
    fn begin<'a>(&'a mut self, ctx: &'a mut Ctx<A>, method: usize, args: Args) -> Run<'a> {
        if A::METHODS[method].write {
            self.get_mut().write(ctx, method, args)
        } else {
            self.get().read(ctx, method, args)
        }
    }
}

impl<A> Drop for StateOf<A> {
    fn drop(&mut self) {
        let state = self.state.take();
        let _ = caught("when dropped", || {
            drop(state);
            Ok(())
        });
    }
}

impl<A: Actor> State for StateOf<A> {
    fn run(&mut self, method: usize, args: Args, env: TurnEnv) -> Finished {
        let mut ctx = Ctx::<A>::new(env);
        let described = &A::METHODS[method];
        let items = self.items.clone();
        let run = std::panic::catch_unwind(AssertUnwindSafe(|| {
            with_items(items.as_ref(), described.write, || match self.begin(&mut ctx, method, args) {
                Run::Done(answer) => answer,
                Run::Later(_) => unreachable!("a plain handler answers at once"),
            })
        }));
        let answer = run.unwrap_or_else(|panic| panicked::<A>(described, &*panic));
        ctx.finish(answer)
    }

    fn run_async(
        mut self: Box<Self>,
        method: usize,
        args: Args,
        env: TurnEnv,
    ) -> BoxFuture<'static, (Option<Box<dyn State>>, Finished)> {
        use futures_util::FutureExt;
        Box::pin(async move {
            let mut ctx = Ctx::<A>::new(env);
            let described = &A::METHODS[method];
            let items = self.items.clone();
            let answer = {
                let mut run = std::pin::pin!(async {
                    match self.begin(&mut ctx, method, args) {
                        Run::Done(answer) => answer,
                        Run::Later(answer) => answer.await,
                    }
                });
                let run = std::future::poll_fn(|cx| {
                    with_items(items.as_ref(), described.write, || run.as_mut().poll(cx))
                });
                let run = AssertUnwindSafe(run).catch_unwind();
                run.await.unwrap_or_else(|panic| panicked::<A>(described, &*panic))
            };
            (Some(self as Box<dyn State>), ctx.finish(answer))
        })
    }

    fn encode_into(&self, bytes: Vec<u8>) -> Result<Vec<u8>, String> {
        caught("when encoded", || {
            let encode = || postcard::to_extend(self.get(), bytes).map_err(|e| e.to_string());
            let Some(items) = &self.items else { return encode() };
            let (encoded, seen) = collections::within(Doing::Encode, items, encode);
            items.encoded(seen);
            encoded
        })
    }

    fn as_any(&self) -> &dyn Any {
        self.get()
    }

    fn activated(&mut self, env: TurnEnv) -> Result<(), Fault> {
        let (ctx, items) = (Ctx::<A>::new(env), self.items.clone());
        hook::<A>("activated", items.as_ref(), || self.get_mut().on_activated(&ctx))
    }

    fn passivating(&mut self, env: TurnEnv) -> Result<(), Fault> {
        let (ctx, items) = (Ctx::<A>::new(env), self.items.clone());
        hook::<A>("passivating", items.as_ref(), || self.get_mut().on_passivating(&ctx))
    }
}

/// Runs a hook. It makes no record, so it reads its actor's items and changes none.
fn hook<A: Actor>(name: &str, items: Option<&Handle>, run: impl FnOnce()) -> Result<(), Fault> {
    let ran = std::panic::catch_unwind(AssertUnwindSafe(|| with_items(items, false, run)));
    ran.map_err(|panic| match panic.downcast_ref::<Abort>() {
        Some(Abort(fault)) => fault.clone(),
        None => Fault::Panicked {
            kind: A::KIND.to_owned(),
            method: name.to_owned(),
            message: message_of(&*panic),
        },
    })
}

/// Polls or runs a handler with its actor's items.
fn with_items<T>(items: Option<&Handle>, write: bool, run: impl FnOnce() -> T) -> T {
    match items {
        None => run(),
        Some(items) => collections::within(Doing::handler(write), items, run).0,
    }
}

/// A state that could not be made; every turn on it fails and says why.
pub(crate) struct Unusable(pub(crate) Fault);

impl State for Unusable {
    fn run(&mut self, _: usize, _: Args, _: TurnEnv) -> Finished {
        Finished::fault(self.0.clone())
    }

    fn run_async(
        mut self: Box<Self>,
        method: usize,
        args: Args,
        env: TurnEnv,
    ) -> BoxFuture<'static, (Option<Box<dyn State>>, Finished)> {
        let finished = self.run(method, args, env);
        Box::pin(std::future::ready((Some(self as Box<dyn State>), finished)))
    }

    fn encode_into(&self, _: Vec<u8>) -> Result<Vec<u8>, String> {
        Err(self.0.to_string())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Runs the application's code outside a handler; a panic becomes an error.
pub(crate) fn caught<T>(what: &str, run: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    std::panic::catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        Err(match panic.downcast_ref::<Abort>() {
            Some(Abort(fault)) => fault.to_string(),
            None => format!("{what} it panicked: {}", message_of(&*panic)),
        })
    })
}

fn panicked<A: Actor>(method: &Method, panic: &(dyn Any + Send)) -> Answer {
    if let Some(Abort(fault)) = panic.downcast_ref::<Abort>() {
        return Answer::Fault(fault.clone());
    }
    let message = message_of(panic);
    Answer::Fault(Fault::Panicked { kind: A::KIND.to_owned(), method: method.name.to_owned(), message })
}

fn message_of(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}

/// The answer of a dispatch that was given a number without a handler of that nature (used by generated
/// code).
#[doc(hidden)]
pub fn no_such_handler(kind: &str, methods: &[Method], number: usize) -> Run<'static> {
    Run::Done(Answer::Fault(Fault::UnknownMethod {
        kind: kind.to_owned(),
        method: format!("#{number}"),
        known: methods.iter().map(Method::signature).collect(),
    }))
}

/// Checks that a name given by a user is a valid kind and key.
pub(crate) fn actor_id(kind: &str, key: &str) -> Result<ActorId, Fault> {
    ActorId::new(kind, key).map_err(Fault::from)
}
