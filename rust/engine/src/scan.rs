//! Reads what is mounted, and on what, from `/proc` and `/sys`.
//!
//! No mount point is opened or even looked at, because a stat of a dead network mount can hang for
//! ever. Links in `/proc` and `/sys` are followed only as far as they stay there. What sysfs does not
//! know about loop devices is asked from the devices themselves (`backing_files`).

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use vmsnapshot_core::device_number::DeviceNumber;
use vmsnapshot_core::devices::{BlockDevice, DeviceGraph};
use vmsnapshot_core::machine::Machine;
use vmsnapshot_core::plan::PlanError;
use vmsnapshot_core::text::bytes_text;

use crate::observer::Observer;

mod backing_files;
#[cfg(test)]
pub(crate) mod fake_machine;
mod mounts;
mod roots;
mod table;

pub(crate) use mounts::mounts_of;
pub use mounts::{mounts, Limits, Mounts};
use roots::names_in;
pub use roots::Roots;
pub use table::Limit;

/// Reads what is mounted on this machine, and on what.
///
/// *Blocking*: it can be called as often as needed. It takes some milliseconds, and longer only
/// while mounts change or a loop device does not answer. Users who make very many mounts can delay it
/// by [`Limits::PLAN`]. The observer can end it.
///
/// # Errors
///
/// If the kernel's tables cannot be read, or if the observer gives up.
pub fn machine(observer: &mut dyn Observer) -> Result<Machine, PlanError> {
    let roots = Roots::default();
    let Mounts {
        namespaces,
        unreadable,
    } = mounts(&roots, Limits::PLAN, observer)?;
    let machine = Machine {
        namespaces,
        unreadable_mounts: unreadable,
        devices: device_graph(&roots)?,
    };
    let files_on = backing_files::filesystems(&machine, observer);
    if observer.is_interrupted() {
        return Err(PlanError::Interrupted);
    }
    Ok(Machine {
        devices: machine.devices.with_files_on(files_on),
        ..machine
    })
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

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use vmsnapshot_core::plan::Selection;

    use super::fake_machine::{FakeMachine, ROOT};
    use super::*;
    use crate::observer::Silent;

    fn number(text: &str) -> DeviceNumber {
        text.parse().unwrap()
    }

    #[test]
    fn missing_table_is_an_error_that_names_it() {
        let machine = FakeMachine::new();
        let error = mounts(&machine.roots(), Limits::PLAN, &mut Silent).unwrap_err();
        assert_eq!(error.code().name(), "unreadable");
        assert!(error.to_string().contains("proc/self/mountinfo"));
        fs::remove_dir_all(machine.0.join("sys")).unwrap();
        assert_eq!(
            device_graph(&machine.roots()).unwrap_err().code().name(),
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
            namespaces: mounts(&roots, Limits::PLAN, &mut Silent)
                .unwrap()
                .namespaces,
            unreadable_mounts: Vec::new(),
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
        let plan = machine(&mut Silent)
            .unwrap()
            .plan(&Selection::default())
            .unwrap();
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
