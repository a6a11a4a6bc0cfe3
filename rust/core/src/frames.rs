//! The messages between a run and its companion processes: fixed-size frames on a packet socket.
//!
//! Everything urgent is in the ledger. The frames only pass descriptors and say when a step is
//! done.

/// The size of every frame.
pub const FRAME_BYTES: usize = 12;

/// One message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Run to watchdog: this frame carries the ledger, the lock of the run, its pidfd (if
    /// `has_pidfd`) and the descriptor of `rcu_expedited` (if `has_rcu`). The descriptors of
    /// `directories` directories follow in other frames.
    Hello {
        /// How many filesystems there are.
        directories: u32,
        /// Whether a pidfd of the run is among the descriptors.
        has_pidfd: bool,
        /// Whether a descriptor of `/sys/kernel/rcu_expedited` is among the descriptors.
        has_rcu: bool,
    },
    /// Run to companion: this frame carries the descriptors of the next directories.
    Directories {
        /// How many descriptors this frame carries.
        count: u32,
    },
    /// Watchdog to run: the watchdog has received everything.
    Ready {
        /// Whether it runs in a control group of its own.
        own_control_group: bool,
    },
    /// Run to watchdog: the ledger has a deadline, and it applies from now on.
    Arm,
    /// Watchdog to run: the watchdog is armed. Only this frame permits the run to freeze.
    Armed,
    /// Run to watchdog: the window is over.
    Release,
    /// Watchdog to run: the watchdog has ended the window too. This is its last frame.
    Released {
        /// The peak resident memory of the watchdog.
        peak_memory_kib: u32,
    },
    /// Companion to run: `syncfs` of a directory returned.
    Synced {
        /// The index of the directory.
        index: u32,
        /// 0, or the error number.
        errno: u32,
    },
    /// Companion to run: the kernel answered a question about a directory.
    Answer {
        /// The index of the directory.
        index: u32,
        /// What it answered: 0 is no.
        value: u32,
    },
    /// Companion to run: the kernel refused to answer a question about a directory.
    Refused {
        /// The index of the directory.
        index: u32,
        /// The error number.
        errno: u32,
    },
    /// Companion to run: the companion could not begin.
    Failed {
        /// The error number, or 0 if the system gave none.
        errno: u32,
    },
}

/// The most descriptors in one `Directories` frame (the kernel accepts 253 at most).
pub const DIRECTORIES_PER_FRAME: usize = 128;

impl Frame {
    /// Returns the bytes of the frame.
    #[must_use]
    pub fn encode(self) -> [u8; FRAME_BYTES] {
        let (kind, first, second) = match self {
            Frame::Hello {
                directories,
                has_pidfd,
                has_rcu,
            } => (
                1,
                directories,
                u32::from(has_pidfd) | u32::from(has_rcu) << 1,
            ),
            Frame::Directories { count } => (2, count, 0),
            Frame::Ready { own_control_group } => (3, u32::from(own_control_group), 0),
            Frame::Arm => (4, 0, 0),
            Frame::Armed => (5, 0, 0),
            Frame::Release => (6, 0, 0),
            Frame::Released { peak_memory_kib } => (7, peak_memory_kib, 0),
            Frame::Synced { index, errno } => (8, index, errno),
            Frame::Failed { errno } => (9, errno, 0),
            Frame::Answer { index, value } => (10, index, value),
            Frame::Refused { index, errno } => (11, index, errno),
        };
        let mut bytes = [0; FRAME_BYTES];
        let words = [kind, first, second].map(u32::to_le_bytes);
        for (place, byte) in bytes.iter_mut().zip(words.as_flattened()) {
            *place = *byte;
        }
        bytes
    }

    /// Decodes a frame. `None` if `bytes` are not a frame.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Frame> {
        let bytes: &[u8; FRAME_BYTES] = bytes.try_into().ok()?;
        let (words, _) = bytes.as_chunks::<4>();
        let [kind, first, second] = words else {
            return None;
        };
        let [kind, first, second] = [kind, first, second].map(|word| u32::from_le_bytes(*word));
        match (kind, first, second) {
            (1, directories, flags @ 0..=3) => Some(Frame::Hello {
                directories,
                has_pidfd: flags & 1 == 1,
                has_rcu: flags & 2 == 2,
            }),
            (2, count, 0) => Some(Frame::Directories { count }),
            (3, own @ 0..=1, 0) => Some(Frame::Ready {
                own_control_group: own == 1,
            }),
            (4, 0, 0) => Some(Frame::Arm),
            (5, 0, 0) => Some(Frame::Armed),
            (6, 0, 0) => Some(Frame::Release),
            (7, peak_memory_kib, 0) => Some(Frame::Released { peak_memory_kib }),
            (8, index, errno) => Some(Frame::Synced { index, errno }),
            (9, errno, 0) => Some(Frame::Failed { errno }),
            (10, index, value) => Some(Frame::Answer { index, value }),
            (11, index, errno) => Some(Frame::Refused { index, errno }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frames() -> impl Strategy<Value = Frame> {
        prop_oneof![
            (any::<u32>(), any::<bool>(), any::<bool>()).prop_map(
                |(directories, has_pidfd, has_rcu)| Frame::Hello {
                    directories,
                    has_pidfd,
                    has_rcu
                }
            ),
            any::<u32>().prop_map(|count| Frame::Directories { count }),
            any::<bool>().prop_map(|own_control_group| Frame::Ready { own_control_group }),
            any::<u32>().prop_map(|errno| Frame::Failed { errno }),
            Just(Frame::Arm),
            Just(Frame::Armed),
            Just(Frame::Release),
            any::<u32>().prop_map(|peak_memory_kib| Frame::Released { peak_memory_kib }),
            (any::<u32>(), any::<u32>()).prop_map(|(index, errno)| Frame::Synced { index, errno }),
            (any::<u32>(), any::<u32>()).prop_map(|(index, value)| Frame::Answer { index, value }),
            (any::<u32>(), any::<u32>()).prop_map(|(index, errno)| Frame::Refused { index, errno }),
        ]
    }

    proptest! {
        #[test]
        fn decode_of_encode_is_the_same_frame(frame in frames()) {
            prop_assert_eq!(Frame::decode(&frame.encode()), Some(frame));
        }

        #[test]
        fn bytes_that_decode_are_the_bytes_of_that_frame(bytes in any::<[u8; FRAME_BYTES]>()) {
            if let Some(frame) = Frame::decode(&bytes) {
                prop_assert_eq!(frame.encode(), bytes);
            }
        }
    }
}
