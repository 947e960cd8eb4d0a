//! The figures, one file for each thing that is measured. Each makes its own world and leaves nothing behind.

mod delivery;
mod idle;
mod latency;
mod pages;
mod replay;
mod runs;
mod steps;
mod streams;
mod tails;
mod wal;

use std::time::Duration;

use anyhow::Result;
use futures::{FutureExt, future::BoxFuture};

use crate::table::Figure;

/// How much is done to know a number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    pub(crate) quick: bool,
}

impl Effort {
    fn of<T>(self, whole: T, quick: T) -> T {
        if self.quick { quick } else { whole }
    }

    /// How often floor and product take turns.
    fn rounds(self) -> usize {
        self.of(3, 1)
    }

    /// How long each floor is measured.
    fn floor_time(self) -> Duration {
        self.of(Duration::from_secs(4), Duration::from_secs(1))
    }
}

type Measure = fn(Effort) -> BoxFuture<'static, Result<Vec<Figure>>>;

/// By the names that `--only` takes, in the order of the table.
pub(crate) const ALL: &[(&str, Measure)] = &[
    ("runs", |effort| runs::measure(effort).boxed()),
    ("steps", |effort| steps::measure(effort).boxed()),
    ("latency", |effort| latency::measure(effort).boxed()),
    ("delivery", |effort| delivery::measure(effort).boxed()),
    ("streams", |effort| streams::measure(effort).boxed()),
    ("tails", |effort| tails::measure(effort).boxed()),
    ("pages", |effort| pages::measure(effort).boxed()),
    ("replay", |effort| replay::measure(effort).boxed()),
    ("idle", |effort| idle::measure(effort).boxed()),
    ("wal", |effort| wal::measure(effort).boxed()),
];
