//! Hundreds of watchers that come and go, and keep no more of what they saw than they need to prove it.
//!
//! Each event becomes one number, a digest of everything in it but its time; a tail that agrees with the log agrees in
//! all of them.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt;
use rand::RngExt;
use rand::rngs::StdRng;
use reqwest::Response;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::load::Load;
use crate::clock::now_ms;

/// One in three cannot sit still.
const RESTLESS: f64 = 0.34;
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// What one tail saw.
#[derive(Debug, Default)]
pub(crate) struct Watched {
    pub(crate) run: String,
    /// One digest for each event, from the first on.
    pub(crate) digests: Vec<u64>,
    pub(crate) connections: usize,
    /// Status and reason, once the end has come.
    pub(crate) end: Option<String>,
    /// What the server must not do and did.
    pub(crate) complaints: Vec<String>,
    pub(crate) arrivals: Vec<Arrival>,
}

/// How a live event came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    pub(crate) seq: usize,
    /// Its time: Unix milliseconds.
    pub(crate) at: i64,
    /// From there to its arrival.
    pub(crate) lag: i64,
    /// Which API process brought it.
    pub(crate) api: usize,
}

/// One event, from a stream or from a row.
#[derive(Debug, Deserialize)]
pub(crate) struct Event {
    /// Missing in a row, where it follows from the place.
    #[serde(default)]
    pub(crate) seq: i64,
    #[serde(rename = "type")]
    pub(crate) kind: String,
    #[serde(default)]
    at: String,
    pub(crate) step: Option<u32>,
    attempt: Option<u32>,
    pub(crate) data: Value,
}

impl Event {
    pub(crate) fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (&self.kind, self.step, self.attempt, self.data.to_string()).hash(&mut hasher);
        hasher.finish()
    }
}

/// Watches a run to its end, however long that takes.
pub(crate) async fn watch(load: Arc<Load>, run: String, mut random: StdRng) -> Watched {
    load.live_tails.fetch_add(1, Ordering::Relaxed);
    let is_restless = random.random_bool(RESTLESS);
    let asks_again = random.random_bool(0.05);
    let mut api = random.random_range(0..load.apis.len());
    let mut watched = Watched { run, ..Watched::default() };
    loop {
        let leaves = is_restless.then(|| Duration::from_millis(random.random_range(200..4_000)));
        let (is_over, seen) = (watched.end.is_some(), watched.digests.len());
        let url = format!("{}/v1/runs/{}/events", load.apis[api], watched.run);
        let request = load.http.get(url).bearer_auth(&load.key).header("accept", "text/event-stream");
        let request = if seen > 0 { request.header("last-event-id", seen) } else { request };
        if let Ok(Ok(response)) = timeout(ANSWER_WITHIN, request.send()).await {
            match response.status().as_u16() {
                200 if !is_over => watched.read(response, leaves, api, load.foreign_marks).await,
                204 if is_over => break,
                429 | 500 | 503 => {}
                status => watched.complaints.push(format!("answered with {status} behind event {seen}")),
            }
        }
        if !watched.complaints.is_empty() || watched.end.is_some() && !asks_again {
            break;
        }
        api = (api + 1) % load.apis.len();
        sleep(Duration::from_millis(random.random_range(20..500))).await;
    }
    load.live_tails.fetch_sub(1, Ordering::Relaxed);
    watched
}

impl Watched {
    async fn read(&mut self, response: Response, leaves: Option<Duration>, api: usize, foreign: &str) {
        self.connections += 1;
        let connected = now_ms();
        let leaves_at = Instant::now() + leaves.unwrap_or(Duration::from_hours(1));
        let mut body = response.bytes_stream();
        let mut buffer: Vec<u8> = Vec::new();
        loop {
            let bytes = tokio::select! {
                bytes = body.next() => bytes,
                () = sleep_until(leaves_at) => return,
            };
            match bytes {
                Some(Ok(bytes)) => buffer.extend_from_slice(&bytes),
                // A cut: what was not finished is asked for again.
                Some(Err(_)) => return,
                None => {
                    if self.end.is_none() {
                        let seen = self.digests.len();
                        self.complaints
                            .push(format!("ended cleanly behind event {seen}, before the run's end"));
                    }
                    return;
                }
            }
            let mut taken = 0;
            while let Some(length) = buffer[taken..].windows(2).position(|pair| pair == b"\n\n") {
                let block = taken..taken + length;
                taken = block.end + 2;
                if let Err(complaint) = self.take(&buffer[block], connected, api, foreign) {
                    self.complaints.push(complaint);
                    return;
                }
            }
            buffer.drain(..taken);
        }
    }

    fn take(&mut self, block: &[u8], connected: i64, api: usize, foreign: &str) -> Result<(), String> {
        let block = std::str::from_utf8(block).map_err(|_| "sent bytes that are not UTF-8".to_owned())?;
        if block.contains(foreign) {
            return Err(format!("has words of another workspace: {block:?}"));
        }
        let field =
            |name: &str| block.lines().rev().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        let Some(data) = field("data") else {
            let is_silent = block.lines().all(|line| line.starts_with(':') || line.starts_with("retry"));
            return if is_silent { Ok(()) } else { Err(format!("a block without data: {block:?}")) };
        };
        let event: Event = serde_json::from_str(data).map_err(|error| format!("{error}: {block:?}"))?;
        let name = if event.kind == "run.finished" { "end" } else { &event.kind };
        let expected = self.digests.len() as i64 + 1;
        let is_labelled = field("id") == Some(&expected.to_string()) && field("event") == Some(name);
        if !is_labelled || event.seq != expected || self.end.is_some() {
            return Err(format!("behind event {} came {block:?}", self.digests.len()));
        }
        self.digests.push(event.digest());
        if event.kind == "run.finished" {
            let word = |name: &str| event.data[name].as_str().unwrap_or("-").to_owned();
            self.end = Some(format!("{} {}", word("status"), word("reason")));
        }
        let at = chrono::DateTime::parse_from_rfc3339(&event.at);
        let at = at.map_err(|error| format!("{error}: {block:?}"))?.timestamp_millis();
        if at > connected {
            let lag = now_ms() - at;
            self.arrivals.push(Arrival { seq: self.digests.len(), at, lag, api });
        }
        Ok(())
    }
}
