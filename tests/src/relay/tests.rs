//! The relay in front of a server that echoes.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::{Relay, Way, authority};

async fn echo() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
            });
        }
    });
    addr
}

async fn said_back(stream: &mut TcpStream, text: &str) -> std::io::Result<String> {
    stream.write_all(text.as_bytes()).await?;
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer).await?;
    Ok(String::from_utf8(answer).unwrap())
}

#[tokio::test]
async fn a_cut_resets_what_exists_and_lets_new_connections_pass() {
    let relay = Relay::start(echo().await).await.unwrap();
    let mut stream = TcpStream::connect(relay.addr()).await.unwrap();
    assert_eq!(said_back(&mut stream, "hello").await.unwrap(), "hello");
    relay.cut();
    assert_eq!(stream.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    let mut stream = TcpStream::connect(relay.addr()).await.unwrap();
    assert_eq!(said_back(&mut stream, "again").await.unwrap(), "again");
    assert_eq!((relay.connections(), relay.cuts()), (2, 1));
}

#[tokio::test]
async fn refused_connections_say_nothing_and_pass_ends_it() {
    let relay = Relay::start(echo().await).await.unwrap();
    relay.refuse();
    let mut refused = TcpStream::connect(relay.addr()).await.unwrap();
    assert!(said_back(&mut refused, "x").await.is_err());
    relay.pass();
    let mut stream = TcpStream::connect(relay.addr()).await.unwrap();
    assert_eq!(said_back(&mut stream, "y").await.unwrap(), "y");
}

#[tokio::test]
async fn a_frozen_cable_holds_what_was_sent_and_delivers_it_later() {
    let relay = Relay::start(echo().await).await.unwrap();
    let mut stream = TcpStream::connect(relay.addr()).await.unwrap();
    for way in [Way::Up, Way::Down, Way::Both] {
        relay.freeze(way);
        let silence = timeout(Duration::from_millis(50), said_back(&mut stream, "held")).await;
        assert!(silence.is_err(), "{way:?} is frozen");
        relay.pass();
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"held");
    }
}

#[tokio::test]
async fn a_fuse_cuts_after_exactly_so_many_bytes_and_only_once() {
    let relay = Relay::start(echo().await).await.unwrap();
    let mut stream = TcpStream::connect(relay.addr()).await.unwrap();
    relay.cut_after_bytes(Way::Down, 5);
    assert_eq!(said_back(&mut stream, "123").await.unwrap(), "123");
    stream.write_all(b"456").await.unwrap();
    let mut rest = Vec::new();
    let ended = stream.read_to_end(&mut rest).await;
    // The reset may overtake the last bytes on their way to us, but never lets more through.
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(b"45".starts_with(&rest), "{rest:?}");
    let mut stream = TcpStream::connect(relay.addr()).await.unwrap();
    assert_eq!(said_back(&mut stream, "whole").await.unwrap(), "whole");
}

#[tokio::test]
async fn latency_is_added_in_both_directions() {
    let relay = Relay::start(echo().await).await.unwrap();
    relay.latency(Duration::from_millis(20));
    let mut stream = TcpStream::connect(relay.addr()).await.unwrap();
    let begin = Instant::now();
    said_back(&mut stream, "x").await.unwrap();
    assert!(begin.elapsed() >= Duration::from_millis(40));
}

#[test]
fn the_authority_of_a_url_is_host_and_port() {
    assert_eq!(authority("postgres://u:p@127.0.0.1:5432/db?x=1"), Some("127.0.0.1:5432"));
    assert_eq!(authority("redis://localhost:6379"), Some("localhost:6379"));
    assert_eq!(authority("http://example.com/"), None);
}
