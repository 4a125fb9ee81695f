//! What a purse has paid, the other has got: all of it, once, in order; what was acknowledged was paid, what
//! was refused was not (Perennial's contract, "Exactly once"; the bank test of Jepsen asks the same).

use super::super::load::{Books, Told};
use crate::nemesis::history::Outcome;

/// Compares the books of the purses with each other and with what callers were told.
pub fn every_payment_arrives_once(asked: &[Told], books: &Books) -> Result<(), String> {
    for (from, paid, _) in &books.purses {
        for (to, _, got) in &books.purses {
            let sent: Vec<_> = paid.iter().filter(|p| p.other == *to).map(|p| p.number).collect();
            let arrived: Vec<_> = got.iter().filter(|p| p.other == *from).map(|p| p.number).collect();
            if sent != arrived {
                return Err(format!("{from} has paid {to} {sent:?}, {to} has got {arrived:?}"));
            }
        }
        for Told { actor, number, outcome } in asked {
            let times = paid.iter().filter(|payment| payment.number == *number).count();
            let fits = match outcome {
                _ if actor != from => times == 0,
                Outcome::Value(_) => times == 1,
                Outcome::NotApplied => times == 0,
                Outcome::Unknown => times <= 1,
            };
            if !fits {
                return Err(format!(
                    "{from}: payment {number} ({outcome:?} at {actor}) stands {times} times"
                ));
            }
        }
    }
    Ok(())
}
