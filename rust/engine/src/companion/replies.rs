//! Receives what a companion process replies about the calls that it makes.

use vmsnapshot_core::deadlines::Monotonic;
use vmsnapshot_core::frames::Frame;
use vmsnapshot_sys::channel::{Channel, Received};
use vmsnapshot_sys::{clock, Errno};

use crate::observer::{Observer, INTERRUPTION_TICK};

/// What is known of one call of a companion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reply<T> {
    /// It has returned.
    Returned(T),
    /// It has not returned in time.
    Late,
    /// The process has ended without a reply, and with it every call that was under way. A process
    /// that is killed does not end before its calls have returned.
    Ended,
    /// The channel failed with this error, or carried something else. The call may be under way.
    Lost(Errno),
}

/// The caller has interrupted the run.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Interrupted;

/// Receives the replies about `count` calls. Returns once all are there, at `deadline` at the latest.
/// `understand` returns the index of a call and what it returned, or `None` for a frame that is no
/// reply.
///
/// # Errors
/// [`Interrupted`].
pub(super) fn receive<T: Copy>(
    channel: &Channel,
    count: usize,
    deadline: Monotonic,
    observer: &mut dyn Observer,
    understand: impl Fn(Frame) -> Option<(u32, T)>,
) -> Result<Vec<Reply<T>>, Interrupted> {
    let mut replies = vec![Reply::Late; count];
    let mut returned = 0;
    let instead = loop {
        if returned >= count || clock::monotonic() >= deadline {
            break Reply::Late;
        }
        let tick = clock::monotonic().plus(INTERRUPTION_TICK).min(deadline);
        match channel.receive(tick) {
            // The process could not begin. It closes the channel now.
            Ok(Received::Frame(Frame::Failed { .. }, _)) => {}
            Ok(Received::Frame(frame, _)) => {
                let understood = understand(frame).and_then(|(index, value)| {
                    Some((replies.get_mut(usize::try_from(index).ok()?)?, value))
                });
                let Some((reply, value)) = understood else {
                    break Reply::Lost(Errno::BADMSG);
                };
                *reply = Reply::Returned(value);
                returned += 1;
            }
            Err(Errno::TIMEDOUT) if observer.is_interrupted() => return Err(Interrupted),
            Err(Errno::TIMEDOUT) => {}
            // The last thread is gone, so no call is under way any more.
            Ok(Received::Closed) => break Reply::Ended,
            Err(errno) => break Reply::Lost(errno),
        }
    };
    let has_returned = |reply: &Reply<T>| matches!(reply, Reply::Returned(_));
    for reply in replies.iter_mut().filter(|reply| !has_returned(reply)) {
        *reply = instead;
    }
    Ok(replies)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::time::Duration;

    use rustix::io::write;

    use super::*;
    use crate::observer::Silent;

    /// Receives the replies about two calls, of which the second has returned 7, after `script` has
    /// sent more as the companion.
    fn replies(script: impl FnOnce(Channel) -> Option<Channel>) -> Vec<Reply<u32>> {
        let (ours, theirs) = Channel::pair().unwrap();
        let companion = Channel::from_descriptor(theirs);
        let answer = Frame::Answer { index: 1, value: 7 };
        companion.send(answer, &[]).unwrap();
        let _companion = script(companion);
        let deadline = clock::monotonic().plus(Duration::from_millis(50));
        receive(&ours, 2, deadline, &mut Silent, |frame| match frame {
            Frame::Answer { index, value } => Some((index, value)),
            _ => None,
        })
        .unwrap()
    }

    #[test]
    fn call_without_a_reply_is_late_ended_or_lost_and_never_taken_for_returned() {
        let second = Reply::Returned(7);
        assert_eq!(replies(Some), [Reply::Late, second]);
        assert_eq!(replies(|_| None), [Reply::Ended, second]);
        let failed = |companion: Channel| {
            companion.send(Frame::Failed { errno: 12 }, &[]).unwrap();
            None
        };
        assert_eq!(replies(failed), [Reply::Ended, second]);
        for frame in [Frame::Armed, Frame::Answer { index: 2, value: 1 }] {
            let wrong = |companion: Channel| {
                companion.send(frame, &[]).unwrap();
                Some(companion)
            };
            assert_eq!(replies(wrong), [Reply::Lost(Errno::BADMSG), second]);
        }
        let no_frame = |companion: Channel| {
            write(companion.descriptor(), b"?").unwrap();
            Some(companion)
        };
        assert_eq!(replies(no_frame), [Reply::Lost(Errno::BADMSG), second]);
    }
}
