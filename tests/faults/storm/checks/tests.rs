use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use longhaul_tests::End;
use longhaul_tests::fake_provider;
use longhaul_tests::tool_server::Entry;
use serde_json::Value;

use super::super::figures::Identities;
use super::super::history::{Call, Change, History, Run, Step};
use super::super::journal::{Journal, Outcome, Stop, Submission};
use super::super::tails::Watched;
use super::super::weather::Incident;
use super::{journal, ledger, output, proofs, provider, stops, tails, zombies};
use crate::clock::Clock;

/// A run of one step that charged once and was never disturbed.
fn history(clock: &Clock, now: Instant) -> History {
    let at = clock.ms(now);
    let call = Call {
        name: "charge".into(),
        state: "succeeded".into(),
        op: "r.s1.0".into(),
        key: "r:1:1".into(),
        dispatched_at: Some(at),
        settled_at: Some(at + 5),
    };
    let run = Run {
        agent: "charges".into(),
        outcome: "succeeded done".into(),
        finished_at: Some(at + 10),
        digests: vec![1, 2],
        changes: vec![(at, Change::Claimed { worker: "w".into() }), (at + 10, Change::Finished)],
        restarts: BTreeMap::new(),
        steps: [(1, Step { text: "a1.s1.0 a1.s1.1 ".into(), finish_reason: "tool_calls".into() })].into(),
        calls: vec![call],
    };
    let questions = vec![(r#"[{"type":"text","text":"Hello, mark-1."}]"#.into(), "r".into())];
    History { runs: HashMap::from([("r".into(), run)]), questions }
}

fn effect(now: Instant, nth: usize) -> Entry {
    Entry {
        tool: "charge".into(),
        op: "r.s1.0".into(),
        key: Some("r:1:1".into()),
        nth: Some(nth),
        arguments: Value::Null,
        headers: Vec::new(),
        arrived: now,
        by: Some("worker1".into()),
    }
}

fn asked(now: Instant, attempt: u32) -> fake_provider::Call {
    fake_provider::Call {
        model: "charges".into(),
        key: "r".into(),
        turn: 1,
        attempt,
        by: Some("worker1".into()),
        begin: now,
        pieces: 2,
        end: Some((now, End::Complete)),
        history: vec![7],
        headers: Vec::new(),
        request: Arc::new(Value::Null),
    }
}

fn accepted() -> Journal {
    let submission = Submission {
        mark: "mark-1".into(),
        key: "key-1".into(),
        kind: "charges",
        answers: BTreeMap::from([("202".into(), 1)]),
        outcome: Outcome::Accepted { run: "r".into(), chat: "c".into() },
        runs: BTreeSet::from(["r".into()]),
    };
    Journal { submissions: vec![submission], ..Journal::default() }
}

#[test]
fn an_honest_run_is_not_suspected() {
    let (clock, now) = (Clock::read(), Instant::now());
    let history = history(&clock, now);
    let tail = Watched { run: "r".into(), digests: vec![1, 2], ..Watched::default() };
    let told = Journal { tails: vec![tail], ..accepted() };
    assert_eq!(journal(&told, &history), Vec::<String>::new());
    assert_eq!(tails(&told, &history), Vec::<String>::new());
    assert_eq!(provider(&[asked(now, 1)], &history, &[], &clock), Vec::<String>::new());
    assert_eq!(ledger(&[effect(now, 1)], &history, &[], &clock), Vec::<String>::new());
}

#[test]
fn a_second_charge_a_foreign_one_and_an_early_one_are_seen() {
    let (clock, now) = (Clock::read(), Instant::now());
    let mut history = history(&clock, now);
    let found = ledger(&[effect(now, 1), effect(now, 2)], &history, &[], &clock);
    assert_eq!(found, ["charge was done 2 times: r.s1.0"]);

    let foreign = Entry { key: Some("x".into()), ..effect(now, 1) };
    let found = ledger(&[foreign, Entry { nth: None, ..effect(now, 1) }], &history, &[], &clock).join("\n");
    assert!(
        found.contains("of which nothing is recorded") && found.contains("under several keys"),
        "{found}"
    );

    let call = &mut history.runs.get_mut("r").unwrap().calls[0];
    call.dispatched_at = call.dispatched_at.map(|at| at + 100);
    let found = ledger(&[effect(now, 1)], &history, &[], &clock).join("\n");
    assert!(found.contains("ms before that was recorded"), "{found}");
}

#[test]
fn a_success_without_an_effect_and_an_unknown_outcome_without_a_reason_are_seen() {
    let (clock, now) = (Clock::read(), Instant::now());
    let mut history = history(&clock, now);
    let found = ledger(&[], &history, &[], &clock);
    assert_eq!(found, ["a call succeeded and had no effect: r.s1.0 r"]);

    let run = history.runs.get_mut("r").unwrap();
    // Sent well after the only claim.
    run.calls[0].dispatched_at = run.calls[0].dispatched_at.map(|at| at + 2);
    run.calls[0].state = "unknown".into();
    let entries = [Entry { arrived: now + std::time::Duration::from_millis(3), ..effect(now, 1) }];
    let found = ledger(&entries, &history, &[], &clock);
    assert_eq!(found, ["nobody knows what became of r.s1.0, for no reason: r"]);

    let run = history.runs.get_mut("r").unwrap();
    let taken = run.calls[0].dispatched_at.unwrap() + 1;
    run.changes.insert(1, (taken, Change::Released { reason: "expired".into() }));
    assert_eq!(ledger(&entries, &history, &[], &clock), Vec::<String>::new());
}

#[test]
fn an_answer_that_is_bought_twice_for_nothing_is_seen() {
    let (clock, now) = (Clock::read(), Instant::now());
    let history = history(&clock, now);
    let twice = [asked(now, 1), asked(now, 2), asked(now, 3)];
    let found = provider(&twice, &history, &[], &clock);
    assert_eq!(found, ["turn 1 of r was asked for 3 times, answered 3 times, with 0 restarts and 1 claims"]);
}

#[test]
fn a_patched_step_a_changed_past_and_a_question_for_nobody_are_seen() {
    let (clock, now) = (Clock::read(), Instant::now());
    let mut history = history(&clock, now);
    let other = fake_provider::Call { history: vec![8], ..asked(now, 2) };
    let found = provider(&[asked(now, 1), other], &history, &[], &clock);
    assert_eq!(found, ["attempts at turn 1 of r were asked different questions"]);

    let next = fake_provider::Call { turn: 2, history: vec![9, 7], ..asked(now, 1) };
    let found = provider(&[asked(now, 1), next], &history, &[], &clock);
    assert_eq!(found, ["turn 2 of r is not behind the turn before it"]);

    history.runs.get_mut("r").unwrap().steps.get_mut(&1).unwrap().text = "a1.s1.0 a2.s1.1 ".into();
    let found = provider(&[asked(now, 1)], &history, &[], &clock).join("\n");
    assert!(found.contains("is no whole answer"), "{found}");

    let found = provider(&[fake_provider::Call { key: "x".into(), ..asked(now, 1) }], &history, &[], &clock);
    assert!(found[0].contains("which is not there"), "{found:?}");
}

#[test]
fn what_was_accepted_and_is_missing_refused_and_stored_or_answered_twice_is_seen() {
    let (clock, now) = (Clock::read(), Instant::now());
    let history = history(&clock, now);
    let with = |change: fn(&mut Submission)| {
        let mut told = accepted();
        change(&mut told.submissions[0]);
        journal(&told, &history).join("\n")
    };
    let missing = with(|made| made.outcome = Outcome::Accepted { run: "x".into(), chat: "c".into() });
    assert!(missing.contains("is not there: x"), "{missing}");
    let stored = with(|made| made.outcome = Outcome::Refused);
    assert!(stored.contains("what was refused was stored"), "{stored}");
    let twice = with(|made| made.runs.extend(["x".into()]));
    assert!(twice.contains("one key, two answers"), "{twice}");
    assert!(journal(&Journal::default(), &history)[0].contains("asked by nobody"));
}

#[test]
fn a_run_that_ended_for_no_good_reason_is_seen() {
    let (clock, now) = (Clock::read(), Instant::now());
    for outcome in ["aborted stop", "failed internal", "running -"] {
        let mut history = history(&clock, now);
        history.runs.get_mut("r").unwrap().outcome = outcome.into();
        assert_eq!(journal(&accepted(), &history), [format!("a run of charges ended as {outcome}: r")]);
    }
}

#[test]
fn a_tail_that_saw_something_else_is_seen() {
    let (clock, now) = (Clock::read(), Instant::now());
    let history = history(&clock, now);
    for digests in [vec![1], vec![1, 3], vec![1, 2, 3]] {
        let tail = Watched { run: "r".into(), digests, ..Watched::default() };
        assert_eq!(tails(&Journal { tails: vec![tail], ..Journal::default() }, &history).len(), 1);
    }
}

#[test]
fn a_panic_and_a_secret_in_an_output_are_seen() {
    let said = "all is well\nthread 'x' panicked at\nkey lh_secret\nsk-canary-0123456789";
    assert_eq!(output("worker1", said, &["lh_secret".to_owned()]).len(), 3);
}

fn incident(fault: &'static str, from: i64, turned: i64, until: i64) -> Incident {
    let slot = Some("worker1".to_owned());
    Incident { fault, from, until, turned: Some(turned), slot, link: None }
}

/// That a process said this of worker `w`, at that moment.
fn line(at: i64, text: &str) -> String {
    let at = chrono::DateTime::from_timestamp_millis(at).unwrap().to_rfc3339();
    format!(r#"{{"timestamp":"{at}","message":"{text}","worker.id":"w"}}"#)
}

#[test]
fn a_stop_that_was_accepted_and_not_followed_is_seen() {
    let history = history(&Clock::read(), Instant::now());
    let at = history.runs["r"].finished_at.unwrap() - 1;
    let told = |run: &str| Journal { stops: vec![Stop { run: run.into(), at }], ..accepted() };
    assert_eq!(stops(&told("r"), &history), ["a stop was lost: r ended succeeded done"]);
    assert_eq!(stops(&told("q"), &history), ["a stop of q, which is not there, was accepted"]);
}

#[test]
fn a_zombie_that_goes_on_is_seen() {
    let (clock, now) = (Clock::read(), Instant::now());
    let history = history(&clock, now);
    let began = clock.ms(now);
    let output = line(began - 60_000, "the worker holds a lease");
    let identities = Identities::read([("worker1", output.as_str())]);
    let zombies = |calls: &[fake_provider::Call], ledger: &[Entry], woke: i64| {
        let sleep = incident("worker_freezes", began + 1, woke, woke + 1_500);
        zombies(calls, ledger, &history, &[sleep], &identities, &clock).join("\n")
    };
    let woke = now + Duration::from_secs(6);
    let closed = |after: u64| fake_provider::Call {
        end: Some((woke + Duration::from_millis(after), End::ClientGone)),
        ..asked(now, 1)
    };
    assert_eq!(zombies(&[closed(900)], &[], began + 6_000), "");
    assert!(zombies(&[closed(1_100)], &[], began + 6_000).contains("was open 1100 ms"));
    let open = fake_provider::Call { end: None, ..asked(now, 1) };
    assert!(zombies(&[open], &[], began + 6_000).contains("stream was open"));
    let later = woke + Duration::from_millis(50);
    assert_eq!(zombies(&[fake_provider::Call { begin: later, ..closed(90) }], &[], began + 6_000), "");
    let again = fake_provider::Call { begin: later, ..closed(1_100) };
    assert!(zombies(&[again], &[], began + 6_000).contains("was open 1100 ms"));
    let sent =
        Entry { arrived: later, headers: vec![("x-longhaul-run-id".into(), "r".into())], ..effect(now, 1) };
    assert!(zombies(&[], &[sent], began + 6_000).contains("sent r.s1.0 50 ms"));
}

#[test]
fn a_proof_of_a_death_that_was_none_is_seen() {
    let began = 1_700_000_000_000;
    let own = line(began, "the worker holds a lease");
    let identities = Identities::read([("worker1", own.as_str())]);
    let proof =
        vec![("worker2".to_owned(), line(began + 5_000, "a worker's process is gone; its lease is ended"))];
    let killed = |at: i64| proofs(&proof, &[incident("worker_kills", at, at, at + 1_000)], &identities);
    assert_eq!(killed(began + 4_999), (1, vec![]));
    assert_eq!(killed(began + 5_001).1.len(), 1);
    assert_eq!(killed(began - 1).1.len(), 1, "that was the process before it");
    let frozen = proofs(&proof, &[incident("worker_freezes", began + 1, began + 9, began + 9)], &identities);
    assert_eq!(frozen.1.len(), 1, "who sleeps is not dead");
    let given_up = vec![proof[0].clone(), ("worker1".to_owned(), line(began + 4_000, "the lease is lost"))];
    assert_eq!(proofs(&given_up, &[], &identities), (1, vec![]));
}

#[test]
fn a_worker_is_away_until_it_has_a_lease_again() {
    let output =
        [line(1_000, "the worker holds a lease"), line(9_000, "the worker holds a lease")].join("\n");
    let identities = Identities::read([("worker1", output.as_str())]);
    let until = |fault| identities.until_registered(&[incident(fault, 2_000, 2_001, 3_000)])[0].until;
    assert_eq!((until("worker_kills"), until("worker_naps"), until("link_cuts")), (9_000, 3_000, 3_000));
}
