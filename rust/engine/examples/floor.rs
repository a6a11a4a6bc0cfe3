//! The floor of a window: the cost of its parts without any code around them.
//!
//! The program sends N snapshot requests at once on open connections with nothing frozen. It calls
//! the bare FIFREEZE and FITHAW in one thread per filesystem, with expedited grace periods. There
//! is no HTTP library, no runtime, no ledger and no watchdog, only sockets, `poll` and bytes that
//! were made before. `make bench` compares the window with the sum of the two.
//!
//! Standard input has lines `mount PATH`, `blob SAS_URI` and `ca PEM_FILE`, then `go`. After that,
//! each line `repeat` measures everything once, and one line of JSON answers it. The program ends
//! at the end of its input. It is for scratch filesystems only: it refuses `/`, and a second
//! process thaws if this one dies.

use std::error::Error;
use std::io::{self, BufRead, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{poll, PollFd, PollFlags};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use time::OffsetDateTime;
use vmsnapshot_core::blob::SasUri;
use vmsnapshot_core::deadlines::Monotonic;
use vmsnapshot_core::uri::Scheme;
use vmsnapshot_sys::clock;
use vmsnapshot_sys::kernel::{Kernel, Linux};
use vmsnapshot_sys::signal::Signal;

const EXPEDITED: &str = "/sys/kernel/rcu_expedited";
/// The pause between two freezes, and between connecting and calling. After a thaw the kernel's
/// gates stay in their slow state for some 10 ms, in which a freeze costs almost no time.
const PAUSE: Duration = Duration::from_millis(60);
/// How long a freeze may last before the rescue thaws, and the limit on every other wait.
const LIMIT: Duration = Duration::from_secs(10);

type Result<Value> = std::result::Result<Value, Box<dyn Error>>;

fn main() -> Result<()> {
    if std::env::args().nth(1).as_deref() == Some("rescue") {
        return rescue();
    }
    let (mut mount_points, mut uris, mut ca_file) = (Vec::new(), Vec::new(), None);
    let mut lines = io::stdin().lines();
    for line in lines.by_ref() {
        match line?.split_once(' ') {
            Some(("mount", path)) => mount_points.push(PathBuf::from(path)),
            Some(("blob", uri)) => {
                let uri = SasUri::parse(uri)?;
                uri.check(OffsetDateTime::now_utc())?;
                uris.push(uri);
            }
            Some(("ca", path)) => ca_file = Some(PathBuf::from(path)),
            _ => break,
        }
    }
    let mut rescuer = Rescuer::start(&mount_points)?;
    let ioctls = Ioctls::start(&mount_points)?;
    let tls = ca_file.as_deref().map(trust).transpose()?;
    for line in lines {
        if line? != "repeat" {
            return Err("expected `repeat`".into());
        }
        let calls = call_all(&uris, tls.as_ref())?;
        std::thread::sleep(PAUSE);
        rescuer.arm()?;
        let (freeze, thaw) = ioctls.freeze_and_thaw()?;
        rescuer.disarm()?;
        let milliseconds = |length: Duration| length.as_secs_f64() * 1e3;
        println!(
            "{{\"calls_ms\": {:.6}, \"freeze_ms\": {:.6}, \"thaw_ms\": {:.6}}}",
            milliseconds(calls),
            milliseconds(freeze),
            milliseconds(thaw)
        );
    }
    Ok(())
}

/// Sends one request per blob, each on an open connection that was never used. Returns the time
/// from the first byte sent to the end of the last answer's head.
fn call_all(uris: &[SasUri], tls: Option<&Arc<ClientConfig>>) -> Result<Duration> {
    let mut connections = uris
        .iter()
        .map(|uri| Connection::open(uri, tls))
        .collect::<Result<Vec<_>>>()?;
    std::thread::sleep(PAUSE);
    for connection in &mut connections {
        // Read what a TLS server sends after the handshake. It is not part of an answer.
        connection.receive()?;
    }
    let start = Instant::now();
    for connection in &mut connections {
        connection.send()?;
    }
    let mut waiting: Vec<&mut Connection> = connections.iter_mut().collect();
    while !waiting.is_empty() {
        let mut sockets: Vec<PollFd<'_>> = waiting
            .iter()
            .map(|connection| PollFd::new(&connection.socket, PollFlags::IN))
            .collect();
        if poll(&mut sockets, Some(&clock::timespec(LIMIT)))? == 0 {
            return Err("a blob server does not answer".into());
        }
        let is_readable: Vec<bool> = sockets
            .iter()
            .map(|socket| !socket.revents().is_empty())
            .collect();
        let mut still_waiting = Vec::with_capacity(waiting.len());
        for (connection, is_readable) in waiting.into_iter().zip(is_readable) {
            if is_readable {
                connection.receive()?;
            }
            if !connection.has_answer() {
                still_waiting.push(connection);
            }
        }
        waiting = still_waiting;
    }
    let length = start.elapsed();
    for connection in &connections {
        if !connection.received.starts_with(b"HTTP/1.1 201 ") {
            return Err("a blob server did not make the snapshot".into());
        }
    }
    Ok(length)
}

/// An open connection and the bytes of its one request.
struct Connection {
    socket: TcpStream,
    tls: Option<ClientConnection>,
    request: Vec<u8>,
    received: Vec<u8>,
}

impl Connection {
    fn open(uri: &SasUri, tls: Option<&Arc<ClientConfig>>) -> Result<Connection> {
        let server = uri.as_http();
        let mut socket = TcpStream::connect((server.host(), server.port()))?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(LIMIT))?;
        let tls = match (server.scheme(), tls) {
            (Scheme::Http, _) => None,
            (Scheme::Https, None) => return Err("an HTTPS blob needs a `ca` line".into()),
            (Scheme::Https, Some(config)) => {
                let name = ServerName::try_from(server.host().to_owned())?;
                let mut tls = ClientConnection::new(Arc::clone(config), name)?;
                while tls.is_handshaking() {
                    tls.complete_io(&mut socket)?;
                }
                Some(tls)
            }
        };
        socket.set_nonblocking(true)?;
        let target = uri.snapshot_target();
        let request = format!(
            "PUT {} HTTP/1.1\r\nHost: {}\r\nContent-Length: 0\r\n\r\n",
            target.expose(),
            server.host_header()
        );
        Ok(Connection {
            socket,
            tls,
            request: request.into_bytes(),
            received: Vec::with_capacity(4096),
        })
    }

    /// Sends the request. It has some hundred bytes, which the buffer of an idle socket takes at
    /// once.
    fn send(&mut self) -> Result<()> {
        match &mut self.tls {
            None => self.socket.write_all(&self.request)?,
            Some(tls) => {
                tls.writer().write_all(&self.request)?;
                while tls.wants_write() {
                    tls.write_tls(&mut self.socket)?;
                }
            }
        }
        Ok(())
    }

    /// Reads what has arrived, without waiting.
    fn receive(&mut self) -> Result<()> {
        let mut buffer = [0; 4096];
        let read = match &mut self.tls {
            None => self.socket.read(&mut buffer),
            Some(tls) => match tls.read_tls(&mut self.socket) {
                Ok(0) => Ok(0),
                Ok(_) => {
                    tls.process_new_packets()?;
                    tls.reader().read(&mut buffer)
                }
                Err(error) => Err(error),
            },
        };
        match read {
            Ok(0) => Err("a blob server closed the connection".into()),
            Ok(length) => {
                self.received
                    .extend_from_slice(buffer.get(..length).unwrap_or(&[]));
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn has_answer(&self) -> bool {
        self.received.windows(4).any(|bytes| bytes == b"\r\n\r\n")
    }
}

fn trust(ca_file: &Path) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca_file)? {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    // A run connects once, with full handshakes. So every repetition makes full handshakes too.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// One thread per filesystem. Each waits for orders: odd ones to freeze, even ones to thaw.
struct Ioctls {
    shared: Arc<Shared>,
}

struct Shared {
    filesystems: Vec<Filesystem>,
    order: Signal,
    done: Signal,
}

struct Filesystem {
    directory: OwnedFd,
    called_ns: AtomicU64,
    returned_ns: AtomicU64,
    /// The error number of the last call; 0 if it succeeded.
    errno: AtomicI32,
}

impl Ioctls {
    fn start(mount_points: &[PathBuf]) -> Result<Ioctls> {
        let filesystems = open_all(mount_points)?
            .into_iter()
            .map(|directory| Filesystem {
                directory,
                called_ns: AtomicU64::new(0),
                returned_ns: AtomicU64::new(0),
                errno: AtomicI32::new(0),
            })
            .collect();
        let shared = Arc::new(Shared {
            filesystems,
            order: Signal::new(0),
            done: Signal::new(0),
        });
        for index in 0..shared.filesystems.len() {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .stack_size(64 * 1024)
                .spawn(move || shared.serve(index))?;
        }
        Ok(Ioctls { shared })
    }

    /// Freezes and thaws everything. Returns how long each took, from the first call to the last
    /// return.
    fn freeze_and_thaw(&self) -> Result<(Duration, Duration)> {
        wait_until_off()?;
        std::fs::write(EXPEDITED, "1")?;
        let freeze = self.all_do_next();
        let thaw = self.all_do_next();
        std::fs::write(EXPEDITED, "0")?;
        Ok((freeze?, thaw?))
    }

    fn all_do_next(&self) -> Result<Duration> {
        let shared = &self.shared;
        let order = shared.order.value() + 1;
        let expected = u32::try_from(shared.filesystems.len())? * order;
        shared.order.set(order);
        let deadline = clock::monotonic().plus(LIMIT);
        if !shared
            .done
            .wait_until(Some(deadline), |done| done >= expected)
        {
            return Err("a FIFREEZE or FITHAW does not return".into());
        }
        let mut times = (u64::MAX, 0);
        for filesystem in &shared.filesystems {
            let errno = filesystem.errno.load(Ordering::SeqCst);
            if errno != 0 {
                return Err(io::Error::from_raw_os_error(errno).into());
            }
            times.0 = times.0.min(filesystem.called_ns.load(Ordering::SeqCst));
            times.1 = times.1.max(filesystem.returned_ns.load(Ordering::SeqCst));
        }
        Ok(Monotonic(times.1).since(Monotonic(times.0.min(times.1))))
    }
}

impl Shared {
    fn serve(&self, index: usize) {
        let Some(filesystem) = self.filesystems.get(index) else {
            return;
        };
        let count = u32::try_from(self.filesystems.len()).unwrap_or(u32::MAX);
        for order in 1.. {
            self.order.wait_until(None, |given| given >= order);
            let directory = filesystem.directory.as_fd();
            let called = clock::monotonic();
            let result = if order % 2 == 1 {
                Linux.freeze(directory)
            } else {
                Linux.thaw(directory)
            };
            let returned = clock::monotonic();
            filesystem.called_ns.store(called.0, Ordering::SeqCst);
            filesystem.returned_ns.store(returned.0, Ordering::SeqCst);
            let errno = result.err().map_or(0, rustix::io::Errno::raw_os_error);
            filesystem.errno.store(errno, Ordering::SeqCst);
            if self.done.add_one() == count * order {
                self.done.wake_all();
            }
        }
    }
}

/// Opens mount points. Refuses `/` and every path that is not a mount point.
fn open_all(mount_points: &[PathBuf]) -> Result<Vec<OwnedFd>> {
    let root = std::fs::metadata("/")?.dev();
    let mut directories = Vec::new();
    for mount_point in mount_points {
        let directory = std::fs::File::open(mount_point)?;
        let device = directory.metadata()?.dev();
        if device == root || device == std::fs::metadata(mount_point.join(".."))?.dev() {
            return Err(format!("{} is not a scratch filesystem", mount_point.display()).into());
        }
        directories.push(directory.into());
    }
    Ok(directories)
}

/// Waits until expedited grace periods are off. Another run's window may be open. Reading its 1 and
/// putting that back later would leave the setting on for good.
fn wait_until_off() -> Result<()> {
    let until = Instant::now() + LIMIT;
    while !std::fs::read(EXPEDITED)?.starts_with(b"0") {
        if Instant::now() >= until {
            return Err(format!("`{EXPEDITED}` is on, and stays on").into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Our end of the process that thaws if this one cannot.
struct Rescuer {
    process: Child,
    /// `Some` until it is dropped.
    orders: Option<ChildStdin>,
}

impl Rescuer {
    fn start(mount_points: &[PathBuf]) -> Result<Rescuer> {
        let mut process = Command::new(std::env::current_exe()?)
            .arg("rescue")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()?;
        let mut orders = process.stdin.take().ok_or("no pipe")?;
        for mount_point in mount_points {
            writeln!(orders, "{}", mount_point.display())?;
        }
        writeln!(orders)?;
        let mut ready = [0];
        process
            .stdout
            .as_mut()
            .ok_or("no pipe")?
            .read_exact(&mut ready)?;
        Ok(Rescuer {
            process,
            orders: Some(orders),
        })
    }

    fn arm(&mut self) -> Result<()> {
        Ok(self.orders.as_mut().ok_or("no pipe")?.write_all(b"a")?)
    }

    fn disarm(&mut self) -> Result<()> {
        Ok(self.orders.as_mut().ok_or("no pipe")?.write_all(b"d")?)
    }
}

impl Drop for Rescuer {
    fn drop(&mut self) {
        // At the end of its input, an armed rescue thaws. One that is not armed just ends.
        drop(self.orders.take());
        let _ = self.process.wait();
    }
}

/// The rescue process. It thaws everything if it is armed (`a`) and not disarmed (`d`) in time, or
/// if the process that armed it is gone.
fn rescue() -> Result<()> {
    let mut orders = io::stdin().lock();
    let mut mount_points = Vec::new();
    loop {
        let mut line = String::new();
        if orders.read_line(&mut line)? == 0 {
            return Ok(());
        }
        match line.trim_end() {
            "" => break,
            path => mount_points.push(PathBuf::from(path)),
        }
    }
    let directories = open_all(&mount_points)?;
    io::stdout().write_all(b"r")?;
    io::stdout().flush()?;
    let mut armed_until: Option<Instant> = None;
    loop {
        let left = armed_until.map(|until| until.saturating_duration_since(Instant::now()));
        let descriptor = io::stdin();
        let mut waiting = [PollFd::new(&descriptor, PollFlags::IN)];
        let ready = poll(&mut waiting, left.map(clock::timespec).as_ref())?;
        // This bypasses the buffer of standard input. The buffer is empty, because no order is sent
        // before the rescue is ready. Several orders may have arrived, and the last one counts.
        let mut bytes = [0; 16];
        let length = match ready {
            0 => 0,
            _ => rustix::io::read(&descriptor, &mut bytes)?,
        };
        match bytes.get(..length).and_then(<[u8]>::last) {
            Some(b'a') => armed_until = Some(Instant::now() + LIMIT),
            Some(_) => armed_until = None,
            None if armed_until.is_none() => return Ok(()),
            None => break,
        }
    }
    std::fs::write(EXPEDITED, "0")?;
    // Each filesystem has its own thread, because a FITHAW can hang. Each thread calls FITHAW again
    // and again, because a FIFREEZE may be running.
    let threads: Vec<_> = directories
        .into_iter()
        .map(|directory| {
            std::thread::spawn(move || {
                let until = Instant::now() + LIMIT;
                while Instant::now() < until {
                    let _ = Linux.thaw(directory.as_fd());
                    std::thread::sleep(Duration::from_millis(20));
                }
            })
        })
        .collect();
    for thread in threads {
        let _ = thread.join();
    }
    Err("the process that froze the filesystems did not thaw them".into())
}
