//! Frozen hashes.

/// 128-bit xxh3 of some bytes; frozen, used for derived request ids.
#[must_use]
pub fn wide_hash(bytes: &[u8]) -> u128 {
    xxhash_rust::xxh3::xxh3_128(bytes)
}
