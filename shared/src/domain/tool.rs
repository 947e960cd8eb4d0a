//! Tool calls: what they may do to the world, and how far each one came.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    ids::{Epoch, Millis, RunId},
    transition::stored_words,
};

/// What a second execution of the same call would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// Nothing: it only reads.
    Read,
    /// Nothing new, as long as it carries the same idempotency key.
    Idempotent,
    /// The effect again. Such a call is never sent twice.
    Once,
}

/// How far a call came. `planned` → `dispatched` → one of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallState {
    AwaitingApproval,
    /// Saved with the model's output; nothing has left this system.
    Planned,
    /// The request may have left: from here on nobody but the tool knows.
    Dispatched,
    Succeeded,
    Failed,
    /// Dispatched, and the outcome cannot be known.
    Unknown,
    Denied,
    /// Given up before its result mattered.
    Cancelled,
}

stored_words!(Effect, "effect", { Read => "read", Idempotent => "idempotent", Once => "once" });

stored_words!(CallState, "tool call state", {
    AwaitingApproval => "awaiting_approval",
    Planned => "planned",
    Dispatched => "dispatched",
    Succeeded => "succeeded",
    Failed => "failed",
    Unknown => "unknown",
    Denied => "denied",
    Cancelled => "cancelled",
});

impl CallState {
    /// The call has its one outcome.
    pub const fn is_settled(self) -> bool {
        !matches!(self, Self::AwaitingApproval | Self::Planned | Self::Dispatched)
    }

    /// Whether a call may go from `self` to `next`.
    pub const fn may_become(self, next: Self) -> bool {
        match self {
            Self::AwaitingApproval => {
                matches!(next, Self::Planned | Self::Denied | Self::Cancelled | Self::Failed)
            }
            Self::Planned => matches!(next, Self::Dispatched | Self::Failed | Self::Cancelled),
            // Again `dispatched`: a read or an idempotent call goes out once more after a takeover.
            Self::Dispatched => next.is_settled() || matches!(next, Self::Dispatched),
            Self::Succeeded | Self::Failed | Self::Unknown | Self::Denied | Self::Cancelled => false,
        }
    }
}

/// What a tool is, as the model is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToolSpec {
    pub name: String,
    pub description: String,
    /// JSON Schema of the arguments, an object.
    pub parameters: Value,
    pub effect: Effect,
}

/// What a call came to whose outcome nobody waited for any more.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LateResult {
    /// `succeeded` or `failed`.
    pub state: CallState,
    pub output: Option<String>,
    pub error: Option<String>,
    /// 0 before it is stored.
    pub at: Millis,
}

/// One row of the ledger.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ToolCall {
    #[serde(skip)]
    pub run_id: RunId,
    /// The step that planned it, from 1.
    pub step: u32,
    /// Its place in the step, from 1.
    pub call: u32,
    /// The name by which model and watchers pair call and result.
    pub call_id: String,
    pub name: String,
    /// The arguments as the model wrote them, a JSON object unless the call was malformed.
    pub arguments: String,
    pub effect: Effect,
    pub state: CallState,
    /// The same on every repeat: `<run>:<step>:<call>`.
    pub idempotency_key: String,
    #[serde(skip)]
    pub epoch: Epoch,
    pub output: Option<String>,
    pub error: Option<String>,
    pub planned_at: Option<Millis>,
    pub dispatched_at: Option<Millis>,
    pub settled_at: Option<Millis>,
    /// What is known since; the state does not change by it.
    pub late: Option<LateResult>,
}

impl ToolCall {
    /// What the model reads as the result of this call, whatever became of it.
    pub fn result_for_model(&self) -> String {
        match &self.late {
            Some(late) => format!("{} {}", self.told_at_the_end(), late.told()),
            None => self.told_at_the_end(),
        }
    }

    fn told_at_the_end(&self) -> String {
        let (output, error) = (self.output.as_deref(), self.error.as_deref());
        told(self.state, output, error, self.dispatched_at.is_some())
    }
}

/// What a model reads as the result of a call in that state.
pub fn told(state: CallState, output: Option<&str>, error: Option<&str>, was_sent: bool) -> String {
    match state {
            CallState::Succeeded => output.unwrap_or_default().to_owned(),
            CallState::Failed => format!("Error: {}", error.unwrap_or("the tool gave no reason")),
            CallState::Unknown => "The outcome of this call is unknown: it was sent, and no answer was seen. It may \
                                   or may not have taken effect. It was not sent again. Verify before repeating it."
                .to_owned(),
            CallState::Denied => "This call was denied. It was not executed.".to_owned(),
            CallState::Cancelled => match (error, was_sent) {
                (Some(why), _) => format!("This call was cancelled: {why}."),
                (None, true) => {
                    "This call was cancelled after it was sent; it may have taken effect.".to_owned()
                }
                (None, false) => "This call was cancelled before it was sent.".to_owned(),
            },
            CallState::AwaitingApproval | CallState::Planned | CallState::Dispatched => {
                "This call has no result yet.".to_owned()
            }
        }
}

impl LateResult {
    fn told(&self) -> String {
        match self.state {
            CallState::Succeeded => {
                format!("Its answer came later: it succeeded. {}", self.output.as_deref().unwrap_or_default())
            }
            _ => format!(
                "Its answer came later: it failed. Error: {}",
                self.error.as_deref().unwrap_or("the tool gave no reason")
            ),
        }
    }
}

/// The key that makes a repeat of this call recognisable to the tool.
pub fn idempotency_key(run: RunId, step: u32, call: u32) -> String {
    format!("{run}:{step}:{call}")
}

/// The name of a call, unique within its conversation too: models pair call and result by it.
pub fn call_id(run: RunId, step: u32, call: u32) -> String {
    format!("{}_{step}_{call}", call_prefix(run))
}

/// What the names of all calls of that run begin with, up to and without the step.
pub fn call_prefix(run: RunId) -> String {
    let run = run.0.simple().to_string();
    format!("call_{}", &run[20..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_settled_call_never_changes() {
        for state in CallState::ALL.iter().filter(|s| s.is_settled()) {
            assert!(CallState::ALL.iter().all(|next| !state.may_become(*next)), "{state}");
        }
    }

    #[test]
    fn nothing_succeeds_without_having_been_dispatched() {
        for state in CallState::ALL.iter().filter(|s| s.may_become(CallState::Succeeded)) {
            assert_eq!(*state, CallState::Dispatched);
        }
    }
}
