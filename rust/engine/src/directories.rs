//! Opens the planned filesystems, and makes sure that each is the planned one.
//!
//! Between plan and open another filesystem may have been mounted there. The mount that an open
//! went to cannot change any more, so what is verified here holds for as long as the descriptor is
//! open.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{open, Mode, OFlags};
use vmsnapshot_core::device_number::DeviceNumber;
use vmsnapshot_core::error_kind::{ErrorKind, ErrorSubject};
use vmsnapshot_core::mountinfo::MountEntry;
use vmsnapshot_core::plan::{PlanError, PlannedFilesystem};
use vmsnapshot_core::text::{bytes_text, path_text};
use vmsnapshot_sys::errno::errno_text;
use vmsnapshot_sys::Errno;

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
    /// The kernel's tables could not be read.
    #[error(transparent)]
    Tables(#[from] PlanError),
}

impl DirectoryError {
    /// Returns the stable name of the error, for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Open { .. } => "open-failed",
            Self::Changed { .. } => "mount-changed",
            Self::Vanished { .. } => "mount-vanished",
            Self::Tables(error) => error.code(),
        }
    }

    /// Returns what has to change for the next try to succeed.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Open { .. } | Self::Changed { .. } | Self::Vanished { .. } => ErrorKind::System,
            Self::Tables(error) => error.kind(),
        }
    }

    /// Returns what could not be prepared.
    #[must_use]
    pub fn subject(&self) -> ErrorSubject {
        match self {
            Self::Open { .. } | Self::Changed { .. } | Self::Vanished { .. } => {
                ErrorSubject::Filesystem
            }
            Self::Tables(_) => ErrorSubject::Run,
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
            Self::Changed { .. } | Self::Vanished { .. } => Some("make a new plan".to_owned()),
            Self::Tables(error) => error.hint(),
        }
    }
}

/// Opens the directory of each of `planned`, in their order, and verifies it.
///
/// *Blocking*: not on local filesystems, and the plan has no others.
///
/// # Errors
/// The first [`DirectoryError`].
pub(crate) fn open_all(planned: &[PlannedFilesystem]) -> Result<Vec<OwnedFd>, DirectoryError> {
    let directories = planned
        .iter()
        .map(open_one)
        .collect::<Result<Vec<_>, _>>()?;
    // The table is read after the opens. A mount stays in it for as long as a directory of it is
    // open.
    let roots = Roots::default();
    let mut mounts = Mounts::read(&roots)?;
    for (planned, directory) in planned.iter().zip(&directories) {
        mounts.verify(directory.as_fd(), planned)?;
    }
    Ok(directories)
}

fn open_one(planned: &PlannedFilesystem) -> Result<OwnedFd, DirectoryError> {
    // NOATIME: opening must not make a filesystem dirty. Root may use it.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOATIME;
    let open_as = |flags| open(&planned.open_path, flags, Mode::empty());
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
    ) -> Result<(), DirectoryError> {
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
            Ok(())
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
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::fs::File;

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
        let mut verify = |planned| mounts.verify(directory.as_fd(), &planned);
        assert_eq!(verify(planned(proc.device, "/proc")), Ok(()));
        let other = number("8:17");
        let changed = verify(planned(other, "/proc")).unwrap_err();
        assert_eq!(changed.code(), "mount-changed");
        let vanished = verify(planned(other, "/proc/once/mounted")).unwrap_err();
        assert_eq!(vanished.code(), "mount-vanished");
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
            mounts.verify(directory.as_fd(), planned)
        };
        assert_eq!(verify(&there).unwrap_err().code(), "mount-vanished");
        machine.file("proc/20/mountinfo", DATABASE);
        assert_eq!(verify(&there), Ok(()));
        there.device = number("8:18");
        assert_eq!(verify(&there).unwrap_err().code(), "mount-changed");
    }
}
