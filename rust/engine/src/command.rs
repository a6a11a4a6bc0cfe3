//! A command that runs while everything is frozen.
//!
//! It is started before the window and waits at a gate, so that nothing is forked inside: a shell that
//! reads a line and then becomes the command. Its output goes to memory, which no freeze stops. The thaw
//! does not wait for it. A process that writes to a frozen filesystem cannot be killed before the thaw.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use rustix::fs::{fcntl_add_seals, memfd_create, MemfdFlags, SealFlags};
use tokio::sync::Notify;
use vmsnapshot_core::deadlines::Monotonic;
use vmsnapshot_core::report::{milliseconds, CommandOutcome, CommandResult};
use vmsnapshot_core::secret::SecretBytes;
use vmsnapshot_core::text::path_text;
use vmsnapshot_sys::{clock, process, Errno};

use crate::both::first_of;

/// How much of the output is kept. The command gets EPERM for more.
pub const OUTPUT_LIMIT_BYTES: u64 = 16 * 1024 * 1024;
/// How long a killed command may take to end, once nothing is frozen.
const END_LIMIT: Duration = Duration::from_secs(2);
/// How often it is asked whether it has ended then.
const TICK: Duration = Duration::from_millis(1);
/// The thread waits for one process.
const STACK_BYTES: usize = 64 * 1024;
const SHELL: &str = "/bin/sh";
/// The gate opens with a line. If the run ends first, there is no line.
const GATE: &str = "read -r line && exec \"$@\" </dev/null";

/// When the command ended.
#[derive(Default)]
struct End {
    at: OnceLock<Monotonic>,
    told: Notify,
}

/// A command at its gate, or on its way.
pub(crate) struct GatedCommand {
    program: PathBuf,
    child: Child,
    gate: Option<ChildStdin>,
    output: File,
    began_at: Option<Monotonic>,
    end: Arc<End>,
    /// Ends the waiting.
    stop: Arc<Notify>,
}

impl GatedCommand {
    /// Starts the gate.
    ///
    /// *Blocking*: some milliseconds, for an exec. *In the window*: no.
    ///
    /// # Errors
    /// The kernel's error, and NotFound or PermissionDenied for the program.
    pub(crate) fn start(words: &[OsString]) -> io::Result<Self> {
        let program = find(words.first().ok_or(io::ErrorKind::InvalidInput)?)?;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let output = File::from(memfd_create("vmsnapshot-output", flags)?);
        output.set_len(OUTPUT_LIMIT_BYTES)?;
        fcntl_add_seals(&output, SealFlags::GROW | SealFlags::SHRINK)?;
        let mut child = Command::new(SHELL)
            .args(["-c", GATE, "vmsnapshot-gate"])
            .arg(&program)
            .args(words.get(1..).unwrap_or_default())
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(output.try_clone()?)
            .stderr(output.try_clone()?)
            .spawn()?;
        let command = Self {
            program,
            gate: child.stdin.take(),
            child,
            output,
            began_at: None,
            end: Arc::default(),
            stop: Arc::default(),
        };
        let (child, end) = (command.child.id(), Arc::clone(&command.end));
        // It ends when the command does.
        std::thread::Builder::new()
            .name("vmsnapshot-command".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                process::wait_for_end(child);
                let _ = end.at.set(clock::monotonic());
                end.told.notify_one();
            })?;
        Ok(command)
    }

    /// Returns what the alarm calls to end the waiting.
    pub(crate) fn stopper(&self) -> impl Fn() + Send + 'static {
        let stop = Arc::clone(&self.stop);
        move || stop.notify_one()
    }

    /// Opens the gate and waits until the command has ended, or until the alarm tells.
    ///
    /// *In the window*: only there.
    pub(crate) async fn run(&mut self) {
        self.began_at = Some(clock::monotonic());
        // The pipe is empty, so this does not wait. A gate that is gone shows as its exit status.
        let opened = self.gate.take().map(|mut gate| gate.write_all(b"\n"));
        drop(opened);
        let (end, stop) = (Arc::clone(&self.end), Arc::clone(&self.stop));
        first_of(end.told.notified(), stop.notified()).await;
    }

    /// Kills it unless it has ended. It ends once nothing that it waits for is frozen.
    ///
    /// *Blocking*: never.
    pub(crate) fn kill(&self) {
        if self.end.at.get().is_none() {
            process::kill_group(self.child.id());
        }
    }

    /// Kills what is still running, and returns what became of it. Nothing is frozen any more, or a
    /// thaw hangs. An end after `thaw_began_at` is too late.
    ///
    /// *Blocking*: 2 s. *In the window*: no.
    pub(crate) fn finish(mut self, thaw_began_at: Monotonic) -> CommandOutcome {
        drop(self.gate.take());
        let ended_at = self.end.at.get().copied().filter(|at| *at <= thaw_began_at);
        self.kill();
        let outcome = match (self.began_at, ended_at) {
            (None, _) => CommandResult::NotRun,
            (Some(_), Some(_)) => CommandResult::Ended,
            (Some(_), None) => CommandResult::TooLate,
        };
        let status = self.reap().filter(|_| outcome != CommandResult::NotRun);
        let until = ended_at.unwrap_or(thaw_began_at);
        let (output, output_is_truncated) = self.read_output();
        CommandOutcome {
            program: path_text(&self.program),
            outcome,
            exit_status: status.and_then(|status| status.code()),
            signal: status.and_then(|status| status.signal()),
            took_ms: self.began_at.map(|began| milliseconds(until.since(began))),
            output_is_truncated,
            output: SecretBytes(output),
        }
    }

    fn reap(&mut self) -> Option<ExitStatus> {
        let until = Instant::now() + END_LIMIT;
        loop {
            match self.child.try_wait() {
                Ok(None) if Instant::now() < until => std::thread::sleep(TICK),
                status => return status.ok().flatten(),
            }
        }
    }

    fn read_output(&mut self) -> (Vec<u8>, bool) {
        // All writers share this offset.
        let written = self
            .output
            .stream_position()
            .unwrap_or(0)
            .min(OUTPUT_LIMIT_BYTES);
        let mut output = Vec::new();
        // A memory file can be read.
        let _ = self
            .output
            .seek(SeekFrom::Start(0))
            .and_then(|_| (&self.output).take(written).read_to_end(&mut output));
        (output, written == OUTPUT_LIMIT_BYTES)
    }
}

impl Drop for GatedCommand {
    fn drop(&mut self) {
        // A gate that was not opened would end by itself. One that has been reaped is not killed.
        if matches!(self.child.try_wait(), Ok(None)) {
            process::kill_group(self.child.id());
            let _ = self.reap();
        }
    }
}

/// Finds the program as the shell would, so that a missing one is an error before the freeze.
fn find(program: &OsStr) -> io::Result<PathBuf> {
    let is_executable = |path: &Path| {
        let found = path.metadata()?;
        let is_executable = found.is_file() && found.permissions().mode() & 0o111 != 0;
        is_executable
            .then(|| path.to_owned())
            .ok_or_else(|| io::Error::from(Errno::ACCESS))
    };
    if Path::new(program).components().count() > 1 {
        return is_executable(Path::new(program));
    }
    let places = std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
    std::env::split_paths(&places)
        .find_map(|place| is_executable(&place.join(program)).ok())
        .ok_or_else(|| Errno::NOENT.into())
}
