//! Looks at the mounts again: the plan was made before the waits, and the world goes on.

use vmsnapshot_core::device_number::DeviceNumber;
use vmsnapshot_core::plan::{Plan, PlannedFilesystem, SkippedFilesystem, UnreadableMounts};
use vmsnapshot_core::report::FilesystemResult;

use crate::directories::{DirectoryError, LeftOut, Opened};
use crate::observer::{Observer, Silent};
use crate::scan;

/// Makes `plan` again, for what is mounted now.
///
/// *Blocking*: as [`scan::machine`].
///
/// # Errors
/// [`DirectoryError::Tables`].
fn look_again(plan: &Plan, observer: &mut dyn Observer) -> Result<Plan, DirectoryError> {
    Ok(scan::machine(observer)?.plan_again(plan)?)
}

/// Returns what to open for `plan`: what it would freeze by now, and what is gone since, so that its
/// fate is reported.
///
/// # Errors
/// [`DirectoryError::Tables`].
pub(crate) fn up_to_date(
    plan: &Plan,
    observer: &mut dyn Observer,
) -> Result<Vec<PlannedFilesystem>, DirectoryError> {
    let now = look_again(plan, observer)?.filesystems;
    let is_gone = |planned: &&PlannedFilesystem| find(&now, planned.device).is_none();
    let gone: Vec<_> = plan.filesystems.iter().filter(is_gone).cloned().collect();
    let mut filesystems = now;
    filesystems.extend(gone);
    // The sort is stable.
    filesystems.sort_by_key(|planned| planned.level);
    Ok(filesystems)
}

/// What a second look found.
pub(crate) struct Change {
    /// What the plan would freeze by now.
    now: Vec<PlannedFilesystem>,
    /// What of it is neither ready to be frozen nor left out for a reason that lasts.
    pub(crate) added: Vec<PlannedFilesystem>,
    /// What may be written and cannot be reached.
    pub(crate) out_of_reach: Vec<LeftOut>,
    /// What could not be read about the mounts.
    pub(crate) unreadable_mounts: Vec<UnreadableMounts>,
}

impl Change {
    /// Compares what is ready to be frozen with what `plan` would freeze by now.
    ///
    /// # Errors
    /// [`DirectoryError::Tables`].
    pub(crate) fn find(
        plan: &Plan,
        ready: &[PlannedFilesystem],
        left_out: &[LeftOut],
        observer: &mut dyn Observer,
    ) -> Result<Change, DirectoryError> {
        let again = look_again(plan, observer)?;
        let is_hidden = |skipped: &&SkippedFilesystem| {
            skipped.reason.is_out_of_reach() && find(ready, skipped.device).is_none()
        };
        let hidden = again.skipped.iter().filter(is_hidden);
        let out_of_reach = hidden.map(LeftOut::out_of_reach).collect();
        let now = again.filesystems;
        let is_new = |planned: &&PlannedFilesystem| {
            let is_left_out = left_out
                .iter()
                .any(|left_out| left_out.planned.device == planned.device && lasts(left_out));
            find(ready, planned.device).is_none() && !is_left_out
        };
        let added = now.iter().filter(is_new).cloned().collect();
        Ok(Change {
            now,
            added,
            out_of_reach,
            unreadable_mounts: again.unreadable_mounts,
        })
    }

    /// Returns the level that the filesystem has now, `planned.level` if it is not planned any more.
    pub(crate) fn level_of(&self, planned: &PlannedFilesystem) -> u32 {
        find(&self.now, planned.device).map_or(planned.level, |now| now.level)
    }
}

/// Returns whether the reason holds until the freeze. Another one ends if the filesystem is unmounted
/// and mounted again, and its number can then be another filesystem's.
fn lasts(left_out: &LeftOut) -> bool {
    left_out.outcome == FilesystemResult::FreezeWouldWait
}

/// Looks at the mounts after the thaw. Adds to `left_out` the filesystems that were mounted since the
/// last look and can be written, and to `unreadable` what could not be read now.
pub(crate) fn after_thaw(
    plan: &Plan,
    frozen: &[PlannedFilesystem],
    left_out: &mut Vec<LeftOut>,
    unreadable: &mut Vec<UnreadableMounts>,
) {
    let found = Change::find(plan, frozen, left_out, &mut Silent).and_then(|change| {
        let added = change.added.into_iter().map(|planned| PlannedFilesystem {
            // It is too late for an error.
            is_explicit: false,
            ..planned
        });
        let opened = Opened::open(&added.collect::<Vec<_>>())?;
        Ok((opened, change.out_of_reach, change.unreadable_mounts))
    });
    match found {
        Ok((opened, out_of_reach, unreadable_now)) => {
            let mounted = opened.filesystems.into_iter().map(|planned| LeftOut {
                planned,
                outcome: FilesystemResult::MountedSince,
                error: "it was mounted after the last look before the freeze".to_owned(),
            });
            for found in mounted.chain(opened.left_out).chain(out_of_reach) {
                update(left_out, found);
            }
            for mounts in unreadable_now {
                if !unreadable.contains(&mounts) {
                    unreadable.push(mounts);
                }
            }
        }
        Err(error) => unreadable.push(UnreadableMounts {
            path: "/proc/self/mountinfo".to_owned(),
            why: format!("after the thaw: {error}"),
        }),
    }
}

/// Puts `found` into `left_out`. It replaces what was left out with the same number because it needed no
/// freeze. An earlier reason that counts against the set stays.
pub(crate) fn update(left_out: &mut Vec<LeftOut>, found: LeftOut) {
    let same = |before: &LeftOut| before.planned.device == found.planned.device;
    match left_out.iter_mut().find(|before| same(before)) {
        Some(before) if before.outcome == FilesystemResult::NotOpened => {}
        Some(before) => *before = found,
        None => left_out.push(found),
    }
}

fn find(filesystems: &[PlannedFilesystem], device: DeviceNumber) -> Option<&PlannedFilesystem> {
    filesystems.iter().find(|planned| planned.device == device)
}
