//! In which form a failure is told: by the path of the call, since each family of clients reads its own.

/// What the AI SDK's transports call.
pub(crate) const UI: &str = "/api/chat";
/// What OpenAI's SDKs call.
pub(crate) const RESPONSES: &str = "/v1/responses";
pub(crate) const CONVERSATIONS: &str = "/v1/conversations";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// A problem document (RFC 9457).
    Problem,
    /// Plain text, which pages show as it is.
    Text,
    /// OpenAI's `{"error": …}`.
    OpenAi,
}

impl Dialect {
    pub(crate) fn of(path: &str) -> Self {
        let is_under =
            |root: &str| path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        if is_under(UI) {
            Self::Text
        } else if [RESPONSES, CONVERSATIONS, "/v1/models"].into_iter().any(is_under) {
            Self::OpenAi
        } else {
            Self::Problem
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_of_clients_has_its_paths() {
        for (path, dialect) in [
            ("/v1/runs", Dialect::Problem),
            ("/v1/responsesx", Dialect::Problem),
            ("/v1/responses", Dialect::OpenAi),
            ("/v1/models", Dialect::OpenAi),
            ("/v1/responses/resp_1/cancel", Dialect::OpenAi),
            ("/v1/conversations/conv_1/items", Dialect::OpenAi),
            ("/api/chat", Dialect::Text),
            ("/api/chat/a/stream", Dialect::Text),
        ] {
            assert_eq!(Dialect::of(path), dialect, "{path}");
        }
    }
}
