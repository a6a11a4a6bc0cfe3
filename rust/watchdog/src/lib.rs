//! The companion processes of a run, as a library: [`watch()`] thaws what the run cannot thaw,
//! [`sync()`] writes out dirty data, and [`look_for_scrubs()`] asks btrfs what it does.
//!
//! `main.rs` is the program. The engine carries it inside itself and starts it from memory.

#![forbid(unsafe_code)]

mod introduction;
mod scrub;
mod sync;
mod watch;

pub use scrub::look_for_scrubs;
pub use sync::sync;
pub use watch::watch;
