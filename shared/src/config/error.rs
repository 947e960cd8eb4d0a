//! Why a configuration is refused: always which key, where it was set, and what is wrong with it.

use std::path::PathBuf;

use figment::error::Kind;

use super::{
    layers::describe,
    report::Problem,
    settings::{self, SETTINGS},
};

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{origin} is not valid TOML: line {line}: {reason}")]
    Syntax { origin: String, line: usize, reason: String },
    #[error("unknown key `{key}` in {origin}{}", meant(suggestion.as_deref()))]
    UnknownKey { key: String, origin: String, suggestion: Option<String> },
    #[error("{0}")]
    Value(Problem),
    #[error("the configuration is refused:{}", listed(.0))]
    Refused(Vec<Problem>),
}

impl ConfigError {
    pub(super) fn value(key: impl Into<String>, origin: impl Into<String>, rule: impl Into<String>) -> Self {
        Self::Value(Problem { key: key.into(), origin: Some(origin.into()), rule: rule.into() })
    }

    /// Puts figment's first error into our words. Values of secret keys are left out of them.
    pub(super) fn from_figment(error: &figment::Error) -> Self {
        let origin = error.metadata.as_ref().map_or_else(|| "the configuration".to_owned(), describe);
        let path = error.path.join(".");
        let within = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        match &error.kind {
            Kind::UnknownField(name, known) => {
                let key = match path.rsplit('.').next() {
                    // The path may or may not end with the field itself.
                    Some(last) if last == name => path.clone(),
                    _ => within(name),
                };
                let parent = key.strip_suffix(name.as_str()).unwrap_or_default();
                let suggestion = closest(name, known.iter().copied())
                    .map(|known| format!("{parent}{known}"))
                    .or_else(|| elsewhere(name));
                Self::UnknownKey { key, origin, suggestion }
            }
            Kind::MissingField(name) => Self::value(within(name), origin, "is required"),
            // Our own messages never quote a value; figment's do.
            Kind::Message(rule) => Self::value(path, origin, rule.as_str()),
            Kind::UnknownVariant(value, known) => {
                Self::value(path, origin, format!("must be one of {}, not `{value}`", known.join(", ")))
            }
            Kind::InvalidType(_, expected) | Kind::InvalidValue(_, expected)
                if settings::is_secret(&path) =>
            {
                Self::value(path, origin, format!("must be {}", in_words(expected)))
            }
            Kind::InvalidType(found, expected) | Kind::InvalidValue(found, expected) => {
                Self::value(path, origin, format!("must be {}, not {found}", in_words(expected)))
            }
            kind => Self::value(path, origin, kind.to_string()),
        }
    }
}

/// What serde calls by Rust's names, as a reader of the file knows it.
fn in_words(expected: &str) -> &str {
    match expected {
        "u16" => "a whole number from 0 to 65535",
        "u32" => "a whole number from 0 to 4294967295",
        "f64" => "a number",
        "a sequence" => "a list",
        "a map" => "a table",
        other if other.starts_with("struct ") => "a table",
        other => other,
    }
}

fn meant(suggestion: Option<&str>) -> String {
    suggestion.map_or_else(String::new, |known| format!("; did you mean `{known}`?"))
}

fn listed(problems: &[Problem]) -> String {
    problems.iter().fold(String::new(), |list, problem| list + "\n  " + &problem.to_string())
}

/// The known name that a misspelt one most likely stands for.
pub(super) fn closest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|known| (strsim::jaro_winkler(name, known), known))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, known)| known)
}

/// A key of this very name in another section: it was written at the wrong place.
fn elsewhere(name: &str) -> Option<String> {
    let same = |key: &&str| key.rsplit('.').next() == Some(name);
    SETTINGS.iter().map(|setting| setting.key).find(same).map(str::to_owned)
}
