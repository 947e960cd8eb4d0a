//! Following a run from the command line: print it, or only wait for it, until it ends, the time is up, or the person
//! goes away. Going away never touches the run.

use std::{
    collections::BTreeMap,
    future::pending,
    io::{self, IsTerminal, Write},
    time::Duration,
};

use longhaul_shared::domain::{event::RUN_FINISHED, ids::Seq};
use tokio::time::sleep;

use crate::{
    client::{
        Client,
        tail::{Event, Item, Tail},
        view::Run,
    },
    exit::{Exit, Failure, Outcome},
    output::{Output, print},
    screen::Screen,
};

/// What is done with the events.
pub(crate) enum Sink {
    /// Printed as text.
    Screen(Box<Screen<Box<dyn Write + Send>, Box<dyn Write + Send>>>),
    /// Printed as they are, one a line.
    Lines,
    /// Kept until the end, for the answer alone.
    Answer(Answer),
}

impl Sink {
    /// What `output` asks for: events as JSON lines, or text.
    pub(crate) fn printing(output: Output, events: bool) -> Self {
        if events || output.is_json() {
            return Self::Lines;
        }
        let terminal = io::stdout().is_terminal();
        Self::Screen(Box::new(Screen::new(
            Box::new(anstream::stdout()),
            Box::new(anstream::stderr()),
            terminal,
            output.quiet,
        )))
    }

    fn show(&mut self, event: &Event) -> io::Result<()> {
        match self {
            Self::Screen(screen) => screen.show(event),
            Self::Lines => {
                let mut out = io::stdout().lock();
                writeln!(out, "{}", event.text)?;
                out.flush()
            }
            Self::Answer(answer) => {
                answer.add(event);
                Ok(())
            }
        }
    }

    fn note(&mut self, text: &str, output: Output) -> io::Result<()> {
        if let Self::Screen(screen) = self {
            return screen.note(text);
        }
        output.note(text);
        Ok(())
    }
}

/// The text of the last step that has any: what the run answers in the end.
#[derive(Debug, Default)]
pub(crate) struct Answer(BTreeMap<u32, Vec<(Seq, String)>>);

impl Answer {
    fn add(&mut self, event: &Event) {
        let step = event.step.unwrap_or_default();
        match event.kind.as_str() {
            "text.delta" | "snapshot" => {
                if let Some(text) = event.data["text"].as_str() {
                    self.0.entry(step).or_default().push((event.seq, text.to_owned()));
                }
            }
            "step.restarted" => {
                let from = event.data["dropFrom"].as_i64().unwrap_or_default();
                self.0.entry(step).or_default().retain(|(seq, _)| *seq < from);
            }
            _ => {}
        }
    }

    pub(crate) fn text(&self) -> String {
        let pieces = self.0.values().rev().find(|pieces| !pieces.is_empty());
        pieces.into_iter().flatten().map(|(_, text)| text.as_str()).collect()
    }
}

/// How following ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Followed {
    /// The run is over with this status.
    Over(String),
    TimedOut,
    Detached,
}

impl Followed {
    /// The exit code; where the run goes on, says how to get back to it.
    pub(crate) fn exit(&self, run: &str, client: &Client, output: Output) -> Exit {
        let tail = format!("longhaul runs tail {run}{}", client.elsewhere());
        match self {
            Self::Over(status) => Exit::of_status(status),
            Self::TimedOut => {
                output.tell(&format!("not over in time; it goes on. Follow it: {tail}"));
                Exit::TimedOut
            }
            Self::Detached => {
                output.tell(&format!("detached; the run goes on. Re-attach: {tail}"));
                Exit::Interrupted
            }
        }
    }
}

/// Follows `run` from behind `after`, for at most `limit`.
pub(crate) async fn follow(
    client: &Client,
    run: &str,
    after: Seq,
    sink: &mut Sink,
    limit: Option<Duration>,
    output: Output,
) -> Result<Followed, Failure> {
    let time_is_up = async {
        match limit {
            Some(limit) => sleep(limit).await,
            None => pending().await,
        }
    };
    tokio::select! {
        biased;
        interrupt = tokio::signal::ctrl_c() => {
            interrupt?;
            if let Sink::Screen(screen) = sink {
                screen.end_line()?;
            }
            Ok(Followed::Detached)
        }
        () = time_is_up => Ok(Followed::TimedOut),
        status = to_the_end(client, run, after, sink, output) => status.map(Followed::Over),
    }
}

async fn to_the_end(
    client: &Client,
    run: &str,
    after: Seq,
    sink: &mut Sink,
    output: Output,
) -> Result<String, Failure> {
    let mut tail = Tail::new(client.clone(), run, after);
    let mut status = None;
    loop {
        match tail.next().await? {
            Item::Event(event) => {
                sink.show(&event)?;
                if event.kind == RUN_FINISHED {
                    status = event.data["status"].as_str().map(str::to_owned);
                }
            }
            Item::Interrupted => sink.note("reconnecting…", output)?,
            Item::End => break,
        }
    }
    match status {
        Some(status) => Ok(status),
        // Everything had been seen before.
        None => Ok(client.get::<Run>(&["v1", "runs", run], &[]).await?.item.status),
    }
}

/// Waits for the end and prints the answer: the text, or as JSON the run with its text.
pub(crate) async fn wait(client: &Client, run: &str, limit: Option<Duration>, output: Output) -> Outcome {
    let mut sink = Sink::Answer(Answer::default());
    let followed = follow(client, run, 0, &mut sink, limit, output).await?;
    if !matches!(followed, Followed::Over(_)) {
        if output.is_json() {
            let run = client.get::<Run>(&["v1", "runs", run], &[]).await?;
            output.one(&run.raw, String::new)?;
        }
        return Ok(followed.exit(run, client, output));
    }
    let text = if let Sink::Answer(answer) = &sink { answer.text() } else { String::new() };
    let mut over = client.get::<Run>(&["v1", "runs", run], &[]).await?;
    if output.is_json() {
        over.raw["text"] = text.into();
        output.one(&over.raw, String::new)?;
    } else {
        if !text.is_empty() {
            print(&format!("{}\n", text.trim_end_matches('\n')))?;
        }
        match &over.item.error {
            Some(error) => output.tell(&format!("{}: {} ({})", over.item.status, error.message, error.code)),
            None if over.item.status != "succeeded" => {
                output.tell(&format!(
                    "{} ({})",
                    over.item.status,
                    over.item.reason.as_deref().unwrap_or("?")
                ));
            }
            None => {}
        }
    }
    Ok(followed.exit(run, client, output))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        client::fake_server::{Answer as Reply, FakeServer, LAST_CHUNK, STREAM, answer, chunk, frame},
        output::Format,
    };

    fn quiet() -> Output {
        Output::new(Format::Table, true)
    }

    fn stream(status: &str) -> Reply {
        let end = frame(2, "run.finished", None, &format!(r#"{{"status":"{status}"}}"#));
        let text = frame(1, "text.delta", Some(1), r#"{"text":"hi"}"#);
        Reply::Bytes(format!("{STREAM}{}{LAST_CHUNK}", chunk(&(text + &end))).into_bytes())
    }

    #[tokio::test]
    async fn the_exit_code_is_that_of_the_runs_end() {
        for (status, exit) in
            [("succeeded", Exit::Ok), ("failed", Exit::RunFailed), ("aborted", Exit::RunAborted)]
        {
            let server = FakeServer::start(move |_, request| {
                if request.contains("/events") {
                    stream(status)
                } else {
                    answer(200, "", &format!(r#"{{"runId":"r","status":"{status}"}}"#))
                }
            })
            .await;
            assert_eq!(wait(&server.client(), "r", None, quiet()).await.unwrap(), exit);
        }
    }

    #[tokio::test]
    async fn a_tail_of_which_all_was_seen_asks_the_run_for_its_status() {
        let server = FakeServer::start(|_, request| {
            if request.contains("/events") {
                answer(204, "", "")
            } else {
                answer(200, "", r#"{"runId":"r","status":"failed"}"#)
            }
        })
        .await;
        let mut sink = Sink::Answer(Answer::default());
        let followed = follow(&server.client(), "r", 9, &mut sink, None, quiet()).await.unwrap();
        assert_eq!(followed, Followed::Over("failed".into()));
    }

    #[tokio::test]
    async fn a_wait_that_takes_too_long_ends_with_124_and_leaves_the_run_alone() {
        let server = FakeServer::start(|_, _| Reply::Hang(STREAM.as_bytes().to_vec())).await;
        let limit = Some(Duration::from_millis(50));
        assert_eq!(wait(&server.client(), "r", limit, quiet()).await.unwrap(), Exit::TimedOut);
        assert_eq!(server.requests().len(), 1);
    }

    #[test]
    fn the_answer_is_the_last_steps_text_without_what_was_dropped() {
        let mut answer = Answer::default();
        let told: [(&str, u32, Value); 6] = [
            ("text.delta", 1, json!({"text": "I look."})),
            ("reasoning.delta", 2, json!({"text": "hm"})),
            ("text.delta", 2, json!({"text": "It is el"})),
            ("step.restarted", 2, json!({"dropFrom": 2})),
            ("text.delta", 2, json!({"text": "It is "})),
            ("text.delta", 2, json!({"text": "ten."})),
        ];
        for (seq, (kind, step, data)) in (1..).zip(told) {
            let kind = kind.to_owned();
            answer.add(&Event { text: String::new(), seq, kind, step: Some(step), data });
        }
        assert_eq!(answer.text(), "It is ten.");
        assert_eq!(Answer::default().text(), "");
    }
}
