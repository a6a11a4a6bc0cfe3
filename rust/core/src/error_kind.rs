//! What an error is about. A program decides by this; the error's code only names the error.

use strum::{IntoStaticStr, VariantNames};

use crate::names::stable_names;

/// What has to change before another try can succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "kebab-case")]
pub enum ErrorKind {
    /// The call: it needs another argument, another SAS or another privilege.
    Arguments,
    /// This machine: a file, a kernel table, memory, or the configuration.
    System,
    /// The network, or a server on it.
    Network,
    /// Another run is under way.
    AnotherRun,
    /// An earlier run left something frozen.
    LeftFrozen,
    /// The caller ended the run.
    Interrupted,
}

/// What could not be prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "kebab-case")]
pub enum ErrorSubject {
    /// A blob or the host: its URI or SAS cannot be used, or it cannot be reached.
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
