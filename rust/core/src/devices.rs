//! Block devices and the devices they are stacked on, as pure data: which filesystem lies below
//! which.
//!
//! This matters when the device of a filesystem is a file on a *frozen* filesystem. FIFREEZE of the
//! upper filesystem then hangs until the lower one is thawed, and cannot be killed. So the upper
//! filesystem must freeze first.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use crate::device_number::DeviceNumber;
use crate::mountinfo::{MountEntry, MountTree};
use crate::text::path_text;

/// The major number of loop devices (Linux, Documentation/admin-guide/devices.txt).
const LOOP_MAJOR: u32 = 7;

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
}

impl DeviceGraph {
    /// Makes a graph from `devices` and the member devices of each btrfs filesystem.
    #[must_use]
    pub fn new(devices: Vec<BlockDevice>, btrfs: Vec<BTreeSet<DeviceNumber>>) -> Self {
        let devices = devices
            .into_iter()
            .map(|device| (device.number, device))
            .collect();
        Self { devices, btrfs }
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

    /// Returns, for each of `superblocks`, all others that lie below it at any depth.
    ///
    /// `superblocks` has one mount per superblock. `mounts` is our own mount namespace; the paths
    /// of backing files are resolved in it.
    ///
    /// A bad input can put a superblock below itself (two loops, each on a file of the other). Such
    /// superblocks stay unordered, so the answer is always a strict order.
    #[must_use]
    pub fn superblocks_below(
        &self,
        superblocks: &[&MountEntry],
        mounts: &[MountEntry],
    ) -> BTreeMap<DeviceNumber, BTreeSet<DeviceNumber>> {
        let tree = MountTree::new(mounts);
        let lying: Vec<Lying> = superblocks.iter().map(|mount| self.lying(mount)).collect();
        let mut direct: BTreeMap<DeviceNumber, BTreeSet<DeviceNumber>> = BTreeMap::new();
        for upper in &lying {
            let below = direct.entry(upper.superblock).or_default();
            // A filesystem that shares a device with this one is next to it, not below it.
            let lower = lying
                .iter()
                .filter(|lower| !lower.directly_on.is_disjoint(&upper.over));
            below.extend(lower.map(|lower| lower.superblock));
            for device in upper
                .directly_on
                .union(&upper.over)
                .filter(|number| self.is_loop(**number))
            {
                match self.file_lies_on(*device, mounts, &tree) {
                    Some(lower) => below.extend(lower),
                    // The filesystem of the backing file is unknown: the file lies on an overlay,
                    // or was opened in another mount namespace. If the loop freezes before every
                    // filesystem that could hold the file, it cannot hang. Filesystems that lie on
                    // a loop are left out, because two such loops would each have to be first.
                    None => below.extend(
                        lying
                            .iter()
                            .filter(|lower| self.is_on_no_loop(lower))
                            .map(|lower| lower.superblock),
                    ),
                }
            }
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

    fn is_on_no_loop(&self, lying: &Lying) -> bool {
        let mut devices = lying.directly_on.union(&lying.over);
        !lying.directly_on.is_empty() && !devices.any(|number| self.is_loop(*number))
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

    /// Returns the superblocks that the backing file of loop device `number` may lie on. `None` if
    /// they are unknown.
    fn file_lies_on(
        &self,
        number: DeviceNumber,
        mounts: &[MountEntry],
        tree: &MountTree<'_>,
    ) -> Option<BTreeSet<DeviceNumber>> {
        let file = self.devices.get(&number)?.backing_file.as_deref()?;
        if self.number_of(&path_text(file)).is_some() {
            return Some(BTreeSet::new());
        }
        // sysfs shows an unlinked file as `/dir/name (deleted)`. Only the mounts on the way to it
        // count, and they are the same with and without that suffix.
        let here = tree.way_to(file).last().copied()?;
        let is_in_memory = matches!(
            here.filesystem_type.as_str(),
            "tmpfs" | "ramfs" | "devtmpfs"
        );
        if !here.is_on_local_block_device() && !is_in_memory {
            return None;
        }
        // This takes all mounts above the path, not only the one that is visible there now. Another
        // filesystem may have been mounted over the file after the loop was set up. One mount too
        // many only adds order that is not needed.
        let on_the_way = mounts
            .iter()
            .filter(|mount| file.starts_with(&mount.mount_point));
        Some(on_the_way.map(|mount| mount.device).collect())
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
