//! Many at once: huge answers beside small ones, and viewers who all come back in the same moment.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::future::join_all;
use longhaul_tests::story::marks_of;
use longhaul_tests::{Answer, At, PATIENCE, Relay, Script, Setup, Turn, World};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::on_postgres;

on_postgres!(
    huge_answers_take_no_lease_and_hold_up_no_stream,
    two_thousand_viewers_that_are_cut_off_at_once_all_come_back,
);

const HUGE: usize = 64 << 20;
/// The most that is read as one event, nearly: it is decoded before it is found to be too much.
const LARGE: usize = 24 << 20;

async fn huge_answers_take_no_lease_and_hold_up_no_stream(setup: Setup) {
    const STREAMS: usize = 50;
    const TOKENS: usize = 150;
    let setup = setup
        .short_lease()
        .slots(64)
        .agent("glutton", "glutton")
        .agent("gourmand", "gourmand")
        .agent("hoarder", "hoarder");
    let world = World::start(setup).await;
    let talk = Turn::marked(TOKENS).delay(Duration::from_millis(50));
    world.provider.script("helper", Script::new([talk]));
    world.provider.script("glutton", Script::new([Turn::default().and_huge(HUGE)]).repeat_last());
    world.provider.script("gourmand", Script::new([Turn::default().and_huge(LARGE)]).repeat_last());
    let call = Turn::call("look", &json!({"op": "everything"}));
    world.provider.script("hoarder", Script::new([call, Turn::marked(2)]));
    let everything = format!("{{\"all\":\"{}\"}}", "y".repeat(HUGE));
    let headers = vec![("content-type", "application/json")];
    world.tools.behave("look", Answer::Raw(headers, everything.into_bytes()));
    let client = world.client();
    let mut small = Vec::new();
    for number in 0..STREAMS {
        small.push(client.submit("helper", &format!("Talk {number}.")).await.run_id);
    }
    let tail = world.tail(small.last().expect("there are some"));
    tail.hears("a1.s1.10 ").await;
    let memory = world.workers[0].process().memory();
    let mut huge = Vec::new();
    let ends = [
        ("glutton", "failed output_limit"),
        ("gourmand", "failed output_limit"),
        ("hoarder", "succeeded done"),
    ];
    for (agent, outcome) in ends.repeat(2) {
        huge.push((client.submit(agent, "Everything, please.").await.run_id, outcome));
    }
    for (run, outcome) in &huge {
        let run = client.ended(run).await;
        assert_eq!((run.outcome().as_str(), run.attempts), (*outcome, 1), "{:?}", run.error);
    }
    let grown = world.workers[0].process().memory().saturating_sub(memory) >> 20;
    let ended = tail.events().iter().any(|event| event.kind == "run.finished");
    assert!(!ended, "the small ones were over before the huge ones");
    for run in &small {
        let run = client.ended(run).await;
        assert_eq!((run.outcome().as_str(), run.attempts), ("succeeded done", 1));
    }
    assert_eq!(world.provider.calls_to("helper").len(), STREAMS, "no step was done over");
    assert_eq!(marks_of(&tail.story().text(), 1, TOKENS), Some(1));
    // By the database's clock: how long a stream that had something to say every 50 ms said nothing.
    let gaps = "select max(created_at - before) from (select e.created_at, lag(e.created_at) over \
                (partition by e.run_id order by first_seq) as before from run_events e join runs r \
                on r.id = e.run_id where r.agent = 'helper') gaps";
    let longest = Duration::from_millis(world.rows.number(gaps).await.cast_unsigned());
    println!("the longest silence of {STREAMS} streams was {longest:?}; {grown} MiB more memory");
    let meanwhile = "select count(distinct e.run_id) from run_events e join runs r on r.id = e.run_id \
                     where r.agent = 'helper' and e.created_at > \
                     (select min(started_at) from runs where agent <> 'helper') and e.created_at < \
                     (select max(finished_at) from runs where agent <> 'helper')";
    let heard = world.rows.number(meanwhile).await;
    assert_eq!(heard, STREAMS as i64, "every stream went on beside the huge ones");
    assert!(grown < 4 * (HUGE as u64 >> 20), "{grown} MiB");
    world.finish().await;
}

/// What the viewers have seen, all together.
#[derive(Debug, Default)]
struct Crowd {
    connected: AtomicUsize,
    whole: AtomicUsize,
    cuts: AtomicUsize,
}

/// A viewer that comes back with its cursor exactly when it was told to. It returns what was wrong.
async fn view(crowd: Arc<Crowd>, relay: std::net::SocketAddr, key: String, run: String) -> Option<String> {
    let (mut last, mut pause) = (0_u64, Duration::from_millis(100));
    loop {
        let cursor = if last > 0 { format!("last-event-id: {last}\r\n") } else { String::new() };
        let request = format!(
            "GET /v1/runs/{run}/events HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\
             accept: text/event-stream\r\n{cursor}\r\n"
        );
        if let Ok(mut socket) = TcpStream::connect(relay).await
            && socket.write_all(request.as_bytes()).await.is_ok()
        {
            let mut lines = BufReader::new(socket).lines();
            let mut is_end = false;
            while let Ok(Some(line)) = lines.next_line().await {
                if let Some(status) = line.strip_prefix("HTTP/1.1 ") {
                    if status != "200 OK" {
                        return Some(format!("answered with {status} behind {last}"));
                    }
                    crowd.connected.fetch_add(1, Ordering::Relaxed);
                } else if let Some(ms) = line.strip_prefix("retry: ") {
                    pause = Duration::from_millis(ms.parse().unwrap_or_default());
                } else if let Some(seq) = line.strip_prefix("id: ") {
                    if seq.parse() != Ok(last + 1) {
                        return Some(format!("{seq} behind {last}"));
                    }
                    last += 1;
                } else if line == "event: end" {
                    is_end = true;
                } else if is_end && line.is_empty() {
                    crowd.whole.fetch_add(1, Ordering::Relaxed);
                    return None;
                }
            }
            crowd.cuts.fetch_add(1, Ordering::Relaxed);
        }
        sleep(pause).await;
    }
}

async fn two_thousand_viewers_that_are_cut_off_at_once_all_come_back(setup: Setup) {
    const VIEWERS: usize = 2_000;
    const RUNS: usize = 20;
    // For a debug build and its test on one machine.
    let patience = Duration::from_mins(2);
    let world = World::start(setup).await;
    world.provider.script("helper", Script::new([Turn::marked(40)]));
    let (middle, end) =
        (world.provider.gate("helper", At::Token(10)), world.provider.gate("helper", At::Token(30)));
    let client = world.client();
    let mut runs = Vec::new();
    for number in 0..RUNS {
        runs.push(client.submit("helper", &format!("Talk {number}.")).await.run_id);
    }
    middle.reached_by(RUNS).await;
    let (relay, url) = Relay::in_front_of(&world.apis[0].url()).await.unwrap();
    assert!(url.starts_with("http"));
    let key = world.key.clone().unwrap();
    let crowd = Arc::new(Crowd::default());
    let viewers = (0..VIEWERS).map(|number| {
        tokio::spawn(view(Arc::clone(&crowd), relay.addr(), key.clone(), runs[number % RUNS].clone()))
    });
    let viewers: Vec<_> = viewers.collect();
    all_connected(&crowd, VIEWERS, patience).await;

    relay.down();
    crowd.connected.store(0, Ordering::Relaxed);
    // What they miss has to be caught up with.
    middle.open();
    end.reached_by(RUNS).await;
    relay.pass();
    let back = Instant::now();
    // Somebody else asks for other things all the while.
    let is_over = Arc::new(AtomicBool::new(false));
    let (other, asks, known) = (client.clone(), Arc::clone(&is_over), runs[0].clone());
    let others = tokio::spawn(async move {
        let mut took = Vec::new();
        while !asks.load(Ordering::Relaxed) {
            let begin = Instant::now();
            other.run(&known).await;
            took.push(begin.elapsed());
            sleep(Duration::from_millis(20)).await;
        }
        took
    });
    all_connected(&crowd, VIEWERS, patience).await;
    println!("{VIEWERS} viewers were back after {:?}", back.elapsed());
    end.open();
    let wrong = timeout(patience, join_all(viewers)).await.expect("all viewers see the end");
    let wrong: Vec<_> = wrong.into_iter().filter_map(|viewer| viewer.unwrap()).collect();
    assert_eq!(wrong, Vec::<String>::new());
    is_over.store(true, Ordering::Relaxed);
    let mut took = others.await.unwrap();
    took.sort_unstable();
    let (p50, p99) = (took[took.len() / 2], took[took.len() * 99 / 100]);
    println!("others waited {p50:?} at p50, {p99:?} at p99");
    assert!(p99 < PATIENCE, "{p99:?}");
    assert_eq!(crowd.whole.load(Ordering::Relaxed), VIEWERS);
    assert!(crowd.cuts.load(Ordering::Relaxed) >= VIEWERS, "{crowd:?}");
    for run in &runs {
        let run = client.ended(run).await;
        assert_eq!((run.outcome().as_str(), run.attempts), ("succeeded done", 1));
    }
    world.finish().await;
}

async fn all_connected(crowd: &Crowd, count: usize, patience: Duration) {
    let wait = async {
        while crowd.connected.load(Ordering::Relaxed) < count {
            sleep(Duration::from_millis(20)).await;
        }
    };
    let in_time = timeout(patience, wait).await.is_ok();
    assert!(in_time, "not within {patience:?}: {count} viewers are there; {crowd:?}");
}
