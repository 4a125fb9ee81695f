//! What a purse has paid, the other has got: all of it, once, in order, but for what it has refused; what was acknowledged was paid, what
//! was refused was not (Perennial's contract, "Exactly once"; the bank test of Jepsen asks the same).

use super::super::load::{Books, Told};
use super::{Deaths, stand_as_told};

/// Compares the books of the purses with each other and with what callers were told.
pub fn every_payment_arrives_once(asked: &[Told], books: &Books, deaths: &Deaths) -> Result<(), String> {
    for (from, paid, _) in &books.purses {
        for (to, _, got) in &books.purses {
            let sent: Vec<_> = paid.iter().filter(|p| p.other == *to).map(|p| p.number).collect();
            let arrived: Vec<_> = got.iter().filter(|p| p.other == *from).map(|p| p.number).collect();
            let never_dead = |numbers: &[u64]| {
                numbers.iter().copied().filter(|number| !deaths.ever.contains(number)).collect::<Vec<_>>()
            };
            let sorted = |mut numbers: Vec<u64>| {
                numbers.sort_unstable();
                numbers
            };
            let accounted = arrived.iter().copied().chain(deaths.withheld(to, from)).collect();
            let complete = sorted(sent.clone()) == sorted(accounted);
            if !complete || never_dead(&sent) != never_dead(&arrived) {
                let withheld: Vec<_> = deaths.withheld(to, from).collect();
                return Err(format!(
                    "{from} has paid {to} {sent:?}, {to} has got {arrived:?} and refused {withheld:?}"
                ));
            }
        }
        stand_as_told("payment", from, asked, paid.iter().map(|payment| payment.number))?;
    }
    Ok(())
}
