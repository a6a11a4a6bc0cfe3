//! Reads what is mounted, and on what. It reads `/proc` and `/sys` only.
//!
//! No mount point and no device is opened or even looked at, because a stat of a dead network mount
//! can hang for ever. Links in `/proc` and `/sys` are followed only as far as they stay there.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::{fs, io};

use vmsnapshot_core::device_number::DeviceNumber;
use vmsnapshot_core::devices::{BlockDevice, DeviceGraph};
use vmsnapshot_core::machine::Machine;
use vmsnapshot_core::mountinfo::{self, MountEntry, MountNamespace};
use vmsnapshot_core::plan::PlanError;
use vmsnapshot_core::text::bytes_text;

#[cfg(test)]
pub(crate) mod fake_machine;

/// Where the kernel's tables are. Tests pass a tree of their own.
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

/// Reads what is mounted on this machine, and on what.
///
/// # Errors
///
/// If the kernel's tables cannot be read.
pub fn machine() -> Result<Machine, PlanError> {
    let roots = Roots::default();
    Ok(Machine {
        namespaces: namespaces(&roots)?,
        devices: device_graph(&roots)?,
    })
}

/// Reads the mounts of our own mount namespace, then those of every other visible namespace.
///
/// # Errors
///
/// If our own mountinfo cannot be read or is malformed.
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
    // Try the oldest process of a namespace first. In a container it is most likely the one that
    // lives longest.
    pids.sort_unstable();
    for pid in pids {
        let process = roots.proc.join(pid.to_string());
        // A process may be gone, be a zombie, or be closed to us. Then the next process of the same
        // namespace is tried.
        let Ok(namespace) = fs::read_link(process.join("ns/mnt")) else {
            continue;
        };
        if seen.contains(&namespace) {
            continue;
        }
        // The process is gone, or its table is malformed. Other processes' tables must not keep a
        // run from freezing our own filesystems.
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

/// Reads from sysfs which block devices there are, and what each is stacked on.
///
/// # Errors
///
/// If the list of block devices cannot be read. A device that goes away meanwhile is left out.
pub fn device_graph(roots: &Roots) -> Result<DeviceGraph, PlanError> {
    let list = roots.sys.join("dev/block");
    let devices = names_in(&list)?
        .iter()
        .filter_map(|name| block_device(name.to_str()?.parse().ok()?, &list.join(name)))
        .collect();
    // The directory is missing if btrfs is not loaded.
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

/// Returns the mounts that a process sees. `process` is its directory in `/proc`.
pub(crate) fn mounts_of(process: &Path) -> Result<Vec<MountEntry>, PlanError> {
    Ok(mountinfo::parse(&read(&process.join("mountinfo"))?)?)
}

/// Reads one device's directory in sysfs. Returns `None` if the device is gone.
fn block_device(number: DeviceNumber, link: &Path) -> Option<BlockDevice> {
    // The link is like `../../devices/virtual/block/loop0`. A `/` in a kernel name is a `!` in
    // sysfs.
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
        directory: fs::canonicalize(link).ok()?,
        number,
        names,
        parents: parents.into_iter().collect(),
        backing_file: line("loop/backing_file").map(|path| PathBuf::from(OsString::from_vec(path))),
    })
}

/// Returns `/dev/VG/LV` for a device-mapper name `VG-LV`. LVM doubles every hyphen inside either
/// name.
fn lvm_name(mapped: &str) -> Option<String> {
    const HYPHEN: char = '\0';
    let mapped = mapped.replace("--", &HYPHEN.to_string());
    let (group, volume) = mapped.split_once('-')?;
    Some(format!("/dev/{group}/{volume}").replace(HYPHEN, "-"))
}

/// Returns the devices that a sysfs directory lists; no devices if the directory does not exist.
pub(crate) fn devices_in(directory: &Path) -> BTreeSet<DeviceNumber> {
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

/// Removes the one newline that sysfs appends to a value. A file name can end with another newline.
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

/// Reads a file of `/proc` or `/sys`.
pub(crate) fn read(file: &Path) -> Result<Vec<u8>, PlanError> {
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

    use vmsnapshot_core::plan::Selection;

    use super::fake_machine::{FakeMachine, DATABASE, ROOT};
    use super::*;

    fn number(text: &str) -> DeviceNumber {
        text.parse().unwrap()
    }

    #[test]
    fn namespaces_reads_ours_first_and_each_other_once() {
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
    fn namespaces_skips_a_process_that_is_gone_and_reads_the_next_of_its_namespace() {
        let machine = FakeMachine::new();
        machine.process("self", "mnt:[1]", Some(ROOT));
        machine.process("20", "mnt:[2]", None);
        machine.process("21", "mnt:[2]", Some(DATABASE));
        fs::create_dir_all(machine.0.join("proc/22")).unwrap();
        assert_eq!(namespaces(&machine.roots()).unwrap()[1].pid, Some(21));
    }

    #[test]
    fn missing_table_is_an_error_that_names_it() {
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
    fn device_graph_reads_stacks_of_devices_from_sysfs() {
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
                directory: fs::canonicalize(machine.0.join("sys/dev/block").join(text)).unwrap(),
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
    fn plan_of_a_fake_machine_comes_from_its_own_tables_alone() {
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
        let machine = Machine {
            namespaces: namespaces(&roots).unwrap(),
            devices: device_graph(&roots).unwrap(),
        };
        let plan = machine.plan(&Selection::default()).unwrap();
        let order: Vec<_> = plan
            .filesystems
            .iter()
            .map(|planned| planned.mount_point.to_str().unwrap())
            .collect();
        assert_eq!(order, ["/upper", "/srv", "/"]);
    }

    #[test]
    fn this_machine_is_planned_without_error() {
        let plan = machine().unwrap().plan(&Selection::default()).unwrap();
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
}
