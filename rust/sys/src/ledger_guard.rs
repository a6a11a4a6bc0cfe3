//! Keeps a watchdog alive whose ledger is truncated.
//!
//! The kernel answers an access to a mapping whose file was truncated with SIGBUS, which ends a
//! process. That must not end a watchdog that holds frozen filesystems. Its handler replaces the
//! mapping with memory that was prepared before, and the access is repeated. Only the watchdog installs
//! this handler. A run is part of the caller's process, whose signal handlers belong to the caller.

use std::ffi::c_void;
use std::io;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};

use crate::ledger_file::{LedgerCopy, LedgerFile};

/// The mapping of the ledger.
static LEDGER: AtomicPtr<c_void> = AtomicPtr::new(null_mut());
/// The memory that takes its place.
static SPARE: AtomicPtr<c_void> = AtomicPtr::new(null_mut());
/// The size of each.
static SIZE_BYTES: AtomicUsize = AtomicUsize::new(0);
static STATE: AtomicU32 = AtomicU32::new(WHOLE);
const WHOLE: u32 = 0;
const BEING_REPLACED: u32 = 1;
const REPLACED: u32 = 2;

/// Lets SIGBUS through to this thread and the threads that it starts. If a thread blocks it, an access
/// that fails ends the process, whatever handler there is.
pub fn let_bus_errors_through() {
    // SAFETY: sigset_t is plain data, and sigemptyset fills it in. All pointers are to live values.
    unsafe {
        let mut bus_error: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut bus_error);
        libc::sigaddset(&raw mut bus_error, libc::SIGBUS);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const bus_error, null_mut());
    }
}

/// From now on, if the file of `ledger` is truncated, `spare` takes the place of the mapping. A process
/// has one such ledger: the last one counts.
///
/// # Errors
/// `InvalidInput` if the two have different sizes, or the kernel's error.
pub fn replace_when_truncated(ledger: &LedgerFile, spare: LedgerCopy) -> io::Result<()> {
    let (place, size_bytes) = ledger.mapping();
    let (memory, spare_bytes) = spare.into_mapping();
    if size_bytes != spare_bytes {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    LEDGER.store(place, Ordering::SeqCst);
    SPARE.store(memory, Ordering::SeqCst);
    SIZE_BYTES.store(size_bytes, Ordering::SeqCst);
    STATE.store(WHOLE, Ordering::SeqCst);
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut c_void) = on_bus_error;
    // SAFETY: sigaction is plain data. The handler has the signature that SA_SIGINFO asks for, and
    // calls only what a signal handler may call.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as *const () as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&raw mut action.sa_mask);
        match libc::sigaction(libc::SIGBUS, &raw const action, null_mut()) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

extern "C" fn on_bus_error(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
    // SAFETY: the kernel gives a handler with SA_SIGINFO a live siginfo_t. The address is read as a
    // number.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    // A code of 0 or less is that of a signal that a process sent. No access has failed.
    if code <= 0 {
        return;
    }
    let offset = address.wrapping_sub(LEDGER.load(Ordering::SeqCst) as usize);
    if code != libc::BUS_ADRERR || offset >= SIZE_BYTES.load(Ordering::SeqCst) || !replace() {
        // The access is made again, and ends the process.
        // SAFETY: the default action is a valid action.
        unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
    }
}

/// Puts the spare memory in the ledger's place, once. Returns whether it is there.
fn replace() -> bool {
    let state = STATE.compare_exchange(WHOLE, BEING_REPLACED, Ordering::SeqCst, Ordering::SeqCst);
    if state.is_err() {
        // Another thread does it, or has done it.
        while STATE.load(Ordering::SeqCst) == BEING_REPLACED {
            // SAFETY: it takes no argument.
            unsafe { libc::sched_yield() };
        }
        return true;
    }
    let size_bytes = SIZE_BYTES.load(Ordering::SeqCst);
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    // SAFETY: both ranges are mappings of this size that are ours. No thread sees a moment without
    // one: an access in between waits in the kernel. Both hold a Ledger, of which any bytes are valid.
    let moved = unsafe {
        libc::mremap(
            SPARE.load(Ordering::SeqCst),
            size_bytes,
            size_bytes,
            flags,
            LEDGER.load(Ordering::SeqCst),
        )
    };
    STATE.store(REPLACED, Ordering::SeqCst);
    moved != libc::MAP_FAILED
}
