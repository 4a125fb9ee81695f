//! The replica on threads of its own, as every node runs it.
//!
//! Owns the replica thread and the three helpers beside it: one flushes rows, one installs snapshots, one
//! streams them; the first never waits for the others, because the log grows until rows are flushed.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use futures_util::FutureExt;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::config::ReplicaConfig;
use super::handle::{GroupSink, Outbound, ReplicaFault, ReplicaHandle, Shared};
use super::inputs::{Input, Inputs};
use super::metrics::ReplicaMetrics;
use super::rows::RowStore;
use super::snapshot::{RETRY, SendJob, Staging, install, stream};
use super::standing::Standings;
use super::stores::{Purge, Stores};
use super::worker::{InstallJob, Jobs, MachineFactory, RowJob, Surroundings, Worker};

/// Snapshots captured and waiting to be streamed; the driver sends one to each peer at a time.
pub(super) const SEND_JOBS_MAX: usize = 64;

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
        let standings = Arc::new(Standings::default());
        let stores = Stores::open(&config)?;
        let staging = config.dir.as_ref().map(|dir| dir.join("incoming"));
        let staging = Staging::open(staging.as_deref()).map_err(ReplicaFault::Folder)?;
        let stopping = Arc::new(AtomicBool::new(false));
        let rows = stores.rows.clone();
        let purger = stores.log.as_ref().map(|log| log.purger());
        let (row_jobs, row_helper) = spawn_row_helper(rows.clone(), purger, inputs.clone())?;
        let (install_jobs, install_helper) = spawn_install_helper(rows.clone(), inputs.clone())?;
        let (send_jobs, send_helper) = spawn_send_helper(outbound.clone(), inputs.clone(), stopping.clone())?;
        let jobs = Jobs { rows: row_jobs, install: install_jobs, send: send_jobs };
        let around = Surroundings {
            machines,
            outbound,
            sink: sink.clone(),
            inputs: inputs.clone(),
            metrics: metrics.clone(),
            standings: standings.clone(),
        };
        let worker = match Worker::open_all(config, stores, staging, jobs, around) {
            Ok(worker) => worker,
            Err(fault) => {
                rows.close();
                // So that the folder can be opened again.
                for helper in [row_helper, install_helper, send_helper] {
                    let _ = helper.join();
                }
                return Err(fault);
            }
        };
        let ended = CancellationToken::new();
        let shared = Shared {
            inputs: inputs.clone(),
            rows: rows.clone(),
            metrics,
            standings,
            ended: ended.clone(),
            thread: Mutex::default(),
        };
        let run = move || {
            // Whatever panics here.
            let _ended = ended.drop_guard();
            let outcome = caught(|| worker.run());
            inputs.close();
            stopping.store(true, Ordering::Relaxed);
            // The helpers end when their queues close, which the worker's end has done.
            for helper in [row_helper, install_helper, send_helper] {
                let _ = helper.join();
            }
            tell_end(&*sink, outcome);
            // After those who read them have been told to end.
            rows.close();
        };
        let thread = std::thread::Builder::new().name("replica".into()).spawn(run);
        let shared = Shared { thread: Mutex::new(Some(thread.map_err(ReplicaFault::Folder)?)), ..shared };
        Ok(ReplicaHandle { shared: Arc::new(shared) })
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("panic without a text").to_owned()
}

/// Tells the node how the worker ended, if that was not in good order.
pub(super) fn tell_end(sink: &dyn GroupSink, outcome: std::thread::Result<Result<(), ReplicaFault>>) {
    match outcome {
        Ok(Ok(())) => {}
        Ok(Err(fault)) => sink.failed(fault),
        Err(panic) => sink.failed(ReplicaFault::Panicked(panic_text(&*panic))),
    }
}

pub(super) fn caught<T>(job: impl FnOnce() -> T) -> std::thread::Result<T> {
    std::panic::catch_unwind(AssertUnwindSafe(job))
}

/// Tells the replica what a job has come to. Returns whether the helper may go on.
pub(super) fn told(inputs: &Inputs, outcome: std::thread::Result<Input>) -> bool {
    let well = outcome.is_ok();
    inputs.push_always(outcome.unwrap_or_else(|panic| Input::HelperPanicked(panic_text(&*panic))));
    well
}

/// Flushes rows or removes old files of the log.
pub(super) fn run_row_job(job: RowJob, rows: &dyn RowStore, purger: Option<&dyn Purge>) -> Input {
    match job {
        RowJob::Sync(groups) => Input::Synced { groups, result: rows.sync() },
        RowJob::Purge => Input::Purged(purger.map_or(Ok(Vec::new()), Purge::purge)),
    }
}

/// Installs a snapshot.
pub(super) fn run_install_job(InstallJob(order, staged, machine): InstallJob, rows: &dyn RowStore) -> Input {
    let result = install(rows, order, &staged, machine);
    Input::Installed { group: order.group, index: order.index, result }
}

/// Runs jobs on a thread of their own, until their queue closes. After a panic it runs no more of them:
/// the replica stops, instead of waiting for ever for what the job would have told it.
fn spawn_helper<J: Send + 'static>(
    name: &str,
    mut next: impl FnMut() -> Option<J> + Send + 'static,
    inputs: Arc<Inputs>,
    run: impl Fn(J) -> Input + Send + 'static,
) -> Result<JoinHandle<()>, ReplicaFault> {
    let helper = move || {
        while let Some(job) = next() {
            if !told(&inputs, caught(|| run(job))) {
                return while next().is_some() {};
            }
        }
    };
    std::thread::Builder::new().name(name.into()).spawn(helper).map_err(ReplicaFault::Folder)
}

fn spawn_row_helper(
    rows: Arc<dyn RowStore>,
    purger: Option<Box<dyn Purge>>,
    inputs: Arc<Inputs>,
) -> Result<(mpsc::UnboundedSender<RowJob>, JoinHandle<()>), ReplicaFault> {
    let (sender, mut jobs) = mpsc::unbounded_channel();
    let next = move || jobs.blocking_recv();
    let helper =
        spawn_helper("replica-rows", next, inputs, move |job| run_row_job(job, &*rows, purger.as_deref()));
    Ok((sender, helper?))
}

fn spawn_install_helper(
    rows: Arc<dyn RowStore>,
    inputs: Arc<Inputs>,
) -> Result<(mpsc::UnboundedSender<InstallJob>, JoinHandle<()>), ReplicaFault> {
    let (sender, mut jobs) = mpsc::unbounded_channel();
    let next = move || jobs.blocking_recv();
    let helper = spawn_helper("replica-install", next, inputs, move |job| run_install_job(job, &*rows));
    Ok((sender, helper?))
}

fn spawn_send_helper(
    outbound: Arc<dyn Outbound>,
    inputs: Arc<Inputs>,
    stopping: Arc<AtomicBool>,
) -> Result<(mpsc::Sender<SendJob>, JoinHandle<()>), ReplicaFault> {
    let (sender, mut jobs) = mpsc::channel(SEND_JOBS_MAX);
    let next = move || jobs.blocking_recv();
    let helper = spawn_helper("replica-send", next, inputs, move |job: SendJob| {
        let (group, to) = (job.snapshot.group, job.snapshot.to);
        let stopping = || stopping.load(Ordering::Relaxed);
        let pause = async || std::thread::sleep(RETRY);
        let ok = !stopping() && stream(job, &*outbound, stopping, pause).now_or_never().unwrap_or(false);
        Input::SnapshotSent { group, to, ok }
    });
    Ok((sender, helper?))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::config::GroupConfig;
    use super::super::handle::{BulkRefused, GroupEvent};
    use super::super::rows::MemoryRows;
    use super::super::rows::tests::WatchedRows;
    use super::super::snapshot::StagedRows;
    use super::*;
    use bytes::Bytes;
    use perennial_core::id::{GroupId, LogIndex, MemberId, Term};
    use perennial_core::replication::Install;

    const LONG: Duration = Duration::from_secs(60);

    /// The next thing the replica thread is told.
    fn next(inputs: &Inputs) -> Input {
        let mut taken = Vec::new();
        inputs.take(&mut taken, LONG);
        taken.pop().expect("something happens within a minute")
    }

    #[test]
    fn a_panic_while_rows_are_flushed_is_told() {
        let rows = WatchedRows(MemoryRows::default(), |operation| assert!(operation != "sync", "no sync"));
        let inputs = Arc::new(Inputs::default());
        let (jobs, helper) = spawn_row_helper(Arc::new(rows), None, inputs.clone()).unwrap();
        assert!(jobs.send(RowJob::Sync(vec![])).is_ok());
        assert!(matches!(next(&inputs), Input::HelperPanicked(text) if text == "no sync"));
        assert!(jobs.send(RowJob::Purge).is_ok(), "jobs are taken, though not done");
        drop(jobs);
        helper.join().unwrap();
        inputs.push_always(Input::Checkpoint);
        assert!(matches!(next(&inputs), Input::Checkpoint), "nothing was done after the panic");
    }

    #[test]
    fn rows_are_flushed_while_a_snapshot_is_installed() {
        let (leave, left) = std::sync::mpsc::channel::<()>();
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
        assert!(install_jobs.send(InstallJob(order, StagedRows::Memory(vec![]), vec![])).is_ok());
        assert!(row_jobs.send(RowJob::Sync(vec![])).is_ok());
        assert!(matches!(next(&inputs), Input::Synced { result: Ok(()), .. }));
        leave.send(()).unwrap();
        assert!(matches!(next(&inputs), Input::Installed { result: Ok(()), .. }));
    }

    struct Nobody;

    impl Outbound for Nobody {
        fn raft(&self, _: MemberId, _: Bytes) {}
        fn bulk(&self, _: MemberId, _: Bytes) -> Result<(), BulkRefused> {
            Err(BulkRefused::NoLink)
        }
    }

    impl GroupSink for Nobody {
        fn event(&self, _: GroupId, _: GroupEvent) {}
        fn failed(&self, fault: ReplicaFault) {
            panic!("told of {fault}");
        }
    }

    #[test]
    fn an_idle_thread_has_a_pulse_and_one_that_stands_still_has_none() {
        let (enter, entered) = std::sync::mpsc::channel();
        let (leave, left) = std::sync::mpsc::channel::<()>();
        let machines: MachineFactory = Box::new(move |_| {
            enter.send(()).unwrap();
            let _ = left.recv();
            panic!("on purpose");
        });
        let config = ReplicaConfig::new(MemberId(1), 1, None);
        let replica = Replica::spawn(config, machines, Arc::new(Nobody), Arc::new(Unmoved)).unwrap();
        let beats = || replica.metrics().beats.load(Ordering::Relaxed);
        let seen = beats();
        let give_up = std::time::Instant::now() + LONG;
        while beats() < seen + 3 {
            assert!(std::time::Instant::now() < give_up, "nothing is to be done, but time passes");
            std::thread::yield_now();
        }
        let group = GroupConfig { group: GroupId::SYSTEM, voters: vec![MemberId(1)], preferred: vec![] };
        let opening = replica.open_groups(vec![group]);
        let mut opening = std::pin::pin!(opening);
        assert!(opening.as_mut().now_or_never().is_none());
        entered.recv().unwrap();
        let still = beats();
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(beats(), still, "the thread is held");
        drop(leave);
        replica.shared.thread.lock().unwrap().take().unwrap().join().unwrap();
    }

    /// Is told of the end and does nothing.
    struct Unmoved;

    impl GroupSink for Unmoved {
        fn event(&self, _: GroupId, _: GroupEvent) {}
        fn failed(&self, _: ReplicaFault) {}
    }

    #[test]
    fn a_replica_that_failed_is_stopped_whatever_those_told_of_it_do() {
        let config = ReplicaConfig::new(MemberId(1), 1, None);
        let machines: MachineFactory = Box::new(|_| unreachable!("no group is opened"));
        let replica = Replica::spawn(config, machines, Arc::new(Nobody), Arc::new(Nobody)).unwrap();
        replica.shared.inputs.push_always(Input::HelperPanicked("a rule is broken".into()));
        replica.shared.thread.lock().unwrap().take().unwrap().join().unwrap_err();
        assert!(replica.shared.ended.is_cancelled());
    }
}
