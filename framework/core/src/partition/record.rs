//! Records: what turns changed, as it stands in the log.
//!
//! One Raft entry of a partition is a [`Batch`]: the records of many turns of one leader, numbered
//! without a gap within its term. A record holds outcomes (after-images), never commands, so that a
//! replica applies it without running application code. Wire enums only grow at the end.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::dead::{DeadLetter, DeadTaken, Origin};
use crate::id::{ActorId, LogIndex, PartitionId, RecordSeq, RequestId, SessionId, Term};
use crate::time::Millis;

/// Largest record, in encoded bytes; a larger one is refused before it is proposed.
pub const RECORD_BYTES_MAX: usize = 512 * 1024;
/// A batch is closed when its records reach this size, in bytes.
pub const BATCH_BYTES_MAX: usize = 256 * 1024;
/// Longest name of a reminder in a record, in bytes; it is part of a row's key.
pub const NAME_BYTES_MAX: usize = 1024;
/// Longest key of an item of a collection, encoded, in bytes; it is part of a row's key.
pub const ITEM_KEY_BYTES_MAX: usize = 1024;
/// Most records in a batch.
pub const BATCH_RECORDS_MAX: usize = 2048;

/// One Raft entry of a partition.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Batch {
    /// Term in which the records were made; must equal the entry's own term.
    pub epoch: Term,
    /// Sequence number of the first record; the others follow without a gap.
    pub first_seq: RecordSeq,
    /// Record time: the leader's clock, never going back within a partition.
    pub time: Millis,
    /// The records, in the order of their turns.
    pub records: Vec<Record>,
}

impl Batch {
    /// Whether every row that applying it makes has a key of possible length.
    #[must_use]
    pub fn keys_fit(&self) -> bool {
        self.records.iter().all(|record| match record {
            Record::Turn(turn) => {
                let cause = match &turn.cause {
                    Cause::Reminder { name, .. } | Cause::ReminderPassed { name, .. } => Some(name),
                    Cause::Call { .. } | Cause::Message { .. } | Cause::Timer | Cause::Operator => None,
                };
                let changes = turn.reminders.iter().map(|change| match change {
                    ReminderChange::Set { name, .. } | ReminderChange::Cancel { name, .. } => name,
                });
                cause.into_iter().chain(changes).all(|name| name.len() <= NAME_BYTES_MAX)
                    && turn.items.iter().all(|change| change.key().len() <= ITEM_KEY_BYTES_MAX)
            }
            Record::ItemsForgotten { upto, dropped, .. } => {
                let keys = upto.iter().chain(dropped);
                keys.into_iter().all(|key| key.len() <= ITEM_KEY_BYTES_MAX)
            }
            Record::Died(letter) => match &letter.origin {
                Origin::Reminder { name, .. } => name.len() <= NAME_BYTES_MAX,
                Origin::Message { .. } => true,
            },
            _ => true,
        })
    }
}

/// One change of a partition.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Record {
    /// A turn's outcome.
    Turn(Box<Turn>),
    /// `to` has applied this partition's messages up to and including `upto`.
    OutboxAcked {
        /// Receiving partition.
        to: PartitionId,
        /// Last applied message.
        upto: u64,
    },
    /// Replies kept until these times are forgotten; their time is over.
    KeysForgotten(Vec<(Millis, RequestId)>),
    /// These sessions were silent for too long; their replies are forgotten.
    SessionsForgotten(Vec<SessionId>),
    /// The schema that states with this fingerprint were written with.
    Schema {
        /// Fingerprint in front of the states.
        fingerprint: u64,
        /// Encoded schema, behind the build that wrote it.
        schema: Bytes,
    },
    /// The actor's events up to and including this one are no longer kept.
    EventsTrimmed {
        /// Whose events.
        actor: ActorId,
        /// Log index of the last one that goes. Never below that of an earlier record.
        index: LogIndex,
        /// Its number within the entry.
        n: u32,
    },
    /// A message or reminder that cannot be applied is used up and becomes a dead letter.
    Died(Box<DeadLetter>),
    /// A dead letter is dropped or sent again.
    DeadTaken(Box<DeadTaken>),
    /// Items of a collection that were dropped are gone, from the first one on.
    ItemsForgotten {
        /// Whose collection.
        actor: ActorId,
        /// Which one.
        collection: CollectionId,
        /// Items below this key are gone; `None`: all of them.
        upto: Option<Bytes>,
        /// The key of the [`ItemChange::Drop`] that this completes.
        dropped: Option<Bytes>,
    },
}

/// What one turn changed; all of it or nothing is applied.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Turn {
    /// Whose turn.
    pub actor: ActorId,
    /// What asked for it.
    pub cause: Cause,
    /// The new state; `None` when the turn left it as it was.
    pub state: Option<Bytes>,
    /// Messages to other actors, applied there exactly once.
    pub sends: Vec<Message>,
    /// Changes of the actor's reminders.
    pub reminders: Vec<ReminderChange>,
    /// Published events, in order.
    pub events: Vec<Bytes>,
    /// Changes of the actor's collections.
    pub items: Vec<ItemChange>,
}

/// A collection inside an actor's state; unique for the actor, and never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CollectionId {
    /// The term in which it was made.
    pub term: Term,
    /// Its number among the partition's of that term.
    pub number: u64,
}

/// A change of one of the actor's collections, as an after-image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ItemChange {
    /// The item has this value from now on.
    Put {
        /// Which collection.
        collection: CollectionId,
        /// Which item; keys sort as their bytes do.
        key: Bytes,
        /// Its whole new value.
        value: Bytes,
    },
    /// The item is gone.
    Delete {
        /// Which collection.
        collection: CollectionId,
        /// Which item.
        key: Bytes,
    },
    /// Nobody reads the items below a key any more; their rows are forgotten little by little.
    Drop {
        /// Which collection.
        collection: CollectionId,
        /// The first item that stays; empty when none does.
        below: Bytes,
    },
}

impl ItemChange {
    /// The key that it names.
    #[must_use]
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Put { key, .. } | Self::Delete { key, .. } | Self::Drop { below: key, .. } => key,
        }
    }
}

/// What asked for a turn, with what must be remembered of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Cause {
    /// A call that may be retried with the same id.
    Call {
        /// The call.
        request: RequestId,
        /// Every call of the session below this one is acknowledged; their replies are forgotten.
        ack_below: u64,
        /// How long the reply is kept.
        keep: Keep,
        /// The encoded answer, given again to a retry.
        reply: Bytes,
    },
    /// A message from another actor.
    Message {
        /// Sending partition.
        from: PartitionId,
        /// Its position in the line from that partition to this one.
        seq: u64,
    },
    /// A reminder that came due.
    Reminder {
        /// Its name.
        name: String,
        /// When it was due.
        due: Millis,
    },
    /// A due time of a reminder that passed without a turn: it was missed, and its policy is not to
    /// make up for it.
    ReminderPassed {
        /// Its name.
        name: String,
        /// When it was due.
        due: Millis,
    },
    /// A timer, which nothing remembers.
    Timer,
    /// Somebody outside who changes the actor's reminders.
    Operator,
}

/// How long a reply is kept for retries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Keep {
    /// Until the session acknowledges it (or is silent for too long).
    UntilAcknowledged,
    /// Until this record time.
    Until(Millis),
}

/// A message to another actor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// Receiver.
    pub target: ActorId,
    /// Handler.
    pub method: String,
    /// Encoded arguments (postcard).
    pub args: Bytes,
}

/// A change of one of the actor's reminders.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ReminderChange {
    /// Sets or replaces the reminder of this name.
    Set {
        /// Name, unique for the actor.
        name: String,
        /// When to wake.
        due: Millis,
        /// What to deliver.
        message: Message,
        /// When the reminder it replaces was due; filled in by the host.
        replaces: Option<Millis>,
        /// How it goes on after that; `None`: not at all.
        repeat: Option<Repeat>,
    },
    /// Removes the reminder of this name, if it is there.
    Cancel {
        /// Name.
        name: String,
        /// When it was due; filled in by the host, `None` when there was none.
        replaces: Option<Millis>,
    },
}

/// How a reminder goes on: when it is due again, and what happens to due times that were missed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repeat {
    /// The times it is due.
    pub schedule: Schedule,
    /// What happens to those that were missed.
    pub missed: Missed,
}

/// When a recurring reminder is due next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Next {
    /// Then.
    pub due: Millis,
    /// And how it goes on after that.
    pub repeat: Repeat,
}

/// Times at which something is due again and again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Schedule {
    /// So many milliseconds after the due time before, never 0.
    Every {
        /// Milliseconds.
        ms: u64,
    },
    /// The times that match a cron text.
    Cron {
        /// Five fields, or six with seconds in front.
        text: String,
        /// Name of the time zone in the IANA database.
        zone: String,
    },
}

/// What a recurring reminder makes of due times that passed while nobody could fire it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Missed {
    /// It fires once for all of them.
    #[default]
    Once,
    /// It fires for each of them, in order, but only for the newest so many.
    All {
        /// How many.
        at_most: u32,
    },
    /// It does not fire for them.
    Skip,
}

/// A reminder as its row holds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReminderRow {
    /// What to deliver.
    pub message: Message,
    /// How it goes on.
    pub repeat: Option<Repeat>,
}
