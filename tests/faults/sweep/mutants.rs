//! The product with one guard taken out at a time. Each case that should see it is tried without the mutant, where it must
//! be good, and with it. A mutant that none sees in its own words is a hole in the sweep, or a guard that guards nothing.

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

/// `true`: each mutant was seen for what it is, by cases that are good without it.
pub(crate) async fn run(options: &Options, json: Option<&Path>) -> Result<bool> {
    let mut table = Table::new();
    let header = ["mutant", "case", "without it", "with it", "as"];
    table.set_content_arrangement(ContentArrangement::Dynamic).set_header(header);
    let report = Report::new(json)?;
    let mut good = true;
    for mutant in known("LONGHAUL_MUTANT", "?").await {
        if options.only.as_ref().is_some_and(|part| !mutant.contains(part.as_str())) {
            continue;
        }
        let Seen { cases, words } = seen_by(&mutant);
        eprintln!("the mutant {mutant}: {} cases, each without it first", cases.len());
        let controls = sweep(cases.clone(), None, options.jobs, &report).await;
        let verdicts = sweep(cases, Some(&mutant), options.jobs, &report).await;
        let mut is_seen = false;
        for (control, verdict) in controls.iter().zip(&verdicts) {
            let reason = verdict.flaws.iter().find(|flaw| words.iter().any(|word| flaw.contains(word)));
            let (without, with) = match (control.flaws.is_empty(), verdict.flaws.is_empty(), reason) {
                (false, ..) => ("BROKEN", ""),
                (true, true, _) => ("good", "good"),
                (true, false, None) => ("good", "red for ANOTHER REASON"),
                (true, false, Some(_)) => ("good", "red"),
            };
            is_seen |= with == "red";
            good &= without == "good";
            let first = reason.or(verdict.flaws.first()).or(control.flaws.first());
            let first = first.map(|flaw| shortened(flaw)).unwrap_or_default();
            let first = first.lines().next().unwrap_or_default();
            table.add_row([mutant.as_str(), &verdict.name, without, with, first]);
        }
        if !is_seen {
            table.add_row([mutant.as_str(), "", "", "NOT SEEN", ""]);
        }
        good &= is_seen;
    }
    eprintln!("{table}");
    Ok(good)
}

/// Which cases must see a mutant, and in which words at least one of them says what is broken.
struct Seen {
    cases: Vec<Case>,
    words: &'static [&'static str],
}

fn seen_by(mutant: &str) -> Seen {
    let grid = |script, failpoint, fault| Case {
        store: Store::Postgres,
        what: What::Grid { script, place: Place::Failpoint(failpoint), fault },
    };
    let special = |special: Special| {
        special.stores().iter().map(move |store| Case { store: *store, what: What::Special(special) })
    };
    let (cases, words): (Vec<Case>, &[&str]) = match mutant {
        "no_status_condition" => (special(Special::EndedByHand).collect(), &["was changed", "it became"]),
        "no_expected_position" => (
            vec![
                grid(Script::Text, "before_commit", Fault::Stop),
                grid(Script::Row, "before_commit", Fault::Link(Way::Up)),
            ],
            &["the zombie wrote", "epochs go back", "under another epoch"],
        ),
        "publish_before_commit" => (
            vec![
                grid(Script::Text, "before_commit", Fault::Link(Way::Both)),
                grid(Script::Row, "before_commit", Fault::Link(Way::Up)),
            ],
            &["that differ from the log's", "is not one whole answer", "the tail"],
        ),
        "reaper_blind_to_renewal" => {
            (special(Special::ReaperLate).collect(), &["whose lease held", "cost 3 attempts"])
        }
        "finalize_and_job_apart" => (
            special(Special::JobLeftBehind).collect(),
            &["a job of a run that is not active", "repaired rows", "the queue is empty"],
        ),
        "idempotency_per_process" => (
            special(Special::OneKeyTwoApis).chain(special(Special::AdmissionUnanswered)).collect(),
            &["one key"],
        ),
        "tail_end_from_redis_only" => (special(Special::RedisGone).collect(), &["tail"]),
        "dispatch_before_record" => (
            vec![
                grid(Script::Row, "before_tool_record", Fault::Link(Way::Both)),
                grid(Script::Parallel, "before_tool_record", Fault::Link(Way::Up)),
            ],
            &["and was done 2 times", "more than once"],
        ),
        "tool_sent_without_lease" => (special(Special::HeartStandsStill).collect(), &["the zombie sent"]),
        "stop_not_delivered" => {
            (special(Special::StopClosesUpstream).collect(), &["the upstream was open for"])
        }
        "end_ahead_of_stop" => {
            (special(Special::StopBeforeEnd).collect(), &["a run that was asked to stop ended"])
        }
        _ => (vec![], &[]),
    };
    Seen { cases, words }
}
