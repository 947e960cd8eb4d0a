//! Repeats of requests to one provider, kept to a fraction of what is asked for the first time.
//!
//! A provider in trouble gets worse by being asked twice for everything. Each first request earns part of a repeat, and
//! one more trickles in every ten seconds, so that a single run is never stuck. Whoever finds the budget empty waits in
//! line for as long as it has patience: runs become slower before they fail.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Semaphore,
    time::{Instant, sleep, sleep_until},
};

/// What a repeat costs, in parts.
const REPEAT: u32 = 10;
/// What a first request earns: two in five of them may be repeated.
const EARNED: usize = 4;
const TRICKLE: Duration = Duration::from_secs(1);
/// What a worker begins with, and what it can save up.
const FIRST: usize = 10 * REPEAT as usize;
const MOST: usize = 100 * REPEAT as usize;

#[derive(Debug)]
pub(super) struct RetryBudget {
    parts: Semaphore,
    /// The time in which one part comes by itself.
    trickle: Duration,
    trickled: Mutex<Instant>,
}

impl RetryBudget {
    pub(super) fn new() -> Self {
        Self::with_trickle(TRICKLE)
    }

    fn with_trickle(trickle: Duration) -> Self {
        Self { parts: Semaphore::new(FIRST), trickle, trickled: Mutex::new(Instant::now()) }
    }

    /// Something was asked for the first time.
    pub(super) fn earn(&self) {
        self.add(EARNED);
    }

    /// Takes what a repeat costs; `false` if it did not come together within `patience`.
    pub(super) async fn spend(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let parts = self.parts.acquire_many(REPEAT);
        tokio::pin!(parts);
        loop {
            self.let_trickle();
            tokio::select! {
                biased;
                taken = &mut parts => {
                    taken.expect("this semaphore is never closed").forget();
                    return true;
                }
                () = sleep_until(deadline) => return false,
                () = sleep(self.trickle) => {}
            }
        }
    }

    fn let_trickle(&self) {
        let mut since = self.trickled.lock().unwrap_or_else(PoisonError::into_inner);
        let parts = (since.elapsed().as_millis() / self.trickle.as_millis()) as u32;
        *since += self.trickle * parts;
        self.add(parts as usize);
    }

    fn add(&self, parts: usize) {
        self.parts.add_permits(parts.min(MOST.saturating_sub(self.parts.available_permits())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT_ONCE: Duration = Duration::ZERO;
    const NEVER: Duration = Duration::from_hours(1);

    #[tokio::test]
    async fn repeats_are_a_fraction_of_first_requests_beyond_the_first_few() {
        let budget = RetryBudget::with_trickle(NEVER);
        let mut repeats = 0;
        for _ in 0..100 {
            budget.earn();
            while budget.spend(AT_ONCE).await {
                repeats += 1;
            }
        }
        assert_eq!(repeats, 10 + 40);
    }

    #[tokio::test]
    async fn whoever_waits_gets_a_repeat_in_the_end_or_gives_up() {
        let budget = RetryBudget::with_trickle(Duration::from_millis(20));
        while budget.spend(AT_ONCE).await {}
        let begun = Instant::now();
        assert!(!budget.spend(Duration::from_millis(20)).await, "not enough has come by itself");
        let patience = Duration::from_secs(30);
        let (first, second) = tokio::join!(budget.spend(patience), budget.spend(patience));
        assert!(first && second);
        assert!(begun.elapsed() >= Duration::from_millis(20 * 18), "two repeats come in twenty times");
    }

    #[tokio::test]
    async fn a_long_calm_saves_up_no_more_than_the_most() {
        let budget = RetryBudget::with_trickle(NEVER);
        (0..100_000).for_each(|_| budget.earn());
        let mut repeats = 0;
        while budget.spend(AT_ONCE).await {
            repeats += 1;
        }
        assert_eq!(repeats, 100);
    }
}
