//! The mounts of one namespace as a tree, to find the mount that a path leads to.
//!
//! An ordinary user can make 100,000 mounts in a namespace, all on top of each other or with paths of
//! 4 KiB. So what the tree answers for every mount is found in one pass, in a time that is
//! proportional to the length of the table.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::path::Path;

use crate::device_number::DeviceNumber;
use crate::mountinfo::{MountEntry, MountNamespace};

impl MountNamespace {
    /// Returns every mount of the superblock `device`, and whether opening it may hang because a
    /// network or FUSE filesystem is on the way.
    #[must_use]
    pub fn mounts_of(&self, device: DeviceNumber) -> Vec<(&MountEntry, bool)> {
        let tree = MountTree::new(self);
        let mounts = self.mounts.iter().filter(|mount| mount.device == device);
        mounts
            .map(|mount| (mount, tree.way_may_hang(mount)))
            .collect()
    }

    /// Returns the mounts of the superblocks that `wanted` selects, and those on the way to them. How
    /// well each of the former can be opened is the same as in the whole namespace.
    #[must_use]
    pub fn reduced_to(self, wanted: impl Fn(&MountEntry) -> bool) -> Self {
        let tree = MountTree::new(&self);
        let ways = self.mounts.iter().filter(|mount| wanted(mount));
        let mut kept: HashSet<u32> = tree.ways_to(ways.clone());
        kept.extend(ways.map(|mount| mount.mount_id));
        let mut mounts = self.mounts;
        mounts.retain(|mount| kept.contains(&mount.mount_id));
        Self { mounts, ..self }
    }

    /// Returns the first mount that hides the one of `device` at `mount_point`. `None` if nothing
    /// hides it, or if there is no such mount.
    #[must_use]
    pub fn cover_at(&self, device: DeviceNumber, mount_point: &Path) -> Option<&MountEntry> {
        let is_it =
            |mount: &&MountEntry| mount.device == device && mount.mount_point == mount_point;
        let hidden = self.mounts.iter().find(is_it)?;
        let parents: HashMap<u32, u32> = self
            .mounts
            .iter()
            .map(|mount| (mount.mount_id, mount.parent_id))
            .collect();
        // The mounts that it is mounted on. A way that leads to it passes no others.
        let mut below = HashSet::new();
        let mut next = Some(hidden.mount_id);
        // An initial root filesystem is its own parent.
        while let Some(id) = next.filter(|id| below.insert(*id)) {
            next = parents.get(&id).copied();
        }
        MountTree::new(self)
            .way_to(mount_point)
            .into_iter()
            .find(|passed| !below.contains(&passed.mount_id))
    }
}

/// How well a mount can be opened. An earlier variant is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reach {
    Open,
    /// The way to it leads through a network or FUSE filesystem, which may hang or refuse.
    BehindAnother,
    Covered,
}

/// The way that a path leads, through all mounts at its last name.
#[derive(Clone, Copy, Default)]
struct Way<'a> {
    /// The last mount. `None` if nothing is mounted at the root directory.
    end: Option<&'a MountEntry>,
    /// How many mounts it passes.
    length: usize,
    /// Whether a path may hang or be refused before it gets to the last mount.
    may_hang_before: bool,
    /// Whether a path that leads on from the last mount may hang or be refused.
    may_hang: bool,
}

impl<'a> Way<'a> {
    fn through(self, mount: &'a MountEntry, is_ours: bool) -> Self {
        // Our own root filesystem does not count, because every path of ours leads through it. The
        // root of another namespace may be the FUSE mount of an ordinary user, which refuses root.
        let counts = !is_ours || self.length > 0;
        Self {
            end: Some(mount),
            length: self.length + 1,
            may_hang_before: self.may_hang,
            may_hang: self.may_hang || (counts && !mount.is_answered_by_the_kernel()),
        }
    }
}

/// A mount point, or a directory above one.
struct Place<'a> {
    /// The place above. `None` for the root directory.
    above: Option<usize>,
    /// How many mounts there are.
    mounts: usize,
    way: Way<'a>,
}

/// The mounts of one namespace as a tree.
pub(crate) struct MountTree<'a> {
    /// Whether it is the namespace of our own process.
    is_ours: bool,
    /// All places, each after the one above it.
    places: Vec<Place<'a>>,
    /// The index of the place that a name leads to from another. The root directory has none above it.
    names: HashMap<(Option<usize>, &'a OsStr), usize>,
    /// The mount on a place of a parent mount. The parent is `None` if the process cannot see it.
    children: HashMap<(Option<u32>, usize), &'a MountEntry>,
}

impl<'a> MountTree<'a> {
    pub(crate) fn new(namespace: &'a MountNamespace) -> Self {
        let ids: HashSet<u32> = namespace
            .mounts
            .iter()
            .map(|mount| mount.mount_id)
            .collect();
        let mut tree = Self {
            is_ours: namespace.pid.is_none(),
            places: Vec::new(),
            names: HashMap::new(),
            children: HashMap::new(),
        };
        for mount in &namespace.mounts {
            // A mount point is absolute, so it has at least the name of the root directory.
            let Some(place) = tree.add_places(&mount.mount_point) else {
                continue;
            };
            // An initial root filesystem is its own parent.
            let parent =
                Some(mount.parent_id).filter(|id| *id != mount.mount_id && ids.contains(id));
            tree.children.insert((parent, place), mount);
            if let Some(place) = tree.places.get_mut(place) {
                place.mounts += 1;
            }
        }
        for place in 0..tree.places.len() {
            let mut way = tree.way_above(place);
            for mount in tree.passed_at(place) {
                way = way.through(mount, tree.is_ours);
            }
            if let Some(place) = tree.places.get_mut(place) {
                place.way = way;
            }
        }
        tree
    }

    fn add_places(&mut self, path: &'a Path) -> Option<usize> {
        let mut above = None;
        for name in path {
            let places = &mut self.places;
            let place = self.names.entry((above, name)).or_insert_with(|| {
                places.push(Place {
                    above,
                    mounts: 0,
                    way: Way::default(),
                });
                places.len() - 1
            });
            above = Some(*place);
        }
        above
    }

    fn way_above(&self, place: usize) -> Way<'a> {
        let above = self.places.get(place).and_then(|place| place.above);
        above
            .and_then(|above| self.places.get(above))
            .map(|above| above.way)
            .unwrap_or_default()
    }

    /// Returns the mounts that a way passes at this place, in their order.
    fn passed_at(&self, place: usize) -> impl Iterator<Item = &'a MountEntry> + '_ {
        let mut at = self.way_above(place).end.map(|mount| mount.mount_id);
        // Mounts can be stacked on one mount point, and the kernel goes to the topmost. More steps
        // than there are mounts are only possible if the parents in a bad input form a cycle.
        let mounts = self.places.get(place).map_or(0, |place| place.mounts);
        (0..mounts).map_while(move |_| {
            let mount = *self.children.get(&(at, place))?;
            at = Some(mount.mount_id);
            Some(mount)
        })
    }

    /// Returns the places on `path`, beginning with the root directory. Nothing is mounted further
    /// down.
    fn places_on<'t>(&'t self, path: &'t Path) -> impl Iterator<Item = usize> + 't {
        path.iter().scan(None, |above, name| {
            *above = Some(*self.names.get(&(*above, name))?);
            *above
        })
    }

    fn way(&self, path: &Path) -> Way<'a> {
        let place = self.places_on(path).last();
        let place = place.and_then(|place| self.places.get(place));
        place.map(|place| place.way).unwrap_or_default()
    }

    /// Returns the mount that `path` lies on, and how many mounts the way to it passes, itself
    /// included.
    pub(crate) fn end_of(&self, path: &Path) -> Option<(&'a MountEntry, usize)> {
        let way = self.way(path);
        Some((way.end?, way.length))
    }

    /// Returns whether the mount point of `mount` leads to it.
    ///
    /// A mount is hidden if and only if the way to its own mount point does not end on it. This one
    /// rule covers a mount stacked on the same mount point, a mount on a directory further up, and
    /// everything below either.
    pub(crate) fn is_visible(&self, mount: &MountEntry) -> bool {
        self.reach(mount) != Reach::Covered
    }

    /// Returns how well `mount` can be opened in this namespace.
    pub(crate) fn reach(&self, mount: &MountEntry) -> Reach {
        let way = self.way(&mount.mount_point);
        if !way.end.is_some_and(|end| std::ptr::eq(end, mount)) {
            Reach::Covered
        } else if way.may_hang_before {
            Reach::BehindAnother
        } else {
            Reach::Open
        }
    }

    /// Returns whether a path that leads to the mount point of `mount` may hang or be refused.
    pub(crate) fn way_may_hang(&self, mount: &MountEntry) -> bool {
        self.way(&mount.mount_point).may_hang
    }

    /// Follows `path` from the root directory as the kernel does, and returns the mounts that it
    /// passes. `path` lies on the last of them.
    pub(crate) fn way_to(&self, path: &Path) -> Vec<&'a MountEntry> {
        self.places_on(path)
            .flat_map(|place| self.passed_at(place))
            .collect()
    }

    /// Returns the ids of all mounts on the ways to `mounts`.
    pub(crate) fn ways_to<'m>(&self, mounts: impl Iterator<Item = &'m MountEntry>) -> HashSet<u32> {
        let mut passed = HashSet::new();
        let mut done = HashSet::new();
        for mount in mounts {
            for place in self.places_on(&mount.mount_point) {
                if done.insert(place) {
                    passed.extend(self.passed_at(place).map(|mount| mount.mount_id));
                }
            }
        }
        passed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mountinfo::parse;

    fn ours(mountinfo: &[u8]) -> MountNamespace {
        MountNamespace {
            pid: None,
            mounts: parse(mountinfo).mounts,
        }
    }

    #[test]
    fn a_path_leads_through_every_mount_on_its_way() {
        let namespace = ours(
            b"1 1 8:1 / / rw - ext4 a rw\n2 1 8:2 / /srv rw - ext4 b rw\n3 2 8:3 / /srv rw - ext4 c rw\n",
        );
        let way = |path: &str| -> Vec<u32> {
            MountTree::new(&namespace)
                .way_to(Path::new(path))
                .iter()
                .map(|mount| mount.mount_id)
                .collect()
        };
        assert_eq!(way("/srv/x"), [1, 2, 3]);
        assert_eq!(way("/srvx"), [1]);
    }

    #[test]
    fn way_to_ends_when_the_parents_form_a_cycle() {
        let namespace = ours(b"1 2 8:1 / / rw - ext4 a rw\n2 1 8:2 / / rw - ext4 b rw\n");
        let tree = MountTree::new(&namespace);
        assert!(tree.way_to(Path::new("/a")).len() <= 4);
    }

    #[test]
    fn namespace_reduced_to_a_superblock_keeps_its_mounts_and_the_way_to_them() {
        let namespace = ours(
            b"1 1 8:1 / / rw - ext4 a rw\n2 1 0:9 / /t rw - tmpfs t rw\n3 1 0:5 / /f rw - fuse.x f rw\n\
            4 3 8:2 / /f/a rw - ext4 b rw\n5 1 8:2 / /b rw - ext4 b rw\n6 5 0:9 / /b rw - tmpfs t rw\n",
        );
        let is_wanted = |mount: &MountEntry| mount.device.minor == 2;
        let reach_of = |namespace: &MountNamespace| -> Vec<_> {
            let tree = MountTree::new(namespace);
            let wanted = namespace.mounts.iter().filter(|mount| is_wanted(mount));
            wanted
                .map(|mount| (mount.mount_id, tree.reach(mount)))
                .collect()
        };
        let whole = reach_of(&namespace);
        assert_eq!(whole, [(4, Reach::BehindAnother), (5, Reach::Covered)]);
        let reduced = namespace.reduced_to(is_wanted);
        assert_eq!(reach_of(&reduced), whole);
        let ids: Vec<_> = reduced.mounts.iter().map(|mount| mount.mount_id).collect();
        assert_eq!(ids, [1, 3, 4, 5, 6]);
    }

    #[test]
    fn cover_is_the_first_mount_on_the_way_that_the_hidden_one_is_not_mounted_on() {
        let namespace = ours(
            b"1 1 8:1 / / rw - ext4 a rw\n2 1 8:2 / /a rw - ext4 b rw\n3 2 8:3 / /a/b rw - ext4 c rw\n\
            4 3 0:9 / /a/b rw - tmpfs d rw\n5 1 8:4 / /free rw - ext4 e rw\n",
        );
        let cover = |namespace: &MountNamespace, device, path: &str| {
            let device = DeviceNumber {
                major: 8,
                minor: device,
            };
            let cover = namespace.cover_at(device, Path::new(path));
            cover.map(|cover| cover.mount_id)
        };
        assert_eq!(cover(&namespace, 3, "/a/b"), Some(4));
        assert_eq!(cover(&namespace, 4, "/free"), None);
        assert_eq!(cover(&namespace, 9, "/free"), None);
        // A mount on the directory above hides both.
        let mut mounts = namespace.mounts.clone();
        mounts.push(parse(b"6 2 0:10 / /a rw - tmpfs f rw").mounts.remove(0));
        let covered_above = MountNamespace { pid: None, mounts };
        assert_eq!(cover(&covered_above, 3, "/a/b"), Some(6));
        assert_eq!(cover(&covered_above, 2, "/a"), Some(6));
    }

    /// Counts instead of measuring time: what the tree stores and follows grows with the table.
    #[test]
    fn stacked_mounts_are_each_passed_once() {
        for count in [1000, 2000] {
            let mut table = String::from("1 1 8:1 / / rw - ext4 a rw\n");
            for id in 2..count + 2 {
                table += &format!("{id} {} 0:9 / /s rw - tmpfs t rw\n", id - 1);
            }
            let namespace = ours(table.as_bytes());
            let tree = MountTree::new(&namespace);
            let passed: usize = (0..tree.places.len())
                .map(|place| tree.passed_at(place).count())
                .sum();
            assert_eq!((tree.places.len(), passed), (2, count + 1));
            let visible = namespace
                .mounts
                .iter()
                .filter(|mount| tree.is_visible(mount));
            let ids: Vec<_> = visible.map(|mount| mount.mount_id).collect();
            assert_eq!(ids, [1, u32::try_from(count).unwrap_or(0) + 1]);
        }
    }
}
