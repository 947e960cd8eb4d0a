//! Values that must never be printed. A secret leaves its type only by `expose`, where it is used.

use std::{fmt, path::Path};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use url::Url;

use super::environment::Environment;

/// What stands in the place of a secret wherever one is shown.
pub(super) const MASK: &str = "***";

/// A secret, given as itself, as `env:NAME` or as `file:PATH`; resolved once, when the configuration is loaded.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Replaces a reference by what it refers to. The error says what is missing and never quotes a value.
    pub(super) fn resolve(&mut self, environment: &Environment, folder: &Path) -> Result<(), String> {
        if let Some(name) = self.0.strip_prefix("env:") {
            self.0 = environment
                .get(name)
                .ok_or_else(|| format!("the environment variable {name} is not set"))?
                .to_owned();
        } else if let Some(path) = self.0.strip_prefix("file:") {
            self.0 = read_secret(&folder.join(path))?;
        }
        Ok(())
    }
}

/// Reads a secret that was mounted as a file; editors and secret stores end it with a line break.
pub(super) fn read_secret(path: &Path) -> Result<String, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
    let text = text.trim_end_matches(['\r', '\n']);
    if text.is_empty() { Err(format!("{} is empty", path.display())) } else { Ok(text.to_owned()) }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(MASK)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self)
    }
}

/// A connection address with its password masked, wherever the scheme allows one: before the `@` or in the query.
pub(super) fn masked_url(text: &str) -> String {
    let Ok(mut url) = Url::parse(text) else { return MASK.to_owned() };
    if url.password().is_some() && url.set_password(Some(MASK)).is_err() {
        return MASK.to_owned();
    }
    let secret = |name: &str| name.to_ascii_lowercase().contains("pass");
    if url.query_pairs().any(|(name, _)| secret(&name)) {
        let pairs: Vec<(String, String)> = url.query_pairs().into_owned().collect();
        url.query_pairs_mut().clear().extend_pairs(
            pairs.iter().map(|(name, value)| (name, if secret(name) { MASK } else { value.as_str() })),
        );
    }
    url.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_never_prints_itself() {
        let secret = Secret::new("sk-live-1");
        assert_eq!(format!("{secret} {secret:?}"), "*** ***");
        assert_eq!(serde_json::to_string(&secret).unwrap(), "\"***\"");
    }

    #[test]
    fn passwords_in_addresses_are_masked() {
        let shown = masked_url("postgres://app:hunter2@db.internal:5432/jobs?sslmode=require");
        assert_eq!(shown, "postgres://app:***@db.internal:5432/jobs?sslmode=require");
        let shown = masked_url("postgres:///jobs?user=app&password=hunter2");
        assert!(!shown.contains("hunter2") && shown.contains("user=app"), "{shown}");
    }

    #[test]
    fn a_secret_is_read_from_the_environment_or_a_file() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("key"), "from-file\n").unwrap();
        let environment = Environment::from_iter([("KEY", "from-env")]);
        for (written, value) in [("env:KEY", "from-env"), ("file:key", "from-file"), ("plain", "plain")] {
            let mut secret = Secret::new(written);
            secret.resolve(&environment, folder.path()).unwrap();
            assert_eq!(secret.expose(), value);
        }
        let missing = Secret::new("env:NO_KEY").resolve(&environment, folder.path());
        assert_eq!(missing, Err("the environment variable NO_KEY is not set".to_owned()));
        assert!(Secret::new("file:none").resolve(&environment, folder.path()).is_err());
    }
}
