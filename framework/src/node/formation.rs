//! Finding or forming the cluster.
//!
//! Nodes that belong to no cluster ask the addresses they were given who is there. Once as many as
//! expected have found each other, the one with the lowest node id forms the cluster: every one of them
//! promises, durably, to be formed by it alone; then it writes down the first state itself and hands it
//! to the others. All have to promise, and a majority of the addresses to join are among them, so two
//! clusters cannot come out of nodes that were given the same addresses. Where addresses may change there is
//! no majority of them; then two clusters cannot come out of less than twice as many nodes as are expected,
//! since a node promises itself to one initiator at a time. An initiator that has formed
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

use super::discovery::{Discovery, Found};
use super::identity::{Folder, Identity, Promise};
use crate::link::tls::Tls;
use crate::link::{DialError, Facts, LinkConfig, probe};
use crate::protocol::{decode, encode};

/// Pause between rounds of asking.
const ROUND_PAUSE: Duration = Duration::from_millis(150);

/// A question on the join lane.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum JoinQuestion {
    /// Who is there? Here is who asks.
    Hello(MemberSpec),
    /// Will you be formed by me?
    Promise(NodeId, u64),
    /// This is the cluster, as promised.
    Form(u64, Box<ClusterState>),
    /// Where are you, and who else? A member of this cluster asks, and is here.
    Here(ClusterId, MemberSpec),
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
    /// Where members of the cluster said in this run that they are, as they dialed or asked.
    pub(super) heard: watch::Sender<BTreeMap<NodeId, String>>,
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
    pub(super) discovery: Discovery,
    pub(super) expect: usize,
    pub(super) partitions: PartitionCount,
    pub(super) replication: u8,
}

impl Plan {
    /// Addresses to join of which a majority must be among the founders: none if some may change.
    fn addresses(&self) -> usize {
        match self.discovery.changing() {
            None => self.discovery.sources().len(),
            Some(_) => 0,
        }
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
            heard: watch::Sender::default(),
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
            Ok(JoinQuestion::Here(cluster, spec)) if spec.node == *from => self.heard_of(cluster, spec),
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

    /// Says to a member where the others are.
    fn heard_of(&self, cluster: ClusterId, spec: MemberSpec) -> JoinAnswer {
        let heard = self.heard.borrow().clone();
        let known = heard.into_iter().map(|(node, address)| MemberSpec::new(node, address)).collect();
        let ours = self.cluster().filter(|ours| ours.meta.cluster == cluster);
        if ours.is_some_and(|ours| ours.members.by_node(&spec.node).is_some()) {
            self.hear(&spec.node, &spec.address);
        }
        JoinAnswer::Hello { spec: self.spec.clone(), cluster: None, known, promise: None }
    }

    /// Notes where a member says it is.
    pub(super) fn hear(&self, node: &NodeId, address: &str) {
        if MemberSpec::new(node.clone(), address).validate().is_err() {
            return;
        }
        self.heard.send_if_modified(|heard| {
            let news = heard.get(node).is_none_or(|said| said != address);
            if news {
                heard.insert(node.clone(), address.to_owned());
            }
            news
        });
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
            let round = self.ask_all(plan.discovery.find().await, tls, config).await;
            self.advance(plan, round, tls, config).await?;
            let _ = tokio::time::timeout(ROUND_PAUSE, formed.wait_for(Option::is_some)).await;
        }
        Ok(())
    }

    /// Tells people what it waits for; the same thing once.
    fn wait_for(&self, what: String) {
        self.waiting.send_if_modified(|waiting| {
            let news = *waiting != what;
            *waiting = what;
            news
        });
    }

    /// Asks every known address; gives the clusters heard of and the last failures.
    async fn ask_all(&self, found: Found, tls: &Tls, config: &LinkConfig) -> Round {
        let mut addresses = found.addresses();
        addresses.extend(self.met().into_values().map(|spec| spec.address));
        addresses.retain(|address| self.who_is_at(address).as_ref() != Some(&self.spec.node));
        let hello = JoinQuestion::Hello(self.spec.clone());
        // Noted before asking: its initiator held it then.
        let bound = self.promised();
        let asked = addresses.iter().map(|address| self.ask(address, &hello, tls, config));
        let mut round = Round { clusters: Vec::new(), failures: found.problems.clone(), found };
        let mut failure = None;
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
                Ok(JoinAnswer::Refused(why)) => failure = Some(format!("{address}: {why}")),
                Ok(_) => {}
                Err(DialError::TurnedAway { refusal: crate::link::Refusal::OwnNode(_), .. }) => {
                    self.found(address, self.spec.node.clone());
                }
                Err(error) => failure = Some(error.to_string()),
            }
        }
        round.failures.extend(failure);
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
        let Round { clusters, found, failures } = round;
        if let Some(cluster) = clusters.into_iter().next() {
            return self.join(cluster);
        }
        let mut specs: BTreeMap<_, _> = self.met();
        specs.insert(self.spec.node.clone(), self.spec.clone());
        let seeds = self.seeds(&found);
        let founders = plan.founders();
        let failure = || match failures.as_slice() {
            [] => String::new(),
            whys => format!("; last failure: {}", whys.join("; ")),
        };
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
        let is_seed = |spec: &MemberSpec| seeds.iter().any(|nodes| nodes.contains(&spec.node));
        chosen.sort_by_key(|spec| (!is_seed(spec), spec.node.clone()));
        chosen.truncate(founders);
        let among = seeds.iter().filter(|nodes| chosen.iter().any(|spec| nodes.contains(&spec.node))).count();
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

    fn who_is_at(&self, address: &str) -> Option<NodeId> {
        if address == self.spec.address {
            return Some(self.spec.node.clone());
        }
        self.at.lock().unwrap_or_else(PoisonError::into_inner).get(address).cloned()
    }

    /// The nodes found at each of the addresses to join; a name may stand for several.
    fn seeds(&self, found: &Found) -> Vec<BTreeSet<NodeId>> {
        let who = |addresses: &Vec<String>| addresses.iter().filter_map(|at| self.who_is_at(at)).collect();
        found.by_source.iter().map(who).collect()
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
    found: Found,
    failures: Vec<String>,
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
            discovery: Discovery::new(&join.iter().map(ToString::to_string).collect::<Vec<_>>(), "", None)
                .unwrap(),
            expect,
            partitions: PartitionCount::DEFAULT,
            replication: 3,
        };
        for (expect, join, founders) in [
            (1, &[][..], 1),
            (3, &["a:1"], 3),
            (3, &["a:1", "b:1", "c:1", "d:1", "e:1", "f:1"], 4),
            (1, &["a:1", "b:1", "a:1"], 2),
            // Addresses that may change have no majority: what is expected alone decides.
            (3, &["dns:a:1"], 3),
            (2, &["a:1", "b:1", "c:1", "srv:d", "e:1"], 2),
        ] {
            assert_eq!(plan(expect, join).founders(), founders, "{expect} {join:?}");
        }
    }
}
