//! Answers that came when nobody waited for them: kept once, beside a state that does not change.

use super::{
    fixtures::{append, finishing, planned, saving},
    harness::Database,
    upheld,
};
use crate::{
    domain::{
        event::{EventData, ReleaseReason},
        run::{Claim, Ending},
        tool::{CallState, Effect, LateResult, ToolCall},
    },
    store::Append,
};

upheld! {
    a_late_answer_is_kept_once_and_the_state_stays,
    only_calls_that_were_settled_without_an_answer_take_one,
    only_the_last_sender_writes_a_late_answer_whoever_settled_the_call,
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

/// Sent by the first of several holders, and by another one again if `resent` says which; settled by the last.
async fn only_the_last_sender_writes_a_late_answer_whoever_settled_the_call(db: Database) {
    const HOLDERS: usize = 4;
    for (resent, sender) in [(None, 0), (Some(1), 1), (Some(3), 3)] {
        let acme = db.workspace("acme").await;
        let first = db.held_run(acme).await;
        let saved = Append {
            calls: vec![call_of(&first, 1, CallState::Planned)],
            ..saving(&first, first.last_seq + 1, 1)
        };
        let mut last = db.commit(saved).await.last;
        let mut claims = vec![first];
        for holder in 0..HOLDERS {
            let claim = claims[holder].clone();
            if holder == 0 || resent == Some(holder) {
                let started = EventData::ToolStarted { call: 1, call_id: "c".into() }.of_step(1, 1);
                let calls = vec![call_of(&claim, 1, CallState::Dispatched)];
                last = db.commit(Append { calls, ..append(&claim, last + 1, vec![started]) }).await.last;
            }
            if holder + 1 < HOLDERS {
                db.store.hand_back(&claim, last, ReleaseReason::HandBack, 0).await.unwrap();
                claims.push(db.claim(db.worker(1).await).await);
                last = claims[holder + 1].last_seq;
            }
        }
        let settler = &claims[HOLDERS - 1];
        let calls = vec![call_of(settler, 1, CallState::Unknown)];
        db.commit(Append { calls, ..finishing(settler, last + 1, Ending::stopped()) }).await;
        for (holder, claim) in claims.iter().enumerate().rev() {
            let call = call_of(claim, 1, CallState::Succeeded);
            let recorded = db.store.record_late(acme, &call, &succeeded("late")).await.unwrap();
            assert_eq!(recorded, holder == sender, "holder {holder}, sent again by {resent:?}");
        }
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
