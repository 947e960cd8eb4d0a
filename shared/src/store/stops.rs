//! The words of a stop: the wish, how long its addressee may take, and what became of it.

use crate::domain::{
    event::Segment,
    ids::{Millis, RunId},
    run::Run,
    transition::Reason,
};

/// What became of a stop.
#[derive(Clone, Debug)]
pub enum StopOutcome {
    /// It was over already, with this status.
    AlreadyOver(Run),
    /// Nobody held it: it is over now. The segments are to be published; a run in `promoted` waits for a worker.
    Ended { run: Run, segments: Vec<Segment>, wake: Vec<String> },
    /// A live worker holds it and will end it.
    Requested(Run),
}

impl StopOutcome {
    pub fn run(&self) -> &Run {
        match self {
            Self::AlreadyOver(run) | Self::Ended { run, .. } | Self::Requested(run) => run,
        }
    }
}

/// What became of a stop that names its run by the idempotency key of its submission.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "one for each call, and it is moved once")]
pub enum KeyStop {
    Known(StopOutcome),
    /// Nobody has submitted with this key. Whoever does so within the key's time gets a run that is over.
    Noted {
        requested_at: Millis,
        expires_at: Millis,
    },
}

/// The wish that a held run ends, and the reason it is to end with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopRequest {
    pub run_id: RunId,
    pub reason: Reason,
    pub requested_at: Millis,
}

impl StopRequest {
    /// The wish that the row tells of.
    pub fn of(run: &Run) -> Option<Self> {
        let reason = run.stop_reason.unwrap_or(Reason::Stop);
        Some(Self { run_id: run.id, reason, requested_at: run.stop_requested_at? })
    }
}

/// How long the holder of a run has to follow a stop. After that anybody carries it out.
pub const STOP_GRACE_MS: i64 = 2_000;
