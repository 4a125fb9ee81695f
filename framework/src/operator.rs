//! What operators ask of the leaders of partitions: which reminders are set, and to cancel one.
//!
//! Owns the way of such a question to a partition's leader, wherever it is asked, and the putting together of
//! what many partitions told. Never reads a row; hosts do. A page of all partitions is bounded on its way, too:
//! each is asked for no more than fits into it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use perennial_core::id::{ActorId, MemberId, PartitionId};
use perennial_core::time::Millis;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::error::Fault;
use crate::host::HostMessage;
use crate::host::reminders::REMINDERS_TOLD_MAX;
use crate::protocol::{Question, Response};
use crate::router::Router;
use crate::status::{ReminderPage, ReminderQuery};

/// How long a question to a leader may take, with all changes of leader meanwhile.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long one node has to answer it.
const ANSWER_MAX: Duration = Duration::from_secs(3);
/// Pause before it is asked again when nobody leads.
const PAUSE: Duration = Duration::from_millis(100);
/// Partitions asked at a time.
const ASKED_MAX: usize = 16;

/// A question that only the leader of a partition answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum LeaderQuestion {
    /// Which reminders are set?
    Reminders(ReminderQuery),
    /// Cancel this one.
    CancelReminder { actor: ActorId, name: String },
}

impl Router {
    /// Answers a question to the leader of a partition, if that is here.
    pub(crate) async fn answer_here(&self, partition: PartitionId, question: LeaderQuestion) -> Response {
        let Some(host) = self.host(partition) else { return Response::NotLeader(self.leader_of(partition)) };
        match question {
            LeaderQuestion::Reminders(query) => {
                let (told, page) = oneshot::channel();
                host.tell(HostMessage::Reminders { query, told });
                match page.await {
                    Ok(Ok(page)) => Response::Reminders(page),
                    Ok(Err(fault)) => Response::Refused(fault),
                    Err(_) => Response::NotLeader(None),
                }
            }
            LeaderQuestion::CancelReminder { actor, name } => {
                let (told, cancelled) = oneshot::channel();
                let at = actor.to_string();
                host.tell(HostMessage::CancelReminder { actor, name, told });
                match cancelled.await {
                    Ok(Ok(was_set)) => Response::Cancelled(was_set),
                    Ok(Err(fault)) => Response::Refused(fault),
                    Err(_) => Response::Refused(Fault::OutcomeUnknown { actor: at }),
                }
            }
        }
    }

    /// Asks the leader of a partition, whoever that is by then.
    async fn ask_leader(&self, partition: PartitionId, question: &LeaderQuestion) -> Result<Response, Fault> {
        let until = Instant::now() + PATIENCE;
        let mut others: VecDeque<MemberId> = VecDeque::new();
        loop {
            if Instant::now() >= until {
                return Err(Fault::Unavailable {
                    what: format!("partition {partition}"),
                    why: "no leader of it answers; look at the status of the cluster, then try again".into(),
                });
            }
            let member = self.leader_of(partition).map(|(_, leader)| leader);
            let Some(member) = member.or_else(|| others.pop_front()) else {
                tokio::time::sleep(PAUSE).await;
                others = self.replicas_of(partition).into();
                continue;
            };
            let response = if self.me() == Some(member) {
                self.answer_here(partition, question.clone()).await
            } else {
                let asked = Question::OfLeader { partition, question: question.clone() };
                match self.ask_member(member, &asked, ANSWER_MAX).await {
                    Ok(response) => response,
                    Err(error) => {
                        if let LeaderQuestion::CancelReminder { actor, .. } = question
                            && error.may_have_been_received()
                        {
                            return Err(Fault::OutcomeUnknown { actor: actor.to_string() });
                        }
                        Response::NotLeader(None)
                    }
                }
            };
            match response {
                Response::Refused(fault) => return Err(fault),
                Response::NotLeader(hint) => {
                    if !self.not_leading(partition, member, hint) {
                        tokio::time::sleep(PAUSE).await;
                    }
                }
                answer => return Ok(answer),
            }
        }
    }

    /// Reminders that are set, earliest first.
    ///
    /// # Errors
    /// When a partition has no leader that answers.
    pub(crate) async fn reminders(self: &Arc<Self>, mut query: ReminderQuery) -> Result<ReminderPage, Fault> {
        query.limit = query.limit.clamp(1, REMINDERS_TOLD_MAX);
        let partitions = {
            let routes = self.routes();
            let Some(routes) = routes.as_ref() else {
                let why = "this node does not know its partitions yet; try again".into();
                return Err(Fault::Unavailable { what: "the cluster".into(), why });
            };
            match &query.actor {
                Some(actor) => vec![routes.partition_of(actor)],
                None => routes.state().meta.partitions.iter().collect(),
            }
        };
        let question = &LeaderQuestion::Reminders(query.clone());
        let mut asked = futures_util::stream::iter(partitions)
            .map(|partition| async move { self.ask_leader(partition, question).await })
            .buffered(ASKED_MAX);
        let mut pages = Vec::new();
        while let Some(answer) = asked.next().await {
            match answer? {
                Response::Reminders(page) => pages.push(page),
                _ => {
                    return Err(Fault::Unavailable {
                        what: "the reminders".into(),
                        why: "a node answers something else".into(),
                    });
                }
            }
        }
        Ok(merged(pages, query.limit as usize))
    }

    /// Cancels a reminder; says whether it was set.
    ///
    /// # Errors
    /// When its partition has no leader that answers; [`Fault::OutcomeUnknown`] when one may have done it.
    pub(crate) async fn cancel_reminder(&self, actor: ActorId, name: String) -> Result<bool, Fault> {
        let partition = self.routes().as_ref().map(|routes| routes.partition_of(&actor));
        let Some(partition) = partition else {
            let why = "this node does not know its partitions yet; try again".into();
            return Err(Fault::Unavailable { what: "the cluster".into(), why });
        };
        match self.ask_leader(partition, &LeaderQuestion::CancelReminder { actor, name }).await? {
            Response::Cancelled(was_set) => Ok(was_set),
            _ => Err(Fault::Unavailable {
                what: "the reminder".into(),
                why: "a node answers something else".into(),
            }),
        }
    }
}

/// One page of those of many partitions: what a partition has held back is behind it.
fn merged(pages: Vec<ReminderPage>, limit: usize) -> ReminderPage {
    fn key(r: &crate::status::Reminder) -> (Millis, &ActorId, &str) {
        (r.due, &r.actor, r.name.as_str())
    }
    let ends = pages.iter().filter(|page| page.more).filter_map(|page| page.reminders.last());
    let end = ends.min_by(|a, b| key(a).cmp(&key(b))).cloned();
    let mut all = ReminderPage::default();
    for page in pages {
        all.reminders.extend(page.reminders);
    }
    all.reminders.sort_by(|a, b| key(a).cmp(&key(b)));
    let told = end.as_ref().map_or(all.reminders.len(), |end| {
        all.reminders.partition_point(|reminder| key(reminder) <= key(end))
    });
    let told = told.min(limit);
    all.more = end.is_some() || told < all.reminders.len();
    all.reminders.truncate(told);
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::Reminder;

    fn page(dues: &[u64], more: bool) -> ReminderPage {
        let actor: ActorId = "C/a".parse().unwrap();
        let reminder = |due: &u64| Reminder {
            actor: actor.clone(),
            name: "n".into(),
            due: Millis(*due),
            target: actor.clone(),
            handler: "h".into(),
            repeats: None,
            missed: None,
        };
        ReminderPage { reminders: dues.iter().map(reminder).collect(), more }
    }

    #[test]
    fn a_page_of_many_partitions_ends_where_one_of_them_holds_back() {
        let told = |pages, limit| {
            let page = merged(pages, limit);
            (page.reminders.iter().map(|r| r.due.0).collect::<Vec<_>>(), page.more)
        };
        assert_eq!(told(vec![page(&[1, 5], false), page(&[3], false)], 9), (vec![1, 3, 5], false));
        assert_eq!(told(vec![page(&[1, 5], false), page(&[3], false)], 2), (vec![1, 3], true));
        assert_eq!(told(vec![page(&[1, 2], true), page(&[3, 4], true)], 9), (vec![1, 2], true));
        assert_eq!(told(vec![page(&[1, 3], true), page(&[2, 9], false)], 9), (vec![1, 2, 3], true));
        assert_eq!(told(Vec::new(), 9), (Vec::new(), false));
    }
}
