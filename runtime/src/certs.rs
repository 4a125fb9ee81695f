//! Certificates for clusters that live on one machine for a while.
//!
//! Owns the making of an authority that forgets its key: nobody can issue a certificate of it later.
//! Never used by a node that is given certificates.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use perennial::core::id::NodeId;
use perennial::node::TlsFiles;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose as Usage, IsCa, KeyPair, KeyUsagePurpose,
};

/// Why certificates could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CertsError {
    /// The library refused.
    #[error("cannot make a certificate for {name}: {source}")]
    Make {
        /// Whose.
        name: String,
        /// Cause.
        source: rcgen::Error,
    },
    /// The folder cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// File.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
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
/// `ca.pem`, `<name>.pem` and `<name>.key` (mode 0600). The authority's own key is not kept.
///
/// # Errors
/// [`CertsError`]; files written so far stay.
pub fn throwaway(dir: &Path, nodes: &[NodeId], client: &str) -> Result<Throwaway, CertsError> {
    std::fs::create_dir_all(dir).map_err(|source| CertsError::Write { path: dir.to_owned(), source })?;
    let make = |source| CertsError::Make { name: "the authority".into(), source };
    let mut params = named("perennial throw-away authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().map_err(make)?).map_err(make)?;
    write(&dir.join("ca.pem"), &ca.pem(), 0o644)?;

    let issue = |name: &str, sans: Vec<String>, usages: Vec<Usage>| {
        let make = |source| CertsError::Make { name: name.into(), source };
        let mut params = named(name);
        params.subject_alt_names = CertificateParams::new(sans).map_err(make)?.subject_alt_names;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages;
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().map_err(make)?;
        let cert = params.signed_by(&key, &ca).map_err(make)?;
        let files = TlsFiles {
            ca: dir.join("ca.pem"),
            cert: dir.join(format!("{name}.pem")),
            key: dir.join(format!("{name}.key")),
        };
        write(&files.cert, &cert.pem(), 0o644)?;
        write(&files.key, &key.serialize_pem(), 0o600)?;
        Ok(files)
    };
    let mut issued = BTreeMap::new();
    for node in nodes {
        let sans = vec![format!("{node}.node.perennial"), "localhost".into(), "127.0.0.1".into()];
        let files = issue(node.as_str(), sans, vec![Usage::ServerAuth, Usage::ClientAuth])?;
        issued.insert(node.clone(), files);
    }
    let client = issue(client, vec![format!("{client}.client.perennial")], vec![Usage::ClientAuth])?;
    Ok(Throwaway { nodes: issued, client })
}

fn named(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), CertsError> {
    let written = || {
        // A file of an earlier start keeps its mode when truncated, so it goes first.
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(text.as_bytes())
    };
    written().map_err(|source| CertsError::Write { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn keys_are_private_and_every_file_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let nodes = ["n1", "n2"].map(|n| NodeId::new(n).unwrap());
        let _first = throwaway(dir.path(), &nodes, "cli").unwrap();
        let made = throwaway(dir.path(), &nodes, "cli").unwrap();
        for files in made.nodes.values().chain([&made.client]) {
            let mode = std::fs::metadata(&files.key).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            assert!(std::fs::read_to_string(&files.cert).unwrap().contains("BEGIN CERTIFICATE"));
            assert!(files.ca.exists());
        }
        assert!(!dir.path().join("ca.key").exists());
    }
}
