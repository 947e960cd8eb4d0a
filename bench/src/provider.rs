//! A model API with nothing in it but a clock: the least that a provider can cost.
//!
//! The model's name says what is answered: `text-COUNT-PAUSEms` is so many tokens, the first at once and a pause
//! between them; `calls-STEPS` is a sentence and a tool call on every step before that one. Each token is the instant
//! at which it was sent, so that whoever reads it knows how long it was on its way.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use longhaul_shared::domain::ids::RunId;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};

/// The beginning of this process's time.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// A token that says when it was sent.
fn stamp() -> String {
    format!("@{} ", EPOCH.elapsed().as_nanos())
}

/// How old each stamp in a text is by now.
pub(crate) fn ages(text: &str) -> Vec<Duration> {
    let now = EPOCH.elapsed();
    let stamps = text.split(' ').filter_map(|token| token.strip_prefix('@')?.parse().ok());
    stamps.map(|nanos| now.saturating_sub(Duration::from_nanos(nanos))).collect()
}

/// A call that has come in.
pub(crate) struct Asked {
    pub(crate) run_id: Option<RunId>,
    pub(crate) step: u32,
    pub(crate) at: Instant,
    /// The answer begins when this is dropped.
    pub(crate) go: oneshot::Sender<()>,
}

type Watcher = Arc<Mutex<Option<mpsc::UnboundedSender<Asked>>>>;

/// The running server.
pub(crate) struct Provider {
    addr: SocketAddr,
    watcher: Watcher,
    task: JoinHandle<()>,
}

impl Provider {
    pub(crate) async fn start() -> Result<Self> {
        LazyLock::force(&EPOCH);
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let addr = listener.local_addr()?;
        let watcher = Watcher::default();
        let shared = Arc::clone(&watcher);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // Ends with its connection, which the caller closes.
                tokio::spawn(attend(stream, Arc::clone(&shared)));
            }
        });
        Ok(Self { addr, watcher, task })
    }

    pub(crate) fn host_port(&self) -> String {
        self.addr.to_string()
    }

    /// What to configure as a provider's base URL.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/v1", self.addr)
    }

    /// Every call from now on. Calls wait until they are let go.
    pub(crate) fn watch(&self) -> mpsc::UnboundedReceiver<Asked> {
        let (sender, receiver) = mpsc::unbounded_channel();
        *self.watcher.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        receiver
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Request {
    head: String,
    body: Vec<u8>,
}

impl Request {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

async fn attend(mut stream: TcpStream, watcher: Watcher) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut unread = vec![];
    while let Some(request) = read_request(&mut stream, &mut unread).await? {
        let at = Instant::now();
        let step = request.header("x-longhaul-step").and_then(|step| step.parse().ok()).unwrap_or(1);
        let run_id = request.header("x-longhaul-run-id").and_then(|id| id.parse().ok());
        let watcher = watcher.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(watcher) = watcher {
            let (go, gone) = oneshot::channel();
            if watcher.send(Asked { run_id, step, at, go }).is_ok() {
                // Being let go is the sender's end.
                let _ = gone.await;
            }
        }
        let body: Value = serde_json::from_slice(&request.body)?;
        answer(&mut stream, body["model"].as_str().unwrap_or_default(), step).await?;
    }
    Ok(())
}

async fn read_request(stream: &mut TcpStream, unread: &mut Vec<u8>) -> Result<Option<Request>> {
    loop {
        if let Some(end) = unread.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8(unread[..end].to_vec())?;
            let mut request = Request { head, body: vec![] };
            let length =
                request.header("content-length").context("a request without a length")?.parse::<usize>()?;
            if unread.len() >= end + 4 + length {
                request.body = unread[end + 4..end + 4 + length].to_vec();
                unread.drain(..end + 4 + length);
                return Ok(Some(request));
            }
        }
        if stream.read_buf(unread).await? == 0 {
            return Ok(None);
        }
    }
}

async fn answer(stream: &mut TcpStream, model: &str, step: u32) -> Result<()> {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await?;
    let mut words = model.split('-');
    match (words.next(), words.next().and_then(|count| count.parse::<u32>().ok())) {
        (Some("text"), Some(count)) => {
            let pause = words.next().and_then(|pause| pause.strip_suffix("ms")?.parse().ok()).unwrap_or(0);
            write_tokens(stream, count, Duration::from_millis(pause)).await?;
            write_end(stream, "stop").await
        }
        (Some("calls"), Some(steps)) if step < steps => {
            write_chunk(stream, &json!({ "content": SENTENCE })).await?;
            let function = json!({ "name": "clock", "arguments": "{}" });
            let call =
                json!({ "index": 0, "id": format!("call_{step}"), "type": "function", "function": function });
            write_chunk(stream, &json!({ "tool_calls": [call] })).await?;
            write_end(stream, "tool_calls").await
        }
        (Some("calls"), Some(_)) => {
            write_chunk(stream, &json!({ "content": SENTENCE })).await?;
            write_end(stream, "stop").await
        }
        _ => anyhow::bail!("the model `{model}` is not known here"),
    }
}

/// What is said on a step of `calls-STEPS`.
pub(crate) const SENTENCE: &str = "I look at the clock before I go on with what you asked me to do. ";

async fn write_tokens(stream: &mut TcpStream, count: u32, pause: Duration) -> Result<()> {
    let mut pace = (!pause.is_zero()).then(|| interval(pause));
    if let Some(pace) = &mut pace {
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    for _ in 0..count {
        if let Some(pace) = &mut pace {
            pace.tick().await;
        }
        write_chunk(stream, &json!({ "content": stamp() })).await?;
    }
    Ok(())
}

async fn write_chunk(stream: &mut TcpStream, delta: &Value) -> Result<()> {
    let choice = json!({ "index": 0, "delta": delta, "finish_reason": null });
    write_event(stream, &json!({ "object": "chat.completion.chunk", "choices": [choice] }).to_string())
        .await?;
    Ok(())
}

async fn write_end(stream: &mut TcpStream, reason: &str) -> Result<()> {
    let choice = json!({ "index": 0, "delta": {}, "finish_reason": reason });
    let usage = json!({ "prompt_tokens": 10, "completion_tokens": 10, "total_tokens": 20 });
    write_event(
        stream,
        &json!({ "object": "chat.completion.chunk", "choices": [choice], "usage": usage }).to_string(),
    )
    .await?;
    write_event(stream, "[DONE]").await?;
    stream.write_all(b"0\r\n\r\n").await?;
    Ok(())
}

async fn write_event(stream: &mut TcpStream, data: &str) -> io::Result<()> {
    let event = format!("data: {data}\n\n");
    stream.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes()).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Client;

    #[tokio::test]
    async fn tokens_say_when_they_were_sent() {
        let provider = Provider::start().await.unwrap();
        let mut events = Client::new(provider.url()).complete("text-3-1ms").await.unwrap();
        let mut seen = vec![];
        while let Some(event) = events.next().await.unwrap() {
            seen.push(event.data);
        }
        assert_eq!(seen.iter().filter(|data| data.contains("\"@")).count(), 3);
        assert_eq!(seen.last().unwrap(), "[DONE]");
        let text = format!("{}x @y {}", stamp(), stamp());
        assert_eq!(ages(&text).len(), 2);
    }

    #[tokio::test]
    async fn a_watched_call_waits_until_it_is_let_go() {
        let provider = Provider::start().await.unwrap();
        let mut asked = provider.watch();
        let client = Client::new(provider.url());
        let call = tokio::spawn(async move { client.complete("calls-2").await?.drain().await });
        let one = asked.recv().await.unwrap();
        assert_eq!((one.step, one.run_id), (1, None));
        assert!(!call.is_finished());
        drop(one.go);
        call.await.unwrap().unwrap();
    }
}
