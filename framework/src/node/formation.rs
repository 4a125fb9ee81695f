//! Finding or forming the cluster.
//!
//! Nodes that belong to no cluster ask the addresses they were given who is there. Once as many as
//! expected have found each other, the one with the lowest node id forms the cluster: every one of them
//! promises, durably, to be formed by it alone; then it writes down the first state itself and hands it
//! to the others. All have to promise, and a majority of the addresses to join are among them, so two
//! clusters cannot come out of nodes that were given the same addresses. An initiator that has formed
//! nothing yet yields to a lower id; those who promised to it learn that by asking, and are free again.
//! A node that meets a formed cluster joins it instead. Never touches a node that belongs to a cluster
//! already.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use perennial_core::hash::{HASH_VERSION, PartitionCount};
use perennial_core::id::{ClusterId, Epoch, NodeId};
use perennial_core::membership::MemberSpec;
use perennial_core::placement::{ClusterMeta, ClusterState, form};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};

use super::identity::{Folder, Identity, Promise};
use crate::link::tls::Tls;
use crate::link::{DialError, Facts, LinkConfig, probe};
use crate::protocol::{decode, encode};

/// Pause between rounds of asking.
const ROUND_PAUSE: Duration = Duration::from_millis(150);
/// Pause between rounds of asking whether the addresses to join are of the node's own cluster.
const CHECK_PAUSE: Duration = Duration::from_secs(2);

/// A question on the join lane.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum JoinQuestion {
    /// Who is there? Here is who asks.
    Hello(MemberSpec),
    /// Will you be formed by me?
    Promise(NodeId, u64),
    /// This is the cluster, as promised.
    Form(u64, Box<ClusterState>),
    /// Nothing: what the door says about the node is enough.
    Nothing,
}

/// An answer on the join lane.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum JoinAnswer {
    /// Who is here, what it belongs to (for a founder: in its first state), whom it knows, and whom it has
    /// promised to be formed by.
    Hello {
        spec: MemberSpec,
        cluster: Option<Box<ClusterState>>,
        known: Vec<MemberSpec>,
        promise: Option<Promise>,
    },
    /// Promised, by this node.
    Promised(MemberSpec),
    /// The cluster is formed here.
    Formed,
    /// No, and why.
    Refused(String),
}

/// What the node knows while it looks for its cluster.
pub(super) struct Formation {
    pub(super) spec: MemberSpec,
    folder: Arc<Folder>,
    identity: Mutex<Identity>,
    /// Nodes met, by id.
    met: Mutex<BTreeMap<NodeId, MemberSpec>>,
    /// Who answered at each address to join.
    at: Mutex<BTreeMap<String, NodeId>>,
    /// The cluster as formed, once it is.
    pub(super) formed: watch::Sender<Option<ClusterState>>,
    /// The newest state known, for those who ask.
    pub(super) current: watch::Receiver<Option<ClusterState>>,
    /// What it waits for, for people.
    pub(super) waiting: watch::Sender<String>,
    /// Where nodes go that ask to be admitted.
    admit: mpsc::Sender<MemberSpec>,
    /// Whether the cluster was formed in this run, with this run's addresses.
    just_formed: AtomicBool,
}

/// Settings of forming.
pub(super) struct Plan {
    pub(super) join: Vec<String>,
    pub(super) expect: usize,
    pub(super) partitions: PartitionCount,
    pub(super) replication: u8,
}

impl Plan {
    fn addresses(&self) -> usize {
        self.join.iter().collect::<BTreeSet<_>>().len()
    }

    /// How many of the addresses to join must be among the founders.
    fn majority(&self) -> usize {
        match self.addresses() {
            0 => 0,
            n => n / 2 + 1,
        }
    }

    /// How many nodes form the cluster.
    fn founders(&self) -> usize {
        self.expect.max(self.majority())
    }
}

impl Formation {
    pub(super) fn new(
        spec: MemberSpec,
        folder: Arc<Folder>,
        identity: Identity,
        current: watch::Receiver<Option<ClusterState>>,
        admit: mpsc::Sender<MemberSpec>,
    ) -> Arc<Self> {
        let formed = watch::Sender::new(identity.formed.clone());
        let waiting = watch::Sender::new("looking for the cluster".to_owned());
        Arc::new(Self {
            spec,
            folder,
            identity: Mutex::new(identity),
            met: Mutex::default(),
            at: Mutex::default(),
            formed,
            current,
            waiting,
            admit,
            just_formed: AtomicBool::new(false),
        })
    }

    /// Whether the cluster was formed in this run, so that its members' addresses are those of now.
    pub(super) fn just_formed(&self) -> bool {
        self.just_formed.load(Ordering::Relaxed)
    }

    fn cluster(&self) -> Option<ClusterState> {
        self.current.borrow().clone().or_else(|| self.formed.borrow().clone())
    }

    /// What this node says about itself at the door.
    pub(super) fn facts(&self) -> Facts {
        let cluster = self.cluster();
        let member = cluster.as_ref().and_then(|c| c.members.by_node(&self.spec.node));
        Facts {
            node: self.spec.node.clone(),
            cluster: cluster.as_ref().map(|c| c.meta.cluster),
            hash_version: HASH_VERSION,
            address: self.spec.address.clone(),
            incarnation: member.map_or(0, |m| m.incarnation),
        }
    }

    fn meet(&self, spec: MemberSpec) {
        if spec.node != self.spec.node && spec.validate().is_ok() {
            self.met.lock().unwrap_or_else(PoisonError::into_inner).insert(spec.node.clone(), spec);
        }
    }

    fn found(&self, address: &str, node: NodeId) {
        self.at.lock().unwrap_or_else(PoisonError::into_inner).insert(address.to_owned(), node);
    }

    fn met(&self) -> BTreeMap<NodeId, MemberSpec> {
        self.met.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Answers a question on the join lane. `from` is proved by its certificate.
    pub(super) fn answer(&self, from: &NodeId, question: &[u8]) -> Bytes {
        let answer = match decode(question) {
            Err(error) => JoinAnswer::Refused(error.to_string()),
            Ok(JoinQuestion::Hello(spec)) if spec.node == *from => {
                self.meet(spec.clone());
                // Looked at before the cluster: who forms one gives up the promise with it, and an answer
                // with neither would release those who promised.
                let promise = self.promised();
                let cluster = self.cluster();
                if cluster.as_ref().is_some_and(|cluster| cluster.members.by_node(from).is_none()) {
                    // It asks again; whether this attempt is taken does not matter.
                    let _ = self.admit.try_send(spec);
                }
                // A founder's log begins with the first state: it must not start from a later one.
                let first = self.formed.borrow().clone();
                let first = first.filter(|c| c.table.epoch == Epoch(1) && c.members.by_node(from).is_some());
                self.hello(first.or(cluster), promise)
            }
            Ok(JoinQuestion::Promise(initiator, nonce)) if initiator == *from => {
                self.promise(initiator, nonce)
            }
            Ok(JoinQuestion::Form(nonce, state)) => self.take(from, nonce, *state),
            Ok(JoinQuestion::Nothing) => self.hello(None, self.promised()),
            Ok(_) => JoinAnswer::Refused(format!("the question names another node than {from}")),
        };
        encode(&answer)
    }

    fn hello(&self, cluster: Option<ClusterState>, promise: Option<Promise>) -> JoinAnswer {
        JoinAnswer::Hello {
            spec: self.spec.clone(),
            cluster: cluster.map(Box::new),
            known: self.met().into_values().collect(),
            promise,
        }
    }

    fn promised(&self) -> Option<Promise> {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner).promise.clone()
    }

    fn promise(&self, initiator: NodeId, nonce: u64) -> JoinAnswer {
        let mut identity = self.identity.lock().unwrap_or_else(PoisonError::into_inner);
        if identity.formed.is_some() {
            return JoinAnswer::Refused("it belongs to a cluster already".into());
        }
        // A promise binds to one initiator. The same one may ask again: had it formed anything with the
        // old number, it would be formed itself and ask no more. A promise to itself it may take back.
        if let Some(promise) = &identity.promise
            && promise.initiator != initiator
            && (promise.initiator != self.spec.node || initiator > self.spec.node)
        {
            return JoinAnswer::Refused(format!("it has promised to be formed by {}", promise.initiator));
        }
        let promised = Identity { promise: Some(Promise { initiator, nonce }), ..identity.clone() };
        match self.folder.store(&promised) {
            Ok(()) => {
                *identity = promised;
                JoinAnswer::Promised(self.spec.clone())
            }
            Err(error) => JoinAnswer::Refused(format!("its promise cannot be stored: {error}")),
        }
    }

    /// Takes a promise back that its initiator holds no more: it can never form anything with it.
    fn release(&self, seen: &Promise) {
        let mut identity = self.identity.lock().unwrap_or_else(PoisonError::into_inner);
        if identity.formed.is_none() && identity.promise.as_ref() == Some(seen) {
            let free = Identity { promise: None, ..identity.clone() };
            match self.folder.store(&free) {
                Ok(()) => *identity = free,
                Err(error) => tracing::warn!(%error, "a promise that is over cannot be taken back"),
            }
        }
    }

    fn take(&self, from: &NodeId, nonce: u64, state: ClusterState) -> JoinAnswer {
        let mut identity = self.identity.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(formed) = &identity.formed {
            return match formed.meta.cluster == state.meta.cluster {
                true => JoinAnswer::Formed,
                false => JoinAnswer::Refused("it belongs to another cluster".into()),
            };
        }
        let promised = identity.promise.as_ref().is_some_and(|p| p.initiator == *from && p.nonce == nonce);
        if !promised || state.members.by_node(&self.spec.node).is_none() || state.meta.check().is_err() {
            return JoinAnswer::Refused("it has not promised to be formed like this".into());
        }
        match self.adopt(&mut identity, state) {
            Ok(()) => JoinAnswer::Formed,
            Err(error) => JoinAnswer::Refused(format!("the cluster cannot be stored: {error}")),
        }
    }

    fn adopt(&self, identity: &mut Identity, state: ClusterState) -> std::io::Result<()> {
        let formed = Identity { promise: None, formed: Some(state.clone()), ..identity.clone() };
        self.folder.store(&formed)?;
        *identity = formed;
        self.just_formed.store(true, Ordering::Relaxed);
        self.formed.send_replace(Some(state));
        Ok(())
    }

    /// Looks for the cluster until it is found or formed. A member that misses the word of its forming
    /// hears of it by asking on.
    ///
    /// # Errors
    /// Why this node can never be part of the cluster it found.
    pub(super) async fn run(&self, plan: &Plan, tls: &Tls, config: &LinkConfig) -> Result<(), String> {
        let mut formed = self.formed.subscribe();
        while formed.borrow().is_none() {
            let round = self.ask_all(&plan.join, tls, config).await;
            self.advance(plan, round, tls, config).await?;
            let _ = tokio::time::timeout(ROUND_PAUSE, formed.wait_for(Option::is_some)).await;
        }
        Ok(())
    }

    /// Asks the addresses to join until each has answered whether they are of this node's cluster.
    /// Resolves when most of them are of another one, which means that the data folder is the wrong one;
    /// a single stranger is that one's mistake.
    pub(super) async fn meets_strangers(&self, plan: &Plan, tls: &Tls, config: &LinkConfig) -> String {
        let Some(ours) = self.formed.borrow().as_ref().map(|state| state.meta.cluster) else {
            return std::future::pending().await;
        };
        let mut open: Vec<_> = plan.join.iter().filter(|address| **address != self.spec.address).collect();
        let mut others = open.len();
        let mut strangers: Vec<String> = Vec::new();
        let payload = encode(&JoinQuestion::Nothing);
        while !open.is_empty() {
            let asked = open.iter().map(|address| probe(address, tls, self.facts(), &payload, config));
            let answers = futures_util::future::join_all(asked).await;
            let mut unanswered = Vec::new();
            for (address, answer) in open.into_iter().zip(answers) {
                match answer {
                    Ok(probed) => match probed.facts.cluster {
                        Some(theirs) if theirs != ours => {
                            tracing::warn!(
                                address,
                                ?theirs,
                                ?ours,
                                "the node at an address to join is of another cluster"
                            );
                            strangers.push(address.clone());
                        }
                        Some(_) => {}
                        None => unanswered.push(address),
                    },
                    Err(DialError::TurnedAway { refusal: crate::link::Refusal::OwnNode(_), .. }) => {
                        others -= 1
                    }
                    Err(_) => unanswered.push(address),
                }
            }
            if strangers.len() * 2 > others {
                return format!(
                    "its data folder is of cluster {:032x}, but {} to be joined {} of another one; \
                     name this node's own folder with --data, or correct --join",
                    ours.0,
                    strangers.join(", "),
                    if strangers.len() == 1 { "is" } else { "are" },
                );
            }
            open = unanswered;
            tokio::time::sleep(CHECK_PAUSE).await;
        }
        std::future::pending().await
    }

    /// Tells people what it waits for; the same thing once.
    fn wait_for(&self, what: String) {
        self.waiting.send_if_modified(|waiting| {
            let news = *waiting != what;
            *waiting = what;
            news
        });
    }

    /// Asks every known address; gives the clusters heard of and the last failure.
    async fn ask_all(&self, join: &[String], tls: &Tls, config: &LinkConfig) -> Round {
        let mut addresses: Vec<String> = join.to_vec();
        addresses.extend(self.met().into_values().map(|spec| spec.address));
        addresses.sort();
        addresses.dedup();
        addresses.retain(|address| *address != self.spec.address);
        let hello = JoinQuestion::Hello(self.spec.clone());
        // Noted before asking: its initiator held it then.
        let bound = self.promised();
        let asked = addresses.iter().map(|address| self.ask(address, &hello, tls, config));
        let mut round = Round { clusters: Vec::new(), failure: None };
        for (address, answer) in addresses.iter().zip(futures_util::future::join_all(asked).await) {
            match answer {
                Ok(JoinAnswer::Hello { spec, cluster, known, promise }) => {
                    self.found(address, spec.node.clone());
                    if let Some(bound) = &bound
                        && bound.initiator == spec.node
                        && cluster.is_none()
                        && promise.as_ref() != Some(bound)
                    {
                        self.release(bound);
                    }
                    self.meet(spec);
                    known.into_iter().for_each(|spec| self.meet(spec));
                    round.clusters.extend(cluster.map(|cluster| *cluster));
                }
                Ok(JoinAnswer::Refused(why)) => round.failure = Some(format!("{address}: {why}")),
                Ok(_) => {}
                Err(DialError::TurnedAway { refusal: crate::link::Refusal::OwnNode(_), .. }) => {
                    self.found(address, self.spec.node.clone());
                }
                Err(error) => round.failure = Some(error.to_string()),
            }
        }
        round
    }

    async fn ask(
        &self,
        address: &str,
        question: &JoinQuestion,
        tls: &Tls,
        config: &LinkConfig,
    ) -> Result<JoinAnswer, DialError> {
        let probed = probe(address, tls, self.facts(), &encode(question), config).await?;
        Ok(decode(&probed.reply).unwrap_or_else(|error| JoinAnswer::Refused(error.to_string())))
    }

    async fn advance(&self, plan: &Plan, round: Round, tls: &Tls, config: &LinkConfig) -> Result<(), String> {
        if let Some(cluster) = round.clusters.into_iter().next() {
            return self.join(cluster);
        }
        let mut specs: BTreeMap<_, _> = self.met();
        specs.insert(self.spec.node.clone(), self.spec.clone());
        let seeds = self.seeds(&plan.join);
        let founders = plan.founders();
        let failure =
            || round.failure.as_ref().map(|why| format!("; last failure: {why}")).unwrap_or_default();
        if specs.len() < founders {
            let more = founders - specs.len();
            let names: Vec<_> = specs.keys().map(ToString::to_string).collect();
            self.wait_for(format!(
                "waiting for {more} more node{} ({} of {founders} found: {}){}",
                if more == 1 { "" } else { "s" },
                specs.len(),
                names.join(", "),
                failure(),
            ));
            return Ok(());
        }
        // Those at the addresses to join come first, then the lowest ids; whoever is met beyond that joins
        // the cluster afterwards.
        let mut chosen: Vec<_> = specs.into_values().collect();
        chosen.sort_by_key(|spec| (!seeds.contains(&spec.node), spec.node.clone()));
        chosen.truncate(founders);
        let among = seeds.iter().filter(|node| chosen.iter().any(|spec| spec.node == **node)).count();
        if among < plan.majority() {
            self.wait_for(format!(
                "waiting for nodes at {} more of the {} addresses to join, a majority is needed{}",
                plan.majority() - among,
                plan.addresses(),
                failure(),
            ));
            return Ok(());
        }
        let Some(initiator) = chosen.iter().map(|spec| &spec.node).min() else { return Ok(()) };
        if *initiator != self.spec.node {
            self.wait_for(format!("waiting for {initiator} to form the cluster"));
            return Ok(());
        }
        self.initiate(plan, chosen, tls, config).await;
        Ok(())
    }

    /// The nodes found at the addresses to join, one for each address.
    fn seeds(&self, join: &[String]) -> Vec<NodeId> {
        let at = self.at.lock().unwrap_or_else(PoisonError::into_inner);
        let own = |address: &String| (*address == self.spec.address).then(|| self.spec.node.clone());
        let join: BTreeSet<_> = join.iter().collect();
        join.into_iter().filter_map(|address| own(address).or_else(|| at.get(address).cloned())).collect()
    }

    fn join(&self, cluster: ClusterState) -> Result<(), String> {
        let Some(me) = cluster.members.by_node(&self.spec.node).map(|member| member.id) else {
            let why = format!(
                "waiting to be admitted to cluster {:032x}: it was formed without {}",
                cluster.meta.cluster.0, self.spec.node
            );
            self.wait_for(why);
            return Ok(());
        };
        let mut identity = self.identity.lock().unwrap_or_else(PoisonError::into_inner);
        // A member that never got the first state takes the present one; its log starts empty and is
        // filled by the leaders. One that had it must not start empty: others count on its votes and on
        // what it has acknowledged.
        if identity.formed.is_none() && identity.promise.is_none() && cluster.groups_of(me).next().is_some() {
            return Err(format!(
                "node {0} is a member of cluster {1:032x} and holds replicas, but this data folder is empty; \
                 name the folder of {0} with --data, or give this node an id of its own",
                self.spec.node, cluster.meta.cluster.0
            ));
        }
        if identity.formed.is_none()
            && cluster.table.epoch != Epoch(1)
            && cluster.groups_of(me).next().is_some()
        {
            // Whoever gave this answer is no founder; the others have the first state.
            self.wait_for(format!("waiting for a founder of cluster {:032x}", cluster.meta.cluster.0));
            return Ok(());
        }
        if identity.formed.is_none()
            && let Err(error) = self.adopt(&mut identity, cluster)
        {
            self.wait_for(format!("the cluster cannot be stored: {error}"));
        }
        Ok(())
    }

    async fn initiate(&self, plan: &Plan, chosen: Vec<MemberSpec>, tls: &Tls, config: &LinkConfig) {
        let nonce: u64 = rand::random();
        if let JoinAnswer::Refused(why) = self.promise(self.spec.node.clone(), nonce) {
            self.wait_for(why);
            return;
        }
        let mut specs = vec![self.spec.clone()];
        for spec in chosen.iter().filter(|spec| spec.node != self.spec.node) {
            let question = JoinQuestion::Promise(self.spec.node.clone(), nonce);
            match self.ask(&spec.address, &question, tls, config).await {
                Ok(JoinAnswer::Promised(theirs)) if theirs.node == spec.node => specs.push(theirs),
                Ok(JoinAnswer::Refused(why)) => {
                    self.wait_for(format!("{} refuses to form a cluster: {why}", spec.node));
                    return;
                }
                Ok(_) => return,
                Err(error) => {
                    self.wait_for(format!("waiting for {}: {error}", spec.node));
                    return;
                }
            }
        }
        let meta = ClusterMeta::new(ClusterId(rand::random()), plan.partitions, plan.replication);
        let state = match form(meta, specs) {
            Ok(state) => state,
            Err(error) => {
                self.wait_for(format!("the cluster cannot be formed: {error}"));
                return;
            }
        };
        {
            // From here on the cluster exists: this node alone may hand out its first state.
            let mut identity = self.identity.lock().unwrap_or_else(PoisonError::into_inner);
            if identity.promise.as_ref().is_none_or(|p| p.initiator != self.spec.node || p.nonce != nonce) {
                return; // It has yielded to another one meanwhile.
            }
            if let Err(error) = self.adopt(&mut identity, state.clone()) {
                self.wait_for(format!("the cluster cannot be stored: {error}"));
                return;
            }
        }
        for member in state.members.iter().filter(|member| member.node != self.spec.node) {
            let question = JoinQuestion::Form(nonce, Box::new(state.clone()));
            if let Err(error) = self.ask(&member.address, &question, tls, config).await {
                tracing::warn!(node = %member.node, %error, "the new cluster is not told yet");
            }
        }
    }
}

struct Round {
    clusters: Vec<ClusterState>,
    failure: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn formation(node: &str) -> (tempfile::TempDir, Arc<Formation>) {
        let dir = tempfile::tempdir().unwrap();
        let folder = Arc::new(Folder::open(&dir.path().join("data")).unwrap());
        let node = NodeId::new(node).unwrap();
        let identity = folder.identity(&node).unwrap();
        let spec = MemberSpec::new(node, "127.0.0.1:7000");
        let formation =
            Formation::new(spec, folder, identity, watch::Sender::new(None).subscribe(), mpsc::channel(1).0);
        (dir, formation)
    }

    fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    #[test]
    fn a_promise_binds_to_one_initiator_and_one_to_itself_yields_to_a_lower_id() {
        let (_dir, n2) = formation("n2");
        let promised =
            |initiator: &str, nonce| matches!(n2.promise(node(initiator), nonce), JoinAnswer::Promised(_));
        assert!(promised("n2", 1), "to itself");
        assert!(!promised("n3", 2), "a higher id does not come between");
        assert!(promised("n1", 3), "a lower one does");
        assert!(!promised("n2", 4) && !promised("n0", 5), "and that one binds");
        assert!(promised("n1", 6), "its initiator may begin anew");
        assert_eq!(n2.promised(), Some(Promise { initiator: node("n1"), nonce: 6 }));
    }

    #[test]
    fn a_promise_is_taken_back_only_as_it_was_seen() {
        let (_dir, n3) = formation("n3");
        n3.promise(node("n2"), 1);
        let old = n3.promised().unwrap();
        n3.promise(node("n2"), 2);
        n3.release(&old);
        assert_eq!(
            n3.promised(),
            Some(Promise { initiator: node("n2"), nonce: 2 }),
            "it was renewed meanwhile"
        );
        n3.release(&n3.promised().unwrap());
        assert_eq!(n3.promised(), None);
        assert!(matches!(n3.promise(node("n1"), 3), JoinAnswer::Promised(_)));
    }

    #[test]
    fn a_majority_of_the_addresses_to_join_founds_the_cluster() {
        let plan = |expect, join: &[&str]| Plan {
            join: join.iter().map(ToString::to_string).collect(),
            expect,
            partitions: PartitionCount::DEFAULT,
            replication: 3,
        };
        for (expect, join, founders) in [
            (1, &[][..], 1),
            (3, &["a"], 3),
            (3, &["a", "b", "c", "d", "e", "f"], 4),
            (1, &["a", "b", "a"], 2),
        ] {
            assert_eq!(plan(expect, join).founders(), founders, "{expect} {join:?}");
        }
    }
}
