//! The mounts and the block devices of a machine, in one snapshot that can be queried many times.

use std::collections::BTreeSet;

use crate::device_number::DeviceNumber;
use crate::devices::DeviceGraph;
use crate::mountinfo::{MountEntry, MountNamespace, MountTree};
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
        let mounts = self
            .namespaces
            .first()
            .map_or(&[][..], |namespace| &namespace.mounts);
        let tree = MountTree::new(mounts);
        mounts
            .iter()
            .map(|entry| Mount {
                entry,
                is_visible: tree
                    .way_to(&entry.mount_point)
                    .last()
                    .is_some_and(|end| std::ptr::eq(*end, entry)),
                block_devices: self.devices.devices_of(entry),
            })
            .collect()
    }

    /// Plans what a run of `selection` would freeze. See [`Plan::make`].
    ///
    /// # Errors
    ///
    /// The same as [`Plan::make`].
    pub fn plan(&self, selection: &Selection) -> Result<Plan, PlanError> {
        let plan = Plan::make(&self.namespaces, &self.devices, selection)?;
        Ok(Plan {
            unreadable_mounts: self.unreadable_mounts.clone(),
            ..plan
        })
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
}
