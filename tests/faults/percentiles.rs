//! What most of many durations were like.

use serde::Serialize;

/// Milliseconds, as they were seen.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sampled(Vec<f64>);

/// Milliseconds; null where nothing was seen.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Percentiles {
    pub(crate) count: usize,
    p50: Option<f64>,
    p90: Option<f64>,
    p99: Option<f64>,
    max: Option<f64>,
}

impl Sampled {
    pub(crate) fn push(&mut self, ms: f64) {
        self.0.push(ms);
    }

    pub(crate) fn append(&mut self, other: &mut Self) {
        self.0.append(&mut other.0);
    }

    pub(crate) fn percentiles(mut self) -> Percentiles {
        self.0.sort_by(f64::total_cmp);
        // The value that the share `p` of all does not exceed.
        let at = |p: f64| {
            let rank = (p * self.0.len() as f64).ceil() as usize;
            self.0.get(rank.saturating_sub(1)).map(|ms| (ms * 10.0).round() / 10.0)
        };
        Percentiles { count: self.0.len(), p50: at(0.5), p90: at(0.9), p99: at(0.99), max: at(1.0) }
    }
}

impl FromIterator<f64> for Sampled {
    fn from_iter<I: IntoIterator<Item = f64>>(ms: I) -> Self {
        Self(ms.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::Sampled;

    #[test]
    fn a_percentile_is_a_value_that_was_seen() {
        let seen: Sampled = (1..=200).rev().map(f64::from).collect();
        let seen = seen.percentiles();
        assert_eq!((seen.count, seen.p50, seen.p99, seen.max), (200, Some(100.0), Some(198.0), Some(200.0)));
        assert_eq!(Sampled::default().percentiles().p50, None);
    }
}
