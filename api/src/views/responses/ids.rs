//! The names by which clients know runs, chats and items. Each leads back to what it names and has one spelling.

use longhaul_shared::domain::ids::{ChatId, MessageId, RunId};
use uuid::Uuid;

/// The id by which clients know a run as a response.
pub(crate) fn response_id(run_id: RunId) -> String {
    format!("resp_{}", run_id.0.simple())
}

/// The run that a client calls so.
pub(crate) fn run_of(response_id: &str) -> Option<RunId> {
    response_id.strip_prefix("resp_").and_then(id_of).map(RunId)
}

/// The id by which clients know a chat as a conversation.
pub(crate) fn conversation_id(chat_id: ChatId) -> String {
    format!("conv_{}", chat_id.0.simple())
}

/// The chat that a client calls so.
pub(crate) fn chat_of(conversation_id: &str) -> Option<ChatId> {
    conversation_id.strip_prefix("conv_").and_then(id_of).map(ChatId)
}

/// An id in its one spelling here.
fn id_of(digits: &str) -> Option<Uuid> {
    let id = Uuid::try_parse(digits).ok()?;
    (id.simple().to_string() == digits).then_some(id)
}

pub(super) fn item_id(prefix: &str, run_id: RunId, index: usize) -> String {
    format!("{prefix}_{}_{index}", run_id.0.simple())
}

/// The run whose output may have an item of that id.
pub(crate) fn run_of_item(id: &str) -> Option<RunId> {
    let (_, place) = id.split_once('_')?;
    let (run, index) = place.split_once('_')?;
    index.parse::<usize>().ok()?;
    id_of(run).map(RunId)
}

pub(super) fn input_item_id(prefix: &str, message_id: MessageId, number: usize) -> String {
    format!("{prefix}_{}_i{number}", message_id.0.simple())
}

/// The message whose item has that id.
pub(crate) fn message_of_item(id: &str) -> Option<MessageId> {
    let (_, place) = id.split_once('_')?;
    let (message, _) = place.split_once("_i")?;
    id_of(message).map(MessageId)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_leads_back_to_its_run_and_has_one_spelling() {
        let run = RunId::generate();
        let id = response_id(run);
        assert_eq!(run_of(&id), Some(run));
        for other in [&run.to_string(), &id.to_uppercase(), &format!("resp_{run}"), "resp_", "resp_x", ""] {
            assert_eq!(run_of(other), None, "{other}");
        }
    }

    #[test]
    fn an_id_leads_to_the_run_of_its_item() {
        let run = RunId::generate();
        assert_eq!(run_of_item(&item_id("msg", run, 12)), Some(run));
        for other in ["", "msg_1", "msg_x_1", "rs_1", &format!("msg_{}", run.0.simple())] {
            assert_eq!(run_of_item(other), None, "{other}");
        }
    }
}
