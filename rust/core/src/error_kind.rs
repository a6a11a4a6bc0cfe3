//! What an error is, and what it is about.

use strum::{IntoStaticStr, VariantArray, VariantNames};

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
    /// An application.
    Application,
    /// The run as a whole.
    Run,
}

/// Which error it is: its stable name. The text of an error is not stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantNames, VariantArray)]
#[strum(serialize_all = "kebab-case")]
pub enum ErrorCode {
    /// The URI of a blob cannot be read.
    BadUri,
    /// The URI of a blob has no SAS.
    UnsignedUri,
    /// A part of a SAS cannot be read.
    BadSas,
    /// A SAS has expired.
    ExpiredSas,
    /// A SAS is not valid yet.
    SasNotYetValid,
    /// A SAS does not permit snapshots.
    SasPermission,
    /// A blob was given twice.
    DuplicateBlob,
    /// The call to the host cannot be made.
    BadHostCall,
    /// The file of additional authorities cannot be used.
    BadCaFile,
    /// This machine trusts no authority.
    NoTrustRoots,
    /// TLS cannot be set up on this machine.
    TlsConfiguration,
    /// The proxy cannot be used.
    BadProxy,
    /// The request cannot be built.
    BadRequest,
    /// A host name cannot be resolved.
    ResolveFailed,
    /// A server cannot be connected to.
    ConnectFailed,
    /// Connecting took too long.
    ConnectTimeout,
    /// TLS with a server failed.
    TlsFailed,
    /// The proxy refused, or is none.
    ProxyFailed,
    /// No header can have the metadata, or their number is not that of the blobs.
    BadMetadata,
    /// A mount point cannot be opened.
    OpenFailed,
    /// A different filesystem is mounted there now.
    MountChanged,
    /// Nothing is mounted there now.
    MountVanished,
    /// The filesystem can no longer be written.
    NotWritable,
    /// A freeze would wait for a long-running job of the kernel.
    FreezeWouldWait,
    /// The watchdog cannot be started or armed.
    NoWatchdog,
    /// This process may not freeze.
    NotPrivileged,
    /// The thaw timeout is out of range.
    BadThawTimeout,
    /// The freeze timeout is out of range.
    BadFreezeTimeout,
    /// A time limit is out of range.
    BadTimeLimit,
    /// One run cannot take so many filesystems.
    TooManyFilesystems,
    /// A table of the kernel cannot be read.
    Unreadable,
    /// A pattern cannot be read.
    BadPattern,
    /// A pattern matches no mount.
    PatternMatchesNothing,
    /// Nothing is mounted where the caller says.
    NoSuchMount,
    /// The kernel cannot freeze what the caller asked for.
    NotFreezable,
    /// Another run is under way.
    AnotherRun,
    /// An earlier run left something frozen.
    LeftFrozen,
    /// The state of runs cannot be read or written.
    StateUnusable,
    /// The command cannot be started.
    BadCommand,
    /// An application did not hold still.
    NotQuiesced,
    /// The system refused threads, descriptors or memory.
    NoResources,
    /// The caller ended the preparation.
    Interrupted,
}

impl ErrorCode {
    /// All codes, in declaration order.
    pub const ALL: &'static [Self] = <Self as VariantArray>::VARIANTS;

    /// Returns what could not be prepared. A program decides by this.
    #[must_use]
    pub fn subject(self) -> ErrorSubject {
        match self {
            Self::BadUri
            | Self::UnsignedUri
            | Self::BadSas
            | Self::ExpiredSas
            | Self::SasNotYetValid
            | Self::SasPermission
            | Self::DuplicateBlob
            | Self::BadHostCall
            | Self::BadCaFile
            | Self::NoTrustRoots
            | Self::TlsConfiguration
            | Self::BadProxy
            | Self::BadRequest
            | Self::ResolveFailed
            | Self::ConnectFailed
            | Self::ConnectTimeout
            | Self::TlsFailed
            | Self::ProxyFailed => ErrorSubject::Callee,
            Self::BadMetadata => ErrorSubject::Metadata,
            Self::OpenFailed
            | Self::MountChanged
            | Self::MountVanished
            | Self::NotWritable
            | Self::FreezeWouldWait => ErrorSubject::Filesystem,
            Self::NoWatchdog => ErrorSubject::Watchdog,
            Self::NotQuiesced => ErrorSubject::Application,
            Self::NotPrivileged
            | Self::BadCommand
            | Self::BadThawTimeout
            | Self::BadFreezeTimeout
            | Self::BadTimeLimit
            | Self::TooManyFilesystems
            | Self::Unreadable
            | Self::BadPattern
            | Self::PatternMatchesNothing
            | Self::NoSuchMount
            | Self::NotFreezable
            | Self::AnotherRun
            | Self::LeftFrozen
            | Self::StateUnusable
            | Self::NoResources
            | Self::Interrupted => ErrorSubject::Run,
        }
    }
}

stable_names!(ErrorCode, ErrorKind, ErrorSubject);
