//! Text and bytes that must not be printed, and the removal of signatures from text that is.

use std::fmt;

/// Text that must not be printed: it has no `Display`, and its `Debug` does not show the text.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretText(String);

impl SecretText {
    /// Wraps `text`.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// Returns the secret. Only the code that sends it may call this.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("SecretText(...)")
    }
}

/// Bytes that must not be printed: `Debug` shows only their number.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct SecretBytes(pub Vec<u8>);

impl fmt::Debug for SecretBytes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "SecretBytes({} bytes)", self.0.len())
    }
}

/// Replaces the value of every `sig=`, plain or percent-encoded, with `...`.
///
/// The text may come from a service that repeats our URI.
#[must_use]
pub fn without_signatures(text: &str) -> String {
    let lower = text.to_ascii_lowercase();
    let mut clean = String::with_capacity(text.len());
    let mut at = 0;
    while let Some((start, mark)) = next_signature(&lower, at) {
        let secret_start = start + mark.len();
        // The value ends where a query field or a quotation ends; `%26` is an encoded `&`.
        let secret = lower.get(secret_start..).unwrap_or_default();
        let ends = secret.find(|char: char| char.is_whitespace() || "&\"'<>,;)".contains(char));
        let length = [ends, secret.find("%26")]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(secret.len());
        clean.push_str(text.get(at..secret_start).unwrap_or_default());
        clean.push_str("...");
        at = secret_start + length;
    }
    clean.push_str(text.get(at..).unwrap_or_default());
    clean
}

fn next_signature(lower: &str, at: usize) -> Option<(usize, &'static str)> {
    let rest = lower.get(at..)?;
    ["sig=", "sig%3d", "sig%253d"]
        .into_iter()
        .filter_map(|mark| rest.find(mark).map(|start| (at + start, mark)))
        .min()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_secret_does_not_show_in_its_debug_form() {
        let text = SecretText::new("secret".to_owned());
        assert_eq!(format!("{text:?}"), "SecretText(...)");
        let bytes = SecretBytes(b"secret".to_vec());
        assert_eq!(format!("{bytes:?}"), "SecretBytes(6 bytes)");
    }

    #[test]
    fn a_signature_is_replaced_up_to_the_end_of_its_field() {
        for (text, clean) in [
            ("x?SIG=secret&se=1", "x?SIG=...&se=1"),
            ("q=%26sig%3Dsecret%26se%3D2", "q=%26sig%3D...%26se%3D2"),
            ("sig%253Dsecret", "sig%253D..."),
            ("a sig=secret, sig=secret", "a sig=..., sig=..."),
            ("nothing", "nothing"),
        ] {
            assert_eq!(without_signatures(text), clean);
        }
    }

    proptest! {
        #[test]
        fn any_text_can_be_cleaned(text in "\\PC*") {
            let _ = without_signatures(&text);
        }
    }
}
