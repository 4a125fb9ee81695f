//! Durable time: what recurs, what was missed, what is listed; and timers, which are not durable.

use std::time::Duration;

use perennial::core::time::Millis;
use perennial::dead::DeadFilter;
use perennial::limits::{REMINDERS_OF_ONE_MAX, SCHEDULED_BYTES_MAX, TIMERS_OF_ONE_MAX};
use perennial::prelude::*;
use perennial::testing::{TestApp, TestCluster};
use perennial::{Missed, When};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// Writes down when it was woken.
#[data]
#[derive(Default)]
pub struct Diary {
    woken: Vec<u64>,
    late: Vec<u64>,
    other: u32,
}

#[actor]
impl Diary {
    /// Wakes every so many milliseconds.
    pub fn every(&mut self, ctx: &mut Ctx<Self>, ms: u64, missed: u32) {
        let when = When::every(Duration::from_millis(ms)).missed(policy(missed));
        ctx.schedule("tick", when, ctx.me().wake());
    }

    /// Wakes by a cron text.
    pub fn cron(&mut self, ctx: &mut Ctx<Self>, text: String, zone: String) {
        ctx.schedule("tick", When::cron(text).zone(zone), ctx.me().wake());
    }

    /// Wakes at a time.
    pub fn at(&mut self, ctx: &mut Ctx<Self>, time: u64) {
        ctx.schedule("tick", When::at(Millis(time)), ctx.me().wake());
    }

    /// Wakes another one every second.
    pub fn nudge(&mut self, ctx: &mut Ctx<Self>, other: String) {
        ctx.schedule("nudge", When::every(SECOND), ctx.get::<Self>(&other).wake());
    }

    /// Has something fail every second.
    pub fn failing(&mut self, ctx: &mut Ctx<Self>) {
        ctx.schedule("tick", When::every(SECOND), ctx.me().fail());
    }

    /// Fails.
    pub fn fail(&mut self, ctx: &mut Ctx<Self>) -> Result<(), String> {
        self.woken.push(0);
        ctx.cancel("tick");
        Err("not today".into())
    }

    /// Sets so many reminders.
    pub fn many(&mut self, ctx: &mut Ctx<Self>, from: u32, to: u32) {
        (from..to).for_each(|n| ctx.schedule(n.to_string(), HOUR, ctx.me().wake()));
    }

    /// Has another one note a text, once or again and again, or by a timer.
    pub fn large(&mut self, ctx: &mut Ctx<Self>, how: u32, bytes: u32) {
        let note = ctx.get::<Self>("other").note("x".repeat(bytes as usize));
        match how {
            0 => ctx.schedule("large", SECOND, note),
            1 => ctx.schedule("large", When::every(SECOND), note),
            2 => ctx.schedule("large", When::every(SECOND), ctx.me().note("x".repeat(bytes as usize))),
            _ => ctx.timer("large", SECOND, note),
        }
    }

    /// Notes a text.
    pub fn note(&mut self, text: String) {
        self.other += u32::from(!text.is_empty());
    }

    /// Stops.
    pub fn stop(&mut self, ctx: &mut Ctx<Self>, name: String) {
        ctx.cancel(name);
    }

    /// Wakes every second, until the third time.
    pub fn thrice(&mut self, ctx: &mut Ctx<Self>) {
        ctx.schedule("tick", When::every(SECOND), ctx.me().again());
    }

    /// One of these times.
    pub fn again(&mut self, ctx: &mut Ctx<Self>) {
        self.wake(ctx);
        if self.woken.len() == 3 {
            ctx.cancel("tick");
        }
    }

    /// Takes down when.
    pub fn wake(&mut self, ctx: &mut Ctx<Self>) {
        match ctx.due() {
            Some(due) => {
                self.woken.push(due.0);
                self.late.push(ctx.now().since(due));
            }
            None => self.other += 1,
        }
    }

    /// When it was woken, and how late that was.
    pub fn book(&self) -> (Vec<u64>, Vec<u64>, u32) {
        (self.woken.clone(), self.late.clone(), self.other)
    }

    /// The reminders, and when they are due.
    pub fn set(&self, ctx: &Ctx<Self>) -> Reply<Vec<(String, u64, Option<String>)>, String> {
        let set = ctx.reminders()?;
        Ok(set.into_iter().map(|r| (r.name, r.due.0, r.repeats)).collect())
    }

    /// The names of the reminders within a turn that replaces one, sets one and cancels one.
    pub fn shuffled(&mut self, ctx: &mut Ctx<Self>) -> Reply<Vec<String>, String> {
        ctx.schedule("b", HOUR, ctx.me().wake());
        ctx.schedule("a", HOUR, ctx.me().wake());
        ctx.cancel("tick");
        Ok(ctx.reminders()?.into_iter().map(|r| r.name).collect())
    }

    /// Starts a timer.
    pub fn start(&mut self, ctx: &mut Ctx<Self>, name: String, ms: u64, again: bool) {
        let (time, wake) = (Duration::from_millis(ms), ctx.me().wake());
        if again { ctx.timer_every(name, time, wake) } else { ctx.timer(name, time, wake) }
    }

    /// Stops a timer.
    pub fn halt(&mut self, ctx: &mut Ctx<Self>, name: String) {
        ctx.stop_timer(name);
    }
}

fn policy(number: u32) -> Missed {
    match number {
        0 => Missed::Once,
        1 => Missed::Skip,
        at_most => Missed::All { at_most },
    }
}

async fn app() -> TestApp {
    TestApp::new(App::new("diary").actor::<Diary>()).await
}

#[tokio::test(start_paused = true)]
async fn a_recurring_reminder_fires_at_each_due_time_without_drift() {
    let app = app().await;
    let diary = app.get::<Diary>("a");
    diary.every(1000, 0).await.unwrap();
    app.advance(Duration::from_millis(10_500)).await;
    let (woken, late, _) = diary.book().await.unwrap();
    assert_eq!(woken.len(), 10);
    assert!(woken.windows(2).all(|two| two[1] - two[0] == 1000), "{woken:?}");
    assert!(late.iter().all(|late| *late < 50), "{late:?}");
    let set = diary.set().await.unwrap();
    assert_eq!(set, [("tick".to_owned(), woken[9] + 1000, Some("every 1s".to_owned()))]);
    diary.stop("tick".into()).await.unwrap();
    app.advance(10 * SECOND).await;
    assert_eq!(diary.book().await.unwrap().0.len(), 10);
    assert_eq!(diary.set().await.unwrap(), []);
}

#[tokio::test(start_paused = true)]
async fn a_cron_text_is_due_at_its_times() {
    let app = app().await;
    let diary = app.get::<Diary>("a");
    diary.cron("0 9 * * *".into(), "Europe/Berlin".into()).await.unwrap();
    app.advance(3 * 24 * HOUR).await;
    let (woken, ..) = diary.book().await.unwrap();
    assert_eq!(woken.len(), 3);
    for due in woken {
        // Nine o'clock there is eight or seven by UTC.
        assert!([8 * 3600, 7 * 3600].contains(&(due / 1000 % 86_400)), "{due}");
    }
    let text = diary.set().await.unwrap().remove(0).2;
    assert_eq!(text.as_deref(), Some("cron \"0 9 * * *\" in Europe/Berlin"));
}

#[tokio::test(start_paused = true)]
async fn a_reminder_is_due_at_a_time_and_at_once_if_that_has_passed() {
    let app = app().await;
    let diary = app.get::<Diary>("a");
    diary.at(5).await.unwrap();
    app.advance(Duration::from_millis(20)).await;
    let now = diary.book().await.unwrap().0[0];
    diary.at(now + 60_000).await.unwrap();
    app.advance(60 * SECOND).await;
    assert_eq!(diary.book().await.unwrap().0, [now, now + 60_000]);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_scheduled_fails_the_turn_and_leaves_nothing() {
    let app = app().await;
    let diary = app.get::<Diary>("a");
    let refused = diary.cron("0 25 * * *".into(), "UTC".into()).await;
    assert!(matches!(&refused, Err(Fault::BadSchedule(why)) if why.contains("0 25 * * *")), "{refused:?}");
    let refused = diary.cron("0 9 * * *".into(), "Mars".into()).await;
    assert!(matches!(&refused, Err(Fault::BadSchedule(why)) if why.contains("Mars")), "{refused:?}");
    let refused = diary.every(1, 0).await;
    assert!(matches!(&refused, Err(Fault::BadSchedule(why)) if why.contains("10 ms")), "{refused:?}");
    assert_eq!(diary.set().await.unwrap(), []);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_fails_uses_up_one_due_time_only() {
    let app = app().await;
    let diary = app.get::<Diary>("a");
    diary.failing().await.unwrap();
    app.advance(Duration::from_millis(3500)).await;
    assert!(diary.book().await.unwrap().0.is_empty(), "its turn is undone, the cancel too");
    assert_eq!(diary.set().await.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_recurring_reminder_that_always_fails_has_one_dead_letter() {
    let app = app().await;
    app.get::<Diary>("a").failing().await.unwrap();
    app.advance(Duration::from_millis(3500)).await;
    let dead = app.dead_letters();
    let list = dead.list(&DeadFilter::default(), 10).await;
    assert_eq!((list.letters.len(), list.kept, list.lost), (1, 1, 0));
    let letter = &list.letters[0];
    assert_eq!((letter.reminder.as_deref(), letter.tries), (Some("tick"), 3), "of all firings");
    let newest = list.letters[0].id;
    app.advance(SECOND).await;
    let replaced = dead.drop(newest).await.unwrap_err();
    assert_eq!(replaced.code(), "no_dead_letter", "another one stands in its place");
    let list = dead.list(&DeadFilter::default(), 10).await;
    dead.drop(list.letters[0].id).await.unwrap();
    app.advance(SECOND).await;
    let list = dead.list(&DeadFilter::default(), 10).await;
    assert_eq!((list.letters.len(), list.letters[0].tries), (1, 1), "counted anew");
}

#[tokio::test(start_paused = true)]
async fn a_recurring_reminder_can_be_cancelled_by_its_own_turn() {
    let app = app().await;
    let diary = app.get::<Diary>("a");
    diary.thrice().await.unwrap();
    app.advance(10 * SECOND).await;
    assert_eq!(diary.book().await.unwrap().0.len(), 3);
    assert_eq!(diary.set().await.unwrap(), []);
}

#[tokio::test(start_paused = true)]
async fn a_recurring_reminder_may_call_another_actor() {
    let app = app().await;
    let diary = app.get::<Diary>("a");
    diary.nudge("b".into()).await.unwrap();
    app.advance(Duration::from_millis(4500)).await;
    assert_eq!(app.get::<Diary>("b").book().await.unwrap().2, 4);
    diary.stop("nudge".into()).await.unwrap();
    app.advance(10 * SECOND).await;
    assert_eq!(app.get::<Diary>("b").book().await.unwrap().2, 4);
}

#[tokio::test(start_paused = true)]
async fn a_turn_sees_the_reminders_with_its_own_changes() {
    let app = app().await;
    let diary = app.get::<Diary>("a");
    diary.every(1000, 0).await.unwrap();
    assert_eq!(diary.shuffled().await.unwrap(), ["a", "b"]);
    assert_eq!(diary.shuffled().await.unwrap(), ["a", "b"]);
    app.advance(2 * HOUR).await;
    assert_eq!(diary.set().await.unwrap(), []);
    assert_eq!(diary.book().await.unwrap().0.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_actor_has_only_so_many_reminders() {
    let app = app().await;
    let diary = app.get::<Diary>("a");
    let most = u32::try_from(REMINDERS_OF_ONE_MAX).unwrap();
    let step = most / 10;
    for from in (0..most).step_by(step as usize) {
        diary.many(from, from + step).await.unwrap();
    }
    let refused = diary.many(most, most + 1).await;
    assert!(
        matches!(&refused, Err(Fault::Overloaded { what, .. }) if what.contains("reminders")),
        "{refused:?}"
    );
    diary.many(0, 5).await.expect("one that is there is replaced");
    diary.stop("7".into()).await.unwrap();
    diary.many(most, most + 1).await.expect("there is room for one");
    assert!(diary.many(most + 1, most + 2).await.is_err());
    app.advance(2 * HOUR).await;
    assert_eq!(diary.book().await.unwrap().0.len(), REMINDERS_OF_ONE_MAX);
    diary.many(0, 1).await.expect("what has fired makes room");
}

#[tokio::test(start_paused = true)]
async fn a_timer_fires_once_or_again_and_again_until_it_is_stopped() {
    let app = app().await;
    let diary = app.get::<Diary>("a");
    let woken = async || diary.book().await.unwrap().2;
    diary.start("once".into(), 1000, false).await.unwrap();
    app.advance(10 * SECOND).await;
    assert_eq!(woken().await, 1);
    diary.start("tick".into(), 1000, true).await.unwrap();
    app.advance(Duration::from_millis(5500)).await;
    assert_eq!(woken().await, 6);
    diary.start("tick".into(), 3000, true).await.unwrap();
    app.advance(Duration::from_millis(3500)).await;
    assert_eq!(woken().await, 7, "the new one is in place of the old one");
    diary.halt("tick".into()).await.unwrap();
    app.advance(10 * SECOND).await;
    assert_eq!(woken().await, 7);
    assert_eq!(diary.set().await.unwrap(), [], "a timer is no reminder");
}

#[tokio::test(start_paused = true)]
async fn what_a_scheduled_call_takes_along_is_bounded() {
    let app = app().await;
    let other = app.get::<Diary>("other");
    let mut noted = 0;
    for how in 0..4 {
        let diary = app.get::<Diary>(how.to_string());
        let refused = diary.large(how, SCHEDULED_BYTES_MAX as u32 + 1).await;
        assert!(
            matches!(&refused, Err(Fault::TooLarge { what, .. }) if what.contains("scheduled")),
            "{refused:?}"
        );
        // Less than that fires, beside the next firing in one record.
        diary.large(how, SCHEDULED_BYTES_MAX as u32 - 100).await.unwrap();
        app.advance(Duration::from_millis(1500)).await;
        noted += u32::from(how != 2);
        let (book, own) = (other.book().await.unwrap().2, diary.book().await.unwrap().2);
        assert!(if how == 2 { own == 1 } else { book >= noted }, "{how}: {book}, {own}");
        diary.stop("large".into()).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn timers_are_few_and_do_not_keep_their_actor_in_memory() {
    let app = app().await;
    let diary = app.get::<Diary>("a");
    for n in 0..TIMERS_OF_ONE_MAX {
        diary.start(n.to_string(), 3_600_000, true).await.unwrap();
    }
    let refused = diary.start("more".into(), 1000, true).await;
    assert!(
        matches!(&refused, Err(Fault::Overloaded { what, .. }) if what.contains("timers")),
        "{refused:?}"
    );
    diary.halt("3".into()).await.unwrap();
    diary.start("tick".into(), 60_000, true).await.unwrap();
    app.advance(2 * HOUR).await;
    let woken = diary.book().await.unwrap().2;
    assert!((9..=11).contains(&woken), "idle for ten minutes, it left with its timers: {woken}");
}

/// Brings a cluster to the eve of an outage of so many seconds, and over it.
async fn over_an_outage(missed: u32, seconds: u64) -> Vec<u64> {
    let cluster = TestCluster::start(3, App::new("diary").actor::<Diary>()).await;
    let diary = cluster.get::<Diary>("a");
    diary.every(60_000, missed).await.unwrap();
    cluster.advance(Duration::from_secs(seconds)).await;
    let (woken, ..) = diary.book().await.unwrap();
    assert_eq!(diary.set().await.unwrap().len(), 1, "it goes on");
    woken
}

#[tokio::test]
async fn what_was_missed_fires_once() {
    assert_eq!(over_an_outage(0, 3605).await.len(), 1);
}

#[tokio::test]
async fn what_was_missed_fires_for_the_newest_in_order() {
    let woken = over_an_outage(7, 3605).await;
    assert_eq!(woken.len(), 7);
    assert!(woken.windows(2).all(|two| two[1] - two[0] == 60_000), "{woken:?}");
}

#[tokio::test]
async fn what_was_missed_is_skipped() {
    assert!(over_an_outage(1, 3630).await.is_empty());
}

#[tokio::test]
async fn a_recurring_reminder_fires_once_for_each_due_time_over_changes_of_leader() {
    let cluster = TestCluster::start(3, App::new("diary").actor::<Diary>()).await;
    let diary = cluster.get::<Diary>("a");
    diary.every(200, 1000).await.unwrap();
    for _ in 0..3 {
        let owner = cluster.owner::<Diary>("a").await;
        cluster.kill(owner);
        cluster.advance(Duration::from_millis(700)).await;
        cluster.restart(owner).await;
    }
    let (woken, ..) = diary.book().await.unwrap();
    assert!(woken.len() >= 9, "{woken:?}");
    assert!(woken.windows(2).all(|two| two[1] - two[0] == 200), "{woken:?}");
}
