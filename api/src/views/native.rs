//! The native view of a log: JSON envelopes, and the same as server-sent events. A pure function of the log, so a
//! replay gives the same bytes for ever.
//!
//! The last event goes out under the name `end`, on which pages close; its envelope keeps the type `run.finished`.

use std::fmt::Write;

use longhaul_shared::domain::{
    event::{Event, RUN_FINISHED},
    ids::{Millis, Seq},
};
use utoipa::ToSchema;

use super::time::Timestamp;

/// The first bytes of a stream: how long a browser waits before it reconnects. It belongs to the block of the first
/// event, since some readers take a block without data for an event.
pub(crate) const OPENING: &str = "retry: 2000\n";
/// A comment against silence. One newline: with two, some readers see an empty event.
pub(crate) const HEARTBEAT: &str = ": hb\n";

/// The shape of an envelope, for the API document.
#[derive(ToSchema)]
#[schema(as = Event)]
#[expect(
    dead_code,
    reason = "the encoder writes the text itself, so that event data passes through undecoded"
)]
pub(crate) struct EventView {
    /// 1, 2, 3 … without a gap.
    seq: i64,
    /// Such as `text.delta`; new types may appear.
    #[schema(rename = "type")]
    kind: String,
    at: Timestamp,
    /// Absent where the event belongs to no step.
    step: Option<u32>,
    /// Which try of the step, from 1.
    attempt: Option<u32>,
    data: serde_json::Value,
}

/// Appends the event's envelope, one line of JSON.
pub(crate) fn write_envelope(out: &mut String, seq: Seq, at: Millis, event: &Event) {
    let kind = serde_json::Value::from(event.kind.as_str());
    write!(out, r#"{{"seq":{seq},"type":{kind},"at":"{}""#, Timestamp(at)).expect(NEVER_FAILS);
    if let Some(step) = event.step {
        write!(out, r#","step":{step}"#).expect(NEVER_FAILS);
    }
    if let Some(attempt) = event.attempt {
        write!(out, r#","attempt":{attempt}"#).expect(NEVER_FAILS);
    }
    out.push_str(r#","data":"#);
    // JSON strings cannot hold a raw line break, so one that is there is space between tokens.
    let mut lines = event.data.get().split(['\n', '\r']);
    out.push_str(lines.next().unwrap_or_default());
    for line in lines {
        out.push(' ');
        out.push_str(line);
    }
    out.push('}');
}

/// Appends the event as a server-sent event.
pub(crate) fn write_frame(out: &mut String, seq: Seq, at: Millis, event: &Event) {
    write!(out, "id: {seq}\nevent: ").expect(NEVER_FAILS);
    if event.kind == RUN_FINISHED {
        out.push_str("end");
    } else {
        out.extend(event.kind.chars().filter(|c| !c.is_control()));
    }
    out.push_str("\ndata: ");
    write_envelope(out, seq, at, event);
    out.push_str("\n\n");
}

const NEVER_FAILS: &str = "writing to a string cannot fail";

#[cfg(test)]
mod tests {
    use longhaul_shared::domain::{
        event::EventData,
        run::Usage,
        transition::{Reason, RunStatus},
    };

    use super::*;

    const AT: Millis = 1_795_168_800_123;

    fn frame(seq: Seq, event: &Event) -> String {
        let mut out = String::new();
        write_frame(&mut out, seq, AT, event);
        out
    }

    #[test]
    fn frames_have_exactly_these_bytes() {
        let queued =
            EventData::RunQueued { status: RunStatus::Pending, position: None, run_at: None }.of_run();
        assert_eq!(
            frame(1, &queued),
            "id: 1\nevent: run.queued\ndata: {\"seq\":1,\"type\":\"run.queued\",\
             \"at\":\"2026-11-20T10:00:00.123Z\",\"data\":{\"status\":\"pending\"}}\n\n"
        );
        let delta = EventData::TextDelta { text: "Hel".into() }.of_step(1, 2);
        assert_eq!(
            frame(7, &delta),
            "id: 7\nevent: text.delta\ndata: {\"seq\":7,\"type\":\"text.delta\",\
             \"at\":\"2026-11-20T10:00:00.123Z\",\"step\":1,\"attempt\":2,\"data\":{\"text\":\"Hel\"}}\n\n"
        );
    }

    #[test]
    fn the_last_event_goes_out_as_end() {
        let finished = EventData::RunFinished {
            status: RunStatus::Aborted,
            reason: Reason::Stop,
            error: None,
            usage: Usage::default(),
            step_count: 0,
        };
        assert_eq!(
            frame(2, &finished.of_run()),
            "id: 2\nevent: end\ndata: {\"seq\":2,\"type\":\"run.finished\",\"at\":\"2026-11-20T10:00:00.123Z\",\
             \"data\":{\"status\":\"aborted\",\"reason\":\"stop\",\"usage\":{\"inputTokens\":0,\"outputTokens\":0,\
             \"reasoningTokens\":0,\"cachedInputTokens\":0},\"stepCount\":0}}\n\n"
        );
    }

    #[test]
    fn text_cannot_break_out_of_its_data_line() {
        let nasty = "a\nb\r\nevent: end\ndata: {}\n\n\u{2028}";
        let frame = frame(3, &EventData::TextDelta { text: nasty.into() }.of_step(1, 1));
        assert_eq!(frame.matches('\n').count(), 4, "{frame}");
        assert!(!frame.contains('\r'));
        let data = frame.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
        let envelope: serde_json::Value = serde_json::from_str(data).unwrap();
        assert_eq!(envelope["data"]["text"], nasty);

        let spaced: Event = serde_json::from_str("{\"type\":\"x\\ny\",\"data\":{\n\"a\":\r\n1}}").unwrap();
        let frame = self::frame(4, &spaced);
        assert_eq!(frame.matches('\n').count(), 4, "{frame}");
        assert!(frame.contains("event: xy\n") && !frame.contains('\r'));
    }
}
