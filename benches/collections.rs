//! Collections beside plain turns: appending to a log, and waking an actor, with few and with many items. The hosts
//! are the real ones and the rows are on the disk; the log commits at once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures_util::future::join_all;
use perennial::prelude::*;
use perennial::replica::{BufferedRows, FjallRows, RowStore};
use perennial::testing::TestApp;
use perennial::{Log, Map};

/// Rooms, by the number of their messages.
const SIZES: [(&str, u64); 2] = [("10", 10), ("1000000", 1_000_000)];
/// Messages put in with one turn to fill a room.
const FILL: u64 = 2000;
/// Memory of the row store, in bytes.
const ROW_BYTES: u64 = 64 << 20;
/// Calls at once.
const AT_ONCE: u64 = 64;

/// A room with messages, a map of who spoke last, and a sum for plain turns.
#[data]
#[derive(Default)]
struct Room {
    messages: Log<String>,
    spoke: Map<String, u64>,
    sum: u64,
}

#[actor]
impl Room {
    /// Puts many messages in.
    pub fn fill(&mut self, count: u64) -> u64 {
        for _ in 0..count {
            self.messages.push(MESSAGE.to_owned());
        }
        self.messages.len()
    }

    /// Adds a message.
    pub fn say(&mut self, text: String) -> u64 {
        self.messages.push(text)
    }

    /// Notes who spoke last.
    pub fn speaks(&mut self, who: String) {
        self.spoke.insert(who, self.messages.next_index());
    }

    /// A turn that changes the state alone.
    pub fn add(&mut self, text: String) -> u64 {
        self.sum += text.len() as u64;
        self.sum
    }

    /// The last messages.
    pub fn last(&self, count: u64) -> Vec<String> {
        self.messages.last(count)
    }
}

const MESSAGE: &str = "a message of the length that messages in rooms usually have, a line or so";

fn app() -> App {
    App::new("bench").actor::<Room>()
}

fn collections(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let rows = FjallRows::open(folder.path(), ROW_BYTES, ROW_BYTES).expect("rows can be opened");
    let rows: Arc<dyn RowStore> = Arc::new(BufferedRows::new(rows));
    let bench = runtime.block_on(TestApp::on(app(), rows.clone()));
    for (name, items) in SIZES {
        runtime.block_on(async {
            let room = bench.get::<Room>(name);
            let mut len = 0;
            while len < items {
                len = room.fill(FILL.min(items - len)).await.expect("a room can be filled");
            }
        });
    }
    rows.sync().expect("rows can be flushed");

    let mut group = c.benchmark_group("collections");
    group.throughput(Throughput::Elements(AT_ONCE));
    let plain = bench.get::<Room>("plain");
    group.bench_function("plain turn", |b| {
        b.to_async(&runtime).iter(async || {
            let calls = (0..AT_ONCE).map(|_| plain.add(MESSAGE.into()).into_future());
            assert!(join_all(calls).await.iter().all(Result::is_ok), "every call is answered");
        });
    });
    for (name, _) in SIZES {
        let room = bench.get::<Room>(name);
        group.bench_function(format!("append/{name}"), |b| {
            b.to_async(&runtime).iter(async || {
                let calls = (0..AT_ONCE).map(|_| room.say(MESSAGE.into()).into_future());
                assert!(join_all(calls).await.iter().all(Result::is_ok), "every call is answered");
            });
        });
    }
    let room = bench.get::<Room>("map");
    group.bench_function("insert", |b| {
        b.to_async(&runtime).iter(async || {
            let calls = (0..AT_ONCE).map(|n| room.speaks(format!("somebody {n}")).into_future());
            assert!(join_all(calls).await.iter().all(Result::is_ok), "every call is answered");
        });
    });
    group.throughput(Throughput::Elements(1));
    for (name, _) in SIZES {
        let room = bench.get::<Room>(name);
        group.bench_function(format!("last 50/{name}"), |b| {
            b.to_async(&runtime).iter(async || room.last(50).await.expect("an answer"));
        });
    }
    runtime.block_on(async { drop(bench) });
    for (name, _) in SIZES {
        group.bench_function(format!("wake/{name}"), |b| {
            b.iter_custom(|times| {
                let mut took = Duration::ZERO;
                for _ in 0..times {
                    runtime.block_on(async {
                        let app = TestApp::on(app(), rows.clone()).await;
                        // Another actor takes the first call's costs.
                        app.get::<Room>("other").last(1).await.expect("an answer");
                        let start = Instant::now();
                        let last = app.get::<Room>(name).last(1).await.expect("an answer");
                        took += start.elapsed();
                        assert_eq!(last.len(), 1);
                    });
                }
                took
            });
        });
    }
    group.finish();
}

criterion_group!(benches, collections);
criterion_main!(benches);
