//! Items that an input refers to instead of sending them: each is looked up, and what it says is read as if it had been
//! sent. Together they are bounded like a body.

use std::collections::{BTreeMap, btree_map::Entry};

use longhaul_shared::domain::{
    ids::{RunId, WorkspaceId},
    message::{Part, Speaker},
};

use super::{encoded, found, head_of};
use crate::{
    error::{ApiError, Code},
    state::AppState,
    views::responses::{Content, Item, message_of_item, part_of_item, run_of_item},
};

/// How many responses an input may refer to the items of.
const MAX_REFERRED: usize = 100;

/// What the model is to read of an item that somebody refers to.
#[derive(Default)]
pub(super) struct Referred {
    pub(super) parts: Vec<Part>,
    /// To be read behind the other calls of its step.
    pub(super) later: Option<Part>,
}

/// The items of the runs that an input refers to, and whether each is of an attempt that broke off.
#[derive(Default)]
pub(super) struct References {
    runs: BTreeMap<RunId, Vec<(Item, bool)>>,
    /// Of all that is read of them.
    most_bytes: usize,
    bytes: usize,
}

impl References {
    pub(super) fn new(most_bytes: usize) -> Self {
        Self { most_bytes, ..Self::default() }
    }

    pub(super) async fn resolve(
        &mut self,
        state: &AppState,
        workspace: WorkspaceId,
        id: &str,
    ) -> Result<Referred, ApiError> {
        let referred = if let Some(message) = message_of_item(id) {
            let message = found(state.store.message(workspace, message).await)?.ok_or_else(|| unknown(id))?;
            let part = part_of_item(&message, id).ok_or_else(|| unknown(id))?;
            Referred { parts: vec![part], later: None }
        } else {
            let items = self.items(state, workspace, id).await?;
            let (item, is_torn) =
                items.iter().find(|(item, _)| item.id() == id).ok_or_else(|| unknown(id))?;
            if *is_torn { Referred::default() } else { read(item, items) }
        };
        let size = |part: &Part| match part {
            Part::Text { text } | Part::Said { text, .. } => text.len(),
            Part::Call { arguments, .. } => arguments.len(),
            Part::CallResult { output, .. } => output.len(),
            _ => 0,
        };
        self.bytes += referred.parts.iter().chain(&referred.later).map(size).sum::<usize>();
        if self.bytes > self.most_bytes {
            let told =
                format!("refers to more than {} bytes; go on with previous_response_id", self.most_bytes);
            return Err(ApiError::body("/input", told));
        }
        Ok(referred)
    }

    async fn items(
        &mut self,
        state: &AppState,
        workspace: WorkspaceId,
        id: &str,
    ) -> Result<&[(Item, bool)], ApiError> {
        let run_id = run_of_item(id).ok_or_else(|| unknown(id))?;
        let count = self.runs.len();
        Ok(match self.runs.entry(run_id) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(_) if count == MAX_REFERRED => {
                let told = format!("refers to items of more than {MAX_REFERRED} responses");
                return Err(ApiError::body("/input", told));
            }
            Entry::Vacant(place) => {
                let run = found(state.store.run(workspace, run_id).await)?.ok_or_else(|| unknown(id))?;
                let head = head_of(state, &run).await?;
                if !run.status.is_terminal() || !head.is_kept() {
                    return Err(unknown(id));
                }
                let encoder = encoded(state, workspace, run_id, head).await?;
                place.insert(encoder.items().map(|(item, is_torn)| (item.clone(), is_torn)).collect())
            }
        })
    }
}

fn unknown(id: &str) -> ApiError {
    ApiError {
        code: Code::NotFound,
        ..ApiError::body("/input", format!("there is no item with the id `{id}`"))
    }
}

fn read(item: &Item, all: &[(Item, bool)]) -> Referred {
    match item.clone() {
        Item::Message { content, .. } => {
            let text = content.iter().map(Content::as_text).collect();
            Referred { parts: vec![Part::Said { by: Speaker::Assistant, text }], later: None }
        }
        Item::Reasoning { .. } | Item::McpApprovalRequest { .. } => Referred::default(),
        Item::FunctionCall { call_id, name, arguments, .. } => {
            Referred { parts: vec![Part::Call { call_id, name, arguments }], later: None }
        }
        Item::McpCall { id, name, arguments, told, step, .. } => {
            let result = Part::CallResult { call_id: id.clone(), output: told };
            let call = Part::Call { call_id: id, name, arguments };
            let is_beside = |(item, _): &(Item, bool)| matches!(item, Item::FunctionCall { step: other, .. } if *other == step);
            if all.iter().any(is_beside) {
                Referred { parts: vec![call], later: Some(result) }
            } else {
                Referred { parts: vec![call, result], later: None }
            }
        }
    }
}
