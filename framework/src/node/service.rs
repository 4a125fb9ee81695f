//! What a node does with what comes over its links.
//!
//! Raft frames go to the replica, questions to the router or the part they ask about, link events to
//! those who act on hints. Also the news about the cluster itself: admitting, announcing, following.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use perennial_core::id::{ActorId, MemberId, NodeId};
use perennial_core::membership::MemberSpec;
use perennial_core::placement::{ClusterState, SystemCommand};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::Inner;
use crate::error::Fault;
use crate::host::{Ended, HostMessage};
use crate::link::{
    Admission, Control, ControlHandler, DoorLane, FRAME_BYTES_MAX, Facts, Hello, Lane, LinkConfig, LinkEvent,
    Peer, Refusal, Responder, Service, StreamSink, Unsent,
};
use crate::protocol::{CallRequest, Question, Response, RoutesAnswer, Stream, decode, encode};
use crate::replica::{BulkRefused, Outbound};
use crate::router::Router;
use crate::router::events::FOLLOWER_EVENTS_MAX;

/// Pause between attempts to tell the cluster something.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

type Inbound = Arc<dyn Fn(NodeId, Lane, Bytes) + Send + Sync>;

/// Hands frames of the raft and bulk lanes to the replica.
pub(super) fn inbound(inner: &Arc<Inner>) -> Inbound {
    let inner = Arc::downgrade(inner);
    let unreadable = AtomicU64::new(0);
    Arc::new(move |node, lane, frame| {
        let Some(inner) = inner.upgrade() else { return };
        let (Some(replica), Some(from)) = (inner.replica(), inner.member_of(&node)) else { return };
        let taken = match lane {
            Lane::Raft => replica.deliver(from, &frame).map_err(|e| e.to_string()),
            Lane::Bulk => replica.deliver_chunk(from, &frame).map_err(|e| e.to_string()),
            Lane::Calls => Ok(()),
        };
        if let Err(error) = taken {
            replica.metrics().messages_dropped.fetch_add(1, Ordering::Relaxed);
            // The first, and then whenever their number has doubled.
            let times = unreadable.fetch_add(1, Ordering::Relaxed) + 1;
            if times.is_power_of_two() {
                tracing::warn!(%node, %lane, error, times, "a frame cannot be read; it is dropped");
            }
        }
    })
}

/// Acts on hints about links.
pub(super) fn link_events(inner: &Arc<Inner>) -> Arc<dyn Fn(LinkEvent) + Send + Sync> {
    let inner = Arc::downgrade(inner);
    Arc::new(move |event| {
        let Some(inner) = inner.upgrade() else { return };
        match event {
            LinkEvent::Up(node) => inner.router.node_up(&node, true),
            LinkEvent::Down(node) => inner.router.node_up(&node, false),
            LinkEvent::Gone(node) => {
                if let (Some(replica), Some(member)) = (inner.replica(), inner.member_of(&node)) {
                    replica.member_down(member);
                }
                inner.router.node_up(&node, false);
            }
        }
    })
}

/// The way from the replica to other members.
pub(super) struct RaftOutbound(Weak<Inner>);

impl RaftOutbound {
    pub(super) fn new(inner: &Arc<Inner>) -> Self {
        Self(Arc::downgrade(inner))
    }

    fn send(&self, to: MemberId, lane: Lane, frame: Bytes) -> Result<(), Unsent> {
        let Some(inner) = self.0.upgrade() else { return Err(Unsent::NoLink(frame)) };
        match (inner.transport.get(), inner.node_of(to)) {
            (Some(transport), Some(node)) => transport.send(&node, lane, frame),
            _ => Err(Unsent::NoLink(frame)),
        }
    }
}

impl Outbound for RaftOutbound {
    fn raft(&self, to: MemberId, frame: Bytes) {
        // Raft repeats what is lost.
        let _ = self.send(to, Lane::Raft, frame);
    }

    fn bulk(&self, to: MemberId, chunk: Bytes) -> Result<(), BulkRefused> {
        self.send(to, Lane::Bulk, chunk).map_err(|unsent| match unsent {
            Unsent::Full(_) => BulkRefused::Full,
            Unsent::NoLink(_) | Unsent::TooLarge(_) => BulkRefused::NoLink,
        })
    }
}

/// Decides who comes in at the door.
pub(super) struct Doorkeeper(Weak<Inner>, Facts);

impl Doorkeeper {
    pub(super) fn new(inner: &Arc<Inner>) -> Self {
        Self(Arc::downgrade(inner), inner.formation.facts())
    }
}

impl Admission for Doorkeeper {
    fn facts(&self) -> Facts {
        self.0.upgrade().map_or_else(|| self.1.clone(), |inner| inner.formation.facts())
    }

    fn admit(&self, peer: &Peer, lane: DoorLane, hello: &Hello) -> Result<(), Refusal> {
        let Some(inner) = self.0.upgrade() else { return Err(Refusal::Busy) };
        match (peer, lane) {
            (_, DoorLane::Join | DoorLane::Client) => Ok(()),
            (Peer::Node(node), _) => match inner.member_of(node) {
                Some(_) => {
                    // It may have moved while nobody could write that down.
                    hello.node.iter().for_each(|facts| inner.formation.hear(node, &facts.address));
                    Ok(())
                }
                // It comes back once the members of a cluster that forms are known here too.
                None if !inner.knows_members() => Err(Refusal::NotFormed),
                None => Err(Refusal::UnknownMember(node.clone())),
            },
            (Peer::Client(name), lane) => Err(Refusal::Lane { certificate: name.clone(), lane }),
        }
    }
}

/// Questions about the whole cluster that are being answered; each of them asks every member.
const STATUS_QUESTIONS_MAX: usize = 32;

/// Answers questions.
pub(super) struct NodeService(Weak<Inner>, Arc<Semaphore>);

impl NodeService {
    pub(super) fn new(inner: &Arc<Inner>) -> Self {
        Self(Arc::downgrade(inner), Arc::new(Semaphore::new(STATUS_QUESTIONS_MAX)))
    }
}

impl Service for NodeService {
    fn request(&self, from: Peer, payload: Bytes, reply: Responder) {
        let Some(inner) = self.0.upgrade() else { return };
        let question = match decode::<Question>(&payload) {
            Ok(question) => question,
            Err(error) => return reply.send(encode(&Response::Refused(unreadable(&from, &error)))),
        };
        if let Some(why) = barred(&from, &question, |node| inner.member_of(node).is_some()) {
            let fault = Fault::Unavailable { what: "this question".into(), why: why.into() };
            return reply.send(encode(&Response::Refused(fault)));
        }
        match question {
            Question::Call(call) if let Some(pool) = inner.router.pool_of(call.target.kind()) => {
                reply.send(encode(&Response::Stateless(pool)));
            }
            Question::Work(call) => {
                let target = call.target.clone();
                let ended = move |ended| {
                    let response = match ended {
                        Ended::Answered(answered) => Response::Ended(answered),
                        Ended::NotLeader => Response::NotLeader(None),
                    };
                    reply.send(answer(&target, &response));
                };
                let router = inner.router.clone();
                inner.runtime.spawn(async move { router.work_here(call, Box::new(ended)) });
            }
            Question::Call(call) if call.stale_ms.is_some() => {
                let router = inner.router.clone();
                inner.runtime.spawn(async move {
                    let target = call.target.clone();
                    match router.read_here(call).await {
                        Ok(answered) => reply.send(answer(&target, &Response::Ended(answered))),
                        // Whoever leads has what is newest.
                        Err(call) => call_here(&router, call, reply),
                    }
                });
            }
            Question::Call(call) => call_here(&inner.router, call, reply),
            Question::Routes => {
                let response = match routes(&inner) {
                    Some(routes) => Response::Routes(Box::new(routes)),
                    None => Response::Refused(not_formed(&inner)),
                };
                reply.send(encode(&response));
            }
            Question::Status => {
                let Ok(permit) = self.1.clone().try_acquire_owned() else {
                    let fault = Fault::Overloaded {
                        what: "the line of questions about the cluster".into(),
                        at: format!("node {}", inner.node),
                        limit: STATUS_QUESTIONS_MAX as u64,
                    };
                    return reply.send(encode(&Response::Refused(fault)));
                };
                let runtime = inner.runtime.clone();
                runtime.spawn(async move {
                    let status = super::status::cluster(&inner).await;
                    reply.send(encode(&Response::Status(Box::new(status))));
                    drop(permit);
                });
            }
            Question::Led => {
                let runtime = inner.runtime.clone();
                runtime.spawn(async move {
                    reply.send(encode(&Response::Led(super::status::led(&inner).await)));
                });
            }
            Question::Deliver(delivery) => {
                let Some(host) = inner.hosts.get(delivery.to) else {
                    let hint =
                        delivery.items.first().and_then(|item| inner.router.hint(&item.message.target));
                    return reply.send(encode(&Response::NotLeader(hint)));
                };
                let (ack, acked) = oneshot::channel();
                host.tell(HostMessage::Deliver(delivery, ack));
                inner.runtime.spawn(async move {
                    let response = match acked.await {
                        Ok(Ok(upto)) => Response::Delivered(upto),
                        Ok(Err(fault)) => Response::Refused(fault),
                        Err(_) => Response::NotLeader(None),
                    };
                    reply.send(encode(&response));
                });
            }
            Question::OfLeader { partition, question } => {
                let router = inner.router.clone();
                inner.runtime.spawn(async move {
                    reply.send(encode(&router.answer_here(partition, question).await));
                });
            }
            Question::MemberUp(spec) => {
                let runtime = inner.runtime.clone();
                runtime.spawn(async move {
                    let done = spec.validate().is_ok()
                        && inner.system.is_open()
                        && inner.command(SystemCommand::MemberUp(spec)).await;
                    reply.send(encode(&if done { Response::Done } else { Response::NotLeader(None) }));
                });
            }
        }
    }

    fn stream(&self, from: Peer, payload: Bytes, sink: StreamSink) {
        let Some(inner) = self.0.upgrade() else { return };
        let Stream::Events { actor, from } = match decode::<Stream>(&payload) {
            Ok(stream) => stream,
            Err(error) => return sink.fail(&unreadable(&from, &error).to_string()),
        };
        let partition = inner.router.routes().as_ref().map(|routes| routes.partition_of(&actor));
        let Some(host) = partition.and_then(|partition| inner.hosts.get(partition)) else {
            return sink.fail("this node does not lead the actor's partition");
        };
        let (events, mut followed) = mpsc::channel(FOLLOWER_EVENTS_MAX);
        host.tell(HostMessage::Subscribe { actor, from, sink: events });
        inner.runtime.spawn(async move {
            loop {
                let item = tokio::select! {
                    () = sink.closed() => return,
                    item = followed.recv() => item,
                };
                let Some(item) = item else { return sink.fail("the leader has changed") };
                if sink.push(encode(&item)).is_err() {
                    return;
                }
            }
        });
    }

    fn join(&self, from: Peer, payload: Bytes) -> Bytes {
        let Some(inner) = self.0.upgrade() else { return Bytes::new() };
        match from {
            Peer::Node(node) => inner.formation.answer(&node, &payload),
            Peer::Client(_) => Bytes::new(),
        }
    }
}

/// Runs a call on the host here, or says who leads.
fn call_here(router: &Arc<Router>, call: CallRequest, reply: Responder) {
    let (asked, target) = (router.clone(), call.target.clone());
    router.call_here(
        call,
        Box::new(move |ended| {
            let response = match ended {
                Ended::Answered(answered) => Response::Ended(answered),
                Ended::NotLeader => match (asked.hint(&target), asked.cut_off(&target)) {
                    (None, Some(fault)) => Response::Refused(fault),
                    (hint, _) => Response::NotLeader(hint),
                },
            };
            reply.send(answer(&target, &response));
        }),
    );
}

/// An answer as a link carries it.
fn answer(target: &ActorId, response: &Response) -> Bytes {
    let answer = encode(response);
    if answer.len() <= FRAME_BYTES_MAX { answer } else { too_large(target, &answer) }
}

/// Why a question is not answered for this peer, if it is not. The client lane lets in whoever has a
/// certificate of the authority, also nodes that are no members.
fn barred(from: &Peer, question: &Question, member: impl Fn(&NodeId) -> bool) -> Option<&'static str> {
    let announced = match question {
        // Who may call any actor may see and cancel what wakes it.
        Question::Call(_)
        | Question::Work(_)
        | Question::Routes
        | Question::Status
        | Question::OfLeader { .. } => return None,
        Question::Led | Question::Deliver(_) => None,
        Question::MemberUp(spec) => Some(&spec.node),
    };
    match from {
        Peer::Client(_) => Some("only nodes may ask it; use a node's certificate"),
        Peer::Node(node) if !member(node) => Some("only members may ask it; let the node join first"),
        // Members pass on who asks to join; where a member is, it says itself.
        Peer::Node(node) if announced.is_some_and(|announced| announced != node && member(announced)) => {
            Some("only a member itself may say that it is up; ask with its own certificate")
        }
        Peer::Node(_) => None,
    }
}

/// Instead of an answer that no link carries. Only a read can have one: a record is smaller.
fn too_large(actor: &ActorId, answer: &Bytes) -> Bytes {
    encode(&Response::Refused(Fault::TooLarge {
        what: "the answer".into(),
        at: actor.to_string(),
        bytes: answer.len() as u64,
        limit: FRAME_BYTES_MAX as u64,
    }))
}

fn unreadable(from: &Peer, why: &dyn std::fmt::Display) -> Fault {
    Fault::Unreadable { what: "request".into(), at: from.to_string(), why: why.to_string() }
}

fn not_formed(inner: &Inner) -> Fault {
    Fault::Unavailable { what: "the cluster".into(), why: inner.formation.waiting.borrow().clone() }
}

fn routes(inner: &Inner) -> Option<RoutesAnswer> {
    let routes = inner.router.routes();
    let routes = routes.as_ref()?;
    let partitions = routes.state().meta.partitions;
    let leaders = partitions.iter().filter_map(|p| routes.hint(p).map(|(term, leader)| (p, term, leader)));
    Some(RoutesAnswer { state: routes.state().clone(), leaders: leaders.collect() })
}

/// Takes over a cluster state wherever it came from, unless a newer one is known.
pub(super) fn take_state(inner: &Inner, state: ClusterState) {
    inner.current.send_if_modified(|current| {
        let newer = current.as_ref().is_none_or(|known| {
            known.meta.cluster == state.meta.cluster && state.table.epoch > known.table.epoch
        });
        if newer {
            *current = Some(state.clone());
        }
        newer
    });
    let newest = inner.current.borrow().clone();
    if let Some(state) = newest {
        use_state(inner, &state);
    }
}

/// Brings names, routes and links in line with a state.
pub(super) fn use_state(inner: &Inner, state: &ClusterState) {
    let names = state.members.iter().map(|m| (m.id, m.node.clone())).collect();
    *inner.names.write().unwrap_or_else(PoisonError::into_inner) = names;
    inner.router.update(state.clone());
    super::builds::keep_from_older(inner, state);
    if let Some(transport) = inner.transport.get() {
        let others = state.members.iter().filter(|m| m.node != inner.node);
        transport.set_peers(others.map(|m| (m.node.clone(), inner.moved.address_of(m))).collect());
    }
}

/// Follows the state that the system partition publishes, and hands it on when this node leads it.
pub(super) async fn follow_state(inner: Arc<Inner>) {
    let mut current = inner.current.subscribe();
    loop {
        let state = current.borrow_and_update().clone();
        if let Some(state) = state
            && inner.router.me().is_some()
        {
            use_state(&inner, &state);
            if inner.system.is_open()
                && let Some(control) = inner.control.get()
                && let Err(error) = control.cast_all(&encode(&state))
            {
                tracing::warn!(%error, "the placement table cannot be sent");
            }
        }
        if current.changed().await.is_err() {
            return;
        }
    }
}

/// Has nodes admitted that were met at the door.
pub(super) async fn admit(inner: Arc<Inner>, mut asking: mpsc::Receiver<MemberSpec>) {
    while let Some(spec) = asking.recv().await {
        let member = inner.member_of(&spec.node).is_some();
        if !member && spec.validate().is_ok() {
            inner.command(SystemCommand::MemberUp(spec)).await;
        }
    }
}

/// Tells the cluster that this node has started, until it is written down.
pub(super) async fn announce(inner: &Arc<Inner>) {
    let fresh = {
        let current = inner.current.borrow();
        current.as_ref().is_some_and(|state| {
            state.members.by_node(&inner.node).is_some_and(|m| m.incarnation == 1)
                && state.table.epoch.0 == 1
                && inner.formation.just_formed()
        })
    };
    if fresh {
        return;
    }
    while !inner.command(SystemCommand::MemberUp(inner.formation.spec.clone())).await {
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

/// Opens the control lane.
pub(super) async fn open_control(inner: &Arc<Inner>, formed: &ClusterState) -> Result<(), String> {
    let Some(transport) = inner.transport.get() else { return Ok(()) };
    let incarnation = rand::random::<u32>().into();
    let handler = Arc::new(ControlService(Arc::downgrade(inner)));
    let control =
        Control::start(inner.node.clone(), incarnation, formed.meta.cluster, handler, LinkConfig::default())
            .await
            .map_err(|error| format!("the control lane cannot start: {error}"))?;
    let _ = inner.control.set(control.clone());
    transport.serve_control(control);
    Ok(())
}

/// What comes over the control lane.
struct ControlService(Weak<Inner>);

impl ControlService {
    fn take(&self, from: &NodeId, table: &[u8]) {
        let Some(inner) = self.0.upgrade() else { return };
        match decode::<ClusterState>(table) {
            // Voters follow the log itself.
            Ok(state) if !inner.router.me().is_some_and(|me| state.voters.contains(&me)) => {
                take_state(&inner, state);
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(node = %from, %error, "a placement table cannot be read"),
        }
    }
}

impl ControlHandler for ControlService {
    fn info(&self) -> Bytes {
        let state = self.0.upgrade().and_then(|inner| inner.current.borrow().clone());
        state.map(|state| encode(&state)).unwrap_or_default()
    }
    fn hello(&self, from: NodeId, info: Bytes) {
        if !info.is_empty() {
            self.take(&from, &info);
        }
    }
    fn table(&self, from: NodeId, table: Bytes) {
        self.take(&from, &table);
    }
    fn admin(&self, _: NodeId, _: Bytes) -> BoxFuture<'static, Bytes> {
        // Nothing is asked here yet; an empty answer says so.
        Box::pin(async { Bytes::new() })
    }
    fn up(&self, node: NodeId) {
        tracing::info!(%node, "control session up");
    }
    fn down(&self, node: NodeId) {
        tracing::info!(%node, "control session down");
    }
}

#[cfg(test)]
mod tests {
    use perennial_core::id::PartitionId;

    use super::*;
    use crate::host::Delivery;

    fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    #[test]
    fn what_members_ask_each_other_is_answered_for_members_only() {
        let member = |asked: &NodeId| ["n1", "n2"].contains(&asked.as_str());
        let passes = |from: &Peer, question: &Question| barred(from, question, member).is_none();
        let up = |name: &str| Question::MemberUp(MemberSpec::new(node(name), "h:1"));
        let delivery = Delivery { from: PartitionId(0), to: PartitionId(1), first_seq: 1, items: Vec::new() };
        let (n2, stranger) = (Peer::Node(node("n2")), Peer::Node(node("n9")));
        let client = Peer::Client("shell".to_owned());
        for question in [Question::Led, Question::Deliver(delivery), up("n3"), up("n2"), up("n9")] {
            assert!(passes(&n2, &question), "{question:?} of a member");
            assert!(!passes(&stranger, &question), "{question:?} of a node that is no member");
            assert!(!passes(&client, &question), "{question:?} of a client");
        }
        assert!(!passes(&n2, &up("n1")), "a member speaks for itself only");
        for question in [Question::Routes, Question::Status] {
            assert!(passes(&stranger, &question) && passes(&client, &question));
        }
    }
}
