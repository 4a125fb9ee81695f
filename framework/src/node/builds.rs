//! Which builds the members run, as the table tells.
//!
//! Owns what follows from it for this node: what hosts are told of other builds, hand-overs to a newer one,
//! and that leadership does not go home to an older one, which may be unable to read what was written here.

use std::sync::{Arc, Weak};

use perennial_core::id::{GroupId, MemberId, NodeId, PartitionId};
use perennial_core::placement::{BUILDS_MAX, ClusterState};
use perennial_core::replication::Role;

use super::Inner;
use crate::host::Builds;

/// What the hosts of a node know.
pub(super) struct NodeBuilds(Weak<Inner>);

impl NodeBuilds {
    pub(super) fn new(inner: &Arc<Inner>) -> Self {
        Self(Arc::downgrade(inner))
    }

    fn look<T>(&self, look: impl FnOnce(&Inner, &ClusterState) -> T) -> Option<T> {
        let inner = self.0.upgrade()?;
        let routes = inner.router.routes();
        routes.as_ref().map(|routes| look(&inner, routes.state()))
    }
}

impl Builds for NodeBuilds {
    fn build(&self) -> u64 {
        self.0.upgrade().map_or(0, |inner| inner.app.build())
    }

    fn knows(&self, build: u64) -> bool {
        // One of so many that some are forgotten may have been known.
        let noted = |_: &Inner, state: &ClusterState| {
            state.builds.contains(&build) || state.builds.len() == BUILDS_MAX
        };
        self.look(noted).unwrap_or(false)
    }

    fn announced(&self) -> bool {
        let announced = |inner: &Inner, state: &ClusterState| {
            state.members.by_node(&inner.node).is_some_and(|me| me.build == inner.app.build())
        };
        self.look(announced).unwrap_or(false)
    }

    fn mixed(&self) -> bool {
        let differs = |inner: &Inner, state: &ClusterState| {
            state.members.iter().any(|member| member.build != inner.app.build())
        };
        self.look(differs).unwrap_or(false)
    }

    fn newer(&self, partition: PartitionId) -> Vec<(MemberId, NodeId)> {
        let newer = |inner: &Inner, state: &ClusterState| {
            let replicas = state.table.replicas_of(partition).iter();
            let members = replicas.filter_map(|member| state.members.get(*member));
            let newer = members.filter(|member| state.is_newer(member.build, inner.app.build()));
            newer.map(|member| (member.id, member.node.clone())).collect()
        };
        self.look(newer).unwrap_or_default()
    }

    fn hand_over(&self, partition: PartitionId, to: Vec<MemberId>) {
        let Some(inner) = self.0.upgrade() else { return };
        let one = inner.clone();
        inner.spawn(async move {
            let (Some(replica), group) = (one.replica(), GroupId::of(partition)) else { return };
            let groups = replica.status().await;
            let led = groups.iter().find(|g| g.group == group && g.role == Role::Leader);
            let able = led.iter().flat_map(|g| &g.followers);
            let able = able.filter(|f| f.active && !f.snapshot && to.contains(&f.member));
            if let Some(best) = able.max_by_key(|follower| follower.matched) {
                tracing::info!(%partition, to = ?best.member, "a newer build takes over");
                replica.transfer(group, best.member);
            }
        });
    }
}

/// Lets leadership stay here where the preferred leader has an older build.
pub(super) fn keep_from_older(inner: &Inner, state: &ClusterState) {
    let (Some(replica), Some(me)) = (inner.replica(), inner.router.me()) else { return };
    for (group, replicas) in state.groups_of(me).filter(|(group, _)| group.partition().is_some()) {
        let home = replicas.first().and_then(|member| state.members.get(*member));
        replica.set_stays(group, home.is_some_and(|home| state.is_newer(inner.app.build(), home.build)));
    }
}
