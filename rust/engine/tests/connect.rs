//! Connections against real sockets on the loopback interface.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{HandshakeKind, ServerConfig, SupportedProtocolVersion};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use vmsnapshot_core::blob::{Metadata, OnUnusable, SasUri};
use vmsnapshot_core::error_kind::ErrorCode;
use vmsnapshot_core::host_call::HostCall;
use vmsnapshot_engine::connect::{
    connect_all, notice_closes, refresh, ConnectError, ConnectOptions, Connection, Destination,
    PreparedRequest, Proxy, RawAnswer, SendFailure, Tls, WarmConnection, BODY_LIMIT_BYTES,
    HOST_BODY_LIMIT_BYTES,
};

const CREATED: &str = "HTTP/1.1 201 Created\r\nx-ms-snapshot: 2026-11-22T10:26:21.8190000Z\r\nContent-Length: 0\r\n\r\n";
const SIGNATURE: &str = "c2VjcmV0";
const SHORT: Duration = Duration::from_millis(100);

/// Runs a test on a runtime like the engine's own, with a time limit.
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

fn uri(scheme: &str, address: SocketAddr) -> SasUri {
    SasUri::parse(&format!(
        "{scheme}://{address}/account/disks/vm%201.vhd?sv=2024-11-04&sp=rw&sig={SIGNATURE}%3D"
    ))
    .unwrap()
}

fn options() -> ConnectOptions {
    ConnectOptions {
        ca_file: None,
        proxy: None,
        time_limit: Duration::from_secs(10),
    }
}

fn prepared(uri: &SasUri) -> PreparedRequest {
    PreparedRequest::snapshot(uri, &Metadata::default(), None).unwrap()
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Reads a request's head, including the empty line at its end.
async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap()
}

/// Answers every request on every connection with `answer`. Returns the requests as they arrive.
fn serve(listener: TcpListener, answer: impl Into<Vec<u8>>) -> Arc<Mutex<Vec<String>>> {
    let requests = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&requests);
    let answer = answer.into();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve_stream(stream, answer.clone(), Arc::clone(&kept)));
        }
    });
    requests
}

async fn serve_stream(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    answer: Vec<u8>,
    kept: Arc<Mutex<Vec<String>>>,
) {
    loop {
        let head = read_head(&mut stream).await;
        if head.is_empty() {
            return;
        }
        kept.lock().unwrap().push(head);
        if stream.write_all(&answer).await.is_err() || stream.flush().await.is_err() {
            return;
        }
    }
}

/// Connects to the servers of all blobs, through the proxy of `options` if there is one.
async fn connect_blobs(
    uris: &[SasUri],
    options: &ConnectOptions,
) -> Result<Vec<WarmConnection>, ConnectError> {
    let results = connect_blobs_on(OnUnusable::Refuse, uris, options).await?;
    results.into_iter().collect()
}

async fn connect_blobs_on(
    on_unusable: OnUnusable,
    uris: &[SasUri],
    options: &ConnectOptions,
) -> Result<Vec<Result<WarmConnection, ConnectError>>, ConnectError> {
    let destinations: Vec<_> = uris
        .iter()
        .map(|uri| Destination::blob(uri, options.proxy.as_ref()))
        .collect();
    connect_all(&destinations, options, on_unusable).await
}

/// Replaces all connections that were closed. Returns for each whether it was replaced.
async fn refresh_all(
    connections: &mut [WarmConnection],
    time_limit: Duration,
) -> Result<Vec<bool>, ConnectError> {
    let mut connections: Vec<_> = connections.iter_mut().collect();
    let results = refresh(&mut connections, time_limit, OnUnusable::Refuse).await?;
    results.into_iter().collect()
}

async fn warm(uri: &SasUri) -> WarmConnection {
    connect_blobs(std::slice::from_ref(uri), &options())
        .await
        .unwrap()
        .pop()
        .unwrap()
}

trait SendWhole {
    /// Sends a request and reads the whole answer, with one limit for both.
    async fn send_whole(
        &mut self,
        request: PreparedRequest,
        deadline: Instant,
    ) -> Result<RawAnswer, SendFailure>;
}

impl SendWhole for Connection {
    async fn send_whole(
        &mut self,
        request: PreparedRequest,
        deadline: Instant,
    ) -> Result<RawAnswer, SendFailure> {
        let mut answer = self.send(request, deadline).await?;
        answer.read_body(deadline).await;
        Ok(answer)
    }
}

/// Sends one request to a server that answers with `answer` and holds the connection open.
async fn answer_to_one_request(answer: impl Into<Vec<u8>>) -> Result<RawAnswer, SendFailure> {
    let (listener, address) = listen().await;
    serve(listener, answer);
    let uri = uri("http", address);
    let mut warm = warm(&uri).await;
    warm.connection
        .send_whole(prepared(&uri), Instant::now() + 5 * SHORT)
        .await
}

fn no_secret(texts: &[String]) {
    for text in texts {
        for secret in [SIGNATURE, "sig=", "hunter2", "aHVudGVy", "treasure"] {
            assert!(!text.contains(secret), "{text}");
        }
    }
}

fn checked(error: ConnectError) -> ConnectError {
    no_secret(&[
        error.to_string(),
        format!("{error:?}"),
        format!("{:?}", error.hint()),
    ]);
    error
}

// ---- certificates ----

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    file: TemporaryFile,
}

struct TemporaryFile(PathBuf);

impl TemporaryFile {
    fn new(content: impl AsRef<[u8]>) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!(
            "vmsnapshot-connect-{}-{number}.pem",
            std::process::id()
        ));
        std::fs::write(&path, content).unwrap();
        Self(path)
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Authority {
    fn new() -> Self {
        Self::named("vmsnapshot tests")
    }

    fn named(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let file = TemporaryFile::new(params.self_signed(&key).unwrap().pem());
        Self {
            issuer: Issuer::new(params, key),
            file,
        }
    }

    fn acceptor_with(
        &self,
        name: &str,
        versions: &[&'static SupportedProtocolVersion],
        change: impl FnOnce(&mut CertificateParams),
    ) -> TlsAcceptor {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        change(&mut params);
        let certificate: CertificateDer<'static> =
            params.signed_by(&key, &self.issuer).unwrap().der().clone();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let mut config =
            ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_protocol_versions(versions)
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![certificate], key)
                .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }

    fn acceptor(&self) -> TlsAcceptor {
        self.acceptor_with("127.0.0.1", rustls::ALL_VERSIONS, |_| {})
    }

    fn options(&self) -> ConnectOptions {
        ConnectOptions {
            ca_file: Some(self.file.0.clone()),
            ..options()
        }
    }
}

#[derive(Debug, PartialEq)]
struct Handshake {
    kind: HandshakeKind,
    version: rustls::ProtocolVersion,
    alpn: Option<Vec<u8>>,
}

/// Serves TLS. Returns what was negotiated with each client.
fn serve_tls(listener: TcpListener, acceptor: TlsAcceptor) -> Arc<Mutex<Vec<Handshake>>> {
    let handshakes = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&handshakes);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, kept) = (acceptor.clone(), Arc::clone(&kept));
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let agreed = stream.get_ref().1;
                kept.lock().unwrap().push(Handshake {
                    kind: agreed.handshake_kind().unwrap(),
                    version: agreed.protocol_version().unwrap(),
                    alpn: agreed.alpn_protocol().map(<[u8]>::to_vec),
                });
                serve_stream(stream, CREATED.into(), Arc::default()).await;
            });
        }
    });
    handshakes
}

async fn tls_error(acceptor: TlsAcceptor, options: &ConnectOptions) -> ConnectError {
    let (listener, address) = listen().await;
    serve_tls(listener, acceptor);
    let error = checked(
        connect_blobs(&[uri("https", address)], options)
            .await
            .unwrap_err(),
    );
    assert_eq!(error.code(), ErrorCode::TlsFailed);
    assert!(
        error
            .to_string()
            .contains(&format!("https://{address}/account/disks/vm%201.vhd")),
        "{error}"
    );
    error
}

// ---- the request and the answer ----

#[test]
fn blob_request_on_the_wire_is_only_put_host_length_and_metadata() {
    run(async {
        let (listener, address) = listen().await;
        let requests = serve(listener, CREATED);
        let uri = uri("http", address);
        let metadata =
            Metadata::parse([("RunId", "7 x"), ("hostName", "treasure"), ("_a", "")]).unwrap();
        let request = PreparedRequest::snapshot(&uri, &metadata, None).unwrap();
        let mut warm = warm(&uri).await;
        let answer = warm.connection.send_whole(request, soon()).await.unwrap();
        assert_eq!(answer.status, 201);
        assert_eq!(answer.snapshot.unwrap(), "2026-11-22T10:26:21.8190000Z");
        assert!(answer.complete);
        assert_eq!(
            requests.lock().unwrap().as_slice(),
            [format!(
                "PUT /account/disks/vm%201.vhd?sv=2024-11-04&sp=rw&sig={SIGNATURE}%3D&comp=snapshot HTTP/1.1\r\n\
                 Host: {address}\r\nContent-Length: 0\r\n\
                 x-ms-meta-RunId: 7 x\r\nx-ms-meta-hostName: treasure\r\nx-ms-meta-_a:\r\n\r\n"
            )]
        );
    });
}

#[test]
fn request_may_have_as_many_metadata_pairs_as_fit_into_their_limit() {
    run(async {
        let (listener, address) = listen().await;
        let requests = serve(listener, CREATED);
        let uri = uri("http", address);
        let pairs = (0..1500).map(|number| (format!("N{number}"), "x"));
        let request =
            PreparedRequest::snapshot(&uri, &Metadata::parse(pairs).unwrap(), None).unwrap();
        let mut warm = warm(&uri).await;
        warm.connection.send_whole(request, soon()).await.unwrap();
        assert_eq!(
            requests.lock().unwrap()[0]
                .matches("\r\nx-ms-meta-N")
                .count(),
            1500
        );
    });
}

#[test]
fn request_keeps_unusual_but_legal_bytes_of_path_and_query() {
    run(async {
        let (listener, address) = listen().await;
        let requests = serve(listener, CREATED);
        let odd = "/$root//a;b,c:d@e!'()*[x]~/./../%2f%2F+?&&a=?/&sig=%2B+/==&";
        let uri = SasUri::parse(&format!("http://{address}{odd}")).unwrap();
        let mut warm = warm(&uri).await;
        warm.connection
            .send_whole(prepared(&uri), soon())
            .await
            .unwrap();
        assert!(requests.lock().unwrap()[0]
            .starts_with(&format!("PUT {odd}&comp=snapshot HTTP/1.1\r\n")));
    });
}

#[test]
fn request_can_be_sent_again_on_the_same_connection_after_a_refusal() {
    run(async {
        let (listener, address) = listen().await;
        let busy = "HTTP/1.1 503 x\r\nx-ms-error-code: ServerBusy\r\nContent-Length: 4\r\n\r\nbusy";
        let requests = serve(listener, busy);
        let uri = uri("http", address);
        let mut warm = warm(&uri).await;
        for _ in 0..2 {
            let answer = warm
                .connection
                .send_whole(prepared(&uri), soon())
                .await
                .unwrap();
            assert_eq!(
                (answer.status, answer.error_code.unwrap().as_bytes()),
                (503, &b"ServerBusy"[..])
            );
            assert_eq!((&answer.body[..], answer.complete), (&b"busy"[..], true));
        }
        assert_eq!(requests.lock().unwrap().len(), 2);
    });
}

#[test]
fn sixty_four_requests_are_answered_at_once_on_a_connection_each() {
    run(async {
        let (listener, address) = listen().await;
        let requests = serve(listener, CREATED);
        let uris: Vec<_> = (0..64)
            .map(|number| SasUri::parse(&format!("http://{address}/c/{number}?sig=x")).unwrap())
            .collect();
        let connections = connect_blobs(&uris, &options()).await.unwrap();
        let mut sends = tokio::task::JoinSet::new();
        for (mut warm, uri) in connections.into_iter().zip(&uris) {
            assert_eq!(
                warm.dialer.destination().to_string(),
                format!("blob `{uri}`")
            );
            let request = prepared(uri);
            sends.spawn(async move {
                warm.connection
                    .send_whole(request, soon())
                    .await
                    .unwrap()
                    .status
            });
        }
        assert_eq!(sends.join_all().await, [201; 64]);
        let mut targets = requests.lock().unwrap().clone();
        targets.sort();
        targets.dedup();
        assert_eq!(targets.len(), 64);
    });
}

#[test]
fn answer_that_comes_byte_by_byte_is_read() {
    run(async {
        let (listener, address) = listen().await;
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            read_head(&mut stream).await;
            for byte in CREATED.bytes() {
                stream.write_all(&[byte]).await.unwrap();
                tokio::task::yield_now().await;
            }
        });
        let uri = uri("http", address);
        let mut warm = warm(&uri).await;
        let answer = warm
            .connection
            .send_whole(prepared(&uri), soon())
            .await
            .unwrap();
        assert_eq!((answer.status, answer.snapshot.is_some()), (201, true));
    });
}

#[test]
fn send_waits_until_call_by_for_a_server_that_never_answers() {
    run(async {
        let failure = answer_to_one_request("").await.unwrap_err();
        assert!(
            matches!(failure, SendFailure::NoAnswer { .. }),
            "{failure:?}"
        );
    });
}

#[test]
fn send_can_be_cancelled_before_call_by() {
    run(async {
        let (listener, address) = listen().await;
        serve(listener, "");
        let uri = uri("http", address);
        let mut warm = warm(&uri).await;
        let send = warm.connection.send_whole(prepared(&uri), soon());
        assert!(tokio::time::timeout(SHORT, send).await.is_err());
    });
}

#[test]
fn head_that_does_not_end_is_no_answer() {
    run(async {
        let failure = answer_to_one_request("HTTP/1.1 201 Created\r\nx-ms-snap")
            .await
            .unwrap_err();
        assert!(
            matches!(failure, SendFailure::NoAnswer { .. }),
            "{failure:?}"
        );
    });
}

#[test]
fn send_does_not_wait_for_the_body_of_a_200_or_201() {
    run(async {
        for status in [200, 201] {
            let answer = answer_to_one_request(format!(
                "HTTP/1.1 {status} x\r\nx-ms-snapshot: 2026\r\nContent-Length: 9\r\n\r\nhalf"
            ));
            let answer = answer.await.unwrap();
            assert_eq!(
                (answer.status, answer.snapshot.unwrap().as_bytes()),
                (status, &b"2026"[..])
            );
            assert_eq!((&answer.body[..], answer.complete), (&b""[..], false));
        }
    });
}

#[test]
fn body_that_has_not_ended_by_call_by_is_kept_as_far_as_it_arrived() {
    run(async {
        let answer =
            answer_to_one_request("HTTP/1.1 409 Conflict\r\nContent-Length: 99\r\n\r\n<Code>x")
                .await
                .unwrap();
        assert_eq!(
            (answer.status, &answer.body[..], answer.complete),
            (409, &b"<Code>x"[..], false)
        );
    });
}

#[test]
fn body_beyond_the_limit_is_cut_off() {
    run(async {
        let size = 3 * BODY_LIMIT_BYTES;
        let answer = format!(
            "HTTP/1.1 400 Bad\r\nContent-Length: {size}\r\n\r\n{}",
            "x".repeat(size)
        );
        let answer = answer_to_one_request(answer).await.unwrap();
        assert_eq!(
            (answer.status, answer.body.len(), answer.complete),
            (400, BODY_LIMIT_BYTES, false)
        );
    });
}

#[test]
fn body_in_chunks_is_joined() {
    run(async {
        let chunks = "HTTP/1.1 404 x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\nTrailer: t\r\n\r\n";
        let answer = answer_to_one_request(chunks).await.unwrap();
        assert_eq!(
            (answer.status, &answer.body[..], answer.complete),
            (404, &b"abcdefg"[..], true)
        );
        let answer = answer_to_one_request(
            "HTTP/1.1 404 x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz\r\n",
        );
        let answer = answer.await.unwrap();
        assert_eq!(
            (answer.status, &answer.body[..], answer.complete),
            (404, &b"abc"[..], false)
        );
    });
}

#[test]
fn informational_answers_are_skipped() {
    run(async {
        let answer = format!("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\n\r\n{CREATED}");
        assert_eq!(answer_to_one_request(answer).await.unwrap().status, 201);
        let failure = answer_to_one_request("HTTP/1.1 100 Continue\r\n\r\n")
            .await
            .unwrap_err();
        assert!(
            matches!(failure, SendFailure::NoAnswer { .. }),
            "{failure:?}"
        );
    });
}

#[test]
fn answer_that_is_not_http_is_a_bad_answer() {
    run(async {
        for garbage in [
            "220 smtp ready\r\n\r\n",
            "\0\u{1}\u{2}\r\n\r\n",
            "HTTP/1.1 2x1 ?\r\n\r\n",
            "HTTP/9.9 201 x\r\n\r\n",
        ] {
            let failure = answer_to_one_request(garbage).await.unwrap_err();
            assert!(
                matches!(failure, SendFailure::BadAnswer { .. }),
                "{garbage:?}: {failure:?}"
            );
            no_secret(&[failure.to_string(), format!("{failure:?}")]);
        }
    });
}

/// Sends one request to a server that reads it, writes `partial_answer`, and resets or closes.
async fn answer_cut_off(
    partial_answer: &'static str,
    reset: bool,
) -> Result<RawAnswer, SendFailure> {
    let (listener, address) = listen().await;
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        if reset {
            // Unread bytes at the close make the kernel send a reset.
            stream.read_u8().await.unwrap();
        } else {
            read_head(&mut stream).await;
            stream.write_all(partial_answer.as_bytes()).await.unwrap();
        }
    });
    let uri = uri("http", address);
    let mut warm = warm(&uri).await;
    warm.connection.send_whole(prepared(&uri), soon()).await
}

#[test]
fn connection_that_ends_between_request_and_answer_is_lost() {
    run(async {
        for (partial, reset) in [("", true), ("", false), ("HTTP/1.1 201 Crea", false)] {
            let failure = answer_cut_off(partial, reset).await.unwrap_err();
            assert!(
                matches!(failure, SendFailure::Lost { .. }),
                "{partial:?} {reset}: {failure:?}"
            );
            no_secret(&[failure.to_string(), format!("{failure:?}")]);
        }
    });
}

#[test]
fn answer_is_kept_when_the_connection_ends_inside_its_body() {
    run(async {
        let answer = answer_cut_off("HTTP/1.1 403 x\r\nx-ms-error-code: AuthorizationFailure\r\nContent-Length: 9\r\n\r\nabc", false);
        let answer = answer.await.unwrap();
        assert_eq!(
            (answer.status, &answer.body[..], answer.complete),
            (403, &b"abc"[..], false)
        );
        assert_eq!(answer.error_code.unwrap(), "AuthorizationFailure");
    });
}

// ---- the host call ----

const HOST_HEADERS: [(&str, &str); 3] = [
    ("Backup", "true"),
    ("Content-type", "application/json"),
    ("UserAgent", "VMSnapshot"),
];

fn host_call(address: SocketAddr, body: &[u8]) -> HostCall {
    let headers = HOST_HEADERS
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    HostCall::new(
        &format!("http://{address}/metadata/recsvc/snapshot/dosnapshot?api-version=treasure"),
        headers,
        body.to_vec(),
        Duration::from_secs(40),
    )
    .unwrap()
}

async fn warm_host(call: &HostCall, options: &ConnectOptions) -> WarmConnection {
    connect_all(&[Destination::host(call)], options, OnUnusable::Refuse)
        .await
        .unwrap()
        .pop()
        .unwrap()
        .unwrap()
}

/// Sends one host call to a server that answers with `answer` and holds the connection open.
async fn answer_to_one_host_call(answer: impl Into<Vec<u8>>) -> RawAnswer {
    let (listener, address) = listen().await;
    serve(listener, answer);
    let call = host_call(address, b"");
    let mut warm = warm_host(&call, &options()).await;
    let request = PreparedRequest::host_call(&call).unwrap();
    warm.connection
        .send_whole(request, Instant::now() + 5 * SHORT)
        .await
        .unwrap()
}

#[test]
fn host_call_on_the_wire_is_post_host_length_callers_headers_and_body() {
    run(async {
        let (listener, address) = listen().await;
        let body = vec![b'{'; 100_000];
        let expected = body.clone();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let head = read_head(&mut stream).await;
            let mut received = vec![0; expected.len()];
            stream.read_exact(&mut received).await.unwrap();
            assert!(received == expected);
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
                .await
                .unwrap();
            head
        });
        let call = host_call(address, &body);
        let mut warm = warm_host(&call, &options()).await;
        let request = PreparedRequest::host_call(&call).unwrap();
        no_secret(&[format!("{call:?} {warm:?} {request:?}")]);
        let answer = warm.connection.send_whole(request, soon()).await.unwrap();
        assert_eq!(
            (answer.status, &answer.body[..], answer.complete),
            (200, &b"{}"[..], true)
        );
        assert_eq!(
            server.await.unwrap(),
            format!(
                "POST /metadata/recsvc/snapshot/dosnapshot?api-version=treasure HTTP/1.1\r\n\
                 Host: {address}\r\nContent-Length: 100000\r\nBackup: true\r\n\
                 Content-type: application/json\r\nUserAgent: VMSnapshot\r\n\r\n"
            )
        );
    });
}

#[test]
fn host_call_never_goes_through_the_proxy_of_the_blobs() {
    run(async {
        let (proxy, proxy_address) = listen().await;
        let seen_by_proxy = serve(proxy, CREATED);
        let (listener, address) = listen().await;
        let requests = serve(listener, CREATED);
        let call = host_call(address, b"");
        let mut warm = warm_host(&call, &proxy_options(proxy_address)).await;
        let request = PreparedRequest::host_call(&call).unwrap();
        warm.connection.send_whole(request, soon()).await.unwrap();
        assert_eq!(requests.lock().unwrap().len(), 1);
        assert!(seen_by_proxy.lock().unwrap().is_empty());
    });
}

#[test]
fn body_of_the_hosts_answer_is_kept_up_to_its_own_limit_for_every_status() {
    run(async {
        for (status, size) in [
            (201, 3 * BODY_LIMIT_BYTES),
            (500, HOST_BODY_LIMIT_BYTES),
            (200, HOST_BODY_LIMIT_BYTES + 1),
        ] {
            let answer = format!(
                "HTTP/1.1 {status} x\r\nContent-Length: {size}\r\n\r\n{}",
                "x".repeat(size)
            );
            let answer = answer_to_one_host_call(answer).await;
            assert_eq!(
                (answer.status, answer.body.len(), answer.complete),
                (
                    status,
                    size.min(HOST_BODY_LIMIT_BYTES),
                    size <= HOST_BODY_LIMIT_BYTES
                )
            );
        }
    });
}

#[test]
fn hosts_answer_that_breaks_off_is_kept_and_marked_incomplete() {
    run(async {
        let answer =
            answer_to_one_host_call("HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{\"s").await;
        assert_eq!(
            (answer.status, &answer.body[..], answer.complete),
            (200, &b"{\"s"[..], false)
        );
    });
}

#[test]
fn error_names_an_unreachable_host_by_its_uri_without_the_query() {
    run(async {
        // The socket is bound and does not listen. Connections to its port are refused, and no
        // other program can take the port.
        let refusing = tokio::net::TcpSocket::new_v4().unwrap();
        refusing.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let call = host_call(refusing.local_addr().unwrap(), b"treasure");
        let error = checked(
            connect_all(&[Destination::host(&call)], &options(), OnUnusable::Refuse)
                .await
                .unwrap_err(),
        );
        assert_eq!(error.code(), ErrorCode::ConnectFailed);
        let name = format!("the host call to `{}`", call.uri());
        assert!(error.to_string().contains(&name), "{error}");
    });
}

// ---- connections that close while idle ----

#[test]
fn request_on_a_closed_connection_is_reported_as_not_sent() {
    run(async {
        let (listener, address) = listen().await;
        let uri = uri("http", address);
        let mut first = warm(&uri).await;
        drop(listener.accept().await.unwrap());
        while first.connection.is_open() {
            notice_closes().await;
        }
        let failure = first
            .connection
            .send_whole(prepared(&uri), soon())
            .await
            .unwrap_err();
        no_secret(&[failure.to_string(), format!("{failure:?}")]);
        assert!(
            matches!(failure, SendFailure::NotSent { .. }),
            "{failure:?}"
        );
        serve(listener, CREATED);
        let mut second = first.dialer.dial(soon()).await.unwrap();
        let answer = second.send_whole(prepared(&uri), soon()).await.unwrap();
        assert_eq!(answer.status, 201);
    });
}

#[test]
fn refresh_replaces_exactly_the_connections_that_were_closed() {
    run(async {
        let (listener, address) = listen().await;
        let uris: Vec<_> = (0..8)
            .map(|number| SasUri::parse(&format!("http://{address}/c/{number}?sig=x")).unwrap())
            .collect();
        let mut connections = connect_blobs(&uris, &options()).await.unwrap();
        let mut accepted = Vec::new();
        for _ in &uris {
            accepted.push(listener.accept().await.unwrap().0);
        }
        assert_eq!(
            refresh_all(&mut connections, SHORT).await.unwrap(),
            [false; 8]
        );
        accepted.truncate(5);
        // A close on the loopback interface is visible at once.
        let requests = serve(listener, CREATED);
        assert_eq!(
            refresh_all(&mut connections, Duration::from_secs(10))
                .await
                .unwrap(),
            [false, false, false, false, false, true, true, true]
        );
        for stream in accepted {
            tokio::spawn(serve_stream(stream, CREATED.into(), Arc::clone(&requests)));
        }
        for (warm, uri) in connections.iter_mut().zip(&uris) {
            let answer = warm
                .connection
                .send_whole(prepared(uri), soon())
                .await
                .unwrap();
            assert_eq!(answer.status, 201);
        }
        assert_eq!(requests.lock().unwrap().len(), 8);
    });
}

#[test]
fn refresh_fails_when_a_server_is_gone() {
    run(async {
        let (listener, address) = listen().await;
        let mut connections = connect_blobs(&[uri("http", address)], &options())
            .await
            .unwrap();
        drop(listener.accept().await.unwrap());
        drop(listener);
        let error = checked(
            refresh_all(&mut connections, Duration::from_secs(10))
                .await
                .unwrap_err(),
        );
        assert_eq!(error.code(), ErrorCode::ConnectFailed);
    });
}

#[test]
fn refresh_replaces_the_others_when_unusable_blobs_are_reported_and_a_server_is_gone() {
    run(async {
        let (gone, gone_address) = listen().await;
        let (there, there_address) = listen().await;
        let uris = [uri("http", gone_address), uri("http", there_address)];
        let mut connections = connect_blobs(&uris, &options()).await.unwrap();
        drop(gone.accept().await.unwrap());
        drop(gone);
        drop(there.accept().await.unwrap());
        serve(there, CREATED);
        let mut both: Vec<_> = connections.iter_mut().collect();
        let results = refresh(&mut both, Duration::from_secs(10), OnUnusable::Report)
            .await
            .unwrap();
        let [Err(error), Ok(true)] = &results[..] else {
            panic!("{results:?}");
        };
        assert_eq!(error.code(), ErrorCode::ConnectFailed);
        let answer = connections[1]
            .connection
            .send_whole(prepared(&uris[1]), soon())
            .await;
        assert_eq!(answer.unwrap().status, 201);
    });
}

#[test]
fn refresh_notices_a_close_under_tls_with_and_without_close_notify() {
    run(async {
        let authority = Authority::new();
        for close_notify in [true, false] {
            let (listener, address) = listen().await;
            let acceptor = authority.acceptor();
            let server = tokio::spawn(async move {
                let mut stream = acceptor
                    .accept(listener.accept().await.unwrap().0)
                    .await
                    .unwrap();
                if close_notify {
                    stream.shutdown().await.unwrap();
                }
                drop(stream);
                serve_tls(listener, acceptor);
            });
            let mut connections = connect_blobs(&[uri("https", address)], &authority.options())
                .await
                .unwrap();
            server.await.unwrap();
            assert_eq!(
                refresh_all(&mut connections, Duration::from_secs(10))
                    .await
                    .unwrap(),
                [true],
                "{close_notify}"
            );
        }
    });
}

// ---- TLS ----

#[test]
fn https_works_with_an_extra_ca_in_tls_1_2_and_1_3_and_a_second_dial_resumes_the_session() {
    run(async {
        let authority = Authority::new();
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            let (listener, address) = listen().await;
            let handshakes = serve_tls(
                listener,
                authority.acceptor_with("127.0.0.1", &[version], |_| {}),
            );
            let uri = uri("https", address);
            let mut warm = connect_blobs(std::slice::from_ref(&uri), &authority.options())
                .await
                .unwrap()
                .pop()
                .unwrap();
            let answer = warm
                .connection
                .send_whole(prepared(&uri), soon())
                .await
                .unwrap();
            assert_eq!((answer.status, answer.snapshot.is_some()), (201, true));
            let mut again = warm.dialer.dial(soon()).await.unwrap();
            assert_eq!(
                again
                    .send_whole(prepared(&uri), soon())
                    .await
                    .unwrap()
                    .status,
                201
            );
            let handshakes = handshakes.lock().unwrap();
            for (handshake, kind) in handshakes
                .iter()
                .zip([HandshakeKind::Full, HandshakeKind::Resumed])
            {
                let alpn = Some(b"http/1.1".to_vec());
                assert_eq!(
                    *handshake,
                    Handshake {
                        kind,
                        version: version.version,
                        alpn
                    }
                );
            }
            assert_eq!(handshakes.len(), 2);
        }
    });
}

#[test]
fn certificate_of_an_unknown_issuer_is_refused_with_a_hint() {
    run(async {
        // The second authority has the name of the issuer and another key, as in a CA file that is
        // older than a newly made authority.
        for trusted in [Authority::named("another issuer"), Authority::new()] {
            let error = tls_error(Authority::new().acceptor(), &trusted.options()).await;
            assert!(error.to_string().contains("issuer"), "{error}");
            // Not `--ca-file`: the status of a backup job has the hint too, and no such option.
            let hint = error.hint().unwrap();
            assert!(hint.contains("the system's trust store"), "{hint}");
            assert!(!hint.contains("--"), "{hint}");
        }
    });
}

#[test]
fn certificate_for_another_name_is_refused() {
    run(async {
        let authority = Authority::new();
        let acceptor = authority.acceptor_with("other.example", rustls::ALL_VERSIONS, |_| {});
        let error = tls_error(acceptor, &authority.options()).await;
        assert!(error.to_string().contains("other.example"), "{error}");
    });
}

#[test]
fn certificate_that_has_expired_or_is_not_valid_yet_is_refused() {
    run(async {
        let authority = Authority::new();
        for (from, until, word) in [(2001, 2002, "expired"), (2150, 2151, "not valid before")] {
            let acceptor = authority.acceptor_with("127.0.0.1", rustls::ALL_VERSIONS, |params| {
                params.not_before = rcgen::date_time_ymd(from, 1, 1);
                params.not_after = rcgen::date_time_ymd(until, 1, 1);
            });
            let error = tls_error(acceptor, &authority.options()).await;
            assert!(error.to_string().contains(word), "{error}");
        }
    });
}

#[test]
fn server_that_does_not_speak_tls_is_a_tls_failure() {
    run(async {
        let authority = Authority::new();
        for answer in ["HTTP/1.1 400 Bad Request\r\n\r\n", ""] {
            let (listener, address) = listen().await;
            tokio::spawn(async move {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut hello = [0; 4096];
                assert_ne!(stream.read(&mut hello).await.unwrap(), 0);
                stream.write_all(answer.as_bytes()).await.unwrap();
            });
            let error = checked(
                connect_blobs(&[uri("https", address)], &authority.options())
                    .await
                    .unwrap_err(),
            );
            assert_eq!(error.code(), ErrorCode::TlsFailed, "{error}");
        }
    });
}

#[test]
fn error_names_a_ca_file_that_cannot_be_used() {
    let authority = Authority::new();
    let good = std::fs::read_to_string(&authority.file.0).unwrap();
    for content in [
        "",
        "treasure",
        "-----BEGIN PRIVATE KEY-----\ndHJlYXN1cmU=\n-----END PRIVATE KEY-----\n",
        "-----BEGIN CERTIFICATE-----\ntreasure!\n-----END CERTIFICATE-----\n",
        "-----BEGIN CERTIFICATE-----\ndHJlYXN1cmU=\n-----END CERTIFICATE-----\n",
        &good[..good.len() / 2],
    ] {
        let file = TemporaryFile::new(content);
        let error = checked(Tls::new(Some(&file.0)).unwrap_err());
        assert_eq!(error.code(), ErrorCode::BadCaFile, "{content}");
        assert!(
            error.to_string().contains(file.0.to_str().unwrap()),
            "{error}"
        );
    }
    for path in ["/nonexistent/ca.pem", "/"] {
        let error = checked(Tls::new(Some(Path::new(path))).unwrap_err());
        assert_eq!(error.code(), ErrorCode::BadCaFile, "{path}");
    }
}

#[test]
fn bad_ca_file_is_reported_even_if_no_blob_needs_it() {
    run(async {
        let (_listener, address) = listen().await;
        let options = ConnectOptions {
            ca_file: Some("/nonexistent/ca.pem".into()),
            ..options()
        };
        let error = checked(
            connect_blobs(&[uri("http", address)], &options)
                .await
                .unwrap_err(),
        );
        assert_eq!(error.code(), ErrorCode::BadCaFile);
    });
}

// ---- proxy ----

/// Starts a proxy that tunnels one CONNECT to `target`. Returns the request.
fn serve_tunnel(listener: TcpListener, target: SocketAddr) -> Arc<Mutex<Vec<String>>> {
    let requests = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&requests);
    tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        let head = read_head(&mut client).await;
        kept.lock().unwrap().push(head);
        // The network may deliver the answer in two pieces.
        client
            .write_all(b"HTTP/1.1 200 Connection est")
            .await
            .unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
        client
            .write_all(b"ablished\r\nVia: test\r\n\r\n")
            .await
            .unwrap();
        let mut server = TcpStream::connect(target).await.unwrap();
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
    });
    requests
}

fn proxy_options(address: SocketAddr) -> ConnectOptions {
    ConnectOptions {
        proxy: Some(Proxy::parse(&format!("http://user:hunter2@{address}")).unwrap()),
        ..options()
    }
}

#[test]
fn https_request_goes_through_a_tunnel_of_the_proxy() {
    run(async {
        let authority = Authority::new();
        let (server, server_address) = listen().await;
        serve_tls(server, authority.acceptor());
        let (proxy, proxy_address) = listen().await;
        let requests = serve_tunnel(proxy, server_address);
        let uri = uri("https", server_address);
        let options = ConnectOptions {
            ca_file: authority.options().ca_file,
            ..proxy_options(proxy_address)
        };
        let mut connections = connect_blobs(std::slice::from_ref(&uri), &options)
            .await
            .unwrap();
        no_secret(&[format!("{options:?}"), format!("{connections:?}")]);
        let request =
            PreparedRequest::snapshot(&uri, &Metadata::default(), options.proxy.as_ref()).unwrap();
        let answer = connections[0]
            .connection
            .send_whole(request, soon())
            .await
            .unwrap();
        assert_eq!(answer.status, 201);
        assert_eq!(
            requests.lock().unwrap().as_slice(),
            [format!(
                "CONNECT {server_address} HTTP/1.1\r\nHost: {server_address}\r\n\
                 User-Agent: vmsnapshot/0.1.0\r\nProxy-Authorization: Basic dXNlcjpodW50ZXIy\r\n\r\n"
            )]
        );
    });
}

#[test]
fn http_request_goes_to_the_proxy_in_absolute_form() {
    run(async {
        let (proxy, proxy_address) = listen().await;
        let requests = serve(proxy, CREATED);
        // Only the proxy resolves the server's name.
        let uri = SasUri::parse("http://Server.example:10000/c/b?sig=x%3d").unwrap();
        let options = proxy_options(proxy_address);
        let mut connections = connect_blobs(std::slice::from_ref(&uri), &options)
            .await
            .unwrap();
        let metadata = Metadata::parse([("RunId", "1")]).unwrap();
        let request = PreparedRequest::snapshot(&uri, &metadata, options.proxy.as_ref()).unwrap();
        let answer = connections[0]
            .connection
            .send_whole(request, soon())
            .await
            .unwrap();
        assert_eq!(answer.status, 201);
        assert_eq!(
            requests.lock().unwrap().as_slice(),
            [
                "PUT http://server.example:10000/c/b?sig=x%3d&comp=snapshot HTTP/1.1\r\n\
              Host: server.example:10000\r\nContent-Length: 0\r\nUser-Agent: vmsnapshot/0.1.0\r\n\
              Proxy-Authorization: Basic dXNlcjpodW50ZXIy\r\nx-ms-meta-RunId: 1\r\n\r\n"
            ]
        );
    });
}

#[test]
fn error_names_a_proxy_that_refuses_the_tunnel_without_its_password() {
    run(async {
        let authority = Authority::new();
        for answer in [
            "HTTP/1.1 407 x\r\n\r\n",
            "HTTP/1.1 403 x\r\n\r\n",
            "hello\r\n\r\n",
        ] {
            let (proxy, proxy_address) = listen().await;
            serve(proxy, answer);
            let uri =
                SasUri::parse(&format!("https://server.example/c/b?sig={SIGNATURE}")).unwrap();
            let options = ConnectOptions {
                ca_file: authority.options().ca_file,
                ..proxy_options(proxy_address)
            };
            let error = checked(connect_blobs(&[uri], &options).await.unwrap_err());
            assert_eq!(error.code(), ErrorCode::ProxyFailed);
            assert!(
                error
                    .to_string()
                    .contains(&format!("http://{proxy_address}")),
                "{error}"
            );
        }
    });
}

/// Returns options with a proxy that may be left out.
fn optional_proxy(address: SocketAddr) -> ConnectOptions {
    let options = proxy_options(address);
    ConnectOptions {
        proxy: options.proxy.map(Proxy::or_direct),
        time_limit: 20 * SHORT,
        ..options
    }
}

#[test]
fn optional_proxy_that_refuses_or_is_down_is_left_out_with_a_warning() {
    run(async {
        let authority = Authority::new();
        // The socket is bound and does not listen. Connections to its port are refused, and no
        // other program can take the port.
        let closed = tokio::net::TcpSocket::new_v4().unwrap();
        closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let (refusing, refusing_address) = listen().await;
        serve(refusing, "HTTP/1.1 403 Forbidden\r\n\r\n");
        let (_silent, silent_address) = listen().await;
        for (proxy_address, cause) in [
            (closed.local_addr().unwrap(), "connection refused"),
            (refusing_address, "it answered 403 Forbidden to CONNECT"),
            (silent_address, "took too long"),
        ] {
            let (listener, address) = listen().await;
            serve_tls(listener, authority.acceptor());
            let uri = uri("https", address);
            let options = ConnectOptions {
                ca_file: authority.options().ca_file,
                ..optional_proxy(proxy_address)
            };
            let mut connections = connect_blobs(std::slice::from_ref(&uri), &options)
                .await
                .unwrap();
            let warm = &mut connections[0];
            let warning = warm.without_proxy.clone().unwrap();
            assert!(
                warning.contains(cause) && warning.contains(&proxy_address.to_string()),
                "{warning}"
            );
            no_secret(&[warning]);
            assert!(warm.dialer.destination().proxy().is_none());
            let answer = warm.connection.send_whole(prepared(&uri), soon()).await;
            assert_eq!(answer.unwrap().status, 201);
        }
    });
}

#[test]
fn refresh_leaves_out_an_optional_proxy_that_has_failed_since() {
    run(async {
        for scheme in ["http", "https"] {
            let authority = Authority::new();
            let (server, server_address) = listen().await;
            let (proxy, proxy_address) = listen().await;
            let uri = uri(scheme, server_address);
            let options = ConnectOptions {
                ca_file: authority.options().ca_file,
                ..optional_proxy(proxy_address)
            };
            let plain_requests = if scheme == "https" {
                serve_tls(server, authority.acceptor());
                None
            } else {
                Some(serve(server, CREATED))
            };
            let tunnel = tokio::spawn(async move {
                let (mut client, _) = proxy.accept().await.unwrap();
                drop(proxy);
                if scheme == "http" {
                    std::future::pending::<()>().await;
                }
                read_head(&mut client).await;
                let established = b"HTTP/1.1 200 OK\r\n\r\n";
                client.write_all(established).await.unwrap();
                let mut upstream = TcpStream::connect(server_address).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut upstream).await;
            });
            let mut connections = connect_blobs(std::slice::from_ref(&uri), &options)
                .await
                .unwrap();
            assert_eq!(connections[0].without_proxy, None);
            let used = connections[0].dialer.destination().proxy().cloned();
            let metadata = Metadata::parse([("RunId", "1")]).unwrap();
            let mut request = PreparedRequest::snapshot(&uri, &metadata, used.as_ref()).unwrap();
            tunnel.abort();
            assert!(tunnel.await.unwrap_err().is_cancelled());

            assert_eq!(
                refresh_all(&mut connections, 20 * SHORT).await.unwrap(),
                [true]
            );
            let warm = &mut connections[0];
            let warning = warm.without_proxy.clone().unwrap();
            assert!(warning.contains("connection refused"), "{warning}");
            no_secret(std::slice::from_ref(&warning));
            assert!(warm.dialer.destination().proxy().is_none());
            request.without_proxy();
            let answer = warm.connection.send_whole(request, soon()).await;
            assert_eq!(answer.unwrap().status, 201);
            if let Some(requests) = plain_requests {
                let direct = PreparedRequest::snapshot(&uri, &metadata, None).unwrap();
                let answer = warm.connection.send_whole(direct, soon()).await;
                assert_eq!(answer.unwrap().status, 201);
                let heads = requests.lock().unwrap();
                // The server does not see the proxy's password.
                assert_eq!(heads[0], heads[1]);
                assert!(!heads[0].contains("Proxy-"), "{}", heads[0]);
            }
        }
    });
}

#[test]
fn error_names_the_optional_proxy_and_both_causes_when_the_server_cannot_be_reached_either() {
    run(async {
        let closed = tokio::net::TcpSocket::new_v4().unwrap();
        closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let closed = closed.local_addr().unwrap();
        let options = optional_proxy(closed);
        let error = checked(
            connect_blobs(&[uri("http", closed)], &options)
                .await
                .unwrap_err(),
        );
        assert_eq!(error.code(), ErrorCode::ProxyFailed);
        let text = error.to_string();
        assert!(
            text.contains(&format!("the proxy http://{closed}")),
            "{text}"
        );
        assert!(text.contains("; directly: could not connect"), "{text}");
        assert!(error.hint().is_some());
    });
}

#[test]
fn optional_proxy_is_not_left_out_when_the_server_behind_it_is_not_trusted() {
    run(async {
        let (server, server_address) = listen().await;
        serve_tls(server, Authority::named("another").acceptor());
        let (proxy, proxy_address) = listen().await;
        serve_tunnel(proxy, server_address);
        let authority = Authority::new();
        let options = ConnectOptions {
            ca_file: authority.options().ca_file,
            ..optional_proxy(proxy_address)
        };
        let error = connect_blobs(&[uri("https", server_address)], &options)
            .await
            .unwrap_err();
        assert_eq!(checked(error).code(), ErrorCode::TlsFailed);
    });
}

#[test]
fn proxy_that_speaks_tls_is_named_as_such() {
    run(async {
        let authority = Authority::new();
        let (proxy, proxy_address) = listen().await;
        serve_tls(proxy, authority.acceptor());
        let options = ConnectOptions {
            ca_file: authority.options().ca_file,
            ..proxy_options(proxy_address)
        };
        let uri = SasUri::parse(&format!("https://server.example/c/b?sig={SIGNATURE}")).unwrap();
        let error = checked(connect_blobs(&[uri], &options).await.unwrap_err());
        assert_eq!(error.code(), ErrorCode::ProxyFailed);
        assert!(error.to_string().ends_with("it speaks TLS"), "{error}");
    });
}

// ---- reaching the server ----

#[test]
fn ipv6_server_is_reached() {
    run(async {
        let listener = TcpListener::bind("[::1]:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = serve(listener, CREATED);
        let uri = uri("http", address);
        let mut warm = warm(&uri).await;
        assert_eq!(
            warm.connection
                .send_whole(prepared(&uri), soon())
                .await
                .unwrap()
                .status,
            201
        );
        assert!(requests.lock().unwrap()[0]
            .contains(&format!("\r\nHost: [::1]:{}\r\n", address.port())));
    });
}

#[test]
fn server_by_name_is_reached_at_any_address_that_answers() {
    run(async {
        let (listener, address) = listen().await;
        serve(listener, CREATED);
        let uri = SasUri::parse(&format!("http://localhost:{}/c/b?sig=x", address.port())).unwrap();
        let mut warm = warm(&uri).await;
        assert_eq!(
            warm.connection
                .send_whole(prepared(&uri), soon())
                .await
                .unwrap()
                .status,
            201
        );
    });
}

#[test]
fn name_without_an_address_is_a_resolve_failure() {
    run(async {
        // A label of more than 63 letters: the resolver refuses it without asking the network.
        let uri = SasUri::parse(&format!(
            "http://{}.example/c/b?sig={SIGNATURE}",
            "x".repeat(64)
        ))
        .unwrap();
        let error = checked(
            connect_blobs(std::slice::from_ref(&uri), &options())
                .await
                .unwrap_err(),
        );
        assert_eq!(error.code(), ErrorCode::ResolveFailed);
        assert!(error.to_string().contains(&uri.to_string()), "{error}");
    });
}

#[test]
fn closed_port_is_a_connect_failure_that_names_the_blob() {
    run(async {
        let (listener, good) = listen().await;
        serve(listener, CREATED);
        // The socket is bound and does not listen. Connections to its port are refused, and no
        // other program can take the port.
        let refusing = tokio::net::TcpSocket::new_v4().unwrap();
        refusing.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let bad = uri("http", refusing.local_addr().unwrap());
        let error = checked(
            connect_blobs(&[uri("http", good), bad.clone()], &options())
                .await
                .unwrap_err(),
        );
        assert_eq!(error.code(), ErrorCode::ConnectFailed);
        assert!(error.to_string().contains(&bad.to_string()), "{error}");
    });
}

#[test]
fn connect_returns_errors_beside_connections_when_unusable_blobs_are_reported() {
    run(async {
        let authority = Authority::new();
        let (good_listener, good_address) = listen().await;
        serve(good_listener, CREATED);
        let (_silent_listener, silent_address) = listen().await;
        let (untrusted_listener, untrusted_address) = listen().await;
        serve_tls(untrusted_listener, Authority::named("another").acceptor());
        // The socket is bound and does not listen. Connections to its port are refused, and no
        // other program can take the port.
        let refusing = tokio::net::TcpSocket::new_v4().unwrap();
        refusing.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let no_name = format!("http://{}.example/c/b?sig={SIGNATURE}", "x".repeat(64));
        let uris = [
            uri("https", silent_address),
            uri("http", refusing.local_addr().unwrap()),
            uri("http", good_address),
            SasUri::parse(&no_name).unwrap(),
            uri("https", untrusted_address),
        ];
        let options = ConnectOptions {
            time_limit: 10 * SHORT,
            ..authority.options()
        };
        let results = connect_blobs_on(OnUnusable::Report, &uris, &options)
            .await
            .unwrap();
        let codes: Vec<_> = results
            .into_iter()
            .map(|result| result.map_err(|error| checked(error).code().name()))
            .map(|result| result.map(|_| ()))
            .collect();
        assert_eq!(
            codes,
            [
                Err("connect-timeout"),
                Err("connect-failed"),
                Ok(()),
                Err("resolve-failed"),
                Err("tls-failed"),
            ]
        );
    });
}

#[test]
fn silent_server_or_proxy_is_a_connect_timeout() {
    run(async {
        let authority = Authority::new();
        let (_listener, address) = listen().await;
        let uri = uri("https", address);
        for proxy in [None, proxy_options(address).proxy] {
            let options = ConnectOptions {
                proxy,
                time_limit: SHORT,
                ..authority.options()
            };
            let error = checked(
                connect_blobs(std::slice::from_ref(&uri), &options)
                    .await
                    .unwrap_err(),
            );
            assert_eq!(error.code(), ErrorCode::ConnectTimeout, "{error}");
        }
    });
}

#[test]
fn debug_and_display_show_no_secret() {
    run(async {
        let (listener, address) = listen().await;
        serve(
            listener,
            format!("HTTP/1.1 403 x\r\nContent-Length: 8\r\n\r\n{SIGNATURE}"),
        );
        let uri = uri("http", address);
        let mut warm = warm(&uri).await;
        let metadata = Metadata::parse([("a", "treasure")]).unwrap();
        let request = PreparedRequest::snapshot(&uri, &metadata, None).unwrap();
        let unsent = SendFailure::NotSent {
            cause: "x".to_owned(),
        };
        no_secret(&[format!(
            "{uri:?} {uri} {metadata:?} {request:?} {warm:?} {unsent:?} {unsent}"
        )]);
        let answer = warm.connection.send_whole(request, soon()).await.unwrap();
        assert_eq!(&answer.body[..], SIGNATURE.as_bytes());
        no_secret(&[format!("{answer:?}")]);
    });
}
