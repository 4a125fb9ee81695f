//! Applying committed batches: the state machine of a partition.
//!
//! Owns what must be known to accept the next record: the epoch and its sequence, replies of sessions,
//! and the watermarks of messages. Everything else goes straight to rows. A leader keeps a second copy
//! that runs ahead of the log by the same rules.
//! Never asks who leads, never reads a row: replicas that apply the same entries make the same rows,
//! and applying an entry once more changes nothing that a later entry did not set.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::dead::{DeadIndex, DeadLetter, DeadTaken, KeptLetter, Origin};
use super::dedup::{Dedup, Known};
use super::record::{
    Batch, Cause, ItemChange, Keep, Message, Next, Record, ReminderChange, ReminderRow, Turn,
};
use super::rows;
use crate::hash::{PartitionCount, partition_of};
use crate::id::{ActorId, LogIndex, PartitionId, RecordSeq, RequestId, Term};
use crate::replication::{RestoreError, RowOp, StateMachine};
use crate::time::Millis;

/// Largest batch that is read from the log, in bytes.
pub const ENTRY_BYTES_MAX: usize = 900 * 1024;
/// Highest number of a record or message in a checkpoint; counting never gets there.
const COUNT_MAX: u64 = 1 << 62;

/// A message in the outbox: who sent it and what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OutboxItem {
    /// Sender.
    pub from: ActorId,
    /// Message.
    pub message: Message,
}

/// One line of messages from this partition to another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Number of the last message put in; the first is 1.
    pub last: u64,
    /// Every message up to this one is applied at the receiver. Never above `last`.
    pub acked: u64,
}

/// Why a batch was refused. Every replica refuses the same ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The bytes are not a batch.
    Unreadable,
    /// It was made in another term than the one it was proposed in.
    ForeignTerm,
    /// A record before it is missing, or it comes twice.
    OutOfSequence,
}

/// Meta state of a partition; the same on every replica at the same index.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Partition {
    partitions: PartitionCount,
    epoch: Term,
    next_seq: RecordSeq,
    time: Millis,
    dedup: Dedup,
    outbox: BTreeMap<PartitionId, Line>,
    inbound: BTreeMap<PartitionId, u64>,
    dead: DeadIndex,
}

impl Partition {
    /// A partition without entries, in a cluster of so many partitions.
    #[must_use]
    pub fn new(partitions: PartitionCount) -> Self {
        Self {
            partitions,
            epoch: Term(0),
            next_seq: RecordSeq(0),
            time: Millis(0),
            dedup: Dedup::default(),
            outbox: BTreeMap::new(),
            inbound: BTreeMap::new(),
            dead: DeadIndex::default(),
        }
    }

    /// Opens `epoch` on a leader's own copy: its records start at 0.
    pub fn open(&mut self, epoch: Term) {
        self.epoch = epoch;
        self.next_seq = RecordSeq(0);
    }

    /// Sequence number of the next record of the current epoch.
    #[must_use]
    pub fn next_record(&self) -> RecordSeq {
        self.next_seq
    }

    /// Record time of the newest batch.
    #[must_use]
    pub fn time(&self) -> Millis {
        self.time
    }

    /// A batch of this record time goes into the log: time never falls behind it, whatever the clock says.
    pub fn advance(&mut self, time: Millis) {
        self.time = self.time.max(time);
    }

    /// Forgets the kept replies of sessions: a control of tests.
    #[cfg(feature = "controls")]
    pub fn forget_replies(&mut self) {
        self.dedup = Dedup::default();
    }

    /// Kept replies of sessions.
    #[must_use]
    pub fn dedup(&self) -> &Dedup {
        &self.dedup
    }

    /// What is known of a session's request.
    #[must_use]
    pub fn look_up(&self, request: RequestId) -> Known {
        self.dedup.look_up(request)
    }

    /// Lines with messages that are not acknowledged.
    pub fn lines(&self) -> impl Iterator<Item = (PartitionId, Line)> + '_ {
        self.outbox.iter().filter(|(_, line)| line.acked < line.last).map(|(to, line)| (*to, *line))
    }

    /// The line to a partition.
    #[must_use]
    pub fn line(&self, to: PartitionId) -> Line {
        self.outbox.get(&to).copied().unwrap_or_default()
    }

    /// Number of the last message applied from a partition.
    #[must_use]
    pub fn applied_from(&self, from: PartitionId) -> u64 {
        self.inbound.get(&from).copied().unwrap_or(0)
    }

    /// Which dead letters are kept.
    #[must_use]
    pub fn dead(&self) -> &DeadIndex {
        &self.dead
    }

    /// Whether the cluster has such a partition.
    #[must_use]
    pub fn has(&self, partition: PartitionId) -> bool {
        partition.0 < self.partitions.get()
    }

    /// The partition of an actor.
    #[must_use]
    pub fn partition_of(&self, actor: &ActorId) -> PartitionId {
        partition_of(actor, self.partitions)
    }

    /// Applies a batch that stands at `index`, proposed in `term`.
    ///
    /// # Errors
    /// [`Refusal`]; nothing was changed.
    pub fn apply_batch(
        &mut self,
        term: Term,
        index: LogIndex,
        batch: &Batch,
        out: &mut Vec<RowOp>,
    ) -> Result<(), Refusal> {
        let mut rows = Rows(Some(out));
        if batch.epoch != term {
            return Err(Refusal::ForeignTerm);
        }
        let expected = if batch.epoch == self.epoch { self.next_seq } else { RecordSeq(0) };
        if batch.epoch < self.epoch || batch.first_seq != expected {
            return Err(Refusal::OutOfSequence);
        }
        self.epoch = batch.epoch;
        self.next_seq = batch.first_seq;
        let mut events = 0;
        for record in &batch.records {
            self.apply_record(record, batch.time, index, &mut events, &mut rows);
        }
        Ok(())
    }

    /// Takes note of a record on a leader's own copy when it is made, ahead of the log.
    pub fn note(&mut self, record: &Record, time: Millis) {
        self.apply_record(record, time, LogIndex(0), &mut 0, &mut Rows(None));
    }

    fn apply_record(
        &mut self,
        record: &Record,
        time: Millis,
        index: LogIndex,
        events: &mut u32,
        out: &mut Rows<'_>,
    ) {
        self.next_seq = RecordSeq(self.next_seq.0 + 1);
        self.time = self.time.max(time);
        match record {
            Record::Turn(turn) => self.apply_turn(turn, index, events, out),
            Record::OutboxAcked { to, upto } => {
                let line = self.outbox.entry(*to).or_default();
                let upto = (*upto).min(line.last);
                if upto > line.acked {
                    let (from, to) = rows::outbox_range(*to, line.acked + 1, upto + 1);
                    line.acked = upto;
                    out.push(|| RowOp::DeleteRange { from, to });
                }
            }
            Record::KeysForgotten(keys) => {
                for &(until, request) in keys {
                    out.push(|| RowOp::Delete { key: rows::kept_reply(request) });
                    out.push(|| RowOp::Delete { key: rows::kept_until(until, request) });
                }
            }
            Record::SessionsForgotten(sessions) => {
                for &session in sessions {
                    self.dedup.forget(session);
                }
            }
            Record::Schema { fingerprint, schema } => {
                out.push(|| RowOp::Put { key: rows::schema(*fingerprint), value: schema.to_vec() });
            }
            Record::EventsTrimmed { actor, index, n } => {
                let (from, to) = rows::events_upto(actor, *index, *n);
                out.push(|| RowOp::DeleteRange { from, to });
                let value = rows::position(*index, *n);
                out.push(|| RowOp::Put { key: rows::events_gone(actor), value });
            }
            Record::Died(letter) => self.apply_death(letter, out),
            Record::DeadTaken(taken) => self.apply_taken(taken, out),
            Record::ItemsForgotten { actor, collection, upto, dropped } => {
                let (from, end) = rows::items(actor, *collection);
                let to = upto.as_ref().map_or(end, |key| rows::item(actor, *collection, key));
                out.push(|| RowOp::DeleteRange { from, to });
                if let Some(below) = dropped {
                    out.push(|| RowOp::Delete { key: rows::dropped(actor, *collection, below) });
                }
            }
        }
    }

    fn apply_death(&mut self, letter: &DeadLetter, out: &mut Rows<'_>) {
        match &letter.origin {
            Origin::Message { from, seq } => self.use_up(*from, *seq),
            Origin::Reminder { name, due, next } => {
                out.push(|| RowOp::Delete { key: rows::reminder_due(*due, &letter.from, name) });
                out.push(|| RowOp::Delete { key: rows::reminder_name(&letter.from, name) });
                if let Some(Next { due, repeat }) = next {
                    let (name, message) = (name.clone(), letter.message.clone());
                    let (due, repeat) = (*due, Some(repeat.clone()));
                    let set = ReminderChange::Set { name, due, message, replaces: None, repeat };
                    apply_reminder(&letter.from, &set, out);
                }
            }
        }
        let (number, tries, gone) = self.dead.enter(letter);
        for number in gone {
            out.push(|| RowOp::Delete { key: rows::dead(number) });
        }
        let at = self.time;
        out.push(|| {
            let kept = KeptLetter { at, letter: DeadLetter { tries, ..letter.clone() } };
            let value = postcard::to_stdvec(&kept).expect("a letter always encodes");
            RowOp::Put { key: rows::dead(number), value }
        });
    }

    fn apply_taken(&mut self, taken: &DeadTaken, out: &mut Rows<'_>) {
        self.keep_reply(taken.request, taken.ack_below, taken.keep, &taken.reply, out);
        // Who comes second finds nothing, and sends nothing.
        if !self.dead.take(taken.number) {
            return;
        }
        out.push(|| RowOp::Delete { key: rows::dead(taken.number) });
        if let Some(item) = &taken.again {
            self.put_in_line(&item.from, &item.message, out);
        }
    }

    fn keep_reply(
        &mut self,
        request: RequestId,
        ack_below: u64,
        keep: Keep,
        reply: &Bytes,
        out: &mut Rows<'_>,
    ) {
        match keep {
            Keep::UntilAcknowledged => self.dedup.keep(request, ack_below, reply.clone(), self.time),
            Keep::Until(until) => {
                out.push(|| RowOp::Put { key: rows::kept_reply(request), value: reply.to_vec() });
                out.push(|| RowOp::Put { key: rows::kept_until(until, request), value: Vec::new() });
            }
        }
    }

    /// A message of a line is applied, or dead.
    fn use_up(&mut self, from: PartitionId, seq: u64) {
        let applied = self.inbound.entry(from).or_default();
        *applied = (*applied).max(seq);
    }

    fn put_in_line(&mut self, from: &ActorId, message: &Message, out: &mut Rows<'_>) {
        let to = partition_of(&message.target, self.partitions);
        let line = self.outbox.entry(to).or_default();
        line.last += 1;
        out.push(|| {
            let item = OutboxItem { from: from.clone(), message: message.clone() };
            let value = postcard::to_stdvec(&item).expect("an outbox item always encodes");
            RowOp::Put { key: rows::outbox(to, line.last), value }
        });
    }

    fn apply_turn(&mut self, turn: &Turn, index: LogIndex, events: &mut u32, out: &mut Rows<'_>) {
        match &turn.cause {
            Cause::Call { request, ack_below, keep, reply } => {
                self.keep_reply(*request, *ack_below, *keep, reply, out);
            }
            Cause::Message { from, seq } => self.use_up(*from, *seq),
            Cause::Reminder { name, due } | Cause::ReminderPassed { name, due } => {
                out.push(|| RowOp::Delete { key: rows::reminder_due(*due, &turn.actor, name) });
                out.push(|| RowOp::Delete { key: rows::reminder_name(&turn.actor, name) });
            }
            Cause::Timer | Cause::Operator => {}
        }
        if let Some(state) = &turn.state {
            out.push(|| RowOp::Put { key: rows::state(&turn.actor), value: state.to_vec() });
        }
        for message in &turn.sends {
            self.put_in_line(&turn.actor, message, out);
        }
        for change in &turn.reminders {
            apply_reminder(&turn.actor, change, out);
        }
        for event in &turn.events {
            let value = rows::event_value(self.time, event);
            out.push(|| RowOp::Put { key: rows::event(&turn.actor, index, *events), value });
            *events += 1;
        }
        for change in &turn.items {
            out.push(|| match change {
                ItemChange::Put { collection, key, value } => {
                    RowOp::Put { key: rows::item(&turn.actor, *collection, key), value: value.to_vec() }
                }
                ItemChange::Delete { collection, key } => {
                    RowOp::Delete { key: rows::item(&turn.actor, *collection, key) }
                }
                ItemChange::Drop { collection, below } => {
                    let key = rows::dropped(&turn.actor, *collection, below);
                    RowOp::Put { key, value: Vec::new() }
                }
            });
        }
    }
}

/// Where row operations go; a leader's own copy makes none.
struct Rows<'a>(Option<&'a mut Vec<RowOp>>);

impl Rows<'_> {
    fn push(&mut self, op: impl FnOnce() -> RowOp) {
        if let Some(rows) = &mut self.0 {
            rows.push(op());
        }
    }
}

fn apply_reminder(actor: &ActorId, change: &ReminderChange, out: &mut Rows<'_>) {
    let (ReminderChange::Set { name, replaces, .. } | ReminderChange::Cancel { name, replaces }) = change;
    if let Some(due) = replaces {
        out.push(|| RowOp::Delete { key: rows::reminder_due(*due, actor, name) });
    }
    match change {
        ReminderChange::Set { name, due, message, repeat, .. } => {
            let reminder = || ReminderRow { message: message.clone(), repeat: repeat.clone() };
            let value = || postcard::to_stdvec(&reminder()).expect("a reminder always encodes");
            out.push(|| RowOp::Put { key: rows::reminder_due(*due, actor, name), value: value() });
            let due = due.0.to_be_bytes().to_vec();
            out.push(|| RowOp::Put { key: rows::reminder_name(actor, name), value: due });
        }
        ReminderChange::Cancel { name, .. } => {
            out.push(|| RowOp::Delete { key: rows::reminder_name(actor, name) });
        }
    }
}

impl StateMachine for Partition {
    fn apply(&mut self, term: Term, index: LogIndex, entry: &[u8], rows: &mut Vec<RowOp>) {
        // A refused entry changes nothing, on every replica alike; the leader that proposed it has
        // seen its epoch poisoned and asks for nothing from it.
        let _ = read_batch(entry).and_then(|batch| self.apply_batch(term, index, &batch, rows));
    }

    fn checkpoint(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("a partition's meta state always encodes")
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        *self = read_meta(bytes).ok_or(RestoreError::Malformed)?;
        Ok(())
    }

    fn next_seq(&self, epoch: Term) -> RecordSeq {
        if epoch == self.epoch { self.next_seq } else { RecordSeq(0) }
    }
}

/// Reads the meta state of a checkpoint; `None` when the bytes are not one, or one that no log leads to.
#[must_use]
pub fn read_meta(bytes: &[u8]) -> Option<Partition> {
    match postcard::take_from_bytes::<Partition>(bytes) {
        Ok((partition, [])) if partition.is_plausible() => Some(partition),
        _ => None,
    }
}

impl Partition {
    /// Whether its numbers keep their rules and leave room to count on.
    fn is_plausible(&self) -> bool {
        let lines = self.outbox.values().all(|line| line.acked <= line.last && line.last <= COUNT_MAX);
        lines
            && self.dead.is_plausible(COUNT_MAX)
            && self.next_seq.0 <= COUNT_MAX
            && self.inbound.values().all(|seq| *seq <= COUNT_MAX)
    }
}

/// The batch in an entry of a partition's log.
///
/// # Errors
/// [`Refusal`] when it is none; every replica then refuses it alike.
pub fn read_batch(entry: &[u8]) -> Result<Batch, Refusal> {
    if entry.len() > ENTRY_BYTES_MAX {
        return Err(Refusal::Unreadable);
    }
    match postcard::take_from_bytes::<Batch>(entry) {
        Ok((batch, [])) if batch.keys_fit() => Ok(batch),
        _ => Err(Refusal::Unreadable),
    }
}
