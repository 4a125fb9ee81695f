//! Certificates of a cluster: an authority and what it signs.
//!
//! Owns the making of authorities, of node and client certificates, and their files: `ca.pem`, `ca.key`,
//! `NAME.pem`, `NAME.key`; keys are readable by their owner only. An authority is kept, and then never
//! overwritten, or forgets its key at once: nobody can issue a certificate of it later. Never used by a
//! node, which is given its certificates.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use perennial::core::id::NodeId;
use perennial::node::TlsFiles;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose as Usage, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// Length of a day.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// How far clocks of machines may be behind: a certificate is valid that long before it is made.
const CLOCKS_APART_MAX: Duration = Duration::from_secs(60 * 60);
/// Validity of throw-away certificates, in days.
const THROWAWAY_DAYS: u32 = 3650;
/// The authority's certificate.
const CA_CERT: &str = "ca.pem";
/// The authority's key.
const CA_KEY: &str = "ca.key";
/// The name of the authority's files, which nobody else can have.
const CA_STEM: &str = "ca";

/// Why certificates could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CertsError {
    /// The library refused.
    #[error("cannot make a certificate for {name}: {source}")]
    Make {
        /// Whose.
        name: String,
        /// Cause.
        source: rcgen::Error,
    },
    /// What was given as a folder is something else.
    #[error("{} is not a folder; name one with --dir", .0.display())]
    NoFolder(PathBuf),
    /// The folder cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// File.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// The authority cannot be read.
    #[error("cannot use the authority's {}: {why}; `cert ca` makes one", path.display())]
    Authority {
        /// File.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// An authority is there already.
    #[error(
        "{} exists and is not overwritten: certificates of the authority would be worthless; choose another folder",
        path.display()
    )]
    AuthorityExists {
        /// File.
        path: PathBuf,
    },
    /// The certificate is there already.
    #[error("{} exists: replace it with --renew", path.display())]
    Exists {
        /// File.
        path: PathBuf,
    },
    /// The name belongs to the authority.
    #[error("nobody can be named {CA_STEM:?}: the authority's files are")]
    Reserved,
    /// An extra name would pass for one of the cluster's.
    #[error("{0:?} cannot be added to a certificate: names under .perennial say who its holder is")]
    ReservedName(String),
}

/// Whom a certificate is for.
#[derive(Debug, Clone)]
pub enum Holder {
    /// A node: it serves and dials.
    Node {
        /// Its id.
        id: NodeId,
        /// Further DNS names and addresses at which it is reached.
        names: Vec<String>,
    },
    /// A client: it dials.
    Client(NodeId),
}

impl Holder {
    fn name(&self) -> &NodeId {
        match self {
            Self::Node { id, .. } => id,
            Self::Client(name) => name,
        }
    }
}

/// The authority of a cluster: whoever has its key decides who is a node and who a client.
pub struct Authority {
    pem: String,
    not_after: SystemTime,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes a new one that is valid for so many days.
    ///
    /// # Errors
    /// [`CertsError::Make`].
    pub fn make(name: &str, days: u32) -> Result<Self, CertsError> {
        let make = |source| CertsError::Make { name: "the authority".into(), source };
        let mut params = named(name);
        let not_after = valid_for(&mut params, days, None);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate().map_err(make)?;
        let pem = params.self_signed(&key).map_err(make)?.pem();
        Ok(Self { pem, not_after, issuer: Issuer::new(params, key) })
    }

    /// Writes `ca.pem` and `ca.key` into a folder, which is made if need be.
    ///
    /// # Errors
    /// [`CertsError::AuthorityExists`] if either is there.
    pub fn keep(&self, dir: &Path) -> Result<(), CertsError> {
        make_folder(dir)?;
        let (cert, key) = (dir.join(CA_CERT), dir.join(CA_KEY));
        if let Some(path) = [&cert, &key].into_iter().find(|path| path.exists()) {
            return Err(CertsError::AuthorityExists { path: path.clone() });
        }
        write(&key, &self.issuer.key().serialize_pem(), Mode::Secret)?;
        write(&cert, &self.pem, Mode::Public)
    }

    /// Reads `ca.pem` and `ca.key` from a folder.
    ///
    /// # Errors
    /// [`CertsError::Authority`] naming the file.
    pub fn load(dir: &Path) -> Result<Self, CertsError> {
        let (cert, key) = (dir.join(CA_CERT), dir.join(CA_KEY));
        let wrong = |path: &Path, why: String| CertsError::Authority { path: path.to_owned(), why };
        let read =
            |path: &Path| std::fs::read_to_string(path).map_err(|error| wrong(path, error.to_string()));
        let (pem, key_pem) = (read(&cert)?, read(&key)?);
        let pair = KeyPair::from_pem(&key_pem).map_err(|error| wrong(&key, error.to_string()))?;
        let bad = |why: String| wrong(&cert, why);
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| bad(error.to_string()))?;
        let (_, parsed) =
            x509_parser::parse_x509_certificate(&der).map_err(|error| bad(error.to_string()))?;
        if parsed.public_key().raw != pair.subject_public_key_info() {
            return Err(bad("it is not the certificate of the key beside it".into()));
        }
        let seconds = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
        let not_after = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        if not_after < SystemTime::now() {
            return Err(bad("it has expired".into()));
        }
        let issuer = Issuer::from_ca_cert_der(&der, pair).map_err(|error| bad(error.to_string()))?;
        Ok(Self { pem, not_after, issuer })
    }

    /// Signs a certificate and writes `NAME.pem` and `NAME.key` into a folder that holds `ca.pem`. Files
    /// that are there are kept unless they are to be renewed.
    ///
    /// # Errors
    /// [`CertsError`]; nothing was written unless a file cannot be.
    pub fn issue(&self, dir: &Path, holder: &Holder, days: u32, renew: bool) -> Result<TlsFiles, CertsError> {
        let name = holder.name();
        if name.as_str() == CA_STEM {
            return Err(CertsError::Reserved);
        }
        let files = TlsFiles {
            ca: dir.join(CA_CERT),
            cert: dir.join(format!("{name}.pem")),
            key: dir.join(format!("{name}.key")),
        };
        if let Some(path) = [&files.cert, &files.key].into_iter().find(|path| !renew && path.exists()) {
            return Err(CertsError::Exists { path: path.clone() });
        }
        let (sans, usages): (Vec<String>, _) = match holder {
            Holder::Node { id, names } => {
                let ours =
                    |name: &&String| name.to_ascii_lowercase().trim_end_matches('.').ends_with(".perennial");
                if let Some(name) = names.iter().find(ours) {
                    return Err(CertsError::ReservedName(name.clone()));
                }
                let own = format!("{id}.node.perennial");
                let sans = [own].into_iter().chain(names.iter().cloned()).collect();
                (sans, vec![Usage::ServerAuth, Usage::ClientAuth])
            }
            Holder::Client(name) => (vec![format!("{name}.client.perennial")], vec![Usage::ClientAuth]),
        };
        let make = |source| CertsError::Make { name: name.to_string(), source };
        let mut params = named(name.as_str());
        valid_for(&mut params, days, Some(self.not_after));
        params.subject_alt_names = CertificateParams::new(sans).map_err(make)?.subject_alt_names;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages;
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().map_err(make)?;
        let cert = params.signed_by(&key, &self.issuer).map_err(make)?;
        write(&files.cert, &cert.pem(), Mode::Public)?;
        write(&files.key, &key.serialize_pem(), Mode::Secret)?;
        Ok(files)
    }
}

/// Certificates of a cluster and of one client.
#[derive(Debug, Clone)]
pub struct Throwaway {
    /// By node.
    pub nodes: BTreeMap<NodeId, TlsFiles>,
    /// The client's.
    pub client: TlsFiles,
}

/// Makes an authority, a certificate for each node and one for the client `client`, in `dir`:
/// `ca.pem`, `<name>.pem` and `<name>.key` (mode 0600). The authority's own key is not kept, and files of
/// an earlier one are replaced.
///
/// # Errors
/// [`CertsError`]; files written so far stay.
pub fn throwaway(dir: &Path, nodes: &[NodeId], client: &str) -> Result<Throwaway, CertsError> {
    let kept = dir.join(CA_KEY);
    if kept.exists() {
        return Err(CertsError::AuthorityExists { path: kept });
    }
    make_folder(dir)?;
    let ca = Authority::make("perennial throw-away authority", THROWAWAY_DAYS)?;
    write(&dir.join(CA_CERT), &ca.pem, Mode::Public)?;
    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let mut issued = BTreeMap::new();
    for node in nodes {
        let holder = Holder::Node { id: node.clone(), names: names.clone() };
        issued.insert(node.clone(), ca.issue(dir, &holder, THROWAWAY_DAYS, true)?);
    }
    let client = NodeId::new(client).map_err(|_| CertsError::ReservedName(client.to_owned()))?;
    let client = ca.issue(dir, &Holder::Client(client), THROWAWAY_DAYS, true)?;
    Ok(Throwaway { nodes: issued, client })
}

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

/// From now on for so many days, but not beyond `end`; gives when it ends.
fn valid_for(params: &mut CertificateParams, days: u32, end: Option<SystemTime>) -> SystemTime {
    let now = SystemTime::now();
    let wanted = now + DAY * days;
    let not_after = end.map_or(wanted, |end| wanted.min(end));
    params.not_before = (now - CLOCKS_APART_MAX).into();
    params.not_after = not_after.into();
    not_after
}

fn make_folder(dir: &Path) -> Result<(), CertsError> {
    if dir.exists() && !dir.is_dir() {
        return Err(CertsError::NoFolder(dir.to_owned()));
    }
    std::fs::create_dir_all(dir).map_err(|source| CertsError::Write { path: dir.to_owned(), source })
}

#[derive(Clone, Copy)]
enum Mode {
    Public = 0o644,
    Secret = 0o600,
}

/// Writes beside and renames, so that a file is there whole or not at all, with its mode.
fn write(path: &Path, text: &str, mode: Mode) -> Result<(), CertsError> {
    let beside = path.with_added_extension("new");
    let written = || {
        match std::fs::remove_file(&beside) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(mode as u32).open(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&beside, path)
    };
    written().map_err(|source| CertsError::Write { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn id(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn keys_are_private_and_every_file_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let nodes = [id("n1"), id("n2")];
        let _first = throwaway(dir.path(), &nodes, "cli").unwrap();
        let made = throwaway(dir.path(), &nodes, "cli").unwrap();
        for files in made.nodes.values().chain([&made.client]) {
            assert_eq!(mode(&files.key), 0o600);
            assert!(std::fs::read_to_string(&files.cert).unwrap().contains("BEGIN CERTIFICATE"));
            assert!(files.ca.exists());
        }
        assert!(!dir.path().join("ca.key").exists());
    }

    #[test]
    fn a_kept_authority_signs_later_and_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        Authority::make("shop", 30).unwrap().keep(dir.path()).unwrap();
        assert_eq!(mode(&dir.path().join("ca.key")), 0o600);
        let before = std::fs::read(dir.path().join("ca.key")).unwrap();
        let again = Authority::make("shop", 30).unwrap().keep(dir.path());
        assert!(matches!(again, Err(CertsError::AuthorityExists { .. })));
        let thrown = throwaway(dir.path(), &[id("n1")], "cli");
        assert!(matches!(thrown, Err(CertsError::AuthorityExists { .. })));
        assert_eq!(std::fs::read(dir.path().join("ca.key")).unwrap(), before);

        let ca = Authority::load(dir.path()).unwrap();
        let n1 = Holder::Node { id: id("n1"), names: vec!["db1.example".into()] };
        let files = ca.issue(dir.path(), &n1, 365, false).unwrap();
        let first = std::fs::read(&files.key).unwrap();
        assert!(matches!(ca.issue(dir.path(), &n1, 365, false), Err(CertsError::Exists { .. })));
        ca.issue(dir.path(), &n1, 365, true).unwrap();
        assert_ne!(std::fs::read(&files.key).unwrap(), first, "renewed");
        let identity = perennial::link::tls::Identity::read(&files.ca, &files.cert, &files.key).unwrap();
        perennial::link::tls::Tls::new(&identity).expect("the new certificate is good under the authority");
        let der = CertificateDer::from_pem_file(&files.cert).unwrap();
        let (_, cert) = x509_parser::parse_x509_certificate(&der).unwrap();
        let days = (cert.validity().not_after.timestamp() - cert.validity().not_before.timestamp()) / 86_400;
        assert!((29..=30).contains(&days), "no longer than the authority: {days}");
    }

    #[test]
    fn names_of_the_cluster_are_given_by_the_authority_alone() {
        let dir = tempfile::tempdir().unwrap();
        let ca = Authority::make("shop", 30).unwrap();
        ca.keep(dir.path()).unwrap();
        let posing = Holder::Node { id: id("n1"), names: vec!["N2.node.Perennial.".into()] };
        assert!(matches!(ca.issue(dir.path(), &posing, 1, false), Err(CertsError::ReservedName(_))));
        let named_ca = Holder::Client(id("ca"));
        assert!(matches!(ca.issue(dir.path(), &named_ca, 1, true), Err(CertsError::Reserved)));
        let other = tempfile::tempdir().unwrap();
        Authority::make("other", 30).unwrap().keep(other.path()).unwrap();
        std::fs::copy(other.path().join("ca.pem"), dir.path().join("ca.pem")).unwrap();
        assert!(
            matches!(Authority::load(dir.path()), Err(CertsError::Authority { .. })),
            "key and certificate"
        );
    }
}
