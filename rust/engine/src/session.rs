//! A run, which is prepared and then run once. All its phases except the window are here.

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::runtime::Runtime;
use vmsnapshot_core::blob::{Metadata, OnUnusable};
use vmsnapshot_core::deadlines::{
    Deadlines, FREEZE_TIMEOUT_MAX, FREEZE_TIMEOUT_MIN, THAW_TIMEOUT_MAX, THAW_TIMEOUT_MIN,
};
use vmsnapshot_core::host_call::HostCall;
use vmsnapshot_core::ledger::FILESYSTEMS_MAX;
use vmsnapshot_core::phase::Phase;
use vmsnapshot_core::plan::{Plan, PlannedFilesystem};
use vmsnapshot_core::report::Report;
use vmsnapshot_core::secret::SecretText;
use vmsnapshot_core::text::path_text;
use vmsnapshot_sys::errno::errno_text;
use vmsnapshot_sys::kernel::{Kernel, Linux};
use vmsnapshot_sys::{clock, process, Errno};
use vmsnapshot_window::alarm::Alarm;
use vmsnapshot_window::quiet::Quiet;
use vmsnapshot_window::window;

use crate::applications::{Applications, Held, NotQuiesced, Release};
use crate::both::both;
use crate::callees::blobs::Blobs;
use crate::callees::Callees;
use crate::calls::{self, CallsUnderWay};
use crate::command::GatedCommand;
use crate::companion::sync::{sync, Synced};
use crate::connect::ConnectOptions;
use crate::directories::{DirectoryError, LeftOut, Opened};
use crate::error::PrepareError;
use crate::jobs::jobs_on;
use crate::look::{self, Change};
use crate::observer::Observer;
use crate::rcu;
use crate::report::{self, Facts};
use crate::staged::{borrow, Staged};
use crate::state;

/// How long the run waits for the last word of a watchdog that has nothing left to thaw.
const LAST_WORD_LIMIT: Duration = Duration::from_secs(2);
/// How long the run waits after the deadline for a watchdog that still has to thaw. Its last word
/// may never come.
const LATE_WORD_LIMIT: Duration = Duration::from_millis(250);
/// How long a btrfs may take to say whether a scrub is under way.
const JOBS_LIMIT: Duration = Duration::from_secs(1);
/// How long the bodies of all refusals may take together. The thaw does not wait for them.
const BODIES_LIMIT: Duration = Duration::from_secs(1);

/// What a run calls for snapshots: the service of each blob, a host, both, or neither.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// The blobs: the SAS URI of each and the metadata of its snapshot.
    pub blobs: Vec<(SecretText, Metadata)>,
    /// The call to a host that takes the snapshots by itself.
    pub host_call: Option<HostCall>,
    /// A command that runs while everything is frozen: its program and its arguments. Empty for none.
    pub command: Vec<OsString>,
    /// What happens if a blob cannot be called. A host that cannot be called ends the preparation.
    pub on_unusable: OnUnusable,
}

/// The settings of a run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The hard limit on the window, 10 ms to an hour. When it passes, the watchdog thaws.
    pub thaw_timeout: Duration,
    /// How long everything may take to be frozen, 10 ms to an hour. When it passes, the window ends
    /// without a request. The thaw timeout may leave less.
    pub freeze_timeout: Duration,
    /// How long to wait for dirty data to be written before the window. `None` skips the sync.
    pub sync_timeout: Option<Duration>,
    /// How long the service of a blob may take to answer, with both attempts together. The window
    /// may end earlier.
    pub call_timeout: Duration,
    /// How to connect to the blobs.
    pub connect: ConnectOptions,
    /// Whether to switch expedited RCU on for the length of the window.
    pub expedite_rcu: bool,
}

/// A prepared run. Nothing is frozen. Dropping it releases everything.
pub struct Session {
    run_id: String,
    plan: Plan,
    left_out: Vec<LeftOut>,
    options: Options,
    callees: Callees,
    runtime: Runtime,
    command: Option<GatedCommand>,
    staged: Staged,
}

/// How much longer than the thaw timeout the applications may be held: for connecting again and for
/// arming, and for the release to arrive.
const HOLD_SLACK: Duration = Duration::from_secs(5);
/// How old the last look at the connections may be when the window begins.
const REFRESH_AFTER: Duration = Duration::from_secs(1);
/// How long connecting again may take while applications are held.
const RECONNECT_LIMIT: Duration = Duration::from_secs(2);

/// Prepares a run on the kernel that this process runs on; see [`prepare_on`].
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

/// Does all that can be done before the window, and freezes nothing.
///
/// It checks the arguments, opens and verifies the directories, connects to the blobs and the host,
/// and starts the watchdog and the freeze threads. A filesystem that cannot be opened, or that
/// nothing can write to any more, is left out, unless the plan was asked for it by its own name.
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

    observer.phase(Phase::OpenFilesystems);
    let Opened {
        filesystems,
        directories,
        left_out,
    } = Opened::open(&look::up_to_date(plan, observer)?)?;

    observer.phase(Phase::Connect);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(|cause| resources("start the input and output of the run", cause))?;
    let callees = Callees::connect(
        blobs,
        asked.host_call,
        options.call_timeout,
        &runtime,
        &options.connect,
        observer,
    )?;

    let command = if asked.command.is_empty() {
        None
    } else {
        let program = asked.command.first().cloned().unwrap_or_default();
        let started = GatedCommand::start(&asked.command);
        Some(started.map_err(|cause| PrepareError::Command {
            program: path_text(Path::new(&program)),
            cause,
        })?)
    };

    observer.phase(Phase::StartWatchdog);
    let run_id = run_id();
    let rcu = rcu::open(options.expedite_rcu);
    let staged = Staged::make(lock, &run_id, kernel, rcu, filesystems, directories)?;
    // If every step was quick, this is the first check. A caller that was interrupted does not want
    // a session.
    if observer.is_interrupted() {
        return Err(PrepareError::Interrupted);
    }
    Ok(Session {
        run_id,
        plan: plan.clone(),
        left_out,
        options,
        callees,
        runtime,
        command,
        staged,
    })
}

impl Session {
    /// Returns the run's name in `/run/vmsnapshot/`.
    #[must_use]
    pub fn run_id(&self) -> &str {
        &self.run_id
    }

    /// Returns what went otherwise than configured while connecting, for the operator.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.callees.warnings
    }

    /// Syncs, has `applications` hold still, freezes, snapshots, thaws, and reports.
    ///
    /// *Blocking*: twice the limit on sync, the limit on connecting, 1 s for a btrfs that does not
    /// answer, the limits of the applications, 4 s for connecting again and arming, then the thaw
    /// timeout. After it, with everything thawed: 2 s for the
    /// watchdog's last word (250 ms if something is still frozen), 200 ms for the freeze threads to
    /// end, what is left of the limits of the calls for late answers (5.1 s at most), and 1 s or the
    /// limit of the host call for the bodies of answers.
    ///
    /// # Errors
    /// [`PrepareError`], before anything is frozen. Later failures are in the report, because
    /// several can happen at once, and one of them may be "not thawed".
    pub fn run(
        self,
        applications: &mut dyn Applications,
        observer: &mut dyn Observer,
    ) -> Result<Report, PrepareError> {
        let Session {
            run_id,
            plan,
            mut left_out,
            options,
            callees,
            runtime,
            mut command,
            staged,
        } = self;

        // A syncfs can wait for such a job as well. Until it has written the dirty data, a commit may
        // hold a healthy btrfs for as long.
        let errors = waiting(
            &staged,
            options.sync_timeout.unwrap_or(JOBS_LIMIT),
            observer,
        )?;
        let mut staged = staged.leave_out(errors, &mut left_out)?;
        let mut synced = Vec::new();
        if let Some(limit) = options.sync_timeout {
            observer.phase(Phase::Sync);
            let deadline = clock::monotonic().plus(limit);
            let results = sync(&borrow(&staged.directories), deadline, observer)?;
            let filesystems = staged.filesystems.iter().cloned();
            synced.extend(filesystems.zip(results.iter().copied()));
            let errors = unfit_after_sync(&staged, &results, limit);
            staged = staged.leave_out(errors, &mut left_out)?;
        }
        let mut callees = callees.refresh(&runtime, &options.connect, observer)?;
        let change = Change::find(&plan, &staged.filesystems, &left_out, observer)?;
        for hidden in &change.out_of_reach {
            look::update(&mut left_out, hidden.clone());
        }
        if !change.added.is_empty() {
            staged = add(
                staged,
                &change,
                &mut left_out,
                &mut synced,
                &options,
                observer,
            )?;
            callees = callees.refresh(&runtime, &options.connect, observer)?;
        }
        let refreshed_at = clock::monotonic();
        let errors = waiting(&staged, JOBS_LIMIT, observer)?;
        let Staged {
            // Bound first, so that it is dropped last on every path.
            mut published,
            filesystems,
            directories,
            ledger,
            rcu,
            freezers,
            watchdog,
            kernel: _,
        } = staged.leave_out(errors, &mut left_out)?;

        observer.phase(Phase::Quiesce);
        let hold = options.thaw_timeout + HOLD_SLACK;
        let held = Held::quiesce(applications, options.thaw_timeout, hold);
        let mut held = held.map_err(|NotQuiesced(why)| PrepareError::NotQuiesced(why))?;
        // A look at many mounts, or the wait for a lock, may have taken seconds.
        if clock::monotonic().since(refreshed_at) > REFRESH_AFTER {
            let connect = ConnectOptions {
                time_limit: options.connect.time_limit.min(RECONNECT_LIMIT),
                ..options.connect.clone()
            };
            callees = callees.refresh(&runtime, &connect, observer)?;
        }
        observer.phase(Phase::Freeze);
        // This is the last moment at which the caller can give up.
        if observer.is_interrupted() {
            return Err(PrepareError::Interrupted);
        }
        let quiet = Quiet::begin();
        let start = clock::monotonic();
        let deadlines = Deadlines::new(start, options.thaw_timeout, options.freeze_timeout);
        ledger
            .header
            .start(start, clock::realtime_ns(), deadlines.guard_by);
        let mut under_way = CallsUnderWay::default();
        let stop_calls = under_way.stopper();
        let stop_command = command.as_ref().map(GatedCommand::stopper);
        let told_to_stop = move || {
            stop_calls();
            if let Some(stop) = &stop_command {
                stop();
            }
        };
        let alarm = Alarm::set(
            &freezers,
            &watchdog,
            deadlines.call_by,
            under_way.over(),
            told_to_stop,
        );
        let alarm = match alarm {
            Ok(alarm) => alarm,
            Err(cause) => {
                quiet.end(&ledger);
                return Err(resources("start the alarm of the window", cause));
            }
        };
        let watchdog = match watchdog.arm() {
            Ok(watchdog) => watchdog,
            Err(cause) => {
                quiet.end(&ledger);
                return Err(PrepareError::Watchdog { step: "arm", cause });
            }
        };
        let prepared = window::Prepared {
            watchdog: &watchdog,
            alarm: &alarm,
            deadlines,
            ledger: &ledger,
            freezers: &freezers,
            rcu: &rcu,
        };
        let mut calls = callees.calls_mut();
        let record = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            window::open(&prepared, |call_by| {
                runtime.block_on(async {
                    let run_command = async {
                        if let Some(command) = &mut command {
                            command.run().await;
                        }
                    };
                    both(under_way.send_all(&mut calls, call_by), run_command).await;
                });
            })
        }));
        let is_asked = record.as_ref().is_ok_and(|record| record.answers.is_some());
        held.release(if is_asked {
            Release::Asked
        } else {
            Release::NotAsked
        });
        if let Some(command) = &command {
            command.kill();
        }
        drop(alarm);

        // A watchdog that has something left to thaw does not answer before it has thawed it.
        let patience = if ledger.may_be_frozen() {
            clock::monotonic()
                .max(deadlines.guard_by)
                .plus(LATE_WORD_LIMIT)
        } else {
            clock::monotonic().plus(LAST_WORD_LIMIT)
        };
        let watchdog = watchdog.release(patience, &ledger);
        quiet.end(&ledger);
        drop(freezers);
        drop(directories);
        let command = command.map(|command| {
            let thaw_began_at = under_way.over().at().unwrap_or_else(clock::monotonic);
            command.finish(thaw_began_at)
        });
        let mut unreadable_mounts = change.unreadable_mounts;
        look::after_thaw(&plan, &filesystems, &mut left_out, &mut unreadable_mounts);
        runtime.block_on(async {
            under_way.read_late(&mut calls).await;
            calls::read_bodies(&mut calls, BODIES_LIMIT).await;
        });
        let report = report::make(Facts {
            run_id: &run_id,
            filesystems: &filesystems,
            left_out: &left_out,
            unreadable_mounts: &unreadable_mounts,
            callees: &callees,
            command,
            applications: held.records(),
            thaw_timeout: options.thaw_timeout,
            deadlines,
            ledger: &ledger,
            synced: &synced,
            rcu: &rcu,
            record: record.ok(),
            watchdog_lost: under_way.over().watchdog_lost(),
            watchdog,
        });
        // If the run went as planned, its report says everything and the ledger is not needed.
        if !report.all_thawed || report.watchdog.fired.is_some() || !report.watchdog.released {
            published.keep();
        }
        // A FITHAW of the watchdog that has not returned could undo the freeze of the next run.
        if !report.watchdog.released && process::is_alive(ledger.header.watchdog()) {
            published.leave_lock_to_watchdog();
        }
        Ok(report)
    }
}

fn check(plan: &Plan, asked: &Asked, options: &Options) -> Result<Blobs<Metadata>, PrepareError> {
    if !(THAW_TIMEOUT_MIN..=THAW_TIMEOUT_MAX).contains(&options.thaw_timeout) {
        return Err(PrepareError::ThawTimeout(
            options.thaw_timeout.as_secs_f64(),
        ));
    }
    if !(FREEZE_TIMEOUT_MIN..=FREEZE_TIMEOUT_MAX).contains(&options.freeze_timeout) {
        return Err(PrepareError::FreezeTimeout(
            options.freeze_timeout.as_secs_f64(),
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

/// Adds what was mounted since the last look, with its dirty data written out.
fn add(
    staged: Staged,
    change: &Change,
    left_out: &mut Vec<LeftOut>,
    synced: &mut Vec<(PlannedFilesystem, Synced)>,
    options: &Options,
    observer: &mut dyn Observer,
) -> Result<Staged, PrepareError> {
    let mut added = Opened::open(&change.added)?;
    // The second answer counts.
    left_out.retain(|before| {
        let mut again = change.added.iter().map(|planned| planned.device);
        !again.any(|device| device == before.planned.device)
    });
    left_out.append(&mut added.left_out);
    if added.filesystems.is_empty() {
        return Ok(staged);
    }
    let known = staged.filesystems.len();
    let staged = staged.add(added, change)?;
    let errors = waiting(
        &staged,
        options.sync_timeout.unwrap_or(JOBS_LIMIT),
        observer,
    )?;
    let staged = staged.leave_out(errors, left_out)?;
    let Some(limit) = options
        .sync_timeout
        .filter(|_| known < staged.filesystems.len())
    else {
        return Ok(staged);
    };
    let deadline = clock::monotonic().plus(limit);
    // Those that were synced before have little left to write.
    let results = sync(&borrow(&staged.directories), deadline, observer)?;
    *synced = staged
        .filesystems
        .iter()
        .cloned()
        .zip(results.iter().copied())
        .collect();
    let errors = unfit_after_sync(&staged, &results, limit);
    staged.leave_out(errors, left_out)
}

/// Returns an error for each filesystem whose FIFREEZE would wait for a job of the kernel.
fn waiting(
    staged: &Staged,
    limit: Duration,
    observer: &mut dyn Observer,
) -> Result<Vec<Option<DirectoryError>>, PrepareError> {
    let jobs = jobs_on(&staged.filesystems, &staged.directories, limit, observer)?;
    let filesystems = staged.filesystems.iter().zip(jobs);
    Ok(filesystems
        .map(|(planned, job)| Some(would_wait(planned, job?)))
        .collect())
}

/// Returns an error for each filesystem that must not be frozen after such a syncfs.
fn unfit_after_sync(
    staged: &Staged,
    synced: &[Synced],
    limit: Duration,
) -> Vec<Option<DirectoryError>> {
    let read_only = Errno::ROFS.raw_os_error().unsigned_abs();
    let filesystems = staged.filesystems.iter().zip(synced);
    filesystems
        .map(|(planned, synced)| match synced {
            // It may hold the superblock's lock, and then neither FIFREEZE nor FITHAW returns.
            Synced::Late => {
                let limit_s = limit.as_secs_f64();
                let job = format!("syncfs has not returned within {limit_s:.2} s");
                Some(would_wait(planned, job))
            }
            Synced::Failed(errno) if *errno == read_only => Some(DirectoryError::NotWritable {
                mount_point: planned.mount_point.clone(),
                why: "syncfs answered that it is read-only",
            }),
            // It may hold the lock as well.
            Synced::Lost(errno) => {
                let why = errno_text(*errno);
                let job = format!("the process that called syncfs cannot be reached: {why}");
                Some(would_wait(planned, job))
            }
            // No syncfs is under way. FIFREEZE writes out what is still dirty.
            Synced::Done | Synced::Failed(_) | Synced::Ended => None,
        })
        .collect()
}

fn would_wait(planned: &PlannedFilesystem, job: String) -> DirectoryError {
    DirectoryError::WouldWait {
        mount_point: planned.mount_point.clone(),
        job,
    }
}

/// Makes the name of a run. Names sort by time, and two processes never choose the same one.
fn run_id() -> String {
    let now = vmsnapshot_core::report::utc_text(i128::from(clock::realtime_ns()));
    format!("{}-{}", now.replace([':', '.'], ""), std::process::id())
}

fn resources(step: &'static str, cause: io::Error) -> PrepareError {
    PrepareError::Resources { step, cause }
}
