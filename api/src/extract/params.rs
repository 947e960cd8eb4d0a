//! Ids in paths, and query strings of a known shape.

use std::str::FromStr;

use axum::{
    RequestPartsExt,
    extract::{FromRequestParts, Path},
    http::request::Parts,
};
use serde::de::DeserializeOwned;
use url::form_urlencoded;

use super::decode;
use crate::{
    auth::ACCESS_TOKEN,
    error::{ApiError, Code},
    state::AppState,
};

/// Length of a UUID in its one accepted spelling.
const ID_LEN: usize = 36;

/// The id in the path. One that cannot be an id is answered like one that nothing has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PathId<T>(pub(crate) T);

impl<T: FromStr + Send> FromRequestParts<AppState> for PathId<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, ApiError> {
        let Path(text) = parts.extract::<Path<String>>().await.map_err(|_| Code::NotFound)?;
        parse_id(&text).map(Self).ok_or_else(|| Code::NotFound.into())
    }
}

pub(crate) fn parse_id<T: FromStr>(text: &str) -> Option<T> {
    if text.len() == ID_LEN { text.parse().ok() } else { None }
}

/// The query string. Unknown and repeated parameters are refused. A token in it is the guard's.
#[derive(Debug)]
pub(crate) struct Params<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequestParts<AppState> for Params<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &AppState) -> Result<Self, ApiError> {
        from_query(parts.uri.query().unwrap_or_default()).map(Self)
    }
}

fn from_query<T: DeserializeOwned>(query: &str) -> Result<T, ApiError> {
    let is_token = |pair: &&str| pair.split('=').next() == Some(ACCESS_TOKEN);
    let query = query.split('&').filter(|pair| !is_token(pair)).collect::<Vec<_>>().join("&");
    let pairs = form_urlencoded::parse(query.as_bytes());
    decode(serde_urlencoded::Deserializer::new(pairs))
        .map_err(|misfit| ApiError::parameter(misfit.path.join("."), misfit.detail))
}

#[cfg(test)]
mod tests {
    use longhaul_shared::domain::ids::RunId;
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Query {
        limit: Option<u32>,
        chat_id: Option<String>,
    }

    #[test]
    fn known_parameters_are_decoded() {
        let query: Query = from_query("limit=7&chatId=a%20b").unwrap();
        assert_eq!((query.limit, query.chat_id.as_deref()), (Some(7), Some("a b")));
        assert!(from_query::<Query>("").unwrap().limit.is_none());
        assert_eq!(from_query::<Query>("access_token=x&limit=7").unwrap().limit, Some(7));
    }

    #[test]
    fn unknown_repeated_and_malformed_parameters_are_refused_by_name() {
        for (query, name) in [
            ("limt=7", "limt"),
            ("limit=7&limit=8", "limit"),
            ("limit=x", "limit"),
            ("limit=-1", "limit"),
            ("limit=", "limit"),
        ] {
            let error = from_query::<Query>(query).unwrap_err();
            assert_eq!(error.code, Code::InvalidRequest);
            assert_eq!(error.flaws[0].parameter.as_deref(), Some(name), "{query}");
        }
    }

    #[test]
    fn an_id_has_one_spelling() {
        let id = RunId::generate();
        assert_eq!(parse_id::<RunId>(&id.to_string()), Some(id));
        for text in ["", "x", "../etc", &id.0.simple().to_string(), &format!("{{{id}}}"), &format!("{id} ")] {
            assert_eq!(parse_id::<RunId>(text), None, "{text}");
        }
    }
}
