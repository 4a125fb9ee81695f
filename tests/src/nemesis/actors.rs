//! All that actors can do, under real faults: payments that may be refused, reminders, nested calls, collections,
//! events, workers, reads that may be behind.
//!
//! Owns their clients, and what is asked in the end. Load and checks are those of the simulation, less what
//! only somebody sees who looks into the log. Never makes a fault.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use perennial::call::ActorId;
use perennial::core::time::Millis;
use perennial::dead::{DeadFilter, DeadId, DeadLetter};
use perennial::limits::REMINDERS_TOLD_MAX;
use perennial::status::ReminderQuery;
use perennial::{Actor, Actors as _, Client, Fault};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;

use super::LOOK_PERIOD;
use super::history::{Action, Outcome};
use crate::simulation::app::{Alarm, Purse};
use crate::simulation::invariants::firings::Standing;
use crate::simulation::invariants::{self, Deaths};
use crate::simulation::load::{self, Books, Shared};
use crate::simulation::world::lock;
use crate::simulation::{follow, porter, shelf};

/// How long everything on its way may take to arrive once the load is over.
const SETTLED_MAX: Duration = Duration::from_secs(60);
/// How long they are called: their books grow with every call, and a partition keeps a bounded number of dead
/// letters.
const LOAD_MAX: Duration = Duration::from_secs(180);
/// How long all that is asked in the end may take.
const JUDGED_MAX: Duration = Duration::from_secs(180);
/// Logical clients of the calls that are drawn from all kinds.
const DRIVERS: u64 = 2;
/// Longest pause of the operator between two things done, in milliseconds.
const OPERATOR_PAUSE_MS: u64 = 300;
/// The share of purses that are shut when he has set them.
const SHUT_SHARE: f64 = 0.4;
/// Dead letters looked at.
const LETTERS: usize = 20;

/// Clients of all kinds of actors, and what they were told.
#[derive(Default)]
pub(super) struct Actors {
    shared: Arc<Shared>,
    revived: Revived,
    clients: JoinSet<()>,
    counts: BTreeMap<&'static str, u64>,
}

/// Numbers of payments that were dead letters and were sent again, or may have been.
type Revived = Arc<Mutex<BTreeSet<u64>>>;

/// What the cluster says in the end.
struct End {
    books: Books,
    deaths: Deaths,
    standing: Standing,
}

impl Actors {
    /// Begins to call.
    pub(super) fn start(seed: u64, client: &Client) -> Self {
        let mut this = Self::default();
        for number in 0..DRIVERS {
            let (client, shared, seed) = (client.clone(), this.shared.clone(), seed ^ number << 32);
            this.clients.spawn(async move {
                tokio::join!(
                    load::drive(client.clone(), format!("all kinds {number}"), seed, shared.clone()),
                    follow::follow(client, seed ^ 1, shared),
                );
            });
        }
        let (client, shared, revived) = (client.clone(), this.shared.clone(), this.revived.clone());
        this.clients.spawn(async move {
            tokio::join!(
                follow::publish(client.clone(), seed ^ 2, shared.clone()),
                shelf::drive(client.clone(), seed ^ 3, shared.clone()),
                operate(client.clone(), seed ^ 4, shared.clone(), revived),
                porter::drive(client, seed ^ 5, shared),
            );
        });
        let shared = this.shared.clone();
        tokio::spawn(async move {
            tokio::time::sleep(LOAD_MAX).await;
            shared.stop();
        });
        this
    }

    /// Faults that no failure of a node or of the network explains.
    pub(super) fn unexpected(&self) -> Vec<String> {
        self.shared.heard(|heard| std::mem::take(&mut heard.unexpected))
    }

    /// What was called, by kind.
    pub(super) fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.counts.clone()
    }

    /// Ends the load and compares what the actors of a healed cluster say with what the clients were told; then
    /// has all that died arrive.
    pub(super) async fn judge(&mut self, client: &Client) -> Result<(), String> {
        let judged = tokio::time::timeout(JUDGED_MAX, self.judged(client)).await;
        judged.unwrap_or_else(|_| Err(format!("no verdict within {} s", JUDGED_MAX.as_secs())))
    }

    async fn judged(&mut self, client: &Client) -> Result<(), String> {
        self.shared.stop();
        while let Some(ended) = self.clients.join_next().await {
            ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        }
        for key in 0..load::COUNTERS {
            while !load::count(client, "at the end", key, Action::Read, &self.shared).await {}
        }
        let end = self.settled(client).await?;
        self.count(&end);
        for (purse, ..) in &end.books.purses {
            open(client, purse).await.map_err(|fault| format!("{purse} cannot be opened: {fault}"))?;
        }
        let sending = end.deaths.kept.keys().map(|id| send_again(client.clone(), *id));
        for sent in sending.collect::<JoinSet<_>>().join_all().await {
            sent.map_err(|fault| format!("a dead letter cannot be sent again: {fault}"))?;
        }
        lock(&self.revived).extend(&end.deaths.ever);
        let end = self.settled(client).await?;
        match end.deaths.kept.first_key_value() {
            None => Ok(()),
            Some((id, due)) => Err(format!("nobody refuses {due:?} any more, but {id} is a dead letter")),
        }
    }

    /// Waits until nothing is on its way, and all fits together; says what does not.
    async fn settled(&self, client: &Client) -> Result<End, String> {
        let until = Instant::now() + SETTLED_MAX;
        loop {
            let why = match self.end(client).await {
                None => "not all that the actors hold can be read".to_owned(),
                Some(end) => match self.check(&end) {
                    Ok(()) => return Ok(end),
                    Err(why) => why,
                },
            };
            if Instant::now() >= until {
                return Err(why);
            }
            tokio::time::sleep(LOOK_PERIOD).await;
        }
    }

    fn check(&self, End { books, deaths, standing }: &End) -> Result<(), String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970");
        let now = Millis(now.as_millis() as u64);
        if let Some((alarm, due)) = standing.iter().find(|(_, due)| **due < now) {
            return Err(format!("{alarm:?} was due at {}, and it is {}", due.0, now.0));
        }
        self.shared.heard(|heard| {
            invariants::every_payment_arrives_once(&heard.payments, books, deaths)?;
            invariants::dead_letters_are_those_of_the_log(books, deaths)?;
            invariants::alarms_have_rung_or_stand(&heard.alarms, &heard.metronomes, books, standing)?;
            invariants::nested_calls_run_once(&heard.relays, books)?;
            invariants::collections_hold_what_was_acknowledged(&heard.changes, &heard.audits, books)?;
            invariants::worker_calls_run_at_most_once(&heard.carried, books)?;
            invariants::numbers_have_no_gap(&heard.streams)?;
            invariants::reads_are_no_older_than_they_say(&heard.stale, &heard.sums)?;
            invariants::linearizable(&heard.ops)
        })
    }

    async fn end(&self, client: &Client) -> Option<End> {
        let books = load::read_books(client).await?;
        let mut deaths = Deaths::default();
        let looking = books.dead.iter().map(|letter| show(client.clone(), letter.id));
        for letter in looking.collect::<JoinSet<_>>().join_all().await {
            let letter = letter?;
            let (from, number) = payment(&letter)?;
            deaths.kept.insert(letter.id, (letter.target.key().to_owned(), from, number));
            deaths.ever.insert(number);
        }
        deaths.ever.extend(&*lock(&self.revived));
        let mut standing = Standing::new();
        for (alarm, ..) in &books.alarms {
            let actor = ActorId::new(Alarm::KIND, alarm).ok();
            let query = ReminderQuery { actor, limit: REMINDERS_TOLD_MAX, ..ReminderQuery::default() };
            let page = client.reminders(query).await.ok().filter(|page| !page.more)?;
            standing.extend(page.reminders.into_iter().map(|one| ((alarm.clone(), one.name), one.due)));
        }
        Some(End { books, deaths, standing })
    }

    fn count(&mut self, End { deaths, .. }: &End) {
        let (dead, revived) = (deaths.ever.len(), lock(&self.revived).len());
        self.counts = self.shared.heard(|heard| {
            let values = |told: &[load::Told]| told.iter().filter(|told| told.value().is_some()).count();
            let events: usize = heard.streams.iter().map(|stretch| stretch.events.len()).sum();
            let sums = heard.ops.iter().filter(|op| matches!(op.outcome, Outcome::Value(_))).count();
            let counts = [
                ("calls of counters", sums),
                ("reads that may be behind", heard.stale.len()),
                ("payments", values(&heard.payments)),
                ("dead letters", dead),
                ("dead letters sent again", revived),
                ("reminders", values(&heard.alarms) + values(&heard.metronomes)),
                ("nested calls", values(&heard.relays)),
                ("changes of collections", values(&heard.changes)),
                ("events", events),
                ("calls of workers", values(&heard.carried)),
            ];
            counts.into_iter().map(|(what, count)| (what, count as u64)).collect()
        });
    }
}

/// Shuts and opens purses, and sends dead letters again, until it is told to stop. None is dropped: each is on the
/// list, or was sent again and has arrived.
async fn operate(client: Client, seed: u64, shared: Arc<Shared>, revived: Revived) {
    let mut random = StdRng::seed_from_u64(seed);
    let dead = client.dead_letters();
    while !shared.stopped() {
        if random.random_bool(0.5) {
            let purse = client.get::<Purse>(format!("p{}", random.random_range(0..load::OTHERS)));
            let told = purse.set_shut(random.random_bool(SHUT_SHARE)).timeout(load::CALL_TIMEOUT).await;
            shared.answered(&told);
        } else {
            let list = dead.list(&DeadFilter::default(), LETTERS).await.letters;
            let letter = list.choose(&mut random).map(|letter| letter.id);
            if let Some(id) = letter
                && let Some(letter) = show(client.clone(), id).await
            {
                lock(&revived).extend(payment(&letter).map(|(_, number)| number));
                let told = dead.retry(id).await;
                // One that is gone was taken by an attempt before, whose outcome was not known.
                if !matches!(told, Err(Fault::NoDeadLetter { .. })) {
                    shared.answered(&told);
                }
            }
        }
        let pause = Duration::from_millis(random.random_range(0..OPERATOR_PAUSE_MS));
        tokio::time::sleep(pause).await;
    }
}

/// The payment of a dead letter: from whom, and its number.
fn payment(letter: &DeadLetter) -> Option<(String, u64)> {
    let args = letter.args.as_ref()?;
    Some((args["from"].as_str()?.to_owned(), args["number"].as_u64()?))
}

/// Lets a purse take payments, however often that has to be asked.
async fn open(client: &Client, purse: &str) -> Result<(), Fault> {
    loop {
        match client.get::<Purse>(purse).set_shut(false).await {
            Err(fault) if fault.retryable() => tokio::time::sleep(LOOK_PERIOD).await,
            told => return told,
        }
    }
}

/// Sends a dead letter again, however often that has to be asked.
async fn send_again(client: Client, id: DeadId) -> Result<(), Fault> {
    loop {
        match client.dead_letters().retry(id).await {
            // An attempt before, whose outcome was not known, has taken it.
            Err(Fault::NoDeadLetter { .. }) => return Ok(()),
            Err(fault) if fault.retryable() => tokio::time::sleep(LOOK_PERIOD).await,
            told => return told,
        }
    }
}

/// Looks at a dead letter.
async fn show(client: Client, id: DeadId) -> Option<DeadLetter> {
    client.dead_letters().show(id).await.ok()
}
