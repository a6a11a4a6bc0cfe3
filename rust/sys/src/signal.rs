//! A number that one thread raises and others wait for: a futex and nothing else.
//!
//! Used inside the window instead of a condition variable: it takes no lock that the waking of
//! sixty threads would queue for, and allocates nothing.

use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::futex;
use vmsnapshot_core::deadlines::Monotonic;

use crate::clock;

/// A number that threads of this process wait on.
#[derive(Debug, Default)]
pub struct Signal(AtomicU32);

impl Signal {
    /// A signal that stands at `value`.
    #[must_use]
    pub const fn new(value: u32) -> Signal {
        Signal(AtomicU32::new(value))
    }

    /// What it stands at.
    #[must_use]
    pub fn value(&self) -> u32 {
        self.0.load(Ordering::SeqCst)
    }

    /// Sets it and wakes all who wait.
    pub fn set(&self, value: u32) {
        self.0.store(value, Ordering::SeqCst);
        self.wake_all();
    }

    /// Adds one, without waking anybody, and returns the sum.
    pub fn add_one(&self) -> u32 {
        self.0.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Wakes all who wait, to look again.
    pub fn wake_all(&self) {
        // Waking an address that we own cannot fail.
        let _ = futex::wake(&self.0, futex::Flags::PRIVATE, u32::MAX >> 1);
    }

    /// Waits until `is_reached` is true of the value. False if `deadline` passed first.
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
            // Whatever it answers (woken, changed, interrupted, timed out), the loop looks again.
            let _ = futex::wait(&self.0, futex::Flags::PRIVATE, value, left.as_ref());
        }
    }
}
