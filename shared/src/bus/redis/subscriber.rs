//! Holds the one connection that carries all subscriptions, and restores it for ever. Whenever messages may
//! have been missed, every subscriber hears `Resync`: when the connection goes, so that they look at
//! once, and when it is back with all its subscriptions, so that nothing falls between.

use std::{
    collections::HashSet,
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, Client, PushInfo, PushKind, RedisResult, Value, aio::MultiplexedConnection,
};
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::{MissedTickBehavior, interval, sleep},
};

use super::{
    RECONNECT,
    wire::{Channel, Names, decode_segment, decode_signal},
};
use crate::{
    bus::{Live, fanout::Fanout},
    domain::ids::RunId,
    jitter::jitter,
};

const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// How often the connection is tried: a peer that vanished without a word is noticed within this and one answer.
const PING_EVERY: Duration = Duration::from_secs(2);
/// Channels per command, so that no answer is too long for its time.
const CHANNELS: usize = 500;

/// What this process's subscribers ask for, in the order in which they asked.
pub(super) enum Change {
    /// Somebody listens to the run; answered when its channel is subscribed.
    Follow(RunId, oneshot::Sender<()>),
    /// The run lost its last subscriber, unless somebody has joined since.
    Leave(RunId),
}

pub(super) struct Subscriber {
    client: Client,
    names: Names,
    fanout: Arc<Fanout>,
    connected: Arc<AtomicBool>,
    changes: mpsc::UnboundedReceiver<Change>,
}

impl Subscriber {
    pub(super) fn new(
        client: Client,
        names: Names,
        fanout: Arc<Fanout>,
        connected: Arc<AtomicBool>,
        changes: mpsc::UnboundedReceiver<Change>,
    ) -> Self {
        Self { client, names, fanout, connected, changes }
    }

    pub(super) async fn run(mut self) {
        let mut failures = 0;
        loop {
            let lost = Arc::new(Notify::new());
            match self.open(&lost).await {
                Ok((connection, subscribed)) => {
                    if failures > 0 {
                        tracing::info!("Redis is back: live feeds resume");
                    }
                    // In this order: who sees the bus connected is not interrupted any more.
                    self.fanout.resync_all();
                    self.connected.store(true, Ordering::Release);
                    let error = self.serve(connection, subscribed, &lost).await.err();
                    self.connected.store(false, Ordering::Release);
                    self.fanout.resync_all();
                    let error = error.as_ref().map(tracing::field::display);
                    tracing::warn!(error, "Redis is lost: tails read the log until it is back");
                    failures = 1;
                }
                Err(error) => {
                    if failures == 0 {
                        tracing::warn!(%error, "Redis is not reachable: tails read the log until it is");
                    }
                    failures += 1;
                }
            }
            self.meanwhile(sleep(RECONNECT.wait(failures, jitter()))).await;
        }
    }

    /// Connects and subscribes to everything that is wanted at this moment.
    async fn open(&mut self, lost: &Arc<Notify>) -> RedisResult<(MultiplexedConnection, HashSet<RunId>)> {
        let (names, fanout, lost) = (self.names.clone(), Arc::clone(&self.fanout), Arc::clone(lost));
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(ANSWER_WITHIN))
            .set_response_timeout(Some(ANSWER_WITHIN))
            .set_push_sender(move |push| {
                route(&names, &fanout, &lost, &push);
                Ok::<(), redis::aio::SendError>(())
            });
        let client = self.client.clone();
        let connecting = async move { client.get_multiplexed_async_connection_with_config(&config).await };
        let mut connection = self.meanwhile(connecting).await?;

        // From here on changes stay in their queue: whoever joins after the next line is found there.
        let runs = self.fanout.all();
        connection.subscribe(self.names.signal()).await?;
        for some in runs.chunks(CHANNELS) {
            let channels: Vec<_> = some.iter().map(|run| self.names.run(*run)).collect();
            connection.subscribe(channels).await?;
        }
        Ok((connection, runs.into_iter().collect()))
    }

    /// Serves one connection until it fails or is lost.
    async fn serve(
        &mut self,
        mut connection: MultiplexedConnection,
        mut subscribed: HashSet<RunId>,
        lost: &Notify,
    ) -> RedisResult<()> {
        let mut pings = interval(PING_EVERY);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                biased;
                () = lost.notified() => return Ok(()),
                taken = self.changes.recv_many(&mut batch, CHANNELS) => {
                    if taken == 0 {
                        // The bus was dropped, and this task is about to be aborted.
                        return Ok(());
                    }
                    self.apply(&mut connection, &mut subscribed, &mut batch).await?;
                }
                _ = pings.tick() => redis::cmd("PING").exec_async(&mut connection).await?,
            }
        }
    }

    /// Brings the connection's subscriptions in line with what is wanted now, not with each wish on the way.
    async fn apply(
        &self,
        connection: &mut MultiplexedConnection,
        subscribed: &mut HashSet<RunId>,
        batch: &mut Vec<Change>,
    ) -> RedisResult<()> {
        let (mut add, mut remove, mut waiting) = (HashSet::new(), Vec::new(), Vec::new());
        for change in batch.drain(..) {
            match change {
                Change::Follow(run, live) => {
                    if !subscribed.contains(&run) && self.fanout.has(run) {
                        add.insert(run);
                    }
                    waiting.push((run, live));
                }
                Change::Leave(run) => {
                    if !self.fanout.has(run) && subscribed.remove(&run) {
                        remove.push(self.names.run(run));
                    }
                }
            }
        }
        // In this order: a run may have been left and, after the look above, joined again.
        if !remove.is_empty() {
            connection.unsubscribe(remove).await?;
        }
        if !add.is_empty() {
            let channels: Vec<_> = add.iter().map(|run| self.names.run(*run)).collect();
            connection.subscribe(channels).await?;
            subscribed.extend(add);
        }
        for (run, live) in waiting {
            if live.send(()).is_err() {
                // It did not wait so long and has read the log already, perhaps too early.
                self.fanout.deliver(run, Live::Resync);
            }
        }
        Ok(())
    }

    /// Runs `work` while there is no connection: who subscribes meanwhile is told at once to go on without.
    async fn meanwhile<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                Some(_) = self.changes.recv() => {}
            }
        }
    }
}

/// Called by the connection for every push, so it never waits.
fn route(names: &Names, fanout: &Fanout, lost: &Notify, push: &PushInfo) {
    match (&push.kind, push.data.as_slice()) {
        (PushKind::Disconnection, _) => lost.notify_one(),
        (PushKind::Message, [Value::BulkString(channel), Value::BulkString(payload)]) => {
            hear(names, fanout, channel, payload);
        }
        _ => {}
    }
}

fn hear(names: &Names, fanout: &Fanout, channel: &[u8], payload: &[u8]) {
    match names.parse(channel) {
        Some(Channel::Run(run)) if fanout.has(run) => {
            if let Some(segment) = decode_segment(run, payload) {
                fanout.deliver(run, Live::Segment(Arc::new(segment)));
            } else {
                tracing::debug!(run.id = %run, "a message that is no segment of its run was dropped");
            }
        }
        Some(Channel::Signal) => {
            if let Some(signal) = decode_signal(payload) {
                fanout.signal(signal);
            }
        }
        Some(Channel::Run(_)) | None => {}
    }
}
