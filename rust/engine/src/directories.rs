//! Opens the planned filesystems, and makes sure that each is the planned one and can be written.
//!
//! One that cannot be opened, or that nothing can write to any more, is left out: the others are
//! worth a backup without it. If the caller asked for it by its own name, that is an error.
//!
//! Between plan and open another filesystem may have been mounted there. The mount that an open
//! went to cannot change any more, so what is verified here holds for as long as the descriptor is
//! open.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{fstat, Mode, OFlags};
use vmsnapshot_core::device_number::DeviceNumber;
use vmsnapshot_core::error_kind::{ErrorCode, ErrorKind};
use vmsnapshot_core::mountinfo::MountEntry;
use vmsnapshot_core::plan::{PlanError, PlannedFilesystem};
use vmsnapshot_core::report::FilesystemResult;
use vmsnapshot_core::text::{bytes_text, path_text};
use vmsnapshot_sys::errno::errno_text;
use vmsnapshot_sys::Errno;

use crate::block_device;
use crate::scan::{self, Roots};

/// Why a directory cannot be opened, or is not one of the planned filesystem.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DirectoryError {
    /// It could not be opened.
    #[error("could not open `{}`: {}", path_text(mount_point), errno_text(*errno))]
    Open {
        /// The mount point.
        mount_point: PathBuf,
        /// What the system answered.
        errno: Errno,
    },
    /// Another filesystem is mounted there by now.
    #[error(
        "a different filesystem is now mounted at `{}`: {found} instead of {planned}",
        path_text(mount_point)
    )]
    Changed {
        /// The mount point.
        mount_point: PathBuf,
        /// The device number when the plan was made.
        planned: DeviceNumber,
        /// The device number now.
        found: DeviceNumber,
    },
    /// Nothing is mounted there any more.
    #[error("nothing is mounted at `{}` any more", path_text(mount_point))]
    Vanished {
        /// The mount point.
        mount_point: PathBuf,
    },
    /// Nothing can write to it any more, because of an error that it met.
    #[error("`{}` can no longer be written: {why}", path_text(mount_point))]
    NotWritable {
        /// The mount point.
        mount_point: PathBuf,
        /// How that is known.
        why: &'static str,
    },
    /// A FIFREEZE of it would wait for something that can take hours.
    #[error("a freeze of `{}` would wait: {job}", path_text(mount_point))]
    WouldWait {
        /// The mount point.
        mount_point: PathBuf,
        /// What it would wait for.
        job: String,
    },
    /// The kernel's tables could not be read.
    #[error(transparent)]
    Tables(#[from] PlanError),
}

impl DirectoryError {
    /// Returns the stable name of the error, for programs.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Open { .. } => ErrorCode::OpenFailed,
            Self::Changed { .. } => ErrorCode::MountChanged,
            Self::Vanished { .. } => ErrorCode::MountVanished,
            Self::NotWritable { .. } => ErrorCode::NotWritable,
            Self::WouldWait { .. } => ErrorCode::FreezeWouldWait,
            Self::Tables(error) => error.code(),
        }
    }

    /// Returns what has to change for the next try to succeed.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Open { .. }
            | Self::Changed { .. }
            | Self::Vanished { .. }
            | Self::NotWritable { .. }
            | Self::WouldWait { .. } => ErrorKind::System,
            Self::Tables(error) => error.kind(),
        }
    }

    /// Returns what the reader can do about it, if anything.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Open {
                errno: Errno::MFILE,
                ..
            } => Some("raise the limit on open files (`ulimit -n`)".to_owned()),
            Self::Open { .. } => None,
            Self::NotWritable { .. } => Some(
                "leave it out, or use a glob, which leaves out what cannot be written".to_owned(),
            ),
            Self::WouldWait { .. } => Some("wait until it has ended, or cancel it".to_owned()),
            Self::Changed { .. } | Self::Vanished { .. } => Some("make a new plan".to_owned()),
            Self::Tables(error) => error.hint(),
        }
    }
}

/// A planned filesystem that the run does not freeze.
#[derive(Clone, Debug)]
pub(crate) struct LeftOut {
    pub(crate) planned: PlannedFilesystem,
    pub(crate) outcome: FilesystemResult,
    /// What the system answered.
    pub(crate) error: String,
}

/// The planned filesystems that are open, each with a directory of it, and those left out.
#[derive(Debug, Default)]
pub(crate) struct Opened {
    pub(crate) filesystems: Vec<PlannedFilesystem>,
    pub(crate) directories: Vec<OwnedFd>,
    pub(crate) left_out: Vec<LeftOut>,
}

impl Opened {
    /// Opens each of `planned`, in their order, and leaves out what cannot be frozen or needs no
    /// freeze.
    ///
    /// *Blocking*: not on local filesystems, and the plan has no others.
    ///
    /// # Errors
    /// [`DirectoryError`] if the cause is this process or this machine, or if the caller asked for
    /// that filesystem explicitly.
    pub(crate) fn open(planned: &[PlannedFilesystem]) -> Result<Opened, DirectoryError> {
        let directories: Vec<_> = planned.iter().map(open_unverified).collect();
        // The table is read after the opens. A mount stays in it for as long as a directory of it is
        // open.
        let roots = Roots::default();
        let mut mounts = Mounts::read(&roots)?;
        let mut opened = Opened::default();
        for (planned, directory) in planned.iter().zip(directories) {
            let usable = directory.and_then(|directory| {
                let mount = mounts.verify(directory.as_fd(), planned)?;
                match why_not_writable(directory.as_fd(), mount) {
                    Some(why) => Err(not_writable(planned, why)),
                    None => Ok(directory),
                }
            });
            match usable {
                Ok(directory) => {
                    opened.filesystems.push(planned.clone());
                    opened.directories.push(directory);
                }
                Err(error) => {
                    let error = mounts.explain(error, planned);
                    opened.left_out.push(LeftOut::because_of(error, planned)?);
                }
            }
        }
        Ok(opened)
    }
}

impl LeftOut {
    /// Leaves `planned` out because of `error`.
    ///
    /// # Errors
    /// The same error, if it must end the preparation.
    pub(crate) fn because_of(
        error: DirectoryError,
        planned: &PlannedFilesystem,
    ) -> Result<LeftOut, DirectoryError> {
        let (outcome, text) = match &error {
            _ if planned.is_explicit => return Err(error),
            // These say nothing about the filesystem.
            DirectoryError::Tables(_)
            | DirectoryError::Open {
                errno: Errno::MFILE | Errno::NFILE | Errno::NOMEM,
                ..
            } => return Err(error),
            DirectoryError::Open { errno, .. } => (
                FilesystemResult::NotOpened,
                format!("open: {}", errno_text(*errno)),
            ),
            DirectoryError::NotWritable { why, .. } => {
                (FilesystemResult::NotWritable, (*why).to_owned())
            }
            DirectoryError::WouldWait { job, .. } => {
                (FilesystemResult::FreezeWouldWait, job.clone())
            }
            DirectoryError::Changed { .. } | DirectoryError::Vanished { .. }
                if is_unmounted(planned) =>
            {
                (FilesystemResult::Unmounted, error.to_string())
            }
            DirectoryError::Changed { .. } | DirectoryError::Vanished { .. } => {
                (FilesystemResult::NotOpened, error.to_string())
            }
        };
        Ok(LeftOut {
            planned: planned.clone(),
            outcome,
            error: text,
        })
    }
}

/// Opens the directory of `planned` and verifies that it is of that filesystem.
///
/// *Blocking*: not on local filesystems, and the plan has no others.
///
/// # Errors
/// [`DirectoryError`].
pub(crate) fn open(planned: &PlannedFilesystem) -> Result<OwnedFd, DirectoryError> {
    let directory = open_unverified(planned)?;
    Mounts::read(&Roots::default())?.verify(directory.as_fd(), planned)?;
    Ok(directory)
}

fn open_unverified(planned: &PlannedFilesystem) -> Result<OwnedFd, DirectoryError> {
    // NOATIME: opening must not make a filesystem dirty. Root may use it.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOATIME;
    let open_as = |flags| rustix::fs::open(&planned.open_path, flags, Mode::empty());
    match open_as(flags) {
        // A container may see only one file of a filesystem, mounted on a file of its own.
        // NONBLOCK: if it is a pipe, opening it must not wait for the other end.
        Err(Errno::NOTDIR) => open_as((flags - OFlags::DIRECTORY) | OFlags::NONBLOCK),
        opened => opened,
    }
    .map_err(|errno| DirectoryError::Open {
        mount_point: planned.mount_point.clone(),
        errno,
    })
}

/// Returns whether it is certain that the filesystem is not mounted any more, also not lazily and not
/// in a namespace that this process cannot see.
fn is_unmounted(planned: &PlannedFilesystem) -> bool {
    if planned.device.major != 0 {
        return block_device::is_free(planned.device);
    }
    // The number is not that of a device (btrfs), but the source names one.
    rustix::fs::stat(planned.source.as_str()).is_ok_and(|source| {
        block_device::is_free(DeviceNumber {
            major: rustix::fs::major(source.st_rdev),
            minor: rustix::fs::minor(source.st_rdev),
        })
    })
}

fn not_writable(planned: &PlannedFilesystem, why: &'static str) -> DirectoryError {
    DirectoryError::NotWritable {
        mount_point: planned.mount_point.clone(),
        why,
    }
}

/// Returns how it is known that nothing can write to the filesystem of `directory` any more. `None`
/// if it may still be written.
///
/// An error alone is no such knowledge: a filesystem can answer EIO for a bad block and be written
/// elsewhere. These states end only with an unmount.
fn why_not_writable(directory: BorrowedFd<'_>, mount: &MountEntry) -> Option<&'static str> {
    let has_option = |name| mount.super_options.split(',').any(|option| option == name);
    match mount.filesystem_type.as_str() {
        // Linux 6.15 and later (fs/ext4/super.c, ext4_show_options). Earlier ones do not show it;
        // then syncfs and FIFREEZE answer EROFS.
        "ext4" if has_option("emergency_ro") => {
            Some("it made itself read-only after an error (`emergency_ro`)")
        }
        "ext4" if has_option("shutdown") => Some("it was shut down"),
        // fs/xfs/xfs_iops.c, xfs_vn_getattr: a stat answers EIO only after a shutdown. The inode of
        // an open directory is in memory, so it is not a read error.
        "xfs" if matches!(fstat(directory), Err(Errno::IO)) => {
            Some("it was shut down after an error")
        }
        _ => None,
    }
}

/// The mounts of this process's namespace, and of the others that a plan leads to, each read once.
struct Mounts<'a> {
    roots: &'a Roots,
    by_id: HashMap<u32, MountEntry>,
    /// The processes whose mounts are in `by_id` as well.
    processes: Vec<String>,
}

impl<'a> Mounts<'a> {
    fn read(roots: &'a Roots) -> Result<Self, DirectoryError> {
        let mut mounts = Self {
            roots,
            by_id: HashMap::new(),
            processes: Vec::new(),
        };
        mounts.add(scan::mounts_of(&roots.proc.join("self"))?);
        Ok(mounts)
    }

    fn add(&mut self, mounts: Vec<MountEntry>) {
        let by_id = mounts.into_iter().map(|mount| (mount.mount_id, mount));
        self.by_id.extend(by_id);
    }

    /// Checks that `directory`, opened on the plan's path, is a directory of the planned
    /// filesystem.
    ///
    /// The device number is mountinfo's. `st_dev` is another number on btrfs.
    fn verify(
        &mut self,
        directory: BorrowedFd<'_>,
        planned: &PlannedFilesystem,
    ) -> Result<&MountEntry, DirectoryError> {
        let vanished = || DirectoryError::Vanished {
            mount_point: planned.mount_point.clone(),
        };
        if let Some(pid) = other_namespace(&planned.open_path) {
            if !self.processes.contains(&pid) {
                // The process may have ended, and its namespace with it.
                let mounts = scan::mounts_of(&self.roots.proc.join(&pid)).unwrap_or_default();
                self.add(mounts);
                self.processes.push(pid);
            }
        }
        let mount_id = self.mount_id_of(directory)?.ok_or_else(vanished)?;
        let mount = self.by_id.get(&mount_id).ok_or_else(vanished)?;
        if mount.device == planned.device {
            Ok(mount)
        } else if mount.mount_point == planned.mount_point {
            Err(DirectoryError::Changed {
                mount_point: planned.mount_point.clone(),
                planned: planned.device,
                found: mount.device,
            })
        } else {
            // The mount is gone, so the open went to the directory below it, on the parent mount.
            Err(vanished())
        }
    }

    /// Returns a better reason than `error`, if the filesystem could not be opened because it cannot
    /// be written, or because it is not there any more.
    fn explain(&mut self, error: DirectoryError, planned: &PlannedFilesystem) -> DirectoryError {
        if !matches!(error, DirectoryError::Open { .. }) {
            return error;
        }
        // Such a descriptor is made without the filesystem's help.
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let Ok(directory) = rustix::fs::open(&planned.open_path, flags, Mode::empty()) else {
            return error;
        };
        match self.verify(directory.as_fd(), planned) {
            Ok(mount) => match why_not_writable(directory.as_fd(), mount) {
                Some(why) => not_writable(planned, why),
                None => error,
            },
            Err(better @ (DirectoryError::Changed { .. } | DirectoryError::Vanished { .. })) => {
                better
            }
            Err(_) => error,
        }
    }

    fn mount_id_of(&self, directory: BorrowedFd<'_>) -> Result<Option<u32>, DirectoryError> {
        let fdinfo = format!("self/fdinfo/{}", directory.as_raw_fd());
        let fdinfo = bytes_text(&scan::read(&self.roots.proc.join(fdinfo))?);
        Ok(fdinfo
            .lines()
            .find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok()))
    }
}

/// Returns the process id of an open path `/proc/PID/root/...`.
fn other_namespace(open_path: &Path) -> Option<String> {
    let mut below_proc = open_path.strip_prefix("/proc").ok()?.iter();
    let pid = below_proc.next()?.to_str()?;
    (below_proc.next()? == "root").then(|| pid.to_owned())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

    use std::fs::File;

    use vmsnapshot_core::mountinfo;

    use super::*;
    use crate::scan::fake_machine::{FakeMachine, DATABASE, ROOT};

    fn number(text: &str) -> DeviceNumber {
        text.parse().unwrap()
    }

    fn planned(device: DeviceNumber, mount_point: &str) -> PlannedFilesystem {
        PlannedFilesystem {
            mount_point: mount_point.into(),
            open_path: mount_point.into(),
            also_mounted_at: Vec::new(),
            device,
            source: String::new(),
            filesystem_type: "ext4".to_owned(),
            level: 0,
            is_explicit: false,
        }
    }

    #[test]
    fn directory_is_of_the_planned_filesystem_only_by_number() {
        // `/proc` stands for a mount that every machine has.
        let mounts = scan::mounts_of(Path::new("/proc/self")).unwrap();
        let proc = mounts
            .iter()
            .find(|mount| mount.mount_point == Path::new("/proc"))
            .unwrap();
        let directory = File::open("/proc").unwrap();
        let roots = Roots::default();
        let mut mounts = Mounts::read(&roots).unwrap();
        let mut verify = |planned| mounts.verify(directory.as_fd(), &planned).map(|_| ());
        assert_eq!(verify(planned(proc.device, "/proc")), Ok(()));
        let other = number("8:17");
        let changed = verify(planned(other, "/proc")).unwrap_err();
        assert_eq!(changed.code(), ErrorCode::MountChanged);
        let vanished = verify(planned(other, "/proc/once/mounted")).unwrap_err();
        assert_eq!(vanished.code(), ErrorCode::MountVanished);
    }

    #[test]
    fn error_ends_the_preparation_only_if_the_filesystem_was_named_or_is_not_the_cause() {
        let mut data = planned(number("8:17"), "/data");
        let failed = |errno| DirectoryError::Open {
            mount_point: "/data".into(),
            errno,
        };
        let left_out = LeftOut::because_of(failed(Errno::ACCESS), &data).unwrap();
        assert_eq!(left_out.outcome, FilesystemResult::NotOpened);
        assert_eq!(left_out.error, "open: permission denied");
        let sick = not_writable(&data, "it was shut down");
        let left_out = LeftOut::because_of(sick.clone(), &data).unwrap();
        assert_eq!(left_out.outcome, FilesystemResult::NotWritable);
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOMEM] {
            let error = LeftOut::because_of(failed(errno), &data).unwrap_err();
            assert_eq!(error, failed(errno));
        }
        data.is_explicit = true;
        for error in [failed(Errno::ACCESS), sick] {
            assert_eq!(
                LeftOut::because_of(error.clone(), &data).unwrap_err(),
                error
            );
        }
    }

    #[test]
    fn ext4_that_stopped_itself_is_known_by_its_options_and_others_are_not() {
        let directory = File::open("/").unwrap();
        let line =
            |kind: &str, options: &str| format!("1 0 8:17 / /data rw - {kind} /dev/sda1 {options}");
        for (kind, options, is_known) in [
            ("ext4", "rw,errors=remount-ro,emergency_ro", true),
            ("ext4", "rw,shutdown", true),
            ("ext4", "rw,errors=remount-ro", false),
            ("f2fs", "rw,checkpoint=disable", false),
            ("f2fs", "rw,shutdown", false),
            ("xfs", "rw", false),
        ] {
            let mounts = mountinfo::parse(line(kind, options).as_bytes()).mounts;
            let why = why_not_writable(directory.as_fd(), &mounts[0]);
            assert_eq!(why.is_some(), is_known, "{kind} {options}");
        }
    }

    #[test]
    fn directory_of_another_namespace_is_looked_up_there() {
        let machine = FakeMachine::new();
        let directory = File::open("/").unwrap();
        machine.file(
            &format!("proc/self/fdinfo/{}", directory.as_raw_fd()),
            "pos:\t0\nflags:\t02\nmnt_id:\t10\n",
        );
        machine.file("proc/self/mountinfo", ROOT);
        let mut there = planned(number("8:17"), "/db");
        there.open_path = "/proc/20/root/db".into();
        let roots = machine.roots();
        let verify = |planned: &PlannedFilesystem| {
            let mut mounts = Mounts::read(&roots).unwrap();
            mounts.verify(directory.as_fd(), planned).map(|_| ())
        };
        assert_eq!(verify(&there).unwrap_err().code(), ErrorCode::MountVanished);
        machine.file("proc/20/mountinfo", DATABASE);
        assert_eq!(verify(&there), Ok(()));
        there.device = number("8:18");
        assert_eq!(verify(&there).unwrap_err().code(), ErrorCode::MountChanged);
    }
}
