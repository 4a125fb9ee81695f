//! Settings of a node: flags, environment, file, defaults, in this order.
//!
//! Owns the reading of files and the check that finds every contradiction at once. clap reads flags and
//! environment into [`ServeArgs`]; what they leave open is taken from the file. Out comes a
//! [`ServeSettings`] that a node can be started with, or the list of everything wrong.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use perennial::core::id::NodeId;
use perennial::core::membership::{WEIGHT_DEFAULT, WEIGHT_MAX};
use perennial::core::placement::REPLICATION_MAX;
use perennial::node::{NodeConfig, TlsFiles};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};

use crate::output::LogFormat;

/// Partitions of a new cluster unless told otherwise.
pub(crate) const PARTITIONS_DEFAULT: u32 = 64;
/// Most partitions of a cluster.
const PARTITIONS_MAX: u32 = 4096;
/// Replicas of each partition unless told otherwise.
pub(crate) const REPLICATION_DEFAULT: u8 = 3;
/// How long a stop may take unless told otherwise.
const GRACE_DEFAULT: Duration = Duration::from_secs(10);
/// Port that `--listen` takes unless told otherwise.
const LISTEN_DEFAULT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 7001);

/// Flags of `serve`; each is also read from its environment variable and from the file.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct ServeArgs {
    /// TOML file with any of these settings, written with underscores (node_id = "n1")
    #[arg(long, value_name = "FILE", env = "PERENNIAL_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// Name of this node, a DNS label, the same after every restart
    #[arg(long, value_name = "NAME", env = "PERENNIAL_NODE_ID")]
    pub(crate) node_id: Option<NodeId>,
    /// Address of the one port for nodes and clients [default: 127.0.0.1:7001]
    #[arg(long, value_name = "IP:PORT", env = "PERENNIAL_LISTEN")]
    pub(crate) listen: Option<SocketAddr>,
    /// What other nodes dial [default: the address of --listen]
    #[arg(long, value_name = "HOST:PORT", env = "PERENNIAL_ADVERTISE")]
    pub(crate) advertise: Option<String>,
    /// Address of the HTTP gateway; without it the node has none
    #[arg(long, value_name = "IP:PORT", env = "PERENNIAL_HTTP")]
    pub(crate) http: Option<SocketAddr>,
    /// Agree that the HTTP gateway, which has no authentication, is open to more than this machine
    #[arg(long, env = "PERENNIAL_HTTP_PUBLIC", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) http_public: Option<bool>,
    /// Web origins whose pages may call from a browser, besides those on the gateway's own host name
    #[arg(long, value_name = "ORIGIN,..", env = "PERENNIAL_HTTP_ORIGINS", value_delimiter = ',')]
    pub(crate) http_origins: Option<Vec<String>>,
    /// Nodes to find the cluster by; this node may be among them
    #[arg(long, value_name = "HOST:PORT,..", env = "PERENNIAL_JOIN", value_delimiter = ',')]
    pub(crate) join: Option<Vec<String>>,
    /// Form a new cluster once this many nodes found each other [default: 1; with --join 3]
    #[arg(long, value_name = "NODES", env = "PERENNIAL_BOOTSTRAP_EXPECT")]
    pub(crate) bootstrap_expect: Option<usize>,
    /// Data folder, used by this node only
    #[arg(long, value_name = "DIR", env = "PERENNIAL_DATA")]
    pub(crate) data: Option<PathBuf>,
    /// Certificate of the cluster's authority (PEM)
    #[arg(long, value_name = "FILE", env = "PERENNIAL_TLS_CA")]
    pub(crate) tls_ca: Option<PathBuf>,
    /// Certificate of this node (PEM), for the DNS name NODE-ID.node.perennial
    #[arg(long, value_name = "FILE", env = "PERENNIAL_TLS_CERT")]
    pub(crate) tls_cert: Option<PathBuf>,
    /// Key of this node (PEM)
    #[arg(long, value_name = "FILE", env = "PERENNIAL_TLS_KEY")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Partitions of a new cluster, a power of two, fixed for its life [default: 64]
    #[arg(long, value_name = "N", env = "PERENNIAL_PARTITIONS")]
    pub(crate) partitions: Option<u32>,
    /// Replicas of each partition in a new cluster [default: 3]
    #[arg(long, value_name = "N", env = "PERENNIAL_REPLICATION")]
    pub(crate) replication: Option<u8>,
    /// Failure zone; replicas are spread over zones first
    #[arg(long, value_name = "NAME", env = "PERENNIAL_ZONE")]
    pub(crate) zone: Option<String>,
    /// Share of the load [default: 100]
    #[arg(long, value_name = "N", env = "PERENNIAL_WEIGHT")]
    pub(crate) weight: Option<u32>,
    /// How long a stop may take, such as 10s or 500ms [default: 10s]
    #[arg(long, value_name = "TIME", env = "PERENNIAL_GRACE")]
    pub(crate) grace: Option<Span>,
    /// What to log, such as info or perennial=debug [default: info]
    #[arg(long, value_name = "FILTER", env = "PERENNIAL_LOG")]
    pub(crate) log: Option<String>,
    /// How to write log lines [default: plain]
    #[arg(long, value_name = "FORMAT", env = "PERENNIAL_LOG_FORMAT")]
    pub(crate) log_format: Option<LogFormat>,
    /// Stop when the standard input ends: whoever started the node is gone
    #[arg(long, hide = true)]
    pub(crate) exit_with_stdin: bool,
}

/// Settings that a node can be started with.
#[derive(Debug, Clone)]
pub(crate) struct ServeSettings {
    pub(crate) node: NodeConfig,
    pub(crate) http: Option<SocketAddr>,
    pub(crate) http_origins: Vec<String>,
    pub(crate) grace: Duration,
    pub(crate) log: String,
    pub(crate) log_format: LogFormat,
    pub(crate) exit_with_stdin: bool,
}

/// Everything that is wrong with the settings.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} wrong with the settings:{}", count(.problems), list(.problems))]
pub(crate) struct SettingsError {
    /// One sentence each.
    pub(crate) problems: Vec<String>,
}

fn count(problems: &[String]) -> String {
    match problems.len() {
        1 => "1 thing is".into(),
        n => format!("{n} things are"),
    }
}

fn list(problems: &[String]) -> String {
    problems.iter().map(|problem| format!("\n  - {problem}")).collect()
}

impl ServeArgs {
    /// Takes from the file what flags and environment left open, fills in defaults and checks it all.
    ///
    /// # Errors
    /// [`SettingsError`] with every problem found.
    pub(crate) fn resolve(mut self) -> Result<ServeSettings, SettingsError> {
        let mut problems = Vec::new();
        if let Some(path) = self.config.clone() {
            self.fill_from(&path, &mut problems);
        }
        self.validate(&mut problems);
        let (Some(node), Some(data), Some(tls), true) =
            (self.node_id.clone(), self.data.clone(), self.tls_files(), problems.is_empty())
        else {
            return Err(SettingsError { problems });
        };
        let listen = self.listen.unwrap_or(LISTEN_DEFAULT);
        let http = self.http.map(|http| self.reachable_http(http, listen));
        let join = self.join.unwrap_or_default();
        let expect_default = if join.is_empty() { 1 } else { 3 };
        Ok(ServeSettings {
            node: NodeConfig {
                node,
                listen,
                advertise: self.advertise,
                http,
                join,
                bootstrap_expect: self.bootstrap_expect.unwrap_or(expect_default),
                data,
                tls,
                partitions: self.partitions.unwrap_or(PARTITIONS_DEFAULT),
                replication: self.replication.unwrap_or(REPLICATION_DEFAULT),
                zone: self.zone,
                weight: self.weight.unwrap_or(WEIGHT_DEFAULT),
            },
            http: self.http,
            http_origins: self.http_origins.unwrap_or_default(),
            grace: self.grace.map_or(GRACE_DEFAULT, |span| span.0),
            log: self.log.unwrap_or_else(|| "info".into()),
            log_format: self.log_format.unwrap_or_default(),
            exit_with_stdin: self.exit_with_stdin,
        })
    }

    fn fill_from(&mut self, path: &Path, problems: &mut Vec<String>) {
        let source = config::File::from(path).format(config::FileFormat::Toml);
        let read = config::Config::builder()
            .add_source(source)
            .build()
            .and_then(config::Config::try_deserialize::<HashMap<String, config::Value>>);
        let values = match read {
            Ok(values) => values,
            Err(error) => return problems.push(format!("{}: {error}", path.display())),
        };
        let mut file = FileValues { path, values, problems };
        file.fill("node_id", &mut self.node_id);
        file.fill("listen", &mut self.listen);
        file.fill("advertise", &mut self.advertise);
        file.fill("http", &mut self.http);
        file.fill("http_public", &mut self.http_public);
        file.fill("http_origins", &mut self.http_origins);
        file.fill("join", &mut self.join);
        file.fill("bootstrap_expect", &mut self.bootstrap_expect);
        file.fill("data", &mut self.data);
        file.fill("tls_ca", &mut self.tls_ca);
        file.fill("tls_cert", &mut self.tls_cert);
        file.fill("tls_key", &mut self.tls_key);
        file.fill("partitions", &mut self.partitions);
        file.fill("replication", &mut self.replication);
        file.fill("zone", &mut self.zone);
        file.fill("weight", &mut self.weight);
        file.fill("grace", &mut self.grace);
        file.fill("log", &mut self.log);
        file.fill("log_format", &mut self.log_format);
        file.refuse_rest();
    }

    fn validate(&self, problems: &mut Vec<String>) {
        let mut check = |fine: bool, problem: String| {
            if !fine {
                problems.push(problem);
            }
        };
        for origin in self.http_origins.iter().flatten() {
            let host = origin.split_once("://").filter(|(scheme, _)| matches!(*scheme, "http" | "https"));
            let plain = host.is_some_and(|(_, host)| !host.is_empty() && !host.contains(['/', '*', ' ']));
            check(
                plain,
                format!("http_origins has {origin:?}: write it like https://shop.example, without a path"),
            );
        }
        let listen = self.listen.unwrap_or(LISTEN_DEFAULT);
        check(self.node_id.is_some(), "node_id is missing: name this node with --node-id n1".into());
        check(self.data.is_some(), "data is missing: name its data folder with --data DIR".into());
        for (name, file) in
            [("tls_ca", &self.tls_ca), ("tls_cert", &self.tls_cert), ("tls_key", &self.tls_key)]
        {
            match file {
                None => check(
                    false,
                    format!("{name} is missing: nodes speak mutual TLS only; `certs` makes certificates"),
                ),
                Some(file) => {
                    check(file.is_file(), format!("{name} {}: there is no such file", file.display()))
                }
            }
        }
        check(
            self.advertise.is_some() || !listen.ip().is_unspecified(),
            format!("listen {listen} is no address that others can dial: name one with --advertise"),
        );
        for address in self.advertise.iter().chain(self.join.iter().flatten()) {
            check(is_host_port(address), format!("address {address:?} is not HOST:PORT"));
        }
        if let Some(http) = self.http {
            check(
                http.ip().is_loopback() || self.http_public == Some(true),
                format!(
                    "http {http} is open to other machines and the gateway has no authentication: \
                     use a loopback address behind a proxy, or agree with --http-public"
                ),
            );
            check(http != listen, format!("http and listen are both {http}: give one another port"));
            check(http.port() != 0, "http needs a port, which the members' list names: 0 names none".into());
        }
        let joins = self.join.as_ref().is_some_and(|join| !join.is_empty());
        match self.bootstrap_expect {
            Some(0) => check(false, "bootstrap_expect is 0: a cluster has at least 1 node".into()),
            Some(n @ 2..) => check(
                joins,
                format!("bootstrap_expect is {n} but join is empty: name nodes to find with --join"),
            ),
            _ => {}
        }
        let partitions = self.partitions.unwrap_or(PARTITIONS_DEFAULT);
        check(
            partitions.is_power_of_two() && partitions <= PARTITIONS_MAX,
            format!("partitions is {partitions}: it must be a power of two up to {PARTITIONS_MAX}"),
        );
        let replication = self.replication.unwrap_or(REPLICATION_DEFAULT);
        check(
            (1..=REPLICATION_MAX).contains(&replication),
            format!("replication is {replication}: it must be 1 to {REPLICATION_MAX}"),
        );
        let weight = self.weight.unwrap_or(WEIGHT_DEFAULT);
        check(
            (1..=WEIGHT_MAX).contains(&weight),
            format!("weight is {weight}: it must be 1 to {WEIGHT_MAX}"),
        );
    }

    fn tls_files(&self) -> Option<TlsFiles> {
        Some(TlsFiles { ca: self.tls_ca.clone()?, cert: self.tls_cert.clone()?, key: self.tls_key.clone()? })
    }

    /// What the members' list names as the gateway's address: never an unspecified one.
    fn reachable_http(&self, http: SocketAddr, listen: SocketAddr) -> String {
        if !http.ip().is_unspecified() {
            return http.to_string();
        }
        match self.advertise.as_deref().and_then(|address| address.rsplit_once(':')) {
            Some((host, _)) => format!("{host}:{}", http.port()),
            None => SocketAddr::new(listen.ip(), http.port()).to_string(),
        }
    }
}

fn is_host_port(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok_and(|port| port != 0)
    })
}

/// The values of a file that were not taken yet.
struct FileValues<'a> {
    path: &'a Path,
    values: HashMap<String, config::Value>,
    problems: &'a mut Vec<String>,
}

impl FileValues<'_> {
    fn fill<T: DeserializeOwned>(&mut self, name: &str, field: &mut Option<T>) {
        let Some(value) = self.values.remove(name) else { return };
        match value.try_deserialize::<T>() {
            Ok(value) if field.is_none() => *field = Some(value),
            Ok(_) => {}
            Err(error) => self.problems.push(format!("{}: {name}: {}", self.path.display(), plain(&error))),
        }
    }

    fn refuse_rest(self) {
        let mut rest: Vec<_> = self.values.into_keys().collect();
        rest.sort_unstable();
        for name in rest {
            self.problems.push(format!("{}: there is no setting {name:?}", self.path.display()));
        }
    }
}

/// The reason without the path that config repeats.
fn plain(error: &config::ConfigError) -> String {
    match error {
        config::ConfigError::Type { unexpected, expected, .. } => {
            format!("found {unexpected}, expected {expected}")
        }
        other => other.to_string(),
    }
}

/// A length of time as people write it: `10s`, `500ms`, `2m`; a bare number means seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Duration);

impl FromStr for Span {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (number, millis) = match text {
            t if t.ends_with("ms") => (&t[..t.len() - 2], 1),
            t if t.ends_with('s') => (&t[..t.len() - 1], 1_000),
            t if t.ends_with('m') => (&t[..t.len() - 1], 60_000),
            t => (t, 1_000),
        };
        let number: u64 = number
            .trim()
            .parse()
            .map_err(|_| format!("{text:?} is no length of time: write 10s, 500ms or 2m"))?;
        let millis = number.checked_mul(millis).ok_or_else(|| format!("{text:?} is too long"))?;
        if millis == 0 {
            return Err("a length of time is more than 0".into());
        }
        Ok(Self(Duration::from_millis(millis)))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ms", self.0.as_millis())
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Complete settings, with their files in `dir`.
    fn complete(dir: &Path) -> ServeArgs {
        let file = |name: &str| {
            let path = dir.join(name);
            std::fs::write(&path, "").unwrap();
            Some(path)
        };
        ServeArgs {
            node_id: Some(NodeId::new("n1").unwrap()),
            data: Some(dir.join("data")),
            tls_ca: file("ca.pem"),
            tls_cert: file("n1.pem"),
            tls_key: file("n1.key"),
            ..ServeArgs::default()
        }
    }

    #[test]
    fn a_flag_beats_the_file_and_the_file_beats_the_default() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.toml");
        let text = "weight = 50\npartitions = 16\njoin = [\"a:1\", \"b:2\"]\ngrace = \"2s\"\nlog_format = \"json\"\n";
        std::fs::write(&path, text).unwrap();
        let args = ServeArgs { config: Some(path), weight: Some(7), ..complete(dir.path()) };
        let settings = args.resolve().unwrap();
        assert_eq!((settings.node.weight, settings.node.partitions, settings.node.replication), (7, 16, 3));
        assert_eq!((settings.node.join.len(), settings.node.bootstrap_expect), (2, 3));
        assert_eq!((settings.grace, settings.log_format), (Duration::from_secs(2), LogFormat::Json));
    }

    #[test]
    fn every_contradiction_is_told_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.toml");
        std::fs::write(&path, "wieght = 50\nweight = \"heavy\"\nnode_id = \"N 1\"\n").unwrap();
        let args = ServeArgs {
            config: Some(path),
            listen: Some("0.0.0.0:7001".parse().unwrap()),
            http: Some("0.0.0.0:8080".parse().unwrap()),
            http_origins: Some(vec!["https://shop.example".into(), "shop.example/".into()]),
            partitions: Some(48),
            replication: Some(0),
            bootstrap_expect: Some(3),
            ..ServeArgs::default()
        };
        let problems = args.resolve().unwrap_err().problems.join("\n");
        for part in [
            "\"wieght\"",
            "weight: ",
            "node_id: ",
            "data is missing",
            "http_origins has \"shop.example/\"",
            "tls_ca",
            "tls_cert",
            "tls_key",
            "--advertise",
            "--http-public",
            "48",
            "replication is 0",
            "join is empty",
        ] {
            assert!(problems.contains(part), "{part} is not in:\n{problems}");
        }
    }

    #[test]
    fn a_gateway_open_to_the_world_needs_consent_and_tells_an_address_others_can_dial() {
        let dir = tempfile::tempdir().unwrap();
        let open = ServeArgs { http: Some("0.0.0.0:8080".parse().unwrap()), ..complete(dir.path()) };
        assert!(open.clone().resolve().unwrap_err().to_string().contains("--http-public"));
        let agreed =
            ServeArgs { http_public: Some(true), advertise: Some("db1.example:7001".into()), ..open };
        assert_eq!(agreed.resolve().unwrap().node.http.as_deref(), Some("db1.example:8080"));
    }

    #[test]
    fn lengths_of_time_are_written_as_people_do() {
        let millis = |text: &str| text.parse::<Span>().map(|span| span.0.as_millis());
        assert_eq!(
            (millis("10"), millis("10s"), millis("5ms"), millis("2m")),
            (Ok(10_000), Ok(10_000), Ok(5), Ok(120_000))
        );
        assert!(millis("0s").is_err() && millis("soon").is_err() && millis("").is_err());
    }
}
