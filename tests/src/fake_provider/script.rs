//! What the fake provider says: a script per model, a turn per call of a conversation, and how a turn goes wrong.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use serde_json::{Value, json};

/// Where in an answer something happens. Pieces are counted over reasoning, text and tool calls, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// The request has been read; not a byte of the answer is out.
    BeforeHead,
    /// The head and this many pieces are out.
    Token(usize),
    /// All pieces are out, the finish reason is not.
    BeforeEnd,
}

/// One way in which an attempt fails.
#[derive(Clone, Debug)]
pub enum Fault {
    /// An error status with this body, and `Retry-After` as it should appear.
    Status { code: u16, body: String, retry_after: Option<String> },
    /// 307 to this address.
    Redirect(String),
    /// 200 and a web page, as captive portals and broken gateways answer.
    Html,
    /// Says nothing more until the client goes away.
    Hang(At),
    /// Hangs up with a TCP reset.
    Reset(At),
    /// Hangs up without the end of the body.
    Cut(At),
    /// A proper end of the body after so many pieces, but neither finish reason nor `[DONE]`.
    CleanEnd { after: usize },
    /// A line that is no JSON after so many pieces; the rest is as scripted.
    Malformed { after: usize },
    /// An error object in the stream after so many pieces, then a proper end.
    ErrorEvent { after: usize, error: Value },
    /// After so many pieces only SSE comments, until the client goes away.
    CommentsForever { after: usize },
    /// The last tool call loses the second half of its arguments; the answer ends as if it were whole.
    TruncatedArguments,
}

impl Fault {
    /// A status with an error body as `OpenAI` words it.
    pub fn status(code: u16) -> Self {
        let body =
            json!({"error": {"message": format!("scripted {code}"), "type": "scripted", "code": null}});
        Self::Status { code, body: body.to_string(), retry_after: None }
    }

    pub fn status_retry_after(code: u16, retry_after: &str) -> Self {
        let Self::Status { code, body, .. } = Self::status(code) else {
            unreachable!("status() makes a status")
        };
        Self::Status { code, body, retry_after: Some(retry_after.to_owned()) }
    }
}

/// The turns of a conversation, one for each model call.
#[derive(Clone, Debug, Default)]
pub struct Script {
    pub(super) turns: Vec<Turn>,
    weather: Vec<(f64, Fault)>,
    pub(super) repeat_last: bool,
    pub(super) whole_conversation: bool,
}

impl Script {
    pub fn new(turns: impl IntoIterator<Item = Turn>) -> Self {
        Self { turns: turns.into_iter().collect(), ..Self::default() }
    }

    /// Calls beyond the last turn get the last turn again. Without this they get a 500 and count as violations.
    #[must_use]
    pub fn repeat_last(mut self) -> Self {
        self.repeat_last = true;
        self
    }

    /// Each request fails like this with that probability. The dice depend on what is asked and how often it was, so
    /// they fall alike in every test run.
    #[must_use]
    pub fn weather(mut self, faults: impl IntoIterator<Item = (f64, Fault)>) -> Self {
        self.weather.extend(faults);
        self
    }

    /// How this attempt fails, if it does: as its turn says, else by the weather. `asked` names the conversation.
    pub(super) fn fault_of<'a>(
        &'a self,
        turn: &'a Turn,
        asked: &str,
        number: usize,
        attempt: u32,
    ) -> Option<&'a Fault> {
        turn.fault_of(attempt).or_else(|| {
            let mut hasher = DefaultHasher::new();
            (asked, number, attempt).hash(&mut hasher);
            let mut dice = (hasher.finish() >> 11) as f64 / (1_u64 << 53) as f64;
            self.weather.iter().find_map(|(share, fault)| {
                dice -= share;
                (dice < 0.0).then_some(fault)
            })
        })
    }

    /// Turns are counted from the beginning of the conversation. Without this each user message starts at turn 1.
    #[must_use]
    pub fn whole_conversation(mut self) -> Self {
        self.whole_conversation = true;
        self
    }

    /// `tokens-COUNT` or `tokens-COUNT-DELAYms`: a model that needs no script.
    pub(super) fn from_model_name(model: &str) -> Option<Self> {
        let mut words = model.strip_prefix("tokens-")?.split('-');
        let turn = Turn::marked(words.next()?.parse().ok()?);
        let delay = words.next().map_or(Some(0), |word| word.strip_suffix("ms")?.parse().ok())?;
        words.next().is_none().then(|| Self::new([turn.delay(Duration::from_millis(delay))]).repeat_last())
    }

    /// The turn with this number; the first is 1.
    pub(super) fn turn(&self, number: usize) -> Option<&Turn> {
        let last = if self.repeat_last { self.turns.last() } else { None };
        self.turns.get(number - 1).or(last)
    }
}

#[derive(Clone, Debug)]
enum Text {
    Given(String),
    /// A JSON string literal, sent byte for byte: for what no JSON library would write.
    Literal(String),
    /// `a{attempt}.s{turn}.{i} `, so that mixed attempts and gaps show in the text.
    Mark(usize),
}

#[derive(Clone, Debug)]
struct ToolCall {
    name: String,
    arguments: String,
    pieces: usize,
}

/// One answer of the model. Everything is optional; an empty turn is an empty answer.
#[derive(Clone, Debug, Default)]
pub struct Turn {
    reasoning: Vec<String>,
    text: Vec<Text>,
    calls: Vec<ToolCall>,
    finish_reason: Option<String>,
    usage: Option<(u64, u64)>,
    faults: Vec<(Fault, u32)>,
    pub(super) without_usage: bool,
    pub(super) is_quirky: bool,
    pub(super) delay: Duration,
}

impl Turn {
    /// An answer with these tokens.
    pub fn text<T: Into<String>>(tokens: impl IntoIterator<Item = T>) -> Self {
        Self::default().and_text(tokens)
    }

    /// An answer of `count` marks: `a{attempt}.s{turn}.{i} `.
    pub fn marked(count: usize) -> Self {
        Self { text: (0..count).map(Text::Mark).collect(), ..Self::default() }
    }

    /// An answer that only calls a tool.
    pub fn call(name: &str, arguments: &Value) -> Self {
        Self::default().and_call(name, arguments)
    }

    #[must_use]
    pub fn and_text<T: Into<String>>(mut self, tokens: impl IntoIterator<Item = T>) -> Self {
        self.text.extend(tokens.into_iter().map(|token| Text::Given(token.into())));
        self
    }

    #[must_use]
    pub fn and_nul(mut self) -> Self {
        self.text.push(Text::Literal(r#""nul \u0000 here ""#.to_owned()));
        self
    }

    #[must_use]
    pub fn and_lone_surrogate(mut self) -> Self {
        self.text.push(Text::Literal(r#""lone \ud83d here ""#.to_owned()));
        self
    }

    /// One piece of so many bytes.
    #[must_use]
    pub fn and_huge(mut self, bytes: usize) -> Self {
        self.text.push(Text::Literal(format!("\"{}\"", "x".repeat(bytes))));
        self
    }

    /// A piece in whose delta an unknown field is nested so many levels deep.
    #[must_use]
    pub fn and_deep(mut self, levels: usize) -> Self {
        let (open, close) = ("[".repeat(levels), "]".repeat(levels));
        self.text.push(Text::Literal(format!(r#""deep ","extra":{open}{close}"#)));
        self
    }

    /// Thoughts, sent before the text as `reasoning_content`.
    #[must_use]
    pub fn reasoning<T: Into<String>>(mut self, tokens: impl IntoIterator<Item = T>) -> Self {
        self.reasoning.extend(tokens.into_iter().map(Into::into));
        self
    }

    /// A tool call; several make parallel calls. `{run}` in its arguments becomes the conversation's key.
    #[must_use]
    pub fn and_call(self, name: &str, arguments: &Value) -> Self {
        self.and_raw_call(name, &arguments.to_string(), 1)
    }

    /// A tool call with these very arguments, well-formed or not, sent in several pieces.
    #[must_use]
    pub fn and_raw_call(mut self, name: &str, arguments: &str, pieces: usize) -> Self {
        self.calls.push(ToolCall { name: name.to_owned(), arguments: arguments.to_owned(), pieces });
        self
    }

    /// How long to wait before each piece.
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Without this: `tool_calls` or `stop`, whichever fits.
    #[must_use]
    pub fn finish_reason(mut self, reason: &str) -> Self {
        self.finish_reason = Some(reason.to_owned());
        self
    }

    /// Without this: 10 prompt tokens, and one for each piece.
    #[must_use]
    pub fn usage(mut self, prompt: u64, completion: u64) -> Self {
        self.usage = Some((prompt, completion));
        self
    }

    /// The same answer with everything that providers are known to do otherwise: CRLF, comments, data in two lines,
    /// usage in every chunk and twice at the end, empty finish reasons, indices and ids of calls that are missing,
    /// repeated or other ones in each piece.
    #[must_use]
    pub fn quirky(mut self) -> Self {
        self.is_quirky = true;
        self
    }

    #[must_use]
    pub fn without_usage(mut self) -> Self {
        self.without_usage = true;
        self
    }

    /// The next `times` attempts at this turn fail like this; more faults follow in the order in which they are given.
    #[must_use]
    pub fn fault(mut self, fault: Fault, times: u32) -> Self {
        self.faults.push((fault, times));
        self
    }

    #[must_use]
    pub fn always(self, fault: Fault) -> Self {
        self.fault(fault, u32::MAX)
    }

    pub(super) fn fault_of(&self, attempt: u32) -> Option<&Fault> {
        let mut before = 0_u32;
        self.faults.iter().find_map(|(fault, times)| {
            before = before.saturating_add(*times);
            (attempt <= before).then_some(fault)
        })
    }

    pub(super) fn finish(&self) -> &str {
        let fitting = if self.calls.is_empty() { "stop" } else { "tool_calls" };
        self.finish_reason.as_deref().unwrap_or(fitting)
    }

    pub(super) fn tokens_used(&self, pieces: usize) -> (u64, u64) {
        self.usage.unwrap_or((10, pieces as u64))
    }

    /// The pieces of one attempt, as the JSON of their `delta` objects.
    pub(super) fn deltas(&self, attempt: u32, number: usize, key: &str) -> Vec<String> {
        let id_prefix: String = key.chars().filter(char::is_ascii_alphanumeric).take(8).collect();
        let mut deltas = Vec::new();
        deltas.extend(self.reasoning.iter().map(|token| json!({"reasoning_content": token}).to_string()));
        deltas.extend(self.text.iter().map(|text| match text {
            Text::Given(token) => json!({"content": token}).to_string(),
            Text::Mark(i) => json!({"content": format!("a{attempt}.s{number}.{i} ")}).to_string(),
            Text::Literal(literal) => format!(r#"{{"content":{literal}}}"#),
        }));
        let truncated = matches!(self.fault_of(attempt), Some(Fault::TruncatedArguments));
        for (index, call) in self.calls.iter().enumerate() {
            let id = format!("call_{id_prefix}_s{number}_{index}_a{attempt}");
            let cut = truncated && index + 1 == self.calls.len();
            let pieces = call.deltas(&call.arguments.replace("{run}", key), index, &id, cut);
            deltas.extend(pieces.into_iter().enumerate().map(|(piece, mut delta)| {
                if self.is_quirky {
                    make_quirky(&mut delta["tool_calls"][0], index, piece);
                }
                delta.to_string()
            }));
        }
        deltas
    }
}

impl ToolCall {
    fn deltas(&self, arguments: &str, index: usize, id: &str, cut: bool) -> Vec<Value> {
        let mut letters: Vec<char> = arguments.chars().collect();
        if cut {
            letters.truncate(letters.len() / 2);
        }
        let size = letters.len().div_ceil(self.pieces.max(1)).max(1);
        let mut parts = letters.chunks(size).map(String::from_iter);
        let first = json!({"tool_calls": [{
            "index": index, "id": id, "type": "function",
            "function": {"name": self.name, "arguments": parts.next().unwrap_or_default()},
        }]});
        let rest =
            parts.map(|part| json!({"tool_calls": [{"index": index, "function": {"arguments": part}}]}));
        std::iter::once(first).chain(rest).collect()
    }
}

/// Each call has another one of the ways in which pieces of a call are told apart badly.
fn make_quirky(call: &mut Value, index: usize, piece: usize) {
    match index % 3 {
        // The index is right, and the id another one in every piece.
        0 => call["id"] = json!(format!("id{index}-{piece}")),
        // Only the id, in every piece.
        1 => {
            call["index"] = Value::Null;
            call["id"] = json!(format!("id{index}"));
        }
        // Neither: a name begins a call.
        _ => {
            call["index"] = Value::Null;
            call["id"] = Value::Null;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Fault, Script, Turn};

    #[test]
    fn faults_come_in_order_and_then_the_turn_succeeds() {
        let turn = Turn::marked(1).fault(Fault::Html, 2).fault(Fault::status(500), 1);
        assert!(matches!(turn.fault_of(2), Some(Fault::Html)));
        assert!(matches!(turn.fault_of(3), Some(Fault::Status { code: 500, .. })));
        assert!(turn.fault_of(4).is_none());
    }

    #[test]
    fn a_model_name_can_be_the_whole_script() {
        assert_eq!(Script::from_model_name("tokens-3-5ms").unwrap().turn(9).unwrap().text.len(), 3);
        assert!(Script::from_model_name("tokens-3").is_some());
        assert!(Script::from_model_name("tokens-3-5").is_none());
        assert!(Script::from_model_name("gpt-4o").is_none());
    }

    #[test]
    fn the_weather_is_the_same_for_the_same_request_and_keeps_to_its_shares() {
        let script = Script::new([Turn::marked(1)]).weather([(0.3, Fault::Html), (0.2, Fault::status(500))]);
        let turn = script.turn(1).unwrap();
        let falls = &|n: u32| script.fault_of(turn, &n.to_string(), 1, 1);
        let count = |html: bool| {
            (0..10_000).filter(move |n| falls(*n).is_some_and(|f| matches!(f, Fault::Html) == html))
        };
        assert!((2800..3200).contains(&count(true).count()));
        assert!((1800..2200).contains(&count(false).count()));
        assert_eq!(falls(7).is_some(), falls(7).is_some());
    }

    #[test]
    fn the_pieces_of_a_call_make_up_its_arguments() {
        let turn = Turn::default().and_raw_call("charge", r#"{"op":"ä1"}"#, 4);
        let deltas = turn.deltas(1, 1, "k");
        assert_eq!(deltas.len(), 4);
        let parts = deltas.iter().map(|delta| {
            let delta: serde_json::Value = serde_json::from_str(delta).unwrap();
            delta["tool_calls"][0]["function"]["arguments"].as_str().unwrap().to_owned()
        });
        assert_eq!(parts.collect::<String>(), json!({"op": "ä1"}).to_string());
    }
}
