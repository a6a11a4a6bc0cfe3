//! What can be learned and mended from outside a run: `vmsnapshot status` and `vmsnapshot thaw`.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::fs::{major, minor, open, Mode, OFlags};
use vmsnapshot_core::deadlines::Monotonic;
use vmsnapshot_core::device_number::DeviceNumber;
use vmsnapshot_core::ledger::{Entry, FreezeState, Thawer};
use vmsnapshot_core::mountinfo::MountNamespace;
use vmsnapshot_core::plan::PlannedFilesystem;
use vmsnapshot_core::report::utc_text;
use vmsnapshot_core::status::{
    FrozenFilesystem, RcuStatus, RunFilesystem, RunStatus, Status, ThawFailed, ThawLeftAlone,
    ThawResult, Thawed,
};
use vmsnapshot_core::text::bytes_text;
use vmsnapshot_sys::errno::errno_text;
use vmsnapshot_sys::kernel::{Kernel, Linux};
use vmsnapshot_sys::ledger_file::LedgerFile;
use vmsnapshot_sys::{clock, process, Errno};

use crate::directories;
use crate::error::ThawError;
use crate::rcu;
use crate::scan::{self, Roots};
use crate::state::{ledgers, remove, Lock, DIRECTORY};

/// How long `thaw` waits for all its FITHAW calls, which run in parallel.
const FITHAW_LIMIT: Duration = Duration::from_secs(5);

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

/// Thaws what runs left frozen that can no longer do it themselves.
///
/// Whether one can is a question of the lock: while it is held, a run whose process or watchdog is
/// alive is left alone, and thaws by its deadline. *Blocking*: 5 s, for FITHAW calls that hang.
///
/// # Errors
/// [`ThawError`] when the runs or the mounts cannot be read.
pub fn thaw() -> Result<ThawResult, ThawError> {
    let mut result = ThawResult::default();
    let found = ledgers().map_err(ThawError::State)?;
    if found.is_empty() {
        return Ok(result);
    }
    let lock = Lock::try_take().map_err(ThawError::State)?;
    let namespaces = scan::namespaces(&Roots::default()).map_err(ThawError::Plan)?;
    let (sender, receiver) = mpsc::channel();
    let mut pending = 0;
    for (run, (_, ledger)) in found.iter().enumerate() {
        if lock.is_none() && is_tended(ledger) {
            if ledger.may_be_frozen() {
                result.left_alone.push(ThawLeftAlone {
                    mount_point: frozen_mount_points(ledger),
                    run_id: ledger.header.run_id(),
                    why: "the run or its watchdog is alive and thaws by its deadline".to_owned(),
                });
            }
            continue;
        }
        for (index, entry) in ledger.entries.iter().enumerate() {
            if entry.state().may_be_frozen() {
                pending += 1;
                let (sender, device) = (sender.clone(), entry.device());
                let mounts = mounts_of(device, &namespaces);
                // A thread each: opening or thawing one may hang, or wait for the thaw of another.
                std::thread::spawn(move || {
                    // The receiver may have stopped waiting.
                    let _ = sender.send((run, index, thaw_device(device, &mounts)));
                });
            }
        }
    }
    let deadline = Instant::now() + FITHAW_LIMIT;
    while pending > 0 {
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok((run, index, answer)) = receiver.recv_timeout(left) else {
            break;
        };
        pending -= 1;
        let Some((_, ledger)) = found.get(run) else {
            continue;
        };
        if let Some(entry) = ledger.entries.get(index) {
            settle(ledger, entry, answer, &mut result);
        }
    }
    for (path, ledger) in &found {
        if lock.is_none() && is_tended(ledger) {
            continue;
        }
        // What has not answered is still in its state.
        for entry in &ledger.entries {
            let device = entry.device().to_string();
            let is_listed = result
                .failed
                .iter()
                .any(|failed| failed.device == device && failed.run_id == ledger.header.run_id());
            if entry.state().may_be_frozen() && !is_listed {
                result.failed.push(ThawFailed {
                    mount_point: bytes_text(&entry.mount_point()),
                    device,
                    run_id: ledger.header.run_id(),
                    error: format!(
                        "FITHAW has not returned within {} s",
                        FITHAW_LIMIT.as_secs()
                    ),
                });
            }
        }
        let was_owed = ledger.header.rcu_owed().is_some();
        let is_put_back = rcu::put_back_for(ledger);
        result.rcu_restored |= was_owed && is_put_back;
        if !ledger.may_be_frozen() && is_put_back {
            remove(path);
        }
    }
    Ok(result)
}

/// What FITHAW of a device's filesystem came to.
enum Answer {
    Thawed,
    NotFrozen,
    /// It is not mounted, and nothing holds its device: it cannot be frozen.
    Gone,
    Failed(String),
}

/// Calls FITHAW on what lies on `device`, through any of its mounts, wherever they are by now.
fn thaw_device(device: DeviceNumber, mounts: &[PlannedFilesystem]) -> Answer {
    let mut failure = None;
    for planned in mounts {
        let opened = directories::open_all(std::slice::from_ref(planned));
        let directory = match opened.as_deref() {
            Ok([directory]) => directory,
            Ok(_) => continue,
            Err(error) => {
                failure.get_or_insert(error.to_string());
                continue;
            }
        };
        return match Linux.thaw(directory.as_fd()) {
            Ok(()) => Answer::Thawed,
            Err(Errno::INVAL) => Answer::NotFrozen,
            Err(errno) => Answer::Failed(format!("FITHAW: {}", errno_text(errno))),
        };
    }
    match failure {
        Some(failure) => Answer::Failed(failure),
        None if is_free(device) => Answer::Gone,
        None => Answer::Failed(format!(
            "it is not mounted any more: mount its device again, then thaw; if the device is gone \
             for good, remove the run's ledger in `{DIRECTORY}`"
        )),
    }
}

/// Writes an answer into the ledger and the result.
fn settle(ledger: &LedgerFile, entry: &Entry, answer: Answer, result: &mut ThawResult) {
    let mount_point = bytes_text(&entry.mount_point());
    let device = entry.device().to_string();
    let run_id = ledger.header.run_id();
    let error = match answer {
        Answer::Thawed => {
            entry.thawed(Thawer::Operator, clock::monotonic());
            None
        }
        // A FIFREEZE of a living process may be waiting for a writer, and freeze later.
        Answer::NotFrozen
            if entry.state() == FreezeState::Announced
                && process::is_alive(ledger.header.parent()) =>
        {
            Some("FIFREEZE has not returned: end the run's process, then thaw again".to_owned())
        }
        // Somebody else has thawed it; that it is not frozen is what was asked for.
        Answer::NotFrozen | Answer::Gone => {
            entry.find_thawed(clock::monotonic());
            entry.never_frozen();
            None
        }
        Answer::Failed(error) => Some(error),
    };
    match error {
        None => result.thawed.push(Thawed {
            mount_point,
            device,
            run_id,
        }),
        Some(error) => result.failed.push(ThawFailed {
            mount_point,
            device,
            run_id,
            error,
        }),
    }
}

/// Whether somebody is left who thaws what the run has frozen.
fn is_tended(ledger: &LedgerFile) -> bool {
    process::is_alive(ledger.header.parent()) || process::is_alive(ledger.header.watchdog())
}

/// Every mount of `device`, also those that no plan would take: a filesystem may have turned
/// read-only, or been covered, since it was frozen.
fn mounts_of(device: DeviceNumber, namespaces: &[MountNamespace]) -> Vec<PlannedFilesystem> {
    let mut mounts = Vec::new();
    for namespace in namespaces {
        for mount in namespace
            .mounts
            .iter()
            .filter(|mount| mount.device == device)
        {
            let open_path = match namespace.pid {
                None => mount.mount_point.clone(),
                Some(pid) => {
                    let below = mount.mount_point.strip_prefix("/");
                    PathBuf::from(format!("/proc/{pid}/root"))
                        .join(below.unwrap_or(&mount.mount_point))
                }
            };
            mounts.push(PlannedFilesystem {
                mount_point: mount.mount_point.clone(),
                open_path,
                also_mounted_at: Vec::new(),
                device,
                source: mount.source.clone(),
                filesystem_type: mount.filesystem_type.clone(),
                level: 0,
            });
        }
    }
    mounts
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
        finished: !ledger.may_be_frozen() && !process::is_alive(header.watchdog()),
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
                frozen_at: instant_text(ledger, entry.announced_at())
                    .filter(|_| was_frozen(entry.state())),
                thawed_at: instant_text(ledger, entry.thawed_at()),
            })
            .collect(),
    }
}

/// Whether a filesystem in this state is, or was, frozen by the run.
fn was_frozen(state: FreezeState) -> bool {
    match state {
        FreezeState::Announced
        | FreezeState::Frozen
        | FreezeState::ThawedByRun
        | FreezeState::ThawedByWatchdog
        | FreezeState::ThawedByAnother
        | FreezeState::ThawedByOperator => true,
        FreezeState::Planned | FreezeState::Refused | FreezeState::Revoked => false,
    }
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

fn instant_text(ledger: &LedgerFile, instant: Option<Monotonic>) -> Option<String> {
    instant.map(|instant| utc_text(ledger.header.realtime_ns(instant)))
}
