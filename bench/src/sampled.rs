//! Durations that were seen, and what most of them were like.

use std::time::Duration;

#[derive(Clone, Debug, Default)]
pub(crate) struct Sampled(Vec<f64>);

impl Sampled {
    pub(crate) fn push(&mut self, duration: Duration) {
        self.push_ms(duration.as_secs_f64() * 1e3);
    }

    pub(crate) fn push_ms(&mut self, ms: f64) {
        self.0.push(ms);
    }

    pub(crate) fn append(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The value, in milliseconds, that the share `p` of all does not exceed; 0 if there is none.
    pub(crate) fn percentile(&self, p: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (p * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
    }

    pub(crate) fn p50(&self) -> f64 {
        self.percentile(0.5)
    }

    pub(crate) fn p99(&self) -> f64 {
        self.percentile(0.99)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_a_value_that_was_seen() {
        let mut sampled = Sampled::default();
        assert!(sampled.p50().abs() < f64::EPSILON);
        for ms in (1..=200).rev() {
            sampled.push(Duration::from_millis(ms));
        }
        let seen = [sampled.p50(), sampled.p99(), sampled.percentile(1.0)].map(|ms| ms as u64);
        assert_eq!(seen, [100, 198, 200]);
        assert_eq!(sampled.len(), 200);
    }
}
