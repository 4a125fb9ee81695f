//! Linearizable answers without a log append.
//!
//! A read runs at once on the newest state. Its answer leaves when the records it may have seen are
//! applied and leadership was confirmed by a round begun after it arrived; one round serves all reads
//! waiting for it. Answers of undone turns and repeated answers take the same way.
//! Source: Ongaro's thesis, §6.4, with the state read early instead of late.

use perennial_core::id::RecordSeq;

use super::turns::Host;
use super::{Ended, ReplyTo};
use crate::call::Answered;

/// An answer that waits.
struct Waiting {
    /// Records below this one must be applied.
    needs: RecordSeq,
    reply: ReplyTo,
    answered: Answered,
}

/// Answers that wait for a round or for a commit.
#[derive(Default)]
pub(super) struct Reads {
    /// Came after the running round began.
    arrived: Vec<Waiting>,
    /// Served by the running round.
    round: Vec<Waiting>,
    running: bool,
    ctx: u64,
    /// Confirmed; in the order of arrival, so `needs` never goes down.
    confirmed: std::collections::VecDeque<Waiting>,
}

impl Host {
    /// Answers once everything up to now is applied and leadership confirmed.
    pub(super) fn answer_as_read(&mut self, reply: ReplyTo, answered: Answered) {
        let needs = self.spec.next_record();
        self.reads.arrived.push(Waiting { needs, reply, answered });
        self.begin_round();
    }

    fn begin_round(&mut self) {
        if self.reads.running || self.reads.arrived.is_empty() {
            return;
        }
        self.reads.running = true;
        self.reads.ctx += 1;
        std::mem::swap(&mut self.reads.round, &mut self.reads.arrived);
        self.shared.log.read_index(self.group, self.epoch, self.reads.ctx);
    }

    pub(super) fn on_read_confirmed(&mut self, ctx: u64) {
        if !self.reads.running || ctx != self.reads.ctx {
            return;
        }
        self.reads.running = false;
        self.reads.confirmed.extend(self.reads.round.drain(..));
        self.release_reads();
        self.begin_round();
    }

    /// Answers confirmed reads whose records are applied.
    pub(super) fn release_reads(&mut self) {
        while self.reads.confirmed.front().is_some_and(|read| read.needs <= self.applied) {
            if let Some(read) = self.reads.confirmed.pop_front() {
                read.reply.end(Ended::Answered(read.answered));
            }
        }
    }
}
