//! Blobs: their SAS URIs, the metadata of their snapshots, and what the service's answer to
//! Snapshot Blob means.
//!
//! The query of a SAS URI is a password, and metadata may be secret too. No `Debug`, `Display` or
//! error of this module or its submodules shows either. Everything here is a pure function of its
//! arguments.

mod answer;
mod error;
mod metadata;
mod sas;

pub use answer::{
    is_success, judge_answer, leaves_open, may_retry_in_window, refusal_body, JudgedAnswer,
};
pub use error::BlobError;
pub use metadata::{Metadata, METADATA_LIMIT_BYTES};
pub use sas::{SasUri, START_SKEW};

use std::collections::HashSet;

/// What a run does about a blob that it cannot use, because its URI or SAS is bad or its server
/// cannot be reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnUnusable {
    /// The first such blob ends the preparation with an error.
    #[default]
    Refuse,
    /// The run sends nothing for this blob and reports it as refused. The other blobs get their
    /// requests.
    Report,
}

impl OnUnusable {
    /// Returns the error of one blob as that blob's result, or as the error of the whole
    /// preparation.
    ///
    /// # Errors
    ///
    /// The error of `result`, for [`OnUnusable::Refuse`].
    pub fn keep<Usable, Error>(
        self,
        result: Result<Usable, Error>,
    ) -> Result<Result<Usable, Error>, Error> {
        match (self, result) {
            (Self::Refuse, Err(error)) => Err(error),
            (Self::Refuse | Self::Report, result) => Ok(result),
        }
    }
}

/// The blobs that were given so far. No blob is in it twice.
///
/// Two URIs name the same blob if host, port and path are equal; scheme and SAS do not count. The
/// default port of the scheme counts as no port, so `http://h/b` and `https://h/b` are one blob.
#[derive(Clone, Debug, Default)]
pub struct DistinctBlobs(HashSet<(String, Option<u16>, String)>);

impl DistinctBlobs {
    /// Adds a blob.
    ///
    /// # Errors
    ///
    /// [`BlobError::DuplicateBlob`] if the blob was given before.
    pub fn add(&mut self, uri: &SasUri) -> Result<(), BlobError> {
        let http = uri.as_http();
        let own_port = (http.port() != http.scheme().default_port()).then_some(http.port());
        let name = (http.host().to_owned(), own_port, http.path().to_owned());
        if self.0.insert(name) {
            Ok(())
        } else {
            Err(BlobError::DuplicateBlob {
                blob: uri.to_string(),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::error::code;
    use super::*;

    #[test]
    fn blobs_given_twice_are_refused_whatever_their_sas() {
        let add_all = |texts: &[&str]| {
            let mut seen = DistinctBlobs::default();
            texts
                .iter()
                .try_for_each(|text| seen.add(&SasUri::parse(text).unwrap()))
        };
        for same in [
            "https://H/c/b?sig=secret2",
            "https://h:443/c/b?sig=secret",
            "http://h/c/b?sig=secret",
        ] {
            assert_eq!(
                code(add_all(&["https://h/c/b?sig=secret", same])),
                "duplicate-blob",
                "{same}"
            );
        }
        add_all(&[
            "https://h/c/b?sig=x",
            "https://h/c/B?sig=x",
            "https://h:444/c/b?sig=x",
            "https://g/c/b?sig=x",
        ])
        .unwrap();
    }
}
