//! A message is applied or a dead letter, never both and never neither; a dead letter is sent again or dropped
//! once; and what operators are shown is what the log holds (Perennial's contract, "Exactly once"; Hohpe and
//! Woolf's dead letter channel). That its place in its line is used up once is [`messages`](super::messages).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use perennial::core::id::GroupId;
use perennial::core::partition::record::{Message, Record};
use perennial::dead::DeadId;

use super::super::load::Books;
use super::super::world::lock;
use super::{Invariant, Seen};

/// A payment on its way: who gets it, from whom, its number.
pub type Due = (String, String, u64);

/// What became of messages that were not applied.
#[derive(Debug, Default)]
pub struct Deaths {
    last: BTreeMap<GroupId, u64>,
    /// Letters that stand.
    pub kept: BTreeMap<DeadId, Due>,
    /// Payments that were dropped.
    pub dropped: Vec<Due>,
    /// Numbers of payments that were ever dead: sent again, they come behind others.
    pub ever: BTreeSet<u64>,
}

impl Deaths {
    /// Payments to `to` from `from` that will not arrive unless somebody sends them again.
    pub fn withheld<'a>(&'a self, to: &'a str, from: &'a str) -> impl Iterator<Item = u64> + 'a {
        let theirs = self.kept.values().chain(&self.dropped);
        theirs.filter(move |(a, b, _)| (a.as_str(), b.as_str()) == (to, from)).map(|(_, _, number)| *number)
    }
}

/// Looks on as letters come and go.
pub struct Letters(pub Arc<Mutex<Deaths>>);

fn due(message: &Message) -> Result<Due, String> {
    let read = postcard::from_bytes::<(String, u64)>(&message.args);
    match read {
        Ok((from, number)) if message.method == "receive" => {
            Ok((message.target.key().to_owned(), from, number))
        }
        _ => Err(format!("{} of {} is a dead letter, and nobody refuses it", message.method, message.target)),
    }
}

impl Invariant for Letters {
    fn first(&mut self, seen: &Seen<'_>) -> Result<(), String> {
        let Some(partition) = seen.group.partition() else { return Ok(()) };
        let mut deaths = lock(&self.0);
        for record in seen.records() {
            match record {
                Record::Died(letter) => {
                    let due = due(&letter.message)?;
                    let number = deaths.last.entry(seen.group).or_default();
                    *number += 1;
                    let id = DeadId { partition, number: *number };
                    deaths.ever.insert(due.2);
                    deaths.kept.insert(id, due);
                }
                Record::DeadTaken(taken) => {
                    let id = DeadId { partition, number: taken.number };
                    let Some(due_of_it) = deaths.kept.remove(&id) else {
                        return Err(format!("dead letter {id} is taken twice, again at {}", seen.index));
                    };
                    match &taken.again {
                        None => deaths.dropped.push(due_of_it),
                        Some(item) if due(&item.message)? == due_of_it => {}
                        Some(item) => {
                            return Err(format!("for {due_of_it:?} {:?} is sent again", item.message));
                        }
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Compares what operators are shown in the end with what the log holds.
pub fn dead_letters_are_those_of_the_log(books: &Books, deaths: &Deaths) -> Result<(), String> {
    let shown: Vec<_> = books.dead.iter().map(|letter| letter.id).collect();
    let mut sorted = shown.clone();
    sorted.sort_unstable();
    if !sorted.iter().eq(deaths.kept.keys()) {
        return Err(format!("dead letters {sorted:?} are shown, the log holds {:?}", deaths.kept));
    }
    let wrong = books.dead.iter().find(|letter| letter.code != "app" || letter.why != "\"shut\"");
    wrong.map_or(Ok(()), |letter| Err(format!("{letter:?} has another reason than it was refused with")))
}
