//! Request ids of idempotency keys.
//!
//! Owns what a key stands for: one caller's call of one handler of one actor with these arguments. A
//! repeated request gets its first reply; a key used again with other arguments, or by somebody else, is
//! another request and never gets a reply that belongs to something else.

use aws_lc_rs::digest::{Context, SHA256};
use perennial::call::ActorId;
use perennial::core::id::{RequestId, SessionId};
use serde_json::Value;

/// The request id of a key: the hash of caller, actor, handler, key and arguments, in which the order of
/// names does not matter. A key used again with other arguments is another request: it runs. The hash is
/// one that nobody finds two of the same for, as keys and arguments are chosen by strangers.
pub(crate) fn keyed_request(
    who: &str,
    target: &ActorId,
    method: &str,
    key: &[u8],
    mut arguments: Value,
) -> RequestId {
    arguments.sort_all_objects();
    let mut hash = Context::new(&SHA256);
    for part in [&b"idem"[..], who.as_bytes(), target.as_str().as_bytes(), method.as_bytes(), key] {
        hash.update(&(part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.update(arguments.to_string().as_bytes());
    let digest = hash.finish();
    let id = digest.as_ref().first_chunk().expect("a SHA-256 has 32 bytes");
    RequestId { session: SessionId(u128::from_be_bytes(*id)), seq: 0 }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_key_stands_for_one_callers_call_of_one_handler_with_these_arguments() {
        let (alice, bob) = (ActorId::new("Cart", "alice").unwrap(), ActorId::new("Cart", "bob").unwrap());
        let id = keyed_request("key:a", &alice, "add", b"k", json!({"sku": "tea", "qty": 1}));
        assert_eq!(id, keyed_request("key:a", &alice, "add", b"k", json!({"qty": 1, "sku": "tea"})));
        for other in [
            keyed_request("key:b", &alice, "add", b"k", json!({"sku": "tea", "qty": 1})),
            keyed_request("key:a", &bob, "add", b"k", json!({"sku": "tea", "qty": 1})),
            keyed_request("key:a", &alice, "remove", b"k", json!({"sku": "tea", "qty": 1})),
            keyed_request("key:a", &alice, "add", b"l", json!({"sku": "tea", "qty": 1})),
            keyed_request("key:a", &alice, "add", b"k", json!({"sku": "tea", "qty": 2})),
        ] {
            assert_ne!(id, other);
        }
    }
}
