//! Prepare, freeze, snapshot, thaw: everything that touches the machine, for plain Rust callers.
//!
//! [`scan::plan`] says what to freeze, [`session::prepare`] does all that can be done before the
//! window, [`session::Session::run`] opens it and gives the report; [`recovery`] knows what runs left.

#![forbid(unsafe_code)]

mod blobs;
mod companion;
pub mod connect;
pub mod error;
mod freezers;
mod rcu;
pub mod recovery;
mod report;
pub mod scan;
pub mod session;
pub mod state;
mod sync;
mod watchdog;
mod window;

pub use vmsnapshot_sys::control_group;
