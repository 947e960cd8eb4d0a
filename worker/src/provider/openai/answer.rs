//! What the chunks of one answer add up to: events out, within limits, and how it ended.

use longhaul_shared::domain::{
    run::Usage,
    step::FinishReason,
    text::{clean_owned, one_line},
};
use serde_json::Value;

use super::{
    calls::Calls,
    chunk::{self, Chunk, Delta},
};
use crate::{
    provider::{ModelError, ModelEvent},
    redact::Redactor,
};

/// How much of a foreign text goes into an error.
pub(super) const EXCERPT: usize = 300;

/// More calls than this in one step are not a plan.
const MAX_CALLS: usize = 128;

pub(super) struct Answer {
    max_output_bytes: usize,
    redactor: Redactor,
    written: usize,
    calls: Calls,
    usage: Option<Usage>,
    /// The usage came with the finish reason or behind it: some count in every chunk, and only the last count is whole.
    usage_is_last: bool,
    finish: Option<FinishReason>,
    /// A finish reason without a word in it, which counts if the stream then ends in good order.
    blank_finish: bool,
    done: bool,
}

impl Answer {
    pub(super) fn new(max_output_bytes: usize, redactor: Redactor) -> Self {
        Self {
            max_output_bytes,
            redactor,
            written: 0,
            calls: Calls::default(),
            usage: None,
            usage_is_last: false,
            finish: None,
            blank_finish: false,
            done: false,
        }
    }

    /// The events of one server-sent event. An empty list is no progress.
    pub(super) fn take(&mut self, name: &str, data: &str) -> Result<Vec<ModelEvent>, ModelError> {
        let data = data.trim();
        if data == "[DONE]" {
            self.done = true;
            return Ok(vec![]);
        }
        if data.is_empty() {
            return Ok(vec![]);
        }
        let chunk = chunk::parse(data).map_err(|_| self.malformed(data))?;
        if let Some(error) = self.error(name, data, &chunk) {
            return Err(error);
        }
        let is_counted = chunk.usage.is_some();
        self.usage = chunk.usage.or(self.usage);
        let mut events = vec![];
        // Only one answer was asked for; were there others, they would be mixed into it.
        for choice in chunk.choices.into_iter().filter(|choice| choice.index.unwrap_or(0) == 0) {
            self.take_delta(choice.delta, &mut events)?;
            self.blank_finish = choice.finish_reason.as_ref().is_some_and(|word| word.0.is_empty());
            let reason = choice.finish_reason.and_then(|word| chunk::finish_reason(&word.0));
            self.finish = self.finish.or(reason);
        }
        self.usage_is_last |= is_counted && self.finish.is_some();
        Ok(events)
    }

    fn take_delta(&mut self, delta: Delta, events: &mut Vec<ModelEvent>) -> Result<(), ModelError> {
        let Delta { content, reasoning_content, reasoning, refusal, tool_calls } = delta;
        // Some send the same reasoning under both names.
        let reasoning = if reasoning_content.0.is_empty() { reasoning } else { reasoning_content };
        for (text, event) in [
            (reasoning.0, ModelEvent::Reasoning as fn(String) -> ModelEvent),
            (content.0, ModelEvent::Text),
            (refusal.0, ModelEvent::Text),
        ] {
            if !text.is_empty() {
                self.count(text.len())?;
                events.push(event(clean_owned(text)));
            }
        }
        for piece in tool_calls {
            let call = self.calls.take(piece);
            self.count(call.arguments.len() + call.name.as_ref().map_or(0, String::len))?;
            if self.calls.len() > MAX_CALLS {
                return Err(ModelError::TooManyCalls { limit: MAX_CALLS });
            }
            // A piece that says nothing new is no progress.
            if call.id.is_some() || call.name.is_some() || !call.arguments.is_empty() {
                events.push(ModelEvent::ToolCall(call));
            }
        }
        Ok(())
    }

    fn count(&mut self, bytes: usize) -> Result<(), ModelError> {
        self.written += bytes;
        if self.written > self.max_output_bytes {
            return Err(ModelError::OutputTooLarge { limit: self.max_output_bytes, of: "bytes" });
        }
        Ok(())
    }

    fn error(&self, name: &str, data: &str, chunk: &Chunk) -> Option<ModelError> {
        let error = match &chunk.error {
            // Some providers have the field in every chunk, empty.
            Some(Value::Bool(false)) => return None,
            Some(Value::String(text)) if text.is_empty() => return None,
            Some(Value::Object(fields)) if fields.is_empty() => return None,
            Some(error) => error.clone(),
            None if name == "error" => serde_json::from_str(data).ok()?,
            None => return None,
        };
        let retry_after = chunk::retry_after(&error);
        let (status, message) = chunk::error_status(&error);
        let message = one_line(&self.redactor.redact(&message), EXCERPT);
        Some(ModelError::InStream { status, message, retry_after })
    }

    fn malformed(&self, data: &str) -> ModelError {
        ModelError::Malformed { sample: one_line(&self.redactor.redact(data), EXCERPT) }
    }

    /// The model has stopped writing; only the count of tokens may follow.
    pub(super) fn has_finished(&self) -> bool {
        self.finish.is_some()
    }

    /// Nothing is to be waited for any more.
    pub(super) fn is_over(&self) -> bool {
        self.done || self.usage_is_last
    }

    pub(super) fn usage(&self) -> Option<Usage> {
        self.usage
    }

    /// How the model ended, once the stream has: without a reason it is not an answer.
    pub(super) fn finish(&self) -> Result<FinishReason, ModelError> {
        let blank = (self.done && self.blank_finish).then_some(FinishReason::Stop);
        match self.finish.or(blank) {
            // Calls are there to be made, whatever word the provider ended with.
            Some(FinishReason::Stop | FinishReason::Other) if self.calls.len() > 0 => {
                Ok(FinishReason::ToolCalls)
            }
            Some(reason) => Ok(reason),
            None => Err(ModelError::Truncated),
        }
    }
}
