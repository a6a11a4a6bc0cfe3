//! Block devices and the devices they are stacked on, as pure data: which filesystem lies below
//! which.
//!
//! This matters when the device of a filesystem is a file on a *frozen* filesystem. FIFREEZE of the
//! upper filesystem then hangs until the lower one is thawed, and cannot be killed. So the upper
//! filesystem must freeze first.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::device_number::DeviceNumber;
use crate::mountinfo::MountEntry;
use crate::text::path_text;

/// The major number of loop devices (Linux, Documentation/admin-guide/devices.txt).
const LOOP_MAJOR: u32 = 7;

/// How a part of a device's sysfs path begins if a program, or the kernel in the name of a
/// configuration, provides the device: nbd, ublk, Ceph, the loopback of the kernel's SCSI target,
/// iSCSI, NVMe over a network, virtio in user space. sysfs does not tell whether the other end is on
/// this machine.
const SERVED: [&str; 7] = [
    "nbd",
    "ublkb",
    "rbd",
    "tcm_loop_adapter_",
    "session",
    "nvme-fabrics",
    "vduse",
];

/// One block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockDevice {
    /// The device number.
    pub number: DeviceNumber,
    /// All names of the device: `/dev/dm-0`, `/dev/mapper/data`.
    pub names: Vec<String>,
    /// Its directory in sysfs, with all symbolic links resolved.
    pub directory: PathBuf,
    /// The devices directly below it: the disk of a partition, the slaves of dm, md and bcache.
    pub parents: Vec<DeviceNumber>,
    /// The file behind a loop device, as in sysfs. An unlinked file has ` (deleted)` after its
    /// name.
    pub backing_file: Option<PathBuf>,
}

/// All block devices of the machine, and the device set of each filesystem with several devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceGraph {
    devices: BTreeMap<DeviceNumber, BlockDevice>,
    btrfs: Vec<BTreeSet<DeviceNumber>>,
    files_on: BTreeMap<DeviceNumber, DeviceNumber>,
}

impl DeviceGraph {
    /// Makes a graph from `devices` and the member devices of each btrfs filesystem.
    #[must_use]
    pub fn new(devices: Vec<BlockDevice>, btrfs: Vec<BTreeSet<DeviceNumber>>) -> Self {
        let devices = devices
            .into_iter()
            .map(|device| (device.number, device))
            .collect();
        Self {
            devices,
            btrfs,
            files_on: BTreeMap::new(),
        }
    }

    /// Adds, for loop devices, the number of the filesystem that the backing file lies on: `st_dev`
    /// of the file, as `LOOP_GET_STATUS64` gives it, or mountinfo's number if that is known.
    #[must_use]
    pub fn with_files_on(self, files_on: BTreeMap<DeviceNumber, DeviceNumber>) -> Self {
        Self { files_on, ..self }
    }

    /// Returns every block device, ordered by number.
    pub fn block_devices(&self) -> impl Iterator<Item = &BlockDevice> {
        self.devices.values()
    }

    /// Returns the number of the device with the name `name`.
    #[must_use]
    pub fn number_of(&self, name: &str) -> Option<DeviceNumber> {
        let mut devices = self.devices.values();
        devices
            .find(|device| device.names.iter().any(|known| known == name))
            .map(|device| device.number)
    }

    /// Returns the names of the device with the number `number`.
    #[must_use]
    pub fn names_of(&self, number: DeviceNumber) -> &[String] {
        self.devices
            .get(&number)
            .map_or(&[], |device| &device.names)
    }

    /// Returns the block devices that the superblock of `mount` lies on directly.
    #[must_use]
    pub fn devices_of(&self, mount: &MountEntry) -> BTreeSet<DeviceNumber> {
        if !mount.is_on_local_block_device() {
            return BTreeSet::new();
        }
        if mount.device.major != 0 {
            return BTreeSet::from([mount.device]);
        }
        // The source of a bcachefs mount lists all its devices. The source of a btrfs mount names
        // any one of them.
        let named: BTreeSet<_> = mount
            .source
            .split(':')
            .filter_map(|name| self.number_of(name))
            .collect();
        if mount.filesystem_type != "btrfs" {
            return named;
        }
        // A source that names no known device (`/dev/root`, a by-uuid link) may be any btrfs. Too
        // many devices only add order that is not needed.
        let sets = self
            .btrfs
            .iter()
            .filter(|set| named.is_empty() || !set.is_disjoint(&named));
        sets.flatten()
            .copied()
            .chain(named.iter().copied())
            .collect()
    }

    /// Returns the loop devices with a file that any of `mounts` lies on, at any depth.
    #[must_use]
    pub fn loops_below<'m>(
        &self,
        mounts: impl Iterator<Item = &'m MountEntry>,
    ) -> BTreeSet<DeviceNumber> {
        let mut loops = BTreeSet::new();
        for mount in mounts {
            let lying = self.lying(mount);
            loops.extend(lying.directly_on.union(&lying.over).filter(|number| {
                let device = self.devices.get(number);
                device.is_some_and(|device| device.backing_file.is_some())
            }));
        }
        loops
    }

    /// Returns, for each of `superblocks`, all others that lie below it at any depth.
    ///
    /// `superblocks` has one mount per superblock. `mounts` is our own mount namespace; the paths
    /// of backing files are resolved in it.
    ///
    /// A superblock whose devices may lie on any file freezes before everything that is not such a
    /// superblock, and not above one. It cannot hang then, wherever the file is.
    ///
    /// A bad input can put a superblock below itself (two loops, each on a file of the other). Such
    /// superblocks stay unordered, so the answer is always a strict order.
    #[must_use]
    pub fn superblocks_below(
        &self,
        superblocks: &[&MountEntry],
        mounts: &[MountEntry],
    ) -> BTreeMap<DeviceNumber, BTreeSet<DeviceNumber>> {
        let lying: Vec<Lying> = superblocks.iter().map(|mount| self.lying(mount)).collect();
        let mut direct: BTreeMap<DeviceNumber, BTreeSet<DeviceNumber>> = BTreeMap::new();
        let mut on_any_file = BTreeSet::new();
        // No program of this machine can serve its root filesystem.
        let root = mounts
            .iter()
            .find(|mount| mount.mount_point == Path::new("/"))
            .map(|mount| mount.device);
        // Most superblocks lie on no device. The comparison of each with each leaves them out.
        let on_devices: Vec<&Lying> = lying
            .iter()
            .filter(|lying| !lying.directly_on.is_empty())
            .collect();
        for upper in &lying {
            let below = direct.entry(upper.superblock).or_default();
            // A filesystem that shares a device with this one is next to it, not below it.
            let lower = on_devices
                .iter()
                .filter(|lower| !lower.directly_on.is_disjoint(&upper.over));
            below.extend(lower.map(|lower| lower.superblock));
            for device in upper.directly_on.union(&upper.over) {
                if self.is_loop(*device) {
                    if let Some(lower) = self.file_lies_on(*device, superblocks) {
                        below.extend(lower);
                        continue;
                    }
                    // The path may be wrong. It only orders those that may lie on any file.
                    below.extend(self.path_leads_to(*device, mounts));
                    on_any_file.insert(upper.superblock);
                } else if self.is_served(*device) && Some(upper.superblock) != root {
                    on_any_file.insert(upper.superblock);
                }
            }
        }
        let below = |device: DeviceNumber| direct.get(&device).cloned().unwrap_or_default();
        let others: Vec<DeviceNumber> = superblocks
            .iter()
            .filter(|mount| mount.is_on_local_block_device())
            .map(|mount| mount.device)
            .filter(|device| {
                !on_any_file.contains(device) && reachable(*device, below).is_disjoint(&on_any_file)
            })
            .collect();
        for device in &on_any_file {
            direct.entry(*device).or_default().extend(&others);
        }
        let below = |device: DeviceNumber| direct.get(&device).cloned().unwrap_or_default();
        let reached: BTreeMap<_, _> = direct
            .keys()
            .map(|start| (*start, reachable(*start, below)))
            .collect();
        let is_below = |lower: &DeviceNumber, upper: &DeviceNumber| {
            reached
                .get(upper)
                .is_some_and(|below| below.contains(lower))
        };
        let ordered = reached.iter().map(|(upper, below)| {
            (
                *upper,
                below
                    .iter()
                    .filter(|lower| !is_below(upper, lower))
                    .copied()
                    .collect(),
            )
        });
        ordered.collect()
    }

    fn lying(&self, mount: &MountEntry) -> Lying {
        let directly_on = self.devices_of(mount);
        let below = directly_on
            .iter()
            .flat_map(|device| reachable(*device, |number| self.parents_of(number)));
        let over = below
            .filter(|device| !directly_on.contains(device))
            .collect();
        Lying {
            superblock: mount.device,
            directly_on,
            over,
        }
    }

    /// Returns the devices directly below `number`, including the block device behind a loop
    /// device.
    fn parents_of(&self, number: DeviceNumber) -> BTreeSet<DeviceNumber> {
        let Some(device) = self.devices.get(&number) else {
            return BTreeSet::new();
        };
        let file = device
            .backing_file
            .as_deref()
            .and_then(|file| self.number_of(&path_text(file)));
        device.parents.iter().copied().chain(file).collect()
    }

    fn is_loop(&self, number: DeviceNumber) -> bool {
        number.major == LOOP_MAJOR
            || self
                .devices
                .get(&number)
                .is_some_and(|device| device.backing_file.is_some())
    }

    /// Returns whether the device may be served by a program of this machine from a file.
    fn is_served(&self, number: DeviceNumber) -> bool {
        let Some(device) = self.devices.get(&number) else {
            return false;
        };
        let mut parts = device.directory.iter().filter_map(|part| part.to_str());
        parts.any(|part| SERVED.iter().any(|served| part.starts_with(served)))
    }

    /// Returns the superblocks that the backing file of loop device `number` may lie on. `None` if
    /// it may be any.
    fn file_lies_on(
        &self,
        number: DeviceNumber,
        superblocks: &[&MountEntry],
    ) -> Option<BTreeSet<DeviceNumber>> {
        let file = self.devices.get(&number)?.backing_file.as_deref()?;
        // The file is a block device, and `parents_of` has it.
        if self.number_of(&path_text(file)).is_some() {
            return Some(BTreeSet::new());
        }
        let on = *self.files_on.get(&number)?;
        if let Some(lower) = superblocks.iter().find(|mount| mount.device == on) {
            // The file of an overlay lies on another filesystem, and that of a network or FUSE
            // filesystem may be served by a program of this machine.
            let is_in_memory = matches!(
                lower.filesystem_type.as_str(),
                "tmpfs" | "ramfs" | "devtmpfs"
            );
            return (lower.is_on_local_block_device() || is_in_memory)
                .then(|| BTreeSet::from([on]));
        }
        if on.major != 0 {
            // It is mounted nowhere that can be seen, so it is not frozen.
            return Some(BTreeSet::new());
        }
        // btrfs and bcachefs give each subvolume a number that mountinfo does not have, and an
        // overlay gives such numbers to the files of its layers.
        let have_own_numbers = superblocks.iter().filter(|mount| {
            matches!(
                mount.filesystem_type.as_str(),
                "btrfs" | "bcachefs" | "overlay"
            )
        });
        let mut candidates = BTreeSet::new();
        for mount in have_own_numbers {
            if mount.filesystem_type == "overlay" {
                return None;
            }
            candidates.insert(mount.device);
        }
        Some(candidates).filter(|candidates| !candidates.is_empty())
    }

    /// Returns the superblocks on the path of a loop device's file, as our mount namespace has it.
    ///
    /// The path is the one that the file's opener knows, and it is shorter than that if a mount on
    /// the way was detached.
    fn path_leads_to(&self, number: DeviceNumber, mounts: &[MountEntry]) -> BTreeSet<DeviceNumber> {
        let device = self.devices.get(&number);
        let Some(file) = device.and_then(|device| device.backing_file.as_deref()) else {
            return BTreeSet::new();
        };
        let on_the_way = mounts
            .iter()
            .filter(|mount| file.starts_with(&mount.mount_point));
        on_the_way.map(|mount| mount.device).collect()
    }
}

/// The devices that a superblock lies on.
struct Lying {
    superblock: DeviceNumber,
    /// Its own devices.
    directly_on: BTreeSet<DeviceNumber>,
    /// All devices below its own devices.
    over: BTreeSet<DeviceNumber>,
}

/// Returns everything that can be reached from `start` in one or more steps. Cycles are allowed.
fn reachable(
    start: DeviceNumber,
    next: impl Fn(DeviceNumber) -> BTreeSet<DeviceNumber>,
) -> BTreeSet<DeviceNumber> {
    let mut seen = BTreeSet::new();
    let mut open = vec![start];
    while let Some(device) = open.pop() {
        open.extend(next(device).into_iter().filter(|found| seen.insert(*found)));
    }
    seen
}
