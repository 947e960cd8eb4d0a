//! How a sweep went: a line for each case as it ends, a table of what was broken, and the logs of those cases.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use comfy_table::{ContentArrangement, Table};
use serde_json::json;

/// Where the logs of cases go in which something was broken.
const LOGS: &str = "target/faults";

#[derive(Clone, Debug)]
pub(crate) struct Verdict {
    pub(crate) number: usize,
    pub(crate) name: String,
    /// What was broken, in words.
    pub(crate) flaws: Vec<String>,
    pub(crate) took: Duration,
    /// What the product's processes printed, where it is worth reading.
    pub(crate) logs: String,
}

pub(crate) struct Report {
    /// One line for each case.
    json: Option<File>,
    begin: Instant,
    verdicts: Vec<Verdict>,
    /// What is wrong with the sweep itself.
    complaints: Vec<String>,
}

impl Report {
    pub(crate) fn new(json: Option<&Path>) -> std::io::Result<Self> {
        let json = json.map(File::create).transpose()?;
        Ok(Self { json, begin: Instant::now(), verdicts: Vec::new(), complaints: Vec::new() })
    }

    pub(crate) fn complain(&mut self, complaints: Vec<String>) {
        self.complaints.extend(complaints);
    }

    pub(crate) fn keep(&mut self, verdict: Verdict) {
        self.verdicts.push(verdict);
    }

    pub(crate) fn tell(&self, verdict: &Verdict) {
        let took = verdict.took.as_secs_f64();
        if let Some(mut json) = self.json.as_ref() {
            let line = json!({"case": verdict.name, "good": verdict.flaws.is_empty(), "seconds": took,
                "broken": verdict.flaws});
            writeln!(json, "{line}").expect("the report can be written");
        }
        let word = if verdict.flaws.is_empty() { "good" } else { "BROKEN" };
        eprintln!("{word:>6} {took:5.1} s  {}", verdict.name);
        if !verdict.logs.is_empty()
            && let Err(error) = keep_logs(verdict)
        {
            eprintln!("the logs of {} cannot be kept: {error}", verdict.name);
        }
    }

    /// The table; `true`: nothing was broken.
    pub(crate) fn print(&self) -> bool {
        let broken: Vec<&Verdict> =
            self.verdicts.iter().filter(|verdict| !verdict.flaws.is_empty()).collect();
        if !broken.is_empty() {
            let mut table = Table::new();
            table
                .set_content_arrangement(ContentArrangement::Dynamic)
                .set_header(["case", "what was broken"]);
            for verdict in &broken {
                table.add_row([verdict.name.clone(), shortened(&verdict.flaws.join("\n"))]);
            }
            eprintln!("{table}\nthe logs are in {LOGS}");
        }
        for complaint in &self.complaints {
            eprintln!("error: {complaint}");
        }
        let seconds = self.begin.elapsed().as_secs();
        eprintln!("{} cases in {seconds} s, {} of them broken", self.verdicts.len(), broken.len());
        broken.is_empty() && self.complaints.is_empty()
    }
}

fn keep_logs(verdict: &Verdict) -> std::io::Result<()> {
    let file: PathBuf = Path::new(LOGS).join(format!("{}.log", verdict.name.replace('/', ".")));
    std::fs::create_dir_all(LOGS)?;
    std::fs::write(file, format!("{}\n\n{}", verdict.flaws.join("\n"), verdict.logs))
}

/// What a table can bear; the whole of it is with the logs.
pub(crate) fn shortened(text: &str) -> String {
    const MOST: usize = 1_200;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{} …", &text[..end]),
        None => text.to_owned(),
    }
}
