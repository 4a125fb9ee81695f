//! The actors that simulated clients call.
//!
//! Each keeps enough of what happened to it that the end of a run can be compared with what was
//! acknowledged.

use std::time::Duration;

use perennial::prelude::*;
use perennial::{Missed, When};

use super::porter::Porter;
use super::shelf::Shelf;

/// Adds one.
#[data]
#[derive(Default)]
pub struct Counter {
    value: i64,
}

#[actor]
impl Counter {
    /// Adds one; returns the sum.
    pub fn increment(&mut self) -> i64 {
        self.value += 1;
        self.value
    }

    /// The sum.
    pub fn value(&self) -> i64 {
        self.value
    }
}

/// A payment: who, with which number.
#[data]
#[derive(Eq)]
pub struct Payment {
    /// The other purse.
    pub other: String,
    /// Number of the payment, unique in a run.
    pub number: u64,
}

/// Pays other purses, by messages.
#[data]
#[derive(Default)]
pub struct Purse {
    paid: Vec<Payment>,
    got: Vec<Payment>,
    shut: bool,
}

#[actor]
impl Purse {
    /// Pays another purse.
    pub fn pay(&mut self, ctx: &mut Ctx<Self>, to: String, number: u64) -> u64 {
        let receive = ctx.get::<Self>(&to).receive(ctx.key().to_owned(), number);
        self.paid.push(Payment { other: to, number });
        ctx.send(receive);
        number
    }

    /// Takes a payment. A purse that is shut refuses it, after it has changed what must not stay.
    pub fn receive(&mut self, from: String, number: u64) -> Result<(), String> {
        self.got.push(Payment { other: from, number });
        if self.shut { Err("shut".to_owned()) } else { Ok(()) }
    }

    /// Lets the purse refuse payments, or take them again.
    pub fn set_shut(&mut self, shut: bool) {
        self.shut = shut;
    }

    /// Whether it refuses payments.
    pub(super) fn is_shut(&self) -> bool {
        self.shut
    }

    /// What was paid and what was got, in order.
    pub fn book(&self) -> (Vec<Payment>, Vec<Payment>) {
        (self.paid.clone(), self.got.clone())
    }
}

/// How often a metronome beats until it stops itself.
pub const BEATS: usize = 4;

/// A metronome: something that wakes again and again.
#[data]
#[derive(Eq)]
pub struct Metronome {
    /// Its number, unique in a run.
    pub number: u64,
    /// Milliseconds between two beats.
    pub every_ms: u64,
    /// What becomes of missed beats.
    pub missed: u32,
    /// When its beats were due, as far as it has beaten.
    pub beats: Vec<u64>,
}

impl Metronome {
    /// Whether its beats are in time with the first.
    pub(super) fn beats_in_time(&self) -> bool {
        let mut apart = self.beats.windows(2).map(|two| two[1].saturating_sub(two[0]));
        apart.all(|apart| apart > 0 && apart.is_multiple_of(self.every_ms))
    }
}

/// The policy of this number.
#[must_use]
pub fn policy(number: u32) -> Missed {
    match number {
        0 => Missed::Once,
        1 => Missed::Skip,
        at_most => Missed::All { at_most },
    }
}

/// Has itself woken.
#[data]
#[derive(Default)]
pub struct Alarm {
    set: Vec<u64>,
    rung: Vec<u64>,
    metronomes: Vec<Metronome>,
}

#[actor]
impl Alarm {
    /// Sets an alarm.
    pub fn set(&mut self, ctx: &mut Ctx<Self>, number: u64, after_ms: u64) -> u64 {
        self.set.push(number);
        let ring = ctx.me().ring(number);
        ctx.schedule(number.to_string(), Duration::from_millis(after_ms), ring);
        number
    }

    /// Rings.
    pub fn ring(&mut self, number: u64) {
        self.rung.push(number);
    }

    /// Starts a metronome.
    pub fn start(&mut self, ctx: &mut Ctx<Self>, number: u64, every_ms: u64, missed: u32) -> u64 {
        self.metronomes.push(Metronome { number, every_ms, missed, beats: Vec::new() });
        let when = When::every(Duration::from_millis(every_ms)).missed(policy(missed));
        ctx.schedule(format!("m{number}"), when, ctx.me().beat(number));
        number
    }

    /// A metronome beats.
    pub fn beat(&mut self, ctx: &mut Ctx<Self>, number: u64) {
        let due = ctx.due().map_or(0, |due| due.0);
        for metronome in self.metronomes.iter_mut().filter(|metronome| metronome.number == number) {
            metronome.beats.push(due);
            if metronome.beats.len() == BEATS {
                ctx.cancel(format!("m{number}"));
            }
        }
    }

    /// What was set and what has rung, in order.
    pub fn book(&self) -> (Vec<u64>, Vec<u64>) {
        (self.set.clone(), self.rung.clone())
    }

    /// The metronomes that were started.
    pub fn metronomes(&self) -> Vec<Metronome> {
        self.metronomes.clone()
    }
}

/// Calls a counter for its callers.
#[data]
#[derive(Default)]
pub struct Agent {
    done: i64,
}

#[actor]
impl Agent {
    /// Has a counter increased; returns its sum.
    pub async fn relay(&mut self, ctx: &mut Ctx<Self>, counter: String) -> Reply<i64, String> {
        let sum = ctx.get::<Counter>(&counter).increment().await?;
        self.done += 1;
        Ok(sum)
    }

    /// How often that was done.
    pub fn done(&self) -> i64 {
        self.done
    }
}

/// Publishes numbers, of which few are kept.
#[data]
#[derive(Default)]
pub struct Feed {
    last: u64,
}

#[actor(event = u64, keep_events = 40, keep_events_for = "60s")]
impl Feed {
    /// Publishes the next so many numbers; returns the last.
    pub fn publish(&mut self, ctx: &mut Ctx<Self>, count: u64) -> u64 {
        for _ in 0..count {
            self.last += 1;
            ctx.publish(self.last);
        }
        self.last
    }

    /// The last number.
    pub fn last(&self) -> u64 {
        self.last
    }
}

/// The application of a simulation.
#[must_use]
pub fn app() -> App {
    register(App::new("simulation"))
}

/// Adds all actors to an application.
#[must_use]
pub fn register(app: App) -> App {
    with_others(app.actor::<Counter>().actor::<Purse>())
}

/// Adds the actors that are the same in every build.
#[must_use]
pub(super) fn with_others(app: App) -> App {
    app.actor::<Alarm>().actor::<Agent>().actor::<Shelf>().actor::<Feed>().actor::<Porter>()
}
