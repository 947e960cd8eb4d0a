//! Who is watching: replay from a cursor, then follow, no gap, no repeat, until the run's end.
//!
//! The log is the truth and the bus only shortens the wait: a tail subscribes, reads the log, goes on with
//! live segments, and reads the log again whenever a number is missing or the feed was interrupted. Behind
//! all tails of a process one [poll](poll) looks at the log, so that a lost message, even the last one,
//! delays a tail and never stops it. A tail is a cursor and a place in a ring that all tails of its run share.

use std::{sync::Arc, time::Duration};

use async_stream::stream;
use futures::Stream;
use tokio::time::{Instant, sleep};

use self::{
    reader::{Page, Reader},
    watchers::{Watcher, Watchers},
};
use crate::{
    bus::{Bus, Live, Subscription},
    domain::{
        event::{Event, Segment},
        ids::Seq,
        retry::Backoff,
    },
    jitter::jitter,
    store::{LogCursor, LogReader, StoreError},
};

mod poll;
mod reader;
#[cfg(test)]
mod tests;
mod watchers;

/// How long a tail keeps trying to read a log that cannot be read.
const PATIENCE: Duration = Duration::from_secs(30);
const RETRY: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));

/// Why a tail broke off. It must then be reset, not closed: a clean end means that the run ended.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TailError {
    #[error("the log could not be read for a while")]
    Unavailable(#[source] Arc<StoreError>),
    #[error("the log cannot be read")]
    Unreadable(#[source] Arc<StoreError>),
}

/// The part of a segment that a tail has not seen yet. The segment is shared with every other tail of the run.
#[derive(Clone, Debug)]
pub struct Slice {
    pub segment: Arc<Segment>,
    /// Everything up to this number was seen before.
    pub after: Seq,
}

impl Slice {
    /// The new events with their numbers.
    pub fn events(&self) -> impl Iterator<Item = (Seq, &Event)> {
        self.segment.after(self.after)
    }

    /// The number to go on from after this slice.
    pub fn last(&self) -> Seq {
        self.segment.last
    }

    /// Whether nothing follows this slice.
    pub fn is_end(&self) -> bool {
        self.segment.is_end()
    }
}

/// All tails of this process. Cheap to clone.
#[derive(Clone)]
pub struct Tails(Arc<Inner>);

struct Inner {
    bus: Arc<dyn Bus>,
    reader: Reader,
    watchers: Watchers,
    patience: Duration,
}

impl Tails {
    pub fn new(log: Arc<dyn LogReader>, bus: Arc<dyn Bus>) -> Self {
        Self::with_patience(log, bus, PATIENCE)
    }

    fn with_patience(log: Arc<dyn LogReader>, bus: Arc<dyn Bus>, patience: Duration) -> Self {
        Self(Arc::new(Inner { bus, reader: Reader::new(log), watchers: Watchers::default(), patience }))
    }

    /// Every event of the run behind the cursor, each once and in order, until its last one. The caller has
    /// checked that the run is the workspace's, and that the cursor is not beyond the log as it stands now.
    pub fn follow(&self, cursor: LogCursor) -> impl Stream<Item = Result<Slice, TailError>> + Send + use<> {
        tail(Arc::clone(&self.0), cursor, false)
    }

    /// The same for a run that is known to be over: its log is complete, so nothing is subscribed to, and
    /// the stream ends with the log.
    pub fn replay(&self, cursor: LogCursor) -> impl Stream<Item = Result<Slice, TailError>> + Send + use<> {
        tail(Arc::clone(&self.0), cursor, true)
    }

    /// How many tails follow a run at present.
    pub fn following(&self) -> usize {
        self.0.watchers.len()
    }
}

fn tail(
    inner: Arc<Inner>,
    mut cursor: LogCursor,
    is_over: bool,
) -> impl Stream<Item = Result<Slice, TailError>> + Send {
    stream! {
        // Subscribed before the first read: what is committed after that read arrives live.
        let mut feed = if is_over { None } else { Some(Box::pin(Feed::open(&inner, cursor)).await) };
        loop {
            loop {
                // Boxed, as every future in here that is needed for a moment only: what a tail holds for
                // hours is what lies in this stream.
                let Page { segments, is_last } = match Box::pin(inner.read_log(cursor)).await {
                    Ok(page) => page,
                    Err(error) => {
                        yield Err(error);
                        return;
                    }
                };
                for segment in segments {
                    if segment.last > cursor.after {
                        let slice = Slice { after: cursor.after, segment };
                        let is_end = slice.is_end();
                        cursor.after = slice.last();
                        yield Ok(slice);
                        if is_end {
                            return;
                        }
                    }
                }
                if is_last {
                    break;
                }
            }
            let Some(feed) = &mut feed else { return };
            feed.watcher.caught_up();
            loop {
                match feed.next(cursor.after).await {
                    Live::Segment(segment) if segment.last <= cursor.after => {
                        if segment.is_end() {
                            return;
                        }
                    }
                    Live::Segment(segment) if segment.first <= cursor.after + 1 => {
                        let slice = Slice { after: cursor.after, segment };
                        let is_end = slice.is_end();
                        cursor.after = slice.last();
                        yield Ok(slice);
                        if is_end {
                            return;
                        }
                    }
                    // A number is missing, or may be.
                    Live::Segment(_) | Live::Resync => break,
                }
            }
        }
    }
}

/// A tail's place among the subscribers of its run, and among the tails that the poll looks after.
struct Feed {
    subscription: Subscription,
    watcher: Watcher,
}

impl Feed {
    async fn open(inner: &Arc<Inner>, cursor: LogCursor) -> Self {
        let subscription = inner.bus.subscribe(cursor.run_id).await;
        Self { subscription, watcher: poll::watch(inner, cursor) }
    }

    async fn next(&mut self, last: Seq) -> Live {
        let _waiting = self.watcher.wait(last);
        self.subscription.recv().await
    }
}

impl Inner {
    /// A page of the log, whatever short trouble the store has.
    async fn read_log(&self, cursor: LogCursor) -> Result<Page, TailError> {
        let started = Instant::now();
        let mut retries = 0;
        loop {
            match self.reader.read(cursor).await {
                Ok(page) => return Ok(page),
                Err(error) if !error.is_transient() => return Err(TailError::Unreadable(error)),
                Err(error) if started.elapsed() >= self.patience => {
                    return Err(TailError::Unavailable(error));
                }
                Err(error) => {
                    tracing::debug!(run.id = %cursor.run_id, %error, retries, "a tail could not read the log and tries again");
                    retries += 1;
                    sleep(RETRY.wait(retries, jitter())).await;
                }
            }
        }
    }
}
