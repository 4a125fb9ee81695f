//! Who is who: the cluster's certificate authority, certificates of nodes and clients, mutual TLS.
//!
//! Owns certificate names, their files and the rustls settings. Never decides who is a member: a
//! certificate proves a name, [`Admission`](super::Admission) judges it.
//!
//! A node's certificate names `<node-id>.node.perennial`, a client's `<name>.client.perennial`; exactly
//! one such name per certificate. TLS 1.3 only, client certificates mandatory, no session resumption.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Once};

use perennial_core::id::NodeId;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Ending of the name in a node's certificate.
const NODE_SUFFIX: &str = ".node.perennial";
/// Ending of the name in a client's certificate.
const CLIENT_SUFFIX: &str = ".client.perennial";
/// Names under this ending are given by the authority alone.
const OWN_SUFFIX: &str = ".perennial";
/// Sent when the node behind an address is not known yet; every node's certificate is then good.
const ANY_NODE: &str = "any.node.perennial";

const CA_CERTIFICATE: &str = "ca.pem";
const CA_KEY: &str = "ca.key";

/// What goes wrong with certificates and their files.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read or written.
    #[error("cannot use {path}: {source}", path = .path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file holds no certificate or key.
    #[error("{path} is not a PEM file with a certificate or key: {source}", path = .path.display())]
    Pem {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: rustls_pki_types::pem::Error,
    },
    /// A certificate cannot be made.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// rustls refuses certificate, key or authority.
    #[error("certificate and key cannot be used together: {0}")]
    Use(#[from] rustls::Error),
    /// The authority cannot verify anything.
    #[error("the authority cannot be used to verify: {0}")]
    Verifier(#[from] rustls::client::VerifierBuilderError),
    /// The own certificate is not one of the own authority's.
    #[error(
        "the certificate is not valid under the authority's: use both from one cluster, and renew it if it has expired ({0})"
    )]
    Untrusted(rustls::Error),
    /// The certificate does not say who it is.
    #[error(
        "the certificate must have exactly one name of the form <id>{NODE_SUFFIX} or <name>{CLIENT_SUFFIX}: issue it with the cluster's authority"
    )]
    Nameless,
    /// The client name is not a DNS label.
    #[error("client name {0:?} is not valid: use 1 to 63 characters of a-z 0-9 and - (a DNS label)")]
    ClientName(String),
    /// An extra name would pass for one of ours.
    #[error("name {0:?} cannot be added to a certificate: {OWN_SUFFIX} names are given by the authority")]
    ReservedName(String),
}

/// Installs the process's one crypto provider (aws-lc-rs); calling it again does nothing. To be called
/// before anything else uses TLS.
pub fn install_provider() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // An error means that the process has chosen already; ours is passed explicitly everywhere.
        let _ = aws_lc_rs::default_provider().install_default();
    });
}

/// Who is on the other side, proven by a certificate of the cluster's authority.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Peer {
    /// A node.
    Node(NodeId),
    /// A client, by name.
    Client(String),
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(id) => write!(f, "node {id}"),
            Self::Client(name) => write!(f, "client {name}"),
        }
    }
}

impl Peer {
    /// Reads the name a certificate proves. The caller has verified the chain.
    ///
    /// # Errors
    /// [`TlsError::Nameless`] when there is not exactly one.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, TlsError> {
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| TlsError::Nameless)?;
        let names = parsed.subject_alternative_name().map_err(|_| TlsError::Nameless)?;
        let mut peers =
            names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
                GeneralName::DNSName(name) if name.ends_with(OWN_SUFFIX) => Some(Self::from_name(name)),
                _ => None,
            });
        match (peers.next(), peers.next()) {
            (Some(Some(peer)), None) => Ok(peer),
            _ => Err(TlsError::Nameless),
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        if let Some(id) = name.strip_suffix(NODE_SUFFIX) {
            NodeId::new(id).ok().map(Self::Node)
        } else {
            let name = name.strip_suffix(CLIENT_SUFFIX)?;
            NodeId::new(name).ok().map(|label| Self::Client(label.as_str().to_owned()))
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Node(id) => format!("{id}{NODE_SUFFIX}"),
            Self::Client(name) => format!("{name}{CLIENT_SUFFIX}"),
        }
    }

    /// Stem of the files the identity is kept in.
    fn stem(&self) -> &'static str {
        match self {
            Self::Node(_) => "node",
            Self::Client(_) => "client",
        }
    }
}

/// The cluster's certificate authority: whoever holds its key decides who can reach the cluster.
pub struct Ca {
    certificate: CertificateDer<'static>,
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl fmt::Debug for Ca {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ca")
    }
}

impl Ca {
    /// Makes a new authority with a new key.
    ///
    /// # Errors
    /// [`TlsError::Make`] when the crypto library fails.
    pub fn generate() -> Result<Self, TlsError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = named("perennial cluster authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?;
        Ok(Self {
            certificate: certificate.der().clone(),
            pem: certificate.pem(),
            issuer: Issuer::new(params, key),
        })
    }

    /// Reads `ca.pem` and `ca.key` from a folder.
    ///
    /// # Errors
    /// [`TlsError`] naming the file.
    pub fn load(folder: &Path) -> Result<Self, TlsError> {
        let pem = read_text(&folder.join(CA_CERTIFICATE))?;
        let certificate = certificates(&folder.join(CA_CERTIFICATE))?.swap_remove(0);
        let key = KeyPair::from_pem(&read_text(&folder.join(CA_KEY))?)?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
        Ok(Self { certificate, pem, issuer })
    }

    /// Writes `ca.pem` and `ca.key` (mode 0600) into a folder, which is made if need be. An authority
    /// that is there already is never overwritten.
    ///
    /// # Errors
    /// [`TlsError::File`], also when the files exist.
    pub fn save(&self, folder: &Path) -> Result<(), TlsError> {
        make_folder(folder)?;
        write(&folder.join(CA_KEY), &self.issuer.key().serialize_pem(), Mode::NewSecret)?;
        write(&folder.join(CA_CERTIFICATE), &self.pem, Mode::Public)
    }

    /// Issues a node's certificate. `names` are further DNS names or addresses at which it is reached.
    ///
    /// # Errors
    /// [`TlsError::ReservedName`] for a name under `.perennial`, [`TlsError::Make`] for an invalid one.
    pub fn issue_node(&self, node: &NodeId, names: &[String]) -> Result<Identity, TlsError> {
        self.issue(Peer::Node(node.clone()), names)
    }

    /// Issues a client's certificate.
    ///
    /// # Errors
    /// [`TlsError::ClientName`] when the name is not a DNS label.
    pub fn issue_client(&self, name: &str) -> Result<Identity, TlsError> {
        NodeId::new(name).map_err(|_| TlsError::ClientName(name.to_owned()))?;
        self.issue(Peer::Client(name.to_owned()), &[])
    }

    fn issue(&self, peer: Peer, names: &[String]) -> Result<Identity, TlsError> {
        let reserved = |name: &&String| name.to_ascii_lowercase().trim_end_matches('.').ends_with(OWN_SUFFIX);
        if let Some(name) = names.iter().find(reserved) {
            return Err(TlsError::ReservedName(name.clone()));
        }
        let own = peer.name();
        let mut all = vec![own.clone()];
        all.extend_from_slice(names);
        let mut params = CertificateParams::new(all)?;
        params.distinguished_name = named(&own);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match peer {
            Peer::Node(_) => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
            Peer::Client(_) => vec![ExtendedKeyUsagePurpose::ClientAuth],
        };
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Identity {
            peer,
            ca: vec![self.certificate.clone()],
            ca_pem: self.pem.clone(),
            chain: vec![certificate.der().clone()],
            chain_pem: certificate.pem(),
            key: PrivateKeyDer::try_from(key.serialize_der())
                .map_err(|_| rcgen::Error::CouldNotParseKeyPair)?,
            key_pem: key.serialize_pem(),
        })
    }
}

/// The subject is for people; the alternative name is what is checked.
fn named(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// A certificate with its key, and the authority it trusts.
pub struct Identity {
    peer: Peer,
    ca: Vec<CertificateDer<'static>>,
    ca_pem: String,
    chain: Vec<CertificateDer<'static>>,
    chain_pem: String,
    key: PrivateKeyDer<'static>,
    key_pem: String,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl Identity {
    /// Who this identity proves to be.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Reads `ca.pem`, `node.pem` and `node.key` from a folder.
    ///
    /// # Errors
    /// [`TlsError`] naming the file.
    pub fn load_node(folder: &Path) -> Result<Self, TlsError> {
        Self::load(folder, "node")
    }

    /// Reads `ca.pem`, `client.pem` and `client.key` from a folder.
    ///
    /// # Errors
    /// [`TlsError`] naming the file.
    pub fn load_client(folder: &Path) -> Result<Self, TlsError> {
        Self::load(folder, "client")
    }

    fn load(folder: &Path, stem: &str) -> Result<Self, TlsError> {
        let file = |name: String| folder.join(name);
        Self::read(&folder.join(CA_CERTIFICATE), &file(format!("{stem}.pem")), &file(format!("{stem}.key")))
    }

    /// Reads the authority's certificate, the own certificate and its key from three files.
    ///
    /// # Errors
    /// [`TlsError`] naming the file.
    pub fn read(ca: &Path, certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let chain = certificates(certificate)?;
        let key_pem = read_text(key)?;
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes())
            .map_err(|source| TlsError::Pem { path: key.to_owned(), source })?;
        Ok(Self {
            peer: Peer::of(&chain[0])?,
            ca: certificates(ca)?,
            ca_pem: read_text(ca)?,
            chain,
            chain_pem: read_text(certificate)?,
            key,
            key_pem,
        })
    }

    /// Writes `ca.pem` and `node.pem`, `node.key` (mode 0600), or `client.pem`, `client.key`, into a
    /// folder, which is made if need be. Earlier files are replaced.
    ///
    /// # Errors
    /// [`TlsError::File`] naming the file.
    pub fn save(&self, folder: &Path) -> Result<(), TlsError> {
        make_folder(folder)?;
        let stem = self.peer.stem();
        write(&folder.join(CA_CERTIFICATE), &self.ca_pem, Mode::Public)?;
        write(&folder.join(format!("{stem}.pem")), &self.chain_pem, Mode::Public)?;
        write(&folder.join(format!("{stem}.key")), &self.key_pem, Mode::Secret)
    }
}

fn make_folder(folder: &Path) -> Result<(), TlsError> {
    fs::create_dir_all(folder).map_err(|source| TlsError::File { path: folder.to_owned(), source })
}

fn read_text(path: &Path) -> Result<String, TlsError> {
    fs::read_to_string(path).map_err(|source| TlsError::File { path: path.to_owned(), source })
}

/// At least one certificate.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |source| TlsError::Pem { path: path.to_owned(), source };
    let text = read_text(path)?;
    let found: Vec<_> =
        CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<_, _>>().map_err(wrong)?;
    if found.is_empty() { Err(wrong(rustls_pki_types::pem::Error::NoItemsFound)) } else { Ok(found) }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Public,
    Secret,
    NewSecret,
}

/// Writes beside and renames, so that a file is there whole or not at all.
fn write(path: &Path, text: &str, mode: Mode) -> Result<(), TlsError> {
    let write = || {
        if mode == Mode::NewSecret && path.exists() {
            return Err(io::Error::from(io::ErrorKind::AlreadyExists));
        }
        let beside = path.with_extension("new");
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = fs::OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(
            &mut options,
            if mode == Mode::Public { 0o644 } else { 0o600 },
        );
        let mut file = options.open(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    write().map_err(|source| TlsError::File { path: path.to_owned(), source })
}

/// An identity made ready for handshakes, as both sides of them.
#[derive(Clone)]
pub struct Tls {
    me: Peer,
    pub(crate) server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("me", &self.me).finish_non_exhaustive()
    }
}

impl Tls {
    /// Checks an identity and makes it ready.
    ///
    /// # Errors
    /// [`TlsError`] when certificate, key and authority do not fit.
    pub fn new(identity: &Identity) -> Result<Self, TlsError> {
        install_provider();
        let provider = Arc::new(aws_lc_rs::default_provider());
        let mut roots = RootCertStore::empty();
        for certificate in &identity.ca {
            roots.add(certificate.clone())?;
        }
        let roots = Arc::new(roots);
        let versions = &[&rustls::version::TLS13];
        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build()?;
        if let [own, intermediates @ ..] = identity.chain.as_slice() {
            clients.verify_client_cert(own, intermediates, UnixTime::now()).map_err(TlsError::Untrusted)?;
        }
        let mut server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)?
            .with_client_cert_verifier(clients)
            .with_single_cert(identity.chain.clone(), identity.key.clone_key())?;
        // Links live long: resumption would save nothing and keeps secrets in memory.
        server.send_tls13_tickets = 0;
        server.session_storage = Arc::new(NoServerSessionStorage {});
        let nodes = WebPkiServerVerifier::builder_with_provider(roots, provider.clone()).build()?;
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(NodeVerifier(nodes)))
            .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())?;
        client.resumption = Resumption::disabled();
        Ok(Self { me: identity.peer.clone(), server: Arc::new(server), client: Arc::new(client) })
    }

    /// Who this side proves to be.
    #[must_use]
    pub fn me(&self) -> &Peer {
        &self.me
    }

    /// Settings and server name for dialing a node, or whichever node is at an address.
    pub(crate) fn dial(&self, node: Option<&NodeId>) -> (Arc<ClientConfig>, ServerName<'static>) {
        let name = node.map_or_else(|| ANY_NODE.to_owned(), |id| Peer::Node(id.clone()).name());
        let name = ServerName::try_from(name).expect("a node id is a DNS label");
        (self.client.clone(), name)
    }
}

/// Verifies a server's chain and name; for [`ANY_NODE`] any node's name will do.
#[derive(Debug)]
struct NodeVerifier(Arc<WebPkiServerVerifier>);

impl ServerCertVerifier for NodeVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let any = matches!(server_name, ServerName::DnsName(name) if name.as_ref() == ANY_NODE);
        if !any {
            return self.0.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        }
        let not_a_node = rustls::Error::InvalidCertificate(CertificateError::NotValidForName);
        let Ok(peer @ Peer::Node(_)) = Peer::of(end_entity) else {
            return Err(not_a_node);
        };
        let own = ServerName::try_from(peer.name()).map_err(|_| not_a_node)?;
        self.0.verify_server_cert(end_entity, intermediates, &own, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: &str) -> NodeId {
        NodeId::new(id).unwrap()
    }

    #[test]
    fn certificates_say_who_they_are_also_after_a_round_through_files() {
        let folder = tempfile::tempdir().unwrap();
        let ca = Ca::generate().unwrap();
        ca.save(folder.path()).unwrap();
        assert!(
            matches!(ca.save(folder.path()), Err(TlsError::File { .. })),
            "an authority is never replaced"
        );
        let again = Ca::load(folder.path()).unwrap();
        let names = ["db.example.org".to_owned(), "10.0.0.7".to_owned()];
        for issued in [again.issue_node(&node("n1"), &names), again.issue_client("shell")] {
            let issued = issued.unwrap();
            issued.save(folder.path()).unwrap();
            assert_eq!(&Peer::of(&issued.chain[0]).unwrap(), issued.peer());
            Tls::new(&issued).unwrap();
        }
        assert_eq!(Identity::load_node(folder.path()).unwrap().peer(), &Peer::Node(node("n1")));
        let client = Identity::load_client(folder.path()).unwrap();
        assert_eq!(client.peer(), &Peer::Client("shell".to_owned()));
        assert_eq!(Tls::new(&client).unwrap().me().to_string(), "client shell");
    }

    #[cfg(unix)]
    #[test]
    fn keys_are_readable_by_their_owner_alone() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let ca = Ca::generate().unwrap();
        ca.save(folder.path()).unwrap();
        ca.issue_node(&node("n1"), &[]).unwrap().save(folder.path()).unwrap();
        for key in ["ca.key", "node.key"] {
            let mode = fs::metadata(folder.path().join(key)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{key}");
        }
    }

    #[test]
    fn names_that_would_pass_for_ours_are_refused() {
        let ca = Ca::generate().unwrap();
        for name in ["n2.node.perennial", "N2.Node.Perennial", "x.perennial."] {
            assert!(matches!(ca.issue_node(&node("n1"), &[name.to_owned()]), Err(TlsError::ReservedName(_))));
        }
        assert!(matches!(ca.issue_client("a.b"), Err(TlsError::ClientName(_))));
    }

    #[test]
    fn a_certificate_with_two_names_of_ours_proves_neither() {
        let key = KeyPair::generate().unwrap();
        let names = ["a.node.perennial".to_owned(), "b.node.perennial".to_owned()];
        let two = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
        assert!(matches!(Peer::of(two.der()), Err(TlsError::Nameless)));
        let none = CertificateParams::new(["example.org".to_owned()]).unwrap().self_signed(&key).unwrap();
        assert!(matches!(Peer::of(none.der()), Err(TlsError::Nameless)));
    }
}
