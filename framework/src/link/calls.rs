//! Requests and streams on a link: the asking half and the answering half.
//!
//! Owns correlation ids, deadlines, limits in flight, and what becomes of everything when the link ends.
//! Never reads a payload. In: payloads to ask with, frames of the link; out: answers, items, and calls
//! of a [`Service`].
//!
//! A request costs one map entry and one oneshot channel: no task, no timer of its own. One sweep per
//! link sleeps until the earliest deadline known; answered requests leave the map, so it seldom wakes.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::config::LinkConfig;
use super::frame::{FRAME_BYTES_MAX, Frame, FrameError, Kind};
use super::lock;
use super::peer::{Link, Refused};
use super::tls::Peer;

/// Longest text that says why a stream ended; the rest is cut.
const END_TEXT_BYTES_MAX: usize = 256;

/// Longest deadline of a request; a later one is taken for this.
const WITHIN_MAX: Duration = Duration::from_secs(24 * 3600);

/// Bytes of requests in flight that one link is served; beyond it a request is refused as full.
const SERVED_BYTES_MAX: usize = 64 << 20;

/// In the order of the numbers, which is that in which requests are failed.
type Map<V> = BTreeMap<u64, V>;

/// Why a request has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// There is no link to that node now.
    #[error("no link to the node: nothing was sent, try again or ask another node")]
    NoLink,
    /// The link ended while the request was under way.
    #[error("the link was lost before the answer came: the request may have been received")]
    Lost,
    /// The deadline passed.
    #[error("no answer within the deadline: the request may have been received")]
    TimedOut,
    /// A queue, here or there, is at its limit.
    #[error("too many requests on the link: nothing was received, slow down")]
    Full,
    /// The other side dropped the request without an answer.
    #[error("the node gave up the request without an answer: it was received")]
    Closed,
    /// The payload is above [`FRAME_BYTES_MAX`](super::FRAME_BYTES_MAX).
    #[error("the payload has {0} bytes, the limit is {FRAME_BYTES_MAX}: nothing was sent")]
    TooLarge(usize),
}

impl LinkError {
    /// Whether the other side may have received (and carried out) the request.
    #[must_use]
    pub fn may_have_been_received(self) -> bool {
        match self {
            Self::NoLink | Self::Full | Self::TooLarge(_) => false,
            Self::Lost | Self::TimedOut | Self::Closed => true,
        }
    }
}

/// Why a stream has no more items.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamEnd {
    /// The server said that this was all.
    #[error("the stream is finished")]
    Finished,
    /// The reader did not take its items in time; resume from the last one taken.
    #[error("the stream was ended because its reader was too slow: resume after the last item")]
    Slow,
    /// The link ended; resume from the last item taken.
    #[error("the link was lost: resume after the last item")]
    Lost,
    /// There are too many streams on the link; it was never open.
    #[error("too many streams on the link: try again later")]
    Full,
    /// The server ended the stream, with its reason.
    #[error("the stream was ended by the server: {0}")]
    Failed(String),
}

impl StreamEnd {
    fn to_wire(&self) -> Vec<u8> {
        let (code, text) = match self {
            Self::Finished => (0, ""),
            Self::Slow => (1, ""),
            Self::Lost => (2, ""),
            Self::Full => (3, ""),
            Self::Failed(text) => (4, &text[..text.floor_char_boundary(END_TEXT_BYTES_MAX)]),
        };
        let mut out = vec![code];
        out.extend_from_slice(text.as_bytes());
        out
    }

    fn from_wire(body: &[u8]) -> Self {
        match body.split_first() {
            Some((0, _)) => Self::Finished,
            Some((1, _)) => Self::Slow,
            Some((2, _)) => Self::Lost,
            Some((3, _)) => Self::Full,
            Some((_, text)) => Self::Failed(String::from_utf8_lossy(text).into_owned()),
            None => Self::Failed("no reason given".to_owned()),
        }
    }
}

/// Why a request failed on the other side, on the wire.
const FAILED_FULL: u8 = 1;
const FAILED_CLOSED: u8 = 2;

// ---------------------------------------------------------------------------------------- asking

/// Everything asked on one link and not answered yet.
///
/// Invariant: after `closed` the tables are empty and stay so.
pub(crate) struct Requests {
    link: Arc<Link>,
    table: Mutex<Table>,
    due_changed: Notify,
    requests_max: usize,
    streams_max: usize,
    stream_items_max: usize,
    stream_bytes_max: usize,
}

#[derive(Default)]
struct Table {
    last_id: u64,
    waiting: Map<Waiting>,
    streams: Map<Reader>,
    /// Not later than the earliest deadline in `waiting`; `None` only when the sweep sees nothing to do.
    next_due: Option<Instant>,
    closed: bool,
}

struct Waiting {
    answer: oneshot::Sender<Result<Bytes, LinkError>>,
    due: Instant,
}

impl Requests {
    pub(crate) fn new(link: Arc<Link>, config: &LinkConfig) -> Arc<Self> {
        Arc::new(Self {
            link,
            table: Mutex::default(),
            due_changed: Notify::new(),
            requests_max: config.requests_max,
            streams_max: config.streams_max,
            stream_items_max: config.stream_items_max,
            stream_bytes_max: config.stream_bytes_max,
        })
    }

    pub(crate) fn request(self: &Arc<Self>, payload: &Bytes, within: Duration) -> Answer {
        match self.ask(payload, within) {
            Ok((id, answer)) => Answer(AnswerState::Waiting { requests: self.clone(), id, answer }),
            Err(error) => Answer::failed(error),
        }
    }

    fn ask(
        &self,
        payload: &Bytes,
        within: Duration,
    ) -> Result<(u64, oneshot::Receiver<Result<Bytes, LinkError>>), LinkError> {
        if payload.len() > FRAME_BYTES_MAX {
            return Err(LinkError::TooLarge(payload.len()));
        }
        let due = Instant::now() + within.min(WITHIN_MAX);
        let (sender, answer) = oneshot::channel();
        let mut table = lock(&self.table);
        if table.closed {
            return Err(LinkError::NoLink);
        }
        if table.waiting.len() >= self.requests_max {
            return Err(LinkError::Full);
        }
        table.last_id += 1;
        let id = table.last_id;
        table.waiting.insert(id, Waiting { answer: sender, due });
        let sooner = table.next_due.is_none_or(|known| due < known);
        if sooner {
            table.next_due = Some(due);
        }
        drop(table);
        if sooner {
            self.due_changed.notify_one();
        }
        // The entry comes first: the answer may be here before `push` returns.
        self.link.outbox.push(Kind::Request, id, payload).map_err(|refused| {
            lock(&self.table).waiting.remove(&id);
            unsent(refused)
        })?;
        Ok((id, answer))
    }

    pub(crate) fn stream(self: &Arc<Self>, payload: &Bytes) -> Result<ItemStream, LinkError> {
        if payload.len() > FRAME_BYTES_MAX {
            return Err(LinkError::TooLarge(payload.len()));
        }
        let mut table = lock(&self.table);
        if table.closed {
            return Err(LinkError::NoLink);
        }
        if table.streams.len() >= self.streams_max {
            return Err(LinkError::Full);
        }
        table.last_id += 1;
        let id = table.last_id;
        let (reader, items) = Reader::new(self.stream_items_max, self.stream_bytes_max);
        let stream = items.with(Canceller::Link { requests: self.clone(), id });
        table.streams.insert(id, reader);
        drop(table);
        // On failure the stream is dropped, which forgets its entry.
        self.link.outbox.push(Kind::Open, id, payload).map_err(unsent)?;
        Ok(stream)
    }

    /// Takes a frame of the answering side.
    pub(crate) fn on_frame(&self, frame: Frame) -> Result<(), FrameError> {
        match frame.kind {
            Kind::Response => self.answer(frame.id, Ok(frame.body)),
            Kind::Failed => {
                let full = frame.body.first() == Some(&FAILED_FULL);
                self.answer(frame.id, Err(if full { LinkError::Full } else { LinkError::Closed }));
            }
            Kind::Item => self.item(frame.id, frame.body),
            Kind::End => {
                let reader = lock(&self.table).streams.remove(&frame.id);
                if let Some(reader) = reader {
                    reader.end(StreamEnd::from_wire(&frame.body));
                }
            }
            kind => return Err(FrameError::unexpected(kind)),
        }
        Ok(())
    }

    fn answer(&self, id: u64, answer: Result<Bytes, LinkError>) {
        let waiting = lock(&self.table).waiting.remove(&id);
        if let Some(waiting) = waiting {
            // Nobody listens when the asker dropped its future at this very moment.
            let _ = waiting.answer.send(answer);
        }
    }

    fn item(&self, id: u64, body: Bytes) {
        let mut table = lock(&self.table);
        let Some(reader) = table.streams.get(&id) else {
            return;
        };
        if reader.push(body).is_err() {
            let slow = table.streams.remove(&id);
            drop(table);
            if let Some(reader) = slow {
                reader.end(StreamEnd::Slow);
            }
            let _ = self.link.outbox.push_end(Kind::Cancel, id, &[]);
        }
    }

    /// Fails requests at their deadline; runs beside the link.
    pub(crate) async fn sweep(&self) {
        loop {
            let due = lock(&self.table).next_due;
            match due {
                None => self.due_changed.notified().await,
                Some(due) => tokio::select! {
                    () = tokio::time::sleep_until(due) => self.expire(),
                    () = self.due_changed.notified() => {}
                },
            }
        }
    }

    fn expire(&self) {
        let now = Instant::now();
        let mut expired = Vec::new();
        let mut table = lock(&self.table);
        let mut next: Option<Instant> = None;
        for (&id, waiting) in &table.waiting {
            if waiting.due <= now {
                expired.push(id);
            } else if next.is_none_or(|known| waiting.due < known) {
                next = Some(waiting.due);
            }
        }
        table.next_due = next;
        let expired: Vec<_> = expired.iter().filter_map(|id| table.waiting.remove(id)).collect();
        drop(table);
        for waiting in expired {
            let _ = waiting.answer.send(Err(LinkError::TimedOut));
        }
    }

    fn forget_stream(&self, id: u64) {
        let open = lock(&self.table).streams.remove(&id).is_some();
        if open {
            // Refused only when the link is ending, which cancels the stream as well.
            let _ = self.link.outbox.push_end(Kind::Cancel, id, &[]);
        }
    }

    /// Fails everything under way; the link has ended.
    pub(crate) fn fail_all(&self) {
        let mut table = lock(&self.table);
        table.closed = true;
        let waiting = std::mem::take(&mut table.waiting);
        let streams = std::mem::take(&mut table.streams);
        drop(table);
        for (_, waiting) in waiting {
            let _ = waiting.answer.send(Err(LinkError::Lost));
        }
        for (_, reader) in streams {
            reader.end(StreamEnd::Lost);
        }
    }
}

fn unsent(refused: Refused) -> LinkError {
    match refused {
        Refused::Full => LinkError::Full,
        Refused::Closed => LinkError::NoLink,
    }
}

/// The answer to a request, to be awaited; dropping it forgets the request, which may still be carried
/// out.
#[derive(Debug)]
#[must_use = "an answer is a future"]
pub struct Answer(AnswerState);

enum AnswerState {
    Done(Option<LinkError>),
    Waiting { requests: Arc<Requests>, id: u64, answer: oneshot::Receiver<Result<Bytes, LinkError>> },
}

impl std::fmt::Debug for AnswerState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Done(error) => f.debug_tuple("Done").field(error).finish(),
            Self::Waiting { id, .. } => f.debug_tuple("Waiting").field(id).finish(),
        }
    }
}

impl Answer {
    /// An answer that is an error already.
    pub fn failed(error: LinkError) -> Self {
        Self(AnswerState::Done(Some(error)))
    }
}

impl Future for Answer {
    type Output = Result<Bytes, LinkError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let outcome = match &mut self.0 {
            AnswerState::Done(error) => {
                Err(error.take().expect("an answer is polled once after it is there"))
            }
            AnswerState::Waiting { answer, .. } => match Pin::new(answer).poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(outcome) => outcome.unwrap_or(Err(LinkError::Lost)),
            },
        };
        self.0 = AnswerState::Done(None);
        Poll::Ready(outcome)
    }
}

impl Drop for AnswerState {
    fn drop(&mut self) {
        if let Self::Waiting { requests, id, .. } = self {
            lock(&requests.table).waiting.remove(id);
        }
    }
}

// --------------------------------------------------------------------------------------- streams

/// The end of a stream that items are put into, in the asking process.
struct Reader {
    items: mpsc::Sender<Bytes>,
    shared: Arc<ReaderShared>,
    bytes_max: usize,
}

#[derive(Default)]
struct ReaderShared {
    bytes: AtomicUsize,
    end: OnceLock<StreamEnd>,
}

struct ReaderItems {
    items: mpsc::Receiver<Bytes>,
    shared: Arc<ReaderShared>,
}

impl ReaderItems {
    fn with(self, canceller: Canceller) -> ItemStream {
        ItemStream { items: self.items, shared: self.shared, canceller }
    }
}

impl Reader {
    fn new(items_max: usize, bytes_max: usize) -> (Self, ReaderItems) {
        let (sender, items) = mpsc::channel(items_max);
        let shared = Arc::new(ReaderShared::default());
        (Self { items: sender, shared: shared.clone(), bytes_max }, ReaderItems { items, shared })
    }

    /// Refuses an item above the limits.
    fn push(&self, item: Bytes) -> Result<(), ()> {
        let bytes = item.len();
        if self.shared.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > self.bytes_max {
            return Err(());
        }
        self.items.try_send(item).map_err(|_| ())
    }

    /// The reader sees its buffered items first, then the end.
    fn end(self, end: StreamEnd) {
        let _ = self.shared.end.set(end);
    }
}

enum Canceller {
    Link { requests: Arc<Requests>, id: u64 },
    Local(CancellationToken),
}

/// Items of a stream, in order; dropping it cancels the stream at the server.
pub struct ItemStream {
    items: mpsc::Receiver<Bytes>,
    shared: Arc<ReaderShared>,
    canceller: Canceller,
}

impl std::fmt::Debug for ItemStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ItemStream").field("end", &self.shared.end.get()).finish_non_exhaustive()
    }
}

impl ItemStream {
    /// The next item. Cancel-safe.
    ///
    /// # Errors
    /// [`StreamEnd`] when there are no more, and why; again on every later call.
    pub async fn next(&mut self) -> Result<Bytes, StreamEnd> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// [`next`](Self::next) for a caller that polls.
    ///
    /// # Errors
    /// [`StreamEnd`] when there are no more items.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, StreamEnd>> {
        self.items.poll_recv(cx).map(|item| match item {
            Some(item) => {
                self.shared.bytes.fetch_sub(item.len(), Ordering::Relaxed);
                Ok(item)
            }
            None => Err(self.shared.end.get().cloned().unwrap_or(StreamEnd::Lost)),
        })
    }
}

impl Drop for ItemStream {
    fn drop(&mut self) {
        match &self.canceller {
            Canceller::Link { requests, id } => requests.forget_stream(*id),
            Canceller::Local(closed) => closed.cancel(),
        }
    }
}

// ------------------------------------------------------------------------------------- answering

/// Answers what arrives on links. Its methods must not block: they run on the task that reads the link.
pub trait Service: Send + Sync + 'static {
    /// A request; the answer goes through `reply`, from any thread, at any time.
    fn request(&self, from: Peer, payload: Bytes, reply: Responder);

    /// A request for a stream; items go through `sink`, from any thread.
    fn stream(&self, from: Peer, payload: Bytes, sink: StreamSink);

    /// A node that is not linked yet asks who is here; the answer goes back at once.
    fn join(&self, from: Peer, payload: Bytes) -> Bytes;
}

/// What one link has under way for the other side.
pub(crate) struct Served {
    link: Arc<Link>,
    service: Arc<dyn Service>,
    from: Peer,
    shared: Arc<ServedShared>,
    requests_max: usize,
    streams_max: usize,
    all_bytes_max: usize,
}

#[derive(Default)]
struct ServedShared {
    /// Requests without an answer yet, and the bytes of their payloads.
    in_flight: AtomicUsize,
    in_flight_bytes: AtomicUsize,
    /// The same over all links of clients, for one of them.
    all_bytes: Option<Arc<AtomicUsize>>,
    /// Streams that are open. Invariant: who is not cancelled and has not ended has its entry here, so that
    /// the end of the link reaches it.
    sinks: Mutex<Map<CancellationToken>>,
}

impl Served {
    /// With `all_bytes` the requests count there as well.
    pub(crate) fn new(
        link: Arc<Link>,
        service: Arc<dyn Service>,
        from: Peer,
        all_bytes: Option<Arc<AtomicUsize>>,
        config: &LinkConfig,
    ) -> Self {
        Self {
            link,
            service,
            from,
            shared: Arc::new(ServedShared { all_bytes, ..ServedShared::default() }),
            all_bytes_max: config.client_request_bytes_max,
            requests_max: config.requests_max,
            streams_max: config.streams_max,
        }
    }

    /// Takes a frame of the asking side.
    pub(crate) fn on_frame(&self, frame: Frame) -> Result<(), FrameError> {
        match frame.kind {
            Kind::Request => self.request(frame.id, frame.body),
            Kind::Open => self.open(frame.id, frame.body)?,
            Kind::Cancel => {
                let mut sinks = lock(&self.shared.sinks);
                if let Some(closed) = sinks.remove(&frame.id) {
                    // With the lock held: the sink must not take the entry of the id's next stream.
                    closed.cancel();
                }
            }
            kind => return Err(FrameError::unexpected(kind)),
        }
        Ok(())
    }

    fn request(&self, id: u64, payload: Bytes) {
        // Only this task, which reads the link, adds to the counters.
        let ServedShared { in_flight, in_flight_bytes, all_bytes, .. } = &*self.shared;
        let bytes = payload.len();
        // Links that add at the same moment may go beyond the limit by a frame each.
        let all_full =
            all_bytes.as_ref().is_some_and(|all| all.load(Ordering::Relaxed) + bytes > self.all_bytes_max);
        if all_full
            || in_flight.load(Ordering::Relaxed) >= self.requests_max
            || in_flight_bytes.load(Ordering::Relaxed) + bytes > SERVED_BYTES_MAX
        {
            let _ = self.link.outbox.push_end(Kind::Failed, id, &[FAILED_FULL]);
            return;
        }
        if let Some(all) = all_bytes {
            all.fetch_add(bytes, Ordering::Relaxed);
        }
        in_flight.fetch_add(1, Ordering::Relaxed);
        in_flight_bytes.fetch_add(bytes, Ordering::Relaxed);
        let (link, shared) = (self.link.clone(), self.shared.clone());
        let reply = Responder(Some(ReplyTo::Link { link, shared, id, bytes }));
        self.service.request(self.from.clone(), payload, reply);
    }

    fn open(&self, id: u64, payload: Bytes) -> Result<(), FrameError> {
        let closed = CancellationToken::new();
        {
            let mut sinks = lock(&self.shared.sinks);
            if sinks.contains_key(&id) {
                return Err(FrameError::OpenAlready(id));
            }
            if sinks.len() >= self.streams_max {
                drop(sinks);
                let _ = self.link.outbox.push_end(Kind::End, id, &StreamEnd::Full.to_wire());
                return Ok(());
            }
            sinks.insert(id, closed.clone());
        }
        let to = SinkTo::Link { link: self.link.clone(), shared: self.shared.clone(), id };
        self.service.stream(self.from.clone(), payload, StreamSink { to: Mutex::new(Some(to)), closed });
        Ok(())
    }
}

impl Drop for Served {
    /// The link has ended: nobody reads the streams any more.
    fn drop(&mut self) {
        for (_, closed) in std::mem::take(&mut *lock(&self.shared.sinks)) {
            closed.cancel();
        }
    }
}

enum ReplyTo {
    /// With the bytes of the request.
    Link {
        link: Arc<Link>,
        shared: Arc<ServedShared>,
        id: u64,
        bytes: usize,
    },
    Local(Box<dyn FnOnce(Result<Bytes, LinkError>) + Send>),
}

impl ReplyTo {
    fn give(self, answer: Result<Bytes, LinkError>) {
        match self {
            Self::Link { link, shared, id, bytes } => {
                shared.in_flight.fetch_sub(1, Ordering::Relaxed);
                shared.in_flight_bytes.fetch_sub(bytes, Ordering::Relaxed);
                if let Some(all) = &shared.all_bytes {
                    all.fetch_sub(bytes, Ordering::Relaxed);
                }
                let sent = match &answer {
                    Ok(answer) if answer.len() <= FRAME_BYTES_MAX => {
                        link.outbox.push(Kind::Response, id, answer)
                    }
                    _ => Err(Refused::Full),
                };
                if sent == Err(Refused::Full) {
                    // An asker that does not read its answers learns that this one is lost.
                    let _ = link.outbox.push_end(Kind::Failed, id, &[FAILED_CLOSED]);
                }
            }
            Self::Local(give) => give(answer),
        }
    }
}

/// Takes the answer to one request. Dropped without an answer, the asker gets [`LinkError::Closed`].
pub struct Responder(Option<ReplyTo>);

impl std::fmt::Debug for Responder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Responder")
    }
}

impl Responder {
    /// A responder whose answer is given to a function: for a request made in this process.
    pub fn local(give: impl FnOnce(Result<Bytes, LinkError>) + Send + 'static) -> Self {
        Self(Some(ReplyTo::Local(Box::new(give))))
    }

    /// Queues the answer; never blocks. An answer above the frame limit, or one the asker's link has no
    /// room for, reaches the asker as [`LinkError::Closed`].
    pub fn send(mut self, answer: Bytes) {
        if let Some(to) = self.0.take() {
            to.give(Ok(answer));
        }
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if let Some(to) = self.0.take() {
            to.give(Err(LinkError::Closed));
        }
    }
}

/// Why an item was not taken; the stream has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// The reader left, or the link ended.
    #[error("the reader of the stream has left")]
    Closed,
    /// The reader does not keep up; it was told so.
    #[error("the reader of the stream is too slow and was told so")]
    Slow,
    /// The item is above the frame limit; the stream goes on.
    #[error("the item has {0} bytes, the limit is {FRAME_BYTES_MAX}: nothing was sent")]
    TooLarge(usize),
}

enum SinkTo {
    Link { link: Arc<Link>, shared: Arc<ServedShared>, id: u64 },
    Local(Reader),
}

impl SinkTo {
    fn push(&self, item: Bytes) -> Result<(), PushError> {
        match self {
            Self::Link { link, id, .. } => {
                link.outbox.push(Kind::Item, *id, &item).map_err(|refused| match refused {
                    Refused::Full => PushError::Slow,
                    Refused::Closed => PushError::Closed,
                })
            }
            Self::Local(reader) => reader.push(item).map_err(|()| PushError::Slow),
        }
    }

    /// Tells the reader, unless the stream is `closed` and its id free for another.
    fn end(self, end: StreamEnd, closed: &CancellationToken) {
        match self {
            Self::Link { link, shared, id } => {
                let mut sinks = lock(&shared.sinks);
                let open = !closed.is_cancelled() && sinks.remove(&id).is_some();
                drop(sinks);
                if open {
                    let _ = link.outbox.push_end(Kind::End, id, &end.to_wire());
                }
            }
            Self::Local(reader) => reader.end(end),
        }
    }
}

/// Takes the items of one stream. Dropped without [`finish`](Self::finish), the reader is told that the
/// server gave it up.
pub struct StreamSink {
    to: Mutex<Option<SinkTo>>,
    closed: CancellationToken,
}

impl std::fmt::Debug for StreamSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamSink").field("closed", &self.is_closed()).finish_non_exhaustive()
    }
}

impl StreamSink {
    /// A stream within this process, with the limits of `config`.
    #[must_use]
    pub fn local(config: &LinkConfig) -> (Self, ItemStream) {
        let (reader, items) = Reader::new(config.stream_items_max, config.stream_bytes_max);
        let closed = CancellationToken::new();
        let sink = Self { to: Mutex::new(Some(SinkTo::Local(reader))), closed: closed.clone() };
        (sink, items.with(Canceller::Local(closed)))
    }

    /// Queues an item; never blocks.
    ///
    /// # Errors
    /// [`PushError`]; except for `TooLarge` the stream has ended.
    pub fn push(&self, item: Bytes) -> Result<(), PushError> {
        if item.len() > FRAME_BYTES_MAX {
            return Err(PushError::TooLarge(item.len()));
        }
        if self.closed.is_cancelled() {
            return Err(PushError::Closed);
        }
        let mut to = lock(&self.to);
        let Some(open) = to.as_ref() else {
            return Err(PushError::Closed);
        };
        let pushed = open.push(item);
        if pushed.is_err()
            && let Some(to) = to.take()
        {
            to.end(StreamEnd::Slow, &self.closed);
            self.closed.cancel();
        }
        pushed
    }

    /// Ends the stream: this was all.
    pub fn finish(self) {
        self.end(StreamEnd::Finished);
    }

    /// Ends the stream with a reason, of which the first 256 bytes are sent.
    pub fn fail(self, reason: &str) {
        self.end(StreamEnd::Failed(reason.to_owned()));
    }

    /// Whether nobody reads any more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    /// Returns when nobody reads any more.
    pub async fn closed(&self) {
        self.closed.cancelled().await;
    }

    fn end(&self, end: StreamEnd) {
        let to = lock(&self.to).take();
        if let Some(to) = to {
            to.end(end, &self.closed);
        }
    }
}

impl Drop for StreamSink {
    fn drop(&mut self) {
        self.end(StreamEnd::Failed("the server gave up the stream".to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests(config: &LinkConfig) -> Arc<Requests> {
        Requests::new(Link::new(config), config)
    }

    #[tokio::test(start_paused = true)]
    async fn requests_fail_at_their_own_deadline_in_any_order() {
        let requests = requests(&LinkConfig::default());
        let sweep = tokio::spawn({
            let requests = requests.clone();
            async move { requests.sweep().await }
        });
        let start = Instant::now();
        let late = requests.request(&Bytes::new(), Duration::from_secs(20));
        let soon = requests.request(&Bytes::new(), Duration::from_secs(1));
        assert_eq!(soon.await, Err(LinkError::TimedOut));
        assert_eq!(start.elapsed().as_secs(), 1);
        assert_eq!(late.await, Err(LinkError::TimedOut));
        assert_eq!(start.elapsed().as_secs(), 20);
        sweep.abort();
    }

    #[tokio::test]
    async fn a_lost_link_fails_everything_and_takes_nothing_new() {
        let requests = requests(&LinkConfig::default());
        let answer = requests.request(&Bytes::new(), Duration::from_secs(20));
        let mut stream = requests.stream(&Bytes::new()).unwrap();
        requests.fail_all();
        assert_eq!(answer.await, Err(LinkError::Lost));
        assert_eq!(stream.next().await, Err(StreamEnd::Lost));
        assert_eq!(requests.request(&Bytes::new(), Duration::from_secs(1)).await, Err(LinkError::NoLink));
        assert!(!LinkError::NoLink.may_have_been_received() && LinkError::Lost.may_have_been_received());
    }

    #[tokio::test]
    async fn a_dropped_answer_leaves_no_entry_and_the_limit_refuses() {
        let requests = requests(&LinkConfig { requests_max: 1, ..LinkConfig::default() });
        let first = requests.request(&Bytes::new(), Duration::from_secs(20));
        assert_eq!(requests.request(&Bytes::new(), Duration::from_secs(20)).await, Err(LinkError::Full));
        drop(first);
        assert!(lock(&requests.table).waiting.is_empty());
        let large = Bytes::from(vec![0; FRAME_BYTES_MAX + 1]);
        let refused = requests.request(&large, Duration::from_secs(1)).await;
        assert_eq!(refused, Err(LinkError::TooLarge(FRAME_BYTES_MAX + 1)));
    }

    #[tokio::test]
    async fn a_slow_reader_keeps_what_it_has_and_learns_why_it_ended() {
        let config = LinkConfig { stream_items_max: 2, ..LinkConfig::default() };
        let (sink, mut stream) = StreamSink::local(&config);
        sink.push(Bytes::from_static(b"1")).unwrap();
        sink.push(Bytes::from_static(b"2")).unwrap();
        assert_eq!(sink.push(Bytes::from_static(b"3")), Err(PushError::Slow));
        assert_eq!(sink.push(Bytes::from_static(b"4")), Err(PushError::Closed));
        assert_eq!(stream.next().await.unwrap(), "1");
        assert_eq!(stream.next().await.unwrap(), "2");
        assert_eq!(stream.next().await, Err(StreamEnd::Slow));
        assert_eq!(stream.next().await, Err(StreamEnd::Slow));
    }

    #[tokio::test]
    async fn the_end_of_a_stream_is_told_and_leaving_is_noticed() {
        let (sink, mut stream) = StreamSink::local(&LinkConfig::default());
        sink.fail("no such topic");
        assert_eq!(stream.next().await, Err(StreamEnd::Failed("no such topic".to_owned())));
        let (sink, stream) = StreamSink::local(&LinkConfig::default());
        drop(stream);
        sink.closed().await;
        assert_eq!(sink.push(Bytes::new()), Err(PushError::Closed));
    }

    /// Keeps requests without an answer, and streams.
    #[derive(Default)]
    struct Hoard(Mutex<Vec<Responder>>, Mutex<Vec<StreamSink>>);

    impl Service for Hoard {
        fn request(&self, _: Peer, _: Bytes, reply: Responder) {
            lock(&self.0).push(reply);
        }
        fn stream(&self, _: Peer, _: Bytes, sink: StreamSink) {
            lock(&self.1).push(sink);
        }
        fn join(&self, _: Peer, payload: Bytes) -> Bytes {
            payload
        }
    }

    fn served(hoard: &Arc<Hoard>, config: &LinkConfig) -> Served {
        let from = Peer::Client("a client".to_owned());
        Served::new(Link::new(config), hoard.clone(), from, None, config)
    }

    #[test]
    fn a_stream_is_opened_once_and_ends_with_its_link_whatever_ids_were_used() {
        let hoard = Arc::new(Hoard::default());
        let served = served(&hoard, &LinkConfig { streams_max: 2, ..LinkConfig::default() });
        let say = |kind, id| served.on_frame(Frame { kind, id, body: Bytes::new() });
        assert_eq!(say(Kind::Open, 1), Ok(()));
        assert_eq!(say(Kind::Open, 1), Err(FrameError::OpenAlready(1)));
        assert_eq!(say(Kind::Cancel, 1), Ok(()));
        assert_eq!(say(Kind::Open, 1), Ok(()));
        let first = lock(&hoard.1).remove(0);
        assert!(first.is_closed());
        drop(first);
        assert_eq!(lock(&served.shared.sinks).len(), 1, "the entry is the second stream's");
        assert_eq!(say(Kind::Open, 2), Ok(()));
        assert_eq!(say(Kind::Open, 3), Ok(()), "answered as full");
        drop(served);
        let streams = lock(&hoard.1);
        assert_eq!(streams.len(), 2);
        assert!(streams.iter().all(StreamSink::is_closed));
    }

    #[test]
    fn requests_that_are_served_are_bounded_in_bytes() {
        let hoard = Arc::new(Hoard::default());
        let served = served(&hoard, &LinkConfig::default());
        let body = Bytes::from(vec![0; FRAME_BYTES_MAX]);
        let fit = SERVED_BYTES_MAX / FRAME_BYTES_MAX;
        let ask = |requests: usize| {
            for id in 0..requests as u64 {
                served.on_frame(Frame { kind: Kind::Request, id, body: body.clone() }).unwrap();
            }
            lock(&hoard.0).len()
        };
        assert_eq!(ask(fit + 2), fit, "the others were answered as full");
        let answered = lock(&hoard.0).pop().unwrap();
        answered.send(Bytes::new());
        assert_eq!(ask(2), fit, "an answer makes room for one");
        lock(&hoard.0).clear();
        assert_eq!(ask(fit), fit);
    }

    #[test]
    fn bytes_of_every_stream_end_are_frozen() {
        let ends = [
            (StreamEnd::Finished, &[0u8][..]),
            (StreamEnd::Slow, &[1]),
            (StreamEnd::Lost, &[2]),
            (StreamEnd::Full, &[3]),
            (StreamEnd::Failed("no".to_owned()), b"\x04no"),
        ];
        for (end, wire) in ends {
            assert_eq!(end.to_wire(), wire);
            assert_eq!(StreamEnd::from_wire(wire), end);
        }
    }
}
