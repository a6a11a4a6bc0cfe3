//! Reads time limits, which Python gives in seconds.

use std::time::Duration;

use vmsnapshot_engine::error::PrepareError;

/// Returns a limit above zero seconds and of at most an hour. A longer one would limit nothing.
pub(crate) fn time_limit(name: &'static str, seconds: f64) -> Result<Duration, PrepareError> {
    match Duration::try_from_secs_f64(seconds) {
        Ok(limit) if !limit.is_zero() && seconds <= 3600.0 => Ok(limit),
        _ => Err(PrepareError::TimeLimit { name, seconds }),
    }
}
