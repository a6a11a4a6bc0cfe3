//! A run: prepared, then run once. Every phase of it but the window is here.

use std::future::Future;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{open, Mode, OFlags};
use time::OffsetDateTime;
use tokio::runtime::Runtime;
use vmsnapshot_core::blob::{Metadata, OnUnusable};
use vmsnapshot_core::deadlines::{Deadlines, THAW_TIMEOUT_MAX, THAW_TIMEOUT_MIN};
use vmsnapshot_core::host_call::HostCall;
use vmsnapshot_core::ledger::FILESYSTEMS_MAX;
use vmsnapshot_core::plan::{Plan, PlannedFilesystem};
use vmsnapshot_core::report::Report;
use vmsnapshot_core::secret::SecretText;
use vmsnapshot_sys::kernel::{Kernel, Linux};
use vmsnapshot_sys::ledger_file::LedgerFile;
use vmsnapshot_sys::{clock, process, Errno};

use crate::blobs::Blobs;
use crate::connect::{self, ConnectOptions, Destination, PreparedRequest, WarmConnection};
use crate::error::PrepareError;
use crate::freezers::Freezers;
use crate::rcu::Rcu;
use crate::report::{self, Facts};
use crate::scan;
use crate::state::{self, Published};
use crate::sync::{sync, Synced};
use crate::watchdog::Watchdog;
use crate::window::{self, Call};

/// How often a preparation looks whether it was interrupted.
pub(crate) const INTERRUPTION_TICK: Duration = Duration::from_millis(50);
/// How long the run waits for the last word of a watchdog that has nothing left to thaw.
const LAST_WORD_LIMIT: Duration = Duration::from_secs(2);
/// How long it waits, after the deadline, for the word of one that has: it may never come.
const LATE_WORD_LIMIT: Duration = Duration::from_millis(250);
/// How long the bodies of refusals may take, all together; the thaw does not wait for them.
const BODIES_LIMIT: Duration = Duration::from_secs(1);

/// The phase in which a run is when it can no longer be given up.
pub const FREEZING: &str = "freezing";

/// Who is asked for the snapshots: nobody, the service of each blob, a host, or both.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// The blobs: the SAS URI of each, and what its snapshot carries.
    pub blobs: Vec<(SecretText, Metadata)>,
    /// The call to a host that takes the snapshots by itself.
    pub host_call: Option<HostCall>,
    /// What becomes of a blob that cannot be asked. A host that cannot ends the preparation.
    pub on_unusable: OnUnusable,
}

/// How a run is to be done.
#[derive(Clone, Debug)]
pub struct Options {
    /// The hard limit on the window, 10 ms to an hour: after it, the watchdog thaws.
    pub thaw_timeout: Duration,
    /// How long to wait for dirty data to be written before the window; none: not at all.
    pub sync_timeout: Option<Duration>,
    /// How to connect to the blobs.
    pub connect: ConnectOptions,
    /// Whether to switch expedited RCU on for the length of the window.
    pub expedite_rcu: bool,
}

/// Who is told where a run is, and may end it before anything is frozen.
pub trait Observer {
    /// A phase begins. Never called inside the window.
    fn phase(&mut self, sentence: &str);
    /// Whether to give up. Asked often, and never from the window on.
    fn is_interrupted(&mut self) -> bool;
}

/// An observer that only watches.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Observer for Silent {
    fn phase(&mut self, _: &str) {}

    fn is_interrupted(&mut self) -> bool {
        false
    }
}

/// A prepared run. Nothing is frozen; dropping it gives everything back.
pub struct Session {
    run_id: String,
    plan: Plan,
    options: Options,
    directories: Arc<[OwnedFd]>,
    levels: Vec<u32>,
    ledger: Arc<LedgerFile>,
    rcu: Rcu,
    freezers: Freezers,
    watchdog: Watchdog,
    blobs: Blobs<Call>,
    host: Option<(HostCall, Call)>,
    runtime: Runtime,
    // The last to be dropped: it looks at what the others leave.
    published: Published,
}

/// Prepares a run on the kernel that runs us; see [`prepare_on`].
///
/// # Errors
/// [`PrepareError`]; nothing is frozen.
pub fn prepare(
    plan: &Plan,
    asked: Asked,
    options: Options,
    observer: &mut dyn Observer,
) -> Result<Session, PrepareError> {
    prepare_on(Arc::new(Linux), plan, asked, options, observer)
}

/// Does all that can be done before the window, and freezes nothing: checks, opens and verifies the
/// directories, connects to the blobs and the host, starts the watchdog and the freeze threads.
///
/// *Blocking*: the limit on connecting, and some milliseconds.
///
/// # Errors
/// [`PrepareError`]; nothing is frozen.
pub fn prepare_on(
    kernel: Arc<dyn Kernel>,
    plan: &Plan,
    asked: Asked,
    options: Options,
    observer: &mut dyn Observer,
) -> Result<Session, PrepareError> {
    let blobs = check(plan, &asked, &options)?;
    let lock = state::lock()?;

    observer.phase("opening the filesystems");
    let directories = plan
        .filesystems
        .iter()
        .map(open_planned)
        .collect::<Result<Arc<[_]>, _>>()?;

    observer.phase(match (&asked.host_call, asked.blobs.is_empty()) {
        (None, _) => "connecting to the blobs",
        (Some(_), true) => "connecting to the host",
        (Some(_), false) => "connecting to the blobs and the host",
    });
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(|cause| resources("start the input and output of the run", cause))?;
    let (blobs, host) = connect(blobs, asked.host_call, &runtime, &options.connect, observer)?;

    observer.phase("starting the watchdog");
    let run_id = run_id();
    let state_error = |cause| PrepareError::State {
        path: Path::new(state::DIRECTORY).to_owned(),
        cause,
    };
    let (published, ledger) =
        Published::create(lock, &run_id, directories.len()).map_err(state_error)?;
    for (entry, planned) in ledger.entries.iter().zip(&plan.filesystems) {
        entry.name(planned.device, &planned.mount_point);
    }
    let rcu = Rcu::open(options.expedite_rcu);
    let borrowed = borrow(&directories);
    let watchdog =
        Watchdog::start(&ledger, &published, rcu.descriptor(), &borrowed).map_err(|cause| {
            PrepareError::Watchdog {
                step: "start",
                cause,
            }
        })?;
    let levels: Vec<u32> = plan
        .filesystems
        .iter()
        .map(|planned| planned.level)
        .collect();
    let freezers = Freezers::start(
        Arc::clone(&ledger),
        kernel,
        Arc::clone(&directories),
        &levels,
    )
    .map_err(|cause| resources("start a freeze thread", cause))?;
    // When all went quickly nobody has asked yet, and a session is not what the caller waits for.
    if observer.is_interrupted() {
        return Err(PrepareError::Interrupted);
    }
    Ok(Session {
        run_id,
        plan: plan.clone(),
        options,
        directories,
        levels,
        ledger,
        rcu,
        freezers,
        watchdog,
        blobs,
        host,
        runtime,
        published,
    })
}

impl Session {
    /// The run's name in `/run/vmsnapshot/`.
    #[must_use]
    pub fn run_id(&self) -> &str {
        &self.run_id
    }

    /// Syncs, freezes, snapshots, thaws, and reports.
    ///
    /// *Blocking*: the limits on sync and connecting, then the thaw timeout.
    ///
    /// # Errors
    /// [`PrepareError`], before anything is frozen. From the first freeze on it reports: several
    /// things can fail at once, and one of them may be "not thawed".
    pub fn run(self, observer: &mut dyn Observer) -> Result<Report, PrepareError> {
        let Session {
            // Bound first, so dropped last, however this ends.
            mut published,
            run_id,
            plan,
            options,
            directories,
            levels,
            ledger,
            rcu,
            runtime,
            watchdog,
            freezers,
            blobs,
            host,
        } = self;

        let mut synced = vec![Synced::Done; directories.len()];
        if let Some(limit) = options.sync_timeout {
            observer.phase("writing out dirty data");
            let deadline = clock::monotonic().plus(limit);
            synced = sync(&borrow(&directories), deadline, observer)?;
        }
        let (blobs, host) = refresh((blobs, host), &runtime, &options.connect, observer)?;
        // From here on, a blob's or the host's call is known by its number.
        let mut calls = Vec::new();
        let mut number = |call| {
            calls.push(call);
            calls.len() - 1
        };
        let blobs = blobs.then(|_, call| Ok(number(call)))?;
        let host_call = host.map(|(host_call, call)| (host_call, number(call)));

        observer.phase(FREEZING);
        // The last moment to give up.
        if observer.is_interrupted() {
            return Err(PrepareError::Interrupted);
        }
        let quiet = Quiet::begin();
        let start = clock::monotonic();
        let deadlines = Deadlines::new(start, options.thaw_timeout);
        ledger
            .header
            .start(start, clock::realtime_ns(), deadlines.guard_by);
        let watchdog = watchdog
            .arm(&runtime)
            .map_err(|cause| PrepareError::Watchdog { step: "arm", cause })?;
        let record = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            window::open(window::Prepared {
                watchdog: &watchdog,
                deadlines,
                ledger: &ledger,
                levels: &levels,
                freezers: &freezers,
                rcu: &rcu,
                runtime: &runtime,
                calls,
            })
        }));
        drop(quiet);

        // A watchdog with something left to thaw does not answer before it has thawed it. It goes
        // on without us.
        let patience = if ledger.may_be_frozen() {
            clock::monotonic()
                .max(deadlines.guard_by)
                .plus(LATE_WORD_LIMIT)
        } else {
            clock::monotonic().plus(LAST_WORD_LIMIT)
        };
        let watchdog = watchdog.release(patience, &ledger);
        drop(freezers);
        drop(directories);
        let mut record = record.ok();
        if let Some(record) = &mut record {
            runtime.block_on(record.read_bodies(BODIES_LIMIT));
        }
        let report = report::make(Facts {
            run_id: &run_id,
            plan: &plan,
            blobs: &blobs,
            host_call: host_call.as_ref(),
            thaw_timeout: options.thaw_timeout,
            deadlines,
            ledger: &ledger,
            synced: &synced,
            rcu: &rcu,
            record,
            watchdog,
        });
        // A run that went as it should has said all in its report.
        if !report.all_thawed || report.watchdog.fired.is_some() || !report.watchdog.released {
            published.keep();
        }
        Ok(report)
    }
}

/// Opens a planned filesystem's directory and makes sure that it is the planned one.
///
/// *Blocking*: not on local filesystems, and nothing else is ever planned.
///
/// # Errors
/// [`PrepareError::Open`], [`PrepareError::Mount`].
pub(crate) fn open_planned(planned: &PlannedFilesystem) -> Result<OwnedFd, PrepareError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOATIME;
    // NOATIME: opening is not to make a filesystem dirty. Root, or nobody, may use it.
    let open_as = |flags| open(&planned.open_path, flags, Mode::empty());
    let directory = match open_as(flags) {
        // A container may see of a filesystem only one file, mounted on one of its own. NONBLOCK:
        // should it be a pipe, opening it must not wait for the other end.
        Err(Errno::NOTDIR) => open_as((flags - OFlags::DIRECTORY) | OFlags::NONBLOCK),
        opened => opened,
    }
    .map_err(|errno| PrepareError::Open {
        mount_point: planned.mount_point.clone(),
        errno,
    })?;
    scan::verify_open(&directory, planned)?;
    Ok(directory)
}

/// Whom the window calls: the blobs, and the host.
type Calls = (Blobs<Call>, Option<(HostCall, Call)>);

/// Makes the requests, and a connection for each. A host call is the same to the window as any
/// blob's request.
///
/// *Blocking*: the limit on connecting.
fn connect(
    blobs: Blobs<Metadata>,
    host_call: Option<HostCall>,
    runtime: &Runtime,
    options: &ConnectOptions,
    observer: &mut dyn Observer,
) -> Result<Calls, PrepareError> {
    let proxy = options.proxy.as_ref();
    let blobs =
        blobs.then(|uri, metadata| Ok(PreparedRequest::snapshot(uri, &metadata, proxy)?))?;
    let host = match host_call {
        Some(call) => Some((PreparedRequest::host_call(&call)?, call)),
        None => None,
    };
    let usable = blobs.each().iter().flatten();
    let destinations: Vec<Destination> = usable
        .map(|(uri, _)| Destination::blob(uri, proxy))
        .chain(host.iter().map(|(_, call)| Destination::host(call)))
        .collect();
    let work = connect::connect_all(&destinations, options, blobs.on_unusable());
    let mut connections = wait_for(runtime, observer, work)?.into_iter();
    let mut next = || connections.next().expect("each destination has a result");
    let blobs = blobs.then(|_, request| Ok(Call::new(next()?, request)))?;
    let host = match host {
        Some((request, call)) => Some((call, Call::new(next()?, request))),
        None => None,
    };
    with_somebody_to_call(blobs, host)
}

/// Replaces the connections that were closed since they were made.
///
/// *Blocking*: the limit on connecting.
fn refresh(
    (mut blobs, mut host): Calls,
    runtime: &Runtime,
    options: &ConnectOptions,
    observer: &mut dyn Observer,
) -> Result<Calls, PrepareError> {
    let on_unusable = blobs.on_unusable();
    let mut connections: Vec<&mut WarmConnection> = blobs
        .usable_mut()
        .chain(host.as_mut().map(|(_, call)| call))
        .map(|call| &mut call.connection)
        .collect();
    let work = connect::refresh(&mut connections, options.time_limit, on_unusable);
    let mut results = wait_for(runtime, observer, work)?.into_iter();
    let mut next = || results.next().expect("each connection has a result");
    let blobs = blobs.then(|_, call| {
        next()?;
        Ok(call)
    })?;
    if host.is_some() {
        next()?;
    }
    with_somebody_to_call(blobs, host)
}

/// A run that was to call somebody and can call nobody must not freeze.
fn with_somebody_to_call(
    blobs: Blobs<Call>,
    host: Option<(HostCall, Call)>,
) -> Result<Calls, PrepareError> {
    Ok(match host {
        Some(host) => (blobs, Some(host)),
        None => (blobs.or_first_error()?, None),
    })
}

fn check(plan: &Plan, asked: &Asked, options: &Options) -> Result<Blobs<Metadata>, PrepareError> {
    if !(THAW_TIMEOUT_MIN..=THAW_TIMEOUT_MAX).contains(&options.thaw_timeout) {
        return Err(PrepareError::ThawTimeout(
            options.thaw_timeout.as_secs_f64(),
        ));
    }
    if plan.filesystems.len() > FILESYSTEMS_MAX {
        return Err(PrepareError::TooManyFilesystems(plan.filesystems.len()));
    }
    let blobs = Blobs::read(&asked.blobs, asked.on_unusable, OffsetDateTime::now_utc())?;
    if process::may_freeze() {
        Ok(blobs)
    } else {
        Err(PrepareError::NotPrivileged)
    }
}

/// Runs `work` to its end, or to the caller's interruption.
fn wait_for<Output>(
    runtime: &Runtime,
    observer: &mut dyn Observer,
    work: impl Future<Output = Result<Output, connect::ConnectError>>,
) -> Result<Output, PrepareError> {
    runtime.block_on(async {
        let mut work = std::pin::pin!(work);
        loop {
            match tokio::time::timeout(INTERRUPTION_TICK, &mut work).await {
                Ok(result) => return Ok(result?),
                Err(_) if observer.is_interrupted() => return Err(PrepareError::Interrupted),
                Err(_) => {}
            }
        }
    })
}

/// Names a run: its ledgers sort by time, and two processes never choose the same.
fn run_id() -> String {
    let now = vmsnapshot_core::report::utc_text(i128::from(clock::realtime_ns()));
    format!("{}-{}", now.replace([':', '.'], ""), std::process::id())
}

fn borrow(directories: &[OwnedFd]) -> Vec<BorrowedFd<'_>> {
    directories.iter().map(AsFd::as_fd).collect()
}

fn resources(step: &'static str, cause: io::Error) -> PrepareError {
    PrepareError::Resources { step, cause }
}

/// While it lives, no signal ends this thread and no panic prints: the file that standard error is
/// may be on a frozen filesystem, and the panic would wait there instead of thawing.
struct Quiet {
    mask: process::SignalMask,
    hook: Option<PanicHook>,
}

type PanicHook = Box<dyn Fn(&std::panic::PanicHookInfo<'_>) + Sync + Send + 'static>;

impl Quiet {
    fn begin() -> Quiet {
        let mask = process::block_signals();
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        Quiet {
            mask,
            hook: Some(hook),
        }
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        if let Some(hook) = self.hook.take() {
            std::panic::set_hook(hook);
        }
        process::restore_signals(&self.mask);
    }
}
