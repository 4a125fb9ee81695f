//! The context of a turn: who, when, and the effects that leave with its commit.

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

use bytes::Bytes;
use perennial_core::id::{ActorId, RequestId};
use perennial_core::partition::record::{ItemChange, Message, ReminderChange};
use perennial_core::time::Millis;

use crate::actor::{Actor, Answer, Finished, Format, encode};
use crate::call::{ActorHandle, Call, Caller, Failure, TurnCaller, Via};
use crate::data::Data;
use crate::error::Fault;

/// Longest name of a reminder, in bytes. It is part of the keys of two rows.
pub const REMINDER_NAME_BYTES_MAX: usize = 256;

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
}

impl Effects {
    /// Whether there are none.
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
    /// When its caller gives up.
    pub deadline: Instant,
    /// Record time.
    pub now: Millis,
}

/// The context of a turn. Writers get `&mut`, readers `&`: a read cannot have effects.
pub struct Ctx<A> {
    me: ActorId,
    now: Millis,
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
            calls: AtomicU32::new(0),
        };
        Self {
            me: env.me,
            now: env.now,
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

    /// Sets the durable reminder `name`, replacing one of the same name: `call` is sent once `after`
    /// has passed, also if this node is gone by then. Resolution: a millisecond of record time, which is
    /// also the least. A name that is empty or has more than [`REMINDER_NAME_BYTES_MAX`] bytes fails the turn.
    pub fn schedule<T: Data, X: Failure>(
        &mut self,
        name: impl Into<String>,
        after: Duration,
        call: Call<T, X>,
    ) {
        // Later than whatever has fired, so that a reminder set again by its own turn is another one.
        let due = self.now.plus(u64::try_from(after.as_millis()).unwrap_or(u64::MAX).max(1));
        match reminder_name(name.into()).and_then(|name| Ok((name, call.message?))) {
            Ok((name, message)) => {
                self.effects.reminders.push(ReminderChange::Set { name, due, message, replaces: None });
            }
            Err(fault) => self.fail(fault),
        }
    }

    /// Removes the reminder `name`, if it is set. A name outside the limits fails the turn, as with
    /// [`Ctx::schedule`].
    pub fn cancel(&mut self, name: impl Into<String>) {
        match reminder_name(name.into()) {
            Ok(name) => self.effects.reminders.push(ReminderChange::Cancel { name, replaces: None }),
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
}

/// Checks a reminder's name.
fn reminder_name(name: String) -> Result<String, Fault> {
    match name.len() {
        1..=REMINDER_NAME_BYTES_MAX => Ok(name),
        bytes => Err(Fault::BadName(format!(
            "the name of a reminder has {bytes} bytes, it must have 1 to {REMINDER_NAME_BYTES_MAX}"
        ))),
    }
}
