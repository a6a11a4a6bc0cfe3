//! What an error is about: what a program decides by, where the code only names the error.

use strum::{IntoStaticStr, VariantNames};

use crate::names::stable_names;

/// Who or what has to change for the next try to succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "kebab-case")]
pub enum ErrorKind {
    /// The caller: another argument, another SAS or another privilege is needed.
    Arguments,
    /// This machine: a file, a table of the kernel, memory, or its configuration.
    System,
    /// The network, or a server on it.
    Network,
    /// Another run is under way.
    AnotherRun,
    /// An earlier run left something frozen.
    LeftFrozen,
    /// The caller ended it.
    Interrupted,
}

/// What could not be prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "kebab-case")]
pub enum ErrorSubject {
    /// A blob or the host: it cannot be named, asked or reached.
    Callee,
    /// The metadata of the snapshots.
    Metadata,
    /// A planned filesystem.
    Filesystem,
    /// The watchdog.
    Watchdog,
    /// The run as a whole.
    Run,
}

stable_names!(ErrorKind, ErrorSubject);
