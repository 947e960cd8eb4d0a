//! The one document that a storm leaves behind, and whether there was enough of a storm to believe it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use super::figures::Figures;
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
    pub(crate) probes: usize,
}

impl Load {
    /// What must have happened for the rest to mean anything.
    pub(crate) fn too_little(&self) -> Vec<String> {
        let counts = [
            ("takeovers", self.takeovers),
            ("fenced writes", self.fenced_writes),
            ("unknown outcomes", self.unknown_outcomes),
            ("409s", self.refused_busy),
            ("retries", self.retries),
            ("reconnects", self.reconnects),
            ("stops", self.stops),
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
        assert_eq!(Load::default().too_little().len(), 7);
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
            ..Load::default()
        };
        assert_eq!(load.too_little(), ["only 93 of 99 submissions were accepted in the end"]);
    }
}
