//! A node of a test cluster as a process of its own: one thread with a runtime that nobody else uses.
//!
//! Owns that thread. Killed, it drops the runtime with everything in it, in the middle of whatever was being
//! done; paused, it stands still as after SIGSTOP. Never touches the disk, which outlives it.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use tempfile::TempDir;
use tokio::runtime::{Builder, Handle};
use tokio::sync::{oneshot, watch};

use crate::app::App;
use crate::clock::WallClock;
use crate::node::{Machine, Node};

/// How long a thread may take to come to where it can be paused or ended; only a turn that blocks it does.
const REACT_WITHIN: Duration = Duration::from_secs(10);

/// What a node does.
#[derive(Clone)]
pub(super) enum Life {
    /// It opens its data, or closes it.
    Busy,
    /// It runs.
    Up(Node),
    /// It did not start, or has stopped by itself; why.
    Failed(String),
}

/// How a thread is to end.
enum Quit {
    /// At once, as a killed process.
    Kill,
    /// After its leaderships are given away, for at most so long.
    InOrder(Duration),
}

/// A thread that runs a node.
pub(super) struct Process {
    life: watch::Receiver<Life>,
    quit: oneshot::Sender<Quit>,
    ended: Ended,
    runtime: Handle,
    clock: WallClock,
    /// Holds the thread for as long as it is there.
    paused: Option<mpsc::Sender<Infallible>>,
}

impl Process {
    /// Starts a node in a thread, which keeps the folder for as long as it lives.
    pub(super) fn start(machine: Machine, app: App, folder: Arc<TempDir>) -> Self {
        let name = machine.node.to_string();
        let clock = machine.clock.clone();
        let (sender, life) = watch::channel(Life::Busy);
        let (quit, quitting) = oneshot::channel();
        let (runtime, ended) = thread(name, async move || {
            run(machine, app, &sender, quitting).await;
            (sender, folder)
        });
        Self { life, quit, ended, runtime, clock, paused: None }
    }

    /// What the node does. Paused, it does what it did.
    pub(super) fn life(&self) -> Life {
        self.life.borrow().clone()
    }

    /// Sets the machine's clock forward or back.
    pub(super) fn set_clock(&self, millis: i64) {
        self.clock.jump(millis);
        if let Life::Up(node) = self.life() {
            node.clock_set();
        }
    }

    pub(super) fn is_paused(&self) -> bool {
        self.paused.is_some()
    }

    /// Holds the thread; returns once it stands still.
    #[track_caller]
    pub(super) fn pause(&mut self) {
        let (resume, held) = mpsc::channel();
        let (holding, holds) = mpsc::channel::<Infallible>();
        self.runtime.spawn(async move {
            drop(holding);
            let _ = held.recv();
        });
        let stands = holds.recv_timeout(REACT_WITHIN) == Err(RecvTimeoutError::Disconnected);
        assert!(stands, "a node cannot be paused: a turn blocks its thread");
        self.paused = Some(resume);
    }

    /// Lets the thread go on.
    pub(super) fn resume(&mut self) {
        self.paused = None;
    }

    /// Begins to end it at once.
    pub(super) fn kill(self) -> Ended {
        self.end(Quit::Kill)
    }

    /// Begins to end it in good order.
    pub(super) fn stop(self, grace: Duration) -> Ended {
        self.end(Quit::InOrder(grace))
    }

    fn end(self, how: Quit) -> Ended {
        // One that has ended by itself does not listen.
        let _ = self.quit.send(how);
        self.ended
    }
}

/// Lives the life of a node until told to end it.
async fn run(machine: Machine, app: App, life: &watch::Sender<Life>, quit: oneshot::Receiver<Quit>) {
    let living = async {
        let why = match Node::start_on(machine, app).await {
            Ok(node) => {
                life.send_replace(Life::Up(node.clone()));
                node.failed().await
            }
            Err(error) => error.to_string(),
        };
        life.send_replace(Life::Failed(why));
        std::future::pending().await
    };
    let quit = tokio::select! {
        biased;
        quit = quit => quit.unwrap_or(Quit::Kill),
        quit = living => quit,
    };
    if let (Quit::InOrder(grace), Life::Up(node)) = (quit, life.send_replace(Life::Busy)) {
        node.stop(grace).await;
    }
}

/// Runs a future in a thread with a runtime of its own, which ends with it. What the future gives is dropped
/// after the runtime.
pub(super) fn thread<T: 'static>(
    name: String,
    future: impl AsyncFnOnce() -> T + Send + 'static,
) -> (Handle, Ended) {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime can be made");
    let handle = runtime.handle().clone();
    let (ending, ended) = mpsc::channel::<Infallible>();
    let run = move || {
        let kept = runtime.block_on(future());
        // Without waiting for what a turn has given to other threads.
        runtime.shutdown_background();
        drop(kept);
        drop(ending);
    };
    std::thread::Builder::new().name(name).spawn(run).expect("a thread can be started");
    (handle, Ended(ended))
}

/// Tells when a thread has ended and its runtime is gone.
pub(super) struct Ended(mpsc::Receiver<Infallible>);

impl Ended {
    /// Waits for at most so long; says whether it has ended.
    pub(super) fn wait(self, within: Duration) -> bool {
        self.0.recv_timeout(within) == Err(RecvTimeoutError::Disconnected)
    }

    /// Waits for as long as any thread should take.
    #[track_caller]
    pub(super) fn expect(self) {
        assert!(self.wait(REACT_WITHIN), "a node cannot be ended: a turn blocks its thread");
    }
}
