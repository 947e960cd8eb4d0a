//! What clients were told: each thing that they wanted, every answer that they got, and what they saw.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use rand::RngExt;
use rand::rngs::StdRng;

use super::scripts::Kind;
use super::tails::Watched;

/// One thing that somebody wanted to be done once.
#[derive(Clone, Debug)]
pub(crate) struct Submission {
    /// Words that only its message has.
    pub(crate) mark: String,
    pub(crate) key: String,
    pub(crate) kind: &'static str,
    /// How often which answer came, over all repetitions.
    pub(crate) answers: BTreeMap<String, usize>,
    pub(crate) outcome: Outcome,
    /// The runs that it was said to have become; more than one is wrong.
    pub(crate) runs: BTreeSet<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Accepted {
        run: String,
        chat: String,
    },
    /// The chat was busy.
    Refused,
    /// No answer but errors: it may or may not have happened.
    GivenUp,
}

/// A stop that was accepted.
#[derive(Clone, Debug)]
pub(crate) struct Stop {
    pub(crate) run: String,
    /// When it was sent: Unix milliseconds.
    pub(crate) at: i64,
}

/// What the clients know in the end.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    pub(crate) submissions: Vec<Submission>,
    pub(crate) tails: Vec<Watched>,
    pub(crate) stops: Vec<Stop>,
    /// Runs that somebody tried to stop.
    pub(crate) stops_asked: HashSet<String>,
    /// Requests that had to be repeated.
    pub(crate) retries: usize,
    /// What the server must not do and did.
    pub(crate) complaints: Vec<String>,
}

impl Journal {
    /// Every run that somebody was told of.
    pub(crate) fn runs(&self) -> HashSet<String> {
        self.submissions.iter().flat_map(|made| &made.runs).cloned().collect()
    }

    /// What the clients of another workspace know.
    pub(crate) fn merge(&mut self, other: Self) {
        self.submissions.extend(other.submissions);
        self.tails.extend(other.tails);
        self.stops.extend(other.stops);
        self.stops_asked.extend(other.stops_asked);
        self.retries += other.retries;
        self.complaints.extend(other.complaints);
    }
}

impl Submission {
    pub(crate) fn new(prefix: &str, kind: &Kind, random: &mut StdRng) -> Self {
        Self {
            mark: format!("{prefix}-{:016x}", random.random::<u64>()),
            key: format!("{prefix}-key-{:016x}", random.random::<u64>()),
            kind: kind.name,
            answers: BTreeMap::new(),
            outcome: Outcome::GivenUp,
            runs: BTreeSet::new(),
        }
    }

    /// The same thing, asked for twice.
    pub(crate) fn merge(&mut self, twin: Self) {
        for (answer, count) in twin.answers {
            *self.answers.entry(answer).or_default() += count;
        }
        self.runs.extend(twin.runs);
        if matches!(twin.outcome, Outcome::Accepted { .. }) {
            self.outcome = twin.outcome;
        }
    }
}
