//! Any Chat Completions endpoint.
//!
//! Requests are built with async-openai's types. Answers are not read with its client: that one feeds an unbounded
//! channel, hides the status and headers of errors, repeats requests by itself and lets a cut stream end like a whole
//! one. Here the body is pulled event by event ([`sse`]), read leniently ([`chunk`]) and added up within limits
//! ([`answer`]).
//!
//! Before the first byte of an answer the request is sent again where that can help, within the provider's
//! [`RetryBudget`]; afterwards never. Silence is
//! counted in tokens: comments, padding and dripping bytes do not keep a stream alive. Once the model has finished,
//! nothing that the provider does or omits delays the end by more than a moment.

mod answer;
mod calls;
mod chunk;
mod request;
mod sse;
#[cfg(test)]
mod tests;
mod transport;

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use async_stream::try_stream;
use async_trait::async_trait;
use bytes::Bytes;
use longhaul_shared::{
    domain::{ids::RunId, retry::Backoff},
    net_guard::GuardedClient,
    telemetry::metrics::{self, StepRetry},
};
use reqwest::{
    Method, RequestBuilder,
    header::{ACCEPT, CONTENT_TYPE},
};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use url::Url;

use self::{
    answer::Answer,
    sse::Frame,
    transport::{BodyLimits, Frames},
};
use super::{Model, ModelError, ModelEvent, ModelRequest, ModelStream, retry_budget::RetryBudget};
use crate::redact::{Redactor, fingerprint};

/// How long the count of tokens is waited for once the model has finished.
const USAGE_GRACE: Duration = Duration::from_secs(2);

/// How long the end of the body is waited for after that, to keep the connection.
const LINGER: Duration = Duration::from_millis(50);

/// So many of the longest waits a repeat is waited for, if there are too many of them already.
const PATIENCE: u32 = 5;

/// A JSON string can be six times as long as what it says, and each token has a chunk around it.
const WIRE_FACTOR: usize = 128;

/// What an endpoint needs.
pub struct OpenAiOptions {
    /// Up to and without `/chat/completions`.
    pub base_url: Url,
    pub api_key: Option<String>,
    pub client: GuardedClient,
    /// From sending a request to the first byte of its answer's body.
    pub first_byte_timeout: Duration,
    /// The longest time without a token.
    pub silence_timeout: Duration,
    /// Text, reasoning and arguments of one step.
    pub max_output_bytes: usize,
    /// Repeats of a request before anything came back.
    pub max_retries: u32,
    pub backoff: Backoff,
    /// The longest `Retry-After` that is honoured.
    pub retry_after_cap: Duration,
    pub now: fn() -> SystemTime,
    /// In `0.0..1.0`.
    pub random: fn() -> f64,
}

impl OpenAiOptions {
    /// The usual limits.
    pub fn new(base_url: Url, api_key: Option<String>, client: GuardedClient) -> Self {
        Self {
            base_url,
            api_key,
            client,
            first_byte_timeout: Duration::from_mins(2),
            silence_timeout: Duration::from_mins(15),
            max_output_bytes: 4 << 20,
            max_retries: 4,
            backoff: Backoff::new(Duration::from_millis(500), Duration::from_secs(10)),
            retry_after_cap: Duration::from_mins(1),
            now: SystemTime::now,
            random: rand::random,
        }
    }
}

/// A Chat Completions endpoint.
pub struct OpenAi {
    options: OpenAiOptions,
    url: Url,
    redactor: Redactor,
    budget: RetryBudget,
}

impl fmt::Debug for OpenAi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenAi").field("url", &self.url.as_str()).finish_non_exhaustive()
    }
}

/// An answer that has begun.
struct Opened {
    frames: Frames,
    answer: Answer,
    first: Vec<ModelEvent>,
}

/// Which call this is, for the provider's log and ours.
#[derive(Clone, Copy)]
struct Caller {
    run_id: RunId,
    step: u32,
    attempt: u32,
}

impl OpenAi {
    pub fn new(options: OpenAiOptions) -> Self {
        let mut url = options.base_url.clone();
        let path = format!("{}/chat/completions", url.path().trim_end_matches('/'));
        url.set_path(&path);
        let redactor = Redactor::new(options.api_key.as_deref());
        Self { options, url, redactor, budget: RetryBudget::new() }
    }

    async fn open_with_retries(&self, caller: Caller, body: &Bytes) -> Result<Opened, ModelError> {
        let mut retry = 0;
        if caller.attempt == 1 {
            self.budget.earn();
        }
        loop {
            let error = match self.open(caller, body).await {
                Ok(opened) => return Ok(opened),
                Err(error) => error,
            };
            // A torn answer is the step's to do over: it has been paid for.
            let again = error.is_retryable_before_output() && !error.is_torn();
            if !again || retry == self.options.max_retries || !self.may_repeat().await {
                return Err(error);
            }
            retry += 1;
            metrics::step_retried(StepRetry::Request);
            let wait = self.wait(retry, error.retry_after());
            tracing::warn!(
                run.id = %caller.run_id,
                step = caller.step,
                retry,
                wait_ms = wait.as_millis() as u64,
                error = error.code(),
                "the provider failed before its answer began; it is asked again"
            );
            sleep(wait).await;
        }
    }

    /// Never shorter than the provider asked for, and spread so that many runs do not come back at once.
    fn wait(&self, retry: u32, asked: Option<Duration>) -> Duration {
        let random = (self.options.random)();
        match asked {
            Some(asked) => {
                asked.min(self.options.retry_after_cap) + self.options.backoff.first.mul_f64(random)
            }
            None => self.options.backoff.wait(retry, random),
        }
    }

    async fn open(&self, caller: Caller, body: &Bytes) -> Result<Opened, ModelError> {
        let limit = self.options.first_byte_timeout;
        timeout(limit, self.begin(caller, body))
            .await
            .unwrap_or(Err(ModelError::FirstByteTimeout(limit)))
            .map_err(|error| match error {
                // As if it had been the head's status: no output has been seen.
                ModelError::InStream { status, message, retry_after } => {
                    ModelError::Status { status, message, retry_after }
                }
                error => error,
            })
            .map_err(|error| match (error, &self.options.api_key) {
                // Which of several keys it was, for whoever has to replace it.
                (ModelError::Status { status: status @ (401 | 403), message, retry_after }, Some(key)) => {
                    let message = format!("key {}: {message}", fingerprint(key));
                    ModelError::Status { status, message, retry_after }
                }
                (error, _) => error,
            })
    }

    /// Up to the first event or comment.
    async fn begin(&self, caller: Caller, body: &Bytes) -> Result<Opened, ModelError> {
        let output = self.options.max_output_bytes;
        let limits = BodyLimits {
            frame: output.saturating_mul(6).saturating_add(64 << 10),
            total: output.saturating_mul(WIRE_FACTOR),
        };
        let request = self.request(caller, body)?;
        let mut frames = transport::open(request, limits, &self.redactor, (self.options.now)()).await?;
        let mut answer = Answer::new(output, self.redactor.clone());
        let first = match frames.next().await? {
            Some(Frame::Event { name, data }) => answer.take(&name, &data).map_err(|error| match error {
                ModelError::Malformed { .. } if frames.has_ended() => ModelError::Truncated,
                error => error,
            })?,
            Some(Frame::Comment) => vec![],
            None => return Err(frames.incomplete(&self.redactor)),
        };
        Ok(Opened { frames, answer, first })
    }

    fn request(&self, caller: Caller, body: &Bytes) -> Result<RequestBuilder, ModelError> {
        let request = self
            .options
            .client
            .request(Method::POST, &self.url)?
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, "text/event-stream")
            .header("x-longhaul-run-id", caller.run_id.to_string())
            .header("x-longhaul-step", caller.step)
            .header("x-longhaul-attempt", caller.attempt)
            .body(body.clone());
        Ok(match &self.options.api_key {
            Some(key) => request.bearer_auth(key),
            None => request,
        })
    }

    fn read(&self, opened: Opened) -> ModelStream {
        let Opened { mut frames, mut answer, first } = opened;
        let silence = self.options.silence_timeout;
        let redactor = self.redactor.clone();
        let retry_after_cap = self.options.retry_after_cap;
        Box::pin(try_stream! {
            for event in first {
                yield event;
            }
            let mut deadline = Instant::now() + silence;
            let mut closing = false;
            while !answer.is_over() {
                if answer.has_finished() && !closing {
                    closing = true;
                    deadline = Instant::now() + USAGE_GRACE;
                }
                let events = match timeout_at(deadline, frames.next()).await {
                    Ok(Ok(Some(Frame::Event { name, data }))) => answer.take(&name, &data),
                    Ok(Ok(Some(Frame::Comment))) => Ok(vec![]),
                    Ok(Ok(None)) => break,
                    Ok(Err(error)) => Err(error),
                    Err(_) => Err(ModelError::Silence(silence)),
                };
                let events = match events {
                    // A stream that is never empty never lets the timer look at the clock.
                    Ok(events) if events.is_empty() && Instant::now() >= deadline => {
                        Err(ModelError::Silence(silence))
                    }
                    events => events,
                };
                let events = match events {
                    Ok(events) => events,
                    // The answer is whole; what is broken is the rest.
                    Err(_) if closing => break,
                    Err(ModelError::Malformed { .. }) if frames.has_ended() => break,
                    Err(error) => {
                        Err::<Vec<ModelEvent>, ModelError>(error.with_retry_after_up_to(retry_after_cap))?
                    }
                };
                if !events.is_empty() && !closing {
                    deadline = Instant::now() + silence;
                }
                for event in events {
                    yield event;
                }
            }
            let reason = answer.finish().map_err(|_| frames.incomplete(&redactor))?;
            if let Some(usage) = answer.usage() {
                yield ModelEvent::Usage(usage);
            }
            yield ModelEvent::Finish(reason);
            // Whether the connection could be kept changes nothing for the answer.
            let _ = timeout(LINGER, frames.drain()).await;
        })
    }
}

#[async_trait]
impl Model for OpenAi {
    async fn stream(&self, request: ModelRequest) -> Result<ModelStream, ModelError> {
        let caller = Caller { run_id: request.run_id, step: request.step, attempt: request.attempt };
        let body = request::body(request)?;
        let opened = self.open_with_retries(caller, &body).await?;
        Ok(self.read(opened))
    }

    async fn may_repeat(&self) -> bool {
        self.budget.spend(self.options.retry_after_cap * PATIENCE).await
    }
}
