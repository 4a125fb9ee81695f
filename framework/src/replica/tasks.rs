//! The replica as a task of a runtime, for nodes whose machine is simulated.
//!
//! Owns the same loop as the thread does, waiting as tasks do, and the helpers as tasks. Work on the disk
//! takes as long as the [`Pace`] says, in the runtime's time: between what is sent early and the flush
//! other nodes go on, and the node may be killed there.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::config::ReplicaConfig;
use super::handle::{GroupSink, Outbound, ReplicaFault, ReplicaHandle, Shared};
use super::inputs::{Input, Inputs};
use super::metrics::ReplicaMetrics;
use super::rows::RowStore;
use super::snapshot::{RETRY, SendJob, Staging, stream};
use super::standing::Standings;
use super::stores::{Purge, Stores};
use super::thread::{Replica, SEND_JOBS_MAX, caught, run_install_job, run_row_job, tell_end, told};
use super::worker::{End, InstallJob, Jobs, MachineFactory, RowJob, Surroundings, Worker};

/// How long the next piece of work on the disk takes.
pub type Pace = Arc<dyn Fn() -> Duration + Send + Sync>;

impl Replica {
    /// Opens stores and starts the replica as tasks of the current runtime. They end with
    /// [`ReplicaHandle::stop`], or with the runtime, as a killed process does.
    ///
    /// # Errors
    /// [`ReplicaFault`] when the content of the stores is damaged.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub fn spawn_tasks(
        config: ReplicaConfig,
        stores: Stores,
        pace: Pace,
        machines: MachineFactory,
        outbound: Arc<dyn Outbound>,
        sink: Arc<dyn GroupSink>,
    ) -> Result<ReplicaHandle, ReplicaFault> {
        let inputs = Arc::new(Inputs::default());
        let metrics = Arc::new(ReplicaMetrics::default());
        let standings = Arc::new(Standings::default());
        let staging = Staging::open(None).map_err(ReplicaFault::Folder)?;
        let rows = stores.rows.clone();
        let ended = CancellationToken::new();
        let (row_sender, row_jobs) = mpsc::unbounded_channel();
        let (install_sender, install_jobs) = mpsc::unbounded_channel();
        let (send_sender, send_jobs) = mpsc::channel::<SendJob>(SEND_JOBS_MAX);
        let jobs = Jobs { rows: row_sender, install: install_sender, send: send_sender };
        let purger = stores.log.as_ref().map(|log| log.purger());
        let around = Surroundings {
            machines,
            outbound: outbound.clone(),
            sink: sink.clone(),
            inputs: inputs.clone(),
            metrics: metrics.clone(),
            standings: standings.clone(),
        };
        let worker = Worker::open_all(config, stores, staging, jobs, around).inspect_err(|_| rows.close())?;
        tokio::spawn(row_helper(row_jobs, rows.clone(), purger, inputs.clone(), pace.clone()));
        tokio::spawn(install_helper(install_jobs, rows.clone(), inputs.clone(), pace.clone()));
        tokio::spawn(send_helper(send_jobs, outbound, inputs.clone(), ended.clone()));
        let shared = Shared {
            inputs: inputs.clone(),
            rows: rows.clone(),
            metrics,
            standings,
            ended: ended.clone(),
            thread: Mutex::default(),
        };
        tokio::spawn(async move {
            // Whatever panics here.
            let _ended = ended.drop_guard();
            let outcome = AssertUnwindSafe(run(worker, &inputs, pace)).catch_unwind().await;
            inputs.close();
            tell_end(&*sink, outcome);
            rows.close();
        });
        Ok(ReplicaHandle { shared: Arc::new(shared) })
    }
}

// Like the helpers of the thread: after a panic they take jobs and do none.

async fn row_helper(
    mut jobs: mpsc::UnboundedReceiver<RowJob>,
    rows: Arc<dyn RowStore>,
    purger: Option<Box<dyn Purge>>,
    inputs: Arc<Inputs>,
    pace: Pace,
) {
    let mut well = true;
    while let Some(job) = jobs.recv().await {
        tokio::time::sleep(pace()).await;
        well = well && told(&inputs, caught(|| run_row_job(job, &*rows, purger.as_deref())));
    }
}

async fn install_helper(
    mut jobs: mpsc::UnboundedReceiver<InstallJob>,
    rows: Arc<dyn RowStore>,
    inputs: Arc<Inputs>,
    pace: Pace,
) {
    let mut well = true;
    while let Some(job) = jobs.recv().await {
        tokio::time::sleep(pace()).await;
        well = well && told(&inputs, caught(|| run_install_job(job, &*rows)));
    }
}

async fn send_helper(
    mut jobs: mpsc::Receiver<SendJob>,
    outbound: Arc<dyn Outbound>,
    inputs: Arc<Inputs>,
    ended: CancellationToken,
) {
    let mut well = true;
    while let Some(job) = jobs.recv().await {
        let (group, to) = (job.snapshot.group, job.snapshot.to);
        let pause = async || tokio::time::sleep(RETRY).await;
        let sent = stream(job, &*outbound, || ended.is_cancelled(), pause);
        if well {
            let sent = AssertUnwindSafe(sent).catch_unwind().await;
            well = told(&inputs, sent.map(|ok| Input::SnapshotSent { group, to, ok }));
        }
    }
}

async fn run(mut worker: Worker, inputs: &Inputs, pace: Pace) -> Result<(), ReplicaFault> {
    let mut taken = Vec::new();
    let mut end: Option<End> = None;
    while end.is_none() {
        inputs.taken(&mut taken, worker.patience()).await;
        end = worker.take_in(&mut taken)?;
        if worker.begin() {
            tokio::time::sleep(pace()).await;
        }
        worker.finish()?;
    }
    worker.last_checkpoint()
}

#[cfg(test)]
mod tests {
    use super::super::rows::MemoryRows;
    use super::super::rows::tests::WatchedRows;
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_panic_while_rows_are_flushed_is_told() {
        let rows = WatchedRows(MemoryRows::default(), |operation| assert!(operation != "sync", "no sync"));
        let inputs = Arc::new(Inputs::default());
        let (sender, jobs) = mpsc::unbounded_channel();
        let pace: Pace = Arc::new(|| Duration::ZERO);
        let helper = tokio::spawn(row_helper(jobs, Arc::new(rows), None, inputs.clone(), pace));
        assert!(sender.send(RowJob::Sync(vec![])).is_ok());
        assert!(sender.send(RowJob::Purge).is_ok());
        drop(sender);
        helper.await.unwrap();
        let mut taken = Vec::new();
        inputs.taken(&mut taken, Duration::ZERO).await;
        assert!(matches!(&taken[..], [Input::HelperPanicked(text)] if text == "no sync"));
    }
}
