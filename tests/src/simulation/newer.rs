//! The newer build of the simulated application: the same kinds and handlers, other states.
//!
//! Each state has something that the older build does not know, and that it would lose if it wrote the state.

use perennial::prelude::*;

use super::app::{Payment, Purse as OldPurse, with_others};

/// Adds one; another field, in another order.
#[data]
#[derive(Default)]
pub struct Counter {
    /// How much was added by this build.
    #[serde(default)]
    by_newer: i64,
    value: i64,
}

#[actor]
impl Counter {
    /// Adds one; returns the sum.
    pub fn increment(&mut self) -> i64 {
        self.value += 1;
        self.by_newer += 1;
        self.value
    }

    /// The sum.
    pub fn value(&self) -> i64 {
        self.value
    }
}

/// Pays other purses, by messages; converted from the older one.
#[data(upgrade_from = OldPurse)]
#[derive(Default)]
pub struct Purse {
    paid: Vec<Payment>,
    got: Vec<Payment>,
    shut: bool,
    /// As many as `got` has.
    receipts: u64,
}

impl From<OldPurse> for Purse {
    fn from(old: OldPurse) -> Self {
        let (paid, got) = old.book();
        Self { receipts: got.len() as u64, paid, got, shut: old.is_shut() }
    }
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
        assert_eq!(self.receipts, self.got.len() as u64, "an older build has written a purse of a newer one");
        self.got.push(Payment { other: from, number });
        self.receipts += 1;
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

/// The newer build.
#[must_use]
pub fn app() -> App {
    with_others(App::new("simulation").actor::<Counter>().actor::<Purse>())
}

/// The older build with a mistake: it reads what the newer one has written and drops what it does not know.
pub mod careless {
    use super::{App, OldPurse, actor, data, with_others};

    /// Adds one.
    #[data(removed(by_newer))]
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

    /// The older build.
    #[must_use]
    pub fn app() -> App {
        with_others(App::new("simulation").actor::<Counter>().actor::<OldPurse>())
    }
}
