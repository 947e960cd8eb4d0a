//! The one way in for a run, whoever asks: the API, a chat page, a schedule, a hook.
//!
//! What a submission says is checked here, in words for its sender; the store then admits it in one transaction.
//! Only after the commit are watchers and workers told.

mod interrupt;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde_json::Value;

use crate::{
    bus::{Bus, Signal},
    config::Config,
    domain::{
        asked::ModelName,
        event::Segment,
        ids::{ChatId, RunId, WorkspaceId},
        message::Part,
        run::{Limits, Trigger},
        text,
    },
    store::{
        AdmitError, Admitted, IfBusy, KeyName, KeyStop, NewRun, Request, SharedStore, StopOutcome, Store,
        StoreError,
        admission::{IdempotencyKey, StartAt},
    },
    telemetry::metrics,
    to_its_end::to_its_end,
};

const MAX_TAGS: usize = 32;
const MAX_TAG_CHARS: usize = 128;
const MAX_METADATA_BYTES: usize = 64 * 1024;
const MAX_NAME_CHARS: usize = 200;
/// A start further away than this is a mistake in the unit rather than a plan.
const MAX_DELAY_MS: i64 = 366 * 24 * 3_600_000;
/// The queue that a run goes to.
const QUEUE: &str = "default";

/// The agents that a run may name, with what each may use.
#[derive(Clone, Debug, Default)]
pub struct Agents {
    limits: BTreeMap<String, Limits>,
    providers: BTreeSet<String>,
}

const DEFAULT_AGENT: &str = "default";

impl Agents {
    pub fn of(config: &Config) -> Self {
        let limits = |name: &String, agent: &crate::config::AgentConfig| {
            (name.clone(), agent.run_limits(&config.limits))
        };
        Self {
            limits: config.agents.iter().map(|(name, agent)| limits(name, agent)).collect(),
            providers: config.providers.keys().cloned().collect(),
        }
    }

    /// The agent of that name; or the default agent with a model of its own, if the name is `<provider>/<model>`.
    pub fn by_model(&self, name: &str) -> Option<(String, Option<ModelName>)> {
        if self.limits.contains_key(name) {
            return Some((name.to_owned(), None));
        }
        let (provider, model) = name.split_once('/').filter(|(_, model)| !model.is_empty())?;
        let agent = self.default()?;
        let model = ModelName { provider: provider.to_owned(), name: model.to_owned() };
        self.providers.contains(provider).then_some((agent, Some(model)))
    }

    /// The one that answers where none is named, if there is but one.
    pub fn only(&self) -> Option<String> {
        let mut names = self.limits.keys();
        names.next().filter(|_| names.next().is_none()).cloned()
    }

    /// The agent that answers where only a model is named: the one that is called so, or the only one.
    pub fn default(&self) -> Option<String> {
        self.limits.contains_key(DEFAULT_AGENT).then(|| DEFAULT_AGENT.to_owned()).or_else(|| self.only())
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.limits.keys().map(String::as_str)
    }
}

/// The user's message.
#[derive(Clone, Debug)]
pub enum Input {
    Text(String),
    /// Only text is taken from clients.
    Parts(Vec<Part>),
    /// What was said before, and what the client's tools came to, in the order in which the model is to read it.
    Conversation(Vec<Part>),
}

/// What a submission wants instead of its agent's limits; it may only ask for less.
#[derive(Clone, Copy, Debug, Default)]
pub struct LimitOverrides {
    pub max_steps: Option<u32>,
    pub deadline_ms: Option<i64>,
    pub tool_timeout_ms: Option<i64>,
    pub max_output_tokens: Option<u32>,
}

/// A wish for a run.
#[derive(Clone, Debug)]
pub struct Submission {
    pub workspace_id: WorkspaceId,
    /// Absent: a chat is made for it, unless the client names one that there is.
    pub chat_id: Option<ChatId>,
    /// The client's own name for the chat. Not together with `chat_id`.
    pub client_chat_id: Option<String>,
    pub client_message_id: Option<String>,
    /// The message was sent before, and this one stands in for it and for all turns since.
    pub replaces: bool,
    /// Absent: the chat's own agent.
    pub agent: Option<String>,
    pub input: Input,
    pub if_busy: IfBusy,
    /// With `Interrupt`: the only run that may be superseded.
    pub expect_run_id: Option<RunId>,
    pub start: Option<StartAt>,
    pub trigger: Trigger,
    pub created_by: Option<String>,
    pub limits: LimitOverrides,
    pub tags: Vec<String>,
    pub metadata: Value,
    pub traceparent: Option<String>,
    /// Which version of the views is to show its log, for ever.
    pub renderer: i32,
    pub idempotency: Option<IdempotencyKey>,
    pub request: Option<Request>,
}

/// Why a submission was not taken. Nothing of it is stored.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    #[error("there is no agent `{name}`")]
    UnknownAgent { name: String },
    #[error("neither the request nor the chat names an agent")]
    NoAgent,
    /// `pointer` is a JSON pointer into the request's body.
    #[error("{pointer}: {detail}")]
    Invalid { pointer: String, detail: String },
    #[error("a run is already active in this chat")]
    RunAlreadyActive { active_run_id: Option<RunId> },
    #[error("no such chat")]
    ChatNotFound,
    #[error("the idempotency key was used for a different request")]
    KeyReused,
    #[error("a request with this idempotency key is in flight")]
    KeyInFlight,
    #[error("the message id was used for a different message")]
    MessageIdReused,
    /// The run that was to be superseded is not one of this chat.
    #[error("the run to be superseded is not one of this chat")]
    SupersedeInvalid,
    #[error("another run than the expected one is active in this chat")]
    SupersedeMismatch { active_run_id: RunId },
    #[error("the superseded run has not ended yet")]
    SupersedeTimeout { active_run_id: RunId },
    /// The run could not be begun, and there is no untracked one.
    #[error("the run could not be begun")]
    BeginFailed(#[source] StoreError),
}

/// Admits the run and tells watchers and workers.
pub async fn submit(
    store: &dyn Store,
    bus: &dyn Bus,
    agents: &Agents,
    submission: Submission,
) -> Result<Admitted, SubmitError> {
    let expected = submission.expect_run_id;
    let new = check(store, agents, submission).await?;
    admit(store, bus, new, expected).await
}

/// The same for a sender that may go away: once the submission is found in order, this goes on without it. A run that it
/// supersedes has been stopped for its sake.
pub async fn submit_to_the_end(
    store: &SharedStore,
    bus: &Arc<dyn Bus>,
    agents: &Agents,
    submission: Submission,
) -> Result<Admitted, SubmitError> {
    let expected = submission.expect_run_id;
    let new = check(&**store, agents, submission).await?;
    let (store, bus) = (Arc::clone(store), Arc::clone(bus));
    to_its_end(async move { admit(&*store, &*bus, new, expected).await }).await
}

async fn admit(
    store: &dyn Store,
    bus: &dyn Bus,
    new: NewRun,
    expected: Option<RunId>,
) -> Result<Admitted, SubmitError> {
    let admitted = match new.if_busy {
        IfBusy::Interrupt => interrupt::interrupt(store, bus, &new, expected).await?,
        IfBusy::Reject | IfBusy::Enqueue => store.admit(new).await?,
    };
    announce(bus, admitted.segments.clone(), admitted.wake.clone());
    Ok(admitted)
}

impl From<AdmitError> for SubmitError {
    fn from(error: AdmitError) -> Self {
        match error {
            AdmitError::RunAlreadyActive { active_run_id } => Self::RunAlreadyActive { active_run_id },
            AdmitError::ChatNotFound => Self::ChatNotFound,
            AdmitError::KeyReused => Self::KeyReused,
            AdmitError::KeyInFlight => Self::KeyInFlight,
            AdmitError::MessageIdReused => Self::MessageIdReused,
            AdmitError::Store(error) => Self::BeginFailed(error),
        }
    }
}

/// Asks a run to stop.
pub async fn stop(
    store: &dyn Store,
    bus: &dyn Bus,
    workspace: WorkspaceId,
    run: RunId,
) -> Result<StopOutcome, StoreError> {
    let outcome = store.stop_run(workspace, run).await?;
    announce_stop(bus, outcome.clone());
    Ok(outcome)
}

/// The same by the key of the run's submission, which may still be on its way.
pub async fn stop_by_key(
    store: &dyn Store,
    bus: &dyn Bus,
    workspace: WorkspaceId,
    key: KeyName<'_>,
) -> Result<KeyStop, StoreError> {
    let stop = store.stop_by_key(workspace, key).await?;
    if let KeyStop::Known(outcome) = &stop {
        announce_stop(bus, outcome.clone());
    }
    Ok(stop)
}

/// Ends a run and makes it unknown.
pub async fn delete_run(
    store: &dyn Store,
    bus: &dyn Bus,
    workspace: WorkspaceId,
    run: RunId,
) -> Result<(), StoreError> {
    stop(store, bus, workspace, run).await?;
    store.delete_run(workspace, run).await
}

/// Deletes a chat and ends what goes on in it.
pub async fn delete_chat(
    store: &dyn Store,
    bus: &dyn Bus,
    workspace: WorkspaceId,
    chat: ChatId,
) -> Result<(), StoreError> {
    for outcome in store.delete_chat(workspace, chat).await? {
        announce_stop(bus, outcome);
    }
    Ok(())
}

fn announce_stop(bus: &dyn Bus, outcome: StopOutcome) {
    match outcome {
        StopOutcome::AlreadyOver(_) => {}
        StopOutcome::Requested(run) => bus.signal(Signal::Stop { run_id: run.id }),
        StopOutcome::Ended { segments, wake, .. } => announce(bus, segments, wake),
    }
}

/// Publishes committed segments and wakes the workers of queues in which a job became ready.
pub fn announce(bus: &dyn Bus, segments: Vec<Segment>, wake: impl IntoIterator<Item = String>) {
    for segment in segments {
        metrics::committed(&segment);
        bus.publish(Arc::new(segment));
    }
    for queue in wake {
        bus.signal(Signal::Wake { queue });
    }
}

async fn check(store: &dyn Store, agents: &Agents, submission: Submission) -> Result<NewRun, SubmitError> {
    if submission.expect_run_id.is_some() && submission.if_busy != IfBusy::Interrupt {
        return Err(invalid("/expectRunId", "means something with ifBusy = interrupt only"));
    }
    let agent = match (submission.agent, submission.chat_id) {
        (Some(agent), _) => agent,
        (None, None) => return Err(SubmitError::NoAgent),
        (None, Some(chat)) => match store.chat(submission.workspace_id, chat).await {
            Ok(chat) => chat.agent.ok_or(SubmitError::NoAgent)?,
            Err(StoreError::NotFound) => return Err(SubmitError::ChatNotFound),
            Err(error) => return Err(SubmitError::BeginFailed(error)),
        },
    };
    let Some(limits) = agents.limits.get(&agent) else {
        return Err(SubmitError::UnknownAgent { name: text::one_line(&agent, 100) });
    };
    if let Some(StartAt::In(delay)) = submission.start
        && !(0..=MAX_DELAY_MS).contains(&delay)
    {
        return Err(invalid("/delay", "must be between 0 and 366 days"));
    }
    for (pointer, id) in [("/messageId", &submission.client_message_id), ("/id", &submission.client_chat_id)]
    {
        if id
            .as_ref()
            .is_some_and(|id| id.is_empty() || id.chars().count() > MAX_NAME_CHARS || id.contains('\0'))
        {
            return Err(invalid(pointer, format!("must have 1 to {MAX_NAME_CHARS} characters")));
        }
    }
    Ok(NewRun {
        workspace_id: submission.workspace_id,
        chat_id: submission.chat_id,
        client_chat_id: submission.client_chat_id,
        client_message_id: submission.client_message_id,
        replaces: submission.replaces,
        input: check_input(submission.input)?,
        if_busy: submission.if_busy,
        start: submission.start,
        trigger: submission.trigger,
        created_by: submission.created_by,
        limits: check_limits(*limits, submission.limits)?,
        tags: check_tags(submission.tags)?,
        metadata: check_metadata(submission.metadata)?,
        traceparent: submission.traceparent.filter(|value| is_traceparent(value)),
        renderer: submission.renderer,
        queue: QUEUE.to_owned(),
        priority: 0,
        idempotency: submission.idempotency,
        request: submission.request,
        agent,
    })
}

fn check_input(input: Input) -> Result<Vec<Part>, SubmitError> {
    let parts = match input {
        Input::Text(text) => vec![Part::Text { text: text::clean_owned(text) }],
        Input::Conversation(parts) => parts,
        Input::Parts(parts) => parts
            .into_iter()
            .enumerate()
            .map(|(place, part)| match part {
                Part::Text { text } => Ok(Part::Text { text: text::clean_owned(text) }),
                _ => Err(invalid(format!("/input/{place}/type"), "only text is taken from clients")),
            })
            .collect::<Result<_, _>>()?,
    };
    let is_blank = |part: &Part| matches!(part, Part::Text { text } if text.trim().is_empty());
    if parts.iter().all(is_blank) {
        return Err(invalid("/input", "must not be empty"));
    }
    Ok(parts)
}

fn check_limits(agent: Limits, wanted: LimitOverrides) -> Result<Limits, SubmitError> {
    fn at_most<N: PartialOrd + std::fmt::Display + From<u8> + Copy>(
        pointer: &str,
        wanted: Option<N>,
        most: N,
    ) -> Result<N, SubmitError> {
        match wanted {
            None => Ok(most),
            Some(wanted) if wanted >= N::from(1) && wanted <= most => Ok(wanted),
            Some(_) => Err(invalid(pointer, format!("must be between 1 and {most}, the agent's own limit"))),
        }
    }
    Ok(Limits {
        max_steps: at_most("/limits/maxSteps", wanted.max_steps, agent.max_steps)?,
        deadline_ms: at_most("/limits/deadline", wanted.deadline_ms, agent.deadline_ms)?,
        tool_timeout_ms: at_most("/limits/toolTimeout", wanted.tool_timeout_ms, agent.tool_timeout_ms)?,
        max_output_tokens: match (wanted.max_output_tokens, agent.max_output_tokens) {
            (Some(wanted), own) => {
                Some(at_most("/limits/maxOutputTokens", Some(wanted), own.unwrap_or(u32::MAX))?)
            }
            (None, own) => own,
        },
    })
}

fn check_tags(tags: Vec<String>) -> Result<Vec<String>, SubmitError> {
    if tags.len() > MAX_TAGS {
        return Err(invalid("/tags", format!("must be at most {MAX_TAGS}")));
    }
    tags.into_iter()
        .enumerate()
        .map(|(place, tag)| {
            if tag.is_empty() || tag.chars().count() > MAX_TAG_CHARS {
                let detail = format!("must have 1 to {MAX_TAG_CHARS} characters");
                return Err(invalid(format!("/tags/{place}"), detail));
            }
            Ok(text::clean_owned(tag))
        })
        .collect()
}

fn check_metadata(metadata: Value) -> Result<Value, SubmitError> {
    let metadata = match metadata {
        Value::Null => Value::Object(serde_json::Map::new()),
        Value::Object(_) => metadata,
        _ => return Err(invalid("/metadata", "must be an object")),
    };
    if metadata.to_string().len() > MAX_METADATA_BYTES {
        return Err(invalid("/metadata", format!("must have at most {MAX_METADATA_BYTES} bytes")));
    }
    text::clean_json(metadata).map_err(|error| invalid("/metadata", error.to_string()))
}

/// A W3C trace context, which is passed on or dropped, never refused.
fn is_traceparent(value: &str) -> bool {
    let fields: Vec<_> = value.split('-').collect();
    let hex = |field: &str, length| field.len() == length && field.bytes().all(|b| b.is_ascii_hexdigit());
    matches!(fields[..], [version, trace, span, flags]
        if hex(version, 2) && hex(trace, 32) && hex(span, 16) && hex(flags, 2))
}

fn invalid(pointer: impl Into<String>, detail: impl Into<String>) -> SubmitError {
    SubmitError::Invalid { pointer: pointer.into(), detail: detail.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pointer<T>(result: Result<T, SubmitError>) -> String {
        match result {
            Err(SubmitError::Invalid { pointer, .. }) => pointer,
            Err(error) => panic!("{error}"),
            Ok(_) => "accepted".to_owned(),
        }
    }

    #[test]
    fn input_is_text_and_not_blank() {
        assert_eq!(pointer(check_input(Input::Text(" \n".into()))), "/input");
        assert_eq!(pointer(check_input(Input::Parts(vec![]))), "/input");
        let reasoning = Part::Reasoning { text: "r".into() };
        assert_eq!(pointer(check_input(Input::Parts(vec![reasoning]))), "/input/0/type");
        let parts = check_input(Input::Text("a\0".into())).unwrap();
        assert_eq!(parts, [Part::Text { text: "a\u{fffd}".into() }]);
    }

    #[test]
    fn limits_may_be_lowered_to_one_and_not_raised() {
        let agent = Limits::default();
        let wanted = |n| LimitOverrides { max_steps: Some(n), ..LimitOverrides::default() };
        assert_eq!(check_limits(agent, wanted(1)).unwrap().max_steps, 1);
        assert_eq!(check_limits(agent, wanted(agent.max_steps)).unwrap().max_steps, agent.max_steps);
        for refused in [0, agent.max_steps + 1] {
            assert_eq!(pointer(check_limits(agent, wanted(refused))), "/limits/maxSteps");
        }
    }

    #[test]
    fn tags_and_metadata_are_bounded() {
        assert!(check_tags(vec!["x".repeat(MAX_TAG_CHARS); MAX_TAGS]).is_ok());
        assert_eq!(pointer(check_tags(vec!["x".into(); MAX_TAGS + 1])), "/tags");
        assert_eq!(pointer(check_tags(vec!["x".repeat(MAX_TAG_CHARS + 1)])), "/tags/0");
        assert_eq!(pointer(check_metadata(json!([1]))), "/metadata");
        assert_eq!(pointer(check_metadata(json!({"k": "x".repeat(MAX_METADATA_BYTES)}))), "/metadata");
        assert_eq!(check_metadata(Value::Null).unwrap(), json!({}));
    }

    #[test]
    fn a_malformed_traceparent_is_dropped() {
        assert!(is_traceparent("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"));
        assert!(!is_traceparent("00-4bf9-00f067aa0ba902b7-01"));
        assert!(!is_traceparent("\r\nx"));
    }
}
