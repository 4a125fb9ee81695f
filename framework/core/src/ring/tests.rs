use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::id::NodeId;
use crate::membership::MemberSpec;
use crate::wire;

/// Weight and zone of a member.
type Traits = (u32, Option<u8>);

const PLAIN: Traits = (WEIGHT_DEFAULT, None);

fn members(names: &str, traits: &[Traits]) -> Vec<Member> {
    let member = |(at, &(weight, zone)): (usize, &Traits)| {
        let node = NodeId::new(&format!("{names}{}", at + 1)).unwrap();
        let zone = zone.map(|zone| format!("z{zone}"));
        Member::new(MemberId(at as u64 + 1), MemberSpec { weight, zone, ..MemberSpec::new(node, "h:1") })
    };
    traits.iter().enumerate().map(member).collect()
}

fn config(partitions: u32, replication: u8) -> RingConfig {
    RingConfig::new(PartitionCount::try_from(partitions).unwrap(), replication)
}

fn placed(members: &[Member], config: &RingConfig) -> Vec<Vec<MemberId>> {
    place(&Members::new(members.to_vec()).unwrap(), config)
}

fn count(lists: impl IntoIterator<Item = MemberId>, member: &Member) -> u64 {
    lists.into_iter().filter(|id| *id == member.id).count() as u64
}

/// Replicas that a partition has in `after` and did not have in `before`.
fn moved(before: &[Vec<MemberId>], after: &[Vec<MemberId>]) -> usize {
    let new = |(old, new): (&Vec<MemberId>, &Vec<MemberId>)| new.iter().filter(|m| !old.contains(m)).count();
    before.iter().zip(after).map(new).sum()
}

#[test]
fn three_equal_members_lead_a_third_each_and_succeed_each_other_evenly() {
    for names in ["n", "node-", "a", "b", "c"] {
        let members = members(names, &[PLAIN; 3]);
        let table = placed(&members, &config(64, 3));
        for member in &members {
            assert!((21..=22).contains(&count(table.iter().map(|set| set[0]), member)));
            assert_eq!(count(table.iter().flatten().copied(), member), 64);
            let led = || table.iter().filter(|set| set[0] == member.id);
            for other in members.iter().filter(|other| other.id != member.id) {
                assert!((10..=11).contains(&count(led().map(|set| set[1]), other)));
            }
        }
    }
}

#[test]
fn fewer_members_than_replicas_hold_one_each() {
    let two = placed(&members("n", &[PLAIN; 2]), &config(8, 3));
    assert!(two.iter().all(|set| set.len() == 2));
    let one = placed(&members("n", &[PLAIN]), &config(8, 3));
    assert_eq!(one, vec![vec![MemberId(1)]; 8]);
}

#[test]
fn nothing_is_placed_on_nobody() {
    let none = vec![Vec::new(); 8];
    assert_eq!(placed(&[], &config(8, 3)), none);
    assert_eq!(placed(&members("n", &[(0, None), (0, None)]), &config(8, 3)), none);
    assert_eq!(placed(&members("n", &[PLAIN]), &config(8, 0)), none);
    let one = placed(&members("n", &[(0, None), PLAIN]), &config(8, 3));
    assert_eq!(one, vec![vec![MemberId(2)]; 8]);
}

/// A change here gives running clusters another table when they next compute one, and nodes of
/// different builds different ones: do not change it without a version.
#[test]
fn tables_are_frozen() {
    let table = placed(&members("n", &[PLAIN; 4]), &config(8, 3));
    let text: Vec<String> = table.iter().map(|set| format!("{set:?}")).collect();
    assert_eq!(
        text.join(" "),
        "[1, 4, 3] [1, 2, 3] [2, 4, 1] [3, 2, 4] [4, 3, 2] [4, 1, 3] [3, 4, 1] [2, 1, 4]"
    );

    let traits = [(100, Some(0)), (50, Some(1)), (200, Some(2)), (100, Some(0)), (70, None), (1000, Some(1))];
    let table = placed(&members("edge-", &traits), &config(256, 3));
    let hash = xxhash_rust::xxh3::xxh3_64(&wire::encode(&table));
    assert_eq!(format!("{hash:016x}"), "34b9610ea3c15ac4");
}

/// Members with any weights and zones.
fn any_members() -> impl Strategy<Value = Vec<Member>> {
    let traits = (0..=400_u32, prop::option::of(0..5_u8));
    ("[a-z]{1,6}", prop::collection::vec(traits, 1..14)).prop_map(|(names, traits)| members(&names, &traits))
}

/// Members of like weights without zones, or of equal weights spread evenly over a few zones.
fn like_members(count: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Member>> {
    let weighted = prop::collection::vec((50..=200_u32).prop_map(|weight| (weight, None)), count.clone());
    let zone = |at: usize, zones: u8| (WEIGHT_DEFAULT, Some(at as u8 % zones));
    let zoned = (count, 1..5_u8).prop_map(move |(count, n)| (0..count).map(|at| zone(at, n)).collect());
    let traits = prop_oneof![weighted, zoned];
    ("[a-z]{1,6}", traits).prop_map(|(names, traits): (_, Vec<Traits>)| members(&names, &traits))
}

fn any_config() -> impl Strategy<Value = RingConfig> {
    (0..8_u32, 1..6_u8).prop_map(|(bits, replication)| config(1 << bits, replication))
}

fn weight_sum(members: &[Member]) -> u64 {
    members.iter().map(|member| u64::from(member.weight)).sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_partition_has_its_replicas_on_distinct_members(members in any_members(), config in any_config()) {
        let holders = members.iter().filter(|member| member.weight > 0).count();
        let table = placed(&members, &config);
        prop_assert_eq!(table.len(), config.partitions.get() as usize);
        for set in &table {
            prop_assert_eq!(set.len(), holders.min(usize::from(config.replication)));
            prop_assert_eq!(set.iter().collect::<BTreeSet<_>>().len(), set.len());
            prop_assert!(set.iter().all(|id| members[id.0 as usize - 1].weight > 0));
        }
    }

    #[test]
    fn equal_members_share_replicas_within_the_slack(
        names in "[a-z]{1,6}", n in 1..20_usize, config in any_config(),
    ) {
        let members = members(&names, &vec![PLAIN; n]);
        let table = placed(&members, &config);
        let partitions = u64::from(config.partitions.get());
        let due = partitions * u64::from(config.replication).min(n as u64);
        let load_max = (due * u64::from(100 + config.slack_percent)).div_ceil(100 * n as u64);
        for member in &members {
            prop_assert!(count(table.iter().flatten().copied(), member) <= load_max.min(partitions));
        }
    }

    #[test]
    fn replicas_and_leaders_follow_the_weights(members in any_members(), config in any_config()) {
        let table = placed(&members, &config);
        let sum = weight_sum(&members);
        let partitions = u64::from(config.partitions.get());
        let holders: Vec<&Member> = members.iter().filter(|member| member.weight > 0).collect();
        let weights: Vec<u64> = holders.iter().map(|member| u64::from(member.weight)).collect();
        let replicas = holders.len().min(usize::from(config.replication));
        let load_max = shares::load_max(&weights, partitions as usize, replicas, config.slack_percent);
        for (member, load_max) in holders.into_iter().zip(load_max) {
            prop_assert!(count(table.iter().flatten().copied(), member) <= load_max as u64);
            let led = count(table.iter().map(|set| set[0]), member);
            let weighted = partitions * u64::from(member.weight);
            prop_assert!((weighted / sum..=weighted.div_ceil(sum)).contains(&led));
        }
    }

    #[test]
    fn the_order_of_members_makes_no_difference(
        (members, shuffled) in any_members().prop_flat_map(|m| (Just(m.clone()), Just(m).prop_shuffle())),
        config in any_config(),
    ) {
        prop_assert_eq!(placed(&members, &config), placed(&shuffled, &config));
    }

    /// Wherever the load bounds allow it: each zone can hold one replica of every partition, or
    /// enough zones can.
    #[test]
    fn replicas_spread_over_the_zones(
        names in "[a-z]{1,6}",
        traits in prop::collection::vec((50..=200_u32, (0..4_u8).prop_map(Some)), 1..14),
        config in any_config(),
    ) {
        let members = members(&names, &traits);
        let weights: Vec<u64> = members.iter().map(|member| u64::from(member.weight)).collect();
        let partitions = config.partitions.get() as usize;
        let replicas = members.len().min(usize::from(config.replication));
        let load_max = shares::load_max(&weights, partitions, replicas, config.slack_percent);
        let mut zone_load_max = BTreeMap::new();
        for (member, load_max) in members.iter().zip(load_max) {
            *zone_load_max.entry(&member.zone).or_insert(0) += load_max;
        }
        let once = zone_load_max.values().map(|load_max| partitions.min(*load_max));
        let spread = replicas.min(zone_load_max.len());
        prop_assume!(once.sum::<usize>() >= partitions * spread);

        for set in placed(&members, &config) {
            let zones: BTreeSet<_> = set.iter().map(|id| &members[id.0 as usize - 1].zone).collect();
            prop_assert_eq!(zones.len(), spread, "{:?}", set);
        }
    }

    /// The bound: twice the fair share of the member that comes or goes, for two or more replicas
    /// and at least eight partitions per member, of like weights and zones of like size.
    #[test]
    fn a_member_that_comes_or_goes_moves_little_else(members in like_members(6..16), replication in 2..6_u8) {
        let config = config(128, replication);
        let (with, without) = (placed(&members, &config), placed(&members[..members.len() - 1], &config));
        let last = members.last().unwrap();
        let due = 128 * u64::from(replication) * u64::from(last.weight);
        let fair = due.div_ceil(weight_sum(&members));
        let own = count(with.iter().flatten().copied(), last) as usize;
        for (before, after) in [(&without, &with), (&with, &without)] {
            let moved = moved(before, after);
            prop_assert!((own..=2 * fair as usize).contains(&moved), "{moved} moved, {fair} are fair");
        }
    }

    #[test]
    fn what_a_dead_member_led_spreads_over_the_others(members in like_members(3..14), replication in 3..6_u8) {
        let table = placed(&members, &config(128, replication));
        let sum = weight_sum(&members);
        for dead in &members {
            let led = || table.iter().filter(|set| set[0] == dead.id);
            for heir in members.iter().filter(|heir| heir.id != dead.id) {
                let inherits = count(led().map(|set| set[1]), heir);
                let fair = (led().count() as u64 * u64::from(heir.weight))
                    .div_ceil(sum - u64::from(dead.weight));
                prop_assert!(inherits <= 2 * fair + 2, "{inherits} inherited, {fair} are fair");
            }
        }
    }
}
