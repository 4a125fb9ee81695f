//! Calls of stateless workers: which node takes one, and when it may be made again.
//!
//! A call that certainly did not run is made elsewhere, at once. One that may have run is made again only if
//! its kind is declared idempotent, as nobody remembers what ran.

use std::sync::{Arc, PoisonError};

use perennial_core::balance::{Balance, Candidate};
use perennial_core::id::{MemberId, RequestId};
use tokio::sync::oneshot;

use super::{Attempt, CALL_TIMEOUT_MAX, RETRY_MAX, RETRY_MIN, Router, RouterCaller, host_call};
use crate::actor::Answer;
use crate::call::{Answered, Outbound};
use crate::error::Fault;
use crate::host::Ended;
use crate::link::LinkError;
use crate::options::Pool;
use crate::protocol::{CallRequest, Question, Response};

/// A call under way at a member, counted until this is dropped.
struct Taken<'a> {
    router: &'a Router,
    kind: &'a str,
    member: MemberId,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut balancers = self.router.balancers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(balancer) = balancers.get_mut(self.kind) {
            balancer.ended(self.member);
        }
    }
}

impl Router {
    /// How calls of a kind are spread, if it is known here and stateless.
    pub(crate) fn pool_of(&self, kind: &str) -> Option<Pool> {
        self.workers.get()?.pool_of(kind)
    }

    /// Runs a call in the pool here.
    pub(crate) fn work_here(self: &Arc<Self>, request: CallRequest, answer: Box<dyn FnOnce(Ended) + Send>) {
        let Some(workers) = self.workers.get() else { return answer(Ended::NotLeader) };
        workers.run(host_call(request), Arc::new(RouterCaller(self.clone())), answer);
    }

    /// Has a call run by the pool of some node.
    pub(crate) async fn route_worker(self: &Arc<Self>, mut call: Outbound, pool: Pool) -> Answered {
        let ticket = call.request.is_none().then(|| self.session(&call.target).begin());
        let Some(request) = call.request.or(ticket.as_ref().map(|ticket| ticket.request())) else {
            unreachable!("a call has an id or gets one");
        };
        call.deadline = call.deadline.min(tokio::time::Instant::now().into_std() + CALL_TIMEOUT_MAX);
        let (mut retries, mut pause, mut lost) = (0, RETRY_MIN, false);
        let (mut asked, mut refused) = (Vec::new(), None);
        loop {
            let changed = self.changed.notified();
            if let Some(taken) = self.choose(&call, pool.balance, &asked) {
                asked.push(taken.member);
                match self.attempt_worker(&call, request, taken.member).await {
                    // Who has not run it names no node.
                    Attempt::Ended(Answered { answer: Answer::Fault(fault), node: None, .. })
                        if fault.retryable() =>
                    {
                        refused = Some(fault);
                    }
                    Attempt::Ended(answered) => return Answered { retries, ..answered },
                    Attempt::Lost if pool.idempotent => lost = true,
                    Attempt::Lost => {
                        let actor = call.target.to_string();
                        let late = tokio::time::Instant::now().into_std() >= call.deadline;
                        let fault =
                            if late { Fault::TimedOut { actor } } else { Fault::OutcomeUnknown { actor } };
                        return Answered { retries, ..Answered::fault(fault) };
                    }
                    _ => {}
                }
                retries += 1;
                if tokio::time::Instant::now().into_std() < call.deadline {
                    continue;
                }
            }
            if let Some(fault) = refused.take().filter(|_| !lost) {
                return Answered { retries, ..Answered::fault(fault) };
            }
            asked.clear();
            let next = tokio::time::Instant::now() + pause;
            if next.into_std() >= call.deadline {
                return Answered { retries, ..Answered::fault(nobody(&call, lost)) };
            }
            let _ = tokio::time::timeout_at(next, changed).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    /// Chooses a member that was not asked yet, of those that are believed up; all of them if none is.
    fn choose<'a>(&'a self, call: &'a Outbound, balance: Balance, asked: &[MemberId]) -> Option<Taken<'a>> {
        let candidates = {
            let routes = self.routes();
            let routes = routes.as_ref()?;
            let mut members: Vec<_> = routes.state().members.iter().collect();
            if balance == Balance::ByKey {
                let replicas = routes.state().table.replicas_of(routes.partition_of(&call.target));
                let place = |id| replicas.iter().position(|replica| *replica == id);
                members.sort_by_key(|member| place(member.id).unwrap_or(replicas.len()));
            }
            let up = |id| self.me() == Some(id) || !routes.avoids(id);
            let any = members.iter().any(|member| up(member.id));
            let free = members.iter().filter(|m| !asked.contains(&m.id) && (up(m.id) || !any));
            free.map(|m| Candidate { member: m.id, weight: m.weight }).collect::<Vec<_>>()
        };
        let kind = call.target.kind();
        let mut balancers = self.balancers.lock().unwrap_or_else(PoisonError::into_inner);
        let balancer = balancers.entry(kind.to_owned()).or_default();
        let member = balancer.choose(balance, &candidates, rand::random())?;
        Some(Taken { router: self, kind, member })
    }

    async fn attempt_worker(
        self: &Arc<Self>,
        call: &Outbound,
        request: RequestId,
        member: MemberId,
    ) -> Attempt {
        let left = call.deadline.saturating_duration_since(tokio::time::Instant::now().into_std());
        let wire = self.wire(call, request);
        if self.me() == Some(member) {
            let (sender, receiver) = oneshot::channel();
            self.work_here(wire, Box::new(move |ended| drop(sender.send(ended))));
            return match tokio::time::timeout(left, receiver).await {
                Ok(Ok(Ended::Answered(answered))) => Attempt::Ended(answered),
                Ok(Ok(Ended::NotLeader)) => Attempt::Unreached,
                Ok(Err(_)) | Err(_) => Attempt::Lost,
            };
        }
        match self.ask_member(member, &Question::Work(wire), left).await {
            Ok(Response::Ended(answered)) => Attempt::Ended(answered),
            Ok(Response::Refused(fault)) => Attempt::Ended(Answered::fault(fault)),
            Ok(Response::NotLeader(_)) => Attempt::Unreached,
            Ok(_) => Attempt::Lost,
            Err(LinkError::TooLarge(bytes)) => {
                Attempt::Ended(Answered::fault(super::request_too_large(&call.target, bytes)))
            }
            Err(error) if error.may_have_been_received() => Attempt::Lost,
            Err(_) => Attempt::Unreached,
        }
    }
}

fn nobody(call: &Outbound, lost: bool) -> Fault {
    let what = call.target.to_string();
    if lost {
        return Fault::TimedOut { actor: what };
    }
    let why = "no node with its workers could be reached within the deadline; nothing ran, try again";
    Fault::Unavailable { what, why: why.to_owned() }
}
