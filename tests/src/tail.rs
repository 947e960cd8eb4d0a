//! A client that watches a run and comes back after every cut, as a browser's `EventSource` does.
//!
//! It parses the stream by hand and holds the server to its promises: numbers dense from 1, no event after the end, a
//! clean end of the stream only behind the run's end, no answer but 200 and 204.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use reqwest::Response;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::story::{Event, Story};
use crate::{PATIENCE, http_client};

/// Shorter than a browser's pause: tests wait for it.
const PAUSE: Duration = Duration::from_millis(50);

/// A watcher. It goes on reading until the run's end or until its last clone is dropped.
#[derive(Clone, Debug)]
pub struct Tail {
    seen: watch::Receiver<Seen>,
    _reading: Arc<Reading>,
}

/// What a watcher has so far.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub events: Vec<Event>,
    /// How often it connected.
    pub connections: usize,
    pub is_over: bool,
    /// What the server must not do and did.
    pub complaints: Vec<String>,
}

#[derive(Debug)]
struct Reading(JoinHandle<()>);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Tail {
    /// Watches from event `after` on. A lost connection goes on at the next of the servers.
    pub fn start(servers: Vec<String>, key: Option<String>, run: &str, after: i64) -> Self {
        let (sender, seen) = watch::channel(Seen::default());
        let watcher = Watcher { servers, key, run: run.to_owned(), last: after, first: after, seen: sender };
        Self { seen, _reading: Arc::new(Reading(tokio::spawn(watcher.watch()))) }
    }

    pub fn events(&self) -> Vec<Event> {
        self.seen.borrow().events.clone()
    }

    pub fn connections(&self) -> usize {
        self.seen.borrow().connections
    }

    pub fn story(&self) -> Story {
        Story::of(&self.seen.borrow().events)
    }

    /// Waits until the events so far look as they should.
    pub async fn until(&self, what: &str, holds: impl Fn(&[Event]) -> bool) {
        self.wait(what, |seen| holds(&seen.events)).await;
    }

    /// Waits for an event of this type.
    pub async fn sees(&self, kind: &str) {
        self.until(kind, |events| events.iter().any(|event| event.kind == kind)).await;
    }

    /// Waits for some text of the answer.
    pub async fn hears(&self, text: &str) {
        self.until(&format!("hears {text:?}"), |events| Story::of(events).text().contains(text)).await;
    }

    /// Waits for the run's end and returns all events.
    pub async fn ended(&self) -> Vec<Event> {
        self.wait("the end of the run", |seen| seen.is_over).await;
        self.events()
    }

    async fn wait(&self, what: &str, holds: impl Fn(&Seen) -> bool) {
        let mut seen = self.seen.clone();
        let looked_for = seen.wait_for(|seen| !seen.complaints.is_empty() || holds(seen));
        // What it found is let go at once: to look again while the stream waits to write would wait for itself.
        let found = timeout(PATIENCE, looked_for).await.is_ok_and(|found| found.is_ok());
        let seen = self.seen.borrow();
        assert!(seen.complaints.is_empty(), "the stream broke a promise: {:#?}", seen.complaints);
        assert!(
            found,
            "a tail waited in vain for: {what}; it saw {} events over {} connections, the last {:#?}",
            seen.events.len(),
            seen.connections,
            seen.events.last()
        );
    }
}

struct Watcher {
    servers: Vec<String>,
    key: Option<String>,
    run: String,
    /// Where it began.
    first: i64,
    last: i64,
    seen: watch::Sender<Seen>,
}

impl Watcher {
    async fn watch(mut self) {
        let http = http_client();
        for attempt in 0.. {
            let server = &self.servers[attempt % self.servers.len()];
            let mut request = http.get(format!("{server}/v1/runs/{}/events?after={}", self.run, self.first));
            request = request.header("accept", "text/event-stream");
            if let Some(key) = &self.key {
                request = request.bearer_auth(key);
            }
            if self.last > self.first {
                request = request.header("last-event-id", self.last);
            }
            if let Ok(response) = request.send().await {
                self.seen.send_modify(|seen| seen.connections += 1);
                self.read(response).await;
            }
            if self.is_done() {
                return;
            }
            sleep(PAUSE).await;
        }
    }

    fn is_done(&self) -> bool {
        let seen = self.seen.borrow();
        seen.is_over || !seen.complaints.is_empty()
    }

    async fn read(&mut self, response: Response) {
        let status = response.status().as_u16();
        if status != 200 {
            return self.complain(format!("answered with {status} behind event {}", self.last));
        }
        let mut body = response.bytes_stream();
        let mut buffer = Vec::new();
        while let Some(bytes) = body.next().await {
            // A cut: what was not finished is asked for again.
            let Ok(bytes) = bytes else { return };
            buffer.extend_from_slice(&bytes);
            while let Some(end) = buffer.windows(2).position(|pair| pair == b"\n\n") {
                let block: Vec<u8> = buffer.drain(..end + 2).collect();
                match String::from_utf8(block) {
                    Ok(block) => self.take(&block),
                    Err(_) => self.complain("sent bytes that are not UTF-8".to_owned()),
                }
            }
        }
        if !self.seen.borrow().is_over {
            self.complain(format!("ended cleanly behind event {}, before the run's end", self.last));
        }
    }

    fn take(&mut self, block: &str) {
        let field = |name: &str| {
            let mut values = block.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            values.next_back().map(str::to_owned)
        };
        let Some(data) = field("data") else {
            return self.complain(format!("a block without data: {block:?}"));
        };
        let event: Event = match serde_json::from_str(&data) {
            Ok(event) => event,
            Err(error) => return self.complain(format!("{error}: {block:?}")),
        };
        let name = if event.kind == "run.finished" { "end" } else { &event.kind };
        let well_formed =
            field("id") == Some(event.seq.to_string()) && field("event").as_deref() == Some(name);
        if !well_formed || event.seq != self.last + 1 || self.seen.borrow().is_over {
            return self.complain(format!("behind event {} came {block:?}", self.last));
        }
        self.last = event.seq;
        self.seen.send_modify(|seen| {
            seen.is_over = event.kind == "run.finished";
            seen.events.push(event);
        });
    }

    fn complain(&self, complaint: String) {
        self.seen.send_modify(|seen| seen.complaints.push(complaint));
    }
}
