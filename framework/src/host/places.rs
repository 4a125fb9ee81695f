//! How many turns of a kind a node runs at a time, for kinds that say so.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use perennial_core::id::NodeId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::actor::Kind;
use crate::error::Fault;
use crate::link::lock;

/// Places for turns, by kind; a kind that says nothing needs none.
#[derive(Debug, Default)]
pub(crate) struct Places(Mutex<BTreeMap<&'static str, Arc<Semaphore>>>);

impl Places {
    /// A place for an async turn, if the kind limits them.
    ///
    /// # Errors
    /// [`Fault::Overloaded`] when all are taken.
    pub(super) fn take(&self, kind: &dyn Kind, node: &NodeId) -> Result<Option<OwnedSemaphorePermit>, Fault> {
        let Some(limit) = kind.options().limits.concurrency else { return Ok(None) };
        let places = {
            let mut kinds = lock(&self.0);
            kinds.entry(kind.name()).or_insert_with(|| Arc::new(Semaphore::new(limit as usize))).clone()
        };
        places.try_acquire_owned().map(Some).map_err(|_| Fault::Overloaded {
            what: "the concurrency".into(),
            at: format!("{} on node {node}", kind.name()),
            limit: limit.into(),
        })
    }
}
