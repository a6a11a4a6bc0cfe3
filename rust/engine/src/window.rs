//! The window: freeze, call, thaw. Read it from top to bottom.
//!
//! Nothing is opened, resolved, written, logged or started here; Python does not exist here. What
//! happens is in the ledger and in the answers, and is made sense of afterwards.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use vmsnapshot_core::blob::may_retry_in_window;
use vmsnapshot_core::deadlines::{Deadlines, Monotonic};
use vmsnapshot_sys::clock;
use vmsnapshot_sys::ledger_file::LedgerFile;

use crate::connect::{Connection, PreparedRequest, RawAnswer, SendFailure, WarmConnection};
use crate::freezers::Freezers;
use crate::rcu::Rcu;
use crate::watchdog::ArmedWatchdog;

/// How long the rest of an answer may take whose connection is to carry the second attempt: what
/// takes longer is left, and the attempt goes over a connection of its own.
const REUSE_LIMIT: Duration = Duration::from_millis(20);

/// One snapshot request on its open connection.
pub(crate) struct Call {
    pub(crate) connection: WarmConnection,
    pub(crate) request: PreparedRequest,
    /// The same request for a second attempt, made before the window.
    pub(crate) again: PreparedRequest,
}

/// What became of one call, unjudged.
pub(crate) struct CallRecord {
    pub(crate) attempts: u32,
    pub(crate) sent_at: Monotonic,
    pub(crate) ended_at: Monotonic,
    pub(crate) result: Result<RawAnswer, SendFailure>,
    /// Whether the result is a second attempt's, and the first may have made a snapshot.
    pub(crate) first_was_lost: bool,
    /// Held until the body is read; and closing it is nothing for the window.
    _connection: Connection,
}

/// What happened in a window, beside what the ledger says.
pub(crate) struct WindowRecord {
    /// Whether grace periods were expedited.
    pub(crate) rcu_expedited: bool,
    /// Whether every filesystem was frozen, and the requests were sent.
    pub(crate) froze_all: bool,
    /// Whether the watchdog went away while something was frozen.
    pub(crate) watchdog_lost: bool,
    /// A call each, in the order of the blobs; none for one that had not ended when the waiting
    /// ended. Empty when nothing was sent.
    pub(crate) calls: Vec<Option<CallRecord>>,
    /// When everything was thawed that we could thaw.
    pub(crate) ended_at: Monotonic,
}

impl WindowRecord {
    /// Reads what is missing of the answers' bodies, after the thaw.
    pub(crate) async fn read_bodies(&mut self, limit: Duration) {
        let deadline = Instant::now() + limit;
        for call in self.calls.iter_mut().flatten() {
            if let Ok(answer) = &mut call.result {
                answer.read_body(deadline).await;
            }
        }
    }
}

/// What the window works with: all of it made, opened and armed before.
pub(crate) struct Prepared<'a> {
    pub(crate) watchdog: &'a ArmedWatchdog,
    pub(crate) deadlines: Deadlines,
    pub(crate) ledger: &'a Arc<LedgerFile>,
    pub(crate) levels: &'a [u32],
    pub(crate) freezers: &'a Freezers,
    pub(crate) rcu: &'a Rcu,
    pub(crate) runtime: &'a Runtime,
    pub(crate) calls: Vec<Call>,
}

/// Freezes, sends every request at once, waits until `call_by`, and thaws.
///
/// *Blocking*: until `thaw_by` at most, whatever hangs.
pub(crate) fn open(prepared: Prepared<'_>) -> WindowRecord {
    let Prepared {
        watchdog,
        deadlines,
        ledger,
        levels,
        freezers,
        rcu,
        runtime,
        calls,
    } = prepared;
    let expedited = rcu.expedite(ledger);
    let thaw_on_return = ThawOnReturn {
        freezers,
        levels,
        deadlines,
    };

    // A run that was stopped, or whose last freeze came too late, sends nothing: nobody would wait
    // for the answers, and the watchdog may have thawed.
    let froze_all = freeze(freezers, levels, deadlines.call_by)
        && clock::monotonic() < deadlines.call_by
        && ledger.header.fired().is_none();
    let mut record = WindowRecord {
        rcu_expedited: expedited.is_on(),
        froze_all,
        watchdog_lost: false,
        calls: Vec::new(),
        ended_at: deadlines.start,
    };
    if froze_all {
        (record.calls, record.watchdog_lost) =
            runtime.block_on(call_all(calls, watchdog.end(), deadlines.call_by));
    }
    thaw_on_return.thaw(froze_all);

    record.ended_at = clock::monotonic();
    drop(expedited);
    record
}

/// Freezes level by level, in parallel within a level. False as soon as one cannot be frozen.
fn freeze(freezers: &Freezers, levels: &[u32], deadline: Monotonic) -> bool {
    for level in 0..freezers.level_count() {
        let so_far = levels.iter().filter(|other| **other <= level).count();
        let expected = u32::try_from(so_far).unwrap_or(u32::MAX);
        if !freezers.freeze_level(level, expected, deadline) {
            return false;
        }
    }
    true
}

/// Thaws when the window ends in any way, a panic included.
struct ThawOnReturn<'a> {
    freezers: &'a Freezers,
    levels: &'a [u32],
    deadlines: Deadlines,
}

impl ThawOnReturn<'_> {
    fn thaw(self, in_order: bool) {
        self.freezers
            .thaw(self.levels, in_order, self.deadlines.thaw_by);
        std::mem::forget(self);
    }
}

impl Drop for ThawOnReturn<'_> {
    fn drop(&mut self) {
        self.freezers
            .thaw(self.levels, false, self.deadlines.thaw_by);
    }
}

/// Sends every request at once; waits for all answers, until `call_by`, or until the watchdog is
/// gone (a window has two who can thaw, or it ends). Says what became of each, and of the watchdog.
async fn call_all(
    calls: Vec<Call>,
    watchdog: &UnixStream,
    call_by: Monotonic,
) -> (Vec<Option<CallRecord>>, bool) {
    let count = calls.len();
    let mut records: Vec<Option<CallRecord>> = Vec::with_capacity(count);
    records.resize_with(count, || None);
    let deadline = Instant::now() + call_by.since(clock::monotonic());
    let mut running = JoinSet::new();
    for (index, call) in calls.into_iter().enumerate() {
        running.spawn(async move { (index, call.send(deadline).await) });
    }
    let all_ended = async {
        while let Some(ended) = running.join_next().await {
            if let Ok((index, record)) = ended {
                if let Some(place) = records.get_mut(index) {
                    *place = Some(record);
                }
            }
        }
    };
    let watchdog_lost = async {
        // An armed watchdog says nothing before it is released: what can be read is its end.
        if watchdog.readable().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    let is_lost = first_of(all_ended, watchdog_lost).await;
    (records, is_lost)
}

/// Waits for `work`, or for `end` if that comes first: then true.
async fn first_of(work: impl Future<Output = ()>, end: impl Future<Output = ()>) -> bool {
    let (mut work, mut end) = (std::pin::pin!(work), std::pin::pin!(end));
    std::future::poll_fn(|context| {
        if work.as_mut().poll(context).is_ready() {
            std::task::Poll::Ready(false)
        } else {
            end.as_mut().poll(context).map(|()| true)
        }
    })
    .await
}

impl Call {
    /// Sends the request, and once more if that may help: no back-off, and never after `deadline`.
    async fn send(self, deadline: Instant) -> CallRecord {
        let Call {
            connection:
                WarmConnection {
                    dialer,
                    mut connection,
                },
            request,
            again,
        } = self;
        let sent_at = clock::monotonic();
        let mut attempts = 1;
        let mut first_was_lost = false;
        let mut result = connection.send(request, deadline).await;
        let may_try_again = match &mut result {
            Ok(answer) if may_retry_in_window(answer.status) => {
                // A connection takes the next request when the answer has been read from it.
                let limit = Instant::now() + REUSE_LIMIT;
                answer.read_body(limit.min(deadline)).await;
                true
            }
            Ok(_) => false,
            Err(SendFailure::NotSent { .. }) => {
                attempts = 0;
                true
            }
            Err(SendFailure::Lost { .. }) => true,
            Err(SendFailure::BadAnswer { .. } | SendFailure::NoAnswer) => false,
        };
        if may_try_again {
            let is_reusable = result.as_ref().is_ok_and(|answer| answer.complete);
            // The address is resolved and the trust roots are loaded: a socket is opened, no file.
            let is_connected = (is_reusable && connection.is_open())
                || match dialer.dial(deadline).await {
                    Ok(fresh) => {
                        connection = fresh;
                        true
                    }
                    Err(_) => false,
                };
            if is_connected && Instant::now() < deadline {
                match connection.send(again, deadline).await {
                    // The first attempt's result says more.
                    Err(SendFailure::NotSent { .. }) => {}
                    second => {
                        attempts += 1;
                        first_was_lost = matches!(result, Err(SendFailure::Lost { .. }));
                        result = second;
                    }
                }
            }
        }
        CallRecord {
            attempts,
            sent_at,
            ended_at: clock::monotonic(),
            result,
            first_was_lost,
            _connection: connection,
        }
    }
}
