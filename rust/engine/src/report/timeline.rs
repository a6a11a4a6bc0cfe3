//! What happened when.

use vmsnapshot_core::deadlines::Monotonic;
use vmsnapshot_core::report::{milliseconds, TimelineEvent};
use vmsnapshot_core::text::path_text;
use vmsnapshot_sys::errno::number_text;

use super::facts::Facts;
use crate::calls::Call;
use crate::companion::sync::Synced;

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
                let cause = number_text(*errno);
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
    let usable = facts.callees.blobs.each().iter().flatten();
    let blobs = usable.map(|(uri, call)| (uri.as_http(), call));
    let host = facts.callees.host.iter();
    let host = host.map(|(host_call, call)| (host_call.uri(), call));
    for (uri, call) in blobs.chain(host) {
        if let Call::Ended(call) = call {
            let subject = Some(uri.to_string());
            events.push(event(call.sent_at, "request sent", subject.clone()));
            events.push(event(call.ended_at, "request ended", subject));
        }
    }
    if let Some(record) = &facts.record {
        events.push(event(record.ended_at, "window closed", None));
    }
    events.sort_by(|left, right| left.at_ms.total_cmp(&right.at_ms));
    events
}
