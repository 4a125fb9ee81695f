//! What a cluster tells about itself.

use perennial_core::id::{ActorId, Epoch, MemberId, NodeId, PartitionId};
use perennial_core::partition::record::{Missed, ReminderRow, Repeat};
use perennial_core::time::Millis;
use serde::{Deserialize, Serialize};

/// The cluster as one node sees it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// The node that answered.
    pub node: NodeId,
    /// Application's name.
    pub app: String,
    /// Cluster id in hexadecimal; `None` while the cluster is not formed.
    pub cluster: Option<String>,
    /// Version of the placement table.
    pub epoch: Option<Epoch>,
    /// What it waits for while not ready, such as `waiting for 1 more node (2 of 3 found)`.
    pub waiting_for: Option<String>,
    /// Members by id.
    pub members: Vec<MemberStatus>,
    /// Partitions in order; empty while not formed.
    pub partitions: Vec<PartitionStatus>,
    /// The application's checks at the node that answered.
    pub checks: Vec<CheckStatus>,
}

/// A check of the application, see [`App::health`](crate::App::health).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckStatus {
    /// Its name.
    pub name: String,
    /// Whether its last run was well.
    pub up: bool,
    /// Why not.
    pub why: Option<String>,
}

/// A member as the answering node sees it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Number.
    pub member: MemberId,
    /// Name.
    pub node: NodeId,
    /// Address of its port for nodes and clients.
    pub address: String,
    /// Address of its gateway.
    pub http: Option<String>,
    /// Zone.
    pub zone: Option<String>,
    /// Whether the answering node has a link to it (itself: true).
    pub up: bool,
    /// Partitions it leads, as far as known.
    pub leads: u32,
    /// Replicas it holds by the table.
    pub replicas: u32,
    /// Restart count.
    pub incarnation: u64,
    /// What its build stores and understands; nodes that differ in it are of different builds.
    pub build: String,
}

/// A partition as its leader tells it; without a reachable leader, as the answering node sees it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PartitionStatus {
    /// Which.
    pub partition: PartitionId,
    /// Its leader, if known.
    pub leader: Option<NodeId>,
    /// Term of that leader.
    pub term: u64,
    /// Commit index.
    pub commit: u64,
    /// Its replicas, preferred leader first.
    pub replicas: Vec<ReplicaStatus>,
    /// Resident activations at the leader.
    pub activations: u64,
    /// Actors that its leader has met and whose state its build cannot read.
    pub parked: u64,
}

/// A replica of a partition.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReplicaStatus {
    /// Where.
    pub node: NodeId,
    /// Entries it is behind the leader's log end; `None` when not known.
    pub lag: Option<u64>,
}

/// A reminder that is set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reminder {
    /// Whose it is.
    pub actor: ActorId,
    /// Its name.
    pub name: String,
    /// When it is due next.
    pub due: Millis,
    /// Whom it calls.
    pub target: ActorId,
    /// With which handler.
    pub handler: String,
    /// How it goes on, such as `every 10s` or `cron "0 9 * * *" in UTC`; `None`: not at all.
    pub repeats: Option<String>,
    /// What happens to due times that were missed, if it goes on.
    pub missed: Option<Missed>,
}

impl Reminder {
    pub(crate) fn of(actor: ActorId, name: String, due: Millis, row: ReminderRow) -> Self {
        let ReminderRow { message, repeat } = row;
        Self {
            actor,
            name,
            due,
            target: message.target,
            handler: message.method,
            repeats: repeat.as_ref().map(crate::when::text),
            missed: repeat.map(|Repeat { missed, .. }| missed),
        }
    }
}

/// Some reminders, earliest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReminderPage {
    /// They.
    pub reminders: Vec<Reminder>,
    /// There are more behind the last one.
    pub more: bool,
}

/// Which reminders to tell of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReminderQuery {
    /// Only this actor's.
    pub actor: Option<ActorId>,
    /// Only those that are due before.
    pub due_before: Option<Millis>,
    /// Only those behind this one, in the order of due times, then actors, then names.
    pub after: Option<(Millis, ActorId, String)>,
    /// How many, from 1 to [`REMINDERS_TOLD_MAX`](crate::limits::REMINDERS_TOLD_MAX); fewer if they are large.
    pub limit: u32,
}
