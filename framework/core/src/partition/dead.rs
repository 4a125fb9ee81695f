//! Dead letters: messages and reminders that could not be applied.
//!
//! Owns which of them a partition keeps: their numbers and sizes, in the meta state; the letters themselves
//! are rows. A letter is made by the record that uses its message up, so a message is either applied or dead,
//! and it leaves by one record that either drops it or puts its message into the outbox again.
//! Never decides what is dead. The idea is the dead letter channel of Hohpe and Woolf's "Enterprise
//! Integration Patterns", 2003.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::apply::OutboxItem;
use super::record::{Keep, Message, Next};
use crate::id::{ActorId, PartitionId, RequestId};
use crate::time::Millis;

/// Most dead letters a partition keeps. One more takes the place of the oldest, which is counted as lost.
pub const DEAD_LETTERS_MAX: usize = 1024;
/// Most bytes of them, likewise.
pub const DEAD_LETTER_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Longest text that says why, in bytes.
pub const WHY_BYTES_MAX: usize = 1024;

/// What a dead letter was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Origin {
    /// A message of another actor.
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
        /// How it goes on, if it recurs; this due time is used up.
        next: Option<Next>,
    },
}

/// A message that could not be applied, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// Who sent it; of a reminder, whose it was.
    pub from: ActorId,
    /// What it was.
    pub origin: Origin,
    /// Receiver, handler and arguments.
    pub message: Message,
    /// Stable code of the reason: that of a fault, or `app`.
    pub code: String,
    /// The reason in words, at most [`WHY_BYTES_MAX`] bytes.
    pub why: String,
    /// How often it was tried since the leader that gave it up had begun. In the row of a recurring reminder's
    /// letter, with the tries of the letters whose place it took.
    pub tries: u32,
}

impl DeadLetter {
    /// Whose reminder it was and its name, if that goes on: such a letter comes again and again.
    fn recurring(&self) -> Option<(ActorId, String)> {
        match &self.origin {
            Origin::Reminder { name, next: Some(_), .. } => Some((self.from.clone(), name.clone())),
            Origin::Reminder { .. } | Origin::Message { .. } => None,
        }
    }

    /// What it counts against [`DEAD_LETTER_BYTES_MAX`].
    #[must_use]
    pub fn size(&self) -> usize {
        let names = self.from.as_str().len() + self.message.target.as_str().len() + self.message.method.len();
        let origin = match &self.origin {
            Origin::Message { .. } => 0,
            Origin::Reminder { name, .. } => name.len(),
        };
        64 + names + origin + self.message.args.len() + self.code.len() + self.why.len()
    }
}

/// A dead letter as its row has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KeptLetter {
    /// Record time when it was given up.
    pub at: Millis,
    /// The letter.
    pub letter: DeadLetter,
}

/// A dead letter leaves its list at an operator's word.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeadTaken {
    /// The operator's call.
    pub request: RequestId,
    /// Every call of the session below this one is acknowledged.
    pub ack_below: u64,
    /// How long the reply is kept.
    pub keep: Keep,
    /// The encoded answer, given again to a retry.
    pub reply: Bytes,
    /// Number of the letter.
    pub number: u64,
    /// Its message, to be sent again; `None` when it is dropped.
    pub again: Option<OutboxItem>,
}

/// Which dead letters a partition keeps.
///
/// Invariants: `bytes` is the sum of the sizes in `kept`; every number in `kept` is 1 to `last`; every number
/// in `recurring` is in `kept`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DeadIndex {
    last: u64,
    kept: BTreeMap<u64, u32>,
    bytes: u64,
    lost: u64,
    /// The one letter of each recurring reminder, and how often it was tried.
    recurring: BTreeMap<(ActorId, String), (u64, u32)>,
}

impl DeadIndex {
    /// Puts a letter on the list. One of a recurring reminder takes the place of the one before it, so that one
    /// reminder that always fails pushes nobody else out. Gives its number, how often it was tried in all, and the
    /// numbers of those that left.
    pub(super) fn enter(&mut self, letter: &DeadLetter) -> (u64, u32, Vec<u64>) {
        let (recurring, mut tries) = (letter.recurring(), letter.tries);
        let before = recurring.as_ref().and_then(|reminder| self.recurring.get(reminder).copied());
        if let Some((number, tried)) = before {
            self.take(number);
            tries = tries.saturating_add(tried);
        }
        let (number, oldest) = self.add(letter.size());
        if let Some(reminder) = recurring {
            self.recurring.insert(reminder, (number, tries));
        }
        (number, tries, before.map(|(number, _)| number).into_iter().chain(oldest).collect())
    }

    /// Makes room for a letter of this size; gives its number and those of the oldest that had to go.
    fn add(&mut self, size: usize) -> (u64, Vec<u64>) {
        let size = u32::try_from(size).unwrap_or(u32::MAX);
        let mut gone = Vec::new();
        while self.kept.len() >= DEAD_LETTERS_MAX || self.bytes + u64::from(size) > DEAD_LETTER_BYTES_MAX {
            let Some((number, size)) = self.kept.pop_first() else { break };
            self.bytes -= u64::from(size);
            self.recurring.retain(|_, (of, _)| *of != number);
            self.lost += 1;
            gone.push(number);
        }
        self.last += 1;
        self.kept.insert(self.last, size);
        self.bytes += u64::from(size);
        (self.last, gone)
    }

    /// Takes a letter off the list; false when it is not there.
    pub(super) fn take(&mut self, number: u64) -> bool {
        let size = self.kept.remove(&number);
        self.bytes -= u64::from(size.unwrap_or(0));
        self.recurring.retain(|_, (of, _)| *of != number);
        size.is_some()
    }

    /// Whether a letter is there.
    #[must_use]
    pub fn holds(&self, number: u64) -> bool {
        self.kept.contains_key(&number)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// How many had to go because there were too many.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Whether its numbers keep their rules and leave room to count on.
    pub(super) fn is_plausible(&self, count_max: u64) -> bool {
        let within = |number: &u64| (1..=self.last).contains(number);
        self.last <= count_max
            && self.lost <= count_max
            && self.kept.len() <= DEAD_LETTERS_MAX
            && self.kept.keys().all(within)
            && self.recurring.len() <= self.kept.len()
            && self.recurring.values().all(|(number, _)| self.kept.contains_key(number))
            && self.bytes == self.kept.values().copied().map(u64::from).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::partition::record::{Missed, Repeat, Schedule};

    #[test]
    fn the_oldest_makes_room_and_is_counted() {
        let mut index = DeadIndex::default();
        for number in 1..=DEAD_LETTERS_MAX as u64 {
            assert_eq!(index.add(10), (number, Vec::new()));
        }
        assert!(index.take(2) && !index.take(2) && !index.take(0), "each once");
        assert_eq!(index.add(10), (1025, Vec::new()), "what was taken has made room");
        assert_eq!((index.add(10), index.lost()), ((1026, vec![1]), 1));
        assert_eq!(index.add(10), (1027, vec![3]));
        assert_eq!((index.len(), index.bytes, index.lost()), (DEAD_LETTERS_MAX, 10_240, 2));
        assert!(!index.holds(3) && index.holds(4) && index.is_plausible(2000) && !index.is_plausible(1026));
    }

    fn letter(name: &str, recurs: bool, tries: u32) -> DeadLetter {
        let repeat = Repeat { schedule: Schedule::Every { ms: 1000 }, missed: Missed::Once };
        let next = recurs.then_some(Next { due: Millis(2), repeat });
        let from: ActorId = "C/a".parse().unwrap();
        let message = Message { target: from.clone(), method: "m".into(), args: Bytes::new() };
        let origin = Origin::Reminder { name: name.into(), due: Millis(1), next };
        DeadLetter { from, origin, message, code: "app".into(), why: "no".into(), tries }
    }

    #[test]
    fn a_reminder_that_recurs_has_one_letter() {
        let mut index = DeadIndex::default();
        assert_eq!(index.enter(&letter("once", false, 1)), (1, 1, vec![]));
        assert_eq!(index.enter(&letter("tick", true, 2)), (2, 2, vec![]));
        assert_eq!(index.enter(&letter("tock", true, 1)), (3, 1, vec![]));
        assert_eq!(index.enter(&letter("tick", true, 3)), (4, 5, vec![2]));
        assert_eq!(index.enter(&letter("once", false, 1)), (5, 1, vec![]), "each is another one");
        assert!(index.is_plausible(100) && index.lost() == 0 && index.len() == 4);
        assert!(index.take(4));
        assert_eq!(index.enter(&letter("tick", true, 1)), (6, 1, vec![]), "counted anew");
        for _ in 0..2 * DEAD_LETTERS_MAX {
            index.enter(&letter("tick", true, 1));
        }
        assert_eq!((index.len(), index.lost()), (4, 0), "it pushes nobody out");
        for _ in 0..DEAD_LETTERS_MAX {
            index.add(1);
        }
        assert!(index.recurring.is_empty() && index.is_plausible(10_000));
        index.recurring.insert(("C/a".parse().unwrap(), "tick".into()), (1, 1));
        assert!(!index.is_plausible(10_000));
    }

    #[test]
    fn bytes_are_bounded_too() {
        let mut index = DeadIndex::default();
        let quarter = (DEAD_LETTER_BYTES_MAX / 4) as usize;
        for number in 1..=4 {
            assert_eq!(index.add(quarter), (number, Vec::new()));
        }
        assert_eq!(index.add(quarter + 1), (5, vec![1, 2]));
        assert_eq!((index.bytes, index.lost()), (3 * quarter as u64 + 1, 2));
        assert_eq!(index.add(usize::MAX).0, 6, "one letter has room, whatever it says");
        assert!(index.take(6) && index.is_empty() && index.bytes == 0);
    }
}
