//! Bytes of values: what is sent to other nodes and kept on disk.
//!
//! Owns encoding with postcard and the checks around decoding. Never knows a message: the types
//! live with their modules. In: values, or bytes from outside; out: bytes, or a value that used
//! all of them. The limit is checked before a byte is read, no length in the bytes is believed,
//! and types on the wire are not recursive, so decoding costs no more than the bytes given.

use std::fmt;
use std::marker::PhantomData;
use std::ops::RangeInclusive;

use serde::de::{DeserializeOwned, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// Why bytes were refused; nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// More bytes than this kind of message may have.
    #[error("message has {bytes} bytes, the limit is {bytes_max}: send less at once")]
    TooLarge {
        /// Length of the message.
        bytes: usize,
        /// Most it may have.
        bytes_max: usize,
    },
    /// The bytes are not a value of the type.
    #[error("message cannot be decoded: it is damaged or comes from an unknown version")]
    Malformed(#[from] postcard::Error),
    /// A value was read and bytes are left.
    #[error(
        "message has {0} bytes after its end: it is damaged or comes from a newer version, upgrade this node"
    )]
    Trailing(usize),
    /// A frame without its version byte.
    #[error("frame is empty: its first byte has to be the version")]
    NoVersion,
    /// A frame of a version that this build does not read.
    #[error("frame has version {found}, this build reads {known:?}: run builds at most one version apart")]
    Version {
        /// Version in the frame.
        found: u8,
        /// Versions that can be read.
        known: RangeInclusive<u8>,
    },
}

/// Encodes a value.
///
/// # Panics
/// When the type cannot be encoded at all (a sequence of unknown length): a mistake in the type,
/// not in the value.
#[must_use]
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    postcard::to_extend(value, Vec::new()).expect("wire types have sequences of known length")
}

/// Decodes a value that takes up all of `bytes`.
///
/// # Errors
/// [`WireError::TooLarge`] before anything is read, [`WireError::Malformed`] or
/// [`WireError::Trailing`] when the bytes are not exactly one value.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], bytes_max: usize) -> Result<T, WireError> {
    if bytes.len() > bytes_max {
        return Err(WireError::TooLarge { bytes: bytes.len(), bytes_max });
    }
    match postcard::take_from_bytes(bytes)? {
        (value, []) => Ok(value),
        (_, rest) => Err(WireError::Trailing(rest.len())),
    }
}

/// Encodes a value behind its version: `[version][body]`.
///
/// # Panics
/// As [`encode`].
#[must_use]
pub fn framed<T: Serialize + ?Sized>(version: u8, body: &T) -> Vec<u8> {
    postcard::to_extend(body, vec![version]).expect("wire types have sequences of known length")
}

/// Splits a frame into its version and its body, which is for [`decode`].
///
/// # Errors
/// [`WireError::NoVersion`] or [`WireError::Version`].
pub fn unframe(frame: &[u8], known: RangeInclusive<u8>) -> Result<(u8, &[u8]), WireError> {
    match frame {
        [] => Err(WireError::NoVersion),
        [found, body @ ..] if known.contains(found) => Ok((*found, body)),
        [found, ..] => Err(WireError::Version { found: *found, known }),
    }
}

/// Reads a `Vec` of at most `MAX` elements; for fields:
/// `#[serde(deserialize_with = "wire::capped::<MAX, _, _>")]`.
///
/// # Errors
/// Those of the format, and an invalid length above `MAX`.
pub fn capped<'de, const MAX: usize, T, D>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    deserializer.deserialize_seq(Capped::<MAX, T>(PhantomData))
}

struct Capped<const MAX: usize, T>(PhantomData<T>);

impl<'de, const MAX: usize, T: Deserialize<'de>> Visitor<'de> for Capped<MAX, T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at most {MAX} elements")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
        let mut elements = Vec::new();
        while let Some(element) = seq.next_element()? {
            if elements.len() == MAX {
                return Err(serde::de::Error::invalid_length(MAX + 1, &self));
            }
            elements.push(element);
        }
        Ok(elements)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Pair {
        name: String,
        #[serde(deserialize_with = "capped::<3, _, _>")]
        numbers: Vec<u64>,
    }

    fn pair(numbers: usize) -> Pair {
        Pair { name: "n".into(), numbers: vec![7; numbers] }
    }

    #[test]
    fn limit_is_checked_before_the_bytes_are_read() {
        let garbage = [0xff; 9];
        assert_eq!(decode::<Pair>(&garbage, 8), Err(WireError::TooLarge { bytes: 9, bytes_max: 8 }));
    }

    #[test]
    fn bytes_after_the_value_are_refused() {
        let mut bytes = encode(&pair(2));
        bytes.push(0);
        assert_eq!(decode::<Pair>(&bytes, 100), Err(WireError::Trailing(1)));
    }

    #[test]
    fn longer_sequences_than_allowed_are_refused() {
        assert_eq!(decode::<Pair>(&encode(&pair(3)), 100), Ok(pair(3)));
        assert!(matches!(decode::<Pair>(&encode(&pair(4)), 100), Err(WireError::Malformed(_))));
    }

    #[test]
    fn a_length_that_lies_costs_nothing() {
        // a sequence of units takes no bytes: only the cap ends it
        #[derive(Debug, Deserialize)]
        struct Units(#[serde(deserialize_with = "capped::<3, _, _>")] Vec<()>);
        let huge = encode(&u64::MAX);
        assert!(decode::<Units>(&huge, 100).map(|units| units.0.len()).is_err());
        assert!(decode::<Vec<u64>>(&huge, 100).is_err());
    }

    #[test]
    fn frames_carry_their_version() {
        let frame = framed(2, "hi");
        assert_eq!(frame, [2, 2, b'h', b'i']);
        let (version, body) = unframe(&frame, 1..=2).unwrap();
        assert_eq!((version, decode::<String>(body, 10)), (2, Ok("hi".to_owned())));
        assert_eq!(unframe(&frame, 3..=4), Err(WireError::Version { found: 2, known: 3..=4 }));
        assert_eq!(unframe(&[], 1..=1), Err(WireError::NoVersion));
    }

    proptest! {
        #[test]
        fn values_round_trip(name: String, numbers in prop::collection::vec(any::<u64>(), 0..=3)) {
            let value = Pair { name, numbers };
            prop_assert_eq!(decode::<Pair>(&encode(&value), 1 << 20), Ok(value));
        }

        #[test]
        fn any_bytes_decode_or_fail_without_panic(bytes: Vec<u8>) {
            let _ = decode::<Pair>(&bytes, 1 << 20);
        }
    }
}
