//! `longhaul runs`: looks at runs, tails them, stops them.

use std::time::{Duration, SystemTime};

use clap::{Subcommand, ValueEnum};
use comfy_table::Cell;
use longhaul_shared::domain::ids::Seq;
use serde_json::Value;

use crate::{
    Global,
    client::{
        Client,
        view::{Instant, Run, Seen, Step, took},
    },
    exit::{Exit, Outcome},
    follow::{Answer, Sink, follow},
    output::{Output, fields, harmless, status},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lists runs, the newest first
    List(List),
    /// Shows one run: where it stands, and why
    Get { id: String },
    /// Lists a run's saved steps with their tool calls
    Steps { id: String },
    /// Prints a run from its beginning, while it happens
    Tail {
        id: String,
        /// Begins behind this event
        #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(i64).range(0..))]
        after: Seq,
        /// Text to read, or events as JSON lines
        #[arg(long, value_enum, default_value_t)]
        format: TailFormat,
    },
    /// Stops a run; again is fine
    Stop {
        #[arg(required_unless_present = "key")]
        id: Option<String>,
        /// The run that was or will be submitted with this idempotency key, instead of an id
        #[arg(long, conflicts_with = "id")]
        key: Option<String>,
        /// Waits until it has stopped
        #[arg(long)]
        wait: bool,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct List {
    /// Only these; may be given several times
    #[arg(long = "status", value_name = "STATUS")]
    statuses: Vec<String>,
    /// Only this agent's
    #[arg(long)]
    agent: Option<String>,
    /// Only this conversation's
    #[arg(long, value_name = "ID")]
    chat: Option<String>,
    /// Only those with this tag
    #[arg(long)]
    tag: Option<String>,
    /// Only those made since then, such as 24h
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    since: Option<Duration>,
    /// How many at most
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=200))]
    limit: u32,
    /// All of them
    #[arg(long)]
    all: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum TailFormat {
    #[default]
    Text,
    Events,
}

pub(crate) async fn run(global: &Global, command: Command) -> Outcome {
    let (client, output) = (global.client()?, global.output());
    match command {
        Command::List(list) => {
            let runs = client.list::<Run>(&["v1", "runs"], list.query(), list.limit, list.all).await?;
            output.list(HEAD, &runs, |run| run.raw.clone(), |run| row(&run.item))
        }
        Command::Get { id } => {
            let run = client.get::<Run>(&["v1", "runs", &id], &[]).await?;
            output.one(&run.raw, || detail(&run.item))
        }
        Command::Steps { id } => {
            let steps = client.whole_list::<Step>(&["v1", "runs", &id, "steps"]).await?;
            output.list(STEP_HEAD, &steps, |step| step.raw.clone(), |step| step_row(&step.item))
        }
        Command::Tail { id, after, format } => {
            // Asked first, so that a wrong address or id is told at once instead of tried for ever.
            client.get::<Run>(&["v1", "runs", &id], &[]).await?;
            let mut sink = Sink::printing(output, format == TailFormat::Events);
            Ok(follow(&client, &id, after, &mut sink, None, output).await?.exit(&id, &client, output))
        }
        Command::Stop { id: Some(id), wait, .. } => stop(&client, &id, wait, output).await,
        Command::Stop { id: None, key, wait } => {
            stop_by_key(&client, &key.unwrap_or_default(), wait, output).await
        }
    }
}

async fn stop(client: &Client, id: &str, until_over: bool, output: Output) -> Outcome {
    let asked: Seen<Value> = client.tell(&["v1", "runs", id, "stop"], &[]).await?;
    if !until_over {
        let status = asked.item["status"].as_str().unwrap_or("stopping");
        let over = matches!(status, "succeeded" | "failed" | "aborted");
        let shown = if over { format!("{id} is {status}\n") } else { format!("{id} is stopping\n") };
        return output.one(&asked.raw, || shown);
    }
    // The run's own answer is not what was asked for, and that it ended is success, however it did.
    let quiet = Output { quiet: true, ..output };
    if wait_for_the_end(client, id, quiet).await? == Exit::Interrupted {
        return Ok(Exit::Interrupted);
    }
    let run = client.get::<Run>(&["v1", "runs", id], &[]).await?;
    output.one(&run.raw, || format!("{id} is {}\n", run.item.status))
}

/// A key that nobody has submitted with has no run to wait for.
async fn stop_by_key(client: &Client, key: &str, until_over: bool, output: Output) -> Outcome {
    let body = serde_json::json!({ "idempotencyKey": key });
    let (asked, _): (Seen<Value>, _) = client.post(&["v1", "runs", "stop"], key, &body).await?;
    match asked.item["runId"].as_str() {
        Some(id) => stop(client, id, until_over, output).await,
        None => output.one(&asked.raw, || "noted: whatever comes with this key is stopped\n".to_owned()),
    }
}

async fn wait_for_the_end(client: &Client, id: &str, output: Output) -> Outcome {
    let mut sink = Sink::Answer(Answer::default());
    Ok(follow(client, id, 0, &mut sink, None, output).await?.exit(id, client, output))
}

impl List {
    fn query(&self) -> Vec<(&'static str, String)> {
        let mut query: Vec<_> =
            (!self.statuses.is_empty()).then(|| ("status", self.statuses.join(","))).into_iter().collect();
        query.extend(self.chat.clone().map(|chat| ("chatId", chat)));
        query.extend(self.agent.clone().map(|agent| ("agent", agent)));
        query.extend(self.tag.clone().map(|tag| ("tag", tag)));
        let since = self.since.and_then(|since| SystemTime::now().checked_sub(since));
        query.extend(since.map(|at| ("createdAfter", humantime::format_rfc3339_millis(at).to_string())));
        query
    }
}

const HEAD: &[&str] = &["run", "status", "agent", "steps", "created", "took", "reason"];

fn row(run: &Run) -> Vec<Cell> {
    vec![
        Cell::new(harmless(&run.id)),
        status(run.shown_status()),
        Cell::new(harmless(&run.agent)),
        Cell::new(run.step_count),
        Cell::new(run.created_at.as_ref().map(Instant::shown).unwrap_or_default()),
        Cell::new(run.took().unwrap_or_default()),
        Cell::new(run.reason.as_deref().unwrap_or_default()),
    ]
}

fn detail(run: &Run) -> String {
    fields([
        ("run", Some(run.id.clone())),
        ("status", Some(run.shown_status().to_owned())),
        ("reason", run.reason.clone()),
        ("error", run.error.as_ref().map(|error| format!("{} ({})", error.message, error.code))),
        ("blocked by", run.blocked_by.as_ref().map(blocked)),
        ("agent", Some(run.agent.clone())),
        ("chat", Some(run.chat_id.clone())),
        ("steps", Some(run.step_count.to_string())),
        ("attempts", Some(run.attempts.to_string())),
        ("tokens", Some(format!("{} in, {} out", run.usage.input_tokens, run.usage.output_tokens))),
        ("tags", (!run.tags.is_empty()).then(|| run.tags.join(", "))),
        ("created", run.created_at.as_ref().map(Instant::shown)),
        ("started", run.started_at.as_ref().map(Instant::shown)),
        ("finished", run.finished_at.as_ref().map(Instant::shown)),
        ("took", run.took()),
    ])
}

/// Why it is not moving, in words.
fn blocked(by: &Value) -> String {
    let field = |name: &str| by[name].as_str().unwrap_or("?");
    match by["kind"].as_str().or(by.as_str()) {
        Some("run") => format!("run {} of the same chat", field("runId")),
        Some("run_at") => match by["runAt"].as_str() {
            Some(at) => format!("its time, {at}"),
            None => "its time".to_owned(),
        },
        Some("no_worker") => "no worker is there for its queue".to_owned(),
        Some("workers") => "all workers are busy".to_owned(),
        Some(other) => other.replace('_', " "),
        None => by.to_string(),
    }
}

const STEP_HEAD: &[&str] = &["step", "attempt", "model", "finish", "tokens in", "out", "took", "tools"];

fn step_row(step: &Step) -> Vec<Cell> {
    let tools = step.tool_calls.iter().map(|call| match call.state.as_str() {
        "succeeded" => harmless(&call.name),
        state => format!("{} ({state})", harmless(&call.name)),
    });
    vec![
        Cell::new(step.number),
        Cell::new(step.attempt),
        Cell::new(harmless(&step.model)),
        Cell::new(&step.finish_reason),
        Cell::new(step.usage.input_tokens),
        Cell::new(step.usage.output_tokens),
        Cell::new(took(step.started_at.as_ref(), step.finished_at.as_ref()).unwrap_or_default()),
        Cell::new(tools.collect::<Vec<_>>().join(", ")),
    ]
}

#[cfg(test)]
mod tests;
