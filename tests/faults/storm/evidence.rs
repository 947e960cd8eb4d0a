//! What somebody needs who wants to know how a promise was broken: outputs, incidents, and the rows of the runs in
//! question.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use longhaul_tests::rows::Rows;
use uuid::Uuid;

use super::install::Installation;
use super::weather::Incident;
use crate::clock::{Clock, now_ms};

/// More would be read by nobody.
const MOST_RUNS: usize = 20;

const ROWS: &[(&str, &str)] = &[
    ("run", "select to_jsonb(t)::text from runs t where id = RUN"),
    ("log", "select to_jsonb(t)::text from run_events t where run_id = RUN order by first_seq"),
    ("steps", "select to_jsonb(t)::text from steps t where run_id = RUN order by step"),
    ("calls", "select to_jsonb(t)::text from tool_calls t where run_id = RUN order by step, call"),
    ("messages", "select to_jsonb(t)::text from messages t where run_id = RUN order by position"),
    (
        "history",
        "select to_jsonb(t)::text from fault_audit t
         where RUN::text in (old ->> 'id', new ->> 'id', old ->> 'run_id', new ->> 'run_id') order by id",
    ),
];

/// Writes it into a folder of its own and says where that is.
pub(crate) async fn keep(
    world: &Installation,
    rows: &Rows,
    incidents: &[Incident],
    flaws: &[String],
    seed: u64,
) -> Result<PathBuf> {
    let folder = Path::new("target/faults").join(format!("storm-{seed}-{}", now_ms() / 1_000));
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("flaws.txt"), flaws.join("\n"))?;
    let incidents: Vec<String> = incidents.iter().map(|incident| format!("{incident:?}")).collect();
    fs::write(folder.join("incidents.txt"), incidents.join("\n"))?;
    fs::write(folder.join("postgres.log"), world.cluster.lock().await.output())?;
    for slot in &world.slots {
        fs::write(folder.join(format!("{}.log", slot.name)), slot.output().await)?;
    }
    let words =
        flaws.iter().flat_map(|flaw| flaw.split(|letter: char| !letter.is_ascii_hexdigit() && letter != '-'));
    let ids: BTreeSet<Uuid> =
        words.filter(|word| word.len() == 36).filter_map(|word| word.parse().ok()).collect();
    let (calls, ledger, clock) = (world.provider.calls(), world.tools.ledger(), Clock::read());
    for id in ids.into_iter().take(MOST_RUNS) {
        let mut text = String::new();
        for (name, query) in ROWS {
            let found = rows.texts(&query.replace("RUN", &format!("'{id}'::uuid"))).await;
            let _ = write!(text, "== {name}\n{}\n", found.join("\n"));
        }
        let id = id.to_string();
        let asked = calls.iter().filter(|call| call.key == id).map(|call| {
            let end = call.end.map(|(at, end)| (clock.ms(at), end));
            format!(
                "{} turn {} attempt {} pieces {} {end:?}",
                clock.ms(call.begin),
                call.turn,
                call.attempt,
                call.pieces
            )
        });
        let _ = write!(text, "== provider\n{}\n", asked.collect::<Vec<_>>().join("\n"));
        let done = ledger.iter().filter(|entry| entry.op.starts_with(&id)).map(|entry| {
            format!(
                "{} {} {} effect {:?} under {:?}",
                clock.ms(entry.arrived),
                entry.tool,
                entry.op,
                entry.nth,
                entry.key
            )
        });
        let _ = write!(text, "== tools\n{}\n", done.collect::<Vec<_>>().join("\n"));
        fs::write(folder.join(format!("{id}.txt")), text)?;
    }
    Ok(folder)
}
