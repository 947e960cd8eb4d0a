//! Why a request failed, with the exit code and the words that belong to it.

use std::fmt::Write as _;

use reqwest::StatusCode;
use serde::Deserialize;

use crate::exit::{Causes, Exit, Failure};

/// An error document of the server (RFC 9457). A proxy's answer has none of its fields.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Problem {
    title: Option<String>,
    detail: Option<String>,
    pub(crate) code: Option<String>,
    request_id: Option<String>,
    active_run_id: Option<String>,
    errors: Vec<Field>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Field {
    pointer: Option<String>,
    detail: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// No connection came about.
    #[error("cannot reach {url}: {}", Causes(.source))]
    Unreachable { url: String, source: reqwest::Error },
    /// The request may have arrived; its answer did not.
    #[error("the connection broke: {}", Causes(.0))]
    Broken(reqwest::Error),
    #[error("{}", worded(*.status, .problem))]
    Refused { status: StatusCode, problem: Box<Problem> },
    #[error("the server's answer makes no sense: {0}")]
    Nonsense(String),
}

impl ClientError {
    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Refused { status, .. } => match status.as_u16() {
                401 | 403 => Exit::Auth,
                404 | 410 => Exit::NotFound,
                409 => Exit::Conflict,
                _ => Exit::Error,
            },
            _ => Exit::Error,
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let mut message = error.to_string();
        match &error {
            ClientError::Unreachable { .. } => {
                message += "\nIs it running? `longhaul dev` starts one; --url or LONGHAUL_URL names another.";
            }
            ClientError::Refused { status, .. } if status.as_u16() == 401 => {
                message += "\nThe key comes from --api-key-file or LONGHAUL_API_KEY; `longhaul keys create` makes one.";
            }
            ClientError::Refused { problem, .. } => {
                if let Some(run) = &problem.active_run_id {
                    let _ = write!(
                        message,
                        "\nIts active run is {run}: `longhaul runs tail {run}`, or --if-busy enqueue to wait in line."
                    );
                }
            }
            _ => {}
        }
        Self::new(error.exit(), message)
    }
}

fn worded(status: StatusCode, problem: &Problem) -> String {
    let words = problem.detail.as_ref().or(problem.title.as_ref());
    let mut text = words.cloned().unwrap_or_else(|| format!("the server answered {status}"));
    for Field { pointer, detail } in &problem.errors {
        // A problem with a single field may be summed up by it.
        let Some(detail) = detail.as_ref().filter(|detail| !text.contains(*detail)) else { continue };
        let _ = write!(text, "; {}: {detail}", pointer.as_deref().unwrap_or("body"));
    }
    let marks = [problem.code.clone(), problem.request_id.as_ref().map(|id| format!("request {id}"))];
    let marks: Vec<String> = marks.into_iter().flatten().collect();
    if marks.is_empty() { text } else { format!("{text} ({})", marks.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, body: &str) -> Failure {
        let problem = serde_json::from_str(body).unwrap();
        ClientError::Refused { status: StatusCode::from_u16(status).unwrap(), problem }.into()
    }

    #[test]
    fn each_kind_of_refusal_has_its_exit_code() {
        for (status, exit) in [
            (400, Exit::Error),
            (401, Exit::Auth),
            (403, Exit::Auth),
            (404, Exit::NotFound),
            (409, Exit::Conflict),
            (503, Exit::Error),
        ] {
            assert_eq!(refused(status, "{}").exit, exit, "{status}");
        }
    }

    #[test]
    fn a_busy_chat_says_how_to_get_to_its_run() {
        let failure = refused(
            409,
            r#"{"title":"Conflict","detail":"a run is already active in this chat","code":"A_RUN_ALREADY_ACTIVE",
                "requestId":"q1","activeRunId":"r1","new":1}"#,
        );
        insta::assert_snapshot!(failure.message.unwrap(), @r"
        a run is already active in this chat (A_RUN_ALREADY_ACTIVE, request q1)
        Its active run is r1: `longhaul runs tail r1`, or --if-busy enqueue to wait in line.
        ");
    }

    #[test]
    fn a_refused_body_names_its_fields() {
        let failure =
            refused(400, r#"{"title":"Bad request","errors":[{"pointer":"/agent","detail":"is unknown"}]}"#);
        assert_eq!(failure.message.as_deref(), Some("Bad request; /agent: is unknown"));
        let summed =
            r#"{"detail":"/agent: is unknown","errors":[{"pointer":"/agent","detail":"is unknown"}]}"#;
        assert_eq!(refused(400, summed).message.as_deref(), Some("/agent: is unknown"));
        assert_eq!(refused(502, "{}").message.as_deref(), Some("the server answered 502 Bad Gateway"));
    }
}
