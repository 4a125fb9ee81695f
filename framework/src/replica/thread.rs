//! The replica thread.
//!
//! Owns the loop that carries the driver's effects out, the machines entries are applied to, and
//! the three helpers beside it: one flushes rows, one installs snapshots, one streams them; the first
//! never waits for the others, because the log grows until rows are flushed. Each loop is bounded by
//! the limits of its inputs and of the driver, so that ticks go on under load.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use perennial_core::id::{GroupId, LogIndex, MemberId, Term};
use perennial_core::replication::{
    Committed, Driver, Effects, EpochEvent, FrameWriter, GroupSeed, Install, Outgoing, Persist, StateMachine,
};

use super::buffer::BufferedRows;
use super::config::{GroupConfig, ReplicaConfig};
use super::handle::{GroupEvent, GroupSink, Outbound, ReplicaFault, ReplicaHandle, Shared};
use super::inputs::{Checkpointed, Input, Inputs};
use super::log::{DiskLog, LogError, Purger};
use super::metrics::ReplicaMetrics;
use super::rows::{FjallRows, GroupMeta, MemoryRows, RowStore};
use super::snapshot::{Arrived, Chunk, SendJob, StagedRows, Staging, install, stream};

/// Makes the machine of a group, in its first state.
pub type MachineFactory = Box<dyn Fn(GroupId) -> Box<dyn StateMachine> + Send>;

/// Checkpoints written in one loop; a machine's state may be large.
const CHECKPOINTS_PER_LOOP: usize = 8;
/// Snapshots captured and waiting to be streamed; the driver sends one to each peer at a time.
const SEND_JOBS_MAX: usize = 64;

/// A group's replicated state on this node.
struct Hosted {
    config: GroupConfig,
    machine: Box<dyn StateMachine>,
    applied: (LogIndex, Term),
    /// Applied beyond its last checkpoint.
    dirty: bool,
    /// Applied index of the last checkpoint that is durable.
    durable: LogIndex,
}

/// Work for the helper that flushes rows.
enum RowJob {
    Sync(Vec<Checkpointed>),
    Purge,
}

/// Work for the helper that installs snapshots: where to, the rows, the machine's state.
struct InstallJob(Install, StagedRows, Vec<u8>);

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

/// Starts replicas.
pub struct Replica;

impl Replica {
    /// Opens what the folder holds and starts the replica's threads; they run until
    /// [`ReplicaHandle::stop`].
    ///
    /// # Errors
    /// [`ReplicaFault`] when the folder cannot be used or its content is damaged.
    pub fn spawn(
        config: ReplicaConfig,
        machines: MachineFactory,
        outbound: Arc<dyn Outbound>,
        sink: Arc<dyn GroupSink>,
    ) -> Result<ReplicaHandle, ReplicaFault> {
        let inputs = Arc::new(Inputs::default());
        let metrics = Arc::new(ReplicaMetrics::default());
        let (log, rows) = open_stores(&config)?;
        let staging = config.dir.as_ref().map(|dir| dir.join("incoming"));
        let staging = Staging::open(staging.as_deref()).map_err(ReplicaFault::Folder)?;
        let stopping = Arc::new(AtomicBool::new(false));
        let (row_jobs, row_helper) =
            spawn_row_helper(rows.clone(), log.as_ref().map(DiskLog::purger), inputs.clone())?;
        let (install_jobs, install_helper) = spawn_install_helper(rows.clone(), inputs.clone())?;
        let (send_jobs, send_helper) = spawn_send_helper(outbound.clone(), inputs.clone(), stopping.clone())?;
        let now = Instant::now();
        let mut worker = Worker {
            driver: Driver::new(config.driver.clone()),
            next_tick: now + config.tick,
            next_checkpoint: now + config.checkpoint_every,
            config,
            log,
            rows: rows.clone(),
            machines,
            hosted: BTreeMap::new(),
            outbound,
            sink: sink.clone(),
            inputs: inputs.clone(),
            metrics: metrics.clone(),
            fx: Effects::default(),
            frames: BTreeMap::new(),
            staging,
            ripe: BTreeMap::new(),
            installing: BTreeMap::new(),
            checkpoint: Checkpoint::Idle,
            applied_bytes: 0,
            forced: BTreeSet::new(),
            opening: Vec::new(),
            row_jobs,
            install_jobs,
            send_jobs,
        };
        if let Err(fault) = worker.recover() {
            rows.close();
            drop(worker);
            // So that the folder can be opened again.
            for helper in [row_helper, install_helper, send_helper] {
                let _ = helper.join();
            }
            return Err(fault);
        }
        let thread = std::thread::Builder::new().name("replica".into()).spawn(move || {
            let (inputs, rows) = (worker.inputs.clone(), worker.rows.clone());
            let ended = std::panic::catch_unwind(AssertUnwindSafe(|| worker.run()));
            inputs.close();
            stopping.store(true, Ordering::Relaxed);
            // The helpers end when their queues close, which the worker's end has done.
            for helper in [row_helper, install_helper, send_helper] {
                let _ = helper.join();
            }
            match ended {
                Ok(Ok(())) => {}
                Ok(Err(fault)) => sink.failed(fault),
                Err(panic) => sink.failed(ReplicaFault::Panicked(panic_text(&*panic))),
            }
            // After those who read them have been told to end.
            rows.close();
        });
        let thread = Mutex::new(Some(thread.map_err(ReplicaFault::Folder)?));
        Ok(ReplicaHandle { shared: Arc::new(Shared { inputs, rows, metrics, thread }) })
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("panic without a text").to_owned()
}

fn open_stores(config: &ReplicaConfig) -> Result<(Option<DiskLog>, Arc<dyn RowStore>), ReplicaFault> {
    let Some(dir) = &config.dir else { return Ok((None, Arc::new(MemoryRows::default()))) };
    std::fs::create_dir_all(dir).map_err(ReplicaFault::Folder)?;
    let log = DiskLog::open(&dir.join("log"), config.log_file_bytes, config.log_purge_bytes)?;
    let rows = dir.join("rows");
    let rows = FjallRows::open_or_set_aside(&rows, config.rows_cache_bytes, config.rows_memtable_bytes)?;
    // A power cut must not take the folders of the stores with it, after they were written to.
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(ReplicaFault::Folder)?;
    Ok((Some(log), Arc::new(BufferedRows::new(rows))))
}

/// Runs jobs on a thread of their own, until their queue closes. After a panic it runs no more of them:
/// the replica stops, instead of waiting for ever for what the job would have told it.
fn spawn_helper<J: Send + 'static>(
    name: &str,
    jobs: mpsc::Receiver<J>,
    inputs: Arc<Inputs>,
    run: impl Fn(J) -> Input + Send + 'static,
) -> Result<JoinHandle<()>, ReplicaFault> {
    let helper = move || {
        for job in &jobs {
            match std::panic::catch_unwind(AssertUnwindSafe(|| run(job))) {
                Ok(outcome) => inputs.push_always(outcome),
                Err(panic) => {
                    inputs.push_always(Input::HelperPanicked(panic_text(&*panic)));
                    return jobs.into_iter().for_each(drop);
                }
            }
        }
    };
    std::thread::Builder::new().name(name.into()).spawn(helper).map_err(ReplicaFault::Folder)
}

fn spawn_row_helper(
    rows: Arc<dyn RowStore>,
    purger: Option<Purger>,
    inputs: Arc<Inputs>,
) -> Result<(mpsc::Sender<RowJob>, JoinHandle<()>), ReplicaFault> {
    let (sender, jobs) = mpsc::channel();
    let helper = spawn_helper("replica-rows", jobs, inputs, move |job| match job {
        RowJob::Sync(groups) => Input::Synced { groups, result: rows.sync() },
        RowJob::Purge => Input::Purged(purger.as_ref().map_or(Ok(Vec::new()), Purger::purge)),
    });
    Ok((sender, helper?))
}

fn spawn_install_helper(
    rows: Arc<dyn RowStore>,
    inputs: Arc<Inputs>,
) -> Result<(mpsc::Sender<InstallJob>, JoinHandle<()>), ReplicaFault> {
    let (sender, jobs) = mpsc::channel();
    let helper = spawn_helper(
        "replica-install",
        jobs,
        inputs,
        move |InstallJob(order, staged, machine): InstallJob| {
            let result = install(&*rows, order, &staged, machine);
            Input::Installed { group: order.group, index: order.index, result }
        },
    );
    Ok((sender, helper?))
}

fn spawn_send_helper(
    outbound: Arc<dyn Outbound>,
    inputs: Arc<Inputs>,
    stopping: Arc<AtomicBool>,
) -> Result<(mpsc::SyncSender<SendJob>, JoinHandle<()>), ReplicaFault> {
    let (sender, jobs) = mpsc::sync_channel(SEND_JOBS_MAX);
    let helper = spawn_helper("replica-send", jobs, inputs, move |job: SendJob| {
        let (group, to) = (job.snapshot.group, job.snapshot.to);
        let stopping = || stopping.load(Ordering::Relaxed);
        let ok = !stopping() && stream(job, &*outbound, stopping);
        Input::SnapshotSent { group, to, ok }
    });
    Ok((sender, helper?))
}

/// Everything the replica thread owns.
struct Worker {
    config: ReplicaConfig,
    driver: Driver,
    log: Option<DiskLog>,
    rows: Arc<dyn RowStore>,
    machines: MachineFactory,
    hosted: BTreeMap<GroupId, Hosted>,
    outbound: Arc<dyn Outbound>,
    sink: Arc<dyn GroupSink>,
    inputs: Arc<Inputs>,
    metrics: Arc<ReplicaMetrics>,
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
    row_jobs: mpsc::Sender<RowJob>,
    install_jobs: mpsc::Sender<InstallJob>,
    send_jobs: mpsc::SyncSender<SendJob>,
    next_tick: Instant,
    next_checkpoint: Instant,
}

impl Worker {
    // ---- start -----------------------------------------------------------------------------

    fn recover(&mut self) -> Result<(), ReplicaFault> {
        let Some(log) = &self.log else { return Ok(()) };
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
        self.hosted.insert(group, Hosted { config, machine, applied, dirty: false, durable: applied.0 });
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

    fn run(mut self) -> Result<(), ReplicaFault> {
        let mut inputs = Vec::new();
        let mut stop = false;
        while !stop {
            self.inputs.take(&mut inputs, self.patience());
            for input in inputs.drain(..) {
                match input {
                    #[cfg(test)]
                    Input::Die => return Ok(()),
                    Input::Stop => stop = true,
                    input => self.input(input)?,
                }
            }
            self.pass_time();
            self.turn()?;
            self.step_checkpoint()?;
        }
        self.last_checkpoint()
    }

    /// How long to wait for inputs.
    fn patience(&self) -> Duration {
        let busy = self.driver.has_work() || matches!(self.checkpoint, Checkpoint::Writing { .. });
        if busy { Duration::ZERO } else { self.next_tick.saturating_duration_since(Instant::now()) }
    }

    /// At most one tick a loop: after a pause the queue is read before any time-out fires.
    fn pass_time(&mut self) {
        let now = Instant::now();
        if now >= self.next_tick {
            self.driver.tick();
            self.next_tick = (self.next_tick + self.config.tick).max(now);
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
            Input::Checkpoint => self.next_checkpoint = Instant::now(),
            Input::Stop => {}
            #[cfg(test)]
            Input::Die => {}
        }
        Ok(())
    }

    /// Carries out what the driver wants done, in the order of its effects.
    fn turn(&mut self) -> Result<(), ReplicaFault> {
        let mut fx = std::mem::take(&mut self.fx);
        self.driver.ready(&mut fx);
        self.send(&mut fx.send_early);
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
        Ok(())
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
            let bytes = log.write(persist, |group| self.hosted.get(&group).map(|h| &h.config))?;
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
            self.rows.write(batch)?;
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

    fn tell_applied(&self, group: GroupId) {
        if let Some(Hosted { applied: (index, term), machine, .. }) = self.hosted.get(&group) {
            let event = GroupEvent::Applied { index: *index, term: *term, next_seq: machine.next_seq(*term) };
            self.sink.event(group, event);
        }
    }

    fn tell(&self, group: GroupId, event: EpochEvent) {
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
        if job.is_none_or(|job| self.send_jobs.try_send(job).is_err()) {
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
        let sent = self.install_jobs.send(InstallJob(order, rows, bytes));
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
        }
        ReplicaMetrics::add(&self.metrics.snapshots_installed, 1);
        self.driver.installed(group, &mut self.fx);
        self.tell_applied(group);
    }

    fn run_row_job(&self, job: RowJob) {
        let sent = self.row_jobs.send(job);
        assert!(sent.is_ok(), "the row helper lives as long as the replica thread");
    }

    // ---- checkpoints -----------------------------------------------------------------------

    fn step_checkpoint(&mut self) -> Result<(), ReplicaFault> {
        match std::mem::replace(&mut self.checkpoint, Checkpoint::Idle) {
            Checkpoint::Idle => {
                let due = self.applied_bytes >= self.config.checkpoint_bytes
                    || !self.forced.is_empty()
                    || self.next_checkpoint <= Instant::now();
                if due {
                    self.next_checkpoint = Instant::now() + self.config.checkpoint_every;
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

    fn last_checkpoint(mut self) -> Result<(), ReplicaFault> {
        let left: Vec<_> = self.dirty().collect();
        self.write_checkpoints(&left, &mut Vec::new())?;
        Ok(self.rows.sync()?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::rows::tests::WatchedRows;
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    /// The next thing the replica thread is told.
    fn told(inputs: &Inputs) -> Input {
        let mut taken = Vec::new();
        inputs.take(&mut taken, LONG);
        taken.pop().expect("something happens within a minute")
    }

    #[test]
    fn a_panic_while_rows_are_flushed_is_told() {
        let rows = WatchedRows(MemoryRows::default(), |operation| assert!(operation != "sync", "no sync"));
        let inputs = Arc::new(Inputs::default());
        let (jobs, helper) = spawn_row_helper(Arc::new(rows), None, inputs.clone()).unwrap();
        jobs.send(RowJob::Sync(vec![])).unwrap();
        assert!(matches!(told(&inputs), Input::HelperPanicked(text) if text == "no sync"));
        jobs.send(RowJob::Purge).expect("jobs are taken, though not done");
        drop(jobs);
        helper.join().unwrap();
        inputs.push_always(Input::Checkpoint);
        assert!(matches!(told(&inputs), Input::Checkpoint), "nothing was done after the panic");
    }

    #[test]
    fn rows_are_flushed_while_a_snapshot_is_installed() {
        let (leave, left) = mpsc::channel::<()>();
        let left = Arc::new(Mutex::new(left));
        let rows: Arc<dyn RowStore> = Arc::new(WatchedRows(MemoryRows::default(), move |operation| {
            if operation == "wipe" {
                let _ = left.lock().unwrap().recv();
            }
        }));
        let inputs = Arc::new(Inputs::default());
        let (row_jobs, _) = spawn_row_helper(rows.clone(), None, inputs.clone()).unwrap();
        let (install_jobs, _) = spawn_install_helper(rows, inputs.clone()).unwrap();
        let order = Install { group: GroupId::SYSTEM, index: LogIndex(9), term: Term(1) };
        install_jobs.send(InstallJob(order, StagedRows::Memory(vec![]), vec![])).unwrap();
        row_jobs.send(RowJob::Sync(vec![])).unwrap();
        assert!(matches!(told(&inputs), Input::Synced { result: Ok(()), .. }));
        leave.send(()).unwrap();
        assert!(matches!(told(&inputs), Input::Installed { result: Ok(()), .. }));
    }
}
