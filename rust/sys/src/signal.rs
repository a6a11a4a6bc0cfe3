//! A number that threads set and wait for, made of a futex and nothing else.
//!
//! The window uses it instead of a condition variable. A condition variable has a mutex, and sixty
//! woken threads would queue for it. A futex needs no lock and allocates nothing.

use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::futex;
use vmsnapshot_core::deadlines::Monotonic;

use crate::clock;

/// A number that threads of this process can wait for.
#[derive(Debug, Default)]
pub struct Signal(AtomicU32);

impl Signal {
    /// Makes a signal with this value.
    #[must_use]
    pub const fn new(value: u32) -> Signal {
        Signal(AtomicU32::new(value))
    }

    /// Returns the current value.
    #[must_use]
    pub fn value(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }

    /// Sets the value and wakes all waiting threads.
    pub fn set(&self, value: u32) {
        self.0.store(value, Ordering::SeqCst);
        self.wake_all();
    }

    /// Sets the value unless it is higher already, and wakes all waiting threads.
    pub fn raise(&self, value: u32) {
        self.0.fetch_max(value, Ordering::SeqCst);
        self.wake_all();
    }

    /// Adds one and returns the sum. Wakes no thread.
    pub fn add_one(&self) -> u32 {
        self.0.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Wakes all waiting threads, so that they look at the value again.
    pub fn wake_all(&self) {
        // Waking cannot fail on an address that we own.
        let _ = futex::wake(&self.0, futex::Flags::PRIVATE, u32::MAX >> 1);
    }

    /// Waits until `is_reached` is true of the value. Returns false if `deadline` passes first.
    pub fn wait_until(
        &self,
        deadline: Option<Monotonic>,
        is_reached: impl Fn(u32) -> bool,
    ) -> bool {
        loop {
            let value = self.value();
            if is_reached(value) {
                return true;
            }
            let left = match deadline {
                None => None,
                Some(deadline) => {
                    let left = deadline.since(clock::monotonic());
                    if left.is_zero() {
                        return false;
                    }
                    Some(clock::timespec(left))
                }
            };
            // The loop looks again whatever this returns (woken, changed, interrupted, timed out).
            let _ = futex::wait(&self.0, futex::Flags::PRIVATE, value, left.as_ref());
        }
    }
}
