//! Request ids of idempotency keys.
//!
//! Owns what a key stands for: one handler of one actor with these arguments. A repeated request gets its
//! first reply; a key used again with other arguments is another request and never gets a reply that
//! belongs to something else.

use perennial::call::ActorId;
use perennial::core::hash::wide_hash;
use perennial::core::id::{RequestId, SessionId};
use serde_json::Value;

/// The request id of a key: the hash of actor, handler, key and arguments, in which the order of names
/// does not matter. A key used again with other arguments is another request: it runs.
pub(crate) fn keyed_request(target: &ActorId, method: &str, key: &[u8], mut arguments: Value) -> RequestId {
    arguments.sort_all_objects();
    let canonical = arguments.to_string();
    let mut bytes = Vec::with_capacity(canonical.len() + 256);
    for part in [&b"idem"[..], target.as_str().as_bytes(), method.as_bytes(), key, canonical.as_bytes()] {
        bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
        bytes.extend_from_slice(part);
    }
    RequestId { session: SessionId(wide_hash(&bytes)), seq: 0 }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_key_stands_for_one_handler_of_one_actor_with_these_arguments() {
        let (alice, bob) = (ActorId::new("Cart", "alice").unwrap(), ActorId::new("Cart", "bob").unwrap());
        let id = keyed_request(&alice, "add", b"k", json!({"sku": "tea", "qty": 1}));
        assert_eq!(id, keyed_request(&alice, "add", b"k", json!({"qty": 1, "sku": "tea"})));
        for other in [
            keyed_request(&bob, "add", b"k", json!({"sku": "tea", "qty": 1})),
            keyed_request(&alice, "remove", b"k", json!({"sku": "tea", "qty": 1})),
            keyed_request(&alice, "add", b"l", json!({"sku": "tea", "qty": 1})),
            keyed_request(&alice, "add", b"k", json!({"sku": "tea", "qty": 2})),
        ] {
            assert_ne!(id, other);
        }
    }
}
