//! The API's description: OpenAPI 3.1, made from the handlers themselves.

use std::collections::BTreeMap;

use utoipa::{
    IntoResponses, Modify, OpenApi, ToSchema,
    openapi::{
        ContentBuilder, Ref, RefOr, Response, ResponseBuilder,
        schema::Object,
        security::{HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};

use crate::{
    error::{Code, Problem},
    routes,
    views::words::one_of,
};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Longhaul",
        description = "Durable, detached agent runs: submit, leave, come back, and it is all there.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    tags(
        (name = "runs", description = "Submit, read, watch, stop"),
        (name = "chats", description = "The conversations that runs belong to"),
        (name = "system", description = "The server itself"),
    ),
    security(("apiKey" = [])),
    components(schemas(Problem, crate::error::Flaw)),
    modifiers(&Common),
)]
struct Document;

struct Common;

impl Modify for Common {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let components = document.components.get_or_insert_default();
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .bearer_format("lh_…")
            .description(Some("An API key. A server on a loopback address may be started to need none."))
            .build();
        components.add_security_scheme("apiKey", SecurityScheme::Http(scheme));
    }
}

/// The failures that every call behind a key may answer with, all in one shape.
pub(crate) struct Failures;

impl IntoResponses for Failures {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let content =
            ContentBuilder::new().schema(Some(RefOr::Ref(Ref::from_schema_name(Problem::name())))).build();
        let described = |text: &str| {
            RefOr::T(
                ResponseBuilder::new()
                    .description(text)
                    .content("application/problem+json", content.clone())
                    .build(),
            )
        };
        BTreeMap::from([
            ("4XX".to_owned(), described("The call is refused; `code` says why")),
            ("5XX".to_owned(), described("The server failed or is unavailable")),
        ])
    }
}

/// The words of `code`.
pub(crate) fn problem_codes() -> Object {
    one_of(Code::ALL.iter().map(|code| code.as_str()))
}

/// The document as it is committed and served: pretty, and the same at every call.
pub fn openapi_json() -> String {
    let paths = routes::described_v1().merge(routes::open()).into_openapi();
    let mut document = Document::openapi();
    document.merge(paths);
    let mut text = document.to_pretty_json().expect("the document has string keys only");
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document() -> serde_json::Value {
        serde_json::from_str(&openapi_json()).unwrap()
    }

    #[test]
    fn the_document_is_the_same_at_every_call() {
        assert_eq!(openapi_json(), openapi_json());
        assert_eq!(document()["openapi"], "3.1.0");
    }

    #[test]
    fn every_call_is_described() {
        let document = document();
        let mut calls = vec![];
        for (path, item) in document["paths"].as_object().unwrap() {
            for method in item.as_object().unwrap().keys() {
                calls.push(format!("{} {path}", method.to_uppercase()));
            }
        }
        calls.sort();
        assert_eq!(
            calls,
            [
                "DELETE /v1/chats/{chatId}",
                "GET /livez",
                "GET /openapi.json",
                "GET /readyz",
                "GET /v1/chats",
                "GET /v1/chats/{chatId}",
                "GET /v1/chats/{chatId}/messages",
                "GET /v1/chats/{chatId}/run",
                "GET /v1/info",
                "GET /v1/runs",
                "GET /v1/runs/{runId}",
                "GET /v1/runs/{runId}/events",
                "GET /v1/runs/{runId}/steps",
                "PATCH /v1/chats/{chatId}",
                "POST /v1/chats",
                "POST /v1/chats/{chatId}/messages",
                "POST /v1/runs",
                "POST /v1/runs/stop",
                "POST /v1/runs/{runId}/stop",
                "POST /v1/runs/{runId}/token",
            ]
        );
    }

    #[test]
    fn every_reference_leads_to_a_schema() {
        let document = document();
        let text = openapi_json();
        for reference in text.split("\"#/").skip(1).map(|rest| rest.split('"').next().unwrap()) {
            assert!(document.pointer(&format!("/{reference}")).is_some(), "{reference}");
        }
    }

    #[test]
    fn operation_ids_are_unique_and_guarded_calls_can_fail() {
        let document = document();
        let mut ids = std::collections::BTreeSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, call) in item.as_object().unwrap() {
                assert!(ids.insert(call["operationId"].as_str().unwrap().to_owned()), "{method} {path}");
                let is_guarded = path.starts_with("/v1/");
                assert_eq!(call["responses"]["4XX"].is_object(), is_guarded, "{method} {path}");
            }
        }
    }

    #[test]
    fn every_field_is_in_camel_case_as_on_the_wire() {
        let document = document();
        let mut unread = vec![&document["components"]["schemas"]];
        while let Some(node) = unread.pop() {
            if let Some(properties) = node["properties"].as_object() {
                for name in properties.keys() {
                    assert!(!name.contains('_') && !name.starts_with(char::is_uppercase), "{name}");
                }
            }
            unread.extend(node.as_object().into_iter().flat_map(serde_json::Map::values));
            unread.extend(node.as_array().into_iter().flatten());
        }
    }
}
