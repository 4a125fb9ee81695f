//! The router: brings a call to the leader of its partition, and its answer back.
//!
//! Owns what is known of the table and the leaders, and the caller's session. Retries with the same
//! request id until the deadline; that is safe because the partition remembers what it has answered.
//! Never runs a turn. A node's router hands calls to its own hosts; a client's has none and goes to the
//! leaders over the network.

pub(crate) mod events;
mod pool;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;
use perennial_core::balance::Balancer;
use perennial_core::hash::{PartitionCount, partition_of};
use perennial_core::id::{ActorId, MemberId, NodeId, PartitionId, RequestId, Term};
use perennial_core::placement::ClusterState;
use perennial_core::routing::{Decision, Routes};
use tokio::sync::{Notify, oneshot};

use crate::actor::{Answer, BoxFuture};
use crate::call::{Answered, Caller, EventStream, EventsFrom, Outbound};
use crate::error::Fault;
use crate::host::stale::StaleReads;
use crate::host::workers::Workers;
use crate::host::{Delivery, Ended, HostCall, HostHandle, HostMessage, Hosts};
use crate::link::{FRAME_BYTES_MAX, ItemStream, LinkError};
use crate::options::Pool;
use crate::protocol::{CallRequest, Question, Response, decode, encode};
use crate::session::Session;

/// Longest deadline of a call; a longer one is cut. Replies are kept for retries far longer.
pub const CALL_TIMEOUT_MAX: Duration = Duration::from_secs(60);
/// First and longest pause before a call is tried again, unless something changes earlier.
const RETRY_MIN: Duration = Duration::from_millis(2);
const RETRY_MAX: Duration = Duration::from_millis(100);
/// A member that has not answered for this long may be silent: the others are asked who leads by now. The
/// call is repeated under its own id, so one that only takes long is joined and not run twice. Twice as
/// long each time, so that a cluster that is merely slow is not asked ever more.
const SILENCE_MIN: Duration = Duration::from_millis(500);
/// How long the leader of a partition may take to apply messages that are handed to it.
const DELIVER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a member must be out of reach before it counts as lost. Calls to a partition that has lost
/// the majority of its replicas are refused at once.
const MINORITY_PATIENCE: Duration = Duration::from_secs(1);

/// Questions to nodes, as the router needs them.
pub(crate) trait Network: Send + Sync + 'static {
    /// Asks a node.
    fn ask(
        &self,
        node: &NodeId,
        payload: Bytes,
        within: Duration,
    ) -> BoxFuture<'static, Result<Bytes, LinkError>>;
    /// Asks a node for a stream.
    fn follow(&self, node: &NodeId, payload: Bytes) -> BoxFuture<'static, Result<ItemStream, LinkError>>;
    /// Whether it can be asked now.
    fn is_up(&self, node: &NodeId) -> bool;
}

/// See the module. Shared by everything that calls.
pub(crate) struct Router {
    me: OnceLock<MemberId>,
    routes: RwLock<Option<Routes>>,
    /// Told whenever routes or links change, so that waiting calls look again.
    changed: Notify,
    hosts: Arc<Hosts>,
    network: OnceLock<Arc<dyn Network>>,
    /// Rows that are here, for reads that may be behind.
    stale: OnceLock<StaleReads>,
    /// Stateless workers here.
    workers: OnceLock<Workers>,
    /// Calls of stateless workers under way from here, by kind.
    balancers: Mutex<BTreeMap<String, Balancer>>,
    /// The caller's sessions, one for each part of the key space, so that a slow call holds back the mark
    /// of replies to be forgotten only there.
    sessions: Vec<Arc<Session>>,
    /// Since when members that were linked once are out of reach.
    down: RwLock<BTreeMap<NodeId, Instant>>,
    started: Instant,
    /// Who follows events here.
    fan_outs: events::FanOuts,
}

/// How one attempt of a call went.
enum Attempt {
    Ended(Answered),
    /// It did not run, and another member leads; try again at once if that is news, else after a pause.
    Elsewhere {
        learned: bool,
    },
    /// It did not run: the member cannot be asked.
    Unreached,
    /// It did not run: this member does not lead and knows nobody who does, perhaps because it is cut off.
    Declined {
        by: MemberId,
        cut_off: Option<Fault>,
    },
    /// It may have run.
    Lost,
    /// It may have run, or run yet: the member is silent.
    Silent {
        by: MemberId,
    },
    /// Nobody (else) to ask.
    Nobody,
    /// It did not run: its kind is stateless, and other nodes may run it.
    Stateless(Pool),
}

/// What a call has heard since it last learned something.
#[derive(Default)]
struct Heard {
    /// Who has declined it.
    declined: Vec<MemberId>,
    /// Why, if each of them is cut off.
    cut_off: Option<Fault>,
}

impl Heard {
    fn declined(&mut self, by: MemberId, cut_off: Option<Fault>) {
        let all = self.declined.is_empty() || self.cut_off.is_some();
        self.cut_off = cut_off.filter(|_| all);
        self.declined.push(by);
    }
}

impl Router {
    pub(crate) fn new(hosts: Arc<Hosts>) -> Arc<Self> {
        Arc::new(Self {
            me: OnceLock::new(),
            routes: RwLock::new(None),
            changed: Notify::new(),
            hosts,
            network: OnceLock::new(),
            stale: OnceLock::new(),
            workers: OnceLock::new(),
            balancers: Mutex::default(),
            sessions: PartitionCount::DEFAULT.iter().map(|_| Session::new()).collect(),
            down: RwLock::default(),
            started: tokio::time::Instant::now().into_std(),
            fan_outs: events::FanOuts::default(),
        })
    }

    fn session(&self, target: &ActorId) -> &Arc<Session> {
        &self.sessions[partition_of(target, PartitionCount::DEFAULT).0 as usize]
    }

    /// Connects the router to the network; once.
    pub(crate) fn set_network(&self, network: Arc<dyn Network>) {
        let _ = self.network.set(network);
    }

    /// Lets reads that may be behind be answered from the rows here; once.
    pub(crate) fn set_stale(&self, stale: StaleReads) {
        let _ = self.stale.set(stale);
    }

    /// Lets stateless workers run here; once.
    pub(crate) fn set_workers(&self, workers: Workers) {
        let _ = self.workers.set(workers);
    }

    /// The stateless workers here.
    pub(crate) fn workers(&self) -> Option<&Workers> {
        self.workers.get()
    }

    /// Says which member this is; once.
    pub(crate) fn set_me(&self, me: MemberId) {
        let _ = self.me.set(me);
    }

    /// Which member this is, once known.
    pub(crate) fn me(&self) -> Option<MemberId> {
        self.me.get().copied()
    }

    pub(crate) fn routes(&self) -> RwLockReadGuard<'_, Option<Routes>> {
        self.routes.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Routes)) {
        let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(routes) = routes.as_mut() {
            change(routes);
        }
        drop(routes);
        self.changed.notify_waiters();
    }

    /// Takes over a newer cluster state.
    pub(crate) fn update(&self, state: ClusterState) {
        let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
        match routes.as_mut() {
            Some(routes) => {
                routes.update(state);
            }
            None => *routes = Some(Routes::new(state)),
        }
        drop(routes);
        self.changed.notify_waiters();
    }

    /// Heard who leads a partition, or that nobody does.
    pub(crate) fn leader(&self, partition: PartitionId, term: Term, leader: Option<MemberId>) {
        self.change(|routes| match leader {
            Some(leader) => {
                routes.learn(partition, term, leader);
            }
            None => routes.forget(partition, term),
        });
    }

    /// A node's links broke or came back.
    pub(crate) fn node_up(&self, node: &NodeId, up: bool) {
        {
            let mut down = self.down.write().unwrap_or_else(PoisonError::into_inner);
            if up {
                down.remove(node);
            } else {
                down.entry(node.clone()).or_insert_with(|| tokio::time::Instant::now().into_std());
            }
        }
        self.change(|routes| {
            let Some(member) = routes.state().members.by_node(node).map(|m| m.id) else { return };
            if up { routes.restore(member) } else { routes.avoid(member) }
        });
    }

    /// A host opened or closed.
    pub(crate) fn notify(&self) {
        self.changed.notify_waiters();
    }

    fn node_of(&self, member: MemberId) -> Option<NodeId> {
        self.routes().as_ref()?.state().members.get(member).map(|m| m.node.clone())
    }

    /// The host of a partition that is led here.
    pub(crate) fn host(&self, partition: PartitionId) -> Option<HostHandle> {
        self.hosts.get(partition)
    }

    /// The leader last heard of.
    pub(crate) fn leader_of(&self, partition: PartitionId) -> Option<(Term, MemberId)> {
        self.routes().as_ref()?.hint(partition)
    }

    /// The replicas by the table.
    pub(crate) fn replicas_of(&self, partition: PartitionId) -> Vec<MemberId> {
        let routes = self.routes();
        routes.as_ref().map(|routes| routes.state().table.replicas_of(partition).to_vec()).unwrap_or_default()
    }

    /// Takes in that a member does not lead a partition, and perhaps who does; says whether that was news.
    pub(crate) fn not_leading(
        &self,
        partition: PartitionId,
        asked: MemberId,
        hint: Option<(Term, MemberId)>,
    ) -> bool {
        let mut learned = false;
        self.change(|routes| {
            if let Some((term, leader)) = hint {
                learned = routes.learn(partition, term, leader);
            } else if let Some((term, leader)) = routes.hint(partition)
                && leader == asked
                && !holds(routes, self.me(), partition)
            {
                // The other replicas are asked then. Who holds one has its leader from the log's own news,
                // which is not told twice: a leader whose epoch is not open yet must not be forgotten.
                routes.forget(partition, term);
            }
        });
        learned
    }

    fn decide(&self, actor: &ActorId) -> Option<Decision> {
        Some(self.routes().as_ref()?.decide(self.me(), actor, 0))
    }

    /// What another node is told when this one does not lead.
    pub(crate) fn hint(&self, actor: &ActorId) -> Option<(Term, MemberId)> {
        let routes = self.routes();
        let routes = routes.as_ref()?;
        routes.hint(routes.partition_of(actor)).filter(|(_, leader)| Some(*leader) != self.me())
    }

    /// Runs a call that has made its hop on the host here, if it leads.
    pub(crate) fn call_here(&self, request: CallRequest, answer: Box<dyn FnOnce(Ended) + Send>) {
        let partition = self.routes().as_ref().map(|routes| routes.partition_of(&request.target));
        let Some(host) = partition.and_then(|partition| self.hosts.get(partition)) else {
            return answer(Ended::NotLeader);
        };
        host.call(host_call(request), answer);
    }

    /// Answers a read that may be behind from the rows here; gives the call back if they are too old, or not
    /// here.
    pub(crate) async fn read_here(self: &Arc<Self>, request: CallRequest) -> Result<Answered, CallRequest> {
        let partition = self.routes().as_ref().map(|routes| routes.partition_of(&request.target));
        let (Some(partition), Some(stale), Some(within)) = (partition, self.stale.get(), request.stale_ms)
        else {
            return Err(request);
        };
        let call = host_call(request.clone());
        let caller = Arc::new(RouterCaller(self.clone()));
        stale.read(partition, &call, Duration::from_millis(within), caller).await.ok_or(request)
    }

    /// Has a read that may be behind answered by any replica: this node's, or one after the other from a
    /// random one on. `None` when all are too old or out of reach.
    async fn read_anywhere(self: &Arc<Self>, call: &Outbound, request: RequestId) -> Option<Answered> {
        let question = match self.read_here(self.wire(call, request)).await {
            Ok(answered) => return Some(answered),
            Err(question) => question,
        };
        let replicas = {
            let routes = self.routes();
            let routes = routes.as_ref()?;
            let replicas = routes.state().table.replicas_of(routes.partition_of(&call.target));
            let first = rand::random_range(0..replicas.len().max(1));
            let (after, from) = replicas.split_at(first.min(replicas.len()));
            from.iter().chain(after).copied().filter(|m| Some(*m) != self.me()).collect::<Vec<_>>()
        };
        for (retries, member) in (1..).zip(replicas) {
            let left = call.deadline.saturating_duration_since(tokio::time::Instant::now().into_std());
            match self.ask_member(member, &Question::Call(question.clone()), left.min(SILENCE_MIN)).await {
                // The next one may be well.
                Ok(Response::Ended(Answered { answer: Answer::Fault(fault), .. })) if fault.retryable() => {}
                Ok(Response::Ended(answered)) => return Some(Answered { retries: retries - 1, ..answered }),
                _ => {}
            }
        }
        None
    }

    fn wire(&self, call: &Outbound, request: RequestId) -> CallRequest {
        let left = call.deadline.saturating_duration_since(tokio::time::Instant::now().into_std());
        let session = self.session(&call.target);
        CallRequest {
            target: call.target.clone(),
            method: call.method.clone(),
            format: call.args.format,
            args: call.args.bytes.clone(),
            request,
            ack_below: if request.session == session.id() { session.ack_below() } else { 0 },
            keyed: call.keyed || !call.path.is_empty(),
            read_only: call.reads(),
            path: call.path.clone(),
            timeout_ms: u32::try_from(left.as_millis()).unwrap_or(u32::MAX).max(1),
            stale_ms: call.stale.map(|within| u64::try_from(within.as_millis()).unwrap_or(u64::MAX)),
        }
    }

    async fn attempt(
        &self,
        call: &Outbound,
        request: RequestId,
        declined: &[MemberId],
        patience: Duration,
    ) -> Attempt {
        let left = call.deadline.saturating_duration_since(tokio::time::Instant::now().into_std());
        let wire = || self.wire(call, request);
        match self.decide(&call.target) {
            None => Attempt::Nobody,
            Some(Decision::Local(_)) => {
                let (sender, receiver) = oneshot::channel();
                self.call_here(wire(), Box::new(move |ended| drop(sender.send(ended))));
                match tokio::time::timeout(left, receiver).await {
                    Ok(Ok(Ended::Answered(answered))) => Attempt::Ended(answered),
                    Ok(Ok(Ended::NotLeader)) => Attempt::Unreached,
                    Ok(Err(_)) | Err(_) => Attempt::Lost,
                }
            }
            Some(Decision::Forward(member) | Decision::Redirect(member)) => {
                // Without a leader to go to, a client asks the replicas in turn.
                let member = match declined.contains(&member) {
                    false => Some(member),
                    true => self.other_replica(&call.target, declined),
                };
                let Some(member) = member else { return Attempt::Nobody };
                let within = left.min(patience);
                let response = self.ask_member(member, &Question::Call(wire()), within).await;
                match response {
                    Err(LinkError::TimedOut) if within < left => Attempt::Silent { by: member },
                    Ok(Response::Ended(answered)) => Attempt::Ended(answered),
                    Ok(Response::NotLeader(hint)) => self.redirected(&call.target, member, hint),
                    Ok(Response::Refused(fault @ Fault::Unavailable { .. })) => {
                        self.redirected(&call.target, member, None);
                        Attempt::Declined { by: member, cut_off: Some(fault) }
                    }
                    Ok(Response::Refused(fault)) => Attempt::Ended(Answered::fault(fault)),
                    Ok(Response::Stateless(pool)) => Attempt::Stateless(pool),
                    Ok(_) => Attempt::Lost,
                    Err(LinkError::TooLarge(bytes)) => {
                        Attempt::Ended(Answered::fault(request_too_large(&call.target, bytes)))
                    }
                    Err(error) if error.may_have_been_received() => Attempt::Lost,
                    // Perhaps it has been down for as long as this node runs, so that nobody said so.
                    Err(_) => Attempt::Declined { by: member, cut_off: None },
                }
            }
            Some(Decision::NoLeader { .. }) => Attempt::Nobody,
        }
    }

    /// Takes in what a node that does not lead said.
    fn redirected(&self, actor: &ActorId, asked: MemberId, hint: Option<(Term, MemberId)>) -> Attempt {
        let partition = self.routes().as_ref().map(|routes| routes.partition_of(actor));
        let learned = partition.is_some_and(|partition| self.not_leading(partition, asked, hint));
        match hint {
            None => Attempt::Declined { by: asked, cut_off: None },
            Some(_) => Attempt::Elsewhere { learned },
        }
    }

    /// Whether this node holds a replica of an actor's partition, and so hears of its leaders from the log.
    fn hears(&self, actor: &ActorId) -> bool {
        self.routes().as_ref().is_some_and(|routes| holds(routes, self.me(), routes.partition_of(actor)))
    }

    /// A replica that has not declined yet; who holds one himself does not go from one to the next.
    fn other_replica(&self, actor: &ActorId, declined: &[MemberId]) -> Option<MemberId> {
        self.routes().as_ref()?.other_replica(actor, declined)
    }

    pub(crate) async fn ask_member(
        &self,
        member: MemberId,
        question: &Question,
        within: Duration,
    ) -> Result<Response, LinkError> {
        let node = self.node_of(member).ok_or(LinkError::NoLink)?;
        self.ask(&node, question, within).await
    }

    /// Asks a node.
    pub(crate) async fn ask(
        &self,
        node: &NodeId,
        question: &Question,
        within: Duration,
    ) -> Result<Response, LinkError> {
        let network = self.network.get().ok_or(LinkError::NoLink)?;
        let bytes = network.ask(node, encode(question), within).await?;
        decode(&bytes).map_err(|error| {
            tracing::warn!(%node, %error, "an answer cannot be read");
            LinkError::Closed
        })
    }

    /// Why calls to an actor are to be refused at once, if this node has been cut off from the majority
    /// of its replicas for a while. A client never is: it asks the nodes.
    pub(crate) fn cut_off(&self, actor: &ActorId) -> Option<Fault> {
        let me = self.me()?;
        let network = self.network.get()?;
        let now = tokio::time::Instant::now().into_std();
        let routes = self.routes();
        let routes = routes.as_ref()?;
        let (state, partition) = (routes.state(), routes.partition_of(actor));
        let mut lost: Vec<_> = {
            let down = self.down.read().unwrap_or_else(PoisonError::into_inner);
            let is_lost = |node: &NodeId| {
                let since = down.get(node).copied().unwrap_or(self.started);
                !network.is_up(node) && now.duration_since(since) >= MINORITY_PATIENCE
            };
            let others = state.table.replicas_of(partition).iter().filter(|&&member| member != me);
            let nodes = others.filter_map(|member| state.members.get(*member)).map(|member| &member.node);
            nodes.filter(|node| is_lost(node)).map(ToString::to_string).collect()
        };
        lost.sort();
        let all = state.table.replicas_of(partition).len();
        ((all - lost.len()) * 2 <= all).then(|| Fault::Unavailable {
            what: actor.to_string(),
            why: format!(
                "only {} of the {all} replicas of its partition {partition} can be reached, a majority is needed; \
                 start {} or mend the network, then try again; nothing was applied",
                all - lost.len(),
                lost.join(" and "),
            ),
        })
    }

    async fn route(self: &Arc<Self>, call: Outbound) -> Answered {
        if let Some(pool) = self.pool_of(call.target.kind()) {
            return self.route_worker(call, pool).await;
        }
        let ticket = call.request.is_none().then(|| self.session(&call.target).begin());
        let Some(request) = call.request.or(ticket.as_ref().map(|t| t.request())) else {
            unreachable!("a call has an id or gets one");
        };
        let mut call = call;
        call.deadline = call.deadline.min(tokio::time::Instant::now().into_std() + CALL_TIMEOUT_MAX);
        if call.stale.is_some()
            && let Some(answered) = self.read_anywhere(&call, request).await
        {
            return answered;
        }
        let (mut retries, mut pause, mut lost, mut heard) = (0, RETRY_MIN, false, Heard::default());
        let mut patience = SILENCE_MIN;
        loop {
            let changed = self.changed.notified();
            // What only reads has applied nothing, wherever it got to.
            let unsure = lost && !call.reads();
            match self.attempt(&call, request, &heard.declined, patience).await {
                Attempt::Ended(mut answered) => match &answered.answer {
                    Answer::Fault(Fault::OutcomeUnknown { .. }) => lost = true,
                    // It did not run this time, which says nothing about the attempt that was lost.
                    Answer::Fault(fault) if unsure && fault.retryable() => {}
                    _ => {
                        answered.retries = retries;
                        return answered;
                    }
                },
                Attempt::Elsewhere { learned } => {
                    // Whoever leads may have declined before it was ready.
                    heard = Heard::default();
                    if learned {
                        retries += 1;
                        continue;
                    }
                }
                Attempt::Declined { by, cut_off } if !self.hears(&call.target) => {
                    let go_on = cut_off.is_some();
                    heard.declined(by, cut_off);
                    if go_on {
                        retries += 1;
                        continue;
                    }
                }
                Attempt::Stateless(pool) => {
                    let answered = self.route_worker(call, pool).await;
                    return Answered { retries: answered.retries + retries, ..answered };
                }
                Attempt::Lost => lost = true,
                Attempt::Silent { by } => {
                    lost = true;
                    heard.declined(by, None);
                    patience *= 2;
                    retries += 1;
                    continue;
                }
                attempt @ (Attempt::Unreached | Attempt::Declined { .. } | Attempt::Nobody) => {
                    // Once everybody was asked, the next round begins anew.
                    let over = matches!(attempt, Attempt::Nobody);
                    let told = if over { std::mem::take(&mut heard).cut_off } else { None };
                    if let Some(fault) = self.cut_off(&call.target).or(told).filter(|_| !unsure) {
                        return Answered { retries, ..Answered::fault(fault) };
                    }
                }
            }
            let next = tokio::time::Instant::now() + pause;
            if next.into_std() >= call.deadline {
                return Answered { retries, ..Answered::fault(self.out_of_time(&call, lost)) };
            }
            let _ = tokio::time::timeout_at(next, changed).await;
            retries += 1;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    fn out_of_time(&self, call: &Outbound, lost: bool) -> Fault {
        if lost {
            return Fault::TimedOut { actor: call.target.to_string() };
        }
        let why =
            match self.routes().as_ref() {
                None => "this node has not joined a cluster yet; wait until it is ready, then try again"
                    .to_owned(),
                Some(_) => "no leader could be reached within the deadline; nothing was applied, try again"
                    .to_owned(),
            };
        Fault::Unavailable { what: call.target.to_string(), why }
    }

    /// Hands messages to the leader of their partition, which a node that holds no replica of it has to ask
    /// for.
    pub(crate) async fn deliver(&self, delivery: Delivery) -> Result<u64, Fault> {
        let unavailable = |why: &str| Fault::Unavailable {
            what: format!("partition {}", delivery.to),
            why: why.to_owned(),
        };
        if let Some(host) = self.hosts.get(delivery.to) {
            let (ack, acked) = oneshot::channel();
            host.tell(HostMessage::Deliver(delivery.clone(), ack));
            return acked.await.unwrap_or_else(|_| Err(unavailable("its leader has changed")));
        }
        let target = delivery.items.first().map(|item| item.message.target.clone());
        let target = target.ok_or_else(|| unavailable("there is nothing to deliver"))?;
        let mut declined = Vec::new();
        loop {
            let member = match self.decide(&target) {
                Some(Decision::Forward(member) | Decision::Redirect(member)) => {
                    if declined.contains(&member) {
                        self.other_replica(&target, &declined)
                    } else {
                        Some(member)
                    }
                }
                _ => None,
            };
            let member = member.ok_or_else(|| unavailable("no leader is known"))?;
            match self.ask_member(member, &Question::Deliver(delivery.clone()), DELIVER_TIMEOUT).await {
                Ok(Response::Delivered(upto)) => return Ok(upto),
                Ok(Response::NotLeader(hint)) => {
                    self.redirected(&target, member, hint);
                    declined.push(member);
                }
                Ok(_) => return Err(unavailable("its leader has changed")),
                Err(LinkError::NoLink) => declined.push(member),
                Err(error) => return Err(unavailable(&error.to_string())),
            }
        }
    }
}

fn host_call(request: CallRequest) -> HostCall {
    let timeout = Duration::from_millis(u64::from(request.timeout_ms)).min(CALL_TIMEOUT_MAX);
    HostCall {
        target: request.target,
        method: request.method,
        args: crate::actor::Args { format: request.format, bytes: request.args },
        request: request.request,
        ack_below: request.ack_below,
        keyed: request.keyed,
        read_only: request.read_only,
        path: request.path,
        deadline: tokio::time::Instant::now().into_std() + timeout,
    }
}

/// Why a link takes no call of this size.
fn request_too_large(target: &ActorId, bytes: usize) -> Fault {
    Fault::TooLarge {
        what: "the request".into(),
        at: target.to_string(),
        bytes: bytes as u64,
        limit: FRAME_BYTES_MAX as u64,
    }
}

fn holds(routes: &Routes, me: Option<MemberId>, partition: PartitionId) -> bool {
    me.is_some_and(|me| routes.state().table.replicas_of(partition).contains(&me))
}

/// A router as callers hold it.
#[derive(Clone)]
pub(crate) struct RouterCaller(pub(crate) Arc<Router>);

impl Caller for RouterCaller {
    fn call(&self, call: Outbound) -> BoxFuture<'static, Answered> {
        let router = self.0.clone();
        Box::pin(async move { router.route(call).await })
    }

    fn call_worker(&self, call: Outbound, pool: Pool) -> BoxFuture<'static, Answered> {
        let router = self.0.clone();
        Box::pin(async move { router.route_worker(call, pool).await })
    }

    fn subscribe(&self, actor: ActorId, from: EventsFrom) -> EventStream {
        self.0.subscribe(actor, from)
    }
}

impl crate::host::Courier for RouterCaller {
    fn deliver(&self, delivery: Delivery) -> BoxFuture<'static, Result<u64, Fault>> {
        let router = self.0.clone();
        Box::pin(async move { router.deliver(delivery).await })
    }
}
