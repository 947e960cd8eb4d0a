//! The time of day, in which processes, database and tests can be compared: all of them are on this machine.

use std::time::{Instant, SystemTime};

/// Unix milliseconds.
pub(crate) fn now_ms() -> i64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_millis() as i64)
}

/// Turns moments of this process into Unix milliseconds.
#[derive(Clone, Copy)]
pub(crate) struct Clock {
    now: Instant,
    now_ms: i64,
}

impl Clock {
    /// Reads both clocks.
    pub(crate) fn read() -> Self {
        Self { now: Instant::now(), now_ms: now_ms() }
    }

    pub(crate) fn ms(&self, moment: Instant) -> i64 {
        let ago = self.now.saturating_duration_since(moment).as_millis() as i64;
        self.now_ms - ago + moment.saturating_duration_since(self.now).as_millis() as i64
    }
}
