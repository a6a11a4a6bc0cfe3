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

mod error;
mod left_out;
mod mounts;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::fstat;
use vmsnapshot_core::mountinfo::MountEntry;
use vmsnapshot_core::plan::PlannedFilesystem;
use vmsnapshot_sys::Errno;

use self::mounts::{Mounts, Purpose};
use crate::covers;
use crate::scan::Roots;
use crate::walk;

pub use self::error::DirectoryError;
pub(crate) use self::left_out::LeftOut;

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
    let mut before = Mounts::read(Roots::default(), purpose)?;
    let places: Vec<_> = planned
        .iter()
        .map(|planned| before.find(planned, purpose))
        .collect();
    // The table is read after the walks. A mount stays in it for as long as a descriptor of it is open.
    let mut mounts = Mounts::read(Roots::default(), purpose)?;
    let opened = planned.iter().zip(places).map(|(planned, place)| {
        let place = place?;
        let mount = mounts.verify(place.as_fd(), planned)?;
        match why_not_writable(place.as_fd(), mount) {
            Some(why) if purpose == Purpose::Freeze => {
                Err(DirectoryError::not_writable(planned, why))
            }
            Some(_) | None => walk::open_found(place.as_fd())
                .map_err(|refusal| DirectoryError::refused(planned, refusal)),
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

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

    use std::fs::File;

    use vmsnapshot_core::mountinfo;

    use super::*;

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
}
