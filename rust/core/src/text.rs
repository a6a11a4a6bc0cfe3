//! Text for names that the kernel treats as bytes.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Returns `path` as text without losing a byte: a byte that is not UTF-8 becomes `\xNN`.
#[must_use]
pub fn path_text(path: &Path) -> String {
    bytes_text(path.as_os_str().as_bytes())
}

/// Returns `bytes` as text without losing a byte: a byte that is not UTF-8 becomes `\xNN`.
#[must_use]
pub fn bytes_text(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            // Writing into a String cannot fail.
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_is_not_utf8_keeps_every_byte() {
        assert_eq!(
            bytes_text(b"/srv/\xff\xe9t\xc3\xa9"),
            "/srv/\\xff\\xe9t\u{e9}"
        );
    }
}
