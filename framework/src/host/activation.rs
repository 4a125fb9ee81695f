//! Activations: an actor's presence in memory, made from its row and written back into records.
//!
//! Owns the form of a stored state: the fingerprint of its schema, then its encoding. A state of another
//! schema is read by that schema, which the log holds once for each partition, behind the build that wrote it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use perennial_core::id::{ActorId, GroupId, RecordSeq};
use perennial_core::partition::record::Record;
use perennial_core::partition::rows;

use super::builds::Misread;
use super::memory::{ACTIVATION_BYTES, BATCH, Memory, Reason, TOGETHER_MS};
use super::newcomers::{ACTIVATIONS_MAX, NEW_ACTORS_PER_SECOND_MAX};
use super::owed::Owed;
use super::timers::Timer;
use super::turns::{Work, rows_failed};
use super::{Host, HostCounters};
use crate::actor::{Kind, State, caught};
use crate::collections::{self, Doing, Handle};
use crate::ctx::TurnEnv;
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
/// Invariants: `state` is `None` exactly while an async write runs; `bytes` is what the last record
/// says, in today's form, or empty when there is none yet; its actor stands in [`Host::by_use`] once, at or before
/// `last_used`; its [`cost`](Self::cost) is charged to the node's memory.
pub(crate) struct Activation {
    pub(super) kind: Arc<dyn Kind>,
    pub(super) state: Option<Box<dyn State>>,
    pub(super) bytes: Bytes,
    /// Its row has the state in the form of another schema. The next write stores it in today's, whatever it
    /// changes: what the old form names may go with that record.
    outdated: bool,
    /// What its collections hold, if its type has any.
    pub(super) items: Option<Handle>,
    /// The first record after its last one; it may leave memory once that many are applied.
    pub(super) settled_at: RecordSeq,
    /// As [`Memory::millis`] counts.
    pub(super) last_used: u64,
    /// What it takes besides its encoded state, in bytes.
    fixed: u32,
    /// Calls that wait while an async write runs.
    pub(super) waiting: VecDeque<Work>,
    /// How many reminders it has as of the last turn, if they were counted.
    pub(super) reminders: Option<usize>,
    /// Its timers. They are no reason to stay in memory.
    pub(super) timers: BTreeMap<String, Timer>,
    /// What those take, in bytes.
    pub(super) timers_cost: u32,
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

    /// What it takes of the node's memory, by estimate: the state once as it is and once encoded, and timers.
    pub(super) fn cost(&self) -> u64 {
        u64::from(self.fixed) + u64::from(self.timers_cost) + 2 * self.bytes.len() as u64
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

/// A state as it was stored.
pub(super) struct Stored {
    pub(super) state: Box<dyn State>,
    /// Encoded in today's form.
    bytes: Bytes,
    /// Its row has it in another form.
    outdated: bool,
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
) -> Result<Stored, Misread> {
    let (fingerprint, bytes) = stored
        .split_first_chunk::<FINGERPRINT_BYTES>()
        .ok_or_else(|| "it is shorter than its fingerprint".to_owned())?;
    let fingerprint = u64::from_be_bytes(*fingerprint);
    let today = kind.fingerprint();
    if fingerprint == today {
        let state = decode(items, || kind.decode(bytes))?;
        return Ok(Stored { state, bytes: Bytes::from(stored), outdated: false });
    }
    let row = rows.get(group, &rows::schema(fingerprint))?;
    let row = row.ok_or_else(|| format!("its schema {fingerprint:016x} is not in the log"))?;
    let (build, schema) =
        stored_schema(&row).ok_or_else(|| format!("its schema {fingerprint:016x} is cut off"))?;
    let schema = Schema::decode(schema).map_err(|error| error.to_string())?;
    let upgraded = decode(items, || kind.upgrade(bytes, &schema).map_err(|error| error.to_string()));
    let state = upgraded.map_err(|error| Misread::State {
        build: Some(build),
        why: format!(
            "it was stored with schema {fingerprint:016x}, this build has {today:016x}: {error}; \
             run a build that reads both, see `upgrade_from` in the documentation of #[data]"
        ),
    })?;
    if let Some(items) = items {
        items.find_lost()?;
    }
    let bytes = state.encode_into(today.to_be_bytes().to_vec())?;
    Ok(Stored { state, bytes: Bytes::from(bytes), outdated: true })
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
        let now = self.millis();
        if let Some(act) = self.activations.get_mut(actor) {
            act.last_used = now;
            return Ok(());
        }
        if self.activations.len() >= ACTIVATIONS_MAX && !self.make_room(now) && for_call {
            return Err(self.no_room("the number of actors in memory", ACTIVATIONS_MAX as u64));
        }
        if self.memory().is_full() {
            // The others are told by whoever has finished a message; here nobody is waited for.
            self.let_leave(BATCH, Duration::ZERO, u64::MAX, Reason::Memory);
            if self.memory().is_full() && for_call {
                let budget = self.memory().budget();
                return Err(self.no_room("the memory for actors", budget));
            }
        }
        let stored = self
            .shared
            .rows
            .get(self.group, &rows::state(actor))
            .map_err(|error| rows_failed("its state", actor, &error))?;
        let items = kind.has_collections().then(|| self.items_of(actor));
        let Stored { mut state, bytes, outdated } = match stored {
            None => {
                if for_call {
                    self.admit_newcomer()?;
                }
                let state =
                    fresh(&**kind, items.as_ref()).map_err(|why| self.storage_fault("state", actor, &why))?;
                Stored { state, bytes: Bytes::new(), outdated: false }
            }
            Some(stored) => match read_state(&*self.shared.rows, self.group, &**kind, items.as_ref(), stored)
            {
                Ok(stored) => {
                    self.readable(actor);
                    stored
                }
                Err(misread) => return Err(self.unreadable(actor, misread)),
            },
        };
        let items = match items {
            None if outdated => self.lost_items(actor)?,
            items => items,
        };
        self.wake(actor, &**kind, &mut *state)?;
        let fixed = ACTIVATION_BYTES + (actor.as_str().len() + size_of_val(&*state)) as u64;
        let act = Activation {
            kind: kind.clone(),
            state: Some(state),
            bytes,
            outdated,
            items,
            settled_at: RecordSeq(0),
            last_used: now,
            fixed: u32::try_from(fixed).unwrap_or(u32::MAX),
            waiting: VecDeque::new(),
            reminders: None,
            timers: BTreeMap::new(),
            timers_cost: 0,
        };
        self.memory().charge(act.cost());
        self.memory().note_made();
        self.by_use.push(Reverse((now, actor.clone())));
        self.activations.insert(actor.clone(), act);
        self.gauges.resident.store(self.activations.len() as u64, Ordering::Relaxed);
        self.show_oldest();
        Ok(())
    }

    fn items_of(&self, actor: &ActorId) -> Handle {
        Handle::of(actor.clone(), self.group, self.shared.rows.clone(), self.collection_ids.clone())
    }

    /// The items of an actor whose type had collections and has none any more; they go with its next record.
    fn lost_items(&self, actor: &ActorId) -> Result<Option<Handle>, Fault> {
        let items = self.items_of(actor);
        let found = items.find_lost().map_err(|error| rows_failed("an item", actor, &error))?;
        Ok(found.then_some(items))
    }

    fn no_room(&self, what: &str, limit: u64) -> Fault {
        HostCounters::add(&self.shared.counters.new_actors_refused, 1);
        let at = format!("partition {} on node {}", self.partition, self.shared.node);
        Fault::Overloaded { what: what.to_owned(), at, limit }
    }

    /// Tells a state that has come into memory, if its kind wants to know.
    pub(super) fn wake(&self, actor: &ActorId, kind: &dyn Kind, state: &mut dyn State) -> Result<(), Fault> {
        if !kind.options().hooks.activated {
            return Ok(());
        }
        state.activated(self.hook_env("activated", actor))
    }

    fn hook_env(&self, hook: &str, actor: &ActorId) -> TurnEnv {
        let request = self.unattended(hook, actor, self.epoch.0, 0, "");
        self.env(actor.clone(), Vec::new(), request, false, self.patience())
    }

    pub(super) fn memory(&self) -> &Memory {
        &self.shared.counters.memory
    }

    fn millis(&self) -> u64 {
        self.memory().millis(self.shared.clock.instant())
    }

    /// The state that its last record says has changed.
    pub(super) fn replace_bytes(&mut self, actor: &ActorId, bytes: &Bytes) {
        self.recharged(actor, |act| {
            act.bytes = bytes.clone();
            act.outdated = false;
        });
    }

    /// Changes an actor in memory, and what is charged for it.
    pub(super) fn recharged<T>(
        &mut self,
        actor: &ActorId,
        change: impl FnOnce(&mut Activation) -> T,
    ) -> Option<T> {
        let act = self.activations.get_mut(actor)?;
        let before = act.cost();
        let changed = change(act);
        let after = act.cost();
        self.memory().charge(after);
        self.memory().release(before);
        Some(changed)
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
    fn make_room(&mut self, now: u64) -> bool {
        let idle = ROOM_IDLE.as_millis() as u64;
        if self.made_room.is_none_or(|made| now.saturating_sub(made) >= idle) {
            self.made_room = Some(now);
            self.let_leave(usize::MAX, ROOM_IDLE, u64::MAX, Reason::Number);
        }
        self.activations.len() < ACTIVATIONS_MAX
    }

    /// Has actors leave while the node uses more than its budget for them: here, if the one used longest ago
    /// is here, else where it is.
    pub(super) fn relieve(&mut self) {
        if self.memory().is_above()
            && self.memory().oldest_is_of(self.partition)
            && self.let_oldest_leave() > 0
            && self.memory().is_above()
        {
            // By now somebody else may have the oldest one.
            let _ = self.memory().oldest_is_of(self.partition);
        }
    }

    /// The host was told that it has the one used longest ago. Gives how many left; where none can, nobody
    /// else is told now, or hosts would tell each other for ever.
    pub(super) fn on_relieve(&mut self) -> usize {
        self.shown.take_asked();
        if self.memory().is_above() { self.let_oldest_leave() } else { 0 }
    }

    /// Lets those leave that were used no later than the oldest of other hosts, or not much.
    fn let_oldest_leave(&mut self) -> usize {
        let used_before = self.memory().oldest_elsewhere(self.partition).saturating_add(TOGETHER_MS);
        self.let_leave(BATCH, Duration::ZERO, used_before, Reason::Memory)
    }

    /// Lets up to `most` actors leave memory that have been idle for so long, those first that were used
    /// longest ago, and none that was used after `used_before`; for want of memory, until there is enough.
    /// Gives how many did.
    pub(super) fn let_leave(
        &mut self,
        most: usize,
        idle: Duration,
        used_before: u64,
        reason: Reason,
    ) -> usize {
        let now = self.millis();
        let idle = u64::try_from(idle.as_millis()).unwrap_or(u64::MAX);
        let (mut left, mut looks) = (0, most.saturating_mul(2));
        let mut later = Vec::new();
        while left < most && looks > 0 && !(reason == Reason::Memory && self.memory().is_relieved()) {
            let old = |at: u64| now.saturating_sub(at) >= idle && at <= used_before;
            if !self.by_use.peek().is_some_and(|Reverse((at, _))| old(*at)) {
                break;
            }
            let Some(Reverse((at, actor))) = self.by_use.pop() else { break };
            looks -= 1;
            let Some(act) = self.activations.get(&actor) else { continue };
            if act.last_used > at {
                self.by_use.push(Reverse((act.last_used, actor)));
            } else if !act.idle(self.applied) {
                // Its record is on its way, or somebody waits. For want of memory it is looked at again as if
                // used now, so that the others have their turn; else with the next sweep.
                let again = if reason == Reason::Memory { now.max(at + 1) } else { at };
                later.push(Reverse((again, actor)));
            } else {
                self.passivate(&actor, reason);
                left += 1;
            }
        }
        self.by_use.extend(later);
        if left > 0 {
            let room = 2 * self.activations.len().max(BATCH);
            if self.activations.capacity() > 2 * room {
                self.activations.shrink_to(room);
                self.by_use.shrink_to(room);
            }
            self.gauges.resident.store(self.activations.len() as u64, Ordering::Relaxed);
        }
        self.show_oldest();
        left
    }

    fn passivate(&mut self, actor: &ActorId, reason: Reason) {
        let Some(mut act) = self.activations.remove(actor) else { return };
        self.memory().release(act.cost());
        self.memory().note_left(reason);
        if act.kind.options().hooks.passivating
            && let Some(state) = &mut act.state
            && let Err(fault) = state.passivating(self.hook_env("passivating", actor))
        {
            tracing::warn!(%actor, %fault, "an actor that leaves memory failed in its hook; it leaves all the same");
        }
    }

    fn show_oldest(&self) {
        let oldest = self.by_use.peek().map_or(u64::MAX, |Reverse((at, _))| *at);
        self.shown.oldest.store(oldest, Ordering::Relaxed);
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
        let changed = act.outdated || bytes[..] != act.bytes[..];
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

impl Drop for Host {
    /// What its actors took is free for those of other hosts.
    fn drop(&mut self) {
        let memory = self.memory();
        memory.leave(self.partition, &self.shown);
        memory.release(self.activations.values().map(Activation::cost).sum());
    }
}
