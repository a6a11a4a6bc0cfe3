//! Reads what is mounted, and on what, from `/proc` and `/sys`.
//!
//! No mount point is opened or even looked at, because a stat of a dead network mount can hang for
//! ever. Links in `/proc` and `/sys` are followed only as far as they stay there. What sysfs does not
//! know about loop devices is asked from the devices themselves (`backing_files`).

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use vmsnapshot_core::device_number::DeviceNumber;
use vmsnapshot_core::devices::{BlockDevice, DeviceGraph};
use vmsnapshot_core::machine::Machine;
use vmsnapshot_core::mountinfo::{self, MountEntry, MountNamespace, Mountinfo};
use vmsnapshot_core::plan::{PlanError, UnreadableMounts};
use vmsnapshot_core::text::{bytes_text, path_text};
use vmsnapshot_sys::errno::cause_text;
use vmsnapshot_sys::Errno;

mod backing_files;
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

/// The file of a process that has the mounts it sees.
const MOUNTINFO: &str = "mountinfo";
/// How many times a table of mounts is read twice until the two reads agree.
const PAIRS_MAX: u32 = 6;
/// How long the first pause after two reads that differ is. Each is twice as long as the one before.
/// A service or container that is being started has made all its mounts by then.
const FIRST_PAUSE: Duration = Duration::from_millis(1);

/// Reads what is mounted on this machine, and on what.
///
/// *Blocking*: it can be called as often as needed. It takes some milliseconds, and longer only
/// while mounts change or a loop device does not answer.
///
/// # Errors
///
/// If the kernel's tables cannot be read.
pub fn machine() -> Result<Machine, PlanError> {
    let roots = Roots::default();
    let Mounts {
        namespaces,
        unreadable,
    } = mounts(&roots)?;
    let machine = Machine {
        namespaces,
        unreadable_mounts: unreadable,
        devices: device_graph(&roots)?,
    };
    let files_on = backing_files::filesystems(&machine);
    Ok(Machine {
        devices: machine.devices.with_files_on(files_on),
        ..machine
    })
}

/// The mounts of every visible mount namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mounts {
    /// The namespaces. The first is that of this process.
    pub namespaces: Vec<MountNamespace>,
    /// The tables and lines that could not be read.
    pub unreadable: Vec<UnreadableMounts>,
}

/// Reads the mounts of our own mount namespace, then those of every other visible namespace.
///
/// # Errors
///
/// If our own mountinfo cannot be read.
pub fn mounts(roots: &Roots) -> Result<Mounts, PlanError> {
    let own = roots.proc.join("self");
    let mut mounts = Mounts::default();
    let table = table_of(&own).map_err(|error| unreadable(&own.join(MOUNTINFO), &error))?;
    mounts.add(None, &own, table);
    // The link's text (`mnt:[4026531840]`) names the namespace by its inode.
    let mut seen: HashSet<PathBuf> = fs::read_link(own.join("ns/mnt")).into_iter().collect();
    let mut pids: Vec<u32> = names_in(&roots.proc)?
        .iter()
        .filter_map(|name| name.to_str()?.parse().ok())
        .collect();
    // Try the oldest process of a namespace first. In a container it is most likely the one that
    // lives longest.
    pids.sort_unstable();
    let mut failed = BTreeMap::new();
    let mut closed = Vec::new();
    for pid in pids {
        let process = roots.proc.join(pid.to_string());
        // If a process is gone, or its table cannot be read, the next process of the same namespace
        // is tried.
        let namespace = match fs::read_link(process.join("ns/mnt")) {
            Ok(namespace) => namespace,
            Err(error) => {
                if !is_gone(&error) {
                    closed.push(process);
                }
                continue;
            }
        };
        if seen.contains(&namespace) {
            continue;
        }
        match table_of(&process) {
            Ok(table) => {
                mounts.add(Some(pid), &process, table);
                failed.remove(&namespace);
                seen.insert(namespace);
            }
            Err(error) if is_gone(&error) => {}
            Err(error) => {
                let why = cannot_be_read(&process.join(MOUNTINFO), &cause_text(&error));
                failed.entry(namespace).or_insert(why);
            }
        }
    }
    mounts.unreadable.extend(failed.into_values());
    mounts.add_closed(&closed);
    Ok(mounts)
}

impl Mounts {
    fn add(&mut self, pid: Option<u32>, process: &Path, table: Table) {
        let path = process.join(MOUNTINFO);
        let bad_lines = table.mountinfo.bad_lines.iter();
        let whys = bad_lines.map(|line| cannot_be_read(&path, &line.to_string()));
        self.unreadable.extend(whys);
        if !table.is_settled {
            let why = format!("two reads of it differed, {PAIRS_MAX} times");
            self.unreadable.push(cannot_be_read(&path, &why));
        }
        self.namespaces.push(MountNamespace {
            pid,
            mounts: table.mountinfo.mounts,
        });
    }

    /// Looks at processes that do not let us name their mount namespace, nor open a path in it.
    ///
    /// A container without CAP_SYS_PTRACE, or a security module, closes them. Their mountinfo can be
    /// read all the same. It counts only if it shows a filesystem that could be frozen and that no
    /// other namespace shows. If it is closed too, nothing is known, and that is normal there: such
    /// processes have our own namespace as a rule.
    fn add_closed(&mut self, closed: &[PathBuf]) {
        let mut known: HashSet<DeviceNumber> = self
            .namespaces
            .iter()
            .flat_map(|namespace| &namespace.mounts)
            .map(|mount| mount.device)
            .collect();
        for process in closed {
            let Ok(table) = fs::read(process.join(MOUNTINFO)) else {
                continue;
            };
            for mount in mountinfo::parse(&table).mounts {
                let may_be_written =
                    mount.is_on_local_block_device() && !mount.superblock_is_read_only();
                if may_be_written && known.insert(mount.device) {
                    let why = format!(
                        "permission denied, and only this process shows {} ({}) at `{}`",
                        mount.device,
                        mount.filesystem_type,
                        path_text(&mount.mount_point)
                    );
                    let root = process.join("root");
                    self.unreadable.push(cannot_be_read(&root, &why));
                }
            }
        }
    }
}

fn cannot_be_read(path: &Path, why: &str) -> UnreadableMounts {
    UnreadableMounts {
        path: path_text(path),
        why: why.to_owned(),
    }
}

/// Returns whether an error of `/proc/PID` means that the process has ended, or is about to.
///
/// A process that is ending has no mount namespace any more. Opening its mountinfo then answers
/// EINVAL (Linux, fs/proc_namespace.c, `mounts_open_common`).
fn is_gone(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::NOENT | Errno::SRCH | Errno::INVAL))
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
    match table_of(process) {
        Ok(table) => Ok(table.mountinfo.mounts),
        Err(error) => Err(unreadable(&process.join(MOUNTINFO), &error)),
    }
}

/// A table of mounts, and whether two reads of it agreed.
struct Table {
    mountinfo: Mountinfo,
    is_settled: bool,
}

fn table_of(process: &Path) -> io::Result<Table> {
    let file = process.join(MOUNTINFO);
    read_until_settled(|| fs::read(&file))
}

/// Reads a table of mounts twice, until the two reads agree.
///
/// Before Linux 5.8, one read can leave out mounts while another process unmounts. Later kernels can
/// still show a state that never was. If no two reads agree, the result is the last one, with the
/// filesystems that only earlier ones show.
fn read_until_settled(mut read: impl FnMut() -> io::Result<Vec<u8>>) -> io::Result<Table> {
    let mut reads = Vec::new();
    for number in 0..PAIRS_MAX {
        if number > 0 {
            std::thread::sleep(FIRST_PAUSE * 2_u32.pow(number - 1));
        }
        let (first, second) = (read()?, read()?);
        if first == second {
            return Ok(Table {
                mountinfo: mountinfo::parse(&second),
                is_settled: true,
            });
        }
        reads.extend([first, second]);
    }
    let mut tables = reads.iter().rev().map(|read| mountinfo::parse(read));
    let mut mountinfo = tables.next().unwrap_or_default();
    for earlier in tables {
        let shown: HashSet<_> = mountinfo.mounts.iter().map(|mount| mount.device).collect();
        let lost = earlier
            .mounts
            .into_iter()
            .filter(|mount| mount.is_on_local_block_device() && !shown.contains(&mount.device));
        mountinfo.mounts.extend(lost);
    }
    Ok(Table {
        mountinfo,
        is_settled: false,
    })
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

fn unreadable(path: &Path, error: &io::Error) -> PlanError {
    PlanError::Unreadable {
        path: path.to_owned(),
        cause: cause_text(error),
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
    fn mounts_reads_our_namespace_first_and_each_other_once() {
        let machine = FakeMachine::new();
        machine.process("self", "mnt:[1]", Some(ROOT));
        machine.process("1", "mnt:[1]", Some(ROOT));
        machine.process("300", "mnt:[2]", Some(DATABASE));
        machine.process("20", "mnt:[2]", Some(DATABASE));
        machine.file("proc/uptime", "1");
        let namespaces = mounts(&machine.roots()).unwrap().namespaces;
        let pids: Vec<_> = namespaces.iter().map(|namespace| namespace.pid).collect();
        assert_eq!(pids, [None, Some(20)]);
        assert_eq!(namespaces[1].mounts[1].mount_point, Path::new("/db"));
    }

    #[test]
    fn mounts_skips_a_process_that_is_gone_and_reads_the_next_of_its_namespace() {
        let machine = FakeMachine::new();
        machine.process("self", "mnt:[1]", Some(ROOT));
        machine.process("20", "mnt:[2]", None);
        machine.process("21", "mnt:[2]", Some(DATABASE));
        fs::create_dir_all(machine.0.join("proc/22")).unwrap();
        assert_eq!(
            mounts(&machine.roots()).unwrap().namespaces[1].pid,
            Some(21)
        );
    }

    /// A mount of drvfs as WSL shows it, and a line that breaks off.
    const FOREIGN: &str = "1146 1 0:149 / /Docker/host rw,noatime - 9p drvfs \
        rw,dirsync,aname=drvfs;path=C:\\Program Files\\Docker;symlinkroot=/mnt/,trans=virtio\n";

    #[test]
    fn foreign_options_do_not_matter_and_a_bad_line_costs_no_other_and_is_named() {
        let machine = FakeMachine::new();
        machine.process("self", "mnt:[1]", Some(&format!("{ROOT}{FOREIGN}")));
        machine.process(
            "20",
            "mnt:[2]",
            Some(&format!("{FOREIGN}11 9 8:33\n{DATABASE}")),
        );
        let mounts = mounts(&machine.roots()).unwrap();
        let counts: Vec<_> = mounts.namespaces.iter().map(|n| n.mounts.len()).collect();
        assert_eq!(counts, [2, 3]);
        let [unreadable] = &mounts.unreadable[..] else {
            panic!("{:?}", mounts.unreadable)
        };
        assert!(unreadable.path.ends_with("proc/20/mountinfo"));
        assert_eq!(unreadable.why, "line 2 could not be parsed: no root");
    }

    #[test]
    fn namespace_that_cannot_be_read_is_named_unless_another_process_of_it_can() {
        let machine = FakeMachine::new();
        machine.process("self", "mnt:[1]", Some(ROOT));
        for (pid, namespace) in [("20", "mnt:[2]"), ("30", "mnt:[3]"), ("40", "mnt:[4]")] {
            machine.process(pid, namespace, None);
        }
        // Reading a directory is an error that does not mean that the process is gone.
        for pid in ["20", "30"] {
            fs::create_dir(machine.0.join(format!("proc/{pid}/mountinfo"))).unwrap();
        }
        machine.process("31", "mnt:[3]", Some(DATABASE));
        let mounts = mounts(&machine.roots()).unwrap();
        let pids: Vec<_> = mounts.namespaces.iter().map(|seen| seen.pid).collect();
        assert_eq!(pids, [None, Some(31)]);
        let [unreadable] = &mounts.unreadable[..] else {
            panic!("{:?}", mounts.unreadable)
        };
        assert!(unreadable.path.ends_with("proc/20/mountinfo"));
    }

    #[test]
    fn process_without_a_name_for_its_namespace_counts_if_only_it_shows_a_filesystem() {
        let machine = FakeMachine::new();
        machine.process("self", "mnt:[1]", Some(ROOT));
        // A link to itself stands for one that the kernel does not let us read.
        for (pid, mountinfo) in [("20", ROOT), ("21", DATABASE), ("22", DATABASE)] {
            machine.link(&format!("proc/{pid}/ns"), "ns");
            machine.file(&format!("proc/{pid}/mountinfo"), mountinfo);
        }
        machine.link("proc/23/ns", "ns");
        let mounts = mounts(&machine.roots()).unwrap();
        let [unreadable] = &mounts.unreadable[..] else {
            panic!("{:?}", mounts.unreadable)
        };
        assert!(unreadable.path.ends_with("proc/21/root"));
        assert!(unreadable.why.contains("8:17 (xfs) at `/db`"));
    }

    /// The kernel here does not leave out entries, so the reads are given.
    #[test]
    fn filesystem_that_a_read_leaves_out_is_found() {
        let second = "2 1 8:17 / /data rw - ext4 /dev/sdb1 rw\n";
        let both = format!("{ROOT}{second}");
        let reads = [ROOT, &both, &both, &both];
        let mut next = reads.iter();
        let table = read_until_settled(|| Ok(next.next().unwrap().as_bytes().to_vec())).unwrap();
        assert!(table.is_settled);
        assert_eq!(table.mountinfo.mounts.len(), 2);
        // No two reads agree, and only the first one shows the second filesystem.
        let mut count = 0;
        let table = read_until_settled(|| {
            count += 1;
            let mounts = if count == 1 { both.as_str() } else { ROOT };
            Ok(format!("{mounts}9 1 0:{count} / /x rw - tmpfs t rw\n").into_bytes())
        })
        .unwrap();
        assert_eq!((table.is_settled, count), (false, 2 * PAIRS_MAX));
        let mount_points: Vec<_> = table
            .mountinfo
            .mounts
            .iter()
            .map(|mount| mount.mount_point.to_str().unwrap())
            .collect();
        assert_eq!(mount_points, ["/", "/x", "/data"]);
    }

    #[test]
    fn missing_table_is_an_error_that_names_it() {
        let machine = FakeMachine::new();
        let error = mounts(&machine.roots()).unwrap_err();
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
            namespaces: mounts(&roots).unwrap().namespaces,
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
