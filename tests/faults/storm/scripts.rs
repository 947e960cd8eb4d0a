//! What the models of the storm say: each agent is one kind of run.
//!
//! Text is made of marks (`a{attempt}.s{turn}.{i} `), so that an answer that was patched together shows. An effect is
//! named by its run and its place in it, so that the tool server can count it.

use std::time::Duration;

use longhaul_tests::{At, FakeProvider, Fault, Script, Turn};
use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::json;

/// One kind of run. It has an agent and a model of its name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    /// How often it is asked for, in proportion.
    weight: u32,
    /// The marks of each turn; further turns are like the last.
    pub(crate) marks: &'static [usize],
    script: fn() -> Script,
    pub(crate) max_steps: u32,
}

/// The kind that asks whether a chat is still good for something.
pub(crate) const PROBE: &str = "plain";

pub(crate) const KINDS: &[Kind] = &[
    kind("plain", 28, &[8], || Script::new([said(8)])),
    kind("long", 10, &[60], || Script::new([Turn::marked(60).delay(Duration::from_millis(200))])),
    kind("longer", 5, &[76], || Script::new([Turn::marked(76).delay(Duration::from_millis(250))])),
    kind("reads", 8, &[3, 3, 5], || {
        Script::new([does(said(3), "look", "s1.0"), does(said(3), "look", "s2.0"), said(5)])
    }),
    kind("puts", 10, &[3, 4], || Script::new([does(does(said(3), "put", "s1.0"), "put", "s1.1"), said(4)])),
    kind("charges", 14, &[2, 4], || Script::new([does(said(2), "charge", "s1.0"), said(4)])),
    kind("mixes", 10, &[2, 2, 4], || {
        let all = does(does(does(said(2), "look", "s1.0"), "put", "s1.1"), "charge", "s1.2");
        Script::new([all, does(said(2), "charge", "s2.0"), said(4)])
    }),
    Kind {
        max_steps: 6,
        ..kind("loops", 5, &[1], || Script::new([does(said(1), "look", "again")]).repeat_last())
    },
    kind("limited", 5, &[6], || failing(6, Fault::status_retry_after(429, "1"), 1)),
    kind("overloaded", 4, &[6], || failing(6, Fault::status(500), 2)),
    kind("reset", 4, &[8], || failing(8, Fault::Reset(At::Token(3)), 1)),
    kind("cut", 3, &[8], || failing(8, Fault::Cut(At::Token(5)), 1)),
    kind("ends-early", 3, &[8], || failing(8, Fault::CleanEnd { after: 4 }, 1)),
    kind("hangs", 2, &[8], || failing(8, Fault::Hang(At::Token(2)), 1)),
    kind("silent", 1, &[6], || failing(6, Fault::Hang(At::BeforeHead), 1)),
    kind("refused", 2, &[6], || failing(6, Fault::status(400), u32::MAX)),
];

impl Kind {
    pub(crate) fn draw(random: &mut StdRng) -> &'static Self {
        let all: u32 = KINDS.iter().map(|kind| kind.weight).sum();
        let mut left = random.random_range(0..all);
        let chosen = KINDS.iter().find(|kind| {
            let here = left < kind.weight;
            left = left.saturating_sub(kind.weight);
            here
        });
        chosen.expect("the draw is below the sum of the weights")
    }

    pub(crate) fn named(name: &str) -> Option<&'static Self> {
        KINDS.iter().find(|kind| kind.name == name)
    }

    /// How many marks this turn has.
    pub(crate) fn marks_of_turn(&self, turn: usize) -> usize {
        self.marks[(turn - 1).min(self.marks.len() - 1)]
    }
}

/// Tells the provider what to say.
pub(crate) fn teach(provider: &FakeProvider) {
    for kind in KINDS {
        provider.script(kind.name, (kind.script)());
    }
}

const fn kind(name: &'static str, weight: u32, marks: &'static [usize], script: fn() -> Script) -> Kind {
    Kind { name, weight, marks, script, max_steps: 20 }
}

fn said(marks: usize) -> Turn {
    Turn::marked(marks).delay(Duration::from_millis(40))
}

fn does(turn: Turn, tool: &str, place: &str) -> Turn {
    turn.and_call(tool, &json!({"op": format!("{{run}}.{place}")}))
}

fn failing(marks: usize, fault: Fault, times: u32) -> Script {
    Script::new([said(marks).fault(fault, times)])
}
