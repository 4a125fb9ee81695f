//! Dead letters as operators see them: messages and reminders that could not be applied.
//!
//! A message whose handler refuses it, panics, is unknown to the build that leads, or cannot be read is kept
//! with the reason, instead of holding up those behind it. Owns the questions about them and the way to the
//! leaders that answer: each partition keeps its own, and is asked by a call like any other, so that a retry
//! of "send it again" sends it once. Never decides what is dead; the host does.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use perennial_core::hash::{PartitionCount, partition_of};
use perennial_core::id::PartitionId;
pub use perennial_core::partition::dead::{DEAD_LETTER_BYTES_MAX, DEAD_LETTERS_MAX};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::actor::{Answer, Args, Format};
use crate::call::{ActorId, Caller, Outbound};
use crate::error::Fault;

/// Kind of the actors that stand for the dead letters of a partition; no application has it.
pub(crate) const KIND: &str = "perennial.dead";
/// The one handler of such an actor.
pub(crate) const METHOD: &str = "ask";
/// Dead letters looked at for one page of a list.
pub(crate) const PAGE_LETTERS_MAX: usize = 64;
/// Largest arguments that are shown, in bytes.
pub(crate) const SHOWN_ARGS_BYTES_MAX: usize = 128 * 1024;
/// How long a partition may take to answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);

/// Names a dead letter: its partition and its number there, as in `17-3`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeadId {
    /// The partition that keeps it: that of the receiver.
    pub partition: PartitionId,
    /// Its number there, from 1.
    pub number: u64,
}

/// A text that is no dead letter's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} names no dead letter: write partition-number, such as 17-3, as the list has it")]
pub struct DeadIdError(String);

impl FromStr for DeadId {
    type Err = DeadIdError;
    fn from_str(text: &str) -> Result<Self, DeadIdError> {
        let parsed = text.split_once('-').and_then(|(partition, number)| {
            Some(Self { partition: PartitionId(partition.parse().ok()?), number: number.parse().ok()? })
        });
        parsed.ok_or_else(|| DeadIdError(text.to_owned()))
    }
}

impl fmt::Display for DeadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.partition, self.number)
    }
}

impl Serialize for DeadId {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for DeadId {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A dead letter, as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeadLetter {
    /// Its name.
    pub id: DeadId,
    /// Record time when it was given up, in milliseconds since the Unix epoch.
    pub at: u64,
    /// Who sent it; of a reminder, whose it was.
    pub sender: ActorId,
    /// The reminder's name, if it was one.
    pub reminder: Option<String>,
    /// Whom it was for.
    pub target: ActorId,
    /// Handler.
    pub method: String,
    /// Stable code of the reason: `app` for an error that the handler returned, else that of a [`Fault`].
    pub code: String,
    /// The reason in words; an error of the handler as JSON.
    pub why: String,
    /// How often it was tried since the leader that gave it up had begun; of a recurring reminder, which has one
    /// letter, with all firings before.
    pub tries: u32,
    /// Bytes of its arguments.
    pub args_bytes: u64,
    /// Its arguments by name. Absent in a list, if the leader's build does not know the handler, or if they
    /// are large.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub args: Option<serde_json::Value>,
}

/// Which dead letters are meant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeadFilter {
    /// Only those for actors of this kind.
    pub kind: Option<String>,
    /// Only those for actors with this key.
    pub key: Option<String>,
}

impl FromStr for DeadFilter {
    type Err = std::convert::Infallible;
    /// `KIND` or `KIND/KEY`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (kind, key) = match text.split_once('/') {
            Some((kind, key)) => (kind, Some(key.to_owned())),
            None => (text, None),
        };
        Ok(Self { kind: Some(kind.to_owned()), key })
    }
}

impl DeadFilter {
    pub(crate) fn lets(&self, target: &ActorId) -> bool {
        self.kind.as_deref().is_none_or(|kind| kind == target.kind())
            && self.key.as_deref().is_none_or(|key| key == target.key())
    }
}

/// What partitions tell of their dead letters.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct DeadList {
    /// The letters, oldest first.
    pub letters: Vec<DeadLetter>,
    /// How many are kept by the partitions that answered, whomever they are for.
    pub kept: u64,
    /// How many are gone since the cluster began because a partition had too many.
    pub lost: u64,
    /// Partitions that did not answer, and why.
    pub unanswered: Vec<(PartitionId, String)>,
}

/// A question to the partition whose dead letters are meant.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum DeadAsk {
    List { after: u64, kind: Option<String>, key: Option<String> },
    Show(u64),
    Retry(u64),
    Drop(u64),
}

/// A dead letter on the wire; its arguments are JSON text.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct DeadEntry {
    pub(crate) number: u64,
    pub(crate) at: u64,
    pub(crate) sender: ActorId,
    pub(crate) reminder: Option<String>,
    pub(crate) target: ActorId,
    pub(crate) method: String,
    pub(crate) code: String,
    pub(crate) why: String,
    pub(crate) tries: u32,
    pub(crate) args_bytes: u64,
    pub(crate) args: Option<String>,
}

/// A page of a list.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct DeadPage {
    pub(crate) entries: Vec<DeadEntry>,
    pub(crate) kept: u64,
    pub(crate) lost: u64,
    /// The number to go on after, if there are more.
    pub(crate) next: Option<u64>,
}

impl DeadEntry {
    fn shown(self, partition: PartitionId) -> DeadLetter {
        DeadLetter {
            id: DeadId { partition, number: self.number },
            at: self.at,
            sender: self.sender,
            reminder: self.reminder,
            target: self.target,
            method: self.method,
            code: self.code,
            why: self.why,
            tries: self.tries,
            args_bytes: self.args_bytes,
            args: self.args.and_then(|args| serde_json::from_str(&args).ok()),
        }
    }
}

/// The actor that stands for the dead letters of a partition: one of a kind of its own, with the first key
/// that belongs there. So questions about them take the way of every call.
fn actor_of(partition: PartitionId, partitions: PartitionCount) -> ActorId {
    let named = |n: u64| ActorId::new(KIND, &n.to_string()).expect("a number is a key");
    (0..)
        .map(named)
        .find(|actor| partition_of(actor, partitions) == partition)
        .expect("some number belongs to each partition")
}

/// The dead letters of a cluster.
#[derive(Clone)]
pub struct DeadLetters {
    caller: Arc<dyn Caller>,
    partitions: PartitionCount,
}

impl DeadLetters {
    pub(crate) fn new(caller: Arc<dyn Caller>, partitions: PartitionCount) -> Self {
        Self { caller, partitions }
    }

    /// Lists those that the filter lets pass, oldest first and at most `limit`. Partitions that do not answer
    /// are named in the result.
    pub async fn list(&self, filter: &DeadFilter, limit: usize) -> DeadList {
        let asked: Vec<_> = match filter {
            // Those for one actor are in its partition.
            DeadFilter { kind: Some(kind), key: Some(key) } => match ActorId::new(kind, key) {
                Ok(actor) => vec![partition_of(&actor, self.partitions)],
                Err(_) => Vec::new(),
            },
            _ => self.partitions.iter().collect(),
        };
        let pages = asked.iter().map(|&partition| self.list_of(partition, filter, limit));
        let mut list = DeadList::default();
        for (&partition, told) in asked.iter().zip(futures_util::future::join_all(pages).await) {
            match told {
                Ok((letters, kept, lost)) => {
                    list.letters.extend(letters);
                    list.kept += kept;
                    list.lost += lost;
                }
                Err(fault) => list.unanswered.push((partition, fault.to_string())),
            }
        }
        list.letters.sort_by_key(|letter| (letter.at, letter.id));
        list.letters.truncate(limit);
        list
    }

    async fn list_of(
        &self,
        partition: PartitionId,
        filter: &DeadFilter,
        limit: usize,
    ) -> Result<(Vec<DeadLetter>, u64, u64), Fault> {
        let (mut letters, mut after) = (Vec::new(), 0);
        loop {
            let ask = DeadAsk::List { after, kind: filter.kind.clone(), key: filter.key.clone() };
            let page: DeadPage = self.ask(partition, &ask).await?;
            letters.extend(page.entries.into_iter().map(|entry| entry.shown(partition)));
            match page.next {
                Some(next) if letters.len() < limit && next > after => after = next,
                _ => return Ok((letters, page.kept, page.lost)),
            }
        }
    }

    /// One letter, with its arguments.
    ///
    /// # Errors
    /// [`Fault::NoDeadLetter`], or what kept its partition from answering.
    pub async fn show(&self, id: DeadId) -> Result<DeadLetter, Fault> {
        let entry: DeadEntry = self.ask(self.known(id)?, &DeadAsk::Show(id.number)).await?;
        Ok(entry.shown(id.partition))
    }

    /// Sends a letter's message again, as the last of its line; its letter is gone with that. However often
    /// it is asked for, one message is sent.
    ///
    /// # Errors
    /// [`Fault::NoDeadLetter`] when it was retried or dropped before, [`Fault::Overloaded`] when its line is
    /// full, or what kept its partition from answering.
    pub async fn retry(&self, id: DeadId) -> Result<(), Fault> {
        self.ask(self.known(id)?, &DeadAsk::Retry(id.number)).await
    }

    /// Drops a letter: its message is never applied.
    ///
    /// # Errors
    /// As [`retry`](Self::retry).
    pub async fn drop(&self, id: DeadId) -> Result<(), Fault> {
        self.ask(self.known(id)?, &DeadAsk::Drop(id.number)).await
    }

    /// Checks that the partition exists.
    fn known(&self, id: DeadId) -> Result<PartitionId, Fault> {
        let known = id.partition.0 < self.partitions.get();
        if known { Ok(id.partition) } else { Err(Fault::NoDeadLetter { id: id.to_string() }) }
    }

    async fn ask<T: serde::de::DeserializeOwned>(
        &self,
        partition: PartitionId,
        ask: &DeadAsk,
    ) -> Result<T, Fault> {
        let args = Bytes::from(postcard::to_stdvec(ask).expect("a question always encodes"));
        let target = actor_of(partition, self.partitions);
        let at = target.to_string();
        let answered = self.caller.call(Outbound {
            target,
            method: METHOD.to_owned(),
            args: Args { format: Format::Postcard, bytes: args },
            request: None,
            keyed: false,
            read_only: matches!(ask, DeadAsk::List { .. } | DeadAsk::Show(_)),
            stale: None,
            path: Vec::new(),
            deadline: tokio::time::Instant::now().into_std() + ASK_TIMEOUT,
        });
        let unreadable = |why: String| Fault::Unreadable { what: "the answer".into(), at, why };
        match answered.await.answer {
            Answer::Ok(bytes) => postcard::from_bytes(&bytes).map_err(|error| unreadable(error.to_string())),
            Answer::App(_) => Err(unreadable("it is an application's error".into())),
            Answer::Fault(fault) => Err(fault),
        }
    }
}

impl fmt::Debug for DeadLetters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadLetters").field("partitions", &self.partitions).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_partition_has_an_actor_for_its_dead_letters() {
        for count in [1, 64, 1024] {
            let partitions = PartitionCount::try_from(count).unwrap();
            for partition in partitions.iter() {
                assert_eq!(partition_of(&actor_of(partition, partitions), partitions), partition);
            }
        }
    }

    #[test]
    fn names_and_filters_are_read_as_they_are_written() {
        let id: DeadId = "17-3".parse().unwrap();
        assert_eq!((id.partition, id.number, id.to_string().as_str()), (PartitionId(17), 3, "17-3"));
        for wrong in ["", "17", "17-", "-3", "17-3-1", "a-b", "17 - 3", "17--3"] {
            assert!(wrong.parse::<DeadId>().is_err(), "{wrong}");
        }
        let cart: ActorId = "Cart/a/b".parse().unwrap();
        for (filter, lets) in [("Cart", true), ("Cart/a/b", true), ("Cart/a", false), ("Stock", false)] {
            assert_eq!(filter.parse::<DeadFilter>().unwrap().lets(&cart), lets, "{filter}");
        }
        assert!(DeadFilter::default().lets(&cart));
    }
}
