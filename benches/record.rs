//! A batch of records: encoded, decoded, and applied.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use perennial_core::hash::PartitionCount;
use perennial_core::id::{ActorId, LogIndex, RecordSeq, RequestId, SessionId, Term};
use perennial_core::partition::Partition;
use perennial_core::partition::record::{Batch, Cause, Keep, Record, Turn};
use perennial_core::time::Millis;

/// Records of a batch: about what 512 calls in flight make of 64 partitions, and a hot actor's.
const SIZES: [u32; 2] = [8, 512];

/// Each session acknowledges its call before the last.
fn batch(records: u32, first: u64) -> Batch {
    let turn = |n: u32| {
        let seq = first + u64::from(n);
        Record::Turn(Box::new(Turn {
            actor: ActorId::new("Cart", &format!("customer-{}", n % 64)).expect("a valid name"),
            cause: Cause::Call {
                request: RequestId { session: SessionId(u128::from(n % 16)), seq },
                ack_below: seq.saturating_sub(16),
                keep: Keep::UntilAcknowledged,
                reply: Bytes::from_static(b"reply of a call"),
            },
            state: Some(Bytes::from(vec![7; 200])),
            sends: Vec::new(),
            reminders: Vec::new(),
            events: Vec::new(),
            items: Vec::new(),
        }))
    };
    Batch {
        epoch: Term(1),
        first_seq: RecordSeq(first),
        time: Millis(1),
        records: (0..records).map(turn).collect(),
    }
}

fn codec(c: &mut Criterion) {
    let mut group = c.benchmark_group("record");
    for records in SIZES {
        let batch = batch(records, 0);
        let bytes = postcard::to_stdvec(&batch).expect("a batch encodes");
        group.throughput(Throughput::Elements(u64::from(records)));
        group.bench_function(format!("encode/{records}"), |b| {
            b.iter(|| postcard::to_stdvec(black_box(&batch)).expect("a batch encodes"));
        });
        group.bench_function(format!("decode/{records}"), |b| {
            b.iter(|| postcard::from_bytes::<Batch>(black_box(&bytes)).expect("what was encoded decodes"));
        });
    }
    group.finish();
}

fn apply(c: &mut Criterion) {
    let mut group = c.benchmark_group("record");
    for records in SIZES {
        let (mut partition, mut first) = (Partition::new(PartitionCount::DEFAULT), 0);
        group.throughput(Throughput::Elements(u64::from(records)));
        group.bench_function(format!("apply/{records}"), |b| {
            let next = || {
                let next = batch(records, first);
                first += u64::from(records);
                next
            };
            b.iter_batched(
                next,
                |batch| {
                    let mut rows = Vec::new();
                    partition
                        .apply_batch(Term(1), LogIndex(1), &batch, &mut rows)
                        .expect("batches come in sequence");
                    rows
                },
                // One at a time: they must be applied in the order in which they were made.
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, codec, apply);
criterion_main!(benches);
