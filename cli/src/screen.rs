//! A run as a person reads it while it happens. The answer's text goes to one place, and everything about it (thoughts,
//! tool calls, notes) to another, so that a pipe gets the text alone.

use std::{
    collections::HashMap,
    io::{self, Write},
};

use longhaul_shared::domain::{event::RUN_FINISHED, ids::Seq, text::one_line};
use owo_colors::OwoColorize;
use serde_json::Value;

use crate::{client::tail::Event, output::harmless};

/// What one tool call may take of its line.
const ARGUMENTS: usize = 80;
const RESULT: usize = 60;

/// What stands at the end of what was printed, if its line is not finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Open {
    Nothing,
    Text,
    Reasoning,
}

pub(crate) struct Screen<T: Write, N: Write> {
    text: T,
    notes: N,
    /// The text goes to a terminal, which must not be commanded by what a model writes.
    terminal: bool,
    quiet: bool,
    open: Open,
    /// Per step, the last event whose text was printed.
    printed: HashMap<u32, Seq>,
    calls: HashMap<String, (String, String)>,
    was_claimed: bool,
}

impl<T: Write, N: Write> Screen<T, N> {
    pub(crate) fn new(text: T, notes: N, terminal: bool, quiet: bool) -> Self {
        Self {
            text,
            notes,
            terminal,
            quiet,
            open: Open::Nothing,
            printed: HashMap::new(),
            calls: HashMap::new(),
            was_claimed: false,
        }
    }

    /// Prints what an event has to say. Types of a newer server say nothing here.
    pub(crate) fn show(&mut self, event: &Event) -> io::Result<()> {
        let field = |name: &str| event.data[name].as_str().unwrap_or_default();
        match event.kind.as_str() {
            "text.delta" | "snapshot" => self.write_text(event, field("text")),
            "reasoning.delta" => self.reason(field("text")),
            "run.queued" => match event.data["position"].as_u64() {
                Some(position) => self.note(&format!("queued, number {position} in line")),
                None => Ok(()),
            },
            "run.claimed" if std::mem::replace(&mut self.was_claimed, true) => self.note("taken up again"),
            "run.released" => self.note(match field("reason") {
                "hand_back" => "handed over to another worker",
                "expired" => "its worker was lost, another one takes over",
                _ => "interrupted, it will be taken up again",
            }),
            "run.stopping" if field("stage") == "requested" => self.note("stopping"),
            "step.restarted" => self.restart(event),
            "tool.planned" => {
                let call = (field("name").to_owned(), field("arguments").to_owned());
                self.calls.insert(field("callId").to_owned(), call);
                Ok(())
            }
            "tool.finished" => self.tool(event),
            RUN_FINISHED => self.finish(&event.data),
            _ => Ok(()),
        }
    }

    /// A quiet remark on a line of its own.
    pub(crate) fn note(&mut self, text: &str) -> io::Result<()> {
        self.end_line()?;
        if self.quiet {
            return Ok(());
        }
        writeln!(self.notes, "{}", format!("· {text}").dimmed())
    }

    /// Ends a line that is under way.
    pub(crate) fn end_line(&mut self) -> io::Result<()> {
        match std::mem::replace(&mut self.open, Open::Nothing) {
            Open::Nothing => Ok(()),
            Open::Text => {
                writeln!(self.text)?;
                self.text.flush()
            }
            Open::Reasoning => writeln!(self.notes),
        }
    }

    fn write_text(&mut self, event: &Event, text: &str) -> io::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        if self.open == Open::Reasoning {
            self.end_line()?;
        }
        if self.terminal {
            write!(self.text, "{}", harmless(text))?;
        } else {
            write!(self.text, "{text}")?;
        }
        self.open = if text.ends_with('\n') { Open::Nothing } else { Open::Text };
        if let Some(step) = event.step {
            self.printed.insert(step, event.seq);
        }
        // A reader sees each word when it comes, not when a buffer is full.
        self.text.flush()
    }

    fn reason(&mut self, text: &str) -> io::Result<()> {
        if self.quiet || text.is_empty() {
            return Ok(());
        }
        if self.open == Open::Text {
            self.end_line()?;
        }
        // Each line has its own colour, so that a cut stream does not leave the terminal dimmed.
        for line in harmless(text).split_inclusive('\n') {
            match line.strip_suffix('\n') {
                Some(line) => writeln!(self.notes, "{}", line.dimmed().italic())?,
                None => write!(self.notes, "{}", line.dimmed().italic())?,
            }
        }
        self.open = if text.ends_with('\n') { Open::Nothing } else { Open::Reasoning };
        self.notes.flush()
    }

    /// The step is done over. Text of it that is on the screen already is marked where it stands.
    fn restart(&mut self, event: &Event) -> io::Result<()> {
        let step = event.step.unwrap_or_default();
        let from = event.data["dropFrom"].as_i64().unwrap_or_default();
        let torn = self.printed.remove(&step).is_some_and(|last| last >= from);
        let why = event.data["why"].as_str().filter(|why| !why.is_empty());
        let why = why.map(|why| format!(" ({})", one_line(why, RESULT))).unwrap_or_default();
        if torn {
            self.end_line()?;
            writeln!(self.text, "{}", format!("[dropped: the text above of step {step}]").dimmed())?;
            self.text.flush()?;
        }
        self.note(&format!("step {step} is done over{why}"))
    }

    fn tool(&mut self, event: &Event) -> io::Result<()> {
        let field = |name: &str| event.data[name].as_str();
        let id = field("callId").unwrap_or_default();
        let (name, arguments) = self.calls.remove(id).unwrap_or_else(|| (id.to_owned(), String::new()));
        self.end_line()?;
        if self.quiet {
            return Ok(());
        }
        let state = field("state").unwrap_or_default();
        let result =
            field("error").or(field("output")).map(|text| one_line(text, RESULT)).unwrap_or_default();
        let call = format!("{}({})", one_line(&name, ARGUMENTS), one_line(&arguments, ARGUMENTS));
        let outcome = match state {
            "succeeded" => "→".green().to_string(),
            other => format!("→ {other}").yellow().to_string(),
        };
        writeln!(self.notes, "{} {call} {outcome} {result}", "tool".cyan())
    }

    fn finish(&mut self, data: &Value) -> io::Result<()> {
        self.end_line()?;
        if self.quiet {
            return Ok(());
        }
        let status = data["status"].as_str().unwrap_or("over");
        let shown = match status {
            "succeeded" => status.green().to_string(),
            "failed" => status.red().to_string(),
            _ => status.yellow().to_string(),
        };
        write!(self.notes, "{shown}")?;
        if let Some(reason) = data["reason"].as_str().filter(|reason| *reason != "done") {
            write!(self.notes, " ({})", one_line(reason, RESULT))?;
        }
        if let Some(error) = data["error"]["message"].as_str() {
            write!(self.notes, ": {}", one_line(error, 400))?;
        }
        if let Some(steps) = data["stepCount"].as_u64() {
            let word = if steps == 1 { "step" } else { "steps" };
            let tokens = |name: &str| data["usage"][name].as_i64().unwrap_or_default();
            let (read, written) = (tokens("inputTokens"), tokens("outputTokens"));
            write!(self.notes, " · {steps} {word} · {read} tokens in, {written} out")?;
        }
        writeln!(self.notes)
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, rc::Rc};

    use serde_json::json;

    use super::*;

    /// Both places as one, which is what a terminal is.
    #[derive(Clone, Default)]
    struct Paper(Rc<RefCell<Vec<u8>>>);

    impl Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.borrow_mut().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Paper {
        fn text(&self) -> String {
            anstream::adapter::strip_str(&String::from_utf8(self.0.borrow().clone()).unwrap()).to_string()
        }
    }

    fn event(seq: Seq, kind: &str, step: Option<u32>, data: Value) -> Event {
        Event { text: String::new(), seq, kind: kind.to_owned(), step, data }
    }

    /// A run with everything that the demo shows.
    fn story() -> Vec<Event> {
        let told = [
            ("run.queued", None, json!({"status": "queued", "position": 2})),
            ("run.claimed", None, json!({"epoch": 1})),
            ("step.started", Some(1), json!({"model": "demo"})),
            ("reasoning.delta", Some(1), json!({"text": "Let me "})),
            ("reasoning.delta", Some(1), json!({"text": "think."})),
            ("text.delta", Some(1), json!({"text": "I look at the clock.\n"})),
            (
                "tool.planned",
                Some(1),
                json!({"callId": "c1", "name": "clock", "arguments": "{\"zone\":\n\"UTC\"}"}),
            ),
            ("tool.started", Some(1), json!({"callId": "c1"})),
            ("tool.finished", Some(1), json!({"callId": "c1", "state": "succeeded", "output": "10:00"})),
            ("step.finished", Some(1), json!({})),
            ("step.started", Some(2), json!({"model": "demo"})),
            ("text.delta", Some(2), json!({"text": "It is el"})),
            ("step.restarted", Some(2), json!({"dropFrom": 11, "why": "the provider broke off"})),
            ("run.released", None, json!({"reason": "expired"})),
            ("run.claimed", None, json!({"epoch": 2})),
            ("text.delta", Some(2), json!({"text": "It is "})),
            ("moon.rose", Some(2), json!({})),
            ("text.delta", Some(2), json!({"text": "ten."})),
            ("tool.planned", Some(2), json!({"callId": "c2", "name": "charge", "arguments": "{}"})),
            ("tool.finished", Some(2), json!({"callId": "c2", "state": "unknown", "error": "no answer"})),
            (
                "run.finished",
                None,
                json!({"status": "succeeded", "reason": "done", "stepCount": 2,
                "usage": {"inputTokens": 120, "outputTokens": 34}}),
            ),
        ];
        (1..).zip(told).map(|(seq, (kind, step, data))| event(seq, kind, step, data)).collect()
    }

    fn shown(events: &[Event], quiet: bool) -> (String, String, String) {
        let (together, text, notes) = (Paper::default(), Paper::default(), Paper::default());
        let mut terminal = Screen::new(together.clone(), together.clone(), true, quiet);
        let mut pipe = Screen::new(text.clone(), notes.clone(), false, quiet);
        for event in events {
            terminal.show(event).unwrap();
            pipe.show(event).unwrap();
        }
        (together.text(), text.text(), notes.text())
    }

    #[test]
    fn a_terminal_shows_text_thoughts_tools_and_notes_in_order() {
        insta::assert_snapshot!(shown(&story(), false).0, @r#"
        · queued, number 2 in line
        Let me think.
        I look at the clock.
        tool clock({"zone": "UTC"}) → 10:00
        It is el
        [dropped: the text above of step 2]
        · step 2 is done over (the provider broke off)
        · its worker was lost, another one takes over
        · taken up again
        It is ten.
        tool charge({}) → unknown no answer
        succeeded · 2 steps · 120 tokens in, 34 out
        "#);
    }

    #[test]
    fn a_pipe_gets_the_text_and_the_mark_of_what_was_dropped_alone() {
        let (_, text, notes) = shown(&story(), false);
        insta::assert_snapshot!(text, @r"
        I look at the clock.
        It is el
        [dropped: the text above of step 2]
        It is ten.
        ");
        assert!(notes.contains("Let me think.") && !notes.contains("ten."), "{notes}");
        let (_, text, notes) = shown(&story(), true);
        assert!(text.ends_with("It is ten.\n") && notes.is_empty(), "{notes}");
    }

    #[test]
    fn a_step_that_had_shown_nothing_is_done_over_without_a_mark() {
        let story = [
            event(1, "text.delta", Some(1), json!({"text": "kept\n"})),
            event(2, "step.started", Some(2), json!({})),
            event(3, "step.restarted", Some(2), json!({"dropFrom": 2, "why": ""})),
        ];
        assert_eq!(shown(&story, false).0, "kept\n· step 2 is done over\n");
    }

    #[test]
    fn a_failure_is_told_in_one_harmless_line() {
        let error = json!({"code": "provider_status", "message": "the provider\nanswered \u{1b}[31m500"});
        let story = [
            event(1, "text.delta", Some(1), json!({"text": "a\u{1b}[2Jb"})),
            event(2, "run.finished", None, json!({"status": "failed", "reason": "provider", "error": error})),
        ];
        let (terminal, text, _) = shown(&story, false);
        assert_eq!(terminal, "a\u{fffd}[2Jb\nfailed (provider): the provider answered \u{fffd}[31m500\n");
        assert_eq!(text, "ab\n", "the pipe has the bytes as they are; only this test strips them");
    }
}
