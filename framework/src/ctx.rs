//! The context of a turn: who, when, and the effects that leave with its commit.

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

use bytes::Bytes;
use perennial_core::id::{ActorId, RequestId};
use perennial_core::partition::record::{ItemChange, Message, ReminderChange, ReminderRow};
use perennial_core::time::Millis;

use crate::actor::{Actor, Answer, Finished, Format, encode};
use crate::call::{ActorHandle, Call, Caller, Failure, TurnCaller, Via};
use crate::data::Data;
use crate::error::Fault;
pub use crate::host::reminders::RemindersView;
use crate::status::Reminder;
use crate::when::When;

/// Longest name of a reminder or timer, in bytes. That of a reminder is part of the keys of two rows.
pub const REMINDER_NAME_BYTES_MAX: usize = 256;
/// Most bytes of arguments of a call that a reminder or timer makes. The record of a firing has them up to
/// twice, beside what the turn leaves.
pub const SCHEDULED_BYTES_MAX: usize = 128 * 1024;
/// Shortest time between two firings of a timer.
pub const TIMER_EVERY_MIN: Duration = Duration::from_millis(10);

/// What a turn hands to the log besides its state.
#[derive(Debug, Default)]
pub struct Effects {
    /// Messages, in order.
    pub sends: Vec<Message>,
    /// Reminder changes, in order.
    pub reminders: Vec<ReminderChange>,
    /// Encoded events, in order.
    pub events: Vec<Bytes>,
    /// Changes of collections; filled in by the host.
    pub items: Vec<ItemChange>,
    /// Timer changes, in order. The log does not know them.
    pub timers: Vec<TimerChange>,
}

/// A change of one of the activation's timers.
#[derive(Debug, Clone)]
pub enum TimerChange {
    /// Starts the timer of this name, in place of one that runs.
    Start {
        /// Name, unique for the actor.
        name: String,
        /// Time until it fires.
        after: Duration,
        /// Whether it starts anew after each firing.
        again: bool,
        /// What to deliver.
        message: Message,
    },
    /// Stops the timer of this name, if it runs.
    Stop {
        /// Name.
        name: String,
    },
}

impl Effects {
    /// Whether there are none for the log.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sends.is_empty() && self.reminders.is_empty() && self.events.is_empty() && self.items.is_empty()
    }
}

/// What the host gives a turn.
#[derive(Clone)]
pub struct TurnEnv {
    /// Whose turn.
    pub me: ActorId,
    /// Where its calls go.
    pub caller: Arc<dyn Caller>,
    /// The actors waiting for this turn, outermost first, without this one.
    pub path: Vec<ActorId>,
    /// The id of the call that asked for the turn.
    pub request: RequestId,
    /// The turn may be repeated long after its first try, so the replies to its calls are kept as long.
    pub lasting: bool,
    /// It is a read, and what it calls must be reads too: nothing is changed anywhere.
    pub reads: bool,
    /// When its caller gives up.
    pub deadline: Instant,
    /// Record time.
    pub now: Millis,
    /// When the reminder was due that asked for the turn.
    pub due: Option<Millis>,
    /// The actor's reminders before the turn.
    pub reminders: RemindersView,
}

/// The context of a turn. Writers get `&mut`, readers `&`: a read cannot have effects.
pub struct Ctx<A> {
    me: ActorId,
    now: Millis,
    due: Option<Millis>,
    reminders: RemindersView,
    request: RequestId,
    turn: Arc<TurnCaller>,
    effects: Effects,
    /// The first effect that could not be encoded; it fails the turn.
    fault: Option<Fault>,
    actor: PhantomData<fn() -> A>,
}

impl<A: Actor> Ctx<A> {
    pub(crate) fn new(env: TurnEnv) -> Self {
        let mut path = env.path;
        path.push(env.me.clone());
        let turn = TurnCaller {
            caller: env.caller,
            path,
            request: env.request,
            deadline: env.deadline,
            lasting: env.lasting,
            reads: env.reads,
            calls: AtomicU32::new(0),
        };
        Self {
            me: env.me,
            now: env.now,
            due: env.due,
            reminders: env.reminders,
            request: env.request,
            turn: Arc::new(turn),
            effects: Effects::default(),
            fault: None,
            actor: PhantomData,
        }
    }

    pub(crate) fn finish(self, answer: Answer) -> Finished {
        let answer = match (answer, self.fault) {
            (Answer::Ok(_), Some(fault)) => Answer::Fault(fault),
            (answer, _) => answer,
        };
        Finished { answer, effects: self.effects }
    }

    /// This actor's key.
    #[must_use]
    pub fn key(&self) -> &str {
        self.me.key()
    }

    /// This actor's id.
    #[must_use]
    pub fn id(&self) -> &ActorId {
        &self.me
    }

    /// The time of this turn as the log records it, in milliseconds since the Unix epoch. Use it
    /// instead of the machine's clock.
    #[must_use]
    pub fn now(&self) -> Millis {
        self.now
    }

    /// When the reminder was due that asked for this turn; `None` in every other turn. [`Ctx::now`] is that or
    /// later.
    #[must_use]
    pub fn due(&self) -> Option<Millis> {
        self.due
    }

    /// The id of the call that asked for this turn; a retry has the same.
    #[must_use]
    pub fn request(&self) -> RequestId {
        self.request
    }

    /// A reference to another actor.
    #[must_use]
    pub fn get<B: Actor>(&self, key: impl AsRef<str>) -> B::Ref {
        let target = crate::actor::actor_id(B::KIND, key.as_ref());
        B::make_ref(ActorHandle::new(target, Via::Turn(self.turn.clone())))
    }

    /// A reference to the workers of the stateless type `B`; see [`Actors::pool`](crate::Actors::pool).
    #[must_use]
    pub fn pool<B: Actor>(&self) -> B::Ref {
        self.get::<B>(crate::pool::ANY_KEY)
    }

    /// A reference to this actor, for `send` and `schedule`. Awaiting a call on it is a call cycle.
    #[must_use]
    pub fn me(&self) -> A::Ref {
        A::make_ref(ActorHandle::new(Ok(self.me.clone()), Via::Turn(self.turn.clone())))
    }

    /// Sends a call without waiting for an answer. It leaves when this turn has committed and is
    /// applied exactly once; messages between two actors keep their order.
    pub fn send<T: Data, X: Failure>(&mut self, call: Call<T, X>) {
        match call.message {
            Ok(message) => self.effects.sends.push(message),
            Err(fault) => self.fail(fault),
        }
    }

    /// Sets the durable reminder `name`, replacing one of the same name: `call` is made when it is due, also if
    /// this node is gone by then. `when` is a [`Duration`], for once after that time, or a [`When`]: at a time,
    /// every so often, or by a cron text.
    ///
    /// Each due time has one committed firing. Resolution: a millisecond of record time, which is also the least.
    /// The reminder outlives a firing that fails: a handler's error uses up that due time only, and is kept as a dead letter. A name that is
    /// empty or has more than [`REMINDER_NAME_BYTES_MAX`] bytes, and a `when` that cannot be, fail the turn.
    pub fn schedule<T: Data, X: Failure>(
        &mut self,
        name: impl Into<String>,
        when: impl Into<When>,
        call: Call<T, X>,
    ) {
        let set = Self::checked_name(name.into()).and_then(|name| {
            let (due, repeat) = when.into().begin(self.now)?;
            let message = self.scheduled(call.message?)?;
            Ok(ReminderChange::Set { name, due, message, replaces: None, repeat })
        });
        match set {
            Ok(set) => self.effects.reminders.push(set),
            Err(fault) => self.fail(fault),
        }
    }

    /// Removes the reminder `name`, if it is set. A name outside the limits fails the turn, as with
    /// [`Ctx::schedule`].
    pub fn cancel(&mut self, name: impl Into<String>) {
        match Self::checked_name(name.into()) {
            Ok(name) => self.effects.reminders.push(ReminderChange::Cancel { name, replaces: None }),
            Err(fault) => self.fail(fault),
        }
    }

    /// This actor's reminders, with the changes of this turn, in the order of their names. In the turn of a
    /// recurring one, it is as it was before it fired.
    ///
    /// # Errors
    /// [`Fault::Unavailable`] when the node's disk fails.
    pub fn reminders(&self) -> Result<Vec<Reminder>, Fault> {
        let mut set = self.reminders.all(&self.me)?;
        for change in &self.effects.reminders {
            match change {
                ReminderChange::Set { name, due, message, repeat, .. } => {
                    let row = ReminderRow { message: message.clone(), repeat: repeat.clone() };
                    set.insert(name.clone(), (*due, row));
                }
                ReminderChange::Cancel { name, .. } => {
                    set.remove(name);
                }
            }
        }
        Ok(set.into_iter().map(|(name, (due, row))| Reminder::of(self.me.clone(), name, due, row)).collect())
    }

    /// Starts the timer `name`, in place of one of the same name that runs: `call` is made after this time, as
    /// a turn of its own. A timer is not durable: it is gone when the actor leaves memory, by idleness or
    /// because its node or leader does, and it does not keep the actor in memory. What must happen is for
    /// [`Ctx::schedule`]. It starts when this turn has ended well.
    pub fn timer<T: Data, X: Failure>(&mut self, name: impl Into<String>, after: Duration, call: Call<T, X>) {
        self.start_timer(name.into(), after, false, call);
    }

    /// As [`Ctx::timer`], and again and again: the time until the next firing runs from the end of the turn of
    /// the one before, so they never pile up.
    pub fn timer_every<T: Data, X: Failure>(
        &mut self,
        name: impl Into<String>,
        time: Duration,
        call: Call<T, X>,
    ) {
        self.start_timer(name.into(), time, true, call);
    }

    /// Stops the timer `name`, if it runs. One whose turn waits already does not fire any more.
    pub fn stop_timer(&mut self, name: impl Into<String>) {
        match Self::checked_name(name.into()) {
            Ok(name) => self.effects.timers.push(TimerChange::Stop { name }),
            Err(fault) => self.fail(fault),
        }
    }

    /// A call that is made later, if its arguments may wait for that.
    fn scheduled(&self, message: Message) -> Result<Message, Fault> {
        if message.args.len() <= SCHEDULED_BYTES_MAX {
            return Ok(message);
        }
        Err(Fault::TooLarge {
            what: "the arguments of a scheduled call".into(),
            at: self.me.to_string(),
            bytes: message.args.len() as u64,
            limit: SCHEDULED_BYTES_MAX as u64,
        })
    }

    fn start_timer<T: Data, X: Failure>(
        &mut self,
        name: String,
        after: Duration,
        again: bool,
        call: Call<T, X>,
    ) {
        let start = Self::checked_name(name).and_then(|name| {
            if again && after < TIMER_EVERY_MIN {
                let why = format!("a timer every {after:?} is too often, {TIMER_EVERY_MIN:?} is the least");
                return Err(Fault::BadSchedule(why));
            }
            Ok(TimerChange::Start { name, after, again, message: self.scheduled(call.message?)? })
        });
        match start {
            Ok(start) => self.effects.timers.push(start),
            Err(fault) => self.fail(fault),
        }
    }

    /// Publishes an event to those who follow this actor, once this turn has committed.
    pub fn publish(&mut self, event: A::Event) {
        match encode(Format::Postcard, &event) {
            Ok(bytes) => self.effects.events.push(bytes),
            Err(fault) => self.fail(fault),
        }
    }

    fn fail(&mut self, fault: Fault) {
        self.fault.get_or_insert(fault);
    }

    /// The name of a reminder or timer, if it can be one.
    fn checked_name(name: String) -> Result<String, Fault> {
        match name.len() {
            1..=REMINDER_NAME_BYTES_MAX => Ok(name),
            bytes => Err(Fault::BadName(format!(
                "the name of a reminder or timer has {bytes} bytes, it must have 1 to {REMINDER_NAME_BYTES_MAX}"
            ))),
        }
    }
}
