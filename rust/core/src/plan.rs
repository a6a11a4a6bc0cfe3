//! What to freeze, once per superblock and in which order, and what is left out and why.

use std::fmt;
use std::path::PathBuf;

/// A device number as mountinfo's third field and sysfs write it: `major:minor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceNumber {
    /// The major number; 0 for filesystems without a device of their own (and for btrfs).
    pub major: u32,
    /// The minor number.
    pub minor: u32,
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.major, self.minor)
    }
}

/// One superblock that is to be frozen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedFilesystem {
    /// Where it is mounted, as people name it (its first whole, visible mount).
    pub mount_point: PathBuf,
    /// The path to open it by: `mount_point`, or one below `/proc/PID/root` when it is mounted in
    /// another mount namespace only.
    pub open_path: PathBuf,
    /// Every other mount point of the same superblock in the same mount namespace.
    pub also_mounted_at: Vec<PathBuf>,
    /// mountinfo's major:minor: what names a superblock (never `st_dev`, which differs on btrfs).
    pub device: DeviceNumber,
    /// The mount source, as mountinfo has it: `/dev/sda1`.
    pub source: String,
    /// The filesystem type: `ext4`.
    pub filesystem_type: String,
    /// Freeze order: level 0 freezes first and thaws last; filesystems of one level are
    /// independent of one another. Levels have no gaps.
    pub level: u32,
}

/// One mounted superblock that is not frozen, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SkippedFilesystem {
    /// Where it is mounted.
    pub mount_point: PathBuf,
    /// mountinfo's major:minor.
    pub device: DeviceNumber,
    /// The mount source.
    pub source: String,
    /// The filesystem type.
    pub filesystem_type: String,
    /// Why it is left out.
    pub reason: SkipReason,
}

/// Why a filesystem is not frozen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SkipReason {
    /// The superblock is read-only: nothing writes to it.
    ReadOnly,
    /// The kernel cannot freeze this type (FIFREEZE answers EOPNOTSUPP).
    NotFreezable,
    /// It has no local block device: network, FUSE, autofs, or memory.
    NotOnLocalBlockDevice,
    /// An exclude pattern names it.
    Excluded {
        /// The pattern as it was given.
        pattern: String,
    },
    /// Include patterns were given and none names it.
    NotIncluded,
    /// Another mount covers every mount point of it, so it cannot be opened.
    Covered,
}

/// What a run will freeze, in freeze order, and what it leaves out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What is frozen, by level, then in the order of mountinfo.
    pub filesystems: Vec<PlannedFilesystem>,
    /// What is left out, in the order of mountinfo.
    pub skipped: Vec<SkippedFilesystem>,
    /// Exclude patterns that matched nothing: worth a warning, not an error.
    pub unmatched_excludes: Vec<String>,
}
