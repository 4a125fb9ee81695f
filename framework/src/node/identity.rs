//! The data folder: who uses it, and which cluster it belongs to.
//!
//! Owns the lock file and the identity file. The identity is written whole, flushed and renamed into
//! place, so it is either the old or the new one. Never touches logs or rows.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use perennial_core::id::NodeId;
use perennial_core::placement::ClusterState;
use serde::{Deserialize, Serialize};

use super::StartError;

const MAGIC: &[u8] = b"perennial identity 1\n";

/// What a node must not forget about itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Identity {
    /// The node that the folder belongs to.
    pub(super) node: NodeId,
    /// Forming under way that this node has agreed to.
    pub(super) promise: Option<Promise>,
    /// The cluster as it was formed; `None` before.
    pub(super) formed: Option<ClusterState>,
}

/// Consent to being in a cluster that `initiator` forms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Promise {
    pub(super) initiator: NodeId,
    pub(super) nonce: u64,
}

/// A data folder in use by this process alone.
pub(super) struct Folder {
    path: PathBuf,
    /// Held for as long as the folder is used; `None` for that of a simulated machine, which stores nothing.
    lock: Option<File>,
}

impl Folder {
    /// Opens or makes the folder and locks it.
    pub(super) fn open(path: &Path) -> Result<Self, StartError> {
        let failed = |why: String| StartError::Data { path: path.to_owned(), why };
        if path.exists() && !path.is_dir() {
            return Err(failed("it is not a folder; name one with --data".into()));
        }
        make(path).map_err(|e| {
            failed(format!("it cannot be made: {e}; name a folder this user may write with --data"))
        })?;
        let foreign = || -> std::io::Result<Option<std::ffi::OsString>> {
            if path.join("identity").exists() {
                return Ok(None);
            }
            for entry in std::fs::read_dir(path)? {
                let name = entry?.file_name();
                if !matches!(
                    name.to_str(),
                    Some("lock" | "identity.new" | "log" | "rows" | "rows.damaged" | "tls")
                ) {
                    return Ok(Some(name));
                }
            }
            Ok(None)
        };
        match foreign() {
            Ok(None) => {}
            Ok(Some(name)) => {
                return Err(failed(format!(
                    "it holds {} and no identity of a node, so it is not a data folder; name an empty one with --data",
                    name.display()
                )));
            }
            Err(e) => return Err(failed(format!("it cannot be read: {e}"))),
        }
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path.join("lock"))
            .map_err(|e| {
                failed(format!("it cannot be written: {e}; name a folder this user may write with --data"))
            })?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), lock: Some(lock) }),
            Err(TryLockError::WouldBlock) => Err(failed(
                "another process uses it; stop that one or name another folder with --data".into(),
            )),
            Err(TryLockError::Error(e)) => Err(failed(format!("it cannot be locked: {e}"))),
        }
    }

    /// No folder: whoever starts the node knows its identity.
    pub(super) fn none() -> Self {
        Self { path: PathBuf::new(), lock: None }
    }

    /// Lets another node have the folder; this one does not touch it any more.
    pub(super) fn release(&self) {
        // Should it fail, the lock goes with the process.
        let _ = self.lock.as_ref().map(File::unlock);
    }

    /// The identity in the folder, or a new one for `node`.
    pub(super) fn identity(&self, node: &NodeId) -> Result<Identity, StartError> {
        let failed = |why: String| StartError::Data { path: self.path.clone(), why };
        let bytes = match std::fs::read(self.path.join("identity")) {
            Ok(bytes) => bytes,
            // It is durable before there is anything else.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && self.path.join("log").exists() => {
                return Err(failed(
                    "its identity is lost, though it holds a log: votes and acknowledged turns; restore the folder \
                     from a copy, or start with an empty one under a node id of its own"
                        .into(),
                ));
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Identity { node: node.clone(), promise: None, formed: None });
            }
            Err(e) => return Err(failed(format!("its identity cannot be read: {e}"))),
        };
        let damaged = || {
            failed(
                "its identity is damaged; restore the folder from a copy, or start with an empty one".into(),
            )
        };
        let body = bytes.strip_prefix(MAGIC).ok_or_else(damaged)?;
        let (sum, body) = body.split_first_chunk::<16>().ok_or_else(damaged)?;
        if u128::from_be_bytes(*sum) != perennial_core::hash::wide_hash(body) {
            return Err(damaged());
        }
        let identity: Identity = postcard::from_bytes(body).map_err(|_| damaged())?;
        if identity.node != *node {
            let why =
                format!("it belongs to node {}, this is {node}; name this node's own folder", identity.node);
            return Err(failed(why));
        }
        Ok(identity)
    }

    /// Replaces the identity; it is durable when this returns.
    pub(super) fn store(&self, identity: &Identity) -> std::io::Result<()> {
        if self.lock.is_none() {
            return Ok(());
        }
        let body = postcard::to_stdvec(identity).expect("an identity always encodes");
        let new = self.path.join("identity.new");
        let mut file = File::create(&new)?;
        file.write_all(MAGIC)?;
        file.write_all(&perennial_core::hash::wide_hash(&body).to_be_bytes())?;
        file.write_all(&body)?;
        file.sync_all()?;
        std::fs::rename(new, self.path.join("identity"))?;
        File::open(&self.path)?.sync_all()
    }

    /// A path inside the folder.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

/// Makes the folder, where there is none, for its owner only: it holds all state, not encrypted.
fn make(path: &Path) -> std::io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let mut folder = std::fs::DirBuilder::new();
    folder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut folder, 0o700);
    folder.create(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> NodeId {
        NodeId::new("n1").unwrap()
    }

    #[test]
    fn an_identity_survives_and_damage_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        let mut identity = folder.identity(&node()).unwrap();
        identity.promise = Some(Promise { initiator: node(), nonce: 7 });
        folder.store(&identity).unwrap();
        assert_eq!(folder.identity(&node()).unwrap(), identity);
        let path = dir.path().join("identity");
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            std::fs::write(&path, damaged).unwrap();
            assert!(matches!(folder.identity(&node()), Err(StartError::Data { .. })), "byte {at}");
            std::fs::write(&path, &whole[..at]).unwrap();
            assert!(matches!(folder.identity(&node()), Err(StartError::Data { .. })), "{at} bytes");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(folder.identity(&node()).is_ok_and(|identity| identity.formed.is_none()));
        std::fs::create_dir(dir.path().join("log")).unwrap();
        assert!(folder.identity(&node()).is_err_and(|e| e.to_string().contains("its identity is lost")));
    }

    #[test]
    fn a_folder_is_used_by_one_at_a_time_and_by_its_own_node() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        assert!(Folder::open(dir.path()).is_err_and(|e| e.to_string().contains("another process uses it")));
        folder.store(&folder.identity(&node()).unwrap()).unwrap();
        let other = folder.identity(&NodeId::new("n2").unwrap());
        assert!(other.is_err_and(|e| e.to_string().contains("belongs to node n1")));
    }

    #[cfg(unix)]
    #[test]
    fn a_new_folder_is_for_its_owner_only() {
        use std::os::unix::fs::PermissionsExt;

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nodes").join("n1");
        Folder::open(&path).unwrap().release();
        let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(), 0o700);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o750)).unwrap();
        Folder::open(&path).unwrap();
        assert_eq!(mode(), 0o750, "one that is there stays as its owner has made it");
    }

    #[test]
    fn a_folder_of_something_else_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("thesis.tex"), "precious").unwrap();
        assert!(Folder::open(dir.path()).is_err_and(|e| e.to_string().contains("not a data folder")));
        assert!(
            Folder::open(&dir.path().join("thesis.tex"))
                .is_err_and(|e| e.to_string().contains("not a folder"))
        );
    }
}
