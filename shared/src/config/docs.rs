//! The reference of all settings as a page and as an example environment file, both made from the one table.

use std::{collections::BTreeMap, fmt::Write as _};

use serde_json::Value;

use super::{
    AgentConfig, AgentLimits, Config, ProviderConfig, ProviderKind, ToolConfig,
    layers::{FILE_VARIABLE, Profile},
    origin::plain,
    settings::{SETTINGS, Setting},
};

const INTRODUCTION: &str = "\
# Configuration

Made by `cargo xtask gen` from `shared/src/config/settings.rs`; change it there.

A setting is taken from, the strongest first: a flag, the environment, the file, its default. The file is named by
`--config` or `LONGHAUL_CONFIG`; otherwise it is `longhaul.toml` in the current folder, if there is one. Each key of the
tables below is a key of the file (`worker.lease` is `lease` in `[worker]`). Durations are written as `\"15s\"`, sizes
as `\"1 MiB\"`, lists in the environment with commas. Where a `…_FILE` variable is given, it names a file that holds
the value. Unknown keys and values that contradict each other stop the start with the reason.
`longhaul config show --origin` prints each value and where it came from.
";

/// `docs/configuration.md`.
pub fn markdown() -> String {
    let mut page = INTRODUCTION.to_owned();
    let defaults = defaults();
    let mut section = "";
    for setting in SETTINGS {
        let head = setting.key.rsplit_once('.').map_or("", |(head, _)| head);
        let head = head.strip_suffix(".limits").unwrap_or(head);
        if head != section {
            section = head;
            let environment = if setting.in_environment() { " Environment |" } else { "" };
            let rule = if setting.in_environment() { " --- |" } else { "" };
            let _ = write!(
                page,
                "\n## `[{section}]`\n\n| Key |{environment} Default | Meaning |\n| --- |{rule} --- | --- |\n"
            );
        }
        let _ = write!(page, "| `{}` |", setting.key);
        if setting.in_environment() {
            let names = setting.variables(Profile::Plain).into_iter().chain(setting.file_variable());
            let names: Vec<String> = names.map(|name| format!("`{name}`")).collect();
            let _ = write!(page, " {} |", names.join(", "));
        }
        let _ = writeln!(page, " {} | {} |", shown_default(setting, &defaults), setting.meaning);
    }
    page
}

/// `.env.example`: every setting of the environment, commented out with its default.
pub fn env_example() -> String {
    let defaults = defaults();
    let mut file = format!(
        "# Made by `cargo xtask gen`; docs/configuration.md says more. Uncomment what differs\n\
         # from its default and export it: nothing reads this file by itself.\n\n\
         # The configuration file.\n# {FILE_VARIABLE}=longhaul.toml\n"
    );
    for setting in SETTINGS.iter().filter(|setting| setting.in_environment()) {
        let value = match defaults.get(setting.key) {
            Some(value) if setting.default.is_none() && *value != Value::Null => plain_or_empty(value),
            _ => String::new(),
        };
        let _ = write!(file, "\n# {}\n", setting.meaning.replace('`', ""));
        if let Some(default) = setting.default {
            let _ = writeln!(file, "# Default: {}.", default.replace('`', ""));
        }
        if let Some(name) = setting.file_variable() {
            let _ = writeln!(file, "# {name} names a file with the value.");
        }
        let _ = writeln!(file, "# {}={value}", setting.variable());
    }
    file
}

fn plain_or_empty(value: &Value) -> String {
    if value.as_array().is_some_and(Vec::is_empty) { String::new() } else { plain(value) }
}

fn shown_default(setting: &Setting, defaults: &BTreeMap<String, Value>) -> String {
    match (setting.default, defaults.get(setting.key)) {
        (Some(words), _) => words.to_owned(),
        (None, None | Some(Value::Null)) => "none".to_owned(),
        (None, Some(Value::Array(items))) if items.is_empty() => "none".to_owned(),
        (None, Some(value)) => format!("`{}`", plain(value)),
    }
}

/// Every key that a configuration can have, with its default; named entries under the table's placeholder.
pub(super) fn defaults() -> BTreeMap<String, Value> {
    let provider = ProviderConfig::new(ProviderKind::Openai);
    let agent = AgentConfig {
        description: String::new(),
        provider: String::new(),
        model: String::new(),
        instructions: String::new(),
        tools: Vec::new(),
        temperature: None,
        limits: AgentLimits::default(),
    };
    let tool: ToolConfig =
        serde_json::from_str(r#"{"kind": "http", "description": "", "url": "http://localhost/"}"#)
            .expect("the required keys make a complete tool");
    let name = || "<name>".to_owned();
    let config = Config {
        providers: BTreeMap::from([(name(), provider)]),
        agents: BTreeMap::from([(name(), agent)]),
        tools: BTreeMap::from([(name(), tool)]),
        ..Config::default()
    };
    config.flat().into_iter().collect()
}
