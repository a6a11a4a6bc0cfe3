//! Reads what is mounted, and on what, from `/proc` and `/sys`, and from nowhere else.
//!
//! No mount point is opened or looked at, and no device either: a stat of a dead network mount can
//! hang for ever. Links in `/proc` and `/sys` are followed within those two only.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::{fs, io};

use vmsnapshot_core::device_number::DeviceNumber;
use vmsnapshot_core::devices::{BlockDevice, DeviceGraph};
use vmsnapshot_core::mountinfo::{self, MountEntry, MountNamespace};
use vmsnapshot_core::plan::{Plan, PlanError, PlannedFilesystem, Selection};
use vmsnapshot_core::text::{bytes_text, path_text};

/// Where the kernel's tables are; tests hand in a tree of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots {
    /// `/proc`.
    pub proc: PathBuf,
    /// `/sys`.
    pub sys: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self {
            proc: PathBuf::from("/proc"),
            sys: PathBuf::from("/sys"),
        }
    }
}

/// Why a directory that was opened cannot be taken for the planned filesystem.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MountError {
    /// Another filesystem is mounted there by now.
    #[error(
        "a different filesystem is now mounted at `{}`: {found} instead of {planned}",
        path_text(mount_point)
    )]
    Changed {
        /// The mount point.
        mount_point: PathBuf,
        /// The device number when the plan was made.
        planned: DeviceNumber,
        /// The device number now.
        found: DeviceNumber,
    },
    /// Nothing is mounted there any more.
    #[error("nothing is mounted at `{}` any more", path_text(mount_point))]
    Vanished {
        /// The mount point.
        mount_point: PathBuf,
    },
    /// The kernel's tables could not be read.
    #[error(transparent)]
    Tables(#[from] PlanError),
}

impl MountError {
    /// The stable name of the error, for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Changed { .. } => "mount-changed",
            Self::Vanished { .. } => "mount-vanished",
            Self::Tables(error) => error.code(),
        }
    }

    /// What the reader can do about it, when there is something.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Changed { .. } | Self::Vanished { .. } => Some("make a new plan".to_owned()),
            Self::Tables(error) => error.hint(),
        }
    }
}

/// Plans what to freeze on this machine; touches none of it.
///
/// # Errors
///
/// For a pattern that has no meaning, matches nothing or names what cannot be frozen, and when
/// the kernel's tables cannot be read.
pub fn plan(include: &[String], exclude: &[String]) -> Result<Plan, PlanError> {
    let selection = Selection::parse(include, exclude)?;
    let roots = Roots::default();
    Plan::make(&namespaces(&roots)?, &device_graph(&roots)?, &selection)
}

/// Reads the mounts of our own mount namespace, then those of all others that can be seen.
///
/// # Errors
///
/// When our own mountinfo cannot be read or is malformed.
pub fn namespaces(roots: &Roots) -> Result<Vec<MountNamespace>, PlanError> {
    let own = roots.proc.join("self");
    let mut namespaces = vec![MountNamespace {
        pid: None,
        mounts: mounts_of(&own)?,
    }];
    // The link's text (`mnt:[4026531840]`) names the namespace by its inode.
    let mut seen: HashSet<PathBuf> = fs::read_link(own.join("ns/mnt")).into_iter().collect();
    let mut pids: Vec<u32> = names_in(&roots.proc)?
        .iter()
        .filter_map(|name| name.to_str()?.parse().ok())
        .collect();
    // The oldest process first: of a container that is most likely the one that lives longest.
    pids.sort_unstable();
    for pid in pids {
        let process = roots.proc.join(pid.to_string());
        // A process may be gone, a zombie, or not ours to look into; the next one of the same
        // namespace is then asked.
        let Ok(namespace) = fs::read_link(process.join("ns/mnt")) else {
            continue;
        };
        if seen.contains(&namespace) {
            continue;
        }
        // Gone, or nonsense: somebody else's tables do not keep us from our own filesystems.
        if let Ok(mounts) = mounts_of(&process) {
            seen.insert(namespace);
            namespaces.push(MountNamespace {
                pid: Some(pid),
                mounts,
            });
        }
    }
    Ok(namespaces)
}

/// Reads from sysfs which block devices there are and what each is stacked on.
///
/// # Errors
///
/// When the list of block devices cannot be read. A device that goes away meanwhile is left out.
pub fn device_graph(roots: &Roots) -> Result<DeviceGraph, PlanError> {
    let list = roots.sys.join("dev/block");
    let devices = names_in(&list)?
        .iter()
        .filter_map(|name| block_device(name.to_str()?.parse().ok()?, &list.join(name)))
        .collect();
    // No such directory: btrfs is not loaded.
    let filesystems = roots.sys.join("fs/btrfs");
    let btrfs = names_in(&filesystems).unwrap_or_default();
    let members = btrfs
        .iter()
        .map(|name| devices_in(&filesystems.join(name).join("devices")));
    Ok(DeviceGraph::new(
        devices,
        members.filter(|set| !set.is_empty()).collect(),
    ))
}

/// Checks that `directory`, opened on the plan's path, is a directory of the planned filesystem.
///
/// Between plan and open something else may have been mounted there. The mount that the open went
/// to cannot change any more, so what is found here holds for as long as `directory` is open.
/// (`st_dev` could not tell: it is not mountinfo's number on btrfs.)
///
/// # Errors
///
/// [`MountError::Changed`] and [`MountError::Vanished`].
pub fn verify_open(directory: impl AsFd, planned: &PlannedFilesystem) -> Result<(), MountError> {
    verify_open_in(&Roots::default(), directory, planned)
}

fn verify_open_in(
    roots: &Roots,
    directory: impl AsFd,
    planned: &PlannedFilesystem,
) -> Result<(), MountError> {
    let vanished = || MountError::Vanished {
        mount_point: planned.mount_point.clone(),
    };
    let process = roots.proc.join("self");
    let fdinfo = read(&process.join(format!("fdinfo/{}", directory.as_fd().as_raw_fd())))?;
    let fdinfo = bytes_text(&fdinfo);
    let mount_id: u32 = fdinfo
        .lines()
        .find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok())
        .ok_or_else(vanished)?;
    let mut mounts = mounts_of(&process)?;
    if let Some(pid) = other_namespace(&planned.open_path) {
        // The process may have ended, and its namespace with it.
        mounts.extend(mounts_of(&roots.proc.join(pid)).unwrap_or_default());
    }
    let mount = mounts
        .iter()
        .find(|mount| mount.mount_id == mount_id)
        .ok_or_else(vanished)?;
    if mount.device == planned.device {
        Ok(())
    } else if mount.mount_point == planned.mount_point {
        Err(MountError::Changed {
            mount_point: planned.mount_point.clone(),
            planned: planned.device,
            found: mount.device,
        })
    } else {
        // The open went to the directory below, which belongs to the mount further up.
        Err(vanished())
    }
}

/// The PID of an open path `/proc/PID/root/...`.
fn other_namespace(open_path: &Path) -> Option<String> {
    let mut below_proc = open_path.strip_prefix("/proc").ok()?.iter();
    let pid = below_proc.next()?.to_str()?;
    (below_proc.next()? == "root").then(|| pid.to_owned())
}

fn mounts_of(process: &Path) -> Result<Vec<MountEntry>, PlanError> {
    Ok(mountinfo::parse(&read(&process.join("mountinfo"))?)?)
}

/// Reads one device's directory in sysfs; none if it is gone.
fn block_device(number: DeviceNumber, link: &Path) -> Option<BlockDevice> {
    // `../../devices/virtual/block/loop0`; a `/` in a kernel name is a `!` in sysfs.
    let target = fs::read_link(link).ok()?;
    let name = bytes_text(target.file_name()?.as_bytes()).replace('!', "/");
    let mut names = vec![format!("/dev/{name}")];
    let line = |file: &str| fs::read(link.join(file)).ok().map(without_newline);
    if let Some(mapped) = line("dm/name").map(|name| bytes_text(&name)) {
        if line("dm/uuid").is_some_and(|uuid| uuid.starts_with(b"LVM-")) {
            names.extend(lvm_name(&mapped));
        }
        names.push(format!("/dev/mapper/{mapped}"));
    }
    let mut parents = devices_in(&link.join("slaves"));
    if line("partition").is_some() {
        parents.extend(device_at(&link.join("..")));
    }
    Some(BlockDevice {
        number,
        names,
        parents: parents.into_iter().collect(),
        backing_file: line("loop/backing_file").map(|path| PathBuf::from(OsString::from_vec(path))),
    })
}

/// `/dev/VG/LV` of a device-mapper name `VG-LV`; LVM doubles a hyphen that belongs to either name.
fn lvm_name(mapped: &str) -> Option<String> {
    const HYPHEN: char = '\0';
    let mapped = mapped.replace("--", &HYPHEN.to_string());
    let (group, volume) = mapped.split_once('-')?;
    Some(format!("/dev/{group}/{volume}").replace(HYPHEN, "-"))
}

/// The devices that the entries of a sysfs directory are; none if there is no such directory.
fn devices_in(directory: &Path) -> BTreeSet<DeviceNumber> {
    let names = names_in(directory).unwrap_or_default();
    names
        .iter()
        .filter_map(|name| device_at(&directory.join(name)))
        .collect()
}

fn device_at(directory: &Path) -> Option<DeviceNumber> {
    String::from_utf8(without_newline(fs::read(directory.join("dev")).ok()?))
        .ok()?
        .parse()
        .ok()
}

/// sysfs ends a value with one newline; a file name can end with one of its own.
fn without_newline(mut value: Vec<u8>) -> Vec<u8> {
    if value.last() == Some(&b'\n') {
        value.pop();
    }
    value
}

fn names_in(directory: &Path) -> Result<Vec<OsString>, PlanError> {
    let names: io::Result<Vec<OsString>> = fs::read_dir(directory)
        .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect());
    names.map_err(|error| unreadable(directory, &error))
}

fn read(file: &Path) -> Result<Vec<u8>, PlanError> {
    fs::read(file).map_err(|error| unreadable(file, &error))
}

fn unreadable(path: &Path, error: &io::Error) -> PlanError {
    PlanError::Unreadable {
        path: path.to_owned(),
        cause: error.kind(),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// A tree of files like `/proc` and `/sys`, gone when dropped.
    struct FakeMachine(PathBuf);

    impl FakeMachine {
        fn new() -> Self {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let name = format!(
                "vmsnapshot-scan-{}-{}",
                std::process::id(),
                NEXT.fetch_add(1, Ordering::Relaxed)
            );
            let machine = Self(std::env::temp_dir().join(name));
            fs::create_dir_all(machine.0.join("sys/dev/block")).unwrap();
            machine
        }

        fn roots(&self) -> Roots {
            Roots {
                proc: self.0.join("proc"),
                sys: self.0.join("sys"),
            }
        }

        fn file(&self, path: &str, content: &str) {
            let path = self.0.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }

        fn link(&self, path: &str, target: &str) {
            let path = self.0.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            symlink(target, path).unwrap();
        }

        fn process(&self, pid: &str, namespace: &str, mountinfo: Option<&str>) {
            self.link(&format!("proc/{pid}/ns/mnt"), namespace);
            if let Some(mountinfo) = mountinfo {
                self.file(&format!("proc/{pid}/mountinfo"), mountinfo);
            }
        }

        /// A device directory as the kernel lays it out, and the link to it by number.
        fn device(&self, number: &str, path: &str) {
            self.file(&format!("sys/devices/{path}/dev"), &format!("{number}\n"));
            self.link(
                &format!("sys/dev/block/{number}"),
                &format!("../../devices/{path}"),
            );
        }
    }

    impl Drop for FakeMachine {
        fn drop(&mut self) {
            // A leftover in the temporary directory is no reason to fail.
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const ROOT: &str = "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n";
    const DATABASE: &str =
        "9 8 0:50 / / rw - overlay overlay rw\n10 9 8:17 / /db rw - xfs /dev/sdb1 rw\n";

    fn number(text: &str) -> DeviceNumber {
        text.parse().unwrap()
    }

    #[test]
    fn each_other_mount_namespace_is_read_once_and_ours_first() {
        let machine = FakeMachine::new();
        machine.process("self", "mnt:[1]", Some(ROOT));
        machine.process("1", "mnt:[1]", Some(ROOT));
        machine.process("300", "mnt:[2]", Some(DATABASE));
        machine.process("20", "mnt:[2]", Some(DATABASE));
        machine.file("proc/uptime", "1");
        let namespaces = namespaces(&machine.roots()).unwrap();
        let pids: Vec<_> = namespaces.iter().map(|namespace| namespace.pid).collect();
        assert_eq!(pids, [None, Some(20)]);
        assert_eq!(namespaces[1].mounts[1].mount_point, Path::new("/db"));
    }

    #[test]
    fn a_process_that_is_gone_is_passed_over_for_the_next_of_its_namespace() {
        let machine = FakeMachine::new();
        machine.process("self", "mnt:[1]", Some(ROOT));
        machine.process("20", "mnt:[2]", None);
        machine.process("21", "mnt:[2]", Some(DATABASE));
        fs::create_dir_all(machine.0.join("proc/22")).unwrap();
        assert_eq!(namespaces(&machine.roots()).unwrap()[1].pid, Some(21));
    }

    #[test]
    fn a_missing_table_is_an_error_that_names_it() {
        let machine = FakeMachine::new();
        let error = namespaces(&machine.roots()).unwrap_err();
        assert_eq!(error.code(), "unreadable");
        assert!(error.to_string().contains("proc/self/mountinfo"));
        fs::remove_dir_all(machine.0.join("sys")).unwrap();
        assert_eq!(
            device_graph(&machine.roots()).unwrap_err().code(),
            "unreadable"
        );
    }

    #[test]
    fn stacks_of_devices_are_read_from_sysfs() {
        let machine = FakeMachine::new();
        machine.device("8:0", "pci0/block/sda");
        machine.device("8:1", "pci0/block/sda/sda1");
        machine.file("sys/devices/pci0/block/sda/sda1/partition", "1\n");
        machine.device("104:0", "pci0/block/cciss!c0d0");
        machine.device("7:0", "virtual/block/loop0");
        machine.file(
            "sys/devices/virtual/block/loop0/loop/backing_file",
            "/srv/a b\n.img (deleted)\n",
        );
        machine.device("7:1", "virtual/block/loop1");
        machine.device("253:0", "virtual/block/dm-0");
        machine.file("sys/devices/virtual/block/dm-0/dm/name", "my--vg-data--1\n");
        machine.file("sys/devices/virtual/block/dm-0/dm/uuid", "LVM-abc\n");
        machine.link(
            "sys/devices/virtual/block/dm-0/slaves/sda1",
            "../../../../pci0/block/sda/sda1",
        );
        machine.link("sys/devices/virtual/block/dm-0/slaves/loop0", "../../loop0");
        machine.link(
            "sys/fs/btrfs/1234-5678/devices/sda1",
            "../../../../devices/pci0/block/sda/sda1",
        );
        machine.link(
            "sys/fs/btrfs/1234-5678/devices/loop1",
            "../../../../devices/virtual/block/loop1",
        );
        fs::create_dir_all(machine.0.join("sys/fs/btrfs/features")).unwrap();
        let device =
            |text: &str, names: &[&str], parents: &[&str], file: Option<&str>| BlockDevice {
                number: number(text),
                names: names.iter().map(ToString::to_string).collect(),
                parents: parents.iter().map(|text| number(text)).collect(),
                backing_file: file.map(PathBuf::from),
            };
        let expected = DeviceGraph::new(
            vec![
                device("8:0", &["/dev/sda"], &[], None),
                device("8:1", &["/dev/sda1"], &["8:0"], None),
                device("104:0", &["/dev/cciss/c0d0"], &[], None),
                device(
                    "7:0",
                    &["/dev/loop0"],
                    &[],
                    Some("/srv/a b\n.img (deleted)"),
                ),
                device("7:1", &["/dev/loop1"], &[], None),
                device(
                    "253:0",
                    &[
                        "/dev/dm-0",
                        "/dev/my-vg/data-1",
                        "/dev/mapper/my--vg-data--1",
                    ],
                    &["7:0", "8:1"],
                    None,
                ),
            ],
            vec![BTreeSet::from([number("8:1"), number("7:1")])],
        );
        assert_eq!(device_graph(&machine.roots()).unwrap(), expected);
    }

    #[test]
    fn a_fake_machine_is_planned_from_its_own_tables_alone() {
        let machine = FakeMachine::new();
        machine.device("7:0", "virtual/block/loop0");
        machine.file(
            "sys/devices/virtual/block/loop0/loop/backing_file",
            "/srv/a.img\n",
        );
        let upper =
            "2 1 7:0 / /upper rw - ext4 /dev/loop0 rw\n3 1 8:17 / /srv rw - ext4 /dev/sdb1 rw\n";
        machine.process("self", "mnt:[1]", Some(&format!("{ROOT}{upper}")));
        let roots = machine.roots();
        let plan = Plan::make(
            &namespaces(&roots).unwrap(),
            &device_graph(&roots).unwrap(),
            &Selection::default(),
        )
        .unwrap();
        let order: Vec<_> = plan
            .filesystems
            .iter()
            .map(|planned| planned.mount_point.to_str().unwrap())
            .collect();
        assert_eq!(order, ["/upper", "/srv", "/"]);
    }

    #[test]
    fn this_machine_is_planned_without_error() {
        let plan = plan(&[], &[]).unwrap();
        let proc = plan
            .skipped
            .iter()
            .find(|skipped| skipped.filesystem_type == "proc")
            .unwrap();
        assert_eq!(proc.reason.code(), "not-on-local-block-device");
        assert!(plan
            .filesystems
            .iter()
            .all(|planned| planned.device.major != 0
                || matches!(planned.filesystem_type.as_str(), "btrfs" | "bcachefs")));
    }

    fn planned(device: DeviceNumber, mount_point: &str) -> PlannedFilesystem {
        PlannedFilesystem {
            mount_point: mount_point.into(),
            open_path: mount_point.into(),
            also_mounted_at: Vec::new(),
            device,
            source: String::new(),
            filesystem_type: "ext4".to_owned(),
            level: 0,
        }
    }

    #[test]
    fn a_directory_is_of_the_planned_filesystem_only_by_number() {
        // `/proc` stands for a mount that every machine has.
        let mounts = mounts_of(Path::new("/proc/self")).unwrap();
        let proc = mounts
            .iter()
            .find(|mount| mount.mount_point == Path::new("/proc"))
            .unwrap();
        let directory = fs::File::open("/proc").unwrap();
        assert_eq!(
            verify_open(&directory, &planned(proc.device, "/proc")),
            Ok(())
        );
        let other = DeviceNumber {
            major: 8,
            minor: 17,
        };
        let changed = verify_open(&directory, &planned(other, "/proc")).unwrap_err();
        assert_eq!(changed.code(), "mount-changed");
        let vanished = verify_open(&directory, &planned(other, "/proc/once/mounted")).unwrap_err();
        assert_eq!(vanished.code(), "mount-vanished");
    }

    #[test]
    fn a_directory_of_another_namespace_is_looked_up_there() {
        let machine = FakeMachine::new();
        let directory = fs::File::open("/").unwrap();
        machine.file(
            &format!("proc/self/fdinfo/{}", directory.as_raw_fd()),
            "pos:\t0\nflags:\t02\nmnt_id:\t10\n",
        );
        machine.file("proc/self/mountinfo", ROOT);
        let mut there = planned(number("8:17"), "/db");
        there.open_path = "/proc/20/root/db".into();
        let verify =
            |planned: &PlannedFilesystem| verify_open_in(&machine.roots(), &directory, planned);
        assert_eq!(verify(&there).unwrap_err().code(), "mount-vanished");
        machine.file("proc/20/mountinfo", DATABASE);
        assert_eq!(verify(&there), Ok(()));
        there.device = number("8:18");
        assert_eq!(verify(&there).unwrap_err().code(), "mount-changed");
    }
}
