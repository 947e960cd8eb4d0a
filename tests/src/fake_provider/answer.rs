//! One answer: from a request through gates and faults to its end.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval_at};

use super::log::{Call, End, Entry};
use super::script::{At, Fault, Turn};
use super::{State, conversation};
use crate::http::{Connection, Request};

const EVENT_STREAM: &str = "text/event-stream";

/// Answers are the same in each test run, so they are always made at the same second.
const CREATED: u64 = 1_760_000_000;

pub(super) async fn answer(state: &State, connection: &mut Connection, asked: &Request) -> io::Result<()> {
    match (asked.method.as_str(), asked.path.as_str()) {
        ("POST", path) if path.ends_with("/chat/completions") => {}
        ("GET", path) if path.ends_with("/models") => {
            return connection.answer_json(200, &json!({"object": "list", "data": []})).await;
        }
        _ => return connection.answer_json(404, &error("no such path")).await,
    }
    let Ok(request) = serde_json::from_slice::<Value>(&asked.body) else {
        state.log.violation("?", "?", "the body is not JSON");
        return connection.answer_json(400, &error("the body is not JSON")).await;
    };
    complete(state, connection, asked, request).await
}

/// Where an answer stands, and what it needs to go on.
struct Answering<'a> {
    state: &'a State,
    connection: &'a mut Connection,
    entry: Entry<'a>,
    model: &'a str,
    number: usize,
    fault: Option<&'a Fault>,
    is_quirky: bool,
}

/// Whether the answer goes on after a place where it might have been stopped.
enum Next {
    GoOn,
    Over,
}

async fn complete(
    state: &State,
    connection: &mut Connection,
    asked: &Request,
    request: Value,
) -> io::Result<()> {
    let messages = request["messages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let model = request["model"].as_str().unwrap_or_default().to_owned();
    let script = state.script_of(&model);
    let whole_conversation = script.as_ref().is_some_and(|script| script.whole_conversation);
    let number = conversation::turn(messages, whole_conversation);
    let key = conversation::key(asked.header("x-longhaul-run-id"), &request, messages);
    let said = conversation::key(None, &Value::Null, messages);
    for text in conversation::violations(messages) {
        state.log.violation(&model, &key, &text);
    }
    let streamed = request["stream"] == true;
    let wants_usage = request["stream_options"]["include_usage"] == true;
    let history = conversation::digests(messages);
    let (headers, request) =
        if state.is_lean { (Vec::new(), Value::Null) } else { (asked.headers.clone(), request) };
    let entry = state.log.begin(Call {
        model: model.clone(),
        key: key.clone(),
        turn: number,
        attempt: 0,
        by: asked.by.clone(),
        begin: Instant::now(),
        pieces: 0,
        end: None,
        history,
        headers,
        request: Arc::new(request),
    });

    let Some(script) = script else {
        entry.end(End::Unscripted);
        return connection.answer_json(404, &error(&format!("the model {model} does not exist"))).await;
    };
    let Some(turn) = script.turn(number).filter(|_| streamed) else {
        let text =
            if streamed { format!("the script has no turn {number}") } else { "not streamed".to_owned() };
        state.log.violation(&model, &key, &text);
        entry.end(End::Unscripted);
        return connection.answer_json(500, &error(&text)).await;
    };
    let fault = script.fault_of(turn, &said, number, entry.attempt);
    let is_quirky = turn.is_quirky;
    let mut answering = Answering { state, connection, entry, model: &model, number, fault, is_quirky };
    answering.whole(turn, &key, wants_usage).await
}

impl Answering<'_> {
    async fn whole(&mut self, turn: &Turn, key: &str, wants_usage: bool) -> io::Result<()> {
        self.stand(At::BeforeHead).await?;
        if let Next::Over = self.answer_otherwise().await? {
            return Ok(());
        }
        self.connection.begin_chunks(EVENT_STREAM).await?;

        let deltas = turn.deltas(self.entry.attempt, self.number, key);
        // An interval keeps the pace of the whole answer: the time that writing takes does not add up.
        let mut pace = (!turn.delay.is_zero()).then(|| {
            let mut pace = interval_at(tokio::time::Instant::now() + turn.delay, turn.delay);
            pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
            pace
        });
        for (sent, delta) in deltas.iter().enumerate() {
            if let Next::Over = self.after_pieces(sent, deltas.len()).await? {
                return Ok(());
            }
            if let Some(pace) = &mut pace {
                self.connection.unless_gone(pace.tick()).await?;
            }
            self.piece(sent, delta).await?;
        }
        if let Next::Over = self.after_pieces(deltas.len(), deltas.len()).await? {
            return Ok(());
        }
        self.stand(At::BeforeEnd).await?;

        let mut ending = self.chunk("{}", &json!(turn.finish()).to_string());
        if wants_usage && !turn.without_usage {
            let usage = self.usage(turn.tokens_used(deltas.len()));
            ending.push_str(&usage);
            if self.is_quirky {
                ending.push_str(&usage);
            }
        }
        ending.push_str("data: [DONE]\n\n");
        // Written down first: whoever reads the end of the stream finds it in the log.
        self.entry.end(if self.fault.is_some_and(spoils_the_answer) { End::Fault } else { End::Complete });
        self.connection.chunk(&ending).await?;
        self.connection.end_chunks().await
    }

    /// Waits at the gates of this place, then fails here if the script says so.
    async fn stand(&mut self, here: At) -> io::Result<()> {
        for gate in self.state.gates_at(self.model, self.number, here) {
            self.connection.unless_gone(gate.pass()).await?;
        }
        match self.fault {
            Some(Fault::Hang(at)) if *at == here => Err(self.connection.gone().await),
            Some(Fault::Reset(at)) if *at == here => {
                self.entry.end(End::Fault);
                self.connection.reset();
                Err(io::ErrorKind::ConnectionReset.into())
            }
            Some(Fault::Cut(at)) if *at == here => {
                self.entry.end(End::Fault);
                Err(io::ErrorKind::ConnectionAborted.into())
            }
            _ => Ok(()),
        }
    }

    /// Faults that put something else in the place of the stream.
    async fn answer_otherwise(&mut self) -> io::Result<Next> {
        let (status, headers, body): (u16, Vec<(&str, &str)>, &str) = match self.fault {
            Some(Fault::Status { code, body, retry_after }) => {
                let mut headers = vec![("content-type", "application/json")];
                headers.extend(retry_after.as_deref().map(|value| ("retry-after", value)));
                (*code, headers, body)
            }
            Some(Fault::Redirect(to)) => (307, vec![("location", to)], ""),
            Some(Fault::Html) => {
                (200, vec![("content-type", "text/html")], "<html><body>Sign in</body></html>")
            }
            _ => return Ok(Next::GoOn),
        };
        self.entry.end(End::Fault);
        self.connection.answer(status, &headers, body.as_bytes()).await?;
        Ok(Next::Over)
    }

    /// The place after so many pieces. A fault that lies beyond the last piece strikes after it.
    async fn after_pieces(&mut self, sent: usize, all: usize) -> io::Result<Next> {
        self.connection.unless_gone(std::future::ready(())).await?;
        self.stand(At::Token(sent)).await?;
        let now = |after: usize| after.min(all) == sent;
        match self.fault {
            Some(Fault::CleanEnd { after }) if now(*after) => {
                self.entry.end(End::Fault);
                self.connection.end_chunks().await?;
                Ok(Next::Over)
            }
            Some(Fault::Malformed { after }) if now(*after) => {
                self.connection.chunk("data: {\"choices\":[{\"index\":0,\"delta\":{\"cont\n\n").await?;
                Ok(Next::GoOn)
            }
            Some(Fault::ErrorEvent { after, error }) if now(*after) => {
                self.entry.end(End::Fault);
                self.connection.chunk(&format!("data: {}\n\n", json!({"error": error}))).await?;
                self.connection.end_chunks().await?;
                Ok(Next::Over)
            }
            Some(Fault::CommentsForever { after }) if now(*after) => loop {
                self.connection.chunk(": still here\n\n").await?;
                let pause = tokio::time::sleep(std::time::Duration::from_millis(100));
                self.connection.unless_gone(pause).await?;
            },
            _ => Ok(Next::GoOn),
        }
    }

    async fn piece(&mut self, sent: usize, delta: &str) -> io::Result<()> {
        // The role comes with the first piece: until then the client has nothing of the answer.
        let first = format!(r#"{{"role":"assistant",{}"#, &delta[1..]);
        let chunk = self.chunk(if sent == 0 { &first } else { delta }, "null");
        self.connection.chunk(&chunk).await?;
        self.entry.piece_sent();
        Ok(())
    }

    fn chunk(&self, delta: &str, finish_reason: &str) -> String {
        if self.is_quirky && finish_reason == "null" {
            let choice = format!(r#"{{"delta":{delta},"finish_reason":"","logprobs":{{"content":[]}}}}"#);
            let usage = r#"{"prompt_tokens":"1","completion_tokens":1.0}"#;
            return self.event(&format!(r#""choices":[{choice}],"usage":{usage},"error":null"#));
        }
        let choice = format!(r#"{{"index":0,"delta":{delta},"finish_reason":{finish_reason}}}"#);
        self.event(&format!(r#""choices":[{choice}]"#))
    }

    fn usage(&self, (prompt, completion): (u64, u64)) -> String {
        let total = prompt.saturating_add(completion);
        let usage = json!({"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total});
        self.event(&format!(r#""choices":[],"usage":{usage}"#))
    }

    fn event(&self, rest: &str) -> String {
        let (attempt, number, model) = (self.entry.attempt, self.number, json!(self.model));
        let id = format!("chatcmpl-s{number}-a{attempt}");
        let begin = format!("\"id\":\"{id}\",\"object\":\"chat.completion.chunk\",\"created\":{CREATED}");
        if self.is_quirky {
            // Data lines are joined by a line break, which is as good as a space between two fields.
            return format!(
                ": quirk\r\ndata:{{{begin}.5,\r\ndata: \"model\":{model},{rest}}}\r\n\r\n: quirk\r\n\r\n"
            );
        }
        format!("data: {{{begin},\"model\":{model},{rest}}}\n\n")
    }
}

/// Faults after which the answer still comes to its usual end.
fn spoils_the_answer(fault: &Fault) -> bool {
    matches!(fault, Fault::Malformed { .. } | Fault::TruncatedArguments)
}

fn error(message: &str) -> Value {
    json!({"error": {"message": message, "type": "invalid_request_error", "code": null}})
}
