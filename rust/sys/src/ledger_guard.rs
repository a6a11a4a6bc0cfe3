//! Keeps a watchdog alive whose ledger is truncated.
//!
//! The kernel answers an access to a mapping whose file was truncated with SIGBUS, which ends a
//! process. That must not end a watchdog that holds frozen filesystems. Its handler (see
//! [`faults`](crate::faults)) replaces the mapping with memory that was prepared before, and the access
//! is repeated.

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

/// From now on, if the file of `ledger` is truncated, `spare` takes the place of the mapping, in a process
/// that catches faults. It has one such ledger: the last one counts.
///
/// # Errors
/// `InvalidInput` if the two have different sizes.
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
    Ok(())
}

/// Returns whether the access that failed at `address` is to be repeated: it was to the ledger, and
/// other memory is in its place now. For a signal handler.
pub(crate) fn replaces(address: usize) -> bool {
    let offset = address.wrapping_sub(LEDGER.load(Ordering::SeqCst) as usize);
    offset < SIZE_BYTES.load(Ordering::SeqCst) && replace()
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
