//! The applications that a run holds still, as the engine sees them. It asks, tells and collects; who
//! holds them, and how, is the business of the caller.

use std::time::Duration;

use vmsnapshot_core::application::ApplicationRecord;

/// What the engine tells the applications at their release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// Everything was frozen, and the snapshots were asked for.
    Asked,
    /// No snapshot was asked for.
    NotAsked,
}

/// An application that the run must not do without did not hold still. The text says which, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotQuiesced(pub String);

/// Whoever holds the applications.
pub trait Applications {
    /// Asks all to hold still, for `hold` at most, and waits for each for `limit` at most. Returns once
    /// they do, or failed to and may be done without.
    ///
    /// *Blocking*: the limits of the applications.
    ///
    /// # Errors
    /// [`NotQuiesced`]. [`release`](Self::release) is still called.
    fn quiesce(&mut self, limit: Duration, hold: Duration) -> Result<(), NotQuiesced>;

    /// Releases all. Called exactly once after each [`quiesce`](Self::quiesce), right after the thaw.
    ///
    /// *Blocking*: never.
    fn release(&mut self, release: Release);

    /// Returns what is recorded of each.
    ///
    /// *Blocking*: until all are released, with a limit.
    fn records(&mut self) -> Vec<ApplicationRecord>;
}

/// The applications of a run that has none.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoApplications;

impl Applications for NoApplications {
    fn quiesce(&mut self, _: Duration, _: Duration) -> Result<(), NotQuiesced> {
        Ok(())
    }

    fn release(&mut self, _: Release) {}

    fn records(&mut self) -> Vec<ApplicationRecord> {
        Vec::new()
    }
}

/// Applications that were asked to hold still. Dropping this releases them.
pub(crate) struct Held<'a> {
    applications: &'a mut dyn Applications,
    is_released: bool,
}

impl<'a> Held<'a> {
    /// As [`Applications::quiesce`].
    pub(crate) fn quiesce(
        applications: &'a mut dyn Applications,
        limit: Duration,
        hold: Duration,
    ) -> Result<Self, NotQuiesced> {
        let held = Self {
            applications,
            is_released: false,
        };
        held.applications.quiesce(limit, hold)?;
        Ok(held)
    }

    /// As [`Applications::release`].
    pub(crate) fn release(&mut self, release: Release) {
        if !self.is_released {
            self.is_released = true;
            self.applications.release(release);
        }
    }

    /// As [`Applications::records`].
    pub(crate) fn records(mut self) -> Vec<ApplicationRecord> {
        self.release(Release::NotAsked);
        self.applications.records()
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.release(Release::NotAsked);
    }
}
