//! `vmsnapshot status` and `vmsnapshot thaw`: reads and repairs the state of runs from outside.

#[cfg(test)]
mod ledger_of_a_run;
mod run_state;
pub mod status;
pub mod thaw;
