//! Several drivers in one thread: what tests of this folder run on.
//!
//! Each node has a disk that keeps what `persist` said and what was checkpointed; the network is a
//! queue with cuts. Nothing is random but the election jitter, which has a seed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use super::*;
use crate::id::{GroupId, LogIndex, MemberId, RecordSeq, Term};

/// A machine that notes which records it has seen, and every gap between them.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Counter {
    pub(super) epoch: u64,
    pub(super) next: u64,
    pub(super) records: u64,
    /// (epoch written in the entry, expected, found)
    pub(super) gaps: Vec<(u64, u64, u64)>,
    /// Entries whose epoch is not the term they were committed in.
    pub(super) strays: u64,
    /// (epoch, first record) of every entry, in order.
    pub(super) log: Vec<(u64, u64)>,
}

pub(super) fn entry(epoch: Term, first: RecordSeq, records: u32, size: usize) -> Bytes {
    let mut data = Vec::with_capacity(20 + size);
    data.extend(epoch.0.to_le_bytes());
    data.extend(first.0.to_le_bytes());
    data.extend(records.to_le_bytes());
    data.resize(20 + size, 0);
    data.into()
}

impl StateMachine for Counter {
    fn apply(&mut self, term: Term, _: LogIndex, entry: &[u8], rows: &mut Vec<RowOp>) {
        let word = |at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().unwrap());
        let (epoch, first) = (word(0), word(8));
        let records = u32::from_le_bytes(entry[16..20].try_into().unwrap());
        if epoch != self.epoch {
            (self.epoch, self.next) = (epoch, 0);
        }
        if first != self.next {
            self.gaps.push((epoch, self.next, first));
        }
        self.strays += u64::from(epoch != term.0);
        self.log.push((epoch, first));
        self.next = first + u64::from(records);
        self.records += u64::from(records);
        rows.push(RowOp::Put { key: b"records".to_vec(), value: self.records.to_le_bytes().to_vec() });
    }
    fn checkpoint(&self) -> Vec<u8> {
        postcard::to_stdvec(self).unwrap()
    }
    fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        *self = postcard::from_bytes(bytes).map_err(|_| RestoreError::Malformed)?;
        Ok(())
    }
    fn next_seq(&self, epoch: Term) -> RecordSeq {
        RecordSeq(if epoch.0 == self.epoch { self.next } else { 0 })
    }
}

/// What survives the death of a node, of one group.
#[derive(Debug, Clone)]
struct Disk {
    seed: GroupSeed,
    checkpoint: Vec<u8>,
}

pub(super) struct Node {
    pub(super) driver: Driver,
    disk: BTreeMap<GroupId, Disk>,
    pub(super) machines: BTreeMap<GroupId, Counter>,
    pub(super) events: Vec<(GroupId, EpochEvent)>,
    arrived: BTreeMap<(GroupId, LogIndex), Vec<u8>>,
    alive: bool,
}

#[derive(Clone)]
struct Flying {
    from: MemberId,
    to: MemberId,
    group: GroupId,
    message: RaftMessage,
    rows: Option<Vec<u8>>,
}

pub(super) struct Net {
    nodes: BTreeMap<MemberId, Node>,
    queue: VecDeque<Flying>,
    /// Every message that was ever sent, if they are to be sent again.
    history: Option<Vec<Flying>>,
    cut: BTreeSet<(MemberId, MemberId)>,
    seed: u64,
    tune: fn(&mut DriverConfig),
    pub(super) trace: Vec<String>,
}

pub(super) const M1: MemberId = MemberId(1);
pub(super) const M2: MemberId = MemberId(2);
pub(super) const M3: MemberId = MemberId(3);
pub(super) const G: GroupId = GroupId::SYSTEM;

impl Net {
    /// Members 1 to 3 with one group, preferred in this order.
    pub(super) fn three(seed: u64) -> Self {
        Self::with(&[1, 2, 3], seed, |_| {})
    }

    pub(super) fn with(members: &[u64], seed: u64, tune: fn(&mut DriverConfig)) -> Self {
        Self::with_groups(members, &[G], seed, tune)
    }

    pub(super) fn with_groups(
        members: &[u64],
        groups: &[GroupId],
        seed: u64,
        tune: fn(&mut DriverConfig),
    ) -> Self {
        let voters: Vec<_> = members.iter().map(|m| MemberId(*m)).collect();
        let mut net = Self {
            nodes: BTreeMap::new(),
            queue: VecDeque::new(),
            history: None,
            cut: BTreeSet::new(),
            seed,
            tune,
            trace: Vec::new(),
        };
        for member in &voters {
            let disk = groups.iter().map(|group| {
                let seed = GroupSeed::empty(*group, voters.clone(), voters.clone());
                (*group, Disk { seed, checkpoint: Counter::default().checkpoint() })
            });
            let disk = disk.collect();
            net.nodes.insert(
                *member,
                Node {
                    driver: Driver::new(DriverConfig::new(*member, net.seed)),
                    disk,
                    machines: BTreeMap::new(),
                    events: Vec::new(),
                    arrived: BTreeMap::new(),
                    alive: false,
                },
            );
            net.restart(*member);
        }
        net.pump();
        net
    }

    pub(super) fn node(&mut self, member: MemberId) -> &mut Node {
        self.nodes.get_mut(&member).unwrap()
    }

    /// The process dies; unflushed rows are lost, the flushed log is not.
    pub(super) fn kill(&mut self, member: MemberId) {
        self.node(member).alive = false;
        self.queue.retain(|f| f.to != member && f.from != member);
    }

    pub(super) fn restart(&mut self, member: MemberId) {
        let mut config = DriverConfig::new(member, self.seed);
        (self.tune)(&mut config);
        let node = self.node(member);
        node.driver = Driver::new(config);
        node.machines.clear();
        for (group, disk) in &node.disk {
            let mut machine = Counter::default();
            machine.restore(&disk.checkpoint).unwrap();
            node.machines.insert(*group, machine);
            node.driver.open_group(disk.seed.clone()).unwrap();
        }
        node.events.clear();
        node.alive = true;
    }

    /// The process dies and starts again; the rows of its group are lost, its log is not.
    pub(super) fn restart_without_rows(&mut self, member: MemberId) {
        self.kill(member);
        let disk = self.node(member).disk.get_mut(&G).unwrap();
        disk.seed.rows_lost = true;
        disk.seed.applied = LogIndex(0);
        disk.checkpoint = Counter::default().checkpoint();
        self.restart(member);
    }

    pub(super) fn isolate(&mut self, member: MemberId) {
        for other in self.nodes.keys().copied().filter(|m| *m != member) {
            self.cut.extend([(member, other), (other, member)]);
        }
        self.pump();
    }

    pub(super) fn cut_one_way(&mut self, from: MemberId, to: MemberId) {
        self.cut.insert((from, to));
    }

    pub(super) fn heal(&mut self) {
        self.cut.clear();
    }

    /// Keeps every message from now on, for [`Net::send_again`].
    pub(super) fn keep_history(&mut self) {
        self.history = Some(Vec::new());
    }

    /// Puts an old message before others that are on their way.
    pub(super) fn send_again(&mut self, choice: usize, before: usize) {
        let Some(history) = self.history.as_ref().filter(|h| !h.is_empty()) else { return };
        let again = history[choice % history.len()].clone();
        self.queue.insert(before % (self.queue.len() + 1), again);
    }

    /// Lets one message overtake those before it.
    pub(super) fn overtake(&mut self, choice: usize) {
        if let Some(at) = choice.checked_rem(self.queue.len())
            && let Some(first) = self.queue.remove(at)
        {
            self.queue.push_front(first);
        }
    }

    fn send(&mut self, from: MemberId, out: Vec<Outgoing>, rows: Option<Vec<u8>>) {
        for Outgoing { to, group, message } in out {
            self.trace
                .push(format!("{from}->{to} {group} {:?} {} {}", message.kind, message.term, message.index));
            if !self.cut.contains(&(from, to)) && self.nodes[&to].alive {
                let flying = Flying { from, to, group, message, rows: rows.clone() };
                if let Some(history) = &mut self.history {
                    history.push(flying.clone());
                }
                self.queue.push_back(flying);
            }
        }
    }

    /// One loop of one node, as the shell does it.
    pub(super) fn run(&mut self, member: MemberId) {
        let mut fx = Effects::default();
        let node = self.node(member);
        node.driver.ready(&mut fx);
        let early = std::mem::take(&mut fx.send_early);
        for p in std::mem::take(&mut fx.persist) {
            let seed = &mut node.disk.get_mut(&p.group).unwrap().seed;
            seed.hard_state = p.hard_state;
            if let Some(reset) = p.reset {
                (seed.truncated, seed.entries) = (reset, Vec::new());
                (seed.rows_lost, seed.applied) = (true, LogIndex(0));
            }
            if let Some(first) = p.entries.first() {
                seed.entries.retain(|e| e.index < first.index);
            }
            seed.entries.extend(p.entries);
        }
        node.driver.persisted(&mut fx);
        for install in std::mem::take(&mut fx.install) {
            let bytes = node.arrived.remove(&(install.group, install.index)).unwrap();
            node.machines.get_mut(&install.group).unwrap().restore(&bytes).unwrap();
            let disk = node.disk.get_mut(&install.group).unwrap();
            (disk.checkpoint, disk.seed.applied, disk.seed.rows_lost) = (bytes, install.index, false);
            node.driver.installed(install.group, &mut fx);
        }
        let late = std::mem::take(&mut fx.send);
        let snapshots = std::mem::take(&mut fx.snapshots);
        let rows: Vec<_> = snapshots.iter().map(|s| node.machines[&s.group].checkpoint()).collect();
        for snapshot in &snapshots {
            node.driver.snapshot_sent(snapshot.group, snapshot.to, true);
        }
        for Committed { group, entries } in std::mem::take(&mut fx.apply) {
            let machine = node.machines.get_mut(&group).unwrap();
            for e in entries.iter().filter(|e| !e.data.is_empty()) {
                machine.apply(Term(e.term), LogIndex(e.index), &e.data, &mut Vec::new());
            }
            node.driver.applied(group, LogIndex(entries.last().unwrap().index), &mut fx);
        }
        node.events.append(&mut fx.events);
        assert!(fx.is_empty(), "everything was carried out");
        self.send(member, early, None);
        self.send(member, late, None);
        for (snapshot, rows) in snapshots.into_iter().zip(rows) {
            self.send(member, vec![snapshot], Some(rows));
        }
    }

    fn members(&self) -> Vec<MemberId> {
        self.nodes.iter().filter(|(_, n)| n.alive).map(|(m, _)| *m).collect()
    }

    /// Runs until nothing moves without time passing.
    pub(super) fn pump(&mut self) {
        while self.single_step() {}
    }

    /// Lets every node do what it can and delivers one message; false when there was none.
    pub(super) fn single_step(&mut self) -> bool {
        for member in self.members() {
            while self.node(member).driver.has_work() {
                self.run(member);
            }
        }
        let Some(f) = self.queue.pop_front() else { return false };
        if !self.cut.contains(&(f.from, f.to)) && self.nodes[&f.to].alive {
            self.deliver(f);
        }
        true
    }

    fn deliver(&mut self, f: Flying) {
        let node = self.nodes.get_mut(&f.to).unwrap();
        let _ = match f.rows {
            Some(rows) => {
                let meta = f.message.snapshot.as_ref().unwrap();
                node.arrived.insert((f.group, meta.index), rows);
                node.driver.step_snapshot(f.from, f.group, f.message)
            }
            None => node.driver.step(f.from, f.group, f.message),
        };
    }

    /// One tick of one node, without a message delivered.
    pub(super) fn tick_alone(&mut self, member: MemberId) {
        self.node(member).driver.tick();
        self.run(member);
    }

    pub(super) fn is_alive(&self, member: MemberId) -> bool {
        self.nodes[&member].alive
    }

    pub(super) fn tick(&mut self, ticks: usize) {
        for _ in 0..ticks {
            for member in self.members() {
                self.node(member).driver.tick();
                self.run(member);
            }
            self.pump();
        }
    }

    pub(super) fn status(&self, member: MemberId) -> GroupStatus {
        self.nodes[&member].driver.status().remove(0)
    }

    /// The one member whose epoch is open, in the highest term.
    pub(super) fn leader(&self) -> Option<(MemberId, Term)> {
        let open = self.members().into_iter().map(|m| (m, self.status(m))).filter(|(_, s)| s.open);
        open.max_by_key(|(_, s)| s.term).map(|(m, s)| (m, s.term))
    }

    /// Lets time pass until somebody's epoch is open.
    pub(super) fn elect(&mut self) -> (MemberId, Term) {
        for _ in 0..200 {
            if let Some(found) = self.leader() {
                return found;
            }
            self.tick(1);
        }
        panic!("no leader after 200 ticks");
    }

    pub(super) fn propose(&mut self, member: MemberId, epoch: Term, first: u64, records: u32) {
        self.propose_sized(member, epoch, first, records, 0);
    }

    pub(super) fn propose_sized(
        &mut self,
        member: MemberId,
        epoch: Term,
        first: u64,
        records: u32,
        size: usize,
    ) {
        let first_seq = RecordSeq(first);
        let data = entry(epoch, first_seq, records, size);
        self.node(member).driver.propose(Proposal { group: G, epoch, first_seq, records, data });
    }

    pub(super) fn records(&self, member: MemberId) -> u64 {
        self.nodes[&member].machines[&G].records
    }

    pub(super) fn gaps(&self, member: MemberId) -> &[(u64, u64, u64)] {
        &self.nodes[&member].machines[&G].gaps
    }

    /// Rows are flushed and the log is forgotten as far as it may be.
    pub(super) fn checkpoint(&mut self, member: MemberId) -> Option<Truncate> {
        self.checkpoint_of(member, G)
    }

    pub(super) fn checkpoint_of(&mut self, member: MemberId, group: GroupId) -> Option<Truncate> {
        let node = self.node(member);
        let applied = node.driver.status().iter().find(|s| s.group == group).unwrap().applied;
        let disk = node.disk.get_mut(&group).unwrap();
        disk.checkpoint = node.machines[&group].checkpoint();
        disk.seed.applied = applied;
        let truncate = node.driver.truncate(group, applied, false)?;
        disk.seed.truncated = (truncate.index, truncate.term);
        disk.seed.entries.retain(|e| e.index > truncate.index.0);
        Some(truncate)
    }

    pub(super) fn events(&mut self, member: MemberId) -> Vec<EpochEvent> {
        std::mem::take(&mut self.node(member).events).into_iter().map(|(_, e)| e).collect()
    }
}
