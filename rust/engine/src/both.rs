//! Waits for two futures at once.

use std::future::{poll_fn, Future};
use std::pin::pin;
use std::task::Poll;

/// Waits for `work` or for `end`, whichever comes first.
pub(crate) async fn first_of(work: impl Future<Output = ()>, end: impl Future<Output = ()>) {
    let (mut work, mut end) = (pin!(work), pin!(end));
    poll_fn(|context| {
        if work.as_mut().poll(context).is_ready() {
            Poll::Ready(())
        } else {
            end.as_mut().poll(context)
        }
    })
    .await;
}

/// Waits until both have ended.
pub(crate) async fn both(first: impl Future<Output = ()>, second: impl Future<Output = ()>) {
    let (mut first, mut second) = (pin!(first), pin!(second));
    let (mut has_first_ended, mut has_second_ended) = (false, false);
    poll_fn(|context| {
        has_first_ended = has_first_ended || first.as_mut().poll(context).is_ready();
        has_second_ended = has_second_ended || second.as_mut().poll(context).is_ready();
        if has_first_ended && has_second_ended {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
}
