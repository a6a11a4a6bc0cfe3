//! What a run is doing.

use strum::{IntoStaticStr, VariantNames};

use crate::names::stable_names;

/// What a run is doing. The phases come in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantNames)]
#[strum(serialize_all = "kebab-case")]
pub enum Phase {
    /// It opens the planned filesystems.
    OpenFilesystems,
    /// It connects to the blobs, to the host, or to both.
    Connect,
    /// It starts the watchdog and the freeze threads.
    StartWatchdog,
    /// It writes out dirty data.
    Sync,
    /// It freezes. From here on the run can no longer be given up.
    Freeze,
}

stable_names!(Phase);
