//! What applying a batch does to rows and to what is known.

use bytes::Bytes;

use super::apply::{ENTRY_BYTES_MAX, OutboxItem, Refusal, read_batch, read_meta};
use super::dead::{DEAD_LETTERS_MAX, DeadLetter, DeadTaken, KeptLetter, Origin};
use super::record::{
    Cause, CollectionId, ITEM_KEY_BYTES_MAX, ItemChange, Keep, Message, Missed, NAME_BYTES_MAX, Next,
    ReminderChange, ReminderRow, Repeat, Schedule, Turn,
};
use super::{Batch, Known, Line, Partition, Record, rows};
use crate::hash::{PartitionCount, partition_of};
use crate::id::{ActorId, LogIndex, PartitionId, RecordSeq, RequestId, SessionId, Term};
use crate::replication::{RestoreError, RowOp, StateMachine};
use crate::time::Millis;

const INDEX: LogIndex = LogIndex(40);
const TERM: Term = Term(3);
const TIME: Millis = Millis(100);

fn partitions() -> PartitionCount {
    PartitionCount::try_from(8).unwrap()
}

fn actor() -> ActorId {
    "Cart/alice".parse().unwrap()
}

fn request(seq: u64) -> RequestId {
    RequestId { session: SessionId(1), seq }
}

fn call(seq: u64, ack_below: u64) -> Cause {
    let reply = Bytes::from(format!("reply {seq}"));
    Cause::Call { request: request(seq), ack_below, keep: Keep::UntilAcknowledged, reply }
}

fn message(target: &str) -> Message {
    Message { target: target.parse().unwrap(), method: "add".into(), args: Bytes::from_static(b"5") }
}

fn turn(cause: Cause) -> Turn {
    Turn {
        actor: actor(),
        cause,
        state: None,
        sends: Vec::new(),
        reminders: Vec::new(),
        events: Vec::new(),
        items: Vec::new(),
    }
}

fn sending(cause: Cause, count: usize) -> Record {
    let sends = vec![message("Stock/apples"); count];
    Record::Turn(Box::new(Turn { sends, ..turn(cause) }))
}

fn stock() -> PartitionId {
    partition_of(&"Stock/apples".parse().unwrap(), partitions())
}

fn batch(epoch: u64, first_seq: u64, records: Vec<Record>) -> Batch {
    Batch { epoch: Term(epoch), first_seq: RecordSeq(first_seq), time: TIME, records }
}

fn put(key: Vec<u8>, value: impl AsRef<[u8]>) -> RowOp {
    RowOp::Put { key, value: value.as_ref().to_vec() }
}

fn delete(key: Vec<u8>) -> RowOp {
    RowOp::Delete { key }
}

/// A partition that follows the log, and what the last batch did to its rows.
struct Replica {
    partition: Partition,
    next: u64,
}

impl Replica {
    fn new() -> Self {
        Self { partition: Partition::new(partitions()), next: 0 }
    }

    fn apply(&mut self, records: Vec<Record>) -> Vec<RowOp> {
        let count = records.len() as u64;
        let mut out = Vec::new();
        let applied = self.partition.apply_batch(TERM, INDEX, &batch(TERM.0, self.next, records), &mut out);
        assert_eq!(applied, Ok(()));
        self.next += count;
        out
    }

    fn turn(&mut self, turn: Turn) -> Vec<RowOp> {
        self.apply(vec![Record::Turn(Box::new(turn))])
    }
}

#[test]
fn a_turn_becomes_the_rows_of_its_outcome() {
    let mut replica = Replica::new();
    let first = Turn {
        state: Some(Bytes::from_static(b"state")),
        sends: vec![message("Stock/apples"), message("Stock/apples")],
        events: vec![Bytes::from_static(b"e0"), Bytes::from_static(b"e1")],
        ..turn(call(0, 0))
    };
    let second = Turn { events: vec![Bytes::from_static(b"e2")], ..turn(call(1, 0)) };
    let records = [first, second].map(|turn| Record::Turn(Box::new(turn))).to_vec();
    let item = postcard::to_stdvec(&OutboxItem { from: actor(), message: message("Stock/apples") }).unwrap();
    let expected = [
        put(rows::state(&actor()), "state"),
        put(rows::outbox(stock(), 1), &item),
        put(rows::outbox(stock(), 2), &item),
        put(rows::event(&actor(), INDEX, 0), rows::event_value(TIME, b"e0")),
        put(rows::event(&actor(), INDEX, 1), rows::event_value(TIME, b"e1")),
        put(rows::event(&actor(), INDEX, 2), rows::event_value(TIME, b"e2")),
    ];
    assert_eq!(replica.apply(records), expected);
    let partition = &replica.partition;
    assert_eq!(partition.look_up(request(0)), Known::Answered(Bytes::from_static(b"reply 0")));
    assert_eq!(partition.look_up(request(1)), Known::Answered(Bytes::from_static(b"reply 1")));
    assert_eq!(partition.look_up(request(2)), Known::Fresh);
    assert_eq!(partition.dedup().len(), 1);
    assert_eq!(partition.line(stock()), Line { last: 2, acked: 0 });
    assert_eq!(partition.lines().collect::<Vec<_>>(), [(stock(), Line { last: 2, acked: 0 })]);
    assert_eq!((partition.next_record(), partition.time()), (RecordSeq(2), Millis(100)));
}

#[test]
fn replies_and_sessions_that_are_forgotten_are_gone() {
    let mut replica = Replica::new();
    let (reply, until) = (Bytes::from_static(b"kept"), Millis(500));
    let cause = Cause::Call { request: request(7), ack_below: 7, keep: Keep::Until(until), reply };
    let kept = replica.turn(turn(cause));
    assert_eq!(
        kept,
        [put(rows::kept_reply(request(7)), "kept"), put(rows::kept_until(until, request(7)), "")]
    );
    assert!(replica.partition.dedup().is_empty(), "what rows keep is not kept twice");
    let gone = replica.apply(vec![Record::KeysForgotten(vec![(until, request(7))])]);
    assert_eq!(gone, [delete(rows::kept_reply(request(7))), delete(rows::kept_until(until, request(7)))]);

    replica.turn(turn(call(0, 0)));
    assert!(!replica.partition.dedup().is_empty());
    replica.turn(turn(call(1, 1)));
    assert_eq!(replica.partition.look_up(request(0)), Known::Forgotten);
    assert!(replica.apply(vec![Record::SessionsForgotten(vec![SessionId(1)])]).is_empty());
    assert_eq!(replica.partition.look_up(request(1)), Known::Fresh);
    assert!(replica.partition.dedup().is_empty());
}

#[test]
fn the_watermark_of_a_line_never_goes_back() {
    let mut replica = Replica::new();
    let from = PartitionId(5);
    assert_eq!(replica.partition.applied_from(from), 0);
    for (seq, applied) in [(1, 1), (7, 7), (3, 7)] {
        assert!(replica.turn(turn(Cause::Message { from, seq })).is_empty());
        assert_eq!(replica.partition.applied_from(from), applied);
    }
    assert_eq!(replica.partition.applied_from(PartitionId(4)), 0);
}

#[test]
fn messages_leave_the_outbox_when_they_are_acknowledged_and_only_then() {
    let mut replica = Replica::new();
    replica.apply(vec![sending(call(0, 0), 3)]);
    let acked = |upto| vec![Record::OutboxAcked { to: stock(), upto }];
    let range =
        |from, to| RowOp::DeleteRange { from: rows::outbox(stock(), from), to: rows::outbox(stock(), to) };
    assert_eq!(replica.apply(acked(2)), [range(1, 3)]);
    assert_eq!(replica.apply(acked(2)), [], "once");
    assert_eq!(replica.apply(acked(1)), [], "and never back");
    assert_eq!(replica.partition.line(stock()), Line { last: 3, acked: 2 });
    assert_eq!(replica.partition.lines().count(), 1);
    assert_eq!(replica.apply(acked(99)), [range(3, 4)], "not above the last message");
    assert_eq!(replica.partition.line(stock()), Line { last: 3, acked: 3 });
    assert_eq!(replica.partition.lines().count(), 0, "nothing is owed");
    let sent = replica.apply(vec![sending(call(1, 0), 1)]);
    assert!(matches!(&sent[..], [RowOp::Put { key, .. }] if *key == rows::outbox(stock(), 4)));
}

#[test]
fn a_reminder_is_set_replaced_cancelled_and_fired() {
    let mut replica = Replica::new();
    let (early, late) = (Millis(200), Millis(900));
    let wake = message("Cart/alice");
    let value = postcard::to_stdvec(&ReminderRow { message: wake.clone(), repeat: None }).unwrap();
    let due_row = |due| rows::reminder_due(due, &actor(), "tick");
    let name_row = || rows::reminder_name(&actor(), "tick");
    let set = |due, replaces| ReminderChange::Set {
        name: "tick".into(),
        due,
        message: wake.clone(),
        replaces,
        repeat: None,
    };
    let cancel = |replaces| ReminderChange::Cancel { name: "tick".into(), replaces };
    let mut change = |change| replica.turn(Turn { reminders: vec![change], ..turn(call(0, 0)) });
    let stands = |due: Millis| [put(due_row(due), &value), put(name_row(), due.0.to_be_bytes())];
    assert_eq!(change(set(early, None)), stands(early));
    let [due, name] = stands(late);
    assert_eq!(change(set(late, Some(early))), [delete(due_row(early)), due, name]);
    assert_eq!(change(cancel(Some(late))), [delete(due_row(late)), delete(name_row())]);
    assert_eq!(change(cancel(None)), [delete(name_row())]);
    let fired = replica.turn(turn(Cause::Reminder { name: "tick".into(), due: early }));
    assert_eq!(fired, [delete(due_row(early)), delete(name_row())]);
    let next = ReminderChange::Set {
        name: "tick".into(),
        due: late,
        message: wake.clone(),
        replaces: None,
        repeat: Some(daily()),
    };
    let recurring = postcard::to_stdvec(&ReminderRow { message: wake, repeat: Some(daily()) }).unwrap();
    let [_, name] = stands(late);
    for cause in [
        Cause::Reminder { name: "tick".into(), due: early },
        Cause::ReminderPassed { name: "tick".into(), due: early },
    ] {
        let fired = replica.turn(Turn { reminders: vec![next.clone()], ..turn(cause) });
        let due = put(due_row(late), &recurring);
        assert_eq!(fired, [delete(due_row(early)), delete(name_row()), due, name.clone()], "it goes on");
    }
}

fn daily() -> Repeat {
    let schedule = Schedule::Cron { text: "0 9 * * *".into(), zone: "UTC".into() };
    Repeat { schedule, missed: Missed::All { at_most: 3 } }
}

#[test]
fn schemas_are_kept_and_old_events_are_not() {
    let mut replica = Replica::new();
    let schema = Record::Schema { fingerprint: 9, schema: Bytes::from_static(b"schema") };
    assert_eq!(replica.apply(vec![schema]), [put(rows::schema(9), "schema")]);
    let trimmed = replica.apply(vec![Record::EventsTrimmed { actor: actor(), index: LogIndex(29), n: 7 }]);
    let [RowOp::DeleteRange { from, to }, told] = &trimmed[..] else { panic!("{trimmed:?}") };
    let gone = |index, n| (from..to).contains(&&rows::event(&actor(), LogIndex(index), n));
    assert!(gone(0, 0) && gone(29, 7) && !gone(29, 8) && !gone(30, 0));
    let value = rows::position(LogIndex(29), 7);
    assert_eq!(*told, RowOp::Put { key: rows::events_gone(&actor()), value });
}

#[test]
fn a_batch_is_taken_only_in_the_sequence_of_its_epoch() {
    let mut partition = Partition::new(partitions());
    let two = || vec![sending(call(0, 0), 1), sending(call(1, 0), 1)];
    let mut apply = |epoch, first, term| {
        let before = partition.clone();
        let mut out = Vec::new();
        let taken = partition.apply_batch(Term(term), INDEX, &batch(epoch, first, two()), &mut out);
        if taken.is_err() {
            assert_eq!((&partition, out.len()), (&before, 0), "a refused batch changes nothing");
        } else {
            assert_eq!(out.len(), 2);
            assert_eq!(partition.next_record(), RecordSeq(first + 2));
        }
        taken
    };
    assert_eq!(apply(3, 1, 3), Err(Refusal::OutOfSequence), "an epoch begins with its first record");
    assert_eq!(apply(3, 0, 4), Err(Refusal::ForeignTerm));
    assert_eq!(apply(4, 0, 3), Err(Refusal::ForeignTerm));
    assert_eq!(apply(3, 0, 3), Ok(()));
    assert_eq!(apply(3, 0, 3), Err(Refusal::OutOfSequence), "not twice");
    assert_eq!(apply(3, 3, 3), Err(Refusal::OutOfSequence), "not with one missing");
    assert_eq!(apply(3, 2, 3), Ok(()));
    assert_eq!(apply(2, 0, 2), Err(Refusal::OutOfSequence), "an older epoch is over");
    assert_eq!(apply(2, 4, 2), Err(Refusal::OutOfSequence), "an older epoch is over");
    assert_eq!(apply(5, 4, 5), Err(Refusal::OutOfSequence), "a newer epoch begins anew");
    assert_eq!(apply(5, 0, 5), Ok(()));
}

#[test]
fn a_leaders_copy_ahead_of_the_log_knows_what_replicas_will() {
    let mut replica = Replica::new();
    replica.apply(vec![sending(call(0, 0), 1)]);
    let mut ahead = replica.partition.clone();
    ahead.open(Term(7));
    assert_eq!(ahead.next_record(), RecordSeq(0));
    let records = vec![
        sending(call(1, 1), 2),
        Record::OutboxAcked { to: stock(), upto: 1 },
        sending(Cause::Message { from: PartitionId(2), seq: 4 }, 1),
    ];
    for record in &records {
        ahead.note(record, Millis(150));
    }
    let batch = Batch { time: Millis(150), ..batch(7, 0, records) };
    let mut followed = replica.partition;
    followed.apply_batch(Term(7), INDEX, &batch, &mut Vec::new()).unwrap();
    assert_eq!(ahead, followed);
    assert_eq!(ahead.next_record(), RecordSeq(3));
}

#[test]
fn record_time_never_goes_back() {
    let mut replica = Replica::new();
    replica.partition.advance(Millis(300));
    assert_eq!(replica.partition.time(), Millis(300));
    replica.partition.advance(Millis(200));
    replica.turn(turn(call(0, 0)));
    assert_eq!(replica.partition.time(), Millis(300), "the batch was made at 100");
    let later = Millis(300 + super::dedup::SESSION_SILENCE_MS_MAX);
    assert!(replica.partition.dedup().silent(later, 9).is_empty(), "the session was heard of at 300");
}

#[test]
fn actors_live_in_the_partitions_of_the_cluster() {
    let partition = Partition::new(partitions());
    assert!(
        partition.has(PartitionId(7)) && !partition.has(PartitionId(8)) && !partition.has(PartitionId(9))
    );
    let mut seen = [false; 8];
    for n in 0..200 {
        let actor = ActorId::new("Cart", &n.to_string()).unwrap();
        assert_eq!(partition.partition_of(&actor), partition_of(&actor, partitions()));
        seen[partition.partition_of(&actor).0 as usize] = true;
    }
    assert_eq!(seen, [true; 8]);
}

#[test]
fn entries_are_applied_and_those_that_are_no_batch_change_nothing() {
    let mut machine = Partition::new(partitions());
    let entry = postcard::to_stdvec(&batch(3, 0, vec![sending(call(0, 0), 1)])).unwrap();
    let mut out = Vec::new();
    machine.apply(TERM, INDEX, &entry, &mut out);
    assert_eq!(out.len(), 1);
    assert_eq!((machine.next_seq(TERM), machine.next_seq(Term(4))), (RecordSeq(1), RecordSeq(0)));
    let before = machine.clone();
    for bytes in [&entry[..], b"", b"nonsense", &entry[..entry.len() - 1]] {
        machine.apply(TERM, INDEX, bytes, &mut out);
        assert_eq!((&machine, out.len()), (&before, 1));
    }
}

#[test]
fn a_batch_is_read_only_as_it_was_written() {
    let whole = batch(3, 0, vec![sending(call(0, 0), 1)]);
    let mut entry = postcard::to_stdvec(&whole).unwrap();
    assert_eq!(read_batch(&entry), Ok(whole));
    entry.push(0);
    assert_eq!(read_batch(&entry), Err(Refusal::Unreadable), "a byte too much");

    let sized = |bytes: usize| {
        let schema = Bytes::from(vec![0; bytes]);
        postcard::to_stdvec(&batch(3, 0, vec![Record::Schema { fingerprint: 1, schema }])).unwrap()
    };
    let around = sized(ENTRY_BYTES_MAX - 100).len() - (ENTRY_BYTES_MAX - 100);
    let largest = sized(ENTRY_BYTES_MAX - around);
    assert_eq!(largest.len(), ENTRY_BYTES_MAX);
    assert!(read_batch(&largest).is_ok());
    assert_eq!(read_batch(&sized(ENTRY_BYTES_MAX - around + 1)), Err(Refusal::Unreadable));
}

#[test]
fn names_that_do_not_fit_into_a_key_are_refused() {
    let name = |bytes| "n".repeat(bytes);
    let wake = || message("Cart/alice");
    let fits = |cause, reminders| {
        let entry = batch(3, 0, vec![Record::Turn(Box::new(Turn { reminders, ..turn(cause) }))]);
        read_batch(&postcard::to_stdvec(&entry).unwrap()).is_ok()
    };
    for (bytes, expected) in [(NAME_BYTES_MAX, true), (NAME_BYTES_MAX + 1, false)] {
        let set = ReminderChange::Set {
            name: name(bytes),
            due: Millis(1),
            message: wake(),
            replaces: None,
            repeat: None,
        };
        let cancel = ReminderChange::Cancel { name: name(bytes), replaces: None };
        assert_eq!(fits(call(0, 0), vec![set]), expected);
        assert_eq!(fits(call(0, 0), vec![cancel]), expected);
        assert_eq!(fits(Cause::Reminder { name: name(bytes), due: Millis(1) }, Vec::new()), expected);
        assert_eq!(fits(Cause::ReminderPassed { name: name(bytes), due: Millis(1) }, Vec::new()), expected);
    }
}

#[test]
fn keys_of_items_that_do_not_fit_are_refused() {
    let collection = CollectionId { term: TERM, number: 1 };
    let fits = |record| read_batch(&postcard::to_stdvec(&batch(3, 0, vec![record])).unwrap()).is_ok();
    for (bytes, expected) in [(ITEM_KEY_BYTES_MAX, true), (ITEM_KEY_BYTES_MAX + 1, false)] {
        let key = Bytes::from(vec![1; bytes]);
        let changes = [
            ItemChange::Put { collection, key: key.clone(), value: Bytes::new() },
            ItemChange::Delete { collection, key: key.clone() },
            ItemChange::Drop { collection, below: key.clone() },
        ];
        for change in changes {
            let turn = Turn { items: vec![change], ..turn(call(0, 0)) };
            assert_eq!(fits(Record::Turn(Box::new(turn))), expected);
        }
        for (upto, dropped) in [(Some(key.clone()), None), (None, Some(key))] {
            assert_eq!(fits(Record::ItemsForgotten { actor: actor(), collection, upto, dropped }), expected);
        }
    }
}

#[test]
fn items_are_rows_of_their_own_and_dropped_ones_are_forgotten_later() {
    let mut replica = Replica::new();
    let collection = CollectionId { term: TERM, number: 1 };
    let key = |text: &'static str| Bytes::from_static(text.as_bytes());
    let items = vec![
        ItemChange::Put { collection, key: key("a"), value: key("1") },
        ItemChange::Delete { collection, key: key("b") },
        ItemChange::Drop { collection, below: key("a") },
    ];
    assert_eq!(
        replica.turn(Turn { items, ..turn(Cause::Message { from: PartitionId(2), seq: 4 }) }),
        [
            put(rows::item(&actor(), collection, b"a"), "1"),
            delete(rows::item(&actor(), collection, b"b")),
            put(rows::dropped(&actor(), collection, b"a"), ""),
        ]
    );
    let (from, to) = rows::items(&actor(), collection);
    let forgotten = |upto, dropped| Record::ItemsForgotten { actor: actor(), collection, upto, dropped };
    let some = replica.apply(vec![forgotten(Some(key("a")), None)]);
    let upto = rows::item(&actor(), collection, b"a");
    assert_eq!(some, [RowOp::DeleteRange { from: from.clone(), to: upto }]);
    let all = replica.apply(vec![forgotten(None, Some(key("a")))]);
    let done = delete(rows::dropped(&actor(), collection, b"a"));
    assert_eq!(all, [RowOp::DeleteRange { from, to }, done]);
}

#[test]
fn a_checkpoint_gives_back_what_was_known() {
    let mut replica = Replica::new();
    replica.apply(vec![sending(call(0, 0), 3), Record::OutboxAcked { to: stock(), upto: 1 }]);
    replica.turn(turn(Cause::Message { from: PartitionId(2), seq: 4 }));
    let mut bytes = replica.partition.checkpoint();
    let mut restored = Partition::new(PartitionCount::default());
    assert_eq!(restored.restore(&bytes), Ok(()));
    assert_eq!(restored, replica.partition);
    bytes.push(0);
    assert_eq!(restored.restore(&bytes), Err(RestoreError::Malformed));
    assert_eq!(restored.restore(b"nonsense"), Err(RestoreError::Malformed));
}

#[test]
fn a_checkpoint_that_no_log_leads_to_is_refused() {
    const MOST: u64 = 1 << 62;
    type Outbox = Vec<(PartitionId, Line)>;
    // The fields of a partition, as postcard has them.
    let read = |next_seq: u64, last: u64, acked: u64, inbound: u64| {
        let sessions: Vec<(SessionId, u64)> = Vec::new();
        let outbox: Outbox = vec![(PartitionId(1), Line { last, acked })];
        let inbound = vec![(PartitionId(2), inbound)];
        // Without dead letters: none numbered, none kept, no bytes, none lost, none that come again.
        let dead = (0_u64, [0_u8; 0].as_slice(), 0_u64, 0_u64, [0_u8; 0].as_slice());
        let meta = (partitions(), TERM, RecordSeq(next_seq), Millis(1), sessions, outbox, inbound, dead);
        read_meta(&postcard::to_stdvec(&meta).unwrap()).is_some()
    };
    assert!(read(0, 0, 0, 0) && read(3, 5, 5, 7) && read(MOST, MOST, 0, MOST));
    assert!(!read(3, 5, 6, 7), "more acknowledged than sent");
    assert!(
        !read(MOST + 1, 5, 5, 7) && !read(3, MOST + 1, 5, 7) && !read(3, 5, 5, MOST + 1),
        "no room to count"
    );
}

fn letter(origin: Origin) -> DeadLetter {
    let from = "Cart/bob".parse().unwrap();
    DeadLetter {
        from,
        origin,
        message: message("Cart/alice"),
        code: "app".into(),
        why: "no".into(),
        tries: 1,
    }
}

fn died(origin: Origin) -> Record {
    Record::Died(Box::new(letter(origin)))
}

fn taken(seq: u64, number: u64, again: Option<OutboxItem>) -> Record {
    let (keep, reply) = (Keep::UntilAcknowledged, Bytes::from_static(b"done"));
    Record::DeadTaken(Box::new(DeadTaken { request: request(seq), ack_below: 0, keep, reply, number, again }))
}

#[test]
fn a_message_that_dies_is_used_up_and_kept_in_one() {
    let mut replica = Replica::new();
    let origin = Origin::Message { from: PartitionId(2), seq: 1 };
    let value = postcard::to_stdvec(&KeptLetter { at: Millis(100), letter: letter(origin.clone()) }).unwrap();
    assert_eq!(replica.apply(vec![died(origin)]), [put(rows::dead(1), &value)]);
    assert_eq!(replica.partition.applied_from(PartitionId(2)), 1);
    assert!(replica.partition.dead().holds(1) && replica.partition.dead().len() == 1);
    let reminder = Origin::Reminder { name: "tick".into(), due: Millis(5), next: None };
    let from: ActorId = "Cart/bob".parse().unwrap();
    let rows_of_it = replica.apply(vec![died(reminder)]);
    assert_eq!(rows_of_it[0], delete(rows::reminder_due(Millis(5), &from, "tick")));
    assert_eq!(rows_of_it[1], delete(rows::reminder_name(&from, "tick")));
    assert!(matches!(&rows_of_it[2..], [RowOp::Put { key, .. }] if *key == rows::dead(2)));
    let read = rows::read_dead(&rows::dead(2));
    assert_eq!(
        (read, rows::read_dead(b"D"), rows::read_dead(&rows::outbox(stock(), 2))),
        (Some(2), None, None)
    );
}

#[test]
fn a_letter_of_a_reminder_that_recurs_takes_the_place_of_the_one_before_it() {
    let mut replica = Replica::new();
    let origin = |due| {
        let next = Next { due: Millis(due + 10), repeat: daily() };
        Origin::Reminder { name: "tick".into(), due: Millis(due), next: Some(next) }
    };
    let first = replica.apply(vec![died(origin(10))]);
    let second = replica.apply(vec![died(origin(20))]);
    assert_eq!(first.len() + 1, second.len());
    let letter = DeadLetter { tries: 2, ..letter(origin(20)) };
    let value = postcard::to_stdvec(&KeptLetter { at: TIME, letter }).unwrap();
    assert_eq!(second[second.len() - 2..], [delete(rows::dead(1)), put(rows::dead(2), &value)]);
    assert_eq!((replica.partition.dead().len(), replica.partition.dead().lost()), (1, 0));
    let mut restored = Partition::new(partitions());
    assert_eq!(restored.restore(&replica.partition.checkpoint()), Ok(()));
    assert_eq!(restored, replica.partition);
}

#[test]
fn a_dead_letter_is_sent_again_once() {
    let mut replica = Replica::new();
    replica.apply(vec![died(Origin::Message { from: PartitionId(2), seq: 1 })]);
    let item = OutboxItem { from: "Cart/bob".parse().unwrap(), message: message("Stock/apples") };
    let value = postcard::to_stdvec(&item).unwrap();
    let sent = replica.apply(vec![taken(0, 1, Some(item.clone()))]);
    assert_eq!(sent, [delete(rows::dead(1)), put(rows::outbox(stock(), 1), &value)]);
    assert_eq!(replica.partition.look_up(request(0)), Known::Answered(Bytes::from_static(b"done")));
    assert_eq!(replica.apply(vec![taken(1, 1, Some(item))]), [], "who comes second sends nothing");
    assert_eq!(replica.partition.line(stock()), Line { last: 1, acked: 0 });
    replica.apply(vec![died(Origin::Message { from: PartitionId(2), seq: 2 })]);
    assert_eq!(replica.apply(vec![taken(2, 2, None)]), [delete(rows::dead(2))], "dropped");
    assert!(replica.partition.dead().is_empty());
}

#[test]
fn dead_letters_beyond_the_limit_take_the_place_of_the_oldest() {
    let mut replica = Replica::new();
    let origin = || Origin::Message { from: PartitionId(2), seq: 1 };
    for _ in 0..DEAD_LETTERS_MAX {
        replica.apply(vec![died(origin())]);
    }
    let rows_of_it = replica.apply(vec![died(origin())]);
    assert_eq!((&rows_of_it[0], rows_of_it.len()), (&delete(rows::dead(1)), 2));
    assert_eq!((replica.partition.dead().len(), replica.partition.dead().lost()), (DEAD_LETTERS_MAX, 1));
    let mut restored = Partition::new(partitions());
    assert_eq!(restored.restore(&replica.partition.checkpoint()), Ok(()));
    assert_eq!(restored, replica.partition);
}
