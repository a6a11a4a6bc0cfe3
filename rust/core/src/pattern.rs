//! The patterns of `--include`, `--exclude` and `--mount`: by mount point, device or type.

use std::path::Path;

use crate::plan::{DeviceNumber, PlanError};
use crate::text::path_text;

/// What a filesystem is known by, for patterns to match against.
#[derive(Clone, Debug, Default)]
pub struct Subject<'a> {
    /// Its mount points.
    pub mount_points: Vec<&'a Path>,
    /// Its type.
    pub filesystem_type: &'a str,
    /// Its mount source and every other name of the devices it lies on.
    pub device_names: Vec<&'a str>,
    /// mountinfo's number of it and the numbers of the devices it lies on.
    pub device_numbers: Vec<DeviceNumber>,
}

/// One pattern, as it was given on the command line.
///
/// | pattern | matches |
/// | --- | --- |
/// | `/srv`, `/srv/*`, `mount=/srv/**` | mount points; `*`, `?` and `[a-z]` do not cross a `/`, `**` does |
/// | `/dev/sda1`, `device=/dev/mapper/*` | what lies on that device (or, without prefix, is mounted there) |
/// | `8:1`, `device=8:1` | the superblock or device of that number |
/// | `ext4`, `type=ext*` | filesystem types |
///
/// A character of a mount point that is not UTF-8 is written as the plan shows it: `\xff`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    target: Target,
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
    /// [`PlanError::BadPattern`] says what it is not.
    pub fn parse(text: &str) -> Result<Self, PlanError> {
        let target = Target::parse(text).map_err(|cause| PlanError::BadPattern {
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

    /// Returns whether this names one mount point or device rather than any number of them.
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

    /// Returns the path of a literal pattern that can only be a mount point.
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

    /// Returns whether this matches any of what `subject` is known by.
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
        // What is left can only be a type, and no type has these in its name.
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
    /// `**/` after a `/`: any number of whole names, or none: `/a/**/b` matches `/a/b`.
    AnyDirectories,
}

impl Token {
    /// Whether this can be `character`; `*` and its like are not asked.
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

    /// Matches the whole of `text`, in time proportional to the pattern's length times its own.
    fn matches(&self, text: &str) -> bool {
        // A mount point can have `[` or `*` in its name; spelled out, it always matches itself.
        if text == self.text {
            return true;
        }
        let characters: Vec<char> = text.chars().collect();
        // `matched[i]`: the tokens looked at so far, from the last one on, match characters[i..].
        let mut matched = vec![false; characters.len() + 1];
        if let Some(end) = matched.last_mut() {
            *end = true;
        }
        for token in self.tokens.iter().rev() {
            let mut row = matched.clone();
            // What the row says of the next character on, and whether a `/` from here on is
            // followed by a match: all that a token needs to know.
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

/// Parses what follows a `[` and returns the class and what follows it; a `]` right at the start
/// is a member, as in the shell.
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
