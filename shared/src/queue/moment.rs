//! Time that goes on while the machine is suspended.
//!
//! The monotonic clock of Linux, which [`Instant`] reads, stands still while the machine sleeps. Whoever waits by it
//! believes in a lease that ran out long ago. The clock of the boot goes on; what it is ahead by is the time that was
//! slept away. Of a virtual machine that is paused from outside neither clock may know: then the log's fence decides.

use std::{ops::Add, time::Duration};

use tokio::time::Instant;

/// So little is only what lies between the readings of two clocks.
const NO_SLEEP: Duration = Duration::from_millis(10);

/// A point in time, as far as this machine can tell without asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment {
    at: Instant,
    /// How long the machine had been suspended when this was made.
    suspended: Duration,
}

impl Moment {
    pub fn now() -> Self {
        Instant::now().into()
    }

    pub fn is_past(self) -> bool {
        self.instant() <= Instant::now()
    }

    /// The same point by the clock that stands still, earlier by what has been slept away since.
    pub fn instant(self) -> Instant {
        let slept = suspended().saturating_sub(self.suspended);
        let slept = if slept < NO_SLEEP { Duration::ZERO } else { slept };
        self.at.checked_sub(slept).unwrap_or_else(Instant::now)
    }
}

impl From<Instant> for Moment {
    fn from(at: Instant) -> Self {
        Self { at, suspended: suspended() }
    }
}

impl Add<Duration> for Moment {
    type Output = Self;

    fn add(self, later: Duration) -> Self {
        Self { at: self.at + later, ..self }
    }
}

/// How long the machine has been suspended since it was booted.
fn suspended() -> Duration {
    let slept = clock::suspended();
    #[cfg(test)]
    let slept = slept + tests::SLEPT.get();
    slept
}

#[cfg(target_os = "linux")]
mod clock {
    use std::time::Duration;

    use rustix::time::{ClockId, clock_gettime};

    pub(super) fn suspended() -> Duration {
        let read = |clock| Duration::try_from(clock_gettime(clock)).unwrap_or_default();
        let awake = read(ClockId::Monotonic);
        read(ClockId::Boottime).saturating_sub(awake)
    }
}

/// Elsewhere the system may do as it likes; whoever wakes up is refused by the database.
#[cfg(not(target_os = "linux"))]
mod clock {
    use std::time::Duration;

    pub(super) const fn suspended() -> Duration {
        Duration::ZERO
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        /// What this test has slept away.
        pub(in super::super) static SLEPT: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    }

    #[test]
    fn what_is_slept_away_counts() {
        let (minute, hour) = (Duration::from_mins(1), Duration::from_hours(1));
        let soon = Moment::now() + minute;
        assert!(!soon.is_past() && Moment::now().is_past());
        SLEPT.set(minute);
        assert!(soon.is_past(), "it passed in its sleep");
        // Whatever begins now has its whole time.
        assert!(!(Moment::now() + minute).is_past() && Moment::now() + minute > soon);
        SLEPT.set(hour * 24 * 365 * 100);
        assert!(soon.is_past());
    }
}
