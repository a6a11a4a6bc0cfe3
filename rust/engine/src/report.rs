//! Makes the report from the ledger, the answers and the watchdog's outcome, after the window.

mod facts;
mod filesystems;
mod requests;
mod timeline;

pub(crate) use facts::Facts;

use vmsnapshot_core::application;
use vmsnapshot_core::ledger::FireReason;
use vmsnapshot_core::report::{milliseconds, utc_text, Mode, Report, SCHEMA_VERSION};
use vmsnapshot_core::text::path_text;
use vmsnapshot_core::verdict::{self, Asked, Slow, Verdict, WindowEnd};

use filesystems::filesystem_outcomes;
use requests::{blob_outcomes, host_outcome};
use timeline::timeline;

/// Makes the report of a run that is over.
pub(crate) fn make(mut facts: Facts<'_>) -> Report {
    let filesystems = filesystem_outcomes(&facts);
    let blobs = blob_outcomes(&facts);
    let host_call = host_outcome(&facts);
    let slow = slow_filesystem(&facts);
    let timeline = timeline(&facts);
    let first_freeze = facts.first_freeze_at();
    let thawed = facts.record.as_ref().map(|record| record.ended_at);
    let applications: Vec<_> = std::mem::take(&mut facts.applications)
        .into_iter()
        .map(|record| application::judge(record, first_freeze, thawed, &filesystems))
        .collect();
    let window = facts.record.as_ref().map(|record| WindowEnd {
        froze_all: record.answers.is_some(),
        watchdog_lost: facts.watchdog_lost,
        slow: slow.as_deref().map(|mount_point| Slow {
            mount_point,
            limit: facts.deadlines.freeze_by.since(facts.deadlines.start),
        }),
    });
    // The verdict uses the outcomes in the report and does not read the ledger again. The watchdog
    // may still be at work, and the report must not contradict itself.
    let Verdict {
        all_thawed,
        is_as_asked,
        consistency,
        why,
        freeze_doubt,
    } = verdict::judge(
        window,
        facts
            .watchdog
            .fired
            .is_some_and(FireReason::ended_the_window),
        &filesystems,
        facts.unreadable_mounts,
        Asked {
            blobs: &blobs,
            host_call: host_call.as_ref(),
            command: facts.command.as_ref(),
        },
    )
    .with(&applications);
    let (freeze_doubt_code, freeze_doubt) = freeze_doubt.unzip();
    Report {
        schema_version: SCHEMA_VERSION,
        run_id: facts.run_id.to_owned(),
        started_at: utc_text(facts.ledger.header.realtime_ns(facts.deadlines.start)),
        consistent: is_as_asked,
        consistency,
        why,
        freeze_doubt,
        freeze_doubt_code,
        all_thawed,
        window_ms: facts.window().filter(|_| all_thawed).map(milliseconds),
        thaw_timeout_ms: milliseconds(facts.thaw_timeout),
        mode: mode(&facts),
        filesystems,
        unreadable_mounts: facts.unreadable_mounts.to_vec(),
        timeline,
        applications,
        blobs,
        command: facts.command,
        host_call,
        watchdog: facts.watchdog,
    }
}

/// Returns the first filesystem whose FIFREEZE had not returned by the limit, if nothing was asked.
fn slow_filesystem(facts: &Facts<'_>) -> Option<String> {
    let is_asked = facts.record.as_ref()?.answers.is_some();
    let freeze_by = facts.deadlines.freeze_by;
    let entries = facts.filesystems.iter().zip(&facts.ledger.entries);
    entries
        .filter(|(_, entry)| entry.announced_at().is_some())
        .find(|(_, entry)| {
            entry
                .freeze_returned_at()
                .is_none_or(|returned| returned > freeze_by)
        })
        .filter(|_| !is_asked)
        .map(|(planned, _)| path_text(&planned.mount_point))
}

fn mode(facts: &Facts<'_>) -> Mode {
    // The ledger has this even if a panic ended the window.
    let rcu_expedited = facts.ledger.header.was_rcu_expedited();
    Mode {
        rcu_expedited,
        rcu_why_not: (!rcu_expedited).then(|| {
            facts
                .rcu
                .why_not()
                .unwrap_or("it could not be switched on")
                .to_owned()
        }),
        parallel: facts
            .filesystems
            .windows(2)
            .any(|pair| matches!(pair, [left, right] if left.level == right.level)),
    }
}
