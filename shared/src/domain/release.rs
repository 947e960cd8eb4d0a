//! What becomes of a run that its holder let go of, or that was taken from it.

use super::{
    run::{Ending, RunError},
    transition::Reason,
};

/// How many times in a row its attempts broke or lost their worker without a saved step between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crashes {
    pub before: i32,
    /// The holder left it by one more.
    pub is_one_more: bool,
    /// With so many it is given up.
    pub limit: i32,
}

impl Crashes {
    pub const fn now(self) -> i32 {
        self.before + self.is_one_more as i32
    }
}

/// The end of a run that nobody is to take up again: one whose stop was requested, or that has crashed too often.
pub fn end_at_release(stop: Option<Reason>, crashes: Crashes) -> Option<Ending> {
    let stopped = stop.map(|reason| Ending { reason, error: None });
    stopped.or_else(|| {
        (crashes.is_one_more && crashes.now() >= crashes.limit).then(|| crash_limit(crashes.now()))
    })
}

fn crash_limit(crashes: i32) -> Ending {
    let message =
        format!("{crashes} attempts at this run broke or lost their worker, with no saved step between them");
    Ending::failed(Reason::CrashLimit, RunError::new("crash_limit", message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::retry::MAX_CRASHES;

    fn reason(stop: Option<Reason>, before: i32, is_one_more: bool) -> Option<Reason> {
        let crashes = Crashes { before, is_one_more, limit: MAX_CRASHES };
        end_at_release(stop, crashes).map(|ending| ending.reason)
    }

    #[test]
    fn the_third_crash_is_the_last_one() {
        let reasons: Vec<_> = (0..4).map(|before| reason(None, before, true)).collect();
        assert_eq!(reasons, [None, None, Some(Reason::CrashLimit), Some(Reason::CrashLimit)]);
        assert_eq!(reason(None, 3, false), None, "a hand-back is no crash");
        assert_eq!(reason(Some(Reason::Stop), 2, true), Some(Reason::Stop), "a stop comes first");
    }
}
