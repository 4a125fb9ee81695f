//! What stands in the log, in rows and in snapshots.

use std::collections::BTreeMap;

use bytes::Bytes;
use perennial_core::hash::PartitionCount;
use perennial_core::id::{ActorId, LogIndex, PartitionId, RecordSeq, RequestId, SessionId, Term};
use perennial_core::partition::apply::read_meta;
use perennial_core::partition::dead::DeadTaken;
use perennial_core::partition::record::{
    Batch, Cause, CollectionId, ItemChange, Keep, Message, Missed, Next, Record, ReminderChange, ReminderRow,
    Repeat, Schedule, Turn,
};
use perennial_core::partition::rows as keys;
use perennial_core::partition::{DeadLetter, Origin, OutboxItem, Partition};
use perennial_core::replication::StateMachine;
use perennial_core::time::Millis;

use super::survives;
use crate::replica::fuzz as replica;

const COLLECTION: CollectionId = CollectionId { term: Term(2), number: 1 };

fn actor() -> ActorId {
    "Cart/alice".parse().expect("a valid name")
}

fn message() -> Message {
    Message { target: actor(), method: "add".into(), args: Bytes::from_static(b"args") }
}

fn died(origin: Origin) -> Record {
    let (code, why) = ("app".to_owned(), "refused".to_owned());
    Record::Died(Box::new(DeadLetter { from: actor(), origin, message: message(), code, why, tries: 1 }))
}

fn repeat() -> Repeat {
    let schedule = Schedule::Cron { text: "0 9 * * *".into(), zone: "UTC".into() };
    Repeat { schedule, missed: Missed::All { at_most: 3 } }
}

/// One batch with every kind of record.
fn batch() -> Batch {
    let request = RequestId { session: SessionId(7), seq: 3 };
    let reply = Bytes::from_static(b"reply");
    let key = Bytes::from_static(b"key");
    let turn = |cause| {
        Record::Turn(Box::new(Turn {
            actor: actor(),
            cause,
            state: Some(Bytes::from_static(b"state")),
            sends: vec![message()],
            reminders: vec![
                ReminderChange::Set {
                    name: "tick".into(),
                    due: Millis(9),
                    message: message(),
                    replaces: Some(Millis(8)),
                    repeat: Some(repeat()),
                },
                ReminderChange::Cancel { name: "tock".into(), replaces: None },
            ],
            events: vec![Bytes::from_static(b"event")],
            items: vec![
                ItemChange::Put { collection: COLLECTION, key: key.clone(), value: key.clone() },
                ItemChange::Delete { collection: COLLECTION, key: key.clone() },
                ItemChange::Drop { collection: COLLECTION, below: key.clone() },
            ],
        }))
    };
    let keep = Keep::UntilAcknowledged;
    Batch {
        epoch: Term(2),
        first_seq: RecordSeq(0),
        time: Millis(1000),
        records: vec![
            turn(Cause::Call { request, ack_below: 1, keep, reply: reply.clone() }),
            turn(Cause::Call { request, ack_below: 0, keep: Keep::Until(Millis(5)), reply }),
            turn(Cause::Message { from: PartitionId(1), seq: 1 }),
            turn(Cause::Reminder { name: "tick".into(), due: Millis(9) }),
            turn(Cause::ReminderPassed { name: "tick".into(), due: Millis(9) }),
            turn(Cause::Timer),
            turn(Cause::Operator),
            Record::OutboxAcked { to: PartitionId(1), upto: 1 },
            Record::KeysForgotten(vec![(Millis(5), request)]),
            Record::SessionsForgotten(vec![SessionId(8)]),
            Record::Schema { fingerprint: 5, schema: Bytes::from_static(b"schema") },
            Record::EventsTrimmed { actor: actor(), index: LogIndex(4), n: 1 },
            died(Origin::Message { from: PartitionId(1), seq: 2 }),
            died(Origin::Reminder {
                name: "tock".into(),
                due: Millis(9),
                next: Some(Next { due: Millis(10), repeat: repeat() }),
            }),
            Record::DeadTaken(Box::new(DeadTaken {
                request,
                ack_below: 0,
                keep,
                reply: Bytes::from_static(b"reply"),
                number: 1,
                again: Some(OutboxItem { from: actor(), message: message() }),
            })),
            Record::ItemsForgotten {
                actor: actor(),
                collection: COLLECTION,
                upto: Some(key.clone()),
                dropped: Some(key.clone()),
            },
        ],
    }
}

fn partition() -> Partition {
    Partition::new(PartitionCount::try_from(4).expect("a power of two"))
}

/// Applies entries to a replica and, from a checkpoint half-way, to another one.
fn apply(mut machine: Partition, term: Term, entry: &[u8]) {
    let mut rows = Vec::new();
    machine.apply(term, LogIndex(1), entry, &mut rows);
    let mut other = partition();
    other.restore(&machine.checkpoint()).expect("a checkpoint can be restored");
    assert_eq!(other, machine, "a checkpoint lost something");
    let (mut rows, mut others) = (Vec::new(), Vec::new());
    machine.apply(term, LogIndex(2), entry, &mut rows);
    other.apply(term, LogIndex(2), entry, &mut others);
    assert_eq!((&other, &others), (&machine, &rows), "replicas differ");
    assert!(rows.is_empty() || machine.next_record() == RecordSeq(0), "a batch was applied twice");
}

/// An entry of a partition.
pub(super) fn batches(bytes: &[u8]) {
    // The epoch in the entry decides whether it is taken at all: half of the time it is the right one.
    let term = postcard::take_from_bytes::<Batch>(bytes).map_or(Term(2), |(batch, _)| batch.epoch);
    if let Ok((batch, [])) = postcard::take_from_bytes::<Batch>(bytes) {
        survives(&batch);
    }
    apply(partition(), term, bytes);
    apply(partition(), Term(2), bytes);
}

pub(super) fn batch_seeds() -> Vec<Vec<u8>> {
    let encode = |batch: &Batch| postcard::to_stdvec(batch).expect("a batch encodes");
    let whole = batch();
    let single = |record: &Record| encode(&Batch { records: vec![record.clone()], ..whole.clone() });
    whole.records.iter().map(single).chain([encode(&whole)]).collect()
}

/// The meta state of a checkpoint or snapshot.
pub(super) fn metas(bytes: &[u8]) {
    if let Some(meta) = read_meta(bytes) {
        survives(&meta);
        let ours: BTreeMap<_, _> = meta.lines().collect();
        assert!(ours.values().all(|line| line.acked < line.last), "a line without messages is named");
        let _ = meta.dedup().silent(Millis(u64::MAX), 10);
        for epoch in [Term(2), Term(u64::MAX)] {
            let entry = Batch { epoch, first_seq: meta.next_seq(epoch), ..batch() };
            let entry = postcard::to_stdvec(&entry).expect("a batch encodes");
            let (mut machine, mut rows) = (meta.clone(), Vec::new());
            machine.apply(epoch, LogIndex(7), &entry, &mut rows);
        }
    }
    crate::node::fuzz::restore_system(bytes);
}

pub(super) fn meta_seeds() -> Vec<Vec<u8>> {
    let mut machine = partition();
    let empty = machine.checkpoint();
    let entry = postcard::to_stdvec(&batch()).expect("a batch encodes");
    machine.apply(Term(2), LogIndex(1), &entry, &mut Vec::new());
    vec![empty, machine.checkpoint(), crate::node::fuzz::system_seed()]
}

/// Keys of rows, and rows on their way in a snapshot.
pub(super) fn rows(bytes: &[u8]) {
    if let Some(actor) = keys::state_actor(bytes) {
        assert_eq!(keys::state(&actor), bytes);
    }
    if let Some((until, request)) = keys::read_kept_until(bytes) {
        assert_eq!(keys::kept_until(until, request), bytes);
    }
    if let Some((due, actor, name)) = keys::read_reminder_due(bytes) {
        assert_eq!(keys::reminder_due(due, &actor, &name), bytes);
    }
    if let Some((actor, name)) = keys::read_reminder_name(bytes) {
        assert_eq!(keys::reminder_name(&actor, &name), bytes);
    }
    if let Ok((reminder, _)) = postcard::take_from_bytes::<ReminderRow>(bytes) {
        survives(&reminder);
        if let Some(repeat) = &reminder.repeat {
            let _ = crate::when::next(repeat, Millis(9), Millis(1_700_000_000_000));
        }
    }
    let _ = (keys::read_event(bytes), keys::event_actor(bytes));
    let _ = (keys::read_event_value(bytes), keys::read_position(bytes));
    if let Some((actor, collection, key)) = keys::read_item(bytes) {
        assert_eq!(keys::item(&actor, collection, key), bytes);
    }
    if let Some((actor, collection, key)) = keys::read_dropped(bytes) {
        assert_eq!(keys::dropped(&actor, collection, key), bytes);
    }
    replica::read_rows(bytes);
}

pub(super) fn row_seeds() -> Vec<Vec<u8>> {
    let request = RequestId { session: SessionId(7), seq: 3 };
    vec![
        keys::state(&actor()),
        keys::kept_until(Millis(5), request),
        keys::reminder_due(Millis(5), &actor(), "tick"),
        keys::reminder_name(&actor(), "tick"),
        postcard::to_stdvec(&ReminderRow { message: message(), repeat: Some(repeat()) })
            .expect("a reminder encodes"),
        keys::event(&actor(), LogIndex(4), 2),
        keys::item(&actor(), COLLECTION, b"key"),
        keys::dropped(&actor(), COLLECTION, b"key"),
        replica::row_seed(),
    ]
}

/// Chunks of snapshots: the bytes are cut into several, each behind two bytes of length.
pub(super) fn chunks(bytes: &[u8]) {
    replica::stage(bytes);
}

pub(super) fn chunk_seeds() -> Vec<Vec<u8>> {
    replica::chunk_seeds()
}
