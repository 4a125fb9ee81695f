//! One turn through the real hosts, without a disk or a network: call, record, apply, reply.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures_util::future::join_all;
use perennial::prelude::*;
use perennial::testing::TestApp;
use perennial_benches::Tally;

fn turns(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let app = runtime.block_on(TestApp::new(App::new("bench").actor::<Tally>()));
    let mut group = c.benchmark_group("turn");
    let one = app.get::<Tally>("one");
    group.bench_function("write", |b| {
        b.to_async(&runtime).iter(async || one.add(1).await.expect("an answer"));
    });
    group.bench_function("read", |b| b.to_async(&runtime).iter(async || one.sum().await.expect("an answer")));
    group.throughput(Throughput::Elements(64));
    group.bench_function("write/64_at_once", |b| {
        let actors: Vec<_> = (0..64).map(|n| app.get::<Tally>(n.to_string())).collect();
        b.to_async(&runtime).iter(async || {
            let answers = join_all(actors.iter().map(|actor| actor.add(1).into_future())).await;
            assert!(answers.iter().all(Result::is_ok), "every call is answered");
        });
    });
    group.finish();
    runtime.block_on(async { drop(app) });
}

criterion_group!(benches, turns);
criterion_main!(benches);
