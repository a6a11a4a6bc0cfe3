//! The calls of the window. All requests are sent at once, on open connections, and the result of
//! each is kept.
//!
//! This is the only network code inside the window. It opens no file and resolves no name. A second
//! attempt may open a socket to an address that is already known.
//!
//! The thread that runs this does not look for the deadline or for the watchdog's end: whatever a
//! server sends may keep it busy. The window's alarm does, on a thread of its own, and tells it.
//!
//! The thaw does not wait for a call that outlasts the window. Its answer is read after the thaw,
//! for a limited time, because it says whether there is a snapshot. No request is handed to a
//! connection then.

#![deny(clippy::disallowed_methods, clippy::disallowed_macros)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::timeout;
use vmsnapshot_core::blob;
use vmsnapshot_core::deadlines::Monotonic;
use vmsnapshot_sys::clock;
use vmsnapshot_window::alarm::Over;

use crate::both::first_of;
use crate::connect::{
    notice_closes, Connection, PreparedRequest, RawAnswer, SendFailure, WarmConnection,
};

/// How long after `call_by` an answer is still read, if the limit of its call allows it.
///
/// The limit of a host call is 40 s. A caller whose filesystems are thawed should not wait that
/// long for its report.
const LATE_LIMIT: Duration = Duration::from_secs(5);
/// By how much the wait for all late calls is longer than that for each of them.
const LATE_GRACE: Duration = Duration::from_millis(100);
/// How long the rest of an answer may take if its connection is to carry the second attempt. After
/// that, the attempt goes over a connection of its own.
const REUSE_LIMIT: Duration = Duration::from_millis(20);

/// One call of a run, from its preparation to its end.
pub(crate) enum Call {
    /// No part of it was sent.
    Prepared(Box<PreparedCall>),
    /// It was handed to its connection, and has not ended.
    Sent,
    /// It has ended.
    Ended(Box<CallRecord>),
}

/// One request on its open connection.
pub(crate) struct PreparedCall {
    pub(crate) connection: WarmConnection,
    request: PreparedRequest,
    /// The same request for a second attempt, made before the window.
    again: PreparedRequest,
    /// How long both attempts may take together.
    time_limit: Duration,
}

/// The result of one call, as it came.
pub(crate) struct CallRecord {
    pub(crate) attempts: u32,
    pub(crate) sent_at: Monotonic,
    pub(crate) ended_at: Monotonic,
    pub(crate) result: Result<RawAnswer, SendFailure>,
    /// Whether it ended after the window, so that the thaw may have come before the snapshot.
    pub(crate) outlasted_window: bool,
    /// Whether the result is a second attempt's, and the first may have made a snapshot.
    pub(crate) first_left_open: bool,
    /// The deadline of its body, if the body may take as long as the call.
    body_by: Option<Instant>,
    /// Held until the body is read. The window does not spend time on closing it either.
    _connection: Connection,
}

impl Call {
    /// Makes the call that sends `request` on `connection`. Both of its attempts together may take
    /// `time_limit`.
    pub(crate) fn new(
        connection: WarmConnection,
        request: PreparedRequest,
        time_limit: Duration,
    ) -> Self {
        Self::Prepared(Box::new(PreparedCall::new(connection, request, time_limit)))
    }

    /// Returns the connection of a call that was not sent.
    pub(crate) fn connection_mut(&mut self) -> Option<&mut WarmConnection> {
        match self {
            Self::Prepared(prepared) => Some(&mut prepared.connection),
            Self::Sent | Self::Ended(_) => None,
        }
    }

    /// Fits the requests of a blob's call to its connection, if that uses no proxy after all.
    /// Returns why it does not.
    pub(crate) fn without_proxy(&mut self) -> Option<&str> {
        let Self::Prepared(prepared) = self else {
            return None;
        };
        let reason = prepared.connection.without_proxy.as_deref()?;
        prepared.request.without_proxy();
        prepared.again.without_proxy();
        Some(reason)
    }
}

/// The calls that are under way, in the window and after it.
#[derive(Default)]
pub(crate) struct CallsUnderWay {
    running: JoinSet<(usize, CallRecord)>,
    /// Whether the window is over. Nothing is sent from then on.
    over: Arc<Over>,
    /// Ends the waiting for answers.
    stop: Arc<Notify>,
}

impl CallsUnderWay {
    /// Returns what the alarm sets when the window is over.
    pub(crate) fn over(&self) -> Arc<Over> {
        Arc::clone(&self.over)
    }

    /// Returns what the alarm calls to end the waiting for answers.
    pub(crate) fn stopper(&self) -> impl Fn() + Send + 'static {
        let stop = Arc::clone(&self.stop);
        move || stop.notify_one()
    }

    /// Sends every call at once. Waits until all have ended or the alarm says that the window is
    /// over, at `call_by` at the latest. Leaves its result in each call that has ended.
    ///
    /// *In the window*: only there.
    pub(crate) async fn send_all(&mut self, calls: &mut [&mut Call], call_by: Monotonic) {
        let call_by = Instant::now() + call_by.since(clock::monotonic());
        for (index, call) in calls.iter_mut().enumerate() {
            match std::mem::replace(*call, Call::Sent) {
                Call::Prepared(prepared) => {
                    let window = SendWindow {
                        call_by,
                        answer_by: call_by + LATE_LIMIT,
                        over: Arc::clone(&self.over),
                    };
                    self.running
                        .spawn(async move { (index, prepared.send(&window).await) });
                }
                other => **call = other,
            }
        }
        let stop = Arc::clone(&self.stop);
        first_of(self.collect(calls), stop.notified()).await;
    }

    /// Waits for the calls that have outlasted the window, and sends nothing. Leaves its result in
    /// each call.
    ///
    /// *Blocking*: until the limit of each call, and at most [`LATE_LIMIT`] and 100 ms. *In the
    /// window*: no.
    pub(crate) async fn read_late(&mut self, calls: &mut [&mut Call]) {
        // After a whole window, every call ends by itself before this. The watchdog's end may have
        // ended the window much earlier.
        let _ = timeout(LATE_LIMIT + LATE_GRACE, self.collect(calls)).await;
    }

    /// Waits until all calls have ended, and leaves its result in each.
    async fn collect(&mut self, calls: &mut [&mut Call]) {
        while let Some(ended) = self.running.join_next().await {
            if let Ok((index, mut record)) = ended {
                // One that has ended before may be collected afterwards.
                record.outlasted_window = self.over.at().is_some_and(|at| record.ended_at > at);
                if let Some(call) = calls.get_mut(index) {
                    **call = Call::Ended(Box::new(record));
                }
            }
        }
    }
}

/// Reads the rest of the answers' bodies, after the thaw. All together may take `limit`, except
/// those that may take as long as their call.
pub(crate) async fn read_bodies(calls: &mut [&mut Call], limit: Duration) {
    let deadline = Instant::now() + limit;
    for call in calls {
        if let Call::Ended(record) = call {
            if let Ok(answer) = &mut record.result {
                let own = record.body_by.unwrap_or(deadline);
                answer.read_body(deadline.max(own)).await;
            }
        }
    }
}

/// When a request may be sent and an answer read, the same for all calls.
struct SendWindow {
    /// When the run stops waiting for answers and thaws.
    call_by: Instant,
    /// Until when an answer is read, thawed or not.
    answer_by: Instant,
    /// Whether the window is over, perhaps before `call_by`.
    over: Arc<Over>,
}

impl SendWindow {
    fn is_over(&self) -> bool {
        self.over.is_over() || Instant::now() >= self.call_by
    }

    /// Sends `request` unless the window is over, and waits for its answer until `answer_by`.
    ///
    /// What has arrived before is no answer to it, and closes the connection.
    async fn send(
        &self,
        connection: &mut Connection,
        request: PreparedRequest,
        answer_by: Instant,
    ) -> Result<RawAnswer, SendFailure> {
        notice_closes().await;
        connection.ready(self.call_by.min(answer_by)).await?;
        if self.is_over() {
            let cause = "the window was over".to_owned();
            return Err(SendFailure::NotSent { cause });
        }
        connection.send(request, answer_by).await
    }
}

impl PreparedCall {
    fn new(connection: WarmConnection, request: PreparedRequest, time_limit: Duration) -> Self {
        Self {
            connection,
            again: request.clone(),
            request,
            time_limit,
        }
    }

    /// Sends the request, and sends it a second time if that may help. There is no back-off, and no
    /// attempt begins after the window.
    async fn send(self, window: &SendWindow) -> CallRecord {
        let PreparedCall {
            connection:
                WarmConnection {
                    dialer,
                    mut connection,
                    without_proxy: _,
                },
            request,
            again,
            time_limit,
        } = self;
        let sent_at = clock::monotonic();
        let own_deadline = Instant::now() + time_limit;
        let answer_by = own_deadline.min(window.answer_by);
        let again_by = own_deadline.min(window.call_by);
        let body_by = again.asks_for_a_body().then_some(own_deadline);
        let mut attempts = 1;
        let mut first_left_open = false;
        let mut result = window.send(&mut connection, request, answer_by).await;
        if !was_sent(&result) {
            attempts = 0;
        }
        if again.may_follow(&result) && !window.is_over() {
            if let Ok(answer) = &mut result {
                // A connection takes the next request only after the whole answer was read from it.
                let limit = Instant::now() + REUSE_LIMIT;
                answer.read_body(limit.min(again_by)).await;
            }
            let is_reusable = result.as_ref().is_ok_and(|answer| answer.complete);
            let mut second = None;
            if is_reusable && connection.is_open() {
                let sent = window.send(&mut connection, again.clone(), answer_by).await;
                second = Some(sent).filter(was_sent);
            }
            if second.is_none() {
                // The address is resolved and the trust roots are loaded, so this opens no file.
                if let Ok(fresh) = dialer.dial(again_by).await {
                    connection = fresh;
                    let sent = window.send(&mut connection, again, answer_by).await;
                    second = Some(sent).filter(was_sent);
                }
            }
            // Without one, the first attempt's result says more.
            if let Some(second) = second {
                attempts += 1;
                first_left_open = leaves_open(&result);
                result = second;
            }
        }
        CallRecord {
            attempts,
            sent_at,
            ended_at: clock::monotonic(),
            result,
            outlasted_window: false,
            first_left_open,
            body_by,
            _connection: connection,
        }
    }
}

fn was_sent(result: &Result<RawAnswer, SendFailure>) -> bool {
    !matches!(result, Err(SendFailure::NotSent { .. }))
}

/// Whether there may be a snapshot although the attempt came to no good answer.
fn leaves_open(result: &Result<RawAnswer, SendFailure>) -> bool {
    match result {
        Ok(answer) => {
            let code = answer.error_code.as_ref();
            let code = code.map(http::HeaderValue::as_bytes);
            blob::leaves_open(answer.status, code, &answer.body)
        }
        Err(SendFailure::NotSent { .. }) => false,
        Err(
            SendFailure::Lost { .. }
            | SendFailure::BadAnswer { .. }
            | SendFailure::TooLong
            | SendFailure::NoAnswer { .. },
        ) => true,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use std::future::Future;
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use vmsnapshot_core::blob::{Metadata, OnUnusable, SasUri};
    use vmsnapshot_core::host_call::HostCall;

    use super::*;
    use crate::connect::{connect_all, ConnectOptions, Destination};

    const GOOD: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
    const BUSY: &str = "HTTP/1.1 503 x\r\nContent-Length: 4\r\n\r\nbusy";
    /// After it, the server closes the connection without having said so.
    const BUSY_AND_CLOSES: &str = "HTTP/1.1 503 busy\r\nContent-Length: 0\r\n\r\n";
    const FAULT: &str = "HTTP/1.1 500 x\r\nContent-Length: 0\r\n\r\n";
    /// 503 with its error code in the body only.
    const OUT_OF_TIME: &str = "HTTP/1.1 503 x\r\nContent-Length: 45\r\n\r\n\
        <Error><Code>OperationTimedOut</Code></Error>";
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

    /// Starts a server that answers its requests in turn with `answers`, over any number of
    /// connections. It repeats the last answer. Returns the count of requests that it has read.
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
                        if *answer == BUSY_AND_CLOSES {
                            return;
                        }
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

    async fn call(
        destination: Destination,
        request: PreparedRequest,
        time_limit: Duration,
    ) -> PreparedCall {
        let options = ConnectOptions {
            ca_file: None,
            proxy: None,
            time_limit: Duration::from_secs(10),
        };
        let connected = connect_all(&[destination], &options, OnUnusable::Refuse).await;
        let connection = connected.unwrap().pop().unwrap().unwrap();
        PreparedCall::new(connection, request, time_limit)
    }

    async fn host_call(address: std::net::SocketAddr, time_limit: Duration) -> PreparedCall {
        let uri = format!("http://{address}/dosnapshot");
        let headers = vec![("Backup".to_owned(), "true".to_owned())];
        let prepared = HostCall::new(&uri, headers, Vec::new(), time_limit).unwrap();
        let request = PreparedRequest::host_call(&prepared).unwrap();
        call(Destination::host(&prepared), request, time_limit).await
    }

    async fn blob_call(address: std::net::SocketAddr, time_limit: Duration) -> PreparedCall {
        let uri = SasUri::parse(&format!("http://{address}/c/b?sig=x")).unwrap();
        let request = PreparedRequest::snapshot(&uri, &Metadata::default(), None).unwrap();
        call(Destination::blob(&uri, None), request, time_limit).await
    }

    /// Sends it in a window of its own, after which no answer is read any more.
    async fn send(call: PreparedCall, call_by: Instant) -> CallRecord {
        let window = SendWindow {
            call_by,
            answer_by: call_by,
            over: Arc::default(),
        };
        call.send(&window).await
    }

    fn status(record: &CallRecord) -> Option<u16> {
        record.result.as_ref().ok().map(|answer| answer.status)
    }

    #[test]
    fn host_call_is_sent_again_only_after_429_and_503() {
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
                let record = send(call, soon()).await;
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
    fn blob_request_is_sent_again_after_a_500_a_503_and_a_lost_connection() {
        run(async {
            for (answers, left_open) in [
                (&[FAULT, GOOD], true),
                (&[OUT_OF_TIME, GOOD], true),
                (&[CLOSES, GOOD], true),
                (&[BUSY, GOOD], false),
            ] {
                let (listener, address) = listen().await;
                let count = serve(listener, answers);
                let call = blob_call(address, Duration::from_secs(10)).await;
                let record = send(call, soon()).await;
                assert_eq!((status(&record), record.attempts), (Some(200), 2));
                assert_eq!(record.first_left_open, left_open, "{answers:?}");
                assert_eq!(count.load(Ordering::SeqCst), 2);
            }
        });
    }

    #[test]
    fn host_call_uses_a_new_connection_when_its_own_was_closed_before_it_was_sent() {
        run(async {
            let (listener, address) = listen().await;
            let call = host_call(address, Duration::from_secs(40)).await;
            drop(listener.accept().await.unwrap());
            while call.connection.connection.is_open() {
                notice_closes().await;
            }
            let count = serve(listener, &[GOOD]);
            let record = send(call, soon()).await;
            assert_eq!((status(&record), record.attempts), (Some(200), 1));
            assert_eq!(count.load(Ordering::SeqCst), 1);
        });
    }

    #[test]
    fn second_attempt_uses_a_new_connection_when_the_server_closes_the_first_after_a_503() {
        run(async {
            for _ in 0..20 {
                let (listener, address) = listen().await;
                let count = serve(listener, &[BUSY_AND_CLOSES, GOOD]);
                let call = host_call(address, Duration::from_secs(40)).await;
                let record = send(call, soon()).await;
                assert_eq!((status(&record), record.attempts), (Some(200), 2));
                assert_eq!(count.load(Ordering::SeqCst), 2);
            }
        });
    }

    #[test]
    fn call_ends_at_its_own_limit_or_at_the_last_moment_for_answers() {
        run(async {
            let (short, long) = (Duration::from_millis(50), Duration::from_secs(40));
            for (own, of_the_window) in [(short, long), (long, short)] {
                let (_listener, address) = listen().await;
                for call in [host_call(address, own).await, blob_call(address, own).await] {
                    let record = send(call, Instant::now() + of_the_window).await;
                    assert!(matches!(record.result, Err(SendFailure::NoAnswer { .. })));
                    assert!(record.ended_at.since(record.sent_at) < Duration::from_secs(5));
                }
            }
        });
    }

    #[test]
    fn call_that_outlasts_the_window_is_read_to_its_end_and_not_sent_again() {
        run(async {
            let long = Duration::from_secs(10);
            for answer in [GOOD, BUSY, CLOSES] {
                let (listener, address) = listen().await;
                let (window_is_over, may_answer) = tokio::sync::oneshot::channel::<()>();
                let count = Arc::new(AtomicU32::new(0));
                let counted = Arc::clone(&count);
                let call = blob_call(address, long).await;
                tokio::spawn(async move {
                    let (mut stream, _) = listener.accept().await.unwrap();
                    assert_ne!(stream.read(&mut [0; 1024]).await.unwrap(), 0);
                    counted.fetch_add(1, Ordering::SeqCst);
                    may_answer.await.unwrap();
                    stream.write_all(answer.as_bytes()).await.unwrap();
                    drop(stream);
                    while listener.accept().await.is_ok() {
                        counted.fetch_add(1, Ordering::SeqCst);
                    }
                });
                let mut call = Call::Prepared(Box::new(call));
                let mut under_way = CallsUnderWay::default();
                let limit = Duration::from_millis(100);
                let (over, stop) = (under_way.over(), under_way.stopper());
                tokio::spawn(async move {
                    tokio::time::sleep(limit).await;
                    over.begin();
                    stop();
                });
                let call_by = clock::monotonic().plus(limit);
                under_way.send_all(&mut [&mut call], call_by).await;
                assert!(matches!(call, Call::Sent));
                window_is_over.send(()).unwrap();
                under_way.read_late(&mut [&mut call]).await;
                let Call::Ended(record) = call else {
                    panic!("it has ended");
                };
                assert!(record.outlasted_window);
                assert_eq!((record.attempts, count.load(Ordering::SeqCst)), (1, 1));
                assert_eq!(record.result.is_ok(), answer != CLOSES, "{answer}");
            }
        });
    }

    #[test]
    fn call_that_ends_in_the_window_has_not_outlasted_it() {
        run(async {
            let (listener, address) = listen().await;
            serve(listener, &[GOOD]);
            let call = blob_call(address, Duration::from_secs(10)).await;
            let mut call = Call::Prepared(Box::new(call));
            let mut under_way = CallsUnderWay::default();
            let call_by = clock::monotonic().plus(Duration::from_secs(10));
            under_way.send_all(&mut [&mut call], call_by).await;
            under_way.over().begin();
            under_way.read_late(&mut [&mut call]).await;
            let Call::Ended(record) = call else {
                panic!("it has ended");
            };
            assert!(!record.outlasted_window);
        });
    }

    #[test]
    fn request_is_not_sent_after_the_window() {
        run(async {
            for is_over in [false, true] {
                let (listener, address) = listen().await;
                let count = serve(listener, &[GOOD]);
                let over = Arc::new(Over::default());
                if is_over {
                    over.begin();
                }
                let window = SendWindow {
                    call_by: if is_over { soon() } else { Instant::now() },
                    answer_by: soon(),
                    over,
                };
                let call = blob_call(address, Duration::from_secs(10)).await;
                let record = call.send(&window).await;
                assert!(matches!(record.result, Err(SendFailure::NotSent { .. })));
                assert_eq!((record.attempts, count.load(Ordering::SeqCst)), (0, 0));
            }
        });
    }

    #[test]
    fn body_of_the_hosts_answer_may_take_longer_than_the_bodies_of_refusals() {
        run(async {
            let (listener, address) = listen().await;
            let call = host_call(address, Duration::from_secs(10)).await;
            let (rest, may_write) = tokio::sync::oneshot::channel::<()>();
            tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                assert_ne!(stream.read(&mut [0; 1024]).await.unwrap(), 0);
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{")
                    .await
                    .unwrap();
                may_write.await.unwrap();
                stream.write_all(b"}").await.unwrap();
                let _ = stream.read_to_end(&mut Vec::new()).await;
            });
            let mut call = Call::Ended(Box::new(send(call, soon()).await));
            let limit = Duration::from_millis(10);
            tokio::spawn(async move {
                tokio::time::sleep(5 * limit).await;
                rest.send(()).unwrap();
            });
            read_bodies(&mut [&mut call], limit).await;
            let Call::Ended(record) = call else {
                panic!("it has ended");
            };
            let answer = record.result.unwrap();
            assert_eq!((&answer.body[..], answer.complete), (&b"{}"[..], true));
        });
    }
}
