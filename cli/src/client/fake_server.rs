//! A server for tests that can be cut at any byte: each connection is answered by the next piece of a script, raw.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use url::Url;

use super::Client;

/// How one connection is answered.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    /// These bytes, then a clean end.
    Bytes(Vec<u8>),
    /// These bytes, then a reset.
    Reset(Vec<u8>),
    /// These bytes, and then nothing more, with the connection open.
    Hang(Vec<u8>),
}

pub(crate) struct FakeServer {
    pub(crate) address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl FakeServer {
    /// Answers connection number n, from 0, with what `answer` says for it and its request.
    pub(crate) async fn start(answer: impl FnMut(usize, &str) -> Answer + Send + 'static) -> Self {
        Self::start_on(([127, 0, 0, 1], 0).into(), answer).await
    }

    /// The same at a known address, for a server that comes late or comes back.
    pub(crate) async fn start_on(
        address: SocketAddr,
        mut answer: impl FnMut(usize, &str) -> Answer + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = requests.clone();
        let task = tokio::spawn(async move {
            let mut held = Vec::new();
            for n in 0.. {
                let (mut stream, _) = listener.accept().await.unwrap();
                let request = read_request(&mut stream).await;
                let answer = answer(n, &request);
                seen.lock().unwrap().push(request);
                match answer {
                    Answer::Bytes(bytes) => {
                        let _ = stream.write_all(&bytes).await;
                        let _ = stream.shutdown().await;
                    }
                    Answer::Reset(bytes) => {
                        let _ = stream.write_all(&bytes).await;
                        // Time for the bytes to be read: a reset throws away what was not.
                        tokio::time::sleep(Duration::from_millis(5)).await;
                        let _ = stream.set_zero_linger();
                    }
                    Answer::Hang(bytes) => {
                        let _ = stream.write_all(&bytes).await;
                        held.push(stream);
                    }
                }
            }
        });
        Self { address, requests, task }
    }

    pub(crate) fn client(&self) -> Client {
        client(self.address, None)
    }

    /// The requests so far, heads and bodies.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A client for whatever is, was or will be at this address.
pub(crate) fn client(address: SocketAddr, key: Option<&str>) -> Client {
    // Fails for every test but the first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::new(Url::parse(&format!("http://{address}")).unwrap(), key).unwrap()
}

/// A whole answer with its length, for requests that are not streams.
pub(crate) fn answer(status: u16, headers: &str, body: &str) -> Answer {
    let head = format!(
        "HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n",
        body.len()
    );
    Answer::Bytes((head + body).into_bytes())
}

/// The head of an event stream whose length nobody knows.
pub(crate) const STREAM: &str = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";

/// One chunk of such a stream.
pub(crate) fn chunk(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n", text.len())
}

/// What ends it cleanly.
pub(crate) const LAST_CHUNK: &str = "0\r\n\r\n";

/// An event as the server sends it.
pub(crate) fn frame(seq: i64, kind: &str, step: Option<u32>, data: &str) -> String {
    let name = if kind == "run.finished" { "end" } else { kind };
    let step = step.map(|step| format!(r#","step":{step},"attempt":1"#)).unwrap_or_default();
    format!(
        "id: {seq}\nevent: {name}\ndata: {{\"seq\":{seq},\"type\":\"{kind}\",\"at\":\"2026-11-20T10:00:00.000Z\"{step},\
         \"data\":{data}}}\n\n"
    )
}

async fn read_request(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let n = stream.read(&mut buffer).await.unwrap_or_default();
        bytes.extend_from_slice(&buffer[..n]);
        let text = String::from_utf8_lossy(&bytes);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok())
                .unwrap_or(0);
            if body.len() >= length {
                return text.into_owned();
            }
        }
        if n == 0 {
            return text.into_owned();
        }
    }
}
