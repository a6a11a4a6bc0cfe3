//! Reads what is mounted in every mount namespace that a process shows.
//!
//! Our own namespace, and the others of our user namespace, are what root made. Root of *another* user
//! namespace can be any user of the machine, who can make as many mounts there as the kernel allows.
//! Such a namespace cannot be ignored: it is a copy of ours, and a filesystem that root has unmounted
//! since may live on there and be written. So it is read for one thing only: a filesystem on a block
//! device that no other namespace shows. What is kept grows only with the mounts of those, and on the
//! way to them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use vmsnapshot_core::device_number::DeviceNumber;
use vmsnapshot_core::mountinfo::{MountEntry, MountNamespace};
use vmsnapshot_core::plan::{PlanError, UnreadableMounts};
use vmsnapshot_core::text::path_text;
use vmsnapshot_sys::{user_namespace, Errno};

use super::roots::{names_in, unreadable, Roots};
use super::table::{Limit, Looks, Superblocks, Table, TableError, Tables, MOUNTINFO, PAIRS_MAX};
use crate::observer::{Observer, Silent};

/// How much of the mount namespaces other than our own is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Those that our own user namespace owns: services and containers.
    pub ours: Limit,
    /// Those of all other user namespaces together: rootless containers, and what a user makes.
    pub foreign: Limit,
}

impl Limits {
    /// The limits of a plan. A line of mountinfo has about 150 bytes, so 16 MiB are 100,000 mounts,
    /// which is as many as the kernel allows in one namespace (`fs.mount-max`).
    pub const PLAN: Self = Self {
        ours: Limit {
            table_bytes: 64 << 20,
            bytes: 256 << 20,
            time: Duration::from_secs(10),
        },
        foreign: Limit {
            table_bytes: 16 << 20,
            bytes: 64 << 20,
            time: Duration::from_secs(5),
        },
    };
    /// No limits: whoever thaws must find what is frozen.
    pub const NONE: Self = Self {
        ours: Limit::NONE,
        foreign: Limit::NONE,
    };
}

/// The mounts of every visible mount namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mounts {
    /// The namespaces. The first is that of this process. One of another user namespace is here only
    /// if no other shows one of its filesystems on block devices, and has only the mounts of those.
    pub namespaces: Vec<MountNamespace>,
    /// The tables and lines that could not be read.
    pub unreadable: Vec<UnreadableMounts>,
}

/// Reads the mounts of our own mount namespace, then those of every other visible namespace.
///
/// # Errors
///
/// If our own mountinfo cannot be read, or if the observer gives up.
pub fn mounts(
    roots: &Roots,
    limits: Limits,
    observer: &mut dyn Observer,
) -> Result<Mounts, PlanError> {
    let own = user_namespace::own();
    // An owner that we may not ask for is none of ours. If the kernel cannot answer (before Linux
    // 4.9), the namespace may be root's. A process that has ended says nothing.
    let is_foreign = |process: &Path| match user_namespace::owner_of(&process.join("ns/mnt")) {
        Ok(owner) => Some(own != Ok(owner)),
        Err(Errno::NOENT | Errno::SRCH) => None,
        Err(errno) => Some(errno == Errno::PERM),
    };
    read(roots, limits, observer, &is_foreign)
}

fn read(
    roots: &Roots,
    limits: Limits,
    observer: &mut dyn Observer,
    is_foreign: &dyn Fn(&Path) -> Option<bool>,
) -> Result<Mounts, PlanError> {
    let own = roots.proc.join("self");
    let mut looks = Looks::new(observer);
    let mut mounts = Mounts::default();
    let table = Tables::new(&mut looks, Limit::NONE).settled(&own);
    let table = table.map_err(|error| not_read(&own, error))?;
    mounts.add(None, &own, table);
    let Processes { namespaces, closed } = processes(roots, &own, &mut looks)?;
    let (foreign, ours): (Vec<_>, Vec<_>) = namespaces.into_iter().partition(|processes| {
        let mut answers = processes
            .iter()
            .filter_map(|(_, process)| is_foreign(process));
        answers.next().unwrap_or(false)
    });

    let mut tables = Tables::new(&mut looks, limits.ours);
    mounts.read_each(&ours, |mounts, pid, process| {
        let table = tables.settled(process)?;
        mounts.add(Some(pid), process, table);
        Ok(())
    })?;
    let mut known = mounts.devices();
    let mut tables = Tables::new(&mut looks, limits.foreign);
    mounts.read_each(&foreign, |mounts, pid, process| {
        mounts.add_foreign(&mut tables, pid, process, &mut known)
    })?;
    let closed: Vec<_> = closed.into_iter().map(|process| vec![process]).collect();
    mounts.read_each(&closed, |mounts, _, process| {
        mounts.add_closed(&mut tables, process, &mut known)
    })?;
    Ok(mounts)
}

/// Returns the mounts that a process sees. `process` is its directory in `/proc`.
pub(crate) fn mounts_of(process: &Path, limit: Limit) -> Result<Vec<MountEntry>, PlanError> {
    let table = Tables::new(&mut Looks::new(&mut Silent), limit).settled(process);
    table
        .map(|table| table.mountinfo.mounts)
        .map_err(|error| not_read(process, error))
}

/// A process, and its directory in `/proc`.
type Process = (u32, PathBuf);

/// The processes outside our mount namespace.
struct Processes {
    /// Those of each namespace, the oldest first. In a container it is most likely the one that lives
    /// longest.
    namespaces: Vec<Vec<Process>>,
    /// Those that do not let us name their namespace.
    closed: Vec<Process>,
}

fn processes(roots: &Roots, own: &Path, looks: &mut Looks<'_>) -> Result<Processes, PlanError> {
    // The link's text (`mnt:[4026531840]`) names the namespace by its inode.
    let own = fs::read_link(own.join("ns/mnt")).ok();
    let mut pids: Vec<u32> = names_in(&roots.proc)?
        .iter()
        .filter_map(|name| name.to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    let mut found = Processes {
        namespaces: Vec::new(),
        closed: Vec::new(),
    };
    let mut index_of: HashMap<OsString, usize> = HashMap::new();
    for pid in pids {
        looks.obey().map_err(|error| not_read(&roots.proc, error))?;
        let process = roots.proc.join(pid.to_string());
        match fs::read_link(process.join("ns/mnt")) {
            Ok(namespace) if Some(&namespace) == own.as_ref() => {}
            Ok(namespace) => {
                let next = found.namespaces.len();
                let index = *index_of.entry(namespace.into_os_string()).or_insert(next);
                if index == next {
                    found.namespaces.push(Vec::new());
                }
                if let Some(processes) = found.namespaces.get_mut(index) {
                    processes.push((pid, process));
                }
            }
            Err(error) if is_gone(&error) => {}
            Err(_) => found.closed.push((pid, process)),
        }
    }
    Ok(found)
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

    fn devices(&self) -> HashSet<DeviceNumber> {
        let mounts = self.namespaces.iter().flat_map(|seen| &seen.mounts);
        mounts.map(|mount| mount.device).collect()
    }

    /// Calls `read` for a process of each namespace. If the process is gone, or its table cannot be
    /// read, the next one of the same namespace is tried. If none can be read, the first is named.
    fn read_each(
        &mut self,
        namespaces: &[Vec<Process>],
        mut read: impl FnMut(&mut Self, u32, &Path) -> Result<(), TableError>,
    ) -> Result<(), PlanError> {
        // The tables that were not read because of a limit on all. One entry stands for them.
        let mut unread: Option<(&Path, String, usize)> = None;
        for processes in namespaces {
            let mut failed = None;
            for (pid, process) in processes {
                match (&mut unread, read(self, *pid, process)) {
                    (_, Ok(())) => failed = None,
                    (_, Err(TableError::Io(error))) if is_gone(&error) => continue,
                    (_, Err(TableError::Io(error))) => {
                        let why = TableError::Io(error).why();
                        failed.get_or_insert(cannot_be_read(&process.join(MOUNTINFO), &why));
                        continue;
                    }
                    (_, Err(error @ TableError::TooLong(_))) => {
                        failed = Some(cannot_be_read(&process.join(MOUNTINFO), &error.why()));
                    }
                    (Some((_, _, count)), Err(TableError::OutOf(_))) => *count += 1,
                    (None, Err(TableError::OutOf(why))) => unread = Some((process, why, 1)),
                    (_, Err(TableError::Interrupted)) => return Err(PlanError::Interrupted),
                }
                break;
            }
            self.unreadable.extend(failed);
        }
        if let Some((process, why, count)) = unread {
            let why = match count {
                1 => why,
                count => format!("{why}; {} other tables were not read either", count - 1),
            };
            let path = process.join(MOUNTINFO);
            self.unreadable.push(cannot_be_read(&path, &why));
        }
        Ok(())
    }

    /// Looks for filesystems on block devices that are not `known`, and adds them to those.
    fn add_foreign(
        &mut self,
        tables: &mut Tables<'_, '_>,
        pid: u32,
        process: &Path,
        known: &mut HashSet<DeviceNumber>,
    ) -> Result<(), TableError> {
        let is_new =
            |mount: &MountEntry| mount.is_on_local_block_device() && !known.contains(&mount.device);
        let Superblocks {
            mounts: found,
            points,
            bad_line,
        } = tables.superblocks(process, is_new)?;
        let path = process.join(MOUNTINFO);
        let bad_line = bad_line.map(|line| cannot_be_read(&path, &line.to_string()));
        if !found.is_empty() {
            let namespace = MountNamespace {
                pid: Some(pid),
                mounts: tables.on_ways_to(process, &points)?,
            };
            let namespace = namespace.reduced_to(|mount| found.contains_key(&mount.device));
            tables.check()?;
            let shown: HashSet<_> = namespace.mounts.iter().map(|mount| mount.device).collect();
            let lost = found.values().find(|mount| !shown.contains(&mount.device));
            let why = lost.map(|mount| {
                format!(
                    "it showed {} once, and then no more",
                    superblock_text(mount)
                )
            });
            let lost = why.map(|why| cannot_be_read(&path, &why));
            self.unreadable.extend(lost);
            known.extend(shown);
            self.namespaces.push(namespace);
        }
        self.unreadable.extend(bad_line);
        Ok(())
    }

    /// Looks at a process that does not let us name its mount namespace, nor open a path in it.
    ///
    /// A container without CAP_SYS_PTRACE, or a security module, closes it. Its mountinfo can be read
    /// all the same. It counts only if it shows a filesystem that could be frozen and that no other
    /// namespace shows. If it is closed too, nothing is known, and that is normal there: such
    /// processes have our own namespace as a rule.
    fn add_closed(
        &mut self,
        tables: &mut Tables<'_, '_>,
        process: &Path,
        known: &mut HashSet<DeviceNumber>,
    ) -> Result<(), TableError> {
        let may_be_written = |mount: &MountEntry| {
            mount.is_on_local_block_device()
                && !mount.superblock_is_read_only()
                && !known.contains(&mount.device)
        };
        let found = match tables.superblocks(process, may_be_written) {
            Ok(found) => found.mounts,
            Err(TableError::Io(_)) => BTreeMap::new(),
            Err(error) => return Err(error),
        };
        for mount in found.values() {
            let what = superblock_text(mount);
            let why = format!("permission denied, and only this process shows {what}");
            let root = process.join("root");
            self.unreadable.push(cannot_be_read(&root, &why));
        }
        known.extend(found.into_keys());
        Ok(())
    }
}

fn superblock_text(mount: &MountEntry) -> String {
    let (device, kind) = (mount.device, &mount.filesystem_type);
    format!("{device} ({kind}) at `{}`", path_text(&mount.mount_point))
}

fn cannot_be_read(path: &Path, why: &str) -> UnreadableMounts {
    UnreadableMounts {
        path: path_text(path),
        why: why.to_owned(),
    }
}

fn not_read(process: &Path, error: TableError) -> PlanError {
    let path = process.join(MOUNTINFO);
    match error {
        TableError::Interrupted => PlanError::Interrupted,
        TableError::Io(error) => unreadable(&path, &error),
        error @ (TableError::TooLong(_) | TableError::OutOf(_)) => PlanError::Unreadable {
            path,
            cause: error.why(),
        },
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

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

    use super::*;
    use crate::scan::fake_machine::{FakeMachine, DATABASE, ROOT};

    #[test]
    fn mounts_reads_our_namespace_first_and_each_other_once() {
        let machine = FakeMachine::new();
        machine.process("self", "mnt:[1]", Some(ROOT));
        machine.process("1", "mnt:[1]", Some(ROOT));
        machine.process("300", "mnt:[2]", Some(DATABASE));
        machine.process("20", "mnt:[2]", Some(DATABASE));
        machine.file("proc/uptime", "1");
        let namespaces = mounts(&machine.roots(), Limits::PLAN, &mut Silent)
            .unwrap()
            .namespaces;
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
            mounts(&machine.roots(), Limits::PLAN, &mut Silent)
                .unwrap()
                .namespaces[1]
                .pid,
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
        let mounts = mounts(&machine.roots(), Limits::PLAN, &mut Silent).unwrap();
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
        let mounts = mounts(&machine.roots(), Limits::PLAN, &mut Silent).unwrap();
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
        let mounts = mounts(&machine.roots(), Limits::PLAN, &mut Silent).unwrap();
        let [unreadable] = &mounts.unreadable[..] else {
            panic!("{:?}", mounts.unreadable)
        };
        assert!(unreadable.path.ends_with("proc/21/root"));
        assert!(unreadable.why.contains("8:17 (xfs) at `/db`"));
    }

    /// What the mounts of process 20 in another user namespace, and 30 in ours, give.
    fn beside_foreign(table: &str, limits: Limits) -> Mounts {
        let machine = FakeMachine::new();
        machine.process("self", "mnt:[1]", Some(ROOT));
        machine.process("20", "mnt:[2]", Some(table));
        machine.process("30", "mnt:[3]", Some(DATABASE));
        let is_foreign = |process: &Path| Some(process.ends_with("20"));
        read(&machine.roots(), limits, &mut Silent, &is_foreign).unwrap()
    }

    #[test]
    fn foreign_namespace_counts_only_for_filesystems_on_block_devices_that_no_other_shows() {
        let pids =
            |mounts: &Mounts| -> Vec<_> { mounts.namespaces.iter().map(|seen| seen.pid).collect() };
        // It is read last, although its process is older.
        let copy = format!("{ROOT}{DATABASE}11 10 0:60 / /t rw - tmpfs t rw\n");
        let mounts = beside_foreign(&copy, Limits::PLAN);
        assert_eq!(pids(&mounts), [None, Some(30)]);
        let left = "12 1 8:33 / /left rw - ext4 /dev/sdc1 rw\n";
        let mounts = beside_foreign(&format!("{copy}{left}"), Limits::PLAN);
        assert_eq!(pids(&mounts), [None, Some(30), Some(20)]);
        let kept = mounts.namespaces[2].mounts.iter();
        let kept: Vec<_> = kept
            .map(|mount| mount.mount_point.to_str().unwrap())
            .collect();
        assert_eq!(kept, ["/", "/left"]);
        assert_eq!(mounts.unreadable, []);
    }

    #[test]
    fn namespace_is_foreign_if_the_first_process_that_still_runs_says_so() {
        let machine = FakeMachine::new();
        machine.process("self", "mnt:[1]", Some(ROOT));
        machine.process("20", "mnt:[2]", Some(ROOT));
        machine.process("21", "mnt:[2]", Some(ROOT));
        let is_foreign = |process: &Path| process.ends_with("21").then_some(true);
        let mounts = read(&machine.roots(), Limits::PLAN, &mut Silent, &is_foreign).unwrap();
        // A foreign namespace without a filesystem of its own is not kept.
        assert_eq!(mounts.namespaces.len(), 1);
        let nobody = |_: &Path| None;
        let mounts = read(&machine.roots(), Limits::PLAN, &mut Silent, &nobody).unwrap();
        assert_eq!(mounts.namespaces.len(), 2);
    }

    #[test]
    fn foreign_tables_beyond_the_limit_are_named_in_one_entry() {
        let machine = FakeMachine::new();
        machine.process("self", "mnt:[1]", Some(ROOT));
        for pid in 20..25 {
            machine.process(&pid.to_string(), &format!("mnt:[{pid}]"), Some(ROOT));
        }
        machine.process("30", "mnt:[30]", Some(&ROOT.repeat(100)));
        let length = u64::try_from(ROOT.len()).unwrap();
        let limits = Limits {
            foreign: Limit {
                table_bytes: 10 * length,
                bytes: 5 * length,
                time: Duration::from_secs(60),
            },
            ..Limits::PLAN
        };
        let is_foreign = |_: &Path| Some(true);
        let mounts = read(&machine.roots(), limits, &mut Silent, &is_foreign).unwrap();
        let [unread] = &mounts.unreadable[..] else {
            panic!("{:?}", mounts.unreadable)
        };
        assert!(unread.path.ends_with("proc/22/mountinfo"));
        assert!(
            unread.why.ends_with("3 other tables were not read either"),
            "{}",
            unread.why
        );
        let long = beside_foreign(&ROOT.repeat(11), limits);
        assert_eq!(long.unreadable.len(), 1);
        assert_eq!(long.namespaces.len(), 2);
    }
}
