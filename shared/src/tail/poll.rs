//! Looks at the log on behalf of all waiting tails of the process, one query for all of them, and puts what
//! it finds into the same feeds that the bus fills. Behind a working bus this finds what was lost on
//! the way; without a bus it is how tokens flow. It runs only while somebody follows a run.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{
    Inner, LogCursor,
    watchers::{Look, Place, Watcher},
};
use crate::{
    bus::Live,
    domain::{
        event::Segment,
        ids::{RunId, Seq},
    },
    mutant::{self, Mutant},
};

/// The rhythm without a bus.
const TICK: Duration = Duration::from_millis(100);
/// The rhythm behind a bus that works.
const CONNECTED: Duration = Duration::from_secs(1);
/// Runs per query.
const RUNS: usize = 500;
/// Segments and events per run that are handed around at once: half a feed's ring, and less than the part of an
/// answer that the store gives each run. A run that has more is left to its tails to read.
const SEGMENTS: usize = 16;
const EVENTS: Seq = 32;
/// Segments per query. More have gathered only after trouble, and then the tails read for themselves.
const LIMIT: u32 = 4000;

/// Enters a tail, and sees to it that the poll runs.
pub(super) fn watch(inner: &Arc<Inner>, cursor: LogCursor) -> Watcher {
    let (watcher, starts) = inner.watchers.add(cursor);
    if starts {
        // Ends by itself within a tick of its last tail, or of the end of `Tails`.
        tokio::spawn(poll(Arc::downgrade(inner)));
    }
    watcher
}

async fn poll(inner: Weak<Inner>) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut looked_at = Instant::now();
    loop {
        ticks.tick().await;
        let Some(inner) = inner.upgrade() else { return };
        if inner.watchers.poll_may_end() {
            return;
        }
        if mutant::is(Mutant::TailEndFromRedisOnly) {
            continue;
        }
        if !inner.bus.is_connected() || looked_at.elapsed() >= CONNECTED {
            looked_at = Instant::now();
            inner.look().await;
        }
    }
}

impl Inner {
    async fn look(&self) {
        let looks: Vec<_> = self.watchers.looks().into_iter().collect();
        for some in looks.chunks(RUNS) {
            let cursors: Vec<_> = some
                .iter()
                .map(|((workspace_id, run_id), look)| LogCursor {
                    workspace_id: *workspace_id,
                    run_id: *run_id,
                    after: look.after,
                })
                .collect();
            match self.reader.look(&cursors, LIMIT).await {
                Ok(segments) => self.offer(some, segments),
                Err(error) => {
                    tracing::debug!(%error, runs = some.len(), "the log could not be polled");
                    if !error.is_transient() {
                        // One bad row must not hide the others: each tail finds out about its own log.
                        for ((_, run), _) in some {
                            self.bus.deliver(*run, Live::Resync);
                        }
                    }
                }
            }
        }
    }

    fn offer(&self, looks: &[(Place, Look)], segments: Vec<Segment>) {
        let is_whole = segments.len() < LIMIT as usize;
        let mut found: BTreeMap<RunId, Vec<Segment>> = BTreeMap::new();
        for segment in segments {
            found.entry(segment.run_id).or_default().push(segment);
        }
        for ((_, run), look) in looks {
            let segments = found.remove(run).unwrap_or_default();
            let last = segments.last().map_or(look.after, |segment| segment.last);
            look.offered(last);
            // What is too much to hand around, and what may not be all, the tails read for themselves.
            if !is_whole || segments.len() > SEGMENTS || last - look.after > EVENTS {
                self.bus.deliver(*run, Live::Resync);
                continue;
            }
            for segment in segments {
                self.bus.deliver(*run, Live::Segment(Arc::new(segment)));
            }
        }
    }
}
