//! The ring: which members a cluster's partitions belong on.
//!
//! Owns the computation from members to a placement; never decides that it takes effect, which a
//! committed entry of the system partition does. In: members and a [`RingConfig`]; out: the
//! replicas of every partition, preferred leader first. A pure function: the order of the members
//! given makes no difference, and the same input gives the same table in every build.
//!
//! ```text
//!            p0 ──▶ n2 n1 n3        every member puts tokens on the circle of hashes;
//!        n1 ╭────╮ n2               a partition sits at the start of its range and
//!           │    │                  prefers the members whose tokens come next
//!        n2 ╰────╯ n3
//! ```
//! Sources: tokens and clockwise replicas, Dynamo (DeCandia et al. 2007, §4.2); bounded load,
//! Mirrokni, Thorup, Zadimoghaddam, *Consistent Hashing with Bounded Loads* (2016).

mod draft;
mod shares;
#[cfg(test)]
mod tests;

use crate::hash::{self, PartitionCount};
use crate::id::MemberId;
use crate::membership::{Member, Members, WEIGHT_DEFAULT, WEIGHT_MAX};
use draft::Draft;

/// What the ring computes with, besides the members. All members must use the same values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingConfig {
    /// How many partitions to place.
    pub partitions: PartitionCount,
    /// Replicas of each partition; with fewer members than this, every member has one.
    pub replication: u8,
    /// Tokens of a member of [`WEIGHT_DEFAULT`]; more tokens, more even preferences.
    pub vnodes: u32,
    /// How far a member's replicas may exceed its fair share, in percent of the share. More slack,
    /// fewer replicas that move when members change.
    pub slack_percent: u32,
}

impl RingConfig {
    /// Tokens of a member of [`WEIGHT_DEFAULT`] unless set otherwise.
    pub const VNODES_DEFAULT: u32 = 64;
    /// Slack unless set otherwise.
    pub const SLACK_PERCENT_DEFAULT: u32 = 20;

    /// The settings of a cluster with these numbers.
    #[must_use]
    pub fn new(partitions: PartitionCount, replication: u8) -> Self {
        let (vnodes, slack_percent) = (Self::VNODES_DEFAULT, Self::SLACK_PERCENT_DEFAULT);
        Self { partitions, replication, vnodes, slack_percent }
    }
}

/// Places every partition: its replicas, preferred leader first, indexed by partition.
///
/// With `P` partitions, `R` replicas (at most one per member) and members of weight `w` of `W`:
/// - **Load**: no member has more replicas than `ceil(P·R·w/W · (1 + slack))`; where a heavy
///   member's share is capped at `P`, the others share the rest by their weights.
/// - **Leaders**: every member leads `floor` or `ceil` of `P·w/W` partitions.
/// - **Zones**: a partition's replicas spread over the zones as far as the load bound allows; a
///   member without a zone is a zone of its own.
/// - **Successors**: from three replicas up, the second replicas of the partitions that one member
///   leads spread over the other members by weight, and so does its load when it dies.
/// - **Movement**: a member that comes or goes moves its own replicas and few of others, together
///   at most twice its fair share. That holds from two replicas and eight partitions per member up,
///   for weights within a factor of four and no zones, or equal weights and zones of like size.
///   Elsewhere more may move; the bounds above always hold.
///
/// Members of weight 0 get nothing. Without members, or with replication 0, all lists are empty.
#[must_use]
pub fn place(members: &Members, config: &RingConfig) -> Vec<Vec<MemberId>> {
    let holders: Vec<&Member> = members.iter().filter(|member| member.weight > 0).collect();
    let replicas = holders.len().min(usize::from(config.replication));
    let partitions = config.partitions.get() as usize;
    if replicas == 0 {
        return vec![Vec::new(); partitions];
    }
    let weights: Vec<u64> = holders.iter().map(|m| u64::from(m.weight.min(WEIGHT_MAX))).collect();
    let load_max = shares::load_max(&weights, partitions, replicas, config.slack_percent);
    let quotas = shares::quotas(&weights, partitions);

    let mut draft = Draft::new(zones(&holders), preferences(&holders, config), load_max);
    draft.choose_replicas(replicas);
    draft.choose_leaders(&quotas);
    let table = draft.ranked(&weights);
    table.into_iter().map(|set| set.into_iter().map(|at| holders[at].id).collect()).collect()
}

/// Zone of each member as a number; members without one are alone in theirs.
fn zones(holders: &[&Member]) -> Vec<usize> {
    let same = |a: &Member, b: &Member| a.zone.is_some() && a.zone == b.zone;
    let first = |(at, member): (usize, &&Member)| {
        holders[..at].iter().position(|earlier| same(earlier, member)).unwrap_or(at)
    };
    holders.iter().enumerate().map(first).collect()
}

/// For each partition, all members in the order of their next tokens clockwise from its range.
fn preferences(holders: &[&Member], config: &RingConfig) -> Vec<Vec<usize>> {
    let mut tokens: Vec<(u64, usize)> = Vec::new();
    for (at, member) in holders.iter().enumerate() {
        let weight = u64::from(member.weight.min(WEIGHT_MAX));
        let count = (weight * u64::from(config.vnodes)).div_ceil(u64::from(WEIGHT_DEFAULT)).max(1);
        tokens.extend((0..count as u32).map(|number| (hash::token(&member.node, number), at)));
    }
    tokens.sort_unstable();

    let clockwise = |partition| {
        let point = hash::range_start(partition, config.partitions);
        let (before, after) = tokens.split_at(tokens.partition_point(|&(token, _)| token < point));
        let mut seen = vec![false; holders.len()];
        let mut order = Vec::with_capacity(holders.len());
        for &(_, at) in after.iter().chain(before) {
            if !std::mem::replace(&mut seen[at], true) {
                order.push(at);
                if order.len() == holders.len() {
                    break;
                }
            }
        }
        order
    };
    config.partitions.iter().map(clockwise).collect()
}
