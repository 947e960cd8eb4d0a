//! One of several rows of cases that go at the same time. Its cases on Postgres share a world, until something is broken
//! in it or its history is long; a case on SQLite has one of its own, which dies with it.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::Mutex;
use std::time::Instant;

use futures::FutureExt;
use longhaul_tests::{Setup, Store, World};

use super::case::{Case, What};
use super::report::{Report, Verdict};
use super::trial::{self, Trial};

/// Cases in one world, before its history makes looking at all of it slow.
const CASES_PER_WORLD: usize = 12;
const MUTANT: &str = "LONGHAUL_MUTANT";

/// Cases with their numbers, taken by whoever is free.
pub(super) type Queue = Mutex<VecDeque<(usize, Case)>>;

pub(super) struct Lane<'a> {
    mutant: Option<&'a str>,
    shared: Option<World>,
    /// How many cases there were in it.
    cases: usize,
    own: Option<World>,
}

impl<'a> Lane<'a> {
    pub(super) fn new(mutant: Option<&'a str>) -> Self {
        Self { mutant, shared: None, cases: 0, own: None }
    }

    pub(super) async fn run(mut self, queue: &Queue, report: &Report) -> Vec<Verdict> {
        let mut verdicts = Vec::new();
        loop {
            let next = queue.lock().unwrap().pop_front();
            let Some((number, case)) = next else { return verdicts };
            let begin = Instant::now();
            // What the harness waits for in vain is a panic, and a broken promise like any other.
            let flaws = AssertUnwindSafe(self.try_case(number, case)).catch_unwind().await;
            let mut flaws = flaws.unwrap_or_else(|panic| vec![words_of(&*panic)]);
            flaws.dedup();
            let mut logs = String::new();
            let is_grid = matches!(case.what, What::Grid { .. });
            if !flaws.is_empty() && is_grid {
                // What is broken once would be found again by every case after it. A special case has a world of its own,
                // which is gone; a panic has printed what its processes said.
                let world = self.own.take().or_else(|| self.shared.take());
                logs = world.map(|world| world.outputs()).unwrap_or_default();
            }
            self.own = None;
            if self.cases >= CASES_PER_WORLD {
                self.shared = None;
            }
            let verdict = Verdict { number, name: case.name(), flaws, took: begin.elapsed(), logs };
            report.tell(&verdict);
            verdicts.push(verdict);
        }
    }

    async fn try_case(&mut self, number: usize, case: Case) -> Vec<String> {
        let setup = match case.store {
            Store::Postgres => Setup::postgres(),
            Store::Sqlite => Setup::sqlite(),
        };
        let setup = self.mutant.into_iter().fold(setup, |setup, mutant| setup.env(MUTANT, mutant));
        match (case.what, case.store) {
            (What::Special(special), _) => special.run(setup).await,
            (What::Grid { script, place, fault }, store) => {
                let trial = Trial { script, place, fault, id: number };
                let world = match store {
                    Store::Sqlite => &mut self.own,
                    Store::Postgres => &mut self.shared,
                };
                if world.is_none() {
                    *world = Some(trial::world(setup, &trial).await);
                    if store == Store::Postgres {
                        self.cases = 0;
                    }
                }
                self.cases += usize::from(store == Store::Postgres);
                trial.run(world.as_mut().unwrap()).await
            }
        }
    }
}

fn words_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without words").to_owned()
}
