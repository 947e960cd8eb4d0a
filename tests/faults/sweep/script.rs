//! What the model says in a case, and what must have come of it whatever happened.

use longhaul_tests::client::{Run, Step, Submitted};
use longhaul_tests::story::marks_of;
use longhaul_tests::{Tail, Turn, World};
use serde_json::json;

/// The words of each answer.
pub(crate) const PIECES: usize = 12;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Script {
    /// One answer.
    Text,
    /// Three tools, one after the other, then an answer.
    Row,
    /// Five tools at once, then an answer.
    Parallel,
}

impl Script {
    pub(crate) const ALL: &[Self] = &[Self::Text, Self::Row, Self::Parallel];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Row => "row",
            Self::Parallel => "parallel",
        }
    }

    /// The tools of each answer but the last.
    fn tools(self) -> &'static [&'static [&'static str]] {
        match self {
            Self::Text => &[],
            Self::Row => &[&["charge"], &["put"], &["look"]],
            Self::Parallel => &[&["charge", "put", "look", "look", "put"]],
        }
    }

    pub(crate) fn turns(self) -> usize {
        self.tools().len() + 1
    }

    /// The answer in whose middle a gate stands.
    pub(crate) fn gated_turn(self) -> usize {
        self.turns().min(2)
    }

    /// At which hit of a failpoint it strikes: where something has been done already and something is left.
    pub(crate) fn hit_of(self, failpoint: &str) -> usize {
        match (failpoint, self) {
            ("before_model_call" | "after_model_before_persist", _) => self.gated_turn(),
            ("after_tool_answer_before_record" | "after_tool_result", Self::Parallel) => 3,
            _ => 1,
        }
    }

    /// The answers; `id` is in the name of everything that tools do.
    pub(crate) fn script(self, id: usize) -> longhaul_tests::Script {
        let turns = (1..=self.turns()).map(|turn| {
            let tools = self.tools().get(turn - 1).copied().unwrap_or_default();
            tools.iter().enumerate().fold(Turn::marked(PIECES), |answer, (call, tool)| {
                answer.and_call(tool, &json!({"op": op(id, turn, call + 1)}))
            })
        });
        longhaul_tests::Script::new(turns)
    }

    /// Everything that must hold of the run when it is over, after one fault and `lost` leases for which the case is not
    /// to blame; in words where it does not.
    pub(crate) async fn flaws(
        self,
        world: &World,
        id: usize,
        lost: usize,
        submitted: &Submitted,
        tail: &Tail,
    ) -> Vec<String> {
        let client = world.client();
        let run: Run = client.run(&submitted.run_id).await;
        let mut flaws = Vec::new();
        if run.outcome() != "succeeded done" {
            flaws.push(format!("the run ended {}: {:?}", run.outcome(), run.error));
        }
        // A machine that is too busy for the short lease is a fault too, and not the case's.
        let attempts = 2 + lost;
        if run.attempts as usize > attempts {
            flaws.push(format!("one fault cost {} attempts", run.attempts));
        }
        let log = world.rows.log(&submitted.run_id).await;
        let claims = log.iter().filter(|event| event.kind == "run.claimed").count();
        if claims > attempts || claims != run.attempts as usize {
            flaws.push(format!("{claims} claims in the log of {} attempts after one fault", run.attempts));
        }
        let steps = client.steps(&submitted.run_id).await;
        if steps.len() != self.turns() {
            flaws.push(format!("{} steps instead of {}", steps.len(), self.turns()));
        }
        let story = tail.story();
        for (turn, step) in (1..).zip(&steps) {
            let text = story.steps.get(&step.step).map(longhaul_tests::story::Told::text).unwrap_or_default();
            if marks_of(&text, turn, PIECES).is_none() {
                flaws.push(format!("step {turn} is not one whole answer: {text:?}"));
            }
            flaws.extend(self.flaws_of_calls(world, id, turn, step));
        }
        let calls = world.provider.calls_to("helper");
        for turn in 1..=self.turns() {
            let asked = calls.iter().filter(|call| call.key == submitted.run_id && call.turn == turn).count();
            if !(1..=attempts).contains(&asked) {
                flaws.push(format!("the model was asked {asked} times for answer {turn}"));
            }
        }
        let messages = client.messages(&submitted.chat_id).await;
        if messages[1].text() != story.text() || messages[1].status != "completed" {
            flaws.push(format!("the message says {:?}, the tail {:?}", messages[1].text(), story.text()));
        }
        flaws
    }

    fn flaws_of_calls(self, world: &World, id: usize, turn: usize, step: &Step) -> Vec<String> {
        let tools = self.tools().get(turn - 1).copied().unwrap_or_default();
        let mut flaws = Vec::new();
        if step.tool_calls.len() != tools.len() {
            flaws.push(format!("step {turn} has {} calls instead of {}", step.tool_calls.len(), tools.len()));
        }
        for (call, tool) in step.tool_calls.iter().zip(tools) {
            let op = op(id, turn, call.call as usize);
            let (effects, keys) = (world.tools.effects(&op), world.tools.keys(&op));
            let good = match (*tool, call.state.as_str()) {
                ("charge" | "put", "succeeded") => effects == 1,
                // It may have been done, nobody knows; it must not be done again.
                ("charge", "unknown") => effects <= 1,
                ("look", "succeeded") => effects >= 1,
                _ => false,
            };
            if !good {
                flaws.push(format!("{tool} {op} is {} and was done {effects} times", call.state));
            }
            if keys.iter().any(|key| *key != call.idempotency_key) {
                flaws
                    .push(format!("{tool} {op} went out under {keys:?} instead of {}", call.idempotency_key));
            }
        }
        flaws
    }
}

fn op(id: usize, turn: usize, call: usize) -> String {
    format!("op {id}.{turn}.{call}")
}
