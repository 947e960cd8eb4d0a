//! `[stream]`: how events leave a run. Small spans feel live, large ones cost fewer commits.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{report::Report, span};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StreamConfig {
    #[serde(with = "span")]
    pub heartbeat: Duration,
    /// 0 commits every delta by itself.
    #[serde(with = "span")]
    pub coalesce: Duration,
    pub coalesce_bytes: u32,
    pub redone_steps: RedoneSteps,
}

/// What pages of the AI SDK show of a step that is done over. Fixed for a run when it is admitted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RedoneSteps {
    /// The text up to where it broke off, and the new text behind it.
    #[default]
    Keep,
    /// The new text only, which version 7 of the SDK and none before it understands.
    Drop,
}

impl Default for StreamConfig {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(15),
            coalesce: Duration::from_millis(50),
            coalesce_bytes: 256,
            redone_steps: RedoneSteps::Keep,
        }
    }
}

impl StreamConfig {
    pub(super) fn check(&self, report: &mut Report) {
        report.positive("stream.heartbeat", self.heartbeat);
        report.require(self.coalesce <= Duration::from_secs(1), "stream.coalesce", || {
            "must be at most 1s: readers see nothing before it is saved".to_owned()
        });
        report.require(self.coalesce_bytes > 0, "stream.coalesce_bytes", || "must be above 0".to_owned());
    }
}
