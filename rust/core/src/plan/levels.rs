//! The order in which superblocks freeze: a superblock freezes before the one it is stacked on.

use std::collections::BTreeMap;

use super::superblocks::Superblock;
use crate::device_number::DeviceNumber;
use crate::devices::DeviceGraph;
use crate::mountinfo::{MountEntry, MountNamespace};

/// Returns the freeze level of each of `planned`.
///
/// A level is one more than the highest level among the superblocks that must freeze before it.
/// Those are the superblocks stacked above it.
pub(super) fn levels(
    superblocks: &[Superblock<'_>],
    planned: &[&Superblock<'_>],
    namespaces: &[MountNamespace],
    devices: &DeviceGraph,
) -> BTreeMap<DeviceNumber, u32> {
    // All superblocks take part, because one that is not frozen may connect two that are.
    let all: Vec<&MountEntry> = superblocks
        .iter()
        .map(|superblock| superblock.primary)
        .collect();
    let own_mounts = namespaces
        .first()
        .map_or(&[][..], |namespace| &namespace.mounts);
    let below = devices.superblocks_below(&all, own_mounts);
    let is_below = |lower: DeviceNumber, upper: DeviceNumber| {
        below
            .get(&upper)
            .is_some_and(|devices| devices.contains(&lower))
    };
    // Every process depends on `/`, this run included, so `/` must be frozen as briefly as
    // possible. `/` and the filesystems below it freeze after all others, so `/` has a level of its
    // own.
    let root = planned
        .iter()
        .find(|superblock| superblock.is_root())
        .map(|root| root.primary.device);
    let is_from_root_down =
        |device: DeviceNumber| root.is_some_and(|root| device == root || is_below(device, root));
    let must_freeze_first = |first: DeviceNumber, then: DeviceNumber| {
        is_below(then, first) || (is_from_root_down(then) && !is_from_root_down(first))
    };
    let devices: Vec<DeviceNumber> = planned
        .iter()
        .map(|superblock| superblock.primary.device)
        .collect();
    let mut order: Vec<(DeviceNumber, Vec<DeviceNumber>)> = devices
        .iter()
        .map(|then| {
            let before = devices
                .iter()
                .filter(|first| must_freeze_first(**first, *then));
            (*then, before.copied().collect())
        })
        .collect();
    // In a strict order, a predecessor of X has fewer predecessors than X.
    order.sort_by_key(|(_, before)| before.len());
    let mut levels = BTreeMap::new();
    for (device, before) in order {
        let above = before.iter().filter_map(|device| levels.get(device)).max();
        levels.insert(device, above.map_or(0, |level: &u32| level + 1));
    }
    levels
}
