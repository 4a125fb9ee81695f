//! Builds beside each other: what a host does with what this build cannot read or does not know.
//!
//! While nodes are upgraded one after the other, a leader may meet a state, a message or a call that only a
//! newer build understands. Owns the answer to it: leadership goes to a replica with a newer build, and what
//! asked for the turn waits for that. Nothing of a state is ever lost by being written by a build that does
//! not know all of it, since such a build does not read it. Without a newer build the actor is *parked*: its
//! calls fail at once and say why; every one of them tries again. Never decides who leads.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use perennial_core::id::{ActorId, MemberId, NodeId, PartitionId};

use super::turns::{Host, Work, rows_failed};
use super::{HostCall, HostMessage, ReplyTo};
use crate::actor::{Answer, Finished};
use crate::error::Fault;
use crate::replica::RowError;

/// Pause between two attempts to hand a partition over to a newer build.
const HAND_OVER_PAUSE: Duration = Duration::from_secs(5);
/// How long calls wait for such an attempt; then they are refused and may be tried again. Shorter than a
/// router takes silence for a lost node.
const HAND_OVER_PATIENCE: Duration = Duration::from_millis(300);
/// Pause before a call that waits for it looks again; the end of the epoch ends the wait earlier.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Most parked actors of a partition that are counted.
const PARKED_MAX: usize = 64 * 1024;

/// What a host knows of the builds of the cluster.
pub(crate) trait Builds: Send + Sync {
    /// This node's build.
    fn build(&self) -> u64;
    /// Whether this node has heard of a build. It has not while its table is behind: whoever writes was
    /// announced before.
    fn knows(&self, build: u64) -> bool;
    /// Whether the cluster knows that this node runs this build. Until then nothing is written in a form that
    /// others may not know.
    fn announced(&self) -> bool;
    /// Whether any member is of another build.
    fn mixed(&self) -> bool;
    /// Replicas of a partition whose build is newer than this one.
    fn newer(&self, partition: PartitionId) -> Vec<(MemberId, NodeId)>;
    /// Tries to hand the leadership of a partition to one of these.
    fn hand_over(&self, partition: PartitionId, to: Vec<MemberId>);
}

/// Why a state cannot be read.
pub(super) enum Misread {
    /// This build makes nothing of what is stored.
    State {
        why: String,
        /// The build that first stored something of its schema.
        build: Option<u64>,
    },
    /// What is stored cannot be had.
    Rows(RowError),
}

impl From<String> for Misread {
    fn from(why: String) -> Self {
        Self::State { why, build: None }
    }
}

impl From<RowError> for Misread {
    fn from(error: RowError) -> Self {
        Self::Rows(error)
    }
}

impl Host {
    /// The fault of an actor whose state cannot be read; if that is because of this build, operators are told
    /// once.
    pub(super) fn unreadable(&mut self, actor: &ActorId, misread: Misread) -> Fault {
        let (why, build) = match misread {
            Misread::State { why, build } => (why, build),
            Misread::Rows(error) => return rows_failed("its state", actor, &error),
        };
        let newer = self.shared.builds.newer(self.partition);
        let known = build.is_none_or(|build| self.shared.builds.knows(build));
        let parked = newer.is_empty() && known;
        let before = self.parked.get(actor).copied();
        if before != Some(parked) && self.parked.len() < PARKED_MAX {
            self.parked.insert(actor.clone(), parked);
            self.count_parked(before, Some(parked));
            if parked {
                tracing::error!(%actor, why, "the actor is parked: its state cannot be read");
            } else {
                tracing::warn!(%actor, why, "the actor waits for a newer build that reads its state");
            }
        }
        if parked { self.storage_fault("state", actor, &why) } else { self.pass_on(actor, &newer, &why) }
    }

    /// The actor's state was read.
    pub(super) fn readable(&mut self, actor: &ActorId) {
        let known = self.parked.remove(actor);
        self.count_parked(known, None);
    }

    fn count_parked(&self, before: Option<bool>, after: Option<bool>) {
        match (before == Some(true), after == Some(true)) {
            (false, true) => drop(self.gauges.parked.fetch_add(1, Ordering::Relaxed)),
            (true, false) => drop(self.gauges.parked.fetch_sub(1, Ordering::Relaxed)),
            _ => {}
        }
    }

    /// Has a newer build lead the partition, unless that was just tried; gives the fault for meanwhile.
    fn pass_on(&mut self, actor: &ActorId, newer: &[(MemberId, NodeId)], why: &str) -> Fault {
        let now = self.shared.clock.instant();
        if self.passed_on.is_none_or(|at| now.saturating_duration_since(at) >= HAND_OVER_PAUSE) {
            self.passed_on = Some(now);
            let to = newer.iter().map(|(member, _)| *member).collect();
            self.shared.builds.hand_over(self.partition, to);
        }
        let nodes: Vec<_> = newer.iter().map(|(_, node)| node.as_str()).collect();
        if nodes.is_empty() {
            let why = format!(
                "{} has not heard yet of the build that it needs; try again ({why})",
                self.shared.node
            );
            return Fault::Unavailable { what: actor.to_string(), why };
        }
        Fault::Unavailable {
            what: actor.to_string(),
            why: format!(
                "it needs the newer build of {}, and {} leads its partition; finish the upgrade or start {}, \
                 then try again ({why})",
                nodes.join(" and "),
                self.shared.node,
                if nodes.len() == 1 { "that node" } else { "one of them" },
            ),
        }
    }

    /// Whether a call should wait for the hand-over to a newer build that was just begun.
    pub(super) fn awaits_newer_build(&self, fault: &Fault, now: Instant) -> bool {
        matches!(fault, Fault::Unavailable { .. })
            && self.passed_on.is_some_and(|at| now.saturating_duration_since(at) < HAND_OVER_PATIENCE)
    }

    /// Has a call come again, if it should wait; otherwise refuses it.
    pub(super) fn refuse_or_wait(&mut self, call: HostCall, reply: ReplyTo, fault: Fault) {
        if self.awaits_newer_build(&fault, self.shared.clock.instant()) {
            return self.tell_after(LOOK_AGAIN, HostMessage::Call(call, reply));
        }
        self.refuse(reply, fault);
    }

    /// Has work come again that met a state of a newer build, if it is a call that should wait; otherwise it
    /// ends with the fault.
    pub(super) fn end_or_wait(&mut self, actor: ActorId, work: Work, fault: Fault) {
        if matches!(work, Work::Call(..)) && self.awaits_newer_build(&fault, self.shared.clock.instant()) {
            return self.tell_after(LOOK_AGAIN, HostMessage::Again { actor, work });
        }
        self.finish(actor, work, Finished::fault(fault));
    }

    /// What a caller is told of a kind or handler that this build does not have: a newer one may, so the call
    /// is tried again until there is one build or its time is over.
    pub(super) fn unknown_here(&mut self, actor: &ActorId, fault: Fault) -> Fault {
        let newer = self.shared.builds.newer(self.partition);
        if newer.is_empty() { fault } else { self.pass_on(actor, &newer, &fault.to_string()) }
    }

    /// How a message or reminder failed. While builds are mixed, what one build does not know is no fault of
    /// the message: it waits, at the head of its line, until there is one build again.
    pub(super) fn passing(&mut self, actor: &ActorId, answer: Answer) -> Answer {
        let unknown = match &answer {
            Answer::Fault(
                fault
                @ (Fault::UnknownKind { .. } | Fault::UnknownMethod { .. } | Fault::BadArguments { .. }),
            ) if self.shared.builds.mixed() => fault.to_string(),
            // An item of a collection that a newer build has written, in a state that has not changed since.
            Answer::Fault(fault @ Fault::Unreadable { what, .. })
                if what == "item" && self.shared.builds.mixed() =>
            {
                fault.to_string()
            }
            _ => return answer,
        };
        let newer = self.shared.builds.newer(self.partition);
        if newer.is_empty() {
            let why = format!("the builds of its nodes differ ({unknown})");
            return Answer::Fault(Fault::Unavailable { what: actor.to_string(), why });
        }
        Answer::Fault(self.pass_on(actor, &newer, &unknown))
    }
}

/// A single node, whose build is all there is.
pub(crate) struct OneBuild;

impl Builds for OneBuild {
    fn build(&self) -> u64 {
        0
    }
    fn knows(&self, _: u64) -> bool {
        true
    }
    fn announced(&self) -> bool {
        true
    }
    fn mixed(&self) -> bool {
        false
    }
    fn newer(&self, _: PartitionId) -> Vec<(MemberId, NodeId)> {
        Vec::new()
    }
    fn hand_over(&self, _: PartitionId, _: Vec<MemberId>) {}
}
