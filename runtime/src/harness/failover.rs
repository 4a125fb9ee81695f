//! Killing a node under load, measuring the gap and waiting until it has caught up.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use perennial::core::id::{NodeId, PartitionId};
use perennial::status::ClusterStatus;
use perennial::{Client, Fault};
use serde::Serialize;

use super::{HarnessError, POLL, ProcessCluster};
use crate::workload::Probe;

/// How long to wait for the partitions of a dead node to answer again.
const GAP_WAIT_MAX: Duration = Duration::from_secs(15);
/// How long a node may take to be ready and to catch up after its return.
const RETURN_MAX: Duration = Duration::from_secs(60);
/// How long a cluster may take to tell its status.
const STATUS_WAIT_MAX: Duration = Duration::from_secs(15);

/// What one kill showed.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct FailOver {
    /// The node that was killed.
    pub(crate) node: NodeId,
    /// Partitions it led.
    pub(crate) led: usize,
    /// Partitions among them that had calls before; each has a gap.
    pub(crate) measured: usize,
    /// Of the measured ones, how many did not answer in time.
    pub(crate) unanswered: usize,
    /// Median time from the kill to a partition's first answer, in milliseconds.
    pub(crate) gap_p50_ms: u64,
    /// Longest such time, in milliseconds.
    pub(crate) gap_max_ms: u64,
    /// Each partition's, sorted, in milliseconds.
    #[serde(skip)]
    pub(crate) gaps_ms: Vec<u64>,
    /// From its restart until its replicas had everything that was committed, in milliseconds.
    pub(crate) caught_up_ms: u64,
}

/// How many partitions each member leads.
pub(crate) fn counts_of(status: &ClusterStatus) -> BTreeMap<NodeId, u32> {
    let mut counts: BTreeMap<_, _> = status.members.iter().map(|member| (member.node.clone(), 0)).collect();
    for leader in status.partitions.iter().filter_map(|partition| partition.leader.as_ref()) {
        *counts.entry(leader.clone()).or_default() += 1;
    }
    counts
}

/// The status of the cluster, asked for until it comes.
pub(crate) async fn status_of(client: &Client) -> Result<ClusterStatus, HarnessError> {
    let until = Instant::now() + STATUS_WAIT_MAX;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        match tokio::time::timeout(left, client.status()).await {
            Ok(Ok(status)) if !status.partitions.is_empty() => return Ok(status),
            Ok(Err(fault)) if !fault.retryable() => return Err(fault.into()),
            Ok(_) => tokio::time::sleep(POLL).await,
            Err(_) => {
                let why = format!("no node told it within {} s", STATUS_WAIT_MAX.as_secs());
                return Err(Fault::Unavailable { what: "the status".into(), why }.into());
            }
        }
    }
}

/// Kills the node that leads most partitions (never `spare`) while calls are in flight, waits until each
/// of its partitions answers again, restarts it and waits until it has caught up.
pub(crate) async fn kill_and_return(
    cluster: &mut ProcessCluster,
    client: &Client,
    probe: &Probe,
    spare: Option<&NodeId>,
    mut tell: impl FnMut(&str),
) -> Result<FailOver, HarnessError> {
    let status = status_of(client).await?;
    let (node, _) = counts_of(&status)
        .into_iter()
        .filter(|(node, _)| Some(node) != spare && cluster.position(node).is_some())
        .max_by_key(|(_, led)| *led)
        .ok_or_else(|| Fault::Unavailable { what: "a node to kill".into(), why: "there is none".into() })?;
    let at = cluster.position(&node).expect("only nodes of the cluster were looked at");
    let led: BTreeSet<_> =
        status.partitions.iter().filter(|p| p.leader.as_ref() == Some(&node)).map(|p| p.partition).collect();
    let led_count = led.len();

    tell(&format!("kill -9 of {node}, which leads {led_count} of {} partitions", status.partitions.len()));
    let measured = probe.watch_next(node.clone(), led);
    let killed = cluster.kill9(at).await;
    probe.watch_from(killed);
    while probe.gaps().waiting > 0 && killed.elapsed() < GAP_WAIT_MAX {
        tokio::time::sleep(POLL).await;
    }
    let seen = probe.gaps();
    let mut gaps_ms: Vec<_> = seen.by_partition.values().map(|gap| gap.as_millis() as u64).collect();
    gaps_ms.sort_unstable();

    tell(&format!("{node} was missed for {} ms; restarting it", gaps_ms.last().copied().unwrap_or(0)));
    let restarted = Instant::now();
    cluster.restart(at).await?;
    cluster.wait_node_ready(at, RETURN_MAX).await?;
    catch_up(client, &node, RETURN_MAX).await?;
    let caught_up_ms = restarted.elapsed().as_millis() as u64;
    tell(&format!("{node} is back and has caught up after {caught_up_ms} ms"));
    Ok(FailOver {
        node,
        led: led_count,
        measured,
        unanswered: seen.waiting,
        gap_p50_ms: gaps_ms.get(gaps_ms.len() / 2).copied().unwrap_or(0),
        gap_max_ms: gaps_ms.last().copied().unwrap_or(0),
        gaps_ms,
        caught_up_ms,
    })
}

/// Waits until each replica of `node` holds everything that was committed when this began.
async fn catch_up(client: &Client, node: &NodeId, patience: Duration) -> Result<(), HarnessError> {
    let begun = Instant::now();
    let status = status_of(client).await?;
    let targets: BTreeMap<_, _> = status.partitions.iter().map(|p| (p.partition, p.commit)).collect();
    loop {
        let behind = behind(&status_of(client).await?, node, &targets);
        if behind == 0 {
            return Ok(());
        }
        if begun.elapsed() > patience {
            let waiting = vec![format!("{node}: {behind} replicas have not caught up")];
            return Err(HarnessError::NotReady { seconds: patience.as_secs(), waiting });
        }
        tokio::time::sleep(POLL).await;
    }
}

/// How many replicas of `node` may lack entries up to the targets. A lag is counted from the leader's log
/// end, which is never before its commit index, so commit - lag is a floor of what the replica has.
fn behind(status: &ClusterStatus, node: &NodeId, targets: &BTreeMap<PartitionId, u64>) -> usize {
    let replicas = status.partitions.iter().filter_map(|partition| {
        let replica = partition.replicas.iter().find(|replica| replica.node == *node)?;
        let target = targets.get(&partition.partition).copied().unwrap_or(0);
        Some(match replica.lag {
            Some(0) => true,
            Some(lag) => partition.commit.saturating_sub(lag) >= target,
            None => false,
        })
    });
    replicas.filter(|has| !has).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use perennial::status::{PartitionStatus, ReplicaStatus};

    fn status(lag: Option<u64>, commit: u64) -> ClusterStatus {
        let node = NodeId::new("n1").unwrap();
        ClusterStatus {
            node: node.clone(),
            app: "test".into(),
            cluster: None,
            epoch: None,
            waiting_for: None,
            members: Vec::new(),
            partitions: vec![PartitionStatus {
                partition: PartitionId(0),
                leader: Some(node.clone()),
                term: 1,
                commit,
                replicas: vec![ReplicaStatus { node, lag }],
                activations: 0,
                parked: 0,
            }],
            checks: Vec::new(),
        }
    }

    #[test]
    fn a_replica_has_caught_up_once_it_holds_what_was_committed() {
        let node = NodeId::new("n1").unwrap();
        let targets = BTreeMap::from([(PartitionId(0), 100)]);
        let behind = |lag, commit| behind(&status(lag, commit), &node, &targets);
        assert_eq!(behind(None, 150), 1, "not known");
        assert_eq!(behind(Some(60), 150), 1);
        assert_eq!(behind(Some(50), 150), 0, "load goes on, but the target is reached");
        assert_eq!(behind(Some(0), 10), 0);
    }
}
