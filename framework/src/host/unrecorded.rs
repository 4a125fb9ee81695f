//! Answers of calls that left no record.
//!
//! A call whose turn was undone or changed nothing is not in the log, so nothing there stops an earlier
//! attempt of it that was held up on its way: it would run after its caller was told of the refusal.
//! Owns those answers for as long as an attempt may be under way; a new leader starts without them.
//! Not for calls under an idempotency key: a repeat of a refused one is meant to run.

use std::collections::{HashMap, VecDeque};

use foldhash::fast::FixedState;
use perennial_core::id::RequestId;
use perennial_core::time::Millis;

use crate::actor::Answer;

/// How long they are kept, in milliseconds; twice as long as a call can last.
const KEEP_MS: u64 = 2 * 60 * 1000;
/// Most of them kept for a partition; the oldest go first.
const ANSWERS_MAX: usize = 4096;
/// Most bytes of them, likewise.
const BYTES_MAX: usize = 1024 * 1024;

/// See the module. Invariant: `order` has the keys of `answers`, the oldest first, and `bytes` is the sum
/// of their sizes.
#[derive(Default)]
pub(super) struct Unrecorded {
    answers: HashMap<RequestId, Answer, FixedState>,
    order: VecDeque<(Millis, RequestId)>,
    bytes: usize,
}

impl Unrecorded {
    /// The answer that a call got.
    pub(super) fn get(&self, request: RequestId) -> Option<&Answer> {
        self.answers.get(&request)
    }

    /// Keeps an answer, unless the call is worth another try.
    pub(super) fn keep(&mut self, request: RequestId, answer: &Answer, now: Millis) {
        if matches!(answer, Answer::Fault(fault) if fault.retryable()) || self.answers.contains_key(&request)
        {
            return;
        }
        self.bytes += size(answer);
        self.answers.insert(request, answer.clone());
        self.order.push_back((now, request));
        while let Some((_, oldest)) = self.order.pop_front_if(|(since, _)| {
            now.since(*since) > KEEP_MS || self.answers.len() > ANSWERS_MAX || self.bytes > BYTES_MAX
        }) {
            self.bytes -= self.answers.remove(&oldest).as_ref().map_or(0, size);
        }
    }
}

fn size(answer: &Answer) -> usize {
    match answer {
        Answer::Ok(bytes) | Answer::App(bytes) => bytes.len(),
        Answer::Fault(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use perennial_core::id::SessionId;

    use super::*;

    fn request(seq: u64) -> RequestId {
        RequestId { session: SessionId(1), seq }
    }

    fn refused(bytes: usize) -> Answer {
        Answer::App(vec![0; bytes].into())
    }

    #[test]
    fn answers_go_by_age_number_and_size() {
        let mut kept = Unrecorded::default();
        kept.keep(request(0), &refused(1), Millis(0));
        kept.keep(request(1), &refused(1), Millis(KEEP_MS));
        assert_eq!(kept.get(request(0)), Some(&refused(1)));
        kept.keep(request(2), &refused(1), Millis(KEEP_MS + 1));
        assert_eq!(kept.get(request(0)), None);
        let many = ANSWERS_MAX as u64;
        for seq in 3..many + 2 {
            kept.keep(request(seq), &refused(1), Millis(KEEP_MS + 1));
        }
        assert_eq!((kept.get(request(1)), kept.answers.len()), (None, ANSWERS_MAX));
        kept.keep(request(many + 2), &refused(BYTES_MAX - 10), Millis(KEEP_MS + 1));
        assert_eq!((kept.answers.len(), kept.bytes), (11, BYTES_MAX));
    }
}
