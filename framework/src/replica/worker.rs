//! What the replica does in each of its loops.
//!
//! Owns the driver, the machines entries are applied to, the checkpoints and the snapshots under way, and
//! carries the driver's effects out in their order. Whoever runs it ([`super::thread`], [`super::tasks`])
//! brings the inputs and the helpers. Each loop is bounded by the limits of its inputs and of the driver,
//! so that ticks go on under load.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use perennial_core::id::{GroupId, LogIndex, MemberId, Term};
use perennial_core::replication::{
    Committed, Driver, Effects, EpochEvent, FrameWriter, GroupSeed, Install, Outgoing, Persist, StateMachine,
};
use tokio::sync::mpsc;

use super::config::{GroupConfig, ReplicaConfig};
use super::handle::{GroupEvent, GroupSink, Outbound, ReplicaFault};
use super::inputs::{Checkpointed, Input, Inputs};
use super::log::LogError;
use super::metrics::ReplicaMetrics;
use super::rows::{GroupMeta, RowStore};
use super::snapshot::{Arrived, Chunk, SendJob, StagedRows, Staging};
use super::standing::{Standing, Standings};
use super::stores::{LogStore, Stores};

/// Makes the machine of a group, in its first state.
pub type MachineFactory = Box<dyn Fn(GroupId) -> Box<dyn StateMachine> + Send>;

/// Checkpoints written in one loop; a machine's state may be large.
const CHECKPOINTS_PER_LOOP: usize = 8;

/// How often leaders are asked how far their logs are committed.
const ROUND_EVERY: Duration = Duration::from_secs(1);
/// Rounds whose answers are still taken.
const ROUNDS_MAX: usize = 60;

/// A group's replicated state on this node.
struct Hosted {
    config: GroupConfig,
    machine: Box<dyn StateMachine>,
    applied: (LogIndex, Term),
    /// Applied beyond its last checkpoint.
    dirty: bool,
    /// Applied index of the last checkpoint that is durable.
    durable: LogIndex,
    standing: Arc<Standing>,
    /// Committed up to here at that time, and not applied yet.
    committed: Option<(LogIndex, Instant)>,
}

/// Work for the helper that flushes rows.
pub(super) enum RowJob {
    Sync(Vec<Checkpointed>),
    Purge,
}

/// Work for the helper that installs snapshots: where to, the rows, the machine's state.
pub(super) struct InstallJob(pub(super) Install, pub(super) StagedRows, pub(super) Vec<u8>);

/// Where a checkpoint stands.
enum Checkpoint {
    Idle,
    /// Checkpoints are being written behind the rows.
    Writing {
        left: Vec<GroupId>,
        done: Vec<Checkpointed>,
    },
    /// The helper flushes.
    Syncing,
}

/// A snapshot that arrived whole, with its machine.
struct Ripe {
    index: LogIndex,
    machine: Box<dyn StateMachine>,
    bytes: Vec<u8>,
    rows: StagedRows,
}

/// The ways to the helpers; they end when these are dropped.
pub(super) struct Jobs {
    /// Flushing rows, removing old files of the log.
    pub(super) rows: mpsc::UnboundedSender<RowJob>,
    /// Installing snapshots.
    pub(super) install: mpsc::UnboundedSender<InstallJob>,
    /// Streaming snapshots.
    pub(super) send: mpsc::Sender<SendJob>,
}

/// Whom the worker serves.
pub(super) struct Surroundings {
    pub(super) machines: MachineFactory,
    pub(super) outbound: Arc<dyn Outbound>,
    pub(super) sink: Arc<dyn GroupSink>,
    pub(super) inputs: Arc<Inputs>,
    pub(super) metrics: Arc<ReplicaMetrics>,
    pub(super) standings: Arc<Standings>,
}

/// Now; in paused time that of the runtime.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// A node's part of all its groups.
pub(super) struct Worker {
    config: ReplicaConfig,
    driver: Driver,
    log: Option<Box<dyn LogStore>>,
    rows: Arc<dyn RowStore>,
    machines: MachineFactory,
    hosted: BTreeMap<GroupId, Hosted>,
    outbound: Arc<dyn Outbound>,
    sink: Arc<dyn GroupSink>,
    inputs: Arc<Inputs>,
    metrics: Arc<ReplicaMetrics>,
    standings: Arc<Standings>,
    /// Reused from loop to loop; empty between them.
    fx: Effects,
    frames: BTreeMap<MemberId, FrameWriter>,
    staging: Staging,
    /// Snapshots whose message the driver has just been given.
    ripe: BTreeMap<GroupId, Ripe>,
    /// Machines of snapshots that are being installed.
    installing: BTreeMap<GroupId, (Install, Box<dyn StateMachine>)>,
    checkpoint: Checkpoint,
    /// Bytes of entries applied since the last checkpoint.
    applied_bytes: u64,
    /// Groups that hold old log files back: truncated as far as possible at the next checkpoint.
    forced: BTreeSet<GroupId>,
    /// Who waits for new groups to be durable.
    opening: Vec<tokio::sync::oneshot::Sender<Result<(), ReplicaFault>>>,
    jobs: Jobs,
    next_tick: Instant,
    next_checkpoint: Instant,
    next_round: Instant,
    /// When leaders were asked how far their logs are committed, by the numbers of the rounds.
    rounds: VecDeque<Instant>,
    /// Number of the first of these.
    first_round: u64,
}

impl Worker {
    // ---- start -----------------------------------------------------------------------------

    /// Opens every group that the log holds.
    pub(super) fn open_all(
        config: ReplicaConfig,
        stores: Stores,
        staging: Staging,
        jobs: Jobs,
        around: Surroundings,
    ) -> Result<Self, ReplicaFault> {
        let Surroundings { machines, outbound, sink, inputs, metrics, standings } = around;
        let mut worker = Self {
            driver: Driver::new(config.driver.clone()),
            next_tick: now() + config.tick,
            next_checkpoint: now() + config.checkpoint_every,
            next_round: now(),
            rounds: VecDeque::new(),
            first_round: 0,
            config,
            log: stores.log,
            rows: stores.rows,
            machines,
            hosted: BTreeMap::new(),
            outbound,
            sink,
            inputs,
            metrics,
            standings,
            fx: Effects::default(),
            frames: BTreeMap::new(),
            staging,
            ripe: BTreeMap::new(),
            installing: BTreeMap::new(),
            checkpoint: Checkpoint::Idle,
            applied_bytes: 0,
            forced: BTreeSet::new(),
            opening: Vec::new(),
            jobs,
        };
        worker.recover()?;
        Ok(worker)
    }

    fn recover(&mut self) -> Result<(), ReplicaFault> {
        let Some(log) = &self.log else { return Ok(()) };
        // Checkpoints that are found count as durable, so they have to be.
        self.rows.sync()?;
        for found in log.recover()? {
            self.host(found.config, found.seed)?;
        }
        Ok(())
    }

    /// Opens a group from its log and its checkpoint. Rows that the log cannot bring up to date
    /// are wiped: a peer's snapshot replaces them.
    fn host(&mut self, config: GroupConfig, mut seed: GroupSeed) -> Result<(), ReplicaFault> {
        let group = config.group;
        let mut machine = (self.machines)(group);
        let mut applied = (LogIndex(0), Term(0));
        match self.rows.meta(group)? {
            Some(meta) if meta.applied >= seed.truncated.0 => {
                let restored = machine.restore(&meta.machine);
                restored.map_err(|source| ReplicaFault::Restore { group, source })?;
                machine.installed();
                applied = (meta.applied, meta.term);
            }
            None if seed.truncated.0 == LogIndex(0) => {}
            _ if config.voters.len() == 1 => return Err(ReplicaFault::RowsLost(group)),
            _ => {
                self.rows.wipe(group)?;
                seed.rows_lost = true;
            }
        }
        seed.applied = applied.0;
        self.driver.open_group(seed)?;
        let standing = self.standings.add(group);
        let durable = applied.0;
        let hosted = Hosted { config, machine, applied, dirty: false, durable, standing, committed: None };
        self.hosted.insert(group, hosted);
        Ok(())
    }

    fn open(&mut self, groups: Vec<GroupConfig>) -> Result<(), ReplicaFault> {
        for config in groups {
            if let Some(hosted) = self.hosted.get_mut(&config.group) {
                let sorted = |members: &[MemberId]| members.iter().copied().collect::<BTreeSet<_>>();
                if sorted(&hosted.config.voters) != sorted(&config.voters) {
                    return Err(ReplicaFault::OtherVoters(config.group));
                }
                if hosted.config.preferred != config.preferred {
                    self.driver.set_preferred(config.group, config.preferred.clone());
                    hosted.config.preferred = config.preferred;
                    let config = hosted.config.clone();
                    self.note(&config)?;
                }
                continue;
            }
            if self.rows.meta(config.group)?.is_some() {
                return Err(ReplicaFault::LogMissing(config.group));
            }
            let seed = GroupSeed::empty(config.group, config.voters.clone(), config.preferred.clone());
            self.host(config.clone(), seed)?;
            self.note(&config)?;
        }
        Ok(())
    }

    fn note(&mut self, config: &GroupConfig) -> Result<(), LogError> {
        self.log.as_mut().map_or(Ok(()), |log| log.note(config))
    }

    // ---- the loop --------------------------------------------------------------------------

    /// Runs until it is told to stop, on a thread of its own.
    pub(super) fn run(mut self) -> Result<(), ReplicaFault> {
        let mut inputs = Vec::new();
        let mut end = None;
        while end.is_none() {
            self.inputs.take(&mut inputs, self.patience());
            end = self.take_in(&mut inputs)?;
            #[cfg(test)]
            if end == Some(End::Die) {
                return Ok(());
            }
            self.begin();
            self.finish()?;
        }
        self.last_checkpoint()
    }

    /// Takes what has come in and lets time pass; says whether to end after this loop, and how.
    pub(super) fn take_in(&mut self, inputs: &mut Vec<Input>) -> Result<Option<End>, ReplicaFault> {
        let mut end = None;
        for input in inputs.drain(..) {
            match input {
                #[cfg(test)]
                Input::Die => return Ok(Some(End::Die)),
                Input::Stop => end = Some(End::Stop),
                input => self.input(input)?,
            }
        }
        self.pass_time();
        Ok(end)
    }

    /// How long to wait for inputs.
    pub(super) fn patience(&self) -> Duration {
        let busy = self.driver.has_work() || matches!(self.checkpoint, Checkpoint::Writing { .. });
        if busy { Duration::ZERO } else { self.next_tick.saturating_duration_since(now()) }
    }

    /// At most one tick a loop: after a pause the queue is read before any time-out fires.
    fn pass_time(&mut self) {
        ReplicaMetrics::add(&self.metrics.beats, 1);
        let now = now();
        if now >= self.next_tick {
            self.driver.tick();
            self.next_tick = (self.next_tick + self.config.tick).max(now);
        }
        if now >= self.next_round {
            self.next_round = now + ROUND_EVERY;
            self.driver.ask_commit(self.first_round + self.rounds.len() as u64);
            self.rounds.push_back(now);
            if self.rounds.len() > ROUNDS_MAX {
                self.rounds.pop_front();
                self.first_round += 1;
            }
        }
    }

    fn input(&mut self, input: Input) -> Result<(), ReplicaFault> {
        match input {
            Input::Frame { from, messages } => {
                let mut dropped = 0;
                for (group, message) in messages {
                    dropped += u64::from(self.driver.step(from, group, message).is_err());
                }
                ReplicaMetrics::add(&self.metrics.messages_dropped, dropped);
            }
            Input::Chunk { from, chunk } => self.chunk(from, chunk),
            Input::Propose(proposal) => self.driver.propose(proposal),
            Input::ReadIndex { group, epoch, ctx } => self.driver.read_index(group, epoch, ctx),
            Input::Transfer { group, to } => {
                self.driver.transfer(group, to);
            }
            Input::Stays { group, stays } => self.driver.set_stays(group, stays),
            Input::MemberDown(member) => self.driver.member_down(member),
            Input::Unreachable(member) => self.driver.unreachable(member),
            Input::Open { groups, reply } => match self.open(groups) {
                Ok(()) => self.opening.push(reply),
                // Nobody waits any more: nobody to tell.
                Err(fault) => drop(reply.send(Err(fault))),
            },
            Input::Status(reply) => drop(reply.send(self.driver.status())),
            Input::Synced { groups, result } => {
                result?;
                self.synced(groups)?;
            }
            Input::Installed { group, index, result } => {
                result?;
                self.installed(group, index);
            }
            Input::Purged(result) => self.forced.extend(result?),
            Input::SnapshotSent { group, to, ok } => {
                let counter = if ok { &self.metrics.snapshots_sent } else { &self.metrics.snapshots_failed };
                ReplicaMetrics::add(counter, 1);
                self.driver.snapshot_sent(group, to, ok);
            }
            Input::HelperPanicked(text) => return Err(ReplicaFault::Panicked(text)),
            Input::Checkpoint => self.next_checkpoint = now(),
            Input::Stop => {}
            #[cfg(test)]
            Input::Die => {}
        }
        Ok(())
    }

    /// Takes the driver's effects and sends what does not wait for the flush; says whether there is one.
    pub(super) fn begin(&mut self) -> bool {
        let mut fx = std::mem::take(&mut self.fx);
        self.driver.ready(&mut fx);
        self.send(&mut fx.send_early);
        self.fx = fx;
        !self.fx.persist.is_empty() || self.log.as_ref().is_some_and(|log| !log.is_clean())
    }

    /// Carries out the rest of the effects, in their order.
    pub(super) fn finish(&mut self) -> Result<(), ReplicaFault> {
        let mut fx = std::mem::take(&mut self.fx);
        self.flush(&mut fx.persist)?;
        self.driver.persisted(&mut fx);
        for order in fx.install.drain(..) {
            self.begin_install(order);
        }
        // Arrived snapshots that Raft did not want.
        self.ripe.clear();
        self.send(&mut fx.send);
        for snapshot in fx.snapshots.drain(..) {
            self.begin_snapshot(snapshot);
        }
        if !fx.apply.is_empty() {
            self.apply(&mut fx)?;
        }
        for (group, event) in fx.events.drain(..) {
            self.tell(group, event);
        }
        self.fx = fx;
        self.step_checkpoint()
    }

    fn send(&mut self, messages: &mut Vec<Outgoing>) {
        if messages.is_empty() {
            return;
        }
        ReplicaMetrics::add(&self.metrics.messages_sent, messages.len() as u64);
        for Outgoing { to, group, message } in messages.drain(..) {
            if let Some(full) = self.frames.entry(to).or_default().push(group, &message) {
                self.outbound.raft(to, full);
            }
        }
        for (to, writer) in &mut self.frames {
            if let Some(frame) = writer.finish() {
                self.outbound.raft(*to, frame);
            }
        }
    }

    fn flush(&mut self, persist: &mut Vec<Persist>) -> Result<(), ReplicaFault> {
        if let Some(log) = self.log.as_mut().filter(|log| !persist.is_empty() || !log.is_clean()) {
            let began = Instant::now();
            let bytes = log.write(persist, &|group| self.hosted.get(&group).map(|h| &h.config))?;
            self.metrics.flushed(began.elapsed(), bytes);
            let entries: usize = persist.iter().map(|p| p.entries.len()).sum();
            ReplicaMetrics::add(&self.metrics.entries, entries as u64);
        }
        persist.clear();
        for reply in self.opening.drain(..) {
            drop(reply.send(Ok(())));
        }
        Ok(())
    }

    /// Applies all committed entries of all groups with one write of rows.
    fn apply(&mut self, fx: &mut Effects) -> Result<(), ReplicaFault> {
        let committed = std::mem::take(&mut fx.apply);
        let mut batch = Vec::with_capacity(committed.len());
        let mut told = Vec::with_capacity(committed.len());
        let (mut entries_applied, mut row_ops) = (0, 0);
        for Committed { group, entries } in committed {
            let Some(hosted) = self.hosted.get_mut(&group) else { continue };
            let mut ops = Vec::new();
            entries_applied += entries.len();
            for entry in &entries {
                hosted.applied = (LogIndex(entry.index), Term(entry.term));
                if !entry.data.is_empty() {
                    self.applied_bytes += entry.data.len() as u64;
                    hosted.machine.apply(Term(entry.term), LogIndex(entry.index), &entry.data, &mut ops);
                }
            }
            hosted.dirty = true;
            row_ops += ops.len();
            if !ops.is_empty() {
                batch.push((group, ops));
            }
            told.push(group);
        }
        if !batch.is_empty() {
            let changed: Vec<_> = batch.iter().filter_map(|(group, _)| self.hosted.get(group)).collect();
            changed.iter().for_each(|hosted| hosted.standing.begin_change());
            self.rows.write(batch)?;
            changed.iter().for_each(|hosted| hosted.standing.end_change());
        }
        ReplicaMetrics::add(&self.metrics.applied, entries_applied as u64);
        ReplicaMetrics::add(&self.metrics.row_ops, row_ops as u64);
        ReplicaMetrics::add(&self.metrics.loops, 1);
        for group in told {
            if let Some(hosted) = self.hosted.get(&group) {
                let (index, _) = hosted.applied;
                self.driver.applied(group, index, fx);
                self.tell_applied(group);
            }
        }
        Ok(())
    }

    fn tell_applied(&mut self, group: GroupId) {
        if let Some(hosted) = self.hosted.get_mut(&group) {
            if let Some((_, at)) = hosted.committed.take_if(|(index, _)| *index <= hosted.applied.0) {
                hosted.standing.confirm(at);
            }
            let Hosted { applied: (index, term), machine, .. } = hosted;
            let event = GroupEvent::Applied { index: *index, term: *term, next_seq: machine.next_seq(*term) };
            self.sink.event(group, event);
        }
    }

    /// A leader has said how far its log was committed when it was asked.
    fn commit_is(&mut self, group: GroupId, index: LogIndex, round: u64) {
        let Some(hosted) = self.hosted.get_mut(&group) else { return };
        let asked = round.checked_sub(self.first_round).and_then(|nth| self.rounds.get(nth as usize));
        let Some(&at) = asked else { return };
        if index <= hosted.applied.0 {
            hosted.standing.confirm(at);
        } else {
            // The first that is waited for stays: under load there is always a later one.
            hosted.committed.get_or_insert((index, at));
        }
    }

    fn tell(&mut self, group: GroupId, event: EpochEvent) {
        let event = match event {
            EpochEvent::LeaderIs { leader, term } => GroupEvent::LeaderIs { leader, term },
            EpochEvent::Opened { term } => {
                let Some(hosted) = self.hosted.get(&group) else { return };
                let (applied, _) = hosted.applied;
                GroupEvent::Opened { term, meta: hosted.machine.checkpoint(), applied }
            }
            EpochEvent::Closed { term } => GroupEvent::Closed { term },
            EpochEvent::Transferring { epoch, to } => GroupEvent::Transferring { epoch, to },
            EpochEvent::ReadConfirmed { epoch, ctx } => GroupEvent::ReadConfirmed { epoch, ctx },
            EpochEvent::CommitIs { index, round } => return self.commit_is(group, index, round),
            EpochEvent::Refused { epoch, first_seq } => {
                ReplicaMetrics::add(&self.metrics.proposals_refused, 1);
                GroupEvent::Refused { epoch, first_seq }
            }
        };
        self.sink.event(group, event);
    }

    // ---- snapshots -------------------------------------------------------------------------

    /// Captures a snapshot at the applied index its message names, and has it streamed.
    fn begin_snapshot(&mut self, snapshot: Outgoing) {
        let (group, to) = (snapshot.group, snapshot.to);
        let job = self.hosted.get(&group).map(|hosted| {
            let named = snapshot.message.snapshot.as_ref().map(|s| s.index);
            assert_eq!(named, Some(hosted.applied.0), "a snapshot names the index the rows stand at");
            let rows = self.rows.range(group, &[], None);
            SendJob { machine: hosted.machine.checkpoint(), rows, snapshot }
        });
        if job.is_none_or(|job| self.jobs.send.try_send(job).is_err()) {
            self.driver.snapshot_sent(group, to, false);
        }
    }

    /// Stages a chunk of a fellow replica. A snapshot that cannot be staged is given up, not the node:
    /// rows and log have room of their own, and the leader sends it again.
    fn chunk(&mut self, from: MemberId, chunk: Chunk) {
        let group = chunk.group();
        let fellow = self.hosted.get(&group).is_some_and(|h| h.config.voters.contains(&from));
        if !fellow {
            return ReplicaMetrics::add(&self.metrics.messages_dropped, 1);
        }
        let arrived = self.staging.take(from, chunk).unwrap_or_else(|error| {
            tracing::warn!(%group, %from, error = &error as &dyn std::error::Error, "a snapshot is given up");
            ReplicaMetrics::add(&self.metrics.snapshots_unstaged, 1);
            None
        });
        let Some(Arrived { index, message, machine: bytes, rows }) = arrived else { return };
        let mut machine = (self.machines)(group);
        let sound = machine.restore(&bytes).is_ok() && !self.ripe.contains_key(&group);
        if sound && self.driver.step_snapshot(from, group, message).is_ok() {
            self.ripe.insert(group, Ripe { index, machine, bytes, rows });
        } else {
            ReplicaMetrics::add(&self.metrics.messages_dropped, 1);
        }
    }

    fn begin_install(&mut self, order: Install) {
        let ripe = self.ripe.remove(&order.group).filter(|ripe| ripe.index == order.index);
        let Some(Ripe { machine, bytes, rows, .. }) = ripe else {
            unreachable!("Raft restores only snapshots whose rows have arrived")
        };
        self.installing.insert(order.group, (order, machine));
        if let Some(hosted) = self.hosted.get(&order.group) {
            hosted.standing.begin_change();
        }
        let sent = self.jobs.install.send(InstallJob(order, rows, bytes));
        assert!(sent.is_ok(), "the install helper lives as long as the replica thread");
    }

    fn installed(&mut self, group: GroupId, index: LogIndex) {
        let Some((order, mut machine)) = self.installing.remove(&group) else { return };
        assert_eq!(order.index, index, "snapshots of a group are installed one after the other");
        machine.installed();
        if let Some(hosted) = self.hosted.get_mut(&group) {
            hosted.machine = machine;
            hosted.applied = (order.index, order.term);
            hosted.dirty = false;
            hosted.durable = order.index;
            hosted.standing.end_change();
        }
        ReplicaMetrics::add(&self.metrics.snapshots_installed, 1);
        self.driver.installed(group, &mut self.fx);
        self.tell_applied(group);
    }

    fn run_row_job(&self, job: RowJob) {
        let sent = self.jobs.rows.send(job);
        assert!(sent.is_ok(), "the row helper lives as long as the replica thread");
    }

    // ---- checkpoints -----------------------------------------------------------------------

    fn step_checkpoint(&mut self) -> Result<(), ReplicaFault> {
        match std::mem::replace(&mut self.checkpoint, Checkpoint::Idle) {
            Checkpoint::Idle => {
                let due = self.applied_bytes >= self.config.checkpoint_bytes
                    || !self.forced.is_empty()
                    || self.next_checkpoint <= now();
                if due {
                    self.next_checkpoint = now() + self.config.checkpoint_every;
                    self.applied_bytes = 0;
                    let mut left: BTreeSet<_> = self.dirty().collect();
                    left.extend(&self.forced);
                    if left.is_empty() {
                        // Followers may have caught up with what is durable since.
                        self.truncate(&BTreeSet::new())?;
                    } else {
                        let left = left.into_iter().collect();
                        self.checkpoint = Checkpoint::Writing { left, done: Vec::new() };
                    }
                }
            }
            Checkpoint::Writing { mut left, mut done } => {
                let some = left.split_off(left.len().saturating_sub(CHECKPOINTS_PER_LOOP));
                self.write_checkpoints(&some, &mut done)?;
                self.checkpoint = if left.is_empty() {
                    self.run_row_job(RowJob::Sync(done));
                    Checkpoint::Syncing
                } else {
                    Checkpoint::Writing { left, done }
                };
            }
            Checkpoint::Syncing => self.checkpoint = Checkpoint::Syncing,
        }
        Ok(())
    }

    fn dirty(&self) -> impl Iterator<Item = GroupId> {
        // A group being installed has no checkpoint until it is.
        self.hosted.iter().filter(|(g, h)| h.dirty && !self.installing.contains_key(g)).map(|(g, _)| *g)
    }

    fn write_checkpoints(
        &mut self,
        groups: &[GroupId],
        done: &mut Vec<Checkpointed>,
    ) -> Result<(), ReplicaFault> {
        let mut metas = Vec::with_capacity(groups.len());
        for group in groups {
            let force = self.forced.remove(group);
            let idle = !self.installing.contains_key(group);
            let Some(hosted) = self.hosted.get_mut(group).filter(|_| idle) else { continue };
            let (applied, term) = hosted.applied;
            hosted.dirty = false;
            done.push(Checkpointed { group: *group, applied, force });
            metas.push((*group, GroupMeta { applied, term, machine: hosted.machine.checkpoint() }));
        }
        Ok(self.rows.put_meta(&metas)?)
    }

    /// Rows up to here are durable: the log may forget what they cover.
    fn synced(&mut self, groups: Vec<Checkpointed>) -> Result<(), ReplicaFault> {
        self.checkpoint = Checkpoint::Idle;
        ReplicaMetrics::add(&self.metrics.checkpoints, 1);
        let mut forced = BTreeSet::new();
        for Checkpointed { group, applied, force } in groups {
            if let Some(hosted) = self.hosted.get_mut(&group) {
                hosted.durable = hosted.durable.max(applied);
            }
            forced.extend(force.then_some(group));
        }
        self.truncate(&forced)
    }

    fn truncate(&mut self, forced: &BTreeSet<GroupId>) -> Result<(), ReplicaFault> {
        let mut truncates = Vec::new();
        for (group, hosted) in &self.hosted {
            truncates.extend(self.driver.truncate(*group, hosted.durable, forced.contains(group)));
        }
        if let Some(log) = self.log.as_mut().filter(|_| !truncates.is_empty()) {
            log.truncate(&truncates)?;
            self.run_row_job(RowJob::Purge);
        }
        Ok(())
    }

    pub(super) fn last_checkpoint(mut self) -> Result<(), ReplicaFault> {
        let left: Vec<_> = self.dirty().collect();
        self.write_checkpoints(&left, &mut Vec::new())?;
        Ok(self.rows.sync()?)
    }
}

/// How the replica ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// With a last checkpoint.
    Stop,
    /// As a killed process does.
    #[cfg(test)]
    Die,
}
