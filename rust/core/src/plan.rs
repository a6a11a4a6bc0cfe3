//! What to freeze, once per superblock and in which order, and what is left out and why.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use crate::device_number::DeviceNumber;
use crate::devices::DeviceGraph;
use crate::mountinfo::{MountEntry, MountNamespace, MountTree, MountinfoError};
use crate::pattern::{Pattern, PatternError, Subject};
use crate::text::path_text;

/// Types that lie on a block device and that the kernel cannot freeze: their super_operations have
/// no `freeze_fs` (Linux 6.18). Any type not listed is tried; FIFREEZE has the last word.
const NOT_FREEZABLE: [&str; 10] = [
    "vfat", "msdos", "exfat", "ntfs3", "iso9660", "udf", "squashfs", "erofs", "cramfs", "romfs",
];

/// Types without a block device that a path may lead through without any risk of waiting: the
/// kernel itself answers for them. autofs is here because it only waits where nothing is mounted.
const ANSWERED_BY_THE_KERNEL: [&str; 11] = [
    "tmpfs", "devtmpfs", "ramfs", "rootfs", "overlay", "autofs", "proc", "sysfs", "devpts",
    "cgroup2", "zfs",
];

/// One superblock that is to be frozen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlannedFilesystem {
    /// Where it is mounted, as people name it (its first whole, visible mount).
    #[serde(serialize_with = "path_as_text")]
    pub mount_point: PathBuf,
    /// The path to open it by: `mount_point`, or one below `/proc/PID/root` when it is mounted in
    /// another mount namespace only.
    #[serde(serialize_with = "path_as_text")]
    pub open_path: PathBuf,
    /// Every other mount point of the same superblock in the same mount namespace, but for those
    /// that another mount covers.
    #[serde(serialize_with = "paths_as_text")]
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
    /// Why it is left out: in JSON a stable `reason` and a sentence `why`.
    #[serde(flatten)]
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
    /// The way to every mount point of it leads through a network or FUSE filesystem, which may
    /// hang whoever passes.
    BehindAnother,
    /// The run is to freeze nothing at all.
    FreezeNotWanted,
}

impl SkipReason {
    /// The stable name of the reason, for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::ReadOnly => "read-only",
            Self::NotFreezable => "not-freezable",
            Self::NotOnLocalBlockDevice => "not-on-local-block-device",
            Self::Excluded { .. } => "excluded",
            Self::NotIncluded => "not-included",
            Self::Covered => "covered",
            Self::BehindAnother => "behind-another",
            Self::FreezeNotWanted => "freeze-not-wanted",
        }
    }
}

impl fmt::Display for SkipReason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::ReadOnly => "it is read-only, so nothing writes to it",
            Self::NotFreezable => "the kernel cannot freeze this filesystem type",
            Self::NotOnLocalBlockDevice => "it is not on a local block device",
            Self::Excluded { pattern } => {
                return write!(formatter, "it is excluded by `{pattern}`")
            }
            Self::NotIncluded => "no include pattern names it",
            Self::Covered => "another mount covers it, so it cannot be opened",
            Self::BehindAnother => {
                "the way to it leads through a network or FUSE filesystem, which could hang"
            }
            Self::FreezeNotWanted => "the run is to freeze nothing",
        })
    }
}

impl Serialize for SkipReason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("SkipReason", 2)?;
        fields.serialize_field("reason", self.code())?;
        fields.serialize_field("why", &self.to_string())?;
        fields.end()
    }
}

fn path_as_text<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path_text(path))
}

fn paths_as_text<S: Serializer>(paths: &[PathBuf], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(paths.iter().map(|path| path_text(path)))
}

/// Why no plan could be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A file below `/proc` or `/sys` could not be read.
    #[error("could not read `{}`: {cause}", path_text(path))]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system answered.
        cause: std::io::ErrorKind,
    },
    /// A line of mountinfo is not as the kernel writes it.
    #[error(transparent)]
    MalformedMountinfo(#[from] MountinfoError),
    /// A pattern has no meaning.
    #[error(transparent)]
    BadPattern(#[from] PatternError),
    /// An include pattern matches no mounted filesystem.
    #[error("pattern `{pattern}` matches no mounted filesystem")]
    PatternMatchesNothing {
        /// The pattern as it was given.
        pattern: String,
    },
    /// An include pattern is a path at which nothing is mounted.
    #[error("`{path}` is not a mount point")]
    NoSuchMount {
        /// The path as it was given.
        path: String,
        /// The mount point of the filesystem that the path lies on.
        lies_on: Option<String>,
    },
    /// An include pattern names one mount by name, and that cannot be frozen.
    #[error("`{pattern}` ({filesystem_type}) cannot be frozen: {reason}")]
    NotFreezable {
        /// The pattern as it was given.
        pattern: String,
        /// The type of the filesystem it names.
        filesystem_type: String,
        /// Why that cannot be frozen.
        reason: SkipReason,
    },
}

impl PlanError {
    /// The stable name of the error, for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unreadable { .. } => "unreadable",
            Self::MalformedMountinfo(_) => "malformed-mountinfo",
            Self::BadPattern(_) => "bad-pattern",
            Self::PatternMatchesNothing { .. } => "pattern-matches-nothing",
            Self::NoSuchMount { .. } => "no-such-mount",
            Self::NotFreezable { .. } => "not-freezable",
        }
    }

    /// What the reader can do about it, when there is something.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoSuchMount { lies_on: Some(mount_point), .. } => {
                Some(format!("it lies on the filesystem mounted at `{mount_point}`"))
            }
            Self::BadPattern(_) => Some(
                "give a mount point (`/srv`, `/srv/*`), a device (`/dev/sda1`, `8:1`) or a type (`ext4`)".to_owned(),
            ),
            Self::PatternMatchesNothing { .. } => Some("`vmsnapshot plan` lists what is mounted".to_owned()),
            Self::NotFreezable { .. } => Some("leave it out, or use a glob, which skips what cannot be frozen".to_owned()),
            Self::Unreadable { .. } | Self::MalformedMountinfo(_) | Self::NoSuchMount { lies_on: None, .. } => None,
        }
    }
}

/// Which filesystems are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// When there are any, only what one of these matches is frozen.
    pub include: Vec<Pattern>,
    /// What one of these matches is not frozen, whatever includes it.
    pub exclude: Vec<Pattern>,
}

impl Selection {
    /// Parses include and exclude patterns.
    ///
    /// # Errors
    ///
    /// [`PlanError::BadPattern`] for the first that has no meaning.
    pub fn parse(include: &[String], exclude: &[String]) -> Result<Self, PlanError> {
        let all = |texts: &[String]| -> Result<Vec<_>, PatternError> {
            texts.iter().map(|text| Pattern::parse(text)).collect()
        };
        Ok(Self {
            include: all(include)?,
            exclude: all(exclude)?,
        })
    }
}

/// What a run will freeze, in freeze order, and what it leaves out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// What is frozen, by level, then in the order of mountinfo.
    pub filesystems: Vec<PlannedFilesystem>,
    /// What is left out, in the order of mountinfo.
    pub skipped: Vec<SkippedFilesystem>,
    /// Exclude patterns that matched nothing: worth a warning, not an error.
    pub unmatched_excludes: Vec<String>,
}

impl Plan {
    /// Works out what to freeze from what is mounted, without looking at any of it.
    ///
    /// The first of `namespaces` is our own. Another one counts only for superblocks that cannot
    /// be reached in those before it.
    ///
    /// # Errors
    ///
    /// When an include pattern matches nothing, or names one mount that cannot be frozen. An
    /// exclude pattern that matches nothing is only listed: what it was to keep out is not there.
    pub fn make(
        namespaces: &[MountNamespace],
        devices: &DeviceGraph,
        selection: &Selection,
    ) -> Result<Self, PlanError> {
        let superblocks = superblocks(namespaces);
        let subjects: Vec<Subject<'_>> = superblocks
            .iter()
            .map(|superblock| superblock.subject(devices, &superblock.mounts))
            .collect();
        let mut skip: Vec<Option<SkipReason>> = superblocks
            .iter()
            .map(|superblock| superblock.why_impossible())
            .collect();

        let mut unmatched_excludes: Vec<&Pattern> = selection.exclude.iter().collect();
        let mut is_excluded = vec![false; superblocks.len()];
        for ((superblock, skip), is_excluded) in
            superblocks.iter().zip(&mut skip).zip(&mut is_excluded)
        {
            let subject = superblock.subject(devices, &superblock.whole());
            for pattern in selection
                .exclude
                .iter()
                .filter(|pattern| pattern.matches(&subject))
            {
                *is_excluded = true;
                unmatched_excludes.retain(|unmatched| *unmatched != pattern);
                skip.get_or_insert_with(|| SkipReason::Excluded {
                    pattern: pattern.text().to_owned(),
                });
            }
        }
        for pattern in &selection.include {
            let mut matched = superblocks
                .iter()
                .zip(&skip)
                .zip(&is_excluded)
                .zip(&subjects)
                .filter(|(_, subject)| pattern.matches(subject))
                .map(|(rest, _)| rest)
                .peekable();
            if matched.peek().is_none() {
                return Err(matches_nothing(pattern, namespaces));
            }
            // Several superblocks can be mounted one over the other at the path that is named. It
            // is an error only if none of them can be frozen; the last one is what is seen there.
            let mut refused = None;
            for ((superblock, skip), is_excluded) in matched {
                match skip {
                    Some(reason) if !is_excluded => refused = Some((superblock, reason)),
                    _ => {
                        refused = None;
                        break;
                    }
                }
            }
            if let Some((superblock, reason)) = refused.filter(|_| pattern.is_literal()) {
                return Err(PlanError::NotFreezable {
                    pattern: pattern.text().to_owned(),
                    filesystem_type: superblock.primary.filesystem_type.clone(),
                    reason: reason.clone(),
                });
            }
        }
        if !selection.include.is_empty() {
            for (subject, skip) in subjects.iter().zip(&mut skip) {
                if !selection
                    .include
                    .iter()
                    .any(|pattern| pattern.matches(subject))
                {
                    skip.get_or_insert(SkipReason::NotIncluded);
                }
            }
        }

        let mut plan = Self {
            unmatched_excludes: unmatched_excludes
                .iter()
                .map(|pattern| pattern.text().to_owned())
                .collect(),
            ..Self::default()
        };
        let mut planned = Vec::new();
        for (superblock, skip) in superblocks.iter().zip(skip) {
            match skip {
                Some(reason) => plan.skipped.push(superblock.skipped(reason)),
                None => planned.push(superblock),
            }
        }
        let levels = levels(&superblocks, &planned, namespaces, devices);
        plan.filesystems = planned
            .iter()
            .map(|superblock| {
                superblock.planned(levels.get(&superblock.primary.device).copied().unwrap_or(0))
            })
            .collect();
        // The sort is stable: within a level the order of mountinfo stays.
        plan.filesystems.sort_by_key(|filesystem| filesystem.level);
        Ok(plan)
    }

    /// The same with nothing to freeze: what was planned comes last among what is left out.
    #[must_use]
    pub fn without_filesystems(&self) -> Self {
        let left_out = self.filesystems.iter().map(|planned| SkippedFilesystem {
            mount_point: planned.mount_point.clone(),
            device: planned.device,
            source: planned.source.clone(),
            filesystem_type: planned.filesystem_type.clone(),
            reason: SkipReason::FreezeNotWanted,
        });
        Self {
            filesystems: Vec::new(),
            skipped: self.skipped.iter().cloned().chain(left_out).collect(),
            unmatched_excludes: self.unmatched_excludes.clone(),
        }
    }
}

/// How well a mount can be opened; the earlier the better.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reach {
    Open,
    BehindAnother,
    Covered,
}

/// One superblock and its mounts in the namespace that it is best reached through.
struct Superblock<'a> {
    pid: Option<u32>,
    primary: &'a MountEntry,
    reach: Reach,
    /// Its mounts that can be reached as well as `primary`, in the order of mountinfo.
    mounts: Vec<&'a MountEntry>,
}

/// Every superblock once, in the order in which they are first seen.
fn superblocks(namespaces: &[MountNamespace]) -> Vec<Superblock<'_>> {
    let mut found: Vec<Superblock<'_>> = Vec::new();
    let mut index_of: BTreeMap<DeviceNumber, usize> = BTreeMap::new();
    for namespace in namespaces {
        let tree = MountTree::new(&namespace.mounts);
        let mut by_device: BTreeMap<DeviceNumber, Vec<&MountEntry>> = BTreeMap::new();
        for mount in &namespace.mounts {
            by_device.entry(mount.device).or_default().push(mount);
        }
        for mount in &namespace.mounts {
            // Taken out at its first mount, a superblock is looked at once.
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

fn reach(mount: &MountEntry, tree: &MountTree<'_>) -> Reach {
    let way = tree.way_to(&mount.mount_point);
    let Some((end, before)) = way.split_last() else {
        return Reach::Covered;
    };
    if !std::ptr::eq(*end, mount) {
        return Reach::Covered;
    }
    // The root filesystem is left out: every path on the machine leads through it, whatever it is.
    let is_safe = |passed: &&MountEntry| {
        passed.is_on_local_block_device()
            || ANSWERED_BY_THE_KERNEL.contains(&passed.filesystem_type.as_str())
    };
    if before.iter().skip(1).all(is_safe) {
        Reach::Open
    } else {
        Reach::BehindAnother
    }
}

impl<'a> Superblock<'a> {
    fn of(pid: Option<u32>, mounts: Vec<&'a MountEntry>, tree: &MountTree<'_>) -> Option<Self> {
        let reached: Vec<_> = mounts
            .into_iter()
            .map(|mount| (reach(mount, tree), mount))
            .collect();
        let best = reached.iter().map(|(reach, _)| *reach).min()?;
        let mounts: Vec<_> = reached
            .into_iter()
            .filter(|(reach, _)| *reach == best)
            .map(|(_, mount)| mount)
            .collect();
        // The whole filesystem rather than a directory of it (btrfs: the subvolume nearest to the
        // top), then the shortest path; of equals the one mounted first.
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

    /// Its mounts that show as much of it as `primary` does. A bind mount of one of its directories
    /// is not among them: `--exclude /var/lib/docker/volumes/x` must not leave all of `/` out.
    fn whole(&self) -> Vec<&'a MountEntry> {
        self.mounts
            .iter()
            .filter(|mount| mount.root == self.primary.root)
            .copied()
            .collect()
    }

    fn subject<'s>(&'s self, devices: &'s DeviceGraph, mounts: &[&'s MountEntry]) -> Subject<'s> {
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

    /// Why it cannot be frozen, whatever is asked for.
    fn why_impossible(&self) -> Option<SkipReason> {
        if !self.primary.is_on_local_block_device() {
            Some(SkipReason::NotOnLocalBlockDevice)
        } else if self.primary.superblock_is_read_only() {
            // Before the type: of a read-only image nothing is lost, of a FAT disk something is.
            Some(SkipReason::ReadOnly)
        } else if NOT_FREEZABLE.contains(&self.primary.filesystem_type.as_str()) {
            Some(SkipReason::NotFreezable)
        } else {
            match self.reach {
                Reach::Open => None,
                Reach::BehindAnother => Some(SkipReason::BehindAnother),
                Reach::Covered => Some(SkipReason::Covered),
            }
        }
    }

    fn is_root(&self) -> bool {
        self.pid.is_none()
            && self
                .mounts
                .iter()
                .any(|mount| mount.mount_point == Path::new("/"))
    }

    fn skipped(&self, reason: SkipReason) -> SkippedFilesystem {
        SkippedFilesystem {
            mount_point: self.primary.mount_point.clone(),
            device: self.primary.device,
            source: self.primary.source.clone(),
            filesystem_type: self.primary.filesystem_type.clone(),
            reason,
        }
    }

    fn planned(&self, level: u32) -> PlannedFilesystem {
        let mount_point = self.primary.mount_point.clone();
        let others: BTreeSet<PathBuf> = self
            .mounts
            .iter()
            .map(|mount| mount.mount_point.clone())
            .filter(|path| *path != mount_point)
            .collect();
        let open_path = match self.pid {
            None => mount_point.clone(),
            Some(pid) => {
                let below_root = mount_point.strip_prefix("/").unwrap_or(&mount_point);
                PathBuf::from(format!("/proc/{pid}/root")).join(below_root)
            }
        };
        PlannedFilesystem {
            mount_point,
            open_path,
            also_mounted_at: others.into_iter().collect(),
            device: self.primary.device,
            source: self.primary.source.clone(),
            filesystem_type: self.primary.filesystem_type.clone(),
            level,
        }
    }
}

/// The freeze level of each of `planned`: one more than the highest of all that must freeze before
/// it, which is what is stacked above it.
fn levels(
    superblocks: &[Superblock<'_>],
    planned: &[&Superblock<'_>],
    namespaces: &[MountNamespace],
    devices: &DeviceGraph,
) -> BTreeMap<DeviceNumber, u32> {
    // All superblocks take part, for one that is not frozen may connect two that are.
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
    // `/` is stalled for as short as can be, for everybody, ourselves included, lives on it: it and
    // what lies below it wait for all the others, and so it has a level of its own.
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
    // In a strict order, whatever comes before X has fewer before it than X has.
    order.sort_by_key(|(_, before)| before.len());
    let mut levels = BTreeMap::new();
    for (device, before) in order {
        let above = before.iter().filter_map(|device| levels.get(device)).max();
        levels.insert(device, above.map_or(0, |level: &u32| level + 1));
    }
    levels
}

fn matches_nothing(pattern: &Pattern, namespaces: &[MountNamespace]) -> PlanError {
    let Some(path) = pattern.literal_mount_point() else {
        return PlanError::PatternMatchesNothing {
            pattern: pattern.text().to_owned(),
        };
    };
    let own_mounts = namespaces
        .first()
        .map_or(&[][..], |namespace| &namespace.mounts);
    let lies_on = MountTree::new(own_mounts)
        .way_to(path)
        .last()
        .map(|mount| path_text(&mount.mount_point));
    PlanError::NoSuchMount {
        path: path_text(path),
        lies_on,
    }
}
