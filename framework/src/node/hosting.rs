//! Hosts follow epochs: opened, fed and closed as the replica tells.
//!
//! Owns the supervisor of the hosts. Openings and closings go through one queue, in order; what is
//! applied or confirmed goes straight to the host of that epoch.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use perennial_core::id::{GroupId, LogIndex, PartitionId, RecordSeq, Term};
use perennial_core::partition::apply::read_meta;
use perennial_core::replication::{Proposal, Role};
use ractor::{ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::mpsc;

use super::{Inner, ReplicaLog};
use crate::host::{self, HostMessage, HostShared, Log as _, Opening};
use crate::replica::{GroupEvent, GroupSink, ReplicaFault};
use crate::router::RouterCaller;

/// The beginning or the end of an epoch led here.
pub(super) enum Lifecycle {
    Opened { group: GroupId, epoch: Term, meta: Vec<u8>, applied: LogIndex },
    Closed { group: GroupId, epoch: Term },
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
            GroupEvent::Opened { term, meta, applied } => {
                lifecycle(Lifecycle::Opened { group, epoch: term, meta, applied });
            }
            GroupEvent::Closed { term } => lifecycle(Lifecycle::Closed { group, epoch: term }),
            GroupEvent::Refused { epoch, .. } => lifecycle(Lifecycle::Closed { group, epoch }),
            GroupEvent::Applied { index, term, next_seq } => match group.partition() {
                Some(partition) => {
                    inner.hosts.tell(partition, term, HostMessage::Applied { index, next_seq });
                }
                None => inner.system.applied(term, next_seq),
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
    let supervisor = match ractor::Actor::spawn(None, Supervisor(Arc::downgrade(&inner)), ()).await {
        Ok((supervisor, _)) => supervisor,
        Err(error) => return inner.fail(format!("the supervisor of the hosts cannot start: {error}")),
    };
    while let Some(lifecycle) = lifecycles.recv().await {
        match lifecycle {
            Lifecycle::Opened { group, epoch, meta, applied } => match group.partition() {
                None => inner.system.open(epoch),
                Some(partition) => {
                    open(&inner, (partition, epoch), &meta, applied, &supervisor).await;
                }
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
    (partition, epoch): (PartitionId, Term),
    meta: &[u8],
    applied: LogIndex,
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
        log: inner.log(replica, partition, epoch),
        caller: Arc::new(caller.clone()),
        courier: Arc::new(caller),
        clock: inner.clock.clone(),
        counters: inner.counters.clone(),
        builds: Arc::new(super::builds::NodeBuilds::new(inner)),
    };
    let opening = Opening { partition, epoch, meta, applied, shared };
    match host::start(opening, supervisor.get_cell()).await {
        Ok(host) => inner.hosts.open(host),
        // The supervisor goes first when the node stops.
        Err(_) if inner.stopping.is_cancelled() => {}
        Err(error) => {
            tracing::error!(%partition, %error, "a host cannot start");
            leave(inner, partition, epoch);
        }
    }
}

/// Ends an epoch whose host is gone: a proposal out of sequence poisons it, and the replica asks for a
/// fresh one, here or elsewhere, with a host that starts from what is applied.
fn leave(inner: &Inner, partition: PartitionId, epoch: Term) {
    inner.hosts.close(partition, epoch);
    if let Some(replica) = inner.replica() {
        let (group, first_seq) = (GroupId::of(partition), RecordSeq(u64::MAX));
        ReplicaLog(replica.clone()).propose(Proposal {
            group,
            epoch,
            first_seq,
            records: 0,
            data: Bytes::new(),
        });
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
                let best =
                    g.followers.iter().filter(|f| f.active && !f.snapshot).max_by_key(|f| f.matched)?;
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

/// Supervises the hosts. A host that panics, or ends itself because it cannot go on, has made nothing of
/// what it owed; its partition goes on in a fresh epoch.
struct Supervisor(Weak<Inner>);

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
        let (host, why) = match event {
            SupervisionEvent::ActorFailed(host, error) => (host, error.to_string()),
            SupervisionEvent::ActorTerminated(host, _, why) => (host, why.unwrap_or_default()),
            _ => return Ok(()),
        };
        // One that was ended because its epoch is over is not entered any more.
        if let Some(inner) = self.0.upgrade()
            && let Some((partition, epoch)) = inner.hosts.find(host.get_id())
        {
            tracing::error!(%partition, why, "a partition host failed; its partition goes on in a fresh epoch");
            leave(&inner, partition, epoch);
        }
        Ok(())
    }
}
