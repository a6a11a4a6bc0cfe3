//! The blobs of a run, from their texts to their calls, with the unusable ones kept in their
//! places.
//!
//! Nothing here waits, and nothing here is called inside the window.

use time::OffsetDateTime;
use vmsnapshot_core::blob::{DistinctBlobs, Metadata, OnUnusable, SasUri};
use vmsnapshot_core::secret::SecretText;
use vmsnapshot_core::signatures::Signatures;
use vmsnapshot_core::uri::printable;

use crate::error::PrepareError;

/// A blob that no request is sent to.
#[derive(Debug)]
pub(crate) struct Unusable {
    /// Its URI without the query; of a malformed URI the start, which may be empty.
    pub(crate) uri: String,
    pub(crate) error: PrepareError,
}

/// The blobs in the order they were given. Each has its current stage (its metadata, then its
/// request, then its call), or the reason why no request is sent to it.
pub(crate) struct Blobs<Stage> {
    each: Vec<Result<(SasUri, Stage), Unusable>>,
    /// What must not be printed, though a server or a proxy repeats it.
    signatures: Signatures,
    on_unusable: OnUnusable,
}

impl Blobs<Metadata> {
    /// Reads the SAS URIs.
    ///
    /// If unusable blobs are reported, the service judges the times and permissions of a SAS. This
    /// machine's clock may be wrong, and then no blob would ever be usable.
    ///
    /// # Errors
    /// [`PrepareError::UnreadableBlob`], [`PrepareError::Blob`].
    pub(crate) fn read(
        given: &[(SecretText, Metadata)],
        on_unusable: OnUnusable,
        now: OffsetDateTime,
    ) -> Result<Self, PrepareError> {
        let mut seen = DistinctBlobs::default();
        let mut read = |position, text: &str| {
            let uri = SasUri::parse(text).map_err(|cause| PrepareError::UnreadableBlob {
                position,
                count: given.len(),
                cause,
            })?;
            match on_unusable {
                OnUnusable::Refuse => uri.check(now)?,
                OnUnusable::Report => {}
            }
            seen.add(&uri)?;
            Ok(uri)
        };
        let mut each = Vec::with_capacity(given.len());
        for (position, (text, metadata)) in (1..).zip(given) {
            let text = text.expose();
            each.push(match on_unusable.keep(read(position, text))? {
                Ok(uri) => Ok((uri, metadata.clone())),
                Err(error) => Err(Unusable {
                    uri: printable(text),
                    error,
                }),
            });
        }
        Ok(Self {
            each,
            signatures: Signatures::of(given.iter().map(|(text, _)| text.expose())),
            on_unusable,
        })
    }
}

impl<Stage> Blobs<Stage> {
    /// Takes every usable blob to its next stage, in order.
    ///
    /// # Errors
    /// The first error of `step`, unless unusable blobs are reported.
    pub(crate) fn then<Next>(
        self,
        mut step: impl FnMut(&SasUri, Stage) -> Result<Next, PrepareError>,
    ) -> Result<Blobs<Next>, PrepareError> {
        let mut each = Vec::with_capacity(self.each.len());
        for blob in self.each {
            each.push(match blob {
                Ok((uri, stage)) => match self.on_unusable.keep(step(&uri, stage))? {
                    Ok(next) => Ok((uri, next)),
                    Err(error) => Err(Unusable {
                        uri: uri.to_string(),
                        error,
                    }),
                },
                Err(unusable) => Err(unusable),
            });
        }
        Ok(Blobs {
            each,
            signatures: self.signatures,
            on_unusable: self.on_unusable,
        })
    }

    /// Returns the blobs if at least one is usable, or if no blob was given.
    ///
    /// # Errors
    /// The reason why the first blob is unusable.
    pub(crate) fn or_first_error(mut self) -> Result<Self, PrepareError> {
        if self.each.iter().all(Result::is_err) && !self.each.is_empty() {
            if let Err(first) = self.each.swap_remove(0) {
                return Err(first.error);
            }
        }
        Ok(self)
    }

    /// Returns what the run does if another blob turns out to be unusable.
    pub(crate) fn on_unusable(&self) -> OnUnusable {
        self.on_unusable
    }

    /// Returns the signatures of all blobs that were given.
    pub(crate) fn signatures(&self) -> &Signatures {
        &self.signatures
    }

    /// Returns them, to add other secrets of the run.
    pub(crate) fn signatures_mut(&mut self) -> &mut Signatures {
        &mut self.signatures
    }

    /// Returns all blobs, in the order they were given.
    pub(crate) fn each(&self) -> &[Result<(SasUri, Stage), Unusable>] {
        &self.each
    }

    /// Returns the stages of the usable blobs, in their order.
    pub(crate) fn usable_mut(&mut self) -> impl Iterator<Item = &mut Stage> {
        self.each.iter_mut().flatten().map(|(_, stage)| stage)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-11-22 12:00:00 UTC);
    const GOOD: &str = "https://host/c/good?sig=secret";

    fn read(texts: &[&str], on_unusable: OnUnusable) -> Result<Blobs<Metadata>, PrepareError> {
        let given: Vec<_> = texts
            .iter()
            .map(|text| (SecretText::new((*text).to_owned()), Metadata::default()))
            .collect();
        Blobs::read(&given, on_unusable, NOW)
    }

    /// The URI of every blob, with the error code if it is unusable.
    fn states<Stage>(blobs: &Blobs<Stage>) -> Vec<(String, Option<&'static str>)> {
        let state = |blob: &Result<(SasUri, Stage), Unusable>| match blob {
            Ok((uri, _)) => (uri.to_string(), None),
            Err(unusable) => (unusable.uri.clone(), Some(unusable.error.code().name())),
        };
        blobs.each().iter().map(state).collect()
    }

    #[test]
    fn read_fails_at_the_first_unusable_blob_when_unusable_blobs_are_refused() {
        for (bad, code) in [
            ("", "bad-uri"),
            ("https://host/c/b?sv=1", "unsigned-uri"),
            (GOOD, "duplicate-blob"),
            ("https://host/c/b?sig=secret&se=2020-01-01", "expired-sas"),
            (
                "https://host/c/b?sig=secret&st=2030-01-01",
                "sas-not-yet-valid",
            ),
            ("https://host/c/b?sig=secret&sp=r", "sas-permission"),
        ] {
            let error = read(&[GOOD, bad, "\0"], OnUnusable::Refuse).err().unwrap();
            assert_eq!(error.code().name(), code, "{bad}");
            assert!(!format!("{error} {error:?}").contains("secret"));
        }
        let error = read(&[GOOD, ""], OnUnusable::Refuse).err().unwrap();
        assert!(error.to_string().starts_with("blob 2 of 2: "), "{error}");
    }

    #[test]
    fn unusable_blobs_keep_their_places_and_errors_when_they_are_reported() {
        let texts = [
            "",
            "https://host/c/b?comp=snapshot&sig=secret",
            GOOD,
            "https://host/c/unsigned?sv=1",
            "https://HOST:443/c/good?sig=secret2",
        ];
        let blobs = read(&texts, OnUnusable::Report).unwrap();
        let expected = [
            ("", Some("bad-uri")),
            ("https://host/c/b", Some("bad-uri")),
            ("https://host/c/good", None),
            ("https://host/c/unsigned", Some("unsigned-uri")),
            ("https://HOST:443/c/good", Some("duplicate-blob")),
        ];
        assert_eq!(
            states(&blobs),
            expected.map(|(uri, code)| (uri.to_owned(), code))
        );
        for unusable in blobs.each().iter().filter_map(|blob| blob.as_ref().err()) {
            assert!(!format!("{unusable:?} {}", unusable.error).contains("secret"));
        }
    }

    #[test]
    fn sas_is_not_judged_by_the_clock_when_unusable_blobs_are_reported() {
        let texts = [
            "https://host/c/0?sig=secret&se=2020-01-01",
            "https://host/c/1?sig=secret&st=2030-01-01",
            "https://host/c/2?sig=secret&sp=r",
            "https://host/c/3?sig=secret&se=tomorrow",
        ];
        let mut blobs = read(&texts, OnUnusable::Report).unwrap();
        assert_eq!(blobs.usable_mut().count(), texts.len());
    }

    #[test]
    fn failed_step_makes_only_its_blob_unusable_or_fails_the_whole() {
        let texts = [GOOD, "", "https://host/c/other?sig=secret"];
        let fail_first = |uri: &SasUri, _| match uri.path() {
            "/c/good" => Err(PrepareError::Interrupted),
            _ => Ok(()),
        };
        let blobs = read(&texts, OnUnusable::Report).unwrap();
        let codes: Vec<_> = states(&blobs.then(fail_first).unwrap());
        assert_eq!(
            codes,
            [
                ("https://host/c/good".to_owned(), Some("interrupted")),
                (String::new(), Some("bad-uri")),
                ("https://host/c/other".to_owned(), None),
            ]
        );
        let blobs = read(&[GOOD], OnUnusable::Refuse).unwrap();
        assert_eq!(
            blobs.then(fail_first).err().unwrap().code().name(),
            "interrupted"
        );
    }

    #[test]
    fn run_without_a_usable_blob_fails_with_the_error_of_the_first() {
        let none_is_usable = read(&["", "https://host/c/b?sv=1"], OnUnusable::Report).unwrap();
        let error = none_is_usable.or_first_error().err().unwrap();
        assert_eq!(error.code().name(), "bad-uri");
        for texts in [&[][..], &["", GOOD]] {
            let blobs = read(texts, OnUnusable::Report).unwrap();
            assert_eq!(blobs.or_first_error().unwrap().each().len(), texts.len());
        }
    }
}
