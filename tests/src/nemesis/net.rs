//! A network of namespaces: one for each node, one for the clients, a bridge between them in its own.
//!
//! Owns the namespaces and all that is done to them; nothing of it is left when it is dropped, and what
//! a killed run left behind is removed by the next. Names carry the process's id, so runs do not meet.
//! Nothing is changed in the namespace that this process started in.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

use super::delay::{self, Delays};
use super::tools::{output, run};
use super::{NemesisError, PREFIX, is_left};

/// Where `ip netns` keeps its names.
const NAMES: &str = "/run/netns";
/// Interface of each namespace that is on the bridge.
const PORT: &str = "eth0";
/// The bridge of all.
const ALL: &str = "br0";
/// Port of the bridge that leads to the clients.
const CLIENTS: &str = "pc";

/// The network of a run.
pub(super) struct Net {
    prefix: String,
    nodes: usize,
    /// Or why there are none.
    delays: Result<Delays, String>,
}

impl Net {
    /// Makes the namespaces and connects them.
    ///
    /// # Errors
    /// [`NemesisError::Unavailable`] where that is not possible; nothing is left then.
    pub(super) fn new(nodes: usize) -> Result<Self, NemesisError> {
        remove_leftovers();
        let delays = Err("there is no network yet".into());
        let mut net = Self { prefix: super::prefix(), nodes, delays };
        net.make().map_err(|why| NemesisError::Unavailable { why })?;
        net.delays = net.make_late_ways();
        Ok(net)
    }

    /// Whether packets can be late here.
    pub(super) fn can_delay(&self) -> Result<(), String> {
        self.delays.as_ref().map(drop).map_err(Clone::clone)
    }

    fn make(&self) -> Result<(), String> {
        let bridge = self.bridge();
        run("ip", &["netns", "add", &bridge])?;
        run("ip", &["-n", &bridge, "link", "add", ALL, "type", "bridge", "forward_delay", "0"])?;
        run("ip", &["-n", &bridge, "link", "set", ALL, "up"])?;
        for node in 0..self.nodes {
            self.attach(&self.node(node), &port(node), &address(node))?;
        }
        self.attach(&self.clients(), CLIENTS, "10.77.0.254")?;
        // The faults need all of these; better told now than in the middle.
        self.nft(&bridge, "add table bridge nem")?;
        self.nft(&bridge, "add chain bridge nem f { type filter hook forward priority 0; }")?;
        for node in 0..self.nodes {
            let name = self.node(node);
            self.nft(&name, "add table inet nem")?;
            self.nft(&name, "add chain inet nem in { type filter hook input priority 0; }")?;
        }
        Ok(())
    }

    /// A bridge for each node that leads over its late way to the bridge of all; nobody is on it yet.
    fn make_late_ways(&self) -> Result<Delays, String> {
        let bridge = self.bridge();
        let delays = Delays::start(enter(&bridge)?, self.nodes)?;
        for node in 0..self.nodes {
            let (late, near, far) = (late(node), delay::near(node), delay::far(node));
            run("ip", &["-n", &bridge, "link", "add", &late, "type", "bridge", "forward_delay", "0"])?;
            run("ip", &["-n", &bridge, "link", "set", &late, "up"])?;
            run("ip", &["-n", &bridge, "link", "set", &near, "master", &late, "up"])?;
            run("ip", &["-n", &bridge, "link", "set", &far, "master", ALL, "up"])?;
        }
        Ok(delays)
    }

    fn attach(&self, namespace: &str, port: &str, address: &str) -> Result<(), String> {
        let bridge = self.bridge();
        run("ip", &["netns", "add", namespace])?;
        run(
            "ip",
            &["-n", &bridge, "link", "add", port, "type", "veth", "peer", "name", PORT, "netns", namespace],
        )?;
        run("ip", &["-n", &bridge, "link", "set", port, "master", ALL, "up"])?;
        run("ip", &["-n", namespace, "addr", "add", &format!("{address}/24"), "dev", PORT])?;
        run("ip", &["-n", namespace, "link", "set", "lo", "up"])?;
        run("ip", &["-n", namespace, "link", "set", PORT, "up"])
    }

    fn bridge(&self) -> String {
        format!("{}bridge", self.prefix)
    }

    fn clients(&self) -> String {
        format!("{}clients", self.prefix)
    }

    fn node(&self, node: usize) -> String {
        format!("{}n{}", self.prefix, node + 1)
    }

    /// File of a node's namespace.
    pub(super) fn file(&self, node: usize) -> PathBuf {
        Path::new(NAMES).join(self.node(node))
    }

    fn nft(&self, namespace: &str, rule: &str) -> Result<(), String> {
        run("ip", &["netns", "exec", namespace, "nft", rule])
    }

    /// What moves the calling thread to the clients' namespace.
    ///
    /// # Errors
    /// [`NemesisError::Unavailable`].
    pub(super) fn entrance(&self) -> Result<Entrance, NemesisError> {
        enter(&self.clients()).map_err(|why| NemesisError::Unavailable { why })
    }

    /// Cuts a node off from everybody, clients too.
    pub(super) fn unplug(&self, node: usize) -> Result<(), NemesisError> {
        self.change("ip", &["-n", &self.bridge(), "link", "set", &port(node), "down"])
    }

    /// Drops what goes from one node to another.
    pub(super) fn cut(&self, from: usize, to: usize) -> Result<(), NemesisError> {
        // A node that is late is behind another port.
        let ports = |node| format!("{{ {}, {} }}", port(node), delay::far(node));
        let rule = format!("add rule bridge nem f iifname {} oifname {} drop", ports(from), ports(to));
        self.change("ip", &["netns", "exec", &self.bridge(), "nft", &rule])
    }

    /// Drops a part of all that comes to a node.
    pub(super) fn lose(&self, node: usize, percent: u32) -> Result<(), NemesisError> {
        let rule = format!("add rule inet nem in numgen random mod 100 < {percent} drop");
        self.change("ip", &["netns", "exec", &self.node(node), "nft", &rule])
    }

    /// Makes all that a node sends go through a narrow pipe.
    pub(super) fn slow(&self, node: usize) -> Result<(), NemesisError> {
        let pipe = ["root", "tbf", "rate", "256kbit", "burst", "3kb", "latency", "2s"];
        let mut arguments = vec!["netns", "exec"];
        let name = self.node(node);
        arguments.extend([name.as_str(), "tc", "qdisc", "add", "dev", PORT]);
        arguments.extend(pipe);
        self.change("ip", &arguments)
    }

    /// Lets all that comes to a node, and all that it sends, be late.
    pub(super) fn delay(&self, node: usize, late_by: std::ops::Range<Duration>) -> Result<(), NemesisError> {
        let delays = self.delays.as_ref().map_err(|why| NemesisError::Network { why: why.clone() })?;
        delays.set(node, Some(late_by));
        self.change("ip", &["-n", &self.bridge(), "link", "set", &port(node), "master", &late(node)])
    }

    /// Ends every fault of the network.
    pub(super) fn heal(&self) -> Result<(), NemesisError> {
        let bridge = self.bridge();
        self.change("ip", &["netns", "exec", &bridge, "nft", "flush chain bridge nem f"])?;
        for node in 0..self.nodes {
            let name = self.node(node);
            self.change("ip", &["-n", &bridge, "link", "set", &port(node), "master", ALL, "up"])?;
            if let Ok(delays) = &self.delays {
                delays.set(node, None);
            }
            self.change("ip", &["netns", "exec", &name, "nft", "flush chain inet nem in"])?;
            // There is none to delete where none was added.
            let _ = run("ip", &["netns", "exec", &name, "tc", "qdisc", "del", "dev", PORT, "root"]);
        }
        Ok(())
    }

    fn change(&self, program: &str, arguments: &[&str]) -> Result<(), NemesisError> {
        run(program, arguments).map_err(|why| NemesisError::Network { why })
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        remove(&self.prefix);
    }
}

/// A namespace.
pub(super) struct Entrance(File);

impl Entrance {
    /// Moves the calling thread there, and with it the sockets that it opens.
    ///
    /// # Panics
    /// When the kernel refuses: the thread would measure another network.
    pub(super) fn enter(&self) {
        setns(&self.0, CloneFlags::CLONE_NEWNET).expect("root may enter a namespace of its own");
    }
}

fn enter(namespace: &str) -> Result<Entrance, String> {
    let path = Path::new(NAMES).join(namespace);
    File::open(&path).map(Entrance).map_err(|error| format!("cannot open {}: {error}", path.display()))
}

/// Address of a node.
pub(super) fn address(node: usize) -> String {
    format!("10.77.0.{}", node + 1)
}

fn port(node: usize) -> String {
    format!("p{}", node + 1)
}

/// A node's bridge on the near side of its late way.
fn late(node: usize) -> String {
    format!("b{}", node + 1)
}

fn names(prefix: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(NAMES) else { return Vec::new() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| name.starts_with(prefix)).collect()
}

fn remove(prefix: &str) {
    for name in names(prefix) {
        if let Err(why) = run("ip", &["netns", "del", &name]) {
            eprintln!("a namespace is left: {why}");
        }
    }
}

/// Removes namespaces of runs that were killed: their process is gone, and nobody is inside.
fn remove_leftovers() {
    for name in names(PREFIX) {
        let inside = output("ip", &["netns", "pids", &name]);
        if is_left(&name) && inside.is_ok_and(|inside| inside.stdout.is_empty()) {
            let _ = run("ip", &["netns", "del", &name]);
        }
    }
}
