//! Activations: an actor's presence in memory, made from its row and written back into records.
//!
//! Owns the form of a stored state: the fingerprint of its schema, then its encoding. A state of another
//! schema is read by that schema, which the log holds once for each partition.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use perennial_core::id::{ActorId, GroupId, RecordSeq};
use perennial_core::partition::record::Record;
use perennial_core::partition::rows;

use super::newcomers::{ACTIVATIONS_MAX, NEW_ACTORS_PER_SECOND_MAX};
use super::owed::Owed;
use super::timers::Timer;
use super::turns::Work;
use super::{Host, HostCounters, events};
use crate::actor::{Kind, State, caught};
use crate::error::Fault;
use crate::replica::RowStore;
use crate::schema::Schema;

/// An actor idle for this long leaves memory when room is needed.
const ROOM_IDLE: Duration = Duration::from_secs(1);
/// Bytes in front of a stored state: the fingerprint of its schema.
const FINGERPRINT_BYTES: usize = 8;

/// An actor in memory.
///
/// Invariant: `state` is `None` exactly while an async write runs; `bytes` is what the last record
/// says, or empty when there is none yet.
pub(super) struct Activation {
    pub(super) kind: Arc<dyn Kind>,
    pub(super) state: Option<Box<dyn State>>,
    pub(super) bytes: Bytes,
    /// The first record after its last one; it may leave memory once that many are applied.
    pub(super) settled_at: RecordSeq,
    pub(super) last_used: Instant,
    /// Calls that wait while an async write runs.
    pub(super) waiting: VecDeque<Work>,
    /// How many reminders it has as of the last turn, if they were counted.
    pub(super) reminders: Option<usize>,
    /// Its timers. They are no reason to stay in memory.
    pub(super) timers: BTreeMap<String, Timer>,
    /// Events published since it was last looked whether there are too many; as many as are kept on
    /// activation.
    pub(super) events: u32,
}

impl Activation {
    /// The state as of the last record, decoded anew.
    pub(super) fn reload(&self) -> Result<Box<dyn State>, String> {
        if self.bytes.is_empty() {
            return fresh(&*self.kind);
        }
        self.kind.decode(&self.bytes[FINGERPRINT_BYTES..])
    }

    /// Whether it may leave memory.
    pub(super) fn idle(&self, applied: RecordSeq) -> bool {
        self.state.is_some() && self.waiting.is_empty() && self.settled_at <= applied
    }
}

/// The state of an actor that has no record.
pub(super) fn fresh(kind: &dyn Kind) -> Result<Box<dyn State>, String> {
    caught("when made by default", || Ok(kind.fresh()))
}

/// Decodes a stored state; one of an older schema is given back in today's form.
pub(super) fn read_state(
    rows: &dyn RowStore,
    group: GroupId,
    kind: &dyn Kind,
    stored: Vec<u8>,
) -> Result<(Box<dyn State>, Bytes), String> {
    let (fingerprint, bytes) = stored
        .split_first_chunk::<FINGERPRINT_BYTES>()
        .ok_or_else(|| "it is shorter than its fingerprint".to_owned())?;
    let fingerprint = u64::from_be_bytes(*fingerprint);
    if fingerprint == kind.fingerprint() {
        let state = kind.decode(bytes)?;
        return Ok((state, Bytes::from(stored)));
    }
    let schema = rows
        .get(group, &rows::schema(fingerprint))
        .map_err(|error| error.to_string())?
        .ok_or_else(|| format!("its schema {fingerprint:016x} is not in the log"))?;
    let schema = Schema::decode(&schema).map_err(|error| error.to_string())?;
    let state = kind.upgrade(bytes, &schema)?;
    let today = state.encode_into(kind.fingerprint().to_be_bytes().to_vec())?;
    Ok((state, Bytes::from(today)))
}

impl Host {
    /// The activation of an actor, made from its row if it is not in memory. Only a call may be refused
    /// because there are too many.
    pub(super) fn activate(
        &mut self,
        actor: &ActorId,
        kind: &Arc<dyn Kind>,
        for_call: bool,
    ) -> Result<(), Fault> {
        let now = self.shared.clock.instant();
        if let Some(act) = self.activations.get_mut(actor) {
            act.last_used = now;
            return Ok(());
        }
        if self.activations.len() >= ACTIVATIONS_MAX && !self.make_room(now) && for_call {
            HostCounters::add(&self.shared.counters.new_actors_refused, 1);
            return Err(Fault::Overloaded {
                what: "the memory for actors".into(),
                at: format!("partition {}", self.partition),
                limit: ACTIVATIONS_MAX as u64,
            });
        }
        let stored = self
            .shared
            .rows
            .get(self.group, &rows::state(actor))
            .map_err(|error| self.storage_fault("state", actor, &error))?;
        let (state, bytes) = match stored {
            None => {
                if for_call {
                    self.admit_newcomer()?;
                }
                let state = fresh(&**kind).map_err(|why| self.storage_fault("state", actor, &why))?;
                (state, Bytes::new())
            }
            Some(stored) => read_state(&*self.shared.rows, self.group, &**kind, stored)
                .map_err(|why| self.storage_fault("state", actor, &why))?,
        };
        let act = Activation {
            kind: kind.clone(),
            state: Some(state),
            bytes,
            settled_at: RecordSeq(0),
            last_used: now,
            waiting: VecDeque::new(),
            reminders: None,
            timers: BTreeMap::new(),
            // How many there are is not known: the first ones published are a reason to look.
            events: events::EVENTS_KEPT_MIN,
        };
        self.activations.insert(actor.clone(), act);
        self.gauges.resident.store(self.activations.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Lets a call wake an actor without a row, unless that happens too often.
    fn admit_newcomer(&self) -> Result<(), Fault> {
        let counters = &self.shared.counters;
        if counters.newcomers.take(self.shared.clock.instant()) {
            HostCounters::add(&counters.new_actors, 1);
            return Ok(());
        }
        HostCounters::add(&counters.new_actors_refused, 1);
        Err(Fault::Overloaded {
            what: "the number of new actors per second".into(),
            at: format!("node {}", self.shared.node),
            limit: NEW_ACTORS_PER_SECOND_MAX,
        })
    }

    /// Lets idle actors leave memory before their time; says whether there is room now. Looks through them
    /// once a second at most.
    fn make_room(&mut self, now: Instant) -> bool {
        if self.made_room.is_none_or(|made| now.saturating_duration_since(made) >= ROOM_IDLE) {
            self.made_room = Some(now);
            self.let_idle_leave(now, ROOM_IDLE);
        }
        self.activations.len() < ACTIVATIONS_MAX
    }

    /// Lets actors leave memory that have been idle for this long. Not by record time, which stands still after
    /// a clock that was ahead.
    pub(super) fn let_idle_leave(&mut self, now: Instant, idle: Duration) {
        let applied = self.applied;
        let idle =
            |act: &Activation| act.idle(applied) && now.saturating_duration_since(act.last_used) >= idle;
        self.activations.retain(|_, act| !idle(act));
        self.gauges.resident.store(self.activations.len() as u64, Ordering::Relaxed);
    }

    /// The state after a turn, behind its fingerprint, and whether it differs from the last record's.
    pub(super) fn encode_state(&self, actor: &ActorId) -> Result<(u64, Vec<u8>, bool), Fault> {
        let lost = || self.storage_fault("state", actor, &"the turn gave none back");
        let act = self.activations.get(actor).ok_or_else(lost)?;
        let state = act.state.as_ref().ok_or_else(lost)?;
        let fingerprint = act.kind.fingerprint();
        let mut bytes = Vec::with_capacity(act.bytes.len().max(32));
        bytes.extend_from_slice(&fingerprint.to_be_bytes());
        let bytes = state.encode_into(bytes).map_err(|why| self.storage_fault("new state", actor, &why))?;
        let changed = bytes[..] != act.bytes[..];
        if changed {
            let check = act.kind.check(&bytes[FINGERPRINT_BYTES..]);
            check.map_err(|why| self.storage_fault("new state", actor, &why))?;
        }
        Ok((fingerprint, bytes, changed))
    }

    /// Puts the schema of a state in the log, unless it is there.
    pub(super) fn append_schema(&mut self, actor: &ActorId, fingerprint: u64) {
        let stored = self.shared.rows.get(self.group, &rows::schema(fingerprint));
        if matches!(stored, Ok(Some(_))) {
            return;
        }
        let Some(act) = self.activations.get(actor) else { return };
        let (root, types) = act.kind.state_schema();
        let schema = Schema { root, types };
        let schema = Bytes::from(postcard::to_stdvec(&schema).expect("a schema always encodes"));
        let size = schema.len();
        let seq = self.append(Record::Schema { fingerprint, schema }, size);
        self.owed.push_back(Owed::nothing(seq));
    }
}
