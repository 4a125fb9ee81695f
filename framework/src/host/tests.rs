//! Hosts on rows that are looked at, or that cannot be read.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use perennial_core::id::GroupId;
use perennial_core::partition::rows;
use perennial_core::replication::RowOp;

use super::memory::ACTORS_BYTES_DEFAULT;
use crate::call::{ActorId, EventsFrom};
use crate::collections::{Log, Map};
use crate::dead::DeadFilter;
use crate::error::Fault;
use crate::prelude::*;
use crate::replica::{GroupMeta, MemoryRows, RowError, RowIter, RowStore};
use crate::status::{ReminderPage, ReminderQuery};
use crate::testing::TestApp;

/// Rows in memory.
#[derive(Default)]
struct TestRows {
    rows: MemoryRows,
    /// How many were read.
    read: Arc<AtomicUsize>,
    /// Those with this first byte cannot be read.
    broken: AtomicU8,
}

impl TestRows {
    fn check(&self, key: &[u8]) -> Result<(), RowError> {
        let broken = self.broken.load(Ordering::Relaxed);
        if key.first().is_some_and(|tag| *tag == broken) { Err(RowError::Closed) } else { Ok(()) }
    }
    fn break_rows(&self, tag: u8) {
        self.broken.store(tag, Ordering::Relaxed);
    }
    /// Rows read since this was asked last.
    fn take_read(&self) -> usize {
        self.read.swap(0, Ordering::Relaxed)
    }
}

impl RowStore for TestRows {
    fn get(&self, group: GroupId, key: &[u8]) -> Result<Option<Vec<u8>>, RowError> {
        self.check(key)?;
        self.read.fetch_add(1, Ordering::Relaxed);
        self.rows.get(group, key)
    }
    fn range(&self, group: GroupId, from: &[u8], to: Option<&[u8]>) -> RowIter {
        if let Err(error) = self.check(from) {
            return Box::new(std::iter::once(Err(error)));
        }
        let read = self.read.clone();
        Box::new(self.rows.range(group, from, to).inspect(move |_| {
            read.fetch_add(1, Ordering::Relaxed);
        }))
    }
    fn write(&self, batch: Vec<(GroupId, Vec<RowOp>)>) -> Result<(), RowError> {
        self.rows.write(batch)
    }
    fn meta(&self, group: GroupId) -> Result<Option<GroupMeta>, RowError> {
        self.rows.meta(group)
    }
    fn put_meta(&self, metas: &[(GroupId, GroupMeta)]) -> Result<(), RowError> {
        self.rows.put_meta(metas)
    }
    fn sync(&self) -> Result<(), RowError> {
        self.rows.sync()
    }
    fn wipe(&self, group: GroupId) -> Result<(), RowError> {
        self.rows.wipe(group)
    }
    fn close(&self) {}
}

/// Publishes.
#[data]
#[derive(Default)]
struct Feed {}

#[actor(event = Vec<u8>, keep_events = 300)]
impl Feed {
    /// Publishes so many events of so many bytes.
    pub fn publish(&mut self, ctx: &mut Ctx<Self>, count: u32, bytes: u32) {
        (0..count).for_each(|_| ctx.publish(vec![7; bytes as usize]));
    }
}

fn feeds() -> App {
    App::new("test").actor::<Feed>()
}

#[tokio::test(start_paused = true)]
async fn events_that_are_forgotten_stay_so_over_activations() {
    let app = TestApp::new(feeds()).await;
    let feed = app.get::<Feed>("a");
    feed.publish(900, 1).await.unwrap();
    // A record that fills a batch: what is forgotten comes with the next one, which is held.
    app.hold_log_after(1);
    feed.publish(1, 300_000).await.unwrap();
    tokio::time::sleep(super::sweep::SWEEP_PERIOD + Duration::from_millis(super::sweep::IDLE_MS_MAX)).await;
    assert_eq!(app.resident(), 0);
    let third = tokio::spawn(async move { feed.publish(1, 1).await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    app.release_log();
    third.await.unwrap().unwrap();
    let all = app.rows();
    let gone = all.iter().find(|(key, _)| key[0] == b'L').and_then(|(_, value)| rows::read_position(value));
    let first = all.iter().find(|(key, _)| key[0] == b'E').and_then(|(key, _)| rows::read_event(key));
    let ((gone_at, gone), (first_at, first)) = (gone.unwrap(), first.unwrap());
    assert_eq!((first_at, first), (gone_at, gone + 1), "the stream says what it lacks");
    assert!(gone > 500, "the oldest are forgotten: {gone}");
}

#[tokio::test(start_paused = true)]
async fn an_actor_that_comes_back_does_not_count_its_events() {
    let store = Arc::new(TestRows::default());
    let app = TestApp::start(feeds(), store.clone(), 1).await;
    let feed = app.get::<Feed>("a");
    feed.publish(300, 1).await.unwrap();
    for _ in 0..3 {
        assert_eq!(app.resident(), 0);
        store.take_read();
        feed.publish(1, 1).await.unwrap();
        let read = store.take_read();
        assert!(read < 20, "{read} rows");
    }
    // They are counted all the same.
    feed.publish(400, 1).await.unwrap();
    feed.publish(1, 1).await.unwrap();
    let kept = app.rows().iter().filter(|(key, _)| key[0] == b'E').count();
    assert!((300..=300 + 256).contains(&kept), "{kept} events");
}

/// Keeps numbers, and follows others.
#[data]
#[derive(Default)]
struct Book {
    log: Log<u64>,
    sum: u64,
}

#[actor]
impl Book {
    /// Appends a number.
    pub fn push(&mut self, n: u64) {
        self.log.push(n);
    }
    /// Adds the last number to the sum.
    pub fn add_last(&mut self) -> u64 {
        self.sum += self.log.last(1).into_iter().sum::<u64>();
        self.sum
    }
    /// Has another one do so.
    pub fn send_add_last(&mut self, ctx: &mut Ctx<Self>, to: String) {
        ctx.send(ctx.get::<Self>(&to).add_last());
    }
    /// Sets a reminder and a timer with long arguments.
    pub fn plan(&mut self, ctx: &mut Ctx<Self>, bytes: u32) {
        ctx.schedule("later", Duration::from_secs(3600), ctx.me().note("x".repeat(bytes as usize)));
        ctx.timer("soon", Duration::from_secs(60), ctx.me().note("x".repeat(bytes as usize)));
    }
    /// Sets some reminders, the last one first.
    pub fn plan_many(&mut self, ctx: &mut Ctx<Self>, from: u64, to: u64, bytes: u32) {
        for n in from..to {
            let due = Duration::from_secs(10_000 - n);
            ctx.schedule(format!("{n:03}"), due, ctx.me().note("x".repeat(bytes as usize)));
        }
    }
    /// Stops the timer.
    pub fn stop(&mut self, ctx: &mut Ctx<Self>) {
        ctx.stop_timer("soon");
    }
    /// How many reminders there are.
    pub fn planned(&self, ctx: &Ctx<Self>) -> Reply<u64, String> {
        Ok(ctx.reminders()?.len() as u64)
    }
    /// The sum.
    pub fn sum(&self) -> u64 {
        self.sum
    }
    /// Notes nothing.
    pub fn note(&mut self, text: String) {
        let _ = text;
    }
}

#[tokio::test(start_paused = true)]
async fn rows_that_cannot_be_read_are_no_fault_of_an_actor() {
    let store = Arc::new(TestRows::default());
    let app = App::new("test").actor::<Book>().actor::<Feed>();
    let app = TestApp::start(app, store.clone(), ACTORS_BYTES_DEFAULT).await;
    let (book, feed) = (app.get::<Book>("a"), app.get::<Feed>("f"));
    book.push(5).await.unwrap();
    feed.publish(1, 1).await.unwrap();

    store.break_rows(b'I');
    let refused = book.add_last().await.unwrap_err();
    assert!(matches!(refused, Fault::Unavailable { .. }), "{refused:?}");
    app.get::<Book>("b").send_add_last("a".into()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;

    store.break_rows(b'N');
    let refused = book.planned().await.unwrap_err();
    assert!(matches!(refused, CallError::Fault(Fault::Unavailable { .. })), "{refused:?}");

    store.break_rows(b'E');
    let mut events = feed.events_from(EventsFrom::Start);
    let waits = tokio::time::timeout(Duration::from_secs(5), events.next()).await;
    assert!(waits.is_err(), "{waits:?}");

    store.break_rows(b'D');
    let letters = app.dead_letters().list(&DeadFilter::default(), 10).await;
    assert!(!letters.unanswered.is_empty(), "{letters:?}");

    store.break_rows(0);
    assert!(matches!(events.next().await, Some(Ok(_))));
    app.settle().await;
    assert_eq!(book.sum().await, Ok(5));
    let letters = app.dead_letters().list(&DeadFilter::default(), 10).await;
    assert!(letters.letters.is_empty() && letters.unanswered.is_empty(), "{letters:?}");
}

#[tokio::test(start_paused = true)]
async fn a_list_of_an_actors_reminders_reads_no_more_than_it_tells() {
    const MANY: u64 = 100;
    const BYTES: u32 = 100_000;
    let store = Arc::new(TestRows::default());
    let app = TestApp::on(App::new("test").actor::<Book>(), store.clone()).await;
    let book = app.get::<Book>("a");
    for from in (0..MANY).step_by(4) {
        book.plan_many(from, from + 4, BYTES).await.unwrap();
    }
    let actor: ActorId = "Book/a".parse().unwrap();
    let mut query = ReminderQuery { actor: Some(actor), limit: 3, ..ReminderQuery::default() };
    store.take_read();
    let page = app.router().reminders(query.clone()).await.unwrap();
    let read = store.take_read();
    assert!(read <= MANY as usize + 3 + 3, "{read} rows");
    assert!(page.more);
    let names = |page: &ReminderPage| page.reminders.iter().map(|r| r.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&page), ["099", "098", "097"]);
    let last = page.reminders.last().unwrap();
    query.after = Some((last.due, last.actor.clone(), last.name.clone()));
    query.limit = 1000;
    let page = app.router().reminders(query.clone()).await.unwrap();
    assert!(page.more && page.reminders.len() < 90, "rows of 8 MiB: {}", page.reminders.len());
    let last = page.reminders.last().unwrap();
    query.after = Some((last.due, last.actor.clone(), last.name.clone()));
    let rest = app.router().reminders(query).await.unwrap();
    assert!(!rest.more);
    assert_eq!(3 + page.reminders.len() + rest.reminders.len(), MANY as usize);
}

#[tokio::test(start_paused = true)]
async fn arguments_of_timers_count_as_memory() {
    const BYTES: u32 = 100_000;
    let app = TestApp::new(App::new("test").actor::<Book>()).await;
    let book = app.get::<Book>("a");
    book.note(String::new()).await.unwrap();
    let before = app.resident_bytes();
    book.plan(BYTES).await.unwrap();
    book.plan(BYTES).await.unwrap();
    let with = app.resident_bytes() - before;
    assert!((u64::from(BYTES)..u64::from(BYTES) + 2000).contains(&with), "once: {with}");
    book.stop().await.unwrap();
    assert_eq!(app.resident_bytes(), before);
    book.plan(BYTES).await.unwrap();
    app.advance(Duration::from_secs(61)).await;
    assert_eq!(app.resident_bytes(), before, "it has fired");
    book.plan(BYTES).await.unwrap();
    app.advance(super::sweep::SWEEP_PERIOD + Duration::from_millis(super::sweep::IDLE_MS_MAX)).await;
    assert_eq!((app.resident(), app.resident_bytes()), (0, 0));
}

/// A shelf as it was.
mod v1 {
    use super::*;

    #[data]
    #[derive(Default)]
    pub(super) struct Shelf {
        pieces: u64,
        names: Log<String>,
    }

    #[actor]
    impl Shelf {
        /// Puts one on it.
        pub fn put(&mut self, name: String) {
            self.pieces += 1;
            self.names.push(name);
        }
    }
}

/// And as it is.
mod v2 {
    use super::*;

    #[data(removed(names))]
    #[derive(Default)]
    pub(super) struct Shelf {
        pieces: u64,
    }

    #[actor(event = u64)]
    impl Shelf {
        /// Tells how many there are.
        pub fn tell(&mut self, ctx: &mut Ctx<Self>) {
            ctx.publish(self.pieces);
        }
        /// Fails.
        pub fn fail(&mut self) -> Result<(), String> {
            Err("no".into())
        }
    }
}

/// Rows of all partitions with this first byte.
fn rows_with(app: &TestApp, tag: u8) -> Vec<(Vec<u8>, Vec<u8>)> {
    app.rows().into_iter().filter(|(key, _)| key[0] == tag).collect()
}

#[tokio::test(start_paused = true)]
async fn what_an_old_form_names_goes_with_the_record_that_stores_the_new_one() {
    let store = Arc::new(TestRows::default());
    let app = TestApp::on(App::new("test").actor::<v1::Shelf>(), store.clone()).await;
    for name in ["a", "b", "c"] {
        app.get::<v1::Shelf>("s").put(name.into()).await.unwrap();
    }
    drop(app);

    let app = TestApp::on(App::new("test").actor::<v2::Shelf>(), store.clone()).await;
    let shelf = app.get::<v2::Shelf>("s");
    store.break_rows(b'F');
    let refused = shelf.tell().await.unwrap_err();
    assert!(matches!(refused, Fault::Unavailable { .. }), "its schema cannot be had: {refused:?}");
    store.break_rows(0);
    let old = rows_with(&app, b'S');
    assert!(matches!(shelf.fail().await, Err(CallError::App(_))));
    assert_eq!((rows_with(&app, b'S'), rows_with(&app, b'G').len()), (old.clone(), 0));
    // It changes nothing in the state.
    shelf.tell().await.unwrap();
    let stored = rows_with(&app, b'S');
    assert_ne!(stored[0].1[..8], old[0].1[..8]);
    assert_eq!((rows_with(&app, b'G').len(), rows_with(&app, b'I').len()), (1, 3));
    app.advance(super::sweep::SWEEP_PERIOD + Duration::from_secs(1)).await;
    assert_eq!((rows_with(&app, b'G').len(), rows_with(&app, b'I').len()), (0, 0));
    shelf.tell().await.unwrap();
    assert_eq!(rows_with(&app, b'S'), stored, "once");
}

/// Has many small collections.
#[data]
#[derive(Default)]
struct Drawers {
    logs: std::collections::BTreeMap<u32, Log<u64>>,
    map: Map<u64, Vec<u8>>,
}

#[actor]
impl Drawers {
    /// Makes some.
    pub fn make(&mut self, from: u32, to: u32) {
        (from..to).for_each(|n| {
            let _ = self.logs.entry(n).or_default().push(1);
        });
    }
    /// Drops some of them.
    pub fn drop_below(&mut self, n: u32) {
        self.logs = self.logs.split_off(&n);
    }
    /// Puts large things in the map.
    pub fn fill(&mut self, key: u64, bytes: u32) {
        self.map.insert(key, vec![1; bytes as usize]);
    }
    /// Empties the map.
    pub fn empty(&mut self) {
        self.map.clear();
    }
    /// Waits; then tells how many items there were before.
    pub async fn look(&self, seconds: u64) -> u64 {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        self.logs.values().map(|log| log.iter().count() as u64).sum()
    }
}

#[tokio::test(start_paused = true)]
async fn many_small_collections_are_forgotten_in_seconds() {
    const MANY: u32 = 5000;
    let app = TestApp::new(App::new("test").actor::<Drawers>()).await;
    let drawers = app.get::<Drawers>("a");
    for n in (0..MANY).step_by(1000) {
        drawers.make(n, n + 1000).await.unwrap();
    }
    drawers.drop_below(MANY).await.unwrap();
    assert_eq!((rows_with(&app, b'G').len(), rows_with(&app, b'I').len()), (MANY as usize, MANY as usize));
    app.advance(super::sweep::SWEEP_PERIOD + Duration::from_secs(5)).await;
    assert_eq!((rows_with(&app, b'G').len(), rows_with(&app, b'I').len()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn few_bytes_are_forgotten_at_a_time() {
    const LARGE: u32 = 300_000;
    let app = TestApp::new(App::new("test").actor::<Drawers>()).await;
    let drawers = app.get::<Drawers>("a");
    for key in 0..20 {
        drawers.fill(key, LARGE).await.unwrap();
    }
    drawers.empty().await.unwrap();
    app.advance(super::sweep::SWEEP_PERIOD + Duration::from_millis(1)).await;
    let left = rows_with(&app, b'I').len();
    assert!((12..20).contains(&left), "{left} items");
    app.advance(Duration::from_secs(1)).await;
    assert_eq!((rows_with(&app, b'G').len(), rows_with(&app, b'I').len()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn who_is_read_all_the_time_forgets_what_no_reader_has() {
    let app = TestApp::new(App::new("test").actor::<Drawers>()).await;
    let drawers = app.get::<Drawers>("a");
    drawers.make(0, 10).await.unwrap();
    let look = |seconds| {
        let drawers = drawers.clone();
        tokio::spawn(async move { drawers.look(seconds).timeout(Duration::from_secs(59)).await })
    };
    let first = look(25);
    tokio::time::sleep(Duration::from_millis(1)).await;
    drawers.drop_below(5).await.unwrap();
    let second = look(50);
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(rows_with(&app, b'I').len(), 10, "somebody reads them");
    assert_eq!(first.await.unwrap(), Ok(10));
    // The second one knew of five when it began.
    app.advance(Duration::from_secs(15)).await;
    assert_eq!((rows_with(&app, b'G').len(), rows_with(&app, b'I').len()), (0, 5));
    assert_eq!(second.await.unwrap(), Ok(5));
}
