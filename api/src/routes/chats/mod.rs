//! Chats: the conversations that runs belong to.

pub(crate) mod create;
pub(crate) mod delete;
pub(crate) mod get;
pub(crate) mod list;
pub(crate) mod messages;
pub(crate) mod run;
pub(crate) mod submit;
pub(crate) mod update;

use serde_json::{Map, Value};

use crate::error::ApiError;

/// The longest title, agent name or reference.
const MAX_TEXT: usize = 500;
const MAX_METADATA_BYTES: usize = 16 * 1024;

/// Refuses a text that is empty or too long.
fn check_text(pointer: &str, text: Option<&String>) -> Result<(), ApiError> {
    match text.map(|text| text.chars().count()) {
        None | Some(1..=MAX_TEXT) => Ok(()),
        Some(_) => Err(ApiError::body(pointer, format!("must have 1 to {MAX_TEXT} characters"))),
    }
}

/// The metadata as it is stored, unless it is too large.
fn check_metadata(metadata: Option<Map<String, Value>>) -> Result<Value, ApiError> {
    let metadata = Value::Object(metadata.unwrap_or_default());
    if metadata.to_string().len() > MAX_METADATA_BYTES {
        return Err(ApiError::body("/metadata", format!("must have at most {MAX_METADATA_BYTES} bytes")));
    }
    Ok(metadata)
}
