//! Calls as values, and the handles that make them.
//!
//! A handler's method on a typed reference gives a [`Call`]: nothing has happened yet. It is awaited,
//! sent with `ctx.send`, or scheduled with `ctx.schedule`.

use std::future::IntoFuture;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::Stream;
pub use perennial_core::id::ActorId;
use perennial_core::id::{NodeId, PartitionId, RequestId, SessionId};
use perennial_core::partition::record::Message;
use serde::{Deserialize, Serialize};

use crate::actor::{Actor, Answer, Args, BoxFuture, Format, encode};
use crate::arguments::Arguments;
use crate::data::Data;
use crate::error::{CallError, Fault};
use crate::options::Pool;
use crate::pool::{ANY_KEY, PoolCall};

/// How long a call waits for its answer unless told otherwise.
pub const CALL_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

/// A call on its way from a caller to the router.
#[derive(Debug, Clone)]
pub struct Outbound {
    /// Whom.
    pub target: ActorId,
    /// Handler.
    pub method: String,
    /// Arguments; the answer comes in the same format.
    pub args: Args,
    /// `None`: the caller draws an id of its own session.
    pub request: Option<RequestId>,
    /// The request id stands for an idempotency key, whose reply is kept for a stated time.
    pub keyed: bool,
    /// Refuse if the handler writes.
    pub read_only: bool,
    /// A read that may miss what was committed within so long, so that any replica can answer it; `None`:
    /// linearizable.
    pub stale: Option<Duration>,
    /// The actors that are waiting for this call, outermost first.
    pub path: Vec<ActorId>,
    /// When to give up.
    pub deadline: Instant,
}

impl Outbound {
    /// Whether nothing can come of it but an answer.
    pub(crate) fn reads(&self) -> bool {
        self.read_only || self.stale.is_some()
    }
}

/// An answer and who gave it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answered {
    /// The answer.
    pub answer: Answer,
    /// The node that ran the turn; `None` when none did.
    pub node: Option<NodeId>,
    /// The actor's partition.
    pub partition: Option<PartitionId>,
    /// How often the caller's side tried again.
    pub retries: u32,
    /// What was committed longer ago than this is in the answer, in milliseconds; `None` when it is
    /// linearizable.
    pub age_ms: Option<u64>,
}

impl Answered {
    /// An answer no node gave.
    #[must_use]
    pub fn fault(fault: Fault) -> Self {
        Self { answer: Answer::Fault(fault), node: None, partition: None, retries: 0, age_ms: None }
    }
}

/// A committed event of an actor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventItem {
    /// Where it stands; streams resume after it.
    pub id: EventId,
    /// postcard bytes of the event.
    pub event: Bytes,
    /// This is no event but a mark between them: the stream stands at `id`, with everything up to there.
    pub mark: bool,
}

impl EventItem {
    /// A mark between events: the stream stands at `id`.
    pub(crate) fn position(id: EventId) -> Self {
        Self { id, event: Bytes::new(), mark: true }
    }
}

/// Position of an event: the log index of its entry and its number within the entry. Written `index-n`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EventId {
    /// Log index.
    pub index: u64,
    /// Number within the entry.
    pub n: u32,
}

impl std::fmt::Display for EventId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.index, self.n)
    }
}
impl std::str::FromStr for EventId {
    type Err = Fault;
    fn from_str(text: &str) -> Result<Self, Fault> {
        let bad = || Fault::BadName(format!("event id {text:?}: expected INDEX-N, such as 17-0"));
        let (index, n) = text.split_once('-').ok_or_else(bad)?;
        Ok(Self { index: index.parse().map_err(|_| bad())?, n: n.parse().map_err(|_| bad())? })
    }
}

/// Where a subscription starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EventsFrom {
    /// Only events committed from now on.
    Now,
    /// Everything still kept.
    Start,
    /// Everything after this event, or a fault that says that something of it is no longer kept.
    After(EventId),
}

/// A stream of an actor's committed events, with marks that say where it stands; ends with a fault.
pub type EventStream = std::pin::Pin<Box<dyn Stream<Item = Result<EventItem, Fault>> + Send>>;

/// Something that takes calls: a node, a client, a test application.
pub trait Caller: Send + Sync + 'static {
    /// Makes a call, retrying with the same request id while that is safe, until its deadline.
    fn call(&self, call: Outbound) -> BoxFuture<'static, Answered>;
    /// Makes a call of a stateless worker, on a node chosen as its pool says. Whoever does not know the nodes
    /// makes it as any other call, and the node that takes it chooses.
    fn call_worker(&self, call: Outbound, pool: Pool) -> BoxFuture<'static, Answered> {
        let _ = pool;
        self.call(call)
    }
    /// Follows an actor's events; resumes by itself over failovers.
    fn subscribe(&self, actor: ActorId, from: EventsFrom) -> EventStream;
}

/// Where a reference's calls go.
#[derive(Clone)]
pub(crate) enum Via {
    /// From outside.
    Outside(Arc<dyn Caller>),
    /// From inside a turn.
    Turn(Arc<TurnCaller>),
}

/// The calling side of a turn: calls carry the turn's path, deadline and derived request ids.
pub(crate) struct TurnCaller {
    pub(crate) caller: Arc<dyn Caller>,
    /// The waiting actors, this turn's own last.
    pub(crate) path: Vec<ActorId>,
    pub(crate) request: RequestId,
    pub(crate) deadline: Instant,
    pub(crate) lasting: bool,
    pub(crate) reads: bool,
    pub(crate) calls: AtomicU32,
}

/// Bit of a nested call's number that says that the turn at its root may be repeated for long, so that
/// its reply is kept as long as that of an idempotency key. Sessions never count that far.
pub(crate) const LASTING: u64 = 1 << 63;

impl TurnCaller {
    /// Id of a nested call: a hash of the parent's id, the call's position, target and arguments. The
    /// same turn run again makes the same calls under the same ids.
    fn nested_request(&self, target: &ActorId, method: &str, args: &[u8]) -> RequestId {
        let ordinal = self.calls.fetch_add(1, Ordering::Relaxed);
        let mut bytes = Vec::with_capacity(64 + args.len());
        bytes.extend_from_slice(&self.request.session.0.to_be_bytes());
        bytes.extend_from_slice(&self.request.seq.to_be_bytes());
        for part in [self.path.last().map_or("", ActorId::as_str), target.as_str(), method] {
            bytes.extend_from_slice(&(part.len() as u32).to_be_bytes());
            bytes.extend_from_slice(part.as_bytes());
        }
        bytes.extend_from_slice(&ordinal.to_be_bytes());
        bytes.extend_from_slice(args);
        let seq = if self.lasting { LASTING } else { 0 };
        RequestId { session: SessionId(perennial_core::hash::wide_hash(&bytes)), seq }
    }
}

/// An untyped reference to an actor; the typed ones wrap it.
#[derive(Clone)]
pub struct ActorHandle {
    target: Result<ActorId, Fault>,
    via: Via,
    timeout: Duration,
}

impl std::fmt::Debug for ActorHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ActorHandle").field(&self.target).finish()
    }
}

impl ActorHandle {
    pub(crate) fn new(target: Result<ActorId, Fault>, via: Via) -> Self {
        Self { target, via, timeout: CALL_TIMEOUT_DEFAULT }
    }

    /// The actor; a fault when the key it was made with is not valid.
    ///
    /// # Errors
    /// [`Fault::BadName`].
    pub fn id(&self) -> Result<&ActorId, &Fault> {
        self.target.as_ref()
    }

    /// The same reference with another time-out for its calls.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Makes a call value; `args` are a tuple (used by generated code).
    pub fn method<T: Data, X: Failure>(&self, method: &'static str, args: &impl Arguments) -> Call<T, X> {
        let message = self.target.clone().and_then(|target| {
            let args = encode(Format::Postcard, args)?;
            Ok(Message { target, method: method.to_owned(), args })
        });
        Call { message, via: self.via.clone(), timeout: self.timeout, stale: None, answer: PhantomData }
    }

    /// Makes a call value of a stateless kind; `args` are a tuple (used by generated code).
    pub fn worker<A: Actor, T: Data, X: Failure>(
        &self,
        method: &'static str,
        args: &impl Arguments,
    ) -> PoolCall<T, X> {
        PoolCall { call: self.method(method, args), pool: A::OPTIONS.pool.unwrap_or_default() }
    }

    /// The actor's committed events (used by generated code).
    pub fn events<A: Actor>(&self, from: EventsFrom) -> Events<A::Event> {
        let stream: EventStream = match (&self.target, &self.via) {
            (Ok(target), Via::Outside(caller)) => caller.subscribe(target.clone(), from),
            (Ok(target), Via::Turn(turn)) => turn.caller.subscribe(target.clone(), from),
            (Err(fault), _) => {
                let fault = fault.clone();
                Box::pin(futures_util::stream::once(async move { Err(fault) }))
            }
        };
        let position = match from {
            EventsFrom::After(id) => Some(id),
            EventsFrom::Now | EventsFrom::Start => None,
        };
        Events { stream, position, event: PhantomData }
    }
}

/// Typed events of an actor. The stream goes on over failovers without a gap and without doubles; it ends
/// with a fault, after which it can be resumed at [`position`](Self::position) unless that is
/// [`Fault::EventsGone`].
pub struct Events<E> {
    stream: EventStream,
    position: Option<EventId>,
    event: PhantomData<fn() -> E>,
}

impl<E> Events<E> {
    /// Where the stream stands, to resume it with [`EventsFrom::After`]: behind the last event it gave, or where
    /// it began. `None` while that is not known.
    #[must_use]
    pub fn position(&self) -> Option<EventId> {
        self.position
    }
}

impl<E: Data> Stream for Events<E> {
    type Item = Result<(EventId, E), Fault>;
    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> Poll<Option<Self::Item>> {
        loop {
            let item = match std::task::ready!(self.stream.as_mut().poll_next(cx)) {
                None => return Poll::Ready(None),
                Some(Err(fault)) => return Poll::Ready(Some(Err(fault))),
                Some(Ok(item)) => item,
            };
            self.position = Some(item.id);
            if item.mark {
                continue;
            }
            let event = postcard::from_bytes(&item.event).map_err(|error| Fault::Unreadable {
                what: "event".into(),
                at: item.id.to_string(),
                why: error.to_string(),
            });
            return Poll::Ready(Some(event.map(|event| (item.id, event))));
        }
    }
}

/// The error type of a call: [`Fault`] for handlers that cannot fail, [`CallError`] for those that can.
pub trait Failure: Sized + Send + 'static {
    /// Wraps a fault.
    fn fault(fault: Fault) -> Self;
    /// Decodes the application's error.
    fn app(bytes: &[u8]) -> Self;
}

impl Failure for Fault {
    fn fault(fault: Fault) -> Self {
        fault
    }
    fn app(_: &[u8]) -> Self {
        unreadable("error of a handler that declares none", &"this build's handler cannot fail")
    }
}

impl<E: Data> Failure for CallError<E> {
    fn fault(fault: Fault) -> Self {
        Self::Fault(fault)
    }
    fn app(bytes: &[u8]) -> Self {
        match postcard::from_bytes(bytes) {
            Ok(error) => Self::App(error),
            Err(error) => Self::Fault(unreadable(std::any::type_name::<E>(), &error)),
        }
    }
}

fn unreadable(what: &str, why: &dyn std::fmt::Display) -> Fault {
    Fault::Unreadable { what: what.to_owned(), at: "the answer".to_owned(), why: why.to_string() }
}

/// A call that has not been made: await it, `ctx.send` it or `ctx.schedule` it.
#[must_use = "a call does nothing until it is awaited, sent or scheduled"]
pub struct Call<T, X> {
    pub(crate) message: Result<Message, Fault>,
    via: Via,
    timeout: Duration,
    stale: Option<Duration>,
    answer: PhantomData<fn() -> (T, X)>,
}

impl<T: Data, X: Failure> Call<T, X> {
    /// Another time-out for this call.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Lets a read miss what was committed within so long: any replica may answer it from what it has, on a
    /// minority side too. If none can, the leader does, as without this. [`Call::detailed`] tells how old
    /// the answer is. With a bound of zero, a read that is stale by default is linearizable. A write is
    /// refused with [`Fault::NotARead`]; nothing was applied.
    pub fn stale(mut self, within: Duration) -> Self {
        self.stale = (!within.is_zero()).then_some(within);
        self
    }

    /// Makes the call and tells how it went besides the answer.
    pub async fn detailed(self) -> Detailed<T, X> {
        self.made(None).await
    }

    pub(crate) async fn made(self, pool: Option<Pool>) -> Detailed<T, X> {
        let answered = match self.message {
            Err(fault) => Answered::fault(fault),
            Ok(message) => dispatch(message, self.via, self.timeout, self.stale, pool).await,
        };
        let result = match answered.answer {
            Answer::Ok(bytes) => {
                postcard::from_bytes(&bytes).map_err(|e| X::fault(unreadable(std::any::type_name::<T>(), &e)))
            }
            Answer::App(bytes) => Err(X::app(&bytes)),
            Answer::Fault(fault) => Err(X::fault(fault)),
        };
        let age = answered.age_ms.map(Duration::from_millis);
        Detailed { result, node: answered.node, retries: answered.retries, age }
    }
}

/// How a call went.
#[derive(Debug)]
pub struct Detailed<T, X> {
    /// What awaiting the call gives.
    pub result: Result<T, X>,
    /// The node that answered; `None` when none did.
    pub node: Option<NodeId>,
    /// How often it was tried again.
    pub retries: u32,
    /// What was committed longer ago than this is in the answer; `None` when it is linearizable.
    pub age: Option<Duration>,
}

impl<T: Data, X: Failure> IntoFuture for Call<T, X> {
    type Output = Result<T, X>;
    type IntoFuture = BoxFuture<'static, Result<T, X>>;
    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { self.detailed().await.result })
    }
}

async fn dispatch(
    message: Message,
    via: Via,
    timeout: Duration,
    stale: Option<Duration>,
    pool: Option<Pool>,
) -> Answered {
    let deadline = tokio::time::Instant::now().into_std() + timeout;
    let args = Args { format: Format::Postcard, bytes: message.args };
    let mut call = Outbound {
        target: message.target,
        method: message.method,
        args,
        request: None,
        keyed: false,
        read_only: stale.is_some(),
        stale,
        path: Vec::new(),
        deadline,
    };
    match via {
        Via::Outside(caller) => made_by(&*caller, call, pool).await,
        Via::Turn(turn) => {
            if turn.path.contains(&call.target) {
                let mut path: Vec<_> = turn.path.iter().map(ToString::to_string).collect();
                path.push(call.target.to_string());
                return Answered::fault(Fault::Cycle { path });
            }
            call.request = Some(turn.nested_request(&call.target, &call.method, &call.args.bytes));
            call.path.clone_from(&turn.path);
            call.read_only |= turn.reads;
            call.deadline = deadline.min(turn.deadline);
            made_by(&*turn.caller, call, pool).await
        }
    }
}

fn made_by(caller: &dyn Caller, call: Outbound, pool: Option<Pool>) -> BoxFuture<'static, Answered> {
    match pool {
        Some(pool) => caller.call_worker(call, pool),
        None => caller.call(call),
    }
}

/// Everything that gives typed references: a client, a node, a test application.
pub trait Actors {
    /// Where the calls go.
    fn caller(&self) -> Arc<dyn Caller>;

    /// A reference to the actor of type `A` with this key. It always exists; nothing is sent yet.
    fn get<A: Actor>(&self, key: impl AsRef<str>) -> A::Ref
    where
        Self: Sized,
    {
        let target = crate::actor::actor_id(A::KIND, key.as_ref());
        A::make_ref(ActorHandle::new(target, Via::Outside(self.caller())))
    }

    /// A reference to the workers of the stateless type `A`, for calls for which it does not matter which of
    /// them takes it. With `balance = "by_key"`, use [`get`](Self::get).
    fn pool<A: Actor>(&self) -> A::Ref
    where
        Self: Sized,
    {
        self.get::<A>(ANY_KEY)
    }
}
