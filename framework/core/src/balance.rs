//! Which node's workers take a call of a stateless kind.
//!
//! Owns the choice and what it goes by: the calls that the chooser itself has under way at each member.
//! Never asks the members: what others have under way there is not known. In: candidates in order,
//! a random number; out: a member. Sources: the power of two choices is Mitzenmacher's (IEEE TPDS 12(10),
//! 2001), the weighted turn nginx's smooth weighted round robin.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::MemberId;

/// How calls of a stateless kind are spread over nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// One after the other.
    RoundRobin,
    /// The node with the fewest calls under way from here.
    LeastInFlight,
    /// The better of two random nodes: nearly as even, and callers do not all run to the same one.
    #[default]
    PowerOfTwo,
    /// As often as the node's weight says.
    Weighted,
    /// The same node for the same key as long as it is up, the next one on the ring after that.
    ByKey,
}

/// A member that may be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Which.
    pub member: MemberId,
    /// Its share of the load relative to others.
    pub weight: u32,
}

/// What one caller knows of its own calls of one kind.
#[derive(Debug, Default)]
pub struct Balancer {
    /// Choices made; breaks ties, so that they go round.
    turn: usize,
    members: BTreeMap<MemberId, Standing>,
}

#[derive(Debug, Default)]
struct Standing {
    in_flight: u64,
    /// Of the weighted turn: what it is behind its share.
    credit: i64,
}

impl Balancer {
    /// Chooses one of the candidates and counts a call under way there, until [`Balancer::ended`]. By key,
    /// the first one: whoever asks lists them in the order of the ring. `None` without candidates.
    pub fn choose(&mut self, balance: Balance, candidates: &[Candidate], random: u64) -> Option<MemberId> {
        let count = candidates.len();
        if count == 0 {
            return None;
        }
        let turn = self.turn % count;
        self.turn = self.turn.wrapping_add(1);
        let at = match balance {
            Balance::RoundRobin => turn,
            Balance::LeastInFlight => {
                let behind = |at: usize| (at + count - turn) % count;
                (0..count).min_by_key(|&at| (self.in_flight(candidates[at].member), behind(at)))?
            }
            Balance::PowerOfTwo => {
                let one = (random >> 32) as usize % count;
                let other = (one + 1 + (random & u64::from(u32::MAX)) as usize % (count - 1).max(1)) % count;
                let of = |at: usize| self.in_flight(candidates[at].member);
                if of(other) < of(one) { other } else { one }
            }
            Balance::Weighted => self.weighted(candidates)?,
            Balance::ByKey => 0,
        };
        let member = candidates[at].member;
        self.members.entry(member).or_default().in_flight += 1;
        Some(member)
    }

    /// A call that was counted has ended.
    pub fn ended(&mut self, member: MemberId) {
        if let Some(standing) = self.members.get_mut(&member) {
            standing.in_flight = standing.in_flight.saturating_sub(1);
        }
    }

    /// Calls under way from here.
    #[must_use]
    pub fn in_flight(&self, member: MemberId) -> u64 {
        self.members.get(&member).map_or(0, |standing| standing.in_flight)
    }

    /// Everyone gains its weight, the one that is furthest behind its share takes the turn and pays for all.
    fn weighted(&mut self, candidates: &[Candidate]) -> Option<usize> {
        // Members of weight 0 only route, unless there is nobody else.
        let nobody = candidates.iter().all(|candidate| candidate.weight == 0);
        let weight = |candidate: &Candidate| if nobody { 1 } else { i64::from(candidate.weight) };
        let mut chosen: Option<(usize, i64)> = None;
        for (at, candidate) in candidates.iter().enumerate().filter(|(_, c)| weight(c) > 0) {
            let standing = self.members.entry(candidate.member).or_default();
            standing.credit += weight(candidate);
            if chosen.is_none_or(|(_, most)| standing.credit > most) {
                chosen = Some((at, standing.credit));
            }
        }
        let (at, _) = chosen?;
        let total: i64 = candidates.iter().map(weight).sum();
        self.members.entry(candidates[at].member).or_default().credit -= total;
        Some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(weights: &[u32]) -> Vec<Candidate> {
        let candidate = |(at, &weight)| Candidate { member: MemberId(at as u64 + 1), weight };
        weights.iter().enumerate().map(candidate).collect()
    }

    /// How often each is chosen if calls never end, or at once.
    fn chosen(balance: Balance, weights: &[u32], calls: u64, end: bool) -> Vec<u64> {
        let (mut balancer, candidates) = (Balancer::default(), members(weights));
        let mut counts = vec![0; weights.len()];
        for call in 0..calls {
            let random = call.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let member = balancer.choose(balance, &candidates, random).expect("there are candidates");
            counts[member.0 as usize - 1] += 1;
            if end {
                balancer.ended(member);
            }
        }
        counts
    }

    #[test]
    fn turns_go_round_and_ties_do_too() {
        for balance in [Balance::RoundRobin, Balance::LeastInFlight] {
            assert_eq!(chosen(balance, &[1, 1, 1], 9, true), [3, 3, 3], "{balance:?}");
            assert_eq!(chosen(balance, &[1, 1, 1], 9, false), [3, 3, 3], "{balance:?}");
        }
    }

    #[test]
    fn the_least_busy_one_is_chosen() {
        let (mut balancer, candidates) = (Balancer::default(), members(&[1, 1, 1]));
        for _ in 0..6 {
            balancer.choose(Balance::RoundRobin, &candidates, 0);
        }
        balancer.ended(MemberId(2));
        assert_eq!(balancer.choose(Balance::LeastInFlight, &candidates, 0), Some(MemberId(2)));
        assert_eq!(balancer.in_flight(MemberId(2)), 2);
    }

    #[test]
    fn two_choices_keep_the_longest_line_short() {
        let counts = chosen(Balance::PowerOfTwo, &[1; 8], 8000, false);
        let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        assert!(most - least <= 8, "{counts:?}");
    }

    #[test]
    fn two_choices_avoid_a_busy_member() {
        let (mut balancer, candidates) = (Balancer::default(), members(&[1, 1]));
        for _ in 0..100 {
            balancer.choose(Balance::ByKey, &candidates, 0);
        }
        for random in 0..50 {
            assert_eq!(balancer.choose(Balance::PowerOfTwo, &candidates, random << 31), Some(MemberId(2)));
        }
    }

    #[test]
    fn weights_are_shares_and_spread_evenly() {
        assert_eq!(chosen(Balance::Weighted, &[100, 200, 0, 100], 400, true), [100, 200, 0, 100]);
        assert_eq!(chosen(Balance::Weighted, &[0, 0], 4, true), [2, 2]);
        let (mut balancer, candidates) = (Balancer::default(), members(&[5, 1, 1]));
        let order: Vec<_> = std::iter::repeat_with(|| balancer.choose(Balance::Weighted, &candidates, 0))
            .take(7)
            .map(|member| member.expect("there are candidates").0)
            .collect();
        assert_eq!(order, [1, 1, 2, 1, 3, 1, 1], "as nginx has it");
    }

    #[test]
    fn one_candidate_or_none() {
        for balance in [Balance::RoundRobin, Balance::PowerOfTwo, Balance::Weighted, Balance::ByKey] {
            assert_eq!(chosen(balance, &[7], 3, false), [3]);
            assert_eq!(Balancer::default().choose(balance, &[], 1), None);
        }
    }
}
