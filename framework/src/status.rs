//! What a cluster tells about itself.

use perennial_core::id::{Epoch, MemberId, NodeId, PartitionId};
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
