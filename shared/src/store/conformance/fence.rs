//! The fence: who lost a run, or never had it, changes nothing of it anywhere.

use tokio::sync::Barrier;

use super::{
    fixtures::{append, deltas, finishing, planned, saving},
    harness::Database,
    upheld,
};
use crate::{
    domain::{
        event::ReleaseReason,
        run::{Claim, Ending},
        tool::{CallState, Effect, ToolCall},
        transition::{MessageStatus, RunStatus},
    },
    store::{Append, SharedStore, StoreError},
};

upheld! {
    of_two_writers_at_one_position_one_wins,
    a_writer_may_not_leave_a_gap,
    a_zombie_changes_nothing_after_a_release,
    a_zombie_changes_nothing_after_a_takeover,
    a_zombie_changes_nothing_after_the_end,
    a_step_is_refused_when_the_message_is_no_longer_streaming,
    a_run_that_is_over_never_changes,
    a_settled_call_never_changes,
}

fn call(claim: &Claim, number: u32, state: CallState, effect: Effect) -> ToolCall {
    ToolCall { effect, state, ..planned(claim, 1, number) }
}

/// Everything that a writer can try at once: text, a step, calls and the end.
fn all_of_it(claim: &Claim, first_seq: i64) -> Append {
    let mut all = saving(claim, first_seq, 1);
    all.calls = vec![call(claim, 1, CallState::Cancelled, Effect::Read)];
    all.events.extend(finishing(claim, 0, Ending::done()).events);
    all.ending = Some(Ending::done());
    all
}

/// Text, a step, a call, the end and all of them: each refused, and nothing anywhere is different afterwards.
async fn assert_fenced(db: &Database, claim: &Claim, next: i64) {
    let before = db.everything().await;
    for first_seq in claim.last_seq..=next {
        let mut calls = append(claim, first_seq, deltas(1, 1));
        calls.calls = vec![planned(claim, 1, 9)];
        for late in [
            append(claim, first_seq, deltas(1, 1)),
            saving(claim, first_seq, 1),
            saving(claim, first_seq, 2),
            calls,
            finishing(claim, first_seq, Ending::done()),
            all_of_it(claim, first_seq),
        ] {
            db.refused(late).await;
        }
    }
    assert_eq!(db.everything().await, before);
}

async fn of_two_writers_at_one_position_one_wins(db: Database) {
    let acme = db.workspace("acme").await;
    let claim = db.held_run(acme).await;
    // The other one was here before: it knows the position, and has another epoch.
    let zombie = Claim { epoch: claim.epoch - 1, ..claim.clone() };
    let (mut next, mut won) = (claim.last_seq + 1, [0, 0]);
    for round in 0..if db.is_postgres() { 300 } else { 60 } {
        let kinds = [deltas(1, 2), deltas(2, 2)];
        let shares = [append(&claim, next, kinds[0].clone()), append(&zombie, next, kinds[1].clone())];
        let barrier = Barrier::new(2);
        let write = async |store: &SharedStore, share: &Append| {
            barrier.wait().await;
            store.commit(std::slice::from_ref(share)).await.remove(0)
        };
        let (one, other) = tokio::join!(write(&db.store, &shares[0]), write(&db.second, &shares[1]));
        for (place, result) in [one, other].into_iter().enumerate() {
            match result {
                Ok(_) => won[place] += 1,
                Err(StoreError::LeaseLost) => {}
                Err(error) => panic!("round {round}: {error:?}"),
            }
        }
        assert_eq!(won[0] + won[1], round + 1, "round {round}");
        next += 2;
    }
}

async fn a_writer_may_not_leave_a_gap(db: Database) {
    let acme = db.workspace("acme").await;
    let claim = db.held_run(acme).await;
    let before = db.everything().await;
    for ahead in [2, 3, 1_000] {
        db.refused(append(&claim, claim.last_seq + ahead, deltas(1, 1))).await;
        db.refused(saving(&claim, claim.last_seq + ahead, 1)).await;
        db.refused(finishing(&claim, claim.last_seq + ahead, Ending::done())).await;
    }
    assert_eq!(db.everything().await, before);
}

async fn a_zombie_changes_nothing_after_a_release(db: Database) {
    let acme = db.workspace("acme").await;
    let claim = db.held_run(acme).await;
    db.expire(claim.worker_id).await;
    assert_eq!(db.store.reap(3, 9).await.unwrap().len(), 1);
    assert_fenced(&db, &claim, claim.last_seq + 1).await;

    let own = db.claim(db.worker(1).await).await;
    db.store.hand_back(&own, own.last_seq, ReleaseReason::HandBack, 0).await.unwrap();
    assert_fenced(&db, &own, own.last_seq + 1).await;
}

async fn a_zombie_changes_nothing_after_a_takeover(db: Database) {
    let acme = db.workspace("acme").await;
    let zombie = db.held_run(acme).await;
    db.commit(append(&zombie, zombie.last_seq + 1, deltas(1, 2))).await;
    db.expire(zombie.worker_id).await;
    db.store.reap(3, 9).await.unwrap();
    let owner = db.claim(db.worker(1).await).await;
    assert_eq!((owner.epoch, owner.last_seq), (zombie.epoch + 1, zombie.last_seq + 4));
    let mut saved = saving(&owner, owner.last_seq + 1, 1);
    saved.calls = vec![call(&owner, 1, CallState::Dispatched, Effect::Once)];
    let last_seq = db.commit(saved).await.last;
    assert_fenced(&db, &zombie, last_seq).await;
    db.commit(append(&owner, last_seq + 1, deltas(2, 1))).await;
}

async fn a_zombie_changes_nothing_after_the_end(db: Database) {
    let acme = db.workspace("acme").await;
    let claim = db.held_run(acme).await;
    let last_seq = db.commit(finishing(&claim, claim.last_seq + 1, Ending::stopped())).await.last;
    // Right behind the end the position is free: it is the run and the message that refuse, and a plain append has
    // no business there either.
    let before = db.everything().await;
    for late in [
        saving(&claim, last_seq + 1, 1),
        finishing(&claim, last_seq + 1, Ending::done()),
        all_of_it(&claim, last_seq + 1),
    ] {
        db.refused(late).await;
    }
    assert_eq!(db.everything().await, before);
    let zombie = Claim { epoch: claim.epoch - 1, ..claim };
    assert_fenced(&db, &zombie, last_seq).await;
}

async fn a_step_is_refused_when_the_message_is_no_longer_streaming(db: Database) {
    let acme = db.workspace("acme").await;
    let (claim, other) = (db.held_run(acme).await, db.held_run(acme).await);
    let set = async |status: MessageStatus| {
        let id = claim.run.assistant_message_id;
        let sql = format!("update messages set status = '{status}' where id = {}", db.id(id.0));
        db.edit(&sql, |rows| rows.messages.get_mut(&id).unwrap().status = Some(status)).await;
    };
    set(MessageStatus::Aborted).await;
    let before = db.everything().await;
    for late in [
        saving(&claim, claim.last_seq + 1, 1),
        all_of_it(&claim, claim.last_seq + 1),
        finishing(&claim, claim.last_seq + 1, Ending::done()),
    ] {
        db.refused(late).await;
    }
    assert_eq!(db.everything().await, before, "not even the log knows of it");

    let shares = [saving(&claim, claim.last_seq + 1, 1), saving(&other, other.last_seq + 1, 1)];
    let [late, good] = &db.store.commit(&shares).await[..] else { panic!("two answers") };
    assert!(matches!(late, Err(StoreError::LeaseLost)) && good.is_ok(), "{late:?} {good:?}");
    set(MessageStatus::Streaming).await;
}

async fn a_run_that_is_over_never_changes(db: Database) {
    let acme = db.workspace("acme").await;
    let (claim, other) = (db.held_run(acme).await, db.held_run(acme).await);
    // Only the run's row says so: neither its message nor its log could refuse.
    let set = async |status: RunStatus| {
        let reason = if status.is_terminal() { "'done'" } else { "null" };
        let sql = format!(
            "update runs set status = '{status}', reason = {reason} where id = {}",
            db.id(claim.run.id.0)
        );
        db.edit(&sql, |rows| rows.runs.get_mut(&claim.run.id).unwrap().run.status = status).await;
    };
    for over in [RunStatus::Succeeded, RunStatus::Failed, RunStatus::Aborted] {
        set(over).await;
        let before = db.everything().await;
        db.refused(saving(&claim, claim.last_seq + 1, 1)).await;
        db.refused(finishing(&claim, claim.last_seq + 1, Ending::stopped())).await;
        assert_eq!(db.everything().await, before);
    }
    let shares = [saving(&claim, claim.last_seq + 1, 1), saving(&other, other.last_seq + 1, 1)];
    let [late, good] = &db.store.commit(&shares).await[..] else { panic!("two answers") };
    assert!(matches!(late, Err(StoreError::LeaseLost)) && good.is_ok(), "{late:?} {good:?}");
    set(RunStatus::Running).await;
}

async fn a_settled_call_never_changes(db: Database) {
    let acme = db.workspace("acme").await;
    let claim = db.held_run(acme).await;
    let mut saved = saving(&claim, claim.last_seq + 1, 1);
    saved.calls = vec![call(&claim, 1, CallState::Failed, Effect::Once)];
    let last_seq = db.commit(saved).await.last;
    let before = db.everything().await;
    for state in CallState::ALL {
        let mut late = append(&claim, last_seq + 1, deltas(1, 1));
        late.calls = vec![call(&claim, 1, *state, Effect::Once)];
        db.refused(late).await;
    }
    assert_eq!(db.everything().await, before);
}
