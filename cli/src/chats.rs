//! `longhaul chats`: conversations and what was said in them.

use clap::Subcommand;
use comfy_table::Cell;

use crate::{
    Global,
    client::view::{Chat, Instant, Message},
    exit::Outcome,
    output::{Format, harmless, print},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lists conversations, the newest first
    List {
        /// How many at most
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=200))]
        limit: u32,
        /// All of them
        #[arg(long)]
        all: bool,
    },
    /// Prints a conversation, the oldest message first
    Messages { id: String },
}

pub(crate) async fn run(global: &Global, command: Command) -> Outcome {
    let (client, output) = (global.client()?, global.output());
    match command {
        Command::List { limit, all } => {
            let chats = client.list::<Chat>(&["v1", "chats"], Vec::new(), limit, all).await?;
            output.list(
                &["chat", "agent", "created", "title"],
                &chats,
                |chat| chat.raw.clone(),
                |chat| row(&chat.item),
            )
        }
        Command::Messages { id } => {
            let path = ["v1", "chats", &id, "messages"];
            let messages = client.list::<Message>(&path, Vec::new(), 200, true).await?;
            match output.format {
                Format::Table => {
                    print(&messages.iter().map(|message| shown(&message.item)).collect::<String>())
                }
                _ => output.list(&[], &messages, |message| message.raw.clone(), |_| Vec::new()),
            }
        }
    }
}

fn row(chat: &Chat) -> Vec<Cell> {
    vec![
        Cell::new(harmless(&chat.id)),
        Cell::new(harmless(chat.agent.as_deref().unwrap_or_default())),
        Cell::new(chat.created_at.as_ref().map(Instant::shown).unwrap_or_default()),
        Cell::new(harmless(chat.title.as_deref().unwrap_or_default())),
    ]
}

/// A message: who, when, how it stands, and indented what was said and done. Thoughts are left out.
fn shown(message: &Message) -> String {
    let marks = [
        Some(message.role.clone()),
        message.created_at.as_ref().map(Instant::shown),
        message.status.clone().filter(|status| status != "completed"),
        message.run_id.as_ref().map(|run| format!("run {run}")),
    ];
    let mut text = marks.into_iter().flatten().collect::<Vec<_>>().join("  ") + "\n";
    for part in &message.parts {
        let said = match part.kind.as_str() {
            "text" => harmless(&part.text),
            "tool" => format!("[{} {}]", harmless(&part.name), harmless(&part.state)),
            _ => continue,
        };
        for line in said.lines() {
            text += format!("  {line}").trim_end();
            text += "\n";
        }
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_message_shows_what_was_said_and_done() {
        let message = json!({
            "role": "assistant", "status": "streaming", "runId": "r1", "createdAt": "2026-11-20T10:00:00Z",
            "parts": [
                {"type": "step", "step": 1}, {"type": "reasoning", "text": "hm"},
                {"type": "tool", "callId": "c", "name": "clock", "arguments": {}, "state": "succeeded"},
                {"type": "text", "text": "It is\n\nten.\u{1b}c"}, {"type": "moon"},
            ],
        });
        insta::assert_snapshot!(shown(&serde_json::from_value(message).unwrap()), @r"
        assistant  2026-11-20T10:00:00Z  streaming  run r1
          [clock succeeded]
          It is

          ten.�c
        ");
    }
}
