//! What a host owes until a record is applied, and the records on their way.

use std::collections::VecDeque;

use bytes::Bytes;
use perennial_core::id::{ActorId, PartitionId, RecordSeq, RequestId, Term};
use perennial_core::partition::record::{BATCH_BYTES_MAX, BATCH_RECORDS_MAX, Batch, Record};
use perennial_core::replication::Proposal;
use perennial_core::time::Millis;
use tokio::sync::oneshot;

use super::{Ended, HostCounters, ReplyTo};
use crate::call::Answered;
use crate::error::Fault;

/// Batches of one partition that are on their way at a time; what comes meanwhile is packed.
pub(super) const BATCHES_IN_FLIGHT_MAX: usize = 1;

/// What is owed once a record is applied.
pub(super) struct Owed {
    pub(super) seq: RecordSeq,
    pub(super) answer: Option<(ReplyTo, Answered)>,
    /// Retries of the same call that came meanwhile.
    pub(super) joined: Vec<ReplyTo>,
    /// A reply kept as a row until a stated time: from now on it is there.
    pub(super) keyed: Option<RequestId>,
    /// A message of this line was applied.
    pub(super) message: Option<(PartitionId, u64)>,
    /// A reminder that fired has left its row.
    pub(super) reminder: Option<(Millis, ActorId, String)>,
    /// Whose reminders it changes; from now on their rows say so.
    pub(super) reminders: Option<ActorId>,
    /// Who waits to hear that a reminder is cancelled.
    pub(super) cancelled: Option<oneshot::Sender<Result<bool, Fault>>>,
    /// Whether messages were put in the outbox.
    pub(super) sends: bool,
    /// When the earliest reminder that was set is due.
    pub(super) due: Option<Millis>,
    /// Whose items the rows have now.
    pub(super) items: Option<ActorId>,
    /// Whose events to hand to followers.
    pub(super) published: Option<ActorId>,
}

impl Owed {
    pub(super) fn nothing(seq: RecordSeq) -> Self {
        Self {
            seq,
            answer: None,
            joined: Vec::new(),
            keyed: None,
            message: None,
            reminder: None,
            reminders: None,
            cancelled: None,
            sends: false,
            due: None,
            items: None,
            published: None,
        }
    }

    /// Answers the caller and everyone who retried.
    pub(super) fn answer(&mut self) {
        if let Some((reply, answered)) = self.answer.take() {
            for joined in self.joined.drain(..) {
                joined.end(Ended::Answered(answered.clone()));
            }
            reply.end(Ended::Answered(answered));
        }
    }
}

/// Records that wait to be proposed.
#[derive(Default)]
pub(super) struct Pack {
    records: VecDeque<(Record, usize)>,
    /// Ends of the batches on their way.
    in_flight: VecDeque<RecordSeq>,
}

impl Pack {
    pub(super) fn push(&mut self, record: Record, bytes: usize) {
        self.records.push_back((record, bytes));
    }

    /// Batches that end at or below `applied` have arrived.
    pub(super) fn arrived(&mut self, applied: RecordSeq) {
        while self.in_flight.front().is_some_and(|&end| end <= applied) {
            self.in_flight.pop_front();
        }
    }

    /// The next batch to propose, if there is one and it may go.
    pub(super) fn next_batch(
        &mut self,
        epoch: Term,
        next_record: RecordSeq,
        time: Millis,
        counters: &HostCounters,
    ) -> Option<(Batch, u32)> {
        if self.in_flight.len() >= BATCHES_IN_FLIGHT_MAX || self.records.is_empty() {
            return None;
        }
        let first_seq = RecordSeq(next_record.0 - self.records.len() as u64);
        let mut bytes = 0;
        let mut records = Vec::with_capacity(self.records.len().min(BATCH_RECORDS_MAX));
        while let Some((_, size)) = self.records.front() {
            bytes += size;
            if !records.is_empty() && (bytes > BATCH_BYTES_MAX || records.len() >= BATCH_RECORDS_MAX) {
                break;
            }
            records.extend(self.records.pop_front().map(|(record, _)| record));
        }
        let count = records.len() as u32;
        self.in_flight.push_back(RecordSeq(first_seq.0 + u64::from(count)));
        HostCounters::add(&counters.batches, 1);
        Some((Batch { epoch, first_seq, time, records }, count))
    }
}

/// Encodes a batch as a proposal.
pub(super) fn proposal(group: perennial_core::id::GroupId, batch: &Batch, records: u32) -> Proposal {
    let data = Bytes::from(postcard::to_stdvec(batch).expect("a batch always encodes"));
    Proposal { group, epoch: batch.epoch, first_seq: batch.first_seq, records, data }
}
