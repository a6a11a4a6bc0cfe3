//! Text with every escape of URIs, JSON and XML undone, and where each byte was in the text.
//!
//! Servers repeat parts of our URIs in several encodings, and in several layers of them. Who looks for
//! a secret has to look for it in the decoded text, and remove it from the original.

/// The longest character reference that is decoded, such as `&#x0000002B;`.
const REFERENCE_LIMIT_BYTES: usize = 12;

/// One decoded byte, and which bytes of the text stand for it.
#[derive(Clone, Copy)]
pub(crate) struct Unit {
    pub(crate) byte: u8,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

impl Unit {
    /// Whether the text has the byte itself and not an escape.
    pub(crate) fn is_plain(self) -> bool {
        self.end - self.start == 1
    }
}

/// Decodes `text` until nothing is left to decode: `%2B`, `%25252B`, `\u002b`, `\x2b`, `\/`, `&#43;`,
/// `&#x2B;`, `&amp;#43;` and mixtures.
///
/// An escape is decoded as soon as it is complete, and the result may complete another one. So each
/// byte of the text is added once and removed at most once, however many layers there are.
pub(crate) fn decoded(text: &[u8]) -> Vec<Unit> {
    let mut units: Vec<Unit> = Vec::with_capacity(text.len());
    for (start, byte) in text.iter().copied().enumerate() {
        units.push(Unit {
            byte,
            start,
            end: start + 1,
        });
        while let Some((length, byte)) = escape_at_end(&units) {
            let first = units.len() - length;
            let start = units.get(first).map_or(start, |unit| unit.start);
            let end = units.last().map_or(start, |unit| unit.end);
            units.truncate(first);
            units.push(Unit { byte, start, end });
        }
    }
    units
}

/// Returns the length of the escape at the end of `units`, and the byte that it stands for.
fn escape_at_end(units: &[Unit]) -> Option<(usize, u8)> {
    match byte_at(units, 1)? {
        b'/' if byte_at(units, 2) == Some(b'\\') => Some((2, b'/')),
        b';' => reference_at_end(units),
        last if last.is_ascii_hexdigit() => {
            if byte_at(units, 3) == Some(b'%') {
                return Some((3, hexadecimal(units, 2)?));
            }
            if let (Some(b'\\'), Some(b'x' | b'X')) = (byte_at(units, 4), byte_at(units, 3)) {
                return Some((4, hexadecimal(units, 2)?));
            }
            match (byte_at(units, 6), byte_at(units, 5)) {
                (Some(b'\\' | b'%'), Some(b'u' | b'U')) => Some((6, hexadecimal(units, 4)?)),
                _ => None,
            }
        }
        _ => None,
    }
}

/// Returns the byte that is `back` bytes before the end.
fn byte_at(units: &[Unit], back: usize) -> Option<u8> {
    let unit = units.get(units.len().checked_sub(back)?)?;
    Some(unit.byte)
}

/// Reads the last `digits` bytes as a hexadecimal number.
fn hexadecimal(units: &[Unit], digits: usize) -> Option<u8> {
    let number = (1..=digits).rev().try_fold(0, |number, back| {
        let digit = char::from(byte_at(units, back)?).to_digit(16)?;
        Some(number * 16 + digit)
    })?;
    Some(ascii(number))
}

fn reference_at_end(units: &[Unit]) -> Option<(usize, u8)> {
    let length = (2..=REFERENCE_LIMIT_BYTES).find(|back| byte_at(units, *back) == Some(b'&'))?;
    let name: String = (2..length)
        .rev()
        .filter_map(|back| byte_at(units, back))
        .map(char::from)
        .collect();
    let name = name.to_ascii_lowercase();
    let byte = match name.as_str() {
        "amp" => b'&',
        "plus" => b'+',
        "sol" => b'/',
        "equals" => b'=',
        _ => {
            let number = name.strip_prefix('#')?;
            ascii(match number.strip_prefix('x') {
                Some(digits) => u32::from_str_radix(digits, 16).ok()?,
                None => number.parse().ok()?,
            })
        }
    };
    Some((length, byte))
}

/// Returns a character number as a byte. What is not ASCII is in no secret that is looked for.
fn ascii(number: u32) -> u8 {
    u8::try_from(number).unwrap_or(b'?')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(encoded: &str) -> String {
        let units = decoded(encoded.as_bytes());
        units.iter().map(|unit| char::from(unit.byte)).collect()
    }

    #[test]
    fn every_layer_of_every_escape_is_undone() {
        for (encoded, plain) in [
            ("a%2Bb%2bc", "a+b+c"),
            ("%2525252B", "+"),
            ("%%32%42", "+"),
            (r"\u002B\u003d\/\x2b", "+=/+"),
            (r"%5Cu002B", "+"),
            ("&#43;&#x2b;&plus;&#x0000002B;", "++++"),
            ("&amp;amp;#43;", "+"),
            ("%26%2343%3B", "+"),
            (
                "&; &unknown; %zz % %2 \\u00 &#;",
                "&; &unknown; %zz % %2 \\u00 &#;",
            ),
        ] {
            assert_eq!(text(encoded), plain, "{encoded}");
        }
    }

    proptest! {
        #[test]
        fn places_are_in_order_and_cover_the_text(encoded in "[%25a-f0-9\\\\ux&#;/\u{e4}]{0,60}") {
            let mut at = 0;
            for unit in decoded(encoded.as_bytes()) {
                prop_assert_eq!(unit.start, at);
                prop_assert!(unit.end > at);
                at = unit.end;
            }
            prop_assert_eq!(at, encoded.len());
        }
    }
}
