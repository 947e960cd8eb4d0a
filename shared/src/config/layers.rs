//! The layers of a configuration, lowest first: the profile's own values, the file, the environment, the flags.
//! Each value remembers the layer that it came from.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
};

use figment::{
    Figment, Metadata, Provider,
    providers::{Format, Toml},
    util::nest,
    value::{Dict, Map, Value},
};

use super::{
    AuthMode, Config, ConfigError,
    environment::Environment,
    error::closest,
    origin::Origins,
    report::Report,
    secret::read_secret,
    settings::{SETTINGS, Setting, Shape},
};

const DEFAULT_FILE: &str = "longhaul.toml";

/// Names the file instead of `--config`.
pub(super) const FILE_VARIABLE: &str = "LONGHAUL_CONFIG";

const DEV_ORIGIN: &str = "the defaults of `longhaul dev`";

/// `longhaul dev`: complete without any setting.
const DEV: &str = r#"
[database]
url = "sqlite:./.longhaul/dev.db"
[auth]
mode = "loopback"
[providers.demo]
kind = "scripted"
[agents.demo]
description = "A scripted agent that needs no key: thinks, calls a tool, fails once, answers."
provider = "demo"
model = "demo"
instructions = "You are the demo agent of Longhaul."
tools = ["clock"]
"#;

/// What a start brings along before anything is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    Plain,
    /// One process on SQLite with the demo agent, for the loopback interface.
    Dev,
}

/// Settings given by flags; each remembers its flag's name.
#[derive(Clone, Debug, Default)]
pub struct Overrides(Vec<(&'static str, &'static str, Value)>);

impl Overrides {
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets `key` to what `flag` said, if it was given: `.set("--slots", "worker.slots", args.slots)`.
    #[must_use]
    pub fn set(mut self, flag: &'static str, key: &'static str, value: Option<impl Into<Value>>) -> Self {
        self.0.extend(value.map(|value| (flag, key, value.into())));
        self
    }
}

/// Where a configuration is read from.
pub struct Sources {
    pub profile: Profile,
    /// Must exist when it is named; else `longhaul.toml` in the current folder, if there is one.
    pub file: Option<PathBuf>,
    pub environment: Environment,
    pub overrides: Overrides,
}

impl Sources {
    pub fn of_process(profile: Profile, file: Option<&Path>, overrides: Overrides) -> Self {
        Self { profile, file: file.map(Path::to_owned), environment: Environment::of_process(), overrides }
    }

    pub fn load(self) -> Result<Config, ConfigError> {
        let mut figment = Figment::new();
        if self.profile == Profile::Dev {
            figment = figment.merge(Layer::toml(DEV_ORIGIN.to_owned(), DEV)?);
        }
        let (path, text) = self.read_file()?;
        if let Some(text) = text {
            figment = figment.merge(Layer::toml(path.display().to_string(), &text)?);
        }
        for layer in self.environment_layers()? {
            figment = figment.merge(layer);
        }
        for (flag, key, value) in self.overrides.0 {
            figment = figment.merge(Layer::one(format!("the flag {flag}"), key, value));
        }

        let mut config: Config = figment.extract().map_err(|error| ConfigError::from_figment(&error))?;
        config.origins = Origins::new(&config, &figment);
        // `dev` works without keys only where nobody else can reach it. Who sets the mode is taken at their word.
        if !config.server.is_loopback() && config.origins.of("auth.mode") == Some(DEV_ORIGIN) {
            config.auth.mode = AuthMode::Required;
        }
        let mut report = Report::default();
        config.resolve(&self.environment, path.parent().unwrap_or(Path::new("")), &mut report);
        config.check_into(&mut report);
        config.refuse(report)?;
        Ok(config)
    }

    fn read_file(&self) -> Result<(PathBuf, Option<String>), ConfigError> {
        let named = self.file.clone().or_else(|| self.environment.get(FILE_VARIABLE).map(PathBuf::from));
        let optional = named.is_none();
        let path = named.unwrap_or_else(|| DEFAULT_FILE.into());
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok((path, Some(text))),
            Err(error) if optional && error.kind() == ErrorKind::NotFound => Ok((path, None)),
            Err(source) => Err(ConfigError::Unreadable { path, source }),
        }
    }

    /// One layer per variable that is set, so that each value knows its own.
    fn environment_layers(&self) -> Result<Vec<Layer>, ConfigError> {
        self.refuse_unknown_variables()?;
        let mut layers = Vec::new();
        for setting in SETTINGS {
            let names = setting.variables(self.profile);
            let found = names.iter().find_map(|name| Some((name.as_str(), self.environment.get(name)?)));
            let file = setting.file_variable();
            let file = file.as_deref().and_then(|name| Some((name, self.environment.get(name)?)));
            match (found, file) {
                (Some((name, _)), Some((file, _))) if name == setting.variable() => {
                    return Err(ConfigError::value(
                        setting.key,
                        name,
                        format!("is set a second time by {file}"),
                    ));
                }
                (_, Some((name, path))) => {
                    let origin = format!("the file in {name}");
                    let secret = read_secret(Path::new(path))
                        .map_err(|reason| ConfigError::value(setting.key, origin.as_str(), reason))?;
                    layers.push(Layer::one(origin, setting.key, secret.into()));
                }
                (Some((name, text)), None) => {
                    let origin = format!("the environment variable {name}");
                    layers.push(Layer::one(origin, setting.key, typed(setting, text)));
                }
                (None, None) => {}
            }
        }
        Ok(layers)
    }

    /// A misspelt variable would otherwise be a setting that silently has no effect.
    fn refuse_unknown_variables(&self) -> Result<(), ConfigError> {
        let known: Vec<String> = SETTINGS
            .iter()
            .filter(|setting| setting.in_environment())
            .flat_map(|setting| {
                let names = setting.variables(Profile::Plain).into_iter().chain(setting.file_variable());
                names.collect::<Vec<_>>()
            })
            .collect();
        let sections: Vec<String> = SETTINGS
            .iter()
            .filter(|setting| setting.in_environment())
            .filter_map(|setting| {
                Some(format!("LONGHAUL_{}_", setting.key.split_once('.')?.0.to_uppercase()))
            })
            .collect();
        for name in self.environment.names() {
            let ours = sections.iter().any(|section| name.starts_with(section));
            if ours && !known.iter().any(|known| known == name) && !is_service_link(name) {
                return Err(ConfigError::UnknownKey {
                    key: name.to_owned(),
                    origin: "the environment".to_owned(),
                    suggestion: closest(name, known.iter().map(String::as_str)).map(str::to_owned),
                });
            }
        }
        Ok(())
    }
}

/// Kubernetes adds such variables for every service; for one named `longhaul-redis` they look like ours.
fn is_service_link(name: &str) -> bool {
    name.ends_with("_SERVICE_HOST") || name.contains("_SERVICE_PORT") || name.contains("_PORT")
}

/// Text from the environment in the type that the same setting has in the file. What does not fit stays text, so
/// that the section's own type names the error.
fn typed(setting: &Setting, text: &str) -> Value {
    match setting.shape {
        Shape::Text => text.into(),
        Shape::Number => text.parse::<u64>().map_or_else(|_| text.into(), Value::from),
        Shape::List => {
            text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect::<Vec<_>>().into()
        }
    }
}

/// Where a value came from, in words.
pub(super) fn describe(metadata: &Metadata) -> String {
    metadata.name.to_string()
}

struct Layer {
    origin: String,
    values: Dict,
}

impl Layer {
    fn toml(origin: String, text: &str) -> Result<Self, ConfigError> {
        match Toml::from_str(text) {
            Ok(values) => Ok(Self { origin, values }),
            Err(error) => {
                // Its own text quotes the line, in which there may be a key.
                let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
                let line = before.lines().count().max(1);
                Err(ConfigError::Syntax { origin, line, reason: error.message().to_owned() })
            }
        }
    }

    fn one(origin: String, key: &str, value: Value) -> Self {
        let values = nest(key, value).into_dict().expect("a key with a section nests into a table");
        Self { origin, values }
    }
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.origin.clone())
    }

    fn data(&self) -> figment::Result<Map<figment::Profile, Dict>> {
        Ok(figment::Profile::Default.collect(self.values.clone()))
    }
}
