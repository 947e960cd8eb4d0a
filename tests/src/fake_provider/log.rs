//! What the fake provider was asked and how each answer ended.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use serde_json::Value;
use tokio::sync::watch;

use super::locked;

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With its finish reason.
    Complete,
    /// The client hung up first.
    ClientGone,
    /// As the script's fault wanted.
    Fault,
    /// With an error, because no script says what to answer.
    Unscripted,
}

/// One request for a model's answer.
#[derive(Clone, Debug)]
pub struct Call {
    pub model: String,
    /// Which conversation: the same for all attempts and turns of a run.
    pub key: String,
    /// Which model call of it, from 1.
    pub turn: usize,
    /// How often this turn was asked for, from 1.
    pub attempt: u32,
    /// Which process asked, where its configuration tells them apart.
    pub by: Option<String>,
    pub begin: Instant,
    /// How many pieces of the answer were sent.
    pub pieces: usize,
    /// `None` while the answer is under way.
    pub end: Option<(Instant, End)>,
    /// A digest of each message, without the system's.
    pub history: Vec<u64>,
    /// In lower case, as they came; a lean provider keeps none.
    pub headers: Vec<(String, String)>,
    /// The whole body; null at a lean provider.
    pub request: Arc<Value>,
}

impl Call {
    pub fn ended(&self) -> Option<End> {
        self.end.map(|(_, end)| end)
    }

    pub fn messages(&self) -> &[Value] {
        self.request["messages"].as_array().map(Vec::as_slice).unwrap_or_default()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

#[derive(Debug, Default)]
pub(super) struct Log {
    entries: Mutex<Entries>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Entries {
    calls: Vec<Call>,
    attempts: HashMap<(String, String, usize), u32>,
    violations: Vec<String>,
}

impl Log {
    pub(super) fn calls(&self) -> Vec<Call> {
        locked(&self.entries).calls.clone()
    }

    /// Whether the calls look as they should, without copying them.
    pub(super) fn holds(&self, holds: impl Fn(&[Call]) -> bool) -> bool {
        holds(&locked(&self.entries).calls)
    }

    pub(super) fn violations(&self) -> Vec<String> {
        locked(&self.entries).violations.clone()
    }

    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    pub(super) fn violation(&self, model: &str, key: &str, text: &str) {
        locked(&self.entries).violations.push(format!("{model}, conversation {key}: {text}"));
    }

    /// Writes a call down and gives it its attempt number. The answer must call [`Entry::end`]; one that is dropped
    /// without it was left by its client.
    pub(super) fn begin(&self, mut call: Call) -> Entry<'_> {
        let mut entries = locked(&self.entries);
        let attempt = entries.attempts.entry((call.model.clone(), call.key.clone(), call.turn)).or_default();
        *attempt += 1;
        call.attempt = *attempt;
        let entry = Entry { log: self, index: entries.calls.len(), attempt: call.attempt };
        entries.calls.push(call);
        drop(entries);
        self.changed.send_replace(());
        entry
    }

    fn change(&self, index: usize, change: impl FnOnce(&mut Call)) {
        change(&mut locked(&self.entries).calls[index]);
        self.changed.send_replace(());
    }
}

/// A call under way.
pub(super) struct Entry<'a> {
    log: &'a Log,
    index: usize,
    pub(super) attempt: u32,
}

impl Entry<'_> {
    pub(super) fn piece_sent(&self) {
        self.log.change(self.index, |call| call.pieces += 1);
    }

    pub(super) fn end(&self, end: End) {
        self.log.change(self.index, |call| {
            call.end.get_or_insert((Instant::now(), end));
        });
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.end(End::ClientGone);
    }
}
