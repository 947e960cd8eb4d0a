//! The events of a stream as they go over the wire.

use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;

use super::item::{Content, Item};

/// Events as server-sent events, of which a reader may want only the later ones.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    text: Vec<u8>,
    /// The first number that is wanted.
    first: u64,
}

impl Frames {
    pub(crate) fn from(first: u64) -> Self {
        Self { text: vec![], first }
    }

    /// For those who want to know only what the events lead to.
    pub(crate) fn none() -> Self {
        Self::from(u64::MAX)
    }

    pub(crate) fn take(&mut self) -> Bytes {
        Bytes::from(std::mem::take(&mut self.text))
    }

    pub(super) fn add(&mut self, kind: &'static str, number: u64, fields: &Fields<'_>) {
        if number < self.first {
            return;
        }
        let head = format!("event: {kind}\ndata: {{\"type\":\"{kind}\",\"sequence_number\":{number}");
        self.text.extend_from_slice(head.as_bytes());
        let brace = self.text.len();
        serde_json::to_writer(&mut self.text, fields)
            .expect("an event has string keys and finite numbers only");
        self.text[brace] = b',';
        self.text.extend_from_slice(b"\n\n");
    }
}

/// What an event says beside its type and number.
#[derive(Clone, Copy, Default, Serialize)]
pub(super) struct Fields<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) response: Option<&'a Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) item_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) output_index: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) content_index: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) summary_index: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) item: Option<&'a Item>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) part: Option<&'a Content>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) delta: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) arguments: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) logprobs: Option<[(); 0]>,
}
