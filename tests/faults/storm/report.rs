//! The one document that a storm leaves behind, and whether there was enough of a storm to believe it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use super::figures::Figures;
use super::plan::LEAST_PER_MINUTE;
use crate::Verdict;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    pub(crate) seed: u64,
    pub(crate) minutes: f64,
    pub(crate) commit: Option<String>,
    pub(crate) faults: BTreeMap<&'static str, usize>,
    pub(crate) load: Load,
    pub(crate) figures: Figures,
    pub(crate) violations: Vec<String>,
    /// Violations, and what there was too little of for their absence to mean something.
    pub(crate) flaws: Vec<String>,
    /// Where the processes' output and the rows of suspicious runs are, if anything was found.
    pub(crate) evidence: Option<PathBuf>,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Load {
    pub(crate) submitted: usize,
    pub(crate) accepted: usize,
    pub(crate) refused_busy: usize,
    pub(crate) given_up: usize,
    pub(crate) runs: usize,
    /// Those that ended as their kind does, or because they were stopped.
    pub(crate) as_meant: usize,
    /// Status and reason of every run.
    pub(crate) ended: BTreeMap<String, usize>,
    pub(crate) answers: BTreeMap<String, usize>,
    pub(crate) retries: usize,
    pub(crate) stops: usize,
    pub(crate) tails: usize,
    pub(crate) reconnects: usize,
    pub(crate) provider_calls: usize,
    pub(crate) saved_steps: usize,
    pub(crate) tool_requests: usize,
    pub(crate) takeovers: usize,
    pub(crate) fenced_writes: usize,
    pub(crate) unknown_outcomes: usize,
    /// Workers whose process was found gone before their lease ran out.
    pub(crate) proofs_of_death: usize,
    /// Requests for what belongs to another workspace.
    pub(crate) strangers_refused: usize,
    /// Runs, steps and messages that were read back through the API in the end.
    pub(crate) answers_read: usize,
    pub(crate) probes: usize,
}

impl Report {
    /// What must have happened for the rest to mean anything.
    pub(crate) fn too_little(&self) -> Vec<String> {
        let mut too_little = self.load.too_little();
        for (fault, per_minute) in LEAST_PER_MINUTE {
            let (seen, least) = (self.faults.get(fault).copied().unwrap_or(0), per_minute * self.minutes);
            if (seen as f64) < least.floor() {
                too_little.push(format!("{seen} {fault} are too few: {least} belong to such a storm"));
            }
        }
        too_little
    }
}

impl Load {
    fn too_little(&self) -> Vec<String> {
        let counts = [
            ("takeovers", self.takeovers),
            ("fenced writes", self.fenced_writes),
            ("unknown outcomes", self.unknown_outcomes),
            ("409s", self.refused_busy),
            ("retries", self.retries),
            ("reconnects", self.reconnects),
            ("stops", self.stops),
            ("proofs of death", self.proofs_of_death),
            ("refused strangers", self.strangers_refused),
            ("answers to read in the end", self.answers_read),
        ];
        let none = counts.into_iter().filter(|(_, count)| *count == 0);
        let mut too_little: Vec<String> =
            none.map(|(what, _)| format!("there were no {what}: nothing was proved about them")).collect();
        // Somebody who was told that the chat is busy was answered.
        let wanted = self.submitted - self.refused_busy;
        if self.accepted * 100 < wanted * 95 {
            too_little
                .push(format!("only {} of {wanted} submissions were accepted in the end", self.accepted));
        }
        // In this weather a step of 12 to 19 s may well lose three workers in a row.
        if self.as_meant * 100 < self.runs * 90 {
            too_little
                .push(format!("only {} of {} runs ended as they were meant to", self.as_meant, self.runs));
        }
        too_little
    }
}

impl Verdict for Report {
    fn flaws(&self) -> &[String] {
        &self.flaws
    }
}

#[cfg(test)]
mod tests {
    use super::Load;

    #[test]
    fn a_storm_in_which_nothing_happened_proves_nothing() {
        assert_eq!(Load::default().too_little().len(), 10);
        let load = Load {
            submitted: 100,
            accepted: 93,
            refused_busy: 1,
            retries: 1,
            stops: 1,
            reconnects: 1,
            takeovers: 1,
            fenced_writes: 1,
            unknown_outcomes: 1,
            proofs_of_death: 1,
            strangers_refused: 1,
            answers_read: 1,
            runs: 100,
            as_meant: 89,
            ..Load::default()
        };
        let expected = [
            "only 93 of 99 submissions were accepted in the end",
            "only 89 of 100 runs ended as they were meant to",
        ];
        assert_eq!(load.too_little(), expected);
    }
}
