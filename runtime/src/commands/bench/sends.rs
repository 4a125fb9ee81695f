//! Messages between counters that different nodes lead: what is sent, and what of it is applied.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use perennial::Client;
use perennial::call::ActorId;
use perennial::core::hash::{PartitionCount, partition_of};
use perennial::core::id::{NodeId, PartitionId};
use perennial::status::ClusterStatus;
use serde::Serialize;

use super::load::Call;
use crate::counter::{self, Prepared, counter};
use crate::exit::CommandError;

/// Messages of one call.
const EACH: u32 = 8;
/// Counters that are sent to.
const RECEIVERS: u32 = 256;
/// Receivers read at a time.
const READERS: usize = 64;
/// How long messages may take to arrive once nothing is sent any more.
const SETTLE_MAX: Duration = Duration::from_secs(60);
/// Pause between two looks whether they have.
const SETTLE_PAUSE: Duration = Duration::from_millis(100);

/// What messages showed.
#[derive(Debug, Serialize)]
pub(super) struct Sends {
    /// Applied at their receivers in the measured stretch.
    pub(super) messages: u64,
    pub(super) messages_per_s: f64,
    pub(super) messages_of_a_call: u32,
    /// Sent by calls that were acknowledged, warm-up included.
    pub(super) sent: u64,
    /// Applied in the end.
    pub(super) applied: u64,
}

/// Senders with a receiver each that another node leads.
pub(super) struct Pairs {
    receivers: Vec<ActorId>,
    pub(super) calls: Vec<Call>,
}

impl Pairs {
    /// Pairs `keys` senders up, under names that no run before has used.
    pub(super) fn of(status: &ClusterStatus, keys: u32) -> Result<Self, CommandError> {
        let run: u64 = rand::random();
        let partitions = PartitionCount::try_from(status.partitions.len() as u32)
            .map_err(|_| CommandError::Failed("the cluster is not formed yet".into()))?;
        let leaders: BTreeMap<PartitionId, NodeId> =
            status.partitions.iter().filter_map(|p| Some((p.partition, p.leader.clone()?))).collect();
        let leader = |actor: &ActorId| leaders.get(&partition_of(actor, partitions));
        let receivers: Vec<_> = (0..RECEIVERS).map(|n| counter(&format!("bench-{run:x}-to-{n}"))).collect();
        let calls = (0..keys).filter_map(|key| {
            let sender = counter(&format!("bench-{run:x}-{key}"));
            let (from, ahead) = (leader(&sender)?, key as usize % receivers.len());
            let mut others = receivers.iter().cycle().skip(ahead).take(receivers.len());
            let receiver = others.find(|receiver| leader(receiver).is_some_and(|to| to != from))?;
            Some(Call { prepared: Prepared::send(receiver.key(), EACH), target: sender })
        });
        let calls: Vec<_> = calls.collect();
        if calls.is_empty() {
            let why = "messages between nodes need two nodes that lead; this cluster has one";
            return Err(CommandError::Failed(why.into()));
        }
        Ok(Self { receivers, calls })
    }

    /// What all receivers have got by now.
    pub(super) async fn applied(&self, client: &Client) -> Result<u64, CommandError> {
        let reads = stream::iter(&self.receivers).map(|receiver| counter::read(client, receiver));
        let sums: Vec<u64> = reads.buffer_unordered(READERS).try_collect().await?;
        Ok(sums.iter().sum())
    }

    /// Waits until everything has arrived that so many calls have sent.
    pub(super) async fn settle(
        &self,
        client: &Client,
        calls: u64,
        messages: u64,
        seconds: f64,
    ) -> Result<Sends, CommandError> {
        let sent = calls * u64::from(EACH);
        let began = tokio::time::Instant::now();
        let applied = loop {
            let applied = self.applied(client).await?;
            if applied >= sent || began.elapsed() > SETTLE_MAX {
                break applied;
            }
            tokio::time::sleep(SETTLE_PAUSE).await;
        };
        let messages_per_s = messages as f64 / seconds;
        Ok(Sends { messages, messages_per_s, messages_of_a_call: EACH, sent, applied })
    }
}
