//! The metadata of a snapshot. It may hold secrets: no `Debug` or error in this file shows a value.

use std::collections::HashSet;
use std::fmt;

use super::error::BlobError;

/// How long all names and values of a blob's metadata may be together (Set Blob Metadata, "8 KiB").
pub const METADATA_LIMIT_BYTES: usize = 8 * 1024;

/// Checked metadata of a snapshot. `Debug` shows only the number of pairs.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Metadata(Vec<(String, String)>);

impl Metadata {
    /// Checks pairs of name and value.
    ///
    /// Names are ASCII C# identifiers and unique regardless of case, as the service requires.
    /// Values are printable ASCII without a space at either end, because a header may alter
    /// anything else.
    ///
    /// # Errors
    ///
    /// [`BlobError::BadMetadata`].
    pub fn parse<Name: Into<String>, Value: Into<String>>(
        pairs: impl IntoIterator<Item = (Name, Value)>,
    ) -> Result<Self, BlobError> {
        let bad = |cause: String| Err(BlobError::BadMetadata { cause });
        let mut checked: Vec<(String, String)> = Vec::new();
        let mut names = HashSet::new();
        let mut size_bytes = 0;
        for (index, (name, value)) in pairs.into_iter().enumerate() {
            let (name, value) = (name.into(), value.into());
            let starts_well =
                name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
            if !starts_well
                || !name
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            {
                // The error does not repeat the name: name and value may have been swapped.
                return bad(format!(
                    "the name of pair {} is not an identifier",
                    index + 1
                ));
            }
            if !value.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
                return bad(format!("the value of `{name}` is not printable ASCII"));
            }
            if value.starts_with(' ') || value.ends_with(' ') {
                return bad(format!("the value of `{name}` begins or ends with a space"));
            }
            size_bytes += name.len() + value.len();
            if size_bytes > METADATA_LIMIT_BYTES {
                return bad("names and values are longer than 8 KiB together".to_owned());
            }
            if !names.insert(name.to_ascii_lowercase()) {
                return bad(format!(
                    "the name `{name}` is given twice (case is ignored)"
                ));
            }
            checked.push((name, value));
        }
        Ok(Self(checked))
    }

    /// Returns the pairs in the order they were given.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Returns whether there are no pairs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Metadata {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Metadata({} pairs)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;

    use super::*;
    use crate::blob::error::code;

    #[test]
    fn metadata_needs_identifiers_as_names_and_printable_values() {
        let metadata = Metadata::parse([("RunId", "a b"), ("_x9", "")]).unwrap();
        assert_eq!(
            metadata.pairs().collect::<Vec<_>>(),
            [("RunId", "a b"), ("_x9", "")]
        );
        assert_eq!(format!("{metadata:?}"), "Metadata(2 pairs)");
        for (name, value) in [
            ("", "secret"),
            ("a-b", "secret"),
            ("9a", "secret"),
            ("\u{e4}", "secret"),
            ("a:b", "secret"),
            ("a\r\nb", "secret"),
            ("a", " secret"),
            ("a", "secret "),
            ("a", "secret\r\nx: y"),
            ("a", "secret\u{e4}"),
            ("a", "secret\t"),
        ] {
            assert_eq!(
                code(Metadata::parse([(name, value)])),
                "bad-metadata",
                "{name:?}"
            );
        }
        assert_eq!(
            code(Metadata::parse([("Name", "secret"), ("name", "secret")])),
            "bad-metadata"
        );
    }

    #[test]
    fn metadata_is_at_most_8_kib() {
        Metadata::parse([("a", "x".repeat(METADATA_LIMIT_BYTES - 1))]).unwrap();
        assert_eq!(
            code(Metadata::parse([("a", "x".repeat(METADATA_LIMIT_BYTES))])),
            "bad-metadata"
        );
    }

    proptest! {
        #[test]
        fn parsing_never_panics_on_any_text(text in "\\PC*") {
            let _ = Metadata::parse([(text.clone(), text)]);
        }
    }
}
