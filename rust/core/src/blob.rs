//! Blobs: the SAS URI that names one, the metadata of a snapshot, and what the service's answer to
//! Snapshot Blob means.
//!
//! The query of a SAS URI is a password, and so may metadata be: no `Debug`, `Display` or error of
//! this file or those below it shows either. Everything here is a pure function of its arguments.

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

/// What becomes of a run of which a blob cannot be asked: its URI or SAS is no good, or its server
/// cannot be reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnUnusable {
    /// The first such blob ends the preparation.
    #[default]
    Refuse,
    /// The blob is sent nothing and reported as refused; the others are asked.
    Report,
}

impl OnUnusable {
    /// Keeps what went wrong with one blob as its result, or ends all with it.
    ///
    /// # Errors
    ///
    /// That of `result`, when it ends all.
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

/// The blobs that were given so far, none of them twice: same host, port and path, whatever the
/// scheme and the SAS.
///
/// The port is compared only as far as it was not left to the scheme, so that `http://h/b` and
/// `https://h/b` are one blob.
#[derive(Clone, Debug, Default)]
pub struct DistinctBlobs(HashSet<(String, Option<u16>, String)>);

impl DistinctBlobs {
    /// Adds a blob that was not given before.
    ///
    /// # Errors
    ///
    /// [`BlobError::DuplicateBlob`].
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
