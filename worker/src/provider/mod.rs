//! The model port: one request in, a stream of deltas out.
//!
//! A model is asked by [`Model::stream`] and answers piece by piece. Nothing runs ahead of its reader, so memory
//! stays bounded however fast the provider writes. Dropping the future or the stream closes the connection to
//! the provider at once. A stream that ends in good order has [`ModelEvent::Finish`] as its last item; any other
//! end is an error.

pub mod openai;
mod retry_budget;
pub mod scripted;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use futures::stream::BoxStream;
use longhaul_shared::{
    domain::{
        asked::{ClientTool, OutputFormat, ToolChoice},
        ids::RunId,
        replay::ModelMessage,
        run::{RunError, Usage},
        step::FinishReason,
        tool::ToolSpec,
    },
    net_guard::Refused,
};

/// One model call.
#[derive(Clone, Debug)]
pub struct ModelRequest {
    pub model: String,
    /// Shared, because a long run asks with almost the same conversation a thousand times.
    pub messages: Arc<Vec<ModelMessage>>,
    pub tools: Vec<ToolSpec>,
    /// Tools that the client runs.
    pub client_tools: Vec<ClientTool>,
    pub options: ModelOptions,
    pub run_id: RunId,
    /// From 1.
    pub step: u32,
    /// Which try of this step, from 1.
    pub attempt: u32,
}

/// How the model is to answer. What is absent is the provider's own choice.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelOptions {
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub max_output_tokens: Option<u32>,
    pub reasoning_effort: Option<String>,
    pub verbosity: Option<String>,
    pub format: Option<OutputFormat>,
    pub tool_choice: Option<ToolChoice>,
    pub parallel_tool_calls: Option<bool>,
}

/// A piece of a planned call. Pieces of one call have the same `index`, and indices are dense from 0, whatever
/// the provider made of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallDelta {
    pub index: u32,
    /// The provider's name for the call, in its first piece if at all.
    pub id: Option<String>,
    /// The tool's name, in one piece only.
    pub name: Option<String>,
    /// More of the arguments' JSON text.
    pub arguments: String,
}

/// What a model's stream carries. All text has passed the sanitiser.
#[derive(Clone, Debug, PartialEq)]
pub enum ModelEvent {
    Text(String),
    Reasoning(String),
    ToolCall(CallDelta),
    /// At most once, just before the end. Without it nobody counted.
    Usage(Usage),
    /// The last item. Reading on to the stream's end lets its connection be used again.
    Finish(FinishReason),
}

pub type ModelStream = BoxStream<'static, Result<ModelEvent, ModelError>>;

/// Something that answers a conversation.
#[async_trait]
pub trait Model: Send + Sync {
    /// Begins an answer. What may be sent again before anything came back has been sent again in here: an error
    /// of this call is final, unless [`ModelError::is_torn`].
    async fn stream(&self, request: ModelRequest) -> Result<ModelStream, ModelError>;

    /// Whether a torn answer may be asked for once more. May take a while: it waits while the provider is asked
    /// again for too much already.
    async fn may_repeat(&self) -> bool {
        true
    }
}

/// Why there is no whole answer. The texts are for the person who started the run: one line, bounded, no key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    #[error("the provider answered {status}{}{}", label(*status), detail(message))]
    Status { status: u16, message: String, retry_after: Option<Duration> },
    /// An error object where a chunk was due, read as the status that it stands for.
    #[error("the provider reported an error ({status}){}", detail(message))]
    InStream { status: u16, message: String, retry_after: Option<Duration> },
    #[error("the provider could not be reached: {0}")]
    Connect(String),
    #[error("the provider sent nothing for {} s", .0.as_secs())]
    FirstByteTimeout(Duration),
    #[error("the provider sent no token for {} s", .0.as_secs())]
    Silence(Duration),
    #[error("the provider's stream ended before the answer did")]
    Truncated,
    #[error("the connection to the provider broke in the middle of the answer")]
    Broken,
    #[error("the provider's answer is not a chat completion stream{}", detail(sample))]
    Malformed { sample: String },
    #[error("the model's output is larger than {limit} {of}")]
    OutputTooLarge { limit: usize, of: &'static str },
    #[error("the model asked for more than {limit} tool calls in one step")]
    TooManyCalls { limit: usize },
    #[error("the provider must not be called: {0}")]
    Refused(#[from] Refused),
    #[error("the model cannot be asked: {0}")]
    NotConfigured(String),
}

impl ModelError {
    /// The same request may be sent again, as long as nothing of an answer has been seen.
    pub fn is_retryable_before_output(&self) -> bool {
        match self {
            Self::Status { status, .. } | Self::InStream { status, .. } => is_passing(*status),
            Self::Connect(_) | Self::FirstByteTimeout(_) => true,
            _ => self.is_torn(),
        }
    }

    /// An answer had begun and broke off: the step may be done over from its beginning.
    pub fn is_torn(&self) -> bool {
        match self {
            Self::Silence(_) | Self::Truncated | Self::Broken | Self::Malformed { .. } => true,
            Self::InStream { status, .. } => is_passing(*status),
            _ => false,
        }
    }

    /// How long the provider asked to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } | Self::InStream { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// The same error with no wait beyond `cap`.
    #[must_use]
    pub fn with_retry_after_up_to(mut self, cap: Duration) -> Self {
        if let Self::Status { retry_after: Some(asked), .. }
        | Self::InStream { retry_after: Some(asked), .. } = &mut self
        {
            *asked = (*asked).min(cap);
        }
        self
    }

    /// The stable word for it in a run's error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Status { .. } | Self::InStream { .. } => "provider_status",
            Self::Connect(_) => "provider_unreachable",
            Self::FirstByteTimeout(_) => "provider_timeout",
            Self::Silence(_) => "provider_silent",
            Self::Truncated | Self::Broken => "provider_truncated",
            Self::Malformed { .. } => "provider_malformed",
            Self::OutputTooLarge { .. } => "output_too_large",
            Self::TooManyCalls { .. } => "too_many_calls",
            Self::Refused(_) => "provider_address_refused",
            Self::NotConfigured(_) => "provider_not_configured",
        }
    }
}

impl From<&ModelError> for RunError {
    fn from(error: &ModelError) -> Self {
        RunError::new(error.code(), error.to_string())
    }
}

/// Statuses that another try may not meet again.
fn is_passing(status: u16) -> bool {
    matches!(status, 408 | 425 | 429 | 500..)
}

fn label(status: u16) -> &'static str {
    match status {
        300..=399 => " (redirects are not followed)",
        401 | 403 => " (the key was refused)",
        402 => " (payment is due)",
        429 => " (too many requests)",
        _ => "",
    }
}

fn detail(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(status: u16) -> ModelError {
        ModelError::Status { status, message: "m".into(), retry_after: None }
    }

    #[test]
    fn passing_statuses_are_retried_and_final_ones_are_not() {
        for passing in [408, 429, 500, 502, 503, 504, 529] {
            assert!(status(passing).is_retryable_before_output(), "{passing}");
            assert!(!status(passing).is_torn(), "{passing}: it has been retried already");
        }
        for last in [301, 400, 401, 402, 403, 404, 413, 422] {
            assert!(!status(last).is_retryable_before_output(), "{last}");
        }
        assert!(ModelError::Truncated.is_torn());
        assert!(!ModelError::OutputTooLarge { limit: 1, of: "bytes" }.is_retryable_before_output());
        assert!(!ModelError::Refused(Refused::NotPublic).is_retryable_before_output());
    }

    #[test]
    fn an_error_reads_as_one_line_with_its_status() {
        assert_eq!(status(401).to_string(), "the provider answered 401 (the key was refused): m");
        assert_eq!(
            ModelError::Malformed { sample: String::new() }.to_string(),
            "the provider's answer is not a chat completion stream"
        );
    }
}
