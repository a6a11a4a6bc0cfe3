//! The verdict on the snapshots of a run: a pure function of the results of its filesystems and
//! requests, and of how its window ended.

use std::time::Duration;

use crate::host_call;
use crate::plan::UnreadableMounts;
use crate::report::{
    ApplicationOutcome, ApplicationResult, BlobOutcome, BlobResult, CommandOutcome, CommandResult,
    Consistency, FilesystemOutcome, FilesystemResult, FreezeDoubt, HostCallOutcome, HostCallResult,
};

/// How a window ended, unless a panic ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowEnd<'a> {
    /// Whether every filesystem was frozen and the requests were sent.
    pub froze_all: bool,
    /// Whether the watchdog ended while something was frozen.
    pub watchdog_lost: bool,
    /// The filesystem whose FIFREEZE had not returned by the limit, if that ended the window.
    pub slow: Option<Slow<'a>>,
}

/// A filesystem whose FIFREEZE took too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slow<'a> {
    /// Where it is mounted.
    pub mount_point: &'a str,
    /// How long everything may take to be frozen.
    pub limit: Duration,
}

/// What a run asked for while everything was frozen.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The snapshots of blobs.
    pub blobs: &'a [BlobOutcome],
    /// The call to a host.
    pub host_call: Option<&'a HostCallOutcome>,
    /// The command.
    pub command: Option<&'a CommandOutcome>,
}

/// What the snapshots are worth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether everything that the run froze is thawed.
    pub all_thawed: bool,
    /// Whether the set of snapshots is complete, and as consistent as it was to be.
    pub is_as_asked: bool,
    /// What the set of snapshots is worth.
    pub consistency: Consistency,
    /// Why the set is worth no more. `None` if it is all that was asked for.
    pub why: Option<String>,
    /// Why it is not known that everything was frozen during all requests.
    pub freeze_doubt: Option<(FreezeDoubt, String)>,
}

/// Judges a run. `window` is `None` if a panic ended the window. `unreadable` is what the plan could
/// not read about the mounts.
#[must_use]
pub fn judge(
    window: Option<WindowEnd<'_>>,
    watchdog_fired: bool,
    filesystems: &[FilesystemOutcome],
    unreadable: &[UnreadableMounts],
    asked: Asked<'_>,
) -> Verdict {
    let Asked {
        blobs,
        host_call,
        command,
    } = asked;
    let all_thawed = !filesystems.iter().any(is_still_frozen);
    let freeze_doubt = freeze_doubt(window, watchdog_fired, filesystems, unreadable)
        .or_else(|| answered_late(blobs, host_call));
    let doubt = freeze_doubt.as_ref().map(|(_, why)| why.clone());
    let (consistency, why) = if all_thawed {
        let is_asked = !blobs.is_empty() || host_call.is_some() || command.is_some();
        let froze_all = window.is_none_or(|window| window.froze_all);
        consistency(
            is_asked,
            froze_all,
            missing_snapshot(blobs, host_call).or_else(|| failed_command(command)),
            doubt,
        )
    } else {
        // A filesystem that is still frozen is more serious than any failure of the snapshots.
        (Consistency::None, doubt)
    };
    Verdict {
        all_thawed,
        is_as_asked: consistency == Consistency::Filesystem,
        consistency,
        why,
        freeze_doubt,
    }
}

impl Verdict {
    /// Judges the same run with its applications. The set is worth more if the filesystems are
    /// consistent and every required application was held. If one was not, the filesystems are as
    /// consistent as before, but the set is not what was asked for.
    #[must_use]
    pub fn with(self, applications: &[ApplicationOutcome]) -> Self {
        if self.consistency != Consistency::Filesystem {
            return self;
        }
        let is_held = |item: &&ApplicationOutcome| item.outcome == ApplicationResult::Held;
        let mut required = applications.iter().filter(|item| item.required);
        if let Some(failed) = required.find(|item| !is_held(item)) {
            let cause = failed.error.as_deref().unwrap_or("it did not hold still");
            return Self {
                is_as_asked: false,
                why: Some(format!("application `{}`: {cause}", failed.name)),
                ..self
            };
        }
        if !applications.iter().any(|item| is_held(&item)) {
            return self;
        }
        Self {
            consistency: Consistency::Application,
            ..self
        }
    }
}

/// Returns whether the run froze it and it is still frozen, or will be when FIFREEZE returns.
fn is_still_frozen(filesystem: &FilesystemOutcome) -> bool {
    matches!(
        filesystem.outcome,
        FilesystemResult::NotThawed | FilesystemResult::FreezeHung
    )
}

/// Returns what the set of snapshots is worth once everything is thawed, and the most serious
/// reason why it is worth no more.
fn consistency(
    is_asked: bool,
    froze_all: bool,
    missing: Option<String>,
    doubt: Option<String>,
) -> (Consistency, Option<String>) {
    match (missing, doubt) {
        (None, None) => (Consistency::Filesystem, None),
        (None, Some(why)) if is_asked => (Consistency::Crash, Some(why)),
        (None, Some(why)) => (Consistency::None, Some(why)),
        // The requests were not sent because the freeze failed. The freeze is the reason, not the
        // missing answer.
        (Some(_), Some(why)) if !froze_all => (Consistency::None, Some(why)),
        (Some(missing), _) => (Consistency::None, Some(missing)),
    }
}

/// Returns why it is not known that everything was frozen during all calls. `None` if it is known.
fn freeze_doubt(
    window: Option<WindowEnd<'_>>,
    watchdog_fired: bool,
    filesystems: &[FilesystemOutcome],
    unreadable: &[UnreadableMounts],
) -> Option<(FreezeDoubt, String)> {
    let is_left_out = |filesystem: &FilesystemOutcome| needs_no_freeze(filesystem.outcome);
    filesystem_doubt(filesystems, window)
        .or_else(|| window_doubt(window, watchdog_fired))
        .or_else(|| unfrozen(filesystems))
        .or_else(|| {
            let UnreadableMounts { path, why } = unreadable.first()?;
            let why = format!("some mounts are not known: could not read `{path}`: {why}");
            Some((FreezeDoubt::MountsUnreadable, why))
        })
        .or_else(|| {
            filesystems
                .iter()
                .all(is_left_out)
                .then(|| (FreezeDoubt::NothingFrozen, "nothing was frozen".to_owned()))
        })
}

/// Returns whether it was left out because nothing can write to it.
fn needs_no_freeze(outcome: FilesystemResult) -> bool {
    matches!(
        outcome,
        FilesystemResult::NotWritable | FilesystemResult::Unmounted
    )
}

/// Returns the most serious doubt that the outcome of a filesystem causes, if any does.
fn filesystem_doubt(
    filesystems: &[FilesystemOutcome],
    window: Option<WindowEnd<'_>>,
) -> Option<(FreezeDoubt, String)> {
    let doubt = |outcome: FilesystemResult| match outcome {
        FilesystemResult::NotThawed => Some((0, FreezeDoubt::NotThawed)),
        FilesystemResult::FreezeHung => Some((1, FreezeDoubt::FreezeHung)),
        FilesystemResult::ThawedByWatchdog => Some((2, FreezeDoubt::ThawedByWatchdog)),
        FilesystemResult::ThawedByAnother => Some((3, FreezeDoubt::ThawedByAnother)),
        FilesystemResult::FrozenByAnother => Some((4, FreezeDoubt::FrozenByAnother)),
        // Its turn did not come because of what the end of the window names.
        FilesystemResult::NotFrozen
            if window.is_some_and(|window| window.slow.is_some() || window.watchdog_lost) =>
        {
            None
        }
        FilesystemResult::NotFrozen if window.is_some() => Some((5, FreezeDoubt::FreezeLate)),
        FilesystemResult::NotFrozen => Some((5, FreezeDoubt::WindowBrokeOff)),
        FilesystemResult::Thawed
        | FilesystemResult::NotFreezable
        | FilesystemResult::FreezeFailed
        | FilesystemResult::NotOpened
        | FilesystemResult::MountedSince
        | FilesystemResult::FreezeWouldWait
        | FilesystemResult::NotWritable
        | FilesystemResult::Unmounted => None,
    };
    let (_, doubt, worst) = filesystems
        .iter()
        .filter_map(|filesystem| {
            let (gravity, doubt) = doubt(filesystem.outcome)?;
            Some((gravity, doubt, filesystem))
        })
        .min_by_key(|(gravity, ..)| *gravity)?;
    let mount_point = &worst.mount_point;
    let why = match worst.outcome {
        FilesystemResult::NotThawed => format!("`{mount_point}` is still frozen"),
        FilesystemResult::FreezeHung => {
            format!("the freeze of `{mount_point}` has not returned")
        }
        FilesystemResult::ThawedByWatchdog => {
            format!("the watchdog had to thaw `{mount_point}`")
        }
        FilesystemResult::ThawedByAnother => {
            format!("another program thawed `{mount_point}` during the snapshots")
        }
        FilesystemResult::FrozenByAnother => {
            format!("another program had frozen `{mount_point}`")
        }
        FilesystemResult::NotFrozen
        | FilesystemResult::Thawed
        | FilesystemResult::NotFreezable
        | FilesystemResult::FreezeFailed
        | FilesystemResult::NotOpened
        | FilesystemResult::MountedSince
        | FilesystemResult::FreezeWouldWait
        | FilesystemResult::NotWritable
        | FilesystemResult::Unmounted => {
            format!("the run ended before `{mount_point}` was frozen")
        }
    };
    Some((doubt, why))
}

/// Returns the doubt that the end of the window causes, if it causes one.
fn window_doubt(
    window: Option<WindowEnd<'_>>,
    watchdog_fired: bool,
) -> Option<(FreezeDoubt, String)> {
    let (doubt, why) = match window {
        None => (
            FreezeDoubt::WindowBrokeOff,
            "an internal error of vmsnapshot ended the window",
        ),
        Some(_) if watchdog_fired => (FreezeDoubt::WatchdogFired, "the watchdog ended the window"),
        Some(window) if window.watchdog_lost => (
            FreezeDoubt::WatchdogLost,
            "the watchdog was lost, so the window was ended early",
        ),
        Some(WindowEnd {
            slow: Some(slow), ..
        }) => {
            let limit_s = slow.limit.as_secs_f64();
            let why = format!(
                "`{}` was not frozen within {limit_s:.2} s",
                slow.mount_point
            );
            return Some((FreezeDoubt::FreezeLate, why));
        }
        Some(window) if !window.froze_all => {
            (FreezeDoubt::FreezeLate, "not everything was frozen in time")
        }
        Some(_) => return None,
    };
    Some((doubt, why.to_owned()))
}

/// Returns the doubt about the first filesystem that may be writable and was not frozen, if there is
/// one.
///
/// It does not end the window, and the calls are made all the same. So whatever did end the window
/// is more serious.
fn unfrozen(filesystems: &[FilesystemOutcome]) -> Option<(FreezeDoubt, String)> {
    filesystems.iter().find_map(|filesystem| {
        let mount_point = &filesystem.mount_point;
        let error = filesystem.error.as_deref().unwrap_or("no reason was given");
        match filesystem.outcome {
            // The plan leaves out types that are known not to be freezable, and read-only
            // filesystems. So this one is writable.
            FilesystemResult::NotFreezable => Some((
                FreezeDoubt::NotFreezable,
                format!(
                    "the kernel cannot freeze `{mount_point}` ({}), which is writable",
                    filesystem.filesystem_type
                ),
            )),
            FilesystemResult::FreezeFailed => Some((
                FreezeDoubt::FreezeFailed,
                format!("`{mount_point}` could not be frozen: {error}"),
            )),
            FilesystemResult::NotOpened => Some((
                FreezeDoubt::NotOpened,
                format!("`{mount_point}` could not be frozen: {error}"),
            )),
            FilesystemResult::MountedSince => Some((
                FreezeDoubt::MountedSince,
                format!("`{mount_point}` was not frozen: {error}"),
            )),
            FilesystemResult::FreezeWouldWait => Some((
                FreezeDoubt::FreezeWouldWait,
                format!("`{mount_point}` could not be frozen in time: {error}"),
            )),
            FilesystemResult::Thawed
            | FilesystemResult::ThawedByWatchdog
            | FilesystemResult::ThawedByAnother
            | FilesystemResult::FrozenByAnother
            | FilesystemResult::NotWritable
            | FilesystemResult::Unmounted
            | FilesystemResult::NotFrozen
            | FilesystemResult::FreezeHung
            | FilesystemResult::NotThawed => None,
        }
    })
}

/// Returns the doubt about the first snapshot that was confirmed after the window, if there is one.
///
/// It is the least serious doubt. The others say that something was not frozen during any of the
/// calls.
fn answered_late(
    blobs: &[BlobOutcome],
    host: Option<&HostCallOutcome>,
) -> Option<(FreezeDoubt, String)> {
    let blob = blobs
        .iter()
        .find(|blob| blob.answered_late && blob.outcome == BlobResult::Created)
        .map(|blob| format!("the snapshot of {} was", blob.uri));
    let host = host
        .filter(|host| host.answered_late && matches!(host.http_status, Some(200..=299)))
        .map(|_| "the host's snapshots were".to_owned());
    let subject = blob.or(host)?;
    let why = format!("{subject} confirmed after the thaw, and may have been taken after it");
    Some((FreezeDoubt::AnsweredLate, why))
}

/// Returns how the command failed, if it did.
fn failed_command(command: Option<&CommandOutcome>) -> Option<String> {
    let command = command?;
    let name = &command.program;
    match (command.outcome, command.exit_status, command.signal) {
        (CommandResult::Ended, Some(0), _) => None,
        (CommandResult::Ended, Some(status), _) => {
            Some(format!("`{name}` ended with exit status {status}"))
        }
        (CommandResult::Ended, None, Some(signal)) => {
            Some(format!("`{name}` was ended by signal {signal}"))
        }
        (CommandResult::Ended, None, None) => Some(format!("`{name}` ended in an unknown way")),
        (CommandResult::TooLate, ..) => Some(format!(
            "`{name}` had not ended when everything had to thaw"
        )),
        (CommandResult::NotRun, ..) => Some(format!("`{name}` was not run")),
    }
}

/// Returns why a snapshot is not known to exist: the first such blob, or the host's whole set.
///
/// The caller reads the body of a successful host answer. It is not judged here.
fn missing_snapshot(blobs: &[BlobOutcome], host: Option<&HostCallOutcome>) -> Option<String> {
    let blob = (1..)
        .zip(blobs)
        .find(|(_, blob)| blob.outcome != BlobResult::Created)
        .map(|(position, blob)| {
            // A blob whose URI could not be parsed has an empty URI.
            let name = match blob.uri.as_str() {
                "" => format!("blob {position} of {}", blobs.len()),
                uri => uri.to_owned(),
            };
            format!(
                "the snapshot of {name} {}: {}",
                match blob.outcome {
                    BlobResult::Unknown => "is unknown",
                    BlobResult::Refused | BlobResult::Created => "was refused",
                },
                blob.error_code
                    .as_deref()
                    .or(blob.message.as_deref())
                    .unwrap_or("no reason was given")
            )
        });
    let host = host.and_then(|host| {
        let words = host.message.as_deref().unwrap_or("no reason was given");
        match (host.http_status, host.outcome) {
            (Some(200..=299), _) => None,
            (Some(status), _) if host_call::is_refusal(status) => Some(format!(
                "the host's snapshots were refused: it answered {status}"
            )),
            (Some(status), _) => Some(format!(
                "the host's snapshots are unknown: it answered {status}"
            )),
            (None, HostCallResult::NotSent) => {
                Some(format!("the host's snapshots were not requested: {words}"))
            }
            (None, HostCallResult::Unknown | HostCallResult::Answered) => {
                Some(format!("the host's snapshots are unknown: {words}"))
            }
        }
    });
    blob.or(host)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::secret::SecretBytes;

    fn filesystem(outcome: FilesystemResult) -> FilesystemOutcome {
        FilesystemOutcome {
            mount_point: format!("/{outcome:?}"),
            device: "8:1".to_owned(),
            filesystem_type: "ext4".to_owned(),
            level: 0,
            outcome,
            frozen_at: None,
            freeze_ms: None,
            thawed_at: None,
            frozen_ms: None,
            thawed_by: None,
            error: None,
        }
    }

    fn window(froze_all: bool, watchdog_lost: bool) -> Option<WindowEnd<'static>> {
        Some(WindowEnd {
            froze_all,
            watchdog_lost,
            slow: None,
        })
    }

    fn code(
        window: Option<WindowEnd<'_>>,
        watchdog_fired: bool,
        outcomes: &[FilesystemResult],
    ) -> Option<FreezeDoubt> {
        let filesystems: Vec<_> = outcomes.iter().copied().map(filesystem).collect();
        let doubt = freeze_doubt(window, watchdog_fired, &filesystems, &[]);
        doubt.map(|(code, _)| code)
    }

    #[test]
    fn doubt_is_the_most_serious_one_of_the_filesystems() {
        let gravest_first = [
            (FilesystemResult::NotThawed, FreezeDoubt::NotThawed),
            (FilesystemResult::FreezeHung, FreezeDoubt::FreezeHung),
            (
                FilesystemResult::ThawedByWatchdog,
                FreezeDoubt::ThawedByWatchdog,
            ),
            (
                FilesystemResult::ThawedByAnother,
                FreezeDoubt::ThawedByAnother,
            ),
            (
                FilesystemResult::FrozenByAnother,
                FreezeDoubt::FrozenByAnother,
            ),
            (FilesystemResult::NotFrozen, FreezeDoubt::FreezeLate),
        ];
        let late = window(false, false);
        for (first, (outcome, expected)) in gravest_first.into_iter().enumerate() {
            let mut outcomes = vec![FilesystemResult::Thawed];
            outcomes.extend(gravest_first.iter().skip(first).rev().map(|pair| pair.0));
            assert_eq!(code(late, true, &outcomes), Some(expected));
            let filesystems = [filesystem(outcome)];
            let (_, why) = freeze_doubt(late, false, &filesystems, &[]).unwrap();
            assert!(why.contains(&format!("`/{outcome:?}`")), "{why}");
        }
    }

    #[test]
    fn doubt_comes_from_the_window_if_no_filesystem_causes_one() {
        let frozen = [FilesystemResult::Thawed, FilesystemResult::Thawed];
        let good = window(true, false);
        for (window_end, watchdog_fired, outcomes, expected) in [
            (good, false, &frozen[..], None),
            (None, true, &frozen, Some(FreezeDoubt::WindowBrokeOff)),
            (
                None,
                false,
                &[FilesystemResult::NotFrozen],
                Some(FreezeDoubt::WindowBrokeOff),
            ),
            (good, true, &frozen, Some(FreezeDoubt::WatchdogFired)),
            (
                window(true, true),
                false,
                &frozen,
                Some(FreezeDoubt::WatchdogLost),
            ),
            (
                window(false, false),
                false,
                &frozen,
                Some(FreezeDoubt::FreezeLate),
            ),
            (good, false, &[], Some(FreezeDoubt::NothingFrozen)),
        ] {
            assert_eq!(code(window_end, watchdog_fired, outcomes), expected);
        }
    }

    #[test]
    fn slow_filesystem_is_named_and_not_the_one_whose_turn_did_not_come() {
        let slow = Slow {
            mount_point: "/slow",
            limit: Duration::from_millis(1500),
        };
        let ended = Some(WindowEnd {
            froze_all: false,
            watchdog_lost: false,
            slow: Some(slow),
        });
        let outcomes = [FilesystemResult::NotFrozen, FilesystemResult::Thawed];
        let (doubt, why) = freeze_doubt(ended, false, &outcomes.map(filesystem), &[]).unwrap();
        assert_eq!(doubt, FreezeDoubt::FreezeLate);
        assert_eq!(why, "`/slow` was not frozen within 1.50 s");
        // It is worse if it is still inside FIFREEZE when the report is made.
        let hung = [FilesystemResult::NotFrozen, FilesystemResult::FreezeHung];
        assert_eq!(code(ended, false, &hung), Some(FreezeDoubt::FreezeHung));
    }

    #[test]
    fn filesystem_that_could_be_written_and_was_not_frozen_is_a_doubt() {
        for (outcome, expected) in [
            (FilesystemResult::FreezeFailed, FreezeDoubt::FreezeFailed),
            (FilesystemResult::NotOpened, FreezeDoubt::NotOpened),
            (FilesystemResult::MountedSince, FreezeDoubt::MountedSince),
            (
                FilesystemResult::FreezeWouldWait,
                FreezeDoubt::FreezeWouldWait,
            ),
        ] {
            let filesystems = [FilesystemResult::Thawed, outcome].map(filesystem);
            let (doubt, why) = freeze_doubt(window(true, false), false, &filesystems, &[]).unwrap();
            assert_eq!(doubt, expected);
            assert!(why.contains(&format!("`/{outcome:?}`")), "{why}");
            let ended_early = code(window(false, false), false, &[outcome]);
            assert_eq!(ended_early, Some(FreezeDoubt::FreezeLate));
        }
    }

    #[test]
    fn filesystem_that_cannot_be_written_is_no_doubt_beside_one_that_was_frozen() {
        let good = window(true, false);
        let beside = [FilesystemResult::NotWritable, FilesystemResult::Thawed];
        assert_eq!(code(good, false, &beside), None);
        let alone = code(good, false, &[FilesystemResult::NotWritable]);
        assert_eq!(alone, Some(FreezeDoubt::NothingFrozen));
    }

    #[test]
    fn filesystem_that_cannot_be_frozen_is_the_doubt_only_if_nothing_ended_the_window() {
        let not_freezable = [FilesystemResult::Thawed, FilesystemResult::NotFreezable];
        let good = window(true, false);
        for (window_end, watchdog_fired, outcomes, expected) in [
            (good, false, &not_freezable[..], FreezeDoubt::NotFreezable),
            (
                good,
                false,
                &[FilesystemResult::NotFreezable],
                FreezeDoubt::NotFreezable,
            ),
            (
                window(false, false),
                false,
                &[FilesystemResult::NotFreezable, FilesystemResult::NotFrozen],
                FreezeDoubt::FreezeLate,
            ),
            (
                window(false, false),
                false,
                &not_freezable,
                FreezeDoubt::FreezeLate,
            ),
            (
                window(true, true),
                false,
                &not_freezable,
                FreezeDoubt::WatchdogLost,
            ),
            (good, true, &not_freezable, FreezeDoubt::WatchdogFired),
            (None, false, &not_freezable, FreezeDoubt::WindowBrokeOff),
        ] {
            let doubt = code(window_end, watchdog_fired, outcomes);
            assert_eq!(doubt, Some(expected), "{window_end:?} {outcomes:?}");
        }
        let (_, why) = freeze_doubt(good, false, &not_freezable.map(filesystem), &[]).unwrap();
        assert!(why.contains("`/NotFreezable` (ext4)"), "{why}");
    }

    #[test]
    fn mounts_that_could_not_be_read_are_the_doubt_if_none_is_more_definite() {
        let unreadable = [UnreadableMounts {
            path: "/proc/20/mountinfo".to_owned(),
            why: "permission denied".to_owned(),
        }];
        let doubt = |outcomes: &[FilesystemResult]| {
            let filesystems: Vec<_> = outcomes.iter().copied().map(filesystem).collect();
            freeze_doubt(window(true, false), false, &filesystems, &unreadable).unwrap()
        };
        let (code, why) = doubt(&[FilesystemResult::Thawed]);
        assert_eq!(code, FreezeDoubt::MountsUnreadable);
        assert!(
            why.contains("`/proc/20/mountinfo`: permission denied"),
            "{why}"
        );
        // What should have been frozen may be among those mounts.
        assert_eq!(doubt(&[]).0, FreezeDoubt::MountsUnreadable);
        let (code, _) = doubt(&[FilesystemResult::NotFreezable]);
        assert_eq!(code, FreezeDoubt::NotFreezable);
        let blobs = [blob("http://host/c/b", BlobResult::Created)];
        let thawed = [filesystem(FilesystemResult::Thawed)];
        let verdict = judge(
            window(true, false),
            false,
            &thawed,
            &unreadable,
            Asked {
                blobs: &blobs,
                host_call: None,
                command: None,
            },
        );
        assert_eq!(verdict.consistency, Consistency::Crash);
    }

    fn host(outcome: HostCallResult, http_status: Option<u16>) -> HostCallOutcome {
        HostCallOutcome {
            uri: "http://host/dosnapshot".to_owned(),
            outcome,
            http_status,
            body: SecretBytes(b"t0ken".to_vec()),
            body_is_complete: true,
            error_code: None,
            message: Some("the words".to_owned()),
            attempts: u32::from(outcome != HostCallResult::NotSent),
            answer_ms: None,
            answered_late: false,
        }
    }

    #[test]
    fn snapshots_of_a_host_are_confirmed_only_by_a_successful_answer() {
        use HostCallResult::{Answered, NotSent, Unknown};
        for (outcome, status, word) in [
            (Answered, Some(200), None),
            (Answered, Some(201), None),
            (Answered, Some(302), Some("were refused: it answered 302")),
            (Answered, Some(404), Some("were refused: it answered 404")),
            (Answered, Some(503), Some("were refused: it answered 503")),
            (Answered, Some(500), Some("are unknown: it answered 500")),
            (Answered, Some(504), Some("are unknown: it answered 504")),
            (Unknown, None, Some("are unknown: the words")),
            (NotSent, None, Some("were not requested: the words")),
        ] {
            let host = host(outcome, status);
            let missing = missing_snapshot(&[], Some(&host));
            match (missing, word) {
                (None, None) => {}
                (Some(missing), Some(word)) => assert!(missing.ends_with(word), "{missing}"),
                (missing, _) => panic!("{outcome:?} {status:?}: {missing:?}"),
            }
            assert!(!format!("{host:?}").contains("t0ken"));
        }
    }

    fn blob(uri: &str, outcome: BlobResult) -> BlobOutcome {
        BlobOutcome {
            uri: uri.to_owned(),
            outcome,
            snapshot: None,
            snapshot_uri: None,
            http_status: None,
            error_code: (outcome != BlobResult::Created).then(|| "duplicate-blob".to_owned()),
            message: None,
            retryable: false,
            attempts: 0,
            answer_ms: None,
            answered_late: false,
            body: None,
        }
    }

    #[test]
    fn snapshot_that_was_confirmed_after_the_thaw_is_a_doubt_if_there_is_no_other() {
        let late = |outcome| BlobOutcome {
            answered_late: true,
            ..blob("http://host/c/b", outcome)
        };
        let late_host = |status| HostCallOutcome {
            answered_late: true,
            ..host(HostCallResult::Answered, Some(status))
        };
        let frozen = [filesystem(FilesystemResult::Thawed)];
        let not_freezable = [filesystem(FilesystemResult::NotFreezable)];
        let (created, refused) = (BlobResult::Created, BlobResult::Refused);
        for (filesystems, blobs, host, expected) in [
            (
                &frozen[..],
                &[late(created)][..],
                None,
                Some(FreezeDoubt::AnsweredLate),
            ),
            (
                &frozen,
                &[blob("", created), late(created)],
                None,
                Some(FreezeDoubt::AnsweredLate),
            ),
            (&frozen, &[blob("", created), late(refused)], None, None),
            (
                &frozen,
                &[],
                Some(late_host(201)),
                Some(FreezeDoubt::AnsweredLate),
            ),
            (&frozen, &[], Some(late_host(500)), None),
            (
                &not_freezable,
                &[late(created)],
                None,
                Some(FreezeDoubt::NotFreezable),
            ),
            // There was no thaw.
            (
                &[],
                &[late(created)],
                None,
                Some(FreezeDoubt::NothingFrozen),
            ),
        ] {
            let good = window(true, false);
            let verdict = judge(
                good,
                false,
                filesystems,
                &[],
                Asked {
                    blobs,
                    host_call: host.as_ref(),
                    command: None,
                },
            );
            assert_eq!(verdict.freeze_doubt.map(|(code, _)| code), expected);
            assert_ne!(verdict.consistency, Consistency::Filesystem);
        }
        let verdict = judge(
            window(true, false),
            false,
            &frozen,
            &[],
            Asked {
                blobs: &[late(created)],
                host_call: None,
                command: None,
            },
        );
        assert_eq!(verdict.consistency, Consistency::Crash);
    }

    #[test]
    fn missing_snapshot_is_named_by_the_uri_or_the_position_of_its_blob() {
        for (uri, name) in [("http://host/c/b", "http://host/c/b"), ("", "blob 2 of 2")] {
            let blobs = [
                blob("http://host/c/b", BlobResult::Created),
                blob(uri, BlobResult::Refused),
            ];
            assert_eq!(
                missing_snapshot(&blobs, None),
                Some(format!(
                    "the snapshot of {name} was refused: duplicate-blob"
                ))
            );
        }
    }

    #[test]
    fn consistency_comes_with_the_most_serious_reason() {
        let missing = || Some("missing".to_owned());
        let doubt = || Some("doubt".to_owned());
        for (is_asked, froze_all, missing, doubt, expected, why) in [
            (true, true, None, None, Consistency::Filesystem, None),
            (false, true, None, None, Consistency::Filesystem, None),
            (true, true, None, doubt(), Consistency::Crash, Some("doubt")),
            (false, true, None, doubt(), Consistency::None, Some("doubt")),
            (
                true,
                true,
                missing(),
                None,
                Consistency::None,
                Some("missing"),
            ),
            (
                true,
                true,
                missing(),
                doubt(),
                Consistency::None,
                Some("missing"),
            ),
            (
                true,
                false,
                missing(),
                doubt(),
                Consistency::None,
                Some("doubt"),
            ),
        ] {
            let (consistency, said) = consistency(is_asked, froze_all, missing, doubt);
            assert_eq!((consistency, said.as_deref()), (expected, why));
        }
    }

    #[test]
    fn filesystem_that_is_still_frozen_outranks_every_snapshot_result() {
        let filesystems = [
            filesystem(FilesystemResult::Thawed),
            filesystem(FilesystemResult::NotThawed),
        ];
        for outcome in [BlobResult::Created, BlobResult::Refused] {
            let blobs = [blob("http://host/c/b", outcome)];
            let verdict = judge(
                window(true, false),
                false,
                &filesystems,
                &[],
                Asked {
                    blobs: &blobs,
                    host_call: None,
                    command: None,
                },
            );
            let why = "`/NotThawed` is still frozen".to_owned();
            assert_eq!(
                verdict,
                Verdict {
                    all_thawed: false,
                    is_as_asked: false,
                    consistency: Consistency::None,
                    why: Some(why.clone()),
                    freeze_doubt: Some((FreezeDoubt::NotThawed, why)),
                }
            );
        }
    }

    #[test]
    fn set_is_worth_what_its_required_applications_and_its_filesystems_allow() {
        use ApplicationResult::{Held, Lost, NotCovered, NotQuiesced, NotReady};
        let application = |(required, outcome)| ApplicationOutcome {
            name: "orders".to_owned(),
            kind: "mariadb".to_owned(),
            required,
            outcome,
            method: None,
            proof: None,
            ready_ms: None,
            lock_wait_ms: None,
            held_ms: None,
            position: std::collections::BTreeMap::new(),
            position_is: None,
            files: std::collections::BTreeMap::new(),
            error_code: None,
            error: Some("it ended".to_owned()),
        };
        let verdict = |consistency, applications: &[(bool, ApplicationResult)]| {
            let verdict = Verdict {
                all_thawed: true,
                is_as_asked: consistency == Consistency::Filesystem,
                consistency,
                why: None,
                freeze_doubt: None,
            };
            let applications: Vec<_> = applications.iter().copied().map(application).collect();
            let verdict = verdict.with(&applications);
            assert_eq!(
                verdict.is_as_asked,
                verdict.why.is_none() && consistency == Consistency::Filesystem
            );
            (verdict.consistency, verdict.is_as_asked)
        };
        let filesystem = Consistency::Filesystem;
        assert_eq!(verdict(filesystem, &[]), (filesystem, true));
        let all = (Consistency::Application, true);
        assert_eq!(verdict(filesystem, &[(true, Held)]), all);
        assert_eq!(verdict(filesystem, &[(false, Held)]), all);
        assert_eq!(verdict(filesystem, &[(false, Lost), (true, Held)]), all);
        assert_eq!(verdict(filesystem, &[(false, Lost)]), (filesystem, true));
        for failed in [Lost, NotCovered, NotQuiesced, NotReady] {
            assert_eq!(
                verdict(filesystem, &[(true, Held), (true, failed)]),
                (filesystem, false)
            );
        }
        for less in [Consistency::Crash, Consistency::None] {
            assert_eq!(verdict(less, &[(true, Held)]), (less, false));
        }
    }
}
