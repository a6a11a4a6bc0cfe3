//! Why a run could not be prepared, or why `vmsnapshot thaw` could not do its work.

use std::io;

use vmsnapshot_core::blob::BlobError;
use vmsnapshot_core::error_kind::{ErrorCode, ErrorKind, ErrorSubject};
use vmsnapshot_core::host_call::HostCallError;
use vmsnapshot_core::ledger::FILESYSTEMS_MAX;
use vmsnapshot_core::plan::PlanError;
use vmsnapshot_sys::errno::{cause_text, open_files_hint};

use crate::connect::ConnectError;
use crate::directories::DirectoryError;
use crate::state::{StateError, DIRECTORY};

/// Why a run could not be prepared. Nothing was frozen.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// This process may not freeze.
    #[error("could not prepare a freeze: this process has no CAP_SYS_ADMIN")]
    NotPrivileged,
    /// The thaw timeout is not between 10 ms and an hour.
    #[error("thaw timeout {0} s is not between 0.01 s and 3600 s")]
    ThawTimeout(f64),
    /// The freeze timeout is not between 10 ms and an hour.
    #[error("freeze timeout {0} s is not between 0.01 s and 3600 s")]
    FreezeTimeout(f64),
    /// A time limit is not above zero, or is longer than an hour.
    #[error("{name} {seconds} s is not above 0 s and at most 3600 s")]
    TimeLimit {
        /// Which one.
        name: &'static str,
        /// What was given, in seconds.
        seconds: f64,
    },
    /// There are too many filesystems for one run.
    #[error("the plan has {0} filesystems, and a run takes {FILESYSTEMS_MAX} at most")]
    TooManyFilesystems(usize),
    /// A blob's URI cannot be read. The error names the blob by its position, because the URI may
    /// be too malformed to print.
    #[error("blob {position} of {count}: {cause}")]
    UnreadableBlob {
        /// Which one, counted from 1.
        position: usize,
        /// How many were given.
        count: usize,
        /// What is wrong with it.
        cause: BlobError,
    },
    /// A blob's SAS or the metadata cannot be used, or a blob was given twice.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// Metadata was given per blob, but not for every blob.
    #[error("{blobs} blobs were given, but metadata for {metadata} blobs")]
    BlobMetadataCount {
        /// How many blobs there are.
        blobs: usize,
        /// How many were given metadata.
        metadata: usize,
    },
    /// The host call cannot be made.
    #[error(transparent)]
    HostCall(#[from] HostCallError),
    /// A blob's server, or the host, cannot be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A planned filesystem could not be opened, or a different one is mounted there now.
    #[error(transparent)]
    Directory(DirectoryError),
    /// The state of runs cannot be used, or does not allow another run.
    #[error(transparent)]
    State(#[from] StateError),
    /// The watchdog could not be started or armed. A run never freezes without one.
    #[error("could not {step} the watchdog: {}", cause_text(cause))]
    Watchdog {
        /// `start` or `arm`.
        step: &'static str,
        /// What the system answered.
        cause: io::Error,
    },
    /// The system refused threads, descriptors or memory.
    #[error("could not {step}: {}", cause_text(cause))]
    Resources {
        /// What was tried.
        step: &'static str,
        /// What the system answered.
        cause: io::Error,
    },
    /// The command cannot be started.
    #[error("could not start `{program}`: {}", cause_text(cause))]
    Command {
        /// The program, without its arguments.
        program: String,
        /// What the system answered.
        cause: io::Error,
    },
    /// An application that the run must not do without did not hold still.
    #[error("{0}")]
    NotQuiesced(String),
    /// The caller ended the preparation.
    #[error("the preparation was interrupted")]
    Interrupted,
}

impl From<DirectoryError> for PrepareError {
    fn from(error: DirectoryError) -> Self {
        match error {
            DirectoryError::Tables(PlanError::Interrupted) => Self::Interrupted,
            error => Self::Directory(error),
        }
    }
}

impl PrepareError {
    /// Returns the stable name of the error, for programs.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            PrepareError::NotPrivileged => ErrorCode::NotPrivileged,
            PrepareError::ThawTimeout(_) => ErrorCode::BadThawTimeout,
            PrepareError::FreezeTimeout(_) => ErrorCode::BadFreezeTimeout,
            PrepareError::TimeLimit { .. } => ErrorCode::BadTimeLimit,
            PrepareError::TooManyFilesystems(_) => ErrorCode::TooManyFilesystems,
            PrepareError::UnreadableBlob { cause, .. } => cause.code(),
            PrepareError::Blob(error) => error.code(),
            PrepareError::BlobMetadataCount { .. } => ErrorCode::BadMetadata,
            PrepareError::HostCall(error) => error.code(),
            PrepareError::Connect(error) => error.code(),
            PrepareError::Directory(error) => error.code(),
            PrepareError::State(error) => error.code(),
            PrepareError::Watchdog { .. } => ErrorCode::NoWatchdog,
            PrepareError::Resources { .. } => ErrorCode::NoResources,
            PrepareError::Command { .. } => ErrorCode::BadCommand,
            PrepareError::NotQuiesced(_) => ErrorCode::NotQuiesced,
            PrepareError::Interrupted => ErrorCode::Interrupted,
        }
    }

    /// Returns what has to change for the next try to succeed.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            PrepareError::NotPrivileged
            | PrepareError::ThawTimeout(_)
            | PrepareError::FreezeTimeout(_)
            | PrepareError::TimeLimit { .. }
            | PrepareError::TooManyFilesystems(_)
            | PrepareError::UnreadableBlob { .. }
            | PrepareError::Blob(_)
            | PrepareError::BlobMetadataCount { .. }
            | PrepareError::Command { .. }
            | PrepareError::HostCall(_) => ErrorKind::Arguments,
            PrepareError::Connect(error) => error.kind(),
            PrepareError::Directory(error) => error.kind(),
            PrepareError::State(error) => error.kind(),
            PrepareError::Watchdog { .. }
            | PrepareError::Resources { .. }
            | PrepareError::NotQuiesced(_) => ErrorKind::System,
            PrepareError::Interrupted => ErrorKind::Interrupted,
        }
    }

    /// Returns what could not be prepared.
    #[must_use]
    pub fn subject(&self) -> ErrorSubject {
        self.code().subject()
    }

    /// Returns what the reader can do, if anything.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            PrepareError::NotPrivileged => Some("run as root".to_owned()),
            PrepareError::UnreadableBlob { cause: error, .. } | PrepareError::Blob(error) => {
                error.hint().map(str::to_owned)
            }
            PrepareError::Connect(error) => error.hint().map(str::to_owned),
            PrepareError::Directory(error) => error.hint(),
            PrepareError::State(error) => error.hint().map(str::to_owned),
            PrepareError::Watchdog { cause, .. }
                if cause.kind() == io::ErrorKind::PermissionDenied =>
            {
                Some("the kernel may forbid programs in memory: see `vm.memfd_noexec`".to_owned())
            }
            PrepareError::Watchdog { cause, .. } | PrepareError::Resources { cause, .. } => {
                open_files_hint(cause).map(str::to_owned)
            }
            PrepareError::TooManyFilesystems(_) => {
                Some("choose fewer with include or exclude patterns".to_owned())
            }
            PrepareError::ThawTimeout(_)
            | PrepareError::FreezeTimeout(_)
            | PrepareError::BlobMetadataCount { .. }
            | PrepareError::HostCall(_)
            | PrepareError::TimeLimit { .. }
            | PrepareError::Command { .. }
            | PrepareError::NotQuiesced(_)
            | PrepareError::Interrupted => None,
        }
    }
}

/// Why `vmsnapshot thaw` could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ThawError {
    /// The runs' ledgers could not be read.
    #[error("could not read `{DIRECTORY}`: {}", cause_text(.0))]
    State(io::Error),
    /// What is mounted could not be read.
    #[error(transparent)]
    Plan(PlanError),
}

impl ThawError {
    /// Returns what has to change for the next try to succeed.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            ThawError::State(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                ErrorKind::Arguments
            }
            ThawError::State(_) => ErrorKind::System,
            ThawError::Plan(error) => error.kind(),
        }
    }

    /// Returns the stable name of the error, for programs.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            ThawError::State(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                ErrorCode::NotPrivileged
            }
            ThawError::State(_) => ErrorCode::StateUnusable,
            ThawError::Plan(error) => error.code(),
        }
    }

    /// Returns what the reader can do, if anything.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            ThawError::State(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Some("run as root".to_owned())
            }
            ThawError::State(_) => None,
            ThawError::Plan(error) => error.hint(),
        }
    }
}
