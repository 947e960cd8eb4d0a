//! Collects broken rules, so that one start shows all of them.

use std::time::Duration;

/// A setting that breaks a rule: which, which rule, and where the value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub key: String,
    pub rule: String,
    pub origin: Option<String>,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.origin {
            Some(origin) => write!(f, "{} ({origin}): {}", self.key, self.rule),
            None => write!(f, "{}: {}", self.key, self.rule),
        }
    }
}

const LONGEST: Duration = Duration::from_hours(365 * 24);

#[derive(Default)]
pub(super) struct Report(Vec<Problem>);

impl Report {
    pub(super) fn refuse(&mut self, key: impl Into<String>, rule: String) {
        self.0.push(Problem { key: key.into(), rule, origin: None });
    }

    pub(super) fn require(&mut self, holds: bool, key: impl Into<String>, rule: impl FnOnce() -> String) {
        if !holds {
            self.refuse(key, rule());
        }
    }

    /// Refuses a duration of zero, or one with which times could no longer be added; one that is absent is fine.
    pub(super) fn positive(&mut self, key: impl Into<String>, span: impl Into<Option<Duration>>) {
        let within = |span: Duration| !span.is_zero() && span <= LONGEST;
        self.require(span.into().is_none_or(within), key, || {
            "must be above 0s and at most 365days".to_owned()
        });
    }

    /// Refuses the number zero; one that is absent is fine.
    pub(super) fn above_zero(&mut self, key: impl Into<String>, number: impl Into<Option<u32>>) {
        self.require(number.into() != Some(0), key, || "must be above 0".to_owned());
    }

    pub(super) fn into_problems(self) -> Vec<Problem> {
        self.0
    }
}

/// Whether a name fits everywhere it goes: URLs, channels, and the function names of model providers.
pub(super) fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}
