//! Just enough HTTP/1.1 to play a server that misbehaves on purpose: each byte, and each way to hang up, is ours.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

/// A loopback server. Its connections end with it.
#[derive(Debug)]
pub(crate) struct Server {
    addr: SocketAddr,
    accepting: JoinHandle<()>,
}

impl Server {
    /// Listens on a free port; `talk` has each connection for as long as it likes.
    pub(crate) async fn start<F>(talk: impl Fn(Connection) -> F + Send + Sync + 'static) -> io::Result<Self>
    where
        F: Future<Output = io::Result<()>> + Send + 'static,
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let addr = listener.local_addr()?;
        let accepting = tokio::spawn(accept(listener, Arc::new(talk)));
        Ok(Self { addr, accepting })
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept<F>(listener: TcpListener, talk: Arc<impl Fn(Connection) -> F>)
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((stream, _)) = accepted {
                    let _ = stream.set_nodelay(true);
                    connections.spawn(talk(Connection { stream, buffer: BytesMut::new() }));
                }
            }
            // A client that hangs up is not an error of the server; a panic is one of the harness.
            Some(ended) = connections.join_next() => {
                if let Err(error) = ended && error.is_panic() {
                    std::panic::resume_unwind(error.into_panic());
                }
            }
        }
    }
}

/// The addresses of a server in a process's configuration, so that its requests tell who it is.
pub fn asked_by(config: &str, server: SocketAddr, name: &str) -> String {
    config.replace(&format!("http://{server}/"), &format!("http://{server}/by/{name}/"))
}

/// What was asked. Header names are in lower case.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// Without what says who asks.
    pub(crate) path: String,
    /// Who asks, where the address that it was given says so: see [`asked_by`].
    pub(crate) by: Option<String>,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// One client's connection.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    buffer: BytesMut,
}

impl Connection {
    /// The next request; `None` when the client closed instead.
    pub(crate) async fn request(&mut self) -> io::Result<Option<Request>> {
        let head_len = loop {
            if let Some(at) = find(&self.buffer, b"\r\n\r\n") {
                break at;
            }
            if !self.fill().await? {
                return Ok(None);
            }
        };
        let head = String::from_utf8_lossy(&self.buffer.split_to(head_len)).into_owned();
        self.buffer.advance(4);

        let mut lines = head.split("\r\n");
        let mut words = lines.next().unwrap_or_default().split(' ').map(str::to_owned);
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let (by, path) = match target.strip_prefix("/by/").and_then(|rest| rest.split_once('/')) {
            Some((by, path)) => (Some(by.to_owned()), format!("/{path}")),
            None => (None, target),
        };
        let headers = lines.filter_map(|line| line.split_once(':'));
        let headers =
            headers.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect();

        let mut request = Request { method, path, by, headers, body: Vec::new() };
        request.body = if request.header("transfer-encoding").is_some() {
            self.chunked_body().await?
        } else {
            let length =
                request.header("content-length").map_or(Ok(0), str::parse).map_err(io::Error::other)?;
            self.take(length).await?
        };
        Ok(Some(request))
    }

    async fn chunked_body(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line_len = loop {
                if let Some(at) = find(&self.buffer, b"\r\n") {
                    break at;
                }
                self.must_fill().await?;
            };
            let line = self.take(line_len + 2).await?;
            let size = String::from_utf8_lossy(&line);
            let size = usize::from_str_radix(size.trim(), 16).map_err(io::Error::other)?;
            body.extend(self.take(size).await?);
            self.take(2).await?;
            if size == 0 {
                return Ok(body);
            }
        }
    }

    async fn take(&mut self, length: usize) -> io::Result<Vec<u8>> {
        while self.buffer.len() < length {
            self.must_fill().await?;
        }
        Ok(self.buffer.split_to(length).to_vec())
    }

    async fn must_fill(&mut self) -> io::Result<()> {
        if self.fill().await? { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    async fn fill(&mut self) -> io::Result<bool> {
        Ok(self.stream.read_buf(&mut self.buffer).await? > 0)
    }

    /// A whole answer, after which the connection can carry the next request.
    pub(crate) async fn answer(
        &mut self,
        status: u16,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<()> {
        let mut head = format!("HTTP/1.1 {status} Scripted\r\ncontent-length: {}\r\n", body.len());
        for (name, value) in headers {
            head.extend([name, ": ", value, "\r\n"]);
        }
        head.push_str("\r\n");
        self.stream.write_all(&[head.as_bytes(), body].concat()).await
    }

    pub(crate) async fn answer_json(&mut self, status: u16, body: &serde_json::Value) -> io::Result<()> {
        self.answer(status, &[("content-type", "application/json")], body.to_string().as_bytes()).await
    }

    /// The head of an answer that follows chunk by chunk.
    pub(crate) async fn begin_chunks(&mut self, content_type: &str) -> io::Result<()> {
        let head =
            format!("HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ntransfer-encoding: chunked\r\n\r\n");
        self.stream.write_all(head.as_bytes()).await
    }

    pub(crate) async fn chunk(&mut self, text: &str) -> io::Result<()> {
        self.stream.write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes()).await
    }

    pub(crate) async fn end_chunks(&mut self) -> io::Result<()> {
        self.stream.write_all(b"0\r\n\r\n").await
    }

    /// Does `work` unless the client goes away meanwhile; then the error says so.
    pub(crate) async fn unless_gone<T>(&mut self, work: impl Future<Output = T>) -> io::Result<T> {
        tokio::select! {
            biased;
            gone = self.gone() => Err(gone),
            done = work => Ok(done),
        }
    }

    /// Returns when the client has closed the connection.
    pub(crate) async fn gone(&mut self) -> io::Error {
        loop {
            match self.fill().await {
                Ok(true) => {}
                Ok(false) => return io::ErrorKind::UnexpectedEof.into(),
                Err(error) => return error,
            }
        }
    }

    /// Hangs up with a reset, as a crashed peer does.
    pub(crate) fn reset(&self) {
        // Fails only on a socket that is gone already.
        let _ = self.stream.set_zero_linger();
    }
}

/// The status of a GET, or `None` when nobody answers properly within a second.
pub(crate) async fn get_status(addr: SocketAddr, path: &str) -> Option<u16> {
    let ask = async {
        let mut stream = TcpStream::connect(addr).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.take(64 * 1024).read_to_string(&mut answer).await.ok()?;
        answer.split(' ').nth(1)?.parse().ok()
    };
    timeout(Duration::from_secs(1), ask).await.ok()?
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}
