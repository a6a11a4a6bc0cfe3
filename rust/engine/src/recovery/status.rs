//! What is frozen, by which run, and since when.

use std::io;
use std::path::PathBuf;

use vmsnapshot_core::ledger::{Entry, FreezeState, Header};
use vmsnapshot_core::status::{
    FrozenFilesystem, RcuStatus, RunFilesystem, RunState, RunStatus, Status, UnreadableLedger,
};
use vmsnapshot_core::text::path_text;
use vmsnapshot_sys::errno::cause_text;

use super::run_state::{instant_text, run_state};
use crate::rcu;
use crate::state::{kept_runs, KeptRun};

/// Returns what is frozen, by which run, and since when.
///
/// # Errors
/// The kernel's error: EACCES for every user but root.
pub fn status() -> io::Result<Status> {
    let kept = kept_runs()?;
    let mut status = Status {
        frozen: Vec::new(),
        runs: Vec::new(),
        unreadable: kept.unreadable.iter().map(unreadable).collect(),
        rcu_expedited: RcuStatus {
            value: rcu::current(),
            held_by: None,
        },
    };
    for run in &kept.runs {
        let run_status = run_status(run);
        status.frozen.extend(
            run_status
                .filesystems
                .iter()
                .zip(&run.ledger.entries)
                .filter(|(_, entry)| entry.state().may_be_frozen())
                .map(|(filesystem, _)| FrozenFilesystem {
                    mount_point: filesystem.mount_point.clone(),
                    device: filesystem.device.clone(),
                    run_id: run_status.run_id.clone(),
                    since: filesystem.frozen_at.clone(),
                    state: filesystem.state,
                }),
        );
        if run.owes_rcu() {
            status.rcu_expedited.held_by = Some(run_status.run_id.clone());
        }
        status.runs.push(run_status);
    }
    Ok(status)
}

fn run_status(run: &KeptRun) -> RunStatus {
    let header = &run.ledger.header;
    let own = run.is_of_this_version().then_some(header);
    let state = run_state(run);
    RunStatus {
        run_id: run.run_id(),
        state,
        started_at: own.and_then(|header| instant_text(run, header.started_at())),
        thaws_by: own.and_then(|header| instant_text(run, header.guard_by())),
        pid: own.map(|header| header.parent().pid),
        alive: own.map(|_| run.run_is_alive()),
        watchdog_pid: own.map(|header| header.watchdog().pid),
        watchdog_alive: own.map(|_| run.watchdog_is_alive()),
        fired: own.and_then(Header::fired),
        finished: state == RunState::Over,
        filesystems: run
            .ledger
            .entries
            .iter()
            .map(|entry| run_filesystem(run, entry))
            .collect(),
    }
}

fn run_filesystem(run: &KeptRun, entry: &Entry) -> RunFilesystem {
    let at = |instant| instant_text(run, instant).filter(|_| run.is_of_this_version());
    RunFilesystem {
        mount_point: run.name_of(entry),
        device: entry.device().to_string(),
        state: entry.state(),
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
        frozen_at: at(entry.announced_at()).filter(|_| was_frozen(entry.state())),
        thawed_at: at(entry.thawed_at()),
    }
}

fn unreadable((path, error): &(PathBuf, io::Error)) -> UnreadableLedger {
    UnreadableLedger {
        path: path_text(path),
        why: cause_text(error),
    }
}

/// Returns whether the run froze, or may have frozen, a filesystem in this state.
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
