//! All Raft groups of a node as one step machine.
//!
//! Owns the groups, the set of those that have something to do, and what concerns a node as a
//! whole: which members are alive, one hand-over at a time, one snapshot to a peer at a time. Never
//! waits, draws random numbers or reads a clock. In go messages, ticks, proposals and hints; out
//! come [`Effects`], in two phases around the flush:
//!
//! ```text
//!  inputs ─▶ ready ─▶ send_early ─▶ flush(persist) ─▶ persisted ─▶ send ─▶ apply ─▶ applied ─▶ events
//! ```

use std::collections::{BTreeMap, BTreeSet};

use slog::{Discard, Logger, o};

use super::effects::{Effects, EpochEvent, GroupStatus, Proposal, Truncate};
use super::group::{Fences, Group};
use super::message::{Dropped, MessageKind, RaftMessage};
use super::storage::GroupSeed;
use crate::id::{GroupId, LogIndex, MemberId, Term};

/// Uncommitted bytes of one group above which proposals are refused. Hosts stay well below.
pub const UNCOMMITTED_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Ticks without a message after which a member counts as silent.
const SILENT_TICKS: u64 = 8;
/// Ticks after its last chunk in which a snapshot must have been installed, else it is sent again.
const SNAPSHOT_TICKS_MAX: u64 = 200;

/// Settings of the driver; all times in ticks.
#[derive(Debug, Clone)]
pub struct DriverConfig {
    /// This node's member number.
    pub me: MemberId,
    /// Seed of the election jitter.
    pub seed: u64,
    /// Ticks between heartbeats.
    pub heartbeat_ticks: usize,
    /// Least ticks of silence before an election; the most is twice as much.
    pub election_ticks: usize,
    /// Ticks a survivor waits for each survivor that is preferred to it, after a member's death.
    pub takeover_ticks_per_rank: u32,
    /// Ticks the preferred leader must have been well before leadership goes back to it.
    pub home_ticks: u32,
    /// Ticks after which it goes back even while proposals are in flight.
    pub home_forced_ticks: u32,
    /// Bytes of applied entries kept for followers that are a little behind, per group.
    pub log_keep_bytes: usize,
    /// Bytes of log above which a slow follower gets a snapshot instead, per group.
    pub log_tail_bytes_max: usize,
    /// Fences taken away: a control of tests.
    #[cfg(feature = "controls")]
    pub without: &'static [super::Fence],
}

impl DriverConfig {
    /// The defaults, for ticks of 50 ms.
    #[must_use]
    pub fn new(me: MemberId, seed: u64) -> Self {
        Self {
            me,
            seed,
            heartbeat_ticks: 2,
            election_ticks: 10,
            takeover_ticks_per_rank: 3,
            home_ticks: 20,
            home_forced_ticks: 120,
            log_keep_bytes: 256 * 1024,
            log_tail_bytes_max: 4 * 1024 * 1024,
            #[cfg(feature = "controls")]
            without: &[],
        }
    }
}

/// Why a group could not be opened; nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It is open already.
    #[error("group {0} is open already")]
    Open(GroupId),
    /// This node is not among its replicas.
    #[error("this node is not a replica of group {0}; follow the placement table")]
    NotVoter(GroupId),
    /// The rows are ahead of the log: the log was lost.
    #[error(
        "group {group} has rows up to {applied} but its log ends at {last}: the log has lost what was flushed, \
         a vote or an acknowledged turn may be lost, so this node must stay down; check the disk, and see \
         \"Damaged disk\" in the operations guide"
    )]
    LogLost {
        /// Which group.
        group: GroupId,
        /// Applied index of the rows.
        applied: LogIndex,
        /// Last index of the log.
        last: LogIndex,
    },
    /// The log has a gap.
    #[error(
        "the log of group {group} has a gap before {index}: a vote or an acknowledged turn may be lost, so this \
         node must stay down; check the disk, and see \"Damaged disk\" in the operations guide"
    )]
    Gap {
        /// Which group.
        group: GroupId,
        /// The first entry behind the gap.
        index: LogIndex,
    },
    /// raft-rs refused it.
    #[error("raft refuses to open group {group}")]
    Raft {
        /// Which group.
        group: GroupId,
        /// Why.
        #[source]
        source: raft::Error,
    },
}

/// Who has been heard from lately. An opinion, used for haste and for thrift only.
#[derive(Debug, Default)]
pub(crate) struct Liveness {
    me: u64,
    now: u64,
    heard: BTreeMap<MemberId, u64>,
    down: BTreeSet<MemberId>,
}

impl Liveness {
    pub(crate) fn is_down(&self, member: MemberId) -> bool {
        self.down.contains(&member)
    }

    pub(crate) fn is_live(&self, member: MemberId) -> bool {
        member.0 == self.me
            || (!self.is_down(member)
                && self.heard.get(&member).is_some_and(|at| self.now.saturating_sub(*at) <= SILENT_TICKS))
    }

    fn hear(&mut self, member: MemberId) {
        self.heard.insert(member, self.now);
        self.down.remove(&member);
    }
}

/// A snapshot on its way to a peer.
#[derive(Debug, Clone, Copy)]
struct Sending {
    group: GroupId,
    /// When its last chunk was handed over; `None` while streaming.
    sent_at: Option<u64>,
}

/// All groups of a node.
///
/// Invariants: `ready` is followed by `persisted` before any other input; every `Committed` is
/// answered by `applied`; a group that awaits an installation takes no input.
pub struct Driver {
    config: DriverConfig,
    logger: Logger,
    groups: BTreeMap<GroupId, Group>,
    live: Liveness,
    /// Groups that may have something ready, in the order of their inputs.
    dirty: Vec<GroupId>,
    /// Groups between `ready` and `persisted`.
    flushing: Vec<GroupId>,
    /// Groups whose epoch is poisoned and not yet left.
    renewing: Vec<GroupId>,
    /// Snapshots under way; one for each peer.
    sending: BTreeMap<MemberId, Sending>,
    /// Snapshots to be reported as failed once raft-rs may be called.
    failed: Vec<(GroupId, MemberId)>,
    /// The hand-over this node has begun by itself.
    handover: Option<GroupId>,
    events: Vec<(GroupId, EpochEvent)>,
    pub(crate) fences: Fences,
}

impl Driver {
    /// A driver without groups.
    #[must_use]
    pub fn new(config: DriverConfig) -> Self {
        Self {
            live: Liveness { me: config.me.0, ..Liveness::default() },
            logger: Logger::root(Discard, o!()),
            groups: BTreeMap::new(),
            dirty: Vec::new(),
            flushing: Vec::new(),
            renewing: Vec::new(),
            sending: BTreeMap::new(),
            failed: Vec::new(),
            handover: None,
            events: Vec::new(),
            #[cfg(feature = "controls")]
            fences: Fences { without: config.without },
            #[cfg(not(feature = "controls"))]
            fences: Fences::default(),
            config,
        }
    }

    /// Opens a group from what the disk holds of it.
    ///
    /// # Errors
    /// [`OpenError`]; the driver is unchanged.
    pub fn open_group(&mut self, seed: GroupSeed) -> Result<(), OpenError> {
        let group = seed.group;
        if self.groups.contains_key(&group) {
            return Err(OpenError::Open(group));
        }
        if !seed.voters.contains(&self.config.me) {
            return Err(OpenError::NotVoter(group));
        }
        let mut last = seed.truncated.0.0;
        for entry in &seed.entries {
            if entry.index != last + 1 {
                return Err(OpenError::Gap { group, index: LogIndex(entry.index) });
            }
            last = entry.index;
        }
        if seed.applied.0 > last {
            return Err(OpenError::LogLost { group, applied: seed.applied, last: LogIndex(last) });
        }
        let mut opened = Group::open(seed, &self.config, &self.logger)
            .map_err(|source| OpenError::Raft { group, source })?;
        opened.start(&mut self.events);
        self.groups.insert(group, opened);
        self.mark(group);
        Ok(())
    }

    /// Whether a group is open here.
    #[must_use]
    pub fn hosts(&self, group: GroupId) -> bool {
        self.groups.contains_key(&group)
    }

    /// Changes the order in which the replicas of a group should lead.
    pub fn set_preferred(&mut self, group: GroupId, preferred: Vec<MemberId>) {
        if let Some(group) = self.groups.get_mut(&group) {
            group.set_preferred(preferred);
        }
    }

    /// Takes a message of a peer.
    ///
    /// # Errors
    /// [`Dropped`] when it was not taken; nothing but the sender's liveness has changed.
    pub fn step(&mut self, from: MemberId, group: GroupId, message: RaftMessage) -> Result<(), Dropped> {
        self.step_any(from, group, message, false)
    }

    /// Takes the message of a snapshot whose rows have all been received.
    ///
    /// # Errors
    /// As [`Driver::step`].
    pub fn step_snapshot(
        &mut self,
        from: MemberId,
        group: GroupId,
        message: RaftMessage,
    ) -> Result<(), Dropped> {
        self.step_any(from, group, message, true)
    }

    fn step_any(
        &mut self,
        from: MemberId,
        id: GroupId,
        message: RaftMessage,
        with_rows: bool,
    ) -> Result<(), Dropped> {
        let kind = message.kind;
        let group = self.groups.get_mut(&id).ok_or(Dropped::NoGroup)?;
        group.step(from, message, with_rows, &mut self.events)?;
        self.live.hear(from);
        let done = kind == MessageKind::AppendResponse
            && self.sending.get(&from).is_some_and(|s| s.group == id && s.sent_at.is_some())
            && !group.sends_snapshot_to(from);
        if done {
            self.sending.remove(&from);
        }
        self.mark(id);
        Ok(())
    }

    /// One tick of time for every group.
    pub fn tick(&mut self) {
        self.live.now += 1;
        let mut due_home = None;
        for (id, group) in &mut self.groups {
            if group.tick(&self.live, &mut self.events) && !group.queued {
                group.queued = true;
                self.dirty.push(*id);
            }
            if due_home.is_none() {
                due_home = group.due_home(&self.config).map(|home| (*id, home));
            }
        }
        self.expire_snapshots();
        if self.handover.is_some_and(|id| !self.groups.get(&id).is_some_and(Group::transferring)) {
            self.handover = None;
        }
        if let Some((id, home)) = due_home {
            self.go_home(id, home);
        }
    }

    fn go_home(&mut self, group: GroupId, home: MemberId) {
        if self.handover.is_none() && self.transfer(group, home) {
            self.handover = Some(group);
        }
    }

    /// Proposes records. A refusal is an event, never silent: [`EpochEvent::Refused`] once for an
    /// epoch that is poisoned by it, and for every proposal of an epoch that is over.
    pub fn propose(&mut self, proposal: Proposal) {
        let id = proposal.group;
        let Some(group) = self.groups.get_mut(&id) else {
            let (epoch, first_seq) = (proposal.epoch, proposal.first_seq);
            self.events.push((id, EpochEvent::Refused { epoch, first_seq }));
            return;
        };
        if group.propose(proposal, self.fences, &mut self.events) {
            self.renewing.push(id);
        }
        self.mark(id);
    }

    /// Asks for a confirmation that this node still leads in `epoch`; it comes as
    /// [`EpochEvent::ReadConfirmed`] with the same `ctx`, or not at all when the epoch is over.
    pub fn read_index(&mut self, group: GroupId, epoch: Term, ctx: u64) {
        if let Some(found) = self.groups.get_mut(&group) {
            found.read_index(epoch, ctx);
            self.mark(group);
        }
    }

    /// Asks the leaders of all groups how far their logs are committed; the answers come as
    /// [`EpochEvent::CommitIs`] with the same `round`, from those that have a majority.
    pub fn ask_commit(&mut self, round: u64) {
        for (id, group) in &mut self.groups {
            group.ask_commit(round);
            if !group.queued {
                group.queued = true;
                self.dirty.push(*id);
            }
        }
    }

    /// Whether leadership of a group stays where it is instead of going back to the preferred member.
    pub fn set_stays(&mut self, group: GroupId, stays: bool) {
        if let Some(group) = self.groups.get_mut(&group) {
            group.set_stays(stays);
        }
    }

    /// Hands a led group over to a member heard from lately that needs no snapshot. Returns whether that was begun;
    /// raft-rs gives up after an election time-out.
    pub fn transfer(&mut self, group: GroupId, to: MemberId) -> bool {
        if !self.live.is_live(to) {
            return false;
        }
        let Some(found) = self.groups.get_mut(&group) else { return false };
        let begun = found.transfer(to, &mut self.events);
        self.mark(group);
        begun
    }

    /// A hint that a member's process is gone; taken back by the next message from it.
    pub fn member_down(&mut self, member: MemberId) {
        self.live.down.insert(member);
        let ticks = self.config.takeover_ticks_per_rank;
        for (id, group) in &mut self.groups {
            group.unreachable(member);
            if group.member_down(&self.live, ticks, &mut self.events) && !group.queued {
                group.queued = true;
                self.dirty.push(*id);
            }
        }
    }

    /// Messages to a member were lost.
    pub fn unreachable(&mut self, member: MemberId) {
        self.groups.values_mut().for_each(|group| group.unreachable(member));
    }

    /// All chunks of a snapshot were handed over, or that failed.
    pub fn snapshot_sent(&mut self, group: GroupId, to: MemberId, ok: bool) {
        let Some(sending) = self.sending.get_mut(&to).filter(|s| s.group == group) else { return };
        if ok {
            sending.sent_at = Some(self.live.now);
        } else {
            self.fail_snapshot(group, to);
        }
    }

    fn fail_snapshot(&mut self, group: GroupId, to: MemberId) {
        self.sending.remove(&to);
        if let Some(found) = self.groups.get_mut(&group) {
            found.snapshot_failed(to);
            self.mark(group);
        }
    }

    fn expire_snapshots(&mut self) {
        let now = self.live.now;
        let over: Vec<_> = self
            .sending
            .iter()
            .filter(|(to, s)| {
                let done = !self.groups.get(&s.group).is_some_and(|g| g.sends_snapshot_to(**to));
                s.sent_at.is_some_and(|at| done || now - at > SNAPSHOT_TICKS_MAX)
            })
            .map(|(to, s)| (s.group, *to))
            .collect();
        for (group, to) in over {
            self.fail_snapshot(group, to);
        }
    }

    fn mark(&mut self, id: GroupId) {
        if let Some(group) = self.groups.get_mut(&id).filter(|g| !g.queued) {
            group.queued = true;
            self.dirty.push(id);
        }
    }

    /// Whether some group may have something to do.
    #[must_use]
    pub fn has_work(&self) -> bool {
        !self.dirty.is_empty() || !self.events.is_empty() || !self.failed.is_empty()
    }

    /// First phase: fills `send_early`, `persist`, `install` and part of `snapshots` and `events`.
    pub fn ready(&mut self, fx: &mut Effects) {
        assert!(self.flushing.is_empty(), "each ready is followed by persisted");
        for id in std::mem::take(&mut self.dirty) {
            let Some(group) = self.groups.get_mut(&id) else { continue };
            group.queued = false;
            if group.ready(fx) {
                self.flushing.push(id);
            }
        }
    }

    /// Second phase, once everything in `persist` is durable: fills `send`, `snapshots`, `apply`
    /// and `events`. Groups that await an installation stay at rest.
    pub fn persisted(&mut self, fx: &mut Effects) {
        for id in std::mem::take(&mut self.flushing) {
            let Some(group) = self.groups.get_mut(&id) else { continue };
            if !group.awaits_install() && group.persisted(fx, &mut self.events) {
                self.mark(id);
            }
        }
        self.finish(fx);
    }

    /// The rows of a snapshot are installed and durable.
    pub fn installed(&mut self, group: GroupId, fx: &mut Effects) {
        if let Some(found) = self.groups.get_mut(&group) {
            found.persisted(fx, &mut self.events);
            self.mark(group);
        }
        self.finish(fx);
    }

    fn finish(&mut self, fx: &mut Effects) {
        self.admit_snapshots(fx);
        let mut later = Vec::new();
        for id in std::mem::take(&mut self.renewing) {
            let Some(group) = self.groups.get_mut(&id) else { continue };
            if group.renew(&mut self.events) {
                self.mark(id);
            } else {
                later.push(id);
            }
        }
        self.renewing = later;
        for (group, to) in std::mem::take(&mut self.failed) {
            if let Some(found) = self.groups.get_mut(&group) {
                found.snapshot_failed(to);
                self.mark(group);
            }
        }
        fx.events.append(&mut self.events);
    }

    /// Lets one snapshot for each peer pass; the others are tried again with a later heartbeat.
    fn admit_snapshots(&mut self, fx: &mut Effects) {
        fx.snapshots.retain(|snapshot| {
            let free = self.sending.get(&snapshot.to).is_none_or(|s| s.group == snapshot.group);
            if free {
                self.sending.insert(snapshot.to, Sending { group: snapshot.group, sent_at: None });
                if let Some(group) = self.groups.get_mut(&snapshot.group) {
                    group.snapshot_admitted(snapshot.to);
                }
            } else {
                self.failed.push((snapshot.group, snapshot.to));
            }
            free
        });
    }

    /// The entries handed out for a group have been applied up to `index`.
    pub fn applied(&mut self, group: GroupId, index: LogIndex, fx: &mut Effects) {
        let Some(found) = self.groups.get_mut(&group) else { return };
        found.applied(index, &mut self.events);
        if self.handover.is_none()
            && let Some(home) = found.due_home(&self.config)
        {
            self.go_home(group, home);
        }
        fx.events.append(&mut self.events);
    }

    /// Rows up to `upto` are durable: forgets what the group no longer needs of its log. With
    /// `force`, everything up to there.
    #[must_use = "the log on disk must forget the same entries"]
    pub fn truncate(&mut self, group: GroupId, upto: LogIndex, force: bool) -> Option<Truncate> {
        self.groups.get_mut(&group)?.truncate(upto, force, &self.config, &self.live)
    }

    /// State of every group.
    #[must_use]
    pub fn status(&self) -> Vec<GroupStatus> {
        self.groups.values().map(|g| g.status(&self.live)).collect()
    }
}
