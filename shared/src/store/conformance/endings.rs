//! Endings: what is kept of the run, what becomes of its chat, and what takes the slot then.

use std::collections::BTreeSet;

use tokio::sync::Barrier;

use super::{
    fixtures::{append, finishing, new_run, planned, saving},
    harness::Database,
    upheld,
};
use crate::{
    domain::{
        event::EventData,
        run::{Claim, Ending},
        step::{FinishReason, OutputPart},
        tool::{CallState, Effect, ToolCall},
        transition::{Reason, RunStatus},
    },
    store::{AdmitError, IfBusy, NewRun, StopOutcome, StoreError, admission::StartAt},
};

upheld! {
    torn_output_is_kept_and_open_calls_are_settled,
    a_stop_and_an_end_at_once_make_one_terminal_status,
    an_end_promotes_the_chats_next_run_once,
    runs_end_while_others_come_and_none_is_left_behind,
    submissions_at_once_begin_in_the_order_of_their_turns,
    a_deleted_chat_ends_all_its_runs_and_promotes_none,
    a_chat_is_deleted_once;
    sql:
    an_end_leaves_other_work_about_the_run_alone,
}

/// A run with a saved step, calls in every open state and a second step that is torn off.
async fn torn(db: &Database, claim: &Claim) {
    let call = |number, state, effect| ToolCall { effect, state, ..planned(claim, 1, number) };
    let mut saved = saving(claim, claim.last_seq + 1, 1);
    saved.calls = vec![
        call(1, CallState::Planned, Effect::Once),
        call(2, CallState::Planned, Effect::Once),
        call(3, CallState::Planned, Effect::Read),
        call(4, CallState::Failed, Effect::Once),
    ];
    let last = db.commit(saved).await.last;
    let started = |call, id: &str| EventData::ToolStarted { call, call_id: id.to_owned() }.of_step(1, 1);
    let mut sent = append(claim, last + 1, vec![started(1, "call_1_1"), started(3, "call_1_3")]);
    sent.calls =
        vec![call(1, CallState::Dispatched, Effect::Once), call(3, CallState::Dispatched, Effect::Read)];
    let last = db.commit(sent).await.last;
    let mut events = vec![EventData::StepStarted { model: "m".into() }.of_step(2, 4)];
    events.push(EventData::ReasoningDelta { text: "hm".into() }.of_step(2, 4));
    events.push(EventData::TextDelta { text: "It is ha".into() }.of_step(2, 4));
    db.commit(append(claim, last + 1, events)).await;
}

async fn torn_output_is_kept_and_open_calls_are_settled(db: Database) {
    let acme = db.workspace("acme").await;
    for way in ["stop", "crash limit", "deleted"] {
        let claim = db.held_run(acme).await;
        torn(&db, &claim).await;
        db.expire(claim.worker_id).await;
        match way {
            "stop" => drop(db.store.stop_run(acme, claim.run.id).await.unwrap()),
            "crash limit" => drop(db.store.reap(0, 9).await.unwrap()),
            _ => drop(db.store.delete_chat(acme, claim.run.chat_id).await.unwrap()),
        }
        let run = db.now(&claim.run).await;
        assert!(run.status.is_terminal(), "{way}");
        let record = db.store.records(acme, &[run.id]).await.unwrap().remove(0);
        let [_, kept] = &record.steps[..] else { panic!("{way}: two steps") };
        let parts =
            [OutputPart::Reasoning { text: "hm".into() }, OutputPart::Text { text: "It is ha".into() }];
        assert_eq!((&kept.output[..], kept.finish_reason), (&parts[..], FinishReason::Interrupted));
        assert_eq!((kept.step, kept.attempt, kept.model.as_str()), (2, 4, "m"));
        let states: Vec<_> = record.calls.iter().map(|call| call.state).collect();
        let expected = [CallState::Unknown, CallState::Cancelled, CallState::Cancelled, CallState::Failed];
        assert_eq!(states, expected, "{way}");
        let kinds = db.kinds(&run).await;
        let end = ["step.finished", "tool.finished", "tool.finished", "tool.finished", "run.finished"];
        assert_eq!(kinds[kinds.len() - 5..], end, "{way}");
        assert_eq!(kept.last_seq, run.last_seq - 4);
    }
}

async fn an_end_leaves_other_work_about_the_run_alone(db: Database) {
    let acme = db.workspace("acme").await;
    let claim = db.held_run(acme).await;
    let (ws, run, job) = (db.id(acme.0), db.id(claim.run.id.0), db.id(claim.run.chat_id.0));
    let errand = format!(
        "insert into jobs (workspace_id, id, kind, run_id, queue, priority, run_at) \
         values ({ws}, {job}, 'webhook', {run}, 'default', 0, 0)"
    );
    db.execute(&errand).await.unwrap();
    db.commit(finishing(&claim, claim.last_seq + 1, Ending::done())).await;
    assert_eq!(db.texts("select kind from jobs").await, ["webhook"]);
}

async fn a_stop_and_an_end_at_once_make_one_terminal_status(db: Database) {
    let acme = db.workspace("acme").await;
    let (mut by_stop, mut by_worker) = (0, 0);
    for round in 0..if db.is_postgres() { 300 } else { 60 } {
        let claim = db.held_run(acme).await;
        // Its lease has run out while it was writing its end: both may have it.
        db.expire(claim.worker_id).await;
        let end = finishing(&claim, claim.last_seq + 1, Ending::done());
        let barrier = Barrier::new(2);
        let pause = |n: u64| tokio::time::sleep(std::time::Duration::from_micros(n));
        let stop = async {
            barrier.wait().await;
            pause(if round % 4 == 0 { 1_500 } else { 0 }).await;
            db.second.stop_run(acme, claim.run.id).await.unwrap()
        };
        let finish = async {
            barrier.wait().await;
            pause(if round % 4 == 2 { 1_500 } else { 0 }).await;
            db.store.commit(std::slice::from_ref(&end)).await.remove(0)
        };
        let (outcome, finished) = tokio::join!(stop, finish);
        let run = db.now(&claim.run).await;
        match (&outcome, finished) {
            (StopOutcome::Ended { run: ended, .. }, Err(StoreError::LeaseLost)) => {
                by_stop += 1;
                assert_eq!((ended.status, run.status), (RunStatus::Aborted, RunStatus::Aborted));
            }
            (StopOutcome::AlreadyOver(over), Ok(_)) => {
                by_worker += 1;
                assert_eq!((over.status, run.status), (RunStatus::Succeeded, RunStatus::Succeeded));
            }
            other => panic!("round {round}: {other:?}"),
        }
    }
    assert!(by_stop > 0 && by_worker > 0, "{by_stop} by the stop, {by_worker} by the worker");
}

async fn an_end_promotes_the_chats_next_run_once(db: Database) {
    let acme = db.workspace("acme").await;
    let chat = db.chat(acme, "one").await.id;
    let first = db.submit(acme, chat).await.run;
    let second = db.submit(acme, chat).await.run;
    let third = db.submit(acme, chat).await.run;
    let worker = db.worker(3).await;
    let claim = db.claim(worker).await;
    let end = finishing(&claim, claim.last_seq + 1, Ending::done());
    let committed = db.store.commit(&[end]).await.remove(0).unwrap();
    assert!(committed.segment.is_end());
    assert_eq!(committed.wake, ["default"]);
    let [caused] = &committed.caused[..] else { panic!("one run is promoted") };
    assert_eq!((caused.run_id, caused.first), (second.id, 2));
    let queued = EventData::RunQueued { status: RunStatus::Pending, position: None, run_at: None };
    assert_eq!(caused.events[0].data(), Some(queued));
    let mut statuses = vec![];
    for run in [&first, &second, &third] {
        statuses.push(db.now(run).await.status);
    }
    assert_eq!(statuses, [RunStatus::Succeeded, RunStatus::Pending, RunStatus::Queued]);
}

async fn runs_end_while_others_come_and_none_is_left_behind(db: Database) {
    let acme = db.workspace("acme").await;
    let chat = db.chat(acme, "one").await.id;
    let worker = db.worker(1).await;
    let mut admitted = 0;
    for round in 0..if db.is_postgres() { 200 } else { 40 } {
        db.submit(acme, chat).await;
        admitted += 1;
        let claim = db.claim(worker).await;
        let end = finishing(&claim, claim.last_seq + 1, Ending::done());
        let barrier = Barrier::new(2);
        let submit = async {
            barrier.wait().await;
            let if_busy = if round % 2 == 0 { IfBusy::Enqueue } else { IfBusy::Reject };
            db.second.admit(NewRun { if_busy, ..new_run(acme, Some(chat)) }).await
        };
        let finish = async {
            barrier.wait().await;
            db.store.commit(std::slice::from_ref(&end)).await.remove(0).unwrap()
        };
        let (submitted, _) = tokio::join!(submit, finish);
        match submitted {
            Ok(_) => admitted += 1,
            Err(AdmitError::RunAlreadyActive { .. }) if round % 2 == 1 => {}
            Err(error) => panic!("round {round}: {error:?}"),
        }
        // Whatever came first, what was admitted can be claimed now.
        for (claim, _) in db.store.claim(worker, &["default".to_owned()], 9).await.unwrap() {
            db.commit(finishing(&claim, claim.last_seq + 1, Ending::done())).await;
        }
        let left = db
            .look("select status from runs where status <> 'succeeded'", |rows| {
                let runs = rows.runs.values().map(|row| row.run.status);
                runs.filter(|status| *status != RunStatus::Succeeded).collect()
            })
            .await;
        assert!(left.is_empty(), "round {round}: {left:?}");
    }
    let ran = db
        .look("select cast(count(*) as text) from runs where attempts = 1", |rows| {
            vec![rows.runs.values().filter(|row| row.run.attempts == 1).count()]
        })
        .await;
    assert_eq!(ran, [admitted.to_string()]);
}

async fn submissions_at_once_begin_in_the_order_of_their_turns(db: Database) {
    let acme = db.workspace("acme").await;
    let chat = db.chat(acme, "one").await.id;
    let calls: Vec<_> = (0..20)
        .map(|n| {
            let store = if n % 2 == 0 { db.store.clone() } else { db.second.clone() };
            tokio::spawn(async move { store.admit(new_run(acme, Some(chat))).await.unwrap() })
        })
        .collect();
    let mut admitted = vec![];
    for call in calls {
        admitted.push(call.await.unwrap());
    }
    admitted.sort_by_key(|one| one.run.turn);
    let turns: BTreeSet<_> = admitted.iter().map(|one| one.run.turn).collect();
    assert_eq!(turns, (1..=20).collect());
    let places: Vec<_> = admitted.iter().map(|one| one.position.unwrap_or(0)).collect();
    assert_eq!(places, (0..20).collect::<Vec<_>>(), "the place told is the place kept");
    let worker = db.worker(1).await;
    for one in admitted {
        let claim = db.claim(worker).await;
        assert_eq!(claim.run.id, one.run.id);
        db.commit(finishing(&claim, claim.last_seq + 1, Ending::done())).await;
    }
}

async fn a_deleted_chat_ends_all_its_runs_and_promotes_none(db: Database) {
    let acme = db.workspace("acme").await;
    for held in [false, true] {
        let chat = db.chat(acme, "one").await.id;
        let active = db.submit(acme, chat).await.run;
        let mut rest = vec![db.submit(acme, chat).await.run, db.submit(acme, chat).await.run];
        let later = NewRun { start: Some(StartAt::In(60_000)), ..new_run(acme, Some(chat)) };
        rest.push(db.store.admit(later).await.unwrap().run);
        let claim = if held { Some(db.claim(db.worker(1).await).await) } else { None };

        let outcomes = db.store.delete_chat(acme, chat).await.unwrap();
        assert_eq!(outcomes.len(), 4);
        for outcome in &outcomes {
            match outcome {
                StopOutcome::Ended { run, segments, wake } => {
                    assert_eq!(run.reason, Some(Reason::ChatDeleted));
                    assert!(segments.len() == 1 && wake.is_empty(), "nothing is promoted");
                }
                StopOutcome::Requested(run) => {
                    assert!(held);
                    assert_eq!((run.id, run.stop_reason), (active.id, Some(Reason::ChatDeleted)));
                }
                StopOutcome::AlreadyOver(run) => panic!("{run:?}"),
            }
        }
        for run in &rest {
            assert_eq!(db.now(run).await.status, RunStatus::Aborted);
        }
        if let Some(claim) = claim {
            let ending = Ending { reason: Reason::ChatDeleted, error: None };
            db.commit(finishing(&claim, claim.last_seq + 1, ending)).await;
        }
        assert_eq!(db.now(&active).await.status, RunStatus::Aborted);
    }
    assert!(db.store.promote_due(9).await.unwrap().is_empty());
}

async fn a_chat_is_deleted_once(db: Database) {
    let acme = db.workspace("acme").await;
    let chat = db.chat(acme, "one").await.id;
    db.submit(acme, chat).await;
    let (one, other) = tokio::join!(db.store.delete_chat(acme, chat), db.second.delete_chat(acme, chat));
    let done: Vec<_> = [one, other].into_iter().filter_map(Result::ok).collect();
    assert_eq!((done.len(), done[0].len()), (1, 1));
    let again = db.store.delete_chat(acme, chat).await;
    assert!(matches!(again, Err(StoreError::NotFound)), "{again:?}");
    let late = db.store.admit(new_run(acme, Some(chat))).await;
    assert!(matches!(late, Err(AdmitError::ChatNotFound)), "{late:?}");
}
