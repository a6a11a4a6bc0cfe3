//! A planned filesystem that the run does not freeze, and what that means for the set.

use vmsnapshot_core::plan::{PlannedFilesystem, SkippedFilesystem};
use vmsnapshot_core::report::FilesystemResult;
use vmsnapshot_sys::errno::errno_text;
use vmsnapshot_sys::Errno;

use super::error::DirectoryError;
use crate::block_device::{self, Use};

/// A planned filesystem that the run does not freeze.
#[derive(Clone, Debug)]
pub(crate) struct LeftOut {
    pub(crate) planned: PlannedFilesystem,
    pub(crate) outcome: FilesystemResult,
    /// What the system answered.
    pub(crate) error: String,
}

impl LeftOut {
    /// Leaves out what may be written and cannot be reached.
    pub(crate) fn out_of_reach(skipped: &SkippedFilesystem) -> LeftOut {
        LeftOut {
            planned: PlannedFilesystem {
                mount_point: skipped.mount_point.clone(),
                open_path: skipped.mount_point.clone(),
                also_mounted_at: Vec::new(),
                device: skipped.device,
                source: skipped.source.clone(),
                filesystem_type: skipped.filesystem_type.clone(),
                level: 0,
                is_explicit: false,
            },
            outcome: FilesystemResult::NotOpened,
            error: skipped.reason.to_string(),
        }
    }

    /// Leaves `planned` out because of `error`.
    ///
    /// # Errors
    /// The same error, if it must end the preparation.
    pub(crate) fn because_of(
        error: DirectoryError,
        planned: &PlannedFilesystem,
    ) -> Result<LeftOut, DirectoryError> {
        let (outcome, text) = match &error {
            _ if planned.is_explicit => return Err(error),
            // These say nothing about the filesystem.
            DirectoryError::Tables(_)
            | DirectoryError::Open {
                errno: Errno::MFILE | Errno::NFILE | Errno::NOMEM,
                ..
            } => return Err(error),
            DirectoryError::Open { errno, .. } => (
                FilesystemResult::NotOpened,
                format!("open: {}", errno_text(*errno)),
            ),
            DirectoryError::Refused { why, .. } => {
                (FilesystemResult::NotOpened, format!("open: {why}"))
            }
            DirectoryError::NotWritable { why, .. } => {
                (FilesystemResult::NotWritable, (*why).to_owned())
            }
            DirectoryError::WouldWait { job, .. } => {
                (FilesystemResult::FreezeWouldWait, job.clone())
            }
            DirectoryError::Changed { .. } | DirectoryError::Vanished { .. } => {
                match use_of_device(planned) {
                    Some(Use::Free) => (FilesystemResult::Unmounted, error.to_string()),
                    // Our open of it may still wait. If it is mounted again, it must not be frozen.
                    Some(Use::Silent) => (
                        FilesystemResult::FreezeWouldWait,
                        format!("{error}, and its device does not answer"),
                    ),
                    Some(Use::MayBeUsed) | None => (FilesystemResult::NotOpened, error.to_string()),
                }
            }
        };
        Ok(LeftOut {
            planned: planned.clone(),
            outcome,
            error: text,
        })
    }
}

/// Returns what uses the block device of a filesystem that was not found where it was mounted. `None` if
/// it has none that is known.
///
/// If the device is free, the filesystem is not mounted any more, also not lazily and not in a namespace
/// that this process cannot see.
fn use_of_device(planned: &PlannedFilesystem) -> Option<Use> {
    let device = match planned.device.major {
        // The number is not that of a device (btrfs), but the source names one.
        0 => block_device::of_source(&planned.source)?,
        _ => planned.device,
    };
    Some(block_device::use_of(device))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn error_ends_the_preparation_only_if_the_filesystem_was_named_or_is_not_the_cause() {
        let mut data = PlannedFilesystem {
            mount_point: "/data".into(),
            open_path: "/data".into(),
            also_mounted_at: Vec::new(),
            device: "8:17".parse().unwrap(),
            source: String::new(),
            filesystem_type: "ext4".to_owned(),
            level: 0,
            is_explicit: false,
        };
        let failed = |errno| DirectoryError::Open {
            mount_point: "/data".into(),
            errno,
        };
        let left_out = LeftOut::because_of(failed(Errno::ACCESS), &data).unwrap();
        assert_eq!(left_out.outcome, FilesystemResult::NotOpened);
        assert_eq!(left_out.error, "open: permission denied");
        let sick = DirectoryError::not_writable(&data, "it was shut down");
        let left_out = LeftOut::because_of(sick.clone(), &data).unwrap();
        assert_eq!(left_out.outcome, FilesystemResult::NotWritable);
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOMEM] {
            let error = LeftOut::because_of(failed(errno), &data).unwrap_err();
            assert_eq!(error, failed(errno));
        }
        data.is_explicit = true;
        for error in [failed(Errno::ACCESS), sick] {
            assert_eq!(
                LeftOut::because_of(error.clone(), &data).unwrap_err(),
                error
            );
        }
    }
}
