//! Actors that come into memory, turn by turn, because there is room for few of them.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures_util::future::join_all;
use perennial::limits::ACTIVATION_BYTES;
use perennial::prelude::*;
use perennial::testing::TestApp;
use perennial_benches::Tally;

/// Actors that are called one after the other; a tenth of them fits.
const ACTORS: u64 = 10_000;

fn activations(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let kinds = App::new("bench").actor::<Tally>();
    let app = runtime.block_on(TestApp::with_memory(kinds, ACTORS / 10 * ACTIVATION_BYTES));
    let actors: Vec<_> = (0..ACTORS).map(|n| app.get::<Tally>(n.to_string())).collect();
    runtime.block_on(async {
        for actor in &actors {
            actor.add(1).await.expect("an answer");
        }
    });
    let mut group = c.benchmark_group("activation");
    group.throughput(Throughput::Elements(64));
    let mut next = (0..actors.len()).step_by(64).cycle();
    group.bench_function("read/64_at_once", |b| {
        b.to_async(&runtime).iter(|| {
            let from = next.next().expect("it goes round");
            let batch = actors[from..actors.len().min(from + 64)].iter();
            let answers = join_all(batch.map(|actor| actor.sum().into_future()));
            async { assert!(answers.await.iter().all(Result::is_ok), "every call is answered") }
        });
    });
    group.finish();
    assert!(app.activations() > ACTORS, "they have left memory");
    runtime.block_on(async { drop(app) });
}

criterion_group!(benches, activations);
criterion_main!(benches);
