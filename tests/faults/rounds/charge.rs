//! The worker dies between the record that a call with an effect was sent and the record of its outcome: the effect may
//! be there or not, but it is never done again.

use anyhow::{Result, ensure};
use clap::Args;
use longhaul_tests::{Gate, Script, Setup, Turn, World};
use serde::Serialize;
use serde_json::json;

use super::{bring_back, owner};
use crate::Verdict;

/// Runs under way at each kill; those of the killed worker are in the crash window.
const AT_ONCE: usize = 4;
const MODEL: &str = "charges";

#[derive(Args, Debug)]
pub(crate) struct Options {
    #[arg(long, default_value_t = 200)]
    kills: usize,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Report {
    kills: usize,
    /// Calls whose worker died in the crash window.
    windows: usize,
    /// Of them, those that were killed before the effect; the others after it.
    before_effect: usize,
    unknown: usize,
    succeeded: usize,
    doubled: usize,
    chats_used_afterwards: usize,
    flaws: Vec<String>,
}

impl Verdict for Report {
    fn flaws(&self) -> &[String] {
        &self.flaws
    }
}

pub(crate) async fn run(options: &Options) -> Result<Report> {
    let setup = Setup::postgres().short_lease().workers(2).agent("charges", MODEL);
    let mut world = World::start(setup).await;
    let charge = Turn::marked(2).and_call("charge", &json!({"op": "{run}"}));
    world.provider.script(MODEL, Script::new([charge, Turn::marked(2)]));
    let mut report = Report::default();
    while report.kills < options.kills {
        let is_before = report.kills % 2 == 0;
        let gate =
            if is_before { world.tools.gate_before("charge") } else { world.tools.gate_after("charge") };
        kill(&mut world, &gate, is_before, &mut report).await?;
        if report.kills % 10 == 0 {
            eprintln!("{} of {} kills", report.kills, options.kills);
        }
    }
    if report.windows < options.kills {
        report.flaws.push(format!("{} kills hit only {} calls", report.kills, report.windows));
    }
    world.finish().await;
    Ok(report)
}

async fn kill(world: &mut World, gate: &Gate, is_before: bool, report: &mut Report) -> Result<()> {
    let client = world.client();
    let mut runs = Vec::new();
    for _ in 0..AT_ONCE {
        runs.push(client.submit("charges", "Charge it.").await);
    }
    gate.reached_by(AT_ONCE).await;
    let victim = owner(world, &runs[0].run_id).await?;
    let mut hit = Vec::new();
    for run in &runs {
        hit.push(owner(world, &run.run_id).await? == victim);
    }
    world.workers[victim].kill();
    gate.open();
    report.kills += 1;
    bring_back(world, victim).await;
    for (run, is_hit) in runs.iter().zip(hit) {
        let id = &run.run_id;
        let ended = client.ended(id).await;
        ensure!(ended.outcome() == "succeeded done", "{id} ended as {}", ended.outcome());
        let steps = client.steps(id).await;
        let call = steps.iter().flat_map(|step| &step.tool_calls).next();
        let state = call.map_or("missing", |call| call.state.as_str());
        let effects = world.tools.effects(id);
        report.doubled += usize::from(effects > 1);
        match (is_hit, state) {
            (true, "unknown") => report.unknown += 1,
            (_, "succeeded") if effects == 1 => report.succeeded += usize::from(is_hit),
            _ => report.flaws.push(format!("the call of {id} is {state} with {effects} effects")),
        }
        report.windows += usize::from(is_hit);
        report.before_effect += usize::from(is_hit && is_before);
        let again = client.say(&run.chat_id, "quick", "And now?").await.submitted();
        ensure!(client.ended(&again.run_id).await.outcome() == "succeeded done", "{id} spoiled its chat");
        report.chats_used_afterwards += 1;
    }
    if report.doubled > 0 && report.flaws.is_empty() {
        report.flaws.push(format!("{} charges were doubled", report.doubled));
    }
    Ok(())
}
