//! Time limits, as Python gives them: seconds.

use std::time::Duration;

use vmsnapshot_engine::error::PrepareError;

/// Returns a limit of more than zero seconds and at most an hour. A longer one limits nothing.
pub(crate) fn time_limit(name: &'static str, seconds: f64) -> Result<Duration, PrepareError> {
    match Duration::try_from_secs_f64(seconds) {
        Ok(limit) if !limit.is_zero() && seconds <= 3600.0 => Ok(limit),
        _ => Err(PrepareError::TimeLimit { name, seconds }),
    }
}
