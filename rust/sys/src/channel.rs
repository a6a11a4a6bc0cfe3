//! One end of the packet socket between a run and a companion process: frames and descriptors.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{poll, PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{
    recvmsg, sendmsg, shutdown, socketpair, AddressFamily, RecvAncillaryBuffer,
    RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    Shutdown, SocketFlags, SocketType,
};
use vmsnapshot_core::deadlines::Monotonic;
use vmsnapshot_core::frames::{Frame, DIRECTORIES_PER_FRAME, FRAME_BYTES};

use crate::clock;

/// One end of a channel. When it is dropped, the other end receives [`Received::Closed`].
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl Drop for Channel {
    fn drop(&mut self) {
        // Closing is not enough: a forked child of this process may hold a copy of the descriptor.
        let _ = shutdown(&self.0, Shutdown::Both);
    }
}

/// What was received from the other end.
#[derive(Debug)]
pub enum Received {
    /// A frame and the descriptors that came with it.
    Frame(Frame, Vec<OwnedFd>),
    /// The other end is closed.
    Closed,
}

impl Channel {
    /// Returns both ends of a new channel. Both are closed on exec.
    ///
    /// # Errors
    /// The kernel's error.
    pub fn pair() -> Result<(Channel, OwnedFd), Errno> {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok((Channel(ours), theirs))
    }

    /// Makes a channel from the end that this process was given.
    #[must_use]
    pub fn from_descriptor(descriptor: OwnedFd) -> Channel {
        Channel(descriptor)
    }

    /// Returns the descriptor, so that the caller can wait on it.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Sends a frame with descriptors (at most [`DIRECTORIES_PER_FRAME`]).
    ///
    /// *Blocking*: never. A full socket is an error; our sockets hold a few frames at most.
    ///
    /// # Errors
    /// The kernel's error: EPIPE if the other end is closed.
    pub fn send(&self, frame: Frame, descriptors: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        self.send_with(
            frame,
            descriptors,
            SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
        )
    }

    /// Sends a frame, and waits while the socket is full.
    ///
    /// *Blocking*: until the other end reads or is closed.
    ///
    /// # Errors
    /// The kernel's error: EPIPE if the other end is closed.
    pub fn send_patiently(&self, frame: Frame) -> Result<(), Errno> {
        self.send_with(frame, &[], SendFlags::NOSIGNAL)
    }

    fn send_with(
        &self,
        frame: Frame,
        descriptors: &[BorrowedFd<'_>],
        flags: SendFlags,
    ) -> Result<(), Errno> {
        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DIRECTORIES_PER_FRAME))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors))
        {
            return Err(Errno::TOOBIG);
        }
        let bytes = frame.encode();
        sendmsg(&self.0, &[IoSlice::new(&bytes)], &mut ancillary, flags).map(|_| ())
    }

    /// Sends the descriptors of directories in order, in as many frames as they need.
    ///
    /// # Errors
    /// The kernel's error: EPIPE if the other end is closed.
    pub fn send_directories(&self, directories: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        for batch in directories.chunks(DIRECTORIES_PER_FRAME) {
            let count = u32::try_from(batch.len()).map_err(|_| Errno::TOOBIG)?;
            self.send(Frame::Directories { count }, batch)?;
        }
        Ok(())
    }

    /// Waits for the next frame until `deadline`.
    ///
    /// # Errors
    /// ETIMEDOUT after the deadline, EBADMSG for bytes that are not a frame, or the kernel's error.
    pub fn receive(&self, deadline: Monotonic) -> Result<Received, Errno> {
        loop {
            let left = deadline.since(clock::monotonic());
            if left.is_zero() {
                return Err(Errno::TIMEDOUT);
            }
            let mut waiting = [PollFd::new(&self.0, PollFlags::IN)];
            match poll(&mut waiting, Some(&clock::timespec(left))) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return self.receive_now(),
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Returns the frame that has arrived, without waiting for one.
    ///
    /// # Errors
    /// EAGAIN if none has arrived, EBADMSG for bytes that are not a frame, or the kernel's error.
    pub fn receive_now(&self) -> Result<Received, Errno> {
        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DIRECTORIES_PER_FRAME))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = [0; FRAME_BYTES];
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let message = loop {
            let mut slices = [IoSliceMut::new(&mut bytes)];
            match recvmsg(&self.0, &mut slices, &mut ancillary, flags) {
                // The other end was closed with unread frames of ours in its socket. The kernel says
                // so once, and before what the other end had sent.
                Err(Errno::CONNRESET) => {}
                result => break result?,
            }
        };
        if message.bytes == 0 {
            return Ok(Received::Closed);
        }
        let mut descriptors = Vec::new();
        for part in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = part {
                descriptors.extend(received);
            }
        }
        let frame = bytes
            .get(..message.bytes)
            .and_then(Frame::decode)
            .ok_or(Errno::BADMSG)?;
        Ok(Received::Frame(frame, descriptors))
    }
}
