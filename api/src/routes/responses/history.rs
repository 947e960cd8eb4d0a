//! What an input has to do with what was said before: it may repeat a part of it, refer to items, and it has to answer the
//! calls that were left to the client.

use std::collections::{BTreeMap, BTreeSet};

use super::{input::Sent, references::References};
use crate::{error::ApiError, state::AppState, views::responses::run_of_item};
use longhaul_shared::{
    domain::{
        ids::{ChatId, MessageId, RunId, WorkspaceId},
        message::{Message, Part, Replaced, Role, Speaker},
        tool::call_prefix,
        transition::{MessageStatus, RunStatus},
    },
    store::Ancestor,
};

/// How far back a conversation is looked at, in turns.
const MAX_TURNS: u32 = 200;
/// The same for an input that repeats nothing: only the calls that wait for an answer are asked for.
const FEW_TURNS: u32 = 8;

/// What the new run goes on with.
pub(super) enum Before {
    Nothing,
    /// A run that is over.
    Run(RunId),
    Chat(ChatId),
}

/// What was there before.
#[derive(Default)]
struct Known {
    runs: BTreeSet<RunId>,
    /// What the names of the runs' calls begin with.
    calls: BTreeSet<String>,
    /// What the client has said.
    told: BTreeSet<Told>,
    /// The same in the newest turn.
    told_last: BTreeSet<Told>,
    /// The calls that were left to the client and have no answer yet.
    open: BTreeSet<String>,
    /// Calls that have one, but the turn that it began came to nothing, and those that the client brought along.
    may_be_answered_again: BTreeSet<String>,
}

/// One turn of it.
struct Turn {
    parts: Vec<Part>,
    answer: Option<RunId>,
    has_succeeded: bool,
}

impl Known {
    /// `turns` are newest first.
    async fn of(state: &AppState, workspace: WorkspaceId, turns: Vec<Turn>) -> Result<Self, ApiError> {
        let mut known = Self::default();
        let mut given = BTreeSet::new();
        let mut is_settled = false;
        for (place, turn) in turns.iter().enumerate() {
            if let Some(run) = turn.answer {
                known.runs.insert(run);
                known.calls.insert(call_prefix(run));
            }
            // Answers that came to something are final, and so are the calls before them.
            if let Some(run) = turn.answer.filter(|_| turn.has_succeeded && !is_settled) {
                is_settled = true;
                let record = state.store.records(workspace, &[run]).await?.pop();
                let asked_for = record.map(|record| record.replay().open_client_calls()).unwrap_or_default();
                for call in asked_for {
                    if given.contains(&call.call_id) {
                        known.may_be_answered_again.insert(call.call_id);
                    } else {
                        known.open.insert(call.call_id);
                    }
                }
            }
            for part in &turn.parts {
                if let Some(told) = told(part) {
                    if place == 0 {
                        known.told_last.insert(told.clone());
                    }
                    known.told.insert(told);
                }
                match part {
                    Part::CallResult { call_id, .. } => {
                        given.insert(call_id.clone());
                    }
                    Part::Call { call_id, .. } => {
                        known.may_be_answered_again.insert(call_id.clone());
                    }
                    _ => {}
                }
            }
        }
        Ok(known)
    }

    fn has_call(&self, call_id: &str) -> bool {
        call_id.rsplitn(3, '_').nth(2).is_some_and(|prefix| self.calls.contains(prefix))
    }

    fn has(&self, item: &Sent) -> bool {
        match item {
            Sent::Reference(id) => run_of_item(id).is_some_and(|run| self.runs.contains(&run)),
            Sent::Part(Part::Call { call_id, .. }) => self.has_call(call_id),
            Sent::Part(_) => false,
        }
    }

    fn takes(&self, call_id: &str) -> bool {
        self.open.contains(call_id) || self.may_be_answered_again.contains(call_id)
    }
}

/// Who said something, and what.
type Told = (&'static str, String);

fn told(part: &Part) -> Option<Told> {
    match part {
        Part::Text { text } => Some((Speaker::User.as_str(), text.clone())),
        Part::Said { by, text } => Some((by.as_str(), text.clone())),
        _ => None,
    }
}

/// The parts of the new message: what is new in the input, references resolved, every call with its result.
pub(super) async fn settle(
    state: &AppState,
    workspace: WorkspaceId,
    before: &Before,
    items: Vec<Sent>,
) -> Result<Vec<Part>, ApiError> {
    let is_plain = |item: &Sent| matches!(item, Sent::Part(Part::Text { .. } | Part::Said { .. }));
    let depth = if items.iter().all(is_plain) { FEW_TURNS } else { MAX_TURNS };
    let known = Known::of(state, workspace, turns(state, workspace, before, depth).await?).await?;
    let items = without_repetition(items, &known);
    if items.is_empty() {
        return Err(ApiError::body("/input", "says nothing that is not known already"));
    }
    let mut parts = vec![];
    // Results of calls that were made in one step with the calls that follow.
    let mut held_back: Vec<Part> = vec![];
    let mut references = References::new(state.settings.body_limit);
    for item in items {
        match item {
            Sent::Part(part) => {
                if !matches!(part, Part::Call { .. }) {
                    parts.append(&mut held_back);
                }
                parts.push(part);
            }
            Sent::Reference(id) => {
                let referred = references.resolve(state, workspace, &id).await?;
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
    if parts.is_empty() {
        return Err(ApiError::body("/input", "says nothing to the model"));
    }
    Ok(parts)
}

/// Newest first.
async fn turns(
    state: &AppState,
    workspace: WorkspaceId,
    before: &Before,
    depth: u32,
) -> Result<Vec<Turn>, ApiError> {
    match before {
        Before::Nothing => Ok(vec![]),
        Before::Run(run) => {
            let line = state.store.ancestors(workspace, *run, depth).await?;
            let turn = |ancestor: Ancestor| Turn {
                parts: ancestor.parts,
                answer: Some(ancestor.run_id),
                has_succeeded: ancestor.status == RunStatus::Succeeded,
            };
            Ok(line.into_iter().map(turn).collect())
        }
        Before::Chat(chat) => {
            let rows = state.store.messages_back(workspace, *chat, i64::MAX, 2 * depth).await?;
            let mut answers: BTreeMap<MessageId, Message> = BTreeMap::new();
            let mut replaced = Replaced::default();
            let mut turns = vec![];
            for row in rows {
                if row.role == Role::Assistant {
                    answers.extend(row.in_reply_to.map(|question| (question, row)));
                } else if !replaced.hides(&row) {
                    let answer = answers.remove(&row.id);
                    let status = answer.as_ref().and_then(|answer| answer.status);
                    turns.push(Turn {
                        parts: row.parts,
                        answer: answer.and_then(|answer| answer.run_id),
                        has_succeeded: status == Some(MessageStatus::Completed),
                    });
                }
            }
            Ok(turns)
        }
    }
}

/// Clients that keep the history themselves send it again, or a part of it: what they have before the last item that is
/// known, and said before, is no news. Those that do not still repeat the message that led to the calls whose results
/// they send.
fn without_repetition(items: Vec<Sent>, known: &Known) -> Vec<Sent> {
    let seen = items.iter().rposition(|item| known.has(item)).map_or(0, |last| last + 1);
    let is_answer =
        |item: &Sent| matches!(item, Sent::Part(Part::CallResult { call_id, .. }) if known.takes(call_id));
    let answers = items.iter().position(is_answer).unwrap_or(0);
    let is_new = |(index, item): &(usize, Sent)| {
        if known.has(item) {
            return false;
        }
        match item {
            Sent::Part(Part::CallResult { call_id, .. }) => known.takes(call_id) || !known.has_call(call_id),
            Sent::Part(Part::Said { by: Speaker::Assistant, .. }) => *index >= seen,
            Sent::Part(part) => told(part).is_none_or(|told| {
                let is_old = *index < seen && known.told.contains(&told);
                let is_repeated = *index < answers && known.told_last.contains(&told);
                !is_old && !is_repeated
            }),
            Sent::Reference(_) => true,
        }
    };
    items.into_iter().enumerate().filter(is_new).map(|(_, item)| item).collect()
}

/// Every call is answered and every answer has its call, each once.
fn check_calls(parts: &[Part], known: &Known) -> Result<(), ApiError> {
    let refuse = |told: String| Err(ApiError::body("/input", told));
    let mut called = BTreeSet::new();
    let mut answered = BTreeSet::new();
    for part in parts {
        match part {
            Part::Call { call_id, .. } if !called.insert(call_id) => {
                return refuse(format!("more than one function call with call_id {call_id}"));
            }
            Part::CallResult { call_id, .. } if !answered.insert(call_id) => {
                return refuse(format!("more than one tool output for function call {call_id}"));
            }
            _ => {}
        }
    }
    if let Some(call) = called.iter().copied().chain(&known.open).find(|call| !answered.contains(call)) {
        return refuse(format!("no tool output found for function call {call}"));
    }
    if let Some(call) = answered.iter().find(|call| !called.contains(*call) && !known.takes(call)) {
        return refuse(format!("no tool call found for function call output with call_id {call}"));
    }
    Ok(())
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
        let told = BTreeSet::from([("user", told.to_owned())]);
        Known {
            runs: BTreeSet::from([run]),
            calls: BTreeSet::from([call_prefix(run)]),
            open: open.iter().map(|id| (*id).to_owned()).collect(),
            told_last: told.clone(),
            told,
            may_be_answered_again: BTreeSet::new(),
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
        // News may stand before what is known.
        assert_eq!(new(&[&said("news"), &item, &result(&open)]), [said("news"), result(&open)]);
        // The message that led to the call, and its result.
        assert_eq!(new(&[&said("one"), &result(&open)]), [result(&open)]);
        assert_eq!(new(&[&said("other"), &result(&open)]), [said("other"), result(&open)]);
        // The same words again are new ones.
        assert_eq!(new(&[&said("one")]), [said("one")]);
        assert_eq!(new(&[&stranger, &call("c"), &result("c")]), [stranger, call("c"), result("c")]);
    }

    #[test]
    fn every_call_has_to_be_answered_and_nothing_else() {
        let run = RunId::generate();
        let tried = call_id(run, 1, 1);
        let mut known = known(run, &["open"], "");
        known.may_be_answered_again.insert(tried.clone());
        let check = |items: &[Sent]| {
            let parts: Vec<Part> = items
                .iter()
                .filter_map(|item| if let Sent::Part(part) = item { Some(part.clone()) } else { None })
                .collect();
            check_calls(&parts, &known).map_err(|error| error.detail.unwrap())
        };
        assert_eq!(check(&[result("open")]), Ok(()));
        assert_eq!(check(&[result("open"), result(&tried)]), Ok(()));
        assert_eq!(check(&[call("c"), result("c"), result("open")]), Ok(()));
        assert!(check(&[said("hi")]).unwrap_err().contains("no tool output found for function call open"));
        assert!(check(&[result("open"), call("c")]).unwrap_err().contains("function call c"));
        assert!(check(&[result("open"), result("open")]).unwrap_err().contains("more than one"));
        assert!(
            check(&[call("c"), call("c"), result("c"), result("open")])
                .unwrap_err()
                .contains("more than one")
        );
        assert!(check(&[result("open"), result("x")]).unwrap_err().contains("no tool call found"));
    }
}
