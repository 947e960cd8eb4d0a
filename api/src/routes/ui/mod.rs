//! What the AI SDK's transports call: `DefaultChatTransport` of `useChat`, and `WorkflowChatTransport`.
//!
//! A chat goes by the name that the page gives it. Failures are plain text, since a page shows them as they are.

mod load;
mod resume;
mod stop;
mod submit;

use axum::{
    Router,
    http::{HeaderName, HeaderValue},
    response::Response,
    routing::{get, post},
};
use bytes::Bytes;
use longhaul_shared::{
    domain::{
        chat::Chat,
        ids::{ChatId, RunId, WorkspaceId},
        run::Run,
        text,
    },
    tail::Slice,
};

use super::{
    found,
    sse::{self, View},
};
use crate::{
    dialect::UI,
    error::ApiError,
    extract::parse_id,
    state::AppState,
    views::{
        responses,
        ui::{Chunk, DONE, Encoder},
    },
};

pub(crate) fn routes() -> Router<AppState> {
    Router::new()
        .route(UI, post(submit::submit))
        .route("/api/chat/{id}", get(load::load))
        .route("/api/chat/{id}/stream", get(resume::resume))
        .route("/api/chat/{id}/stop", post(stop::stop))
}

/// The chunks of one run from number `start` on.
struct Chunks {
    encoder: Encoder,
    /// How many chunks are still to be left out.
    to_skip: usize,
    new: Vec<Chunk>,
}

impl Chunks {
    fn new(run: &Run, start: usize) -> Self {
        Self {
            encoder: Encoder::new(run.id, run.assistant_message_id, run.renderer),
            to_skip: start,
            new: vec![],
        }
    }
}

impl View for Chunks {
    const OPENING: &'static str = "";
    const CLOSING: &'static str = DONE;

    fn render(&mut self, slice: &Slice) -> Bytes {
        for (_, event) in slice.events() {
            self.encoder.push(event, &mut self.new);
        }
        let mut text = vec![];
        for chunk in self.new.drain(..) {
            if self.to_skip > 0 {
                self.to_skip -= 1;
            } else {
                chunk.write_frame(&mut text);
            }
        }
        Bytes::from(text)
    }
}

/// The whole run, or what follows its first chunks.
fn stream(state: &AppState, run: &Run, start: usize) -> Response {
    let mut response = sse::respond(state, run, 0, Chunks::new(run, start));
    let headers = response.headers_mut();
    headers.insert(HeaderName::from_static("x-vercel-ai-ui-message-stream"), HeaderValue::from_static("v1"));
    let id = HeaderValue::from_str(&run.id.to_string()).expect("an id is ASCII");
    headers.insert(HeaderName::from_static("x-workflow-run-id"), id);
    response
}

/// What an id in a path names.
enum Named {
    Chat(Box<Chat>),
    Run(Box<Run>),
    Nothing,
}

/// Whether it is the id of a response or of a conversation, there or not.
fn is_ours(id: &str) -> bool {
    responses::run_of(id).is_some() || responses::chat_of(id).is_some()
}

/// The run or the chat that has this id, here or in OpenAI's API, or the chat that a page calls so.
async fn named(state: &AppState, workspace: WorkspaceId, id: String) -> Result<Named, ApiError> {
    // As names are cleaned before they are stored.
    let id = text::clean_owned(id);
    if let Some(run_id) = parse_id::<RunId>(&id).or_else(|| responses::run_of(&id))
        && let Some(run) = found(state.store.run(workspace, run_id).await)?
    {
        return Ok(Named::Run(Box::new(run)));
    }
    if let Some(chat) = found(state.store.chat_of_client(workspace, &id).await)? {
        return Ok(Named::Chat(Box::new(chat)));
    }
    let chat_id = parse_id::<ChatId>(&id).or_else(|| responses::chat_of(&id));
    let Some(chat_id) = chat_id else { return Ok(Named::Nothing) };
    let chat = found(state.store.chat(workspace, chat_id).await)?;
    Ok(chat.map_or(Named::Nothing, |chat| Named::Chat(Box::new(chat))))
}
