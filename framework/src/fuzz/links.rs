//! What comes over links: frames, first words, questions, answers, control messages.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use perennial_core::id::{ActorId, ClusterId, MemberId, NodeId, PartitionId, RequestId, SessionId, Term};
use perennial_core::membership::MemberSpec;
use perennial_core::partition::OutboxItem;
use perennial_core::partition::record::{Message, Missed};
use perennial_core::placement::{ClusterState, Outcome, SystemCommand};
use perennial_core::routing::Routes;
use perennial_core::time::Millis;

use super::survives;
use crate::actor::{Answer, Format};
use crate::call::{Answered, EventId, EventItem, EventsFrom};
use crate::error::Fault;
use crate::host::Delivery;
use crate::link::fuzz as link;
use crate::link::{DoorLane, Facts, Hello, Peer, Refusal, Responder, Service, StreamSink};
use crate::operator::LeaderQuestion;
use crate::protocol::{CallRequest, Question, Response, RoutesAnswer, Stream, decode, encode};
use crate::status::{Reminder, ReminderPage, ReminderQuery};

/// Answers everything at once.
struct Echo;

impl Service for Echo {
    fn request(&self, _: Peer, payload: Bytes, reply: Responder) {
        reply.send(payload);
    }
    fn stream(&self, _: Peer, payload: Bytes, sink: StreamSink) {
        let _ = sink.push(payload);
        sink.finish();
    }
    fn join(&self, _: Peer, payload: Bytes) -> Bytes {
        payload
    }
}

/// A connection's bytes, to the side that answers and to the side that asks.
pub(super) fn frames(bytes: &[u8]) {
    let echo = Arc::new(Echo);
    link::read_frames(&mut BytesMut::from(bytes), echo.clone(), Duration::from_secs(1));
    // The same in two pieces: how bytes arrive changes nothing.
    let (first, second) = bytes.split_at(bytes.len() / 2);
    let mut buf = BytesMut::from(first);
    buf.extend_from_slice(second);
    link::read_frames(&mut buf, echo, Duration::from_secs(1));
}

pub(super) fn frame_seeds() -> Vec<Vec<u8>> {
    link::frame_seeds()
}

fn node(name: &str) -> NodeId {
    NodeId::new(name).expect("a valid name")
}

fn facts(name: &str) -> Facts {
    Facts {
        node: node(name),
        cluster: Some(ClusterId(7)),
        hash_version: 1,
        address: "10.0.0.1:7400".into(),
        incarnation: 3,
    }
}

/// The first words of either side.
pub(super) fn hello(bytes: &[u8]) {
    if let Some(hello) = link::read_hello::<Hello>(bytes) {
        survives(&hello);
        for peer in [Peer::Node(node("n2")), Peer::Client("shell".into())] {
            let _ = link::check_hello(&facts("n1"), &peer, &hello);
        }
    }
    if let Some(refusal) = link::read_hello::<Refusal>(bytes) {
        survives(&refusal);
        let _ = refusal.to_string();
    }
    if let Some(facts) = link::read_hello::<Facts>(bytes) {
        survives(&facts);
    }
}

pub(super) fn hello_seeds() -> Vec<Vec<u8>> {
    let bytes = |value: &Hello| postcard::to_stdvec(value).expect("a hello encodes");
    let refusal = Refusal::Lane { certificate: "client shell".into(), lane: DoorLane::Raft };
    vec![
        bytes(&Hello::of_node(DoorLane::Raft, facts("n2"))),
        bytes(&Hello::of_client(None, 1)),
        postcard::to_stdvec(&facts("n2")).expect("facts encode"),
        postcard::to_stdvec(&refusal).expect("a refusal encodes"),
    ]
}

/// A cluster state as it is used by whoever was sent it.
fn use_state(state: ClusterState) {
    survives(&state);
    for member in state.members.iter() {
        let _ = state.groups_of(member.id).count();
    }
    let mut grown = state.clone();
    let spec = MemberSpec::new(node("newcomer"), "h:1");
    if let Outcome::Up { .. } = grown.apply(SystemCommand::MemberUp(spec)) {
        let mut routes = Routes::new(state);
        let actor = ActorId::new("Cart", "alice").expect("a valid name");
        let partition = routes.partition_of(&actor);
        routes.learn(partition, Term(1), MemberId(1));
        let _ = routes.decide(None, &actor, 0);
        routes.update(grown);
        let _ = routes.decide(Some(MemberId(1)), &actor, 1);
    }
}

fn state() -> ClusterState {
    let partitions = perennial_core::hash::PartitionCount::try_from(4).expect("a power of two");
    let meta = perennial_core::placement::ClusterMeta::new(ClusterId(7), partitions, 3);
    let specs = ["n1", "n2", "n3"].map(|n| MemberSpec::new(node(n), format!("{n}:7400")));
    perennial_core::placement::form(meta, specs.into()).expect("three nodes are enough")
}

/// A message of the control lane and what it carries.
pub(super) fn control(bytes: &[u8]) {
    link::read_control(bytes);
    if let Ok(state) = decode::<ClusterState>(bytes) {
        use_state(state);
    }
}

pub(super) fn control_seeds() -> Vec<Vec<u8>> {
    let mut seeds = link::control_seeds();
    seeds.push(encode(&state()).to_vec());
    seeds
}

/// What nodes and clients ask.
pub(super) fn questions(bytes: &[u8]) {
    if let Ok(question) = decode::<Question>(bytes) {
        survives(&question);
        if let Question::MemberUp(spec) = question {
            let _ = spec.validate();
        }
    }
    if let Ok(stream) = decode::<Stream>(bytes) {
        survives(&stream);
    }
}

pub(super) fn question_seeds() -> Vec<Vec<u8>> {
    let actor: ActorId = "Cart/alice".parse().expect("a valid name");
    let call = CallRequest {
        target: actor.clone(),
        method: "add".into(),
        format: Format::Postcard,
        args: Bytes::from_static(&[3, b't', b'e', b'a', 2]),
        request: RequestId { session: SessionId(77), seq: 5 },
        ack_below: 4,
        keyed: false,
        read_only: false,
        path: vec![actor.clone()],
        timeout_ms: 10_000,
        stale_ms: Some(1000),
    };
    let message = Message { target: actor.clone(), method: "add".into(), args: Bytes::from_static(b"x") };
    let items = vec![OutboxItem { from: actor.clone(), message }];
    let delivery = Delivery { from: PartitionId(1), to: PartitionId(2), first_seq: 9, items };
    let questions = [
        Question::Call(call.clone()),
        Question::Deliver(delivery),
        Question::Routes,
        Question::Status,
        Question::Led,
        Question::MemberUp(MemberSpec::new(node("n4"), "n4:7400")),
        Question::OfLeader {
            partition: PartitionId(3),
            question: LeaderQuestion::Reminders(ReminderQuery {
                actor: Some(actor.clone()),
                due_before: Some(Millis(9)),
                after: Some((Millis(8), actor.clone(), "tick".into())),
                limit: 7,
            }),
        },
        Question::OfLeader {
            partition: PartitionId(3),
            question: LeaderQuestion::CancelReminder { actor: actor.clone(), name: "tick".into() },
        },
        Question::Work(call),
    ];
    let mut seeds: Vec<_> = questions.iter().map(|question| encode(question).to_vec()).collect();
    let from = EventsFrom::After(EventId { index: 7, n: 1 });
    seeds.push(encode(&Stream::Events { actor, from }).to_vec());
    seeds
}

/// What nodes answer.
pub(super) fn responses(bytes: &[u8]) {
    if let Ok(response) = decode::<Response>(bytes) {
        survives(&response);
        match response {
            Response::Routes(routes) => use_state(routes.state),
            Response::Refused(fault) => {
                let _ = (fault.to_string(), fault.http_status(), fault.applied(), fault.code());
            }
            _ => {}
        }
    }
    if let Ok(item) = decode::<Result<EventItem, Fault>>(bytes) {
        survives(&item);
    }
}

fn reminder() -> Reminder {
    let actor: ActorId = "Cart/alice".parse().expect("a valid name");
    Reminder {
        target: actor.clone(),
        actor,
        name: "tick".into(),
        due: Millis(9),
        handler: "clear".into(),
        repeats: Some("every 1s".into()),
        missed: Some(Missed::All { at_most: 3 }),
    }
}

pub(super) fn response_seeds() -> Vec<Vec<u8>> {
    let answered = Answered {
        answer: Answer::Ok(Bytes::from_static(b"2")),
        node: Some(node("n1")),
        partition: Some(PartitionId(3)),
        retries: 0,
        age_ms: Some(12),
    };
    let fault =
        Fault::UnknownMethod { kind: "Cart".into(), method: "ad".into(), known: vec!["add()".into()] };
    let leaders = vec![(PartitionId(0), Term(3), MemberId(1))];
    let responses = [
        Response::Ended(answered),
        Response::NotLeader(Some((Term(3), MemberId(2)))),
        Response::Delivered(9),
        Response::Refused(fault),
        Response::Routes(Box::new(RoutesAnswer { state: state(), leaders })),
        Response::Done,
        Response::Reminders(ReminderPage { reminders: vec![reminder()], more: true }),
        Response::Cancelled(true),
        Response::Stateless(crate::options::Pool::default()),
    ];
    let mut seeds: Vec<_> = responses.iter().map(|response| encode(response).to_vec()).collect();
    let item = EventItem { id: EventId { index: 7, n: 0 }, event: Bytes::from_static(b"e"), mark: false };
    seeds.push(encode(&Ok::<_, Fault>(item)).to_vec());
    seeds
}
