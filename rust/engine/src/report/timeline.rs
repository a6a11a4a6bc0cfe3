//! What happened when.

use std::io;

use vmsnapshot_core::deadlines::Monotonic;
use vmsnapshot_core::report::{milliseconds, TimelineEvent};
use vmsnapshot_core::text::path_text;

use super::facts::Facts;
use crate::error::cause_text;
use crate::sync::Synced;

/// Every moment that is known, in order of time.
pub(super) fn timeline(facts: &Facts<'_>) -> Vec<TimelineEvent> {
    let start = facts.deadlines.start;
    let first_freeze = facts.first_freeze_at().unwrap_or(start);
    let event = |at: Monotonic, event: &str, subject: Option<String>| TimelineEvent {
        at_ms: milliseconds(at.since(first_freeze)) - milliseconds(first_freeze.since(at)),
        event: event.to_owned(),
        subject,
    };
    let mut events = Vec::new();
    for (planned, synced) in facts.plan.filesystems.iter().zip(facts.synced) {
        let subject = Some(path_text(&planned.mount_point));
        match synced {
            Synced::Done => {}
            Synced::Late => events.push(event(start, "not synced in time", subject)),
            Synced::Failed(errno) => {
                let cause = cause_text(&io::Error::from_raw_os_error(errno.cast_signed()));
                events.push(event(start, &format!("sync failed: {cause}"), subject));
            }
        }
    }
    for (planned, entry) in facts.plan.filesystems.iter().zip(&facts.ledger.entries) {
        let subject = Some(path_text(&planned.mount_point));
        let moments = [
            (entry.announced_at(), "freeze called"),
            (entry.freeze_returned_at(), "freeze returned"),
            (entry.thaw_called_at(), "thaw called"),
            (entry.thawed_at(), "thawed"),
        ];
        for (moment, name) in moments {
            if let Some(at) = moment {
                events.push(event(at, name, subject.clone()));
            }
        }
    }
    if let Some(record) = &facts.record {
        let usable = facts.blobs.each().iter().flatten();
        let blobs = usable.map(|(uri, number)| (uri.as_http(), *number));
        let host = facts.host_call.map(|(call, number)| (call.uri(), *number));
        for (uri, number) in blobs.chain(host) {
            if let Some(Some(call)) = record.calls.get(number) {
                let subject = Some(uri.to_string());
                events.push(event(call.sent_at, "request sent", subject.clone()));
                events.push(event(call.ended_at, "request ended", subject));
            }
        }
        events.push(event(record.ended_at, "window closed", None));
    }
    events.sort_by(|left, right| left.at_ms.total_cmp(&right.at_ms));
    events
}
