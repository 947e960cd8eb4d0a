//! Logs, set up once per process; [`metrics`] are the counters beside them.
//!
//! Lines go to stderr: text on a terminal, one JSON object each otherwise. A panic is a log line like any other. No
//! prompt, no output and no secret is a field of anything here.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    io::IsTerminal,
    panic::PanicHookInfo,
};

use tracing::Subscriber;
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    fmt::{self, MakeWriter},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use crate::config::{LogConfig, LogFormat};

pub mod metrics;

/// The span of one attempt at a run, with the fields `run.id`, `epoch` and `step`. One per attempt and not per run: a
/// run may take days, and a span is only seen when it ends.
pub const ATTEMPT_SPAN: &str = "run.attempt";

#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("the log filter cannot be read: {0}")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    #[error("logs are set up already: {0}")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}

/// Starts logging and makes panics log lines. Once per process, before the first task is spawned.
pub fn init(log: &LogConfig) -> Result<(), TelemetryError> {
    let terminal = std::io::stderr().is_terminal();
    subscriber(log, terminal, std::io::stderr)?.try_init()?;
    std::panic::set_hook(Box::new(log_panic));
    Ok(())
}

fn subscriber<W>(
    log: &LogConfig,
    terminal: bool,
    writer: W,
) -> Result<impl Subscriber + Send + Sync + use<W>, TelemetryError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    // The framework's notices of its own comings and goings are not news to an operator.
    let filter = EnvFilter::builder().parse(format!("apalis_core=warn,{}", log.level))?;
    let json = match log.format {
        LogFormat::Auto => !terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    let lines = fmt::layer::<Registry>().with_writer(writer);
    let lines = if json {
        // The innermost span alone: an attempt's fields, not the whole way down to it.
        lines.json().flatten_event(true).with_span_list(false).boxed()
    } else if terminal {
        lines.boxed()
    } else {
        lines.with_ansi(false).boxed()
    };
    Ok(Registry::default().with(lines).with(filter))
}

fn log_panic(info: &PanicHookInfo<'_>) {
    let message = info.payload_as_str().unwrap_or("a value that is not text");
    let location = info.location().map(ToString::to_string).unwrap_or_default();
    let thread = std::thread::current().name().unwrap_or("unnamed").to_owned();
    let backtrace = Backtrace::capture();
    let backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    tracing::error!(location, thread, backtrace, "panicked: {message}");
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        sync::{Arc, Mutex},
    };

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn logged(level: &str, format: LogFormat, terminal: bool, act: impl FnOnce()) -> String {
        let lines = Lines::default();
        let log = LogConfig { level: level.to_owned(), format };
        let writer = lines.clone();
        let subscriber = subscriber(&log, terminal, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, act);
        let bytes = lines.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    fn speak() {
        let attempt = tracing::info_span!(ATTEMPT_SPAN, run.id = "r1", epoch = 2);
        let _inside = attempt.enter();
        tracing::info!(steps = 3, "the run ended");
        tracing::debug!("a detail");
    }

    #[test]
    fn away_from_a_terminal_each_line_is_json_with_its_span() {
        let text = logged("info", LogFormat::Auto, false, speak);
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&line["message"], &line["steps"]), (&"the run ended".into(), &3.into()));
        assert_eq!((&line["span"]["name"], &line["span"]["run.id"]), (&"run.attempt".into(), &"r1".into()));
    }

    #[test]
    fn on_a_terminal_and_on_request_lines_are_text() {
        assert!(logged("info", LogFormat::Auto, true, speak).contains("the run ended"));
        let text = logged("info", LogFormat::Text, false, speak);
        assert!(text.contains("the run ended") && !text.contains('\u{1b}'), "{text}");
    }

    #[test]
    fn the_level_may_differ_by_module() {
        let text = logged("warn,longhaul_shared=debug", LogFormat::Text, false, speak);
        assert!(text.contains("a detail"), "{text}");
        assert_eq!(logged("warn", LogFormat::Text, false, speak), "");
    }

    #[test]
    fn a_panic_is_logged_where_it_happened() {
        let text = logged("info", LogFormat::Json, false, || {
            let usual = std::panic::take_hook();
            std::panic::set_hook(Box::new(log_panic));
            let caught = std::panic::catch_unwind(|| panic!("out of {}", "luck"));
            std::panic::set_hook(usual);
            assert!(caught.is_err());
        });
        let line: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!((&line["level"], &line["message"]), (&"ERROR".into(), &"panicked: out of luck".into()));
        assert!(line["location"].as_str().unwrap().contains("telemetry.rs"), "{text}");
    }
}
