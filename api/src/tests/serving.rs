//! Connections over real sockets: how they end, and what a client that goes away leaves behind.

use std::time::Duration;

use longhaul_shared::domain::event::EventData;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use super::Api;
use crate::{serve, server::serve_patiently};

struct Server {
    address: std::net::SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<std::io::Result<()>>,
}

async fn start(api: &Api) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let task = tokio::spawn(serve(listener, api.state.clone(), stop.clone()));
    Server { address, stop, task }
}

fn request(api: &Api, method: &str, path: &str, extra: &str, body: &str) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\n{extra}content-length: {}\r\n\r\n{body}",
        api.key,
        body.len()
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_shutdown_tails_are_reset_and_idle_connections_closed() {
    let api = Api::start().await;
    let (id, _) = api.submit("hi").await;
    let server = start(&api).await;
    let mut idle = TcpStream::connect(server.address).await.unwrap();
    idle.write_all(request(&api, "GET", "/livez", "", "").as_bytes()).await.unwrap();
    let mut buffer = [0; 4096];
    assert!(idle.read(&mut buffer).await.unwrap() > 0);

    let mut tail = TcpStream::connect(server.address).await.unwrap();
    let path = format!("/v1/runs/{id}/events");
    tail.write_all(request(&api, "GET", &path, "accept: text/event-stream\r\n", "").as_bytes())
        .await
        .unwrap();
    let mut seen = String::new();
    while !seen.contains("run.queued") {
        let read = tail.read(&mut buffer).await.unwrap();
        assert!(read > 0, "{seen}");
        seen.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
    }
    assert!(seen.contains("transfer-encoding: chunked"), "{seen}");

    server.stop.cancel();
    tokio::time::timeout(Duration::from_secs(5), server.task).await.unwrap().unwrap().unwrap();
    let mut rest = vec![];
    let _ = tail.read_to_end(&mut rest).await;
    assert!(!String::from_utf8_lossy(&rest).contains("0\r\n\r\n"), "a last chunk would be a clean end");
    assert_eq!(idle.read(&mut buffer).await.unwrap_or(0), 0);
    assert!(TcpStream::connect(server.address).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_submission_whose_client_goes_away_is_finished() {
    let api = Api::start().await;
    let server = start(&api).await;
    let body = r#"{"agent":"helper","input":"hi"}"#;
    let whole = request(&api, "POST", "/v1/runs", "content-type: application/json\r\n", body);
    for _ in 0..20 {
        let mut client = TcpStream::connect(server.address).await.unwrap();
        client.write_all(whole.as_bytes()).await.unwrap();
        drop(client);
    }
    // A body that never comes whole makes no run.
    let mut client = TcpStream::connect(server.address).await.unwrap();
    client.write_all(&whole.as_bytes()[..whole.len() - 5]).await.unwrap();
    drop(client);

    let mut runs = 0;
    for _ in 0..100 {
        runs = api.get("/v1/runs?limit=200").await.ok(200)["data"].as_array().unwrap().len();
        if runs == 20 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(runs, 20);
    server.stop.cancel();
    server.task.await.unwrap().unwrap();
    let page: Value = api.get("/v1/runs?limit=200").await.ok(200);
    assert_eq!(page["data"].as_array().unwrap().len(), 20);
}

/// How many sockets this process has open.
fn sockets() -> usize {
    let links =
        std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| entry.ok()?.path().read_link().ok());
    links.filter(|link| link.to_string_lossy().starts_with("socket:")).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_stop_reading_are_let_go_and_hold_nobody_up() {
    const READERS: usize = 20;
    let api = Api::start().await;
    let (id, _) = api.submit("hi").await;
    let mut claim = api.claim().await;
    // More than the sockets on the way can hold.
    let text = "x".repeat(1 << 20);
    for _ in 0..8 {
        api.say(&mut claim, &[EventData::TextDelta { text: text.clone() }]).await;
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
    let patience = Duration::from_millis(500);
    let task = tokio::spawn(serve_patiently(listener, api.state.clone(), stop.clone(), patience));
    let path = format!("/v1/runs/{id}/events");
    let ask = request(&api, "GET", &path, "accept: text/event-stream\r\n", "");
    let base = sockets();
    let mut readers = vec![];
    for _ in 0..READERS {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut reader = socket.connect(address).await.unwrap();
        reader.write_all(ask.as_bytes()).await.unwrap();
        let mut head = [0; 12];
        reader.read_exact(&mut head).await.unwrap();
        assert_eq!(&head, b"HTTP/1.1 200");
        readers.push(reader);
    }
    assert!(api.state.tails.following() > 0, "they are served");
    // Somebody who reads gets it all meanwhile.
    let mut tail = TcpStream::connect(address).await.unwrap();
    tail.write_all(ask.as_bytes()).await.unwrap();
    let (mut seen, mut buffer) = (0, vec![0; 1 << 16]);
    while seen < 8 << 20 {
        let read = tail.read(&mut buffer).await.unwrap();
        assert!(read > 0, "a reader was let go after {seen} bytes");
        seen += read;
    }
    drop(tail);
    let let_go = async {
        // Their own ends are still open.
        while sockets() > base + READERS || api.state.tails.following() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(20), let_go).await.is_ok();
    assert!(in_time, "{} sockets more, {} tails", sockets() - base, api.state.tails.following());
    drop(readers);
    stop.cancel();
    task.await.unwrap().unwrap();
}
