//! The file in which a cluster on this machine describes itself to clients.

use std::path::{Path, PathBuf};

use perennial::core::id::NodeId;
use perennial::node::TlsFiles;
use serde::{Deserialize, Serialize};

use super::HarnessError;
use crate::cli::CLUSTER_FILE;

/// A cluster as a client needs to know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterFile {
    /// Application's name.
    pub app: String,
    /// `host:port` of the nodes.
    pub addresses: Vec<String>,
    /// A client's certificate.
    pub tls: TlsEntry,
    /// The nodes.
    pub nodes: Vec<NodeEntry>,
}

/// Certificate files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsEntry {
    /// The authority's certificate.
    pub ca: PathBuf,
    /// The client's certificate.
    pub cert: PathBuf,
    /// The client's key.
    pub key: PathBuf,
}

/// A node on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeEntry {
    /// Name.
    pub id: NodeId,
    /// `host:port` for nodes and clients.
    pub address: String,
    /// `host:port` of its gateway.
    pub http: String,
    /// Process id; absent while it is down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
}

impl From<TlsFiles> for TlsEntry {
    fn from(files: TlsFiles) -> Self {
        Self { ca: files.ca, cert: files.cert, key: files.key }
    }
}
impl From<TlsEntry> for TlsFiles {
    fn from(entry: TlsEntry) -> Self {
        Self { ca: entry.ca, cert: entry.cert, key: entry.key }
    }
}

impl ClusterFile {
    /// Reads a description.
    ///
    /// # Errors
    /// [`HarnessError::File`].
    pub fn read(path: &Path) -> Result<Self, HarnessError> {
        let fail = |why: String| HarnessError::File { path: path.to_owned(), why };
        let text = std::fs::read_to_string(path).map_err(|e| fail(e.to_string()))?;
        toml::from_str(&text).map_err(|e| fail(e.message().to_owned()))
    }

    /// Writes it into a folder, replacing an older one in one step.
    ///
    /// # Errors
    /// [`HarnessError::Io`].
    pub fn write(&self, dir: &Path) -> Result<(), HarnessError> {
        let path = dir.join(CLUSTER_FILE);
        let text = toml::to_string(self).expect("names, numbers and paths made here can be written as TOML");
        let next = path.with_extension("toml.next");
        std::fs::write(&next, text)
            .and_then(|()| std::fs::rename(&next, &path))
            .map_err(HarnessError::io(format!("write {}", path.display())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_reads_back_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let entry = |id: &str, pid| NodeEntry {
            id: NodeId::new(id).unwrap(),
            address: "127.0.0.1:7001".into(),
            http: "127.0.0.1:8080".into(),
            pid,
        };
        let tls = TlsEntry { ca: "/c/ca.pem".into(), cert: "/c/x.pem".into(), key: "/c/x.key".into() };
        let file = ClusterFile {
            app: "shop".into(),
            addresses: vec!["127.0.0.1:7001".into()],
            tls,
            nodes: vec![entry("n1", Some(17)), entry("n2", None)],
        };
        file.write(dir.path()).unwrap();
        assert_eq!(ClusterFile::read(&dir.path().join(CLUSTER_FILE)).unwrap(), file);
    }
}
