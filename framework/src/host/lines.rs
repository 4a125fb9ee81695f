//! Messages between partitions: exactly once, in order per line.
//!
//! A line runs from one partition to another. The sender keeps each message as a row until the
//! receiver says it is applied; the receiver takes them in the order of their numbers, which its
//! watermark remembers. Both ends are replicated state, so a new leader on either side goes on where
//! the old one stood.

use std::collections::VecDeque;
use std::time::Duration;

use perennial_core::id::PartitionId;
use perennial_core::partition::record::Record;
use perennial_core::partition::{OutboxItem, rows};
use tokio::sync::oneshot;

use super::owed::Owed;
use super::turns::{Host, Tries, Work};
use super::{Delivery, HostMessage};
use crate::error::Fault;

/// Messages handed over at a time.
const DELIVERY_MESSAGES_MAX: usize = 128;
/// Bytes handed over at a time.
const DELIVERY_BYTES_MAX: usize = 256 * 1024;
/// Messages of one line that wait for their turns, beyond one delivery; with more, a delivery is not taken.
const QUEUED_MESSAGES_MAX: usize = 2 * DELIVERY_MESSAGES_MAX;
/// Deliveries of one line that wait for their answer; a sender has one under way.
const DELIVERIES_MAX: usize = 16;
/// First and longest pause before a delivery is tried again.
const RETRY_MIN: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_secs(1);

/// The sending end of a line.
#[derive(Default)]
pub(super) struct OutLine {
    /// A delivery is under way or a retry is planned.
    busy: bool,
    /// Acknowledged up to here, possibly ahead of the record that says so.
    acked: u64,
    failures: u32,
}

/// The receiving end of a line.
#[derive(Default)]
pub(super) struct InLine {
    /// Number of the next message to be queued; 0 before the first delivery of this epoch.
    next: u64,
    queue: VecDeque<(u64, OutboxItem)>,
    /// The front message's turn has started and not yet made its record.
    running: bool,
    /// Somebody up the stack starts this line's turns one after the other.
    pumping: bool,
    /// Applied up to here.
    committed: u64,
    /// Deliveries that wait until everything up to their last message is applied.
    acks: VecDeque<(u64, oneshot::Sender<Result<u64, Fault>>)>,
}

impl Host {
    /// Sends what is in the outbox of every line.
    pub(super) fn pump_lines(&mut self) {
        let lines: Vec<_> = self.spec.lines().map(|(to, _)| to).collect();
        for to in lines {
            self.pump_line_out(to);
        }
    }

    fn pump_line_out(&mut self, to: PartitionId) {
        let acked = self.spec.line(to).acked;
        let line = self.lines_out.entry(to).or_default();
        line.acked = line.acked.max(acked);
        if line.busy {
            return;
        }
        let first_seq = line.acked + 1;
        let (from, until) = rows::outbox_range(to, first_seq, u64::MAX);
        let found = match self.shared.rows.scan(self.group, &from, Some(&until), DELIVERY_MESSAGES_MAX) {
            Ok(found) => found,
            Err(error) => {
                tracing::error!(partition = %self.partition, %error, "cannot read the outbox");
                return;
            }
        };
        let mut items = Vec::new();
        let mut bytes = 0;
        for (seq, (key, value)) in (first_seq..).zip(found) {
            if key != rows::outbox(to, seq) {
                // The rows are ahead of this host: another epoch's records are applied already.
                break;
            }
            bytes += value.len();
            if !items.is_empty() && bytes > DELIVERY_BYTES_MAX {
                break;
            }
            match postcard::from_bytes::<OutboxItem>(&value) {
                Ok(item) => items.push(item),
                Err(error) => {
                    tracing::error!(partition = %self.partition, %error, "a message in the outbox is unreadable");
                    return;
                }
            }
        }
        if items.is_empty() {
            return;
        }
        line.busy = true;
        let delivery = Delivery { from: self.partition, to, first_seq, items };
        let (courier, mailbox) = (self.shared.courier.clone(), self.mailbox.clone());
        tokio::spawn(async move {
            let upto = courier.deliver(delivery).await;
            let _ = mailbox.cast(HostMessage::LineAcked { to, upto });
        });
    }

    pub(super) fn on_line_acked(&mut self, to: PartitionId, upto: Result<u64, Fault>) {
        let line = self.lines_out.entry(to).or_default();
        match upto {
            Ok(upto) if upto > line.acked => {
                line.busy = false;
                line.failures = 0;
                line.acked = upto;
                let seq = self.append(Record::OutboxAcked { to, upto }, 0);
                self.owed.push_back(Owed::nothing(seq));
                self.flush();
                self.pump_line_out(to);
            }
            // Nothing new was applied: the receiver has just changed, or cannot be reached.
            Ok(_) | Err(_) => {
                tracing::debug!(partition = %self.partition, %to, acked = line.acked, ?upto, "messages are not applied yet");
                line.failures += 1;
                let pause = RETRY_MIN.saturating_mul(1 << line.failures.min(10)).min(RETRY_MAX);
                let mailbox = self.mailbox.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(pause).await;
                    let _ = mailbox.cast(HostMessage::LineRetry { to });
                });
            }
        }
    }

    pub(super) fn on_line_retry(&mut self, to: PartitionId) {
        self.lines_out.entry(to).or_default().busy = false;
        self.pump_line_out(to);
    }

    pub(super) fn on_deliver(&mut self, delivery: Delivery, ack: oneshot::Sender<Result<u64, Fault>>) {
        let ours = |item: &OutboxItem| self.spec.partition_of(&item.message.target) == self.partition;
        if !self.spec.has(delivery.from) || !delivery.items.iter().all(ours) {
            tracing::warn!(partition = %self.partition, from = %delivery.from, "a delivery has no place here");
            let (what, why) = ("the delivery".to_owned(), "it is not for this partition".to_owned());
            let _ = ack.send(Err(Fault::Unreadable { what, at: self.partition.to_string(), why }));
            return;
        }
        let applied = self.spec.applied_from(delivery.from);
        let line = self.lines_in.entry(delivery.from).or_default();
        if line.next == 0 {
            line.next = applied + 1;
            line.committed = applied;
        }
        // A gap: the sender's idea of this line is ahead of what is known here. A full line: it is ahead of
        // our answers.
        let gap = delivery.items.is_empty() || delivery.first_seq == 0 || delivery.first_seq > line.next;
        if gap || line.queue.len() >= QUEUED_MESSAGES_MAX || line.acks.len() >= DELIVERIES_MAX {
            let _ = ack.send(Ok(line.committed));
            return;
        }
        let last = delivery.first_seq + delivery.items.len() as u64 - 1;
        for (seq, item) in (delivery.first_seq..).zip(delivery.items) {
            if seq == line.next {
                line.queue.push_back((seq, item));
                line.next += 1;
            }
        }
        line.acks.push_back((last, ack));
        self.pump_line_in(delivery.from);
        self.ack_line(delivery.from);
    }

    /// Starts the next message's turn unless one is running. A turn that ends at once comes back here
    /// from its record; then the loop that began it goes on, so that the stack does not grow.
    pub(super) fn pump_line_in(&mut self, from: PartitionId) {
        match self.lines_in.get_mut(&from) {
            Some(line) if !line.pumping => line.pumping = true,
            _ => return,
        }
        while let Some(line) = self.lines_in.get_mut(&from) {
            let next = if line.running { None } else { line.queue.pop_front() };
            let Some((seq, item)) = next else {
                line.pumping = false;
                return;
            };
            line.running = true;
            let target = item.message.target.clone();
            self.begin_work(target, Work::Message { from, seq, item, tries: Tries::default() });
        }
    }

    /// The turn of a message has made its record.
    pub(super) fn message_recorded(&mut self, from: PartitionId) {
        if let Some(line) = self.lines_in.get_mut(&from) {
            line.running = false;
        }
    }

    /// A message is applied.
    pub(super) fn message_applied(&mut self, from: PartitionId, seq: u64) {
        if let Some(line) = self.lines_in.get_mut(&from) {
            line.committed = line.committed.max(seq);
        }
        self.ack_line(from);
    }

    fn ack_line(&mut self, from: PartitionId) {
        let Some(line) = self.lines_in.get_mut(&from) else { return };
        while line.acks.front().is_some_and(|(upto, _)| *upto <= line.committed) {
            if let Some((_, ack)) = line.acks.pop_front() {
                let _ = ack.send(Ok(line.committed));
            }
        }
    }
}
