//! How long a placement and the look-up of a partition take.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use perennial_core::hash::{PartitionCount, partition_of};
use perennial_core::id::{ActorId, MemberId, NodeId};
use perennial_core::membership::{Member, MemberSpec, Members};
use perennial_core::ring::{RingConfig, place};

fn members(count: u64) -> Members {
    let member = |n: u64| {
        let node = NodeId::new(&format!("n{n}")).expect("a DNS label");
        let zone = Some(format!("z{}", n % 3));
        Member::new(MemberId(n), MemberSpec { zone, ..MemberSpec::new(node, "host:7000") })
    };
    Members::new((1..=count).map(member)).expect("numbers and names are distinct")
}

fn placement(c: &mut Criterion) {
    for (count, partitions) in [(3, 64), (30, 64), (30, 1024)] {
        let partitions = PartitionCount::try_from(partitions).expect("a power of two");
        let (members, config) = (members(count), RingConfig::new(partitions, 3));
        c.bench_function(&format!("ring/place/{count}_members_{partitions}_partitions"), |b| {
            b.iter(|| place(black_box(&members), &config));
        });
    }
}

fn lookup(c: &mut Criterion) {
    for key in ["alice", "0193e7a4-3c1f-7b52-9d4e-8a6f1c2b3d4e"] {
        let id = ActorId::new("Cart", key).expect("a valid name");
        c.bench_function(&format!("ring/partition_of/{}_bytes", key.len()), |b| {
            b.iter(|| partition_of(black_box(&id), PartitionCount::DEFAULT));
        });
    }
}

criterion_group!(benches, placement, lookup);
criterion_main!(benches);
