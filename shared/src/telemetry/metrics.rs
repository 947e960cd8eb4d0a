//! What a process counts. All names stand in one table, [`METRICS`]; nothing is counted that is not in it.
//!
//! Without [`serve`] counting is a look at a pointer. Whatever is counted about a run is counted by the process that
//! committed it, once, so that the sum over all processes is the truth as far as they live; a crash forgets the counters
//! of its process, never a fact.

use std::{fmt::Write as _, future::Future, net::SocketAddr};

use ::metrics::{counter, describe_counter, describe_gauge, gauge};
use metrics_exporter_prometheus::{BuildError, PrometheusBuilder};

use crate::domain::event::{EventData, RUN_FINISHED, Segment};

/// What makes a number of it: one that only rises, or one that goes both ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
}

/// One line of the table.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub labels: &'static [&'static str],
    pub meaning: &'static str,
}

const fn count(name: &'static str, labels: &'static [&'static str], meaning: &'static str) -> Metric {
    Metric { name, kind: Kind::Counter, labels, meaning }
}

const fn level(name: &'static str, labels: &'static [&'static str], meaning: &'static str) -> Metric {
    Metric { name, kind: Kind::Gauge, labels, meaning }
}

const RECONCILED: &str = "longhaul_reconciled_total";
const FENCED_WRITES: &str = "longhaul_fenced_writes_total";
const LEASES_LOST: &str = "longhaul_leases_lost_total";
const TAKEOVERS: &str = "longhaul_takeovers_total";
const STOPS_CARRIED_OUT: &str = "longhaul_stops_carried_out_total";
const RUNS_FINISHED: &str = "longhaul_runs_finished_total";
const STEP_RETRIES: &str = "longhaul_step_retries_total";
const TOOL_CALLS: &str = "longhaul_tool_calls_total";
const SLOTS: &str = "longhaul_worker_slots";
const SLOTS_USED: &str = "longhaul_worker_slots_used";
const BUILD_INFO: &str = "longhaul_build_info";

pub const METRICS: &[Metric] = &[
    count(RECONCILED, &[], "Rows repaired that no path should produce. Above zero is a bug."),
    count(FENCED_WRITES, &[], "Writes refused because the run had changed hands: the fence at work."),
    count(
        LEASES_LOST,
        &["reason"],
        "Leases that a worker lost: `refused` by the database, or `unconfirmed` in time and given up by itself.",
    ),
    count(
        TAKEOVERS,
        &["proof"],
        "Runs taken from dead workers, by what proved the death: `lease` (it ran out) or `presence` (the process was \
         gone).",
    ),
    count(
        STOPS_CARRIED_OUT,
        &[],
        "Runs ended by another worker because their holder did not follow a stop in time.",
    ),
    count(RUNS_FINISHED, &["status", "reason"], "Runs that ended."),
    count(
        STEP_RETRIES,
        &["kind"],
        "Model calls made again: `request` (failed before the first byte), `torn` (broke off), `takeover` (the worker \
         before was lost).",
    ),
    count(TOOL_CALLS, &["state"], "Tool calls that have their outcome."),
    level(SLOTS, &[], "Runs that this worker carries at the same time at most."),
    level(SLOTS_USED, &[], "Runs that it carries now."),
    level(BUILD_INFO, &["version"], "Always 1."),
];

/// Why a worker lost its lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseLoss {
    /// The database knows of no such lease any more.
    Refused,
    /// No heartbeat was answered in time.
    Unconfirmed,
}

impl LeaseLoss {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Unconfirmed => "unconfirmed",
        }
    }
}

/// How a worker was known to be dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    Lease,
    Presence,
}

impl Proof {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Lease => "lease",
            Self::Presence => "presence",
        }
    }
}

/// Why a model is asked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepRetry {
    Request,
    Torn,
    Takeover,
}

impl StepRetry {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Torn => "torn",
            Self::Takeover => "takeover",
        }
    }
}

pub fn reconciled(rows: u64) {
    counter!(RECONCILED).increment(rows);
}

pub fn fenced_write() {
    counter!(FENCED_WRITES).increment(1);
}

pub fn lease_lost(loss: LeaseLoss) {
    counter!(LEASES_LOST, "reason" => loss.as_str()).increment(1);
}

pub fn took_over(proof: Proof) {
    counter!(TAKEOVERS, "proof" => proof.as_str()).increment(1);
}

pub fn stop_carried_out() {
    counter!(STOPS_CARRIED_OUT).increment(1);
}

pub fn step_retried(retry: StepRetry) {
    counter!(STEP_RETRIES, "kind" => retry.as_str()).increment(1);
}

pub fn slots(slots: u32) {
    gauge!(SLOTS).set(f64::from(slots));
    gauge!(SLOTS_USED).set(0.0);
}

pub fn slot_taken() {
    gauge!(SLOTS_USED).increment(1.0);
}

pub fn slot_freed() {
    gauge!(SLOTS_USED).decrement(1.0);
}

/// What a committed segment says; called by whoever committed it.
pub fn committed(segment: &Segment) {
    for event in &segment.events {
        // Most events are deltas, which are not worth a look inside.
        if !matches!(event.kind.as_str(), RUN_FINISHED | "tool.finished") {
            continue;
        }
        match event.data() {
            Some(EventData::RunFinished { status, reason, .. }) => {
                counter!(RUNS_FINISHED, "status" => status.as_str(), "reason" => reason.as_str())
                    .increment(1);
            }
            Some(EventData::ToolFinished { state, .. }) => {
                counter!(TOOL_CALLS, "state" => state.as_str()).increment(1);
            }
            _ => {}
        }
    }
}

/// Why metrics cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve metrics at {listen}: {source}")]
pub struct MetricsError {
    listen: SocketAddr,
    source: BuildError,
}

/// Begins to count, and returns what answers Prometheus, to be spawned. Once per process, inside a Tokio runtime.
pub fn serve(listen: SocketAddr) -> Result<impl Future<Output = ()> + Send + 'static, MetricsError> {
    let failed = |source: BuildError| MetricsError { listen, source };
    let (recorder, exporter) = PrometheusBuilder::new().with_http_listener(listen).build().map_err(failed)?;
    ::metrics::set_global_recorder(recorder).map_err(|error| failed(error.into()))?;
    describe();
    tracing::info!(address = %listen, "metrics are served");
    Ok(async move {
        if let Err(error) = exporter.await {
            tracing::error!(?error, "metrics are no longer served");
        }
    })
}

/// Every counter without labels is there from the start, so that its first rise is seen as one.
fn describe() {
    for metric in METRICS {
        match metric.kind {
            Kind::Counter => describe_counter!(metric.name, metric.meaning),
            Kind::Gauge => describe_gauge!(metric.name, metric.meaning),
        }
    }
    reconciled(0);
    counter!(FENCED_WRITES).increment(0);
    counter!(STOPS_CARRIED_OUT).increment(0);
    for loss in [LeaseLoss::Refused, LeaseLoss::Unconfirmed] {
        counter!(LEASES_LOST, "reason" => loss.as_str()).increment(0);
    }
    for proof in [Proof::Lease, Proof::Presence] {
        counter!(TAKEOVERS, "proof" => proof.as_str()).increment(0);
    }
    gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
}

/// `docs/metrics.md`.
pub fn markdown() -> String {
    let mut page = "# Metrics\n\nMade by `cargo xtask gen` from `shared/src/telemetry/metrics.rs`; change it there.\n\n\
        With `metrics.listen` set, a process (API, worker or `dev`) serves these for Prometheus. Each process counts what \
        it did itself; add them up. Two processes on one host need two addresses, such as by \
        `LONGHAUL_METRICS_LISTEN`.\n\n\
        | Name | Type | Labels | Meaning |\n| --- | --- | --- | --- |\n"
        .to_owned();
    for metric in METRICS {
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        let _ = writeln!(page, "| `{}` | {kind} | {} | {} |", metric.name, labels.join(", "), metric.meaning);
    }
    page
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;
    use crate::domain::{
        ids::RunId,
        run::Usage,
        tool::CallState,
        transition::{Reason, RunStatus},
    };

    /// What Prometheus would read after `act`.
    fn scraped(act: impl FnOnce()) -> String {
        let recorder = PrometheusBuilder::new().build_recorder();
        ::metrics::with_local_recorder(&recorder, act);
        recorder.handle().render()
    }

    fn segment(events: &[EventData]) -> Segment {
        let events: Vec<_> = events.iter().map(EventData::of_run).collect();
        Segment { run_id: RunId::generate(), first: 1, last: events.len() as i64, at: 0, events }
    }

    #[test]
    fn endings_and_tool_outcomes_are_counted_from_what_was_committed() {
        let tool = |state| EventData::ToolFinished {
            call: 1,
            call_id: "c".into(),
            state,
            output: None,
            error: None,
        };
        let finished = EventData::RunFinished {
            status: RunStatus::Failed,
            reason: Reason::Deadline,
            error: None,
            usage: Usage::default(),
            step_count: 1,
        };
        let delta = EventData::TextDelta { text: "x".into() };
        let text = scraped(|| {
            committed(&segment(&[tool(CallState::Unknown), delta, tool(CallState::Unknown), finished]));
        });
        assert!(text.contains("longhaul_tool_calls_total{state=\"unknown\"} 2"), "{text}");
        let line = "longhaul_runs_finished_total{status=\"failed\",reason=\"deadline\"} 1";
        assert!(text.contains(line), "{text}");
    }

    #[test]
    fn all_that_is_counted_is_in_the_table_with_its_labels() {
        let text = scraped(|| {
            describe();
            slots(4);
            slot_taken();
            slot_freed();
            for retry in [StepRetry::Request, StepRetry::Torn, StepRetry::Takeover] {
                step_retried(retry);
            }
            fenced_write();
            lease_lost(LeaseLoss::Refused);
            took_over(Proof::Presence);
            stop_carried_out();
            let state = CallState::Succeeded;
            let tool =
                EventData::ToolFinished { call: 1, call_id: "c".into(), state, output: None, error: None };
            let (status, reason) = (RunStatus::Succeeded, Reason::Done);
            let usage = Usage::default();
            let finished = EventData::RunFinished { status, reason, error: None, usage, step_count: 1 };
            committed(&segment(&[tool, finished]));
        });
        let mut seen = std::collections::BTreeSet::new();
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let name = line.split(['{', ' ']).next().unwrap();
            let metric = METRICS.iter().find(|metric| metric.name == name);
            let metric = metric.unwrap_or_else(|| panic!("{name} is not in the table"));
            let labels: Vec<&str> = line.split_once('{').map_or(vec![], |(_, rest)| {
                rest.split(',').map(|label| label.split('=').next().unwrap()).collect()
            });
            assert_eq!(labels, metric.labels, "{line}");
            seen.insert(name);
        }
        assert_eq!(seen.len(), METRICS.len(), "{text}");
        assert!(text.contains("# HELP longhaul_takeovers_total Runs taken"), "{text}");
        assert!(markdown().lines().filter(|line| line.starts_with("| `longhaul_")).count() == METRICS.len());
    }
}
