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

/// One request on its open connection.
pub(crate) struct Call {
    pub(crate) connection: WarmConnection,
    pub(crate) request: PreparedRequest,
    /// The same request for a second attempt, made before the window.
    pub(crate) again: PreparedRequest,
}

impl Call {
    /// Makes the call that sends `request` on `connection`.
    pub(crate) fn new(connection: WarmConnection, request: PreparedRequest) -> Self {
        Self {
            connection,
            again: request.clone(),
            request,
        }
    }
}

/// What became of one call, unjudged.
pub(crate) struct CallRecord {
    pub(crate) attempts: u32,
    pub(crate) sent_at: Monotonic,
    pub(crate) ended_at: Monotonic,
    pub(crate) result: Result<RawAnswer, SendFailure>,
    /// Whether the result is a second attempt's, and the first may have made a snapshot.
    pub(crate) first_was_lost: bool,
    /// Until when its body may take, when the request has a limit of its own.
    body_by: Option<Instant>,
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
    /// A call each, in the order they were given; none for one that had not ended when the waiting
    /// ended. Empty when nothing was sent.
    pub(crate) calls: Vec<Option<CallRecord>>,
    /// When everything was thawed that we could thaw.
    pub(crate) ended_at: Monotonic,
}

impl WindowRecord {
    /// Reads what is missing of the answers' bodies, after the thaw: all of them within `limit`, but
    /// for those whose request has a limit of its own.
    pub(crate) async fn read_bodies(&mut self, limit: Duration) {
        let deadline = Instant::now() + limit;
        for call in self.calls.iter_mut().flatten() {
            if let Ok(answer) = &mut call.result {
                let own = call.body_by.unwrap_or(deadline);
                answer.read_body(deadline.max(own)).await;
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
    /// Sends the request, and once more if that may help: no back-off, and never after `call_by`.
    async fn send(self, call_by: Instant) -> CallRecord {
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
        let body_by = again.own_deadline(Instant::now());
        let deadline = body_by.map_or(call_by, |own| call_by.min(own));
        let mut attempts = 1;
        let mut first_was_lost = false;
        let mut result = connection.send(request, deadline).await;
        if matches!(result, Err(SendFailure::NotSent { .. })) {
            attempts = 0;
        }
        if again.may_follow(&result) {
            if let Ok(answer) = &mut result {
                // A connection takes the next request when the answer has been read from it.
                let limit = Instant::now() + REUSE_LIMIT;
                answer.read_body(limit.min(deadline)).await;
            }
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
            body_by,
            _connection: connection,
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use vmsnapshot_core::blob::{Metadata, OnUnusable, SasUri};
    use vmsnapshot_core::host_call::HostCall;

    use super::*;
    use crate::connect::{connect_all, notice_closes, ConnectOptions, Destination};

    const GOOD: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
    const BUSY: &str = "HTTP/1.1 503 x\r\nContent-Length: 4\r\n\r\nbusy";
    const FAULT: &str = "HTTP/1.1 500 x\r\nContent-Length: 0\r\n\r\n";
    /// Closes the connection instead of answering.
    const CLOSES: &str = "";

    fn run<Output>(test: impl Future<Output = Output>) -> Output {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            tokio::time::timeout(Duration::from_secs(30), test)
                .await
                .unwrap()
        })
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    /// A server that gives the requests it reads these answers, the last one again and again, over
    /// any number of connections; and how many requests it has read.
    fn serve(listener: TcpListener, answers: &'static [&'static str]) -> Arc<AtomicU32> {
        let count = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&count);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let counted = Arc::clone(&counted);
                tokio::spawn(async move {
                    let mut seen = Vec::new();
                    while let Ok(byte) = stream.read_u8().await {
                        seen.push(byte);
                        if !seen.ends_with(b"\r\n\r\n") {
                            continue;
                        }
                        let number = counted.fetch_add(1, Ordering::SeqCst) as usize;
                        let answer = answers.get(number).or(answers.last()).unwrap();
                        if *answer == CLOSES {
                            return;
                        }
                        stream.write_all(answer.as_bytes()).await.unwrap();
                        seen.clear();
                    }
                });
            }
        });
        count
    }

    async fn listen() -> (TcpListener, std::net::SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    async fn call(destination: Destination, request: PreparedRequest) -> Call {
        let options = ConnectOptions {
            ca_file: None,
            proxy: None,
            time_limit: Duration::from_secs(10),
        };
        let connected = connect_all(&[destination], &options, OnUnusable::Refuse).await;
        let connection = connected.unwrap().pop().unwrap().unwrap();
        Call::new(connection, request)
    }

    async fn host_call(address: std::net::SocketAddr, time_limit: Duration) -> Call {
        let uri = format!("http://{address}/dosnapshot");
        let headers = vec![("Backup".to_owned(), "true".to_owned())];
        let prepared = HostCall::new(&uri, headers, Vec::new(), time_limit).unwrap();
        let request = PreparedRequest::host_call(&prepared).unwrap();
        call(Destination::host(&prepared), request).await
    }

    async fn blob_call(address: std::net::SocketAddr) -> Call {
        let uri = SasUri::parse(&format!("http://{address}/c/b?sig=x")).unwrap();
        let request = PreparedRequest::snapshot(&uri, &Metadata::default(), None).unwrap();
        call(Destination::blob(&uri, None), request).await
    }

    fn status(record: &CallRecord) -> Option<u16> {
        record.result.as_ref().ok().map(|answer| answer.status)
    }

    #[test]
    fn host_call_is_sent_again_after_429_and_503_and_after_nothing_else() {
        run(async {
            for (answers, status_at_last, attempts) in [
                (&[GOOD] as &'static [&'static str], Some(200), 1),
                (&[BUSY, GOOD], Some(200), 2),
                (&[BUSY], Some(503), 2),
                (
                    &["HTTP/1.1 429 x\r\nContent-Length: 0\r\n\r\n", GOOD],
                    Some(200),
                    2,
                ),
                (&[FAULT, GOOD], Some(500), 1),
                (
                    &["HTTP/1.1 408 x\r\nContent-Length: 0\r\n\r\n", GOOD],
                    Some(408),
                    1,
                ),
                (&[CLOSES, GOOD], None, 1),
                (&["not http\r\n\r\n", GOOD], None, 1),
            ] {
                let (listener, address) = listen().await;
                let count = serve(listener, answers);
                let call = host_call(address, Duration::from_secs(40)).await;
                let record = call.send(soon()).await;
                assert_eq!(
                    (
                        status(&record),
                        record.attempts,
                        count.load(Ordering::SeqCst)
                    ),
                    (status_at_last, attempts, attempts),
                    "{answers:?}"
                );
            }
        });
    }

    #[test]
    fn snapshot_of_a_blob_is_sent_again_after_a_fault_and_a_lost_connection() {
        run(async {
            for (answers, was_lost) in [(&[FAULT, GOOD], false), (&[CLOSES, GOOD], true)] {
                let (listener, address) = listen().await;
                let count = serve(listener, answers);
                let record = blob_call(address).await.send(soon()).await;
                assert_eq!((status(&record), record.attempts), (Some(200), 2));
                assert_eq!(record.first_was_lost, was_lost);
                assert_eq!(count.load(Ordering::SeqCst), 2);
            }
        });
    }

    #[test]
    fn host_call_whose_connection_was_closed_before_it_is_sent_over_another_one() {
        run(async {
            let (listener, address) = listen().await;
            let call = host_call(address, Duration::from_secs(40)).await;
            drop(listener.accept().await.unwrap());
            while call.connection.connection.is_open() {
                notice_closes().await;
            }
            let count = serve(listener, &[GOOD]);
            let record = call.send(soon()).await;
            assert_eq!((status(&record), record.attempts), (Some(200), 1));
            assert_eq!(count.load(Ordering::SeqCst), 1);
        });
    }

    #[test]
    fn host_call_is_waited_for_until_its_own_limit_and_not_beyond_the_windows() {
        run(async {
            let short = Duration::from_millis(50);
            for (own, call_by) in [
                (short, soon()),
                (Duration::from_secs(40), Instant::now() + short),
            ] {
                let (_listener, address) = listen().await;
                let call = host_call(address, own).await;
                let record = call.send(call_by).await;
                assert!(matches!(record.result, Err(SendFailure::NoAnswer)));
                assert!(record.ended_at.since(record.sent_at) < Duration::from_secs(5));
            }
        });
    }

    #[test]
    fn body_of_the_hosts_answer_may_take_longer_than_those_of_refusals() {
        run(async {
            let (listener, address) = listen().await;
            let call = host_call(address, Duration::from_secs(10)).await;
            let (rest, may_write) = tokio::sync::oneshot::channel::<()>();
            tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{")
                    .await
                    .unwrap();
                may_write.await.unwrap();
                stream.write_all(b"}").await.unwrap();
                let _ = stream.read_to_end(&mut Vec::new()).await;
            });
            let mut record = WindowRecord {
                rcu_expedited: false,
                froze_all: true,
                watchdog_lost: false,
                calls: vec![Some(call.send(soon()).await)],
                ended_at: clock::monotonic(),
            };
            let limit = Duration::from_millis(10);
            tokio::spawn(async move {
                tokio::time::sleep(5 * limit).await;
                rest.send(()).unwrap();
            });
            record.read_bodies(limit).await;
            let answer = record.calls.pop().unwrap().unwrap().result.unwrap();
            assert_eq!((&answer.body[..], answer.complete), (&b"{}"[..], true));
        });
    }
}
