//! The one table of what can go wrong with a call: stable word, status, title, and whether to try again.

use axum::http::StatusCode;

macro_rules! codes {
    ($($variant:ident = $code:literal, $status:ident, retry $retryable:literal, $title:literal;)+) => {
        /// What went wrong, as a stable word. Never renamed, never reused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Code { $($variant),+ }

        impl Code {
            pub(crate) const ALL: &'static [Self] = &[$(Self::$variant),+];

            pub(crate) const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $code),+ }
            }

            pub(crate) const fn status(self) -> StatusCode {
                match self { $(Self::$variant => StatusCode::$status),+ }
            }

            /// Whether the same call may succeed later.
            pub(crate) const fn is_retryable(self) -> bool {
                match self { $(Self::$variant => $retryable),+ }
            }

            pub(crate) const fn title(self) -> &'static str {
                match self { $(Self::$variant => $title),+ }
            }
        }
    };
}

codes! {
    InvalidRequest = "INVALID_REQUEST", BAD_REQUEST, retry false, "The request is not valid";
    MalformedJson = "MALFORMED_JSON", BAD_REQUEST, retry false, "The body is not readable JSON";
    InvalidCursor = "INVALID_CURSOR", BAD_REQUEST, retry false, "The cursor is not one of this list";
    Unauthenticated = "UNAUTHENTICATED", UNAUTHORIZED, retry false, "A valid API key is required";
    Forbidden = "FORBIDDEN", FORBIDDEN, retry false, "The caller may not do this";
    NotFound = "NOT_FOUND", NOT_FOUND, retry false, "There is no such thing";
    PreviousResponseNotFound = "PREVIOUS_RESPONSE_NOT_FOUND", BAD_REQUEST, retry false,
        "There is no such response to go on with";
    AgentNotFound = "AGENT_NOT_FOUND", NOT_FOUND, retry false, "There is no such agent";
    MethodNotAllowed = "METHOD_NOT_ALLOWED", METHOD_NOT_ALLOWED, retry false, "The path does not take this method";
    BodyTimeout = "BODY_TIMEOUT", REQUEST_TIMEOUT, retry true, "The body did not arrive in time";
    RunAlreadyActive = "A_RUN_ALREADY_ACTIVE", CONFLICT, retry false, "A run is already active in this chat";
    SupersedeInvalid = "SUPERSEDE_INVALID", BAD_REQUEST, retry false, "The run to supersede is not one of this chat";
    SupersedeMismatch = "SUPERSEDE_TARGET_MISMATCH", CONFLICT, retry false,
        "Another run than the expected one is active in this chat";
    SupersedeTimeout = "SUPERSEDE_TIMEOUT", CONFLICT, retry true, "The superseded run has not ended yet";
    IdempotencyKeyInFlight = "IDEMPOTENCY_KEY_IN_FLIGHT", CONFLICT, retry true,
        "A request with this idempotency key is in flight";
    Conflict = "CONFLICT", CONFLICT, retry false, "The request conflicts with the present state";
    PayloadTooLarge = "PAYLOAD_TOO_LARGE", PAYLOAD_TOO_LARGE, retry false, "The body is too large";
    UnsupportedMediaType = "UNSUPPORTED_MEDIA_TYPE", UNSUPPORTED_MEDIA_TYPE, retry false, "The body must be JSON";
    IdempotencyKeyReused = "IDEMPOTENCY_KEY_REUSED", UNPROCESSABLE_ENTITY, retry false,
        "The idempotency key was used for a different request";
    MessageIdReused = "MESSAGE_ID_REUSED", UNPROCESSABLE_ENTITY, retry false,
        "The message id was used for a different message";
    RateLimited = "RATE_LIMITED", TOO_MANY_REQUESTS, retry true, "Too many requests";
    Internal = "INTERNAL", INTERNAL_SERVER_ERROR, retry false, "The server failed";
    RunBeginFailed = "A_RUN_BEGIN_FAILED", SERVICE_UNAVAILABLE, retry true, "The run could not be begun";
    Unavailable = "UNAVAILABLE", SERVICE_UNAVAILABLE, retry true, "The service is unavailable";
}

impl Code {
    /// The word that OpenAI's clients know for it, or our own as they would write it.
    pub(crate) fn as_openai(self) -> String {
        match self {
            Self::AgentNotFound => "model_not_found".to_owned(),
            Self::Unauthenticated => "invalid_api_key".to_owned(),
            Self::RunAlreadyActive => "conversation_locked".to_owned(),
            Self::RateLimited => "rate_limit_exceeded".to_owned(),
            other => other.as_str().to_ascii_lowercase(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_code_is_unique_and_has_an_error_status() {
        let words: BTreeSet<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(words.len(), Code::ALL.len());
        for code in Code::ALL {
            let status = code.status();
            assert!(status.is_client_error() || status.is_server_error(), "{code:?}");
            assert!(code.as_str().bytes().all(|b| b.is_ascii_uppercase() || b == b'_'), "{code:?}");
            assert!(!code.title().is_empty());
        }
    }
}
