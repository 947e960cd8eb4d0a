//! `[worker]`: how much one worker takes on, and how long it may be silent before others take over.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{
    report::{Report, is_name},
    span,
};

/// Longer than this, a drain is no longer a restart, and nothing that supervises processes waits for it.
const LONGEST_DRAIN: Duration = Duration::from_hours(1);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WorkerConfig {
    /// Runs at the same time.
    pub slots: u32,
    #[serde(with = "span")]
    pub lease: Duration,
    #[serde(with = "span")]
    pub heartbeat: Duration,
    #[serde(with = "span")]
    pub poll: Duration,
    #[serde(with = "span")]
    pub drain_timeout: Duration,
    pub queues: Vec<String>,
    /// Where other workers ask whether this process lives; port 0 takes a free one.
    pub presence: SocketAddr,
    /// Where they find it, if not there.
    pub presence_advertise: Option<SocketAddr>,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        Self {
            slots: 64,
            lease: Duration::from_secs(15),
            heartbeat: Duration::from_secs(2),
            poll: Duration::from_secs(1),
            drain_timeout: Duration::from_secs(30),
            queues: vec!["default".to_owned()],
            presence: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0),
            presence_advertise: None,
        }
    }
}

impl WorkerConfig {
    pub(super) fn check(&self, report: &mut Report) {
        report.require((1..=10_000).contains(&self.slots), "worker.slots", || {
            format!("must be between 1 and 10000, not {}", self.slots)
        });
        report.positive("worker.lease", self.lease);
        report.positive("worker.heartbeat", self.heartbeat);
        report.positive("worker.poll", self.poll);
        // Two heartbeats may be lost on the way before the lease runs out.
        report.require(self.lease >= self.heartbeat.saturating_mul(3), "worker.lease", || {
            format!(
                "must be at least 3 × worker.heartbeat ({}), not {}",
                humantime::format_duration(self.heartbeat),
                humantime::format_duration(self.lease)
            )
        });
        report.require(self.poll <= self.lease, "worker.poll", || {
            "must be no longer than worker.lease: a poll finds what a lost wake-up missed".to_owned()
        });
        report.require(self.drain_timeout < LONGEST_DRAIN, "worker.drain_timeout", || {
            format!(
                "must be shorter than {}: a run that does not end in time is handed over, not waited for",
                humantime::format_duration(LONGEST_DRAIN)
            )
        });
        self.check_presence(report);
        report.require(!self.queues.is_empty(), "worker.queues", || {
            "must name at least one queue: a worker without one never gets a job".to_owned()
        });
        for queue in &self.queues {
            report.require(is_name(queue), "worker.queues", || {
                format!("`{queue}` is not a queue name: 1 to 64 letters, digits, `_` or `-`")
            });
        }
    }

    /// An address that leads nowhere proves nothing, and one that leads to another worker would prove what is not so.
    fn check_presence(&self, report: &mut Report) {
        match self.presence_advertise {
            None => report.require(!self.presence.ip().is_unspecified(), "worker.presence_advertise", || {
                format!(
                    "must say where the others find this worker when worker.presence is {}",
                    self.presence
                )
            }),
            Some(address) => {
                report.require(
                    !address.ip().is_unspecified() && address.port() != 0,
                    "worker.presence_advertise",
                    || format!("must be an address that leads to this worker, not {address}"),
                );
                report.require(self.presence.port() != 0, "worker.presence", || {
                    "must name its port when worker.presence_advertise is set".to_owned()
                });
            }
        }
    }
}
