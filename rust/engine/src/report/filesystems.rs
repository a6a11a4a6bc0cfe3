//! The outcome of each filesystem, from its entry in the ledger.

use vmsnapshot_core::deadlines::Monotonic;
use vmsnapshot_core::ledger::{Entry, FreezeState};
use vmsnapshot_core::plan::PlannedFilesystem;
use vmsnapshot_core::report::{
    milliseconds, utc_text, FilesystemOutcome, FilesystemResult, ThawedBy,
};
use vmsnapshot_core::text::path_text;
use vmsnapshot_sys::errno::number_text;
use vmsnapshot_sys::ledger_file::LedgerFile;
use vmsnapshot_sys::Errno;

use super::facts::Facts;
use crate::directories::LeftOut;

/// Returns the outcome of every planned filesystem, in freeze order. Those left out come last.
pub(super) fn filesystem_outcomes(facts: &Facts<'_>) -> Vec<FilesystemOutcome> {
    facts
        .filesystems
        .iter()
        .zip(&facts.ledger.entries)
        .map(|(planned, entry)| filesystem_outcome(planned, entry, facts.ledger))
        .chain(facts.left_out.iter().map(left_out_outcome))
        .collect()
}

fn left_out_outcome(left_out: &LeftOut) -> FilesystemOutcome {
    let LeftOut {
        planned,
        outcome,
        error,
    } = left_out;
    FilesystemOutcome {
        mount_point: path_text(&planned.mount_point),
        device: planned.device.to_string(),
        filesystem_type: planned.filesystem_type.clone(),
        level: planned.level,
        outcome: *outcome,
        frozen_at: None,
        freeze_ms: None,
        thawed_at: None,
        frozen_ms: None,
        thawed_by: None,
        error: Some(error.clone()),
    }
}

fn filesystem_outcome(
    planned: &PlannedFilesystem,
    entry: &Entry,
    ledger: &LedgerFile,
) -> FilesystemOutcome {
    let refused_with = |errno: Errno| entry.freeze_errno() == errno.raw_os_error().unsigned_abs();
    let outcome = match entry.state() {
        FreezeState::Planned | FreezeState::Revoked => FilesystemResult::NotFrozen,
        FreezeState::Announced => FilesystemResult::FreezeHung,
        FreezeState::Frozen => FilesystemResult::NotThawed,
        FreezeState::Refused if refused_with(Errno::BUSY) => FilesystemResult::FrozenByAnother,
        FreezeState::Refused if refused_with(Errno::OPNOTSUPP) => FilesystemResult::NotFreezable,
        // The filesystem itself refuses to write: ext4 after an error, with `errors=remount-ro`.
        FreezeState::Refused if refused_with(Errno::ROFS) => FilesystemResult::NotWritable,
        FreezeState::Refused => FilesystemResult::FreezeFailed,
        FreezeState::ThawedByRun => FilesystemResult::Thawed,
        FreezeState::ThawedByWatchdog => FilesystemResult::ThawedByWatchdog,
        FreezeState::ThawedByAnother | FreezeState::ThawedByOperator => {
            FilesystemResult::ThawedByAnother
        }
    };
    let thawed_by = match outcome {
        FilesystemResult::Thawed => Some(ThawedBy::Run),
        FilesystemResult::ThawedByWatchdog => Some(ThawedBy::Watchdog),
        FilesystemResult::ThawedByAnother => Some(ThawedBy::Another),
        FilesystemResult::FrozenByAnother
        | FilesystemResult::NotFreezable
        | FilesystemResult::FreezeFailed
        | FilesystemResult::NotOpened
        | FilesystemResult::MountedSince
        | FilesystemResult::FreezeWouldWait
        | FilesystemResult::NotWritable
        | FilesystemResult::Unmounted
        | FilesystemResult::NotFrozen
        | FilesystemResult::FreezeHung
        | FilesystemResult::NotThawed => None,
    };
    let was_frozen = thawed_by.is_some() || outcome == FilesystemResult::NotThawed;
    let announced = entry.announced_at();
    let returned = entry.freeze_returned_at().filter(|_| was_frozen);
    let thawed = entry.thawed_at().filter(|_| thawed_by.is_some());
    let text = |instant: Monotonic| utc_text(ledger.header.realtime_ns(instant));
    let length =
        |from: Option<Monotonic>, to: Option<Monotonic>| Some(milliseconds(to?.since(from?)));
    FilesystemOutcome {
        mount_point: path_text(&planned.mount_point),
        device: planned.device.to_string(),
        filesystem_type: planned.filesystem_type.clone(),
        level: planned.level,
        outcome,
        frozen_at: returned.map(text),
        freeze_ms: length(announced, entry.freeze_returned_at()),
        thawed_at: thawed.map(text),
        frozen_ms: length(announced, thawed),
        thawed_by,
        error: error_text(outcome, entry),
    }
}

fn error_text(outcome: FilesystemResult, entry: &Entry) -> Option<String> {
    if entry.cancelled_scrub() {
        return Some(
            "FIFREEZE waited for a scrub of btrfs; at the deadline, the watchdog cancelled the scrub \
             (`btrfs scrub resume` continues it)"
                .to_owned(),
        );
    }
    match outcome {
        FilesystemResult::Thawed | FilesystemResult::ThawedByWatchdog if entry.undid_another() => Some(
            "the watchdog's FITHAW undid another program's freeze: at the deadline, FIFREEZE still \
             waited for that freeze to end"
                .to_owned(),
        ),
        FilesystemResult::Thawed | FilesystemResult::ThawedByWatchdog => None,
        FilesystemResult::ThawedByAnother => {
            Some("FITHAW: another program had already thawed it".to_owned())
        }
        FilesystemResult::FrozenByAnother if entry.undid_another() => Some(
            "FIFREEZE: device or resource busy: another program had frozen it; this run's FITHAW \
             undid that freeze: at the deadline, FIFREEZE still waited for it to end"
                .to_owned(),
        ),
        FilesystemResult::FrozenByAnother => Some(
            "FIFREEZE: device or resource busy: another program has frozen or suspended it".to_owned(),
        ),
        FilesystemResult::NotFreezable
        | FilesystemResult::FreezeFailed
        | FilesystemResult::NotOpened
        | FilesystemResult::MountedSince
        | FilesystemResult::FreezeWouldWait
        | FilesystemResult::NotWritable
        | FilesystemResult::Unmounted => {
            Some(format!("FIFREEZE: {}", number_text(entry.freeze_errno())))
        }
        FilesystemResult::NotFrozen => Some("the run ended before its turn came".to_owned()),
        FilesystemResult::FreezeHung => {
            Some("FIFREEZE has not returned; when it does, a living watchdog thaws the filesystem".to_owned())
        }
        FilesystemResult::NotThawed if entry.thaw_errno() == 0 => Some("FITHAW has not returned".to_owned()),
        FilesystemResult::NotThawed => Some(format!("FITHAW: {}", number_text(entry.thaw_errno()))),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

    use rustix::fs::{memfd_create, MemfdFlags};
    use vmsnapshot_core::ledger::Thawer;
    use vmsnapshot_sys::clock;

    use super::*;

    #[test]
    fn undone_freeze_of_another_program_is_reported_whoever_thawed_in_the_end() {
        for (thawer, outcome) in [
            (Thawer::Run, FilesystemResult::Thawed),
            (Thawer::Watchdog, FilesystemResult::ThawedByWatchdog),
        ] {
            let memory = memfd_create("ledger", MemfdFlags::CLOEXEC).unwrap();
            let ledger = LedgerFile::create(memory, 1).unwrap();
            let entry = &ledger.entries[0];
            let now = clock::monotonic();
            assert!(entry.announce(now) && entry.frozen(now));
            entry.thawed(thawer, now);
            assert_eq!(error_text(outcome, entry), None);
            entry.undo_another();
            let text = error_text(outcome, entry).unwrap();
            assert!(text.contains("undid another program's freeze"), "{text}");
        }
    }
}
