//! Messages between actors: once and in order, held back when too many, and dead letters when they cannot
//! be applied.

#![expect(missing_docs, reason = "actors of this test")]

use std::collections::BTreeSet;
use std::future::IntoFuture;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use perennial::actor::{Answer, Args, Format};
use perennial::call::Outbound;
use perennial::dead::{DeadFilter, DeadId, DeadLetter};
use perennial::limits::{DEAD_LETTERS_MAX, OUTBOX_MESSAGES_MAX, STATE_BYTES_MAX, UNATTENDED_TURN_MAX};
use perennial::prelude::*;
use perennial::testing::{TestApp, TestCluster};

/// Gates that are open; [`Desk::wait`] waits before the others.
static OPEN: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
/// Longer than any call should take, however busy the machine is.
const LONG: Duration = Duration::from_secs(50);

/// Takes slips, unless it is shut.
#[data]
#[derive(Default)]
pub struct Desk {
    shut: bool,
    taken: Vec<(String, u32)>,
    sent: u32,
    padding: String,
}

#[data]
#[derive(Eq)]
pub struct Shut {
    slip: u32,
}

#[actor]
impl Desk {
    pub fn set_shut(&mut self, shut: bool) {
        self.shut = shut;
    }

    /// Takes a slip. A desk that is shut refuses it, after it has changed and sent what must not stay.
    pub fn take(&mut self, ctx: &mut Ctx<Self>, from: String, slip: u32) -> Result<(), Shut> {
        self.taken.push((from.clone(), slip));
        if self.shut {
            ctx.send(ctx.get::<Self>(&from).take("nobody".into(), slip));
            return Err(Shut { slip });
        }
        Ok(())
    }

    pub fn blow_up(&mut self) {
        panic!("at once");
    }

    pub fn grow(&mut self, bytes: u32) {
        self.padding = "x".repeat(bytes as usize);
    }

    /// Waits for a gate.
    pub async fn wait(&mut self, gate: String) {
        while !OPEN.lock().unwrap().contains(&gate) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Sends so many slips to each of these, numbered on.
    pub fn send(&mut self, ctx: &mut Ctx<Self>, to: Vec<String>, count: u32) -> u32 {
        for _ in 0..count {
            for to in &to {
                ctx.send(ctx.get::<Self>(to).take(ctx.key().to_owned(), self.sent));
            }
            self.sent += 1;
        }
        self.sent
    }

    /// Sends one of each kind that cannot be applied.
    pub fn send_bad(&mut self, ctx: &mut Ctx<Self>, to: String) {
        ctx.send(ctx.get::<Self>(&to).blow_up());
        ctx.send(ctx.get::<Self>(&to).grow(STATE_BYTES_MAX as u32 + 1));
        ctx.send(ctx.get::<Absent>(&to).poke(7));
    }

    pub fn send_wait(&mut self, ctx: &mut Ctx<Self>, to: String, gate: String) {
        ctx.send(ctx.get::<Self>(&to).wait(gate));
    }

    /// Has itself take a slip later.
    pub fn take_later(&mut self, ctx: &mut Ctx<Self>, slip: u32) {
        ctx.schedule("later", Duration::from_secs(1), ctx.me().take("clock".into(), slip));
    }

    /// Asks the next one to ask the next one.
    pub async fn ask(&mut self, ctx: &mut Ctx<Self>, mut round: Vec<String>) -> Result<(), Fault> {
        if round.is_empty() {
            return Ok(());
        }
        let next = round.remove(0);
        ctx.get::<Self>(&next).ask(round).await
    }

    pub fn taken(&self) -> Vec<(String, u32)> {
        self.taken.clone()
    }
}

/// Counts slips that come in order.
#[data]
#[derive(Default)]
pub struct Tally {
    next: u32,
    out_of_order: u32,
    sent: u32,
}

#[actor]
impl Tally {
    pub fn count(&mut self, slip: u32) {
        self.out_of_order += u32::from(slip != self.next);
        self.next = slip + 1;
    }

    /// Passes once a gate is open; until then it is tried again and again.
    pub fn pass(&mut self, gate: String) -> Result<(), Fault> {
        if OPEN.lock().unwrap().contains(&gate) {
            return Ok(());
        }
        Err(Fault::Unavailable { what: gate, why: "it is shut".into() })
    }

    /// Has another one count so many; the first time it has to wait for a gate before.
    pub fn send(&mut self, ctx: &mut Ctx<Self>, to: String, count: u32, gate: String) -> u32 {
        if self.sent == 0 {
            ctx.send(ctx.get::<Self>(&to).pass(gate));
        }
        for _ in 0..count {
            ctx.send(ctx.get::<Self>(&to).count(self.sent));
            self.sent += 1;
        }
        self.sent
    }

    pub fn counted(&self) -> (u32, u32) {
        (self.next, self.out_of_order)
    }
}

/// No build of these tests knows it.
#[data]
#[derive(Default)]
pub struct Absent;

#[actor]
impl Absent {
    pub fn poke(&mut self, hard: u32) -> u32 {
        hard
    }
}

fn desks() -> App {
    App::new("test").actor::<Desk>().actor::<Tally>()
}

async fn app() -> TestApp {
    TestApp::new(desks()).await
}

async fn letters(app: &TestApp) -> Vec<DeadLetter> {
    let list = app.dead_letters().list(&DeadFilter::default(), usize::MAX).await;
    assert_eq!((list.kept, list.unanswered), (list.letters.len() as u64, Vec::new()));
    list.letters
}

#[tokio::test(start_paused = true)]
async fn a_refused_message_is_a_dead_letter_and_leaves_nothing_else() {
    let app = app().await;
    let (sender, desk) = (app.get::<Desk>("sender"), app.get::<Desk>("b"));
    sender.send(vec!["b".into()], 1).await.unwrap();
    desk.set_shut(true).await.unwrap();
    sender.send(vec!["b".into()], 2).await.unwrap();
    app.settle().await;
    assert_eq!(desk.taken().await.unwrap(), [("sender".to_owned(), 0)]);
    assert_eq!(sender.taken().await.unwrap(), [], "an effect of the refused turn");
    let dead = letters(&app).await;
    let [first, second] = &dead[..] else { panic!("{dead:?}") };
    assert_eq!((first.id.number, second.id.number), (1, 2));
    assert_eq!((first.sender.as_str(), first.target.as_str()), ("Desk/sender", "Desk/b"));
    assert_eq!((first.method.as_str(), first.code.as_str()), ("take", "app"));
    assert_eq!((first.why.as_str(), first.tries), (r#"{"slip":1}"#, 1));
    assert_eq!((&first.reminder, &first.args), (&None, &None));
    let shown = app.dead_letters().show(second.id).await.unwrap();
    assert_eq!(shown.args, Some(serde_json::json!({ "from": "sender", "slip": 2 })));
    assert_eq!(DeadLetter { args: None, ..shown }, *second);
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_is_retried_once_and_comes_behind_what_is_on_its_way() {
    let app = app().await;
    let (sender, desk) = (app.get::<Desk>("sender"), app.get::<Desk>("b"));
    desk.set_shut(true).await.unwrap();
    sender.send(vec!["b".into()], 1).await.unwrap();
    app.settle().await;
    let (dead, id) = (app.dead_letters(), letters(&app).await[0].id);
    dead.retry(id).await.unwrap();
    app.settle().await;
    let again = letters(&app).await[0].id;
    assert_eq!((again.number, again.partition), (2, id.partition), "still shut: a letter of its own");
    desk.set_shut(false).await.unwrap();
    sender.send(vec!["b".into()], 1).await.unwrap();
    app.settle().await;
    let retries = join_all((0..5).map(|_| dead.retry(again))).await;
    assert_eq!(retries.iter().filter(|retried| retried.is_ok()).count(), 1);
    let gone = Fault::NoDeadLetter { id: again.to_string() };
    assert_eq!(retries.iter().filter(|retried| **retried == Err(gone.clone())).count(), 4);
    app.settle().await;
    let taken = [("sender".to_owned(), 1), ("sender".to_owned(), 0)];
    assert_eq!((desk.taken().await.unwrap(), letters(&app).await), (taken.to_vec(), Vec::new()));
    for id in [again, DeadId { number: 99, ..id }, "4711-1".parse().unwrap()] {
        let gone = Fault::NoDeadLetter { id: id.to_string() };
        assert_eq!(dead.show(id).await, Err(gone.clone()));
        assert_eq!(dead.drop(id).await, Err(gone));
    }
}

#[tokio::test(start_paused = true)]
async fn each_reason_has_its_code() {
    let app = app().await;
    app.get::<Desk>("sender").send_bad("b".into()).await.unwrap();
    app.get::<Desk>("sender").send_wait("slow".into(), "never".into()).await.unwrap();
    app.advance(UNATTENDED_TURN_MAX * 2).await;
    let dead = letters(&app).await;
    let code = |method: &str| dead.iter().find(|letter| letter.method == method).map(|l| l.code.as_str());
    assert_eq!([code("blow_up"), code("grow")], [Some("panicked"), Some("too_large")]);
    assert_eq!([code("poke"), code("wait")], [Some("unknown_kind"), Some("timed_out")]);
    assert_eq!(dead.len(), 4);
    // A build that does not know the handler shows no arguments, and keeps them.
    let poke = dead.iter().find(|letter| letter.method == "poke").unwrap();
    let shown = app.dead_letters().show(poke.id).await.unwrap();
    assert_eq!((shown.args, shown.args_bytes, shown.target.as_str()), (None, 1, "Absent/b"));
}

#[tokio::test(start_paused = true)]
async fn a_reminder_that_cannot_fire_is_a_dead_letter_too() {
    let app = app().await;
    let desk = app.get::<Desk>("a");
    desk.take_later(5).await.unwrap();
    desk.set_shut(true).await.unwrap();
    app.advance(Duration::from_secs(2)).await;
    let dead = letters(&app).await;
    assert_eq!((dead.len(), dead[0].reminder.as_deref(), dead[0].code.as_str()), (1, Some("later"), "app"));
    assert_eq!(dead[0].sender, dead[0].target);
    desk.set_shut(false).await.unwrap();
    app.dead_letters().retry(dead[0].id).await.unwrap();
    app.advance(Duration::from_secs(5)).await;
    assert_eq!(desk.taken().await.unwrap(), [("clock".to_owned(), 5)]);
    assert_eq!(letters(&app).await, []);
}

#[tokio::test(start_paused = true)]
async fn lists_are_filtered_and_cut_and_letters_dropped() {
    let app = app().await;
    let names: Vec<_> = (0..6).map(|n| format!("desk {n}")).collect();
    for name in &names {
        app.get::<Desk>(name).set_shut(true).await.unwrap();
    }
    for _ in 0..40 {
        app.get::<Desk>("sender").send(names.clone(), 1).await.unwrap();
        app.advance(Duration::from_millis(1)).await;
    }
    let dead = app.dead_letters();
    let count = async |filter: &str, limit| dead.list(&filter.parse().unwrap(), limit).await.letters.len();
    assert_eq!(count("Desk", 1000).await, 240);
    assert_eq!(count("Desk/desk 3", 1000).await, 40);
    assert_eq!([count("Desk", 7).await, count("Desk/nobody", 7).await, count("Cart", 7).await], [7, 0, 0]);
    let oldest = dead.list(&DeadFilter::default(), 6).await.letters;
    assert!(oldest.iter().all(|letter| letter.why == r#"{"slip":0}"#), "{oldest:?}");
    for letter in dead.list(&"Desk/desk 3".parse().unwrap(), 1000).await.letters {
        dead.drop(letter.id).await.unwrap();
    }
    assert_eq!([count("Desk", 1000).await, count("Desk/desk 3", 1000).await], [200, 0]);
}

#[tokio::test(start_paused = true)]
async fn of_too_many_dead_letters_the_oldest_are_lost_and_counted() {
    const MORE: u32 = 10;
    let app = app().await;
    app.get::<Desk>("b").set_shut(true).await.unwrap();
    app.get::<Desk>("sender").send(vec!["b".into()], DEAD_LETTERS_MAX as u32 + MORE).await.unwrap();
    app.settle().await;
    let list = app.dead_letters().list(&"Desk/b".parse().unwrap(), 1).await;
    assert_eq!((list.kept, list.lost), (DEAD_LETTERS_MAX as u64, u64::from(MORE)));
    assert_eq!(list.letters[0].why, format!(r#"{{"slip":{MORE}}}"#));
}

#[tokio::test(start_paused = true)]
async fn nobody_reaches_dead_letters_through_the_edge() {
    let app = app().await;
    let call = Outbound {
        target: "perennial.dead/1".parse().unwrap(),
        method: "ask".into(),
        args: Args { format: Format::Json, bytes: bytes::Bytes::from_static(b"{}") },
        request: None,
        keyed: false,
        read_only: false,
        stale: None,
        path: Vec::new(),
        deadline: Instant::now() + LONG,
    };
    let answer = app.caller().call(call).await.answer;
    assert!(matches!(answer, Answer::Fault(Fault::UnknownKind { .. })), "{answer:?}");
}

/// Desks of which no two are at the same node, with these nodes.
async fn apart(cluster: &TestCluster, count: usize) -> Vec<(String, usize)> {
    let mut found: Vec<(String, usize)> = Vec::new();
    for n in 0.. {
        let name = format!("d{n}");
        let owner = cluster.owner::<Desk>(&name).await;
        if found.iter().all(|(_, node)| *node != owner) {
            found.push((name, owner));
        }
        if found.len() == count {
            break;
        }
    }
    found
}

#[tokio::test]
async fn messages_keep_their_order_over_changes_of_leaders_at_both_ends() {
    const TURNS: u32 = 60;
    const EACH: u32 = 4;
    let cluster = TestCluster::start(3, desks()).await;
    let ends = apart(&cluster, 2).await;
    let to = ends[1].0.clone();
    let senders = [ends[0].0.clone(), "s1".to_owned(), "s2".to_owned(), to.clone()];
    let (sent, mut turns) = tokio::sync::mpsc::unbounded_channel();
    let sending = join_all(senders.iter().map(async |sender| {
        for turn in 1..=TURNS {
            let desk = cluster.get::<Desk>(sender);
            let count = desk.send(vec![to.clone()], EACH).timeout(LONG).await.unwrap();
            assert_eq!(count, turn * EACH);
            sent.send(()).unwrap();
        }
    }));
    let faults = async {
        for victim in [&senders[0], &to, &senders[1], &to] {
            turns.recv_many(&mut Vec::new(), 40).await;
            let owner = cluster.owner::<Desk>(victim).await;
            cluster.kill(owner);
            turns.recv_many(&mut Vec::new(), 10).await;
            cluster.restart(owner).await;
        }
        turns
    };
    let (_, _turns) = tokio::join!(sending, faults);
    cluster.settle().await;
    let taken = cluster.get::<Desk>(&to).taken().timeout(LONG).await.unwrap();
    for sender in &senders {
        let slips: Vec<_> = taken.iter().filter(|(from, _)| from == sender).map(|(_, slip)| *slip).collect();
        assert_eq!(slips, (0..TURNS * EACH).collect::<Vec<_>>(), "{sender}");
    }
}

#[tokio::test]
async fn a_call_cycle_over_nodes_is_answered_with_its_path() {
    let cluster = TestCluster::start(3, desks()).await;
    let names: Vec<_> = apart(&cluster, 3).await.into_iter().map(|(name, _)| name).collect();
    let [a, b, c] = &names[..] else { unreachable!() };
    let began = Instant::now();
    let round = vec![b.clone(), c.clone(), a.clone()];
    let refused = cluster.get::<Desk>(a).ask(round).timeout(LONG).await;
    let path = [a, b, c, a].map(|name| format!("Desk/{name}")).to_vec();
    assert_eq!(refused, Err(Fault::Cycle { path }));
    assert!(began.elapsed() < LONG, "it waits for itself");
    assert_eq!(cluster.get::<Desk>(a).ask(vec![b.clone(), c.clone()]).timeout(LONG).await, Ok(()));
}

#[tokio::test]
async fn a_slow_receiver_at_another_node_holds_its_senders_back_and_loses_nothing() {
    const EACH: u32 = 8192;
    let cluster = TestCluster::start(3, desks()).await;
    let (from, to) = two_nodes(&cluster).await;
    let sender = cluster.get::<Tally>(&from);
    let refused = loop {
        match sender.send(to.clone(), EACH, "slow".into()).timeout(LONG).await {
            Ok(sent) => assert!(u64::from(sent) <= OUTBOX_MESSAGES_MAX + u64::from(EACH), "{sent} messages"),
            Err(fault) => break fault,
        }
    };
    assert!(matches!(&refused, Fault::Overloaded { what, .. } if what.contains("messages")), "{refused:?}");
    assert_eq!(refused.applied(), perennial::error::Applied::No);
    // Only what goes to that partition is held back.
    assert_eq!(
        sender.send(from.clone(), 1, String::new()).timeout(LONG).await.map(|sent| sent > 0),
        Ok(true)
    );
    OPEN.lock().unwrap().insert("slow".into());
    let counted = async || cluster.get::<Tally>(&to).counted().timeout(LONG).await.unwrap();
    // As soon as there is room, the sender is served again.
    let sent = loop {
        match sender.send(to.clone(), 1, String::new()).timeout(LONG).await {
            Ok(sent) => break sent,
            Err(fault) => assert!(matches!(fault, Fault::Overloaded { .. }), "{fault}"),
        }
        tokio::task::yield_now().await;
    };
    // All of them take longer on a busy machine than the kit waits for a cluster to settle.
    while counted().await.0 < sent {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(counted().await, (sent, 1), "one slip went elsewhere, so the one behind it is not the next");
}

/// Keys of two tallies at different nodes.
async fn two_nodes(cluster: &TestCluster) -> (String, String) {
    let from = "t0".to_owned();
    let owner = cluster.owner::<Tally>(&from).await;
    for n in 1.. {
        let to = format!("t{n}");
        if cluster.owner::<Tally>(&to).await != owner {
            return (from, to);
        }
    }
    unreachable!("some partition is led elsewhere")
}

#[tokio::test]
async fn dead_letters_outlive_leaders_and_are_retried_once_over_their_deaths() {
    const SLIPS: u32 = 30;
    let cluster = TestCluster::start(3, desks()).await;
    let (sender, desk) = (cluster.get::<Desk>("sender"), cluster.get::<Desk>("b"));
    desk.set_shut(true).timeout(LONG).await.unwrap();
    sender.send(vec!["b".into()], SLIPS).timeout(LONG).await.unwrap();
    cluster.settle().await;
    let owner = cluster.owner::<Desk>("b").await;
    cluster.cut_power(owner);
    let dead = cluster.dead_letters();
    let list = dead.list(&"Desk/b".parse().unwrap(), 1000).await;
    assert_eq!((list.letters.len(), list.unanswered), (SLIPS as usize, Vec::new()));
    cluster.restart(owner).await;
    desk.set_shut(false).timeout(LONG).await.unwrap();
    let (told, mut retried) = tokio::sync::mpsc::unbounded_channel();
    let retries = join_all(list.letters.iter().map(async |letter| {
        let outcome = dead.retry(letter.id).await;
        told.send(()).unwrap();
        outcome
    }));
    let faults = async {
        retried.recv_many(&mut Vec::new(), 1).await;
        cluster.kill(cluster.owner::<Desk>("b").await);
        retried
    };
    let (outcomes, _retried) = tokio::join!(retries.into_future(), faults);
    // Each was told so, also by a leader that only repeats the answer of the one before.
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    cluster.restart_all().await;
    cluster.settle().await;
    let mut slips: Vec<_> = desk.taken().timeout(LONG).await.unwrap().into_iter().map(|(_, n)| n).collect();
    slips.sort_unstable();
    assert_eq!(slips, (0..SLIPS).collect::<Vec<_>>());
    assert_eq!(dead.list(&DeadFilter::default(), 10).await.kept, 0);
}
