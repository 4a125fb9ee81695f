//! The first words on a connection: who dials, for which lane, and whether the door lets it in.
//!
//! Owns the hello, the refusals and the checks that need no state. Who is a member is for [`Admission`].
//! In: a verified certificate and a hello of at most 4 KiB; out: admitted, or a [`Refusal`] that the
//! other side can print.

use std::fmt;

use perennial_core::id::{ClusterId, NodeId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::tls::Peer;
use super::transport::Lane;

/// Largest hello, welcome or refusal.
pub(crate) const HELLO_BYTES_MAX: usize = 4 << 10;
/// Longest advertised address.
const ADDRESS_BYTES_MAX: usize = 256;

/// Every lane the door knows. Grows at the end only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DoorLane {
    /// Sessions between nodes, for administration.
    Control,
    /// Raft messages between nodes.
    Raft,
    /// Calls between nodes.
    Calls,
    /// Large transfers between nodes.
    Bulk,
    /// Calls of a client.
    Client,
    /// One question of a node that may not be a member yet.
    Join,
}

impl DoorLane {
    /// The lane of a transport this is; `None` for the others.
    #[must_use]
    pub fn transport(self) -> Option<Lane> {
        match self {
            Self::Raft => Some(Lane::Raft),
            Self::Calls => Some(Lane::Calls),
            Self::Bulk => Some(Lane::Bulk),
            Self::Control | Self::Client | Self::Join => None,
        }
    }
}

impl From<Lane> for DoorLane {
    fn from(lane: Lane) -> Self {
        match lane {
            Lane::Raft => Self::Raft,
            Lane::Calls => Self::Calls,
            Lane::Bulk => Self::Bulk,
        }
    }
}

impl fmt::Display for DoorLane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.transport() {
            Some(lane) => lane.fmt(f),
            None => f.write_str(match self {
                Self::Control => "control",
                Self::Client => "client",
                _ => "join",
            }),
        }
    }
}

/// What a node says about itself, when it dials and when it answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// The node.
    pub node: NodeId,
    /// The cluster it belongs to; `None` until one is formed.
    pub cluster: Option<ClusterId>,
    /// Version of the placement hash it runs.
    pub hash_version: u32,
    /// Where it can be dialed, `host:port`.
    pub address: String,
    /// Its restart count.
    pub incarnation: u64,
}

/// What the dialing side says first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The lane the connection is for.
    pub lane: DoorLane,
    /// The cluster the dialing side believes to be in; `None` when it does not know.
    pub cluster: Option<ClusterId>,
    /// Version of the placement hash it runs.
    pub hash_version: u32,
    /// What a node says about itself; `None` on the client lane.
    pub node: Option<Facts>,
}

impl Hello {
    /// The hello of a node.
    #[must_use]
    pub fn of_node(lane: DoorLane, facts: Facts) -> Self {
        Self { lane, cluster: facts.cluster, hash_version: facts.hash_version, node: Some(facts) }
    }

    /// The hello of a client.
    #[must_use]
    pub fn of_client(cluster: Option<ClusterId>, hash_version: u32) -> Self {
        Self { lane: DoorLane::Client, cluster, hash_version, node: None }
    }
}

/// Why the door stays shut; sent to the dialing side. Grows at the end only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The two belong to different clusters.
    #[error("cluster {theirs:?} is not cluster {ours:?}: check the join address, or clear the data folder")]
    WrongCluster {
        /// Of the node that refuses.
        ours: ClusterId,
        /// Of the one that dials.
        theirs: ClusterId,
    },
    /// One of the two has no cluster yet; later it may.
    #[error("no cluster is formed yet: join first, then link")]
    NotFormed,
    /// The node is not a member.
    #[error("node {0} is not a member of this cluster: let it join first")]
    UnknownMember(NodeId),
    /// The two would place actors differently.
    #[error("placement hash version {theirs} is not {ours}: run the same release on all nodes")]
    HashVersion {
        /// Of the node that refuses.
        ours: u32,
        /// Of the one that dials.
        theirs: u32,
    },
    /// A node dialed itself, or two nodes have one id.
    #[error("node {0} is the node at this address: use another address, or give each node an id of its own")]
    OwnNode(NodeId),
    /// The certificate proves another name than the one given.
    #[error(
        "the certificate is that of {certificate}, not of node {claimed}: use the node's own certificate"
    )]
    Certificate {
        /// Whom the certificate names.
        certificate: String,
        /// Who was claimed.
        claimed: NodeId,
    },
    /// This kind of certificate has no access to the lane.
    #[error("{certificate} has no access to the {lane} lane: use a node's certificate")]
    Lane {
        /// Whom the certificate names.
        certificate: String,
        /// The lane asked for.
        lane: DoorLane,
    },
    /// The node is at its limit of connections.
    #[error("the node has as many connections as it takes: try again later")]
    Busy,
    /// The hello cannot be read.
    #[error("the hello cannot be read: run the same release on both sides")]
    Unreadable,
    /// The node has no use for this link, for the reason given.
    #[error("{0}")]
    Other(String),
}

/// Decides who comes in; supplied by the node. Called on tasks of the door and must not block.
pub trait Admission: Send + Sync + 'static {
    /// What this node says about itself now.
    fn facts(&self) -> Facts;

    /// Whether a connection that has passed the door's own checks comes in: is the node a member?
    ///
    /// # Errors
    /// The [`Refusal`] that the dialing side is told.
    fn admit(&self, peer: &Peer, lane: DoorLane, hello: &Hello) -> Result<(), Refusal>;
}

/// The checks that need no knowledge of members.
pub(crate) fn check(ours: &Facts, peer: &Peer, hello: &Hello) -> Result<(), Refusal> {
    let lane = hello.lane;
    match (peer, &hello.node) {
        (Peer::Node(certificate), Some(facts)) if *certificate == facts.node && lane != DoorLane::Client => {}
        (_, None) if lane == DoorLane::Client => {}
        (Peer::Client(_), Some(_)) | (_, None) => {
            return Err(Refusal::Lane { certificate: peer.to_string(), lane });
        }
        (Peer::Node(_), Some(facts)) => {
            return Err(Refusal::Certificate { certificate: peer.to_string(), claimed: facts.node.clone() });
        }
    }
    if let Some(facts) = &hello.node {
        if facts.node == ours.node {
            return Err(Refusal::OwnNode(facts.node.clone()));
        }
        if facts.address.len() > ADDRESS_BYTES_MAX {
            return Err(Refusal::Unreadable);
        }
    }
    if lane == DoorLane::Join {
        return Ok(());
    }
    if ours.hash_version != hello.hash_version {
        return Err(Refusal::HashVersion { ours: ours.hash_version, theirs: hello.hash_version });
    }
    match (ours.cluster, hello.cluster) {
        (Some(ours), Some(theirs)) if ours != theirs => Err(Refusal::WrongCluster { ours, theirs }),
        (Some(_), Some(_)) => Ok(()),
        _ if lane == DoorLane::Client => Ok(()),
        _ => Err(Refusal::NotFormed),
    }
}

/// Reads a value that is all of the bytes.
pub(crate) fn read<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Some(value),
        _ => None,
    }
}

/// Writes a value of this module.
pub(crate) fn write<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_allocvec(value).expect("a hello is always writable")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(node: &str, cluster: Option<u128>) -> Facts {
        Facts {
            node: NodeId::new(node).unwrap(),
            cluster: cluster.map(ClusterId),
            hash_version: 1,
            address: "h:1".to_owned(),
            incarnation: 2,
        }
    }

    #[test]
    fn the_door_refuses_for_the_reason_that_is_true() {
        let ours = facts("n1", Some(7));
        let n2 = Peer::Node(NodeId::new("n2").unwrap());
        let client = Peer::Client("shell".to_owned());
        let raft = |f| Hello::of_node(DoorLane::Raft, f);
        assert_eq!(check(&ours, &n2, &raft(facts("n2", Some(7)))), Ok(()));
        let refused = |peer: &Peer, hello: Hello| check(&ours, peer, &hello).unwrap_err();
        assert!(matches!(refused(&n2, raft(facts("n2", Some(8)))), Refusal::WrongCluster { .. }));
        assert_eq!(refused(&n2, raft(facts("n2", None))), Refusal::NotFormed);
        assert!(matches!(refused(&n2, raft(facts("n3", Some(7)))), Refusal::Certificate { .. }));
        assert!(matches!(refused(&client, raft(facts("n2", Some(7)))), Refusal::Lane { .. }));
        let n1 = Peer::Node(ours.node.clone());
        assert!(matches!(refused(&n1, raft(facts("n1", Some(7)))), Refusal::OwnNode(_)));
        let other_hash = Hello { hash_version: 9, ..raft(facts("n2", Some(7))) };
        assert!(matches!(refused(&n2, other_hash), Refusal::HashVersion { ours: 1, theirs: 9 }));
        assert_eq!(check(&ours, &client, &Hello::of_client(None, 1)), Ok(()));
        let nameless = Hello { node: None, ..raft(facts("n2", Some(7))) };
        assert!(matches!(refused(&n2, nameless), Refusal::Lane { .. }));
        assert_eq!(check(&ours, &n2, &Hello::of_node(DoorLane::Join, facts("n2", None))), Ok(()));
    }

    #[test]
    fn bytes_of_the_hello_are_frozen_and_trailing_bytes_are_refused() {
        let hello = Hello::of_node(DoorLane::Bulk, facts("n2", Some(3)));
        let wire = [3, 1, 3, 1, 1, 2, b'n', b'2', 1, 3, 1, 3, b'h', b':', b'1', 2];
        assert_eq!(write(&hello), wire);
        assert_eq!(read::<Hello>(&wire), Some(hello));
        let mut long = wire.to_vec();
        long.push(0);
        assert_eq!(read::<Hello>(&long), None);
    }

    #[test]
    fn bytes_of_every_lane_and_refusal_are_frozen() {
        let lanes = [
            DoorLane::Control,
            DoorLane::Raft,
            DoorLane::Calls,
            DoorLane::Bulk,
            DoorLane::Client,
            DoorLane::Join,
        ];
        for (number, lane) in lanes.into_iter().enumerate() {
            assert_eq!(write(&lane), [number as u8]);
        }
        let n = NodeId::new("n").unwrap();
        let refusals: [(Refusal, &[u8]); 10] = [
            (Refusal::WrongCluster { ours: ClusterId(1), theirs: ClusterId(2) }, &[0, 1, 2]),
            (Refusal::NotFormed, &[1]),
            (Refusal::UnknownMember(n.clone()), &[2, 1, b'n']),
            (Refusal::HashVersion { ours: 1, theirs: 2 }, &[3, 1, 2]),
            (Refusal::OwnNode(n.clone()), &[4, 1, b'n']),
            (Refusal::Certificate { certificate: "c".to_owned(), claimed: n }, &[5, 1, b'c', 1, b'n']),
            (Refusal::Lane { certificate: "c".to_owned(), lane: DoorLane::Raft }, &[6, 1, b'c', 1]),
            (Refusal::Busy, &[7]),
            (Refusal::Unreadable, &[8]),
            (Refusal::Other("x".to_owned()), &[9, 1, b'x']),
        ];
        for (refusal, wire) in refusals {
            assert_eq!(write(&refusal), wire);
            assert_eq!(read::<Refusal>(wire), Some(refusal));
        }
    }
}
