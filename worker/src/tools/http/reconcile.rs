//! Asks a tool what became of a call that was sent and whose answer was not seen.
//!
//! `POST reconcile_url` with the call's key, run, step, number, tool and arguments, under the same headers and bounds as
//! the call itself. The answer is `{"state": …, "output"?, "error"?}`: `succeeded`, `failed`, `pending` (asked again
//! within the time limit), or `not_received`, with which the tool promises to refuse this key from now on. Everything
//! else leaves the outcome unknown.

use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout_at};
use url::Url;

use super::{HttpTool, MARGIN, NoResponse};
use crate::tools::{Barred, ToolContext, ToolOutcome};

#[derive(Deserialize)]
struct Answer {
    state: State,
    #[serde(default)]
    output: Option<Value>,
    #[serde(default)]
    error: Option<Value>,
}

#[derive(Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum State {
    Succeeded,
    Failed,
    NotReceived,
    Pending,
    Unknown,
}

impl HttpTool {
    pub(super) async fn ask(&self, arguments: &Value, cx: &ToolContext) -> ToolOutcome {
        let unknown = |why: &str| ToolOutcome::Unknown(self.line(why));
        let Some(url) = &self.options.reconcile_url else {
            return unknown("the tool cannot tell what became of this call");
        };
        let question = json!({
            "idempotencyKey": cx.idempotency_key,
            "runId": cx.run_id,
            "step": cx.step,
            "call": cx.call,
            "tool": self.options.spec.name,
            "arguments": arguments,
        })
        .to_string();
        let deadline = Instant::now() + self.time_limit(cx);
        let mut asked = 0;
        loop {
            let Ok(answer) = timeout_at(deadline, self.ask_once(url, &question, cx)).await else {
                return unknown("the tool did not tell in time what became of this call");
            };
            let answer = match answer {
                Ok(answer) => answer,
                Err(why) => {
                    return unknown(&format!("the tool did not tell what became of this call: {why}"));
                }
            };
            match answer.state {
                State::Succeeded => return ToolOutcome::Succeeded(self.text_of(answer.output)),
                State::Failed => return ToolOutcome::Failed(self.text_of(answer.error)),
                State::NotReceived => {
                    return ToolOutcome::Failed(
                        "this call never arrived at the tool, which will not accept it any more; it had no effect"
                            .to_owned(),
                    );
                }
                State::Unknown => return unknown("the tool itself does not know what became of this call"),
                State::Pending => {}
            }
            asked += 1;
            let wait = self.options.backoff.wait(asked, (self.options.random)());
            if Instant::now() + wait >= deadline {
                return unknown("the tool was still at it when its time was over");
            }
            sleep(wait).await;
        }
    }

    async fn ask_once(&self, url: &Url, question: &str, cx: &ToolContext) -> Result<Answer, String> {
        let asked = self.request(Method::POST, url, question.as_bytes(), cx).await;
        let mut response = asked.map_err(|error| match error {
            NoResponse::Refused(refused) => refused.to_string(),
            NoResponse::Barred => Barred.to_string(),
            NoResponse::Failed(error) => super::root_cause(&error),
        })?;
        if !response.status().is_success() {
            return Err(format!("it answered {}", response.status().as_u16()));
        }
        let limit = self.options.max_bytes;
        let body = self.bytes(&mut response, limit).await?;
        if body.len() > limit.saturating_add(MARGIN) {
            return Err("its answer is too long".to_owned());
        }
        serde_json::from_slice(&body).map_err(|_| "its answer makes no sense".to_owned())
    }

    /// Text as it is, anything else as JSON.
    fn text_of(&self, value: Option<Value>) -> String {
        let text = match value {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text,
            Some(other) => other.to_string(),
        };
        self.clean(text.as_bytes(), self.options.max_bytes)
    }
}
