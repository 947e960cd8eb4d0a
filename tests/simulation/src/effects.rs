//! The tools, and the ledger of what they have done to the world.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use longhaul_shared::domain::{
    ids::RunId,
    tool::{Effect, ToolSpec, idempotency_key},
};
use longhaul_worker::tools::{Registry, Tool, ToolContext, ToolOutcome};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::{
    client::op_of,
    world::{World, with},
};

pub const TOOLS: [(&str, Effect); 3] =
    [("look", Effect::Read), ("set", Effect::Idempotent), ("pay", Effect::Once)];

/// What was done under each idempotency key.
#[derive(Default)]
pub struct Ledger(pub BTreeMap<(RunId, u32, u32), Done>);

#[derive(Clone, Debug)]
pub struct Done {
    pub times: u64,
    arguments: Value,
}

struct SimTool(ToolSpec);

/// All tools, for every schedule: they find the world by themselves.
pub fn registry() -> Registry {
    let mut registry = Registry::new();
    for (name, effect) in TOOLS {
        let parameters = json!({ "type": "object", "properties": { "of": { "type": "string" } } });
        let spec = ToolSpec { name: name.to_owned(), description: name.to_owned(), parameters, effect };
        registry.add(Arc::new(SimTool(spec))).expect("the tools' names differ and their schemas are right");
    }
    registry
}

#[async_trait]
impl Tool for SimTool {
    fn spec(&self) -> &ToolSpec {
        &self.0
    }

    async fn call(&self, arguments: &Value, cx: &ToolContext) -> ToolOutcome {
        let (before, after, outcome) = with(|world| world.begin_effect(self.0.effect, cx));
        sleep(Duration::from_millis(before)).await;
        if !matches!(outcome, ToolOutcome::Failed(_)) {
            with(|world| world.effect(self.0.effect, arguments, cx));
        }
        sleep(Duration::from_millis(after)).await;
        outcome
    }
}

impl World {
    fn begin_effect(&mut self, effect: Effect, cx: &ToolContext) -> (u64, u64, ToolOutcome) {
        self.activity += 1;
        let op = op_of(&self.store, cx.run_id);
        let times = self.ledger.0.get(&(cx.run_id, cx.step, cx.call)).map_or(0, |done| done.times);
        let mut rng = self.rng_of(&[4, u64::from(op), u64::from(cx.step), u64::from(cx.call), times]);
        let weather = self.schedule.weather;
        let draw = rng.u16(0..1_000);
        let outcome = if self.is_healed || draw >= weather.failed_tool + weather.lost_effect {
            ToolOutcome::Succeeded(format!("did {}:{}", cx.step, cx.call))
        } else if draw < weather.failed_tool {
            ToolOutcome::Failed("it refused".to_owned())
        } else {
            self.coverage.effects_lost_answer += 1;
            let text = "nobody answered".to_owned();
            if effect == Effect::Once { ToolOutcome::Unknown(text) } else { ToolOutcome::Failed(text) }
        };
        // Now and then one that nobody waits for to its end.
        let after = if !self.is_healed && rng.u8(0..60) == 0 { 4_000 } else { rng.u64(0..25) };
        (
            rng.u64(0..25),
            after,
            if after > 1_000 { ToolOutcome::Succeeded("late".to_owned()) } else { outcome },
        )
    }

    fn effect(&mut self, effect: Effect, arguments: &Value, cx: &ToolContext) {
        self.activity += 1;
        let key = (cx.run_id, cx.step, cx.call);
        let (process, name) = (self.current, format!("{} {}:{}", self.name_of(cx.run_id), cx.step, cx.call));
        self.note(|| format!("p{process} {effect:?} effect of {name}"));
        if cx.idempotency_key != idempotency_key(cx.run_id, cx.step, cx.call) {
            self.violate(format!("the call {name} goes out as {}", cx.idempotency_key));
        }
        let row = self.store.rows(|rows| {
            let row = rows.calls.get(&cx.run_id).and_then(|calls| calls.get(&(cx.step, cx.call)));
            let attempts = rows.runs.get(&cx.run_id).map_or(0, |row| row.run.attempts);
            row.map(|row| (row.dispatched_at.is_some(), row.effect, attempts))
        });
        // What only reads needs no mark of having been sent.
        match row {
            Some((is_dispatched, known, _))
                if known == effect && (is_dispatched || effect == Effect::Read) => {}
            row => self.violate(format!("an effect of {name} that was not recorded before: {row:?}")),
        }
        let done =
            self.ledger.0.entry(key).or_insert_with(|| Done { times: 0, arguments: arguments.clone() });
        done.times += 1;
        let (times, is_same) = (done.times, done.arguments == *arguments);
        if !is_same {
            self.violate(format!("the call {name} goes out again with other arguments"));
        }
        let coverage = &mut self.coverage;
        match effect {
            Effect::Read => {}
            Effect::Idempotent => {
                coverage.effects_idempotent += 1;
                coverage.effects_idempotent_repeated += u64::from(times > 1);
            }
            Effect::Once => coverage.effects_once += 1,
        }
        coverage.effects_after_takeover += u64::from(row.is_some_and(|(.., attempts)| attempts > 1));
        if effect == Effect::Once && times > 1 {
            self.violate(format!("the effect of {name} happened {times} times"));
        }
        if row.is_some_and(|(.., attempts)| times > u64::from(attempts)) {
            self.violate(format!(
                "the call {name} went out {times} times, more often than its run was claimed"
            ));
        }
    }
}
