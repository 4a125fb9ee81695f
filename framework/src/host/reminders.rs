//! Reminders: durable wake-ups.
//!
//! A reminder is a row in the order of due times; firing it is a turn whose record removes the row. So
//! it fires once, also when the leader changes in between, and those missed during an outage fire when
//! there is a leader again, earliest first, a bounded number at a time.
//! Invariant: a row of a due time has a row of its name that says the same due time. So a firing that
//! had to wait looks at the name again: its record would take away what has replaced it.

use std::time::Duration;

use perennial_core::id::ActorId;
use perennial_core::partition::record::{Message, ReminderChange};
use perennial_core::partition::rows;
use perennial_core::time::Millis;
use tokio_util::task::AbortOnDropHandle;

use super::HostMessage;
use super::turns::{Host, Tries, Work};
use crate::error::Fault;

/// Reminders fired at a time.
const FIRE_MAX: usize = 256;
/// Pause between two such rounds, in milliseconds.
const FIRE_PAUSE_MS: u64 = 20;
/// Most firings under way; the rest waits.
const FIRING_MAX: usize = 16 * 1024;
/// Pause before the next look when that many are under way or the rows could not be read, in milliseconds.
const FIRE_RETRY_MS: u64 = 500;
/// Longest time between two looks while there are reminders, in milliseconds.
const LOOK_MS_MAX: u64 = 60 * 1000;

impl Host {
    /// Fires what is due and plans the next look.
    pub(super) fn fire_reminders(&mut self) {
        let now = self.now();
        if self.firing.len() >= FIRING_MAX {
            return self.plan_reminders(now.plus(FIRE_RETRY_MS));
        }
        let (from, to) = rows::reminders();
        let due = rows::reminders_after(now);
        let rows = &self.shared.rows;
        let found = rows
            .scan(self.group, &from, Some(&due), FIRE_MAX + self.firing.len())
            .and_then(|found| Ok((found, rows.scan(self.group, &due, Some(&to), 1)?)));
        let (found, next) = match found {
            Ok(found) => found,
            Err(error) => {
                tracing::error!(partition = %self.partition, %error, "cannot read the reminders");
                return self.plan_reminders(now.plus(FIRE_RETRY_MS));
            }
        };
        let more = found.len() == FIRE_MAX + self.firing.len();
        for (key, value) in found {
            let Some(firing) = rows::read_reminder_due(&key) else { continue };
            if self.firing.contains(&firing) {
                continue;
            }
            let (due, actor, name) = firing;
            // A turn that is not applied yet may have replaced or cancelled it.
            if !self.is_due(due, &actor, &name) {
                continue;
            }
            let Ok(message) = postcard::from_bytes::<Message>(&value) else {
                tracing::error!(partition = %self.partition, %actor, name, "a reminder is unreadable");
                continue;
            };
            self.firing.insert((due, actor.clone(), name.clone()));
            let tries = Tries::default();
            self.begin_work(actor, Work::Reminder { name, due, message, tries });
        }
        if more {
            self.plan_reminders(now.plus(FIRE_PAUSE_MS));
        } else if let Some((due, _, _)) = next.first().and_then(|(key, _)| rows::read_reminder_due(key)) {
            self.plan_reminders(due);
        }
    }

    pub(super) fn plan_reminders(&mut self, due: Millis) {
        if self.reminders_planned.is_some_and(|planned| planned <= due) {
            return;
        }
        self.reminders_planned = Some(due);
        // Bounded, as record time follows the machine's clock, which may be set.
        let pause = Duration::from_millis(due.since(self.now()).min(LOOK_MS_MAX));
        let mailbox = self.mailbox.clone();
        // In place of the task that waits for a later one.
        self.reminders_task = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            tokio::time::sleep(pause).await;
            let _ = mailbox.cast(HostMessage::RemindersDue { planned: due });
        })));
    }

    pub(super) fn on_reminders_due(&mut self, planned: Millis) {
        if self.reminders_planned.is_some_and(|due| due <= planned) {
            self.reminders_planned = None;
        }
        self.fire_reminders();
    }

    /// Whether the actor's reminder is still the one that is due then. If that cannot be read now, it is
    /// looked at again later.
    pub(super) fn is_due(&mut self, due: Millis, actor: &ActorId, name: &str) -> bool {
        match self.reminder_due(actor, name) {
            Ok(now_due) => now_due == Some(due),
            Err(fault) => {
                tracing::error!(partition = %self.partition, %fault, "cannot read a reminder");
                self.plan_reminders(self.now().plus(FIRE_RETRY_MS));
                false
            }
        }
    }

    /// When the actor's reminder is due as of its last turn.
    ///
    /// # Errors
    /// When its row cannot be read; never when the activation remembers it.
    pub(super) fn reminder_due(&mut self, actor: &ActorId, name: &str) -> Result<Option<Millis>, Fault> {
        let cached = self.activations.get(actor).and_then(|act| act.reminders.get(name));
        if let Some(due) = cached {
            return Ok(*due);
        }
        let stored = self
            .shared
            .rows
            .get(self.group, &rows::reminder_name(actor, name))
            .map_err(|error| self.storage_fault("a reminder", actor, &error))?;
        let due =
            stored.and_then(|bytes| Some(Millis(u64::from_be_bytes(bytes.as_slice().try_into().ok()?))));
        self.note_reminder(actor, name, due);
        Ok(due)
    }

    /// Fills in what each change replaces and remembers the new due times; all of them were looked up.
    pub(super) fn settle_reminders(&mut self, actor: &ActorId, changes: &mut [ReminderChange]) {
        for change in changes {
            let (ReminderChange::Set { name, .. } | ReminderChange::Cancel { name, .. }) = &*change;
            let name = name.clone();
            let before = self.reminder_due(actor, &name).ok().flatten();
            let after = match change {
                ReminderChange::Set { due, replaces, .. } => {
                    *replaces = before;
                    // A firing under way stands for the reminder as it was.
                    while self.firing.contains(&(*due, actor.clone(), name.clone())) {
                        *due = due.plus(1);
                    }
                    Some(*due)
                }
                ReminderChange::Cancel { replaces, .. } => {
                    *replaces = before;
                    None
                }
            };
            self.note_reminder(actor, &name, after);
        }
    }

    /// Remembers when a reminder is due.
    pub(super) fn note_reminder(&mut self, actor: &ActorId, name: &str, due: Option<Millis>) {
        if let Some(act) = self.activations.get_mut(actor) {
            act.reminders.insert(name.to_owned(), due);
        }
    }
}
