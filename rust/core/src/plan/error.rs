//! Why no plan could be made.

use std::path::PathBuf;

use super::skip_reason::SkipReason;
use crate::error_kind::{ErrorCode, ErrorKind};
use crate::pattern::PatternError;
use crate::text::path_text;

/// Why no plan could be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A file below `/proc` or `/sys` could not be read.
    #[error("could not read `{}`: {cause}", path_text(path))]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system answered.
        cause: String,
    },
    /// A pattern cannot be parsed.
    #[error(transparent)]
    BadPattern(#[from] PatternError),
    /// An include pattern matches no mounted filesystem.
    #[error("pattern `{pattern}` matches no mounted filesystem")]
    PatternMatchesNothing {
        /// The pattern as it was given.
        pattern: String,
    },
    /// An include pattern is a path at which nothing is mounted.
    #[error("`{path}` is not a mount point")]
    NoSuchMount {
        /// The path as it was given.
        path: String,
        /// The mount point of the filesystem that the path lies on.
        lies_on: Option<String>,
    },
    /// An include pattern names exactly one mount, and that mount cannot be frozen.
    #[error("`{pattern}` ({filesystem_type}) cannot be frozen: {reason}")]
    NotFreezable {
        /// The pattern as it was given.
        pattern: String,
        /// The type of the filesystem it names.
        filesystem_type: String,
        /// Why it cannot be frozen.
        reason: SkipReason,
    },
    /// The caller does not want the plan any more.
    #[error("the plan was interrupted")]
    Interrupted,
}

impl PlanError {
    /// Returns the stable code of this error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Unreadable { .. } => ErrorCode::Unreadable,
            Self::BadPattern(_) => ErrorCode::BadPattern,
            Self::PatternMatchesNothing { .. } => ErrorCode::PatternMatchesNothing,
            Self::NoSuchMount { .. } => ErrorCode::NoSuchMount,
            Self::NotFreezable { .. } => ErrorCode::NotFreezable,
            Self::Interrupted => ErrorCode::Interrupted,
        }
    }

    /// Returns what has to change before another try can succeed.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Unreadable { .. } => ErrorKind::System,
            Self::BadPattern(_)
            | Self::PatternMatchesNothing { .. }
            | Self::NoSuchMount { .. }
            | Self::NotFreezable { .. } => ErrorKind::Arguments,
            Self::Interrupted => ErrorKind::Interrupted,
        }
    }

    /// Returns what the reader can do about the error, if anything.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoSuchMount { lies_on: Some(mount_point), .. } => {
                Some(format!("it lies on the filesystem mounted at `{mount_point}`"))
            }
            Self::BadPattern(_) => Some(
                "give a mount point (`/srv`, `/srv/*`), a device (`/dev/sda1`, `8:1`) or a type (`ext4`)".to_owned(),
            ),
            Self::PatternMatchesNothing { .. } => Some("`vmsnapshot plan` lists what is mounted".to_owned()),
            Self::NotFreezable { .. } => Some("leave it out, or use a glob, which skips what cannot be frozen".to_owned()),
            Self::Unreadable { .. } | Self::NoSuchMount { lies_on: None, .. } | Self::Interrupted => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_of_a_pattern_has_its_own_text_and_a_code() {
        let bad = PlanError::from(PatternError {
            pattern: "a=b".to_owned(),
            cause: "it is empty",
        });
        assert_eq!(bad.code(), ErrorCode::BadPattern);
        assert_eq!(
            bad.to_string(),
            "could not understand pattern `a=b`: it is empty"
        );
        assert!(bad.hint().is_some());
    }
}
