//! Partition hosts: where turns run.
//!
//! Owns one host for each epoch of a partition that this node leads: its activations, the state that
//! runs ahead of the log, and every answer that waits for a commit. A host lives exactly as long as its
//! epoch; when the epoch ends, everything in it that is not committed is dropped and answered with
//! "outcome unknown". Never writes rows and never decides who leads.
//! In: calls, messages, reminders and what the log says. Out: proposals, answers, messages, events.
//! The ordering of outputs behind the commit is Durable Objects' output gate.

mod activation;
pub(crate) mod builds;
mod dead;
pub(crate) mod events;
mod items;
mod lines;
pub(crate) mod memory;
pub(crate) mod newcomers;
mod owed;
mod places;
mod reads;
pub(crate) mod reminders;
pub(crate) mod stale;
pub(crate) mod sweep;
#[cfg(test)]
mod tests;
pub(crate) mod timers;
pub(crate) mod turns;
mod unrecorded;
pub(crate) mod workers;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use dashmap::DashMap;
use perennial_core::id::{ActorId, GroupId, LogIndex, NodeId, PartitionId, RecordSeq, RequestId, Term};
use perennial_core::partition::OutboxItem;
use perennial_core::replication::Proposal;
use perennial_core::time::Millis;
use ractor::{ActorProcessingErr, ActorRef};
use tokio::sync::{mpsc, oneshot};

pub(crate) use self::activation::stored_schema;
pub(crate) use self::builds::Builds;
pub(crate) use self::turns::{Host, rows_failed};
use crate::actor::{Args, Finished, State};
use crate::app::Kinds;
use crate::call::{Answered, Caller, EventItem, EventsFrom};
use crate::clock::Clock;
use crate::ctx::{RemindersView, TurnEnv};
use crate::error::Fault;
use crate::link::lock;
use crate::replica::RowStore;
use crate::status::{ReminderPage, ReminderQuery};

/// Most calls a partition takes at a time, queued, running or waiting for their commit.
pub const PARTITION_CALLS_MAX: u64 = 16 * 1024;
/// Most calls that wait for one actor.
pub const MAILBOX_CALLS_MAX: usize = 4096;
/// Largest encoded state of an actor, in bytes.
pub const STATE_BYTES_MAX: usize = 384 * 1024;

/// The log as a host uses it.
pub(crate) trait Log: Send + Sync {
    /// Appends records; the outcome comes as an event.
    fn propose(&self, proposal: Proposal);
    /// Asks for a confirmation of leadership that begins now; comes back as an event with `ctx`.
    fn read_index(&self, group: GroupId, epoch: Term, ctx: u64);
}

/// Delivers messages to the host of another partition.
pub(crate) trait Courier: Send + Sync {
    /// Hands over messages numbered from `first_seq`; answers up to where they are applied there.
    fn deliver(&self, delivery: Delivery) -> crate::actor::BoxFuture<'static, Result<u64, Fault>>;
}

/// Messages of one line, in order.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub(crate) struct Delivery {
    pub(crate) from: PartitionId,
    pub(crate) to: PartitionId,
    pub(crate) first_seq: u64,
    pub(crate) items: Vec<OutboxItem>,
}

/// A call as it arrives at a host.
#[derive(Debug)]
pub(crate) struct HostCall {
    pub(crate) target: ActorId,
    pub(crate) method: String,
    pub(crate) args: Args,
    pub(crate) request: RequestId,
    pub(crate) ack_below: u64,
    pub(crate) keyed: bool,
    pub(crate) read_only: bool,
    pub(crate) path: Vec<ActorId>,
    pub(crate) deadline: Instant,
}

impl HostCall {
    /// What its turn is given where no host runs it.
    fn env(&self, caller: Arc<dyn Caller>, now: Millis, reminders: RemindersView) -> TurnEnv {
        TurnEnv {
            me: self.target.clone(),
            caller,
            path: self.path.clone(),
            request: self.request,
            lasting: false,
            reads: self.read_only,
            deadline: self.deadline,
            now,
            due: None,
            reminders,
        }
    }
}

/// How a host ends a call.
#[derive(Debug)]
pub(crate) enum Ended {
    /// With an answer.
    Answered(Answered),
    /// It no longer leads; the call did not run.
    NotLeader,
}

/// The way back to whoever called. Dropped unanswered, it says that the outcome is unknown.
pub(crate) struct ReplyTo {
    target: ActorId,
    answer: Option<Box<dyn FnOnce(Ended) + Send>>,
    /// Counts against [`PARTITION_CALLS_MAX`] until answered.
    calls: Arc<AtomicU64>,
}

impl ReplyTo {
    fn end(mut self, ended: Ended) {
        if let Some(answer) = self.answer.take() {
            answer(ended);
        }
    }
}

impl Drop for ReplyTo {
    fn drop(&mut self) {
        self.calls.fetch_sub(1, Ordering::Relaxed);
        if let Some(answer) = self.answer.take() {
            let actor = self.target.to_string();
            answer(Ended::Answered(Answered::fault(Fault::OutcomeUnknown { actor })));
        }
    }
}

/// What a host is told.
pub(crate) enum HostMessage {
    /// It has been entered: what the log answers reaches it from here on.
    Begin,
    /// A call.
    Call(HostCall, ReplyTo),
    /// Messages from another partition, and where to say how far they are applied.
    Deliver(Delivery, tokio::sync::oneshot::Sender<Result<u64, Fault>>),
    /// An async turn has ended.
    TurnDone(Box<TurnDone>),
    /// Records below `next_seq` are applied, the last of them at `index`.
    Applied { index: LogIndex, next_seq: RecordSeq },
    /// Leadership was confirmed after the reads of this round had arrived.
    ReadConfirmed { ctx: u64 },
    /// How a delivery to another partition ended.
    LineAcked { to: PartitionId, upto: Result<u64, Fault> },
    /// Try the line again.
    LineRetry { to: PartitionId },
    /// Someone follows an actor's events.
    Subscribe { actor: ActorId, from: EventsFrom, sink: mpsc::Sender<Result<EventItem, Fault>> },
    /// A follower of events that was behind has room again.
    FollowerReady,
    /// A reminder may be due; what was planned until then is past.
    RemindersDue { planned: Millis },
    /// A message or reminder is tried again.
    Again { actor: ActorId, work: turns::Work },
    /// A timer's time has come.
    TimerDue { actor: ActorId, name: String, id: u64 },
    /// Someone asks which reminders are set.
    Reminders { query: ReminderQuery, told: oneshot::Sender<Result<ReminderPage, Fault>> },
    /// Someone outside cancels a reminder; answered with whether there was one, once that is committed.
    CancelReminder { actor: ActorId, name: String, told: oneshot::Sender<Result<bool, Fault>> },
    /// Time for housekeeping.
    Sweep,
    /// There is more to forget.
    Forget,
    /// It has the actor that was used longest ago on a node without memory for more.
    Relieve,
}

impl ractor::Message for HostMessage {}

/// The end of an async turn.
pub(crate) struct TurnDone {
    pub(crate) actor: ActorId,
    pub(crate) work: turns::Running,
    pub(crate) state: Option<Box<dyn State>>,
    pub(crate) finished: Finished,
}

/// What all hosts of a node share.
#[derive(Clone)]
pub(crate) struct HostShared {
    pub(crate) node: NodeId,
    pub(crate) kinds: Kinds,
    pub(crate) rows: Arc<dyn RowStore>,
    pub(crate) log: Arc<dyn Log>,
    pub(crate) caller: Arc<dyn Caller>,
    pub(crate) courier: Arc<dyn Courier>,
    pub(crate) clock: Clock,
    pub(crate) counters: Arc<HostCounters>,
    pub(crate) builds: Arc<dyn Builds>,
}

/// Counts and allowances over all hosts of a node.
#[derive(Debug, Default)]
pub(crate) struct HostCounters {
    /// Turns that changed something.
    pub(crate) turns: AtomicU64,
    /// Reads answered.
    pub(crate) reads: AtomicU64,
    /// Reads answered from rows that may have been behind.
    pub(crate) stale_reads: AtomicU64,
    /// Turns undone by an error, a fault or a panic.
    pub(crate) undone: AtomicU64,
    /// Calls answered from kept replies.
    pub(crate) repeated: AtomicU64,
    /// Calls refused because a line was full.
    pub(crate) overloaded: AtomicU64,
    /// Messages between actors applied.
    pub(crate) messages: AtomicU64,
    /// Reminders fired.
    pub(crate) reminders: AtomicU64,
    /// Due times of reminders that were missed and passed without a turn.
    pub(crate) reminders_passed: AtomicU64,
    /// Timers fired.
    pub(crate) timers: AtomicU64,
    /// Events published.
    pub(crate) events: AtomicU64,
    /// Events handed to followers.
    pub(crate) events_handed: AtomicU64,
    /// Batches proposed.
    pub(crate) batches: AtomicU64,
    /// Actors without a row that calls woke.
    pub(crate) new_actors: AtomicU64,
    /// Calls refused because too many new actors were called at once, or too many are in memory.
    pub(crate) new_actors_refused: AtomicU64,
    /// How many more may come into being.
    pub(crate) newcomers: newcomers::Newcomers,
    /// Dead letters.
    pub(crate) dead: DeadCounts,
    /// The memory they may take.
    pub(crate) memory: memory::Memory,
    /// Async turns of kinds that limit them.
    pub(crate) places: places::Places,
}

/// Counts of dead letters.
#[derive(Debug, Default)]
pub(crate) struct DeadCounts {
    by_code: Mutex<BTreeMap<&'static str, u64>>,
    /// Gone because there were too many.
    pub(crate) lost: AtomicU64,
}

impl DeadCounts {
    fn count(&self, code: &'static str) {
        *lock(&self.by_code).entry(code).or_default() += 1;
    }

    /// How many came to be, by the code of their reason.
    pub(crate) fn by_code(&self) -> BTreeMap<&'static str, u64> {
        lock(&self.by_code).clone()
    }
}

/// What a host holds right now.
#[derive(Debug, Default)]
pub(crate) struct Gauges {
    /// Activations in memory.
    resident: AtomicU64,
    /// Dead letters kept.
    dead: AtomicU64,
    /// Actors met whose state cannot be read.
    parked: AtomicU64,
}

impl HostCounters {
    /// Those of a node whose actors may take so many bytes of memory.
    pub(crate) fn within(actors_bytes: u64) -> Self {
        Self { memory: memory::Memory::new(actors_bytes), ..Self::default() }
    }

    pub(crate) fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }
}

/// A running host. Cheap to clone.
#[derive(Clone)]
pub(crate) struct HostHandle {
    pub(crate) epoch: Term,
    partition: PartitionId,
    mailbox: ActorRef<HostMessage>,
    calls: Arc<AtomicU64>,
    gauges: Arc<Gauges>,
    counters: Arc<HostCounters>,
}

impl HostHandle {
    /// Hands a call over; `answer` is called exactly once. A permit is taken before anything enters
    /// the mailbox, which has no bound of its own.
    pub(crate) fn call(&self, call: HostCall, answer: Box<dyn FnOnce(Ended) + Send>) {
        let before = self.calls.fetch_add(1, Ordering::Relaxed);
        let reply = ReplyTo { target: call.target.clone(), answer: Some(answer), calls: self.calls.clone() };
        if before >= PARTITION_CALLS_MAX {
            HostCounters::add(&self.counters.overloaded, 1);
            let fault = Fault::Overloaded {
                what: "the line of calls".into(),
                at: format!("partition {}", self.partition),
                limit: PARTITION_CALLS_MAX,
            };
            return reply.end(Ended::Answered(Answered::fault(fault)));
        }
        self.tell(HostMessage::Call(call, reply));
    }

    /// Tells the host something. When it is gone, what was told is dropped, which answers it.
    pub(crate) fn tell(&self, message: HostMessage) {
        if let Err(ractor::MessagingErr::SendErr(HostMessage::Call(_, reply))) = self.mailbox.cast(message) {
            reply.end(Ended::NotLeader);
        }
    }

    /// Activations in memory.
    pub(crate) fn resident(&self) -> u64 {
        self.gauges.resident.load(Ordering::Relaxed)
    }

    /// Dead letters kept.
    fn dead(&self) -> u64 {
        self.gauges.dead.load(Ordering::Relaxed)
    }

    /// Actors met in this epoch whose state cannot be read.
    pub(crate) fn parked(&self) -> u64 {
        self.gauges.parked.load(Ordering::Relaxed)
    }

    /// Ends the host; everything it owes is answered with "outcome unknown".
    pub(crate) fn stop(&self) {
        self.mailbox.kill();
    }
}

/// The hosts of a node, by partition.
#[derive(Default)]
pub(crate) struct Hosts {
    by_partition: DashMap<PartitionId, HostHandle>,
}

impl Hosts {
    /// The host of a partition, if this node leads it.
    pub(crate) fn get(&self, partition: PartitionId) -> Option<HostHandle> {
        self.by_partition.get(&partition).map(|host| host.clone())
    }

    /// Tells the host of an epoch something; nobody if that epoch is not led here (any more).
    pub(crate) fn tell(&self, partition: PartitionId, epoch: Term, message: HostMessage) {
        if let Some(host) = self.by_partition.get(&partition)
            && host.epoch == epoch
        {
            host.tell(message);
        }
    }

    /// Enters the host of a new epoch, lets it begin, and ends the one before it.
    pub(crate) fn open(&self, host: HostHandle) {
        if let Some(before) = self.by_partition.insert(host.partition, host.clone()) {
            before.stop();
        }
        host.tell(HostMessage::Begin);
    }

    /// The partition and the epoch of a host that should be running.
    pub(crate) fn find(&self, host: ractor::ActorId) -> Option<(PartitionId, Term)> {
        let found = self.by_partition.iter().find(|at| at.mailbox.get_id() == host);
        found.map(|at| (at.partition, at.epoch))
    }

    /// Ends the host of an epoch, if it is still the current one.
    pub(crate) fn close(&self, partition: PartitionId, epoch: Term) {
        if let Some((_, host)) = self.by_partition.remove_if(&partition, |_, host| host.epoch == epoch) {
            host.stop();
        }
    }

    /// Has all hosts look at their reminders anew, whatever they have planned.
    pub(crate) fn clock_set(&self) {
        for host in &self.by_partition {
            host.tell(HostMessage::RemindersDue { planned: Millis(u64::MAX) });
        }
    }

    /// Ends all hosts.
    pub(crate) fn close_all(&self) {
        // Not entered any more first: so nobody takes their end for a failure.
        let hosts: Vec<_> = self.by_partition.iter().map(|host| host.clone()).collect();
        self.by_partition.clear();
        hosts.iter().for_each(HostHandle::stop);
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.by_partition.len()
    }

    /// Activations in memory over all hosts.
    pub(crate) fn resident(&self) -> u64 {
        self.by_partition.iter().map(|host| host.resident()).sum()
    }

    /// Dead letters kept over all hosts.
    pub(crate) fn dead(&self) -> u64 {
        self.by_partition.iter().map(|host| host.dead()).sum()
    }

    /// Parked actors over all hosts.
    pub(crate) fn parked(&self) -> u64 {
        self.by_partition.iter().map(|host| host.parked()).sum()
    }
}

/// What a new host is made from.
pub(crate) struct Opening {
    pub(crate) partition: PartitionId,
    pub(crate) epoch: Term,
    /// The partition's meta state at the moment the epoch opened.
    pub(crate) meta: perennial_core::partition::Partition,
    /// Index applied at that moment.
    pub(crate) applied: LogIndex,
    pub(crate) shared: HostShared,
}

/// Starts a host under `supervisor`.
///
/// # Errors
/// When the supervisor is stopping.
pub(crate) async fn start(
    opening: Opening,
    supervisor: ractor::ActorCell,
) -> Result<HostHandle, ractor::SpawnErr> {
    let (partition, epoch) = (opening.partition, opening.epoch);
    let calls = Arc::new(AtomicU64::new(0));
    let gauges = Arc::<Gauges>::default();
    let counters = opening.shared.counters.clone();
    let args = (opening, gauges.clone());
    let (mailbox, _) = ractor::Actor::spawn_linked(None, HostActor, args, supervisor).await?;
    Ok(HostHandle { epoch, partition, mailbox, calls, gauges, counters })
}

struct HostActor;

impl ractor::Actor for HostActor {
    type Msg = HostMessage;
    type State = Host;
    type Arguments = (Opening, Arc<Gauges>);

    async fn pre_start(
        &self,
        myself: ActorRef<HostMessage>,
        (opening, gauges): Self::Arguments,
    ) -> Result<Host, ActorProcessingErr> {
        Ok(Host::new(opening, myself, gauges))
    }

    async fn handle(
        &self,
        _: ActorRef<HostMessage>,
        message: HostMessage,
        host: &mut Host,
    ) -> Result<(), ActorProcessingErr> {
        host.on(message);
        Ok(())
    }
}
