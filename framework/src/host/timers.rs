//! Timers: wake-ups that are lost with the activation.
//!
//! Owns the timers of each activation, in memory, and their turns. A timer's turn is a turn as any other:
//! what it changes is a record. The timer itself is in no record: it goes when its actor leaves memory, for
//! which timers are no reason to stay, and when the epoch ends.

use std::collections::BTreeMap;
use std::time::Duration;

use perennial_core::id::ActorId;
use perennial_core::partition::record::Message;
use tokio_util::task::AbortOnDropHandle;

use super::turns::{Host, Work};
use super::{HostCounters, HostMessage};
use crate::ctx::TimerChange;
use crate::error::Fault;

/// Timers of one actor; a turn that starts more is undone.
pub const TIMERS_OF_ONE_MAX: usize = 16;

/// What a timer takes besides names and arguments, in bytes: its place in the table and the task that waits.
const TIMER_BYTES: u64 = 512;

/// A timer that runs, or whose turn does.
pub(super) struct Timer {
    id: u64,
    after: Duration,
    again: bool,
    message: Message,
    /// Waits for its time.
    _task: Option<AbortOnDropHandle<()>>,
}

impl Timer {
    /// What it takes of the node's memory, by estimate.
    fn cost(&self, name: &str) -> u64 {
        let message = &self.message;
        let names = 2 * name.len() + message.method.len() + message.target.as_str().len();
        TIMER_BYTES + (names + message.args.len()) as u64
    }
}

impl Host {
    /// Changes an actor's timers, and what is charged for them.
    fn with_timers<T>(
        &mut self,
        actor: &ActorId,
        change: impl FnOnce(&mut BTreeMap<String, Timer>) -> T,
    ) -> Option<T> {
        self.recharged(actor, |act| {
            let changed = change(&mut act.timers);
            let cost: u64 = act.timers.iter().map(|(name, timer)| timer.cost(name)).sum();
            act.timers_cost = u32::try_from(cost).unwrap_or(u32::MAX);
            changed
        })
    }

    /// Whether the actor may have the timers that a turn leaves it with.
    ///
    /// # Errors
    /// [`Fault::Overloaded`] when those are too many.
    pub(super) fn check_timers(&self, actor: &ActorId, changes: &[TimerChange]) -> Result<(), Fault> {
        if changes.is_empty() {
            return Ok(());
        }
        let running = self.activations.get(actor).into_iter().flat_map(|act| act.timers.keys());
        let mut names: std::collections::BTreeSet<_> = running.collect();
        for change in changes {
            match change {
                TimerChange::Start { name, .. } => names.insert(name),
                TimerChange::Stop { name } => names.remove(name),
            };
        }
        if names.len() <= TIMERS_OF_ONE_MAX {
            return Ok(());
        }
        HostCounters::add(&self.shared.counters.overloaded, 1);
        let (what, limit) = ("the set of timers".to_owned(), TIMERS_OF_ONE_MAX as u64);
        Err(Fault::Overloaded { what, at: actor.to_string(), limit })
    }

    /// Starts and stops what a turn has asked for.
    pub(super) fn change_timers(&mut self, actor: &ActorId, changes: Vec<TimerChange>) {
        for change in changes {
            match change {
                TimerChange::Start { name, after, again, message } => {
                    self.start_timer(actor, name, after, again, message);
                }
                TimerChange::Stop { name } => {
                    self.with_timers(actor, |timers| timers.remove(&name));
                }
            }
        }
    }

    fn start_timer(&mut self, actor: &ActorId, name: String, after: Duration, again: bool, message: Message) {
        self.timers_started += 1;
        let id = self.timers_started;
        let (mailbox, whose, named) = (self.mailbox.clone(), actor.clone(), name.clone());
        let task = AbortOnDropHandle::new(tokio::spawn(async move {
            tokio::time::sleep(after).await;
            let _ = mailbox.cast(HostMessage::TimerDue { actor: whose, name: named, id });
        }));
        let timer = Timer { id, after, again, message, _task: Some(task) };
        self.with_timers(actor, |timers| timers.insert(name, timer));
    }

    /// What the timer delivers, if it is there still.
    fn timer_message(&self, actor: &ActorId, name: &str, id: u64) -> Option<&Message> {
        let timer = self.activations.get(actor)?.timers.get(name)?;
        (timer.id == id).then_some(&timer.message)
    }

    pub(super) fn on_timer(&mut self, actor: ActorId, name: String, id: u64) {
        if let Some(message) = self.timer_message(&actor, &name, id).cloned() {
            self.begin_work(actor, Work::Timer { name, id, message });
        }
    }

    /// Whether the turn of a timer is still wanted: it may have been stopped or replaced while it waited.
    pub(super) fn timer_runs(&self, actor: &ActorId, name: &str, id: u64) -> bool {
        self.timer_message(actor, name, id).is_some()
    }

    /// The turn of a timer has ended: it starts anew, or is over.
    pub(super) fn end_timer(&mut self, actor: &ActorId, name: String, id: u64) {
        if !self.timer_runs(actor, &name, id) {
            return;
        }
        if let Some(Some(timer)) = self.with_timers(actor, |timers| timers.remove(&name))
            && timer.again
        {
            self.start_timer(actor, name, timer.after, true, timer.message);
        }
    }
}
