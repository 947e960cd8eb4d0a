//! What a run's events tell, put together as a client would that knows nothing but the documented stream.
//!
//! Written apart from the product's own reconstruction on purpose: two readings of one log that agree are worth more
//! than one reading that agrees with itself.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// One event of a run.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Event {
    pub seq: i64,
    #[serde(rename = "type")]
    pub kind: String,
    /// Empty where it was read from a row, which has the time of many events.
    #[serde(default)]
    pub at: String,
    pub step: Option<u32>,
    pub attempt: Option<u32>,
    pub data: Value,
}

impl Event {
    /// The event without its time.
    #[must_use]
    pub fn timeless(&self) -> Self {
        Self { at: String::new(), ..self.clone() }
    }
}

/// A run's answer as its events tell it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Story {
    pub steps: BTreeMap<u32, Told>,
    /// Status and reason.
    pub end: Option<(String, String)>,
}

/// One step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Told {
    pub attempt: u32,
    pub is_saved: bool,
    /// The name and the state of each call.
    pub calls: BTreeMap<u64, (String, String)>,
    /// Deltas with their numbers, so that a restart can take them back.
    deltas: Vec<(i64, &'static str, String)>,
}

impl Told {
    /// `text` and `reasoning` in stretches, and each `call` that is left to the client by its id.
    pub fn output(&self) -> Vec<(&'static str, String)> {
        let mut output: Vec<(&'static str, String)> = Vec::new();
        for (_, kind, text) in &self.deltas {
            match output.last_mut() {
                Some((last, stretch)) if last == kind && *kind != "call" => stretch.push_str(text),
                _ => output.push((kind, text.clone())),
            }
        }
        output
    }

    pub fn text(&self) -> String {
        let texts = self.deltas.iter().filter(|(_, kind, _)| *kind == "text");
        texts.map(|(_, _, text)| text.as_str()).collect()
    }
}

impl Story {
    pub fn of(events: &[Event]) -> Self {
        let mut story = Self::default();
        for event in events {
            story.go_on(event);
        }
        story
    }

    fn go_on(&mut self, event: &Event) {
        let text = |name: &str| event.data[name].as_str().unwrap_or_default().to_owned();
        if event.kind == "run.finished" {
            self.end = Some((text("status"), text("reason")));
        }
        let Some(number) = event.step else { return };
        let step = self.steps.entry(number).or_default();
        let call = event.data["call"].as_u64().unwrap_or_default();
        match event.kind.as_str() {
            "step.started" => step.attempt = event.attempt.unwrap_or_default(),
            "step.restarted" => {
                let from = event.data["dropFrom"].as_i64().unwrap_or_default();
                step.deltas.retain(|(seq, ..)| *seq < from);
            }
            "step.finished" => step.is_saved = true,
            "text.delta" => step.deltas.push((event.seq, "text", text("text"))),
            "reasoning.delta" => step.deltas.push((event.seq, "reasoning", text("text"))),
            "tool.requested" => step.deltas.push((event.seq, "call", text("callId"))),
            "tool.planned" => drop(step.calls.insert(call, (text("name"), "planned".to_owned()))),
            "tool.started" => self.set_state(number, call, "dispatched".to_owned()),
            "tool.finished" => self.set_state(number, call, text("state")),
            _ => {}
        }
    }

    fn set_state(&mut self, step: u32, call: u64, state: String) {
        if let Some((_, current)) = self.steps.get_mut(&step).and_then(|step| step.calls.get_mut(&call)) {
            *current = state;
        }
    }

    /// All text of all steps.
    pub fn text(&self) -> String {
        self.steps.values().map(Told::text).collect()
    }
}

/// Which attempt of the fake provider wrote this text, if it is all `count` marks of one attempt at `turn`, in order.
pub fn marks_of(text: &str, turn: usize, count: usize) -> Option<u32> {
    let attempt = text.strip_prefix('a')?.split_once('.')?.0.parse().ok()?;
    let mut rest = text;
    for i in 0..count {
        rest = rest.strip_prefix(&format!("a{attempt}.s{turn}.{i} "))?;
    }
    rest.is_empty().then_some(attempt)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{Event, Story, marks_of};

    fn event(seq: i64, kind: &str, attempt: u32, data: Value) -> Event {
        Event { seq, kind: kind.into(), at: String::new(), step: Some(1), attempt: Some(attempt), data }
    }

    #[test]
    fn a_restart_takes_back_what_the_torn_attempt_said() {
        let story = Story::of(&[
            event(1, "step.started", 1, json!({})),
            event(2, "text.delta", 1, json!({"text": "torn"})),
            event(3, "step.restarted", 2, json!({"dropFrom": 1})),
            event(4, "step.started", 2, json!({})),
            event(5, "reasoning.delta", 2, json!({"text": "hm"})),
            event(6, "text.delta", 2, json!({"text": "who"})),
            event(7, "text.delta", 2, json!({"text": "le"})),
            event(8, "step.finished", 2, json!({})),
        ]);
        assert_eq!(story.steps[&1].output(), [("reasoning", "hm".to_owned()), ("text", "whole".to_owned())]);
        assert_eq!((story.steps[&1].attempt, story.steps[&1].is_saved), (2, true));
    }

    #[test]
    fn marks_of_two_attempts_are_nobodys() {
        assert_eq!(marks_of("a2.s1.0 a2.s1.1 ", 1, 2), Some(2));
        assert_eq!(marks_of("a1.s1.0 a2.s1.1 ", 1, 2), None);
        assert_eq!(marks_of("a1.s1.0 ", 1, 2), None);
        assert_eq!(marks_of("", 1, 2), None);
    }
}
