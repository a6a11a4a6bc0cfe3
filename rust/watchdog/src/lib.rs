//! The companion processes of a run, as a library: [`watch()`] thaws what the run cannot thaw, and
//! [`sync()`] writes out dirty data.
//!
//! `main.rs` is the program. The engine carries it inside itself and starts it from memory.

#![forbid(unsafe_code)]

mod introduction;
mod sync;
mod watch;

pub use sync::sync;
pub use watch::watch;
