//! The system partition on this node: members and placement as the log decides them.
//!
//! Owns the state machine of the group and, while this node leads it, the proposals under way. Every
//! replica publishes the state it has applied; everything else on the node follows that.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use perennial_core::id::{GroupId, LogIndex, RecordSeq, Term};
use perennial_core::placement::{ClusterState, SystemCommand};
use perennial_core::replication::{Proposal, RestoreError, RowOp, StateMachine};
use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};

use crate::host::Log;

/// Most commands under way at a time.
const COMMANDS_MAX: usize = 64;

/// Highest number of an entry in a checkpoint; counting never gets there.
const SEQ_MAX: u64 = 1 << 62;

/// An entry of the system partition.
#[derive(Serialize, Deserialize)]
struct Entry {
    epoch: Term,
    seq: RecordSeq,
    command: SystemCommand,
}

/// The replicated state, and where it is published once applied.
#[derive(Serialize, Deserialize)]
struct State {
    epoch: Term,
    next_seq: RecordSeq,
    cluster: ClusterState,
}

/// The state machine of the system partition.
pub(super) struct SystemMachine {
    state: State,
    published: watch::Sender<Option<ClusterState>>,
}

impl SystemMachine {
    /// The machine of a cluster as it was formed.
    pub(super) fn new(formed: ClusterState, published: watch::Sender<Option<ClusterState>>) -> Self {
        let state = State { epoch: Term(0), next_seq: RecordSeq(0), cluster: formed };
        Self { state, published }
    }

    /// The machine of a cluster of one node.
    #[cfg(any(test, fuzzing))]
    pub(super) fn for_fuzzing() -> Self {
        use perennial_core::hash::PartitionCount;
        use perennial_core::id::{ClusterId, NodeId};
        use perennial_core::membership::MemberSpec;
        use perennial_core::placement::{ClusterMeta, form};
        let meta = ClusterMeta::new(ClusterId(7), PartitionCount::DEFAULT, 1);
        let node = NodeId::new("n1").expect("a valid name");
        let formed = form(meta, vec![MemberSpec::new(node, "n1:1")]).expect("one node is enough");
        Self::new(formed, watch::Sender::new(None))
    }

    fn publish(&self) {
        self.published.send_replace(Some(self.state.cluster.clone()));
    }
}

impl StateMachine for SystemMachine {
    fn apply(&mut self, term: Term, _: LogIndex, entry: &[u8], _: &mut Vec<RowOp>) {
        let Ok((entry, [])) = postcard::take_from_bytes::<Entry>(entry) else { return };
        let expected = self.next_seq(entry.epoch);
        if entry.epoch != term || entry.epoch < self.state.epoch || entry.seq != expected {
            return;
        }
        self.state.epoch = entry.epoch;
        self.state.next_seq = RecordSeq(entry.seq.0 + 1);
        self.state.cluster.apply(entry.command);
        self.publish();
    }

    fn checkpoint(&self) -> Vec<u8> {
        postcard::to_stdvec(&self.state).expect("the system partition's state always encodes")
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        match postcard::take_from_bytes(bytes) {
            Ok((State { next_seq, .. }, [])) if next_seq.0 > SEQ_MAX => return Err(RestoreError::Malformed),
            Ok((state, [])) => self.state = state,
            _ => return Err(RestoreError::Malformed),
        }
        Ok(())
    }

    fn installed(&mut self) {
        self.publish();
    }

    fn next_seq(&self, epoch: Term) -> RecordSeq {
        if epoch == self.state.epoch { self.state.next_seq } else { RecordSeq(0) }
    }
}

/// The leading side, while there is one here.
#[derive(Default)]
pub(super) struct SystemLeader {
    leading: Mutex<Option<Leading>>,
}

struct Leading {
    epoch: Term,
    next: RecordSeq,
    waiting: VecDeque<(RecordSeq, oneshot::Sender<()>)>,
}

impl SystemLeader {
    fn leading(&self) -> std::sync::MutexGuard<'_, Option<Leading>> {
        self.leading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn open(&self, epoch: Term) {
        *self.leading() = Some(Leading { epoch, next: RecordSeq(0), waiting: VecDeque::new() });
    }

    /// The epoch is over; who waits for a command of it hears nothing and asks again.
    pub(super) fn close(&self, epoch: Term) {
        let mut leading = self.leading();
        if leading.as_ref().is_some_and(|l| l.epoch == epoch) {
            *leading = None;
        }
    }

    /// Commands of `epoch` below `next_seq` are applied.
    pub(super) fn applied(&self, epoch: Term, next_seq: RecordSeq) {
        let mut leading = self.leading();
        let Some(leading) = leading.as_mut().filter(|l| l.epoch == epoch) else { return };
        while let Some((_, done)) = leading.waiting.pop_front_if(|(seq, _)| *seq < next_seq) {
            let _ = done.send(());
        }
    }

    /// Whether this node leads the system partition.
    pub(super) fn is_open(&self) -> bool {
        self.leading().is_some()
    }

    /// Proposes a command; resolves once it is applied, fails when this node does not lead (any more).
    pub(super) fn propose(&self, log: &dyn Log, command: SystemCommand) -> Option<oneshot::Receiver<()>> {
        let mut leading = self.leading();
        let leading = leading.as_mut().filter(|l| l.waiting.len() < COMMANDS_MAX)?;
        let (done, applied) = oneshot::channel();
        let (epoch, seq) = (leading.epoch, leading.next);
        leading.next = RecordSeq(seq.0 + 1);
        leading.waiting.push_back((seq, done));
        let entry = Entry { epoch, seq, command };
        let data = Bytes::from(postcard::to_stdvec(&entry).expect("a command always encodes"));
        log.propose(Proposal { group: GroupId::SYSTEM, epoch, first_seq: seq, records: 1, data });
        Some(applied)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use perennial_core::hash::PartitionCount;
    use perennial_core::id::{ClusterId, NodeId};
    use perennial_core::membership::MemberSpec;
    use perennial_core::placement::{ClusterMeta, form};

    #[test]
    fn a_state_that_is_not_installed_is_not_published() {
        let meta = ClusterMeta::new(ClusterId(7), PartitionCount::try_from(1).unwrap(), 1);
        let formed = form(meta, vec![MemberSpec::new(NodeId::new("n1").unwrap(), "n1:7000")]).unwrap();
        let (published, seen) = watch::channel(None);
        let mut machine = SystemMachine::new(formed, published);
        let bytes = machine.checkpoint();
        machine.restore(&bytes).unwrap();
        assert!(!seen.has_changed().unwrap());
        machine.installed();
        assert!(seen.borrow().is_some());
    }
}
