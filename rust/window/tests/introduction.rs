//! The run's end of a watchdog that fails, or that answers what it must not.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::io;
use std::time::Duration;

use rustix::fs::{memfd_create, MemfdFlags};
use vmsnapshot_core::frames::Frame;
use vmsnapshot_sys::channel::{Channel, Received};
use vmsnapshot_sys::ledger_file::LedgerFile;
use vmsnapshot_sys::{clock, Errno};
use vmsnapshot_window::watchdog::Watchdog;

const READY: Frame = Frame::Ready {
    own_control_group: false,
};

/// Introduces a watchdog that answers each frame it has to answer with the next of `answers`, and
/// closes its channel after the last.
fn introduce(answers: &'static [Frame]) -> io::Result<Watchdog> {
    let memory = memfd_create("ledger", MemfdFlags::CLOEXEC).unwrap();
    let ledger = LedgerFile::create(memory, 1).unwrap();
    let (ours, theirs) = Channel::pair().unwrap();
    let theirs = Channel::from_descriptor(theirs);
    std::thread::spawn(move || {
        for answer in answers {
            let deadline = clock::monotonic().plus(Duration::from_secs(10));
            while let Ok(Received::Frame(Frame::Hello { .. }, _)) = theirs.receive(deadline) {}
            theirs.send(*answer, &[]).unwrap();
        }
    });
    let directory = ledger.descriptor();
    Watchdog::introduce(ours, &ledger, None, None, &[directory])
}

/// Whether it is the error of a channel whose other end is closed.
fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
    )
}

#[test]
fn introduction_fails_with_the_error_of_the_watchdog() {
    let errno = Errno::MFILE.raw_os_error();
    let error = introduce(&[Frame::Failed { errno: 24 }]).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(errno));
    for answers in [&[Frame::Failed { errno: 0 }], &[Frame::Armed]] {
        let error = introduce(answers).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
    assert!(is_gone(&introduce(&[]).unwrap_err()));
}

#[test]
fn watchdog_that_does_not_answer_is_neither_armed_nor_dismissed() {
    let wrong = || introduce(&[READY, READY]).unwrap();
    assert_eq!(
        wrong().arm().unwrap_err().kind(),
        io::ErrorKind::InvalidData
    );
    assert_eq!(
        wrong().dismiss().unwrap_err().kind(),
        io::ErrorKind::InvalidData
    );
    let gone = || introduce(&[READY]).unwrap();
    assert!(is_gone(&gone().arm().unwrap_err()));
    assert!(is_gone(&gone().dismiss().unwrap_err()));
}
