//! Which fault strikes when: drawn from a seed before the storm begins, so that the same seed is the same weather.
//!
//! Faults of one kind are spread over the storm, each at a random moment of its own share of the time: their number is
//! certain, their moments are not.

use std::time::Duration;

use longhaul_tests::Way;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Planned {
    pub(crate) at: Duration,
    pub(crate) fault: Fault,
    /// Chooses whom it strikes.
    pub(crate) pick: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    /// SIGKILL, and a new process after a while.
    KillWorker {
        down: Duration,
    },
    /// SIGSTOP for longer than a lease, then SIGCONT.
    FreezeWorker {
        asleep: Duration,
    },
    /// SIGSTOP for less than a lease, in which runs of its are stopped and ended without it, then SIGCONT: what it says of
    /// them is refused.
    NapWorker,
    /// What it sends to Postgres is held for longer than a lease, and then arrives.
    StrandWorker {
        lasting: Duration,
    },
    /// SIGTERM, and a new process after its end.
    DrainWorker,
    KillApi {
        down: Duration,
    },
    CrashPostgres,
    /// The session of somebody ends.
    EndSession,
    KillRedis {
        down: Duration,
    },
    FlushRedis,
    DropRedisClients,
    Link(Weather),
}

/// What happens to one link.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Weather {
    Cut,
    Freeze {
        way: Way,
        lasting: Duration,
    },
    Latency {
        latency: Duration,
        lasting: Duration,
    },
    /// A cut after so many more bytes.
    Fuse {
        way: Way,
        bytes: usize,
    },
}

impl Fault {
    /// What it is counted as.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::KillWorker { .. } => "worker_kills",
            Self::FreezeWorker { .. } => "worker_freezes",
            Self::NapWorker => "worker_naps",
            Self::StrandWorker { .. } => "worker_strandings",
            Self::DrainWorker => "worker_drains",
            Self::KillApi { .. } => "api_kills",
            Self::CrashPostgres => "postgres_crashes",
            Self::EndSession => "postgres_sessions_ended",
            Self::KillRedis { .. } => "redis_kills",
            Self::FlushRedis => "redis_flushes",
            Self::DropRedisClients => "redis_clients_dropped",
            Self::Link(Weather::Cut) => "link_cuts",
            Self::Link(Weather::Freeze { way: Way::Both, .. }) => "link_freezes",
            Self::Link(Weather::Freeze { .. }) => "link_one_way_freezes",
            Self::Link(Weather::Latency { .. }) => "link_latencies",
            Self::Link(Weather::Fuse { .. }) => "link_fuses",
        }
    }
}

/// What a storm must have had of these in each minute to be one.
pub(crate) const LEAST_PER_MINUTE: &[(&str, f64)] = &[
    ("worker_kills", 15.0),
    ("worker_freezes", 3.0),
    ("worker_naps", 1.0),
    ("worker_strandings", 2.0),
    ("worker_drains", 1.0),
    ("api_kills", 1.0),
    ("postgres_crashes", 3.0),
    ("redis_kills", 3.0),
    ("link_cuts", 2.0),
];

/// The faults of so many minutes, in order. `lease` is what a freeze has to outlast.
pub(crate) fn draw(seed: u64, minutes: f64, lease: Duration) -> Vec<Planned> {
    let mut random = StdRng::seed_from_u64(seed);
    let random = &mut random;
    let mut plan = Vec::new();
    let mut spread = |random: &mut StdRng, per_minute: f64, draw: &dyn Fn(&mut StdRng) -> Fault| {
        let count = (per_minute * minutes).ceil();
        let share = Duration::from_secs_f64(minutes * 60.0 / count);
        for nth in 0..count as u32 {
            let at = share * nth + share.mul_f64(random.random_range(0.15..0.85));
            plan.push(Planned { at, fault: draw(random), pick: random.random_range(0..usize::MAX) });
        }
    };
    spread(random, 16.5, &|random| Fault::KillWorker { down: millis(random, 0, 3_000) });
    spread(random, 3.3, &|random| Fault::FreezeWorker { asleep: lease + millis(random, 1_500, 4_000) });
    spread(random, 3.0, &|_| Fault::NapWorker);
    spread(random, 2.0, &|random| Fault::StrandWorker { lasting: lease + millis(random, 1_500, 4_000) });
    spread(random, 1.2, &|_| Fault::DrainWorker);
    spread(random, 1.2, &|random| Fault::KillApi { down: millis(random, 0, 3_000) });
    spread(random, 3.2, &|_| Fault::CrashPostgres);
    spread(random, 12.0, &|_| Fault::EndSession);
    spread(random, 3.2, &|random| Fault::KillRedis { down: millis(random, 0, 5_000) });
    spread(random, 2.0, &|_| Fault::FlushRedis);
    spread(random, 4.0, &|_| Fault::DropRedisClients);
    spread(random, 24.0, &|random| Fault::Link(weather(random)));
    plan.sort_by_key(|planned| planned.at);
    plan
}

fn weather(random: &mut StdRng) -> Weather {
    let way = [Way::Up, Way::Down, Way::Both][random.random_range(0..3)];
    match random.random_range(0..4) {
        0 => Weather::Cut,
        1 => Weather::Freeze { way, lasting: millis(random, 200, 8_000) },
        2 => Weather::Latency { latency: millis(random, 5, 200), lasting: millis(random, 200, 8_000) },
        _ => Weather::Fuse { way, bytes: random.random_range(0..20_000) },
    }
}

fn millis(random: &mut StdRng, from: u64, to: u64) -> Duration {
    Duration::from_millis(random.random_range(from..to))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::{LEAST_PER_MINUTE, draw};

    const LEASE: Duration = Duration::from_secs(5);

    #[test]
    fn ten_minutes_have_what_was_promised_of_them() {
        let mut counts = BTreeMap::new();
        let plan = draw(7, 10.0, LEASE);
        for planned in &plan {
            *counts.entry(planned.fault.name()).or_insert(0) += 1;
        }
        for (name, least) in LEAST_PER_MINUTE {
            assert!(f64::from(counts[name]) >= least * 10.0, "{name}: {counts:?}");
        }
        assert!(plan.iter().all(|planned| planned.at < Duration::from_mins(10)));
        assert!(plan.is_sorted_by_key(|planned| planned.at));
    }

    #[test]
    fn the_same_seed_is_the_same_weather() {
        assert_eq!(draw(1, 2.0, LEASE), draw(1, 2.0, LEASE));
        assert_ne!(draw(1, 2.0, LEASE), draw(2, 2.0, LEASE));
    }
}
