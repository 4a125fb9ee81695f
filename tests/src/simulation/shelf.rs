//! Collections under simulated faults: an actor that keeps all it is told in a `Log`, and in a `Map` and a log of
//! a few what follows from that; and clients that change it and look whether the three agree.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use perennial::prelude::*;
use perennial::{Client, Log, Map};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::load::{CALL_TIMEOUT, Shared, Told, outcome};
use crate::nemesis::history::Outcome;

/// Shelves that clients call.
pub const SHELVES: u64 = 3;
/// Keys of a shelf's map.
const KEYS: u64 = 6;
/// Numbers that the short log keeps.
const RECENT: u64 = 5;
/// Longest pause of a client between calls, in milliseconds.
const PAUSE_MS_MAX: u64 = 150;

/// How far a read may be behind that any replica answers.
const STALE_WITHIN: Duration = Duration::from_secs(4);

/// A change of the map.
#[data]
#[derive(Eq)]
pub enum Change {
    /// The key has the change's number from now on.
    Set {
        /// Which key.
        key: u64,
    },
    /// The key is gone.
    Remove {
        /// Which key.
        key: u64,
    },
    /// All keys are gone.
    Clear,
}

/// What a shelf was told.
#[data]
#[derive(Eq)]
pub struct Entry {
    /// Unique in a run.
    pub number: u64,
    /// What to do.
    pub change: Change,
}

/// Keeps what it is told.
#[data]
#[derive(Default)]
pub struct Shelf {
    entries: Log<Entry>,
    latest: Map<u64, u64>,
    recent: Log<u64>,
}

/// A shelf as it tells itself: everything, map and short log.
pub type Book = (Vec<Entry>, Vec<(u64, u64)>, Vec<u64>);

/// What follows from the entries.
#[must_use]
pub fn follows(entries: &[Entry]) -> (Vec<(u64, u64)>, Vec<u64>) {
    let mut latest = BTreeMap::new();
    for entry in entries {
        match entry.change {
            Change::Set { key } => drop(latest.insert(key, entry.number)),
            Change::Remove { key } => drop(latest.remove(&key)),
            Change::Clear => latest.clear(),
        }
    }
    let skip = entries.len().saturating_sub(RECENT as usize);
    (latest.into_iter().collect(), entries.iter().skip(skip).map(|entry| entry.number).collect())
}

#[actor]
impl Shelf {
    /// Makes a change; returns its place.
    pub fn change(&mut self, entry: Entry) -> u64 {
        self.apply(&entry);
        self.entries.push(entry)
    }

    /// The same, little by little; it may fail before its end.
    pub async fn change_slowly(&mut self, entry: Entry, ms: u64, fail: bool) -> Result<u64, String> {
        let place = self.entries.push(entry.clone());
        tokio::time::sleep(Duration::from_millis(ms)).await;
        self.apply(&entry);
        if fail { Err("as asked".to_owned()) } else { Ok(place) }
    }

    /// Looks at everything, with a pause in between, and tells whether it fits; returns how much there is.
    pub async fn audit(&self, ms: u64) -> Result<u64, String> {
        let latest: Vec<_> = self.latest.iter().collect();
        tokio::time::sleep(Duration::from_millis(ms)).await;
        let (entries, again, recent) = self.book();
        let (wanted, wanted_recent) = follows(&entries);
        if latest != wanted || again != wanted || recent != wanted_recent {
            return Err(format!(
                "{latest:?}, then {again:?} and {recent:?}, where {wanted:?} and {wanted_recent:?} follow"
            ));
        }
        if (self.entries.len(), self.latest.len()) != (entries.len() as u64, wanted.len() as u64) {
            return Err(format!("the numbers of items are {} and {}", self.entries.len(), self.latest.len()));
        }
        Ok(self.entries.len())
    }

    /// Everything.
    pub fn book(&self) -> Book {
        let entries = self.entries.iter().map(|(_, entry)| entry).collect();
        (entries, self.latest.iter().collect(), self.recent.iter().map(|(_, number)| number).collect())
    }

    fn apply(&mut self, entry: &Entry) {
        match entry.change {
            Change::Set { key } => drop(self.latest.insert(key, entry.number)),
            Change::Remove { key } => drop(self.latest.remove(&key)),
            Change::Clear => self.latest.clear(),
        }
        self.recent.push(entry.number);
        self.recent.keep_last(RECENT);
    }
}

/// Changes and audits shelves until it is told to stop.
pub async fn drive(client: Client, seed: u64, shared: Arc<Shared>) {
    let mut random = StdRng::seed_from_u64(seed);
    while !shared.stopped() {
        let actor = format!("s{}", random.random_range(0..SHELVES));
        let shelf = client.get::<Shelf>(&actor);
        let ms = random.random_range(0..20);
        let call = random.random_range(0..10);
        if call == 0 {
            // Any replica may answer; it may be behind, and must fit together all the same.
            match shelf.book().stale(STALE_WITHIN).timeout(CALL_TIMEOUT).await {
                Ok((entries, latest, recent)) => {
                    let wanted = follows(&entries);
                    if (&latest, &recent) != (&wanted.0, &wanted.1) {
                        wrong(
                            &shared,
                            &actor,
                            &format!("{latest:?} and {recent:?}, where {wanted:?} follow"),
                        );
                    }
                }
                Err(fault) => drop(outcome(Err::<i64, _>(fault), |n| n, &shared)),
            }
        } else if call < 4 {
            let least = shared.heard(|heard| {
                let places = heard.changes.iter().filter(|told| told.actor == actor);
                places.filter_map(Told::value).max().map_or(0, |last| last + 1)
            });
            match shelf.audit(ms).timeout(CALL_TIMEOUT).await {
                Ok(len) if len as i64 >= least => {}
                Ok(len) => {
                    wrong(&shared, &actor, &format!("{len} entries, {least} were acknowledged before"))
                }
                Err(CallError::App(why)) => wrong(&shared, &actor, &why),
                Err(CallError::Fault(fault)) => drop(outcome(Err::<i64, _>(fault), |n| n, &shared)),
            }
        } else {
            let key = random.random_range(0..KEYS);
            let change = match random.random_range(0..20) {
                0 => Change::Clear,
                1..6 => Change::Remove { key },
                _ => Change::Set { key },
            };
            let number = shared.number();
            let entry = Entry { number, change };
            let outcome = if call < 8 {
                outcome(shelf.change(entry).timeout(CALL_TIMEOUT).await, |place| place as i64, &shared)
            } else {
                let fail = random.random_bool(0.4);
                match shelf.change_slowly(entry, ms, fail).timeout(CALL_TIMEOUT).await {
                    Ok(place) => outcome(Ok(place), |place| place as i64, &shared),
                    Err(CallError::App(_)) => Outcome::NotApplied,
                    Err(CallError::Fault(fault)) => outcome(Err::<i64, _>(fault), |n| n, &shared),
                }
            };
            shared.heard(|heard| heard.changes.push(Told { actor, number, outcome }));
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(0..PAUSE_MS_MAX))).await;
    }
}

fn wrong(shared: &Shared, actor: &str, what: &str) {
    shared.heard(|heard| heard.audits.push(format!("{actor}: {what}")));
}

/// Reads all shelves; `None` when one of the calls failed.
pub async fn read_books(client: &Client) -> Option<Vec<(String, Book)>> {
    let mut books = Vec::new();
    for number in 0..SHELVES {
        let actor = format!("s{number}");
        let book = client.get::<Shelf>(&actor).book().timeout(CALL_TIMEOUT).await.ok()?;
        books.push((actor, book));
    }
    Some(books)
}
