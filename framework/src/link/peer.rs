//! One link: a framed connection with a bounded queue on the way out.
//!
//! Owns the queue, the read and write loops and their deadlines. Never dials and never knows what a
//! body means. In: frames to send, an admitted stream; out: frames received, and at the end why.
//!
//! Sending appends the encoded frame to one buffer; the writer takes the whole buffer and writes it at
//! once, so that frames coalesce by themselves under load and leave at once when there is none.

use std::io;
use std::mem;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::config::LinkConfig;
use super::frame::{self, Frame, FrameError, Kind};
use super::lock;

/// A read buffer's size when it is made anew.
const READ_BYTES: usize = 64 << 10;
/// Less free room than this and the read buffer grows before the next read.
const READ_ROOM_MIN: usize = 4 << 10;
/// A write buffer larger than this is given back after a burst.
const SPARE_BYTES_MAX: usize = 256 << 10;
/// Room beyond the queue's limit for the small frames that say why something ended.
const SLACK_BYTES: usize = 64 << 10;
/// After a broken write, how long to read what the other side said before it left.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// A connected byte stream, TLS or in memory.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}
/// A connected byte stream of any kind.
pub(crate) type Io = Box<dyn Stream>;

/// What a link does with a frame; an error closes the link.
pub(crate) type OnFrame<'a> = &'a mut (dyn FnMut(Frame) -> Result<(), FrameError> + Send);

/// Why a link ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Close {
    /// The other side closed, or its kernel did: its process may be gone.
    Broken(Option<io::ErrorKind>),
    /// Nothing arrived for `idle_read`.
    Idle,
    /// Nothing could be written for `stalled_write`.
    Stalled,
    /// The other side sent what is not a frame.
    Garbage(FrameError),
    /// This side closed it.
    Local,
}

/// Why a frame was not queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The queue is at its limit.
    Full,
    /// The link has ended.
    Closed,
}

/// Frames on their way out, encoded, in order.
///
/// Invariants: `buf.len() + writing <= bytes_max + SLACK_BYTES`; after `closed` nothing is added.
pub(crate) struct Outbox {
    state: Mutex<OutState>,
    wake: Notify,
    bytes_max: usize,
}

#[derive(Default)]
struct OutState {
    buf: Vec<u8>,
    /// Bytes the writer took and has not written yet.
    writing: usize,
    closed: bool,
    writer_waits: bool,
}

impl Outbox {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { state: Mutex::default(), wake: Notify::new(), bytes_max }
    }

    /// Queues a frame within the limit.
    pub(crate) fn push(&self, kind: Kind, id: u64, body: &[u8]) -> Result<(), Refused> {
        self.push_within(self.bytes_max, kind, id, body)
    }

    /// Queues a small frame that ends something, with room beyond the limit.
    pub(crate) fn push_end(&self, kind: Kind, id: u64, body: &[u8]) -> Result<(), Refused> {
        self.push_within(self.bytes_max + SLACK_BYTES, kind, id, body)
    }

    fn push_within(&self, bytes_max: usize, kind: Kind, id: u64, body: &[u8]) -> Result<(), Refused> {
        let mut state = lock(&self.state);
        if state.closed {
            return Err(Refused::Closed);
        }
        if state.buf.len() + state.writing + frame::wire_bytes(kind, body.len()) > bytes_max {
            return Err(Refused::Full);
        }
        frame::encode(&mut state.buf, kind, id, body);
        let wake = mem::take(&mut state.writer_waits);
        drop(state);
        if wake {
            self.wake.notify_one();
        }
        Ok(())
    }

    /// Takes nothing more; what is queued is still written.
    pub(crate) fn close(&self) {
        lock(&self.state).closed = true;
        self.wake.notify_one();
    }

    fn is_closed(&self) -> bool {
        lock(&self.state).closed
    }

    /// Takes nothing more and forgets what is queued.
    fn discard(&self) {
        *lock(&self.state) = OutState { closed: true, ..OutState::default() };
        self.wake.notify_one();
    }

    /// Swaps everything queued into `batch`, whose former bytes are written; waits for some. False when
    /// closed and empty.
    async fn next(&self, batch: &mut Vec<u8>) -> bool {
        batch.clear();
        if batch.capacity() > SPARE_BYTES_MAX {
            *batch = Vec::new();
        }
        loop {
            {
                let mut state = lock(&self.state);
                state.writing = 0;
                if !state.buf.is_empty() {
                    mem::swap(&mut state.buf, batch);
                    state.writing = batch.len();
                    return true;
                }
                if state.closed {
                    return false;
                }
                state.writer_waits = true;
            }
            self.wake.notified().await;
        }
    }
}

/// One established connection of one lane.
///
/// Invariant: once `ended` is set, no frame is handed on and none can be queued.
pub(crate) struct Link {
    pub(crate) outbox: Outbox,
    kill: CancellationToken,
    ended: CancellationToken,
}

impl Link {
    pub(crate) fn new(config: &LinkConfig) -> Arc<Self> {
        Arc::new(Self {
            outbox: Outbox::new(config.queue_bytes_max),
            kill: CancellationToken::new(),
            ended: CancellationToken::new(),
        })
    }

    /// Ends the link at once; returns when no more frame is being handed on.
    pub(crate) async fn cut(&self) {
        self.kill.cancel();
        self.ended.cancelled().await;
    }

    /// Carries frames both ways until the link ends. Dropping the future ends it too.
    pub(crate) async fn run(self: &Arc<Self>, io: Io, config: &LinkConfig, on_frame: OnFrame<'_>) -> Close {
        let _ended = Ended(self);
        let (mut reader, writer) = tokio::io::split(io);
        let mut writing =
            AbortOnDropHandle::new(tokio::spawn(write_all(writer, self.clone(), config.clone())));
        let closed = {
            let mut reading = std::pin::pin!(read_all(&mut reader, config.idle_read, on_frame));
            tokio::select! {
                biased;
                () = self.kill.cancelled() => return Close::Local,
                // The other side answers our close with its own.
                close = &mut reading => return if self.outbox.is_closed() { Close::Local } else { close },
                written = &mut writing => match written {
                    Ok(Close::Broken(kind)) => {
                        // The socket is gone: what it still holds for us ends in an end of file.
                        return timeout(LAST_WORDS, reading).await.unwrap_or(Close::Broken(kind));
                    }
                    Ok(close) => close,
                    Err(_) => return Close::Local,
                },
            }
        };
        if closed == Close::Local {
            // Everything is written and our side is shut. Closing a socket with unread bytes resets it,
            // and the other side would lose what we just wrote: read until it has closed, too.
            let mut ignore = |_: Frame| Ok(());
            let _ = timeout(config.linger, read_all(&mut reader, config.idle_read, &mut ignore)).await;
        }
        closed
    }
}

/// Marks the link ended, also when its task panics or is dropped.
struct Ended<'a>(&'a Link);
impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.outbox.discard();
        self.0.ended.cancel();
    }
}

async fn read_all(io: &mut ReadHalf<Io>, idle: Duration, on_frame: OnFrame<'_>) -> Close {
    let mut buf = BytesMut::with_capacity(READ_BYTES);
    loop {
        loop {
            match frame::decode(&mut buf) {
                Ok(Some(frame)) if frame.kind == Kind::Ping => {}
                Ok(Some(frame)) => {
                    if let Err(error) = on_frame(frame) {
                        return Close::Garbage(error);
                    }
                }
                Ok(None) => break,
                Err(error) => return Close::Garbage(error),
            }
        }
        if buf.capacity() - buf.len() < READ_ROOM_MIN {
            buf.reserve(READ_BYTES);
        }
        match timeout(idle, io.read_buf(&mut buf)).await {
            Err(_) => return Close::Idle,
            Ok(Ok(0)) => return Close::Broken(None),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Close::Broken(Some(error.kind())),
        }
    }
}

async fn write_all(mut io: WriteHalf<Io>, link: Arc<Link>, config: LinkConfig) -> Close {
    let mut batch = Vec::new();
    loop {
        match timeout(config.ping_every, link.outbox.next(&mut batch)).await {
            Err(_) => {
                // Refused only when much is queued, and then there is no need to say that we live.
                let _ = link.outbox.push_end(Kind::Ping, 0, &[]);
                continue;
            }
            Ok(false) => break,
            Ok(true) => {}
        }
        let mut left = &batch[..];
        while !left.is_empty() {
            match timeout(config.stalled_write, io.write(left)).await {
                Err(_) => return Close::Stalled,
                Ok(Ok(0)) => return Close::Broken(None),
                Ok(Ok(written)) => left = &left[written..],
                Ok(Err(error)) => return Close::Broken(Some(error.kind())),
            }
        }
        match timeout(config.stalled_write, io.flush()).await {
            Err(_) => return Close::Stalled,
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Close::Broken(Some(error.kind())),
        }
    }
    let _ = timeout(config.linger, io.shutdown()).await;
    Close::Local
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> LinkConfig {
        LinkConfig { queue_bytes_max: super::frame::FRAME_BYTES_MAX + 64, ..LinkConfig::default() }
    }

    #[test]
    fn a_full_queue_refuses_data_and_still_takes_an_end() {
        let outbox = Outbox::new(100);
        outbox.push(Kind::Data, 0, &[0; 90]).unwrap();
        assert_eq!(outbox.push(Kind::Data, 0, &[0; 20]), Err(Refused::Full));
        outbox.push_end(Kind::End, 1, &[0]).unwrap();
        outbox.close();
        assert_eq!(outbox.push(Kind::Data, 0, &[]), Err(Refused::Closed));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_side_is_dropped_at_the_idle_deadline_and_a_pinging_one_is_not() {
        let (near, far) = tokio::io::duplex(1024);
        let (a, b) = (Link::new(&config()), Link::new(&config()));
        let (config_a, config_b) = (config(), config());
        let ignore_b = tokio::spawn({
            let b = b.clone();
            async move { b.run(Box::new(far), &config_b, &mut |_| Ok(())).await }
        });
        let mut ignore = |_: Frame| Ok(());
        let mut run = std::pin::pin!(a.run(Box::new(near), &config_a, &mut ignore));
        assert!(timeout(config_a.idle_read * 20, &mut run).await.is_err(), "pings keep it alive");
        b.cut().await;
        assert_eq!(ignore_b.await.unwrap(), Close::Local);
        assert!(matches!(run.await, Close::Broken(_)));

        let (near, _mute) = tokio::io::duplex(1024);
        let c = Link::new(&config());
        assert_eq!(c.run(Box::new(near), &config_a, &mut |_| Ok(())).await, Close::Idle);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_stalls_costs_one_queue_and_then_the_link() {
        let (near, far) = tokio::io::duplex(1024);
        let config = LinkConfig { idle_read: Duration::from_secs(3600), ..config() };
        let link = Link::new(&config);
        let run = tokio::spawn({
            let (link, config) = (link.clone(), config.clone());
            async move { link.run(Box::new(near), &config, &mut |_| Ok(())).await }
        });
        let mut taken = 0;
        while link.outbox.push(Kind::Data, 0, &[0; 1000]).is_ok() {
            taken += 1;
            assert!(taken < 2000, "the queue is bounded");
        }
        assert_eq!(run.await.unwrap(), Close::Stalled);
        assert_eq!(link.outbox.push(Kind::Data, 0, &[]), Err(Refused::Closed));
        drop(far);
    }

    #[tokio::test(start_paused = true)]
    async fn closing_in_good_order_hands_over_what_is_queued() {
        let (near, far) = tokio::io::duplex(64);
        let (a, b) = (Link::new(&config()), Link::new(&config()));
        for n in 0..100u8 {
            a.outbox.push(Kind::Data, 0, &[n; 50]).unwrap();
        }
        a.outbox.close();
        let config_b = config();
        let receiver = tokio::spawn(async move {
            let mut got = Vec::new();
            let close = b
                .run(Box::new(far), &config_b, &mut |f| {
                    got.push(f.body[0]);
                    Ok(())
                })
                .await;
            (got, close)
        });
        assert_eq!(a.run(Box::new(near), &config(), &mut |_| Ok(())).await, Close::Local);
        let (got, close) = receiver.await.unwrap();
        assert_eq!(got, (0..100).collect::<Vec<u8>>());
        assert!(matches!(close, Close::Broken(_)));
    }
}
