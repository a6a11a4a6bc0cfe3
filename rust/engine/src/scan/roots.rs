//! Where the kernel's tables are, and their directories.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::{fs, io};

use vmsnapshot_core::plan::PlanError;
use vmsnapshot_sys::errno::cause_text;

/// Where the kernel's tables are. Tests pass a tree of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots {
    /// `/proc`.
    pub proc: PathBuf,
    /// `/sys`.
    pub sys: PathBuf,
}

impl Default for Roots {
    fn default() -> Self {
        Self {
            proc: PathBuf::from("/proc"),
            sys: PathBuf::from("/sys"),
        }
    }
}

pub(super) fn names_in(directory: &Path) -> Result<Vec<OsString>, PlanError> {
    let names: io::Result<Vec<OsString>> = fs::read_dir(directory)
        .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect());
    names.map_err(|error| unreadable(directory, &error))
}

pub(super) fn unreadable(path: &Path, error: &io::Error) -> PlanError {
    PlanError::Unreadable {
        path: path.to_owned(),
        cause: cause_text(error),
    }
}
