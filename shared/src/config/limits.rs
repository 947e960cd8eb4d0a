//! `[limits]`: what one caller and one run may use. Agents may set their own where the name is the same.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{report::Report, span, values::ByteSize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Per key; 0 is no limit.
    pub requests_per_minute: u32,
    pub max_steps: u32,
    #[serde(with = "span")]
    pub deadline: Duration,
    #[serde(with = "span")]
    pub tool_timeout: Duration,
    #[serde(with = "span")]
    pub provider_silence: Duration,
    #[serde(with = "span")]
    pub first_byte: Duration,
    pub max_output_bytes: ByteSize,
    pub max_calls_per_step: u32,
    /// Repetitions from which on something is a loop; 0 is never.
    pub loop_lines: u32,
    pub loop_blocks: u32,
    pub loop_characters: u32,
    pub loop_calls: u32,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            requests_per_minute: 600,
            max_steps: 50,
            deadline: Duration::from_hours(1),
            tool_timeout: Duration::from_mins(2),
            provider_silence: Duration::from_mins(15),
            first_byte: Duration::from_mins(2),
            max_output_bytes: ByteSize::mib(4),
            max_calls_per_step: 64,
            loop_lines: 25,
            loop_blocks: 20,
            loop_characters: 60,
            loop_calls: 10,
        }
    }
}

impl LimitsConfig {
    pub(super) fn check(&self, report: &mut Report) {
        report.above_zero("limits.max_steps", self.max_steps);
        report.above_zero("limits.max_calls_per_step", self.max_calls_per_step);
        report.positive("limits.deadline", self.deadline);
        report.positive("limits.tool_timeout", self.tool_timeout);
        report.positive("limits.provider_silence", self.provider_silence);
        report.positive("limits.first_byte", self.first_byte);
        report.require(self.max_output_bytes.as_u64() > 0, "limits.max_output_bytes", || {
            "must be above 0".to_owned()
        });
        for (key, threshold) in [
            ("limits.loop_lines", self.loop_lines),
            ("limits.loop_blocks", self.loop_blocks),
            ("limits.loop_characters", self.loop_characters),
            ("limits.loop_calls", self.loop_calls),
        ] {
            report.require(threshold != 1, key, || "must be 0 (off) or above 1: once is no loop".to_owned());
        }
    }
}
