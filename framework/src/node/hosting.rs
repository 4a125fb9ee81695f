//! Hosts follow epochs: opened, fed and closed as the replica tells.
//!
//! Owns the supervisor of the hosts. Openings and closings go through one queue, in order; what is
//! applied or confirmed goes straight to the host of that epoch.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use perennial_core::id::{GroupId, LogIndex, PartitionId, Term};
use perennial_core::partition::apply::read_meta;
use perennial_core::replication::Role;
use ractor::{ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::mpsc;

use super::{Inner, ReplicaLog};
use crate::clock::Clock;
use crate::host::{self, HostMessage, HostShared, Opening};
use crate::replica::{GroupEvent, GroupSink, ReplicaFault};
use crate::router::RouterCaller;

/// The beginning or the end of an epoch led here.
pub(super) enum Lifecycle {
    Opened { group: GroupId, epoch: Term, meta: Vec<u8> },
    Closed { group: GroupId, epoch: Term },
}

/// Applied index of each partition here.
pub(super) struct AppliedIndexes(Vec<AtomicU64>);

impl AppliedIndexes {
    pub(super) fn new(partitions: u32) -> Self {
        Self((0..partitions).map(|_| AtomicU64::new(0)).collect())
    }

    fn set(&self, partition: PartitionId, index: LogIndex) {
        if let Some(slot) = self.0.get(partition.0 as usize) {
            slot.store(index.0, Ordering::Release);
        }
    }

    fn get(&self, partition: PartitionId) -> LogIndex {
        LogIndex(self.0.get(partition.0 as usize).map_or(0, |slot| slot.load(Ordering::Acquire)))
    }
}

/// Takes the replica's events; runs on its thread.
pub(super) struct Sink(Weak<Inner>);

impl Sink {
    pub(super) fn new(inner: &Arc<Inner>) -> Self {
        Self(Arc::downgrade(inner))
    }
}

impl GroupSink for Sink {
    fn event(&self, group: GroupId, event: GroupEvent) {
        let Some(inner) = self.0.upgrade() else { return };
        let lifecycle = |event| drop(inner.lifecycle.send(event));
        match event {
            GroupEvent::LeaderIs { leader, term } => match group.partition() {
                Some(partition) => inner.router.leader(partition, term, leader),
                None => drop(inner.system_leader.send_replace(leader)),
            },
            GroupEvent::Opened { term, meta } => lifecycle(Lifecycle::Opened { group, epoch: term, meta }),
            GroupEvent::Closed { term } => lifecycle(Lifecycle::Closed { group, epoch: term }),
            GroupEvent::Refused { epoch, .. } => lifecycle(Lifecycle::Closed { group, epoch }),
            GroupEvent::Applied { index, term, next_seq } => match group.partition() {
                Some(partition) => {
                    inner.applied.set(partition, index);
                    inner.hosts.tell(partition, term, HostMessage::Applied { index, next_seq });
                }
                None => inner.system.applied(next_seq),
            },
            GroupEvent::ReadConfirmed { epoch, ctx } => {
                if let Some(partition) = group.partition() {
                    inner.hosts.tell(partition, epoch, HostMessage::ReadConfirmed { ctx });
                }
            }
            GroupEvent::Transferring { .. } => {}
        }
    }

    fn failed(&self, fault: ReplicaFault) {
        if let Some(inner) = self.0.upgrade() {
            inner.hosts.close_all();
            inner.fail(super::chain(&fault));
        }
    }
}

/// Opens and closes hosts as epochs come and go.
pub(super) async fn run(inner: Arc<Inner>, mut lifecycles: mpsc::UnboundedReceiver<Lifecycle>) {
    let supervisor = match ractor::Actor::spawn(None, Supervisor, ()).await {
        Ok((supervisor, _)) => supervisor,
        Err(error) => return inner.fail(format!("the supervisor of the hosts cannot start: {error}")),
    };
    while let Some(lifecycle) = lifecycles.recv().await {
        match lifecycle {
            Lifecycle::Opened { group, epoch, meta } => match group.partition() {
                None => inner.system.open(epoch),
                Some(partition) => open(&inner, partition, epoch, &meta, &supervisor).await,
            },
            Lifecycle::Closed { group, epoch } => match group.partition() {
                None => inner.system.close(epoch),
                Some(partition) => inner.hosts.close(partition, epoch),
            },
        }
        inner.router.notify();
    }
}

async fn open(
    inner: &Arc<Inner>,
    partition: PartitionId,
    epoch: Term,
    meta: &[u8],
    supervisor: &ActorRef<Nothing>,
) {
    let Some(replica) = inner.replica() else { return };
    let Some(meta) = read_meta(meta) else {
        return inner.fail(format!("the meta state of partition {partition} cannot be read"));
    };
    let caller = RouterCaller(inner.router.clone());
    let shared = HostShared {
        node: inner.node.clone(),
        kinds: inner.app.kinds().clone(),
        rows: replica.rows(),
        log: Arc::new(ReplicaLog(replica.clone())),
        caller: Arc::new(caller.clone()),
        courier: Arc::new(caller),
        clock: Clock::System,
        counters: inner.counters.clone(),
    };
    let opening = Opening { partition, epoch, meta, applied: inner.applied.get(partition), shared };
    match host::start(opening, supervisor.get_cell()).await {
        Ok(host) => inner.hosts.open(host),
        // The supervisor goes first when the node stops.
        Err(_) if inner.stopping.is_cancelled() => {}
        Err(error) => tracing::error!(%partition, %error, "a host cannot start"),
    }
}

/// Hands every partition led here to its most advanced follower.
pub(super) async fn give_leaderships_away(inner: &Arc<Inner>) {
    let Some(replica) = inner.replica() else { return };
    loop {
        let groups = replica.status().await;
        let led: Vec<_> = groups
            .iter()
            .filter(|g| g.role == Role::Leader)
            .filter_map(|g| {
                let best = g.followers.iter().filter(|f| f.active).max_by_key(|f| f.matched)?;
                Some((g.group, best.member))
            })
            .collect();
        if led.is_empty() {
            return;
        }
        for (group, to) in led {
            replica.transfer(group, to);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Supervises the hosts. A host that panics has broken a rule of ours; its partition goes on in a new
/// epoch, which begins when another member, or this one anew, takes the lead.
struct Supervisor;

/// The supervisor takes no messages.
pub(super) struct Nothing;
impl ractor::Message for Nothing {}

impl ractor::Actor for Supervisor {
    type Msg = Nothing;
    type State = ();
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Nothing>, (): ()) -> Result<(), ActorProcessingErr> {
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<Nothing>,
        event: SupervisionEvent,
        (): &mut (),
    ) -> Result<(), ActorProcessingErr> {
        if let SupervisionEvent::ActorFailed(_, error) = event {
            tracing::error!(%error, "a partition host failed");
        }
        Ok(())
    }
}
