//! Prepares, freezes, snapshots and thaws. Everything that touches the machine is here, with an API
//! for Rust programs.
//!
//! [`scan::machine`] reads what there is to freeze. [`session::prepare`] does all that can be done
//! before the window. [`session::Session::run`] opens the window and returns the report.
//! [`recovery`] reads and thaws what earlier runs left.

#![forbid(unsafe_code)]

pub mod applications;
mod block_device;
mod both;
mod callees;
mod calls;
pub mod command;
mod companion;
pub mod connect;
mod covers;
pub mod directories;
pub mod error;
mod identity;
mod jobs;
mod leftovers;
mod look;
pub mod observer;
mod rcu;
pub mod recovery;
mod report;
pub mod scan;
pub mod session;
mod staged;
pub mod state;
mod walk;

pub use vmsnapshot_sys::{control_group, packet_socket};
