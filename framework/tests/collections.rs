//! Collections inside an actor's state: `Log` and `Map`.

#![expect(missing_docs, reason = "actors of this test")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::join_all;
use perennial::limits::{ITEM_BYTES_MAX, RECORD_BYTES_MAX};
use perennial::prelude::*;
use perennial::testing::{TestApp, TestCluster};
use perennial::{Log, Map};

/// A log as it is.
type Lines = Vec<(u64, String)>;
/// A map as it is.
type Entries = Vec<(String, u64)>;

/// A line of a log.
#[data]
#[derive(Eq)]
pub struct Line {
    text: String,
}

/// Keeps everything in collections.
#[data]
#[derive(Default)]
pub struct Shelf {
    log: Log<Line>,
    map: Map<String, u64>,
    /// Collections inside of other values.
    drawers: BTreeMap<String, Drawer>,
}

/// A part of a shelf.
#[data]
#[derive(Default)]
pub struct Drawer {
    things: Log<u64>,
    by_number: Option<Map<(u32, i8), String>>,
}

#[data]
pub enum ShelfError {
    Refused,
}

#[actor]
impl Shelf {
    pub fn push(&mut self, text: String) -> u64 {
        self.log.push(Line { text })
    }
    pub fn push_many(&mut self, from: u64, count: u64) -> u64 {
        for n in from..from + count {
            self.log.push(Line { text: n.to_string() });
        }
        self.log.len()
    }
    pub fn set(&mut self, key: String, value: u64) -> Option<u64> {
        self.map.insert(key, value)
    }
    pub fn remove(&mut self, key: String) -> Option<u64> {
        self.map.remove(&key)
    }
    /// Changes everything, sees its changes, and fails.
    pub fn fail(&mut self, how: String) -> Result<(), ShelfError> {
        let before = (self.log.len(), self.map.len());
        self.log.push(Line { text: "undone".into() });
        self.map.insert("undone".into(), 1);
        self.map.remove("a");
        self.log.truncate_front(1);
        assert_eq!(self.log.last(1), [Line { text: "undone".into() }]);
        assert_eq!((self.map.get("undone"), self.map.get("a")), (Some(1), None));
        assert!(self.log.get(0).is_none() && self.log.len() == before.0);
        match how.as_str() {
            "error" => Err(ShelfError::Refused),
            "panic" => panic!("on purpose"),
            "large item" => {
                self.log.push(Line { text: "x".repeat(ITEM_BYTES_MAX) });
                Ok(())
            }
            "large record" => {
                for _ in 0..3 {
                    self.log.push(Line { text: "x".repeat(RECORD_BYTES_MAX / 3) });
                }
                Ok(())
            }
            "large key" => {
                self.map.insert("x".repeat(2000), 1);
                Ok(())
            }
            "kept clone" => {
                self.log = self.log.clone();
                Ok(())
            }
            "written clone" => {
                let mut copy = self.log.clone();
                copy.push(Line { text: "copy".into() });
                Ok(())
            }
            other => unreachable!("{other}"),
        }
    }
    pub fn truncate(&mut self, before: u64) -> u64 {
        self.log.truncate_front(before);
        self.log.first_index()
    }
    pub fn clear(&mut self) {
        self.log.clear();
        self.map.clear();
    }
    /// Moves the log away and back, and drops the drawers.
    pub fn tidy(&mut self) -> u64 {
        let log = std::mem::take(&mut self.log);
        let first = log.get(log.first_index()).map(|line| line.text);
        self.log = log;
        self.drawers.clear();
        first.and_then(|text| text.parse().ok()).unwrap_or(0)
    }
    /// Fills a drawer.
    pub fn put(&mut self, drawer: String, thing: u64) -> u64 {
        let drawer = self.drawers.entry(drawer).or_default();
        let map = drawer.by_number.get_or_insert_default();
        map.insert((thing as u32, -(thing as i8)), thing.to_string());
        drawer.things.push(thing)
    }
    /// Everything in the drawers.
    pub fn drawers(&self) -> Vec<(String, Vec<u64>, Vec<String>)> {
        let things = |drawer: &Drawer| drawer.things.iter().map(|(_, thing)| thing).collect();
        let names = |drawer: &Drawer| {
            drawer.by_number.iter().flat_map(Map::iter).map(|(_, name)| name).collect::<Vec<_>>()
        };
        self.drawers.iter().map(|(name, drawer)| (name.clone(), things(drawer), names(drawer))).collect()
    }
    /// Log and map as they are.
    pub fn all(&self) -> (Lines, Entries) {
        assert_eq!(self.log.iter().count() as u64, self.log.len());
        assert_eq!(self.map.iter().count() as u64, self.map.len());
        (self.log.iter().map(|(n, line)| (n, line.text)).collect(), self.map.iter().collect())
    }
    /// The numbers of items of a range of keys.
    pub fn between(&self, from: String, to: String) -> Vec<u64> {
        self.map
            .range::<str>((std::ops::Bound::Excluded(&*from), std::ops::Bound::Included(&*to)))
            .map(|(_, n)| n)
            .collect()
    }
    /// A page of the log.
    pub fn page(&self, from: u64, count: u32) -> Vec<String> {
        self.log.range(from..).take(count as usize).map(|(_, line)| line.text).collect()
    }
    /// The same twice, while another actor changes this one in between.
    pub async fn twice(&self, ctx: &Ctx<Self>) -> Reply<(Entries, Entries), String> {
        let before = self.map.iter().collect();
        let latch = ctx.get::<Latch>(ctx.key());
        HALFWAY.store(true, Ordering::Relaxed);
        while !latch.is_open().await? {
            tokio::task::yield_now().await;
        }
        assert_eq!(self.log.iter().count() as u64, self.log.len());
        Ok((before, self.map.iter().collect()))
    }
    /// Writes, waits at the gate, and writes again or fails.
    pub async fn slowly(&mut self, ctx: &mut Ctx<Self>, text: String, fail: bool) -> Reply<u64, ShelfError> {
        self.log.push(Line { text: text.clone() });
        self.map.insert(text.clone(), 1);
        let me = ctx.key().to_owned();
        let passed = ctx.get::<Gate>(&me).pass().await;
        passed.map_app(|_| ShelfError::Refused)?;
        assert_eq!(self.map.get(&text), Some(1));
        self.map.insert(text, 2);
        if fail { Err(ShelfError::Refused.into()) } else { Ok(self.log.len()) }
    }
}

/// A shelf is looked at for the second time when its latch is open.
static HALFWAY: AtomicBool = AtomicBool::new(false);

/// Holds those who pass until it is opened.
#[data]
#[derive(Default)]
pub struct Gate {
    open: bool,
    waiting: bool,
}

#[actor]
impl Gate {
    pub async fn pass(&mut self, ctx: &mut Ctx<Self>) -> Reply<(), String> {
        let key = ctx.key().to_owned();
        for _ in 0..10_000 {
            if ctx.get::<Latch>(&key).look().await? {
                return Ok(());
            }
            tokio::task::yield_now().await;
        }
        Err("it stays shut".to_owned().into())
    }
}

/// Says whether a gate is open, and whether somebody asked.
#[data]
#[derive(Default)]
pub struct Latch {
    open: bool,
    asked: bool,
}

#[actor]
impl Latch {
    pub fn open(&mut self, open: bool) {
        self.open = open;
        self.asked = false;
    }
    pub fn look(&mut self) -> bool {
        self.asked = true;
        self.open
    }
    pub fn asked(&self) -> bool {
        self.asked
    }
    pub fn is_open(&self) -> bool {
        self.open
    }
}

fn app() -> App {
    App::new("shelves").actor::<Shelf>().actor::<Gate>().actor::<Latch>()
}

fn lines(items: &[(u64, &str)]) -> Lines {
    items.iter().map(|&(n, text)| (n, text.to_owned())).collect()
}

fn entries(items: &[(&str, u64)]) -> Entries {
    items.iter().map(|&(key, n)| (key.to_owned(), n)).collect()
}

#[tokio::test(start_paused = true)]
async fn items_are_kept_in_order_and_found_by_key() {
    let app = TestApp::new(app()).await;
    let shelf = app.get::<Shelf>("a");
    assert_eq!(shelf.push("one".into()).await, Ok(0));
    assert_eq!(shelf.push("two".into()).await, Ok(1));
    assert_eq!(shelf.set("b".into(), 2).await, Ok(None));
    assert_eq!(shelf.set("a".into(), 1).await, Ok(None));
    assert_eq!(shelf.set("b".into(), 3).await, Ok(Some(2)));
    assert_eq!(shelf.set("c".into(), 4).await, Ok(None));
    assert_eq!(shelf.remove("z".into()).await, Ok(None));
    assert_eq!(
        shelf.all().await,
        Ok((lines(&[(0, "one"), (1, "two")]), entries(&[("a", 1), ("b", 3), ("c", 4)])))
    );
    assert_eq!(shelf.between("a".into(), "b".into()).await, Ok(vec![3]));
    assert_eq!(shelf.remove("a".into()).await, Ok(Some(1)));
    assert_eq!(shelf.all().await.unwrap().1, entries(&[("b", 3), ("c", 4)]));
    assert_eq!(app.get::<Shelf>("b").all().await, Ok((Vec::new(), Vec::new())), "another actor has its own");
}

#[tokio::test(start_paused = true)]
async fn a_turn_that_fails_leaves_the_items_as_they_were() {
    let app = TestApp::new(app()).await;
    let shelf = app.get::<Shelf>("a");
    shelf.push("one".into()).await.unwrap();
    shelf.set("a".into(), 1).await.unwrap();
    let before = shelf.all().await.unwrap();
    assert_eq!(shelf.fail("error".into()).await, Err(CallError::App(ShelfError::Refused)));
    assert_eq!(shelf.all().await.unwrap(), before);
    for (how, code) in [
        ("panic", "panicked"),
        ("large item", "too_large"),
        ("large record", "too_large"),
        ("large key", "too_large"),
        ("kept clone", "unreadable"),
        ("written clone", "panicked"),
    ] {
        let Err(CallError::Fault(fault)) = shelf.fail(how.into()).await else { panic!("{how} is refused") };
        assert_eq!(fault.code(), code, "{how}: {fault}");
        assert!(!fault.retryable() || code == "panicked", "{fault}");
        assert_eq!(shelf.all().await.unwrap(), before, "{how}");
    }
    let Err(CallError::Fault(large)) = shelf.fail("large item".into()).await else { panic!("it is refused") };
    assert!(large.to_string().starts_with("an item of Shelf/a has"), "{large}");
    assert_eq!(shelf.push("two".into()).await, Ok(1));
}

#[tokio::test(start_paused = true)]
async fn a_log_is_forgotten_at_its_front() {
    let app = TestApp::new(app()).await;
    let shelf = app.get::<Shelf>("a");
    assert_eq!(shelf.push_many(0, 1000).await, Ok(1000));
    assert_eq!(shelf.truncate(3).await, Ok(3));
    assert_eq!(shelf.page(0, 2).await, Ok(vec!["3".to_owned(), "4".to_owned()]));
    assert_eq!(shelf.truncate(900).await, Ok(900));
    assert_eq!(shelf.truncate(5).await, Ok(900), "it does not come back");
    assert_eq!(shelf.page(0, 1).await, Ok(vec!["900".to_owned()]));
    assert_eq!(shelf.page(998, 10).await, Ok(vec!["998".to_owned(), "999".to_owned()]));
    assert_eq!(shelf.all().await.unwrap().0.len(), 100);
    app.advance(std::time::Duration::from_secs(60)).await;
    assert_eq!(shelf.all().await.unwrap().0.len(), 100, "what is dropped is gone, and nothing else");
    assert_eq!(shelf.push("1000".into()).await, Ok(1000));
    shelf.clear().await.unwrap();
    assert_eq!(shelf.all().await, Ok((Vec::new(), Vec::new())));
    assert_eq!(shelf.push("next".into()).await, Ok(1001));
    app.advance(std::time::Duration::from_secs(60)).await;
    assert_eq!(shelf.all().await.unwrap().0, lines(&[(1001, "next")]));
}

#[tokio::test(start_paused = true)]
async fn collections_stand_anywhere_in_the_state() {
    let app = TestApp::new(app()).await;
    let shelf = app.get::<Shelf>("a");
    shelf.push("7".into()).await.unwrap();
    for (drawer, thing) in [("left", 1), ("right", 9), ("left", 2), ("left", 3)] {
        shelf.put(drawer.into(), thing).await.unwrap();
    }
    let texts = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
    let left = ("left".to_owned(), vec![1, 2, 3], texts(&["1", "2", "3"]));
    let right = ("right".to_owned(), vec![9], texts(&["9"]));
    assert_eq!(shelf.drawers().await, Ok(vec![left, right]));
    assert_eq!(shelf.tidy().await, Ok(7), "a log that was moved away and back has its items");
    assert_eq!(shelf.drawers().await, Ok(Vec::new()));
    shelf.put("left".into(), 5).await.unwrap();
    let left = ("left".to_owned(), vec![5], texts(&["5"]));
    assert_eq!(shelf.drawers().await, Ok(vec![left]), "one of the same name begins anew");
    assert_eq!(shelf.page(0, 9).await, Ok(texts(&["7"])));
}

/// Waits until somebody stands before the gate.
async fn at_the_gate(app: &impl Actors, key: &str) {
    while !app.get::<Latch>(key).asked().await.unwrap() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_read_that_takes_long_sees_the_items_of_its_beginning() {
    let app = TestApp::new(app()).await;
    let shelf = app.get::<Shelf>("a");
    for (key, n) in [("a", 1), ("b", 2), ("c", 3)] {
        shelf.set(key.into(), n).await.unwrap();
    }
    shelf.push_many(0, 100).await.unwrap();
    let reading = tokio::spawn(shelf.twice().into_future());
    while !HALFWAY.load(Ordering::Relaxed) {
        assert!(!reading.is_finished());
        tokio::task::yield_now().await;
    }
    shelf.set("a".into(), 10).await.unwrap();
    shelf.set("d".into(), 4).await.unwrap();
    shelf.remove("b".into()).await.unwrap();
    shelf.truncate(50).await.unwrap();
    shelf.truncate(90).await.unwrap();
    shelf.clear().await.unwrap();
    shelf.set("c".into(), 30).await.unwrap();
    let now = shelf.all().await.unwrap();
    assert_eq!(now.1, entries(&[("c", 30)]));
    app.get::<Latch>("a").open(true).await.unwrap();
    let (before, after) = reading.await.unwrap().unwrap();
    assert_eq!(before, entries(&[("a", 1), ("b", 2), ("c", 3)]));
    assert_eq!(after, before);
}

#[tokio::test(start_paused = true)]
async fn a_write_that_takes_long_is_not_seen_before_its_end() {
    let app = TestApp::new(app()).await;
    let shelf = app.get::<Shelf>("a");
    shelf.push("one".into()).await.unwrap();
    for (fail, expected) in [(true, Err(CallError::App(ShelfError::Refused))), (false, Ok(2))] {
        app.get::<Latch>("a").open(false).await.unwrap();
        let writing = tokio::spawn(shelf.slowly("slow".into(), fail).into_future());
        at_the_gate(&app, "a").await;
        assert_eq!(shelf.all().await, Ok((lines(&[(0, "one")]), Vec::new())));
        let waits = tokio::spawn(shelf.set("later".into(), 7).into_future());
        app.get::<Latch>("a").open(true).await.unwrap();
        assert_eq!(writing.await.unwrap(), expected);
        waits.await.unwrap().unwrap();
        shelf.remove("later".into()).await.unwrap();
    }
    assert_eq!(shelf.all().await, Ok((lines(&[(0, "one"), (1, "slow")]), entries(&[("slow", 2)]))));
}

#[tokio::test]
async fn items_survive_their_owner_once_each() {
    let cluster = TestCluster::start(3, app()).await;
    let shelf = cluster.get::<Shelf>("a");
    let mut model = BTreeMap::new();
    for round in 0..3_u64 {
        let pushes = (0..40).map(|n| shelf.push(format!("{round}.{n}")).into_future());
        assert!(join_all(pushes).await.iter().all(Result::is_ok));
        for n in 0..10 {
            shelf.set(format!("k{}", n * (round + 1)), round).await.unwrap();
            model.insert(format!("k{}", n * (round + 1)), round);
        }
        let owner = cluster.owner::<Shelf>("a").await;
        cluster.kill(owner);
        let (log, map) = shelf.all().await.unwrap();
        assert!(log.iter().enumerate().all(|(at, (index, _))| at as u64 == *index));
        let mut texts: Vec<_> = log.into_iter().map(|(_, text)| text).collect();
        texts.sort();
        let mut wanted: Vec<_> =
            (0..=round).flat_map(|round| (0..40).map(move |n| format!("{round}.{n}"))).collect();
        wanted.sort();
        assert_eq!(texts, wanted, "each once");
        assert_eq!(map, model.clone().into_iter().collect::<Vec<_>>());
        cluster.restart(owner).await;
    }
}

/// Outside of an actor, a state can be tried by itself.
#[test]
fn a_state_made_by_default_keeps_its_items_in_memory() {
    let mut shelf = Shelf::default();
    assert_eq!((shelf.push("one".into()), shelf.push("two".into())), (0, 1));
    assert_eq!(shelf.set("a".into(), 1), None);
    assert_eq!(shelf.all(), (lines(&[(0, "one"), (1, "two")]), entries(&[("a", 1)])));
    shelf.truncate(1);
    shelf.map.clear();
    assert_eq!(shelf.all(), (lines(&[(1, "two")]), Vec::new()));
    assert_eq!(format!("{:?}", shelf.log), "Log { first: 1, len: 1 }");
}

/// Would let a collection leave its actor.
#[data]
#[derive(Default)]
pub struct Leaky {
    log: Log<u64>,
}

#[actor]
impl Leaky {
    pub fn all(&self) -> Self {
        self.clone()
    }
}

#[test]
#[should_panic(expected = "Leaky.all takes, returns or publishes a collection")]
fn a_collection_cannot_leave_its_actor() {
    let _ = App::new("leaky").actor::<Leaky>();
}
