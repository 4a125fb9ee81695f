//! The members of a cluster, as decided.
//!
//! Owns what is known of each node that was admitted: its number, where it is reached, where it
//! stands. Never says who is alive: that is gossip, an opinion. In: what nodes say of themselves;
//! out: look-ups. Changed only by committed entries of the system partition.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use crate::id::{MemberId, NodeId};
use crate::wire;

/// Most members of a cluster.
pub const MEMBERS_MAX: usize = 256;
/// Weight of a member when nobody chose; half of it takes half the load.
pub const WEIGHT_DEFAULT: u32 = 100;
/// Largest weight.
pub const WEIGHT_MAX: u32 = 1000;
/// Longest `host:port`, in bytes.
pub const ADDRESS_BYTES_MAX: usize = 261;
/// Longest zone, label name or label value, in bytes.
pub const LABEL_BYTES_MAX: usize = 63;
/// Most labels of a member.
pub const LABELS_MAX: usize = 32;

/// Why a node's description of itself, or a set of members, was refused; nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemberError {
    /// The address is not `host:port`.
    #[error(
        "address {address:?} of node {node} is not valid: use host:port, at most {ADDRESS_BYTES_MAX} bytes"
    )]
    Address {
        /// Whose address.
        node: NodeId,
        /// As given.
        address: String,
    },
    /// The weight is above [`WEIGHT_MAX`].
    #[error(
        "weight {weight} of node {node} is above {WEIGHT_MAX}: weights only count relative to each other"
    )]
    Weight {
        /// Whose weight.
        node: NodeId,
        /// As given.
        weight: u32,
    },
    /// The zone or a label is empty or too long.
    #[error("zone or label {text:?} of node {node} is not valid: use 1 to {LABEL_BYTES_MAX} bytes")]
    Label {
        /// Whose label.
        node: NodeId,
        /// As given.
        text: String,
    },
    /// More than [`LABELS_MAX`] labels.
    #[error("node {node} has {labels} labels, the limit is {LABELS_MAX}")]
    Labels {
        /// Whose labels.
        node: NodeId,
        /// How many.
        labels: usize,
    },
    /// Two members with one number, or the number 0.
    #[error("member number {0} is taken or 0: numbers start at 1 and are given once")]
    Id(MemberId),
    /// Two members with one node id.
    #[error("node id {0} is used twice: every node needs its own")]
    Node(NodeId),
    /// More than [`MEMBERS_MAX`] members.
    #[error("a cluster has at most {MEMBERS_MAX} members")]
    Full,
}

/// What a node says of itself when it starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberSpec {
    /// Its name; stable across restarts.
    pub node: NodeId,
    /// `host:port` for other nodes and for clients that speak the native protocol.
    pub address: String,
    /// `host:port` of its HTTP gateway.
    pub http: Option<String>,
    /// What fails together (a rack, a data centre); replicas avoid to share one.
    pub zone: Option<String>,
    /// Its share of the load relative to others; 0 holds no replicas and only routes.
    pub weight: u32,
    /// What operators select nodes by, such as `role=chat`.
    pub labels: BTreeMap<String, String>,
    /// What its build stores and understands, as one number: members with another one are of another build.
    pub build: u64,
}

impl MemberSpec {
    /// A node with the default weight, no gateway, no zone, no labels.
    #[must_use]
    pub fn new(node: NodeId, address: impl Into<String>) -> Self {
        Self {
            node,
            address: address.into(),
            http: None,
            zone: None,
            weight: WEIGHT_DEFAULT,
            labels: BTreeMap::new(),
            build: 0,
        }
    }

    /// Checks every limit. Whoever proposes a spec calls this first; applying it does not, so
    /// that replicas of different builds always agree.
    ///
    /// # Errors
    /// The first limit that is not kept.
    pub fn validate(&self) -> Result<(), MemberError> {
        let node = || self.node.clone();
        for address in [&self.address].into_iter().chain(&self.http) {
            if !is_host_and_port(address) {
                return Err(MemberError::Address { node: node(), address: address.clone() });
            }
        }
        if self.weight > WEIGHT_MAX {
            return Err(MemberError::Weight { node: node(), weight: self.weight });
        }
        if self.labels.len() > LABELS_MAX {
            return Err(MemberError::Labels { node: node(), labels: self.labels.len() });
        }
        let texts = self.zone.iter().chain(self.labels.keys()).chain(self.labels.values());
        match texts.into_iter().find(|text| !(1..=LABEL_BYTES_MAX).contains(&text.len())) {
            Some(text) => Err(MemberError::Label { node: node(), text: text.clone() }),
            None => Ok(()),
        }
    }
}

fn is_host_and_port(address: &str) -> bool {
    let port = |text: &str| text.parse::<u16>().is_ok_and(|port| port != 0);
    address.len() <= ADDRESS_BYTES_MAX
        && address.rsplit_once(':').is_some_and(|(host, text)| !host.is_empty() && port(text))
}

/// A node that was admitted to the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its number; never 0, never given twice.
    pub id: MemberId,
    /// Its name; stable across restarts.
    pub node: NodeId,
    /// `host:port` for other nodes and for clients that speak the native protocol.
    pub address: String,
    /// `host:port` of its HTTP gateway.
    pub http: Option<String>,
    /// What fails together (a rack, a data centre); replicas avoid to share one.
    pub zone: Option<String>,
    /// Its share of the load relative to others; 0 holds no replicas and only routes.
    pub weight: u32,
    /// What operators select nodes by, such as `role=chat`.
    pub labels: BTreeMap<String, String>,
    /// What its build stores and understands, as of its last start.
    pub build: u64,
    /// Grows with every start of the node; the first is 1.
    pub incarnation: u64,
}

impl Member {
    /// A member at its first start.
    #[must_use]
    pub fn new(id: MemberId, spec: MemberSpec) -> Self {
        let MemberSpec { node, address, http, zone, weight, labels, build } = spec;
        Self { id, node, address, http, zone, weight, labels, build, incarnation: 1 }
    }
}

/// All members, in the order of their numbers.
///
/// Invariant: numbers and node ids are distinct, no number is 0, at most [`MEMBERS_MAX`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Members(Vec<Member>);

impl Members {
    /// Makes the collection from members in any order.
    ///
    /// # Errors
    /// [`MemberError::Id`], [`MemberError::Node`] or [`MemberError::Full`].
    pub fn new(members: impl IntoIterator<Item = Member>) -> Result<Self, MemberError> {
        let mut all = Self::default();
        for member in members {
            all.insert(member)?;
        }
        Ok(all)
    }

    /// Adds a member.
    ///
    /// # Errors
    /// [`MemberError::Id`], [`MemberError::Node`] or [`MemberError::Full`]; nothing was changed.
    pub fn insert(&mut self, member: Member) -> Result<(), MemberError> {
        if self.by_node(&member.node).is_some() {
            return Err(MemberError::Node(member.node));
        }
        if self.0.len() == MEMBERS_MAX {
            return Err(MemberError::Full);
        }
        match self.position(member.id) {
            Err(at) if member.id.0 != 0 => {
                self.0.insert(at, member);
                Ok(())
            }
            _ => Err(MemberError::Id(member.id)),
        }
    }

    /// A known node started again: takes over what it says of itself and counts the start up.
    /// `None`, and nothing changed, when the node is not known.
    pub fn restart(&mut self, spec: &MemberSpec) -> Option<&Member> {
        let member = self.0.iter_mut().find(|member| member.node == spec.node)?;
        let incarnation = member.incarnation + 1;
        *member = Member { incarnation, ..Member::new(member.id, spec.clone()) };
        Some(member)
    }

    /// The member with this number.
    #[must_use]
    pub fn get(&self, id: MemberId) -> Option<&Member> {
        self.position(id).ok().map(|at| &self.0[at])
    }

    /// The member on this node.
    #[must_use]
    pub fn by_node(&self, node: &NodeId) -> Option<&Member> {
        self.0.iter().find(|member| member.node == *node)
    }

    /// All members by rising number.
    pub fn iter(&self) -> std::slice::Iter<'_, Member> {
        self.0.iter()
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn position(&self, id: MemberId) -> Result<usize, usize> {
        self.0.binary_search_by_key(&id, |member| member.id)
    }
}

impl<'a> IntoIterator for &'a Members {
    type Item = &'a Member;
    type IntoIter = std::slice::Iter<'a, Member>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let members = wire::capped::<MEMBERS_MAX, Member, D>(d)?;
        Self::new(members).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(node: &str) -> MemberSpec {
        MemberSpec::new(NodeId::new(node).unwrap(), "10.0.0.1:7000")
    }

    fn member(id: u64, node: &str) -> Member {
        Member::new(MemberId(id), spec(node))
    }

    #[test]
    fn members_are_found_by_number_and_by_node() {
        let members = Members::new([member(7, "c"), member(2, "b"), member(5, "a")]).unwrap();
        assert_eq!(members.iter().map(|m| m.id.0).collect::<Vec<_>>(), [2, 5, 7]);
        assert_eq!(members.get(MemberId(5)).unwrap().node.as_str(), "a");
        assert_eq!(members.by_node(&NodeId::new("b").unwrap()).unwrap().id, MemberId(2));
        assert_eq!(members.get(MemberId(3)), None);
        let bytes = wire::encode(&members);
        assert_eq!(wire::decode::<Members>(&bytes, 1 << 20), Ok(members));
    }

    #[test]
    fn numbers_and_names_are_given_once() {
        let mut members = Members::new([member(1, "a")]).unwrap();
        assert_eq!(members.insert(member(1, "b")), Err(MemberError::Id(MemberId(1))));
        assert_eq!(members.insert(member(0, "b")), Err(MemberError::Id(MemberId(0))));
        assert!(matches!(members.insert(member(2, "a")), Err(MemberError::Node(_))));
        assert_eq!(members.len(), 1);
        let twice = wire::encode(&vec![member(1, "a"), member(1, "b")]);
        assert!(wire::decode::<Members>(&twice, 1 << 20).is_err());
    }

    #[test]
    fn a_full_cluster_takes_no_more() {
        let full = (1..=MEMBERS_MAX as u64).map(|id| member(id, &format!("n{id}")));
        let mut members = Members::new(full).unwrap();
        assert_eq!(members.insert(member(9999, "late")), Err(MemberError::Full));
    }

    #[test]
    fn a_restart_keeps_the_number_and_counts_up() {
        let mut members = Members::new([member(1, "a"), member(2, "b")]).unwrap();
        let moved = MemberSpec { address: "10.0.0.9:7000".into(), ..spec("b") };
        let member = members.restart(&moved).unwrap();
        assert_eq!((member.id, member.incarnation, &*member.address), (MemberId(2), 2, "10.0.0.9:7000"));
        assert_eq!(members.restart(&spec("unknown")), None);
    }

    #[test]
    fn specs_outside_their_limits_are_refused() {
        let refused = |change: fn(&mut MemberSpec)| {
            let mut changed = spec("a");
            change(&mut changed);
            changed.validate().unwrap_err()
        };
        assert_eq!(spec("a").validate(), Ok(()));
        assert_eq!(MemberSpec { address: "[::1]:7000".into(), ..spec("a") }.validate(), Ok(()));
        for address in ["", "host", ":7000", "host:", "host:0", "host:65536"] {
            let spec = MemberSpec { http: Some(address.into()), ..spec("a") };
            assert!(matches!(spec.validate(), Err(MemberError::Address { .. })), "{address}");
        }
        assert!(matches!(refused(|s| s.weight = 1001), MemberError::Weight { weight: 1001, .. }));
        assert!(matches!(refused(|s| s.zone = Some(String::new())), MemberError::Label { .. }));
        assert!(matches!(
            refused(|s| s.labels = BTreeMap::from([("k".into(), "v".repeat(64))])),
            MemberError::Label { .. }
        ));
        assert!(matches!(
            refused(|s| s.labels = (0..33).map(|n| (n.to_string(), "v".into())).collect()),
            MemberError::Labels { labels: 33, .. }
        ));
    }
}
