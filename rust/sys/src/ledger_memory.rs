//! The memory of a ledger: a mapping of its file, or a copy of what is in the file.

use std::ffi::c_void;
use std::io;
use std::ops::Deref;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

use rustix::mm::{mmap, mmap_anonymous, munmap, MapFlags, ProtFlags};
use vmsnapshot_core::ledger::Ledger;

/// The header and each entry are one page.
const PAGE_BYTES: usize = 4096;

/// Memory that holds a ledger.
///
/// Invariant: `mapping` is a mapping of exactly `Ledger::size_bytes(count)` bytes.
pub(crate) struct LedgerMemory {
    mapping: NonNull<c_void>,
    count: usize,
}

// SAFETY: the mapping is bound to no thread, and everything in it is an atomic.
unsafe impl Send for LedgerMemory {}
// SAFETY: as above. Shared access goes through atomics only.
unsafe impl Sync for LedgerMemory {}

impl LedgerMemory {
    /// Maps a file of `count` filesystems, shared with every process that maps it.
    pub(crate) fn shared(file: BorrowedFd<'_>, count: usize) -> io::Result<LedgerMemory> {
        // MAP_POPULATE: no page fault may happen inside the window.
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
        let mapping = unsafe {
            mmap(
                std::ptr::null_mut(),
                Ledger::size_bytes(count),
                protection,
                flags,
                file,
                0,
            )
        }?;
        Self::of(mapping, count)
    }

    /// Makes memory of this process alone, filled with zeros.
    pub(crate) fn private(count: usize) -> io::Result<LedgerMemory> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: as for `shared`.
        let mapping = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                Ledger::size_bytes(count),
                protection,
                MapFlags::PRIVATE,
            )
        }?;
        Self::of(mapping, count)
    }

    fn of(mapping: *mut c_void, count: usize) -> io::Result<LedgerMemory> {
        let mapping = NonNull::new(mapping).ok_or_else(|| io::Error::other("mmap gave null"))?;
        Ok(LedgerMemory { mapping, count })
    }

    /// Reads one page of the file into the same place of this memory: page 0 is the header.
    ///
    /// # Errors
    /// The kernel's error, or `UnexpectedEof` if the file is shorter.
    pub(crate) fn read_page(&self, file: BorrowedFd<'_>, page: usize) -> io::Result<()> {
        let (memory, offset) = self.page(page)?;
        // SAFETY: the page is inside the mapping, which is writable and lives as long as self. The
        // kernel writes into atomics, where any bytes are valid.
        let read = unsafe { libc::pread(file.as_raw_fd(), memory, PAGE_BYTES, offset) };
        whole_page(read)
    }

    /// Writes one page of this memory to the same place of the file.
    ///
    /// # Errors
    /// The kernel's error, or `UnexpectedEof` if there is no room for the page.
    pub(crate) fn write_page(&self, file: BorrowedFd<'_>, page: usize) -> io::Result<()> {
        let (memory, offset) = self.page(page)?;
        // SAFETY: the page is inside the mapping, which is readable and lives as long as self.
        let written = unsafe { libc::pwrite(file.as_raw_fd(), memory, PAGE_BYTES, offset) };
        whole_page(written)
    }

    /// Returns the address and the size of the mapping.
    pub(crate) fn mapping(&self) -> (*mut c_void, usize) {
        (self.mapping.as_ptr(), Ledger::size_bytes(self.count))
    }

    fn page(&self, page: usize) -> io::Result<(*mut c_void, libc::off_t)> {
        let outside = || io::Error::from(io::ErrorKind::InvalidInput);
        if page > self.count {
            return Err(outside());
        }
        let start = page * PAGE_BYTES;
        let offset = libc::off_t::try_from(start).map_err(|_| outside())?;
        // SAFETY: a ledger of `count` filesystems has `count + 1` pages, so this is inside.
        Ok((unsafe { self.mapping.as_ptr().byte_add(start) }, offset))
    }
}

impl Deref for LedgerMemory {
    type Target = Ledger;

    fn deref(&self) -> &Ledger {
        let pages = std::ptr::slice_from_raw_parts(self.mapping.as_ptr().cast::<()>(), self.count);
        // SAFETY: the mapping is page-aligned, as Ledger is. It lives as long as self and has the
        // size of a Ledger with `count` entries (the invariant). Every field of Ledger is an atomic
        // integer: any bytes are valid, and changes by another process are no data race. If root
        // truncates the file of a shared mapping, an access raises SIGBUS; see `ledger_guard`.
        unsafe { &*(pages as *const Ledger) }
    }
}

impl Drop for LedgerMemory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no reference into it outlives self. A failure to unmap
        // only leaks memory.
        let _ = unsafe { munmap(self.mapping.as_ptr(), Ledger::size_bytes(self.count)) };
    }
}

fn whole_page(transferred: isize) -> io::Result<()> {
    match usize::try_from(transferred) {
        Ok(PAGE_BYTES) => Ok(()),
        Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}
