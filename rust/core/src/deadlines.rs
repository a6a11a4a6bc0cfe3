//! The deadlines of a window. The run computes them once, before the first freeze.

use std::time::Duration;

/// An instant of `CLOCK_MONOTONIC`, in nanoseconds. The run and its watchdog share this clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Monotonic(pub u64);

impl Monotonic {
    /// Returns the instant `budget` later, or the latest instant if that cannot be represented.
    #[must_use]
    pub fn plus(self, budget: Duration) -> Monotonic {
        Monotonic(self.0.saturating_add(nanoseconds(budget)))
    }

    /// Returns the time from `earlier` to this instant, or zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Monotonic) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// The shortest thaw timeout that is accepted. A shorter one would depend on kernel scheduling.
pub const THAW_TIMEOUT_MIN: Duration = Duration::from_millis(10);
/// The longest thaw timeout that is accepted.
pub const THAW_TIMEOUT_MAX: Duration = Duration::from_secs(3600);

/// The shortest freeze timeout that is accepted, and the longest. It is cut to what the thaw timeout
/// leaves for calls.
pub const FREEZE_TIMEOUT_MIN: Duration = THAW_TIMEOUT_MIN;
/// The longest freeze timeout that is accepted.
pub const FREEZE_TIMEOUT_MAX: Duration = THAW_TIMEOUT_MAX;

/// When everything must be frozen, when the run stops waiting for answers, when it must have thawed,
/// and when the watchdog thaws.
///
/// Invariant: `start < freeze_by <= call_by < thaw_by < guard_by`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// The moment before the first FIFREEZE.
    pub start: Monotonic,
    /// The run stops waiting for FIFREEZE and starts to thaw: one slow filesystem must not keep the
    /// others frozen for as long as the calls may take.
    pub freeze_by: Monotonic,
    /// The run stops waiting for answers, and starts to thaw.
    pub call_by: Monotonic,
    /// The run stops waiting for its own FITHAW calls and leaves the rest to the watchdog.
    pub thaw_by: Monotonic,
    /// The watchdog thaws, no matter what the run does: `start` plus the thaw timeout.
    pub guard_by: Monotonic,
}

impl Deadlines {
    /// Splits `thaw_timeout`, which lies between [`THAW_TIMEOUT_MIN`] and [`THAW_TIMEOUT_MAX`].
    ///
    /// A fifth of it, at most 2 s, is reserved for our own FITHAW. FITHAW writes the superblock: it
    /// took 2 s on a device that needs 2 s per write. A tenth, at most 500 ms, is reserved for the
    /// hand-over to the watchdog. `freeze_timeout` is cut to what is left.
    #[must_use]
    pub fn new(start: Monotonic, thaw_timeout: Duration, freeze_timeout: Duration) -> Deadlines {
        let guard_by = start.plus(thaw_timeout);
        let hand_over = (thaw_timeout / 10).min(Duration::from_millis(500));
        let thaw_room = (thaw_timeout / 5).min(Duration::from_secs(2));
        let thaw_by = start.plus(thaw_timeout.saturating_sub(hand_over));
        let call_by = start.plus(thaw_timeout.saturating_sub(hand_over + thaw_room));
        Deadlines {
            start,
            freeze_by: start.plus(freeze_timeout).min(call_by),
            call_by,
            thaw_by,
            guard_by,
        }
    }
}

/// Returns `budget` in nanoseconds, or the largest number if it does not fit (584 years).
#[must_use]
pub fn nanoseconds(budget: Duration) -> u64 {
    u64::try_from(budget.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn deadlines_are_in_order_for_every_timeout(
            start in 0..u64::MAX / 4,
            timeout_ms in 10_u64..3_600_000,
            freeze_timeout_ms in 10_u64..3_600_000,
        ) {
            let timeout = Duration::from_millis(timeout_ms);
            let freeze_timeout = Duration::from_millis(freeze_timeout_ms);
            let deadlines = Deadlines::new(Monotonic(start), timeout, freeze_timeout);
            prop_assert!(deadlines.start < deadlines.freeze_by);
            prop_assert!(deadlines.freeze_by <= deadlines.call_by);
            prop_assert!(deadlines.freeze_by.since(deadlines.start) <= freeze_timeout);
            prop_assert!(deadlines.call_by < deadlines.thaw_by);
            prop_assert!(deadlines.thaw_by < deadlines.guard_by);
            prop_assert_eq!(deadlines.guard_by.since(deadlines.start), timeout);
        }
    }
}
