//! The group commit: shares that are whole or nothing, and that do not disturb each other.

use super::{
    fixtures::{append, cursor, deltas, finishing, planned, saving, spans, step},
    harness::Database,
    upheld,
};
use crate::{
    domain::{
        event::EventData,
        ids::RunId,
        run::{Claim, Ending, RunError, Usage},
        step::{FinishReason, OutputPart, Step},
        tool::{CallState, Effect, ToolCall},
        transition::{MessageStatus, Reason, RunStatus},
    },
    store::{Append, StoreError},
};

upheld! {
    the_shares_of_several_runs_are_committed_together,
    every_column_of_a_share_arrives_where_it_belongs,
    counters_add_up_over_steps_and_batches,
    a_call_keeps_the_time_of_its_dispatch,
    a_call_that_is_sent_and_answered_in_one_append_was_sent,
    a_lost_share_does_not_disturb_the_others,
    an_append_that_is_committed_already_is_answered_like_the_first_time;
    sql:
    a_share_that_the_database_refuses_fails_alone,
    an_ending_that_gets_no_lock_leaves_its_connection_usable,
    an_ending_whose_chat_is_locked_is_refused_at_once_and_no_other_append_with_it,
}

fn call(claim: &Claim, number: u32, state: CallState, effect: Effect) -> ToolCall {
    ToolCall { effect, state, ..planned(claim, 1, number) }
}

async fn the_shares_of_several_runs_are_committed_together(db: Database) {
    let acme = db.workspace("acme").await;
    let mut claims = vec![];
    for _ in 0..20 {
        claims.push(db.held_run(acme).await);
    }
    // In no order, plain and full ones mixed, and some that end.
    claims.reverse();
    for round in 0..3 {
        let shares: Vec<_> = claims
            .iter()
            .enumerate()
            .map(|(n, claim)| match (round, n % 3) {
                (1, 0) => saving(claim, claim.last_seq + 3, 1),
                (2, 1) => finishing(claim, claim.last_seq + 3 * round + 1, Ending::done()),
                _ => append(claim, claim.last_seq + 3 * round + 1, deltas(1, 3)),
            })
            .map(|mut share| {
                // The step of the second round begins where its text did.
                if !share.steps.is_empty() {
                    share.first_seq += 1;
                    share.steps[0].last_seq += 1;
                }
                share
            })
            .collect();
        let results = db.store.commit(&shares).await;
        assert_eq!(results.len(), 20);
        for (share, result) in shares.iter().zip(results) {
            let committed = result.unwrap();
            let span = (committed.segment.run_id, committed.segment.first, committed.segment.last);
            assert_eq!(span, (share.run_id, share.first_seq, share.last_seq()));
            let stored = db.store.read_log(cursor(&claims[0].run, 0), 99).await.unwrap();
            assert_eq!(stored[0].first, 1);
        }
    }
    for (n, claim) in claims.iter().enumerate() {
        let run = db.now(&claim.run).await;
        let expected = if n % 3 == 1 { RunStatus::Succeeded } else { RunStatus::Running };
        assert_eq!((run.status, run.step_count), (expected, u32::from(n % 3 == 0)));
    }
}

async fn every_column_of_a_share_arrives_where_it_belongs(db: Database) {
    let acme = db.workspace("acme").await;
    let mut shares = vec![];
    for n in 1..=2_i64 {
        let claim = db.held_run(acme).await;
        let begin = claim.last_seq + 1;
        let mut share = append(&claim, begin, deltas(1, 5));
        let saved = Step {
            run_id: claim.run.id,
            step: 1,
            attempt: 7 + n as u32,
            epoch: 20 + n,
            model: format!("model {n}"),
            output: vec![OutputPart::Text { text: format!("'quoted', \"{n}\" \\ {{a,b}} ünï") }],
            finish_reason: FinishReason::Length,
            usage: Usage {
                input_tokens: 100 + n,
                output_tokens: 200 + n,
                reasoning_tokens: 300 + n,
                cached_input_tokens: 400 + n,
            },
            first_seq: begin,
            last_seq: begin + 1,
            started_at: 500 + n,
            finished_at: 0,
        };
        let second = Step { step: 2, first_seq: begin + 2, last_seq: begin + 3, ..saved.clone() };
        share.steps = vec![saved, second];
        let settled = |number, state| ToolCall {
            step: 2,
            call_id: format!("id {n} {number}"),
            name: format!("name {n}"),
            arguments: format!("arguments {n} {{\"a\":[1,2]}}"),
            idempotency_key: format!("key {n} {number}"),
            epoch: 30 + n,
            output: Some(format!("output {n}")),
            error: Some(format!("error {n}")),
            ..call(&claim, number, state, Effect::Idempotent)
        };
        share.calls = vec![settled(1, CallState::Failed), settled(2, CallState::Denied)];
        let error = RunError::new("a_code", format!("message {n}"));
        share.ending = Some(Ending::failed(Reason::Budget, error));
        share.events.extend(finishing(&claim, 0, share.ending.clone().unwrap()).events);
        shares.push((claim, share));
    }
    let appends: Vec<_> = shares.iter().map(|(_, share)| share.clone()).collect();
    for result in db.store.commit(&appends).await {
        result.unwrap();
    }
    for (claim, share) in shares {
        let run = db.now(&claim.run).await;
        let usage = share.steps[0].usage.plus(share.steps[1].usage);
        assert_eq!((run.step_count, run.usage), (2, usage));
        assert_eq!((run.status, run.reason), (RunStatus::Failed, Some(Reason::Budget)));
        assert_eq!(run.error, share.ending.unwrap().error);
        let message = db.store.message(acme, run.assistant_message_id).await.unwrap();
        assert_eq!(message.status, Some(MessageStatus::Error));
        let record = db.store.records(acme, &[run.id]).await.unwrap().remove(0);
        let steps: Vec<_> = record.steps.into_iter().map(|saved| Step { finished_at: 0, ..saved }).collect();
        assert_eq!(steps, share.steps);
        let calls: Vec<_> = record
            .calls
            .into_iter()
            .map(|call| {
                assert!(call.planned_at.is_some() && call.settled_at.is_some());
                ToolCall { planned_at: None, settled_at: None, ..call }
            })
            .collect();
        assert_eq!(calls, share.calls);
    }
}

async fn counters_add_up_over_steps_and_batches(db: Database) {
    let acme = db.workspace("acme").await;
    let claim = db.held_run(acme).await;
    for number in 1..=3 {
        db.commit(saving(&claim, claim.last_seq + i64::from(number) * 3 - 2, number)).await;
    }
    let run = db.now(&claim.run).await;
    let usage = Usage { input_tokens: 3, output_tokens: 6, reasoning_tokens: 9, cached_input_tokens: 12 };
    assert_eq!((run.step_count, run.usage, run.status), (3, usage, RunStatus::Running));
    assert_eq!((run.reason, run.finished_at, run.error), (None, None, None));
}

async fn a_call_keeps_the_time_of_its_dispatch(db: Database) {
    let acme = db.workspace("acme").await;
    let claim = db.held_run(acme).await;
    let mut saved = saving(&claim, claim.last_seq + 1, 1);
    saved.calls = vec![call(&claim, 1, CallState::Planned, Effect::Once)];
    let mut last_seq = db.commit(saved).await.last;
    let mut seen = vec![];
    for state in [CallState::Dispatched, CallState::Succeeded] {
        let mut next = append(&claim, last_seq + 1, deltas(1, 1));
        next.calls = vec![ToolCall { output: Some("ok".into()), ..call(&claim, 1, state, Effect::Once) }];
        last_seq = db.commit(next).await.last;
        seen.push(db.store.records(acme, &[claim.run.id]).await.unwrap().remove(0).calls.remove(0));
    }
    assert!(seen[0].dispatched_at.is_some() && seen[0].settled_at.is_none());
    assert_eq!(seen[1].dispatched_at, seen[0].dispatched_at);
    assert!(seen[1].settled_at.is_some());
    assert_eq!((seen[1].state, seen[1].output.as_deref()), (CallState::Succeeded, Some("ok")));
}

async fn a_call_that_is_sent_and_answered_in_one_append_was_sent(db: Database) {
    let acme = db.workspace("acme").await;
    let claim = db.held_run(acme).await;
    let calls = |states: [CallState; 2]| {
        (1..).zip(states).map(|(n, state)| call(&claim, n, state, Effect::Read)).collect::<Vec<_>>()
    };
    let saved = Append { calls: calls([CallState::Planned; 2]), ..saving(&claim, claim.last_seq + 1, 1) };
    let last = db.commit(saved).await.last;
    let states = [CallState::Succeeded, CallState::Cancelled];
    db.commit(Append { calls: calls(states), ..append(&claim, last + 1, deltas(1, 1)) }).await;
    let calls = db.store.records(acme, &[claim.run.id]).await.unwrap().remove(0).calls;
    assert!(calls[0].dispatched_at.is_some() && calls[0].dispatched_at == calls[0].settled_at);
    assert_eq!(calls[1].dispatched_at, None, "nothing says that this one was");
}

async fn a_lost_share_does_not_disturb_the_others(db: Database) {
    let acme = db.workspace("acme").await;
    let (mine, lost, ending) = (db.held_run(acme).await, db.held_run(acme).await, db.held_run(acme).await);
    db.expire(lost.worker_id).await;
    db.store.reap(3, 9).await.unwrap();
    let shares = [
        saving(&lost, lost.last_seq + 1, 1),
        saving(&mine, mine.last_seq + 1, 1),
        finishing(&ending, ending.last_seq + 1, Ending::done()),
    ];
    let [first, second, third] = &db.store.commit(&shares).await[..] else { panic!("three answers") };
    assert!(matches!(first, Err(StoreError::LeaseLost)), "{first:?}");
    assert_eq!(second.as_ref().unwrap().segment.run_id, mine.run.id);
    assert!(third.is_ok());
    let run = db.now(&lost.run).await;
    assert_eq!((run.status, run.step_count, run.last_seq), (RunStatus::Pending, 0, lost.last_seq + 1));
}

async fn a_share_that_the_database_refuses_fails_alone(db: Database) {
    let acme = db.workspace("acme").await;
    let (one, two) = (db.held_run(acme).await, db.held_run(acme).await);
    // A step that was saved before, with a position that is right.
    let last_seq = db.commit(saving(&two, two.last_seq + 1, 1)).await.last;
    let before = db.now(&two.run).await;
    let shares = [saving(&two, last_seq + 1, 1), saving(&one, one.last_seq + 1, 1)];
    let [bad, good] = &db.store.commit(&shares).await[..] else { panic!("two answers") };
    assert!(matches!(bad, Err(StoreError::Conflict(_))), "{bad:?}");
    assert!(good.is_ok(), "{good:?}");
    assert_eq!(db.now(&two.run).await, before);
    assert_eq!(db.now(&one.run).await.step_count, 1);

    let unknown = Append { run_id: RunId::generate(), ..append(&one, 1, deltas(1, 1)) };
    let shares = [unknown, append(&one, one.last_seq + 4, deltas(2, 1))];
    let [bad, good] = &db.store.commit(&shares).await[..] else { panic!("two answers") };
    assert!(bad.is_err() && good.is_ok(), "{bad:?} {good:?}");
}

async fn an_append_that_is_committed_already_is_answered_like_the_first_time(db: Database) {
    let acme = db.workspace("acme").await;
    let claim = db.held_run(acme).await;
    let plain = append(&claim, claim.last_seq + 1, deltas(1, 2));
    let saved = saving(&claim, claim.last_seq + 3, 1);
    let end = finishing(&claim, claim.last_seq + 6, Ending::done());
    for share in [&plain, &saved, &end] {
        let first = db.commit(share.clone()).await;
        let before = db.everything().await;
        let again = db.commit(share.clone()).await;
        assert_eq!((again.first, again.last, again.at), (first.first, first.last, first.at));
        assert_eq!(db.everything().await, before);
    }
    // The same position with other words is somebody else's.
    db.refused(append(&claim, claim.last_seq + 1, deltas(2, 2))).await;
    db.refused(Append { epoch: claim.epoch - 1, ..plain }).await;
    let log = db.store.read_log(cursor(&claim.run, 0), 9).await.unwrap();
    assert_eq!(spans(&log), [(1, 1), (2, 2), (3, 4), (5, 7), (8, 8)]);
    assert_eq!(step(&claim, 1, 0, 0).step, 1);
}

async fn an_ending_that_gets_no_lock_leaves_its_connection_usable(db: Database) {
    let acme = db.workspace("acme").await;
    let claim = db.held_run(acme).await;
    let patience = std::time::Duration::from_millis(200);
    let Some((pool, store)) = db.on_postgres(|options| options.lock_timeout = patience) else { return };
    let end = finishing(&claim, claim.last_seq + 1, Ending::done());
    let mut rogue = pool.begin().await.unwrap();
    sqlx::query("select id from chats for update").execute(&mut *rogue).await.unwrap();
    for _ in 0..4 {
        let blocked = store.commit(std::slice::from_ref(&end)).await.remove(0);
        assert!(blocked.as_ref().is_err_and(StoreError::is_transient), "{blocked:?}");
    }
    rogue.rollback().await.unwrap();
    for n in 1..=4 {
        let share = append(&claim, claim.last_seq + n, deltas(1, 1));
        store.commit(&[share]).await.remove(0).unwrap();
        assert_eq!(db.now(&claim.run).await.last_seq, claim.last_seq + n, "committed for all to see");
    }
    let end = finishing(&claim, claim.last_seq + 5, Ending::done());
    store.commit(&[end]).await.remove(0).unwrap();
    let finished = EventData::RunFinished {
        status: RunStatus::Succeeded,
        reason: Reason::Done,
        error: None,
        usage: Usage::default(),
        step_count: 0,
    };
    let log = db.store.read_log(cursor(&claim.run, claim.last_seq + 4), 9).await.unwrap();
    assert_eq!(log[0].events[0].data(), Some(finished));
    store.close().await;
}

async fn an_ending_whose_chat_is_locked_is_refused_at_once_and_no_other_append_with_it(db: Database) {
    let acme = db.workspace("acme").await;
    let claims = [db.held_run(acme).await, db.held_run(acme).await, db.held_run(acme).await];
    let bounds = |options: &mut crate::store::postgres::Options| {
        options.reserved_connections = 1;
        // Whoever waits for a lock comes to this before it has waited long enough.
        options.statement_timeout = std::time::Duration::from_millis(900);
    };
    let Some((pool, store)) = db.on_postgres(bounds) else { return };
    let mut rogue = pool.begin().await.unwrap();
    sqlx::query("select id from chats where id = $1 for update")
        .bind(claims[1].run.chat_id.0)
        .execute(&mut *rogue)
        .await
        .unwrap();
    let [free, locked, other] = &claims;
    let end = |claim: &Claim| finishing(claim, claim.last_seq + 1, Ending::done());
    let batch = [end(free), end(locked), append(other, other.last_seq + 1, deltas(1, 1))];
    let results = store.commit_at_once(&batch).await;
    assert!(matches!(results[..], [Ok(_), Err(StoreError::Locked), Ok(_)]), "{results:?}");
    let refused = store.commit_at_once(&[end(locked)]).await.remove(0);
    assert!(matches!(refused, Err(StoreError::Locked)), "{refused:?}");
    assert_eq!(db.now(&free.run).await.status, RunStatus::Succeeded);
    assert_eq!(db.now(&other.run).await.last_seq, other.last_seq + 1);
    rogue.rollback().await.unwrap();
    store.commit_at_once(&[end(locked)]).await.remove(0).unwrap();
    assert_eq!(db.now(&locked.run).await.status, RunStatus::Succeeded);
    store.close().await;
}
