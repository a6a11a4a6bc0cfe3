//! What an error is about: what a program decides by, where the code only names the error.

/// Who or what has to change for the next try to succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

impl ErrorKind {
    /// Returns its stable name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Arguments => "arguments",
            Self::System => "system",
            Self::Network => "network",
            Self::AnotherRun => "another-run",
            Self::LeftFrozen => "left-frozen",
            Self::Interrupted => "interrupted",
        }
    }
}

impl ErrorSubject {
    /// Returns its stable name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Callee => "callee",
            Self::Metadata => "metadata",
            Self::Filesystem => "filesystem",
            Self::Watchdog => "watchdog",
            Self::Run => "run",
        }
    }
}
