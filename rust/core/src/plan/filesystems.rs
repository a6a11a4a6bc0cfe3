//! The filesystems of a plan: those to freeze, and those left out.

use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

use super::skip_reason::SkipReason;
use crate::device_number::DeviceNumber;
use crate::text::path_text;

/// Returns the path to open for a mount of another namespace: the one that process `pid` sees. It is
/// the mount point itself if this process sees it, too (`None`).
#[must_use]
pub fn open_path(mount_point: &Path, pid: Option<u32>) -> PathBuf {
    match pid {
        None => mount_point.to_owned(),
        Some(pid) => {
            let below_root = mount_point.strip_prefix("/").unwrap_or(mount_point);
            PathBuf::from(format!("/proc/{pid}/root")).join(below_root)
        }
    }
}

/// One superblock that the run freezes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlannedFilesystem {
    /// Where it is mounted: the visible mount that shows most of it. If other mounts cover all of
    /// them, it is opened below the covers.
    #[serde(serialize_with = "path_as_text")]
    pub mount_point: PathBuf,
    /// The path to open: `mount_point`, or a path below `/proc/PID/root` if it can only be reached
    /// in another mount namespace.
    #[serde(serialize_with = "path_as_text")]
    pub open_path: PathBuf,
    /// Every other mount point of the same superblock in the same mount namespace, except those
    /// that are harder to reach.
    #[serde(serialize_with = "paths_as_text")]
    pub also_mounted_at: Vec<PathBuf>,
    /// mountinfo's major:minor, which identifies the superblock. `st_dev` does not: it differs on
    /// btrfs.
    pub device: DeviceNumber,
    /// The mount source as in mountinfo: `/dev/sda1`.
    pub source: String,
    /// The filesystem type: `ext4`.
    pub filesystem_type: String,
    /// The freeze level. Level 0 freezes first and thaws last. Filesystems of one level do not
    /// depend on each other. Levels have no gaps.
    pub level: u32,
    /// Whether the caller asked for it by its own name: an include pattern that names one mount or
    /// device. A run without such a filesystem is not what the caller wants.
    #[serde(skip)]
    pub is_explicit: bool,
}

/// One mounted superblock that is not frozen, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SkippedFilesystem {
    /// Where it is mounted.
    #[serde(serialize_with = "path_as_text")]
    pub mount_point: PathBuf,
    /// mountinfo's major:minor.
    pub device: DeviceNumber,
    /// The mount source.
    pub source: String,
    /// The filesystem type.
    pub filesystem_type: String,
    /// Why it is left out. The JSON has a stable `reason` and a sentence `why`.
    #[serde(flatten)]
    pub reason: SkipReason,
}

/// A table of mounts, or a line of it, that could not be read. It may show filesystems that can be
/// written and that the plan does not know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UnreadableMounts {
    /// The table: `/proc/20/mountinfo`.
    pub path: String,
    /// What could not be read, and why.
    pub why: String,
}

fn path_as_text<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path_text(path))
}

fn paths_as_text<S: Serializer>(paths: &[PathBuf], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(paths.iter().map(|path| path_text(path)))
}
