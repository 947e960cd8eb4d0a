//! A model API over HTTP that does what a test tells it: scripted answers, faults, and gates that hold a stream.
//!
//! It speaks the streaming Chat Completions protocol of OpenAI. The model's name in a request chooses the script; the
//! conversation chooses the turn, so an attempt that is repeated gets the same turn again. Everything it was asked and
//! how each answer ended is kept, and so is whatever a strict provider would have refused.

mod answer;
mod conversation;
mod log;
mod script;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::timeout;

use self::log::Log;
pub use self::log::{Call, End};
pub use self::script::{At, Fault, Script, Turn};
use crate::PATIENCE;
use crate::gate::Gate;
use crate::http::{Connection, Server};

/// The running server. Its connections are cut when it is dropped.
#[derive(Debug)]
pub struct FakeProvider {
    server: Server,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    scripts: Mutex<HashMap<String, Arc<Script>>>,
    gates: Mutex<Vec<Placed>>,
    log: Log,
    /// Of what it was asked, only digests are kept.
    is_lean: bool,
}

/// A gate and where it stands.
#[derive(Debug)]
struct Placed {
    model: String,
    turn: Option<usize>,
    at: At,
    gate: Gate,
}

impl FakeProvider {
    pub async fn start() -> io::Result<Self> {
        Self::start_with(State::default()).await
    }

    /// One that can be asked for hours: it keeps no request, only digests of it.
    pub async fn start_lean() -> io::Result<Self> {
        Self::start_with(State { is_lean: true, ..State::default() }).await
    }

    async fn start_with(state: State) -> io::Result<Self> {
        let state = Arc::new(state);
        let shared = Arc::clone(&state);
        let server = Server::start(move |connection| talk(Arc::clone(&shared), connection)).await?;
        Ok(Self { server, state })
    }

    pub fn addr(&self) -> SocketAddr {
        self.server.addr()
    }

    /// What to configure as a provider's base URL.
    pub fn url(&self) -> String {
        format!("http://{}/v1", self.addr())
    }

    /// What this model says from now on. `tokens-COUNT[-DELAYms]` needs no script.
    pub fn script(&self, model: &str, script: Script) {
        locked(&self.state.scripts).insert(model.to_owned(), Arc::new(script));
    }

    /// Holds each answer of this model at that place.
    pub fn gate(&self, model: &str, at: At) -> Gate {
        self.place(model, None, at)
    }

    /// Holds only the answers of one turn.
    pub fn gate_on_turn(&self, model: &str, turn: usize, at: At) -> Gate {
        self.place(model, Some(turn), at)
    }

    fn place(&self, model: &str, turn: Option<usize>, at: At) -> Gate {
        let gate = Gate::default();
        locked(&self.state.gates).push(Placed { model: model.to_owned(), turn, at, gate: gate.clone() });
        gate
    }

    /// Everything asked so far, in the order of arrival.
    pub fn calls(&self) -> Vec<Call> {
        self.state.log.calls()
    }

    pub fn calls_to(&self, model: &str) -> Vec<Call> {
        self.calls().into_iter().filter(|call| call.model == model).collect()
    }

    /// Every request that was not a well-formed conversation or went beyond its script, in words.
    pub fn violations(&self) -> Vec<String> {
        self.state.log.violations()
    }

    /// Waits until the calls look as they should; `what` says in the panic what never happened. `holds` looks at what
    /// it is given and asks the provider nothing.
    pub async fn until(&self, what: &str, holds: impl Fn(&[Call]) -> bool) {
        let mut changes = self.state.log.changes();
        let wait = async {
            while !self.state.log.holds(&holds) {
                changes.changed().await.expect("the provider itself holds the sender");
            }
        };
        let in_time = timeout(PATIENCE, wait).await.is_ok();
        assert!(in_time, "not within {PATIENCE:?}: {what}; the calls were {:#?}", self.calls());
    }
}

impl State {
    fn script_of(&self, model: &str) -> Option<Arc<Script>> {
        let given = locked(&self.scripts).get(model).cloned();
        given.or_else(|| Script::from_model_name(model).map(Arc::new))
    }

    fn gates_at(&self, model: &str, turn: usize, at: At) -> Vec<Gate> {
        let gates = locked(&self.gates);
        let here = gates.iter().filter(|placed| {
            placed.model == model && placed.at == at && placed.turn.is_none_or(|only| only == turn)
        });
        here.map(|placed| placed.gate.clone()).collect()
    }
}

async fn talk(state: Arc<State>, mut connection: Connection) -> io::Result<()> {
    while let Some(request) = connection.request().await? {
        answer::answer(&state, &mut connection, &request).await?;
    }
    Ok(())
}

/// A test that panicked elsewhere still wants to read what happened.
fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
