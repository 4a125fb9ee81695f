//! The room: who is here, what was said, and the events that tell everybody.

use std::collections::BTreeSet;
use std::time::Duration;

use perennial::Log;
use perennial::prelude::*;

/// Most messages that are read at a time.
pub const PAGE_MAX: u32 = 100;
/// Most members of a room.
pub const MEMBERS_MAX: usize = 200;
/// Longest name, in characters.
pub const NAME_CHARS_MAX: usize = 32;
/// Longest message, in characters.
pub const TEXT_CHARS_MAX: usize = 1000;
/// Who neither speaks nor renews for this long has left.
pub const PRESENT_FOR: Duration = Duration::from_secs(120);

/// Why a room refused. Nothing was changed.
#[data]
#[derive(thiserror::Error)]
pub enum RoomError {
    /// Only members may speak.
    #[error("join the room first")]
    NotMember,
    /// The name is empty or too long.
    #[error("a name has 1 to {max} characters")]
    BadName {
        /// The limit.
        max: u32,
    },
    /// The message is empty or too long.
    #[error("a message has 1 to {max} characters")]
    BadText {
        /// The limit.
        max: u32,
    },
    /// The room has [`MEMBERS_MAX`] members already.
    #[error("the room is full: {max} members")]
    Full {
        /// The limit.
        max: u32,
    },
}

/// A message as the room remembers it.
#[data]
#[derive(Eq)]
pub struct Said {
    /// Its number in the room.
    pub seq: u64,
    /// Who.
    pub who: String,
    /// What.
    pub text: String,
    /// When, in milliseconds since the Unix epoch.
    pub at: u64,
}

/// A part of what was said.
#[data]
#[derive(Eq)]
pub struct Page {
    /// Place of its first message among all of the room; those before it are the page before.
    pub first: u64,
    /// The messages, oldest first.
    pub messages: Vec<Said>,
}

/// What a room tells those who follow it. The numbers count the room's events without a gap, so that
/// a reader sees at once if one is missing.
#[data]
pub enum RoomEvent {
    /// Somebody came.
    Joined {
        /// Number.
        seq: u64,
        /// Who.
        who: String,
        /// When.
        at: u64,
    },
    /// Somebody left.
    Left {
        /// Number.
        seq: u64,
        /// Who.
        who: String,
        /// When.
        at: u64,
    },
    /// Somebody spoke.
    Said(Said),
}

/// A chat room; its key is its name.
#[data]
#[derive(Default)]
pub struct Room {
    members: BTreeSet<String>,
    /// All that was said. Each message is a row of its own, so that a room may have as many as it likes.
    messages: Log<Said>,
    /// Number of the last event.
    seq: u64,
}

#[actor(event = RoomEvent)]
impl Room {
    /// Comes in, or says that one is still here; returns who is here.
    pub fn join(&mut self, ctx: &mut Ctx<Self>, who: String) -> Result<Vec<String>, RoomError> {
        if !within(&who, NAME_CHARS_MAX) {
            return Err(RoomError::BadName { max: NAME_CHARS_MAX as u32 });
        }
        if !self.members.contains(&who) {
            if self.members.len() >= MEMBERS_MAX {
                return Err(RoomError::Full { max: MEMBERS_MAX as u32 });
            }
            self.members.insert(who.clone());
            self.seq += 1;
            ctx.publish(RoomEvent::Joined { seq: self.seq, who: who.clone(), at: ctx.now().0 });
        }
        stay(ctx, who);
        Ok(self.members())
    }

    /// Leaves; nothing happens to those who are not here.
    pub fn leave(&mut self, ctx: &mut Ctx<Self>, who: String) {
        if self.members.remove(&who) {
            self.seq += 1;
            ctx.cancel(reminder(&who));
            ctx.publish(RoomEvent::Left { seq: self.seq, who, at: ctx.now().0 });
        }
    }

    /// Says something to everybody; returns the message's number.
    pub fn say(&mut self, ctx: &mut Ctx<Self>, who: String, text: String) -> Result<u64, RoomError> {
        if !within(&text, TEXT_CHARS_MAX) {
            return Err(RoomError::BadText { max: TEXT_CHARS_MAX as u32 });
        }
        if !self.members.contains(&who) {
            return Err(RoomError::NotMember);
        }
        self.seq += 1;
        let said = Said { seq: self.seq, who: who.clone(), text, at: ctx.now().0 };
        self.messages.push(said.clone());
        ctx.publish(RoomEvent::Said(said));
        stay(ctx, who);
        Ok(self.seq)
    }

    /// Who is here.
    pub fn members(&self) -> Vec<String> {
        self.members.iter().cloned().collect()
    }

    /// The last messages, oldest first; at most [`PAGE_MAX`].
    pub fn history(&self, last: u32) -> Vec<Said> {
        self.messages.last(last.min(PAGE_MAX).into())
    }

    /// The messages before a place, which may be behind the last one; at most [`PAGE_MAX`].
    pub fn page(&self, before: u64, count: u32) -> Page {
        let before = before.min(self.messages.next_index());
        let first = before.saturating_sub(count.min(PAGE_MAX).into());
        Page { first, messages: self.messages.range(first..before).map(|(_, said)| said).collect() }
    }
}

/// Sets the member's time to leave anew.
fn stay(ctx: &mut Ctx<Room>, who: String) {
    ctx.schedule(reminder(&who), PRESENT_FOR, ctx.me().leave(who));
}

fn reminder(who: &str) -> String {
    format!("gone {who}")
}

fn within(text: &str, chars_max: usize) -> bool {
    !text.trim().is_empty() && text.chars().count() <= chars_max
}
