//! What nobody should send: too much, too deep, too many headers, too slow. It is refused soon, costs little memory, and
//! others notice nothing.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use longhaul_tests::{Setup, World};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::on_both;

on_both!(bodies_and_headers_beyond_all_bounds_are_refused_and_cost_little);

const MEGABYTE: u64 = 1024 * 1024;

/// Sends a head and then the same chunk again and again, until all is sent or the server has had enough. Returns what it
/// answered: nothing if it hung up without a word.
async fn flood(address: SocketAddr, head: String, chunk: Vec<u8>, times: usize) -> String {
    let socket = TcpStream::connect(address).await.unwrap();
    let (mut from, mut to) = socket.into_split();
    let sending = tokio::spawn(async move {
        let mut sent = to.write_all(head.as_bytes()).await;
        for _ in 0..times {
            if sent.is_err() {
                break;
            }
            sent = to.write_all(&chunk).await;
        }
        to
    });
    let mut answer = vec![0; 64 * 1024];
    let read = timeout(Duration::from_secs(20), from.read(&mut answer)).await.expect("an answer in time");
    let read = read.unwrap_or(0);
    sending.abort();
    String::from_utf8_lossy(&answer[..read]).into_owned()
}

async fn bodies_and_headers_beyond_all_bounds_are_refused_and_cost_little(setup: Setup) {
    let world = World::start(setup).await;
    let client = world.client();
    let address = world.apis[0].addr();
    let key = world.key.as_ref().map(|key| format!("authorization: Bearer {key}\r\n")).unwrap_or_default();
    let head = |extra: &str| {
        format!(
            "POST /v1/runs HTTP/1.1\r\nhost: {address}\r\n{key}content-type: application/json\r\n{extra}\r\n\r\n"
        )
    };
    for _ in 0..20 {
        client.get("/v1/runs").await.expect(200);
    }
    let before = world.apis[0].process().memory();

    // Others are served all the while.
    let bystander = {
        let client = client.clone();
        tokio::spawn(async move {
            let mut slowest = Duration::ZERO;
            loop {
                let begin = Instant::now();
                client.get("/v1/runs").await.expect(200);
                slowest = slowest.max(begin.elapsed());
                assert!(slowest < Duration::from_secs(5), "a bystander waited {slowest:?}");
                sleep(Duration::from_millis(20)).await;
            }
        })
    };
    let hundred = 100 * MEGABYTE as usize;
    let spaces = vec![b' '; MEGABYTE as usize];
    let mut peak = before;
    for _ in 0..5 {
        let sized = flood(address, head(&format!("content-length: {hundred}")), spaces.clone(), 100);
        let mut chunk = format!("{MEGABYTE:x}\r\n").into_bytes();
        chunk.extend(&spaces);
        chunk.extend(b"\r\n");
        let unsized_ = flood(address, head("transfer-encoding: chunked"), chunk, 100);
        let deep = vec![b'['; 1_000_000];
        let nested = flood(address, head("content-length: 1000000"), deep, 1);
        let headers = flood(address, head("").trim_end().to_owned() + "\r\n", many_headers(), 100);
        let (sized, unsized_, nested, headers) = tokio::join!(sized, unsized_, nested, headers);
        for (answer, status) in [(sized, "413"), (unsized_, "413"), (nested, "400"), (headers, "431")] {
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{status} expected: {answer:.300}");
        }
        peak = peak.max(world.apis[0].process().memory());
    }
    assert!(peak < before + 60 * MEGABYTE, "memory went from {before} to {peak}");
    bystander.abort();
    assert!(bystander.await.unwrap_err().is_cancelled(), "the bystander was served all the while");
    assert_eq!(world.rows.number("select count(*) from messages").await, 0);
    let next = client.submit("quick", "Still there?").await;
    assert_eq!(client.ended(&next.run_id).await.outcome(), "succeeded done");
    println!("memory went from {} to {} MB", before / MEGABYTE, peak / MEGABYTE);
    world.finish().await;
}

/// A thousand of the hundred thousand.
fn many_headers() -> Vec<u8> {
    (0..1_000).flat_map(|number| format!("x-{number}: y\r\n").into_bytes()).collect()
}
