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

/// Returns what the reader can do about `error` if a limit on open files was reached.
#[must_use]
pub fn open_files_hint(error: &io::Error) -> Option<&'static str> {
    match Errno::from_io_error(error) {
        Some(Errno::MFILE) => Some(
            "allow this process more open files: `ulimit -n`, or `LimitNOFILE=` of its service",
        ),
        Some(Errno::NFILE) => Some("allow the machine more open files: `sysctl fs.file-max`"),
        _ => None,
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
    fn only_a_limit_on_open_files_has_a_hint() {
        for (errno, has_hint) in [
            (Errno::MFILE, true),
            (Errno::NFILE, true),
            (Errno::NOMEM, false),
        ] {
            assert_eq!(open_files_hint(&io::Error::from(errno)).is_some(), has_hint);
        }
        assert_eq!(open_files_hint(&io::Error::other("x")), None);
    }

    #[test]
    fn words_have_no_number_and_begin_in_lower_case() {
        assert_eq!(errno_text(Errno::BUSY), "device or resource busy");
        assert_eq!(errno_text(Errno::IO), "input/output error");
        assert_eq!(number_text(16), "device or resource busy");
        assert_eq!(cause_text(&io::Error::other("I/O error")), "I/O error");
    }
}
