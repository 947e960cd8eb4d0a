//! Requests into values, strictly: what is unknown, misspelt or out of bounds is refused with the place named.

mod body;
mod json_text;
mod params;

pub(crate) use body::{BODY_TIMEOUT, JsonBody, LargeBody};
pub(crate) use json_text::parse as parse_json;
pub(crate) use params::{Params, PathId, parse_id};

use serde::de::DeserializeOwned;
use serde_path_to_error::{Path, Segment};

/// Why a value does not have the expected shape, and where.
struct Misfit {
    path: Vec<String>,
    detail: String,
}

/// Decodes, keeping the path to whatever does not fit.
fn decode<'de, T, D>(input: D) -> Result<T, Misfit>
where
    T: DeserializeOwned,
    D: serde::Deserializer<'de>,
{
    serde_path_to_error::deserialize(input).map_err(|error| {
        let mut path = segments(error.path());
        let detail = error.into_inner().to_string();
        // The path ends above a field that is missing or repeated; the field itself belongs to it.
        for (lead, meaning) in [("missing field `", "is required"), ("duplicate field `", "is given twice")] {
            if let Some(name) = detail.strip_prefix(lead).and_then(|rest| rest.strip_suffix('`')) {
                path.push(name.to_owned());
                return Misfit { path, detail: meaning.to_owned() };
            }
        }
        Misfit { path, detail }
    })
}

fn segments(path: &Path) -> Vec<String> {
    path.iter()
        .filter_map(|segment| match segment {
            Segment::Seq { index } => Some(index.to_string()),
            Segment::Map { key } => Some(key.clone()),
            Segment::Enum { variant } => Some(variant.clone()),
            Segment::Unknown => None,
        })
        .collect()
}

/// The path as a JSON Pointer (RFC 6901).
fn pointer(path: &[String]) -> String {
    path.iter()
        .fold(String::new(), |pointer, part| pointer + "/" + &part.replace('~', "~0").replace('/', "~1"))
}
