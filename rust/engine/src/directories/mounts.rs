//! Finds the planned filesystems among the mounts, and makes sure that each is the planned one.

use std::collections::HashMap;
use std::os::fd::{BorrowedFd, OwnedFd};

use vmsnapshot_core::mountinfo::{MountEntry, MountNamespace};
use vmsnapshot_core::plan::PlannedFilesystem;

use super::error::DirectoryError;
use crate::scan::{self, Limit, Limits, Roots};
use crate::walk;

/// What a directory is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A filesystem that nothing can write to is left out. The open must not wait.
    Freeze,
    /// Nothing else matters than to thaw it.
    Thaw,
}

/// The mounts of this thread's namespace, and of the others that a plan leads to, each read once.
pub(super) struct Mounts {
    roots: Roots,
    /// A user may have made the namespace of another process, and any number of mounts in it.
    limit_of_others: Limit,
    own: MountNamespace,
    others: HashMap<u32, MountNamespace>,
}

impl Mounts {
    pub(super) fn read(roots: Roots, purpose: Purpose) -> Result<Self, DirectoryError> {
        let own = MountNamespace {
            pid: None,
            mounts: scan::mounts_of(&roots.proc.join("thread-self"), Limit::NONE)?,
        };
        Ok(Self {
            roots,
            limit_of_others: match purpose {
                Purpose::Freeze => Limits::PLAN.ours,
                Purpose::Thaw => Limit::NONE,
            },
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
        let limit = self.limit_of_others;
        self.others.entry(pid).or_insert_with(|| MountNamespace {
            pid: Some(pid),
            // The process may have ended, and its namespace with it.
            mounts: scan::mounts_of(&process, limit).unwrap_or_default(),
        })
    }

    /// Finds the plan's path without opening it.
    pub(super) fn find(
        &mut self,
        planned: &PlannedFilesystem,
        purpose: Purpose,
    ) -> Result<OwnedFd, DirectoryError> {
        let around = self.around(planned);
        let may_pass = |mount, is_start| match purpose {
            Purpose::Freeze => around.may_look_up_in(mount, is_start),
            Purpose::Thaw => true,
        };
        walk::find(&planned.open_path, may_pass)
            .map_err(|refusal| DirectoryError::refused(planned, refusal))
    }

    /// Checks that `place`, found on the plan's path, is of the planned filesystem.
    ///
    /// The device number is mountinfo's. `st_dev` is another number on btrfs.
    pub(super) fn verify(
        &mut self,
        place: BorrowedFd<'_>,
        planned: &PlannedFilesystem,
    ) -> Result<&MountEntry, DirectoryError> {
        let vanished = || DirectoryError::Vanished {
            mount_point: planned.mount_point.clone(),
        };
        let mount_id = walk::mount_id(&self.roots.proc, place)
            .map_err(|errno| DirectoryError::refused(planned, errno.into()))?;
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
    pub(super) fn is_covered(&self, planned: &PlannedFilesystem) -> bool {
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
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::fs::File;
    use std::os::fd::{AsFd, AsRawFd};
    use std::path::Path;

    use vmsnapshot_core::device_number::DeviceNumber;
    use vmsnapshot_core::error_kind::ErrorCode;

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
        let mounts = scan::mounts_of(Path::new("/proc/self"), Limit::NONE).unwrap();
        let proc = mounts
            .iter()
            .find(|mount| mount.mount_point == Path::new("/proc"))
            .unwrap();
        let directory = File::open("/proc").unwrap();
        let mut mounts = Mounts::read(Roots::default(), Purpose::Freeze).unwrap();
        let mut verify = |planned| mounts.verify(directory.as_fd(), &planned).map(|_| ());
        assert_eq!(verify(planned(proc.device, "/proc")), Ok(()));
        let other = number("8:17");
        let changed = verify(planned(other, "/proc")).unwrap_err();
        assert_eq!(changed.code(), ErrorCode::MountChanged);
        let vanished = verify(planned(other, "/proc/once/mounted")).unwrap_err();
        assert_eq!(vanished.code(), ErrorCode::MountVanished);
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
            let mut mounts = Mounts::read(machine.roots(), Purpose::Freeze).unwrap();
            mounts.verify(directory.as_fd(), planned).map(|_| ())
        };
        assert_eq!(verify(&there).unwrap_err().code(), ErrorCode::MountVanished);
        machine.file("proc/20/mountinfo", DATABASE);
        assert_eq!(verify(&there), Ok(()));
        there.device = number("8:18");
        assert_eq!(verify(&there).unwrap_err().code(), ErrorCode::MountChanged);
    }
}
