//! What a thread does after a fault in it: the duty that it named before.
//!
//! A fault (SIGSEGV, SIGBUS, SIGILL, SIGFPE, abort, a stack that is full) ends a process. That must not
//! end a watchdog that holds frozen filesystems. Only the watchdog installs these handlers. A run is part
//! of the caller's process, whose signal handlers belong to the caller.

use std::cell::Cell;
use std::ffi::c_void;
use std::io;
use std::ptr::null_mut;

use crate::ledger_guard;

const FAULTS: [libc::c_int; 5] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGFPE,
    libc::SIGABRT,
];
/// The size of the stack for a duty, as the thread's own may be full. The one that Rust's standard
/// library gives a thread has 8 KiB. Two signals already fill it on a processor with wide registers,
/// which the kernel saves there.
const STACK_BYTES: usize = 32 * 1024;

thread_local! {
    // It needs no initialisation and no destructor, so a handler may read it at any time.
    static DUTY: Cell<Option<&'static (dyn Fn() + Sync)>> = const { Cell::new(None) };
}

/// Installs the handlers, and lets the signals of faults through to this thread and the threads that it
/// starts. If a thread blocks them, a fault ends the process, whatever handler there is.
///
/// From now on such a signal that a process sends has no effect. A fault in a thread without a duty ends
/// the process, as before.
///
/// # Errors
/// The kernel's error.
pub fn catch() -> io::Result<()> {
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut c_void) = on_signal;
    // SAFETY: sigaction is plain data, and all pointers are to live values. The handler has the
    // signature that SA_SIGINFO asks for, and itself calls only what a signal handler may call; for the
    // duty, see `on_fault`.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
        // Without this, the handlers of signals that are sent together fill the stack.
        action.sa_mask = set_of(&FAULTS);
        for signal in FAULTS {
            if libc::sigaction(signal, &raw const action, null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    let_through(&FAULTS);
    Ok(())
}

/// After a fault in this thread, `duty` is done in its place, in the signal handler. When the duty
/// returns, the process ends. A second fault, in the duty, ends it at once. The stack for
/// the duty is never freed, so a thread calls this once.
///
/// The thread can have been anywhere, also in the allocator. So the duty allocates nothing, frees
/// nothing and takes no lock that another part of the thread takes. It reads atomics and makes system
/// calls. The type asks for `Sync` because the thread that was interrupted is like another thread.
pub fn on_fault(duty: &'static (dyn Fn() + Sync)) {
    let stack = libc::stack_t {
        ss_sp: Box::leak(vec![0_u8; STACK_BYTES].into_boxed_slice())
            .as_mut_ptr()
            .cast(),
        ss_flags: 0,
        ss_size: STACK_BYTES,
    };
    // If this failed, the thread would keep the stack of the standard library.
    // SAFETY: the memory is never freed, and nothing else uses it. No handler runs on the old stack:
    // this is not one.
    unsafe { libc::sigaltstack(&raw const stack, null_mut()) };
    DUTY.set(Some(duty));
}

fn set_of(signals: &[libc::c_int]) -> libc::sigset_t {
    // SAFETY: sigset_t is plain data, and the pointer is to a live value, which sigemptyset fills in.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in signals {
            libc::sigaddset(&raw mut set, *signal);
        }
        set
    }
}

fn let_through(signals: &[libc::c_int]) {
    let set = set_of(signals);
    // SAFETY: the pointer is to a live set. The call fails only for a wrong first argument.
    unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, null_mut()) };
}

extern "C" fn on_signal(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
    // SAFETY: the kernel gives a handler with SA_SIGINFO a live siginfo_t. Its fields are plain data.
    let (code, address, sender) = unsafe {
        (
            (*info).si_code,
            (*info).si_addr() as usize,
            (*info).si_pid(),
        )
    };
    // abort() sends the signal to its own thread.
    // SAFETY: getpid has no precondition.
    let is_abort =
        signal == libc::SIGABRT && code == libc::SI_TKILL && sender == unsafe { libc::getpid() };
    // A code of 0 or less is that of a signal that a process sent. Then there was no fault.
    if code <= 0 && !is_abort {
        return;
    }
    if signal == libc::SIGBUS && code == libc::BUS_ADRERR && ledger_guard::replaces(address) {
        return;
    }
    if let Some(duty) = DUTY.get() {
        // The ledger can be truncated at this time as well.
        let_through(&[libc::SIGBUS]);
        duty();
        // SAFETY: it ends the process without running anything of ours.
        unsafe { libc::_exit(1) }
    }
    // What failed is done again, and ends the process.
    // SAFETY: the default action is a valid action.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;
    use std::sync::mpsc::{channel, Sender};
    use std::time::Duration;

    use super::*;

    /// Returns whether a thread that calls `fault` does its duty.
    fn does_its_duty(fault: impl FnOnce() + Send + 'static) -> bool {
        let (sender, receiver) = channel();
        std::thread::spawn(move || {
            catch().expect("handlers can be installed");
            let duty = move || done(&sender);
            on_fault(Box::leak(Box::new(duty)));
            fault();
        });
        receiver.recv_timeout(Duration::from_secs(10)).is_ok()
    }

    fn done(sender: &Sender<()>) {
        let _ = sender.send(());
        loop {
            std::thread::sleep(Duration::from_secs(60));
        }
    }

    #[test]
    fn thread_that_aborts_does_its_duty() {
        assert!(does_its_duty(|| std::process::abort()));
    }

    #[test]
    fn thread_whose_stack_is_full_does_its_duty() {
        #[expect(unconditional_recursion, reason = "the test")]
        fn fill(stack: &[u8; 256]) -> u8 {
            let more = black_box([stack[0]; 256]);
            fill(&more).wrapping_add(more[0])
        }
        assert!(does_its_duty(|| {
            black_box(fill(&[0; 256]));
        }));
    }
}
