//! The wall clock of a node, which libfaketime moves.
//!
//! Owns the file that says by how much. Never moves another clock: that of the machine stays, and so does
//! the monotonic one of the node, as both do when somebody sets the time.

use std::path::{Path, PathBuf};

use super::NemesisError;

/// How many seconds a node may go on with the time it knew.
const LOOK_PERIOD_S: &str = "1";
/// Where libfaketime leaves something of a killed process.
const SHARED: &str = "/dev/shm";
/// Names of what it leaves, before the process's id.
const LEFTOVERS: [&str; 2] = ["faketime_shm_", "sem.faketime_sem_"];

/// Finds libfaketime.
pub(super) fn library() -> Result<PathBuf, String> {
    let folders = ["/usr/lib", "/usr/local/lib", "/usr/lib64"].map(Path::new);
    let below = folders.iter().flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten().flatten());
    let all = folders.iter().map(|folder| folder.to_path_buf()).chain(below.map(|entry| entry.path()));
    let mut found = all.map(|folder| folder.join("faketime/libfaketimeMT.so.1"));
    found.find(|path| path.is_file()).ok_or_else(|| "there is no libfaketime (package faketime)".into())
}

/// Removes what processes left that are gone.
pub(super) fn remove_leftovers() {
    for entry in std::fs::read_dir(SHARED).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let pid = LEFTOVERS.iter().find_map(|beginning| name.strip_prefix(beginning)?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// The clock of one node.
pub(super) struct Clock {
    library: PathBuf,
    file: PathBuf,
}

impl Clock {
    /// A clock that is right, in a folder.
    pub(super) fn new(library: &Path, dir: &Path) -> Result<Self, NemesisError> {
        let clock = Self { library: library.to_owned(), file: dir.join("clock") };
        clock.set(0)?;
        Ok(clock)
    }

    /// What a process needs in its environment to go by it.
    pub(super) fn settings(&self) -> [(&'static str, &Path); 5] {
        [
            ("LD_PRELOAD", &self.library),
            ("FAKETIME_TIMESTAMP_FILE", &self.file),
            ("FAKETIME_CACHE_DURATION", Path::new(LOOK_PERIOD_S)),
            ("DONT_FAKE_MONOTONIC", Path::new("1")),
            ("NO_FAKE_STAT", Path::new("1")),
        ]
    }

    /// Puts it so many seconds after, or before, the right time.
    pub(super) fn set(&self, seconds: i64) -> Result<(), NemesisError> {
        // Never seen half-written.
        let next = self.file.with_extension("next");
        let written = std::fs::write(&next, format!("{seconds:+}\n"));
        let put = written.and_then(|()| std::fs::rename(&next, &self.file));
        put.map_err(NemesisError::io("set a clock"))
    }
}
