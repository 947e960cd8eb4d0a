//! Back-off: how long to wait before the next try.

use std::time::Duration;

/// Exponential back-off with full jitter in its upper half.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    pub first: Duration,
    pub cap: Duration,
}

impl Backoff {
    pub const fn new(first: Duration, cap: Duration) -> Self {
        Self { first, cap }
    }

    /// The wait before retry number `retry`, which counts from 1. `random` is in `0.0..1.0`.
    pub fn wait(&self, retry: u32, random: f64) -> Duration {
        let doubled = self.first.saturating_mul(2_u32.saturating_pow(retry.saturating_sub(1).min(20)));
        doubled.min(self.cap).mul_f64(0.5 + random.clamp(0.0, 1.0) / 2.0)
    }
}

/// With so many attempts in a row that broke or lost their worker, without a saved step between them, a run is given up.
pub const MAX_CRASHES: i32 = 3;

/// With so many a run is at its last chance until it has saved a step: a worker begins one such run at a time, so that
/// the one which kills its workers is not the undoing of those that merely were there.
pub const LAST_CHANCE: i32 = MAX_CRASHES - 1;

/// How long such a run keeps others like it from its worker. What kills its worker does so early, and the many that only
/// were there when others did are not to wait for each other's steps.
pub const PROBATION_MS: i64 = 3_000;

/// The delay before a job that killed its worker is tried again: none after the first crash, which may have been the
/// worker's own.
pub const fn crash_delay_ms(crashes: i32) -> i64 {
    match crashes {
        i32::MIN..=1 => 0,
        _ => 2_000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_killed_its_workers_waits_longer_each_time() {
        let delays: Vec<_> = (1..MAX_CRASHES).map(crash_delay_ms).collect();
        assert_eq!(delays, [0, 2_000]);
    }

    #[test]
    fn waits_double_up_to_the_cap() {
        let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        let waits: Vec<_> = (1..=6).map(|n| backoff.wait(n, 1.0).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1000, 1000]);
        assert_eq!(backoff.wait(1, 0.0).as_millis(), 50);
        assert_eq!(backoff.wait(u32::MAX, 1.0).as_millis(), 1000);
    }
}
