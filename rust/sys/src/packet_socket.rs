//! A packet socket of the caller's, to which the run writes without asking the caller.

use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

use rustix::io::Errno;
use rustix::net::{send, SendFlags};

/// Our own descriptor of the caller's socket.
#[derive(Debug)]
pub struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// Duplicates the descriptor `number` of this process.
    ///
    /// # Errors
    /// EBADF if it is not open.
    pub fn duplicate_of(number: RawFd) -> Result<Self, Errno> {
        if number < 0 {
            return Err(Errno::BADF);
        }
        // SAFETY: the borrow ends with this call. If the descriptor is not open, the kernel answers EBADF.
        let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
        rustix::io::fcntl_dupfd_cloexec(borrowed, 3).map(Self)
    }

    /// Sends one packet.
    ///
    /// *Blocking*: never.
    ///
    /// # Errors
    /// The kernel's error: EPIPE if the other end is closed.
    pub fn send(&self, packet: &[u8]) -> Result<(), Errno> {
        send(&self.0, packet, SendFlags::NOSIGNAL | SendFlags::DONTWAIT).map(|_| ())
    }
}
