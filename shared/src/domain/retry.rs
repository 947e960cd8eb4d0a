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

/// Attempts without a saved step between them that a run may break or lose its worker in, before it is given up.
pub const MAX_CRASHES: i32 = 3;

/// From so many on a run is a suspect until it has saved a step: a worker holds few of them at a time, so that the one
/// which kills its workers is not the undoing of those that merely were there.
pub const SUSPECT_CRASHES: i32 = 2;

/// How much suspicion a worker carries at a time.
pub const MOST_SUSPICION: i64 = 8;

/// How much of it a run is with these crashes since its last step. One whose next crash would be its last has its worker
/// to itself as far as suspects go: whoever dies then has nobody else to blame, and the many that only were there get on.
pub const fn suspicion(crashes: i32) -> i64 {
    match crashes {
        i32::MIN..SUSPECT_CRASHES => 0,
        SUSPECT_CRASHES..MAX_CRASHES => 1,
        MAX_CRASHES.. => MOST_SUSPICION,
    }
}

/// The delay before a job that killed its worker is tried again: none after the first crash, then growing.
pub const fn crash_delay_ms(crashes: i32) -> i64 {
    match crashes {
        i32::MIN..=1 => 0,
        2 => 2_000,
        _ => 10_000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_killed_its_workers_waits_longer_each_time() {
        let delays: Vec<_> = (1..=MAX_CRASHES).map(crash_delay_ms).collect();
        assert_eq!(delays, [0, 2_000, 10_000]);
    }

    #[test]
    fn a_job_at_its_last_chance_leaves_no_room_for_other_suspects() {
        let suspicions: Vec<_> = (0..=MAX_CRASHES + 1).map(suspicion).collect();
        assert_eq!(suspicions, [0, 0, 1, MOST_SUSPICION, MOST_SUSPICION]);
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
