//! What commands print: results on stdout as a table or as JSON, notes on stderr. Colours on a terminal only.

use std::io::{self, IsTerminal, Write};

use clap::ValueEnum;
use comfy_table::{Cell, Color, ContentArrangement, Table, presets};
use owo_colors::OwoColorize;
use serde_json::Value;

use crate::exit::{Exit, Outcome};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    #[default]
    Table,
    /// One document
    Json,
    /// One object a line
    Jsonl,
}

/// Where a command's results and notes go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    pub(crate) format: Format,
    pub(crate) quiet: bool,
}

impl Output {
    pub(crate) fn new(format: Format, quiet: bool) -> Self {
        Self { format, quiet }
    }

    pub(crate) fn is_json(self) -> bool {
        self.format != Format::Table
    }

    /// One thing: a document as JSON, else what `shown` makes of it.
    pub(crate) fn one(self, value: &Value, shown: impl FnOnce() -> String) -> Outcome {
        print(&match self.format {
            Format::Table => shown(),
            Format::Json => format!("{value:#}\n"),
            Format::Jsonl => format!("{value}\n"),
        })
    }

    /// Many things of a kind, each with the cells of its row.
    pub(crate) fn list<T>(
        self,
        head: &[&str],
        items: &[T],
        json: impl Fn(&T) -> Value,
        row: impl Fn(&T) -> Vec<Cell>,
    ) -> Outcome {
        print(&match self.format {
            Format::Table => table(head, items.iter().map(row), io::stdout().is_terminal()),
            Format::Json => format!("{:#}\n", Value::Array(items.iter().map(json).collect())),
            Format::Jsonl => json_lines(items.iter().map(json)),
        })
    }

    /// Something that a person may like to know and a script does not read.
    pub(crate) fn note(self, text: &str) {
        if !self.quiet {
            say(&text.dimmed().to_string());
        }
    }

    /// Something that must be seen, such as how to get back to a run.
    pub(crate) fn tell(self, text: &str) {
        if !self.quiet {
            say(text);
        }
    }
}

/// Text as it is, for files and pipes.
pub(crate) fn print(text: &str) -> Outcome {
    let mut out = anstream::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(Exit::Ok)
}

/// One object a line.
pub(crate) fn json_lines(objects: impl Iterator<Item = Value>) -> String {
    objects.fold(String::new(), |text, object| text + &object.to_string() + "\n")
}

/// Why the command failed.
pub(crate) fn complain(message: &str) {
    say(&format!("{} {message}", "error:".red().bold()));
}

fn say(line: &str) {
    // With stderr gone there is nobody left to tell.
    let _ = writeln!(anstream::stderr().lock(), "{line}");
}

/// Columns without lines between them, so that they can be cut and searched.
pub(crate) fn table(head: &[&str], rows: impl Iterator<Item = Vec<Cell>>, terminal: bool) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    if !terminal {
        table.force_no_tty();
    }
    table.set_header(head.iter().map(|name| Cell::new(name.to_uppercase())));
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().fold(String::new(), |text, line| text + line.trim_end() + "\n")
}

/// Names and values below each other; what is absent is left out.
pub(crate) fn fields<'a>(fields: impl IntoIterator<Item = (&'a str, Option<String>)>) -> String {
    let present: Vec<(&str, String)> =
        fields.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    let width = present.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    present.iter().fold(String::new(), |text, (name, value)| {
        format!("{text}{name:width$}  {}\n", harmless(value).replace('\n', &format!("\n{:width$}  ", "")))
    })
}

/// A status in the colour that it has everywhere.
pub(crate) fn status(text: &str) -> Cell {
    let cell = Cell::new(harmless(text));
    match text {
        "succeeded" | "completed" | "ok" => cell.fg(Color::Green),
        "failed" | "error" | "unknown" => cell.fg(Color::Red),
        "aborted" | "stopping" => cell.fg(Color::Yellow),
        "running" | "streaming" => cell.fg(Color::Cyan),
        _ => cell,
    }
}

/// Text that a model or a tool wrote, without what a terminal would take for commands.
pub(crate) fn harmless(text: &str) -> String {
    let text = text.replace("\r\n", "\n");
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_no_lines_and_no_colours_away_from_a_terminal() {
        let rows = [("r1", "succeeded"), ("r2", "running")];
        let rows = rows.iter().map(|(id, word)| vec![Cell::new(id), status(word)]);
        insta::assert_snapshot!(table(&["run", "status"], rows, false), @r"
        RUN  STATUS
        r1   succeeded
        r2   running
        ");
    }

    #[test]
    fn fields_stand_below_each_other_and_absent_ones_are_left_out() {
        let text = fields([
            ("run", Some("r1".to_owned())),
            ("reason", None),
            ("error", Some("one\ntwo".to_owned())),
        ]);
        insta::assert_snapshot!(text, @r"
        run    r1
        error  one
               two
        ");
    }

    #[test]
    fn what_a_model_writes_cannot_command_the_terminal() {
        assert_eq!(harmless("a\u{1b}[2Jb\r\nc\td\u{9b}"), "a\u{fffd}[2Jb\nc\td\u{fffd}");
    }
}
