//! Why a directory cannot be opened, or its filesystem not frozen.

use std::path::PathBuf;

use vmsnapshot_core::device_number::DeviceNumber;
use vmsnapshot_core::error_kind::{ErrorCode, ErrorKind};
use vmsnapshot_core::plan::{PlanError, PlannedFilesystem};
use vmsnapshot_core::text::path_text;
use vmsnapshot_sys::errno::errno_text;
use vmsnapshot_sys::Errno;

use crate::walk::Refusal;

/// Why a directory cannot be opened, or is not one of the planned filesystem.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DirectoryError {
    /// It could not be opened.
    #[error("could not open `{}`: {}", path_text(mount_point), errno_text(*errno))]
    Open {
        /// The mount point.
        mount_point: PathBuf,
        /// What the system answered.
        errno: Errno,
    },
    /// It must not be opened, or cannot be reached.
    #[error("could not open `{}`: {why}", path_text(mount_point))]
    Refused {
        /// The mount point.
        mount_point: PathBuf,
        /// Why not.
        why: String,
    },
    /// Another filesystem is mounted there by now.
    #[error(
        "a different filesystem is now mounted at `{}`: {found} instead of {planned}",
        path_text(mount_point)
    )]
    Changed {
        /// The mount point.
        mount_point: PathBuf,
        /// The device number when the plan was made.
        planned: DeviceNumber,
        /// The device number now.
        found: DeviceNumber,
    },
    /// Nothing is mounted there any more.
    #[error("nothing is mounted at `{}` any more", path_text(mount_point))]
    Vanished {
        /// The mount point.
        mount_point: PathBuf,
    },
    /// Nothing can write to it any more, because of an error that it met.
    #[error("`{}` can no longer be written: {why}", path_text(mount_point))]
    NotWritable {
        /// The mount point.
        mount_point: PathBuf,
        /// How that is known.
        why: &'static str,
    },
    /// A FIFREEZE of it would wait for something that can take hours.
    #[error("a freeze of `{}` would wait: {job}", path_text(mount_point))]
    WouldWait {
        /// The mount point.
        mount_point: PathBuf,
        /// What it would wait for.
        job: String,
    },
    /// The kernel's tables could not be read.
    #[error(transparent)]
    Tables(#[from] PlanError),
}

impl DirectoryError {
    /// Returns the error for a filesystem that the walk refused.
    pub(super) fn refused(planned: &PlannedFilesystem, refusal: Refusal) -> Self {
        let mount_point = planned.mount_point.clone();
        match refusal {
            Refusal::Errno(errno) => Self::Open { mount_point, errno },
            Refusal::OnTheWay | Refusal::Special => Self::Refused {
                mount_point,
                why: refusal.to_string(),
            },
        }
    }

    /// Returns the error for a filesystem that nothing can write to any more.
    pub(super) fn not_writable(planned: &PlannedFilesystem, why: &'static str) -> Self {
        Self::NotWritable {
            mount_point: planned.mount_point.clone(),
            why,
        }
    }

    /// Returns the stable name of the error, for programs.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Open { .. } | Self::Refused { .. } => ErrorCode::OpenFailed,
            Self::Changed { .. } => ErrorCode::MountChanged,
            Self::Vanished { .. } => ErrorCode::MountVanished,
            Self::NotWritable { .. } => ErrorCode::NotWritable,
            Self::WouldWait { .. } => ErrorCode::FreezeWouldWait,
            Self::Tables(error) => error.code(),
        }
    }

    /// Returns what has to change for the next try to succeed.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Open { .. }
            | Self::Refused { .. }
            | Self::Changed { .. }
            | Self::Vanished { .. }
            | Self::NotWritable { .. }
            | Self::WouldWait { .. } => ErrorKind::System,
            Self::Tables(error) => error.kind(),
        }
    }

    /// Returns what the reader can do about it, if anything.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Open {
                errno: Errno::MFILE,
                ..
            } => Some("raise the limit on open files (`ulimit -n`)".to_owned()),
            Self::Open { .. } | Self::Refused { .. } => None,
            Self::NotWritable { .. } => Some(
                "leave it out, or use a glob, which leaves out what cannot be written".to_owned(),
            ),
            Self::WouldWait { .. } => Some("wait until it has ended, or cancel it".to_owned()),
            Self::Changed { .. } | Self::Vanished { .. } => Some("make a new plan".to_owned()),
            Self::Tables(error) => error.hint(),
        }
    }
}
