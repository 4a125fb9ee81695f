//! Members that are not where they are written down.
//!
//! A node that starts at another address tells the leader of the system partition, and each member that it
//! dials. If so many have moved at once that nobody can dial the others, members look for each other where
//! the cluster is looked for at first, and say to each other where they are. What they learn so is used until
//! the cluster has written down a newer start of that member. Also notices that a data folder is of another
//! cluster than its surroundings. Never changes what is written down, and trusts no address: a link is made
//! only to who has the member's certificate.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use perennial_core::id::{ClusterId, NodeId};
use perennial_core::membership::Member;

use super::formation::{JoinAnswer, JoinQuestion, Plan};
use super::{Inner, service};
use crate::link::tls::Tls;
use crate::link::{DialError, LinkConfig, lock, probe};
use crate::protocol::{decode, encode};

/// First pause between rounds of looking, and pause between looks at whether all members are linked.
const LOOK_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause between rounds of looking.
const LOOK_PAUSE_MAX: Duration = Duration::from_secs(30);

/// Where members are who have moved, with the start that was written down when that was learned.
#[derive(Default)]
pub(super) struct Moved(Mutex<BTreeMap<NodeId, (u64, String)>>);

impl Moved {
    /// Where a member is to be dialed.
    pub(super) fn address_of(&self, member: &Member) -> String {
        match lock(&self.0).get(&member.node) {
            Some((incarnation, address)) if *incarnation == member.incarnation => address.clone(),
            _ => member.address.clone(),
        }
    }

    /// Notes where a member is; tells whether that is news.
    fn learn(&self, member: &Member, address: &str) -> bool {
        let news = self.address_of(member) != address;
        if news {
            lock(&self.0).insert(member.node.clone(), (member.incarnation, address.to_owned()));
        }
        news
    }
}

/// Dials a member from now on where it says it is, unless it is linked.
fn learn(inner: &Inner, node: &NodeId, address: &str) {
    let state = inner.current.borrow().clone();
    let Some(state) = state else { return };
    let Some(member) = state.members.by_node(node).filter(|_| !is_up(inner, node)) else { return };
    if inner.moved.learn(member, address) {
        tracing::info!(%node, address, before = member.address, "a member that moved is found");
        service::use_state(inner, &state);
    }
}

fn is_up(inner: &Inner, node: &NodeId) -> bool {
    *node == inner.node || inner.transport.get().is_some_and(|transport| transport.is_up(node))
}

/// Members that are not linked.
fn down(inner: &Inner) -> BTreeSet<NodeId> {
    let state = inner.current.borrow();
    let members = state.iter().flat_map(|state| state.members.iter());
    members.map(|member| &member.node).filter(|node| !is_up(inner, node)).cloned().collect()
}

/// Who is at an address.
#[derive(Clone, PartialEq)]
enum There {
    This,
    Member(NodeId),
    Stranger,
}

/// Looks for members that are not linked, for as long as the node runs. With `check`, for a node that
/// returns to its cluster, also whether the addresses to join are of that cluster, until each has answered.
///
/// Resolves when most of them are of another one, which means that the data folder is the wrong one; a
/// single stranger is that one's mistake.
pub(super) async fn look_around(
    inner: &Arc<Inner>,
    plan: &Plan,
    tls: &Tls,
    config: &LinkConfig,
    mut check: bool,
) -> String {
    let Some(ours) = inner.formation.formed.borrow().as_ref().map(|state| state.meta.cluster) else {
        return std::future::pending().await;
    };
    let mut heard = inner.formation.heard.subscribe();
    let mut there: BTreeMap<String, There> = BTreeMap::new();
    let (mut looked_for, mut pause) = ((BTreeSet::new(), BTreeSet::new()), LOOK_PAUSE);
    let mut told = Vec::new();
    check &= !plan.discovery.sources().is_empty();
    loop {
        let missing = down(inner);
        let said = heard.borrow_and_update().clone();
        said.iter()
            .filter(|(node, _)| missing.contains(*node))
            .for_each(|(node, address)| learn(inner, node, address));
        if check || !missing.is_empty() {
            let found = plan.discovery.find().await;
            if told != found.problems {
                found
                    .problems
                    .iter()
                    .for_each(|problem| tracing::warn!(problem, "where to look for members"));
                told.clone_from(&found.problems);
            }
            let addresses = found.addresses();
            there.retain(|address, _| addresses.contains(address));
            if let Some(own) = addresses.get(&inner.formation.spec.address) {
                there.insert(own.clone(), There::This);
            }
            let open = addresses.iter().filter(|address| match there.get(*address) {
                None => true,
                Some(There::Member(node)) => missing.contains(node),
                Some(There::This | There::Stranger) => false,
            });
            let open: Vec<_> = open.cloned().collect();
            ask(inner, ours, &open, &mut there, tls, config).await;
            if check {
                let at = |address: &&String, who: &There| there.get(*address) == Some(who);
                let others = addresses.iter().filter(|address| !at(address, &There::This)).count();
                let strangers: Vec<_> =
                    addresses.iter().filter(|address| at(address, &There::Stranger)).collect();
                if strangers.len() * 2 > others {
                    return wrong_folder(ours, &strangers);
                }
                check = addresses.is_empty() || there.len() < addresses.len();
            }
            let now = (missing, addresses);
            pause = if now == looked_for { (pause * 2).min(LOOK_PAUSE_MAX) } else { LOOK_PAUSE };
            looked_for = now;
        } else {
            pause = LOOK_PAUSE;
        }
        let _ = tokio::time::timeout(pause, heard.changed()).await;
    }
}

fn wrong_folder(ours: ClusterId, strangers: &[&String]) -> String {
    let names: Vec<_> = strangers.iter().map(|address| address.as_str()).collect();
    format!(
        "its data folder is of cluster {:032x}, but {} to be joined {} of another one; \
         name this node's own folder with --data, or correct --join",
        ours.0,
        names.join(", "),
        if strangers.len() == 1 { "is" } else { "are" },
    )
}

/// Asks addresses who is there and whom they have heard of, and says where this node is.
async fn ask(
    inner: &Inner,
    ours: ClusterId,
    addresses: &[String],
    there: &mut BTreeMap<String, There>,
    tls: &Tls,
    config: &LinkConfig,
) {
    let here = encode(&JoinQuestion::Here(ours, inner.formation.spec.clone()));
    let asked = addresses.iter().map(|address| probe(address, tls, inner.formation.facts(), &here, config));
    for (address, answer) in addresses.iter().zip(futures_util::future::join_all(asked).await) {
        match answer {
            Ok(probed) => match probed.facts.cluster {
                Some(theirs) if theirs != ours => {
                    tracing::warn!(
                        address,
                        ?theirs,
                        ?ours,
                        "the node at an address to join is of another cluster"
                    );
                    there.insert(address.clone(), There::Stranger);
                }
                Some(_) => {
                    there.insert(address.clone(), There::Member(probed.facts.node.clone()));
                    inner.formation.hear(&probed.facts.node, &probed.facts.address);
                    learn(inner, &probed.facts.node, &probed.facts.address);
                    if let Ok(JoinAnswer::Hello { known, .. }) = decode(&probed.reply) {
                        known.iter().for_each(|spec| learn(inner, &spec.node, &spec.address));
                    }
                }
                None => {}
            },
            Err(DialError::TurnedAway { refusal: crate::link::Refusal::OwnNode(_), .. }) => {
                there.insert(address.clone(), There::This);
            }
            Err(error) => tracing::debug!(address, %error, "no member is found there"),
        }
    }
}

#[cfg(test)]
mod tests {
    use perennial_core::id::MemberId;
    use perennial_core::membership::MemberSpec;

    use super::*;

    #[test]
    fn what_was_learned_counts_until_a_newer_start_is_written_down() {
        let moved = Moved::default();
        let spec = MemberSpec::new(NodeId::new("n1").unwrap(), "old:1");
        let member = Member::new(MemberId(1), spec);
        assert_eq!(moved.address_of(&member), "old:1");
        assert!(!moved.learn(&member, "old:1"));
        assert!(moved.learn(&member, "new:1") && !moved.learn(&member, "new:1"));
        assert_eq!(moved.address_of(&member), "new:1");
        let again = Member { incarnation: 2, address: "newer:1".into(), ..member.clone() };
        assert_eq!(moved.address_of(&again), "newer:1");
        assert!(moved.learn(&member, "old:1"), "it has gone back");
        assert_eq!(moved.address_of(&member), "old:1");
    }
}
