//! Reads pages of logs for all tails of the process: a few reads at a time, and whoever waits for one is
//! served together with all others who wait. So an idle store is asked at once, and two thousand tails
//! that have lost their feed in the same moment cost some dozens of queries, or one if they share a run.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::{Semaphore, oneshot};

use super::{LogCursor, LogReader, StoreError};
use crate::{
    domain::{event::Segment, ids::RunId},
    store::bounded,
};

/// Reads under way: tails leave most of the store's connections to others.
const READS: usize = 4;
/// Runs per query.
const RUNS: usize = 64;
/// Segments per query for one run: what a tail holds at most while its client takes them one by one.
const PAGE: usize = 100;
/// Segments per query for several runs.
const SHARED_PAGE: usize = 1000;
/// How long a page is worth waiting for. A read that is not answered goes on without us, and so does one whose tails have
/// all gone away: a query is never dropped half-way.
const PATIENCE: Duration = Duration::from_secs(12);

type Answer = Result<Page, Arc<StoreError>>;

#[derive(Clone)]
pub(super) struct Page {
    pub(super) segments: Vec<Arc<Segment>>,
    /// Whether the log had no more when it was read.
    pub(super) is_last: bool,
}

pub(super) struct Reader {
    log: Arc<dyn LogReader>,
    waiting: Mutex<VecDeque<Request>>,
    permits: Semaphore,
}

struct Request {
    cursor: LogCursor,
    reply: oneshot::Sender<Answer>,
}

/// The requests that one query answers: per run one cursor, and all who asked with it.
type Batch = BTreeMap<RunId, (LogCursor, Vec<oneshot::Sender<Answer>>)>;

impl Reader {
    pub(super) fn new(log: Arc<dyn LogReader>) -> Self {
        Self { log, waiting: Mutex::default(), permits: Semaphore::new(READS) }
    }

    /// The next page of one log. Who gets a permit reads for everyone who waits, so there is no task behind
    /// this, and a reader that is dropped half-way costs the others another try.
    pub(super) async fn read(&self, cursor: LogCursor) -> Answer {
        loop {
            let (reply, mut answer) = oneshot::channel();
            self.waiting().push_back(Request { cursor, reply });
            loop {
                tokio::select! {
                    biased;
                    answered = &mut answer => match answered {
                        Ok(answer) => return answer,
                        Err(_) => break,
                    },
                    permit = self.permits.acquire() => {
                        let _permit = permit.expect("the semaphore is never closed");
                        let batch = self.take();
                        self.serve(batch).await;
                    }
                }
            }
        }
    }

    /// One look behind many cursors. The poll, which takes no turns with the tails, asks for one too.
    pub(super) async fn look(&self, cursors: &[LogCursor], limit: u32) -> Result<Vec<Segment>, StoreError> {
        let (log, cursors) = (Arc::clone(&self.log), cursors.to_vec());
        bounded(PATIENCE, async move { log.read_logs(&cursors, limit).await }).await
    }

    fn take(&self) -> Batch {
        let mut batch = Batch::new();
        let mut later = Vec::new();
        let mut waiting = self.waiting();
        while batch.len() < RUNS {
            let Some(request) = waiting.pop_front() else { break };
            if request.reply.is_closed() {
                continue;
            }
            match batch.get_mut(&request.cursor.run_id) {
                None => {
                    batch.insert(request.cursor.run_id, (request.cursor, vec![request.reply]));
                }
                Some((cursor, replies)) if *cursor == request.cursor => replies.push(request.reply),
                Some(_) => later.push(request),
            }
        }
        later.into_iter().rev().for_each(|request| waiting.push_front(request));
        batch
    }

    async fn serve(&self, batch: Batch) {
        if batch.len() > 1 {
            let cursors: Vec<_> = batch.values().map(|(cursor, _)| *cursor).collect();
            match self.look(&cursors, SHARED_PAGE as u32).await {
                Ok(segments) => return share(batch, segments),
                Err(error) if error.is_transient() => return refuse(batch, &Arc::new(error)),
                // One unreadable log must not spoil the others: they are read one by one.
                Err(_) => {}
            }
        }
        for (cursor, replies) in batch.into_values() {
            let log = Arc::clone(&self.log);
            let read = bounded(PATIENCE, async move { log.read_log(cursor, PAGE as u32).await }).await;
            let read = read.map(|segments| Page {
                is_last: segments.len() < PAGE,
                segments: segments.into_iter().map(Arc::new).collect(),
            });
            answer(replies, &read.map_err(Arc::new));
        }
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Request>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn share(batch: Batch, segments: Vec<Segment>) {
    // The store gives each run a part of the answer only, so a run is known to have no more when it got
    // nothing, and even that only when the limit has cut nothing off. Whoever got something asks again.
    let is_whole = segments.len() < SHARED_PAGE;
    let mut found: BTreeMap<RunId, Vec<Arc<Segment>>> = BTreeMap::new();
    for segment in segments {
        found.entry(segment.run_id).or_default().push(Arc::new(segment));
    }
    for (run, (_, replies)) in batch {
        let mut segments = found.remove(&run).unwrap_or_default();
        let is_last = is_whole && segments.is_empty();
        segments.truncate(PAGE);
        answer(replies, &Ok(Page { segments, is_last }));
    }
}

fn refuse(batch: Batch, error: &Arc<StoreError>) {
    for (_, replies) in batch.into_values() {
        answer(replies, &Err(Arc::clone(error)));
    }
}

fn answer(replies: Vec<oneshot::Sender<Answer>>, answer: &Answer) {
    for reply in replies {
        // Fails for a tail that has gone meanwhile.
        let _ = reply.send(answer.clone());
    }
}
