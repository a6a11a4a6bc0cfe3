//! How a caller follows a run, and how it ends the run before anything is frozen.

use std::time::Duration;

use vmsnapshot_core::phase::Phase;

/// How often a preparation checks whether it was interrupted.
pub(crate) const INTERRUPTION_TICK: Duration = Duration::from_millis(50);

/// Follows a run, and may end it before anything is frozen.
pub trait Observer {
    /// A phase begins. Never called inside the window.
    fn phase(&mut self, phase: Phase);
    /// Something went otherwise than configured since the preparation. Never called inside the
    /// window.
    fn warning(&mut self, _text: &str) {}
    /// Returns whether to give up. Called often before the window, and never once it has begun.
    fn is_interrupted(&mut self) -> bool;
}

/// An observer that ignores everything and never interrupts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Observer for Silent {
    fn phase(&mut self, _: Phase) {}

    fn is_interrupted(&mut self) -> bool {
        false
    }
}
