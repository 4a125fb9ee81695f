//! The faults: what each of them is, what it needs, and whom it hits.
//!
//! Owns their choice and begin. Never heals: [`super::Run`] does, all at once, whatever was begun. In: a
//! fault; out: its name in the report and the counters it hits.

use std::time::Duration;

use clap::ValueEnum;
use nix::sys::signal::Signal;
use perennial::core::hash::{PartitionCount, partition_of};
use perennial::core::id::{ActorId, PartitionId};
use perennial_runtime::counter::KIND;
use rand::Rng;
use rand::seq::IndexedRandom;

use super::disk::Disk;
use super::load::name_of;
use super::net::Net;
use super::nodes::Nodes;
use super::{NemesisError, Run};

/// Packets of a hundred that are lost.
const LOSS_PERCENT: u32 = 30;
/// Shortest delay of a packet, in milliseconds; the longest is three times as much. Both below and above
/// what followers wait for a leader.
const DELAY_MS: std::ops::Range<u64> = 5..200;
/// How far a clock is set, in seconds.
const CLOCK_S: std::ops::Range<i64> = 60..3600;
/// Writes a second of a slow disk; a flush needs three to six.
const DISK_WRITES: std::ops::Range<u32> = 10..80;

/// What is done to a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Fault {
    /// A node is killed with SIGKILL and started again at the heal.
    Kill,
    /// All nodes are killed at once.
    KillAll,
    /// A node is killed, and its disk loses what was not flushed.
    PowerCut,
    /// All nodes at once are killed, and their disks lose what was not flushed.
    PowerCutAll,
    /// A node is stopped with SIGSTOP and goes on at the heal.
    Pause,
    /// A node's link is down: neither nodes nor clients reach it.
    Unplug,
    /// A node and the other nodes do not reach each other; clients reach all.
    Isolate,
    /// What other nodes send does not reach a node.
    Deaf,
    /// What a node sends does not reach other nodes.
    Mute,
    /// What one node sends to one other is dropped.
    OneWay,
    /// A part of what comes to a node is lost.
    Loss,
    /// What a node sends goes through a narrow pipe.
    Slow,
    /// All packets of a node are late, and overtake each other.
    Delay,
    /// The wall clock of a node is set to another time.
    Clock,
    /// The disk of a node is full.
    FullDisk,
    /// The disk of a node does few writes a second.
    SlowDisk,
    /// The disk of a node does nothing; who writes or flushes waits.
    StuckDisk,
    /// Two of the others at once; there may be no majority then.
    Mixed,
}

impl Fault {
    /// Its name on the command line and in reports.
    #[must_use]
    pub fn name(self) -> String {
        self.to_possible_value().expect("no fault is hidden").get_name().to_owned()
    }

    /// Whether it can be made here, and if not, what is missing.
    pub(super) fn possible(self, nodes: &Nodes, net: &Net) -> Result<(), String> {
        match self {
            Self::PowerCut | Self::PowerCutAll => nodes.have_disks().and_then(|()| Disk::can_cut()),
            Self::FullDisk => nodes.have_disks(),
            Self::SlowDisk => nodes.have_disks().and_then(|()| Disk::can_slow()),
            Self::StuckDisk => nodes.have_disks().and_then(|()| Disk::can_freeze()),
            Self::Clock => nodes.have_clocks(),
            Self::Delay => net.can_delay(),
            _ => Ok(()),
        }
    }
}

/// A fault that began.
pub(super) struct Begun {
    /// What was done to whom.
    pub(super) name: String,
    /// The counters whose leader it hit.
    pub(super) hit: Vec<usize>,
}

impl Run {
    /// Two faults, the second begun while the first lasts. Tells whether a node may end by itself.
    pub(super) async fn mixed(&mut self) -> Result<(Begun, bool), NemesisError> {
        let single = Fault::value_variants().iter().copied().filter(|fault| *fault != Fault::Mixed);
        let single: Vec<_> = single.filter(|fault| fault.possible(&self.nodes, &self.net).is_ok()).collect();
        let pair: Vec<_> = single.choose_multiple(&mut self.random, 2).copied().collect();
        let mut both = Begun { name: String::new(), hit: Vec::new() };
        for fault in &pair {
            let begun = self.begin(*fault).await?;
            both.name += if both.name.is_empty() { "" } else { " + " };
            both.name += &begun.name;
            both.hit.extend(begun.hit);
            self.hold().await;
        }
        both.hit.sort_unstable();
        both.hit.dedup();
        Ok((both, pair.contains(&Fault::FullDisk)))
    }

    /// Begins a fault.
    pub(super) async fn begin(&mut self, fault: Fault) -> Result<Begun, NemesisError> {
        let count = self.options.nodes;
        let (victim, hit) = self.victim().await;
        let others: Vec<_> = (0..count).filter(|other| *other != victim).collect();
        let n = victim + 1;
        let mut all = false;
        let name = match fault {
            Fault::Kill => {
                self.nodes.kill9(victim).await?;
                format!("kill n{n}")
            }
            Fault::KillAll => {
                all = true;
                self.kill_all().await?;
                // Nothing can be learned from a cluster that is not there.
                self.nodes.heal()?;
                "kill all, start all".into()
            }
            Fault::PowerCut => {
                self.nodes.kill9(victim).await?;
                self.nodes.disk(victim).cut()?;
                format!("power cut of n{n}")
            }
            Fault::PowerCutAll => {
                all = true;
                self.kill_all().await?;
                for node in 0..count {
                    self.nodes.disk(node).cut()?;
                }
                self.nodes.heal()?;
                "power cut of all, start all".into()
            }
            Fault::Pause => {
                self.nodes.signal(victim, Signal::SIGSTOP);
                format!("pause n{n}")
            }
            Fault::Unplug => {
                self.net.unplug(victim)?;
                format!("unplug n{n}")
            }
            Fault::Isolate => {
                for other in others {
                    self.net.cut(victim, other)?;
                    self.net.cut(other, victim)?;
                }
                format!("isolate n{n} from nodes")
            }
            Fault::Deaf => {
                for other in others {
                    self.net.cut(other, victim)?;
                }
                format!("n{n} hears no node")
            }
            Fault::Mute => {
                for other in others {
                    self.net.cut(victim, other)?;
                }
                format!("no node hears n{n}")
            }
            Fault::OneWay => {
                let other = *others.choose(&mut self.random).expect("there are other nodes");
                self.net.cut(victim, other)?;
                format!("n{} does not hear n{n}", other + 1)
            }
            Fault::Loss => {
                self.net.lose(victim, LOSS_PERCENT)?;
                format!("n{n} loses {LOSS_PERCENT} %")
            }
            Fault::Slow => {
                self.net.slow(victim)?;
                format!("slow link of n{n}")
            }
            Fault::Delay => {
                let least = self.random.random_range(DELAY_MS);
                let most = 3 * least;
                self.net.delay(victim, Duration::from_millis(least)..Duration::from_millis(most))?;
                format!("packets of n{n} {least} to {most} ms late")
            }
            Fault::Clock => {
                let ahead = self.random.random_bool(0.5);
                let seconds = self.random.random_range(CLOCK_S);
                self.nodes.set_clock(victim, if ahead { seconds } else { -seconds })?;
                format!("clock of n{n} {seconds} s {}", if ahead { "fast" } else { "slow" })
            }
            Fault::FullDisk => {
                self.nodes.disk(victim).fill()?;
                format!("full disk of n{n}")
            }
            Fault::SlowDisk => {
                let writes = self.random.random_range(DISK_WRITES);
                self.nodes.disk(victim).slow(writes)?;
                format!("disk of n{n} does {writes} writes/s")
            }
            Fault::StuckDisk => {
                self.nodes.disk(victim).freeze()?;
                format!("stuck disk of n{n}")
            }
            Fault::Mixed => unreachable!("a mix is made of others"),
        };
        Ok(Begun { name, hit: if all { (0..self.options.keys).collect() } else { hit } })
    }

    /// Kills all at once, then waits until they are gone.
    async fn kill_all(&mut self) -> Result<(), NemesisError> {
        for node in 0..self.options.nodes {
            self.nodes.signal(node, Signal::SIGKILL);
        }
        for node in 0..self.options.nodes {
            self.nodes.kill9(node).await?;
        }
        Ok(())
    }

    /// Somebody who leads, if possible, and the counters that he leads: nobody misses a follower.
    async fn victim(&mut self) -> (usize, Vec<usize>) {
        if let Ok(status) = self.status_client.status().await {
            let leaders = self.nodes.leaders(&status);
            if let Some(victim) = leaders.choose(&mut self.random) {
                let led = self.nodes.led(*victim, &status);
                let hit = (0..self.options.keys).filter(|key| led.contains(&self.partition(*key)));
                return (*victim, hit.collect());
            }
        }
        (self.random.random_range(0..self.options.nodes), Vec::new())
    }

    /// Where a counter is.
    fn partition(&self, key: usize) -> PartitionId {
        let partitions = PartitionCount::try_from(self.options.partitions).expect("the nodes took it too");
        partition_of(&ActorId::new(KIND, &name_of(key)).expect("a short key is one"), partitions)
    }
}
