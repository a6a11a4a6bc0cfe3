//! The events of a run, in order of time.

use vmsnapshot_core::deadlines::Monotonic;
use vmsnapshot_core::report::{milliseconds, TimelineEvent, TimelineEventKind};
use vmsnapshot_core::text::path_text;
use vmsnapshot_sys::errno::{errno_text, number_text};

use super::facts::Facts;
use crate::calls::Call;
use crate::companion::sync::Synced;

/// Returns every known event of the run, in order of time.
pub(super) fn timeline(facts: &Facts<'_>) -> Vec<TimelineEvent> {
    use TimelineEventKind::{
        ApplicationQuiesced, ApplicationReleased, FreezeCalled, FreezeReturned, RequestEnded,
        RequestSent, SyncFailed, SyncLate, ThawCalled, Thawed, WindowClosed,
    };
    let start = facts.deadlines.start;
    let first_freeze = facts.first_freeze_at().unwrap_or(start);
    let event = |at: Monotonic, event: TimelineEventKind, subject: Option<String>| TimelineEvent {
        at_ms: milliseconds(at.since(first_freeze)) - milliseconds(first_freeze.since(at)),
        event,
        subject,
        detail: None,
    };
    let mut events = Vec::new();
    for (planned, synced) in facts.synced {
        let subject = Some(path_text(&planned.mount_point));
        match synced {
            Synced::Done => {}
            Synced::Late => events.push(event(start, SyncLate, subject)),
            Synced::Failed(errno) => {
                events.push(TimelineEvent {
                    detail: Some(number_text(*errno)),
                    ..event(start, SyncFailed, subject)
                });
            }
            Synced::Ended => {
                events.push(TimelineEvent {
                    detail: Some("the process that called it has ended".to_owned()),
                    ..event(start, SyncFailed, subject)
                });
            }
            Synced::Lost(errno) => {
                events.push(TimelineEvent {
                    detail: Some(format!(
                        "the process that called it cannot be reached: {}",
                        errno_text(*errno)
                    )),
                    ..event(start, SyncFailed, subject)
                });
            }
        }
    }
    for (planned, entry) in facts.filesystems.iter().zip(&facts.ledger.entries) {
        let subject = Some(path_text(&planned.mount_point));
        let moments = [
            (entry.announced_at(), FreezeCalled),
            (entry.freeze_returned_at(), FreezeReturned),
            (entry.thaw_called_at(), ThawCalled),
            (entry.thawed_at(), Thawed),
        ];
        for (moment, kind) in moments {
            if let Some(at) = moment {
                events.push(event(at, kind, subject.clone()));
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
            if call.attempts > 0 {
                events.push(event(call.sent_at, RequestSent, subject.clone()));
            }
            events.push(event(call.ended_at, RequestEnded, subject));
        }
    }
    for application in &facts.applications {
        let moments = [
            (application.quiesced_at_ns, ApplicationQuiesced),
            (application.released_at_ns, ApplicationReleased),
        ];
        for (moment, kind) in moments {
            if let Some(at_ns) = moment {
                events.push(event(
                    Monotonic(at_ns),
                    kind,
                    Some(application.name.clone()),
                ));
            }
        }
    }
    if let Some(record) = &facts.record {
        events.push(event(record.ended_at, WindowClosed, None));
    }
    events.sort_by(|left, right| left.at_ms.total_cmp(&right.at_ms));
    events
}
