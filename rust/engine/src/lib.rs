//! Prepare, freeze, snapshot, thaw: everything that touches the machine, for plain Rust callers.
//!
//! [`scan::machine`] reads what there is to freeze, [`session::prepare`] does all that can be done
//! before the window, and [`session::Session::run`] opens it and returns the report. [`recovery`]
//! knows what runs left.

#![forbid(unsafe_code)]

mod callees;
mod calls;
mod companion;
pub mod connect;
pub mod directories;
pub mod error;
pub mod observer;
mod rcu;
pub mod recovery;
mod report;
pub mod scan;
pub mod session;
pub mod state;

pub use vmsnapshot_sys::control_group;
