//! Reading the log: from every cursor, all that is behind it, in order.

use super::{
    conformance,
    fixtures::{append, cursor, deltas, new_run, spans},
    harness::Database,
};
use crate::{
    domain::{ids::WorkspaceId, run::Run},
    store::{LogCursor, RunFilter},
};

conformance! {
    every_cursor_gets_what_is_behind_it,
    a_limit_cuts_and_the_next_read_goes_on,
    many_runs_are_read_with_one_call,
    a_run_with_much_to_read_does_not_keep_others_waiting,
    a_log_that_grows_is_read_without_gap_or_repeat,
}

/// A claimed run whose log behind the claim has segments of these sizes; and the number of the claim.
async fn logged(db: &Database, workspace: WorkspaceId, sizes: &[usize]) -> (Run, i64) {
    let run = db.store.admit(new_run(workspace, None)).await.unwrap().run;
    let claim = db.claim(db.worker(1).await).await;
    assert_eq!(claim.run.id, run.id);
    let mut next = claim.last_seq + 1;
    for &size in sizes {
        db.commit(append(&claim, next, deltas(1, size))).await;
        next += size as i64;
    }
    (run, claim.last_seq)
}

async fn every_cursor_gets_what_is_behind_it(db: Database) {
    let acme = db.workspace("acme").await;
    let (run, claimed) = logged(&db, acme, &[1, 3, 2, 1]).await;
    let last = claimed + 7;
    let whole = db.store.read_log(cursor(&run, 0), 100).await.unwrap();
    assert_eq!((whole[0].first, whole.last().unwrap().last), (1, last));
    assert!(whole.windows(2).all(|pair| pair[1].first == pair[0].last + 1), "{:?}", spans(&whole));
    assert!(
        whole.iter().all(|segment| segment.is_consistent() && segment.at > 0 && segment.run_id == run.id)
    );
    for after in -1..=last + 2 {
        let expected: Vec<_> = spans(&whole).into_iter().filter(|(_, last)| *last > after).collect();
        let one = db.store.read_log(cursor(&run, after), 100).await.unwrap();
        assert_eq!(spans(&one), expected, "after {after}");
        let among_many = db.store.read_logs(&[cursor(&run, after)], 100).await.unwrap();
        assert_eq!(spans(&among_many), expected, "after {after}");
    }
    for after in [i64::MIN, i64::MAX] {
        let count = if after < 0 { whole.len() } else { 0 };
        assert_eq!(db.store.read_log(cursor(&run, after), 100).await.unwrap().len(), count);
        assert_eq!(db.store.read_logs(&[cursor(&run, after)], 100).await.unwrap().len(), count);
    }
}

async fn a_limit_cuts_and_the_next_read_goes_on(db: Database) {
    let acme = db.workspace("acme").await;
    let (run, _) = logged(&db, acme, &[2, 1, 4, 1, 1]).await;
    let whole = spans(&db.store.read_log(cursor(&run, 0), 100).await.unwrap());
    for limit in 1..=whole.len() as u32 {
        let (mut seen, mut after) = (vec![], 0);
        loop {
            let read = db.store.read_log(cursor(&run, after), limit).await.unwrap();
            assert!(read.len() <= limit as usize);
            let Some(last) = read.last() else { break };
            after = last.last;
            seen.extend(spans(&read));
        }
        assert_eq!(seen, whole, "limit {limit}");
    }
}

async fn many_runs_are_read_with_one_call(db: Database) {
    let acme = db.workspace("acme").await;
    let mut runs = vec![];
    for size in 1..=3 {
        runs.push(logged(&db, acme, &[size, 1]).await);
    }
    let cursors: Vec<_> = runs.iter().map(|(run, claimed)| cursor(run, *claimed)).collect();
    let read = db.store.read_logs(&cursors, 100).await.unwrap();
    for (size, (run, claimed)) in (1..).zip(&runs) {
        let of_run: Vec<_> = read.iter().filter(|segment| segment.run_id == run.id).cloned().collect();
        let expected = [(claimed + 1, claimed + size), (claimed + size + 1, claimed + size + 1)];
        assert_eq!(spans(&of_run), expected, "of a run each ascending");
    }
    assert_eq!(read.len(), 6);
    assert!(db.store.read_logs(&[], 100).await.unwrap().is_empty());
}

async fn a_run_with_much_to_read_does_not_keep_others_waiting(db: Database) {
    let acme = db.workspace("acme").await;
    let (long, _) = logged(&db, acme, &[1; 20]).await;
    let (short, claimed) = logged(&db, acme, &[1]).await;
    let mut cursors = [cursor(&long, 0), cursor(&short, claimed)];
    let read = db.store.read_logs(&cursors, 3).await.unwrap();
    assert_eq!(read.len(), 3);
    assert!(read.iter().any(|segment| segment.run_id == short.id), "{read:?}");

    let mut reads = 0;
    loop {
        let read = db.store.read_logs(&cursors, 3).await.unwrap();
        if read.is_empty() {
            break;
        }
        for segment in read {
            let at = cursors.iter_mut().find(|cursor| cursor.run_id == segment.run_id).unwrap();
            assert_eq!(segment.first, at.after + 1);
            at.after = segment.last;
        }
        reads += 1;
    }
    let end = db.store.run(acme, long.id).await.unwrap().last_seq;
    assert_eq!((cursors[0].after, cursors[1].after), (end, claimed + 1));
    assert!(reads >= 7, "{reads}");
}

async fn a_log_that_grows_is_read_without_gap_or_repeat(db: Database) {
    const SEGMENTS: i64 = 60;
    let acme = db.workspace("acme").await;
    let run = db.store.admit(new_run(acme, None)).await.unwrap().run;
    let claim = db.claim(db.worker(1).await).await;
    let end = claim.last_seq + SEGMENTS * 2;
    let writer = async {
        for n in 0..SEGMENTS {
            db.commit(append(&claim, claim.last_seq + 1 + n * 2, deltas(1, 2))).await;
        }
    };
    let reader = async |limit: u32, at_once: bool| {
        let mut at = cursor(&run, 0);
        while at.after < end {
            let read = if at_once {
                db.store.read_logs(&[at], limit).await.unwrap()
            } else {
                db.store.read_log(at, limit).await.unwrap()
            };
            for segment in read {
                assert_eq!(segment.first, at.after + 1);
                at = LogCursor { after: segment.last, ..at };
            }
        }
        assert_eq!(at.after, end);
    };
    tokio::join!(writer, reader(1, false), reader(100, false), reader(7, true));
    let listed = db.store.list_runs(acme, &RunFilter::default(), super::fixtures::first(1)).await.unwrap();
    assert_eq!(listed.items[0].last_seq, end);
}
