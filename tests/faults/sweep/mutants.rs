//! The product with one guard taken out at a time. Cases that should see it are tried until one does; a mutant that
//! none sees is a hole in the sweep, or a guard that guards nothing.

use std::path::Path;

use anyhow::Result;
use comfy_table::{ContentArrangement, Table};
use longhaul_tests::{Store, Way};

use super::case::{Case, Fault, Place, What};
use super::report::{Report, shortened};
use super::script::Script;
use super::special::Special;
use super::{known, sweep};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only mutants whose name contains this
    #[arg(long, value_name = "PART")]
    only: Option<String>,
    /// Cases at the same time
    #[arg(long, default_value_t = 3)]
    jobs: usize,
}

/// `true`: each mutant was seen.
pub(crate) async fn run(options: &Options, json: Option<&Path>) -> Result<bool> {
    let mut table = Table::new();
    table.set_content_arrangement(ContentArrangement::Dynamic).set_header(["mutant", "seen by", "as"]);
    let report = Report::new(json)?;
    let mut good = true;
    for mutant in known("LONGHAUL_MUTANT", "?").await {
        if options.only.as_ref().is_some_and(|part| !mutant.contains(part.as_str())) {
            continue;
        }
        let cases = seen_by(&mutant);
        let tried = cases.len();
        eprintln!("the mutant {mutant}: {tried} cases");
        let verdicts = sweep(cases, Some(&mutant), options.jobs, &report).await;
        let red: Vec<_> = verdicts.iter().filter(|verdict| !verdict.flaws.is_empty()).collect();
        good &= !red.is_empty();
        if red.is_empty() {
            table.add_row([mutant.as_str(), &format!("NONE of {tried} cases"), ""]);
        }
        for verdict in red {
            let first = verdict.flaws.first().map(|flaw| shortened(flaw)).unwrap_or_default();
            table.add_row([mutant.as_str(), &verdict.name, first.lines().next().unwrap_or_default()]);
        }
    }
    eprintln!("{table}");
    Ok(good)
}

/// The cases that must see it.
fn seen_by(mutant: &str) -> Vec<Case> {
    let grid = |script, failpoint, fault| Case {
        store: Store::Postgres,
        what: What::Grid { script, place: Place::Failpoint(failpoint), fault },
    };
    let special = |special: Special| {
        special.stores().iter().map(move |store| Case { store: *store, what: What::Special(special) })
    };
    match mutant {
        "no_status_condition" => special(Special::EndedByHand).collect(),
        "no_expected_position" => vec![
            grid(Script::Text, "before_commit", Fault::Stop),
            grid(Script::Row, "before_commit", Fault::Link(Way::Up)),
        ],
        "publish_before_commit" => vec![
            grid(Script::Text, "before_commit", Fault::Link(Way::Both)),
            grid(Script::Row, "before_commit", Fault::Link(Way::Up)),
        ],
        "reaper_blind_to_renewal" => special(Special::ReaperLate).collect(),
        "finalize_and_job_apart" => special(Special::JobLeftBehind).collect(),
        "idempotency_per_process" => {
            special(Special::OneKeyTwoApis).chain(special(Special::AdmissionUnanswered)).collect()
        }
        "tail_end_from_redis_only" => special(Special::RedisGone).collect(),
        "dispatch_before_record" => vec![
            grid(Script::Row, "before_tool_record", Fault::Link(Way::Both)),
            grid(Script::Parallel, "before_tool_record", Fault::Link(Way::Up)),
        ],
        _ => vec![],
    }
}
