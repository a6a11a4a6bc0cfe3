//! The signatures of SAS URIs, and their removal from text that others wrote.
//!
//! A signature is found in two ways: behind `sig=`, and, if it is known, anywhere. Both ways look at
//! the text with all its escapes undone.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::ops::Range;

use crate::decoded::{decoded, Unit};

/// So many letters and digits in a row identify a signature. A real one is 44 characters of base64,
/// so text that was cut in the middle of one shows less than a fifth of it.
const PIECE: usize = 8;
/// A process that serves many jobs keeps the secrets of the last ones.
const KNOWN_MAX: usize = 256;
/// How much of a signature is kept. It bounds the memory.
const LETTERS_MAX: usize = 1024;

/// The known signatures. `Debug` shows only their number.
///
/// Only letters and digits are compared, without regard to case. So a signature is also found if its
/// `+`, `/` and `=` are written in another way, or if blanks or line ends are in it. A signature of
/// fewer than eight letters and digits is removed only behind `sig=`, because it could be a word.
#[derive(Clone, Default)]
pub struct Signatures {
    known: VecDeque<Vec<u8>>,
    /// Every eight neighbours of each signature.
    pieces: HashSet<[u8; PIECE]>,
}

impl Signatures {
    /// Returns the signatures of all `uris`, however many there are.
    #[must_use]
    pub fn of<'a>(uris: impl IntoIterator<Item = &'a str>) -> Self {
        let mut signatures = Self::default();
        for uri in uris {
            signatures.learn_uri(uri);
        }
        signatures
    }

    /// Adds the signatures of a URI, which may be malformed. Of more than 256 the last ones are kept.
    pub fn add(&mut self, uri: &str) {
        self.learn_uri(uri);
        self.forget_first();
    }

    /// Adds another secret that a peer may repeat, such as a password. Of more than 256 the last ones
    /// are kept.
    pub fn add_secret(&mut self, secret: &str) {
        self.learn(&decoded(secret.as_bytes()));
        self.forget_first();
    }

    fn learn_uri(&mut self, uri: &str) {
        let units = decoded(uri.as_bytes());
        for value in values(&units) {
            self.learn(units.get(value).unwrap_or_default());
        }
    }

    fn learn(&mut self, secret: &[Unit]) {
        let mut secret: Vec<u8> = letters(secret).map(|unit| unit.byte).collect();
        secret.truncate(LETTERS_MAX);
        if secret.len() >= PIECE && !self.known.contains(&secret) {
            self.pieces.extend(pieces(&secret));
            self.known.push_back(secret);
        }
    }

    fn forget_first(&mut self) {
        if self.known.len() > KNOWN_MAX {
            while self.known.len() > KNOWN_MAX {
                self.known.pop_front();
            }
            self.pieces = self.known.iter().flat_map(|known| pieces(known)).collect();
        }
    }

    /// Replaces the value of every `sig=`, and every part of a known signature, with `...`.
    #[must_use]
    pub fn removed_from(&self, text: &str) -> String {
        // Only whole ASCII characters are taken out, so the rest is UTF-8 as before.
        String::from_utf8_lossy(&self.removed_from_bytes(text.as_bytes())).into_owned()
    }

    /// Like [`removed_from`](Self::removed_from), for text that may not be UTF-8.
    #[must_use]
    pub fn removed_from_bytes(&self, text: &[u8]) -> Vec<u8> {
        let units = decoded(text);
        let of_values = values(&units).into_iter().filter_map(|value| {
            let value = units.get(value)?;
            Some(value.first()?.start..value.last()?.end)
        });
        let mut places: Vec<Range<usize>> = of_values.chain(self.places(&units)).collect();
        places.sort_by_key(|place| place.start);
        let mut clean = Vec::with_capacity(text.len());
        let mut at = 0;
        for place in places {
            if place.start >= at {
                clean.extend_from_slice(text.get(at..place.start).unwrap_or_default());
                // Places that touch are one.
                if place.start > at || at == 0 {
                    clean.extend_from_slice(b"...");
                }
            }
            at = at.max(place.end);
        }
        clean.extend_from_slice(text.get(at..).unwrap_or_default());
        clean
    }

    /// Returns where parts of known signatures are.
    fn places(&self, units: &[Unit]) -> Vec<Range<usize>> {
        if self.pieces.is_empty() {
            return Vec::new();
        }
        let letters: Vec<Unit> = letters(units).collect();
        let found = letters.windows(PIECE).filter_map(|window| {
            let mut piece = [0; PIECE];
            for (byte, unit) in piece.iter_mut().zip(window) {
                *byte = unit.byte;
            }
            let place = window.first()?.start..window.last()?.end;
            self.pieces.contains(&piece).then_some(place)
        });
        found.collect()
    }
}

impl fmt::Debug for Signatures {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Signatures({})", self.known.len())
    }
}

/// Returns whether `text` has a `sig=`, in any encoding.
pub(crate) fn names_signature(text: &str) -> bool {
    let units = decoded(text.as_bytes());
    (0..units.len()).any(|at| end_of_mark(&units, at).is_some())
}

fn pieces(signature: &[u8]) -> impl Iterator<Item = [u8; PIECE]> + '_ {
    signature
        .windows(PIECE)
        .filter_map(|window| window.try_into().ok())
}

/// Returns the letters and digits, in lower case.
fn letters(units: &[Unit]) -> impl Iterator<Item = Unit> + '_ {
    units
        .iter()
        .filter(|unit| unit.byte.is_ascii_alphanumeric())
        .map(|unit| Unit {
            byte: unit.byte.to_ascii_lowercase(),
            ..*unit
        })
}

/// Returns where the values of `sig=` are. A value goes on where a query field cannot end.
fn values(units: &[Unit]) -> Vec<Range<usize>> {
    let mut values = Vec::new();
    let mut at = 0;
    while at < units.len() {
        let Some(mark_end) = end_of_mark(units, at) else {
            at += 1;
            continue;
        };
        let rest = units.get(mark_end..).unwrap_or_default();
        let quotes = rest
            .iter()
            .take_while(|unit| b"\"'\\".contains(&unit.byte))
            .count();
        let start = mark_end + quotes;
        let rest = units.get(start..).unwrap_or_default();
        let mut end = start + rest.iter().take_while(|unit| !ends_value(**unit)).count();
        // In JSON, the quotation mark that ends the value may have a backslash in front.
        if end < units.len() && units.get(end - 1).is_some_and(|unit| unit.byte == b'\\') {
            end -= 1;
        }
        if start < end {
            values.push(start..end);
        }
        at = end.max(mark_end);
    }
    values
}

/// Returns the end of the `sig=` that begins at `at`. White space in front of the `=` is ignored.
fn end_of_mark(units: &[Unit], at: usize) -> Option<usize> {
    let name = units.get(at..at + 3)?;
    let is_name = name
        .iter()
        .map(|unit| unit.byte.to_ascii_lowercase())
        .eq(*b"sig");
    let rest = units.get(at + 3..).filter(|_| is_name)?;
    let blanks = rest.iter().take_while(|unit| unit.byte <= b' ').count();
    let equals_sign = at + 3 + blanks;
    (units.get(equals_sign)?.byte == b'=').then_some(equals_sign + 1)
}

/// Whether a value ends before `unit`. Escaped characters other than `&` can be part of a value.
fn ends_value(unit: Unit) -> bool {
    unit.byte == b'&'
        || unit.is_plain() && (unit.byte.is_ascii_whitespace() || b"\"'`<>,;)".contains(&unit.byte))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use proptest::prelude::*;

    use super::*;

    const SIGNATURE: &str = "k3b8+Zt0/1xQv9LmN2pR7sWcY5dFgHjKaEoUiTyB4z8=";

    fn known() -> Signatures {
        let encoded = SIGNATURE.replace('+', "%2B").replace('/', "%2F");
        Signatures::of([format!("https://h/c/b?sv=1&sig={encoded}&se=2").as_str()])
    }

    fn assert_is_removed(text: &str) {
        let clean = known().removed_from(text);
        let shown: Vec<u8> = letters(&decoded(clean.as_bytes()))
            .map(|unit| unit.byte)
            .collect();
        let secret: Vec<u8> = letters(&decoded(SIGNATURE.as_bytes()))
            .map(|unit| unit.byte)
            .collect();
        for piece in pieces(&secret) {
            assert!(
                !shown.windows(PIECE).any(|window| window == piece),
                "{text} {clean}"
            );
        }
    }

    #[test]
    fn a_signature_is_replaced_up_to_the_end_of_its_field() {
        for (text, clean) in [
            ("x?SIG=secret&se=1", "x?SIG=...&se=1"),
            ("q=%26sig%3Dsecret%26se%3D2", "q=%26sig%3D...%26se%3D2"),
            ("sig%253Dsecret", "sig%253D..."),
            ("sig%2525253Dsecret", "sig%2525253D..."),
            ("a sig=secret, sig=secret", "a sig=..., sig=..."),
            (
                r#"{"u":"b?sig=se\/cr\u002bet\u0026x"}"#,
                r#"{"u":"b?sig=...\u0026x"}"#,
            ),
            (
                r#""{\"u\":\"b?sig=secret\"}""#,
                r#""{\"u\":\"b?sig=...\"}""#,
            ),
            ("sig=\"secret\" x", "sig=\"...\" x"),
            ("sig&#61;secret&amp;x", "sig&#61;...&amp;x"),
            ("its query has no `sig=`; x", "its query has no `sig=`; x"),
            ("sig=a\u{e4}sig=b c", "sig=... c"),
            ("nothing", "nothing"),
        ] {
            assert_eq!(Signatures::default().removed_from(text), clean);
        }
    }

    #[test]
    fn a_known_signature_is_removed_in_every_encoding() {
        let percent = SIGNATURE
            .replace('+', "%2B")
            .replace('/', "%2f")
            .replace('=', "%3D");
        for written in [
            SIGNATURE.to_owned(),
            percent.clone(),
            percent.replace('%', "%25"),
            percent.replace('%', "%2525"),
            SIGNATURE.replace('/', r"\/").replace('+', r"\u002b"),
            SIGNATURE.replace('+', "&#43;").replace('=', "&#x3D;"),
            SIGNATURE.replace('+', "&amp;#43;"),
            SIGNATURE.replace('+', " "),
            SIGNATURE
                .replace('+', "-")
                .replace('/', "_")
                .replace('=', ""),
            SIGNATURE.to_ascii_uppercase(),
            SIGNATURE
                .bytes()
                .map(|byte| format!("%{byte:02x}"))
                .collect(),
            SIGNATURE
                .chars()
                .map(|char| format!("{char}\r\n"))
                .collect(),
            SIGNATURE.get(..20).unwrap_or_default().to_owned(),
            SIGNATURE.get(30..).unwrap_or_default().to_owned(),
        ] {
            assert_is_removed(&format!("<Message>Signature {written} did not match"));
            assert_is_removed(&format!("Signature \u{e4}{written}"));
        }
    }

    #[test]
    fn a_short_signature_does_not_remove_words() {
        let short = Signatures::of(["http://h/c/b?sig=secret"]);
        assert_eq!(short.removed_from("a secret"), "a secret");
        assert_eq!(short.removed_from("a sig=secret"), "a sig=...");
        assert_eq!(
            known().removed_from("the server did not match"),
            "the server did not match"
        );
    }

    #[test]
    fn the_signatures_of_all_blobs_of_a_run_are_known() {
        let uris: Vec<_> = (0..=KNOWN_MAX)
            .map(|number| format!("http://h/b?sig=signature{number:08}"))
            .collect();
        let signatures = Signatures::of(uris.iter().map(String::as_str));
        assert_eq!(signatures.removed_from("signature00000000"), "...");
        assert_eq!(signatures.removed_from("signature00000256"), "...");
    }

    #[test]
    fn another_secret_is_removed_like_a_signature() {
        let mut signatures = Signatures::default();
        signatures.add_secret("SeCrEt%20Pw0rd99");
        assert_eq!(signatures.removed_from("No SeCrEt Pw0rd99"), "No ...");
    }

    #[test]
    fn the_signatures_that_were_added_last_are_kept() {
        let mut signatures = known();
        for number in 0..KNOWN_MAX {
            signatures.add(&format!("http://h/b?sig=signature{number:08}"));
        }
        assert_eq!(format!("{signatures:?}"), "Signatures(256)");
        assert_eq!(signatures.removed_from(SIGNATURE), SIGNATURE);
        assert_eq!(signatures.removed_from("signature00000255"), "...");
    }

    #[test]
    fn long_text_takes_time_in_proportion_to_its_length() {
        let signatures = known();
        let started = Instant::now();
        for part in ["sig=", "%25", "sig ", "&#", "&;", r"\u00", "//", "k3b8Zt01"] {
            let text = part.repeat(500_000 / part.len());
            let _ = signatures.removed_from(&text);
            let _ = names_signature(&text);
        }
        assert!(started.elapsed() < Duration::from_secs(10));
    }

    proptest! {
        #[test]
        fn a_known_signature_is_in_no_text_however_each_character_is_written(
            forms in proptest::collection::vec(0..9_usize, SIGNATURE.len()),
            before in "[^a-zA-Z0-9%&\\\\]{0,5}",
            after in "\\PC{0,20}",
        ) {
            let written: String = SIGNATURE.bytes().zip(forms).map(|(byte, form)| match form {
                0 => format!("%{byte:02X}"),
                1 => format!("%25{byte:02x}"),
                2 => format!("\\u{byte:04x}"),
                3 => format!("&#{byte};"),
                4 => format!("&amp;#x{byte:x};"),
                5 => format!("%25%32%35{byte:02x}"),
                _ => char::from(byte).to_string(),
            }).collect();
            assert_is_removed(&format!("{before}{written}{after}"));
        }

        #[test]
        fn any_text_can_be_cleaned(text in "\\PC*", bytes: Vec<u8>) {
            let replacement = char::REPLACEMENT_CHARACTER;
            let clean = known().removed_from(&text);
            prop_assert!(!clean.contains(replacement) || text.contains(replacement));
            let _ = known().removed_from_bytes(&bytes);
        }

        #[test]
        fn text_without_a_signature_stays_as_it_is(text in "[^=\u{130}]{0,60}") {
            prop_assume!(!names_signature(&text));
            prop_assert_eq!(known().removed_from(&text), text);
        }
    }
}
