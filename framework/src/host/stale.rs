//! Reads that any replica answers from its rows, if they are not too old.
//!
//! Owns the reading of rows that are being changed meanwhile. How old they are is what the replica knows of
//! itself, see `replica/standing.rs`; nobody else is asked, so this works without a leader. Runs beside the
//! hosts, not in them: no turn holds it up.

use std::sync::Arc;
use std::time::Duration;

use perennial_core::id::{GroupId, NodeId, PartitionId, Term};
use perennial_core::partition::rows;
use tokio::sync::Semaphore;

use super::activation::{fresh, read_state};
use super::reminders::RemindersView;
use super::turns::handler;
use super::{HostCall, HostCounters};
use crate::actor::{Answer, Finished, Kind, State};
use crate::app::Kinds;
use crate::call::{Answered, Caller};
use crate::clock::Clock;
use crate::collections::{Handle, Ids};
use crate::error::Fault;
use crate::replica::ReplicaHandle;
use crate::replica::standing::Standing;

/// Most reads of this kind that run on a node at a time.
pub(crate) const STALE_READS_MAX: usize = 4096;
/// How often rows that changed under a read are read again, before the leader is asked instead.
const TRIES: usize = 4;

/// See the module.
pub(crate) struct StaleReads {
    pub(crate) node: NodeId,
    pub(crate) kinds: Kinds,
    pub(crate) replica: ReplicaHandle,
    pub(crate) clock: Clock,
    pub(crate) counters: Arc<HostCounters>,
    /// Places for [`STALE_READS_MAX`].
    pub(crate) running: Semaphore,
}

impl StaleReads {
    /// Answers a read from the rows here, if what they lack was all committed less than `within` ago.
    /// `None`: somebody else has to be asked, and nothing is wrong with the call.
    pub(crate) async fn read(
        &self,
        partition: PartitionId,
        call: &HostCall,
        within: Duration,
        caller: Arc<dyn Caller>,
    ) -> Option<Answered> {
        let group = GroupId::of(partition);
        let standing = self.replica.standing(group)?;
        standing.view()?;
        let (answer, age) = match self.answer(group, &standing, call, within, caller).await {
            Ok(answered) => answered?,
            Err(fault) => (Answer::Fault(fault), Duration::ZERO),
        };
        HostCounters::add(&self.counters.stale_reads, 1);
        Some(Answered {
            answer,
            node: Some(self.node.clone()),
            partition: Some(partition),
            retries: 0,
            age_ms: Some(u64::try_from(age.as_millis()).unwrap_or(u64::MAX)),
        })
    }

    async fn answer(
        &self,
        group: GroupId,
        standing: &Standing,
        call: &HostCall,
        within: Duration,
        caller: Arc<dyn Caller>,
    ) -> Result<Option<(Answer, Duration)>, Fault> {
        // Another build may know it.
        let Ok((kind, method)) = handler(&self.kinds, &call.target, &call.method) else { return Ok(None) };
        let described = &kind.methods()[method];
        if described.write {
            let (kind, method) = (kind.name().to_owned(), described.name.to_owned());
            return Err(Fault::NotARead { kind, method });
        }
        if described.asynchronous && kind.has_collections() {
            // Its items may change while it runs: only the leader can keep them as they were.
            return Ok(None);
        }
        let Ok(_running) = self.running.try_acquire() else {
            HostCounters::add(&self.counters.overloaded, 1);
            return Err(Fault::Overloaded {
                what: "the line of stale reads".into(),
                at: format!("node {}", self.node),
                limit: STALE_READS_MAX as u64,
            });
        };
        for attempt in 0..TRIES {
            if attempt > 0 {
                tokio::task::yield_now().await;
            }
            let Some(view) = standing.view() else { continue };
            let now = self.clock.instant();
            let age = now.saturating_duration_since(view.as_of);
            if age > within {
                return Ok(None);
            }
            let mut state = match self.state(group, call, &*kind) {
                Some(state) => state,
                // Rows that are being replaced may not fit together.
                None if !standing.is_still(view) => continue,
                // What cannot be read here is told, or read, by the leader.
                None => return Ok(None),
            };
            let reminders = RemindersView::applied(self.replica.rows(), group);
            let env = call.env(caller.clone(), self.clock.now(), reminders);
            let woken = if kind.options().hooks.activated { state.activated(env.clone()) } else { Ok(()) };
            let finished = match woken {
                Ok(()) if described.asynchronous => {
                    if !standing.is_still(view) {
                        continue;
                    }
                    let turn = state.run_async(method, call.args.clone(), env);
                    return match tokio::time::timeout_at(call.deadline.into(), turn).await {
                        Ok((_, finished)) => Ok(Some((finished.answer, age))),
                        Err(_) => Err(Fault::TimedOut { actor: call.target.to_string() }),
                    };
                }
                Ok(()) => state.run(method, call.args.clone(), env),
                Err(fault) => Finished::fault(fault),
            };
            // Rows that changed meanwhile may have been the reason for anything, also for a failure.
            if standing.is_still(view) {
                return Ok(Some((finished.answer, age)));
            }
        }
        Ok(None)
    }

    fn state(&self, group: GroupId, call: &HostCall, kind: &dyn Kind) -> Option<Box<dyn State>> {
        let rows = self.replica.rows();
        let items = kind
            .has_collections()
            .then(|| Handle::of(call.target.clone(), group, rows.clone(), Ids::new(Term(0))).copy());
        match rows.get(group, &rows::state(&call.target)).ok()? {
            None => fresh(kind, items.as_ref()).ok(),
            Some(stored) => Some(read_state(&*rows, group, kind, items.as_ref(), stored).ok()?.state),
        }
    }
}
