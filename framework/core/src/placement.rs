//! What the system partition decides: members, and which of them hold which partition.
//!
//! Owns the cluster's metadata, the placement table with its epoch, and the commands that change
//! them. Never decides by itself: a change is a committed entry, applied alike by every replica,
//! and gossip is only a reason to propose one. In: [`SystemCommand`]s in log order; out: the
//! [`ClusterState`] and an [`Outcome`] each. Deliberately absent: moving replicas of a running
//! cluster. Idea: placement as a decision of its own log, FoundationDB's coordinators and
//! TiKV's placement driver.

use serde::{Deserialize, Serialize};

use crate::hash::{HASH_VERSION, PartitionCount};
use crate::id::{ClusterId, Epoch, GroupId, MemberId, PartitionId};
use crate::membership::{Member, MemberError, MemberSpec, Members};
use crate::ring::{self, RingConfig};
use crate::wire;

/// Version of the encoded forms of this module, for [`wire::framed`].
pub const FORMAT_VERSION: u8 = 1;
/// Most bytes of an encoded [`ClusterState`] or [`SystemCommand`], for [`wire::decode`].
pub const STATE_BYTES_MAX: usize = 4 << 20;
/// Most voters of the system partition.
pub const VOTERS_MAX: u8 = 5;
/// Most builds whose order is remembered.
pub const BUILDS_MAX: usize = 64;
/// Most replicas of a partition.
pub const REPLICATION_MAX: u8 = 7;

const PARTITIONS_MAX: usize = PartitionCount::MAX as usize;
/// Highest epoch, incarnation and member number in a state; counting never gets there.
const COUNT_MAX: u64 = 1 << 62;

/// Why a cluster cannot be formed, or run by this build; nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    /// No member could hold a replica.
    #[error("no member can hold a replica: name at least one node with a weight above 0")]
    NoMembers,
    /// The replication factor is out of range.
    #[error("replication {0} is not valid: use 1 to {REPLICATION_MAX}, odd numbers are best")]
    Replication(u8),
    /// The cluster was formed with a hash that this build does not have.
    #[error(
        "the cluster places actors with hash version {0}, this build has {HASH_VERSION}: run a build with both"
    )]
    HashVersion(u32),
    /// A member was refused.
    #[error(transparent)]
    Member(#[from] MemberError),
    /// Members, table and voters do not fit each other.
    #[error("the cluster state contradicts itself: it is damaged, take it from another node")]
    Inconsistent,
}

/// What is fixed for the life of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterMeta {
    /// Which cluster.
    pub cluster: ClusterId,
    /// [`HASH_VERSION`] of the build that formed it.
    pub hash_version: u32,
    /// How many partitions the key space has.
    pub partitions: PartitionCount,
    /// Replicas of each partition, 1 to [`REPLICATION_MAX`].
    pub replication: u8,
}

impl ClusterMeta {
    /// Metadata of a cluster formed by this build.
    #[must_use]
    pub fn new(cluster: ClusterId, partitions: PartitionCount, replication: u8) -> Self {
        Self { cluster, hash_version: HASH_VERSION, partitions, replication }
    }

    /// Whether this build can run the cluster.
    ///
    /// # Errors
    /// [`PlacementError::HashVersion`] or [`PlacementError::Replication`].
    pub fn check(&self) -> Result<(), PlacementError> {
        if self.hash_version != HASH_VERSION {
            return Err(PlacementError::HashVersion(self.hash_version));
        }
        if !(1..=REPLICATION_MAX).contains(&self.replication) {
            return Err(PlacementError::Replication(self.replication));
        }
        Ok(())
    }
}

/// Which members hold which partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Version; grows by one with every committed change of members or replicas.
    pub epoch: Epoch,
    /// Replicas by partition, preferred leader first.
    #[serde(deserialize_with = "wire::capped::<PARTITIONS_MAX, _, _>")]
    pub replicas: Vec<Vec<MemberId>>,
}

impl Table {
    /// Replicas of a partition, preferred leader first; empty when the cluster has no such
    /// partition.
    #[must_use]
    pub fn replicas_of(&self, partition: PartitionId) -> &[MemberId] {
        self.replicas.get(partition.0 as usize).map_or(&[], Vec::as_slice)
    }
}

/// Everything the system partition knows.
///
/// Invariants: every replica and voter is a member; `member_next` is above every number given;
/// the table has one list per partition. Decoding refuses what breaks them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct ClusterState {
    /// Fixed for the life of the cluster.
    pub meta: ClusterMeta,
    /// Who belongs to the cluster.
    pub members: Members,
    /// Who holds what.
    pub table: Table,
    /// Replicas of the system partition, by rising number.
    pub voters: Vec<MemberId>,
    /// Number of the next member to be admitted; numbers are never given twice.
    pub member_next: MemberId,
    /// Builds that members have run, in the order in which they came up first; at most [`BUILDS_MAX`].
    pub builds: Vec<u64>,
}

/// A [`ClusterState`] as it was sent or stored.
#[derive(Deserialize)]
struct Unchecked {
    meta: ClusterMeta,
    members: Members,
    table: Table,
    voters: Vec<MemberId>,
    member_next: MemberId,
    #[serde(deserialize_with = "wire::capped::<BUILDS_MAX, _, _>")]
    builds: Vec<u64>,
}

impl TryFrom<Unchecked> for ClusterState {
    type Error = PlacementError;
    fn try_from(state: Unchecked) -> Result<Self, PlacementError> {
        let Unchecked { meta, members, table, voters, member_next, builds } = state;
        let state = Self { meta, members, table, voters, member_next, builds };
        if state.is_consistent() { Ok(state) } else { Err(PlacementError::Inconsistent) }
    }
}

/// A change of the cluster, as an entry of the system partition. Variants are added at the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SystemCommand {
    /// The first entry of a cluster: what [`form`] computed.
    Form {
        /// The state it starts with.
        state: ClusterState,
    },
    /// A node started; proposed after [`MemberSpec::validate`].
    MemberUp(MemberSpec),
}

/// What a command did. Variants are added at the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The cluster is formed: by this command, or already by the same one.
    Formed,
    /// The node is a member.
    Up {
        /// Its number.
        id: MemberId,
        /// 1 when it was admitted just now.
        incarnation: u64,
        /// Of the table from now on.
        epoch: Epoch,
    },
    /// Refused, nothing changed: there is no cluster yet, form it first.
    NotFormed,
    /// Refused, nothing changed: this is another cluster, the one named here.
    OtherCluster(ClusterId),
    /// Refused, nothing changed: the cluster has [`crate::membership::MEMBERS_MAX`] members.
    Full,
}

/// The first state of a cluster. Members are numbered from 1 in the order of their node ids, so
/// that nodes given the same list compute the same state.
///
/// # Errors
/// Any [`PlacementError`].
pub fn form(meta: ClusterMeta, mut specs: Vec<MemberSpec>) -> Result<ClusterState, PlacementError> {
    meta.check()?;
    for spec in &specs {
        spec.validate()?;
    }
    if specs.iter().all(|spec| spec.weight == 0) {
        return Err(PlacementError::NoMembers);
    }
    specs.sort_by(|a, b| a.node.cmp(&b.node));
    let member_next = MemberId(specs.len() as u64 + 1);
    let members = Members::new((1..).map(MemberId).zip(specs).map(|(id, spec)| Member::new(id, spec)))?;
    let replicas = ring::place(&members, &RingConfig::new(meta.partitions, meta.replication));
    let voters = voters(&members);
    let table = Table { epoch: Epoch(1), replicas };
    let mut state = ClusterState { meta, members, table, voters, member_next, builds: Vec::new() };
    for build in state.members.iter().map(|member| member.build).collect::<Vec<_>>() {
        state.note_build(build);
    }
    Ok(state)
}

/// Up to [`VOTERS_MAX`] members, spread over the zones as replicas of one partition are.
fn voters(members: &Members) -> Vec<MemberId> {
    let one = PartitionCount::try_from(1).expect("one is a power of two");
    let mut voters = ring::place(members, &RingConfig::new(one, VOTERS_MAX)).swap_remove(0);
    voters.sort_unstable();
    voters
}

impl ClusterState {
    /// Applies a command to a cluster that may not be formed yet.
    pub fn apply_to(state: &mut Option<Self>, command: SystemCommand) -> Outcome {
        match (state, command) {
            (Some(formed), command) => formed.apply(command),
            (unformed, SystemCommand::Form { state }) => {
                *unformed = Some(state);
                Outcome::Formed
            }
            (None, SystemCommand::MemberUp(_)) => Outcome::NotFormed,
        }
    }

    /// Applies a command; a function of the state and the command alone.
    ///
    /// A node that is up again takes over its new address, gateway, zone, weight and labels, its
    /// incarnation and the epoch grow, its replicas stay. A node not known is admitted with the
    /// next number and routes calls; it holds no replicas, since the placement stays as it is.
    /// Proposing twice for one start counts it twice, which is harmless.
    pub fn apply(&mut self, command: SystemCommand) -> Outcome {
        match command {
            SystemCommand::Form { state } if state.meta.cluster == self.meta.cluster => Outcome::Formed,
            SystemCommand::Form { .. } => Outcome::OtherCluster(self.meta.cluster),
            SystemCommand::MemberUp(spec) => self.member_up(spec),
        }
    }

    /// Whether a build came up after another one, for the first time. Nobody knows of a build that is not
    /// noted.
    #[must_use]
    pub fn is_newer(&self, build: u64, than: u64) -> bool {
        let position = |build| self.builds.iter().position(|noted| *noted == build);
        matches!((position(build), position(than)), (Some(one), Some(other)) if one > other)
    }

    /// Notes a build unless it is noted. When there are too many, the oldest that nobody runs is forgotten.
    fn note_build(&mut self, build: u64) {
        if self.builds.contains(&build) {
            return;
        }
        if self.builds.len() == BUILDS_MAX {
            let runs = |build: &u64| self.members.iter().any(|member| member.build == *build);
            let unused = self.builds.iter().position(|build| !runs(build)).unwrap_or(0);
            self.builds.remove(unused);
        }
        self.builds.push(build);
    }

    fn member_up(&mut self, spec: MemberSpec) -> Outcome {
        let build = spec.build;
        let (id, incarnation) = match self.members.restart(&spec) {
            Some(member) => (member.id, member.incarnation),
            None => {
                let member = Member::new(self.member_next, spec);
                let (id, incarnation) = (member.id, member.incarnation);
                match self.members.insert(member) {
                    Ok(()) => {}
                    Err(MemberError::Full) => return Outcome::Full,
                    Err(error) => panic!("the next member's number and name are free: {error}"),
                }
                self.member_next.0 += 1;
                (id, incarnation)
            }
        };
        self.note_build(build);
        self.table.epoch.0 += 1;
        Outcome::Up { id, incarnation, epoch: self.table.epoch }
    }

    fn is_consistent(&self) -> bool {
        let known = |id: &MemberId| self.members.get(*id).is_some();
        let counts = self.members.iter().map(|member| member.incarnation).chain([self.table.epoch.0]);
        (1..=COUNT_MAX).contains(&self.member_next.0)
            && counts.into_iter().all(|count| count <= COUNT_MAX)
            && self.members.iter().all(|member| member.id < self.member_next)
            && self.table.replicas.len() == self.meta.partitions.get() as usize
            && self.table.replicas.iter().flatten().chain(&self.voters).all(known)
    }

    /// The Raft groups that a member has replicas of, each with all its replicas; the system
    /// partition first.
    pub fn groups_of(&self, member: MemberId) -> impl Iterator<Item = (GroupId, &[MemberId])> {
        let system = (GroupId::SYSTEM, self.voters.as_slice());
        let partitions = self.meta.partitions.iter().map(|p| (GroupId::of(p), self.table.replicas_of(p)));
        std::iter::once(system).chain(partitions).filter(move |(_, replicas)| replicas.contains(&member))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::NodeId;
    use proptest::prelude::*;

    fn spec(node: &str) -> MemberSpec {
        MemberSpec::new(NodeId::new(node).unwrap(), format!("{node}:7000"))
    }

    fn meta(partitions: u32) -> ClusterMeta {
        ClusterMeta::new(ClusterId(7), PartitionCount::try_from(partitions).unwrap(), 3)
    }

    fn three(partitions: u32) -> ClusterState {
        form(meta(partitions), vec![spec("n1"), spec("n2"), spec("n3")]).unwrap()
    }

    #[test]
    fn every_node_forms_the_same_cluster() {
        let state = three(64);
        assert_eq!(form(meta(64), vec![spec("n3"), spec("n1"), spec("n2")]), Ok(state.clone()));
        let names: Vec<_> = state.members.iter().map(|m| (m.id.0, m.node.as_str(), m.incarnation)).collect();
        assert_eq!(names, [(1, "n1", 1), (2, "n2", 1), (3, "n3", 1)]);
        assert_eq!(state.voters, [1, 2, 3].map(MemberId));
        assert_eq!((state.table.epoch, state.table.replicas.len()), (Epoch(1), 64));
        assert!(state.table.replicas.iter().all(|replicas| replicas.len() == 3));
    }

    #[test]
    fn five_voters_spread_over_the_zones() {
        let specs: Vec<_> = (0..9)
            .map(|n| MemberSpec { zone: Some(format!("z{}", n / 3)), ..spec(&format!("n{n}")) })
            .collect();
        let state = form(meta(64), specs).unwrap();
        assert_eq!(state.voters.len(), 5);
        let zones: Vec<_> = state.voters.iter().map(|v| &state.members.get(*v).unwrap().zone).collect();
        for zone in ["z0", "z1", "z2"] {
            let voters = zones.iter().filter(|z| z.as_deref() == Some(zone)).count();
            assert!((1..=2).contains(&voters), "{voters} voters in {zone}");
        }
    }

    #[test]
    fn clusters_that_cannot_work_are_not_formed() {
        let router = |node| MemberSpec { weight: 0, ..spec(node) };
        assert_eq!(form(meta(64), vec![]), Err(PlacementError::NoMembers));
        assert_eq!(form(meta(64), vec![router("n1")]), Err(PlacementError::NoMembers));
        let unreplicated = ClusterMeta { replication: 0, ..meta(64) };
        assert_eq!(form(unreplicated, vec![spec("n1")]), Err(PlacementError::Replication(0)));
        let newer = ClusterMeta { hash_version: 2, ..meta(64) };
        assert_eq!(form(newer, vec![spec("n1")]), Err(PlacementError::HashVersion(2)));
        let twice = form(meta(64), vec![spec("n1"), spec("n1")]);
        assert!(matches!(twice, Err(PlacementError::Member(MemberError::Node(_)))));
        let nowhere = MemberSpec { address: "n1".into(), ..spec("n1") };
        assert!(matches!(
            form(meta(64), vec![nowhere]),
            Err(PlacementError::Member(MemberError::Address { .. }))
        ));
    }

    #[test]
    fn a_restarted_member_keeps_its_replicas() {
        let mut state = three(64);
        let before = state.clone();
        let moved = MemberSpec { address: "10.0.0.9:7000".into(), http: Some("h:80".into()), ..spec("n2") };
        let outcome = state.apply(SystemCommand::MemberUp(moved));
        assert_eq!(outcome, Outcome::Up { id: MemberId(2), incarnation: 2, epoch: Epoch(2) });
        let member = state.members.get(MemberId(2)).unwrap();
        assert_eq!((&*member.address, member.http.as_deref()), ("10.0.0.9:7000", Some("h:80")));
        assert_eq!(state.table.replicas, before.table.replicas);
        assert_eq!((state.voters, state.member_next), (before.voters, before.member_next));
    }

    #[test]
    fn an_unknown_node_is_admitted_to_route_only() {
        let mut state = three(64);
        let placed = state.table.replicas.clone();
        let outcome = state.apply(SystemCommand::MemberUp(spec("late")));
        assert_eq!(outcome, Outcome::Up { id: MemberId(4), incarnation: 1, epoch: Epoch(2) });
        assert_eq!(state.table.replicas, placed);
        assert_eq!(state.groups_of(MemberId(4)).count(), 0);
        assert_eq!(state.groups_of(MemberId(1)).count(), 65);
        assert_eq!(state.groups_of(MemberId(1)).next().unwrap().0, GroupId::SYSTEM);
    }

    #[test]
    fn a_full_cluster_admits_nobody() {
        let mut state = three(1);
        for n in 4..=crate::membership::MEMBERS_MAX {
            state.apply(SystemCommand::MemberUp(spec(&format!("n{n}"))));
        }
        let before = state.clone();
        assert_eq!(state.apply(SystemCommand::MemberUp(spec("late"))), Outcome::Full);
        assert_eq!(state, before);
    }

    #[test]
    fn a_cluster_is_formed_once() {
        let mut state = None;
        assert_eq!(
            ClusterState::apply_to(&mut state, SystemCommand::MemberUp(spec("n1"))),
            Outcome::NotFormed
        );
        let first = SystemCommand::Form { state: three(4) };
        assert_eq!(ClusterState::apply_to(&mut state, first.clone()), Outcome::Formed);
        ClusterState::apply_to(&mut state, SystemCommand::MemberUp(spec("n1")));
        let formed = state.clone();
        assert_eq!(ClusterState::apply_to(&mut state, first), Outcome::Formed);
        let mut other = three(8);
        other.meta.cluster = ClusterId(8);
        let outcome = ClusterState::apply_to(&mut state, SystemCommand::Form { state: other });
        assert_eq!(outcome, Outcome::OtherCluster(ClusterId(7)));
        assert_eq!(state, formed);
    }

    /// Committed logs hold these bytes: variants and fields are only added at the end of enums,
    /// anything else needs a new [`FORMAT_VERSION`].
    #[test]
    fn commands_are_frozen() {
        let hex = |bytes: Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let full = MemberSpec {
            http: Some("n1:80".into()),
            zone: Some("z".into()),
            labels: [("role".to_owned(), "chat".to_owned())].into(),
            build: 9,
            ..spec("n1")
        };
        let formed = SystemCommand::Form { state: form(meta(2), vec![full.clone()]).unwrap() };
        assert_eq!(
            hex(wire::framed(FORMAT_VERSION, &formed)),
            "0100070102030101026e31076e313a3730303001056e313a383001017a640104726f6c65046368617409010102010101010101020\
             109"
        );
        let up = SystemCommand::MemberUp(full);
        assert_eq!(
            hex(wire::framed(FORMAT_VERSION, &up)),
            "0101026e31076e313a3730303001056e313a383001017a640104726f6c65046368617409"
        );
        let outcomes = [
            Outcome::Formed,
            Outcome::Up { id: MemberId(1), incarnation: 2, epoch: Epoch(3) },
            Outcome::NotFormed,
            Outcome::OtherCluster(ClusterId(7)),
            Outcome::Full,
        ];
        assert_eq!(outcomes.map(|outcome| hex(wire::encode(&outcome))).join(" "), "00 01010203 02 0307 04");
    }

    #[test]
    fn builds_are_ordered_by_when_they_came_up_first() {
        let mut state = three(4);
        let up = |state: &mut ClusterState, node: &str, build| {
            state.apply(SystemCommand::MemberUp(MemberSpec { build, ..spec(node) }));
        };
        up(&mut state, "n1", 7);
        up(&mut state, "n2", 5);
        assert!(
            state.is_newer(7, 0) && state.is_newer(5, 7) && !state.is_newer(7, 5) && !state.is_newer(7, 7)
        );
        assert!(!state.is_newer(4, 5) && !state.is_newer(5, 4), "4 is not known");
        // Back to an older one: it stays older.
        up(&mut state, "n2", 7);
        assert!(state.is_newer(5, 7));
        for build in 100..100 + 2 * BUILDS_MAX as u64 {
            up(&mut state, "n2", build);
        }
        assert_eq!(state.builds.len(), BUILDS_MAX);
        assert_eq!(state.builds[..2], [0, 7], "what somebody runs is not forgotten");
        let newest = 99 + 2 * BUILDS_MAX as u64;
        assert!(state.is_newer(newest, newest - 1) && state.is_newer(newest, 7) && !state.is_newer(5, 7));
    }

    proptest! {
        #[test]
        fn replicas_that_apply_the_same_log_agree(ups in prop::collection::vec(0_u8..8, 0..40)) {
            let mut state = three(4);
            let mut other = wire::decode::<ClusterState>(&wire::encode(&state), STATE_BYTES_MAX).unwrap();
            for n in ups {
                let (before, command) = (state.clone(), SystemCommand::MemberUp(spec(&format!("n{n}"))));
                let outcome = state.apply(command.clone());
                prop_assert_eq!(&outcome, &other.apply(command));
                let Outcome::Up { id, incarnation, epoch } = outcome else { panic!("{outcome:?}") };
                prop_assert_eq!(epoch.0, before.table.epoch.0 + 1);
                prop_assert_eq!(incarnation, before.members.get(id).map_or(1, |m| m.incarnation + 1));
                prop_assert!(id < state.member_next);
            }
            prop_assert_eq!(wire::encode(&state), wire::encode(&other));
        }
    }
}
