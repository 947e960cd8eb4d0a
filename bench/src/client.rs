//! The one HTTP client of all measurements: what talks to the API also talks to the provider directly.

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use longhaul_shared::domain::ids::RunId;
use reqwest::header::{ACCEPT, CONTENT_TYPE};
use serde::Deserialize;
use serde_json::json;

/// Talks to one server.
#[derive(Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Submitted {
    run_id: RunId,
}

/// One event of a stream; `data` is JSON, or what the provider says at the end.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) kind: String,
    pub(crate) data: String,
}

/// The form in which a run is shown.
#[derive(Clone, Copy, Debug)]
pub(crate) enum View {
    Native,
    Ui,
    Responses,
}

/// A stream of server-sent events.
pub(crate) struct Events {
    body: BoxStream<'static, reqwest::Result<Bytes>>,
    unread: Vec<u8>,
}

impl Client {
    pub(crate) fn new(base: impl Into<String>) -> Self {
        Self { http: longhaul_tests::http_client(), base: base.into() }
    }

    /// Submits a run of that agent into a chat of its own.
    pub(crate) async fn submit(&self, agent: &str) -> Result<RunId> {
        let body = json!({ "agent": agent, "input": "go" }).to_string();
        let request =
            self.http.post(format!("{}/v1/runs", self.base)).header(CONTENT_TYPE, "application/json");
        let response = request.body(body).send().await?;
        let status = response.status();
        let answer = response.bytes().await?;
        if status != reqwest::StatusCode::ACCEPTED {
            bail!("a submission was answered with {status}: {}", String::from_utf8_lossy(&answer));
        }
        Ok(serde_json::from_slice::<Submitted>(&answer)?.run_id)
    }

    /// Watches a run from its first event.
    pub(crate) async fn tail(&self, run_id: RunId) -> Result<Events> {
        self.watch(run_id, View::Native).await
    }

    /// Watches a run from its first event, in the form that some clients read.
    pub(crate) async fn watch(&self, run_id: RunId, view: View) -> Result<Events> {
        let path = match view {
            View::Native => format!("/v1/runs/{run_id}/events"),
            View::Ui => format!("/api/chat/{run_id}/stream"),
            View::Responses => format!("/v1/responses/resp_{}?stream=true", run_id.0.simple()),
        };
        let url = self.base.clone() + &path;
        let response = self.http.get(url).header(ACCEPT, "text/event-stream").send().await?;
        Ok(Events::of(response.error_for_status()?))
    }

    /// Asks a provider as a worker would.
    pub(crate) async fn complete(&self, model: &str) -> Result<Events> {
        let messages = json!([{ "role": "user", "content": "go" }]);
        let body = json!({ "model": model, "messages": messages, "stream": true }).to_string();
        let url = format!("{}/chat/completions", self.base);
        let request =
            self.http.post(url).header(CONTENT_TYPE, "application/json").header(ACCEPT, "text/event-stream");
        Ok(Events::of(request.body(body).send().await?.error_for_status()?))
    }
}

impl Events {
    fn of(response: reqwest::Response) -> Self {
        Self { body: response.bytes_stream().boxed(), unread: vec![] }
    }

    /// The next event, `None` at a clean end.
    pub(crate) async fn next(&mut self) -> Result<Option<Event>> {
        loop {
            if let Some(end) = self.unread.windows(2).position(|two| two == b"\n\n") {
                let block: Vec<u8> = self.unread.drain(..end + 2).collect();
                if let Some(event) = parse(std::str::from_utf8(&block)?) {
                    return Ok(Some(event));
                }
                continue;
            }
            match self.body.next().await {
                Some(bytes) => self.unread.extend_from_slice(&bytes.context("a stream broke off")?),
                None => return Ok(None),
            }
        }
    }

    /// Reads up to the first event that `wanted` accepts.
    pub(crate) async fn until(&mut self, wanted: impl Fn(&Event) -> bool) -> Result<Event> {
        while let Some(event) = self.next().await? {
            if wanted(&event) {
                return Ok(event);
            }
        }
        bail!("the stream ended before the event that was waited for")
    }

    /// Reads to the end without a look at what it says.
    pub(crate) async fn swallow(mut self) -> Result<()> {
        while let Some(bytes) = self.body.next().await {
            bytes.context("a stream broke off")?;
        }
        Ok(())
    }

    /// Reads to the end.
    pub(crate) async fn drain(mut self) -> Result<()> {
        while self.next().await?.is_some() {}
        Ok(())
    }
}

/// `None` for a block without data, such as a comment.
fn parse(block: &str) -> Option<Event> {
    let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let data = field("data")?.to_owned();
    Some(Event { kind: field("event").unwrap_or_default().to_owned(), data })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn events_are_read_across_the_borders_of_chunks() {
        let text = "retry: 2000\nid: 1\nevent: run.queued\ndata: {}\n\n: hb\nevent: end\ndata: {\"a\":1}\n\n";
        let chunks: Vec<_> = text.as_bytes().chunks(7).map(|chunk| Ok(Bytes::from_static(chunk))).collect();
        let mut events = Events { body: futures::stream::iter(chunks).boxed(), unread: vec![] };
        assert_eq!(events.next().await.unwrap().unwrap().kind, "run.queued");
        let end = events.next().await.unwrap().unwrap();
        assert_eq!((end.kind.as_str(), end.data.as_str()), ("end", "{\"a\":1}"));
        assert!(events.next().await.unwrap().is_none());
    }
}
