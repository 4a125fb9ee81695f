//! What the node tells about the cluster.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use perennial_core::id::{NodeId, PartitionId};
use perennial_core::replication::Role;

use super::Inner;
use crate::protocol::{Question, Response};
use crate::status::{ClusterStatus, MemberStatus, PartitionStatus, ReplicaStatus};

/// How long the other leaders have to tell about their partitions.
const LED_TIMEOUT: Duration = Duration::from_millis(500);

/// Whether calls can be served from here; else what is missing.
pub(super) fn ready(inner: &Inner) -> Result<(), String> {
    if let Some(why) = inner.failed.borrow().as_ref() {
        return Err(format!("stopped: {why}"));
    }
    if inner.stopping.is_cancelled() {
        return Err("stopping".into());
    }
    let routes = inner.router.routes();
    let (Some(routes), Some(me)) = (routes.as_ref(), inner.router.me()) else {
        return Err(inner.formation.waiting.borrow().clone());
    };
    if inner.replica().is_none() {
        return Err("opening the data".into());
    }
    let state = routes.state();
    let mine = |p: &PartitionId| state.table.replicas_of(*p).contains(&me);
    let unled = state.meta.partitions.iter().filter(mine).filter(|p| routes.hint(*p).is_none()).count();
    if unled > 0 {
        let is_down =
            |node: &NodeId| *node != inner.node && inner.transport.get().is_some_and(|t| !t.is_up(node));
        let down: Vec<_> =
            state.members.iter().map(|m| &m.node).filter(|n| is_down(n)).map(ToString::to_string).collect();
        let why = match down.as_slice() {
            [] => String::new(),
            down => format!("; not reached: {}", down.join(", ")),
        };
        return Err(format!("{unled} of {} partitions have no leader yet{why}", state.meta.partitions.get()));
    }
    Ok(())
}

/// The partitions led here.
pub(super) async fn led(inner: &Arc<Inner>) -> Vec<PartitionStatus> {
    let Some(replica) = inner.replica() else { return Vec::new() };
    let groups = replica.status().await;
    let led = groups.into_iter().filter(|g| g.role == Role::Leader).filter_map(|g| {
        let partition = g.group.partition()?;
        let lag_of = |node: &NodeId| {
            if *node == inner.node {
                return Some(g.last.0.saturating_sub(g.applied.0));
            }
            let member = inner.member_of(node)?;
            let follower = g.followers.iter().find(|f| f.member == member && f.active)?;
            Some(g.last.0.saturating_sub(follower.matched.0))
        };
        let replicas = replicas_of(inner, partition);
        let replicas = replicas.into_iter().map(|node| ReplicaStatus { lag: lag_of(&node), node }).collect();
        Some(PartitionStatus {
            partition,
            leader: Some(inner.node.clone()),
            term: g.term.0,
            commit: g.commit.0,
            replicas,
            activations: inner.hosts.get(partition).map_or(0, |host| host.resident()),
            parked: inner.hosts.get(partition).map_or(0, |host| host.parked()),
        })
    });
    led.collect()
}

fn replicas_of(inner: &Inner, partition: PartitionId) -> Vec<NodeId> {
    let routes = inner.router.routes();
    let Some(routes) = routes.as_ref() else { return Vec::new() };
    let state = routes.state();
    let node = |m: &perennial_core::id::MemberId| state.members.get(*m).map(|member| member.node.clone());
    state.table.replicas_of(partition).iter().filter_map(node).collect()
}

/// The cluster, leaders asked.
pub(super) async fn cluster(inner: &Arc<Inner>) -> ClusterStatus {
    let state = inner.router.routes().as_ref().map(|routes| routes.state().clone());
    let mut status = ClusterStatus {
        node: inner.node.clone(),
        app: inner.app.name().to_owned(),
        cluster: state.as_ref().map(|s| format!("{:032x}", s.meta.cluster.0)),
        epoch: state.as_ref().map(|s| s.table.epoch),
        waiting_for: ready(inner).err(),
        members: Vec::new(),
        partitions: Vec::new(),
    };
    let Some(state) = state else { return status };
    let is_up = |node: &NodeId| *node == inner.node || inner.transport.get().is_some_and(|t| t.is_up(node));
    let others: Vec<_> =
        state.members.iter().map(|m| m.node.clone()).filter(|n| *n != inner.node && is_up(n)).collect();
    let asked = others.iter().map(|node| inner.router.ask(node, &Question::Led, LED_TIMEOUT));
    let (own, answers) = tokio::join!(led(inner), futures_util::future::join_all(asked));
    let mut partitions: BTreeMap<PartitionId, PartitionStatus> = BTreeMap::new();
    let told = answers.into_iter().filter_map(|answer| match answer {
        Ok(Response::Led(led)) => Some(led),
        _ => None,
    });
    for partition in own.into_iter().chain(told.flatten()) {
        let known = partitions.get(&partition.partition);
        if known.is_none_or(|known| known.term < partition.term) {
            partitions.insert(partition.partition, partition);
        }
    }
    for partition in state.meta.partitions.iter() {
        let hint = inner.router.routes().as_ref().and_then(|routes| routes.hint(partition));
        partitions.entry(partition).or_insert_with(|| PartitionStatus {
            partition,
            leader: hint.and_then(|(_, leader)| inner.node_of(leader)).filter(is_up),
            term: hint.map_or(0, |(term, _)| term.0),
            commit: 0,
            replicas: replicas_of(inner, partition)
                .into_iter()
                .map(|node| ReplicaStatus { node, lag: None })
                .collect(),
            activations: 0,
            parked: 0,
        });
    }
    status.partitions = partitions.into_values().collect();
    status.members = state
        .members
        .iter()
        .map(|m| MemberStatus {
            member: m.id,
            node: m.node.clone(),
            address: m.address.clone(),
            http: m.http.clone(),
            zone: m.zone.clone(),
            up: is_up(&m.node),
            leads: status.partitions.iter().filter(|p| p.leader.as_ref() == Some(&m.node)).count() as u32,
            replicas: state.table.replicas.iter().filter(|r| r.contains(&m.id)).count() as u32,
            incarnation: m.incarnation,
            build: format!("{:016x}", m.build),
        })
        .collect();
    status
}
