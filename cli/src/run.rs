//! `longhaul run`: submits a run, once, however often the request has to be sent, and then leaves, follows or waits.

use std::{
    io::{self, IsTerminal},
    time::Duration,
};

use clap::ValueEnum;
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::{
    Global,
    client::view::{Seen, Submitted},
    exit::{Exit, Outcome},
    follow::{Sink, follow, wait},
    input,
    output::{Format, Output, print},
};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Who is to do it
    agent: String,
    /// What is to be done: a text, @file, or - for stdin
    pub(crate) input: Option<String>,
    /// The conversation to go on with [default: a new one]
    #[arg(long, value_name = "ID")]
    chat: Option<String>,
    /// Prints the run while it happens; Ctrl-C detaches
    #[arg(short, long, conflicts_with = "wait")]
    follow: bool,
    /// Waits for the end and prints the answer; with a time, for that long at most
    #[arg(long, value_name = "DURATION", num_args = 0..=1, require_equals = true,
          value_parser = humantime::parse_duration)]
    #[expect(clippy::option_option, reason = "an option with an optional value")]
    pub(crate) wait: Option<Option<Duration>>,
    /// What to do while another run of the conversation is active
    #[arg(long, value_enum, value_name = "WHAT")]
    if_busy: Option<IfBusy>,
    /// Makes a repeated command the same run [default: a fresh key per command]
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// A mark to find the run by; may be given several times
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// Starts it later, such as 10m
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    delay: Option<Duration>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum IfBusy {
    Reject,
    Enqueue,
    Interrupt,
}

impl Args {
    /// The request. What was not said is left to the server.
    fn body(&self, input: String) -> Value {
        let mut body = Map::new();
        body.insert("agent".into(), self.agent.as_str().into());
        body.insert("input".into(), input.into());
        if let Some(chat) = &self.chat {
            body.insert("chatId".into(), chat.as_str().into());
        }
        if let Some(if_busy) = self.if_busy {
            let word = match if_busy {
                IfBusy::Reject => "reject",
                IfBusy::Enqueue => "enqueue",
                IfBusy::Interrupt => "interrupt",
            };
            body.insert("ifBusy".into(), word.into());
        }
        if let Some(delay) = self.delay {
            body.insert("delay".into(), humantime::format_duration(delay).to_string().into());
        }
        if !self.tags.is_empty() {
            body.insert("tags".into(), self.tags.clone().into());
        }
        body.into()
    }
}

pub(crate) async fn run(global: &Global, args: Args) -> Outcome {
    let output = global.output();
    let client = global.client()?;
    let body = args.body(input::read(args.input.as_deref())?);
    let key = args.idempotency_key.clone().unwrap_or_else(|| Uuid::now_v7().to_string());
    let (submitted, replayed) = client.post::<Submitted>(&["v1", "runs"], &key, &body).await?;
    if replayed && args.idempotency_key.is_some() {
        output.note("this key was used before; this is its run");
    }
    let run = submitted.item.run_id.clone();
    if args.follow {
        output.note(&format!("run {run}"));
        let mut sink = Sink::printing(output, false);
        return Ok(follow(&client, &run, 0, &mut sink, None, output).await?.exit(&run, &client, output));
    }
    if let Some(limit) = args.wait {
        output.note(&format!("run {run}"));
        return wait(&client, &run, limit, output).await;
    }
    print(&shown(&submitted, &client.elsewhere(), output, io::stdout().is_terminal()))?;
    Ok(Exit::Ok)
}

/// A script gets the id alone, a person also what to do with it.
fn shown(submitted: &Seen<Submitted>, elsewhere: &str, output: Output, terminal: bool) -> String {
    let Submitted { run_id, chat_id, status, position } = &submitted.item;
    match output.format {
        Format::Json => format!("{:#}\n", submitted.raw),
        Format::Jsonl => format!("{}\n", submitted.raw),
        Format::Table if !terminal || output.quiet => format!("{run_id}\n"),
        Format::Table => {
            let place = position.map(|place| format!(", number {place} in line")).unwrap_or_default();
            format!(
                "run {run_id} is {status}{place}\n\
                 follow it   longhaul runs tail {run_id}{elsewhere}\n\
                 go on with  longhaul run AGENT INPUT --chat {chat_id}{elsewhere}\n"
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    fn args(line: &str) -> Args {
        Command::parse_from(line.split_whitespace()).args
    }

    #[test]
    fn the_request_says_what_was_said_and_nothing_else() {
        assert_eq!(args("run demo hi").body("hi".into()), json!({"agent": "demo", "input": "hi"}));
        let full = args("run demo hi --chat c --if-busy enqueue --tag a --tag b=1 --delay 90s");
        assert_eq!(
            full.body("hi".into()),
            json!({"agent": "demo", "input": "hi", "chatId": "c", "ifBusy": "enqueue", "tags": ["a", "b=1"],
                "delay": "1m 30s"})
        );
    }

    #[test]
    fn a_wait_may_have_a_limit() {
        assert_eq!(args("run demo hi --wait=5s").wait, Some(Some(Duration::from_secs(5))));
        assert_eq!(args("run demo hi --wait").wait, Some(None));
        assert_eq!(args("run demo hi").wait, None);
    }

    #[test]
    fn a_pipe_gets_the_id_alone_and_a_person_what_to_do_with_it() {
        let raw =
            json!({"runId": "r1", "chatId": "c1", "status": "queued", "position": 2, "eventsUrl": "/x"});
        let submitted = Seen::new(raw).unwrap();
        let as_ = |format| Output::new(format, false);
        assert_eq!(shown(&submitted, "", as_(Format::Table), false), "r1\n");
        assert!(shown(&submitted, "", as_(Format::Jsonl), true).contains(r#""eventsUrl":"/x""#));
        insta::assert_snapshot!(shown(&submitted, "", as_(Format::Table), true), @r"
        run r1 is queued, number 2 in line
        follow it   longhaul runs tail r1
        go on with  longhaul run AGENT INPUT --chat c1
        ");
    }
}
