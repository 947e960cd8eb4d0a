//! `[database]`: where the truth is kept, and how many connections may ask for it.

use std::{fmt, path::Path, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::{report::Report, secret::masked_url, span};

/// The recorder, the claims and one more for everything else: with fewer, a long commit could keep all runs waiting.
const NEEDED_CONNECTIONS: u32 = 3;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DatabaseConfig {
    /// Set in every loaded configuration.
    pub url: DatabaseUrl,
    pub max_connections: u32,
    #[serde(with = "span")]
    pub acquire_timeout: Duration,
    /// Absent is two thirds of the lease.
    #[serde(with = "span::option")]
    pub statement_timeout: Option<Duration>,
}

impl Default for DatabaseConfig {
    fn default() -> Self {
        Self {
            url: DatabaseUrl::default(),
            max_connections: 10,
            acquire_timeout: Duration::from_secs(5),
            statement_timeout: None,
        }
    }
}

impl DatabaseConfig {
    pub(super) fn check(&self, report: &mut Report) {
        report.require(!self.url.0.is_empty(), "database.url", || {
            "is required: postgres://… or sqlite:PATH, best as LONGHAUL_DATABASE_URL".to_owned()
        });
        report.require(self.max_connections >= NEEDED_CONNECTIONS, "database.max_connections", || {
            format!(
                "must be at least {NEEDED_CONNECTIONS} (recorder, claims, everything else), not {}",
                self.max_connections
            )
        });
        report.positive("database.acquire_timeout", self.acquire_timeout);
        report.positive("database.statement_timeout", self.statement_timeout);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatabaseKind {
    Postgres,
    Sqlite,
}

/// `postgres://…` or `sqlite:PATH`. It may carry a password, so it prints itself with that masked.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct DatabaseUrl(String);

impl DatabaseUrl {
    pub fn sqlite(path: &Path) -> Self {
        Self(format!("sqlite:{}", path.display()))
    }

    pub fn kind(&self) -> DatabaseKind {
        if self.0.starts_with("sqlite:") { DatabaseKind::Sqlite } else { DatabaseKind::Postgres }
    }

    /// The file of a SQLite database, without scheme and parameters.
    pub fn sqlite_path(&self) -> Option<&Path> {
        let path = self.0.strip_prefix("sqlite:")?;
        let path = path.strip_prefix("//").unwrap_or(path);
        Some(Path::new(path.split_once('?').map_or(path, |(path, _)| path)))
    }

    /// The address with its password, for the driver only.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for DatabaseUrl {
    type Err = String;

    // The text is not quoted in the error: it may hold a password.
    fn from_str(text: &str) -> Result<Self, String> {
        let postgres = text.starts_with("postgres://") || text.starts_with("postgresql://");
        if postgres {
            url::Url::parse(text).map_err(|e| format!("not a URL: {e}"))?;
        }
        let url = Self(text.to_owned());
        let file = url.sqlite_path().is_some_and(|path| !path.as_os_str().is_empty());
        if postgres || file {
            Ok(url)
        } else {
            Err("must be written as postgres://user@host/name or sqlite:PATH".to_owned())
        }
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind() {
            _ if self.0.is_empty() => Ok(()),
            DatabaseKind::Sqlite => f.write_str(&self.0),
            DatabaseKind::Postgres => f.write_str(&masked_url(&self.0)),
        }
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for DatabaseUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DatabaseUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_is_postgres_or_a_sqlite_file() {
        let url: DatabaseUrl = "postgres://app:hunter2@db/jobs".parse().unwrap();
        assert_eq!((url.kind(), url.sqlite_path()), (DatabaseKind::Postgres, None));
        assert_eq!(format!("{url} {url:?}"), "postgres://app:***@db/jobs postgres://app:***@db/jobs");
        for (text, path) in [
            ("sqlite:a/b.db", "a/b.db"),
            ("sqlite:///var/b.db", "/var/b.db"),
            ("sqlite:/b.db?mode=rwc", "/b.db"),
        ] {
            let url: DatabaseUrl = text.parse().unwrap();
            assert_eq!(
                (url.kind(), url.sqlite_path()),
                (DatabaseKind::Sqlite, Some(Path::new(path))),
                "{text}"
            );
        }
        for text in ["", "mysql://x", "dev.db", "sqlite:", "postgres://h:port/x"] {
            assert!(text.parse::<DatabaseUrl>().is_err(), "{text}");
        }
    }
}
