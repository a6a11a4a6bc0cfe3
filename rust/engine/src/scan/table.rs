//! Reads one table of mounts, line by line, within limits.
//!
//! A table can have 100,000 lines of some KiB, because an ordinary user can make a mount namespace of
//! that size. Nothing here keeps the text of a table.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use vmsnapshot_core::device_number::DeviceNumber;
use vmsnapshot_core::mountinfo::{self, BadLine, MountEntry, Mountinfo};
use vmsnapshot_sys::errno::cause_text;

use crate::observer::{Observer, INTERRUPTION_TICK};

/// The file of a process that has the mounts it sees.
pub(super) const MOUNTINFO: &str = "mountinfo";
/// How many times a table of mounts is read twice until the two reads agree.
pub(super) const PAIRS_MAX: u32 = 6;
/// How long the first pause after two reads that differ is. Each is twice as long as the one before.
/// A service or container that is being started has made all its mounts by then.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const BUFFER_BYTES: usize = 32 * 1024;

/// What the tables of a group may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// How long one table may be.
    pub table_bytes: u64,
    /// How much is read of all tables together. Each is read at least twice.
    pub bytes: u64,
    /// How long it may take to read all of them.
    pub time: Duration,
}

impl Limit {
    /// No limit.
    pub const NONE: Self = Self {
        table_bytes: u64::MAX,
        bytes: u64::MAX,
        time: Duration::MAX,
    };
}

/// Why a table was not read.
#[derive(Debug)]
pub(super) enum TableError {
    /// The system's answer.
    Io(io::Error),
    /// This table is longer than one may be.
    TooLong(u64),
    /// The tables of its group are longer, or take longer, than they may together.
    OutOf(String),
    /// The caller wants no plan any more.
    Interrupted,
}

impl From<io::Error> for TableError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl TableError {
    pub(super) fn why(&self) -> String {
        match self {
            Self::Io(error) => cause_text(error),
            Self::TooLong(limit) => format!("it is longer than {limit} bytes"),
            Self::OutOf(why) => why.clone(),
            Self::Interrupted => "the preparation was interrupted".to_owned(),
        }
    }
}

/// Asks the observer now and then whether to go on.
pub(super) struct Looks<'o> {
    observer: &'o mut dyn Observer,
    next: Instant,
}

impl<'o> Looks<'o> {
    pub(super) fn new(observer: &'o mut dyn Observer) -> Self {
        let next = Instant::now() + INTERRUPTION_TICK;
        Self { observer, next }
    }

    pub(super) fn obey(&mut self) -> Result<(), TableError> {
        let now = Instant::now();
        if now < self.next {
            return Ok(());
        }
        self.next = now + INTERRUPTION_TICK;
        if self.observer.is_interrupted() {
            Err(TableError::Interrupted)
        } else {
            Ok(())
        }
    }
}

/// Reads the tables of a group, until its limit.
pub(super) struct Tables<'l, 'o> {
    looks: &'l mut Looks<'o>,
    limit: Limit,
    bytes_left: u64,
    until: Option<Instant>,
    /// Its keys are not known to anyone who could make two tables with the same hash.
    hashes: RandomState,
}

/// A table of mounts, and whether two reads of it agreed.
pub(super) struct Table {
    pub(super) mountinfo: Mountinfo,
    pub(super) is_settled: bool,
}

/// The mounts of a table that were looked for.
#[derive(Default)]
pub(super) struct Superblocks {
    /// One mount per superblock.
    pub(super) mounts: BTreeMap<DeviceNumber, MountEntry>,
    /// The mount points of all of them.
    pub(super) points: MountPoints,
    pub(super) bad_line: Option<BadLine>,
}

/// Mount points. Each ends with a slash, so that what is below a directory begins with its text, and
/// comes right after it.
#[derive(Default)]
pub(super) struct MountPoints(BTreeSet<Vec<u8>>);

impl MountPoints {
    fn add(&mut self, point: &Path) {
        self.0.insert(with_slash(point));
    }

    /// Returns whether `point` is one of these, or a directory above one.
    fn has_way_over(&self, point: &Path) -> bool {
        let point = with_slash(point);
        let first = self.0.range(point.clone()..).next();
        first.is_some_and(|first| first.starts_with(&point))
    }
}

fn with_slash(point: &Path) -> Vec<u8> {
    let mut text = point.as_os_str().as_bytes().to_vec();
    if text.last() != Some(&b'/') {
        text.push(b'/');
    }
    text
}

impl<'l, 'o> Tables<'l, 'o> {
    pub(super) fn new(looks: &'l mut Looks<'o>, limit: Limit) -> Self {
        Self {
            looks,
            limit,
            bytes_left: limit.bytes,
            until: Instant::now().checked_add(limit.time),
            hashes: RandomState::new(),
        }
    }

    /// Reads the table of a process twice, until the two reads agree. `process` is its directory in
    /// `/proc`.
    pub(super) fn settled(&mut self, process: &Path) -> Result<Table, TableError> {
        let file = process.join(MOUNTINFO);
        self.read_until_settled(|| File::open(&file))
    }

    /// Reads a table twice, until the two reads agree.
    ///
    /// Before Linux 5.8, one read can leave out mounts while another process unmounts. Later kernels
    /// can still show a state that never was. If no two reads agree, the result is one of the last
    /// two, with the filesystems that only others show.
    fn read_until_settled<R: Read>(
        &mut self,
        mut open: impl FnMut() -> io::Result<R>,
    ) -> Result<Table, TableError> {
        let mut shown: BTreeMap<DeviceNumber, MountEntry> = BTreeMap::new();
        let mut mountinfo = Mountinfo::default();
        for number in 0..PAIRS_MAX {
            if number > 0 {
                std::thread::sleep(FIRST_PAUSE * 2_u32.pow(number - 1));
            }
            mountinfo = Mountinfo::default();
            let first = self.lines(open()?, |number, line| mountinfo.add_line(number, line))?;
            let mut others = Vec::new();
            let second = self.lines(open()?, |_, line| {
                let entry = mountinfo::parse_line(line);
                others.extend(entry.ok().filter(MountEntry::is_on_local_block_device));
            })?;
            if first == second {
                let is_settled = true;
                return Ok(Table {
                    mountinfo,
                    is_settled,
                });
            }
            let mounts = mountinfo.mounts.iter().cloned();
            let on_devices = mounts.filter(MountEntry::is_on_local_block_device);
            for mount in on_devices.chain(others) {
                shown.entry(mount.device).or_insert(mount);
            }
        }
        for mount in &mountinfo.mounts {
            shown.remove(&mount.device);
        }
        mountinfo.mounts.extend(shown.into_values());
        Ok(Table {
            mountinfo,
            is_settled: false,
        })
    }

    /// Reads the table of a process once. Returns the mounts at `points` and on the directories above
    /// them. No other one can be on the way to a mount at one of them.
    pub(super) fn on_ways_to(
        &mut self,
        process: &Path,
        points: &MountPoints,
    ) -> Result<Vec<MountEntry>, TableError> {
        let mut mounts = Vec::new();
        let file = File::open(process.join(MOUNTINFO))?;
        self.lines(file, |_, line| {
            let mount = mountinfo::parse_line(line).ok();
            mounts.extend(mount.filter(|mount| points.has_way_over(&mount.mount_point)));
        })?;
        Ok(mounts)
    }

    /// Returns the mounts of a table that `is_wanted` selects, one per superblock, and the first bad
    /// line.
    ///
    /// A mount that exists during all of a read is in it (since Linux 5.8), so it does not matter here
    /// whether two reads agree about the rest.
    pub(super) fn superblocks(
        &mut self,
        process: &Path,
        is_wanted: impl Fn(&MountEntry) -> bool,
    ) -> Result<Superblocks, TableError> {
        let mut found = Superblocks::default();
        for _ in 0..2 {
            let file = File::open(process.join(MOUNTINFO))?;
            self.lines(file, |number, line| match mountinfo::parse_line(line) {
                Ok(mount) if is_wanted(&mount) => {
                    found.points.add(&mount.mount_point);
                    found.mounts.entry(mount.device).or_insert(mount);
                }
                Ok(_) => {}
                Err(cause) => {
                    found.bad_line.get_or_insert(BadLine {
                        line: number,
                        cause,
                    });
                }
            })?;
        }
        Ok(found)
    }

    /// Checks, after work on what was read, whether the caller still wants it and the time is not over.
    pub(super) fn check(&mut self) -> Result<(), TableError> {
        self.looks.obey()?;
        if self.until.is_some_and(|until| Instant::now() > until) {
            let seconds = self.limit.time.as_secs();
            let why = format!("the tables of its kind took longer than {seconds} s together");
            return Err(TableError::OutOf(why));
        }
        Ok(())
    }

    /// Calls `each` for every line that is not empty, with its number. Returns a hash of the text.
    fn lines(
        &mut self,
        table: impl Read,
        mut each: impl FnMut(usize, &[u8]),
    ) -> Result<u64, TableError> {
        let mut hash = self.hashes.build_hasher();
        // One byte more shows that the table is longer.
        let most = self.limit.table_bytes.min(self.bytes_left);
        let text = table.take(most.saturating_add(1));
        let mut text = BufReader::with_capacity(BUFFER_BYTES, text);
        let (mut line, mut length) = (Vec::new(), 0);
        for number in 1.. {
            self.check()?;
            line.clear();
            let read = text.read_until(b'\n', &mut line)?;
            if read == 0 {
                break;
            }
            length += u64::try_from(read).unwrap_or(u64::MAX);
            if length > self.limit.table_bytes {
                self.bytes_left = self.bytes_left.saturating_sub(length);
                return Err(TableError::TooLong(self.limit.table_bytes));
            }
            if length > self.bytes_left {
                self.bytes_left = 0;
                let bytes = self.limit.bytes;
                let why = format!("the tables of its kind have more than {bytes} bytes together");
                return Err(TableError::OutOf(why));
            }
            hash.write(&line);
            if let Some(b'\n') = line.last() {
                line.pop();
            }
            if !line.is_empty() {
                each(number, &line);
            }
        }
        self.bytes_left -= length;
        Ok(hash.finish())
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::observer::Silent;
    use crate::scan::fake_machine::{FakeMachine, ROOT};

    /// The kernel here does not leave out entries, so the reads are given.
    #[test]
    fn filesystem_that_a_read_leaves_out_is_found() {
        let second = "2 1 8:17 / /data rw - ext4 /dev/sdb1 rw\n";
        let both = format!("{ROOT}{second}");
        let reads = [ROOT, &both, &both, &both];
        let mut silent = Silent;
        let mut looks = Looks::new(&mut silent);
        let mut tables = Tables::new(&mut looks, Limit::NONE);
        let mut next = reads.iter();
        let table = tables.read_until_settled(|| Ok(next.next().unwrap().as_bytes()));
        let table = table.unwrap();
        assert!(table.is_settled);
        assert_eq!(table.mountinfo.mounts.len(), 2);
        // No two reads agree, and only the first one shows the second filesystem.
        let mut count = 0;
        let table = tables.read_until_settled(|| {
            count += 1;
            let mounts = if count == 1 { both.as_str() } else { ROOT };
            let text = format!("{mounts}9 1 0:{count} / /x rw - tmpfs t rw\n");
            Ok(io::Cursor::new(text))
        });
        let table = table.unwrap();
        assert_eq!((table.is_settled, count), (false, 2 * PAIRS_MAX));
        let mounts = table.mountinfo.mounts.iter();
        let mount_points: Vec<_> = mounts
            .map(|mount| mount.mount_point.to_str().unwrap())
            .collect();
        assert_eq!(mount_points, ["/", "/x", "/data"]);
    }

    /// A user can make many thousand mounts of 4 KiB each. Only those on a way matter.
    #[test]
    fn of_many_deep_mounts_only_those_on_the_way_to_a_wanted_one_are_kept() {
        use std::fmt::Write;

        let mut table = ROOT.to_owned();
        let deep = "/d".repeat(1900);
        for id in 10..500 {
            writeln!(table, "{id} 1 0:9 / /{id}{deep} rw - tmpfs t rw").unwrap();
        }
        table += "2 1 0:9 / /a rw - tmpfs t rw\n3 2 8:33 / /a/b rw - ext4 /dev/sdc1 rw\n\
            4 3 0:9 / /a/b rw - tmpfs t rw\n5 4 0:9 / /a/b/c rw - tmpfs t rw\n\
            6 2 0:9 / /a/b-c rw - tmpfs t rw\n7 2 0:9 / /a/bc rw - tmpfs t rw\n";
        let machine = FakeMachine::new();
        machine.process("20", "mnt:[2]", Some(&table));
        let process = machine.roots().proc.join("20");
        let mut silent = Silent;
        let mut looks = Looks::new(&mut silent);
        let mut tables = Tables::new(&mut looks, Limit::NONE);
        let wanted = |mount: &MountEntry| mount.device.major == 8 && mount.device.minor == 33;
        let found = tables.superblocks(&process, wanted).unwrap();
        assert_eq!((found.mounts.len(), found.points.0.len()), (1, 1));
        let kept = tables.on_ways_to(&process, &found.points).unwrap();
        let ids: Vec<_> = kept.iter().map(|mount| mount.mount_id).collect();
        assert_eq!(ids, [1, 2, 3, 4]);
    }

    /// An endless table: what is read of it, and how many lines are parsed, has a limit.
    #[test]
    fn table_without_end_is_read_to_the_limit() {
        let mut silent = Silent;
        let mut looks = Looks::new(&mut silent);
        let limit = Limit {
            table_bytes: 10_000,
            bytes: 25_000,
            time: Duration::from_secs(60),
        };
        let mut tables = Tables::new(&mut looks, limit);
        let mut parsed = 0;
        let mut read = || tables.lines(io::repeat(b'\n'), |_, _| parsed += 1);
        assert!(matches!(read(), Err(TableError::TooLong(10_000))));
        assert!(matches!(read(), Err(TableError::TooLong(10_000))));
        assert!(matches!(read(), Err(TableError::OutOf(_))));
        assert!(matches!(read(), Err(TableError::OutOf(_))));
        assert_eq!(parsed, 0);
        let no_time = Limit {
            time: Duration::ZERO,
            ..Limit::NONE
        };
        let mut tables = Tables::new(&mut looks, no_time);
        let read = tables.lines(io::repeat(b'\n'), |_, _| {});
        assert!(matches!(read, Err(TableError::OutOf(_))));
    }

    #[test]
    fn caller_that_gives_up_does_not_wait_for_a_table() {
        struct GivesUp;
        impl Observer for GivesUp {
            fn phase(&mut self, _: vmsnapshot_core::phase::Phase) {}
            fn is_interrupted(&mut self) -> bool {
                true
            }
        }
        let mut observer = GivesUp;
        let mut looks = Looks::new(&mut observer);
        let mut tables = Tables::new(&mut looks, Limit::NONE);
        let read = tables.lines(io::repeat(b'\n'), |_, _| {});
        assert!(matches!(read, Err(TableError::Interrupted)));
    }
}
