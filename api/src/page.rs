//! Lists in pages: `limit` and `cursor` in, `data`, `nextCursor`, `hasMore` and a `Link` header out.

use axum::{
    Json,
    http::{HeaderValue, Uri, header},
    response::{IntoResponse, Response},
};
use longhaul_shared::store::{Listed, Page};
use serde::{Serialize, de::DeserializeOwned};
use url::form_urlencoded;
use utoipa::ToSchema;

use crate::{cursor, error::ApiError};

const DEFAULT_LIMIT: u32 = 50;
pub(crate) const MAX_LIMIT: u32 = 200;

/// A page of a list.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Paged<T> {
    pub(crate) data: Vec<T>,
    /// Ask for the next page with this as `cursor`; null on the last page.
    pub(crate) next_cursor: Option<String>,
    pub(crate) has_more: bool,
}

/// The page that a request asks for. `list` names the list in its cursors.
pub(crate) fn requested<K: DeserializeOwned>(
    list: &str,
    limit: Option<u32>,
    cursor: Option<&str>,
) -> Result<Page<K>, ApiError> {
    Ok(Page {
        limit: check_limit(limit, DEFAULT_LIMIT, MAX_LIMIT)?,
        after: cursor.map(|cursor| cursor::decode(list, cursor)).transpose()?,
    })
}

pub(crate) fn check_limit(limit: Option<u32>, default: u32, max: u32) -> Result<u32, ApiError> {
    match limit {
        None => Ok(default),
        Some(limit) if (1..=max).contains(&limit) => Ok(limit),
        Some(_) => Err(ApiError::parameter("limit", format!("must be between 1 and {max}"))),
    }
}

/// The answer with that page.
pub(crate) fn answer<T, K, V>(
    list: &str,
    uri: &Uri,
    listed: Listed<T, K>,
    view: impl FnMut(T) -> V,
) -> Response
where
    K: Serialize,
    V: Serialize,
{
    let next_cursor = listed.next.map(|key| cursor::encode(list, &key));
    let link = next_cursor.as_deref().map(|cursor| link_to(uri, cursor));
    let has_more = next_cursor.is_some();
    let data = listed.items.into_iter().map(view).collect();
    let mut response = Json(Paged { data, next_cursor, has_more }).into_response();
    if let Some(link) = link.and_then(|link| HeaderValue::from_str(&link).ok()) {
        response.headers_mut().insert(header::LINK, link);
    }
    response
}

fn link_to(uri: &Uri, next: &str) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    for (name, value) in form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()) {
        if name != "cursor" {
            query.append_pair(&name, &value);
        }
    }
    query.append_pair("cursor", next);
    format!("<{}?{}>; rel=\"next\"", uri.path(), query.finish())
}

#[cfg(test)]
mod tests {
    use longhaul_shared::domain::ids::RunId;

    use super::*;
    use crate::error::Code;

    #[test]
    fn a_limit_is_taken_at_its_bounds_and_refused_beyond_them() {
        for (limit, expected) in
            [(None, Some(50)), (Some(1), Some(1)), (Some(200), Some(200)), (Some(0), None), (Some(201), None)]
        {
            assert_eq!(requested::<RunId>("runs", limit, None).ok().map(|page| page.limit), expected);
        }
        assert_eq!(requested::<RunId>("runs", None, Some("zz")).unwrap_err().code, Code::InvalidCursor);
    }

    #[test]
    fn the_next_link_keeps_the_filters_and_replaces_the_cursor() {
        let uri = Uri::from_static("/v1/runs?tag=a%26b&cursor=old&limit=2");
        assert_eq!(link_to(&uri, "new"), "</v1/runs?tag=a%26b&limit=2&cursor=new>; rel=\"next\"");
    }

    #[tokio::test]
    async fn the_last_page_has_no_cursor_and_no_link() {
        let listed = Listed { items: vec![1, 2], next: None::<RunId> };
        let response = answer("runs", &Uri::from_static("/v1/runs"), listed, |n| n);
        assert!(!response.headers().contains_key(header::LINK));
        let body = axum::body::to_bytes(response.into_body(), 1000).await.unwrap();
        assert_eq!(&body[..], br#"{"data":[1,2],"nextCursor":null,"hasMore":false}"#);
    }
}
