//! Actors as users write them, driven through their erased form, without a cluster.

#![deny(warnings, missing_docs)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use perennial::actor::{Answer, Args, Finished, Format, Kind, State};
use perennial::call::{Answered, Caller, EventStream, EventsFrom, Outbound};
use perennial::core::id::{ActorId, RequestId, SessionId};
use perennial::core::partition::record::ReminderChange;
use perennial::core::time::Millis;
use perennial::ctx::TurnEnv;
use perennial::prelude::*;
use serde_json::{Value, json};

/// A line of a cart.
#[data]
#[derive(Default)]
pub struct Line {
    qty: u32,
    cents: u64,
}

/// Why a cart refused.
#[data]
pub enum CartError {
    /// Nothing can be added any more.
    CheckedOut,
    /// There is not enough of it.
    OutOfStock {
        /// Of what.
        sku: String,
        /// How much there is.
        left: u32,
    },
}

/// A shopping cart.
#[data]
#[derive(Default)]
pub struct Cart {
    lines: BTreeMap<String, Line>,
    checked_out: bool,
}

#[actor]
impl Cart {
    /// Adds to the cart; returns the number of items in it.
    pub async fn add(
        &mut self,
        ctx: &mut Ctx<Self>,
        sku: String,
        qty: u32,
        cents: u64,
    ) -> Reply<u32, CartError> {
        if self.checked_out {
            return Err(CartError::CheckedOut.into());
        }
        self.lines.entry(sku.clone()).or_insert(Line { qty: 0, cents }).qty += qty;
        ctx.get::<Stock>(&sku).reserve(qty).await.map_app(|left| CartError::OutOfStock { sku, left })?;
        ctx.schedule("abandoned", Duration::from_secs(3600), ctx.me().clear());
        Ok(self.count())
    }
    /// What it all costs.
    pub fn total_cents(&self) -> u64 {
        self.lines.values().map(|l| l.cents * u64::from(l.qty)).sum()
    }
    /// Gives everything back.
    pub fn clear(&mut self, ctx: &mut Ctx<Self>) {
        for (sku, l) in std::mem::take(&mut self.lines) {
            ctx.send(ctx.get::<Stock>(&sku).release(l.qty))
        }
    }
    /// Calls itself, which cannot work.
    pub async fn loops(&self, ctx: &Ctx<Self>) -> Result<u64, Fault> {
        ctx.me().total_cents().await
    }
    fn count(&self) -> u32 {
        self.lines.values().map(|l| l.qty).sum()
    }
}

/// How much there is of something.
#[data]
#[derive(Default)]
pub struct Stock {
    left: u32,
}

#[actor(kind = "shop.stock")]
impl Stock {
    /// Takes some.
    ///
    /// There must be enough.
    pub fn reserve(&mut self, qty: u32) -> Result<u32, u32> {
        self.left = self.left.checked_sub(qty).ok_or(self.left)?;
        Ok(self.left)
    }
    /// Puts some back.
    pub fn release(&mut self, qty: u32) {
        self.left += qty;
    }
    /// Compares.
    pub async fn same_as(&self, mut other: Self, r#type: Option<String>) -> bool {
        other.left += u32::from(r#type.is_some());
        *self == other
    }
    /// Panics.
    pub fn breaks(&mut self) {
        self.left = 1;
        panic!("on purpose: {}", self.left);
    }
    /// Panics later.
    pub async fn breaks_later(&mut self) {
        self.left = 2;
        tokio::task::yield_now().await;
        panic!("on purpose");
    }
}

/// What is said in a room.
#[data]
pub struct Said {
    who: String,
    text: String,
}

/// What happens in a room.
#[data]
pub enum RoomEvent {
    /// Someone said something.
    Said(Said),
}

/// Why a room refused.
#[data]
pub enum RoomError {
    /// Join first.
    NotMember,
}

/// A chat room.
#[data]
#[derive(Default)]
pub struct Room {
    members: BTreeSet<String>,
    recent: VecDeque<Said>,
}

#[actor(event = RoomEvent)]
impl Room {
    /// Adds a member.
    pub fn join(&mut self, who: String) {
        self.members.insert(who);
    }
    /// Says something.
    pub fn say(&mut self, ctx: &mut Ctx<Self>, who: String, text: String) -> Result<(), RoomError> {
        if !self.members.contains(&who) {
            return Err(RoomError::NotMember);
        }
        let said = Said { who, text };
        self.recent.push_back(said.clone());
        if self.recent.len() > 50 {
            self.recent.pop_front();
        }
        ctx.publish(RoomEvent::Said(said));
        Ok(())
    }
}

mod private {
    //! Types need not be public.
    use perennial::prelude::*;

    #[data]
    #[derive(Default)]
    struct Hidden(u8);

    #[actor]
    impl Hidden {
        pub fn get(&self) -> u8 {
            self.0
        }
    }

    pub(crate) fn app() -> App {
        App::new("private").actor::<Hidden>()
    }
}

/// Answers every call with the same and remembers what was called.
struct Fake {
    answer: Answer,
    calls: Mutex<Vec<Outbound>>,
}

impl Caller for Fake {
    fn call(&self, call: Outbound) -> perennial::actor::BoxFuture<'static, Answered> {
        self.calls.lock().unwrap().push(call);
        let answer = self.answer.clone();
        Box::pin(async move { Answered { answer, node: None, partition: None, retries: 0, age_ms: None } })
    }
    fn subscribe(&self, _: ActorId, _: EventsFrom) -> EventStream {
        Box::pin(futures_util::stream::empty())
    }
}

fn fake<T: serde::Serialize>(answer: impl FnOnce(Bytes) -> Answer, value: T) -> Arc<Fake> {
    let bytes = postcard::to_stdvec(&value).unwrap().into();
    Arc::new(Fake { answer: answer(bytes), calls: Mutex::default() })
}

fn app() -> App {
    App::new("shop").actor::<Cart>().actor::<Stock>().actor::<Room>()
}

fn kind(name: &str) -> Arc<dyn Kind> {
    Arc::clone(app().kinds().get(name).unwrap())
}

fn env(kind: &str, key: &str, caller: Arc<Fake>) -> TurnEnv {
    TurnEnv {
        me: ActorId::new(kind, key).unwrap(),
        caller,
        path: vec![],
        request: RequestId { session: SessionId(7), seq: 1 },
        lasting: false,
        reads: false,
        deadline: Instant::now() + Duration::from_secs(60),
        now: Millis(1_000),
        due: None,
        reminders: perennial::ctx::RemindersView::default(),
    }
}

fn number(kind: &dyn Kind, method: &str) -> usize {
    kind.methods().iter().position(|m| m.name == method).unwrap()
}

fn json_args(args: Value) -> Args {
    Args { format: Format::Json, bytes: serde_json::to_vec(&args).unwrap().into() }
}

fn postcard_args(args: impl serde::Serialize) -> Args {
    Args { format: Format::Postcard, bytes: postcard::to_stdvec(&args).unwrap().into() }
}

fn run(kind: &dyn Kind, state: &mut dyn State, method: &str, args: Args) -> Finished {
    let env = env(kind.name(), "k", fake(Answer::Ok, ()));
    state.run(number(kind, method), args, env)
}

async fn run_async(
    kind: &dyn Kind,
    state: Box<dyn State>,
    method: &str,
    args: Args,
    caller: Arc<Fake>,
) -> (Box<dyn State>, Finished) {
    let env = env(kind.name(), "k", caller);
    let (state, finished) = state.run_async(number(kind, method), args, env).await;
    (state.unwrap(), finished)
}

fn json_of(answer: &Answer) -> Value {
    match answer {
        Answer::Ok(bytes) | Answer::App(bytes) => serde_json::from_slice(bytes).unwrap(),
        Answer::Fault(fault) => panic!("{fault}"),
    }
}

fn bad_arguments(answer: &Answer) -> (&str, &str) {
    match answer {
        Answer::Fault(Fault::BadArguments { problem, takes, .. }) => (problem, takes),
        other => panic!("{other:?}"),
    }
}

fn seen<A: Actor>(state: &dyn State) -> &A {
    state.as_any().downcast_ref().unwrap()
}

#[test]
fn handlers_are_described_with_names_types_and_documentation() {
    let app = app();
    let names: Vec<_> = app.kinds().iter().map(|kind| kind.name()).collect();
    assert_eq!(names, ["Cart", "Room", "shop.stock"]);
    let stock = kind("shop.stock");
    let lines: Vec<_> = stock
        .methods()
        .iter()
        .map(|m| format!("{} {} -> {} {} {:?}", m.write, m.signature(), m.returns, m.asynchronous, m.doc))
        .collect();
    assert_eq!(
        lines,
        [
            r#"true reserve(qty: u32) -> u32 false "Takes some.""#,
            r#"true release(qty: u32) -> () false "Puts some back.""#,
            r#"false same_as(other: Stock, type: Option<String>) -> bool true "Compares.""#,
            r#"true breaks() -> () false "Panics.""#,
            r#"true breaks_later() -> () true "Panics later.""#,
        ]
    );
    assert_eq!(stock.methods()[2].takes(), r#"{"other": Stock, "type": Option<String>}"#);
    assert_eq!(private::app().kinds().get("Hidden").unwrap().methods().len(), 1);
}

#[test]
fn a_handler_answers_in_the_format_of_its_arguments() {
    let stock = kind("shop.stock");
    let mut state = stock.fresh();
    let by_name = run(&*stock, &mut *state, "release", json_args(json!({"qty": 5})));
    assert_eq!(json_of(&by_name.answer), Value::Null);
    let ok = run(&*stock, &mut *state, "reserve", postcard_args((2u32,)));
    assert_eq!(ok.answer, Answer::Ok(postcard::to_stdvec(&3u32).unwrap().into()));
    let refused = run(&*stock, &mut *state, "reserve", json_args(json!({"qty": 9})));
    assert_eq!(refused.answer, Answer::App(Bytes::from_static(b"3")));
    assert_eq!(seen::<Stock>(&*state).left, 3);
    assert!(ok.effects.is_empty());
}

#[test]
fn wrong_arguments_are_named_and_told_what_fits() {
    let stock = kind("shop.stock");
    let problem = |args: Args| {
        let finished = run(&*stock, &mut *stock.fresh(), "reserve", args);
        let (problem, takes) = bad_arguments(&finished.answer);
        assert_eq!(takes, r#"{"qty": u32}"#);
        problem.to_owned()
    };
    assert_eq!(problem(json_args(json!({"qty": 1, "x": 2}))), "unknown argument \"x\" at line 1 column 12");
    assert_eq!(problem(json_args(json!({}))), "missing argument \"qty\" at line 1 column 2");
    assert_eq!(
        problem(json_args(json!({"qty": "one"}))),
        "qty: invalid type: string \"one\", expected u32 at line 1 column 12"
    );
    assert_eq!(
        problem(json_args(json!([1]))),
        "invalid type: sequence, expected an object with the arguments by name at line 1 column 0"
    );
    let twice = Args { format: Format::Json, bytes: Bytes::from_static(br#"{"qty":1,"qty":2}"#) };
    assert_eq!(problem(twice), "argument \"qty\" is given twice at line 1 column 14");
    let after = Args { format: Format::Json, bytes: Bytes::from_static(br#"{"qty":1} x"#) };
    assert_eq!(problem(after), "trailing characters at line 1 column 11");
    let empty = Args { format: Format::Json, bytes: Bytes::new() };
    assert_eq!(problem(empty), "missing argument \"qty\" at line 1 column 2");
    assert_eq!(problem(postcard_args((1u32, 2u32))), "1 bytes too many");
    assert!(!problem(postcard_args(())).is_empty());
}

#[test]
fn a_panic_becomes_a_fault() {
    let stock = kind("shop.stock");
    let mut state = stock.fresh();
    let finished = run(&*stock, &mut *state, "breaks", postcard_args(()));
    let expected = Fault::Panicked {
        kind: "shop.stock".into(),
        method: "breaks".into(),
        message: "on purpose: 1".into(),
    };
    assert_eq!(finished.answer, Answer::Fault(expected));
}

#[tokio::test]
async fn a_panic_after_an_await_becomes_a_fault() {
    let stock = kind("shop.stock");
    let caller = fake(Answer::Ok, ());
    let (_, finished) = run_async(&*stock, stock.fresh(), "breaks_later", json_args(json!({})), caller).await;
    assert!(
        matches!(finished.answer, Answer::Fault(Fault::Panicked { message, .. }) if message == "on purpose")
    );
}

#[tokio::test]
async fn an_async_read_takes_its_own_type_and_an_option_that_is_left_out() {
    let stock = kind("shop.stock");
    for (args, expected) in [
        (json!({"other": {"left": 0}}), true),
        (json!({"other": {"left": 0}, "type": null}), true),
        (json!({"other": {"left": 0}, "type": "x"}), false),
    ] {
        let caller = fake(Answer::Ok, ());
        let (_, finished) = run_async(&*stock, stock.fresh(), "same_as", json_args(args), caller).await;
        assert_eq!(json_of(&finished.answer), expected);
    }
}

#[tokio::test]
async fn a_nested_call_carries_path_and_derived_id_and_effects_follow_it() {
    let cart = kind("Cart");
    let caller = fake(Answer::Ok, 3u32);
    let args = || postcard_args(("tea", 2u32, 250u64));
    let (state, finished) = run_async(&*cart, cart.fresh(), "add", args(), caller.clone()).await;
    assert_eq!(finished.answer, Answer::Ok(postcard::to_stdvec(&2u32).unwrap().into()));
    assert_eq!(seen::<Cart>(&*state).lines["tea"].qty, 2);

    let [ReminderChange::Set { name, due, message, .. }] = &finished.effects.reminders[..] else { panic!() };
    assert_eq!((name.as_str(), *due), ("abandoned", Millis(3_601_000)));
    assert_eq!((message.target.as_str(), message.method.as_str()), ("Cart/k", "clear"));

    let first = caller.calls.lock().unwrap().remove(0);
    assert_eq!((first.target.as_str(), first.method.as_str()), ("shop.stock/tea", "reserve"));
    assert_eq!(first.args.bytes, postcard::to_stdvec(&(2u32,)).unwrap());
    assert_eq!(first.path, [ActorId::new("Cart", "k").unwrap()]);
    let _ = run_async(&*cart, cart.fresh(), "add", args(), caller.clone()).await;
    assert_eq!(
        caller.calls.lock().unwrap()[0].request,
        first.request,
        "a turn run again derives the same ids"
    );
}

#[tokio::test]
async fn errors_of_another_actor_are_mapped_and_faults_pass() {
    let cart = kind("Cart");
    let args = || json_args(json!({"sku": "tea", "qty": 2, "cents": 250}));
    let (_, finished) = run_async(&*cart, cart.fresh(), "add", args(), fake(Answer::App, 1u32)).await;
    assert!(matches!(&finished.answer, Answer::App(_)));
    assert_eq!(json_of(&finished.answer), json!({"OutOfStock": {"sku": "tea", "left": 1}}));

    let fault = Fault::OutcomeUnknown { actor: "shop.stock/tea".into() };
    let caller = fake(|_| Answer::Fault(fault.clone()), ());
    let (_, finished) = run_async(&*cart, cart.fresh(), "add", args(), caller).await;
    assert_eq!(finished.answer, Answer::Fault(fault));
}

#[tokio::test]
async fn a_call_to_oneself_is_refused_at_once_with_its_path() {
    let cart = kind("Cart");
    let caller = fake(Answer::Ok, 0u64);
    let (_, finished) = run_async(&*cart, cart.fresh(), "loops", json_args(json!({})), caller.clone()).await;
    let path = vec!["Cart/k".to_owned(), "Cart/k".to_owned()];
    assert_eq!(finished.answer, Answer::Fault(Fault::Cycle { path }));
    assert!(caller.calls.lock().unwrap().is_empty());
}

#[test]
fn sends_and_events_are_left_for_the_commit() {
    let cart = kind("Cart");
    let written = Cart {
        lines: [("tea", 2), ("milk", 1)].map(|(s, qty)| (s.to_owned(), Line { qty, cents: 5 })).into(),
        checked_out: false,
    };
    let mut state = cart.decode(&postcard::to_stdvec(&written).unwrap()).unwrap();
    let total = run(&*cart, &mut *state, "total_cents", json_args(json!({})));
    assert_eq!(json_of(&total.answer), 15);
    let cleared = run(&*cart, &mut *state, "clear", json_args(json!({})));
    let sent: Vec<_> = cleared.effects.sends.iter().map(|m| (m.target.key(), &*m.method)).collect();
    assert_eq!(sent, [("milk", "release"), ("tea", "release")]);
    assert_eq!(seen::<Cart>(&*state), &Cart::default());

    let room = kind("Room");
    let mut state = room.fresh();
    let say = json!({"who": "ann", "text": "hi"});
    let refused = run(&*room, &mut *state, "say", json_args(say.clone()));
    assert_eq!(refused.answer, Answer::App(Bytes::from_static(br#""NotMember""#)));
    run(&*room, &mut *state, "join", json_args(json!({"who": "ann"})));
    let said = run(&*room, &mut *state, "say", json_args(say.clone()));
    assert_eq!(said.effects.events.len(), 1);
    let event = room.event_json(&said.effects.events[0]).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&event).unwrap(), json!({"Said": say}));
}

#[test]
fn a_number_without_a_handler_of_its_nature_is_refused() {
    use perennial::actor::Run;
    let run = perennial::__private::no_such_handler(Room::KIND, Room::METHODS, 9);
    let Run::Done(Answer::Fault(fault)) = run else { panic!() };
    assert_eq!(
        fault.to_string(),
        "Room has no handler \"#9\"; it has: join(who: String), say(who: String, text: String)"
    );
}

struct Outside(Arc<Fake>);

impl Actors for Outside {
    fn caller(&self) -> Arc<dyn Caller> {
        self.0.clone()
    }
}

#[tokio::test]
async fn references_are_typed_cloneable_and_checked_when_used() {
    let outside = Outside(fake(Answer::App, 4u32));
    let tea = outside.get::<Stock>("tea");
    assert_eq!(tea.clone().reserve(9).await, Err(CallError::App(4)));
    assert_eq!(tea.id().unwrap().as_str(), "shop.stock/tea");
    let reference: CartRef = outside.get::<Cart>("").with_timeout(Duration::from_secs(1));
    assert!(matches!(reference.id(), Err(Fault::BadName(_))));
    assert!(matches!(reference.total_cents().await, Err(Fault::BadName(_))));
    assert!(!format!("{tea:?}").is_empty());
    let _events = outside.get::<Room>("lobby").events();
    let _resumed = outside.get::<Room>("lobby").events_from(EventsFrom::Start);
}
