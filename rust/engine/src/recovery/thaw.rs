//! Thaws what earlier runs left frozen.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::{mpsc, Arc};
use std::time::{Duration, Instant};

use vmsnapshot_core::device_number::DeviceNumber;
use vmsnapshot_core::ledger::{Entry, FreezeState, Thawer};
use vmsnapshot_core::mountinfo::MountNamespace;
use vmsnapshot_core::plan::{open_path, PlannedFilesystem};
use vmsnapshot_core::status::{ThawFailed, ThawLeftAlone, ThawResult, Thawed};
use vmsnapshot_core::text::path_text;
use vmsnapshot_sys::errno::{cause_text, errno_text};
use vmsnapshot_sys::kernel::{Kernel, Linux};
use vmsnapshot_sys::{clock, Errno};

use super::run_state::why_left_alone;
use crate::block_device::{self, Use};
use crate::directories;
use crate::error::ThawError;
use crate::identity::Known;
use crate::observer::Silent;
use crate::scan::{self, Roots};
use crate::state::{kept_runs, KeptRun, Lock, DIRECTORY};

/// How long `thaw` waits for all its FITHAW calls, which run in parallel.
const FITHAW_LIMIT: Duration = Duration::from_secs(5);

/// Thaws what earlier runs left frozen and can no longer thaw themselves.
///
/// The lock decides whether a run still can. While another process holds it, these runs are left
/// alone: those that are alive with their deadline ahead, those whose watchdog is alive, and those of
/// another version that may have something frozen.
///
/// *Blocking*: 5 s, if FITHAW calls hang.
///
/// # Errors
/// [`ThawError`] if the runs or the mounts cannot be read.
pub fn thaw() -> Result<ThawResult, ThawError> {
    let mut result = ThawResult::default();
    let kept = kept_runs().map_err(ThawError::State)?;
    result
        .left_alone
        .extend(kept.unreadable.iter().map(|(path, error)| ThawLeftAlone {
            mount_point: String::new(),
            run_id: path_text(Path::new(path.file_stem().unwrap_or_default())),
            why: format!(
                "`{}` cannot be read: {}; if nothing is frozen, remove it",
                path_text(path),
                cause_text(error)
            ),
        }));
    if kept.runs.is_empty() && !kept.has_empty() {
        return Ok(result);
    }
    let lock = Lock::try_take().map_err(ThawError::State)?;
    if lock.is_some() {
        kept.remove_empty();
    }
    let (tended, untended): (Vec<_>, Vec<_>) = kept
        .runs
        .into_iter()
        .map(|run| {
            let why = lock.is_none().then(|| why_left_alone(&run)).flatten();
            (run, why)
        })
        .partition(|(_, why)| why.is_some());
    for (run, why) in tended {
        if run.ledger.may_be_frozen() {
            result.left_alone.push(ThawLeftAlone {
                mount_point: frozen_mount_points(&run),
                run_id: run.run_id(),
                why: why.unwrap_or_default(),
            });
        }
    }
    let untended: Vec<KeptRun> = untended.into_iter().map(|(run, _)| run).collect();
    thaw_all(&untended, &mut result)?;
    for run in untended {
        // A filesystem whose FITHAW has not returned is still in its old state.
        for entry in &run.ledger.entries {
            let device = entry.device().to_string();
            let is_listed = result
                .failed
                .iter()
                .any(|failed| failed.device == device && failed.run_id == run.run_id());
            if entry.state().may_be_frozen() && !is_listed {
                result.failed.push(ThawFailed {
                    mount_point: run.name_of(entry),
                    device,
                    run_id: run.run_id(),
                    error: format!(
                        "FITHAW has not returned within {} s",
                        FITHAW_LIMIT.as_secs()
                    ),
                });
            }
        }
        let was_owed = run.owes_rcu();
        let is_put_back = run.put_rcu_back();
        result.rcu_restored |= was_owed && is_put_back;
        if !run.ledger.may_be_frozen() && is_put_back {
            run.remove();
        }
    }
    Ok(result)
}

/// Calls FITHAW on everything that `runs` may have frozen, in parallel, and records the answers.
fn thaw_all(runs: &[KeptRun], result: &mut ThawResult) -> Result<(), ThawError> {
    let scan::Mounts { namespaces, .. } =
        scan::mounts(&Roots::default(), scan::Limits::NONE, &mut Silent)
            .map_err(ThawError::Plan)?;
    let (sender, receiver) = mpsc::channel();
    let mut pending = 0;
    for (run, kept) in runs.iter().enumerate() {
        for (index, entry) in kept.ledger.entries.iter().enumerate() {
            // If the file was truncated since, the copy still says what may be frozen.
            let _ = kept.ledger.read_again(index);
            if entry.state().may_be_frozen() {
                pending += 1;
                let sender = sender.clone();
                let is_final = is_final(kept, entry);
                let known = if is_final && kept.is_of_this_version() {
                    Known::of(entry)
                } else {
                    Known::only_device(entry)
                };
                let mounts = mounts_of(known.device(), &namespaces);
                if is_final && kept.is_of_this_version() {
                    entry.thawing(clock::monotonic());
                    // If this write fails, the next thaw does not know that FITHAW was already called.
                    let _ = kept.ledger.write_entry(index);
                }
                let thaw = Arc::new(move || {
                    // The receiver may have stopped waiting.
                    let _ = sender.send((run, index, is_final, thaw_device(known, &mounts)));
                });
                // One thread per filesystem, because opening or thawing one may hang, or may wait
                // for the thaw of another.
                let in_thread = Arc::clone(&thaw);
                if std::thread::Builder::new()
                    .spawn(move || in_thread())
                    .is_err()
                {
                    // No thread is to be had: a thaw that may hang is better than none.
                    thaw();
                }
            }
        }
    }
    let deadline = Instant::now() + FITHAW_LIMIT;
    while pending > 0 {
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok((run, index, is_final, answer)) = receiver.recv_timeout(left) else {
            break;
        };
        pending -= 1;
        let Some(run) = runs.get(run) else {
            continue;
        };
        if let Some(entry) = run.ledger.entries.get(index) {
            if !is_final {
                // FIFREEZE may have returned in the meantime.
                let _ = run.ledger.read_again(index);
            }
            settle(run, entry, is_final, answer, result);
            // The run may still write into the entry of a FIFREEZE that has not returned.
            if is_final || !entry.state().may_be_frozen() {
                // If this fails, the next thaw calls FITHAW once more, and it answers EINVAL.
                let _ = run.ledger.write_entry(index);
            }
        }
    }
    Ok(())
}

/// Whether the answer of a FITHAW that is called now is final, because no FIFREEZE can follow it.
///
/// As for the watchdog, this must be known *before* the FITHAW. A FIFREEZE that waits for a writer
/// lets FITHAW answer EINVAL and freezes later. One that waits for another program's freeze lets
/// FITHAW undo that freeze and freezes later, too.
fn is_final(run: &KeptRun, entry: &Entry) -> bool {
    !run.is_of_this_version() || entry.state() == FreezeState::Frozen || !run.run_is_alive()
}

/// The result of thawing a device's filesystem.
enum Answer {
    Thawed,
    NotFrozen,
    /// It is not mounted and its device is free, so it cannot be frozen.
    Gone,
    /// The run's freeze is over, for this reason. FITHAW was not called.
    IsOver(&'static str),
    Failed(String),
}

/// Calls FITHAW on a filesystem, through any mount that it has now, unless the run's freeze of it is
/// certainly over.
fn thaw_device(known: Known, mounts: &[PlannedFilesystem]) -> Answer {
    let mut failure = None;
    for planned in mounts {
        let directory = match directories::open(planned) {
            Ok(directory) => directory,
            Err(error) => {
                failure.get_or_insert(error.to_string());
                continue;
            }
        };
        if let Some(why) = known.why_over(planned, directory.as_fd()) {
            return Answer::IsOver(why);
        }
        return match Linux.thaw(directory.as_fd()) {
            Ok(()) => Answer::Thawed,
            Err(Errno::INVAL) => Answer::NotFrozen,
            Err(errno) => Answer::Failed(format!("FITHAW: {}", errno_text(errno))),
        };
    }
    match failure {
        Some(failure) => Answer::Failed(failure),
        None if block_device::use_of(known.device()) == Use::Free => Answer::Gone,
        None => Answer::Failed(format!(
            "it is not mounted any more: mount its device again, then thaw; if the device is gone \
             for good, remove the run's ledger in `{DIRECTORY}`"
        )),
    }
}

/// Records an answer in the ledger and in the result.
fn settle(run: &KeptRun, entry: &Entry, is_final: bool, answer: Answer, result: &mut ThawResult) {
    let mount_point = run.name_of(entry);
    let device = entry.device().to_string();
    let run_id = run.run_id();
    let error = match answer {
        Answer::Failed(error) => Some(error),
        Answer::IsOver(why) => {
            entry.find_thawed(clock::monotonic());
            entry.never_frozen();
            result.left_alone.push(ThawLeftAlone {
                why: format!(
                    "{why}; if it is frozen now, another program froze it, and \
                     `fsfreeze --unfreeze` thaws it"
                ),
                mount_point,
                run_id,
            });
            return;
        }
        Answer::Thawed | Answer::NotFrozen | Answer::Gone if !run.is_of_this_version() => {
            entry.thawed_for_another_version();
            None
        }
        Answer::Thawed | Answer::NotFrozen if !is_final => unfinished(entry, &answer),
        Answer::Thawed => {
            entry.thawed(Thawer::Operator, clock::monotonic());
            None
        }
        // Another program has thawed it. It is not frozen, which is what the caller wants.
        Answer::NotFrozen | Answer::Gone => {
            entry.find_thawed(clock::monotonic());
            entry.never_frozen();
            None
        }
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

/// Records an answer that may not be final. Returns what is left to do, if FIFREEZE has not returned
/// in the meantime.
fn unfinished(entry: &Entry, answer: &Answer) -> Option<String> {
    let was_thawed = matches!(answer, Answer::Thawed);
    match entry.state() {
        // FIFREEZE failed after all. So the FITHAW undid the freeze that it waited for.
        FreezeState::Refused if was_thawed => {
            entry.undo_another();
            None
        }
        state if !state.may_be_frozen() => None,
        _ if was_thawed => Some(
            "FITHAW succeeded, but FIFREEZE had not returned and may freeze it again: end the run's \
             process, then thaw again"
                .to_owned(),
        ),
        _ => Some("FIFREEZE has not returned: end the run's process, then thaw again".to_owned()),
    }
}

/// Returns every mount of `device`, including those that no plan would take. A filesystem may have
/// become read-only, or been covered by another mount, since it was frozen.
///
/// They are tried in this order. Those come last whose open may hang and so keep the others from
/// being tried.
fn mounts_of(device: DeviceNumber, namespaces: &[MountNamespace]) -> Vec<PlannedFilesystem> {
    let mut mounts = Vec::new();
    for namespace in namespaces {
        for (mount, may_hang) in namespace.mounts_of(device) {
            let planned = PlannedFilesystem {
                mount_point: mount.mount_point.clone(),
                open_path: open_path(&mount.mount_point, namespace.pid),
                also_mounted_at: Vec::new(),
                device,
                source: mount.source.clone(),
                filesystem_type: mount.filesystem_type.clone(),
                level: 0,
                is_explicit: false,
            };
            mounts.push((may_hang, planned));
        }
    }
    mounts.sort_by_key(|(may_hang, _)| *may_hang);
    mounts.into_iter().map(|(_, planned)| planned).collect()
}

fn frozen_mount_points(run: &KeptRun) -> String {
    let names: Vec<String> = run
        .ledger
        .entries
        .iter()
        .filter(|entry| entry.state().may_be_frozen())
        .map(|entry| run.name_of(entry))
        .collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

    use std::path::PathBuf;

    use vmsnapshot_core::device_number::DeviceNumber;
    use vmsnapshot_core::mountinfo;
    use vmsnapshot_sys::ledger_file::Holder;
    use vmsnapshot_sys::place;

    use super::*;
    use crate::recovery::ledger_of_a_run::{LedgerOfARun, BOTH};

    #[test]
    fn mount_behind_a_network_filesystem_is_the_last_that_is_tried() {
        let namespace = |pid, mountinfo: &[u8]| MountNamespace {
            pid,
            mounts: mountinfo::parse(mountinfo).mounts,
        };
        let ours = b"1 1 8:1 / / rw - ext4 a rw\n2 1 0:9 / /nfs rw - nfs4 s:/ rw\n\
            3 2 8:17 / /nfs/a rw - ext4 b rw\n4 1 8:17 / /b rw - ext4 b ro\n";
        let theirs = b"9 8 0:50 / / rw - overlay o rw\n10 9 8:17 / /db rw - ext4 b rw\n";
        let namespaces = [namespace(None, ours), namespace(Some(20), theirs)];
        let device = DeviceNumber {
            major: 8,
            minor: 17,
        };
        let paths: Vec<_> = mounts_of(device, &namespaces)
            .into_iter()
            .map(|planned| planned.open_path)
            .collect();
        let expected = ["/b", "/proc/20/root/db", "/nfs/a"];
        assert_eq!(paths, expected.map(PathBuf::from));
    }

    #[test]
    fn fithaw_of_an_announced_freeze_is_final_only_if_the_process_is_gone() {
        for answer in [Answer::Thawed, Answer::NotFrozen] {
            let run = LedgerOfARun::start(&[Holder::Run], place::here());
            assert!(run.ledger.entries[0].announce(clock::monotonic()));
            let seen = run.seen();
            let entry = &seen.ledger.entries[0];
            assert!(!is_final(&seen, entry));
            let mut result = ThawResult::default();
            settle(&seen, entry, false, answer, &mut result);
            assert_eq!((result.thawed.len(), result.failed.len()), (0, 1));
            assert_eq!(entry.state(), FreezeState::Announced);

            entry.refuse(clock::monotonic(), 16);
            assert_eq!(unfinished(entry, &Answer::NotFrozen), None);
            assert!(!entry.undid_another());
            assert_eq!(unfinished(entry, &Answer::Thawed), None);
            assert!(entry.undid_another());

            let gone = LedgerOfARun::start(&[], place::here());
            assert!(gone.ledger.entries[0].announce(clock::monotonic()));
            assert!(is_final(&gone.seen(), &gone.ledger.entries[0]));
        }
        let frozen = LedgerOfARun::start(&BOTH, place::here());
        frozen.freeze(None);
        assert!(is_final(&frozen.seen(), &frozen.ledger.entries[0]));
    }

    #[test]
    fn ledger_that_is_truncated_while_it_is_read_is_no_ledger() {
        let run = LedgerOfARun::start(&[], place::here());
        run.freeze(None);
        let seen = run.seen();
        rustix::fs::ftruncate(&run.memory, 4096).unwrap();
        assert!(seen.ledger.read_again(0).is_err());
        // What was read before is still known.
        assert!(seen.ledger.may_be_frozen());
        rustix::fs::ftruncate(&run.memory, 0).unwrap();
        assert!(seen.ledger.read_again(0).is_err());
    }
}
