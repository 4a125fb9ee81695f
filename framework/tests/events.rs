//! Events: streams without gap and doubles over failovers, what is kept, and who is cut off.

use std::time::Duration;

use futures_util::StreamExt;
use perennial::call::Events;
use perennial::limits::{EVENTS_KEPT_DEFAULT, EVENTS_SURPLUS_MAX, FOLLOWER_EVENTS_MAX, FOLLOWER_STALL_MAX};
use perennial::prelude::*;
use perennial::testing::{TestApp, TestCluster};
use perennial::{EventId, EventsFrom};

/// Publishes numbers.
#[data]
#[derive(Default)]
pub struct Feed {
    last: u64,
}

#[actor(event = u64)]
impl Feed {
    /// Publishes the next so many numbers; returns the last.
    pub fn publish(&mut self, ctx: &mut Ctx<Self>, count: u64) -> u64 {
        for _ in 0..count {
            self.last += 1;
            ctx.publish(self.last);
        }
        self.last
    }
}

/// The same, of which little is kept.
#[data]
#[derive(Default)]
pub struct Ticker {
    last: u64,
}

#[actor(event = u64, keep_events = 10, keep_events_for = "1m")]
impl Ticker {
    /// Publishes the next number.
    pub fn tick(&mut self, ctx: &mut Ctx<Self>) -> u64 {
        self.last += 1;
        ctx.publish(self.last);
        self.last
    }
}

fn app() -> App {
    App::new("test").actor::<Feed>().actor::<Ticker>()
}

/// Longer than any call should take, however busy the machine is.
const LONG: Duration = Duration::from_secs(50);

/// The next `count` numbers.
async fn take(events: &mut Events<u64>, count: usize) -> Vec<u64> {
    events.take(count).map(|event| event.unwrap().1).collect().await
}

/// The rest of a stream until it ends, and the fault that ends it.
async fn rest(events: &mut Events<u64>) -> (Vec<u64>, Fault) {
    let mut seen = Vec::new();
    loop {
        match events.next().await.expect("a stream ends with a fault") {
            Ok((_, number)) => seen.push(number),
            Err(fault) => return (seen, fault),
        }
    }
}

/// Follows until the stream stands, without an event.
async fn begun(events: &mut Events<u64>) -> EventId {
    loop {
        let next = futures_util::poll!(events.next());
        assert!(next.is_pending(), "{next:?}");
        if let Some(position) = events.position() {
            return position;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn followers_of_one_actor_see_the_same_wherever_they_begin() {
    let app = TestApp::new(app()).await;
    let feed = app.get::<Feed>("a");
    feed.publish(5).await.unwrap();
    let mut all = feed.events_from(EventsFrom::Start);
    let first = all.next().await.unwrap().unwrap().0;
    let mut rest = feed.events_from(EventsFrom::After(first));
    let mut now = feed.events();
    let position = begun(&mut now).await;
    let mut late = feed.events_from(EventsFrom::After(position));
    feed.publish(3).await.unwrap();
    assert_eq!(take(&mut all, 7).await, [2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(take(&mut rest, 7).await, [2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(take(&mut now, 3).await, [6, 7, 8]);
    assert_eq!(take(&mut late, 3).await, [6, 7, 8]);
}

#[tokio::test(start_paused = true)]
async fn a_stream_begins_where_it_says_and_resumes_there_though_nothing_came() {
    let app = TestApp::new(app()).await;
    let feed = app.get::<Feed>("a");
    feed.publish(5).await.unwrap();
    let mut now = feed.events();
    let position = begun(&mut now).await;
    drop(now);
    feed.publish(2).await.unwrap();
    let mut resumed = feed.events_from(EventsFrom::After(position));
    assert_eq!(take(&mut resumed, 2).await, [6, 7]);
}

#[tokio::test(start_paused = true)]
async fn a_follower_that_does_not_keep_up_is_cut_off_and_resumes() {
    let app = TestApp::new(app()).await;
    let feed = app.get::<Feed>("a");
    let (mut slow, mut fast) = (feed.events(), feed.events());
    begun(&mut slow).await;
    begun(&mut fast).await;
    let published = FOLLOWER_EVENTS_MAX as u64 + 100;
    for n in 1..=published {
        feed.publish(1).await.unwrap();
        assert_eq!(take(&mut fast, 1).await, [n]);
    }
    let (seen, fault) = rest(&mut slow).await;
    assert_eq!(fault.code(), "too_slow");
    assert!(fault.retryable() && fault.to_string().contains("1024 events"), "{fault}");
    assert_eq!(seen, (1..=FOLLOWER_EVENTS_MAX as u64).collect::<Vec<_>>());
    assert!(slow.next().await.is_none(), "the fault comes once");
    let mut resumed = feed.events_from(EventsFrom::After(slow.position().unwrap()));
    let missing: Vec<_> = (FOLLOWER_EVENTS_MAX as u64 + 1..=published).collect();
    assert_eq!(take(&mut resumed, missing.len()).await, missing);
}

#[tokio::test(start_paused = true)]
async fn one_that_catches_up_takes_its_time_but_not_for_ever() {
    let app = TestApp::new(app()).await;
    let feed = app.get::<Feed>("a");
    let many = u64::from(EVENTS_KEPT_DEFAULT + EVENTS_SURPLUS_MAX - 1);
    feed.publish(many).await.unwrap();
    let mut slow = feed.events_from(EventsFrom::Start);
    let mut seen = Vec::new();
    for _ in 0..many {
        seen.extend(take(&mut slow, 1).await);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(seen, (1..=many).collect::<Vec<_>>());
    let mut idle = feed.events_from(EventsFrom::Start);
    tokio::time::sleep(FOLLOWER_STALL_MAX * 2).await;
    let (seen, fault) = rest(&mut idle).await;
    assert_eq!((seen.len(), fault.code()), (FOLLOWER_EVENTS_MAX, "too_slow"));
}

#[tokio::test(start_paused = true)]
async fn who_comes_back_too_late_is_told_and_nothing_is_skipped_in_silence() {
    let app = TestApp::new(app()).await;
    let ticker = app.get::<Ticker>("a");
    let mut events = ticker.events_from(EventsFrom::Start);
    ticker.tick().await.unwrap();
    assert_eq!(take(&mut events, 1).await, [1]);
    let first = events.position().unwrap();
    drop(events);
    for _ in 0..100 {
        ticker.tick().await.unwrap();
    }
    app.advance(Duration::from_millis(10)).await;
    let (seen, fault) = rest(&mut ticker.events_from(EventsFrom::After(first))).await;
    let Fault::EventsGone { after, oldest: Some(oldest), .. } = fault else { panic!("{fault}") };
    assert_eq!((seen.len(), after), (0, first));
    let mut kept = ticker.events_from(EventsFrom::Start);
    let (id, number) = kept.next().await.unwrap().unwrap();
    assert_eq!(id, oldest);
    assert!((82..=92).contains(&number), "{number} is the oldest of 10 to 20");
    let missing = (101 - number) as usize;
    assert_eq!(take(&mut kept, missing).await, (number + 1..=101).collect::<Vec<_>>());
    let ahead = EventId { index: 1 << 40, n: 0 };
    let (_, fault) = rest(&mut ticker.events_from(EventsFrom::After(ahead))).await;
    assert_eq!(fault.code(), "events_gone");
}

#[tokio::test(start_paused = true)]
async fn events_go_when_their_time_is_over_though_nothing_is_published() {
    let app = TestApp::new(app()).await;
    let (ticker, feed) = (app.get::<Ticker>("a"), app.get::<Feed>("a"));
    let mut events = ticker.events_from(EventsFrom::Start);
    ticker.tick().await.unwrap();
    ticker.tick().await.unwrap();
    feed.publish(1).await.unwrap();
    let first = events.next().await.unwrap().unwrap().0;
    take(&mut events, 1).await;
    let last = events.position().unwrap();
    drop(events);
    app.advance(Duration::from_secs(50)).await;
    assert_eq!(take(&mut ticker.events_from(EventsFrom::After(first)), 1).await, [2]);
    app.advance(Duration::from_secs(30)).await;
    let (_, fault) = rest(&mut ticker.events_from(EventsFrom::After(first))).await;
    assert!(matches!(fault, Fault::EventsGone { oldest: None, .. }), "{fault}");
    // Who has had all of it misses nothing.
    let mut resumed = ticker.events_from(EventsFrom::After(last));
    ticker.tick().await.unwrap();
    assert_eq!(take(&mut resumed, 1).await, [3]);
    assert_eq!(take(&mut feed.events_from(EventsFrom::Start), 1).await, [1], "kept for a week");
}

#[tokio::test]
async fn streams_go_on_without_gap_or_double_when_the_owner_ends() {
    let cluster = TestCluster::builder(app()).partitions(2).seed(3).start().await;
    let feed = cluster.get::<Feed>("a");
    let mut followers = vec![feed.events_from(EventsFrom::Start)];
    for _ in 0..2 {
        let other = cluster.client().await.get::<Feed>("a");
        followers.push(other.events_from(EventsFrom::Start));
        followers.push(other.events_from(EventsFrom::Start));
    }
    let mut published = 0;
    for round in 0..4 {
        let owner = cluster.owner::<Feed>("a").await;
        match round % 2 {
            0 => cluster.kill(owner),
            _ => cluster.cut_power(owner),
        }
        for _ in 0..20 {
            feed.publish(3).timeout(LONG).await.unwrap();
        }
        cluster.restart(owner).await;
        let expected: Vec<_> = (published + 1..=published + 60).collect();
        published += 60;
        for (number, follower) in followers.iter_mut().enumerate() {
            assert_eq!(take(follower, 60).await, expected, "follower {number} in round {round}");
            // Half of them leave and come back where they were.
            if number % 2 == 0 {
                *follower = feed.events_from(EventsFrom::After(follower.position().unwrap()));
            }
        }
    }
}
