//! How often one key may call: a bucket per key that refills evenly.
//!
//! Every answer says how much is left (`RateLimit`) and what the rule is (`RateLimit-Policy`). Buckets exist for
//! stored keys only, so their number is bounded by that of the keys.

use std::num::NonZeroU32;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use governor::{
    Quota, RateLimiter,
    clock::{Clock, DefaultClock},
    middleware::StateInformationMiddleware,
    state::keyed::DefaultKeyedStateStore,
};
use longhaul_shared::domain::ids::KeyId;

use crate::error::{ApiError, Code};

const WINDOW_SECONDS: u64 = 60;

type Buckets = RateLimiter<
    Option<KeyId>,
    DefaultKeyedStateStore<Option<KeyId>>,
    DefaultClock,
    StateInformationMiddleware,
>;

/// The buckets of all keys, or none where there is no limit.
pub(crate) struct RateLimits {
    limited: Option<(Buckets, NonZeroU32)>,
}

/// What one call was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Unlimited,
    Within { quota: u32, remaining: u32, full_in: u64 },
    Over { quota: u32, retry_after: u64 },
}

impl RateLimits {
    /// `0` = no limit.
    pub(crate) fn per_minute(requests: u32) -> Self {
        let limited = NonZeroU32::new(requests).map(|quota| {
            let buckets = RateLimiter::keyed(Quota::per_minute(quota)).with_middleware();
            (buckets, quota)
        });
        Self { limited }
    }

    /// Counts one call of that key; `None` stands for calls without a key.
    pub(crate) fn check(&self, key: Option<KeyId>) -> Verdict {
        let Some((buckets, quota)) = &self.limited else { return Verdict::Unlimited };
        let quota = quota.get();
        match buckets.check_key(&key) {
            Ok(snapshot) => {
                let remaining = snapshot.remaining_burst_capacity();
                let used = u64::from(quota.saturating_sub(remaining));
                let full_in = (used * WINDOW_SECONDS).div_ceil(u64::from(quota));
                Verdict::Within { quota, remaining, full_in }
            }
            Err(not_until) => {
                let wait = not_until.wait_time_from(DefaultClock::default().now());
                Verdict::Over { quota, retry_after: (wait.as_millis() as u64).div_ceil(1000).max(1) }
            }
        }
    }
}

impl Verdict {
    pub(crate) fn is_over(self) -> bool {
        matches!(self, Self::Over { .. })
    }

    pub(crate) fn refusal(self) -> ApiError {
        let retry_after = if let Self::Over { retry_after, .. } = self { Some(retry_after) } else { None };
        ApiError { retry_after, ..Code::RateLimited.into() }
    }

    pub(crate) fn describe(self, headers: &mut HeaderMap) {
        let (quota, remaining, reset) = match self {
            Self::Unlimited => return,
            Self::Within { quota, remaining, full_in } => (quota, remaining, full_in),
            Self::Over { quota, retry_after } => (quota, 0, retry_after),
        };
        let value = |text: String| HeaderValue::from_str(&text).expect("digits and ASCII punctuation only");
        headers.insert(
            HeaderName::from_static("ratelimit-policy"),
            value(format!("\"default\";q={quota};w={WINDOW_SECONDS}")),
        );
        headers.insert(
            HeaderName::from_static("ratelimit"),
            value(format!("\"default\";r={remaining};t={reset}")),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_gets_its_quota_and_not_one_more() {
        let limits = RateLimits::per_minute(3);
        let key = Some(KeyId::generate());
        for left in [2, 1, 0] {
            assert!(
                matches!(limits.check(key), Verdict::Within { quota: 3, remaining, .. } if remaining == left)
            );
        }
        let Verdict::Over { retry_after, .. } = limits.check(key) else { panic!("the fourth call passed") };
        assert!((1..=20).contains(&retry_after), "{retry_after}");
        assert!(!limits.check(Some(KeyId::generate())).is_over(), "another key has its own bucket");
        assert!(!limits.check(None).is_over());
    }

    #[test]
    fn zero_means_no_limit_and_no_headers() {
        let limits = RateLimits::per_minute(0);
        let mut headers = HeaderMap::new();
        for _ in 0..1000 {
            let verdict = limits.check(None);
            assert_eq!(verdict, Verdict::Unlimited);
            verdict.describe(&mut headers);
        }
        assert!(headers.is_empty());
    }

    #[test]
    fn the_headers_are_structured_fields() {
        let mut headers = HeaderMap::new();
        Verdict::Within { quota: 600, remaining: 598, full_in: 1 }.describe(&mut headers);
        assert_eq!(headers["ratelimit-policy"], "\"default\";q=600;w=60");
        assert_eq!(headers["ratelimit"], "\"default\";r=598;t=1");
        Verdict::Over { quota: 600, retry_after: 7 }.describe(&mut headers);
        assert_eq!(headers["ratelimit"], "\"default\";r=0;t=7");
    }
}
