//! The one table of legal status changes. The store refuses every other.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunStatus {
    /// Due later; holds no slot.
    Scheduled,
    /// Due, but another run holds the chat's slot.
    Queued,
    /// Holds the slot; its job waits for a worker.
    Pending,
    /// A worker holds its job.
    Running,
    /// Holds the slot without a worker, until a decision, a timer or a child run.
    Waiting,
    Succeeded,
    Failed,
    Aborted,
}

/// Where a message stands. `None` in the store means imported, which reads as completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MessageStatus {
    Streaming,
    Completed,
    Error,
    Aborted,
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    Done,
    Stop,
    Superseded,
    StepLimit,
    Budget,
    Deadline,
    Expired,
    Provider,
    Tool,
    Loop,
    OutputLimit,
    CallLimit,
    CrashLimit,
    ChatDeleted,
    Internal,
}

/// A stored word that this version does not know.
#[derive(Debug, thiserror::Error)]
#[error("unknown {kind} `{word}`")]
pub struct UnknownWord {
    pub kind: &'static str,
    pub word: String,
}

/// Gives an enum its stored names, which are never reused, in both directions.
macro_rules! stored_words {
    ($type:ident, $kind:literal, { $($variant:ident => $word:literal),+ $(,)? }) => {
        impl $type {
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $type {
            type Err = $crate::domain::transition::UnknownWord;
            fn from_str(word: &str) -> std::result::Result<Self, Self::Err> {
                match word {
                    $($word => Ok(Self::$variant),)+
                    _ => Err($crate::domain::transition::UnknownWord { kind: $kind, word: word.to_owned() }),
                }
            }
        }
    };
}
pub(crate) use stored_words;

stored_words!(RunStatus, "run status", {
    Scheduled => "scheduled",
    Queued => "queued",
    Pending => "pending",
    Running => "running",
    Waiting => "waiting",
    Succeeded => "succeeded",
    Failed => "failed",
    Aborted => "aborted",
});

stored_words!(MessageStatus, "message status", {
    Streaming => "streaming",
    Completed => "completed",
    Error => "error",
    Aborted => "aborted",
});

stored_words!(Reason, "reason", {
    Done => "done",
    Stop => "stop",
    Superseded => "superseded",
    StepLimit => "step_limit",
    Budget => "budget",
    Deadline => "deadline",
    Expired => "expired",
    Provider => "provider",
    Tool => "tool",
    Loop => "loop",
    OutputLimit => "output_limit",
    CallLimit => "call_limit",
    CrashLimit => "crash_limit",
    ChatDeleted => "chat_deleted",
    Internal => "internal",
});

impl Reason {
    /// Whether such an end is an answer that was cut off rather than a failure.
    pub const fn is_limit(self) -> bool {
        matches!(self, Self::StepLimit | Self::OutputLimit | Self::CallLimit | Self::Budget | Self::Deadline)
    }
}

impl RunStatus {
    /// Holds the chat's slot: the partial unique index `runs_one_active_per_chat` covers these.
    pub const fn holds_slot(self) -> bool {
        matches!(self, Self::Pending | Self::Running | Self::Waiting)
    }

    /// Final: nothing changes such a run any more.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Aborted)
    }

    /// Whether a run may go from `self` to `next`.
    pub const fn may_become(self, next: Self) -> bool {
        use RunStatus::{Aborted, Failed, Pending, Queued, Running, Scheduled, Succeeded, Waiting};
        match self {
            Scheduled => matches!(next, Queued | Pending | Aborted | Failed),
            Queued => matches!(next, Pending | Aborted | Failed),
            Pending => matches!(next, Running | Aborted | Failed),
            Running => matches!(next, Pending | Waiting | Succeeded | Failed | Aborted),
            Waiting => matches!(next, Pending | Running | Failed | Aborted),
            Succeeded | Failed | Aborted => false,
        }
    }

    /// The status that the run's message takes when the run ends like this.
    pub const fn message_status(self) -> MessageStatus {
        match self {
            Self::Succeeded => MessageStatus::Completed,
            Self::Failed => MessageStatus::Error,
            Self::Aborted => MessageStatus::Aborted,
            Self::Scheduled | Self::Queued | Self::Pending | Self::Running | Self::Waiting => {
                MessageStatus::Streaming
            }
        }
    }
}

impl Reason {
    /// Somebody asked for the end.
    pub const fn is_ordered(self) -> bool {
        matches!(self, Self::Stop | Self::Superseded | Self::ChatDeleted)
    }

    /// The status of a run that ends for this reason.
    pub const fn status(self) -> RunStatus {
        match self {
            Self::Done => RunStatus::Succeeded,
            Self::Stop | Self::Superseded | Self::Expired | Self::ChatDeleted => RunStatus::Aborted,
            Self::StepLimit
            | Self::Budget
            | Self::Deadline
            | Self::Provider
            | Self::Tool
            | Self::Loop
            | Self::OutputLimit
            | Self::CallLimit
            | Self::CrashLimit
            | Self::Internal => RunStatus::Failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_is_final() {
        for from in RunStatus::ALL.iter().filter(|s| s.is_terminal()) {
            assert!(RunStatus::ALL.iter().all(|to| !from.may_become(*to)), "{from}");
        }
    }

    #[test]
    fn every_status_but_a_terminal_one_can_be_stopped() {
        for from in RunStatus::ALL.iter().filter(|s| !s.is_terminal()) {
            assert!(from.may_become(RunStatus::Aborted), "{from}");
        }
    }

    #[test]
    fn only_a_slot_holder_runs() {
        for from in RunStatus::ALL.iter().filter(|s| s.may_become(RunStatus::Running)) {
            assert!(from.holds_slot(), "{from}");
        }
    }

    #[test]
    fn stored_words_round_trip() {
        for status in RunStatus::ALL {
            assert_eq!(status.as_str().parse::<RunStatus>().unwrap(), *status);
        }
        for reason in Reason::ALL {
            assert_eq!(reason.as_str().parse::<Reason>().unwrap(), *reason);
            assert!(reason.status().is_terminal());
        }
        assert!("cancelled".parse::<RunStatus>().is_err());
    }
}
