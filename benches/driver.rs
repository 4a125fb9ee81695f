//! One round of proposals through three drivers in memory: 64 groups, from propose to applied.

use std::collections::BTreeMap;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use perennial_core::id::{GroupId, LogIndex, MemberId, PartitionId, RecordSeq, Term};
use perennial_core::replication::{
    Driver, DriverConfig, Effects, EpochEvent, FrameWriter, GroupSeed, Outgoing, Proposal, decode_frame,
};

const GROUPS: u32 = 64;
const RECORDS: u32 = 8;
/// Rounds after which the log is truncated, as a checkpoint would.
const TRUNCATE_ROUNDS: u64 = 64;

struct Three {
    drivers: BTreeMap<MemberId, Driver>,
    frames: Vec<(MemberId, MemberId, Bytes)>,
    epochs: BTreeMap<GroupId, Term>,
    seq: u64,
    rounds: u64,
    applied: u64,
    data: Bytes,
}

impl Three {
    fn new() -> Self {
        let members: Vec<_> = (1..=3).map(MemberId).collect();
        let open = |me: &MemberId| {
            let mut driver = Driver::new(DriverConfig::new(*me, 1));
            for n in 0..GROUPS {
                let seed = GroupSeed::empty(GroupId::of(PartitionId(n)), members.clone(), members.clone());
                driver.open_group(seed).expect("a fresh group opens");
            }
            (*me, driver)
        };
        let mut three = Self {
            drivers: members.iter().map(open).collect(),
            frames: Vec::new(),
            epochs: BTreeMap::new(),
            seq: 0,
            rounds: 0,
            applied: 0,
            data: Bytes::from(vec![7; RECORDS as usize * 128]),
        };
        three.settle();
        assert_eq!(three.epochs.len(), GROUPS as usize, "member 1 leads every group");
        three
    }

    fn send(&mut self, from: MemberId, out: Vec<Outgoing>) {
        let mut writers: BTreeMap<MemberId, FrameWriter> = BTreeMap::new();
        for Outgoing { to, group, message } in out {
            let full = writers.entry(to).or_default().push(group, &message);
            self.frames.extend(full.map(|frame| (from, to, frame)));
        }
        for (to, mut writer) in writers {
            self.frames.extend(writer.finish().map(|frame| (from, to, frame)));
        }
    }

    fn turn(&mut self, me: MemberId) {
        let mut fx = Effects::default();
        let driver = self.drivers.get_mut(&me).expect("a member");
        driver.ready(&mut fx);
        driver.persisted(&mut fx);
        for committed in std::mem::take(&mut fx.apply) {
            self.applied += committed.entries.iter().filter(|e| !e.data.is_empty()).count() as u64;
            let last = committed.entries.last().map_or(0, |e| e.index);
            driver.applied(committed.group, LogIndex(last), &mut fx);
        }
        for (group, event) in std::mem::take(&mut fx.events) {
            if let EpochEvent::Opened { term } = event {
                self.epochs.insert(group, term);
            }
        }
        let mut out = std::mem::take(&mut fx.send_early);
        out.append(&mut fx.send);
        self.send(me, out);
    }

    fn settle(&mut self) {
        loop {
            for me in (1..=3).map(MemberId) {
                while self.drivers[&me].has_work() {
                    self.turn(me);
                }
            }
            if self.frames.is_empty() {
                return;
            }
            for (from, to, frame) in std::mem::take(&mut self.frames) {
                let driver = self.drivers.get_mut(&to).expect("a member");
                for (group, message) in decode_frame(&frame).expect("our own frame") {
                    driver.step(from, group, message).expect("a sound message");
                }
            }
        }
    }

    /// One entry for every group, committed by a majority and applied by the leader.
    fn round(&mut self) {
        let leader = self.drivers.get_mut(&MemberId(1)).expect("a member");
        for (group, epoch) in &self.epochs {
            let (first_seq, data) = (RecordSeq(self.seq), self.data.clone());
            leader.propose(Proposal { group: *group, epoch: *epoch, first_seq, records: RECORDS, data });
        }
        self.seq += u64::from(RECORDS);
        self.settle();
        self.rounds += 1;
        if self.rounds.is_multiple_of(TRUNCATE_ROUNDS) {
            for driver in self.drivers.values_mut() {
                driver.tick();
                for group in self.epochs.keys() {
                    let _ = driver.truncate(*group, LogIndex(u64::MAX), false);
                }
            }
        }
    }
}

fn rounds(c: &mut Criterion) {
    let mut bench = c.benchmark_group("driver");
    bench.throughput(Throughput::Elements(u64::from(GROUPS * RECORDS)));
    bench.bench_function("round of 64 groups, 8 records each, three replicas", |b| {
        let mut three = Three::new();
        b.iter_batched(|| (), |()| three.round(), BatchSize::SmallInput);
        assert!(three.applied >= three.rounds * u64::from(GROUPS));
    });
    bench.finish();
}

criterion_group!(benches, rounds);
criterion_main!(benches);
