//! The ledger as a file on tmpfs, mapped by the run and by its watchdog.

use std::ffi::c_void;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use rustix::fs::{fallocate, fstat, fstatfs, FallocateFlags};
use rustix::mm::{mmap, munmap, MapFlags, ProtFlags};
use vmsnapshot_core::ledger::{Layout, Ledger};

/// `TMPFS_MAGIC` of linux/magic.h.
pub const TMPFS_MAGIC: u32 = 0x0102_1994;

/// A mapped ledger and the descriptor of its file.
///
/// Invariant: `mapping` is a shared mapping of exactly `Ledger::size_bytes(count)` bytes.
pub struct LedgerFile {
    file: OwnedFd,
    mapping: NonNull<c_void>,
    count: usize,
}

// SAFETY: the mapping is bound to no thread, and everything in it is an atomic.
unsafe impl Send for LedgerFile {}
// SAFETY: as above. Shared access goes through atomics only.
unsafe impl Sync for LedgerFile {}

impl LedgerFile {
    /// Turns the empty `file` into a ledger of `count` filesystems and maps it.
    ///
    /// # Errors
    /// The kernel's error, or `Unsupported` if the file is not on tmpfs: a store into a mapping of
    /// a file on a frozen disk never returns.
    pub fn create(file: OwnedFd, count: usize) -> io::Result<LedgerFile> {
        if u32::try_from(fstatfs(&file)?.f_type) != Ok(TMPFS_MAGIC) {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "the file is not on tmpfs",
            ));
        }
        // ftruncate would reserve no pages. A store into a page that tmpfs has no room for raises
        // SIGBUS.
        let size_bytes = Ledger::size_bytes(count) as u64;
        fallocate(&file, FallocateFlags::empty(), 0, size_bytes)?;
        Self::map(file, count)
    }

    /// Maps a ledger that another process made. That process may have been of another version; see
    /// [`layout`](vmsnapshot_core::ledger::Header::layout).
    ///
    /// # Errors
    /// The kernel's error, or `InvalidData` if the file lacks the size or the mark of a ledger.
    pub fn open(file: OwnedFd) -> io::Result<LedgerFile> {
        let count = usize::try_from(fstat(&file)?.st_size)
            .ok()
            .and_then(Ledger::count_in)
            .ok_or_else(not_a_ledger)?;
        let ledger = Self::map(file, count)?;
        match ledger.header.layout() {
            Layout::Own | Layout::OfAnotherVersion | Layout::Unfinished => Ok(ledger),
            Layout::Unknown => Err(not_a_ledger()),
        }
    }

    /// Returns the descriptor, to be handed to the watchdog.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    fn map(file: OwnedFd, count: usize) -> io::Result<LedgerFile> {
        // MAP_POPULATE: no page fault may happen inside the window.
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
        let mapping = unsafe {
            mmap(
                std::ptr::null_mut(),
                Ledger::size_bytes(count),
                ProtFlags::READ | ProtFlags::WRITE,
                flags,
                &file,
                0,
            )
        }?;
        let mapping = NonNull::new(mapping).ok_or_else(|| io::Error::other("mmap gave null"))?;
        Ok(LedgerFile {
            file,
            mapping,
            count,
        })
    }
}

impl Deref for LedgerFile {
    type Target = Ledger;

    fn deref(&self) -> &Ledger {
        let pages = std::ptr::slice_from_raw_parts(self.mapping.as_ptr().cast::<()>(), self.count);
        // SAFETY: the mapping is page-aligned, as Ledger is. It lives as long as self and has the
        // size of a Ledger with `count` entries (the invariant). Every field of Ledger is an atomic
        // integer: any bytes are valid, and changes by another process are no data race. Truncating
        // the file while it is mapped would make an access fault, but only root can do that.
        unsafe { &*(pages as *const Ledger) }
    }
}

impl Drop for LedgerFile {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no reference into it outlives self. A failure to unmap
        // only leaks memory.
        let _ = unsafe { munmap(self.mapping.as_ptr(), Ledger::size_bytes(self.count)) };
    }
}

fn not_a_ledger() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the file is not a ledger")
}
