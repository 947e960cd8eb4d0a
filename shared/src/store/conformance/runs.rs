//! Runs as readers see them: lists, filters, the latest, what blocks one, records.

use serde_json::json;

use super::{
    conformance,
    fixtures::{append, behind, deltas, first, new_run, planned, spans, step},
    harness::Database,
};
use crate::{
    domain::{
        event::EventData,
        ids::{ChatId, RunId, WorkspaceId},
        run::{BlockedBy, Ending, Run, Usage},
        step::FinishReason,
        transition::{Reason, RunStatus},
    },
    store::{NewRun, RunFilter, StoreError, admission::StartAt},
};

conformance! {
    a_run_reads_as_it_was_admitted,
    an_unknown_run_is_not_found,
    runs_are_listed_newest_first_in_pages_that_end,
    each_filter_keeps_what_it_names,
    filters_narrow_each_other,
    the_latest_run_is_the_newest_that_began,
    a_queued_run_is_blocked_by_the_slot_holder,
    a_scheduled_run_is_blocked_by_its_time,
    a_pending_run_is_blocked_by_missing_and_by_busy_workers,
    messages_are_paged_oldest_first,
    records_hold_steps_calls_and_the_log_behind_the_steps,
    records_come_in_the_order_asked_for,
}

async fn ids(db: &Database, workspace: WorkspaceId, filter: RunFilter) -> Vec<RunId> {
    let listed = db.store.list_runs(workspace, &filter, first(100)).await.unwrap();
    assert_eq!(listed.next, None);
    listed.items.iter().map(|run| run.id).collect()
}

async fn latest(db: &Database, workspace: WorkspaceId, chat: ChatId) -> Option<RunId> {
    db.store.latest_run(workspace, chat).await.unwrap().map(|run| run.id)
}

async fn blocked_by(db: &Database, run: &Run) -> Option<BlockedBy> {
    let run = db.store.run(run.workspace_id, run.id).await.unwrap();
    db.store.blocked_by(&run).await.unwrap()
}

async fn a_run_reads_as_it_was_admitted(db: Database) {
    let acme = db.workspace("acme").await;
    let new = NewRun {
        tags: vec!["nightly".to_owned(), "it's".to_owned()],
        metadata: json!({"k": [1]}),
        traceparent: Some("00-1-2-03".to_owned()),
        ..new_run(acme, None)
    };
    let run = db.store.admit(new).await.unwrap().run;
    assert_eq!((run.status, run.reason, run.turn), (RunStatus::Pending, None, 1));
    assert_eq!(
        (run.tags.as_slice(), &run.metadata),
        (&["nightly".to_owned(), "it's".to_owned()][..], &json!({"k": [1]}))
    );
    assert_eq!((run.attempts, run.step_count, run.worker_id, run.last_seq), (0, 0, None, 1));
    assert_eq!((run.usage, run.started_at, run.finished_at), (Usage::default(), None, None));
    assert_eq!(db.store.run(acme, run.id).await.unwrap(), run);
    assert_eq!(db.store.chat(acme, run.chat_id).await.unwrap().active_run_id, Some(run.id));

    let worker = db.worker(1).await;
    let claim = db.claim(worker).await;
    let run = db.store.run(acme, run.id).await.unwrap();
    assert_eq!((run.status, run.worker_id, run.attempts), (RunStatus::Running, Some(worker), 1));
    assert_eq!(run.last_seq, claim.last_seq);
}

async fn an_unknown_run_is_not_found(db: Database) {
    let acme = db.workspace("acme").await;
    let unknown = db.store.run(acme, RunId::generate()).await;
    assert!(matches!(unknown, Err(StoreError::NotFound)), "{unknown:?}");
    assert!(ids(&db, acme, RunFilter::default()).await.is_empty());
}

async fn runs_are_listed_newest_first_in_pages_that_end(db: Database) {
    let acme = db.workspace("acme").await;
    let chat = db.chat(acme, "one").await.id;
    let mut made = vec![];
    for _ in 0..4 {
        made.insert(0, db.submit(acme, chat).await.run.id);
    }
    for (limit, sizes) in [(1, vec![1, 1, 1, 1]), (3, vec![3, 1]), (4, vec![4]), (2, vec![2, 2])] {
        let (mut seen, mut pages, mut page) = (vec![], vec![], first(limit));
        loop {
            let listed = db.store.list_runs(acme, &RunFilter::default(), page).await.unwrap();
            pages.push(listed.items.len());
            seen.extend(listed.items.iter().map(|run| run.id));
            let Some(next) = listed.next else { break };
            page = behind(next, limit);
        }
        assert_eq!((seen, pages), (made.clone(), sizes), "limit {limit}");
    }
    // A run that comes while somebody pages does not move what is behind the cursor.
    let page = db.store.list_runs(acme, &RunFilter::default(), first(2)).await.unwrap();
    db.submit(acme, chat).await;
    let rest = db.store.list_runs(acme, &RunFilter::default(), behind(page.next.unwrap(), 2)).await.unwrap();
    assert_eq!(rest.items.iter().map(|run| run.id).collect::<Vec<_>>(), made[2..]);
}

async fn each_filter_keeps_what_it_names(db: Database) {
    let acme = db.workspace("acme").await;
    let (one, two) = (db.chat(acme, "one").await.id, db.chat(acme, "two").await.id);
    let plain = db.submit(acme, one).await.run;
    let queued = db.submit(acme, one).await.run;
    let tagged = NewRun {
        agent: "other".to_owned(),
        tags: vec!["a\"b".to_owned(), "night".to_owned()],
        ..new_run(acme, Some(two))
    };
    let tagged = db.store.admit(tagged).await.unwrap().run;
    let all = vec![tagged.id, queued.id, plain.id];

    let status = |status: &[RunStatus]| RunFilter { status: status.to_vec(), ..Default::default() };
    assert_eq!(ids(&db, acme, RunFilter::default()).await, all);
    assert_eq!(ids(&db, acme, status(&[RunStatus::Queued])).await, [queued.id]);
    assert_eq!(ids(&db, acme, status(&[RunStatus::Pending, RunStatus::Queued])).await, all);
    assert!(ids(&db, acme, status(&[RunStatus::Succeeded])).await.is_empty());
    assert_eq!(
        ids(&db, acme, RunFilter { chat_id: Some(one), ..Default::default() }).await,
        [queued.id, plain.id]
    );
    assert_eq!(
        ids(&db, acme, RunFilter { agent: Some("other".into()), ..Default::default() }).await,
        [tagged.id]
    );
    for (tag, found) in
        [("night", vec![tagged.id]), ("a\"b", vec![tagged.id]), ("nigh", vec![]), ("0", vec![])]
    {
        let filter = RunFilter { tag: Some(tag.to_owned()), ..Default::default() };
        assert_eq!(ids(&db, acme, filter).await, found, "{tag}");
    }

    let sql = format!("update runs set created_at = 1000 where id = {}", db.id(queued.id.0));
    db.edit(&sql, |rows| rows.runs.get_mut(&queued.id).unwrap().run.created_at = 1_000).await;
    let after = |at| RunFilter { created_after: Some(at), ..Default::default() };
    let before = |at| RunFilter { created_before: Some(at), ..Default::default() };
    assert_eq!(ids(&db, acme, before(1001)).await, [queued.id]);
    assert!(ids(&db, acme, before(1000)).await.is_empty());
    assert_eq!(ids(&db, acme, after(1000)).await, [tagged.id, plain.id]);
    assert_eq!(ids(&db, acme, after(999)).await, all);
}

async fn filters_narrow_each_other(db: Database) {
    let acme = db.workspace("acme").await;
    let chat = db.chat(acme, "one").await.id;
    let filter = |status| RunFilter {
        status: vec![status],
        chat_id: Some(chat),
        agent: Some("helper".to_owned()),
        tag: Some("t".to_owned()),
        created_after: Some(0),
        created_before: Some(i64::MAX),
    };
    let tagged = NewRun { tags: vec!["t".to_owned()], ..new_run(acme, Some(chat)) };
    let run = db.store.admit(tagged).await.unwrap().run;
    db.submit(acme, chat).await;
    assert_eq!(ids(&db, acme, filter(RunStatus::Pending)).await, [run.id]);
    assert!(ids(&db, acme, filter(RunStatus::Queued)).await.is_empty());
}

async fn the_latest_run_is_the_newest_that_began(db: Database) {
    let acme = db.workspace("acme").await;
    let chat = db.chat(acme, "one").await.id;
    assert_eq!(latest(&db, acme, chat).await, None);

    let later = NewRun { start: Some(StartAt::At(i64::MAX / 2)), ..new_run(acme, Some(chat)) };
    let scheduled = db.store.admit(later).await.unwrap().run.id;
    assert_eq!(latest(&db, acme, chat).await, Some(scheduled), "none began: the newest");

    let active = db.submit(acme, chat).await.run.id;
    assert_eq!(latest(&db, acme, chat).await, Some(active), "it holds the slot");
    db.submit(acme, chat).await;
    assert_eq!(latest(&db, acme, chat).await, Some(active), "a queued one has not begun");
}

async fn a_queued_run_is_blocked_by_the_slot_holder(db: Database) {
    let acme = db.workspace("acme").await;
    let chat = db.chat(acme, "one").await.id;
    let active = db.submit(acme, chat).await.run;
    for _ in 0..2 {
        let queued = db.submit(acme, chat).await.run;
        assert_eq!(blocked_by(&db, &queued).await, Some(BlockedBy::Run { run_id: active.id }));
    }
}

async fn a_scheduled_run_is_blocked_by_its_time(db: Database) {
    let acme = db.workspace("acme").await;
    let run_at = db.store.now().await.unwrap() + 3_600_000;
    let later = NewRun { start: Some(StartAt::At(run_at)), ..new_run(acme, None) };
    let run = db.store.admit(later).await.unwrap().run;
    assert_eq!((run.status, run.run_at), (RunStatus::Scheduled, Some(run_at)));
    assert_eq!(blocked_by(&db, &run).await, Some(BlockedBy::RunAt { run_at }));
}

async fn a_pending_run_is_blocked_by_missing_and_by_busy_workers(db: Database) {
    let acme = db.workspace("acme").await;
    let first = db.store.admit(new_run(acme, None)).await.unwrap().run;
    assert_eq!(blocked_by(&db, &first).await, Some(BlockedBy::NoWorker));

    let worker = db.worker(1).await;
    assert_eq!(blocked_by(&db, &first).await, None);
    let claim = db.claim(worker).await;
    assert_eq!((claim.run.id, blocked_by(&db, &first).await), (first.id, None));

    let second = db.store.admit(new_run(acme, None)).await.unwrap().run;
    assert_eq!(blocked_by(&db, &second).await, Some(BlockedBy::Workers));
    db.worker(1).await;
    assert_eq!(blocked_by(&db, &second).await, None);

    db.edit("update workers set expires_at = 1", |rows| {
        rows.workers.values_mut().for_each(|lease| lease.expires_at = 1);
    })
    .await;
    assert_eq!(blocked_by(&db, &second).await, Some(BlockedBy::NoWorker), "expired leases do not count");
    let sql = format!("update jobs set run_at = 99999999999999 where run_id = {}", db.id(second.id.0));
    db.edit(&sql, |rows| rows.jobs.get_mut(&second.id).unwrap().run_at = 99_999_999_999_999).await;
    assert_eq!(blocked_by(&db, &second).await, Some(BlockedBy::RunAt { run_at: 99_999_999_999_999 }));
}

async fn messages_are_paged_oldest_first(db: Database) {
    let acme = db.workspace("acme").await;
    let chat = db.chat(acme, "one").await.id;
    for _ in 0..3 {
        db.submit(acme, chat).await;
    }
    let expected: Vec<_> = (1..=3).flat_map(|turn| [(turn, 0), (turn, 1)]).collect();
    for limit in 1..=6 {
        let (mut seen, mut page) = (vec![], first(limit));
        loop {
            let listed = db.store.messages(acme, chat, page).await.unwrap();
            seen.extend(listed.items.iter().map(|message| (message.turn, message.position)));
            let Some(next) = listed.next else { break };
            page = behind(next, limit);
        }
        assert_eq!(seen, expected, "limit {limit}");
    }
    let messages = db.store.messages(acme, chat, first(2)).await.unwrap().items;
    assert_eq!(messages[1].in_reply_to, Some(messages[0].id));
    assert_eq!((messages[0].parts.len(), messages[1].parts.len()), (1, 0));
    assert_eq!(db.store.message(acme, messages[0].id).await.unwrap(), messages[0]);
}

async fn records_hold_steps_calls_and_the_log_behind_the_steps(db: Database) {
    let acme = db.workspace("acme").await;
    let run = db.store.admit(new_run(acme, None)).await.unwrap().run;
    let claim = db.claim(db.worker(1).await).await;
    let record = db.store.records(acme, &[run.id]).await.unwrap().remove(0);
    assert_eq!((record.steps.len(), record.calls.len()), (0, 0));
    assert_eq!(record.tail.last().unwrap().last, claim.last_seq, "without steps the tail is the whole log");
    assert_eq!(record.tail[0].first, 1);

    let begin = claim.last_seq + 1;
    db.commit(append(&claim, begin, deltas(1, 3))).await;
    let mut saving = append(&claim, begin + 3, deltas(1, 1));
    saving.events.push(
        EventData::StepFinished {
            finish_reason: FinishReason::ToolCalls,
            usage: Usage::default(),
            tool_calls: 2,
        }
        .of_step(1, 1),
    );
    saving.steps = vec![step(&claim, 1, begin, begin + 4)];
    saving.calls = vec![planned(&claim, 1, 1), planned(&claim, 1, 2)];
    db.commit(saving).await;
    db.commit(append(&claim, begin + 5, deltas(2, 2))).await;
    db.commit(append(&claim, begin + 7, deltas(2, 1))).await;

    let record = db.store.records(acme, &[run.id]).await.unwrap().remove(0);
    let saved = step(&claim, 1, begin, begin + 4);
    assert_eq!(record.steps.len(), 1);
    let found = &record.steps[0];
    assert_eq!((&found.output, found.usage, found.epoch), (&saved.output, saved.usage, claim.epoch));
    assert_eq!((found.first_seq, found.last_seq, found.attempt), (begin, begin + 4, 1));
    assert_eq!(
        record.calls.iter().map(|call| call.call_id.as_str()).collect::<Vec<_>>(),
        ["call_1_1", "call_1_2"]
    );
    assert_eq!(spans(&record.tail), [(begin + 5, begin + 6), (begin + 7, begin + 7)]);

    let mut ending = append(&claim, begin + 8, vec![]);
    ending.events.push(
        EventData::RunFinished {
            status: RunStatus::Succeeded,
            reason: Reason::Done,
            error: None,
            usage: Usage::default(),
            step_count: 1,
        }
        .of_run(),
    );
    ending.ending = Some(Ending::done());
    db.commit(ending).await;
    let record = db.store.records(acme, &[run.id]).await.unwrap().remove(0);
    assert!(record.tail.last().unwrap().is_end());
    assert_eq!(blocked_by(&db, &run).await, None);
    assert_eq!(db.store.run(acme, run.id).await.unwrap().status, RunStatus::Succeeded);
}

async fn records_come_in_the_order_asked_for(db: Database) {
    let acme = db.workspace("acme").await;
    let a = db.store.admit(new_run(acme, None)).await.unwrap().run.id;
    let b = db.store.admit(new_run(acme, None)).await.unwrap().run.id;
    let unknown = RunId::generate();
    let records = db.store.records(acme, &[b, unknown, a, b]).await.unwrap();
    assert_eq!(records.iter().map(|record| record.run_id).collect::<Vec<_>>(), [b, unknown, a, b]);
    assert_eq!(records.iter().map(|record| record.tail.len()).collect::<Vec<_>>(), [1, 0, 1, 1]);
    assert!(db.store.records(acme, &[]).await.unwrap().is_empty());
}
