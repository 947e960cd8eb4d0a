//! Many schedules on several threads, until the first violation.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{coverage::Coverage, schedule::Schedule, simulate::simulate};

/// One schedule in so many is played twice, and must be the same both times.
const REPLAYED: u64 = 499;
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// What a campaign came to.
#[derive(Default)]
pub struct Result {
    pub schedules: u64,
    pub took: Duration,
    /// Virtual time of all schedules together.
    pub lived: Duration,
    pub coverage: Coverage,
    /// The lowest seed that showed a violation, and it.
    pub violation: Option<(u64, String)>,
}

/// Plays the schedules of the seeds from `first` on.
pub fn run(first: u64, schedules: u64, threads: usize, report: impl Fn(u64, Duration) + Sync) -> Result {
    let begun = Instant::now();
    let (next, played, is_over) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let total = Mutex::new(Result::default());
    thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                let mut own = Result::default();
                while !is_over.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= schedules {
                        break;
                    }
                    let seed = first + number;
                    let outcome = play(seed, number % REPLAYED == 0);
                    own.coverage.add(&outcome.coverage);
                    own.lived += Duration::from_millis(outcome.lasted);
                    own.schedules += 1;
                    played.fetch_add(1, Ordering::Relaxed);
                    if let Some(violation) = outcome.violation {
                        is_over.store(true, Ordering::Relaxed);
                        own.violation = Some((seed, violation));
                    }
                }
                total.lock().unwrap_or_else(PoisonError::into_inner).add(own);
            });
        }
        scope.spawn(|| {
            let mut reported = begun;
            while !is_over.load(Ordering::Relaxed) && played.load(Ordering::Relaxed) < schedules {
                thread::sleep(Duration::from_millis(50));
                if reported.elapsed() >= REPORT_EVERY {
                    reported = Instant::now();
                    report(played.load(Ordering::Relaxed), begun.elapsed());
                }
            }
        });
    });
    let mut total = total.into_inner().unwrap_or_else(PoisonError::into_inner);
    total.took = begun.elapsed();
    total
}

fn play(seed: u64, twice: bool) -> crate::simulate::Outcome {
    let schedule = Schedule::of(seed);
    let mut outcome = simulate(&schedule, twice);
    if twice && outcome.violation.is_none() {
        let again = simulate(&schedule, true);
        let differs = outcome.trace.iter().zip(&again.trace).find(|(one, other)| one != other);
        if let Some((one, other)) = differs {
            outcome.violation = Some(format!("not the same twice: {one:?}, then {other:?}"));
        } else if outcome.trace.len() != again.trace.len() {
            outcome.violation = Some("not the same twice: one trace is longer".to_owned());
        }
    }
    outcome
}

impl Result {
    fn add(&mut self, other: Self) {
        self.schedules += other.schedules;
        self.lived += other.lived;
        self.coverage.add(&other.coverage);
        let found = self.violation.take().into_iter().chain(other.violation);
        self.violation = found.min_by_key(|(seed, _)| *seed);
    }
}
