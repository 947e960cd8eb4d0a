//! `GET /v1/runs/{runId}/events`: the log, live as server-sent events or page by page as JSON.

use std::fmt::Write;

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use longhaul_shared::{
    domain::{
        event::Segment,
        ids::{RunId, Seq},
        run::Run,
    },
    store::LogCursor,
    tail::Slice,
};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use crate::{
    auth::Viewer,
    error::ApiError,
    extract::{Params, PathId},
    openapi::Failures,
    page,
    routes::sse::{self, View},
    state::AppState,
    views::native::{EventView, OPENING, write_envelope},
};

const DEFAULT_LIMIT: u32 = 200;
const MAX_LIMIT: u32 = 1000;

#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct ReadEvents {
    /// The events numbered above this; 0 = from the beginning.
    #[param(minimum = 0, default = 0)]
    after: Option<i64>,
    /// Events of a JSON page.
    #[param(minimum = 1, maximum = 1000, default = 200)]
    limit: Option<u32>,
}

/// A page of a log.
#[derive(ToSchema)]
#[schema(as = EventPage, rename_all = "camelCase")]
#[expect(dead_code, reason = "the page is written as text, so that event data passes through undecoded")]
pub(crate) struct EventPage {
    data: Vec<EventView>,
    /// Ask for the next page with this as `after`.
    next_cursor: i64,
    /// Nothing follows: the run is over and this page has its end, or ends behind it.
    done: bool,
}

/// Watch a run
///
/// With `Accept: text/event-stream` every event in order, then live, until the event named `end`; otherwise a JSON
/// page. `Last-Event-ID` wins over `after`.
#[utoipa::path(
    get,
    path = "/v1/runs/{runId}/events",
    tag = "runs",
    params(
        ("runId" = uuid::Uuid, Path),
        ReadEvents,
        ("Last-Event-ID" = Option<i64>, Header, description = "The last event that the client has seen"),
    ),
    responses(
        (status = 200, description = "The events", content(
            (EventPage = "application/json"),
            (EventView = "text/event-stream"),
        )),
        (status = 204, description = "The client has seen the end"),
        Failures,
    )
)]
pub(crate) async fn stream_events(
    State(state): State<AppState>,
    Viewer(caller): Viewer,
    PathId(id): PathId<RunId>,
    headers: HeaderMap,
    Params(query): Params<ReadEvents>,
) -> Result<Response, ApiError> {
    let after = position(&headers, query.after)?;
    let limit = page::check_limit(query.limit, DEFAULT_LIMIT, MAX_LIMIT)?;
    let run = state.store.run(caller.workspace_id, id).await?;
    if !wants_event_stream(&headers) {
        return json_page(&state, &run, after, limit).await;
    }
    if run.status.is_terminal() && after >= run.last_seq {
        // This alone keeps an EventSource from coming back for ever.
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    // A client that has seen more than there is waits for what comes behind that.
    Ok(sse::respond(&state, &run, after.min(run.last_seq), Native { state: state.clone(), after }))
}

/// The native view behind `after`.
struct Native {
    state: AppState,
    after: Seq,
}

impl View for Native {
    const OPENING: &'static str = OPENING;
    const CLOSING: &'static str = "";

    fn render(&mut self, slice: &Slice) -> Bytes {
        // Whoever waits beyond the end is told of it, too.
        let seen = if slice.is_end() { self.after.min(slice.last() - 1) } else { self.after };
        self.state.frames.render(&slice.segment, slice.after.max(seen))
    }
}

pub(crate) fn wants_event_stream(headers: &HeaderMap) -> bool {
    headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).any(|accept| {
        accept.split(',').any(|range| {
            range.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("text/event-stream")
        })
    })
}

/// Where to go on. A browser reconnects with the URL of its first connection, so its header is the newer word.
fn position(headers: &HeaderMap, after: Option<Seq>) -> Result<Seq, ApiError> {
    let header = headers.get("last-event-id").filter(|value| !value.is_empty());
    if let Some(value) = header {
        let seq =
            value.to_str().ok().and_then(|text| text.trim().parse::<Seq>().ok()).filter(|seq| *seq >= 0);
        return seq.ok_or_else(|| ApiError::header("Last-Event-ID", "must be the number of an event"));
    }
    match after {
        Some(after) if after < 0 => Err(ApiError::parameter("after", "must be 0 or the number of an event")),
        after => Ok(after.unwrap_or(0)),
    }
}

async fn json_page(state: &AppState, run: &Run, after: Seq, limit: u32) -> Result<Response, ApiError> {
    let cursor = LogCursor { workspace_id: run.workspace_id, run_id: run.id, after };
    let segments = state.store.read_log(cursor, limit).await?;
    let (body, _) =
        encode_page(&segments, after, limit as usize, run.status.is_terminal().then_some(run.last_seq));
    Ok(([(header::CONTENT_TYPE, "application/json")], Body::from(body)).into_response())
}

/// The page and the number of its last event. `end` is the run's last event, if it is over.
fn encode_page(segments: &[Segment], after: Seq, limit: usize, end: Option<Seq>) -> (String, Seq) {
    let mut text = String::from("{\"data\":[");
    let (mut last, mut done) = (after, end.is_some_and(|end| after >= end));
    let events = segments
        .iter()
        .flat_map(|segment| segment.after(after).map(move |(seq, event)| (segment, seq, event)))
        .take(limit);
    for (segment, seq, event) in events {
        if last != after {
            text.push(',');
        }
        write_envelope(&mut text, seq, segment.at, event);
        last = seq;
        done = segment.is_end() && seq == segment.last;
    }
    write!(text, "],\"nextCursor\":{last},\"done\":{done}}}").expect("writing to a string cannot fail");
    (text, last)
}

#[cfg(test)]
mod tests {
    use longhaul_shared::domain::{
        event::EventData,
        run::Usage,
        transition::{Reason, RunStatus},
    };

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap())).collect()
    }

    #[test]
    fn the_header_wins_over_the_query() {
        assert_eq!(position(&headers(&[]), None).unwrap(), 0);
        assert_eq!(position(&headers(&[]), Some(7)).unwrap(), 7);
        assert_eq!(position(&headers(&[("last-event-id", "9")]), Some(7)).unwrap(), 9);
        assert_eq!(position(&headers(&[("last-event-id", "")]), Some(7)).unwrap(), 7);
        assert_eq!(position(&headers(&[("last-event-id", "0")]), Some(7)).unwrap(), 0);
    }

    #[test]
    fn a_position_that_is_no_number_is_refused() {
        assert!(position(&headers(&[]), Some(-1)).is_err());
        for bad in ["-1", "x", "1.5", "99999999999999999999"] {
            let mut headers = HeaderMap::new();
            headers.insert("last-event-id", bad.parse().unwrap());
            assert!(position(&headers, None).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_stream_is_sent_only_to_those_who_ask_for_it() {
        for yes in ["text/event-stream", "application/json, text/event-stream;q=0.9", "TEXT/EVENT-STREAM"] {
            assert!(wants_event_stream(&headers(&[("accept", yes)])), "{yes}");
        }
        for no in ["*/*", "application/json", "text/*", ""] {
            assert!(!wants_event_stream(&headers(&[("accept", no)])), "{no}");
        }
        assert!(!wants_event_stream(&HeaderMap::new()));
    }

    #[test]
    fn pages_go_through_the_log_and_say_when_it_is_done() {
        let run_id = RunId::generate();
        let delta = |text: &str| EventData::TextDelta { text: text.into() }.of_step(1, 1);
        let end = EventData::RunFinished {
            status: RunStatus::Succeeded,
            reason: Reason::Done,
            error: None,
            usage: Usage::default(),
            step_count: 1,
        };
        let segments = [
            Segment { run_id, first: 1, last: 3, at: 0, events: vec![delta("a"), delta("b"), delta("c")] },
            Segment { run_id, first: 4, last: 4, at: 0, events: vec![end.of_run()] },
        ];
        let mut seen = vec![];
        let mut after = 0;
        loop {
            let (text, last) = encode_page(&segments, after, 2, Some(4));
            let page: serde_json::Value = serde_json::from_str(&text).unwrap();
            seen.extend(page["data"].as_array().unwrap().iter().map(|event| event["seq"].as_i64().unwrap()));
            assert_eq!(page["nextCursor"], last);
            after = last;
            if page["done"] == true {
                break;
            }
        }
        assert_eq!(seen, [1, 2, 3, 4]);
        assert_eq!(encode_page(&[], 4, 2, Some(4)).0, r#"{"data":[],"nextCursor":4,"done":true}"#);
        assert_eq!(encode_page(&[], 4, 2, None).0, r#"{"data":[],"nextCursor":4,"done":false}"#);
    }
}
