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

use perennial::app::Kinds;
use perennial::core::id::NodeId;
use perennial::core::membership::{WEIGHT_DEFAULT, WEIGHT_MAX};
use perennial::core::placement::REPLICATION_MAX;
use perennial::limits::{ACTORS_BYTES_DEFAULT, ACTORS_BYTES_MIN};
use perennial::node::{NodeConfig, Source, TlsFiles};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};

use crate::gateway::{self, AdminConfig, GatewayConfig, Policy};
use crate::output::LogFormat;

/// Partitions of a new cluster unless told otherwise.
pub(crate) const PARTITIONS_DEFAULT: u32 = 64;
/// Most partitions of a cluster.
const PARTITIONS_MAX: u32 = 4096;
/// Replicas of each partition unless told otherwise.
pub(crate) const REPLICATION_DEFAULT: u8 = 3;
/// How long a stop may take unless told otherwise.
const GRACE_DEFAULT: Duration = Duration::from_secs(10);
/// Largest limit of a request's head.
const HEAD_BYTES_MAX_MAX: usize = 1024 * 1024;
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
    /// Certificate chain (PEM) that the HTTP gateway shows; with it and its key the gateway speaks TLS
    #[arg(long, value_name = "FILE", env = "PERENNIAL_HTTP_TLS_CERT")]
    pub(crate) http_tls_cert: Option<PathBuf>,
    /// Key of that certificate (PEM)
    #[arg(long, value_name = "FILE", env = "PERENNIAL_HTTP_TLS_KEY")]
    pub(crate) http_tls_key: Option<PathBuf>,
    /// Policy (TOML): API keys, tokens, and who may do what; without it everybody may do everything
    #[arg(long, value_name = "FILE", env = "PERENNIAL_AUTH")]
    pub(crate) auth: Option<PathBuf>,
    /// Agree that the HTTP gateway is open to more than this machine without TLS or without a policy
    #[arg(long, env = "PERENNIAL_HTTP_INSECURE", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) http_insecure: Option<bool>,
    /// Web origins whose pages may call from a browser, besides those on the gateway's own host name
    #[arg(long, value_name = "ORIGIN,..", env = "PERENNIAL_HTTP_ORIGINS", value_delimiter = ',')]
    pub(crate) http_origins: Option<Vec<String>>,
    /// Address of the admin port: metrics, status, kinds, health; beyond loopback with mutual TLS
    #[arg(long, value_name = "IP:PORT", env = "PERENNIAL_ADMIN")]
    pub(crate) admin: Option<SocketAddr>,
    /// Authority (PEM) of those who may use the admin port [default: that of --tls-ca]
    #[arg(long, value_name = "FILE", env = "PERENNIAL_ADMIN_TLS_CA")]
    pub(crate) admin_tls_ca: Option<PathBuf>,
    /// Where to find the cluster: HOST:PORT, dns:NAME:PORT, srv:NAME or file:PATH; this node may be among them
    #[arg(long, value_name = "SOURCE,..", env = "PERENNIAL_JOIN", value_delimiter = ',')]
    pub(crate) join: Option<Vec<String>>,
    /// Name server for dns: and srv: in --join [default: those of the system]
    #[arg(long, value_name = "IP:PORT", env = "PERENNIAL_DNS_SERVER")]
    pub(crate) dns_server: Option<SocketAddr>,
    /// Form a new cluster once this many nodes found each other [default: 1; 3 if --join has HOST:PORT only]
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
    /// Memory that actors may take, by estimate, such as 512MiB; those used longest ago leave it [default: 256MiB]
    #[arg(long, value_name = "SIZE", env = "PERENNIAL_MEMORY_ACTORS")]
    pub(crate) memory_actors: Option<Size>,
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
    #[command(flatten)]
    pub(crate) limits: LimitArgs,
}

/// Limits of the gateway; their defaults are constants of [`gateway`].
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Limits of the HTTP gateway")]
pub(crate) struct LimitArgs {
    /// Calls in flight [default: 1024]
    #[arg(long, value_name = "N", env = "PERENNIAL_HTTP_CALLS_MAX")]
    pub(crate) http_calls_max: Option<u32>,
    /// Calls in flight of one key, user, or address without credentials [default: 512]
    #[arg(long, value_name = "N", env = "PERENNIAL_HTTP_CALLS_OF_ONE_MAX")]
    pub(crate) http_calls_of_one_max: Option<u32>,
    /// Open event streams [default: 1024]
    #[arg(long, value_name = "N", env = "PERENNIAL_HTTP_STREAMS_MAX")]
    pub(crate) http_streams_max: Option<u32>,
    /// Open event streams of one key, user, or address without credentials [default: 512]
    #[arg(long, value_name = "N", env = "PERENNIAL_HTTP_STREAMS_OF_ONE_MAX")]
    pub(crate) http_streams_of_one_max: Option<u32>,
    /// Connections [default: 4096]
    #[arg(long, value_name = "N", env = "PERENNIAL_HTTP_CONNECTIONS_MAX")]
    pub(crate) http_connections_max: Option<u32>,
    /// Connections from one address; a proxy is one [default: 2048]
    #[arg(long, value_name = "N", env = "PERENNIAL_HTTP_CONNECTIONS_OF_ONE_MAX")]
    pub(crate) http_connections_of_one_max: Option<u32>,
    /// Bytes of a request's head [default: 32768]
    #[arg(long, value_name = "N", env = "PERENNIAL_HTTP_HEAD_BYTES_MAX")]
    pub(crate) http_head_bytes_max: Option<usize>,
    /// Bytes of a request's body [default: 1048576]
    #[arg(long, value_name = "N", env = "PERENNIAL_HTTP_BODY_BYTES_MAX")]
    pub(crate) http_body_bytes_max: Option<usize>,
    /// Bytes of all bodies in memory; one caller has at most half [default: 67108864]
    #[arg(long, value_name = "N", env = "PERENNIAL_HTTP_BODY_BYTES_IN_FLIGHT_MAX")]
    pub(crate) http_body_bytes_in_flight_max: Option<usize>,
    /// Time for a TLS handshake [default: 5s]
    #[arg(long, value_name = "TIME", env = "PERENNIAL_HTTP_HANDSHAKE_TIMEOUT")]
    pub(crate) http_handshake_timeout: Option<Span>,
    /// Time for a request's head, and idle time of a connection [default: 10s]
    #[arg(long, value_name = "TIME", env = "PERENNIAL_HTTP_HEAD_TIMEOUT")]
    pub(crate) http_head_timeout: Option<Span>,
    /// Time for a request's body [default: 10s]
    #[arg(long, value_name = "TIME", env = "PERENNIAL_HTTP_BODY_TIMEOUT")]
    pub(crate) http_body_timeout: Option<Span>,
    /// Time in which a client takes none of its answer [default: 60s]
    #[arg(long, value_name = "TIME", env = "PERENNIAL_HTTP_STALL_TIMEOUT")]
    pub(crate) http_stall_timeout: Option<Span>,
}

impl LimitArgs {
    fn fill_from(&mut self, file: &mut FileValues<'_>) {
        file.fill("http_calls_max", &mut self.http_calls_max);
        file.fill("http_calls_of_one_max", &mut self.http_calls_of_one_max);
        file.fill("http_streams_max", &mut self.http_streams_max);
        file.fill("http_streams_of_one_max", &mut self.http_streams_of_one_max);
        file.fill("http_connections_max", &mut self.http_connections_max);
        file.fill("http_connections_of_one_max", &mut self.http_connections_of_one_max);
        file.fill("http_head_bytes_max", &mut self.http_head_bytes_max);
        file.fill("http_body_bytes_max", &mut self.http_body_bytes_max);
        file.fill("http_body_bytes_in_flight_max", &mut self.http_body_bytes_in_flight_max);
        file.fill("http_handshake_timeout", &mut self.http_handshake_timeout);
        file.fill("http_head_timeout", &mut self.http_head_timeout);
        file.fill("http_body_timeout", &mut self.http_body_timeout);
        file.fill("http_stall_timeout", &mut self.http_stall_timeout);
    }

    /// The gateway's settings with these limits; each `of one` follows a smaller limit of all.
    fn resolve(&self, problems: &mut Vec<String>) -> GatewayConfig {
        let usual = GatewayConfig::default();
        let of_one = |given: Option<u32>, usual: u32, all: u32| given.unwrap_or(usual.min(all));
        let calls = self.http_calls_max.unwrap_or(usual.calls_in_flight_max);
        let streams = self.http_streams_max.unwrap_or(usual.streams_open_max);
        let connections = self.http_connections_max.unwrap_or(usual.connections_max);
        let time = |given: Option<Span>, usual: Duration| given.map_or(usual, |span| span.0);
        let config = GatewayConfig {
            calls_in_flight_max: calls,
            calls_of_one_max: of_one(self.http_calls_of_one_max, usual.calls_of_one_max, calls),
            streams_open_max: streams,
            streams_of_one_max: of_one(self.http_streams_of_one_max, usual.streams_of_one_max, streams),
            connections_max: connections,
            connections_of_one_max: of_one(
                self.http_connections_of_one_max,
                usual.connections_of_one_max,
                connections,
            ),
            head_bytes_max: self.http_head_bytes_max.unwrap_or(usual.head_bytes_max),
            body_bytes_max: self.http_body_bytes_max.unwrap_or(usual.body_bytes_max),
            body_bytes_in_flight_max: self
                .http_body_bytes_in_flight_max
                .unwrap_or(usual.body_bytes_in_flight_max),
            handshake_timeout: time(self.http_handshake_timeout, usual.handshake_timeout),
            header_read_timeout: time(self.http_head_timeout, usual.header_read_timeout),
            body_read_timeout: time(self.http_body_timeout, usual.body_read_timeout),
            write_stall_timeout: time(self.http_stall_timeout, usual.write_stall_timeout),
            ..usual
        };
        for (name, all, one) in [
            ("http_calls", config.calls_in_flight_max, config.calls_of_one_max),
            ("http_streams", config.streams_open_max, config.streams_of_one_max),
            ("http_connections", config.connections_max, config.connections_of_one_max),
        ] {
            if one == 0 || one > all {
                problems
                    .push(format!("{name}_of_one_max is {one}: it must be 1 to {name}_max, which is {all}"));
            }
        }
        let (head, heads) = (config.head_bytes_max, gateway::HEAD_BYTES_MAX_MIN..=HEAD_BYTES_MAX_MAX);
        if !heads.contains(&head) {
            problems.push(format!(
                "http_head_bytes_max is {head}: it must be {} to {}",
                heads.start(),
                heads.end()
            ));
        }
        let (body, bodies) = (config.body_bytes_max, 1..=gateway::BODY_BYTES_MAX);
        if !bodies.contains(&body) {
            problems.push(format!("http_body_bytes_max is {body}: it must be 1 to {}", bodies.end()));
        }
        let in_flight = config.body_bytes_in_flight_max;
        if in_flight < body {
            problems.push(format!(
                "http_body_bytes_in_flight_max is {in_flight}: it must be at least http_body_bytes_max, which is {body}"
            ));
        }
        config
    }
}

/// Settings that a node can be started with.
#[derive(Debug, Clone)]
pub(crate) struct ServeSettings {
    pub(crate) node: NodeConfig,
    pub(crate) http: Option<SocketAddr>,
    pub(crate) gateway: GatewayConfig,
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
    /// Takes from the file what flags and environment left open, fills in defaults and checks it all; the
    /// policy against the application's kinds.
    ///
    /// # Errors
    /// [`SettingsError`] with every problem found.
    pub(crate) fn resolve(mut self, kinds: &Kinds) -> Result<ServeSettings, SettingsError> {
        let mut problems = Vec::new();
        if let Some(path) = self.config.clone() {
            self.fill_from(&path, &mut problems)?;
        }
        self.validate(&mut problems);
        let gateway = self.gateway(kinds, &mut problems);
        let (Some(node), Some(data), Some(tls), true) =
            (self.node_id.clone(), self.data.clone(), self.tls_files(), problems.is_empty())
        else {
            return Err(SettingsError { problems });
        };
        let listen = self.listen.unwrap_or(LISTEN_DEFAULT);
        let http = self.http.map(|http| self.reachable_http(http, listen));
        Ok(ServeSettings {
            node: NodeConfig {
                node,
                listen,
                advertise: self.advertise,
                http,
                join: self.join.unwrap_or_default(),
                dns_server: self.dns_server,
                bootstrap_expect: self.bootstrap_expect,
                data,
                tls,
                partitions: self.partitions.unwrap_or(PARTITIONS_DEFAULT),
                replication: self.replication.unwrap_or(REPLICATION_DEFAULT),
                zone: self.zone,
                weight: self.weight.unwrap_or(WEIGHT_DEFAULT),
                actors_bytes: self.memory_actors.map_or(ACTORS_BYTES_DEFAULT, |size| size.0),
            },
            http: self.http,
            gateway,
            grace: self.grace.map_or(GRACE_DEFAULT, |span| span.0),
            log: self.log.unwrap_or_else(|| "info".into()),
            log_format: self.log_format.unwrap_or_default(),
            exit_with_stdin: self.exit_with_stdin,
        })
    }

    /// A file that cannot be read at all is the one problem there is: what it would hold is not missing.
    fn fill_from(&mut self, path: &Path, problems: &mut Vec<String>) -> Result<(), SettingsError> {
        let source = config::File::from(path).format(config::FileFormat::Toml);
        let read = config::Config::builder()
            .add_source(source)
            .build()
            .and_then(config::Config::try_deserialize::<HashMap<String, config::Value>>);
        let values = match read {
            Ok(values) => values,
            Err(error) => {
                return Err(SettingsError { problems: vec![format!("{}: {error}", path.display())] });
            }
        };
        let mut file = FileValues { path, values, problems };
        file.fill("node_id", &mut self.node_id);
        file.fill("listen", &mut self.listen);
        file.fill("advertise", &mut self.advertise);
        file.fill("http", &mut self.http);
        file.fill("http_tls_cert", &mut self.http_tls_cert);
        file.fill("http_tls_key", &mut self.http_tls_key);
        file.fill("auth", &mut self.auth);
        file.fill("http_insecure", &mut self.http_insecure);
        file.fill("http_origins", &mut self.http_origins);
        file.fill("admin", &mut self.admin);
        file.fill("admin_tls_ca", &mut self.admin_tls_ca);
        self.limits.fill_from(&mut file);
        file.fill("join", &mut self.join);
        file.fill("dns_server", &mut self.dns_server);
        file.fill("bootstrap_expect", &mut self.bootstrap_expect);
        file.fill("data", &mut self.data);
        file.fill("tls_ca", &mut self.tls_ca);
        file.fill("tls_cert", &mut self.tls_cert);
        file.fill("tls_key", &mut self.tls_key);
        file.fill("partitions", &mut self.partitions);
        file.fill("replication", &mut self.replication);
        file.fill("zone", &mut self.zone);
        file.fill("weight", &mut self.weight);
        file.fill("memory_actors", &mut self.memory_actors);
        file.fill("grace", &mut self.grace);
        file.fill("log", &mut self.log);
        file.fill("log_format", &mut self.log_format);
        file.refuse_rest();
        Ok(())
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
                    format!("{name} is missing: nodes speak mutual TLS only; `cert` makes certificates"),
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
        if let Some(address) = &self.advertise {
            check(is_host_port(address), format!("address {address:?} is not HOST:PORT"));
        }
        let mut asks_dns = false;
        for source in self.join.iter().flatten() {
            match source.parse::<Source>() {
                Ok(source) => asks_dns |= matches!(source, Source::Dns { .. } | Source::Srv(_)),
                Err(error) => check(false, format!("join: {error}")),
            }
        }
        check(
            self.dns_server.is_none() || asks_dns,
            "dns_server is for names in --join written dns:NAME:PORT or srv:NAME, and there is none".into(),
        );
        if let Some(http) = self.http {
            let missing = match (&self.http_tls_cert, &self.auth) {
                (None, None) => "TLS and authentication: give --http-tls-cert, --http-tls-key and --auth",
                (None, Some(_)) => "TLS: give --http-tls-cert and --http-tls-key",
                (Some(_), None) => "authentication: give --auth",
                (Some(_), Some(_)) => "",
            };
            check(
                http.ip().is_loopback() || missing.is_empty() || self.http_insecure == Some(true),
                format!(
                    "http {http} is open to other machines without {missing}; use a loopback address behind a \
                     proxy, or agree with --http-insecure"
                ),
            );
            check(http != listen, format!("http and listen are both {http}: give one another port"));
            check(http.port() != 0, "http needs a port, which the members' list names: 0 names none".into());
        }
        for (name, given) in [
            ("http_tls_cert", self.http_tls_cert.is_some()),
            ("http_tls_key", self.http_tls_key.is_some()),
            ("auth", self.auth.is_some()),
        ] {
            check(
                !given || self.http.is_some(),
                format!("{name} is for the gateway: give it a port with --http"),
            );
        }
        check(
            self.http_tls_cert.is_some() == self.http_tls_key.is_some(),
            "http_tls_cert and http_tls_key belong together: give both".into(),
        );
        if let Some(admin) = self.admin {
            check(
                admin.port() == 0 || (admin != listen && Some(admin) != self.http),
                format!("admin and another port are both {admin}: give it one of its own"),
            );
        }
        check(
            self.admin_tls_ca.is_none() || self.admin.is_some(),
            "admin_tls_ca is for the admin port: give it one with --admin".into(),
        );
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
        let actors = self.memory_actors.map_or(ACTORS_BYTES_DEFAULT, |size| size.0);
        check(
            actors >= ACTORS_BYTES_MIN,
            format!("memory_actors is {actors} bytes: it must be at least {ACTORS_BYTES_MIN}"),
        );
        let weight = self.weight.unwrap_or(WEIGHT_DEFAULT);
        check(
            (1..=WEIGHT_MAX).contains(&weight),
            format!("weight is {weight}: it must be 1 to {WEIGHT_MAX}"),
        );
    }

    /// Reads what the gateway needs.
    fn gateway(&self, kinds: &Kinds, problems: &mut Vec<String>) -> GatewayConfig {
        let mut config = self.limits.resolve(problems);
        config.origins_allowed = self.http_origins.clone().unwrap_or_default();
        if let (Some(cert), Some(key)) = (&self.http_tls_cert, &self.http_tls_key) {
            config.tls = keep(gateway::tls::server(cert, key), problems);
        }
        if let Some(path) = &self.auth {
            match Policy::read(path, kinds) {
                Ok(policy) => config.policy = Some(policy.into()),
                Err(error) => problems.extend(error.problems),
            }
        }
        if let Some(address) = self.admin {
            let ca = self.admin_tls_ca.as_ref().or(self.tls_ca.as_ref());
            let open = address.ip().is_loopback() && self.admin_tls_ca.is_none();
            let tls = match (open, &self.tls_cert, &self.tls_key, ca) {
                (false, Some(cert), Some(key), Some(ca)) => {
                    keep(gateway::tls::mutual(cert, key, ca), problems)
                }
                _ => None,
            };
            config.admin = Some(AdminConfig { address, tls });
        }
        config
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

fn keep<T>(made: Result<T, gateway::tls::TlsError>, problems: &mut Vec<String>) -> Option<T> {
    made.map_err(|error| problems.push(error.to_string())).ok()
}

pub(crate) fn is_host_port(text: &str) -> bool {
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

/// A length of time as people write it: `10s`, `500ms`, `2m`, `1h`; a bare number means seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Duration);

impl FromStr for Span {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (number, millis) = match text {
            t if t.ends_with("ms") => (&t[..t.len() - 2], 1),
            t if t.ends_with('s') => (&t[..t.len() - 1], 1_000),
            t if t.ends_with('m') => (&t[..t.len() - 1], 60_000),
            t if t.ends_with('h') => (&t[..t.len() - 1], 3_600_000),
            t => (t, 1_000),
        };
        let number: u64 = number
            .trim()
            .parse()
            .map_err(|_| format!("{text:?} is no length of time: write 10s, 500ms, 2m or 1h"))?;
        let millis = number.checked_mul(millis).ok_or_else(|| format!("{text:?} is too long"))?;
        if millis == 0 {
            return Err("a length of time is more than 0".into());
        }
        Ok(Self(Duration::from_millis(millis)))
    }
}

/// A size in bytes, written with its unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

impl FromStr for Size {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let units = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("", 1_u64)];
        let of_unit = units.iter().find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?, bytes)));
        let (number, bytes) = of_unit.unwrap_or((text, &1));
        let number: u64 = number
            .trim()
            .parse()
            .map_err(|_| format!("{text:?} is no size: write 512MiB, 2GiB or a number of bytes"))?;
        number.checked_mul(*bytes).map(Self).ok_or_else(|| format!("{text:?} is too large"))
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
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
    use crate::certs;

    fn resolve(args: ServeArgs) -> Result<ServeSettings, SettingsError> {
        args.resolve(&Kinds::default())
    }

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
        let settings = resolve(args).unwrap();
        assert_eq!((settings.node.weight, settings.node.partitions, settings.node.replication), (7, 16, 3));
        assert_eq!((settings.node.join.len(), settings.node.bootstrap_expect), (2, None));
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
            http_tls_cert: Some("gate.pem".into()),
            admin_tls_ca: Some("monitors.pem".into()),
            auth: Some(dir.path().join("nowhere.toml")),
            limits: LimitArgs {
                http_calls_of_one_max: Some(0),
                http_body_bytes_max: Some(2_000_000),
                http_head_bytes_max: Some(1),
                ..LimitArgs::default()
            },
            partitions: Some(48),
            replication: Some(0),
            bootstrap_expect: Some(3),
            ..ServeArgs::default()
        };
        let join = |sources: &[&str]| {
            let join = sources.iter().map(ToString::to_string).collect();
            let dns_server = Some("127.0.0.1:53".parse().unwrap());
            resolve(ServeArgs { join: Some(join), dns_server, ..complete(dir.path()) })
        };
        assert!(join(&["n1:7001", "dns:seeds:7001"]).is_ok());
        let wrong = join(&["n1", "file:", "dns:seeds"]).unwrap_err().to_string();
        for part in [
            "\"n1\" is not HOST:PORT",
            "\"file:\" names no file",
            "\"dns:seeds\" names no port",
            "dns_server is for",
        ] {
            assert!(wrong.contains(part), "{part} is not in:\n{wrong}");
        }
        let problems = resolve(args).unwrap_err().problems.join("\n");
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
            "http_tls_cert and http_tls_key belong together",
            "http_calls_of_one_max is 0",
            "http_body_bytes_max is 2000000",
            "http_head_bytes_max is 1",
            "admin_tls_ca is for the admin port",
            "nowhere.toml",
            "48",
            "replication is 0",
            "join is empty",
        ] {
            assert!(problems.contains(part), "{part} is not in:\n{problems}");
        }
    }

    #[test]
    fn a_gateway_open_to_the_world_has_tls_and_a_policy_or_consent() {
        let dir = tempfile::tempdir().unwrap();
        let made = certs::throwaway(&dir.path().join("tls"), &[NodeId::new("n1").unwrap()], "cli").unwrap();
        let files = &made.nodes.values().next().unwrap().clone();
        let policy = dir.path().join("policy.toml");
        std::fs::write(&policy, "[[allow]]\nwho = \"anonymous\"\nkind = \"*\"\nmethods = \"*\"\n").unwrap();
        let open = ServeArgs { http: Some("0.0.0.0:8080".parse().unwrap()), ..complete(dir.path()) };
        let tls = |args: &ServeArgs| ServeArgs {
            http_tls_cert: Some(files.cert.clone()),
            http_tls_key: Some(files.key.clone()),
            ..args.clone()
        };
        let auth = |args: &ServeArgs| ServeArgs { auth: Some(policy.clone()), ..args.clone() };
        let refused = |args: ServeArgs| resolve(args).unwrap_err().to_string();
        assert!(refused(open.clone()).contains("without TLS and authentication"));
        assert!(refused(tls(&open)).contains("without authentication: give --auth"));
        assert!(refused(auth(&open)).contains("without TLS: give --http-tls-cert"));
        let settings = resolve(auth(&tls(&open))).unwrap();
        assert!(settings.gateway.tls.is_some() && settings.gateway.policy.is_some());
        let agreed =
            ServeArgs { http_insecure: Some(true), advertise: Some("db1.example:7001".into()), ..open };
        assert_eq!(resolve(agreed).unwrap().node.http.as_deref(), Some("db1.example:8080"));
    }

    #[test]
    fn the_admin_port_is_plain_on_loopback_only() {
        let dir = tempfile::tempdir().unwrap();
        let made = certs::throwaway(&dir.path().join("tls"), &[NodeId::new("n1").unwrap()], "cli").unwrap();
        let files = made.nodes.values().next().unwrap().clone();
        let at = |address: &str, admin_tls_ca: Option<PathBuf>| {
            let args = ServeArgs {
                tls_ca: Some(files.ca.clone()),
                tls_cert: Some(files.cert.clone()),
                tls_key: Some(files.key.clone()),
                admin: Some(address.parse().unwrap()),
                admin_tls_ca,
                ..complete(dir.path())
            };
            resolve(args).map(|settings| settings.gateway.admin.unwrap().tls.is_some())
        };
        assert_eq!(at("127.0.0.1:9001", None), Ok(false));
        assert_eq!(at("127.0.0.1:9001", Some(files.ca.clone())), Ok(true));
        assert_eq!(at("0.0.0.0:9001", None), Ok(true));
        let wrong = at("0.0.0.0:9001", Some(files.key.clone())).unwrap_err().to_string();
        assert!(wrong.contains("must hold a certificate"), "{wrong}");
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
