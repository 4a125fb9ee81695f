//! The first build.

use perennial::prelude::*;

/// Counts.
#[data]
#[derive(Default)]
pub struct Tally {
    count: u16,
    note: Option<String>,
}

#[actor]
impl Tally {
    /// Adds one; returns the sum.
    pub fn add(&mut self) -> u64 {
        self.count += 1;
        self.count.into()
    }

    /// Adds one, and has another one add one too; returns the sum.
    pub fn add_both(&mut self, ctx: &mut Ctx<Self>, other: String) -> u64 {
        ctx.send(ctx.get::<Self>(&other).add());
        self.add()
    }

    /// The sum.
    pub fn count(&self) -> u64 {
        self.count.into()
    }
}

/// Holds money, in euros.
#[data]
#[derive(Default)]
pub struct Wallet {
    /// Whole euros.
    pub euros: u32,
}

#[actor]
impl Wallet {
    /// Puts one euro in; returns the balance in cents.
    pub fn put_euro(&mut self) -> u64 {
        self.euros += 1;
        u64::from(self.euros) * 100
    }

    /// The balance in cents.
    pub fn cents(&self) -> u64 {
        u64::from(self.euros) * 100
    }
}

/// The application.
#[must_use]
pub fn app() -> App {
    App::new("upgrade").actor::<Tally>().actor::<Wallet>()
}
