//! What an input has to do with what was said before: it may repeat a part of it, refer to items, and it has to answer the
//! calls that were left to the client.

use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};

use longhaul_shared::{
    domain::{
        ids::{ChatId, RunId, WorkspaceId},
        message::{Part, Speaker},
        replay::Replay,
        run::Run,
        tool::is_call_of,
        transition::RunStatus,
    },
    store::{Page, RunFilter, RunRecord},
};
use serde_json::Value;

use super::{encoded, found, head_of, input::Sent};
use crate::{
    error::{ApiError, Code},
    state::AppState,
    views::responses::{Content, Item, run_of_item},
};

/// How much of a conversation is looked at.
const MAX_RUNS: u32 = 200;

/// What the new run goes on with.
pub(super) enum Before {
    Nothing,
    /// A run that is over.
    Run(Box<Run>),
    Chat(ChatId),
}

/// The runs that were there before, newest first, and what the newest was told.
#[derive(Default)]
struct Known {
    runs: Vec<RunId>,
    /// The calls that it left to the client.
    open: BTreeSet<String>,
    input: Vec<Part>,
}

impl Known {
    fn has_call(&self, call_id: &str) -> bool {
        self.runs.iter().any(|run| is_call_of(*run, call_id))
    }

    fn has(&self, item: &Sent) -> bool {
        match item {
            Sent::Reference(id) => run_of_item(id).is_some_and(|(run, _)| self.runs.contains(&run)),
            Sent::Part(Part::Call { call_id, .. }) => self.has_call(call_id),
            Sent::Part(_) => false,
        }
    }

    fn asks_for(&self, item: &Sent) -> bool {
        matches!(item, Sent::Part(Part::CallResult { call_id, .. }) if self.open.contains(call_id))
    }

    fn was_told(&self, item: &Sent) -> bool {
        let Sent::Part(Part::Said { by: Speaker::User, text }) = item else { return false };
        self.input.iter().any(|part| {
            matches!(part, Part::Text { text: told } | Part::Said { by: Speaker::User, text: told } if told == text)
        })
    }
}

/// The parts of the new message: what is new in the input, references resolved, every call with its result.
pub(super) async fn settle(
    state: &AppState,
    workspace: WorkspaceId,
    before: &Before,
    items: Vec<Sent>,
) -> Result<Vec<Part>, ApiError> {
    let known = known(state, workspace, before).await?;
    let items = without_repetition(items, &known);
    let mut parts = vec![];
    // Results of calls that were made in one step with the calls that follow.
    let mut held_back: Vec<Part> = vec![];
    let mut outputs = Outputs::default();
    for item in items {
        match item {
            Sent::Part(part) => {
                if !matches!(part, Part::Call { .. }) {
                    parts.append(&mut held_back);
                }
                parts.push(part);
            }
            Sent::Reference(id) => {
                let referred = outputs.resolve(state, workspace, &id).await?;
                if !matches!(referred.parts.first(), Some(Part::Call { .. }) | None) {
                    parts.append(&mut held_back);
                }
                parts.extend(referred.parts);
                held_back.extend(referred.later);
            }
        }
    }
    parts.append(&mut held_back);
    check_calls(&parts, &known)?;
    Ok(parts)
}

async fn known(state: &AppState, workspace: WorkspaceId, before: &Before) -> Result<Known, ApiError> {
    let runs: Vec<RunId> = match before {
        Before::Nothing => return Ok(Known::default()),
        Before::Run(run) => {
            let line = state.store.ancestors(workspace, run.id, MAX_RUNS).await?;
            line.into_iter().map(|ancestor| ancestor.run_id).collect()
        }
        Before::Chat(chat) => {
            let filter = RunFilter { chat_id: Some(*chat), ..RunFilter::default() };
            let page = Page { limit: MAX_RUNS, after: None };
            state.store.list_runs(workspace, &filter, page).await?.items.iter().map(|run| run.id).collect()
        }
    };
    let Some(newest) = runs.first() else { return Ok(Known::default()) };
    let input = state.store.input(workspace, *newest).await?.parts;
    let record = state.store.records(workspace, &[*newest]).await?.pop();
    let replay = record.map(RunRecord::replay);
    let is_done = |replay: &Replay| replay.end().is_some_and(|end| end.status == RunStatus::Succeeded);
    let open = replay.filter(is_done).map(|replay| replay.open_client_calls()).unwrap_or_default();
    Ok(Known { open: open.into_iter().map(|call| call.call_id).collect(), runs, input })
}

/// Clients that keep the history themselves send it again, or a part of it: everything up to the last item that is known
/// is known, too. Those that do not still repeat the message that led to the calls whose results they send.
fn without_repetition(items: Vec<Sent>, known: &Known) -> Vec<Sent> {
    let seen = items.iter().rposition(|item| known.has(item)).map_or(0, |last| last + 1);
    let answers = items.iter().position(|item| known.asks_for(item)).unwrap_or(0);
    let is_new = |(index, item): &(usize, Sent)| match item {
        Sent::Part(Part::CallResult { call_id, .. }) => {
            known.open.contains(call_id) || !known.has_call(call_id)
        }
        item => *index >= seen && !(*index < answers && known.was_told(item)),
    };
    items.into_iter().enumerate().filter(is_new).map(|(_, item)| item).collect()
}

/// Every call is answered and every answer has its call.
fn check_calls(parts: &[Part], known: &Known) -> Result<(), ApiError> {
    let mut called = known.open.clone();
    let mut answered = BTreeSet::new();
    for part in parts {
        match part {
            Part::Call { call_id, .. } => {
                called.insert(call_id.clone());
            }
            Part::CallResult { call_id, .. } if !answered.insert(call_id.clone()) => {
                let told = format!("more than one tool output for function call {call_id}");
                return Err(ApiError::body("/input", told));
            }
            _ => {}
        }
    }
    if let Some(call) = called.difference(&answered).next() {
        return Err(ApiError::body("/input", format!("no tool output found for function call {call}")));
    }
    if let Some(call) = answered.difference(&called).next() {
        let told = format!("no tool call found for function call output with call_id {call}");
        return Err(ApiError::body("/input", told));
    }
    Ok(())
}

/// What the model is to read of an item that somebody refers to.
#[derive(Default)]
struct Referred {
    parts: Vec<Part>,
    /// To be read behind the other calls of its step.
    later: Option<Part>,
}

/// The items of the runs that an input refers to, and whether each is of an attempt that broke off.
#[derive(Default)]
struct Outputs(BTreeMap<RunId, Vec<(Item, bool)>>);

impl Outputs {
    async fn resolve(
        &mut self,
        state: &AppState,
        workspace: WorkspaceId,
        id: &str,
    ) -> Result<Referred, ApiError> {
        let unknown = || ApiError {
            code: Code::NotFound,
            ..ApiError::body("/input", format!("there is no item with the id `{id}`"))
        };
        let (run_id, _) = run_of_item(id).ok_or_else(unknown)?;
        let items = match self.0.entry(run_id) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                let run = found(state.store.run(workspace, run_id).await)?.ok_or_else(unknown)?;
                if !run.status.is_terminal() {
                    return Err(unknown());
                }
                let head = head_of(state, &run).await?;
                let encoder = encoded(state, &run, head).await?;
                place.insert(encoder.items().map(|(item, is_torn)| (item.clone(), is_torn)).collect())
            }
        };
        let (item, is_torn) = items.iter().find(|(item, _)| item.id() == id).ok_or_else(unknown)?;
        Ok(if *is_torn { Referred::default() } else { read(item, items) })
    }
}

fn read(item: &Item, all: &[(Item, bool)]) -> Referred {
    match item.clone() {
        Item::Message { content, .. } => {
            let text = content.iter().map(Content::as_text).collect();
            Referred { parts: vec![Part::Said { by: Speaker::Assistant, text }], later: None }
        }
        Item::Reasoning { .. } => Referred::default(),
        Item::FunctionCall { call_id, name, arguments, .. } => {
            Referred { parts: vec![Part::Call { call_id, name, arguments }], later: None }
        }
        Item::McpCall { id, name, arguments, output, error, step, .. } => {
            let output = output.or(error.map(|error| error.message)).unwrap_or_default();
            let result = Part::CallResult { call_id: id.clone(), output };
            let call = Part::Call { call_id: id, name, arguments };
            let is_beside = |(item, _): &(Item, bool)| matches!(item, Item::FunctionCall { step: other, .. } if *other == step);
            if all.iter().any(is_beside) {
                Referred { parts: vec![call], later: Some(result) }
            } else {
                Referred { parts: vec![call, result], later: None }
            }
        }
    }
}

/// The output of a run that is over.
pub(crate) async fn outputs_of(state: &AppState, run: &Run) -> Result<Vec<Item>, ApiError> {
    let head = head_of(state, run).await?;
    Ok(encoded(state, run, head).await?.output().cloned().collect())
}

/// The chat that `conversation` names: an id, or an object with one.
pub(super) fn conversation_of(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value["id"].as_str())
}

#[cfg(test)]
mod tests {
    use longhaul_shared::domain::tool::call_id;

    use super::*;

    fn said(text: &str) -> Sent {
        Sent::Part(Part::Said { by: Speaker::User, text: text.into() })
    }

    fn call(id: &str) -> Sent {
        Sent::Part(Part::Call { call_id: id.into(), name: "look".into(), arguments: "{}".into() })
    }

    fn result(id: &str) -> Sent {
        Sent::Part(Part::CallResult { call_id: id.into(), output: "x".into() })
    }

    fn known(run: RunId, open: &[&str], told: &str) -> Known {
        Known {
            runs: vec![run],
            open: open.iter().map(|id| (*id).to_owned()).collect(),
            input: vec![Part::Text { text: told.into() }],
        }
    }

    #[test]
    fn what_is_known_is_not_told_again() {
        let run = RunId::generate();
        let (open, old) = (call_id(run, 2, 1), call_id(run, 1, 1));
        let item = Sent::Reference(format!("msg_{}_3", run.0.simple()));
        let stranger = Sent::Reference(format!("msg_{}_3", RunId::generate().0.simple()));
        let known = known(run, &[&open], "one");
        let new =
            |items: &[&Sent]| without_repetition(items.iter().map(|item| (*item).clone()).collect(), &known);
        // The whole history again, from a client that names what it goes on with.
        let whole =
            [&said("one"), &item, &call(&old), &result(&old), &call(&open), &result(&open), &said("two")];
        assert_eq!(new(&whole), [result(&open), said("two")]);
        // The message that led to the call, and its result.
        assert_eq!(new(&[&said("one"), &result(&open)]), [result(&open)]);
        assert_eq!(new(&[&said("other"), &result(&open)]), [said("other"), result(&open)]);
        // The same words again are new ones.
        assert_eq!(new(&[&said("one")]), [said("one")]);
        assert_eq!(new(&[&stranger, &call("c"), &result("c")]), [stranger, call("c"), result("c")]);
    }

    #[test]
    fn every_call_has_to_be_answered_and_nothing_else() {
        let known = known(RunId::generate(), &["open"], "");
        let check = |items: &[Sent]| {
            let parts: Vec<Part> = items
                .iter()
                .filter_map(|item| if let Sent::Part(part) = item { Some(part.clone()) } else { None })
                .collect();
            check_calls(&parts, &known).map_err(|error| error.detail.unwrap())
        };
        assert_eq!(check(&[result("open")]), Ok(()));
        assert_eq!(check(&[call("c"), result("c"), result("open")]), Ok(()));
        assert!(check(&[said("hi")]).unwrap_err().contains("no tool output found for function call open"));
        assert!(check(&[result("open"), call("c")]).unwrap_err().contains("function call c"));
        assert!(check(&[result("open"), result("open")]).unwrap_err().contains("more than one"));
        assert!(check(&[result("open"), result("x")]).unwrap_err().contains("no tool call found"));
    }
}
