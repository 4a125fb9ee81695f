//! Behaviour of turns through [`TestApp`]: the real hosts on a log in memory.

#![expect(missing_docs, reason = "actors of this test")]

use std::time::Duration;

use futures_util::StreamExt;
use perennial::prelude::*;
use perennial::testing::TestApp;
use perennial::{CallError, EventsFrom, Fault};

#[data]
#[derive(Default)]
pub struct Account {
    cents: i64,
    log: Vec<String>,
}

#[data]
#[derive(Eq)]
pub enum AccountError {
    Overdrawn { by: i64 },
}

#[data]
pub enum Booked {
    In(i64),
    Out(i64),
}

#[actor(event = Booked)]
impl Account {
    pub fn deposit(&mut self, ctx: &mut Ctx<Self>, cents: i64) -> i64 {
        self.cents += cents;
        ctx.publish(Booked::In(cents));
        self.cents
    }

    pub fn withdraw(&mut self, ctx: &mut Ctx<Self>, cents: i64) -> Result<i64, AccountError> {
        self.cents -= cents;
        self.log.push(format!("withdrew {cents}"));
        ctx.publish(Booked::Out(cents));
        if self.cents < 0 {
            return Err(AccountError::Overdrawn { by: -self.cents });
        }
        Ok(self.cents)
    }

    pub fn balance(&self) -> i64 {
        self.cents
    }

    pub fn entries(&self) -> Vec<String> {
        self.log.clone()
    }

    pub fn touch(&mut self) {}

    pub fn blow_up(&mut self, cents: i64) -> i64 {
        self.cents += cents;
        panic!("the safe fell on it");
    }

    pub async fn transfer(
        &mut self,
        ctx: &mut Ctx<Self>,
        to: String,
        cents: i64,
    ) -> Reply<i64, AccountError> {
        if self.cents < cents {
            return Err(AccountError::Overdrawn { by: cents - self.cents }.into());
        }
        ctx.get::<Account>(&to).deposit(cents).await?;
        self.cents -= cents;
        Ok(self.cents)
    }

    pub fn give(&mut self, ctx: &mut Ctx<Self>, to: String, cents: i64) {
        self.cents -= cents;
        let account = ctx.get::<Account>(&to);
        ctx.send(account.deposit(cents));
    }

    pub async fn ask_peer(
        &mut self,
        ctx: &mut Ctx<Self>,
        peer: String,
        back: String,
    ) -> Reply<i64, AccountError> {
        let peer = ctx.get::<Account>(&peer);
        peer.ask_back(back).await
    }

    pub async fn ask_back(&mut self, ctx: &mut Ctx<Self>, back: String) -> Reply<i64, AccountError> {
        let back = ctx.get::<Account>(&back);
        Ok(back.deposit(1).await?)
    }

    pub fn interest(&mut self, ctx: &mut Ctx<Self>, after_ms: u64, cents: i64) {
        let me = ctx.me();
        ctx.schedule("interest", Duration::from_millis(after_ms), me.deposit(cents));
    }

    pub fn stop_interest(&mut self, ctx: &mut Ctx<Self>) {
        ctx.cancel("interest");
    }

    pub fn gift_later(&mut self, ctx: &mut Ctx<Self>, to: String, after_ms: u64, cents: i64) {
        let to = ctx.get::<Account>(&to);
        ctx.schedule("gift", Duration::from_millis(after_ms), to.deposit(cents));
    }

    pub async fn wait(&mut self, ms: u64) -> i64 {
        tokio::time::sleep(Duration::from_millis(ms)).await;
        self.cents += 1;
        self.cents
    }

    pub fn grow(&mut self, bytes: u32) {
        self.log.push("x".repeat(bytes as usize));
    }
}

async fn app() -> TestApp {
    TestApp::new(App::new("test").actor::<Account>()).await
}

#[tokio::test(start_paused = true)]
async fn an_error_undoes_the_state_and_every_effect() {
    let app = app().await;
    let account = app.get::<Account>("a");
    let mut events = account.events_from(EventsFrom::Start);
    assert_eq!(account.deposit(100).await.unwrap(), 100);
    let overdrawn = account.withdraw(150).await;
    assert_eq!(overdrawn, Err(CallError::App(AccountError::Overdrawn { by: 50 })));
    assert_eq!(account.balance().await.unwrap(), 100);
    assert!(account.entries().await.unwrap().is_empty());
    assert_eq!(account.withdraw(30).await.unwrap(), 70);
    let seen: Vec<_> = [events.next().await, events.next().await].map(|e| e.unwrap().unwrap().1).into();
    assert_eq!(seen, [Booked::In(100), Booked::Out(30)]);
}

#[tokio::test(start_paused = true)]
async fn a_panic_undoes_the_turn_and_the_actor_lives_on() {
    let app = app().await;
    let account = app.get::<Account>("a");
    account.deposit(5).await.unwrap();
    let panicked = account.blow_up(1000).await;
    assert!(
        matches!(&panicked, Err(Fault::Panicked { message, .. }) if message.contains("safe")),
        "{panicked:?}"
    );
    assert_eq!(account.balance().await.unwrap(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_call_to_another_actor_is_part_of_a_turn() {
    let app = app().await;
    app.get::<Account>("a").deposit(100).await.unwrap();
    assert_eq!(app.get::<Account>("a").transfer("b".into(), 40).await.unwrap(), 60);
    assert_eq!(app.get::<Account>("b").balance().await.unwrap(), 40);
}

#[tokio::test(start_paused = true)]
async fn messages_arrive_once_and_in_order() {
    let app = app().await;
    let all: Vec<String> = (0..20).map(|n| format!("r{n}")).collect();
    for round in 1..=10 {
        for to in &all {
            app.get::<Account>("sender").give(to.clone(), round).await.unwrap();
        }
    }
    app.settle().await;
    for to in &all {
        assert_eq!(app.get::<Account>(to).balance().await.unwrap(), 55);
    }
    assert_eq!(app.get::<Account>("sender").balance().await.unwrap(), -20 * 55);
}

#[tokio::test(start_paused = true)]
async fn a_call_cycle_is_answered_at_once_with_its_path() {
    let app = app().await;
    let answer = app.get::<Account>("a").ask_peer("b".into(), "a".into()).await;
    let Err(CallError::Fault(Fault::Cycle { path })) = answer else { panic!("{answer:?}") };
    assert_eq!(path, ["Account/a", "Account/b", "Account/a"]);
}

#[tokio::test(start_paused = true)]
async fn a_reminder_fires_once_when_it_is_due() {
    let app = app().await;
    let account = app.get::<Account>("a");
    account.interest(5_000, 7).await.unwrap();
    app.advance(Duration::from_millis(4_900)).await;
    assert_eq!(account.balance().await.unwrap(), 0);
    app.advance(Duration::from_millis(200)).await;
    assert_eq!(account.balance().await.unwrap(), 7);
    app.advance(Duration::from_secs(60)).await;
    assert_eq!(account.balance().await.unwrap(), 7);
}

#[tokio::test(start_paused = true)]
async fn a_reminder_is_replaced_by_name_and_can_be_cancelled() {
    let app = app().await;
    let account = app.get::<Account>("a");
    account.interest(5_000, 7).await.unwrap();
    account.interest(9_000, 11).await.unwrap();
    app.advance(Duration::from_secs(6)).await;
    assert_eq!(account.balance().await.unwrap(), 0);
    app.advance(Duration::from_secs(4)).await;
    assert_eq!(account.balance().await.unwrap(), 11);
    account.interest(1_000, 13).await.unwrap();
    account.stop_interest().await.unwrap();
    app.advance(Duration::from_secs(10)).await;
    assert_eq!(account.balance().await.unwrap(), 11);
}

#[tokio::test(start_paused = true)]
async fn a_reminder_may_call_another_actor() {
    let app = app().await;
    app.get::<Account>("a").gift_later("b".into(), 1_000, 3).await.unwrap();
    app.advance(Duration::from_secs(2)).await;
    assert_eq!(app.get::<Account>("b").balance().await.unwrap(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_slow_actor_does_not_hold_up_its_neighbours() {
    let app = app().await;
    let slow = app.get::<Account>("slow");
    let waiting = tokio::spawn(async move { slow.wait(60_000).timeout(Duration::from_secs(60)).await });
    tokio::task::yield_now().await;
    // Some of these share a partition with the slow one, whatever the hash does.
    for n in 0..16 {
        assert_eq!(app.get::<Account>(format!("n{n}")).deposit(1).await.unwrap(), 1);
    }
    // A read of the slow one sees its state as of its last turn.
    assert_eq!(app.get::<Account>("slow").balance().await.unwrap(), 0);
    assert!(!waiting.is_finished());
    waiting.abort();
}

#[tokio::test(start_paused = true)]
async fn calls_to_one_actor_wait_for_its_async_turn() {
    let app = app().await;
    let account = app.get::<Account>("a");
    let (first, second) = tokio::join!(account.wait(1_000), account.deposit(10));
    assert_eq!((first.unwrap(), second.unwrap()), (1, 11));
}

#[tokio::test(start_paused = true)]
async fn an_async_turn_beyond_its_deadline_is_undone() {
    let app = app().await;
    let account = app.get::<Account>("a");
    let late = account.wait(5_000).timeout(Duration::from_secs(1)).await;
    assert!(matches!(late, Err(Fault::TimedOut { .. })), "{late:?}");
    app.advance(Duration::from_secs(10)).await;
    assert_eq!(account.balance().await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_state_above_the_limit_is_refused_by_name_and_size() {
    let app = app().await;
    let account = app.get::<Account>("fat");
    let refused = account.grow(500_000).await;
    let Err(Fault::TooLarge { at, bytes, limit, .. }) = &refused else { panic!("{refused:?}") };
    assert_eq!((at.as_str(), *limit), ("Account/fat", 384 * 1024));
    assert!(*bytes > 500_000);
    assert!(account.entries().await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_bad_key_is_a_fault_and_not_a_panic() {
    let app = app().await;
    assert!(matches!(app.get::<Account>("").balance().await, Err(Fault::BadName(_))));
    assert!(matches!(app.get::<Account>("k".repeat(600)).balance().await, Err(Fault::BadName(_))));
}

#[tokio::test(start_paused = true)]
async fn events_resume_after_the_last_one_seen() {
    let app = app().await;
    let account = app.get::<Account>("a");
    for cents in 1..=5 {
        account.deposit(cents).await.unwrap();
    }
    let mut all = account.events_from(EventsFrom::Start);
    let (third, _) = {
        let mut seen = Vec::new();
        for _ in 0..3 {
            seen.push(all.next().await.unwrap().unwrap());
        }
        seen.pop().unwrap()
    };
    let mut rest = account.events_from(EventsFrom::After(third));
    assert_eq!(rest.next().await.unwrap().unwrap().1, Booked::In(4));
    assert_eq!(rest.next().await.unwrap().unwrap().1, Booked::In(5));
    let mut fresh = account.events_from(EventsFrom::Now);
    let next = tokio::spawn(async move { fresh.next().await });
    tokio::task::yield_now().await;
    account.touch().await.unwrap();
    app.advance(Duration::from_millis(10)).await;
    account.deposit(6).await.unwrap();
    assert_eq!(next.await.unwrap().unwrap().unwrap().1, Booked::In(6));
}

#[tokio::test(start_paused = true)]
async fn many_calls_at_once_all_count() {
    let app = app().await;
    let calls = (0..2_000).map(|n| {
        let account = app.get::<Account>(format!("k{}", n % 7));
        async move { account.deposit(1).await.unwrap() }
    });
    futures_util::future::join_all(calls).await;
    let mut sum = 0;
    for n in 0..7 {
        sum += app.get::<Account>(format!("k{n}")).balance().await.unwrap();
    }
    assert_eq!(sum, 2_000);
}
