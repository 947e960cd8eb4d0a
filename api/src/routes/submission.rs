//! A submission as it comes in, for runs and for messages of a chat: read, checked, handed to admission.

use axum::{
    Json,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use longhaul_shared::{
    admission::{LimitOverrides, Submission, SubmitError, submit_to_the_end},
    domain::{
        ids::{ChatId, MessageId, RunId},
        run::Trigger,
        transition::RunStatus,
    },
    store::{
        Admitted, IfBusy,
        admission::{IdempotencyKey, StartAt},
    },
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use super::input;
use crate::{
    auth::Caller,
    error::ApiError,
    state::AppState,
    views::{
        run::events_url,
        time::{parse_duration, parse_instant},
        words,
    },
};

const MAX_KEY_LEN: usize = 255;
/// Where the keys of submissions without a chat in their path count.
pub(crate) const SUBMIT_RUN: &str = "POST /v1/runs";

/// What to run, and where.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct SubmissionBody {
    /// Who answers. May be left out where the chat has an agent of its own.
    pub(crate) agent: Option<String>,
    #[schema(value_type = input::InputSchema)]
    pub(crate) input: Value,
    /// The chat to go on with. Absent: a new one, or the one in the path.
    #[schema(value_type = Option<uuid::Uuid>)]
    pub(crate) chat_id: Option<String>,
    /// A name for the message, unique in its chat. A repeat gets the first one's run.
    pub(crate) message_id: Option<String>,
    /// What to do while another run holds the chat: `reject` (default), `enqueue`, or `interrupt`, which ends it and
    /// what waits behind it.
    #[schema(schema_with = if_busy)]
    pub(crate) if_busy: Option<IfBusy>,
    /// With `interrupt`: the only run that may be ended for this one.
    #[schema(value_type = Option<uuid::Uuid>)]
    pub(crate) expect_run_id: Option<String>,
    /// Start at this time (RFC 3339). Not together with `delay`.
    #[schema(format = DateTime)]
    pub(crate) run_at: Option<String>,
    /// Start after this duration, such as "30s".
    pub(crate) delay: Option<String>,
    pub(crate) limits: Option<LimitsBody>,
    #[serde(default)]
    pub(crate) tags: Vec<String>,
    /// An object, stored as it is.
    #[schema(value_type = Option<std::collections::BTreeMap<String, Value>>)]
    pub(crate) metadata: Option<Map<String, Value>>,
}

/// Bounds of one run, each within the agent's own.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct LimitsBody {
    max_steps: Option<u32>,
    /// From the first claim to the end, such as "1h".
    deadline: Option<String>,
    tool_timeout: Option<String>,
    max_output_tokens: Option<u32>,
}

pub(crate) fn if_busy() -> utoipa::openapi::schema::Object {
    words::one_of(["reject", "enqueue", "interrupt"])
}

/// An admitted run: it will reach exactly one end.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SubmissionAnswer {
    #[schema(value_type = uuid::Uuid)]
    run_id: RunId,
    #[schema(value_type = uuid::Uuid)]
    chat_id: ChatId,
    /// The name that the client gave the message, else its id.
    message_id: String,
    /// The message that the answer is written into.
    #[schema(value_type = uuid::Uuid)]
    assistant_message_id: MessageId,
    #[schema(schema_with = words::run_status)]
    status: RunStatus,
    /// Place among the chat's waiting runs, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<u32>,
    events_url: String,
}

/// Everything about a submission that does not stand in its body.
pub(crate) struct Origin<'a> {
    pub(crate) caller: Caller,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) route: &'static str,
    pub(crate) chat_id: Option<ChatId>,
    /// Of the body.
    pub(crate) fingerprint: [u8; 32],
}

/// Admits the run and answers 202.
pub(crate) async fn accept(
    state: &AppState,
    origin: Origin<'_>,
    body: SubmissionBody,
) -> Result<Response, ApiError> {
    let idempotency = idempotency(&origin)?;
    let submission = Submission {
        workspace_id: origin.caller.workspace_id,
        chat_id: origin.chat_id,
        client_chat_id: None,
        client_message_id: body.message_id,
        agent: body.agent,
        input: input::read(body.input)?,
        if_busy: body.if_busy.unwrap_or_default(),
        expect_run_id: body.expect_run_id.as_deref().map(read_run_id).transpose()?,
        start: read_start(body.run_at.as_deref(), body.delay.as_deref())?,
        trigger: Trigger::Api,
        created_by: Some(origin.caller.name),
        limits: read_limits(body.limits.unwrap_or_default())?,
        tags: body.tags,
        metadata: Value::Object(body.metadata.unwrap_or_default()),
        traceparent: text_of(origin.headers, "traceparent"),
        renderer: state.settings.renderer,
        idempotency,
        replaces: false,
        request: None,
    };
    let admitted = submit_to_the_end(&state.store, &state.bus, &state.agents, submission).await?;
    Ok(answer(&admitted))
}

fn answer(admitted: &Admitted) -> Response {
    let run = &admitted.run;
    let body = SubmissionAnswer {
        run_id: run.id,
        chat_id: run.chat_id,
        message_id: admitted.message_id.clone(),
        assistant_message_id: admitted.assistant_message_id,
        status: admitted.status,
        position: admitted.position,
        events_url: events_url(run.id),
    };
    let location = HeaderValue::from_str(&format!("/v1/runs/{}", run.id)).expect("an id is ASCII");
    let mut response = (StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(body)).into_response();
    if admitted.replayed {
        response
            .headers_mut()
            .insert(HeaderName::from_static("idempotent-replayed"), HeaderValue::from_static("true"));
    }
    response
}

/// What is no id at all names no run either.
fn read_run_id(text: &str) -> Result<RunId, ApiError> {
    text.parse::<uuid::Uuid>().map(RunId).map_err(|_| SubmitError::SupersedeInvalid.into())
}

fn read_start(run_at: Option<&str>, delay: Option<&str>) -> Result<Option<StartAt>, ApiError> {
    match (run_at, delay) {
        (None, None) => Ok(None),
        (Some(at), None) => parse_instant(at)
            .map(|at| Some(StartAt::At(at)))
            .map_err(|detail| ApiError::body("/runAt", detail)),
        (None, Some(delay)) => duration("/delay", delay).map(|delay| Some(StartAt::In(delay))),
        (Some(_), Some(_)) => Err(ApiError::body("/delay", "cannot be given together with runAt")),
    }
}

fn read_limits(limits: LimitsBody) -> Result<LimitOverrides, ApiError> {
    let optional = |pointer, text: Option<String>| text.map(|text| duration(pointer, &text)).transpose();
    Ok(LimitOverrides {
        max_steps: limits.max_steps,
        deadline_ms: optional("/limits/deadline", limits.deadline)?,
        tool_timeout_ms: optional("/limits/toolTimeout", limits.tool_timeout)?,
        max_output_tokens: limits.max_output_tokens,
    })
}

fn duration(pointer: &str, text: &str) -> Result<i64, ApiError> {
    parse_duration(text).map_err(|detail| ApiError::body(pointer, detail))
}

pub(super) fn text_of(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(ToOwned::to_owned)
}

/// The key itself, which may be quoted.
pub(crate) fn check_key(text: &str) -> Result<&str, String> {
    let key = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text);
    if key.is_empty() || key.len() > MAX_KEY_LEN {
        return Err(format!("must have 1 to {MAX_KEY_LEN} characters"));
    }
    if !key.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Err("must be printable ASCII".to_owned());
    }
    Ok(key)
}

/// The key under which a repeat is recognised: bare, or quoted as a structured field.
pub(super) fn idempotency(origin: &Origin<'_>) -> Result<Option<IdempotencyKey>, ApiError> {
    const NAME: &str = "Idempotency-Key";
    let mut given = origin.headers.get_all("idempotency-key").iter();
    let Some(value) = given.next() else { return Ok(None) };
    if given.next().is_some() {
        return Err(ApiError::header(NAME, "must be given once"));
    }
    let text = value.to_str().map_err(|_| ApiError::header(NAME, "must be printable ASCII"))?.trim();
    let key = check_key(text).map_err(|detail| ApiError::header(NAME, detail))?;
    // A chat that stands in the path, not in the body, belongs to what was asked for.
    let mut fingerprint = Sha256::new();
    fingerprint.update(origin.chat_id.map_or(uuid::Uuid::nil(), |chat| chat.0));
    fingerprint.update(origin.fingerprint);
    Ok(Some(IdempotencyKey {
        key: key.to_owned(),
        caller: origin.caller.identity(),
        route: origin.route,
        fingerprint: fingerprint.finalize().to_vec(),
    }))
}

#[cfg(test)]
mod tests {
    use longhaul_shared::store::KeyRole;

    use super::*;

    fn refused_at<T>(result: Result<T, ApiError>) -> String {
        let Err(error) = result else { panic!("was accepted") };
        error.flaws[0].pointer.clone().or(error.flaws[0].header.clone()).unwrap()
    }

    #[test]
    fn a_start_is_given_one_way_or_not_at_all() {
        assert_eq!(read_start(None, None).unwrap(), None);
        assert_eq!(read_start(None, Some("30s")).unwrap(), Some(StartAt::In(30_000)));
        assert_eq!(
            read_start(Some("2026-11-20T10:00:00Z"), None).unwrap(),
            Some(StartAt::At(1_795_168_800_000))
        );
        assert_eq!(refused_at(read_start(Some("2026-11-20T10:00:00Z"), Some("30s"))), "/delay");
        assert_eq!(refused_at(read_start(Some("soon"), None)), "/runAt");
        assert_eq!(refused_at(read_start(None, Some("-1s"))), "/delay");
    }

    fn key_of(
        value: &str,
        chat_id: Option<ChatId>,
        route: &'static str,
    ) -> Result<Option<IdempotencyKey>, ApiError> {
        let mut headers = HeaderMap::new();
        headers.insert("idempotency-key", HeaderValue::from_str(value).unwrap());
        idempotency(&Origin {
            caller: Caller {
                workspace_id: uuid::Uuid::nil().into(),
                key_id: None,
                name: String::new(),
                role: KeyRole::Admin,
                scope: None,
            },
            headers: &headers,
            route,
            chat_id,
            fingerprint: [7; 32],
        })
    }

    #[test]
    fn an_idempotency_key_is_taken_bare_or_quoted_up_to_its_limit() {
        for value in ["abc", "\"abc\"", " abc "] {
            assert_eq!(key_of(value, None, "r").unwrap().unwrap().key, "abc");
        }
        assert!(key_of(&"k".repeat(255), None, "r").is_ok());
        for value in [&"k".repeat(256), "", "\"\""] {
            assert_eq!(refused_at(key_of(value, None, "r")), "Idempotency-Key");
        }
    }

    #[test]
    fn the_chat_in_the_path_belongs_to_the_fingerprint() {
        let print =
            |chat| key_of("k", Some(chat), "/v1/chats/{chatId}/messages").unwrap().unwrap().fingerprint;
        let chat = ChatId::generate();
        assert_eq!(print(chat), print(chat));
        assert_ne!(print(chat), print(ChatId::generate()));
    }
}
