//! One Raft group inside the driver.
//!
//! Owns the raft-rs node of the group, its epoch and the fences that guard it. Never looks at
//! other groups. In go messages, ticks and proposals; out come the group's part of the effects.
//! Fences: a proposal is taken only from the current, opened epoch and in sequence, and one refusal
//! poisons the epoch, because raft-rs alone accepts record n+2 after it has dropped n+1.

use bytes::Bytes;
use raft::eraftpb::{Message, MessageType};
use raft::{
    Config, INVALID_ID, INVALID_INDEX, Progress, ProgressState, RawNode, ReadOnlyOption, Ready,
    SnapshotStatus, StateRole,
};
use slog::Logger;

use super::Entry;
use super::driver::{DriverConfig, Liveness, UNCOMMITTED_BYTES_MAX};
use super::effects::{
    Committed, Effects, EpochEvent, FollowerStatus, GroupStatus, Install, Outgoing, Persist, Proposal, Role,
    Truncate,
};
use super::message::{Dropped, ENTRY_BYTES_MAX, EntryKind, MessageKind, RaftMessage};
use super::storage::{GroupSeed, HardState, LogTail};
use crate::id::{GroupId, LogIndex, MemberId, RecordSeq, Term};

/// Largest run of entries in one append message, in bytes.
const APPEND_BYTES_MAX: u64 = 512 * 1024;
/// Appends on their way to one follower without an answer.
const APPENDS_IN_FLIGHT_MAX: usize = 256;
/// Entries handed out to be applied at once, in bytes.
const APPLY_BYTES_MAX: u64 = 1024 * 1024;
/// Bytes of a read context: epoch and the host's number, or who asks and the number of the round.
const READ_CONTEXT_BYTES: usize = 16;
/// Bit in front of a member in a context; no epoch counts that far.
const ROUND: u64 = 1 << 63;
/// Highest term and index taken from others. Counting never gets there; a forged one that did would leave
/// no next one.
const POSITION_MAX: u64 = 1 << 62;
/// Entries a follower may be behind when a hand-over is forced.
const TRANSFER_LAG_MAX: u64 = 256;

/// Election time-outs that a replica without rows waits, so that any other leads before it.
const PATIENCE: usize = 4;
/// Election time-outs that a replica without rows leads, to hand its log over.
const HAND_OVER: u32 = 2;

/// The guards of an epoch; tests take one away to show what it prevents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(feature = "controls"), expect(unreachable_pub, reason = "tests name fences"))]
pub enum Fence {
    /// Proposals of another epoch are refused.
    Epoch,
    /// Proposals out of sequence are refused.
    Sequence,
    /// After a refusal the epoch takes nothing more.
    Poison,
    /// Nothing is taken before an entry of the own term has been applied.
    Opened,
}

/// Which fences stand: all of them, outside tests.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Fences {
    #[cfg(any(test, feature = "controls"))]
    pub(crate) without: &'static [Fence],
}

impl Fences {
    #[cfg(any(test, feature = "controls"))]
    fn stands(self, fence: Fence) -> bool {
        !self.without.contains(&fence)
    }
    #[cfg(not(any(test, feature = "controls")))]
    fn stands(self, _: Fence) -> bool {
        true
    }
}

/// Our leadership of the group in one term.
#[derive(Debug)]
struct Epoch {
    term: Term,
    /// An entry of the term has been applied here.
    opened: bool,
    /// A proposal was refused; a fresh term is being sought.
    poisoned: bool,
    /// Sequence number the next proposal must begin with.
    next_seq: RecordSeq,
}

/// A Ready whose state is being made durable.
struct Pending {
    ready: Ready,
    late: Vec<Message>,
    committed: Vec<Entry>,
    snapshot: Option<(u64, u64)>,
}

/// SplitMix64: a small generator whose whole state is its seed.
struct Jitter(u64);

impl Jitter {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % limit as u64) as usize
    }
}

/// Whether a message is about a round of this member: one context in one entry, and nothing else.
fn is_round(m: &RaftMessage, of: MemberId) -> bool {
    let [entry] = &m.entries[..] else { return false };
    let asker = entry.data.first_chunk::<8>().map(|asker| u64::from_be_bytes(*asker));
    entry.data.len() == READ_CONTEXT_BYTES && asker == Some(ROUND | of.0) && entry.kind == EntryKind::Normal
}

/// Whether a follower receives a snapshot or has asked for one; its log may match all the same.
fn needs_snapshot(follower: &Progress) -> bool {
    follower.state == ProgressState::Snapshot || follower.pending_request_snapshot != INVALID_INDEX
}

/// One group. While `pending` is set, nothing but `persisted` may touch the raft-rs node.
pub(crate) struct Group {
    id: GroupId,
    me: MemberId,
    raw: RawNode<LogTail>,
    preferred: Vec<MemberId>,
    epoch: Option<Epoch>,
    announced: (Option<MemberId>, Term),
    seen: (u64, StateRole, bool),
    election_ticks: usize,
    timeout: usize,
    jitter: Jitter,
    pending: Option<Pending>,
    takeover_ticks: Option<u32>,
    calm_ticks: u32,
    rowless_ticks: u32,
    /// Leadership stays where it is, whoever is preferred.
    stays: bool,
    pub(crate) queued: bool,
}

impl Group {
    pub(crate) fn open(seed: GroupSeed, config: &DriverConfig, logger: &Logger) -> raft::Result<Self> {
        let (id, me, preferred) = (seed.group, config.me, seed.preferred.clone());
        let tail = LogTail::new(seed);
        let raft_config = Config {
            id: me.0,
            election_tick: config.election_ticks,
            max_election_tick: (PATIENCE + 1) * config.election_ticks,
            heartbeat_tick: config.heartbeat_ticks,
            applied: tail.applied().0,
            max_size_per_msg: APPEND_BYTES_MAX,
            max_inflight_msgs: APPENDS_IN_FLIGHT_MAX,
            check_quorum: true,
            pre_vote: true,
            read_only_option: ReadOnlyOption::Safe,
            skip_bcast_commit: true,
            max_uncommitted_size: UNCOMMITTED_BYTES_MAX as u64,
            max_committed_size_per_ready: APPLY_BYTES_MAX,
            ..Config::default()
        };
        let raw = RawNode::new(&raft_config, tail, logger)?;
        let mut group = Self {
            id,
            me,
            announced: (None, Term(raw.raft.term)),
            seen: (u64::MAX, StateRole::Follower, false),
            raw,
            preferred,
            epoch: None,
            election_ticks: config.election_ticks,
            timeout: 0,
            jitter: Jitter(config.seed ^ (me.0 << 32) ^ id.raw().wrapping_mul(0x2545_f491_4f6c_dd1d)),
            pending: None,
            takeover_ticks: None,
            calm_ticks: 0,
            rowless_ticks: 0,
            stays: false,
            queued: false,
        };
        group.settle_timeout();
        Ok(group)
    }

    /// The preferred leader does not wait for a time-out; a leader that is alive refuses it.
    pub(crate) fn start(&mut self, events: &mut Vec<(GroupId, EpochEvent)>) {
        if self.preferred.first() == Some(&self.me) && !self.tail().rows_lost() {
            let _ = self.raw.campaign();
            self.observe(events);
        }
    }

    pub(crate) fn set_preferred(&mut self, preferred: Vec<MemberId>) {
        self.preferred = preferred;
    }

    pub(crate) fn leads(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    fn leader(&self) -> Option<MemberId> {
        (self.raw.raft.leader_id != INVALID_ID).then_some(MemberId(self.raw.raft.leader_id))
    }

    fn tail(&self) -> &LogTail {
        self.raw.store()
    }

    fn at_rest(&self) -> bool {
        self.pending.is_some()
    }

    // ---- inputs ----------------------------------------------------------------------------

    /// Takes a message of a peer. A snapshot is taken only when its rows are at hand.
    pub(crate) fn step(
        &mut self,
        from: MemberId,
        message: RaftMessage,
        with_rows: bool,
        events: &mut Vec<(GroupId, EpochEvent)>,
    ) -> Result<(), Dropped> {
        if self.at_rest() {
            return Err(Dropped::Installing);
        }
        if from == self.me || !self.tail().voters().contains(&from.0) {
            return Err(Dropped::Stranger);
        }
        self.check(from, &message, with_rows)?;
        let reached =
            (message.kind == MessageKind::AppendResponse && !message.reject).then_some(message.index);
        // raft-rs answers stale or unexpected messages with errors of no consequence here.
        let _ = self.raw.step(message.into_raft(from, self.me));
        // raft-rs overlooks a snapshot that ends where the follower's log already matched.
        let ended = self.raw.raft.prs().get(from.0).is_some_and(|p| {
            p.state == ProgressState::Snapshot && reached.is_some_and(|index| index.0 >= p.pending_snapshot)
        });
        if ended {
            self.raw.report_snapshot(from.0, SnapshotStatus::Finish);
        }
        self.observe(events);
        Ok(())
    }

    /// Keeps away from raft-rs what would make it panic or what it must not take from others.
    fn check(&self, from: MemberId, m: &RaftMessage, with_rows: bool) -> Result<(), Dropped> {
        let last = LogIndex(self.raw.raft.raft_log.last_index());
        let sound = match m.kind {
            MessageKind::TransferLeader => return Err(Dropped::Kind),
            // Who does not lead would pass it on.
            MessageKind::ReadIndex if !self.leads() => return Err(Dropped::Kind),
            MessageKind::ReadIndex => {
                return if is_round(m, from) { Ok(()) } else { Err(Dropped::Implausible) };
            }
            MessageKind::ReadIndexResponse => is_round(m, self.me),
            MessageKind::Snapshot if !with_rows => return Err(Dropped::Kind),
            MessageKind::TimeoutNow if self.tail().rows_lost() => return Err(Dropped::Kind),
            MessageKind::Append => {
                let mut at = m.index.0;
                let mut term = m.log_term;
                // To raft-rs term 0 matches whatever is not in the log.
                let anchored = term.0 > 0 || at == 0;
                anchored
                    && m.entries.iter().all(|e| {
                        let follows = at.checked_add(1) == Some(e.index.0)
                            && e.term >= term
                            && e.term.0 > 0
                            && e.term <= m.term;
                        (at, term) = (e.index.0, e.term);
                        follows && e.kind == EntryKind::Normal
                    })
            }
            MessageKind::AppendResponse => m.index <= last,
            MessageKind::Heartbeat => m.commit <= last,
            MessageKind::HeartbeatResponse => m.context.len() <= READ_CONTEXT_BYTES,
            MessageKind::Snapshot => m.snapshot.as_ref().is_some_and(|s| {
                let mut voters: Vec<u64> = s.voters.iter().map(|v| v.0).collect();
                voters.sort_unstable();
                (1..=POSITION_MAX).contains(&s.index.0)
                    && (1..=m.term.0).contains(&s.term.0)
                    && voters == self.tail().voters()
            }),
            MessageKind::RequestVote
            | MessageKind::RequestVoteResponse
            | MessageKind::RequestPreVote
            | MessageKind::RequestPreVoteResponse
            | MessageKind::TimeoutNow => true,
        };
        // All campaign with priority 0; another one would have raft-rs refuse a vote in term 0, and panic.
        let known = (1..=POSITION_MAX).contains(&m.term.0) && m.index.0 <= POSITION_MAX && m.priority == 0;
        if sound && known { Ok(()) } else { Err(Dropped::Implausible) }
    }

    /// Takes a proposal or refuses it; a refusal within the current epoch poisons it. Returns
    /// whether the epoch was poisoned just now.
    pub(crate) fn propose(
        &mut self,
        p: Proposal,
        fences: Fences,
        events: &mut Vec<(GroupId, EpochEvent)>,
    ) -> bool {
        let refused = |first_seq| (p.group, EpochEvent::Refused { epoch: p.epoch, first_seq });
        let current = self.epoch.as_ref().is_some_and(|e| e.term == p.epoch || !fences.stands(Fence::Epoch));
        let Some(epoch) = self.epoch.as_ref().filter(|_| current) else {
            events.push(refused(p.first_seq));
            return false;
        };
        if epoch.poisoned && fences.stands(Fence::Poison) {
            return false;
        }
        let expected = epoch.next_seq;
        let due = (epoch.opened || !fences.stands(Fence::Opened))
            && (p.first_seq == expected || !fences.stands(Fence::Sequence))
            && p.data.len() <= ENTRY_BYTES_MAX;
        let accepted = due && self.append(p.data.clone());
        let Some(epoch) = self.epoch.as_mut() else { return false };
        if accepted {
            epoch.next_seq = RecordSeq(p.first_seq.0 + u64::from(p.records));
            return false;
        }
        let first = !epoch.poisoned;
        epoch.poisoned = fences.stands(Fence::Poison);
        if first {
            events.push(refused(expected));
        }
        epoch.poisoned && first
    }

    /// raft-rs refuses while leadership is handed over and when too much is uncommitted.
    fn append(&mut self, data: Bytes) -> bool {
        let entry = Entry { data, ..Entry::default() };
        let mut m = Message::default();
        m.set_msg_type(MessageType::MsgPropose);
        m.from = self.me.0;
        m.entries = vec![entry].into();
        self.raw.step(m).is_ok()
    }

    /// Begins a read round, or lets it drop: a closed epoch answers no reads.
    pub(crate) fn read_index(&mut self, epoch: Term, ctx: u64) {
        let open = self.epoch.as_ref().is_some_and(|e| e.term == epoch && e.opened && !e.poisoned);
        if open && !self.at_rest() {
            self.raw.read_index([epoch.0.to_be_bytes(), ctx.to_be_bytes()].concat());
        }
    }

    /// Asks the leader how far the log is committed; the answer comes with the number of the round, or not
    /// at all. Source: Ongaro's thesis, §6.4, for followers.
    pub(crate) fn ask_commit(&mut self, round: u64) {
        if !self.at_rest() && !self.tail().rows_lost() {
            self.raw.read_index([(ROUND | self.me.0).to_be_bytes(), round.to_be_bytes()].concat());
        }
    }

    /// Hands leadership over, not to a follower without rows. Returns whether it was begun.
    pub(crate) fn transfer(&mut self, to: MemberId, events: &mut Vec<(GroupId, EpochEvent)>) -> bool {
        let whole = self.raw.raft.prs().get(to.0).is_some_and(|p| !needs_snapshot(p));
        let able = self.leads() && to != self.me && whole && !self.at_rest();
        if !able || self.raw.raft.lead_transferee == Some(to.0) {
            return false;
        }
        self.raw.transfer_leader(to.0);
        events.push((self.id, EpochEvent::Transferring { epoch: Term(self.raw.raft.term), to }));
        true
    }

    pub(crate) fn transferring(&self) -> bool {
        self.leads() && self.raw.raft.lead_transferee.is_some()
    }

    pub(crate) fn unreachable(&mut self, member: MemberId) {
        if self.leads() && !self.at_rest() {
            self.raw.report_unreachable(member.0);
        }
    }

    pub(crate) fn snapshot_failed(&mut self, to: MemberId) {
        if self.leads() && !self.at_rest() {
            self.raw.report_snapshot(to.0, SnapshotStatus::Failure);
        }
    }

    /// A snapshot is on its way: a request for it is answered. Should it fail, it is asked for again.
    pub(crate) fn snapshot_admitted(&mut self, to: MemberId) {
        if let Some(progress) = self.raw.raft.mut_prs().get_mut(to.0) {
            progress.pending_request_snapshot = 0;
        }
    }

    pub(crate) fn sends_snapshot_to(&self, to: MemberId) -> bool {
        self.leads() && self.raw.raft.prs().get(to.0).is_some_and(|p| p.state == ProgressState::Snapshot)
    }

    // ---- time ------------------------------------------------------------------------------

    /// One tick. Returns whether anything may have changed.
    pub(crate) fn tick(&mut self, live: &Liveness, events: &mut Vec<(GroupId, EpochEvent)>) -> bool {
        if self.at_rest() {
            return false;
        }
        let rows_lost = self.tail().rows_lost();
        if rows_lost {
            let _ = self.raw.request_snapshot();
        }
        let mut changed = self.raw.tick() || rows_lost;
        if rows_lost && self.leads() {
            self.hand_log_over(live, events);
        }
        changed |= self.count_takeover(live);
        self.observe(events);
        self.count_calm(live);
        changed
    }

    /// Without rows a replica opens no epoch, but its log may be the only one that has all that was promised:
    /// it leads until another has that too, and gives up when none gets there.
    fn hand_log_over(&mut self, live: &Liveness, events: &mut Vec<(GroupId, EpochEvent)>) {
        let has_all = |m: &MemberId| {
            let caught_up = |p: &Progress| p.matched == self.last() && live.is_live(*m);
            *m != self.me && self.raw.raft.prs().get(m.0).is_some_and(caught_up)
        };
        if let Some(to) = self.preferred.iter().copied().find(has_all) {
            self.transfer(to, events);
        }
        self.rowless_ticks += 1;
        if self.rowless_ticks > HAND_OVER * self.election_ticks as u32 {
            let term = self.raw.raft.term;
            self.raw.raft.become_follower(term, INVALID_ID);
        }
    }

    fn count_takeover(&mut self, live: &Liveness) -> bool {
        let Some(left) = self.takeover_ticks else { return false };
        if !self.leaderless(live) {
            self.takeover_ticks = None;
            return false;
        }
        self.takeover_ticks = left.checked_sub(1).filter(|left| *left > 0);
        self.takeover_ticks.is_none() && self.campaign()
    }

    fn leaderless(&self, live: &Liveness) -> bool {
        !self.leads() && self.leader().is_none_or(|leader| live.is_down(leader))
    }

    /// A member's process is gone: if it led, the first survivor campaigns at once, the others
    /// wait by rank. Safe at any time; a wrong hint costs an election.
    pub(crate) fn member_down(
        &mut self,
        live: &Liveness,
        ticks_per_rank: u32,
        events: &mut Vec<(GroupId, EpochEvent)>,
    ) -> bool {
        if self.at_rest() || self.tail().rows_lost() || !self.leaderless(live) {
            return false;
        }
        let rank = self.preferred.iter().filter(|m| !live.is_down(**m)).position(|m| *m == self.me);
        match rank {
            Some(0) => {
                self.takeover_ticks = None;
                let begun = self.campaign();
                self.observe(events);
                begun
            }
            Some(rank) => {
                self.takeover_ticks = Some(rank as u32 * ticks_per_rank);
                false
            }
            None => false,
        }
    }

    /// Campaigns past pre-vote and leases, as after a hand-over.
    fn campaign(&mut self) -> bool {
        let term = self.raw.raft.term;
        if self.raw.raft.state == StateRole::PreCandidate {
            self.raw.raft.become_follower(term, INVALID_ID);
        }
        if self.raw.raft.state != StateRole::Follower {
            return false;
        }
        let mut m = Message::default();
        m.set_msg_type(MessageType::MsgTimeoutNow);
        m.from = self.me.0;
        m.to = self.me.0;
        m.term = term.max(1);
        let _ = self.raw.step(m);
        true
    }

    /// Leaves a poisoned epoch by campaigning for a fresh term. Returns whether there is nothing
    /// left to do; waits for unflushed entries and for a hand-over under way.
    pub(crate) fn renew(&mut self, events: &mut Vec<(GroupId, EpochEvent)>) -> bool {
        if !self.epoch.as_ref().is_some_and(|e| e.poisoned) {
            return true;
        }
        if self.at_rest() || self.transferring() || !self.raw.raft.raft_log.unstable_entries().is_empty() {
            return false;
        }
        let term = self.raw.raft.term;
        self.raw.raft.become_follower(term, INVALID_ID);
        self.observe(events);
        self.campaign();
        self.observe(events);
        true
    }

    // ---- preferred leadership --------------------------------------------------------------

    fn count_calm(&mut self, live: &Liveness) {
        let calm = self.home().is_some_and(|home| {
            live.is_live(home)
                && self.raw.raft.prs().get(home.0).is_some_and(|p| {
                    p.state == ProgressState::Replicate && p.matched + TRANSFER_LAG_MAX >= self.last()
                })
        });
        self.calm_ticks = if calm { self.calm_ticks.saturating_add(1) } else { 0 };
    }

    /// Whether leadership stays where it is instead of going to the preferred member.
    pub(crate) fn set_stays(&mut self, stays: bool) {
        self.stays = stays;
    }

    /// Where leadership belongs, when it is here and does not.
    fn home(&self) -> Option<MemberId> {
        let open = self.epoch.as_ref().is_some_and(|e| e.opened && !e.poisoned) && !self.stays;
        self.preferred.first().copied().filter(|home| open && *home != self.me && !self.transferring())
    }

    /// Whether leadership should go home now: the other side has been well for a while and no
    /// proposal is in flight, or it has been well for so long that some may be refused.
    pub(crate) fn due_home(&self, config: &DriverConfig) -> Option<MemberId> {
        let home = self.home()?;
        let matched = self.raw.raft.prs().get(home.0)?.matched;
        let quiet = matched == self.last() && self.tail().applied().0 == self.last();
        let due =
            (quiet && self.calm_ticks >= config.home_ticks) || self.calm_ticks >= config.home_forced_ticks;
        due.then_some(home)
    }

    fn last(&self) -> u64 {
        self.raw.raft.raft_log.last_index()
    }

    // ---- effects ---------------------------------------------------------------------------

    /// First phase: what is to be sent early and made durable.
    pub(crate) fn ready(&mut self, fx: &mut Effects) -> bool {
        if self.at_rest() || !self.raw.has_ready() {
            return false;
        }
        let mut ready = self.raw.ready();
        for message in ready.take_messages() {
            self.route(message, &mut fx.send_early, &mut fx.snapshots);
        }
        let entries = ready.take_entries();
        let meta = ready.snapshot().get_metadata();
        let snapshot = (!ready.snapshot().is_empty()).then_some((meta.index, meta.term));
        if let Some((index, term)) = snapshot {
            self.raw.mut_store().reset(index, term);
            fx.install.push(Install { group: self.id, index: LogIndex(index), term: Term(term) });
        }
        self.raw.mut_store().append(&entries);
        if ready.must_sync() {
            let hard = self.raw.raft.hard_state();
            fx.persist.push(Persist {
                group: self.id,
                reset: snapshot.map(|(index, term)| (LogIndex(index), Term(term))),
                hard_state: HardState { term: hard.term, vote: hard.vote, commit: hard.commit },
                entries,
            });
        }
        for read in ready.take_read_states() {
            self.confirm(LogIndex(read.index), &read.request_ctx, fx);
        }
        let late = ready.take_persisted_messages();
        let committed = ready.take_committed_entries();
        self.pending = Some(Pending { ready, late, committed, snapshot });
        true
    }

    /// Second phase, once everything of the first is durable. Returns whether more is ready.
    pub(crate) fn persisted(&mut self, fx: &mut Effects, events: &mut Vec<(GroupId, EpochEvent)>) -> bool {
        let Some(pending) = self.pending.take() else { return false };
        let mut light = self.raw.advance_append(pending.ready);
        for message in pending.late.into_iter().chain(light.take_messages()) {
            self.route(message, &mut fx.send, &mut fx.snapshots);
        }
        if let Some((index, _)) = pending.snapshot {
            self.raw.advance_apply_to(index);
        }
        let mut entries = pending.committed;
        entries.append(&mut light.take_committed_entries());
        if let Some(last) = entries.last().map(|e| e.index) {
            if self.tail().rows_lost() {
                self.raw.advance_apply_to(last);
                self.raw.mut_store().set_applied(last);
            } else {
                fx.apply.push(Committed { group: self.id, entries });
            }
        }
        self.observe(events);
        self.raw.has_ready()
    }

    pub(crate) fn awaits_install(&self) -> bool {
        self.pending.as_ref().is_some_and(|p| p.snapshot.is_some())
    }

    /// Entries up to here have been applied; the epoch opens with the first of its own term.
    pub(crate) fn applied(&mut self, index: LogIndex, events: &mut Vec<(GroupId, EpochEvent)>) {
        self.raw.advance_apply_to(index.0);
        self.raw.mut_store().set_applied(index.0);
        let term = Term(self.tail().applied().1);
        if let Some(epoch) = self.epoch.as_mut().filter(|e| !e.opened && e.term == term) {
            epoch.opened = true;
            events.push((self.id, EpochEvent::Opened { term }));
        }
    }

    fn route(&self, message: Message, out: &mut Vec<Outgoing>, snapshots: &mut Vec<Outgoing>) {
        let to = MemberId(message.to);
        let Some(message) = RaftMessage::from_raft(message) else { return };
        let target = if message.kind == MessageKind::Snapshot { snapshots } else { out };
        target.push(Outgoing { to, group: self.id, message });
    }

    fn confirm(&self, index: LogIndex, context: &[u8], fx: &mut Effects) {
        let Some((term, ctx)) = context.split_first_chunk::<8>() else { return };
        let Ok(ctx) = ctx.try_into() else { return };
        let (epoch, ctx) = (Term(u64::from_be_bytes(*term)), u64::from_be_bytes(ctx));
        if epoch.0 == ROUND | self.me.0 {
            fx.events.push((self.id, EpochEvent::CommitIs { index, round: ctx }));
        } else if self.epoch.as_ref().is_some_and(|e| e.term == epoch && !e.poisoned) {
            fx.events.push((self.id, EpochEvent::ReadConfirmed { epoch, ctx }));
        }
    }

    /// Notices what the last call changed about term, role and leader.
    fn observe(&mut self, events: &mut Vec<(GroupId, EpochEvent)>) {
        self.settle_timeout();
        let term = Term(self.raw.raft.term);
        let leads = self.leads();
        if let Some(epoch) = self.epoch.take_if(|e| !leads || e.term != term)
            && epoch.opened
        {
            events.push((self.id, EpochEvent::Closed { term: epoch.term }));
        }
        if leads && self.epoch.is_none() {
            self.epoch = Some(Epoch { term, opened: false, poisoned: false, next_seq: RecordSeq(0) });
            self.calm_ticks = 0;
            self.rowless_ticks = 0;
        }
        let leader = self.leader();
        if (leader, term) != self.announced {
            self.announced = (leader, term);
            events.push((self.id, EpochEvent::LeaderIs { leader, term }));
        }
    }

    /// raft-rs draws election time-outs from the thread's generator; ours come from the seed.
    fn settle_timeout(&mut self) {
        let rows_lost = self.tail().rows_lost();
        let now = (self.raw.raft.term, self.raw.raft.state, rows_lost);
        if self.seen != now {
            self.seen = now;
            let least = if rows_lost { PATIENCE * self.election_ticks } else { self.election_ticks };
            self.timeout = least + self.jitter.below(self.election_ticks);
        }
        if self.raw.raft.randomized_election_timeout() != self.timeout {
            self.raw.raft.set_randomized_election_timeout(self.timeout);
        }
    }

    // ---- log and status --------------------------------------------------------------------

    /// How far the log may be forgotten when rows up to `upto` are durable, and forgets it.
    pub(crate) fn truncate(
        &mut self,
        upto: LogIndex,
        force: bool,
        config: &DriverConfig,
        live: &Liveness,
    ) -> Option<Truncate> {
        let tail = self.tail();
        let mut limit = upto.0.min(tail.applied().0);
        let too_long = tail.bytes() > config.log_tail_bytes_max;
        if self.leads() && !force && !too_long {
            let prs = self.raw.raft.prs();
            let needed =
                prs.iter().filter(|(id, _)| live.is_live(MemberId(**id))).map(|(_, p)| p.matched).min();
            limit = limit.min(needed.unwrap_or(limit));
        }
        let index = if force { limit } else { tail.index_keeping(limit, config.log_keep_bytes) };
        if index <= tail.truncated().0 || self.at_rest() {
            return None;
        }
        let term = self.raw.mut_store().truncate(index);
        Some(Truncate { group: self.id, index: LogIndex(index), term: Term(term) })
    }

    pub(crate) fn status(&self, live: &Liveness) -> GroupStatus {
        let raft = &self.raw.raft;
        let last = self.last();
        let mut followers: Vec<_> = raft
            .prs()
            .iter()
            .filter(|(id, _)| self.leads() && **id != self.me.0)
            .map(|(id, p)| FollowerStatus {
                member: MemberId(*id),
                matched: LogIndex(p.matched),
                lag: last.saturating_sub(p.matched),
                active: live.is_live(MemberId(*id)),
                snapshot: needs_snapshot(p),
            })
            .collect();
        followers.sort_by_key(|f| f.member);
        GroupStatus {
            group: self.id,
            role: match raft.state {
                StateRole::Follower => Role::Follower,
                StateRole::Candidate | StateRole::PreCandidate => Role::Candidate,
                StateRole::Leader => Role::Leader,
            },
            leader: self.leader(),
            term: Term(raft.term),
            open: self.epoch.as_ref().is_some_and(|e| e.opened && !e.poisoned),
            first: LogIndex(self.tail().truncated().0 + 1),
            last: LogIndex(last),
            commit: LogIndex(raft.raft_log.committed),
            applied: LogIndex(self.tail().applied().0),
            log_bytes: self.tail().bytes() as u64,
            rows_lost: self.tail().rows_lost() || self.awaits_install(),
            followers,
        }
    }
}
