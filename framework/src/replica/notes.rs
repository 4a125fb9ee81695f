//! Notes of what is durable, as they stand at the begin of a file that is written again and again.
//!
//! Owns their form: a magic text, a hash of the body, the body. Shorter notes leave the end of longer ones
//! behind them, so what follows the body is not looked at. Never flushes.

use perennial_core::hash::wide_hash;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Notes as bytes. The body must be made of numbers and lists of them.
pub(crate) fn encode<T: Serialize>(magic: &[u8], notes: &T) -> Vec<u8> {
    let body = postcard::to_stdvec(notes).expect("numbers always encode");
    [magic, &wide_hash(&body).to_be_bytes(), &body].concat()
}

/// The notes that some bytes begin with; `None` when they are torn or damaged.
pub(crate) fn decode<T: DeserializeOwned>(magic: &[u8], bytes: &[u8]) -> Option<T> {
    let (sum, rest) = bytes.strip_prefix(magic)?.split_first_chunk()?;
    let (notes, tail) = postcard::take_from_bytes(rest).ok()?;
    let body = &rest[..rest.len() - tail.len()];
    (u128::from_be_bytes(*sum) == wide_hash(body)).then_some(notes)
}
