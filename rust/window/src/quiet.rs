//! Blocks signals and silences panics while a run may have something frozen.

use vmsnapshot_core::ledger::Ledger;
use vmsnapshot_sys::process;

/// While it lives, no signal ends this thread and no panic prints anything.
///
/// The file that standard error goes to may be on a frozen filesystem. A panic that prints there
/// waits in the kernel, and does not thaw (measured: until the rescue 3 s later).
pub struct Quiet {
    mask: process::SignalMask,
    /// `None` once it was put back, or has to stay away.
    hook: Option<PanicHook>,
}

type PanicHook = Box<dyn Fn(&std::panic::PanicHookInfo<'_>) + Sync + Send + 'static>;

impl Quiet {
    /// Begins it, for this thread's signals and for the panics of the whole process.
    #[must_use]
    pub fn begin() -> Quiet {
        let mask = process::block_signals();
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        Quiet {
            mask,
            hook: Some(hook),
        }
    }

    /// Ends it, once the watchdog is released.
    ///
    /// If something of `ledger` may still be frozen, panics stay silent for the rest of the process:
    /// a freeze thread goes on calling FITHAW, and its panic must not wait for the disk that it is to
    /// thaw. Signals are let through all the same. One that ends this process is a reason for the
    /// watchdog to thaw.
    pub fn end(mut self, ledger: &Ledger) {
        if ledger.may_be_frozen() {
            self.hook = None;
        }
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        if let Some(hook) = self.hook.take() {
            // Setting a hook panics in a thread that is panicking.
            if !std::thread::panicking() {
                std::panic::set_hook(hook);
            }
        }
        process::restore_signals(&self.mask);
    }
}
