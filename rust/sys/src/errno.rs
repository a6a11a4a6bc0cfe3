//! The words for an error number, as messages and reports use them.

use std::io;

use rustix::io::Errno;

/// Returns the system's words for `error`, without the number that `std` adds.
#[must_use]
pub fn cause_text(error: &io::Error) -> String {
    let text = error.to_string();
    let words = text.split(" (os error").next().unwrap_or(&text);
    let mut letters = words.chars();
    match (letters.next(), letters.clone().next()) {
        // "I/O error" keeps its capital.
        (Some(first), Some(second)) if second.is_lowercase() => {
            first.to_lowercase().chain(letters).collect()
        }
        _ => words.to_owned(),
    }
}

/// Returns the system's words for `errno`: `device or resource busy`.
#[must_use]
pub fn errno_text(errno: Errno) -> String {
    cause_text(&io::Error::from(errno))
}

/// Returns the system's words for an error number that the ledger holds.
#[must_use]
pub fn number_text(number: u32) -> String {
    cause_text(&io::Error::from_raw_os_error(number.cast_signed()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_have_no_number_and_begin_in_lower_case() {
        assert_eq!(errno_text(Errno::BUSY), "device or resource busy");
        assert_eq!(errno_text(Errno::IO), "input/output error");
        assert_eq!(number_text(16), "device or resource busy");
        assert_eq!(cause_text(&io::Error::other("I/O error")), "I/O error");
    }
}
