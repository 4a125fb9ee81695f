//! Turns: from a call to a record.
//!
//! A plain handler runs in place; an async one takes its actor's state along and runs beside the other
//! activations. The outcome becomes a record, the record goes into the pack, and what the turn owes waits
//! until the record is applied. A turn that fails leaves no record and its state is decoded anew.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use foldhash::fast::FixedState;
use futures_util::FutureExt;
use perennial_core::id::{ActorId, GroupId, LogIndex, PartitionId, RecordSeq, RequestId, SessionId, Term};
use perennial_core::partition::dedup::KEPT_BYTES_MAX;
use perennial_core::partition::record::{Cause, Keep, Message, Record, ReminderRow, Turn};
use perennial_core::partition::{Known, OutboxItem, Partition, rows};
use perennial_core::time::Millis;
use ractor::ActorRef;
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::task::AbortOnDropHandle;

use super::activation::Activation;
use super::lines::{InLine, OutLine};
use super::memory::Shown;
use super::owed::{Owed, Pack, proposal};
use super::reads::Reads;
use super::sweep::SWEEP_PERIOD;
use super::unrecorded::Unrecorded;
use super::{
    Ended, Gauges, HostCall, HostCounters, HostMessage, HostShared, Opening, ReplyTo, TurnDone, events,
    items, reminders,
};
use crate::actor::{Answer, Args, Finished, Format, Kind, Unusable, caught};
use crate::app::Kinds;
use crate::call::{Answered, LASTING};
use crate::collections::Ids;
use crate::ctx::{Effects, TurnEnv};
use crate::error::Fault;
use crate::options::Limits;

/// How long the reply to an idempotency key is kept, in milliseconds of record time.
pub const KEYED_REPLY_KEEP_MS: u64 = 24 * 60 * 60 * 1000;
/// How long the reply to a nested call is kept; far longer than a session's call that would repeat it can
/// last. Under an idempotency key, a message or a reminder it is kept for [`KEYED_REPLY_KEEP_MS`].
pub const NESTED_REPLY_KEEP_MS: u64 = 2 * 60 * 1000;
/// How long a turn without a caller (a message, a reminder) may take.
pub const UNATTENDED_TURN_MAX: Duration = Duration::from_secs(30);
/// How long a message or reminder is tried again whose turn met a passing fault, such as an actor
/// without a leader; then it is a dead letter. Shorter than the replies to its calls are kept.
pub const UNATTENDED_RETRY_MAX: Duration = Duration::from_secs(20 * 60 * 60);
/// How long it is tried again while nothing but time-outs of its calls come back.
pub const UNATTENDED_TIMED_OUT_MAX: Duration = Duration::from_secs(10 * 60);
/// Pause before a message or reminder is tried again whose handler met a passing fault.
const UNATTENDED_RETRY_PAUSE: Duration = Duration::from_millis(250);
/// Messages to one partition that it has not taken yet; a call or a reminder that would add to them is
/// refused.
pub const OUTBOX_MESSAGES_MAX: u64 = 64 * 1024;

/// What asks for a turn.
pub(crate) enum Work {
    Call(Box<HostCall>, ReplyTo),
    Message { from: PartitionId, seq: u64, item: OutboxItem, tries: Tries },
    Reminder { name: String, due: Millis, row: ReminderRow, tries: Tries },
    Timer { name: String, id: u64, message: Message },
}

/// Since when a message or reminder has been tried in vain, in this epoch.
#[derive(Clone, Copy, Default)]
pub(crate) struct Tries {
    /// How often it was tried.
    pub(super) count: u32,
    since: Option<Instant>,
    /// Since when its calls have done nothing but time out.
    timed_out_since: Option<Instant>,
}

impl Tries {
    /// Takes note of a try that met `fault` and says whether there may be another one. A turn that
    /// took all of its own time would do so again; it ends here.
    fn another(&mut self, actor: &ActorId, fault: &Fault, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        let timed_out_since = match fault {
            Fault::TimedOut { actor: late } if *late == actor.to_string() => return false,
            Fault::TimedOut { .. } => *self.timed_out_since.get_or_insert(now),
            _ => {
                self.timed_out_since = None;
                now
            }
        };
        fault.retryable()
            && now.duration_since(since) < UNATTENDED_RETRY_MAX
            && now.duration_since(timed_out_since) < UNATTENDED_TIMED_OUT_MAX
    }
}

impl HostCall {
    /// Whether it may be repeated long after its first try: under an idempotency key, or nested in a
    /// turn that may.
    fn lasting(&self) -> bool {
        self.keyed && (self.path.is_empty() || self.request.seq & LASTING != 0)
    }
}

/// Retries of a call that waits or runs right now.
#[derive(Default)]
struct Joined {
    replies: Vec<ReplyTo>,
    /// When the last of them gives up.
    until: Option<Instant>,
}

/// What an async turn carries along.
pub(crate) enum Running {
    /// A write; the actor waits for it.
    Write(Work),
    /// A read on a copy.
    Read(ReplyTo),
}

/// The kind of an actor and the number of a handler.
pub(super) fn handler(kinds: &Kinds, actor: &ActorId, method: &str) -> Result<(Arc<dyn Kind>, usize), Fault> {
    let kind = kinds.get(actor.kind())?;
    if kind.options().pool.is_some() {
        // Calls go to workers and not to a host, so this is a message or a reminder.
        let why = "its kind is stateless, so it takes calls, but no messages and no reminders";
        return Err(Fault::BadName(format!("{actor}: {why}")));
    }
    numbered(kind, method)
}

/// A kind and the number of a handler.
pub(super) fn numbered(kind: &Arc<dyn Kind>, method: &str) -> Result<(Arc<dyn Kind>, usize), Fault> {
    match kind.methods().iter().position(|m| m.name == method) {
        Some(position) => Ok((kind.clone(), position)),
        None => Err(Fault::UnknownMethod {
            kind: kind.name().to_owned(),
            method: method.to_owned(),
            known: kind.methods().iter().map(crate::actor::Method::signature).collect(),
        }),
    }
}

/// One epoch of one partition on its leader.
///
/// Invariants: `spec` equals the applied state plus every record in `owed`; nothing leaves for a record
/// at or above `applied`.
pub(crate) struct Host {
    pub(super) partition: PartitionId,
    pub(super) group: GroupId,
    pub(super) epoch: Term,
    pub(super) shared: HostShared,
    pub(super) mailbox: ActorRef<HostMessage>,
    pub(super) gauges: Arc<Gauges>,
    /// The partition's meta state, ahead of the log.
    pub(super) spec: Partition,
    /// Records of this epoch below this one are applied.
    pub(super) applied: RecordSeq,
    pub(super) applied_index: LogIndex,
    pub(super) activations: HashMap<ActorId, Activation, FixedState>,
    /// Each of them, by when it was used, or earlier.
    pub(super) by_use: BinaryHeap<Reverse<(u64, ActorId)>>,
    /// What other hosts of the node see of this one.
    pub(super) shown: Arc<Shown>,
    pack: Pack,
    pub(super) owed: std::collections::VecDeque<Owed>,
    pub(super) reads: Reads,
    /// Retries of calls that wait or run right now.
    joined: HashMap<RequestId, Joined, FixedState>,
    /// Replies kept as rows that are not applied yet.
    keyed: HashMap<RequestId, Bytes, FixedState>,
    unrecorded: Unrecorded,
    pub(super) lines_out: BTreeMap<PartitionId, OutLine>,
    pub(super) lines_in: BTreeMap<PartitionId, InLine>,
    /// Reminders whose turn has begun, until its record is applied.
    pub(super) firing: HashSet<(Millis, ActorId, String), FixedState>,
    pub(super) reminders_planned: Option<Millis>,
    /// How many of those that fire have a record that is not applied yet.
    pub(super) fired: usize,
    /// What is recorded of reminders and not yet in their rows.
    pub(super) reminders_ahead: reminders::Ahead,
    /// Numbers of timers: as many were started so far.
    pub(super) timers_started: u64,
    /// Waits for the reminder that is planned.
    pub(super) reminders_task: Option<AbortOnDropHandle<()>>,
    pub(super) followers: Vec<events::Follower>,
    /// What is known of how many events actors have; of those in memory, and of others that published.
    pub(super) events_kept: HashMap<ActorId, events::Kept, FixedState>,
    /// The actor whose oldest event was looked at last, while there are more.
    pub(super) events_swept: Option<ActorId>,
    /// When idle actors were last made to leave before their time.
    pub(super) made_room: Option<u64>,
    /// It forgets more before the next sweep.
    pub(super) forgets: bool,
    /// The record that last forgot kept replies.
    pub(super) forgetting: Option<RecordSeq>,
    /// Schemas known to be in the log, by fingerprint.
    pub(super) schemas: HashSet<u64, FixedState>,
    pub(super) collection_ids: Ids,
    /// The record that last forgot dropped items.
    pub(super) forgetting_items: Option<RecordSeq>,
    /// The note of dropped items to go on with.
    pub(super) forget_from: Option<Vec<u8>>,
    /// Actors met whose state cannot be read here: parked, or waiting for a newer build.
    pub(super) parked: HashMap<ActorId, bool, FixedState>,
    /// When the partition was last to be handed over to a newer build.
    pub(super) passed_on: Option<Instant>,
    /// Async turns and pauses. They end with the host: a turn that can no longer commit must neither
    /// make further calls nor keep its caller waiting.
    tasks: tokio::task::JoinSet<()>,
}

impl Host {
    pub(super) fn new(opening: Opening, mailbox: ActorRef<HostMessage>, gauges: Arc<Gauges>) -> Self {
        let mut spec = opening.meta;
        spec.open(opening.epoch);
        let shown = opening.shared.counters.memory.enter(opening.partition, mailbox.clone());
        let host = Self {
            partition: opening.partition,
            group: GroupId::of(opening.partition),
            epoch: opening.epoch,
            shared: opening.shared,
            mailbox,
            gauges,
            spec,
            applied: RecordSeq(0),
            applied_index: opening.applied,
            activations: HashMap::default(),
            by_use: BinaryHeap::new(),
            shown,
            pack: Pack::default(),
            owed: std::collections::VecDeque::new(),
            reads: Reads::default(),
            joined: HashMap::default(),
            keyed: HashMap::default(),
            unrecorded: Unrecorded::default(),
            lines_out: BTreeMap::new(),
            lines_in: BTreeMap::new(),
            firing: HashSet::default(),
            reminders_planned: None,
            reminders_task: None,
            fired: 0,
            reminders_ahead: HashMap::default(),
            timers_started: 0,
            followers: Vec::new(),
            events_kept: HashMap::default(),
            events_swept: None,
            made_room: None,
            forgets: false,
            forgetting: None,
            schemas: HashSet::default(),
            collection_ids: Ids::new(opening.epoch),
            forgetting_items: None,
            forget_from: None,
            parked: HashMap::default(),
            passed_on: None,
            tasks: tokio::task::JoinSet::new(),
        };
        host.count_dead();
        host
    }

    /// Takes up what the epoch before left: messages on their way and reminders.
    fn begin(&mut self) {
        self.pump_lines();
        self.fire_reminders();
        self.tell_after(SWEEP_PERIOD, HostMessage::Sweep);
    }

    pub(super) fn on(&mut self, message: HostMessage) {
        match message {
            HostMessage::Begin => self.begin(),
            HostMessage::Call(call, reply) => self.on_call(call, reply),
            HostMessage::Deliver(delivery, ack) => self.on_deliver(delivery, ack),
            HostMessage::TurnDone(done) => self.on_turn_done(*done),
            HostMessage::Applied { index, next_seq } => self.on_applied(index, next_seq),
            HostMessage::ReadConfirmed { ctx } => self.on_read_confirmed(ctx),
            HostMessage::LineAcked { to, upto } => self.on_line_acked(to, upto),
            HostMessage::LineRetry { to } => self.on_line_retry(to),
            HostMessage::Subscribe { actor, from, sink } => self.on_subscribe(actor, from, sink),
            HostMessage::FollowerReady => self.hand_events_of(&[]),
            HostMessage::RemindersDue { planned } => self.on_reminders_due(planned),
            HostMessage::Again { actor, work } => self.begin_work(actor, work),
            HostMessage::TimerDue { actor, name, id } => self.on_timer(actor, name, id),
            HostMessage::Reminders { query, told } => self.on_reminders(&query, told),
            HostMessage::CancelReminder { actor, name, told } => self.on_cancel_reminder(actor, name, told),
            HostMessage::Sweep => self.sweep(),
            HostMessage::Forget => self.forget(),
            HostMessage::Relieve => {
                if self.on_relieve() == 0 {
                    return;
                }
            }
        }
        self.relieve();
        self.flush();
    }

    /// Record time: never behind what the log says.
    pub(super) fn now(&self) -> Millis {
        self.shared.clock.now().max(self.spec.time())
    }

    pub(super) fn answered(&self, answer: Answer) -> Answered {
        let node = Some(self.shared.node.clone());
        Answered { answer, node, partition: Some(self.partition), retries: 0, age_ms: None }
    }

    pub(super) fn refuse(&self, reply: ReplyTo, fault: Fault) {
        reply.end(Ended::Answered(self.answered(Answer::Fault(fault))));
    }

    pub(super) fn storage_fault(&self, what: &str, actor: &ActorId, why: &dyn std::fmt::Display) -> Fault {
        Fault::Unreadable { what: what.to_owned(), at: actor.to_string(), why: why.to_string() }
    }

    fn on_call(&mut self, call: HostCall, reply: ReplyTo) {
        if call.deadline <= self.shared.clock.instant() {
            let actor = call.target.to_string();
            return self.refuse(reply, Fault::TimedOut { actor });
        }
        if call.target.kind() == crate::dead::KIND {
            return self.on_dead_call(call, reply);
        }
        let (kind, method) = match handler(&self.shared.kinds, &call.target, &call.method) {
            Ok(found) => found,
            Err(fault) => {
                let fault = self.unknown_here(&call.target, fault);
                return self.refuse_or_wait(call, reply, fault);
            }
        };
        let described = &kind.methods()[method];
        if !described.write {
            return self.read(kind, method, call, reply);
        }
        if call.read_only {
            let fault = Fault::NotARead { kind: kind.name().to_owned(), method: described.name.to_owned() };
            return self.refuse(reply, fault);
        }
        if let Some((call, reply)) = self.unanswered(call, reply) {
            self.begin_work(call.target.clone(), Work::Call(Box::new(call), reply));
        }
    }

    /// A write that has to be carried out; nothing if it has its answer already, gets that of an attempt
    /// before it, or is refused.
    pub(super) fn unanswered(&mut self, call: HostCall, reply: ReplyTo) -> Option<(HostCall, ReplyTo)> {
        match self.known(&call) {
            Ok(Known::Fresh) => {
                if let Some(answer) = self.unrecorded.get(call.request) {
                    HostCounters::add(&self.shared.counters.repeated, 1);
                    let answered = self.answered(answer.clone());
                    self.answer_as_read(reply, answered);
                    return None;
                }
                // It waits for a turn that has room already.
                if let Some(joined) = self.joined.get_mut(&call.request) {
                    joined.replies.push(reply);
                    joined.until = joined.until.max(Some(call.deadline));
                    return None;
                }
                if !call.keyed && !self.spec.dedup().has_room(call.request.session, call.ack_below) {
                    HostCounters::add(&self.shared.counters.overloaded, 1);
                    let fault = Fault::Overloaded {
                        what: "the memory for replies to retries".into(),
                        at: format!("partition {}", self.partition),
                        limit: KEPT_BYTES_MAX as u64,
                    };
                    self.refuse(reply, fault);
                    return None;
                }
                return Some((call, reply));
            }
            Ok(Known::Answered(bytes)) => {
                HostCounters::add(&self.shared.counters.repeated, 1);
                let answer = Answer::Ok(bytes);
                let answered = self.answered(answer);
                self.answer_as_read(reply, answered);
            }
            Ok(Known::Forgotten) => {
                let actor = call.target.to_string();
                self.refuse(reply, Fault::Forgotten { actor });
            }
            Err(fault) => self.refuse(reply, fault),
        }
        None
    }

    fn known(&self, call: &HostCall) -> Result<Known, Fault> {
        if !call.keyed {
            return Ok(self.spec.look_up(call.request));
        }
        if let Some(reply) = self.keyed.get(&call.request) {
            return Ok(Known::Answered(reply.clone()));
        }
        match self.shared.rows.get(self.group, &rows::kept_reply(call.request)) {
            Ok(Some(reply)) => Ok(Known::Answered(reply.into())),
            Ok(None) => Ok(Known::Fresh),
            Err(error) => Err(rows_failed("a kept reply", &call.target, &error)),
        }
    }

    pub(super) fn env(
        &self,
        me: ActorId,
        path: Vec<ActorId>,
        request: RequestId,
        lasting: bool,
        deadline: Instant,
    ) -> TurnEnv {
        let (now, reminders) = (self.now(), self.reminders_of(&me));
        let caller = self.shared.caller.clone();
        TurnEnv { me, caller, path, request, lasting, reads: false, deadline, now, due: None, reminders }
    }

    fn read(&mut self, kind: Arc<dyn Kind>, method: usize, call: HostCall, reply: ReplyTo) {
        HostCounters::add(&self.shared.counters.reads, 1);
        if let Err(fault) = self.activate(&call.target, &kind, true) {
            return self.refuse_or_wait(call, reply, fault);
        }
        let asynchronous = kind.methods()[method].asynchronous;
        let place = match asynchronous.then(|| self.place(&*kind)).transpose() {
            Ok(place) => place.flatten(),
            Err(fault) => return self.refuse(reply, fault),
        };
        let lasting = call.lasting();
        let mut env = self.env(call.target.clone(), call.path, call.request, lasting, call.deadline);
        env.reads = true;
        let Some(act) = self.activations.get_mut(&call.target) else { return };
        if let Some(state) = act.state.as_mut().filter(|_| !asynchronous) {
            let finished = state.run(method, call.args, env);
            let answered = self.answered(finished.answer);
            return self.answer_as_read(reply, answered);
        }
        // While an async write runs, and for async reads: a copy as of the last record.
        let copy = act.copy().map_err(|why| self.storage_fault("state", &call.target, &why));
        let copy = copy.and_then(|mut copy| {
            self.wake(&call.target, &*kind, &mut *copy)?;
            Ok(copy)
        });
        let mut copy = match copy {
            Ok(copy) => copy,
            Err(fault) => return self.refuse(reply, fault),
        };
        if asynchronous {
            let turn = copy.run_async(method, call.args, env);
            return self.spawn(call.target, Running::Read(reply), turn, call.deadline, place);
        }
        let finished = copy.run(method, call.args, env);
        let answered = self.answered(finished.answer);
        self.answer_as_read(reply, answered);
    }

    /// Runs a turn now, or lines it up behind the actor's async write.
    pub(super) fn begin_work(&mut self, actor: ActorId, work: Work) {
        if let Some(act) = self.activations.get_mut(&actor)
            && act.state.is_none()
        {
            let limit = act.kind.options().limits.mailbox;
            if matches!(work, Work::Call(..)) && act.waiting.len() >= limit as usize {
                self.drop_late(&actor);
            }
            let Some(act) = self.activations.get_mut(&actor) else { return };
            if act.waiting.len() >= limit as usize
                && let Work::Call(_, reply) = work
            {
                HostCounters::add(&self.shared.counters.overloaded, 1);
                let (what, limit) = ("the mailbox".to_owned(), limit.into());
                return self.refuse(reply, Fault::Overloaded { what, at: actor.to_string(), limit });
            }
            if let Work::Call(call, _) = &work {
                self.joined.insert(call.request, Joined::default());
            }
            act.waiting.push_back(work);
            return;
        }
        self.run(actor, work);
    }

    /// When the last of those gives up who wait for a call.
    fn deadline_of(&self, call: &HostCall) -> Instant {
        let joined = self.joined.get(&call.request).and_then(|joined| joined.until);
        joined.unwrap_or(call.deadline).max(call.deadline)
    }

    /// Whether nobody waits for a call any more. One that came under an id of its own and was never begun
    /// leaves no trace.
    fn is_late(&self, work: &Work) -> bool {
        match work {
            Work::Call(call, _) => self.deadline_of(call) <= self.shared.clock.instant(),
            Work::Message { .. } | Work::Reminder { .. } | Work::Timer { .. } => false,
        }
    }

    /// Ends a call that was not begun within its deadline.
    fn end_late(&mut self, work: Work) {
        let Work::Call(call, reply) = work else { return };
        let fault = Fault::TimedOut { actor: call.target.to_string() };
        for joined in self.joined.remove(&call.request).unwrap_or_default().replies {
            self.refuse(joined, fault.clone());
        }
        self.refuse(reply, fault);
    }

    /// Takes calls out of a full mailbox that nobody waits for any more.
    fn drop_late(&mut self, actor: &ActorId) {
        let Some(act) = self.activations.get_mut(actor) else { return };
        let waiting = std::mem::take(&mut act.waiting);
        let (late, waiting): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|work| self.is_late(work));
        if let Some(act) = self.activations.get_mut(actor) {
            act.waiting = waiting.into();
        }
        late.into_iter().for_each(|work| self.end_late(work));
    }

    /// A place for an async turn, if its kind limits them.
    fn place(&self, kind: &dyn Kind) -> Result<Option<OwnedSemaphorePermit>, Fault> {
        let place = self.shared.counters.places.take(kind, &self.shared.node);
        place.inspect_err(|_| HostCounters::add(&self.shared.counters.overloaded, 1))
    }

    fn run(&mut self, actor: ActorId, work: Work) {
        if self.is_late(&work) {
            return self.end_late(work);
        }
        // While a reminder waited, a turn may have replaced or cancelled it: its row is gone.
        if let Work::Reminder { name, due, .. } = &work
            && !self.is_due(*due, &actor, name)
        {
            self.firing.remove(&(*due, actor, name.clone()));
            return;
        }
        if let Work::Timer { name, id, .. } = &work
            && !self.timer_runs(&actor, name, *id)
        {
            return;
        }
        // One that calls somebody else only hands its message to the outbox.
        if let Work::Reminder { row: ReminderRow { message, .. }, .. } | Work::Timer { message, .. } = &work
            && message.target != actor
        {
            let mut effects = Effects { sends: vec![message.clone()], ..Effects::default() };
            let settled = match self.outbox_full(&effects) {
                Some(full) => Err(full),
                None => self.settle_reminders(&actor, &work, &mut effects.reminders),
            };
            if let Err(fault) = settled {
                return self.undo(actor, work, Answer::Fault(fault));
            }
            return self.record(actor, work, Answer::Ok(Bytes::new()), None, effects);
        }
        let (method, args, path, request, deadline) = match &work {
            Work::Call(call, _) => {
                let deadline = self.deadline_of(call);
                (call.method.as_str(), call.args.clone(), call.path.clone(), call.request, deadline)
            }
            Work::Message { from, seq, item, .. } => {
                let request = self.unattended("message", &actor, u64::from(from.0), *seq, "");
                (
                    item.message.method.as_str(),
                    message_args(&item.message),
                    Vec::new(),
                    request,
                    self.patience(),
                )
            }
            Work::Reminder { name, due, row: ReminderRow { message, .. }, .. } => {
                let request = self.unattended("reminder", &actor, due.0, 0, name);
                (message.method.as_str(), message_args(message), Vec::new(), request, self.patience())
            }
            Work::Timer { name, id, message } => {
                let request = self.unattended("timer", &actor, *id, self.epoch.0, name);
                (message.method.as_str(), message_args(message), Vec::new(), request, self.patience())
            }
        };
        let ready = handler(&self.shared.kinds, &actor, method).and_then(|(kind, method)| {
            let place = if kind.methods()[method].asynchronous { self.place(&*kind)? } else { None };
            // A timer has an activation, and its turn is no use of it that would keep it in memory.
            if !matches!(work, Work::Timer { .. }) {
                self.activate(&actor, &kind, matches!(work, Work::Call(..)))?;
            }
            Ok((kind, method, place))
        });
        let (kind, method, place) = match ready {
            Ok(ready) => ready,
            Err(fault) => return self.end_or_wait(actor, work, fault),
        };
        let lasting = match &work {
            Work::Call(call, _) => call.lasting(),
            Work::Message { .. } | Work::Reminder { .. } => true,
            Work::Timer { .. } => false,
        };
        let mut env = self.env(actor.clone(), path, request, lasting, deadline);
        if let Work::Reminder { due, .. } = &work {
            env.due = Some(*due);
        }
        let Some(act) = self.activations.get_mut(&actor) else { return };
        let Some(mut state) = act.state.take() else {
            unreachable!("an actor whose async write runs takes no other turn");
        };
        if kind.methods()[method].asynchronous {
            if let Work::Call(call, _) = &work {
                self.joined.entry(call.request).or_default();
            }
            let turn = state.run_async(method, args, env);
            return self.spawn(actor, Running::Write(work), turn, deadline, place);
        }
        let finished = state.run(method, args, env);
        act.state = Some(state);
        self.finish(actor, work, finished);
    }

    /// The id of a turn without a caller; its nested calls derive theirs from it.
    pub(super) fn unattended(&self, what: &str, actor: &ActorId, a: u64, b: u64, name: &str) -> RequestId {
        let mut bytes = Vec::with_capacity(64 + actor.as_str().len() + name.len());
        bytes.extend_from_slice(&self.partition.0.to_be_bytes());
        bytes.extend_from_slice(&a.to_be_bytes());
        bytes.extend_from_slice(&b.to_be_bytes());
        for part in [what, actor.as_str(), name] {
            bytes.extend_from_slice(&(part.len() as u32).to_be_bytes());
            bytes.extend_from_slice(part.as_bytes());
        }
        RequestId { session: SessionId(perennial_core::hash::wide_hash(&bytes)), seq: 0 }
    }

    pub(super) fn patience(&self) -> Instant {
        self.shared.clock.instant() + UNATTENDED_TURN_MAX
    }

    /// Polls an async turn once in place; if it is not done by then, it goes on as a task of its own.
    fn spawn(
        &mut self,
        actor: ActorId,
        work: Running,
        turn: crate::actor::BoxFuture<'static, (Option<Box<dyn crate::actor::State>>, Finished)>,
        deadline: Instant,
        place: Option<OwnedSemaphorePermit>,
    ) {
        let name = actor.to_string();
        let mut turn = Box::pin(async move {
            let (mut turn, _place) = (turn, place);
            let ended = tokio::time::timeout_at(deadline.into(), &mut turn).await;
            // A handler that is cut off may panic as it is dropped.
            let _ = caught("when dropped", || {
                drop(turn);
                Ok(())
            });
            ended.unwrap_or_else(|_| (None, Finished::fault(Fault::TimedOut { actor: name })))
        });
        if let Some((state, finished)) = (&mut turn).now_or_never() {
            return self.end_turn(TurnDone { actor, work, state, finished });
        }
        let mailbox = self.mailbox.clone();
        self.spawn_task(async move {
            let (state, finished) = turn.await;
            let _ = mailbox.cast(HostMessage::TurnDone(Box::new(TurnDone { actor, work, state, finished })));
        });
    }

    fn on_turn_done(&mut self, done: TurnDone) {
        let actor = done.actor.clone();
        self.end_turn(done);
        // What waited meanwhile goes on until the next async write.
        while let Some(act) = self.activations.get_mut(&actor).filter(|act| act.state.is_some()) {
            let Some(work) = act.waiting.pop_front() else { break };
            self.run(actor.clone(), work);
        }
    }

    /// Takes in how an async turn ended. Starts nothing: a turn that is done at once ends in here too,
    /// and the one who began it goes on with what waits.
    fn end_turn(&mut self, done: TurnDone) {
        match done.work {
            Running::Read(reply) => {
                let answered = self.answered(done.finished.answer);
                self.answer_as_read(reply, answered);
            }
            Running::Write(work) => {
                if let Some(act) = self.activations.get_mut(&done.actor) {
                    act.state = done.state;
                }
                self.finish(done.actor, work, done.finished);
            }
        }
    }

    /// Turns a finished turn into a record, or undoes it.
    pub(super) fn finish(&mut self, actor: ActorId, work: Work, finished: Finished) {
        let Finished { answer, mut effects } = finished;
        if !matches!(answer, Answer::Ok(_)) {
            return self.undo(actor, work, answer);
        }
        let (fingerprint, bytes, changed) = match self.encode_state(&actor) {
            Ok(encoded) => encoded,
            Err(fault) => return self.undo(actor, work, Answer::Fault(fault)),
        };
        let limits = self.activations.get(&actor).map_or(Limits::DEFAULT, |act| act.kind.options().limits);
        if bytes.len() > limits.state_bytes as usize {
            let fault = too_large("the state", &actor, bytes.len(), limits.state_bytes as usize);
            return self.undo(actor, work, Answer::Fault(fault));
        }
        let draft = self.take_items(&actor, &mut effects);
        if let Err(full) = self.check_timers(&actor, &effects.timers) {
            return self.undo(actor, work, Answer::Fault(full));
        }
        if !changed && effects.is_empty() && matches!(work, Work::Call(..) | Work::Timer { .. }) {
            self.change_timers(&actor, effects.timers);
            return self.end_unrecorded(&actor, work, answer);
        }
        let size = effects_size(&effects) + bytes.len() + answer_size(&answer);
        if size > limits.record_bytes as usize {
            let fault = too_large("the record of a turn", &actor, size, limits.record_bytes as usize);
            return self.undo(actor, work, Answer::Fault(fault));
        }
        // Messages are exempt: two partitions whose messages answer each other would wait for ever.
        if !matches!(work, Work::Message { .. })
            && let Some(full) = self.outbox_full(&effects)
        {
            return self.undo(actor, work, Answer::Fault(full));
        }
        // Cancelled from outside while its turn ran.
        if let Work::Reminder { name, due, .. } = &work
            && !self.is_due(*due, &actor, name)
        {
            return self.undo(actor, work, answer);
        }
        if let Err(fault) = self.settle_reminders(&actor, &work, &mut effects.reminders) {
            return self.undo(actor, work, Answer::Fault(fault));
        }
        let new_schemas = draft.iter().flat_map(|draft| draft.schemas.keys());
        let news = changed.then_some(&fingerprint).into_iter().chain(new_schemas);
        if !self.shared.builds.announced() && news.into_iter().any(|schema| !self.schemas.contains(schema)) {
            let fault = Fault::Unavailable {
                what: actor.to_string(),
                why: "the cluster does not know yet which build this node runs; try again".into(),
            };
            return self.undo(actor, work, Answer::Fault(fault));
        }
        if changed
            && self.schemas.insert(fingerprint)
            && let Some(schema) = self.state_schema(&actor)
        {
            self.append_schema(fingerprint, schema);
        }
        if let Some(draft) = draft {
            self.record_items(&actor, draft);
        }
        let state = changed.then(|| Bytes::from(bytes.into_boxed_slice()));
        self.record(actor, work, answer, state, effects);
    }

    /// The fault of a turn that sends to a partition which has too many messages to take already.
    pub(super) fn outbox_full(&self, effects: &Effects) -> Option<Fault> {
        let mut targets = effects.sends.iter().map(|message| self.spec.partition_of(&message.target));
        let full = |to: &PartitionId| {
            let line = self.spec.line(*to);
            line.last - line.acked >= OUTBOX_MESSAGES_MAX
        };
        let to = targets.find(full)?;
        HostCounters::add(&self.shared.counters.overloaded, 1);
        Some(Fault::Overloaded {
            what: format!("the line of messages to partition {to}"),
            at: format!("partition {}", self.partition),
            limit: OUTBOX_MESSAGES_MAX,
        })
    }

    /// The turn failed: its state is decoded anew. A message or reminder that its handler refuses is a
    /// dead letter; one that met a passing fault is tried again, for a bounded time.
    fn undo(&mut self, actor: ActorId, mut work: Work, mut answer: Answer) {
        HostCounters::add(&self.shared.counters.undone, 1);
        if !matches!(work, Work::Call(..)) {
            answer = self.passing(&actor, answer);
        }
        if let Some(act) = self.activations.get(&actor) {
            if let Some(items) = &act.items {
                drop(items.take_draft());
            }
            let reloaded = act.reload().map_err(|why| self.storage_fault("state", &actor, &why));
            let reloaded = reloaded.and_then(|mut state| {
                self.wake(&actor, &*act.kind, &mut *state)?;
                Ok(state)
            });
            let state = reloaded.unwrap_or_else(|fault| {
                // Calls of this actor fail and say why; each of them tries to read it anew.
                tracing::error!(%actor, %fault, "a state cannot be read back");
                Box::new(Unusable(fault))
            });
            if let Some(act) = self.activations.get_mut(&actor) {
                act.state = Some(state);
            }
        }
        if let Work::Reminder { name, due, .. } = &work
            && !self.is_due(*due, &actor, name)
        {
            self.firing.remove(&(*due, actor, name.clone()));
            return;
        }
        let now = self.shared.clock.instant();
        let tries = match &mut work {
            Work::Call(..) => return self.end_unrecorded(&actor, work, answer),
            Work::Timer { name, .. } => {
                tracing::warn!(%actor, name, ?answer, "the turn of a timer failed");
                return self.end_unrecorded(&actor, work, answer);
            }
            Work::Message { tries, .. } | Work::Reminder { tries, .. } => tries,
        };
        tries.count = tries.count.saturating_add(1);
        match &answer {
            // Nothing is wrong with the message: it waits at the head of its line.
            Answer::Fault(fault) if tries.another(&actor, fault, now) => {
                tracing::debug!(%actor, %fault, "a message or reminder is tried again");
                self.tell_after(UNATTENDED_RETRY_PAUSE, HostMessage::Again { actor, work })
            }
            _ => self.bury(&actor, work, &answer),
        }
    }

    /// Answers a call that left no record, or ends the turn of a timer that did not.
    fn end_unrecorded(&mut self, actor: &ActorId, work: Work, answer: Answer) {
        if let Work::Timer { name, id, .. } = work {
            HostCounters::add(&self.shared.counters.timers, 1);
            return self.end_timer(actor, name, id);
        }
        if let Work::Call(call, reply) = work {
            if !call.lasting() {
                self.unrecorded.keep(call.request, &answer, self.now());
            }
            let answered = self.answered(answer);
            for joined in self.joined.remove(&call.request).unwrap_or_default().replies {
                self.answer_as_read(joined, answered.clone());
            }
            self.answer_as_read(reply, answered);
        }
    }

    /// Makes the turn's record and notes what it owes.
    fn record(&mut self, actor: ActorId, work: Work, answer: Answer, state: Option<Bytes>, effects: Effects) {
        HostCounters::add(&self.shared.counters.turns, 1);
        let mut owed = Owed::nothing(RecordSeq(0));
        let size = 96
            + actor.as_str().len()
            + state.as_ref().map_or(0, Bytes::len)
            + effects_size(&effects)
            + answer_size(&answer);
        let timer = match &work {
            Work::Timer { name, id, .. } => Some((name.clone(), *id)),
            _ => None,
        };
        let cause = self.cause_of(&actor, work, answer, &mut owed);
        self.note_reminders(&actor, reminders::fired_by(&cause), &effects.reminders, &mut owed);
        owed.sends = !effects.sends.is_empty();
        let published = effects.events.len() as u32;
        owed.published = (published > 0).then(|| actor.clone());
        owed.items = (!effects.items.is_empty()).then(|| actor.clone());
        HostCounters::add(&self.shared.counters.events, u64::from(published));
        let next = RecordSeq(self.spec.next_record().0 + 1);
        if let Some(state) = &state {
            self.replace_bytes(&actor, state);
        }
        if let Some(act) = self.activations.get_mut(&actor) {
            act.settled_at = next;
        }
        let turn = Turn {
            actor: actor.clone(),
            cause,
            state,
            sends: effects.sends,
            reminders: effects.reminders,
            events: effects.events,
            items: effects.items,
        };
        let from = owed.message.map(|(from, _)| from);
        owed.seq = self.append(Record::Turn(Box::new(turn)), size);
        self.owed.push_back(owed);
        if published > 0 {
            self.events_published(&actor, published);
        }
        self.change_timers(&actor, effects.timers);
        if let Some((name, id)) = timer {
            self.end_timer(&actor, name, id);
        }
        if let Some(from) = from {
            self.message_recorded(from);
            self.pump_line_in(from);
        }
    }

    pub(super) fn cause_of(&mut self, actor: &ActorId, work: Work, answer: Answer, owed: &mut Owed) -> Cause {
        match work {
            Work::Call(call, reply) => {
                let bytes = match &answer {
                    Answer::Ok(bytes) => bytes.clone(),
                    Answer::App(_) | Answer::Fault(_) => unreachable!("an undone call leaves no record"),
                };
                owed.joined = self.joined.remove(&call.request).unwrap_or_default().replies;
                owed.answer = Some((reply, self.answered(answer)));
                let keep = if call.keyed {
                    self.keyed.insert(call.request, bytes.clone());
                    owed.keyed = Some(call.request);
                    let ms = if call.lasting() { KEYED_REPLY_KEEP_MS } else { NESTED_REPLY_KEEP_MS };
                    Keep::Until(self.now().plus(ms))
                } else {
                    Keep::UntilAcknowledged
                };
                Cause::Call { request: call.request, ack_below: call.ack_below, keep, reply: bytes }
            }
            Work::Message { from, seq, .. } => {
                HostCounters::add(&self.shared.counters.messages, 1);
                owed.message = Some((from, seq));
                Cause::Message { from, seq }
            }
            Work::Reminder { name, due, .. } => {
                HostCounters::add(&self.shared.counters.reminders, 1);
                self.fired += 1;
                owed.reminder = Some((due, actor.clone(), name.clone()));
                Cause::Reminder { name, due }
            }
            Work::Timer { .. } => {
                HostCounters::add(&self.shared.counters.timers, 1);
                Cause::Timer
            }
        }
    }

    /// Appends a record to the pack and the state ahead of the log; gives its number.
    pub(super) fn append(&mut self, record: Record, bytes: usize) -> RecordSeq {
        let seq = self.spec.next_record();
        self.spec.note(&record, self.now());
        self.pack.push(record, bytes);
        seq
    }

    /// Proposes what is packed, as far as it may go.
    pub(super) fn flush(&mut self) {
        let (time, next) = (self.now(), self.spec.next_record());
        while let Some((batch, count)) = self.pack.next_batch(self.epoch, next, time, &self.shared.counters) {
            self.spec.advance(time);
            self.shared.log.propose(proposal(self.group, &batch, count));
        }
    }

    fn on_applied(&mut self, index: LogIndex, next_seq: RecordSeq) {
        self.applied = self.applied.max(next_seq);
        self.applied_index = self.applied_index.max(index);
        self.pack.arrived(self.applied);
        let (mut sends, mut due, mut published) = (false, None::<Millis>, Vec::new());
        while let Some(mut owed) = self.owed.pop_front_if(|owed| owed.seq < self.applied) {
            owed.answer();
            if let Some(request) = owed.keyed {
                self.keyed.remove(&request);
            }
            if let Some((from, seq)) = owed.message {
                self.message_applied(from, seq);
            }
            if let Some(fired) = owed.reminder {
                self.fired -= 1;
                self.firing.remove(&fired);
            }
            if let Some(actor) = owed.items {
                self.items_applied(&actor);
            }
            if let Some(actor) = &owed.reminders {
                self.reminders_applied(actor, owed.seq);
            }
            if let Some(told) = owed.cancelled {
                let _ = told.send(Ok(true));
            }
            sends |= owed.sends;
            due = due.into_iter().chain(owed.due).min();
            published.extend(owed.published);
        }
        self.release_reads();
        if sends {
            self.pump_lines();
        }
        if let Some(due) = due {
            self.plan_reminders(due);
        }
        if !published.is_empty() {
            self.hand_events_of(&published);
        }
    }

    /// Runs a task that ends with the host at the latest.
    pub(super) fn spawn_task(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        while self.tasks.try_join_next().is_some() {}
        self.tasks.spawn(task);
    }

    /// Tells the host something after a pause.
    pub(super) fn tell_after(&mut self, pause: Duration, message: HostMessage) {
        let mailbox = self.mailbox.clone();
        self.spawn_task(async move {
            tokio::time::sleep(pause).await;
            let _ = mailbox.cast(message);
        });
    }
}

impl Finished {
    pub(crate) fn fault(fault: Fault) -> Self {
        Self { answer: Answer::Fault(fault), effects: Effects::default() }
    }
}

/// The rows cannot be read, as the disk has failed or the node ends. That is no fault of the actor: another node
/// leads soon.
pub(crate) fn rows_failed(what: &str, at: &dyn std::fmt::Display, error: &dyn std::fmt::Display) -> Fault {
    let why = format!("{what} cannot be read on this node: {error}; nothing was applied, try again");
    Fault::Unavailable { what: at.to_string(), why }
}

fn message_args(message: &Message) -> Args {
    Args { format: Format::Message, bytes: message.args.clone() }
}

fn too_large(what: &str, actor: &ActorId, bytes: usize, limit: usize) -> Fault {
    Fault::TooLarge { what: what.to_owned(), at: actor.to_string(), bytes: bytes as u64, limit: limit as u64 }
}

fn effects_size(effects: &Effects) -> usize {
    let message = |m: &Message| m.args.len() + m.method.len() + m.target.as_str().len() + 16;
    effects.sends.iter().map(message).sum::<usize>()
        + effects.events.iter().map(|e| e.len() + 4).sum::<usize>()
        + effects.items.iter().map(items::change_size).sum::<usize>()
        + effects.reminders.iter().map(reminders::size_of).sum::<usize>()
}

fn answer_size(answer: &Answer) -> usize {
    match answer {
        Answer::Ok(bytes) | Answer::App(bytes) => bytes.len(),
        Answer::Fault(_) => 0,
    }
}
