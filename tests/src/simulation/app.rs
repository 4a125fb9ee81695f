//! The actors that simulated clients call.
//!
//! Each keeps enough of what happened to it that the end of a run can be compared with what was
//! acknowledged.

use std::time::Duration;

use perennial::prelude::*;

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

    /// What was paid and what was got, in order.
    pub fn book(&self) -> (Vec<Payment>, Vec<Payment>) {
        (self.paid.clone(), self.got.clone())
    }
}

/// Has itself woken.
#[data]
#[derive(Default)]
pub struct Alarm {
    set: Vec<u64>,
    rung: Vec<u64>,
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

    /// What was set and what has rung, in order.
    pub fn book(&self) -> (Vec<u64>, Vec<u64>) {
        (self.set.clone(), self.rung.clone())
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

/// The application of a simulation.
#[must_use]
pub fn app() -> App {
    App::new("simulation")
        .actor::<Counter>()
        .actor::<Purse>()
        .actor::<Alarm>()
        .actor::<Agent>()
        .actor::<Shelf>()
}
