//! The run's part of the promise that everything is thawed: from the watchdog that is armed to the
//! last FITHAW.
//!
//! [`window`] is the sequence, and [`freezers`] makes its two calls on each filesystem. [`watchdog`]
//! introduces, arms and releases the second process. [`alarm`] ends the window when the window's own
//! thread does not. [`rcu`] hurries the grace periods. [`quiet`]
//! blocks signals and silences panics during the window.
//!
//! This is a crate of its own so that its promises are facts of the build. It depends on `core` and
//! `sys` only, so no HTTP, no runtime and no Python can be reached from here. `rust/clippy.toml`
//! lists what opens a file, starts a thread or a process, or prints: calling any of it is an error.

#![forbid(unsafe_code)]
#![deny(clippy::disallowed_methods, clippy::disallowed_macros)]

pub mod alarm;
pub mod freezers;
pub mod quiet;
pub mod rcu;
pub mod watchdog;
pub mod window;
