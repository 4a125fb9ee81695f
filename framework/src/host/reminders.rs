//! Reminders: durable wake-ups.
//!
//! A reminder is a row in the order of due times; firing it is a turn whose record removes the row and, if
//! the reminder recurs, sets the next one. So each due time fires once, also when the leader changes in
//! between, and those missed during an outage are made up for as their policy says when there is a leader
//! again, earliest first, a bounded number at a time. Memory holds the ones that fire and the changes that are
//! on their way to the rows, never the others, however many there are.
//! Invariant: a row of a due time has a row of its name that says the same due time. So a firing that
//! had to wait looks at the name again: its record would take away what has replaced it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::FixedState;
use perennial_core::id::{ActorId, GroupId, RecordSeq};
use perennial_core::partition::record::{Cause, Next, Record, ReminderChange, ReminderRow, Turn};
use perennial_core::partition::rows;
use perennial_core::time::Millis;
use tokio::sync::oneshot;
use tokio_util::task::AbortOnDropHandle;

use super::owed::Owed;
use super::turns::{Host, Tries, Work, rows_failed};
use super::{HostCounters, HostMessage};
use crate::error::Fault;
use crate::replica::{RowError, RowStore};
use crate::status::{Reminder, ReminderPage, ReminderQuery};
use crate::when::{self, Decision};

/// Reminders of one actor; a turn that sets more is undone.
pub const REMINDERS_OF_ONE_MAX: usize = 10_000;
/// Reminders told at a time.
pub const REMINDERS_TOLD_MAX: u32 = 1000;
/// Bytes of them, with one more reminder.
const TOLD_BYTES_MAX: usize = 512 * 1024;
/// Bytes of rows read for them, with one more; a row has the arguments of its call.
const READ_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Reminders fired at a time.
const FIRE_MAX: usize = 256;
/// Pause between two such rounds, in milliseconds.
const FIRE_PAUSE_MS: u64 = 20;
/// Most firings under way; the rest waits.
const FIRING_MAX: usize = 16 * 1024;
/// Most firings whose records wait to be applied; with more, the next round comes later.
const FIRED_MAX: usize = 4 * FIRE_MAX;
/// Pause before the next look when that many are under way or the rows could not be read, in milliseconds.
const FIRE_RETRY_MS: u64 = 500;
/// Longest time between two looks while there are reminders, in milliseconds.
const LOOK_MS_MAX: u64 = 60 * 1000;

/// Changes of reminders that are recorded and not yet applied, by actor and name.
pub(super) type Ahead = HashMap<ActorId, BTreeMap<String, (RecordSeq, Option<Stands>)>, FixedState>;
/// When a reminder is due, and its row.
type Stands = (Millis, ReminderRow);

/// An actor's reminders as a turn sees them: rows, under the changes that are on their way to them.
#[derive(Clone, Default)]
pub struct RemindersView {
    rows: Option<(Arc<dyn RowStore>, GroupId)>,
    ahead: Vec<(String, Option<Stands>)>,
}

impl RemindersView {
    /// Those that the rows of a replica have.
    pub(super) fn applied(rows: Arc<dyn RowStore>, group: GroupId) -> Self {
        Self { rows: Some((rows, group)), ahead: Vec::new() }
    }

    /// All of them, by name.
    ///
    /// # Errors
    /// When the rows cannot be read.
    pub(crate) fn all(&self, actor: &ActorId) -> Result<BTreeMap<String, Stands>, Fault> {
        let mut set = self.stored(actor).map_err(|error| rows_failed("its reminders", actor, &error))?;
        for (name, stands) in &self.ahead {
            match stands {
                Some(stands) => set.insert(name.clone(), stands.clone()),
                None => set.remove(name),
            };
        }
        Ok(set)
    }

    fn stored(&self, actor: &ActorId) -> Result<BTreeMap<String, Stands>, RowError> {
        let Some((store, group)) = &self.rows else { return Ok(BTreeMap::new()) };
        let (from, to) = rows::reminder_names(actor);
        let mut set = BTreeMap::new();
        for row in store.range(*group, &from, Some(&to)) {
            let (key, value) = row?;
            let (Some((_, name)), Some(due)) = (rows::read_reminder_name(&key), read_due(&value)) else {
                continue;
            };
            // It may have fired since.
            let stored = store.get(*group, &rows::reminder_due(due, actor, &name))?;
            if let Some(row) = stored.and_then(|bytes| postcard::from_bytes(&bytes).ok()) {
                set.insert(name, (due, row));
            }
        }
        Ok(set)
    }
}

fn read_due(value: &[u8]) -> Option<Millis> {
    Some(Millis(u64::from_be_bytes(value.try_into().ok()?)))
}

impl Host {
    /// Fires what is due and plans the next look.
    pub(super) fn fire_reminders(&mut self) {
        let now = self.now();
        if self.firing.len() >= FIRING_MAX {
            return self.plan_reminders(now.plus(FIRE_RETRY_MS));
        }
        // Those that have fired are looked at again until their records are applied.
        if self.fired >= FIRED_MAX {
            return self.plan_reminders(now.plus(FIRE_PAUSE_MS));
        }
        match self.fire_due(now) {
            Ok(Some(next)) => self.plan_reminders(next),
            Ok(None) => {}
            Err(error) => {
                tracing::error!(partition = %self.partition, %error, "cannot read the reminders");
                self.plan_reminders(now.plus(FIRE_RETRY_MS));
            }
        }
    }

    /// Fires some of what is due; says when to look again.
    fn fire_due(&mut self, now: Millis) -> Result<Option<Millis>, RowError> {
        let store = self.shared.rows.clone();
        let (from, to) = rows::reminders();
        let mut fired = 0;
        for row in store.range(self.group, &from, Some(&to)) {
            let (key, value) = row?;
            let Some(firing) = rows::read_reminder_due(&key) else { continue };
            if firing.0 > now {
                return Ok(Some(firing.0));
            }
            if self.firing.contains(&firing) {
                continue;
            }
            if fired == FIRE_MAX {
                return Ok(Some(now.plus(FIRE_PAUSE_MS)));
            }
            let (due, actor, name) = firing;
            // A turn that is not applied yet may have replaced or cancelled it.
            if !self.is_due(due, &actor, &name) {
                continue;
            }
            let Ok(row) = postcard::from_bytes::<ReminderRow>(&value) else {
                tracing::error!(partition = %self.partition, %actor, name, "a reminder is unreadable");
                continue;
            };
            fired += 1;
            if let Some(repeat) = &row.repeat
                && let Decision::Pass(next) = when::decide(repeat, due, now)
            {
                self.pass(actor, name, due, row, next);
                continue;
            }
            self.firing.insert((due, actor.clone(), name.clone()));
            self.begin_work(actor, Work::Reminder { name, due, row, tries: Tries::default() });
        }
        Ok(None)
    }

    /// Records that a due time passes without a turn.
    fn pass(&mut self, actor: ActorId, name: String, due: Millis, row: ReminderRow, next: Option<Millis>) {
        tracing::debug!(%actor, name, due = due.0, "missed due times of a reminder pass");
        HostCounters::add(&self.shared.counters.reminders_passed, 1);
        let set = next.map(|next| set(&name, next, row));
        self.record_reminders(actor, Cause::ReminderPassed { name, due }, set.into_iter().collect(), None);
    }

    /// Makes a record of nothing but changes of reminders; `told` hears when it is applied.
    fn record_reminders(
        &mut self,
        actor: ActorId,
        cause: Cause,
        reminders: Vec<ReminderChange>,
        told: Option<oneshot::Sender<Result<bool, Fault>>>,
    ) {
        let size = 96 + 2 * actor.as_str().len() + reminders.iter().map(size_of).sum::<usize>();
        let mut owed = Owed::nothing(RecordSeq(0));
        self.note_reminders(&actor, fired_by(&cause), &reminders, &mut owed);
        owed.cancelled = told;
        let turn = Turn {
            actor,
            cause,
            state: None,
            sends: Vec::new(),
            reminders,
            events: Vec::new(),
            items: Vec::new(),
        };
        owed.seq = self.append(Record::Turn(Box::new(turn)), size);
        self.owed.push_back(owed);
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
    fn reminder_due(&self, actor: &ActorId, name: &str) -> Result<Option<Millis>, Fault> {
        if let Some((_, stands)) = self.reminders_ahead.get(actor).and_then(|names| names.get(name)) {
            return Ok(stands.as_ref().map(|(due, _)| *due));
        }
        let stored = self
            .shared
            .rows
            .get(self.group, &rows::reminder_name(actor, name))
            .map_err(|error| rows_failed("a reminder", actor, &error))?;
        Ok(stored.and_then(|bytes| read_due(&bytes)))
    }

    /// What a turn of the actor sees of its reminders.
    pub(super) fn reminders_of(&self, actor: &ActorId) -> RemindersView {
        let ahead = self.reminders_ahead.get(actor).into_iter().flatten();
        RemindersView {
            rows: Some((self.shared.rows.clone(), self.group)),
            ahead: ahead.map(|(name, (_, stands))| (name.clone(), stands.clone())).collect(),
        }
    }

    /// Brings the changes of a turn into the form of its record: the next due time of the reminder that asked
    /// for it comes first, and each change says what it replaces.
    ///
    /// # Errors
    /// When a row cannot be read, or the actor would have too many. Never without changes.
    pub(super) fn settle_reminders(
        &mut self,
        actor: &ActorId,
        work: &Work,
        changes: &mut Vec<ReminderChange>,
    ) -> Result<(), Fault> {
        let mut known: BTreeMap<String, Option<Millis>> = BTreeMap::new();
        if let Work::Reminder { name, due, row, .. } = work {
            known.insert(name.clone(), None);
            if let Some(next) = self.next_due(actor, name, *due, row) {
                changes.insert(0, set(name, next, row.clone()));
            }
        }
        let mut more = 0_usize;
        for change in changes {
            let (ReminderChange::Set { name, .. } | ReminderChange::Cancel { name, .. }) = &*change;
            let name = name.clone();
            let before = match known.get(&name) {
                Some(before) => *before,
                // The record names what it replaces; without that, the row of the one before would stay.
                None => self.reminder_due(actor, &name)?,
            };
            let after = match change {
                ReminderChange::Set { due, replaces, .. } => {
                    more += usize::from(before.is_none());
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
            known.insert(name, after);
        }
        // The turn of a reminder gives back one.
        if more > usize::from(matches!(work, Work::Reminder { .. })) {
            let stand = self.reminders_standing(actor)?;
            if stand + more > REMINDERS_OF_ONE_MAX {
                HostCounters::add(&self.shared.counters.overloaded, 1);
                return Err(Fault::Overloaded {
                    what: "the set of reminders".into(),
                    at: actor.to_string(),
                    limit: REMINDERS_OF_ONE_MAX as u64,
                });
            }
        }
        Ok(())
    }

    /// When a reminder that fires is due again.
    fn next_due(&self, actor: &ActorId, name: &str, due: Millis, row: &ReminderRow) -> Option<Millis> {
        let mut next = when::next(row.repeat.as_ref()?, due, self.now());
        match &mut next {
            // A firing under way stands for the reminder as it was.
            Some(next) => {
                while self.firing.contains(&(*next, actor.clone(), name.to_owned())) {
                    *next = next.plus(1);
                }
            }
            None => tracing::warn!(%actor, name, "a reminder has fired for the last time"),
        }
        next
    }

    /// Notes that a reminder is used up without a turn of its own, and how it goes on.
    pub(super) fn next_of(
        &mut self,
        actor: &ActorId,
        name: &str,
        due: Millis,
        row: &ReminderRow,
        owed: &mut Owed,
    ) -> Option<Next> {
        let next = self.next_due(actor, name, due, row).zip(row.repeat.clone());
        let set = next.as_ref().map(|(next, _)| set(name, *next, row.clone()));
        self.note_reminders(actor, Some(name), set.as_slice(), owed);
        next.map(|(due, repeat)| Next { due, repeat })
    }

    /// How many reminders the actor has; counted once for each activation.
    fn reminders_standing(&mut self, actor: &ActorId) -> Result<usize, Fault> {
        if let Some(count) = self.activations.get(actor).and_then(|act| act.reminders) {
            return Ok(count);
        }
        let (from, to) = rows::reminder_names(actor);
        let found = self.shared.rows.range(self.group, &from, Some(&to)).map(|row| row.map(|(key, _)| key));
        let mut names = found
            .collect::<Result<BTreeSet<_>, _>>()
            .map_err(|error| rows_failed("a reminder", actor, &error))?;
        for (name, (_, stands)) in self.reminders_ahead.get(actor).into_iter().flatten() {
            let key = rows::reminder_name(actor, name);
            match stands {
                Some(_) => names.insert(key),
                None => names.remove(&key),
            };
        }
        if let Some(act) = self.activations.get_mut(actor) {
            act.reminders = Some(names.len());
        }
        Ok(names.len())
    }

    /// Remembers the changes of the next record until it is applied.
    pub(super) fn note_reminders(
        &mut self,
        actor: &ActorId,
        fired: Option<&str>,
        changes: &[ReminderChange],
        owed: &mut Owed,
    ) {
        if fired.is_none() && changes.is_empty() {
            return;
        }
        let seq = self.spec.next_record();
        let names = self.reminders_ahead.entry(actor.clone()).or_default();
        let mut count = 0_isize;
        if let Some(name) = fired {
            count -= 1;
            names.insert(name.to_owned(), (seq, None));
        }
        for change in changes {
            match change {
                ReminderChange::Set { name, due, message, repeat, replaces } => {
                    count += isize::from(replaces.is_none());
                    let row = ReminderRow { message: message.clone(), repeat: repeat.clone() };
                    names.insert(name.clone(), (seq, Some((*due, row))));
                    owed.due = owed.due.into_iter().chain([*due]).min();
                }
                ReminderChange::Cancel { name, replaces } => {
                    count -= isize::from(replaces.is_some());
                    names.insert(name.clone(), (seq, None));
                }
            }
        }
        if let Some(standing) = self.activations.get_mut(actor).and_then(|act| act.reminders.as_mut()) {
            *standing = standing.saturating_add_signed(count);
        }
        owed.reminders = Some(actor.clone());
    }

    /// The changes of a record are rows now.
    pub(super) fn reminders_applied(&mut self, actor: &ActorId, seq: RecordSeq) {
        if let Some(names) = self.reminders_ahead.get_mut(actor) {
            names.retain(|_, (since, _)| *since > seq);
            if names.is_empty() {
                self.reminders_ahead.remove(actor);
            }
        }
    }

    /// Tells of reminders, as applied.
    pub(super) fn on_reminders(
        &self,
        query: &ReminderQuery,
        told: oneshot::Sender<Result<ReminderPage, Fault>>,
    ) {
        let _ = told.send(self.reminder_page(query));
    }

    fn reminder_page(&self, query: &ReminderQuery) -> Result<ReminderPage, Fault> {
        let before = query.due_before.unwrap_or(Millis(u64::MAX));
        let mut page = Telling::new(query.limit);
        if let Some(actor) = &query.actor {
            for (due, name) in self.reminders_due_of(actor, before, query)? {
                if page.is_full() {
                    page.told.more = true;
                    break;
                }
                let stored = self.shared.rows.get(self.group, &rows::reminder_due(due, actor, &name));
                // It may have fired since.
                if let Some(value) = stored.map_err(|error| rows_failed("its reminders", actor, &error))? {
                    page.tell(due, actor.clone(), name, &value);
                }
            }
            return Ok(page.told);
        }
        let (mut from, to) = rows::reminders();
        if let Some((due, actor, name)) = &query.after {
            from = rows::reminder_due(*due, actor, name);
            from.push(0);
        }
        for row in self.shared.rows.range(self.group, &from, Some(&to)) {
            let (key, value) = row.map_err(|error| {
                let partition = format!("partition {}", self.partition);
                rows_failed("its reminders", &partition, &error)
            })?;
            let Some((due, actor, name)) = rows::read_reminder_due(&key) else { continue };
            if due >= before {
                break;
            }
            if page.is_full() {
                page.told.more = true;
                break;
            }
            page.tell(due, actor, name, &value);
        }
        Ok(page.told)
    }

    /// When those of an actor's reminders are due that are asked for, earliest first. Reads no arguments.
    fn reminders_due_of(
        &self,
        actor: &ActorId,
        before: Millis,
        query: &ReminderQuery,
    ) -> Result<BTreeSet<(Millis, String)>, Fault> {
        let (from, to) = rows::reminder_names(actor);
        let mut set = BTreeSet::new();
        for row in self.shared.rows.range(self.group, &from, Some(&to)) {
            let (key, value) = row.map_err(|error| rows_failed("its reminders", actor, &error))?;
            let (Some((_, name)), Some(due)) = (rows::read_reminder_name(&key), read_due(&value)) else {
                continue;
            };
            let behind = |(after, _, last): &(Millis, ActorId, String)| (due, &name) > (*after, last);
            if due < before && query.after.as_ref().is_none_or(behind) {
                set.insert((due, name));
            }
        }
        Ok(set)
    }

    /// Removes a reminder for somebody outside; tells whether there was one, once that is committed.
    pub(super) fn on_cancel_reminder(
        &mut self,
        actor: ActorId,
        name: String,
        told: oneshot::Sender<Result<bool, Fault>>,
    ) {
        match self.reminder_due(&actor, &name) {
            Ok(None) => drop(told.send(Ok(false))),
            Ok(replaces) => {
                let cancel = ReminderChange::Cancel { name, replaces };
                self.record_reminders(actor, Cause::Operator, vec![cancel], Some(told));
            }
            Err(fault) => drop(told.send(Err(fault))),
        }
    }
}

/// The reminder whose due time a record uses up.
pub(super) fn fired_by(cause: &Cause) -> Option<&str> {
    match cause {
        Cause::Reminder { name, .. } | Cause::ReminderPassed { name, .. } => Some(name),
        _ => None,
    }
}

fn set(name: &str, due: Millis, row: ReminderRow) -> ReminderChange {
    let ReminderRow { message, repeat } = row;
    ReminderChange::Set { name: name.to_owned(), due, message, replaces: None, repeat }
}

/// A page of reminders that is being put together.
struct Telling {
    told: ReminderPage,
    limit: usize,
    /// Bytes of what is told, and of the rows read for it.
    bytes: usize,
    read: usize,
}

impl Telling {
    fn new(limit: u32) -> Self {
        let limit = limit.clamp(1, REMINDERS_TOLD_MAX) as usize;
        Self { told: ReminderPage::default(), limit, bytes: 0, read: 0 }
    }

    fn is_full(&self) -> bool {
        self.told.reminders.len() >= self.limit || self.bytes > TOLD_BYTES_MAX || self.read > READ_BYTES_MAX
    }

    /// Tells of one more, as its row has it.
    fn tell(&mut self, due: Millis, actor: ActorId, name: String, row: &[u8]) {
        let Ok(stored) = postcard::from_bytes(row) else { return };
        let reminder = Reminder::of(actor, name, due, stored);
        let names = reminder.actor.as_str().len() + reminder.target.as_str().len() + reminder.name.len();
        self.bytes += names + reminder.handler.len() + reminder.repeats.as_ref().map_or(0, String::len) + 32;
        self.read += row.len();
        self.told.reminders.push(reminder);
    }
}

/// About how large a change is in a record, in bytes.
pub(super) fn size_of(change: &ReminderChange) -> usize {
    match change {
        ReminderChange::Set { name, message, repeat, .. } => {
            let message = message.args.len() + message.method.len() + message.target.as_str().len();
            name.len() + message + 48 + if repeat.is_some() { 2 * when::CRON_BYTES_MAX } else { 0 }
        }
        ReminderChange::Cancel { name, .. } => name.len() + 16,
    }
}
