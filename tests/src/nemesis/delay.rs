//! A second way from each node to the others, on which packets come late.
//!
//! Owns two network interfaces of user space for each node, and the thread that carries frames from one
//! to the other after a while. Late frames overtake each other, as they do where latency varies. Which
//! way a node's packets go is up to [`super::net`].

use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_tun::Tun;
use tokio_util::sync::CancellationToken;

use super::net::Entrance;

/// Longest frame.
const FRAME_BYTES_MAX: usize = 2048;
/// Frames of one node on their way in one direction; more are lost.
const FRAMES_MAX: usize = 4096;

/// How late the frames of a node are, each way; `None` if they do not come this way.
type Late = Arc<Mutex<Option<std::ops::Range<Duration>>>>;

/// The late ways of all nodes.
pub(super) struct Delays {
    late: Vec<Late>,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Delays {
    /// Makes the interfaces, two for each node, in the namespace behind an entrance.
    pub(super) fn start(entrance: Entrance, nodes: usize) -> Result<Self, String> {
        let late: Vec<Late> = (0..nodes).map(|_| Late::default()).collect();
        let stop = CancellationToken::new();
        let (made, is_made) = mpsc::channel();
        let (theirs, stopped) = (late.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            entrance.enter();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.expect("a runtime without threads needs nothing");
            runtime.block_on(async {
                let ways: Result<Vec<_>, _> = theirs.iter().enumerate().map(way).collect();
                let _ = made.send(ways.as_ref().map(drop).map_err(tokio_tun::Error::to_string));
                let mut carried: JoinSet<_> = ways.into_iter().flatten().flatten().collect();
                tokio::select! {
                    () = stopped.cancelled() => {}
                    _ = carried.join_next() => {} // an interface is gone: so is the namespace
                }
            });
        });
        let started = Self { late, stop, thread: Some(thread) };
        let made = is_made.recv().unwrap_or_else(|_| Err("their thread ended".into()));
        made.map_err(|why| format!("network interfaces of user space cannot be made: {why}"))?;
        Ok(started)
    }

    /// From now on, frames that come this way are so late.
    pub(super) fn set(&self, node: usize, late: Option<std::ops::Range<Duration>>) {
        *self.late[node].lock().unwrap_or_else(PoisonError::into_inner) = late;
    }
}

impl Drop for Delays {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Interface on the node's side of its late way.
pub(super) fn near(node: usize) -> String {
    format!("a{}", node + 1)
}

/// Interface on the other side.
pub(super) fn far(node: usize) -> String {
    format!("d{}", node + 1)
}

/// Both directions between the interfaces of a node.
fn way((node, late): (usize, &Late)) -> tokio_tun::Result<[impl Future<Output = ()> + use<>; 2]> {
    let make = |name: &str| -> tokio_tun::Result<_> {
        let made = Tun::builder().name(name).tap().close_on_exec().up().build()?;
        Ok(Arc::new(made.into_iter().next().expect("one queue was asked for")))
    };
    let (near, far) = (make(&near(node))?, make(&far(node))?);
    Ok([carry(near.clone(), far.clone(), late.clone()), carry(far, near, late.clone())])
}

/// Carries frames until an interface is gone.
async fn carry(from: Arc<Tun>, to: Arc<Tun>, late: Late) {
    let room = Arc::new(Semaphore::new(FRAMES_MAX));
    let mut frame = [0; FRAME_BYTES_MAX];
    while let Ok(length) = from.recv(&mut frame).await {
        let range = late.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (Some(range), Ok(place)) = (range, room.clone().try_acquire_owned()) else { continue };
        let (to, frame) = (to.clone(), frame[..length].to_vec());
        tokio::spawn(async move {
            tokio::time::sleep(rand::random_range(range)).await;
            // A frame may be lost, on this way too.
            let _ = to.send(&frame).await;
            drop(place);
        });
    }
}
