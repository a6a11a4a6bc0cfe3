//! What a run is doing.

use strum::{IntoStaticStr, VariantNames};

use crate::names::stable_names;

/// What a run is doing. The phases come in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "kebab-case")]
pub enum Phase {
    /// The run opens the planned filesystems.
    OpenFilesystems,
    /// The run connects to the blobs, to the host, or to both.
    Connect,
    /// The run starts the watchdog and the freeze threads.
    StartWatchdog,
    /// The run writes out dirty data.
    Sync,
    /// The run asks the applications to hold still.
    Quiesce,
    /// The run freezes. From this phase on the caller can no longer cancel it.
    Freeze,
}

stable_names!(Phase);
