//! Tools that are HTTP endpoints, declared in the configuration.
//!
//! Each request carries the call's idempotency key, which stays the same however often the call is repeated. What may
//! be repeated without harm is repeated a few times when the connection fails or the endpoint is away; a call that
//! must happen once is sent once, and if no answer was seen its outcome is unknown. Each request asks the call's
//! [`Departure`](super::Departure) once it is connected and before the first byte of its body. An answer is read up to a
//! limit, sanitised, and cleared of the secrets that were sent with the request. [`reconcile`] asks about calls without
//! one.

mod reconcile;
#[cfg(test)]
mod tests;

use std::{error::Error, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream;
use longhaul_shared::{
    domain::{
        retry::Backoff,
        text::{clean_and_cut, one_line},
        tool::{Effect, ToolSpec},
    },
    net_guard::{GuardedClient, Refused},
};
use reqwest::{
    Body, Method, Response,
    header::{ACCEPT, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue},
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use url::Url;

use super::{Barred, Tool, ToolContext, ToolOutcome};
use crate::redact::Redactor;

/// How much of an error's body the model is told.
const EXCERPT: usize = 300;

/// Read beyond the limit, so that a secret which the cut would divide is found whole.
const MARGIN: usize = 4 * 1024;

/// Repeats of a call that may be repeated.
const MAX_RETRIES: u32 = 2;

/// What a declared tool needs.
#[derive(Clone, Debug)]
pub struct HttpToolOptions {
    pub spec: ToolSpec,
    pub method: Method,
    pub url: Url,
    /// Values may be secrets.
    pub headers: Vec<(String, String)>,
    /// Shorter than the run's own limit for tools, if at all.
    pub timeout: Option<Duration>,
    /// The longest silence in the middle of an answer.
    pub idle_timeout: Duration,
    pub max_bytes: usize,
    /// Where to ask what became of a call whose answer was not seen.
    pub reconcile_url: Option<Url>,
    pub client: GuardedClient,
    pub backoff: Backoff,
    /// In `0.0..1.0`.
    pub random: fn() -> f64,
}

impl HttpToolOptions {
    /// A `POST` with the usual limits.
    pub fn new(spec: ToolSpec, url: Url, client: GuardedClient) -> Self {
        Self {
            spec,
            method: Method::POST,
            url,
            headers: vec![],
            timeout: None,
            idle_timeout: Duration::from_secs(30),
            max_bytes: 200_000,
            reconcile_url: None,
            client,
            backoff: Backoff::new(Duration::from_millis(200), Duration::from_secs(2)),
            random: rand::random,
        }
    }
}

/// A header that cannot be sent. Its value is not told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the header {0:?} of the tool cannot be sent")]
pub struct BadHeader(pub String);

/// A tool behind an HTTP endpoint.
pub struct HttpTool {
    options: HttpToolOptions,
    headers: HeaderMap,
    redactor: Redactor,
}

/// How one request went.
enum Sent {
    Settled(ToolOutcome),
    /// Nothing left this machine.
    Never(String),
    /// As [`Sent::Never`], and nothing will.
    Barred,
    /// It left, and how it went cannot be known.
    Lost(String),
    /// As [`Sent::Lost`], and there is no use in trying again.
    Broken(String),
}

/// Why a request got no response.
enum NoResponse {
    Refused(Refused),
    Barred,
    Failed(reqwest::Error),
}

impl HttpTool {
    pub fn new(options: HttpToolOptions) -> Result<Self, BadHeader> {
        let mut headers = HeaderMap::new();
        for (name, value) in &options.headers {
            let bad = || BadHeader(name.clone());
            let mut value = HeaderValue::from_str(value).map_err(|_| bad())?;
            value.set_sensitive(true);
            headers.insert(HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad())?, value);
        }
        let secrets = options.headers.iter().filter(|(name, _)| !is_plain(name));
        let redactor = Redactor::new(secrets.map(|(_, value)| value.as_str()));
        Ok(Self { options, headers, redactor })
    }

    fn headers(&self, cx: &ToolContext) -> HeaderMap {
        let mut headers = self.headers.clone();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers
            .entry(ACCEPT)
            .or_insert(HeaderValue::from_static("application/json, text/*;q=0.9, */*;q=0.1"));
        for (name, value) in [
            ("idempotency-key", Some(cx.idempotency_key.as_str())),
            ("x-longhaul-run-id", Some(cx.run_id.to_string().as_str())),
            ("x-longhaul-workspace", Some(cx.workspace_id.to_string().as_str())),
            ("traceparent", cx.traceparent.as_deref()),
        ] {
            // A trace that came in malformed is not handed on.
            if let Some(value) = value.and_then(|value| HeaderValue::from_str(value).ok()) {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
        headers
    }

    async fn send(&self, body: &[u8], cx: &ToolContext) -> Sent {
        match self.request(self.options.method.clone(), &self.options.url, body, cx).await {
            Ok(response) => self.read(response).await,
            Err(NoResponse::Refused(refused)) => Sent::Settled(self.failed(&refused.to_string())),
            Err(NoResponse::Barred) => Sent::Barred,
            Err(NoResponse::Failed(error)) => {
                let cause = self.line(&root_cause(&error));
                if cx.departure.has_left() {
                    Sent::Lost(format!("the connection to the tool broke before it answered: {cause}"))
                } else {
                    Sent::Never(format!("the tool could not be reached: {cause}"))
                }
            }
        }
    }

    /// Sends a request as soon as it may leave.
    async fn request(
        &self,
        method: Method,
        url: &Url,
        body: &[u8],
        cx: &ToolContext,
    ) -> Result<Response, NoResponse> {
        let body = Bytes::copy_from_slice(body);
        loop {
            cx.departure.open().await.map_err(|Barred| NoResponse::Barred)?;
            let request = self.options.client.request(method.clone(), url).map_err(NoResponse::Refused)?;
            // Asked for its body, the connection stands and at most the headers are written: a worker that was frozen
            // until now has perhaps been replaced.
            let (departure, bytes) = (cx.departure.clone(), body.clone());
            let gated = stream::once(async move { departure.leave().map(|()| bytes) });
            let request = request
                .headers(self.headers(cx))
                .header(CONTENT_LENGTH, body.len())
                .body(Body::wrap_stream(gated));
            match request.send().await {
                Err(error) if Barred::is_cause_of(&error) => {}
                Err(error) => {
                    return Err(match Refused::find(&error) {
                        Some(refused) => NoResponse::Refused(refused),
                        None => NoResponse::Failed(error),
                    });
                }
                Ok(response) => return Ok(response),
            }
        }
    }

    async fn read(&self, response: Response) -> Sent {
        let status = response.status();
        if status.is_success() {
            if response.headers().get(CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
                return Sent::Settled(ToolOutcome::Succeeded(
                    "[the answer is compressed, which was not asked for, and has been left out]".to_owned(),
                ));
            }
            return match self.body(response, self.options.max_bytes).await {
                Ok(text) => Sent::Settled(ToolOutcome::Succeeded(text)),
                Err(why) => Sent::Lost(why),
            };
        }
        let number = status.as_u16();
        if status.is_redirection() {
            return Sent::Settled(
                self.failed(&format!("the tool answered {number}: redirects are not followed")),
            );
        }
        // The status is the answer; its body only explains it.
        let body = self.body(response, MARGIN).await.unwrap_or_default();
        let told = format!("the tool answered {number}: {}", one_line(&body, EXCERPT));
        match number {
            502..=504 => Sent::Lost(told),
            500.. => Sent::Broken(told),
            _ => Sent::Settled(ToolOutcome::Failed(told)),
        }
    }

    /// The text of an answer, cut to `limit` bytes.
    async fn body(&self, mut response: Response, limit: usize) -> Result<String, String> {
        Ok(self.clean(&self.bytes(&mut response, limit).await?, limit))
    }

    /// Its first bytes, a little more than `limit`.
    async fn bytes(&self, response: &mut Response, limit: usize) -> Result<Vec<u8>, String> {
        let mut body = vec![];
        let enough = limit.saturating_add(MARGIN);
        while body.len() <= enough {
            match timeout(self.options.idle_timeout, response.chunk()).await {
                Ok(Ok(Some(bytes))) => {
                    body.extend_from_slice(&bytes[..bytes.len().min(enough + 1 - body.len())]);
                }
                Ok(Ok(None)) => break,
                Ok(Err(_)) => {
                    return Err("the connection to the tool broke in the middle of its answer".to_owned());
                }
                Err(_) => return Err("the tool went silent in the middle of its answer".to_owned()),
            }
        }
        Ok(body)
    }

    fn clean(&self, text: &[u8], limit: usize) -> String {
        clean_and_cut(&self.redactor.redact(&String::from_utf8_lossy(text)), limit)
    }

    /// The outcome of a request that nobody will repeat.
    fn settle(&self, sent: Sent) -> ToolOutcome {
        match sent {
            Sent::Settled(outcome) => outcome,
            Sent::Never(why) => ToolOutcome::Failed(why),
            Sent::Barred => ToolOutcome::Failed(Barred.to_string()),
            Sent::Lost(why) | Sent::Broken(why) => match self.options.spec.effect {
                Effect::Once => ToolOutcome::Unknown(why),
                Effect::Read | Effect::Idempotent => ToolOutcome::Failed(why),
            },
        }
    }

    fn time_limit(&self, cx: &ToolContext) -> Duration {
        self.options.timeout.map_or(cx.timeout, |own| own.min(cx.timeout))
    }

    fn failed(&self, why: &str) -> ToolOutcome {
        ToolOutcome::Failed(self.line(why))
    }

    fn line(&self, text: &str) -> String {
        one_line(&self.redactor.redact(text), EXCERPT)
    }
}

#[async_trait]
impl Tool for HttpTool {
    fn spec(&self) -> &ToolSpec {
        &self.options.spec
    }

    async fn call(&self, arguments: &Value, cx: &ToolContext) -> ToolOutcome {
        let limit = self.time_limit(cx);
        let deadline = Instant::now() + limit;
        let body = json!({ "arguments": arguments }).to_string().into_bytes();
        let repeatable = self.options.spec.effect != Effect::Once;
        let mut retry = 0;
        let mut before = None;
        loop {
            let sent = match timeout_at(deadline, self.send(&body, cx)).await {
                Ok(sent) => sent,
                Err(_) if cx.departure.close() => {
                    Sent::Broken(format!("the tool did not answer within {limit:?}"))
                }
                Err(_) => Sent::Never(format!("the call could not be sent within {limit:?}")),
            };
            // What is not repeated came to what it came to before.
            let sent = if matches!(sent, Sent::Barred) { before.unwrap_or(sent) } else { sent };
            let again = repeatable && matches!(sent, Sent::Never(_) | Sent::Lost(_));
            retry += 1;
            let wait = self.options.backoff.wait(retry, (self.options.random)());
            if !again || retry > MAX_RETRIES || Instant::now() + wait >= deadline {
                return self.settle(sent);
            }
            tracing::debug!(
                run.id = %cx.run_id,
                step = cx.step,
                call = cx.call,
                retry,
                "the tool did not answer; it is called again with the same key"
            );
            before = Some(sent);
            sleep(wait).await;
        }
    }

    fn can_reconcile(&self) -> bool {
        self.options.reconcile_url.is_some()
    }

    async fn reconcile(&self, arguments: &Value, cx: &ToolContext) -> ToolOutcome {
        self.ask(arguments, cx).await
    }
}

/// Headers whose values are ordinary words, which an answer may well contain.
fn is_plain(name: &str) -> bool {
    ["accept", "accept-language", "cache-control", "user-agent"]
        .iter()
        .any(|plain| plain.eq_ignore_ascii_case(name))
}

/// The innermost cause, which does not name the URL.
fn root_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
