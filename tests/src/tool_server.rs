//! A tool server that counts its side effects, so that a test can say "charged once" and mean it.
//!
//! `POST /tool/NAME` does the effect each time it is asked. `POST /idem/NAME` does it once per `Idempotency-Key` and
//! gives every repetition the first answer. `POST /reconcile/NAME` tells what became of a key, and refuses one from then
//! on that never came. Like most real servers it does not notice that a client has left: what
//! it was asked for, it does.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::PATIENCE;
use crate::gate::Gate;
use crate::http::{Connection, Request, Server};

/// One request, as the ledger keeps it.
#[derive(Clone, Debug)]
pub struct Entry {
    pub tool: String,
    /// What was to be done: `arguments.op`, or else the idempotency key.
    pub op: String,
    pub key: Option<String>,
    /// Which effect on this `op` it was, from 1; `None` when it had none.
    pub nth: Option<usize>,
    pub arguments: Value,
    /// In lower case, as they came.
    pub headers: Vec<(String, String)>,
    pub arrived: Instant,
    /// Which process asked, where its configuration tells them apart.
    pub by: Option<String>,
}

impl Entry {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// What a tool does after its effect.
#[derive(Clone, Debug, Default)]
pub enum Answer {
    /// `{"ok":true,"op":…,"n":…}`
    #[default]
    Result,
    /// This very result instead.
    Json(Value),
    /// A status and a body, *without* the effect.
    Status(u16, String),
    /// 307 to this address, without the effect.
    Redirect(String),
    /// Nothing, until the client goes away.
    Hang,
    /// Hangs up with a reset: the effect is done and nobody hears of it.
    Reset,
    /// A JSON text of about so many bytes.
    Huge(usize),
    /// 200 and no JSON.
    NotJson,
    /// 200 with these headers and bytes.
    Raw(Vec<(&'static str, &'static str)>, Vec<u8>),
}

#[derive(Clone, Debug, Default)]
struct Tool {
    answer: Answer,
    delay: Duration,
    before: Vec<Gate>,
    after: Vec<Gate>,
}

/// The running server.
#[derive(Debug)]
pub struct ToolServer {
    server: Server,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    tools: Mutex<HashMap<String, Tool>>,
    ledger: Mutex<Ledger>,
    keys: Mutex<Keys>,
    changed: watch::Sender<()>,
}

/// What is known of the idempotency keys of each tool.
#[derive(Debug, Default)]
struct Keys {
    begun: HashSet<(String, String)>,
    refused: HashSet<(String, String)>,
    /// Of `/reconcile`, in their order.
    questions: Vec<Value>,
}

#[derive(Debug, Default)]
struct Ledger {
    entries: Vec<Entry>,
    /// The number of the effect that a key had, for tools that know idempotency.
    done: HashMap<(String, String), usize>,
}

impl ToolServer {
    pub async fn start() -> io::Result<Self> {
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        let server = Server::start(move |connection| talk(Arc::clone(&shared), connection)).await?;
        Ok(Self { server, state })
    }

    pub fn addr(&self) -> SocketAddr {
        self.server.addr()
    }

    /// A tool that repeats its effect whenever it is asked.
    pub fn tool_url(&self, name: &str) -> String {
        format!("http://{}/tool/{name}", self.addr())
    }

    /// A tool that does its effect once per idempotency key.
    pub fn idem_url(&self, name: &str) -> String {
        format!("http://{}/idem/{name}", self.addr())
    }

    /// Tells what became of a call of the tool.
    pub fn reconcile_url(&self, name: &str) -> String {
        format!("http://{}/reconcile/{name}", self.addr())
    }

    /// What it was asked about calls.
    pub fn questions(&self) -> Vec<Value> {
        locked(&self.state.keys).questions.clone()
    }

    pub fn behave(&self, name: &str, answer: Answer) {
        self.change(name, |tool| tool.answer = answer);
    }

    /// How long the tool takes before its effect.
    pub fn delay(&self, name: &str, delay: Duration) {
        self.change(name, |tool| tool.delay = delay);
    }

    /// Holds requests that have been read, before their effect.
    pub fn gate_before(&self, name: &str) -> Gate {
        let gate = Gate::default();
        self.change(name, |tool| tool.before.push(gate.clone()));
        gate
    }

    /// Holds answers whose effect is done.
    pub fn gate_after(&self, name: &str) -> Gate {
        let gate = Gate::default();
        self.change(name, |tool| tool.after.push(gate.clone()));
        gate
    }

    fn change(&self, name: &str, change: impl FnOnce(&mut Tool)) {
        change(locked(&self.state.tools).entry(name.to_owned()).or_default());
    }

    /// Every request whose turn to act has come, in that order, whether or not it had an effect.
    pub fn ledger(&self) -> Vec<Entry> {
        locked(&self.state.ledger).entries.clone()
    }

    /// How often the thing was really done.
    pub fn effects(&self, op: &str) -> usize {
        locked(&self.state.ledger)
            .entries
            .iter()
            .filter(|entry| entry.op == op && entry.nth.is_some())
            .count()
    }

    /// The idempotency keys under which it was asked for.
    pub fn keys(&self, op: &str) -> BTreeSet<String> {
        let ledger = locked(&self.state.ledger);
        ledger.entries.iter().filter(|entry| entry.op == op).filter_map(|entry| entry.key.clone()).collect()
    }

    /// Waits until the ledger looks as it should; `what` says in the panic what never happened.
    pub async fn until(&self, what: &str, holds: impl Fn(&[Entry]) -> bool) {
        let mut changes = self.state.changed.subscribe();
        let wait = async {
            while !holds(&self.ledger()) {
                changes.changed().await.expect("the server itself holds the sender");
            }
        };
        let in_time = timeout(PATIENCE, wait).await.is_ok();
        assert!(in_time, "not within {PATIENCE:?}: {what}; the ledger was {:#?}", self.ledger());
    }
}

impl State {
    /// Does the effect, unless this key had it already, and says which effect on `op` it was.
    fn act(
        &self,
        request: &Request,
        tool: &str,
        idempotent: bool,
        has_effect: bool,
        arrived: Instant,
    ) -> (String, usize) {
        let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let key = request.header("idempotency-key").map(str::to_owned);
        let op =
            body["arguments"]["op"].as_str().map(str::to_owned).or_else(|| key.clone()).unwrap_or_default();

        let mut ledger = locked(&self.ledger);
        let before = ledger.entries.iter().filter(|entry| entry.op == op && entry.nth.is_some()).count();
        let remembered = key.clone().filter(|_| idempotent && has_effect).map(|key| (tool.to_owned(), key));
        let earlier = remembered.as_ref().and_then(|key| ledger.done.get(key).copied());
        let nth = (has_effect && earlier.is_none()).then_some(before + 1);
        if let (Some(remembered), Some(nth)) = (remembered, nth) {
            ledger.done.insert(remembered, nth);
        }
        ledger.entries.push(Entry {
            tool: tool.to_owned(),
            op: op.clone(),
            key,
            nth,
            arguments: body["arguments"].clone(),
            headers: request.headers.clone(),
            arrived,
            by: request.by.clone(),
        });
        drop(ledger);
        self.changed.send_replace(());
        (op, nth.or(earlier).unwrap_or(before))
    }
}

impl State {
    /// Whether this call may be begun: its key was not refused.
    fn begin(&self, tool: &str, request: &Request) -> bool {
        let Some(key) = request.header("idempotency-key") else { return true };
        let key = (tool.to_owned(), key.to_owned());
        let mut keys = locked(&self.keys);
        let is_refused = keys.refused.contains(&key);
        keys.begun.insert(key);
        !is_refused
    }

    fn reconcile(&self, tool: &str, question: Value) -> Value {
        let key = (tool.to_owned(), question["idempotencyKey"].as_str().unwrap_or_default().to_owned());
        let mut keys = locked(&self.keys);
        keys.questions.push(question);
        let ledger = locked(&self.ledger);
        let effect =
            ledger.entries.iter().find(|entry| entry.tool == tool && entry.key.as_ref() == Some(&key.1));
        match effect.and_then(|entry| Some((&entry.op, entry.nth?))) {
            Some((op, n)) => json!({"state": "succeeded", "output": {"ok": true, "op": op, "n": n}}),
            None if keys.begun.contains(&key) => json!({"state": "pending"}),
            None => {
                keys.refused.insert(key);
                json!({"state": "not_received"})
            }
        }
    }
}

async fn talk(state: Arc<State>, mut connection: Connection) -> io::Result<()> {
    while let Some(request) = connection.request().await? {
        let path: Vec<&str> = request.path.split('/').skip(1).collect();
        match (request.method.as_str(), path.as_slice()) {
            ("POST", ["tool", name]) => serve(&state, &mut connection, &request, name, false).await?,
            ("POST", ["idem", name]) => serve(&state, &mut connection, &request, name, true).await?,
            ("POST", ["reconcile", name]) => {
                let question = serde_json::from_slice(&request.body).unwrap_or_default();
                connection.answer_json(200, &state.reconcile(name, question)).await?;
            }
            _ => connection.answer_json(404, &json!({"error": "no such tool"})).await?,
        }
    }
    Ok(())
}

async fn serve(
    state: &State,
    connection: &mut Connection,
    request: &Request,
    name: &str,
    idempotent: bool,
) -> io::Result<()> {
    let arrived = Instant::now();
    if !state.begin(name, request) {
        return connection.answer_json(409, &json!({"error": "this key is refused"})).await;
    }
    let tool = locked(&state.tools).get(name).cloned().unwrap_or_default();
    tokio::time::sleep(tool.delay).await;
    for gate in tool.before {
        gate.pass().await;
    }
    let has_effect = !matches!(tool.answer, Answer::Status(..) | Answer::Redirect(_));
    let (op, n) = state.act(request, name, idempotent, has_effect, arrived);
    for gate in tool.after {
        gate.pass().await;
    }
    match tool.answer {
        Answer::Result => connection.answer_json(200, &json!({"ok": true, "op": op, "n": n})).await,
        Answer::Json(value) => connection.answer_json(200, &value).await,
        Answer::Status(code, body) => connection.answer(code, &[], body.as_bytes()).await,
        Answer::Redirect(to) => connection.answer(307, &[("location", &to)], b"").await,
        Answer::Hang => Err(connection.gone().await),
        Answer::Reset => {
            connection.reset();
            Err(io::ErrorKind::ConnectionReset.into())
        }
        Answer::Huge(bytes) => {
            connection.answer_json(200, &json!({"ok": true, "text": "x".repeat(bytes)})).await
        }
        Answer::Raw(headers, body) => connection.answer(200, &headers, &body).await,
        Answer::NotJson => connection.answer(200, &[("content-type", "text/html")], b"<p>done</p>").await,
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
