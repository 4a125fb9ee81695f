//! What may be stored or sent: types with `#[data]`.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::schema::{Type, Types};

/// A type that may be stored or sent. Derived with `#[data]`; implemented for the standard types.
///
/// It carries its schema, so that older states can be read by field name and any state can be shown.
pub trait Data: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Describes the type; named types are entered into `types` once.
    fn schema(types: &mut Types) -> Type;
}
