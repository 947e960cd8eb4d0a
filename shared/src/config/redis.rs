//! `[redis]`: the bus between processes. Without it everything works, only with more waiting.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::{
    report::{Report, is_name},
    secret::masked_url,
};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RedisConfig {
    pub url: Option<RedisUrl>,
    /// Stands before every channel name, so that several installations may share one server.
    pub prefix: String,
}

impl Default for RedisConfig {
    fn default() -> Self {
        Self { url: None, prefix: "longhaul".to_owned() }
    }
}

impl RedisConfig {
    pub(super) fn check(&self, report: &mut Report) {
        report.require(is_name(&self.prefix), "redis.prefix", || {
            "must be 1 to 64 letters, digits, `_` or `-`".to_owned()
        });
    }
}

/// The address of a Redis server. It may carry a password, so it prints itself with that masked.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl(String);

impl RedisUrl {
    /// The address with its password, for the driver only.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl FromStr for RedisUrl {
    type Err = String;

    // The text is not quoted in the error: it may hold a password.
    fn from_str(text: &str) -> Result<Self, String> {
        let url = url::Url::parse(text).map_err(|e| format!("not a URL: {e}"))?;
        match url.scheme() {
            "redis" | "rediss" | "unix" | "redis+unix" => Ok(Self(text.to_owned())),
            _ => Err("must be written as redis://host:port, rediss://… or unix:///path".to_owned()),
        }
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&masked_url(&self.0))
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for RedisUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for RedisUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}
