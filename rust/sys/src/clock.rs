//! The clocks: `CLOCK_MONOTONIC` for deadlines, `CLOCK_REALTIME` for times that people read.

use rustix::time::{clock_gettime, ClockId, Timespec};
use vmsnapshot_core::deadlines::Monotonic;

/// Returns the current time on the clock that two processes share.
#[must_use]
pub fn monotonic() -> Monotonic {
    Monotonic(nanoseconds(clock_gettime(ClockId::Monotonic)))
}

/// Returns the current time in nanoseconds since the Unix epoch.
#[must_use]
pub fn realtime_ns() -> u64 {
    nanoseconds(clock_gettime(ClockId::Realtime))
}

/// Converts `duration` to the kernel's type.
#[must_use]
pub fn timespec(duration: std::time::Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

fn nanoseconds(time: Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds
        .saturating_mul(1_000_000_000)
        .saturating_add(nanoseconds)
}
