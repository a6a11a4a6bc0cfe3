//! Text and bytes that must not be printed.

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_does_not_show_in_its_debug_form() {
        let text = SecretText::new("secret".to_owned());
        assert_eq!(format!("{text:?}"), "SecretText(...)");
        let bytes = SecretBytes(b"secret".to_vec());
        assert_eq!(format!("{bytes:?}"), "SecretBytes(6 bytes)");
    }
}
