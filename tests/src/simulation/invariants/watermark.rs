//! A session's mark only rises, and a request below it never runs: its reply may be forgotten, so it could
//! run twice (RIFL, section 4.2).

use std::collections::BTreeMap;

use perennial::core::id::{GroupId, RequestId};
use perennial::core::partition::record::Cause;

use super::{Invariant, Seen};

/// The highest mark of each session, by group.
#[derive(Default)]
pub struct Watermark(BTreeMap<(GroupId, String), u64>);

impl Invariant for Watermark {
    fn first(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        for turn in seen.turns() {
            let Cause::Call { request: RequestId { session, seq }, ack_below, .. } = &turn.cause else {
                continue;
            };
            let mark = self.0.entry((seen.group, format!("{session:?}"))).or_default();
            if *seq < *mark {
                return Err(format!(
                    "request {seq} of {session:?} runs at {} {}, below its session's mark {mark}",
                    seen.group, seen.index
                ));
            }
            *mark = (*mark).max(*ack_below);
        }
        Ok(())
    }
}
