//! A JSON body of a known shape, with a fingerprint of what it says.

use std::time::Duration;

use axum::{
    body::Body,
    extract::{FromRequest, Request},
    http::{HeaderMap, header},
};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{decode, json_text, pointer};
use crate::{
    error::{ApiError, Code},
    state::AppState,
};

/// How long a body may take to arrive.
pub(crate) const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// A decoded body.
#[derive(Debug)]
pub(crate) struct JsonBody<T> {
    pub(crate) value: T,
    /// SHA-256 of the body with its fields sorted: equal for bodies that say the same.
    pub(crate) fingerprint: [u8; 32],
}

impl<T: DeserializeOwned> FromRequest<AppState> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        if !is_json(request.headers()) {
            return Err(Code::UnsupportedMediaType.into());
        }
        Self::from_bytes(&read_within(BODY_TIMEOUT, request.into_body(), state.settings.body_limit).await?)
    }
}

/// The bytes of a body of which little is read: pages send all of their history along, and some say that it is text.
#[derive(Debug)]
pub(crate) struct LargeBody(pub(crate) Bytes);

/// What such a body may have at least, however little others may.
const LARGE: usize = 16 * 1024 * 1024;

impl FromRequest<AppState> for LargeBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        let limit = state.settings.body_limit.max(LARGE);
        read_within(BODY_TIMEOUT, request.into_body(), limit).await.map(Self)
    }
}

impl<T: DeserializeOwned> JsonBody<T> {
    fn from_bytes(bytes: &[u8]) -> Result<Self, ApiError> {
        let body = json_text::parse(bytes)?;
        let mut hash = Sha256::new();
        digest(&body, &mut hash);
        let value = decode(body).map_err(|misfit| ApiError::body(pointer(&misfit.path), misfit.detail))?;
        Ok(Self { value, fingerprint: hash.finalize().into() })
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()) else {
        return false;
    };
    let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}

async fn read_within(time: Duration, body: Body, limit: usize) -> Result<Bytes, ApiError> {
    tokio::time::timeout(time, read(body, limit)).await.map_err(|_| ApiError::from(Code::BodyTimeout))?
}

async fn read(body: Body, limit: usize) -> Result<Bytes, ApiError> {
    axum::body::to_bytes(body, limit).await.map_err(|error| {
        let is_limit = std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source())
            .any(|error| error.to_string().contains("length limit exceeded"));
        if is_limit {
            ApiError::new(Code::PayloadTooLarge, format!("a body may have {limit} bytes"))
        } else {
            ApiError::new(Code::MalformedJson, "the body ended early")
        }
    })
}

/// Feeds a value into the hash so that no two different values feed the same, and fields in order of their names.
fn digest(value: &Value, hash: &mut Sha256) {
    match value {
        Value::Array(items) => {
            hash.update(b"[");
            for item in items {
                digest(item, hash);
                hash.update(b",");
            }
            hash.update(b"]");
        }
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(name, _)| *name);
            hash.update(b"{");
            for (name, field) in fields {
                hash.update(Value::from(name.as_str()).to_string());
                hash.update(b":");
                digest(field, hash);
                hash.update(b",");
            }
            hash.update(b"}");
        }
        scalar => hash.update(scalar.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    #[expect(dead_code, reason = "only whether a body fits is tested")]
    struct Shape {
        name: String,
        #[serde(default)]
        limits: Option<Inner>,
        #[serde(default)]
        tags: Vec<String>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    #[expect(dead_code, reason = "only whether a body fits is tested")]
    struct Inner {
        max_steps: Option<u32>,
    }

    fn refused_at(body: &str) -> String {
        let error = JsonBody::<Shape>::from_bytes(body.as_bytes()).unwrap_err();
        assert_eq!(error.code, Code::InvalidRequest, "{body}");
        error.flaws[0].pointer.clone().unwrap()
    }

    #[test]
    fn a_misfit_is_refused_with_a_pointer_to_it() {
        assert_eq!(refused_at(r#"{"name":"a","nmae":"b"}"#), "/nmae");
        assert_eq!(refused_at(r#"{"name":"a","limits":{"maxStep":1}}"#), "/limits/maxStep");
        assert_eq!(refused_at(r#"{"name":"a","limits":{"maxSteps":"x"}}"#), "/limits/maxSteps");
        assert_eq!(refused_at(r#"{"name":"a","limits":{"maxSteps":-1}}"#), "/limits/maxSteps");
        assert_eq!(refused_at(r#"{"name":"a","limits":{"maxSteps":99999999999}}"#), "/limits/maxSteps");
        assert_eq!(refused_at(r#"{"name":"a","tags":["x",7]}"#), "/tags/1");
        assert_eq!(refused_at(r#"{"name":"a","a/b~c":1}"#), "/a~1b~0c");
        assert_eq!(refused_at("{}"), "/name");
        assert_eq!(refused_at("[]"), "");
        assert_eq!(refused_at("null"), "");
    }

    #[test]
    fn bodies_that_say_the_same_have_one_fingerprint() {
        let print = |text: &str| JsonBody::<Shape>::from_bytes(text.as_bytes()).unwrap().fingerprint;
        let first = print(r#"{"name":"a","tags":["x","y"]}"#);
        assert_eq!(first, print(" { \"tags\" : [\"x\", \"\\u0079\"],\n \"name\":\"a\"}"));
        assert_ne!(first, print(r#"{"name":"a","tags":["y","x"]}"#));
        assert_ne!(first, print(r#"{"name":"a","tags":["x,y"]}"#));
        assert_ne!(first, print(r#"{"name":"a"}"#));
    }

    #[test]
    fn only_json_is_taken() {
        let check = |value: &'static str| {
            is_json(&HeaderMap::from_iter([(
                header::CONTENT_TYPE,
                axum::http::HeaderValue::from_static(value),
            )]))
        };
        for yes in
            ["application/json", "application/json; charset=utf-8", "Application/JSON", "application/x+json"]
        {
            assert!(check(yes), "{yes}");
        }
        for no in ["text/plain", "", "application/x-www-form-urlencoded", "application/jsonx", "text/x+json"]
        {
            assert!(!check(no), "{no}");
        }
        assert!(!is_json(&HeaderMap::new()));
    }

    #[tokio::test]
    async fn a_body_is_taken_at_the_limit_and_refused_above_it() {
        assert_eq!(read(Body::from("12345"), 5).await.unwrap().len(), 5);
        assert_eq!(read(Body::from("123456"), 5).await.unwrap_err().code, Code::PayloadTooLarge);
    }

    #[tokio::test]
    async fn a_body_that_drips_is_waited_for_only_so_long() {
        let drops = futures::stream::unfold(0, |n| async move {
            tokio::time::sleep(Duration::from_millis(10)).await;
            Some((Ok::<_, std::io::Error>("x"), n + 1))
        });
        let dripping = Body::from_stream(drops);
        let error = read_within(Duration::from_millis(50), dripping, 1_000_000).await.unwrap_err();
        assert_eq!(error.code, Code::BodyTimeout);
        assert_eq!(read_within(Duration::from_secs(5), Body::from("12345"), 5).await.unwrap().len(), 5);
    }
}
