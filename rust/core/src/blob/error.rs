//! Why a blob, its SAS or the metadata of its snapshot cannot be used.

use crate::error_kind::ErrorCode;

/// Why a blob, its SAS or the metadata cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlobError {
    /// The text is not an absolute HTTP or HTTPS URI of a blob.
    #[error("could not read a blob URI: {cause}")]
    BadUri {
        /// What is wrong with it. It repeats no part of the text, because any part may be a secret.
        cause: &'static str,
    },
    /// The URI has no signature.
    #[error("blob `{blob}` has no signature: its query has no `sig=`")]
    UnsignedUri {
        /// The start of the URI, without its query.
        blob: String,
    },
    /// A time in the SAS cannot be parsed.
    #[error("the SAS of blob `{blob}` has a `{field}=` that is not a date and time in UTC")]
    BadSas {
        /// The URI without its query.
        blob: String,
        /// The field: `se` or `st`.
        field: &'static str,
    },
    /// The SAS has expired.
    #[error("the SAS of blob `{blob}` expired at {at}")]
    ExpiredSas {
        /// The URI without its query.
        blob: String,
        /// When it expired, UTC.
        at: String,
    },
    /// The SAS is not valid yet.
    #[error("the SAS of blob `{blob}` is not valid before {at}")]
    SasNotYetValid {
        /// The URI without its query.
        blob: String,
        /// When it becomes valid, UTC.
        at: String,
    },
    /// The SAS does not permit a snapshot.
    #[error("the SAS of blob `{blob}` permits neither write nor create")]
    SasPermission {
        /// The URI without its query.
        blob: String,
    },
    /// The same blob was given twice.
    #[error("blob `{blob}` was given twice")]
    DuplicateBlob {
        /// The URI without its query.
        blob: String,
    },
    /// The metadata cannot be sent.
    #[error("could not use the metadata: {cause}")]
    BadMetadata {
        /// What is wrong with it, without any value.
        cause: String,
    },
}

impl BlobError {
    /// Returns the stable code of this error.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::BadUri { .. } => ErrorCode::BadUri,
            Self::UnsignedUri { .. } => ErrorCode::UnsignedUri,
            Self::BadSas { .. } => ErrorCode::BadSas,
            Self::ExpiredSas { .. } => ErrorCode::ExpiredSas,
            Self::SasNotYetValid { .. } => ErrorCode::SasNotYetValid,
            Self::SasPermission { .. } => ErrorCode::SasPermission,
            Self::DuplicateBlob { .. } => ErrorCode::DuplicateBlob,
            Self::BadMetadata { .. } => ErrorCode::BadMetadata,
        }
    }

    /// Returns what the reader can do about the error, if anything.
    #[must_use]
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::BadUri { .. } => Some("give https://ACCOUNT.HOST/CONTAINER/BLOB?SAS"),
            Self::UnsignedUri { .. } => {
                Some("give the whole SAS URI; in a shell, put it between single quotes")
            }
            Self::BadSas { .. } | Self::ExpiredSas { .. } => Some("make a new SAS"),
            Self::SasNotYetValid { .. } => {
                Some("check this machine's clock, or make a SAS without a start time")
            }
            Self::SasPermission { .. } => {
                Some("make a SAS with the permission write (w) or create (c)")
            }
            Self::DuplicateBlob { .. } => Some("give each blob once"),
            Self::BadMetadata { .. } => Some(
                "names are ASCII letters, digits and underscores; values are printable ASCII; the limit is 8 KiB in all",
            ),
        }
    }
}

/// Returns the code of the error of `result`. No printed form of the error may contain `secret`.
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
pub(super) fn code<T>(result: Result<T, BlobError>) -> &'static str {
    let error = result.map(|_| ()).unwrap_err();
    for text in [error.to_string(), format!("{error:?}")] {
        assert!(!text.contains("secret"), "{text}");
    }
    error.code().name()
}
