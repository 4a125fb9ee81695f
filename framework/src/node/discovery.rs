//! Where to look for the cluster: addresses, names, records and files, looked up again whenever needed.
//!
//! Owns the reading of `join` and the look-ups. Never talks to nodes, and never decides who founds a
//! cluster: it only tells whether its addresses are fixed. A look-up that fails keeps what the last one
//! gave, so that an outage of names is none of the cluster. In: what the user wrote; out: addresses to
//! ask, and what is wrong with where they come from. Headless services of Kubernetes and SRV records
//! (RFC 2782) are what this is made for.

use std::collections::BTreeSet;
use std::fmt;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use futures_util::future::join_all;
use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig,
};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use hickory_resolver::{Resolver, TokioResolver};
use perennial_core::membership::MEMBERS_MAX;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

/// Look-ups of one source are at least this far apart.
const LOOKUP_PAUSE: Duration = Duration::from_secs(1);
/// How long a look-up may take.
const LOOKUP_MAX: Duration = Duration::from_secs(5);
/// How long a name server has for one answer.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Largest file with addresses.
const FILE_BYTES_MAX: u64 = 64 * 1024;
/// Most addresses of one source; a cluster has no more members.
const ADDRESSES_MAX: usize = MEMBERS_MAX;

/// Where addresses of nodes come from, as a user writes it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// `HOST:PORT`: one node, by an address or a name.
    Fixed {
        /// Address or name.
        host: String,
        /// Port.
        port: u16,
    },
    /// `dns:NAME:PORT`: every address of a name, at one port.
    Dns {
        /// Name.
        name: String,
        /// Port of all nodes.
        port: u16,
    },
    /// `srv:NAME`: targets and ports of a name's SRV records.
    Srv(String),
    /// `file:PATH`: one `HOST:PORT` a line; `#` begins a comment.
    File(PathBuf),
}

/// A text that names no source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// It is no address.
    #[error("{0:?} is not HOST:PORT, dns:NAME:PORT, srv:NAME or file:PATH")]
    Shape(String),
    /// A name that cannot be asked for.
    #[error("{text:?}: {name:?} is no DNS name")]
    Name {
        /// As written.
        text: String,
        /// What should be a name.
        name: String,
    },
    /// `dns:` without a port.
    #[error("{0:?} names no port: write dns:NAME:PORT, or srv:NAME for ports out of SRV records")]
    NoPort(String),
    /// `srv:` with a port.
    #[error("{0:?} names a port, which SRV records do: write srv:NAME")]
    Port(String),
    /// `file:` without a path.
    #[error("{0:?} names no file: write file:PATH")]
    NoPath(String),
}

impl FromStr for Source {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        let is_name = |name: &str| match Name::from_utf8(name) {
            Ok(parsed) if !parsed.is_root() && !name.is_empty() && !name.contains([':', '/', ' ']) => {
                Ok(name.to_owned())
            }
            _ => Err(SourceError::Name { text: text.to_owned(), name: name.to_owned() }),
        };
        if let Some(rest) = text.strip_prefix("dns:") {
            let (name, port) = host_and_port(rest).ok_or_else(|| SourceError::NoPort(text.to_owned()))?;
            return Ok(Self::Dns { name: is_name(name)?, port });
        }
        if let Some(name) = text.strip_prefix("srv:") {
            if name.contains(':') {
                return Err(SourceError::Port(text.to_owned()));
            }
            return Ok(Self::Srv(is_name(name)?));
        }
        if let Some(path) = text.strip_prefix("file:") {
            return match path {
                "" => Err(SourceError::NoPath(text.to_owned())),
                path => Ok(Self::File(path.into())),
            };
        }
        let fixed = host_and_port(text).filter(|(host, _)| {
            let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
            match bare {
                Some(bare) => bare.parse::<std::net::Ipv6Addr>().is_ok(),
                None => !host.contains([':', '/', ' ', '[', ']']),
            }
        });
        let (host, port) = fixed.ok_or_else(|| SourceError::Shape(text.to_owned()))?;
        Ok(Self::Fixed { host: host.to_owned(), port })
    }
}

fn host_and_port(text: &str) -> Option<(&str, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| *port != 0)?;
    (!host.is_empty()).then_some((host, port))
}

/// As it is written.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed { host, port } => write!(f, "{host}:{port}"),
            Self::Dns { name, port } => write!(f, "dns:{name}:{port}"),
            Self::Srv(name) => write!(f, "srv:{name}"),
            Self::File(path) => write!(f, "file:{}", path.display()),
        }
    }
}

impl Source {
    /// Whether it stands for one node, the same one whenever and from wherever it is looked up.
    #[must_use]
    pub fn is_fixed(&self) -> bool {
        matches!(self, Self::Fixed { .. })
    }
}

/// What the sources give now.
#[derive(Debug, Clone, Default)]
pub(super) struct Found {
    /// Addresses, `host:port`, of each source, in the order of the sources.
    pub(super) by_source: Vec<Vec<String>>,
    /// What is wrong with sources, for people.
    pub(super) problems: Vec<String>,
}

impl Found {
    /// All addresses, each once.
    pub(super) fn addresses(&self) -> BTreeSet<String> {
        self.by_source.iter().flatten().cloned().collect()
    }
}

/// The sources of a node.
pub(super) struct Discovery {
    sources: Vec<Source>,
    /// The node's own address, which is not looked up.
    own: String,
    /// The name server to ask; that of the system when `None`.
    dns_server: Option<SocketAddr>,
    last: Mutex<(Option<Instant>, Found)>,
}

impl Discovery {
    /// Reads the sources; each counts once, however often it is named.
    ///
    /// # Errors
    /// The first that is none.
    pub(super) fn new(
        join: &[String],
        own: &str,
        dns_server: Option<SocketAddr>,
    ) -> Result<Self, SourceError> {
        let sources: Result<BTreeSet<Source>, _> = join.iter().map(|text| text.parse()).collect();
        let sources: Vec<_> = sources?.into_iter().collect();
        let nothing = Found { by_source: vec![Vec::new(); sources.len()], problems: Vec::new() };
        Ok(Self { sources, own: own.to_owned(), dns_server, last: Mutex::new((None, nothing)) })
    }

    pub(super) fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// The first source whose addresses may be others tomorrow, if there is one.
    pub(super) fn changing(&self) -> Option<&Source> {
        self.sources.iter().find(|source| !source.is_fixed())
    }

    /// What the sources give now; at most [`LOOKUP_PAUSE`] old.
    pub(super) async fn find(&self) -> Found {
        let mut last = self.last.lock().await;
        if last.0.is_none_or(|at| at.elapsed() >= LOOKUP_PAUSE) {
            let looked_up = join_all(self.sources.iter().map(|source| self.look_up(source))).await;
            last.1.problems.clear();
            for (at, Looked { addresses, problem }) in looked_up.into_iter().enumerate() {
                if let Some(mut addresses) = addresses {
                    addresses.truncate(ADDRESSES_MAX);
                    last.1.by_source[at] = addresses;
                }
                last.1.problems.extend(problem.map(|problem| format!("{}: {problem}", self.sources[at])));
            }
            last.0 = Some(Instant::now());
        }
        last.1.clone()
    }

    async fn look_up(&self, source: &Source) -> Looked {
        let looking = async {
            match source {
                Source::Fixed { host, port } => self.fixed(host, *port).await,
                Source::Dns { name, port } => self.dns(name, *port).await,
                Source::Srv(name) => self.srv(name).await,
                Source::File(path) => self.file(path).await,
            }
        };
        let late = |_| Looked::failed(format!("no answer within {} s", LOOKUP_MAX.as_secs()));
        timeout(LOOKUP_MAX, looking).await.unwrap_or_else(late)
    }

    /// What the system says of a name: hosts file, name servers, whatever it is set up for.
    async fn fixed(&self, host: &str, port: u16) -> Looked {
        let text = format!("{host}:{port}");
        if text == self.own || text.parse::<SocketAddr>().is_ok() {
            return Looked { addresses: Some(vec![text]), problem: None };
        }
        match tokio::net::lookup_host((host, port)).await {
            Ok(found) => Looked::found(found.map(|address| address.to_string())),
            Err(error) => Looked::failed(format!("the name cannot be looked up: {error}")),
        }
    }

    async fn dns(&self, name: &str, port: u16) -> Looked {
        let found = match self.resolver() {
            Ok(resolver) => addresses_of(&resolver, name).await,
            Err(error) => Err(error),
        };
        match found {
            Ok(found) => Looked::found(found.into_iter().map(|ip| SocketAddr::new(ip, port).to_string())),
            Err(error) => Looked::of_name(&error),
        }
    }

    async fn srv(&self, name: &str) -> Looked {
        let asked = async {
            let resolver = self.resolver()?;
            let answer = resolver.lookup(name, RecordType::SRV).await?;
            let targets: BTreeSet<_> = answer
                .answers()
                .iter()
                .filter_map(|record| match &record.data {
                    // The root says that there is no such service.
                    RData::SRV(srv) if !srv.target.is_root() => Some((srv.target.to_utf8(), srv.port)),
                    _ => None,
                })
                .take(ADDRESSES_MAX)
                .collect();
            let found = join_all(targets.iter().map(|(target, _)| addresses_of(&resolver, target))).await;
            Ok::<_, NetError>((targets, found))
        };
        let (targets, found) = match asked.await {
            Ok(answers) => answers,
            Err(error) => return Looked::of_name(&error),
        };
        let mut looked = Looked::found([]);
        for ((target, port), found) in targets.into_iter().zip(found) {
            match found {
                Ok(ips) => {
                    let addresses = ips.into_iter().map(|ip| SocketAddr::new(ip, port).to_string());
                    looked.addresses.get_or_insert_default().extend(addresses);
                }
                Err(error) => {
                    looked.problem.get_or_insert_with(|| format!("target {target}: {}", meaning(&error)));
                }
            }
        }
        looked.noted()
    }

    async fn file(&self, path: &Path) -> Looked {
        let path = path.to_owned();
        let read = tokio::task::spawn_blocking(move || read(&path)).await;
        let text = match read {
            Ok(Ok(text)) => text,
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => {
                return Looked::failed("there is no such file yet".into());
            }
            Ok(Err(error)) => return Looked::failed(format!("it cannot be read: {error}")),
            Err(error) => return Looked::failed(format!("it cannot be read: {error}")),
        };
        let (lines, problem) = lines_of(&text);
        let looked_up = join_all(lines.iter().map(|(line, host, port)| async move {
            let Looked { addresses, problem } = self.fixed(host, *port).await;
            (addresses, problem.map(|problem| format!("line {line}: {host}: {problem}")))
        }));
        let mut looked = Looked { addresses: Some(Vec::new()), problem };
        for (addresses, problem) in looked_up.await {
            looked.addresses.get_or_insert_default().extend(addresses.into_iter().flatten());
            looked.problem = looked.problem.or(problem);
        }
        looked.noted()
    }

    /// Made anew for each look-up: the system's settings change with its networks.
    fn resolver(&self) -> Result<TokioResolver, NetError> {
        let mut builder = match self.dns_server {
            None => Resolver::builder_tokio()?,
            Some(server) => {
                let mut connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()];
                for connection in &mut connections {
                    connection.port = server.port();
                }
                let server = NameServerConfig::new(server.ip(), true, connections.into());
                let config = ResolverConfig::from_name_servers(vec![server]);
                let mut builder = Resolver::builder_with_config(config, TokioRuntimeProvider::default());
                builder.options_mut().use_hosts_file = ResolveHosts::Never;
                builder
            }
        };
        let options = builder.options_mut();
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        options.timeout = ANSWER_MAX;
        options.cache_size = 0;
        builder.build()
    }
}

async fn addresses_of(resolver: &TokioResolver, name: &str) -> Result<Vec<IpAddr>, NetError> {
    Ok(resolver.lookup_ip(name).await?.iter().collect())
}

fn meaning(error: &NetError) -> String {
    if error.is_nx_domain() || error.is_no_records_found() {
        "the name has no records".into()
    } else {
        format!("the name cannot be looked up: {error}")
    }
}

fn read(path: &Path) -> std::io::Result<String> {
    let file = std::fs::File::open(path)?;
    if file.metadata()?.len() > FILE_BYTES_MAX {
        let why = format!("it is larger than {FILE_BYTES_MAX} bytes");
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, why));
    }
    let mut text = String::new();
    file.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

/// An address of a file, with its line.
type Line<'a> = (usize, &'a str, u16);

/// The addresses of a file with their lines, and the first line that is wrong.
fn lines_of(text: &str) -> (Vec<Line<'_>>, Option<String>) {
    let (mut lines, mut problem) = (Vec::new(), None);
    for (at, line) in text.lines().enumerate() {
        let said = line.split_once('#').map_or(line, |(said, _)| said).trim();
        match (said.parse(), host_and_port(said)) {
            _ if said.is_empty() => {}
            (Ok(Source::Fixed { .. }), Some((host, port))) => lines.push((at + 1, host, port)),
            _ => {
                problem.get_or_insert_with(|| format!("line {}: {said:?} is not HOST:PORT", at + 1));
            }
        }
    }
    (lines, problem)
}

/// What one look-up gave.
struct Looked {
    /// `None`: nothing is known but what was known before.
    addresses: Option<Vec<String>>,
    problem: Option<String>,
}

impl Looked {
    fn found(addresses: impl IntoIterator<Item = String>) -> Self {
        Self { addresses: Some(addresses.into_iter().collect()), problem: None }
    }

    fn failed(problem: String) -> Self {
        Self { addresses: None, problem: Some(problem) }
    }

    fn of_name(error: &NetError) -> Self {
        let gone = error.is_nx_domain() || error.is_no_records_found();
        Self { addresses: gone.then(Vec::new), problem: Some(meaning(error)) }
    }

    /// Says that there is nothing, if nothing else is wrong.
    fn noted(mut self) -> Self {
        if self.addresses.as_ref().is_some_and(Vec::is_empty) {
            self.problem.get_or_insert_with(|| "it names no address yet".into());
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_read_as_they_are_written_and_others_are_refused() {
        for (text, fixed) in [
            ("n1:7400", true),
            ("10.0.0.1:7400", true),
            ("[::1]:7400", true),
            ("dns:perennial.default.svc.cluster.local:7400", false),
            ("srv:_perennial._tcp.example.org", false),
            ("file:/etc/perennial/seeds", false),
        ] {
            let source: Source = text.parse().unwrap();
            assert_eq!((source.to_string().as_str(), source.is_fixed()), (text, fixed));
        }
        for (text, said) in [
            ("", "is not HOST:PORT"),
            ("n1", "is not HOST:PORT"),
            ("n1:0", "is not HOST:PORT"),
            ("n1:70000", "is not HOST:PORT"),
            ("::1:7400", "is not HOST:PORT"),
            ("[n1]:7400", "is not HOST:PORT"),
            ("http://n1:7400", "is not HOST:PORT"),
            ("consul:seeds:7400", "dns:NAME:PORT, srv:NAME or file:PATH"),
            ("dns:seeds", "names no port: write dns:NAME:PORT"),
            ("dns::7400", "names no port"),
            ("dns:a..b:7400", "\"a..b\" is no DNS name"),
            ("dns:[::1]:7400", "is no DNS name"),
            ("srv:_a._tcp.example:7400", "names a port"),
            ("srv:", "is no DNS name"),
            ("file:", "names no file"),
        ] {
            let why = text.parse::<Source>().unwrap_err().to_string();
            assert!(why.contains(said) && why.contains(&format!("{text:?}")), "{text}: {why}");
        }
    }

    #[tokio::test]
    async fn a_file_is_read_anew_and_what_is_wrong_with_it_is_told_by_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seeds");
        let discovery = Discovery::new(&[format!("file:{}", path.display())], "10.9.9.9:1", None).unwrap();
        let look = async || {
            let Looked { addresses, problem } = discovery.look_up(&discovery.sources[0]).await;
            (addresses, problem.unwrap_or_default())
        };
        let some = |addresses: &[&str]| Some(addresses.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(look().await, (None, "there is no such file yet".into()));
        std::fs::write(&path, "# nobody yet\n\n").unwrap();
        assert_eq!(look().await, (some(&[]), "it names no address yet".into()));
        std::fs::write(&path, "10.0.0.1:7400\n  [::1]:7401 # the second\r\n10.9.9.9:1\n").unwrap();
        assert_eq!(look().await, (some(&["10.0.0.1:7400", "[::1]:7401", "10.9.9.9:1"]), String::new()));
        std::fs::write(&path, "10.0.0.1:7400\n\n10.0.0.2\ndns:seeds:1\n10.0.0.3:7400\n").unwrap();
        let told = "line 3: \"10.0.0.2\" is not HOST:PORT".to_owned();
        assert_eq!(look().await, (some(&["10.0.0.1:7400", "10.0.0.3:7400"]), told));
        std::fs::write(&path, "n1.invalid:7400\n").unwrap();
        let (addresses, why) = look().await;
        assert_eq!(addresses, some(&[]));
        assert!(why.starts_with("line 1: n1.invalid: the name cannot be looked up"), "{why}");
        std::fs::write(&path, [0xFF, 0xFE, b'\n']).unwrap();
        assert!(matches!(look().await, (None, why) if why.contains("cannot be read")));
        std::fs::write(&path, vec![b'#'; FILE_BYTES_MAX as usize + 1]).unwrap();
        assert!(matches!(look().await, (None, why) if why.contains("larger than")));
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(matches!(look().await, (None, why) if why.contains("cannot be read")));
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_up_that_fails_keeps_what_was_found_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seeds");
        let name = format!("file:{}", path.display());
        let discovery = Discovery::new(&["10.0.0.2:1".into(), name.clone()], "", None).unwrap();
        std::fs::write(&path, "10.0.0.1:1\n").unwrap();
        let both = BTreeSet::from(["10.0.0.1:1".to_owned(), "10.0.0.2:1".to_owned()]);
        assert_eq!(discovery.find().await.addresses(), both);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(
            discovery.find().await.problems,
            Vec::<String>::new(),
            "it is not looked up again at once"
        );
        tokio::time::advance(LOOKUP_PAUSE).await;
        let found = discovery.find().await;
        assert_eq!(found.addresses(), both);
        assert_eq!(found.problems, [format!("{name}: there is no such file yet")]);
    }

    #[tokio::test]
    async fn a_name_stands_for_all_its_addresses() {
        let discovery = Discovery::new(&["localhost:7400".into()], "", None).unwrap();
        let found = discovery.find().await;
        let system: BTreeSet<_> =
            tokio::net::lookup_host("localhost:7400").await.unwrap().map(|a| a.to_string()).collect();
        assert!(!system.is_empty());
        assert_eq!(found.addresses(), system);
    }
}
