//! The tools, and the ledger of what they have done to the world.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use longhaul_shared::{
    domain::{
        ids::RunId,
        tool::{Effect, ToolSpec, idempotency_key},
    },
    store::memory::MemoryStore,
};
use longhaul_worker::tools::{Registry, Tool, ToolContext, ToolOutcome};
use serde_json::{Value, json};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};

use crate::{
    client::op_of,
    world::{Request, TOOL_CALL, World, with},
};

pub const TOOLS: [(&str, Effect); 4] =
    [("look", Effect::Read), ("set", Effect::Idempotent), ("pay", Effect::Once), (ORDER, Effect::Once)];
/// The tool that can tell what became of a call.
const ORDER: &str = "order";
const ASK_AGAIN: Duration = Duration::from_millis(15);

type Key = (RunId, u32, u32);

/// What was done under each idempotency key.
#[derive(Default)]
pub struct Ledger(pub BTreeMap<Key, Done>);

#[derive(Clone, Debug, Default)]
pub struct Done {
    pub times: u64,
    arguments: Option<Value>,
    has_failed: bool,
    /// It was told not to have arrived, and must not any more.
    is_closed: bool,
    asked: u64,
}

/// What a tool says of a call whose answer was not seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Succeeded,
    Failed,
    NotReceived,
    Pending,
    Nonsense,
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
        if let Err(barred) = cx.departure.depart().await {
            return ToolOutcome::Failed(barred.to_string());
        }
        let (effect, arguments, key) = (self.0.effect, arguments.clone(), (cx.run_id, cx.step, cx.call));
        let (there, back, fails, outcome) = with(|world| world.begin_effect(effect, cx));
        let idempotency_key = cx.idempotency_key.clone();
        let is_accepted = send(TOOL_CALL, there, move |process, world| {
            world.effect(process, effect, key, &idempotency_key, &arguments, fails)
        });
        let is_accepted = is_accepted.await;
        sleep(Duration::from_millis(back)).await;
        if is_accepted { outcome } else { ToolOutcome::Failed("this call is closed".to_owned()) }
    }

    fn can_reconcile(&self) -> bool {
        self.0.name == ORDER
    }

    async fn reconcile(&self, _: &Value, cx: &ToolContext) -> ToolOutcome {
        let key = (cx.run_id, cx.step, cx.call);
        let deadline = Instant::now() + cx.timeout;
        loop {
            let told = send("a tool question", 2, move |process, world| world.tell(process, key)).await;
            match told {
                Told::Succeeded => return ToolOutcome::Succeeded("it was done".to_owned()),
                Told::Failed => return ToolOutcome::Failed(REFUSED.to_owned()),
                Told::NotReceived => return ToolOutcome::Failed("it never arrived".to_owned()),
                Told::Pending if Instant::now() < deadline => sleep(ASK_AGAIN).await,
                Told::Pending | Told::Nonsense => return ToolOutcome::Unknown("nobody knows".to_owned()),
            }
        }
    }
}

const REFUSED: &str = "it refused";

/// Sends something to a tool. It may arrive long after its sender is gone.
async fn send<T: Send + 'static>(
    name: &'static str,
    there: u64,
    arrive: impl FnOnce(usize, &mut World) -> T + Send + 'static,
) -> T {
    let (reply, answer) = oneshot::channel();
    with(|world| {
        let process = world.current;
        let apply = Box::new(move |_: &MemoryStore| {
            // Fails when the sender is gone.
            let _ = reply.send(with(|world| arrive(process, world)));
        });
        world.send(there, Request { process, name, is_orphan: false, apply });
    });
    answer.await.expect("what a process sends is lost only when the process is")
}

impl World {
    fn begin_effect(&mut self, effect: Effect, cx: &ToolContext) -> (u64, u64, bool, ToolOutcome) {
        self.activity += 1;
        let op = op_of(&self.store, cx.run_id);
        let times = self.ledger.0.get(&(cx.run_id, cx.step, cx.call)).map_or(0, |done| done.times);
        let mut rng = self.rng_of(&[4, u64::from(op), u64::from(cx.step), u64::from(cx.call), times]);
        let weather = self.schedule.weather;
        let draw = rng.u16(0..1_000);
        let did = ToolOutcome::Succeeded(format!("did {}:{}", cx.step, cx.call));
        let (fails, outcome) = if self.is_healed || draw >= weather.failed_tool + weather.lost_effect {
            (false, did)
        } else if draw < weather.failed_tool {
            (true, ToolOutcome::Failed(REFUSED.to_owned()))
        } else {
            self.coverage.effects_lost_answer += 1;
            let text = "nobody answered".to_owned();
            let is_once = effect == Effect::Once;
            (rng.bool(), if is_once { ToolOutcome::Unknown(text) } else { ToolOutcome::Failed(text) })
        };
        // Now and then one that nobody waits for to its end.
        let back = if !self.is_healed && rng.u8(0..60) == 0 { 4_000 } else { rng.u64(0..25) };
        (rng.u64(0..25), back, fails, outcome)
    }

    /// The tool is asked what became of a call.
    fn tell(&mut self, process: usize, key: Key) -> Told {
        self.activity += 1;
        let (op, is_healed) = (op_of(&self.store, key.0), self.is_healed);
        let done = self.ledger.0.entry(key).or_default();
        done.asked += 1;
        let asked = done.asked;
        let draw = self.rng_of(&[5, u64::from(op), u64::from(key.1), u64::from(key.2), asked]).u8(0..8);
        let done = self.ledger.0.entry(key).or_default();
        let told = match draw {
            0 if !is_healed => Told::Nonsense,
            1 | 2 if !is_healed => Told::Pending,
            _ if done.times > 0 => Told::Succeeded,
            _ if done.has_failed => Told::Failed,
            _ => {
                done.is_closed = true;
                Told::NotReceived
            }
        };
        let coverage = &mut self.coverage;
        match told {
            Told::Succeeded => coverage.told_succeeded += 1,
            Told::Failed => coverage.told_failed += 1,
            Told::NotReceived => coverage.told_not_received += 1,
            Told::Pending => coverage.told_pending += 1,
            Told::Nonsense => coverage.told_nonsense += 1,
        }
        let name = self.name_of(key.0);
        self.note(|| format!("p{process} is told of {name} {}:{}: {told:?}", key.1, key.2));
        told
    }

    /// A call arrives; whether the tool accepts it.
    fn effect(
        &mut self,
        process: usize,
        effect: Effect,
        key: Key,
        idempotency: &str,
        arguments: &Value,
        fails: bool,
    ) -> bool {
        self.activity += 1;
        let name = format!("{} {}:{}", self.name_of(key.0), key.1, key.2);
        if idempotency != idempotency_key(key.0, key.1, key.2) {
            self.violate(format!("the call {name} goes out as {idempotency}"));
        }
        let row = self.store.rows(|rows| {
            let row = rows.calls.get(&key.0).and_then(|calls| calls.get(&(key.1, key.2)));
            let attempts = rows.runs.get(&key.0).map_or(0, |row| row.run.attempts);
            row.map(|row| (row.dispatched_at.is_some(), row.effect, attempts))
        });
        // What only reads needs no mark of having been sent.
        match row {
            Some((is_dispatched, known, _))
                if known == effect && (is_dispatched || effect == Effect::Read) => {}
            row => self.violate(format!("an effect of {name} that was not recorded before: {row:?}")),
        }
        let done = self.ledger.0.entry(key).or_default();
        let is_same = *done.arguments.get_or_insert_with(|| arguments.clone()) == *arguments;
        if done.is_closed {
            self.coverage.effects_refused += 1;
            self.note(|| format!("the call {name} comes after it was told not to have"));
            return false;
        }
        done.has_failed |= fails;
        done.times += u64::from(!fails);
        let times = done.times;
        self.note(|| format!("p{process} {effect:?} effect of {name}, fails: {fails}"));
        if !is_same {
            self.violate(format!("the call {name} goes out again with other arguments"));
        }
        if fails {
            return true;
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
        true
    }
}
