//! The second build: a field more, one less, one wider, another order; a converted state; a new handler.

use perennial::prelude::*;

use super::v1;

/// Counts, under a label.
#[data(removed(note))]
#[derive(Default)]
pub struct Tally {
    #[serde(default)]
    label: String,
    count: u64,
}

#[actor]
impl Tally {
    /// Adds one; returns the sum.
    pub fn add(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    /// Adds one, and has another one add one too; returns the sum.
    pub fn add_both(&mut self, ctx: &mut Ctx<Self>, other: String) -> u64 {
        ctx.send(ctx.get::<Self>(&other).add());
        self.add()
    }

    /// Gives it a label, and another one too, by message.
    pub fn name(&mut self, ctx: &mut Ctx<Self>, label: String, other: Option<String>) {
        if let Some(other) = other {
            ctx.send(ctx.get::<Self>(&other).name(label.clone(), None));
        }
        self.label = label;
    }

    /// Its label.
    pub fn label(&self) -> String {
        self.label.clone()
    }

    /// The sum.
    pub fn count(&self) -> u64 {
        self.count
    }
}

/// Holds money, in cents.
#[data(upgrade_from = v1::Wallet)]
#[derive(Default)]
pub struct Wallet {
    cents: u64,
}

impl From<v1::Wallet> for Wallet {
    fn from(old: v1::Wallet) -> Self {
        Self { cents: u64::from(old.euros) * 100 }
    }
}

#[actor]
impl Wallet {
    /// Puts one euro in; returns the balance in cents.
    pub fn put_euro(&mut self) -> u64 {
        self.cents += 100;
        self.cents
    }

    /// The balance in cents.
    pub fn cents(&self) -> u64 {
        self.cents
    }
}

/// The application.
#[must_use]
pub fn app() -> App {
    App::new("upgrade").actor::<Tally>().actor::<Wallet>()
}
