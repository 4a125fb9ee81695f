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

/// Partitions that are named one by one where they have no leader; more are counted.
const UNLED_NAMED_MAX: usize = 8;

/// Whether the node is in a cluster and its data is open; else what is missing.
pub(super) fn joined(inner: &Inner) -> Result<(), String> {
    if let Some(why) = inner.failed.borrow().as_ref() {
        return Err(format!("stopped: {why}"));
    }
    if inner.stopping.is_cancelled() {
        return Err("stopping".into());
    }
    if inner.router.routes().is_none() || inner.router.me().is_none() {
        return Err(inner.formation.waiting.borrow().clone());
    }
    inner.replica().map(|_| ()).ok_or_else(|| "opening the data".into())
}

/// What this node holds and has no leader that is known here; with it, members that are not reached.
struct Unled {
    partitions: Vec<PartitionId>,
    all: u32,
    down: Vec<NodeId>,
}

fn unled(inner: &Inner) -> Option<Unled> {
    let routes = inner.router.routes();
    let (routes, me) = (routes.as_ref()?, inner.router.me()?);
    let state = routes.state();
    let mine = |p: &PartitionId| state.table.replicas_of(*p).contains(&me);
    let partitions: Vec<_> =
        state.meta.partitions.iter().filter(mine).filter(|p| routes.hint(*p).is_none()).collect();
    if partitions.is_empty() {
        return None;
    }
    let is_down =
        |node: &NodeId| *node != inner.node && inner.transport.get().is_some_and(|t| !t.is_up(node));
    let down = state.members.iter().map(|m| &m.node).filter(|n| is_down(n)).cloned().collect();
    Some(Unled { partitions, all: state.meta.partitions.get(), down })
}

/// Whether calls can be served from here; else what is missing.
pub(super) fn ready(inner: &Inner) -> Result<(), String> {
    joined(inner)?;
    if let Some(Unled { partitions, all, down }) = unled(inner) {
        let down: Vec<_> = down.iter().map(ToString::to_string).collect();
        let why = match down.as_slice() {
            [] => String::new(),
            down => format!("; not reached: {}", down.join(", ")),
        };
        return Err(format!("{} of {all} partitions have no leader yet{why}", partitions.len()));
    }
    match inner.health.failing().as_slice() {
        [] => Ok(()),
        failing => Err(failing.join("; ")),
    }
}

/// Everything for which calls cannot be served from here, one by one.
pub(super) fn not_ready(inner: &Inner) -> Vec<String> {
    if let Err(why) = joined(inner) {
        return vec![why];
    }
    let mut reasons = Vec::new();
    if let Some(Unled { partitions, down, .. }) = unled(inner) {
        let named = partitions.iter().take(UNLED_NAMED_MAX);
        reasons.extend(named.map(|partition| format!("partition {partition} has no leader known here")));
        if partitions.len() > UNLED_NAMED_MAX {
            let more = partitions.len() - UNLED_NAMED_MAX;
            reasons.push(format!("{more} more partitions have no leader known here"));
        }
        reasons.extend(down.iter().map(|node| format!("node {node} is not reached")));
    }
    reasons.extend(inner.health.failing());
    reasons
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
        checks: inner.health.checks(),
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
