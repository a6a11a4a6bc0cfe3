//! What a planned filesystem is beside its device number, and whether it was thawed since a run froze
//! it.
//!
//! A ledger may outlive its run. By then, another disk may have the device number, or another program
//! may have thawed the filesystem and frozen it again. The kernel cannot be asked whether something is
//! frozen, but it can be asked for the facts in this file. Only a fact that leaves no doubt keeps
//! `vmsnapshot thaw` from thawing.

use std::fs::{self, File};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::fstatvfs;
use vmsnapshot_core::device_number::DeviceNumber;
use vmsnapshot_core::ledger::{Entry, Identity};
use vmsnapshot_core::plan::PlannedFilesystem;
use vmsnapshot_sys::block_device::WriteCount;

const SWAPS: &str = "/proc/swaps";

/// Returns what the planned filesystem is, which `directory` is on.
///
/// *Blocking*: never. None of it reads the disk.
pub(crate) fn identity(planned: &PlannedFilesystem, directory: BorrowedFd<'_>) -> Identity {
    Identity {
        disk_sequence: disk_sequence(planned.device),
        filesystem_id: filesystem_id(&planned.filesystem_type, directory),
    }
}

/// Opens the count of what is written to `device`. `None` if a higher count would not prove that the
/// filesystem was thawed.
pub(crate) fn write_count(device: DeviceNumber) -> Option<WriteCount> {
    if has_swap_file() {
        return None;
    }
    let stat = File::open(sysfs(device).join("stat")).ok()?;
    WriteCount::new(OwnedFd::from(stat))
}

/// What a ledger says of a filesystem that may be frozen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    device: DeviceNumber,
    identity: Identity,
    sectors_written: Option<u64>,
}

impl Known {
    /// Takes it from the ledger of a run that cannot freeze any more.
    pub(crate) fn of(entry: &Entry) -> Known {
        // A FITHAW that failed may have written all the same, and left it frozen.
        let is_untouched = entry.thaw_called_at().is_none();
        Known {
            device: entry.device(),
            identity: entry.identity(),
            sectors_written: entry.sectors_written().filter(|_| is_untouched),
        }
    }

    /// Knows the device number alone. That is never a reason not to thaw.
    pub(crate) fn only_device(entry: &Entry) -> Known {
        Known {
            device: entry.device(),
            identity: Identity::default(),
            sectors_written: None,
        }
    }

    /// Returns the device number.
    pub(crate) fn device(self) -> DeviceNumber {
        self.device
    }

    /// Returns why the run's freeze is certainly over, if `mounted` is what has the device number now
    /// and `directory` is on it. `None` if the freeze may be in force.
    pub(crate) fn why_over(
        self,
        mounted: &PlannedFilesystem,
        directory: BorrowedFd<'_>,
    ) -> Option<&'static str> {
        if self.identity.differs_from(identity(mounted, directory)) {
            return Some("another filesystem has its device number by now");
        }
        let before = self.sectors_written?;
        let now = write_count(self.device)?.sectors()?;
        (now > before).then_some(
            "its device was written since the run froze it, so another program has thawed it",
        )
    }
}

fn sysfs(device: DeviceNumber) -> PathBuf {
    Path::new("/sys/dev/block").join(device.to_string())
}

fn disk_sequence(device: DeviceNumber) -> Option<u64> {
    // A partition has the number of its disk, which is the directory above.
    let directory = fs::canonicalize(sysfs(device)).ok()?;
    let read = |directory: &Path| fs::read_to_string(directory.join("diskseq")).ok();
    let text = read(&directory).or_else(|| {
        let is_partition = directory.join("partition").exists();
        read(directory.parent().filter(|_| is_partition)?)
    })?;
    text.trim().parse().ok().filter(|sequence| *sequence != 0)
}

fn filesystem_id(filesystem_type: &str, directory: BorrowedFd<'_>) -> Option<u64> {
    let id = || fstatvfs(directory).ok().map(|answer| answer.f_fsid);
    let id = match filesystem_type {
        "ext2" | "ext3" | "ext4" => id()?,
        // Each subvolume has an id of its own. The lower half is the same for all of them
        // (fs/btrfs/super.c, btrfs_statfs): the number of a subvolume changes the upper half.
        "btrfs" => id()? & 0xffff_ffff,
        // Others have the device number as their id (xfs, f2fs). statfs of XFS waited for its disk in
        // Linux 5.14 to 5.18.
        _ => return None,
    };
    (id != 0).then_some(id)
}

/// Whether the machine swaps to a file. The kernel writes such a file past the filesystem, also while
/// that is frozen.
fn has_swap_file() -> bool {
    // A kernel without swap has no such file.
    names_a_file(&fs::read_to_string(SWAPS).unwrap_or_default())
}

fn names_a_file(swaps: &str) -> bool {
    swaps
        .lines()
        .any(|line| line.split_ascii_whitespace().nth(1) == Some("file"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn swap_file_is_told_from_a_swap_partition() {
        let header = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n";
        let partition = "/dev/sda2                               partition\t8388604\t0\t-2\n";
        let file = "/swap\\040file\\040(deleted)               file\t\t4194300\t0\t-3\n";
        assert!(!names_a_file(header));
        assert!(!names_a_file(&format!("{header}{partition}")));
        assert!(names_a_file(&format!("{header}{partition}{file}")));
    }
}
