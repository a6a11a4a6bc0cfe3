//! The patterns of `--include`, `--exclude` and `--mount`: by mount point, device or type.

use std::path::Path;

use crate::device_number::DeviceNumber;
use crate::text::path_text;

/// The properties of a filesystem that patterns match.
#[derive(Clone, Debug, Default)]
pub struct Subject<'a> {
    /// Its mount points.
    pub mount_points: Vec<&'a Path>,
    /// Its type.
    pub filesystem_type: &'a str,
    /// Its mount source, and every name of the devices it lies on.
    pub device_names: Vec<&'a str>,
    /// Its number in mountinfo, and the numbers of the devices it lies on.
    pub device_numbers: Vec<DeviceNumber>,
}

/// One pattern, as it was given on the command line.
///
/// | pattern | matches |
/// | --- | --- |
/// | `/srv`, `/srv/*`, `mount=/srv/**` | mount points; `*`, `?` and `[a-z]` do not cross a `/`, `**` does |
/// | `/dev/sda1`, `device=/dev/mapper/*` | filesystems on that device (or, without prefix, mounted at that path) |
/// | `8:1`, `device=8:1` | the superblock or device with that number |
/// | `ext4`, `type=ext*` | filesystem types |
///
/// A byte of a mount point that is not UTF-8 is written as the plan shows it: `\xff`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    target: Target,
}

/// A pattern cannot be parsed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("could not understand pattern `{pattern}`: {cause}")]
pub struct PatternError {
    /// The pattern as it was given.
    pub pattern: String,
    /// What is wrong with it.
    pub cause: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Target {
    Mount(Glob),
    Device(Glob),
    MountOrDevice(Glob),
    Number(DeviceNumber),
    Type(Glob),
}

impl Pattern {
    /// Parses one pattern.
    ///
    /// # Errors
    ///
    /// [`PatternError`] says what is wrong with the text.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let target = Target::parse(text).map_err(|cause| PatternError {
            pattern: text.to_owned(),
            cause,
        })?;
        Ok(Self {
            text: text.to_owned(),
            target,
        })
    }

    /// Returns the pattern as it was given.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns whether this names exactly one mount point or device.
    #[must_use]
    pub fn is_literal(&self) -> bool {
        match &self.target {
            Target::Mount(glob) | Target::Device(glob) | Target::MountOrDevice(glob) => {
                glob.is_literal()
            }
            Target::Number(_) => true,
            Target::Type(_) => false,
        }
    }

    /// Returns the path of a literal pattern that can only match a mount point.
    #[must_use]
    pub fn literal_mount_point(&self) -> Option<&Path> {
        match &self.target {
            Target::Mount(glob) if glob.is_literal() => Some(Path::new(&glob.text)),
            Target::Mount(_)
            | Target::Device(_)
            | Target::MountOrDevice(_)
            | Target::Number(_)
            | Target::Type(_) => None,
        }
    }

    /// Returns whether this matches any property of `subject`.
    #[must_use]
    pub fn matches(&self, subject: &Subject<'_>) -> bool {
        let is_mounted_at = |glob: &Glob| {
            subject
                .mount_points
                .iter()
                .any(|path| glob.matches(&path_text(path)))
        };
        let lies_on = |glob: &Glob| subject.device_names.iter().any(|name| glob.matches(name));
        match &self.target {
            Target::Mount(glob) => is_mounted_at(glob),
            Target::Device(glob) => lies_on(glob),
            Target::MountOrDevice(glob) => is_mounted_at(glob) || lies_on(glob),
            Target::Number(number) => subject.device_numbers.contains(number),
            Target::Type(glob) => glob.matches(subject.filesystem_type),
        }
    }
}

impl Target {
    fn parse(text: &str) -> Result<Self, &'static str> {
        let absolute = |path: &str, cause| {
            if path.starts_with('/') {
                Glob::parse(path)
            } else {
                Err(cause)
            }
        };
        if let Some(name) = text.strip_prefix("type=") {
            return Ok(Self::Type(Glob::parse(name)?));
        }
        if let Some(path) = text.strip_prefix("mount=") {
            return Ok(Self::Mount(absolute(
                path,
                "a mount point is an absolute path",
            )?));
        }
        if let Some(device) = text.strip_prefix("device=") {
            return match device.parse() {
                Ok(number) => Ok(Self::Number(number)),
                Err(_) => Ok(Self::Device(absolute(
                    device,
                    "a device is an absolute path or MAJOR:MINOR",
                )?)),
            };
        }
        if let Ok(number) = text.parse() {
            return Ok(Self::Number(number));
        }
        if text.starts_with("/dev/") {
            return Ok(Self::MountOrDevice(Glob::parse(text)?));
        }
        if text.starts_with('/') {
            return Ok(Self::Mount(Glob::parse(text)?));
        }
        // Anything else can only be a type, and no type has these characters in its name.
        if text.contains(['/', ':', '=']) {
            return Err("it is neither an absolute path, nor MAJOR:MINOR, nor a filesystem type");
        }
        Ok(Self::Type(Glob::parse(text)?))
    }
}

/// A shell-like pattern over text.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Glob {
    text: String,
    tokens: Vec<Token>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Character(char),
    /// `?`: one character.
    AnyCharacter,
    /// `[a-z]`, `[!a-z]`: one character within (or not within) these ranges.
    Class {
        ranges: Vec<(char, char)>,
        negated: bool,
    },
    /// `*`: any characters within one name.
    AnyName,
    /// `**`: any characters.
    AnyPath,
    /// `**/` after a `/`: any number of whole names, even zero. `/a/**/b` matches `/a/b`.
    AnyDirectories,
}

impl Token {
    /// Returns whether this matches `character`. `matches` handles `*`, `**` and `**/` itself.
    fn is(&self, character: char) -> bool {
        match self {
            Self::Character(own) => *own == character,
            Self::AnyCharacter => character != '/',
            Self::Class { ranges, negated } => {
                let is_within = ranges
                    .iter()
                    .any(|(from, to)| (*from..=*to).contains(&character));
                character != '/' && is_within != *negated
            }
            Self::AnyName | Self::AnyPath | Self::AnyDirectories => false,
        }
    }
}

impl Glob {
    fn parse(text: &str) -> Result<Self, &'static str> {
        if text.is_empty() {
            return Err("it is empty");
        }
        // `/srv/` means the mount point `/srv`.
        let trimmed = text.trim_end_matches('/');
        let text = if trimmed.is_empty() { "/" } else { trimmed };
        let mut tokens = Vec::new();
        let mut rest = text;
        while let Some(character) = rest.chars().next() {
            let after_slash = tokens.last() == Some(&Token::Character('/'));
            let (token, after) =
                if let Some(after) = rest.strip_prefix("**/").filter(|_| after_slash) {
                    (Token::AnyDirectories, after)
                } else if let Some(after) = rest.strip_prefix("**") {
                    (Token::AnyPath, after)
                } else {
                    let after = rest.get(character.len_utf8()..).unwrap_or_default();
                    match character {
                        '*' => (Token::AnyName, after),
                        '?' => (Token::AnyCharacter, after),
                        '[' => class(after).ok_or("a `[` has no matching `]`")?,
                        _ => (Token::Character(character), after),
                    }
                };
            tokens.push(token);
            rest = after;
        }
        Ok(Self {
            text: text.to_owned(),
            tokens,
        })
    }

    fn is_literal(&self) -> bool {
        self.tokens
            .iter()
            .all(|token| matches!(token, Token::Character(_)))
    }

    /// Returns whether this matches all of `text`. The time is proportional to the product of both
    /// lengths.
    fn matches(&self, text: &str) -> bool {
        // A mount point can have `[` or `*` in its name. Its exact name always matches it.
        if text == self.text {
            return true;
        }
        let characters: Vec<char> = text.chars().collect();
        // `matched[i]` is true if the tokens processed so far match characters[i..]. The tokens are
        // processed from the last to the first.
        let mut matched = vec![false; characters.len() + 1];
        if let Some(end) = matched.last_mut() {
            *end = true;
        }
        for token in self.tokens.iter().rev() {
            let mut row = matched.clone();
            // A token needs three facts: the new row and the old row at the next character, and
            // whether a match follows any `/` from here on.
            let (mut row_after, mut matched_after, mut is_after_slash) = (false, false, false);
            for (index, matched_here) in matched.iter().enumerate().rev() {
                let character = characters.get(index).copied();
                is_after_slash |= character == Some('/') && matched_after;
                let here = match token {
                    Token::AnyName => *matched_here || (row_after && character != Some('/')),
                    Token::AnyPath => *matched_here || row_after,
                    Token::AnyDirectories => *matched_here || is_after_slash,
                    Token::Character(_) | Token::AnyCharacter | Token::Class { .. } => {
                        matched_after && character.is_some_and(|character| token.is(character))
                    }
                };
                if let Some(cell) = row.get_mut(index) {
                    *cell = here;
                }
                (row_after, matched_after) = (here, *matched_here);
            }
            matched = row;
        }
        matched.first() == Some(&true)
    }
}

/// Parses the text after a `[`, and returns the class and the text after it.
///
/// A `]` at the very start is a member of the class, as in the shell.
fn class(text: &str) -> Option<(Token, &str)> {
    let (negated, text) = match text.strip_prefix(['!', '^']) {
        Some(after) => (true, after),
        None => (false, text),
    };
    let first = text.chars().next()?.len_utf8();
    let end = first + text.get(first..)?.find(']')?;
    let members: Vec<char> = text.get(..end)?.chars().collect();
    let mut ranges = Vec::new();
    let mut rest = members.as_slice();
    loop {
        rest = match rest {
            [from, '-', to, after @ ..] => {
                ranges.push((*from, *to));
                after
            }
            [one, after @ ..] => {
                ranges.push((*one, *one));
                after
            }
            [] => break,
        };
    }
    Some((Token::Class { ranges, negated }, text.get(end + 1..)?))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn names_mount(pattern: &str, mount_point: &str) -> bool {
        let subject = Subject {
            mount_points: vec![Path::new(mount_point)],
            ..Subject::default()
        };
        Pattern::parse(pattern).unwrap().matches(&subject)
    }

    fn names_type(pattern: &str, filesystem_type: &str) -> bool {
        Pattern::parse(pattern).unwrap().matches(&Subject {
            filesystem_type,
            ..Subject::default()
        })
    }

    fn names_device(pattern: &str) -> bool {
        let subject = Subject {
            device_names: vec!["/dev/dm-0", "/dev/mapper/data"],
            device_numbers: vec![DeviceNumber {
                major: 254,
                minor: 0,
            }],
            ..Subject::default()
        };
        Pattern::parse(pattern).unwrap().matches(&subject)
    }

    #[test]
    fn a_literal_path_matches_only_that_mount_point() {
        assert!(names_mount("/srv", "/srv"));
        assert!(names_mount("/srv/", "/srv"));
        assert!(names_mount("/", "/"));
        assert!(!names_mount("/srv", "/srv/a"));
        assert!(!names_mount("/srv", "/"));
    }

    #[test]
    fn one_star_matches_within_one_name() {
        assert!(names_mount("/srv/*", "/srv/a"));
        assert!(names_mount("/s*v", "/srv"));
        assert!(!names_mount("/srv/*", "/srv/a/b"));
        assert!(!names_mount("/srv*", "/srv/a"));
    }

    #[test]
    fn two_stars_cross_directories() {
        assert!(names_mount("/srv/**", "/srv/a/b"));
        assert!(!names_mount("/srv/**", "/srv"));
        assert!(names_mount("/srv**", "/srv/a"));
    }

    #[test]
    fn two_stars_between_slashes_match_any_number_of_directories() {
        assert!(names_mount("/a/**/b", "/a/b"));
        assert!(names_mount("/a/**/b", "/a/x/y/b"));
        assert!(!names_mount("/a/**/b", "/a/xb"));
        assert!(names_mount("/**/b", "/b"));
    }

    #[test]
    fn a_question_mark_or_a_class_matches_one_character_except_a_slash() {
        assert!(names_mount("/d?", "/dé"));
        assert!(!names_mount("/a?b", "/a/b"));
        assert!(names_mount("/d[0-3x]", "/d2") && names_mount("/d[0-3x]", "/dx"));
        assert!(!names_mount("/d[0-3]", "/d4"));
        assert!(names_mount("/d[!0-3]", "/d4") && !names_mount("/d[^0-3]", "/d3"));
        assert!(!names_mount("/a[!x]b", "/a/b"));
        assert!(names_mount("/d[]]", "/d]") && names_mount("/d[a-]", "/d-"));
    }

    #[test]
    fn a_mount_point_with_wildcard_characters_is_matched_by_its_exact_name() {
        assert!(names_mount("/a[b]*", "/a[b]*"));
    }

    #[test]
    fn a_byte_that_is_not_utf8_is_matched_as_the_plan_shows_it() {
        use std::os::unix::ffi::OsStrExt;
        let path = Path::new(std::ffi::OsStr::from_bytes(b"/srv/\xff"));
        let subject = Subject {
            mount_points: vec![path],
            ..Subject::default()
        };
        assert!(Pattern::parse("/srv/\\xff").unwrap().matches(&subject));
    }

    #[test]
    fn a_path_below_dev_matches_a_device_by_any_of_its_names() {
        assert!(
            names_device("/dev/mapper/data")
                && names_device("/dev/dm-0")
                && names_device("/dev/dm-*")
        );
        assert!(names_device("device=/dev/mapper/*"));
        assert!(!names_device("/dev/sda1"));
        assert!(!names_device("mount=/dev/dm-0"));
    }

    #[test]
    fn a_path_below_dev_can_match_a_mount_point() {
        assert!(names_mount("/dev/shm", "/dev/shm"));
        assert!(!names_mount("device=/dev/shm", "/dev/shm"));
    }

    #[test]
    fn two_numbers_match_a_device() {
        assert!(names_device("254:0") && names_device("device=254:0"));
        assert!(!names_device("254:1"));
    }

    #[test]
    fn a_bare_word_matches_a_type() {
        assert!(
            names_type("ext4", "ext4")
                && names_type("ext*", "ext3")
                && names_type("type=ext?", "ext2")
        );
        assert!(!names_type("ext", "ext4"));
        assert!(names_type("fuse.*", "fuse.sshfs"));
    }

    #[test]
    fn only_a_mount_point_or_device_without_wildcards_is_literal() {
        let is_literal = |text: &str| Pattern::parse(text).unwrap().is_literal();
        assert!(
            is_literal("/srv")
                && is_literal("/dev/sda1")
                && is_literal("8:1")
                && is_literal("device=/x")
        );
        assert!(
            !is_literal("/srv/*")
                && !is_literal("ext4")
                && !is_literal("/d[0]")
                && !is_literal("/d?")
        );
    }

    #[test]
    fn a_pattern_that_cannot_be_parsed_is_refused() {
        for text in [
            "",
            "type=",
            "mount=",
            "mount=srv",
            "device=sda",
            "srv/data",
            "host:/export",
            "/a[b",
            "a=b",
        ] {
            let error = Pattern::parse(text).unwrap_err();
            assert_eq!(error.pattern, text);
        }
    }

    #[test]
    fn a_pattern_of_many_stars_is_matched_quickly() {
        // With backtracking this would practically never end.
        let pattern = format!("/{}b", "*a".repeat(200));
        assert!(!names_mount(&pattern, &format!("/{}", "a".repeat(2000))));
    }
}
