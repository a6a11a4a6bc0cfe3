//! The mounts and the block devices of a machine, in one snapshot that can be queried many times.

use std::collections::BTreeSet;

use crate::device_number::DeviceNumber;
use crate::devices::{BlockDevice, DeviceGraph};
use crate::mount_tree::{MountTree, Reach};
use crate::mountinfo::{MountEntry, MountNamespace};
use crate::plan::{Plan, PlanError, Selection, UnreadableMounts};

/// The mounts of every visible namespace, and the block devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// The mounts. The first namespace is that of this process.
    pub namespaces: Vec<MountNamespace>,
    /// What could not be read about the mounts.
    pub unreadable_mounts: Vec<UnreadableMounts>,
    /// The block devices, and the devices that each is stacked on.
    pub devices: DeviceGraph,
}

/// One mount of this process's namespace, with facts that depend on the other mounts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount<'a> {
    /// Its line of mountinfo.
    pub entry: &'a MountEntry,
    /// Whether its mount point leads to it. If it does not, another mount covers it.
    pub is_visible: bool,
    /// The block devices that it lies on directly.
    pub block_devices: BTreeSet<DeviceNumber>,
}

impl Machine {
    /// Returns the mounts of this process's namespace, in the order of mountinfo.
    #[must_use]
    pub fn mounts(&self) -> Vec<Mount<'_>> {
        let Some(own) = self.namespaces.first() else {
            return Vec::new();
        };
        let tree = MountTree::new(own);
        own.mounts
            .iter()
            .map(|entry| Mount {
                entry,
                is_visible: tree.is_visible(entry),
                block_devices: self.devices.devices_of(entry),
            })
            .collect()
    }

    /// Returns the loop devices whose backing files decide the order of the freeze, and that can be
    /// asked for them without a risk of waiting.
    ///
    /// To answer, the kernel stats the file. On a dead network or FUSE filesystem that hangs. So a
    /// device is left out if its path leads to one in any namespace. The root of another namespace
    /// does not count, because every path leads at least there. It is left out as well if
    /// nothing is mounted on it: the close after the question would detach it if it is to be
    /// detached by itself.
    #[must_use]
    pub fn loops_to_ask(&self) -> Vec<&BlockDevice> {
        let mut seen = BTreeSet::new();
        let writable = self
            .namespaces
            .iter()
            .flat_map(|namespace| &namespace.mounts)
            .filter(|mount| !mount.superblock_is_read_only() && seen.insert(mount.device));
        let loops = self.devices.loops_below(writable);
        if loops.is_empty() {
            return Vec::new();
        }
        let trees: Vec<_> = self.namespaces.iter().map(MountTree::new).collect();
        let is_safe = |device: &&BlockDevice| {
            device.backing_file.as_deref().is_some_and(|file| {
                let mut ends = trees.iter().enumerate().filter_map(|(number, tree)| {
                    let (end, length) = tree.end_of(file)?;
                    Some(end).filter(|_| number == 0 || length > 1)
                });
                ends.all(MountEntry::is_answered_by_the_kernel)
            })
        };
        self.devices
            .block_devices()
            .filter(|device| loops.contains(&device.number))
            .filter(is_safe)
            .collect()
    }

    /// Returns the mounts of our own namespace that may show a subvolume with a number of its own,
    /// and that can be looked at without a risk of waiting.
    #[must_use]
    pub fn subvolumes(&self) -> Vec<&MountEntry> {
        let Some(own) = self.namespaces.first() else {
            return Vec::new();
        };
        let tree = MountTree::new(own);
        own.mounts
            .iter()
            .filter(|mount| mount.is_on_local_block_device() && mount.device.major == 0)
            .filter(|mount| tree.reach(mount) == Reach::Open)
            .collect()
    }

    /// Returns whether a superblock with this number is mounted anywhere.
    #[must_use]
    pub fn is_mounted(&self, device: DeviceNumber) -> bool {
        let mut mounts = self
            .namespaces
            .iter()
            .flat_map(|namespace| &namespace.mounts);
        mounts.any(|mount| mount.device == device)
    }

    /// Plans what a run of `selection` would freeze. See [`Plan::make`].
    ///
    /// # Errors
    ///
    /// The same as [`Plan::make`].
    pub fn plan(&self, selection: &Selection) -> Result<Plan, PlanError> {
        let mut plan = Plan::make(&self.namespaces, &self.devices, selection)?;
        plan.unreadable_mounts.clone_from(&self.unreadable_mounts);
        Ok(plan)
    }

    /// Makes `plan` again, for what is mounted now. See [`Plan::make_again`].
    ///
    /// # Errors
    ///
    /// The same as [`Plan::make_again`].
    pub fn plan_again(&self, plan: &Plan) -> Result<Plan, PlanError> {
        if plan.filesystems.is_empty() {
            return Ok(plan.clone());
        }
        let mut again = plan.make_again(&self.namespaces, &self.devices)?;
        again.unreadable_mounts.clone_from(&self.unreadable_mounts);
        Ok(again)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mountinfo;

    #[test]
    fn mount_is_visible_unless_another_mount_covers_it_or_a_directory_above_it() {
        let mountinfo = b"1 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
            2 1 8:2 / /srv rw - ext4 /dev/sda2 rw\n\
            3 2 8:3 / /srv/a rw - ext4 /dev/sda3 rw\n\
            4 2 0:9 / /srv rw - tmpfs none rw\n";
        let machine = Machine {
            namespaces: vec![MountNamespace {
                pid: None,
                mounts: mountinfo::parse(mountinfo).mounts,
            }],
            ..Machine::default()
        };
        let mounts = machine.mounts();
        let visible: Vec<_> = mounts.iter().map(|mount| mount.is_visible).collect();
        assert_eq!(visible, [true, false, false, true]);
        let on: Vec<_> = mounts
            .iter()
            .map(|mount| mount.block_devices.len())
            .collect();
        assert_eq!(on, [1, 1, 1, 0]);
    }

    #[test]
    fn loop_device_is_not_asked_if_its_path_leads_to_a_filesystem_that_a_program_answers() {
        let own = b"1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 7:0 / /b rw - ext4 /dev/loop0 rw\n";
        let container = "5 0 0:40 / / rw - fuse.fuse-overlayfs fuse rw\n";
        let volume = "6 5 0:41 / /w rw - fuse.sshfs fuse rw\n";
        let asked = |theirs: &str| {
            let namespace = |pid, text: &[u8]| MountNamespace {
                pid,
                mounts: mountinfo::parse(text).mounts,
            };
            let loop_device = BlockDevice {
                number: DeviceNumber { major: 7, minor: 0 },
                names: vec!["/dev/loop0".to_owned()],
                directory: "/sys/devices/virtual/block/loop0".into(),
                parents: Vec::new(),
                backing_file: Some("/w/b.img".into()),
            };
            let machine = Machine {
                namespaces: vec![namespace(None, own), namespace(Some(7), theirs.as_bytes())],
                devices: DeviceGraph::new(vec![loop_device], Vec::new()),
                ..Machine::default()
            };
            machine.loops_to_ask().len()
        };
        // Every path leads at least to the root of a container.
        assert_eq!(asked(container), 1);
        assert_eq!(asked(&format!("{container}{volume}")), 0);
    }
}
