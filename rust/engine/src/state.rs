//! `/run/vmsnapshot/`: one lock, and one ledger a run, on tmpfs.
//!
//! What is frozen cannot be asked of the kernel, so it is written here; and never onto a disk that
//! may be frozen. Where `/run` is no tmpfs (a container, a machine without systemd), a small one is
//! mounted on the directory itself.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{flock, major, minor, open, statfs, FlockOperation, Mode, OFlags};
use rustix::mount::{mount, MountFlags};
use vmsnapshot_core::ledger::{FreezeState, Thawer};
use vmsnapshot_core::plan::{DeviceNumber, Plan};
use vmsnapshot_core::report::utc_text;
use vmsnapshot_core::status::{
    FrozenFilesystem, RcuStatus, RunFilesystem, RunStatus, Status, ThawFailed, ThawLeftAlone,
    ThawResult, Thawed,
};
use vmsnapshot_core::text::bytes_text;
use vmsnapshot_sys::kernel::{Kernel, Linux};
use vmsnapshot_sys::ledger_file::{LedgerFile, TMPFS_MAGIC};
use vmsnapshot_sys::{clock, process, Errno};

use crate::error::{PrepareError, ThawError};
use crate::session::open_planned;
use crate::{rcu, scan};

/// Where runs are published.
pub const DIRECTORY: &str = "/run/vmsnapshot";
/// How long `thaw` waits for one FITHAW before it says that it hangs.
const FITHAW_LIMIT: Duration = Duration::from_secs(5);
/// Enough for the ledgers of many runs of the most filesystems.
const TMPFS_OPTIONS: &std::ffi::CStr = c"size=64m,mode=0700";

/// The right to freeze: there is one on a machine. The watchdog holds it as well, so that it stays
/// taken when the run is killed; a run that ends gives it back for both.
pub(crate) struct Lock {
    file: File,
    is_left_to_watchdog: bool,
}

impl Lock {
    /// The descriptor, for the watchdog.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Closes it here and lets the watchdog, which has not finished, keep it.
    pub(crate) fn leave_to_watchdog(mut self) {
        self.is_left_to_watchdog = true;
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if !self.is_left_to_watchdog {
            // It fails for no descriptor that is a lock's.
            let _ = flock(&self.file, FlockOperation::Unlock);
        }
    }
}

/// Takes the lock, and clears away what finished runs left to be read.
///
/// # Errors
/// [`PrepareError::AnotherRun`]; [`PrepareError::LeftFrozen`] when a run that is gone with its
/// watchdog left something frozen; [`PrepareError::State`].
pub(crate) fn lock() -> Result<Lock, PrepareError> {
    make_directory().map_err(|cause| state_error(Path::new(DIRECTORY), cause))?;
    let path = Path::new(DIRECTORY).join("lock");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|cause| state_error(&path, cause))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Err(PrepareError::AnotherRun),
        Err(errno) => return Err(state_error(&path, errno.into())),
    }
    // Whoever holds the lock knows that no other run is under way: all these are of the past.
    for (path, ledger) in ledgers().map_err(|cause| state_error(Path::new(DIRECTORY), cause))? {
        if let Some(entry) = ledger
            .entries
            .iter()
            .find(|entry| entry.state().may_be_frozen())
        {
            return Err(PrepareError::LeftFrozen {
                run_id: ledger.header.run_id(),
                mount_point: bytes_text(&entry.mount_point()),
            });
        }
        rcu::put_back_for(&ledger);
        remove(&path);
    }
    Ok(Lock {
        file,
        is_left_to_watchdog: false,
    })
}

/// Makes the ledger of a run.
///
/// # Errors
/// What the kernel answers.
pub(crate) fn create_ledger(run_id: &str, count: usize) -> io::Result<LedgerFile> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(ledger_path(run_id))?;
    let ledger = LedgerFile::create(OwnedFd::from(file), count)?;
    ledger.header.name(run_id, process::own_name());
    Ok(ledger)
}

/// Removes the ledger of a run that has nothing more to say.
pub(crate) fn remove_ledger(run_id: &str) {
    remove(&ledger_path(run_id));
}

/// What is frozen, by which run, since when.
///
/// # Errors
/// What the kernel answers: EACCES for anybody but root.
pub fn status() -> io::Result<Status> {
    let mut status = Status {
        frozen: Vec::new(),
        runs: Vec::new(),
        rcu_expedited: RcuStatus {
            value: rcu::current(),
            held_by: None,
        },
    };
    for (_, ledger) in ledgers()? {
        let run = run_status(&ledger);
        status.frozen.extend(
            run.filesystems
                .iter()
                .zip(&ledger.entries)
                .filter(|(_, entry)| entry.state().may_be_frozen())
                .map(|(filesystem, entry)| FrozenFilesystem {
                    mount_point: filesystem.mount_point.clone(),
                    device: filesystem.device.clone(),
                    run_id: run.run_id.clone(),
                    since: instant_text(&ledger, entry.announced_at()),
                    state: filesystem.state.clone(),
                }),
        );
        if ledger.header.rcu_owed().is_some() {
            status.rcu_expedited.held_by = Some(run.run_id.clone());
        }
        status.runs.push(run);
    }
    Ok(status)
}

/// Thaws what runs left frozen that are gone together with their watchdogs.
///
/// A run that is alive, or has a watchdog that is, is left alone: it thaws by its deadline.
/// *Blocking*: up to 5 s for a FITHAW that hangs.
///
/// # Errors
/// [`ThawError`] when the runs or the mounts cannot be read.
pub fn thaw() -> Result<ThawResult, ThawError> {
    let mut result = ThawResult::default();
    let mounted = scan::plan(&[], &[]).map_err(ThawError::Plan)?;
    for (path, ledger) in ledgers().map_err(ThawError::State)? {
        let run_id = ledger.header.run_id();
        let header = &ledger.header;
        if process::is_alive(header.parent()) || process::is_alive(header.watchdog()) {
            if ledger.may_be_frozen() {
                result.left_alone.push(ThawLeftAlone {
                    mount_point: frozen_mount_points(&ledger),
                    run_id,
                    why: "the run or its watchdog is alive and thaws by its deadline".to_owned(),
                });
            }
            continue;
        }
        for (index, entry) in ledger.entries.iter().enumerate() {
            if !entry.state().may_be_frozen() {
                continue;
            }
            let mount_point = bytes_text(&entry.mount_point());
            let device = entry.device().to_string();
            match thaw_entry(&ledger, index, &mounted) {
                Ok(()) => result.thawed.push(Thawed {
                    mount_point,
                    device,
                    run_id: run_id.clone(),
                }),
                Err(error) => result.failed.push(ThawFailed {
                    mount_point,
                    device,
                    run_id: run_id.clone(),
                    error,
                }),
            }
        }
        if header.rcu_owed().is_some() {
            result.rcu_restored |= rcu::put_back_for(&ledger);
        }
        if !ledger.may_be_frozen() {
            remove(&path);
        }
    }
    Ok(result)
}

/// Calls FITHAW on one filesystem of a dead run, by its device number, whatever is mounted at its
/// old mount point by now. It hangs, at most, a thread.
fn thaw_entry(ledger: &LedgerFile, index: usize, mounted: &Plan) -> Result<(), String> {
    let entry = ledger.entries.get(index).ok_or("no such entry")?;
    let found = mounted
        .filesystems
        .iter()
        .find(|planned| planned.device == entry.device());
    let Some(planned) = found else {
        if !is_free(entry.device()) {
            return Err(format!(
                "it is not mounted any more: mount its device again, then thaw; if its device is \
                 gone for good, remove `{DIRECTORY}/{}.ledger`",
                ledger.header.run_id()
            ));
        }
        // Thawed and unmounted by somebody else: there is nothing left that could be frozen.
        entry.find_thawed(clock::monotonic());
        entry.never_frozen();
        return Ok(());
    };
    let directory = open_planned(planned).map_err(|error| error.to_string())?;
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        // The receiver may have stopped waiting.
        let _ = sender.send(Linux.thaw(directory.as_fd()));
    });
    match receiver.recv_timeout(FITHAW_LIMIT) {
        Ok(Ok(())) => {
            entry.thawed(Thawer::Operator, clock::monotonic());
            Ok(())
        }
        // Somebody else has thawed it; that it is not frozen is what was asked for.
        Ok(Err(Errno::INVAL)) => {
            entry.find_thawed(clock::monotonic());
            entry.never_frozen();
            Ok(())
        }
        Ok(Err(errno)) => {
            entry.thaw_failed(errno.raw_os_error().unsigned_abs());
            Err(crate::error::errno_text(errno))
        }
        Err(_) => Err(format!(
            "FITHAW has not returned within {} s",
            FITHAW_LIMIT.as_secs()
        )),
    }
}

/// Whether it is known that no filesystem is on a block device: it does not exist, or can be opened
/// exclusively. A filesystem that was unmounted while frozen keeps its device (EBUSY).
///
/// Of a filesystem whose number is no block device's (btrfs) it is never known.
fn is_free(device: DeviceNumber) -> bool {
    if device.major == 0 {
        return false;
    }
    let name = match fs::read_link(format!("/sys/dev/block/{device}")) {
        Ok(link) => link.file_name().map(OsStr::to_owned),
        Err(error) => return error.kind() == io::ErrorKind::NotFound,
    };
    let Some(path) = name.map(|name| Path::new("/dev").join(name)) else {
        return false;
    };
    let is_named_so = fs::symlink_metadata(&path).is_ok_and(|node| {
        let number = (major(node.rdev()), minor(node.rdev()));
        node.file_type().is_block_device() && number == (device.major, device.minor)
    });
    let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NONBLOCK;
    // ENXIO and ENOMEDIUM: a loop device without a file, a drive without a disk.
    is_named_so
        && matches!(
            open(&path, flags, Mode::empty()),
            Ok(_) | Err(Errno::NXIO | Errno::NOMEDIUM)
        )
}

fn run_status(ledger: &LedgerFile) -> RunStatus {
    let header = &ledger.header;
    RunStatus {
        run_id: header.run_id(),
        started_at: instant_text(ledger, header.started_at()),
        pid: header.parent().pid,
        alive: process::is_alive(header.parent()),
        watchdog_pid: header.watchdog().pid,
        watchdog_alive: process::is_alive(header.watchdog()),
        fired: header.fired().map(|reason| reason.name().to_owned()),
        finished: !ledger.may_be_frozen(),
        filesystems: ledger
            .entries
            .iter()
            .map(|entry| RunFilesystem {
                mount_point: bytes_text(&entry.mount_point()),
                device: entry.device().to_string(),
                state: entry.state().name().to_owned(),
                thawed_by: match entry.state() {
                    FreezeState::ThawedByRun => Some("run".to_owned()),
                    FreezeState::ThawedByWatchdog => Some("watchdog".to_owned()),
                    FreezeState::ThawedByAnother => Some("another".to_owned()),
                    FreezeState::ThawedByOperator => Some("operator".to_owned()),
                    FreezeState::Planned
                    | FreezeState::Announced
                    | FreezeState::Frozen
                    | FreezeState::Refused
                    | FreezeState::Revoked => None,
                },
                frozen_at: instant_text(ledger, entry.announced_at()),
                thawed_at: instant_text(ledger, entry.thawed_at()),
            })
            .collect(),
    }
}

/// Every ledger there is, oldest first (their names begin with the time).
fn ledgers() -> io::Result<Vec<(PathBuf, LedgerFile)>> {
    let directory = match fs::read_dir(DIRECTORY) {
        Ok(directory) => directory,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut paths: Vec<PathBuf> = directory
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension() == Some(OsStr::new("ledger")))
        .collect();
    paths.sort_unstable();
    let mut ledgers = Vec::new();
    for path in paths {
        let opened = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .and_then(|file| LedgerFile::open(file.into()));
        match opened {
            Ok(ledger) => ledgers.push((path, ledger)),
            // Removed meanwhile by its run, or being made by one: it has nothing to say.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::InvalidData
                ) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(ledgers)
}

fn make_directory() -> io::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(DIRECTORY)?;
    if u32::try_from(statfs(DIRECTORY)?.f_type) == Ok(TMPFS_MAGIC) {
        return Ok(());
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("vmsnapshot", DIRECTORY, "tmpfs", flags, Some(TMPFS_OPTIONS))?;
    Ok(())
}

fn ledger_path(run_id: &str) -> PathBuf {
    Path::new(DIRECTORY).join(format!("{run_id}.ledger"))
}

fn remove(path: &Path) {
    // Only tidiness: a ledger that stays says what happened, and the next run removes it.
    let _ = fs::remove_file(path);
}

fn frozen_mount_points(ledger: &LedgerFile) -> String {
    let names: Vec<String> = ledger
        .entries
        .iter()
        .filter(|entry| entry.state().may_be_frozen())
        .map(|entry| bytes_text(&entry.mount_point()))
        .collect();
    names.join(", ")
}

fn instant_text(
    ledger: &LedgerFile,
    instant: Option<vmsnapshot_core::deadlines::Monotonic>,
) -> Option<String> {
    instant.map(|instant| utc_text(ledger.header.realtime_ns(instant)))
}

fn state_error(path: &Path, cause: io::Error) -> PrepareError {
    PrepareError::State {
        path: path.to_owned(),
        cause,
    }
}
