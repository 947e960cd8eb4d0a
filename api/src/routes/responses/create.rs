//! `POST /v1/responses`: a run, answered by its stream, by what it came to, or at once.

use axum::{
    Json,
    extract::State,
    http::HeaderMap,
    response::{IntoResponse, Response},
};
use longhaul_shared::{
    admission::{Input, LimitOverrides, Submission, SubmitError, submit_to_the_end},
    domain::{
        ids::RunId,
        run::{Run, Trigger},
        text::one_line,
    },
    store::{Fresh, IfBusy, KeyName, Request, admission::IdempotencyKey},
};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{
    head_of,
    history::{Before, settle},
    input::read_items,
    not_found, response, stream, wait,
    wish::Wish,
};
use crate::{
    auth::{Caller, Operator},
    error::{ApiError, Code},
    extract::JsonBody,
    routes::{
        found,
        submission::{Origin, idempotency, text_of},
    },
    state::AppState,
    views::responses::{Head, Outcome, Status, chat_of, run_of},
};

const ROUTE: &str = "POST /v1/responses";
/// Which run is taken for the one that a repeated call asked for: as old as an SDK waits for an answer, and a little more.
const JOINED: Fresh = Fresh { made_within_ms: 660_000, over_within_ms: 60_000 };

pub(super) async fn create(
    State(state): State<AppState>,
    Operator(caller): Operator,
    headers: HeaderMap,
    JsonBody { value: wish, fingerprint }: JsonBody<Wish>,
) -> Result<Response, ApiError> {
    let (is_stream, is_background) = (wish.stream == Some(true), wish.background == Some(true));
    let (run, head) = admit(&state, caller, &headers, wish, fingerprint).await?;
    Ok(if is_stream {
        stream(&state, &run, head, 0)
    } else if is_background {
        // As it was when it was admitted, which is what a repeat is told, too.
        Json(head.response(Status::Queued, &[], &Outcome::default())).into_response()
    } else {
        wait(&state, &run, head)
    })
}

async fn admit(
    state: &AppState,
    caller: Caller,
    headers: &HeaderMap,
    wish: Wish,
    body: [u8; 32],
) -> Result<(Run, Head), ApiError> {
    let origin = Origin { caller, headers, route: ROUTE, chat_id: None, fingerprint: body };
    let idempotency = idempotency(&origin)?;
    let caller = origin.caller;
    let fingerprint = fingerprint(&caller, body);
    let first = first_call(state, &caller, headers, idempotency.as_ref(), &fingerprint).await?;
    if let Some(run) = first {
        let head = head_of(state, &run).await?;
        return Ok((run, head));
    }
    let (agent, model) = match &wish.model {
        Some(name) => state.agents.by_model(name).ok_or_else(|| ApiError {
            code: Code::AgentNotFound,
            ..ApiError::body("/model", format!("there is no agent and no model `{}`", one_line(name, 100)))
        })?,
        None => (state.agents.default().ok_or_else(|| ApiError::body("/model", "is required"))?, None),
    };
    let asked = wish.asked(model)?;
    let metadata = wish.checked_metadata()?;
    let input = wish.input.clone().ok_or_else(|| ApiError::body("/input", "is required"))?;
    let items = read_items("/input", input)?;
    let before = before(state, &caller, &wish).await?;
    let parts = settle(state, caller.workspace_id, &before, items).await?;
    let (chat_id, previous_run_id): (_, Option<RunId>) = match before {
        Before::Nothing => (None, None),
        Before::Run(run) => (None, Some(run)),
        Before::Chat(chat) => (Some(chat), None),
    };
    let submission = Submission {
        workspace_id: caller.workspace_id,
        chat_id,
        client_chat_id: None,
        client_message_id: None,
        replaces: false,
        agent: Some(agent),
        input: Input::Conversation(parts),
        if_busy: IfBusy::Reject,
        expect_run_id: None,
        start: None,
        trigger: Trigger::Api,
        created_by: Some(caller.name),
        limits: LimitOverrides::default(),
        tags: vec![],
        metadata,
        traceparent: text_of(headers, "traceparent"),
        renderer: state.settings.renderer,
        idempotency,
        request: Some(Request { asked: asked.clone(), previous_run_id, fingerprint }),
    };
    let submitted = submit_to_the_end(&state.store, &state.bus, &state.agents, submission).await;
    let admitted = submitted.map_err(|error| match error {
        SubmitError::RunAlreadyActive { active_run_id } => ApiError {
            active_run_id,
            ..ApiError::new(Code::RunAlreadyActive, "another response is being made in this conversation")
        },
        error => error.into(),
    })?;
    // Without another read: nothing may fail behind the commit.
    let head = Head::new(&admitted.run, asked);
    Ok((admitted.run, head))
}

/// The run of an earlier call that this one repeats. It is looked for before anything is held against what has been said
/// since, of which that run is a part.
async fn first_call(
    state: &AppState,
    caller: &Caller,
    headers: &HeaderMap,
    key: Option<&IdempotencyKey>,
    fingerprint: &[u8],
) -> Result<Option<Run>, ApiError> {
    let Some(key) = key else {
        // The SDK lost the answer to its first call and does not name it.
        let is_repeat = text_of(headers, "x-stainless-retry-count").is_some_and(|count| count != "0");
        return Ok(if is_repeat {
            state.store.run_of_request(caller.workspace_id, fingerprint, JOINED).await?
        } else {
            None
        });
    };
    let name = KeyName { key: &key.key, caller: &key.caller, route: key.route };
    let Some(known) = state.store.run_of_key(caller.workspace_id, name).await? else { return Ok(None) };
    if known.fingerprint != key.fingerprint {
        return Err(Code::IdempotencyKeyReused.into());
    }
    let run = found(state.store.run(caller.workspace_id, known.run_id).await)?;
    run.map(Some).ok_or_else(|| ApiError::new(Code::NotFound, "the response that this key made was deleted"))
}

/// Two callers' calls are not the same, whatever they say.
fn fingerprint(caller: &Caller, body: [u8; 32]) -> Vec<u8> {
    let mut hash = Sha256::new();
    hash.update(caller.identity());
    hash.update(body);
    hash.finalize().to_vec()
}

/// What the response goes on with.
async fn before(state: &AppState, caller: &Caller, wish: &Wish) -> Result<Before, ApiError> {
    match (&wish.previous_response_id, &wish.conversation) {
        (None, None) => Ok(Before::Nothing),
        (Some(_), Some(_)) => {
            Err(ApiError::body("/conversation", "cannot be given together with previous_response_id"))
        }
        (Some(id), None) => {
            let unknown = || ApiError {
                code: Code::PreviousResponseNotFound,
                ..ApiError::body("/previous_response_id", format!("there is no response with the id `{id}`"))
            };
            let run_id = run_of(id).ok_or_else(unknown)?;
            let (run, _) = match response(state, caller.workspace_id, run_id).await {
                Err(error) if error.code == not_found().code => return Err(unknown()),
                response => response?,
            };
            if !run.status.is_terminal() {
                let told = "this response is not over yet: wait for its end or cancel it";
                return Err(ApiError::body("/previous_response_id", told));
            }
            Ok(Before::Run(run.id))
        }
        (None, Some(conversation)) => {
            let unknown = || ApiError {
                code: Code::NotFound,
                ..ApiError::body("/conversation", "there is no such conversation")
            };
            let chat_id = conversation_of(conversation).and_then(chat_of).ok_or_else(unknown)?;
            let chat = found(state.store.chat(caller.workspace_id, chat_id).await)?.ok_or_else(unknown)?;
            Ok(Before::Chat(chat.id))
        }
    }
}

/// The chat that `conversation` names: an id, or an object with one.
fn conversation_of(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value["id"].as_str())
}

#[cfg(test)]
mod tests {
    use longhaul_shared::store::KeyRole;

    use super::*;

    #[test]
    fn calls_are_the_same_if_caller_and_body_are() {
        let caller = |key: u128| Caller {
            workspace_id: uuid::Uuid::nil().into(),
            key_id: Some(uuid::Uuid::from_u128(key).into()),
            name: String::new(),
            role: KeyRole::Operator,
            scope: None,
        };
        assert_eq!(fingerprint(&caller(1), [1; 32]), fingerprint(&caller(1), [1; 32]));
        assert_ne!(fingerprint(&caller(1), [1; 32]), fingerprint(&caller(2), [1; 32]));
        assert_ne!(fingerprint(&caller(1), [1; 32]), fingerprint(&caller(1), [2; 32]));
    }
}
