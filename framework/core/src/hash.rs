//! Where a name falls on the hash circle.
//!
//! Owns the hash that ties actors to partitions and nodes to tokens, and the number of partitions.
//! Never knows members or tables. In: names; out: points on the circle and partitions. Frozen by
//! golden vectors: another hash is another [`HASH_VERSION`], and a cluster keeps the one it was
//! formed with. Fixed partitions over a circle: Dynamo (DeCandia et al. 2007, §6.2, strategy 3).

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use crate::id::{ActorId, KEY_BYTES_MAX, KIND_BYTES_MAX, NodeId, PartitionId};

/// Version of everything in this module; stored in the cluster's metadata.
pub const HASH_VERSION: u32 = 1;

/// Point of an actor on the circle: `xxh3_64(kind ‖ 0x00 ‖ key)`.
#[must_use]
pub fn key_hash(id: &ActorId) -> u64 {
    let text = id.as_str().as_bytes();
    let mut bytes = [0; KIND_BYTES_MAX + 1 + KEY_BYTES_MAX];
    bytes[..text.len()].copy_from_slice(text);
    bytes[id.kind().len()] = 0; // the slash of `kind/key`
    xxh3_64(&bytes[..text.len()])
}

/// Partition of an actor: the top bits of [`key_hash`].
#[must_use]
pub fn partition_of(id: &ActorId, partitions: PartitionCount) -> PartitionId {
    let point = key_hash(id).checked_shr(u64::BITS - partitions.bits()).unwrap_or(0);
    PartitionId(point as u32)
}

/// First point of a partition's range on the circle.
#[must_use]
pub fn range_start(partition: PartitionId, partitions: PartitionCount) -> u64 {
    u64::from(partition.0).checked_shl(u64::BITS - partitions.bits()).unwrap_or(0)
}

/// Point of a node's token with this number: `xxh3_64("node-id#number")`.
#[must_use]
pub fn token(node: &NodeId, number: u32) -> u64 {
    xxh3_64(format!("{node}#{number}").as_bytes())
}

/// 128-bit hash of some bytes, for ids derived from contents: `xxh3_128`.
#[must_use]
pub fn wide_hash(bytes: &[u8]) -> u128 {
    xxh3_128(bytes)
}

/// How many partitions the key space has; fixed when the cluster is formed.
///
/// Invariant: a power of two, 1 to [`PartitionCount::MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct PartitionCount(u32);

impl PartitionCount {
    /// Most partitions a cluster can have.
    pub const MAX: u32 = 4096;
    /// What a cluster gets when nobody chose.
    pub const DEFAULT: Self = Self(64);

    /// The number.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }

    /// Every partition, in order.
    pub fn iter(self) -> impl ExactSizeIterator<Item = PartitionId> + Clone {
        (0..self.0).map(PartitionId)
    }

    /// How many bits of a hash name the partition.
    fn bits(self) -> u32 {
        self.0.trailing_zeros()
    }
}

impl Default for PartitionCount {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl TryFrom<u32> for PartitionCount {
    type Error = PartitionCountError;
    fn try_from(count: u32) -> Result<Self, PartitionCountError> {
        if count.is_power_of_two() && count <= Self::MAX {
            Ok(Self(count))
        } else {
            Err(PartitionCountError(count))
        }
    }
}

impl From<PartitionCount> for u32 {
    fn from(count: PartitionCount) -> Self {
        count.0
    }
}

impl std::fmt::Display for PartitionCount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of partitions was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not a number of partitions: use a power of two from 1 to {max}", max = PartitionCount::MAX)]
pub struct PartitionCountError(
    /// The number that was given.
    pub u32,
);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn actor(kind: &str, key: &str) -> ActorId {
        ActorId::new(kind, key).unwrap()
    }

    /// Computed with another implementation (xxhash for Python). A change here moves every actor
    /// of every cluster: raise [`HASH_VERSION`] and keep the old function instead.
    #[test]
    fn hashes_are_frozen() {
        let golden: &[(&str, &str, u64, u32)] = &[
            ("Cart", "alice", 0x1a2a_36bf_1162_dc75, 6),
            ("Cart", "bob", 0x97b4_a7c2_b9a0_94c1, 37),
            ("Cart", "a/b", 0x8516_59bd_f23e_0c90, 33),
            ("Room", "lobby", 0x77e8_8cd3_ed09_c3b0, 29),
            ("Room", "Straße 7", 0xcd4e_acc2_41d4_a237, 51),
            ("Stock", "tea", 0xa1ae_b1ec_0bea_f12e, 40),
            ("Stock", "茶", 0x8be7_0b82_7d29_c595, 34),
            ("Account", "0", 0x23a4_f78d_107d_3a06, 8),
            ("Account", "00000000-0000-0000-0000-000000000000", 0xca5f_1014_83c1_f008, 50),
            ("a", "b", 0xd5a0_6cd0_7812_5351, 53),
            ("io.example.User_1-x", "jörg@example.org", 0xd975_e627_aeb7_1403, 54),
            ("Game", "🂡🂢🂣", 0x58cc_0028_03ab_a37b, 22),
            ("Game", "مرحبا", 0x54ae_c2e7_c531_fda7, 21),
            ("Sensor", &"k".repeat(200), 0x6b39_d2f8_2186_2623, 26),
            ("Sensor", " ", 0x7770_874e_e472_5b39, 29),
        ];
        for &(kind, key, hash, partition) in golden {
            let id = actor(kind, key);
            assert_eq!(key_hash(&id), hash, "{id}");
            assert_eq!(partition_of(&id, PartitionCount::DEFAULT), PartitionId(partition), "{id}");
        }
        let longest = actor(&"K".repeat(64), &"ü".repeat(256));
        assert_eq!(key_hash(&longest), 0x7e60_6ad7_63ff_cf6e);
    }

    #[test]
    fn tokens_are_frozen() {
        let node = |text| NodeId::new(text).unwrap();
        assert_eq!(token(&node("n1"), 0), 0x517c_1227_c974_04af);
        assert_eq!(token(&node("n1"), 1), 0xbd5d_018c_f3ad_0f47);
        assert_eq!(token(&node("n2"), 0), 0x0e05_c84b_58ee_4568);
        assert_eq!(token(&node("edge-7"), 63), 0x1c8b_8a48_0fbd_5b9a);
    }

    #[test]
    fn kind_and_key_do_not_run_into_each_other() {
        assert_ne!(key_hash(&actor("a", "bc")), key_hash(&actor("ab", "c")));
        assert_ne!(key_hash(&actor("a", "b/c")), key_hash(&actor("a", "b\0c")));
    }

    #[test]
    fn only_powers_of_two_within_the_limit_count_partitions() {
        for count in [1, 2, 64, 4096] {
            assert_eq!(PartitionCount::try_from(count).map(PartitionCount::get), Ok(count));
        }
        for count in [0, 3, 65, 8192, u32::MAX] {
            assert_eq!(PartitionCount::try_from(count), Err(PartitionCountError(count)));
        }
        assert_eq!(PartitionCount::default().get(), 64);
        assert!(postcard::from_bytes::<PartitionCount>(&[3]).is_err());
        assert_eq!(postcard::from_bytes::<PartitionCount>(&[64]), Ok(PartitionCount::DEFAULT));
    }

    proptest! {
        #[test]
        fn an_actor_falls_within_the_range_of_its_partition(key in ".{1,40}", bits in 0_u32..=12) {
            let id = actor("Kind", &key);
            let partitions = PartitionCount::try_from(1 << bits).unwrap();
            let partition = partition_of(&id, partitions);
            prop_assert!(partition.0 < partitions.get());
            let start = range_start(partition, partitions);
            let last = start + (u64::MAX >> bits);
            prop_assert!((start..=last).contains(&key_hash(&id)));
        }
    }
}
