//! Sends what this process publishes: a bounded queue, drained by one task that pipelines whatever has
//! gathered while the last answer was under way. Redis being slow or gone costs dropped hints only.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use redis::{AsyncConnectionConfig, Client, Pipeline, RedisResult, aio::MultiplexedConnection};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{
    RECONNECT,
    wire::{Names, encode_segment, encode_signal},
};
use crate::{bus::Signal, domain::event::Segment, jitter::jitter};

const QUEUE: usize = 4096;
/// What the queue may hold in event data: a stalled Redis must not fill the memory of a busy worker.
const QUEUE_BYTES: usize = 16 << 20;
const PIPELINE: usize = 256;
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
const LOG_EVERY: Duration = Duration::from_secs(10);

pub(super) enum Outgoing {
    Segment(Arc<Segment>),
    Signal(Signal),
    /// Answered when everything pushed before has been tried.
    Flush(oneshot::Sender<()>),
}

impl Outgoing {
    fn weight(&self) -> usize {
        match self {
            Self::Segment(segment) => segment.events.iter().map(|event| event.data.get().len() + 64).sum(),
            Self::Signal(_) | Self::Flush(_) => 0,
        }
    }
}

pub(super) struct Publisher {
    queue: mpsc::Sender<Outgoing>,
    queued_bytes: Arc<AtomicUsize>,
}

/// The task behind a [`Publisher`].
pub(super) struct Publishing {
    client: Client,
    names: Names,
    queue: mpsc::Receiver<Outgoing>,
    queued_bytes: Arc<AtomicUsize>,
    connection: Option<MultiplexedConnection>,
    failures: u32,
    retry_at: Instant,
    logged_at: Option<Instant>,
}

impl Publisher {
    pub(super) fn new(client: Client, names: Names) -> (Self, Publishing) {
        let (sender, queue) = mpsc::channel(QUEUE);
        let queued_bytes = Arc::new(AtomicUsize::new(0));
        let publishing = Publishing {
            client,
            names,
            queue,
            queued_bytes: Arc::clone(&queued_bytes),
            connection: None,
            failures: 0,
            retry_at: Instant::now(),
            logged_at: None,
        };
        (Self { queue: sender, queued_bytes }, publishing)
    }

    /// Never waits. What does not fit is dropped.
    pub(super) fn push(&self, outgoing: Outgoing) {
        let weight = outgoing.weight();
        let before = self.queued_bytes.fetch_add(weight, Ordering::Relaxed);
        let fits = before == 0 || before + weight <= QUEUE_BYTES;
        if !fits || self.queue.try_send(outgoing).is_err() {
            self.queued_bytes.fetch_sub(weight, Ordering::Relaxed);
        }
    }

    pub(super) async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        if self.queue.send(Outgoing::Flush(done)).await.is_ok() {
            let _ = flushed.await;
        }
    }
}

impl Publishing {
    pub(super) async fn run(mut self) {
        // Connect before there is something to send: the first token should not pay for the handshake.
        self.connect().await;
        let mut batch = Vec::new();
        while self.queue.recv_many(&mut batch, PIPELINE).await > 0 {
            let mut pipeline = redis::pipe();
            let mut flushed = Vec::new();
            for outgoing in batch.drain(..) {
                self.queued_bytes.fetch_sub(outgoing.weight(), Ordering::Relaxed);
                match outgoing {
                    Outgoing::Segment(segment) => {
                        if let Some(payload) = encode_segment(&segment) {
                            pipeline.publish(self.names.run(segment.run_id), payload).ignore();
                        }
                    }
                    Outgoing::Signal(signal) => {
                        pipeline.publish(self.names.signal(), encode_signal(&signal)).ignore();
                    }
                    Outgoing::Flush(done) => flushed.push(done),
                }
            }
            if !pipeline.is_empty() {
                self.send(&pipeline).await;
            }
            for done in flushed {
                let _ = done.send(());
            }
        }
    }

    /// Tries twice, since an idle connection shows only now that its server was restarted. A segment that
    /// goes out twice does no harm.
    async fn send(&mut self, pipeline: &Pipeline) {
        for _ in 0..2 {
            if self.connection.is_none() && Instant::now() >= self.retry_at {
                self.connect().await;
            }
            let Some(connection) = &mut self.connection else { return };
            match pipeline.exec_async(connection).await {
                Ok(()) => return,
                Err(error) => {
                    self.log("publishing to Redis failed", &error);
                    if error.is_timeout() {
                        // A silent peer may be a dead one: only a new connection can tell.
                        self.connection = None;
                        return;
                    }
                    if !error.is_unrecoverable_error() {
                        return;
                    }
                    self.connection = None;
                }
            }
        }
    }

    async fn connect(&mut self) {
        match connect(&self.client).await {
            Ok(connection) => {
                self.connection = Some(connection);
                self.failures = 0;
            }
            Err(error) => {
                self.failures += 1;
                self.retry_at = Instant::now() + RECONNECT.wait(self.failures, jitter());
                self.log("Redis is not reachable for publishing", &error);
            }
        }
    }

    fn log(&mut self, what: &'static str, error: &redis::RedisError) {
        let now = Instant::now();
        if self.logged_at.is_none_or(|at| now - at >= LOG_EVERY) {
            self.logged_at = Some(now);
            tracing::debug!(%error, "{what}; tails read the log instead");
        }
    }
}

async fn connect(client: &Client) -> RedisResult<MultiplexedConnection> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(ANSWER_WITHIN))
        .set_response_timeout(Some(ANSWER_WITHIN));
    client.get_multiplexed_async_connection_with_config(&config).await
}
