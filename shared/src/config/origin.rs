//! Which value each setting has and where it came from, secrets masked.

use std::collections::BTreeMap;

use figment::Figment;
use serde_json::Value;

use super::{Config, layers::describe, settings::is_setting};

/// The layer of each value that was set, by key.
#[derive(Clone, Debug, Default)]
pub(super) struct Origins(BTreeMap<String, String>);

/// One line of `longhaul config show --origin`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    pub key: String,
    pub value: String,
    pub origin: String,
}

impl Origins {
    pub(super) fn new(config: &Config, figment: &Figment) -> Self {
        let origin = |(key, _): (String, Value)| {
            let origin = describe(figment.find_metadata(&key)?);
            Some((key, origin))
        };
        Self(config.flat().into_iter().filter_map(origin).collect())
    }

    /// The origin of this key or, for a table, of the first value in it.
    pub(super) fn of(&self, key: &str) -> Option<&str> {
        let inside = |(found, _): &(&String, &String)| {
            found.strip_prefix(key).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        self.0.range(key.to_owned()..).find(inside).map(|(_, origin)| origin.as_str())
    }

    /// The same; for a key that a named entry lacks, the origin of the entry.
    pub(super) fn near(&self, key: &str) -> Option<&str> {
        let named = ["providers.", "agents.", "tools."].iter().any(|section| key.starts_with(section));
        let entry = || key.splitn(3, '.').take(2).collect::<Vec<_>>().join(".");
        self.of(key).or_else(|| if named { self.of(&entry()) } else { None })
    }
}

impl Config {
    /// Every setting with its value and its origin, in the order of their keys.
    pub fn show_origin(&self) -> Vec<Shown> {
        let shown = |(key, value): (String, Value)| {
            let origin = self.origins.of(&key).unwrap_or("default").to_owned();
            Shown { value: plain(&value), key, origin }
        };
        self.flat().into_iter().map(shown).collect()
    }

    /// Keys and values as they would stand in the file. Serialising masks the secrets.
    pub(super) fn flat(&self) -> Vec<(String, Value)> {
        let mut flat = Vec::new();
        let tree =
            serde_json::to_value(self).expect("a configuration has string keys and finite numbers only");
        flatten(String::new(), tree, &mut flat);
        flat
    }
}

fn flatten(key: String, value: Value, flat: &mut Vec<(String, Value)>) {
    match value {
        // A schema or a set of headers is one setting, however deep it is.
        Value::Object(table) if !is_setting(&key) => {
            for (name, value) in table {
                let key = if key.is_empty() { name } else { format!("{key}.{name}") };
                flatten(key, value, flat);
            }
        }
        value => flat.push((key, value)),
    }
}

/// A value as a person writes it; what is absent is `none`.
pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.is_empty() => "none".to_owned(),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}
