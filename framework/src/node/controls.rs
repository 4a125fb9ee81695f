//! Mistakes planted on purpose: controls that a simulation finds what it looks for.
//!
//! Owns what stands between a simulated machine's replica and its node when one is planted. Compiled for
//! tests only.

use std::sync::Arc;

use perennial_core::id::{GroupId, LogIndex, PartitionId, RecordSeq, Term};
use perennial_core::partition::apply::read_meta;
use perennial_core::replication::{Fence, Proposal, RestoreError, RowOp, StateMachine};

use crate::host::{HostMessage, Hosts, Log};
use crate::replica::{GroupEvent, GroupSink, ReplicaConfig, ReplicaFault};

/// A mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mistake {
    /// Proposals are taken from any epoch, out of sequence, after a refusal, and before the epoch is open.
    NoFences,
    /// Answers leave when their records are proposed, not when they are committed.
    EarlyAnswers,
    /// Reads are answered without asking whether this node still leads.
    DirtyReads,
    /// A new leader knows no replies of its predecessors.
    RepliesForgotten,
    /// Now and then two entries are applied in the wrong order.
    OutOfOrder,
}

/// Takes fences away, if that is the mistake.
pub(super) fn unfence(config: &mut ReplicaConfig, mistake: Option<Mistake>) {
    if mistake == Some(Mistake::NoFences) {
        config.driver.without = &[Fence::Epoch, Fence::Sequence, Fence::Poison, Fence::Opened];
    }
}

struct SpoiledLog {
    log: Arc<dyn Log>,
    mistake: Option<Mistake>,
    hosts: Arc<Hosts>,
    partition: PartitionId,
    epoch: Term,
}

/// The log as a host sees it.
pub(super) fn spoil(
    log: Arc<dyn Log>,
    mistake: Option<Mistake>,
    hosts: &Arc<Hosts>,
    partition: PartitionId,
    epoch: Term,
) -> Arc<dyn Log> {
    Arc::new(SpoiledLog { log, mistake, hosts: hosts.clone(), partition, epoch })
}

impl Log for SpoiledLog {
    fn propose(&self, proposal: Proposal) {
        let next_seq = RecordSeq(proposal.first_seq.0 + u64::from(proposal.records));
        self.log.propose(proposal);
        if self.mistake == Some(Mistake::EarlyAnswers) {
            let applied = HostMessage::Applied { index: LogIndex(0), next_seq };
            self.hosts.tell(self.partition, self.epoch, applied);
        }
    }

    fn read_index(&self, group: GroupId, epoch: Term, ctx: u64) {
        if self.mistake == Some(Mistake::DirtyReads) {
            self.hosts.tell(self.partition, epoch, HostMessage::ReadConfirmed { ctx });
        } else {
            self.log.read_index(group, epoch, ctx);
        }
    }
}

/// The node as the replica sees it.
pub(super) struct SpoiledSink(pub(super) Option<Mistake>, pub(super) Arc<dyn GroupSink>);

impl GroupSink for SpoiledSink {
    fn event(&self, group: GroupId, mut event: GroupEvent) {
        if let (Some(Mistake::RepliesForgotten), GroupEvent::Opened { meta, .. }) = (self.0, &mut event)
            && let Some(mut partition) = group.partition().and_then(|_| read_meta(meta))
        {
            partition.forget_replies();
            *meta = partition.checkpoint();
        }
        self.1.event(group, event);
    }
    fn failed(&self, fault: ReplicaFault) {
        self.1.failed(fault);
    }
}

/// A machine that applies one entry in so many too late.
pub(super) struct SpoiledMachine {
    machine: Box<dyn StateMachine>,
    applied: u64,
    held: Option<(Term, LogIndex, Vec<u8>)>,
}

/// One entry in so many is applied after the next.
const LATE_EVERY: u64 = 50;

impl SpoiledMachine {
    pub(super) fn new(machine: Box<dyn StateMachine>) -> Self {
        Self { machine, applied: 0, held: None }
    }
}

impl StateMachine for SpoiledMachine {
    fn apply(&mut self, term: Term, index: LogIndex, entry: &[u8], rows: &mut Vec<RowOp>) {
        self.applied += 1;
        if self.applied.is_multiple_of(LATE_EVERY) {
            self.held = Some((term, index, entry.to_vec()));
            return;
        }
        self.machine.apply(term, index, entry, rows);
        if let Some((term, index, entry)) = self.held.take() {
            self.machine.apply(term, index, &entry, rows);
        }
    }
    fn checkpoint(&self) -> Vec<u8> {
        self.machine.checkpoint()
    }
    fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        self.machine.restore(bytes)
    }
    fn installed(&mut self) {
        self.machine.installed();
    }
    fn next_seq(&self, epoch: Term) -> RecordSeq {
        self.machine.next_seq(epoch)
    }
}
