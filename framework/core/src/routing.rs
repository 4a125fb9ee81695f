//! Where a call goes next.
//!
//! Owns the decision for one call, from the placement table and what was heard of leaders. Never
//! sends, waits or asks. In: cluster states, leader hints, beliefs about who is down; out: a
//! [`Decision`]. The table is decided and followed; hints and beliefs only save a hop, since a
//! leader proves itself by its term. Any node takes any call and forwards it at most once: a wrong
//! hint costs a redirect, never a loop.

use std::collections::BTreeSet;

use crate::hash;
use crate::id::{ActorId, MemberId, PartitionId, Term};
use crate::placement::ClusterState;

/// Most times a call is passed from node to node.
pub const HOPS_MAX: u8 = 1;

/// What to do with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Hand it to the partition host here, which has the last word on whether it leads.
    Local(PartitionId),
    /// Pass it to this member, with one hop more.
    Forward(MemberId),
    /// Answer that this member leads: the call was passed on once already.
    Redirect(MemberId),
    /// Answer that no leader is known or reachable; nothing was done, try again soon.
    NoLeader {
        /// Whose leader.
        partition: PartitionId,
    },
}

/// The newest that was heard of a partition's leader. `leader` is `None` once it is known to
/// lead no more: the term stays, so that older news stays out.
#[derive(Debug, Clone, Copy)]
struct Hint {
    term: Term,
    leader: Option<MemberId>,
}

/// What one node or client knows for routing.
///
/// Invariants: the epoch of its state and the term of each hint never go back.
#[derive(Debug, Clone)]
pub struct Routes {
    state: ClusterState,
    /// By partition.
    hints: Vec<Option<Hint>>,
    /// Believed down: not called as long as another replica may lead.
    avoided: BTreeSet<MemberId>,
}

impl Routes {
    /// Routes of a cluster of which nothing but its state is known.
    #[must_use]
    pub fn new(state: ClusterState) -> Self {
        let hints = vec![None; state.meta.partitions.get() as usize];
        Self { state, hints, avoided: BTreeSet::new() }
    }

    /// The members and the table in use.
    #[must_use]
    pub fn state(&self) -> &ClusterState {
        &self.state
    }

    /// The partition of an actor in this cluster.
    #[must_use]
    pub fn partition_of(&self, id: &ActorId) -> PartitionId {
        hash::partition_of(id, self.state.meta.partitions)
    }

    /// The leader of a partition as far as heard, and its term.
    #[must_use]
    pub fn hint(&self, partition: PartitionId) -> Option<(Term, MemberId)> {
        let hint = (*self.hints.get(partition.0 as usize)?)?;
        Some((hint.term, hint.leader?))
    }

    /// Takes over a newer state of the same cluster; members that started anew are no longer
    /// avoided. Returns whether it was newer; if not, nothing changed.
    pub fn update(&mut self, state: ClusterState) -> bool {
        let newer = state.meta == self.state.meta && state.table.epoch > self.state.table.epoch;
        if newer {
            let incarnation = |state: &ClusterState, id| state.members.get(id).map(|m| m.incarnation);
            self.avoided.retain(|&id| incarnation(&state, id) == incarnation(&self.state, id));
            self.state = state;
        }
        newer
    }

    /// Heard that a member leads a partition in a term. Returns whether that was news; if not,
    /// nothing changed. A hint of a newer term stays, and so does one of the same term: a term
    /// has one leader.
    pub fn learn(&mut self, partition: PartitionId, term: Term, leader: MemberId) -> bool {
        let Some(known) = self.hints.get_mut(partition.0 as usize) else { return false };
        let newer = known.is_none_or(|hint| term > hint.term || (term == hint.term && hint.leader.is_none()));
        if newer {
            *known = Some(Hint { term, leader: Some(leader) });
        }
        newer
    }

    /// Heard that whoever led a partition in a term, or before it, leads no more.
    pub fn forget(&mut self, partition: PartitionId, term: Term) {
        let Some(known) = self.hints.get_mut(partition.0 as usize) else { return };
        if known.is_none_or(|hint| term >= hint.term) {
            *known = Some(Hint { term, leader: None });
        }
    }

    /// A member is believed down: calls go elsewhere until [`Routes::restore`] or its next start.
    pub fn avoid(&mut self, member: MemberId) {
        self.avoided.insert(member);
    }

    /// Whether a member is believed down.
    #[must_use]
    pub fn avoids(&self, member: MemberId) -> bool {
        self.avoided.contains(&member)
    }

    /// A member is believed up again.
    pub fn restore(&mut self, member: MemberId) {
        self.avoided.remove(&member);
    }

    /// The first replica of an actor's partition in the table that is neither avoided nor among `asked`.
    #[must_use]
    pub fn other_replica(&self, id: &ActorId, asked: &[MemberId]) -> Option<MemberId> {
        let usable = |member: &MemberId| {
            !asked.contains(member)
                && !self.avoided.contains(member)
                && self.state.members.get(*member).is_some()
        };
        self.state.table.replicas_of(self.partition_of(id)).iter().copied().find(usable)
    }

    /// Where a call for an actor goes from here. `me` is the member that asks, `None` for a
    /// client; `hops` counts how often the call was passed on.
    ///
    /// The target is the leader heard of, else the first replica in the table, leaving out members
    /// that are avoided or not known. Without a hint a call at [`HOPS_MAX`] goes no further.
    #[must_use]
    pub fn decide(&self, me: Option<MemberId>, id: &ActorId, hops: u8) -> Decision {
        let partition = self.partition_of(id);
        let usable = |member: &MemberId| {
            me == Some(*member)
                || (!self.avoided.contains(member) && self.state.members.get(*member).is_some())
        };
        let heard = self.hint(partition).map(|(_, leader)| leader).filter(usable);
        let listed = || self.state.table.replicas_of(partition).iter().copied().find(usable);
        match heard.or_else(listed) {
            Some(target) if me == Some(target) => Decision::Local(partition),
            Some(target) if hops < HOPS_MAX => Decision::Forward(target),
            Some(_) => heard.map_or(Decision::NoLeader { partition }, Decision::Redirect),
            None => Decision::NoLeader { partition },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::PartitionCount;
    use crate::id::{ClusterId, NodeId};
    use crate::membership::MemberSpec;
    use crate::placement::{ClusterMeta, SystemCommand, form};
    use proptest::prelude::*;

    fn spec(n: u64) -> MemberSpec {
        MemberSpec::new(NodeId::new(&format!("n{n}")).unwrap(), format!("n{n}:7000"))
    }

    fn routes() -> Routes {
        let meta = ClusterMeta::new(ClusterId(1), PartitionCount::try_from(8).unwrap(), 3);
        Routes::new(form(meta, (1..=4).map(spec).collect()).unwrap())
    }

    fn alice() -> ActorId {
        ActorId::new("Cart", "alice").unwrap()
    }

    /// Replicas of alice's partition, then the member that has none.
    fn cast(routes: &Routes) -> (PartitionId, [MemberId; 4]) {
        let partition = routes.partition_of(&alice());
        let replicas = routes.state.table.replicas_of(partition);
        let outsider = (1..=4).map(MemberId).find(|m| !replicas.contains(m)).unwrap();
        (partition, [replicas[0], replicas[1], replicas[2], outsider])
    }

    #[test]
    fn without_a_hint_calls_go_to_the_first_replica_that_is_up() {
        let mut routes = routes();
        let (partition, [first, second, third, outsider]) = cast(&routes);
        assert_eq!(routes.decide(Some(outsider), &alice(), 0), Decision::Forward(first));
        assert_eq!(routes.decide(None, &alice(), 0), Decision::Forward(first));
        assert_eq!(routes.decide(Some(first), &alice(), 0), Decision::Local(partition));
        routes.avoid(first);
        assert_eq!(routes.decide(Some(outsider), &alice(), 0), Decision::Forward(second));
        assert_eq!(routes.decide(Some(first), &alice(), 0), Decision::Local(partition));
        routes.avoid(second);
        routes.avoid(third);
        assert_eq!(routes.decide(Some(outsider), &alice(), 0), Decision::NoLeader { partition });
        routes.restore(third);
        assert_eq!(routes.decide(Some(outsider), &alice(), 0), Decision::Forward(third));
    }

    #[test]
    fn replicas_are_asked_in_turn_leaving_out_those_that_are_down() {
        let mut routes = routes();
        let (_, [first, second, third, _]) = cast(&routes);
        assert_eq!(routes.other_replica(&alice(), &[first]), Some(second));
        routes.avoid(second);
        assert_eq!(routes.other_replica(&alice(), &[first]), Some(third));
        assert_eq!(routes.other_replica(&alice(), &[first, third]), None);
    }

    #[test]
    fn a_hint_beats_the_table_until_its_member_is_down() {
        let mut routes = routes();
        let (partition, [first, second, _, outsider]) = cast(&routes);
        assert!(routes.learn(partition, Term(3), second));
        assert_eq!(routes.decide(Some(first), &alice(), 0), Decision::Forward(second));
        assert_eq!(routes.decide(Some(second), &alice(), 1), Decision::Local(partition));
        routes.avoid(second);
        assert_eq!(routes.decide(Some(outsider), &alice(), 0), Decision::Forward(first));
    }

    #[test]
    fn a_forwarded_call_is_redirected_or_refused() {
        let mut routes = routes();
        let (partition, [_, second, third, _]) = cast(&routes);
        assert_eq!(routes.decide(Some(third), &alice(), 1), Decision::NoLeader { partition });
        routes.learn(partition, Term(3), second);
        assert_eq!(routes.decide(Some(third), &alice(), 1), Decision::Redirect(second));
        routes.avoid(second);
        assert_eq!(routes.decide(Some(third), &alice(), 1), Decision::NoLeader { partition });
    }

    #[test]
    fn a_leader_that_stepped_down_is_forgotten_for_good() {
        let mut routes = routes();
        let (partition, [_, second, third, _]) = cast(&routes);
        routes.learn(partition, Term(3), second);
        routes.forget(partition, Term(2));
        assert_eq!(routes.hint(partition), Some((Term(3), second)));
        routes.forget(partition, Term(4));
        assert_eq!(routes.hint(partition), None);
        assert!(!routes.learn(partition, Term(3), second));
        assert!(routes.learn(partition, Term(4), third));
        assert_eq!(routes.hint(partition), Some((Term(4), third)));
    }

    #[test]
    fn a_member_that_starts_again_is_called_again() {
        let mut routes = routes();
        let (_, [first, second, _, outsider]) = cast(&routes);
        routes.avoid(first);
        let mut state = routes.state.clone();
        assert!(!routes.update(state.clone()), "the same epoch is no news");
        state.apply(SystemCommand::MemberUp(spec(second.0)));
        assert!(routes.update(state.clone()));
        assert_eq!(routes.decide(Some(outsider), &alice(), 0), Decision::Forward(second));
        state.apply(SystemCommand::MemberUp(spec(first.0)));
        assert!(routes.update(state.clone()));
        assert_eq!(routes.decide(Some(outsider), &alice(), 0), Decision::Forward(first));
        state.table.epoch.0 += 1;
        state.meta.cluster = ClusterId(2);
        assert!(!routes.update(state), "another cluster is not followed");
    }

    #[test]
    fn hints_to_unknown_members_and_partitions_are_harmless() {
        let mut routes = routes();
        let (partition, [first, _, _, outsider]) = cast(&routes);
        assert!(!routes.learn(PartitionId(99), Term(1), first));
        routes.learn(partition, Term(1), MemberId(77));
        assert_eq!(routes.decide(Some(outsider), &alice(), 0), Decision::Forward(first));
    }

    #[derive(Debug, Clone)]
    enum News {
        Learn(u32, u64, u64),
        Forget(u32, u64),
        Avoid(u64),
        Restore(u64),
    }

    fn news() -> impl Strategy<Value = Vec<News>> {
        let one = prop_oneof![
            (0_u32..8, 1_u64..6, 1_u64..=5).prop_map(|(p, t, m)| News::Learn(p, t, m)),
            (0_u32..8, 1_u64..6).prop_map(|(p, t)| News::Forget(p, t)),
            (1_u64..=4).prop_map(News::Avoid),
            (1_u64..=4).prop_map(News::Restore),
        ];
        prop::collection::vec(one, 0..60)
    }

    fn hear(routes: &mut Routes, news: &[News]) {
        for one in news {
            match *one {
                News::Learn(p, t, m) => _ = routes.learn(PartitionId(p), Term(t), MemberId(m)),
                News::Forget(p, t) => routes.forget(PartitionId(p), Term(t)),
                News::Avoid(m) => routes.avoid(MemberId(m)),
                News::Restore(m) => routes.restore(MemberId(m)),
            }
        }
    }

    proptest! {
        #[test]
        fn a_call_visits_at_most_two_nodes(
            heard in prop::collection::vec(news(), 4), key in "[a-z]{1,8}", entry in 1_u64..=4,
        ) {
            let nodes: Vec<Routes> = heard
                .iter()
                .map(|news| {
                    let mut routes = routes();
                    hear(&mut routes, news);
                    routes
                })
                .collect();
            let id = ActorId::new("Cart", &key).unwrap();
            let (mut at, mut hops) = (MemberId(entry), 0);
            while let Decision::Forward(to) = nodes[at.0 as usize - 1].decide(Some(at), &id, hops) {
                prop_assert!(hops == 0, "forwarded twice");
                prop_assert_ne!(to, at);
                (at, hops) = (to, hops + 1);
            }
        }

        #[test]
        fn no_decision_names_a_member_that_is_avoided_or_unknown_or_me(
            heard in news(), key in "[a-z]{1,8}", me in prop::option::of(1_u64..=4), hops in 0_u8..3,
        ) {
            let mut routes = routes();
            hear(&mut routes, &heard);
            let (id, me) = (ActorId::new("Cart", &key).unwrap(), me.map(MemberId));
            match routes.decide(me, &id, hops) {
                Decision::Forward(to) | Decision::Redirect(to) => {
                    prop_assert!(Some(to) != me && !routes.avoided.contains(&to) && to.0 <= 4);
                }
                Decision::Local(partition) => {
                    prop_assert!(me.is_some());
                    prop_assert_eq!(partition, routes.partition_of(&id));
                }
                Decision::NoLeader { partition } => prop_assert_eq!(partition, routes.partition_of(&id)),
            }
        }

        #[test]
        fn the_order_of_news_does_not_matter(
            mut heard in prop::collection::vec((0_u32..8, 1_u64..20), 0..40).prop_shuffle(),
        ) {
            // as in Raft, a partition and a term determine the leader
            let learn = |heard: &[(u32, u64)]| {
                let mut routes = routes();
                for &(p, t) in heard {
                    routes.learn(PartitionId(p), Term(t), MemberId(1 + (u64::from(p) + t) % 4));
                }
                (0..8).map(|p| routes.hint(PartitionId(p))).collect::<Vec<_>>()
            };
            let hints = learn(&heard);
            for (p, hint) in (0..8).zip(&hints) {
                let newest = heard.iter().filter(|(q, _)| *q == p).map(|(_, t)| Term(*t)).max();
                prop_assert_eq!(hint.map(|(term, _)| term), newest);
            }
            heard.sort_unstable();
            prop_assert_eq!(hints, learn(&heard));
        }
    }
}
