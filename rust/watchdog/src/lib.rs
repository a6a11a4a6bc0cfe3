//! The companion processes of a run, as a library: [`watch()`] thaws what the run cannot thaw,
//! [`sync()`] writes out dirty data, [`look_for_scrubs()`] asks btrfs what it does,
//! [`look_for_free_devices()`] asks whether a filesystem uses a block device, and
//! [`look_for_backing_files()`] asks loop devices where their files lie.
//!
//! `main.rs` is the program. The engine carries it inside itself and starts it from memory.

#![forbid(unsafe_code)]

mod introduction;
mod questions;
mod sync;
mod watch;
mod worker;

pub use questions::{look_for_backing_files, look_for_free_devices, look_for_scrubs};
pub use sync::sync;
pub use watch::watch;
