//! Three replicas in one process, on real folders, with a network of function calls.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use perennial_core::id::{GroupId, LogIndex, MemberId, PartitionId, RecordSeq, Term};
use perennial_core::replication::{GroupStatus, Proposal, RestoreError, Role, RowOp, StateMachine};

use super::*;

const M1: MemberId = MemberId(1);
const M2: MemberId = MemberId(2);
const M3: MemberId = MemberId(3);
const ALL: [MemberId; 3] = [M1, M2, M3];
/// Never reached unless a test fails.
const DEADLINE: Duration = Duration::from_secs(60);

fn p(n: u32) -> GroupId {
    GroupId::of(PartitionId(n))
}

/// Counts records; every record is a row. A record `!` makes it panic.
#[derive(Default, serde::Serialize, serde::Deserialize)]
struct Counter {
    epoch: u64,
    next: u64,
    records: u64,
    /// Restored and not installed.
    #[serde(skip)]
    provisional: bool,
}

impl StateMachine for Counter {
    fn apply(&mut self, term: Term, _: LogIndex, entry: &[u8], rows: &mut Vec<RowOp>) {
        assert!(entry != b"!", "a rule of the machine is broken");
        assert!(!self.provisional, "a restored machine is installed before it is used");
        if self.epoch != term.0 {
            (self.epoch, self.next) = (term.0, 0);
        }
        self.next += 1;
        self.records += 1;
        rows.push(RowOp::Put { key: self.records.to_be_bytes().to_vec(), value: entry.to_vec() });
    }
    fn checkpoint(&self) -> Vec<u8> {
        postcard::to_stdvec(self).unwrap()
    }
    fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        *self = postcard::from_bytes(bytes).map_err(|_| RestoreError::Malformed)?;
        self.provisional = true;
        Ok(())
    }
    fn installed(&mut self) {
        self.provisional = false;
    }
    fn next_seq(&self, epoch: Term) -> RecordSeq {
        RecordSeq(if epoch.0 == self.epoch { self.next } else { 0 })
    }
}

type Event = (MemberId, GroupId, GroupEvent);

/// Network, events and the replicas themselves.
#[derive(Default)]
struct World {
    handles: Mutex<BTreeMap<MemberId, ReplicaHandle>>,
    cut: Mutex<BTreeSet<(MemberId, MemberId)>>,
    events: Mutex<Vec<Event>>,
    faults: Mutex<Vec<ReplicaFault>>,
    happened: Condvar,
}

struct End(MemberId, Arc<World>);

impl End {
    fn peer(&self, to: MemberId) -> Option<ReplicaHandle> {
        let cut = self.1.cut.lock().unwrap().contains(&(self.0, to));
        self.1.handles.lock().unwrap().get(&to).filter(|_| !cut).cloned()
    }
}

impl Outbound for End {
    fn raft(&self, to: MemberId, frame: Bytes) {
        if let Some(peer) = self.peer(to) {
            peer.deliver(self.0, &frame).unwrap();
        }
    }
    fn bulk(&self, to: MemberId, chunk: Bytes) -> Result<(), BulkRefused> {
        let peer = self.peer(to).ok_or(BulkRefused::NoLink)?;
        peer.deliver_chunk(self.0, &chunk).unwrap();
        Ok(())
    }
}

impl GroupSink for End {
    fn event(&self, group: GroupId, event: GroupEvent) {
        self.1.events.lock().unwrap().push((self.0, group, event));
        self.1.happened.notify_all();
    }
    fn failed(&self, fault: ReplicaFault) {
        self.1.faults.lock().unwrap().push(fault);
        let _events = self.1.events.lock().unwrap();
        self.1.happened.notify_all();
    }
}

struct Cluster {
    world: Arc<World>,
    dir: tempfile::TempDir,
    tune: fn(&mut ReplicaConfig),
}

fn block<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

fn config(group: GroupId, first: usize) -> GroupConfig {
    let mut preferred = ALL.to_vec();
    preferred.rotate_left(first);
    GroupConfig { group, voters: ALL.to_vec(), preferred }
}

impl Cluster {
    fn start(groups: u32, tune: fn(&mut ReplicaConfig)) -> Self {
        let cluster = Self { world: Arc::default(), dir: tempfile::tempdir().unwrap(), tune };
        for member in ALL {
            cluster.restart(member);
        }
        for member in ALL.into_iter().rev() {
            let groups = (0..groups).map(|n| config(p(n), n as usize % 3)).collect();
            block(cluster.handle(member).open_groups(groups)).unwrap();
        }
        cluster
    }

    fn path(&self, member: MemberId) -> std::path::PathBuf {
        self.dir.path().join(member.to_string())
    }

    fn restart(&self, member: MemberId) {
        self.try_restart(member).unwrap();
    }

    fn try_restart(&self, member: MemberId) -> Result<(), ReplicaFault> {
        let mut config = ReplicaConfig::new(member, 7, Some(self.path(member)));
        config.tick = Duration::from_millis(20);
        (self.tune)(&mut config);
        let end = Arc::new(End(member, self.world.clone()));
        let machines: MachineFactory = Box::new(|_| Box::<Counter>::default());
        let handle = Replica::spawn(config, machines, end.clone(), end)?;
        self.world.handles.lock().unwrap().insert(member, handle);
        Ok(())
    }

    fn handle(&self, member: MemberId) -> ReplicaHandle {
        self.world.handles.lock().unwrap()[&member].clone()
    }

    /// The process is gone: nothing is flushed on the way out.
    fn kill(&self, member: MemberId) {
        let handle = self.world.handles.lock().unwrap().remove(&member).unwrap();
        handle.die();
        self.world.events.lock().unwrap().retain(|(m, ..)| *m != member);
    }

    fn stop(&self, member: MemberId) {
        let handle = self.world.handles.lock().unwrap().remove(&member).unwrap();
        handle.end();
        self.world.events.lock().unwrap().retain(|(m, ..)| *m != member);
    }

    /// Waits for events until one gives an answer.
    fn until<T>(&self, mut answer: impl FnMut(&[Event]) -> Option<T>) -> T {
        let deadline = Instant::now() + DEADLINE;
        let mut events = self.world.events.lock().unwrap();
        loop {
            if let Some(answer) = answer(&events) {
                return answer;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "nothing of the kind happened: {events:?}");
            (events, _) = self.world.happened.wait_timeout(events, left).unwrap();
        }
    }

    /// Asks for the status of a group until it fits.
    fn status_until(
        &self,
        member: MemberId,
        group: GroupId,
        fits: impl Fn(&GroupStatus) -> bool,
    ) -> GroupStatus {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let status = block(self.handle(member).status()).into_iter().find(|s| s.group == group);
            match status {
                Some(status) if fits(&status) => return status,
                last => assert!(Instant::now() < deadline, "status stays {last:?}"),
            }
            let events = self.world.events.lock().unwrap();
            drop(self.world.happened.wait_timeout(events, Duration::from_millis(5)).unwrap());
        }
    }

    /// Who leads a group now, as told by events.
    fn leader(&self, group: GroupId) -> (MemberId, Term) {
        self.until(|events| {
            let mut open = BTreeMap::new();
            for (member, g, event) in events.iter().filter(|e| e.1 == group) {
                match event {
                    GroupEvent::Opened { term, .. } => drop(open.insert((*member, *g), *term)),
                    GroupEvent::Closed { .. } => drop(open.remove(&(*member, *g))),
                    _ => {}
                }
            }
            open.into_iter().map(|((m, _), term)| (term, m)).max().map(|(term, m)| (m, term))
        })
    }

    /// Waits until the preferred member leads, or anybody when that one is not running.
    fn settle(&self, group: GroupId) -> (MemberId, Term) {
        let home = ALL[group.partition().unwrap().0 as usize % 3];
        if self.world.handles.lock().unwrap().contains_key(&home) {
            (home, self.status_until(home, group, |s| s.open).term)
        } else {
            self.leader(group)
        }
    }

    fn propose(&self, member: MemberId, group: GroupId, epoch: Term, seq: u64, data: &[u8]) {
        let data = Bytes::copy_from_slice(data);
        let proposal = Proposal { group, epoch, first_seq: RecordSeq(seq), records: 1, data };
        self.handle(member).propose(proposal).unwrap();
    }

    fn until_applied(&self, member: MemberId, group: GroupId, epoch: Term, seq: u64) {
        self.until(|events| {
            let reached = |e: &Event| {
                e.0 == member
                    && e.1 == group
                    && matches!(&e.2, GroupEvent::Applied { term, next_seq, .. } if *term == epoch && next_seq.0 >= seq)
            };
            events.iter().any(reached).then_some(())
        });
    }

    /// Proposes records and waits until the leader has applied them: they are acknowledged.
    fn acknowledge(&self, group: GroupId, from: u64, to: u64) -> (MemberId, Term) {
        let (leader, epoch) = self.settle(group);
        for seq in from..to {
            self.propose(leader, group, epoch, seq, format!("record {seq} {}", "x".repeat(100)).as_bytes());
        }
        self.until_applied(leader, group, epoch, to);
        (leader, epoch)
    }

    fn rows(&self, member: MemberId, group: GroupId) -> Vec<Row> {
        self.handle(member).rows().scan(group, b"", None, usize::MAX).unwrap()
    }

    /// Waits until a member has this many rows.
    fn until_rows(&self, member: MemberId, group: GroupId, count: usize) {
        self.until(|_| (self.rows(member, group).len() >= count).then_some(()));
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let handles = std::mem::take(&mut *self.world.handles.lock().unwrap());
        handles.values().for_each(ReplicaHandle::die);
    }
}

fn small_log(config: &mut ReplicaConfig) {
    config.driver.log_keep_bytes = 1000;
    config.driver.log_tail_bytes_max = 10_000;
    config.checkpoint_every = Duration::from_millis(20);
    config.log_file_bytes = 64 * 1024;
    config.log_purge_bytes = 128 * 1024;
}

#[test]
fn records_reach_the_rows_of_every_replica() {
    let cluster = Cluster::start(6, |_| {});
    for n in 0..6 {
        let (leader, _) = cluster.acknowledge(p(n), 0, 20);
        assert_eq!(leader, ALL[n as usize % 3], "each group is led where it belongs");
    }
    for member in ALL {
        for n in 0..6 {
            cluster.until_rows(member, p(n), 20);
        }
    }
    assert_eq!(cluster.rows(M1, p(0)), cluster.rows(M2, p(0)));
    assert_eq!(cluster.rows(M1, p(5)), cluster.rows(M3, p(5)));
    let metrics = cluster.handle(M1).metrics();
    assert!(metrics.applied.load(Ordering::Relaxed) >= 120 && metrics.flushes.load(Ordering::Relaxed) > 0);
}

#[test]
fn a_read_is_confirmed_by_a_majority_only() {
    let cluster = Cluster::start(1, |_| {});
    let (leader, epoch) = cluster.settle(p(0));
    cluster.handle(leader).read_index(p(0), epoch, 42).unwrap();
    let confirmed = |ctx| move |e: &Event| e.2 == GroupEvent::ReadConfirmed { epoch, ctx };
    cluster.until(|events| events.iter().any(confirmed(42)).then_some(()));
    let others: BTreeSet<_> = ALL.into_iter().filter(|m| *m != leader).map(|m| (m, leader)).collect();
    *cluster.world.cut.lock().unwrap() = others;
    cluster.handle(leader).read_index(p(0), epoch, 43).unwrap();
    cluster.until(|events| events.iter().any(|e| e.2 == GroupEvent::Closed { term: epoch }).then_some(()));
    assert!(!cluster.world.events.lock().unwrap().iter().any(confirmed(43)));
}

#[test]
fn killed_nodes_come_back_with_everything_acknowledged() {
    let cluster = Cluster::start(3, |_| {});
    for n in 0..3 {
        cluster.acknowledge(p(n), 0, 50);
    }
    for member in ALL {
        cluster.kill(member);
    }
    for member in ALL {
        cluster.restart(member);
    }
    for n in 0..3 {
        cluster.acknowledge(p(n), 0, 5);
        for member in ALL {
            cluster.until_rows(member, p(n), 55);
        }
        assert_eq!(cluster.rows(M1, p(n)), cluster.rows(M2, p(n)));
        assert_eq!(cluster.rows(M1, p(n)), cluster.rows(M3, p(n)));
    }
}

#[test]
fn checkpoints_survive_kills_and_a_stop_leaves_nothing_to_replay() {
    let cluster = Cluster::start(1, small_log);
    let mut rows = 0;
    for round in 0..4 {
        let (leader, _) = cluster.acknowledge(p(0), 0, 60);
        rows += 60;
        cluster.status_until(leader, p(0), |s| s.log_bytes < 4000);
        for member in ALL {
            if round % 2 == 0 { cluster.kill(member) } else { cluster.stop(member) }
        }
        for member in ALL {
            cluster.restart(member);
        }
    }
    cluster.acknowledge(p(0), 0, 1);
    for member in ALL {
        cluster.until_rows(member, p(0), rows + 1);
    }
}

#[test]
fn the_log_on_disk_is_truncated_behind_checkpoints() {
    let cluster = Cluster::start(1, small_log);
    let (leader, _) = cluster.acknowledge(p(0), 0, 2000);
    cluster.status_until(leader, p(0), |s| s.first > LogIndex(1900));
    let log = cluster.path(leader).join("log");
    cluster.stop(leader);
    let first = log::DiskLog::open(&log, 64 * 1024, 128 * 1024).unwrap().purger().first_index(p(0));
    assert!(first.unwrap() > 1900);
    let bytes: u64 = std::fs::read_dir(&log).unwrap().map(|f| f.unwrap().metadata().unwrap().len()).sum();
    assert!(bytes < 300 * 1024, "old files are gone, {bytes} bytes are left of some 400 KB");
}

#[test]
fn a_replica_far_behind_is_given_a_snapshot() {
    let cluster = Cluster::start(2, small_log);
    cluster.leader(p(0));
    cluster.leader(p(1));
    cluster.kill(M3);
    cluster.handle(M1).member_down(M3);
    cluster.handle(M2).member_down(M3);
    for group in [p(0), p(1)] {
        let (leader, _) = cluster.acknowledge(group, 0, 600);
        cluster.status_until(leader, group, |s| s.first > LogIndex(400));
    }
    cluster.restart(M3);
    for group in [p(0), p(1)] {
        cluster.until_rows(M3, group, 600);
        cluster.status_until(M3, group, |s| !s.rows_lost && s.applied >= LogIndex(600));
        assert_eq!(cluster.rows(M3, group), cluster.rows(M1, group));
    }
    assert!(cluster.handle(M3).metrics().snapshots_installed.load(Ordering::Relaxed) >= 2);
    let (leader, epoch) = cluster.settle(p(0));
    let next = cluster.rows(leader, p(0)).len() as u64;
    cluster.propose(leader, p(0), epoch, next, b"after");
    cluster.until_rows(M3, p(0), 601);
    cluster.kill(M3);
    cluster.restart(M3);
    cluster.until_rows(M3, p(0), 601);
}

#[test]
fn a_snapshot_that_cannot_be_staged_is_sent_again() {
    let cluster = Cluster::start(1, |config| {
        small_log(config);
        config.tick = Duration::from_millis(5);
    });
    cluster.acknowledge(p(0), 0, 300);
    cluster.until_rows(M3, p(0), 300);
    cluster.status_until(M3, p(0), |s| s.first > LogIndex(200));
    cluster.stop(M3);
    std::fs::remove_dir_all(cluster.path(M3).join("rows")).unwrap();
    *cluster.world.cut.lock().unwrap() = [M1, M2].map(|m| (m, M3)).into();
    cluster.restart(M3);
    let incoming = cluster.path(M3).join("incoming");
    std::fs::remove_dir(&incoming).unwrap();
    cluster.world.cut.lock().unwrap().clear();
    let metrics = cluster.handle(M3).metrics();
    cluster.status_until(M3, p(0), |_| metrics.snapshots_unstaged.load(Ordering::Relaxed) > 0);
    std::fs::create_dir(&incoming).unwrap();
    cluster.status_until(M3, p(0), |s| !s.rows_lost && s.applied >= LogIndex(300));
    assert_eq!(cluster.rows(M3, p(0)).len(), 300);
    assert!(cluster.world.faults.lock().unwrap().is_empty());
}

#[test]
fn chunks_of_strangers_and_of_groups_elsewhere_are_not_staged() {
    let cluster = Cluster::start(1, |_| {});
    let handle = cluster.handle(M1);
    let rows = snapshot::tests::store(500, 2000);
    let staged = |from, group| {
        let chunks = snapshot::tests::chunks_of(group, &rows);
        handle.deliver_chunk(from, &chunks[0]).unwrap();
        // Answered behind the chunk.
        block(handle.status());
        std::fs::read_dir(cluster.path(M1).join("incoming")).unwrap().count()
    };
    assert_eq!(staged(M2, p(1)), 0);
    assert_eq!(staged(MemberId(9), p(0)), 0);
    assert_eq!(staged(M2, p(0)), 1, "a fellow replica's is");
}

#[test]
fn a_replica_that_lost_its_rows_gets_them_from_a_peer() {
    let cluster = Cluster::start(1, small_log);
    cluster.acknowledge(p(0), 0, 300);
    cluster.until_rows(M2, p(0), 300);
    cluster.status_until(M2, p(0), |s| s.first > LogIndex(200));
    cluster.stop(M2);
    std::fs::remove_dir_all(cluster.path(M2).join("rows")).unwrap();
    cluster.restart(M2);
    cluster.status_until(M2, p(0), |s| !s.rows_lost && s.applied >= LogIndex(300));
    assert_eq!(cluster.rows(M2, p(0)).len(), 300);
}

#[test]
fn the_death_of_a_leader_is_answered_at_once() {
    let cluster = Cluster::start(1, |config| config.driver.election_ticks = 3000);
    cluster.acknowledge(p(0), 0, 3);
    cluster.kill(M1);
    cluster.handle(M2).member_down(M1);
    cluster.handle(M3).member_down(M1);
    let (leader, _) = cluster.acknowledge(p(0), 0, 3);
    assert!(leader != M1, "an election time-out would take a minute");
    cluster.until_rows(M2, p(0), 6);
    cluster.until_rows(M3, p(0), 6);
}

#[test]
fn leadership_goes_back_to_the_preferred_replica() {
    let cluster = Cluster::start(1, |_| {});
    cluster.leader(p(0));
    cluster.kill(M1);
    cluster.handle(M2).member_down(M1);
    cluster.handle(M3).member_down(M1);
    cluster.acknowledge(p(0), 0, 3);
    cluster.restart(M1);
    cluster.until(|events| {
        events.iter().any(|e| e.0 == M1 && matches!(e.2, GroupEvent::Opened { .. })).then_some(())
    });
    cluster.status_until(M1, p(0), |s| s.role == Role::Leader && s.open);
}

#[test]
fn opened_hands_over_the_machine_as_it_stands() {
    let cluster = Cluster::start(1, |_| {});
    cluster.acknowledge(p(0), 0, 7);
    let (leader, epoch) = cluster.settle(p(0));
    let to = ALL.into_iter().find(|m| *m != leader).unwrap();
    cluster.handle(leader).transfer(p(0), to);
    let meta = cluster.until(|events| {
        events.iter().find_map(|(m, _, e)| match e {
            GroupEvent::Opened { term, meta, .. } if *m == to && *term > epoch => Some(meta.clone()),
            _ => None,
        })
    });
    let mut machine = Counter::default();
    machine.restore(&meta).unwrap();
    assert_eq!(machine.records, 7);
    cluster.propose(leader, p(0), epoch, 7, b"late");
    let refused = GroupEvent::Refused { epoch, first_seq: RecordSeq(7) };
    cluster.until(|events| events.iter().any(|e| e.0 == leader && e.2 == refused).then_some(()));
}

#[test]
fn garbage_is_refused_and_the_replica_lives_on() {
    let cluster = Cluster::start(1, |_| {});
    let handle = cluster.handle(M1);
    assert!(handle.deliver(M2, b"").is_err());
    assert!(handle.deliver(M2, &[1, 255, 255, 255, 255, 255]).is_err());
    assert!(handle.deliver(M2, &vec![1; 2 << 20]).is_err());
    assert!(handle.deliver_chunk(M2, b"\x01").is_err());
    assert!(handle.deliver_chunk(M2, b"\x07garbage").is_err());
    cluster.acknowledge(p(0), 0, 2);
}

#[test]
fn a_stopped_replica_gives_proposals_back() {
    let cluster = Cluster::start(1, |_| {});
    let (leader, epoch) = cluster.settle(p(0));
    let handle = cluster.handle(leader);
    cluster.stop(leader);
    let data = Bytes::from_static(b"x");
    let proposal = Proposal { group: p(0), epoch, first_seq: RecordSeq(0), records: 1, data };
    let back = handle.propose(proposal).unwrap_err();
    assert_eq!((back.reason, &back.proposal.data[..]), (Refusal::Stopped, &b"x"[..]));
    assert!(block(handle.open_groups(vec![config(p(1), 0)])).is_err());
    assert!(block(handle.status()).is_empty());
}

#[test]
fn a_broken_rule_stops_the_replica_loudly() {
    let cluster = Cluster::start(1, |_| {});
    let (leader, epoch) = cluster.settle(p(0));
    cluster.propose(leader, p(0), epoch, 0, b"!");
    let faults = || cluster.world.faults.lock().unwrap().pop();
    let fault = cluster.until(|_| faults());
    assert!(matches!(fault, ReplicaFault::Panicked(text) if text.contains("rule of the machine")));
}

#[test]
fn groups_keep_their_replicas_and_take_a_new_preference() {
    let cluster = Cluster::start(1, |_| {});
    cluster.leader(p(0));
    let other = GroupConfig { voters: vec![M1, M2], ..config(p(0), 0) };
    let refused = block(cluster.handle(M1).open_groups(vec![other]));
    assert!(matches!(refused, Err(ReplicaFault::OtherVoters(_))));
    for member in ALL {
        block(cluster.handle(member).open_groups(vec![config(p(0), 2)])).unwrap();
    }
    cluster.status_until(M3, p(0), |s| s.role == Role::Leader && s.open);
}

#[test]
fn a_replica_without_a_disk_works_alone() {
    let world: Arc<World> = Arc::default();
    let end = Arc::new(End(M1, world.clone()));
    let machines: MachineFactory = Box::new(|_| Box::<Counter>::default());
    let handle = Replica::spawn(ReplicaConfig::new(M1, 1, None), machines, end.clone(), end).unwrap();
    world.handles.lock().unwrap().insert(M1, handle);
    let cluster = Cluster { world, dir: tempfile::tempdir().unwrap(), tune: |_| {} };
    let alone = GroupConfig { group: p(0), voters: vec![M1], preferred: vec![M1] };
    block(cluster.handle(M1).open_groups(vec![alone])).unwrap();
    cluster.acknowledge(p(0), 0, 3);
    assert_eq!(cluster.rows(M1, p(0)).len(), 3);
    assert!(Path::new(&cluster.path(M1)).metadata().is_err());
}

/// Flips a byte in the midst of what was written to a file.
fn flip(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let written = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    bytes[written / 2] ^= 4;
    std::fs::write(path, bytes).unwrap();
}

/// The last file of a folder whose name ends like this.
fn last_file(dir: &Path, suffix: &str) -> std::path::PathBuf {
    let paths = std::fs::read_dir(dir).unwrap().map(|file| file.unwrap().path());
    paths.filter(|path| path.to_string_lossy().ends_with(suffix)).max().unwrap()
}

#[test]
fn a_replica_with_damaged_rows_gets_them_from_a_peer() {
    let cluster = Cluster::start(1, small_log);
    cluster.acknowledge(p(0), 0, 300);
    cluster.until_rows(M2, p(0), 300);
    cluster.status_until(M2, p(0), |s| s.first > LogIndex(200));
    cluster.kill(M2);
    flip(&last_file(&cluster.path(M2).join("rows"), ".jnl"));
    cluster.acknowledge(p(0), 300, 310);
    cluster.restart(M2);
    cluster.until_rows(M2, p(0), 310);
    cluster.status_until(M2, p(0), |s| !s.rows_lost && s.applied >= LogIndex(310));
    assert_eq!(cluster.rows(M2, p(0)), cluster.rows(M1, p(0)));
    assert!(cluster.path(M2).join("rows.damaged").is_dir());
    assert!(cluster.world.faults.lock().unwrap().is_empty());
}

#[test]
fn damaged_rows_that_are_nowhere_else_are_not_begun_anew() {
    let cluster = Cluster::start(0, small_log);
    let alone = GroupConfig { group: p(0), voters: vec![M1], preferred: vec![M1] };
    block(cluster.handle(M1).open_groups(vec![alone])).unwrap();
    cluster.acknowledge(p(0), 0, 300);
    cluster.status_until(M1, p(0), |s| s.first > LogIndex(200));
    cluster.stop(M1);
    flip(&last_file(&cluster.path(M1).join("rows"), ".jnl"));
    for _ in 0..2 {
        let refused = cluster.try_restart(M1);
        assert!(matches!(refused, Err(ReplicaFault::RowsLost(group)) if group == p(0)), "{refused:?}");
    }
    assert!(cluster.path(M1).join("rows.damaged").is_dir());
}

#[test]
fn a_replica_with_a_damaged_log_stays_down_and_the_others_go_on() {
    let cluster = Cluster::start(1, |_| {});
    cluster.acknowledge(p(0), 0, 30);
    cluster.until_rows(M2, p(0), 30);
    cluster.kill(M2);
    flip(&last_file(&cluster.path(M2).join("log"), ".raftlog"));
    let refused = cluster.try_restart(M2).unwrap_err().to_string();
    assert!(refused.contains("0001.raftlog is damaged") && refused.contains("must stay down"), "{refused}");
    cluster.acknowledge(p(0), 30, 60);
    cluster.until_rows(M3, p(0), 60);
}

/// What a leader that cannot flush is told to have failed with; the others have everything acknowledged.
#[cfg(unix)]
fn fails_to_flush(break_disk: fn(&Path)) -> ReplicaFault {
    let cluster = Cluster::start(1, small_log);
    let (leader, epoch) = cluster.acknowledge(p(0), 0, 10);
    break_disk(&cluster.path(leader));
    let faults = || cluster.world.faults.lock().unwrap().pop();
    let mut next = 10;
    let fault = cluster.until(|_| {
        let data = Bytes::from(vec![7; 2000]);
        let proposal = Proposal { group: p(0), epoch, first_seq: RecordSeq(next), records: 1, data };
        next += u64::from(cluster.handle(leader).propose(proposal).is_ok());
        faults()
    });
    let acknowledged = cluster.until(|events| {
        let told = |(member, _, event): &Event| match event {
            GroupEvent::Applied { term, next_seq, .. } if *member == leader && *term == epoch => {
                Some(next_seq.0)
            }
            _ => None,
        };
        events.iter().filter_map(told).max()
    });
    block(cluster.handle(leader).stop());
    cluster.world.handles.lock().unwrap().remove(&leader);
    cluster.world.events.lock().unwrap().retain(|(member, ..)| *member != leader);
    let others: Vec<_> = ALL.into_iter().filter(|member| *member != leader).collect();
    others.iter().for_each(|other| cluster.handle(*other).member_down(leader));
    let (heir, _) = cluster.leader(p(0));
    cluster.until_rows(heir, p(0), acknowledged as usize);
    fault
}

#[cfg(unix)]
#[test]
fn a_log_that_cannot_be_flushed_stops_the_replica_for_good() {
    let fault = fails_to_flush(|dir| {
        std::os::unix::fs::symlink("/dev/null", dir.join("log/0000000000000002.raftlog")).unwrap();
    });
    assert!(matches!(fault, ReplicaFault::Log(LogError::Flush(_))), "{fault:?}");
    assert!(fault.to_string().contains("could not be flushed"), "{fault}");
}

#[cfg(unix)]
#[test]
fn a_log_without_room_stops_the_replica_for_good() {
    let fault = fails_to_flush(|dir| {
        std::os::unix::fs::symlink("/dev/full", dir.join("log/0000000000000002.raftlog")).unwrap();
    });
    assert!(matches!(fault, ReplicaFault::Log(LogError::Engine(_))), "{fault:?}");
}

#[cfg(unix)]
#[test]
fn rows_that_cannot_be_flushed_stop_the_replica_for_good() {
    let fault = fails_to_flush(|dir| {
        std::os::unix::fs::symlink("/dev/null", dir.join("rows/broken.jnl")).unwrap();
    });
    assert!(matches!(fault, ReplicaFault::Rows(RowError::Store(_))), "{fault:?}");
}
