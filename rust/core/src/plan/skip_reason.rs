//! Why a mounted filesystem is left out of a plan.

use std::fmt;

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use crate::device_number::DeviceNumber;

/// Why a filesystem is not frozen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SkipReason {
    /// The superblock is read-only, so nothing writes to it.
    ReadOnly,
    /// The kernel cannot freeze this type (FIFREEZE answers EOPNOTSUPP).
    NotFreezable,
    /// It is not on a local block device, for example network, FUSE, autofs, or memory.
    NotOnLocalBlockDevice,
    /// An exclude pattern names it.
    Excluded {
        /// The pattern as it was given.
        pattern: String,
    },
    /// The caller excludes the filesystem with this device number.
    ExcludedDevice {
        /// mountinfo's major:minor.
        device: DeviceNumber,
    },
    /// Include patterns were given, and none matches it.
    NotIncluded,
    /// It is mounted only in another mount namespace, and another mount covers every mount point of it
    /// there.
    Covered,
    /// The way to every mount point of it leads through a network or FUSE filesystem. The run could
    /// hang there.
    BehindAnother,
    /// The caller asked the run to freeze nothing.
    FreezeNotWanted,
}

impl SkipReason {
    /// Returns whether the filesystem could be frozen if it could be reached. Then something may write to
    /// it, and a run without it is not consistent.
    #[must_use]
    pub fn is_out_of_reach(&self) -> bool {
        match self {
            Self::Covered | Self::BehindAnother => true,
            Self::ReadOnly
            | Self::NotFreezable
            | Self::NotOnLocalBlockDevice
            | Self::Excluded { .. }
            | Self::ExcludedDevice { .. }
            | Self::NotIncluded
            | Self::FreezeNotWanted => false,
        }
    }

    /// Returns the stable code of this reason.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::ReadOnly => "read-only",
            Self::NotFreezable => "not-freezable",
            Self::NotOnLocalBlockDevice => "not-on-local-block-device",
            Self::Excluded { .. } | Self::ExcludedDevice { .. } => "excluded",
            Self::NotIncluded => "not-included",
            Self::Covered => "covered",
            Self::BehindAnother => "behind-another",
            Self::FreezeNotWanted => "freeze-not-wanted",
        }
    }
}

impl fmt::Display for SkipReason {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::ReadOnly => "it is read-only, so nothing writes to it",
            Self::NotFreezable => "the kernel cannot freeze this filesystem type",
            Self::NotOnLocalBlockDevice => "it is not on a local block device",
            Self::Excluded { pattern } => {
                return write!(formatter, "it is excluded by `{pattern}`")
            }
            Self::ExcludedDevice { device } => {
                return write!(formatter, "device {device} is excluded")
            }
            Self::NotIncluded => "no include pattern names it",
            Self::Covered => {
                "another mount covers it in another mount namespace, so it cannot be opened"
            }
            Self::BehindAnother => {
                "the way to it leads through a network or FUSE filesystem, which could hang"
            }
            Self::FreezeNotWanted => "the run was asked to freeze nothing",
        })
    }
}

impl Serialize for SkipReason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("SkipReason", 2)?;
        fields.serialize_field("reason", self.code())?;
        fields.serialize_field("why", &self.to_string())?;
        fields.end()
    }
}
