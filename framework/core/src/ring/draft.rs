//! A placement in the making: replica sets, then leaders, then ranks.
//!
//! Members and partitions are positions in lists here; numbers come back in at the end.

use std::collections::VecDeque;

type Holder = usize;
type Partition = usize;

/// Invariants: no set names a member twice; `load[m]` is the number of sets with `m` and never
/// above `load_max[m]`.
pub(super) struct Draft {
    /// Zone of each member.
    zones: Vec<usize>,
    /// For each partition, all members, most wanted first.
    preferences: Vec<Vec<Holder>>,
    load_max: Vec<usize>,
    load: Vec<usize>,
    sets: Vec<Vec<Holder>>,
    /// Chosen from the set of each partition; empty until [`Draft::choose_leaders`].
    leaders: Vec<Holder>,
}

impl Draft {
    pub(super) fn new(zones: Vec<usize>, preferences: Vec<Vec<Holder>>, load_max: Vec<usize>) -> Self {
        let (load, sets) = (vec![0; load_max.len()], vec![Vec::new(); preferences.len()]);
        Self { zones, preferences, load_max, load, sets, leaders: Vec::new() }
    }

    /// Gives every partition `replicas` members, the most wanted ones with room, from the zones
    /// it has fewest of.
    pub(super) fn choose_replicas(&mut self, replicas: usize) {
        for partition in 0..self.sets.len() {
            for _ in 0..replicas {
                let holder = self.next_replica(partition);
                self.sets[partition].push(holder);
                self.load[holder] += 1;
            }
        }
    }

    /// The most wanted member with room among those whose zone the partition has fewest of. Where
    /// room is only left in zones it has more of, an earlier partition may exchange one for it.
    fn next_replica(&mut self, partition: Partition) -> Holder {
        let crowd = |&m: &Holder| self.crowd(partition, m, m);
        let direct = self.absent(partition).filter(|&m| self.has_room(m)).min_by_key(crowd);
        let crowd_direct = direct.as_ref().map_or(usize::MAX, crowd);
        let less_crowded: Vec<Holder> = self.absent(partition).filter(|m| crowd(m) < crowd_direct).collect();

        // Among them every member is full. An exchange gives one of its earlier partitions a
        // member with room instead, if that crowds the two partitions less in sum.
        let mut best: Option<(usize, Partition, Holder, Holder)> = None;
        for full in less_crowded {
            for other in (0..partition).filter(|&other| self.sets[other].contains(&full)) {
                let with_room = self.absent(other).filter(|&m| self.has_room(m));
                let Some(spare) = with_room.min_by_key(|&m| self.crowd(other, full, m)) else { continue };
                let cost = crowd(&full) + self.crowding(other, full, spare);
                if cost < best.map_or(crowd_direct, |best| best.0) {
                    best = Some((cost, other, full, spare));
                }
            }
        }
        if let Some((_, other, full, spare)) = best {
            self.replace(other, full, spare);
            return full;
        }
        // Some member with room is missing in an earlier set, which then has a member that this
        // set lacks; were it not so, the bounds would add up to less than the replicas due.
        direct.expect("the load bounds leave room for every replica")
    }

    /// Chooses a leader for every partition so that each member leads exactly its quota. Starts
    /// with the most wanted replica, then hands leaderships on along replicas; only where that
    /// cannot even things out does a replica move.
    pub(super) fn choose_leaders(&mut self, quotas: &[usize]) {
        self.leaders = self.sets.iter().map(|set| set[0]).collect();
        let mut leads = vec![0; quotas.len()];
        for &leader in &self.leaders {
            leads[leader] += 1;
        }
        while let Some(over) = (0..leads.len()).find(|&m| leads[m] > quotas[m]) {
            let under: Vec<bool> = leads.iter().zip(quotas).map(|(leads, quota)| leads < quota).collect();
            let heir = self.hand_on(over, &under).unwrap_or_else(|| {
                let under = under.iter().position(|&under| under);
                let under = under.expect("the quotas sum up to the partitions");
                self.bring_in(over, under);
                under
            });
            leads[over] -= 1;
            leads[heir] += 1;
        }
    }

    /// Shortest way to pass one leadership from `over` to a member that is `under`, each step
    /// within one replica set. Returns who got it; `None` when there is no such way.
    fn hand_on(&mut self, over: Holder, under: &[bool]) -> Option<Holder> {
        let mut led = vec![Vec::new(); under.len()];
        for (partition, &leader) in self.leaders.iter().enumerate() {
            led[leader].push(partition);
        }
        let mut came_by: Vec<Option<Partition>> = vec![None; under.len()];
        let mut queue = VecDeque::from([over]);
        while let Some(from) = queue.pop_front() {
            for &partition in &led[from] {
                for &to in &self.sets[partition] {
                    if to == over || came_by[to].is_some() {
                        continue;
                    }
                    came_by[to] = Some(partition);
                    if under[to] {
                        let mut heir = to;
                        while heir != over {
                            let partition = came_by[heir].expect("every member of the way was come by");
                            heir = std::mem::replace(&mut self.leaders[partition], heir);
                        }
                        return Some(to);
                    }
                    queue.push_back(to);
                }
            }
        }
        None
    }

    /// Makes `under`, which shares no partition led by `over`, the leader of one of them: in
    /// place of a member there, which takes over another replica of `under` if that has no room.
    fn bring_in(&mut self, over: Holder, under: Holder) {
        let others: Vec<Option<Partition>> = if self.has_room(under) {
            vec![None]
        } else {
            let led_by_another = |&partition: &Partition| {
                self.leaders[partition] != under && self.sets[partition].contains(&under)
            };
            (0..self.sets.len()).filter(led_by_another).map(Some).collect()
        };
        let mut best = None;
        for partition in (0..self.sets.len()).filter(|&partition| self.leaders[partition] == over) {
            let rank = self.preferences[partition].iter().position(|&m| m == under);
            for &out in &self.sets[partition] {
                for &other in &others {
                    if other.is_some_and(|other| self.sets[other].contains(&out)) {
                        continue;
                    }
                    let crowding = self.crowding(partition, out, under)
                        + other.map_or(0, |other| self.crowding(other, under, out));
                    let found = (crowding, rank, partition, out, other);
                    best = Some(best.map_or(found, |best| found.min(best)));
                }
            }
        }
        let (_, _, partition, out, other) =
            best.expect("a member below its quota has room or a replica that another leads");
        self.replace(partition, out, under);
        if let Some(other) = other {
            self.replace(other, under, out);
        }
        self.leaders[partition] = under;
    }

    /// The sets in the order of rank: the leader, then who follows it least often so far (by
    /// weight), so that its partitions spread when it dies.
    pub(super) fn ranked(self, weights: &[u64]) -> Vec<Vec<Holder>> {
        const SCALE: u64 = 1 << 32;
        let mut follows = vec![vec![0_u64; weights.len()]; weights.len()];
        let rank = |(mut set, leader): (Vec<Holder>, Holder)| {
            let follows = &mut follows[leader];
            set.sort_by_key(|&m| (m != leader, (follows[m] + 1) * SCALE / weights[m]));
            if let Some(&second) = set.get(1) {
                follows[second] += 1;
            }
            set
        };
        self.sets.into_iter().zip(self.leaders).map(rank).collect()
    }

    /// Members not in the set of a partition, most wanted first.
    fn absent(&self, partition: Partition) -> impl Iterator<Item = Holder> + '_ {
        self.preferences[partition].iter().copied().filter(move |m| !self.sets[partition].contains(m))
    }

    /// How many members of a set, other than `without`, share the zone of `holder`.
    fn crowd(&self, partition: Partition, without: Holder, holder: Holder) -> usize {
        let zone = self.zones[holder];
        self.sets[partition].iter().filter(|&&m| m != without && self.zones[m] == zone).count()
    }

    /// How many more members share a zone when `in_` takes the place of `out`.
    fn crowding(&self, partition: Partition, out: Holder, in_: Holder) -> usize {
        self.crowd(partition, out, in_).saturating_sub(self.crowd(partition, out, out))
    }

    fn has_room(&self, holder: Holder) -> bool {
        self.load[holder] < self.load_max[holder]
    }

    fn replace(&mut self, partition: Partition, out: Holder, in_: Holder) {
        let at = self.sets[partition].iter().position(|&m| m == out);
        self.sets[partition][at.expect("only a member of the set is replaced")] = in_;
        self.load[out] -= 1;
        self.load[in_] += 1;
    }
}
