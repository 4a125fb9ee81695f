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
use super::snapshot::{RETRY, SendJob, Staging, stream};
use super::stores::Stores;
use super::thread::{Replica, SEND_JOBS_MAX, panic_text, run_install_job, run_row_job};
use super::worker::{End, Jobs, MachineFactory, Surroundings, Worker};

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
        let staging = Staging::open(None).map_err(ReplicaFault::Folder)?;
        let rows = stores.rows.clone();
        let ended = CancellationToken::new();
        let (row_sender, mut row_jobs) = mpsc::unbounded_channel();
        let (install_sender, mut install_jobs) = mpsc::unbounded_channel();
        let (send_sender, mut send_jobs) = mpsc::channel::<SendJob>(SEND_JOBS_MAX);
        let jobs = Jobs { rows: row_sender, install: install_sender, send: send_sender };
        let purger = stores.log.as_ref().map(|log| log.purger());
        let around = Surroundings {
            machines,
            outbound: outbound.clone(),
            sink: sink.clone(),
            inputs: inputs.clone(),
            metrics: metrics.clone(),
        };
        let worker = Worker::open_all(config, stores, staging, jobs, around).inspect_err(|_| rows.close())?;
        tokio::spawn({
            let (rows, inputs, pace) = (rows.clone(), inputs.clone(), pace.clone());
            async move {
                while let Some(job) = row_jobs.recv().await {
                    tokio::time::sleep(pace()).await;
                    inputs.push_always(run_row_job(job, &*rows, purger.as_deref()));
                }
            }
        });
        tokio::spawn({
            let (rows, inputs, pace) = (rows.clone(), inputs.clone(), pace.clone());
            async move {
                while let Some(job) = install_jobs.recv().await {
                    tokio::time::sleep(pace()).await;
                    inputs.push_always(run_install_job(job, &*rows));
                }
            }
        });
        tokio::spawn({
            let (inputs, ended) = (inputs.clone(), ended.clone());
            async move {
                while let Some(job) = send_jobs.recv().await {
                    let (group, to) = (job.snapshot.group, job.snapshot.to);
                    let pause = async || tokio::time::sleep(RETRY).await;
                    let ok = stream(job, &*outbound, || ended.is_cancelled(), pause).await;
                    inputs.push_always(Input::SnapshotSent { group, to, ok });
                }
            }
        });
        let shared = Shared {
            inputs: inputs.clone(),
            rows: rows.clone(),
            metrics,
            ended: ended.clone(),
            thread: Mutex::default(),
        };
        tokio::spawn(async move {
            let outcome = AssertUnwindSafe(run(worker, &inputs, pace)).catch_unwind().await;
            inputs.close();
            match outcome {
                Ok(Ok(())) => {}
                Ok(Err(fault)) => sink.failed(fault),
                Err(panic) => sink.failed(ReplicaFault::Panicked(panic_text(&*panic))),
            }
            rows.close();
            ended.cancel();
        });
        Ok(ReplicaHandle { shared: Arc::new(shared) })
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
