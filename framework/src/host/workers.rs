//! Stateless workers: calls that any node runs.
//!
//! Owns a node's pools, one for each stateless kind: workers that wait for calls, and how many may run. A
//! worker runs one call at a time and is used again afterwards; nothing it holds is kept or replicated.
//! Never decides which node runs a call (`router/pool.rs` does) and remembers none: a call that is made twice
//! runs twice.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use perennial_core::id::NodeId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::activation::fresh;
use super::turns::numbered;
use super::{Ended, HostCall};
use crate::actor::{Answer, Finished, Kind, State, caught};
use crate::app::Kinds;
use crate::call::{Answered, Caller};
use crate::clock::Clock;
use crate::ctx::{RemindersView, TurnEnv};
use crate::error::Fault;
use crate::link::lock;
use crate::options::{Pool, WORKERS_DEFAULT};

/// The pools of a node.
pub(crate) struct Workers {
    node: NodeId,
    clock: Clock,
    pools: BTreeMap<&'static str, Arc<PoolHere>>,
}

/// The workers of one kind on this node.
struct PoolHere {
    kind: Arc<dyn Kind>,
    pool: Pool,
    limit: u32,
    places: Arc<Semaphore>,
    /// Workers without a call; never more than have run at a time.
    idle: Mutex<Vec<Box<dyn State>>>,
    calls: AtomicU64,
    refused: AtomicU64,
}

/// What a pool has done.
pub(crate) struct PoolFigures {
    pub(crate) kind: &'static str,
    pub(crate) calls: u64,
    pub(crate) refused: u64,
    pub(crate) running: u64,
}

impl Workers {
    pub(crate) fn new(node: NodeId, kinds: &Kinds, clock: Clock) -> Self {
        let pool = |kind: &Arc<dyn Kind>| {
            let options = kind.options();
            let limit = options.limits.concurrency.unwrap_or(WORKERS_DEFAULT);
            let here = PoolHere {
                kind: kind.clone(),
                pool: options.pool?,
                limit,
                places: Arc::new(Semaphore::new(limit as usize)),
                idle: Mutex::default(),
                calls: AtomicU64::new(0),
                refused: AtomicU64::new(0),
            };
            Some((kind.name(), Arc::new(here)))
        };
        Self { node, clock, pools: kinds.iter().filter_map(pool).collect() }
    }

    /// How calls of a kind are spread, if it is stateless.
    pub(crate) fn pool_of(&self, kind: &str) -> Option<Pool> {
        self.pools.get(kind).map(|here| here.pool)
    }

    /// Runs a call here. When it did not run, because no place was free or there is no such handler, the
    /// answer names no node.
    pub(crate) fn run(&self, call: HostCall, caller: Arc<dyn Caller>, answer: Box<dyn FnOnce(Ended) + Send>) {
        let unrun = |fault| Ended::Answered(Answered::fault(fault));
        let Some(here) = self.pools.get(call.target.kind()) else {
            return answer(Ended::NotLeader);
        };
        let method = match numbered(&here.kind, &call.method) {
            Ok((_, method)) => method,
            Err(fault) => return answer(unrun(fault)),
        };
        if call.deadline <= self.clock.instant() {
            return answer(unrun(Fault::TimedOut { actor: call.target.to_string() }));
        }
        let Ok(place) = here.places.clone().try_acquire_owned() else {
            here.refused.fetch_add(1, Ordering::Relaxed);
            return answer(unrun(Fault::Overloaded {
                what: "the pool of workers".into(),
                at: format!("{} on node {}", here.kind.name(), self.node),
                limit: here.limit.into(),
            }));
        };
        here.calls.fetch_add(1, Ordering::Relaxed);
        let env = call.env(caller, self.clock.now(), RemindersView::default());
        let (here, node) = (here.clone(), self.node.clone());
        tokio::spawn(async move {
            let said = here.work(method, call, env, place).await;
            let node = Some(node);
            answer(Ended::Answered(Answered {
                answer: said,
                node,
                partition: None,
                retries: 0,
                age_ms: None,
            }));
        });
    }

    /// What the pools have done, by kind.
    pub(crate) fn figures(&self) -> Vec<PoolFigures> {
        let figures = self.pools.iter().map(|(&kind, here)| PoolFigures {
            kind,
            calls: here.calls.load(Ordering::Relaxed),
            refused: here.refused.load(Ordering::Relaxed),
            running: u64::from(here.limit).saturating_sub(here.places.available_permits() as u64),
        });
        figures.collect()
    }
}

impl PoolHere {
    async fn work(&self, method: usize, call: HostCall, env: TurnEnv, _: OwnedSemaphorePermit) -> Answer {
        let deadline = call.deadline;
        let idle = lock(&self.idle).pop();
        let worker = match idle {
            Some(worker) => Ok(worker),
            None => self.make(&env),
        };
        let mut worker = match worker {
            Ok(worker) => worker,
            Err(fault) => return Answer::Fault(fault),
        };
        let (worker, finished) = if self.kind.methods()[method].asynchronous {
            let mut turn = worker.run_async(method, call.args, env);
            let ended = tokio::time::timeout_at(deadline.into(), &mut turn).await;
            // Work that is cut off may panic as it is dropped.
            let _ = caught("when dropped", || {
                drop(turn);
                Ok(())
            });
            ended.unwrap_or_else(|_| {
                (None, Finished::fault(Fault::TimedOut { actor: call.target.to_string() }))
            })
        } else {
            let finished = worker.run(method, call.args, env);
            (Some(worker), finished)
        };
        // One that has panicked may be in any state.
        if let Some(worker) = worker
            && !matches!(finished.answer, Answer::Fault(Fault::Panicked { .. }))
        {
            lock(&self.idle).push(worker);
        }
        finished.answer
    }

    fn make(&self, env: &TurnEnv) -> Result<Box<dyn State>, Fault> {
        let unusable = |why| Fault::Unreadable { what: "worker".into(), at: env.me.to_string(), why };
        let mut worker = fresh(&*self.kind, None).map_err(unusable)?;
        if self.kind.options().hooks.activated {
            worker.activated(env.clone())?;
        }
        Ok(worker)
    }
}
