//! Answers that came when nobody waited for them: kept once, beside a state that does not change.

use super::{
    fixtures::{append, finishing, planned, saving},
    harness::Database,
    upheld,
};
use crate::{
    domain::{
        event::EventData,
        run::{Claim, Ending},
        tool::{CallState, Effect, LateResult, ToolCall},
    },
    store::Append,
};

upheld! {
    a_late_answer_is_kept_once_and_the_state_stays,
    only_calls_that_were_settled_without_an_answer_take_one,
    only_the_sender_or_who_was_fenced_by_the_end_writes_a_late_answer,
    racing_late_answers_leave_the_first,
}

fn call_of(claim: &Claim, number: u32, state: CallState) -> ToolCall {
    ToolCall { state, effect: Effect::Once, ..planned(claim, 1, number) }
}

fn succeeded(output: &str) -> LateResult {
    LateResult { state: CallState::Succeeded, output: Some(output.to_owned()), error: None, at: 0 }
}

/// A run whose step has sent as many calls as there are `states`, and has ended with them in these.
async fn ended_with(db: &Database, states: &[CallState]) -> Claim {
    let acme = db.workspace("acme").await;
    let claim = db.held_run(acme).await;
    let calls = |state: fn(CallState) -> CallState| {
        (1..).zip(states).map(|(n, last)| call_of(&claim, n, state(*last))).collect::<Vec<_>>()
    };
    let saved = Append { calls: calls(|_| CallState::Planned), ..saving(&claim, claim.last_seq + 1, 1) };
    let last = db.commit(saved).await.last;
    let started = EventData::ToolStarted { call: 1, call_id: "c".into() }.of_step(1, 1);
    let sent = Append { calls: calls(|_| CallState::Dispatched), ..append(&claim, last + 1, vec![started]) };
    let last = db.commit(sent).await.last;
    let ended = Append { calls: calls(|last| last), ..finishing(&claim, last + 1, Ending::stopped()) };
    db.commit(ended).await;
    claim
}

async fn a_late_answer_is_kept_once_and_the_state_stays(db: Database) {
    let claim = ended_with(&db, &[CallState::Unknown, CallState::Cancelled]).await;
    let log = db.kinds(&claim.run).await;
    for number in [1, 2] {
        let call = call_of(&claim, number, CallState::Succeeded);
        assert!(db.store.record_late(claim.run.workspace_id, &call, &succeeded("done")).await.unwrap());
        assert!(!db.store.record_late(claim.run.workspace_id, &call, &succeeded("again")).await.unwrap());
    }
    let calls = db.store.records(claim.run.workspace_id, &[claim.run.id]).await.unwrap().remove(0).calls;
    for (call, state) in calls.iter().zip([CallState::Unknown, CallState::Cancelled]) {
        let late = call.late.as_ref().unwrap();
        assert_eq!(
            (call.state, late.state, late.output.as_deref()),
            (state, CallState::Succeeded, Some("done"))
        );
        assert!(late.at >= call.settled_at.unwrap());
        assert!(call.result_for_model().contains("it succeeded. done"), "{}", call.result_for_model());
    }
    assert_eq!(db.kinds(&claim.run).await, log, "it is no event of a run that is over");
}

async fn only_calls_that_were_settled_without_an_answer_take_one(db: Database) {
    let states = [CallState::Succeeded, CallState::Failed, CallState::Denied];
    let claim = ended_with(&db, &states).await;
    let other = db.workspace("other").await;
    let unknown = ended_with(&db, &[CallState::Unknown]).await;
    let before = db.everything().await;
    for number in 1..=4 {
        let call = call_of(&claim, number, CallState::Succeeded);
        assert!(!db.store.record_late(claim.run.workspace_id, &call, &succeeded("late")).await.unwrap());
    }
    let call = call_of(&unknown, 1, CallState::Succeeded);
    assert!(!db.store.record_late(other, &call, &succeeded("foreign")).await.unwrap());
    assert_eq!(db.everything().await, before);
}

async fn only_the_sender_or_who_was_fenced_by_the_end_writes_a_late_answer(db: Database) {
    for (epochs_ago, may) in [(-1, false), (0, true), (1, true), (2, false)] {
        let claim = ended_with(&db, &[CallState::Unknown]).await;
        let call = call_of(&claim, 1, CallState::Succeeded);
        let call = ToolCall { epoch: claim.epoch - epochs_ago, ..call };
        let recorded = db.store.record_late(claim.run.workspace_id, &call, &succeeded("late")).await.unwrap();
        assert_eq!(recorded, may, "dispatched {epochs_ago} epochs before the call was settled");
    }
}

async fn racing_late_answers_leave_the_first(db: Database) {
    for round in 0..20 {
        let claim = ended_with(&db, &[CallState::Unknown]).await;
        let (ws, call) = (claim.run.workspace_id, call_of(&claim, 1, CallState::Succeeded));
        let (one, other) = (succeeded("one"), succeeded("other"));
        let (one, other) =
            tokio::join!(db.store.record_late(ws, &call, &one), db.second.record_late(ws, &call, &other));
        assert!(one.unwrap() ^ other.unwrap(), "round {round}");
    }
}
