//! Opens the planned filesystems, and makes sure that each is the planned one and can be written.
//!
//! One that cannot be opened, or that nothing can write to any more, is left out: the others are
//! worth a backup without it. If the caller asked for it by its own name, that is an error.
//!
//! Between plan and open another filesystem may have been mounted there, and a local user who owns a
//! directory of the path may have put something else in its place. So a path is first found (`walk`)
//! and opened only when it is known to be a directory or a file of the planned filesystem. The mount of
//! a descriptor cannot change any more, so what is verified here holds for as long as it is open.
//!
//! If another mount covers the planned one, it is opened below the cover (`covers`).

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::fstat;
use vmsnapshot_core::device_number::DeviceNumber;
use vmsnapshot_core::error_kind::{ErrorCode, ErrorKind};
use vmsnapshot_core::mountinfo::{MountEntry, MountNamespace};
use vmsnapshot_core::plan::{PlanError, PlannedFilesystem, SkippedFilesystem};
use vmsnapshot_core::report::FilesystemResult;
use vmsnapshot_core::text::path_text;
use vmsnapshot_sys::errno::errno_text;
use vmsnapshot_sys::Errno;

use crate::block_device::{self, Use};
use crate::covers;
use crate::scan::{self, Roots};
use crate::walk::{self, Refusal};

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
    /// It must not be opened, or cannot be reached.
    #[error("could not open `{}`: {why}", path_text(mount_point))]
    Refused {
        /// The mount point.
        mount_point: PathBuf,
        /// Why not.
        why: String,
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
            Self::Open { .. } | Self::Refused { .. } => ErrorCode::OpenFailed,
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
            | Self::Refused { .. }
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
            Self::Open { .. } | Self::Refused { .. } => None,
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
        let mut opened = Opened::default();
        for (planned, directory) in planned.iter().zip(open_each(planned, Purpose::Freeze)?) {
            match directory {
                Ok(directory) => {
                    opened.filesystems.push(planned.clone());
                    opened.directories.push(directory);
                }
                Err(error) => opened.left_out.push(LeftOut::because_of(error, planned)?),
            }
        }
        Ok(opened)
    }
}

impl LeftOut {
    /// Leaves out what may be written and cannot be reached.
    pub(crate) fn out_of_reach(skipped: &SkippedFilesystem) -> LeftOut {
        LeftOut {
            planned: PlannedFilesystem {
                mount_point: skipped.mount_point.clone(),
                open_path: skipped.mount_point.clone(),
                also_mounted_at: Vec::new(),
                device: skipped.device,
                source: skipped.source.clone(),
                filesystem_type: skipped.filesystem_type.clone(),
                level: 0,
                is_explicit: false,
            },
            outcome: FilesystemResult::NotOpened,
            error: skipped.reason.to_string(),
        }
    }

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
            DirectoryError::Refused { why, .. } => {
                (FilesystemResult::NotOpened, format!("open: {why}"))
            }
            DirectoryError::NotWritable { why, .. } => {
                (FilesystemResult::NotWritable, (*why).to_owned())
            }
            DirectoryError::WouldWait { job, .. } => {
                (FilesystemResult::FreezeWouldWait, job.clone())
            }
            DirectoryError::Changed { .. } | DirectoryError::Vanished { .. } => {
                match use_of_device(planned) {
                    Some(Use::Free) => (FilesystemResult::Unmounted, error.to_string()),
                    // Our open of it may still wait. If it is mounted again, it must not be frozen.
                    Some(Use::Silent) => (
                        FilesystemResult::FreezeWouldWait,
                        format!("{error}, and its device does not answer"),
                    ),
                    Some(Use::MayBeUsed) | None => (FilesystemResult::NotOpened, error.to_string()),
                }
            }
        };
        Ok(LeftOut {
            planned: planned.clone(),
            outcome,
            error: text,
        })
    }
}

/// What a directory is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// A filesystem that nothing can write to is left out. The open must not wait.
    Freeze,
    /// Nothing else matters than to thaw it.
    Thaw,
}

/// Opens the directory of `planned` to thaw it, and verifies that it is of that filesystem.
///
/// *Blocking*: on the way to a mount that a network or FUSE filesystem leads to, for as long as that
/// does not answer.
///
/// # Errors
/// [`DirectoryError`].
pub(crate) fn open(planned: &PlannedFilesystem) -> Result<OwnedFd, DirectoryError> {
    let mut opened = open_each(std::slice::from_ref(planned), Purpose::Thaw)?;
    opened.pop().unwrap_or(Err(DirectoryError::Vanished {
        mount_point: planned.mount_point.clone(),
    }))
}

/// Opens each of `planned`, below its covers if it has any.
fn open_each(
    planned: &[PlannedFilesystem],
    purpose: Purpose,
) -> Result<Vec<Result<OwnedFd, DirectoryError>>, DirectoryError> {
    let (opened, mounts) = open_visible(planned, purpose)?;
    let each = planned.iter().zip(opened);
    let each = each.map(|(planned, opened)| match opened {
        Err(_) if mounts.is_covered(planned) => open_covered(planned, purpose),
        opened => opened,
    });
    Ok(each.collect())
}

/// Opens each of `planned` that its path leads to. Returns the mounts as they were meanwhile, too.
fn open_visible(
    planned: &[PlannedFilesystem],
    purpose: Purpose,
) -> Result<(Vec<Result<OwnedFd, DirectoryError>>, Mounts), DirectoryError> {
    let mut before = Mounts::read(Roots::default())?;
    let places: Vec<_> = planned
        .iter()
        .map(|planned| before.find(planned, purpose))
        .collect();
    // The table is read after the walks. A mount stays in it for as long as a descriptor of it is open.
    let mut mounts = Mounts::read(Roots::default())?;
    let opened = planned.iter().zip(places).map(|(planned, place)| {
        let place = place?;
        let mount = mounts.verify(place.as_fd(), planned)?;
        match why_not_writable(place.as_fd(), mount) {
            Some(why) if purpose == Purpose::Freeze => Err(not_writable(planned, why)),
            Some(_) | None => {
                walk::open_found(place.as_fd()).map_err(|refusal| refused(planned, refusal))
            }
        }
    });
    let opened = opened.collect();
    Ok((opened, mounts))
}

fn open_covered(planned: &PlannedFilesystem, purpose: Purpose) -> Result<OwnedFd, DirectoryError> {
    let opened = covers::without_covers(planned.device, &planned.mount_point, || {
        open_visible(std::slice::from_ref(planned), purpose).map(|(mut opened, _)| opened.pop())
    });
    match opened {
        Ok(opened) => opened?.unwrap_or_else(|| {
            Err(DirectoryError::Vanished {
                mount_point: planned.mount_point.clone(),
            })
        }),
        Err(why) => Err(DirectoryError::Refused {
            mount_point: planned.mount_point.clone(),
            why: format!("another mount covers it, and {why}"),
        }),
    }
}

fn refused(planned: &PlannedFilesystem, refusal: Refusal) -> DirectoryError {
    let mount_point = planned.mount_point.clone();
    match refusal {
        Refusal::Errno(errno) => DirectoryError::Open { mount_point, errno },
        Refusal::OnTheWay | Refusal::Special => DirectoryError::Refused {
            mount_point,
            why: refusal.to_string(),
        },
    }
}

/// Returns what uses the block device of a filesystem that was not found where it was mounted. `None` if
/// it has none that is known.
///
/// If the device is free, the filesystem is not mounted any more, also not lazily and not in a namespace
/// that this process cannot see.
fn use_of_device(planned: &PlannedFilesystem) -> Option<Use> {
    let device = match planned.device.major {
        // The number is not that of a device (btrfs), but the source names one.
        0 => block_device::of_source(&planned.source)?,
        _ => planned.device,
    };
    Some(block_device::use_of(device))
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

/// The mounts of this thread's namespace, and of the others that a plan leads to, each read once.
struct Mounts {
    roots: Roots,
    own: MountNamespace,
    others: HashMap<u32, MountNamespace>,
}

impl Mounts {
    fn read(roots: Roots) -> Result<Self, DirectoryError> {
        let own = MountNamespace {
            pid: None,
            mounts: scan::mounts_of(&roots.proc.join("thread-self"))?,
        };
        Ok(Self {
            roots,
            own,
            others: HashMap::new(),
        })
    }

    /// Returns the mounts among which the path of `planned` leads.
    fn around(&mut self, planned: &PlannedFilesystem) -> &MountNamespace {
        let Some(pid) = walk::process_of(&planned.open_path) else {
            return &self.own;
        };
        let process = self.roots.proc.join(pid.to_string());
        self.others.entry(pid).or_insert_with(|| MountNamespace {
            pid: Some(pid),
            // The process may have ended, and its namespace with it.
            mounts: scan::mounts_of(&process).unwrap_or_default(),
        })
    }

    /// Finds the plan's path without opening it.
    fn find(
        &mut self,
        planned: &PlannedFilesystem,
        purpose: Purpose,
    ) -> Result<OwnedFd, DirectoryError> {
        let around = self.around(planned);
        let may_pass = |mount, is_start| match purpose {
            Purpose::Freeze => around.may_look_up_in(mount, is_start),
            Purpose::Thaw => true,
        };
        walk::find(&planned.open_path, may_pass).map_err(|refusal| refused(planned, refusal))
    }

    /// Checks that `place`, found on the plan's path, is of the planned filesystem.
    ///
    /// The device number is mountinfo's. `st_dev` is another number on btrfs.
    fn verify(
        &mut self,
        place: BorrowedFd<'_>,
        planned: &PlannedFilesystem,
    ) -> Result<&MountEntry, DirectoryError> {
        let vanished = || DirectoryError::Vanished {
            mount_point: planned.mount_point.clone(),
        };
        let mount_id = walk::mount_id(&self.roots.proc, place)
            .map_err(|errno| refused(planned, errno.into()))?;
        let mut mounts = self.around(planned).mounts.iter();
        let mount = mounts
            .find(|mount| mount.mount_id == mount_id)
            .ok_or_else(vanished)?;
        if mount.device == planned.device {
            Ok(mount)
        } else if mount.mount_point == planned.mount_point {
            Err(DirectoryError::Changed {
                mount_point: planned.mount_point.clone(),
                planned: planned.device,
                found: mount.device,
            })
        } else {
            // The mount is gone, so the path led to the directory below it, on the parent mount.
            Err(vanished())
        }
    }

    /// Returns whether the planned mount exists, and others hide it from our paths.
    fn is_covered(&self, planned: &PlannedFilesystem) -> bool {
        let is_ours = planned.open_path == planned.mount_point;
        is_ours
            && self
                .own
                .cover_at(planned.device, &planned.mount_point)
                .is_some()
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

    use std::fs::File;
    use std::os::fd::AsRawFd;
    use std::path::Path;

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
        let mut mounts = Mounts::read(Roots::default()).unwrap();
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
        machine.file("proc/thread-self/mountinfo", ROOT);
        let mut there = planned(number("8:17"), "/db");
        there.open_path = "/proc/20/root/db".into();
        let verify = |planned: &PlannedFilesystem| {
            let mut mounts = Mounts::read(machine.roots()).unwrap();
            mounts.verify(directory.as_fd(), planned).map(|_| ())
        };
        assert_eq!(verify(&there).unwrap_err().code(), ErrorCode::MountVanished);
        machine.file("proc/20/mountinfo", DATABASE);
        assert_eq!(verify(&there), Ok(()));
        there.device = number("8:18");
        assert_eq!(verify(&there).unwrap_err().code(), ErrorCode::MountChanged);
    }
}
