//! A disk for each node: an ext4 of its own in a file, through a loop device.
//!
//! Owns the file system and what is done to it; it is whole again after [`Disk::heal`] and gone when it
//! is dropped. Never touches a file system that it did not mount. A power cut is the kernel's own
//! `shutdown` of ext4: what was not flushed is not there after the next mount, pages as well as names.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::posix_fallocate;
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::{major, minor};
use nix::sys::statvfs::statvfs;

use super::tools::{need, run, text};
use super::{NemesisError, is_left};

/// Size of a disk. Room is taken only as it fills.
const DISK_BYTES: u64 = 1 << 30;
/// Files that a disk has room for; few, so that it is made fast.
const DISK_FILES: &str = "4096";
/// Where writes of a loop device are limited, whoever makes them: ext4's journal has a thread of its own.
const THROTTLE: &str = "/sys/fs/cgroup/blkio/blkio.throttle.write_iops_device";

/// The disk of one node.
///
/// Invariants: `path` is a mount point exactly while `mounted`; nothing else is ever frozen, limited or
/// shut down.
pub(super) struct Disk {
    image: PathBuf,
    path: PathBuf,
    mounted: bool,
    frozen: bool,
    slow: bool,
}

impl Disk {
    /// Makes and mounts one, in a folder.
    pub(super) fn new(dir: &Path) -> Result<Self, String> {
        let (image, path) = (dir.join("disk.img"), dir.join("disk"));
        let made = File::create(&image).and_then(|file| file.set_len(DISK_BYTES));
        made.map_err(|error| format!("cannot make {}: {error}", image.display()))?;
        let options =
            ["-q", "-F", "-m", "0", "-N", DISK_FILES, "-E", "nodiscard,lazy_itable_init=0", text(&image)];
        run("mkfs.ext4", &options)?;
        let mut disk = Self { image, path, mounted: false, frozen: false, slow: false };
        disk.mount()?;
        Ok(disk)
    }

    /// What the faults of disks need beside a disk; better told now than in the middle.
    pub(super) fn can_cut() -> Result<(), String> {
        need("xfs_io", "xfsprogs")
    }

    /// Whether disks can be slow here.
    pub(super) fn can_slow() -> Result<(), String> {
        File::options().write(true).open(THROTTLE).map(drop).map_err(|error| {
            format!("{THROTTLE} cannot be written ({error}): there is no blkio controller of cgroup v1")
        })
    }

    /// Whether disks can be stuck here.
    pub(super) fn can_freeze() -> Result<(), String> {
        need("fsfreeze", "util-linux")
    }

    /// Leaves no room.
    pub(super) fn fill(&mut self) -> Result<(), NemesisError> {
        if !self.mounted {
            return Ok(());
        }
        let failed = |error: Errno| NemesisError::io("fill a disk")(error.into());
        let ballast = File::create(self.ballast()).map_err(NemesisError::io("fill a disk"))?;
        let stat = statvfs(&self.path).map_err(failed)?;
        let block = stat.block_size() as i64;
        let (mut at, mut step) = (0, stat.blocks_free() as i64 * block);
        while step >= block {
            match posix_fallocate(&ballast, at, step) {
                Ok(()) => at += step,
                Err(Errno::ENOSPC) => step /= 2,
                Err(Errno::EINTR) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(())
    }

    /// Lets so many writes a second reach the device, and no more.
    pub(super) fn slow(&mut self, writes: u32) -> Result<(), NemesisError> {
        if self.mounted {
            self.slow = true;
            throttle(&self.path, writes)?;
        }
        Ok(())
    }

    /// Lets everything wait that writes or flushes.
    pub(super) fn freeze(&mut self) -> Result<(), NemesisError> {
        if self.mounted && !self.frozen {
            run("fsfreeze", &["-f", text(&self.path)]).map_err(|why| NemesisError::Disk { why })?;
            self.frozen = true;
        }
        Ok(())
    }

    /// Cuts the power: what was not flushed is lost. The process on it must be gone.
    pub(super) fn cut(&mut self) -> Result<(), NemesisError> {
        if self.mounted {
            self.release()?;
            let failed = |why| NemesisError::Disk { why };
            run("xfs_io", &["-x", "-c", "shutdown", text(&self.path)]).map_err(failed)?;
            run("umount", &[text(&self.path)]).map_err(failed)?;
            self.mounted = false;
        }
        Ok(())
    }

    /// Lets waiting processes go on, so that they can be killed.
    pub(super) fn release(&mut self) -> Result<(), NemesisError> {
        if self.frozen {
            run("fsfreeze", &["-u", text(&self.path)]).map_err(|why| NemesisError::Disk { why })?;
            self.frozen = false;
        }
        if self.slow {
            throttle(&self.path, 0)?;
            self.slow = false;
        }
        Ok(())
    }

    /// Ends every fault of the disk.
    pub(super) fn heal(&mut self) -> Result<(), NemesisError> {
        self.release()?;
        if !self.mounted {
            self.mount().map_err(|why| NemesisError::Disk { why })?;
        }
        match std::fs::remove_file(self.ballast()) {
            // Its blocks are free once that is in the journal.
            Ok(()) => run("sync", &["-f", text(&self.path)]).map_err(|why| NemesisError::Disk { why }),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(NemesisError::io("empty a disk")(error)),
        }
    }

    /// Unmounts those of runs that were killed.
    pub(super) fn remove_leftovers() {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        for mount in mounts.lines() {
            if let [_, path, "ext4", ..] = mount.split(' ').collect::<Vec<_>>()[..]
                && path.split('/').any(is_left)
            {
                let _ = run("fsfreeze", &["-u", path]);
                let _ = throttle(Path::new(path), 0);
                let _ = umount2(path, MntFlags::MNT_DETACH);
            }
        }
    }

    fn mount(&mut self) -> Result<(), String> {
        let made = std::fs::create_dir_all(&self.path);
        made.map_err(|error| format!("cannot make {}: {error}", self.path.display()))?;
        run("mount", &["-t", "ext4", "-o", "loop,noatime", text(&self.image), text(&self.path)])?;
        self.mounted = true;
        Ok(())
    }

    fn ballast(&self) -> PathBuf {
        self.path.join("ballast")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = self.release() {
            eprintln!("a disk is left as it is: {error}");
        }
        if self.mounted {
            let _ = umount2(&self.path, MntFlags::MNT_DETACH);
        }
    }
}

/// Limits the writes a second of the device below a mount point; 0 lifts the limit.
fn throttle(path: &Path, writes: u32) -> Result<(), NemesisError> {
    let doing = || format!("limit the disk at {}", path.display());
    let device = std::fs::metadata(path).map_err(NemesisError::io(doing()))?.dev();
    let limit = format!("{}:{} {writes}", major(device), minor(device));
    std::fs::write(THROTTLE, limit).map_err(NemesisError::io(doing()))
}
