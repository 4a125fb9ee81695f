//! What goes wrong, and when: all of it follows from the seed.
//!
//! Owns the plan: faults come at random times, several may be there at once, each heals after a while. Only
//! one machine of a run loses what it had promised to keep; everything else may hit any number of them.

use std::collections::BTreeMap;

use perennial::core::id::NodeId;
use perennial::replica::DiskFault;
use rand::rngs::StdRng;
use rand::seq::IteratorRandom;
use rand::{Rng, SeedableRng};

use super::world::{Life, World, lock};
use super::{CLIENTS, client_id};

/// Mean time between faults, in milliseconds.
const PERIOD_MS: u32 = 350;
/// Longest time until a fault heals, in milliseconds.
const LENGTH_MS_MAX: u64 = 4000;
/// Seeds whose rest by four is in it have leaders that lapse: half of those with scarce memory, and of the others.
const LAPSING: std::ops::Range<u64> = 2..4;
/// Mean time between lapses of leaders, in the seeds that have some, in milliseconds.
const LAPSE_PERIOD_MS: u32 = 1500;
/// How long a leader is cut off that is to lapse, in milliseconds: until another one leads.
const LAPSE_MS: std::ops::Range<u64> = 700..1500;
/// How long a proposal of a slow host is on its way, in milliseconds: its machine may lead again by then.
const HOST_MS: (u64, u64) = (1000, 4000);
/// Seeds whose rest by eight is this have leaders that are split off with some who read.
const SPLITTING: u64 = 5;
/// Mean time between such splits, in the seeds that have some, in milliseconds.
const SPLIT_PERIOD_MS: u32 = 1000;
/// How long a split lasts, in milliseconds: others lead and have taken writes well before.
const SPLIT_MS: std::ops::Range<u64> = 3000..5000;
/// How long a leader that is split off has no more writes before the other nodes are out of its reach, in
/// milliseconds: one that waits for its commit would hold up the reads behind it.
const QUIET_MS: u64 = 300;
/// How long it takes the hosts of such a leader to hear that it leads no more, in milliseconds.
const NEWS_MS: (u64, u64) = (2000, 5000);
/// How often nodes are looked at that may have ended by themselves, in milliseconds.
const LOOK_MS: u64 = 20;

/// What heals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Heal {
    Start(usize),
    Resume(usize),
    Ways(usize, usize),
    Network,
    Disk(usize),
    Pace(usize),
    Hosts(usize),
    /// Not an end: the second half of a split.
    Apart(usize, u64),
    Split(usize),
}

/// The plan of a run.
pub struct Faults {
    random: StdRng,
    /// When leaders lapse; drawn apart, so that the other seeds are what they were.
    lapses: Option<StdRng>,
    /// When leaders are split off, and until when one is.
    splits: Option<(StdRng, u64)>,
    heals: BTreeMap<(u64, u64), Heal>,
    number: u64,
    /// The only machine that loses rows in this run: two of three are more than replication survives.
    forgetful: Option<usize>,
    /// The machine whose node refuses to start on what its disk has made of its log.
    pub retired: Option<usize>,
    /// Faults so far, by kind.
    pub counts: BTreeMap<&'static str, u64>,
}

impl Faults {
    /// The plan of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            random: StdRng::seed_from_u64(seed ^ 0xfa17),
            lapses: LAPSING.contains(&(seed % 4)).then(|| StdRng::seed_from_u64(seed ^ 0x1a95e)),
            splits: (seed % 8 == SPLITTING).then(|| (StdRng::seed_from_u64(seed ^ 0x59117), 0)),
            heals: BTreeMap::new(),
            number: 0,
            forgetful: None,
            retired: None,
            counts: BTreeMap::new(),
        }
    }

    /// Whether leaders are split off with some who read.
    #[must_use]
    pub fn splits(&self) -> bool {
        self.splits.is_some()
    }

    fn later(&mut self, world: &World, heal: Heal) {
        let length = self.random.random_range(1..=LENGTH_MS_MAX);
        self.after(world, length, heal);
    }

    fn after(&mut self, world: &World, length: u64, heal: Heal) {
        self.number += 1;
        self.heals.insert((world.now + length, self.number), heal);
    }

    /// Lets happen what is due now. In the safety phase new faults come.
    pub fn act(&mut self, world: &mut World, safety: bool) {
        while let Some(first) = self.heals.first_entry().filter(|first| first.key().0 <= world.now) {
            let heal = first.remove();
            self.heal(world, heal);
        }
        let split = self.splits.as_ref().is_some_and(|(_, until)| *until > world.now);
        if safety && !split && self.random.random_ratio(1, PERIOD_MS) {
            self.hit(world);
        }
        if safety {
            self.lapse(world);
            self.split(world);
        }
        if world.now.is_multiple_of(LOOK_MS) {
            for at in 0..world.hosts.len() {
                let Some(why) = world.ended(at) else { continue };
                world.say(&format!("{} has ended: {why}", world.hosts[at].id));
                let host = &world.hosts[at];
                if !host.excused && !host.damaged {
                    world.found(Err(format!("{} has ended on a sound disk: {why}", host.id)));
                }
                world.kill(at);
                world.mend_disk(at);
                if world.hosts[at].damaged {
                    world.say(&format!("{} stays down", world.hosts[at].id));
                    self.retired = Some(at);
                } else {
                    self.later(world, Heal::Start(at));
                }
            }
        }
    }

    /// Lives on, without new faults, until something is done, for at most so long; says whether it is.
    pub fn live_until(&mut self, world: &mut World, within_ms: u64, done: impl Fn() -> bool) -> bool {
        let until = world.now + within_ms;
        while !done() && world.now < until {
            self.act(world, false);
            world.step();
        }
        done()
    }

    /// Ends all faults; machines that are off start.
    pub fn heal_all(&mut self, world: &mut World) {
        world.say("everything heals");
        for heal in std::mem::take(&mut self.heals).into_values() {
            if !matches!(heal, Heal::Apart(..)) {
                self.heal(world, heal);
            }
        }
        world.finish_upgrade();
        for at in 0..world.hosts.len() {
            world.jump(at, 0);
            world.hosts[at].rate = 1000;
            if matches!(world.hosts[at].life, Life::Down) {
                self.heal(world, Heal::Start(at));
            }
        }
    }

    fn heal(&mut self, world: &mut World, heal: Heal) {
        match heal {
            Heal::Start(at) => {
                if matches!(world.hosts[at].life, Life::Down) && self.retired != Some(at) {
                    world.say(&format!("{} starts", world.hosts[at].id));
                    let before = world.hosts[at].newer;
                    world.start(at);
                    if world.hosts[at].newer && !before {
                        *self.counts.entry("newer build").or_default() += 1;
                        world.say(&format!("{} runs the newer build", world.hosts[at].id));
                    }
                }
            }
            Heal::Resume(at) => {
                if let Life::Up(running) = &mut world.hosts[at].life {
                    running.paused = false;
                }
            }
            Heal::Ways(a, b) => world.hub.heal(&world.hosts[a].id, &world.hosts[b].id),
            Heal::Network => world.weather().network_ms = (0, 2),
            Heal::Disk(at) => world.mend_disk(at),
            Heal::Pace(at) => world.weather().disk_ms[at] = (0, 2),
            Heal::Hosts(at) => world.weather().host_ms[at] = (0, 0),
            Heal::Apart(at, length) => {
                world.weather().news_ms[at] = NEWS_MS;
                self.set_apart(world, at, length);
            }
            Heal::Split(at) => {
                world.weather().news_ms[at] = (0, 0);
                for writer in writers() {
                    world.hub.heal(&world.hosts[at].id, &writer);
                }
            }
        }
    }

    /// A machine, and another one.
    fn two(&mut self, world: &World) -> (usize, usize) {
        let count = world.hosts.len();
        let a = self.random.random_range(0..count);
        (a, (a + self.random.random_range(1..count)) % count)
    }

    /// Lets nothing through between a machine and the others for so long.
    fn set_apart(&mut self, world: &World, at: usize, length: u64) {
        for other in (0..world.hosts.len()).filter(|other| *other != at) {
            world.hub.freeze(&world.hosts[at].id, &world.hosts[other].id);
            self.after(world, length, Heal::Ways(at, other));
        }
    }

    /// Slows down the hosts of a machine that leads, and mostly cuts it off until another one does: what they
    /// propose now may arrive when it leads again, in another epoch.
    fn lapse(&mut self, world: &mut World) {
        let Some(random) = &mut self.lapses else { return };
        if !random.random_ratio(1, LAPSE_PERIOD_MS) {
            return;
        }
        let Some(at) = a_leader(world, random) else { return };
        let length = random.random_range(LAPSE_MS);
        let fault = if random.random_bool(0.25) { "slow hosts" } else { "lapse" };
        world.weather().host_ms[at] = HOST_MS;
        self.after(world, length, Heal::Hosts(at));
        if fault == "lapse" {
            self.set_apart(world, at, length);
        }
        *self.counts.entry(fault).or_default() += 1;
        world.say(&format!("{fault}: {}", world.hosts[at].id));
    }

    /// Takes a machine that leads away from all who write, then from the other machines, and lets its hosts hear
    /// late of what follows: whoever reads there asks one that no longer leads. Nothing else happens meanwhile.
    fn split(&mut self, world: &mut World) {
        let Some((random, until)) = &mut self.splits else { return };
        if *until > world.now || !random.random_ratio(1, SPLIT_PERIOD_MS) {
            return;
        }
        let Some(at) = a_leader(world, random) else { return };
        let length = random.random_range(SPLIT_MS);
        *until = world.now + QUIET_MS + length;
        for writer in writers() {
            world.hub.freeze(&world.hosts[at].id, &writer);
        }
        self.after(world, QUIET_MS, Heal::Apart(at, length));
        self.after(world, QUIET_MS + length, Heal::Split(at));
        *self.counts.entry("split").or_default() += 1;
        world.say(&format!("split: {}", world.hosts[at].id));
    }

    fn hit(&mut self, world: &mut World) {
        let (at, other) = self.two(world);
        let up = matches!(&world.hosts[at].life, Life::Up(_));
        let (name, of) = (world.hosts[at].id.clone(), world.hosts[other].id.clone());
        let fault = match self.random.random_range(0..22) {
            0..3 if up => {
                world.kill(at);
                if self.random.random_bool(0.2) && *self.forgetful.get_or_insert(at) == at {
                    self.later(world, Heal::Start(at));
                    if self.random.random_bool(0.5) {
                        world.hosts[at].disk.lose_rows();
                        "rows lost"
                    } else {
                        let flipped = world.hosts[at].disk.flip_a_bit().expect("the simulated disk works");
                        world.hosts[at].damaged |= flipped.is_some();
                        "bit flipped"
                    }
                } else {
                    self.later(world, Heal::Start(at));
                    "kill"
                }
            }
            3..6 if up => {
                world.cut_power(at).expect("the simulated disk works");
                self.later(world, Heal::Start(at));
                "power cut"
            }
            6 => {
                for at in 0..world.hosts.len() {
                    if matches!(&world.hosts[at].life, Life::Up(_)) {
                        world.cut_power(at).expect("the simulated disk works");
                        self.later(world, Heal::Start(at));
                    }
                }
                "power cut of all"
            }
            7..9 if up => {
                if let Life::Up(running) = &mut world.hosts[at].life {
                    running.paused = true;
                }
                self.later(world, Heal::Resume(at));
                "pause"
            }
            9..11 => {
                world.hub.freeze_one_way(&name, &of);
                self.later(world, Heal::Ways(at, other));
                "one way"
            }
            11..13 => {
                world.hub.cut(&name, &of);
                self.later(world, Heal::Ways(at, other));
                "cut"
            }
            13..15 => {
                for other in (0..world.hosts.len()).filter(|other| *other != at) {
                    let of = world.hosts[other].id.clone();
                    if self.random.random_bool(0.5) {
                        world.hub.freeze(&name, &of);
                    } else {
                        world.hub.cut(&name, &of);
                    }
                    self.later(world, Heal::Ways(at, other));
                }
                "isolate"
            }
            15 => {
                world.hub.reset(&name, &of);
                "reset"
            }
            16 => {
                let most = self.random.random_range(20..400);
                world.weather().network_ms = (0, most);
                self.later(world, Heal::Network);
                "delay"
            }
            17 => {
                let most = self.random.random_range(20..600);
                world.weather().disk_ms[at] = (0, most);
                self.later(world, Heal::Pace(at));
                "slow disk"
            }
            18 => {
                let skew = self.random.random_range(-60_000..60_000);
                world.jump(at, skew);
                "clock jump"
            }
            19 => {
                world.hosts[at].rate = self.random.random_range(800..1250);
                "clock drift"
            }
            20 if up => {
                world.hosts[at].disk.set_fault(DiskFault::Full);
                world.hosts[at].excused = true;
                self.later(world, Heal::Disk(at));
                "disk full"
            }
            21 if up => {
                world.hosts[at].disk.set_fault(DiskFault::Flush);
                world.hosts[at].excused = true;
                self.later(world, Heal::Disk(at));
                "flush fails"
            }
            _ => return,
        };
        *self.counts.entry(fault).or_default() += 1;
        world.say(&match fault {
            "one way" | "cut" | "reset" => format!("{fault}: {name}, {of}"),
            "delay" | "power cut of all" => fault.to_owned(),
            _ => format!("{fault}: {name}"),
        });
    }
}

/// A machine that leads something.
fn a_leader(world: &World, random: &mut StdRng) -> Option<usize> {
    let leader = lock(&world.watching).leaders.values().choose(random).cloned()?;
    world.hosts.iter().position(|host| host.id.as_str() == leader)
}

/// Machines of those who write.
fn writers() -> impl Iterator<Item = NodeId> {
    let others = ["operator", "sender"].map(|name| NodeId::new(name).expect("it is a node id"));
    (0..CLIENTS).map(client_id).chain(others)
}
