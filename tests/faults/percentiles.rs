//! What most of many durations were like.

use serde::Serialize;

/// Milliseconds, as they were seen.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sampled(Vec<f64>);

/// Milliseconds; null where nothing was seen.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Percentiles {
    pub(crate) count: usize,
    pub(crate) p50: Option<f64>,
    p90: Option<f64>,
    pub(crate) p99: Option<f64>,
    max: Option<f64>,
}

impl Sampled {
    pub(crate) fn push(&mut self, ms: f64) {
        self.0.push(ms);
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

impl Percentiles {
    /// What is longer than it may be, in words.
    pub(crate) fn slower_than(&self, what: &str, p50: Option<f64>, p99: f64) -> Vec<String> {
        let bounds = [("p50", self.p50, p50), ("p99", self.p99, Some(p99))];
        let late = bounds.into_iter().filter_map(|(name, seen, most)| {
            let (seen, most) = (seen?, most?);
            (seen > most).then(|| format!("{what}: {name} {seen} ms, at most {most} ms are allowed"))
        });
        late.collect()
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

    #[test]
    fn what_is_slower_than_it_may_be_is_said() {
        let seen: Sampled = (1..=200).map(f64::from).collect();
        let seen = seen.percentiles();
        assert_eq!(seen.slower_than("it", Some(100.0), 198.0), Vec::<String>::new());
        assert_eq!(seen.slower_than("it", None, 197.0), ["it: p99 198 ms, at most 197 ms are allowed"]);
        assert_eq!(seen.slower_than("it", Some(99.0), 197.0).len(), 2);
        assert!(Sampled::default().percentiles().slower_than("it", Some(1.0), 1.0).is_empty());
    }
}
