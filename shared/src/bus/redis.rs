//! The bus over Redis pub/sub. One connection carries every subscription of the process, another one
//! what it publishes. Redis may be absent at the start, vanish and come back: nothing here waits for it.
//!
//! The subscriptions are kept on a plain multiplexed connection rather than on the crate's connection
//! manager. That one would route pushes through an unbounded queue and would remember confirmed
//! subscriptions only; here what the process wants is known, so a new connection asks for exactly that.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use redis::{Client, IntoConnectionInfo, ProtocolVersion, io::tcp::TcpSettings};
use tokio::{
    sync::{broadcast, mpsc, oneshot},
    task::AbortHandle,
    time::timeout,
};

use self::{
    publisher::{Outgoing, Publisher},
    subscriber::{Change, Subscriber},
    wire::Names,
};
use super::{Bus, BusError, Live, Signal, Subscription, fanout::Fanout};
use crate::domain::{event::Segment, ids::RunId, retry::Backoff};

mod publisher;
mod subscriber;
#[cfg(test)]
pub(crate) mod test_server;
#[cfg(test)]
mod tests;
mod wire;

/// How long `subscribe` waits for Redis. Beyond it the subscriber starts from the log, and hears `Resync` later.
const SUBSCRIBE_WITHIN: Duration = Duration::from_millis(500);
const CLOSE_WITHIN: Duration = Duration::from_secs(1);
const RECONNECT: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));

pub struct RedisBus {
    fanout: Arc<Fanout>,
    connected: Arc<AtomicBool>,
    changes: mpsc::UnboundedSender<Change>,
    publisher: Publisher,
    tasks: [AbortHandle; 2],
}

impl RedisBus {
    /// Starts the two connections in the background, so that a missing server does not stop the process.
    /// Deployments that share a server need different prefixes. Call it inside a Tokio runtime; for
    /// `rediss://` the process has installed its rustls provider before.
    pub fn start(url: &str, prefix: &str) -> Result<Self, BusError> {
        let client = open(url).map_err(BusError::Url)?;
        let names = Names::new(prefix)?;
        let connected = Arc::new(AtomicBool::new(false));
        // Unbounded in type only: a subscriber has one change under way, and one more when it leaves.
        let (changes, changed) = mpsc::unbounded_channel();
        let fanout = {
            let changes = changes.clone();
            Fanout::new(move |run| {
                // Fails only after the bus itself was dropped, and the connection with it.
                let _ = changes.send(Change::Leave(run));
            })
        };
        let subscriber = Subscriber::new(
            client.clone(),
            names.clone(),
            Arc::clone(&fanout),
            Arc::clone(&connected),
            changed,
        );
        let (publisher, publishing) = Publisher::new(client, names);
        let tasks =
            [tokio::spawn(subscriber.run()).abort_handle(), tokio::spawn(publishing.run()).abort_handle()];
        Ok(Self { fanout, connected, changes, publisher, tasks })
    }
}

/// Checks the URL and settles what it should not decide: RESP3, which pushes need, and no Nagle delay.
fn open(url: &str) -> redis::RedisResult<Client> {
    let info = url.into_connection_info()?;
    let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    let tcp = TcpSettings::default().set_nodelay(true);
    Client::open(info.set_redis_settings(settings).set_tcp_settings(tcp))
}

#[async_trait]
impl Bus for RedisBus {
    fn publish(&self, segment: Arc<Segment>) {
        self.publisher.push(Outgoing::Segment(segment));
    }

    async fn subscribe(&self, run: RunId) -> Subscription {
        let subscription = self.fanout.join(run);
        let (live, confirmed) = oneshot::channel();
        // Sent even while disconnected: the connection may come up between the two looks at it.
        if self.changes.send(Change::Follow(run, live)).is_ok() && self.is_connected() {
            let _ = timeout(SUBSCRIBE_WITHIN, confirmed).await;
        }
        subscription
    }

    fn deliver(&self, run: RunId, live: Live) {
        self.fanout.deliver(run, live);
    }

    fn signal(&self, signal: Signal) {
        // While nothing comes back from Redis, this process at least hears itself.
        if !self.is_connected() {
            self.fanout.signal(signal.clone());
        }
        self.publisher.push(Outgoing::Signal(signal));
    }

    fn signals(&self) -> broadcast::Receiver<Signal> {
        self.fanout.signals()
    }

    fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Acquire)
    }

    async fn close(&self) {
        let _ = timeout(CLOSE_WITHIN, self.publisher.flush()).await;
    }
}

impl Drop for RedisBus {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}
