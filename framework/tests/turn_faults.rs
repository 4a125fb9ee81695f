//! Turns that go wrong, wait for long or come twice, through [`TestApp`].

#![expect(missing_docs, reason = "actors of this test")]

use std::collections::BTreeSet;
use std::future::{Future, IntoFuture};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use perennial::actor::{Answer, Args};
use perennial::call::Outbound;
use perennial::core::id::{RequestId, SessionId};
use perennial::limits::{
    IDLE_MS_MAX, KEYED_REPLY_KEEP_MS, OUTBOX_MESSAGES_MAX, REMINDER_NAME_BYTES_MAX, UNATTENDED_TIMED_OUT_MAX,
    UNATTENDED_TURN_MAX,
};
use perennial::prelude::*;
use perennial::testing::TestApp;
use perennial::{EventsFrom, Fault, Format};

/// Gates that are open; [`Desk::add_when_open`] refuses behind the others.
static OPEN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// An actor for turns that go wrong.
#[data]
#[derive(Default)]
pub struct Desk {
    total: u64,
    seen: Vec<String>,
}

#[data]
#[derive(Eq)]
pub struct TooFew {
    by: u64,
}

#[actor(event = u32, keep_events = 2000)]
impl Desk {
    pub fn add(&mut self, n: u64) -> u64 {
        self.total += n;
        self.total
    }

    pub async fn add_async(&mut self, n: u64) -> u64 {
        self.total += n;
        self.total
    }

    pub fn take(&mut self, n: u64) -> Result<u64, TooFew> {
        self.total = self.total.checked_sub(n).ok_or_else(|| TooFew { by: n - self.total })?;
        Ok(self.total)
    }

    pub fn total(&self) -> u64 {
        self.total
    }

    pub fn seen(&self) -> Vec<String> {
        self.seen.clone()
    }

    pub fn add_when_open(&mut self, gate: String) -> Result<u64, Fault> {
        if !OPEN.lock().unwrap().contains(&gate) {
            return Err(Fault::Unavailable { what: gate, why: "it is closed".into() });
        }
        self.total += 1;
        Ok(self.total)
    }

    pub async fn nap(&mut self, ms: u64) {
        tokio::time::sleep(Duration::from_millis(ms)).await;
        self.total += 1_000;
    }

    pub async fn ask_for_nap(&mut self, ctx: &mut Ctx<Self>, whom: String) -> Result<(), Fault> {
        ctx.get::<Self>(&whom).nap(5_000).timeout(Duration::from_secs(1)).await
    }

    pub async fn move_one(
        &mut self,
        ctx: &mut Ctx<Self>,
        first: String,
        then: String,
        gate: String,
    ) -> Result<(), Fault> {
        ctx.get::<Self>(&first).add(1).await?;
        ctx.get::<Self>(&then).add_when_open(gate).await?;
        self.total += 1;
        Ok(())
    }

    pub fn send_add(&mut self, ctx: &mut Ctx<Self>, to: String, n: u64) {
        ctx.send(ctx.get::<Self>(&to).add(n));
    }

    pub fn send_many(&mut self, ctx: &mut Ctx<Self>, to: String, count: u32) {
        self.total += 1;
        for _ in 0..count {
            ctx.send(ctx.get::<Self>(&to).add(1));
        }
    }

    pub fn send_nap(&mut self, ctx: &mut Ctx<Self>, to: String, ms: u64) {
        ctx.send(ctx.get::<Self>(&to).nap(ms));
    }

    pub fn send_ask_for_nap(&mut self, ctx: &mut Ctx<Self>, to: String, whom: String) {
        ctx.send(ctx.get::<Self>(&to).ask_for_nap(whom));
    }

    pub fn send_when_open(&mut self, ctx: &mut Ctx<Self>, to: String, gate: String) {
        ctx.send(ctx.get::<Self>(&to).add_when_open(gate));
    }

    pub fn send_move_one(&mut self, ctx: &mut Ctx<Self>, mover: String, gate: String) {
        let call = ctx.get::<Self>(&mover).move_one(format!("{gate} 1"), format!("{gate} 2"), gate);
        ctx.send(call);
    }

    pub fn add_after(&mut self, ctx: &mut Ctx<Self>, name: String, ms: u64, n: u64) {
        let call = ctx.me().add(n);
        ctx.schedule(name, Duration::from_millis(ms), call);
    }

    pub async fn add_after_nap(&mut self, ctx: &mut Ctx<Self>, name: String, nap_ms: u64, ms: u64, n: u64) {
        tokio::time::sleep(Duration::from_millis(nap_ms)).await;
        let call = ctx.me().add(n);
        ctx.schedule(name, Duration::from_millis(ms), call);
    }

    pub async fn cancel_after_nap(&mut self, ctx: &mut Ctx<Self>, name: String, nap_ms: u64) {
        tokio::time::sleep(Duration::from_millis(nap_ms)).await;
        ctx.cancel(name);
    }

    pub fn cancel(&mut self, ctx: &mut Ctx<Self>, name: String) {
        ctx.cancel(name);
    }

    pub fn note_request(&mut self, ctx: &mut Ctx<Self>) {
        self.seen.push(format!("{:?}", ctx.request()));
    }

    pub fn note_request_after(&mut self, ctx: &mut Ctx<Self>, ms: u64) {
        let call = ctx.me().note_request();
        ctx.schedule("note", Duration::from_millis(ms), call);
    }

    pub async fn again(&mut self, ctx: &mut Ctx<Self>, left: u32, bank: String) -> Result<(), Fault> {
        ctx.get::<Self>(&bank).add(1).await?;
        if left > 0 {
            let call = ctx.me().again(left - 1, bank);
            ctx.schedule("again", Duration::ZERO, call);
        }
        Ok(())
    }

    pub fn publish_many(&mut self, ctx: &mut Ctx<Self>, count: u32) {
        for n in 0..count {
            ctx.publish(n);
        }
    }

    pub fn publish_last(&mut self, ctx: &mut Ctx<Self>) {
        ctx.publish(u32::MAX);
    }
}

/// A call with an id of the test's choice.
fn call_with_id(target: &str, method: &str, args: &impl serde::Serialize, id: u64, keyed: bool) -> Outbound {
    let args = Args { format: Format::Postcard, bytes: postcard::to_stdvec(args).unwrap().into() };
    Outbound {
        target: target.parse().unwrap(),
        method: method.to_owned(),
        args,
        request: Some(RequestId { session: SessionId(u128::from(id)), seq: 0 }),
        keyed,
        read_only: false,
        stale: None,
        path: Vec::new(),
        deadline: tokio::time::Instant::now().into_std() + Duration::from_secs(10),
    }
}

async fn app() -> TestApp {
    TestApp::new(App::new("test").actor::<Desk>()).await
}

#[tokio::test(start_paused = true)]
async fn a_reminder_replaced_while_it_waits_does_not_fire() {
    let app = app().await;
    let desk = app.get::<Desk>("a");
    desk.add_after("tick".into(), 1_000, 1).await.unwrap();
    desk.add_after_nap("tick".into(), 2_000, 3_600_000, 100).await.unwrap();
    app.advance(Duration::from_secs(3)).await;
    assert_eq!(desk.total().await.unwrap(), 0);
    app.advance(Duration::from_secs(3_600)).await;
    assert_eq!(desk.total().await.unwrap(), 100);
}

#[tokio::test(start_paused = true)]
async fn a_reminder_cancelled_while_it_waits_does_not_fire() {
    let app = app().await;
    let desk = app.get::<Desk>("a");
    desk.add_after("tick".into(), 1_000, 1).await.unwrap();
    desk.cancel_after_nap("tick".into(), 2_000).await.unwrap();
    app.advance(Duration::from_secs(3)).await;
    assert_eq!(desk.total().await.unwrap(), 0);
    desk.add_after("tick".into(), 1_000, 10).await.unwrap();
    app.advance(Duration::from_secs(3)).await;
    assert_eq!(desk.total().await.unwrap(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_reminder_replaced_to_the_very_time_at_which_it_waits_fires_as_replaced() {
    let app = app().await;
    let desk = app.get::<Desk>("a");
    desk.add_after("tick".into(), 1_000, 1).await.unwrap();
    desk.add_after_nap("tick".into(), 2_000, 1_000, 100).await.unwrap();
    app.advance(Duration::from_secs(3)).await;
    assert_eq!(desk.total().await.unwrap(), 100);
}

async fn totals(app: &TestApp, keys: [&str; 3]) -> Vec<u64> {
    let totals = keys.map(|key| app.get::<Desk>(key).total().into_future());
    futures_util::future::try_join_all(totals).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_message_tried_again_for_long_repeats_none_of_its_calls() {
    let app = app().await;
    app.get::<Desk>("sender").send_move_one("mover".into(), "long".into()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(app.get::<Desk>("long 1").total().await.unwrap(), 1);
    OPEN.lock().unwrap().insert("long".into());
    app.settle().await;
    assert_eq!(totals(&app, ["long 1", "long 2", "mover"]).await, [1, 1, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_repeat_under_an_idempotency_key_repeats_none_of_its_calls() {
    let app = app().await;
    let call = || call_with_id("Desk/mover", "move_one", &("keyed 1", "keyed 2", "keyed"), 7, true);
    let refused = app.caller().call(call()).await.answer;
    assert!(matches!(refused, Answer::Fault(Fault::Unavailable { .. })), "{refused:?}");
    app.advance(Duration::from_secs(3_600)).await;
    OPEN.lock().unwrap().insert("keyed".into());
    let answer = app.caller().call(call()).await.answer;
    assert!(matches!(answer, Answer::Ok(_)), "{answer:?}");
    assert_eq!(totals(&app, ["keyed 1", "keyed 2", "mover"]).await, [1, 1, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_message_whose_turn_takes_too_long_holds_up_nobody_for_ever() {
    let app = app().await;
    let sender = app.get::<Desk>("sender");
    sender.send_nap("b".into(), 60_000).await.unwrap();
    sender.send_add("b".into(), 5).await.unwrap();
    tokio::time::sleep(UNATTENDED_TURN_MAX * 2).await;
    assert_eq!(app.get::<Desk>("b").total().await.unwrap(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_message_whose_calls_always_time_out_is_given_up_in_the_end() {
    let app = app().await;
    let sender = app.get::<Desk>("sender");
    sender.send_ask_for_nap("b".into(), "sleeper".into()).await.unwrap();
    sender.send_add("b".into(), 5).await.unwrap();
    tokio::time::sleep(UNATTENDED_TIMED_OUT_MAX / 2).await;
    assert_eq!(app.get::<Desk>("b").total().await.unwrap(), 0);
    tokio::time::sleep(UNATTENDED_TIMED_OUT_MAX).await;
    assert_eq!(app.get::<Desk>("b").total().await.unwrap(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_message_waits_for_what_is_unavailable() {
    let app = app().await;
    let sender = app.get::<Desk>("sender");
    sender.send_when_open("b".into(), "shut for long".into()).await.unwrap();
    tokio::time::sleep(UNATTENDED_TIMED_OUT_MAX * 2).await;
    OPEN.lock().unwrap().insert("shut for long".into());
    app.settle().await;
    assert_eq!(app.get::<Desk>("b").total().await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_reminder_name_outside_its_limits_fails_the_turn() {
    let app = app().await;
    let desk = app.get::<Desk>("a");
    for name in [String::new(), "x".repeat(REMINDER_NAME_BYTES_MAX + 1), "x".repeat(70_000)] {
        let set = desk.add_after(name.clone(), 1, 1).await;
        assert!(matches!(&set, Err(Fault::BadName(why)) if why.contains("reminder")), "{set:?}");
        let cancelled = desk.cancel(name).await;
        assert!(matches!(cancelled, Err(Fault::BadName(_))), "{cancelled:?}");
    }
    desk.add_after("x".repeat(REMINDER_NAME_BYTES_MAX), 1, 1).await.unwrap();
    app.advance(Duration::from_secs(1)).await;
    assert_eq!(desk.total().await.unwrap(), 1);
}

/// Async turns of [`Holder`] that have begun and were not dropped.
static HOLDING: AtomicUsize = AtomicUsize::new(0);

struct Held;

impl Drop for Held {
    fn drop(&mut self) {
        HOLDING.fetch_sub(1, Ordering::SeqCst);
    }
}

#[data]
#[derive(Default)]
pub struct Holder {}

#[actor]
impl Holder {
    pub async fn hold(&mut self) {
        HOLDING.fetch_add(1, Ordering::SeqCst);
        let _held = Held;
        std::future::pending::<()>().await;
    }
}

#[tokio::test(start_paused = true)]
async fn async_turns_end_with_their_host() {
    let app = TestApp::new(App::new("test").actor::<Holder>()).await;
    let holder = app.get::<Holder>("a");
    let call = tokio::spawn(async move { holder.hold().await });
    while HOLDING.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    let began = tokio::time::Instant::now();
    drop(app);
    while HOLDING.load(Ordering::SeqCst) > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(began.elapsed() < Duration::from_secs(1), "the turn outlived its host");
    call.abort();
}

/// Runs a test where a recursion over what is queued overflows the stack.
fn on_a_small_stack<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let run = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        runtime.unwrap().block_on(test());
    };
    std::thread::Builder::new().stack_size(512 * 1024).spawn(run).unwrap().join().unwrap();
}

#[test]
fn queued_messages_are_not_a_recursion() {
    on_a_small_stack(async || {
        let app = app().await;
        app.get::<Desk>("sender").send_many("b".into(), 1_000).await.unwrap();
        app.settle().await;
        assert_eq!(app.get::<Desk>("b").total().await.unwrap(), 1_000);
    });
}

#[test]
fn async_turns_that_waited_are_not_a_recursion() {
    on_a_small_stack(async || {
        let app = app().await;
        let desk = app.get::<Desk>("a");
        let calls = (0..1_000).map(|_| desk.add_async(1).into_future());
        let (nap, calls) = tokio::join!(desk.nap(1_000), futures_util::future::try_join_all(calls));
        nap.unwrap();
        assert_eq!(calls.unwrap().last(), Some(&2_000));
    });
}

#[tokio::test(start_paused = true)]
async fn reminders_of_different_actors_have_different_requests() {
    let app = app().await;
    let keys: Vec<_> = (0..16).map(|n| format!("d{n}")).collect();
    let set = keys.iter().map(|key| app.get::<Desk>(key).note_request_after(1_000).into_future());
    futures_util::future::try_join_all(set).await.unwrap();
    app.advance(Duration::from_secs(2)).await;
    let mut seen = BTreeSet::new();
    for key in &keys {
        seen.extend(app.get::<Desk>(key).seen().await.unwrap());
    }
    assert_eq!(seen.len(), keys.len());
}

#[tokio::test(start_paused = true)]
async fn a_reminder_set_again_by_its_own_turn_is_another_firing() {
    let app = app().await;
    app.get::<Desk>("a").again(20, "bank".into()).await.unwrap();
    app.advance(Duration::from_secs(1)).await;
    assert_eq!(app.get::<Desk>("bank").total().await.unwrap(), 21);
}

#[tokio::test(start_paused = true)]
async fn firing_reminders_leaves_no_tasks_behind() {
    let app = app().await;
    let desk = app.get::<Desk>("a");
    desk.add_after("far".into(), 100 * 3_600_000, 0).await.unwrap();
    let alive = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = alive();
    for _ in 0..100 {
        desk.add_after("near".into(), 10, 1).await.unwrap();
        app.advance(Duration::from_millis(100)).await;
    }
    assert_eq!(desk.total().await.unwrap(), 100);
    assert!(alive() <= before + 5, "{before} tasks became {}", alive());
}

#[tokio::test(start_paused = true)]
async fn kept_replies_are_forgotten_as_fast_as_they_come() {
    const CALLS: u64 = 3_500;
    let app = app().await;
    let run_all = async || {
        let calls =
            (0..CALLS).map(|id| app.caller().call(call_with_id("Desk/a", "add", &(1_u64,), id, true)));
        let answers = futures_util::future::join_all(calls).await;
        assert!(answers.iter().all(|answered| matches!(answered.answer, Answer::Ok(_))));
    };
    run_all().await;
    run_all().await;
    assert_eq!(app.get::<Desk>("a").total().await.unwrap(), CALLS);
    tokio::time::sleep(Duration::from_millis(KEYED_REPLY_KEEP_MS) + Duration::from_secs(15)).await;
    run_all().await;
    assert_eq!(app.get::<Desk>("a").total().await.unwrap(), 2 * CALLS);
}

#[tokio::test(start_paused = true)]
async fn events_are_trimmed_over_many_activations() {
    let app = app().await;
    let desk = app.get::<Desk>("a");
    for _ in 0..4 {
        desk.publish_many(900).await.unwrap();
        tokio::time::sleep(Duration::from_millis(IDLE_MS_MAX) + Duration::from_secs(30)).await;
    }
    desk.publish_last().await.unwrap();
    let events = desk.events_from(EventsFrom::Start).map(|event| event.unwrap().1);
    let kept = events.take_while(|event| std::future::ready(*event != u32::MAX)).count().await;
    assert!((1_000..=2_000).contains(&kept), "{kept} events");
}

#[tokio::test(start_paused = true)]
async fn a_follower_far_behind_gets_everything_without_a_pause() {
    let app = app().await;
    let desk = app.get::<Desk>("a");
    desk.publish_many(900).await.unwrap();
    desk.publish_many(900).await.unwrap();
    let began = tokio::time::Instant::now();
    let events = desk.events_from(EventsFrom::Start).take(1_800);
    assert_eq!(events.filter(|event| std::future::ready(event.is_ok())).count().await, 1_800);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_full_outbox_refuses_turns_until_it_has_room() {
    const EACH: u32 = 8 * 1024;
    let app = app().await;
    let sender = app.get::<Desk>("sender");
    sender.send_nap("b".into(), 25_000).await.unwrap();
    let mut sent = 0;
    let refused = loop {
        match sender.send_many("b".into(), EACH).await {
            Ok(()) => sent += u64::from(EACH),
            Err(fault) => break fault,
        }
        assert!(sent <= OUTBOX_MESSAGES_MAX + u64::from(EACH), "{sent} messages");
    };
    assert!(matches!(&refused, Fault::Overloaded { what, .. } if what.contains("messages")), "{refused:?}");
    assert_eq!(sender.total().await.unwrap(), sent / u64::from(EACH));
    app.advance(Duration::from_secs(30)).await;
    sender.send_many("b".into(), 1).await.unwrap();
    app.settle().await;
    assert_eq!(app.get::<Desk>("b").total().await.unwrap(), 1_000 + sent + 1);
}

#[tokio::test(start_paused = true)]
async fn a_late_attempt_of_a_refused_call_does_not_run() {
    let app = app().await;
    let desk = app.get::<Desk>("a");
    desk.add(100).await.unwrap();
    let attempt = || app.caller().call(call_with_id("Desk/a", "take", &(150_u64,), 1, false));
    let first = attempt().await.answer;
    assert!(matches!(first, Answer::App(_)), "{first:?}");
    desk.add(100).await.unwrap();
    assert_eq!(attempt().await.answer, first);
    assert_eq!(desk.total().await.unwrap(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_refused_call_under_an_idempotency_key_runs_when_repeated() {
    let app = app().await;
    let desk = app.get::<Desk>("a");
    desk.add(100).await.unwrap();
    let attempt = || app.caller().call(call_with_id("Desk/a", "take", &(150_u64,), 1, true));
    let first = attempt().await.answer;
    assert!(matches!(first, Answer::App(_)), "{first:?}");
    desk.add(100).await.unwrap();
    let second = attempt().await.answer;
    assert!(matches!(second, Answer::Ok(_)), "{second:?}");
    assert_eq!(desk.total().await.unwrap(), 50);
}

/// Does not survive being dropped.
struct Glass;

impl Drop for Glass {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("it broke");
        }
    }
}

/// An actor that panics outside its handlers.
#[data]
pub struct Fragile {
    fuse: bool,
}

impl Default for Fragile {
    fn default() -> Self {
        assert!(OPEN.lock().unwrap().contains("fragile"), "no default today");
        Self { fuse: false }
    }
}

impl Drop for Fragile {
    fn drop(&mut self) {
        if self.fuse && !std::thread::panicking() {
            panic!("it went off");
        }
    }
}

#[actor]
impl Fragile {
    pub async fn hold_glass(&mut self) {
        let _glass = Glass;
        std::future::pending::<()>().await;
    }

    pub fn light(&mut self, fail: bool) -> Result<bool, TooFew> {
        self.fuse = true;
        if fail { Err(TooFew { by: 0 }) } else { Ok(true) }
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_outside_a_handler_ends_only_the_turn() {
    let app = TestApp::new(App::new("test").actor::<Fragile>()).await;
    let fragile = app.get::<Fragile>("a");
    let refused = fragile.light(false).await;
    assert!(matches!(&refused, Err(CallError::Fault(Fault::Unreadable { .. }))), "{refused:?}");
    OPEN.lock().unwrap().insert("fragile".into());
    let held = fragile.hold_glass().timeout(Duration::from_secs(1)).await;
    assert!(matches!(held, Err(Fault::TimedOut { .. } | Fault::Panicked { .. })), "{held:?}");
    for _ in 0..2 {
        assert!(matches!(fragile.light(true).await, Err(CallError::App(_))));
        assert_eq!(fragile.light(false).await, Ok(true));
    }
    // The state leaves memory.
    tokio::time::sleep(Duration::from_millis(IDLE_MS_MAX) + Duration::from_secs(30)).await;
    assert_eq!(fragile.light(false).await, Ok(true));
}
