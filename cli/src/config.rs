//! `longhaul config`: every setting with its value and where it came from, and the reference made from the code.

use clap::Subcommand;
use comfy_table::Cell;
use longhaul_shared::{
    config::{Config, Overrides, Shown, env_example, markdown},
    telemetry::metrics,
};
use serde_json::{Map, Value, json};

use crate::{
    Global,
    exit::{Exit, Failure, Outcome},
    output::{Format, Output, print},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Prints every setting, secrets masked
    Show {
        /// Also where each value came from
        #[arg(long)]
        origin: bool,
        /// As `longhaul dev` would see it
        #[arg(long)]
        dev: bool,
    },
    /// Says whether a server would start with it
    Check {
        /// As `longhaul dev` would see it
        #[arg(long)]
        dev: bool,
    },
    /// Prints the reference of all settings as Markdown
    Docs,
    /// Prints an example of all environment variables
    EnvExample,
    /// Prints the reference of all metrics as Markdown
    MetricsDocs,
}

pub(crate) fn run(global: &Global, command: &Command) -> Outcome {
    let output = global.output();
    match *command {
        Command::Show { origin, dev } => show(&load(global, dev)?.show_origin(), origin, output),
        Command::Check { dev } => {
            let config = load(global, dev)?;
            output.note(&format!(
                "the configuration is fine: {} agents, {} providers, {} tools",
                config.agents.len(),
                config.providers.len(),
                config.tools.len()
            ));
            Ok(Exit::Ok)
        }
        Command::Docs => print(&markdown()),
        Command::EnvExample => print(&env_example()),
        Command::MetricsDocs => print(&metrics::markdown()),
    }
}

pub(crate) fn load(global: &Global, dev: bool) -> Result<Config, Failure> {
    let file = global.config.as_deref();
    let load = if dev { Config::load_dev } else { Config::load };
    Ok(load(file, Overrides::new())?)
}

fn show(settings: &[Shown], origin: bool, output: Output) -> Outcome {
    if output.format == Format::Json {
        let document = settings.iter().map(|Shown { key, value, origin: from }| {
            let shown = if origin { json!({"value": value, "origin": from}) } else { value.as_str().into() };
            (key.clone(), shown)
        });
        let document = Value::Object(document.collect::<Map<_, _>>());
        return print(&format!("{document:#}\n"));
    }
    let head: &[&str] = if origin { &["key", "value", "origin"] } else { &["key", "value"] };
    output.list(
        head,
        settings,
        |setting| {
            let mut shown = json!({"key": setting.key, "value": setting.value});
            if origin {
                shown["origin"] = setting.origin.as_str().into();
            }
            shown
        },
        |setting| {
            let cells = [&setting.key, &setting.value, &setting.origin];
            cells.into_iter().take(head.len()).map(|text| Cell::new(first_line(text))).collect()
        },
    )
}

/// A prompt may have many lines; the table shows that there are more.
fn first_line(text: &str) -> String {
    match text.split_once('\n') {
        Some((first, _)) => format!("{first} …"),
        None => text.to_owned(),
    }
}
