//! What a tail promises, against a server that is cut at every possible byte.

use std::{collections::HashSet, net::SocketAddr};

use super::*;
use crate::{
    client::fake_server::{Answer, FakeServer, LAST_CHUNK, STREAM, answer, chunk, client, frame},
    exit::Exit,
};

const EVENTS: Seq = 6;

/// A whole run: queued, some text with characters of several bytes, and its end.
fn frames(after: Seq) -> Vec<String> {
    (after + 1..=EVENTS)
        .map(|seq| match seq {
            1 => "retry: 2000\n".to_owned() + &frame(seq, "run.queued", None, r#"{"status":"pending"}"#),
            EVENTS => frame(seq, "run.finished", None, r#"{"status":"succeeded","reason":"done"}"#),
            _ => ": hb\n".to_owned() + &frame(seq, "text.delta", Some(1), &format!(r#"{{"text":"é{seq}"}}"#)),
        })
        .collect()
}

/// What the server sends behind the position that the request names.
fn stream(request: &str) -> Vec<u8> {
    let lower = request.to_ascii_lowercase();
    let position = lower.lines().find_map(|line| line.strip_prefix("last-event-id: "));
    let after = position.map_or(0, |position| position.parse().unwrap());
    if after == EVENTS {
        return b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n".to_vec();
    }
    let chunks: String = frames(after).iter().map(|frame| chunk(frame)).collect();
    format!("{STREAM}{chunks}{LAST_CHUNK}").into_bytes()
}

async fn collect(tail: &mut Tail) -> (Vec<Seq>, String, usize) {
    let (mut seqs, mut text, mut interruptions) = (Vec::new(), String::new(), 0);
    loop {
        match tail.next().await.unwrap() {
            Item::Event(event) => {
                seqs.push(event.seq);
                text += event.data["text"].as_str().unwrap_or_default();
            }
            Item::Interrupted => interruptions += 1,
            Item::End => return (seqs, text, interruptions),
        }
    }
}

const TEXT: &str = "é2é3é4é5";

#[tokio::test]
async fn a_tail_ends_with_the_run_and_asks_no_more() {
    let server = FakeServer::start(|_, request| Answer::Bytes(stream(request))).await;
    let mut tail = Tail::new(server.client(), "r", 0);
    assert_eq!(collect(&mut tail).await, ((1..=EVENTS).collect(), TEXT.to_owned(), 0));
    assert!(matches!(tail.next().await.unwrap(), Item::End));
    let requests = server.requests();
    assert_eq!(requests.len(), 1);
    assert!(requests[0].starts_with("GET /v1/runs/r/events?after=0 HTTP/1.1"), "{}", requests[0]);
    assert!(requests[0].contains("accept: text/event-stream"), "{}", requests[0]);
}

#[tokio::test]
async fn a_connection_cut_at_any_byte_loses_and_repeats_nothing() {
    let whole = stream("");
    let mut met = HashSet::new();
    let server = FakeServer::start(move |_, request| {
        let bytes = stream(request);
        let run = request.split('/').nth(3).unwrap();
        let cut: usize = run.parse().unwrap();
        match met.insert(cut) {
            // A reset and a polite end in turn.
            true if cut.is_multiple_of(2) => Answer::Reset(bytes[..cut].to_vec()),
            true => Answer::Bytes(bytes[..cut].to_vec()),
            false => Answer::Bytes(bytes),
        }
    })
    .await;
    // Each waits a moment before it reconnects, so many at once.
    let client = server.client();
    let cuts = (0..whole.len()).map(|cut| {
        let mut tail = Tail::new(client.clone(), cut.to_string(), 0);
        async move {
            let (seqs, text, _) = collect(&mut tail).await;
            assert_eq!((seqs, text.as_str()), ((1..=EVENTS).collect(), TEXT), "cut at {cut}");
        }
    });
    futures::stream::iter(cuts).buffer_unordered(100).collect::<()>().await;
}

#[tokio::test]
async fn a_body_that_ends_without_the_end_is_a_cut() {
    let server = FakeServer::start(|n, request| {
        let bytes = match n {
            0 => format!("{STREAM}{}{LAST_CHUNK}", chunk(&frames(0)[0])).into_bytes(),
            _ => stream(request),
        };
        Answer::Bytes(bytes)
    })
    .await;
    let (seqs, text, interruptions) = collect(&mut Tail::new(server.client(), "r", 0)).await;
    assert_eq!((seqs, text.as_str(), interruptions), ((1..=EVENTS).collect(), TEXT, 0));
}

#[tokio::test]
async fn a_server_that_repeats_events_is_not_believed_twice() {
    // It ignores the position and sends everything again.
    let server = FakeServer::start(|n, _| {
        let bytes = stream("");
        if n == 0 { Answer::Reset(bytes[..bytes.len() / 2].to_vec()) } else { Answer::Bytes(bytes) }
    })
    .await;
    let (seqs, text, _) = collect(&mut Tail::new(server.client(), "r", 0)).await;
    assert_eq!((seqs, text.as_str()), ((1..=EVENTS).collect(), TEXT));
}

#[tokio::test]
async fn a_server_that_is_down_for_a_while_is_mentioned_once() {
    let first = FakeServer::start(|_, request| Answer::Reset(stream(request)[..320].to_vec())).await;
    let address: SocketAddr = first.address;
    let mut tail = Tail::new(first.client(), "r", 0);
    let Item::Event(event) = tail.next().await.unwrap() else { panic!("an event comes first") };
    assert_eq!(event.seq, 1);
    drop(first);
    let back = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(800)).await;
        FakeServer::start_on(address, |n, request| {
            // It comes up slowly, too.
            if n == 0 { answer(503, "retry-after: 0\r\n", "{}") } else { Answer::Bytes(stream(request)) }
        })
        .await
    });
    let (seqs, _, interruptions) = collect(&mut tail).await;
    assert_eq!((seqs.last(), interruptions), (Some(&EVENTS), 1));
    assert_eq!(seqs.len() as Seq, EVENTS - seqs[0] + 1);
    drop(back.await.unwrap());
}

#[tokio::test]
async fn a_tail_of_which_all_was_seen_is_over_at_once() {
    let server = FakeServer::start(|_, request| Answer::Bytes(stream(request))).await;
    let (seqs, ..) = collect(&mut Tail::new(server.client(), "r", EVENTS)).await;
    assert!(seqs.is_empty());
}

#[tokio::test]
async fn an_unknown_run_or_a_wrong_key_ends_the_tail() {
    for (status, exit) in [(404, Exit::NotFound), (401, Exit::Auth), (403, Exit::Auth), (400, Exit::Error)] {
        let server = FakeServer::start(move |_, _| answer(status, "", r#"{"title":"no"}"#)).await;
        let error = Tail::new(server.client(), "r", 0).next().await.unwrap_err();
        assert_eq!(error.exit(), exit, "{status}");
    }
}

#[tokio::test]
async fn what_is_no_event_is_skipped_and_what_never_makes_sense_is_refused() {
    let server = FakeServer::start(|_, request| {
        let hello = chunk("event: hello\ndata: {\"state\":\"running\"}\n\n");
        let rest = String::from_utf8(stream(request)).unwrap();
        Answer::Bytes(rest.replacen(STREAM, &format!("{STREAM}{hello}"), 1).into_bytes())
    })
    .await;
    let (seqs, ..) = collect(&mut Tail::new(server.client(), "r", 0)).await;
    assert_eq!(seqs.len() as Seq, EVENTS);

    let server = FakeServer::start(|_, _| {
        Answer::Bytes(format!("{STREAM}{}{LAST_CHUNK}", chunk("data: not json\n\n")).into_bytes())
    })
    .await;
    let error = Tail::new(server.client(), "r", 0).next().await.unwrap_err();
    assert!(matches!(error, ClientError::Nonsense(_)), "{error}");

    let server = FakeServer::start(|_, _| answer(200, "content-type: text/html\r\n", "<p>hi")).await;
    let error = Tail::new(server.client(), "r", 0).next().await.unwrap_err();
    assert!(error.to_string().contains("text/html"), "{error}");
}

#[tokio::test]
async fn nobody_there_is_an_interruption_not_an_end() {
    let server = FakeServer::start(|_, _| Answer::Hang(Vec::new())).await;
    let address = server.address;
    drop(server);
    let mut tail = Tail::new(client(address, None), "r", 0);
    assert!(matches!(tail.next().await.unwrap(), Item::Interrupted));
    let patient = tokio::time::timeout(Duration::from_millis(300), tail.next()).await;
    assert!(patient.is_err(), "said once, and it goes on trying");
}
