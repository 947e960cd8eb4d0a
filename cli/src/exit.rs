//! How a command ends: the exit codes that scripts may rely on, and the failure that carries one.

use std::{fmt, io, process::ExitCode};

use longhaul_shared::{
    backends::BackendError, config::ConfigError, store::StoreError, telemetry::TelemetryError,
};

/// The documented exit codes. 2 is also what the argument parser ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Ok = 0,
    Error = 1,
    Usage = 2,
    NotFound = 3,
    Auth = 4,
    Conflict = 5,
    RunFailed = 6,
    RunAborted = 7,
    TimedOut = 124,
    Interrupted = 130,
}

impl Exit {
    /// The code for a run that is over with this status, and for one that is not.
    pub(crate) fn of_status(status: &str) -> Self {
        match status {
            "failed" => Self::RunFailed,
            "aborted" => Self::RunAborted,
            _ => Self::Ok,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command could not do its work, in words for the person who typed it. Nothing is printed without a message.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    pub(crate) message: Option<String>,
}

pub(crate) type Outcome = Result<Exit, Failure>;

impl Failure {
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: Some(message.into()) }
    }

    pub(crate) fn error(message: impl Into<String>) -> Self {
        Self::new(Exit::Error, message)
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// Puts what was being done before the reason.
    pub(crate) fn during(what: &str, error: &dyn std::error::Error) -> Self {
        Self::error(format!("{what}: {}", Causes(error)))
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::error(error.to_string())
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let exit = match &error {
            StoreError::NotFound => Exit::NotFound,
            StoreError::Conflict(_) => Exit::Conflict,
            _ => Exit::Error,
        };
        Self::new(exit, error.to_string())
    }
}

impl From<BackendError> for Failure {
    fn from(error: BackendError) -> Self {
        match error {
            BackendError::Store(error) => error.into(),
            error => Self::error(Causes(&error).to_string()),
        }
    }
}

impl From<TelemetryError> for Failure {
    fn from(error: TelemetryError) -> Self {
        Self::error(error.to_string())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        // Whoever read the output has seen enough; that is not worth a word.
        let quiet = error.kind() == io::ErrorKind::BrokenPipe;
        Self { exit: Exit::Error, message: (!quiet).then(|| error.to_string()) }
    }
}

/// An error with what caused it, on one line. A cause that its error already quotes is not said twice.
pub(crate) struct Causes<'a>(pub(crate) &'a dyn std::error::Error);

impl fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = self.0.to_string();
        let mut cause = self.0.source();
        while let Some(error) = cause {
            let text = error.to_string();
            if !line.contains(&text) {
                line.push_str(": ");
                line.push_str(&text);
            }
            cause = error.source();
        }
        f.write_str(&line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_the_documented_ones() {
        let codes = [
            (Exit::Ok, 0),
            (Exit::Error, 1),
            (Exit::Usage, 2),
            (Exit::NotFound, 3),
            (Exit::Auth, 4),
            (Exit::Conflict, 5),
            (Exit::RunFailed, 6),
            (Exit::RunAborted, 7),
            (Exit::TimedOut, 124),
            (Exit::Interrupted, 130),
        ];
        for (exit, code) in codes {
            assert_eq!(exit as u8, code);
        }
    }

    #[test]
    fn the_end_of_a_run_decides_the_exit_code() {
        for (status, exit) in [
            ("succeeded", Exit::Ok),
            ("running", Exit::Ok),
            ("failed", Exit::RunFailed),
            ("aborted", Exit::RunAborted),
        ] {
            assert_eq!(Exit::of_status(status), exit, "{status}");
        }
    }

    #[test]
    fn a_closed_pipe_is_not_worth_a_word() {
        assert_eq!(Failure::from(io::Error::from(io::ErrorKind::BrokenPipe)).message, None);
        assert!(Failure::from(io::Error::from(io::ErrorKind::NotFound)).message.is_some());
    }

    #[test]
    fn causes_stand_on_one_line_and_only_once() {
        let failure = Failure::from(StoreError::NotFound);
        assert_eq!((failure.exit, failure.message.as_deref()), (Exit::NotFound, Some("not found")));
        let inner = io::Error::other("refused");
        let outer = BackendError::Folder { path: "x".into(), source: inner };
        assert_eq!(Causes(&outer).to_string(), "cannot make the database's folder x: refused");
    }
}
