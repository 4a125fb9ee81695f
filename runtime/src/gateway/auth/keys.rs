//! API keys: long random texts that programs show.
//!
//! Owns their form, `perennial_NAME_SECRET`, and their comparison. A key has 256 random bits, so a plain
//! SHA-256 of it cannot be turned back and the policy may hold that; a key itself is never stored. The
//! name is found first and is no secret; the rest is compared in constant time.

use std::collections::BTreeMap;
use std::sync::Arc;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::{SecureRandom, SystemRandom};

/// What every key begins with, for those who search logs and repositories for leaked ones.
const PREFIX: &str = "perennial_";
/// Random bytes of a key.
const SECRET_BYTES: usize = 32;
/// Longest name of a key.
const NAME_BYTES_MAX: usize = 63;

/// A SHA-256.
pub(super) type Digest = [u8; 32];

/// The name cannot be a key's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("key name {0:?} is not valid: use 1 to {NAME_BYTES_MAX} characters of a-z 0-9 and -")]
pub struct KeyNameError(String);

/// A key that was just made: shown once, then known by its hash only.
pub struct NewKey {
    /// What its holder sends.
    pub key: String,
    /// What the policy file holds, in hexadecimal.
    pub sha256: String,
}

impl NewKey {
    /// Makes a key with this name.
    ///
    /// # Errors
    /// [`KeyNameError`].
    ///
    /// # Panics
    /// When the system has no randomness.
    pub fn make(name: &str) -> Result<Self, KeyNameError> {
        check_name(name)?;
        let mut secret = [0; SECRET_BYTES];
        SystemRandom::new().fill(&mut secret).expect("the system has randomness");
        let key = format!("{PREFIX}{name}_{}", hex(&secret));
        let sha256 = hex(&hash(&key));
        Ok(Self { key, sha256 })
    }
}

pub(super) fn check_name(name: &str) -> Result<(), KeyNameError> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let fine = (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(plain);
    if fine { Ok(()) } else { Err(KeyNameError(name.to_owned())) }
}

pub(super) fn looks_like_one(credential: &str) -> bool {
    credential.starts_with(PREFIX)
}

/// The keys of a policy.
#[derive(Default)]
pub(super) struct KeyRing {
    by_name: BTreeMap<Arc<str>, (Digest, Arc<[String]>)>,
}

impl KeyRing {
    /// Adds a key; false if the name is taken.
    pub(super) fn add(&mut self, name: &str, digest: Digest, groups: Vec<String>) -> bool {
        self.by_name.insert(name.into(), (digest, groups.into())).is_none()
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// Whether some key is in this group.
    pub(super) fn has_group(&self, group: &str) -> bool {
        self.by_name.values().any(|(_, groups)| groups.iter().any(|known| known == group))
    }

    /// Name and groups of the key shown, if it is one of these.
    pub(super) fn find(&self, shown: &str) -> Option<(Arc<str>, Arc<[String]>)> {
        let (name, _) = shown.strip_prefix(PREFIX)?.split_once('_')?;
        let shown = hash(shown);
        let (name, (digest, groups)) = self.by_name.get_key_value(name)?;
        verify_slices_are_equal(&shown, digest).ok()?;
        Some((Arc::clone(name), Arc::clone(groups)))
    }
}

fn hash(text: &str) -> Digest {
    digest(&SHA256, text.as_bytes()).as_ref().try_into().expect("a SHA-256 has 32 bytes")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads the hexadecimal digits of a digest.
pub(super) fn digest_of(text: &str) -> Option<Digest> {
    if text.len() != 2 * size_of::<Digest>() || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut digest = Digest::default();
    for (at, byte) in digest.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_known_by_its_hash_and_nothing_else_is() {
        let made = NewKey::make("shop-web").unwrap();
        let mut ring = KeyRing::default();
        assert!(ring.add("shop-web", digest_of(&made.sha256).unwrap(), vec!["web".into()]));
        let (name, groups) = ring.find(&made.key).unwrap();
        assert_eq!((&*name, &*groups), ("shop-web", &["web".to_owned()][..]));
        let other = NewKey::make("shop-web").unwrap();
        assert_ne!(made.key, other.key);
        let renamed = made.key.replace("shop-web", "shop");
        for wrong in [&other.key, &renamed, &made.sha256, &made.key[..made.key.len() - 1], "perennial_", ""] {
            assert!(ring.find(wrong).is_none(), "{wrong}");
        }
    }

    #[test]
    fn names_and_digests_have_one_form() {
        assert!(NewKey::make("Shop_Web").is_err() && NewKey::make("").is_err());
        assert!(NewKey::make(&"k".repeat(64)).is_err());
        assert!(digest_of(&"g".repeat(64)).is_none() && digest_of("ab").is_none());
        assert!(digest_of(&"+1".repeat(32)).is_none());
        assert_eq!(digest_of(&"0A".repeat(32)), Some([10; 32]));
    }
}
