//! Activations: an actor's presence in memory, made from its row and written back into records.
//!
//! Owns the form of a stored state: the fingerprint of its schema, then its encoding. A state of another
//! schema is read by that schema, which the log holds once for each partition, behind the build that wrote it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use perennial_core::id::{ActorId, GroupId, RecordSeq};
use perennial_core::partition::record::Record;
use perennial_core::partition::rows;

use super::builds::Misread;
use super::newcomers::{ACTIVATIONS_MAX, NEW_ACTORS_PER_SECOND_MAX};
use super::owed::Owed;
use super::timers::Timer;
use super::turns::Work;
use super::{Host, HostCounters, events};
use crate::actor::{Kind, State, caught};
use crate::collections::{self, Doing, Handle};
use crate::error::Fault;
use crate::replica::RowStore;
use crate::schema::Schema;

/// An actor idle for this long leaves memory when room is needed.
const ROOM_IDLE: Duration = Duration::from_secs(1);
/// Bytes in front of a stored state: the fingerprint of its schema.
const FINGERPRINT_BYTES: usize = 8;
/// Bytes in front of a stored schema: the build that stored it first.
const BUILD_BYTES: usize = 8;

/// An actor in memory.
///
/// Invariant: `state` is `None` exactly while an async write runs; `bytes` is what the last record
/// says, or empty when there is none yet.
pub(super) struct Activation {
    pub(super) kind: Arc<dyn Kind>,
    pub(super) state: Option<Box<dyn State>>,
    pub(super) bytes: Bytes,
    /// What its collections hold, if its type has any.
    pub(super) items: Option<Handle>,
    /// The first record after its last one; it may leave memory once that many are applied.
    pub(super) settled_at: RecordSeq,
    pub(super) last_used: Instant,
    /// Calls that wait while an async write runs.
    pub(super) waiting: VecDeque<Work>,
    /// How many reminders it has as of the last turn, if they were counted.
    pub(super) reminders: Option<usize>,
    /// Its timers. They are no reason to stay in memory.
    pub(super) timers: BTreeMap<String, Timer>,
    /// Its events.
    pub(super) events: events::Kept,
}

impl Activation {
    /// The state as of the last record, decoded anew.
    pub(super) fn reload(&self) -> Result<Box<dyn State>, String> {
        self.reload_with(self.items.as_ref())
    }

    /// The same to read from while turns go on: its items stay as they are.
    pub(super) fn copy(&self) -> Result<Box<dyn State>, String> {
        let items = self.items.as_ref().map(Handle::copy);
        self.reload_with(items.as_ref())
    }

    fn reload_with(&self, items: Option<&Handle>) -> Result<Box<dyn State>, String> {
        if self.bytes.is_empty() {
            return fresh(&*self.kind, items);
        }
        decode(items, || self.kind.decode(&self.bytes[FINGERPRINT_BYTES..]))
    }

    /// Whether it may leave memory.
    pub(super) fn idle(&self, applied: RecordSeq) -> bool {
        let copied = self.items.as_ref().is_some_and(Handle::is_copied);
        self.state.is_some() && self.waiting.is_empty() && self.settled_at <= applied && !copied
    }
}

/// The state of an actor that has no record.
pub(super) fn fresh(kind: &dyn Kind, items: Option<&Handle>) -> Result<Box<dyn State>, String> {
    decode(items, || caught("when made by default", || Ok(kind.fresh())))
}

/// Makes a state whose collections have these items.
fn decode(
    items: Option<&Handle>,
    decode: impl FnOnce() -> Result<Box<dyn State>, String>,
) -> Result<Box<dyn State>, String> {
    let Some(items) = items else { return decode() };
    let (state, seen) = collections::within(Doing::Decode, items, decode);
    items.decoded(seen);
    state
}

/// Decodes a stored state; one of another schema is given back in today's form.
///
/// # Errors
/// Why it cannot be read, and what to do.
pub(super) fn read_state(
    rows: &dyn RowStore,
    group: GroupId,
    kind: &dyn Kind,
    items: Option<&Handle>,
    stored: Vec<u8>,
) -> Result<(Box<dyn State>, Bytes), Misread> {
    let (fingerprint, bytes) = stored
        .split_first_chunk::<FINGERPRINT_BYTES>()
        .ok_or_else(|| "it is shorter than its fingerprint".to_owned())?;
    let fingerprint = u64::from_be_bytes(*fingerprint);
    let today = kind.fingerprint();
    if fingerprint == today {
        let state = decode(items, || kind.decode(bytes))?;
        return Ok((state, Bytes::from(stored)));
    }
    let row = rows.get(group, &rows::schema(fingerprint)).map_err(|error| error.to_string())?;
    let row = row.ok_or_else(|| format!("its schema {fingerprint:016x} is not in the log"))?;
    let (build, schema) =
        stored_schema(&row).ok_or_else(|| format!("its schema {fingerprint:016x} is cut off"))?;
    let schema = Schema::decode(schema).map_err(|error| error.to_string())?;
    let upgraded = decode(items, || kind.upgrade(bytes, &schema).map_err(|error| error.to_string()));
    let state = upgraded.map_err(|error| Misread {
        build: Some(build),
        why: format!(
            "it was stored with schema {fingerprint:016x}, this build has {today:016x}: {error}; \
             run a build that reads both, see `upgrade_from` in the documentation of #[data]"
        ),
    })?;
    items.map_or(Ok(()), Handle::find_lost)?;
    let bytes = state.encode_into(today.to_be_bytes().to_vec())?;
    Ok((state, Bytes::from(bytes)))
}

/// The build that stored a schema first, and the schema.
pub(crate) fn stored_schema(row: &[u8]) -> Option<(u64, &[u8])> {
    let (build, schema) = row.split_first_chunk::<BUILD_BYTES>()?;
    Some((u64::from_be_bytes(*build), schema))
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
        let items = kind.has_collections().then(|| {
            Handle::of(actor.clone(), self.group, self.shared.rows.clone(), self.collection_ids.clone())
        });
        let (state, bytes) = match stored {
            None => {
                if for_call {
                    self.admit_newcomer()?;
                }
                let state =
                    fresh(&**kind, items.as_ref()).map_err(|why| self.storage_fault("state", actor, &why))?;
                (state, Bytes::new())
            }
            Some(stored) => match read_state(&*self.shared.rows, self.group, &**kind, items.as_ref(), stored)
            {
                Ok(decoded) => {
                    self.readable(actor);
                    decoded
                }
                Err(misread) => return Err(self.unreadable(actor, misread)),
            },
        };
        let act = Activation {
            kind: kind.clone(),
            state: Some(state),
            bytes,
            items,
            settled_at: RecordSeq(0),
            last_used: now,
            waiting: VecDeque::new(),
            reminders: None,
            timers: BTreeMap::new(),
            events: events::Kept::default(),
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

    /// The schema of an actor's state, encoded.
    pub(super) fn state_schema(&self, actor: &ActorId) -> Option<Bytes> {
        let schema = self.activations.get(actor)?.kind.schema();
        Some(Bytes::from(postcard::to_stdvec(&schema).expect("a schema always encodes")))
    }

    /// Puts a schema in the log, unless it is there.
    pub(super) fn append_schema(&mut self, fingerprint: u64, schema: Bytes) {
        let stored = self.shared.rows.get(self.group, &rows::schema(fingerprint));
        if matches!(stored, Ok(Some(_))) {
            return;
        }
        let build = self.shared.builds.build().to_be_bytes();
        let schema = Bytes::from([&build[..], &schema].concat());
        let size = schema.len();
        let seq = self.append(Record::Schema { fingerprint, schema }, size);
        self.owed.push_back(Owed::nothing(seq));
    }
}
