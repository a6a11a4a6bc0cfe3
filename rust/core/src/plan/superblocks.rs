//! Every mounted superblock once, with the mount that is best to open, and whether it can be frozen
//! at all.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::filesystems::{open_path, PlannedFilesystem, SkippedFilesystem};
use super::skip_reason::SkipReason;
use crate::device_number::DeviceNumber;
use crate::devices::DeviceGraph;
use crate::mount_tree::{MountTree, Reach};
use crate::mountinfo::{MountEntry, MountNamespace};
use crate::pattern::Subject;

/// Types on a block device that the kernel cannot freeze: their super_operations have no
/// `freeze_fs` (Linux 6.18). The run tries every other type, and FIFREEZE decides.
const NOT_FREEZABLE: [&str; 10] = [
    "vfat", "msdos", "exfat", "ntfs3", "iso9660", "udf", "squashfs", "erofs", "cramfs", "romfs",
];

/// One superblock, and its mounts in the namespace where it is best to open.
pub(super) struct Superblock<'a> {
    pid: Option<u32>,
    pub(super) primary: &'a MountEntry,
    reach: Reach,
    /// Its mounts with the same reach as `primary`, in the order of mountinfo.
    pub(super) mounts: Vec<&'a MountEntry>,
}

/// Returns every superblock once, in the order of their first mounts.
pub(super) fn superblocks(namespaces: &[MountNamespace]) -> Vec<Superblock<'_>> {
    let mut found: Vec<Superblock<'_>> = Vec::new();
    let mut index_of: BTreeMap<DeviceNumber, usize> = BTreeMap::new();
    for namespace in namespaces {
        let tree = MountTree::new(namespace);
        let mut by_device: BTreeMap<DeviceNumber, Vec<&MountEntry>> = BTreeMap::new();
        for mount in &namespace.mounts {
            by_device.entry(mount.device).or_default().push(mount);
        }
        for mount in &namespace.mounts {
            // The first mount of a superblock removes it from the map, so each is examined once.
            let Some(mounts) = by_device.remove(&mount.device) else {
                continue;
            };
            let Some(here) = Superblock::of(namespace.pid, mounts, &tree) else {
                continue;
            };
            match index_of
                .get(&mount.device)
                .and_then(|index| found.get_mut(*index))
            {
                Some(before) if here.reach < before.reach => *before = here,
                Some(_) => {}
                None => {
                    index_of.insert(mount.device, found.len());
                    found.push(here);
                }
            }
        }
    }
    found
}

impl<'a> Superblock<'a> {
    fn of(pid: Option<u32>, mounts: Vec<&'a MountEntry>, tree: &MountTree<'_>) -> Option<Self> {
        let reached: Vec<_> = mounts
            .into_iter()
            .map(|mount| (tree.reach(mount), mount))
            .collect();
        let best = reached.iter().map(|(reach, _)| *reach).min()?;
        let mounts: Vec<_> = reached
            .into_iter()
            .filter(|(reach, _)| *reach == best)
            .map(|(_, mount)| mount)
            .collect();
        // A mount of the whole filesystem comes before a mount of a directory in it (btrfs: the
        // subvolume nearest to the top). Then the shortest path wins, then the first mount.
        let length = |path: &Path| path.as_os_str().len();
        let primary = *mounts
            .iter()
            .min_by_key(|mount| (length(&mount.root), length(&mount.mount_point)))?;
        Some(Self {
            pid,
            primary,
            reach: best,
            mounts,
        })
    }

    /// Returns its mounts that show as much of it as `primary` does.
    ///
    /// A bind mount of one of its directories is not among them, because
    /// `--exclude /var/lib/docker/volumes/x` must not leave out all of `/`.
    pub(super) fn whole(&self) -> Vec<&'a MountEntry> {
        self.mounts
            .iter()
            .filter(|mount| mount.root == self.primary.root)
            .copied()
            .collect()
    }

    pub(super) fn subject<'s>(
        &'s self,
        devices: &'s DeviceGraph,
        mounts: &[&'s MountEntry],
    ) -> Subject<'s> {
        let lies_on = devices.devices_of(self.primary);
        let names = lies_on
            .iter()
            .flat_map(|device| devices.names_of(*device))
            .map(String::as_str);
        Subject {
            mount_points: mounts
                .iter()
                .map(|mount| mount.mount_point.as_path())
                .collect(),
            filesystem_type: &self.primary.filesystem_type,
            device_names: names.chain([self.primary.source.as_str()]).collect(),
            device_numbers: lies_on
                .iter()
                .copied()
                .chain([self.primary.device])
                .collect(),
        }
    }

    /// Returns why it cannot be frozen, no matter what the caller selects.
    pub(super) fn why_impossible(&self) -> Option<SkipReason> {
        if !self.primary.is_on_local_block_device() {
            Some(SkipReason::NotOnLocalBlockDevice)
        } else if self.primary.superblock_is_read_only() {
            // This check comes before the type. Leaving out a read-only image loses nothing;
            // leaving out a writable FAT disk does.
            Some(SkipReason::ReadOnly)
        } else if NOT_FREEZABLE.contains(&self.primary.filesystem_type.as_str()) {
            Some(SkipReason::NotFreezable)
        } else {
            None
        }
    }

    /// Returns why it cannot be reached, if nothing else keeps it from being frozen.
    pub(super) fn why_out_of_reach(&self) -> Option<SkipReason> {
        match (self.reach, self.pid) {
            // The covers can be detached in a copy of our own namespace.
            (Reach::Open, _) | (Reach::Covered, None) => None,
            (Reach::BehindAnother, _) => Some(SkipReason::BehindAnother),
            (Reach::Covered, Some(_)) => Some(SkipReason::Covered),
        }
    }

    pub(super) fn is_root(&self) -> bool {
        self.pid.is_none()
            && self.reach != Reach::Covered
            && self
                .mounts
                .iter()
                .any(|mount| mount.mount_point == Path::new("/"))
    }

    pub(super) fn skipped(&self, reason: SkipReason) -> SkippedFilesystem {
        SkippedFilesystem {
            mount_point: self.primary.mount_point.clone(),
            device: self.primary.device,
            source: self.primary.source.clone(),
            filesystem_type: self.primary.filesystem_type.clone(),
            reason,
        }
    }

    pub(super) fn planned(&self, level: u32, is_explicit: bool) -> PlannedFilesystem {
        let mount_point = self.primary.mount_point.clone();
        let others: BTreeSet<PathBuf> = self
            .mounts
            .iter()
            .map(|mount| mount.mount_point.clone())
            .filter(|path| *path != mount_point)
            .collect();
        PlannedFilesystem {
            open_path: open_path(&mount_point, self.pid),
            mount_point,
            also_mounted_at: others.into_iter().collect(),
            device: self.primary.device,
            source: self.primary.source.clone(),
            filesystem_type: self.primary.filesystem_type.clone(),
            level,
            is_explicit,
        }
    }
}
