//! The attribute macros of Perennial.
//!
//! Owns the translation of a user's types and impl blocks into the traits of the crate `perennial`,
//! and the refusal, on the user's own line, of what those traits cannot carry. Never decides anything
//! at run time: the code it writes only calls `perennial`. In: Rust items. Out: Rust items.

mod actor;
mod data;
mod hooks;
mod serde_attrs;

use proc_macro::TokenStream;

/// Makes a struct or enum something that may be stored or sent: implements `perennial::Data`.
///
/// Derives `Clone`, `Debug`, `PartialEq`, `Serialize` and `Deserialize`, leaving out what the item
/// derives already below this attribute. Serde attributes that the compact encoding cannot carry
/// (`flatten`, `untagged`, `tag`, `skip_serializing_if`, ...) are refused; `rename`, `rename_all`,
/// `alias`, `default` and, on named fields, `skip` are fine.
///
/// The state of an actor outlives its type. What was written with another shape is read by field name, and
/// nothing of it may be lost: a field may be added with `#[serde(default)]`, renamed with `#[serde(alias)]`,
/// reordered, widened or made optional. Two options say the rest:
///
/// `#[data(upgrade_from = CartV1)]`: a state that was written as `CartV1`, or that `CartV1` could read, is read
/// as such and converted with `From<CartV1>`. `CartV1` may itself be upgraded from an older type. It stays as
/// it was, under a new name. This counts for the state itself, not for types within it.
///
/// `#[data(removed(note))]`: what states hold in the field `note`, which is gone, is lost when they are written
/// again. Of a variant: `removed(Sent.by)`.
#[proc_macro_attribute]
pub fn data(attr: TokenStream, item: TokenStream) -> TokenStream {
    data::expand(attr.into(), item.into()).into()
}

/// Makes the type of an inherent impl block an actor: implements `perennial::Actor` and writes its
/// typed reference, `CartRef` for `Cart`.
///
/// Each `pub fn` and `pub async fn` is a handler: `&mut self` writes, `&self` reads. The context, if
/// wanted, comes right after `self`: `&mut Ctx<Self>` in a write, `&Ctx<Self>` in a read. Other
/// functions stay as they are and are not remote.
///
/// Options: `#[actor(kind = "shop.cart", event = CartEvent)]`. The kind is the stable name of the type
/// in ids, URLs and logs (default: the struct's name); the event is what `ctx.publish` takes. With
/// `keep_events = 5000` that many of the newest events are kept for streams that resume (default: 1000), with
/// `keep_events_for = "24h"` none that was published longer ago (default: `"7d"`).
///
/// Limits, each at most that of `perennial::limits`: `mailbox = 64` calls that wait for one actor,
/// `state_bytes = "64KiB"` of encoded state, `record_bytes = "64KiB"` of what one turn leaves,
/// `concurrency = 100` async turns and reads of the kind on a node at a time.
///
/// Hooks are private functions: `#[activated] fn warm(&mut self, ctx: &Ctx<Self>)` runs whenever the state has
/// come into memory, before any turn sees it; `#[passivating]` before an idle actor leaves memory, which is not
/// promised. Neither makes a record: what an `#[activated]` changes is stored with the next turn's.
///
/// `stateless`: a pool of workers on every node instead of actors, see `docs/stateless.md`. Handlers take
/// `&self`. `balance` is `"round_robin"`, `"least_in_flight"`, `"power_of_two"` (default), `"weighted"` or
/// `"by_key"`; `idempotent` lets a call be made again that may have run.
#[proc_macro_attribute]
pub fn actor(attr: TokenStream, item: TokenStream) -> TokenStream {
    actor::expand(attr.into(), item.into()).into()
}

/// Collects errors, so that one compilation shows all of them.
#[derive(Default)]
struct Errors(Option<syn::Error>);

impl Errors {
    fn push(&mut self, error: syn::Error) {
        match &mut self.0 {
            Some(all) => all.combine(error),
            None => self.0 = Some(error),
        }
    }

    /// Keeps the error, gives the value.
    fn take<T>(&mut self, result: syn::Result<T>) -> Option<T> {
        result.map_err(|error| self.push(error)).ok()
    }

    fn into_tokens(self) -> proc_macro2::TokenStream {
        self.0.map(|all| all.to_compile_error()).unwrap_or_default()
    }
}
