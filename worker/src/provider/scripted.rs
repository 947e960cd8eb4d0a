//! A model without a network: it plays a script, the same way every time.
//!
//! For the demo, which shows a run with reasoning, tool calls and a step that breaks off and is done over; and for
//! tests and benchmarks, which bring scripts of their own. Which step is played follows from the conversation: the
//! number of answers since the user's last message.

use std::{path::Path, sync::Arc, time::Duration};

use async_stream::try_stream;
use async_trait::async_trait;
use longhaul_shared::domain::{replay::ModelMessage, run::Usage, step::FinishReason, text::one_line};
use serde::Deserialize;
use serde_json::Value;
use tokio::{
    task::yield_now,
    time::{Instant, sleep_until},
};

use super::{CallDelta, Model, ModelError, ModelEvent, ModelRequest, ModelStream};

/// How much of a message is quoted.
const QUOTE: usize = 200;

/// A script that cannot be played.
#[derive(Debug, thiserror::Error)]
pub enum BadScript {
    #[error("the script cannot be read: {0}")]
    Io(#[from] std::io::Error),
    #[error("the script is not understood: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the script has no steps")]
    Empty,
    #[error("rate_per_second must be 0 or above, not {0}")]
    Rate(f64),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Script {
    steps: Vec<ScriptStep>,
}

/// One answer of the model.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ScriptStep {
    /// In texts, `{{input}}` is the user's last message and `{{tool}}` the last tool result.
    reasoning: String,
    text: String,
    /// So many tokens of filler behind the text, each marked with its attempt, step and number.
    tokens: u32,
    /// 0 is as fast as it goes.
    rate_per_second: f64,
    first_token_ms: u64,
    tool_calls: Vec<ScriptCall>,
    /// The stream breaks off half way on these attempts of the step.
    fail_on_attempts: Vec<u32>,
    /// Counted from the words where absent.
    usage: Option<Usage>,
    /// So many answers in a row are this one.
    repeat: usize,
}

impl Default for ScriptStep {
    fn default() -> Self {
        Self {
            reasoning: String::new(),
            text: String::new(),
            tokens: 0,
            rate_per_second: 20.0,
            first_token_ms: 0,
            tool_calls: vec![],
            fail_on_attempts: vec![],
            usage: None,
            repeat: 1,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ScriptCall {
    name: String,
    /// A string is sent as it is, so that a script can write what is not JSON.
    #[serde(default)]
    arguments: Value,
}

impl ScriptCall {
    fn arguments(&self) -> String {
        match &self.arguments {
            Value::String(text) => text.clone(),
            Value::Null => "{}".to_owned(),
            other => other.to_string(),
        }
    }
}

/// A model that plays a script. After its last step it plays that one again.
#[derive(Debug)]
pub struct Scripted {
    steps: Vec<Arc<ScriptStep>>,
}

impl Scripted {
    /// The demo: about 25 seconds.
    pub fn demo() -> Self {
        Self::from_json(include_str!("demo.json")).expect("a test plays it")
    }

    pub fn from_file(path: &Path) -> Result<Self, BadScript> {
        Self::from_json(&std::fs::read_to_string(path)?)
    }

    pub fn from_json(json: &str) -> Result<Self, BadScript> {
        let script: Script = serde_json::from_str(json)?;
        if script.steps.is_empty() {
            return Err(BadScript::Empty);
        }
        if let Some(step) = script.steps.iter().find(|step| step.rate_per_second < 0.0) {
            return Err(BadScript::Rate(step.rate_per_second));
        }
        Ok(Self { steps: script.steps.into_iter().map(Arc::new).collect() })
    }

    fn step(&self, answers: usize) -> Arc<ScriptStep> {
        let mut left = answers;
        let played = self.steps.iter().find(|step| match left.checked_sub(step.repeat) {
            Some(rest) => {
                left = rest;
                false
            }
            None => true,
        });
        Arc::clone(played.unwrap_or(&self.steps[self.steps.len() - 1]))
    }
}

#[async_trait]
impl Model for Scripted {
    async fn stream(&self, request: ModelRequest) -> Result<ModelStream, ModelError> {
        let said = Said::of(&request.messages);
        let step = self.step(said.answers);
        let (number, attempt) = (request.step, request.attempt);
        let reasoning = said.render(&step.reasoning);
        let text = said.render(&step.text);
        let reasoning_tokens = words(&reasoning).count();
        let tokens = reasoning_tokens + words(&text).count() + step.tokens as usize;
        let fails = step.fail_on_attempts.contains(&attempt);
        let usage = step.usage.unwrap_or_else(|| Usage {
            input_tokens: request.messages.iter().map(|message| words(text_of(message)).count() as i64).sum(),
            output_tokens: tokens as i64,
            reasoning_tokens: reasoning_tokens as i64,
            cached_input_tokens: 0,
        });
        Ok(Box::pin(try_stream! {
            let mut pace = Pace::new(&step);
            let filler = (1..=step.tokens).map(|n| ModelEvent::Text(format!("a{attempt}.s{number}.{n} ")));
            let pieces = words(&reasoning)
                .map(|word| ModelEvent::Reasoning(word.to_owned()))
                .chain(words(&text).map(|word| ModelEvent::Text(word.to_owned())))
                .chain(filler)
                .take(if fails { tokens.div_ceil(2) } else { tokens });
            for piece in pieces {
                pace.wait().await;
                yield piece;
            }
            if fails {
                Err(ModelError::Truncated)?;
            }
            for (index, call) in (0..).zip(&step.tool_calls) {
                pace.wait().await;
                let arguments = call.arguments();
                // In two pieces, as providers do.
                let half = (0..=arguments.len() / 2).rfind(|at| arguments.is_char_boundary(*at)).unwrap_or(0);
                yield ModelEvent::ToolCall(CallDelta {
                    index,
                    id: Some(format!("script_{number}_{index}")),
                    name: Some(call.name.clone()),
                    arguments: arguments[..half].to_owned(),
                });
                yield ModelEvent::ToolCall(CallDelta {
                    index,
                    arguments: arguments[half..].to_owned(),
                    ..CallDelta::default()
                });
            }
            yield ModelEvent::Usage(usage);
            yield ModelEvent::Finish(if step.tool_calls.is_empty() {
                FinishReason::Stop
            } else {
                FinishReason::ToolCalls
            });
        }))
    }
}

/// What of a conversation a script reacts to.
struct Said {
    input: String,
    tool: String,
    answers: usize,
}

impl Said {
    fn of(messages: &[ModelMessage]) -> Self {
        let (mut input, mut tool, mut answers) = ("", "", 0);
        for message in messages {
            match message {
                ModelMessage::User(text) => (input, answers) = (text, 0),
                ModelMessage::Assistant { .. } => answers += 1,
                ModelMessage::ToolResult { content, .. } => tool = content,
                ModelMessage::System(_) => {}
            }
        }
        Self { input: one_line(input, QUOTE), tool: one_line(tool, QUOTE), answers }
    }

    fn render(&self, text: &str) -> String {
        text.replace("{{input}}", &self.input).replace("{{tool}}", &self.tool)
    }
}

fn text_of(message: &ModelMessage) -> &str {
    match message {
        ModelMessage::System(text) | ModelMessage::User(text) | ModelMessage::Assistant { text, .. } => text,
        ModelMessage::ToolResult { content, .. } => content,
    }
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive(' ')
}

/// Keeps to the rate on average: a reader that was slow is caught up with.
struct Pace {
    next: Instant,
    between: Duration,
    played: u32,
}

impl Pace {
    fn new(step: &ScriptStep) -> Self {
        let between = if step.rate_per_second > 0.0 { 1.0 / step.rate_per_second } else { 0.0 };
        Self {
            next: Instant::now() + Duration::from_millis(step.first_token_ms),
            between: Duration::try_from_secs_f64(between).unwrap_or(Duration::MAX),
            played: 0,
        }
    }

    async fn wait(&mut self) {
        if self.between.is_zero() && self.played > 0 {
            // A stream without a pause must still let others have the thread.
            if self.played.is_multiple_of(32) {
                yield_now().await;
            }
        } else {
            sleep_until(self.next).await;
        }
        self.next = self.next.checked_add(self.between).unwrap_or(self.next);
        self.played = self.played.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use longhaul_shared::domain::{ids::RunId, replay::CallForModel};

    use super::*;

    async fn play(
        model: &Scripted,
        messages: &[ModelMessage],
        step: u32,
        attempt: u32,
    ) -> Vec<Result<ModelEvent, ModelError>> {
        let request = ModelRequest {
            model: "demo".into(),
            messages: Arc::new(messages.to_vec()),
            tools: vec![],
            client_tools: vec![],
            options: crate::provider::ModelOptions::default(),
            run_id: RunId::generate(),
            step,
            attempt,
        };
        model.stream(request).await.unwrap().collect().await
    }

    fn text(items: &[Result<ModelEvent, ModelError>]) -> String {
        let of = |item: &Result<ModelEvent, ModelError>| match item {
            Ok(ModelEvent::Text(text)) => Some(text.clone()),
            _ => None,
        };
        items.iter().filter_map(of).collect()
    }

    /// The demo without its pauses, and how long they are.
    fn hurried_demo() -> (Scripted, Vec<(f64, f64)>) {
        let mut model = Scripted::demo();
        let mut paces = vec![];
        for step in &mut model.steps {
            let step = Arc::get_mut(step).unwrap();
            paces.push((step.first_token_ms as f64 / 1000.0, step.rate_per_second));
            (step.first_token_ms, step.rate_per_second) = (0, 0.0);
        }
        (model, paces)
    }

    #[tokio::test]
    async fn the_demo_takes_about_25_seconds_and_quotes_what_it_was_given() {
        let (model, paces) = hurried_demo();
        let mut seconds = 0.0;
        let mut messages =
            vec![ModelMessage::User("an old question".into()), ModelMessage::User("hello there".into())];
        let mut last = String::new();
        for (step, attempt) in [(1, 1), (2, 1), (2, 2), (3, 1)] {
            let items = play(&model, &messages, step, attempt).await;
            let (first, rate) = paces[step as usize - 1];
            seconds += first + items.len() as f64 / rate;
            if (step, attempt) == (2, 1) {
                assert_eq!(items.last(), Some(&Err(ModelError::Truncated)));
                assert!(items.len() > 20);
                continue;
            }
            let reason = if step < 3 { FinishReason::ToolCalls } else { FinishReason::Stop };
            assert_eq!(items.last(), Some(&Ok(ModelEvent::Finish(reason))));
            assert!(items.iter().any(|item| matches!(item, Ok(ModelEvent::Reasoning(_)))));
            assert!(items.iter().any(|item| matches!(item, Ok(ModelEvent::Usage(u)) if u.output_tokens > 0)));
            last = text(&items);
            let call = CallForModel { call_id: "c".into(), name: "clock".into(), arguments: "{}".into() };
            messages.push(ModelMessage::Assistant { text: last.clone(), calls: vec![call] });
            messages.push(ModelMessage::ToolResult { call_id: "c".into(), content: "half past nine".into() });
        }
        assert!(last.contains("hello there") && last.contains("half past nine"));
        assert!((22.0..28.0).contains(&seconds), "{seconds} s");
    }

    #[tokio::test]
    async fn a_script_repeats_fills_and_fails_as_written() {
        let model = Scripted::from_json(
            r#"{"steps": [
                {"tokens": 4, "rate_per_second": 0, "repeat": 2, "fail_on_attempts": [1],
                 "tool_calls": [{"name": "charge", "arguments": {"op": "é"}}, {"name": "raw", "arguments": "{\"a\""}]},
                {"text": "the end", "rate_per_second": 0, "usage": {"inputTokens": 7}}
            ]}"#,
        )
        .unwrap();
        let user = ModelMessage::User("go".into());
        let answer = ModelMessage::Assistant { text: "x".into(), calls: vec![] };

        let torn = play(&model, &[user.clone(), answer.clone()], 2, 1).await;
        assert_eq!(
            (text(&torn).as_str(), torn.last()),
            ("a1.s2.1 a1.s2.2 ", Some(&Err(ModelError::Truncated)))
        );

        let whole = play(&model, &[user.clone(), answer.clone()], 2, 2).await;
        assert_eq!(text(&whole), "a2.s2.1 a2.s2.2 a2.s2.3 a2.s2.4 ");
        let mut arguments = [String::new(), String::new()];
        for item in &whole {
            if let Ok(ModelEvent::ToolCall(call)) = item {
                arguments[call.index as usize] += &call.arguments;
            }
        }
        assert_eq!(arguments, ["{\"op\":\"é\"}", "{\"a\""]);

        for answers in [2, 5] {
            let mut messages = vec![user.clone()];
            messages.extend(vec![answer.clone(); answers]);
            let end = play(&model, &messages, 3, 1).await;
            assert_eq!(text(&end), "the end");
            assert!(end.contains(&Ok(ModelEvent::Usage(Usage { input_tokens: 7, ..Usage::default() }))));
        }
    }

    #[tokio::test]
    async fn tokens_come_at_the_rate_after_the_first() {
        let model = Scripted::from_json(
            r#"{"steps": [{"tokens": 11, "rate_per_second": 100, "first_token_ms": 50}]}"#,
        )
        .unwrap();
        let begun = Instant::now();
        play(&model, &[], 1, 1).await;
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(150) && took < Duration::from_secs(1), "{took:?}");
    }

    #[test]
    fn a_script_with_an_unknown_field_or_no_step_is_refused() {
        for script in
            [r#"{"steps": []}"#, r#"{"steps": [{"txt": ""}]}"#, r#"{"steps": [{"rate_per_second": -1}]}"#]
        {
            assert!(Scripted::from_json(script).is_err(), "{script}");
        }
    }
}
