use std::sync::Arc;

use longhaul_shared::{
    domain::{
        ids::{RunId, WorkspaceId},
        transition::Reason,
    },
    net_guard::{ClientOptions, NetGuard},
    queue::Orders,
    store::StopRequest,
};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    fixture::{Act, Fixture, answer, open_head},
    tools::Departure,
};

const SECRET: &str = "tool-secret-123";
const JSON: &[(&str, &str)] = &[("content-type", "application/json")];

fn tool(fixture: &Fixture, effect: Effect, adjust: impl FnOnce(&mut HttpToolOptions)) -> HttpTool {
    let spec = ToolSpec {
        name: "charge".into(),
        description: "Charges.".into(),
        parameters: json!({"type": "object"}),
        effect,
    };
    let mut options = HttpToolOptions::new(spec, fixture.url.clone(), fixture.client());
    options.headers = vec![("authorization".into(), format!("Bearer {SECRET}"))];
    options.backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(5));
    options.timeout = Some(Duration::from_secs(2));
    adjust(&mut options);
    HttpTool::new(options).unwrap()
}

fn context() -> ToolContext {
    let run_id = RunId::generate();
    ToolContext {
        workspace_id: WorkspaceId::generate(),
        run_id,
        step: 2,
        call: 1,
        idempotency_key: format!("{run_id}:2:1"),
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into()),
        timeout: Duration::from_mins(2),
        departure: departure(&orders_for(Duration::from_mins(10))),
    }
}

/// Under a lease that holds for so long.
fn orders_for(time: Duration) -> Arc<Orders> {
    let orders = Arc::new(Orders::default());
    orders.validity.extend(Instant::now() + time);
    orders
}

fn departure(orders: &Arc<Orders>) -> Departure {
    Departure::new(Arc::clone(orders), CancellationToken::new())
}

/// The outcome, and how many requests it took.
async fn call(plays: Vec<Vec<Act>>, effect: Effect) -> (ToolOutcome, usize) {
    let fixture = Fixture::start(plays).await;
    let outcome = tool(&fixture, effect, |_| {}).call(&json!({}), &context()).await;
    (outcome, fixture.seen().len())
}

fn succeeded(text: &str) -> ToolOutcome {
    ToolOutcome::Succeeded(text.into())
}

#[tokio::test]
async fn the_request_says_who_calls_and_under_which_key() {
    let fixture = Fixture::start(vec![answer("200 OK", JSON, r#"{"ok":true}"#)]).await;
    let cx = context();
    let outcome = tool(&fixture, Effect::Once, |_| {}).call(&json!({"op": "a"}), &cx).await;
    assert_eq!(outcome, succeeded(r#"{"ok":true}"#));
    let seen = &fixture.seen()[0];
    assert!(seen.head.starts_with("POST /v1 HTTP/1.1"));
    assert_eq!(seen.body, r#"{"arguments":{"op":"a"}}"#);
    for (name, value) in [
        ("idempotency-key", cx.idempotency_key.as_str()),
        ("x-longhaul-run-id", &cx.run_id.to_string()),
        ("x-longhaul-workspace", &cx.workspace_id.to_string()),
        ("traceparent", cx.traceparent.as_deref().unwrap()),
        ("authorization", &format!("Bearer {SECRET}")),
        ("content-type", "application/json"),
    ] {
        assert_eq!(seen.header(name), Some(value), "{name}");
    }
}

#[tokio::test]
async fn a_repeatable_call_is_sent_again_with_the_same_key() {
    let plays =
        || vec![answer("503 Service Unavailable", &[], ""), vec![Act::Reset], answer("200 OK", JSON, "done")];
    for effect in [Effect::Read, Effect::Idempotent] {
        let fixture = Fixture::start(plays()).await;
        let outcome = tool(&fixture, effect, |_| {}).call(&json!({}), &context()).await;
        assert_eq!(outcome, succeeded("done"));
        let seen = fixture.seen();
        assert_eq!(seen.len(), 3);
        assert!(seen.iter().all(|one| one.header("idempotency-key") == seen[0].header("idempotency-key")));
    }
    let (outcome, requests) = call(vec![answer("502 Bad Gateway", &[], "no\nluck")], Effect::Read).await;
    assert_eq!((outcome, requests), (ToolOutcome::Failed("the tool answered 502: no luck".into()), 3));
    let (outcome, requests) = call(vec![answer("500 Oops", &[], "")], Effect::Idempotent).await;
    assert_eq!((matches!(outcome, ToolOutcome::Failed(_)), requests), (true, 1));
}

#[tokio::test]
async fn a_call_that_must_happen_once_is_sent_once_and_becomes_unknown() {
    let lie = b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nshort".to_vec();
    for play in [
        vec![Act::Reset],
        vec![Act::Close],
        answer("500 Oops", &[], "x"),
        answer("503 Service Unavailable", &[], "x"),
        vec![Act::Send(lie), Act::Close],
        vec![Act::Hang],
    ] {
        let fixture = Fixture::start(vec![play]).await;
        let tool = tool(&fixture, Effect::Once, |options| options.timeout = Some(Duration::from_millis(300)));
        let outcome = tool.call(&json!({}), &context()).await;
        assert!(matches!(outcome, ToolOutcome::Unknown(_)), "{outcome:?}");
        assert_eq!(fixture.seen().len(), 1);
    }
}

#[tokio::test]
async fn a_call_that_never_left_or_was_turned_down_has_failed() {
    for effect in [Effect::Once, Effect::Read] {
        let (outcome, requests) = call(vec![answer("422 Unprocessable", &[], "no such\n op")], effect).await;
        assert_eq!((outcome, requests), (ToolOutcome::Failed("the tool answered 422: no such op".into()), 1));
        let redirect = answer("302 Found", &[("location", "http://169.254.169.254/")], "");
        let (outcome, requests) = call(vec![redirect], effect).await;
        assert_eq!(
            (outcome, requests),
            (ToolOutcome::Failed("the tool answered 302: redirects are not followed".into()), 1)
        );
    }
    // Nobody listens on a port that was just given back.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let fixture = Fixture::start(vec![vec![]]).await;
    let tool_at = |allow: bool| {
        let pairs = if allow { vec![format!("127.0.0.1:{port}")] } else { vec![] };
        tool(&fixture, Effect::Once, |options| {
            options.url.set_port(Some(port)).unwrap();
            options.client = NetGuard::new(&pairs).unwrap().client(&ClientOptions::default()).unwrap();
        })
    };
    for (allow, words) in [(true, "could not be reached"), (false, "net.allow")] {
        match tool_at(allow).call(&json!({}), &context()).await {
            ToolOutcome::Failed(why) => assert!(why.contains(words), "{why}"),
            outcome => panic!("{outcome:?}"),
        }
    }
}

#[tokio::test]
async fn an_answer_without_end_is_cut_and_its_connection_closed() {
    let endless = vec![open_head("text/plain"), Act::Repeat(vec![b'x'; 64 << 10])];
    let fixture = Fixture::start(vec![endless]).await;
    let outcome =
        tool(&fixture, Effect::Once, |options| options.max_bytes = 1000).call(&json!({}), &context()).await;
    match outcome {
        ToolOutcome::Succeeded(text) => assert!(text.len() <= 1000 && text.ends_with("[cut]"), "{text}"),
        outcome => panic!("{outcome:?}"),
    }
    fixture.closed().await;
}

#[tokio::test]
async fn silence_in_the_middle_and_endless_dripping_both_end() {
    for (act, words) in [(Act::Hang, "went silent"), (Act::Repeat(b"x".to_vec()), "did not answer within")] {
        let fixture =
            Fixture::start(vec![vec![open_head("text/plain"), Act::Send(b"x".to_vec()), act]]).await;
        let tool = tool(&fixture, Effect::Once, |options| {
            options.idle_timeout = Duration::from_millis(100);
            options.timeout = Some(Duration::from_millis(400));
        });
        match tool.call(&json!({}), &context()).await {
            ToolOutcome::Unknown(why) => assert!(why.contains(words), "{why}"),
            outcome => panic!("{outcome:?}"),
        }
        fixture.closed().await;
    }
}

#[tokio::test]
async fn odd_bytes_are_sanitised_and_secrets_are_cleared() {
    let echo = format!("\0 you sent {SECRET} and Bearer {SECRET}");
    for (status, expected) in [
        ("200 OK", succeeded("\u{fffd} you sent [redacted] and [redacted]")),
        (
            "403 Forbidden",
            ToolOutcome::Failed("the tool answered 403: \u{fffd} you sent [redacted] and [redacted]".into()),
        ),
    ] {
        assert_eq!(call(vec![answer(status, &[], &echo)], Effect::Once).await.0, expected);
    }
    let bytes = [b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n".as_slice(), b"a\xffb"].concat();
    assert_eq!(call(vec![vec![Act::Send(bytes)]], Effect::Read).await.0, succeeded("a\u{fffd}b"));
    // The divided secret at the cut is not half shown.
    let fixture = Fixture::start(vec![answer("200 OK", &[], &format!("{}{SECRET}", "x".repeat(990)))]).await;
    let outcome =
        tool(&fixture, Effect::Read, |options| options.max_bytes = 1000).call(&json!({}), &context()).await;
    assert!(!format!("{outcome:?}").contains("tool-"), "{outcome:?}");
    let gzip = answer("200 OK", &[("content-encoding", "gzip")], "\u{1f}bomb");
    assert!(format!("{:?}", call(vec![gzip], Effect::Once).await.0).contains("compressed"));
}

#[tokio::test]
async fn nothing_is_sent_or_repeated_once_the_lease_may_have_run_out() {
    for effect in [Effect::Once, Effect::Read] {
        let fixture = Fixture::start(vec![answer("200 OK", JSON, "done")]).await;
        let orders = orders_for(Duration::ZERO);
        let cx = ToolContext { departure: departure(&orders), ..context() };
        let tool = tool(&fixture, effect, |_| {});
        let arguments = json!({});
        let mut call = Box::pin(tool.call(&arguments, &cx));
        assert!(timeout(Duration::from_millis(200), &mut call).await.is_err());
        assert_eq!(fixture.seen().len(), 0, "the attempt may be lost");
        orders.validity.extend(Instant::now() + Duration::from_mins(1));
        assert_eq!(call.await, succeeded("done"), "it was not");
    }
    // Held when it was sent, and no longer when it would be repeated.
    let plays = vec![answer("503 Service Unavailable", &[], ""), answer("200 OK", JSON, "done")];
    let fixture = Fixture::start(plays).await;
    let cx = ToolContext { departure: departure(&orders_for(Duration::from_millis(300))), ..context() };
    let tool = tool(&fixture, Effect::Read, |options| {
        options.backoff = Backoff::new(Duration::from_millis(700), Duration::from_secs(1));
    });
    assert!(timeout(Duration::from_millis(1500), tool.call(&json!({}), &cx)).await.is_err());
    assert_eq!(fixture.seen().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn whether_a_call_left_before_its_run_was_stopped_is_known_for_certain() {
    let (mut left, mut barred) = (0, 0);
    for round in 0..300 {
        let fixture = Fixture::start(vec![answer("200 OK", JSON, "done")]).await;
        let (tool, orders) = (tool(&fixture, Effect::Once, |_| {}), orders_for(Duration::from_mins(1)));
        let cx = ToolContext { departure: departure(&orders), ..context() };
        let stop = tokio::spawn(async move {
            sleep(Duration::from_micros(round * 10)).await;
            orders.request_stop(StopRequest { run_id: cx.run_id, reason: Reason::Stop, requested_at: 1 });
        });
        let outcome = tool.call(&json!({}), &cx).await;
        stop.await.unwrap();
        if cx.departure.close() {
            left += 1;
            assert_eq!((outcome, fixture.seen().len()), (succeeded("done"), 1));
        } else {
            barred += 1;
            assert_eq!((outcome, fixture.seen().len()), (ToolOutcome::Failed(Barred.to_string()), 0));
        }
    }
    println!("{left} left, {barred} did not");
}

#[tokio::test]
async fn a_call_that_was_sent_is_not_repeated_after_the_end_of_its_run() {
    let plays = vec![answer("503 Service Unavailable", &[], "away"), answer("200 OK", JSON, "done")];
    let fixture = Fixture::start(plays).await;
    let orders = orders_for(Duration::from_mins(1));
    let cx = ToolContext { departure: departure(&orders), ..context() };
    let tool = tool(&fixture, Effect::Idempotent, |options| {
        options.backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(1));
    });
    let stop = async {
        while fixture.seen().is_empty() {
            sleep(Duration::from_millis(1)).await;
        }
        orders.request_stop(StopRequest { run_id: cx.run_id, reason: Reason::Stop, requested_at: 1 });
    };
    let arguments = json!({});
    let (outcome, ()) = tokio::join!(tool.call(&arguments, &cx), stop);
    assert_eq!(outcome, ToolOutcome::Failed("the tool answered 503: away".into()));
    assert_eq!(fixture.seen().len(), 1);
}

#[tokio::test]
async fn a_call_that_never_got_its_connection_has_failed() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    // It accepts, and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let client =
        NetGuard::new(std::slice::from_ref(&address)).unwrap().client(&ClientOptions::default()).unwrap();
    let fixture = Fixture::start(vec![]).await;
    let tool = tool(&fixture, Effect::Once, |options| {
        options.client = client;
        options.url = Url::parse(&format!("https://{address}/")).unwrap();
        options.timeout = Some(Duration::from_millis(300));
    });
    match tool.call(&json!({}), &context()).await {
        ToolOutcome::Failed(why) => assert!(why.contains("could not be sent"), "{why}"),
        outcome => panic!("{outcome:?}"),
    }
}

#[tokio::test]
async fn giving_a_call_up_closes_its_connection() {
    let fixture = Fixture::start(vec![vec![Act::Hang]]).await;
    let tool = tool(&fixture, Effect::Once, |_| {});
    assert!(timeout(Duration::from_millis(100), tool.call(&json!({}), &context())).await.is_err());
    fixture.closed().await;
}

fn told(answer: &Value) -> Vec<Act> {
    crate::fixture::answer("200 OK", JSON, &answer.to_string())
}

/// What became of an unanswered call by these answers, and the requests that it took to find out.
async fn asked(plays: Vec<Vec<Act>>) -> (ToolOutcome, Vec<crate::fixture::Seen>) {
    let fixture = Fixture::start(plays).await;
    let tool = tool(&fixture, Effect::Once, |options| {
        options.reconcile_url = Some(fixture.url.join("/reconcile").unwrap());
        options.max_bytes = 1000;
        options.timeout = Some(Duration::from_millis(500));
    });
    assert!(tool.can_reconcile());
    let outcome = tool.reconcile(&json!({"op": "a"}), &context()).await;
    (outcome, fixture.seen())
}

#[tokio::test]
async fn a_tool_that_is_asked_gets_all_that_identifies_the_call_under_the_same_headers() {
    let (outcome, seen) = asked(vec![told(&json!({"state": "succeeded", "output": {"n": 1}}))]).await;
    assert_eq!(outcome, succeeded(r#"{"n":1}"#));
    let [seen] = &seen[..] else { panic!("asked once: {seen:?}") };
    assert!(seen.head.starts_with("POST /reconcile HTTP/1.1"));
    let body: Value = serde_json::from_str(&seen.body).unwrap();
    let run = body["runId"].as_str().unwrap();
    let expected = json!({
        "idempotencyKey": format!("{run}:2:1"), "runId": run, "step": 2, "call": 1, "tool": "charge",
        "arguments": {"op": "a"},
    });
    assert_eq!(body, expected);
    for (name, value) in
        [("idempotency-key", format!("{run}:2:1")), ("authorization", format!("Bearer {SECRET}"))]
    {
        assert_eq!(seen.header(name), Some(value.as_str()), "{name}");
    }
}

#[tokio::test]
async fn what_the_tool_says_settles_the_call() {
    let echo = format!("no credit, {SECRET}");
    for (answer, outcome) in [
        (json!({"state": "succeeded", "output": "done"}), succeeded("done")),
        (json!({"state": "succeeded"}), succeeded("")),
        (json!({"state": "failed", "error": echo}), ToolOutcome::Failed("no credit, [redacted]".into())),
    ] {
        assert_eq!(asked(vec![told(&answer)]).await.0, outcome);
    }
    match asked(vec![told(&json!({"state": "not_received"}))]).await.0 {
        ToolOutcome::Failed(why) => assert!(why.contains("never arrived"), "{why}"),
        outcome => panic!("{outcome:?}"),
    }
}

#[tokio::test]
async fn a_tool_that_is_still_at_it_is_asked_again_until_its_time_is_over() {
    let pending = || told(&json!({"state": "pending"}));
    let (outcome, seen) =
        asked(vec![pending(), pending(), told(&json!({"state": "succeeded", "output": "done"}))]).await;
    assert_eq!((outcome, seen.len()), (succeeded("done"), 3));
    let (outcome, seen) = asked(vec![pending()]).await;
    assert!(matches!(outcome, ToolOutcome::Unknown(_)), "{outcome:?}");
    assert!(seen.len() > 3 && seen.iter().all(|one| one.head.starts_with("POST /reconcile ")));
}

#[tokio::test]
async fn whatever_else_it_says_the_outcome_stays_unknown() {
    let long = json!({"state": "succeeded", "output": "x".repeat(20_000)});
    for play in [
        told(&json!({"state": "unknown"})),
        told(&json!({"state": "maybe"})),
        told(&json!({"output": "done"})),
        told(&json!([])),
        told(&long),
        answer("200 OK", JSON, "<p>done</p>"),
        answer("200 OK", JSON, ""),
        answer("404 Not Found", JSON, r#"{"state":"succeeded"}"#),
        answer("500 Oops", JSON, r#"{"state":"succeeded"}"#),
        answer("302 Found", &[("location", "http://169.254.169.254/")], ""),
        vec![Act::Reset],
        vec![Act::Hang],
        vec![open_head("application/json"), Act::Repeat(b" ".to_vec())],
    ] {
        let (outcome, seen) = asked(vec![play]).await;
        assert!(matches!(outcome, ToolOutcome::Unknown(_)), "{outcome:?}");
        assert_eq!(seen.len(), 1);
    }
}
