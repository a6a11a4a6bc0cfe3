//! The number of a block device or of a mounted superblock.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// A device number, written `major:minor` as in the third field of mountinfo and in sysfs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceNumber {
    /// The major number. It is 0 for filesystems without a device of their own, and for btrfs.
    pub major: u32,
    /// The minor number.
    pub minor: u32,
}

/// How many bits of a number in one word are the minor number (Linux, include/linux/kdev_t.h).
const MINOR_BITS: u32 = 20;

impl DeviceNumber {
    /// Returns the number in one word, as the kernel keeps it.
    #[must_use]
    pub fn to_word(self) -> u32 {
        (self.major << MINOR_BITS) | self.minor
    }

    /// Returns the number that [`DeviceNumber::to_word`] put into one word.
    #[must_use]
    pub fn from_word(word: u32) -> Self {
        Self {
            major: word >> MINOR_BITS,
            minor: word & ((1 << MINOR_BITS) - 1),
        }
    }
}

/// The text is not two decimal numbers in the form `MAJOR:MINOR`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is not MAJOR:MINOR")]
pub struct DeviceNumberError;

impl fmt::Display for DeviceNumber {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.major, self.minor)
    }
}

impl FromStr for DeviceNumber {
    type Err = DeviceNumberError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (major, minor) = text.split_once(':').ok_or(DeviceNumberError)?;
        let number = |digits: &str| digits.parse().map_err(|_| DeviceNumberError);
        Ok(Self {
            major: number(major)?,
            minor: number(minor)?,
        })
    }
}

impl Serialize for DeviceNumber {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_number_fits_into_one_word() {
        for (major, minor) in [(0, 0), (0, 40), (7, 1), (4095, (1 << 20) - 1)] {
            let number = DeviceNumber { major, minor };
            assert_eq!(DeviceNumber::from_word(number.to_word()), number);
        }
    }

    #[test]
    fn a_device_number_is_two_numbers_and_nothing_else() {
        let number: Result<DeviceNumber, _> = "254:3".parse();
        assert_eq!(
            number,
            Ok(DeviceNumber {
                major: 254,
                minor: 3
            })
        );
        for text in ["", "8", "8:", ":1", "8:1:2", "8:x", "8:-1", "8:99999999999"] {
            assert_eq!(
                text.parse::<DeviceNumber>(),
                Err(DeviceNumberError),
                "{text}"
            );
        }
    }
}
