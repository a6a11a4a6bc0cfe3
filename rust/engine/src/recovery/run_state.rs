//! How far a run has come, from its ledger and the locks on it.

use vmsnapshot_core::deadlines::Monotonic;
use vmsnapshot_core::ledger::{FreezeState, Ledger};
use vmsnapshot_core::report::utc_text;
use vmsnapshot_core::status::RunState;

use crate::state::KeptRun;

/// Whether no filesystem of the run has been announced so far.
fn has_not_frozen(ledger: &Ledger) -> bool {
    let mut entries = ledger.entries.iter();
    entries.all(|entry| entry.state() == FreezeState::Planned)
}

/// Returns how far a run has come.
///
/// A living process alone proves nothing, because a service or a program that uses the Python API
/// lives on after its run. So the deadline in the ledger decides as well.
pub(crate) fn run_state(run: &KeptRun) -> RunState {
    let may_be_frozen = run.ledger.may_be_frozen();
    if !run.is_of_this_version() {
        return if may_be_frozen {
            RunState::OfAnotherVersion
        } else {
            RunState::Over
        };
    }
    match (may_be_frozen, !run.is_late(), run.watchdog_is_alive()) {
        // Before its first freeze a run may not have a watchdog yet, or not any more.
        (false, true, false) if has_not_frozen(&run.ledger) && run.run_is_alive() => {
            RunState::AtWork
        }
        (false, _, false) => RunState::Over,
        (_, true, true) | (false, false, true) => RunState::AtWork,
        (true, false, true) => RunState::Late,
        (true, true, false) if run.run_is_alive() => RunState::AtWork,
        (true, _, false) => RunState::Abandoned,
    }
}

/// Returns why a run whose lock another process holds is left alone; `None` if neither the run nor
/// its watchdog is going to thaw what it froze.
pub(crate) fn why_left_alone(run: &KeptRun) -> Option<String> {
    match run_state(run) {
        RunState::AtWork => Some(format!(
            "the run is at work, and everything is thawed by {} at the latest",
            instant_text(run, run.ledger.header.guard_by())
                .unwrap_or_else(|| "its thaw timeout".to_owned())
        )),
        RunState::Late => Some(
            "its deadline has passed; its watchdog is alive and calls FITHAW until it succeeds"
                .to_owned(),
        ),
        RunState::OfAnotherVersion => Some(
            "another version of vmsnapshot wrote its ledger, and another run is under way: try again \
             when that one is over"
                .to_owned(),
        ),
        RunState::Abandoned | RunState::Over => None,
    }
}

/// Returns the date of an instant of the run's clock.
pub(crate) fn instant_text(run: &KeptRun, instant: Option<Monotonic>) -> Option<String> {
    instant.map(|instant| utc_text(run.ledger.header.realtime_ns(instant)))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::indexing_slicing, reason = "tests")]

    use std::time::Duration;

    use vmsnapshot_core::ledger::{Place, Thawer};
    use vmsnapshot_sys::ledger_file::Holder;
    use vmsnapshot_sys::{clock, place};

    use super::*;
    use crate::recovery::ledger_of_a_run::{LedgerOfARun, BOTH};

    #[test]
    fn living_process_is_not_at_work_after_its_deadline_without_a_watchdog() {
        let hour = Some(Duration::from_secs(3600));
        for (holders, ahead, state) in [
            (&BOTH[..], hour, RunState::AtWork),
            (&[Holder::Run], hour, RunState::AtWork),
            (&BOTH, None, RunState::Late),
            // The process lives on after its run, as a service or a user of the Python API does.
            (&[Holder::Run], None, RunState::Abandoned),
            // A process that the run has forked lives on after the run was killed.
            (&[], hour, RunState::Abandoned),
        ] {
            let run = LedgerOfARun::start(holders, place::here());
            run.freeze(ahead);
            let seen = run.seen();
            assert_eq!(run_state(&seen), state);
            assert_eq!(
                why_left_alone(&seen).is_none(),
                state == RunState::Abandoned
            );
        }
    }

    /// Its process ids and its clock mean something else there, so only the locks count.
    #[test]
    fn run_in_another_namespace_is_at_work_while_it_or_its_watchdog_is_alive() {
        let elsewhere = Place {
            pid_namespace: 1,
            ..place::here()
        };
        for (holders, state) in [
            (&BOTH[..], RunState::AtWork),
            (&[Holder::Run], RunState::AtWork),
            (&[Holder::Watchdog], RunState::AtWork),
            (&[], RunState::Abandoned),
        ] {
            let run = LedgerOfARun::start(holders, elsewhere);
            run.freeze(None);
            assert_eq!(run_state(&run.seen()), state);
        }
    }

    #[test]
    fn run_is_at_work_before_its_window_and_over_when_nothing_can_be_frozen() {
        let preparing = LedgerOfARun::start(&[Holder::Run], place::here());
        assert_eq!(run_state(&preparing.seen()), RunState::AtWork);
        let thawed = LedgerOfARun::start(&[Holder::Run], place::here());
        thawed.freeze(None);
        thawed.ledger.entries[0].thawed(Thawer::Run, clock::monotonic());
        assert_eq!(run_state(&thawed.seen()), RunState::Over);
    }
}
