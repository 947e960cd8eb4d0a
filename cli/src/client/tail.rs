//! A run's events, each once and in order, until its end, however often the connection breaks on the way.
//!
//! A broken connection is taken up again behind the last event seen, for as long as it takes. Only an answer that
//! says that there is nothing to follow ends a tail early.

use std::{pin::Pin, time::Duration};

use eventsource_stream::Eventsource;
use futures::{Stream, StreamExt};
use longhaul_shared::domain::{event::RUN_FINISHED, ids::Seq, retry::Backoff};
use reqwest::{
    Method, StatusCode,
    header::{ACCEPT, CONTENT_TYPE},
};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::sleep;

use super::{Client, error::ClientError, passes, refusal};

const RETRY: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
/// How often something may come that is no event before it is no accident of the connection.
const UNREADABLE: u32 = 5;

/// An event, as it came and as it is read.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    /// The envelope as the server wrote it.
    pub(crate) text: String,
    pub(crate) seq: Seq,
    pub(crate) kind: String,
    pub(crate) step: Option<u32>,
    pub(crate) data: Value,
}

/// What a tail has to say.
#[derive(Clone, Debug)]
pub(crate) enum Item {
    Event(Event),
    /// The server cannot be reached; said once per interruption, and the tail goes on trying.
    Interrupted,
    /// The run is over and everything was seen.
    End,
}

type Frames = Pin<Box<dyn Stream<Item = Result<eventsource_stream::Event, String>> + Send>>;

pub(crate) struct Tail {
    client: Client,
    run: String,
    after: Seq,
    frames: Option<Frames>,
    /// Since the last event.
    failures: u32,
    unreadable: u32,
    told: bool,
    over: bool,
}

enum Connected {
    Frames(Frames),
    NothingLeft,
}

impl Tail {
    /// Follows a run from behind event `after`; 0 is everything.
    pub(crate) fn new(client: Client, run: impl Into<String>, after: Seq) -> Self {
        Self {
            client,
            run: run.into(),
            after,
            frames: None,
            failures: 0,
            unreadable: 0,
            told: false,
            over: false,
        }
    }

    /// The next thing to know. After `End` it is `End` for ever.
    pub(crate) async fn next(&mut self) -> Result<Item, ClientError> {
        loop {
            if self.over {
                return Ok(Item::End);
            }
            let Some(frames) = &mut self.frames else {
                if self.failures > 0 {
                    sleep(RETRY.wait(self.failures, 1.0)).await;
                }
                match self.connect().await {
                    Ok(Connected::Frames(frames)) => self.frames = Some(frames),
                    Ok(Connected::NothingLeft) => self.over = true,
                    Err(error) if passes(&error) => {
                        self.failures = self.failures.saturating_add(1);
                        if !std::mem::replace(&mut self.told, true) {
                            return Ok(Item::Interrupted);
                        }
                    }
                    Err(error) => return Err(error),
                }
                continue;
            };
            match frames.next().await {
                Some(Ok(frame)) => {
                    if let Some(event) = self.take(&frame)? {
                        return Ok(Item::Event(event));
                    }
                }
                // Only `end` is an end: a body that stops without it was cut, however politely.
                Some(Err(_)) | None => self.reconnect(),
            }
        }
    }

    /// The event in a frame, unless it was seen before or is none.
    fn take(&mut self, frame: &eventsource_stream::Event) -> Result<Option<Event>, ClientError> {
        match read(frame) {
            Ok(Some(event)) if event.seq > self.after => {
                self.after = event.seq;
                self.over = frame.event == "end" || event.kind == RUN_FINISHED;
                (self.failures, self.unreadable, self.told) = (0, 0, false);
                Ok(Some(event))
            }
            Ok(_) => Ok(None),
            Err(reason) => {
                self.unreadable += 1;
                if self.unreadable >= UNREADABLE {
                    return Err(ClientError::Nonsense(format!("after event {}: {reason}", self.after)));
                }
                self.reconnect();
                Ok(None)
            }
        }
    }

    fn reconnect(&mut self) {
        self.frames = None;
        self.failures = self.failures.saturating_add(1);
    }

    async fn connect(&self) -> Result<Connected, ClientError> {
        let path = ["v1", "runs", &self.run, "events"];
        let after = self.after.to_string();
        let mut request = self.client.request(Method::GET, &path, &[("after", after.clone())]);
        request = request.header(ACCEPT, "text/event-stream");
        if self.after > 0 {
            request = request.header("Last-Event-ID", after);
        }
        let answer = request.send().await.map_err(|error| self.client.sort(error))?;
        match answer.status() {
            StatusCode::NO_CONTENT => Ok(Connected::NothingLeft),
            StatusCode::OK => {
                let kind = answer.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
                if !kind.is_some_and(|kind| kind.starts_with("text/event-stream")) {
                    let kind = kind.unwrap_or("nothing").to_owned();
                    return Err(ClientError::Nonsense(format!("{kind} instead of an event stream")));
                }
                let frames = answer.bytes_stream().eventsource();
                Ok(Connected::Frames(Box::pin(frames.map(|frame| frame.map_err(|error| error.to_string())))))
            }
            _ => Err(refusal(answer).await),
        }
    }
}

/// Reads the envelope. Frames without a number, such as greetings of a newer server, are not events.
fn read(frame: &eventsource_stream::Event) -> Result<Option<Event>, String> {
    #[derive(Deserialize)]
    struct Envelope {
        #[serde(default)]
        seq: Option<Seq>,
        #[serde(default, rename = "type")]
        kind: Option<String>,
        #[serde(default)]
        step: Option<u32>,
        #[serde(default)]
        data: Value,
    }
    let envelope: Envelope = serde_json::from_str(&frame.data).map_err(|error| error.to_string())?;
    let Some(seq) = envelope.seq else { return Ok(None) };
    Ok(Some(Event {
        text: frame.data.clone(),
        seq,
        kind: envelope.kind.unwrap_or_else(|| frame.event.clone()),
        step: envelope.step,
        data: envelope.data,
    }))
}

#[cfg(test)]
mod tests;
